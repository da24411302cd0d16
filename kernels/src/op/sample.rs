//! Choosing a token: greedily, or at random among the likely ones (top-k; top-p, arXiv:1904.09751).

use super::check::{ensure, ensure_countable, ensure_extent, ensure_float, product, rows_bytes};
use super::key::Key;
use super::{Operand, Spec, Values};
use crate::buffer::Access;
use crate::dtype::DType;
use crate::error::Result;
use crate::layout::Rows;
use std::cmp::Ordering;

const ARGMAX: &str = "argmax";
const SAMPLE: &str = "sample";

/// Indices of `values`, largest value first; NaN counts as larger than every number, and ties pick the lowest index.
pub(super) fn descending(values: &[f64]) -> Vec<usize> {
    let mut indices: Vec<usize> = (0..values.len()).collect();
    indices.sort_by(|&a, &b| {
        let (x, y) = (values[a], values[b]);
        y.partial_cmp(&x).unwrap_or_else(|| match (x.is_nan(), y.is_nan()) {
            (true, false) => Ordering::Less,
            (false, true) => Ordering::Greater,
            _ => Ordering::Equal,
        })
    });
    indices
}

fn check_rows(op: &'static str, x: Rows, dtype: DType) -> Result<()> {
    ensure_float(op, "dtype", dtype)?;
    ensure(x.len > 0, op, "len of x", 0, "at least 1")?;
    ensure_countable(op, "len of x", Some(x.len))?;
    ensure_extent(op, "x", x)
}

/// Index of the largest element of each vector.
///
/// Operands: `x` (a float type), `ids` (slot, one for each vector, inner index first, written). NaN counts as larger than every
/// number; ties pick the lowest index. Vectors of no elements are refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Argmax {
    /// The vectors.
    pub x: Rows,
    /// Their element type.
    pub dtype: DType,
}

impl Spec for Argmax {
    fn name(&self) -> &'static str {
        ARGMAX
    }

    fn validate(&self) -> Result<()> {
        check_rows(ARGMAX, self.x, self.dtype)
    }

    fn operands(&self) -> Vec<Operand> {
        vec![
            Operand::data("x", self.dtype, self.x.extent(), Access::Read),
            Operand::slot("ids", self.x.count(), Access::Write),
        ]
    }

    fn dtypes(&self) -> Vec<DType> {
        vec![self.dtype]
    }

    fn shape(&self) -> Vec<(&'static str, usize)> {
        vec![("rows", self.x.count().unwrap_or(usize::MAX)), ("len", self.x.len)]
    }

    fn tuning_key(&self) -> String {
        Key::new(self).rows("x", &self.x).finish()
    }

    fn flops(&self) -> u64 {
        product(&[self.x.outer, self.x.inner, self.x.len])
    }

    fn bytes(&self) -> u64 {
        rows_bytes(self.dtype, self.x).saturating_add(product(&[4, self.x.outer, self.x.inner]))
    }

    fn reference(&self, args: &mut [Values]) {
        let [x, ids] = args else { return };
        for row in 0..self.x.outer * self.x.inner {
            let from = self.x.start_of(row);
            ids.set(row, descending(&x.value[from..from + self.x.len])[0] as f64, 0.0);
        }
    }
}

/// A token for each vector of logits, drawn with a number that the caller supplies.
///
/// Operands: `x` (a float type), `uniform` (f32, one for each vector, in `[0, 1)`), `ids` (slot, one for each vector, inner index
/// first, written).
///
/// Candidates are ordered by logit, largest first, ties by lowest index. The first `top_k` stay; their weights are the softmax of
/// `logit / temperature`; of these the shortest prefix whose weights sum to at least `top_p` stays; the first candidate at which
/// the cumulated weight, as a share of what stays, exceeds `uniform` is taken. A largest logit that is NaN or infinite is taken
/// at once. A kernel that rounds may pick the neighbour where `uniform` falls on the border of two candidates: see
/// [`Sample::candidates`].
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Sample {
    /// The vectors.
    pub x: Rows,
    /// Their element type.
    pub dtype: DType,
    /// Divides the logits, above 0; [`Argmax`] stands for 0.
    pub temperature: f32,
    /// Most candidates, at least 1.
    pub top_k: Option<usize>,
    /// Mass that the candidates cover, above 0 and up to 1.
    pub top_p: Option<f32>,
}

impl Sample {
    /// The candidates that stay, in order, each with its probability.
    pub fn candidates(&self, logits: &[f64]) -> Vec<(usize, f64)> {
        let mut order = descending(logits);
        order.truncate(self.top_k.unwrap_or(usize::MAX));
        let Some(top) = order.first().map(|&i| logits[i]) else { return Vec::new() };
        if !top.is_finite() {
            return vec![(order[0], 1.0)];
        }
        let weight = |&i: &usize| ((logits[i] - top) / f64::from(self.temperature)).exp();
        let weights: Vec<f64> = order.iter().map(weight).collect();
        let sum: f64 = weights.iter().sum();
        let enough = self.top_p.map_or(f64::INFINITY, f64::from) * sum;
        let mut mass = 0.0;
        let mut kept = 0;
        while kept < order.len() && (kept == 0 || mass < enough) {
            mass += weights[kept];
            kept += 1;
        }
        order.into_iter().zip(weights).take(kept).map(|(i, w)| (i, w / mass)).collect()
    }

    /// The candidate that `uniform` picks.
    pub fn pick(candidates: &[(usize, f64)], uniform: f64) -> Option<usize> {
        let mut mass = 0.0;
        let found = candidates.iter().find(|(_, p)| {
            mass += p;
            mass > uniform
        });
        // rounding may leave the total below a uniform close to 1
        found.or(candidates.last()).map(|&(index, _)| index)
    }
}

impl Spec for Sample {
    fn name(&self) -> &'static str {
        SAMPLE
    }

    fn validate(&self) -> Result<()> {
        check_rows(SAMPLE, self.x, self.dtype)?;
        ensure(
            self.temperature.is_finite() && self.temperature > 0.0,
            SAMPLE,
            "temperature",
            self.temperature,
            "a finite number above 0; use argmax for 0",
        )?;
        ensure(self.top_k != Some(0), SAMPLE, "top_k", 0, "at least 1, or none")?;
        let top_p = self.top_p.unwrap_or(1.0);
        ensure(top_p > 0.0 && top_p <= 1.0, SAMPLE, "top_p", top_p, "above 0 and at most 1, or none")
    }

    fn operands(&self) -> Vec<Operand> {
        vec![
            Operand::data("x", self.dtype, self.x.extent(), Access::Read),
            Operand::data("uniform", DType::F32, self.x.count(), Access::Read),
            Operand::slot("ids", self.x.count(), Access::Write),
        ]
    }

    fn dtypes(&self) -> Vec<DType> {
        vec![self.dtype]
    }

    fn shape(&self) -> Vec<(&'static str, usize)> {
        vec![("rows", self.x.count().unwrap_or(usize::MAX)), ("len", self.x.len)]
    }

    fn tuning_key(&self) -> String {
        let key = Key::new(self).rows("x", &self.x).flag("greedy", self.temperature == 0.0);
        let key = self.top_k.into_iter().fold(key, |key, k| key.varying("top_k", k));
        key.flag("top_p", self.top_p.is_some()).finish()
    }

    fn flops(&self) -> u64 {
        product(&[5, self.x.outer, self.x.inner, self.x.len])
    }

    fn bytes(&self) -> u64 {
        rows_bytes(self.dtype, self.x).saturating_add(product(&[8, self.x.outer, self.x.inner]))
    }

    fn reduction(&self) -> usize {
        self.x.len
    }

    fn reference(&self, args: &mut [Values]) {
        let [x, uniform, ids] = args else { return };
        for row in 0..self.x.outer * self.x.inner {
            let from = self.x.start_of(row);
            let candidates = self.candidates(&x.value[from..from + self.x.len]);
            if let Some(id) = Sample::pick(&candidates, uniform.value[row]) {
                ids.set(row, id as f64, 0.0);
            }
        }
    }
}
