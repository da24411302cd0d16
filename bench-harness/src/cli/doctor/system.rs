//! Memory, temperatures, the clock and the place of results.

use perjoule_record::Environment;
use std::path::Path;
use std::time::Instant;

use super::finding::{Root, Section};
use crate::measure::clock_cost_ns;
use crate::report::units::{bytes, duration_ns};

/// Available memory below which models and large operands do not fit.
const LITTLE: u64 = 2 << 30;
/// Free space below which results may not fit.
const SPACE: u64 = 256 << 20;
/// Temperature from which on processors lower their clocks before long, in degrees.
const HOT: f64 = 85.0;
/// Readings of the clock that its resolution is taken from.
const READINGS: usize = 2_000;

fn meminfo(root: &Root, key: &str) -> Option<u64> {
    let text = root.text("proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()?.checked_mul(1024)
}

pub(super) fn memory(root: &Root, environment: &Environment) -> Section {
    let mut section = Section::new("memory");
    let total = meminfo(root, "MemTotal").or(environment.memory_bytes);
    // the files of both kinds of control groups; the older one writes a huge number for none
    let old =
        root.text("sys/fs/cgroup/memory/memory.limit_in_bytes").and_then(|text| text.parse::<u64>().ok());
    let limit = environment.memory_limit_bytes.or(old);
    match (meminfo(root, "MemAvailable"), total) {
        (Some(have), Some(total)) => {
            let detail = format!("{} of {}", bytes(have), bytes(total));
            match have < LITTLE {
                true => {
                    section.warn("available", format!("{detail}: models and large operands will not fit"))
                }
                false => section.ok("available", detail),
            }
        }
        (None, Some(total)) => section.note("available", format!("not told; there are {}", bytes(total))),
        _ => section.note("available", "not told"),
    }
    match limit.filter(|&limit| total.is_none_or(|total| limit < total)) {
        Some(limit) => section
            .note("limit", format!("a control group allows {}: beyond it processes are ended", bytes(limit))),
        None => section.ok("limit", "none found"),
    }
    match (meminfo(root, "SwapTotal"), meminfo(root, "SwapFree")) {
        (Some(0), _) => section.ok("swap", "none"),
        (Some(total), Some(free)) if total > free => {
            let detail =
                format!("{} in use: what comes back from there makes samples slow", bytes(total - free));
            section.warn("swap", detail);
            section.fix("sudo swapoff -a && sudo swapon -a");
        }
        (Some(total), _) => section.ok("swap", format!("{}, none of it in use", bytes(total))),
        _ => {}
    }
    section
}

pub(super) fn thermals(root: &Root) -> Section {
    let mut section = Section::new("thermals");
    let hwmon = "sys/class/hwmon";
    let mut seen = false;
    for monitor in root.names(hwmon) {
        let driver = root.text(&format!("{hwmon}/{monitor}/name")).unwrap_or_default();
        if !["coretemp", "k10temp", "zenpower", "cpu_thermal"].contains(&driver.as_str()) {
            continue;
        }
        let files = root.names(&format!("{hwmon}/{monitor}"));
        let inputs = files.iter().filter(|name| name.starts_with("temp") && name.ends_with("_input"));
        let degrees =
            inputs.filter_map(|name| root.number(&format!("{hwmon}/{monitor}/{name}"))).map(|m| m / 1e3);
        if let Some(most) = degrees.reduce(f64::max) {
            seen = true;
            match most >= HOT {
                true => section
                    .warn(&driver, format!("{most:.0} °C: clocks will soon be lowered, if they are not yet")),
                false => section.ok(&driver, format!("{most:.0} °C")),
            }
        }
    }
    if !seen {
        section.note("temperature", "the processor's cannot be read");
    }
    let cpus = "sys/devices/system/cpu";
    let counts: Vec<f64> = root
        .names(cpus)
        .iter()
        .filter_map(|cpu| root.number(&format!("{cpus}/{cpu}/thermal_throttle/core_throttle_count")))
        .collect();
    let events: f64 = counts.iter().sum();
    match (counts.is_empty(), events > 0.0) {
        (true, _) => section.note("throttling", "not counted here"),
        (_, true) => {
            section.note("throttling", format!("cores were too hot {events:.0} times since the start"))
        }
        (_, false) => section.ok("throttling", "never since the start"),
    }
    power(root, &mut section);
    section
}

/// A laptop without its charger keeps its clocks low.
fn power(root: &Root, section: &mut Section) {
    let at = "sys/class/power_supply";
    let of_type = |wanted: &str| -> Vec<String> {
        let is = |name: &String| root.text(&format!("{at}/{name}/type")).as_deref() == Some(wanted);
        root.names(at).into_iter().filter(is).collect()
    };
    let chargers = of_type("Mains");
    let plugged = chargers.iter().any(|name| root.number(&format!("{at}/{name}/online")) == Some(1.0));
    match (chargers.is_empty(), of_type("Battery").is_empty()) {
        (false, false) if plugged => section.ok("power", "the charger is plugged in"),
        (false, false) => section.warn("power", "on battery: clocks are kept low; plug the charger in"),
        _ => {}
    }
}

pub(super) fn clock(root: &Root) -> Section {
    let mut section = Section::new("clock");
    let at = "sys/devices/system/clocksource/clocksource0";
    let available = root.text(&format!("{at}/available_clocksource")).unwrap_or_default();
    match root.text(&format!("{at}/current_clocksource")) {
        // devices that are asked over a bus, some µs each time
        Some(source)
            if ["hpet", "acpi_pm", "jiffies", "refined-jiffies", "xen"].contains(&source.as_str()) =>
        {
            section
                .warn("clocksource", format!("{source}: each reading is slow, and is in every short sample"));
            if available.split_whitespace().any(|name| name == "tsc") {
                section.fix(format!("echo tsc | sudo tee /{at}/current_clocksource"));
            }
        }
        Some(source) => section.ok("clocksource", source),
        None => section.note("clocksource", "not told"),
    }
    if root.is_real() {
        let cost = clock_cost_ns();
        match cost > 1_000.0 {
            true => section.warn(
                "cost",
                format!("{} for two readings: short calls are batched to hide it", duration_ns(cost)),
            ),
            false => section.ok("cost", format!("{} for two readings", duration_ns(cost))),
        }
        section.ok("resolution", duration_ns(resolution_ns()));
    }
    section
}

/// The smallest step that the clock was seen to make, in nanoseconds.
fn resolution_ns() -> f64 {
    let start = Instant::now();
    let readings: Vec<f64> = (0..READINGS).map(|_| start.elapsed().as_nanos() as f64).collect();
    let steps = readings.windows(2).map(|pair| pair[1] - pair[0]).filter(|step| *step > 0.0);
    steps.fold(f64::INFINITY, f64::min)
}

/// The folder of results, or where it would be made.
pub(super) fn storage(folder: &Path) -> Section {
    let mut section = Section::new("storage");
    let place = if folder.exists() {
        folder
    } else {
        folder.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
    };
    let name = folder.display();
    match writable(place) {
        Some(false) => {
            section.missing("results", format!("{name} cannot be written to: name another file with -o"));
            section.fix("perjoule run -o \"$HOME/perjoule.jsonl\"");
        }
        Some(true) if folder.is_dir() => section.ok("results", format!("{name}/ can be written to")),
        Some(true) if folder.exists() => {
            section.missing("results", format!("{name} is a file: move it away, or name another with -o"))
        }
        Some(true) => section.ok("results", format!("{name}/ will be made by the first run")),
        None => section.note("results", "whether the folder can be written to is not told here"),
    }
    match free(place) {
        Some(free) if free < SPACE => section.warn("space", format!("{} free", bytes(free))),
        Some(free) => section.ok("space", format!("{} free", bytes(free))),
        None => section.note("space", "not told"),
    }
    section
}

/// Whether files can be made in a folder; nothing is made to find out.
fn writable(folder: &Path) -> Option<bool> {
    #[cfg(unix)]
    {
        use rustix::fs::{Access, access};
        Some(
            access(folder, Access::WRITE_OK | Access::EXEC_OK).is_ok()
                || (folder.is_file() && access(folder, Access::WRITE_OK).is_ok()),
        )
    }
    #[cfg(not(unix))]
    {
        let _ = folder;
        None
    }
}

fn free(folder: &Path) -> Option<u64> {
    #[cfg(unix)]
    {
        let found = rustix::fs::statvfs(folder).ok()?;
        found.f_bavail.checked_mul(found.f_frsize)
    }
    #[cfg(not(unix))]
    {
        let _ = folder;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Status;
    use super::super::finding::tests::{Tree, named};
    use super::*;

    #[test]
    fn little_memory_and_used_swap_are_warned_of() {
        let text = "MemTotal:       16000000 kB\nMemAvailable:   1000000 kB\nSwapTotal:  2000000 kB\nSwapFree: 500000 kB\n";
        let tree = Tree::new(&[("proc/meminfo", text)]);
        let limited = Environment { memory_limit_bytes: Some(1 << 30), ..Environment::default() };
        let section = memory(&tree.root(), &limited);
        assert_eq!(named(&section.list, "available").status, Status::Warn);
        assert!(named(&section.list, "limit").detail.contains("1.00 GiB"));
        let swap = named(&section.list, "swap");
        assert!(swap.status == Status::Warn && swap.detail.contains("1.43 GiB"), "{swap:?}");
        let huge = Tree::new(&[("proc/meminfo", "MemTotal: 18446744073709551615 kB\nMemAvailable: x\n")]);
        assert_eq!(
            named(&memory(&huge.root(), &Environment::default()).list, "available").status,
            Status::Note
        );
    }

    #[test]
    fn heat_throttling_and_batteries_are_seen() {
        let tree = Tree::new(&[
            ("sys/class/hwmon/hwmon3/name", "k10temp\n"),
            ("sys/class/hwmon/hwmon3/temp1_input", "91500\n"),
            ("sys/class/hwmon/hwmon4/name", "nvme\n"),
            ("sys/class/hwmon/hwmon4/temp1_input", "99000\n"),
            ("sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count", "3\n"),
            ("sys/class/power_supply/AC/type", "Mains\n"),
            ("sys/class/power_supply/AC/online", "0\n"),
            ("sys/class/power_supply/BAT0/type", "Battery\n"),
        ]);
        let section = thermals(&tree.root());
        let heat = named(&section.list, "k10temp");
        assert!(heat.status == Status::Warn && heat.detail.contains("92 °C"), "{heat:?}");
        assert!(named(&section.list, "throttling").detail.contains("3 times"));
        assert_eq!(named(&section.list, "power").status, Status::Warn);
        tree.put("sys/class/power_supply/AC/online", "1\n");
        assert_eq!(named(&thermals(&tree.root()).list, "power").status, Status::Ok);
    }

    #[test]
    fn a_slow_clock_gets_the_better_one() {
        let at = "sys/devices/system/clocksource/clocksource0";
        let tree = Tree::new(&[]);
        tree.put(&format!("{at}/current_clocksource"), "hpet\n");
        tree.put(&format!("{at}/available_clocksource"), "tsc hpet acpi_pm\n");
        let section = clock(&tree.root());
        assert!(named(&section.list, "clocksource").fix.as_deref().unwrap().starts_with("echo tsc"));
        tree.put(&format!("{at}/current_clocksource"), "kvm-clock\n");
        assert_eq!(named(&clock(&tree.root()).list, "clocksource").status, Status::Ok);
        assert!(resolution_ns() > 0.0 && resolution_ns() < 1e9);
    }

    #[test]
    fn the_place_of_results_is_looked_at_and_not_made() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("results");
        let section = storage(&folder);
        assert!(!folder.exists());
        if cfg!(unix) {
            assert_eq!(named(&section.list, "results").status, Status::Ok);
            assert_ne!(named(&section.list, "space").status, Status::Note);
            std::fs::write(&folder, "x").unwrap();
            assert_eq!(named(&storage(&folder).list, "results").status, Status::Missing);
        }
    }
}
