//! Which series and runs are wanted, and what the index says of them.

use anyhow::{Result, ensure};
use rusqlite::{Row, params_from_iter};
use std::collections::{BTreeMap, HashMap};

use super::facts::{Figures, Metric, Series};
use super::index::Index;
use crate::compare::row::Quantity;
use crate::compare::workload::{canonical_dtype, canonical_model};

/// What is wanted: an open field allows everything. Texts that name things may be parts of the names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Selection {
    pub(crate) kind: Option<&'static str>,
    pub(crate) op: Option<String>,
    pub(crate) kernel: Option<String>,
    pub(crate) shape: Option<String>,
    pub(crate) dtype: Option<String>,
    pub(crate) model: Option<String>,
    pub(crate) test: Option<String>,
    pub(crate) device: Option<String>,
    pub(crate) machine: Option<String>,
    /// RFC 3339 in UTC without its `Z`, or the beginning of one.
    pub(crate) since: Option<String>,
    pub(crate) until: Option<String>,
}

impl Selection {
    /// Whether a series is wanted.
    fn takes(&self, series: &Series) -> bool {
        let part = |wanted: &Option<String>, of: &str| match wanted {
            Some(wanted) => of.to_lowercase().contains(&wanted.to_lowercase()),
            None => true,
        };
        let same =
            |wanted: Option<String>, of: &str| wanted.is_none_or(|wanted| of.eq_ignore_ascii_case(&wanted));
        let sizes = |text: &str| text.split(',').map(|size| size.trim().to_owned()).collect::<Vec<_>>();
        let model = self.model.as_deref().map(canonical_model);
        self.kind.is_none_or(|kind| series.kind == kind)
            && same(self.op.clone(), &series.op)
            && part(&self.kernel, &series.kernel)
            && self.shape.as_deref().is_none_or(|wanted| {
                let has = sizes(&series.shape);
                sizes(wanted).iter().all(|size| has.contains(size))
            })
            && same(self.dtype.as_deref().map(canonical_dtype), &series.dtype)
            && part(&model, &series.model)
            && same(self.test.clone(), &series.test)
            && part(&self.device, &series.device)
            && part(&self.machine, &series.machine)
    }

    /// Where a kernel or model has just the name that is wanted, longer names that hold it are not meant.
    fn prefer_whole_names(&self, series: &mut HashMap<i64, Series>) {
        let model = self.model.as_deref().map(canonical_model);
        type Name = fn(&Series) -> &str;
        let kernel_name: Name = |series| &series.kernel;
        let model_name: Name = |series| &series.model;
        for (wanted, of) in [(self.kernel.as_deref(), kernel_name), (model.as_deref(), model_name)] {
            let is = |one: &Series| wanted.is_some_and(|wanted| of(one).eq_ignore_ascii_case(wanted));
            if series.values().any(is) {
                series.retain(|_, one| is(one));
            }
        }
    }

    /// The condition on times and its values. A day stands for all of its hours.
    fn times(&self) -> (String, Vec<String>) {
        let mut text = String::new();
        let mut values = Vec::new();
        for (wanted, condition) in [(&self.since, ">="), (&self.until, "<=")] {
            if let Some(wanted) = wanted {
                text.push_str(&format!(" AND substr(record.time, 1, {}) {condition} ?", wanted.len()));
                values.push(wanted.clone());
            }
        }
        (text, values)
    }
}

/// One record of a series.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Point {
    pub(crate) time: Option<String>,
    pub(crate) run: String,
    /// Version of perjoule, or the name of another tool; empty when unknown, as the build.
    pub(crate) version: String,
    pub(crate) build: String,
    pub(crate) file: String,
    /// Why it must not be used.
    pub(crate) invalid: Option<String>,
    pub(crate) figures: Figures,
}

/// The records of one run.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Run {
    pub(crate) name: String,
    pub(crate) time: Option<String>,
    pub(crate) version: String,
    pub(crate) build: String,
    pub(crate) machine: String,
    pub(crate) devices: Vec<String>,
    pub(crate) records: u64,
    pub(crate) invalid: u64,
    /// How the numbers came to be: `measured`, `imported`, `modelled`, or several of them.
    pub(crate) provenance: Vec<String>,
    /// Number of records by kind, and the ops or models that they are of.
    pub(crate) kinds: BTreeMap<String, (u64, Vec<String>)>,
}

const SERIES: &str =
    "id, kind, provenance, what, op, kernel, shape, dtype, model, test, device, machine, unit";

fn series_of(row: &Row<'_>) -> rusqlite::Result<(i64, Series)> {
    let series = Series {
        kind: row.get(1)?,
        provenance: row.get(2)?,
        what: row.get(3)?,
        op: row.get(4)?,
        kernel: row.get(5)?,
        shape: row.get(6)?,
        dtype: row.get(7)?,
        model: row.get(8)?,
        test: row.get(9)?,
        device: row.get(10)?,
        machine: row.get(11)?,
        unit: row.get(12)?,
    };
    Ok((row.get(0)?, series))
}

impl Index {
    /// The series that are wanted, by id.
    fn wanted(&self, selection: &Selection) -> Result<HashMap<i64, Series>> {
        let mut statement = self.db.prepare(&format!("SELECT {SERIES} FROM series"))?;
        let all = statement.query_map([], series_of)?;
        let wanted = all.filter(|one| one.as_ref().map_or(true, |(_, series)| selection.takes(series)));
        let mut wanted: HashMap<i64, Series> = wanted.collect::<Result<_, _>>()?;
        selection.prefer_whole_names(&mut wanted);
        Ok(wanted)
    }

    /// The series that are wanted with their records, oldest first; series by what they are, then how known, then where measured.
    pub(crate) fn series(&self, selection: &Selection) -> Result<Vec<(Series, Vec<Point>)>> {
        let wanted = self.wanted(selection)?;
        let (times, values) = selection.times();
        let columns: Vec<String> = Metric::ALL
            .iter()
            .map(|metric| {
                let name = metric.name();
                let value = if *metric == Metric::Time { "time_ns" } else { name };
                format!("record.{value}, {name}_low, {name}_high")
            })
            .collect();
        let mut statement = self.db.prepare(&format!(
            "SELECT series, record.time, run.name, version, build, path, invalid, energy_kind, energy_boundary, {}
             FROM record JOIN run ON run.id = record.run JOIN file ON file.id = record.file
             WHERE record.file IN (SELECT file FROM chosen){times}
             ORDER BY series, coalesce(record.time, ''), path, place",
            columns.join(", ")
        ))?;
        let mut points: HashMap<i64, Vec<Point>> = HashMap::new();
        let mut rows = statement.query(params_from_iter(&values))?;
        while let Some(row) = rows.next()? {
            let series = row.get(0)?;
            if wanted.contains_key(&series) {
                points.entry(series).or_default().push(point(row)?);
            }
        }
        let mut list: Vec<(Series, Vec<Point>)> =
            points.into_iter().filter_map(|(id, points)| Some((wanted.get(&id)?.clone(), points))).collect();
        let order = |(series, points): &(Series, Vec<Point>)| {
            let first = points.first().map(|point| (point.time.clone(), point.file.clone()));
            (series.what.clone(), series.provenance.clone(), series.machine.clone(), first)
        };
        list.sort_by_cached_key(order);
        Ok(list)
    }

    /// The runs of the series that are wanted, newest first.
    pub(crate) fn runs(&self, selection: &Selection) -> Result<Vec<Run>> {
        let wanted = self.wanted(selection)?;
        let (times, values) = selection.times();
        let mut statement = self.db.prepare(&format!(
            "SELECT run.id, name, version, build, machine, series, count(*), count(invalid), min(record.time)
             FROM record JOIN run ON run.id = record.run
             WHERE record.file IN (SELECT file FROM chosen){times} GROUP BY run.id, series ORDER BY run.id, series"
        ))?;
        let mut runs: BTreeMap<i64, Run> = BTreeMap::new();
        let mut rows = statement.query(params_from_iter(&values))?;
        while let Some(row) = rows.next()? {
            let Some(series) = wanted.get(&row.get(5)?) else { continue };
            let run = runs.entry(row.get(0)?).or_default();
            (run.name, run.version, run.build) = (row.get(1)?, row.get(2)?, row.get(3)?);
            run.machine = row.get(4)?;
            let records: u64 = row.get::<_, i64>(6)?.unsigned_abs();
            run.records += records;
            run.invalid += row.get::<_, i64>(7)?.unsigned_abs();
            let time: Option<String> = row.get(8)?;
            run.time = match (run.time.take(), time) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
            add(&mut run.devices, &series.device);
            add(&mut run.provenance, &series.provenance);
            let (count, names) = run.kinds.entry(series.kind.clone()).or_default();
            *count += records;
            let name = [&series.model, &series.op, &series.what].into_iter().find(|name| !name.is_empty());
            name.into_iter().for_each(|name| add(names, name));
        }
        let mut list: Vec<Run> = runs.into_values().collect();
        list.sort_by(|a, b| (&b.time, &b.name).cmp(&(&a.time, &a.name)));
        Ok(list)
    }
}

fn add(list: &mut Vec<String>, name: &str) {
    if !name.is_empty() && !list.iter().any(|known| known == name) {
        list.push(name.to_owned());
    }
}

fn point(row: &Row<'_>) -> rusqlite::Result<Point> {
    let mut metrics = [None; 5];
    for (i, metric) in metrics.iter_mut().enumerate() {
        let number = |at: usize| row.get::<_, Option<f64>>(9 + 3 * i + at);
        let interval = number(1)?.zip(number(2)?).map(|(low, high)| [low, high]);
        *metric = number(0)?.and_then(|value| Quantity::new(value, interval));
    }
    Ok(Point {
        time: row.get(1)?,
        run: row.get(2)?,
        version: row.get(3)?,
        build: row.get(4)?,
        file: row.get(5)?,
        invalid: row.get(6)?,
        figures: Figures { metrics, energy_kind: row.get(7)?, energy_boundary: row.get(8)? },
    })
}

/// Reads `2026-11-25`, `2026-11-25T07:36`, or an age such as `7d` before `now` (seconds since 1970).
///
/// # Errors
/// What is neither.
pub(crate) fn parse_time(flag: &str, text: &str, now: u64) -> Result<String> {
    let text = text.trim();
    let units = [('w', 604_800), ('d', 86_400), ('h', 3600), ('m', 60)];
    if let Some(age) = units.iter().find_map(|(unit, seconds)| {
        let n: u64 = text.strip_suffix(*unit)?.parse().ok()?;
        n.checked_mul(*seconds)
    }) {
        return Ok(perjoule_record::rfc3339(now.saturating_sub(age)).trim_end_matches('Z').to_owned());
    }
    const FORM: &[u8] = b"0000-00-00T00:00:00";
    let trimmed = text.trim_end_matches('Z').replace(' ', "T");
    let fits = trimmed.bytes().zip(FORM).all(|(c, form)| match form {
        b'0' => c.is_ascii_digit(),
        form => c == *form,
    });
    ensure!(
        fits && [4, 7, 10, 13, 16, 19].contains(&trimmed.len()),
        "{flag} {text}: expected a time such as 2026-11-25 or 2026-11-25T07:36 (UTC), or an age such as 7d or 12h"
    );
    Ok(trimmed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_prefixes_or_ages() {
        let of = |text: &str| parse_time("--since", text, 1_800_000_000);
        assert_eq!(of("2026-11-25").unwrap(), "2026-11-25");
        assert_eq!(of("2026-11-25 07:36Z").unwrap(), "2026-11-25T07:36");
        assert_eq!(of("1d").unwrap(), "2027-01-14T08:00:00");
        assert_eq!(of("999999999w").unwrap(), "1970-01-01T00:00:00");
        for text in [
            "",
            "yesterday",
            "25.11.2026",
            "2026-1-2",
            "2026-11-2",
            "-1d",
            "99999999999999999999w",
            "2026-11-25T07:36:00+01:00",
        ] {
            assert!(of(text).unwrap_err().to_string().contains("7d"), "{text}");
        }
    }

    #[test]
    fn selections_take_parts_of_names_and_sizes_of_shapes() {
        let series = Series {
            kind: "kernel".into(),
            op: "matmul".into(),
            kernel: "matmul_bf16_cpu".into(),
            shape: "m=1,n=4096,k=4096".into(),
            dtype: "bf16".into(),
            machine: "AMD EPYC, 2 threads".into(),
            ..Series::default()
        };
        let some = |text: &str| Some(text.to_owned());
        let takes = |selection: Selection| selection.takes(&series);
        assert!(takes(Selection::default()));
        assert!(takes(Selection { kernel: some("BF16"), machine: some("epyc"), ..Selection::default() }));
        assert!(takes(Selection {
            shape: some("k=4096, m=1"),
            dtype: some("bfloat16"),
            ..Selection::default()
        }));
        assert!(!takes(Selection { shape: some("m=16"), ..Selection::default() }));
        assert!(!takes(Selection { op: some("mat"), ..Selection::default() }), "an op is named in full");
        assert!(!takes(Selection { kind: Some("tokens"), ..Selection::default() }));

        let named = |kernel: &str| Series { kernel: kernel.into(), ..Series::default() };
        let mut found = HashMap::from([(1, named("dots")), (2, named("dots_packed"))]);
        Selection { kernel: some("dot"), ..Selection::default() }.prefer_whole_names(&mut found);
        assert_eq!(found.len(), 2);
        Selection { kernel: some("Dots"), ..Selection::default() }.prefer_whole_names(&mut found);
        assert!(found.len() == 1 && found.contains_key(&1));
    }
}
