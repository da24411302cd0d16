//! The CUDA backend: NVIDIA GPUs, with kernels that are compiled for the GPU at hand when they are first used.
//!
//! Nothing of CUDA is needed to build it. The driver, the compiler (NVRTC) and vendors' libraries are looked for when a device is
//! opened; what is missing is an error that says where it was looked for.
//!
//! | module | holds |
//! |---|---|
//! | [`ceiling`] | what a GPU can do at most, measured |
//! | [`device`] | [`CudaDevice`]: opening it, its description, its table |
//! | [`memory`] | stream-ordered memory, and pinned memory for what is read back |
//! | [`stream`] | launches, events, capture and replay (a CUDA graph) |
//! | [`library`] | where shared libraries are looked for |
//! | [`compile`] | from CUDA C++ to a loaded module, with a cache on disk |
//! | [`table`] | every row, as literal lists |
//! | `launch` | the rows' bodies, one file an op |
//! | `vendor` | NVIDIA's libraries, to compare with |
//! | `driver` | the driver's results as errors |

pub mod ceiling;
pub mod compile;
pub mod device;
mod driver;
mod launch;
pub mod library;
pub mod memory;
pub mod stream;
pub mod table;
mod vendor;

pub use device::{CudaCaps, CudaDevice};
