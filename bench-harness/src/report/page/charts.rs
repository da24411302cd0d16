//! Charts as Vega-Lite specifications that name their data; the page's script supplies it.
//!
//! Colours are Okabe and Ito's, each with a shape of its own; text, axes and lines take the page's colour, so that light, dark and print
//! need no second specification. What is modelled is hollow and dashed and carries the word.

use perjoule_record::Record;
use serde_json::{Value, json};
use std::collections::{BTreeSet, HashMap, HashSet};

use super::data::{Dataset, OTHERS, rounded};
use super::roofs;
use super::series::{self, Windows};

const COLOURS: [&str; 7] = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C8C8C"];
const SHAPES: [&str; 7] =
    ["circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "triangle-right"];
/// Rows that a chart with a line of text for each can show.
const ROWS: usize = 24;
/// Marks beyond which the best of each row stand for the others.
const MARKS: usize = 400;
/// Charts of one kind: devices with a roofline, ops with a chart of their own.
pub(super) const CHARTS: usize = 6;
/// What a logarithmic axis can show; the table has the rest.
pub(super) const RANGE: std::ops::Range<f64> = 1e-15..1e15;

/// A chart and what stands around it.
#[derive(Debug, Clone)]
pub(crate) struct Chart {
    /// Unique on the page.
    pub(crate) id: String,
    pub(crate) title: String,
    /// What it shows and how to read it.
    pub(crate) caption: String,
    /// What it shows, for those who do not see it.
    pub(crate) label: String,
    /// Name of the dataset that it draws, and which of its rows.
    pub(crate) dataset: &'static str,
    pub(crate) rows: Vec<usize>,
    /// Columns of its table.
    pub(crate) columns: &'static [&'static str],
    pub(crate) spec: Value,
}

/// Appearance shared by all charts.
pub(crate) fn config() -> Value {
    let ink = "currentColor";
    json!({
        "background": "transparent",
        "font": "system-ui, sans-serif",
        "view": {"stroke": null},
        "axis": {
            "labelColor": ink, "titleColor": ink, "domainColor": ink, "tickColor": ink, "gridColor": ink, "gridOpacity": 0.13,
            "domainOpacity": 0.5, "tickOpacity": 0.5, "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal",
        },
        "legend": {
            "labelColor": ink, "titleColor": ink, "labelFontSize": 12, "titleFontSize": 12, "symbolSize": 80,
            "orient": "bottom", "direction": "vertical", "symbolStrokeWidth": 1.5, "titleLimit": 260,
        },
        "text": {"fontSize": 12, "fill": ink},
        "rule": {"color": ink},
    })
}

pub(super) fn drawable(value: Option<f64>) -> bool {
    value.is_some_and(|x| RANGE.contains(&x))
}

/// Indices of colours and shapes for names, in the order given.
fn indices(names: &[&str]) -> Vec<usize> {
    let at =
        |(i, name): (usize, &&str)| if *name == OTHERS { COLOURS.len() - 1 } else { i % (COLOURS.len() - 1) };
    names.iter().enumerate().map(at).collect()
}

fn pick(list: &[&'static str], names: &[&str]) -> Vec<&'static str> {
    indices(names).into_iter().map(|i| list[i]).collect()
}

fn legend(title: Option<&str>, names: &[&str]) -> Value {
    let Some(title) = title else { return Value::Null };
    let longest = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
    let columns = if longest > 18 { 1 } else { 3 };
    json!({"title": title, "columns": columns, "labelLimit": {"expr": "max(width - 60, 200)"}, "symbolFillColor": "transparent"})
}

/// Colours by a column, in the order given.
pub(super) fn colours(field: &str, title: Option<&str>, names: &[&str]) -> Value {
    let range = pick(&COLOURS, names);
    json!({
        "field": field, "type": "nominal", "scale": {"domain": names, "range": range}, "legend": legend(title, names),
    })
}

/// Stroke, fill and shape by a column, in the order given; hollow and dashed where `hollow` holds the word.
pub(super) fn marks(field: &str, title: Option<&str>, names: &[&str], hollow: &str) -> Value {
    let colour = colours(field, title, names);
    let modelled = format!("datum.{hollow} === 'modelled'");
    let shapes = json!({"domain": names, "range": pick(&SHAPES, names)});
    json!({
        "stroke": colour.clone(),
        "fill": colour,
        "shape": {"field": field, "type": "nominal", "scale": shapes, "legend": legend(title, names)},
        "fillOpacity": {
            "condition": [{"test": modelled, "value": 0}, {"test": format!("datum.{hollow} === 'imported'"), "value": 0.25}],
            "value": 0.75,
        },
        "strokeDash": {"condition": {"test": modelled, "value": [3, 1.5]}, "value": [1, 0]},
    })
}

pub(super) fn with(mut base: Value, more: Value) -> Value {
    if let (Some(base), Value::Object(more)) = (base.as_object_mut(), more) {
        base.extend(more);
    }
    base
}

pub(super) fn tooltip(fields: &[(&str, &str, bool)]) -> Value {
    let field = |&(field, title, number): &(&str, &str, bool)| match number {
        true => json!({"field": field, "title": title, "type": "quantitative", "format": ".3~g"}),
        false => json!({"field": field, "title": title, "type": "nominal"}),
    };
    fields.iter().map(field).collect()
}

/// The names of `field` in `rows`, in the order of their first row, the rest last.
pub(super) fn names<'a>(data: &'a Dataset, field: &str, rows: &[usize]) -> Vec<&'a str> {
    let mut seen = HashSet::new();
    let mut list: Vec<&str> = rows.iter().map(|&row| data.text(field, row)).collect();
    list.retain(|name| seen.insert(*name));
    list.sort_by_key(|name| *name == OTHERS);
    list
}

/// All charts that the data has something for.
pub(crate) fn all(
    records: &[Record],
    kernels: &Dataset,
    tokens: &Dataset,
    windows: &Windows,
    traces: &Dataset,
) -> Vec<Chart> {
    let mut charts = roofs::charts(records, kernels);
    charts.extend(tokens_by_device(tokens));
    charts.extend(sweeps(tokens));
    charts.extend(series::energy_over_time(windows));
    charts.extend(series::readings(traces));
    charts.extend(by_shape(kernels));
    charts
}

// ------------------------------------------------------------------------------------------------ rows of labelled intervals

/// What a chart of rows shows along its axis.
struct Figure {
    value: &'static str,
    low: &'static str,
    high: &'static str,
    title: &'static str,
    /// Column that says whether it is modelled.
    kind: &'static str,
}

/// Which rows a chart of labelled intervals shows: at most so many labels, and the best of each where there are too many marks.
/// The words say what was left out.
fn chosen(
    data: &Dataset,
    rows: Vec<usize>,
    value: &str,
    by: &str,
    better_high: bool,
) -> (Vec<usize>, String) {
    let labels = names(data, "where", &rows);
    let all = labels.len();
    let kept: HashSet<&str> = labels.into_iter().take(ROWS).collect();
    let mut rows: Vec<usize> =
        rows.into_iter().filter(|&row| kept.contains(data.text("where", row))).collect();
    let mut words = String::new();
    if all > ROWS {
        words += &format!(" The first {ROWS} of {all} rows are drawn; the table has all.");
    }
    if rows.len() > MARKS {
        let mut best: HashMap<(&str, &str), usize> = HashMap::new();
        for &row in &rows {
            let entry = best.entry((data.text("where", row), data.text(by, row))).or_insert(row);
            let (a, b) = (data.number(value, row), data.number(value, *entry));
            if if better_high { a > b } else { a < b } {
                *entry = row;
            }
        }
        let kept: BTreeSet<usize> = best.into_values().collect();
        words += &format!(
            " Of {} results the best of each row and kernel are drawn; the table has all.",
            rows.len()
        );
        rows = kept.into_iter().collect();
    }
    (rows, words)
}

/// Rows of points with intervals, each row under its own line of text: long names then fit a narrow screen.
fn intervals(data: &Dataset, name: &str, rows: &[usize], figure: &Figure, series: (&str, &str)) -> Value {
    let values: Vec<f64> = rows.iter().filter_map(|&row| data.number(figure.value, row)).collect();
    let ends = |key: &'static str| {
        rows.iter().filter_map(|&row| data.number(key, row)).filter(|x| RANGE.contains(x))
    };
    let (low, high) = ends(figure.low)
        .chain(ends(figure.high))
        .chain(values.iter().copied())
        .fold((f64::INFINITY, 0.0f64), |(low, high), x| (low.min(x), high.max(x)));
    let scale = if high / low > 30.0 {
        json!({"type": "log", "domain": [rounded(low / 1.5), rounded(high * 1.5)], "nice": false})
    } else {
        json!({"zero": true, "nice": true})
    };
    let x = |field: &str| {
        json!({
            "field": field, "type": "quantitative", "scale": scale, "title": figure.title,
            "axis": {"format": ".6~g", "labelOverlap": true, "tickCount": 6, "orient": "top"},
        })
    };
    let labels = names(data, "where", rows);
    let y = json!({
        "field": "where", "type": "nominal", "sort": labels, "axis": null, "scale": {"paddingInner": 0, "paddingOuter": 0},
    });
    let modelled = format!("datum.{} === 'modelled'", figure.kind);
    let mut shown = names(data, series.0, rows);
    if series.0 == "phase" {
        // prefill has the first colour, whichever came first
        shown.sort_by(|a, b| b.cmp(a));
    }
    let dash = json!({"condition": {"test": modelled, "value": [2, 2]}, "value": [1, 0]});
    json!({
        "width": "container",
        // not a step: Vega-Lite warns of one beside a fitted width
        "height": 40 * labels.len(),
        "autosize": {"type": "fit-x", "contains": "padding"},
        "data": {"name": name},
        "layer": [
            {
                "mark": {"type": "rule", "yOffset": 8, "strokeWidth": 1.5, "opacity": 0.7, "clip": true},
                "transform": [{"filter": format!("isValid(datum.{0}) && datum.{0} > 0", figure.low)}],
                "encoding": {"x": x(figure.low), "x2": {"field": figure.high}, "y": y, "strokeDash": dash},
            },
            {
                "mark": {"type": "point", "yOffset": 8, "size": 90, "strokeWidth": 2},
                "encoding": with(marks(series.0, Some(series.1), &shown, figure.kind), json!({
                    "x": x(figure.value),
                    "y": y,
                    "tooltip": tooltip(&[
                        ("where", "what", false), ("kernel", "kernel", false), (figure.value, figure.title, true),
                        (figure.low, "95 % from", true), (figure.high, "to", true), ("roof", "of roof (share)", true),
                        (figure.kind, "figure is", false), ("notes", "notes", false),
                    ]),
                })),
            },
            {
                "transform": [
                    {"aggregate": [{"op": "max", "field": "how", "as": "how"}], "groupby": ["where"]},
                    {"calculate": "datum.where + ['', ' · imported', ' · modelled'][datum.how]", "as": "words"},
                ],
                "mark": {"type": "text", "align": "left", "dx": 2, "yOffset": -10, "limit": {"expr": "width - 4"}},
                "encoding": {"x": {"value": 0}, "y": y, "text": {"field": "words", "type": "nominal"}},
            },
        ],
        "transform": [{
            "calculate": format!("{modelled} ? 2 : datum.{} === 'imported' ? 1 : 0", figure.kind), "as": "how",
        }],
    })
}

fn by_shape(kernels: &Dataset) -> Vec<Chart> {
    let mut by_op: Vec<(&str, Vec<usize>)> =
        kernels.distinct("op").iter().map(|op| (op.as_str(), Vec::new())).collect();
    for row in (0..kernels.len()).filter(|&row| kernels.number("drawn", row) == Some(1.0)) {
        let op = kernels.text("op", row);
        if let Some((_, rows)) = by_op.iter_mut().find(|(of, _)| *of == op) {
            rows.push(row);
        }
    }
    by_op.sort_by_key(|(_, rows)| std::cmp::Reverse(rows.len()));
    let ops = by_op.len();
    let charts = by_op.into_iter().take(CHARTS).enumerate();
    charts
        .filter_map(|(i, (op, rows))| {
            let computes = rows.iter().any(|&row| drawable(kernels.number("gflops", row)));
            let figure = if computes {
                Figure { value: "gflops", low: "gflops_lo", high: "gflops_hi", title: "GFLOP/s", kind: "from" }
            } else {
                Figure { value: "gbps", low: "gbps_lo", high: "gbps_hi", title: "GB/s", kind: "from" }
            };
            let rows: Vec<usize> =
                rows.into_iter().filter(|&row| drawable(kernels.number(figure.value, row))).collect();
            let (rows, left) = chosen(kernels, rows, figure.value, "kernel", true);
            if rows.is_empty() {
                return None;
            }
            let best = rows.iter().copied().max_by(|&a, &b| {
                let value = |row| kernels.number(figure.value, row).unwrap_or(0.0);
                value(a).total_cmp(&value(b))
            })?;
            let best = format!(
                " Fastest: {} at {} {} on {}.",
                kernels.text("kernel", best),
                kernels.shown(figure.value, best),
                figure.title,
                kernels.text("where", best)
            );
            let more = match i {
                0 if ops > CHARTS => format!(
                    " {CHARTS} of {ops} ops have a chart here, those with most results; the table has all."
                ),
                _ => String::new(),
            };
            let title = figure.title;
            Some(Chart {
                id: format!("shapes-{}", i + 1),
                title: format!("{op}: {title} by shape"),
                caption: format!(
                    "A row for each shape and dtype, a point for each kernel, with the 95 % interval of its median. A hollow, dashed \
                     point is modelled.{best}{left}{more}"
                ),
                label: format!("{title} of {op} by shape and kernel, {} results.{best}", rows.len()),
                spec: intervals(kernels, "kernels", &rows, &figure, ("series", "kernel")),
                dataset: "kernels",
                rows,
                columns: match computes {
                    true => &["where", "kernel", "cache", "gflops", "gflops_lo|gflops_hi", "roof", "from"],
                    false => &["where", "kernel", "cache", "gbps", "gbps_lo|gbps_hi", "roof", "from"],
                },
            })
        })
        .collect()
}

fn tokens_by_device(tokens: &Dataset) -> Vec<Chart> {
    let rates = Figure { value: "ts", low: "ts_lo", high: "ts_hi", title: "tokens/s", kind: "from" };
    let joules =
        Figure { value: "joules", low: "joules_lo", high: "joules_hi", title: "J/token", kind: "energy" };
    let mut charts = Vec::new();
    for (figure, id, title, read) in [
        (
            rates,
            "token-rate",
            "Tokens per second by device",
            "Tokens of all sequences together; a point is the mean of the repetitions, its line the 95 % interval of that mean \
             (of a prediction, its 90 % band). Where a test has prompts and generation, generated tokens count. \
             Prefill reads prompts, many tokens at once; decode makes one token of each sequence a step.",
        ),
        (
            joules,
            "token-energy",
            "Joules per token by device",
            "Gross energy of a token, prompt tokens for prefill and generated ones for decode, with the interval of the meter or the \
             band of the model. Less is better.",
        ),
    ] {
        let shown = |&row: &usize| {
            tokens.number("drawn", row) == Some(1.0) && drawable(tokens.number(figure.value, row))
        };
        let rows: Vec<usize> = (0..tokens.len()).filter(shown).collect();
        let (rows, left) = chosen(tokens, rows, figure.value, "phase", figure.value == "ts");
        if rows.is_empty() {
            continue;
        }
        let modelled = rows.iter().filter(|&&row| tokens.text(figure.kind, row) == "modelled").count();
        let words = match modelled {
            0 => " All of them are measured.".to_owned(),
            n if n == rows.len() => " All of them are modelled, not measured: hollow and dashed.".to_owned(),
            n => format!(" {n} of {} are modelled, not measured: hollow and dashed.", rows.len()),
        };
        charts.push(Chart {
            id: id.into(),
            title: title.into(),
            caption: format!("{read}{words}{left}"),
            label: format!("{title}, prefill and decode, {} results.{words}", rows.len()),
            spec: intervals(tokens, "tokens", &rows, &figure, ("phase", "part")),
            dataset: "tokens",
            rows,
            columns: match figure.value {
                "ts" => &["where", "phase", "ts", "ts_lo|ts_hi", "n", "roof", "from"],
                _ => &["where", "phase", "joules", "joules_lo|joules_hi", "net", "energy"],
            },
        });
    }
    charts
}

// ------------------------------------------------------------------------------------------------------- sweeps

/// Rates and joules against the number of sequences, where one workload was run with several.
fn sweeps(tokens: &Dataset) -> Vec<Chart> {
    let mut by_sweep: Vec<(&str, Vec<usize>)> = Vec::new();
    for row in (0..tokens.len()).filter(|&row| tokens.number("drawn", row) == Some(1.0)) {
        let name = tokens.text("sweep", row);
        match by_sweep.iter_mut().find(|(of, _)| *of == name) {
            Some((_, rows)) => rows.push(row),
            None => by_sweep.push((name, vec![row])),
        }
    }
    let sizes = |rows: &[usize]| {
        rows.iter()
            .filter_map(|&row| tokens.number("parallel", row))
            .map(|n| n as u64)
            .collect::<BTreeSet<_>>()
    };
    by_sweep.retain(|(_, rows)| sizes(rows).len() > 1);
    let all = by_sweep.len();
    by_sweep.truncate(CHARTS);
    let rows: Vec<usize> = by_sweep.into_iter().flat_map(|(_, rows)| rows).collect();
    let mut charts = Vec::new();
    for (id, title, value, kind, axis) in [
        ("sweep-tokens", "Tokens per second by sequences side by side", "ts", "from", "tokens/s"),
        ("sweep-joules", "Joules per token by sequences side by side", "joules", "energy", "J/token"),
    ] {
        let rows: Vec<usize> =
            rows.iter().copied().filter(|&row| drawable(tokens.number(value, row))).collect();
        if sizes(&rows).len() < 2 || rows.len() > MARKS * 5 {
            continue;
        }
        let series = names(tokens, "sweep", &rows);
        let ticks = sizes(&rows);
        let x = json!({
            "field": "parallel", "type": "quantitative", "scale": {"type": "log", "base": 2, "padding": 24, "nice": false},
            "axis": {"values": ticks, "format": "d", "labelOverlap": true}, "title": "sequences",
        });
        let y = |aggregate: bool| {
            let mut y = json!({"field": value, "type": "quantitative", "scale": {"type": "log", "padding": 16, "nice": false}, "title": axis,
                               "axis": {"format": ".6~g", "labelOverlap": true, "tickCount": 5}});
            if aggregate {
                y["aggregate"] = json!("mean");
            }
            y
        };
        let points = marks("sweep", Some("workload"), &series, kind);
        let line = points["stroke"].clone();
        let spec = json!({
            "width": "container",
            "height": 280,
            "data": {"name": "tokens"},
            "layer": [
                {"mark": {"type": "line", "strokeWidth": 2}, "encoding": {"x": x, "y": y(true), "stroke": line}},
                {
                    "mark": {"type": "point", "size": 90, "strokeWidth": 2},
                    "encoding": with(points, json!({"x": x, "y": y(false), "tooltip": tooltip(&[
                        ("where", "what", false), ("parallel", "sequences", true), (value, axis, true),
                        (kind, "figure is", false), ("notes", "notes", false),
                    ])})),
                },
            ],
        });
        let modelled = rows.iter().filter(|&&row| tokens.text(kind, row) == "modelled").count();
        let words = match modelled {
            0 => String::new(),
            n => format!(" {n} of {} points are modelled, not measured: hollow and dashed.", rows.len()),
        };
        let more =
            if all > CHARTS { format!(" {CHARTS} of {all} workloads are drawn.") } else { String::new() };
        charts.push(Chart {
            id: id.into(),
            title: title.into(),
            caption: format!(
                "Several sequences share each pass over the weights, which pays as long as memory limits. Both axes are \
                 logarithmic.{words}{more}"
            ),
            label: format!("{title}: {} workloads, {} results.{words}", series.len(), rows.len()),
            dataset: "tokens",
            rows,
            columns: match value {
                "ts" => &["sweep", "parallel", "ts", "ts_lo|ts_hi", "from"],
                _ => &["sweep", "parallel", "joules", "joules_lo|joules_hi", "energy"],
            },
            spec,
        });
    }
    charts
}
