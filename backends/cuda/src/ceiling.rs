//! What a GPU can do at most, measured: arithmetic out of registers and shared memory, and streaming through memory. Kernels are held
//! against it.
//!
//! Probes are amounts of work, not times: the caller times them with the clock that it uses for kernels. Each call waits for its end.

use crate::compile::Function;
use crate::device::CudaDevice;
use crate::launch::{Dims, param, start};
use crate::stream::CudaStream;
use perjoule_kernels::{Buffer, DType, Device, Result, Stream};
use perjoule_shaders::cuda;
use std::sync::{Mutex, PoisonError};

/// Name of the ceiling of products whose f32 operands are rounded to tf32, which the caller must allow.
pub const TF32: &str = "tensor_tf32";

/// Arithmetic that is driven to its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Arithmetic {
    /// f32 multiply-adds of the ordinary units.
    MultiplyAdd,
    /// The tensor cores on operands of that type; f32 is multiplied as tf32.
    Tensor(DType),
}

impl Arithmetic {
    /// All of it.
    pub const ALL: [Arithmetic; 6] = [
        Arithmetic::MultiplyAdd,
        Arithmetic::Tensor(DType::F32),
        Arithmetic::Tensor(DType::BF16),
        Arithmetic::Tensor(DType::F16),
        Arithmetic::Tensor(DType::F8E4M3),
        Arithmetic::Tensor(DType::I8),
    ];

    /// Its name in records.
    pub fn name(self) -> &'static str {
        match self {
            Arithmetic::MultiplyAdd => "multiply_add",
            Arithmetic::Tensor(DType::F32) => TF32,
            Arithmetic::Tensor(_) => "tensor",
        }
    }

    /// How it is driven on a GPU of that compute capability; `None` where it has no such units.
    pub fn instruction(self, sm: u32) -> Option<&'static str> {
        match self {
            Arithmetic::MultiplyAdd => Some("fma"),
            Arithmetic::Tensor(DType::F8E4M3) if sm < 89 => None,
            Arithmetic::Tensor(_) if sm == 90 => Some("wgmma"),
            Arithmetic::Tensor(_) if sm >= 80 => Some("mma.sync"),
            Arithmetic::Tensor(_) => None,
        }
    }
}

/// Rounds of a call: about a millisecond.
const ROUNDS: u64 = 4096;
/// Chains of multiply-adds of a thread, as the source has them.
const CHAINS: u64 = 16;
/// 16-byte accesses that a thread has in flight, as the source has them.
const FLIGHT: u64 = 8;
/// Threads of a block that streams.
const STREAMING: u32 = 512;

/// A kernel that drives one kind of arithmetic to its limit.
struct Probe {
    which: Arithmetic,
    function: Function,
    dims: Dims,
    /// Operations of a round of the whole grid.
    flops: u64,
}

/// The probes of one GPU, with the memory that they stream through.
pub struct Probes {
    stream: Mutex<CudaStream>,
    arithmetic: Vec<Probe>,
    read: Function,
    copy: Function,
    streaming: Dims,
    from: Buffer,
    to: Buffer,
    /// Bytes of either.
    bytes: u64,
}

impl Probes {
    /// Compiles the probes, and takes twice `bytes` of memory, rounded to what a grid goes through.
    ///
    /// # Errors
    /// Where memory or the compiler is missing.
    pub fn new(device: &CudaDevice, bytes: u64) -> Result<Self> {
        let inner = &device.inner;
        let caps = inner.caps;
        let mut arithmetic = Vec::new();
        for which in Arithmetic::ALL {
            let Some(instruction) = which.instruction(caps.sm) else { continue };
            arithmetic.push(Self::probe(device, which, instruction)?);
        }
        let module = inner.module(&cuda::CEILING_MEMORY, &[])?;
        let (read, copy) = (module.function("read")?, module.function("copy")?);
        let blocks = caps.multiprocessors * (caps.threads / STREAMING).max(1);
        let streaming = Dims::line(blocks, STREAMING);
        let sweep = u64::from(blocks) * u64::from(STREAMING) * 16 * FLIGHT;
        let bytes = bytes.next_multiple_of(sweep);
        let mut stream = CudaStream::new(inner.clone())?;
        let (from, to) = (device.alloc(bytes)?, device.alloc(bytes)?);
        // no two lines alike: memory that is compressed or all zero is read faster than any model's weights
        let pattern: Vec<u8> =
            (0..1u32 << 18).flat_map(|i| (i.wrapping_mul(2_654_435_761) ^ i << 7).to_le_bytes()).collect();
        let mut at = 0;
        while at < bytes {
            let some = (pattern.len() as u64).min(bytes - at);
            stream.write(&from.view(at, some)?, &pattern[..some as usize])?;
            at += some;
        }
        stream.sync().wait()?;
        Ok(Probes { stream: Mutex::new(stream), arithmetic, read, copy, streaming, from, to, bytes })
    }

    fn probe(device: &CudaDevice, which: Arithmetic, instruction: &'static str) -> Result<Probe> {
        let (inner, caps) = (&device.inner, device.inner.caps);
        let module = |defines: &[(&'static str, String)]| inner.module(&cuda::CEILING_ARITHMETIC, defines);
        let Arithmetic::Tensor(dtype) = which else {
            let function = module(&[("KIND", "0".into())])?.function("multiply_add")?;
            let threads = 512;
            let blocks = caps.multiprocessors * (caps.threads / threads).max(1);
            let flops = 2 * CHAINS * u64::from(blocks) * u64::from(threads);
            return Ok(Probe { which, function, dims: Dims::line(blocks, threads), flops });
        };
        // ids of element.cuh; operations of one instruction are those of 16 x 8 x 32 bytes of k
        let (element, k) = match dtype {
            DType::F32 => (0, 8),
            DType::F16 => (1, 16),
            DType::BF16 => (2, 16),
            DType::F8E4M3 => (3, 32),
            _ => (4, 32),
        };
        let mut defines = vec![("KIND", "1".into()), ("ELEMENT", element.to_string())];
        let hopper = instruction == "wgmma";
        if hopper {
            defines.push(("HOPPER", "1".into()));
        }
        let function = module(&defines)?.function("tensor")?;
        let threads = 256;
        let (blocks, shared, flops) = match hopper {
            // 128 x 256, four steps along k
            true => (caps.multiprocessors, (128 + 256) * 128 + 1024, 2 * 128 * 256 * 4 * k),
            // 8 warps, 16 tiles of 16 x 8 each
            false => {
                let blocks = caps.multiprocessors * function.occupancy(threads, 0);
                (blocks, 0, 2 * 8 * 16 * 16 * 8 * k)
            }
        };
        if shared > 0 {
            function.allow_shared(shared)?;
        }
        let dims = Dims { shared, ..Dims::line(blocks, threads) };
        Ok(Probe { which, function, dims, flops: flops * u64::from(blocks) })
    }

    /// What arithmetic there is a probe of.
    pub fn arithmetic(&self) -> impl Iterator<Item = Arithmetic> {
        self.arithmetic.iter().map(|probe| probe.which)
    }

    /// Drives arithmetic for about a millisecond. Gives the operations, a multiplication and an addition counted as two; 0 where there
    /// is no such probe.
    ///
    /// # Errors
    /// Those of the device.
    pub fn compute(&self, which: Arithmetic) -> Result<u64> {
        let Some(probe) = self.arithmetic.iter().find(|probe| probe.which == which) else { return Ok(0) };
        let (out, x, y) = (self.to.address(), 0.999_f32, 1e-3_f32);
        let rounds = match which {
            Arithmetic::MultiplyAdd => 4 * ROUNDS,
            Arithmetic::Tensor(_) => ROUNDS,
        };
        let params = [param(&rounds), param(&x), param(&y), param(&out)];
        let params = match which {
            Arithmetic::MultiplyAdd => &params[..],
            Arithmetic::Tensor(_) => &[params[0], params[3]],
        };
        self.run(|stream| start(stream, "ceiling", &probe.function, probe.dims, params))?;
        Ok(rounds * probe.flops)
    }

    /// Reads the memory once. Gives the bytes.
    ///
    /// # Errors
    /// Those of the device.
    pub fn read(&self) -> Result<u64> {
        let (count, from, to) = (self.bytes / 16, self.from.address(), self.to.address());
        let params = [param(&count), param(&from), param(&to)];
        self.run(|stream| start(stream, "ceiling", &self.read, self.streaming, &params))?;
        Ok(self.bytes)
    }

    /// Copies the memory once. Gives the bytes that are read and written.
    ///
    /// # Errors
    /// Those of the device.
    pub fn copy(&self) -> Result<u64> {
        let (count, from, to) = (self.bytes / 16, self.from.address(), self.to.address());
        let params = [param(&count), param(&from), param(&to)];
        self.run(|stream| start(stream, "ceiling", &self.copy, self.streaming, &params))?;
        Ok(2 * self.bytes)
    }

    fn run(&self, body: impl FnOnce(&mut CudaStream) -> Result<()>) -> Result<()> {
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        stream.begin("ceiling")?;
        for buffer in [&self.from, &self.to] {
            // of this device: it cannot be refused
            let _ = stream.touch(buffer);
        }
        body(&mut stream)?;
        stream.sync().wait()
    }

    /// Bytes that are read.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}
