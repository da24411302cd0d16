//! Which panels a figure has, and what stands in them: as much as one can read.

use perjoule_record::{Kind, Record};
use std::collections::{BTreeMap, BTreeSet};

use super::panels::{Body, How, Limit, MANY, Panel, Point, Row, colour, grey};
use super::scene::Colour;
use crate::report::page::data::{self, Dataset, OTHERS};
use crate::report::page::roofs::Roofs;

/// Rows of a panel, rooflines, series of a sweep.
const ROWS: usize = 20;
const DEVICES: usize = 2;
const SERIES: usize = 6;

/// All panels that the records have something for.
pub(super) fn panels(records: &[Record]) -> Vec<Panel> {
    let (kernels, tokens) = (data::kernels(records), data::tokens(records));
    let mut panels = rooflines(records, &kernels);
    panels.extend(shares(&kernels));
    for figure in [
        Figure {
            value: "ts",
            low: "ts_lo",
            high: "ts_hi",
            how: "from",
            title: "Tokens per second",
            axis: "tokens/s",
        },
        Figure {
            value: "joules",
            low: "joules_lo",
            high: "joules_hi",
            how: "energy",
            title: "Joules per token",
            axis: "J/token, gross",
        },
    ] {
        panels.extend(token_rows(&tokens, &figure));
        panels.extend(sweep(records, &tokens, &figure));
    }
    panels
}

/// A column of tokens that is drawn.
struct Figure {
    value: &'static str,
    low: &'static str,
    high: &'static str,
    /// Column that says how it was obtained.
    how: &'static str,
    title: &'static str,
    axis: &'static str,
}

/// What a logarithmic axis can show.
fn drawable(data: &Dataset, key: &str, row: usize) -> Option<f64> {
    data.number(key, row).filter(|x| (1e-15..1e15).contains(x))
}

fn drawn(data: &Dataset, row: usize) -> bool {
    data.number("drawn", row) == Some(1.0)
}

fn interval(data: &Dataset, low: &str, high: &str, row: usize) -> Option<(f64, f64)> {
    drawable(data, low, row).zip(drawable(data, high, row))
}

/// How a figure of tokens was obtained: what another tool measured is imported, its joules too.
fn how(tokens: &Dataset, figure: &Figure, row: usize) -> How {
    match (tokens.text(figure.how, row), tokens.text("from", row)) {
        ("measured", from) => How::of(from),
        (word, _) => How::of(word),
    }
}

/// Colours of ops, the same in every panel.
fn op_colour(kernels: &Dataset, row: usize) -> Colour {
    let group = kernels.text("group", row);
    let names = kernels.distinct("group").iter().filter(|name| *name != OTHERS);
    names.into_iter().position(|name| name == group).map_or(grey(), colour)
}

fn rooflines(records: &[Record], kernels: &Dataset) -> Vec<Panel> {
    let mut by_device: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    let all = records.iter().filter(|r| r.kind == Kind::Kernel);
    for (row, record) in all.enumerate() {
        let shown = drawn(kernels, row)
            && drawable(kernels, "gflops", row).is_some()
            && drawable(kernels, "intensity", row).is_some();
        if shown {
            by_device.entry(data::device(record)).or_default().push(row);
        }
    }
    let mut list: Vec<(String, Vec<usize>)> = by_device.into_iter().collect();
    list.sort_by_key(|(_, rows)| std::cmp::Reverse(rows.len()));
    let several = list.len();
    list.into_iter()
        .take(DEVICES)
        .map(|(device, rows)| roofline(records, kernels, &device, &rows, several))
        .collect()
}

fn words(kernels: &Dataset, row: usize) -> String {
    format!(
        "{} {} {}: {} GFLOP/s at {} flop/byte, {}",
        kernels.text("kernel", row),
        kernels.text("shape", row),
        kernels.text("dtype", row),
        kernels.shown("gflops", row),
        kernels.shown("intensity", row),
        kernels.text("from", row)
    )
}

fn roofline(records: &[Record], kernels: &Dataset, device: &str, rows: &[usize], devices: usize) -> Panel {
    let roofs = Roofs::of(records, device);
    let limit = |peak: &crate::report::page::roofs::Peak| Limit {
        label: peak.label(),
        gflops: peak.gflops,
        modelled: peak.measured.is_empty(),
    };
    let limits: Vec<Limit> = roofs.peaks.iter().map(limit).collect();
    let mut legend: Vec<(Colour, String)> = Vec::new();
    let points = rows.iter().filter_map(|&row| {
        let colour = op_colour(kernels, row);
        if !legend.iter().any(|(known, _)| *known == colour) {
            legend.push((colour, kernels.text("group", row).to_owned()));
        }
        let words = if rows.len() > MANY { String::new() } else { words(kernels, row) };
        Some(Point {
            x: drawable(kernels, "intensity", row)?,
            y: drawable(kernels, "gflops", row)?,
            interval: None,
            how: How::of(kernels.text("from", row)),
            colour,
            words,
        })
    });
    let points: Vec<Point> = points.collect();
    let roof = match (limits.is_empty(), roofs.gbps) {
        (true, None) => "No ceiling was measured, so there is no roof.",
        _ if limits.iter().any(|limit| limit.modelled) => {
            "Lines: the best that any probe of these records saw; dashed ones are modelled."
        }
        _ => "Lines: the best that any probe of these records saw.",
    };
    let more = if devices > DEVICES {
        format!(" {DEVICES} of {devices} devices are drawn, those with most kernels.")
    } else {
        String::new()
    };
    Panel {
        title: format!("Roofline of {}", data::clip(device)),
        note: format!("A point for each of {} kernel results. {roof}{more}", points.len()),
        axis: "GFLOP/s",
        legend,
        body: Body::Roofline { points, limits, gbps: roofs.gbps },
    }
}

/// Kernels by their share of the roof: the best of each op, shape and dtype, ops in turn.
fn shares(kernels: &Dataset) -> Option<Panel> {
    let mut best: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    let share = |row: usize| kernels.number("roof", row).filter(|x| *x > 0.0 && *x < 100.0);
    for row in (0..kernels.len()).filter(|&row| drawn(kernels, row)) {
        let Some(value) = share(row) else { continue };
        let entry = best.entry((kernels.text("op", row), kernels.text("where", row))).or_insert(row);
        if share(*entry).is_some_and(|known| value > known) {
            *entry = row;
        }
    }
    let all = best.len();
    let mut by_op: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for ((op, _), row) in best {
        by_op.entry(op).or_default().push(row);
    }
    // as many of each op as there is room for, in the order of the records
    let mut chosen: Vec<usize> = Vec::new();
    for list in by_op.values_mut() {
        list.sort();
    }
    for i in 0..all {
        let next = by_op.values().filter_map(|list| list.get(i));
        chosen.extend(next.take(ROWS - chosen.len()));
    }
    chosen.sort_by_key(|&row| {
        (kernels.text("device", row), kernels.text("op", row), kernels.text("from", row), row)
    });
    let several = kernels.distinct("device").len() > 1;
    let rows: Vec<Row> = chosen
        .iter()
        .filter_map(|&row| {
            let value = share(row)?;
            // the share goes with the inverse of the time
            let ends = kernels.number("ns", row).zip(interval(kernels, "ns_lo", "ns_hi", row));
            let ends = ends.map(|(ns, (low, high))| (100.0 * value * ns / high, 100.0 * value * ns / low));
            let how = How::of(kernels.text("from", row));
            let on = if several { format!("{}: ", kernels.text("device", row)) } else { String::new() };
            let doubt = if (100.0 * value).round() > 100.0 { " (suspicious)" } else { "" };
            Some(Row {
                group: format!("{on}{}, {how}", kernels.text("op", row), how = how.word()),
                label: format!("{} {}", kernels.text("shape", row), kernels.text("dtype", row)),
                shown: format!("{:.0} %{doubt}", 100.0 * value),
                value: 100.0 * value,
                interval: ends,
                how,
                colour: op_colour(kernels, row),
            })
        })
        .collect();
    let left = if all > rows.len() { format!(" {} of {all} are drawn.", rows.len()) } else { String::new() };
    (!rows.is_empty()).then(|| Panel {
        title: "Kernels: share of the roof".into(),
        note: format!("The best kernel of each op, shape and dtype, against the ceilings of its run.{left}"),
        axis: "% of the roof",
        legend: Vec::new(),
        body: Body::Rows { rows, limit: Some(100.0) },
    })
}

fn phase_colour(phase: &str) -> Colour {
    match phase {
        "prefill" => colour(0),
        "decode" => colour(1),
        _ => colour(2),
    }
}

fn token_rows(tokens: &Dataset, figure: &Figure) -> Option<Panel> {
    let usable = |&row: &usize| drawn(tokens, row) && drawable(tokens, figure.value, row).is_some();
    let all: Vec<usize> = (0..tokens.len()).filter(usable).collect();
    let mut legend: Vec<(Colour, String)> = Vec::new();
    // as the records have them, but devices and models together
    let group = |row: usize| {
        let how = how(tokens, figure, row).word();
        let (device, model) = (tokens.text("device", row), tokens.text("model", row));
        format!("{device}: {model} {}, {how}", tokens.text("dtype", row))
    };
    let mut shown: Vec<usize> = all.iter().copied().take(ROWS).collect();
    let mut groups: Vec<String> = Vec::new();
    for &row in &shown {
        if !groups.contains(&group(row)) {
            groups.push(group(row));
        }
    }
    shown.sort_by_key(|&row| groups.iter().position(|name| *name == group(row)));
    let rows: Vec<Row> = shown
        .iter()
        .filter_map(|&row| {
            let phase = tokens.text("phase", row);
            let colour = phase_colour(phase);
            if !legend.iter().any(|(known, _)| *known == colour) {
                legend.push((colour, phase.to_owned()));
            }
            let parallel = tokens.number("parallel", row).filter(|n| *n > 1.0);
            let times = parallel.map(|n| format!(" x{n}")).unwrap_or_default();
            let ends = interval(tokens, figure.low, figure.high, row);
            let between = tokens.shown(&format!("{}|{}", figure.low, figure.high), row);
            let between = if ends.is_some() { format!(" ({between})") } else { String::new() };
            Some(Row {
                group: group(row),
                label: format!("{}{times}", tokens.text("test", row)),
                shown: format!("{}{between}", tokens.shown(figure.value, row)),
                value: drawable(tokens, figure.value, row)?,
                interval: ends,
                how: how(tokens, figure, row),
                colour,
            })
        })
        .collect();
    let left = if all.len() > rows.len() {
        format!(" The first {} of {} are drawn.", rows.len(), all.len())
    } else {
        String::new()
    };
    let read = match figure.value {
        "ts" => "pp128 reads a prompt of 128 tokens, tg16 generates 16, x4 is four sequences together.",
        _ => "Of prompt tokens for prefill, of generated ones for decode. Less is better.",
    };
    (!rows.is_empty()).then(|| Panel {
        title: figure.title.into(),
        note: format!("{read}{left}"),
        axis: figure.axis,
        legend,
        body: Body::Rows { rows, limit: None },
    })
}

/// What a sweep goes along: its name, and the number of a record.
type Along = (&'static str, fn(&Record) -> Option<u64>);

const ALONG: [Along; 3] = [
    ("sequences side by side", |r| Some(r.workload.n_parallel.unwrap_or(1))),
    ("tokens of the prompt", |r| r.workload.n_prompt.filter(|_| r.workload.n_gen.unwrap_or(0) == 0)),
    ("tokens in the KV cache before", |r| {
        r.workload.n_depth.filter(|_| r.workload.n_prompt.unwrap_or(0) == 0)
    }),
];

/// A figure against the number of sequences or tokens, where one workload was run with several: the first of these that was.
fn sweep(records: &[Record], tokens: &Dataset, figure: &Figure) -> Option<Panel> {
    let of_tokens: Vec<&Record> = records.iter().filter(|r| r.kind == Kind::Tokens).collect();
    ALONG.iter().find_map(|along| sweep_along(&of_tokens, tokens, figure, along))
}

fn sweep_along(
    records: &[&Record],
    tokens: &Dataset,
    figure: &Figure,
    (what, size): &Along,
) -> Option<Panel> {
    // records that differ in nothing else
    let mut groups: Vec<(String, Vec<(u64, usize)>)> = Vec::new();
    for (row, record) in records.iter().enumerate() {
        let usable = drawn(tokens, row) && drawable(tokens, figure.value, row).is_some();
        let Some(at) = size(record).filter(|&n| n > 0 && usable) else { continue };
        let mut workload = record.workload.clone();
        match *what {
            "sequences side by side" => workload.n_parallel = None,
            "tokens of the prompt" => workload.n_prompt = None,
            _ => workload.n_depth = None,
        }
        let w = &workload;
        let lengths = (w.n_prompt, w.n_gen, w.n_depth, w.n_parallel);
        let key = format!(
            "{:?}",
            (data::device(record), &w.model, w.dtypes(), lengths, w.phase, how(tokens, figure, row))
        );
        match groups.iter_mut().find(|(known, _)| *known == key) {
            Some((_, list)) => list.push((at, row)),
            None => groups.push((key, vec![(at, row)])),
        }
    }
    groups.retain(|(_, list)| list.iter().map(|(at, _)| at).collect::<BTreeSet<_>>().len() > 1);
    let all = groups.len();
    groups.truncate(SERIES);
    let mut legend = Vec::new();
    let mut series = Vec::new();
    for (i, (_, mut list)) in groups.into_iter().enumerate() {
        list.sort();
        let first = list.first()?.1;
        let name = match *what {
            "sequences side by side" => tokens.text("sweep", first).to_owned(),
            _ => {
                let several = data::several(records);
                let on = if several { format!("{}: ", tokens.text("device", first)) } else { String::new() };
                let (model, dtype) = (tokens.text("model", first), tokens.text("dtype", first));
                format!("{on}{model} {dtype} {}", tokens.text("phase", first))
            }
        };
        legend.push((colour(i), format!("{name}, {}", how(tokens, figure, first).word())));
        let point = |&(at, row): &(u64, usize)| {
            Some(Point {
                x: at as f64,
                y: drawable(tokens, figure.value, row)?,
                interval: interval(tokens, figure.low, figure.high, row),
                how: how(tokens, figure, row),
                colour: colour(i),
                words: format!(
                    "{}: {} {}, {}",
                    tokens.text("where", row),
                    tokens.shown(figure.value, row),
                    figure.axis,
                    how(tokens, figure, row).word()
                ),
            })
        };
        series.push(list.iter().filter_map(point).collect());
    }
    let left = if all > SERIES { format!(" {SERIES} of {all} workloads are drawn.") } else { String::new() };
    (!series.is_empty()).then(|| Panel {
        title: format!("{} by {what}", figure.title),
        note: format!("A line joins results that differ in nothing else.{left}"),
        axis: figure.axis,
        legend,
        body: Body::Sweep { series, x: what },
    })
}
