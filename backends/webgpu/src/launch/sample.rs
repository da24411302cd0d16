//! Sampling.

use super::argmax;
use super::rows::RowsParam;
use super::{Builder, Dims, Place, other_op};
use crate::pipeline::Checks;
use crate::shader::{Binding, Variant};
use bytemuck::{Pod, Zeroable};
use perjoule_kernels::op::{Op, Sample};
use perjoule_kernels::{Candidate, DType, Launch, Reason, Request, Result};
use perjoule_shaders::{Source, wgsl};

/// `Params` of `sample/rows.wgsl` and `sample/parts.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct SampleParams {
    x: RowsParam,
    top_k: u32,
    top_p: f32,
    inverse_temperature: f32,
    scale: u32,
    has_top_k: u32,
    has_top_p: u32,
    parts: u32,
    step: u32,
}

fn params(op: &Sample, parts: usize, step: usize) -> SampleParams {
    SampleParams {
        x: op.x.into(),
        top_k: op.top_k.unwrap_or(0).min(op.x.len) as u32,
        top_p: op.top_p.unwrap_or(1.0),
        inverse_temperature: 1.0 / op.temperature,
        // sums of all weights stay below 2^63
        scale: 62 - op.x.len.next_power_of_two().trailing_zeros(),
        has_top_k: op.top_k.is_some_and(|k| k < op.x.len).into(),
        has_top_p: op.top_p.is_some_and(|p| p < 1.0).into(),
        parts: parts as u32,
        step: step as u32,
    }
}

const HEADERS: &[&Source] =
    &[&wgsl::ELEMENT, &wgsl::LAYOUT, &wgsl::MATH, &wgsl::ORDER, &wgsl::WIDE, &wgsl::SAMPLE_WEIGHTS];

/// Vectors that share the device; more of them keep it busy with a workgroup each.
const MOST_VECTORS: usize = 64;

/// `MOST_PARTS` of `sample/parts.wgsl`.
const MOST_PARTS: usize = 64;

/// Words of a vector's state but for its bins, and those of a step's bins: `sample/parts.wgsl`.
const STATE: u64 = 3 * MOST_PARTS as u64 + 16 * 8;
const STEP_BINS: u64 = 3 * 256;

/// Steps of digits: one for all questions, and three for each.
pub(crate) fn digits(op: &Sample) -> usize {
    let params = params(op, 1, 0);
    1 + 3 * (1 + params.has_top_k + params.has_top_p) as usize
}

/// Why a vector is not for several workgroups.
pub(crate) fn refuse_parts(candidate: &Candidate<'_>) -> Option<Reason> {
    let Op::Sample(op) = candidate.op else { return Some(Reason::new("it is another op")) };
    if op.x.outer * op.x.inner > MOST_VECTORS {
        return Some(Reason::new("there are enough vectors for a workgroup each"));
    }
    argmax::refuse_runs(candidate)
}

/// Rows of several workgroups a vector.
pub(crate) fn prepare_parts(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let Op::Sample(op) = request.op else { return Err(other_op(request.op)) };
    let mut builder = Builder::new(request, "sample")?;
    let vectors = op.x.outer * op.x.inner;
    let parts = argmax::parts(op.x).min(MOST_PARTS);
    let digits = digits(op);
    let bytes = 4 * vectors as u64 * (STATE + STEP_BINS * digits as u64);
    let state = builder.scratch(bytes);
    let variant = Variant::of(vec![
        Binding::run("x", op.dtype),
        Binding::get("uniform", DType::F32),
        Binding::words_mut("ids", "atomic<u32>"),
        Binding::words_mut("state", "atomic<u32>"),
    ])
    .uint("STEPS", digits);
    let mut headers = HEADERS.to_vec();
    headers.extend([&wgsl::FOUR, &wgsl::ARGMAX_FOUR]);
    let dims = Dims::grid(parts, vectors, 1)?;
    let counts = (0..digits).map(|step| ("count_digit", step));
    for (entry, step) in
        [("begin", 0)].into_iter().chain(counts).chain([("count_equal", digits), ("pick", digits)])
    {
        let places = (0..3).map(Place::Operand).chain([Place::Scratch(state, bytes)]).collect();
        let program = (&wgsl::SAMPLE_PARTS, &headers[..], entry);
        builder.step(program, (&variant, Checks::None), dims, &params(op, parts, step), places)?;
    }
    Ok(builder.finish())
}

/// Rows that run everything.
pub(crate) fn prepare_any(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let Op::Sample(op) = request.op else { return Err(other_op(request.op)) };
    let mut builder = Builder::new(request, "sample")?;
    let variant = Variant::of(vec![
        Binding::get("x", op.dtype),
        Binding::get("uniform", DType::F32),
        Binding::set("ids", DType::I32),
    ]);
    let dims = Dims::line((op.x.outer * op.x.inner) as u64, 1)?;
    let places = (0..3).map(Place::Operand).collect();
    let program = (&wgsl::SAMPLE_ROWS, HEADERS, "sample");
    builder.step(program, (&variant, Checks::None), dims, &params(op, 1, 0), places)?;
    Ok(builder.finish())
}
