//! Vendors' libraries of matrix products, to measure ours against: loaded at run time where they are found, never linked, never chosen
//! unless asked for by name.
//!
//! A library is looked for when one of its rows is asked whether it runs an op, which only lists of all rows, `--kernel` and the
//! conformance suite do. The variable names a file; without it the system's loader is asked for the usual names, and then a Python
//! environment that is active is looked through.
//!
//! | library | variable | calls |
//! |---|---|---|
//! | oneMKL | `PERJOULE_MKL` | `cblas_sgemm`, `cblas_gemm_bf16bf16f32`, `cblas_gemm_s8u8s32` |
//! | OpenBLAS | `PERJOULE_OPENBLAS` | `cblas_sgemm` |
//! | oneDNN | `PERJOULE_ONEDNN` | `dnnl_sgemm` |
//!
//! They bring threads of their own, as many as the team has lanes. Two pools must not be awake at once: the team sleeps during a call
//! ([`Spmd::alone`](crate::spmd::Spmd::alone)), and MKL's threads are told to sleep behind one, which costs its short products the time
//! to wake them (OpenBLAS has no such call; its threads look for work for some milliseconds more). What a library does when it has the
//! machine for itself is measured in a process of its own.

mod library;
mod product;

pub(crate) use library::Vendor;
pub(crate) use product::{CONFIGS, cost, numerics, prepare, reject};
