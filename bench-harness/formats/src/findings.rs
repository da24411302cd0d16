//! The verdicts of a comparison, for a CI system.

use std::fmt::Write as _;
use std::time::Duration;

use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};

use crate::escape::{command_message, command_property, one_line};

/// Everything that a comparison found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Findings {
    /// What was compared, such as `old.jsonl -> new.jsonl`.
    pub title: String,
    /// All of it in one line.
    pub summary: String,
    /// What else must be known.
    pub notes: Vec<String>,
    /// One for each benchmark.
    pub list: Vec<Finding>,
}

/// What a comparison found for one benchmark.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// The benchmark.
    pub name: String,
    /// What it belongs to, such as `kernel`: the end of JUnit's class name.
    pub group: String,
    /// What it means for the run.
    pub outcome: Outcome,
    /// The outcome in a few words, such as `slower by more than 3 %`.
    pub verdict: String,
    /// One sentence for people: the figures, the reason or the advice.
    pub message: String,
    /// How long the new measurement took, seconds.
    pub seconds: Option<f64>,
}

/// What a finding means for the run that it is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The run fails for it.
    Regression,
    /// A result that must not be used.
    Invalid,
    /// More samples are needed to tell.
    Unclear,
    /// It could not be compared, although the old results have it.
    Missing,
    /// Only the new results have it.
    New,
    /// Nothing to do.
    Fine,
}

/// A format of [`export_findings`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FindingsFormat {
    /// JUnit XML, a test case each: regressions are failures, invalid results errors; what was not compared
    /// or could not be decided is skipped.
    Junit,
    /// Workflow commands of GitHub Actions: `::error` for regressions and invalid results, `::warning` for what is unclear or
    /// missing, `::notice` for the summary and the notes.
    GithubAnnotations,
}

/// Writes findings in `format`. Texts may hold anything: each format escapes them.
pub fn export_findings(findings: &Findings, format: FindingsFormat) -> String {
    match format {
        FindingsFormat::Junit => junit(findings),
        FindingsFormat::GithubAnnotations => annotations(findings),
    }
}

/// quick-junit escapes markup and leaves out what XML cannot hold.
fn junit(findings: &Findings) -> String {
    let mut suite = TestSuite::new("perjoule compare");
    for finding in &findings.list {
        let text = one_line(&format!("{}: {}", finding.verdict, finding.message));
        let non_success = |kind, what: &str| {
            let mut status = TestCaseStatus::non_success(kind);
            status.set_message(text.clone()).set_type(what);
            status
        };
        let status = match finding.outcome {
            Outcome::Regression => non_success(NonSuccessKind::Failure, "regression"),
            Outcome::Invalid => non_success(NonSuccessKind::Error, "invalid"),
            Outcome::Missing | Outcome::New | Outcome::Unclear => {
                let mut status = TestCaseStatus::skipped();
                status.set_message(text.clone());
                status
            }
            Outcome::Fine => TestCaseStatus::success(),
        };
        let succeeded = matches!(status, TestCaseStatus::Success { .. });
        let mut case = TestCase::new(one_line(&finding.name), status);
        case.set_classname(format!("perjoule.{}", one_line(&finding.group)));
        if succeeded {
            case.set_system_out(text);
        }
        // A time that JUnit can hold; others are unknown.
        if let Some(time) = finding.seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()) {
            case.set_time(time);
        }
        suite.add_test_case(case);
    }
    let mut report = Report::new(one_line(&findings.title));
    report.add_test_suite(suite);
    // The writer fails only where its output does, and a string does not.
    report.to_string().unwrap_or_default()
}

/// <https://docs.github.com/actions/reference/workflow-commands-for-github-actions>
fn annotations(findings: &Findings) -> String {
    let mut text = String::new();
    let mut command = |level: &str, title: &str, message: &str| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "::{level} title={}::{}", command_property(title), command_message(message));
    };
    command("notice", "perjoule compare", &findings.summary);
    for finding in &findings.list {
        let level = match finding.outcome {
            Outcome::Regression | Outcome::Invalid => "error",
            Outcome::Unclear | Outcome::Missing => "warning",
            Outcome::New | Outcome::Fine => continue,
        };
        command(level, &finding.verdict, &format!("{}: {}", finding.name, finding.message));
    }
    findings.notes.iter().for_each(|note| command("notice", "perjoule compare", note));
    text
}
