//! JSON for hyperfine's scripts, Bencher and github-action-benchmark.

use perjoule_record::{Record, stats};
use serde_json::{Map, Value, json};

use super::metrics::{Better, Metric, Names, label, metrics};
use super::{Omission, invalidity};

/// The longest name that Bencher takes, in characters.
const MAX_NAME: usize = 1024;

/// Whether the record's figures may be shown; if not, it is noted as left out.
fn usable(record: &Record, index: usize, left_out: &mut Vec<Omission>) -> bool {
    if !record.valid {
        left_out.push(Omission { index, reason: invalidity(record) });
    }
    record.valid
}

fn pretty(value: &Value) -> Result<String, serde_json::Error> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

/// `hyperfine --export-json`: times in seconds. User and system times are known of commands only, else null.
pub(super) fn hyperfine(
    records: &[Record],
    left_out: &mut Vec<Omission>,
) -> Result<String, serde_json::Error> {
    let mut names = Names::default();
    let mut results = Vec::new();
    for (index, record) in records.iter().enumerate() {
        if !usable(record, index, left_out) {
            continue;
        }
        let timing = &record.timing;
        let good = |ns: &f64| ns.is_finite() && *ns > 0.0;
        let samples = timing.samples_ns.as_deref().unwrap_or_default();
        let times: Vec<f64> = samples.iter().filter(|ns| good(ns)).map(|ns| ns / 1e9).collect();
        let stated = |ns: Option<f64>| ns.filter(good).map(|ns| ns / 1e9);
        let median = stated(timing.median_ns).or_else(|| stats::median(&times));
        let mean = stats::mean(&times).or_else(|| stated(timing.avg_ns)).or(median);
        let Some(mean) = mean else {
            left_out
                .push(Omission { index, reason: "no time of a call, and hyperfine has nothing else".into() });
            continue;
        };
        let deviation =
            stats::stddev(&times).or_else(|| timing.stddev_ns.filter(|x| x.is_finite()).map(|x| x / 1e9));
        // Times are hyperfine's own; everything else goes where it keeps the parameters of a command, as text.
        let parameters: Map<String, Value> = metrics(record)
            .into_iter()
            .filter(|metric| !metric.name.ends_with("latency"))
            .map(|Metric { name, unit, value, .. }| (name, format!("{value} {unit}").into()))
            .collect();
        results.push(json!({
            "command": names.unique(label(record)),
            "mean": mean,
            "stddev": deviation,
            "median": median,
            "user": record.process.cpu_user_s.filter(|s| s.is_finite()),
            "system": record.process.cpu_system_s.filter(|s| s.is_finite()),
            "min": times.iter().copied().reduce(f64::min),
            "max": times.iter().copied().reduce(f64::max),
            "times": times,
            "parameters": parameters,
        }));
    }
    pretty(&json!({ "results": results }))
}

/// Bencher Metric Format: a benchmark has measures, a measure a value and bounds. `latency` in nanoseconds is built in.
pub(super) fn bencher(records: &[Record], left_out: &mut Vec<Omission>) -> Result<String, serde_json::Error> {
    let mut names = Names::default();
    let mut benchmarks = Map::new();
    for (index, record) in records.iter().enumerate() {
        if !usable(record, index, left_out) {
            continue;
        }
        let measures: Map<String, Value> = metrics(record)
            .into_iter()
            .map(|metric| {
                let mut measure = Map::from_iter([("value".to_owned(), Value::from(metric.value))]);
                if let Some([lo, hi]) = metric.bounds {
                    measure.insert("lower_value".into(), lo.into());
                    measure.insert("upper_value".into(), hi.into());
                }
                (metric.name, measure.into())
            })
            .collect();
        if measures.is_empty() {
            left_out.push(Omission { index, reason: "no figures".into() });
            continue;
        }
        // Room is left for the number of a name that comes again.
        let short: String = label(record).chars().take(MAX_NAME - 24).collect();
        benchmarks.insert(names.unique(short), measures.into());
    }
    pretty(&benchmarks.into())
}

/// github-action-benchmark, `customSmallerIsBetter` or `customBiggerIsBetter`: the figures of one direction.
pub(super) fn action(
    records: &[Record],
    better: Better,
    left_out: &mut Vec<Omission>,
) -> Result<String, serde_json::Error> {
    let mut names = Names::default();
    let mut entries = Vec::new();
    for (index, record) in records.iter().enumerate() {
        if !usable(record, index, left_out) {
            continue;
        }
        let mut figures = metrics(record);
        figures.retain(|metric| metric.better == better);
        if figures.is_empty() {
            left_out.push(Omission { index, reason: "no figures of this direction".into() });
        }
        for metric in figures {
            let mut entry = Map::new();
            entry.insert("name".into(), names.unique(format!("{}: {}", label(record), metric.name)).into());
            entry.insert("unit".into(), metric.unit.into());
            entry.insert("value".into(), metric.value.into());
            if let Some([lo, hi]) = metric.bounds {
                entry.insert("range".into(), format!("{lo} .. {hi}").into());
            }
            let extra = [
                ("energy source", record.energy.energy_source.as_ref()),
                ("energy boundary", record.energy.energy_boundary.as_ref()),
                ("tool", record.source.source_tool.as_ref()),
            ];
            let energy = metric.name.contains("joules");
            let extra: Vec<String> = extra
                .iter()
                .filter(|(key, _)| energy || !key.starts_with("energy"))
                .filter_map(|(key, value)| Some(format!("{key}: {}", value.as_ref()?)))
                .collect();
            if !extra.is_empty() {
                entry.insert("extra".into(), extra.join("\n").into());
            }
            entries.push(Value::from(entry));
        }
    }
    pretty(&entries.into())
}
