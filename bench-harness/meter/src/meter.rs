//! What a meter is: a description and one reading. Windows, unwrapping, integration and uncertainty are
//! built on these two, so a new source of energy implements nothing else.

use std::fmt::Debug;
use std::time::{Duration, Instant};

use crate::error::{MeterError, Result};
use crate::quantity::{Band, Boundary, Idle, Kind, Source};

/// The part of a machine that a meter watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Subject {
    /// The CPU packages of the machine.
    Cpu,
    /// Main memory.
    Memory,
    /// One accelerator, named by [`MeterInfo::device`].
    Gpu,
    /// The whole machine, or all that its platform sensor sees.
    System,
    /// Something else, such as a drive or a network card.
    Other,
}

/// What a meter says about itself.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct MeterInfo {
    /// Stable and unique on one machine, such as `rapl-powercap:package` or `nvml:GPU-5f..`.
    pub id: String,
    /// For people, such as `CPU package, 2 sockets` or `NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// Where readings come from.
    pub source: Source,
    /// What readings include.
    pub boundary: Boundary,
    /// Measured or modelled.
    pub kind: Kind,
    /// The part of the machine that is watched.
    pub subject: Subject,
    /// The device that is watched, as its driver names it: NVML's UUID, or a PCI address.
    pub device: Option<String>,
    /// How often the sensor has something new to say; zero for a model.
    pub update_period: Duration,
    /// How often [`Meter::read`] must be called during a window: power is integrated at this spacing, and a
    /// counter cannot wrap unseen. `None` where the ends of the window suffice.
    pub poll_every: Option<Duration>,
    /// Energy after which the hardware's counter starts over, J; `None` where it does not. A window in which the
    /// counter was not read for so long that 1 kW fills this is refused: it may have wrapped unseen.
    pub wraps_at: Option<f64>,
    /// 95 % band of the sensor or the model, as factors of the value.
    pub accuracy: Band,
    /// What a reader of the figures should know.
    pub notes: Vec<String>,
}

impl MeterInfo {
    /// A measured meter that needs no polling, knows its own accuracy only to 10 % and has no notes. Set the
    /// other fields as needed.
    pub fn new(id: impl Into<String>, source: Source, boundary: Boundary, subject: Subject) -> MeterInfo {
        let id = id.into();
        MeterInfo {
            name: id.clone(),
            id,
            source,
            boundary,
            kind: Kind::Measured,
            subject,
            device: None,
            update_period: Duration::ZERO,
            poll_every: None,
            wraps_at: None,
            accuracy: Band::within(0.10),
            notes: Vec::new(),
        }
    }

    /// Shortest window that gives a reading at all: two update periods. Its sampling uncertainty is large;
    /// [`MeterInfo::window_for`] says how long a good one is.
    pub fn min_window(&self) -> Duration {
        2 * self.update_period
    }

    /// Window over which the standard uncertainty from a counter's update period falls to `relative` of a
    /// steady load's energy (0.01 for 1 %), never less than [`MeterInfo::min_window`].
    ///
    /// Each end of the window misses the counter's last step by a time uniform in one period T, so the
    /// difference has variance T^2 / 6 and the window must be T / (sqrt(6) relative) long.
    pub fn window_for(&self, relative: f64) -> Duration {
        let seconds = self.update_period.as_secs_f64() / (6f64.sqrt() * relative);
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX).max(self.min_window())
    }

    /// Whether its counter may have started over unseen in `pause` without a reading: a load of 1 kW would have filled it.
    pub fn may_wrap_within(&self, pause: Duration) -> bool {
        self.wraps_at.is_some_and(|joules| pause.as_secs_f64() * WRAP_WATTS > joules)
    }

    /// Whether this meter and `other` count, or may count, some of the same energy, so that their figures must not
    /// be added. What is not known, such as what a rail feeds, counts as overlapping.
    pub fn overlaps(&self, other: &MeterInfo) -> bool {
        let nested = self.boundary.contains(other.boundary) || other.boundary.contains(self.boundary);
        let whole = |info: &MeterInfo| {
            info.subject == Subject::System
                || matches!(
                    info.boundary,
                    Boundary::Module | Boundary::Platform | Boundary::Battery | Boundary::Wall
                )
        };
        let unknown = |info: &MeterInfo| info.subject == Subject::Other;
        let same = match (&self.device, &other.device) {
            (Some(a), Some(b)) => a == b,
            _ => self.subject == other.subject || unknown(self) || unknown(other),
        };
        nested && (same || whole(self) || whole(other))
    }
}

/// One reading of a meter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sample {
    /// Cumulative energy since an arbitrary origin, J, with wrap-around already removed.
    Joules(f64),
    /// Power at this moment (or its mean over the sensor's own averaging time), W.
    Watts(f64),
}

/// What a device says about itself beside its energy, at one moment. A field that it does not report is `None`.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct DeviceState {
    /// Share of the last sampling period of the driver in which the device worked, 0..=1.
    pub utilisation: Option<f64>,
    /// Memory in use, bytes.
    pub memory_used: Option<u64>,
    /// Memory of the device, bytes.
    pub memory_total: Option<u64>,
    /// Clock of what computes, MHz.
    pub clock_mhz: Option<f64>,
    /// Clock of the memory, MHz.
    pub memory_clock_mhz: Option<f64>,
    /// Temperature of the chip, degrees Celsius.
    pub temperature_c: Option<f64>,
    /// Power that the device is held below, W.
    pub power_limit_w: Option<f64>,
    /// Speed of the fastest fan, as a share of its highest.
    pub fan: Option<f64>,
    /// Why clocks are lower than they could be; empty when nothing lowers them. A device at rest is not throttled.
    pub throttle_reasons: Option<Vec<&'static str>>,
}

/// A source of energy readings.
///
/// `read` must return the same kind of [`Sample`] each time. Cumulative joules never decrease: a counter of
/// finite width goes through [`Unwrapped`] first. Reading must be cheap beside
/// [`MeterInfo::poll_every`] and must never invent a value: what is unknown is an error.
pub trait Meter: Send + Sync + Debug {
    /// What the meter is.
    fn info(&self) -> &MeterInfo;

    /// One reading, now.
    ///
    /// # Errors
    /// Whatever keeps the sensor from being read; see [`MeterError`].
    fn read(&self) -> Result<Sample>;

    /// The power that it reports whatever happens, W, as a model of a fixed utilisation does: energy then follows from time alone
    /// ([`crate::Energy::of_constant`]), without a window.
    fn constant_watts(&self) -> Option<f64> {
        None
    }

    /// The power that it states for a utilisation in 0..=1 of what it watches, W, as a model does: for work whose use of the processors
    /// is known once it is done ([`crate::Energy::of_utilisation`]). `None` for every sensor.
    fn watts_at(&self, _utilisation: f64) -> Option<f64> {
        None
    }

    /// The idle baseline where the meter knows it without measuring, as a model does.
    fn idle(&self) -> Option<Idle> {
        None
    }

    /// The same energy read another way. A window reads both and reports where they disagree.
    fn cross_check(&self) -> Option<&dyn Meter> {
        None
    }

    /// What the device says about itself beside its energy, now; `None` where the source of the readings knows nothing else.
    fn state(&self) -> Option<DeviceState> {
        None
    }

    /// How many readings were lost or refused so far, where they arrive by themselves. A window notes how many
    /// of them fell into it.
    fn faults(&self) -> u64 {
        0
    }
}

/// Fastest plausible drain of one counter, W. A step beyond it is a reset, not a wrap-around.
const MAX_COUNTER_WATTS: f64 = 5_000.0;

/// Load up to which a counter that is read often enough cannot wrap twice unseen, W.
pub(crate) const WRAP_WATTS: f64 = 1_000.0;

/// Turns a counter that starts over at a known value into one that does not.
///
/// Correct as long as it advances at least once a wrap-around; [`Unwrapped::poll_every`] leaves a margin of
/// four even for a load of 1 kW, and [`MeterInfo::wraps_at`] has a window refused that was read too rarely.
#[derive(Clone, Debug)]
pub struct Unwrapped {
    modulus: u64,
    unit: f64,
    last: Option<(u64, Instant)>,
    total: u64,
}

impl Unwrapped {
    /// A counter that reads 0 again after `modulus` steps of `unit` joules (1e-6 for uJ).
    pub fn new(modulus: u64, unit: f64) -> Unwrapped {
        Unwrapped { modulus, unit, last: None, total: 0 }
    }

    /// Takes the counter's value at time `at` and returns the joules since the first call, which gives 0.
    ///
    /// # Errors
    /// [`MeterError::Reset`] when the counter fell from beyond its modulus or the step exceeds 5 kW; the next
    /// call then starts from this value.
    pub fn advance(&mut self, raw: u64, at: Instant, meter: &str) -> Result<f64> {
        let previous = self.last.replace((raw, at));
        if let Some((last, then)) = previous {
            let seconds = at.saturating_duration_since(then).as_secs_f64();
            let reset = |joules| MeterError::Reset { meter: meter.to_owned(), joules, seconds };
            let step = match raw.checked_sub(last) {
                Some(step) => step,
                None if last >= self.modulus => return Err(reset((raw as f64 - last as f64) * self.unit)),
                None => (self.modulus - last).saturating_add(raw),
            };
            let joules = step as f64 * self.unit;
            // The allowance covers a counter's update landing between two quick reads.
            if joules > MAX_COUNTER_WATTS * (seconds + 0.2) {
                return Err(reset(joules));
            }
            self.total = self.total.saturating_add(step);
        }
        Ok(self.total as f64 * self.unit)
    }

    /// How often such a counter must be read: a quarter of the time in which 1 kW wraps it, at most 10 s.
    pub fn poll_every(modulus: u64, unit: f64) -> Duration {
        Duration::try_from_secs_f64(modulus as f64 * unit / (4.0 * WRAP_WATTS))
            .unwrap_or(Duration::MAX)
            .clamp(Duration::from_millis(1), Duration::from_secs(10))
    }
}
