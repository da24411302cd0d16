//! `perjoule export`, the formats of `perjoule run`, and other tools' files where records are read.

use serde_json::{Value, json};
use std::io::Write;
use std::process::Stdio;

mod place;
use place::Place;

/// Two tokens a second, in llama-bench's own table.
const THEIRS: &str = "\
| model         |     size |  params | backend |  test |            t/s |
| ------------- | -------: | ------: | ------- | ----: | -------------: |
| mine BF16     | 2.30 GiB |  1.24 B | CUDA    |  tg10 |  200.00 ± 1.00 |

build: 8cf427ff (5163)
";

fn tokens() -> Value {
    json!({
        "schema_version": 1, "kind": "tokens", "provenance": "measured", "valid": true, "device": "cpu", "backend": "cpu",
        "device_name": "Test CPU", "model": "mine", "dtype": "bf16", "n_prompt": 0, "n_gen": 10, "n_depth": 0,
        "n_parallel": 1, "n_threads": 2, "samples_ns": [1e8, 1e8, 1e8], "median_ns": 1e8, "avg_ts": 100.0,
        "stddev_ts": 1.0, "joules": 20.0, "joules_per_output_token": 2.0, "energy_kind": "modelled",
        "energy_source": "modelled-tdp: x", "energy_boundary": "package", "energy_ci95": [19.0, 21.0], "run_id": "r1",
        "build_commit": "0123456789ab",
    })
}

fn mixed() -> String {
    let mut kernel = tokens();
    (kernel["kind"], kernel["op"], kernel["model"]) = ("kernel".into(), "matmul".into(), Value::Null);
    let mut invalid = tokens();
    (invalid["valid"], invalid["invalid_reasons"]) = (false.into(), json!(["it throttled"]));
    [tokens(), kernel, invalid].iter().map(|record| format!("{record}\n")).collect()
}

#[test]
fn records_are_written_in_every_format() {
    let place = Place::new();
    std::fs::write(place.path("a.jsonl"), mixed()).unwrap();
    for (format, part, left_out) in [
        ("llama-bench-md", "build: 0123456789ab (0)", "1 of 3"),
        ("llama-bench-json", "\"avg_ts\": 100.0", "it throttled"),
        ("llama-bench-jsonl", "\"energy_kind\": \"modelled\"", "it throttled"),
        ("llama-bench-csv", "\"100.0\"", "it throttled"),
        ("llama-bench-sql", "INSERT INTO llama_bench", "it throttled"),
        ("hyperfine", "\"median\": 0.1", "it throttled"),
        ("bencher", "modelled-joules-per-output-token", "it throttled"),
        ("github-action-benchmark", "J/token (modelled)", "it throttled"),
        ("github-action-smaller", "J/token (modelled)", "it throttled"),
        ("github-action-bigger", "tokens/s", "it throttled"),
        ("openmetrics", "perjoule_modelled_energy_per_output_token_joules", ""),
        ("csv", "joules_per_output_token", ""),
        ("jsonl", "\"valid\":false", ""),
    ] {
        let output = place.run(&format!("export a.jsonl --to {format}"));
        let (out, err) =
            (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        assert!(output.status.success() && out.contains(part), "{format}: {out} {err}");
        assert!(err.contains(left_out) && err.is_empty() == left_out.is_empty(), "{format}: {err}");
        place.ok(&format!("export a.jsonl --to {format} -o out --quiet"));
        assert_eq!(std::fs::read_to_string(place.path("out")).unwrap(), out, "{format}");
    }
    // there and back
    place.ok("export a.jsonl --to llama-bench-csv -o theirs.csv");
    let back: Value = serde_json::from_str(&place.ok("import theirs.csv --quiet")).unwrap();
    assert_eq!(
        (&back["avg_ts"], &back["model"], &back["provenance"]),
        (&100.0.into(), &"mine".into(), &"imported".into())
    );
    for (line, part) in [
        ("export none.jsonl --to csv", "none.jsonl"),
        ("export a.jsonl --to csv -o no/where.csv", "folder must exist"),
    ] {
        place.refused(line, part);
    }
    for line in ["export a.jsonl --to mlperf-csv", "export a.jsonl", "export a.jsonl --to nope"] {
        assert_eq!(place.run(line).status.code(), Some(2), "{line}");
    }
    std::fs::write(place.path("empty.jsonl"), "").unwrap();
    place.refused("export empty.jsonl --to csv", "no records");
    std::fs::write(place.path("invalid.jsonl"), mixed().lines().last().unwrap()).unwrap();
    place.refused("export invalid.jsonl --to bencher", "nothing of these 1 records");
}

const RUN: &str = "run --only tokens --model smollm2-135m -p 8 -n 4 -r 2 --budget 2 --quiet";

#[test]
fn a_run_speaks_llama_bench() {
    let place = Place::new();
    let table = place.ok(&format!("{RUN} --format llama-bench"));
    let lines: Vec<&str> = table.lines().collect();
    let cells =
        |line: &str| line.trim_matches('|').split('|').map(|c| c.trim().to_owned()).collect::<Vec<_>>();
    let columns = cells(lines[0]);
    for column in ["model", "size", "params", "backend", "threads", "test", "t/s"] {
        assert!(columns.iter().any(|c| c == column), "{table}");
    }
    assert_eq!(columns[columns.len() - 2..], ["test", "t/s"]);
    assert_eq!(
        (cells(lines[2])[columns.len() - 2].as_str(), cells(lines[3])[columns.len() - 2].as_str()),
        ("pp8", "tg4")
    );
    let build = lines.last().unwrap().strip_prefix("build: ").unwrap();
    let (commit, number) = build.split_once(" (").unwrap();
    assert!(!commit.contains(' ') && number == "0)", "{table}");
    std::fs::write(place.path("own.md"), &table).unwrap();
    assert_eq!(place.ok("import own.md --quiet").lines().count(), 2, "llama-bench's readers read it");

    let lines = place.ok(&format!("{RUN} --format llama-bench-jsonl --openmetrics last.prom"));
    let list: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(list.len(), 2);
    assert!(list.iter().all(|line| line["avg_ts"].as_f64().unwrap() > 0.0 && line["samples_ns"].is_array()));
    let metrics = std::fs::read_to_string(place.path("last.prom")).unwrap();
    assert!(metrics.ends_with("# EOF\n") && metrics.matches("perjoule_valid{").count() == 2, "{metrics}");
    let left: Vec<_> = std::fs::read_dir(place.path(".")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().starts_with(".perjoule-")), "{left:?}");
    // records are kept as always
    assert_eq!(std::fs::read_dir(place.path("results")).unwrap().count(), 2);
}

#[test]
fn a_run_speaks_openmetrics_and_says_what_a_format_has_not() {
    let place = Place::new();
    let line = "run --op rms_norm --shape rows=8,len=256 --dtype f32 --budget 0.5 -r 5";
    let text = place.ok(&format!("{line} --format openmetrics --quiet"));
    assert!(text.contains("perjoule_call_duration_seconds{") && text.ends_with("# EOF\n"), "{text}");
    let both = RUN.replace("--only tokens", "--only ceilings,tokens").replace("--quiet", "");
    let output = place.run(&format!("{both} --format llama-bench"));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("not in this format"), "{stderr}");
    // nothing at all would be in it
    place.refused(&format!("{line} --format llama-bench"), "--format llama-bench is for tokens");
    place
        .refused("run --only kernels --format llama-bench-jsonl", "--format llama-bench-jsonl is for tokens");
    place.refused(&format!("{line} --openmetrics no/where.prom"), "no folder");
    place.refused(&format!("{line} --openmetrics ."), "folder");
    if cfg!(target_os = "linux") {
        let place = Place::new();
        place.refused(&format!("{line} --openmetrics /dev/full"), "cannot write /dev/full");
        assert!(!place.path("results").exists(), "before anything is measured");
    }
    place.refused(&format!("{line} --format llama-bench -o -"), "--format");
}

#[test]
fn other_tools_files_are_read_where_records_are() {
    let place = Place::new();
    std::fs::write(place.path("mine.jsonl"), mixed()).unwrap();
    std::fs::write(place.path("theirs.md"), THEIRS).unwrap();
    let line = "compare mine.jsonl theirs.md --loose dtype,context,model --format json";
    let all: Value = serde_json::from_str(&place.ok(line)).unwrap();
    let rows = all["groups"][0]["rows"].as_array().unwrap();
    let of: Vec<(&str, f64)> = rows
        .iter()
        .map(|row| (row["provenance"].as_str().unwrap(), row["tokens_per_s"]["value"].as_f64().unwrap()))
        .collect();
    assert_eq!(of, [("measured", 100.0), ("imported", 200.0)]);
    let report = place.ok("report mine.jsonl theirs.md -o - --format csv --quiet");
    assert!(report.contains("imported") && report.contains("theirs.md"), "{report}");
    // its warnings too
    std::fs::write(place.path("odd.md"), THEIRS.replace("200.00 ± 1.00", "?")).unwrap();
    let output = place.run("report mine.jsonl odd.md -o - --format md");
    assert!(String::from_utf8(output.stderr).unwrap().contains("odd.md: line 3"));
    let mut child =
        place.command("compare - --format csv").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(THEIRS.as_bytes()).unwrap();
    assert!(String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap().contains("imported"));
    std::fs::write(place.path("prose.md"), "no benchmark").unwrap();
    place.refused("report prose.md", "no records that can be read");
}

#[test]
fn the_schema_is_printed() {
    let place = Place::new();
    let schema: Value = serde_json::from_str(&place.ok("schema")).unwrap();
    assert!(schema["x-version"].as_str().unwrap().starts_with("1."));
    let validator = jsonschema::validator_for(&schema).unwrap();
    assert!(validator.is_valid(&tokens()) && !validator.is_valid(&json!({ "schema_version": 1 })));
}
