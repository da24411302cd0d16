//! `perjoule history`: runs, and the trend of a kernel or model over commits and machines.

mod runs;
mod trends;

use anyhow::{Result, bail, ensure};
use clap::{Args, ValueEnum};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::Ended;
use super::output::{RESULTS, WIDTH, wrap};
use crate::history::facts::Metric;
use crate::history::index::Sources;
use crate::history::query::{Selection, parse_time};
use crate::inputs;
use crate::report::{Style, markdown, printable};

pub(super) const EXAMPLES: &str = "Examples:
  perjoule history                                        the newest runs in results/
  perjoule history --op matmul --shape m=1 --dtype bf16   how fast its kernels were, commit by commit
  perjoule history --model llama-3.2-1b --test tg128 --metric joules
  perjoule history --since 30d --kind tokens --format csv
  perjoule history --kind command --metric time           what `perjoule exec` ran
  perjoule history results theirs.md --model llama

Measured, imported and modelled results are series of their own. The index is kept as results/.perjoule-index.sqlite, or in the
user's cache folder; it may be deleted at any time.";

/// Runs, and records of a series, that tables show where --limit does not say.
const LIMIT: usize = 20;

/// `--kind`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// What the device can do at most
    Ceiling,
    /// Single ops
    Kernel,
    /// Whole models
    Tokens,
    /// What is not counted in tokens, of other tools
    Samples,
    /// Commands that `perjoule exec` ran
    Command,
}

/// What stdout of `perjoule history` carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Tables for people
    Table,
    /// Tables in Markdown
    Md,
    /// One JSON object
    Json,
    /// A JSON object a run, or a record
    Jsonl,
    /// Comma-separated values, a line a run, or a record
    Csv,
}

#[derive(Debug, Args)]
pub(crate) struct HistoryArgs {
    /// Files of records or of other tools' results, folders of them (*.jsonl), or - for stdin
    #[arg(value_name = "FILES", default_value = RESULTS)]
    files: Vec<PathBuf>,
    /// Follow this op
    #[arg(long, help_heading = "What is followed")]
    op: Option<String>,
    /// Follow kernels whose name holds this
    #[arg(long, value_name = "NAME", help_heading = "What is followed")]
    kernel: Option<String>,
    /// Follow shapes with these sizes, such as m=1,k=4096
    #[arg(long, value_name = "NAME=N,..", help_heading = "What is followed")]
    shape: Option<String>,
    /// Follow this element type
    #[arg(long, value_name = "TYPE", help_heading = "What is followed")]
    dtype: Option<String>,
    /// Follow models whose name holds this
    #[arg(long, value_name = "NAME", help_heading = "What is followed")]
    model: Option<String>,
    /// Follow this test, such as pp512 or tg128
    #[arg(long, help_heading = "What is followed")]
    test: Option<String>,
    /// The figure [default: tokens/s of models, time of kernels, the rate of ceilings]
    #[arg(long, value_enum, help_heading = "What is followed")]
    metric: Option<Metric>,
    /// Only this kind of results
    #[arg(long, value_enum, help_heading = "Where and when")]
    kind: Option<Kind>,
    /// Only devices whose id holds this
    #[arg(long, value_name = "ID", help_heading = "Where and when")]
    device: Option<String>,
    /// Only machines whose processor or device has this in its name
    #[arg(long, value_name = "NAME", help_heading = "Where and when")]
    machine: Option<String>,
    /// From this time on: 2026-11-25, 2026-11-25T07:36 (UTC), or an age such as 7d
    #[arg(long, value_name = "TIME", help_heading = "Where and when")]
    since: Option<String>,
    /// Up to this time
    #[arg(long, value_name = "TIME", help_heading = "Where and when")]
    until: Option<String>,
    /// The newest runs, or records of each series; 0 for all [default: 20 in tables]
    #[arg(long, value_name = "N", help_heading = "Output")]
    limit: Option<usize>,
    /// What stdout carries
    #[arg(long, value_enum, default_value = "table", help_heading = "Output")]
    format: Format,
    /// Make the index anew
    #[arg(long, help_heading = "Output")]
    rebuild: bool,
}

pub(super) fn run(args: &HistoryArgs) -> Result<Ended> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let time =
        |flag: &str, text: &Option<String>| text.as_deref().map(|t| parse_time(flag, t, now)).transpose();
    let selection = Selection {
        kind: args.kind.map(|kind| match kind {
            Kind::Ceiling => "ceiling",
            Kind::Kernel => "kernel",
            Kind::Tokens => "tokens",
            Kind::Samples => "samples",
            Kind::Command => "command",
        }),
        op: args.op.clone(),
        kernel: args.kernel.clone(),
        shape: args.shape.clone(),
        dtype: args.dtype.clone(),
        model: args.model.clone(),
        test: args.test.clone(),
        device: args.device.clone(),
        machine: args.machine.clone(),
        since: time("--since", &args.since)?,
        until: time("--until", &args.until)?,
    };
    if args.files == [Path::new(RESULTS)] && !Path::new(RESULTS).exists() {
        bail!("there is no folder {RESULTS}: `perjoule run` makes records in it; or name files and folders");
    }
    let sources = Sources::find(&args.files)?;
    let followed = [&args.op, &args.kernel, &args.shape, &args.dtype, &args.model, &args.test];
    if args.metric.is_some() || followed.iter().any(|flag| flag.is_some()) {
        let (found, problems) =
            sources.ask(args.rebuild, |index| Ok((index.series(&selection)?, index.problems()?)))?;
        problems.iter().for_each(|(file, texts)| inputs::warn(file, texts));
        return trends::print(args, &trends::trends(found, args.metric)?);
    }
    let (mut runs, problems) =
        sources.ask(args.rebuild, |index| Ok((index.runs(&selection)?, index.problems()?)))?;
    problems.iter().for_each(|(file, texts)| inputs::warn(file, texts));
    ensure!(
        !runs.is_empty(),
        "no record matches; `perjoule history` without a selection lists the runs there are"
    );
    let all = runs.len();
    runs.truncate(limit(args).unwrap_or(all));
    runs::print(args, &runs, all)
}

/// How many are shown; all where there is none.
fn limit(args: &HistoryArgs) -> Option<usize> {
    let tables = matches!(args.format, Format::Table | Format::Md);
    args.limit.or(tables.then_some(LIMIT)).filter(|n| *n > 0)
}

fn style(format: Format) -> Style {
    match format {
        Format::Md => Style::Markdown,
        _ if std::io::stdout().is_terminal() => Style::Colour,
        _ => Style::Plain,
    }
}

/// `2026-11-25 07:36:12`, as far as it is known.
fn when(time: &Option<String>) -> String {
    time.as_deref()
        .map_or("unknown".into(), |time| time.replacen('T', " ", 1).trim_end_matches('Z').to_owned())
}

fn version(version: &str, build: &str) -> String {
    let words: Vec<&str> = [version, build].into_iter().filter(|word| !word.is_empty()).collect();
    if words.is_empty() { "unknown".into() } else { words.join(" ") }
}

fn known(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

fn csv<const N: usize>(header: [&str; N], rows: impl Iterator<Item = [String; N]>) -> Result<Vec<u8>> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(header)?;
    for row in rows {
        writer.write_record(&row)?;
    }
    writer.into_inner().map_err(|error| anyhow::anyhow!("{}", error.error()))
}

fn notes(out: &mut impl Write, format: Format, notes: &[String]) -> Result<()> {
    for note in notes {
        if format == Format::Md {
            writeln!(out, "\n* {}", markdown(note))?;
            continue;
        }
        for (i, line) in wrap(&printable(note), WIDTH).iter().enumerate() {
            writeln!(out, "{}{line}", if i == 0 { " " } else { "   " })?;
        }
    }
    Ok(())
}
