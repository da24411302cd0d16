//! Rotary positions.

use super::rows::RowsParam;
use super::{Builder, Dims, Place, other_op};
use crate::pipeline::Checks;
use crate::shader::{Binding, Variant};
use bytemuck::{Pod, Zeroable};
use perjoule_kernels::op::{Op, Rope, RopeStyle};
use perjoule_kernels::{DType, Launch, Request, Result};
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

/// The rotation of everything.
pub(crate) fn prepare_any(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let Op::Rope(op) = request.op else { return Err(other_op(request.op)) };
    let mut builder = Builder::new(request, "rope_any_webgpu")?;
    let variant =
        Variant::of(vec![Binding::get("positions", DType::I32), TABLE, Binding::set("x", op.dtype)]);
    let params = RopeParams { x: op.x.into(), rotation: op.into() };
    let table = builder.table(&turns(op))?;
    builder.step(
        (&wgsl::ROPE_PAIRS, HEADERS, "rope"),
        (&variant, Checks::None),
        Dims::line((op.x.outer * op.x.inner * (op.rotary_dim / 2)) as u64, 256)?,
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
