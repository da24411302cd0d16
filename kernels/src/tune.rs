//! Measured choices: seconds per row and configuration for a bucket of shapes, which [`fn@crate::select`] prefers to predictions.

use crate::op::Op;
use std::collections::BTreeMap;

/// What a tuner measured on one device. For a tuner to fill; kept by the device, read by `select`.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Tuning {
    buckets: BTreeMap<String, BTreeMap<(String, String), f32>>,
}

impl Tuning {
    /// An empty table.
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes that `kernel` with `config` took `seconds` on ops of the bucket of `op`.
    pub fn insert(&mut self, op: &Op, kernel: &str, config: &str, seconds: f32) {
        let rows = self.buckets.entry(bucket(op)).or_default();
        rows.insert((kernel.to_string(), config.to_string()), seconds);
    }

    /// Measured seconds of a row and configuration in the bucket of `op`.
    pub fn seconds(&self, op: &Op, kernel: &str, config: &str) -> Option<f32> {
        let rows = self.buckets.get(&bucket(op))?;
        rows.get(&(kernel.to_string(), config.to_string())).copied()
    }

    /// All buckets with their measured rows, `(kernel, config) -> seconds`.
    pub fn buckets(&self) -> impl Iterator<Item = (&str, &BTreeMap<(String, String), f32>)> {
        self.buckets.iter().map(|(name, rows)| (name.as_str(), rows))
    }
}

/// The bucket of an op: its name, dtypes and shape, with the sizes that vary from call to call (m, tokens, q_len, capacity)
/// rounded up to a power of two.
pub fn bucket(op: &Op) -> String {
    let mut text = format!("{}_{}", op.name(), op.dtype_label());
    for (name, size) in op.shape() {
        let varies = matches!(name, "m" | "tokens" | "rows" | "b" | "q" | "kv" | "batch");
        let size = if varies { size.checked_next_power_of_two().unwrap_or(size) } else { size };
        text.push_str(&format!(" {name}={size}"));
    }
    text
}
