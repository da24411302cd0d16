//! Gated activations of feed-forward layers (arXiv:2002.05202).

use super::check::{
    FLUSHED, ensure, ensure_disjoint, ensure_extent, ensure_float, ensure_like, product, rows_bytes, total,
};
use super::key::Key;
use super::{Activation, Operand, Spec, Values};
use crate::buffer::Access;
use crate::dtype::DType;
use crate::error::Result;
use crate::layout::Rows;

const NAME: &str = "gated";

/// The function of gate and up.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum GatedKind {
    /// `silu(gate) * up`
    SwiGlu,
    /// `gelu(gate) * up`, by the error function
    GeGlu,
    /// `gelu(gate) * up`, by the tanh approximation
    GeGluTanh,
    /// `g sigmoid(alpha g) * (u + 1)`, where `g = min(gate, limit)` and `u` is `up` clamped to `-limit..=limit`
    GptOss {
        /// Factor within the sigmoid, above 0.
        alpha: f32,
        /// Clamp, above 0.
        limit: f32,
    },
}

/// An upper bound of the slopes of the activations, from which errors of the gate follow.
pub(super) const STEEPEST: f64 = 1.13;

impl GatedKind {
    /// The two factors of the result: the activated gate and the up side.
    pub fn factors(self, gate: f64, up: f64) -> (f64, f64) {
        match self {
            GatedKind::SwiGlu => (Activation::Silu.apply(gate), up),
            GatedKind::GeGlu => (Activation::Gelu.apply(gate), up),
            GatedKind::GeGluTanh => (Activation::GeluTanh.apply(gate), up),
            GatedKind::GptOss { alpha, limit } => {
                // comparisons that let NaN through
                let limit = f64::from(limit);
                let g = if gate > limit { limit } else { gate };
                (g / (1.0 + (-f64::from(alpha) * g).exp()), up.clamp(-limit, limit) + 1.0)
            }
        }
    }

    /// Sum of the absolute values of the terms behind one element. The exponential turns an error of its argument into an equal
    /// relative error; both forms of GELU cancel for negative gates.
    pub(super) fn magnitude(self, gate: f64, up: f64) -> f64 {
        let (activated, factor) = self.factors(gate, up);
        let flushed = (gate * factor).abs() * FLUSHED;
        let terms = match self {
            GatedKind::SwiGlu => (activated * factor).abs() * (1.0 + gate.abs()),
            GatedKind::GeGlu | GatedKind::GeGluTanh => {
                (gate * factor).abs() + (activated * factor).abs() * (1.0 + gate.abs())
            }
            GatedKind::GptOss { alpha, .. } => {
                activated.abs() * (up.abs() + 1.0) * (1.0 + (f64::from(alpha) * gate).abs())
            }
        };
        terms + flushed
    }
}

/// Element-wise product of an activated gate and the up projection.
///
/// Operands: `gate`, `up`, `out`. Gate and up may be halves of one buffer, or interleaved rows of it, by their strides. Dtypes:
/// floats.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Gated {
    /// Vectors of gates.
    pub gate: Rows,
    /// Vectors that they gate.
    pub up: Rows,
    /// Element type of both.
    pub dtype: DType,
    /// Where the result lies.
    pub out: Rows,
    /// Its element type.
    pub out_dtype: DType,
    /// The function.
    pub kind: GatedKind,
}

impl Gated {
    /// `rows` dense vectors of `len` elements, all of one type.
    pub fn dense(rows: usize, len: usize, dtype: DType, kind: GatedKind) -> Self {
        let rows = Rows::dense(rows, len);
        Gated { gate: rows, up: rows, dtype, out: rows, out_dtype: dtype, kind }
    }
}

impl Spec for Gated {
    fn name(&self) -> &'static str {
        NAME
    }

    fn validate(&self) -> Result<()> {
        ensure_float(NAME, "dtype", self.dtype)?;
        ensure_float(NAME, "dtype of out", self.out_dtype)?;
        ensure_extent(NAME, "gate", self.gate)?;
        ensure_extent(NAME, "up", self.up)?;
        ensure_like(NAME, "shape of up", self.up, self.gate)?;
        ensure_like(NAME, "shape of out", self.out, self.gate)?;
        ensure_disjoint(NAME, "strides of out", self.out)?;
        if let GatedKind::GptOss { alpha, limit } = self.kind {
            ensure(alpha.is_finite() && alpha > 0.0, NAME, "alpha", alpha, "a finite number above 0")?;
            ensure(limit.is_finite() && limit > 0.0, NAME, "limit", limit, "a finite number above 0")?;
        }
        Ok(())
    }

    fn operands(&self) -> Vec<Operand> {
        vec![
            Operand::data("gate", self.dtype, self.gate.extent(), Access::Read),
            Operand::data("up", self.dtype, self.up.extent(), Access::Read),
            Operand::data("out", self.out_dtype, self.out.extent(), Access::Write),
        ]
    }

    fn dtypes(&self) -> Vec<DType> {
        vec![self.dtype, self.out_dtype]
    }

    fn shape(&self) -> Vec<(&'static str, usize)> {
        vec![("rows", self.gate.count().unwrap_or(usize::MAX)), ("len", self.gate.len)]
    }

    fn tuning_key(&self) -> String {
        let key = Key::new(self).rows("gate", &self.gate).rows("up", &self.up).rows("out", &self.out);
        // the numbers of a variant are no work
        let kind = format!("{:?}", self.kind);
        key.word(kind.split([' ', '{']).next().unwrap_or_default()).finish()
    }

    fn flops(&self) -> u64 {
        let each = match self.kind {
            GatedKind::SwiGlu => 5,
            GatedKind::GeGlu | GatedKind::GeGluTanh | GatedKind::GptOss { .. } => 9,
        };
        product(&[each, self.gate.outer, self.gate.inner, self.gate.len])
    }

    fn bytes(&self) -> u64 {
        total(&[
            rows_bytes(self.dtype, self.gate),
            rows_bytes(self.dtype, self.up),
            rows_bytes(self.out_dtype, self.out),
        ])
    }

    fn reference(&self, args: &mut [Values]) {
        let [gates, ups, out] = args else { return };
        for o in 0..self.gate.outer {
            for i in 0..self.gate.inner {
                for d in 0..self.gate.len {
                    let gate = gates.value[self.gate.start(o, i) + d];
                    let up = ups.value[self.up.start(o, i) + d];
                    let (activated, factor) = self.kind.factors(gate, up);
                    out.set(self.out.start(o, i) + d, activated * factor, self.kind.magnitude(gate, up));
                }
            }
        }
    }
}
