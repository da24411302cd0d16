//! Appending to caches, the norm and rotation fused with it, and the slots of a step.

use super::rope::{RotationParam, turn_table};
use super::rows::{KvParam, RowsParam, blocks, define, grid, id, multiprocessors, run_of, whole_runs};
use super::steps::{Pointer, Steps, prepared};
use super::{module, other_op};
use crate::compile::Function;
use bytemuck::{Pod, Zeroable};
use perjoule_kernels::op::{HeadNorm, KvAppend, Op, QkNormRopeAppend, Rope};
use perjoule_kernels::{Candidate, DType, KvLayout, Launch, Reason, Request, Result, Rows};
use perjoule_shaders::cuda;

/// `AppendParams`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct AppendParams {
    src_k: RowsParam,
    src_v: RowsParam,
    kv: KvParam,
    batch: u64,
    q_len: u64,
    src_dtype: u32,
    kv_dtype: u32,
}

impl From<&KvAppend> for AppendParams {
    fn from(op: &KvAppend) -> Self {
        AppendParams {
            src_k: op.src_k.into(),
            src_v: op.src_v.into(),
            kv: op.kv.into(),
            batch: op.batch as u64,
            q_len: op.q_len as u64,
            src_dtype: id(op.src_dtype),
            kv_dtype: id(op.kv_dtype),
        }
    }
}

/// The slots of an append from operand `first` on (lengths, offsets, block table), and the index of the operand behind them.
fn slots(op: &KvAppend, first: usize) -> ([Pointer; 3], usize) {
    let table = first + 1 + usize::from(op.ragged);
    let paged = op.kv.paging.is_some();
    let list = [
        Pointer::Operand(first),
        Pointer::some(op.ragged.then_some(first + 1)),
        Pointer::some(paged.then_some(table)),
    ];
    (list, table + usize::from(paged))
}

/// Why an append is not for whole runs of elements.
pub(crate) fn refuse_append_runs(candidate: &Candidate<'_>) -> Option<Reason> {
    let Op::KvAppend(op) = candidate.op else { return Some(Reason::new("it is another op")) };
    if op.kv_dtype.is_block() {
        return Some(Reason::new("the caches have a block format"));
    }
    let sources = [op.src_k, op.src_v].map(|rows| (rows, op.src_dtype));
    let targets = cache_rows(&op.kv).map(|rows| (rows, op.kv_dtype));
    let run = run_of(&[op.src_dtype, op.kv_dtype]);
    sources.into_iter().chain(targets).find_map(|(rows, dtype)| whole_runs(rows, dtype, run))
}

/// Bytes to whose multiple the append by runs needs an operand: all but the slots.
pub(crate) fn align_append(candidate: &Candidate<'_>, operand: usize) -> u32 {
    let Op::KvAppend(op) = candidate.op else { return 1 };
    let (_, caches) = slots(op, 2);
    if (2..caches).contains(&operand) { 1 } else { 16 }
}

pub(crate) fn prepare_append_runs(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let Op::KvAppend(op) = request.op else { return Err(other_op(request.op)) };
    let run = run_of(&[op.src_dtype, op.kv_dtype]);
    let defines = [define("X", op.src_dtype), define("KV", op.kv_dtype), ("RUN", run.to_string())];
    let function = module(request, &cuda::KV_APPEND_ROWS, &defines)?.function("kv_append_runs")?;
    let runs = 2 * op.kv.kv_heads * (op.kv.head_dim / run);
    append(request, op, function, runs.next_multiple_of(32).clamp(32, 256) as u32)
}

pub(crate) fn prepare_append(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let Op::KvAppend(op) = request.op else { return Err(other_op(request.op)) };
    let function = module(request, &cuda::KV_APPEND_ROWS, &[])?.function("kv_append")?;
    append(request, op, function, 256)
}

fn append(request: &Request<'_>, op: &KvAppend, function: Function, threads: u32) -> Result<Box<dyn Launch>> {
    let (slots, next) = slots(op, 2);
    let mut pointers = vec![Pointer::Operand(0), Pointer::Operand(1)];
    pointers.extend(slots);
    pointers.extend([Pointer::Operand(next), Pointer::Operand(next + 1)]);
    let dims = grid(op.src_k.outer, [threads, 1])?;
    prepared(request, Steps::one(function, dims, AppendParams::from(op), pointers))
}

/// `AdvanceParams`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct AdvanceParams {
    batch: u64,
    q_len: u64,
    tokens: u64,
}

pub(crate) fn prepare_advance(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let Op::Advance(op) = request.op else { return Err(other_op(request.op)) };
    let function = module(request, &cuda::ADVANCE_SLOTS, &[])?.function("advance")?;
    let params = AdvanceParams { batch: op.batch as u64, q_len: op.q_len as u64, tokens: op.tokens as u64 };
    let first = usize::from(op.ragged);
    let offsets = Pointer::some(op.ragged.then_some(0));
    let pointers = vec![offsets, Pointer::Operand(first), Pointer::Operand(first + 1)];
    prepared(request, Steps::one(function, grid(1, [1024, 1])?, params, pointers))
}

/// `HeadParams`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct HeadParams {
    x: RowsParam,
    rotation: RotationParam,
    eps: f32,
    weight_offset: f32,
    x_dtype: u32,
    weight_dtype: u32,
}

fn head(x: Rows, x_dtype: DType, norm: Option<HeadNorm>, rope: &Rope) -> HeadParams {
    let HeadNorm { weight, weight_offset, eps } = norm.unwrap_or_default();
    let (x, rotation) = (x.into(), rope.into());
    HeadParams { x, rotation, eps, weight_offset, x_dtype: id(x_dtype), weight_dtype: id(weight) }
}

/// `QkParams`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct QkParams {
    q: HeadParams,
    k: HeadParams,
    out: RowsParam,
    append: AppendParams,
    out_dtype: u32,
    unused: u32,
}

/// Lanes that share a head, each with a run of pairs.
fn lanes(op: &QkNormRopeAppend) -> usize {
    op.q.len / (2 * run_of(&[op.q_dtype]))
}

/// Heads of queries, keys and values.
fn heads(op: &QkNormRopeAppend) -> usize {
    op.q.inner + 2 * op.append.src_k.inner
}

/// Blocks that share a token's heads: as many as find a place beside those of the other tokens, `most` at most.
fn groups(request: &Request<'_>, op: &QkNormRopeAppend, most: usize) -> usize {
    (2 * multiprocessors(request.info) / op.q.outer.max(1)).clamp(1, most.clamp(1, 1024))
}

/// Vectors of a cache as rows of elements, for what their strides allow.
fn cache_rows(kv: &KvLayout) -> [Rows; 2] {
    let slow = Rows {
        outer: 2,
        inner: 2,
        len: kv.head_dim,
        outer_stride: kv.batch_stride,
        inner_stride: kv.head_stride,
    };
    [slow, Rows { outer_stride: kv.token_stride, ..slow }]
}

/// Why heads are not for the registers of a few lanes.
pub(crate) fn refuse_registers(candidate: &Candidate<'_>) -> Option<Reason> {
    let Op::QkNormRopeAppend(op) = candidate.op else { return Some(Reason::new("it is another op")) };
    let (q, k, append) = (op.q, op.append.src_k, &op.append);
    let weights = op.q_norm.zip(op.k_norm).is_none_or(|(q, k)| q.weight == k.weight);
    if op.q_dtype != append.src_dtype || !weights {
        return Some(Reason::new(
            "queries, keys and values, or the weights of their norms, have different types",
        ));
    }
    if append.kv_dtype.is_block() {
        return Some(Reason::new("the caches have a block format"));
    }
    if q.len != k.len || op.q_rope.rotary_dim != q.len || op.k_rope.rotary_dim != k.len {
        return Some(Reason::new("heads are not rotated as a whole, or differ in length"));
    }
    let run = run_of(&[op.q_dtype]);
    if !q.len.is_multiple_of(2 * run) || !lanes(op).is_power_of_two() || lanes(op) > 32 {
        return Some(Reason::new("the pairs of a head do not fill a power of two of up to 32 lanes"));
    }
    let sources = [q, k, append.src_v].map(|rows| (rows, op.q_dtype));
    let targets = cache_rows(&append.kv).map(|rows| (rows, append.kv_dtype));
    let mut all = sources.into_iter().chain(targets).chain([(op.q_rope.x, op.q_rope.dtype)]);
    all.find_map(|(rows, dtype)| whole_runs(rows, dtype, run))
}

/// Bytes to whose multiple the registers' kernel needs an operand: all but the slots.
pub(crate) fn align_registers(candidate: &Candidate<'_>, operand: usize) -> u32 {
    let Op::QkNormRopeAppend(op) = candidate.op else { return 1 };
    let (_, caches) = slots(&op.append, op.positions() + 1);
    if (op.positions()..caches).contains(&operand) { 1 } else { 16 }
}

pub(crate) fn prepare_registers(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let Op::QkNormRopeAppend(op) = request.op else { return Err(other_op(request.op)) };
    let defines = [
        define("X", op.q_dtype),
        define("W", op.q_norm.or(op.k_norm).unwrap_or_default().weight),
        define("OUT", op.q_rope.dtype),
        define("KV", op.append.kv_dtype),
        ("RUN", run_of(&[op.q_dtype]).to_string()),
    ];
    let function = module(request, &cuda::QK_REGISTERS, &defines)?.function("qk_registers")?;
    // whole warps; few tokens have threads for every head, of many more blocks share a multiprocessor
    let (along, heads) = (lanes(op), heads(op));
    let few = op.q.outer <= 2 * multiprocessors(request.info);
    let groups = groups(request, op, (heads * along).div_ceil(64));
    let beside =
        heads.div_ceil(groups).clamp(1, if few { 512 } else { 64 } / along).next_multiple_of(32 / along);
    qk(request, op, function, [along as u32, beside as u32], groups)
}

pub(crate) fn prepare_heads(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let Op::QkNormRopeAppend(op) = request.op else { return Err(other_op(request.op)) };
    let function = module(request, &cuda::QK_HEADS, &[])?.function("qk_heads")?;
    qk(request, op, function, [256, 1], groups(request, op, heads(op).div_ceil(256 / 32)))
}

fn qk(
    request: &Request<'_>,
    op: &QkNormRopeAppend,
    function: Function,
    block: [u32; 2],
    groups: usize,
) -> Result<Box<dyn Launch>> {
    let params = QkParams {
        q: head(op.q, op.q_dtype, op.q_norm, &op.q_rope),
        k: head(op.append.src_k, op.append.src_dtype, op.k_norm, &op.k_rope),
        out: op.q_rope.x.into(),
        append: (&op.append).into(),
        out_dtype: id(op.q_rope.dtype),
        unused: 0,
    };
    let positions = op.positions();
    let (slots, next) = slots(&op.append, positions + 1);
    let mut pointers: Vec<Pointer> = (0..3).map(Pointer::Operand).collect();
    pointers.push(Pointer::some(op.q_norm.map(|_| 3)));
    pointers.push(Pointer::some(op.k_norm.map(|_| positions - 1)));
    pointers.push(Pointer::Operand(positions));
    pointers.extend(slots);
    pointers.push(Pointer::Table(turn_table(request, &op.q_rope)?));
    pointers.push(Pointer::Table(turn_table(request, &op.k_rope)?));
    pointers.extend((next..next + 3).map(Pointer::Operand));
    let mut dims = grid(op.q.outer, block)?;
    dims.grid[1] = blocks(groups)?;
    prepared(request, Steps::one(function, dims, params, pointers))
}
