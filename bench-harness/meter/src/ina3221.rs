//! INA3221 supply monitors of NVIDIA Jetson modules: three rails a chip, voltage x current.
//!
//! JetPack 5 and later, and mainline Linux, have a hwmon device for each chip with `inN_label`, `inN_input` (mV) and
//! `currN_input` (mA) and no power of its own (`Documentation/hwmon/ina3221.rst`). JetPack 4 has
//! `iio:deviceN/rail_name_M` and `in_powerM_input` (mW).
//!
//! # What is counted, and how often
//! Rails nest, so they are never added up blindly:
//!
//! | module | total |
//! |---|---|
//! | Nano, TX2, Xavier NX, Orin NX, Orin Nano | the rail that feeds the module, `POM_5V_IN` or `VDD_IN` |
//! | AGX Orin | `VDD_GPU_SOC` + `VDD_CPU_CV` + `VIN_SYS_5V0` |
//! | AGX Xavier and others | none: how their rails nest is not known here |
//!
//! NVIDIA's staff call `VDD_IN` "the total power of module" and `POM_5V_IN` "the total power consumption", to which the
//! other rails must not be added (developer forum, topics 200883 and 73608). AGX Orin has no such rail: its three
//! inputs are summed, and its memory's rail, `VDDQ_VDD2_1V8AO`, is left out, since it is measured at 5 V and taken to be
//! fed by `VIN_SYS_5V0`. That assumption, and the losses before the three rails, are why its band goes up to 1.2.
//!
//! The total is at the boundary `module`; every rail is also a meter of its own, at the boundary `rail`, which
//! overlaps with everything. Accuracy is not stated: 10 %.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::discover::{Discovery, Unavailable};
use crate::error::Result;
use crate::meter::{Meter, MeterInfo, Sample, Subject};
use crate::quantity::{Band, Boundary, Source};
use crate::sysfs;

/// Where JetPack 4 has the chips.
pub const INA3221_IIO_ROOT: &str = "/sys/bus/i2c/drivers/ina3221x";

/// Rails that feed a whole module.
const TOTALS: [&str; 2] = ["VDD_IN", "POM_5V_IN"];

/// The rails that together feed an AGX Orin.
const AGX_ORIN: [&str; 3] = ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"];

/// One rail, or the sum of those that feed a module.
#[derive(Debug)]
pub struct Ina3221 {
    info: MeterInfo,
    rails: Vec<Rail>,
}

#[derive(Clone, Debug)]
struct Rail {
    label: String,
    /// The chip, such as `1-0040`.
    chip: String,
    power: Power,
    period: Duration,
}

#[derive(Clone, Debug)]
enum Power {
    /// Millivolts and milliamperes.
    Product(PathBuf, PathBuf),
    /// Milliwatts.
    Direct(PathBuf),
}

impl Ina3221 {
    /// The meters of the chips under `hwmon` (normally [`crate::HWMON_ROOT`]) and `iio` (normally
    /// [`INA3221_IIO_ROOT`]).
    pub fn discover(hwmon: &Path, iio: &Path) -> Discovery {
        let mut rails = hwmon_rails(hwmon);
        if rails.is_empty() {
            rails = iio_rails(iio);
        }
        let mut found = Discovery::default();
        let mut unavailable = |what: String, reason: String, fix: Option<String>| {
            found.unavailable.push(Unavailable { origin: Source::Ina3221, what, reason, fix });
        };
        if rails.is_empty() {
            let reason = "there is no INA3221 chip: they are on NVIDIA Jetson modules".into();
            let fix = "on a Jetson: `sudo modprobe ina3221`";
            unavailable("Jetson module".into(), reason, Some(fix.into()));
            return found;
        }
        // The same rail name on a carrier board's chip must not be taken for the module's: the first one counts.
        let named = |name: &str| rails.iter().find(|rail| rail.label == name).cloned();
        let total = TOTALS.iter().find_map(|name| named(name)).map(|rail| vec![rail]);
        let sum = || AGX_ORIN.iter().map(|name| named(name)).collect::<Option<Vec<_>>>();
        match total.or_else(sum) {
            Some(parts) => match Ina3221::module(parts) {
                Ok(meter) => found.meters.push(Arc::new(meter)),
                Err(e) => found.unavailable.push(Unavailable::from_error(
                    Source::Ina3221,
                    "Jetson module".into(),
                    &e,
                )),
            },
            None => {
                let names: Vec<&str> = rails.iter().map(|rail| rail.label.as_str()).collect();
                let reason = format!(
                    "none of its rails ({}) is known to feed the whole module, and how they nest is not known",
                    names.join(", ")
                );
                let fix = "use an external meter at the module's supply";
                unavailable("Jetson module".into(), reason, Some(fix.into()));
            }
        }
        for rail in rails {
            let what = rail.label.clone();
            match Ina3221::rail(rail) {
                Ok(meter) => found.meters.push(Arc::new(meter)),
                Err(e) => found.unavailable.push(Unavailable::from_error(Source::Ina3221, what, &e)),
            }
        }
        found
    }

    fn module(rails: Vec<Rail>) -> Result<Ina3221> {
        let names: Vec<&str> = rails.iter().map(|rail| rail.label.as_str()).collect();
        let mut info = MeterInfo::new("ina3221:module", Source::Ina3221, Boundary::Module, Subject::System);
        info.name = format!("Jetson module ({})", names.join(" + "));
        if rails.len() > 1 {
            info.accuracy = Band { low: 0.9, high: 1.2 };
            info.notes.push("The sum of the module's rails: losses before them are not seen.".into());
        }
        Ina3221::new(info, rails)
    }

    fn rail(rail: Rail) -> Result<Ina3221> {
        let id = format!("ina3221:{}:{}", rail.chip, rail.label);
        let mut info = MeterInfo::new(id, Source::Ina3221, Boundary::Rail, Subject::Other);
        info.name = format!("Jetson rail {}", rail.label);
        Ina3221::new(info, vec![rail])
    }

    fn new(mut info: MeterInfo, rails: Vec<Rail>) -> Result<Ina3221> {
        info.update_period = rails.iter().map(|rail| rail.period).max().unwrap_or_default();
        // Each reading costs a few transfers on the I2C bus.
        info.poll_every = Some(info.update_period.clamp(Duration::from_millis(20), Duration::from_secs(1)));
        info.notes.push("Integrated from sampled power.".into());
        let meter = Ina3221 { info, rails };
        meter.read()?;
        Ok(meter)
    }
}

impl Meter for Ina3221 {
    fn info(&self) -> &MeterInfo {
        &self.info
    }

    fn read(&self) -> Result<Sample> {
        self.rails.iter().map(|rail| watts(&rail.power)).sum::<Result<f64>>().map(Sample::Watts)
    }
}

fn watts(power: &Power) -> Result<f64> {
    let read = |path: &Path| {
        let fix = || format!("until the next boot: `sudo chmod a+r {}`", path.display());
        // A current near zero may read a count below it; nothing on these rails feeds back.
        sysfs::read_i64(sysfs::read_file, path, fix).map(|value| value.max(0) as f64 * 1e-3)
    };
    match power {
        Power::Product(volts, amperes) => Ok(read(volts)? * read(amperes)?),
        Power::Direct(watts) => read(watts),
    }
}

/// Rails that exist and are in use.
fn in_use(label: &str) -> bool {
    !label.is_empty() && label != "NC"
}

fn hwmon_rails(root: &Path) -> Vec<Rail> {
    let text = |path: &Path| sysfs::read_text(sysfs::read_file, path);
    let mut rails = Vec::new();
    for dir in sysfs::entries(root) {
        if text(&dir.join("name")).as_deref() != Some("ina3221") {
            continue;
        }
        let chip = std::fs::canonicalize(dir.join("device")).unwrap_or_else(|_| dir.clone());
        let interval = text(&dir.join("update_interval")).and_then(|ms| ms.parse().ok()).unwrap_or(100);
        for channel in 1..=3 {
            let label = text(&dir.join(format!("in{channel}_label"))).unwrap_or_default();
            let enabled = text(&dir.join(format!("in{channel}_enable"))).is_none_or(|on| on != "0");
            if !(in_use(&label) && enabled) {
                continue;
            }
            rails.push(Rail {
                label,
                chip: sysfs::file_name(&chip),
                power: Power::Product(
                    dir.join(format!("in{channel}_input")),
                    dir.join(format!("curr{channel}_input")),
                ),
                period: Duration::from_millis(interval)
                    .clamp(Duration::from_millis(1), Duration::from_secs(60)),
            });
        }
    }
    rails
}

fn iio_rails(root: &Path) -> Vec<Rail> {
    let mut rails = Vec::new();
    for chip in sysfs::entries(root) {
        for dir in sysfs::entries(&chip) {
            if !sysfs::file_name(&dir).starts_with("iio:device") {
                continue;
            }
            for channel in 0..3 {
                let path = dir.join(format!("rail_name_{channel}"));
                let label = sysfs::read_text(sysfs::read_file, &path).unwrap_or_default();
                if in_use(&label) {
                    rails.push(Rail {
                        label,
                        chip: sysfs::file_name(&chip),
                        power: Power::Direct(dir.join(format!("in_power{channel}_input"))),
                        period: Duration::from_millis(100),
                    });
                }
            }
        }
    }
    rails
}
