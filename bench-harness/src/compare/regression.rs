//! Two files of records, line by line: what became faster or slower.
//!
//! Lines match when they are the same measurement: [`Identity`]. Verdicts are those of [`stats::compare`]: samples of two files were
//! not taken in turn, so whatever changed on the machine meanwhile is in them. Of many lines some differ by chance: a difference counts
//! only where it also is a discovery among all lines, of which at most [`FALSE`] are expected to be false. Joules that both sides measured
//! alike are lines of their own.

mod energy;

use anyhow::{Result, bail, ensure};
use perjoule_record::stats::{Comparer, Comparison, Verdict, benjamini_hochberg, welch};
use perjoule_record::{Kind, Provenance, Record};
use rayon::prelude::*;
use std::collections::{BTreeSet, HashMap, HashSet};

pub(super) use energy::joules;

use super::workload::Identity;
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
    /// Lines that the new file lacks fail.
    pub(crate) fail_on_missing: bool,
    /// Whether anything fails: without, differences are only told.
    pub(crate) gate: bool,
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
    /// Samples or measured joules on both sides. The verdict is that among all lines, [`Among`] says what it rests on.
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

/// Kind of lines that compare joules instead of times.
pub(crate) const ENERGY: &str = "energy";
/// Kind of lines that are of the machine, not of the code.
pub(crate) const CEILING: &str = "ceiling";

/// A measurement that is in one of the files or both.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Line<'a> {
    /// What was measured, in words.
    pub(crate) label: String,
    /// That of the records, or [`ENERGY`].
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
                Verdict::Faster if self.kind == ENERGY => "less energy",
                Verdict::Slower if self.kind == ENERGY => "more energy",
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

    /// Whether it is what a run must fail for: certainly slower or of more energy, and by more than the threshold. A ceiling that is
    /// slower is a machine that is slower.
    pub(crate) fn is_regression(&self, threshold: f64) -> bool {
        let beyond = |c: &Comparison| c.verdict == Verdict::Slower && c.ratio > 1.0 + threshold;
        self.kind != CEILING && matches!(&self.outcome, Outcome::Compared(c, _) if beyond(c))
    }

    /// Whether it was valid before and is no more.
    pub(crate) fn is_broken(&self) -> bool {
        matches!(self.outcome, Outcome::Invalid(_))
            && self.old.is_some_and(is_valid)
            && self.new.is_some_and(|new| !is_valid(new))
    }

    /// Whether it could be judged before, and the new file has nothing to judge it by.
    pub(crate) fn is_missing(&self) -> bool {
        match self.outcome {
            Outcome::OnlyOld => true,
            Outcome::NoSamples(_) => self.old.is_some_and(has_samples) && !self.new.is_some_and(has_samples),
            _ => false,
        }
    }

    /// The first of those that must be looked at.
    fn rank(&self, threshold: f64) -> u8 {
        match self.verdict() {
            _ if self.is_regression(threshold) => 0,
            "invalid" => 1,
            "slower" | "more energy" => 2,
            "unclear" => 3,
            "no samples" => 4,
            "only old" => 5,
            "only new" => 6,
            "faster" | "less energy" => 7,
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
    pub(crate) fail_on_missing: bool,
    /// As in [`Rules`].
    pub(crate) gate: bool,
    /// What must be looked at comes first, then in the order of the new file.
    pub(crate) lines: Vec<Line<'a>>,
    pub(crate) notes: Vec<String>,
}

/// The verdicts in the order in which they are counted.
pub(crate) const VERDICTS: [&str; 10] = [
    "slower",
    "faster",
    "more energy",
    "less energy",
    "same",
    "unclear",
    "invalid",
    "no samples",
    "only old",
    "only new",
];

impl Report<'_> {
    /// Lines that a run must fail for.
    pub(crate) fn regressions(&self) -> usize {
        self.lines.iter().filter(|line| line.is_regression(self.threshold)).count()
    }

    /// Lines of a verdict.
    pub(crate) fn count(&self, verdict: &str) -> usize {
        self.lines.iter().filter(|line| line.verdict() == verdict).count()
    }

    /// Lines that the new file has nothing for.
    pub(crate) fn missing(&self) -> impl Iterator<Item = &Line<'_>> {
        self.lines.iter().filter(|line| line.is_missing())
    }

    /// Why nothing of this can pass or fail, where no line could be judged. Ceilings alone judge nothing, unless there is nothing else.
    pub(crate) fn unjudged(&self) -> Option<String> {
        let of_work = self.of_work();
        (self.compared().next().is_none()).then(|| {
            let what = if of_work { "measurement" } else { "record" };
            format!(
                "no {what} could be judged: none is valid, with samples, in both {} and {}",
                self.old, self.new
            )
        })
    }

    fn of_work(&self) -> bool {
        self.lines.iter().any(|line| line.kind != CEILING)
    }

    /// The lines with a verdict of their own; ceilings only where there is nothing else.
    fn compared(&self) -> impl Iterator<Item = &Line<'_>> {
        let of_work = self.of_work();
        let wanted = move |line: &&Line<'_>| !(of_work && line.kind == CEILING);
        self.lines.iter().filter(wanted).filter(|line| matches!(line.outcome, Outcome::Compared(..)))
    }

    /// What to do where lines were compared and none of them could be decided.
    fn undecided(&self) -> Option<String> {
        let n = self.compared().count();
        let all = n > 0 && self.compared().all(|line| line.verdict() == "unclear");
        all.then(|| {
            let what = if n == 1 { "the only comparison is".to_owned() } else { format!("all {n} comparisons are") };
            format!("nothing could be decided: {what} unclear; measure again with more repetitions (-r) or on a quieter machine")
        })
    }

    /// Everything that the run fails for, a sentence each; empty when it passes.
    pub(crate) fn failures(&self) -> Vec<String> {
        if self.gate { self.found() } else { Vec::new() }
    }

    /// Everything that a gate fails for, a sentence each.
    fn found(&self) -> Vec<String> {
        let mut list = Vec::new();
        match self.regressions() {
            0 => {}
            n => list.push(format!("{} beyond {}", counted(n, "regression"), percent(self.threshold))),
        }
        match self.lines.iter().filter(|line| line.is_broken()).count() {
            0 => {}
            n => list.push(format!("{} no longer valid", counted(n, "line"))),
        }
        match self.missing().count() {
            n if n > 0 && self.fail_on_missing => list.push(format!("{} missing", counted(n, "line"))),
            _ => {}
        }
        list.extend(self.unjudged());
        list
    }

    /// In one line.
    pub(crate) fn summary(&self) -> String {
        let verdicts = VERDICTS.iter().map(|verdict| (self.count(verdict), verdict)).filter(|(n, _)| *n > 0);
        let verdicts: Vec<String> = verdicts.map(|(n, verdict)| format!("{n} {verdict}")).collect();
        let verdicts = if verdicts.is_empty() { "nothing to compare".into() } else { verdicts.join(", ") };
        let mut found = self.found();
        if found.is_empty() {
            found.push(match self.undecided() {
                Some(why) => why,
                None => format!("no regression beyond {}", percent(self.threshold)),
            });
        }
        let gate = match self.found().is_empty() || self.gate {
            true => "",
            false => "; --fail-on makes that fail",
        };
        format!("{}: {verdicts}{gate}", found.join("; "))
    }

    /// Names what the new file lacks, and says what that means.
    fn note_of_missing(&self) -> Option<String> {
        /// Names that are listed.
        const NAMED: usize = 10;
        let missing: Vec<&str> = self.missing().map(|line| line.label.as_str()).collect();
        if missing.is_empty() {
            return None;
        }
        let mut names = missing.iter().take(NAMED).copied().collect::<Vec<_>>().join("; ");
        if missing.len() > NAMED {
            names.push_str(&format!("; and {} more", missing.len() - NAMED));
        }
        let fails =
            if self.fail_on_missing { "the run fails for it" } else { "--fail-on-missing fails for it" };
        Some(format!("missing in {}: {} ({fails}): {names}", self.new, counted(missing.len(), "line")))
    }
}

/// A number of things.
fn counted(n: usize, thing: &str) -> String {
    if n == 1 { format!("1 {thing}") } else { format!("{n} {thing}s") }
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
    let joules = energy::lines(&lines, rules.threshold);
    lines.extend(joules.lines);
    notes.extend(among_all(&mut lines));
    notes.extend(joules.notes);
    lines.sort_by_key(|line| line.rank(rules.threshold));
    let ceilings: Vec<&str> = lines
        .iter()
        .filter(|line| line.kind == CEILING && ["slower", "faster"].contains(&line.verdict()))
        .map(|line| line.label.as_str())
        .collect();
    if !ceilings.is_empty() {
        notes.push(format!(
            "the machine itself was not the same: {}; differences of kernels may come from that",
            ceilings.join(", ")
        ));
    }
    let Rules { threshold, fail_on_missing, gate, .. } = *rules;
    let mut report = Report { old: old_name, new: new_name, threshold, fail_on_missing, gate, lines, notes };
    report.notes.extend(report.note_of_missing());
    Ok(report)
}

/// Adjusts the verdicts for the number of lines, and says so. A single line is what it is.
fn among_all(lines: &mut [Line<'_>]) -> Option<String> {
    let (more, less) = match lines.iter().any(|line| line.kind == ENERGY) {
        true => ("slower or of more energy", "faster or of less"),
        false => ("slower", "faster"),
    };
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
        "of {n} lines {slower} are {more} and {faster} {less}, false discoveries among them held to {} (Benjamini-Hochberg){by_chance}",
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

fn is_valid(record: &Record) -> bool {
    record.valid && record.verification.verified != Some(false)
}

/// Whether the record has what a verdict needs.
fn has_samples(record: &Record) -> bool {
    let samples = samples(record);
    samples.len() >= 2 && samples.iter().all(|ns| ns.is_finite() && *ns > 0.0)
}

fn samples(record: &Record) -> &[f64] {
    record.timing.samples_ns.as_deref().unwrap_or_default()
}

fn line<'a>(comparer: &Comparer, old: Option<&'a Record>, new: Option<&'a Record>) -> Option<Line<'a>> {
    let some = new.or(old)?;
    let kind = some.kind.as_str();
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
    push(w.dtypes());
    push(w.shape.clone());
    push(w.token_test());
    push(w.n_parallel.filter(|n| *n > 1).map(|n| format!("x{n}")));
    push(w.kernel.clone());
    push(w.cache_state.map(|state| state.as_str().into()));
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
pub(crate) mod tests;
