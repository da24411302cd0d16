//! The record: which fields there are, what they mean and in which unit.
//!
//! The structs group fields by topic for the programmer; in JSON they are flattened into one object. A numeric field
//! carries its unit in its name. The doc comment of a field is its description in the JSON Schema.
//!
//! Compatibility: a field is only ever added within a schema version, and readers ignore fields they do not know, so
//! files of an older and of a newer perjoule of the same schema version can be mixed; each addition raises
//! [`SCHEMA_MINOR`]. A changed meaning or unit gets a new name or a new [`SCHEMA_VERSION`]. `schema/README.md` has the rules.

mod energy;
mod number;
mod process;
mod timing;
mod workload;

use schemars::{JsonSchema, generate::SchemaSettings};
use serde::{Deserialize, Serialize};

pub use energy::{Energy, EnergyKind, NoReading, Reading};
pub use number::Interval;
pub(crate) use number::count;
pub use process::{EnergyRuns, Process};
pub use timing::{Clock, Conditions, Roof, Timing, Trace, Verification, Versus};
pub use workload::{CacheState, DeviceFields, Phase, Workload};

use crate::Environment;

/// The version that this crate writes. Readers accept every version from 1 up.
pub const SCHEMA_VERSION: u32 = 1;

/// What was added within that version so far: raised with every new field or word. Not part of a record; `x-version` of the schema.
pub const SCHEMA_MINOR: u32 = 3;

/// One measurement: one line of a results file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Record {
    /// Version of the schema that this record follows.
    #[schemars(range(min = 1))]
    pub schema_version: u32,
    /// What was measured.
    pub kind: Kind,
    /// How the numbers came to be: measured here, imported from another tool's result, or modelled.
    pub provenance: Provenance,
    /// Whether the result may be used. An invalid run is kept, with its reasons, and never reported as good.
    pub valid: bool,
    /// Why `valid` is false, one short reason each; empty when it is true.
    #[serde(default)]
    pub invalid_reasons: Vec<String>,
    /// Reasons for which the device lowered its clocks while it was measured. Empty: watched, none seen. Null: not observable.
    pub throttle_reasons: Option<Vec<String>>,
    /// Other load on the machine meanwhile: the device may be faster than this. Empty: watched, none seen. Null: not observable.
    pub disturbances: Option<Vec<String>>,
    /// When this record was made, RFC 3339 in UTC.
    pub test_time: Option<String>,
    /// Where an imported record comes from.
    #[serde(flatten)]
    pub source: Source,
    /// The device that did the work.
    #[serde(flatten)]
    pub device: DeviceFields,
    /// What the device was asked to do.
    #[serde(flatten)]
    pub workload: Workload,
    /// How long it took and the rates that follow.
    #[serde(flatten)]
    pub timing: Timing,
    /// The ceilings that the rates are held against.
    #[serde(flatten)]
    pub roof: Roof,
    /// Whether the output was right.
    #[serde(flatten)]
    pub verification: Verification,
    /// How it compares.
    #[serde(flatten)]
    pub versus: Versus,
    /// What a command used.
    #[serde(flatten)]
    pub process: Process,
    /// What it cost.
    #[serde(flatten)]
    pub energy: Energy,
    /// Under which conditions.
    #[serde(flatten)]
    pub conditions: Conditions,
    /// Where and with what it was measured.
    #[serde(flatten)]
    pub environment: Environment,
}

impl Record {
    /// A valid, measured record of `kind`, made now (no time on wasm32, where the caller knows it), with everything
    /// else unknown.
    pub fn new(kind: Kind, environment: &Environment) -> Self {
        Self {
            schema_version: SCHEMA_VERSION,
            kind,
            provenance: Provenance::Measured,
            valid: true,
            invalid_reasons: Vec::new(),
            throttle_reasons: None,
            disturbances: None,
            test_time: crate::time::now(),
            source: Source::default(),
            device: DeviceFields::default(),
            workload: Workload::default(),
            timing: Timing::default(),
            roof: Roof::default(),
            verification: Verification::default(),
            versus: Versus::default(),
            process: Process::default(),
            energy: Energy::default(),
            conditions: Conditions::default(),
            environment: environment.clone(),
        }
    }

    /// Gross joules of 1e12 floating-point operations of a call; `None` where its joules are unknown or it has none.
    pub fn joules_per_tflop(&self) -> Option<f64> {
        let flops = self.timing.flops.filter(|&flops| flops > 0)? as f64;
        Some(self.energy.joules_per_call? / flops * 1e12)
    }

    /// Marks the record invalid for one more `reason`.
    pub fn invalidate(&mut self, reason: impl Into<String>) {
        self.valid = false;
        self.invalid_reasons.push(reason.into());
    }
}

/// What a record measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Kind {
    /// A limit of the device, measured: arithmetic of one dtype, or memory bandwidth.
    Ceiling,
    /// One op on one shape, by one kernel.
    Kernel,
    /// Prefill or decode of a whole model.
    Tokens,
    /// Whole inputs of a model that are not counted in tokens, such as images or queries; so far only imported.
    Samples,
    /// A command that was run as a process of its own.
    Command,
    /// A kind that this version does not know. Stands for whatever a newer version wrote; never written for own results.
    #[serde(other)]
    Other,
}

impl Kind {
    /// In a word, as records have it; what this version does not know is `other`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ceiling => "ceiling",
            Self::Kernel => "kernel",
            Self::Tokens => "tokens",
            Self::Samples => "samples",
            Self::Command => "command",
            Self::Other => "other",
        }
    }
}

/// How the numbers of a record came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Provenance {
    /// Measured by perjoule.
    Measured,
    /// Taken from the published or stored result of another tool.
    Imported,
    /// Computed from a model of the device.
    Modelled,
    /// A provenance that this version does not know.
    #[serde(other)]
    Other,
}

impl Provenance {
    /// In a word, as records have it; what this version does not know is `unknown`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Measured => "measured",
            Self::Imported => "imported",
            Self::Modelled => "modelled",
            Self::Other => "unknown",
        }
    }
}

/// The tool and the file that an imported record was taken from; all null in perjoule's own.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Source {
    /// The tool that measured, such as `llama-bench`.
    pub source_tool: Option<String>,
    /// That tool's own version, as its result states it.
    pub source_version: Option<String>,
    /// Name of the file that was imported, without its folder.
    pub source_name: Option<String>,
    /// Where the result is published, if the file says so.
    pub source_url: Option<String>,
}

/// The JSON Schema (draft 2020-12) of one line, as committed in `schema/record.v1.schema.json`.
///
/// Only the fields that a record means nothing without are required, so that lines of older releases validate too.
pub fn json_schema() -> serde_json::Value {
    let mut schema = SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<Record>();
    schema.insert("$id".into(), "urn:perjoule:record:v1".into());
    schema.insert("title".into(), "perjoule record".into());
    schema.insert("x-version".into(), format!("{SCHEMA_VERSION}.{SCHEMA_MINOR}.0").into());
    schema.to_value()
}
