//! Stores records in a file that several processes may append to and that any of them may die over.
//!
//! One record is one locked append: lock, end a torn last line, write the whole line with one call, unlock. The lines of
//! two writers never mix; a process that is killed loses at most the record in flight, whose torn line the next append
//! ends and [`Reader`] reports. A written record is with the operating system: it survives the death of the process, not
//! the loss of power.
//!
//! A file-size limit (`RLIMIT_FSIZE`) kills a process by SIGXFSZ before a write can fail. A binary that wants the error
//! instead ignores that signal when it starts.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::{MAX_LINE_BYTES, Reader, Record, Warning, to_line};

/// A results file, open for appending.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    file: File,
    /// Devices and pipes have neither length nor tail.
    regular: bool,
}

/// Why a results file could not be opened, read or written. The message names the path and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The file or its folder could not be opened or created.
    #[error("cannot open {}: {source}{}", path.display(), advice(source))]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The record was not stored; those before it are.
    #[error("cannot append to {}: {source}{}", path.display(), advice(source))]
    Append {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The record is longer than a reader accepts; nothing was written.
    #[error(
        "cannot append to {}: the record has {bytes} bytes, {} MiB is the limit: keep fewer samples",
        path.display(),
        MAX_LINE_BYTES >> 20
    )]
    TooLong {
        /// The file.
        path: PathBuf,
        /// Length of the line.
        bytes: usize,
    },
    /// Reading failed midway.
    #[error("cannot read {}: {source}{}", path.display(), advice(source))]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// What the user can do about it, with a leading separator; empty where the error says it all.
fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "; free some space or choose another file",
        ErrorKind::FileTooLarge => "; raise the file-size limit (ulimit -f) or choose another file",
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem | ErrorKind::IsADirectory => {
            "; choose a file that you may write to"
        }
        _ => "",
    }
}

impl Store {
    /// Opens `path` for appending; creates it and its folder if they are missing.
    ///
    /// # Errors
    /// [`StoreError::Open`] if that is not possible.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let path = path.into();
        let open = || {
            if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
                std::fs::create_dir_all(folder)?;
            }
            // Readable too, because the tail decides whether a line is torn.
            let file = OpenOptions::new().read(true).append(true).create(true).open(&path)?;
            let regular = file.metadata()?.is_file();
            Ok((file, regular))
        };
        match open() {
            Ok((file, regular)) => Ok(Self { path, file, regular }),
            Err(source) => Err(StoreError::Open { path, source }),
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends one record. When this returns, the record is in the file; when it fails, the file is as it was.
    ///
    /// Waits while another process appends.
    ///
    /// # Errors
    /// [`StoreError::Append`] when the system refuses, [`StoreError::TooLong`] beyond [`MAX_LINE_BYTES`].
    pub fn append(&mut self, record: &Record) -> Result<(), StoreError> {
        let append_error = |source| StoreError::Append { path: self.path.clone(), source };
        let line = to_line(record).map_err(|error| append_error(error.into()))?;
        if line.len() > MAX_LINE_BYTES {
            return Err(StoreError::TooLong { path: self.path.clone(), bytes: line.len() });
        }
        let locked = self.lock().map_err(append_error)?;
        let written = self.append_line(line);
        if locked {
            // Closing the file unlocks it as well: a failure here can harm nobody for longer than this process lives.
            let _ = self.file.unlock();
        }
        written.map_err(|source| StoreError::Append { path: self.path.clone(), source })
    }

    /// Whether the file is locked now. Where locks do not exist (some network file systems) appending goes on without:
    /// a whole line in one call is the most that can be done there.
    fn lock(&self) -> io::Result<bool> {
        loop {
            match self.file.lock() {
                Ok(()) => return Ok(true),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if !self.regular || error.kind() == ErrorKind::Unsupported => return Ok(false),
                Err(error) => return Err(error),
            }
        }
    }

    fn append_line(&mut self, mut line: String) -> io::Result<()> {
        if !self.regular {
            return self.file.write_all(line.as_bytes());
        }
        let end = self.file.seek(SeekFrom::End(0))?;
        if end > 0 {
            let mut last = [0];
            self.file.seek(SeekFrom::Start(end - 1))?;
            self.file.read_exact(&mut last)?;
            if last != *b"\n" {
                line.insert(0, '\n');
            }
        }
        self.file.write_all(line.as_bytes()).inspect_err(|_| {
            // Part of the line may be there: taken back, so that a disk that fills up leaves no torn line. If that
            // fails too, the next append ends the line.
            let _ = self.file.set_len(end);
        })
    }
}

/// All records of a file, and a warning for each line that holds none.
///
/// # Errors
/// [`StoreError::Open`] or [`StoreError::Read`] when the file itself cannot be read; damaged lines are no error.
pub fn read_file(path: impl AsRef<Path>) -> Result<(Vec<Record>, Vec<Warning>), StoreError> {
    let path = path.as_ref();
    let file = File::open(path).map_err(|source| StoreError::Open { path: path.to_owned(), source })?;
    let (records, mut warnings) = Reader::new(BufReader::new(file)).read_all();
    match warnings.pop() {
        Some(Warning { problem: crate::Problem::Io(source), .. }) => {
            Err(StoreError::Read { path: path.to_owned(), source })
        }
        last => {
            warnings.extend(last);
            Ok((records, warnings))
        }
    }
}
