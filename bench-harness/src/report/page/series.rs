//! What happened over time: windows of energy along a run, and readings within results.

use perjoule_record::{Kind, Record};
use serde_json::json;
use std::collections::BTreeMap;

use super::charts::{Chart, colours, drawable, names, tooltip};
use super::data::{self, Cell, Dataset, Format, energy_kind, name, number, text};
use crate::report::units::joules;

/// A pause that parts two sittings, in seconds.
const PAUSE: f64 = 3600.0;
/// Windows that are drawn.
const WINDOWS: usize = 1500;
/// Results whose readings are drawn, and readings of each: between two of those that are kept lie the lowest and the highest.
const TRACES: usize = 6;
const READINGS: usize = 300;

/// Seconds since 1970 of an RFC 3339 time.
fn seconds(time: &str) -> Option<f64> {
    chrono::DateTime::parse_from_rfc3339(time).ok().map(|time| time.timestamp_millis() as f64 / 1e3)
}

/// The part of a run that a record belongs to.
fn part(record: &Record) -> &'static str {
    match record.kind {
        Kind::Kernel => "kernels",
        Kind::Tokens => data::phase(record),
        Kind::Ceiling => "ceilings",
        _ => "other",
    }
}

fn what(record: &Record) -> String {
    let w = &record.workload;
    if record.kind == Kind::Command {
        return crate::report::command::label(record);
    }
    match w.token_test() {
        Some(test) => {
            let times = w.n_parallel.filter(|&n| n > 1).map(|n| format!(" x{n}")).unwrap_or_default();
            format!("{} {test}{times}", name(&w.model))
        }
        None => format!("{} {}", name(&w.kernel), name(&w.shape)),
    }
}

// -------------------------------------------------------------------------------------------------------- windows along a run

/// Windows of energy by the time of their result, and when the first one began, in seconds since 1970.
#[derive(Debug)]
pub(crate) struct Windows {
    pub(crate) data: Dataset,
    start: f64,
    /// Joules of each part in words.
    sums: String,
    /// Windows of other sittings, and those of little energy where there are too many.
    elsewhere: usize,
    small: usize,
}

/// A window of energy: seconds since 1970, seconds, watts.
#[derive(Clone, Copy)]
struct Window<'a> {
    time: f64,
    length: f64,
    watts: f64,
    record: &'a Record,
}

/// The windows of the longest sitting: of the results between two pauses, those with most windows.
pub(crate) fn windows(records: &[Record]) -> Windows {
    let window = |record: &'_ Record| -> Option<(f64, f64, f64)> {
        let e = &record.energy;
        let length = e.energy_window_s.filter(|s| *s > 0.0 && s.is_finite())?;
        let watts = e.avg_power_w.or(e.joules.map(|joules| joules / length))?;
        Some((seconds(record.test_time.as_deref()?)?, length, watts))
            .filter(|_| watts.is_finite() && watts >= 0.0)
    };
    let mut list: Vec<Window<'_>> = records
        .iter()
        .filter(|r| r.valid && !energy_kind(r).is_empty())
        .filter_map(|record| {
            window(record).map(|(time, length, watts)| Window { time, length, watts, record })
        })
        .collect();
    list.sort_by(|a, b| a.time.total_cmp(&b.time));
    let all = list.len();
    let together = |a: &Window<'_>, b: &Window<'_>| b.time - a.time - a.length < PAUSE;
    let sitting = list.chunk_by(together).max_by_key(|sitting| sitting.len()).unwrap_or_default();
    let (elsewhere, sums) = (all - sitting.len(), sums(sitting));
    let mut kept = sitting.to_vec();
    if kept.len() > WINDOWS {
        let size = |w: &Window<'_>| w.watts * w.length;
        kept.sort_by(|a, b| size(b).total_cmp(&size(a)));
        kept.truncate(WINDOWS);
        kept.sort_by(|a, b| a.time.total_cmp(&b.time));
    }
    let start = kept.first().map_or(0.0, |first| first.time);
    let mut data = Dataset::new(&[
        ("time", "time", Format::Text),
        ("device", "device", Format::Text),
        ("part", "part of the run", Format::Text),
        ("what", "result", Format::Text),
        ("watts", "mean W", Format::Si),
        ("idle", "W at rest", Format::Si),
        ("joules", "energy", Format::Joules),
        ("window", "window", Format::Ns),
        ("energy", "energy is", Format::Text),
        ("boundary", "boundary", Format::Text),
        ("source", "source", Format::Text),
        ("from", "from", Format::Si),
        ("to", "to", Format::Si),
    ]);
    // times are whole seconds, and a window comes after the one before
    let mut free = f64::NEG_INFINITY;
    for &Window { time, length, watts, record } in &kept {
        let from = (time - start).max(free);
        free = from + length;
        let e = &record.energy;
        data.push([
            text(&record.test_time),
            Cell::Text(data::device(record)),
            Cell::Text(part(record).into()),
            Cell::Text(what(record)),
            number(watts),
            number(e.idle_power_w),
            number(e.joules),
            number(1e9 * length),
            Cell::Text(energy_kind(record).into()),
            text(&e.energy_boundary),
            Cell::Text(e.energy_source.as_deref().unwrap_or("").split(". ").next().unwrap_or("").to_owned()),
            number(from),
            number(free),
        ]);
    }
    Windows { small: sitting.len() - kept.len(), data, start, sums, elsewhere }
}

/// Energy along the run: each window as high as its mean power, so that its area is its joules.
pub(crate) fn energy_over_time(windows: &Windows) -> Option<Chart> {
    let data = &windows.data;
    let rows: Vec<usize> = (0..data.len()).filter(|&row| drawable(data.number("watts", row))).collect();
    if rows.len() < 2 {
        return None;
    }
    let parts = names(data, "part", &rows);
    // milliseconds are what a time axis counts in
    let at = |field: &str, name: &str| json!({"calculate": format!("{} + 1000 * datum.{field}", 1e3 * windows.start), "as": name});
    let time = json!({
        "field": "from_ms", "type": "temporal", "scale": {"type": "utc"}, "title": "time, UTC", "axis": {"labelOverlap": true, "tickCount": 6},
    });
    let y = json!({"field": "watts", "type": "quantitative", "title": "mean power, W", "scale": {"zero": true}, "axis": {"tickCount": 5}});
    let colour = colours("part", Some("part of the run"), &parts);
    // dashes belong to a mark, not to its data, where it is a box
    let boxes = |test: &str, opacity: f64, dash: [f64; 2]| {
        json!({
            "transform": [{"filter": test}],
            "mark": {"type": "rect", "strokeWidth": 1.5, "strokeJoin": "round", "fillOpacity": opacity, "strokeDash": dash},
            "encoding": {
                "x": time, "x2": {"field": "to_ms"}, "y": y, "y2": {"field": "nothing"}, "stroke": colour, "fill": colour,
                "tooltip": tooltip(&[
                    ("what", "result", false), ("part", "part", false), ("watts", "mean W", true), ("joules", "J", true),
                    ("idle", "W at rest", true), ("energy", "energy is", false), ("boundary", "boundary", false), ("time", "time", false),
                ]),
            },
        })
    };
    let count = rows.iter().filter(|&&row| data.text("energy", row) == "modelled").count();
    // an empty layer has no extent, of which Vega warns
    let mut layers = Vec::new();
    if count < rows.len() {
        layers.push(boxes("datum.energy !== 'modelled'", 0.6, [1.0, 0.0]));
    }
    if count > 0 {
        layers.push(boxes("datum.energy === 'modelled'", 0.08, [3.0, 1.5]));
    }
    let spec = json!({
        "width": "container",
        "height": 240,
        "data": {"name": "windows"},
        "transform": [at("from", "from_ms"), at("to", "to_ms"), {"calculate": "0", "as": "nothing"}],
        "layer": layers,
    });
    let words = match count {
        0 => "All of them were measured.".to_owned(),
        n if n == rows.len() => "All of them are modelled, not measured: hollow and dashed.".to_owned(),
        n => format!("{n} of {} are modelled, not measured: hollow and dashed.", rows.len()),
    };
    let mut left = String::new();
    if windows.small > 0 {
        left +=
            &format!(" The {} windows with most energy are drawn, {} are not.", rows.len(), windows.small);
    }
    if windows.elsewhere > 0 {
        left += &format!(
            " {} windows of other times, with a pause of over an hour between, are left out.",
            windows.elsewhere
        );
    }
    let sums = &windows.sums;
    Some(Chart {
        id: "energy-time".into(),
        title: "Energy over the time of the run".into(),
        caption: format!(
            "Each box is the window in which the energy of one result was taken, from its time (whole seconds), one after another. It is \
             as high as the mean power, so its area is its joules; between boxes no energy was taken. {words}{sums}{left}"
        ),
        label: format!("Mean power of {} windows of energy by time. {words}{sums}", rows.len()),
        dataset: "windows",
        rows,
        columns: &[
            "time", "device", "part", "what", "watts", "idle", "joules", "window", "energy", "boundary",
            "source",
        ],
        spec,
    })
}

/// Joules of each part, where all windows are of one device, kind and boundary: others are never added.
fn sums(windows: &[Window<'_>]) -> String {
    let key = |w: &Window<'_>| {
        (data::device(w.record), energy_kind(w.record), w.record.energy.energy_boundary.clone())
    };
    if windows.iter().any(|w| key(w) != key(&windows[0])) {
        return String::new();
    }
    let mut parts: BTreeMap<&str, f64> = BTreeMap::new();
    for w in windows {
        *parts.entry(part(w.record)).or_default() +=
            w.record.energy.joules.filter(|x| x.is_finite()).unwrap_or(0.0);
    }
    let mut list: Vec<(&str, f64)> = parts.into_iter().filter(|(_, sum)| *sum > 0.0).collect();
    list.sort_by(|a, b| b.1.total_cmp(&a.1));
    let words: Vec<String> = list.iter().map(|(part, sum)| format!("{part} {}", joules(*sum))).collect();
    if words.is_empty() { String::new() } else { format!(" In all windows: {}.", words.join(", ")) }
}

// ----------------------------------------------------------------------------------------------------- readings within results

/// The readings of the results that were watched longest.
pub(crate) fn traces(records: &[Record]) -> Dataset {
    let mut data = Dataset::new(&[
        ("record", "result", Format::Text),
        ("t", "second", Format::Si),
        ("watts", "W", Format::Si),
        ("idle", "W at rest", Format::Si),
        ("clock", "MHz", Format::Si),
        ("temperature", "°C", Format::Si),
        ("energy", "energy is", Format::Text),
    ]);
    let length = |r: &&Record| {
        r.conditions
            .trace
            .as_ref()
            .and_then(|trace| Some(trace.t_s.last()? - trace.t_s.first()?))
            .unwrap_or(0.0)
    };
    let mut list: Vec<&Record> = records
        .iter()
        .filter(|r| r.conditions.trace.as_ref().is_some_and(|trace| trace.t_s.len() > 1))
        .collect();
    list.sort_by(|a, b| length(b).total_cmp(&length(a)));
    list.truncate(TRACES);
    list.sort_by(|a, b| a.test_time.cmp(&b.test_time));
    let several = data::several(&list);
    for (i, record) in list.iter().enumerate() {
        let Some(trace) = &record.conditions.trace else { continue };
        let e = &record.energy;
        let source = e.energy_source.as_deref().unwrap_or("").split(':').next().unwrap_or("");
        let on = if several { format!("{}: ", data::device(record)) } else { String::new() };
        let meter: Vec<&str> = [source, name(&e.energy_boundary), energy_kind(record)]
            .into_iter()
            .filter(|s| !s.is_empty())
            .collect();
        let meter = if meter.is_empty() { String::new() } else { format!(" ({})", meter.join(", ")) };
        let label = format!("{}. {on}{}{meter}", i + 1, what(record));
        let at = |list: &Option<Vec<Option<f64>>>, i: usize| {
            list.as_ref().and_then(|list| list.get(i).copied().flatten())
        };
        let lead = trace.watts.as_ref().or(trace.clock_mhz.as_ref()).or(trace.temperature_c.as_ref());
        for i in thinned(lead.map_or(&[], Vec::as_slice), trace.t_s.len()) {
            data.push([
                Cell::Text(label.clone()),
                number(trace.t_s[i]),
                number(at(&trace.watts, i)),
                number(e.idle_power_w),
                number(at(&trace.clock_mhz, i)),
                number(at(&trace.temperature_c, i)),
                Cell::Text(energy_kind(record).into()),
            ]);
        }
    }
    data
}

/// Which of `n` readings are kept: all, or the lowest and the highest of each stretch, so that no peak is lost.
fn thinned(lead: &[Option<f64>], n: usize) -> Vec<usize> {
    if n <= READINGS {
        return (0..n).collect();
    }
    let stretches = READINGS / 2;
    let value = |&i: &usize| lead.get(i).copied().flatten().filter(|x| x.is_finite());
    let mut kept = Vec::new();
    for stretch in 0..stretches {
        let range = stretch * n / stretches..(stretch + 1) * n / stretches;
        let known = || range.clone().filter(|i| value(i).is_some());
        let by = |a: &usize, b: &usize| value(a).unwrap_or(0.0).total_cmp(&value(b).unwrap_or(0.0));
        let mut pair = match (known().min_by(by), known().max_by(by)) {
            (Some(low), Some(high)) => vec![low, high],
            _ => range.clone().take(1).collect(),
        };
        pair.sort();
        pair.dedup();
        kept.extend(pair);
    }
    kept
}

/// Power, clock and temperature within results, as far as they were read.
pub(crate) fn readings(data: &Dataset) -> Vec<Chart> {
    let figures = [
        ("watts", "power-readings", "Power within results", "power, W"),
        ("clock", "clock-readings", "Clock within results", "clock, MHz"),
        ("temperature", "temperature-readings", "Temperature within results", "temperature, °C"),
    ];
    let chart = |(field, id, title, axis): (&'static str, &str, &str, &str)| {
        let rows: Vec<usize> = (0..data.len()).filter(|&row| data.number(field, row).is_some()).collect();
        if rows.len() < 2 {
            return None;
        }
        let records = names(data, "record", &rows);
        let pick = format!("pick_{field}");
        let zero = field == "watts";
        let x = json!({"field": "t", "type": "quantitative", "title": "seconds since the measurement began", "axis": {"tickCount": 6}});
        let y = json!({"field": field, "type": "quantitative", "title": axis, "scale": {"zero": zero}, "axis": {"tickCount": 5}});
        let dash =
            json!({"condition": {"test": "datum.energy === 'modelled'", "value": [4, 2]}, "value": [1, 0]});
        let faded = json!({"condition": {"param": pick, "value": 1}, "value": 0.12});
        let colour = colours("record", Some("result"), &records);
        let mut layers = vec![json!({
            "params": [{"name": pick, "select": {"type": "point", "fields": ["record"]}, "bind": "legend"}],
            "mark": {"type": "line", "strokeWidth": 1.5, "clip": true},
            "encoding": {
                "x": x, "y": y, "stroke": colour, "opacity": faded,
                "strokeDash": if zero { dash } else { json!({"value": [1, 0]}) },
            },
        })];
        let mut idle = String::new();
        if zero && rows.iter().any(|&row| data.number("idle", row).is_some()) {
            idle = " The thin level line is the power at rest.".into();
            layers.push(json!({
                "transform": [{"aggregate": [{"op": "max", "field": "idle", "as": "idle"}], "groupby": ["record"]}, {"filter": "isValid(datum.idle)"}],
                "mark": {"type": "rule", "strokeWidth": 1, "strokeDash": [1, 3]},
                "encoding": {"y": {"field": "idle", "type": "quantitative"}, "stroke": colour, "opacity": faded},
            }));
        }
        let modelled = zero && rows.iter().any(|&row| data.text("energy", row) == "modelled");
        let words = if modelled { " A dashed line is modelled, not measured." } else { "" };
        let (n, shown) = (records.len(), rows.len());
        let s = if n == 1 { "" } else { "s" };
        Some(Chart {
            id: id.into(),
            title: title.into(),
            caption: format!(
                "Readings while {n} result{s} were measured, those that took longest, from the start of each.{idle}{words} Of long series the \
                 lowest and highest reading of each stretch are kept. Choosing a result in the legend fades the others."
            ),
            label: format!("{title}: {shown} readings of {n} result{s} over seconds.{words}"),
            dataset: "traces",
            rows,
            columns: match field {
                "watts" => &["record", "t", "watts", "idle", "energy"],
                "clock" => &["record", "t", "clock"],
                _ => &["record", "t", "temperature"],
            },
            spec: json!({"width": "container", "height": if zero { 220 } else { 130 }, "data": {"name": "traces"}, "layer": layers}),
        })
    };
    figures.into_iter().filter_map(chart).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use perjoule_record::{EnergyKind, Environment, Trace};

    fn record(time: &str, joules: f64, window: f64) -> Record {
        let mut record = Record::new(Kind::Kernel, &Environment::default());
        record.test_time = Some(time.into());
        record.energy.energy_kind = Some(EnergyKind::Measured);
        record.energy.joules = Some(joules);
        record.energy.energy_window_s = Some(window);
        record
    }

    #[test]
    fn windows_follow_one_another_and_their_area_is_their_energy() {
        let list = [
            record("2026-11-26T06:00:00Z", 30.0, 2.0),
            record("2026-11-26T06:00:01Z", 10.0, 1.0),
            record("2026-11-26T06:10:00+00:00", 5.0, 1.0),
            record("2026-11-20T06:10:00Z", 5.0, 1.0),
            record("yesterday", 5.0, 1.0),
            record("2026-11-26T06:20:00Z", f64::NAN, 1.0),
            record("2026-11-26T06:30:00Z", 1.0, 0.0),
        ];
        let windows = windows(&list);
        let column = |key: &str| {
            (0..windows.data.len()).map(|row| windows.data.number(key, row).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(column("from"), [0.0, 2.0, 600.0]);
        assert_eq!(column("to"), [2.0, 3.0, 601.0]);
        assert_eq!(column("watts"), [15.0, 10.0, 5.0]);
        assert_eq!((windows.elsewhere, windows.start), (1, 1_795_672_800.0));
        let chart = energy_over_time(&windows).unwrap();
        assert!(
            chart.caption.contains("kernels 45.0 J") && chart.caption.contains("All of them were measured")
        );
        let mut other = list.to_vec();
        other[1].energy.energy_kind = Some(EnergyKind::Modelled);
        let chart = energy_over_time(&super::windows(&other)).unwrap();
        assert!(!chart.caption.contains("In all windows") && chart.caption.contains("1 of 3 are modelled"));
        assert!(energy_over_time(&super::windows(&[])).is_none());
    }

    #[test]
    fn thinning_keeps_the_peaks() {
        let mut lead: Vec<Option<f64>> = (0..10_000).map(|i| Some(f64::from(i % 7))).collect();
        (lead[5_000], lead[7_777], lead[3]) = (Some(1e6), Some(-1e6), None);
        let kept = thinned(&lead, lead.len());
        assert!(kept.len() <= READINGS && kept.contains(&5_000) && kept.contains(&7_777));
        assert!(kept.windows(2).all(|pair| pair[0] < pair[1]), "in the order of time");
        assert_eq!(thinned(&[], 1_000).len(), READINGS / 2, "nothing known is no reason to fail");
    }

    #[test]
    fn readings_of_unequal_length_are_no_reason_to_fail() {
        let mut a = record("2026-11-26T06:00:00Z", 1.0, 1.0);
        a.conditions.trace = Some(Trace {
            meter: None,
            t_s: vec![0.0, 1.0, f64::NAN],
            watts: Some(vec![Some(3.0), None]),
            clock_mhz: None,
            temperature_c: Some(vec![]),
        });
        a.energy.idle_power_w = Some(1.0);
        let data = traces(&[a]);
        assert_eq!((data.len(), data.number("watts", 0), data.number("watts", 2)), (3, Some(3.0), None));
        assert!(readings(&data).is_empty(), "one reading is no line");
    }
}
