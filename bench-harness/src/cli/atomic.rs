//! Files that are written whole or not at all.

use anyhow::{Result, ensure};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// Refuses what [`write`] could not put there, before there is anything to write: it tries, and leaves nothing behind.
pub(super) fn check(path: &Path) -> Result<()> {
    let target = target(path);
    ensure!(!target.is_dir(), "{} is a folder: choose a file", path.display());
    let folder = folder(&target);
    ensure!(folder.is_dir(), "cannot write {}: there is no folder {}", path.display(), folder.display());
    match std::fs::metadata(&target) {
        Ok(what) if is_device(&what) => {
            let file = std::fs::OpenOptions::new().write(true).open(&target);
            // a full device refuses even nothing
            file.and_then(|mut file| file.write(&[])).map(|_| ())
        }
        // a pipe would wait for its reader
        Ok(what) if !what.is_file() => Ok(()),
        _ => temporary(folder).map(|_| ()),
    }
    .map_err(|error| named(path, &error))
}

/// Writes the whole file or nothing: a reader never sees a half of it, and an older one stays until the new one is complete.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let named = |error: std::io::Error| named(path, &error);
    let target = target(path);
    match std::fs::metadata(&target) {
        Ok(what) if what.is_dir() => return Err(named(ErrorKind::IsADirectory.into())),
        Ok(what) if !what.is_file() => {
            let mut file = std::fs::OpenOptions::new().write(true).open(&target).map_err(named)?;
            return file.write_all(bytes).and_then(|()| file.flush()).map_err(named);
        }
        _ => {}
    }
    let mut file = temporary(folder(&target)).map_err(named)?;
    file.write_all(bytes).and_then(|()| file.as_file().sync_all()).map_err(named)?;
    file.persist(&target).map_err(|error| named(error.error))?;
    Ok(())
}

/// What is written: a link stays a link, and a device or a pipe is written as it is.
fn target(path: &Path) -> PathBuf {
    std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

fn folder(target: &Path) -> &Path {
    target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn temporary(folder: &Path) -> std::io::Result<tempfile::NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".perjoule-");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // as the user's umask has it, and not for the owner alone
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    builder.tempfile_in(folder)
}

#[cfg(unix)]
fn is_device(what: &std::fs::Metadata) -> bool {
    use std::os::unix::fs::FileTypeExt;
    what.file_type().is_char_device() || what.file_type().is_block_device()
}

#[cfg(not(unix))]
fn is_device(_: &std::fs::Metadata) -> bool {
    false
}

/// The error with the path, once (errors of temporary files name theirs), and what to do.
fn named(path: &Path, error: &std::io::Error) -> anyhow::Error {
    let advice = match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "; free some space or choose another file",
        ErrorKind::FileTooLarge => "; raise the file-size limit (ulimit -f) or choose another file",
        ErrorKind::NotFound => "; the folder must exist",
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem | ErrorKind::IsADirectory => {
            "; choose a file that you may write to"
        }
        _ => "",
    };
    let why = std::io::Error::from(error.kind());
    let why = error.raw_os_error().map_or(why, std::io::Error::from_raw_os_error);
    anyhow::anyhow!("cannot write {}: {why}{advice}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_errors_name_it_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.html");
        check(&path).unwrap();
        assert!(!path.exists());
        write(&path, b"one").unwrap();
        check(&path).unwrap();
        write(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing temporary stays");
        let error = write(&folder.path().join("no/where.html"), b"x").unwrap_err().to_string();
        assert_eq!(error.matches("where.html").count(), 1, "{error}");
        assert!(error.contains("folder must exist"), "{error}");
        assert!(write(folder.path(), b"x").unwrap_err().to_string().contains("may write to"));
        #[cfg(target_os = "linux")]
        {
            for error in [write(Path::new("/dev/full"), b"x"), check(Path::new("/dev/full"))] {
                let error = error.unwrap_err().to_string();
                assert!(
                    error.starts_with("cannot write /dev/full") && error.contains("free some space"),
                    "{error}"
                );
            }
            check(Path::new("/dev/null")).unwrap();
            assert!(check(Path::new("/proc/none")).is_err());
        }
    }
}
