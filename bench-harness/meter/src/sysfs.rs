//! Reading small sysfs files, with errors that name the file.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{MeterError, Result};

/// How a file is read; tests inject refusals here, since root may read everything.
pub(crate) type ReadFile = fn(&Path) -> io::Result<String>;

pub(crate) fn read_file(path: &Path) -> io::Result<String> {
    fs::read_to_string(path)
}

/// The unsigned decimal integer that `path` holds.
pub(crate) fn read_u64(read: ReadFile, path: &Path, fix: impl FnOnce() -> String) -> Result<u64> {
    let text = read(path).map_err(|e| MeterError::io(path, e, fix))?;
    text.trim().parse().map_err(|_| MeterError::Malformed {
        path: path.to_path_buf(),
        found: text.trim().chars().take(40).collect(),
        expected: "an unsigned integer",
    })
}

/// As [`read_u64`], for values that may be negative.
pub(crate) fn read_i64(read: ReadFile, path: &Path, fix: impl FnOnce() -> String) -> Result<i64> {
    let text = read(path).map_err(|e| MeterError::io(path, e, fix))?;
    text.trim().parse().map_err(|_| MeterError::Malformed {
        path: path.to_path_buf(),
        found: text.trim().chars().take(40).collect(),
        expected: "an integer",
    })
}

/// The trimmed text of `path`; `None` when there is none.
pub(crate) fn read_text(read: ReadFile, path: &Path) -> Option<String> {
    read(path).ok().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// The entries of `dir` in natural order (`hwmon2` before `hwmon10`); none when it cannot be listed.
pub(crate) fn entries(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).collect();
    paths.sort_by_key(|path| {
        let name = file_name(path);
        (name.len(), name)
    });
    paths
}

/// The last component of `path`, lossily.
pub(crate) fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}
