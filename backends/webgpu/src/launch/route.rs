//! Choice of experts.

use super::{Builder, Dims, Place, other_op};
use crate::pipeline::Checks;
use crate::shader::{Binding, Variant};
use bytemuck::{Pod, Zeroable};
use perjoule_kernels::op::{Op, RouteOrder};
use perjoule_kernels::{DType, Launch, Request, Result};
use perjoule_shaders::{Source, wgsl};

/// `Params` of `route/experts.wgsl` and `route/sort.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct RouteParams {
    tokens: u32,
    experts: u32,
    top_k: u32,
    over_all: u32,
}

pub(crate) fn prepare(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let Op::Route(op) = request.op else { return Err(other_op(request.op)) };
    let mut builder = Builder::new(request, "route")?;
    let over_all = op.order == RouteOrder::SoftmaxThenTopK { renormalise: false };
    let params = RouteParams {
        tokens: op.tokens as u32,
        experts: op.experts as u32,
        top_k: op.top_k as u32,
        over_all: over_all.into(),
    };
    let choose = Variant::of(vec![
        Binding::get("logits", op.dtype),
        Binding::set("weights", DType::F32),
        Binding::set("chosen", DType::I32),
    ])
    .uint("WIDTH", 256);
    let headers: &[&Source] = &[&wgsl::ELEMENT, &wgsl::LAYOUT, &wgsl::MATH, &wgsl::REDUCE, &wgsl::ORDER];
    builder.step(
        (&wgsl::ROUTE_EXPERTS, headers, "choose"),
        (&choose, Checks::None),
        Dims::line(op.tokens as u64, 1)?,
        &params,
        [0, 1, 2].map(Place::Operand).to_vec(),
    )?;
    let sort = Variant::of(vec![
        Binding::get("chosen", DType::I32),
        // `offsets` are those of operands
        Binding::set("offsets_of", DType::I32),
        Binding::set("order", DType::I32),
    ]);
    builder.step(
        (&wgsl::ROUTE_SORT, &[&wgsl::ELEMENT, &wgsl::LAYOUT], "sort"),
        (&sort, Checks::None),
        Dims::line(op.experts as u64, 1)?,
        &params,
        [2, 3, 4].map(Place::Operand).to_vec(),
    )?;
    Ok(builder.finish())
}
