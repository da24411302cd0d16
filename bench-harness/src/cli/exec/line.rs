//! Command lines: from words as they were given, or from text that a shell or nobody reads.

use anyhow::{Context, Result, anyhow, ensure};
use perjoule_record::stats;
use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::measure::process::{Processes, Sink, ending};

/// Runs of an empty command that tell what the shell costs.
const EMPTY: usize = 5;
/// Share of a run from which on the shell's part is said.
const NOTED: f64 = 0.05;

/// Words to run, and how they were given.
#[derive(Debug, Clone)]
pub(super) struct Source {
    pub(super) words: Vec<OsString>,
    pub(super) shown: String,
}

impl Source {
    /// Words as they are; shown so that a POSIX shell would read them back.
    pub(super) fn words(words: &[OsString]) -> Result<Source> {
        ensure!(!words[0].is_empty(), "the command is an empty word");
        let text: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
        // words of a command line hold no NUL, the one thing that has no quotes
        let shown = shlex::try_join(text.iter().map(AsRef::as_ref)).unwrap_or_else(|_| text.join(" "));
        Ok(Source { words: words.to_vec(), shown })
    }
}

/// What reads the text of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Shell {
    /// These words, and then the text.
    Of(Vec<String>),
    /// Nobody: quotes are understood, and nothing else.
    None,
}

impl Shell {
    /// As `--shell` and `-N` have it.
    pub(super) fn of(named: Option<&str>, none: bool) -> Result<Shell> {
        let named = match named {
            _ if none => return Ok(Shell::None),
            Some("none") => return Ok(Shell::None),
            Some(text) => text,
            None if cfg!(windows) => "cmd",
            None => "sh",
        };
        let mut words = split("--shell", named)?;
        let program = Path::new(&words[0]).file_stem().unwrap_or_default();
        words.push(if program.eq_ignore_ascii_case("cmd") { "/C".into() } else { "-c".into() });
        Ok(Shell::Of(words))
    }

    /// The text of `option` as words to run.
    pub(super) fn read(&self, option: &str, text: &str) -> Result<Source> {
        ensure!(!text.trim().is_empty(), "{option}: the command is empty");
        let words = match self {
            Shell::Of(shell) => shell.iter().map(OsString::from).chain([OsString::from(text)]).collect(),
            Shell::None => split(option, text)?.into_iter().map(OsString::from).collect(),
        };
        Ok(Source { words, shown: text.to_owned() })
    }

    /// What the shell itself takes of a run, in nanoseconds, where that is a good part of `run_ns`.
    pub(super) fn cost_ns(&self, run_ns: f64) -> Option<f64> {
        // a shell takes a millisecond or a few
        if *self == Shell::None || run_ns > 100e6 {
            return None;
        }
        // a colon does nothing in every POSIX shell, and is a label for cmd
        let words = self.read("-c", ":").ok()?.words;
        let processes = Processes::new(None, Sink::Null).ok()?;
        let walls: Option<Vec<f64>> =
            (0..EMPTY).map(|_| Some(processes.run(&words).ok()?.wall_s * 1e9)).collect();
        stats::median(&walls?).filter(|ns| *ns > NOTED * run_ns)
    }
}

fn split(option: &str, text: &str) -> Result<Vec<String>> {
    let words = shlex::split(text).with_context(|| format!("{option} {text:?}: a quote is not closed"))?;
    ensure!(words.first().is_some_and(|word| !word.is_empty()), "{option}: the command is empty");
    Ok(words)
}

/// Runs `--cleanup`, after Ctrl-C too.
pub(super) fn after(text: Option<&str>, shell: &Shell) -> Result<()> {
    let Some(text) = text else { return Ok(()) };
    let words = shell.read("--cleanup", text)?.words;
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let status = command.status().map_err(|error| anyhow!("--cleanup: {error}"))?;
    ensure!(status.success(), "--cleanup {}", ending(status));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(source: Source) -> Vec<String> {
        source.words.into_iter().map(|word| word.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn shells_take_the_text_and_nobody_splits_it() {
        let sh = Shell::of(Some("bash -e"), false).unwrap();
        assert_eq!(words(sh.read("-c", "a | b").unwrap()), ["bash", "-e", "-c", "a | b"]);
        let cmd = Shell::of(Some("CMD.exe"), false).unwrap();
        assert_eq!(words(cmd.read("-c", "dir").unwrap()), ["CMD.exe", "/C", "dir"]);
        for none in [Shell::of(None, true).unwrap(), Shell::of(Some("none"), false).unwrap()] {
            assert_eq!(words(none.read("-c", "a 'b c' | d").unwrap()), ["a", "b c", "|", "d"]);
        }
        assert!(Shell::of(Some(""), false).is_err() && Shell::of(Some("'"), false).is_err());
        assert!(sh.read("-c", " ").unwrap_err().to_string().contains("-c: the command is empty"));
        assert!(Shell::None.read("-c", "''").is_err());
    }

    #[test]
    fn words_are_shown_as_a_shell_reads_them() {
        let source = Source::words(&["echo", "it's", "", "$x"].map(OsString::from)).unwrap();
        assert_eq!(shlex::split(&source.shown).unwrap(), ["echo", "it's", "", "$x"]);
        assert!(Source::words(&[OsString::new()]).is_err());
    }
}
