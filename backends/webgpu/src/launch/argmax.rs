//! The largest element of each vector.

use super::rows::{self, RowsParam, run_align, whole_runs};
use super::{Builder, Dims, Place, other_op};
use crate::pipeline::Checks;
use crate::shader::{Binding, Variant};
use bytemuck::{Pod, Zeroable};
use perjoule_kernels::op::Op;
use perjoule_kernels::{Candidate, DType, Launch, Reason, Request, Result, Rows};
use perjoule_shaders::{Source, wgsl};

/// `Params` of `argmax/rows.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ArgmaxParams {
    x: RowsParam,
}

/// `Params` of `argmax/parts.wgsl` and `argmax/whole.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct PartsParams {
    x: RowsParam,
    parts: u32,
    unused: [u32; 3],
}

/// Workgroups that keep most GPUs busy, and the fewest elements that one of them is started for.
const BUSY: usize = 256;
const PART: usize = 4096;

/// Workgroups that share a vector.
pub(super) fn parts(x: Rows) -> usize {
    BUSY.div_ceil((x.outer * x.inner).max(1)).min(x.len.div_ceil(PART)).max(1)
}

/// Why logits are not for runs of four.
pub(crate) fn refuse_runs(candidate: &Candidate<'_>) -> Option<Reason> {
    let x = match candidate.op {
        Op::Argmax(op) => op.x,
        Op::Sample(op) => op.x,
        _ => return Some(Reason::new("it is another op")),
    };
    rows::refuse(candidate).or_else(|| whole_runs(x))
}

/// Bytes to whose multiple an operand has to begin.
pub(crate) fn align_runs(candidate: &Candidate<'_>, operand: usize) -> u32 {
    match candidate.op.operands().first() {
        Some(x) if operand == 0 => run_align(x.dtype),
        _ => 1,
    }
}

/// Rows of runs.
pub(crate) fn prepare_runs(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let Op::Argmax(op) = request.op else { return Err(other_op(request.op)) };
    let mut builder = Builder::new(request, "argmax")?;
    let (vectors, parts) = (op.x.outer * op.x.inner, parts(op.x));
    let alone = parts == 1;
    let params = PartsParams { x: op.x.into(), parts: parts as u32, unused: [0; 3] };
    let bytes = if alone { 0 } else { 8 * (vectors * parts) as u64 };
    let found = if alone { Place::Operand(1) } else { Place::Scratch(builder.scratch(bytes), bytes) };
    let variant = Variant::of(vec![Binding::run("x", op.dtype), Binding::words_mut("found", "u32")]);
    let variant = variant.flag("ALONE", alone);
    let headers: &[&Source] = &[&wgsl::ELEMENT, &wgsl::LAYOUT, &wgsl::FOUR, &wgsl::ORDER, &wgsl::ARGMAX_FOUR];
    builder.step(
        (&wgsl::ARGMAX_PARTS, headers, "find_best"),
        (&variant, Checks::None),
        Dims::line((vectors * parts) as u64, 1)?,
        &params,
        vec![Place::Operand(0), found.clone()],
    )?;
    if !alone {
        let variant = Variant::of(vec![Binding::words("found", "u32"), Binding::words_mut("ids", "u32")]);
        builder.step(
            (&wgsl::ARGMAX_WHOLE, &[&wgsl::ELEMENT, &wgsl::LAYOUT, &wgsl::ORDER], "compare"),
            (&variant, Checks::None),
            Dims::line(vectors as u64, 64)?,
            &params,
            vec![found, Place::Operand(1)],
        )?;
    }
    Ok(builder.finish())
}

/// Rows that run everything.
pub(crate) fn prepare_any(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let Op::Argmax(op) = request.op else { return Err(other_op(request.op)) };
    let mut builder = Builder::new(request, "argmax")?;
    let variant = Variant::of(vec![Binding::get("x", op.dtype), Binding::set("ids", DType::I32)]);
    let headers: &[&Source] = &[&wgsl::ELEMENT, &wgsl::LAYOUT, &wgsl::ORDER];
    let dims = Dims::line((op.x.outer * op.x.inner) as u64, 1)?;
    let places = (0..2).map(Place::Operand).collect();
    let params = ArgmaxParams { x: op.x.into() };
    builder.step((&wgsl::ARGMAX_ROWS, headers, "argmax"), (&variant, Checks::None), dims, &params, places)?;
    Ok(builder.finish())
}
