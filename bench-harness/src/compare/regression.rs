//! Two files of records, line by line: what became faster or slower.
//!
//! Lines match when everything that was asked for is equal: kind, device, op, kernel, dtype, shape, cache state, model, sizes and threads;
//! of a command its name, else the command line.
//! How a kernel is configured may differ: that is what changes. Verdicts are those of [`stats::compare`]: samples of two files were
//! not taken in turn, so whatever changed on the machine meanwhile is in them.

use anyhow::{Result, bail, ensure};
use perjoule_record::stats::{Comparer, Comparison, Verdict};
use perjoule_record::{CacheState, Kind, Provenance, Record};
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

use crate::report::one_line;

/// Seed of the bootstrap.
const SEED: u64 = 1;
/// Threshold when none is given.
pub(crate) const FAIL_ON: f64 = 0.03;

/// What makes two lines the same measurement.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key<'a> {
    kind: &'static str,
    provenance: &'static str,
    machine: Option<Machine<'a>>,
    /// Device, op, kernel, dtype, shape, model, configuration of a ceiling, cache state, command.
    texts: [Option<&'a str>; 9],
    /// Prompt, generated, depth, chunk, sequences, threads.
    sizes: [Option<u64>; 6],
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Machine<'a> {
    cpu_model: Option<&'a str>,
    cpu_features: BTreeSet<&'a str>,
    device_name: Option<&'a str>,
}

impl<'a> Machine<'a> {
    fn of(record: &'a Record) -> Self {
        let e = &record.environment;
        Machine {
            cpu_model: e.cpu_model.as_deref(),
            cpu_features: e.cpu_features.iter().flatten().map(String::as_str).collect(),
            device_name: record.device.device_name.as_deref(),
        }
    }
}

/// How lines are matched.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Rules {
    /// Relative difference that matters.
    pub(crate) threshold: f64,
    /// Kernels of different names match.
    pub(crate) any_kernel: bool,
    /// Machines and numbers of threads may differ.
    pub(crate) any_machine: bool,
}

impl Rules {
    fn key<'a>(&self, record: &'a Record) -> Key<'a> {
        let w = &record.workload;
        let kind = kind_word(record.kind);
        let process = &record.process;
        let kernel = w.kernel.as_deref().filter(|_| !self.any_kernel);
        let config = w.config.as_deref().filter(|_| record.kind == Kind::Ceiling);
        let cache = w.cache_state.map(|state| match state {
            CacheState::Rotate => "rotate",
            CacheState::Hot => "hot",
            CacheState::Cold => "cold",
            _ => "other",
        });
        let threads = w.n_threads.filter(|_| !self.any_machine);
        Key {
            kind,
            provenance: match record.provenance {
                Provenance::Measured => "measured",
                Provenance::Imported => "imported",
                Provenance::Modelled => "modelled",
                _ => "unknown",
            },
            machine: (!self.any_machine).then(|| Machine::of(record)),
            texts: [
                record.device.device.as_deref(),
                w.op.as_deref(),
                kernel,
                w.dtype.as_deref(),
                w.shape.as_deref(),
                w.model.as_deref(),
                config,
                cache,
                process.exec_name.as_deref().or(process.exec_command.as_deref()),
            ],
            sizes: [w.n_prompt, w.n_gen, w.n_depth, w.n_batch, w.n_parallel, threads],
        }
    }
}

/// What became of a line.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Outcome {
    /// Samples on both sides.
    Compared(Comparison),
    /// A side must not be used.
    Invalid(String),
    /// A side has no samples to judge by.
    NoSamples(String),
    /// Only the old file has it.
    OnlyOld,
    /// Only the new file has it.
    OnlyNew,
}

/// A measurement that is in one of the files or both.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Line<'a> {
    /// What was measured, in words.
    pub(crate) label: String,
    pub(crate) kind: &'static str,
    pub(crate) old: Option<&'a Record>,
    pub(crate) new: Option<&'a Record>,
    pub(crate) outcome: Outcome,
}

impl Line<'_> {
    /// The verdict in a word.
    pub(crate) fn verdict(&self) -> &'static str {
        match &self.outcome {
            Outcome::Compared(c) => match c.verdict {
                Verdict::Faster => "faster",
                Verdict::Slower => "slower",
                Verdict::Same => "same",
                Verdict::Unclear => "unclear",
            },
            Outcome::Invalid(_) => "invalid",
            Outcome::NoSamples(_) => "no samples",
            Outcome::OnlyOld => "only old",
            Outcome::OnlyNew => "only new",
        }
    }

    /// Whether it is what a run must fail for: certainly slower, and by more than the threshold. A ceiling that is slower is a machine
    /// that is slower.
    pub(crate) fn is_regression(&self, threshold: f64) -> bool {
        let beyond = |c: &Comparison| c.verdict == Verdict::Slower && c.ratio > 1.0 + threshold;
        self.kind != "ceiling" && matches!(&self.outcome, Outcome::Compared(c) if beyond(c))
    }

    /// The first of those that must be looked at.
    fn rank(&self, threshold: f64) -> u8 {
        match self.verdict() {
            _ if self.is_regression(threshold) => 0,
            "invalid" => 1,
            "slower" => 2,
            "unclear" => 3,
            "no samples" => 4,
            "only old" => 5,
            "only new" => 6,
            "faster" => 7,
            _ => 8,
        }
    }
}

/// Everything that is said of two files.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Report<'a> {
    pub(crate) old: &'a str,
    pub(crate) new: &'a str,
    pub(crate) threshold: f64,
    /// What must be looked at comes first, then in the order of the new file.
    pub(crate) lines: Vec<Line<'a>>,
    pub(crate) notes: Vec<String>,
}

/// The verdicts in the order in which they are counted.
pub(crate) const VERDICTS: [&str; 8] =
    ["slower", "faster", "same", "unclear", "invalid", "no samples", "only old", "only new"];

impl Report<'_> {
    /// Lines that a run must fail for.
    pub(crate) fn regressions(&self) -> usize {
        self.lines.iter().filter(|line| line.is_regression(self.threshold)).count()
    }

    /// Lines of a verdict.
    pub(crate) fn count(&self, verdict: &str) -> usize {
        self.lines.iter().filter(|line| line.verdict() == verdict).count()
    }

    /// In one line.
    pub(crate) fn summary(&self) -> String {
        let counted = VERDICTS.iter().map(|verdict| (self.count(verdict), verdict)).filter(|(n, _)| *n > 0);
        let counted: Vec<String> = counted.map(|(n, verdict)| format!("{n} {verdict}")).collect();
        let counted = if counted.is_empty() { "nothing to compare".into() } else { counted.join(", ") };
        match self.regressions() {
            0 => format!("no regression beyond {}: {counted}", percent(self.threshold)),
            1 => format!("1 regression beyond {}: {counted}", percent(self.threshold)),
            n => format!("{n} regressions beyond {}: {counted}", percent(self.threshold)),
        }
    }
}

/// A relative difference, without digits that it does not need.
pub(crate) fn percent(share: f64) -> String {
    let text = format!("{:.2}", 100.0 * share);
    format!("{} %", text.trim_end_matches('0').trim_end_matches('.'))
}

/// Reads `3%` or `0.03`.
pub(crate) fn parse_threshold(text: &str) -> Result<f64> {
    let value = match text.trim().strip_suffix('%') {
        Some(number) => number.trim().parse::<f64>().map(|percent| percent / 100.0),
        None => text.trim().parse::<f64>(),
    };
    let Ok(value) = value else { bail!("--fail-on {text}: expected a difference such as 3% or 0.03") };
    ensure!(value.is_finite() && value >= 0.0, "--fail-on {text}: expected a difference such as 3% or 0.03");
    ensure!(value < 1.0, "--fail-on {text}: slower by the whole time or more; 3 per cent is 3% or 0.03");
    Ok(value)
}

/// The newest record of each key, in order, and how many older ones stand behind them.
fn newest<'a>(records: &'a [Record], rules: &Rules) -> (Vec<(Key<'a>, &'a Record)>, usize) {
    let mut place: BTreeMap<Key<'a>, usize> = BTreeMap::new();
    let mut list: Vec<(Key<'a>, &'a Record)> = Vec::new();
    let mut older = 0;
    for record in records {
        let key = rules.key(record);
        match place.get(&key) {
            Some(&at) => {
                older += 1;
                // without times, the later line is the newer one
                if record.test_time >= list[at].1.test_time {
                    list[at].1 = record;
                }
            }
            None => {
                place.insert(key.clone(), list.len());
                list.push((key, record));
            }
        }
    }
    (list, older)
}

/// Matches and judges two files of records.
///
/// # Errors
/// Files of different machines, unless the rules allow it; files without records.
pub(crate) fn regression<'a>(
    (old_name, old): (&'a str, &'a [Record]),
    (new_name, new): (&'a str, &'a [Record]),
    rules: &Rules,
) -> Result<Report<'a>> {
    for (name, records) in [(old_name, old), (new_name, new)] {
        ensure!(!records.is_empty(), "{name} holds no records");
    }
    if !rules.any_machine {
        same_machine((old_name, old), (new_name, new))?;
    }
    let mut notes = Vec::new();
    // what follows from another ceiling is no measurement of its own
    let derived = |record: &Record| record.kind == Kind::Ceiling && record.provenance == Provenance::Modelled;
    let mut sides = [old, new].map(|records| newest(records, rules));
    for ((_, older), name) in sides.iter().zip([old_name, new_name]) {
        if *older > 0 {
            notes.push(format!("{name}: {older} records have a newer one of the same measurement: left out"));
        }
    }
    sides.iter_mut().for_each(|(list, _)| list.retain(|(_, record)| !derived(record)));
    let [(old_list, _), (new_list, _)] = &sides;
    let by_key: BTreeMap<&Key<'_>, &Record> = old_list.iter().map(|(key, record)| (key, *record)).collect();
    let matched: BTreeSet<&Key<'_>> = new_list.iter().map(|(key, _)| key).collect();
    let both: Vec<(Option<&Record>, Option<&Record>)> = new_list
        .iter()
        .map(|(key, record)| (by_key.get(key).copied(), Some(*record)))
        .chain(
            old_list
                .iter()
                .filter(|(key, _)| !matched.contains(key))
                .map(|(_, record)| (Some(*record), None)),
        )
        .collect();
    let sizes: BTreeSet<(usize, usize)> = both
        .iter()
        .filter_map(|(old, new)| old.zip(*new))
        .map(|(old, new)| (samples(old).len(), samples(new).len()))
        .collect();
    let comparer = Comparer::new(rules.threshold, SEED, sizes);
    let mut lines: Vec<Line<'a>> =
        both.into_par_iter().filter_map(|(old, new)| line(&comparer, old, new)).collect();
    lines.sort_by_key(|line| line.rank(rules.threshold));
    let ceilings: Vec<&str> = lines
        .iter()
        .filter(|line| line.kind == "ceiling" && ["slower", "faster"].contains(&line.verdict()))
        .map(|line| line.label.as_str())
        .collect();
    if !ceilings.is_empty() {
        notes.push(format!(
            "the machine itself was not the same: {}; differences of kernels may come from that",
            ceilings.join(", ")
        ));
    }
    Ok(Report { old: old_name, new: new_name, threshold: rules.threshold, lines, notes })
}

fn kind_word(kind: Kind) -> &'static str {
    match kind {
        Kind::Ceiling => "ceiling",
        Kind::Kernel => "kernel",
        Kind::Tokens => "tokens",
        Kind::Command => "command",
        _ => "other",
    }
}

fn samples(record: &Record) -> &[f64] {
    record.timing.samples_ns.as_deref().unwrap_or_default()
}

fn line<'a>(comparer: &Comparer, old: Option<&'a Record>, new: Option<&'a Record>) -> Option<Line<'a>> {
    let some = new.or(old)?;
    let kind = kind_word(some.kind);
    let invalid = |side: &str, record: &Record| {
        if !record.valid {
            let reasons = record.invalid_reasons.join("; ");
            let reasons = if reasons.is_empty() { "no reason given".into() } else { reasons };
            Some(format!("{side}: {}", one_line(&reasons)))
        } else {
            (record.verification.verified == Some(false)).then(|| format!("{side}: its output was wrong"))
        }
    };
    let faults: Vec<String> = [old.and_then(|r| invalid("old", r)), new.and_then(|r| invalid("new", r))]
        .into_iter()
        .flatten()
        .collect();
    let outcome = match (old, new) {
        _ if !faults.is_empty() => Outcome::Invalid(faults.join("; ")),
        (Some(old), Some(new)) => match comparer.compare(samples(old), samples(new)) {
            Some(compared) => Outcome::Compared(compared),
            None => Outcome::NoSamples(
                "a verdict needs two samples or more on either side, all of them positive numbers".into(),
            ),
        },
        (Some(_), None) => Outcome::OnlyOld,
        _ => Outcome::OnlyNew,
    };
    Some(Line { label: label(some), kind, old, new, outcome })
}

/// What was measured, in words.
fn label(record: &Record) -> String {
    let w = &record.workload;
    let mut words: Vec<String> = Vec::new();
    let mut push = |text: Option<String>| words.extend(text.filter(|text| !text.is_empty()));
    push(record.process.exec_name.clone().or_else(|| record.process.exec_command.clone()));
    push(w.op.clone());
    push(w.model.clone());
    push(w.dtype.clone());
    push(w.shape.clone());
    push(w.token_test());
    push(w.n_parallel.filter(|n| *n > 1).map(|n| format!("x{n}")));
    push(w.kernel.clone());
    push(w.cache_state.map(|state| match state {
        CacheState::Rotate => "rotate".into(),
        CacheState::Hot => "hot".into(),
        CacheState::Cold => "cold".into(),
        _ => "other cache state".into(),
    }));
    push(w.n_threads.map(|n| format!("{n} threads")));
    if record.kind == Kind::Ceiling {
        push(w.config.clone());
    }
    push(record.device.device.clone().filter(|device| device != "cpu"));
    if words.is_empty() { "a record without a name".into() } else { one_line(&words.join(" ")) }
}

/// Refuses files of different machines.
fn same_machine(old: (&str, &[Record]), new: (&str, &[Record])) -> Result<()> {
    fn set<'a>(records: &'a [Record], of: impl Fn(&'a Record) -> String) -> BTreeSet<String> {
        records.iter().map(of).collect()
    }
    let text = |field: &Option<String>| field.clone().unwrap_or_else(|| "unknown".into());
    let mut differ = Vec::new();
    let mut check = |name: &str, old: BTreeSet<String>, new: BTreeSet<String>| {
        // a file may hold a part of what the other holds
        if old.is_disjoint(&new) {
            let list = |set: &BTreeSet<String>| set.iter().cloned().collect::<Vec<_>>().join(" or ");
            differ.push(format!("{name} ({} and {})", list(&old), list(&new)));
        }
    };
    let cpu = |r: &Record| text(&r.environment.cpu_model);
    check("cpu_model", set(old.1, cpu), set(new.1, cpu));
    let device = |r: &Record| text(&r.device.device_name);
    check("device_name", set(old.1, device), set(new.1, device));
    let features = |r: &Record| match &r.environment.cpu_features {
        Some(list) => {
            let mut list = list.clone();
            list.sort_unstable();
            if list.is_empty() { "none".into() } else { list.join(" ") }
        }
        None => "unknown".into(),
    };
    check("features", set(old.1, features), set(new.1, features));
    let threads = |r: &Record| r.workload.n_threads.map_or("unknown".into(), |n| n.to_string());
    check("threads", set(old.1, threads), set(new.1, threads));
    ensure!(
        differ.is_empty(),
        "{} and {} are of different machines: {}; --loose machine compares them all the same",
        old.0,
        new.0,
        differ.join(", ")
    );
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use perjoule_record::Environment;

    /// A kernel whose samples scatter by `noise` around `centre`.
    pub(crate) fn kernel(name: &str, centre: f64, noise: f64) -> Record {
        let mut record = Record::new(Kind::Kernel, &Environment::default());
        let w = &mut record.workload;
        (w.op, w.kernel, w.dtype) = (Some("matmul".into()), Some(name.into()), Some("bf16".into()));
        (w.shape, w.n_threads, w.cache_state) = (Some("m=1".into()), Some(2), Some(CacheState::Hot));
        record.environment.cpu_model = Some("Test CPU".into());
        let at = |i: usize| centre * (1.0 + noise * ((i * 7919 % 101) as f64 / 50.0 - 1.0));
        record.timing.samples_ns = Some((0..30).map(at).collect());
        record
    }

    pub(crate) const RULES: Rules = Rules { threshold: 0.03, any_kernel: false, any_machine: false };

    fn report<'a>(old: &'a [Record], new: &'a [Record]) -> Report<'a> {
        regression(("old", old), ("new", new), &RULES).unwrap()
    }

    #[test]
    fn verdicts_are_those_of_the_samples() {
        for (factor, noise, verdict, fails) in [
            (1.0, 0.005, "same", 0),
            (1.05, 0.005, "slower", 1),
            (0.9, 0.005, "faster", 0),
            (1.0, 0.5, "unclear", 0),
            // certain, but within the threshold
            (1.02, 0.005, "same", 0),
        ] {
            let (old, new) = ([kernel("k", 1000.0, noise)], [kernel("k", 1000.0 * factor, noise)]);
            let report = report(&old, &new);
            assert_eq!(report.lines[0].verdict(), verdict, "{factor} {noise}: {:?}", report.lines);
            assert_eq!(report.regressions(), fails);
        }
    }

    #[test]
    fn a_difference_that_reaches_beyond_the_threshold_but_is_not_is_no_regression() {
        let compared =
            Comparison { ratio: 1.025, ci95: [1.01, 1.04].into(), p_value: 0.0, verdict: Verdict::Slower };
        let line = |ratio: f64, kind| Line {
            label: String::new(),
            kind,
            old: None,
            new: None,
            outcome: Outcome::Compared(Comparison { ratio, ..compared }),
        };
        assert!(!line(1.025, "kernel").is_regression(0.03));
        assert!(line(1.035, "kernel").is_regression(0.03));
        assert!(!line(1.035, "ceiling").is_regression(0.03), "that is the machine");
    }

    #[test]
    fn what_has_no_counterpart_is_named() {
        let old = [kernel("a", 1.0, 0.0), kernel("b", 1.0, 0.0)];
        let new = [kernel("b", 1.0, 0.0), kernel("c", 1.0, 0.0)];
        let report = report(&old, &new);
        let verdicts: Vec<(&str, &str)> =
            report.lines.iter().map(|line| (line.verdict(), line.label.split(' ').nth(3).unwrap())).collect();
        assert_eq!(verdicts, [("only old", "a"), ("only new", "c"), ("same", "b")]);
        let any = Rules { any_kernel: true, ..RULES };
        let pair = regression(("old", &old[..1]), ("new", &new[1..]), &any).unwrap();
        assert_eq!(pair.lines.len(), 1, "kernels of other names match when asked for");
    }

    #[test]
    fn invalid_records_are_never_good() {
        let mut bad = kernel("k", 500.0, 0.005);
        bad.invalidate("wrong result");
        let (old, new) = ([kernel("k", 1000.0, 0.005)], [bad.clone()]);
        let compared = report(&old, &new);
        assert_eq!((compared.lines[0].verdict(), compared.count("faster")), ("invalid", 0));
        // an older valid record does not stand in for it
        bad.test_time = Some("2999-01-01T00:00:00Z".into());
        let two = [kernel("k", 1000.0, 0.005), bad];
        assert_eq!(report(&old, &two).lines[0].verdict(), "invalid");
        let mut wrong = kernel("k", 1000.0, 0.005);
        wrong.verification.verified = Some(false);
        assert_eq!(report(&old, &[wrong]).lines[0].verdict(), "invalid");
    }

    #[test]
    fn senseless_samples_have_no_verdict() {
        for samples in [vec![], vec![1.0], vec![f64::NAN, 1.0], vec![0.0, 1.0]] {
            let mut odd = kernel("k", 1.0, 0.0);
            odd.timing.samples_ns = Some(samples);
            assert_eq!(report(&[kernel("k", 1.0, 0.0)], &[odd]).lines[0].verdict(), "no samples");
        }
        let huge = [kernel("k", 1e308, 0.0)];
        assert_eq!(report(&huge, &huge).lines[0].verdict(), "same");
    }

    #[test]
    fn machines_that_differ_are_refused_by_name() {
        let mut other = kernel("k", 1.0, 0.0);
        other.environment.cpu_model = Some("Other CPU".into());
        other.workload.n_threads = Some(4);
        let (old, new) = ([kernel("k", 1.0, 0.0)], [other]);
        let error = regression(("old", &old), ("new", &new), &RULES).unwrap_err().to_string();
        assert!(error.contains("cpu_model (Test CPU and Other CPU), threads (2 and 4)"), "{error}");
        assert!(error.contains("--loose machine"));
        let loose = Rules { any_machine: true, ..RULES };
        assert_eq!(regression(("old", &old), ("new", &new), &loose).unwrap().lines[0].verdict(), "same");
        assert!(regression(("old", &[]), ("new", &new), &loose).is_err());
    }

    #[test]
    fn thresholds_are_shares() {
        assert_eq!(parse_threshold("3%").unwrap(), 0.03);
        assert_eq!(parse_threshold("0.03").unwrap(), 0.03);
        assert_eq!(parse_threshold("2.5 %").unwrap(), 0.025);
        assert_eq!((percent(0.03), percent(0.025)), ("3 %".into(), "2.5 %".into()));
        for text in ["3", "nan", "-1%", "x", "", "%", "inf", "1e999%"] {
            assert!(parse_threshold(text).is_err(), "{text}");
        }
    }
}
