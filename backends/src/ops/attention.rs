//! Attention, and the cache it reads.

use super::{expect_dtype, folded_stride, run, shape_error};
use crate::device::Device;
use crate::tensor::Tensor;
use perjoule_kernels::op::{Advance, Attention, KvAppend};
use perjoule_kernels::{DType, KvLayout, Result};

const NAME: &str = "attention";

/// Attention of `q` (`[batch, q_len, heads, head_dim]`) over `k` and `v` (`[batch, kv_len, kv_heads, head_dim]`): not causal, scale
/// `1 / sqrt(head_dim)`, unless the call is told otherwise.
pub fn attention<'a>(q: &'a Tensor, k: &'a Tensor, v: &'a Tensor) -> AttentionCall<'a> {
    AttentionCall::new(q, Keys::Tensors(k, v))
}

/// Causal attention of the newest tokens `q` (`[batch, q_len, heads, head_dim]`) over everything in the cache.
pub fn attention_cached<'a>(q: &'a Tensor, cache: &'a KvCache) -> AttentionCall<'a> {
    AttentionCall::new(q, Keys::Cache(cache)).causal(true)
}

enum Keys<'a> {
    Tensors(&'a Tensor, &'a Tensor),
    Cache(&'a KvCache),
}

/// An attention call about to run.
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
        let [batch, q_len, heads, head_dim] = *self.q.shape() else {
            return Err(shape_error(NAME, "q", self.q, "[batch, q_len, heads, head_dim]"));
        };
        let device = self.q.device();
        let lengths;
        let (k, v, kv, kv_len) = match self.keys {
            Keys::Tensors(k, v) => {
                let [k_batch, capacity, kv_heads, k_dim] = *k.shape() else {
                    return Err(shape_error(NAME, "k", k, "[batch, kv_len, kv_heads, head_dim]"));
                };
                if (k_batch, k_dim) != (batch, head_dim) {
                    return Err(shape_error(NAME, "k", k, format!("batch {batch} and head_dim {head_dim}")));
                }
                if v.shape() != k.shape() || v.strides() != k.strides() || v.dtype() != k.dtype() {
                    return Err(shape_error(NAME, "v", v, format!("shape, strides and dtype of k, {k:?}")));
                }
                let s = k.strides();
                if head_dim > 1 && s[3] != 1 {
                    return Err(shape_error(NAME, "k", k, "a contiguous last dimension; copy it first"));
                }
                let mut kv = KvLayout::token_major(kv_heads, capacity, head_dim);
                (kv.batch_stride, kv.token_stride, kv.head_stride) = (s[0], s[1], s[2]);
                lengths = Tensor::from_slice(device, &vec![capacity as i32; batch], [batch])?;
                (k, v, kv, &lengths)
            }
            Keys::Cache(cache) => {
                if cache.batch != batch {
                    return Err(shape_error(
                        NAME,
                        "q",
                        self.q,
                        format!("batch {}, as the cache has", cache.batch),
                    ));
                }
                if q_len > cache.len || cache.pending {
                    let expected = match cache.pending {
                        true => "keys and values appended for the tokens advanced".into(),
                        false => format!("at most the {} tokens in the cache", cache.len),
                    };
                    return Err(shape_error(NAME, "q", self.q, expected));
                }
                (&cache.k, &cache.v, cache.layout, &cache.kv_len)
            }
        };
        let out = Tensor::zeros(device, self.q.dtype(), [batch, q_len, heads, head_dim])?;
        let mut op = Attention::causal(batch, q_len, heads, kv, self.q.dtype());
        // kept [tokens, heads] even where a size of 1 would let dimensions fold
        let strides = self.q.strides();
        if batch > 1 && q_len > 1 && strides[0] != strides[1] * q_len {
            return Err(shape_error(
                NAME,
                "q",
                self.q,
                "sequences that lie one after the other; copy it first",
            ));
        }
        if head_dim > 1 && strides[3] != 1 {
            return Err(shape_error(NAME, "q", self.q, "a contiguous last dimension; copy it first"));
        }
        op.q.outer_stride = if q_len > 1 { strides[1] } else { strides[0] };
        op.q.inner_stride = strides[2];
        op.kv_dtype = k.dtype();
        (op.causal, op.window, op.soft_cap, op.sinks) =
            (self.causal, self.window, self.soft_cap, self.sinks.is_some());
        op.scale = self.scale.unwrap_or(op.scale);
        let mut args = vec![self.q, k, v, kv_len];
        if let Some(sinks) = self.sinks {
            expect_dtype(NAME, "sinks", sinks, DType::F32)?;
            if sinks.shape() != [heads] || !sinks.is_dense() {
                return Err(shape_error(NAME, "sinks", sinks, format!("a dense vector of {heads}")));
            }
            args.push(sinks);
        }
        args.push(&out);
        run(op, &args)?;
        Ok(out)
    }
}

/// Keys and values of the tokens so far, preallocated for `capacity` tokens a sequence. Lengths live on the device, so that recorded
/// steps advance them without host work; the host keeps count beside them.
pub struct KvCache {
    k: Tensor,
    v: Tensor,
    kv_len: Tensor,
    positions: Tensor,
    layout: KvLayout,
    batch: usize,
    len: usize,
    /// Whether tokens have positions, but no keys and values yet.
    pending: bool,
}

impl KvCache {
    /// An empty cache.
    pub fn new(
        device: &Device,
        batch: usize,
        kv_heads: usize,
        capacity: usize,
        head_dim: usize,
        dtype: DType,
    ) -> Result<Self> {
        let shape = [batch, kv_heads, capacity, head_dim];
        Ok(KvCache {
            k: Tensor::zeros(device, dtype, shape)?,
            v: Tensor::zeros(device, dtype, shape)?,
            kv_len: Tensor::zeros(device, DType::I32, [batch])?,
            positions: Tensor::zeros(device, DType::I32, [0])?,
            layout: KvLayout::contiguous(kv_heads, capacity, head_dim),
            batch,
            len: 0,
            pending: false,
        })
    }

    /// Tokens of each sequence so far.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no token was appended yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Positions of the tokens of the last [`KvCache::advance`], `[batch * tokens]`: what [`super::rope`] takes.
    pub fn positions(&self) -> &Tensor {
        &self.positions
    }

    /// Makes room for `tokens` more tokens in each sequence and gives them positions. Then rotate, then [`KvCache::append`], without
    /// which neither attention nor the next advance is possible.
    pub fn advance(&mut self, tokens: usize) -> Result<()> {
        let refuse = |got: String, expected: String| {
            Err(perjoule_kernels::Error::Invalid { op: "kv_append", field: "tokens", got, expected })
        };
        let room = self.layout.capacity - self.len;
        if tokens > room {
            let capacity = self.layout.capacity;
            return refuse(
                format!("{tokens} after {}", self.len),
                format!("no more than the capacity of {capacity}"),
            );
        }
        if self.pending {
            return refuse(tokens.to_string(), "KvCache::append after the last advance".into());
        }
        let positions = Tensor::zeros(self.k.device(), DType::I32, [self.batch, tokens])?;
        let positions = positions.reshape([positions.elements()])?;
        run(Advance::uniform(self.batch, tokens), &[&self.kv_len, &positions])?;
        self.positions = positions;
        self.len += tokens;
        self.pending = tokens > 0;
        Ok(())
    }

    /// Stores keys and values of the tokens of the last [`KvCache::advance`]: `[batch, tokens, kv_heads, head_dim]` each.
    pub fn append(&mut self, k: &Tensor, v: &Tensor) -> Result<()> {
        for (field, t) in [("k", k), ("v", v)] {
            let tokens = self.positions.elements() / self.batch.max(1);
            let want = [self.batch, tokens, self.layout.kv_heads, self.layout.head_dim];
            if t.shape() != want {
                return Err(shape_error("kv_append", field, t, format!("the shape {want:?}, as advanced")));
            }
        }
        let tokens = k.shape()[1];
        let rows = |field, t: &Tensor| {
            let (shape, strides) = (t.shape(), t.strides());
            let contiguous = shape[3] <= 1 || strides[3] == 1;
            match folded_stride(&shape[..2], strides).filter(|_| contiguous) {
                Some(outer_stride) => {
                    let rows = perjoule_kernels::Rows::grid(self.batch * tokens, shape[2], shape[3]);
                    Ok(perjoule_kernels::Rows { outer_stride, inner_stride: strides[2], ..rows })
                }
                None => {
                    let expected =
                        "tokens that lie one after the other, of contiguous vectors; copy it first";
                    Err(shape_error("kv_append", field, t, expected))
                }
            }
        };
        let op = KvAppend {
            batch: self.batch,
            q_len: tokens,
            ragged: false,
            src_k: rows("k", k)?,
            src_v: rows("v", v)?,
            src_dtype: k.dtype(),
            kv: self.layout,
            kv_dtype: self.k.dtype(),
        };
        expect_dtype("kv_append", "v", v, k.dtype())?;
        run(op, &[k, v, &self.kv_len, &self.k, &self.v])?;
        self.pending = false;
        Ok(())
    }
}
