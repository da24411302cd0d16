//! Choice of experts.

use super::rows::{grid, id};
use super::steps::{Pointer, Step, Steps, prepared};
use super::{module, other_op};
use bytemuck::{Pod, Zeroable};
use perjoule_kernels::op::{Op, RouteOrder};
use perjoule_kernels::{Launch, Request, Result};
use perjoule_shaders::cuda;

const THREADS: usize = 256;

/// Most threads of a block that sorts, and pairs of each at a time.
const SORTING: usize = 1024;
const EACH: usize = 8;

/// `RouteParams`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct RouteParams {
    tokens: u64,
    experts: u64,
    top_k: u64,
    dtype: u32,
    over_all: u32,
}

pub(crate) fn prepare(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let Op::Route(op) = request.op else { return Err(other_op(request.op)) };
    let over_all = op.order == RouteOrder::SoftmaxThenTopK { renormalise: false };
    let params = RouteParams {
        tokens: op.tokens as u64,
        experts: op.experts as u64,
        top_k: op.top_k as u64,
        dtype: id(op.dtype),
        over_all: over_all.into(),
    };
    let sorting = (op.tokens * op.top_k).div_ceil(EACH).next_multiple_of(32).clamp(32, SORTING);
    let module = module(request, &cuda::ROUTE_EXPERTS, &[])?;
    let [logits, weights, chosen, offsets, order] = [0, 1, 2, 3, 4].map(Pointer::Operand);
    let list = vec![
        Step {
            function: module.function("route_choose")?,
            dims: grid(op.tokens.div_ceil(THREADS / 32), [THREADS as u32, 1])?,
            params,
            pointers: vec![logits, weights, chosen.clone()],
        },
        Step {
            function: module.function("route_sort")?,
            dims: grid(op.experts, [sorting as u32, 1])?,
            params,
            pointers: vec![chosen, offsets, order],
        },
    ];
    prepared(request, Steps { scratch: 0, list })
}
