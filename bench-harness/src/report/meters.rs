//! What several meters saw of the same work: boundaries stand apart, and are never added.

use perjoule_record::{Interval, Kind, Reading, Record};

use super::units::{joules, si};
use super::{Align, Table, command, one_line, or_dash};
use crate::compare::regression::what;

/// What a result's joules are counted by.
fn unit(kind: Kind) -> &'static str {
    match kind {
        Kind::Tokens => "J/token",
        Kind::Command => "J/run",
        _ => "J/call",
    }
}

/// The factor from joules of the window to those of a token, a call or a run.
fn per(record: &Record) -> Option<f64> {
    let e = &record.energy;
    let factor = match record.kind {
        Kind::Tokens => e.joules_per_output_token.or(e.joules_per_total_token)? / e.joules?,
        _ => 1.0 / e.energy_calls.filter(|&n| n > 0)? as f64,
    };
    factor.is_finite().then_some(factor)
}

fn range(ci: Interval, factor: f64) -> String {
    format!("{}..{}", joules(ci.lo * factor), joules(ci.hi * factor))
}

fn several(record: &Record) -> bool {
    record.energy.energies.as_ref().is_some_and(|list| list.len() > 1)
}

/// What each meter saw, for results of one kind; `None` where one meter tells everything.
pub(crate) fn meters(records: &[Record]) -> Option<Table> {
    let first = records.iter().find(|record| several(record))?;
    let unit = unit(first.kind);
    let net = format!("net of idle\n{unit}");
    let mut table = Table::new([
        (if first.kind == Kind::Command { "command" } else { "result" }, Align::Left),
        ("meter", Align::Left),
        ("boundary", Align::Left),
        ("how", Align::Left),
        (unit, Align::Right),
        ("95 % interval", Align::Right),
        (net.as_str(), Align::Right),
        ("mean\nW", Align::Right),
        ("idle\nW", Align::Right),
    ]);
    // a command with one meter stands beside those with several; of many kernels only those with several
    for record in records.iter().filter(|record| record.kind == Kind::Command || several(record)) {
        let factor = per(record);
        for (i, seen) in record.energy.energies.iter().flatten().enumerate() {
            let of = |figure: f64| factor.map(|factor| joules(figure * factor));
            let label = if record.kind == Kind::Command { command::label(record) } else { what(record) };
            table.row([
                if i == 0 { label } else { String::new() },
                format!("{}, {}", seen.meter, seen.source),
                seen.boundary.clone(),
                seen.kind.as_str().into(),
                or_dash(of(seen.joules)),
                or_dash(seen.ci95.zip(factor).map(|(ci, factor)| range(ci, factor))),
                or_dash(seen.net_joules.and_then(of)),
                or_dash((seen.window_s > 0.0).then(|| si(seen.joules / seen.window_s))),
                or_dash(seen.idle_power_w.map(si)),
            ]);
        }
    }
    Some(table)
}

/// What the meters beside the one of a record's energy saw, a note for each.
pub(crate) fn also(record: &Record) -> Vec<String> {
    let e = &record.energy;
    let list = e.energies.as_deref().unwrap_or_default();
    let own = |seen: &Reading| {
        e.joules == Some(seen.joules) && e.energy_boundary.as_deref() == Some(seen.boundary.as_str())
    };
    let own = list.iter().position(own);
    let rest = list.iter().enumerate().filter(|(i, _)| Some(*i) != own);
    rest.map(|(_, seen)| {
        let figure = match per(record) {
            Some(factor) => {
                let mut text = format!("{}{}", joules(seen.joules * factor), &unit(record.kind)[1..]);
                text.extend(seen.ci95.map(|ci| format!(" ({})", range(ci, factor))));
                text
            }
            None => format!("{} in {} s", joules(seen.joules), si(seen.window_s)),
        };
        let (boundary, meter) = (one_line(&seen.boundary), one_line(&seen.meter));
        format!("also {}, {boundary}, {meter}: {figure}", seen.kind.as_str())
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Style;
    use perjoule_record::{EnergyKind, Environment};

    /// A window of 10 calls, 20 J in the package and 41 J at an outlet.
    fn kernel() -> Record {
        let mut record = Record::new(Kind::Kernel, &Environment::default());
        record.workload.op = Some("matmul".into());
        let e = &mut record.energy;
        (e.joules, e.energy_calls, e.joules_per_call) = (Some(20.0), Some(10), Some(2.0));
        e.energy_boundary = Some("package".into());
        let seen = |boundary: &str, meter: &str, joules: f64| Reading {
            net_ci95: None,
            notes: None,
            source: "test".into(),
            boundary: boundary.into(),
            kind: EnergyKind::Measured,
            meter: meter.into(),
            joules,
            ci95: Some(Interval { lo: joules - 1.0, hi: joules + 1.0 }),
            net_joules: None,
            idle_power_w: None,
            window_s: 2.0,
        };
        e.energies = Some(vec![seen("package", "CPU", 20.0), seen("wall", "Outlet 3", 41.0)]);
        record
    }

    #[test]
    fn other_meters_are_in_the_units_of_the_result() {
        let mut record = kernel();
        assert_eq!(also(&record), ["also measured, wall, Outlet 3: 4.10 J/call (4.00 J..4.20 J)"]);
        let table = meters(std::slice::from_ref(&record)).unwrap().render(Style::Plain);
        assert!(table.contains("2.00 J") && table.contains("4.10 J") && table.contains("20.5"), "{table}");
        record.kind = Kind::Tokens;
        record.energy.joules_per_output_token = Some(0.5);
        assert!(also(&record)[0].contains("1.02 J/token") || also(&record)[0].contains("1.03 J/token"));
        record.energy.joules = None;
        assert!(also(&record)[1].ends_with("41.0 J in 2.00 s"), "no joules of its own, no factor");
        assert!(also(&Record::new(Kind::Kernel, &Environment::default())).is_empty());
    }
}
