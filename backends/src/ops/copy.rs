//! Copies of views.

use super::{launch, view_error};
use crate::tensor::Tensor;
use perjoule_kernels::op::Cast;
use perjoule_kernels::{DType, Result, Rows};

/// A dense copy in new memory.
pub(crate) fn copy(x: &Tensor) -> Result<Tensor> {
    let (device, dtype) = (x.device(), x.dtype());
    let out = Tensor::unwritten(device, dtype, x.shape())?;
    if x.elements() == 0 {
        return Ok(out);
    }
    if x.is_dense() {
        let from = x.buffer().view(0, out.buffer().bytes())?;
        device.default_stream()?.copy(out.buffer(), &from)?;
        return Ok(out);
    }
    let mut dims: Vec<(usize, usize)> = x.shape().iter().copied().zip(x.strides().iter().copied()).collect();
    let mut moved = dtype;
    if dtype.is_block() {
        // blocks move as bytes: nothing is decoded, nothing rounded
        let (len, size) = (dtype.block_len(), dtype.block_bytes());
        let last = dims.len() - 1;
        let whole = dims[..last].iter().all(|(n, s)| *n == 1 || s.is_multiple_of(len));
        if dims[last].1 != 1 || !dims[last].0.is_multiple_of(len) || !whole {
            return Err(view_error("copy", "x", x, "whole blocks that run along the last dimension"));
        }
        dims[last].0 = dims[last].0 / len * size;
        dims[..last].iter_mut().for_each(|d| d.1 = d.1 / len * size);
        moved = DType::I8;
    }
    // neighbours that lie one after the other are one dimension
    let mut folded: Vec<(usize, usize)> = Vec::new();
    for (size, stride) in dims.into_iter().filter(|d| d.0 != 1) {
        match folded.last_mut() {
            Some((outer, step)) if *step == stride.saturating_mul(size) => {
                (*outer, *step) = (*outer * size, stride)
            }
            _ => folded.push((size, stride)),
        }
    }
    let len = folded.pop_if(|d| d.1 == 1).map_or(1, |d| d.0);
    let (inner, inner_stride) = folded.pop().unwrap_or((1, len));
    let (outer, outer_stride) = folded.pop().unwrap_or((1, inner * len));
    let rows = Rows { outer, inner, len, outer_stride, inner_stride };
    let op = Cast { x: rows, from: moved, out: Rows::grid(outer, inner, len), to: moved }.into();
    let width = moved.block_bytes();
    let each = (outer * inner * len * width) as u64;
    // one launch for each index of the dimensions that are left
    let count: usize = folded.iter().map(|d| d.0).product();
    for index in 0..count {
        let (mut rest, mut at) = (index, 0);
        for &(size, stride) in folded.iter().rev() {
            at += rest % size * stride;
            rest /= size;
        }
        let at = (at * width) as u64;
        let from = x.buffer().view(at, x.buffer().bytes() - at)?;
        launch(device, &op, None, &[&from, &out.buffer().view(index as u64 * each, each)?])?;
    }
    Ok(out)
}
