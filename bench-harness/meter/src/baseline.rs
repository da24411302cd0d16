//! Idle baselines before and after work, for several meters in one pause.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::error::Result;
use crate::meter::Meter;
use crate::quantity::{Energy, Idle};
use crate::window::Window;

/// The power at rest of some meters, taken before work and again after it, so that drift shows.
///
/// Each pause is shared by all meters, and the one after a piece of work serves as the one before the next: n
/// pieces of work cost n + 1 pauses.
///
/// ```
/// use std::time::Duration;
/// use perjoule_meter::{Baseline, Modelled, PowerModel, measure};
///
/// let meter: std::sync::Arc<dyn perjoule_meter::Meter> =
///     std::sync::Arc::new(Modelled::new(PowerModel::new("CPU", 100.0))?);
/// let mut baseline = Baseline::before(&[meter.clone()], Duration::from_secs(1));
/// let ((), energy) = measure(&meter, || ());
/// baseline.after();
/// let net = baseline.net(&energy?)?;
/// assert!(net.joules >= 0.0);
/// # Ok::<(), perjoule_meter::MeterError>(())
/// ```
#[derive(Debug)]
pub struct Baseline {
    meters: Vec<Arc<dyn Meter>>,
    window: Duration,
    before: Vec<Result<Idle>>,
    after: Option<Vec<Result<Idle>>>,
}

impl Baseline {
    /// Pauses and takes the first baselines. `window` is stretched to what the slowest of the meters needs
    /// ([`Baseline::window`]); meters that know their power at rest need no pause. The caller keeps the machine
    /// quiet meanwhile.
    ///
    /// What cannot be measured shows as an error in [`Baseline::net`] and [`Baseline::idle`].
    pub fn before(meters: &[Arc<dyn Meter>], window: Duration) -> Baseline {
        let window = meters
            .iter()
            .filter(|meter| meter.idle().is_none())
            // Four periods of a sensor of power give the three readings that an integral needs.
            .map(|meter| (2 * meter.info().min_window()).max(window))
            .max()
            .unwrap_or(Duration::ZERO);
        let before = pause(meters, window);
        Baseline { meters: meters.to_vec(), window, before, after: None }
    }

    /// How long each pause measures: zero where every meter knows its power at rest. Two update periods, 2 s at most, go before it.
    pub fn window(&self) -> Duration {
        self.window
    }

    /// How long each pause is altogether.
    pub fn pause(&self) -> Duration {
        settle(&self.meters) + self.window
    }

    /// Pauses again, once the work is done. From then on the baseline is the mean of both, with half their
    /// difference as drift. After further work it is called again: the last pause is then the one before.
    pub fn after(&mut self) {
        let after = pause(&self.meters, self.window);
        if let Some(last) = self.after.replace(after) {
            self.before = last;
        }
    }

    /// The baseline of the meter of that id: the mean of both pauses, or of the first alone before
    /// [`Baseline::after`]. `None` for a meter that is not part of this.
    pub fn idle(&self, meter: &str) -> Option<Result<Idle, String>> {
        let index = self.meters.iter().position(|known| known.info().id == meter)?;
        let taken =
            |list: &[Result<Idle>]| list[index].as_ref().map(Idle::clone).map_err(ToString::to_string);
        Some(taken(&self.before).and_then(|before| match &self.after {
            None => Ok(before),
            Some(after) => Idle::between(&before, &taken(after)?).map_err(|e| e.to_string()),
        }))
    }

    /// The part of `energy` above the baseline of its meter.
    ///
    /// # Errors
    /// [`crate::MeterError::Library`] with the reason where the baseline could not be taken or the meter is not
    /// part of this.
    pub fn net(&self, energy: &Energy) -> Result<Energy> {
        let unknown = || Err(format!("no baseline was taken with {}", energy.meter));
        match self.idle(&energy.meter).unwrap_or_else(unknown) {
            Ok(idle) => energy.net(&idle),
            Err(reason) => Err(crate::MeterError::Library {
                origin: energy.source,
                reason: format!("idle baseline: {reason}"),
            }),
        }
    }
}

/// Longest wait for readings of what came before the pause to pass.
const SETTLE: Duration = Duration::from_secs(2);

/// A reading is as old as the update period, and a mean over it: so long it takes until what the work before drew is out of it.
fn settle(meters: &[Arc<dyn Meter>]) -> Duration {
    let sensors = meters.iter().filter(|meter| meter.idle().is_none());
    sensors.map(|meter| 2 * meter.info().update_period).max().unwrap_or_default().min(SETTLE)
}

/// One pause for all meters.
fn pause(meters: &[Arc<dyn Meter>], window: Duration) -> Vec<Result<Idle>> {
    thread::sleep(settle(meters));
    let open: Vec<_> = meters
        .iter()
        .map(|meter| match meter.idle() {
            Some(idle) => Err(Ok(idle)),
            None => Window::start(meter.clone()).map_err(Err),
        })
        .collect();
    thread::sleep(window);
    let close = |window: Window| window.finish().map(|energy| Idle::new(&energy));
    open.into_iter().map(|window| window.map_or_else(|known| known, close)).collect()
}
