//! Root-mean-square and layer normalisation.

use super::elementwise::Value;
use super::reduce;
use super::rows::{self, RowsParam, run_align, whole_runs};
use super::{Builder, Dims, Place, other_op};
use crate::pipeline::Checks;
use crate::shader::Variant;
use bytemuck::{Pod, Zeroable};
use perjoule_kernels::op::Norm;
use perjoule_kernels::{Candidate, Launch, Reason, Request, Result};
use perjoule_shaders::{Source, wgsl};

/// `Params` of `norm/range.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct NormParams {
    x: RowsParam,
    residual: RowsParam,
    sum: RowsParam,
    out: RowsParam,
    eps: f32,
    weight_offset: f32,
    unused: [u32; 2],
}

fn params(norm: &Norm) -> NormParams {
    NormParams {
        x: norm.x.into(),
        residual: norm.residual.map_or(norm.x, |r| r.rows).into(),
        sum: norm.residual.map_or(norm.x, |r| r.sum).into(),
        out: norm.out.into(),
        eps: norm.eps,
        weight_offset: norm.weight_offset,
        unused: [0; 2],
    }
}

fn variant(norm: &Norm, value: Value) -> Variant {
    let fused = norm.residual.is_some();
    Variant::of(vec![
        value.read("x", norm.x_dtype),
        value.read("residual", norm.x_dtype).when(fused),
        value.read("weight", norm.weight),
        value.read("bias", norm.weight).when(norm.bias),
        value.write("sum", norm.x_dtype).when(fused),
        value.write("out", norm.out_dtype),
    ])
    .flag("LAYER", norm.layer)
}

/// In the order of the op, which is that of the kernels.
fn places(norm: &Norm) -> Vec<Place> {
    let count = 3 + 2 * usize::from(norm.residual.is_some()) + usize::from(norm.bias);
    (0..count).map(Place::Operand).collect()
}

fn vectors(norm: &Norm) -> usize {
    norm.x.outer * norm.x.inner
}

/// Runs of four elements that an invocation holds at most: registers bound it.
const MOST_ITEMS: usize = 16;

/// Invocations that share a vector of so many runs, a power of two, and runs of each.
pub(super) fn shape(runs: usize) -> Option<(usize, usize)> {
    let width = runs.next_power_of_two().clamp(1, 256);
    let items = runs.div_ceil(width).next_power_of_two();
    (items <= MOST_ITEMS).then_some((width, items))
}

/// Why a vector does not fit into the registers of a workgroup.
pub(crate) fn refuse_registers<const SHUFFLES: bool>(candidate: &Candidate<'_>) -> Option<Reason> {
    let Some(norm) = Norm::of(candidate.op) else {
        return Some(Reason::new(format!("{} is another op", candidate.op.name())));
    };
    if shape(norm.x.len / 4).is_none() {
        return Some(Reason::new("a vector is longer than the registers of a workgroup"));
    }
    let residual = norm.residual.iter().flat_map(|r| [r.rows, r.sum]);
    let mut views = residual.chain([norm.x, norm.out]);
    reduce::refuse::<SHUFFLES>(candidate)
        .or_else(|| rows::refuse(candidate))
        .or_else(|| views.find_map(whole_runs))
}

/// Bytes to whose multiple an operand has to begin.
pub(crate) fn align_runs(candidate: &Candidate<'_>, operand: usize) -> u32 {
    candidate.op.operands().get(operand).map_or(1, |operand| run_align(operand.dtype))
}

pub(crate) fn cost_registers<const SHUFFLES: bool>(candidate: &Candidate<'_>) -> f32 {
    reduce::cost::<SHUFFLES>(candidate, Norm::of(candidate.op).map_or(0, |norm| norm.x.len))
}

/// Rows of vectors in registers.
pub(crate) fn prepare_registers<const SHUFFLES: bool>(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let norm = Norm::of(request.op).ok_or_else(|| other_op(request.op))?;
    let (width, items) = shape(norm.x.len / 4).ok_or_else(|| other_op(request.op))?;
    let mut builder = Builder::new(request, request.op.name())?;
    let variant = variant(&norm, Value::Four).uint("ITEMS", items);
    let variant = reduce::variant::<SHUFFLES>(variant, width, request.info);
    let sums = reduce::header::<SHUFFLES>();
    let headers: &[&Source] = &[&wgsl::ELEMENT, &wgsl::LAYOUT, &wgsl::FOUR, sums, &wgsl::NORM_RANGE];
    let dims = Dims::line(vectors(&norm) as u64, 256 / width as u64)?;
    let program = (&wgsl::NORM_REGISTERS, headers, "norm");
    builder.step(program, (&variant, Checks::None), dims, &params(&norm), places(&norm))?;
    Ok(builder.finish())
}

/// Rows that run everything.
pub(crate) fn prepare_any(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let norm = Norm::of(request.op).ok_or_else(|| other_op(request.op))?;
    let mut builder = Builder::new(request, request.op.name())?;
    let variant = variant(&norm, Value::One).uint("WIDTH", 256);
    let headers: &[&Source] = &[&wgsl::ELEMENT, &wgsl::LAYOUT, &wgsl::REDUCE, &wgsl::NORM_RANGE];
    let dims = Dims::line(vectors(&norm) as u64, 1)?;
    let program = (&wgsl::NORM_ROWS, headers, "norm");
    builder.step(program, (&variant, Checks::None), dims, &params(&norm), places(&norm))?;
    Ok(builder.finish())
}
