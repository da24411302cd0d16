//! Attention of many queries: `shaders/wgsl/attention/tiles.wgsl`.

use super::{
    AttentionParam, HEADERS, align, busy, is_empty, longest, op_of, places, quad_bindings, refuse_fours,
    slowness,
};
use crate::launch::limits::refuse_workgroup;
use crate::launch::{Builder, Dims};
use crate::pipeline::Checks;
use crate::shader::Variant;
use bytemuck::{Pod, Zeroable};
use perjoule_kernels::op::Op;
use perjoule_kernels::{Candidate, Config, Kernel, Launch, Numerics, Reason, Request, Result};
use perjoule_shaders::wgsl;

static CONFIGS: &[Config] = &[Config::tile("64x32", &[ROWS, KEYS, 64])];

/// Rows and keys of a workgroup, and fours of elements that its memory holds beside weights.
const ROWS: usize = 64;
const KEYS: usize = 32;
const VALUES: usize = 512;
/// Invocations and bytes of memory of a workgroup.
const LANES: usize = 128;
const MEMORY: usize = 16 * 1024;

/// The row.
pub(crate) const ROW: Kernel = Kernel::new("attention_any_64x32_webgpu_any", "attention", cost, prepare)
    .with_configs(CONFIGS)
    .with_reject(reject)
    .with_align(align)
    .with_numerics(|_| Numerics::F32.flushing_subnormals());

fn reject(candidate: &Candidate<'_>) -> Option<Reason> {
    let Op::Attention(op) = candidate.op else { return Some(Reason::new("runs attention")) };
    refuse_fours(candidate, op).or_else(|| refuse_workgroup(candidate, LANES, MEMORY))
}

fn cost(candidate: &Candidate<'_>) -> f32 {
    let Op::Attention(op) = candidate.op else { return f32::MAX };
    // tiles are computed as a whole
    let rows = longest(op) * op.q.inner / op.kv.kv_heads;
    let filled = rows as f32 / rows.next_multiple_of(ROWS).max(1) as f32;
    let groups = rows.div_ceil(ROWS) as f32 * op.batch as f32 * op.kv.kv_heads as f32;
    let rate = 3e12 * filled.max(1.0 / ROWS as f32) * busy(candidate, groups * LANES as f32);
    1e-5 + candidate.op.bytes() as f32 / 200e9 + slowness(candidate) * candidate.op.flops() as f32 / rate
}

/// `Params` of `attention/tiles.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    op: AttentionParam,
    tiles: u32,
    units: u32,
    unused: [u32; 2],
}

fn prepare(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let op = op_of(request)?;
    let mut builder = Builder::new(request, "attention_tiles_webgpu")?;
    let quads = op.q.len / 4;
    let variant = Variant::of(quad_bindings(op, request.alignment))
        .uint("QUADS", quads)
        .uint("SHARE", quads.div_ceil(8))
        .uint("VALUES", (1 << (VALUES / quads).ilog2()).min(KEYS))
        .flag("CAPPED", op.soft_cap.is_some());
    let all = longest(op) * (op.q.inner / op.kv.kv_heads);
    let (tiles, units) = (all.div_ceil(ROWS), op.batch * op.kv.kv_heads);
    let groups = if is_empty(op) { 0 } else { tiles * units };
    let params = Params { op: op.into(), tiles: tiles as u32, units: units as u32, unused: [0; 2] };
    builder.step(
        (&wgsl::ATTENTION_TILES, HEADERS, "attention"),
        (&variant, Checks::None),
        Dims::line(groups as u64, 1)?,
        &params,
        places(op),
    )?;
    Ok(builder.finish())
}
