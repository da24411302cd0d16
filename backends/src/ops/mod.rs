//! One call an op. Results are new tensors; the device's default stream runs calls in order.
//!
//! What an op means at its edges (k = 0, masked rows, NaN, ties) is written in [`perjoule_kernels::op`]. Plans are kept by the
//! device: the second call with the same shapes prepares nothing.

mod attention;
mod matmul;
mod rows;

pub use attention::{AttentionCall, KvCache, attention, attention_cached};
pub use matmul::{MatMulCall, Weight, linear, matmul, matmul_with};
pub use rows::{
    add, argmax, cast, embed, gated, layer_norm, quantise, rms_norm, rms_norm_residual, rope, sample, softmax,
};

use crate::tensor::Tensor;
use perjoule_kernels::{Arg, DType, Error, Op, PackFormat, Result, Rows};

/// Runs an op on the default stream: `args` in the order of its operands.
fn run(op: impl Into<Op>, args: &[&Tensor]) -> Result<()> {
    run_packed(&op.into(), None, args)
}

fn run_packed(op: &Op, pack: Option<&'static PackFormat>, args: &[&Tensor]) -> Result<()> {
    let Some(first) = args.first() else {
        return Err(Error::Unsupported { what: "a call without tensors", why: "an op has operands".into() });
    };
    let device = first.device();
    let plan = device.prepare_packed(op, pack)?;
    let mut list: Vec<Arg<'_>> = args.iter().map(|t| Arg::Buf(t.buffer())).collect();
    let mut stream = device.default_stream()?;
    stream.reserve(plan.scratch())?;
    plan.launch(&mut *stream, &mut list)
}

fn shape_error(op: &'static str, field: &'static str, got: &Tensor, expected: impl Into<String>) -> Error {
    Error::Invalid { op, field, got: format!("{got:?}"), expected: expected.into() }
}

fn expect_dtype(op: &'static str, field: &'static str, tensor: &Tensor, dtype: DType) -> Result<()> {
    if tensor.dtype() == dtype {
        return Ok(());
    }
    Err(shape_error(op, field, tensor, format!("{dtype}; cast it with ops::cast")))
}

/// Elements from one index to the next of the dimensions `shape` taken as one; `None` when they do not lie one after the other.
fn folded_stride(shape: &[usize], strides: &[usize]) -> Option<usize> {
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
    let (shape, strides) = (tensor.shape(), tensor.strides());
    let Some((&len, lead)) = shape.split_last() else {
        return Err(shape_error(op, field, tensor, "at least one dimension"));
    };
    if len > 1 && strides[lead.len()] != 1 {
        return Err(shape_error(op, field, tensor, "a contiguous last dimension; copy it first"));
    }
    let mut dims: Vec<(usize, usize)> = lead.iter().copied().zip(strides.iter().copied()).collect();
    dims.retain(|&(size, _)| size != 1);
    // neighbours that lie one after the other are one dimension
    let mut folded: Vec<(usize, usize)> = Vec::new();
    for (size, stride) in dims {
        match folded.last_mut() {
            Some((outer, step)) if *step == stride.saturating_mul(size) => {
                (*outer, *step) = (*outer * size, stride)
            }
            _ => folded.push((size, stride)),
        }
    }
    match folded[..] {
        [] => Ok(Rows::dense(1, len)),
        [(outer, stride)] => Ok(Rows::dense(outer, len).with_outer_stride(stride)),
        [(outer, outer_stride), (inner, inner_stride)] => {
            Ok(Rows { outer, inner, len, outer_stride, inner_stride })
        }
        _ => Err(shape_error(op, field, tensor, "leading dimensions that fold into two; copy it first")),
    }
}
