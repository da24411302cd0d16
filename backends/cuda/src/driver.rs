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
            // SAFETY: the library is there; it may be called any number of times.
            check(unsafe { sys::cuInit(0) })
                .map_err(|e| format!("the NVIDIA driver was found, but cuInit says: {e}"))
        })
        .clone()
}
