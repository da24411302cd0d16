//! Sampling: a fixed sequence of launches (see the kernels), whatever the logits are.

use super::argmax::{defines, parts};
use super::rows::{RowsParam, blocks, grid, id, multiprocessors};
use super::steps::{Pointer, Step, Steps, prepared};
use super::{module, other_op};
use bytemuck::{Pod, Zeroable};
use perjoule_kernels::op::{Op, Sample};
use perjoule_kernels::{Launch, Request, Result, Rows};
use perjoule_shaders::cuda;

const THREADS: u32 = 512;

/// `sizeof(State)`.
const STATE: u64 = 99_384;

/// Vectors that share the states; more take turns.
const VECTORS: usize = 128;

/// Most parts of a vector: `MOST_PARTS` of the kernels.
const MOST_PARTS: usize = 128;

/// `SampleParams`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct SampleParams {
    x: RowsParam,
    first: u64,
    top_k: u64,
    inverse_temperature: f32,
    top_p: f32,
    parts: u32,
    dtype: u32,
    scale: u32,
    has_top_k: u32,
    has_top_p: u32,
    turn: u32,
}

pub(crate) fn prepare_fast(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let Op::Sample(op) = request.op else { return Err(other_op(request.op)) };
    prepare(request, op, &defines(op.dtype))
}

pub(crate) fn prepare_any(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let Op::Sample(op) = request.op else { return Err(other_op(request.op)) };
    prepare(request, op, &[])
}

/// Questions of an op: where `top_k` ends, where `top_p` ends, and what is drawn.
fn questions(op: &Sample) -> usize {
    let (has_top_k, has_top_p) = cuts(op);
    1 + usize::from(has_top_k) + usize::from(has_top_p)
}

/// Launches for so many vectors on so many multiprocessors.
pub(crate) fn launches(op: &Sample, multiprocessors: usize) -> usize {
    let (vectors, parts) = shape(op, multiprocessors);
    (op.x.outer * op.x.inner).div_ceil(vectors.max(1)) * if parts == 1 { 1 } else { 2 + questions(op) }
}

/// Vectors that take their turn together, and parts of each.
fn shape(op: &Sample, multiprocessors: usize) -> (usize, usize) {
    let together = (op.x.outer * op.x.inner).min(VECTORS);
    (together, parts(Rows { outer: together, inner: 1, ..op.x }, multiprocessors).min(MOST_PARTS))
}

/// Whether `top_k` and `top_p` leave anything out.
fn cuts(op: &Sample) -> (bool, bool) {
    (op.top_k.is_some_and(|k| k < op.x.len), op.top_p.is_some_and(|p| p < 1.0))
}

fn prepare(
    request: &Request<'_>,
    op: &Sample,
    defines: &[(&'static str, String)],
) -> Result<Box<dyn Launch>> {
    let vectors = op.x.outer * op.x.inner;
    let (together, parts) = shape(op, multiprocessors(request.info));
    let (has_top_k, has_top_p) = cuts(op);
    let module = module(request, &cuda::SAMPLE_SELECT, defines)?;
    let [x, uniform, ids] = [0, 1, 2].map(Pointer::Operand);
    let states = Pointer::Scratch(0);
    let begin = [x.clone(), states.clone()];
    let all = [x, uniform, states, ids];
    let names: &[&'static str] = match parts {
        1 => &["sample_alone"],
        _ => &["sample_begin", "sample_weigh", "sample_gather", "sample_gather", "sample_gather"]
            [..2 + questions(op)],
    };
    let mut list = Vec::new();
    for first in (0..vectors).step_by(VECTORS) {
        for (place, name) in names.iter().enumerate() {
            let params = SampleParams {
                x: op.x.into(),
                first: first as u64,
                top_k: op.top_k.unwrap_or(0) as u64,
                inverse_temperature: 1.0 / op.temperature,
                top_p: op.top_p.unwrap_or(1.0),
                parts: blocks(parts)?,
                dtype: id(op.dtype),
                // sums of all weights stay below 2^63
                scale: 62 - op.x.len.next_power_of_two().trailing_zeros(),
                has_top_k: has_top_k.into(),
                has_top_p: has_top_p.into(),
                // of those that gather, from 1
                turn: place.saturating_sub(1) as u32,
            };
            list.push(Step {
                function: module.function(name)?,
                dims: grid((vectors - first).min(VECTORS) * parts, [THREADS, 1])?,
                params,
                pointers: if *name == "sample_begin" { begin.to_vec() } else { all.to_vec() },
            });
        }
    }
    prepared(request, Steps { scratch: STATE * together as u64, list })
}
