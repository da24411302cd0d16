//! llama-bench's outputs, so that scripts made for them work: `printer` in `tools/llama-bench/llama-bench.cpp` of
//! ggml-org/llama.cpp at commit 0104b151, and what `scripts/compare-llama-bench.py` there reads.

use perjoule_record::{Kind, Provenance, Record, stats};
use serde_json::{Map, Value};

use super::metrics::energy_word;
use super::{Omission, invalidity};
use crate::escape::{markdown_cell, one_line};

/// What a field of llama-bench holds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Type {
    Text,
    /// true and false in JSON, 1 and 0 elsewhere.
    Flag,
    Integer,
    Real,
}

impl Type {
    /// The column's type in SQL, as llama-bench declares it.
    fn sql(self) -> &'static str {
        match self {
            Type::Text => "TEXT",
            Type::Flag | Type::Integer => "INTEGER",
            Type::Real => "REAL",
        }
    }
}

use Type::{Flag, Integer, Real, Text};

/// Fields in llama-bench's order, that of 2026, and what stands where nothing is known: llama-bench leaves no field empty, and its scripts join
/// rows by equality, which null never is. Settings have llama-bench's own defaults.
const FIELDS: [(&str, Type, &str); 41] = [
    ("build_commit", Text, "unknown"),
    ("build_number", Integer, "0"),
    ("cpu_info", Text, ""),
    ("gpu_info", Text, ""),
    ("backends", Text, ""),
    ("model_filename", Text, ""),
    ("model_type", Text, ""),
    ("model_size", Integer, "0"),
    ("model_n_params", Integer, "0"),
    ("n_batch", Integer, "0"),
    ("n_ubatch", Integer, "512"),
    ("n_threads", Integer, "0"),
    ("cpu_mask", Text, "0x0"),
    ("cpu_strict", Flag, "false"),
    ("poll", Integer, "50"),
    ("type_k", Text, "f16"),
    ("type_v", Text, "f16"),
    ("n_gpu_layers", Integer, "-1"),
    ("n_cpu_moe", Integer, "0"),
    ("split_mode", Text, "layer"),
    ("main_gpu", Integer, "0"),
    ("no_kv_offload", Flag, "false"),
    ("flash_attn", Integer, "-1"),
    ("devices", Text, "auto"),
    ("tensor_split", Text, "0.00"),
    ("tensor_buft_overrides", Text, "none"),
    ("load_mode", Text, "mmap"),
    // gone from llama-bench, and still asked for by its compare-llama-bench.py
    (USE_MMAP, Flag, "true"),
    ("embeddings", Flag, "false"),
    ("no_op_offload", Integer, "0"),
    ("no_host", Flag, "false"),
    ("fit_target", Integer, "0"),
    ("fit_min_ctx", Integer, "0"),
    ("n_prompt", Integer, "0"),
    ("n_gen", Integer, "0"),
    ("n_depth", Integer, "0"),
    ("test_time", Text, ""),
    ("avg_ns", Integer, "0"),
    ("stddev_ns", Integer, "0"),
    ("avg_ts", Real, "0"),
    ("stddev_ts", Real, "0"),
];

const USE_MMAP: &str = "use_mmap";

/// What follows llama-bench's fields: samples as it has them, then perjoule's own.
const SAMPLES: [&str; 2] = ["samples_ns", "samples_ts"];
const OWN: [(&str, Type); 8] = [
    ("n_parallel", Integer),
    ("dtype", Text),
    ("joules_per_output_token", Real),
    ("joules_per_total_token", Real),
    ("avg_power_w", Real),
    ("energy_kind", Text),
    ("energy_source", Text),
    ("energy_boundary", Text),
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
const NO_RATE: &str = "neither a time nor a rate is known, and llama-bench has both";

/// The valid tests that were timed; the others are noted as left out.
fn tests<'r>(records: &'r [Record], left_out: &mut Vec<Omission>) -> Vec<&'r Record> {
    let mut tests = Vec::new();
    for (index, record) in records.iter().enumerate() {
        let reason = match () {
            () if !record.valid => invalidity(record),
            () if !is_test(record) => NO_TEST.into(),
            () if Times::of(record).is_none() => NO_RATE.into(),
            () => {
                tests.push(record);
                continue;
            }
        };
        left_out.push(Omission { index, reason });
    }
    tests
}

/// A test's fields as JSON in llama-bench's order; after them samples and what only perjoule has, where known.
fn parts(record: &Record) -> Result<Vec<String>, serde_json::Error> {
    // Written by hand around serde_json's values: the order of the fields is llama-bench's.
    let mut fields = fields(record);
    let mut parts = Vec::new();
    for key in FIELDS.iter().map(|(key, ..)| *key).chain(SAMPLES).chain(OWN.iter().map(|(key, _)| *key)) {
        if let Some(value) = fields.remove(key).filter(|value| !value.is_null()) {
            parts.push(format!("{}: {}", serde_json::to_string(key)?, serde_json::to_string(&value)?));
        }
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

/// A value as CSV and SQL have it: flags are 0 and 1. `None` is unknown.
fn scalar(value: Option<Value>) -> Option<String> {
    match value? {
        Value::Null => None,
        Value::Bool(flag) => Some(u8::from(flag).to_string()),
        Value::String(text) => Some(one_line(&text)),
        other => Some(other.to_string()),
    }
}

/// `-o csv`: every value in quotes, unknown ones empty. Samples are not in it, as in llama-bench.
pub(super) fn csv(records: &[Record], left_out: &mut Vec<Omission>) -> String {
    let columns = || FIELDS.iter().map(|(key, ..)| *key).chain(OWN.iter().map(|(key, _)| *key));
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

/// `-o sql`: llama-bench's table and one of perjoule's own columns, and a row of each a test.
///
/// llama-bench's INSERT works on the table made here, and the one written here on llama-bench's: it names the same columns. `use_mmap` is not among
/// them any more, so here it follows from `load_mode`.
pub(super) fn sql(records: &[Record], left_out: &mut Vec<Omission>) -> String {
    let declared = FIELDS.map(|(key, kind, _)| match key {
        USE_MMAP => format!("  {key} {} AS (load_mode LIKE 'mmap%')", kind.sql()),
        _ => format!("  {key} {}", kind.sql()),
    });
    let own = OWN.map(|(key, kind)| format!("  {key} {}", kind.sql()));
    // A row that was deleted leaves its number to a later one.
    let mut text = format!(
        "CREATE TABLE IF NOT EXISTS llama_bench (\n{}\n);\n\n\
         CREATE TABLE IF NOT EXISTS perjoule_bench (\n  \
         llama_bench_rowid INTEGER PRIMARY KEY ON CONFLICT REPLACE,\n  test_time TEXT,\n{}\n);\n\n",
        declared.join(",\n"),
        own.join(",\n")
    );
    let quoted = |value: Option<&Value>| match scalar(value.cloned()) {
        Some(value) => format!("'{}'", value.replace('\'', "''")),
        None => "NULL".into(),
    };
    for record in tests(records, left_out) {
        let fields = fields(record);
        let row =
            |keys: &[&str]| keys.iter().map(|key| quoted(fields.get(*key))).collect::<Vec<_>>().join(", ");
        let theirs: Vec<&str> = FIELDS.iter().map(|(key, ..)| *key).filter(|key| *key != USE_MMAP).collect();
        let ours: Vec<&str> = std::iter::once("test_time").chain(OWN.iter().map(|(key, _)| *key)).collect();
        text.push_str(&format!(
            "INSERT INTO llama_bench ({}) VALUES ({});\n\
             INSERT INTO perjoule_bench (llama_bench_rowid, {}) VALUES (last_insert_rowid(), {});\n",
            theirs.join(", "),
            row(&theirs),
            ours.join(", "),
            row(&ours)
        ));
    }
    text
}

/// Times and rates of a test, each where it is known or follows from the other.
struct Times {
    avg_ns: f64,
    avg_ts: f64,
    stddev_ns: Option<f64>,
    stddev_ts: Option<f64>,
}

impl Times {
    /// `None` where neither is known.
    fn of(record: &Record) -> Option<Times> {
        let timing = &record.timing;
        let samples = timing.samples_ns.as_deref().unwrap_or_default();
        // What is no time or rate is unknown.
        let good = |x: Option<f64>| x.filter(|x| x.is_finite() && *x > 0.0);
        let deviation = |x: Option<f64>| x.filter(|x| x.is_finite() && *x >= 0.0);
        let (ns, ts) = (good(timing.avg_ns.or_else(|| stats::mean(samples))), good(timing.avg_ts));
        let other = |known: f64| good(Some(tokens(record) * 1e9 / known));
        Some(Times {
            avg_ns: ns.or_else(|| other(ts?))?,
            avg_ts: ts.or_else(|| other(ns?))?,
            stddev_ns: deviation(timing.stddev_ns.or_else(|| stats::stddev(samples))),
            stddev_ts: deviation(timing.stddev_ts),
        })
    }
}

/// Tokens of one repetition, of all sequences.
fn tokens(record: &Record) -> f64 {
    let w = &record.workload;
    w.n_prompt.unwrap_or(0).saturating_add(w.n_gen.unwrap_or(0)) as f64 * w.n_parallel.unwrap_or(1) as f64
}

/// llama-bench's name of a backend.
fn backend(record: &Record) -> Option<String> {
    record.device.backend.as_deref().map(|name| match name {
        "cpu" => "CPU".into(),
        "cuda" => "CUDA".into(),
        other => other.into(),
    })
}

/// A setting as an import kept it: what is spelled as a number or a flag is one, but where the field is text.
fn setting(kind: Type, value: &str) -> Option<Value> {
    match kind {
        Text => Some(value.into()),
        _ => serde_json::from_str(value).ok().filter(|value: &Value| value.is_number() || value.is_boolean()),
    }
}

fn fields(record: &Record) -> Map<String, Value> {
    let (w, timing, energy) = (&record.workload, &record.timing, &record.energy);
    let good = |x: Option<f64>| x.filter(|x| x.is_finite() && *x > 0.0);
    let mut fields: Map<String, Value> = FIELDS
        .iter()
        .filter_map(|(key, kind, default)| Some(((*key).into(), setting(*kind, default)?)))
        .collect();
    let mut put = |key: &str, value: Value| {
        if !value.is_null() {
            fields.insert(key.into(), value);
        }
    };
    let cpu =
        record.device.device.as_deref() == Some("cpu") || record.device.backend.as_deref() == Some("cpu");
    if record.provenance == Provenance::Measured {
        // What is true of perjoule itself: a chunk is processed at once, and files are read.
        put("n_ubatch", w.n_batch.into());
        // Lines before 1.3 do not say it: it was that of the weights, or f16.
        let weights = w.dtype.as_deref().filter(|dtype| matches!(*dtype, "f32" | "bf16"));
        let cache = w.kv_dtype.as_deref().or(weights);
        put("type_k", cache.into());
        put("type_v", cache.into());
        put("load_mode", "none".into());
        put("n_gpu_layers", cpu.then_some(0).into());
    }
    // The settings that an import kept.
    let config = w.config.iter().flat_map(|config| config.split(','));
    let settings: Vec<(&str, &str)> = config.filter_map(|part| part.split_once('=')).collect();
    let stated = |key: &str| settings.iter().rfind(|(name, _)| *name == key).map(|(_, value)| *value);
    for (key, kind, _) in FIELDS.iter().filter(|(key, ..)| *key != USE_MMAP) {
        put(key, stated(key).and_then(|value| setting(*kind, value)).into());
    }
    // Older versions of llama-bench had flags in place of the mode.
    let flag = |key| stated(key).map(|value| matches!(value, "1" | "true"));
    let older = match (flag("use_direct_io"), flag(USE_MMAP)) {
        _ if stated("load_mode").is_some() => None,
        (Some(true), _) => Some("dio"),
        (_, Some(mapped)) => Some(if mapped { "mmap" } else { "none" }),
        _ => None,
    };
    put("load_mode", older.into());

    let version = record.source.source_version.as_deref().unwrap_or_default();
    let (commit, number) = version.split_once(" (").unwrap_or((version, ""));
    let own = record.environment.build_commit.as_deref();
    put("build_commit", known(Some(commit)).or_else(|| known(own)).into());
    put("build_number", number.trim_end_matches(')').parse::<u64>().ok().into());
    put("cpu_info", record.environment.cpu_model.clone().into());
    let gpu =
        record.device.device_name.clone().filter(|name| Some(name) != record.environment.cpu_model.as_ref());
    put("gpu_info", gpu.filter(|_| !cpu).into());
    put("backends", backend(record).into());
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
    let whole = |ns: f64| Value::from(ns.round() as i64);
    if let Some(times) = Times::of(record) {
        put("avg_ns", whole(times.avg_ns));
        put("stddev_ns", times.stddev_ns.map(whole).into());
        put("avg_ts", times.avg_ts.into());
        put("stddev_ts", times.stddev_ts.into());
    }
    let samples = timing.samples_ns.as_deref().unwrap_or_default();
    put("samples_ns", samples.iter().map(|ns| ns.is_finite().then(|| whole(*ns))).collect());
    put("samples_ts", samples.iter().map(|ns| Value::from(tokens(record) * 1e9 / ns)).collect());
    put("n_parallel", w.n_parallel.into());
    put("dtype", w.dtype.clone().into());
    put("joules_per_output_token", good(energy.joules_per_output_token).into());
    put("joules_per_total_token", good(energy.joules_per_total_token).into());
    put("avg_power_w", good(energy.avg_power_w).into());
    let joules = energy.joules_per_output_token.or(energy.joules_per_total_token).or(energy.avg_power_w);
    put("energy_kind", joules.map(|_| energy_word(record).unwrap_or("measured")).into());
    put("energy_source", energy.energy_source.clone().into());
    put("energy_boundary", energy.energy_boundary.clone().into());
    let mapped = fields.get("load_mode").and_then(Value::as_str).is_some_and(|mode| mode.starts_with("mmap"));
    fields.insert(USE_MMAP.into(), mapped.into());
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
    let mut columns = vec![
        "model",
        "size",
        "params",
        "backend",
        "threads",
        "type_k",
        "type_v",
        "n_parallel",
        "J/token",
        "test",
        "t/s",
    ];
    let any = |wanted: &dyn Fn(&Record) -> bool| tests.iter().any(|record| wanted(record));
    let shown = |column: &str| match column {
        "threads" => any(&|record| record.workload.n_threads.is_some()),
        // as llama-bench does: where it is not the usual one
        "type_k" | "type_v" => any(&|record| record.workload.other_kv_dtype().is_some()),
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
        "backend" => markdown_cell(&backend(record).unwrap_or_default()),
        "threads" => optional(w.n_threads.map(|n| n.to_string())),
        "type_k" | "type_v" => markdown_cell(w.kv_dtype.as_deref().unwrap_or_default()),
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
