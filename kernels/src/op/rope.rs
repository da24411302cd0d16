//! Rotary position embedding (arXiv:2104.09864) and its scalings for longer contexts.

use super::check::{ensure, ensure_countable, ensure_disjoint, ensure_float, product, rows_bytes};
use super::key::Key;
use super::{Operand, Spec, Values};
use crate::buffer::Access;
use crate::dtype::DType;
use crate::error::Result;
use crate::layout::Rows;
use std::f64::consts::{PI, TAU};

const NAME: &str = "rope";

/// Which elements form the pairs that are rotated.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum RopeStyle {
    /// `i` and `i + rotary_dim / 2`, as checkpoints of Hugging Face have it.
    HalfSplit,
    /// `2 i` and `2 i + 1`, as in the paper.
    Interleaved,
}

/// How the frequencies are changed for contexts longer than those seen in training. Parameters have their names in `config.json`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum RopeScaling {
    /// Frequencies as in the paper.
    None,
    /// All divided by `factor` (arXiv:2306.15595).
    Linear {
        /// Ratio of the contexts.
        factor: f64,
    },
    /// Llama 3.1: long wavelengths divided by `factor`, short ones kept, a ramp between.
    Llama3 {
        /// Ratio of the contexts.
        factor: f64,
        /// Wavelengths above `original_max / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original_max / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context seen in training (`original_max_position_embeddings`), in tokens.
        original_max: usize,
    },
    /// YaRN (arXiv:2309.00071): divided where a dimension turns less than `beta_slow` times in the original context, kept where it
    /// turns more than `beta_fast` times, a ramp between.
    Yarn {
        /// Ratio of the contexts.
        factor: f64,
        /// Mostly 32.
        beta_fast: f64,
        /// Mostly 1.
        beta_slow: f64,
        /// Context seen in training (`original_max_position_embeddings`), in tokens.
        original_max: usize,
        /// Whether the ends of the ramp are rounded to whole dimensions; true unless the config says otherwise.
        truncate: bool,
        /// Factor of cosine and sine: as configured, or [`RopeScaling::yarn_attention_factor`].
        attention_factor: f32,
    },
}

impl RopeScaling {
    /// The attention factor that YaRN recommends: `0.1 ln(factor) + 1`, and 1 for factors up to 1.
    pub fn yarn_attention_factor(factor: f64) -> f32 {
        if factor <= 1.0 { 1.0 } else { (0.1 * factor.ln() + 1.0) as f32 }
    }
}

/// Rotates pairs of elements of each vector by `position * inverse_frequency[pair]`, in place.
///
/// Operands: `positions` (slot `[x.outer]`), `x`, read and written.
///
/// Elements from `rotary_dim` on stay as they are. Cosine and sine are multiplied by [`attention_factor`](Rope::attention_factor).
/// Dtypes: floats. The magnitudes of the reference allow for angles that were rounded once to the row's precision.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Rope {
    /// Outer = tokens, inner = heads, len = head_dim.
    pub x: Rows,
    /// Element type.
    pub dtype: DType,
    /// Leading elements that are rotated: even, at most `x.len`.
    pub rotary_dim: usize,
    /// Pairs.
    pub style: RopeStyle,
    /// Base of the wavelengths, above 1.
    pub theta: f64,
    /// Scaling of the frequencies.
    pub scaling: RopeScaling,
}

impl Rope {
    /// Dense half-split rotation of whole heads without scaling.
    pub fn dense(tokens: usize, heads: usize, head_dim: usize, dtype: DType, theta: f64) -> Self {
        Rope {
            x: Rows::grid(tokens, heads, head_dim),
            dtype,
            rotary_dim: head_dim,
            style: RopeStyle::HalfSplit,
            theta,
            scaling: RopeScaling::None,
        }
    }

    /// By how many 2^-64 turns a token moves each pair: [`Rope::inverse_frequencies`] without whole turns. A position times one of them
    /// overflows by whole turns, so that kernels whose sines are inexact for large angles reduce them exactly, in integers.
    pub fn turns(&self) -> Vec<u64> {
        let fraction = |f: f64| (f / TAU).rem_euclid(1.0);
        self.inverse_frequencies().into_iter().map(|f| (fraction(f) * 2f64.powi(64)) as u64).collect()
    }

    /// Radians a token for each of the `rotary_dim / 2` pairs. Hugging Face transformers computes the same in f32.
    pub fn inverse_frequencies(&self) -> Vec<f64> {
        let dim = self.rotary_dim as f64;
        let plain = (0..self.rotary_dim / 2).map(|i| self.theta.powf(-(2.0 * i as f64) / dim));
        match self.scaling {
            RopeScaling::None => plain.collect(),
            RopeScaling::Linear { factor } => plain.map(|f| f / factor).collect(),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max } => {
                let context = original_max as f64;
                let scale = |f: f64| {
                    let wavelength = 2.0 * PI / f;
                    if wavelength > context / low_freq_factor {
                        f / factor
                    } else if wavelength < context / high_freq_factor {
                        f
                    } else {
                        let smooth =
                            (context / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                        (1.0 - smooth) * f / factor + smooth * f
                    }
                };
                plain.map(scale).collect()
            }
            RopeScaling::Yarn { factor, beta_fast, beta_slow, original_max, truncate, .. } => {
                // the dimension that turns so many times within the original context
                let dimension = |turns: f64| {
                    dim * (original_max as f64 / (turns * 2.0 * PI)).ln() / (2.0 * self.theta.ln())
                };
                let (mut low, mut high) = (dimension(beta_fast), dimension(beta_slow));
                if truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                let (low, mut high) = (low.max(0.0), high.min(dim - 1.0));
                if low == high {
                    high += 0.001;
                }
                let ramp = |i: usize| ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                plain.enumerate().map(|(i, f)| f / factor * ramp(i) + f * (1.0 - ramp(i))).collect()
            }
        }
    }

    /// Whether the pairs of both turn by the same angles, wherever they lie.
    pub fn turns_like(&self, other: &Rope) -> bool {
        let Rope { x, dtype, style, .. } = *self;
        *self == Rope { x, dtype, style, ..*other }
    }

    /// Factor of cosine and sine: 1 but for YaRN.
    pub fn attention_factor(&self) -> f64 {
        match self.scaling {
            RopeScaling::Yarn { attention_factor, .. } => f64::from(attention_factor),
            _ => 1.0,
        }
    }

    /// Indices of the two elements of pair `i`.
    pub fn pair(&self, i: usize) -> (usize, usize) {
        match self.style {
            RopeStyle::HalfSplit => (i, i + self.rotary_dim / 2),
            RopeStyle::Interleaved => (2 * i, 2 * i + 1),
        }
    }

    /// Rotates one vector, and carries the magnitudes of its elements along.
    pub(super) fn rotate(
        &self,
        frequencies: &[f64],
        position: i64,
        value: &mut [f64],
        magnitude: &mut [f64],
    ) {
        let factor = self.attention_factor();
        for (i, frequency) in frequencies.iter().enumerate() {
            let angle = position as f64 * frequency;
            let (sin, cos) = angle.sin_cos();
            let (first, second) = self.pair(i);
            let (x, y) = (value[first], value[second]);
            let (p, q) = (magnitude[first], magnitude[second]);
            value[first] = factor * (x * cos - y * sin);
            value[second] = factor * (x * sin + y * cos);
            // an error of the angle moves each element by the other one
            let angle = angle.abs();
            magnitude[first] =
                factor.abs() * (p * cos.abs() + q * sin.abs() + angle * (p * sin.abs() + q * cos.abs()));
            magnitude[second] =
                factor.abs() * (p * sin.abs() + q * cos.abs() + angle * (p * cos.abs() + q * sin.abs()));
        }
    }
}

impl Spec for Rope {
    fn name(&self) -> &'static str {
        NAME
    }

    fn validate(&self) -> Result<()> {
        ensure_float(NAME, "dtype", self.dtype)?;
        ensure_disjoint(NAME, "strides of x", self.x)?;
        ensure_countable(NAME, "tokens", Some(self.x.outer))?;
        let dim = self.rotary_dim;
        ensure(
            dim.is_multiple_of(2) && dim <= self.x.len,
            NAME,
            "rotary_dim",
            dim,
            "even and at most the head's length",
        )?;
        ensure(
            self.theta.is_finite() && self.theta > 1.0,
            NAME,
            "theta",
            self.theta,
            "a finite number above 1",
        )?;
        let positive = |field: &'static str, value: f64| {
            ensure(value.is_finite() && value > 0.0, NAME, field, value, "a finite number above 0")
        };
        match self.scaling {
            RopeScaling::None => {}
            RopeScaling::Linear { factor } => positive("factor", factor)?,
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max } => {
                positive("factor", factor)?;
                positive("low_freq_factor", low_freq_factor)?;
                positive("high_freq_factor", high_freq_factor)?;
                positive("original_max", original_max as f64)?;
                let apart = high_freq_factor > low_freq_factor;
                ensure(apart, NAME, "high_freq_factor", high_freq_factor, "above low_freq_factor")?;
            }
            RopeScaling::Yarn { factor, beta_fast, beta_slow, original_max, attention_factor, .. } => {
                positive("factor", factor)?;
                positive("beta_fast", beta_fast)?;
                positive("beta_slow", beta_slow)?;
                positive("original_max", original_max as f64)?;
                positive("attention_factor", f64::from(attention_factor))?;
                ensure(beta_fast >= beta_slow, NAME, "beta_fast", beta_fast, "at least beta_slow")?;
            }
        }
        Ok(())
    }

    fn operands(&self) -> Vec<Operand> {
        vec![
            Operand::slot("positions", Some(self.x.outer), Access::Read),
            Operand::data("x", self.dtype, self.x.extent(), Access::ReadWrite),
        ]
    }

    fn dtypes(&self) -> Vec<DType> {
        vec![self.dtype]
    }

    fn shape(&self) -> Vec<(&'static str, usize)> {
        vec![("tokens", self.x.outer), ("h", self.x.inner), ("d", self.x.len), ("rotary", self.rotary_dim)]
    }

    fn tuning_key(&self) -> String {
        Key::new(self).rows("x", &self.x).kind(&self.style).kind(&self.scaling).finish()
    }

    fn flops(&self) -> u64 {
        product(&[3, self.x.outer, self.x.inner, self.rotary_dim])
    }

    fn bytes(&self) -> u64 {
        let rotated = Rows { len: self.rotary_dim, ..self.x };
        rows_bytes(self.dtype, rotated).saturating_mul(2).saturating_add(product(&[4, self.x.outer]))
    }

    fn reference(&self, args: &mut [Values]) {
        let [positions, x] = args else { return };
        let frequencies = self.inverse_frequencies();
        for token in 0..self.x.outer {
            for head in 0..self.x.inner {
                let start = self.x.start(token, head);
                let mut value = x.value[start..start + self.x.len].to_vec();
                let mut magnitude: Vec<f64> = value.iter().map(|v| v.abs()).collect();
                self.rotate(&frequencies, positions.index(token), &mut value, &mut magnitude);
                for d in 0..self.rotary_dim {
                    x.set(start + d, value[d], magnitude[d]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_exact_for_large_positions() {
        let op = Rope::dense(1, 1, 128, DType::F32, 500_000.0);
        for (turn, frequency) in op.turns().into_iter().zip(op.inverse_frequencies()) {
            for position in [-7i64, 0, 1, 100_000, 1 << 30] {
                let got = (position as u64).wrapping_mul(turn) as f64 / 2f64.powi(64);
                let want = (position as f64 * frequency / TAU).rem_euclid(1.0);
                let apart = (got - want).abs();
                assert!(apart.min(1.0 - apart) < 1e-6, "{position} {frequency}: {got} {want}");
            }
        }
    }
}
