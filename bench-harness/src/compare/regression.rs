//! Two files of records, line by line: what became faster or slower.
//!
//! Lines match when they are the same measurement: [`Identity`]. Verdicts are those of [`stats::compare`]: samples of two files were
//! not taken in turn, so whatever changed on the machine meanwhile is in them. Of many lines some differ by chance: a difference counts
//! only where it also is a discovery among all lines, of which at most [`FALSE`] are expected to be false.

use anyhow::{Result, bail, ensure};
use perjoule_record::stats::{Comparer, Comparison, Verdict, benjamini_hochberg, welch};
use perjoule_record::{Kind, Provenance, Record};
use rayon::prelude::*;
use std::collections::{BTreeSet, HashMap, HashSet};

use super::workload::{Identity, cache_name, kind_name};
use crate::report::one_line;

/// Seed of the bootstrap.
const SEED: u64 = 1;
/// Share of false discoveries among the differences of many lines.
pub(crate) const FALSE: f64 = 0.05;
/// Threshold when none is given.
pub(crate) const FAIL_ON: f64 = 0.03;

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
    fn key<'a>(&self, record: &'a Record) -> Identity<'a> {
        let mut key = Identity::of(record);
        if self.any_kernel {
            key = key.any_kernel();
        }
        if self.any_machine { key.any_machine() } else { key }
    }
}

/// What became of a line.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Outcome {
    /// Samples on both sides. The verdict is that among all lines, [`Among`] says what it rests on.
    Compared(Comparison, Among),
    /// A side must not be used.
    Invalid(String),
    /// A side has no samples to judge by.
    NoSamples(String),
    /// Only the old file has it.
    OnlyOld,
    /// Only the new file has it.
    OnlyNew,
}

/// A line among all.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Among {
    /// Two-sided, of a test that suits the number of samples.
    p_value: f64,
    /// The same, adjusted for the number of lines (Benjamini and Hochberg).
    pub(crate) q_value: f64,
    /// The interval says that it differs, and the number of lines that it may be chance.
    pub(crate) chance: bool,
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
            Outcome::Compared(c, _) => match c.verdict {
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
        self.kind != "ceiling" && matches!(&self.outcome, Outcome::Compared(c, _) if beyond(c))
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
fn newest<'a>(records: &'a [Record], rules: &Rules) -> (Vec<(Identity<'a>, &'a Record)>, usize) {
    let mut place: HashMap<Identity<'a>, usize> = HashMap::new();
    let mut list: Vec<(Identity<'a>, &'a Record)> = Vec::new();
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
    let by_key: HashMap<&Identity<'_>, &Record> =
        old_list.iter().map(|(key, record)| (key, *record)).collect();
    let matched: HashSet<&Identity<'_>> = new_list.iter().map(|(key, _)| key).collect();
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
    notes.extend(among_all(&mut lines));
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

/// Adjusts the verdicts for the number of lines, and says so. A single line is what it is.
fn among_all(lines: &mut [Line<'_>]) -> Option<String> {
    let mut compared: Vec<&mut Outcome> = lines
        .iter_mut()
        .map(|line| &mut line.outcome)
        .filter(|outcome| matches!(outcome, Outcome::Compared(..)))
        .collect();
    let p_values: Vec<f64> = compared
        .iter()
        .filter_map(|outcome| match outcome {
            Outcome::Compared(_, among) => Some(among.p_value),
            _ => None,
        })
        .collect();
    let n = p_values.len();
    if n < 2 {
        return None;
    }
    let (mut slower, mut faster, mut chance) = (0, 0, 0);
    for (outcome, q_value) in compared.iter_mut().zip(benjamini_hochberg(&p_values)) {
        let Outcome::Compared(c, among) = outcome else { continue };
        among.q_value = q_value;
        if q_value > FALSE && matches!(c.verdict, Verdict::Slower | Verdict::Faster) {
            (c.verdict, among.chance) = (Verdict::Unclear, true);
        }
        slower += usize::from(c.verdict == Verdict::Slower);
        faster += usize::from(c.verdict == Verdict::Faster);
        chance += usize::from(among.chance);
    }
    let by_chance = if chance > 0 {
        format!("; {chance} more whose intervals differ may do so by chance and are unclear")
    } else {
        String::new()
    };
    Some(format!(
        "of {n} lines {slower} are slower and {faster} faster, false discoveries among them held to {} (Benjamini-Hochberg){by_chance}",
        percent(FALSE)
    ))
}

/// A p-value that can reach what many lines need: of ranks (Mann-Whitney) where there are enough samples, else Welch's of the logarithms.
/// The number of samples alone decides which.
fn p_value(old: &[f64], new: &[f64], of_ranks: f64) -> f64 {
    /// With fewer samples on both sides, no ranks have a p-value below 1e-7.
    const RANKED: usize = 20;
    if old.len().min(new.len()) >= RANKED {
        return of_ranks;
    }
    let logarithms = |samples: &[f64]| samples.iter().map(|x| x.ln()).collect::<Vec<f64>>();
    welch(&logarithms(old), &logarithms(new)).unwrap_or(1.0)
}

fn samples(record: &Record) -> &[f64] {
    record.timing.samples_ns.as_deref().unwrap_or_default()
}

fn line<'a>(comparer: &Comparer, old: Option<&'a Record>, new: Option<&'a Record>) -> Option<Line<'a>> {
    let some = new.or(old)?;
    let kind = kind_name(some.kind);
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
            Some(compared) => {
                let p_value = p_value(samples(old), samples(new), compared.p_value);
                Outcome::Compared(compared, Among { p_value, q_value: p_value, chance: false })
            }
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
    words(record, record.workload.n_threads.map(|n| format!("{n} threads")))
}

/// What was measured, in words, whatever the number of threads.
pub(crate) fn what(record: &Record) -> String {
    words(record, None)
}

fn words(record: &Record, threads: Option<String>) -> String {
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
    push(w.cache_state.map(|state| cache_name(state).into()));
    push(threads);
    if record.kind == Kind::Ceiling {
        push(w.config.clone());
    }
    push(record.device.device.clone().filter(|device| device != "cpu"));
    if words.is_empty() {
        words.extend([&record.source.source_tool, &record.source.source_name].into_iter().flatten().cloned());
    }
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
    use perjoule_record::{CacheState, Environment};

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
            outcome: Outcome::Compared(
                Comparison { ratio, ..compared },
                Among { p_value: 0.0, q_value: 0.0, chance: false },
            ),
        };
        assert!(!line(1.025, "kernel").is_regression(0.03));
        assert!(line(1.035, "kernel").is_regression(0.03));
        assert!(!line(1.035, "ceiling").is_regression(0.03), "that is the machine");
    }

    /// Uniform in 0..1, from a number (SplitMix64).
    fn random(state: &mut u64) -> f64 {
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) as f64 / 2f64.powi(64)
    }

    /// Lines whose `samples` scatter like a machine's: log-normally by `noise`. `slow` says which are 5 % slower.
    fn file(
        lines: usize,
        samples: usize,
        noise: f64,
        state: &mut u64,
        slow: impl Fn(usize) -> bool,
    ) -> Vec<Record> {
        let record = |i: usize, state: &mut u64| {
            let mut record = kernel(&format!("k{i}"), 1.0, 0.0);
            let centre = 1000.0 * if slow(i) { 1.05 } else { 1.0 };
            let normal = |state: &mut u64| (0..12).map(|_| random(state)).sum::<f64>() - 6.0;
            record.timing.samples_ns =
                Some((0..samples).map(|_| centre * (noise * normal(state)).exp()).collect());
            record
        };
        (0..lines).map(|i| record(i, state)).collect()
    }

    /// Without the number of lines in mind, almost every one of these files has a line that is called slower.
    #[test]
    fn many_lines_of_one_distribution_have_no_regression() {
        for samples in [30, 5] {
            let mut state = 7;
            let (mut files, mut naive) = (0, 0);
            for _ in 0..200 {
                let [old, new] = [(), ()].map(|()| file(200, samples, 0.1, &mut state, |_| false));
                let report = report(&old, &new);
                files += usize::from(report.count("slower") > 0);
                naive += usize::from(report.lines.iter().any(|line| {
                    matches!(&line.outcome, Outcome::Compared(c, among) if among.chance && c.ratio > 1.0)
                }));
            }
            assert!(files < 10, "{samples} samples: {files} of 200 files");
            assert!(naive > 150, "{samples} samples: {naive} of 200 files would have been");
        }
    }

    #[test]
    fn a_real_slowdown_of_few_lines_is_found() {
        for (samples, noise) in [(30, 0.02), (5, 0.005)] {
            let mut state = 11;
            let old = file(1000, samples, noise, &mut state, |_| false);
            let new = file(1000, samples, noise, &mut state, |i| i % 100 == 0);
            let report = report(&old, &new);
            let slower: Vec<&str> = report
                .lines
                .iter()
                .filter(|line| line.verdict() == "slower")
                .filter_map(|line| line.new?.workload.kernel.as_deref())
                .collect();
            let real = slower.iter().filter(|name| name.ends_with("00") || **name == "k0").count();
            assert_eq!(real, 10, "{samples} samples: {slower:?}");
            assert!(slower.len() <= 12, "{slower:?}");
            assert!(report.notes.iter().any(|note| note.contains("held to 5 %")), "{:?}", report.notes);
        }
    }

    #[test]
    fn a_single_line_is_judged_by_itself() {
        let mut state = 3;
        let (old, new) = (file(1, 3, 0.001, &mut state, |_| false), file(1, 3, 0.001, &mut state, |_| true));
        let report = report(&old, &new);
        assert_eq!((report.lines[0].verdict(), report.notes.len()), ("slower", 0));
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
