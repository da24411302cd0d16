//! OpenMetrics text 1.0 (github.com/prometheus/OpenMetrics), for the text file collector of a node exporter or a push gateway.

use std::collections::{BTreeMap, HashMap};

use perjoule_record::Record;

use super::metrics::{label, metrics};
use super::{Omission, invalidity};
use crate::escape::label_value;

/// What tells the runs apart: own records say it, imported ones come from one file.
fn run(record: &Record) -> (Option<&str>, Option<&str>) {
    match record.environment.run_id.as_deref() {
        Some(id) => (Some(id), None),
        None => (None, record.source.source_name.as_deref()),
    }
}

/// The run of the last record as gauges. Every record of it has `perjoule_valid`, which is 0 for an invalid one; that has
/// nothing else.
pub(super) fn text(records: &[Record], left_out: &mut Vec<Omission>) -> String {
    /// A family: its unit, its help, its samples.
    type Family = (&'static str, String, Vec<String>);
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let mut valid = Vec::new();
    let mut seen: HashMap<String, u64> = HashMap::new();
    let last = records.last().map(run);
    for (index, record) in records.iter().enumerate() {
        if Some(run(record)) != last {
            left_out.push(Omission { index, reason: "not of the last run".into() });
            continue;
        }
        let mut labels = labels(record);
        // Two equal sets of labels in a family are an error.
        let count = seen.entry(labels.clone()).or_insert(0);
        *count += 1;
        if *count > 1 {
            labels.push_str(&format!(",repeat=\"{count}\""));
        }
        let reason = if record.valid {
            String::new()
        } else {
            format!(",reason=\"{}\"", label_value(&invalidity(record)))
        };
        valid.push(format!("perjoule_valid{{{labels}{reason}}} {}\n", u8::from(record.valid)));
        for metric in metrics(record) {
            let (name, unit, divisor) = metric.base;
            let word = metric.name.split_once('-').map_or("", |(word, _)| word);
            let word =
                if matches!(word, "modelled" | "unverified") { format!("{word}_") } else { String::new() };
            let mut energy = String::new();
            if matches!(unit, "joules" | "watts") {
                let facts =
                    [("source", &record.energy.energy_source), ("boundary", &record.energy.energy_boundary)];
                for (key, fact) in facts {
                    energy.extend(fact.iter().map(|fact| format!(",{key}=\"{}\"", label_value(fact))));
                }
            }
            if name == "throughput" {
                energy = format!(",unit=\"{}\"", label_value(&metric.unit));
            }
            let figures = [
                ("", Some(metric.value)),
                ("_low", metric.bounds.map(|b| b[0])),
                ("_high", metric.bounds.map(|b| b[1])),
            ];
            for (suffix, value) in figures {
                let Some(value) = value.map(|value| value / divisor).filter(|value| value.is_finite()) else {
                    continue;
                };
                let family = format!("perjoule_{word}{name}{suffix}_{unit}");
                let help = match suffix {
                    "" => metric.name.replace('-', " "),
                    "_low" => format!("lower bound of {}", metric.name.replace('-', " ")),
                    _ => format!("upper bound of {}", metric.name.replace('-', " ")),
                };
                let entry = families.entry(family.clone()).or_insert_with(|| (unit, help, Vec::new()));
                entry.2.push(format!("{family}{{{labels}{energy}}} {value}\n"));
            }
        }
    }
    let mut text = String::new();
    for (family, (unit, help, samples)) in families {
        text.push_str(&format!("# TYPE {family} gauge\n# UNIT {family} {unit}\n# HELP {family} {help}.\n"));
        text.extend(samples);
    }
    if !valid.is_empty() {
        text.push_str("# TYPE perjoule_valid gauge\n# HELP perjoule_valid Whether the result may be used.\n");
        text.extend(valid);
    }
    text + "# EOF\n"
}

fn labels(record: &Record) -> String {
    let mut labels = format!("benchmark=\"{}\"", label_value(&label(record)));
    let facts = [
        ("device", record.device.device.as_ref().or(record.device.device_name.as_ref())),
        ("backend", record.device.backend.as_ref()),
        ("model", record.workload.model.as_ref().or(record.workload.model_type.as_ref())),
        ("dtype", record.workload.dtype.as_ref()),
        ("kv_dtype", record.workload.kv_dtype.as_ref()),
        ("tool", record.source.source_tool.as_ref()),
    ];
    for (key, fact) in facts {
        labels.extend(fact.iter().map(|fact| format!(",{key}=\"{}\"", label_value(fact))));
    }
    labels
}
