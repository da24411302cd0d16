//! The driver's results as errors, and the guard that must be passed before any function of it is called.

use crate::library;
use cudarc::driver::sys::{self, CUresult};
use perjoule_kernels::{Error, Result};
use std::ffi::CStr;
use std::sync::OnceLock;

/// What the driver answered where it was not success.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refused(pub(crate) CUresult);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = |get: unsafe fn(CUresult, *mut *const std::ffi::c_char) -> CUresult| {
            let mut text = std::ptr::null();
            // SAFETY: the driver is loaded, or there would be no result of it; it writes a pointer to a static string or null.
            match unsafe { get(self.0, &mut text) } {
                CUresult::CUDA_SUCCESS if !text.is_null() => {
                    // SAFETY: a static string of the driver.
                    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
                }
                _ => format!("CUDA error {}", self.0 as u32),
            }
        };
        write!(f, "{} ({})", text(sys::cuGetErrorString), text(sys::cuGetErrorName))
    }
}

impl std::error::Error for Refused {}

/// Success, or what it was.
pub(crate) fn check(result: CUresult) -> Result<(), Refused> {
    match result {
        CUresult::CUDA_SUCCESS => Ok(()),
        other => Err(Refused(other)),
    }
}

/// Whether the error stays until the context is made anew.
pub(crate) fn sticky(refused: Refused) -> bool {
    use CUresult::*;
    !matches!(
        refused.0,
        CUDA_ERROR_OUT_OF_MEMORY
            | CUDA_ERROR_INVALID_VALUE
            | CUDA_ERROR_INVALID_HANDLE
            | CUDA_ERROR_NOT_READY
            | CUDA_ERROR_NOT_FOUND
            | CUDA_ERROR_NOT_SUPPORTED
            | CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES
            | CUDA_ERROR_INVALID_IMAGE
            | CUDA_ERROR_NO_BINARY_FOR_GPU
            | CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
            | CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
            | CUDA_ERROR_STREAM_CAPTURE_ISOLATION
    )
}

/// The error of a machine without a usable driver, for the device `id`.
pub(crate) fn absent(id: &str, why: impl Into<String>) -> Error {
    Error::NoDevice { id: id.into(), why: why.into() }
}

/// Functions that are called, here and by cudarc's context: where one is missing its call would panic.
#[rustfmt::skip]
const SYMBOLS: &[&str] = &[
    "cuCtxGetCurrent", "cuCtxSetCurrent", "cuDeviceGet", "cuDeviceGetAttribute",
    "cuDeviceGetCount", "cuDeviceGetName", "cuDeviceGetPCIBusId", "cuDeviceGetUuid_v2",
    "cuDevicePrimaryCtxRelease_v2", "cuDevicePrimaryCtxRetain", "cuDeviceTotalMem_v2", "cuDriverGetVersion",
    "cuEventCreate", "cuEventDestroy_v2", "cuEventElapsedTime_v2", "cuEventQuery",
    "cuEventRecord", "cuEventSynchronize", "cuFuncSetAttribute", "cuGetErrorName",
    "cuGetErrorString", "cuGraphDestroy", "cuGraphExecDestroy", "cuGraphInstantiateWithFlags",
    "cuGraphLaunch", "cuInit", "cuLaunchKernel", "cuLaunchKernelEx",
    "cuMemAllocFromPoolAsync", "cuMemAllocHost_v2", "cuMemAlloc_v2", "cuMemFreeAsync",
    "cuMemFreeHost", "cuMemFree_v2", "cuMemGetInfo_v2", "cuMemPoolCreate",
    "cuMemPoolDestroy", "cuMemPoolGetAttribute", "cuMemPoolSetAttribute", "cuMemPoolTrimTo",
    "cuMemcpyAsync", "cuMemcpyDtoHAsync_v2", "cuMemcpyHtoDAsync_v2", "cuMemsetD8Async",
    "cuModuleGetFunction", "cuModuleLoadData", "cuModuleUnload", "cuOccupancyMaxActiveBlocksPerMultiprocessor",
    "cuStreamBeginCapture_v2", "cuStreamCreate", "cuStreamDestroy_v2", "cuStreamEndCapture",
    "cuStreamSynchronize", "cuStreamWaitEvent", "cuTensorMapEncodeTiled",
];

/// Loads and initialises the driver, once a process. Every other call of it comes after this one has succeeded: without the library
/// they would panic.
pub(crate) fn initialise() -> Result<(), String> {
    static STATE: OnceLock<Result<(), String>> = OnceLock::new();
    STATE
        .get_or_init(|| {
            // SAFETY: looks for the library and drops it again; loading the driver has no effects of its own.
            if !unsafe { sys::is_culib_present() } {
                return Err(library::no_driver());
            }
            // SAFETY: the library is there; it stays loaded.
            let library = unsafe { sys::culib() };
            // SAFETY: looked for and not used.
            let lacks = |name: &&&str| unsafe { library.get::<*const ()>(name.as_bytes()) }.is_err();
            if let Some(symbol) = SYMBOLS.iter().find(lacks) {
                return Err(format!("the NVIDIA driver is too old: it has no {symbol}; install one for CUDA 12.8 or newer (570)"));
            }
            // SAFETY: the function is there; it may be called any number of times.
            check(unsafe { sys::cuInit(0) })
                .map_err(|e| format!("the NVIDIA driver was found, but cuInit says: {e}"))
        })
        .clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_function_of_the_driver_is_looked_for_before_it_is_called() {
        let mut folders = vec![std::path::PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/src"))];
        let mut seen = 0;
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let text = std::fs::read_to_string(&path).unwrap();
                for rest in text.split("sys::cu").skip(1) {
                    let name: String =
                        rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                    // cublasLt has names of its own
                    if name.starts_with(char::is_uppercase) {
                        seen += 1;
                        let name = format!("cu{name}");
                        assert!(SYMBOLS.contains(&name.as_str()), "{name} in {}", path.display());
                    }
                }
            }
        }
        assert!(seen > 40, "{seen}");
    }
}
