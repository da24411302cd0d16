//! Quantising: to block formats, and to i8 and e4m3 with scales beside the codes.

use super::norm::{MOST_RUNS, shape};
use super::rows::{blocks, define, grid, id, multiprocessors, run_of};
use super::steps::{Pointer, Step, Steps, prepared};
use super::{module, other_op};
use crate::compile::Module;
use bytemuck::{Pod, Zeroable};
use perjoule_kernels::op::{Granularity, Op, Quantise};
use perjoule_kernels::{Candidate, DType, Launch, Reason, Request, Result};
use perjoule_shaders::cuda;
use std::sync::Arc;

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

/// Elements of a group, and groups of a vector; the whole tensor counts as one vector.
fn groups(op: &Quantise, granularity: Granularity) -> (usize, usize) {
    match granularity {
        Granularity::Tensor => (op.x.outer * op.x.inner * op.x.len, 1),
        Granularity::Vector => (op.x.len, 1),
        Granularity::Group(group) => (group, op.x.len.div_ceil(group.max(1))),
    }
}

/// Why a tensor is not for whole runs of codes.
pub(crate) fn refuse_runs(candidate: &Candidate<'_>) -> Option<Reason> {
    let Op::Quantise(op) = candidate.op else { return Some(Reason::new("it is another op")) };
    let Some(granularity) = op.scale else { return Some(Reason::new("the codes have a block format")) };
    let (group, each) = groups(op, granularity);
    let run = run_of(&[op.from]);
    if !group.is_multiple_of(run) || group == 0 {
        return Some(Reason::new("what shares a scale is no multiple of what a thread takes"));
    }
    if granularity == Granularity::Tensor {
        return None;
    }
    if group * each != op.x.len {
        return Some(Reason::new("the last group of a vector is shorter"));
    }
    (group > run * MOST_RUNS).then(|| Reason::new("a group is longer than the registers of a block"))
}

/// Bytes to whose multiple the kernels of whole runs need an operand.
pub(crate) fn align_runs(_: &Candidate<'_>, operand: usize) -> u32 {
    if operand == 1 { 1 } else { 16 }
}

pub(crate) fn prepare_runs(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let Op::Quantise(op) = request.op else { return Err(other_op(request.op)) };
    let Some(granularity) = op.scale else { return Err(other_op(request.op)) };
    let (group, each) = groups(op, granularity);
    let run = run_of(&[op.from]);
    let defines = |items: usize, threads: usize| {
        [
            define("X", op.from),
            define("OUT", op.to),
            ("RUN", run.to_string()),
            ("ITEMS", items.to_string()),
            ("THREADS", threads.to_string()),
        ]
    };
    let [x, scales, out] = [0, 1, 2].map(Pointer::Operand);
    if granularity == Granularity::Tensor {
        let module = module(request, &cuda::QUANTISE_RUNS, &defines(2, THREADS))?;
        let blocks = (group / run).div_ceil(2 * THREADS).clamp(1, 8 * multiprocessors(request.info));
        let names = ["quantise_largest_runs", "quantise_tensor_runs"];
        return tensor(request, &module, names, params(op, granularity, blocks)?);
    }
    let count = op.x.outer * op.x.inner * each;
    let runs = group / run;
    let mut shape = shape(count, runs, multiprocessors(request.info));
    if runs <= 32 {
        let along = runs.next_power_of_two() as u32;
        shape.items = 1;
        shape.block = [along, 128 / along];
        shape.threads = THREADS;
    }
    let module = module(request, &cuda::QUANTISE_RUNS, &defines(shape.items, shape.threads))?;
    let dims = grid(count.div_ceil(shape.block[1] as usize), shape.block)?;
    let function = module.function("quantise_runs")?;
    prepared(request, Steps::one(function, dims, params(op, granularity, 0)?, vec![x, scales, out]))
}

fn params(op: &Quantise, granularity: Granularity, whole: usize) -> Result<QuantiseParams> {
    let (group, each) = groups(op, granularity);
    Ok(QuantiseParams {
        elements: (op.x.outer * op.x.inner * op.x.len) as u64,
        len: op.x.len as u64,
        group: group as u64,
        each: each as u64,
        limit: op.to.max_value() as f32,
        from: id(op.from),
        to: id(op.to),
        blocks: blocks(whole)?,
    })
}

/// The two launches of a scale of the whole tensor.
fn tensor(
    request: &Request<'_>,
    module: &Arc<Module>,
    names: [&'static str; 2],
    params: QuantiseParams,
) -> Result<Box<dyn Launch>> {
    let [x, scales, out] = [0, 1, 2].map(Pointer::Operand);
    let dims = grid(params.blocks as usize, [THREADS as u32, 1])?;
    let maxima = Pointer::Scratch(0);
    let largest = Step {
        function: module.function(names[0])?,
        dims,
        params,
        pointers: vec![x.clone(), maxima.clone()],
    };
    let scaled =
        Step { function: module.function(names[1])?, dims, params, pointers: vec![x, maxima, scales, out] };
    prepared(request, Steps { scratch: 4 * u64::from(params.blocks), list: vec![largest, scaled] })
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
    let (group, each) = groups(op, granularity);
    let module = module(request, &cuda::QUANTISE_SCALES, &[])?;
    if granularity == Granularity::Tensor {
        let blocks = group.div_ceil(4 * THREADS).clamp(1, 4 * multiprocessors(request.info));
        let names = ["quantise_largest", "quantise_tensor"];
        return tensor(request, &module, names, params(op, granularity, blocks)?);
    }
    let along = if group.min(op.x.len) <= 1024 { 32 } else { THREADS };
    let beside = THREADS / along;
    let dims = grid((vectors * each).div_ceil(beside), [along as u32, beside as u32])?;
    let pointers = [0, 1, 2].map(Pointer::Operand).to_vec();
    let function = module.function("quantise_groups")?;
    prepared(request, Steps::one(function, dims, params(op, granularity, 0)?, pointers))
}
