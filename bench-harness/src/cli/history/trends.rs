//! Series: a table for each measurement where there are few, else a line for each series.

use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};
use std::io::Write;

use super::{Format, HistoryArgs, csv, known, limit, notes, style, version, when};
use crate::cli::Ended;
use crate::compare::regression::{FAIL_ON, percent};
use crate::compare::row::Quantity;
use crate::history::facts::{Metric, Series};
use crate::history::query::Point;
use crate::history::trend::{Change, change, sparkline};
use crate::report::units::{duration_ns, joules, si};
use crate::report::{Align, Table, markdown, printable};

/// Up to so many different measurements, each has a table.
const FEW: usize = 6;
/// Series of a summary that are shown.
const SHOWN: usize = 200;

/// A series and the figure of it that is followed.
pub(super) struct Trend {
    series: Series,
    metric: Metric,
    /// How the figure is known: `measured`, `imported` or `modelled`.
    how: String,
    points: Vec<(Point, Option<Quantity>, Option<Change>)>,
}

/// The series that have what is asked for, each record beside the valid one before.
pub(super) fn trends(found: Vec<(Series, Vec<Point>)>, metric: Option<Metric>) -> Result<Vec<Trend>> {
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
        for (how, points) in apart(metric, &series, points) {
            let mut before: Option<Quantity> = None;
            let points = points.into_iter().map(|point| {
                let value = usable(&point, metric);
                let change = before.zip(value).map(|(old, new)| change(metric, old, new));
                before = value.or(before);
                (point, value, change)
            });
            list.push(Trend { series: series.clone(), metric, how, points: points.collect() });
        }
    }
    if let (true, Some(metric)) = (list.is_empty(), metric) {
        bail!(
            "none of the {records} records that match has a figure for --metric {}: it is unknown",
            metric.name()
        );
    }
    Ok(list)
}

/// How a figure is known, and the records that agree in it: joules of a series may come from a meter once and from a model another time,
/// and contain the package or the wall.
fn apart(metric: Metric, series: &Series, points: Vec<Point>) -> Vec<(String, Vec<Point>)> {
    if metric != Metric::Joules {
        return vec![(series.provenance.clone(), points)];
    }
    let mut list: Vec<(String, String, Vec<Point>)> = Vec::new();
    for point in points.into_iter().filter(|point| point.figures.get(metric).is_some()) {
        let (how, boundary) =
            (&point.figures.energy_kind, point.figures.energy_boundary.clone().unwrap_or_default());
        match list.iter_mut().find(|(h, b, _)| h == how && *b == boundary) {
            Some((_, _, points)) => points.push(point),
            None => list.push((how.clone(), boundary, vec![point])),
        }
    }
    list.into_iter().map(|(how, _, points)| (how, points)).collect()
}

impl Trend {
    fn show(&self, value: f64) -> String {
        show(self.metric, value)
    }

    fn unit(&self) -> String {
        unit(self.metric, &self.series)
    }

    /// What stands beside the figure: its joules, or beside joules the speed.
    fn beside(&self) -> Metric {
        if self.metric == Metric::Joules { Metric::usual(&self.series.kind)[0] } else { Metric::Joules }
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

fn show(metric: Metric, value: f64) -> String {
    match metric {
        Metric::Time => duration_ns(value),
        Metric::Joules => joules(value),
        _ => si(value),
    }
}

fn unit(metric: Metric, series: &Series) -> String {
    match metric {
        Metric::Tokens => series.unit.clone(),
        Metric::Time => "time of a call".into(),
        Metric::Joules => format!("J/{}", series.joules_per()),
        Metric::Gflops => "GFLOP/s".into(),
        Metric::Gbps => "GB/s".into(),
    }
}

fn signed(change: Option<Change>) -> String {
    change.map_or("-".into(), |change| format!("{:+.1} %", 100.0 * (change.ratio - 1.0)))
}

fn word(change: Option<Change>) -> String {
    change.map_or("-".into(), |change| change.word.into())
}

pub(super) fn print(args: &HistoryArgs, trends: &[Trend]) -> Result<Ended> {
    let mut out = anstream::stdout();
    let newest =
        |trend: &Trend| trend.points.len() - limit(args).unwrap_or(usize::MAX).min(trend.points.len());
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
                    if let (Some(all), Value::Object(own)) = (value.as_object_mut(), point_json(trend, point))
                    {
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
                    trend.how.clone(),
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
                "what",
                "how",
                "machine",
                "time",
                "run",
                "version",
                "build",
                "metric",
                "unit",
                "value",
                "low",
                "high",
                "ratio",
                "verdict",
                "joules",
                "energy_kind",
                "energy_boundary",
                "invalid",
                "file",
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
    let (value, beside) = (first.unit(), unit(first.beside(), &first.series));
    let mut table = Table::new([
        ("time (UTC)", Align::Left),
        ("version, commit", Align::Left),
        ("machine", Align::Left),
        ("how", Align::Left),
        (value.as_str(), Align::Right),
        ("95 % interval", Align::Right),
        ("change", Align::Right),
        ("verdict", Align::Left),
        (beside.as_str(), Align::Right),
        ("energy", Align::Left),
    ]);
    let mut lines = Vec::new();
    for trend in trends {
        let from = newest(trend);
        for (point, value, change) in &trend.points[from..] {
            let valid = |metric| point.figures.get(metric).filter(|_| point.invalid.is_none());
            let boundary = point.figures.energy_boundary.as_deref().unwrap_or("unknown");
            table.row([
                when(&point.time),
                version(&point.version, &point.build),
                trend.series.machine.clone(),
                trend.how.clone(),
                value.map_or("-".into(), |value| trend.show(value.value)),
                trend.interval(*value),
                signed(*change),
                match &point.invalid {
                    Some(why) => format!("INVALID: {why}"),
                    None => word(*change),
                },
                valid(trend.beside()).map_or("-".into(), |value| show(trend.beside(), value.value)),
                valid(Metric::Joules)
                    .map_or("unknown".into(), |_| format!("{}, {boundary}", point.figures.energy_kind)),
            ]);
        }
        let values = trend.values();
        let ends = [f64::min, f64::max].map(|end| values.iter().copied().reduce(end));
        if let (true, [Some(least), Some(most)]) = (values.len() > 1, ends) {
            let older =
                if from > 0 { format!("; {from} older ones are not in the table") } else { String::new() };
            lines.push(format!(
                "{}  {} to {}, {} {} on {}, oldest first{older}",
                sparkline(&values),
                trend.show(least),
                trend.show(most),
                values.len(),
                trend.how,
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
            trend.how.clone(),
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
            && trend
                .points
                .iter()
                .any(|(point, value, _)| value.is_some() && point.figures.energy_kind == "modelled")
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
        "how": trend.how,
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
