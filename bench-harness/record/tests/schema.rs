//! The committed JSON Schema, and records against it.

use std::path::Path;

use perjoule_record::{
    CacheState, Clock, EnergyKind, Environment, Interval, Kind, Provenance, Reader, Record, SCHEMA_MINOR,
    SCHEMA_VERSION, json_schema, to_line,
};
use proptest::prelude::*;
use serde_json::Value;

/// `PERJOULE_BLESS=1 cargo test -p perjoule-record` rewrites the committed file.
#[test]
fn committed_schema_is_the_generated_one() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("schema/record.v1.schema.json");
    let generated = serde_json::to_string_pretty(&json_schema()).unwrap() + "\n";
    if std::env::var_os("PERJOULE_BLESS").is_some() {
        std::fs::write(&path, &generated).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(committed == generated, "{} is out of date: run with PERJOULE_BLESS=1", path.display());
}

/// The schema without what may change at any time: descriptions, its title and its version.
fn bare(value: &Value) -> Value {
    match value {
        Value::Object(map) => map
            .iter()
            .filter(|(key, value)| !(*key == "description" && value.is_string()))
            .filter(|(key, _)| !["title", "x-version"].contains(&key.as_str()))
            .map(|(key, value)| (key.clone(), bare(value)))
            .collect::<serde_json::Map<_, _>>()
            .into(),
        Value::Array(list) => list.iter().map(bare).collect(),
        other => other.clone(),
    }
}

fn version_file(minor: u32) -> std::path::PathBuf {
    let name = format!("schema/versions/{SCHEMA_VERSION}.{minor}.json");
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn published(minor: u32) -> Option<Value> {
    Some(serde_json::from_str(&std::fs::read_to_string(version_file(minor)).ok()?).unwrap())
}

/// `PERJOULE_BLESS=1` writes the file of a new minor; one that is there stays as it was published.
#[test]
fn the_schema_changes_only_with_its_version() {
    let now = bare(&json_schema());
    let path = version_file(SCHEMA_MINOR);
    if published(SCHEMA_MINOR).is_none() && std::env::var_os("PERJOULE_BLESS").is_some() {
        std::fs::write(&path, serde_json::to_string_pretty(&now).unwrap() + "\n").unwrap();
    }
    let published = published(SCHEMA_MINOR).unwrap_or_default();
    assert!(
        published == now,
        "the schema is not {} any more: raise SCHEMA_MINOR (a new field or word) or SCHEMA_VERSION (anything else), and run with PERJOULE_BLESS=1",
        path.display()
    );
    assert!(self::published(SCHEMA_MINOR + 1).is_none(), "a version beyond SCHEMA_MINOR is published");
    assert_eq!(json_schema()["x-version"], format!("{SCHEMA_VERSION}.{SCHEMA_MINOR}.0"));
    let readme = include_str!("../schema/README.md");
    assert!(
        readme.contains(&format!("**{SCHEMA_VERSION}.{SCHEMA_MINOR}**")),
        "no line about this version in schema/README.md"
    );
}

/// What a newer schema must not do to an older one of the same major, in words; empty when it only adds.
fn broken(old: &Value, new: &Value, place: &str) -> Vec<String> {
    let mut list = Vec::new();
    let types = |value: &Value| match &value["type"] {
        Value::Array(list) => list.clone(),
        Value::Null => Vec::new(),
        one => vec![one.clone()],
    };
    let lost = types(old).into_iter().find(|one| !types(new).is_empty() && !types(new).contains(one));
    list.extend(lost.map(|lost| format!("{place} may not be {lost} any more")));
    let required = |value: &Value| value["required"].as_array().cloned().unwrap_or_default();
    let newly = required(new).into_iter().filter(|name| !required(old).contains(name));
    list.extend(newly.map(|name| format!("{place}: {name} is required now")));
    for (key, old) in old["properties"].as_object().into_iter().flatten() {
        match new["properties"].get(key) {
            Some(new) => list.extend(broken(old, new, &format!("{place}.{key}"))),
            None => list.push(format!("{place}.{key} is gone")),
        }
    }
    for (key, old) in old["$defs"].as_object().into_iter().flatten() {
        match new["$defs"].get(key) {
            Some(new) => list.extend(broken(old, new, key)),
            None => list.push(format!("{key} is gone")),
        }
    }
    for (key, new) in new["properties"].as_object().into_iter().flatten() {
        let added = old["properties"].as_object().is_some_and(|old| !old.contains_key(key));
        let nullable = types(new).contains(&"null".into())
            || new["anyOf"].as_array().is_some_and(|any| any.iter().any(|one| one["type"] == "null"))
            || new.get("default").is_some();
        if added && !nullable {
            list.push(format!("{place}.{key} is new and may not be null"));
        }
    }
    list
}

#[test]
fn minors_only_add() {
    let mut minor = 0;
    while let Some(new) = published(minor + 1) {
        let old = published(minor).unwrap();
        minor += 1;
        assert_eq!(broken(&old, &new, "record"), [""; 0], "1.{} to 1.{minor}", minor - 1);
    }
    assert_eq!(minor, SCHEMA_MINOR, "a published version is missing");
}

#[test]
fn what_breaks_readers_is_seen() {
    let old = bare(&json_schema());
    let edit = |change: &dyn Fn(&mut Value)| {
        let mut new = old.clone();
        change(&mut new);
        broken(&old, &new, "record")
    };
    assert_eq!(broken(&old, &old, "record"), [""; 0]);
    let nullable = serde_json::json!({ "type": ["number", "null"] });
    assert_eq!(edit(&|new| new["properties"]["moon_phase"] = nullable.clone()), [""; 0]);
    type Edit = fn(&mut Value);
    let cases: [(Edit, &str); 5] = [
        (|new| new["properties"]["moon_phase"] = serde_json::json!({ "type": "number" }), "may not be null"),
        (|new| drop(new["properties"].as_object_mut().unwrap().remove("joules")), "joules is gone"),
        (|new| new["properties"]["joules"]["type"] = "string".into(), "joules may not be"),
        (|new| new["required"].as_array_mut().unwrap().push("joules".into()), "required now"),
        (|new| drop(new["$defs"].as_object_mut().unwrap().remove("Kind")), "Kind is gone"),
    ];
    for (change, part) in cases {
        let found = edit(&|new| change(new));
        assert!(found.len() == 1 && found[0].contains(part), "{part}: {found:?}");
    }
}

/// Lines as they were written by each minor, kept for ever.
#[test]
fn lines_of_older_minors_are_read_and_newer_ones_too() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let validator = jsonschema::validator_for(&json_schema()).unwrap();
    for minor in 0..=SCHEMA_MINOR {
        let path = folder.join(format!("record-{SCHEMA_VERSION}.{minor}.jsonl"));
        if minor > 0 && !path.exists() {
            continue; // a minor need not have lines of its own
        }
        let text = std::fs::read_to_string(path).unwrap();
        let (records, warnings) = Reader::new(text.as_bytes()).read_all();
        assert_eq!((records.len(), warnings.len()), (text.lines().count(), 0));
        for (record, line) in records.iter().zip(text.lines()) {
            let written: Value = serde_json::from_str(line).unwrap();
            assert!(validator.is_valid(&written));
            // nothing that was known is lost or changed
            let now = serde_json::to_value(record).unwrap();
            for (key, value) in written.as_object().unwrap() {
                assert_eq!(&now[key], value, "{key}");
            }
        }
        // a newer minor: one more field, one more word
        let mut newer: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        newer["moon_phase"] = serde_json::json!({ "full": true });
        newer["cache_state"] = "lukewarm".into();
        let back = Reader::new(newer.to_string().as_bytes()).next().unwrap().unwrap();
        assert_eq!(back.workload.cache_state, Some(CacheState::Other));
    }
}

/// The records of the example report are of this schema, and have no field that it does not know.
#[test]
fn the_example_is_of_this_schema() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/example/records.jsonl");
    let schema = json_schema();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.lines().count() > 10);
    for (i, line) in text.lines().enumerate() {
        let record: Value = serde_json::from_str(line).unwrap();
        let wrong: Vec<String> = validator.iter_errors(&record).map(|error| error.to_string()).collect();
        assert!(wrong.is_empty(), "line {}: {wrong:?}", i + 1);
        assert_eq!(record["schema_version"], SCHEMA_VERSION, "line {}", i + 1);
        let unknown = record.as_object().unwrap().keys().find(|key| schema["properties"].get(key).is_none());
        assert_eq!(unknown, None, "line {}", i + 1);
    }
}

/// Every field has a column in every line, and every column is described.
#[test]
fn columns_are_stable_flat_and_described() {
    let schema = json_schema();
    let properties = schema["properties"].as_object().unwrap();
    let written = serde_json::to_value(Record::new(Kind::Tokens, &Environment::default())).unwrap();
    let columns: Vec<&String> = written.as_object().unwrap().keys().collect();
    let mut described: Vec<&String> = properties.keys().collect();
    for column in &columns {
        assert!(described.contains(column), "{column} is not in the schema");
    }
    described.retain(|name| !columns.contains(name));
    assert!(described.is_empty(), "not written: {described:?}");
    for (name, property) in properties {
        let text = property["description"].as_str().unwrap_or_default();
        assert!(!text.is_empty(), "{name} has no description");
    }
    for (name, value) in written.as_object().unwrap() {
        assert!(!value.is_object(), "{name} is not flat");
    }
}

#[test]
fn the_schema_refuses_what_is_no_record() {
    let validator = jsonschema::validator_for(&json_schema()).unwrap();
    let good = serde_json::to_value(Record::new(Kind::Kernel, &Environment::default())).unwrap();
    assert!(validator.is_valid(&good));
    for (field, bad) in [
        ("schema_version", Value::Null),
        ("kind", "lunch".into()),
        ("valid", Value::Null),
        ("median_ns", "12".into()),
        ("n_prompt", (-1).into()),
        ("ci95_ns", serde_json::json!([1.0])),
        ("samples_ns", serde_json::json!(["1"])),
        ("energy_kind", "guessed".into()),
        ("throttle_reasons", "hot".into()),
    ] {
        let mut record = good.clone();
        record[field] = bad;
        assert!(!validator.is_valid(&record), "{record} passes");
    }
    for field in ["schema_version", "kind", "provenance", "valid"] {
        let mut record = good.clone();
        record.as_object_mut().unwrap().remove(field);
        assert!(!validator.is_valid(&record), "{field} is not required");
    }
}

/// Numbers that JSON can hold; `wild()` has the others too.
fn finite() -> impl Strategy<Value = f64> {
    prop_oneof![any::<f64>().prop_filter("finite", |x| x.is_finite()), Just(0.0), Just(1e308), Just(5e-324)]
}

fn wild() -> impl Strategy<Value = f64> {
    prop_oneof![4 => finite(), 1 => Just(f64::NAN), 1 => Just(f64::INFINITY), 1 => Just(f64::NEG_INFINITY)]
}

fn maybe<T: Clone + std::fmt::Debug>(value: impl Strategy<Value = T>) -> impl Strategy<Value = Option<T>> {
    proptest::option::of(value)
}

/// A record with every sort of field set from `number`.
fn records<S: Strategy<Value = f64> + 'static>(number: fn() -> S) -> impl Strategy<Value = Record> {
    let interval = move || (number(), number()).prop_map(|(lo, hi)| Interval { lo, hi });
    let words = || maybe(proptest::collection::vec(any::<String>(), 0..4));
    (
        (
            prop_oneof![Just(Kind::Ceiling), Just(Kind::Kernel), Just(Kind::Tokens), Just(Kind::Command)],
            prop_oneof![Just(Provenance::Measured), Just(Provenance::Imported), Just(Provenance::Modelled)],
            proptest::collection::vec(any::<String>(), 0..4),
            words(),
            words(),
        ),
        (maybe(any::<String>()), maybe(any::<u64>()), maybe(any::<u64>()), maybe(any::<bool>())),
        (
            maybe(proptest::collection::vec(number(), 0..20)),
            maybe(number()),
            maybe(interval()),
            maybe(number()),
        ),
        (maybe(number()), maybe(interval()), maybe(number())),
        (
            maybe(prop_oneof![Just(CacheState::Rotate), Just(CacheState::Hot), Just(CacheState::Cold)]),
            maybe(prop_oneof![Just(Clock::Device), Just(Clock::Host)]),
            maybe(prop_oneof![Just(EnergyKind::Measured), Just(EnergyKind::Modelled)]),
        ),
    )
        .prop_map(|(identity, workload, timing, energy, words)| {
            let mut record = Record::new(identity.0, &Environment::of_build());
            record.provenance = identity.1;
            identity.2.into_iter().for_each(|reason| record.invalidate(reason));
            (record.throttle_reasons, record.environment.cpu_features) = (identity.3, identity.4);
            record.disturbances = record.throttle_reasons.clone();
            (record.workload.shape, record.device.device) = (workload.0.clone(), workload.0);
            (record.workload.seed, record.workload.n_prompt) = (workload.1, workload.2);
            (record.timing.flops, record.environment.memory_bytes) = (workload.2, workload.1);
            (record.verification.verified, record.environment.virtualized) = (workload.3, workload.3);
            record.timing.samples_ns = timing.0;
            (record.timing.median_ns, record.timing.ci95_ns) = (timing.1, timing.2);
            (record.roof.roof_fraction, record.timing.avg_ts) = (timing.3, timing.1);
            (record.energy.joules, record.energy.energy_ci95) = (energy.0, energy.1);
            record.energy.joules_per_output_token = energy.2;
            (record.process.cpu_user_s, record.process.versus_joules_ci95) = (energy.2, energy.1);
            record.process.exec_command = record.workload.shape.clone();
            (record.process.exit_code, record.process.run_joules) =
                (record.workload.seed, record.timing.samples_ns.clone());
            (record.workload.cache_state, record.timing.clock, record.energy.energy_kind) = words;
            record
        })
}

proptest! {
    /// Whatever a programmer puts in, the line is one line, valid, and reads back as the same line.
    #[test]
    fn lines_follow_the_schema(record in records(wild)) {
        let validator = jsonschema::validator_for(&json_schema()).unwrap();
        let line = to_line(&record).unwrap();
        prop_assert_eq!(line.find('\n'), Some(line.len() - 1));
        let value: Value = serde_json::from_str(&line).unwrap();
        let error = validator.validate(&value).err().map(|error| error.to_string());
        prop_assert_eq!(error, None);
        let back = Reader::new(line.as_bytes()).next().unwrap().unwrap();
        prop_assert_eq!(to_line(&back).unwrap(), line);
    }

    /// Finite numbers come back bit by bit, everything else as it was.
    #[test]
    fn finite_records_round_trip(record in records(finite)) {
        let line = to_line(&record).unwrap();
        let back = Reader::new(line.as_bytes()).next().unwrap().unwrap();
        prop_assert_eq!(back, record);
    }
}
