//! One op on one kernel row: prepared, verified, timed, and its energy taken.

use anyhow::{Result, bail};
use perjoule::{Arg, Buffer, Choice, DType, Device, Op, Prepared, Stream};
use perjoule_kernels::op::MAX_OPERANDS;
use perjoule_kernels::{Access, Alignment, Query};
use perjoule_record::{CacheState, Clock, Kind, Record, stats};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ceilings::Ceilings;
use super::conditions::Watch;
use super::energy::Gauge;
use super::{Effort, Samples, Subject, data, in_turn, last_level_cache, measure};

/// Sets of operands that rotate, at most: small ops need a great many to leave the cache.
const SETS: usize = 1 << 16;
/// What rotates is so many times the last-level cache: caches do not evict the oldest line first, and a virtual machine may be told
/// of a part of its cache only.
const ROTATED: u64 = 16;
/// Difference of the time of a call within a window of energy from the median beyond which it is said.
const APART: f64 = 0.1;
/// Relative difference of two kernels, or commands, that matters.
pub(super) const DIFFERENCE: f64 = 0.02;
/// Samples of rotating operands last so long between two looks at the roof of memory.
const PROBED: Duration = Duration::from_millis(50);
/// Outputs of a large product that are checked one by one.
pub(super) const CHECKED: usize = 4096;

/// An op on memory that is allocated for it: what fresh allocations have of alignment.
pub(crate) fn fresh<'a>(device: &Device, op: &'a Op) -> Query<'a> {
    Query { op, alignment: Alignment::uniform(device.info().arena.align) }
}

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

/// Bytes that operands rotate through, as far as the device's memory allows.
pub(super) fn rotated(device: &Device) -> u64 {
    let wanted = ROTATED * last_level_cache(device);
    device.backend().free_bytes().map_or(wanted, |have| wanted.min(have / 4))
}

/// Rows that go through the weights at once.
fn rows(op: &Op) -> Option<usize> {
    match op {
        Op::MatMul(op) => Some(op.m),
        Op::GatedMatMul(op) => Some(op.gate.m),
        Op::GroupedMatMul(op) => Some(op.rows),
        Op::Attention(op) => Some(op.q_len),
        _ => None,
    }
}

/// The cache state that a shape is measured in by default: as in a model, where the weights of other layers lie between two calls.
pub(crate) fn default_cache(op: &Op) -> CacheState {
    match rows(op) {
        Some(m) if m <= 64 => CacheState::Rotate,
        _ => CacheState::Hot,
    }
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

impl Launches {
    /// Whether the operands stay in the last-level cache from call to call, so that memory is no roof.
    fn in_cache(&self, cache: CacheState) -> bool {
        let bytes: u64 = self.sets.iter().flatten().map(Buffer::bytes).sum();
        cache != CacheState::Cold && bytes <= self.cache_bytes
    }
}

impl<'a> Ready<'a> {
    /// Prepares the kernel, launches it once and checks what it wrote.
    fn new(task: &'a Task<'a>, mut record: Record) -> Result<Self> {
        let op = &task.op;
        let cache = task.cache.unwrap_or_else(|| default_cache(op));
        record.kind = Kind::Kernel;
        let workload = &mut record.workload;
        workload.op = Some(op.name().into());
        workload.kernel = Some(task.choice.kernel.name.into());
        workload.dtype = Some(task.dtype.name().into());
        workload.shape = Some(task.shape.clone());
        let config = task.choice.config().name;
        workload.config = Some(match task.choice.pack {
            Some(pack) => format!("{config}, b packed as {}", pack.name),
            None => config.into(),
        });
        workload.cache_state = Some(cache);
        workload.seed = Some(task.seed);
        workload.n_threads = Some(task.threads as u64);

        let before = data::operands(op, task.seed)?;
        let mut launches = Launches::new(task.device, op, task.choice, &before, cache, rotated(task.device))?;
        if cache == CacheState::Rotate && launches.in_cache(cache) {
            // too small to leave the cache in that many copies
            record.workload.cache_state = Some(CacheState::Hot);
        }
        let after = launches.outputs()?;
        // what lies in a packed weight is judged by the products that read it
        if !matches!(op, Op::Pack(_)) {
            let numerics = launches.prepared.numerics();
            let checked =
                perjoule_suite::verify(op, &slices(&before), &slices(&after), numerics, CHECKED, task.seed)?;
            record.verification.verified = Some(checked.passed);
            record.verification.max_rel_err = Some(checked.max_rel_err);
            if !checked.passed {
                record.invalidate(format!("wrong result: {}", checked.report.join("; ")));
            }
        }
        Ok(Ready { task, cache, launches, record })
    }

    /// Puts the samples into the record.
    fn time(&mut self, samples: Samples) {
        let timing = &mut self.record.timing;
        timing.clock = Some(match self.launches.took {
            Some(_) => Clock::Device,
            None => Clock::Host,
        });
        timing.calls_per_sample = Some(samples.calls_per_sample);
        timing.warmup_calls = Some(samples.warmup_calls);
        timing.overhead_ns = Some(samples.overhead_ns);
        timing.flops = Some(self.task.op.flops());
        timing.bytes = Some(self.task.op.bytes());
        timing.set_samples(samples.ns, self.task.seed);
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

pub(super) fn slices(list: &[Vec<u8>]) -> Vec<&[u8]> {
    list.iter().map(Vec::as_slice).collect()
}

/// A prepared kernel with one or more sets of operands.
pub(super) struct Launches {
    pub(super) prepared: Prepared,
    stream: Box<dyn Stream>,
    /// Kernels that read constants in the same format may share them.
    sets: Arc<Vec<Vec<Buffer>>>,
    next: usize,
    /// What is written to push everything else out of the caches, when calls are to be cold.
    flush: Option<(Buffer, Buffer)>,
    /// The device's last-level cache, in bytes.
    cache_bytes: u64,
    /// Whether launches are over when they return: the host's clock then times them.
    synchronous: bool,
    /// What the last calls took by the device's own clock.
    took: Option<Duration>,
}

impl Launches {
    /// Operands hold what `before` says; with [`CacheState::Rotate`] copies of them take about `rotated` bytes.
    pub(super) fn new(
        device: &Device,
        op: &Op,
        choice: Choice,
        before: &[Vec<u8>],
        cache: CacheState,
        rotated: u64,
    ) -> Result<Self> {
        let prepared = device.prepare_choice(op, choice)?;
        let mut stream = device.stream()?;
        let mut first = Vec::new();
        for (operand, bytes) in prepared.operands().iter().zip(before) {
            let buffer = device.alloc(operand.bytes)?;
            // packed operands are made below
            if bytes.len() as u64 == operand.bytes && operand.access != Access::Write {
                stream.write(&buffer, bytes)?;
            }
            first.push(buffer);
        }
        for constant in op.constants() {
            let Some(format) = choice.pack else { break };
            let plain = device.alloc(before[constant.operand].len() as u64)?;
            stream.write(&plain, &before[constant.operand])?;
            let packed = &first[constant.operand];
            device.pack_constant_into(&mut *stream, &constant, format, Arg::Buf(&plain), packed)?;
        }
        stream.reserve(prepared.scratch())?;
        let mut sets = vec![first];
        let bytes: u64 = prepared.operands().iter().map(|o| o.bytes).sum();
        if cache == CacheState::Rotate && bytes > 0 {
            let wanted = (rotated / bytes + 2) as usize;
            for _ in 1..wanted.min(SETS) {
                let copy = |from: &Buffer| -> Result<Buffer> {
                    let to = device.alloc(from.bytes())?;
                    stream.copy(&to, from)?;
                    Ok(to)
                };
                let set = sets[0].iter().map(copy).collect::<Result<Vec<_>>>()?;
                sets.push(set);
            }
        }
        let flush = match cache {
            CacheState::Cold => {
                let bytes = 2 * last_level_cache(device);
                Some((device.alloc(bytes)?, device.alloc(bytes)?))
            }
            _ => None,
        };
        stream.sync().wait()?;
        let (cache_bytes, synchronous) = (last_level_cache(device), device.info().synchronous);
        let sets = Arc::new(sets);
        Ok(Launches { prepared, stream, sets, next: 0, flush, cache_bytes, synchronous, took: None })
    }

    /// Another kernel for the same op, on the same operands: its constants are in the same format.
    pub(super) fn beside(&self, device: &Device, op: &Op, choice: Choice) -> Result<Self> {
        let prepared = device.prepare_choice(op, choice)?;
        let mut stream = device.stream()?;
        stream.reserve(prepared.scratch())?;
        let (sets, cache_bytes, synchronous) = (self.sets.clone(), self.cache_bytes, self.synchronous);
        Ok(Launches { prepared, stream, sets, next: 0, flush: None, cache_bytes, synchronous, took: None })
    }

    /// Gives the first set's operands that are read and written what `before` says: earlier launches have changed them.
    pub(super) fn restore(&mut self, before: &[Vec<u8>]) -> Result<()> {
        for ((operand, buffer), bytes) in self.prepared.operands().iter().zip(&self.sets[0]).zip(before) {
            if operand.access == Access::ReadWrite {
                self.stream.write(buffer, bytes)?;
            }
        }
        Ok(())
    }

    /// Short calls are timed too: of the usual few operands no long list is made.
    fn launch(&mut self, set: usize) -> Result<()> {
        match self.sets[set].len() {
            0..=4 => self.launch_of::<4>(set),
            _ => self.launch_of::<MAX_OPERANDS>(set),
        }
    }

    fn launch_of<const N: usize>(&mut self, set: usize) -> Result<()> {
        let buffers = &self.sets[set];
        let mut args: [Arg<'_>; N] = std::array::from_fn(|i| buffers.get(i).map_or(Arg::Host(&[]), Arg::Buf));
        let Some(args) = args.get_mut(..buffers.len()) else { bail!("an op with too many operands") };
        self.prepared.launch(&mut *self.stream, args)?;
        Ok(())
    }

    /// Launches once on the first set and returns what was written.
    pub(super) fn outputs(&mut self) -> Result<Vec<Vec<u8>>> {
        self.launch(0)?;
        let mut list = Vec::new();
        for (operand, buffer) in self.prepared.operands().iter().zip(&self.sets[0]) {
            if operand.access.writes() {
                list.push(self.stream.read(buffer).wait()?);
            }
        }
        Ok(list)
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

impl Subject for Launches {
    fn call(&mut self, count: u64) -> Result<()> {
        let start = if self.synchronous { None } else { Some(self.stream.record()?) };
        for _ in 0..count {
            self.launch(self.next)?;
            self.next += 1;
            if self.next == self.sets.len() {
                self.next = 0;
            }
        }
        let end = if self.synchronous { None } else { Some(self.stream.record()?) };
        self.stream.sync().wait()?;
        if let (Some(start), Some(end)) = (start, end) {
            self.took = end.since(&*start).wait()?;
        }
        Ok(())
    }

    fn device_time(&self) -> Option<Duration> {
        self.took
    }

    fn before_sample(&mut self) -> Result<()> {
        if let Some((to, from)) = &self.flush {
            self.stream.copy(to, from)?;
            self.stream.sync().wait()?;
        }
        Ok(())
    }

    fn one_call_a_sample(&self) -> bool {
        self.flush.is_some()
    }
}
