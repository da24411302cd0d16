//! One measurement as data: its schema, its statistics and its storage.
//!
//! - [`Record`] is one JSON object a line, flat, so that `pandas.read_json(path, lines=True)` and `jq` read it without
//!   help. Unknown values are null, never 0. The JSON Schema generated from it is [`json_schema`].
//! - [`Environment`] says where and with what the record was made.
//! - [`stats`] holds the estimators and the verdict on two sets of samples.
//! - [`Store`] appends records to a file so that they survive crashes and concurrent writers; [`Reader`] reads them back
//!   and turns every damaged line into a [`Warning`].
//!
//! The crate depends on no other part of perjoule and compiles for wasm32, where [`Store`] and the reading of the
//! environment are absent.
//!
//! ```
//! use perjoule_record::{Environment, Kind, Reader, Record, Writer, stats};
//!
//! let mut record = Record::new(Kind::Kernel, &Environment::default());
//! record.workload.op = Some("matmul".into());
//! record.timing.samples_ns = Some(vec![1020.0, 1000.0, 1010.0]);
//! record.timing.median_ns = stats::median(&[1020.0, 1000.0, 1010.0]);
//!
//! let mut lines = Vec::new();
//! Writer::new(&mut lines).write(&record)?;
//! let back = Reader::new(lines.as_slice()).next().unwrap()?;
//! assert_eq!(back.timing.median_ns, Some(1010.0));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod environment;
#[doc(hidden)]
pub mod fuzz;
mod reader;
mod schema;
pub mod stats;
#[cfg(not(target_arch = "wasm32"))]
mod store;
mod time;
mod writer;

pub use environment::Environment;
pub use reader::{MAX_LINE_BYTES, Problem, Reader, Warning};
pub use schema::{
    CacheState, Clock, Conditions, DeviceFields, Energy, EnergyKind, EnergyRuns, Interval, Kind, NoReading,
    Phase, Process, Provenance, Reading, Record, Roof, SCHEMA_MINOR, SCHEMA_VERSION, Source, Timing, Trace,
    Verification, Versus, Workload, json_schema,
};
#[cfg(not(target_arch = "wasm32"))]
pub use store::{Store, StoreError, read_file};
pub use time::rfc3339;
pub use writer::{Writer, to_line};
