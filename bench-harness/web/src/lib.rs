//! The bench in a browser: kernels and a model on WebGPU, measured, verified and recorded by the code that native programs use.
//!
//! The page's script starts `run` in a worker and hears of what happens by `events`. Records are lines of JSON as everywhere.
//!
//! | module | holds |
//! |---|---|
//! | `bench` | the run: roofs, kernels, tokens |
//! | `set` | which shapes are measured, as data |
//! | `roof` | the device's ceilings |
//! | `energy` | joules modelled from a class of the catalogue |
//! | `events` | what the page is told |
//! | `clock` | the browser's clock, and how coarse it is |

#![cfg(target_arch = "wasm32")]
#![forbid(unsafe_code)]
// what is exported is reached from JavaScript
#![allow(unreachable_pub)]

mod bench;
mod clock;
mod energy;
mod events;
mod roof;
mod set;
