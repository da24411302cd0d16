//! NVIDIA's libraries, to measure ours against: loaded at run time where they are found, never linked, never chosen unless asked for by
//! name.
//!
//! A library is looked for, where [`crate::library`] looks, when one of its rows is asked whether it runs an op, which only lists of all
//! rows, `--kernel`, `--versus` and the conformance suite do.

mod algorithm;
mod cublaslt;
mod plan;

pub(crate) use cublaslt::{BYTES, CONFIGS, align, cost, numerics, prepare, reject};

/// A device goes.
pub(crate) fn forget(device: perjoule_kernels::DeviceId) {
    plan::forget(device);
}
