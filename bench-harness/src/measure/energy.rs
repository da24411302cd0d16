//! Joules of a device's work: its meter, its idle baseline, and windows around repeated calls.

use anyhow::Result;
use perjoule_kernels::{DeviceClass, DeviceInfo};
use perjoule_meter::{Discovery, Idle, Kind, Meter, MeterInfo, Options, Window, discover};
use perjoule_record::{Energy, EnergyKind, Environment, Interval};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::catalogue::{Machine, cpu_power};
use crate::measure::{Interrupted, interrupted};

/// Relative sampling uncertainty that windows aim at.
const UNCERTAINTY: f64 = 0.01;
/// Window of the idle baseline of a sensor.
const IDLE_WINDOW: Duration = Duration::from_secs(1);

/// The meters of this machine.
pub(crate) struct Meters {
    found: Discovery,
}

impl Meters {
    /// Looks for sensors; the CPU also gets a model, for where it has none. `threads` is how many of its threads work.
    pub(crate) fn discover(environment: &Environment, threads: usize) -> Self {
        let machine = Machine {
            cpu: environment.cpu_model.as_deref().unwrap_or("unknown CPU"),
            processors: environment.cpu_count.and_then(|n| u32::try_from(n).ok()).unwrap_or(0),
            virtualized: environment.virtualized.unwrap_or(false),
            threads: u32::try_from(threads).unwrap_or(u32::MAX),
        };
        let models = cpu_power(machine).into_iter().collect();
        Meters { found: discover(&Options { models, ..Options::default() }) }
    }

    /// The meter of a device, best first; `None` where its energy cannot be told.
    pub(crate) fn of(&self, device: &DeviceInfo) -> Option<Arc<dyn Meter>> {
        match device.class {
            DeviceClass::Cpu => self.found.cpu().cloned(),
            _ => None,
        }
    }

    /// All meters that watch a device.
    pub(crate) fn all_of(&self, device: &DeviceInfo) -> Vec<&MeterInfo> {
        let cpu = device.class == DeviceClass::Cpu;
        let watches = |info: &MeterInfo| match info.subject {
            perjoule_meter::Subject::Cpu | perjoule_meter::Subject::Memory => cpu,
            perjoule_meter::Subject::System => true,
            _ => false,
        };
        self.found.meters.iter().map(|meter| meter.info()).filter(|info| watches(info)).collect()
    }
}

/// A meter and the power at rest.
pub(crate) struct Gauge {
    meter: Arc<dyn Meter>,
    idle: Option<Idle>,
}

impl Gauge {
    /// Takes the idle baseline; the machine should be quiet.
    pub(crate) fn new(meter: Arc<dyn Meter>) -> Self {
        let window = IDLE_WINDOW.max(meter.info().min_window());
        let idle = Idle::measure(&meter, window).ok();
        Gauge { meter, idle }
    }

    /// Length that a window should have.
    pub(crate) fn window(&self) -> Duration {
        self.meter.info().window_for(UNCERTAINTY).max(Duration::from_millis(50))
    }

    /// Opens a window.
    pub(crate) fn open(&self) -> Option<Window> {
        Window::start(self.meter.clone()).ok()
    }

    /// Closes a window over `calls` calls. `None` when the meter cannot tell, for instance because the window is too short.
    pub(crate) fn close(&self, window: Option<Window>, calls: u64) -> Option<Energy> {
        let energy = window?.finish().ok()?;
        let net = self.idle.as_ref().and_then(|idle| energy.net(idle).ok());
        let info = self.meter.info();
        let mut source = format!("{}: {}", energy.source, info.name);
        if let (Kind::Modelled, Some(note)) = (energy.kind, energy.notes.first()) {
            source.push_str(". ");
            source.push_str(note);
        }
        Some(Energy {
            joules: Some(energy.joules),
            net_joules: net.map(|net| net.joules),
            joules_per_call: (calls > 0).then(|| energy.joules / calls as f64),
            energy_kind: Some(match energy.kind {
                Kind::Measured => EnergyKind::Measured,
                Kind::Modelled => EnergyKind::Modelled,
            }),
            energy_source: Some(source),
            energy_boundary: Some(energy.boundary.as_str().into()),
            energy_ci95: Some(Interval { lo: energy.ci95[0], hi: energy.ci95[1] }),
            energy_window_s: Some(energy.seconds),
            energy_period_s: Some(energy.update_period.as_secs_f64()),
            energy_calls: Some(calls),
            avg_power_w: Some(energy.watts()),
            idle_power_w: self.idle.as_ref().map(|idle| idle.watts),
            ..Energy::default()
        })
    }

    /// Repeats `call` (some number of calls each) until the window is long enough, but no longer than `limit`.
    pub(crate) fn window_over(
        &self,
        limit: Duration,
        mut call: impl FnMut() -> Result<u64>,
    ) -> Result<Option<Energy>> {
        let length = self.window();
        if length > limit {
            return Ok(None);
        }
        let (start, window) = (Instant::now(), self.open());
        let mut calls = 0;
        while calls == 0 || start.elapsed() < length {
            if interrupted() {
                return Err(Interrupted.into());
            }
            calls += call()?;
        }
        Ok(self.close(window, calls))
    }
}

impl Meters {
    /// A line for each meter that exists or might exist and cannot be used, with what would make it usable.
    pub(crate) fn missing(&self) -> Vec<String> {
        let line = |missing: &perjoule_meter::Unavailable| {
            let fix = missing.fix.as_ref().map_or(String::new(), |fix| format!("; to use it: {fix}"));
            format!("{} for {}: {}{fix}", missing.origin, missing.what, missing.reason)
        };
        self.found.unavailable.iter().map(line).collect()
    }
}
