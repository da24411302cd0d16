//! The energy counter of AMD's data center GPUs (MI200, MI300 and later), from the table `gpu_metrics` that the amdgpu driver shows for
//! each card. AMD SMI reads its energy count from the same table, so no vendor library is needed.
//!
//! The table begins with its size and its version; where the counter stands follows from the version (Linux
//! `drivers/gpu/drm/amd/include/kgd_pp_interface.h`, `struct gpu_metrics_v1_*`). It counts 2^-16 J. Consumer cards have the
//! field without a counter behind it; their power is in hwmon.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::discover::{Discovery, Unavailable};
use crate::error::{MeterError, Result};
use crate::meter::{Meter, MeterInfo, Sample, Subject, Unwrapped};
use crate::quantity::{Band, Boundary, Source};
use crate::sysfs;

/// Where Linux lists the cards.
pub const DRM_ROOT: &str = "/sys/class/drm";

/// Joules per count.
const UNIT: f64 = 1.0 / 65_536.0;

/// The driver asks the firmware anew once a millisecond at most; how often that counts is not published.
const PERIOD: Duration = Duration::from_millis(10);

/// Accuracy where nothing is known, as a fraction.
const ACCURACY: f64 = 0.10;

/// How a table is read; tests inject refusals here, since root may read everything.
type ReadTable = fn(&Path) -> io::Result<Vec<u8>>;

/// The energy counter of one GPU.
#[derive(Debug)]
pub struct AmdGpu {
    info: MeterInfo,
    path: PathBuf,
    read: ReadTable,
    counter: Mutex<Unwrapped>,
}

impl AmdGpu {
    /// The cards under `root` (normally [`DRM_ROOT`]) that count their energy. Cards that do not are no entry at all: hwmon has them.
    pub fn discover(root: &Path) -> Discovery {
        discover_with(root, |path| fs::read(path))
    }
}

fn discover_with(root: &Path, read: ReadTable) -> Discovery {
    let mut found = Discovery::default();
    for card in sysfs::entries(root) {
        let name = sysfs::file_name(&card);
        // beside cards there are connectors (card0-DP-1) and render nodes, which lead to the same device
        if name.strip_prefix("card").is_none_or(|n| n.parse::<u32>().is_err()) {
            continue;
        }
        let path = card.join("device/gpu_metrics");
        if !path.exists() {
            continue;
        }
        match open(&card, path, read) {
            Ok(meter) => found.meters.extend(meter.map(|meter| Arc::new(meter) as Arc<dyn Meter>)),
            Err(error) => {
                found.unavailable.push(Unavailable::from_error(Source::AmdGpuMetrics, name, &error));
            }
        }
    }
    found
}

/// `None` for a card without the counter.
fn open(card: &Path, path: PathBuf, read: ReadTable) -> Result<Option<AmdGpu>> {
    if energy(&table(&path, read)?, &path)?.is_none() {
        return Ok(None);
    }
    let device = fs::canonicalize(card.join("device")).ok().map(|path| sysfs::file_name(&path));
    let place = device.clone().unwrap_or_else(|| sysfs::file_name(card));
    let id = format!("amdgpu-metrics:{place}");
    let mut info = MeterInfo::new(id, Source::AmdGpuMetrics, Boundary::Chip, Subject::Gpu);
    info.name = format!("AMD GPU at {place}");
    info.device = device;
    info.update_period = PERIOD;
    info.accuracy = Band::within(ACCURACY);
    info.notes.push("The socket with its memory; on an APU this includes the CPU.".into());
    Ok(Some(AmdGpu { info, path, read, counter: Mutex::new(Unwrapped::new(u64::MAX, UNIT)) }))
}

fn table(path: &Path, read: ReadTable) -> Result<Vec<u8>> {
    read(path).map_err(|error| {
        MeterError::io(path, error, || format!("until the next boot: `sudo chmod a+r {}`", path.display()))
    })
}

/// The counter in a table; `None` where this kind of table, or this card, has none.
fn energy(table: &[u8], path: &Path) -> Result<Option<u64>> {
    let malformed = |found: String, expected| MeterError::Malformed { path: path.into(), found, expected };
    let &[a, b, format, content, ..] = table else {
        return Err(malformed(format!("{} bytes", table.len()), "a table with its size and version"));
    };
    let size = usize::from(u16::from_le_bytes([a, b]));
    if size > table.len() {
        return Err(malformed(format!("{} of {size} bytes", table.len()), "a whole table"));
    }
    let offset = match (format, content) {
        (1, 1..=4 | 7 | 8) => 24,
        (1, 5) => 88,
        (1, 6) => 16,
        // 1.0 is not aligned and counts 32 bits, 2.x and 3.x are of APUs, later ones have no fixed places
        _ => return Ok(None),
    };
    let count = table[..size].get(offset..offset + 8).and_then(|bytes| bytes.try_into().ok());
    let count = count.map(u64::from_le_bytes);
    let count = count.ok_or_else(|| malformed(format!("{size} bytes"), "a table of its version's size"))?;
    // the driver fills what a card does not have with ones, older drivers with zeros
    Ok((count != 0 && count != u64::MAX).then_some(count))
}

impl Meter for AmdGpu {
    fn info(&self) -> &MeterInfo {
        &self.info
    }

    fn read(&self) -> Result<Sample> {
        let count =
            energy(&table(&self.path, self.read)?, &self.path)?.ok_or_else(|| MeterError::Absent {
                origin: Source::AmdGpuMetrics,
                reason: format!("{} has lost its counter", self.path.display()),
            })?;
        let mut counter = self.counter.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Sample::Joules(counter.advance(count, Instant::now(), &self.info.id)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table of a version whose counter stands at `offset`.
    fn table(content: u8, offset: usize, count: u64) -> Vec<u8> {
        let mut table = vec![0xff; 128];
        table[..4].copy_from_slice(&[128, 0, 1, content]);
        table[offset..offset + 8].copy_from_slice(&count.to_le_bytes());
        table
    }

    #[test]
    fn the_counter_is_found_by_the_tables_version() {
        let path = Path::new("gpu_metrics");
        for (content, offset) in [(1, 24), (2, 24), (3, 24), (4, 24), (5, 88), (6, 16), (7, 24), (8, 24)] {
            let found = energy(&table(content, offset, 77), path).unwrap();
            assert_eq!(found, Some(77), "version 1.{content}");
        }
        assert_eq!(energy(&table(4, 24, 0), path).unwrap(), None, "no counter behind the field");
        assert_eq!(energy(&table(4, 32, 77), path).unwrap(), None, "all ones");
        for (format, content) in [(1, 0), (1, 9), (2, 3), (3, 0), (9, 9)] {
            let mut other = table(content, 24, 77);
            other[2] = format;
            assert_eq!(energy(&other, path).unwrap(), None, "version {format}.{content}");
        }
        for cut in 0..32 {
            assert!(energy(&table(4, 24, 77)[..cut], path).is_err(), "{cut} bytes");
        }
        let mut small = table(4, 24, 77);
        small[0] = 20;
        assert!(energy(&small, path).is_err(), "a table that ends before its counter");
    }

    #[test]
    fn a_card_that_may_not_be_read_is_named_with_the_fix() {
        let tree = tempfile::tempdir().unwrap();
        let device = tree.path().join("card1/device");
        fs::create_dir_all(&device).unwrap();
        fs::write(device.join("gpu_metrics"), table(4, 24, 5)).unwrap();
        let found = discover_with(tree.path(), |_| Err(io::ErrorKind::PermissionDenied.into()));
        assert!(found.meters.is_empty());
        assert!(found.unavailable[0].fix.as_ref().unwrap().contains("chmod"), "{:?}", found.unavailable);
    }
}
