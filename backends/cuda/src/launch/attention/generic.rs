//! Attention of every form: `shaders/cuda/attention/generic.cu`.

use super::{Params, is_empty, longest, op_of, pointers, refuse_sizes};
use crate::launch::steps::Steps;
use crate::launch::{Dims, launch, module};
use perjoule_kernels::op::{Attention, Op};
use perjoule_kernels::{Candidate, Config, Kernel, Launch, Reason, Request, Result};
use perjoule_shaders::cuda;

static CONFIGS: &[Config] = &[Config::tile("1x32", &[1, 32, 64])];

/// The row for everything.
pub(crate) const ROW: Kernel = Kernel::new("attention_any_1x32_cuda_any", "attention", cost, prepare)
    .with_configs(CONFIGS)
    .with_reject(reject);

fn reject(Candidate { op, .. }: &Candidate<'_>) -> Option<Reason> {
    let Op::Attention(op) = op else { return Some(Reason::new("runs attention")) };
    refuse_sizes(op)
}

fn cost(Candidate { op, .. }: &Candidate<'_>) -> f32 {
    2e-5 + op.bytes() as f32 / 100e9 + op.flops() as f32 / 1e12
}

/// Blocks for each sequence and head: about as many in all as there are rows.
fn blocks(op: &Attention) -> usize {
    let longest = longest(op);
    if op.ragged { (2 * op.q.outer).div_ceil(op.batch.max(1)).clamp(1, longest.max(1)) } else { longest }
}

fn prepare(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let op = op_of(request)?;
    let function = module(request, &cuda::ATTENTION_GENERIC, &[])?.function("attention_generic")?;
    let items = blocks(op);
    // four times as many vectors fit, and ragged ops have twice as many blocks at most
    let grid = if is_empty(op) { 0 } else { (items * op.batch * op.q.inner) as u32 };
    let params = Params::new(op).tiled(1, 1, 1, items);
    launch(Steps::one(function, Dims::line(grid, 128), params, pointers(op)))
}
