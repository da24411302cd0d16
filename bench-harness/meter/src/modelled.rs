//! Energy without a sensor: time x a power figure made from the thermal design power (TDP), with a band.
//!
//! ```text
//! P(u) = share x TDP x (idle + (busy - idle) x u)        joules = integral of P over the window
//! ```
//!
//! `u` in 0..=1 is the utilisation, `idle` and `busy` are the power at rest and under full load as fractions of
//! the TDP. In a virtual machine `share` is the part of the package that its cores are, such as 2 of 64, counted
//! both times in the same unit (cores or hardware threads); the idle power of the package is shared out the
//! same way. The result is [`Kind::Modelled`] wherever it goes and its interval is the stated band.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::error::{MeterError, Result};
use crate::meter::{Meter, MeterInfo, Sample, Subject};
use crate::quantity::{Band, Boundary, Energy, Idle, Kind, Sampling, Source, Z95};
use crate::sysfs;

/// Time between two steps of `/proc/stat` on Linux: USER_HZ is 100 on every architecture that matters here.
const JIFFY: Duration = Duration::from_millis(10);

/// Where the utilisation in the formula comes from.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Utilisation {
    /// A fixed fraction in 0..=1. A benchmark that keeps all its cores busy states 1.
    Fixed(f64),
    /// Busy time of all CPUs from this file, normally `/proc/stat`. Counts every process of the machine.
    ProcStat(PathBuf),
}

/// The parameters of the formula.
#[derive(Clone, Debug, PartialEq)]
pub struct PowerModel {
    /// The hardware that is modelled, such as `AMD EPYC 7763`.
    pub name: String,
    /// The part of the machine.
    pub subject: Subject,
    /// What the TDP includes: the package of a CPU, the board or module of an accelerator.
    pub boundary: Boundary,
    /// The device, as its driver names it; see [`MeterInfo::device`].
    pub device: Option<String>,
    /// Thermal design power of the whole package or board, W.
    pub tdp_w: f64,
    /// Power under full load as a fraction of the TDP.
    pub busy_fraction: f64,
    /// Power at rest as a fraction of the TDP.
    pub idle_fraction: f64,
    /// The part of the package that belongs to this machine: `(cores here, cores of the package)`.
    pub share: (u32, u32),
    /// 95 % band, as factors of the modelled power.
    pub band: Band,
    /// Where the utilisation comes from.
    pub utilisation: Utilisation,
}

impl PowerModel {
    /// A CPU at full load: the whole TDP when busy, 30 % of it at rest, between half and 1.3 times the result.
    /// The band is wide because memory-bound work stays far below the TDP and boost goes beyond it. Replace
    /// what is known better.
    pub fn new(name: impl Into<String>, tdp_w: f64) -> PowerModel {
        PowerModel {
            name: name.into(),
            subject: Subject::Cpu,
            boundary: Boundary::Package,
            device: None,
            tdp_w,
            busy_fraction: 1.0,
            idle_fraction: 0.3,
            share: (1, 1),
            band: Band { low: 0.5, high: 1.3 },
            utilisation: Utilisation::Fixed(1.0),
        }
    }

    /// Power at utilisation `u`, W.
    pub fn watts(&self, u: f64) -> f64 {
        let share = f64::from(self.share.0) / f64::from(self.share.1);
        share * self.tdp_w * (self.idle_fraction + (self.busy_fraction - self.idle_fraction) * u)
    }

    fn validate(&self) -> Result<()> {
        let check = |name, value: f64, ok: bool, expected| {
            if ok { Ok(()) } else { Err(MeterError::Parameter { name, value: value.to_string(), expected }) }
        };
        let Band { low, high } = self.band;
        let (here, whole) = self.share;
        let within = |value: f64, min: f64, max: f64| (min..=max).contains(&value);
        check("tdp_w", self.tdp_w, within(self.tdp_w, 1e-3, 1e6), "watts in 0.001..=1e6")?;
        check("busy_fraction", self.busy_fraction, within(self.busy_fraction, 1e-3, 4.0), "in 0.001..=4")?;
        let idle = self.idle_fraction;
        check("idle_fraction", idle, within(idle, 0.0, self.busy_fraction), "in 0..=busy_fraction")?;
        let share_expected = "at least one core, and no more than the package has";
        check("share", f64::from(here) / f64::from(whole), here > 0 && here <= whole, share_expected)?;
        check("band.low", low, low > 0.0 && low <= 1.0, "a factor in (0, 1]")?;
        check("band.high", high, within(high, 1.0, 100.0), "a factor in 1..=100")?;
        if let Utilisation::Fixed(u) = self.utilisation {
            check("utilisation", u, within(u, 0.0, 1.0), "in 0..=1")?;
        }
        Ok(())
    }
}

/// A meter whose readings are computed. Works wherever a clock does.
#[derive(Debug)]
pub struct Modelled {
    info: MeterInfo,
    model: PowerModel,
    origin: Instant,
}

impl Modelled {
    /// A meter from a model.
    ///
    /// # Errors
    /// [`MeterError::Parameter`] for values out of range.
    pub fn new(model: PowerModel) -> Result<Modelled> {
        model.validate()?;
        let id = format!("{}:{}", Source::ModelledTdp, model.name);
        let mut info = MeterInfo::new(id, Source::ModelledTdp, model.boundary, model.subject);
        info.name = model.name.clone();
        info.kind = Kind::Modelled;
        info.device = model.device.clone();
        info.accuracy = model.band;
        if matches!(model.utilisation, Utilisation::ProcStat(_)) {
            info.update_period = JIFFY;
        }
        let (here, whole) = model.share;
        let share = if here == whole { String::new() } else { format!("{here}/{whole} of ") };
        info.notes.push(format!(
            "Modelled, not measured: {share}{} W TDP, {:.0} % of it when busy and {:.0} % at rest, \
             within {:.2}..{:.2} times that.",
            model.tdp_w,
            100.0 * model.busy_fraction,
            100.0 * model.idle_fraction,
            model.band.low,
            model.band.high,
        ));
        Ok(Modelled { info, model, origin: Instant::now() })
    }

    /// The parameters.
    pub fn model(&self) -> &PowerModel {
        &self.model
    }

    /// Energy of `seconds` at a known utilisation, without a window.
    ///
    /// # Errors
    /// [`MeterError::Parameter`] for a time that is not positive or a utilisation outside 0..=1.
    pub fn energy_over(&self, seconds: f64, utilisation: f64) -> Result<Energy> {
        if !(seconds.is_finite() && seconds > 0.0) {
            let expected = "a positive number of seconds";
            return Err(MeterError::Parameter { name: "seconds", value: seconds.to_string(), expected });
        }
        if !(0.0..=1.0).contains(&utilisation) {
            let value = utilisation.to_string();
            return Err(MeterError::Parameter { name: "utilisation", value, expected: "in 0..=1" });
        }
        Ok(Energy::new(&self.info, self.model.watts(utilisation) * seconds, Sampling::NONE, seconds))
    }
}

impl Meter for Modelled {
    fn info(&self) -> &MeterInfo {
        &self.info
    }

    fn constant_watts(&self) -> Option<f64> {
        match self.model.utilisation {
            Utilisation::Fixed(u) => Some(self.model.watts(u)),
            Utilisation::ProcStat(_) => None,
        }
    }

    fn watts_at(&self, utilisation: f64) -> Option<f64> {
        (0.0..=1.0).contains(&utilisation).then(|| self.model.watts(utilisation))
    }

    fn idle(&self) -> Option<Idle> {
        let watts = self.model.watts(0.0);
        let Band { low, high } = self.model.band;
        Some(Idle { watts, u: watts * (high - low) / (2.0 * Z95), meter: self.info.id.clone() })
    }

    fn read(&self) -> Result<Sample> {
        match &self.model.utilisation {
            Utilisation::Fixed(u) => Ok(Sample::Watts(self.model.watts(*u))),
            Utilisation::ProcStat(path) => {
                let text = sysfs::read_file(path)
                    .map_err(|e| MeterError::io(path, e, || format!("chmod a+r {}", path.display())))?;
                let (busy, cpus) = busy_seconds(&text).ok_or_else(|| MeterError::Malformed {
                    path: path.clone(),
                    found: text.chars().take(40).collect(),
                    expected: "the cpu lines of /proc/stat",
                })?;
                // Integral of P(u): the idle part grows with time, the rest with busy time per CPU.
                let idle = self.model.watts(0.0);
                let rest = self.model.watts(1.0) - idle;
                let elapsed = self.origin.elapsed().as_secs_f64();
                Ok(Sample::Joules(idle * elapsed + rest * busy / cpus as f64))
            }
        }
    }
}

/// Busy seconds summed over all CPUs, and their number, from the text of `/proc/stat`. Idle, waiting and stolen
/// time is not busy; guest time is contained in user time.
fn busy_seconds(text: &str) -> Option<(f64, usize)> {
    let total = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<u64> = total.split_whitespace().map_while(|word| word.parse().ok()).collect();
    let [user, nice, system, _idle, _iowait, irq, softirq, ..] = ticks[..] else { return None };
    let is_cpu = |line: &&str| {
        line.strip_prefix("cpu").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    let cpus = text.lines().filter(is_cpu).count();
    let busy = [user, nice, system, irq, softirq].into_iter().map(|t| t as f64).sum::<f64>();
    (cpus > 0).then_some((busy * JIFFY.as_secs_f64(), cpus))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_time_excludes_idle_iowait_and_steal() {
        let text = "cpu  100 20 30 9000 500 4 6 77 0 0\ncpu0 50 10 15 4500 250 2 3 0 0 0\ncpu1 50 10 15 4500 250 2 3 77 0 0\nintr 1\n";
        let (busy, cpus) = busy_seconds(text).expect("parses");
        assert_eq!(cpus, 2);
        assert!((busy - 1.60).abs() < 1e-12, "{busy}");
    }

    #[test]
    fn garbage_is_refused() {
        for text in
            ["", "cpu\n", "cpu  1 2 3\ncpu0 1 2 3\n", "cpu  a b c d e f g\ncpu0\n", "cpu  1 2 3 4 5 6 7\n"]
        {
            assert!(busy_seconds(text).is_none(), "{text:?}");
        }
    }
}
