//! How long it took, the rates that follow, the ceilings they are held against, and whether the output was right.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Interval, count, number};

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
    /// 95 % interval of `median_ns` by bootstrap.
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
    /// Largest error seen, relative to the magnitude that the tolerance is relative to.
    pub max_rel_err: Option<f64>,
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
