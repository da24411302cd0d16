//! `perjoule export`: records in the formats of other tools.

use anyhow::{Result, anyhow, ensure};
use clap::Args;
use perjoule_formats::{Format, export};
use perjoule_record::Record;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::output::{Reasons, count_reason, csv_lines};
use super::{Ended, atomic};
use crate::inputs;

pub(super) const EXAMPLES: &str = "Formats:
  llama-bench-md, -json, -jsonl, -csv, -sql   what llama-bench prints, for tokens
  hyperfine                                   hyperfine --export-json
  bencher                                     Bencher Metric Format
  github-action-benchmark                     customSmallerIsBetter: times and joules (the same as github-action-smaller)
  github-action-bigger                        customBiggerIsBetter: rates
  openmetrics                                 the last run as gauges, for Prometheus
  jsonl, csv                                  perjoule's records

Examples:
  perjoule export results --to llama-bench-md
  perjoule export new.jsonl --to bencher -o bench.json
  perjoule export results --to llama-bench-sql | sqlite3 bench.sqlite";

#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// Files of records or of other tools' results, folders of them (*.jsonl), or - for stdin
    #[arg(required = true, value_name = "FILES")]
    files: Vec<PathBuf>,
    /// The format, see below
    #[arg(long, value_name = "FORMAT", value_parser = target)]
    to: To,
    /// Write to this file, whole or not at all; - for stdout
    #[arg(short = 'o', long, value_name = "FILE|-", default_value = "-")]
    output: PathBuf,
    /// Only warnings
    #[arg(long)]
    quiet: bool,
}

/// What records are written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum To {
    Csv,
    Foreign(Format),
}

fn target(name: &str) -> Result<To> {
    match name {
        "csv" => return Ok(To::Csv),
        "jsonl" => return Ok(To::Foreign(Format::Perjoule)),
        "github-action-benchmark" => return Ok(To::Foreign(Format::ActionSmaller)),
        _ => {}
    }
    let found = name.parse::<Format>().ok().filter(|format| Format::EXPORTED.contains(format));
    found.map(To::Foreign).ok_or_else(|| {
        let known = Format::EXPORTED.iter().map(|format| format.name()).filter(|name| *name != "perjoule");
        anyhow!("expected one of {}, jsonl, csv", known.collect::<Vec<_>>().join(", "))
    })
}

pub(super) fn run(args: &ExportArgs) -> Result<Ended> {
    let mut records = Vec::new();
    for path in &args.files {
        for file in inputs::files(path)? {
            let input = inputs::read(&file)?;
            input.warn();
            records.extend(input.records);
        }
    }
    ensure!(!records.is_empty(), "there are no records to export");
    let (text, reasons) = text(&records, args.to)?;
    let left_out: u64 = reasons.iter().map(|(_, n)| n).sum();
    for (reason, n) in &reasons {
        eprintln!("warning: {n} of {} records left out: {reason}", records.len());
    }
    ensure!(
        (left_out as usize) < records.len(),
        "nothing of these {} records can be written in this format",
        records.len()
    );
    if args.output == Path::new("-") {
        let mut out = std::io::stdout().lock();
        out.write_all(&text)?;
        out.flush()?;
        return Ok(Ended::Done);
    }
    atomic::write(&args.output, &text)?;
    if !args.quiet {
        let n = records.len() as u64 - left_out;
        eprintln!("{n} record{} in {}", if n == 1 { "" } else { "s" }, args.output.display());
    }
    Ok(Ended::Done)
}

/// The records in the format, and why some are not in it, each reason with how often.
fn text(records: &[Record], to: To) -> Result<(Vec<u8>, Reasons)> {
    let format = match to {
        To::Foreign(format) => format,
        To::Csv => {
            let mut text = Vec::new();
            for (i, record) in records.iter().enumerate() {
                let (header, row) = csv_lines(record)?;
                text.extend(if i == 0 { [header, row].concat() } else { row });
            }
            return Ok((text, Vec::new()));
        }
    };
    let exported = export(records, format)?;
    let mut reasons = Vec::new();
    // a record with several figures is left out once
    let mut last = None;
    for omission in exported.left_out {
        if last.replace(omission.index) != Some(omission.index) {
            count_reason(&mut reasons, omission.reason);
        }
    }
    Ok((exported.text.into_bytes(), reasons))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_that_is_written_has_a_name() {
        for format in Format::EXPORTED {
            assert_eq!(target(format.name()).unwrap(), To::Foreign(*format));
        }
        assert_eq!(target("jsonl").unwrap(), To::Foreign(Format::Perjoule));
        for name in ["mlperf-csv", "xml", ""] {
            assert!(target(name).unwrap_err().to_string().contains("llama-bench-sql"), "{name}");
        }
    }
}
