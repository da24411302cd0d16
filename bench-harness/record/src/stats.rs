//! Estimators over samples and the verdict on two sets of them.
//!
//! Preconditions: estimators return `None` for too few samples and for samples that are not finite, so that no NaN
//! enters a record. Everything random is seeded: the same samples give the same interval on every machine.

mod compare;
mod dependence;
mod mann_whitney;
mod many;
mod student;
mod welch;
mod wilcoxon;

pub use compare::{Comparer, Comparison, Verdict, compare, compare_pairs};
pub use dependence::{Dependence, dependence};
pub use mann_whitney::{MannWhitney, mann_whitney};
pub use many::benjamini_hochberg;
pub use student::{normal_two_sided, student_97_5};
pub use welch::welch;
pub use wilcoxon::{Wilcoxon, wilcoxon};

use crate::Interval;
use student::Estimate;

/// Resampling of fewer samples than this knows too little of what was not sampled: an interval between the smallest and the largest of
/// five holds the median in 94 of 100 cases, of two in 50. Their intervals and tests are Student's, of the logarithms.
const FEW: usize = 6;

/// Resamples that [`bootstrap_median_ci95`] draws: the bounds then vary by a few per cent of the interval's width.
pub const RESAMPLES: usize = 2000;

/// The samples sorted; `None` if there are none or one is not finite.
fn sorted(samples: &[f64]) -> Option<Vec<f64>> {
    if samples.is_empty() || !samples.iter().all(|x| x.is_finite()) {
        return None;
    }
    let mut sorted = samples.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    Some(sorted)
}

/// Quantile `p` in [0, 1] of sorted, non-empty samples.
fn quantile_of_sorted(sorted: &[f64], p: f64) -> f64 {
    let position = p * (sorted.len() - 1) as f64;
    let below = position.floor() as usize;
    let above = (below + 1).min(sorted.len() - 1);
    // Weighted rather than by a difference, which overflows for values of opposite sign near the limit of f64.
    let weight = position - below as f64;
    sorted[below] * (1.0 - weight) + sorted[above] * weight
}

/// The value that half of the samples lie below; the mean of the two middle ones if their number is even.
pub fn median(samples: &[f64]) -> Option<f64> {
    quantile(samples, 0.5)
}

/// Quantile `p` in [0, 1], linear between the two nearest samples (type 7 of Hyndman and Fan, the default of NumPy and
/// R). `None` for a `p` outside.
pub fn quantile(samples: &[f64], p: f64) -> Option<f64> {
    if !(0.0..=1.0).contains(&p) {
        return None;
    }
    Some(quantile_of_sorted(&sorted(samples)?, p))
}

/// Arithmetic mean.
pub fn mean(samples: &[f64]) -> Option<f64> {
    if samples.is_empty() {
        return None;
    }
    // Divided first, so that finite samples have a finite mean; shifted, so that close samples lose no digits.
    let n = samples.len() as f64;
    let first = samples[0];
    let mean = first + samples.iter().map(|x| x / n - first / n).sum::<f64>();
    mean.is_finite().then_some(mean)
}

/// Standard deviation of the population that the samples are drawn from (divisor n - 1); at least two samples.
pub fn stddev(samples: &[f64]) -> Option<f64> {
    if samples.len() < 2 {
        return None;
    }
    let mean = mean(samples)?;
    // Squares are taken of deviations in units of the largest, so that they neither overflow nor vanish.
    let largest = samples.iter().map(|x| (x - mean).abs()).fold(0.0, f64::max);
    if largest == 0.0 {
        return Some(0.0);
    }
    let sum: f64 = samples.iter().map(|x| ((x - mean) / largest).powi(2)).sum();
    let stddev = largest * (sum / (samples.len() - 1) as f64).sqrt();
    stddev.is_finite().then_some(stddev)
}

/// Median absolute deviation from the median, unscaled (times 1.4826 it estimates a normal's standard deviation).
pub fn mad(samples: &[f64]) -> Option<f64> {
    let centre = median(samples)?;
    median(&samples.iter().map(|x| (x - centre).abs()).collect::<Vec<_>>())
}

/// 95 % interval of the median by the percentile bootstrap (Efron and Tibshirani, "An Introduction to the Bootstrap",
/// 1993, ch. 13), [`RESAMPLES`] resamples from `seed`. At least two samples. O(n) a resample.
pub fn bootstrap_median_ci95(samples: &[f64], seed: u64) -> Option<Interval> {
    if samples.len() < 2 {
        return None;
    }
    let sorted = sorted(samples)?;
    let mut resampler = Resampler::new(&sorted, seed);
    let mut medians: Vec<f64> = (0..RESAMPLES).map(|_| resampler.median()).collect();
    Some(central_95(&mut medians))
}

/// The same for samples in the order in which they were taken, whose neighbours resemble each other: resamples are made of runs of
/// neighbours, wrapped around the end (Politis and Romano, "A circular block-resampling procedure for stationary data", 1992), as long as
/// [`dependence`] says for being above the median or below it, and at least the cube root of n (Hall, Horowitz and Jing, "On blocking
/// rules for the bootstrap with dependent data", 1995). What resampling in runs misses of the dependence is made up for by stretching.
/// For independent samples it is as wide as [`bootstrap_median_ci95`], for others wider, as it must be.
///
/// Of fewer than six samples it is Student's interval about the median: of the logarithms, or of the samples where one is not positive.
pub fn bootstrap_median_ci95_in_order(samples: &[f64], seed: u64) -> Option<Interval> {
    if samples.len() < 2 {
        return None;
    }
    let sorted_samples = sorted(samples)?;
    if samples.len() < FEW {
        return few_median_ci95(&sorted_samples);
    }
    let mut order: Vec<u32> = (0..samples.len() as u32).collect();
    order.sort_unstable_by(|&a, &b| samples[a as usize].total_cmp(&samples[b as usize]));
    let mut rank = vec![0u32; samples.len()];
    order.iter().enumerate().for_each(|(r, &i)| rank[i as usize] = r as u32);
    let cube_root = (samples.len() as f64).cbrt().round();
    let median = quantile_of_sorted(&sorted_samples, 0.5);
    let sides = sides(samples, median);
    let found = dependence(&sides);
    let run = found.map_or(cube_root, |found| found.block.ceil().max(cube_root)).max(1.0) as usize;
    let mut resampler = Resampler::new(&sorted_samples, seed);
    let mut medians: Vec<f64> = (0..RESAMPLES).map(|_| resampler.median_of_runs(&rank, run)).collect();
    let plain = central_95(&mut medians);
    let seen = found.zip(dependence::inflation_of_runs(&sides, run));
    let stretch = seen.map_or(1.0, |(found, seen)| (found.inflation / seen.max(1.0)).sqrt().max(1.0));
    Some(Interval {
        lo: (median - stretch * (median - plain.lo)).max(sorted_samples[0]),
        hi: (median + stretch * (plain.hi - median)).min(sorted_samples[sorted_samples.len() - 1]),
    })
}

/// The interval of the median of few samples, from the spread of all: the median of normal samples scatters by sqrt(pi / 2) times as
/// much as their mean, of few samples a little less. `None` where it is beyond the numbers.
fn few_median_ci95(sorted: &[f64]) -> Option<Interval> {
    let widened = (std::f64::consts::PI / 2.0).sqrt();
    let median = quantile_of_sorted(sorted, 0.5);
    let interval = if sorted[0] > 0.0 {
        about(median, widened * Estimate::mean(&logarithms(sorted))?.half())
    } else {
        let half = widened * Estimate::mean(sorted)?.half();
        Interval { lo: median - half, hi: median + half }
    };
    (interval.lo.is_finite() && interval.hi.is_finite()).then_some(interval)
}

/// The interval that reaches as many times above `value` as below, `half` in logarithms. Ends beyond the numbers become the last one.
fn about(value: f64, half: f64) -> Interval {
    Interval { lo: value * (-half).exp(), hi: (value * half.exp()).min(f64::MAX) }
}

fn logarithms(samples: &[f64]) -> Vec<f64> {
    samples.iter().map(|x| x.ln()).collect()
}

/// How many independent samples tell as much about the median as these do, in the order in which they were taken: fewer than there are
/// where neighbours resemble each other.
pub fn effective_size(samples: &[f64]) -> f64 {
    let n = samples.len() as f64;
    let found = median(samples).and_then(|median| dependence(&sides(samples, median)));
    found.map_or(n, |found| n / found.inflation)
}

/// On which side of the median each sample lies: what the error of the median comes from.
fn sides(samples: &[f64], median: f64) -> Vec<f64> {
    let side = |x: &f64| match x.total_cmp(&median) {
        _ if *x == median => 0.0,
        std::cmp::Ordering::Less => -1.0,
        _ => 1.0,
    };
    samples.iter().map(side).collect()
}

/// The interval that leaves 2.5 % of the values on either side; the values are reordered.
fn central_95(values: &mut [f64]) -> Interval {
    Interval { lo: quantile_by_selection(values, 0.025), hi: quantile_by_selection(values, 0.975) }
}

/// [`quantile_of_sorted`] of values that are not sorted, by selection: O(n).
fn quantile_by_selection(values: &mut [f64], p: f64) -> f64 {
    let position = p * (values.len() - 1) as f64;
    let weight = position - position.floor();
    let (_, &mut below, rest) = values.select_nth_unstable_by(position.floor() as usize, f64::total_cmp);
    let above = rest.iter().copied().min_by(f64::total_cmp).unwrap_or(below);
    below * (1.0 - weight) + above * weight
}

/// The median of a resample whose middle ranks are known.
fn middle(sorted: &[f64], [lower, upper]: [u32; 2]) -> f64 {
    if sorted.len().is_multiple_of(2) {
        sorted[lower as usize] * 0.5 + sorted[upper as usize] * 0.5
    } else {
        sorted[upper as usize]
    }
}

/// Draws medians of resamples with replacement.
struct Resampler<'a> {
    /// The samples, sorted: a draw is a rank, and the median of ranks is the rank of the median.
    sorted: &'a [f64],
    ranks: Vec<u32>,
    state: u64,
}

impl<'a> Resampler<'a> {
    /// `sorted` is not empty and shorter than 2^32.
    fn new(sorted: &'a [f64], seed: u64) -> Self {
        Self { sorted, ranks: vec![0; sorted.len()], state: seed }
    }

    fn median(&mut self) -> f64 {
        let ranks = self.ranks();
        middle(self.sorted, ranks)
    }

    /// The ranks of the two middle samples of a resample, the lower first; twice the middle one if their number is odd.
    fn ranks(&mut self) -> [u32; 2] {
        for i in 0..self.ranks.len() {
            self.ranks[i] = self.draw() as u32;
        }
        self.middle_ranks()
    }

    /// Draws runs of neighbours, `rank` being the samples in order.
    fn median_of_runs(&mut self, rank: &[u32], run: usize) -> f64 {
        let n = rank.len();
        for first in (0..n).step_by(run) {
            let start = self.draw();
            for i in first..(first + run).min(n) {
                self.ranks[i] = rank[(start + i - first) % n];
            }
        }
        let ranks = self.middle_ranks();
        middle(self.sorted, ranks)
    }

    /// An index of a sample. The high half of the product is uniform in 0..n to within n / 2^64 (Lemire, "Fast random integer generation
    /// in an interval", 2019).
    fn draw(&mut self) -> usize {
        ((u128::from(self.random()) * self.sorted.len() as u128) >> 64) as usize
    }

    fn middle_ranks(&mut self) -> [u32; 2] {
        let n = self.sorted.len();
        let (below, &mut upper, _) = self.ranks.select_nth_unstable(n / 2);
        match below.iter().max() {
            Some(&lower) if n.is_multiple_of(2) => [lower, upper],
            _ => [upper, upper],
        }
    }

    /// SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
    fn random(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
