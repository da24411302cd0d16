//! Addition.

use super::rows::RowsParam;
use super::{Builder, Dims, Place, other_op};
use crate::pipeline::Checks;
use crate::shader::{Binding, Variant};
use bytemuck::{Pod, Zeroable};
use perjoule_kernels::op::{Add, Op};
use perjoule_kernels::{Launch, Request, Result};
use perjoule_shaders::{Source, wgsl};

const HEADERS: &[&Source] = &[&wgsl::ELEMENT, &wgsl::LAYOUT];

/// `Params` of `add/rows.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct AddParams {
    views: [RowsParam; 3],
}

/// Rows that run everything.
pub(crate) fn prepare_any(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    match request.op {
        Op::Add(op) => add(request, op),
        op => Err(other_op(op)),
    }
}

fn add(request: &Request<'_>, op: &Add) -> Result<Box<dyn Launch>> {
    let mut builder = Builder::new(request, "add_any_webgpu")?;
    let variant = Variant::of(vec![
        Binding::get("a", op.dtype),
        Binding::get("b", op.dtype),
        Binding::set("out", op.dtype),
    ]);
    let dims = Dims::line((op.out.outer * op.out.inner * op.out.len) as u64, 256)?;
    let params = AddParams { views: [op.a, op.b, op.out].map(RowsParam::from) };
    let places = (0..3).map(Place::Operand).collect();
    builder.step((&wgsl::ADD_ROWS, HEADERS, "add"), (&variant, Checks::None), dims, &params, places)?;
    Ok(builder.finish())
}
