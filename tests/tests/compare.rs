//! `perjoule classes` and `perjoule compare` from outside.
//!
//! Files of records are made here, so that every verdict is known beforehand.

use serde_json::{Value, json};

mod place;
use place::Place;

/// A kernel of the op whose 30 samples scatter by `noise` around `centre` nanoseconds.
fn kernel(name: &str, centre: f64, noise: f64) -> Value {
    let at = |i: usize| centre * (1.0 + noise * ((i * 7919 % 101) as f64 / 50.0 - 1.0));
    json!({
        "schema_version": 1, "kind": "kernel", "provenance": "measured", "valid": true, "device": "cpu",
        "op": "matmul", "kernel": name, "dtype": "bf16", "shape": "m=1,n=4096,k=4096", "n_threads": 2,
        "cache_state": "rotate", "cpu_model": "Test CPU", "cpu_features": ["avx2"],
        "samples_ns": (0..30).map(at).collect::<Vec<f64>>(),
    })
}

/// A decode at 100 tokens/s and 2 J/token.
fn tokens(model: &str, n_parallel: u64) -> Value {
    json!({
        "schema_version": 1, "kind": "tokens", "provenance": "measured", "valid": true, "device": "cpu",
        "device_name": "Test CPU", "model": model, "dtype": "bf16", "n_prompt": 0, "n_gen": 10, "n_depth": 0,
        "n_parallel": n_parallel, "n_threads": 2, "samples_ns": [1e8, 1e8, 1e8], "median_ns": 1e8,
        "avg_ts": 100.0, "stddev_ts": 1.0, "joules": 20.0, "joules_per_output_token": 2.0,
        "energy_kind": "measured", "energy_source": "rapl: package", "energy_boundary": "package",
        "energy_ci95": [19.0, 21.0],
    })
}

fn with(mut record: Value, changes: &[(&str, Value)]) -> Value {
    for (key, value) in changes {
        record[*key] = value.clone();
    }
    record
}

fn write(place: &Place, name: &str, records: &[Value]) {
    let lines: String = records.iter().map(|record| format!("{record}\n")).collect();
    std::fs::write(place.path(name), lines).unwrap();
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn classes_show_what_is_known_and_what_is_not() {
    let place = Place::new();
    let table = place.ok("classes");
    let line = |id: &str| table.lines().find(|line| line.split_whitespace().next() == Some(id)).unwrap();
    let cells: Vec<&str> = line("nvidia-h100-sxm").split_whitespace().collect();
    assert_eq!(
        cells,
        [
            "nvidia-h100-sxm",
            "80",
            "3350",
            "66.9",
            "494.7",
            "989.4",
            "1978.9",
            "1978.9",
            "unsupported",
            "700",
            "6.88",
            "B"
        ]
    );
    assert!(line("aws-trainium2").contains("unknown") && line("nvidia-gb200-nvl72").contains("conflict"));
    let one = place.ok("classes --class mi300x");
    assert!(one.starts_with("amd-mi300x\n") && one.contains("tdp_w") && one.contains("Sources"), "{one}");
    let list = parsed(&place.ok("classes --json"));
    assert!(list.as_array().unwrap().len() >= 44);
    assert_eq!(parsed(&place.ok("classes h100 --json")).as_array().unwrap().len(), 2);
    place.refused("classes --class h100", "nvidia-h100-pcie");
    place.refused("classes h1000", "nearest");
}

/// Lines that do not say which cache they had are of the usual one, beside bf16 in bf16.
#[test]
fn results_of_different_caches_are_not_compared() {
    let place = Place::new();
    let cached = |kv: &str| with(tokens("llama-3.1-8b", 1), &[("kv_dtype", kv.into())]);
    write(&place, "old.jsonl", &[tokens("llama-3.1-8b", 1)]);
    write(&place, "usual.jsonl", &[cached("bf16")]);
    write(&place, "rounded.jsonl", &[cached("q8_0")]);
    let groups = |line: &str| parsed(&place.ok(line))["groups"].as_array().unwrap().len();
    assert_eq!(groups("compare old.jsonl usual.jsonl --format json"), 1);
    place.refused("compare old.jsonl rounded.jsonl", "kv-dtype (the usual and q8_0); --loose kv-dtype");
    assert_eq!(groups("compare old.jsonl rounded.jsonl --loose kv-dtype --format json"), 1);
    let matched = |new: &str| {
        let report = parsed(&place.ok(&format!("compare old.jsonl {new} --regression --format json")));
        report["lines"].as_array().unwrap().iter().any(|line| !line["ratio"].is_null())
    };
    assert!(matched("usual.jsonl"));
    let nothing = place.run("compare old.jsonl rounded.jsonl --regression");
    assert_eq!(nothing.status.code(), Some(1), "nothing could be judged");
}

#[test]
fn classes_of_ones_own_are_added_and_overrides_said() {
    let place = Place::new();
    let class = |id: &str| {
        format!(
            "[[hardware]]\nid = \"{id}\"\nname = \"Mine\"\npeak.bf16 = 100\nmem_gb = 48\nmem_gbs = 1000\ntdp_w = 300\nusd_h_device = 1.5\n"
        )
    };
    std::fs::write(place.path("my.toml"), class("my-card") + &class("nvidia-h100-sxm")).unwrap();
    let output = place.run("classes --catalogue my.toml --json");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        stderr.contains("adds my-card") && stderr.contains("overrides nvidia-h100-sxm (built in)"),
        "{stderr}"
    );
    let list = parsed(std::str::from_utf8(&output.stdout).unwrap());
    let of = |id: &str| list.as_array().unwrap().iter().find(|class| class["id"] == id).unwrap().clone();
    assert_eq!(of("nvidia-h100-sxm")["figures"]["mem_gb"]["values"], json!([48.0]));
    assert_eq!(of("my-card")["origin"], "my.toml");
    assert_eq!(of("my-card")["figures"]["peak_fp8"]["state"], "unknown");
    let line = "compare --class my-card --model llama-3.1-8b --catalogue my.toml --format json";
    assert_eq!(parsed(&place.ok(line))["groups"][0]["rows"][0]["usd_h_device"], 1.5);
    std::fs::write(place.path("bad.toml"), "[[hardware]]\nid = \"x\"\nname = 1\n").unwrap();
    place.refused("classes --catalogue bad.toml", "bad.toml:3");
    place.refused("classes --catalogue none.toml", "none.toml");
}

#[test]
fn without_arguments_seven_classes_stand_side_by_side() {
    let place = Place::new();
    let all = parsed(&place.ok("compare --format json"));
    let groups = all["groups"].as_array().unwrap();
    assert_eq!(groups.len(), 4);
    for group in groups {
        let rows = group["rows"].as_array().unwrap();
        assert_eq!(rows.len(), 7);
        assert!(rows.iter().all(|row| row["provenance"] == "modelled"));
        for row in rows {
            let rate = &row["tokens_per_s"];
            let (lo, hi) = (rate["interval"][0].as_f64().unwrap(), rate["interval"][1].as_f64().unwrap());
            assert!(lo < rate["value"].as_f64().unwrap() && rate["value"].as_f64().unwrap() <= hi, "{row}");
        }
    }
    let devices = |group: usize, row: usize| &groups[group]["rows"][row]["devices"];
    assert_eq!((devices(0, 0), devices(2, 0), devices(2, 6)), (&1.into(), &2.into(), &5.into()));
    let text = place.ok("compare");
    for part in [
        "llama-3.1-70b bf16, decode",
        "64 sequences",
        "modelled, energy unknown",
        "board",
        "PUE 1.15",
        "perjoule run",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn records_and_classes_are_compared_for_one_workload() {
    let place = Place::new();
    let imported = with(
        tokens("llama-3.1-8b", 1),
        &[
            ("provenance", "imported".into()),
            ("device_name", "Other".into()),
            ("avg_ts", 200.0.into()),
            ("energy_kind", "modelled".into()),
            ("energy_boundary", "wall".into()),
        ],
    );
    write(&place, "a.jsonl", &[tokens("llama-3.1-8b", 1), tokens("llama-3.1-8b", 4)]);
    write(&place, "b.jsonl", &[imported]);
    let line = "compare a.jsonl b.jsonl --class h200-sxm,mi300xx2 --parallel 1 --region oregon --pue 1.5";
    let all = parsed(&place.ok(&format!("{line} --format json")));
    let rows = all["groups"][0]["rows"].as_array().unwrap();
    let words: Vec<(&str, &str, &str)> = rows
        .iter()
        .map(|row| {
            let word = |key: &str| row[key].as_str().unwrap();
            (word("provenance"), word("energy_provenance"), word("energy_boundary"))
        })
        .collect();
    assert_eq!(
        words,
        [
            ("measured", "measured", "package"),
            ("imported", "modelled", "wall"),
            ("modelled", "modelled", "board"),
            ("modelled", "modelled", "board")
        ]
    );
    assert_eq!(rows[3]["devices"], 2);
    // 2 J/token are 1/1.8 kWh a million tokens
    let carbon = rows[0]["gco2e_per_mtoken"]["value"].as_f64().unwrap();
    assert!((carbon - 1.5 * 79.0 / 1.8).abs() < 1e-6, "{carbon}");
    assert!(all["groups"][0]["boundary_note"].as_str().unwrap().contains("not equals"));
    let table = place.ok(line);
    assert!(table.contains("imported, energy modelled") && table.contains("boundaries of energy differ"));
    assert_eq!(place.ok(&format!("{line} --format csv")).lines().count(), 5);
    let priced = parsed(&place.ok("compare a.jsonl --price 3.6 --parallel 1 --format json"));
    let hire = priced["groups"][0]["rows"][0]["usd_hire_per_mtoken"]["value"].as_f64().unwrap();
    assert!((hire - 10.0).abs() < 1e-9, "1e6 tokens at 100 tokens/s and 3.6 USD/h");
}

#[test]
fn what_is_not_comparable_is_refused_by_name() {
    let place = Place::new();
    write(&place, "a.jsonl", &[tokens("llama-3.1-8b", 1)]);
    write(&place, "b.jsonl", &[tokens("llama-3.2-1b", 4)]);
    write(&place, "kernels.jsonl", &[kernel("k", 1e3, 0.0)]);
    let invalid = [("valid", false.into()), ("invalid_reasons", json!(["wrong result"]))];
    write(&place, "invalid.jsonl", &[with(tokens("llama-3.1-8b", 1), &invalid)]);
    place.refused(
        "compare a.jsonl b.jsonl",
        "model (llama-3.1-8b and llama-3.2-1b), batch (1 and 4); --loose model,batch",
    );
    place.refused("compare a.jsonl b.jsonl --loose model", "batch (1 and 4)");
    let loose = place.ok("compare a.jsonl b.jsonl --loose model,batch");
    assert!(
        loose.contains("NOT EQUAL in model, batch") && loose.contains("llama-3.2-1b bf16, decode"),
        "{loose}"
    );
    for (line, part) in [
        ("compare a.jsonl --model llama-3.1-70b", "model (llama-3.1-8b and llama-3.1-70b)"),
        ("compare a.jsonl --dtype fp8", "dtype (bf16 and fp8)"),
        ("compare a.jsonl -d 512", "context (10 generated tokens and 10 generated tokens after 512)"),
        ("compare kernels.jsonl", "--fail-on"),
        ("compare invalid.jsonl", "wrong result"),
        ("compare none.jsonl", "none.jsonl"),
        ("compare a.jsonl a.jsonl", "twice"),
        ("compare --class h100", "nvidia-h100-pcie"),
        ("compare --class h100-sxmx1 --model llama-3.1-405b", "devices hold it"),
        ("compare --class h200-sxm --model nope", "llama-3.1-8b"),
        ("compare --class h200-sxm --dtype q9", "q4_k_m"),
        ("compare --region mars", "virginia"),
        ("compare --pue 0.5", "--pue"),
        ("compare --price nobody=2", "nobody"),
        ("compare --parallel 0", "--parallel 0"),
        ("compare --phase decode -p 9", "-d 9"),
        ("compare --format junit", "--fail-on"),
        ("compare a.jsonl --fail-on 3%", "two files"),
        ("compare a.jsonl b.jsonl --fail-on 3", "3%"),
        ("compare a.jsonl b.jsonl --fail-on 3% --format csv", "junit"),
        ("compare a.jsonl b.jsonl --fail-on 3% --loose model", "--loose model"),
        ("compare a.jsonl b.jsonl --any-kernel", "--fail-on"),
        ("compare --self --format csv", "--self"),
        ("compare --self --op nope", "matmul"),
        ("compare --self -r 1", "-r"),
    ] {
        place.refused(line, part);
    }
}

#[test]
fn two_files_of_kernels_are_held_against_each_other_and_nothing_fails() {
    let place = Place::new();
    write(&place, "old.jsonl", &[kernel("a", 1000.0, 0.005)]);
    write(&place, "new.jsonl", &[kernel("a", 1100.0, 0.005)]);
    write(&place, "tokens.jsonl", &[tokens("llama-3.1-8b", 1)]);
    let text = place.ok("compare old.jsonl new.jsonl");
    assert!(text.contains("SLOWER") && text.lines().last().unwrap().contains("--fail-on"), "{text}");
    let value: Value = serde_json::from_str(&place.ok("compare old.jsonl new.jsonl --format json")).unwrap();
    assert_eq!((&value["regressions"], &value["failures"]), (&json!(1), &json!([])));
    assert_eq!(place.run("compare old.jsonl new.jsonl --fail-on 3%").status.code(), Some(1));
    // what asks for tokens, or has some, is another question
    place.refused("compare old.jsonl new.jsonl -p 512", "no records of tokens");
    place.refused("compare old.jsonl tokens.jsonl", "no records of tokens");
    place.refused("compare old.jsonl new.jsonl --format junit", "--fail-on");
    place.refused("compare old.jsonl old.jsonl", "twice");
    write(&place, "noisy.jsonl", &[kernel("a", 1020.0, 0.5)]);
    let text = place.ok("compare old.jsonl noisy.jsonl --fail-on 3%");
    assert!(text.lines().last().unwrap().contains("nothing could be decided"), "{text}");
}

#[test]
fn only_a_real_regression_fails() {
    let place = Place::new();
    write(
        &place,
        "old.jsonl",
        &[kernel("a", 1000.0, 0.005), kernel("b", 1000.0, 0.5), kernel("gone", 1.0, 0.0)],
    );
    let slower = kernel("a", 1050.0, 0.005);
    for (name, first, code, verdict) in [
        ("same.jsonl", kernel("a", 1000.0, 0.005), 0, "same"),
        ("slower.jsonl", slower.clone(), 1, "slower"),
        ("faster.jsonl", kernel("a", 900.0, 0.005), 0, "faster"),
        ("invalid.jsonl", with(slower, &[("valid", false.into())]), 1, "invalid"),
    ] {
        write(&place, name, &[first, kernel("b", 1010.0, 0.5), kernel("more", 1.0, 0.0)]);
        let output = place.run(&format!("compare old.jsonl {name} --fail-on 3% --format json"));
        assert_eq!(output.status.code(), Some(code), "{name}");
        let report = parsed(std::str::from_utf8(&output.stdout).unwrap());
        let of = |kernel: &str| {
            let has = |line: &&Value| line["kernel_old"] == kernel || line["kernel_new"] == kernel;
            report["lines"].as_array().unwrap().iter().find(has).unwrap()["verdict"].clone()
        };
        assert_eq!((of("a"), of("b")), (verdict.into(), "unclear".into()), "{name}");
        assert_eq!((of("gone"), of("more")), ("only old".into(), "only new".into()));
        for format in ["table", "md", "junit", "github"] {
            let output = place.run(&format!("compare old.jsonl {name} --regression --format {format}"));
            assert_eq!(output.status.code(), Some(code), "{name} {format}");
            let missing =
                format!("compare old.jsonl {name} --fail-on 3% --fail-on-missing --format {format}");
            assert_eq!(place.run(&missing).status.code(), Some(1), "{missing}");
            let text = String::from_utf8(output.stdout).unwrap();
            assert!(text.contains("gone") && text.contains("more") | (format == "github"), "{text}");
        }
    }
    assert_eq!(place.run("compare old.jsonl slower.jsonl --fail-on 10%").status.code(), Some(0));
}

#[test]
fn a_gate_that_judges_nothing_does_not_pass() {
    let place = Place::new();
    let fine = kernel("a", 1000.0, 0.005);
    write(&place, "old.jsonl", std::slice::from_ref(&fine));
    write(&place, "other.jsonl", &[kernel("b", 1000.0, 0.005)]);
    write(&place, "bare.jsonl", &[with(fine.clone(), &[("samples_ns", Value::Null)])]);
    write(&place, "invalid.jsonl", &[with(fine, &[("valid", false.into())])]);
    for new in ["other.jsonl", "bare.jsonl", "invalid.jsonl"] {
        for format in ["table", "md", "junit", "github", "json"] {
            let output = place.run(&format!("compare old.jsonl {new} --fail-on 3% --format {format}"));
            assert_eq!(output.status.code(), Some(1), "{new} {format}");
            let text = String::from_utf8(output.stdout).unwrap();
            assert!(text.contains("no measurement could be judged"), "{new} {format}: {text}");
        }
    }
    assert!(place.ok("compare old.jsonl old.jsonl --fail-on 3% --fail-on-missing").contains("1 same"));
    place.refused("compare old.jsonl old.jsonl --fail-on-missing", "--fail-on-missing belongs to --fail-on");
}

#[test]
fn measured_energy_is_gated_and_modelled_energy_is_not() {
    let place = Place::new();
    let of = |joules: f64, kind: &str| {
        let changes = [
            ("joules_per_output_token", (joules / 10.0).into()),
            ("joules", joules.into()),
            ("energy_ci95", json!([0.99 * joules, 1.01 * joules])),
            ("energy_kind", kind.into()),
        ];
        with(tokens("llama-3.1-8b", 1), &changes)
    };
    write(&place, "old.jsonl", &[of(20.0, "measured")]);
    write(&place, "more.jsonl", &[of(22.0, "measured")]);
    write(&place, "modelled.jsonl", &[of(22.0, "modelled")]);
    let output = place.run("compare old.jsonl more.jsonl --fail-on 3% --format json");
    assert_eq!(output.status.code(), Some(1));
    let report = parsed(std::str::from_utf8(&output.stdout).unwrap());
    let energy = &report["lines"][0];
    assert_eq!((&energy["kind"], &energy["verdict"]), (&"energy".into(), &"more energy".into()));
    assert!((energy["ratio"].as_f64().unwrap() - 1.1).abs() < 1e-9, "{energy}");
    assert_eq!((&energy["joules_old"], &energy["median_ns_old"]), (&2.0.into(), &Value::Null));
    let table = String::from_utf8(place.run("compare old.jsonl more.jsonl --regression").stdout).unwrap();
    for part in ["energy: llama-3.1-8b", "MORE ENERGY", "2.20 J", "1 regression beyond 3 %"] {
        assert!(table.contains(part), "{part}: {table}");
    }
    assert_eq!(place.run("compare old.jsonl more.jsonl --fail-on 15%").status.code(), Some(0));
    assert!(place.ok("compare more.jsonl old.jsonl --fail-on 3%").contains("1 less energy"));
    let text = place.ok("compare old.jsonl modelled.jsonl --fail-on 3%");
    assert!(text.contains("energy is not compared: it is modelled"), "{text}");
}

#[test]
fn machines_that_differ_are_an_error() {
    let place = Place::new();
    write(&place, "old.jsonl", &[kernel("a", 1000.0, 0.0)]);
    write(
        &place,
        "new.jsonl",
        &[with(kernel("a", 1000.0, 0.0), &[("cpu_model", "Other".into()), ("n_threads", 4.into())])],
    );
    place.refused(
        "compare old.jsonl new.jsonl --fail-on 3%",
        "cpu_model (Test CPU and Other), threads (2 and 4)",
    );
    assert!(place.ok("compare old.jsonl new.jsonl --fail-on 3% --loose machine").contains("1 same"));
}

#[test]
fn damage_and_names_of_others_do_no_harm() {
    let place = Place::new();
    let evil = "<script>|x</script>\n::error::no\u{1b}[31m";
    write(&place, "old.jsonl", &[kernel(evil, 1e308, 0.0), kernel("nan", 1.0, 0.0)]);
    write(
        &place,
        "new.jsonl",
        &[kernel(evil, 1e308, 0.0), with(kernel("nan", 1.0, 0.0), &[("samples_ns", json!([null, 1.0]))])],
    );
    let mut text = std::fs::read_to_string(place.path("new.jsonl")).unwrap();
    text.push_str("{\"schema_version\":1,\"kind");
    std::fs::write(place.path("new.jsonl"), text).unwrap();
    for format in ["table", "md", "json", "junit", "github"] {
        let output = place.run(&format!("compare old.jsonl new.jsonl --fail-on 3% --format {format}"));
        assert_eq!(output.status.code(), Some(0), "{format}");
        let (out, err) =
            (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        assert!(
            !out.contains('\u{1b}') && !out.lines().any(|line| line.starts_with("::error")),
            "{format}: {out}"
        );
        assert!(!out.contains("<script>") || ["table", "json"].contains(&format), "{format}: {out}");
        assert!(err.contains("new.jsonl: line 3: cut off"), "{err}");
    }
    write(&place, "tokens.jsonl", &[with(tokens("llama-3.1-8b", 1), &[("device_name", evil.into())])]);
    let md = place.ok("compare tokens.jsonl --format md");
    assert!(md.contains("&lt;script&gt;\\|x") && !md.contains("<script>"), "{md}");
}

/// Thirty samples a record: every line gets its verdict. The time is printed; it belongs to the machine as much as to the code.
#[test]
fn ten_thousand_records_are_compared_at_once() {
    let place = Place::new();
    let list = |centre: f64| -> Vec<Value> {
        (0..10_000).map(|i| kernel(&format!("k{i}"), centre * (1.0 + f64::from(i % 7)), 0.02)).collect()
    };
    write(&place, "old.jsonl", &list(1000.0));
    write(&place, "new.jsonl", &list(1001.0));
    let start = std::time::Instant::now();
    let text = place.ok("compare old.jsonl new.jsonl --fail-on 3%");
    println!("2 x 10000 records compared in {:.2} s", start.elapsed().as_secs_f64());
    assert!(text.contains("10000 same"), "{text}");
}

/// Serving with lengths that are not published: its rate and joules are compared, its phase is the stated one.
#[test]
fn published_serving_is_compared() {
    let place = Place::new();
    let samples = concat!(env!("CARGO_MANIFEST_DIR"), "/../bench-harness/formats/tests/samples");
    place.ok(&format!("import {samples}/ml-energy-lm-arena-chat.json -o s.jsonl --quiet"));
    let first = std::fs::read_to_string(place.path("s.jsonl")).unwrap().lines().next().unwrap().to_owned();
    let first: Value = serde_json::from_str(&first).unwrap();
    write(&place, "one.jsonl", std::slice::from_ref(&first));
    let all = parsed(&place.ok("compare one.jsonl --format json"));
    let row = &all["groups"][0]["rows"][0];
    assert_eq!(row["provenance"], "imported");
    let text = all.to_string();
    assert!(text.contains("\"serving\"") && text.contains("1086.7") && text.contains("0.699"), "{text}");
}

#[test]
fn results_of_other_tools_are_imported_and_compared() {
    let place = Place::new();
    let table = "\
| model         |     size |  params | backend |  test |            t/s |
| ------------- | -------: | ------: | ------- | ----: | -------------: |
| llama 8B BF16 | 14.96 GiB |  8.03 B | CUDA   | tg128 |   84.10 ± 0.32 |
";
    std::fs::write(place.path("bench.md"), table).unwrap();
    let lines = place.ok("import bench.md --quiet");
    let record: Value = serde_json::from_str(lines.trim()).unwrap();
    assert_eq!((&record["provenance"], &record["avg_ts"]), (&"imported".into(), &84.1.into()));
    assert!(record["joules"].is_null(), "what the file does not say stays unknown");
    place.ok("import bench.md --from llama-bench-md -o kept.jsonl");
    assert_eq!(std::fs::read_to_string(place.path("kept.jsonl")).unwrap().lines().count(), 1);
    assert!(place.ok("report kept.jsonl -o - --format csv").contains("imported"));
    place.refused("import nope.md", "cannot read nope.md");
    place.refused("import bench.md --from nope", "llama-bench");
    std::fs::write(place.path("prose.txt"), "no benchmark at all").unwrap();
    place.refused("import prose.txt", "prose.txt");
}

#[test]
fn a_machine_is_calibrated_against_itself() {
    let place = Place::new();
    let line = "compare --self --op rms_norm --shape rows=8,len=256 -r 10 --budget 3";
    let value = parsed(&place.ok(&format!("{line} --format json")));
    let rounds = value["rounds"].as_array().unwrap();
    assert!(rounds.len() >= 3 && rounds.iter().all(|round| round["pairs"] == 10), "{value}");
    let told = value["told_apart_in_turn"].as_f64().unwrap().max(value["between_rounds"].as_f64().unwrap());
    assert!(value["fail_on"].as_f64().unwrap() >= told.max(0.01), "{value}");
    assert!(place.ok(line).contains("suggested: --fail-on "));
    assert!(!place.path("results").exists());
}

/// The document names every field that is written.
#[test]
fn the_json_is_documented() {
    let place = Place::new();
    write(&place, "a.jsonl", &[kernel("a", 1e3, 0.0)]);
    let document = concat!(env!("CARGO_MANIFEST_DIR"), "/../bench-harness/src/compare/README.md");
    let document = std::fs::read_to_string(document).unwrap();
    for line in [
        "compare --class h200-sxm --model llama-3.1-8b --format json",
        "compare a.jsonl a.jsonl --fail-on 3% --format json",
        "compare --self --op rms_norm --shape rows=8,len=256 -r 3 --budget 1 --format json",
    ] {
        let value = parsed(&place.ok(line));
        assert!(document.contains(value["schema"].as_str().unwrap()));
        let mut keys: Vec<String> = value.as_object().unwrap().keys().cloned().collect();
        for first in
            [&value["groups"][0], &value["groups"][0]["rows"][0], &value["lines"][0], &value["rounds"][0]]
        {
            keys.extend(first.as_object().into_iter().flatten().map(|(key, _)| key.clone()));
        }
        for key in
            keys.iter().filter(|key| !["schema", "rows", "lines", "rounds", "groups"].contains(&key.as_str()))
        {
            assert!(
                document.contains(&format!("`{key}`")) || document.contains(&format!(".{key}`")),
                "{key}"
            );
        }
    }
}
