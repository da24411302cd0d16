//! `perjoule exec` from outside: what it runs, what it says of it, and how it ends.
//!
//! Commands are short and times are not judged: this is about behaviour.
#![cfg(unix)]

use serde_json::Value;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

mod place;
use place::Place;

/// Records on stdout, each of them valid.
fn records(place: &Place, words: &[&str]) -> Vec<Value> {
    let output = place.command("exec --format jsonl").args(words).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{words:?}: {stderr}");
    let schema = std::fs::read_to_string(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../bench-harness/record/schema/record.v1.schema.json"),
    );
    let schema = jsonschema::validator_for(&serde_json::from_str(&schema.unwrap()).unwrap()).unwrap();
    let lines = String::from_utf8(output.stdout).unwrap();
    let list: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for record in &list {
        if let Err(error) = schema.validate(record) {
            panic!("{error}: {record}");
        }
    }
    list
}

fn number(record: &Value, field: &str) -> f64 {
    record[field].as_f64().unwrap_or_else(|| panic!("{field} is {}", record[field]))
}

#[test]
fn a_record_says_what_ran_and_what_it_used() {
    let place = Place::new();
    let text = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; sleep 0.05";
    let list = records(&place, &["-r", "4", "-w", "2", "-c", text, "-n", "loop"]);
    let record = &list[0];
    for (field, value) in [
        ("kind", "command".into()),
        ("exec_command", text.into()),
        ("exec_name", "loop".into()),
        ("exit_code", 0.into()),
        ("failed_runs", 0.into()),
        ("warmup_calls", 2.into()),
        ("calls_per_sample", 1.into()),
        ("energy_calls", 4.into()),
        ("valid", Value::Bool(true)),
    ] {
        assert_eq!(record[field], value, "{field}");
    }
    let samples = record["samples_ns"].as_array().unwrap();
    assert!(samples.len() == 4 && samples.iter().all(|ns| ns.as_f64().unwrap() >= 5e7));
    // the processor's own account: the loop used it, the pause did not
    let cpu = number(record, "cpu_user_s") + number(record, "cpu_system_s");
    let wall = samples.iter().map(|ns| ns.as_f64().unwrap() * 1e-9).sum::<f64>();
    assert!(cpu > 0.0 && 4.0 * cpu < wall, "{cpu} of {wall}");
    assert!(!place.path("results").exists(), "nothing is stored that was not asked for");
}

#[test]
fn energy_follows_from_the_cpu_time_where_it_is_modelled() {
    let place = Place::new();
    let list = records(
        &place,
        &["-r", "3", "-w", "0", "-c", "sleep 0.1", "-c", "timeout 0.1 sh -c 'while :; do :; done'", "-i"],
    );
    let [idle, busy] = list.as_slice() else { panic!("{list:?}") };
    assert!(idle["energy_kind"].is_string() && idle["energy_boundary"].is_string());
    if idle["energy_kind"] == "modelled" {
        let share = |record: &Value| {
            let wall: f64 =
                record["samples_ns"].as_array().unwrap().iter().map(|ns| ns.as_f64().unwrap()).sum();
            let cpu = 3e9 * (number(record, "cpu_user_s") + number(record, "cpu_system_s"));
            cpu / wall / number(record, "cpu_count")
        };
        // P = idle + (busy - idle) u, with one idle and one busy power for both: two records tell them, and full use is above
        let [(u, p), (v, q)] = [idle, busy].map(|r| (share(r), number(r, "avg_power_w")));
        let rest = number(idle, "idle_power_w");
        let slope = (q - p) / (v - u);
        assert!((p - (rest + slope * u)).abs() < 1e-6 * p, "{p} W at {u}, {q} W at {v}, {rest} W at rest");
        assert!(busy["energy_source"].as_str().unwrap().contains("Modelled, not measured"));
        assert!(busy["energy_source"].as_str().unwrap().contains("Utilisation"));
        let band = busy["energy_ci95"].as_array().unwrap();
        assert!(
            band[0].as_f64().unwrap() < number(busy, "joules")
                && band[1].as_f64().unwrap() > number(busy, "joules")
        );
        assert_eq!(busy["run_joules"].as_array().unwrap().len(), 3);
        assert!(number(busy, "versus_joules_ratio") > 1.0);
    }
    let text = place.ok("exec -r 2 -w 0 sleep 0.01");
    assert!(text.contains("modelled") || text.contains("measured"), "{text}");
}

#[test]
fn several_commands_are_run_in_turn_and_compared_with_the_first() {
    let place = Place::new();
    let commands = ["-c", "echo a >> order", "-c", "echo b >> order; sleep 0.02", "-c", "echo c >> order"];
    let list = records(&place, &[&["-r", "6", "-w", "0"], &commands[..]].concat());
    let order: String = std::fs::read_to_string(place.path("order")).unwrap().split_whitespace().collect();
    assert_eq!(order, "abccbaabccbaabccba");
    assert_eq!(list[0]["versus"], Value::Null);
    assert_eq!(list[1]["versus"], "echo a >> order");
    assert_eq!(list[1]["versus_verdict"], "slower");
    assert!(number(&list[1], "versus_ratio") > 1.0 && number(&list[1], "versus_p_value") <= 1.0);
    let output = place.command("exec -r 6 -w 0").args(commands).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("slower") && text.contains("beside the first"), "{text}");
}

#[test]
fn preparations_surround_runs_and_are_not_timed() {
    let place = Place::new();
    let words = [
        "-r",
        "3",
        "-w",
        "1",
        "--setup",
        "echo setup >> log",
        "--prepare",
        "echo prepare >> log; sleep 0.2",
        "--cleanup",
        "echo cleanup >> log",
        "-c",
        "echo run >> log",
    ];
    let list = records(&place, &words);
    let log: Vec<String> =
        std::fs::read_to_string(place.path("log")).unwrap().lines().map(str::to_owned).collect();
    let pair = ["prepare", "run"];
    assert_eq!(log, [&["setup"], &pair[..], &pair, &pair, &pair, &["cleanup"]].concat());
    let fastest =
        list[0]["samples_ns"].as_array().unwrap().iter().map(|ns| ns.as_f64().unwrap()).fold(1e18, f64::min);
    assert!(fastest < 2e8, "the pause of 0.2 s is not in it: {fastest}");
    // whatever happens
    place.refused_words(&["--cleanup", "echo again >> log", "--", "false"], "exit code 1");
    assert!(std::fs::read_to_string(place.path("log")).unwrap().ends_with("again\n"));
    place.refused_words(&["--setup", "exit 4", "--", "true"], "--setup ended with exit code 4");
    place.refused_words(&["--prepare", "exit 5", "--", "true"], "--prepare ended with exit code 5");
}

impl Place {
    /// As `refused`, for words that hold spaces.
    fn refused_words(&self, words: &[&str], part: &str) {
        let output = self.command("exec").args(words).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{words:?}: {stderr}");
        assert!(output.stdout.is_empty(), "{words:?}");
        let errors: Vec<&str> = stderr.lines().filter(|line| line.starts_with("error: ")).collect();
        assert!(errors.len() == 1 && errors[0].contains(part), "{words:?}: {part:?} is not in {stderr}");
    }
}

#[test]
fn failures_are_errors_unless_they_are_accepted() {
    let place = Place::new();
    place.refused_words(&["--", "sh", "-c", "exit 3"], "exit code 3");
    place.refused_words(&["-c", "kill -9 $$"], "signal 9");
    place.refused_words(&["--", "no-such-command"], "\"no-such-command\"");
    place.refused_words(&["-c", "no-such-command"], "exit code 127");
    place.refused_words(&["-i", "--", "no-such-command"], "\"no-such-command\"");
    let list = records(&place, &["-i", "-r", "3", "--", "sh", "-c", "exit 3"]);
    assert_eq!((&list[0]["exit_code"], &list[0]["failed_runs"]), (&3.into(), &3.into()));
    // once this, once that
    let list = records(
        &place,
        &["-i", "-r", "4", "-w", "0", "-c", "if test -e x; then rm x; exit 7; else touch x; fi"],
    );
    assert_eq!((&list[0]["exit_code"], &list[0]["failed_runs"]), (&Value::Null, &2.into()));
}

#[test]
fn nonsense_is_refused_before_anything_runs() {
    let place = Place::new();
    for (words, part) in [
        (&[][..], "no command"),
        (&["-c", ""], "-c: the command is empty"),
        (&["-c", "touch ran", "-r", "0"], "-r 0"),
        (&["-c", "touch ran", "--budget", "nan"], "--budget"),
        (&["-c", "touch ran", "-n", "a", "-n", "b"], "2 names for 1"),
        (&["-N", "-c", "touch 'ran"], "quote"),
        (&["-c", "touch ran", "--input", "no-such-file"], "no-such-file"),
        (&["-c", "touch ran", "--output", "no/such/folder"], "no/such/folder"),
        (&["-c", "touch ran", "--output", "inherit", "--format", "json"], "--output inherit"),
        (&["-c", "touch ran", "-o", "-", "--format", "csv"], "-o -"),
        (&["-c", "touch ran", "-o", "json"], "--format json"),
        (&["-c", "touch ran", "-o", "no/such/"], "-o"),
        (&["-c", "touch ran", "--meter", "no-such-meter"], "no-such-meter"),
    ] {
        place.refused_words(words, part);
        assert!(!place.path("ran").exists(), "{words:?}");
    }
}

#[test]
fn every_format_carries_the_command() {
    let place = Place::new();
    let line = "exec -r 2 -w 0 --quiet -o kept.jsonl";
    for (format, part) in [
        ("table", "sleep 0.01"),
        ("md", "| sleep 0.01"),
        ("json", "\"exec_command\":\"sleep 0.01\""),
        ("csv", "exec_command"),
    ] {
        let text = place.ok(&format!("{line} --format {format} sleep 0.01"));
        assert!(text.contains(part), "{format}: {text}");
    }
    let text = place.ok(&format!("{line} --format hyperfine sleep 0.01"));
    let result: Value = serde_json::from_str(&text).unwrap();
    let result = &result["results"][0];
    assert_eq!(result["command"], "sleep 0.01");
    assert!(
        result["times"].as_array().unwrap().len() == 2
            && number(result, "user") >= 0.0
            && number(result, "mean") >= 0.01
    );
    assert_eq!(std::fs::read_to_string(place.path("kept.jsonl")).unwrap().lines().count(), 5);
    // the other commands understand them
    let report = place.ok("report kept.jsonl --format md");
    assert!(report.contains("## Commands") && report.contains("sleep 0.01"), "{report}");
    place.ok("report kept.jsonl -o page.html --quiet");
    let page = std::fs::read_to_string(place.path("page.html")).unwrap();
    assert!(page.contains("5 command results of sleep 0.01"));
    std::fs::copy(place.path("kept.jsonl"), place.path("new.jsonl")).unwrap();
    let compared = place.ok("compare kept.jsonl new.jsonl --regression");
    assert!(compared.contains("sleep 0.01"), "{compared}");
    place.refused("compare kept.jsonl", "no records of tokens");
}

#[test]
fn input_and_output_are_what_was_asked_for() {
    let place = Place::new();
    std::fs::write(place.path("in"), "from the file\n").unwrap();
    place.ok("exec -r 2 -w 0 --input in --output out --quiet cat");
    assert_eq!(std::fs::read_to_string(place.path("out")).unwrap(), "from the file\n");
    place.command("exec -r 2 -w 0 --output out").args(["-c", "echo of the last run"]).output().unwrap();
    assert_eq!(std::fs::read_to_string(place.path("out")).unwrap(), "of the last run\n");
    let text = place.ok("exec -r 2 -w 0 --output inherit echo seen");
    assert_eq!(text.matches("seen\n").count(), 2, "{text}");
    assert!(!place.ok("exec -r 2 -w 0 -- sh -c cat").is_empty(), "stdin is empty by default");
}

#[test]
fn hostile_names_stay_text() {
    let place = Place::new();
    let name = "\u{1b}[31m<script>|`x`\nerror: not one";
    let output =
        place.command("exec -r 1 -w 0 --format md").args(["-n", name, "--", "true"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(!text.contains('\u{1b}') && !text.contains("<script>"), "{text}");
    let output = place.command("exec -n").args([name, "--", "false"]).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        !text.contains('\u{1b}') && text.lines().filter(|line| line.starts_with("error:")).count() == 1,
        "{text}"
    );
}

/// Whether a process took a signal.
fn signal(name: &str, pid: u32) -> bool {
    let script = format!("kill -{name} {pid}");
    std::process::Command::new("sh").args(["-c", &script]).stderr(Stdio::null()).status().unwrap().success()
}

/// To the process alone, unlike a terminal's: its child must not stay.
#[test]
fn an_interruption_ends_the_child_and_keeps_finished_runs() {
    let place = Place::new();
    let words = ["-c", "echo $$ >> pids; if test -e second; then exec sleep 600; fi; touch second"];
    let child = place
        .command("exec -r 5 -w 0 -o kept.jsonl --cleanup")
        .arg("touch cleaned")
        .args(words)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pids = || -> Vec<u32> {
        let text = std::fs::read_to_string(place.path("pids")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    };
    let start = Instant::now();
    while pids().len() < 2 {
        assert!(start.elapsed() < Duration::from_secs(60), "the second run does not begin");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(signal("INT", child.id()));
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    assert!(stderr.contains("1 finished run kept"), "{stderr}");
    let kept = std::fs::read_to_string(place.path("kept.jsonl")).unwrap();
    let record: Value = serde_json::from_str(kept.lines().next().unwrap()).unwrap();
    assert_eq!(record["samples_ns"].as_array().unwrap().len(), 1);
    assert!(place.path("cleaned").exists());
    // signal 0 only asks whether the process is there
    assert!(!signal("0", pids()[1]), "the child goes on");
}

#[test]
fn children_are_accounted_for_where_their_end_was_ignored() {
    let place = Place::new();
    let script =
        format!("trap '' CHLD; exec {} exec --format json -r 2 -w 0 true", place::binary().display());
    let output =
        std::process::Command::new("sh").args(["-c", &script]).current_dir(place.0.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let list: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(list[0]["samples_ns"].as_array().unwrap().len(), 2);
}

#[test]
fn readers_that_leave_are_no_error() {
    let script = format!("{} exec -r 2 -w 0 true | head -c 1", place::binary().display());
    let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
    assert!(!String::from_utf8_lossy(&output.stderr).contains("error"), "{output:?}");
}

/// A meter that shows 50 W for ever, on a FIFO of that name.
fn wall_of_50_watts(place: &Place, name: &str) {
    let path = place.path(name);
    assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
    std::thread::spawn(move || {
        use std::io::Write;
        // opens once the other end does, and ends with it
        let mut pipe = std::fs::OpenOptions::new().write(true).open(path).unwrap();
        let header = "# protocol: perjoule-meter 1\n# name: test wall\n# boundary: wall\n# accuracy: 1 %\n# period: 0.1 s\n";
        let mut sent = pipe.write_all(header.as_bytes());
        while sent.is_ok() {
            sent = pipe.write_all(b"W 50\n");
            std::thread::sleep(Duration::from_millis(20));
        }
    });
}

#[test]
fn a_meter_of_known_power_gives_known_joules() {
    let place = Place::new();
    wall_of_50_watts(&place, "long");
    // each run is long enough for a window of its own
    let list = records(&place, &["--meter", "long", "-r", "2", "-w", "0", "--", "sleep", "1"]);
    let record = &list[0];
    assert_eq!((&record["energy_kind"], &record["energy_boundary"]), (&"measured".into(), &"wall".into()));
    assert_eq!(record["energy_calls"], 2);
    let joules = 50.0 * number(record, "energy_window_s");
    assert!((number(record, "joules") / joules - 1.0).abs() < 0.01, "{record}");
    assert!(number(record, "energy_window_s") >= 2.0, "both runs are in it");
    assert!(
        (number(record, "avg_power_w") - 50.0).abs() < 0.5
            && (number(record, "idle_power_w") - 50.0).abs() < 0.5
    );
    assert!(number(record, "net_joules").abs() < 0.02 * joules, "all of it is there at rest, too");
    let band = record["energy_ci95"].as_array().unwrap();
    assert!(band[0].as_f64().unwrap() < joules && joules < band[1].as_f64().unwrap());
    assert_eq!(record["run_joules"].as_array().unwrap().len(), 2);
    assert!(record["config"].as_str().unwrap().contains("own windows"));
    // where the CPU is not measured its model stands beside the meter, never added to it
    let kinds: Vec<&str> = record["energies"]
        .as_array()
        .unwrap()
        .iter()
        .map(|seen| seen["boundary"].as_str().unwrap())
        .collect();
    assert_eq!(kinds[0] == "wall", kinds.iter().filter(|kind| **kind == "wall").count() == 1, "{kinds:?}");

    // a run is far shorter than the meter's period: several within one window
    wall_of_50_watts(&place, "short");
    let list =
        records(&place, &["--meter", "short", "-r", "5", "-w", "0", "--budget", "2", "--", "sleep", "0.05"]);
    let record = &list[0];
    let runs = number(record, "energy_calls");
    assert!(
        runs > 5.0 && record["config"].as_str().unwrap().contains(&format!("{runs} runs in one window")),
        "{record}"
    );
    let per_run = 50.0 * number(record, "energy_window_s") / runs;
    assert!((number(record, "joules_per_call") / per_run - 1.0).abs() < 0.01);
    assert_eq!(record["run_joules"], Value::Null, "of one run alone it can tell nothing");

    // what is not the command's would be in such a window
    wall_of_50_watts(&place, "prepared");
    let words = ["--meter", "prepared", "-r", "3", "-w", "0", "--prepare", "true", "--", "sleep", "0.01"];
    let record = &records(&place, &words)[0];
    assert_eq!(
        (&record["joules"], &record["joules_per_call"]),
        (&Value::Null, &Value::Null),
        "unknown, and not 0"
    );
    assert!(record["config"].as_str().unwrap().contains("--prepare"));
}
