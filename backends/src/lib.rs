//! Tensor kernels for CPU, WebGPU and CUDA behind one small interface.
//!
//! ```
//! use perjoule::{Tensor, ops};
//!
//! # fn main() -> perjoule::Result<()> {
//! let cpu = perjoule::open("cpu")?;
//! let a = Tensor::from_slice(&cpu, &[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0], [2, 3])?;
//! let b = Tensor::from_slice(&cpu, &[1.0f32, 0.0, 0.0, 1.0, 1.0, 1.0], [3, 2])?;
//! let c = ops::matmul(&a, &b)?;
//! assert_eq!(c.to_vec::<f32>()?, [4.0, 5.0, 10.0, 11.0]);
//! # Ok(())
//! # }
//! ```
//!
//! Three levels, each built on the next:
//!
//! 1. [`ops`]: one call an op; plans are cached, results are new tensors, the device's default stream runs them in order.
//! 2. [`Device::prepare`] and [`Prepared::launch`]: choose a row once, launch it many times on a stream and into memory of your
//!    own, without allocation; record sequences with [`Stream::capture`]. `examples/replay.rs` decodes like that.
//! 3. [`kernels`]: descriptors, references, the traits, and your own rows ([`Device::register`]) and backends ([`register_backend`]).
//!
//! Work on different streams has no order but that of events and [`Stream::sync`]: [`kernels::device`] says what holds on every device.
//!
//! No file is read unless you ask for it: [`tuning::load`] makes choices follow what `perjoule tune` measured on this machine.
//!
//! Nothing falls back in silence: not to another device, not to another dtype, not to a lower precision.

#![forbid(unsafe_code)]

mod device;
mod element;
pub mod ops;
mod registry;
mod tensor;
#[cfg(not(target_arch = "wasm32"))]
pub mod tuning;

/// Descriptors, references and traits: everything a row or a backend is made of.
pub use perjoule_kernels as kernels;

/// The CPU backend, for rows of your own ([`cpu::spmd::Spmd`]) and options.
#[cfg(all(feature = "cpu", not(target_arch = "wasm32")))]
pub use perjoule_cpu as cpu;

pub use device::{Device, StreamGuard};
pub use element::Element;
pub use perjoule_kernels::{
    Arg, Buffer, Choice, DType, DeviceInfo, Error, Event, Graph, Kernel, Op, Pending, Prepared, Result,
    Stream,
};
pub use registry::{
    Absent, Backend, OpenOptions, backends, devices, open, open_with_threads, register_backend,
};
pub use tensor::Tensor;

/// The README's example, compiled and run with the doctests.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
