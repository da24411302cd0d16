//! The whole machine at its battery, while it discharges (Linux `Documentation/ABI/testing/sysfs-class-power`).
//!
//! `power_now` is microwatts; where it is missing, `voltage_now` (uV) x `current_now` (uA). Batteries of the machine
//! are summed; those of mice and keyboards (`scope` = `Device`) are left out. A reading is an error as soon as a
//! charger is plugged in, and so is a window in which that was seen: the battery then no longer feeds the machine
//! alone.
//!
//! ACPI drivers ask the battery once a second at most, and its own period is not published: two seconds are
//! assumed. So is an accuracy of 10 %.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::discover::{Discovery, Unavailable};
use crate::error::{MeterError, Result};
use crate::meter::{Meter, MeterInfo, Sample, Subject};
use crate::quantity::{Boundary, Source};
use crate::sysfs;

/// Where Linux mounts the tree.
pub const POWER_SUPPLY_ROOT: &str = "/sys/class/power_supply";

/// The batteries of the machine.
#[derive(Debug)]
pub struct Battery {
    info: MeterInfo,
    batteries: Vec<PathBuf>,
    chargers: Vec<PathBuf>,
}

impl Battery {
    /// The meter of the batteries under `root` (normally [`POWER_SUPPLY_ROOT`]), if they discharge now.
    pub fn discover(root: &Path) -> Discovery {
        let text = |dir: &Path, file: &str| sysfs::read_text(sysfs::read_file, &dir.join(file));
        let (mut batteries, mut chargers) = (Vec::new(), Vec::new());
        for dir in sysfs::entries(root) {
            match text(&dir, "type").as_deref() {
                Some("Battery") if text(&dir, "scope").as_deref() != Some("Device") => batteries.push(dir),
                Some("Mains" | "USB" | "Wireless") => chargers.push(dir),
                _ => {}
            }
        }
        let mut found = Discovery::default();
        let what = "whole machine";
        if batteries.is_empty() {
            found.unavailable.push(Unavailable {
                origin: Source::Battery,
                what: what.into(),
                reason: format!("{} has no battery of the machine", root.display()),
                fix: None,
            });
            return found;
        }
        let mut info = MeterInfo::new("battery", Source::Battery, Boundary::Battery, Subject::System);
        info.name = match batteries.len() {
            1 => "battery".into(),
            n => format!("batteries, sum of {n}"),
        };
        info.update_period = Duration::from_secs(2);
        info.poll_every = Some(Duration::from_secs(1));
        info.notes.push("Integrated from sampled power; the screen and all else is included.".into());
        let meter = Battery { info, batteries, chargers };
        match meter.read() {
            Ok(_) => found.meters.push(Arc::new(meter)),
            Err(error) => {
                let mut missing = Unavailable::from_error(Source::Battery, what.into(), &error);
                if matches!(error, MeterError::Lost { .. }) {
                    missing.fix = Some("unplug the charger".into());
                }
                found.unavailable.push(missing);
            }
        }
        found
    }

    fn lost(&self, reason: String) -> MeterError {
        MeterError::Lost { meter: self.info.id.clone(), reason }
    }
}

impl Meter for Battery {
    fn info(&self) -> &MeterInfo {
        &self.info
    }

    fn read(&self) -> Result<Sample> {
        let text = |path: PathBuf| sysfs::read_text(sysfs::read_file, &path).unwrap_or_default();
        if let Some(charger) = self.chargers.iter().find(|dir| text(dir.join("online")) == "1") {
            let name = sysfs::file_name(charger);
            return Err(self.lost(format!("the charger {name} is plugged in, unplug it")));
        }
        let mut discharging = false;
        let mut watts = 0.0;
        for dir in &self.batteries {
            match text(dir.join("status")).as_str() {
                "Discharging" => discharging = true,
                // The second battery of a machine rests while the first one is used.
                "Not charging" | "Full" | "Unknown" => continue,
                status => {
                    let name = sysfs::file_name(dir);
                    return Err(self.lost(format!("{name} is in state {status:?}, not discharging")));
                }
            }
            watts += power(dir)?;
        }
        if !discharging {
            return Err(self.lost("no battery discharges".into()));
        }
        Ok(Sample::Watts(watts))
    }
}

/// Power out of one battery, W. Drivers disagree about the sign of a current that flows out.
fn power(dir: &Path) -> Result<f64> {
    let read = |file: &str| {
        let path = dir.join(file);
        sysfs::read_i64(sysfs::read_file, &path, || format!("`sudo chmod a+r {}`", path.display()))
            .map(|micro| micro.unsigned_abs() as f64 * 1e-6)
    };
    if dir.join("power_now").exists() {
        return read("power_now");
    }
    Ok(read("voltage_now")? * read("current_now")?)
}
