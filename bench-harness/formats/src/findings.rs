//! The verdicts of a comparison, for a CI system or a pull request.

use std::fmt::Write as _;
use std::time::Duration;

use perjoule_record::Interval;
use perjoule_record::stats::Verdict;
use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};

use crate::escape::{command_message, command_property, markdown_text, one_line};

/// What a comparison found for one benchmark.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// The benchmark.
    pub name: String,
    /// The answer. `None`: the two could not be compared, and `message` says why.
    pub verdict: Option<Verdict>,
    /// One sentence for people, such as the reason or the advice.
    pub message: String,
    /// New over old: below 1 is less time or energy.
    pub ratio: Option<f64>,
    /// 95 % interval of `ratio`.
    pub ci95: Option<Interval>,
    /// How long the new measurement took, seconds.
    pub seconds: Option<f64>,
    /// Whether a model gave the compared energy: said with every figure.
    pub modelled: bool,
}

/// A format of [`export_findings`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FindingsFormat {
    /// JUnit XML: slower is a failure, what could not be compared an error, unclear is skipped.
    Junit,
    /// Workflow commands of GitHub Actions: `::error` for slower and not comparable, `::warning` for unclear, `::notice` for
    /// faster.
    GithubAnnotations,
    /// Markdown for a pull request.
    Markdown,
}

/// Writes findings in `format`.
pub fn export_findings(findings: &[Finding], format: FindingsFormat) -> String {
    match format {
        FindingsFormat::Junit => junit(findings),
        FindingsFormat::GithubAnnotations => annotations(findings),
        FindingsFormat::Markdown => markdown(findings),
    }
}

impl Finding {
    /// `slower, 1.21 x [1.18, 1.25] (modelled): message`.
    fn summary(&self) -> String {
        let mut text = self.verdict.map_or_else(|| "not comparable".into(), |verdict| verdict.to_string());
        let figures = [self.ratio(), self.interval()].into_iter().flatten().collect::<Vec<_>>().join(" ");
        if !figures.is_empty() {
            text = format!("{text}, {figures}");
        }
        if self.modelled {
            text += " (modelled energy)";
        }
        if self.message.is_empty() { text } else { format!("{text}: {}", self.message) }
    }

    fn ratio(&self) -> Option<String> {
        self.ratio.filter(|ratio| ratio.is_finite()).map(|ratio| format!("{ratio:.3} x"))
    }

    fn interval(&self) -> Option<String> {
        let known = self.ci95.filter(|ci| ci.lo.is_finite() && ci.hi.is_finite());
        known.map(|ci| format!("[{:.3}, {:.3}]", ci.lo, ci.hi))
    }
}

/// quick-junit escapes markup and leaves out what XML cannot hold.
fn junit(findings: &[Finding]) -> String {
    let mut suite = TestSuite::new("perjoule compare");
    for finding in findings {
        let status = match finding.verdict {
            Some(Verdict::Slower) => TestCaseStatus::non_success(NonSuccessKind::Failure),
            None => TestCaseStatus::non_success(NonSuccessKind::Error),
            Some(Verdict::Unclear) => TestCaseStatus::skipped(),
            Some(_) => TestCaseStatus::success(),
        };
        let mut case = TestCase::new(one_line(&finding.name), status);
        case.set_classname("perjoule");
        match &mut case.status {
            TestCaseStatus::Success { .. } => {
                case.set_system_out(one_line(&finding.summary()));
            }
            status => {
                status.set_message(one_line(&finding.summary()));
            }
        }
        // A time that JUnit can hold; others are unknown.
        if let Some(time) = finding.seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()) {
            case.set_time(time);
        }
        suite.add_test_case(case);
    }
    let mut report = Report::new("perjoule");
    report.add_test_suite(suite);
    // The writer fails only where its output does, and a string does not.
    report.to_string().unwrap_or_default()
}

/// <https://docs.github.com/actions/reference/workflow-commands-for-github-actions>
fn annotations(findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings {
        let level = match finding.verdict {
            Some(Verdict::Slower) | None => "error",
            Some(Verdict::Unclear) => "warning",
            Some(Verdict::Faster) => "notice",
            Some(Verdict::Same) => continue,
        };
        let (title, message) = (command_property(&finding.name), command_message(&finding.summary()));
        // Writing to a string cannot fail.
        let _ = writeln!(text, "::{level} title={title}::{message}");
    }
    text
}

fn markdown(findings: &[Finding]) -> String {
    let count = |verdict| findings.iter().filter(|finding| finding.verdict == verdict).count();
    let kinds = [
        (Some(Verdict::Slower), "slower"),
        (None, "not comparable"),
        (Some(Verdict::Unclear), "unclear"),
        (Some(Verdict::Faster), "faster"),
        (Some(Verdict::Same), "same"),
    ];
    let counts = kinds.iter().map(|(verdict, word)| (count(*verdict), word)).filter(|(count, _)| *count > 0);
    let counts: Vec<String> = counts.map(|(count, word)| format!("{count} {word}")).collect();
    if counts.is_empty() {
        return "**perjoule**: nothing to compare\n".into();
    }
    let mut text = format!("**perjoule**: {}\n\n", counts.join(", "));
    text.push_str("| verdict | benchmark | new / old | 95 % | |\n| --- | --- | ---: | --- | --- |\n");
    for (verdict, word) in kinds {
        for finding in findings.iter().filter(|finding| finding.verdict == verdict) {
            let strong = if matches!(verdict, Some(Verdict::Slower) | None) { "**" } else { "" };
            let ratio = finding.ratio.filter(|ratio| ratio.is_finite()).map(|ratio| format!("{ratio:.3}"));
            let note = match (finding.modelled, markdown_text(&finding.message)) {
                (false, message) => message,
                (true, message) if message.is_empty() => "modelled energy".into(),
                (true, message) => format!("modelled energy; {message}"),
            };
            // In <code> a name mentions nobody and links nowhere.
            let _ = writeln!(
                text,
                "| {strong}{word}{strong} | <code>{}</code> | {} | {} | {note} |",
                markdown_text(&finding.name),
                ratio.unwrap_or_default(),
                finding.interval().unwrap_or_default(),
            );
        }
    }
    text
}
