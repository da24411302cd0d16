//! Files that are written whole or not at all.

use anyhow::{Result, ensure};
use std::io::{ErrorKind, Write};
use std::path::Path;

/// Refuses what [`write`] could not put there, before there is anything to write.
pub(super) fn check(path: &Path) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    ensure!(!path.is_dir(), "{} is a folder: choose a file", path.display());
    ensure!(folder.is_dir(), "cannot write {}: there is no folder {}", path.display(), folder.display());
    Ok(())
}

/// Writes the whole file or nothing: a reader never sees a half of it, and an older one stays until the new one is complete.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let named = |error: std::io::Error| {
        let advice = match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "; free some space or choose another file",
            ErrorKind::FileTooLarge => "; raise the file-size limit (ulimit -f) or choose another file",
            ErrorKind::NotFound => "; the folder must exist",
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem | ErrorKind::IsADirectory => {
                "; choose a file that you may write to"
            }
            _ => "",
        };
        // the path once: errors of temporary files name theirs
        let why = std::io::Error::from(error.kind());
        let why = error.raw_os_error().map_or(why, std::io::Error::from_raw_os_error);
        anyhow::anyhow!("cannot write {}: {why}{advice}", path.display())
    };
    // a link stays a link; a device or a pipe is written as it is
    let target = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    match std::fs::metadata(&target) {
        Ok(what) if what.is_dir() => return Err(named(ErrorKind::IsADirectory.into())),
        Ok(what) if !what.is_file() => {
            let mut file = std::fs::OpenOptions::new().write(true).open(&target).map_err(named)?;
            return file.write_all(bytes).and_then(|()| file.flush()).map_err(named);
        }
        _ => {}
    }
    let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    builder.prefix(".perjoule-");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // as the user's umask has it, and not for the owner alone
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    let mut file = builder.tempfile_in(folder).map_err(named)?;
    file.write_all(bytes).and_then(|()| file.as_file().sync_all()).map_err(named)?;
    file.persist(&target).map_err(|error| named(error.error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_errors_name_it_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.html");
        write(&path, b"one").unwrap();
        write(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing temporary stays");
        let error = write(&folder.path().join("no/where.html"), b"x").unwrap_err().to_string();
        assert_eq!(error.matches("where.html").count(), 1, "{error}");
        assert!(error.contains("folder must exist"), "{error}");
        assert!(write(folder.path(), b"x").unwrap_err().to_string().contains("may write to"));
        #[cfg(target_os = "linux")]
        {
            let error = write(Path::new("/dev/full"), b"x").unwrap_err().to_string();
            assert!(
                error.starts_with("cannot write /dev/full") && error.contains("free some space"),
                "{error}"
            );
        }
    }
}
