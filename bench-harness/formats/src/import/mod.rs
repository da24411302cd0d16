//! Other tools' results as records.

mod json;
mod llama_bench;
mod markdown;
mod ml_energy;
mod mlperf;
mod row;
mod sql;
mod table;

use std::borrow::Cow;
use std::fmt;

use perjoule_record::{Environment, Kind, Provenance, Reader, Record};

use crate::Format;
use crate::format::{detect, names};

/// Most bytes of a file of another tool: such results are a few kilobytes. perjoule's own lines are read one by one and
/// may be more.
pub const MAX_INPUT_BYTES: usize = 64 << 20;

/// Most records of one import; a record takes a few kilobytes of memory.
pub const MAX_RECORDS: usize = 200_000;

/// Most warnings that are kept; one more says how many there were.
pub const MAX_WARNINGS: usize = 1000;

/// Most bytes of one result, and of a line of a format whose results are lines: a parsed one takes a multiple of its text.
const MAX_RESULT_BYTES: usize = 4 << 20;

/// Most samples of an import that intervals are made of: the bootstrap takes microseconds for each. Records beyond have
/// samples and a median, but no interval.
const MAX_RESAMPLED: usize = 1_000_000;

/// How much of a file is looked at to tell its format.
const HEAD_BYTES: usize = 1 << 20;

/// What a file held.
#[derive(Debug)]
pub struct Imported {
    /// The format that it was read as.
    pub format: Format,
    /// The records in the order of the file.
    pub records: Vec<Record>,
    /// What could not be read, in the order of the file.
    pub warnings: Vec<Warning>,
}

/// A part of a file that could not be read, or not as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// Number of the line from 1, where one is to blame.
    pub line: Option<u64>,
    /// What was wrong, and what became of it.
    pub message: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

/// Why a file could not be imported at all. The message says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// Nothing in the file tells its format.
    #[error("cannot tell the format of {name}: name it, one of {}", names(Format::IMPORTED))]
    Unrecognised {
        /// The file.
        name: String,
    },
    /// The file is empty.
    #[error("{name} is empty")]
    Empty {
        /// The file.
        name: String,
    },
    /// The format is one that is only written.
    #[error("{format} can be written but not read: {} can be read", names(Format::IMPORTED))]
    ExportOnly {
        /// The format asked for.
        format: Format,
    },
    /// The file is in UTF-16.
    #[error("{name} is UTF-16, as `>` of Windows PowerShell 5 writes it: convert it to UTF-8")]
    Utf16 {
        /// The file.
        name: String,
    },
    /// The file is not text.
    #[error("{name} is not UTF-8 text: byte {at} fits no character")]
    NotText {
        /// The file.
        name: String,
        /// Offset of the first wrong byte.
        at: usize,
    },
    /// The file is not what it was said to be.
    #[error("{name} is not {format}: {reason}")]
    NotFormat {
        /// The file.
        name: String,
        /// The format asked for or found.
        format: Format,
        /// What is missing or wrong.
        reason: String,
    },
    /// The file is larger than [`MAX_INPUT_BYTES`].
    #[error("{name} has {bytes} bytes, {} MiB is the limit for {format}: split it", MAX_INPUT_BYTES >> 20)]
    TooLarge {
        /// The file.
        name: String,
        /// Its length.
        bytes: usize,
        /// The format asked for or found.
        format: Format,
    },
    /// The file holds more than [`MAX_RECORDS`] records.
    #[error("{name} holds more than {MAX_RECORDS} records: split it")]
    TooMany {
        /// The file.
        name: String,
    },
}

/// Reads results of another tool, or perjoule's own.
///
/// `name` is the file's name, for messages and the records' `source_name`; a folder in it is dropped. Without `format` it
/// is told from the content. Records of other tools have the provenance `imported`; perjoule's own stay as they are.
///
/// # Errors
/// [`ImportError`] where the file as a whole cannot be read. Damage to a part of it is a [`Warning`].
pub fn import(bytes: &[u8], name: &str, format: Option<Format>) -> Result<Imported, ImportError> {
    let name = name.rsplit(['/', '\\']).next().filter(|name| !name.is_empty()).unwrap_or("the input");
    let owned = || name.to_owned();
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        return Err(ImportError::Utf16 { name: owned() });
    }
    let body = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let head = String::from_utf8_lossy(&body[..body.len().min(HEAD_BYTES)]);
    let format = match format {
        Some(format) if !Format::IMPORTED.contains(&format) => {
            return Err(ImportError::ExportOnly { format });
        }
        Some(format) => format,
        None if head.trim().is_empty() => return Err(ImportError::Empty { name: owned() }),
        None => detect(&head).ok_or_else(|| ImportError::Unrecognised { name: owned() })?,
    };
    drop(head);
    let mut sink = Sink {
        name,
        format,
        records: Vec::new(),
        warnings: Vec::new(),
        unkept: 0,
        resamplable: MAX_RESAMPLED,
    };
    if format == Format::Perjoule {
        for entry in Reader::new(body) {
            match entry {
                Ok(record) => sink.push(record)?,
                Err(warning) => sink.warn(warning.line, warning.problem.to_string()),
            }
        }
        return Ok(sink.finish());
    }
    if body.len() > MAX_INPUT_BYTES {
        return Err(ImportError::TooLarge { name: owned(), bytes: body.len(), format });
    }
    let text = std::str::from_utf8(body)
        .map_err(|error| ImportError::NotText { name: owned(), at: error.valid_up_to() })?;
    let by_line = !matches!(format, Format::LlamaBenchJson | Format::LlamaBenchJsonl | Format::MlEnergy);
    if by_line && text.lines().any(|line| line.len() > MAX_RESULT_BYTES) {
        return Err(sink.not_format(format!("a line has more than {} MiB", MAX_RESULT_BYTES >> 20)));
    }
    match format {
        Format::LlamaBenchJson => json::array(text, &mut sink)?,
        Format::LlamaBenchJsonl => json::lines(text, &mut sink)?,
        Format::LlamaBenchCsv | Format::MlperfCsv => table::read(text, &mut sink)?,
        Format::LlamaBenchSql => sql::read(text, &mut sink)?,
        Format::LlamaBenchMarkdown => markdown::read(text, &mut sink)?,
        Format::MlEnergy => ml_energy::read(text, &mut sink)?,
        _ => mlperf::read_summary(text, &mut sink)?,
    }
    Ok(sink.finish())
}

/// Where the readers put what they find.
struct Sink<'a> {
    name: &'a str,
    format: Format,
    records: Vec<Record>,
    warnings: Vec<Warning>,
    /// Warnings beyond the most that are kept.
    unkept: u64,
    /// Samples that may still go into intervals, see [`MAX_RESAMPLED`].
    resamplable: usize,
}

impl Sink<'_> {
    fn push(&mut self, record: Record) -> Result<(), ImportError> {
        if self.records.len() == MAX_RECORDS {
            return Err(ImportError::TooMany { name: self.name.into() });
        }
        self.records.push(record);
        Ok(())
    }

    fn warn(&mut self, line: impl Into<Option<u64>>, message: impl Into<String>) {
        if self.warnings.len() < MAX_WARNINGS {
            self.warnings.push(Warning { line: line.into(), message: message.into() });
        } else {
            self.unkept += 1;
        }
    }

    fn not_format(&self, reason: impl Into<String>) -> ImportError {
        ImportError::NotFormat { name: self.name.into(), format: self.format, reason: reason.into() }
    }

    /// A record of `tool` in which nothing is known yet.
    fn record(&self, kind: Kind, tool: &str) -> Record {
        let mut record = Record::new(kind, &Environment::default());
        record.provenance = Provenance::Imported;
        record.test_time = None;
        record.source.source_tool = Some(tool.into());
        record.source.source_name = Some(self.name.into());
        record
    }

    fn finish(mut self) -> Imported {
        if self.unkept > 0 {
            let message = format!("{} more warnings", self.unkept);
            self.warnings.push(Warning { line: None, message });
        }
        Imported { format: self.format, records: self.records, warnings: self.warnings }
    }
}

/// `text`, shortened for a message.
fn shown(text: &str) -> Cow<'_, str> {
    const MOST: usize = 60;
    match text.char_indices().nth(MOST) {
        None => text.into(),
        Some((end, _)) => format!("{}..", &text[..end]).into(),
    }
}
