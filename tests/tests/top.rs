//! `perjoule top`, and what `run` shows beside and below its tables, from outside.

use serde_json::Value;
use std::process::Stdio;

mod place;
use place::Place;

const SMALL: &str = "run --op matmul --shape m=16,n=32,k=64 --dtype f32,bf16 --budget 0.5 -r 5";

#[test]
fn one_reading_is_a_table() {
    let place = Place::new();
    let table = place.ok("top --once --interval 100ms");
    let cpu = table.lines().find(|line| line.trim_start().starts_with("cpu ")).unwrap();
    assert!(
        cpu.contains(" W ") && (cpu.contains("modelled, package") || cpu.contains("measured")),
        "{table}"
    );
    assert!(table.contains("memory") && table.contains("- is unknown"), "{table}");
    assert!(!table.contains('\u{1b}'), "no colours on a pipe");
}

#[test]
fn a_pipe_gets_one_reading_and_a_hint() {
    let output = Place::new().run("top --interval 100ms");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert!(stderr.contains("--jsonl"), "{stderr}");
    assert!(String::from_utf8(output.stdout).unwrap().contains("cpu"));
}

#[test]
fn a_line_of_json_comes_each_interval() {
    let place = Place::new();
    let text = place.ok("top --jsonl --count 3 --interval 100ms");
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 3);
    let seconds: Vec<f64> = lines.iter().map(|line| line["seconds"].as_f64().unwrap()).collect();
    assert!(seconds.is_sorted() && seconds[2] >= 0.29, "{seconds:?}");
    let power = |line: &Value| line["devices"][0]["power"][0].clone();
    let joules: Vec<f64> = lines.iter().map(|line| power(line)["joules"].as_f64().unwrap()).collect();
    assert!(joules.is_sorted() && joules[0] > 0.0, "{joules:?}");
    for line in &lines {
        let power = power(line);
        assert!(["measured", "modelled"].contains(&power["kind"].as_str().unwrap()));
        assert!(power["watts"].as_f64().unwrap() > 0.0 && power["boundary"].is_string());
        // a machine that shows no clock says null, and never 0
        let clock = &line["devices"][0]["clock_mhz"];
        assert!(clock.is_null() || clock["mean"].as_f64().unwrap() > 0.0, "{line}");
    }
    let one: Value = serde_json::from_str(&place.ok("top --json --interval 100ms")).unwrap();
    assert_eq!(one["devices"][0]["id"], "cpu");
}

#[test]
fn csv_has_a_line_for_each_device_and_reading() {
    let text = Place::new().ok("top --csv --count 2 --interval 100ms");
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("time,seconds,device,name,watts,joules,energy_kind"), "{text}");
    assert_eq!(lines.iter().filter(|line| line.contains(",cpu,")).count(), 2, "{text}");
    assert_eq!(lines.iter().filter(|line| line.starts_with("time,")).count(), 1, "one header: {text}");
    let columns = lines[0].split(',').count();
    let mut reader = text.lines().skip(1).filter(|line| !line.contains('"'));
    assert!(reader.all(|line| line.split(',').count() == columns), "{text}");
}

#[test]
fn an_external_meter_is_the_machines() {
    let place = Place::new();
    let mut child = place
        .command("top --json --interval 300ms --meter -")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let feed = std::thread::spawn(move || {
        use std::io::Write;
        let hello =
            "# protocol: perjoule-meter 1\n# name: Socket\u{1b}[31m\n# boundary: wall\n# period: 0.02 s\n";
        let mut lines = std::iter::once(hello.to_owned()).chain((0..500).map(|_| "W 150\n".to_owned()));
        // ends when the program does
        while lines.next().is_some_and(|line| stdin.write_all(line.as_bytes()).is_ok()) {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    });
    let output = child.wait_with_output().unwrap();
    feed.join().unwrap();
    let reading: Value = serde_json::from_slice(&output.stdout).unwrap();
    let devices = reading["devices"].as_array().unwrap();
    let machine = devices.iter().find(|device| device["id"] == "machine").unwrap();
    let power = &machine["power"][0];
    assert_eq!((power["kind"].as_str(), power["boundary"].as_str()), (Some("measured"), Some("wall")));
    assert!((power["watts"].as_f64().unwrap() / 150.0 - 1.0).abs() < 1e-9, "{power}");
    assert!(
        (power["joules"].as_f64().unwrap() / reading["seconds"].as_f64().unwrap() / 150.0 - 1.0).abs() < 0.5,
        "{power}"
    );
    assert!(!String::from_utf8(output.stdout).unwrap().contains('\u{1b}'));
}

#[test]
fn nonsense_is_refused_in_one_line() {
    let place = Place::new();
    for (line, part) in [
        ("top --interval 5ms", "500ms"),
        ("top --interval nan", "500ms"),
        ("top --interval 2h", "500ms"),
        ("top --once --jsonl", "cannot be used with"),
        ("top --json --csv", "cannot be used with"),
        ("top --jsonl --count 0", "0"),
        ("top --count 3", "--jsonl"),
        ("top --meter /nonexistent", "/nonexistent"),
        ("run --live --op rms_norm", "no terminal"),
        ("run --live --quiet", "cannot be used with"),
        ("run --charts --format json --op rms_norm", "--format table or md"),
        ("run --charts --quiet", "cannot be used with"),
    ] {
        place.refused(line, part);
    }
}

#[test]
fn who_has_had_enough_ends_it_quietly() {
    let place = Place::new();
    let mut child = place
        .command("top --jsonl --interval 100ms")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut byte = [0];
    std::io::Read::read_exact(&mut stdout, &mut byte).unwrap();
    drop(stdout);
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        (output.status.code(), output.stderr.len()),
        (Some(0), 0),
        "{:?}",
        String::from_utf8(output.stderr)
    );
}

#[test]
fn charts_stand_below_tables_where_they_are_asked_for() {
    let place = Place::new();
    assert!(!place.ok(SMALL).contains("Share of the roof"), "none on a pipe");
    let table = place.ok(&format!("{SMALL} --charts"));
    let start = table.find("Share of the roof").unwrap();
    let bars: Vec<&str> = table[start..].lines().skip(1).take(2).collect();
    for (bar, dtype) in bars.iter().zip(["f32", "bf16"]) {
        assert!(
            bar.contains(&format!("matmul {dtype} m=16,n=32,k=64")) && bar.trim_end().ends_with('%'),
            "{table}"
        );
        assert!(bar.chars().count() <= 92, "{bar}");
    }
    let md = place.ok(&format!("{SMALL} --charts --format md"));
    assert!(md.contains("```text\nShare of the roof") && md.contains("%\n```\n"), "{md}");
    let one = place.ok("run --op matmul --shape m=16,n=32,k=64 --dtype f32 --budget 0.5 -r 5 --charts");
    assert!(!one.contains("Share of the roof"), "one line needs no picture: {one}");
    let mut command = place.command(&format!("{SMALL} --charts"));
    let ascii = command.env("LC_ALL", "C").output().unwrap();
    let text = String::from_utf8(ascii.stdout).unwrap();
    assert!(
        text[text.find("Share of the roof").unwrap()..].lines().skip(1).take(2).all(str::is_ascii),
        "{text}"
    );
}
