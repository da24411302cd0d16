//! Ops that work on vectors along the last dimension.

use super::{
    as_rows, as_rows_alike, expect_count, expect_dtype, like, product, run, shape_error, view_error,
};
use crate::tensor::Tensor;
use perjoule_kernels::op::{Add, Argmax, Embed, Gated, GatedKind, Sample, Softmax};
use perjoule_kernels::{DType, Result, Rows};

/// `activation(gate) * up`: swiglu, geglu, or gpt-oss's clamped form. Both have one shape and float type; halves of a fused product
/// are read in place.
pub fn gated(gate: &Tensor, up: &Tensor, kind: GatedKind) -> Result<Tensor> {
    if gate.shape() != up.shape() {
        return Err(shape_error("gated", "up", up, format!("the shape of gate, {:?}", gate.shape())));
    }
    expect_dtype("gated", "up", up, gate.dtype())?;
    let [gate_rows, up_rows] = as_rows_alike("gated", [("gate", gate), ("up", up)])?;
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
    softmax_scaled(x, 1.0)
}

/// Softmax of `scale * x` along the last dimension.
pub fn softmax_scaled(x: &Tensor, scale: f32) -> Result<Tensor> {
    let rows = as_rows("softmax", "x", x)?;
    let (out, out_rows) = like(x, x.dtype(), rows)?;
    run(Softmax { x: rows, dtype: x.dtype(), out: out_rows, out_dtype: x.dtype(), scale }, &[x, &out])?;
    Ok(out)
}

/// Rows of `table` (dense `[vocab, dim]`, a float type or block format) at `ids` (dense, i32), as `dtype`: `[.., dim]`. An id outside
/// the vocabulary gives a row of NaN.
pub fn embed(table: &Tensor, ids: &Tensor, dtype: DType) -> Result<Tensor> {
    embed_scaled(table, ids, dtype, 1.0)
}

/// The same, multiplied by `scale`: `sqrt(dim)` for Gemma.
pub fn embed_scaled(table: &Tensor, ids: &Tensor, dtype: DType, scale: f32) -> Result<Tensor> {
    let [vocab, dim] = *table.shape() else {
        return Err(shape_error("embed", "table", table, "[vocab, dim]"));
    };
    for (field, tensor) in [("table", table), ("ids", ids)] {
        if !tensor.is_dense() {
            return Err(view_error("embed", field, tensor, "a dense tensor"));
        }
    }
    expect_dtype("embed", "ids", ids, DType::I32)?;
    let mut shape = ids.shape().to_vec();
    shape.push(dim);
    let out = Tensor::unwritten(table.device(), dtype, shape)?;
    let op = Embed { scale, ..Embed::dense(ids.elements(), vocab, dim, table.dtype(), dtype) };
    run(op, &[ids, table, &out])?;
    Ok(out)
}

/// `a + b`, of one float type. A `b` of one dimension is added to every vector of `a`.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    expect_dtype("add", "b", b, a.dtype())?;
    let [rows, b_rows] = match (b.shape(), a.shape()) {
        ([len], [.., last]) if a.shape().len() > 1 && len == last => {
            let [rows] = as_rows_alike("add", [("a", a)])?;
            as_rows("add", "b", b)?; // contiguous
            [rows, Rows { outer_stride: 0, inner_stride: 0, ..rows }]
        }
        (b_shape, shape) if b_shape == shape => as_rows_alike("add", [("a", a), ("b", b)])?,
        (_, shape) => {
            return Err(shape_error("add", "b", b, format!("the shape {shape:?} or its last dimension")));
        }
    };
    let (out, out_rows) = like(a, a.dtype(), rows)?;
    run(Add { a: rows, b: b_rows, dtype: a.dtype(), out: out_rows }, &[a, b, &out])?;
    Ok(out)
}

/// Index of the largest element of each vector (i32): NaN counts as larger than every number, ties pick the lowest index.
pub fn argmax(x: &Tensor) -> Result<Tensor> {
    let rows = as_rows("argmax", "x", x)?;
    let lead = &x.shape()[..x.shape().len() - 1];
    let ids = Tensor::unwritten(x.device(), DType::I32, lead)?;
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
    let lead = &x.shape()[..x.shape().len() - 1];
    expect_dtype("sample", "uniform", uniform, DType::F32)?;
    expect_count("sample", "uniform", uniform, product(lead))?;
    let ids = Tensor::unwritten(x.device(), DType::I32, lead)?;
    run(Sample { x: rows, dtype: x.dtype(), temperature, top_k, top_p }, &[x, uniform, &ids])?;
    Ok(ids)
}
