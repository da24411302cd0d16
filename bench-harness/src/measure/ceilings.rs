//! What a device can do at most, measured in the run that holds kernels against it.

use anyhow::Result;
use perjoule::{DType, Device};
use perjoule_cpu::{CpuDevice, ceiling};
use perjoule_record::{CacheState, Clock, Kind, Provenance, Record, Roof};
use std::any::Any;
use std::time::{Duration, Instant};

use super::{Effort, Samples, Subject, measure};

/// A sample is the fastest of so many calls: a ceiling is what the device can do when nothing disturbs it.
const BEST_OF: usize = 5;
/// Rounds of multiply-adds in one call: some tens of microseconds.
const ROUNDS: u64 = 20_000;
/// Calls of each probe.
const SAMPLES: usize = 60;
/// Smallest and largest memory to stream through, in bytes.
const MEMORY: (usize, usize) = (64 << 20, 1 << 30);

/// One ceiling and how it was obtained.
#[derive(Debug, Clone)]
pub(crate) struct Ceiling {
    /// What is driven to its limit: `multiply_add`, `read` or `copy`.
    pub(crate) op: &'static str,
    /// Element type, for arithmetic.
    pub(crate) dtype: Option<DType>,
    /// How it was obtained, in words.
    pub(crate) how: String,
    /// Work of one call: floating-point operations or bytes.
    pub(crate) amount: u64,
    /// `Modelled` when it follows from another ceiling.
    pub(crate) provenance: Provenance,
    /// The samples.
    pub(crate) samples: Samples,
}

impl Ceiling {
    /// 1e9 operations or bytes a second, by the median.
    pub(crate) fn rate(&self) -> Option<f64> {
        perjoule_record::stats::median(&self.samples.ns).map(|ns| self.amount as f64 / ns)
    }

    /// Fills a record of it.
    pub(crate) fn record(&self, mut record: Record, seed: u64) -> Record {
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

/// The ceilings of one device.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ceilings(pub(crate) Vec<Ceiling>);

impl Ceilings {
    /// The roof for work on `dtype`: what is unknown stays null.
    pub(crate) fn roof(&self, dtype: DType) -> Roof {
        let find = |op: &str, dtype: Option<DType>| {
            self.0.iter().find(|c| c.op == op && c.dtype == dtype).and_then(Ceiling::rate)
        };
        Roof {
            roof_gflops: find("multiply_add", Some(dtype)),
            roof_gbps: find("read", None),
            roof_fraction: None,
        }
    }
}

/// Measures the ceilings of `device` within `time`; none are known for backends that have no such probe.
pub(crate) fn ceilings(device: &Device, time: Duration, seed: u64) -> Result<Ceilings> {
    match (&**device.backend() as &dyn Any).downcast_ref::<CpuDevice>() {
        Some(cpu) => of_cpu(cpu, time, seed),
        None => Ok(Ceilings::default()),
    }
}

struct Call<F>(F);

impl<F: FnMut() -> perjoule::Result<u64>> Subject for Call<F> {
    fn call(&mut self, count: u64) -> Result<()> {
        for _ in 0..count {
            (self.0)()?;
        }
        Ok(())
    }
}

fn best(mut samples: Samples) -> Samples {
    let fastest = |group: &[f64]| group.iter().copied().fold(f64::INFINITY, f64::min);
    samples.ns = samples.ns.chunks(BEST_OF).map(fastest).collect();
    samples
}

fn of_cpu(cpu: &CpuDevice, time: Duration, seed: u64) -> Result<Ceilings> {
    let effort = Effort { time: time / 4, repetitions: Some(SAMPLES) };
    let set = ceiling::instruction_set(cpu);
    let threads = cpu.threads();
    let mut list = Vec::new();

    let flops = ceiling::multiply_add(cpu, ROUNDS)?;
    let samples = best(measure(&mut Call(|| ceiling::multiply_add(cpu, ROUNDS)), effort, seed)?);
    let arithmetic = Ceiling {
        op: "multiply_add",
        dtype: Some(DType::F32),
        how: format!("registers, {set}, {threads} threads, best of {BEST_OF}"),
        amount: flops,
        provenance: Provenance::Measured,
        samples,
    };
    list.push(arithmetic.clone());
    for dtype in [DType::BF16, DType::F16, DType::F8E4M3] {
        list.push(Ceiling {
            dtype: Some(dtype),
            how: format!("that of f32: {set} kernels widen {dtype} to f32"),
            provenance: Provenance::Modelled,
            ..arithmetic.clone()
        });
    }

    let caches = perjoule_cpu::features::Caches::detect();
    let bytes = caches.l3.saturating_mul(4).clamp(MEMORY.0, MEMORY.1);
    let memory = ceiling::Bandwidth::new(cpu, bytes)?;
    let how = format!("{} MiB, {threads} threads, best of {BEST_OF}", bytes >> 20);
    let probes: [(&'static str, &dyn Fn() -> perjoule::Result<u64>); 2] =
        [("read", &|| memory.read()), ("copy", &|| memory.copy())];
    for (op, probe) in probes {
        let start = Instant::now();
        let amount = probe()?;
        let once = start.elapsed().as_secs_f64().max(1e-6);
        let count = (time.as_secs_f64() / 4.0 / once) as usize;
        let effort = Effort { repetitions: Some(count.clamp(2 * BEST_OF, SAMPLES)), ..effort };
        let samples = best(measure(&mut Call(probe), effort, seed)?);
        let provenance = Provenance::Measured;
        list.push(Ceiling { op, dtype: None, how: how.clone(), amount, provenance, samples });
    }
    Ok(Ceilings(list))
}
