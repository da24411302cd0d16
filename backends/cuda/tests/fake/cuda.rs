//! A driver that has four GPUs and does nothing: it hands out handles and says yes. What is prepared on it asks for the kernels that it
//! would ask for on such a GPU. With `FAKE_CUDA=none` it finds no GPU. Built by `rustc` as a library of the name that the driver has.
#![allow(non_snake_case, missing_docs, clippy::missing_safety_doc)]

use std::ffi::{c_char, c_int, c_uint, c_void};

/// Compute capability, multiprocessors, and shared memory of a block and of a multiprocessor, by the GPU's number.
const GPUS: [[c_int; 4]; 4] = [
    [90, 132, 232_448, 233_472],
    [80, 108, 166_912, 167_936],
    [100, 148, 232_448, 233_472],
    [120, 170, 101_376, 102_400],
];

fn write<T>(to: *mut T, value: T) -> c_int {
    // SAFETY: the driver's functions are given places to write to.
    unsafe { to.write(value) };
    0
}

/// Something that is not null.
fn handle(to: *mut *mut c_void) -> c_int {
    write(to, 64 as *mut c_void)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuInit() -> c_int {
    match std::env::var_os("FAKE_CUDA").is_some_and(|value| value == "none") {
        true => 100, // CUDA_ERROR_NO_DEVICE
        false => 0,
    }
}
#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGetCount(count: *mut c_int) -> c_int {
    write(count, GPUS.len() as c_int)
}
#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGet(device: *mut c_int, ordinal: c_int) -> c_int {
    write(device, ordinal)
}
#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGetAttribute(value: *mut c_int, attribute: c_int, device: c_int) -> c_int {
    let [sm, multiprocessors, block, multiprocessor] = GPUS[device as usize];
    // by the numbers of CUdevice_attribute
    let of = match attribute {
        75 => sm / 10,
        76 => sm % 10,
        16 => multiprocessors,
        97 => block,
        81 => multiprocessor,
        39 => 2048,
        38 => 50 << 20,
        13 => 1_980_000,
        36 => 2_619_000,
        37 => 5120,
        115 => 1, // memory pools
        _ => 0,
    };
    write(value, of)
}
#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGetName(name: *mut c_char, _len: c_int, _device: c_int) -> c_int {
    for (i, byte) in b"no GPU\0".iter().enumerate() {
        // SAFETY: there is room for 256.
        unsafe { name.add(i).write(*byte as c_char) };
    }
    0
}
#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, _device: c_int) -> c_int {
    write(bytes, 80 << 30)
}
#[unsafe(no_mangle)]
pub extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> c_int {
    write(free, 80 << 30);
    write(total, 80 << 30)
}
#[unsafe(no_mangle)]
pub extern "C" fn cuDriverGetVersion(version: *mut c_int) -> c_int {
    write(version, 13_000)
}
#[unsafe(no_mangle)]
pub extern "C" fn cuMemAllocFromPoolAsync(pointer: *mut u64, bytes: usize) -> c_int {
    // addresses of what is never read
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1 << 40);
    let room = (bytes as u64).next_multiple_of(256) + 256;
    write(pointer, NEXT.fetch_add(room, std::sync::atomic::Ordering::Relaxed))
}
#[unsafe(no_mangle)]
pub extern "C" fn cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks: *mut c_int) -> c_int {
    write(blocks, 1)
}
#[unsafe(no_mangle)]
pub extern "C" fn cuEventElapsedTime_v2(milliseconds: *mut f32) -> c_int {
    write(milliseconds, 1.0)
}
#[unsafe(no_mangle)]
pub extern "C" fn cuMemAllocHost_v2(pointer: *mut *mut c_void, bytes: usize) -> c_int {
    write(pointer, Box::leak(vec![0u64; bytes.div_ceil(8)].into_boxed_slice()).as_mut_ptr().cast())
}
#[unsafe(no_mangle)]
pub extern "C" fn cuMemPoolGetAttribute(_pool: *mut c_void, _attribute: c_int, value: *mut u64) -> c_int {
    write(value, 0)
}
#[unsafe(no_mangle)]
pub extern "C" fn cuModuleGetFunction(function: *mut *mut c_void) -> c_int {
    handle(function)
}
#[unsafe(no_mangle)]
pub extern "C" fn cuModuleLoadData(module: *mut *mut c_void) -> c_int {
    handle(module)
}
#[unsafe(no_mangle)]
pub extern "C" fn cuMemPoolCreate(pool: *mut *mut c_void) -> c_int {
    handle(pool)
}
#[unsafe(no_mangle)]
pub extern "C" fn cuStreamCreate(stream: *mut *mut c_void, _flags: c_uint) -> c_int {
    handle(stream)
}
#[unsafe(no_mangle)]
pub extern "C" fn cuEventCreate(event: *mut *mut c_void, _flags: c_uint) -> c_int {
    handle(event)
}
#[unsafe(no_mangle)]
pub extern "C" fn cuDevicePrimaryCtxRetain(context: *mut *mut c_void, _device: c_int) -> c_int {
    handle(context)
}
#[unsafe(no_mangle)]
pub extern "C" fn cuCtxGetCurrent(context: *mut *mut c_void) -> c_int {
    handle(context)
}

/// Functions of any parameters with one answer.
macro_rules! answer {
    ($answer:literal: $($name:ident)*) => {
        $(
            #[unsafe(no_mangle)]
            pub extern "C" fn $name() -> c_int {
                $answer
            }
        )*
    };
}

answer! { 0:
    cuDevicePrimaryCtxRelease_v2 cuCtxSetCurrent cuCtxSynchronize cuModuleUnload cuFuncSetAttribute
    cuMemPoolSetAttribute cuMemPoolDestroy cuMemPoolTrimTo cuMemFreeAsync cuMemFreeHost cuMemsetD8Async
    cuMemcpyHtoDAsync_v2 cuMemcpyDtoHAsync_v2 cuMemcpyAsync cuTensorMapEncodeTiled
    cuStreamDestroy_v2 cuStreamSynchronize cuStreamWaitEvent
    cuEventDestroy_v2 cuEventRecord cuEventSynchronize cuEventQuery cuLaunchKernel cuLaunchKernelEx
}

// CUDA_ERROR_NOT_SUPPORTED
answer! { 801:
    cuDeviceGetPCIBusId cuDeviceGetUuid_v2 cuGetErrorString cuGetErrorName cuMemAlloc_v2 cuMemFree_v2
    cuStreamBeginCapture_v2 cuStreamEndCapture cuGraphInstantiateWithFlags cuGraphLaunch cuGraphDestroy cuGraphExecDestroy
}
