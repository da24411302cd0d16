//! Energy and power sensors of Linux hardware monitoring: AMD and Intel GPUs, ACPI power meters and others.
//!
//! `energyN_input` counts microjoules, `powerN_average` and `powerN_input` give microwatts, and labels say what a
//! channel includes (Linux `Documentation/hwmon/sysfs-interface.rst` and the drivers' ABI files). Where one device
//! has both at one boundary the counter is used.
//!
//! No driver states its accuracy, so the 95 % band is 10 %.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::discover::{Discovery, Unavailable};
use crate::error::Result;
use crate::meter::{Meter, MeterInfo, Sample, Subject, Unwrapped};
use crate::quantity::{Boundary, Source};
use crate::sysfs::{self, ReadFile};

/// Where Linux mounts the tree.
pub const HWMON_ROOT: &str = "/sys/class/hwmon";

/// Joules per count of `energyN_input`, watts per count of `powerN_*`.
const MICRO: f64 = 1e-6;

/// Where a 32-bit counter starts over.
const WRAP_32: u64 = 1 << 32;

/// Period after which a sensor is taken to have something new, where its driver does not say.
const DEFAULT_PERIOD: Duration = Duration::from_millis(100);

/// One channel of one hwmon device.
#[derive(Debug)]
pub struct Hwmon {
    info: MeterInfo,
    read: ReadFile,
    path: PathBuf,
    /// The unwrapping state of an energy channel; `None` for a power channel.
    counter: Option<Mutex<Unwrapped>>,
}

impl Hwmon {
    /// The meters under `root` (normally [`HWMON_ROOT`]), and why others are unusable.
    pub fn discover(root: &Path) -> Discovery {
        discover_with(root, sysfs::read_file)
    }
}

impl Meter for Hwmon {
    fn info(&self) -> &MeterInfo {
        &self.info
    }

    fn read(&self) -> Result<Sample> {
        let raw = sysfs::read_u64(self.read, &self.path, || permission_fix(&self.path))?;
        match &self.counter {
            None => Ok(Sample::Watts(raw as f64 * MICRO)),
            Some(counter) => {
                let mut counter = counter.lock().unwrap_or_else(PoisonError::into_inner);
                counter.advance(raw, Instant::now(), &self.info.id).map(Sample::Joules)
            }
        }
    }
}

pub(crate) fn discover_with(root: &Path, read: ReadFile) -> Discovery {
    let mut found = Discovery::default();
    for dir in sysfs::entries(root) {
        let Some(driver) = sysfs::read_text(read, &dir.join("name")) else { continue };
        // Per-tile sensors of i915 count what the card's own sensor counts already.
        if driver.starts_with("i915_gt") {
            continue;
        }
        let device = std::fs::canonicalize(dir.join("device")).ok().map(|path| sysfs::file_name(&path));
        let mut taken: Vec<u32> = Vec::new();
        for channel in channels(&dir) {
            let label = label_of(read, &dir, &channel);
            let Some((subject, boundary)) = classify(&driver, &channel, label.as_deref()) else { continue };
            // energy1 and power1 describe one thing; the counter comes first in the list, then averages.
            if taken.contains(&channel.number) {
                continue;
            }
            match open(read, &dir, &driver, device.clone(), &channel, label, subject, boundary) {
                Ok(meter) => {
                    taken.push(channel.number);
                    found.meters.push(Arc::new(meter));
                }
                Err(error) => {
                    let what = format!("{driver} {}", channel.file);
                    found.unavailable.push(Unavailable::from_error(Source::Hwmon, what, &error));
                }
            }
        }
    }
    if found.meters.is_empty() && found.unavailable.is_empty() {
        found.unavailable.push(Unavailable {
            origin: Source::Hwmon,
            what: "GPUs and boards".into(),
            reason: format!("{} has no energy or power sensor", root.display()),
            fix: None,
        });
    }
    found
}

/// `energy1_input`, `power2_average`, ..
struct Channel {
    file: String,
    /// `energy1`, `power2`, ..
    stem: String,
    number: u32,
    is_energy: bool,
}

/// Counters first, then averaged power, then instantaneous power, each in order of number.
fn channels(dir: &Path) -> Vec<Channel> {
    let names: Vec<String> = sysfs::entries(dir).iter().map(|path| sysfs::file_name(path)).collect();
    let mut list = Vec::new();
    for (quantity, suffix) in [("energy", "_input"), ("power", "_average"), ("power", "_input")] {
        for file in &names {
            let Some(number) = file.strip_prefix(quantity).and_then(|rest| rest.strip_suffix(suffix)) else {
                continue;
            };
            if let Ok(number) = number.parse() {
                let stem = format!("{quantity}{number}");
                list.push(Channel { file: file.clone(), stem, number, is_energy: quantity == "energy" });
            }
        }
    }
    list
}

fn label_of(read: ReadFile, dir: &Path, channel: &Channel) -> Option<String> {
    ["label", "oem_info"]
        .iter()
        .find_map(|kind| sysfs::read_text(read, &dir.join(format!("{}_{kind}", channel.stem))))
}

/// What a channel includes, by driver and label. `None` leaves it out: a part of something that is taken whole,
/// or a sensor of no use here.
fn classify(driver: &str, channel: &Channel, label: Option<&str>) -> Option<(Subject, Boundary)> {
    let label = label.unwrap_or_default();
    match driver {
        // Power of the GPU package with its memory where that is stacked on it ("PPT", package power tracking).
        "amdgpu" => Some((Subject::Gpu, Boundary::Chip)),
        "i915" => Some((Subject::Gpu, Boundary::Board)),
        // Channel 1 is the card and channel 2 the package (sysfs-driver-intel-xe-hwmon).
        "xe" => match (label, channel.stem.as_str()) {
            ("card", _) | ("", "energy1" | "power1") => Some((Subject::Gpu, Boundary::Board)),
            ("pkg", _) | ("", "energy2" | "power2") => Some((Subject::Gpu, Boundary::Chip)),
            _ => None,
        },
        // Grace names its ACPI meters; other machines use one for the whole system.
        "power_meter" => Some(match label {
            l if l.contains("Module") => (Subject::System, Boundary::Module),
            l if l.contains("CPU") || l.contains("Grace") => (Subject::Cpu, Boundary::Package),
            l if l.contains("SysIO") => (Subject::Other, Boundary::Rail),
            _ => (Subject::System, Boundary::Platform),
        }),
        // One counter for each core and each socket, of which RAPL has the sums.
        "amd_energy" => None,
        // A battery's power is discharge or charge depending on a file elsewhere.
        _ if driver.starts_with("BAT") => None,
        _ => Some((Subject::Other, Boundary::Rail)),
    }
}

#[expect(clippy::too_many_arguments, reason = "one call, and every value is needed to describe the meter")]
fn open(
    read: ReadFile,
    dir: &Path,
    driver: &str,
    device: Option<String>,
    channel: &Channel,
    label: Option<String>,
    subject: Subject,
    boundary: Boundary,
) -> Result<Hwmon> {
    let path = dir.join(&channel.file);
    let now = sysfs::read_u64(read, &path, || permission_fix(&path))?;
    let place = device.clone().unwrap_or_else(|| sysfs::file_name(dir));
    let mut info =
        MeterInfo::new(format!("hwmon:{driver}@{place}:{}", channel.stem), Source::Hwmon, boundary, subject);
    info.name = [Some(driver.to_owned()), label].into_iter().flatten().collect::<Vec<_>>().join(" ");
    info.device = device;
    info.update_period = DEFAULT_PERIOD;
    let counter = if channel.is_energy {
        // The attribute is 64 bits wide in most drivers and 32 in some. A counter beyond 32 bits is of the first
        // kind; below that a decrease is a wrap at 2^32.
        let modulus = if now < WRAP_32 { WRAP_32 } else { u64::MAX };
        info.poll_every = Some(Unwrapped::poll_every(WRAP_32, MICRO));
        Some(Mutex::new(Unwrapped::new(modulus, MICRO)))
    } else {
        let interval = dir.join(format!("{}_average_interval", channel.stem));
        if let Some(ms) = sysfs::read_text(read, &interval).and_then(|text| text.parse().ok()) {
            info.update_period =
                Duration::from_millis(ms).clamp(Duration::from_millis(1), Duration::from_secs(60));
        }
        info.poll_every = Some(info.update_period.min(DEFAULT_PERIOD));
        info.notes.push("Integrated from sampled power.".into());
        None
    };
    Ok(Hwmon { info, read, path, counter })
}

fn permission_fix(path: &Path) -> String {
    format!("`sudo chmod a+r {}` (until the next boot)", path.display())
}
