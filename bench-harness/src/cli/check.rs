//! `perjoule check`: the conformance suite on this machine's kernels.

use anyhow::{Result, ensure};
use perjoule_suite::{Filter, Outcome, Scope, Summary, check, subjects};
use serde_json::json;
use std::io::Write;
use std::time::Duration;

use super::args::CheckArgs;
use super::{Ended, open, progress};
use crate::measure::interrupted;
use crate::report::{Align, Style, Table};

/// Seconds that a sample of the cases takes at most.
const BUDGET: f64 = 540.0;
/// Failures that are printed in full.
const SHOWN: usize = 5;

pub(crate) fn run(args: &CheckArgs) -> Result<Ended> {
    let device = open(&args.device, args.threads)?;
    let backend = &**device.backend();
    if let Some(op) = &args.op {
        crate::ops::find(op)?;
    }
    let list = |value: &Option<String>| value.iter().cloned().collect::<Vec<_>>();
    let filter = Filter { ops: list(&args.op), kernels: list(&args.kernel), cases: list(&args.case) };
    let rows = subjects(backend).iter().filter(|choice| filter.takes(choice)).count();
    ensure!(rows > 0, "no kernel of {} matches; `perjoule kernels` lists them", args.device);
    let budget = Some(Duration::from_secs_f64(args.budget.unwrap_or(BUDGET)));
    let (scope, budget) = if args.full { (Scope::Full, None) } else { (Scope::Sample, budget) };
    let bar = progress::bar(0, args.quiet);
    bar.set_style(indicatif::ProgressStyle::default_spinner());
    let (mut done, mut failed) = (0u64, 0u64);
    let summary = check(backend, &filter, scope, budget, &mut |choice, _, outcome| {
        done += 1;
        failed += u64::from(matches!(outcome, Outcome::Failed(_)));
        bar.set_message(format!("{done} cases, {failed} failed: {}", choice.kernel.name));
        !interrupted()
    });
    bar.finish_and_clear();
    ensure!(
        interrupted() || summary.passed() + summary.failures().count() > 0,
        "no case was run: every row refuses, or --case names none"
    );
    let mut out = anstream::stdout();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&as_json(&summary))?)?;
    } else {
        write!(out, "{}", table(&summary).render(Style::Plain))?;
        for failure in summary.failures().take(SHOWN) {
            writeln!(out, "\nFAILED {failure}")?;
        }
        writeln!(
            out,
            "\nof allowed: 100 % is the tolerance itself, which rounding to the output type alone can reach"
        )?;
        let (passed, failed, left) = (summary.passed(), summary.failures().count(), summary.left());
        let rest =
            if left > 0 { format!(", {left} left out for time (--full runs them)") } else { String::new() };
        writeln!(out, "\n{passed} cases passed, {failed} failed{rest}, on {}", args.device)?;
    }
    if interrupted() {
        return Ok(Ended::Interrupted);
    }
    Ok(if summary.is_ok() { Ended::Done } else { Ended::Failed })
}

fn table(summary: &Summary) -> Table {
    let mut table = Table::new([
        ("kernel, config, pack", Align::Left),
        ("cases", Align::Right),
        ("failed", Align::Right),
        ("worst error\nof allowed", Align::Right),
        ("", Align::Left),
    ]);
    for row in &summary.rows {
        let config = row.choice.kernel.configs[row.choice.config].name;
        let pack = row.choice.pack.map_or(String::new(), |pack| format!(" {}", pack.name));
        let note = match &row.refusal {
            _ if row.idle().is_some() => format!("FAILED: {}", row.idle().unwrap_or_default()),
            Some(reason) => format!("not run: {reason}"),
            None if !row.failures.is_empty() => "FAILED".into(),
            None => row.skipped.as_ref().map_or(String::new(), |(count, _)| format!("{count} skipped")),
        };
        let ran = row.passed + row.failures.len();
        let worst = if row.passed > 0 { format!("{:.0} %", 100.0 * row.worst) } else { "-".into() };
        let name = format!("{} {config}{pack}", row.choice.kernel.name);
        table.row([name, ran.to_string(), row.failures.len().to_string(), worst, note]);
    }
    table
}

fn as_json(summary: &Summary) -> serde_json::Value {
    let rows: Vec<_> = summary
        .rows
        .iter()
        .map(|row| {
            json!({
                "kernel": row.choice.kernel.name,
                "op": row.choice.kernel.op,
                "config": row.choice.kernel.configs[row.choice.config].name,
                "pack": row.choice.pack.map(|pack| pack.name),
                "passed": row.passed,
                "failed": row.failures.len(),
                "skipped": row.skipped.as_ref().map_or(0, |(count, _)| *count),
                "idle": row.idle(),
                "left": row.left,
                "worst_error_of_allowed": row.worst,
                "refusal": row.refusal.as_ref().map(ToString::to_string),
                "failures": row.failures.iter().map(ToString::to_string).collect::<Vec<_>>(),
            })
        })
        .collect();
    json!({ "passed": summary.is_ok(), "rows": rows })
}
