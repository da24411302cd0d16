//! Softmax.

use super::elementwise::Value;
use super::norm::shape;
use super::reduce;
use super::rows::{self, RowsParam, whole_runs};
use super::{Builder, Dims, Place, other_op};
use crate::pipeline::Checks;
use crate::shader::Variant;
use bytemuck::{Pod, Zeroable};
use perjoule_kernels::op::{Op, Softmax};
use perjoule_kernels::{Candidate, Launch, Reason, Request, Result};
use perjoule_shaders::{Source, wgsl};

/// `Params` of the kernels.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct SoftmaxParams {
    x: RowsParam,
    out: RowsParam,
    scale: f32,
    unused: [u32; 3],
}

fn params(op: &Softmax) -> SoftmaxParams {
    SoftmaxParams { x: op.x.into(), out: op.out.into(), scale: op.scale, unused: [0; 3] }
}

fn variant(op: &Softmax, value: Value) -> Variant {
    Variant::of(vec![value.read("x", op.dtype), value.write("out", op.out_dtype)])
}

/// Why a vector does not fit into the registers of a workgroup.
pub(crate) fn refuse_registers<const SHUFFLES: bool>(candidate: &Candidate<'_>) -> Option<Reason> {
    let Op::Softmax(op) = candidate.op else { return Some(Reason::new("it is another op")) };
    if shape(op.x.len / 4).is_none() {
        return Some(Reason::new("a vector is longer than the registers of a workgroup"));
    }
    reduce::refuse::<SHUFFLES>(candidate)
        .or_else(|| rows::refuse(candidate))
        .or_else(|| [op.x, op.out].into_iter().find_map(whole_runs))
}

pub(crate) fn cost_registers<const SHUFFLES: bool>(candidate: &Candidate<'_>) -> f32 {
    let Op::Softmax(op) = candidate.op else { return f32::INFINITY };
    reduce::cost::<SHUFFLES>(candidate, op.x.len)
}

/// Rows of vectors in registers.
pub(crate) fn prepare_registers<const SHUFFLES: bool>(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let Op::Softmax(op) = request.op else { return Err(other_op(request.op)) };
    let (width, items) = shape(op.x.len / 4).ok_or_else(|| other_op(request.op))?;
    let mut builder = Builder::new(request, "softmax")?;
    let variant = variant(op, Value::Four).uint("ITEMS", items);
    let variant = reduce::variant::<SHUFFLES>(variant, width, request.info);
    let sums = reduce::header::<SHUFFLES>();
    let headers: &[&Source] = &[&wgsl::ELEMENT, &wgsl::LAYOUT, &wgsl::FOUR, &wgsl::MATH, sums];
    let dims = Dims::line((op.x.outer * op.x.inner) as u64, 256 / width as u64)?;
    let places = (0..2).map(Place::Operand).collect();
    let program = (&wgsl::SOFTMAX_REGISTERS, headers, "softmax");
    builder.step(program, (&variant, Checks::None), dims, &params(op), places)?;
    Ok(builder.finish())
}

/// Rows that run everything.
pub(crate) fn prepare_any(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let Op::Softmax(op) = request.op else { return Err(other_op(request.op)) };
    let mut builder = Builder::new(request, "softmax")?;
    let variant = variant(op, Value::One).uint("WIDTH", 256);
    let headers: &[&Source] = &[&wgsl::ELEMENT, &wgsl::LAYOUT, &wgsl::MATH, &wgsl::REDUCE];
    let dims = Dims::line((op.x.outer * op.x.inner) as u64, 1)?;
    let places = (0..2).map(Place::Operand).collect();
    let program = (&wgsl::SOFTMAX_ROWS, headers, "softmax");
    builder.step(program, (&variant, Checks::None), dims, &params(op), places)?;
    Ok(builder.finish())
}
