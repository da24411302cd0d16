//! The list of runs.

use anyhow::Result;
use serde_json::{Value, json};
use std::io::Write;

use super::{Format, HistoryArgs, csv, known, notes, style, version, when};
use crate::cli::Ended;
use crate::history::query::Run;
use crate::report::{Align, Table};

/// The parts of a run in words: `10 kernel (matmul, attention), 2 tokens (llama-3.2-1b)`.
fn contents(run: &Run) -> String {
    const NAMES: usize = 4;
    let part = |(kind, (count, names)): (&String, &(u64, Vec<String>))| {
        let shown: Vec<&str> = names.iter().take(NAMES).map(String::as_str).collect();
        let more = if names.len() > NAMES { ", .." } else { "" };
        let names = if kind == "ceiling" || shown.is_empty() {
            String::new()
        } else {
            format!(" ({}{more})", shown.join(", "))
        };
        format!("{count} {kind}{names}")
    };
    run.kinds.iter().map(part).collect::<Vec<_>>().join(", ")
}

pub(super) fn print(args: &HistoryArgs, runs: &[Run], all: usize) -> Result<Ended> {
    let mut out = anstream::stdout();
    match args.format {
        Format::Table | Format::Md => {
            let mut table = Table::new([
                ("time (UTC)", Align::Left),
                ("version, commit", Align::Left),
                ("machine", Align::Left),
                ("device", Align::Left),
                ("records", Align::Right),
                ("how", Align::Left),
                ("what", Align::Left),
            ]);
            for run in runs {
                let invalid = if run.invalid > 0 {
                    format!("{} of them INVALID: ", run.invalid)
                } else {
                    String::new()
                };
                table.row([
                    when(&run.time),
                    version(&run.version, &run.build),
                    run.machine.clone(),
                    run.devices.join(", "),
                    run.records.to_string(),
                    run.provenance.join(", "),
                    invalid + &contents(run),
                ]);
            }
            write!(out, "{}", table.render(style(args.format)))?;
            let mut lines = Vec::new();
            if runs.len() < all {
                lines.push(format!("{} older runs: --limit 0 lists all {all}", all - runs.len()));
            }
            lines.push("--op, --kernel, --model and --test show how one of these went".into());
            notes(&mut out, args.format, &lines)?;
        }
        Format::Json => {
            let list: Vec<Value> = runs.iter().map(run_json).collect();
            writeln!(
                out,
                "{}",
                serde_json::to_string_pretty(&json!({ "schema": "perjoule.runs/1", "runs": list }))?
            )?;
        }
        Format::Jsonl => {
            for run in runs {
                writeln!(out, "{}", run_json(run))?;
            }
        }
        Format::Csv => {
            let rows = runs.iter().map(|run| {
                let (records, invalid) = (run.records.to_string(), run.invalid.to_string());
                let time = run.time.clone().unwrap_or_default();
                [
                    time,
                    run.name.clone(),
                    run.version.clone(),
                    run.build.clone(),
                    run.machine.clone(),
                    run.devices.join(" "),
                    records,
                    invalid,
                    run.provenance.join(" "),
                    contents(run),
                ]
            });
            let header = [
                "time",
                "run",
                "version",
                "build",
                "machine",
                "devices",
                "records",
                "invalid",
                "provenance",
                "what",
            ];
            out.write_all(&csv(header, rows)?)?;
        }
    }
    out.flush()?;
    Ok(Ended::Done)
}

fn run_json(run: &Run) -> Value {
    let kinds: serde_json::Map<String, Value> = run
        .kinds
        .iter()
        .map(|(kind, (count, names))| (kind.clone(), json!({ "records": count, "of": names })))
        .collect();
    json!({
        "time": run.time,
        "run": run.name,
        "version": known(&run.version),
        "build": known(&run.build),
        "machine": known(&run.machine),
        "devices": run.devices,
        "records": run.records,
        "invalid": run.invalid,
        "provenance": run.provenance,
        "kinds": kinds,
    })
}
