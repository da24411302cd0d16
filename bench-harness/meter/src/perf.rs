//! RAPL counters through Linux perf events, for where powercap is not readable: a grant of `CAP_PERFMON` to one
//! program needs no change to the files of the machine.
//!
//! The `power` PMU (`/sys/bus/event_source/devices/power`, kernel `arch/x86/events/rapl.c`) counts the same
//! registers as powercap. Their resolution is the hardware's in both (15 or 61 uJ on most parts), so powercap is
//! taken first and a domain is read one way only. The kernel unwraps the registers into 64 bits; a count times the
//! event's `scale` is joules. Events are opened on the CPUs that `cpumask` names, one for each die or package.
//! AMD's register covers the whole package, and older kernels list its dies one by one: those are counted once
//! a package there. Intel's dies each have a register of their own.
//!
//! Accuracy: as [`crate::Rapl`].

use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::discover::{Discovery, Unavailable};
use crate::error::{MeterError, Result};
use crate::meter::{Meter, MeterInfo, Sample};
use crate::quantity::{Boundary, Source};
use crate::rapl::{DOMAINS, describe, sum_of};
use crate::sysfs;

/// Where the kernel says what there is to count.
#[derive(Clone, Debug)]
pub struct PerfRoots {
    /// The `power` PMU, `/sys/bus/event_source/devices/power`.
    pub pmu: PathBuf,
    /// The directory of the CPUs, `/sys/devices/system/cpu`.
    pub cpus: PathBuf,
    /// The vendor is read from this, `/proc/cpuinfo`.
    pub cpuinfo: PathBuf,
}

impl Default for PerfRoots {
    fn default() -> Self {
        PerfRoots {
            pmu: "/sys/bus/event_source/devices/power".into(),
            cpus: "/sys/devices/system/cpu".into(),
            cpuinfo: "/proc/cpuinfo".into(),
        }
    }
}

/// The RAPL counters of one domain through perf events, summed over the packages.
#[derive(Debug)]
pub struct RaplPerf {
    info: MeterInfo,
    /// Joules for each count.
    scale: f64,
    counters: Mutex<Vec<Box<dyn Count>>>,
}

/// One open counter; tests have their own.
trait Count: Send + Debug {
    fn count(&mut self) -> io::Result<u64>;
}

/// What perf_event_open takes, less the CPU.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Event {
    kind: u32,
    config: u64,
}

type Open<'a> = &'a dyn Fn(Event, usize) -> io::Result<Box<dyn Count>>;

impl RaplPerf {
    /// The domains that can be read, but for those in `taken`, which another meter reads already.
    pub fn discover(roots: &PerfRoots, taken: &[Boundary]) -> Discovery {
        discover_with(roots, taken, &open_counter)
    }
}

impl Meter for RaplPerf {
    fn info(&self) -> &MeterInfo {
        &self.info
    }

    fn read(&self) -> Result<Sample> {
        let mut counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        let mut joules = 0.0;
        for counter in counters.iter_mut() {
            let count = counter.count().map_err(|e| library(format!("cannot read a counter: {e}")))?;
            joules += count as f64 * self.scale;
        }
        Ok(Sample::Joules(joules))
    }
}

fn library(reason: String) -> MeterError {
    MeterError::Library { origin: Source::RaplPerf, reason }
}

fn discover_with(roots: &PerfRoots, taken: &[Boundary], open: Open) -> Discovery {
    let mut found = Discovery::default();
    let mut unavailable = |what: &str, reason: String, fix: Option<String>| {
        let what = what.to_owned();
        found.unavailable.push(Unavailable { origin: Source::RaplPerf, what, reason, fix });
    };
    let kind = match sysfs::read_u64(sysfs::read_file, &roots.pmu.join("type"), String::new) {
        Ok(kind) => u32::try_from(kind).unwrap_or(u32::MAX),
        Err(_) => {
            let fix = "on bare metal: `sudo modprobe rapl`; virtual machines have no RAPL counters";
            let reason = format!("{} does not exist", roots.pmu.display());
            unavailable("CPU", reason, Some(fix.into()));
            return found;
        }
    };
    let cpus = match packages(roots) {
        Ok(cpus) => cpus,
        Err(reason) => {
            unavailable("CPU", reason, None);
            return found;
        }
    };

    let mut meters: Vec<Arc<dyn Meter>> = Vec::new();
    for (boundary, subject, label) in DOMAINS {
        let name = match boundary {
            Boundary::Platform => "energy-psys",
            Boundary::Package => "energy-pkg",
            Boundary::Core => "energy-cores",
            Boundary::Uncore => "energy-gpu",
            _ => "energy-ram",
        };
        let path = roots.pmu.join("events").join(name);
        let Some(text) = sysfs::read_text(sysfs::read_file, &path) else { continue };
        if taken.contains(&boundary) {
            continue;
        }
        let (config, scale) = match (config_of(&text), scale_of(&path)) {
            (Some(config), Some(scale)) => (config, scale),
            _ => {
                let reason = format!("{} or its scale or unit is not understood", path.display());
                unavailable(label, reason, None);
                continue;
            }
        };
        // The platform's counter is one for the machine, whichever package is asked.
        let cpus = if boundary == Boundary::Platform { &cpus[..1] } else { &cpus[..] };
        let opened: io::Result<Vec<_>> = cpus.iter().map(|&cpu| open(Event { kind, config }, cpu)).collect();
        match opened {
            Ok(counters) => {
                let mut info = describe(Source::RaplPerf, boundary, subject);
                info.name = sum_of(label, counters.len());
                meters.push(Arc::new(RaplPerf { info, scale, counters: Mutex::new(counters) }));
            }
            Err(error) => unavailable(label, format!("perf_event_open: {error}"), fix_of(&error)),
        }
    }
    found.meters = meters;
    found
}

fn fix_of(error: &io::Error) -> Option<String> {
    match error.kind() {
        io::ErrorKind::PermissionDenied => Some(
            "for one program: `sudo setcap cap_perfmon=ep PROGRAM`; for everybody until the next boot: \
             `sudo sysctl kernel.perf_event_paranoid=0`, for good with that setting in /etc/sysctl.d/"
                .into(),
        ),
        io::ErrorKind::Unsupported => Some("build for Linux with the cargo feature `perf`".into()),
        _ => None,
    }
}

/// The CPUs to open events on, one for each register.
fn packages(roots: &PerfRoots) -> std::result::Result<Vec<usize>, String> {
    let path = roots.pmu.join("cpumask");
    let listed = sysfs::read_text(sysfs::read_file, &path).and_then(|text| cpu_list(&text));
    let cpus = listed.ok_or_else(|| format!("{} is not a list of CPUs", path.display()))?;
    let cpuinfo = sysfs::read_file(&roots.cpuinfo).unwrap_or_default();
    let vendor = cpuinfo.lines().find_map(|line| line.strip_prefix("vendor_id")).unwrap_or_default();
    if !(vendor.contains("AuthenticAMD") || vendor.contains("HygonGenuine")) {
        return Ok(cpus);
    }
    let mut seen = Vec::new();
    let mut once = Vec::new();
    for cpu in cpus {
        let path = roots.cpus.join(format!("cpu{cpu}/topology/physical_package_id"));
        let package = sysfs::read_text(sysfs::read_file, &path)
            .ok_or_else(|| format!("{} cannot be read: dies might be counted twice", path.display()))?;
        if !seen.contains(&package) {
            seen.push(package);
            once.push(cpu);
        }
    }
    Ok(once)
}

/// `0,18` or `0-1,4`; `None` for anything else, an empty list included.
fn cpu_list(text: &str) -> Option<Vec<usize>> {
    let mut cpus = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        // Far more than any machine has: a guard against a garbled file.
        if first > last || last > 65_536 {
            return None;
        }
        cpus.extend(first..=last);
    }
    (!cpus.is_empty()).then_some(cpus)
}

/// The config of `event=0x02`.
fn config_of(text: &str) -> Option<u64> {
    let hex = text.strip_prefix("event=0x")?;
    u64::from_str_radix(hex, 16).ok()
}

/// Joules for each count of the event at `path`.
fn scale_of(path: &Path) -> Option<f64> {
    let sibling = |suffix: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        sysfs::read_text(sysfs::read_file, Path::new(&name))
    };
    let scale: f64 = sibling(".scale")?.parse().ok()?;
    (sibling(".unit")? == "Joules" && scale.is_finite() && scale > 0.0).then_some(scale)
}

#[cfg(all(target_os = "linux", feature = "perf"))]
impl Count for perf_event::Counter {
    fn count(&mut self) -> io::Result<u64> {
        self.read()
    }
}

#[cfg(all(target_os = "linux", feature = "perf"))]
fn open_counter(event: Event, cpu: usize) -> io::Result<Box<dyn Count>> {
    let mut builder = perf_event::Builder::new(perf_event::events::Software::DUMMY);
    // The PMU counts whole packages and refuses to exclude anything.
    builder.any_pid().one_cpu(cpu).include_kernel().include_hv();
    let attributes = builder.attrs_mut();
    attributes.type_ = event.kind;
    attributes.config = event.config;
    let mut counter = builder.build()?;
    counter.enable()?;
    Ok(Box::new(counter))
}

#[cfg(not(all(target_os = "linux", feature = "perf")))]
fn open_counter(_: Event, _: usize) -> io::Result<Box<dyn Count>> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "this build has no perf events"))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::Window;

    const JOULES_PER_COUNT: f64 = 2.328_306_436_538_696_3e-10;

    /// A `power` PMU of the given CPUs, two to a package.
    fn tree(cpumask: &str, vendor: &str) -> (tempfile::TempDir, PerfRoots) {
        let dir = tempfile::tempdir().expect("tempdir");
        let roots = PerfRoots {
            pmu: dir.path().join("power"),
            cpus: dir.path().join("cpu"),
            cpuinfo: dir.path().join("cpuinfo"),
        };
        let events = roots.pmu.join("events");
        fs::create_dir_all(&events).expect("mkdir");
        fs::write(roots.pmu.join("type"), "23\n").expect("write");
        fs::write(roots.pmu.join("cpumask"), format!("{cpumask}\n")).expect("write");
        fs::write(&roots.cpuinfo, format!("processor\t: 0\nvendor_id\t: {vendor}\n")).expect("write");
        for (name, event) in [("energy-pkg", 2), ("energy-cores", 1), ("energy-ram", 3), ("energy-psys", 5)] {
            fs::write(events.join(name), format!("event=0x{event:02x}\n")).expect("write");
            fs::write(events.join(format!("{name}.scale")), "2.3283064365386962890625e-10\n").expect("write");
            fs::write(events.join(format!("{name}.unit")), "Joules\n").expect("write");
        }
        for cpu in 0..8 {
            let topology = roots.cpus.join(format!("cpu{cpu}/topology"));
            fs::create_dir_all(&topology).expect("mkdir");
            fs::write(topology.join("physical_package_id"), format!("{}\n", cpu / 2)).expect("write");
        }
        (dir, roots)
    }

    /// Moves on by (event + cpu) joules at each reading.
    #[derive(Debug)]
    struct Fake(u64, u64);

    impl Count for Fake {
        fn count(&mut self) -> io::Result<u64> {
            self.1 += self.0 << 32;
            Ok(self.1)
        }
    }

    fn fake(event: Event, cpu: usize) -> io::Result<Box<dyn Count>> {
        assert_eq!(event.kind, 23);
        Ok(Box::new(Fake(event.config + cpu as u64, 0)))
    }

    fn joules(found: &Discovery, boundary: Boundary) -> f64 {
        let meter = found.meters.iter().find(|meter| meter.info().boundary == boundary).expect("found");
        let window = Window::start(meter.clone()).expect("start");
        thread::sleep(Duration::from_millis(5));
        window.finish().expect("energy").joules
    }

    #[test]
    fn packages_are_summed_and_domains_kept_apart() {
        let (_dir, roots) = tree("0,2", "GenuineIntel");
        let found = discover_with(&roots, &[], &fake);
        assert_eq!(found.meters.len(), 4, "{found:?}");
        assert!(found.unavailable.is_empty(), "{found:?}");
        // Event 2 on CPU 0 and on CPU 2: 2 J + 4 J a reading.
        assert!((joules(&found, Boundary::Package) - 6.0).abs() < 1e-6);
        assert!((joules(&found, Boundary::Core) - 4.0).abs() < 1e-6);
        assert!((joules(&found, Boundary::Dram) - 8.0).abs() < 1e-6);
        assert!((joules(&found, Boundary::Platform) - 5.0).abs() < 1e-6, "one counter for the machine");
        let info = found.meters[1].info();
        assert_eq!((info.id.as_str(), info.name.as_str()), ("rapl-perf:package", "CPU package, sum of 2"));
        assert!((2f64.powi(-32) - JOULES_PER_COUNT).abs() < 1e-24);
    }

    #[test]
    fn a_domain_that_powercap_reads_is_not_opened_again() {
        let (_dir, roots) = tree("0", "GenuineIntel");
        let found = discover_with(&roots, &[Boundary::Package, Boundary::Core], &fake);
        let boundaries: Vec<Boundary> = found.meters.iter().map(|meter| meter.info().boundary).collect();
        assert_eq!(boundaries, [Boundary::Platform, Boundary::Dram]);
    }

    #[test]
    fn dies_that_mirror_a_package_count_once_on_amd_only() {
        // CPUs 0 and 1 are dies of one package.
        for (vendor, expected) in [("AuthenticAMD", 2.0), ("HygonGenuine", 2.0), ("GenuineIntel", 5.0)] {
            let (_dir, roots) = tree("0-1", vendor);
            let found = discover_with(&roots, &[], &fake);
            assert!((joules(&found, Boundary::Package) - expected).abs() < 1e-6, "{vendor}");
        }
    }

    #[test]
    fn refusals_and_garbage_are_explained() {
        let (_dir, roots) = tree("0", "GenuineIntel");
        let refused = discover_with(&roots, &[], &|_, _| Err(io::ErrorKind::PermissionDenied.into()));
        assert!(refused.meters.is_empty() && refused.unavailable.len() == 4, "{refused:?}");
        let fix = refused.unavailable[0].fix.as_deref().expect("a fix");
        assert!(fix.contains("setcap cap_perfmon=ep") && fix.contains("perf_event_paranoid=0"), "{fix}");

        fs::write(roots.pmu.join("events/energy-pkg.unit"), "Watts\n").expect("write");
        let odd = discover_with(&roots, &[], &fake);
        assert_eq!(odd.meters.len(), 3);
        assert!(odd.unavailable[0].reason.contains("energy-pkg"), "{odd:?}");

        for mask in ["", "x", "3-1", "0,99999999"] {
            fs::write(roots.pmu.join("cpumask"), mask).expect("write");
            let none = discover_with(&roots, &[], &fake);
            assert!(none.meters.is_empty() && none.unavailable[0].reason.contains("cpumask"), "{none:?}");
        }
        let missing = PerfRoots { pmu: roots.pmu.join("absent"), ..roots };
        assert!(discover_with(&missing, &[], &fake).unavailable[0].fix.is_some());
    }

    /// The kernel's `cpu-clock`, which counts nanoseconds, stands in for a counter of joules: 1 W exactly. Opened
    /// for real where perf events are allowed.
    #[test]
    #[cfg(all(target_os = "linux", feature = "perf"))]
    fn a_counter_of_the_kernel_is_opened_and_read() {
        let (_dir, roots) = tree("0", "GenuineIntel");
        fs::write(roots.pmu.join("type"), "1\n").expect("write");
        fs::write(roots.pmu.join("events/energy-pkg"), "event=0x00\n").expect("write");
        fs::write(roots.pmu.join("events/energy-pkg.scale"), "1e-9\n").expect("write");
        let found = RaplPerf::discover(&roots, &[Boundary::Platform, Boundary::Core, Boundary::Dram]);
        let Some(meter) = found.meters.first() else {
            let reason = &found.unavailable[0].reason;
            assert!(reason.contains("perf_event_open"), "{reason}");
            eprintln!("perf events are refused here: {reason}");
            return;
        };
        let window = Window::start(meter.clone()).expect("start");
        thread::sleep(Duration::from_millis(200));
        let energy = window.finish().expect("energy");
        assert!((energy.watts() - 1.0).abs() < 0.02, "{} W", energy.watts());
    }
}
