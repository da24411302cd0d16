//! The CPU backend: a team of threads that runs SPMD kernel rows, and the table of those rows.
//!
//! | module | holds |
//! |---|---|
//! | [`ceiling`] | what the processor can do at most, measured |
//! | [`device`] | [`CpuDevice`]: opening it, its memory, its table |
//! | [`team`] | the threads: they spin briefly, then sleep; barriers and work claiming inside a region |
//! | [`spmd`] | [`Spmd`](spmd::Spmd), what a row's body implements, and its checked arguments |
//! | [`stream`] | launches, capture and replay (a graph is one region of the team) |
//! | [`memory`] | aligned memory, zeroed or recycled |
//! | [`features`] | instruction sets and caches found at run time |
//! | [`placement`] | which processors lanes run on, and which memory nodes their memory lies on |
//! | [`table`] | every row, as a literal list |
//! | `launch` | the rows' bodies, one file an op |
//! | `vendor` | matrix products of vendors' libraries, found at run time |
//! | `simd` | vectors of f32, written once and compiled per instruction set |
//!
//! Launches on one device exclude each other, whatever stream or thread they come from: the team is one set of cores, and two
//! launches at once would only slow each other down. That also is what makes shared buffers sound.
//!
//! After `fork`, the child's team has no threads: launches there fail with [`perjoule_kernels::Error::Lost`].

pub mod ceiling;
pub mod device;
pub mod features;
mod launch;
pub mod memory;
pub mod placement;
#[cfg(all(test, sanitized))]
mod planted;
mod simd;
pub mod spmd;
pub mod stream;
pub mod table;
pub mod team;
#[cfg(unix)]
mod vendor;

pub use device::{CpuDevice, Options};
