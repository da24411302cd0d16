//! Running average power limit (RAPL) counters of Intel and AMD CPUs through Linux powercap sysfs.
//!
//! Each zone directory holds `name`, `energy_uj` and `max_energy_range_uj`. Zones of one name are one meter:
//! the packages of all sockets are summed, packages and the cores inside them never are. AMD CPUs appear in the
//! same tree. `intel-rapl-mmio` shows the packages a second time and is left out, and so are the dies of a
//! package that mirror one counter (AMD Zen and Zen 2).
//!
//! Interface: Linux `Documentation/power/powercap/powercap.rst`; counters are refreshed about once a millisecond
//! (Intel SDM vol. 3, "RAPL domains").
//!
//! Accuracy, as 95 % bands: 5 % for packages, cores and platform, after comparisons with reference meters on
//! Haswell and later (Hackenberg et al., HPPAC 2015; Khan et al., ACM TOMPECS 3(2), 2018); 20 % for DRAM, whose
//! offset varies by machine (Desrochers et al., MEMSYS 2016). AMD's figures are modelled on the chip (Schöne et
//! al., arXiv 2108.00808), so the band is an assumption there.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::discover::{Discovery, Unavailable};
use crate::error::{MeterError, Result};
use crate::meter::{Meter, MeterInfo, Sample, Subject, Unwrapped};
use crate::quantity::{Band, Boundary, Source};
use crate::sysfs::{self, ReadFile};

/// Where Linux mounts the tree.
pub const POWERCAP_ROOT: &str = "/sys/class/powercap";

/// Joules per count of `energy_uj`.
const MICROJOULE: f64 = 1e-6;

/// Dies of one package whose counters differ by less than this are mirrors of one counter. Two separate
/// counters come this close by chance once in some 10^5 machines.
const MIRROR_UJ: u64 = 500_000;

/// The domains, with what they watch and their names for people.
pub(crate) const DOMAINS: [(Boundary, Subject, &str); 5] = [
    (Boundary::Platform, Subject::System, "platform (psys)"),
    (Boundary::Package, Subject::Cpu, "CPU package"),
    (Boundary::Core, Subject::Cpu, "CPU cores"),
    (Boundary::Uncore, Subject::Cpu, "CPU uncore"),
    (Boundary::Dram, Subject::Memory, "DRAM"),
];

/// What is common to every meter of a domain, however its counters are read.
pub(crate) fn describe(source: Source, boundary: Boundary, subject: Subject) -> MeterInfo {
    let mut info = MeterInfo::new(format!("{source}:{boundary}"), source, boundary, subject);
    info.update_period = Duration::from_millis(1);
    info.accuracy = Band::within(if boundary == Boundary::Dram { 0.20 } else { 0.05 });
    info
}

/// The domain's name, with the number of counters that are summed.
pub(crate) fn sum_of(label: &str, counters: usize) -> String {
    if counters == 1 { label.to_owned() } else { format!("{label}, sum of {counters}") }
}

/// The RAPL counters of one domain, summed over the sockets.
#[derive(Debug)]
pub struct Rapl {
    info: MeterInfo,
    read: ReadFile,
    root: PathBuf,
    zones: Mutex<Vec<Counter>>,
}

#[derive(Debug)]
struct Counter {
    energy: PathBuf,
    range: u64,
    unwrapped: Unwrapped,
}

/// One zone directory as found.
struct Zone {
    dir: PathBuf,
    id: String,
    name: String,
}

impl Rapl {
    /// The meters under `root` (normally [`POWERCAP_ROOT`]), and why others are unusable.
    pub fn discover(root: &Path) -> Discovery {
        discover_with(root, sysfs::read_file)
    }
}

impl Meter for Rapl {
    fn info(&self) -> &MeterInfo {
        &self.info
    }

    fn read(&self) -> Result<Sample> {
        let mut zones = self.zones.lock().unwrap_or_else(PoisonError::into_inner);
        // Every zone advances even if one fails, so that a reset socket does not leave the others stale.
        let readings: Vec<Result<f64>> = zones
            .iter_mut()
            .map(|zone| {
                let raw = read_energy(self.read, &self.root, &zone.energy, zone.range)?;
                zone.unwrapped.advance(raw, Instant::now(), &self.info.id)
            })
            .collect();
        readings.into_iter().sum::<Result<f64>>().map(Sample::Joules)
    }
}

pub(crate) fn discover_with(root: &Path, read: ReadFile) -> Discovery {
    let mut found = Discovery::default();
    let mut zones = Vec::new();
    collect_zones(root, read, 0, &mut zones);
    if zones.is_empty() {
        found.unavailable.push(Unavailable {
            origin: Source::RaplPowercap,
            what: "CPU".into(),
            reason: format!("{} has no intel-rapl zones", root.display()),
            fix: Some(
                "on bare metal: `sudo modprobe intel_rapl_msr`; virtual machines have no RAPL counters"
                    .into(),
            ),
        });
        return found;
    }

    for (boundary, subject, label) in DOMAINS {
        let members: Vec<&Zone> = zones.iter().filter(|zone| domain(&zone.name) == Some(boundary)).collect();
        if members.is_empty() {
            continue;
        }
        match open_domain(root, read, boundary, subject, label, &members) {
            Ok(meter) => found.meters.push(Arc::new(meter)),
            Err(error) => {
                let what = label.to_owned();
                found.unavailable.push(Unavailable::from_error(Source::RaplPowercap, what, &error));
            }
        }
    }
    for zone in zones.iter().filter(|zone| domain(&zone.name).is_none()) {
        found.unavailable.push(Unavailable {
            origin: Source::RaplPowercap,
            what: zone.id.clone(),
            reason: format!("what its domain {:?} includes is not known", zone.name),
            fix: None,
        });
    }
    found
}

/// Zones appear flat in the class directory and again nested in their parents; either may be missing in a
/// container, so both are walked and each zone is taken once.
fn collect_zones(dir: &Path, read: ReadFile, depth: usize, zones: &mut Vec<Zone>) {
    for path in sysfs::entries(dir) {
        let id = sysfs::file_name(&path);
        let is_zone = id.starts_with("intel-rapl:");
        if !(is_zone || id == "intel-rapl") || depth > 3 {
            continue;
        }
        if is_zone && !zones.iter().any(|zone| zone.id == id) {
            let name = sysfs::read_text(read, &path.join("name")).unwrap_or_default();
            zones.push(Zone { dir: path.clone(), id, name });
        }
        collect_zones(&path, read, depth + 1, zones);
    }
}

fn domain(name: &str) -> Option<Boundary> {
    match name {
        "psys" => Some(Boundary::Platform),
        "core" => Some(Boundary::Core),
        "uncore" => Some(Boundary::Uncore),
        "dram" => Some(Boundary::Dram),
        _ => name.starts_with("package-").then_some(Boundary::Package),
    }
}

fn open_domain(
    root: &Path,
    read: ReadFile,
    boundary: Boundary,
    subject: Subject,
    label: &str,
    members: &[&Zone],
) -> Result<Rapl> {
    let mut info = describe(Source::RaplPowercap, boundary, subject);

    let mut counters: Vec<(&Zone, Counter, u64)> = Vec::new();
    for zone in members {
        let energy = zone.dir.join("energy_uj");
        let range_path = zone.dir.join("max_energy_range_uj");
        let range = sysfs::read_u64(read, &range_path, || permission_fix(root))?;
        let now = read_energy(read, root, &energy, range)?;
        if now == 0 {
            return Err(MeterError::Absent {
                origin: Source::RaplPowercap,
                reason: format!("{} stands at zero: the counter is not connected", energy.display()),
            });
        }
        let mirrored = counters.iter().any(|(other, _, value)| {
            is_die(&zone.name)
                && package(&zone.name) == package(&other.name)
                && now.abs_diff(*value) < MIRROR_UJ
        });
        if mirrored {
            info.notes.push(format!("{} mirrors another die's counter and is counted once.", zone.name));
            continue;
        }
        let unwrapped = Unwrapped::new(range, MICROJOULE);
        counters.push((zone, Counter { energy, range, unwrapped }, now));
    }

    info.poll_every =
        counters.iter().map(|(_, counter, _)| Unwrapped::poll_every(counter.range, MICROJOULE)).min();
    info.wraps_at =
        counters.iter().map(|(_, counter, _)| counter.range).min().map(|uj| uj as f64 * MICROJOULE);
    info.name = sum_of(label, counters.len());
    let zones = Mutex::new(counters.into_iter().map(|(_, counter, _)| counter).collect());
    Ok(Rapl { info, read, root: root.to_path_buf(), zones })
}

fn is_die(name: &str) -> bool {
    name.contains("-die-")
}

fn package(name: &str) -> &str {
    name.split("-die-").next().unwrap_or(name)
}

fn read_energy(read: ReadFile, root: &Path, path: &Path, range: u64) -> Result<u64> {
    let value = sysfs::read_u64(read, path, || permission_fix(root))?;
    if range == 0 || value > range {
        return Err(MeterError::Malformed {
            path: path.to_path_buf(),
            found: value.to_string(),
            expected: "a count within max_energy_range_uj",
        });
    }
    Ok(value)
}

/// Linux lets only root read RAPL since CVE-2020-8694: another process's secrets show in fine-grained power. So
/// access is given to one group rather than to everybody.
fn permission_fix(root: &Path) -> String {
    let root = root.display();
    format!(
        "until the next boot: `sudo chgrp -f \"$(id -g)\" {root}/intel-rapl:*/energy_uj && \
         sudo chmod g+r {root}/intel-rapl:*/energy_uj`; \
         for good, in /etc/udev/rules.d/70-rapl.rules: \
         SUBSYSTEM==\"powercap\", KERNEL==\"intel-rapl:*\", ACTION==\"add\", \
         RUN+=\"/bin/chgrp GROUP /sys%p/energy_uj\", RUN+=\"/bin/chmod g+r /sys%p/energy_uj\""
    )
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io;

    use super::*;

    /// As for a user who is not root: everything but the counters is readable.
    fn deny_counters(path: &Path) -> io::Result<String> {
        match path.ends_with("energy_uj") {
            true => Err(io::ErrorKind::PermissionDenied.into()),
            false => fs::read_to_string(path),
        }
    }

    #[test]
    fn a_refused_counter_is_reported_with_the_commands_that_open_it() {
        let tree = tempfile::tempdir().expect("tempdir");
        let zone = tree.path().join("intel-rapl:0");
        fs::create_dir(&zone).expect("mkdir");
        for (file, text) in
            [("name", "package-0\n"), ("energy_uj", "5000\n"), ("max_energy_range_uj", "262143328850\n")]
        {
            fs::write(zone.join(file), text).expect("write");
        }
        let found = discover_with(tree.path(), deny_counters);
        assert!(found.meters.is_empty());
        let [refused] = &found.unavailable[..] else { panic!("{:?}", found.unavailable) };
        assert!(
            refused.reason.contains("no permission") && refused.reason.contains("energy_uj"),
            "{refused:?}"
        );
        let fix = refused.fix.as_deref().expect("a fix");
        assert!(fix.contains("chmod g+r") && fix.contains("udev"), "{fix}");
        assert!(fix.contains(&tree.path().display().to_string()), "{fix}");

        let allowed = discover_with(tree.path(), sysfs::read_file);
        assert_eq!(allowed.meters.len(), 1, "the same tree is usable when readable");
    }
}
