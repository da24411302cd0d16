//! What a device can do at most, measured: arithmetic out of registers, and streaming through memory. Kernels are held against it.
//!
//! Probes are amounts of work, not times: the caller times them with the clock that it uses for kernels.

use crate::device::WebGpuDevice;
use crate::inner::Inner;
use crate::launch::{Dims, Place, Step};
use crate::pipeline::{Checks, Pipeline, Shader};
use crate::shader::{Binding, Variant};
use crate::stream::WebGpuStream;
use bytemuck::{Pod, Zeroable};
use perjoule_kernels::{Buffer, DType, Device, Pending, Result, Stream};
use perjoule_shaders::wgsl;
use std::sync::Arc;

/// Workgroups of the arithmetic: many for any device.
const GROUPS: u64 = 1024;
/// Invocations of a workgroup, as the sources have them.
const THREADS: u64 = 256;
/// Operations of an invocation a round, as the source has them.
const OPERATIONS: u64 = 2 * 8 * 4;
/// 16-byte accesses of an invocation that streams, as the source has them.
const FLIGHT: u64 = 8;

/// `Params` of `ceiling/arithmetic.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ArithmeticParams {
    rounds: u32,
    a: f32,
    b: f32,
    unused: u32,
}

/// `Params` of `ceiling/memory.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct MemoryParams {
    quads: u32,
    unused: [u32; 3],
}

/// What is driven to its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// Multiply-adds on a type: f32, or f16 where the device has it.
    MultiplyAdd(DType),
    /// Memory is read.
    Read,
    /// Memory is copied.
    Copy,
}

/// The probes of one device, with the memory that they stream through.
pub struct Probes {
    inner: Arc<Inner>,
    stream: WebGpuStream,
    arithmetic: Vec<(DType, Arc<Pipeline>)>,
    read: Step,
    copy: Step,
    from: Buffer,
    to: Buffer,
    bytes: u64,
}

impl Probes {
    /// Compiles the probes, and takes twice `bytes` of memory, as far as a buffer may be as large.
    ///
    /// # Errors
    /// Where memory is missing, or the device is lost.
    pub fn new(device: &WebGpuDevice, bytes: u64) -> Result<Self> {
        let inner = device.inner();
        let bytes = bytes.clamp(16, device.info().arena.max_bytes) / 16 * 16;
        let (from, to) = (device.alloc(bytes)?, device.alloc(bytes)?);
        let mut stream = WebGpuStream::new(inner.clone());
        // no two lines alike: memory that is compressed or all zero is read faster than any model's weights
        let pattern: Vec<u8> =
            (0..1u32 << 18).flat_map(|i| (i.wrapping_mul(2_654_435_761) ^ i << 7).to_le_bytes()).collect();
        let mut at = 0;
        while at < bytes {
            let some = (pattern.len() as u64).min(bytes - at);
            stream.write(&from.view(at, some)?, &pattern[..some as usize])?;
            at += some;
        }
        let mut arithmetic = vec![(DType::F32, arithmetic_of(inner, "f32")?)];
        if device.caps().has(wgpu::Features::SHADER_F16) {
            arithmetic.push((DType::F16, arithmetic_of(inner, "f16")?));
        }
        let streaming = |entry| -> Result<Step> {
            let variant =
                Variant::of(vec![Binding::words("from", "vec4<u32>"), Binding::words_mut("to", "vec4<u32>")]);
            let source = &wgsl::CEILING_MEMORY;
            let shader = Shader { source, headers: &[], entry, variant: &variant, checks: Checks::None };
            let pipeline = inner.pipelines.get(inner, "a ceiling's", &shader)?;
            let dims = Dims::line(bytes / 16, THREADS * FLIGHT)?;
            let params = MemoryParams { quads: (bytes / 16) as u32, unused: [0; 3] };
            let places = vec![Place::Operand(0), Place::Operand(1)];
            Ok(Step::new(inner, pipeline, dims, bytemuck::bytes_of(&params), places))
        };
        let (read, copy) = (streaming("stream_read")?, streaming("stream_copy")?);
        Ok(Probes { inner: inner.clone(), stream, arithmetic, read, copy, from, to, bytes })
    }

    /// All that the device has.
    pub fn list(&self) -> Vec<Probe> {
        let arithmetic = self.arithmetic.iter().map(|(dtype, _)| Probe::MultiplyAdd(*dtype));
        arithmetic.chain([Probe::Read, Probe::Copy]).collect()
    }

    /// Bytes that are streamed through: of a copy, those that are read.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Submits a probe `count` times, one after the other: arithmetic in that many rounds. Gives the work of one, in floating-point
    /// operations or bytes; [`Probes::finish`] is there when it is done.
    ///
    /// # Errors
    /// Where the device is lost.
    pub fn submit(&mut self, probe: Probe, rounds: u32, count: u64) -> Result<u64> {
        const KERNEL: &str = "a ceiling's";
        let stream = &mut self.stream;
        let (step, amount) = match probe {
            Probe::Read => (&self.read, self.bytes),
            Probe::Copy => (&self.copy, 2 * self.bytes),
            Probe::MultiplyAdd(dtype) => {
                let Some((_, pipeline)) = self.arithmetic.iter().find(|(of, _)| *of == dtype) else {
                    return Ok(0);
                };
                // the numbers stay where they are small and normal
                let params = ArithmeticParams { rounds, a: 0.75, b: 0.125, unused: 0 };
                let dims = Dims::line(GROUPS * THREADS, THREADS)?;
                let bytes = bytemuck::bytes_of(&params);
                let step = Step::new(&self.inner, pipeline.clone(), dims, bytes, vec![Place::Operand(0)]);
                for _ in 0..count {
                    stream.begin(KERNEL)?;
                    step.start(stream, KERNEL, &[&self.to], None)?;
                }
                return Ok(GROUPS * THREADS * OPERATIONS * u64::from(rounds));
            }
        };
        for _ in 0..count {
            stream.begin(KERNEL)?;
            step.start(stream, KERNEL, &[&self.from, &self.to], None)?;
        }
        Ok(amount)
    }

    /// The stream that probes are submitted to, for events around them.
    pub fn stream(&mut self) -> &mut dyn Stream {
        &mut self.stream
    }

    /// There when all that was submitted is done.
    pub fn finish(&mut self) -> Pending<()> {
        self.stream.sync()
    }
}

/// Multiply-adds on a WGSL type.
fn arithmetic_of(inner: &Arc<Inner>, scalar: &'static str) -> Result<Arc<Pipeline>> {
    let lanes = if scalar == "f16" { "vec4<f16>" } else { "vec4<f32>" };
    let mut variant =
        Variant::of(vec![Binding::words_mut("out", "u32")]).alias("Scalar", scalar).alias("Lanes", lanes);
    if scalar == "f16" {
        variant = variant.enable("f16");
    }
    let source = &wgsl::CEILING_ARITHMETIC;
    let shader =
        Shader { source, headers: &[], entry: "arithmetic", variant: &variant, checks: Checks::None };
    inner.pipelines.get(inner, "a ceiling's", &shader)
}
