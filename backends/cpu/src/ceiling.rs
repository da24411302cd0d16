//! What this CPU can do at most, measured: arithmetic out of registers, and streaming through memory. Kernels are held against it.
//!
//! Both run as regions of the device's team, with as many threads and the instruction set that its rows may use. They are amounts of
//! work, not times: the caller times them with the clock that it uses for kernels.

use crate::device::{CpuCaps, CpuDevice};
use crate::features::Features;
use crate::launch::matmul::amx::{self, Kind};
use crate::memory::HostMemory;
use crate::placement::Placement;
use crate::simd::{self, Kernel, Portable, Simd};
use crate::simd::{Avx2, Avx512, Avx512Bf16, Avx512Vnni, Neon, NeonBf16, NeonDot, NeonI8mm};
use crate::team::Panicked;
use perjoule_kernels::{Device, DeviceId, Error, Result};
use std::hint::black_box;
use std::sync::Mutex;

/// Independent chains of multiply-adds: more than latency times throughput of any x86 or Arm core (4 cycles on 2 units need 8), few
/// enough to stay in 16 registers.
const CHAINS: usize = 12;

/// Streams of a lane that are summed side by side, to hide the latency of additions.
const STREAMS: usize = 8;

fn fault(panicked: Panicked) -> Error {
    Error::Fault { kernel: "ceiling", detail: panicked.0 }
}

fn caps(device: &CpuDevice) -> CpuCaps {
    // a CpuDevice always carries its caps
    device.info().caps::<CpuCaps>().cloned().unwrap_or(CpuCaps {
        placement: Placement::default(),
        features: Default::default(),
        caches: crate::features::Caches::detect(),
        threads: device.threads(),
    })
}

/// Arithmetic that is driven to its limit, out of registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arithmetic {
    /// f32 multiply-adds.
    MultiplyAdd,
    /// Dot products of two bf16 in f32, where the processor has an instruction for them.
    DotPairs,
    /// Dot products of four bytes in i32, where the processor has an instruction for them.
    DotQuads,
    /// Tiles of bf16, summed in f32, where the processor has AMX.
    TilesBf16,
    /// Tiles of bytes, summed in i32, where the processor has AMX.
    TilesI8,
}

impl Arithmetic {
    /// All of it.
    pub const ALL: [Arithmetic; 5] = [
        Arithmetic::MultiplyAdd,
        Arithmetic::DotPairs,
        Arithmetic::DotQuads,
        Arithmetic::TilesBf16,
        Arithmetic::TilesI8,
    ];

    /// Its name in records.
    pub fn name(self) -> &'static str {
        match self {
            Arithmetic::MultiplyAdd => "multiply_add",
            Arithmetic::DotPairs => "dot_pairs",
            Arithmetic::DotQuads => "dot_quads",
            Arithmetic::TilesBf16 => "tiles_bf16",
            Arithmetic::TilesI8 => "tiles_i8",
        }
    }

    /// Name of the instruction set that does it on this device; `None` where rows have no instruction for it.
    pub fn instruction_set(self, device: &CpuDevice) -> Option<&'static str> {
        self.set(caps(device).features).map(|set| set.name)
    }

    /// The first instruction set that a device may use for it.
    fn set(self, features: Features) -> Option<&'static Set> {
        let sets = match self {
            Arithmetic::MultiplyAdd => MULTIPLY_ADD_SETS,
            Arithmetic::DotPairs => DOT_PAIRS_SETS,
            Arithmetic::DotQuads => DOT_QUADS_SETS,
            Arithmetic::TilesBf16 => TILES_BF16_SETS,
            Arithmetic::TilesI8 => TILES_I8_SETS,
        };
        sets.iter().find(|set| (set.allowed)(features))
    }
}

/// An instruction set, and how it is driven to its limit: the multiplications that each lane of the team has done come back.
struct Set {
    name: &'static str,
    allowed: fn(Features) -> bool,
    run: fn(&CpuDevice, Arithmetic, u64) -> Result<u64>,
}

const fn set<S: Simd>() -> Set {
    Set { name: S::NAME, allowed: S::allowed, run: in_registers::<S> }
}

const fn tiles<K: Kind>(name: &'static str) -> Set {
    Set { name, allowed: K::allowed, run: in_tiles::<K> }
}

// fastest first
static MULTIPLY_ADD_SETS: &[Set] = &[set::<Avx512>(), set::<Avx2>(), set::<Neon>(), set::<Portable>()];
static DOT_PAIRS_SETS: &[Set] = &[set::<Avx512Bf16>(), set::<NeonBf16>()];
static DOT_QUADS_SETS: &[Set] = &[set::<Avx512Vnni>(), set::<NeonI8mm>(), set::<NeonDot>()];
static TILES_BF16_SETS: &[Set] = &[tiles::<amx::Bf16>("amx-bf16")];
static TILES_I8_SETS: &[Set] = &[tiles::<amx::Bytes8>("amx-int8")];

/// Rounds of vectors that take about as long as one of tiles.
const VECTORS: u64 = 8;

/// `rounds` rounds of arithmetic in registers on every lane, or the fewer rounds of tiles that take about as long. Returns the operations
/// done, a multiplication and an addition counted as two.
///
/// # Errors
/// [`Error::Unsupported`] where [`Arithmetic::instruction_set`] is `None`, [`Error::Fault`] when a lane panics, [`Error::Lost`] after
/// a fork.
pub fn arithmetic(device: &CpuDevice, which: Arithmetic, rounds: u64) -> Result<u64> {
    let Some(set) = which.set(caps(device).features) else {
        return Err(Error::Unsupported {
            what: "this arithmetic",
            why: format!("the device has no instruction set for {}", which.name()),
        });
    };
    Ok(2 * (set.run)(device, which, rounds)? * device.threads() as u64)
}

fn in_tiles<K: Kind>(device: &CpuDevice, _: Arithmetic, rounds: u64) -> Result<u64> {
    let rounds = rounds.div_ceil(VECTORS);
    // SAFETY: `Arithmetic::set` has asked `Kind::allowed`, which says so of no processor without them.
    device.region(&|_| unsafe { K::in_registers(black_box(rounds)) })?;
    Ok(rounds * amx::ROUND * K::PER as u64)
}

fn in_registers<S: Simd>(device: &CpuDevice, which: Arithmetic, rounds: u64) -> Result<u64> {
    let s = simd::token::<S>()?;
    let products = match which {
        Arithmetic::DotPairs => 2,
        Arithmetic::DotQuads => 4,
        _ => 1,
    };
    device.region(&|_| {
        let start = black_box(1.0);
        match which {
            // two bf16, and four bytes, that are no zeros
            Arithmetic::DotPairs => {
                let factor = black_box(f32::from_bits(0x3f9d_bf13));
                black_box(s.vectorise(Chains::<{ DOT_PAIRS }> { rounds, start, factor }));
            }
            Arithmetic::DotQuads => {
                let factor = black_box(f32::from_bits(0x2f9d_5f13));
                black_box(s.vectorise(Chains::<{ DOT_QUADS }> { rounds, start, factor }));
            }
            _ => {
                let factor = black_box(0.999_9);
                black_box(s.vectorise(Chains::<{ MULTIPLY_ADD }> { rounds, start, factor }));
            }
        }
    })?;
    Ok(rounds * (CHAINS * S::LANES * products) as u64)
}

const MULTIPLY_ADD: u8 = 0;
const DOT_PAIRS: u8 = 1;
const DOT_QUADS: u8 = 2;

/// Chains of one kind of arithmetic.
struct Chains<const WHICH: u8> {
    rounds: u64,
    start: f32,
    factor: f32,
}

impl<const WHICH: u8> Kernel for Chains<WHICH> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let factor = s.splat(self.factor);
        let one = s.splat(self.start);
        let mut chains = [one; CHAINS];
        for _ in 0..self.rounds {
            for chain in &mut chains {
                *chain = match WHICH {
                    // x = x * 0.9999 + 1: stays finite and normal for ever
                    MULTIPLY_ADD => s.fma(*chain, factor, one),
                    DOT_PAIRS => s.dot_pairs(factor, factor, *chain),
                    _ => s.dot_quads(factor, factor, *chain),
                };
            }
        }
        let mut sum = s.splat(0.0);
        for chain in chains {
            sum = s.add(sum, chain);
        }
        s.reduce_add(sum)
    }
}

/// Memory to stream through: a source and a destination, of which each lane has a part that it alone touches. It is had as buffers
/// are, so that kernels find no better pages than the ceiling does.
pub struct Bandwidth {
    device: DeviceId,
    parts: Vec<Mutex<Option<Part>>>,
    bytes: u64,
}

struct Part {
    from: HostMemory,
    to: HostMemory,
}

impl Part {
    /// Source and destination of `bytes` bytes, every page of which this thread has written.
    fn new(device: &CpuDevice, bytes: u64) -> Result<Self> {
        let memory = |value: f32| {
            let mut memory = device.inner.memory(bytes)?;
            floats(&mut memory).fill(value);
            Ok(memory)
        };
        Ok(Part { from: memory(1.0)?, to: memory(2.0)? })
    }
}

fn floats(memory: &mut HostMemory) -> &mut [f32] {
    bytemuck::cast_slice_mut(memory.bytes_mut())
}

impl Bandwidth {
    /// Takes about `bytes` bytes for the source and as many for the destination; they should be many times the last-level cache.
    /// Every page is written by the lane that reads it, so that it lies in that lane's memory.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Fault`], [`Error::Lost`].
    pub fn new(device: &CpuDevice, bytes: usize) -> Result<Self> {
        let lanes = device.threads();
        let each = (bytes / lanes).next_multiple_of(4096) as u64;
        let parts: Vec<Mutex<Option<Part>>> = (0..lanes).map(|_| Mutex::default()).collect();
        let refused = Mutex::new(None);
        device.region(&|lane| match Part::new(device, each) {
            Ok(part) => *locked(&parts[lane.index()]) = Some(part),
            Err(error) => *locked(&refused) = Some(error),
        })?;
        match refused.into_inner().unwrap_or_else(|e| e.into_inner()) {
            Some(error) => Err(error),
            None => Ok(Bandwidth { device: device.inner.id, parts, bytes: each * lanes as u64 }),
        }
    }

    /// Runs `job` on every lane with its part.
    fn each(&self, device: &CpuDevice, job: &(dyn Fn(&mut Part) + Sync)) -> Result<()> {
        if device.inner.id != self.device {
            return Err(Error::WrongDevice { kernel: "ceiling", operand: "memory" });
        }
        device.region(&|lane| {
            if let Some(part) = &mut *locked(&self.parts[lane.index()]) {
                job(part);
            }
        })
    }

    /// Reads the source once. Returns the bytes read.
    ///
    /// # Errors
    /// [`Error::WrongDevice`] for another device than the memory was taken on, [`Error::Fault`], [`Error::Lost`].
    pub fn read(&self, device: &CpuDevice) -> Result<u64> {
        let features = caps(device).features;
        self.each(device, &|part| {
            let sum = Sum(floats(&mut part.from));
            black_box(
                match (usable::<Avx512>(features), usable::<Avx2>(features), usable::<Neon>(features)) {
                    (Some(s), _, _) => s.vectorise(sum),
                    (_, Some(s), _) => s.vectorise(sum),
                    (_, _, Some(s)) => s.vectorise(sum),
                    _ => Portable.vectorise(sum),
                },
            );
        })?;
        Ok(self.bytes)
    }

    /// Copies the source to the destination once. Returns the bytes read and written together.
    ///
    /// # Errors
    /// As [`Bandwidth::read`].
    pub fn copy(&self, device: &CpuDevice) -> Result<u64> {
        self.each(device, &|part| {
            part.to.bytes_mut().copy_from_slice(part.from.bytes_mut());
            black_box(part.to.bytes_mut());
        })?;
        Ok(2 * self.bytes)
    }
}

fn usable<S: Simd>(features: Features) -> Option<S> {
    if S::allowed(features) { S::detect() } else { None }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // a lane that panicked leaves nothing half done: its region is an error
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

/// Sum of a slice whose length is a multiple of 1024.
struct Sum<'a>(&'a [f32]);

impl Kernel for Sum<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let mut sums = [s.splat(0.0); STREAMS];
        for chunk in self.0.chunks_exact(STREAMS * S::LANES) {
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = s.add(*sum, s.load(&chunk[i * S::LANES..]));
            }
        }
        let mut all = s.splat(0.0);
        for sum in sums {
            all = s.add(all, sum);
        }
        s.reduce_add(all)
    }
}

impl CpuDevice {
    /// Runs `job` on every lane of the team, while nobody else uses the device.
    fn region(&self, job: &(dyn Fn(&crate::team::Lane<'_>) + Sync)) -> Result<()> {
        self.inner.team.lock()?.run(job).map_err(fault)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Options;

    fn device(features: Features) -> CpuDevice {
        CpuDevice::open(&Options { threads: Some(2), features: Some(features) }).unwrap()
    }

    #[test]
    fn work_is_counted_for_every_lane_and_instruction_set() {
        let found = Features::of_processor();
        let none = Features::default();
        let each = [
            (none, Portable::LANES, true),
            (Features { avx2: true, ..none }, Avx2::LANES, found.avx2),
            (Features { neon: true, ..none }, Neon::LANES, found.neon),
        ];
        for (features, lanes, _) in each.into_iter().filter(|(.., found)| *found) {
            let done = arithmetic(&device(features), Arithmetic::MultiplyAdd, 1000).unwrap();
            assert_eq!(done, 1000 * 2 * (CHAINS * lanes) as u64 * 2);
        }
        let device = device(found);
        let lanes = if found.neon { Neon::LANES } else { Avx512::LANES };
        for (which, products) in [(Arithmetic::DotPairs, 2), (Arithmetic::DotQuads, 4)] {
            let done = arithmetic(&device, which, 1000);
            match which.instruction_set(&device) {
                Some(_) => assert_eq!(done.unwrap(), 1000 * 2 * (CHAINS * lanes * products) as u64 * 2),
                None => assert!(matches!(done, Err(Error::Unsupported { .. }))),
            }
        }
        for (which, products) in [(Arithmetic::TilesBf16, 2), (Arithmetic::TilesI8, 4)] {
            let done = arithmetic(&device, which, 8 * 1000);
            match which.instruction_set(&device) {
                // four products of tiles of 16 by 16 words
                Some(_) => assert_eq!(done.unwrap(), 1000 * 2 * 4 * 16 * 16 * 16 * products * 2),
                None => assert!(matches!(done, Err(Error::Unsupported { .. }))),
            }
        }
    }

    /// Features are the caller's to say, in safe code: what the processor lacks is not run for that.
    #[test]
    fn what_the_processor_lacks_is_refused_whatever_the_options_say() {
        let all = Features {
            avx2: true,
            avx512: true,
            avx512_vnni: true,
            avx512_bf16: true,
            amx_bf16: true,
            amx_int8: true,
            neon: true,
            neon_dot: true,
            neon_i8mm: true,
            neon_bf16: true,
        };
        let found = Features::of_processor();
        let device = device(all);
        assert_eq!(device.info().features, found.names());
        assert_eq!(caps(&device).features, found);
        for which in [Arithmetic::TilesBf16, Arithmetic::TilesI8] {
            let has = which.instruction_set(&device).is_some();
            assert_eq!(arithmetic(&device, which, 8).is_ok(), has);
        }
        // a description that is not the device's own
        assert_eq!(amx::Bf16::allowed(all), found.amx_bf16);
        assert_eq!(amx::Bytes8::allowed(all), found.amx_int8);
    }

    #[test]
    fn chains_converge_to_their_fixed_point() {
        // x = f x + 1 tends to 1 / (1 - f): the loop really runs
        let sum = Portable.vectorise(Chains::<MULTIPLY_ADD> { rounds: 100_000, start: 1.0, factor: 0.9 });
        let expected = 10.0 * (CHAINS * Portable::LANES) as f32;
        assert!((sum / expected - 1.0).abs() < 1e-4, "{sum} {expected}");
    }

    #[test]
    fn streams_move_what_they_say() {
        let device = device(Features::of_processor());
        let memory = Bandwidth::new(&device, 1 << 20).unwrap();
        assert_eq!(memory.read(&device).unwrap(), 1 << 20);
        assert_eq!(memory.copy(&device).unwrap(), 2 << 20);
        let other = self::device(Features::of_processor());
        assert!(matches!(memory.read(&other), Err(Error::WrongDevice { .. })));
        for part in &memory.parts {
            let mut part = part.lock().unwrap();
            let Part { from, to } = part.as_mut().unwrap();
            let from = floats(from);
            assert_eq!(from.len(), (1 << 20) / 8);
            assert!(floats(to).iter().all(|&x| x == 1.0));
            assert_eq!(Portable.vectorise(Sum(from)), from.len() as f32);
        }
    }
}
