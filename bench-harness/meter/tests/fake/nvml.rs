//! A stand-in for NVIDIA's management library with four GPUs: one that counts energy (200 W), one that reports
//! instantaneous power only (120 W), one that reports averaged power only (90 W), and one whose counter (187 W) and
//! instantaneous power (327 W) disagree. The first also says how busy, hot and fast it is.
//!
//! The caller is `nvml-wrapper`, which keeps to NVML's C interface: every pointer is to memory of the type, and of the length, that the
//! function names, and nobody else uses it during the call. That is what the SAFETY comments call the interface.

use std::ffi::{CStr, c_char, c_int, c_longlong, c_uint, c_ulonglong};
use std::sync::OnceLock;
use std::time::Instant;

const SUCCESS: c_int = 0;
const NOT_SUPPORTED: c_int = 3;
const NOT_FOUND: c_int = 6;
const UUIDS: [&CStr; 4] = [c"GPU-counter", c"GPU-instant", c"GPU-average", c"GPU-disagrees"];

static START: OnceLock<Instant> = OnceLock::new();

#[repr(C)]
pub struct FieldValue {
    field: c_uint,
    scope: c_uint,
    timestamp: c_longlong,
    latency: c_longlong,
    value_type: c_int,
    status: c_int,
    value: u64,
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlInit_v2() -> c_int {
    START.get_or_init(Instant::now);
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlShutdown() -> c_int {
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetCount_v2(count: *mut c_uint) -> c_int {
    // SAFETY: by the interface `count` may be written.
    unsafe { *count = UUIDS.len() as c_uint };
    SUCCESS
}

/// Handles are 1 + the index.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByIndex_v2(index: c_uint, device: *mut usize) -> c_int {
    // SAFETY: by the interface `device` may be written.
    unsafe { *device = index as usize + 1 };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByUUID(uuid: *const c_char, device: *mut usize) -> c_int {
    // SAFETY: by the interface `uuid` is a string that ends with a zero.
    let uuid = unsafe { CStr::from_ptr(uuid) };
    match UUIDS.iter().position(|known| *known == uuid) {
        // SAFETY: by the interface `device` may be written.
        Some(index) => unsafe { *device = index + 1 },
        None => return NOT_FOUND,
    }
    SUCCESS
}

/// # Safety
/// `out` has room for `length` bytes.
unsafe fn write(text: &CStr, out: *mut c_char, length: c_uint) -> c_int {
    let bytes = text.to_bytes_with_nul();
    assert!(bytes.len() <= length as usize);
    // SAFETY: the caller says that `out` has room for `length` bytes, which the text fits; a constant does not overlap it.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr().cast(), out, bytes.len()) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetUUID(device: usize, out: *mut c_char, length: c_uint) -> c_int {
    // SAFETY: by the interface `out` has room for `length` bytes.
    unsafe { write(UUIDS[device - 1], out, length) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetName(_: usize, out: *mut c_char, length: c_uint) -> c_int {
    // SAFETY: by the interface `out` has room for `length` bytes.
    unsafe { write(c"Fake GPU", out, length) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetTotalEnergyConsumption(device: usize, out: *mut c_ulonglong) -> c_int {
    let watts = match device {
        1 => 200.0,
        4 => 187.0,
        _ => return NOT_SUPPORTED,
    };
    let seconds = START.get_or_init(Instant::now).elapsed().as_secs_f64();
    // SAFETY: by the interface `out` may be written.
    unsafe { *out = (watts * 1e3 * seconds) as c_ulonglong };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetPowerUsage(device: usize, out: *mut c_uint) -> c_int {
    // SAFETY: by the interface `out` may be written.
    unsafe { *out = [200_000, 999_000, 90_000, 327_000][device - 1] };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetFieldValues(device: usize, n: c_int, values: *mut FieldValue) -> c_int {
    // SAFETY: by the interface `values` are `n` fields, not negative in number, of the layout of `FieldValue`.
    let values = unsafe { std::slice::from_raw_parts_mut(values, n as usize) };
    for field in values {
        let known = field.field == 186 && device != 3;
        field.status = if known { SUCCESS } else { NOT_SUPPORTED };
        field.value_type = 1;
        field.value = [200_000, 120_000, 0, 327_000][device - 1];
    }
    SUCCESS
}

/// # Safety
/// `out` may be written.
unsafe fn of_first<T>(device: usize, value: T, out: *mut T) -> c_int {
    if device != 1 {
        return NOT_SUPPORTED;
    }
    // SAFETY: the caller says that `out` may be written.
    unsafe { *out = value };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetUtilizationRates(device: usize, out: *mut [c_uint; 2]) -> c_int {
    // SAFETY: by the interface `out` may be written.
    unsafe { of_first(device, [75, 30], out) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetClockInfo(device: usize, clock: c_uint, out: *mut c_uint) -> c_int {
    let mhz = [1, 1980, 2619, 3][clock as usize];
    // SAFETY: by the interface `out` may be written.
    unsafe { of_first(device, mhz, out) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetTemperature(device: usize, _: c_uint, out: *mut c_uint) -> c_int {
    // SAFETY: by the interface `out` may be written.
    unsafe { of_first(device, 64, out) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetEnforcedPowerLimit(device: usize, out: *mut c_uint) -> c_int {
    // SAFETY: by the interface `out` may be written.
    unsafe { of_first(device, 700_000, out) }
}

/// The power limit and idleness.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetCurrentClocksThrottleReasons(
    device: usize,
    out: *mut c_ulonglong,
) -> c_int {
    // SAFETY: by the interface `out` may be written.
    unsafe { of_first(device, 0x4 | 0x1, out) }
}

#[repr(C)]
pub struct Memory {
    version: c_uint,
    total: c_ulonglong,
    reserved: c_ulonglong,
    free: c_ulonglong,
    used: c_ulonglong,
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMemoryInfo_v2(device: usize, out: *mut Memory) -> c_int {
    // SAFETY: by the interface the caller has set the version of what `out` points to.
    let version = unsafe { (*out).version };
    // SAFETY: by the interface `out` may be written.
    unsafe { of_first(device, Memory { version, total: 80 << 30, reserved: 0, free: 60 << 30, used: 20 << 30 }, out) }
}
