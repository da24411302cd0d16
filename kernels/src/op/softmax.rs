//! Softmax over vectors, and the weights that routing and sampling share with it.

use super::check::{
    FLUSHED, ensure, ensure_disjoint, ensure_extent, ensure_float, ensure_like, product, rows_bytes,
};
use super::key::Key;
use super::{Operand, Spec, Values};
use crate::buffer::Access;
use crate::dtype::DType;
use crate::error::Result;
use crate::layout::Rows;

const NAME: &str = "softmax";

/// `out = exp(scale x - max) / sum(exp(scale x - max))` over each vector, where `max` is the largest of `scale x`.
///
/// Operands: `x`, `out`. Dtypes: floats. NaN and a largest value that is infinite make the vector NaN. Vectors of no elements are
/// refused.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Softmax {
    /// The vectors.
    pub x: Rows,
    /// Their element type.
    pub dtype: DType,
    /// Where the result lies.
    pub out: Rows,
    /// Its element type.
    pub out_dtype: DType,
    /// Factor of the input.
    pub scale: f32,
}

impl Softmax {
    /// `rows` dense vectors of `len` elements of one type, not scaled.
    pub fn dense(rows: usize, len: usize, dtype: DType) -> Self {
        let rows = Rows::dense(rows, len);
        Softmax { x: rows, dtype, out: rows, out_dtype: dtype, scale: 1.0 }
    }
}

/// Softmax of `scores` and, for each weight, its magnitude: an error of a score is an equal relative error of its weight.
pub(super) fn weights(scores: &[f64]) -> Vec<(f64, f64)> {
    // f64::max ignores NaN, which then reaches the result through exp
    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exps: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
    let sum: f64 = exps.iter().sum();
    // of a weight that is 0 because its score is -inf nothing can be wrong
    let size = |s: f64, p: f64| if p == 0.0 { 0.0 } else { p * (s.abs() + top.abs()) };
    let shared: f64 = scores.iter().zip(&exps).map(|(&s, e)| size(s, e / sum)).sum();
    let weight = |(&s, e): (&f64, &f64)| {
        let p = e / sum;
        (p, size(s, p) + p * (1.0 + shared) + FLUSHED)
    };
    scores.iter().zip(&exps).map(weight).collect()
}

impl Spec for Softmax {
    fn name(&self) -> &'static str {
        NAME
    }

    fn validate(&self) -> Result<()> {
        ensure_float(NAME, "dtype of x", self.dtype)?;
        ensure_float(NAME, "dtype of out", self.out_dtype)?;
        ensure(self.x.len > 0, NAME, "len of x", 0, "at least 1")?;
        ensure(self.scale.is_finite(), NAME, "scale", self.scale, "a finite number")?;
        ensure_extent(NAME, "x", self.x)?;
        ensure_like(NAME, "shape of out", self.out, self.x)?;
        ensure_disjoint(NAME, "strides of out", self.out)
    }

    fn operands(&self) -> Vec<Operand> {
        vec![
            Operand::data("x", self.dtype, self.x.extent(), Access::Read),
            Operand::data("out", self.out_dtype, self.out.extent(), Access::Write),
        ]
    }

    fn dtypes(&self) -> Vec<DType> {
        vec![self.dtype, self.out_dtype]
    }

    fn shape(&self) -> Vec<(&'static str, usize)> {
        vec![("rows", self.x.count().unwrap_or(usize::MAX)), ("len", self.x.len)]
    }

    fn tuning_key(&self) -> String {
        Key::new(self).rows("x", &self.x).rows("out", &self.out).flag("scaled", self.scale != 1.0).finish()
    }

    fn flops(&self) -> u64 {
        product(&[5, self.x.outer, self.x.inner, self.x.len])
    }

    fn bytes(&self) -> u64 {
        rows_bytes(self.dtype, self.x).saturating_add(rows_bytes(self.out_dtype, self.out))
    }

    fn reduction(&self) -> usize {
        self.x.len
    }

    fn reference(&self, args: &mut [Values]) {
        let [x, out] = args else { return };
        let scale = f64::from(self.scale);
        for o in 0..self.x.outer {
            for i in 0..self.x.inner {
                let from = self.x.start(o, i);
                let scores: Vec<f64> = x.value[from..from + self.x.len].iter().map(|v| v * scale).collect();
                for (d, (p, magnitude)) in weights(&scores).into_iter().enumerate() {
                    out.set(self.out.start(o, i) + d, p, magnitude);
                }
            }
        }
    }
}
