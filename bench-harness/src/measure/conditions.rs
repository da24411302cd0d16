//! The state of the processor beside a measurement: clocks and temperatures, read now and then, and how often it was throttled.
//!
//! From Linux's sysfs: `cpu*/cpufreq/scaling_cur_freq`, `cpu*/thermal_throttle/*_throttle_count` and the temperatures of the hardware
//! monitors `coretemp`, `k10temp` and `zenpower`. Virtual machines show none of them; then nothing runs beside the measurement.

use perjoule_record::{Conditions, Record};
use std::fs::{read_dir, read_to_string};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use super::disturbance;

/// Time between two readings: seldom enough to be nothing beside the work.
const EVERY: Duration = Duration::from_millis(200);

/// What can be read on this machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Sources {
    clocks: Vec<PathBuf>,
    temperatures: Vec<PathBuf>,
    throttles: Vec<PathBuf>,
}

/// Entries of a folder, in order; none when it is not there.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut list: Vec<PathBuf> = read_dir(folder).into_iter().flatten().flatten().map(|e| e.path()).collect();
    list.sort();
    list
}

fn name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

impl Sources {
    fn find(sys: &Path) -> Self {
        let mut found = Sources::default();
        let is_cpu = |path: &PathBuf| {
            name(path)
                .strip_prefix("cpu")
                .is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
        };
        for cpu in entries(&sys.join("devices/system/cpu")).into_iter().filter(is_cpu) {
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

    /// Mean clock of the processors in MHz, and highest temperature in degrees.
    fn read(&self) -> (Option<f64>, Option<f64>) {
        let clocks: Vec<f64> =
            self.clocks.iter().filter_map(|path| number(path)).map(|khz| khz / 1e3).collect();
        let mean = (!clocks.is_empty()).then(|| clocks.iter().sum::<f64>() / clocks.len() as f64);
        let degrees = self.temperatures.iter().filter_map(|path| number(path)).map(|milli| milli / 1e3);
        (mean, degrees.reduce(f64::max))
    }

    /// How often each processor was throttled since it started; `None` where that is not counted.
    fn throttled(&self) -> Option<f64> {
        (!self.throttles.is_empty()).then(|| self.throttles.iter().filter_map(|path| number(path)).sum())
    }
}

fn number(path: &Path) -> Option<f64> {
    read_to_string(path).ok()?.trim().parse().ok().filter(|x: &f64| x.is_finite())
}

/// Watches from its creation on.
pub(crate) struct Watch {
    load: disturbance::Watch,
    sources: Sources,
    throttled: Option<f64>,
    reader: Option<(Sender<()>, JoinHandle<Conditions>)>,
}

impl Watch {
    /// Begins to watch.
    pub(crate) fn start() -> Self {
        Self::of(Sources::find(Path::new("/sys")))
    }

    fn of(sources: Sources) -> Self {
        let throttled = sources.throttled();
        let reader = match sources.clocks.is_empty() && sources.temperatures.is_empty() {
            true => None,
            false => spawn(sources.clone()),
        };
        Watch { load: disturbance::Watch::start(), sources, throttled, reader }
    }

    /// Fills `record` with what was seen since then, and says so where its samples changed their level.
    pub(crate) fn finish(self, record: &mut Record) {
        record.disturbances = self.load.finish();
        let samples = record.timing.samples_ns.as_deref().unwrap_or_default();
        let seen: Vec<String> = super::drift(samples).into_iter().chain(super::spread(samples)).collect();
        if !seen.is_empty() {
            record.disturbances.get_or_insert_default().extend(seen);
        }
        let events = self.throttled.zip(self.sources.throttled()).map(|(before, now)| now - before);
        record.throttle_reasons = events.map(|events| match events > 0.0 {
            true => vec![format!("too hot: the processor was throttled {events:.0} times")],
            false => Vec::new(),
        });
        if let Some((stop, thread)) = self.reader {
            drop(stop);
            record.conditions = thread.join().unwrap_or_default();
        }
    }
}

fn spawn(sources: Sources) -> Option<(Sender<()>, JoinHandle<Conditions>)> {
    let (stop, stopped) = mpsc::channel::<()>();
    let read = move || {
        let (mut seen, mut count, mut sum) = (Conditions::default(), 0.0, 0.0);
        let least = |old: Option<f64>, new: f64| Some(old.map_or(new, |old| old.min(new)));
        let most = |old: Option<f64>, new: f64| Some(old.map_or(new, |old| old.max(new)));
        loop {
            let ended = stopped.recv_timeout(EVERY) != Err(RecvTimeoutError::Timeout);
            let (clock, temperature) = sources.read();
            if let Some(mhz) = clock {
                (count, sum) = (count + 1.0, sum + mhz);
                seen.clock_mhz_min = least(seen.clock_mhz_min, mhz);
                seen.clock_mhz_max = most(seen.clock_mhz_max, mhz);
                seen.clock_mhz_mean = Some(sum / count);
            }
            seen.temperature_c_max =
                temperature.map_or(seen.temperature_c_max, |degrees| most(seen.temperature_c_max, degrees));
            if ended {
                return seen;
            }
        }
    };
    // without the thread a measurement is as good; it only tells less
    let thread = std::thread::Builder::new().name("conditions".into()).spawn(read).ok()?;
    Some((stop, thread))
}

#[cfg(test)]
mod tests {
    use super::*;
    use perjoule_record::{Environment, Kind};

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    #[test]
    fn clocks_temperatures_and_throttling_are_read_from_sysfs() {
        let sys = tempfile::tempdir().unwrap();
        let root = sys.path();
        for (cpu, khz) in [(0, "2000000\n"), (1, "3000000\n")] {
            write(root, &format!("devices/system/cpu/cpu{cpu}/cpufreq/scaling_cur_freq"), khz);
            write(root, &format!("devices/system/cpu/cpu{cpu}/thermal_throttle/core_throttle_count"), "4\n");
        }
        write(root, "devices/system/cpu/cpufreq/boost", "1\n");
        write(root, "class/hwmon/hwmon0/name", "coretemp\n");
        write(root, "class/hwmon/hwmon0/temp1_input", "61000\n");
        write(root, "class/hwmon/hwmon0/temp2_input", "67500\n");
        write(root, "class/hwmon/hwmon1/name", "nvme\n");
        write(root, "class/hwmon/hwmon1/temp1_input", "99000\n");
        let watch = Watch::of(Sources::find(root));
        write(root, "devices/system/cpu/cpu1/thermal_throttle/core_throttle_count", "7\n");
        let mut record = Record::new(Kind::Kernel, &Environment::default());
        watch.finish(&mut record);
        let seen = record.conditions;
        assert_eq!((seen.clock_mhz_min, seen.clock_mhz_mean), (Some(2500.0), Some(2500.0)));
        assert_eq!((seen.clock_mhz_max, seen.temperature_c_max), (Some(2500.0), Some(67.5)));
        let reasons = record.throttle_reasons.unwrap();
        assert!(reasons.len() == 1 && reasons[0].contains("3 times"), "{reasons:?}");
    }

    #[test]
    fn what_is_not_there_is_unknown() {
        let sys = tempfile::tempdir().unwrap();
        let watch = Watch::of(Sources::find(sys.path()));
        assert!(watch.reader.is_none(), "nothing runs beside the measurement");
        let mut record = Record::new(Kind::Kernel, &Environment::default());
        watch.finish(&mut record);
        assert_eq!((record.throttle_reasons, record.conditions), (None, Conditions::default()));
    }
}
