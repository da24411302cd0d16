//! Ops that work on vectors along the last dimension.

use super::{as_rows, expect_dtype, folded_stride, run, shape_error};
use crate::tensor::Tensor;
use perjoule_kernels::op::{
    Add, Argmax, Cast, Embed, Gated, GatedKind, LayerNorm, Quantise, Residual, RmsNorm, Rope, RopeScaling,
    RopeStyle, Sample, Softmax,
};
use perjoule_kernels::{DType, Result, Rows};

/// A new dense tensor of the same shape, and its vectors in the arrangement of `rows`.
fn like(x: &Tensor, dtype: DType, rows: Rows) -> Result<(Tensor, Rows)> {
    let out = Tensor::zeros(x.device(), dtype, x.shape())?;
    Ok((out, Rows::grid(rows.outer, rows.inner, rows.len)))
}

fn weight_vector(op: &'static str, field: &'static str, weight: &Tensor, len: usize) -> Result<()> {
    if weight.shape() == [len] && weight.is_dense() {
        return Ok(());
    }
    Err(shape_error(op, field, weight, format!("a dense vector of {len}")))
}

/// `x / sqrt(mean(x^2) + eps) * weight`.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    let rows = as_rows("rms_norm", "x", x)?;
    weight_vector("rms_norm", "weight", weight, rows.len)?;
    let (out, out_rows) = like(x, x.dtype(), rows)?;
    let mut op = RmsNorm::dense(1, rows.len, x.dtype());
    (op.x, op.out, op.weight, op.eps) = (rows, out_rows, weight.dtype(), eps);
    run(op, &[x, weight, &out])?;
    Ok(out)
}

/// Adds `residual` to `x` first: returns the sum, and the sum normalised.
pub fn rms_norm_residual(
    x: &Tensor,
    residual: &Tensor,
    weight: &Tensor,
    eps: f32,
) -> Result<(Tensor, Tensor)> {
    let rows = as_rows("rms_norm", "x", x)?;
    let residual_rows = as_rows("rms_norm", "residual", residual)?;
    weight_vector("rms_norm", "weight", weight, rows.len)?;
    expect_dtype("rms_norm", "residual", residual, x.dtype())?;
    let (sum, sum_rows) = like(x, x.dtype(), rows)?;
    let (out, out_rows) = like(x, x.dtype(), rows)?;
    let mut op = RmsNorm::dense(1, rows.len, x.dtype());
    (op.x, op.out, op.weight, op.eps) = (rows, out_rows, weight.dtype(), eps);
    op.residual = Some(Residual { rows: residual_rows, sum: sum_rows });
    run(op, &[x, residual, weight, &sum, &out])?;
    Ok((sum, out))
}

/// `(x - mean) / sqrt(var + eps) * weight + bias`.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, eps: f32) -> Result<Tensor> {
    let rows = as_rows("layer_norm", "x", x)?;
    weight_vector("layer_norm", "weight", weight, rows.len)?;
    let (out, out_rows) = like(x, x.dtype(), rows)?;
    let op = LayerNorm {
        x: rows,
        x_dtype: x.dtype(),
        weight: weight.dtype(),
        bias: bias.is_some(),
        eps,
        residual: None,
        out: out_rows,
        out_dtype: x.dtype(),
    };
    match bias {
        Some(bias) => {
            weight_vector("layer_norm", "bias", bias, rows.len)?;
            expect_dtype("layer_norm", "bias", bias, weight.dtype())?;
            run(op, &[x, weight, bias, &out])?;
        }
        None => run(op, &[x, weight, &out])?,
    }
    Ok(out)
}

/// Rotates `x` (`[.., tokens, heads, head_dim]`, leading dimensions and tokens in one) in place by `positions` (i32, one a token):
/// halves of each vector are paired, as in Llama checkpoints of Hugging Face.
pub fn rope(x: &Tensor, positions: &Tensor, theta: f64) -> Result<()> {
    expect_dtype("rope", "positions", positions, DType::I32)?;
    let [lead @ .., heads, head_dim] = x.shape() else {
        return Err(shape_error("rope", "x", x, "[tokens, heads, head_dim]"));
    };
    let tokens: usize = lead.iter().product();
    if positions.elements() != tokens || !positions.is_dense() {
        return Err(shape_error("rope", "positions", positions, format!("a dense vector of {tokens}")));
    }
    if *head_dim > 1 && x.strides()[lead.len() + 1] != 1 {
        return Err(shape_error("rope", "x", x, "a contiguous last dimension; copy it first"));
    }
    let Some(outer_stride) = folded_stride(lead, x.strides()) else {
        return Err(shape_error("rope", "x", x, "tokens that lie one after the other; copy it first"));
    };
    let inner_stride = x.strides()[lead.len()];
    let rows = Rows { outer: tokens, inner: *heads, len: *head_dim, outer_stride, inner_stride };
    let op = Rope {
        x: rows,
        dtype: x.dtype(),
        rotary_dim: *head_dim,
        style: RopeStyle::HalfSplit,
        theta,
        scaling: RopeScaling::None,
    };
    run(op, &[positions, x])
}

/// `activation(gate) * up`: swiglu, geglu, or gpt-oss's clamped form.
pub fn gated(gate: &Tensor, up: &Tensor, kind: GatedKind) -> Result<Tensor> {
    if gate.shape() != up.shape() {
        return Err(shape_error("gated", "up", up, format!("the shape of gate, {:?}", gate.shape())));
    }
    expect_dtype("gated", "up", up, gate.dtype())?;
    let (gate_rows, up_rows) = (as_rows("gated", "gate", gate)?, as_rows("gated", "up", up)?);
    if (gate_rows.outer, gate_rows.inner) != (up_rows.outer, up_rows.inner) {
        return Err(shape_error(
            "gated",
            "up",
            up,
            "leading dimensions that fold like those of gate; copy it first",
        ));
    }
    let (out, out_rows) = like(gate, gate.dtype(), gate_rows)?;
    let op = Gated {
        gate: gate_rows,
        up: up_rows,
        dtype: gate.dtype(),
        out: out_rows,
        out_dtype: gate.dtype(),
        kind,
    };
    run(op, &[gate, up, &out])?;
    Ok(out)
}

/// Softmax along the last dimension.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    let rows = as_rows("softmax", "x", x)?;
    let (out, out_rows) = like(x, x.dtype(), rows)?;
    run(Softmax { x: rows, dtype: x.dtype(), out: out_rows, out_dtype: x.dtype(), scale: 1.0 }, &[x, &out])?;
    Ok(out)
}

/// Rows of `table` (`[vocab, dim]`) at `ids` (i32), as `dtype`. An id outside the vocabulary gives a row of NaN.
pub fn embed(table: &Tensor, ids: &Tensor, dtype: DType) -> Result<Tensor> {
    let [vocab, dim] = *table.shape() else {
        return Err(shape_error("embed", "table", table, "[vocab, dim]"));
    };
    if !table.is_dense() || !ids.is_dense() {
        return Err(shape_error("embed", "table", table, "a dense table and dense ids; copy them first"));
    }
    expect_dtype("embed", "ids", ids, DType::I32)?;
    let mut shape = ids.shape().to_vec();
    shape.push(dim);
    let out = Tensor::zeros(table.device(), dtype, shape)?;
    run(Embed::dense(ids.elements(), vocab, dim, table.dtype(), dtype), &[ids, table, &out])?;
    Ok(out)
}

/// `a + b`. A `b` of one dimension is added to every vector of `a`.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    expect_dtype("add", "b", b, a.dtype())?;
    let rows = as_rows("add", "a", a)?;
    let b_rows = match b.shape() {
        [len] if *len == rows.len && a.shape().len() > 1 => {
            Rows { outer: rows.outer, inner: rows.inner, len: *len, outer_stride: 0, inner_stride: 0 }
        }
        shape if shape == a.shape() => as_rows("add", "b", b)?,
        _ => {
            return Err(shape_error(
                "add",
                "b",
                b,
                format!("the shape {:?} or its last dimension", a.shape()),
            ));
        }
    };
    if (b_rows.outer, b_rows.inner) != (rows.outer, rows.inner) {
        return Err(shape_error(
            "add",
            "b",
            b,
            "leading dimensions that fold like those of a; copy it first",
        ));
    }
    let (out, out_rows) = like(a, a.dtype(), rows)?;
    run(Add { a: rows, b: b_rows, dtype: a.dtype(), out: out_rows }, &[a, b, &out])?;
    Ok(out)
}

/// Index of the largest element of each vector (i32): NaN counts as larger than every number, ties pick the lowest index.
pub fn argmax(x: &Tensor) -> Result<Tensor> {
    let rows = as_rows("argmax", "x", x)?;
    let lead = x.shape()[..x.shape().len() - 1].to_vec();
    let ids = Tensor::zeros(x.device(), DType::I32, lead)?;
    run(Argmax { x: rows, dtype: x.dtype() }, &[x, &ids])?;
    Ok(ids)
}

/// Draws an index from each vector of logits (i32), by `uniform` (f32 in `[0, 1)`, one a vector): reproducible from the caller's
/// random numbers.
pub fn sample(
    x: &Tensor,
    uniform: &Tensor,
    temperature: f32,
    top_k: Option<usize>,
    top_p: Option<f32>,
) -> Result<Tensor> {
    let rows = as_rows("sample", "x", x)?;
    expect_dtype("sample", "uniform", uniform, DType::F32)?;
    let vectors: usize = x.shape()[..x.shape().len() - 1].iter().product();
    if uniform.elements() != vectors || !uniform.is_dense() {
        return Err(shape_error("sample", "uniform", uniform, format!("a dense vector of {vectors}")));
    }
    let lead = x.shape()[..x.shape().len() - 1].to_vec();
    let ids = Tensor::zeros(x.device(), DType::I32, lead)?;
    run(Sample { x: rows, dtype: x.dtype(), temperature, top_k, top_p }, &[x, uniform, &ids])?;
    Ok(ids)
}

/// The same numbers as another dtype: rounds to nearest even; reads block formats.
pub fn cast(x: &Tensor, dtype: DType) -> Result<Tensor> {
    let rows = as_rows("cast", "x", x)?;
    let (out, out_rows) = like(x, dtype, rows)?;
    run(Cast { x: rows, from: x.dtype(), out: out_rows, to: dtype }, &[x, &out])?;
    Ok(out)
}

/// A dense tensor quantised to a block format, bit-compatible with llama.cpp's (mxfp4: OCP MX).
pub fn quantise(x: &Tensor, format: DType) -> Result<Tensor> {
    if !x.is_dense() {
        return Err(shape_error("quantise", "x", x, "a dense tensor; copy it first"));
    }
    if !format.is_block() {
        return Err(shape_error(
            "quantise",
            "format",
            x,
            "a block format; ops::cast converts to plain dtypes",
        ));
    }
    let rows = as_rows("quantise", "x", x)?;
    let (out, _) = like(x, format, rows)?;
    run(Quantise { x: rows, from: x.dtype(), to: format, scale: None }, &[x, &out])?;
    Ok(out)
}
