//! What a device can do at most, measured in the run that holds kernels against it.
//!
//! Clocks and neighbours change within a run. So a short probe follows each measurement, the roof is the best that any probe saw so far,
//! and the whole is measured again at the end, where the drift shows.

use anyhow::Result;
use perjoule::{DType, Device};
use perjoule_cpu::CpuDevice;
use perjoule_cpu::ceiling::{self, Arithmetic, Bandwidth};
use perjoule_record::{CacheState, Clock, Kind, Provenance, Record, Roof};
use std::any::Any;
use std::time::{Duration, Instant};

use super::disturbance::Watch;
use super::{Effort, Samples, Subject, measure};

/// A sample is the fastest of so many calls: a ceiling is what the device can do when nothing disturbs it.
const BEST_OF: usize = 5;
/// Rounds of multiply-adds in one call: some milliseconds, beside which waking the threads of a team is nothing.
const ROUNDS: u64 = 1_000_000;
/// Calls of each probe, at least and at most.
const SAMPLES: (usize, usize) = (2 * BEST_OF, 1000);
/// Time of the arithmetic in a probe between measurements, and passes through memory.
const PROBE: (Duration, usize) = (Duration::from_millis(40), 4);
/// Smallest and largest memory to stream through, in bytes.
const MEMORY: (usize, usize) = (256 << 20, 1 << 30);

/// One ceiling and how it was obtained.
#[derive(Debug, Clone)]
pub(crate) struct Ceiling {
    /// What is driven to its limit: the name of an [`Arithmetic`], `read` or `copy`.
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
    /// 1e9 operations or bytes a second in the fastest sample.
    fn best(&self) -> Option<f64> {
        let ns = self.samples.ns.iter().copied().fold(f64::INFINITY, f64::min);
        (ns.is_finite() && ns > 0.0).then(|| self.amount as f64 / ns)
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

/// Index of reading among the best, behind the arithmetic.
const READ: usize = Arithmetic::ALL.len();

/// The ceilings of one device.
#[derive(Default)]
pub(crate) struct Ceilings {
    /// As first measured.
    pub(crate) list: Vec<Ceiling>,
    /// What else used the machine meanwhile.
    pub(crate) disturbances: Option<Vec<String>>,
    /// The best of all probes so far, in 1e9 operations or bytes a second: each [`Arithmetic`], then reading.
    best: [Option<f64>; READ + 1],
    /// What reading streams through: kept, since making it takes longer than reading it.
    memory: Option<Bandwidth>,
}

impl Ceilings {
    /// Holds `record`, whose work is on `dtype`, against the roof: what is unknown stays null. Memory is none for operands that stay in
    /// the caches.
    pub(crate) fn hold(&self, record: &mut Record, dtype: DType, in_cache: bool) {
        let op = self.list.iter().find(|c| c.dtype == Some(dtype)).map(|c| c.op);
        let arithmetic = Arithmetic::ALL.iter().position(|a| Some(a.name()) == op).and_then(|i| self.best[i]);
        let (roof, timing) = (&mut record.roof, &record.timing);
        *roof = Roof { roof_gflops: arithmetic, roof_gbps: self.best[READ], roof_fraction: None };
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

    /// Probes shortly, and raises the roof where the device does better than before.
    pub(crate) fn refresh(&mut self, device: &Device) -> Result<()> {
        let Some(cpu) = cpu(device) else { return Ok(()) };
        for (i, which) in Arithmetic::ALL.into_iter().enumerate() {
            let start = Instant::now();
            while which.instruction_set(cpu).is_some() && start.elapsed() < PROBE.0 {
                let once = Instant::now();
                let flops = ceiling::arithmetic(cpu, which, ROUNDS)?;
                self.raise(i, flops as f64 / once.elapsed().as_nanos().max(1) as f64);
            }
        }
        (0..PROBE.1).try_for_each(|_| self.read(device))
    }

    /// Reads memory once, and raises its roof where that goes faster than before.
    pub(crate) fn read(&mut self, device: &Device) -> Result<()> {
        let (Some(cpu), Some(memory)) = (cpu(device), &self.memory) else { return Ok(()) };
        let once = Instant::now();
        let bytes = memory.read(cpu)?;
        self.raise(READ, bytes as f64 / once.elapsed().as_nanos().max(1) as f64);
        Ok(())
    }

    fn raise(&mut self, which: usize, rate: f64) {
        let best = &mut self.best[which];
        *best = Some(best.map_or(rate, |best| best.max(rate)));
    }
}

/// Measures the ceilings of `device` within `time`; none are known for backends that have no such probe.
pub(crate) fn ceilings(device: &Device, time: Duration) -> Result<Ceilings> {
    let watch = Watch::start();
    let (list, memory) = match cpu(device) {
        Some(cpu) => {
            let memory = Bandwidth::new(cpu, streamed())?;
            (of_cpu(cpu, &memory, time)?, Some(memory))
        }
        None => (Vec::new(), None),
    };
    let best = |op: &str| list.iter().find(|c| c.op == op).and_then(Ceiling::best);
    let [a, b, c] = Arithmetic::ALL.map(Arithmetic::name);
    let best = [best(a), best(b), best(c), best("read")];
    Ok(Ceilings { list, disturbances: watch.finish(), best, memory })
}

fn cpu(device: &Device) -> Option<&CpuDevice> {
    (&**device.backend() as &dyn Any).downcast_ref()
}

/// Bytes to stream through: several times the last-level cache.
fn streamed() -> usize {
    perjoule_cpu::features::Caches::detect().l3.saturating_mul(4).clamp(MEMORY.0, MEMORY.1)
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

/// Samples `probe` for about `time`.
fn sampled(probe: &dyn Fn() -> perjoule::Result<u64>, time: Duration) -> Result<(u64, Samples)> {
    let start = Instant::now();
    let amount = probe()?;
    let once = start.elapsed().as_secs_f64().max(1e-6);
    let count = (time.as_secs_f64() / once) as usize;
    let effort = Effort { time, repetitions: Some(count.clamp(SAMPLES.0, SAMPLES.1)), bounded: false };
    Ok((amount, best(measure(&mut Call(probe), effort)?)))
}

fn of_cpu(cpu: &CpuDevice, memory: &Bandwidth, time: Duration) -> Result<Vec<Ceiling>> {
    let threads = cpu.threads();
    let provenance = Provenance::Measured;
    let mut list: Vec<Ceiling> = Vec::new();
    for which in Arithmetic::ALL {
        let dtypes: &[DType] = match which {
            Arithmetic::MultiplyAdd => &[DType::F32, DType::F16, DType::F8E4M3, DType::BF16],
            Arithmetic::DotPairs => &[DType::BF16],
            Arithmetic::DotQuads => &[DType::I8],
        };
        let Some(set) = which.instruction_set(cpu) else { continue };
        let (amount, samples) = sampled(&|| ceiling::arithmetic(cpu, which, ROUNDS), time / 4)?;
        for &dtype in dtypes {
            let own = which != Arithmetic::MultiplyAdd || dtype == DType::F32;
            let how = match own {
                true => format!("registers, {set}, {threads} threads, best of {BEST_OF}"),
                false => format!(
                    "that of f32, to which {set} kernels widen {dtype}; {dtype} instructions are not used"
                ),
            };
            let provenance = if own { provenance } else { Provenance::Modelled };
            list.retain(|c| c.dtype != Some(dtype));
            let (op, samples) = (which.name(), samples.clone());
            list.push(Ceiling { op, dtype: Some(dtype), how, amount, provenance, samples });
        }
    }
    let how = format!("{} MiB, {threads} threads, best of {BEST_OF}", streamed() >> 20);
    let probes: [(&'static str, &dyn Fn() -> perjoule::Result<u64>); 2] =
        [("read", &|| memory.read(cpu)), ("copy", &|| memory.copy(cpu))];
    for (op, probe) in probes {
        let (amount, samples) = sampled(probe, time / 4)?;
        list.push(Ceiling { op, dtype: None, how: how.clone(), amount, provenance, samples });
    }
    Ok(list)
}
