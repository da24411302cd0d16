//! `perjoule doctor` from outside.

use serde_json::Value;

mod place;
use place::Place;

#[test]
fn findings_have_a_section_a_status_and_a_sentence() {
    let place = Place::new();
    let list: Value = serde_json::from_str(&place.ok("doctor --quick --json")).unwrap();
    let list = list.as_array().unwrap();
    for finding in list {
        let fields: Vec<&String> = finding.as_object().unwrap().keys().collect();
        assert_eq!(fields.len(), 5, "{finding}");
        assert!(
            ["ok", "note", "warn", "missing"].contains(&finding["status"].as_str().unwrap()),
            "{finding}"
        );
        assert!(
            !finding["name"].as_str().unwrap().is_empty() && !finding["detail"].as_str().unwrap().is_empty()
        );
        assert!(finding["fix"].is_null() || !finding["fix"].as_str().unwrap().trim().is_empty());
    }
    for section in ["meters", "devices", "counters", "cpu", "memory", "thermals", "clock", "storage"] {
        assert!(list.iter().any(|finding| finding["section"] == section), "{section}");
    }
    assert!(list.iter().any(|f| f["name"] == "CPU energy") && list.iter().any(|f| f["name"] == "cpu"));
    assert!(!place.path("results").exists(), "nothing is made");
}

#[test]
fn strict_fails_exactly_when_something_is_to_be_mended() {
    let place = Place::new();
    // meanwhile the machine may become busy or quiet: the two are of one run
    let output = place.run("doctor --quick --strict --json");
    let list: Value = serde_json::from_slice(&output.stdout).unwrap();
    let bad = list.as_array().unwrap().iter().any(|f| f["status"] == "warn" || f["status"] == "missing");
    assert_eq!(output.status.code(), Some(i32::from(bad)));
}

#[test]
fn the_text_has_a_heading_for_each_section_and_no_colours_on_a_pipe() {
    let place = Place::new();
    let text = place.ok("doctor");
    for heading in ["Meters", "Devices and drivers", "Processor", "Memory", "Clock", "Storage"] {
        assert!(text.lines().any(|line| line == heading), "{heading}: {text}");
    }
    assert!(!text.contains('\u{1b}'));
    if cfg!(target_os = "linux") {
        assert!(text.contains("use now"), "a second was watched: {text}");
        assert!(!place.ok("doctor --quick").contains("use now"));
    }
}

#[test]
fn an_unusable_place_for_results_is_seen() {
    let place = Place::new();
    std::fs::write(place.path("results"), "a file").unwrap();
    let list: Value = serde_json::from_str(&place.ok("doctor --quick --json")).unwrap();
    let storage = list.as_array().unwrap().iter().find(|f| f["name"] == "results").unwrap();
    if cfg!(unix) {
        assert_eq!(storage["status"], "missing", "{storage}");
    }
}
