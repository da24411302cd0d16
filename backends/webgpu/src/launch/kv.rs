//! Appending to caches, and the slots of a step.

use super::rows::{KvParam, RowsParam, refuse};
use super::{Builder, Dims, Place, other_op};
use crate::pipeline::Checks;
use crate::shader::{Binding, Variant};
use bytemuck::{Pod, Zeroable};
use perjoule_kernels::op::{KvAppend, Op};
use perjoule_kernels::{Candidate, DType, KvLayout, Launch, Reason, Request, Result, Rows};
use perjoule_shaders::{Source, wgsl};

/// Headers of kernels that store into caches, of those that norm heads first, too.
pub(super) const HEADERS: &[&Source] =
    &[&wgsl::ELEMENT, &wgsl::LAYOUT, &wgsl::SLOTS, &wgsl::TURNS, &wgsl::DIVISION, &wgsl::QK_ROOT];

/// The slots that say where vectors lie in caches, as kernels bind them: kv_len, q_offsets, block_table.
pub(super) fn slot_bindings(ragged: bool, paged: bool) -> Vec<Binding> {
    vec![
        Binding::get("kv_len", DType::I32),
        Binding::get("q_offsets", DType::I32).when(ragged),
        Binding::get("block_table", DType::I32).when(paged),
    ]
}

/// The same as operands, from `first` on.
pub(super) fn slot_places(ragged: bool, paged: bool, first: usize) -> Vec<Place> {
    let count = 1 + usize::from(ragged) + usize::from(paged);
    (first..first + count).map(Place::Operand).collect()
}

/// Elements that an invocation stores: one, or a block.
pub(super) fn unit(dtype: DType) -> usize {
    dtype.block_len()
}

/// `Params` of `kv_append/rows.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct AppendParams {
    k: RowsParam,
    v: RowsParam,
    kv: KvParam,
    batch: u32,
    q_len: u32,
    tokens: u32,
    unused: u32,
}

/// Whether vectors of these strides begin at multiples of four elements, of which they have whole ones.
pub(super) fn in_fours(rows: Rows) -> bool {
    [rows.len, rows.outer_stride, rows.inner_stride].iter().all(|n| n.is_multiple_of(4))
}

/// Whether those of a cache do.
fn cache_in_fours(kv: &KvLayout) -> bool {
    [kv.head_dim, kv.batch_stride, kv.head_stride, kv.token_stride].iter().all(|n| n.is_multiple_of(4))
}

/// Why an append is not for four elements at a time.
pub(crate) fn refuse_append_quads(candidate: &Candidate<'_>) -> Option<Reason> {
    let Op::KvAppend(op) = candidate.op else { return Some(Reason::new("runs appends")) };
    refuse_quads_of(op).or_else(|| refuse(candidate))
}

/// The same of an append that is part of another op.
pub(super) fn refuse_quads_of(op: &KvAppend) -> Option<Reason> {
    if op.kv_dtype.is_block() {
        return Some(Reason::new("the caches have a block format"));
    }
    let fits = in_fours(op.src_k) && in_fours(op.src_v) && cache_in_fours(&op.kv);
    // what is empty has no place for four elements
    let empty = op.src_v.elements() == Some(0) || op.kv.extent(op.batch).is_none_or(|extent| extent == 0);
    (!fits || empty)
        .then(|| Reason::new("vectors do not begin at multiples of four elements, or there are none"))
}

/// Bytes to whose multiple the append by four elements needs an operand: all but the slots.
pub(crate) fn align_append(candidate: &Candidate<'_>, operand: usize) -> u32 {
    let Op::KvAppend(op) = candidate.op else { return 1 };
    if (2..caches_of(op)).contains(&operand) { 1 } else { 16 }
}

/// The index of the first cache.
fn caches_of(op: &KvAppend) -> usize {
    3 + usize::from(op.ragged) + usize::from(op.kv.paging.is_some())
}

/// Adds the kernel that appends values, and keys where `k` and `k_cache` say where they are: by four elements where `whole` says that all
/// lies so. Operands by their indices, the slots from `slots` on.
pub(super) fn append(
    builder: &mut Builder<'_>,
    (op, whole): (&KvAppend, bool),
    (k, v): (Option<usize>, usize),
    slots: usize,
    (k_cache, v_cache): (Option<usize>, usize),
) -> Result<()> {
    let paged = op.kv.paging.is_some();
    let mut bindings = vec![
        Binding::quads("k", op.src_dtype, whole).when(k.is_some()),
        Binding::quads("v", op.src_dtype, whole),
    ];
    bindings.extend(slot_bindings(op.ragged, paged));
    bindings.push(Binding::quads_mut("k_cache", op.kv_dtype, whole).when(k_cache.is_some()));
    bindings.push(Binding::quads_mut("v_cache", op.kv_dtype, whole));
    let unit = if whole { 4 } else { unit(op.kv_dtype) };
    let variant = Variant::of(bindings).uint("UNIT", unit);
    let source = if whole { &wgsl::KV_APPEND_QUADS } else { &wgsl::KV_APPEND_ROWS };
    let kinds = 1 + usize::from(k.is_some());
    let count = op.src_v.outer * op.kv.kv_heads * (op.kv.head_dim / unit) * kinds;
    let params = AppendParams {
        k: op.src_k.into(),
        v: op.src_v.into(),
        kv: op.kv.into(),
        batch: op.batch as u32,
        q_len: op.q_len.min(op.src_v.outer) as u32,
        tokens: op.src_v.outer as u32,
        unused: 0,
    };
    let mut places: Vec<Place> = Place::some(k).into_iter().collect();
    places.push(Place::Operand(v));
    places.extend(slot_places(op.ragged, paged, slots));
    places.extend(Place::some(k_cache));
    places.push(Place::Operand(v_cache));
    builder.step(
        (source, HEADERS, "append"),
        (&variant, Checks::None),
        Dims::line(count as u64, 64)?,
        &params,
        places,
    )
}

/// The append for everything.
pub(crate) fn prepare_append(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    prepare(request, "kv_append_any_webgpu", false)
}

/// The append by four elements.
pub(crate) fn prepare_append_quads(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    prepare(request, "kv_append_quads_webgpu", true)
}

fn prepare(request: &Request<'_>, name: &'static str, whole: bool) -> Result<Box<dyn Launch>> {
    let Op::KvAppend(op) = request.op else { return Err(other_op(request.op)) };
    let mut builder = Builder::new(request, name)?;
    let caches = caches_of(op);
    append(&mut builder, (op, whole), (Some(0), 1), 2, (Some(caches), caches + 1))?;
    Ok(builder.finish())
}

/// `Params` of `advance/slots.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct AdvanceParams {
    batch: u32,
    q_len: u32,
    tokens: u32,
    unused: u32,
}

/// Lengths and positions.
pub(crate) fn prepare_advance(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let Op::Advance(op) = request.op else { return Err(other_op(request.op)) };
    let mut builder = Builder::new(request, "advance_i32_webgpu")?;
    let variant = Variant::of(vec![
        Binding::get("q_offsets", DType::I32).when(op.ragged),
        Binding::set("kv_len", DType::I32),
        Binding::set("positions", DType::I32),
    ]);
    let params = AdvanceParams {
        batch: op.batch as u32,
        q_len: op.q_len.min(u32::MAX as usize) as u32,
        tokens: op.tokens as u32,
        unused: 0,
    };
    builder.step(
        (&wgsl::ADVANCE_SLOTS, &[&wgsl::ELEMENT], "advance"),
        (&variant, Checks::None),
        Dims::grid(1, 1, 1)?,
        &params,
        (0..2 + usize::from(op.ragged)).map(Place::Operand).collect(),
    )?;
    Ok(builder.finish())
}
