//! Joules of `perjoule run` and `perjoule exec` from a meter outside the machine: a simulated one at the end of a Unix socket, whose power is known.
#![cfg(unix)]

use serde_json::Value;
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

mod place;
use place::Place;

/// A meter that serves one reader: the header, then what `line` makes of the seconds since then, every `period`.
fn meter(place: &Place, name: &str, header: &str, period: Duration, line: fn(f64) -> String) {
    let listener = UnixListener::bind(place.path(name)).unwrap();
    let header = header.to_owned();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(header.as_bytes()).unwrap();
        let start = Instant::now();
        // ends when the reader is gone
        while stream.write_all(format!("{}\n", line(start.elapsed().as_secs_f64())).as_bytes()).is_ok() {
            std::thread::sleep(period);
        }
    });
}

const RUN: &str =
    "run --op matmul --shape m=64,n=64,k=64 --dtype f32 -r 10 --format json -o /dev/null --quiet --meter";
const WALL: &str = "# boundary: wall\n# name: Outlet <3>\n# accuracy: 1 %\n# period: 0.05 s\n";

/// What the meter at the wall saw: the record's own fields, unless this machine has a sensor of its processor, which goes first.
fn at_the_wall(seen: &Value) -> Value {
    let list = seen["energies"].as_array().unwrap_or_else(|| panic!("no meter: {seen}"));
    list.iter().find(|reading| reading["boundary"] == "wall").unwrap_or_else(|| panic!("{list:?}")).clone()
}

fn record(place: &Place, line: &str) -> Value {
    let list: Value = serde_json::from_str(&place.ok(line)).unwrap();
    list[0].clone()
}

#[test]
fn a_wall_meter_measures_the_joules_of_a_run() {
    let place = Place::new();
    meter(&place, "wall", WALL, Duration::from_millis(50), |_| "W 50".into());
    let record = record(&place, &format!("{RUN} wall"));
    let seen = at_the_wall(&record);
    let number = |field: &str| seen[field].as_f64().unwrap_or_else(|| panic!("{field}: {seen}"));
    assert_eq!((seen["kind"].as_str(), seen["meter"].as_str()), (Some("measured"), Some("Outlet <3>")));
    // a steady 50 W: joules are 50 times the window, whatever the window was
    let (joules, window) = (number("joules"), number("window_s"));
    assert!((joules / window / 50.0 - 1.0).abs() < 0.005, "{joules} J in {window} s");
    let [low, high] = [0, 1].map(|end| seen["ci95"][end].as_f64().unwrap());
    assert!(low < joules && joules < high, "{low}..{high} around {joules}");
    // at rest it shows the same power: nothing is left above it
    assert!((number("idle_power_w") / 50.0 - 1.0).abs() < 0.005, "{}", seen["idle_power_w"]);
    assert!(number("net_joules").abs() < 0.02 * joules, "{}", seen["net_joules"]);
    // the record's own fields are those of one meter, and measured
    let own = |field: &str| record[field].as_f64().unwrap();
    assert_eq!(record["energy_kind"], "measured");
    assert!((own("joules_per_call") * own("energy_calls") / own("joules") - 1.0).abs() < 1e-9);
}

#[test]
fn a_meter_of_energy_needs_no_steady_power() {
    let place = Place::new();
    meter(&place, "pdu", WALL, Duration::from_millis(50), |t| format!("J {}", 80.0 * t));
    let seen = at_the_wall(&record(&place, &format!("{RUN} pdu")));
    let window = seen["window_s"].as_f64().unwrap();
    let [low, high] = [0, 1].map(|end| seen["ci95"][end].as_f64().unwrap() / window);
    assert!(low < 80.0 && 80.0 < high, "{low}..{high} W");
}

#[test]
fn a_meter_too_slow_for_a_kernel_leaves_its_energy_unknown_and_says_why() {
    let place = Place::new();
    let slow = "# boundary: wall\n# period: 100 s\n";
    meter(&place, "slow", slow, Duration::from_millis(50), |_| "W 50".into());
    let seen = record(&place, &format!("{RUN} slow --budget 2"));
    let readings = seen["energies"].as_array().cloned().unwrap_or_default();
    assert!(!readings.iter().any(|reading| reading["boundary"] == "wall"), "{readings:?}");
    // a sensor of the processor may tell something; where there is none, the record says what is missing
    if seen["joules"].is_null() {
        let reason = seen["energy_unknown"].as_str().unwrap();
        assert!(reason.contains("200"), "{reason}");
    }
}

#[test]
fn what_is_wrong_with_measured_joules_is_said() {
    let place = Place::new();
    let odd = |name: &str| {
        let line = |t: f64| if ((t * 25.0) as u64).is_multiple_of(3) { "oops".into() } else { "W 50".into() };
        let header = "# boundary: wall\n# name: Outlet <3>\n# period: 0.2 s\n";
        meter(&place, name, header, Duration::from_millis(20), line);
    };
    odd("run");
    let seen = at_the_wall(&record(&place, &format!("{RUN} run")));
    let notes = seen["notes"].to_string();
    assert!(notes.contains("lost or refused") && notes.contains("10 % is assumed"), "{seen}");
    odd("table");
    let text = place.ok(&format!("{} table", RUN.replace("json", "table")));
    assert!(text.contains("Outlet <3>: ") && text.contains("lost or refused"), "{text}");
    odd("exec");
    let text = place.ok("exec -r 1 -w 0 --meter exec -- sleep 1.5");
    assert!(text.contains("lost or refused") && text.contains("10 % is assumed"), "{text}");
}

#[test]
fn several_boards_are_added_and_walls_are_not() {
    let place = Place::new();
    let board = |i: u32| {
        format!("# boundary: board\n# device: GPU-{i}\n# name: card {i}\n# accuracy: 1 %\n# period: 0.05 s\n")
    };
    let every = Duration::from_millis(10);
    meter(&place, "a", &board(1), every, |_| "W 50".into());
    meter(&place, "b", &board(2), every, |_| "W 70".into());
    meter(&place, "c", &board(3), every, |_| "W 30".into());
    meter(&place, "w", WALL, every, |_| "W 500".into());
    let seen =
        record(&place, "exec --format json -r 2 -w 0 --meter a --meter b --meter c --meter w -- sleep 1");
    let list = seen["energies"].as_array().unwrap_or_else(|| panic!("{seen}"));
    let watts = |name: &str| {
        let reading = list.iter().find(|reading| reading["meter"] == name);
        let reading = reading.unwrap_or_else(|| panic!("no {name}: {list:?}"));
        assert!(reading["net_ci95"].is_array(), "{reading}");
        reading["joules"].as_f64().unwrap() / reading["window_s"].as_f64().unwrap()
    };
    for (name, expected) in [("3 boards", 150.0), ("card 1", 50.0), ("card 2", 70.0), ("Outlet <3>", 500.0)] {
        assert!((watts(name) / expected - 1.0).abs() < 0.01, "{name}: {} W", watts(name));
    }
    // where no sensor of a processor goes first, the boards together are what the command cost
    if list[0]["meter"] == "3 boards" {
        assert!((seen["avg_power_w"].as_f64().unwrap() / 150.0 - 1.0).abs() < 0.01);
        assert!((seen["idle_power_w"].as_f64().unwrap() / 150.0 - 1.0).abs() < 0.01);
        let [low, high] = [0, 1].map(|end| seen["energy_ci95"][end].as_f64().unwrap());
        let joules = seen["joules"].as_f64().unwrap();
        assert!(low < 0.99 * joules + 1e-6 && high > 1.01 * joules - 1e-6, "all sensors are off alike");
        let runs = seen["run_joules"].as_array().unwrap();
        assert!(runs.iter().all(|joules| joules.as_f64().unwrap() > 140.0), "{runs:?}");
        assert!(seen["energy_source"].as_str().unwrap().contains("3 boards (card 1, card 2, card 3)"));
    }
}

#[test]
fn a_slow_meter_costs_neither_the_budget_nor_what_a_fast_one_knows() {
    let place = Place::new();
    let every = Duration::from_millis(20);
    let slow = "# boundary: wall\n# name: slow\n# period: 5 s\n";
    let exec = "exec --format json -r 1 -w 0 --budget 2";
    meter(&place, "fast", WALL, every, |_| "W 50".into());
    meter(&place, "slow", slow, every, |_| "W 50".into());
    let seen = record(&place, &format!("{exec} --meter fast --meter slow -- sleep 0.05"));
    assert!(at_the_wall(&seen)["meter"] == "Outlet <3>", "{seen}");
    assert!(seen["energy_window_s"].as_f64().unwrap() < 8.0, "{seen}");
    // alone it cannot tell anything in that time
    meter(&place, "alone", slow, every, |_| "W 50".into());
    let seen = record(&place, &format!("{exec} --meter alone -- sleep 0.05"));
    if seen["joules"].is_null() {
        let reason = seen["energy_unknown"].as_str().unwrap();
        assert!(reason.contains("10.00 s") && reason.contains("--budget 41"), "{reason}");
        assert_eq!(seen["joules_per_call"], Value::Null);
    }
    meter(&place, "shown", slow, every, |_| "W 50".into());
    let text = place.ok("exec -r 1 -w 0 --budget 2 --meter shown -- sleep 0.05");
    assert!(text.contains("energy: unknown: the meter needs 10.00 s") || text.contains("measured"), "{text}");
}

#[test]
fn a_single_run_says_which_meter_was_too_slow() {
    let place = Place::new();
    let slow = "# boundary: wall\n# name: slow\n# period: 30 s\n";
    meter(&place, "slow", slow, Duration::from_millis(20), |_| "W 50".into());
    meter(&place, "fast", WALL, Duration::from_millis(20), |_| "W 50".into());
    let seen = record(&place, &format!("{RUN} slow --meter fast"));
    assert!(seen["joules"].is_number() && seen["net_joules_ci95"].is_array(), "{seen}");
    let silent = &seen["energies_unknown"][0];
    assert!(
        silent["meter"] == "slow" && silent["reason"].as_str().unwrap().contains("too short"),
        "{silent}"
    );
    meter(&place, "slow2", slow, Duration::from_millis(20), |_| "W 50".into());
    meter(&place, "fast2", WALL, Duration::from_millis(20), |_| "W 50".into());
    let text = place.ok(&format!("{} slow2 --meter fast2", RUN.replace("json", "table")));
    assert!(text.contains("no joules of slow, external, wall:"), "{text}");
}

#[test]
fn a_meter_that_was_named_and_cannot_be_used_is_an_error() {
    let place = Place::new();
    place.refused("run --meter nowhere", "--meter: external for nowhere");
    place.refused("devices --meter a --meter a", "given twice");
    std::fs::write(place.path("file"), "W 1\n").unwrap();
    place.refused("devices --meter file", "file");
    place.refused("run --neuron-watts 0", "watts");
    meter(&place, "odd", "# boundary: house\n", Duration::from_millis(50), |_| "W 1".into());
    place.refused("devices --meter odd", "house");
}
