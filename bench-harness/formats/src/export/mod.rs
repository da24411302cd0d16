//! Records in other tools' formats.

mod json;
mod llama_bench;
mod metrics;
mod openmetrics;

use perjoule_record::{Record, to_line};

use crate::Format;
use crate::format::names;

/// Records in another format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exported {
    /// The file's content.
    pub text: String,
    /// The records that are not in it, with the reason.
    pub left_out: Vec<Omission>,
}

/// A record that is not in an exported file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Omission {
    /// Place of the record among those given, from 0.
    pub index: usize,
    /// Why it was left out.
    pub reason: String,
}

/// Why nothing was exported.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The format is one that is only read.
    #[error("{format} can be read but not written: {} can be written", names(Format::EXPORTED))]
    ImportOnly {
        /// The format asked for.
        format: Format,
    },
    /// The serializer failed, which no record gives it a reason for.
    #[error("cannot write {format}: {error}")]
    Json {
        /// The format asked for.
        format: Format,
        /// What the serializer said.
        error: serde_json::Error,
    },
}

/// Writes `records` in `format`.
///
/// Invalid records are left out, or named as such where the format can (`perjoule`, `llama-bench-md`, `openmetrics`).
/// Numbers that are not finite or not positive are no results and left out too. Modelled energy has `modelled` in its
/// name, unit or label. OpenMetrics holds the last run only.
///
/// # Errors
/// [`ExportError::ImportOnly`] for a format that is only read.
pub fn export(records: &[Record], format: Format) -> Result<Exported, ExportError> {
    let json = |error| ExportError::Json { format, error };
    let mut left_out = Vec::new();
    let text = match format {
        Format::Perjoule => records.iter().map(to_line).collect::<Result<String, _>>().map_err(json)?,
        Format::LlamaBenchJsonl => llama_bench::lines(records, &mut left_out).map_err(json)?,
        Format::LlamaBenchJson => llama_bench::array(records, &mut left_out).map_err(json)?,
        Format::LlamaBenchCsv => llama_bench::csv(records, &mut left_out),
        Format::LlamaBenchSql => llama_bench::sql(records, &mut left_out),
        Format::LlamaBenchMarkdown => llama_bench::table(records, &mut left_out),
        Format::Hyperfine => json::hyperfine(records, &mut left_out).map_err(json)?,
        Format::Bencher => json::bencher(records, &mut left_out).map_err(json)?,
        Format::ActionSmaller => {
            json::action(records, metrics::Better::Smaller, &mut left_out).map_err(json)?
        }
        Format::ActionBigger => {
            json::action(records, metrics::Better::Bigger, &mut left_out).map_err(json)?
        }
        Format::OpenMetrics => openmetrics::text(records, &mut left_out),
        _ => return Err(ExportError::ImportOnly { format }),
    };
    Ok(Exported { text, left_out })
}

/// Why a record is invalid, in one line.
fn invalidity(record: &Record) -> String {
    match record.invalid_reasons.as_slice() {
        [] => "invalid".into(),
        reasons => format!("invalid: {}", crate::escape::one_line(&reasons.join("; "))),
    }
}
