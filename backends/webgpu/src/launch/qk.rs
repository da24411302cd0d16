//! Norm and rotation of the heads of queries and keys, fused with the append to the caches.

use super::kv::{HEADERS, append, in_fours, refuse_quads_of, slot_bindings, slot_places, unit};
use super::rope::{RotationParam, TABLE};
use super::rows::{KvParam, RowsParam, refuse_bytes};
use super::{Builder, Dims, Place, other_op};
use crate::pipeline::Checks;
use crate::shader::{Binding, Variant};
use bytemuck::{Pod, Zeroable};
use perjoule_kernels::op::{HeadNorm, Op, QkNormRopeAppend, Rope, Spec};
use perjoule_kernels::{Buffer, Candidate, DType, Launch, Reason, Request, Result};
use perjoule_shaders::wgsl;

/// `Params` of `qk_norm_rope_append/heads.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct HeadParams {
    x: RowsParam,
    out: RowsParam,
    kv: KvParam,
    rotation: RotationParam,
    batch: u32,
    q_len: u32,
    eps: f32,
    weight_offset: f32,
}

/// `Params` of `qk_norm_rope_append/quads.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct QuadParams {
    q: RowsParam,
    k: RowsParam,
    v: RowsParam,
    out: RowsParam,
    kv: KvParam,
    rotation: RotationParam,
    batch: u32,
    q_len: u32,
    q_eps: f32,
    q_weight_offset: f32,
    k_eps: f32,
    k_weight_offset: f32,
    unused: [u32; 2],
}

/// The index of the first cache.
fn caches(op: &QkNormRopeAppend) -> usize {
    op.positions() + 2 + usize::from(op.append.ragged) + usize::from(op.append.kv.paging.is_some())
}

/// Invocations of a workgroup: `LANES` of the sources.
const LANES: usize = 64;

/// Why heads are not for four pairs at a time.
pub(crate) fn refuse_quads(candidate: &Candidate<'_>) -> Option<Reason> {
    let Op::QkNormRopeAppend(op) = candidate.op else { return Some(Reason::new("runs heads")) };
    let rotated = |rope: &Rope| {
        let len = rope.x.len;
        rope.rotary_dim == len && len.is_multiple_of(8) && len / 8 <= LANES
    };
    if !rotated(&op.q_rope) || !rotated(&op.k_rope) {
        return Some(Reason::new("heads are not rotated as a whole, or not in fours of up to 256 pairs"));
    }
    if !in_fours(op.q) || !in_fours(op.q_rope.x) {
        return Some(Reason::new("vectors do not begin at multiples of four elements"));
    }
    refuse_quads_of(&op.append).or_else(|| refuse_bytes(candidate))
}

/// Bytes to whose multiple the kernels by four pairs need an operand: all but the slots.
pub(crate) fn align_quads(candidate: &Candidate<'_>, operand: usize) -> u32 {
    let Op::QkNormRopeAppend(op) = candidate.op else { return 1 };
    if (op.positions()..caches(op)).contains(&operand) { 1 } else { 16 }
}

/// Query rows of a sequence as kernels count them.
fn q_len(op: &QkNormRopeAppend) -> u32 {
    op.append.q_len.min(op.q.outer) as u32
}

/// Adds the kernel of the queries, or of the keys.
fn heads(builder: &mut Builder<'_>, op: &QkNormRopeAppend, keys: bool) -> Result<()> {
    let append = &op.append;
    let (ragged, paged) = (append.ragged, append.kv.paging.is_some());
    let (x, x_dtype, norm, rope, out_dtype) = match keys {
        false => (op.q, op.q_dtype, op.q_norm, &op.q_rope, op.q_rope.dtype),
        true => (append.src_k, append.src_dtype, op.k_norm, &op.k_rope, append.kv_dtype),
    };
    let HeadNorm { weight, weight_offset, eps } = norm.unwrap_or_default();
    let mut bindings = vec![
        Binding::get("x", x_dtype),
        Binding::get("weight", weight).when(norm.is_some()),
        Binding::get("positions", DType::I32),
        TABLE,
    ];
    bindings.extend(slot_bindings(ragged, paged).into_iter().map(|binding| {
        let there = keys && binding.is_bound();
        binding.when(there)
    }));
    bindings.push(Binding::set("out", out_dtype));
    let variant = Variant::of(bindings).flag("KEYS", keys).uint("UNIT", unit(out_dtype));
    let params = HeadParams {
        x: x.into(),
        out: rope.x.into(),
        kv: append.kv.into(),
        rotation: rope.into(),
        batch: append.batch as u32,
        q_len: q_len(op),
        eps,
        weight_offset,
    };
    let positions = op.positions();
    let mut places = vec![Place::Operand(usize::from(keys))];
    places.extend(Place::some(norm.map(|_| if keys { positions - 1 } else { 3 })));
    places.extend([Place::Operand(positions), Place::Table(builder.table(&rope.turns())?)]);
    if keys {
        places.extend(slot_places(ragged, paged, positions + 1));
    }
    places.push(Place::Operand(caches(op) + if keys { 0 } else { 2 }));
    builder.step(
        (&wgsl::QK_HEADS, HEADERS, "heads"),
        (&variant, Checks::None),
        Dims::line((x.outer * x.inner) as u64, 1)?,
        &params,
        places,
    )
}

/// The row for everything: a kernel for queries, one for keys, and one for values, so that none binds more than 8 operands.
pub(crate) fn prepare_any(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let Op::QkNormRopeAppend(op) = request.op else { return Err(other_op(request.op)) };
    let mut builder = Builder::new(request, "qk_norm_rope_append_any_webgpu")?;
    heads(&mut builder, op, false)?;
    heads(&mut builder, op, true)?;
    append(&mut builder, (&op.append, false), (None, 2), op.positions() + 1, (None, caches(op) + 1))?;
    Ok(builder.finish())
}

/// What the kernel by four pairs binds for the queries, keys and values among `[q, k, v]`.
fn quad_bindings(op: &QkNormRopeAppend, [q, k, v]: [bool; 3], table: Buffer) -> Vec<(Binding, Place)> {
    let append = &op.append;
    let positions = op.positions();
    let (caches, offsets) = (caches(op), usize::from(append.ragged));
    let read = |name, dtype, at| (Binding::quads(name, dtype, true), Place::Operand(at));
    let write = |name, dtype, at| (Binding::quads_mut(name, dtype, true), Place::Operand(at));
    let slot = |name, at| (Binding::get(name, DType::I32), Place::Operand(at));
    let weight = |norm: Option<HeadNorm>| norm.unwrap_or_default().weight;
    let stored = k || v;
    let list = [
        (q, read("q", op.q_dtype, 0)),
        (k, read("k", append.src_dtype, 1)),
        (v, read("v", append.src_dtype, 2)),
        (q && op.q_norm.is_some(), read("q_weight", weight(op.q_norm), 3)),
        (k && op.k_norm.is_some(), read("k_weight", weight(op.k_norm), positions - 1)),
        (true, slot("positions", positions)),
        (true, (TABLE, Place::Table(table))),
        (stored, slot("kv_len", positions + 1)),
        (stored && append.ragged, slot("q_offsets", positions + 2)),
        (stored && append.kv.paging.is_some(), slot("block_table", positions + 2 + offsets)),
        (k, write("k_cache", append.kv_dtype, caches)),
        (v, write("v_cache", append.kv_dtype, caches + 1)),
        (q, write("out", op.q_rope.dtype, caches + 2)),
    ];
    list.into_iter().map(|(there, (binding, place))| (binding.when(there), place)).collect()
}

/// Adds the kernel by four pairs for the queries, keys and values among `kinds`.
fn quads(builder: &mut Builder<'_>, op: &QkNormRopeAppend, kinds: [bool; 3]) -> Result<()> {
    let append = &op.append;
    let rope = if kinds[0] { &op.q_rope } else { &op.k_rope };
    let sharing = (rope.x.len / 8).max(1);
    let (q_norm, k_norm) = (op.q_norm.unwrap_or_default(), op.k_norm.unwrap_or_default());
    let params = QuadParams {
        q: op.q.into(),
        k: append.src_k.into(),
        v: append.src_v.into(),
        out: op.q_rope.x.into(),
        kv: append.kv.into(),
        rotation: rope.into(),
        batch: append.batch as u32,
        q_len: q_len(op),
        q_eps: q_norm.eps,
        q_weight_offset: q_norm.weight_offset,
        k_eps: k_norm.eps,
        k_weight_offset: k_norm.weight_offset,
        unused: [0; 2],
    };
    let table = builder.table(&rope.turns())?;
    let (bindings, places): (Vec<_>, Vec<_>) = quad_bindings(op, kinds, table).into_iter().unzip();
    let bound = bindings.iter().zip(places).filter(|(binding, _)| binding.is_bound());
    let places = bound.map(|(_, place)| place).collect();
    let heads = [op.q.inner, append.src_k.inner, append.src_v.inner];
    let heads: usize = heads.into_iter().zip(kinds).filter(|(_, there)| *there).map(|(heads, _)| heads).sum();
    builder.step(
        (&wgsl::QK_QUADS, HEADERS, "heads"),
        (&Variant::of(bindings).uint("SHARING", sharing), Checks::None),
        Dims::line((op.q.outer * heads) as u64, (LANES / sharing) as u64)?,
        &params,
        places,
    )
}

/// By four pairs: one kernel for queries, keys and values, where they turn alike and it may bind so many operands; else one for each.
pub(crate) fn prepare_quads(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let Op::QkNormRopeAppend(op) = request.op else { return Err(other_op(request.op)) };
    let mut builder = Builder::new(request, "qk_norm_rope_append_quads_webgpu")?;
    let (q, k) = (&op.q_rope, &op.k_rope);
    let alike = q.turns_like(k) && q.style == k.style;
    // a table beside the operands
    match alike && op.operands().len() < builder.most_bindings() {
        true => quads(&mut builder, op, [true; 3])?,
        false => {
            for kind in 0..3 {
                quads(&mut builder, op, [0, 1, 2].map(|i| i == kind))?;
            }
        }
    }
    Ok(builder.finish())
}
