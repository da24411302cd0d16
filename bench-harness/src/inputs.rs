//! Files of results, for every command that reads some: perjoule's own records, and other tools' results as imported ones. Which it
//! is, the content says.

use anyhow::{Context, Result, bail};
use perjoule_formats::{ImportError, MAX_INPUT_BYTES, import};
use perjoule_record::{Problem, Reader, Record, StoreError, Warning};
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

/// How much of a file is looked at to tell whether it holds records.
const HEAD: u64 = 1 << 20;
/// Warnings of a file that are printed, where a command does not print all.
const NAMED: usize = 5;

/// What a file held.
#[derive(Debug)]
pub(crate) struct Input {
    /// The file, or `stdin`.
    pub(crate) name: String,
    pub(crate) records: Vec<Record>,
    /// What could not be read, a line each, without the name of the file.
    pub(crate) warnings: Vec<String>,
}

impl Input {
    /// Prints the first warnings, and how many more there are.
    pub(crate) fn warn(&self) {
        warn(&self.name, &self.warnings);
    }
}

/// Prints the first of a file's warnings, and how many more there are.
pub(crate) fn warn(name: &str, warnings: &[String]) {
    for warning in warnings.iter().take(NAMED) {
        eprintln!("warning: {name}: {warning}");
    }
    if warnings.len() > NAMED {
        eprintln!("warning: {name}: {} more damaged lines", warnings.len() - NAMED);
    }
}

/// The file itself, or a folder's files of records by name.
///
/// # Errors
/// A folder that cannot be read, or holds no `*.jsonl`.
pub(crate) fn files(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let named = || format!("cannot read {}", path.display());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).with_context(named)? {
        let file = entry.with_context(named)?.path();
        if file.extension().is_some_and(|name| name == "jsonl") && file.is_file() {
            files.push(file);
        }
    }
    files.sort();
    if files.is_empty() {
        bail!("no *.jsonl in {}", path.display());
    }
    Ok(files)
}

/// Whether a file that begins with `head` holds perjoule's own lines.
pub(crate) fn is_own(head: &[u8]) -> bool {
    const WORD: &[u8] = b"\"schema_version\"";
    head.windows(WORD.len()).any(|window| window == WORD)
}

/// Reads a file, or stdin for `-`. Damaged parts are warnings.
///
/// # Errors
/// A file that cannot be read at all.
pub(crate) fn read(path: &Path) -> Result<Input> {
    if path == Path::new("-") {
        return read_from(io::stdin().lock(), path, "stdin".into());
    }
    let file = File::open(path).map_err(|source| StoreError::Open { path: path.to_owned(), source })?;
    read_from(file, path, path.display().to_string())
}

fn read_from(mut source: impl Read, path: &Path, name: String) -> Result<Input> {
    let failed = |source| StoreError::Read { path: path.to_owned(), source };
    let mut head = Vec::new();
    source.by_ref().take(HEAD).read_to_end(&mut head).map_err(failed)?;
    if !is_own(&head) {
        let room = (MAX_INPUT_BYTES as u64 + 1).saturating_sub(head.len() as u64);
        source.by_ref().take(room).read_to_end(&mut head).map_err(failed)?;
        match import(&head, &name, None) {
            Ok(imported) => {
                let warnings = imported.warnings.iter().map(ToString::to_string).collect();
                return Ok(Input { name, records: imported.records, warnings });
            }
            // nothing, or lines of records that are all damaged: each is a warning
            Err(ImportError::Unrecognised { .. } | ImportError::Empty { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let (records, mut warnings) = Reader::new(BufReader::new(head.as_slice().chain(source))).read_all();
    if matches!(warnings.last(), Some(Warning { problem: Problem::Io(_), .. }))
        && let Some(Warning { problem: Problem::Io(error), .. }) = warnings.pop()
    {
        return Err(failed(error).into());
    }
    Ok(Input { name, records, warnings: warnings.iter().map(ToString::to_string).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use perjoule_record::{Environment, Kind, Provenance, to_line};

    fn of(bytes: &[u8]) -> Result<Input> {
        read_from(bytes, Path::new("x"), "x".into())
    }

    #[test]
    fn content_tells_whose_results_they_are() {
        let own = to_line(&Record::new(Kind::Kernel, &Environment::default())).unwrap();
        let read = of(own.as_bytes()).unwrap();
        assert_eq!((read.records.len(), read.records[0].provenance), (1, Provenance::Measured));
        let table = "| model | size | params | backend | test | t/s |\n|---|---|---|---|---|---|\n| a 7B | 1.00 GiB | 7.00 B | CUDA | tg128 | 10.00 ± 0.10 |\n";
        let read = of(table.as_bytes()).unwrap();
        assert_eq!((read.records.len(), read.records[0].provenance), (1, Provenance::Imported));
        // a log before the records
        let read = of(format!("loading\n{own}").as_bytes()).unwrap();
        assert_eq!((read.records.len(), read.warnings.len()), (1, 1));
    }

    #[test]
    fn what_is_neither_has_a_warning_a_line() {
        let read = of(b"prose\n{\"schema_v").unwrap();
        assert_eq!((read.records.len(), read.warnings.len()), (0, 2));
        assert!(of(b"").unwrap().warnings.is_empty());
        assert!(of(b"\xff\xfe{\0").unwrap_err().to_string().contains("UTF-16"));
        struct Failing;
        impl Read for Failing {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("disk on fire"))
            }
        }
        let error = read_from(b"{}\n".chain(Failing), Path::new("x"), "x".into()).unwrap_err();
        assert!(error.to_string().contains("disk on fire"), "{error}");
    }
}
