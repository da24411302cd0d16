//! Norm and rotation of the heads of queries and keys, fused with the append to the caches.

use super::kv::{HEADERS, append, slot_bindings, slot_places, unit};
use super::rope::{RotationParam, TABLE, turns};
use super::rows::{KvParam, RowsParam};
use super::{Builder, Dims, Place, other_op};
use crate::pipeline::Checks;
use crate::shader::{Binding, Variant};
use bytemuck::{Pod, Zeroable};
use perjoule_kernels::op::{Op, QkNormRopeAppend};
use perjoule_kernels::{DType, Launch, Request, Result};
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

/// Adds the kernel of the queries, or of the keys.
fn heads(builder: &mut Builder<'_>, op: &QkNormRopeAppend, keys: bool) -> Result<()> {
    let (norm, rope) = if keys { (&op.k_norm, &op.k_rope) } else { (&op.q_norm, &op.q_rope) };
    let (ragged, paged) = (op.append.ragged, op.append.kv.paging.is_some());
    let out_dtype = if keys { op.append.kv_dtype } else { norm.out_dtype };
    let mut bindings = vec![
        Binding::get("x", norm.x_dtype),
        Binding::get("weight", norm.weight),
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
    let table = builder.table(&turns(rope))?;
    let mut places = vec![Place::Operand(x), Place::Operand(weight), Place::Operand(5), Place::Table(table)];
    if keys {
        places.extend(slot_places(ragged, paged, 6));
    }
    places.push(Place::Operand(caches(op) + if keys { 0 } else { 2 }));
    builder.step(
        (&wgsl::QK_HEADS, HEADERS, "heads"),
        (&variant, Checks::None),
        Dims::line((norm.x.outer * norm.x.inner) as u64, 1)?,
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
    append(&mut builder, &op.append, (None, 2), 6, (None, caches(op) + 1))?;
    Ok(builder.finish())
}
