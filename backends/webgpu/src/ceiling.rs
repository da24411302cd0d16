//! What an adapter can do at most, measured: multiply-adds out of registers, and streaming through memory. Kernels are held against it.
//!
//! Probes are amounts of work, not times: the caller times them from their start to where the [`Pending`] is there, which native code
//! waits for and a browser awaits.

use crate::device::WebGpuDevice;
use crate::inner::Inner;
use crate::launch::{Dims, Place, Step};
use crate::pipeline::{Checks, Kernel, Shader};
use crate::shader::{Binding, Variant};
use crate::stream::WebGpuStream;
use perjoule_kernels::{Buffer, DType, Device, Pending, Result, Stream};
use perjoule_shaders::{Source, wgsl};
use std::sync::{Arc, Mutex, PoisonError};

/// Arithmetic that is driven to its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Arithmetic {
    /// f32 multiply-adds.
    MultiplyAdd,
    /// f16 multiply-adds.
    MultiplyAddF16,
}

impl Arithmetic {
    /// Its name in records.
    pub fn name(self) -> &'static str {
        "multiply_add"
    }

    /// The type that is computed on.
    pub fn dtype(self) -> DType {
        match self {
            Arithmetic::MultiplyAdd => DType::F32,
            Arithmetic::MultiplyAddF16 => DType::F16,
        }
    }
}

/// Invocations of a workgroup, as the sources have them.
const LANES: u64 = 256;
/// Workgroups that are driven: several for each place that any GPU has for one.
const GROUPS: u64 = 2048;
/// Operations of an invocation's round: six chains of four multiply-adds.
const ROUND: u64 = 2 * 6 * 4;
/// Rounds of a call, on a GPU and on a processor that stands for one: some milliseconds.
const ROUNDS: (u32, u32) = (2048, 64);

struct Probe {
    which: Arithmetic,
    kernel: Arc<Kernel>,
    step: Step,
    flops: u64,
}

impl Probe {
    fn new(inner: &Arc<Inner>, which: Arithmetic, kernel: Arc<Kernel>, rounds: u32) -> Result<Self> {
        let dims = Dims::line(GROUPS * LANES, LANES)?;
        let params = [rounds, 0, 0, 0];
        let places = vec![Place::Operand(1)];
        let step = Step::new(inner, kernel.clone(), dims, bytemuck::bytes_of(&params), places);
        Ok(Probe { which, kernel, step, flops: GROUPS * LANES * ROUND * u64::from(rounds) })
    }
}

/// The probes of one adapter, with the memory that they stream through.
pub struct Probes {
    stream: Mutex<WebGpuStream>,
    arithmetic: Vec<Probe>,
    read: Step,
    copy: Step,
    from: Buffer,
    to: Buffer,
    bytes: u64,
}

impl Probes {
    /// Compiles the probes, and takes twice `bytes` of memory, or what one binding holds where that is less.
    ///
    /// # Errors
    /// Where memory is missing.
    pub fn new(device: &WebGpuDevice, bytes: u64) -> Result<Self> {
        let inner = device.inner();
        let caps = device.caps();
        let bytes = bytes.min(device.info().arena.max_bytes).max(1 << 20) / (1 << 20) * (1 << 20);
        let compile = |source: &'static Source, entry, variant: &Variant| {
            let headers = &[&wgsl::ELEMENT, &wgsl::LAYOUT];
            let shader = Shader { source, headers, entry, variant, checks: Checks::None };
            inner.pipelines.get(inner, "ceiling", &shader)
        };
        let rounds = if caps.software { ROUNDS.1 } else { ROUNDS.0 };
        let mut arithmetic = Vec::new();
        for which in [Arithmetic::MultiplyAdd, Arithmetic::MultiplyAddF16] {
            let variant = Variant::of(vec![Binding::words_mut("out", "u32")]);
            let variant = match which {
                Arithmetic::MultiplyAdd => variant.alias("Scalar", "f32").alias("Wide", "vec4<f32>"),
                Arithmetic::MultiplyAddF16 if caps.has(wgpu::Features::SHADER_F16) => {
                    variant.enable("f16").alias("Scalar", "f16").alias("Wide", "vec4<f16>")
                }
                Arithmetic::MultiplyAddF16 => continue,
            };
            let kernel = compile(&wgsl::CEILING_ARITHMETIC, "multiply_add", &variant);
            arithmetic.push(Probe::new(inner, which, kernel, rounds)?);
        }
        let streaming = Dims::line(GROUPS * LANES, LANES)?;
        let params = [(bytes / 16) as u32, (GROUPS * LANES) as u32, 0, 0];
        let memory = |entry| {
            let operands =
                vec![Binding::words("source", "vec4<u32>"), Binding::words_mut("sink", "vec4<u32>")];
            let kernel = compile(&wgsl::CEILING_MEMORY, entry, &Variant::of(operands));
            let places = vec![Place::Operand(0), Place::Operand(1)];
            Ok(Step::new(inner, kernel, streaming, bytemuck::bytes_of(&params), places))
        };
        let (read, copy) = (memory("read_all")?, memory("copy_all")?);
        let mut stream = WebGpuStream::new(inner.clone());
        let (from, to) = (device.alloc(bytes)?, device.alloc(bytes)?);
        // no two lines alike: memory that is compressed or all zero is read faster than any model's weights
        let pattern: Vec<u8> =
            (0..1u32 << 18).flat_map(|i| (i.wrapping_mul(2_654_435_761) ^ i << 7).to_le_bytes()).collect();
        for at in (0..bytes).step_by(pattern.len()) {
            let some = (pattern.len() as u64).min(bytes - at);
            stream.write(&from.view(at, some)?, &pattern[..some as usize])?;
        }
        Ok(Probes { stream: Mutex::new(stream), arithmetic, read, copy, from, to, bytes })
    }

    /// From now on arithmetic takes so many rounds. Without this it takes some milliseconds, on a GPU and on a software adapter that is
    /// known as one, which browsers do not tell.
    ///
    /// # Errors
    /// None that arise here.
    pub fn set_rounds(&mut self, rounds: u32) -> Result<()> {
        let inner = self.stream.get_mut().unwrap_or_else(PoisonError::into_inner).inner().clone();
        for probe in &mut self.arithmetic {
            *probe = Probe::new(&inner, probe.which, probe.kernel.clone(), rounds)?;
        }
        Ok(())
    }

    /// What arithmetic there is a probe of.
    pub fn arithmetic(&self) -> impl Iterator<Item = Arithmetic> {
        self.arithmetic.iter().map(|probe| probe.which)
    }

    /// Starts some milliseconds of arithmetic. Gives the operations, a multiplication and an addition counted as two; 0 where there is
    /// no such probe.
    ///
    /// # Errors
    /// Those of the device.
    pub fn compute(&self, which: Arithmetic) -> Result<(u64, Pending<()>)> {
        let probe = self.arithmetic.iter().find(|probe| probe.which == which);
        let flops = probe.map_or(0, |probe| probe.flops);
        Ok((flops, self.run(probe.map(|probe| &probe.step))?))
    }

    /// Starts to read the memory once. Gives the bytes.
    ///
    /// # Errors
    /// Those of the device.
    pub fn read(&self) -> Result<(u64, Pending<()>)> {
        Ok((self.bytes, self.run(Some(&self.read))?))
    }

    /// Starts to copy the memory once. Gives the bytes that are read and written.
    ///
    /// # Errors
    /// Those of the device.
    pub fn copy(&self) -> Result<(u64, Pending<()>)> {
        Ok((2 * self.bytes, self.run(Some(&self.copy))?))
    }

    fn run(&self, step: Option<&Step>) -> Result<Pending<()>> {
        const NAME: &str = "ceiling";
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        stream.begin(NAME)?;
        if let Some(step) = step {
            step.start(&mut stream, NAME, &[&self.from, &self.to], None)?;
        }
        Ok(stream.sync())
    }

    /// Bytes that are read.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}
