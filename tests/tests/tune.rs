//! `perjoule tune` from outside: what it measures is kept, used, shown, and never trusted when it is damaged.

use serde_json::Value;
use std::path::PathBuf;

mod place;
use place::Place;

const SHAPE: &str = "--op rms_norm --shape rows=8,len=256 --dtype f32";

fn table(place: &Place) -> PathBuf {
    let folder = place.path("cache/perjoule/tuning");
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    files.remove(0)
}

fn tune(place: &Place, shape: &str) -> Value {
    serde_json::from_str(&place.ok(&format!("tune {shape} --budget 0.2 --json"))).unwrap()
}

fn explained(place: &Place, shape: &str) -> Vec<Value> {
    serde_json::from_str(&place.ok(&format!("kernels {shape} --json"))).unwrap()
}

#[test]
fn what_is_measured_is_chosen_and_shown_until_it_is_cleared() {
    let place = Place::new();
    assert!(explained(&place, SHAPE).iter().all(|row| row["cost_measured"] != true));
    let tuned = tune(&place, SHAPE);
    let kernels = tuned["buckets"][0]["kernels"].as_array().unwrap();
    let seconds: Vec<f64> = kernels.iter().map(|k| k["seconds"].as_f64().unwrap()).collect();
    assert!(seconds.is_sorted() && seconds[0] > 0.0, "{tuned}");
    assert_eq!(kernels.iter().filter(|k| k["predicted"] == true).count(), 1);
    assert!(kernels.iter().all(|k| k["vendor"] == false), "vendors' kernels only with --vendor");
    let rows = explained(&place, SHAPE);
    let chosen = rows.iter().find(|row| row["chosen"] == true).unwrap();
    assert_eq!((&chosen["kernel"], &chosen["cost_measured"]), (&kernels[0]["kernel"], &true.into()));
    let accepted = rows.iter().filter(|row| row["cost_s"].is_number() && row["vendor"] == false);
    assert!(
        accepted.clone().count() >= kernels.len() && accepted.clone().all(|row| row["cost_measured"] == true)
    );
    assert!(place.ok(&format!("kernels {SHAPE}")).contains("measured"));
    // a number of threads is another device
    let other = explained(&place, "--op rms_norm --shape rows=8,len=256 --dtype bf16");
    assert!(other.iter().all(|row| row["cost_measured"] != true), "another bucket");
    let text = place.ok("tune --clear");
    assert!(text.contains("removed") && text.contains(".tsv"), "{text}");
    assert!(explained(&place, SHAPE).iter().all(|row| row["cost_measured"] != true));
    assert!(place.ok("tune --clear").contains("nothing to forget"));
}

#[test]
fn a_table_that_says_otherwise_decides() {
    let place = Place::new();
    tune(&place, SHAPE);
    let path = table(&place);
    let text = std::fs::read_to_string(&path).unwrap();
    // the portable kernel is made the fastest by far
    let cheat = |line: &str| match line.rsplit_once('\t') {
        Some((head, _)) if line.contains("cpu_portable") => format!("{head}\t1e-12\n"),
        _ => format!("{line}\n"),
    };
    std::fs::write(&path, text.lines().map(cheat).collect::<String>()).unwrap();
    let line = format!("run {SHAPE} --budget 0.3 -r 3 --format json");
    let kernel = |text: String| serde_json::from_str::<Value>(&text).unwrap()[0].clone();
    let record = kernel(place.ok(&line));
    assert!(record["kernel"].as_str().unwrap().ends_with("cpu_portable"), "{record}");
    assert_eq!(record["tuned"], true);
    let output = place.command(&line).env("PERJOULE_TUNING", "off").output().unwrap();
    let record = kernel(String::from_utf8(output.stdout).unwrap());
    assert_eq!(record["tuned"], false);
    let elsewhere = place.path("mine.tsv");
    std::fs::rename(&path, &elsewhere).unwrap();
    let output = place.command(&line).env("PERJOULE_TUNING", &elsewhere).output().unwrap();
    assert_eq!(kernel(String::from_utf8(output.stdout).unwrap())["tuned"], true);
}

#[test]
fn a_torn_or_stale_table_is_said_once_and_ignored() {
    let place = Place::new();
    tune(&place, SHAPE);
    let path = table(&place);
    let text = std::fs::read_to_string(&path).unwrap();
    let said = |part: &str| {
        let output = place.run(&format!("kernels {SHAPE} --json"));
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{stderr}");
        assert_eq!(stderr.lines().filter(|line| line.contains(part)).count(), 1, "{part:?} in {stderr}");
        let rows: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
        assert!(rows.iter().all(|row| row["cost_measured"] != true));
    };
    for end in [0, 20, text.len() / 2, text.len() - 2] {
        std::fs::write(&path, &text[..end]).unwrap();
        said("not tuned");
    }
    let build = text.lines().find_map(|line| line.strip_prefix("build\t")).unwrap();
    std::fs::write(&path, text.replace(build, "0123456789abcdef")).unwrap();
    said("its build is");
    std::fs::rename(&path, path.to_str().unwrap().replace(build, "0123456789abcdef")).unwrap();
    said("another build");
    // measuring again ends it
    tune(&place, SHAPE);
    assert!(explained(&place, SHAPE).iter().any(|row| row["cost_measured"] == true));
}

#[test]
fn buckets_add_up_and_nonsense_is_refused() {
    let place = Place::new();
    tune(&place, SHAPE);
    tune(&place, "--op softmax --shape rows=4,len=64 --dtype f32");
    assert!(explained(&place, SHAPE).iter().any(|row| row["cost_measured"] == true), "kept beside the new");
    place.refused("tune --op convolution", "unknown op");
    place.refused("tune --budget 0", "positive number");
    place.refused("tune --threads 0", "at least one thread");
    place.refused("tune --op rms_norm --shape rows=0,len=8", "nothing to measure");
    place.refused("tune --model no-such-model", "no-such-model");
    let output = place.command("tune --budget 1").env("PERJOULE_TUNING", "off").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let thesis = place.path("thesis.txt");
    std::fs::write(&thesis, "my thesis").unwrap();
    let output = place
        .command(&format!("tune {SHAPE} --budget 0.1"))
        .env("PERJOULE_TUNING", &thesis)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(std::fs::read_to_string(&thesis).unwrap(), "my thesis");
}

#[test]
fn a_models_ops_are_found_by_asking_it() {
    let place = Place::new();
    let tiny = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("checkpoints/llama");
    let tuned = tune(&place, &format!("--model {}", tiny.display()));
    let names: Vec<&str> =
        tuned["buckets"].as_array().unwrap().iter().map(|b| b["key"].as_str().unwrap()).collect();
    for op in ["matmul", "attention", "rms_norm", "embed", "argmax"] {
        assert!(names.iter().any(|key| key.starts_with(op)), "{op} is not among {names:?}");
    }
    assert!(names.iter().any(|key| key.contains("m=1 ")), "{names:?}");
    assert!(names.iter().any(|key| key.contains("m=512 ")), "{names:?}");
}
