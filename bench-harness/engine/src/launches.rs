//! A prepared kernel with its operands.

use crate::sampling::Subject;
use anyhow::{Result, bail};
use perjoule::{Arg, Buffer, Choice, Device, Op, Prepared, Stream};
use perjoule_kernels::device::settled;
use perjoule_kernels::op::MAX_OPERANDS;
use perjoule_kernels::{Access, Alignment, Query};
use perjoule_record::{CacheState, Clock, Kind, Record};
use std::sync::Arc;
use std::time::Duration;

use crate::sampling::Samples;

/// Sets of operands that rotate, at most: small ops need a great many to leave the cache.
const SETS: usize = 1 << 16;
/// Outputs of a large product that are checked one by one.
pub const CHECKED: usize = 4096;

/// An op on memory that is allocated for it: what fresh allocations have of alignment.
pub fn fresh<'a>(device: &Device, op: &'a Op) -> Query<'a> {
    Query { op, alignment: Alignment::uniform(device.info().arena.align) }
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
pub fn default_cache(op: &Op) -> CacheState {
    match rows(op) {
        Some(m) if m <= 64 => CacheState::Rotate,
        _ => CacheState::Hot,
    }
}

/// Caches that operands are kept out of, and with how much.
#[derive(Debug, Clone, Copy)]
pub struct Caches {
    /// The last-level cache, in bytes.
    pub last_level: u64,
    /// Bytes that copies of operands take with [`CacheState::Rotate`].
    pub rotated: u64,
}

/// As slices.
pub fn slices(list: &[Vec<u8>]) -> Vec<&[u8]> {
    list.iter().map(Vec::as_slice).collect()
}

/// A prepared kernel with one or more sets of operands.
pub struct Launches {
    /// The kernel.
    pub prepared: Prepared,
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
    /// Operands hold what `before` says; with [`CacheState::Rotate`] there are copies of them.
    ///
    /// # Errors
    /// Whatever the device refuses.
    pub async fn new(
        device: &Device,
        op: &Op,
        choice: Choice,
        before: &[Vec<u8>],
        cache: CacheState,
        caches: Caches,
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
            let wanted = (caches.rotated / bytes + 2) as usize;
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
                let bytes = 2 * caches.last_level;
                Some((device.alloc(bytes)?, device.alloc(bytes)?))
            }
            _ => None,
        };
        settled(stream.sync()).await?;
        let (cache_bytes, synchronous) = (caches.last_level, device.info().synchronous);
        let sets = Arc::new(sets);
        Ok(Launches { prepared, stream, sets, next: 0, flush, cache_bytes, synchronous, took: None })
    }

    /// Another kernel for the same op, on the same operands: its constants are in the same format.
    ///
    /// # Errors
    /// Whatever the device refuses.
    pub fn beside(&self, device: &Device, op: &Op, choice: Choice) -> Result<Self> {
        let prepared = device.prepare_choice(op, choice)?;
        let mut stream = device.stream()?;
        stream.reserve(prepared.scratch())?;
        let (sets, cache_bytes, synchronous) = (self.sets.clone(), self.cache_bytes, self.synchronous);
        Ok(Launches { prepared, stream, sets, next: 0, flush: None, cache_bytes, synchronous, took: None })
    }

    /// Whether the operands stay in the last-level cache from call to call, so that memory is no roof.
    pub fn in_cache(&self, cache: CacheState) -> bool {
        let bytes: u64 = self.sets.iter().flatten().map(Buffer::bytes).sum();
        cache != CacheState::Cold && bytes <= self.cache_bytes
    }

    /// Gives the first set's operands that are read and written what `before` says: earlier launches have changed them.
    ///
    /// # Errors
    /// Whatever the device refuses.
    pub fn restore(&mut self, before: &[Vec<u8>]) -> Result<()> {
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

    /// Launches once on the first set and gives what was written.
    ///
    /// # Errors
    /// Faults of the kernel.
    pub async fn outputs(&mut self) -> Result<Vec<Vec<u8>>> {
        self.launch(0)?;
        let mut list = Vec::new();
        for (operand, buffer) in self.prepared.operands().iter().zip(&self.sets[0]) {
            if operand.access.writes() {
                list.push(settled(self.stream.read(buffer)).await?);
            }
        }
        Ok(list)
    }

    /// Launches once on what `before` says, and says in `record` whether the result is right; a wrong one makes it invalid.
    ///
    /// # Errors
    /// Faults of the kernel.
    pub async fn verify(
        &mut self,
        op: &Op,
        before: &[Vec<u8>],
        seed: u64,
        record: &mut Record,
    ) -> Result<()> {
        let after = self.outputs().await?;
        // what lies in a packed weight is judged by the products that read it
        if matches!(op, Op::Pack(_)) {
            return Ok(());
        }
        let numerics = self.prepared.numerics();
        let checked = perjoule_suite::verify(op, &slices(before), &slices(&after), numerics, CHECKED, seed)?;
        record.verification.verified = Some(checked.passed);
        record.verification.max_rel_err = Some(checked.max_rel_err);
        if !checked.passed {
            record.invalidate(format!("wrong result: {}", checked.report.join("; ")));
        }
        Ok(())
    }

    /// The columns of a record that say what is measured.
    pub fn describe(&self, op: &Op, shape: &str, dtype: &str, cache: CacheState, record: &mut Record) {
        record.kind = Kind::Kernel;
        let choice = self.prepared.choice();
        let workload = &mut record.workload;
        workload.op = Some(op.name().into());
        workload.kernel = Some(choice.kernel.name.into());
        workload.dtype = Some(dtype.into());
        workload.shape = Some(shape.into());
        let config = choice.config().name;
        workload.config = Some(match choice.pack {
            Some(pack) => format!("{config}, b packed as {}", pack.name),
            None => config.into(),
        });
        // operands may be too small to leave the cache in as many copies as there are
        let hot = cache == CacheState::Rotate && self.in_cache(cache);
        workload.cache_state = Some(if hot { CacheState::Hot } else { cache });
    }

    /// Puts samples into the record.
    pub fn time(&self, op: &Op, samples: Samples, seed: u64, record: &mut Record) {
        let timing = &mut record.timing;
        timing.clock = Some(match self.took {
            Some(_) => Clock::Device,
            None => Clock::Host,
        });
        timing.calls_per_sample = Some(samples.calls_per_sample);
        timing.warmup_calls = Some(samples.warmup_calls);
        timing.overhead_ns = Some(samples.overhead_ns);
        timing.flops = Some(op.flops());
        timing.bytes = Some(op.bytes());
        timing.set_samples(samples.ns, seed);
    }
}

impl Subject for Launches {
    async fn call(&mut self, count: u64) -> Result<()> {
        let start = if self.synchronous { None } else { Some(self.stream.record()?) };
        for _ in 0..count {
            self.launch(self.next)?;
            self.next += 1;
            if self.next == self.sets.len() {
                self.next = 0;
            }
        }
        let end = if self.synchronous { None } else { Some(self.stream.record()?) };
        settled(self.stream.sync()).await?;
        if let (Some(start), Some(end)) = (start, end) {
            self.took = settled(end.since(&*start)).await?;
        }
        Ok(())
    }

    fn device_time(&self) -> Option<Duration> {
        self.took
    }

    async fn before_sample(&mut self) -> Result<()> {
        if let Some((to, from)) = &self.flush {
            self.stream.copy(to, from)?;
            settled(self.stream.sync()).await?;
        }
        Ok(())
    }

    fn one_call_a_sample(&self) -> bool {
        self.flush.is_some()
    }
}
