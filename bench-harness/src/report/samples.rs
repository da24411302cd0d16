//! Results that are counted in images, queries or other samples: those of other tools.

use perjoule_record::{Kind, Record};

use super::units::{duration_ns, joules, si};
use super::{Align, Table, energy_cell, or_dash, page};
use crate::compare::regression::what;

/// Where another tool's figure comes from.
pub(crate) fn source(record: &Record) -> String {
    let s = &record.source;
    let parts: Vec<&str> =
        [&s.source_tool, &s.source_version].into_iter().flatten().map(String::as_str).collect();
    parts.join(" ")
}

/// The time of a sample where the record states one, in nanoseconds.
pub(crate) fn time_ns(record: &Record) -> Option<f64> {
    record.timing.median_ns.or(record.timing.avg_ns)
}

/// A rate of samples, with the unit that the other tool counts in.
pub(crate) fn rate(record: &Record) -> Option<String> {
    let unit = record.timing.throughput_unit.as_deref().unwrap_or("samples/s");
    Some(format!("{} {unit}", si(record.timing.throughput?)))
}

/// Samples: rate, time and joules of one.
pub(crate) fn samples(records: &[Record]) -> Table {
    let mut table = Table::new([
        ("what", Align::Left),
        ("device", Align::Left),
        ("rate", Align::Right),
        ("time", Align::Right),
        ("J/sample", Align::Right),
        ("boundary", Align::Left),
        ("rate is", Align::Left),
        ("source", Align::Left),
    ]);
    for record in records.iter().filter(|record| record.kind == Kind::Samples) {
        let e = &record.energy;
        table.row([
            what(record),
            page::device(record),
            rate(record).unwrap_or_else(|| "unknown".into()),
            or_dash(time_ns(record).map(duration_ns)),
            match e.joules_per_call {
                None => "unknown".into(),
                some => energy_cell(some.map(joules), e, None),
            },
            or_dash(e.energy_boundary.clone()),
            page::provenance(record).into(),
            source(record),
        ]);
    }
    table
}
