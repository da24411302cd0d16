//! Sampling: a launch for each digit of each question (see the kernels), whatever the logits are.

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
const STATE: u64 = 65_600;

/// Vectors that share the states; more take turns.
const VECTORS: usize = 128;

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
    unused: u32,
}

pub(crate) fn prepare_fast(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let Op::Sample(op) = request.op else { return Err(other_op(request.op)) };
    prepare(request, op, &defines(op.dtype))
}

pub(crate) fn prepare_any(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let Op::Sample(op) = request.op else { return Err(other_op(request.op)) };
    prepare(request, op, &[])
}

/// Launches of `sample_step`: three digits for the first question, two for each further one, whose first digit is known, and one for
/// the index.
pub(crate) fn steps(op: &Sample) -> usize {
    let (has_top_k, has_top_p) = cuts(op);
    let questions = 1 + usize::from(has_top_k) + usize::from(has_top_p);
    1 + 2 * questions + 1
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
    let together = vectors.min(VECTORS);
    let parts = parts(Rows { outer: together, inner: 1, ..op.x }, multiprocessors(request.info));
    let (has_top_k, has_top_p) = cuts(op);
    let module = module(request, &cuda::SAMPLE_SELECT, defines)?;
    let (begin, step) = (module.function("sample_begin")?, module.function("sample_step")?);
    let (x, uniform, states, ids) =
        (Pointer::Operand(0), Pointer::Operand(1), Pointer::Scratch(0), Pointer::Operand(2));
    let mut list = Vec::new();
    for first in (0..vectors).step_by(VECTORS) {
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
            unused: 0,
        };
        let dims = grid((vectors - first).min(VECTORS) * parts, [THREADS, 1])?;
        list.push(Step { function: begin.clone(), dims, params, pointers: vec![x.clone(), states.clone()] });
        list.extend((0..steps(op)).map(|_| Step {
            function: step.clone(),
            dims,
            params,
            pointers: vec![x.clone(), uniform.clone(), states.clone(), ids.clone()],
        }));
    }
    prepared(request, Steps { scratch: STATE * together as u64, list })
}
