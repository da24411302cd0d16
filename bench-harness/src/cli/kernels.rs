//! `perjoule kernels`: the table of a device, and how one shape chooses from it.

use anyhow::Result;
use perjoule::{DType, Kernel};
use serde_json::{Value, json};
use std::io::Write;

use super::args::KernelsArgs;
use super::{Ended, open};
use crate::ops;
use crate::report::{Align, Style, Table, units};
use perjoule_engine::launches::fresh;

pub(crate) fn run(args: &KernelsArgs) -> Result<Ended> {
    let device = open(&args.device, None)?;
    let entry = args.op.as_deref().map(ops::find).transpose()?;
    let mut out = anstream::stdout();
    let Some((entry, true)) = entry.map(|e| (e, args.shape.is_some() || args.dtype.is_some())) else {
        let rows = device.kernels();
        let rows: Vec<&Kernel> =
            rows.iter().copied().filter(|row| entry.is_none_or(|e| e.name == row.op)).collect();
        if args.json {
            writeln!(
                out,
                "{}",
                serde_json::to_string_pretty(&rows.iter().map(|r| listed(r)).collect::<Vec<_>>())?
            )?;
            return Ok(Ended::Done);
        }
        let mut table = Table::new([
            ("kernel", Align::Left),
            ("op", Align::Left),
            ("configs", Align::Left),
            ("packs", Align::Left),
        ]);
        for row in &rows {
            let name = if row.vendor { format!("{} (vendor)", row.name) } else { row.name.into() };
            table.row([name, row.op.into(), configs(row).join(" "), packs(row).join(" ")]);
        }
        write!(out, "{}", table.render(Style::Plain))?;
        match entry {
            Some(entry) => writeln!(out, "\n{} takes --shape {}", entry.name, entry.usage())?,
            None => writeln!(out, "\n{} rows; with --op and --shape: which is chosen, and why", rows.len())?,
        }
        return Ok(Ended::Done);
    };

    let sizes = entry.sizes(args.shape.as_deref().unwrap_or(""))?;
    let dtype = args.dtype.unwrap_or(DType::F32);
    let op = entry.build(&sizes, dtype, &**device.backend())?;
    let verdicts = device.explain(fresh(&device, &op))?;
    let chosen = device.select(fresh(&device, &op), &[]).ok();
    let is_chosen = |v: &perjoule::kernels::Verdict| {
        chosen.is_some_and(|c| {
            c.kernel.name == v.choice.kernel.name && c.config == v.choice.config && c.pack == v.choice.pack
        })
    };
    if args.json {
        let list: Vec<Value> = verdicts
            .iter()
            .map(|v| {
                let mut row = listed(v.choice.kernel);
                row["config"] = v.choice.kernel.configs[v.choice.config].name.into();
                row["pack"] = v.choice.pack.map(|p| p.name).into();
                row["chosen"] = is_chosen(v).into();
                row["cost_s"] = v.outcome.as_ref().ok().map(|c| c.seconds).into();
                row["cost_measured"] = v.outcome.as_ref().ok().map(|c| c.measured).into();
                row["refusal"] = v.outcome.as_ref().err().map(ToString::to_string).into();
                row
            })
            .collect();
        writeln!(out, "{}", serde_json::to_string_pretty(&list)?)?;
        return Ok(Ended::Done);
    }
    writeln!(out, "{} {dtype} {sizes} on {}", entry.name, args.device)?;
    let (flops, bytes) = (units::count(op.flops()), units::bytes(op.bytes()));
    writeln!(out, "{flops} operations, at least {bytes} moved\n")?;
    let mut table = Table::new([
        ("", Align::Left),
        ("kernel", Align::Left),
        ("config, pack", Align::Left),
        ("cost or reason", Align::Left),
    ]);
    for v in &verdicts {
        let config = v.choice.kernel.configs[v.choice.config].name;
        let pack = v.choice.pack.map_or(String::new(), |p| format!(", {}", p.name));
        let why = match &v.outcome {
            Ok(cost) => {
                let how = if cost.measured { "measured" } else { "predicted" };
                let vendor = if v.choice.kernel.vendor { ", vendor's: only by name" } else { "" };
                format!("{} {how}{vendor}", units::duration_ns(f64::from(cost.seconds) * 1e9))
            }
            Err(reason) => format!("refuses: {reason}"),
        };
        let mark = if is_chosen(v) { "*" } else { "" };
        table.row([mark.into(), v.choice.kernel.name.into(), format!("{config}{pack}"), why]);
    }
    write!(out, "{}", table.render(Style::Plain))?;
    if chosen.is_none() {
        writeln!(out, "\nno kernel of {} runs this op in {dtype}", args.device)?;
    }
    Ok(Ended::Done)
}

fn configs(row: &Kernel) -> Vec<&'static str> {
    row.configs.iter().map(|config| config.name).collect()
}

fn packs(row: &Kernel) -> Vec<&'static str> {
    row.packs.iter().map(|pack| pack.name).collect()
}

fn listed(row: &Kernel) -> Value {
    json!({
        "kernel": row.name,
        "op": row.op,
        "configs": configs(row),
        "packs": packs(row),
        "vendor": row.vendor,
    })
}
