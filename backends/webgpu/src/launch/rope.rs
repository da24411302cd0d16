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
use std::f64::consts::TAU;

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

/// By how many 2^-64 turns a token moves each pair.
pub(super) fn turns(op: &Rope) -> Vec<u64> {
    let fraction = |f: f64| (f / TAU).rem_euclid(1.0);
    op.inverse_frequencies().into_iter().map(|f| (fraction(f) * 2f64.powi(64)) as u64).collect()
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
    let table = builder.table(&turns(op))?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_exact_for_large_positions() {
        let op = Rope::dense(1, 1, 128, DType::F32, 500_000.0);
        for (turn, frequency) in turns(&op).into_iter().zip(op.inverse_frequencies()) {
            for position in [-7i64, 0, 1, 100_000, 1 << 30] {
                let got = (position as u64).wrapping_mul(turn) as f64 / 2f64.powi(64);
                let want = (position as f64 * frequency / TAU).rem_euclid(1.0);
                let apart = (got - want).abs();
                assert!(apart.min(1.0 - apart) < 1e-6, "{position} {frequency}: {got} {want}");
            }
        }
    }
}
