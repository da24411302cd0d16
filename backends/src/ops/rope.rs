//! Rotary position embedding.

use super::{as_heads, expect_count, expect_dtype, run};
use crate::tensor::Tensor;
use perjoule_kernels::op::{Rope, RopeScaling, RopeStyle};
use perjoule_kernels::{DType, Result, Rows};

/// How queries and keys are rotated. A plain `theta` (f64) is one, with the rest as [`RopeOptions::new`] has it.
#[derive(Clone, Copy, PartialEq, Debug)]
#[must_use]
pub struct RopeOptions {
    theta: f64,
    style: RopeStyle,
    rotary_dim: Option<usize>,
    scaling: RopeScaling,
}

impl RopeOptions {
    /// Whole heads, their halves paired as in checkpoints of Hugging Face, with wavelengths of base `theta` (above 1), not scaled.
    pub fn new(theta: f64) -> Self {
        RopeOptions { theta, style: RopeStyle::HalfSplit, rotary_dim: None, scaling: RopeScaling::None }
    }

    /// Which elements form pairs.
    pub fn style(mut self, style: RopeStyle) -> Self {
        self.style = style;
        self
    }

    /// Rotates only the leading elements of each head: an even number, at most `head_dim`.
    pub fn rotary_dim(mut self, elements: usize) -> Self {
        self.rotary_dim = Some(elements);
        self
    }

    /// Scaling for longer contexts: linear, Llama 3 or YaRN.
    pub fn scaling(mut self, scaling: RopeScaling) -> Self {
        self.scaling = scaling;
        self
    }

    pub(super) fn op(&self, x: Rows, dtype: DType) -> Rope {
        let RopeOptions { theta, style, rotary_dim, scaling } = *self;
        Rope { x, dtype, rotary_dim: rotary_dim.unwrap_or(x.len), style, theta, scaling }
    }
}

impl From<f64> for RopeOptions {
    fn from(theta: f64) -> Self {
        RopeOptions::new(theta)
    }
}

/// Rotates `x` (a float type, `[.., tokens, heads, head_dim]`, leading dimensions and tokens in one) in place by `positions` (i32, one
/// a token).
///
/// ```
/// use perjoule::{Tensor, ops};
/// use perjoule::ops::{RopeOptions, RopeScaling, RopeStyle};
///
/// # fn main() -> perjoule::Result<()> {
/// let cpu = perjoule::open("cpu")?;
/// let q = Tensor::from_slice(&cpu, &[1.0f32; 2 * 4 * 64], [2, 4, 64])?; // 2 tokens of 4 heads
/// let positions = Tensor::from_slice(&cpu, &[0, 1], [2])?;
/// ops::rope(&q, &positions, 10_000.0)?;
///
/// let llama3 = RopeScaling::Llama3 {
///     factor: 8.0,
///     low_freq_factor: 1.0,
///     high_freq_factor: 4.0,
///     original_max: 8192,
/// };
/// ops::rope(&q, &positions, RopeOptions::new(500_000.0).scaling(llama3))?;
/// ops::rope(&q, &positions, RopeOptions::new(10_000.0).rotary_dim(16).style(RopeStyle::Interleaved))?;
/// # Ok(())
/// # }
/// ```
pub fn rope(x: &Tensor, positions: &Tensor, options: impl Into<RopeOptions>) -> Result<()> {
    let rows = as_heads("rope", "x", x)?;
    expect_positions("rope", positions, rows.outer)?;
    run(options.into().op(rows, x.dtype()), &[positions, x])
}

pub(super) fn expect_positions(op: &'static str, positions: &Tensor, tokens: usize) -> Result<()> {
    expect_dtype(op, "positions", positions, DType::I32)?;
    expect_count(op, "positions", positions, tokens)
}
