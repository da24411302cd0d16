//! The largest element of each vector.

use super::rows::{RowsParam, blocks, define, grid, id, multiprocessors, run_of, whole_runs};
use super::steps::{Pointer, Step, Steps, prepared};
use super::{module, other_op};
use bytemuck::{Pod, Zeroable};
use perjoule_kernels::op::{Argmax, Op};
use perjoule_kernels::{Candidate, DType, Launch, Reason, Request, Result, Rows};
use perjoule_shaders::cuda;

const THREADS: usize = 256;

/// Most parts of a vector, and the fewest elements of one.
const MOST_PARTS: usize = 128;
const PART: usize = 2048;

/// `ArgmaxParams`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ArgmaxParams {
    x: RowsParam,
    parts: u32,
    dtype: u32,
}

/// Blocks that share a vector, so that there are about so many.
pub(super) fn parts(x: Rows, blocks: usize) -> usize {
    let wanted = blocks.div_ceil((x.outer * x.inner).max(1));
    wanted.min(x.len.div_ceil(PART)).clamp(1, MOST_PARTS)
}

/// Logits of these ops: where they lie, and their type.
pub(super) fn logits(op: &Op) -> Option<(Rows, DType)> {
    match op {
        Op::Argmax(op) => Some((op.x, op.dtype)),
        Op::Sample(op) => Some((op.x, op.dtype)),
        _ => None,
    }
}

/// Why logits are not for accesses of 16 bytes.
pub(crate) fn refuse_fast(candidate: &Candidate<'_>) -> Option<Reason> {
    let Some((x, dtype)) = logits(candidate.op) else { return Some(Reason::new("it is another op")) };
    whole_runs(x, dtype, run_of(&[dtype]))
}

/// Bytes to whose multiple the fast kernels need an operand.
pub(crate) fn align_fast(_: &Candidate<'_>, operand: usize) -> u32 {
    if operand == 0 { 16 } else { 1 }
}

/// What the fast kernels are compiled for.
pub(super) fn defines(dtype: DType) -> [(&'static str, String); 2] {
    [define("X", dtype), ("RUN", run_of(&[dtype]).to_string())]
}

pub(crate) fn prepare_fast(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let Op::Argmax(op) = request.op else { return Err(other_op(request.op)) };
    prepare(request, op, &defines(op.dtype))
}

pub(crate) fn prepare_any(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let Op::Argmax(op) = request.op else { return Err(other_op(request.op)) };
    prepare(request, op, &[])
}

fn prepare(
    request: &Request<'_>,
    op: &Argmax,
    defines: &[(&'static str, String)],
) -> Result<Box<dyn Launch>> {
    let (vectors, parts) = (op.x.outer * op.x.inner, parts(op.x, 4 * multiprocessors(request.info)));
    let params = ArgmaxParams { x: op.x.into(), parts: blocks(parts)?, dtype: id(op.dtype) };
    let module = module(request, &cuda::ARGMAX_PARTS, defines)?;
    let (x, best, ids) = (Pointer::Operand(0), Pointer::Scratch(0), Pointer::Operand(1));
    let mut list = vec![Step {
        function: module.function("argmax_parts")?,
        dims: grid(vectors * parts, [THREADS as u32, 1])?,
        params,
        pointers: vec![x, best.clone(), ids.clone()],
    }];
    if parts > 1 {
        list.push(Step {
            function: module.function("argmax_whole")?,
            dims: grid(vectors.div_ceil(THREADS / 32), [THREADS as u32, 1])?,
            params,
            pointers: vec![best, ids],
        });
    }
    let scratch = if parts > 1 { 8 * (vectors * parts) as u64 } else { 0 };
    prepared(request, Steps { scratch, list })
}
