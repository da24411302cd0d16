//! Samples (images, queries) as a dataset of the page.

use perjoule_record::{Kind, Record};

use super::data::{Cell, Dataset, Format, count, device, energy_kind, notes, number, provenance, text};
use crate::compare::regression::what;
use crate::report::samples::{source, time_ns};

/// The columns that the table shows.
pub(crate) const SAMPLES: [&str; 13] = [
    "device", "what", "parallel", "rate", "unit", "ns", "joules", "energy", "boundary", "watts", "from",
    "source", "notes",
];

/// One row for each result that is counted in samples.
pub(crate) fn samples(records: &[Record]) -> Dataset {
    let mut data = Dataset::new(&[
        ("device", "device", Format::Text),
        ("what", "what", Format::Text),
        ("parallel", "batch", Format::Int),
        ("rate", "rate", Format::Si),
        ("unit", "unit", Format::Text),
        ("ns", "time", Format::Ns),
        ("joules", "J/sample", Format::Joules),
        ("energy", "energy", Format::Text),
        ("boundary", "boundary", Format::Text),
        ("watts", "W", Format::Si),
        ("from", "rate is", Format::Text),
        ("source", "source", Format::Text),
        ("notes", "notes", Format::Text),
    ]);
    for record in records.iter().filter(|record| record.kind == Kind::Samples) {
        let (t, e) = (&record.timing, &record.energy);
        data.push([
            Cell::Text(device(record)),
            Cell::Text(what(record)),
            count(record.workload.n_parallel),
            number(t.throughput),
            text(&t.throughput_unit),
            number(time_ns(record)),
            number(e.joules_per_call),
            Cell::Text(energy_kind(record).into()),
            text(&e.energy_boundary),
            number(e.avg_power_w),
            Cell::Text(provenance(record).into()),
            Cell::Text(source(record)),
            Cell::Text(notes(record)),
        ]);
    }
    data
}
