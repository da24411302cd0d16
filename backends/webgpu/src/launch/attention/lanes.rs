//! Attention on adapters that compute on the CPU: `shaders/wgsl/attention/lanes.wgsl`.

use super::{
    AttentionParam, HEADERS, LONGEST_HEAD, WHOLE, align, is_empty, longest, op_of, out_of, places,
    quad_bindings, refuse_fours,
};
use crate::launch::limits::subgroup;
use crate::launch::rows::caps;
use crate::launch::{Builder, Dims};
use crate::pipeline::Checks;
use crate::shader::Variant;
use bytemuck::{Pod, Zeroable};
use perjoule_kernels::op::{Attention, Op};
use perjoule_kernels::{Candidate, Config, DType, Kernel, Launch, Numerics, Reason, Request, Result};
use perjoule_shaders::wgsl;

static CONFIGS: &[Config] = &[Config::tile("32x8", &[32, LANES, 64])];

/// Invocations of a workgroup, which is one vector of the CPU.
const LANES: usize = 8;

/// Elements of queries, and of results, that an invocation holds: more make no faster code, which takes longer to compile.
const HELD: usize = LONGEST_HEAD;

/// Most iterations of a loop that drivers unroll.
const UNROLLED: usize = 32;

/// The row.
pub(crate) const ROW: Kernel = Kernel::new("attention_any_32x8_webgpu_subgroup8", "attention", cost, prepare)
    .with_configs(CONFIGS)
    .with_reject(reject)
    .with_align(align)
    .with_numerics(|_| Numerics::F32.flushing_subnormals());

fn reject(candidate: &Candidate<'_>) -> Option<Reason> {
    let Op::Attention(op) = candidate.op else { return Some(Reason::new("runs attention")) };
    let is_vector = caps(candidate.info).is_some_and(|caps| {
        let lanes = LANES as u32;
        caps.software && subgroup(caps) == (lanes, lanes)
    });
    if !is_vector {
        return Some(Reason::lacking("needs an adapter that computes on the CPU, in vectors of 8"));
    }
    // conversions of other types are long, and there are hundreds of them
    let types = [op.q_dtype, op.kv_dtype, op.out_dtype];
    if types.iter().any(|dtype| ![DType::F32, DType::F16, DType::BF16].contains(dtype)) {
        return Some(Reason::new("runs f32, f16 and bf16"));
    }
    // so are the loops that exchange a part of a word
    if op.out_dtype != DType::F32 && candidate.alignment.of(out_of(op)) < WHOLE {
        return Some(Reason::new("needs results at a multiple of 16 bytes"));
    }
    refuse_fours(candidate, op)
}

fn cost(Candidate { op, .. }: &Candidate<'_>) -> f32 {
    1e-5 + op.bytes() as f32 / 20e9 + op.flops() as f32 / 50e9
}

/// Two loops over the fours of a head.
fn cut(head_dim: usize) -> (usize, usize) {
    let quads = head_dim / 4;
    // there is one: a four at a time
    let inner = (1..=UNROLLED.min(quads)).rev().find(|inner| quads.is_multiple_of(*inner)).unwrap_or(1);
    (quads / inner, inner)
}

/// Rows of an invocation: a power of two, no more than there are.
fn rows(op: &Attention, all: usize) -> usize {
    let is_plain = [op.q_dtype, op.kv_dtype, op.out_dtype] == [DType::F32; 3];
    let held = if is_plain { HELD } else { HELD / 2 };
    let most = (1 << (held / op.q.len).max(1).ilog2()).min(4);
    all.div_ceil(LANES).next_power_of_two().clamp(1, most)
}

/// `Params` of `attention/lanes.wgsl`.
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
    let mut builder = Builder::new(request, "attention_lanes_webgpu")?;
    let all = longest(op) * (op.q.inner / op.kv.kv_heads);
    let rows = rows(op, all);
    let (outer, inner) = cut(op.q.len);
    let variant = Variant::of(quad_bindings(op, request.alignment))
        .uint("OUTER", outer)
        .uint("INNER", inner)
        .uint("R", rows)
        .flag("CAPPED", op.soft_cap.is_some());
    let (tiles, units) = (all.div_ceil(LANES * rows), op.batch * op.kv.kv_heads);
    let groups = if is_empty(op) { 0 } else { tiles * units };
    let params = Params { op: op.into(), tiles: tiles as u32, units: units as u32, unused: [0; 2] };
    builder.step(
        (&wgsl::ATTENTION_LANES, HEADERS, "attention"),
        (&variant, Checks::None),
        Dims::line(groups as u64, 1)?,
        &params,
        places(op),
    )?;
    Ok(builder.finish())
}
