//! Classes of hardware with sources, and what they will do: throughput, power, money and carbon of inference, each with a band.
//!
//! - [`Catalogue`] holds the classes. Every number has its sources; [`Known::Unknown`] and [`Known::Conflict`] are values.
//! - [`predict`] gives tokens/s, watts and joules per token with a 90 % interval, the roof that limits, and what it was calibrated from.
//!   The model is fitted to the published rows when it is first used.
//! - [`Processors`] are CPU packages with their TDP.
//! - [`Grid`] turns joules per token into dollars and grams of CO2 equivalent per million tokens.
//! - [`validate`] holds predictions against rows that the model was not shown.
//!
//! The crate depends on no other part of perjoule, reads no files and compiles for wasm32.
//!
//! ```
//! use perjoule_catalogue::{Catalogue, Dtype, ModelShape, Phase, Stack, Workload, predict};
//!
//! let catalogue = Catalogue::builtin();
//! let load = Workload {
//!     model: ModelShape::builtin()["llama-3.1-70b"],
//!     dtype: Dtype::Bf16,
//!     kv_dtype: Dtype::Bf16,
//!     phase: Phase::Mixed,
//!     stack: Stack::Serving,
//!     n_parallel: 64.0,
//!     n_prompt: 512,
//!     n_gen: 512,
//! };
//! let prediction = predict(catalogue.find("h200-sxm")?, 2, &load)?;
//! let rate = prediction.tokens_per_s;
//! assert!(rate.low < rate.value && rate.value < rate.high && rate.high <= prediction.roof);
//! let why = predict(catalogue.find("nvidia-h100-sxm")?, 1, &load).unwrap_err();
//! assert!(why.to_string().contains("3 devices hold it"), "{why}");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod class;
mod cost;
mod fit;
mod known;
mod predict;
mod processor;
mod published;
pub mod validate;
mod workload;

pub use class::{Catalogue, CatalogueError, Class, Extended, LookupError, Peaks};
pub use cost::{Assumptions, Costs, Grid, Operator, Region};
pub use known::{Figure, Known, Trust};
pub use predict::{Estimate, Model, Power, Prediction, predict};
pub use processor::{AnyProcessor, Processor, Processors};
pub use published::{Boundary, Row};
pub use workload::{Dtype, Limit, ModelShape, Phase, Stack, WhyNot, Workload};
