//! Exports: round trips, schemas of the receiving tools, hostile names, and what must never look like a good number.

use perjoule_formats::{
    ExportError, Finding, Findings, FindingsFormat, Format, MAX_WARNINGS, Outcome, export, export_findings,
    import,
};
use perjoule_record::{EnergyKind, Environment, Kind, Phase, Provenance, Record, to_line};
use proptest::prelude::*;
use serde_json::Value;

const HOSTILE: &str = "a|b\"c'd\\e<script>&\n::error::x\r@all\u{7}`*_[x](y)%0A{}=,;\u{2028}ü";

/// A decode measured by perjoule, its energy from a model.
fn decode() -> Record {
    let environment = Environment { run_id: Some("run-1".into()), ..Environment::of_build() };
    let mut record = Record::new(Kind::Tokens, &environment);
    record.test_time = Some("2026-02-03T04:05:06Z".into());
    record.device.device = Some("cpu".into());
    record.device.backend = Some("cpu".into());
    record.environment.cpu_model = Some("AMD EPYC 7763".into());
    let w = &mut record.workload;
    (w.model, w.model_type) = (Some("llama-1b".into()), Some("llama 1B bf16".into()));
    (w.dtype, w.kv_dtype) = (Some("bf16".into()), Some("bf16".into()));
    (w.n_prompt, w.n_gen, w.n_depth, w.n_parallel) = (Some(0), Some(128), Some(64), Some(4));
    (w.n_batch, w.n_threads, w.model_size, w.model_n_params) =
        (Some(512), Some(8), Some(2_471_645_696), Some(1_235_814_400));
    record.timing.set_samples(vec![2e9, 2.1e9, 2.2e9], 1);
    record.timing.derive_token_rates(512);
    let energy = &mut record.energy;
    (energy.joules, energy.energy_ci95) = (Some(100.0), Some([80.0, 120.0].into()));
    (energy.joules_per_output_token, energy.joules_per_total_token) = (Some(0.25), Some(0.25));
    (energy.avg_power_w, energy.energy_kind) = (Some(50.0), Some(EnergyKind::Modelled));
    energy.energy_source = Some("modelled-tdp: AMD EPYC 7763".into());
    energy.energy_boundary = Some("package".into());
    record
}

fn measured() -> Record {
    let mut record = decode();
    record.energy.energy_kind = Some(EnergyKind::Measured);
    record.energy.energy_source = Some("rapl-powercap: package".into());
    record
}

fn invalid() -> Record {
    let mut record = decode();
    record.workload.model = Some("invalid-model".into());
    record.workload.model_type = None;
    record.invalidate("the device throttled");
    record
}

fn text(records: &[Record], format: Format) -> String {
    export(records, format).unwrap().text
}

fn json(records: &[Record], format: Format) -> Value {
    serde_json::from_str(&text(records, format)).unwrap()
}

#[test]
fn own_to_llama_bench_and_back() {
    let mut cached = decode();
    cached.workload.kv_dtype = Some("q8_0".into());
    for record in [decode(), measured(), cached] {
        let exported = text(std::slice::from_ref(&record), Format::LlamaBenchJsonl);
        let imported = import(exported.as_bytes(), "x.jsonl", None).unwrap();
        assert_eq!((imported.format, imported.warnings.len()), (Format::LlamaBenchJsonl, 0));
        let back = &imported.records[0];
        assert_eq!(back.provenance, Provenance::Imported);
        let mut expected = record.workload.clone();
        expected.config = back.workload.config.clone();
        assert_eq!(back.workload, expected);
        assert_eq!(back.timing.samples_ns, record.timing.samples_ns);
        assert_eq!(
            (back.timing.avg_ts, back.timing.stddev_ts),
            (record.timing.avg_ts, record.timing.stddev_ts)
        );
        assert_eq!(back.timing.avg_ns, Some(2.1e9));
        assert_eq!(back.test_time, record.test_time);
        assert_eq!(back.device.backend.as_deref(), Some("CPU"), "llama-bench's name of it");
        assert_eq!(back.device.device_name.as_deref(), Some("AMD EPYC 7763"));
        let (a, b) = (&back.energy, &record.energy);
        assert_eq!((a.joules_per_output_token, a.energy_kind), (b.joules_per_output_token, b.energy_kind));
        assert_eq!((&a.energy_source, &a.energy_boundary), (&b.energy_source, &b.energy_boundary));
    }
}

#[test]
fn llama_bench_lines_have_its_fields() {
    let line = json(&[decode()], Format::LlamaBenchJsonl);
    let object = line.as_object().unwrap();
    // Every field that llama-bench writes is there and none is null; scripts look for the names.
    for field in LLAMA_BENCH.iter().chain(&["samples_ns", "samples_ts"]) {
        assert!(object.get(*field).is_some_and(|value| !value.is_null()), "{field}: {line}");
    }
    // what is true of a measurement of perjoule's own, and llama-bench's default
    assert_eq!((&line["n_ubatch"], &line["type_k"]), (&512.into(), &"bf16".into()));
    assert_eq!((&line["load_mode"], &line["type_v"]), (&"none".into(), &"bf16".into()));
    assert_eq!((&line["n_gpu_layers"], &line["use_mmap"]), (&0.into(), &false.into()));
    assert_eq!((&line["poll"], &line["backends"]), (&50.into(), &"CPU".into()));
    assert_eq!(line["samples_ts"][0], 256.0);
    assert_eq!(line["samples_ns"][0], 2_000_000_000_u64, "whole nanoseconds are integers");
    assert_eq!(line["energy_kind"], "modelled");

    // a line of before 1.3 does not say its cache
    let mut old = decode();
    old.workload.kv_dtype = None;
    assert_eq!(json(&[old], Format::LlamaBenchJsonl)["type_k"], "bf16");

    // llama-bench's own result goes through unchanged, settings included.
    let sample = include_str!("samples/llama-bench.json");
    let imported = import(sample.as_bytes(), "x", None).unwrap();
    let published: Vec<Value> = serde_json::from_str(sample).unwrap();
    let lines: Vec<Value> = text(&imported.records, Format::LlamaBenchJsonl)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    for (ours, theirs) in lines.iter().zip(&published) {
        for (field, value) in theirs.as_object().unwrap() {
            match field.as_str() {
                "samples_ts" => {}
                "model_filename" => {
                    assert_eq!(ours[field], "Qwen2.5-7B-Instruct-Q4_K_M.gguf", "without its folder")
                }
                // Fields that newer versions dropped.
                "use_direct_io" | "repack" => assert!(ours.get(field).is_none()),
                _ => assert_eq!(&ours[field], value, "{field}"),
            }
        }
    }
}

/// The columns of llama-bench's table, as it declares them since 2026.
const LLAMA_BENCH: [&str; 40] = [
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

/// What compare-llama-bench.py joins two builds by: it refuses lines without one of these, and null equals nothing.
const KEYS: [&str; 28] = [
    "cpu_info",
    "gpu_info",
    "backends",
    "n_gpu_layers",
    "tensor_buft_overrides",
    "model_filename",
    "model_type",
    "n_batch",
    "n_ubatch",
    "embeddings",
    "cpu_mask",
    "cpu_strict",
    "poll",
    "n_threads",
    "type_k",
    "type_v",
    "use_mmap",
    "no_kv_offload",
    "split_mode",
    "main_gpu",
    "tensor_split",
    "flash_attn",
    "n_prompt",
    "n_gen",
    "n_depth",
    // in newer versions
    "n_cpu_moe",
    "fit_target",
    "fit_min_ctx",
];

/// A record that says no more than it must: no settings, no threads, no build.
fn sparse() -> Record {
    let mut record = Record::new(Kind::Tokens, &Environment::default());
    record.provenance = Provenance::Imported;
    (record.workload.n_prompt, record.workload.n_gen) = (Some(512), Some(0));
    record.timing.avg_ts = Some(1000.0);
    record
}

/// Two builds' results meet in the join of llama.cpp's script.
#[test]
fn compare_llama_bench_finds_its_keys() {
    let mut later = measured();
    later.environment.build_commit = Some("fedcba987654".into());
    later.timing.set_samples(vec![70_934_056.33, 70_934_058.5], 1);
    let sample = include_str!("samples/llama-bench.json");
    let theirs = import(sample.as_bytes(), "x", None).unwrap().records;
    for record in [measured(), later, sparse(), theirs[0].clone()] {
        let line = json(std::slice::from_ref(&record), Format::LlamaBenchJsonl);
        let table = text(std::slice::from_ref(&record), Format::LlamaBenchCsv);
        let mut reader = csv::Reader::from_reader(table.as_bytes());
        let columns = reader.headers().unwrap().clone();
        let row = reader.records().next().unwrap().unwrap();
        for key in KEYS.iter().chain(&["build_commit", "test_time", "avg_ts"]) {
            assert!(line.get(*key).is_some_and(|value| !value.is_null()), "{key}: {line}");
            // CSV has flags as 0 and 1
            let cell = &row[columns.iter().position(|column| column == *key).unwrap()];
            let value = match &line[key] {
                Value::Bool(flag) => u8::from(*flag).to_string(),
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            assert_eq!(cell, value, "{key}");
        }
        for key in ["avg_ns", "stddev_ns", "n_ubatch", "model_size", "n_gpu_layers"] {
            assert!(line[key].is_i64() || line[key].is_u64(), "{key} is a column of integers: {line}");
        }
    }
    let (a, mut b) = (json(&[measured()], Format::LlamaBenchJsonl), measured());
    b.environment.build_commit = Some("fedcba987654".into());
    let b = json(&[b], Format::LlamaBenchJsonl);
    assert!(KEYS.iter().all(|key| a[key] == b[key]) && a["build_commit"] != b["build_commit"]);
}

/// Unknown sizes stay unknown on the way back, and a time follows from a rate. Without either there is no test.
#[test]
fn stand_ins_are_no_claims() {
    let exported = text(&[sparse()], Format::LlamaBenchJsonl);
    let line: Value = serde_json::from_str(&exported).unwrap();
    assert_eq!((&line["avg_ns"], &line["build_commit"]), (&512_000_000.into(), &"unknown".into()));
    let back = import(exported.as_bytes(), "x", None).unwrap();
    assert!(back.warnings.is_empty(), "{:?}", back.warnings);
    let record = &back.records[0];
    let w = &record.workload;
    assert_eq!((w.n_batch, w.n_threads, w.model_size, w.model_n_params), (None, None, None, None));
    assert_eq!((&w.model, &w.model_type, &record.source.source_version), (&None, &None, &None));
    let mut untimed = sparse();
    untimed.timing.avg_ts = None;
    let exported = export(&[untimed], Format::LlamaBenchJsonl).unwrap();
    assert!(exported.text.is_empty() && exported.left_out[0].reason.contains("rate"), "{exported:?}");
}

/// What older versions of llama-bench called `use_mmap` and `use_direct_io`.
#[test]
fn load_modes_follow_from_older_flags() {
    for (config, mode, mapped) in [
        ("use_mmap=1", "mmap", true),
        ("use_mmap=false,use_direct_io=false", "none", false),
        ("use_mmap=true,use_direct_io=true", "dio", false),
        ("load_mode=mmap+mlock,use_mmap=0", "mmap+mlock", true),
        ("flash_attn=maybe,poll=NaN", "mmap", true),
    ] {
        let mut record = sparse();
        record.workload.config = Some(config.into());
        let line = json(&[record], Format::LlamaBenchJsonl);
        assert_eq!((&line["load_mode"], &line["use_mmap"]), (&mode.into(), &mapped.into()), "{config}");
        assert_eq!((&line["flash_attn"], &line["poll"]), (&(-1).into(), &50.into()), "{config}");
    }
}

/// llama-bench's own table takes the first statement, since it names no other column.
#[test]
fn sql_keeps_to_the_columns_of_llama_bench() {
    let text = text(&[measured()], Format::LlamaBenchSql);
    let statement = text.lines().find(|line| line.starts_with("INSERT INTO llama_bench ")).unwrap();
    let columns = statement.split(['(', ')']).nth(1).unwrap();
    assert_eq!(columns.split(", ").collect::<Vec<_>>(), LLAMA_BENCH);
    assert!(!statement.contains("NULL"), "{statement}");
    // a statement that cannot be read does not lend its energy to the one before
    let broken = text.replace("'0', '128', '64'", "'0', '128");
    let both = format!("{text}{}", &broken[broken.find("INSERT").unwrap()..]);
    let back = import(both.as_bytes(), "x", None).unwrap();
    assert_eq!((back.records.len(), back.warnings.len()), (1, 2), "{:?}", back.warnings);
    assert_eq!(back.records[0].energy.joules_per_output_token, Some(0.25));
}

#[test]
fn every_output_of_llama_bench_reads_back() {
    let mut named = measured();
    (named.workload.model, named.workload.model_type) = (Some("l'ama, \"1b\"".into()), Some("a;b\\".into()));
    let records = [named, decode(), invalid()];
    for format in
        [Format::LlamaBenchJson, Format::LlamaBenchJsonl, Format::LlamaBenchCsv, Format::LlamaBenchSql]
    {
        let exported = export(&records, format).unwrap();
        assert_eq!((exported.left_out.len(), exported.left_out[0].index), (1, 2), "{format}");
        let imported = import(exported.text.as_bytes(), "x", None).unwrap();
        assert_eq!((imported.format, &*imported.warnings), (format, &[][..]));
        assert_eq!(imported.records.len(), 2);
        for (back, record) in imported.records.iter().zip(&records) {
            let mut expected = record.workload.clone();
            expected.config = back.workload.config.clone();
            assert_eq!(back.workload, expected, "{format}");
            assert_eq!(back.timing.avg_ts, record.timing.avg_ts);
            assert_eq!(back.energy.joules_per_output_token, record.energy.joules_per_output_token);
            assert_eq!(back.energy.energy_kind, record.energy.energy_kind);
            assert_eq!(back.energy.energy_boundary, record.energy.energy_boundary);
        }
        let none = export(&[], format).unwrap().text;
        assert!(!none.contains("null") && !none.contains("INSERT"), "{format}: {none}");
    }
}

/// What scripts look for in the last line: `build: COMMIT (NUMBER)`.
#[test]
fn the_build_is_written_as_llama_bench_writes_it() {
    let last =
        |record: Record| text(&[record], Format::LlamaBenchMarkdown).lines().last().unwrap().to_owned();
    let mut record = decode();
    record.environment.build_commit = Some("0123456789ab".into());
    assert_eq!(last(record.clone()), "build: 0123456789ab (0)");
    record.source.source_version = Some("8cf427ff (5163)".into());
    assert_eq!(last(record.clone()), "build: 8cf427ff (5163)");
    (record.source.source_version, record.environment.build_commit) = (None, None);
    assert_eq!(last(record), "build: unknown (0)");
}

#[test]
fn llama_bench_table() {
    let records = [measured(), decode(), invalid()];
    let table = text(&records, Format::LlamaBenchMarkdown);
    let lines: Vec<&str> = table.lines().collect();
    let columns: Vec<&str> = lines[0].split('|').map(str::trim).collect();
    let expected =
        ["", "model", "size", "params", "backend", "threads", "n_parallel", "J/token", "test", "t/s", ""];
    assert_eq!(columns, expected, "scripts find t/s last");
    assert!(lines[2].contains(" 0.250 |"), "{table}");
    assert!(lines[3].contains("0.250 (modelled) |"), "{table}");
    assert!(lines[4].contains("invalid: the device throttled |") && !lines[4].contains("0.250"), "{table}");
    // Readable again, the invalid one as invalid.
    let back = import(table.as_bytes(), "x.md", None).unwrap().records;
    assert_eq!(back.iter().map(|r| r.valid).collect::<Vec<_>>(), [true, true, false]);
    assert_eq!(back[0].timing.avg_ts, Some(244.18));
    assert_eq!(back[0].workload.token_test().as_deref(), Some("tg128 @ d64"));
    assert_eq!(back[0].workload.n_parallel, Some(4));

    // a cache that is not the usual one has llama-bench's columns
    let mut cached = decode();
    cached.workload.kv_dtype = Some("q8_0".into());
    let table = text(&[cached, decode()], Format::LlamaBenchMarkdown);
    assert!(table.lines().next().unwrap().contains("| type_k | type_v |"), "{table}");
    let back = import(table.as_bytes(), "x.md", None).unwrap().records;
    let caches: Vec<_> = back.iter().map(|record| record.workload.kv_dtype.as_deref()).collect();
    assert_eq!(caches, [Some("q8_0"), Some("bf16")]);
}

#[test]
fn hyperfine() {
    let value = json(&[decode()], Format::Hyperfine);
    let result = &value["results"][0];
    assert_eq!(result["command"], "llama-1b tg128 @ d64 x4 bf16 on cpu");
    assert_eq!(result["times"], serde_json::json!([2.0, 2.1, 2.2]));
    assert_eq!((&result["median"], &result["min"], &result["max"]), (&2.1.into(), &2.0.into(), &2.2.into()));
    assert!((result["stddev"].as_f64().unwrap() - 0.1).abs() < 1e-12);
    assert_eq!(result["user"], Value::Null);
    assert_eq!(result["parameters"]["modelled-joules-per-output-token"], "0.25 J/token (modelled)");
    let mut untimed = decode();
    untimed.timing = Default::default();
    let exported = export(&[untimed], Format::Hyperfine).unwrap();
    assert_eq!(exported.left_out.len(), 1);
}

/// Commands have what hyperfine itself measures.
#[test]
fn hyperfine_of_a_command() {
    let mut record = decode();
    record.kind = Kind::Command;
    (record.workload, record.process.exec_command) = (Default::default(), Some("sleep 2".into()));
    (record.process.cpu_user_s, record.process.cpu_system_s) = (Some(0.5), Some(0.25));
    let value = json(std::slice::from_ref(&record), Format::Hyperfine);
    let result = &value["results"][0];
    assert_eq!((&result["user"], &result["system"]), (&0.5.into(), &0.25.into()));
    assert_eq!(result["command"], "sleep 2 on cpu");
    record.process.exec_name = Some("nap".into());
    record.device = Default::default();
    assert_eq!(json(&[record], Format::Hyperfine)["results"][0]["command"], "nap");
}

#[test]
fn bencher() {
    // https://bencher.dev/docs/reference/bencher-metric-format
    let metric = serde_json::json!({
        "type": "object",
        "properties": { "value": { "type": "number" }, "lower_value": { "type": "number" }, "upper_value": { "type": "number" } },
        "required": ["value"],
    });
    let schema = serde_json::json!({
        "type": "object",
        "patternProperties": { ".+": { "type": "object", "patternProperties": { ".+": metric } } },
    });
    let validator = jsonschema::validator_for(&schema).unwrap();
    let mut serving = decode();
    (serving.workload.n_prompt, serving.workload.n_gen, serving.workload.phase) =
        (None, None, Some(Phase::Mixed));
    (serving.timing.avg_ts, serving.timing.avg_output_ts) = (None, Some(99.0));
    let value = json(&[decode(), measured(), serving, invalid()], Format::Bencher);
    assert!(validator.is_valid(&value));
    let benchmarks = value.as_object().unwrap();
    assert_eq!(benchmarks.len(), 3, "the invalid one is not there: {value}");
    let first = &benchmarks["llama-1b tg128 @ d64 x4 bf16 on cpu"];
    assert_eq!(first["latency"]["value"], 2.1e9);
    let energy = &first["modelled-joules-per-output-token"];
    assert_eq!(
        (&energy["value"], &energy["lower_value"], &energy["upper_value"]),
        (&0.25.into(), &0.2.into(), &0.3.into())
    );
    assert!(first.get("joules-per-output-token").is_none(), "a model's joules are not those of a meter");
    let second = &benchmarks["llama-1b tg128 @ d64 x4 bf16 on cpu #2"];
    assert_eq!(second["joules-per-output-token"]["value"], 0.25);
    let mixed = &benchmarks["llama-1b mixed x4 bf16 on cpu"];
    assert_eq!(mixed["output-tokens-per-second"]["value"], 99.0);
    assert!(mixed.get("tokens-per-second").is_none());
    assert!(first.as_object().unwrap().keys().all(|measure| measure.len() <= 64));

    let mut long = decode();
    long.workload.model = Some("ü".repeat(5000));
    let value = json(&[long.clone(), long], Format::Bencher);
    assert!(value.as_object().unwrap().keys().all(|name| name.chars().count() <= 1024));
    assert_eq!(value.as_object().unwrap().len(), 2);
}

#[test]
fn imported_results_have_names_that_tell_them_apart() {
    let mut records = Vec::new();
    for (name, text) in [
        ("mlperf.csv", include_str!("samples/mlperf.csv")),
        ("mlperf-offline.txt", include_str!("samples/mlperf-offline.txt")),
        ("ml-energy.json", include_str!("samples/ml-energy-lm-arena-chat.json")),
    ] {
        records.extend(import(text.as_bytes(), name, None).unwrap().records);
    }
    let value = json(&records, Format::Bencher);
    let names: Vec<&String> = value.as_object().unwrap().keys().collect();
    for expected in [
        "MLPerf inference mlperf-offline.txt mixed Offline",
        "Qwen/Qwen3-14B mixed lm-arena-chat x8 bf16 on B200",
        "resnet50 Offline on NVIDIA H200-SXM-141GB (8 devices)",
    ] {
        assert!(names.iter().any(|name| *name == expected), "{names:?}");
    }
}

#[test]
fn github_action_benchmark() {
    let records = [decode(), invalid()];
    let smaller = json(&records, Format::ActionSmaller);
    let names: Vec<&str> =
        smaller.as_array().unwrap().iter().map(|entry| entry["name"].as_str().unwrap()).collect();
    let label = "llama-1b tg128 @ d64 x4 bf16 on cpu: ";
    let expected = ["latency", "modelled-joules-per-output-token", "modelled-joules-per-total-token"];
    assert_eq!(names, expected.map(|name| format!("{label}{name}")));
    assert_eq!(smaller[1]["unit"], "J/token (modelled)");
    assert_eq!(smaller[1]["range"], "0.2 .. 0.3");
    assert_eq!(smaller[1]["extra"], "energy source: modelled-tdp: AMD EPYC 7763\nenergy boundary: package");
    let bigger = json(&records, Format::ActionBigger);
    assert_eq!(bigger.as_array().unwrap().len(), 1);
    assert_eq!(bigger[0]["unit"], "tokens/s");
}

#[test]
fn openmetrics() {
    let mut old = decode();
    old.environment.run_id = Some("run-0".into());
    let exported = export(&[old, decode(), measured(), invalid()], Format::OpenMetrics).unwrap();
    assert_eq!(exported.left_out.len(), 1, "the earlier run");
    let text = exported.text;
    assert!(text.ends_with("\n# EOF\n"));
    for expected in [
        "# TYPE perjoule_call_duration_seconds gauge\n# UNIT perjoule_call_duration_seconds seconds\n",
        "perjoule_modelled_energy_per_output_token_joules{benchmark=\"llama-1b tg128 @ d64 x4 bf16 on cpu\",device=\"cpu\",backend=\"cpu\",model=\"llama-1b\",dtype=\"bf16\",kv_dtype=\"bf16\",source=\"modelled-tdp: AMD EPYC 7763\",boundary=\"package\"} 0.25\n",
        "repeat=\"2\",source=\"rapl-powercap: package\",boundary=\"package\"} 0.25\n",
        "perjoule_modelled_energy_per_output_token_low_joules{",
        "perjoule_average_power_watts{",
        "reason=\"invalid: the device throttled\"} 0\n",
    ] {
        assert!(text.contains(expected), "{expected} is not in\n{text}");
    }
    let of_invalid = text.lines().filter(|line| line.contains("invalid-model"));
    assert_eq!(of_invalid.count(), 1, "only that it is invalid");
    // Samples of a family stand together under its head.
    let mut family = "";
    for line in text.lines().filter(|line| *line != "# EOF") {
        if let Some(head) = line.strip_prefix("# TYPE ") {
            family = head.split(' ').next().unwrap();
        }
        let name =
            line.trim_start_matches("# UNIT ").trim_start_matches("# HELP ").trim_start_matches("# TYPE ");
        assert_eq!(name.split(['{', ' ']).next().unwrap(), family);
    }
    assert_eq!(export(&[], Format::OpenMetrics).unwrap().text, "# EOF\n");
}

#[test]
fn invalid_records_are_nowhere_a_good_number() {
    for format in Format::EXPORTED {
        let exported = export(&[invalid()], *format).unwrap();
        match format {
            Format::Perjoule => assert!(exported.text.contains("\"valid\":false")),
            Format::LlamaBenchMarkdown => assert!(exported.text.contains("invalid: the device throttled")),
            Format::OpenMetrics => assert!(exported.text.contains("perjoule_valid{")),
            _ => assert!(!exported.text.contains("invalid-model"), "{format}: {}", exported.text),
        }
        if !matches!(format, Format::Perjoule | Format::LlamaBenchMarkdown | Format::OpenMetrics) {
            assert_eq!(exported.left_out[0].reason, "invalid: the device throttled", "{format}");
        }
    }
}

#[test]
fn modelled_energy_is_called_so_everywhere() {
    let mut whole = measured();
    whole.provenance = Provenance::Modelled;
    for record in [decode(), whole] {
        for format in Format::EXPORTED.iter().filter(|format| **format != Format::ActionBigger) {
            assert!(text(std::slice::from_ref(&record), *format).contains("modelled"), "{format}");
        }
        let plain = text(&[measured()], Format::Bencher);
        assert!(!plain.contains("modelled"));
    }
    // A kind that nobody stated is not passed off as measured.
    let mut unstated = decode();
    unstated.energy.energy_kind = None;
    assert!(text(&[unstated], Format::Bencher).contains("unverified-joules-per-output-token"));
}

#[test]
fn import_only_formats_are_refused() {
    for format in Format::ALL.iter().filter(|format| !Format::EXPORTED.contains(format)) {
        let error = export(&[], *format).unwrap_err();
        assert!(matches!(error, ExportError::ImportOnly { .. }));
        assert!(error.to_string().contains("openmetrics"), "{error}");
    }
}

fn hostile() -> Record {
    let mut record = decode();
    for field in [
        &mut record.workload.model,
        &mut record.workload.model_type,
        &mut record.workload.dtype,
        &mut record.device.device,
        &mut record.device.backend,
        &mut record.energy.energy_source,
        &mut record.energy.energy_boundary,
        &mut record.source.source_tool,
        &mut record.source.source_version,
        &mut record.environment.cpu_model,
    ] {
        *field = Some(HOSTILE.into());
    }
    record
}

#[test]
fn hostile_names_stay_names() {
    let mut bad = hostile();
    bad.invalidate(HOSTILE);
    let records = [hostile(), bad];
    for format in [Format::Hyperfine, Format::Bencher, Format::ActionSmaller, Format::ActionBigger] {
        json(&records, format);
    }
    assert_eq!(text(&records, Format::LlamaBenchJsonl).lines().count(), 1);
    let table = text(&records, Format::LlamaBenchMarkdown);
    let rows: Vec<&str> = table.lines().filter(|line| line.starts_with('|')).collect();
    assert_eq!((table.lines().count(), rows.len()), (6, 4), "{table}");
    assert!(!table.contains('<'));
    let back = import(table.as_bytes(), "x", None).unwrap();
    let printable: String =
        HOSTILE.chars().map(|c| if c.is_control() || c == '\u{2028}' { ' ' } else { c }).collect();
    assert_eq!(back.records[0].workload.model_type.as_deref(), Some(printable.as_str()));
    let metrics = text(&records, Format::OpenMetrics);
    assert!(metrics.lines().all(|line| line.starts_with("perjoule_") || line.starts_with("# ")), "{metrics}");
}

fn finding(name: &str, outcome: Outcome) -> Finding {
    Finding {
        name: name.into(),
        group: "kernel".into(),
        outcome,
        verdict: format!("{outcome:?}: 3 %"),
        message: "more samples | are needed".into(),
        seconds: Some(2.5),
    }
}

fn findings() -> Findings {
    let mut list = vec![
        finding("fine", Outcome::Fine),
        finding(HOSTILE, Outcome::Regression),
        finding("unclear", Outcome::Unclear),
        finding("broken", Outcome::Invalid),
        finding("gone", Outcome::Missing),
        finding("new", Outcome::New),
    ];
    list[3].seconds = Some(-1.0);
    Findings { title: HOSTILE.into(), summary: "all in all".into(), notes: vec![HOSTILE.into()], list }
}

#[test]
fn junit() {
    let xml = export_findings(&findings(), FindingsFormat::Junit);
    assert!(
        xml.contains("tests=\"6\"") && xml.contains("failures=\"1\"") && xml.contains("errors=\"1\""),
        "{xml}"
    );
    assert!(xml.contains("time=\"2.500\"") && !xml.contains("<script>") && !xml.contains('\u{7}'), "{xml}");
    assert_eq!(xml.matches("<skipped").count(), 3, "{xml}");
    assert!(
        xml.contains("classname=\"perjoule.kernel\"") && xml.contains("Fine: 3 %: more samples"),
        "{xml}"
    );
    assert_eq!(quick_junit_report(&xml), 6);
}

/// Test cases that quick-junit reads back.
fn quick_junit_report(xml: &str) -> usize {
    quick_junit::Report::deserialize_from_str(xml).unwrap().test_suites[0].test_cases.len()
}

#[test]
fn github_annotations() {
    let text = export_findings(&findings(), FindingsFormat::GithubAnnotations);
    let levels: Vec<&str> = text.lines().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(levels, ["::notice", "::error", "::warning", "::error", "::warning", "::notice"], "{text}");
    assert!(text.starts_with("::notice title=perjoule compare::all in all\n"), "{text}");
    assert!(text.contains("title=Regression%3A 3 %25::a|b"), "{text}");
    assert!(text.contains("%0A::error::x%0D@all"), "{text}");
}

proptest! {
    /// Whatever a record holds, what is exported is well formed and has no number that is none.
    #[test]
    fn exports_are_well_formed(
        name in any::<String>(),
        reason in proptest::option::of(any::<String>()),
        numbers in proptest::collection::vec(prop_oneof![any::<f64>(), Just(f64::NAN), Just(-1.0), Just(1e308), Just(0.0)], 8),
        sizes in proptest::collection::vec(proptest::option::of(prop_oneof![0_u64..9, any::<u64>()]), 4),
        kind in prop_oneof![Just(Kind::Tokens), Just(Kind::Kernel), Just(Kind::Samples), Just(Kind::Ceiling)],
    ) {
        let mut record = hostile();
        record.kind = kind;
        (record.workload.model, record.workload.op, record.workload.config) = (Some(name.clone()), Some(name.clone()), Some(name));
        reason.into_iter().for_each(|reason| record.invalidate(reason));
        let w = &mut record.workload;
        (w.n_prompt, w.n_gen, w.n_depth, w.n_parallel) = (sizes[0], sizes[1], sizes[2], sizes[3]);
        record.timing.samples_ns = Some(numbers.clone());
        (record.timing.median_ns, record.timing.avg_ts, record.timing.throughput) = (Some(numbers[0]), Some(numbers[1]), Some(numbers[2]));
        (record.timing.stddev_ts, record.timing.gflops) = (Some(numbers[3]), Some(numbers[4]));
        (record.energy.joules, record.energy.joules_per_output_token) = (Some(numbers[5]), Some(numbers[6]));
        record.energy.avg_power_w = Some(numbers[7]);
        for format in Format::EXPORTED {
            let text = text(&[record.clone(), record.clone()], *format);
            match format {
                Format::OpenMetrics => {
                    for line in text.lines().filter(|line| !line.starts_with('#')) {
                        let value: f64 = line.rsplit(' ').next().unwrap().parse().unwrap();
                        prop_assert!(value.is_finite(), "{}", line);
                    }
                }
                Format::LlamaBenchMarkdown => prop_assert!(!text.contains("NaN") && !text.contains("inf ")),
                Format::Perjoule | Format::LlamaBenchJsonl => {
                    for line in text.lines() {
                        serde_json::from_str::<Value>(line).unwrap();
                    }
                }
                Format::LlamaBenchCsv => {
                    for row in csv::Reader::from_reader(text.as_bytes()).records() {
                        prop_assert!(row.is_ok(), "{:?}", row);
                    }
                }
                Format::LlamaBenchSql => {
                    let (declared, statements) = text.split_at(text.find("INSERT").unwrap_or(text.len()));
                    prop_assert!(declared.ends_with(");\n\n"), "{}", declared);
                    for line in statements.lines() {
                        // quotes within values are doubled, so outside of them stands nothing of the record
                        let outside: String = line.split('\'').step_by(2).collect();
                        let into = ["INSERT INTO llama_bench (", "INSERT INTO perjoule_bench ("];
                        prop_assert!(into.iter().any(|into| line.starts_with(into)) && line.ends_with(");"), "{}", line);
                        prop_assert!(outside.chars().all(|c| c.is_ascii_alphanumeric() || "_(), ;".contains(c)), "{}", outside);
                    }
                }
                _ => {
                    serde_json::from_str::<Value>(&text).unwrap();
                }
            }
        }
        let line = to_line(&record).unwrap();
        let read = import(line.as_bytes(), "x", Some(Format::Perjoule)).unwrap();
        prop_assert!(read.records.len() == 1 && read.warnings.len() < MAX_WARNINGS);
    }

    #[test]
    fn findings_are_well_formed(name in any::<String>(), message in any::<String>(), seconds in any::<f64>()) {
        let finding = Finding { name: name.clone(), message, seconds: Some(seconds), ..finding(&name, Outcome::Regression) };
        let findings = Findings { title: name.clone(), summary: name, notes: Vec::new(), list: vec![finding.clone(), finding] };
        prop_assert_eq!(quick_junit_report(&export_findings(&findings, FindingsFormat::Junit)), 2);
        prop_assert_eq!(export_findings(&findings, FindingsFormat::GithubAnnotations).lines().count(), 3);
    }
}
