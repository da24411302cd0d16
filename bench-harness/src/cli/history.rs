//! `perjoule history`: runs, and the trend of a kernel or model over commits and machines.

use anyhow::{Result, bail, ensure};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::Ended;
use super::output::{RESULTS, WIDTH, wrap};
use crate::compare::regression::{FAIL_ON, percent};
use crate::compare::row::Quantity;
use crate::history::facts::{Metric, Series};
use crate::history::index::Sources;
use crate::history::query::{Point, Run, Selection, parse_time};
use crate::history::trend::{Change, change, sparkline};
use crate::inputs;
use crate::report::units::{duration_ns, joules, si};
use crate::report::{Align, Style, Table, markdown, printable};

pub(super) const EXAMPLES: &str = "Examples:
  perjoule history                                        the newest runs in results/
  perjoule history --op matmul --shape m=1 --dtype bf16   how fast its kernels were, commit by commit
  perjoule history --model llama-3.2-1b --test tg128 --metric joules
  perjoule history --since 30d --kind tokens --format csv
  perjoule history results theirs.md --model llama

Measured, imported and modelled results are series of their own. The index is kept as results/.perjoule-index.sqlite, or in the
user's cache folder; it may be deleted at any time.";

/// Runs, and records of a series, that tables show where --limit does not say.
const LIMIT: usize = 20;
/// Up to so many different measurements, each has a table.
const FEW: usize = 6;
/// Series of a summary that are shown.
const SHOWN: usize = 200;

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
    let time = |flag: &str, text: &Option<String>| text.as_deref().map(|t| parse_time(flag, t, now)).transpose();
    let selection = Selection {
        kind: args.kind.map(|kind| match kind {
            Kind::Ceiling => "ceiling",
            Kind::Kernel => "kernel",
            Kind::Tokens => "tokens",
            Kind::Samples => "samples",
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
        let trends = trends(found, args.metric)?;
        return trends_out(args, &trends);
    }
    let (mut runs, problems) =
        sources.ask(args.rebuild, |index| Ok((index.runs(&selection)?, index.problems()?)))?;
    problems.iter().for_each(|(file, texts)| inputs::warn(file, texts));
    ensure!(!runs.is_empty(), "no record matches; `perjoule history` without a selection lists the runs there are");
    let all = runs.len();
    runs.truncate(limit(args).unwrap_or(all));
    runs_out(args, &runs, all)
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
    time.as_deref().map_or("unknown".into(), |time| time.replacen('T', " ", 1).trim_end_matches('Z').to_owned())
}

fn version(version: &str, build: &str) -> String {
    let words: Vec<&str> = [version, build].into_iter().filter(|word| !word.is_empty()).collect();
    if words.is_empty() { "unknown".into() } else { words.join(" ") }
}

// ---- runs

/// The parts of a run in words: `10 kernel (matmul, attention), 2 tokens (llama-3.2-1b)`.
fn contents(run: &Run) -> String {
    const NAMES: usize = 4;
    let part = |(kind, (count, names)): (&String, &(u64, Vec<String>))| {
        let shown: Vec<&str> = names.iter().take(NAMES).map(String::as_str).collect();
        let more = if names.len() > NAMES { ", .." } else { "" };
        let names = if kind == "ceiling" || shown.is_empty() { String::new() } else { format!(" ({}{more})", shown.join(", ")) };
        format!("{count} {kind}{names}")
    };
    run.kinds.iter().map(part).collect::<Vec<_>>().join(", ")
}

fn runs_out(args: &HistoryArgs, runs: &[Run], all: usize) -> Result<Ended> {
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
                let invalid = if run.invalid > 0 { format!("{} of them INVALID: ", run.invalid) } else { String::new() };
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
            let mut notes = Vec::new();
            if runs.len() < all {
                notes.push(format!("{} older runs: --limit 0 lists all {all}", all - runs.len()));
            }
            notes.push("--op, --kernel, --model and --test show how one of these went".into());
            self::notes(&mut out, args.format, &notes)?;
        }
        Format::Json => {
            let list: Vec<Value> = runs.iter().map(run_json).collect();
            writeln!(out, "{}", serde_json::to_string_pretty(&json!({ "schema": "perjoule.runs/1", "runs": list }))?)?;
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
                "time", "run", "version", "build", "machine", "devices", "records", "invalid", "provenance", "what",
            ];
            out.write_all(&csv(header, rows)?)?;
        }
    }
    out.flush()?;
    Ok(Ended::Done)
}

fn known(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
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

// ---- trends

/// A series and the figure of it that is followed.
struct Trend {
    series: Series,
    metric: Metric,
    points: Vec<(Point, Option<Quantity>, Option<Change>)>,
}

/// The series that have what is asked for, each record beside the valid one before.
fn trends(found: Vec<(Series, Vec<Point>)>, metric: Option<Metric>) -> Result<Vec<Trend>> {
    ensure!(!found.is_empty(), "no record matches; `perjoule history` lists the runs there are");
    let records: usize = found.iter().map(|(_, points)| points.len()).sum();
    let usable = |point: &Point, metric| point.figures.get(metric).filter(|_| point.invalid.is_none());
    let mut list = Vec::new();
    for (series, points) in found {
        let usual = Metric::usual(&series.kind);
        let has = |metric: &&Metric| points.iter().any(|point| usable(point, **metric).is_some());
        let metric = match metric {
            Some(metric) if has(&&metric) => metric,
            Some(_) => continue,
            // where every record is invalid, they are shown as that
            None => *usual.iter().find(has).unwrap_or(&usual[0]),
        };
        let mut before: Option<Quantity> = None;
        let points = points.into_iter().map(|point| {
            let value = usable(&point, metric);
            let change = before.zip(value).map(|(old, new)| change(metric, old, new));
            before = value.or(before);
            (point, value, change)
        });
        let points = points.collect();
        list.push(Trend { series, metric, points });
    }
    if let (true, Some(metric)) = (list.is_empty(), metric) {
        bail!("none of the {records} records that match has a figure for --metric {}: it is unknown", metric.name());
    }
    Ok(list)
}

impl Trend {
    fn show(&self, value: f64) -> String {
        match self.metric {
            Metric::Time => duration_ns(value),
            Metric::Joules => joules(value),
            _ => si(value),
        }
    }

    fn unit(&self) -> String {
        match self.metric {
            Metric::Tokens => self.series.unit.clone(),
            Metric::Time => "time of a call".into(),
            Metric::Joules => format!("J/{}", self.series.joules_per()),
            Metric::Gflops => "GFLOP/s".into(),
            Metric::Gbps => "GB/s".into(),
        }
    }

    fn values(&self) -> Vec<f64> {
        self.points.iter().filter_map(|(_, value, _)| Some(value.as_ref()?.value)).collect()
    }

    fn interval(&self, value: Option<Quantity>) -> String {
        let ends = value.and_then(|value| value.interval);
        ends.map_or("-".into(), |[low, high]| format!("{}..{}", self.show(low), self.show(high)))
    }

    /// The last change, and the record that it belongs to.
    fn last(&self) -> Option<Change> {
        self.points.iter().rev().find_map(|(_, value, change)| value.map(|_| *change))?
    }

    /// Where it is shown: what must be looked at first.
    fn rank(&self) -> u8 {
        match self.last().map(|change| change.word) {
            Some("slower" | "more") => 0,
            Some("faster" | "less") => 1,
            Some("unclear") => 2,
            _ => 3,
        }
    }
}

fn signed(change: Option<Change>) -> String {
    change.map_or("-".into(), |change| format!("{:+.1} %", 100.0 * (change.ratio - 1.0)))
}

fn word(change: Option<Change>) -> String {
    change.map_or("-".into(), |change| change.word.into())
}

fn trends_out(args: &HistoryArgs, trends: &[Trend]) -> Result<Ended> {
    let mut out = anstream::stdout();
    let newest = |trend: &Trend| trend.points.len() - limit(args).unwrap_or(usize::MAX).min(trend.points.len());
    match args.format {
        Format::Table | Format::Md => {
            let mut whats: Vec<(&str, Metric)> = Vec::new();
            for trend in trends {
                if !whats.contains(&(&trend.series.what, trend.metric)) {
                    whats.push((&trend.series.what, trend.metric));
                }
                if whats.len() > FEW {
                    break;
                }
            }
            if whats.len() > FEW {
                summary(&mut out, args.format, trends)?;
            } else {
                for (what, metric) in whats {
                    let of = |trend: &&Trend| (trend.series.what.as_str(), trend.metric) == (what, metric);
                    section(&mut out, args.format, &trends.iter().filter(of).collect::<Vec<_>>(), newest)?;
                }
            }
            notes(&mut out, args.format, &remarks(trends))?;
        }
        Format::Json => {
            let list: Vec<Value> = trends
                .iter()
                .map(|trend| {
                    let mut value = series_json(trend);
                    let points = &trend.points[newest(trend)..];
                    value["points"] = points.iter().map(|point| point_json(trend, point)).collect();
                    value
                })
                .collect();
            let value = json!({ "schema": "perjoule.history/1", "threshold": FAIL_ON, "series": list });
            writeln!(out, "{}", serde_json::to_string_pretty(&value)?)?;
        }
        Format::Jsonl => {
            for trend in trends {
                for point in &trend.points[newest(trend)..] {
                    let mut value = series_json(trend);
                    if let (Some(all), Value::Object(own)) = (value.as_object_mut(), point_json(trend, point)) {
                        all.extend(own);
                    }
                    writeln!(out, "{value}")?;
                }
            }
        }
        Format::Csv => {
            let points = trends
                .iter()
                .flat_map(|trend| trend.points[newest(trend)..].iter().map(move |point| (trend, point)));
            let rows = points.map(|(trend, (point, value, change))| {
                let number = |x: Option<f64>| x.map(|x| x.to_string()).unwrap_or_default();
                let ends = value.and_then(|value| value.interval);
                let joules = point.figures.get(Metric::Joules).filter(|_| point.invalid.is_none());
                [
                    trend.series.what.clone(),
                    trend.series.provenance.clone(),
                    trend.series.machine.clone(),
                    point.time.clone().unwrap_or_default(),
                    point.run.clone(),
                    point.version.clone(),
                    point.build.clone(),
                    trend.metric.name().into(),
                    trend.unit(),
                    number(value.map(|value| value.value)),
                    number(ends.map(|ends| ends[0])),
                    number(ends.map(|ends| ends[1])),
                    number(change.map(|change| change.ratio)),
                    change.map(|change| change.word.to_owned()).unwrap_or_default(),
                    number(joules.map(|joules| joules.value)),
                    point.figures.energy_kind.clone(),
                    point.figures.energy_boundary.clone().unwrap_or_default(),
                    point.invalid.clone().unwrap_or_default(),
                    point.file.clone(),
                ]
            });
            let header = [
                "what", "provenance", "machine", "time", "run", "version", "build", "metric", "unit", "value", "low",
                "high", "ratio", "verdict", "joules", "energy_kind", "energy_boundary", "invalid", "file",
            ];
            out.write_all(&csv(header, rows)?)?;
        }
    }
    out.flush()?;
    Ok(Ended::Done)
}

fn heading(out: &mut impl Write, format: Format, title: &str) -> Result<()> {
    match format {
        Format::Md => writeln!(out, "## {}\n", markdown(title))?,
        _ => writeln!(out, "\u{1b}[1m{}\u{1b}[0m", printable(title))?,
    }
    Ok(())
}

/// One measurement on every machine: a table, and a line of blocks for each series.
fn section(
    out: &mut impl Write,
    format: Format,
    trends: &[&Trend],
    newest: impl Fn(&Trend) -> usize,
) -> Result<()> {
    let Some(first) = trends.first() else { return Ok(()) };
    heading(out, format, &first.series.what)?;
    let (value, energy) = (first.unit(), format!("J/{}", first.series.joules_per()));
    let mut table = Table::new([
        ("time (UTC)", Align::Left),
        ("version, commit", Align::Left),
        ("machine", Align::Left),
        ("how", Align::Left),
        (value.as_str(), Align::Right),
        ("95 % interval", Align::Right),
        ("change", Align::Right),
        ("verdict", Align::Left),
        (energy.as_str(), Align::Right),
        ("energy", Align::Left),
    ]);
    let mut lines = Vec::new();
    for trend in trends {
        let from = newest(trend);
        for (point, value, change) in &trend.points[from..] {
            let energy = point.figures.get(Metric::Joules).filter(|_| point.invalid.is_none());
            let boundary = point.figures.energy_boundary.as_deref().unwrap_or("unknown");
            table.row([
                when(&point.time),
                version(&point.version, &point.build),
                trend.series.machine.clone(),
                trend.series.provenance.clone(),
                value.map_or("-".into(), |value| trend.show(value.value)),
                trend.interval(*value),
                signed(*change),
                match &point.invalid {
                    Some(why) => format!("INVALID: {why}"),
                    None => word(*change),
                },
                energy.map_or("-".into(), |energy| joules(energy.value)),
                energy.map_or("unknown".into(), |_| format!("{}, {boundary}", point.figures.energy_kind)),
            ]);
        }
        let values = trend.values();
        let ends = [f64::min, f64::max].map(|end| values.iter().copied().reduce(end));
        if let (true, [Some(least), Some(most)]) = (values.len() > 1, ends) {
            let older = if from > 0 { format!("; {from} older ones are not in the table") } else { String::new() };
            lines.push(format!(
                "{}  {} to {}, {} {} on {}, oldest first{older}",
                sparkline(&values),
                trend.show(least),
                trend.show(most),
                values.len(),
                trend.series.provenance,
                trend.series.machine
            ));
        }
    }
    write!(out, "{}", table.render(style(format)))?;
    notes(out, format, &lines)?;
    writeln!(out)?;
    Ok(())
}

/// Many series: a line for each.
fn summary(out: &mut impl Write, format: Format, trends: &[Trend]) -> Result<()> {
    let mut table = Table::new([
        ("what", Align::Left),
        ("machine", Align::Left),
        ("how", Align::Left),
        ("records", Align::Right),
        ("newest", Align::Right),
        ("95 % interval", Align::Right),
        ("change", Align::Right),
        ("verdict", Align::Left),
        ("oldest to newest", Align::Left),
    ]);
    let mut order: Vec<&Trend> = trends.iter().collect();
    order.sort_by_key(|trend| trend.rank());
    for trend in order.iter().take(SHOWN) {
        let newest = trend.points.iter().rev().find_map(|(_, value, _)| *value);
        let unit = match trend.metric {
            Metric::Time | Metric::Joules => String::new(),
            _ => format!(" {}", trend.unit()),
        };
        table.row([
            trend.series.what.clone(),
            trend.series.machine.clone(),
            trend.series.provenance.clone(),
            trend.points.len().to_string(),
            newest.map_or("-".into(), |value| trend.show(value.value) + &unit),
            trend.interval(newest),
            signed(trend.last()),
            word(trend.last()),
            sparkline(&trend.values()),
        ]);
    }
    write!(out, "{}", table.render(style(format)))?;
    let mut lines = Vec::new();
    if order.len() > SHOWN {
        lines.push(format!("{} more series: --format csv or json has all", order.len() - SHOWN));
    }
    lines.push("a selection of fewer (--kernel, --shape, --dtype, --test) has a table for each".into());
    notes(out, format, &lines)
}

fn remarks(trends: &[Trend]) -> Vec<String> {
    let mut list = Vec::new();
    if trends.iter().any(|trend| trend.points.iter().any(|(_, _, change)| change.is_some())) {
        list.push(format!(
            "change: to the record before of the same measurement on the same machine; verdicts rest on the 95 % intervals, and differences within {} are the same",
            percent(FAIL_ON)
        ));
    }
    let modelled = |trend: &Trend| {
        trend.metric == Metric::Joules
            && trend.points.iter().any(|(point, value, _)| value.is_some() && point.figures.energy_kind == "modelled")
    };
    if trends.iter().any(modelled) {
        list.push("modelled joules: their band is that of the model, and wider than most changes".into());
    }
    list
}

fn series_json(trend: &Trend) -> Value {
    let s = &trend.series;
    json!({
        "what": s.what,
        "kind": s.kind,
        "provenance": s.provenance,
        "op": known(&s.op),
        "kernel": known(&s.kernel),
        "shape": known(&s.shape),
        "dtype": known(&s.dtype),
        "model": known(&s.model),
        "test": known(&s.test),
        "device": known(&s.device),
        "machine": known(&s.machine),
        "metric": trend.metric.name(),
        "unit": match trend.metric {
            Metric::Time => "ns".into(),
            _ => trend.unit(),
        },
    })
}

fn point_json(trend: &Trend, (point, value, change): &(Point, Option<Quantity>, Option<Change>)) -> Value {
    let joules = point.figures.get(Metric::Joules).filter(|_| point.invalid.is_none());
    json!({
        "time": point.time,
        "run": point.run,
        "version": known(&point.version),
        "build": known(&point.build),
        "file": point.file,
        "valid": point.invalid.is_none(),
        "invalid": point.invalid,
        "value": value.map(|value| value.value),
        "ci95": value.and_then(|value| value.interval),
        "ratio": change.map(|change| change.ratio),
        "ratio_ci95": change.and_then(|change| change.ci95),
        "verdict": change.map(|change| change.word),
        "joules": joules.map(|joules| joules.value),
        "joules_ci95": joules.and_then(|joules| joules.interval),
        "joules_per": joules.map(|_| trend.series.joules_per()),
        "energy_kind": point.figures.energy_kind,
        "energy_boundary": point.figures.energy_boundary,
    })
}
