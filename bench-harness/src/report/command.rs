//! Tables of commands: their time and use, how they compare, and what each meter saw.

use perjoule_record::stats::Verdict;
use perjoule_record::{EnergyKind, EnergyRuns, Interval, Record};

use crate::measure::process::our_peak;

use super::units::{bytes, duration_ns, joules, si};
use super::{Align, Table, common_kind, energy_cell, or_dash, spread, text};

/// Characters of a command that a table shows.
const LONGEST: usize = 44;

/// A command in a few words.
pub(crate) fn label(record: &Record) -> String {
    let name = record.process.exec_name.as_ref().or(record.process.exec_command.as_ref());
    shortened(text_of(name))
}

fn text_of(name: Option<&String>) -> &str {
    name.map_or("a command without a name", String::as_str)
}

fn shortened(name: &str) -> String {
    let line = name.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(LONGEST) {
        Some((at, _)) => format!("{}…", &line[..at]),
        None => line,
    }
}

/// A figure of the energy window for one run.
fn per_run(record: &Record, figure: Option<f64>) -> Option<f64> {
    Some(figure? / record.energy.energy_calls.filter(|&n| n > 0)? as f64)
}

/// The interval of the gross joules of a run.
pub(crate) fn interval_per_run(record: &Record) -> Option<Interval> {
    let ci = record.energy.energy_ci95?;
    Some(Interval { lo: per_run(record, Some(ci.lo))?, hi: per_run(record, Some(ci.hi))? })
}

/// The net joules of a run.
pub(crate) fn net_per_run(record: &Record) -> Option<f64> {
    per_run(record, record.energy.net_joules)
}

/// Processors that were in use on average: CPU time over time.
pub(crate) fn processors(record: &Record) -> Option<f64> {
    let cpu = record.process.cpu_user_s? + record.process.cpu_system_s?;
    let samples = record.timing.samples_ns.as_ref()?;
    let mean = perjoule_record::stats::mean(samples)?;
    (mean > 0.0).then(|| cpu * 1e9 / mean)
}

fn seconds(s: Option<f64>) -> String {
    or_dash(s.map(|s| duration_ns(1e9 * s)))
}

fn range(ci: Option<Interval>, show: fn(f64) -> String) -> String {
    or_dash(ci.map(|ci| format!("{}..{}", show(ci.lo), show(ci.hi))))
}

/// Commands: time, use of the machine, and joules of a run.
pub(crate) fn commands(records: &[Record]) -> Table {
    let kind = common_kind(records);
    let per = format!("J/run\n{}", kind.unwrap_or(""));
    let mut table = Table::new([
        ("command", Align::Left),
        ("time", Align::Right),
        ("±", Align::Right),
        ("min..max", Align::Right),
        ("runs", Align::Right),
        ("user", Align::Right),
        ("system", Align::Right),
        ("CPUs\nin use", Align::Right),
        ("peak\nmemory", Align::Right),
        (per.as_str(), Align::Right),
        ("95 % interval\nJ/run", Align::Right),
        ("net of idle\nJ/run", Align::Right),
        ("mean\nW", Align::Right),
    ]);
    for record in records {
        let (t, p, e) = (&record.timing, &record.process, &record.energy);
        let samples = t.samples_ns.as_deref().unwrap_or_default();
        let least = samples.iter().copied().reduce(f64::min);
        let most = samples.iter().copied().reduce(f64::max);
        let ends = least.zip(most).map(|(lo, hi)| Interval { lo, hi });
        table.row([
            label(record),
            or_dash(t.median_ns.map(duration_ns)),
            or_dash(spread(record)),
            range(ends, duration_ns),
            samples.len().to_string(),
            seconds(p.cpu_user_s),
            seconds(p.cpu_system_s),
            or_dash(processors(record).map(si)),
            p.peak_memory_bytes.map_or("unknown".into(), bytes),
            match e.joules_per_call {
                None => "unknown".into(),
                some => energy_cell(some.map(joules), e, kind),
            },
            range(interval_per_run(record), joules),
            or_dash(net_per_run(record).map(joules)),
            or_dash(e.avg_power_w.map(si)),
        ]);
    }
    table
}

/// Commands beside the first one; `None` for one alone.
pub(crate) fn versus(records: &[Record]) -> Option<Table> {
    let beside: Vec<&Record> = records.iter().filter(|record| record.versus.versus.is_some()).collect();
    let first = beside.first()?;
    let kind = match first.energy.energy_kind {
        Some(EnergyKind::Modelled) => "joules, modelled",
        _ => "joules",
    };
    let mut table = Table::new([
        ("command\nbeside the first", Align::Left),
        ("of", Align::Left),
        ("ratio", Align::Right),
        ("95 % interval", Align::Right),
        ("pairs", Align::Right),
        ("p", Align::Right),
        ("verdict", Align::Left),
    ]);
    let p = |p: f64| if p < 0.001 { "< 0.001".into() } else { format!("{p:.3}") };
    let pairs = |record: &Record, other: Option<usize>| {
        let own = record.timing.samples_ns.as_ref().map_or(0, Vec::len);
        other.map_or(own, |other| own.min(other)).to_string()
    };
    let of_first = records.first().and_then(|first| first.timing.samples_ns.as_ref()).map(Vec::len);
    for record in beside {
        let (v, j) = (&record.versus, &record.process);
        let row =
            |what: &str, named: String, ratio: Option<f64>, ci: Option<Interval>, p_value, word: &str| {
                let shown = |ratio: f64| format!("{ratio:.3}");
                let how = if ratio.is_some() { pairs(record, of_first) } else { "-".into() };
                [
                    named,
                    what.to_owned(),
                    or_dash(ratio.map(shown)),
                    range(ci, shown),
                    how,
                    or_dash(Option::map(p_value, p)),
                    word.to_owned(),
                ]
            };
        let verdict = v.versus_verdict.map_or("too few runs".into(), |verdict| verdict.to_string());
        table.row(row("time", label(record), v.versus_ratio, v.versus_ci95, v.versus_p_value, &verdict));
        let words = match (j.versus_joules_verdict, record.energy.energies.is_some()) {
            (Some(verdict), _) => energy_word(verdict),
            (None, true) => "not known run by run",
            (None, false) => "unknown",
        };
        table.row(row(
            kind,
            String::new(),
            j.versus_joules_ratio,
            j.versus_joules_ci95,
            j.versus_joules_p_value,
            words,
        ));
    }
    Some(table)
}

/// A verdict on joules.
fn energy_word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Faster => "less energy",
        Verdict::Slower => "more energy",
        Verdict::Same => "same",
        Verdict::Unclear => "unclear",
    }
}

/// What stands below the tables: where joules come from, what they hold, and what made runs noisy.
pub(crate) fn notes(records: &[Record]) -> Vec<String> {
    let mut notes: Vec<String> = Vec::new();
    let mut say = |note: String| {
        if !notes.contains(&note) {
            notes.push(note);
        }
    };
    for record in records {
        let e = &record.energy;
        match (&e.energy_source, e.energy_kind) {
            (Some(source), kind) => {
                let how = match kind {
                    Some(EnergyKind::Measured) => "measured",
                    Some(EnergyKind::Modelled) => "modelled",
                    _ => "unknown",
                };
                // the use of each command stands in the table
                let source = source.split(" Utilisation ").next().unwrap_or_default();
                say(format!("energy: {how}, boundary {}, {source}", text(&e.energy_boundary)));
                if kind == Some(EnergyKind::Modelled) {
                    say("modelled joules follow from time and from the CPU time of the command alone".into());
                }
            }
            _ => say(match &e.energy_unknown {
                Some(reason) => format!("energy: unknown: {}", super::printable(reason)),
                None => "energy: unknown: no meter could tell it; `perjoule doctor` says what would".into(),
            }),
        }
        super::meter_notes(record).into_iter().for_each(&mut say);
        // that of the runs themselves is what everyone expects, and why energy is unknown was said above
        let expected = record.process.energy_runs == Some(EnergyRuns::Timed) || e.energy_unknown.is_some();
        if let Some(config) = record.workload.config.as_ref().filter(|_| !expected) {
            say(format!("{}: {config}", label(record)));
        }
    }
    if records.iter().any(|record| record.energy.energies.as_ref().is_some_and(|list| list.len() > 1)) {
        say("boundaries contain one another or not: joules of different ones are never added".into());
    }
    say("±: half of the 95 % interval of the median; memory: largest resident set of any one process".into());
    if records.iter().any(|record| record.process.peak_memory_bytes.is_none()) {
        let ours = match our_peak() {
            0 => "perjoule's own".into(),
            ours => format!("the {} of perjoule itself", bytes(ours)),
        };
        say(format!(
            "memory is unknown where it is less than {ours}, which the system counts until a command starts"
        ));
    }
    for record in records {
        let throttled = record.throttle_reasons.iter().flatten();
        let list: Vec<&str> =
            throttled.chain(record.disturbances.iter().flatten()).map(String::as_str).collect();
        if !list.is_empty() {
            say(format!("disturbed: {}: {}", label(record), list.join(" and ")));
        }
    }
    super::warning_notes(records).into_iter().for_each(say);
    notes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Style;
    use perjoule_record::{Environment, Kind};

    fn record(name: &str, kind: EnergyKind) -> Record {
        let mut record = Record::new(Kind::Command, &Environment::default());
        record.process.exec_command = Some(name.into());
        record.process.cpu_user_s = Some(1.5);
        record.process.cpu_system_s = Some(0.5);
        record.timing.set_samples(vec![1e9, 1e9, 1e9], 1);
        record.energy.joules = Some(30.0);
        record.energy.net_joules = Some(15.0);
        record.energy.energy_calls = Some(3);
        record.energy.joules_per_call = Some(10.0);
        record.energy.energy_ci95 = Some(Interval { lo: 15.0, hi: 60.0 });
        record.energy.energy_kind = Some(kind);
        record.energy.energy_source = Some("modelled-tdp: a CPU. Utilisation 50.0 %.".into());
        record
    }

    #[test]
    fn figures_are_those_of_a_run() {
        let table = commands(&[record("x", EnergyKind::Modelled)]).render(Style::Plain);
        for part in ["1.00 s", "2.00", "unknown", "10.0 J", "5.00 J..20.0 J", "5.00 J", "modelled"] {
            assert!(table.contains(part), "{part} is not in\n{table}");
        }
        let mixed = [record("x", EnergyKind::Modelled), record("y", EnergyKind::Measured)];
        let mixed = commands(&mixed).render(Style::Plain);
        assert!(mixed.contains("10.0 J (modelled)") && mixed.contains("10.0 J (measured)"), "{mixed}");
    }

    #[test]
    fn how_joules_were_taken_is_said_where_it_is_not_of_the_runs_themselves() {
        let said = |runs: EnergyRuns| {
            let mut record = record("x", EnergyKind::Measured);
            record.process.energy_runs = Some(runs);
            record.workload.config = Some("energy: in some way".into());
            notes(&[record]).contains(&"x: energy: in some way".to_owned())
        };
        assert!(said(EnergyRuns::Repeated) && said(EnergyRuns::Other) && !said(EnergyRuns::Timed));
    }

    #[test]
    fn an_unknown_energy_is_no_number() {
        let mut unknown = record("x", EnergyKind::Modelled);
        unknown.energy = Default::default();
        let table = commands(std::slice::from_ref(&unknown)).render(Style::Plain);
        assert!(table.matches("unknown").count() == 2 && !table.contains(" 0 J"), "{table}");
        assert!(notes(&[unknown]).iter().any(|note| note.contains("perjoule doctor")));
    }

    #[test]
    fn hostile_and_long_names_stay_short_text() {
        let name = format!("a\nb\u{1b}[31m {}", "é".repeat(1000));
        let table = commands(&[record(&name, EnergyKind::Measured)]).render(Style::Plain);
        assert!(!table.contains('\u{1b}') && table.lines().all(|line| line.chars().count() < 220), "{table}");
    }
}
