//! Rotary positions.

use super::rows::{RowsParam, define, id, run_of, tiles, whole_runs};
use super::steps::{Pointer, Steps, prepared, table};
use super::{module, other_op};
use bytemuck::{Pod, Zeroable};
use perjoule_kernels::op::{Op, Rope, RopeStyle};
use perjoule_kernels::{Buffer, Candidate, Launch, Reason, Request, Result};
use perjoule_shaders::cuda;

const THREADS: usize = 64;

/// Heads that share a thread's angles: `HEADS` of the kernels.
const HEADS: usize = 4;

/// `Rotation`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct RotationParam {
    pairs: u32,
    interleaved: u32,
    factor: f32,
    unused: u32,
}

impl From<&Rope> for RotationParam {
    fn from(op: &Rope) -> Self {
        RotationParam {
            pairs: (op.rotary_dim / 2) as u32,
            interleaved: u32::from(op.style == RopeStyle::Interleaved),
            factor: op.attention_factor() as f32,
            unused: 0,
        }
    }
}

/// The table of a rotation in the device's memory.
pub(super) fn turn_table(request: &Request<'_>, op: &Rope) -> Result<Buffer> {
    table(request, &op.turns())
}

/// `RopeParams`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct RopeParams {
    x: RowsParam,
    rotation: RotationParam,
    parts: u32,
    dtype: u32,
}

/// Why the pairs of a head are not for accesses of 16 bytes.
pub(crate) fn refuse_fast(candidate: &Candidate<'_>) -> Option<Reason> {
    let Op::Rope(op) = candidate.op else { return Some(Reason::new("it is no rotation")) };
    let run = run_of(&[op.dtype]);
    if !(op.rotary_dim / 2).is_multiple_of(run) {
        return Some(Reason::new("the pairs of a head are no multiple of what a thread takes"));
    }
    // elements behind those that are rotated need not be whole runs
    whole_runs(perjoule_kernels::Rows { len: op.rotary_dim, ..op.x }, op.dtype, run)
}

/// Bytes to whose multiple the fast kernel needs an operand.
pub(crate) fn align_fast(_: &Candidate<'_>, operand: usize) -> u32 {
    if operand == 1 { 16 } else { 1 }
}

pub(crate) fn prepare_fast(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let Op::Rope(op) = request.op else { return Err(other_op(request.op)) };
    let run = run_of(&[op.dtype]);
    prepare(request, op, run, "rope_pairs", &[define("X", op.dtype), ("RUN", run.to_string())])
}

pub(crate) fn prepare_any(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let Op::Rope(op) = request.op else { return Err(other_op(request.op)) };
    prepare(request, op, 1, "rope_any", &[])
}

fn prepare(
    request: &Request<'_>,
    op: &Rope,
    run: usize,
    name: &'static str,
    defines: &[(&'static str, String)],
) -> Result<Box<dyn Launch>> {
    let function = module(request, &cuda::ROPE_PAIRS, defines)?.function(name)?;
    let groups = op.x.outer * op.x.inner.div_ceil(HEADS);
    let (dims, parts) = tiles(groups, op.rotary_dim / 2 / run, 1, THREADS)?;
    let params = RopeParams { x: op.x.into(), rotation: op.into(), parts, dtype: id(op.dtype) };
    let pointers = vec![Pointer::Operand(0), Pointer::Table(turn_table(request, op)?), Pointer::Operand(1)];
    prepared(request, Steps::one(function, dims, params, pointers))
}
