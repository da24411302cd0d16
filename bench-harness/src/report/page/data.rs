//! What a page shows, as columns: one dataset for each kind of record, from which both charts and tables read.
//!
//! Texts are cut to a length that a page can show and stored once a column; numbers keep five digits. A number that is not finite is
//! null, so nothing on the page needs to know NaN.

use perjoule_record::{CacheState, EnergyKind, Interval, Kind, Phase, Provenance, Record};
use serde::Serialize;
use serde_json::Value;
use std::collections::HashMap;

use crate::compare::row::tokens_per_s;
use crate::report::{above_roof, coverage, meters, silent_meters, units};

/// Characters of a name that are shown; longer ones end in an ellipsis.
const LONGEST: usize = 160;

/// How a column's values are written. The page's script has the same rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Format {
    /// As it is.
    Text,
    /// A whole number.
    Int,
    /// Three significant digits.
    Si,
    /// Nanoseconds.
    Ns,
    /// Joules.
    Joules,
    /// A share.
    Percent,
    /// One digit and an exponent.
    Error,
}

impl Format {
    /// The value as a person reads it.
    pub(crate) fn show(self, value: f64) -> String {
        match self {
            Format::Text | Format::Int => format!("{value:.0}"),
            Format::Si => units::si(value),
            Format::Ns => units::duration_ns(value),
            Format::Joules => units::joules(value),
            Format::Percent => units::percent(value),
            Format::Error if value == 0.0 => "0".into(),
            Format::Error => format!("{value:.0e}"),
        }
    }
}

/// The values of a column.
#[derive(Debug, Clone)]
enum Values {
    /// Indices into the texts.
    Texts {
        texts: Vec<String>,
        index: HashMap<String, usize>,
        rows: Vec<usize>,
    },
    Numbers(Vec<Option<f64>>),
}

/// A column: its name in specs, its heading, its values.
#[derive(Debug, Clone)]
struct Column {
    key: &'static str,
    title: String,
    format: Format,
    values: Values,
}

/// Columns of equal length.
#[derive(Debug, Clone, Default)]
pub(crate) struct Dataset {
    columns: Vec<Column>,
    rows: usize,
}

/// A cell on its way into a dataset.
pub(super) enum Cell {
    Text(String),
    Number(Option<f64>),
}

/// Five significant digits; nothing if it is not finite.
pub(crate) fn rounded(value: f64) -> Option<f64> {
    let value: f64 = format!("{value:.4e}").parse().ok()?;
    value.is_finite().then_some(value)
}

/// `text` without control characters, cut where a page could not show it.
pub(crate) fn clip(text: &str) -> String {
    let plain = |c: char| if c.is_control() || c == '\u{2028}' || c == '\u{2029}' { ' ' } else { c };
    let mut short: String = text.chars().take(LONGEST).map(plain).collect();
    if text.chars().nth(LONGEST).is_some() {
        short.push('…');
    }
    short
}

impl Dataset {
    pub(super) fn new(columns: &[(&'static str, &str, Format)]) -> Self {
        let column = |&(key, title, format): &(&'static str, &str, Format)| Column {
            key,
            title: title.to_owned(),
            format,
            values: match format {
                Format::Text => Values::Texts { texts: Vec::new(), index: HashMap::new(), rows: Vec::new() },
                _ => Values::Numbers(Vec::new()),
            },
        };
        Dataset { columns: columns.iter().map(column).collect(), rows: 0 }
    }

    pub(super) fn push<const N: usize>(&mut self, cells: [Cell; N]) {
        debug_assert_eq!(N, self.columns.len());
        for (column, cell) in self.columns.iter_mut().zip(cells) {
            match (&mut column.values, cell) {
                (Values::Texts { texts, index, rows }, Cell::Text(text)) => {
                    let text = clip(&text);
                    let next = texts.len();
                    let at = *index.entry(text.clone()).or_insert(next);
                    if at == next {
                        texts.push(text);
                    }
                    rows.push(at);
                }
                (Values::Numbers(rows), Cell::Number(value)) => rows.push(value.and_then(rounded)),
                (Values::Texts { rows, .. }, Cell::Number(_)) => rows.push(0),
                (Values::Numbers(rows), Cell::Text(_)) => rows.push(None),
            }
        }
        self.rows += 1;
    }

    /// Number of rows.
    pub(crate) fn len(&self) -> usize {
        self.rows
    }

    fn column(&self, key: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.key == key)
    }

    /// A text; empty where there is none.
    pub(crate) fn text(&self, key: &str, row: usize) -> &str {
        match self.column(key).map(|column| &column.values) {
            Some(Values::Texts { texts, rows, .. }) => {
                rows.get(row).and_then(|&at| texts.get(at)).map_or("", String::as_str)
            }
            _ => "",
        }
    }

    /// A number.
    pub(crate) fn number(&self, key: &str, row: usize) -> Option<f64> {
        match self.column(key).map(|column| &column.values) {
            Some(Values::Numbers(rows)) => rows.get(row).copied().flatten(),
            _ => None,
        }
    }

    /// Heading of a column and whether it holds numbers.
    pub(crate) fn heading(&self, key: &str) -> (&str, bool) {
        self.column(key).map_or(("", false), |column| (&column.title, column.format != Format::Text))
    }

    /// A cell as a person reads it: `a..b` for the key `a|b`.
    pub(crate) fn shown(&self, key: &str, row: usize) -> String {
        if let Some((low, high)) = key.split_once('|') {
            return match (self.number(low, row), self.number(high, row)) {
                (Some(_), Some(_)) => format!("{}..{}", self.shown(low, row), self.shown(high, row)),
                _ => "-".into(),
            };
        }
        match self.column(key) {
            Some(column) if column.format == Format::Text => match self.text(key, row) {
                "" => "-".into(),
                text => text.to_owned(),
            },
            Some(column) => self.number(key, row).map_or_else(|| "-".into(), |x| column.format.show(x)),
            None => "-".into(),
        }
    }

    /// What the intervals hold, by how the rows came to be.
    pub(crate) fn intervals(&self) -> Option<String> {
        let has = |key: &str, word: &str| self.distinct(key).iter().any(|text| text == word);
        // a ceiling that is modelled has no interval
        let predicted = has("from", "modelled") && self.column("test").is_some();
        let measured = has("from", "measured") || has("from", "imported");
        coverage(measured, has("energy", "modelled"), predicted)
    }

    /// The texts of a column in the order in which they first appear.
    pub(crate) fn distinct(&self, key: &str) -> &[String] {
        match self.column(key).map(|column| &column.values) {
            Some(Values::Texts { texts, .. }) => texts,
            _ => &[],
        }
    }

    /// What the page's script reads.
    pub(crate) fn to_json(&self) -> Value {
        let column = |column: &Column| match &column.values {
            Values::Texts { texts, rows, .. } => serde_json::json!({
                "key": column.key, "title": column.title, "format": column.format, "texts": texts, "rows": rows,
            }),
            Values::Numbers(rows) => serde_json::json!({
                "key": column.key, "title": column.title, "format": column.format, "rows": rows,
            }),
        };
        serde_json::json!({ "n": self.rows, "columns": self.columns.iter().map(column).collect::<Vec<_>>() })
    }
}

pub(super) fn text(field: &Option<String>) -> Cell {
    Cell::Text(field.clone().unwrap_or_default())
}

pub(super) fn number(value: impl Into<Option<f64>>) -> Cell {
    Cell::Number(value.into())
}

pub(super) fn count(value: Option<u64>) -> Cell {
    Cell::Number(value.map(|n| n as f64))
}

pub(super) fn low(interval: Option<Interval>) -> Cell {
    Cell::Number(interval.map(|i| i.lo))
}

pub(super) fn high(interval: Option<Interval>) -> Cell {
    Cell::Number(interval.map(|i| i.hi))
}

/// The device by what it is, and by the id that the command line takes.
pub(crate) fn device(record: &Record) -> String {
    let d = &record.device;
    let name = d.device_class.as_ref().or(d.device_name.as_ref());
    let together = d.device_count.filter(|&n| n > 1);
    let name = name.map(|name| together.map_or(name.clone(), |n| format!("{n} x {name}")));
    match (name, &d.device) {
        (Some(name), Some(id)) => format!("{name} ({id})"),
        (Some(name), None) => name,
        (None, Some(id)) => id.clone(),
        // a command may use any device: it is the machine's
        (None, None) => match (record.kind, &record.environment.cpu_model) {
            (Kind::Command, Some(cpu)) => format!("machine with {cpu}"),
            _ => "unknown device".into(),
        },
    }
}

/// How a record's figures came to be.
pub(crate) fn provenance(record: &Record) -> &'static str {
    record.provenance.as_str()
}

/// How a record's joules came to be; empty where there are none.
pub(crate) fn energy_kind(record: &Record) -> &'static str {
    record.energy.energy_kind.map_or("", EnergyKind::as_str)
}

fn cache(record: &Record) -> &'static str {
    record.workload.cache_state.map_or("", CacheState::as_str)
}

fn verified(record: &Record) -> &'static str {
    match record.verification.verified {
        Some(true) => "yes",
        Some(false) => "WRONG",
        None => "not checked",
    }
}

/// What makes a record doubtful, in words, the worst first.
pub(super) fn notes(record: &Record) -> String {
    let mut notes: Vec<String> = record.invalid_reasons.iter().map(|r| format!("INVALID: {r}")).collect();
    if !record.valid && notes.is_empty() {
        notes.push("INVALID: no reason given".into());
    }
    if let Some(share) = above_roof(record) {
        notes.push(format!("{} of the roof is suspicious", units::percent(share)));
    }
    let list = |list: &Option<Vec<String>>| list.as_ref().filter(|l| !l.is_empty()).map(|l| l.join(" and "));
    notes.extend(list(&record.throttle_reasons).map(|why| format!("throttled: {why}")));
    notes.extend(list(&record.disturbances).map(|why| format!("disturbed: {why}")));
    notes.extend(meters::also(record));
    notes.extend(record.energy.energy_unknown.as_ref().map(|why| format!("energy unknown: {why}")));
    notes.extend(silent_meters(record));
    notes.join("; ")
}

/// Whether a chart may show the record.
fn drawn(record: &Record) -> f64 {
    f64::from(u8::from(record.valid && record.verification.verified != Some(false)))
}

/// The interval of a rate from that of the time: `amount` per nanosecond.
fn rate_interval(record: &Record, amount: Option<f64>) -> Option<Interval> {
    let (ci, amount) = record.timing.ci95_ns.zip(amount)?;
    (ci.lo > 0.0 && ci.hi > 0.0).then(|| Interval { lo: amount / ci.hi, hi: amount / ci.lo })
}

/// The interval of a figure that is a fixed share of the window's joules.
fn energy_interval(record: &Record, figure: Option<f64>) -> Option<Interval> {
    let e = &record.energy;
    let ((ci, figure), joules) = e.energy_ci95.zip(figure).zip(e.joules)?;
    (joules > 0.0).then(|| ci.scaled(figure / joules))
}

/// Kernels by their best rate, so many of which have a colour of their own in an op's chart.
const SERIES: usize = 6;
/// What the rest is called.
pub(crate) const OTHERS: &str = "others";

/// The names that get a colour of their own, best first, for each group of `(group, name, rate)`.
fn leaders<'a>(rates: impl Iterator<Item = (&'a str, &'a str, f64)>) -> HashMap<(&'a str, &'a str), usize> {
    let mut best: HashMap<(&str, &str), f64> = HashMap::new();
    for (group, name, rate) in rates {
        let entry = best.entry((group, name)).or_insert(rate);
        *entry = entry.max(rate);
    }
    let mut list: Vec<_> = best.into_iter().collect();
    list.sort_by(|(a, x), (b, y)| a.0.cmp(b.0).then(y.total_cmp(x)).then(a.1.cmp(b.1)));
    let mut ranks = HashMap::new();
    let (mut group, mut rank) = ("", 0);
    for ((of, name), _) in list {
        if of != group {
            (group, rank) = (of, 0);
        }
        ranks.insert((of, name), rank);
        rank += 1;
    }
    ranks
}

pub(super) fn name(field: &Option<String>) -> &str {
    field.as_deref().unwrap_or("")
}

/// One row for each kernel result.
pub(crate) fn kernels(records: &[Record]) -> Dataset {
    let of_kind = || records.iter().filter(|r| r.kind == Kind::Kernel);
    let rate = |r: &Record| r.timing.gflops.filter(|x| *x > 0.0).or(r.timing.gbps).unwrap_or(0.0);
    let kernel_ranks = leaders(of_kind().map(|r| (name(&r.workload.op), name(&r.workload.kernel), rate(r))));
    let mut ops: HashMap<&str, f64> = HashMap::new();
    for record in of_kind() {
        *ops.entry(name(&record.workload.op)).or_default() += 1.0;
    }
    let op_ranks = leaders(ops.iter().map(|(op, n)| ("", *op, *n)));
    let mut data = Dataset::new(&[
        ("device", "device", Format::Text),
        ("op", "op", Format::Text),
        ("dtype", "dtype", Format::Text),
        ("shape", "shape", Format::Text),
        ("kernel", "kernel", Format::Text),
        ("cache", "cache", Format::Text),
        ("ns", "time", Format::Ns),
        ("ns_lo", "95 % from", Format::Ns),
        ("ns_hi", "to", Format::Ns),
        ("n", "samples", Format::Int),
        ("gflops", "GFLOP/s", Format::Si),
        ("gflops_lo", "GFLOP/s from", Format::Si),
        ("gflops_hi", "to", Format::Si),
        ("gbps", "GB/s", Format::Si),
        ("gbps_lo", "GB/s from", Format::Si),
        ("gbps_hi", "to", Format::Si),
        ("intensity", "flop/byte", Format::Si),
        ("roof", "of roof", Format::Percent),
        ("error", "error", Format::Error),
        ("verified", "verified", Format::Text),
        ("joules", "J/call", Format::Joules),
        ("per_tflop", "J/TFLOP", Format::Si),
        ("joules_lo", "J/call from", Format::Joules),
        ("joules_hi", "to", Format::Joules),
        ("energy", "energy", Format::Text),
        ("from", "time is", Format::Text),
        ("notes", "notes", Format::Text),
        ("where", "shape, dtype", Format::Text),
        ("series", "kernel", Format::Text),
        ("group", "op", Format::Text),
        ("drawn", "drawn", Format::Int),
    ]);
    let several = several_devices(records);
    for record in of_kind() {
        let (w, t, e) = (&record.workload, &record.timing, &record.energy);
        let device = device(record);
        let (op, kernel) = (name(&w.op), name(&w.kernel));
        let ranked = |rank: Option<&usize>, word: &str| match rank {
            Some(&rank) if rank < SERIES => word.to_owned(),
            _ => OTHERS.to_owned(),
        };
        let mut place = format!("{} {}", name(&w.shape), name(&w.dtype));
        if several {
            place = format!("{device}: {place}");
        }
        let flops = t.flops.filter(|&n| n > 0).map(|n| n as f64);
        let bytes = t.bytes.filter(|&n| n > 0).map(|n| n as f64);
        let (f, b) = (rate_interval(record, flops), rate_interval(record, bytes));
        let j = energy_interval(record, e.joules_per_call);
        data.push([
            Cell::Text(device),
            text(&w.op),
            text(&w.dtype),
            text(&w.shape),
            text(&w.kernel),
            Cell::Text(cache(record).into()),
            number(t.median_ns),
            low(t.ci95_ns),
            high(t.ci95_ns),
            count(t.samples_ns.as_ref().map(|s| s.len() as u64)),
            number(t.gflops),
            low(f),
            high(f),
            number(t.gbps),
            low(b),
            high(b),
            number(flops.zip(bytes).map(|(flops, bytes)| flops / bytes)),
            number(record.roof.roof_fraction),
            number(record.verification.max_rel_err),
            Cell::Text(verified(record).into()),
            number(e.joules_per_call),
            number(record.joules_per_tflop()),
            low(j),
            high(j),
            Cell::Text(energy_kind(record).into()),
            Cell::Text(provenance(record).into()),
            Cell::Text(notes(record)),
            Cell::Text(place),
            Cell::Text(ranked(kernel_ranks.get(&(op, kernel)), kernel)),
            Cell::Text(ranked(op_ranks.get(&("", op)), op)),
            number(drawn(record)),
        ]);
    }
    data
}

/// Whether more than one device is in the records.
pub(crate) fn several_devices(records: &[Record]) -> bool {
    records.first().is_some_and(|first| records.iter().any(|r| device(r) != device(first)))
}

/// Whether more than one device is among these.
pub(crate) fn several(records: &[&Record]) -> bool {
    records.first().is_some_and(|first| records.iter().any(|r| device(r) != device(first)))
}

/// Joules of a token of the kind that the test makes: generated ones where there are any.
pub(crate) fn joules_per_token(record: &Record) -> Option<f64> {
    record.energy.joules_per_output_token.or(record.energy.joules_per_total_token)
}

/// The part of inference that a record measures.
pub(crate) fn phase(record: &Record) -> &'static str {
    match record.workload.token_phase() {
        Some(Phase::Prefill) => "prefill",
        Some(Phase::Decode) => "decode",
        Some(Phase::Mixed) => "prefill and decode",
        _ => "unknown phase",
    }
}

/// One row for each result of a model.
pub(crate) fn tokens(records: &[Record]) -> Dataset {
    let mut data = Dataset::new(&[
        ("device", "device", Format::Text),
        ("model", "model", Format::Text),
        ("dtype", "dtype", Format::Text),
        ("test", "test", Format::Text),
        ("phase", "phase", Format::Text),
        ("parallel", "sequences", Format::Int),
        ("ts", "tokens/s", Format::Si),
        ("ts_sd", "± sd", Format::Percent),
        ("ts_lo", "tokens/s from", Format::Si),
        ("ts_hi", "to", Format::Si),
        ("n", "runs", Format::Int),
        ("roof", "of roof", Format::Percent),
        ("joules", "J/token", Format::Si),
        ("joules_lo", "J/token from", Format::Si),
        ("joules_hi", "to", Format::Si),
        ("net", "net of idle J/token", Format::Si),
        ("per_joule", "tokens/J", Format::Si),
        ("watts", "W", Format::Si),
        ("energy", "energy", Format::Text),
        ("from", "rate is", Format::Text),
        ("notes", "notes", Format::Text),
        ("where", "device, model, test", Format::Text),
        ("sweep", "sweep", Format::Text),
        ("drawn", "drawn", Format::Int),
    ]);
    let several = several_devices(records);
    for record in records.iter().filter(|r| r.kind == Kind::Tokens) {
        let (w, t, e) = (&record.workload, &record.timing, &record.energy);
        let (device, dtypes) = (device(record), w.dtypes());
        let test = w.token_test().unwrap_or_default();
        let part = if test.is_empty() { phase(record) } else { &test };
        let sequences = w.n_parallel.unwrap_or(1);
        let rate = tokens_per_s(record);
        let ts = rate.and_then(|rate| rate.interval).map(|[lo, hi]| Interval { lo, hi });
        let per_token = joules_per_token(record);
        let j = energy_interval(record, per_token);
        let net = e.net_joules_per_output_token.or(e.net_joules_per_total_token);
        let on = if several { format!("{device}: ") } else { String::new() };
        let model = format!("{} {}", name(&w.model), name(&dtypes));
        let times = if sequences > 1 { format!(" x{sequences}") } else { String::new() };
        data.push([
            Cell::Text(device),
            text(&w.model),
            text(&dtypes),
            Cell::Text(part.into()),
            Cell::Text(phase(record).into()),
            count(w.n_parallel),
            number(rate.map(|rate| rate.value)),
            number(t.stddev_ts.zip(t.avg_ts).filter(|(_, mean)| *mean > 0.0).map(|(sd, mean)| sd / mean)),
            low(ts),
            high(ts),
            count(t.samples_ns.as_ref().map(|s| s.len() as u64)),
            number(record.roof.roof_fraction),
            number(per_token),
            low(j),
            high(j),
            number(net),
            number(per_token.filter(|x| *x > 0.0).map(|x| 1.0 / x)),
            number(e.avg_power_w),
            Cell::Text(energy_kind(record).into()),
            Cell::Text(provenance(record).into()),
            Cell::Text(notes(record)),
            Cell::Text(format!("{on}{model} {part}{times}")),
            Cell::Text(format!("{on}{model} {part}")),
            number(drawn(record)),
        ]);
    }
    data
}

/// One row for each ceiling.
pub(crate) fn ceilings(records: &[Record]) -> Dataset {
    let mut data = Dataset::new(&[
        ("device", "device", Format::Text),
        ("what", "ceiling", Format::Text),
        ("gflops", "GFLOP/s", Format::Si),
        ("gflops_lo", "95 % from", Format::Si),
        ("gflops_hi", "to", Format::Si),
        ("gbps", "GB/s", Format::Si),
        ("gbps_lo", "95 % from", Format::Si),
        ("gbps_hi", "to", Format::Si),
        ("from", "rate is", Format::Text),
        ("how", "how", Format::Text),
        ("notes", "notes", Format::Text),
    ]);
    for record in records.iter().filter(|r| r.kind == Kind::Ceiling) {
        let t = &record.timing;
        let what = crate::report::ceiling(record).unwrap_or_default();
        let measured = record.provenance != Provenance::Modelled;
        let of = |n: Option<u64>| rate_interval(record, n.filter(|_| measured).map(|n| n as f64));
        let (f, b) = (of(t.flops), of(t.bytes));
        data.push([
            Cell::Text(device(record)),
            Cell::Text(what),
            number(t.gflops),
            low(f),
            high(f),
            number(t.gbps),
            low(b),
            high(b),
            Cell::Text(provenance(record).into()),
            text(&record.workload.config),
            Cell::Text(notes(record)),
        ]);
    }
    data
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_and_numbers_finite() {
        assert_eq!(clip("a\nb\u{2028}c"), "a b c");
        let long = clip(&"é".repeat(100_000));
        assert_eq!(long.chars().count(), LONGEST + 1);
        assert_eq!((rounded(f64::NAN), rounded(f64::INFINITY)), (None, None));
        assert_eq!((rounded(1e308), rounded(123_456.0)), (Some(1e308), Some(123_460.0)));
    }

    #[test]
    fn leaders_are_the_best_of_each_group() {
        let ranks = leaders([("a", "x", 1.0), ("a", "y", 3.0), ("a", "x", 2.0), ("b", "x", 9.0)].into_iter());
        assert_eq!((ranks[&("a", "y")], ranks[&("a", "x")], ranks[&("b", "x")]), (0, 1, 0));
    }
}
