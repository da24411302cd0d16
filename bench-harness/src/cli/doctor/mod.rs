//! `perjoule doctor`: what is usable on this machine, what is missing and what would mend it, and what makes numbers noisy.
//!
//! It reads files and asks drivers. It needs no permission, and changes nothing.

mod cpu;
mod devices;
mod finding;
mod meters;
mod system;

use anyhow::Result;
use clap::Args;
use perjoule_record::Environment;
use std::io::Write;
use std::path::Path;

use super::output::{RESULTS, wrap};
use super::{Ended, environment};
use crate::report::one_line;
use finding::{Finding, Root, Section, Status};

/// Columns that details are wrapped to.
const WIDTH: usize = 84;

pub(crate) const EXAMPLES: &str = "Examples:
  perjoule doctor                        everything, in about a second
  perjoule doctor --quick                without watching who else uses the processors
  perjoule doctor --strict || exit 1     before a benchmark, in a script
  perjoule doctor --json | jq -r '.[] | select(.fix) | .fix'

Status: ok; note: to be known; warn: makes numbers noisy; missing: could be used and cannot be.
Exit code: 0, or with --strict 1 when something warns or is missing.";

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Leave out what takes time
    #[arg(long)]
    quick: bool,
    /// Exit with 1 when something warns or is missing
    #[arg(long)]
    strict: bool,
    /// Print a JSON array of section, name, status, detail and fix
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &DoctorArgs) -> Result<Ended> {
    let found = examine(&Root::new("/"), &environment(), !args.quick, Path::new(RESULTS));
    let mut out = anstream::stdout();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&found)?)?;
    } else {
        write!(out, "{}", text(&found))?;
    }
    out.flush()?;
    let bad = found.iter().any(|finding| matches!(finding.status, Status::Warn | Status::Missing));
    Ok(if args.strict && bad { Ended::Failed } else { Ended::Done })
}

/// Everything there is to say of the machine whose files are under `root`.
fn examine(root: &Root, environment: &Environment, watch: bool, results: &Path) -> Vec<Finding> {
    let [meters, counters] = meters::look(root, environment);
    let mut sections = vec![meters, devices::look(root), counters, cpu::look(root, environment, watch)];
    if root.is_real() && !cfg!(target_os = "linux") {
        let mut section = Section::new("cpu");
        section.note("system", "clocks, limits and who else uses the processors are seen on Linux only");
        sections.push(section);
    }
    sections.push(system::memory(root, environment));
    sections.push(system::thermals(root));
    sections.push(system::clock(root));
    sections.push(system::storage(results));
    sections.into_iter().flat_map(|section| section.list).collect()
}

/// What the files of a machine tell of it.
#[cfg(test)]
fn environment_of(root: &Root) -> Environment {
    Environment {
        cpu_model: cpu::cpuinfo(root, "model name"),
        cpu_count: cpu::count(root),
        ..Environment::of_linux_files(root.whole())
    }
}

fn text(found: &[Finding]) -> String {
    let width = found.iter().map(|finding| finding.name.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    let mut section = "";
    for finding in found {
        if finding.section != section {
            section = finding.section;
            let gap = if text.is_empty() { "" } else { "\n" };
            text.push_str(&format!("{gap}\u{1b}[1m{}\u{1b}[0m\n", heading(section)));
        }
        let colour = match finding.status {
            Status::Ok => 32,
            Status::Note => 36,
            Status::Warn => 33,
            Status::Missing => 31,
        };
        let name = one_line(&finding.name);
        let word = finding.status.word();
        text.push_str(&format!("  \u{1b}[{colour}m{word:<8}\u{1b}[0m{name:<width$}  "));
        let indent = " ".repeat(width + 12);
        text.push_str(&wrap(&one_line(&finding.detail), WIDTH).join(&format!("\n{indent}")));
        text.push('\n');
        for command in finding.fix.iter().flat_map(|fix| fix.lines()) {
            // in one line, whatever its length: it is to be pasted
            text.push_str(&format!("{indent}$ {}\n", one_line(command)));
        }
    }
    let count = |status: Status| found.iter().filter(|finding| finding.status == status).count();
    let counts: Vec<String> = [Status::Ok, Status::Note, Status::Warn, Status::Missing]
        .into_iter()
        .map(|status| format!("{} {}", count(status), status.word()))
        .collect();
    text.push_str(&format!("\n{}; lines that begin with $ are commands that mend it\n", counts.join(", ")));
    text
}

fn heading(section: &str) -> &'static str {
    match section {
        "meters" => "Meters",
        "devices" => "Devices and drivers",
        "counters" => "Counters",
        "cpu" => "Processor",
        "memory" => "Memory",
        "thermals" => "Temperatures and power",
        "clock" => "Clock",
        _ => "Storage",
    }
}

#[cfg(test)]
mod tests {
    use super::finding::tests::Tree;
    use super::*;

    fn all(tree: &Tree) -> Vec<Finding> {
        let root = tree.root();
        examine(&root, &environment_of(&root), false, &root.path("results"))
    }

    #[test]
    fn every_section_speaks_even_of_an_empty_machine() {
        let found = all(&Tree::new(&[]));
        let mut sections: Vec<&str> = found.iter().map(|finding| finding.section).collect();
        sections.dedup();
        assert_eq!(
            sections,
            ["meters", "devices", "counters", "cpu", "memory", "thermals", "clock", "storage"]
        );
        // what does not need a look at the machine it is run on, has nothing to mend but the energy of an unknown CPU
        assert!(found.iter().all(|f| f.fix.is_none() || f.status != Status::Ok), "{found:#?}");
    }

    #[test]
    fn what_files_hold_stays_text_on_a_line() {
        let tree = Tree::new(&[
            ("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "power\u{1b}[31m\nsave"),
            ("proc/cpuinfo", "processor : 0\nmodel name : evil\u{1b}]0;x\u{7}\n"),
        ]);
        let text = text(&all(&tree));
        assert!(!text.contains("\u{1b}[31m\n") && !text.contains('\u{7}'), "{text}");
        assert!(text.lines().any(|line| line.trim_start().starts_with("$ echo performance")));
        assert!(text.contains("evil\u{fffd}"));
    }

    #[test]
    fn statuses_are_words_in_json() {
        let mut section = Section::new("cpu");
        section.warn("load", "high");
        section.fix("ps");
        section.ok("fine", "yes");
        let json = serde_json::to_value(&section.list).unwrap();
        assert_eq!(
            json,
            serde_json::json!([
                { "section": "cpu", "name": "load", "status": "warn", "detail": "high", "fix": "ps" },
                { "section": "cpu", "name": "fine", "status": "ok", "detail": "yes", "fix": null },
            ])
        );
    }
}
