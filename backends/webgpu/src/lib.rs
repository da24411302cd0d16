//! The WebGPU backend: every GPU that `wgpu` reaches, natively through Vulkan, Metal, DX12 or OpenGL, and in browsers.
//!
//! | module | holds |
//! |---|---|
//! | [`device`] | [`WebGpuDevice`]: adapters, what they can do, devices of the caller's |
//! | [`memory`] | one `wgpu` buffer a block |
//! | [`stream`] | launches, copies, capture and replay |
//! | `work` | what a stream has collected and not submitted |
//! | `clock` | events with times |
//! | [`ceiling`] | what an adapter can do at most, measured |
//! | [`table`] | every row, as literal lists |
//! | `launch` | the rows' bodies, one file an op |
//! | `shader` | from a WGSL source to the text of a variant |
//! | `pipeline`, `cache` | compiled variants, and the driver's cache of them on disk |
//! | `groups` | bind groups, kept for launches on the same operands |
//! | `wait` | results that come when the device says so |
//! | `submissions` | how far the host may be ahead of the device |
//! | `faults` | errors that no call answers with |
//! | `inner` | what all of them share |
//! | `background` | what is compiled while nobody waits, and the end of the process |
//! | `unroll` | short loops of sources, written out |

#[cfg(not(target_arch = "wasm32"))]
mod background;
#[cfg(not(target_arch = "wasm32"))]
mod cache;
pub mod ceiling;
mod clock;
mod copy;
pub mod device;
mod faults;
mod groups;
mod inner;
mod launch;
pub mod memory;
mod pipeline;
mod shader;
pub mod stream;
mod submissions;
pub mod table;
mod unroll;
mod wait;
mod work;

pub use device::{WebGpuCaps, WebGpuDevice};
