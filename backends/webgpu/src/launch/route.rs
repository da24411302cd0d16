//! Choice of experts.

use super::rows;
use super::{Builder, Dims, Place, other_op};
use crate::pipeline::Checks;
use crate::shader::{Binding, Variant};
use bytemuck::{Pod, Zeroable};
use perjoule_kernels::op::{Op, Route, RouteOrder};
use perjoule_kernels::{Candidate, DType, Launch, Reason, Request, Result};
use perjoule_shaders::{Source, wgsl};

/// `Params` of the kernels.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct RouteParams {
    tokens: u32,
    experts: u32,
    top_k: u32,
    over_all: u32,
}

fn params(op: &Route) -> RouteParams {
    RouteParams {
        tokens: op.tokens as u32,
        experts: op.experts as u32,
        top_k: op.top_k as u32,
        over_all: (op.order == RouteOrder::SoftmaxThenTopK { renormalise: false }).into(),
    }
}

/// `MOST_PAIRS` of `route/places.wgsl`.
const MOST_PAIRS: usize = 1024;

/// Why there are too many experts for an invocation each.
pub(crate) fn refuse_ranks(candidate: &Candidate<'_>) -> Option<Reason> {
    match candidate.op {
        Op::Route(op) if op.experts <= 256 => rows::refuse(candidate),
        Op::Route(_) => Some(Reason::new("there are more than 256 experts")),
        _ => Some(Reason::new("it is another op")),
    }
}

/// Rows of an invocation an expert.
pub(crate) fn prepare_ranks(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let Op::Route(op) = request.op else { return Err(other_op(request.op)) };
    let width = op.experts.next_power_of_two();
    let mut builder = Builder::new(request, "route")?;
    choose(&mut builder, op, &wgsl::ROUTE_RANKS, width)?;
    match op.tokens * op.top_k <= MOST_PAIRS {
        true => sort(&mut builder, op, &wgsl::ROUTE_PLACES, 1)?,
        false => sort(&mut builder, op, &wgsl::ROUTE_SORT, op.experts)?,
    }
    Ok(builder.finish())
}

/// Rows that run everything.
pub(crate) fn prepare_any(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let Op::Route(op) = request.op else { return Err(other_op(request.op)) };
    let mut builder = Builder::new(request, "route")?;
    choose(&mut builder, op, &wgsl::ROUTE_EXPERTS, 256)?;
    sort(&mut builder, op, &wgsl::ROUTE_SORT, op.experts)?;
    Ok(builder.finish())
}

/// The experts of each token, by `width` invocations.
fn choose(builder: &mut Builder<'_>, op: &Route, source: &'static Source, width: usize) -> Result<()> {
    let variant = Variant::of(vec![
        Binding::get("logits", op.dtype),
        Binding::set("weights", DType::F32),
        Binding::set("chosen", DType::I32),
    ])
    .uint("WIDTH", width);
    let headers: &[&Source] = &[&wgsl::ELEMENT, &wgsl::LAYOUT, &wgsl::MATH, &wgsl::REDUCE, &wgsl::ORDER];
    let dims = Dims::line(op.tokens as u64, 256 / width as u64)?;
    let places = [0, 1, 2].map(Place::Operand).to_vec();
    builder.step((source, headers, "choose"), (&variant, Checks::None), dims, &params(op), places)
}

/// The pairs of each expert, by so many workgroups.
fn sort(builder: &mut Builder<'_>, op: &Route, source: &'static Source, groups: usize) -> Result<()> {
    let variant = Variant::of(vec![
        // read, but beside what else the op writes
        Binding::set("chosen", DType::I32),
        // `offsets` are those of operands
        Binding::set("offsets_of", DType::I32),
        Binding::set("order", DType::I32),
    ]);
    let headers: &[&Source] = &[&wgsl::ELEMENT, &wgsl::LAYOUT];
    let dims = Dims::line(groups as u64, 1)?;
    let places = [2, 3, 4].map(Place::Operand).to_vec();
    builder.step((source, headers, "sort"), (&variant, Checks::None), dims, &params(op), places)
}
