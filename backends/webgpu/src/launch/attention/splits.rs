//! Attention of few queries, keys split over workgroups: `shaders/wgsl/attention/{splits,combine}.wgsl`.

use super::{
    AttentionParam, HEADERS, align, busy, is_empty, longest, op_of, places, quad_bindings, refuse_fours,
    slowness, whole,
};
use crate::launch::limits::{refuse_workgroup, subgroup};
use crate::launch::rows::{caps, refuse_operands};
use crate::launch::{Builder, Dims, Place};
use crate::pipeline::Checks;
use crate::shader::{Binding, Variant};
use bytemuck::{Pod, Zeroable};
use perjoule_kernels::op::{Attention, Op};
use perjoule_kernels::{Candidate, Config, Kernel, Launch, Numerics, Reason, Request, Result};
use perjoule_shaders::wgsl;

static CONFIGS: &[Config] = &[Config::tile("8x128", &[MOST_ROWS, SPLIT, 64])];

/// Keys of a part.
const SPLIT: usize = 128;
/// Most rows of a workgroup.
const MOST_ROWS: usize = 8;
/// Invocations of a workgroup.
const LANES: usize = 128;
/// Invocations that add products of a key.
const SHARING: u32 = 8;

/// A row, which adds by shuffles within subgroups or through workgroup memory.
pub(crate) const fn row<const SUBGROUPS: bool>(name: &'static str) -> Kernel {
    Kernel::new(name, "attention", cost::<SUBGROUPS>, prepare::<SUBGROUPS>)
        .with_configs(CONFIGS)
        .with_reject(reject::<SUBGROUPS>)
        .with_align(align)
        .with_numerics(|_| Numerics::F32.flushing_subnormals())
}

/// How an op is cut up.
struct Cut {
    /// Rows of a workgroup.
    rows: usize,
    /// Groups of rows of a sequence and a key/value head, such pairs, and parts.
    tiles: usize,
    units: usize,
    splits: usize,
}

impl Cut {
    fn new(op: &Attention) -> Self {
        let all = longest(op) * (op.q.inner / op.kv.kv_heads);
        // what workgroup memory holds
        let most = if op.q.len > 128 { MOST_ROWS / 2 } else { MOST_ROWS };
        let rows = all.next_power_of_two().clamp(1, most);
        Cut {
            rows,
            tiles: all.div_ceil(rows),
            units: op.batch * op.kv.kv_heads,
            splits: op.kv.capacity.div_ceil(SPLIT).max(1),
        }
    }

    /// Workgroups, each of which leaves a part; saturates.
    fn parts(&self) -> usize {
        self.tiles.saturating_mul(self.units).saturating_mul(self.splits)
    }

    /// Bytes of a workgroup's memory: scores, queries, places of keys and sums, and products where no shuffles add them.
    fn workgroup_bytes(&self, quads: usize, shuffles: bool) -> usize {
        let added = if shuffles { 1 } else { self.rows };
        4 * (self.rows * SPLIT + SPLIT + added * LANES) + 16 * (self.rows * quads + LANES)
    }

    /// Bytes of all parts: elements of each row, and four numbers more.
    fn bytes(&self, op: &Attention) -> u64 {
        (self.parts() as u64).saturating_mul((self.rows * (op.q.len + 4) * 4) as u64)
    }
}

fn reject<const SUBGROUPS: bool>(candidate: &Candidate<'_>) -> Option<Reason> {
    let Op::Attention(op) = candidate.op else { return Some(Reason::new("runs attention")) };
    let Some(caps) = caps(candidate.info) else { return Some(Reason::new("the device is none of WebGPU")) };
    if SUBGROUPS && subgroup(caps).0 < SHARING {
        return Some(Reason::lacking("needs subgroups of 8 invocations or more"));
    }
    let refusal = refuse_fours(candidate, op).or_else(|| {
        // the parts are one more
        refuse_operands(candidate, candidate.op.operands().len() + 1)
    });
    if refusal.is_some() {
        return refusal;
    }
    let cut = Cut::new(op);
    let memory = cut.workgroup_bytes(op.q.len / 4, SUBGROUPS);
    if let Some(reason) = refuse_workgroup(candidate, LANES, memory) {
        return Some(reason);
    }
    if cut.bytes(op) > caps.limits.max_storage_buffer_binding_size || cut.parts() > i32::MAX as usize {
        return Some(Reason::new("parts of keys would take more memory than a kernel binds"));
    }
    None
}

fn cost<const SUBGROUPS: bool>(candidate: &Candidate<'_>) -> f32 {
    let Op::Attention(op) = candidate.op else { return f32::MAX };
    let cut = Cut::new(op);
    // every group of rows reads the keys again, and writes its parts
    let again = cut.tiles as f32 * candidate.op.bytes() as f32 + 2.0 * cut.bytes(op) as f32;
    let slow = slowness(candidate);
    let adding = if SUBGROUPS { 1.0 } else { 1.2 };
    let rate = 2e12 * busy(candidate, cut.parts() as f32 * LANES as f32);
    2e-5 + again / 300e9 + slow * adding * candidate.op.flops() as f32 / rate
}

/// `Params` of both sources.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    op: AttentionParam,
    tiles: u32,
    units: u32,
    splits: u32,
    unused: u32,
}

fn prepare<const SUBGROUPS: bool>(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let op = op_of(request)?;
    let mut builder = Builder::new(request, "attention_splits_webgpu")?;
    let cut = Cut::new(op);
    if is_empty(op) {
        return Ok(builder.finish());
    }
    let params = Params {
        op: op.into(),
        tiles: cut.tiles as u32,
        units: cut.units as u32,
        splits: cut.splits as u32,
        unused: 0,
    };
    let bytes = cut.bytes(op);
    let parts = Place::Scratch(builder.scratch(bytes), bytes);
    let kind = |variant: Variant| variant.uint("QUADS", op.q.len / 4).uint("R", cut.rows);
    let [_, _, _, out] = whole(op, request.alignment);
    // the first kernel knows neither sinks nor results
    let mut bindings = quad_bindings(op, request.alignment);
    bindings.truncate(6);
    bindings.extend([
        Binding::get("sinks", perjoule_kernels::DType::F32).when(false),
        Binding::quads_mut("out", op.out_dtype, out).when(false),
        Binding::words_mut("parts", "vec4<f32>"),
    ]);
    let sums = if SUBGROUPS { &wgsl::ATTENTION_SHUFFLES } else { &wgsl::ATTENTION_ALONE };
    let headers = [HEADERS, &[sums]].concat();
    let mut first = places(op);
    first.truncate(first.len() - 1 - usize::from(op.sinks));
    first.push(parts.clone());
    builder.step(
        (&wgsl::ATTENTION_SPLITS, &headers, "parts_of"),
        (
            &kind(Variant::of(bindings)).flag("SUBGROUPS", SUBGROUPS).flag("CAPPED", op.soft_cap.is_some()),
            Checks::None,
        ),
        Dims::line(cut.parts() as u64, 1)?,
        &params,
        first,
    )?;
    let mut bindings = quad_bindings(op, request.alignment);
    bindings.push(Binding::words("parts", "vec4<f32>"));
    let mut second = places(op);
    second.push(parts);
    builder.step(
        (&wgsl::ATTENTION_COMBINE, HEADERS, "combine"),
        (&kind(Variant::of(bindings)), Checks::None),
        Dims::line((cut.tiles * cut.units * cut.rows) as u64, 1)?,
        &params,
        second,
    )?;
    Ok(builder.finish())
}
