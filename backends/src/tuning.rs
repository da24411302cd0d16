//! Tables of measured choices as files: where they lie, reading, merging, removing.
//!
//! No other function of this crate reads such a file: a program that wants what `perjoule tune` measured calls [`load`] behind
//! [`crate::open`], as the binary does. Without it choices follow from predictions alone, the same on every machine of a kind.
//!
//! A file lies in the user's cache folder (`$XDG_CACHE_HOME/perjoule/tuning/`, or what the platform has for it), and its name says what
//! its times depend on: the device, its driver and features, the number of threads, the version, and the build of the rows. So a changed
//! kernel finds no times of the old one. `PERJOULE_TUNING` names another file, or is `off`.

use crate::device::Device;
use etcetera::BaseStrategy;
use perjoule_kernels::tune::Tuning;
use perjoule_kernels::{DeviceInfo, Error, Result};
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The environment variable: a file, or `off`.
pub const VARIABLE: &str = "PERJOULE_TUNING";

fn trouble(why: String) -> Error {
    Error::Malformed { what: "the tuning table", why }
}

fn io_trouble(verb: &str, path: &Path) -> impl Fn(io::Error) -> Error {
    move |error| trouble(format!("cannot {verb} {}: {error}", path.display()))
}

/// The file that [`load`] reads and [`save`] writes for such a device, whether it is there or not; `None` with `PERJOULE_TUNING=off`.
///
/// # Errors
/// When the system names no cache folder and the variable no file.
pub fn path(info: &DeviceInfo) -> Result<Option<PathBuf>> {
    match std::env::var_os(VARIABLE) {
        Some(value) if value == "off" => Ok(None),
        Some(value) if !value.is_empty() => Ok(Some(value.into())),
        _ => Ok(Some(folder()?.join(file_name(info)))),
    }
}

/// Reads what was measured on such a device and gives it to `device`, whose choices follow it from then on. Gives the file it read;
/// `None` where there is none, or with `PERJOULE_TUNING=off`.
///
/// # Errors
/// [`Error::Malformed`] for a file that is damaged or was measured on another device or build, and where only another build was tuned.
/// The device is then as it was: a program may say so and go on.
pub fn load(device: &Device) -> Result<Option<PathBuf>> {
    let Some(path) = path(device.info())? else { return Ok(None) };
    let named = std::env::var_os(VARIABLE).is_some_and(|value| !value.is_empty());
    if named || path.exists() {
        return load_file(device, &path).map(|()| Some(path));
    }
    match of_any_build(device.info())?.first() {
        None => Ok(None),
        Some(other) => Err(trouble(format!(
            "{} was measured with another build; `perjoule tune` measures again, with --clear it forgets",
            other.display()
        ))),
    }
}

/// Reads a file of one's own.
///
/// # Errors
/// As [`load`], and where the file cannot be read.
pub fn load_file(device: &Device, path: &Path) -> Result<()> {
    let text = fs::read_to_string(path).map_err(io_trouble("read", path))?;
    let tuning = Tuning::from_text(&text, device.info()).map_err(|error| in_file(path, error))?;
    device.set_tuning(Some(Arc::new(tuning)))
}

fn in_file(path: &Path, error: Error) -> Error {
    match error {
        Error::Malformed { why, .. } => trouble(format!("{}: {why}", path.display())),
        other => other,
    }
}

/// Adds measurements to the device's file and to the device itself. Gives the file.
///
/// Another process that does the same meanwhile loses nothing, and a reader sees the old file or the new one. A file of another build is
/// replaced.
///
/// # Errors
/// [`Error::Malformed`] where nothing can be written, with `PERJOULE_TUNING=off`, and for a file that is no tuning table, which is left
/// as it is.
pub fn save(device: &Device, measured: Tuning) -> Result<PathBuf> {
    let off = || trouble(format!("{VARIABLE} is off, so that there is nowhere to write; unset it"));
    let path = path(device.info())?.ok_or_else(off)?;
    save_file(device, &path, measured)?;
    Ok(path)
}

/// The same in a file of one's own.
///
/// # Errors
/// As [`save`].
pub fn save_file(device: &Device, path: &Path, measured: Tuning) -> Result<()> {
    let parent = parent(path);
    fs::create_dir_all(parent).map_err(io_trouble("make the folder", parent))?;
    let _lock = lock(parent)?;
    let mut tuning = Tuning::new();
    match fs::read_to_string(path) {
        Ok(text) if is_table(&text) => {
            // what is torn or stale is worth nothing
            tuning = Tuning::from_text(&text, device.info()).unwrap_or_default();
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Ok(_) => return Err(not_ours(path)),
        Err(error) if error.kind() == ErrorKind::InvalidData => return Err(not_ours(path)),
        Err(error) => return Err(io_trouble("read", path)(error)),
    }
    tuning.merge(measured);
    replace(path, tuning.to_text(device.info()).as_bytes()).map_err(io_trouble("write", path))?;
    device.set_tuning(Some(Arc::new(tuning)))
}

/// Removes what was measured on such a device, by whichever build, and makes `device` forget it. Gives the files that are gone.
///
/// # Errors
/// [`Error::Malformed`] where one cannot be removed, and for a file that is no tuning table, which is left as it is.
pub fn clear(device: &Device) -> Result<Vec<PathBuf>> {
    let files = match (path(device.info())?, std::env::var_os(VARIABLE)) {
        (None, _) => Vec::new(),
        (Some(path), Some(value)) if !value.is_empty() => match fs::read_to_string(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            Ok(text) if is_table(&text) => vec![path],
            _ => return Err(not_ours(&path)),
        },
        (Some(_), _) => of_any_build(device.info())?,
    };
    let _lock = files.first().map(|file| lock(parent(file))).transpose()?;
    for file in &files {
        match fs::remove_file(file) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(io_trouble("remove", file)(error));
            }
            _ => {}
        }
    }
    device.set_tuning(None)?;
    Ok(files)
}

fn is_table(text: &str) -> bool {
    // an empty file is what a name for a new one may be
    text.is_empty() || text.starts_with("perjoule tuning ")
}

fn not_ours(path: &Path) -> Error {
    trouble(format!("{} is something else; choose another file", path.display()))
}

fn folder() -> Result<PathBuf> {
    let base = etcetera::choose_base_strategy()
        .map_err(|error| trouble(format!("no cache folder: {error}; {VARIABLE}=FILE names one")))?;
    Ok(base.cache_dir().join("perjoule").join("tuning"))
}

/// Held while a file of the folder is changed. A table is replaced, and so cannot be locked itself: it is the folder, where folders can be.
fn lock(folder: &Path) -> Result<File> {
    let open = || match cfg!(unix) {
        true => File::open(folder),
        false => File::options().create(true).truncate(false).write(true).open(folder.join("tuning.lock")),
    };
    let locked = open().and_then(|file| file.lock().map(|()| file));
    locked.map_err(io_trouble("lock", folder))
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Writes the whole file or nothing. Under the lock, so that the name of the temporary file is nobody else's.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".part");
    let part = PathBuf::from(name);
    let write = || {
        let mut file = File::create(&part)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&part, path)
    };
    write().inspect_err(|_| {
        // what is left of it is in nobody's way but the disk's
        let _ = fs::remove_file(&part);
    })
}

/// Tables of such a device, of any version and build.
fn of_any_build(info: &DeviceInfo) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder()?) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(trouble(format!("cannot read the cache folder: {error}"))),
    };
    let stem = stem(info);
    let ours = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with(&stem) && name.ends_with(".tsv"))
    };
    let mut list: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(ours).collect();
    list.sort();
    Ok(list)
}

/// Such as `cpu-amd-epyc-2t-1f0c9a6b-0.1.0-53a1c0ffee123456.tsv`.
fn file_name(info: &DeviceInfo) -> String {
    format!("{}{}-{}.tsv", stem(info), env!("CARGO_PKG_VERSION"), info.build.unwrap_or("any"))
}

/// What the names of a device's tables begin with, whatever the version and build.
fn stem(info: &DeviceInfo) -> String {
    let mut features = info.features.clone();
    features.sort_unstable();
    let mut hasher = DefaultHasher::new();
    (info.backend, &info.name, &info.driver, features, info.threads).hash(&mut hasher);
    let threads = info.threads.map_or(String::new(), |n| format!("-{n}t"));
    format!("{}-{}{threads}-{:08x}-", info.backend, slug(&info.name), hasher.finish() as u32)
}

/// Lower case letters and digits with single hyphens between them, at most 40.
fn slug(name: &str) -> String {
    let mut slug = String::new();
    for c in name.chars().map(|c| c.to_ascii_lowercase()).take(40) {
        if c.is_ascii_alphanumeric() {
            slug.push(c);
        } else if !slug.ends_with('-') && !slug.is_empty() {
            slug.push('-');
        }
    }
    slug.trim_end_matches('-').into()
}
