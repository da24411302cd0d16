//! Quantising: to block formats, and to i8 and e4m3 with scales beside the codes.

use super::rows::{blocks, grid, id, multiprocessors};
use super::steps::{Pointer, Step, Steps, prepared};
use super::{module, other_op};
use bytemuck::{Pod, Zeroable};
use perjoule_kernels::op::{Granularity, Op, Quantise};
use perjoule_kernels::{DType, Launch, Request, Result};
use perjoule_shaders::cuda;

/// Threads of blocks that find scales.
const THREADS: usize = 256;
/// Threads of blocks that make blocks.
const CODING: usize = 128;

/// `QuantiseParams`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct QuantiseParams {
    elements: u64,
    len: u64,
    group: u64,
    each: u64,
    limit: f32,
    from: u32,
    to: u32,
    blocks: u32,
}

/// `BlocksParams`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct BlocksParams {
    blocks: u64,
    from: u32,
    to: u32,
}

pub(crate) fn prepare(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let Op::Quantise(op) = request.op else { return Err(other_op(request.op)) };
    match op.scale {
        None => coding(request, op),
        Some(granularity) => scaling(request, op, granularity),
    }
}

fn coding(request: &Request<'_>, op: &Quantise) -> Result<Box<dyn Launch>> {
    let count = op.x.outer * op.x.inner * op.x.len / op.to.block_len();
    let (name, each) = match op.to {
        DType::Q4K => ("quantise_q4_k", CODING / 8),
        DType::Q6K => ("quantise_q6_k", CODING / 16),
        _ => ("quantise_warps", CODING / 32),
    };
    let function = module(request, &cuda::QUANTISE_BLOCKS, &[])?.function(name)?;
    let params = BlocksParams { blocks: count as u64, from: id(op.from), to: id(op.to) };
    let dims = grid(count.div_ceil(each), [CODING as u32, 1])?;
    prepared(request, Steps::one(function, dims, params, vec![Pointer::Operand(0), Pointer::Operand(1)]))
}

fn scaling(request: &Request<'_>, op: &Quantise, granularity: Granularity) -> Result<Box<dyn Launch>> {
    let vectors = op.x.outer * op.x.inner;
    let elements = vectors * op.x.len;
    let whole = elements.div_ceil(4 * THREADS).clamp(1, 4 * multiprocessors(request.info));
    let (group, each) = match granularity {
        Granularity::Tensor => (elements, 1),
        Granularity::Vector => (op.x.len, 1),
        Granularity::Group(group) => (group, op.x.len.div_ceil(group.max(1))),
    };
    let params = QuantiseParams {
        elements: elements as u64,
        len: op.x.len as u64,
        group: group as u64,
        each: each as u64,
        limit: op.to.max_value() as f32,
        from: id(op.from),
        to: id(op.to),
        blocks: blocks(whole)?,
    };
    let module = module(request, &cuda::QUANTISE_SCALES, &[])?;
    let [x, scales, out] = [0, 1, 2].map(Pointer::Operand);
    if granularity == Granularity::Tensor {
        let dims = grid(whole, [THREADS as u32, 1])?;
        let maxima = Pointer::Scratch(0);
        let largest = Step {
            function: module.function("quantise_largest")?,
            dims,
            params,
            pointers: vec![x.clone(), maxima.clone()],
        };
        let scaled = Step {
            function: module.function("quantise_tensor")?,
            dims,
            params,
            pointers: vec![x, maxima, scales, out],
        };
        return prepared(request, Steps { scratch: 4 * whole as u64, list: vec![largest, scaled] });
    }
    let along = if group.min(op.x.len) <= 1024 { 32 } else { THREADS };
    let beside = THREADS / along;
    let dims = grid((vectors * each).div_ceil(beside), [along as u32, beside as u32])?;
    prepared(request, Steps::one(module.function("quantise_groups")?, dims, params, vec![x, scales, out]))
}
