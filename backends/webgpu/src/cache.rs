//! The driver's compiled pipelines on disk: a warm start takes none of the time that compiling takes.
//!
//! A file belongs to one adapter, driver and build of this crate: what other builds compiled is never asked for again. It carries a hash of its content, since drivers are not asked to survive what a damaged one
//! holds; a file that does not answer to it is left out and written anew.

use crate::faults::checked;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Environment variable: the folder, or `off`.
pub(crate) const VARIABLE: &str = "PERJOULE_WEBGPU_CACHE";

const MAGIC: &[u8; 16] = b"perjoule-wgpu-1\n";

/// A pipeline cache that is written back when its device goes.
pub(crate) struct DiskCache {
    cache: wgpu::PipelineCache,
    file: PathBuf,
    /// How the names of files of this adapter and driver begin.
    own: String,
    /// Hash of what was read: nothing is written where nothing was added.
    read: Option<u64>,
}

impl DiskCache {
    /// The cache of an adapter; `None` where the driver keeps none or has no use for it, or no folder is there for it.
    pub(crate) fn open(device: &wgpu::Device, adapter: &wgpu::AdapterInfo) -> Option<Self> {
        if !device.features().contains(wgpu::Features::PIPELINE_CACHE) {
            return None;
        }
        let name = wgpu::util::pipeline_cache_key(adapter)?;
        let driver = format!("{} {}", adapter.driver, adapter.driver_info);
        let own = format!("{name}_{:016x}", hash(driver.as_bytes()));
        let file = folder()?.join(format!("{own}_{}.bin", env!("PERJOULE_WEBGPU_BUILD")));
        let data = std::fs::read(&file).ok().and_then(|bytes| Some(content(&bytes)?.to_vec()));
        let desc =
            wgpu::PipelineCacheDescriptor { label: Some("perjoule"), data: data.as_deref(), fallback: true };
        // SAFETY: the data is what `get_data` gave for this adapter: the name holds its key, the hash that it is undamaged. wgpu checks
        // the driver's own header besides.
        let cache = checked(device, || unsafe { device.create_pipeline_cache(&desc) }).ok()?;
        Some(DiskCache { cache, file, own, read: data.map(|data| hash(&data)) })
    }

    pub(crate) fn pipelines(&self) -> &wgpu::PipelineCache {
        &self.cache
    }
}

impl Drop for DiskCache {
    fn drop(&mut self) {
        let Some(data) = self.cache.get_data() else { return };
        if self.read == Some(hash(&data)) {
            return;
        }
        // a cache that cannot be written costs time at the next start, and nothing else
        if write(&self.file, &data).is_ok() {
            remove_others(&self.file, &self.own);
        }
    }
}

/// Removes what other builds have left: files beside this one whose names begin alike.
fn remove_others(file: &Path, own: &str) {
    let entries = file.parent().and_then(|folder| std::fs::read_dir(folder).ok());
    for entry in entries.into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(own) && name.ends_with(".bin") && entry.path() != file {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// The content of a file, if it is whole.
fn content(bytes: &[u8]) -> Option<&[u8]> {
    let rest = bytes.strip_prefix(MAGIC)?;
    let (expected, data) = rest.split_first_chunk::<8>()?;
    (u64::from_le_bytes(*expected) == hash(data)).then_some(data)
}

/// Writes beside the file and renames: other processes read and write it, too, and other devices of this one.
fn write(file: &Path, data: &[u8]) -> std::io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let (process, number) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let beside =
        folder.join(format!(".{process}.{number}.{}", file.file_name().unwrap_or_default().display()));
    let mut to = std::fs::File::create(&beside)?;
    let written = to
        .write_all(MAGIC)
        .and_then(|()| to.write_all(&hash(data).to_le_bytes()))
        .and_then(|()| to.write_all(data))
        .and_then(|()| std::fs::rename(&beside, file));
    if written.is_err() {
        let _ = std::fs::remove_file(&beside);
    }
    written
}

fn folder() -> Option<PathBuf> {
    use etcetera::BaseStrategy;
    match std::env::var_os(VARIABLE) {
        Some(off) if off == "off" => None,
        Some(folder) if !folder.is_empty() => Some(folder.into()),
        _ => Some(etcetera::choose_base_strategy().ok()?.cache_dir().join("perjoule").join("webgpu")),
    }
}

fn hash(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_files_are_read() {
        let folder = std::env::temp_dir().join(format!("perjoule-cache-{}", std::process::id()));
        let file = folder.join("cache.bin");
        write(&file, b"pipelines").unwrap();
        let whole = std::fs::read(&file).unwrap();
        assert_eq!(content(&whole), Some(&b"pipelines"[..]));
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            assert_eq!(content(&damaged), None, "byte {at}");
            assert_eq!(content(&whole[..at]), None, "cut at {at}");
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn files_of_other_builds_go() {
        let folder = std::env::temp_dir().join(format!("perjoule-cache-builds-{}", std::process::id()));
        let names = ["adapter_1_new.bin", "adapter_1_old.bin", "adapter_1.bin", "adapter_2_old.bin", "other"];
        for name in names {
            write(&folder.join(name), b"pipelines").unwrap();
        }
        remove_others(&folder.join(names[0]), "adapter_1");
        let left = names.map(|name| folder.join(name).exists());
        assert_eq!(left, [true, false, false, true, true]);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
