//! The roof that kernels of a device are held against, and the chart of both.

use perjoule_record::{Kind, Provenance, Record};
use serde_json::{Value, json};
use std::collections::BTreeMap;

use super::charts::{CHARTS, Chart, RANGE, drawable, marks, names, tooltip, with};
use super::data::{self, Dataset, clip, rounded};
use crate::report::exceeds_roof;
use crate::report::units::si;

/// An upper limit of arithmetic, for one dtype and those that are taken to equal it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Peak {
    pub(crate) gflops: f64,
    /// Dtypes that were measured, and those that are taken to equal them.
    pub(crate) measured: Vec<String>,
    pub(crate) modelled: Vec<String>,
}

impl Peak {
    /// Names and rate; what is modelled stands on a line of its own.
    pub(crate) fn label(&self) -> String {
        let list = |list: &[String]| list.join(", ");
        let rate = si(self.gflops);
        match (self.measured.is_empty(), self.modelled.is_empty()) {
            (false, true) => format!("{} {rate} GFLOP/s", list(&self.measured)),
            (false, false) => {
                format!("{} {rate} GFLOP/s\nmodelled alike: {}", list(&self.measured), list(&self.modelled))
            }
            (true, _) => format!("{} {rate} GFLOP/s\nmodelled", list(&self.modelled)),
        }
    }
}

/// The ceilings of a device: the best that any probe of these records saw.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Roofs {
    pub(crate) peaks: Vec<Peak>,
    /// Bandwidth of memory, 1e9 bytes a second.
    pub(crate) gbps: Option<f64>,
}

impl Roofs {
    pub(crate) fn of(records: &[Record], device: &str) -> Self {
        let usable = |value: Option<f64>| value.filter(|x| RANGE.contains(x));
        // rates by dtype as ceilings, then what kernels were held against
        let mut ceilings: BTreeMap<&str, (f64, bool)> = BTreeMap::new();
        let mut held: BTreeMap<&str, f64> = BTreeMap::new();
        let mut gbps: Option<f64> = None;
        let raise = |best: &mut Option<f64>, value: Option<f64>| {
            *best = best.map_or(value, |best| Some(value.map_or(best, |value| best.max(value))));
        };
        for record in records.iter().filter(|r| r.valid && data::device(r) == device) {
            let dtype = record.workload.dtype.as_deref().unwrap_or("");
            match record.kind {
                Kind::Ceiling if record.workload.dtype.is_some() => {
                    if let Some(rate) = usable(record.timing.gflops) {
                        let modelled = record.provenance == Provenance::Modelled;
                        let entry = ceilings.entry(dtype).or_insert((rate, modelled));
                        *entry = (entry.0.max(rate), entry.1 && modelled);
                    }
                }
                Kind::Ceiling if record.workload.op.as_deref() == Some("read") => {
                    raise(&mut gbps, usable(record.timing.gbps));
                }
                Kind::Kernel => {
                    raise(&mut gbps, usable(record.roof.roof_gbps));
                    if let Some(rate) = usable(record.roof.roof_gflops) {
                        let entry = held.entry(dtype).or_insert(rate);
                        *entry = entry.max(rate);
                    }
                }
                _ => {}
            }
        }
        let mut peaks: Vec<Peak> = Vec::new();
        // measured ones first: a modelled one equal to it joins it
        for pass in [false, true] {
            for (&dtype, &(rate, modelled)) in ceilings.iter().filter(|(_, (_, modelled))| *modelled == pass)
            {
                let same = |peak: &&mut Peak| (peak.gflops / rate - 1.0).abs() < 0.01;
                let peak = match peaks.iter_mut().find(same) {
                    Some(peak) => peak,
                    None => {
                        peaks.push(Peak { gflops: rate, measured: Vec::new(), modelled: Vec::new() });
                        let last = peaks.len() - 1;
                        &mut peaks[last]
                    }
                };
                if modelled { &mut peak.modelled } else { &mut peak.measured }.push(clip(dtype));
            }
        }
        for (dtype, rate) in held {
            let shown = clip(dtype);
            let names = |peak: &Peak| peak.measured.contains(&shown) || peak.modelled.contains(&shown);
            let near = |peak: &Peak| (peak.gflops / rate - 1.0).abs() < 0.01;
            if let Some(i) = peaks.iter().position(names) {
                peaks[i].gflops = peaks[i].gflops.max(rate);
            } else if let Some(i) = peaks.iter().position(near) {
                peaks[i].measured.push(shown);
            } else {
                peaks.push(Peak { gflops: rate, measured: vec![shown], modelled: Vec::new() });
            }
        }
        Roofs { peaks, gbps }
    }
}

/// A roofline for each device that has kernels, those with most first.
pub(super) fn charts(records: &[Record], kernels: &Dataset) -> Vec<Chart> {
    let mut by_device: Vec<(&str, Vec<usize>)> =
        kernels.distinct("device").iter().map(|d| (d.as_str(), Vec::new())).collect();
    let mut left = 0;
    for row in 0..kernels.len() {
        let shown = kernels.number("drawn", row) == Some(1.0)
            && drawable(kernels.number("intensity", row))
            && drawable(kernels.number("gflops", row));
        let device = kernels.text("device", row);
        match by_device.iter_mut().find(|(of, _)| *of == device) {
            Some((_, rows)) if shown => rows.push(row),
            _ => left += 1,
        }
    }
    by_device.retain(|(_, rows)| !rows.is_empty());
    by_device.sort_by_key(|(_, rows)| std::cmp::Reverse(rows.len()));
    let devices = by_device.len();
    let charts = by_device.into_iter().take(CHARTS).enumerate();
    charts.map(|(i, (device, rows))| roofline(records, kernels, device, rows, i, left, devices)).collect()
}

fn roofline(
    records: &[Record],
    kernels: &Dataset,
    device: &str,
    rows: Vec<usize>,
    index: usize,
    left: usize,
    devices: usize,
) -> Chart {
    // the dataset's device is cut to what a page shows; the records' may be longer
    let whole = records.iter().map(data::device).find(|whole| clip(whole) == device);
    let roofs = Roofs::of(records, whole.as_deref().unwrap_or(device));
    let values = |key: &str| rows.iter().filter_map(|&row| kernels.number(key, row)).collect::<Vec<_>>();
    let (xs, ys) = (values("intensity"), values("gflops"));
    let smallest = |list: &[f64]| list.iter().copied().fold(f64::INFINITY, f64::min);
    let largest = |list: &[f64]| list.iter().copied().fold(0.0, f64::max);
    let peak = roofs.peaks.iter().map(|p| p.gflops).fold(0.0, f64::max);
    let ridge = roofs.gbps.map_or(0.0, |gbps| peak / gbps);
    let mut x = [smallest(&xs) / 2.0, (largest(&xs) * 2.0).max(ridge * 8.0)];
    if ridge > 0.0 {
        x[0] = x[0].min(ridge / 8.0);
    }
    let y = [smallest(&ys) / 2.0, largest(&ys).max(peak) * 8.0];
    let mut lines = Vec::new();
    let (mut labels, mut sublabels) = (Vec::new(), Vec::new());
    let mut point = |x: f64, y: f64, roof: &str, modelled: bool| {
        lines.push(json!({"x": rounded(x), "y": rounded(y), "roof": roof, "modelled": modelled}));
    };
    for p in &roofs.peaks {
        let (label, modelled) = (p.label(), p.measured.is_empty());
        let start = roofs.gbps.map_or(x[0], |gbps| p.gflops / gbps);
        point(start, p.gflops, &label, modelled);
        point(x[1], p.gflops, &label, modelled);
        let (above, below) = label.split_once('\n').unwrap_or((&label, ""));
        labels.push(json!({"x": x[1], "y": rounded(p.gflops), "roof": above}));
        if !below.is_empty() {
            sublabels.push(json!({"x": x[1], "y": rounded(p.gflops), "roof": below}));
        }
    }
    let mut slope = Vec::new();
    if let Some(gbps) = roofs.gbps {
        let label = format!("memory read {} GB/s", si(gbps));
        let end = if ridge > 0.0 { ridge } else { x[1] };
        let start = x[0].max(y[0] / gbps);
        point(start, start * gbps, &label, false);
        point(end, end * gbps, &label, false);
        // above the roofs there are no points to write over
        slope.push(json!({"x": rounded(x[0]), "y": rounded(y[1] / 1.4), "roof": format!("slope: {label}")}));
    }
    let ops = names(kernels, "group", &rows);
    let scale = |domain: [f64; 2]| json!({"type": "log", "domain": domain.map(rounded), "nice": false});
    let axis = json!({"format": ".6~g", "labelOverlap": true, "tickCount": 6});
    let xs = |field: &str| json!({"field": field, "type": "quantitative", "scale": scale(x), "axis": with(axis.clone(), json!({"title": "arithmetic intensity, flop/byte"}))});
    let ys = |field: &str| json!({"field": field, "type": "quantitative", "scale": scale(y), "axis": with(axis.clone(), json!({"title": "GFLOP/s"}))});
    let size = if rows.len() > 500 { 18 } else { 55 };
    let text = |values: Vec<Value>, align: &str, baseline: &str, dx: f64, dy: f64| {
        json!({
            "data": {"values": values},
            "mark": {
                "type": "text", "align": align, "baseline": baseline, "dx": dx, "dy": dy,
                "limit": {"expr": "width - 8"}, "fontWeight": "bold",
            },
            "encoding": {"x": xs("x"), "y": ys("y"), "text": {"field": "roof", "type": "nominal"}},
        })
    };
    let spec = json!({
        "width": "container",
        "height": 380,
        "layer": [
            {
                "data": {"values": lines},
                "mark": {"type": "line", "color": "currentColor", "strokeWidth": 2, "clip": true},
                "encoding": {
                    "x": xs("x"), "y": ys("y"), "detail": {"field": "roof", "type": "nominal"},
                    "strokeDash": {"condition": {"test": "datum.modelled", "value": [5, 4]}, "value": [1, 0]},
                },
            },
            {
                "data": {"name": "kernels"},
                "mark": {"type": "point", "size": size, "strokeWidth": 1.2},
                "encoding": with(marks("group", Some("op"), &ops, "from"), json!({
                    "x": xs("intensity"),
                    "y": ys("gflops"),
                    "tooltip": tooltip(&[
                        ("kernel", "kernel", false), ("op", "op", false), ("shape", "shape", false), ("dtype", "dtype", false),
                        ("gflops", "GFLOP/s", true), ("intensity", "flop/byte", true), ("roof", "of roof (share)", true),
                        ("cache", "cache", false), ("from", "time is", false), ("notes", "notes", false),
                    ]),
                })),
            },
            text(labels, "right", "bottom", -2.0, -20.0),
            text(sublabels, "right", "bottom", -2.0, -5.0),
            text(slope, "left", "middle", 4.0, 2.0),
        ],
    });
    // what lies above its roof is suspicious, not good
    let share = |row: usize| kernels.number("roof", row).unwrap_or(0.0);
    let credible = rows.iter().filter(|&&row| !exceeds_roof(share(row)));
    let best = credible.max_by(|a, b| share(**a).total_cmp(&share(**b)));
    let best = best.map(|&row| {
        let (kernel, share) = (kernels.text("kernel", row), kernels.shown("roof", row));
        format!(" Nearest to the roof: {kernel} at {share}.")
    });
    let best = best.unwrap_or_default();
    let roof = match (roofs.gbps.is_some(), roofs.peaks.is_empty()) {
        (false, true) => "No ceiling was measured, so there is no roof to hold them against.".to_owned(),
        _ => {
            "Lines are the ceilings: the best that any probe of these records saw; a dashed one is modelled."
                .to_owned()
        }
    };
    let mut caption = format!(
        "Each point is a kernel on one shape, by how much it computes for each byte it must move and how fast it is. {roof} \
         Left of the ridge memory limits, right of it arithmetic. A hollow, dashed point is modelled.{best}"
    );
    if left > 0 && index == 0 {
        caption += &format!(
            " Not drawn: {left} results that are invalid, or count no operations or no bytes; the table has them."
        );
    }
    if devices > CHARTS && index == 0 {
        caption += &format!(
            " {CHARTS} of {devices} devices have a plot here, those with most kernels; the table has all."
        );
    }
    let label = format!(
        "Roofline plot of {device}: {} kernel results, logarithmic axes, {} ops.{best}",
        rows.len(),
        ops.len()
    );
    Chart {
        id: format!("roofline-{}", index + 1),
        title: format!("Roofline of {device}"),
        caption,
        label,
        dataset: "kernels",
        rows,
        columns: &["op", "dtype", "shape", "kernel", "intensity", "gflops", "roof", "from"],
        spec,
    }
}
