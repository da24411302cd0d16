//! Sampling.

use super::rows::RowsParam;
use super::{Builder, Dims, Place, other_op};
use crate::pipeline::Checks;
use crate::shader::{Binding, Variant};
use bytemuck::{Pod, Zeroable};
use perjoule_kernels::op::{Op, Sample};
use perjoule_kernels::{DType, Launch, Request, Result};
use perjoule_shaders::{Source, wgsl};

/// `Params` of `sample/weights.wgsl`.
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
    unused: u32,
}

fn params(op: &Sample, parts: usize) -> SampleParams {
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
        unused: 0,
    }
}

const HEADERS: &[&Source] =
    &[&wgsl::ELEMENT, &wgsl::LAYOUT, &wgsl::MATH, &wgsl::ORDER, &wgsl::WIDE, &wgsl::SAMPLE_WEIGHTS];

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
    builder.step(program, (&variant, Checks::None), dims, &params(op, 1), places)?;
    Ok(builder.finish())
}
