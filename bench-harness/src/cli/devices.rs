//! `perjoule devices`.

use anyhow::Result;
use perjoule::{DeviceInfo, devices};
use perjoule_cpu::device::CpuCaps;
use serde_json::{Value, json};
use std::io::Write;

use super::args::DevicesArgs;
use super::{Ended, environment, threads_of};
use crate::measure::energy::Meters;
use crate::report::{Align, Style, Table, units};

pub(crate) fn run(args: &DevicesArgs) -> Result<Ended> {
    let (found, absent) = devices();
    let threads = found.iter().map(threads_of).max().unwrap_or(1);
    let meters = args.meters.discover(&environment(), threads)?;
    let mut out = anstream::stdout();
    if args.json {
        let list: Vec<Value> = found.iter().map(|info| describe(info, &meters)).collect();
        writeln!(out, "{}", serde_json::to_string_pretty(&list)?)?;
        return Ok(Ended::Done);
    }
    write!(out, "{}", table(&found).render(Style::Plain))?;
    for info in &found {
        if let Some(line) = placement(info) {
            writeln!(out, "\nThreads of {}\n  {line}", info.label)?;
        }
        writeln!(out, "\nEnergy of {}", info.label)?;
        for line in energy_lines(info, &meters) {
            writeln!(out, "  {line}")?;
        }
    }
    let missing = meters.missing();
    if !missing.is_empty() {
        writeln!(out, "\nMeters that cannot be used")?;
        for line in missing {
            writeln!(out, "  {line}")?;
        }
    }
    if !absent.is_empty() {
        writeln!(out, "\nBackends without a device")?;
        for backend in absent {
            writeln!(out, "  {}: {}", backend.backend, backend.reason)?;
        }
    }
    Ok(Ended::Done)
}

/// Devices as a table.
pub(crate) fn table(found: &[DeviceInfo]) -> Table {
    let mut table = Table::new([
        ("id", Align::Left),
        ("backend", Align::Left),
        ("name", Align::Left),
        ("class", Align::Left),
        ("memory", Align::Right),
        ("features", Align::Left),
    ]);
    for info in found {
        let class = if info.software {
            format!("{} (software)", info.class.name())
        } else {
            info.class.name().into()
        };
        table.row([
            info.label.clone(),
            info.backend.into(),
            info.name.clone(),
            class,
            info.memory_bytes.map_or("unknown".into(), units::bytes),
            info.features.join(" "),
        ]);
    }
    table
}

/// Where the threads of a CPU run, when that is not wherever the system puts them.
pub(crate) fn placement(info: &DeviceInfo) -> Option<String> {
    let caps = info.caps::<CpuCaps>()?;
    let threads = caps.threads;
    caps.placement.describe().map(|text| format!("{threads} threads: {text}"))
}

/// How a device's energy is measured, the meter that is used first.
pub(crate) fn energy_lines(info: &DeviceInfo, meters: &Meters) -> Vec<String> {
    let used = meters.of(info).into_iter().next();
    let mut lines = Vec::new();
    for meter in meters.all_of(info) {
        let mark = if used.as_ref().is_some_and(|used| used.info().id == meter.id) { "used" } else { "also" };
        let notes = meter.notes.join(" ");
        lines.push(format!(
            "{mark}: {} by {}, boundary {}: {}{}{notes}",
            meter.kind,
            meter.source,
            meter.boundary,
            meter.name,
            if notes.is_empty() { "" } else { ". " },
        ));
    }
    if used.is_none() {
        lines.push("unknown: no meter watches this device".into());
    }
    lines
}

fn describe(info: &DeviceInfo, meters: &Meters) -> Value {
    let meter = |m: &perjoule_meter::MeterInfo| json!({ "source": m.source.as_str(), "boundary": m.boundary.as_str(), "kind": m.kind.as_str() });
    json!({
        "id": info.label,
        "backend": info.backend,
        "name": info.name,
        "class": info.class.name(),
        "memory_bytes": info.memory_bytes,
        "software": info.software,
        "features": info.features,
        "threads": info.threads,
        "processors": info.caps::<CpuCaps>().map(|caps| &caps.placement.processors),
        "memory_nodes": info.caps::<CpuCaps>().map(|caps| &caps.placement.nodes),
        "meters": meters.all_of(info).into_iter().map(meter).collect::<Vec<_>>(),
    })
}
