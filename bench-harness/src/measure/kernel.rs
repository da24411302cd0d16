//! One op on one kernel row: prepared, verified, timed, and its energy taken.

use anyhow::Result;
use perjoule::{Choice, DType, Device, Op};
use perjoule_engine::data;
use perjoule_engine::launches::{Caches, Launches, default_cache};
use perjoule_kernels::device::at_once;
use perjoule_record::{CacheState, Record, stats};
use std::time::{Duration, Instant};

use super::ceilings::Ceilings;
use super::conditions::Watch;
use super::energy::Gauge;
use super::{Effort, Samples, Subject, in_turn, last_level_cache, measure};

/// What rotates is so many times the last-level cache: caches do not evict the oldest line first, and a virtual machine may be told
/// of a part of its cache only.
const ROTATED: u64 = 16;
/// Difference of the time of a call within a window of energy from the median beyond which it is said.
const APART: f64 = 0.1;
/// Relative difference of two kernels, or commands, that matters.
pub(super) const DIFFERENCE: f64 = 0.02;
/// Samples of rotating operands last so long between two looks at the roof of memory.
const PROBED: Duration = Duration::from_millis(50);
/// What to measure.
pub(crate) struct Task<'a> {
    pub(crate) device: &'a Device,
    pub(crate) op: Op,
    /// Element type as asked for: inputs and outputs.
    pub(crate) dtype: DType,
    /// Shape as `--shape` takes it.
    pub(crate) shape: String,
    pub(crate) choice: Choice,
    /// Cache state; `None` rotates products and attention of few rows, and keeps others hot.
    pub(crate) cache: Option<CacheState>,
    pub(crate) effort: Effort,
    pub(crate) seed: u64,
    pub(crate) threads: usize,
}

/// What operands are kept out of: they rotate through as much as the device's memory allows.
pub(super) fn caches(device: &Device) -> Caches {
    let last_level = last_level_cache(device);
    let wanted = ROTATED * last_level;
    let rotated = device.backend().free_bytes().map_or(wanted, |have| wanted.min(have / 4));
    Caches { last_level, rotated }
}

/// A kernel whose results were checked, ready to be timed, and its record so far.
struct Ready<'a> {
    task: &'a Task<'a>,
    cache: CacheState,
    launches: Launches,
    record: Record,
}

/// Measures and fills `record`; a wrong result makes it invalid.
pub(crate) fn run(
    task: &Task<'_>,
    ceilings: &mut Ceilings,
    gauge: Option<&Gauge>,
    record: Record,
) -> Result<Record> {
    let mut ready = Ready::new(task, record)?;
    let watch = Watch::beside(task.device.info(), gauge.and_then(Gauge::sensor));
    let samples = match ready.cache {
        // neighbours come and go: the roof is looked at in the moments in which the kernel is timed
        CacheState::Rotate => {
            measure(&mut Probed::new(&mut ready.launches, ceilings, task.device), task.effort)?
        }
        _ => measure(&mut ready.launches, task.effort)?,
    };
    ready.time(samples);
    watch.finish(&mut ready.record);
    ceilings.refresh(task.device)?;
    ready.finish(ceilings, gauge)
}

/// Measures `baseline` and `task` in turn, and fills a record of either; that of `task` says how it compares.
pub(crate) fn run_versus(
    baseline: &Task<'_>,
    task: &Task<'_>,
    ceilings: &mut Ceilings,
    gauge: Option<&Gauge>,
    record: Record,
) -> Result<(Record, Record)> {
    let mut one = Ready::new(baseline, record.clone())?;
    let mut other = Ready::new(task, record)?;
    let watch = Watch::beside(task.device.info(), gauge.and_then(Gauge::sensor));
    let (a, b) = match one.cache {
        CacheState::Rotate => {
            let mut probed = Probed::new(&mut one.launches, ceilings, task.device);
            in_turn(&mut probed, &mut other.launches, task.effort)?
        }
        _ => in_turn(&mut one.launches, &mut other.launches, task.effort)?,
    };
    let compared = stats::compare_pairs(&a.ns, &b.ns, DIFFERENCE, task.seed);
    one.time(a);
    other.time(b);
    watch.finish_all(&mut [&mut one.record, &mut other.record]);
    let versus = &mut other.record.versus;
    versus.versus = Some(baseline.choice.kernel.name.into());
    if let Some(compared) = compared {
        versus.versus_ratio = Some(compared.ratio);
        versus.versus_ci95 = Some(compared.ci95);
        versus.versus_p_value = Some(compared.p_value);
        versus.versus_verdict = Some(compared.verdict);
    }
    ceilings.refresh(task.device)?;
    Ok((one.finish(ceilings, gauge)?, other.finish(ceilings, gauge)?))
}

impl<'a> Ready<'a> {
    /// Prepares the kernel, launches it once and checks what it wrote.
    fn new(task: &'a Task<'a>, mut record: Record) -> Result<Self> {
        let op = &task.op;
        let cache = task.cache.unwrap_or_else(|| default_cache(op));
        let before = data::operands(op, task.seed)?;
        let made = Launches::new(task.device, op, task.choice, &before, cache, caches(task.device));
        let mut launches = at_once(made)?;
        launches.describe(op, &task.shape, task.dtype.name(), cache, &mut record);
        record.workload.seed = Some(task.seed);
        record.workload.n_threads = Some(task.threads as u64);
        at_once(launches.verify(op, &before, task.seed, &mut record))?;
        Ok(Ready { task, cache, launches, record })
    }

    /// Puts the samples into the record.
    fn time(&mut self, samples: Samples) {
        self.launches.time(&self.task.op, samples, self.task.seed, &mut self.record);
    }

    /// Holds it against the roof and takes the energy: of the median call where power is modelled as constant, else of as many calls
    /// as the meter needs.
    fn finish(self, ceilings: &Ceilings, gauge: Option<&Gauge>) -> Result<Record> {
        let Ready { task, cache, mut launches, mut record } = self;
        ceilings.hold(&mut record, task.dtype, launches.in_cache(cache));
        // cold calls have flushes between them, whose energy is not theirs
        let Some(gauge) = gauge.filter(|_| cache != CacheState::Cold) else { return Ok(record) };
        let median_s = record.timing.median_ns.unwrap_or(0.0) * 1e-9;
        if let Some(energy) = gauge.of_time(median_s, 1) {
            record.energy = energy;
            return Ok(record);
        }
        let calls = record.timing.calls_per_sample.unwrap_or(1);
        record.energy = gauge.window_over(task.effort.time, || launches.call(calls).map(|()| calls))?;
        let energy = &record.energy;
        if let (Some(seconds), Some(calls)) = (energy.energy_window_s, energy.energy_calls) {
            let longer = seconds / calls.max(1) as f64 / median_s - 1.0;
            if longer.abs() > APART {
                let note =
                    format!("calls took {:+.0} % of the median while energy was measured", 100.0 * longer);
                record.disturbances.get_or_insert_default().push(note);
            }
        }
        Ok(record)
    }
}

/// A subject that leaves its cache cold anyway: the roof of memory is looked at between its samples.
struct Probed<'s> {
    inner: &'s mut Launches,
    ceilings: &'s mut Ceilings,
    device: &'s Device,
    last: Instant,
}

impl<'s> Probed<'s> {
    fn new(inner: &'s mut Launches, ceilings: &'s mut Ceilings, device: &'s Device) -> Self {
        Probed { inner, ceilings, device, last: Instant::now() }
    }
}

impl Subject for Probed<'_> {
    fn call(&mut self, count: u64) -> Result<()> {
        self.inner.call(count)
    }

    fn device_time(&self) -> Option<Duration> {
        self.inner.device_time()
    }

    fn before_sample(&mut self) -> Result<()> {
        if self.last.elapsed() >= PROBED {
            self.ceilings.read(self.device)?;
            self.last = Instant::now();
        }
        self.inner.before_sample()
    }

    fn one_call_a_sample(&self) -> bool {
        self.inner.one_call_a_sample()
    }
}
