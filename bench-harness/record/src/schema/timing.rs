//! How long it took, the rates that follow, the ceilings they are held against, and whether the output was right.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Interval, count, number};
use crate::stats;

/// Time and rates.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Timing {
    /// The clock that timed the samples.
    pub clock: Option<Clock>,
    /// Every sample in the order taken, nanoseconds per call. A null inside is a sample that failed.
    #[serde(default, deserialize_with = "number::samples")]
    #[schemars(with = "Option<Vec<Option<f64>>>")]
    pub samples_ns: Option<Vec<f64>>,
    /// Calls that one sample averages over.
    #[serde(default, deserialize_with = "count")]
    pub calls_per_sample: Option<u64>,
    /// Calls made before the first sample.
    #[serde(default, deserialize_with = "count")]
    pub warmup_calls: Option<u64>,
    /// Cost of the measuring itself that was subtracted from each call, nanoseconds.
    pub overhead_ns: Option<f64>,
    /// Median of the samples, nanoseconds per call.
    pub median_ns: Option<f64>,
    /// 95 % interval of `median_ns` by bootstrap over runs of neighbouring samples, which resemble each other.
    pub ci95_ns: Option<Interval>,
    /// Floating-point (or integer) operations of one call, multiply and add counted apart.
    #[serde(default, deserialize_with = "count")]
    pub flops: Option<u64>,
    /// Bytes that one call must move at least: every operand once.
    #[serde(default, deserialize_with = "count")]
    pub bytes: Option<u64>,
    /// `flops` over `median_ns`: 1e9 operations a second.
    pub gflops: Option<f64>,
    /// `bytes` over `median_ns`: 1e9 bytes a second.
    pub gbps: Option<f64>,
    /// Mean tokens per second over the samples, all sequences together.
    pub avg_ts: Option<f64>,
    /// Standard deviation of the tokens per second of the samples.
    pub stddev_ts: Option<f64>,
    /// Mean time of a call where another tool states it, nanoseconds; it may keep no samples.
    pub avg_ns: Option<f64>,
    /// Standard deviation of a call's time where another tool states it, nanoseconds.
    pub stddev_ns: Option<f64>,
    /// Generated tokens per second while prompts are processed as well (serving), all sequences together. No decode rate.
    pub avg_output_ts: Option<f64>,
    /// Time for which the host was busy with starting one recorded decode step, median, nanoseconds. Null where the host itself computes.
    pub host_ns_per_step: Option<f64>,
    /// Launches that such a step is made of.
    #[serde(default, deserialize_with = "count")]
    pub launches_per_step: Option<u64>,
    /// Rate of what is not counted in tokens, in `throughput_unit`.
    pub throughput: Option<f64>,
    /// Unit of `throughput`, such as `samples/s`.
    pub throughput_unit: Option<String>,
}

/// Ceilings of the device, measured in the same run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Roof {
    /// Measured arithmetic ceiling for this dtype, 1e9 operations a second.
    pub roof_gflops: Option<f64>,
    /// Measured bandwidth ceiling, 1e9 bytes a second.
    pub roof_gbps: Option<f64>,
    /// The time that the ceilings allow over the time taken: 1 is the roof.
    pub roof_fraction: Option<f64>,
}

/// Whether the output was right.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Verification {
    /// Whether this run checked its output and found it within tolerance. Null: not checked.
    pub verified: Option<bool>,
    /// Largest error seen, relative to the magnitude that the tolerance is relative to, and at least to the smallest normal number of
    /// the output's type.
    pub max_rel_err: Option<f64>,
}

/// How the record's kernel stands beside another one whose samples were taken in turn with its own. All null when there was none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Versus {
    /// Name of the other kernel, the baseline.
    pub versus: Option<String>,
    /// Time of a call over that of the baseline's, the median of sample by sample: below 1 is faster.
    pub versus_ratio: Option<f64>,
    /// 95 % interval of `versus_ratio` by bootstrap.
    pub versus_ci95: Option<Interval>,
    /// Two-sided p-value of the Wilcoxon signed-rank test of the logarithms of the ratios.
    pub versus_p_value: Option<f64>,
    /// The answer, for differences from 2 % on.
    pub versus_verdict: Option<stats::Verdict>,
}

/// What was read of the device while it was measured. Null: not observable.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Conditions {
    /// Lowest clock seen, in MHz; of a CPU the mean over its processors.
    pub clock_mhz_min: Option<f64>,
    /// Mean clock, in MHz.
    pub clock_mhz_mean: Option<f64>,
    /// Highest clock seen, in MHz.
    pub clock_mhz_max: Option<f64>,
    /// Highest temperature seen, in degrees Celsius.
    pub temperature_c_max: Option<f64>,
    /// Power, clock and temperature over time, beside warm-up and samples. Null: nothing could be measured.
    pub trace: Option<Trace>,
}

/// What was measured beside a measurement, over time: lists of equal length, at most [`Trace::MOST`] points. A point is the mean of the readings
/// that it stands for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Trace {
    /// Seconds since watching began, ascending.
    pub t_s: Vec<f64>,
    /// The sensor of `watts`: source, name and boundary. It is the one of the record's energy, where that is known.
    pub meter: Option<String>,
    /// Power in watts. Null: not measured, within the list: not at that point.
    pub watts: Option<Vec<Option<f64>>>,
    /// Clock in MHz; of a CPU the mean over its processors.
    pub clock_mhz: Option<Vec<Option<f64>>>,
    /// Highest temperature of the device in degrees Celsius.
    pub temperature_c: Option<Vec<Option<f64>>>,
}

impl Trace {
    /// Most points of a record's trace.
    pub const MOST: usize = 240;
}

/// The clock of a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Clock {
    /// The device's own: CUDA events, timestamp queries.
    Device,
    /// The host's monotonic clock around synchronised work.
    Host,
    /// A clock that this version does not know.
    #[serde(other)]
    Other,
}

impl Timing {
    /// Fills `gflops` and `gbps` from `flops`, `bytes` and `median_ns`; what is unknown stays null.
    pub fn derive_rates(&mut self) {
        let per_ns = |amount: Option<u64>| match (amount, self.median_ns) {
            (Some(amount), Some(ns)) if ns > 0.0 => Some(amount as f64 / ns),
            _ => None,
        };
        (self.gflops, self.gbps) = (per_ns(self.flops), per_ns(self.bytes));
    }

    /// Fills `samples_ns`, `median_ns` and `ci95_ns` from samples in nanoseconds per call, then the rates. `seed` fixes
    /// the bootstrap.
    pub fn set_samples(&mut self, samples_ns: Vec<f64>, seed: u64) {
        self.median_ns = stats::median(&samples_ns);
        self.ci95_ns = stats::bootstrap_median_ci95_in_order(&samples_ns, seed);
        self.samples_ns = Some(samples_ns);
        self.derive_rates();
    }

    /// Fills `avg_ts` and `stddev_ts` from the samples, each of which handled `tokens`: the mean of the samples' rates,
    /// as llama-bench has it.
    pub fn derive_token_rates(&mut self, tokens: u64) {
        let rates: Vec<f64> = self.samples_ns.iter().flatten().map(|ns| tokens as f64 * 1e9 / ns).collect();
        (self.avg_ts, self.stddev_ts) = (stats::mean(&rates), stats::stddev(&rates));
    }
}

impl Roof {
    /// Fills `roof_fraction` from the ceilings and `timing`: the longer of the arithmetic's and the memory's time at the
    /// ceilings, over the median. Null where a needed ceiling is unknown.
    pub fn derive_fraction(&mut self, timing: &Timing) {
        let time_at = |amount: Option<u64>, roof: Option<f64>| match (amount, roof) {
            (Some(0), _) => Some(0.0),
            (Some(amount), Some(roof)) if roof > 0.0 => Some(amount as f64 / roof),
            _ => None,
        };
        self.roof_fraction = match (
            time_at(timing.flops, self.roof_gflops),
            time_at(timing.bytes, self.roof_gbps),
            timing.median_ns,
        ) {
            (Some(arithmetic), Some(memory), Some(ns)) if ns > 0.0 => Some(arithmetic.max(memory) / ns),
            _ => None,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_follow_from_the_median() {
        let mut timing = Timing { flops: Some(2_000_000), bytes: Some(500_000), ..Timing::default() };
        timing.derive_rates();
        assert_eq!((timing.gflops, timing.gbps), (None, None), "no median yet");
        timing.set_samples(vec![9_000.0, 10_000.0, 30_000.0], 1);
        assert_eq!(timing.median_ns, Some(10_000.0));
        // three samples say little: Student's interval reaches beyond them
        assert!(timing.ci95_ns.is_some_and(|ci| ci.lo < 9_000.0 && ci.hi > 30_000.0));
        assert_eq!((timing.gflops, timing.gbps), (Some(200.0), Some(50.0)));

        // 100 tokens in 9, 10 and 30 microseconds.
        timing.derive_token_rates(100);
        let rates = [100.0 / 9e-6, 1e7, 100.0 / 30e-6];
        let mean = rates.iter().sum::<f64>() / 3.0;
        let deviation = (rates.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 2.0).sqrt();
        assert!((timing.avg_ts.unwrap() / mean - 1.0).abs() < 1e-12);
        assert!((timing.stddev_ts.unwrap() / deviation - 1.0).abs() < 1e-12);
        timing.samples_ns = Some(vec![0.0]);
        timing.derive_token_rates(100);
        assert_eq!((timing.avg_ts, timing.stddev_ts), (None, None), "no rate of a time of zero");
    }

    #[test]
    fn the_slower_roof_counts() {
        let timing = Timing {
            flops: Some(1_000_000),
            bytes: Some(100_000),
            median_ns: Some(10_000.0),
            ..Timing::default()
        };
        let fraction = |gflops, gbps| {
            let mut roof = Roof { roof_gflops: gflops, roof_gbps: gbps, roof_fraction: Some(9.0) };
            roof.derive_fraction(&timing);
            roof.roof_fraction
        };
        assert_eq!(
            fraction(Some(200.0), Some(100.0)),
            Some(0.5),
            "5 microseconds of arithmetic, 1 of memory"
        );
        assert_eq!(fraction(Some(1000.0), Some(12.5)), Some(0.8), "1 microsecond of arithmetic, 8 of memory");
        assert_eq!(fraction(None, Some(12.5)), None);
        assert_eq!(fraction(Some(0.0), Some(12.5)), None);
        // An op without arithmetic needs no arithmetic ceiling.
        let copy = Timing { flops: Some(0), ..timing.clone() };
        let mut roof = Roof { roof_gbps: Some(20.0), ..Roof::default() };
        roof.derive_fraction(&copy);
        assert_eq!(roof.roof_fraction, Some(0.5));
    }
}
