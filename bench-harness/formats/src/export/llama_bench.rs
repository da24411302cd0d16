//! llama-bench's outputs, so that scripts made for them work: `printer` in `tools/llama-bench/llama-bench.cpp` of
//! ggml-org/llama.cpp at commit 0104b151.

use perjoule_record::{Kind, Record, stats};
use serde_json::{Map, Value};

use super::metrics::energy_word;
use super::{Omission, invalidity};
use crate::escape::{markdown_cell, one_line};

/// Fields in llama-bench's order, that of 2026. Whether a setting is text, a flag or a number is told from its value.
const FIELDS: [&str; 40] = [
    "build_commit",
    "build_number",
    "cpu_info",
    "gpu_info",
    "backends",
    "model_filename",
    "model_type",
    "model_size",
    "model_n_params",
    "n_batch",
    "n_ubatch",
    "n_threads",
    "cpu_mask",
    "cpu_strict",
    "poll",
    "type_k",
    "type_v",
    "n_gpu_layers",
    "n_cpu_moe",
    "split_mode",
    "main_gpu",
    "no_kv_offload",
    "flash_attn",
    "devices",
    "tensor_split",
    "tensor_buft_overrides",
    "load_mode",
    "embeddings",
    "no_op_offload",
    "no_host",
    "fit_target",
    "fit_min_ctx",
    "n_prompt",
    "n_gen",
    "n_depth",
    "test_time",
    "avg_ns",
    "stddev_ns",
    "avg_ts",
    "stddev_ts",
];

/// Fields whose values llama-bench writes as text although they may look like numbers.
const TEXT: [&str; 7] =
    ["cpu_mask", "type_k", "type_v", "split_mode", "devices", "tensor_split", "load_mode"];

/// Fields that are texts by nature.
const NAMES: [&str; 12] = [
    "build_commit",
    "cpu_info",
    "gpu_info",
    "backends",
    "model_filename",
    "model_type",
    "tensor_buft_overrides",
    "test_time",
    "dtype",
    "energy_kind",
    "energy_source",
    "energy_boundary",
];

/// Whether the record is a test as llama-bench knows them.
fn is_test(record: &Record) -> bool {
    let workload = &record.workload;
    let known =
        workload.n_prompt.zip(workload.n_gen).is_some_and(|(prompt, generated)| prompt > 0 || generated > 0);
    // A stated phase says that the lengths do not tell all.
    record.kind == Kind::Tokens && known && workload.phase.is_none()
}

const NO_TEST: &str = "no prefill or decode of a known length, and llama-bench has nothing else";

/// The valid tests; the others are noted as left out.
fn tests<'r>(records: &'r [Record], left_out: &mut Vec<Omission>) -> Vec<&'r Record> {
    let mut tests = Vec::new();
    for (index, record) in records.iter().enumerate() {
        if record.valid && is_test(record) {
            tests.push(record);
        } else {
            let reason = if record.valid { NO_TEST.into() } else { invalidity(record) };
            left_out.push(Omission { index, reason });
        }
    }
    tests
}

/// A test's fields as JSON in llama-bench's order, null where unknown; after them those that only perjoule has, where known.
fn parts(record: &Record) -> Result<Vec<String>, serde_json::Error> {
    // Written by hand around serde_json's values: the order of the fields is llama-bench's.
    let mut fields = fields(record);
    let mut parts = Vec::new();
    for key in FIELDS.iter().copied().chain(EXTRA) {
        let value = fields.remove(key).unwrap_or_default();
        if value.is_null() && EXTRA.contains(&key) {
            continue;
        }
        parts.push(format!("{}: {}", serde_json::to_string(key)?, serde_json::to_string(&value)?));
    }
    Ok(parts)
}

/// `-o jsonl`: a test a line.
pub(super) fn lines(records: &[Record], left_out: &mut Vec<Omission>) -> Result<String, serde_json::Error> {
    let line = |record: &Record| Ok(format!("{{{}}}\n", parts(record)?.join(", ")));
    tests(records, left_out).into_iter().map(line).collect()
}

/// `-o json`: one array.
pub(super) fn array(records: &[Record], left_out: &mut Vec<Omission>) -> Result<String, serde_json::Error> {
    let object = |record: &Record| Ok(format!("  {{\n    {}\n  }}", parts(record)?.join(",\n    ")));
    let objects = tests(records, left_out).into_iter().map(object).collect::<Result<Vec<_>, _>>()?;
    Ok(if objects.is_empty() { "[]\n".into() } else { format!("[\n{}\n]\n", objects.join(",\n")) })
}

/// Columns of CSV and SQL: samples are in neither, as in llama-bench.
fn columns() -> impl Iterator<Item = &'static str> {
    FIELDS.iter().copied().chain(EXTRA.into_iter().filter(|key| !key.starts_with("samples_")))
}

/// A value as CSV and SQL have it: flags are 0 and 1. `None` is unknown.
fn scalar(value: Option<Value>) -> Option<String> {
    match value? {
        Value::Null => None,
        Value::Bool(flag) => Some(u8::from(flag).to_string()),
        Value::String(text) => Some(one_line(&text)),
        other => Some(other.to_string()),
    }
}

/// `-o csv`: every value in quotes, unknown ones empty.
pub(super) fn csv(records: &[Record], left_out: &mut Vec<Omission>) -> String {
    let mut text = columns().collect::<Vec<_>>().join(",") + "\n";
    for record in tests(records, left_out) {
        let mut fields = fields(record);
        let cell = |key| {
            let value = scalar(fields.remove(key)).unwrap_or_default();
            format!("\"{}\"", value.replace('"', "\"\""))
        };
        text.push_str(&columns().map(cell).collect::<Vec<_>>().join(","));
        text.push('\n');
    }
    text
}

/// `-o sql`: the table, and a statement a test.
pub(super) fn sql(records: &[Record], left_out: &mut Vec<Omission>) -> String {
    let column = |key: &str| {
        let kind = if key.ends_with("_ts") || key.starts_with("joules_") || key == "avg_power_w" {
            "REAL"
        } else if TEXT.contains(&key) || NAMES.contains(&key) {
            "TEXT"
        } else {
            "INTEGER"
        };
        format!("  {key} {kind}")
    };
    let declared = columns().map(column).collect::<Vec<_>>().join(",\n");
    let names = columns().collect::<Vec<_>>().join(", ");
    let mut text = format!("CREATE TABLE IF NOT EXISTS llama_bench (\n{declared}\n);\n\n");
    for record in tests(records, left_out) {
        let mut fields = fields(record);
        let quoted = |key| match scalar(fields.remove(key)) {
            Some(value) => format!("'{}'", value.replace('\'', "''")),
            None => "NULL".into(),
        };
        let values = columns().map(quoted).collect::<Vec<_>>().join(", ");
        text.push_str(&format!("INSERT INTO llama_bench ({names}) VALUES ({values});\n"));
    }
    text
}

/// What follows llama-bench's fields: samples as it has them, then perjoule's own.
const EXTRA: [&str; 10] = [
    "samples_ns",
    "samples_ts",
    "n_parallel",
    "dtype",
    "joules_per_output_token",
    "joules_per_total_token",
    "avg_power_w",
    "energy_kind",
    "energy_source",
    "energy_boundary",
];

fn fields(record: &Record) -> Map<String, Value> {
    let (w, timing, energy) = (&record.workload, &record.timing, &record.energy);
    let mut fields = Map::new();
    // What is no time, rate or energy is unknown.
    let good = |x: Option<f64>| x.filter(|x| x.is_finite() && *x > 0.0);
    let deviation = |x: Option<f64>| x.filter(|x| x.is_finite() && *x >= 0.0);
    let mut put = |key: &str, value: Value| {
        fields.insert(key.into(), value);
    };
    // The settings that an import kept.
    for (key, value) in
        w.config.iter().flat_map(|config| config.split(',')).filter_map(|part| part.split_once('='))
    {
        if FIELDS.contains(&key) {
            let parsed = if TEXT.contains(&key) { None } else { serde_json::from_str::<Value>(value).ok() };
            put(
                key,
                parsed
                    .filter(|value| value.is_number() || value.is_boolean())
                    .unwrap_or_else(|| value.into()),
            );
        }
    }
    let version = record.source.source_version.as_deref().unwrap_or_default();
    let (commit, number) = version.split_once(" (").unwrap_or((version, ""));
    let own = record.environment.build_commit.as_deref();
    put("build_commit", known(Some(commit)).or_else(|| known(own)).into());
    put("build_number", number.trim_end_matches(')').parse::<u64>().ok().into());
    put("cpu_info", record.environment.cpu_model.clone().into());
    let gpu =
        record.device.device_name.clone().filter(|name| Some(name) != record.environment.cpu_model.as_ref());
    let cpu =
        record.device.device.as_deref() == Some("cpu") || record.device.backend.as_deref() == Some("cpu");
    put("gpu_info", gpu.filter(|_| !cpu).unwrap_or_default().into());
    put("backends", record.device.backend.clone().into());
    put("model_filename", w.model.clone().into());
    put("model_type", w.model_type.clone().or_else(|| w.model.clone()).into());
    put("model_size", w.model_size.into());
    put("model_n_params", w.model_n_params.into());
    put("n_batch", w.n_batch.into());
    put("n_threads", w.n_threads.into());
    put("n_prompt", w.n_prompt.into());
    put("n_gen", w.n_gen.into());
    put("n_depth", w.n_depth.into());
    put("test_time", record.test_time.clone().into());
    let samples = timing.samples_ns.as_deref().unwrap_or_default();
    let whole =
        |ns: f64| if ns.fract() == 0.0 && ns.abs() < 9e15 { Value::from(ns as i64) } else { ns.into() };
    put("avg_ns", good(timing.avg_ns.or_else(|| stats::mean(samples))).map(whole).into());
    put("stddev_ns", deviation(timing.stddev_ns.or_else(|| stats::stddev(samples))).map(whole).into());
    put("avg_ts", good(timing.avg_ts).into());
    put("stddev_ts", deviation(timing.stddev_ts).into());
    let tokens = w.n_prompt.unwrap_or(0).saturating_add(w.n_gen.unwrap_or(0)) as f64
        * w.n_parallel.unwrap_or(1) as f64;
    put("samples_ns", samples.iter().copied().map(whole).collect());
    put("samples_ts", samples.iter().map(|ns| Value::from(tokens * 1e9 / ns)).collect());
    put("n_parallel", w.n_parallel.into());
    put("dtype", w.dtype.clone().into());
    put("joules_per_output_token", good(energy.joules_per_output_token).into());
    put("joules_per_total_token", good(energy.joules_per_total_token).into());
    put("avg_power_w", good(energy.avg_power_w).into());
    let joules = energy.joules_per_output_token.or(energy.joules_per_total_token).or(energy.avg_power_w);
    put("energy_kind", joules.map(|_| energy_word(record).unwrap_or("measured")).into());
    put("energy_source", energy.energy_source.clone().into());
    put("energy_boundary", energy.energy_boundary.clone().into());
    fields
}

fn known(text: Option<&str>) -> Option<String> {
    text.filter(|text| !text.is_empty()).map(Into::into)
}

/// `-o md`. Columns that only perjoule has stand before `test`, so that `t/s` stays last.
pub(super) fn table(records: &[Record], left_out: &mut Vec<Omission>) -> String {
    let mut tests = Vec::new();
    for (index, record) in records.iter().enumerate() {
        if is_test(record) {
            tests.push(record);
        } else {
            left_out.push(Omission { index, reason: NO_TEST.into() });
        }
    }
    let mut columns =
        vec!["model", "size", "params", "backend", "threads", "n_parallel", "J/token", "test", "t/s"];
    let any = |wanted: &dyn Fn(&Record) -> bool| tests.iter().any(|record| wanted(record));
    let shown = |column: &str| match column {
        "threads" => any(&|record| record.workload.n_threads.is_some()),
        "n_parallel" => any(&|record| record.workload.n_parallel.is_some_and(|n| n > 1)),
        "J/token" => any(&|record| !joules(record).is_empty()),
        _ => true,
    };
    columns.retain(|column| shown(column));
    let rows: Vec<Vec<String>> =
        tests.iter().map(|record| columns.iter().map(|column| cell(record, column)).collect()).collect();
    let widths: Vec<usize> = columns
        .iter()
        .enumerate()
        .map(|(i, column)| {
            let widest = rows.iter().map(|row| row[i].chars().count()).max();
            widest.unwrap_or(0).max(column.len()).max(3)
        })
        .collect();
    let left = |column: &str| matches!(column, "model" | "backend");
    let mut text = String::new();
    let mut line = |cells: &mut dyn Iterator<Item = String>| {
        text.push_str(&format!("| {} |\n", cells.collect::<Vec<_>>().join(" | ")));
    };
    let pad = |cell: &str, column: &str, width: usize| {
        if left(column) { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
    };
    line(&mut columns.iter().zip(&widths).map(|(column, &width)| pad(column, column, width)));
    line(&mut columns.iter().zip(&widths).map(|(column, &width)| {
        let dashes = "-".repeat(width - 1);
        if left(column) { dashes + "-" } else { dashes + ":" }
    }));
    for row in &rows {
        line(
            &mut row
                .iter()
                .zip(&columns)
                .zip(&widths)
                .map(|((cell, column), &width)| pad(cell, column, width)),
        );
    }
    if let Some(last) = tests.last() {
        text.push_str(&format!("\nbuild: {}\n", markdown_cell(&build(last))));
    }
    text
}

/// Commit and number as llama-bench prints them, which has `unknown` and 0 for what it does not know.
fn build(record: &Record) -> String {
    let own = record.environment.build_commit.clone();
    let text = record.source.source_version.clone().or(own).unwrap_or_else(|| "unknown".into());
    if text.ends_with(')') { text } else { text + " (0)" }
}

fn cell(record: &Record, column: &str) -> String {
    let w = &record.workload;
    let optional = |text: Option<String>| text.unwrap_or_default();
    match column {
        "model" => markdown_cell(w.model_type.as_ref().or(w.model.as_ref()).map_or("", |text| text)),
        "size" => optional(w.model_size.map(|bytes| {
            let mib = bytes as f64 / 1024.0 / 1024.0;
            if bytes < 1 << 30 { format!("{mib:.2} MiB") } else { format!("{:.2} GiB", mib / 1024.0) }
        })),
        "params" => optional(w.model_n_params.map(|n| {
            if n < 1_000_000_000 {
                format!("{:.2} M", n as f64 / 1e6)
            } else {
                format!("{:.2} B", n as f64 / 1e9)
            }
        })),
        "backend" => markdown_cell(record.device.backend.as_deref().unwrap_or_default()),
        "threads" => optional(w.n_threads.map(|n| n.to_string())),
        "n_parallel" => optional(w.n_parallel.map(|n| n.to_string())),
        "J/token" if record.valid => joules(record),
        "test" => optional(w.token_test()),
        "t/s" if !record.valid => markdown_cell(&invalidity(record)),
        "t/s" => match record.timing.avg_ts.filter(|rate| rate.is_finite() && *rate > 0.0) {
            Some(rate) => match record.timing.stddev_ts.filter(|deviation| deviation.is_finite()) {
                Some(deviation) => format!("{rate:.2} ± {deviation:.2}"),
                None => format!("{rate:.2}"),
            },
            None => "unknown".into(),
        },
        _ => String::new(),
    }
}

/// Joules per generated token, or per token of a prompt, with the word that says how they are known.
fn joules(record: &Record) -> String {
    let energy = &record.energy;
    let joules = energy.joules_per_output_token.or(energy.joules_per_total_token);
    match joules.filter(|joules| record.valid && joules.is_finite() && *joules > 0.0) {
        None => String::new(),
        Some(joules) => {
            let word = energy_word(record).map(|word| format!(" ({word})")).unwrap_or_default();
            // Three digits, without an exponent where that is readable.
            let decimals = (2.0 - joules.log10().floor()).clamp(0.0, 12.0) as usize;
            format!("{joules:.decimals$}{word}")
        }
    }
}
