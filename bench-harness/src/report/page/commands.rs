//! Commands as a dataset of the page.

use perjoule_record::{Kind, Record};

use super::data::{Cell, Dataset, Format, count, device, energy_kind, high, low, notes, number, provenance};
use crate::report::command::{interval_per_run, net_per_run, processors};

/// The columns that the table shows.
pub(crate) const COMMANDS: [&str; 17] = [
    "device",
    "command",
    "ns",
    "ns_lo|ns_hi",
    "n",
    "user",
    "system",
    "cpus",
    "memory",
    "joules",
    "joules_lo|joules_hi",
    "energy",
    "boundary",
    "net",
    "watts",
    "exit",
    "notes",
];

/// One row for each command.
pub(crate) fn commands(records: &[Record]) -> Dataset {
    let mut data = Dataset::new(&[
        ("device", "device", Format::Text),
        ("command", "command", Format::Text),
        ("ns", "time", Format::Ns),
        ("ns_lo", "95 % from", Format::Ns),
        ("ns_hi", "to", Format::Ns),
        ("n", "runs", Format::Int),
        ("user", "user", Format::Ns),
        ("system", "system", Format::Ns),
        ("cpus", "CPUs in use", Format::Si),
        ("memory", "peak MiB", Format::Si),
        ("joules", "J/run", Format::Joules),
        ("joules_lo", "J/run from", Format::Joules),
        ("joules_hi", "to", Format::Joules),
        ("energy", "energy", Format::Text),
        ("boundary", "boundary", Format::Text),
        ("net", "net of idle J/run", Format::Joules),
        ("watts", "W", Format::Si),
        ("exit", "exit code", Format::Int),
        ("from", "time is", Format::Text),
        ("notes", "notes", Format::Text),
    ]);
    for record in records.iter().filter(|record| record.kind == Kind::Command) {
        let (t, p, e) = (&record.timing, &record.process, &record.energy);
        let name = p.exec_name.as_ref().or(p.exec_command.as_ref());
        let ci = interval_per_run(record);
        let ns = |seconds: Option<f64>| number(seconds.map(|s| 1e9 * s));
        data.push([
            Cell::Text(device(record)),
            Cell::Text(name.cloned().unwrap_or_default()),
            number(t.median_ns),
            low(t.ci95_ns),
            high(t.ci95_ns),
            count(t.samples_ns.as_ref().map(|samples| samples.len() as u64)),
            ns(p.cpu_user_s),
            ns(p.cpu_system_s),
            number(processors(record)),
            number(p.peak_memory_bytes.map(|bytes| bytes as f64 / f64::from(1 << 20))),
            number(e.joules_per_call),
            low(ci),
            high(ci),
            Cell::Text(energy_kind(record).into()),
            Cell::Text(e.energy_boundary.clone().unwrap_or_default()),
            number(net_per_run(record)),
            number(e.avg_power_w),
            count(p.exit_code),
            Cell::Text(provenance(record).into()),
            Cell::Text(notes(record)),
        ]);
    }
    data
}
