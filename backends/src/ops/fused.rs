//! Ops that do the work of several in one pass.

use super::cache::KvCache;
use super::rope::RopeOptions;
use super::{as_heads, as_matrix, expect_dense, expect_dtype, run, shape_error, tensor2};
use crate::tensor::Tensor;
use perjoule_kernels::op::{Epilogue, Gated, GatedKind, GatedMatMul, HeadNorm, MatMul, QkNormRopeAppend};
use perjoule_kernels::{DType, Result, Rows};

const GATED: &str = "gated_matmul";
const QK: &str = "qk_norm_rope_append";

/// `kind(x gate, x up)`: both projections of a feed-forward layer with the activation, without storing either. `x` is `[.., k]`, the
/// matrices are plain `[k, n]` tensors of one dtype (transposed views of weights `[n, k]` are read as they are).
///
/// On the CPU only a simple row runs this; [`super::linear`] with packed weights, followed by [`super::gated`], is faster there.
pub fn gated_matmul<'a>(
    x: &'a Tensor,
    gate: &'a Tensor,
    up: &'a Tensor,
    kind: GatedKind,
) -> GatedMatMulCall<'a> {
    GatedMatMulCall { x, gate, up, kind, gate_bias: None, up_bias: None, out: None }
}

/// A gated product about to run.
#[derive(Debug, Clone, Copy)]
#[must_use = "nothing happens before `run`"]
pub struct GatedMatMulCall<'a> {
    x: &'a Tensor,
    gate: &'a Tensor,
    up: &'a Tensor,
    kind: GatedKind,
    gate_bias: Option<&'a Tensor>,
    up_bias: Option<&'a Tensor>,
    out: Option<DType>,
}

impl<'a> GatedMatMulCall<'a> {
    /// A vector of `n` elements, added to every row of the gate.
    pub fn gate_bias(mut self, bias: &'a Tensor) -> Self {
        self.gate_bias = Some(bias);
        self
    }

    /// A vector of `n` elements, added to every row of what is gated.
    pub fn up_bias(mut self, bias: &'a Tensor) -> Self {
        self.up_bias = Some(bias);
        self
    }

    /// Element type of the result; that of `x` unless set.
    pub fn out_dtype(mut self, dtype: DType) -> Self {
        self.out = Some(dtype);
        self
    }

    /// Computes it into a new tensor `[.., n]`.
    pub fn run(self) -> Result<Tensor> {
        let (m, k, a) = as_matrix(GATED, "x", self.x)?;
        let n = match *self.gate.shape() {
            [gate_k, n] if gate_k == k => n,
            _ => return Err(shape_error(GATED, "gate", self.gate, format!("[{k}, n]"))),
        };
        if self.up.shape() != [k, n] {
            return Err(shape_error(GATED, "up", self.up, format!("the shape of gate, [{k}, {n}]")));
        }
        expect_dtype(GATED, "up", self.up, self.gate.dtype())?;
        let x_dtype = self.x.dtype();
        let dtype = self.out.unwrap_or(x_dtype);
        let part = |b: &Tensor, bias: Option<&Tensor>| {
            let mut op = MatMul::nn(m, n, k, x_dtype, b.dtype(), DType::F32);
            (op.a.strides, op.b) = (a, tensor2(b));
            op.epilogue = Epilogue { bias: bias.map(Tensor::dtype), ..Epilogue::default() };
            op
        };
        let mut shape = self.x.shape().to_vec();
        shape.pop();
        shape.push(n);
        let out = Tensor::unwritten(self.x.device(), dtype, shape)?;
        let op = GatedMatMul {
            gate: part(self.gate, self.gate_bias),
            up: part(self.up, self.up_bias),
            gated: Gated { out_dtype: dtype, ..Gated::dense(m, n, DType::F32, self.kind) },
        };
        let mut args = vec![self.x, self.gate, self.up];
        for (field, bias) in [("gate_bias", self.gate_bias), ("up_bias", self.up_bias)] {
            if let Some(bias) = bias {
                expect_dense(GATED, field, bias, &[n])?;
                args.push(bias);
            }
        }
        args.push(&out);
        run(op, &args)?;
        Ok(out)
    }
}

/// How [`qk_norm_rope_append`] treats the heads of queries and keys.
#[derive(Debug, Clone, Copy)]
pub struct QkNormRope<'a> {
    /// Weight of the queries' norm, `[head_dim]`; `None` where they are not normalised.
    pub q_weight: Option<&'a Tensor>,
    /// Weight of the keys' norm, `[head_dim]`; `None` where they are not normalised.
    pub k_weight: Option<&'a Tensor>,
    /// Added to both weights: 1 for Gemma, else 0.
    pub weight_offset: f32,
    /// Added to the mean squares.
    pub eps: f32,
    /// Rotation of both.
    pub rope: RopeOptions,
}

/// Between the projections and attention, in one pass: normalises each head of `q` and `k`, where it has a weight for that, rotates both
/// by the positions of the last [`KvCache::advance`], and appends keys and values to the cache. Shapes are those of
/// [`KvCache::append`], with `heads` for `q`. Returns the queries for [`super::attention_cached`].
pub fn qk_norm_rope_append(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    how: &QkNormRope<'_>,
    cache: &mut KvCache,
) -> Result<Tensor> {
    let append = cache.append_op(QK, k, v)?;
    let same = q.shape().len() == k.shape().len()
        && q.shape().iter().zip(k.shape()).rev().skip(2).all(|(a, b)| a == b);
    if !same || q.shape().last() != k.shape().last() {
        return Err(shape_error(QK, "q", q, format!("the shape of k, {:?}, but for the heads", k.shape())));
    }
    let (q_rows, k_rows) = (as_heads(QK, "q", q)?, as_heads(QK, "k", k)?);
    let weights = [("q_weight", how.q_weight), ("k_weight", how.k_weight)];
    for (field, weight) in weights {
        weight.map_or(Ok(()), |weight| expect_dense(QK, field, weight, &[q_rows.len]))?;
    }
    let out = Tensor::unwritten(q.device(), q.dtype(), q.shape())?;
    let [q_norm, k_norm] = weights.map(|(_, weight)| {
        let (weight_offset, eps) = (how.weight_offset, how.eps);
        weight.map(|weight| HeadNorm { weight: weight.dtype(), weight_offset, eps })
    });
    let dense = |rows: Rows| Rows::grid(rows.outer, rows.inner, rows.len);
    let op = QkNormRopeAppend {
        q: q_rows,
        q_dtype: q.dtype(),
        q_norm,
        k_norm,
        q_rope: how.rope.op(dense(q_rows), q.dtype()),
        k_rope: how.rope.op(dense(k_rows), k.dtype()),
        append,
    };
    let mut args = vec![q, k, v];
    args.extend(weights.into_iter().filter_map(|(_, weight)| weight));
    args.push(cache.positions());
    args.extend(cache.slots(append.ragged));
    args.extend([cache.keys(), cache.values(), &out]);
    run(op, &args)?;
    cache.appended();
    Ok(out)
}
