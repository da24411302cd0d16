//! Regressions in the formats that people and services read.

use anyhow::Result;
use perjoule_formats::{Finding, Findings, FindingsFormat, export_findings};
use serde_json::{Value, json};

use super::regression::{CEILING, ENERGY, Line, Outcome, Report, VERDICTS, joules, percent};
use crate::report::units;
use crate::report::{Align, Style, Table, markdown, printable};

/// A format of [`export`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// For a terminal, with or without colours.
    Table(Style),
    /// For a pull request.
    Markdown,
    /// README.md beside this file describes it.
    Json,
    /// JUnit XML: a line is a test case.
    Junit,
    /// Workflow commands of GitHub Actions.
    Github,
}

/// Lines of a table that are shown at most.
const SHOWN: usize = 200;
/// Up to so many lines, those without a difference are shown too.
const FEW: usize = 40;

/// The report as text. Everything that leaves this program as a comparison goes through here.
pub(crate) fn export(report: &Report<'_>, target: Target) -> Result<String> {
    match target {
        Target::Table(style) => Ok(for_people(report, style)),
        Target::Markdown => Ok(for_people(report, Style::Markdown)),
        Target::Json => Ok(serde_json::to_string_pretty(&json(report))? + "\n"),
        Target::Junit => Ok(export_findings(&findings(report), FindingsFormat::Junit)),
        Target::Github => Ok(export_findings(&findings(report), FindingsFormat::GithubAnnotations)),
    }
}

/// Time of a call in nanoseconds.
fn median(line: &Line<'_>, new: bool) -> Option<f64> {
    let record = if new { line.new } else { line.old };
    let record = record.filter(|_| line.kind != ENERGY);
    record.and_then(|record| perjoule_record::stats::median(record.timing.samples_ns.as_deref()?))
}

/// Joules of a call or a token, of lines of energy.
fn energy(line: &Line<'_>, new: bool) -> Option<f64> {
    let (of_old, of_new) = joules(line.old?, line.new?).filter(|_| line.kind == ENERGY)?;
    Some(if new { of_new } else { of_old })
}

/// Where the joules of a line come from, and what they contain.
fn meter(line: &Line<'_>) -> String {
    let energy = line.new.filter(|_| line.kind == ENERGY).map(|record| &record.energy);
    let words = energy.and_then(|e| e.energy_source.as_ref().zip(e.energy_boundary.as_ref()));
    words.map_or_else(String::new, |(source, boundary)| {
        format!(", measured by {source} (boundary: {boundary})")
    })
}

fn p_value(p: f64) -> String {
    if p < 0.001 { "< 0.001".into() } else { format!("{p:.3}") }
}

/// What is said of a line beyond its verdict.
fn detail(line: &Line<'_>) -> String {
    match &line.outcome {
        Outcome::Compared(c, among) => {
            let chance = if among.chance { ", may be chance among so many lines" } else { "" };
            let what = if line.kind == ENERGY { "energy" } else { "time" };
            format!(
                "{:.3} times the old {what}, 95 % interval {:.3} to {:.3}, p {}{chance}{}",
                c.ratio,
                c.ci95.lo,
                c.ci95.hi,
                p_value(c.p_value),
                meter(line)
            )
        }
        Outcome::Invalid(why) | Outcome::NoSamples(why) => why.clone(),
        Outcome::OnlyOld => "the new file has no such measurement".into(),
        Outcome::OnlyNew => "the old file has no such measurement".into(),
    }
}

fn for_people(report: &Report<'_>, style: Style) -> String {
    let mut table = Table::new([
        ("measurement", Align::Left),
        ("verdict", Align::Left),
        ("new / old", Align::Right),
        ("95 % interval", Align::Right),
        ("p", Align::Right),
        ("old", Align::Right),
        ("new", Align::Right),
    ]);
    let all = report.lines.len() <= FEW;
    let wanted: Vec<&Line<'_>> = report.lines.iter().filter(|line| all || line.verdict() != "same").collect();
    for line in wanted.iter().take(SHOWN) {
        let time = |new| {
            let time = median(line, new).map(units::duration_ns);
            time.or_else(|| energy(line, new).map(units::joules)).unwrap_or_else(|| "-".into())
        };
        let (ratio, interval, p) = match &line.outcome {
            Outcome::Compared(c, _) => {
                (format!("{:.3}", c.ratio), format!("{:.3}..{:.3}", c.ci95.lo, c.ci95.hi), p_value(c.p_value))
            }
            _ => ("-".into(), "-".into(), "-".into()),
        };
        let verdict = match &line.outcome {
            _ if line.is_regression(report.threshold) => line.verdict().to_uppercase(),
            Outcome::Invalid(why) => format!("INVALID: {why}"),
            _ => line.verdict().to_owned(),
        };
        let kind = match line.kind {
            CEILING => "machine: ",
            ENERGY => "energy: ",
            _ => "",
        };
        table.row([format!("{kind}{}", line.label), verdict, ratio, interval, p, time(false), time(true)]);
    }
    let mut after = Vec::new();
    let hidden = wanted.len().saturating_sub(SHOWN);
    if hidden > 0 {
        after.push(format!("{hidden} more lines: --format json has all"));
    }
    let same = report.lines.len() - wanted.len();
    if same > 0 {
        after.push(format!("{same} lines without a difference are not shown"));
    }
    after.extend(report.notes.iter().cloned());
    after.push(
        "the two files were not measured in turn: how the machine drifted between them is in the ratios, and in no interval".into(),
    );
    let (summary, rows) = (report.summary(), table.render(style));
    if style == Style::Markdown {
        let notes: String = after.iter().map(|note| format!("* {}\n", markdown(note))).collect();
        let (old, new) = (markdown(report.old), markdown(report.new));
        format!("### perjoule: {summary}\n\n{old} → {new}\n\n{rows}\n{notes}")
    } else {
        let notes: String = after.iter().map(|note| format!(" {}\n", printable(note))).collect();
        let names = printable(&format!("{} -> {}", report.old, report.new));
        format!("{names}\n\n{rows}\n{notes}{summary}\n")
    }
}

fn json(report: &Report<'_>) -> Value {
    let counts: serde_json::Map<String, Value> =
        VERDICTS.iter().map(|verdict| (verdict.replace(' ', "_"), report.count(verdict).into())).collect();
    json!({
        "schema": "perjoule.regression/1",
        "old": report.old,
        "new": report.new,
        "threshold": report.threshold,
        "regressions": report.regressions(),
        "failures": report.failures(),
        "missing": report.missing().map(|line| &line.label).collect::<Vec<_>>(),
        "counts": counts,
        "lines": report.lines.iter().map(|line| line_json(line, report.threshold)).collect::<Vec<_>>(),
        "notes": report.notes,
    })
}

fn line_json(line: &Line<'_>, threshold: f64) -> Value {
    let compared = match &line.outcome {
        Outcome::Compared(c, among) => Some((c, among)),
        _ => None,
    };
    let Some(record) = line.new.or(line.old) else { return Value::Null };
    let w = &record.workload;
    json!({
        "label": line.label,
        "kind": line.kind,
        "device": record.device.device,
        "op": w.op,
        "kernel_old": line.old.and_then(|record| record.workload.kernel.as_ref()),
        "kernel_new": line.new.and_then(|record| record.workload.kernel.as_ref()),
        "dtype": w.dtype,
        "kv_dtype": w.kv_dtype,
        "shape": w.shape,
        "model": w.model,
        "n_prompt": w.n_prompt,
        "n_gen": w.n_gen,
        "n_depth": w.n_depth,
        "n_parallel": w.n_parallel,
        "n_threads": w.n_threads,
        "cache_state": w.cache_state,
        "verdict": line.verdict(),
        "regression": line.is_regression(threshold),
        "broken": line.is_broken(),
        "ratio": compared.map(|(c, _)| c.ratio),
        "ratio_ci95": compared.map(|(c, _)| [c.ci95.lo, c.ci95.hi]),
        "p_value": compared.map(|(c, _)| c.p_value),
        "q_value": compared.map(|(_, among)| among.q_value),
        "median_ns_old": median(line, false),
        "median_ns_new": median(line, true),
        "joules_old": energy(line, false),
        "joules_new": energy(line, true),
        "detail": detail(line),
    })
}

/// What CI systems are told: an error or a failure for everything that the run fails for, and for nothing else.
fn findings(report: &Report<'_>) -> Findings {
    use perjoule_formats::Outcome as Means;
    let finding = |line: &Line<'_>| {
        let (outcome, verdict) = match &line.outcome {
            _ if line.is_regression(report.threshold) => {
                let by = percent(report.threshold);
                (Means::Regression, format!("{} by more than {by}", line.verdict()))
            }
            _ if line.is_missing() && report.fail_on_missing => (Means::Regression, "missing".into()),
            Outcome::Invalid(_) if line.is_broken() => (Means::Invalid, "invalid record".into()),
            Outcome::Invalid(_) => (Means::Missing, "invalid record".into()),
            Outcome::Compared(..) if line.verdict() == "unclear" => (Means::Unclear, "unclear".into()),
            Outcome::OnlyOld | Outcome::NoSamples(_) => (Means::Missing, line.verdict().into()),
            Outcome::OnlyNew => (Means::New, line.verdict().into()),
            Outcome::Compared(..) => (Means::Fine, line.verdict().into()),
        };
        Finding {
            name: line.label.clone(),
            group: line.kind.into(),
            outcome,
            verdict,
            message: detail(line),
            // the time of a call, as far as a test case can have one
            seconds: median(line, true).map(|ns| ns * 1e-9),
        }
    };
    let nothing = report.unjudged().map(|message| Finding {
        name: "anything at all".into(),
        group: "compare".into(),
        outcome: Means::Invalid,
        verdict: "nothing could be judged".into(),
        message,
        seconds: None,
    });
    Findings {
        title: format!("{} -> {}", report.old, report.new),
        summary: report.summary(),
        notes: report.notes.clone(),
        list: nothing.into_iter().chain(report.lines.iter().map(finding)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::regression::tests::{RULES, kernel};
    use crate::compare::regression::{Rules, regression};
    use perjoule_record::Record;

    const EVIL: &str = "</td><script>x|y</script>\n::error::injected\u{1b}[31m]]>&";

    fn text(old: &[Record], new: &[Record], target: Target) -> String {
        export(&regression(("old", old), ("new", new), &RULES).unwrap(), target).unwrap()
    }

    #[test]
    fn names_of_others_stay_names() {
        let (old, new) = ([kernel(EVIL, 1000.0, 0.001)], [kernel(EVIL, 1100.0, 0.001)]);
        let md = text(&old, &new, Target::Markdown);
        assert!(md.contains("&lt;script&gt;x\\|y&lt;/script&gt;") && !md.contains("<script>"), "{md}");
        let github = text(&old, &new, Target::Github);
        let commands = github.lines().filter(|line| line.starts_with("::"));
        assert_eq!(commands.count(), 3, "{github}");
        assert!(
            github
                .lines()
                .all(|line| line.starts_with("::notice ") || line.starts_with("::error title=slower"))
        );
        let junit = text(&old, &new, Target::Junit);
        let read = quick_junit::Report::deserialize_from_str(&junit).unwrap();
        assert_eq!((read.tests, read.failures), (1, 1));
        assert!(junit.contains("&lt;script&gt;") && !junit.contains('\u{1b}'), "{junit}");
        let table = text(&old, &new, Target::Table(Style::Plain));
        assert!(!table.contains('\u{1b}') && table.contains("SLOWER"), "{table}");
    }

    #[test]
    fn every_format_counts_alike() {
        let mut invalid = kernel("c", 1.0, 0.0);
        invalid.invalidate("wrong result");
        let old = [
            kernel("a", 1000.0, 0.001),
            kernel("b", 1000.0, 0.001),
            kernel("c", 1.0, 0.0),
            kernel("d", 1.0, 0.0),
        ];
        let new = [kernel("a", 1000.0, 0.001), kernel("b", 1100.0, 0.001), invalid];
        let json: Value = serde_json::from_str(&text(&old, &new, Target::Json)).unwrap();
        assert_eq!(json["regressions"], 1);
        assert_eq!(
            json["counts"],
            json!({"slower": 1, "faster": 0, "more_energy": 0, "less_energy": 0, "same": 1, "unclear": 0, "invalid": 1, "no_samples": 0, "only_old": 1, "only_new": 0})
        );
        let slower = &json["lines"][0];
        assert_eq!((&slower["kernel_new"], &slower["regression"]), (&"b".into(), &true.into()));
        assert!((slower["ratio"].as_f64().unwrap() - 1.1).abs() < 1e-9);
        let junit = quick_junit::Report::deserialize_from_str(&text(&old, &new, Target::Junit)).unwrap();
        assert_eq!((junit.tests, junit.failures, junit.errors), (4, 1, 1));
        let md = text(&old, &new, Target::Markdown);
        assert!(
            md.starts_with(
                "### perjoule: 1 regression beyond 3 %; 1 line no longer valid: 1 slower, 1 same, 1 invalid, 1 only old\n"
            ),
            "{md}"
        );
        let github = text(&old, &new, Target::Github);
        assert_eq!(github.matches("::error ").count(), 2);
        assert_eq!(github.matches("::warning ").count(), 1);
    }

    /// Whether the run fails, a test does, and an annotation is an error, is one answer.
    #[test]
    fn what_ci_sees_is_what_the_run_ends_with() {
        let fine = |name: &str| kernel(name, 1000.0, 0.001);
        let mut invalid = fine("a");
        invalid.invalidate("wrong result");
        let strict = Rules { fail_on_missing: true, ..RULES };
        for (old, new, rules, fails) in [
            (vec![fine("a")], vec![fine("a")], RULES, false),
            (vec![fine("a"), fine("b")], vec![fine("b")], RULES, false),
            (vec![fine("a"), fine("b")], vec![fine("b")], strict, true),
            (vec![fine("a"), fine("b")], vec![invalid.clone(), fine("b")], RULES, true),
            (vec![invalid.clone(), fine("b")], vec![invalid.clone(), fine("b")], RULES, false),
            (vec![invalid.clone(), fine("b")], vec![fine("a"), fine("b")], RULES, false),
            (vec![invalid.clone()], vec![invalid.clone()], RULES, true),
            (vec![fine("a")], vec![fine("b")], RULES, true),
        ] {
            let report = regression(("old", &old), ("new", &new), &rules).unwrap();
            assert_eq!(!report.failures().is_empty(), fails, "{:?}", report.failures());
            let junit = export(&report, Target::Junit).unwrap();
            let junit = quick_junit::Report::deserialize_from_str(&junit).unwrap();
            assert_eq!(junit.failures + junit.errors > 0, fails, "{junit:?}");
            let github = export(&report, Target::Github).unwrap();
            assert_eq!(github.contains("::error "), fails, "{github}");
        }
    }

    #[test]
    fn where_everything_is_unclear_the_last_line_says_what_to_do() {
        let (old, new) = ([kernel("a", 1000.0, 0.3)], [kernel("a", 1020.0, 0.3)]);
        let table = text(&old, &new, Target::Table(Style::Plain));
        let last = table.lines().last().unwrap();
        assert!(last.contains("nothing could be decided") && last.contains("quieter machine"), "{table}");
        let junit = quick_junit::Report::deserialize_from_str(&text(&old, &new, Target::Junit)).unwrap();
        assert_eq!((junit.tests, junit.failures, junit.errors), (1, 0, 0));
        let skipped =
            |case: &quick_junit::TestCase| matches!(case.status, quick_junit::TestCaseStatus::Skipped { .. });
        assert!(junit.test_suites[0].test_cases.iter().all(skipped), "{junit:?}");
        // one that is decided is enough
        let (old, new) =
            ([&old[..], &[kernel("b", 1e3, 0.0)]].concat(), [&new[..], &[kernel("b", 1e3, 0.0)]].concat());
        assert!(!text(&old, &new, Target::Table(Style::Plain)).contains("nothing could be decided"));
    }

    #[test]
    fn without_a_gate_a_regression_is_told_and_fails_nothing() {
        let (old, new) = ([kernel("a", 1000.0, 0.001)], [kernel("a", 1100.0, 0.001)]);
        let rules = Rules { gate: false, ..RULES };
        let report = regression(("old", &old), ("new", &new), &rules).unwrap();
        assert!(report.failures().is_empty() && report.regressions() == 1);
        let summary = report.summary();
        assert!(
            summary.starts_with("1 regression beyond 3 %: 1 slower") && summary.contains("--fail-on"),
            "{summary}"
        );
    }

    #[test]
    fn numbers_that_json_has_not_become_null() {
        let mut odd = kernel("k", 1.0, 0.0);
        odd.timing.samples_ns = Some(vec![f64::NAN, 1e308]);
        let (old, new) = ([kernel("k", 1e308, 0.0)], [odd]);
        for target in [Target::Json, Target::Junit, Target::Github, Target::Markdown] {
            let text = text(&old, &new, target);
            assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
        }
        let same = text(&old, &old, Target::Junit);
        assert!(quick_junit::Report::deserialize_from_str(&same).is_ok(), "no test takes 1e299 s");
    }

    #[test]
    fn a_long_report_shows_what_matters() {
        let name = |i: usize| format!("k{i}");
        let old: Vec<Record> = (0..300).map(|i| kernel(&name(i), 1000.0, 0.001)).collect();
        let mut new = old.clone();
        new[7] = kernel("k7", 1100.0, 0.001);
        let md = text(&old, &new, Target::Markdown);
        assert_eq!(md.lines().filter(|line| line.starts_with('|')).count(), 3, "{md}");
        assert!(md.contains("299 lines without a difference"));
        let rules = Rules { any_kernel: true, ..RULES };
        assert_eq!(regression(("old", &old), ("new", &new), &rules).unwrap().lines.len(), 1);
    }
}
