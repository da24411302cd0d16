//! Bodies of the rows, one file an op: what each launches, with which grid, on what.

pub(crate) mod argmax;
pub(crate) mod attention;
pub(crate) mod elementwise;
pub(crate) mod hopper;
pub(crate) mod kv;
pub(crate) mod matmul;
pub(crate) mod norm;
pub(crate) mod pack;
pub(crate) mod quantise;
pub(crate) mod rope;
pub(crate) mod route;
pub(crate) mod rows;
pub(crate) mod sample;
pub(crate) mod softmax;
mod steps;

use crate::compile::{Function, Module};
use crate::device::{CudaDevice, Inner};
use crate::driver::check;
use crate::stream::CudaStream;
use bytemuck::NoUninit;
use cudarc::driver::sys;
use perjoule_kernels::op::{MAX_OPERANDS, Op};
use perjoule_kernels::{Arg, Buffer, Checked, Error, Launch, Request, Result, Stream};
use perjoule_shaders::Source;
use std::any::Any;
use std::ffi::c_void;
use std::marker::PhantomData;
use std::sync::Arc;

/// What a prepared row does at each launch.
pub(crate) trait Body: Send + Sync + 'static {
    /// Bytes of scratch; their content is undefined.
    fn scratch(&self) -> u64 {
        0
    }

    /// Operands that a kernel which starts early reads before it waits for the kernels before it: weights, on their way while others end.
    /// Where one of these may have written them, no kernel of the launch starts early.
    fn reads_early(&self) -> [Option<usize>; 2] {
        [None, None]
    }

    /// Starts its kernels. Nothing may be allocated, nothing waited for: it may be recorded.
    fn run(&self, call: &mut Call<'_>) -> Result<()>;
}

/// One launch of a row: its operands' addresses, and the stream.
pub(crate) struct Call<'a> {
    stream: &'a mut CudaStream,
    kernel: &'static str,
    operands: [u64; MAX_OPERANDS],
    scratch: u64,
    /// Whether kernels may start early.
    early: bool,
}

/// Grid, block, dynamic shared memory and cluster of a kernel's start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dims {
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    /// Dynamic shared memory in bytes; above 48 KiB [`Function::allow_shared`] comes first, at prepare.
    pub(crate) shared: u32,
    /// Blocks of a cluster along x; 1 without clusters.
    pub(crate) cluster: u32,
    /// Whether it may start before the kernel before it in the stream has ended: it then waits by itself (`griddepcontrol.wait`) before
    /// it reads what that one writes.
    pub(crate) early: bool,
}

impl Dims {
    /// A grid and blocks of one dimension.
    pub(crate) fn line(blocks: u32, threads: u32) -> Self {
        Dims { grid: [blocks, 1, 1], block: [threads, 1, 1], shared: 0, cluster: 1, early: false }
    }
}

/// A kernel's parameter: a plain value that is copied when it is started.
#[derive(Clone, Copy)]
pub(crate) struct Param<'a>(*const c_void, PhantomData<&'a ()>);

/// A plain value as a parameter; its type is laid out as the kernel's.
pub(crate) fn param<T: NoUninit>(value: &T) -> Param<'_> {
    Param((value as *const T).cast(), PhantomData)
}

/// A tensor map as a parameter.
#[allow(dead_code)]
pub(crate) fn map_param(value: &sys::CUtensorMap) -> Param<'_> {
    Param((value as *const sys::CUtensorMap).cast(), PhantomData)
}

/// Most parameters of a kernel.
const MAX_PARAMS: usize = 24;

impl Call<'_> {
    /// Address of an operand, in the order of the op's operands.
    pub(crate) fn operand(&self, index: usize) -> u64 {
        self.operands[index]
    }

    /// Address of the scratch; 0 where the body asked for none.
    pub(crate) fn scratch(&self) -> u64 {
        self.scratch
    }

    /// Address of memory that a row keeps beside its operands.
    pub(crate) fn touch(&mut self, buffer: &Buffer) -> Result<u64> {
        let wrong = Error::WrongDevice { kernel: self.kernel, operand: "a table of the row" };
        self.stream.touch(buffer).map_err(|()| wrong)
    }

    /// Address of [`COUNTERS`](crate::stream::COUNTERS) numbers of 32 bits by which blocks of a kernel count each other: zeroes, which
    /// the kernel leaves as it found them.
    pub(crate) fn counters(&mut self) -> Result<u64> {
        let counters = self.stream.counters();
        self.touch(&counters)
    }

    /// The driver's handle of the stream, for libraries that launch by themselves.
    #[allow(dead_code)]
    pub(crate) fn stream(&self) -> sys::CUstream {
        self.stream.handle()
    }

    /// Starts a kernel. Empty grids start nothing.
    pub(crate) fn start(&mut self, function: &Function, mut dims: Dims, params: &[Param<'_>]) -> Result<()> {
        dims.early &= self.early;
        start(self.stream, self.kernel, function, dims, params)
    }
}

/// Starts a kernel on a stream that [`CudaStream::begin`] has made ready. Empty grids start nothing.
pub(crate) fn start(
    stream: &mut CudaStream,
    kernel: &'static str,
    function: &Function,
    dims: Dims,
    params: &[Param<'_>],
) -> Result<()> {
    if dims.grid.contains(&0) {
        return Ok(());
    }
    if !dims.early {
        stream.settle();
    }
    let mut list = [std::ptr::null_mut(); MAX_PARAMS];
    assert!(params.len() <= MAX_PARAMS, "{}: {} parameters", kernel, params.len());
    for (slot, param) in list.iter_mut().zip(params) {
        *slot = param.0.cast_mut();
    }
    if stream.is_recording() {
        stream.keep(function.module.clone());
    }
    let ([gx, gy, gz], [bx, by, bz], handle) = (dims.grid, dims.block, stream.handle());
    let none: *mut *mut c_void = std::ptr::null_mut();
    let answer = if dims.cluster <= 1 && !dims.early {
        // SAFETY: as many parameters as the kernel has, laid out as its own: what a body passes is held to that by the tests that
        // run it. They are copied before the call returns. What the addresses point to is kept until it is over (`touch`).
        unsafe {
            sys::cuLaunchKernel(
                function.function,
                gx,
                gy,
                gz,
                bx,
                by,
                bz,
                dims.shared,
                handle,
                list.as_mut_ptr(),
                none,
            )
        }
    } else {
        // SAFETY: a plain union, of which 0 is a value.
        let mut attributes: [sys::CUlaunchAttribute; 2] = unsafe { std::mem::zeroed() };
        let mut count = 0;
        if dims.cluster > 1 {
            attributes[count].id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
            attributes[count].value.clusterDim =
                sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: dims.cluster, y: 1, z: 1 };
            count += 1;
        }
        if dims.early {
            attributes[count].id =
                sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
            attributes[count].value.programmaticStreamSerializationAllowed = 1;
            count += 1;
        }
        let config = sys::CUlaunchConfig {
            gridDimX: gx,
            gridDimY: gy,
            gridDimZ: gz,
            blockDimX: bx,
            blockDimY: by,
            blockDimZ: bz,
            sharedMemBytes: dims.shared,
            hStream: handle,
            attrs: attributes.as_mut_ptr(),
            numAttrs: count as u32,
        };
        // SAFETY: as above.
        unsafe { sys::cuLaunchKernelEx(&config, function.function, list.as_mut_ptr(), none) }
    };
    check(answer).map_err(|e| match stream.inner().alive() {
        Ok(()) => match crate::driver::sticky(e) {
            true => stream.inner().fault(kernel, e),
            false => Error::Fault { kernel, detail: format!("it could not be started: {e}") },
        },
        Err(lost) => lost,
    })
}

struct Prepared<B> {
    body: B,
}

impl<B: Body> Launch for Prepared<B> {
    fn scratch(&self) -> u64 {
        self.body.scratch()
    }

    fn launch(&self, stream: &mut dyn Stream, mut checked: Checked<'_, '_>) -> Result<()> {
        let kernel = checked.kernel().name;
        let wrong = |operand| Error::WrongDevice { kernel, operand };
        let stream: &mut dyn Any = stream;
        let stream = stream.downcast_mut::<CudaStream>().ok_or(wrong("stream"))?;
        stream.begin(kernel)?;
        let names = checked.operands();
        let reads_early = self.body.reads_early();
        let mut early = true;
        let mut operands = [0; MAX_OPERANDS];
        for (index, ((arg, operand), to)) in checked.args().iter().zip(names).zip(&mut operands).enumerate() {
            let Arg::Buf(buffer) = arg else { return Err(wrong(operand.name)) };
            *to = stream.touch(buffer).map_err(|()| wrong(operand.name))?;
            early &= !reads_early.contains(&Some(index)) || stream.is_settled(buffer);
            if operand.access.writes() {
                stream.write_by_launch(buffer);
            }
        }
        let scratch = match checked.scratch() {
            Some(scratch) => stream.touch(scratch).map_err(|()| wrong("scratch"))?,
            None => 0,
        };
        self.body.run(&mut Call { stream, kernel, operands, scratch, early })
    }
}

/// The launchable form of a body.
pub(crate) fn launch(body: impl Body) -> Result<Box<dyn Launch>> {
    Ok(Box::new(Prepared { body }))
}

/// The device of a request.
pub(crate) fn inner<'a>(request: &Request<'a>) -> Result<&'a Arc<Inner>> {
    let device: &dyn Any = request.device;
    let device = device.downcast_ref::<CudaDevice>();
    let device = device.ok_or_else(|| Error::Unsupported {
        what: "this kernel",
        why: format!("{} is no device of the CUDA backend", request.device.info().label),
    })?;
    Ok(&device.inner)
}

/// The module of a source under some definitions: compiled once a device.
pub(crate) fn module(
    request: &Request<'_>,
    source: &'static Source,
    defines: &[(&'static str, String)],
) -> Result<Arc<Module>> {
    inner(request)?.module(source, defines)
}

/// The error of a `prepare` that is called for another op: rows are looked up by the op's name, so that it does not happen.
pub(crate) fn other_op(op: &Op) -> Error {
    Error::Unsupported { what: "this kernel", why: format!("{op} is another op") }
}
