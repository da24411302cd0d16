//! `perjoule history` from outside: runs, trends, and an index that is never the truth.

use serde_json::{Value, json};
use std::io::Write;
use std::process::Stdio;

mod place;
use place::Place;

const INDEX: &str = "results/.perjoule-index.sqlite";

/// A kernel of a run of day `day` of commit `build`, which takes `ns` within 0.5 %.
fn kernel(day: u32, build: &str, name: &str, ns: f64) -> Value {
    json!({
        "schema_version": 1, "kind": "kernel", "provenance": "measured", "valid": true, "device": "cpu",
        "device_name": "Test CPU", "cpu_model": "Test CPU", "op": "matmul", "kernel": name, "dtype": "bf16",
        "shape": "m=1,n=4096,k=4096", "n_threads": 2, "cache_state": "rotate", "median_ns": ns,
        "ci95_ns": [ns * 0.995, ns * 1.005], "gflops": 1e5 / ns, "joules": 1.0, "joules_per_call": 1e-3,
        "energy_ci95": [0.99, 1.01], "energy_kind": "measured", "energy_boundary": "package",
        "run_id": format!("202601{day:02}-{build}"), "test_time": format!("2026-01-{day:02}T12:00:00Z"),
        "perjoule_version": "0.1.0", "build_commit": build,
    })
}

fn tokens(day: u32, rate: f64) -> Value {
    json!({
        "schema_version": 1, "kind": "tokens", "provenance": "measured", "valid": true, "device": "cpu",
        "device_name": "Test CPU", "model": "llama-3.2-1b", "dtype": "bf16", "n_prompt": 0, "n_gen": 32,
        "n_depth": 0, "n_parallel": 1, "n_threads": 2, "avg_ts": rate, "stddev_ts": 0.1,
        "samples_ns": [1e9, 1e9, 1e9, 1e9], "run_id": format!("202602{day:02}"),
        "test_time": format!("2026-02-{day:02}T12:00:00Z"),
    })
}

fn with(mut record: Value, changes: &[(&str, Value)]) -> Value {
    for (key, value) in changes {
        record[*key] = value.clone();
    }
    record
}

fn lines(records: &[Value]) -> String {
    records.iter().map(|record| format!("{record}\n")).collect()
}

fn write(place: &Place, name: &str, records: &[Value]) {
    let path = place.path(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, lines(records)).unwrap();
}

fn append(place: &Place, name: &str, text: &str) {
    let mut file = std::fs::OpenOptions::new().append(true).open(place.path(name)).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// The values of the only series that `line` finds.
fn values(place: &Place, line: &str) -> Vec<f64> {
    let value = parsed(&place.ok(&format!("{line} --format json")));
    let series = value["series"].as_array().unwrap();
    assert_eq!(series.len(), 1, "{value}");
    series[0]["points"].as_array().unwrap().iter().map(|point| point["value"].as_f64().unwrap()).collect()
}

#[test]
fn runs_are_listed_and_a_kernel_is_followed() {
    let place = Place::new();
    write(&place, "results/b.jsonl", &[kernel(2, "bbb", "k", 1100.0), kernel(3, "ccc", "k", 1101.0)]);
    write(&place, "results/a.jsonl", &[kernel(1, "aaa", "k", 1000.0), kernel(1, "aaa", "other", 5.0)]);
    write(&place, "results/t.jsonl", &[tokens(1, 20.0), tokens(2, 30.0)]);
    let runs = parsed(&place.ok("history --format json"))["runs"].clone();
    let names: Vec<&str> = runs.as_array().unwrap().iter().map(|run| run["run"].as_str().unwrap()).collect();
    assert_eq!(names, ["20260202", "20260201", "20260103-ccc", "20260102-bbb", "20260101-aaa"]);
    assert_eq!((&runs[4]["records"], &runs[4]["build"]), (&2.into(), &"aaa".into()));
    let table = place.ok("history --limit 2");
    assert!(table.contains("2026-02-02 12:00:00") && table.contains("llama-3.2-1b"), "{table}");
    assert!(table.contains("3 older runs") && !table.contains("aaa"), "{table}");

    assert_eq!(values(&place, "history --op matmul --kernel k"), [1000.0, 1100.0, 1101.0]);
    let followed = parsed(&place.ok("history --kernel k --format json"));
    let points = followed["series"][0]["points"].as_array().unwrap();
    let verdicts: Vec<&Value> = points.iter().map(|point| &point["verdict"]).collect();
    assert_eq!(verdicts, [&Value::Null, &"slower".into(), &"same".into()]);
    assert!((points[1]["ratio"].as_f64().unwrap() - 1.1).abs() < 1e-9);
    assert_eq!((&points[0]["joules"], &points[0]["energy_kind"]), (&1e-3.into(), &"measured".into()));
    let table = place.ok("history --kernel k --shape m=1");
    for part in
        ["matmul bf16 m=1,n=4096,k=4096 k rotate", "1.10 µs", "+10.0 %", "slower", "▁", "measured, package"]
    {
        assert!(table.contains(part), "{part}: {table}");
    }
    // of a rate more is faster, of joules less is less
    assert!(place.ok("history --kernel k --metric gflops").contains("slower"));
    assert_eq!(values(&place, "history --kernel k --metric joules"), [1e-3, 1e-3, 1e-3]);
    let tokens = parsed(&place.ok("history --model LLAMA-3.2 --test tg32 --format json"));
    assert_eq!(tokens["series"][0]["points"][1]["verdict"], "faster");
    assert!(tokens["series"][0]["points"][1]["joules"].is_null(), "unknown, not 0");
    assert_eq!(place.ok("history --kernel k --format csv").lines().count(), 4);
    assert_eq!(place.ok("history --kernel k --format jsonl --limit 1").lines().count(), 1);
    let md = place.ok("history --kernel k --format md");
    assert!(md.contains("## matmul") && md.contains("| time (UTC)"), "{md}");
    // where and when
    assert_eq!(values(&place, "history --kernel k --since 2026-01-02 --until 2026-01-02"), [1100.0]);
    assert_eq!(parsed(&place.ok("history --kind tokens --format json"))["runs"].as_array().unwrap().len(), 2);
    for (line, part) in [
        ("history --op nope", "no record matches"),
        ("history --machine nope", "no record matches"),
        ("history --model llama --metric joules", "unknown"),
        ("history --since yesterday", "7d"),
        ("history nowhere", "nowhere"),
        ("history --kind nope", "tokens"),
        ("history --metric nope", "gflops"),
    ] {
        let output = place.run(line);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && stderr.contains(part), "{line}: {stderr}");
    }
    std::fs::remove_dir_all(place.path("results")).unwrap();
    place.refused("history", "perjoule run");
}

#[test]
fn how_a_number_is_known_separates_series() {
    let place = Place::new();
    let imported = [("provenance", "imported".into()), ("source_tool", "llama-bench".into())];
    let list = [
        tokens(1, 20.0),
        with(tokens(2, 40.0), &imported),
        with(tokens(3, 60.0), &[("provenance", "modelled".into())]),
        with(tokens(4, 10.0), &[("device_name", "Other".into())]),
        with(tokens(5, 21.0), &[("valid", false.into()), ("invalid_reasons", json!(["it throttled"]))]),
    ];
    write(&place, "results/t.jsonl", &list);
    let value = parsed(&place.ok("history --model llama --format json"));
    let of: Vec<(&str, usize)> = value["series"]
        .as_array()
        .unwrap()
        .iter()
        .map(|series| (series["provenance"].as_str().unwrap(), series["points"].as_array().unwrap().len()))
        .collect();
    assert_eq!(of, [("imported", 1), ("measured", 1), ("measured", 2), ("modelled", 1)]);
    let table = place.ok("history --model llama");
    assert!(table.contains("INVALID: it throttled") && table.contains("modelled"), "{table}");
    // an invalid record has no number
    let invalid =
        value["series"].as_array().unwrap().iter().flat_map(|series| series["points"].as_array().unwrap());
    let invalid: Vec<&Value> = invalid.filter(|point| point["valid"] == false).collect();
    assert!(invalid.len() == 1 && invalid[0]["value"].is_null() && invalid[0]["joules"].is_null());
}

#[test]
fn other_tools_results_are_part_of_it() {
    let place = Place::new();
    write(&place, "results/t.jsonl", &[tokens(1, 20.0)]);
    let table = "\
| model              |     size |  params | backend |  test |          t/s |
| ------------------ | -------: | ------: | ------- | ----: | -----------: |
| llama-3.2-1b BF16  | 2.30 GiB |  1.24 B | CUDA    |  tg32 | 84.10 ± 0.32 |

build: 8cf427ff (5163)
";
    std::fs::write(place.path("theirs.md"), table).unwrap();
    let value = parsed(&place.ok("history results theirs.md --model llama --format json"));
    let series = value["series"].as_array().unwrap();
    assert_eq!(series.len(), 2);
    let theirs = series.iter().find(|series| series["provenance"] == "imported").unwrap();
    assert_eq!(
        (&theirs["points"][0]["value"], &theirs["points"][0]["build"]),
        (&84.1.into(), &"8cf427ff (5163)".into())
    );
    assert!(!place.path(INDEX).exists(), "the index of several sources is kept elsewhere");
    let piped = {
        let mut child = place
            .command("history - --model llama --format csv")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(table.as_bytes()).unwrap();
        String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
    };
    assert!(piped.contains("imported") && piped.lines().count() == 2, "{piped}");
    #[cfg(unix)]
    {
        let fifo = place.path("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        let child = place.command("history fifo --format csv").stdout(Stdio::piped()).spawn().unwrap();
        std::fs::write(&fifo, table).unwrap();
        assert_eq!(String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap().lines().count(), 2);
    }
}

/// Whatever happens to the files or the index, what is said is what the files say.
#[test]
fn the_index_follows_the_files() {
    let place = Place::new();
    let name = "results/a.jsonl";
    let line = "history --kernel k";
    write(&place, name, &[kernel(1, "a", "k", 1000.0)]);
    assert_eq!(values(&place, line), [1000.0]);
    assert!(place.path(INDEX).exists());
    append(&place, name, &lines(&[kernel(2, "b", "k", 2000.0)]));
    assert_eq!(values(&place, line), [1000.0, 2000.0], "appended");
    // a line that is being written, and then is complete
    let third = lines(&[kernel(3, "c", "k", 3000.0)]);
    append(&place, name, &third[..50]);
    let output = place.run(&format!("{line} --format csv"));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && stderr.contains("a.jsonl: line 3: cut off"), "{stderr}");
    append(&place, name, &third[50..]);
    assert_eq!(values(&place, line), [1000.0, 2000.0, 3000.0], "the end of a line came later");
    assert!(place.run(line).stderr.is_empty(), "and nothing is damaged any more");
    // a complete last line that only lacks its newline counts once
    append(&place, name, lines(&[kernel(4, "d", "k", 4000.0)]).trim_end());
    assert_eq!(values(&place, line).len(), 4);
    append(&place, name, &format!("\nnot a record\n{}", lines(&[kernel(5, "e", "k", 5000.0)])));
    let output = place.run(line);
    assert!(String::from_utf8(output.stderr).unwrap().contains("line 5: not a record"));
    assert_eq!(values(&place, line), [1000.0, 2000.0, 3000.0, 4000.0, 5000.0]);
    // shrunk, replaced by something longer, a second file, a file that goes
    write(&place, name, &[kernel(1, "a", "k", 7.0)]);
    assert_eq!(values(&place, line), [7.0], "shrunk");
    let longer: Vec<Value> = (1..9).map(|day| kernel(day, "x", "k", f64::from(day))).collect();
    write(&place, name, &longer);
    assert_eq!(values(&place, line).len(), 8, "replaced");
    write(&place, "results/b.jsonl", &[kernel(20, "y", "k", 99.0)]);
    assert_eq!(values(&place, line).len(), 9);
    std::fs::remove_file(place.path(name)).unwrap();
    assert_eq!(values(&place, line), [99.0], "gone");
    // the folder moves, with its index
    std::fs::rename(place.path("results"), place.path("moved")).unwrap();
    assert_eq!(values(&place, "history moved --kernel k"), [99.0]);
}

#[test]
fn an_index_that_is_damaged_or_of_another_version_is_made_again() {
    let place = Place::new();
    let list: Vec<Value> = (1..=28).map(|day| kernel(day, "x", "k", 1000.0 + f64::from(day))).collect();
    write(&place, "results/a.jsonl", &list);
    let line = "history --kernel k";
    let expected = values(&place, line);
    let good = std::fs::read(place.path(INDEX)).unwrap();
    let mut zeros = good.clone();
    zeros[4096..].fill(0);
    let mut noise = good.clone();
    noise.iter_mut().enumerate().skip(100).for_each(|(i, byte)| *byte = (i * 7919 % 251) as u8);
    let mut older = good.clone();
    older[60..64].copy_from_slice(&[0, 0, 0, 99]); // user_version
    for damaged in
        [Vec::new(), b"no database at all".to_vec(), good[..good.len() / 2].to_vec(), zeros, noise, older]
    {
        std::fs::write(place.path(INDEX), &damaged).unwrap();
        let output = place.run(line);
        assert!(
            output.status.success() && output.stderr.is_empty(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert_eq!(values(&place, line), expected);
    }
    // a folder in its place, and a link to a file of somebody else, which stays as it is
    std::fs::remove_file(place.path(INDEX)).unwrap();
    std::fs::create_dir(place.path(INDEX)).unwrap();
    assert_eq!(values(&place, line), expected);
    std::fs::remove_dir(place.path(INDEX)).unwrap();
    #[cfg(unix)]
    {
        std::fs::write(place.path("precious"), "text").unwrap();
        std::os::unix::fs::symlink(place.path("precious"), place.path(INDEX)).unwrap();
        assert_eq!(values(&place, line), expected);
        assert_eq!(std::fs::read_to_string(place.path("precious")).unwrap(), "text");
    }
    let again = place.ok(&format!("{line} --rebuild --format csv"));
    assert_eq!(again.lines().count(), 29);
}

#[test]
fn two_processes_and_a_killed_one_do_no_harm() {
    let place = Place::new();
    let list: Vec<Value> =
        (0..4000).map(|i| kernel(1 + i % 28, "x", &format!("k{}", i % 50), 1000.0 + f64::from(i))).collect();
    write(&place, "results/a.jsonl", &list);
    let start =
        |line: &str| place.command(line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let count = "history --op matmul --format csv";
    // killed at any time: while it opens, reads, or commits
    for wait in [0, 1, 2, 4, 8, 16, 32, 64] {
        let mut child = start(count);
        std::thread::sleep(std::time::Duration::from_millis(wait));
        let _ = child.kill();
        child.wait().unwrap();
    }
    let children: Vec<_> = (0..4).map(|_| start(count)).collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), 4001);
    }
    append(&place, "results/a.jsonl", &lines(&[kernel(1, "x", "k0", 1.0)]));
    let children: Vec<_> = (0..4).map(|_| start(count)).collect();
    for child in children {
        assert_eq!(
            String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap().lines().count(),
            4002
        );
    }
}

#[test]
fn many_series_are_summed_up_and_names_do_no_harm() {
    let place = Place::new();
    let evil = "<script>|x</script>\n::error::no\u{1b}[31m";
    let mut list: Vec<Value> = (0..300).map(|i| kernel(1, "a", &format!("k{i}"), 1000.0)).collect();
    list.push(kernel(2, "b", "k7", 1500.0));
    list.push(kernel(1, evil, evil, 1e308));
    list.push(with(kernel(1, "a", "nan", 1.0), &[("median_ns", Value::Null), ("samples_ns", json!([null]))]));
    write(&place, "results/a.jsonl", &list);
    let table = place.ok("history --op matmul");
    assert!(table.lines().nth(2).unwrap().contains("k7 "), "what changed comes first: {table}");
    assert!(table.contains("102 more series"), "{table}");
    for format in ["table", "md", "csv", "jsonl", "json"] {
        for line in ["history --kernel script", "history"] {
            let text = place.ok(&format!("{line} --format {format}"));
            assert!(
                !text.contains('\u{1b}') && !text.lines().any(|line| line.starts_with("::error")),
                "{text}"
            );
            assert!(!text.contains("<script>") || format != "md", "{text}");
        }
    }
    let odd = parsed(&place.ok("history --kernel nan --format json"));
    assert!(odd["series"][0]["points"][0]["value"].is_null());
}
