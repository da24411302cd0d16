//! Appending to caches, and the slots of a step.

use super::rows::{KvParam, RowsParam};
use super::{Builder, Dims, Place, other_op};
use crate::pipeline::Checks;
use crate::shader::{Binding, Variant};
use bytemuck::{Pod, Zeroable};
use perjoule_kernels::op::{KvAppend, Op};
use perjoule_kernels::{DType, Launch, Request, Result};
use perjoule_shaders::{Source, wgsl};

/// Headers of kernels that store into caches.
pub(super) const HEADERS: &[&Source] =
    &[&wgsl::ELEMENT, &wgsl::LAYOUT, &wgsl::SLOTS, &wgsl::TURNS, &wgsl::DIVISION];

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

/// Adds the kernel that appends values, and keys where `k` and `k_cache` say where they are. Operands by their indices, the slots from
/// `slots` on.
pub(super) fn append(
    builder: &mut Builder<'_>,
    op: &KvAppend,
    (k, v): (Option<usize>, usize),
    slots: usize,
    (k_cache, v_cache): (Option<usize>, usize),
) -> Result<()> {
    let paged = op.kv.paging.is_some();
    let mut bindings =
        vec![Binding::get("k", op.src_dtype).when(k.is_some()), Binding::get("v", op.src_dtype)];
    bindings.extend(slot_bindings(op.ragged, paged));
    bindings.push(Binding::set("k_cache", op.kv_dtype).when(k_cache.is_some()));
    bindings.push(Binding::set("v_cache", op.kv_dtype));
    let unit = unit(op.kv_dtype);
    let variant = Variant::of(bindings).uint("UNIT", unit);
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
        (&wgsl::KV_APPEND_ROWS, HEADERS, "append"),
        (&variant, Checks::None),
        Dims::line(count as u64, 64)?,
        &params,
        places,
    )
}

/// The append for everything.
pub(crate) fn prepare_append(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let Op::KvAppend(op) = request.op else { return Err(other_op(request.op)) };
    let mut builder = Builder::new(request, "kv_append_any_webgpu")?;
    let caches = 3 + usize::from(op.ragged) + usize::from(op.kv.paging.is_some());
    append(&mut builder, op, (Some(0), 1), 2, (Some(caches), caches + 1))?;
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
