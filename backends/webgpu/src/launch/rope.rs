//! Rotary positions.

use super::kv::in_fours;
use super::rows::{RowsParam, refuse};
use super::{Builder, Dims, Place, other_op};
use crate::pipeline::Checks;
use crate::shader::{Binding, Variant};
use bytemuck::{Pod, Zeroable};
use perjoule_kernels::op::{Op, Rope, RopeStyle};
use perjoule_kernels::{Candidate, DType, Launch, Reason, Request, Result, Rows};
use perjoule_shaders::{Source, wgsl};

const HEADERS: &[&Source] = &[&wgsl::ELEMENT, &wgsl::LAYOUT, &wgsl::TURNS];

/// `Rotation` of `common/turns.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct RotationParam {
    pairs: u32,
    interleaved: u32,
    factor: f32,
    unused: u32,
}

impl From<&Rope> for RotationParam {
    fn from(op: &Rope) -> Self {
        RotationParam {
            pairs: (op.rotary_dim / 2) as u32,
            interleaved: u32::from(op.style == RopeStyle::Interleaved),
            factor: op.attention_factor() as f32,
            unused: 0,
        }
    }
}

/// The table of a rotation as kernels bind it.
pub(super) const TABLE: Binding = Binding::words("table", "vec2<u32>");

/// `Params` of `rope/pairs.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct RopeParams {
    x: RowsParam,
    rotation: RotationParam,
}

/// Heads that share an invocation's angles: `HEADS` of `rope/quads.wgsl`.
const HEADS: usize = 4;

/// Why a rotation is not for four elements at a time.
pub(crate) fn refuse_quads(candidate: &Candidate<'_>) -> Option<Reason> {
    let Op::Rope(op) = candidate.op else { return Some(Reason::new("runs rotations")) };
    // elements behind those that are rotated need not be whole fours
    let fits = in_fours(Rows { len: op.rotary_dim / 2, ..op.x });
    let empty = op.x.elements() == Some(0);
    let refusal = (!fits || empty).then(|| {
        Reason::new("pairs, or vectors, do not begin at multiples of four elements, or there are none")
    });
    refusal.or_else(|| refuse(candidate))
}

/// Bytes to whose multiple the rotation by four elements needs an operand.
pub(crate) fn align_quads(_: &Candidate<'_>, operand: usize) -> u32 {
    if operand == 1 { 16 } else { 1 }
}

/// The rotation of everything.
pub(crate) fn prepare_any(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    prepare(request, "rope_any_webgpu", false)
}

/// The rotation by four elements.
pub(crate) fn prepare_quads(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    prepare(request, "rope_quads_webgpu", true)
}

fn prepare(request: &Request<'_>, name: &'static str, whole: bool) -> Result<Box<dyn Launch>> {
    let Op::Rope(op) = request.op else { return Err(other_op(request.op)) };
    let mut builder = Builder::new(request, name)?;
    let variant = Variant::of(vec![
        Binding::get("positions", DType::I32),
        TABLE,
        Binding::quads_mut("x", op.dtype, whole),
    ]);
    let params = RopeParams { x: op.x.into(), rotation: op.into() };
    let table = builder.table(&op.turns())?;
    let pairs = op.rotary_dim / 2;
    let (source, count, size) = match whole {
        true => (&wgsl::ROPE_QUADS, op.x.outer * op.x.inner.div_ceil(HEADS) * (pairs / 4), 64),
        false => (&wgsl::ROPE_PAIRS, op.x.outer * op.x.inner * pairs, 256),
    };
    builder.step(
        (source, HEADERS, "rope"),
        (&variant, Checks::None),
        Dims::line(count as u64, size)?,
        &params,
        vec![Place::Operand(0), Place::Table(table), Place::Operand(1)],
    )?;
    Ok(builder.finish())
}
