//! Root-mean-square and layer normalisation.

use super::rows::{RowsParam, define, grid, id, multiprocessors, run_of, whole_runs};
use super::steps::{Pointer, Steps, prepared};
use super::{module, other_op};
use bytemuck::{Pod, Zeroable};
use perjoule_kernels::op::Norm;
use perjoule_kernels::{Candidate, Launch, Reason, Request, Result};
use perjoule_shaders::cuda;

/// `NormParams`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct NormParams {
    x: RowsParam,
    residual: RowsParam,
    sum: RowsParam,
    out: RowsParam,
    eps: f32,
    weight_offset: f32,
    x_dtype: u32,
    weight_dtype: u32,
    out_dtype: u32,
    layer: u32,
    has_residual: u32,
    has_bias: u32,
}

fn params(norm: &Norm) -> NormParams {
    NormParams {
        x: norm.x.into(),
        residual: norm.residual.map_or(norm.x, |r| r.rows).into(),
        sum: norm.residual.map_or(norm.x, |r| r.sum).into(),
        out: norm.out.into(),
        eps: norm.eps,
        weight_offset: norm.weight_offset,
        x_dtype: id(norm.x_dtype),
        weight_dtype: id(norm.weight),
        out_dtype: id(norm.out_dtype),
        layer: norm.layer.into(),
        has_residual: norm.residual.is_some().into(),
        has_bias: norm.bias.into(),
    }
}

/// In the order of the kernels: x, residual, weight, bias, sum, out.
fn pointers(norm: &Norm) -> Vec<Pointer> {
    let (fused, biased) = (usize::from(norm.residual.is_some()), usize::from(norm.bias));
    let last = 2 + 2 * fused + biased;
    vec![
        Pointer::Operand(0),
        Pointer::some(norm.residual.map(|_| 1)),
        Pointer::Operand(1 + fused),
        Pointer::some(norm.bias.then_some(2 + fused)),
        Pointer::some(norm.residual.map(|_| last - 1)),
        Pointer::Operand(last),
    ]
}

fn run(norm: &Norm) -> usize {
    match norm.residual {
        Some(_) => run_of(&[norm.x_dtype, norm.out_dtype]),
        None => run_of(&[norm.out_dtype]),
    }
}

/// Most threads of a block.
const MOST_THREADS: usize = 1024;
/// Most runs of a thread: registers bound what it holds.
const MOST_ITEMS: usize = 4;
/// Most runs that a block holds.
pub(super) const MOST_RUNS: usize = MOST_ITEMS * MOST_THREADS;

/// How a block holds vectors.
pub(super) struct Shape {
    /// Runs of a thread.
    pub(super) items: usize,
    /// Threads of a vector, and vectors of a block.
    pub(super) block: [u32; 2],
    /// Most threads that it is compiled for: few values, so that few variants are compiled.
    pub(super) threads: usize,
    /// Whether there are few vectors: then latency counts.
    pub(super) few: bool,
}

/// The shape for `vectors` of so many runs.
pub(super) fn shape(vectors: usize, runs: usize, multiprocessors: usize) -> Shape {
    // few vectors: all threads that there are work on each; many: each thread has several loads on its way
    let few = vectors <= 2 * multiprocessors;
    let warps = |items: usize| runs.div_ceil(items).div_ceil(32).max(1) * 32;
    let most = if few { MOST_THREADS } else { 512 };
    let wanted = if few || runs <= 64 { 1 } else { 2 };
    let items = [1, 2, 4].into_iter().find(|&i| i >= wanted && warps(i) <= most).unwrap_or(MOST_ITEMS);
    let along = warps(items);
    let beside = if along == 32 && !few { 4 } else { 1 };
    let threads = if along * beside <= 256 { 256 } else { MOST_THREADS };
    Shape { items, block: [along as u32, beside as u32], threads, few }
}

/// Why a vector does not fit into the registers of a block.
pub(crate) fn refuse_registers(candidate: &Candidate<'_>) -> Option<Reason> {
    let Some(norm) = Norm::of(candidate.op) else {
        return Some(Reason::new(format!("{} is another op", candidate.op.name())));
    };
    let run = run(&norm);
    if norm.x.len > run * MOST_RUNS {
        return Some(Reason::new("a vector is longer than the registers of a block"));
    }
    let residual = norm.residual.iter().flat_map(|r| [r.rows, r.sum]);
    let mut views =
        residual.chain([norm.x]).map(|rows| (rows, norm.x_dtype)).chain([(norm.out, norm.out_dtype)]);
    views.find_map(|(rows, dtype)| whole_runs(rows, dtype, run))
}

pub(crate) fn prepare_registers(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let norm = Norm::of(request.op).ok_or_else(|| other_op(request.op))?;
    let (run, vectors) = (run(&norm), norm.x.outer * norm.x.inner);
    let shape = shape(vectors, norm.x.len / run, multiprocessors(request.info));
    // weights on their way early take registers: where other vectors do not hide that they are waited for, or bytes are moved besides
    let wide = norm.x_dtype.block_bytes() > norm.out_dtype.block_bytes();
    let early = shape.items <= 2 && (shape.few || wide || norm.residual.is_some());
    let flag = |on: bool| u32::from(on).to_string();
    let defines = [
        define("X", norm.x_dtype),
        define("W", norm.weight),
        define("OUT", norm.out_dtype),
        ("RUN", run.to_string()),
        ("ITEMS", shape.items.to_string()),
        ("THREADS", shape.threads.to_string()),
        ("LAYER", flag(norm.layer)),
        ("RESIDUAL", flag(norm.residual.is_some())),
        ("BIAS", flag(norm.bias)),
        ("EARLY_WEIGHTS", flag(early)),
    ];
    let function = module(request, &cuda::NORM_REGISTERS, &defines)?.function("norm_registers")?;
    let dims = grid(vectors.div_ceil(shape.block[1] as usize), shape.block)?;
    prepared(request, Steps::one(function, dims, params(&norm), pointers(&norm)))
}

pub(crate) fn prepare_any(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let norm = Norm::of(request.op).ok_or_else(|| other_op(request.op))?;
    let function = module(request, &cuda::NORM_ROWS, &[])?.function("norm_rows")?;
    let dims = grid((norm.x.outer * norm.x.inner).min(i32::MAX as usize), [256, 1])?;
    prepared(request, Steps::one(function, dims, params(&norm), pointers(&norm)))
}
