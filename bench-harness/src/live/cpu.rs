//! Clocks, temperatures, throttling and use of the processor, as Linux shows them.
//!
//! From sysfs: `cpu*/cpufreq/scaling_cur_freq`, `cpu*/thermal_throttle/*_throttle_count` and the temperatures of the hardware monitors
//! `coretemp`, `k10temp` and `zenpower`; from procfs: `stat` and `meminfo`. Virtual machines show none of the former.

use serde::Serialize;
use std::collections::BTreeMap;
use std::fs::{read_dir, read_to_string};
use std::path::{Path, PathBuf};

/// What can be read of the processor on this machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Sensors {
    clocks: Vec<PathBuf>,
    temperatures: Vec<PathBuf>,
    throttles: Vec<PathBuf>,
}

/// Clocks of the processors at one moment, MHz.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Clocks {
    /// Of the slowest processor.
    pub(crate) min: f64,
    /// Mean of all.
    pub(crate) mean: f64,
    /// Of the fastest.
    pub(crate) max: f64,
}

/// Entries of a folder, in order (`card2` before `card10`); none when it is not there.
pub(super) fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut list: Vec<PathBuf> = read_dir(folder).into_iter().flatten().flatten().map(|e| e.path()).collect();
    list.sort_by_key(|path| (name(path).len(), name(path).to_owned()));
    list
}

/// The last part of a path.
pub(super) fn name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

/// The number that a file holds.
pub(super) fn number(path: &Path) -> Option<f64> {
    read_to_string(path).ok()?.trim().parse().ok().filter(|x: &f64| x.is_finite())
}

/// Whether `text` is `prefix` and a number, as `cpu12`.
pub(super) fn is_numbered(text: &str, prefix: &str) -> bool {
    text.strip_prefix(prefix).is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

impl Sensors {
    /// Those below `sys`, normally `/sys`.
    pub(crate) fn find(sys: &Path) -> Self {
        let mut found = Sensors::default();
        let cpus = entries(&sys.join("devices/system/cpu"));
        for cpu in cpus.into_iter().filter(|path| is_numbered(name(path), "cpu")) {
            found
                .clocks
                .extend(Some(cpu.join("cpufreq/scaling_cur_freq")).filter(|path| number(path).is_some()));
            let counts = entries(&cpu.join("thermal_throttle"));
            found.throttles.extend(counts.into_iter().filter(|path| name(path).ends_with("_throttle_count")));
        }
        for monitor in entries(&sys.join("class/hwmon")) {
            let driver = read_to_string(monitor.join("name")).unwrap_or_default();
            if matches!(driver.trim(), "coretemp" | "k10temp" | "zenpower") {
                let input = |path: &PathBuf| name(path).starts_with("temp") && name(path).ends_with("_input");
                found.temperatures.extend(entries(&monitor).into_iter().filter(input));
            }
        }
        found
    }

    /// Whether neither clocks nor temperatures can be read.
    pub(crate) fn is_blind(&self) -> bool {
        self.clocks.is_empty() && self.temperatures.is_empty()
    }

    /// What can be read, in words for people: clocks, temperature, throttling.
    pub(crate) fn missing(&self) -> Vec<&'static str> {
        let each = [
            (&self.clocks, "clocks"),
            (&self.temperatures, "temperature"),
            (&self.throttles, "count of throttling"),
        ];
        each.into_iter().filter(|(files, _)| files.is_empty()).map(|(_, what)| what).collect()
    }

    /// Clocks of all processors.
    pub(crate) fn clocks(&self) -> Option<Clocks> {
        let mhz: Vec<f64> = self.clocks.iter().filter_map(|path| number(path)).map(|khz| khz / 1e3).collect();
        Some(Clocks {
            min: mhz.iter().copied().reduce(f64::min)?,
            mean: mhz.iter().sum::<f64>() / mhz.len() as f64,
            max: mhz.iter().copied().reduce(f64::max)?,
        })
    }

    /// Highest temperature, degrees Celsius.
    pub(crate) fn temperature(&self) -> Option<f64> {
        self.temperatures.iter().filter_map(|path| number(path)).map(|milli| milli / 1e3).reduce(f64::max)
    }

    /// How often the processors were throttled since they started, all together; `None` where that is not counted.
    pub(crate) fn throttled(&self) -> Option<f64> {
        (!self.throttles.is_empty()).then(|| self.throttles.iter().filter_map(|path| number(path)).sum())
    }
}

/// Ticks of a processor so far, by its name in `/proc/stat` (`cpu` is all of them).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Ticks(BTreeMap<String, (u64, u64)>);

impl Ticks {
    /// From the text of `/proc/stat`. Idle, waiting and stolen time is not busy.
    pub(crate) fn parse(text: &str) -> Self {
        let line = |line: &str| {
            let (name, rest) = line.split_once(' ')?;
            let ticks: Vec<u64> = rest.split_whitespace().map_while(|word| word.parse().ok()).collect();
            let [user, nice, system, idle, iowait, irq, softirq, rest @ ..] = &ticks[..] else { return None };
            let busy =
                [user, nice, system, irq, softirq].into_iter().fold(0u64, |sum, t| sum.saturating_add(*t));
            let other = [idle, iowait, rest.first().unwrap_or(&0)];
            let total = other.into_iter().fold(busy, |sum, t| sum.saturating_add(*t));
            name.starts_with("cpu").then(|| (name.to_owned(), (busy, total)))
        };
        Ticks(text.lines().filter_map(line).collect())
    }

    /// Share of the time between `before` and `self` in which all processors, and each of them, were busy, 0..=1.
    pub(crate) fn since(&self, before: &Ticks) -> (Option<f64>, Vec<f64>) {
        let share = |name: &String| {
            let ((busy, total), (busy_0, total_0)) = (self.0.get(name)?, before.0.get(name)?);
            let time = total.checked_sub(*total_0).filter(|time| *time > 0)?;
            Some((busy.saturating_sub(*busy_0) as f64 / time as f64).min(1.0))
        };
        let mut cores: Vec<&String> = self.0.keys().filter(|name| is_numbered(name, "cpu")).collect();
        cores.sort_by_key(|name| (name.len(), name.as_str()));
        (share(&"cpu".to_owned()), cores.into_iter().filter_map(share).collect())
    }
}

/// Memory of the machine, used and in all, bytes, from the text of `/proc/meminfo`: what is not available to programs is used.
pub(crate) fn memory(text: &str) -> Option<(u64, u64)> {
    let kib = |key: &str| {
        let rest = text.lines().find_map(|line| line.strip_prefix(key))?;
        rest.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
    };
    let (total, available) = (kib("MemTotal:")?, kib("MemAvailable:")?);
    Some((total.checked_sub(available)?, total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_time_follow_from_ticks() {
        let before = Ticks::parse(
            "cpu  100 0 0 900 0 0 0 0 0 0\ncpu0 50 0 0 450 0 0 0 0\ncpu1 50 0 0 450 0 0 0 0\nintr 5\n",
        );
        let after = Ticks::parse(
            "cpu  150 0 0 950 0 0 0 0 0 0\ncpu0 100 0 0 450 0 0 0 0\ncpu1 50 0 0 490 0 0 0 10\nctxt 1\n",
        );
        let (all, cores) = after.since(&before);
        assert_eq!((all, cores), (Some(0.5), vec![1.0, 0.0]));
        assert_eq!(after.since(&after), (None, vec![]), "no time has passed");
        for text in
            ["", "cpu\n", "cpu 1 2 3\n", "cpu a b c d e f g\n", "cpu0 99999999999999999999 1 1 1 1 1 1\n"]
        {
            assert_eq!(Ticks::parse(text).since(&before), (None, vec![]), "{text:?}");
        }
    }

    #[test]
    fn sixteen_cores_stand_in_order() {
        let text = |busy: u64| {
            (0..16)
                .map(|i| format!("cpu{i} {} 0 0 {} 0 0 0\n", busy * i, 100 + busy * (15 - i)))
                .collect::<String>()
        };
        let (_, cores) = Ticks::parse(&text(10)).since(&Ticks::parse(&text(0)));
        assert!(cores.len() == 16 && cores.is_sorted(), "{cores:?}");
    }

    #[test]
    fn what_is_not_available_is_used() {
        assert_eq!(
            memory("MemTotal:  1000 kB\nMemFree: 1 kB\nMemAvailable:  400 kB\n"),
            Some((600 * 1024, 1000 * 1024))
        );
        for text in [
            "",
            "MemTotal: 1 kB\n",
            "MemTotal: 1 kB\nMemAvailable: 2 kB\n",
            "MemTotal:\nMemAvailable: x kB\n",
        ] {
            assert_eq!(memory(text), None, "{text:?}");
        }
    }
}
