//! One call an op. Results are new tensors; the device's default stream runs calls in order.
//!
//! What an op means at its edges (k = 0, masked rows, NaN, ties) is written in [`perjoule_kernels::op`]. Plans are kept by the
//! device: the second call with the same shapes prepares nothing.
//!
//! | part of a model | calls |
//! |---|---|
//! | projections | [`linear`] with a packed [`Weight`]; [`matmul`], [`matmul_with`]; [`gated_matmul`] |
//! | norms | [`rms_norm`], [`rms_norm_residual`], [`rms_norm_with`]; [`layer_norm`], [`layer_norm_residual`] |
//! | attention | [`rope`], [`KvCache`], [`qk_norm_rope_append`], [`attention_cached`]; [`attention`] without a cache |
//! | feed-forward | [`gated`]; mixtures of experts: [`route`], [`grouped_linear`] or [`grouped_matmul`], [`combine`] |
//! | tokens | [`embed`], [`softmax`], [`argmax`], [`sample`] |
//! | element types | [`cast`], [`quantise`], [`quantise_scaled`] |
//!
//! Short forms take what every use needs; `_with` and calls that return a builder take the rest and do nothing before `run`. Views are
//! read where they lie as long as an op can describe them; where it cannot, the error says so, and [`Tensor::contiguous`] helps.

mod attention;
mod cache;
mod copy;
mod experts;
mod fused;
mod matmul;
mod norm;
mod quantise;
mod rope;
mod rows;
mod weight;

pub use attention::{AttentionCall, attention, attention_cached};
pub use cache::KvCache;
pub use experts::{GroupedMatMulCall, Routing, combine, grouped_linear, grouped_matmul, route};
pub use fused::{GatedMatMulCall, QkNormRope, gated_matmul, qk_norm_rope_append};
pub use matmul::{MatMulCall, linear, matmul, matmul_with};
pub use norm::{RmsNormCall, layer_norm, layer_norm_residual, rms_norm, rms_norm_residual, rms_norm_with};
pub use perjoule_kernels::Paging;
pub use perjoule_kernels::op::{
    Activation, GatedKind, Granularity, Policy, RopeScaling, RopeStyle, RouteOrder,
};
pub use quantise::{Quantised, cast, quantise, quantise_scaled};
pub use rope::{RopeOptions, rope};
pub use rows::{add, argmax, embed, embed_scaled, gated, sample, softmax, softmax_scaled};
pub use weight::Weight;

pub(crate) use copy::copy;

use crate::device::Device;
use crate::tensor::Tensor;
use perjoule_kernels::op::Tensor2;
use perjoule_kernels::{Arg, Buffer, DType, Error, Matrix, Op, PackFormat, Query, Result, Rows};

/// Runs an op on the default stream: `args` in the order of its operands.
fn run(op: impl Into<Op>, args: &[&Tensor]) -> Result<()> {
    run_packed(&op.into(), None, args)
}

fn run_packed(op: &Op, pack: Option<&'static PackFormat>, args: &[&Tensor]) -> Result<()> {
    // the last one is written: it lies on the device of the call's main operand
    let Some(last) = args.last() else {
        return Err(Error::Unsupported { what: "a call without tensors", why: "an op has operands".into() });
    };
    let buffers: Vec<&Buffer> = args.iter().map(|t| t.buffer()).collect();
    launch(last.device(), op, pack, &buffers)
}

fn launch(device: &Device, op: &Op, pack: Option<&'static PackFormat>, args: &[&Buffer]) -> Result<()> {
    let query = Query { op, alignment: device.alignment(args) };
    let plan = device.prepare_packed(query, pack)?;
    let mut list: Vec<Arg<'_>> = args.iter().map(|b| Arg::Buf(b)).collect();
    let mut stream = device.default_stream()?;
    stream.reserve(plan.scratch())?;
    plan.launch(&mut *stream, &mut list)
}

fn shape_error(op: &'static str, field: &'static str, got: &Tensor, expected: impl Into<String>) -> Error {
    Error::Invalid { op, field, got: format!("{got:?}"), expected: expected.into() }
}

/// A view that the op cannot describe: `expected` is what it reads.
fn view_error(op: &'static str, field: &'static str, got: &Tensor, expected: &str) -> Error {
    shape_error(op, field, got, format!("{expected}; call Tensor::contiguous first"))
}

fn expect_dtype(op: &'static str, field: &'static str, tensor: &Tensor, dtype: DType) -> Result<()> {
    if tensor.dtype() == dtype {
        return Ok(());
    }
    Err(shape_error(op, field, tensor, format!("{dtype}; cast it with ops::cast")))
}

/// Refuses all but a dense tensor of exactly that shape.
fn expect_dense(op: &'static str, field: &'static str, tensor: &Tensor, shape: &[usize]) -> Result<()> {
    if tensor.shape() != shape {
        return Err(shape_error(op, field, tensor, format!("the shape {shape:?}")));
    }
    match tensor.is_dense() {
        true => Ok(()),
        false => Err(view_error(op, field, tensor, "a dense tensor")),
    }
}

/// Refuses all but a dense tensor of so many elements.
fn expect_count(op: &'static str, field: &'static str, tensor: &Tensor, count: usize) -> Result<()> {
    if tensor.elements() != count {
        return Err(shape_error(op, field, tensor, format!("{count} elements in all")));
    }
    match tensor.is_dense() {
        true => Ok(()),
        false => Err(view_error(op, field, tensor, "a dense tensor")),
    }
}

/// Indices of dimensions taken as one. Of a tensor without elements it may be absurd: saturates.
fn product(shape: &[usize]) -> usize {
    shape.iter().fold(1, |all, &size| all.saturating_mul(size))
}

/// Elements from one index to the next of the dimensions `shape` taken as one; `None` when they do not lie one after the other.
fn folded_stride(shape: &[usize], strides: &[usize]) -> Option<usize> {
    if shape.contains(&0) {
        return Some(0);
    }
    let mut dims = shape.iter().zip(strides).rev().filter(|(size, _)| **size != 1);
    let Some((&size, &first)) = dims.next() else { return Some(0) };
    let mut next = first.checked_mul(size);
    for (&size, &stride) in dims {
        if next != Some(stride) {
            return None;
        }
        next = stride.checked_mul(size);
    }
    Some(first)
}

/// The vectors along the last dimension, which must be contiguous; leading dimensions fold into two.
fn as_rows(op: &'static str, field: &'static str, tensor: &Tensor) -> Result<Rows> {
    let [rows] = as_rows_alike(op, [(field, tensor)])?;
    Ok(rows)
}

/// The same of tensors of one shape, whose leading dimensions fold in the same way.
fn as_rows_alike<const N: usize>(
    op: &'static str,
    tensors: [(&'static str, &Tensor); N],
) -> Result<[Rows; N]> {
    let shape = tensors[0].1.shape();
    let Some((&len, lead)) = shape.split_last() else {
        return Err(shape_error(op, tensors[0].0, tensors[0].1, "at least one dimension"));
    };
    for (field, tensor) in tensors {
        if len > 1 && tensor.strides()[lead.len()] != 1 {
            return Err(view_error(op, field, tensor, "a contiguous last dimension"));
        }
    }
    if lead.contains(&0) {
        return Ok([Rows::dense(0, len); N]);
    }
    // neighbours that lie one after the other in every tensor are one dimension
    let mut folded: Vec<(usize, [usize; N])> = Vec::new();
    for (d, &size) in lead.iter().enumerate().filter(|(_, size)| **size != 1) {
        let strides = tensors.map(|(_, tensor)| tensor.strides()[d]);
        match folded.last_mut() {
            Some((outer, steps))
                if steps.iter().zip(&strides).all(|(step, s)| *step == s.saturating_mul(size)) =>
            {
                (*outer, *steps) = (outer.saturating_mul(size), strides);
            }
            _ => folded.push((size, strides)),
        }
    }
    let rows = |i: usize| match folded[..] {
        [] => Some(Rows::dense(1, len)),
        [(outer, strides)] => Some(Rows::dense(outer, len).with_outer_stride(strides[i])),
        [(outer, outer_strides), (inner, inner_strides)] => {
            Some(Rows { outer, inner, len, outer_stride: outer_strides[i], inner_stride: inner_strides[i] })
        }
        _ => None,
    };
    let mut all = [Rows::dense(0, len); N];
    for (i, to) in all.iter_mut().enumerate() {
        match rows(i) {
            Some(rows) => *to = rows,
            None => {
                let (field, tensor) = tensors.into_iter().find(|(_, t)| !t.is_dense()).unwrap_or(tensors[0]);
                return Err(view_error(op, field, tensor, "leading dimensions that fold into two"));
            }
        }
    }
    Ok(all)
}

/// `[.., heads, len]` as tokens of heads: the last dimension contiguous, the leading ones one after the other.
fn as_heads(op: &'static str, field: &'static str, x: &Tensor) -> Result<Rows> {
    let [lead @ .., heads, len] = x.shape() else {
        return Err(shape_error(op, field, x, "[.., heads, head_dim]"));
    };
    if *len > 1 && x.strides()[lead.len() + 1] != 1 {
        return Err(view_error(op, field, x, "a contiguous last dimension"));
    }
    let Some(outer_stride) = folded_stride(lead, x.strides()) else {
        return Err(view_error(op, field, x, "tokens that lie one after the other"));
    };
    let outer = product(lead);
    Ok(Rows { outer, inner: *heads, len: *len, outer_stride, inner_stride: x.strides()[lead.len()] })
}

/// `[.., cols]` as a matrix of rows that lie one after the other: their number, columns and strides.
fn as_matrix(op: &'static str, field: &'static str, x: &Tensor) -> Result<(usize, usize, Matrix)> {
    let Some((&cols, lead)) = x.shape().split_last() else {
        return Err(shape_error(op, field, x, "at least one dimension"));
    };
    let Some(row) = folded_stride(lead, x.strides()) else {
        return Err(view_error(op, field, x, "leading dimensions that fold into one"));
    };
    let rows = product(lead);
    let row = if rows <= 1 { cols } else { row };
    Ok((rows, cols, Matrix { row, col: x.strides()[lead.len()], batch: 0 }))
}

/// A tensor of two or three dimensions as matrices.
fn tensor2(tensor: &Tensor) -> Tensor2 {
    let strides = match *tensor.strides() {
        [batch, row, col] => Matrix { row, col, batch },
        [row, col] => Matrix { row, col, batch: 0 },
        _ => Matrix { row: 0, col: 0, batch: 0 },
    };
    Tensor2 { dtype: tensor.dtype(), strides }
}

/// A new dense tensor of the shape of `x`, and its vectors in the arrangement of `rows`.
fn like(x: &Tensor, dtype: DType, rows: Rows) -> Result<(Tensor, Rows)> {
    let out = Tensor::unwritten(x.device(), dtype, x.shape())?;
    Ok((out, Rows::grid(rows.outer, rows.inner, rows.len)))
}
