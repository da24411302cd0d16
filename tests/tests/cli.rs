//! The command line from outside: what it prints, where, and how it ends.
//!
//! Sizes and budgets are small: this is about behaviour, not about speed.

use serde_json::Value;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

mod place;
use place::{Place, binary};

fn checkpoint(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("checkpoints").join(name).display().to_string()
}

fn schema() -> jsonschema::Validator {
    let path = "../bench-harness/record/schema/record.v1.schema.json";
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
    jsonschema::validator_for(&serde_json::from_str(&text).unwrap()).unwrap()
}

fn records(text: &str) -> Vec<Value> {
    let schema = schema();
    let list: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for record in &list {
        if let Err(error) = schema.validate(record) {
            panic!("{error}: {record}");
        }
    }
    list
}

const SMALL: &str = "run --op rms_norm --shape rows=8,len=256 --dtype f32 --budget 0.5 -r 5";

#[test]
fn devices_say_how_their_energy_is_measured() {
    let place = Place::new();
    let list: Value = serde_json::from_str(&place.ok("devices --json")).unwrap();
    let cpu = list.as_array().unwrap().iter().find(|d| d["id"] == "cpu").unwrap();
    for field in ["backend", "name", "class", "memory_bytes", "software", "features", "meters"] {
        assert!(cpu.get(field).is_some(), "{field}");
    }
    let meter = &cpu["meters"][0];
    assert!(["measured", "modelled"].contains(&meter["kind"].as_str().unwrap()));
    assert!(meter["source"].is_string() && meter["boundary"].is_string());
    assert!(place.ok("devices").contains("Energy of cpu"));
}

#[test]
fn kernels_are_listed_and_their_choice_explained() {
    let place = Place::new();
    assert!(place.ok("kernels").contains("rms_norm"));
    let text = place.ok("kernels --op rms_norm --json --shape rows=4,len=64");
    let rows: Value = serde_json::from_str(&text).unwrap();
    let chosen: Vec<&Value> = rows.as_array().unwrap().iter().filter(|r| r["chosen"] == true).collect();
    assert_eq!(chosen.len(), 1, "{text}");
    assert!(chosen[0]["cost_s"].as_f64().unwrap() > 0.0);
    // every row either has a cost or says why not
    assert!(rows.as_array().unwrap().iter().all(|r| r["cost_s"].is_number() != r["refusal"].is_string()));
}

#[test]
fn every_format_carries_the_same_record() {
    let place = Place::new();
    let table = place.ok(SMALL);
    assert!(
        table.contains("rms_norm f32")
            && table.contains("rows=8,len=256")
            && table.contains("modelled") | table.contains("measured")
    );
    assert!(!table.contains('\u{1b}'), "no colours on a pipe");
    assert!(place.ok(&format!("{SMALL} --format md")).contains("|---"));
    let json: Value = serde_json::from_str(&place.ok(&format!("{SMALL} --format json"))).unwrap();
    assert_eq!(json.as_array().unwrap().len(), 1);
    let lines = records(&place.ok(&format!("{SMALL} --format jsonl")));
    let record = &lines[0];
    assert_eq!(
        (&record["kind"], &record["verified"], &record["valid"]),
        (&"kernel".into(), &true.into(), &true.into())
    );
    assert_eq!(record["samples_ns"].as_array().unwrap().len(), 5);
    assert!(record["median_ns"].as_f64().unwrap() > 0.0 && record["roof_gflops"].as_f64().unwrap() > 0.0);
    assert!(record["roof_gbps"].is_null(), "operands that stay in the caches are not held against memory");
    assert!(record["energy_source"].is_string(), "where joules are given, so is their source");
    let csv = place.ok(&format!("{SMALL} --format csv"));
    assert_eq!(csv.lines().count(), 2);
    assert!(csv.lines().next().unwrap().split(',').any(|column| column == "median_ns"));
    let files: Vec<_> = std::fs::read_dir(place.path("results")).unwrap().collect();
    assert_eq!(files.len(), 5, "each run stores its records");
}

#[test]
fn records_go_where_o_says() {
    let place = Place::new();
    assert_eq!(records(&place.ok(&format!("{SMALL} -o -"))).len(), 1);
    assert!(!place.path("results").exists());
    let lines = [format!("{SMALL} -o both.jsonl --quiet"), format!("{SMALL} -o both.jsonl --seed 2 --quiet")];
    let running: Vec<_> =
        lines.iter().map(|line| place.command(line).stdout(Stdio::null()).spawn().unwrap()).collect();
    for mut child in running {
        assert!(child.wait().unwrap().success());
    }
    let both = records(&std::fs::read_to_string(place.path("both.jsonl")).unwrap());
    assert_eq!(both.len(), 2, "two runs at once append to one file");
}

#[test]
fn ceilings_are_measured_or_say_what_they_follow_from() {
    let place = Place::new();
    let list = records(&place.ok("run --only ceilings --budget 1 --format jsonl --quiet"));
    assert!(list.iter().all(|r| r["kind"] == "ceiling"));
    let of = |op: &str, dtype: Value| list.iter().find(|r| r["op"] == op && r["dtype"] == dtype).unwrap();
    assert!(of("multiply_add", "f32".into())["gflops"].as_f64().unwrap() > 0.0);
    assert!(of("read", Value::Null)["gbps"].as_f64().unwrap() > 0.0);
    let bf16 = list.iter().find(|r| r["dtype"] == "bf16").unwrap();
    assert!(bf16["provenance"] == "measured" || bf16["config"].as_str().unwrap().contains("f32"));
}

#[test]
fn models_are_checked_against_their_reference() {
    let place = Place::new();
    for name in ["llama", "qwen3", "gpt-oss"] {
        let text = place.ok(&format!("check --model {} --json", checkpoint(name)));
        let result: Value = serde_json::from_str(&text).unwrap();
        assert!(result["rel_err"].as_f64().unwrap() <= 1e-5, "{name}: {text}");
        assert_eq!((&result["greedy_equal"], &result["passed"]), (&true.into(), &true.into()), "{name}");
        assert_eq!(result.as_object().unwrap().len(), 4, "{text}");
    }
    let bf16 = place.ok(&format!("check --model {} --dtype bf16 --json", checkpoint("llama")));
    let bf16: Value = serde_json::from_str(&bf16).unwrap();
    let error = bf16["rel_err"].as_f64().unwrap();
    assert!(error <= 3e-2 && error > 1e-5, "bf16 rounds: {error}");
    // the wrong reference must fail, and say so by its exit code
    let wrong = format!(
        "check --model {} --expected {}/expected.safetensors",
        checkpoint("llama"),
        checkpoint("qwen3")
    );
    assert_eq!(place.run(&wrong).status.code(), Some(1));
}

#[test]
fn kernels_pass_their_conformance_cases() {
    let place = Place::new();
    let text = place.ok("check --op rope --quiet --json");
    let result: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(result["passed"], true);
    assert!(result["rows"].as_array().unwrap().iter().any(|row| row["passed"].as_u64().unwrap() > 10));
}

#[test]
fn generation_repeats_and_says_what_it_cost() {
    let place = Place::new();
    let line = format!("generate --model {} --ids 1,2,3 -n 6 --ignore-eos", checkpoint("llama"));
    let output = place.run(&line);
    assert!(output.status.success());
    let ids = String::from_utf8(output.stdout).unwrap();
    assert_eq!(ids.trim().split(',').count(), 6, "{ids}");
    let summary = String::from_utf8(output.stderr).unwrap();
    assert!(summary.contains("J (modelled)") || summary.contains("J (measured)"), "{summary}");
    assert!(summary.contains("the prompt included"), "{summary}");
    let json: Value = serde_json::from_str(&place.ok(&format!("{line} --json --quiet"))).unwrap();
    let from_json: Vec<String> = json["ids"].as_array().unwrap().iter().map(Value::to_string).collect();
    assert_eq!(from_json.join(","), ids.trim(), "streamed and collected ids agree");
    let [low, high] = [0, 1].map(|end| json["energy_ci95"][end].as_f64().unwrap());
    assert!((low..=high).contains(&json["joules"].as_f64().unwrap()), "{json}");
    let drawn = |seed| place.ok(&format!("{line} --temperature 1.5 --top-k 50 --seed {seed} --quiet"));
    assert_eq!(drawn(3), drawn(3));
}

#[test]
fn tokens_of_a_small_model_are_measured() {
    let place = Place::new();
    let line =
        format!("run --only tokens --model {} -p 16 -n 4 -d 4 --parallel 1,2 -r 2", checkpoint("llama"));
    let list = records(&place.ok(&format!("{line} --budget 60 --format jsonl --quiet")));
    assert_eq!(list.len(), 4);
    for record in &list {
        assert!(record["avg_ts"].as_f64().unwrap() > 0.0 && record["n_depth"] == 4);
        assert!(record["joules_per_total_token"].as_f64().unwrap() > 0.0);
        assert_eq!(record["joules_per_output_token"].is_null(), record["n_gen"] == 0);
        assert_eq!(record["samples_ns"].as_array().unwrap().len(), 2);
    }
    assert!(place.ok(&format!("{line} --budget 2 --quiet")).contains("tg4 @ d4 x2"));
}

#[test]
fn the_type_of_the_kv_cache_is_chosen_and_recorded() {
    let place = Place::new();
    let model = checkpoint("qwen3");
    let line = format!("run --only tokens --model {model} -p 16 -n 4 -d 4 -r 2 --budget 60 --quiet");
    for (flag, expected) in [("", "f32"), (" --dtype bf16", "bf16"), (" --kv-dtype q8_0", "q8_0")] {
        let list = records(&place.ok(&format!("{line}{flag} --format jsonl")));
        assert!(list.len() == 2 && list.iter().all(|record| record["kv_dtype"] == expected), "{flag}");
    }
    let table = place.ok(&format!("{line} --kv-dtype q8_0"));
    assert!(table.contains("f32 (kv q8_0)") && table.contains("tg4 @ d4 (kv q8_0)"), "{table}");

    let line = format!("generate --model {model} --ids 1,2,3 -n 4 --ignore-eos --quiet --json");
    let result: Value = serde_json::from_str(&place.ok(&format!("{line} --kv-dtype bf16"))).unwrap();
    assert_eq!((&result["dtype"], &result["kv_dtype"]), (&"f32".into(), &"bf16".into()));

    // rounding shows, and stays within what a check allows
    let text = place.ok(&format!("check --model {model} --kv-dtype bf16 --json"));
    let result: Value = serde_json::from_str(&text).unwrap();
    let error = result["rel_err"].as_f64().unwrap();
    assert!(error <= 3e-2 && error > 1e-5 && result["passed"] == true, "{text}");

    // heads of 16 elements are no whole blocks of 32
    for command in ["run --only tokens", "generate --ids 1", "check"] {
        let line = format!("{command} --model {} --kv-dtype q8_0", checkpoint("llama"));
        place.refused(&line, "the KV cache cannot be q8_0 where heads have 16 elements");
    }
    place.refused(&format!("generate --ids 1 --model {model} --kv-dtype q4_0"), "choose f32, f16, bf16");
    place.refused("run --op add --kv-dtype f16", "--kv-dtype is for tokens");
}

/// Two portable rows: every machine has them.
#[test]
fn a_gguf_file_is_a_model() {
    let place = Place::new();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("files/tiny-Q8_0.gguf").display().to_string();
    let line = format!("generate --model {file} --prompt hello -n 6 --ignore-eos --quiet");
    let result: Value = serde_json::from_str(&place.ok(&format!("{line} --json"))).unwrap();
    // the token that begins a text, and one that its merges make
    assert_eq!(result["prompt_ids"], serde_json::json!([261, 259]));
    assert_eq!((&result["model"], &result["dtype"]), (&"tiny-Q8_0".into(), &"q8_0".into()));
    assert_eq!(result["ids"].as_array().unwrap().len(), 6);
    assert_eq!(place.ok(&line).trim_end_matches('\n'), result["text"].as_str().unwrap());

    let line = format!("run --only tokens --model {file} -p 16 -n 4 -r 2 --budget 2 --format jsonl --quiet");
    let list = records(&place.ok(&line));
    assert_eq!(list.len(), 2);
    for record in &list {
        assert_eq!((&record["model"], &record["model_type"]), (&"tiny-Q8_0".into(), &"llama 0M Q8_0".into()));
        assert_eq!((&record["dtype"], &record["model_n_params"]), (&"q8_0".into(), &78_528.into()));
    }
    // converted while it is loaded
    let list = records(&place.ok(&format!("{line} --dtype f32")));
    assert_eq!(list[0]["model_type"], "llama 0M f32");
    place.refused(&format!("check --model {file}"), "--expected");
    place.refused("generate --model nowhere.gguf --ids 1 -n 2", "cannot read nowhere.gguf");
}

#[test]
fn kernels_are_measured_in_turn_and_compared() {
    let place = Place::new();
    let (new, old) = ("add_any_256_cpu_portable", "softmax_any_256_cpu_portable");
    let line = format!("run --kernel {new} --versus {new} --dtype f32 --shape rows=16,len=512 --budget 1");
    let list = records(&place.ok(&format!("{line} --format jsonl --quiet")));
    assert_eq!(list.len(), 2, "the baseline, and what was compared with it");
    assert!(list[0]["versus"].is_null() && list[1]["versus"] == new);
    let samples = |record: &Value| record["samples_ns"].as_array().unwrap().len();
    assert_eq!(samples(&list[0]), samples(&list[1]));
    let [low, high] = [0, 1].map(|end| list[1]["versus_ci95"][end].as_f64().unwrap());
    let ratio = list[1]["versus_ratio"].as_f64().unwrap();
    assert!(low <= ratio && ratio <= high && (0.2..5.0).contains(&ratio), "{low} {ratio} {high}");
    assert!((0.0..=1.0).contains(&list[1]["versus_p_value"].as_f64().unwrap()));
    assert!(["faster", "slower", "same", "unclear"].contains(&list[1]["versus_verdict"].as_str().unwrap()));
    assert!(place.ok(&format!("{line} --quiet")).contains("kernel versus baseline"));
    place.refused(&format!("run --kernel {new} --versus {old}"), "runs softmax");
}

/// Where power is modelled as constant, the joules of a call are its time and nothing else.
#[test]
fn modelled_joules_belong_to_the_time_beside_them() {
    let place = Place::new();
    let line = "run --op add --dtype f32 --shape rows=4,len=256 --budget 1 --format jsonl --quiet";
    let list = records(&place.ok(line));
    let modelled = || list.iter().filter(|record| record["energy_kind"] == "modelled");
    if modelled().count() == 0 {
        println!("not tried: this machine's energy is measured");
    }
    for record in modelled() {
        let number = |name: &str| record[name].as_f64().unwrap();
        let power = number("joules_per_call") / (number("median_ns") * 1e-9);
        assert!((power / number("avg_power_w") - 1.0).abs() < 1e-9, "{power}");
        let readings = record["energies"].as_array().unwrap();
        assert_eq!(readings[0]["boundary"], record["energy_boundary"]);
        assert!(
            record["samples_ns"].as_array().unwrap().len() >= 20,
            "an interval of few samples is not believed"
        );
    }
}

#[test]
fn bad_input_is_one_clear_error() {
    let place = Place::new();
    let llama = checkpoint("llama");
    for (line, part) in [
        ("run --device gpu9".into(), "no device \"gpu9\""),
        ("run --device webgpu:999".into(), "no device \"webgpu:999\""),
        ("run --device cuda:999".into(), "no device \"cuda:999\""),
        ("run --threads 0".into(), "--threads 0"),
        ("run --op nope".into(), "matmul"),
        ("run --op atention".into(), "did you mean attention?"),
        ("run -r 1000000000".into(), "-r 1000000000"),
        ("run -p 0 -n 0".into(), "nothing to measure"),
        ("--only tokens -p 0".into(), "nothing to measure"),
        ("run --device cpu,cpu".into(), "cpu twice"),
        ("run --only ceilings --op add".into(), "--op is for kernels"),
        ("run --only kernels --model nope".into(), "--model is for tokens"),
        ("run --only tokens --cache hot".into(), "--cache is for kernels"),
        ("run --op matmul -p 128".into(), "-p is for tokens"),
        ("run --op matmul --shape m=0".into(), "m=0"),
        ("run --op attention --shape q=5,kv=3".into(), "q=5"),
        ("run --op add --versus nope".into(), "no kernel \"nope\""),
        ("run --op matmul --shape m=1,q=2".into(), "m=512,n=2048,k=2048"),
        ("run --op matmul --shape m=x".into(), "whole number"),
        ("run --op matmul --shape m=4294967295,n=4294967295,k=4294967295".into(), "matmul"),
        ("run --op add --shape rows=10000000,len=1000000".into(), "available"),
        ("run --op attention --shape h=5,hkv=2".into(), "attention"),
        ("run --op add --dtype q9".into(), "q8_0"),
        ("run --kernel nope".into(), "perjoule kernels"),
        ("run --budget 0".into(), "--budget"),
        ("run --budget=-3".into(), "--budget"),
        ("run --budget nan".into(), "--budget"),
        ("run --budget 1e300".into(), "30 days"),
        ("check --budget 1e300".into(), "--budget"),
        ("tune --budget 1e300".into(), "--budget"),
        ("compare --self --budget 1e300".into(), "--budget"),
        ("compare --self --budget -1".into(), "--budget"),
        ("exec --budget 1e300 true".into(), "--budget"),
        ("run -r 0".into(), "-r 0"),
        ("run --model nope".into(), "llama-3.2-1b"),
        ("run --only tokens --model llama-3.1-405b".into(), "GiB are available"),
        ("run --only tokens --model smollm2-135m -p 10000000".into(), "positions"),
        (format!("run --only ceilings -o {}", place.0.path().display()), "cannot open"),
        ("run --only ceilings -o json".into(), "--format json"),
        ("run --only ceilings -o - --format csv".into(), "--format"),
        ("check --kernel nope".into(), "perjoule kernels"),
        ("check --model nope".into(), "no folder"),
        (format!("check --model {llama} --expected nope"), "--expected"),
        (format!("check --model {llama} --dtype i8"), "weights cannot be i8"),
        (format!("generate --model {llama} --ids 1,2,512 -n 2"), "512"),
        (format!("generate --model {llama} --ids 1,,2 -n 2"), "1,2,3"),
        (format!("generate --model {llama} --ids 1 -n 0"), "-n 0"),
        (format!("generate --model {llama} --ids 1 -n 100000000"), "positions"),
        (format!("generate --model {llama} --prompt hi -n 2"), "--ids"),
        ("generate --ids 1 -n 2".into(), "required arguments"),
        // tests are built without the page
        ("web --port 0".into(), "--features web"),
    ] {
        place.refused(&line, part);
    }
    assert!(!place.path("results").exists(), "nothing was measured, so nothing is stored");
}

#[test]
fn damaged_weights_are_refused() {
    let place = Place::new();
    let from = PathBuf::from(checkpoint("llama"));
    let copy = |name: &str, damage: &dyn Fn(&mut Vec<u8>)| {
        let to = place.path(name);
        std::fs::create_dir(&to).unwrap();
        for file in ["config.json", "expected.safetensors"] {
            std::fs::copy(from.join(file), to.join(file)).unwrap();
        }
        let mut weights = std::fs::read(from.join("model.safetensors")).unwrap();
        damage(&mut weights);
        std::fs::write(to.join("model.safetensors"), weights).unwrap();
    };
    copy("truncated", &|w| w.truncate(w.len() / 2));
    copy("lying", &|w| w[0..8].copy_from_slice(&u64::MAX.to_le_bytes()));
    copy("nan", &|w| {
        let at = w.len() - 64;
        w[at..].fill(0xff);
    });
    for (name, part) in [("truncated", "truncated"), ("lying", "lying"), ("nan", "NaN")] {
        place.refused(&format!("check --model {name}"), part);
    }
    std::fs::remove_file(place.path("nan").join("model.safetensors")).unwrap();
    place.refused("check --model nan", "nan");
}

#[test]
fn threads_beyond_the_processors_are_remarked() {
    let place = Place::new();
    let threads = std::thread::available_parallelism().unwrap().get() + 1;
    let output = place.run(&format!("{SMALL} --threads {threads}"));
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success() && err.contains(&format!("warning: --threads {threads}: ")), "{err}");
    assert!(out.contains(&format!("Kernels  {threads} threads, ")), "{out}");
    let output = place.run(&format!("{SMALL} --threads 1"));
    assert!(!String::from_utf8(output.stderr).unwrap().contains("--threads"));
}

#[test]
fn completions_and_the_manual_are_printed() {
    let place = Place::new();
    for shell in ["bash", "zsh", "fish"] {
        assert!(place.ok(&format!("completions {shell}")).contains("perjoule"));
    }
    assert!(place.ok("man").contains(".TH perjoule 1"));
}

#[cfg(unix)]
#[test]
fn a_full_disk_is_an_error() {
    let place = Place::new();
    if Path::new("/dev/full").exists() {
        place.refused("run --only ceilings --budget 0.2 --quiet -o /dev/full", "cannot append to /dev/full");
        // a folder that nothing can be made in: nobody gave -o, which is named as the way out
        let output = place.command("run --only ceilings --budget 0.2 --quiet").current_dir("/proc").output();
        let stderr = String::from_utf8(output.unwrap().stderr).unwrap();
        assert!(stderr.starts_with("error: records go to ./results where no -o names a file: "), "{stderr}");
        for line in
            ["devices", "kernels", "classes", "schema", "man", "run --only ceilings --budget 0.2 --quiet"]
        {
            let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
            let output = place.command(line).stdout(full).output().unwrap();
            let stderr = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{line}: {stderr}");
            assert!(
                stderr.starts_with("error: cannot write to stdout: ") && stderr.lines().count() == 1,
                "{stderr}"
            );
        }
    }
    // a file-size limit sends a signal that would kill
    let limited = format!(
        "ulimit -f 1; exec {} run --only ceilings --budget 0.2 -o limited.jsonl --quiet",
        binary().display()
    );
    let output = Command::new("sh").args(["-c", &limited]).current_dir(place.0.path()).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("cannot append to limited.jsonl"), "{stderr}");
}

#[test]
fn a_closed_pipe_ends_quietly() {
    let place = Place::new();
    for line in ["kernels", "man", "run --only ceilings --budget 0.2 --format jsonl --quiet"] {
        let mut child = place.command(line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let mut stderr = String::new();
        child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        let status = child.wait().unwrap();
        assert!(status.success() && stderr.is_empty(), "{line}: {status}: {stderr}");
    }
}

#[cfg(unix)]
#[test]
fn ctrl_c_keeps_what_is_finished() {
    let place = Place::new();
    // the ceilings end soon, the tokens never
    let tokens = format!("--model {} -p 64 -r 100000", checkpoint("llama"));
    let line = format!("run --only ceilings,tokens {tokens} -o kept.jsonl");
    let mut child = place.command(&line).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let begin = std::time::Instant::now();
    let kept = || std::fs::read_to_string(place.path("kept.jsonl")).unwrap_or_default().lines().count();
    while kept() == 0 {
        assert!(begin.elapsed().as_secs() < 120 && child.try_wait().unwrap().is_none(), "no record came");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    // SAFETY: signals a child of this process that has not been waited for.
    assert_eq!(unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGINT) }, 0);
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    let status = child.wait().unwrap();
    let text = std::fs::read_to_string(place.path("kept.jsonl")).unwrap();
    assert_eq!(status.code(), Some(130), "{stderr}");
    assert!(stderr.contains("kept in kept.jsonl"), "{stderr}");
    assert!(!records(&text).is_empty() && text.ends_with('\n'));
}
