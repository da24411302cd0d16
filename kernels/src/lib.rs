//! What a tensor op *is*: plain-data descriptors with validation, costs and an f64-accumulating reference, and the small
//! object-safe traits through which a backend offers kernels for them. No device and no unsafe code live here.
//!
//! | module | holds |
//! |---|---|
//! | [`op`] | one file per op: descriptor, `validate`, `flops`, `bytes`, operands, reference |
//! | [`dtype`], [`block`], [`float8`] | element types and block formats, bit-exact |
//! | [`layout`] | strides: [`Rows`] of vectors, [`Matrix`] operands, KV caches |
//! | [`buffer`], [`device`] | memory, devices, streams, graphs, events |
//! | [`kernel`], [`mod@select`], [`tune`] | rows of the kernel table, how one is chosen, measured choices |
//! | [`align`] | what is known of the alignment of operands |
//! | [`table`] | a device's rows, registered ones included, and what was tuned |
//! | [`mod@plan`] | placing activations into arena pools |
//! | [`error`] | the one error enum |
//!
//! # From an op to a result
//!
//! 1. Describe it: [`op::MatMul`] and its kin are plain structs; [`Op`] is their sum.
//! 2. [`fn@select`] a row of the device's table, or name one. Every refusal has a [`Reason`].
//! 3. [`prepare`] once: the row compiles, plans its packing, sizes its scratch.
//! 4. [`Prepared::launch`] many times on a [`Stream`]: sizes, alignment, device and overlap are checked, nothing is allocated.

#![forbid(unsafe_code)]

pub mod align;
pub mod block;
pub mod buffer;
pub mod device;
pub mod dtype;
pub mod error;
pub mod float8;
pub mod kernel;
pub mod layout;
pub mod op;
pub mod plan;
pub mod select;
pub mod table;
pub mod tune;

pub use align::Alignment;
pub use buffer::{Access, Arg, Buffer, Memory};
pub use device::{
    Arena, Comm, Device, DeviceClass, DeviceId, DeviceInfo, Event, Graph, Local, Pending, Shared, Stream,
};
pub use dtype::DType;
pub use error::{Error, Reason, Refusal, Result};
pub use kernel::{
    Candidate, Checked, Config, Kernel, Launch, Numerics, PackFormat, Prepared, Request, prepare,
};
pub use layout::{KvLayout, Matrix, Paging, Rows};
pub use op::{Op, Operand};
pub use plan::plan;
pub use select::{Choice, Query, Verdict, explain, select, select_packed};
pub use table::Table;
