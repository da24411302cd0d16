//! Attention over given tensors, or over a cache.

use super::cache::KvCache;
use super::{as_heads, expect_dense, expect_dtype, run, shape_error, view_error};
use crate::tensor::Tensor;
use perjoule_kernels::op::Attention;
use perjoule_kernels::{DType, KvLayout, Result};

const NAME: &str = "attention";

/// Attention of `q` (`[batch, q_len, heads, head_dim]`) over `k` and `v` (`[batch, kv_len, kv_heads, head_dim]`): not causal, scale
/// `1 / sqrt(head_dim)`, unless the call is told otherwise. `k` and `v` share dtype and strides, as slices of one tensor do; `heads` is
/// a multiple of `kv_heads`.
pub fn attention<'a>(q: &'a Tensor, k: &'a Tensor, v: &'a Tensor) -> AttentionCall<'a> {
    AttentionCall::new(q, Keys::Tensors(k, v))
}

/// Causal attention of the newest tokens `q` over everything in the cache: `[batch, q_len, heads, head_dim]`, or, behind
/// [`KvCache::advance_ragged`], `[tokens, heads, head_dim]` of all its tokens.
pub fn attention_cached<'a>(q: &'a Tensor, cache: &'a KvCache) -> AttentionCall<'a> {
    AttentionCall::new(q, Keys::Cache(cache)).causal(true)
}

#[derive(Debug, Clone, Copy)]
enum Keys<'a> {
    Tensors(&'a Tensor, &'a Tensor),
    Cache(&'a KvCache),
}

/// An attention call about to run.
#[derive(Debug, Clone, Copy)]
#[must_use = "nothing happens before `run`"]
pub struct AttentionCall<'a> {
    q: &'a Tensor,
    keys: Keys<'a>,
    causal: bool,
    window: Option<usize>,
    scale: Option<f32>,
    soft_cap: Option<f32>,
    sinks: Option<&'a Tensor>,
}

impl<'a> AttentionCall<'a> {
    fn new(q: &'a Tensor, keys: Keys<'a>) -> Self {
        AttentionCall { q, keys, causal: false, window: None, scale: None, soft_cap: None, sinks: None }
    }

    /// Whether a query sees no later key; the last query stands at the last key.
    pub fn causal(mut self, causal: bool) -> Self {
        self.causal = causal;
        self
    }

    /// Sliding window, in tokens, the query's own position included.
    pub fn window(mut self, tokens: usize) -> Self {
        self.window = Some(tokens);
        self
    }

    /// Factor of the scores.
    pub fn scale(mut self, scale: f32) -> Self {
        self.scale = Some(scale);
        self
    }

    /// Caps scores at `cap` by tanh.
    pub fn soft_cap(mut self, cap: f32) -> Self {
        self.soft_cap = Some(cap);
        self
    }

    /// One f32 sink a head, which takes part in each softmax without a value.
    pub fn sinks(mut self, sinks: &'a Tensor) -> Self {
        self.sinks = Some(sinks);
        self
    }

    /// Computes it into a new tensor of the shape and dtype of `q`.
    pub fn run(self) -> Result<Tensor> {
        let device = self.q.device();
        let lengths;
        let (batch, q_len, ragged, kv, mut args) = match self.keys {
            Keys::Tensors(k, v) => {
                let [batch, q_len, _, head_dim] = *self.q.shape() else {
                    return Err(shape_error(NAME, "q", self.q, "[batch, q_len, heads, head_dim]"));
                };
                let kv = layout(batch, head_dim, k, v)?;
                let length = i32::try_from(kv.capacity).unwrap_or(i32::MAX);
                lengths = Tensor::unwritten(device, DType::I32, [batch])?;
                lengths.write(&vec![length; batch])?;
                (batch, q_len, false, kv, vec![self.q, k, v, &lengths])
            }
            Keys::Cache(cache) => {
                let (q_len, ragged) = cache.queries(NAME, self.q)?;
                let mut args = vec![self.q, cache.keys(), cache.values()];
                args.extend(cache.slots(ragged));
                (cache.batch(), q_len, ragged, cache.layout(), args)
            }
        };
        let q = as_heads(NAME, "q", self.q)?;
        let (dtype, heads) = (self.q.dtype(), q.inner);
        let mut op = Attention::causal(batch, q_len, heads, kv, dtype);
        op.q = q;
        // ragged sequences need not fill batch * q_len rows
        op.out.outer = q.outer;
        (op.ragged, op.kv_dtype) = (ragged, args[1].dtype());
        (op.causal, op.window, op.soft_cap, op.sinks) =
            (self.causal, self.window, self.soft_cap, self.sinks.is_some());
        op.scale = self.scale.unwrap_or(op.scale);
        if let Some(sinks) = self.sinks {
            expect_dtype(NAME, "sinks", sinks, DType::F32)?;
            expect_dense(NAME, "sinks", sinks, &[heads])?;
            args.push(sinks);
        }
        let out = Tensor::unwritten(device, dtype, self.q.shape())?;
        args.push(&out);
        run(op, &args)?;
        Ok(out)
    }
}

/// The layout that `k` and `v` share.
fn layout(batch: usize, head_dim: usize, k: &Tensor, v: &Tensor) -> Result<KvLayout> {
    let [k_batch, capacity, kv_heads, k_dim] = *k.shape() else {
        return Err(shape_error(NAME, "k", k, "[batch, kv_len, kv_heads, head_dim]"));
    };
    if (k_batch, k_dim) != (batch, head_dim) {
        return Err(shape_error(NAME, "k", k, format!("batch {batch} and head_dim {head_dim}, as q has")));
    }
    if v.shape() != k.shape() || v.dtype() != k.dtype() {
        return Err(shape_error(NAME, "v", v, format!("shape and dtype of k, {k:?}")));
    }
    let strides = k.strides();
    // strides of single indices mean nothing
    let differ = (0..4).any(|d| k.shape()[d] > 1 && v.strides()[d] != strides[d]);
    if differ && k.elements() > 0 {
        return Err(view_error(NAME, "v", v, &format!("the strides of k, {strides:?}")));
    }
    if head_dim > 1 && strides[3] != 1 {
        return Err(view_error(NAME, "k", k, "a contiguous last dimension"));
    }
    let (batch_stride, token_stride, head_stride) = (strides[0], strides[1], strides[2]);
    Ok(KvLayout {
        batch_stride,
        token_stride,
        head_stride,
        ..KvLayout::token_major(kv_heads, capacity, head_dim)
    })
}
