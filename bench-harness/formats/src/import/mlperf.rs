//! MLPerf inference: LoadGen's `mlperf_log_summary.txt` and the submission checker's `summary.csv`, by the sources of
//! github.com/mlcommons/inference (`loadgen/results.cc`, `tools/submission`, commit b66003e1 of August 2026).

use std::collections::HashMap;

use perjoule_record::{Clock, EnergyKind, Kind, Phase, Record};
use serde_json::{Map, Value};

use super::row::Row;
use super::{ImportError, Sink, shown};
use crate::format::SUMMARY_TITLE;

const TOOL: &str = "MLPerf inference";

/// What a summary is read for.
const KEYS: [&str; 12] = [
    "SUT name",
    "Scenario",
    "Mode",
    "Result is",
    "Samples per second",
    "Completed samples per second",
    "Tokens per second",
    "Completed tokens per second",
    "QPS w/ loadgen overhead",
    "50.00 percentile latency (ns)",
    "Mean latency (ns)",
    "samples_per_query",
];

/// Reads every summary of the text.
pub(super) fn read_summary(text: &str, sink: &mut Sink<'_>) -> Result<(), ImportError> {
    let mut lines = text.lines().zip(1..).peekable();
    while let Some((line, number)) = lines.next() {
        if line.trim() != SUMMARY_TITLE {
            continue;
        }
        let mut row = Row { line: number, cells: Map::new(), textual: true };
        let mut failed = Vec::new();
        while let Some((line, number)) = lines.next_if(|(line, _)| line.trim() != SUMMARY_TITLE) {
            let Some((key, value)) = line.split_once(':') else {
                // `No errors encountered during test.` or `2 errors encountered. See detailed log.`
                if line.starts_with(|c: char| c.is_ascii_digit()) && line.to_lowercase().contains(" error") {
                    failed.push(format!("MLPerf: {}", shown(line.trim())));
                }
                continue;
            };
            let (key, value) = (key.trim(), value.trim());
            if line.starts_with("  ") && key.ends_with(" satisfied") {
                if value.eq_ignore_ascii_case("no") {
                    failed.push(format!(
                        "MLPerf: {} not satisfied",
                        key.trim_end_matches(" satisfied").to_lowercase()
                    ));
                }
            } else if KEYS.contains(&key) {
                match row.cells.get(key) {
                    Some(before) if *before != value => {
                        let message = format!("`{}` appears twice; the first holds", shown(key));
                        sink.warn(number, message);
                    }
                    Some(_) => {}
                    None => {
                        row.cells.insert(key.into(), Value::String(value.into()));
                    }
                }
            }
        }
        summary(&row, failed, sink)?;
    }
    if sink.records.is_empty() && sink.warnings.is_empty() {
        return Err(sink.not_format(format!("no line says `{SUMMARY_TITLE}`")));
    }
    Ok(())
}

fn summary(row: &Row, failed: Vec<String>, sink: &mut Sink<'_>) -> Result<(), ImportError> {
    let mut record = sink.record(Kind::Samples, TOOL);
    let mut problems = Vec::new();
    let mut rate = |keys: &[&str]| {
        let field = keys.iter().map(|key| row.positive(key)).find(|field| *field != Ok(None));
        field.unwrap_or(Ok(None)).unwrap_or_else(|message| {
            problems.push(message);
            None
        })
    };
    let timing = &mut record.timing;
    // Tokens are those generated; LoadGen's prompts are processed meanwhile.
    timing.avg_output_ts = rate(&["Tokens per second", "Completed tokens per second"]);
    let scenario = row.spelled("Scenario").unwrap_or_default();
    match scenario.as_str() {
        "SingleStream" => {
            timing.throughput = rate(&["QPS w/ loadgen overhead"]);
            timing.throughput_unit = timing.throughput.map(|_| "queries/s".into());
            // One query at a time: its latency is the time of a call. Elsewhere queries wait for each other.
            timing.median_ns = rate(&["50.00 percentile latency (ns)"]);
            timing.avg_ns = rate(&["Mean latency (ns)"]);
        }
        "MultiStream" => {
            timing.median_ns = rate(&["50.00 percentile latency (ns)"]);
            timing.avg_ns = rate(&["Mean latency (ns)"]);
        }
        // `Scheduled samples per second` is the load offered, not the work done.
        _ => {
            timing.throughput = rate(&["Samples per second", "Completed samples per second"]);
            timing.throughput_unit = timing.throughput.map(|_| "samples/s".into());
        }
    }
    timing.clock = Some(Clock::Host);
    if timing.avg_output_ts.is_some() {
        record.kind = Kind::Tokens;
        record.workload.phase = Some(Phase::Mixed);
    }
    let known = timing.avg_output_ts.is_some() || timing.throughput.is_some() || timing.median_ns.is_some();
    let renamed = [
        ("scenario", "Scenario"),
        ("mode", "Mode"),
        ("sut", "SUT name"),
        ("samples_per_query", "samples_per_query"),
    ];
    let settings = renamed.iter().filter_map(|(name, key)| Some(format!("{name}={}", row.spelled(key)?)));
    record.workload.config = Some(settings.collect::<Vec<_>>().join(",")).filter(|config| !config.is_empty());
    for message in problems {
        sink.warn(row.line, format!("{message}; the result is marked invalid"));
        record.invalidate(message);
    }
    match row.spelled("Result is").as_deref() {
        Some("VALID") if failed.is_empty() => {}
        Some("VALID" | "INVALID") if !failed.is_empty() => {
            failed.into_iter().for_each(|reason| record.invalidate(reason));
        }
        Some("INVALID") => record.invalidate("MLPerf: result is INVALID"),
        _ => {
            sink.warn(row.line, "no line says whether the result is valid: taken as invalid");
            record.invalidate("MLPerf: cut off before it says whether it is valid");
        }
    }
    if record.valid && !known {
        sink.warn(row.line, "it holds no rate and no latency that a record has; this summary is left out");
        return Ok(());
    }
    sink.push(record)
}

/// Rows of the submission checker. A result with power has a second row, in watts or millijoules, for the same place.
#[derive(Default)]
pub(super) struct Table {
    /// Where the record of a `Location` is.
    places: HashMap<String, usize>,
}

impl Table {
    pub(super) fn push(&mut self, row: &Row, sink: &mut Sink<'_>) -> Result<(), ImportError> {
        let unit = row.spelled("Units").unwrap_or_default();
        let result = match row.positive("Result") {
            Ok(Some(result)) => result,
            Ok(None) => {
                sink.warn(row.line, "`Result` is empty; this line is left out");
                return Ok(());
            }
            Err(message) => {
                sink.warn(row.line, format!("{message}; this line is left out"));
                return Ok(());
            }
        };
        let place = row.spelled("Location");
        let before = place.as_ref().and_then(|place| self.places.get(place)).copied();
        let power = matches!(unit.as_str(), "Watts" | "millijoules");
        if let Some(at) = before.filter(|_| power) {
            power_of(&mut sink.records[at], result, &unit);
            return Ok(());
        }
        let mut record = sink.record(Kind::Samples, TOOL);
        describe(&mut record, row);
        if power {
            power_of(&mut record, result, &unit);
        } else if let Err(message) = performance(&mut record, row, result, &unit) {
            sink.warn(row.line, message);
        }
        let index = sink.records.len();
        sink.push(record)?;
        if let Some(place) = place {
            self.places.insert(place, index);
        }
        Ok(())
    }
}

fn describe(record: &mut Record, row: &Row) {
    let device = &mut record.device;
    let known = |key: &str| row.spelled(key).filter(|text| !matches!(text.as_str(), "N/A" | "None" | "-"));
    device.device_name = known("accelerator_model_name");
    let total = |each: &str| {
        let count = row.count(each).ok()??.checked_mul(row.count("number_of_nodes").ok()??);
        count.filter(|&count| count > 0)
    };
    if device.device_name.is_some() {
        device.device_count = total("accelerators_per_node");
    } else {
        device.device_name = known("host_processor_model_name");
        device.device_count = total("host_processors_per_node");
    }
    device.backend = known("framework");
    record.environment.cpu_model = known("host_processor_model_name");
    record.environment.os_version = known("operating_system");
    record.workload.model = known("Model");
    record.workload.dtype = known("weight_data_types");
    record.source.source_version = known("version");
    record.workload.config = row.settings(&[
        "Organization",
        "Division",
        "Availability",
        "Platform",
        "Scenario",
        "Accuracy",
        "inferred",
        "notes",
    ]);
    match row.count("errors") {
        Ok(None | Some(0)) => {}
        Ok(Some(errors)) => record.invalidate(format!("MLPerf: {errors} errors in the log")),
        Err(message) => record.invalidate(message),
    }
}

/// Where the energy of a call or the power belongs. MLPerf measures the whole system at the wall.
fn power_of(record: &mut Record, result: f64, unit: &str) {
    let energy = &mut record.energy;
    match unit {
        "Watts" => energy.avg_power_w = Some(result),
        _ => energy.joules_per_call = Some(result / 1e3),
    }
    energy.energy_kind = Some(EnergyKind::Measured);
    energy.energy_source = Some("MLPerf Power".into());
    energy.energy_boundary = Some("wall".into());
}

fn performance(record: &mut Record, row: &Row, result: f64, unit: &str) -> Result<(), String> {
    let model = row.spelled("MlperfModel").or_else(|| row.spelled("Model")).unwrap_or_default();
    let version = record.source.source_version.as_deref().unwrap_or_default();
    // Since v4.0 these models are rated in tokens a second (gptj since v4.1), but the checker went on to write the unit
    // of the others for a while.
    let in_tokens =
        ["llama", "mixtral", "deepseek", "gpt-oss"].iter().any(|family| model.starts_with(family))
            || model.starts_with("gptj") && version != "v4.0" && version.starts_with("v4");
    let timing = &mut record.timing;
    match unit {
        "Tokens/s" => {
            record.kind = Kind::Tokens;
            record.workload.phase = Some(Phase::Mixed);
            timing.avg_output_ts = Some(result);
        }
        "Samples/s" | "Queries/s" if in_tokens => {
            return Err(format!("{result} {unit} of {model} may be tokens a second; the rate stays unknown"));
        }
        "Samples/s" | "Queries/s" => {
            timing.throughput = Some(result);
            timing.throughput_unit = Some(unit.to_lowercase());
        }
        // A percentile, not a median: the 90th or the 99th by the scenario.
        "Latency (ms)" => {
            let config = record.workload.config.take().unwrap_or_default();
            record.workload.config = Some(format!("{config},latency_percentile_ms={result}"));
        }
        other => return Err(format!("the unit {:?} is not known; the result stays unknown", shown(other))),
    }
    Ok(())
}
