//! What a device can do at most, and results held against it.

use perjoule::DType;
use perjoule_record::{CacheState, Clock, Kind, Provenance, Record, Roof};

use crate::sampling::Samples;

/// Name of the ceiling of products whose f32 operands are rounded to tf32: no roof of f32, since that takes a leave of the caller's.
pub const TF32: &str = "tensor_tf32";

/// One ceiling and how it was obtained.
#[derive(Debug, Clone)]
pub struct Ceiling {
    /// What is driven to its limit: that of its arithmetic, `read` or `copy`.
    pub op: &'static str,
    /// Element type, for arithmetic.
    pub dtype: Option<DType>,
    /// The type that was computed on: another one where kernels widen.
    pub measured_on: Option<DType>,
    /// How it was obtained, in words.
    pub how: String,
    /// Work of one call: floating-point operations or bytes.
    pub amount: u64,
    /// `Modelled` when it follows from another ceiling.
    pub provenance: Provenance,
    /// The samples.
    pub samples: Samples,
}

impl Ceiling {
    /// 1e9 operations or bytes a second in the fastest sample.
    pub fn best(&self) -> Option<f64> {
        let ns = self.samples.ns.iter().copied().fold(f64::INFINITY, f64::min);
        (ns.is_finite() && ns > 0.0).then(|| self.amount as f64 / ns)
    }

    /// Fills a record of it.
    pub fn record(&self, mut record: Record, seed: u64) -> Record {
        record.kind = Kind::Ceiling;
        record.provenance = self.provenance;
        record.workload.op = Some(self.op.into());
        record.workload.dtype = self.dtype.map(|dtype| dtype.name().into());
        record.workload.config = Some(self.how.clone());
        record.timing.clock = Some(Clock::Host);
        match self.dtype {
            Some(_) => record.timing.flops = Some(self.amount),
            None => record.timing.bytes = Some(self.amount),
        }
        if self.dtype.is_none() {
            record.workload.cache_state = Some(CacheState::Cold);
        }
        record.timing.calls_per_sample = Some(self.samples.calls_per_sample);
        record.timing.warmup_calls = Some(self.samples.warmup_calls);
        record.timing.overhead_ns = Some(self.samples.overhead_ns);
        record.timing.set_samples(self.samples.ns.clone(), seed);
        record
    }
}

/// The ceilings of one device, and the best that was seen of each.
#[derive(Debug, Default)]
pub struct Roofs {
    /// As first measured.
    pub list: Vec<Ceiling>,
    /// The best of all probes so far, in 1e9 operations a second, by the ceiling's name and type.
    best: Vec<((&'static str, Option<DType>), f64)>,
}

impl Roofs {
    fn best(&self, op: &'static str, dtype: Option<DType>) -> Option<f64> {
        self.best.iter().find(|(key, _)| *key == (op, dtype)).map(|(_, rate)| *rate)
    }

    /// Holds `record`, whose work is on `dtype`, against the roof: what is unknown stays null. Memory is none for operands that stay in
    /// the caches. What tensor cores make of f32 by rounding it to tf32 is no roof of f32: it takes a leave that nothing here gives.
    pub fn hold(&self, record: &mut Record, dtype: DType, in_cache: bool) {
        // vectors and tiles of one type are both listed
        let listed = self.list.iter().filter(|c| c.dtype == Some(dtype) && c.op != TF32);
        let arithmetic = listed.filter_map(|c| self.best(c.op, c.measured_on)).reduce(f64::max);
        let (roof, timing) = (&mut record.roof, &record.timing);
        *roof = Roof { roof_gflops: arithmetic, roof_gbps: self.best("read", None), roof_fraction: None };
        roof.derive_fraction(timing);
        if in_cache {
            let time = |amount: Option<u64>, rate: Option<f64>| Some(amount? as f64 / rate?);
            // where memory would have been the roof, there is none that was measured
            if time(timing.bytes, roof.roof_gbps) > time(timing.flops, roof.roof_gflops) {
                roof.roof_fraction = None;
            }
            roof.roof_gbps = None;
        }
    }

    /// Holds a record, whose work is on `dtype`, against what the roof has become since it was held against it: rows of one table are
    /// then held against one roof. Others stay as they are.
    pub fn hold_again(&self, record: &mut Record, dtype: DType) {
        let was = &record.roof;
        if was.roof_gflops.is_some() || was.roof_gbps.is_some() {
            // memory is no roof of what stayed in the caches
            let in_cache = was.roof_gbps.is_none() && self.best("read", None).is_some();
            self.hold(record, dtype, in_cache);
        }
    }

    /// Raises the roof where the device does better than before.
    pub fn raise(&mut self, key: (&'static str, Option<DType>), rate: f64) {
        match self.best.iter_mut().find(|(other, _)| *other == key) {
            Some((_, best)) => *best = best.max(rate),
            None => self.best.push((key, rate)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use perjoule_record::Environment;

    #[test]
    fn the_faster_of_two_kernels_is_nearer_to_the_roof_once_both_are_held_against_the_same() {
        let samples = Samples { ns: vec![1.0], calls_per_sample: 1, warmup_calls: 0, overhead_ns: 0.0 };
        let ceiling = Ceiling {
            op: "multiply_add",
            dtype: Some(DType::F32),
            measured_on: Some(DType::F32),
            how: String::new(),
            amount: 1,
            provenance: Provenance::Measured,
            samples,
        };
        let mut roofs = Roofs { list: vec![ceiling], best: Vec::new() };
        let key = ("multiply_add", Some(DType::F32));
        roofs.raise(key, 100.0);
        roofs.raise(("read", None), 10.0);
        let record = |ns: f64, in_cache: bool, roofs: &Roofs| {
            let mut record = Record::new(Kind::Kernel, &Environment::default());
            (record.timing.flops, record.timing.bytes) = (Some(1_000_000), Some(1_000));
            record.timing.median_ns = Some(ns);
            roofs.hold(&mut record, DType::F32, in_cache);
            record
        };
        let mut slow = record(20_000.0, true, &roofs);
        roofs.raise(key, 120.0);
        let fast = record(18_000.0, true, &roofs);
        let share = |record: &Record| record.roof.roof_fraction.unwrap();
        assert!(share(&fast) < share(&slow), "the roof rose between them");
        roofs.hold_again(&mut slow, DType::F32);
        assert!((share(&fast) / share(&slow) * 18.0 / 20.0 - 1.0).abs() < 1e-12);
        assert_eq!((slow.roof.roof_gflops, slow.roof.roof_gbps), (Some(120.0), None), "still none of memory");
        let mut streamed = record(20_000.0, false, &roofs);
        roofs.raise(("read", None), 11.0);
        roofs.hold_again(&mut streamed, DType::F32);
        assert_eq!(streamed.roof.roof_gbps, Some(11.0));
        let mut never = Record::new(Kind::Kernel, &Environment::default());
        roofs.hold_again(&mut never, DType::F32);
        assert_eq!(never.roof, Roof::default());
    }
}
