//! The largest element of each vector.

use super::rows::RowsParam;
use super::{Builder, Dims, Place, other_op};
use crate::pipeline::Checks;
use crate::shader::{Binding, Variant};
use bytemuck::{Pod, Zeroable};
use perjoule_kernels::op::Op;
use perjoule_kernels::{DType, Launch, Request, Result};
use perjoule_shaders::{Source, wgsl};

/// `Params` of `argmax/rows.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ArgmaxParams {
    x: RowsParam,
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
