//! What a device can do at most, measured in the run that holds kernels against it.
//!
//! Clocks and neighbours change within a run. So a short probe follows each measurement, the roof is the best that any probe saw so far
//! (rows of a table are held against one roof, that of the moment it is printed), and the whole is measured again at the end, where the
//! drift shows.

use anyhow::Result;
use perjoule::{DType, Device};
use perjoule_cpu::CpuDevice;
use perjoule_cpu::ceiling::{self, Arithmetic, Bandwidth};
use perjoule_cuda::CudaDevice;
use perjoule_cuda::ceiling as cuda;
use perjoule_engine::roofs::{Ceiling, Roofs};
use perjoule_record::{Provenance, Record};
use perjoule_webgpu::WebGpuDevice;
use perjoule_webgpu::ceiling as webgpu;
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
/// The same of a GPU: a call is then long beside its start.
const GPU_MEMORY: u64 = 4 << 30;

/// The same through WebGPU, which does not tell how much memory there is.
const WEBGPU_MEMORY: u64 = 512 << 20;

/// The ceilings of one device.
#[derive(Default)]
pub(crate) struct Ceilings {
    /// As first measured, and the best that any probe saw so far.
    pub(crate) roofs: Roofs,
    /// What else used the machine meanwhile.
    pub(crate) disturbances: Option<Vec<String>>,
    /// The probes: kept, since making what they stream through takes longer than reading it.
    probes: Option<Probes>,
}

impl Ceilings {
    /// Holds `record`, whose work is on `dtype`, against the roof: see [`Roofs::hold`].
    pub(crate) fn hold(&self, record: &mut Record, dtype: DType, in_cache: bool) {
        self.roofs.hold(record, dtype, in_cache);
    }

    /// Holds records for one table, each with the type that its work is on, against the best roof that there is by now.
    pub(crate) fn hold_again<'r>(&self, records: impl IntoIterator<Item = (&'r mut Record, DType)>) {
        records.into_iter().for_each(|(record, dtype)| self.roofs.hold_again(record, dtype));
    }

    /// Probes shortly, and raises the roof where the device does better than before.
    pub(crate) fn refresh(&mut self, device: &Device) -> Result<()> {
        let Some(probes) = self.probes.take() else { return Ok(()) };
        for unit in probes.units(device) {
            let start = Instant::now();
            while start.elapsed() < PROBE.0 {
                let once = Instant::now();
                let flops = probes.compute(device, &unit)?;
                self.roofs.raise(
                    (unit.op, Some(unit.dtype)),
                    flops as f64 / once.elapsed().as_nanos().max(1) as f64,
                );
            }
        }
        self.probes = Some(probes);
        (0..PROBE.1).try_for_each(|_| self.read(device))
    }

    /// Reads memory once, and raises its roof where that goes faster than before.
    pub(crate) fn read(&mut self, device: &Device) -> Result<()> {
        let Some(probes) = &self.probes else { return Ok(()) };
        let once = Instant::now();
        let bytes = probes.read(device)?;
        self.roofs.raise(("read", None), bytes as f64 / once.elapsed().as_nanos().max(1) as f64);
        Ok(())
    }
}

/// Measures the ceilings of `device` within `time`; none are known for backends that have no such probe.
pub(crate) fn ceilings(device: &Device, time: Duration) -> Result<Ceilings> {
    let watch = Watch::start();
    let mut all = Ceilings::default();
    if let Some(probes) = Probes::new(device)? {
        all.roofs.list = measured(device, &probes, time)?;
        all.probes = Some(probes);
    }
    let rates: Vec<_> =
        all.roofs.list.iter().filter_map(|c| Some(((c.op, c.measured_on), c.best()?))).collect();
    rates.into_iter().for_each(|(key, rate)| all.roofs.raise(key, rate));
    all.disturbances = watch.finish();
    Ok(all)
}

/// One kind of arithmetic that a device can be driven to its limit with.
struct Unit {
    /// Its name in records.
    op: &'static str,
    /// The type that it computes on, and others whose kernels widen to that.
    dtype: DType,
    widened: &'static [DType],
    /// The instructions that do it.
    set: &'static str,
    /// What they work on, and with how many threads.
    by: String,
    which: Which,
}

enum Which {
    Cpu(Arithmetic),
    Cuda(cuda::Arithmetic),
    WebGpu(webgpu::Arithmetic),
}

/// A device's probes.
enum Probes {
    Cpu(Bandwidth),
    Cuda(Box<cuda::Probes>),
    WebGpu(Box<webgpu::Probes>),
}

impl Probes {
    fn new(device: &Device) -> Result<Option<Self>> {
        if let Some(cpu) = cpu(device) {
            return Ok(Some(Probes::Cpu(Bandwidth::new(cpu, streamed())?)));
        }
        // beside models and operands that rotate
        let most = device.backend().free_bytes().map_or(GPU_MEMORY, |free| (free / 8).min(GPU_MEMORY));
        if let Some(gpu) = cuda_gpu(device) {
            return Ok(Some(Probes::Cuda(Box::new(cuda::Probes::new(gpu, most)?))));
        }
        let Some(gpu) = webgpu(device) else { return Ok(None) };
        // how much is free is not told
        Ok(Some(Probes::WebGpu(Box::new(webgpu::Probes::new(gpu, WEBGPU_MEMORY)?))))
    }

    fn units(&self, device: &Device) -> Vec<Unit> {
        match (self, cpu(device), cuda_gpu(device)) {
            (Probes::Cpu(_), Some(cpu), _) => Arithmetic::ALL
                .into_iter()
                .filter_map(|which| {
                    let (dtype, widened): (_, &[DType]) = match which {
                        Arithmetic::MultiplyAdd => (DType::F32, &[DType::F16, DType::F8E4M3, DType::BF16]),
                        Arithmetic::DotPairs => (DType::BF16, &[]),
                        Arithmetic::DotQuads => (DType::I8, &[]),
                        Arithmetic::TilesBf16 => (DType::BF16, &[]),
                        Arithmetic::TilesI8 => (DType::I8, &[]),
                    };
                    let set = which.instruction_set(cpu)?;
                    let by = format!("registers, {set}, {} threads", cpu.threads());
                    Some(Unit { op: which.name(), dtype, widened, set, by, which: Which::Cpu(which) })
                })
                .collect(),
            (Probes::Cuda(probes), _, Some(gpu)) => probes
                .arithmetic()
                .filter_map(|which| {
                    let (dtype, widened): (_, &[DType]) = match which {
                        cuda::Arithmetic::MultiplyAdd => {
                            (DType::F32, &[DType::F16, DType::BF16, DType::F8E4M3])
                        }
                        cuda::Arithmetic::Tensor(dtype) => (dtype, &[]),
                    };
                    let set = which.instruction(gpu.caps().sm)?;
                    let place = if set == "wgmma" { "shared memory" } else { "registers" };
                    let by = format!("{place}, {set}");
                    Some(Unit { op: which.name(), dtype, widened, set, by, which: Which::Cuda(which) })
                })
                .collect(),
            (Probes::WebGpu(probes), ..) => probes
                .arithmetic()
                .map(|which| {
                    let (widened, set): (&[DType], _) = match which {
                        webgpu::Arithmetic::MultiplyAdd => {
                            (&[DType::F16, DType::BF16, DType::F8E4M3], "WGSL f32")
                        }
                        webgpu::Arithmetic::MultiplyAddF16 => (&[], "WGSL f16"),
                    };
                    let by = format!("registers, {set}");
                    Unit {
                        op: which.name(),
                        dtype: which.dtype(),
                        widened,
                        set,
                        by,
                        which: Which::WebGpu(which),
                    }
                })
                .collect(),
            _ => Vec::new(),
        }
    }

    fn compute(&self, device: &Device, unit: &Unit) -> perjoule::Result<u64> {
        match (self, &unit.which, cpu(device)) {
            (Probes::Cpu(_), Which::Cpu(which), Some(cpu)) => ceiling::arithmetic(cpu, *which, ROUNDS),
            (Probes::Cuda(probes), Which::Cuda(which), _) => probes.compute(*which),
            (Probes::WebGpu(probes), Which::WebGpu(which), _) => finished(probes.compute(*which)),
            _ => Ok(0), // of another device
        }
    }

    fn read(&self, device: &Device) -> perjoule::Result<u64> {
        match (self, cpu(device)) {
            (Probes::Cpu(memory), Some(cpu)) => memory.read(cpu),
            (Probes::Cuda(probes), _) => probes.read(),
            (Probes::WebGpu(probes), _) => finished(probes.read()),
            _ => Ok(0),
        }
    }

    fn copy(&self, device: &Device) -> perjoule::Result<u64> {
        match (self, cpu(device)) {
            (Probes::Cpu(memory), Some(cpu)) => memory.copy(cpu),
            (Probes::Cuda(probes), _) => probes.copy(),
            (Probes::WebGpu(probes), _) => finished(probes.copy()),
            _ => Ok(0),
        }
    }

    /// Bytes that reading goes through.
    fn bytes(&self) -> u64 {
        match self {
            Probes::Cpu(_) => streamed() as u64,
            Probes::Cuda(probes) => probes.bytes(),
            Probes::WebGpu(probes) => probes.bytes(),
        }
    }
}

/// The amount of a probe, behind its end.
fn finished(started: perjoule::Result<(u64, perjoule::kernels::Pending<()>)>) -> perjoule::Result<u64> {
    let (amount, end) = started?;
    end.wait().map(|()| amount)
}

fn webgpu(device: &Device) -> Option<&WebGpuDevice> {
    (&**device.backend() as &dyn Any).downcast_ref()
}

fn cuda_gpu(device: &Device) -> Option<&CudaDevice> {
    (&**device.backend() as &dyn Any).downcast_ref()
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

/// Samples `probe` for about `time`.
fn sampled(probe: &dyn Fn() -> perjoule::Result<u64>, time: Duration) -> Result<(u64, Samples)> {
    let start = Instant::now();
    let amount = probe()?;
    let once = start.elapsed().as_secs_f64().max(1e-6);
    let count = (time.as_secs_f64() / once) as usize;
    let effort = Effort { time, repetitions: Some(count.clamp(SAMPLES.0, SAMPLES.1)), bounded: false };
    Ok((amount, measure(&mut Call(probe), effort)?.best_of(BEST_OF)))
}

fn measured(device: &Device, probes: &Probes, time: Duration) -> Result<Vec<Ceiling>> {
    let provenance = Provenance::Measured;
    let mut list: Vec<Ceiling> = Vec::new();
    let units = probes.units(device);
    let time = time / (units.len() as u32 + 2).max(1);
    for unit in &units {
        let (amount, samples) = sampled(&|| probes.compute(device, unit), time)?;
        let own = Ceiling {
            op: unit.op,
            dtype: Some(unit.dtype),
            measured_on: Some(unit.dtype),
            how: format!("{}, best of {BEST_OF}", unit.by),
            amount,
            provenance,
            samples,
        };
        // what computes on a type by itself replaces what widens it
        list.retain(|c| c.dtype != own.dtype || c.provenance == provenance);
        let set = unit.set;
        let widened = unit.widened.iter().map(|&dtype| Ceiling {
            dtype: Some(dtype),
            how: format!(
                "that of {}, to which {set} kernels widen {dtype}; {dtype} instructions are not used",
                unit.dtype
            ),
            provenance: Provenance::Modelled,
            ..own.clone()
        });
        let widened: Vec<Ceiling> = widened.collect();
        list.push(own);
        list.extend(widened);
    }
    let threads = cpu(device).map_or(String::new(), |cpu| format!("{} threads, ", cpu.threads()));
    let how = format!("{} MiB, {threads}best of {BEST_OF}", probes.bytes() >> 20);
    let streams: [(&'static str, &dyn Fn() -> perjoule::Result<u64>); 2] =
        [("read", &|| probes.read(device)), ("copy", &|| probes.copy(device))];
    for (op, probe) in streams {
        let (amount, samples) = sampled(probe, time)?;
        let how = how.clone();
        list.push(Ceiling { op, dtype: None, measured_on: None, how, amount, provenance, samples });
    }
    Ok(list)
}
