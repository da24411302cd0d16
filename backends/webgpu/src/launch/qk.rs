//! Norm and rotation of the heads of queries and keys, fused with the append to the caches.

use super::kv::{HEADERS, append, in_fours, refuse_quads_of, slot_bindings, slot_places, unit};
use super::rope::{RotationParam, TABLE};
use super::rows::{KvParam, RowsParam, refuse_bytes};
use super::{Builder, Dims, Place, other_op};
use crate::pipeline::Checks;
use crate::shader::{Binding, Variant};
use bytemuck::{Pod, Zeroable};
use perjoule_kernels::op::{KvAppend, Op, QkNormRopeAppend, RmsNorm, Rope};
use perjoule_kernels::{Candidate, DType, Launch, Reason, Request, Result};
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

/// The index of the first cache.
fn caches(op: &QkNormRopeAppend) -> usize {
    7 + usize::from(op.append.ragged) + usize::from(op.append.kv.paging.is_some())
}

/// Invocations of a workgroup: `LANES` of the sources.
const LANES: usize = 64;

/// Why heads are not for four pairs at a time.
pub(crate) fn refuse_quads(candidate: &Candidate<'_>) -> Option<Reason> {
    let Op::QkNormRopeAppend(op) = candidate.op else { return Some(Reason::new("runs heads")) };
    let heads = [(&op.q_norm, &op.q_rope), (&op.k_norm, &op.k_rope)];
    let rotated = |(norm, rope): (&RmsNorm, &Rope)| {
        rope.rotary_dim == norm.x.len && norm.x.len.is_multiple_of(8) && norm.x.len / 8 <= LANES
    };
    if !heads.iter().all(|&head| rotated(head)) {
        return Some(Reason::new("heads are not rotated as a whole, or not in fours of up to 256 pairs"));
    }
    if ![op.q_norm.x, op.q_norm.out, op.k_norm.x].iter().all(|&rows| in_fours(rows)) {
        return Some(Reason::new("vectors do not begin at multiples of four elements"));
    }
    // keys are stored in the cache only
    refuse_quads_of(&KvAppend { src_k: op.k_norm.x, ..op.append }).or_else(|| refuse_bytes(candidate))
}

/// Bytes to whose multiple the kernels by four pairs need an operand: all but the slots.
pub(crate) fn align_quads(candidate: &Candidate<'_>, operand: usize) -> u32 {
    let Op::QkNormRopeAppend(op) = candidate.op else { return 1 };
    if (5..caches(op)).contains(&operand) { 1 } else { 16 }
}

/// Adds the kernel of the queries, or of the keys.
fn heads(builder: &mut Builder<'_>, op: &QkNormRopeAppend, keys: bool, whole: bool) -> Result<()> {
    let (norm, rope) = if keys { (&op.k_norm, &op.k_rope) } else { (&op.q_norm, &op.q_rope) };
    let (ragged, paged) = (op.append.ragged, op.append.kv.paging.is_some());
    let out_dtype = if keys { op.append.kv_dtype } else { norm.out_dtype };
    let mut bindings = vec![
        Binding::quads("x", norm.x_dtype, whole),
        Binding::quads("weight", norm.weight, whole),
        Binding::get("positions", DType::I32),
        TABLE,
    ];
    bindings.extend(slot_bindings(ragged, paged).into_iter().map(|binding| {
        let there = keys && binding.is_bound();
        binding.when(there)
    }));
    bindings.push(Binding::quads_mut("out", out_dtype, whole));
    let vectors = norm.x.outer * norm.x.inner;
    let variant = Variant::of(bindings).flag("KEYS", keys);
    let (source, variant, size) = match (norm.x.len / 8).max(1) {
        sharing if whole => (&wgsl::QK_QUADS, variant.uint("SHARING", sharing), LANES / sharing),
        _ => (&wgsl::QK_HEADS, variant.uint("UNIT", unit(out_dtype)), 1),
    };
    let params = HeadParams {
        x: norm.x.into(),
        out: norm.out.into(),
        kv: op.append.kv.into(),
        rotation: rope.into(),
        batch: op.append.batch as u32,
        q_len: op.append.q_len.min(norm.x.outer) as u32,
        eps: norm.eps,
        weight_offset: norm.weight_offset,
    };
    let (x, weight) = if keys { (1, 4) } else { (0, 3) };
    let table = builder.table(&rope.turns())?;
    let mut places = vec![Place::Operand(x), Place::Operand(weight), Place::Operand(5), Place::Table(table)];
    if keys {
        places.extend(slot_places(ragged, paged, 6));
    }
    places.push(Place::Operand(caches(op) + if keys { 0 } else { 2 }));
    builder.step(
        (source, HEADERS, "heads"),
        (&variant, Checks::None),
        Dims::line(vectors as u64, size as u64)?,
        &params,
        places,
    )
}

/// The row for everything: a kernel for queries, one for keys, and one for values, so that none binds more than 8 operands.
pub(crate) fn prepare_any(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    prepare(request, "qk_norm_rope_append_any_webgpu", false)
}

/// The same by four pairs.
pub(crate) fn prepare_quads(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    prepare(request, "qk_norm_rope_append_quads_webgpu", true)
}

fn prepare(request: &Request<'_>, name: &'static str, whole: bool) -> Result<Box<dyn Launch>> {
    let Op::QkNormRopeAppend(op) = request.op else { return Err(other_op(request.op)) };
    let mut builder = Builder::new(request, name)?;
    heads(&mut builder, op, false, whole)?;
    heads(&mut builder, op, true, whole)?;
    append(&mut builder, (&op.append, whole), (None, 2), 6, (None, caches(op) + 1))?;
    Ok(builder.finish())
}
