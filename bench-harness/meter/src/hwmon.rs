//! Energy and power sensors of Linux hardware monitoring: AMD and Intel GPUs, ACPI power meters and others.
//!
//! `energyN_input` counts microjoules, `powerN_average` and `powerN_input` give microwatts, and labels say what a
//! channel includes (Linux `Documentation/hwmon/sysfs-interface.rst`). Where one device has both at one boundary
//! the counter is used. What each driver's channels include:
//!
//! | driver | channel | boundary | source |
//! |---|---|---|---|
//! | `amdgpu` | `power1` ("PPT") | chip: "power used by the SoC", with the CPU on an APU | `amdgpu_pm.c`, hwmon section |
//! | `xe` | `energy1` ("card"), `energy2` ("pkg") | board, chip | ABI `sysfs-driver-intel-xe-hwmon` |
//! | `i915` | `energy1` | board: "the entire device"; `i915_gtN` is a part of it | ABI `sysfs-driver-intel-i915-hwmon` |
//! | `power_meter` | "Grace Power Socket N" | package, sockets summed | ACPI 6.5 10.4, NVIDIA Grace tuning guide |
//! | | "CPU Power Socket N", "SysIO Power Socket N" | core, uncore, summed | |
//! | | "Module Power Socket N" | module: CPU, GPU and memory | |
//! | | no label | platform, of a scope that the firmware chose | |
//! | others | any | rail | |
//!
//! The counters of Intel GPUs are registers of 32 bits that older drivers pass on as they are, so that they wrap
//! after 4295 J, and newer ones add up at each reading: either way they are read about once a second.
//!
//! No driver states its accuracy, so the 95 % band is 10 %. An ACPI meter's `power1_accuracy` widens it where that
//! is worse, and is not believed where it is better: firmware says 100 % there.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::discover::{Discovery, Unavailable};
use crate::error::Result;
use crate::meter::{Meter, MeterInfo, Sample, Subject, Unwrapped};
use crate::quantity::{Band, Boundary, Source};
use crate::sysfs::{self, ReadFile};

/// Where Linux mounts the tree.
pub const HWMON_ROOT: &str = "/sys/class/hwmon";

/// Joules per count of `energyN_input`, watts per count of `powerN_*`.
const MICRO: f64 = 1e-6;

/// Where a 32-bit counter starts over.
const WRAP_32: u64 = 1 << 32;

/// Period after which a sensor is taken to have something new, where its driver does not say.
const DEFAULT_PERIOD: Duration = Duration::from_millis(100);

/// Accuracy where nothing is known, as a fraction.
const ACCURACY: f64 = 0.10;

/// One channel of one hwmon device, or the sum of one channel over the sockets of the machine.
#[derive(Debug)]
pub struct Hwmon {
    info: MeterInfo,
    read: ReadFile,
    parts: Vec<Part>,
}

#[derive(Debug)]
struct Part {
    path: PathBuf,
    /// The unwrapping state of an energy channel; `None` for a power channel.
    counter: Option<Mutex<Unwrapped>>,
    /// Whether the counter may be one of 32 bits.
    narrow: bool,
}

/// A channel as found, before it is opened.
struct Found {
    /// Where its attributes lie.
    dir: PathBuf,
    driver: String,
    device: Option<String>,
    channel: Channel,
    label: Option<String>,
    class: Class,
}

/// What a channel watches and includes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Class {
    subject: Subject,
    boundary: Boundary,
    /// Channels of one name on several devices are parts of one thing: the sockets of a machine.
    sum: Option<&'static str>,
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
        // Every counter advances even if one fails, so that the others do not go stale.
        let readings: Vec<Result<f64>> = self.parts.iter().map(|part| self.read_part(part)).collect();
        let sum = readings.into_iter().sum::<Result<f64>>()?;
        let counted = self.parts.iter().all(|part| part.counter.is_some());
        Ok(if counted { Sample::Joules(sum) } else { Sample::Watts(sum) })
    }
}

impl Hwmon {
    fn read_part(&self, part: &Part) -> Result<f64> {
        let raw = sysfs::read_u64(self.read, &part.path, || permission_fix(&part.path))?;
        match &part.counter {
            None => Ok(raw as f64 * MICRO),
            Some(counter) => {
                let mut counter = counter.lock().unwrap_or_else(PoisonError::into_inner);
                counter.advance(raw, Instant::now(), &self.info.id)
            }
        }
    }
}

pub(crate) fn discover_with(root: &Path, read: ReadFile) -> Discovery {
    let mut found = Discovery::default();
    let mut sums: Vec<(&'static str, Vec<Found>)> = Vec::new();
    for dir in sysfs::entries(root) {
        // Older kernels keep an ACPI meter's attributes on the device instead of the class entry.
        let places = [dir.clone(), dir.join("device")];
        let named = places
            .into_iter()
            .find_map(|place| sysfs::read_text(read, &place.join("name")).map(|driver| (place, driver)));
        let Some((place, driver)) = named else { continue };
        let device = std::fs::canonicalize(dir.join("device")).ok().map(|path| sysfs::file_name(&path));
        let mut taken: Vec<u32> = Vec::new();
        for channel in channels(&place) {
            let label = label_of(read, &place, &channel);
            let Some(class) = classify(&driver, &channel, label.as_deref()) else { continue };
            // energy1 and power1 describe one thing; the counter comes first in the list, then averages.
            if taken.contains(&channel.number) || is_battery(read, &place, &channel) {
                continue;
            }
            let what = format!("{driver} {}", channel.file);
            let number = channel.number;
            let (dir, driver, device) = (place.clone(), driver.clone(), device.clone());
            let channel = Found { dir, driver, device, channel, label, class };
            if let Some(name) = class.sum {
                taken.push(number);
                match sums.iter_mut().find(|(known, _)| *known == name) {
                    Some((_, parts)) => parts.push(channel),
                    None => sums.push((name, vec![channel])),
                }
                continue;
            }
            match open(read, &[channel]) {
                Ok(meter) => {
                    taken.push(number);
                    found.meters.push(Arc::new(meter));
                }
                Err(error) => {
                    found.unavailable.push(Unavailable::from_error(Source::Hwmon, what, &error));
                }
            }
        }
    }
    for (name, parts) in sums {
        match open(read, &parts) {
            Ok(mut meter) => {
                meter.info.id = format!("hwmon:{}:{}", parts[0].driver, meter.info.boundary);
                meter.info.name = if parts.len() == 1 {
                    name.to_owned()
                } else {
                    format!("{name}, sum of {}", parts.len())
                };
                meter.info.device = None;
                found.meters.push(Arc::new(meter));
            }
            Err(error) => {
                found.unavailable.push(Unavailable::from_error(Source::Hwmon, name.into(), &error));
            }
        }
    }
    if found.meters.is_empty() && found.unavailable.is_empty() {
        found.unavailable.push(Unavailable {
            origin: Source::Hwmon,
            what: "GPUs and boards".into(),
            reason: format!("{} has no energy or power sensor", root.display()),
            fix: Some(
                "load the driver of a sensor that the machine has: `sudo modprobe acpi_power_meter` for the \
                 meters of servers; amdgpu, xe and i915 bring their own"
                    .into(),
            ),
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
fn classify(driver: &str, channel: &Channel, label: Option<&str>) -> Option<Class> {
    let one = |subject, boundary| Some(Class { subject, boundary, sum: None });
    let sockets = |subject, boundary, name| Some(Class { subject, boundary, sum: Some(name) });
    let label = label.unwrap_or_default().to_ascii_lowercase();
    match driver {
        // Van Gogh has a second limit ("fastPPT"), which watches the same power.
        "amdgpu" if channel.number == 1 => one(Subject::Gpu, Boundary::Chip),
        "i915" if channel.number == 1 => one(Subject::Gpu, Boundary::Board),
        "xe" => match (label.as_str(), channel.number) {
            ("card", _) | ("", 1) => one(Subject::Gpu, Boundary::Board),
            ("pkg", _) | ("", 2) => one(Subject::Gpu, Boundary::Chip),
            _ => None,
        },
        "amdgpu" | "i915" => None,
        // Per-tile sensors of i915 count what the card's own sensor counts already.
        _ if driver.starts_with("i915_gt") => None,
        "power_meter" => match label.as_str() {
            l if l.contains("module") => one(Subject::System, Boundary::Module),
            // The sockets' total, by Grace's name and by that of later CPUs.
            l if l.contains("grace") || l.contains("total") => {
                sockets(Subject::Cpu, Boundary::Package, "CPU sockets (ACPI)")
            }
            l if l.contains("cpu") => sockets(Subject::Cpu, Boundary::Core, "CPU rails (ACPI)"),
            l if l.contains("dram") => sockets(Subject::Memory, Boundary::Dram, "DRAM (ACPI)"),
            l if l.contains("sysio") => sockets(Subject::Cpu, Boundary::Uncore, "CPU fabric and I/O (ACPI)"),
            "" => one(Subject::System, Boundary::Platform),
            _ => one(Subject::Other, Boundary::Rail),
        },
        // One counter for each core and each socket, of which RAPL has the sums.
        "amd_energy" => None,
        // Jetson's rails need voltage x current and rules of their own.
        "ina3221" => None,
        // Batteries, chargers and USB sources: power in one direction or the other, by a file elsewhere.
        _ if ["BAT", "ADP", "AC", "ucsi", "tcpm"].iter().any(|prefix| driver.starts_with(prefix)) => None,
        _ => one(Subject::Other, Boundary::Rail),
    }
}

/// Whether an ACPI meter watches a battery.
fn is_battery(read: ReadFile, dir: &Path, channel: &Channel) -> bool {
    sysfs::read_text(read, &dir.join(format!("{}_is_battery", channel.stem))).is_some_and(|text| text == "1")
}

/// One meter of one channel, or of the same channel of several devices.
fn open(read: ReadFile, channels: &[Found]) -> Result<Hwmon> {
    let Found { dir, driver, device, channel, label, class } = &channels[0];
    let place = device.clone().unwrap_or_else(|| sysfs::file_name(dir));
    let id = format!("hwmon:{driver}@{place}:{}", channel.stem);
    let mut info = MeterInfo::new(id, Source::Hwmon, class.boundary, class.subject);
    info.name = [Some(driver.clone()), label.clone()].into_iter().flatten().collect::<Vec<_>>().join(" ");
    info.device = device.clone();
    info.update_period = DEFAULT_PERIOD;
    info.accuracy = Band::within(ACCURACY);
    let mut parts = Vec::new();
    for Found { dir, channel, .. } in channels {
        let path = dir.join(&channel.file);
        let now = sysfs::read_u64(read, &path, || permission_fix(&path))?;
        let text = |suffix: &str| sysfs::read_text(read, &dir.join(format!("{}_{suffix}", channel.stem)));
        let counter = channel.is_energy.then(|| {
            // The attribute is 64 bits wide in most drivers and 32 in some. A counter beyond 32 bits is of the
            // first kind; below that a decrease is a wrap at 2^32.
            let modulus = if now < WRAP_32 { WRAP_32 } else { u64::MAX };
            Mutex::new(Unwrapped::new(modulus, MICRO))
        });
        if let Some(ms) = text("average_interval").and_then(|text| text.parse().ok()) {
            let period = Duration::from_millis(ms).clamp(Duration::from_millis(1), Duration::from_secs(60));
            info.update_period = if parts.is_empty() { period } else { info.update_period.max(period) };
        }
        let stated = text("accuracy").and_then(|text| text.trim_end_matches('%').trim().parse::<f64>().ok());
        if let Some(percent @ 50.0..=100.0) = stated {
            info.accuracy = Band::within(ACCURACY.max(1.0 - percent / 100.0).max(1.0 - info.accuracy.low));
        }
        parts.push(Part { path, counter, narrow: channel.is_energy && now < WRAP_32 });
    }
    if channel.is_energy {
        info.poll_every = Some(Unwrapped::poll_every(WRAP_32, MICRO));
        let narrow = parts.iter().any(|part| part.narrow) || matches!(driver.as_str(), "xe" | "i915");
        info.wraps_at = narrow.then_some(WRAP_32 as f64 * MICRO);
    } else {
        info.poll_every = Some(info.update_period.min(DEFAULT_PERIOD));
        info.notes.push("Integrated from sampled power.".into());
    }
    match (driver.as_str(), class.boundary) {
        ("amdgpu", _) => info.notes.push("On an APU this includes the CPU.".into()),
        ("power_meter", Boundary::Platform) => {
            info.notes.push("What this ACPI meter includes is the firmware's choice.".into());
        }
        _ => {}
    }
    Ok(Hwmon { info, read, parts })
}

fn permission_fix(path: &Path) -> String {
    format!(
        "until the next boot: `sudo chmod a+r {}`; for good, in /etc/udev/rules.d/70-hwmon.rules: \
         SUBSYSTEM==\"hwmon\", ACTION==\"add\", RUN+=\"/bin/sh -c 'chmod -f a+r /sys%p/energy*_input /sys%p/power*_*'\"",
        path.display()
    )
}
