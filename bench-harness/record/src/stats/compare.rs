//! The verdict on two variants: from samples of each by itself, or from samples taken in turn.

use super::{
    RESAMPLES, Resampler, bootstrap_median_ci95_in_order, central_95, mann_whitney, median, middle,
    quantile_of_sorted, sorted, wilcoxon,
};
use crate::Interval;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// What two sets of times say about each other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    /// Median of the new times over the median of the old (of pairs: median of the ratios within them): below 1 is faster.
    pub ratio: f64,
    /// 95 % interval of `ratio` by bootstrap.
    pub ci95: Interval,
    /// Of the Mann-Whitney test (of pairs: the Wilcoxon signed-rank test of their logarithms), two-sided. It stands beside the verdict and does not decide it: with enough samples
    /// it finds differences too small to matter.
    pub p_value: f64,
    /// The answer.
    pub verdict: Verdict,
}

/// The answer to "is the new variant faster?".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The interval lies below 1 and reaches beyond the threshold.
    Faster,
    /// The interval lies above 1 and reaches beyond the threshold.
    Slower,
    /// The whole interval is within the threshold around 1: any difference is too small to matter.
    Same,
    /// The interval holds 1 and reaches beyond the threshold: more samples are needed.
    Unclear,
}

impl Verdict {
    /// The verdict of an interval of the ratio new over old. `threshold` is the relative difference that matters, such
    /// as 0.02.
    pub fn of(ci95: Interval, threshold: f64) -> Self {
        if ci95.lo >= 1.0 - threshold && ci95.hi <= 1.0 + threshold {
            Self::Same
        } else if ci95.hi < 1.0 {
            Self::Faster
        } else if ci95.lo > 1.0 {
            Self::Slower
        } else {
            Self::Unclear
        }
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Faster => "faster",
            Self::Slower => "slower",
            Self::Same => "same",
            Self::Unclear => "unclear",
        })
    }
}

/// Compares times: positive, in any unit, taken under the same conditions (best interleaved). `threshold` is the
/// relative difference that matters, at least 0; `seed` fixes the bootstrap.
///
/// `None` with fewer than two samples on a side, or samples that are not finite and positive, or a negative threshold.
pub fn compare(old: &[f64], new: &[f64], threshold: f64, seed: u64) -> Option<Comparison> {
    // checked first: ranks of many samples cost more than the look at them
    let usable = usable(old) && usable(new);
    Comparer::new(threshold, seed, usable.then_some((old.len(), new.len()))).compare(old, new)
}

fn usable(samples: &[f64]) -> bool {
    samples.len() >= 2 && samples.iter().all(|&x| x > 0.0 && x.is_finite())
}

/// Makes many comparisons, each with the result of [`compare`]: which ranks a bootstrap draws follows from the seed and
/// the number of samples, so they are drawn once for each number.
#[derive(Debug)]
pub struct Comparer {
    threshold: f64,
    seed: u64,
    /// By number of samples, for the old and for the new side.
    drawn: [BTreeMap<usize, Vec<[u32; 2]>>; 2],
}

impl Comparer {
    /// A comparer for the numbers of samples `(old, new)` in `sizes`; others can be compared too, at the cost of [`compare`].
    /// Takes O(samples) a resample for each different number, and 16 KB.
    pub fn new(threshold: f64, seed: u64, sizes: impl IntoIterator<Item = (usize, usize)>) -> Self {
        let mut comparer = Self { threshold, seed, drawn: Default::default() };
        for (old, new) in sizes {
            for (side, n) in [old, new].into_iter().enumerate().filter(|(_, n)| *n >= 2) {
                let seed = comparer.seed_of(side);
                comparer.drawn[side].entry(n).or_insert_with(|| draw(n, seed));
            }
        }
        comparer
    }

    /// Two streams of one seed, as far apart in their common cycle of 2^64 as chance has it.
    fn seed_of(&self, side: usize) -> u64 {
        if side == 0 { self.seed } else { !self.seed }
    }

    /// As [`compare`].
    pub fn compare(&self, old: &[f64], new: &[f64]) -> Option<Comparison> {
        if !usable(old) || !usable(new) || self.threshold.is_nan() || self.threshold < 0.0 {
            return None;
        }
        let p_value = mann_whitney(new, old)?.p_value;
        let (old, new) = (sorted(old)?, sorted(new)?);
        let ratio = quantile_of_sorted(&new, 0.5) / quantile_of_sorted(&old, 0.5);
        let ranks = |side: usize, n: usize| match self.drawn[side].get(&n) {
            Some(drawn) => Cow::Borrowed(drawn),
            None => Cow::Owned(draw(n, self.seed_of(side))),
        };
        let (of_old, of_new) = (ranks(0, old.len()), ranks(1, new.len()));
        let pairs = of_old.iter().zip(of_new.iter());
        let mut ratios: Vec<f64> = pairs.map(|(o, n)| middle(&new, *n) / middle(&old, *o)).collect();
        if !ratio.is_finite() || !ratios.iter().all(|ratio| ratio.is_finite()) {
            return None;
        }
        let ci95 = central_95(&mut ratios);
        Some(Comparison { ratio, ci95, p_value, verdict: Verdict::of(ci95, self.threshold) })
    }
}

/// The middle ranks of all resamples of `n` samples.
fn draw(n: usize, seed: u64) -> Vec<[u32; 2]> {
    let ranked = vec![0.0; n];
    let mut resampler = Resampler::new(&ranked, seed);
    (0..RESAMPLES).map(|_| resampler.ranks()).collect()
}

/// Compares times that were taken in turn: `old[i]` and `new[i]` stand beside each other in time, so that what slows the machine for a
/// while slows both and drops out of their ratio; where it does not drop out entirely, the interval is that of samples which resemble their
/// neighbours. Otherwise as [`compare`]; `None` also when the numbers of samples differ.
pub fn compare_pairs(old: &[f64], new: &[f64], threshold: f64, seed: u64) -> Option<Comparison> {
    let positive = |samples: &[f64]| samples.iter().all(|&x| x > 0.0);
    if old.len() != new.len() || !positive(old) || !positive(new) || threshold.is_nan() || threshold < 0.0 {
        return None;
    }
    let ratios: Vec<f64> = new.iter().zip(old).map(|(new, old)| new / old).collect();
    let logarithms: Vec<f64> = ratios.iter().map(|ratio| ratio.ln()).collect();
    let ci95 = bootstrap_median_ci95_in_order(&ratios, seed)?;
    let p_value = wilcoxon(&logarithms)?.p_value;
    Some(Comparison { ratio: median(&ratios)?, ci95, p_value, verdict: Verdict::of(ci95, threshold) })
}
