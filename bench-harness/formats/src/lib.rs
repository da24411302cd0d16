//! Results of other benchmark tools in and out of perjoule's [`Record`](perjoule_record::Record)s.
//!
//! - [`import`] reads llama-bench, the ML.ENERGY leaderboard, MLPerf inference and perjoule's own files. What a file does
//!   not say stays null; what cannot be read becomes a [`Warning`] with its line.
//! - [`export`] writes records for tools that track benchmarks. Invalid records are left out or named as such, and
//!   modelled energy is called modelled.
//! - [`export_findings`] writes the verdicts of a comparison for a CI system.
//!
//! The README beside this crate says what maps to what and what is lost. The crate compiles for wasm32.
//!
//! ```
//! use perjoule_formats::{Format, export, import};
//!
//! let table = "\
//! | model         |     size |  params | backend |  test |            t/s |
//! | ------------- | -------: | ------: | ------- | ----: | -------------: |
//! | qwen2 7B Q4_K | 4.36 GiB |  7.62 B | CUDA    | tg128 |  120.60 ± 0.59 |
//!
//! build: 8cf427ff (5163)
//! ";
//! let imported = import(table.as_bytes(), "issue.md", None)?;
//! let record = &imported.records[0];
//! assert_eq!((record.workload.n_gen, record.timing.avg_ts), (Some(128), Some(120.6)));
//!
//! let exported = export(&imported.records, Format::Bencher)?;
//! assert!(exported.text.contains("\"tokens-per-second\""));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod escape;
mod export;
mod findings;
mod format;
#[doc(hidden)]
pub mod fuzz;
mod import;

pub use export::{ExportError, Exported, Omission, export};
pub use findings::{Finding, Findings, FindingsFormat, Outcome, export_findings};
pub use format::{Format, UnknownFormat};
pub use import::{ImportError, Imported, MAX_INPUT_BYTES, MAX_RECORDS, MAX_WARNINGS, Warning, import};
