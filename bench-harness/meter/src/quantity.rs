//! Energy with everything that must travel with it: source, boundary, kind, interval and window.
//!
//! Uncertainty follows the Guide to the expression of uncertainty in measurement (JCGM 100:2008): independent
//! standard uncertainties add in squares, `u^2 = sampling^2 + sensor^2 + idle^2`, and the 95 % interval is
//! 1.96 u wide on either side where the contributions are symmetric.

use std::fmt;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::error::{MeterError, Result};
use crate::meter::{Meter, MeterInfo};
use crate::window::Window;

/// Half width of a 95 % interval in standard deviations of a normal distribution.
pub(crate) const Z95: f64 = 1.96;

/// Relative difference up to which two readings of the same energy agree: the accuracy that NVIDIA states.
const AGREEMENT: f64 = 0.05;

/// Where a reading comes from. `Display` gives the string that is written to records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Source {
    /// Running average power limit counters through Linux powercap sysfs (Intel and AMD CPUs).
    RaplPowercap,
    /// The same counters through Linux perf events.
    RaplPerf,
    /// NVIDIA's management library.
    Nvml,
    /// The table of metrics of Linux's amdgpu driver, which AMD SMI reads, too.
    AmdGpuMetrics,
    /// Linux hardware monitoring sysfs.
    Hwmon,
    /// INA3221 supply monitors of NVIDIA Jetson modules.
    Ina3221,
    /// A battery that discharges, through Linux power supply sysfs.
    Battery,
    /// Apple's IOReport and SMC through the `macmon` crate.
    Macmon,
    /// A meter outside the machine that sends lines of text.
    External,
    /// AWS Neuron's percentage of an unpublished maximum x a maximum that the user states. Not a measurement.
    ModelledNeuron,
    /// Time x a modelled share of the thermal design power. Not a measurement.
    ModelledTdp,
    /// A meter implemented outside this crate, by name.
    Other(&'static str),
}

impl Source {
    /// The string that is written to records.
    pub fn as_str(self) -> &'static str {
        match self {
            Source::RaplPowercap => "rapl-powercap",
            Source::RaplPerf => "rapl-perf",
            Source::Nvml => "nvml",
            Source::AmdGpuMetrics => "amdgpu-metrics",
            Source::Hwmon => "hwmon",
            Source::Ina3221 => "ina3221",
            Source::Battery => "battery",
            Source::Macmon => "macmon",
            Source::External => "external",
            Source::ModelledNeuron => "modelled-neuron",
            Source::ModelledTdp => "modelled-tdp",
            Source::Other(name) => name,
        }
    }
}

/// What a reading includes. Figures of different boundaries are never added or compared as equals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Boundary {
    /// The cores of a CPU with their private caches (RAPL `core`, also called PP0).
    Core,
    /// The parts of a CPU package outside its cores: the integrated GPU of client chips (RAPL `uncore`, PP1), the
    /// fabric and I/O of a Grace socket.
    Uncore,
    /// One or more whole CPU packages (sockets).
    Package,
    /// Main memory.
    Dram,
    /// The chip of an accelerator, as its own sensor sees it.
    Chip,
    /// A whole accelerator card with its memory and voltage regulators.
    Board,
    /// A module that carries CPU, GPU and their memory.
    Module,
    /// What the vendor wired to a sensor of the whole platform (RAPL `psys`, an ACPI power meter without a label,
    /// the SMC of a Mac): packages, memory and more, accelerators perhaps.
    Platform,
    /// A single supply rail whose scope the driver does not define.
    Rail,
    /// The whole machine at its battery: all but the losses of the charger.
    Battery,
    /// The whole machine at the wall socket.
    Wall,
}

/// Every boundary, innermost first.
const BOUNDARIES: [Boundary; 11] = [
    Boundary::Core,
    Boundary::Uncore,
    Boundary::Package,
    Boundary::Dram,
    Boundary::Chip,
    Boundary::Board,
    Boundary::Module,
    Boundary::Platform,
    Boundary::Rail,
    Boundary::Battery,
    Boundary::Wall,
];

impl Boundary {
    /// The string that is written to records.
    pub fn as_str(self) -> &'static str {
        match self {
            Boundary::Core => "core",
            Boundary::Uncore => "uncore",
            Boundary::Package => "package",
            Boundary::Dram => "dram",
            Boundary::Chip => "chip",
            Boundary::Board => "board",
            Boundary::Module => "module",
            Boundary::Platform => "platform",
            Boundary::Rail => "rail",
            Boundary::Battery => "battery",
            Boundary::Wall => "wall",
        }
    }

    /// The boundary of that name, as [`Boundary::as_str`] gives it.
    pub fn from_name(name: &str) -> Option<Boundary> {
        BOUNDARIES.into_iter().find(|boundary| boundary.as_str() == name)
    }

    /// Whether energy at `inner` is, or may be, already part of energy at `self` for the same device, so that
    /// the two must not be added. A boundary contains itself. DRAM is outside the package.
    pub fn contains(self, inner: Boundary) -> bool {
        use Boundary::*;
        if self == inner {
            return true;
        }
        match self {
            Wall => true,
            Battery => inner != Wall,
            Platform => !matches!(inner, Wall | Battery),
            Module => !matches!(inner, Wall | Battery | Platform),
            Board => matches!(inner, Chip | Rail),
            Package => matches!(inner, Core | Uncore | Rail),
            // A rail's scope is not known: it may feed any part of these.
            Core | Uncore | Dram | Chip => inner == Rail,
            Rail => false,
        }
    }
}

/// Whether a figure comes from a sensor or from a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A sensor or a counter of the hardware gave it.
    Measured,
    /// It was computed from time and a published power figure.
    Modelled,
}

impl Kind {
    /// The string that is written to records.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Measured => "measured",
            Kind::Modelled => "modelled",
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Display for Boundary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A 95 % band around a value, as factors of it: a sensor good to 5 % is `{ low: 0.95, high: 1.05 }`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Band {
    /// Lower end, in (0, 1].
    pub low: f64,
    /// Upper end, at least 1.
    pub high: f64,
}

impl Band {
    /// The symmetric band of `fraction` on either side: `Band::within(0.05)` is 5 %.
    pub const fn within(fraction: f64) -> Band {
        Band { low: 1.0 - fraction, high: 1.0 + fraction }
    }
}

/// Standard uncertainties by origin, J.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Uncertainty {
    /// From the finite update period of a counter, or the spacing of power samples.
    pub sampling: f64,
    /// The part of `sampling` that is from the two ends of the window, at each of which a reading is as old as the update period at most.
    /// It still holds what was before the work, so it is off in the same direction whenever that work is measured.
    pub ends: f64,
    /// From the sensor's accuracy class, or the width of a model's band.
    pub sensor: f64,
    /// From the idle baseline; 0 in gross figures.
    pub idle: f64,
}

impl Uncertainty {
    /// Combined standard uncertainty, J.
    pub fn combined(&self) -> f64 {
        (self.sampling.powi(2) + self.sensor.powi(2) + self.idle.powi(2)).sqrt()
    }
}

/// Standard uncertainty from sampling, J, apart by whether it is the same in every window.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sampling {
    /// From the ends: see [`Uncertainty::ends`].
    pub(crate) ends: f64,
    /// All other, independent from window to window.
    pub(crate) rest: f64,
}

impl Sampling {
    /// A model has none.
    pub(crate) const NONE: Sampling = Sampling { ends: 0.0, rest: 0.0 };

    fn of(energy: &Energy) -> Sampling {
        let Uncertainty { sampling, ends, .. } = energy.uncertainty;
        Sampling { ends, rest: (sampling.powi(2) - ends.powi(2)).max(0.0).sqrt() }
    }

    fn combined(self) -> f64 {
        self.ends.hypot(self.rest)
    }
}

/// Energy over a window, with what is needed to judge it.
#[derive(Clone, Debug, PartialEq)]
pub struct Energy {
    /// Joules. A net figure may be negative when the baseline drifted; its interval then says so.
    pub joules: f64,
    /// 95 % interval, J, `[low, high]`. Asymmetric where a model's band is.
    pub ci95: [f64; 2],
    /// Standard uncertainties by origin, J.
    pub uncertainty: Uncertainty,
    /// Length of the window, s.
    pub seconds: f64,
    /// Where the figure comes from.
    pub source: Source,
    /// What it includes.
    pub boundary: Boundary,
    /// Measured or modelled.
    pub kind: Kind,
    /// How often the sensor has something new to say.
    pub update_period: Duration,
    /// Id of the meter ([`MeterInfo::id`]).
    pub meter: String,
    /// What a reader of the figure should know, in whole sentences.
    pub notes: Vec<String>,
}

impl Energy {
    pub(crate) fn new(info: &MeterInfo, joules: f64, parts: Sampling, seconds: f64) -> Energy {
        let Band { low, high } = info.accuracy;
        let (sampling, ends) = (parts.combined(), parts.ends);
        let arm = |relative: f64| (joules * relative).hypot(Z95 * sampling);
        Energy {
            joules,
            ci95: [(joules - arm(1.0 - low)).max(0.0), joules + arm(high - 1.0)],
            uncertainty: Uncertainty {
                sampling,
                ends,
                sensor: joules * (high - low) / (2.0 * Z95),
                idle: 0.0,
            },
            seconds,
            source: info.source,
            boundary: info.boundary,
            kind: info.kind,
            update_period: info.update_period,
            meter: info.id.clone(),
            notes: info.notes.clone(),
        }
    }

    /// Compares with another reading of the same energy over the same time. Where the two differ by more than 5 %
    /// and by more than sampling explains, the interval is widened to that of the other, the difference counts
    /// as a rectangular contribution (half width / sqrt(3), JCGM 100 4.3.7), and a note says so.
    pub(crate) fn cross_check(&mut self, other: &Energy) {
        let joules = other.watts() * self.seconds;
        let difference = (joules - self.joules).abs();
        let noise = Z95 * self.uncertainty.sampling.hypot(other.uncertainty.sampling);
        if difference <= (AGREEMENT * self.joules.max(joules)).max(noise) {
            return;
        }
        self.ci95 = [self.ci95[0].min(other.ci95[0]), self.ci95[1].max(other.ci95[1])];
        self.uncertainty.sensor = self.uncertainty.sensor.hypot(difference / 3f64.sqrt());
        self.notes.push(format!(
            "{} says {:.4} J and {} says {joules:.4} J for the same window, {:.0} % apart: the interval covers both.",
            self.meter,
            self.joules,
            other.meter,
            100.0 * difference / self.joules.min(joules),
        ));
    }

    /// The energy of `seconds` by a meter whose power is constant; `None` for every other.
    pub fn of_constant(meter: &dyn Meter, seconds: f64) -> Option<Energy> {
        let watts = meter.constant_watts()?;
        Some(Energy::new(meter.info(), watts * seconds, Sampling::NONE, seconds))
    }

    /// The energy of `seconds` at a utilisation in 0..=1 that is known afterwards, such as CPU time over wall time and processors; a note
    /// says which. `None` for sensors, and for numbers out of range.
    pub fn of_utilisation(meter: &dyn Meter, seconds: f64, utilisation: f64) -> Option<Energy> {
        let watts = meter.watts_at(utilisation).filter(|_| seconds.is_finite() && seconds > 0.0)?;
        let mut energy = Energy::new(meter.info(), watts * seconds, Sampling::NONE, seconds);
        energy.notes.push(format!("Utilisation {:.1} %.", 100.0 * utilisation));
        Some(energy)
    }

    /// The energy of several windows of one meter together. What their ends miss has the same sign where the same work is measured again,
    /// and the sensor is off by the same in all of them, so these parts add up; all other sampling adds in squares. `None` for no windows,
    /// or those of different meters.
    pub fn sum(parts: &[Energy]) -> Option<Energy> {
        let (first, rest) = parts.split_first()?;
        if rest.iter().any(|part| part.meter != first.meter || part.kind != first.kind) {
            return None;
        }
        let ends = parts.iter().map(|part| part.uncertainty.ends).sum();
        let total =
            Energy::added(parts, Sampling { ends, rest: squares(parts, |part| Sampling::of(part).rest) })?;
        Some(Energy {
            seconds: parts.iter().map(|part| part.seconds).sum(),
            uncertainty: Uncertainty {
                idle: parts.iter().map(|part| part.uncertainty.idle).sum(),
                ..total.uncertainty
            },
            ..total
        })
    }

    /// The energy that several meters of one boundary saw over the same time, such as that of all boards. The caller makes sure that they do
    /// not overlap ([`MeterInfo::overlaps`]). Sensors of one kind are off alike, so their parts add up; sampling adds in squares. `None` for
    /// no meters, or where boundaries or kinds differ: those are never added.
    pub fn of_meters(parts: &[Energy]) -> Option<Energy> {
        let (first, rest) = parts.split_first()?;
        if rest.iter().any(|part| part.boundary != first.boundary || part.kind != first.kind) {
            return None;
        }
        let ends = squares(parts, |part| part.uncertainty.ends);
        let total =
            Energy::added(parts, Sampling { ends, rest: squares(parts, |part| Sampling::of(part).rest) })?;
        let ids: Vec<&str> = parts.iter().map(|part| part.meter.as_str()).collect();
        Some(Energy {
            meter: ids.join(" + "),
            // windows open and close one after the other: the mean is what the joules belong to
            seconds: parts.iter().map(|part| part.seconds).sum::<f64>() / parts.len() as f64,
            update_period: parts.iter().map(|part| part.update_period).max().unwrap_or_default(),
            uncertainty: Uncertainty {
                idle: squares(parts, |part| part.uncertainty.idle),
                ..total.uncertainty
            },
            ..total
        })
    }

    /// Joules, interval and notes of `parts` together, with `sampling` as that of the whole.
    fn added(parts: &[Energy], sampling: Sampling) -> Option<Energy> {
        let total = |of: &dyn Fn(&Energy) -> f64| parts.iter().map(of).sum::<f64>();
        let joules = total(&|part| part.joules);
        let Sampling { ends, .. } = sampling;
        let sampling = sampling.combined();
        // what an arm of an interval has beside sampling
        let beside = |arm: f64, part: &Energy| {
            (arm.powi(2) - (Z95 * part.uncertainty.sampling).powi(2)).max(0.0).sqrt()
        };
        let low = total(&|part| beside(part.joules - part.ci95[0], part));
        let high = total(&|part| beside(part.ci95[1] - part.joules, part));
        let mut notes: Vec<String> = Vec::new();
        for note in parts.iter().flat_map(|part| &part.notes) {
            if !notes.contains(note) {
                notes.push(note.clone());
            }
        }
        let first = parts.first()?;
        Some(Energy {
            joules,
            ci95: [joules - low.hypot(Z95 * sampling), joules + high.hypot(Z95 * sampling)],
            uncertainty: Uncertainty {
                sampling,
                ends,
                sensor: total(&|part| part.uncertainty.sensor),
                ..first.uncertainty
            },
            notes,
            ..first.clone()
        })
    }

    /// Combined standard uncertainty, J.
    pub fn u(&self) -> f64 {
        self.uncertainty.combined()
    }

    /// Mean power over the window, W.
    pub fn watts(&self) -> f64 {
        self.joules / self.seconds
    }

    /// The same figure for one of `count` equal pieces of work in the window: joules per call or per token.
    /// `None` when `count` is not a positive number.
    pub fn per(&self, count: f64) -> Option<PerUnit> {
        (count.is_finite() && count > 0.0).then(|| PerUnit {
            joules: self.joules / count,
            u: self.u() / count,
            ci95: self.ci95.map(|joules| joules / count),
        })
    }

    /// Energy above the idle baseline: `joules - idle watts x seconds`.
    ///
    /// The sensor's uncertainty stays that of the gross figure: gain errors of the two cancel in part, offset
    /// errors more, but neither is known, so this errs to the safe side. The baseline adds its own term.
    ///
    /// # Errors
    /// [`MeterError::Mismatch`] when the baseline was taken with another meter.
    pub fn net(&self, idle: &Idle) -> Result<Energy> {
        if idle.meter != self.meter {
            return Err(MeterError::Mismatch { baseline: idle.meter.clone(), energy: self.meter.clone() });
        }
        let u_idle = idle.u * self.seconds;
        let joules = self.joules - idle.watts * self.seconds;
        Ok(Energy {
            joules,
            ci95: [
                joules - (self.joules - self.ci95[0]).hypot(Z95 * u_idle),
                joules + (self.ci95[1] - self.joules).hypot(Z95 * u_idle),
            ],
            uncertainty: Uncertainty { idle: u_idle.hypot(self.uncertainty.idle), ..self.uncertainty },
            ..self.clone()
        })
    }
}

/// Root of the sum of squares.
fn squares(parts: &[Energy], of: impl Fn(&Energy) -> f64) -> f64 {
    parts.iter().map(|part| of(part).powi(2)).sum::<f64>().sqrt()
}

/// Energy of one piece of work, from [`Energy::per`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PerUnit {
    /// Joules.
    pub joules: f64,
    /// Combined standard uncertainty, J.
    pub u: f64,
    /// 95 % interval, J, `[low, high]`.
    pub ci95: [f64; 2],
}

/// Power of an idle machine, to be subtracted by [`Energy::net`].
#[derive(Clone, Debug, PartialEq)]
pub struct Idle {
    /// Mean power, W.
    pub watts: f64,
    /// Standard uncertainty from sampling and drift, W. The sensor's own error is counted in the energy.
    pub u: f64,
    /// Id of the meter it was measured with.
    pub meter: String,
}

impl Idle {
    /// The baseline of `meter`: from its model where it has one, else measured while this thread sleeps for
    /// `window`. The caller keeps the machine quiet meanwhile.
    ///
    /// # Errors
    /// Those of [`Window::finish`], such as a window that is too short.
    pub fn measure(meter: &Arc<dyn Meter>, window: Duration) -> Result<Idle> {
        if let Some(idle) = meter.idle() {
            return Ok(idle);
        }
        let open = Window::start(meter.clone())?;
        thread::sleep(window);
        Ok(Idle::new(&open.finish()?))
    }

    /// The baseline from energy over an idle window of a sensor.
    pub fn new(energy: &Energy) -> Idle {
        Idle {
            watts: energy.watts(),
            u: energy.uncertainty.sampling / energy.seconds,
            meter: energy.meter.clone(),
        }
    }

    /// The mean of a baseline taken before the work and one taken after it. Half their difference counts as
    /// drift.
    ///
    /// # Errors
    /// [`MeterError::Mismatch`] when the two come from different meters.
    pub fn between(before: &Idle, after: &Idle) -> Result<Idle> {
        if before.meter != after.meter {
            return Err(MeterError::Mismatch { baseline: before.meter.clone(), energy: after.meter.clone() });
        }
        let drift = (before.watts - after.watts).abs() / 2.0;
        Ok(Idle {
            watts: (before.watts + after.watts) / 2.0,
            u: (before.u.hypot(after.u) / 2.0).hypot(drift),
            meter: before.meter.clone(),
        })
    }
}
