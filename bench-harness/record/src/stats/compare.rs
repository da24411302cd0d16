//! The verdict on two variants: from samples of each by itself, or from samples taken in turn.

use super::dependence::inflation;
use super::mann_whitney::dependent_p_value;
use super::student::{Estimate, student_97_5};
use super::{
    FEW, RESAMPLES, Resampler, about, bootstrap_median_ci95_in_order, central_95, logarithms, median, middle,
    quantile_of_sorted, sorted, welch, wilcoxon,
};
use crate::Interval;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// A p-value above this is no difference.
const SIGNIFICANT: f64 = 0.05;

/// What two sets of times say about each other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    /// Median of the new times over the median of the old (of pairs: median of the ratios within them): below 1 is faster.
    pub ratio: f64,
    /// 95 % interval of `ratio`: by bootstrap, of fewer than six samples on a side Student's (of two sets Welch's) of the logarithms.
    pub ci95: Interval,
    /// Two-sided, of the Mann-Whitney test (of pairs the Wilcoxon signed-rank test of their logarithms), of fewer than six samples
    /// Student's or Welch's test of the logarithms. It takes away a verdict that the interval would give, and never gives one: with
    /// enough samples it finds differences too small to matter.
    pub p_value: f64,
    /// The answer.
    pub verdict: Verdict,
}

/// The answer to "is the new variant faster?".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The interval lies below 1 and reaches beyond the threshold, and the p-value is at most 0.05.
    Faster,
    /// The interval lies above 1 and reaches beyond the threshold, and the p-value is at most 0.05.
    Slower,
    /// The whole interval is within the threshold around 1: any difference is too small to matter.
    Same,
    /// The interval holds 1 and reaches beyond the threshold, or the p-value is above 0.05: more samples are needed.
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

    /// The same beside a p-value: above 0.05 nothing is faster or slower.
    pub fn with_p_value(self, p_value: f64) -> Self {
        match self {
            Self::Faster | Self::Slower if p_value.is_nan() || p_value > SIGNIFICANT => Self::Unclear,
            verdict => verdict,
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

/// Compares times: positive, in any unit, in the order in which they were taken, under the same conditions. `threshold` is the relative
/// difference that matters, at least 0; `seed` fixes the bootstrap.
///
/// Where neighbours resemble each other (seen from 20 samples on), the interval is as much wider as the samples are worth fewer, and the
/// p-value is as much larger. What changed between the two sets is in no interval.
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
            if old.min(new) < FEW {
                continue;
            }
            for (side, n) in [old, new].into_iter().enumerate() {
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
        let Judged { ratio, ci95, p_value } = if old.len().min(new.len()) < FEW {
            Judged {
                ratio: median(new)? / median(old)?,
                ..Judged::student(welch::difference(&logarithms(new), &logarithms(old))?)
            }
        } else {
            self.resampled(old, new)?
        };
        Comparison::of(ratio, ci95, p_value, self.threshold)
    }

    /// By bootstrap and ranks.
    fn resampled(&self, old: &[f64], new: &[f64]) -> Option<Judged> {
        let (of_old, of_new) = (inflation(old), inflation(new));
        let worth = (old.len() as f64 / of_old).min(new.len() as f64 / of_new);
        let p_value = dependent_p_value(new, old, [of_new, of_old])?;
        let (old, new) = (sorted(old)?, sorted(new)?);
        let ratio = quantile_of_sorted(&new, 0.5) / quantile_of_sorted(&old, 0.5);
        let ranks = |side: usize, n: usize| match self.drawn[side].get(&n) {
            Some(drawn) => Cow::Borrowed(drawn),
            None => Cow::Owned(draw(n, self.seed_of(side))),
        };
        let (old_ranks, new_ranks) = (ranks(0, old.len()), ranks(1, new.len()));
        let pairs = old_ranks.iter().zip(new_ranks.iter());
        let mut ratios: Vec<f64> = pairs.map(|(o, n)| middle(&new, *n) / middle(&old, *o)).collect();
        if !ratio.is_finite() || !ratios.iter().all(|ratio| ratio.is_finite()) {
            return None;
        }
        let mut ci95 = central_95(&mut ratios);
        if of_old.max(of_new) > 1.0 {
            let (old, new) = (relative_error(&old), relative_error(&new));
            let all = old * old + new * new;
            let share = if all > 0.0 { old * old / all } else { 0.5 };
            // how far the samples depend on each other is known only as well as from so many
            let known = student_97_5(worth - 1.0) / student_97_5(f64::INFINITY);
            let stretch = known * (share * of_old + (1.0 - share) * of_new).sqrt();
            let lo = about(ratio, stretch * (ratio / ci95.lo).ln().max(0.0)).lo;
            let hi = about(ratio, stretch * (ci95.hi / ratio).ln().max(0.0)).hi;
            ci95 = Interval { lo, hi };
        }
        Some(Judged { ratio, ci95, p_value })
    }
}

/// What a verdict follows from.
struct Judged {
    ratio: f64,
    ci95: Interval,
    p_value: f64,
}

impl Judged {
    /// From an estimate of the ratio's logarithm.
    fn student(estimate: Estimate) -> Self {
        let ratio = estimate.value.exp();
        Self { ratio, ci95: about(ratio, estimate.half()), p_value: estimate.p_value() }
    }
}

impl Comparison {
    /// The ratio of medians stands beside an interval of means where samples are few: then the interval reaches to it.
    fn of(ratio: f64, ci95: Interval, p_value: f64, threshold: f64) -> Option<Self> {
        let ci95 = Interval { lo: ci95.lo.min(ratio), hi: ci95.hi.max(ratio) };
        let finite = ratio.is_finite() && ci95.lo.is_finite() && ci95.hi.is_finite() && p_value.is_finite();
        let verdict = Verdict::of(ci95, threshold).with_p_value(p_value);
        finite.then_some(Self { ratio, ci95, p_value, verdict })
    }
}

/// The standard error of the median over the median, from the order statistics that are a standard deviation of the binomial distribution
/// beside it.
fn relative_error(sorted: &[f64]) -> f64 {
    let reach = 0.5 / (sorted.len() as f64).sqrt();
    let of = |p: f64| quantile_of_sorted(sorted, p);
    (of(0.5 + reach) - of(0.5 - reach)) / (2.0 * of(0.5))
}

/// The middle ranks of all resamples of `n` samples.
fn draw(n: usize, seed: u64) -> Vec<[u32; 2]> {
    let ranked = vec![0.0; n];
    let mut resampler = Resampler::new(&ranked, seed);
    (0..RESAMPLES).map(|_| resampler.ranks()).collect()
}

/// Compares times that were taken in turn: `old[i]` and `new[i]` stand beside each other in time, so that what slows the machine for a
/// while slows both and drops out of their ratio; where it does not drop out entirely, the interval is that of samples which resemble their
/// neighbours. Otherwise as [`compare`], by Student's interval and test of fewer than six pairs; `None` also when the numbers of samples differ.
pub fn compare_pairs(old: &[f64], new: &[f64], threshold: f64, seed: u64) -> Option<Comparison> {
    let positive = |samples: &[f64]| samples.iter().all(|&x| x > 0.0);
    if old.len() != new.len() || !positive(old) || !positive(new) || threshold.is_nan() || threshold < 0.0 {
        return None;
    }
    let ratios: Vec<f64> = new.iter().zip(old).map(|(new, old)| new / old).collect();
    let logarithms = logarithms(&ratios);
    let ratio = median(&ratios)?;
    if ratios.len() < FEW {
        let Judged { ci95, p_value, .. } = Judged::student(Estimate::mean(&logarithms)?);
        return Comparison::of(ratio, ci95, p_value, threshold);
    }
    let ci95 = bootstrap_median_ci95_in_order(&ratios, seed)?;
    Comparison::of(ratio, ci95, wilcoxon(&logarithms)?.p_value, threshold)
}
