//! Attention of every form: `shaders/wgsl/attention/rows.wgsl`.

use super::{AttentionParam, is_empty, longest, op_of, places, refuse_sizes, slot_bindings, slowness};
use crate::launch::limits::refuse_workgroup;
use crate::launch::rows::refuse;
use crate::launch::{Builder, Dims};
use crate::pipeline::Checks;
use crate::shader::{Binding, Variant};
use bytemuck::{Pod, Zeroable};
use perjoule_kernels::op::{Attention, Op};
use perjoule_kernels::{Candidate, Config, Kernel, Launch, Numerics, Reason, Request, Result};
use perjoule_shaders::{Source, wgsl};

static CONFIGS: &[Config] = &[Config::tile("1x64", &[1, 64, 64])];

const HEADERS: &[&Source] =
    &[&wgsl::ELEMENT, &wgsl::LAYOUT, &wgsl::MATH, &wgsl::SLOTS, &wgsl::ATTENTION_SLOTS];

/// The row for everything.
pub(crate) const ROW: Kernel = Kernel::new("attention_any_1_webgpu_any", "attention", cost, prepare)
    .with_configs(CONFIGS)
    .with_reject(reject)
    .with_numerics(|_| Numerics::F32.flushing_subnormals());

fn reject(candidate: &Candidate<'_>) -> Option<Reason> {
    let Op::Attention(op) = candidate.op else { return Some(Reason::new("runs attention")) };
    refuse_sizes(op).or_else(|| refuse(candidate)).or_else(|| refuse_workgroup(candidate, 64, 512))
}

fn cost(candidate: &Candidate<'_>) -> f32 {
    let op = candidate.op;
    2e-5 + op.bytes() as f32 / 50e9 + slowness(candidate) * op.flops() as f32 / 0.3e12
}

/// `Params` of `attention/rows.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    op: AttentionParam,
    items: u32,
    units: u32,
    unused: [u32; 2],
}

/// Workgroups for each sequence and head: about as many in all as there are rows.
fn items(op: &Attention) -> usize {
    let longest = longest(op).max(1);
    if op.ragged { (2 * op.q.outer).div_ceil(op.batch.max(1)).clamp(1, longest) } else { longest }
}

fn prepare(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let op = op_of(request)?;
    let mut builder = Builder::new(request, "attention_any_webgpu")?;
    let mut bindings =
        vec![Binding::get("q", op.q_dtype), Binding::get("k", op.kv_dtype), Binding::get("v", op.kv_dtype)];
    bindings.extend(slot_bindings(op));
    bindings.push(Binding::set("out", op.out_dtype));
    let variant = Variant::of(bindings);
    let (items, units) = (items(op), op.batch * op.q.inner);
    let groups = if is_empty(op) { 0 } else { items * units };
    let params = Params { op: op.into(), items: items as u32, units: units as u32, unused: [0; 2] };
    builder.step(
        (&wgsl::ATTENTION_ROWS, HEADERS, "attention"),
        (&variant, Checks::None),
        Dims::line(groups as u64, 1)?,
        &params,
        places(op),
    )?;
    Ok(builder.finish())
}
