//! Joules of a device's work: its meter, its idle baseline, and windows around repeated calls.

use anyhow::Result;
use perjoule_kernels::{DeviceClass, DeviceInfo};
use perjoule_meter::{
    Baseline, Discovery, ExternalSource, Kind, Meter, MeterError, MeterInfo, Modelled, NeuronMaximum,
    Options, PowerModel, Source, Subject, Unavailable, Utilisation, Window, discover,
};
use perjoule_record::{Energy, EnergyKind, Environment, Interval, Reading};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::cpu_power::{Machine, cpu_power};
use crate::measure::{Interrupted, interrupted};

/// Relative sampling uncertainty that windows aim at, and the one that they are stretched for beyond the time of the measurement.
pub(super) const UNCERTAINTY: f64 = 0.01;
const COARSE: f64 = 0.05;
/// Longest window, and longest pause, that is stretched for a slow meter.
const LONGEST: Duration = Duration::from_secs(10);
/// Relative sampling uncertainty up to which the window of a single run is sound: several of them average it out.
const PER_WINDOW: f64 = 0.05;
/// Window of the idle baseline of a sensor.
const IDLE_WINDOW: Duration = Duration::from_secs(1);
/// Shortest window of a sensor: long enough that what else the machine does is seen in it as often as in the samples.
pub(super) const SHORTEST: Duration = Duration::from_secs(1);
/// Rounds of calls in a window, as far as time allows.
const ROUNDS: u64 = 30;

/// What the user names beside the sensors of the machine.
#[derive(Debug, Clone, Default)]
pub(crate) struct Added {
    /// Meters outside the machine.
    pub(crate) external: Vec<ExternalSource>,
    /// What a Neuron device draws at 100 %.
    pub(crate) neuron: Option<NeuronMaximum>,
}

/// The meters of this machine.
pub(crate) struct Meters {
    found: Discovery,
    /// What stands in for a sensor of the CPU.
    model: Option<PowerModel>,
}

impl Meters {
    /// Looks for sensors; the CPU also gets a model, for where it has none. `threads` is how many of its threads work.
    pub(crate) fn discover(environment: &Environment, threads: usize, added: &Added) -> Self {
        let options =
            Options { external: added.external.clone(), neuron: added.neuron, ..Options::default() };
        Self::discover_in(environment, threads, options)
    }

    /// Looks for sensors where `options` say, and adds the CPU's model.
    pub(crate) fn discover_in(environment: &Environment, threads: usize, options: Options) -> Self {
        let machine = Machine {
            cpu: environment.cpu_model.as_deref().unwrap_or("unknown CPU"),
            processors: environment.cpu_count.and_then(|n| u32::try_from(n).ok()).unwrap_or(0),
            virtualized: environment.virtualized.unwrap_or(false),
            threads: u32::try_from(threads).unwrap_or(u32::MAX),
        };
        let model = cpu_power(machine).ok();
        Meters { found: discover(&Options { models: model.iter().cloned().collect(), ..options }), model }
    }

    /// All that were found.
    pub(crate) fn found(&self) -> &Discovery {
        &self.found
    }

    /// The meters for watching the machine as it is: those that were found, but for a model that takes the processors to be busy one that
    /// follows how busy they are.
    pub(crate) fn live(&self) -> Vec<Arc<dyn Meter>> {
        let mut list: Vec<Arc<dyn Meter>> =
            self.found.meters.iter().filter(|meter| meter.constant_watts().is_none()).cloned().collect();
        let follows = |model: &PowerModel| PowerModel {
            utilisation: Utilisation::ProcStat("/proc/stat".into()),
            ..model.clone()
        };
        let model = self.model.as_ref().and_then(|model| Modelled::new(follows(model)).ok());
        list.extend(
            model.filter(|model| model.read().is_ok()).map(|model| Arc::new(model) as Arc<dyn Meter>),
        );
        list
    }

    /// The meters of a device, best first; none where its energy cannot be told. The device's own sensor comes first, then what the user
    /// has attached, then sensors of the whole machine; a model stands in only where nothing is measured.
    pub(crate) fn of(&self, device: &DeviceInfo) -> Vec<Arc<dyn Meter>> {
        let own = self.own(device);
        let is_own = |meter: &Arc<dyn Meter>| own.is_some_and(|own| own.info().id == meter.info().id);
        let rank = |meter: &Arc<dyn Meter>| {
            let info = meter.info();
            match (is_own(meter), info.kind, info.source, info.subject) {
                (true, Kind::Measured, ..) => Some(0),
                (_, Kind::Measured, Source::External, _) if watches(info, device) => Some(1),
                (_, Kind::Measured, _, Subject::System) => Some(2),
                (_, Kind::Measured, ..) if watches(info, device) => Some(3),
                (true, ..) => Some(4),
                _ => None,
            }
        };
        let mut ranked: Vec<_> =
            self.found.meters.iter().filter_map(|m| Some((rank(m)?, m.clone()))).collect();
        ranked.sort_by_key(|(rank, _)| *rank);
        let measured = ranked.iter().any(|(rank, _)| *rank < 4);
        ranked.into_iter().filter(|(rank, _)| *rank < 4 || !measured).map(|(_, meter)| meter).collect()
    }

    /// The meters for whatever runs on this machine, best first: the CPU's packages, what the user has attached, the whole machine, and then
    /// what watches a part of it. The model of the CPU stands in only where its packages are not measured.
    pub(crate) fn of_machine(&self) -> Vec<Arc<dyn Meter>> {
        let cpu = self.found.cpu().map(|meter| meter.info());
        let modelled = |info: &MeterInfo| info.source == Source::ModelledTdp;
        let rank = |info: &MeterInfo| match (info.kind, info.source, info.subject) {
            (Kind::Measured, ..) if cpu.is_some_and(|cpu| cpu.id == info.id) => 0,
            (Kind::Measured, Source::External, _) => 1,
            (Kind::Measured, _, Subject::System) => 2,
            (Kind::Measured, _, Subject::Cpu) => 3,
            (Kind::Measured, ..) => 4,
            (Kind::Modelled, ..) => 5,
        };
        let stands = |info: &MeterInfo| !modelled(info) || cpu.is_some_and(modelled);
        let mut list: Vec<_> =
            self.found.meters.iter().filter(|meter| stands(meter.info())).cloned().collect();
        list.sort_by_key(|meter| rank(meter.info()));
        list
    }

    /// The sensor, or the model, that watches this device and nothing else.
    fn own(&self, device: &DeviceInfo) -> Option<&Arc<dyn Meter>> {
        match device.class {
            DeviceClass::Cpu => self.found.cpu(),
            // indices are no names: drivers count differently
            _ => [&device.uuid, &device.pci].into_iter().flatten().find_map(|name| self.found.device(name)),
        }
    }

    /// All meters that watch a device.
    pub(crate) fn all_of(&self, device: &DeviceInfo) -> Vec<&MeterInfo> {
        self.found.meters.iter().map(|meter| meter.info()).filter(|info| watches(info, device)).collect()
    }

    /// Why meters that the user named cannot be used.
    pub(crate) fn refused(&self) -> Vec<String> {
        let named = |missing: &&Unavailable| missing.origin == Source::External;
        self.found.unavailable.iter().filter(named).map(describe).collect()
    }

    /// A line for each meter that exists or might exist and cannot be used, with what would make it usable.
    pub(crate) fn missing(&self) -> Vec<String> {
        self.found.unavailable.iter().map(describe).collect()
    }
}

/// Whether what a meter sees contains the work of a device.
fn watches(info: &MeterInfo, device: &DeviceInfo) -> bool {
    let cpu = device.class == DeviceClass::Cpu;
    match (info.subject, &info.device) {
        (Subject::System, _) => true,
        (Subject::Cpu | Subject::Memory, _) => cpu,
        (Subject::Gpu, Some(name)) => {
            let plain = |name: &str| name.trim_start_matches("GPU-").to_ascii_lowercase();
            let is = |own: &String| plain(own) == plain(name);
            !cpu && [&device.uuid, &device.pci].into_iter().flatten().any(is)
        }
        _ => false,
    }
}

/// A meter that cannot be used: why, and what would make it usable.
fn describe(missing: &Unavailable) -> String {
    let fix = missing.fix.as_ref().map_or(String::new(), |fix| format!("; to use it: {fix}"));
    format!("{} for {}: {}{fix}", missing.origin, missing.what, missing.reason)
}

/// The meters of a device and their power at rest.
pub(crate) struct Gauge {
    /// The one whose figures stand in a record's own fields, and what else watches the device.
    meters: Vec<Arc<dyn Meter>>,
    baseline: Mutex<Baseline>,
}

/// What one meter saw, or why it could not tell.
pub(super) type Seen = std::result::Result<perjoule_meter::Energy, String>;

/// Open windows, one for each meter.
pub(crate) struct Windows(Vec<perjoule_meter::Result<Window>>);

/// The columns where joules are not known.
fn unknown(reason: impl ToString) -> Energy {
    Energy { energy_unknown: Some(reason.to_string()), ..Energy::default() }
}

impl Gauge {
    /// Takes the idle baseline; the machine should be quiet. `None` without meters.
    pub(crate) fn new(meters: Vec<Arc<dyn Meter>>) -> Option<Self> {
        // a meter that tells something once a minute would hold the run up for many: its net joules stay unknown
        let quick = |meter: &&Arc<dyn Meter>| 2 * meter.info().min_window() <= LONGEST;
        let quick: Vec<Arc<dyn Meter>> = meters.iter().filter(quick).cloned().collect();
        let baseline = Mutex::new(Baseline::before(&quick, IDLE_WINDOW));
        (!meters.is_empty()).then_some(Gauge { meters, baseline })
    }

    /// The sensor whose figures stand in a record's own fields; `None` where they are modelled.
    pub(crate) fn sensor(&self) -> Option<Arc<dyn Meter>> {
        self.meters.first().filter(|meter| meter.info().kind == Kind::Measured).cloned()
    }

    /// Length that a window has where the measurement leaves `limit` for it: what the slowest meter needs for a narrow interval, at least
    /// what it needs for a coarse one, but no more than [`LONGEST`] beyond the limit.
    fn window(&self, limit: Duration) -> Duration {
        let need = |relative| self.meters.iter().map(|meter| meter.info().window_for(relative)).max();
        let coarse = need(COARSE).unwrap_or_default().min(limit.max(LONGEST));
        need(UNCERTAINTY).unwrap_or_default().min(limit).max(coarse).max(SHORTEST)
    }

    /// Opens a window.
    pub(crate) fn open(&self) -> Windows {
        Windows(self.meters.iter().map(|meter| Window::start(meter.clone())).collect())
    }

    /// Takes the power at rest again, now that work is done: what is closed from now on has the mean of both as its baseline.
    pub(crate) fn rest(&self) {
        self.baseline.lock().unwrap_or_else(PoisonError::into_inner).after();
    }

    /// Ends a window. What a meter cannot tell, for instance because the window was too short for it, is an error.
    pub(crate) fn finish(&self, windows: Windows) -> Vec<Seen> {
        windows
            .0
            .into_iter()
            .map(|window| window.and_then(Window::finish).map_err(|error| error.to_string()))
            .collect()
    }

    /// The columns of `calls` calls: joules, or why the first meter could not tell.
    pub(crate) fn columns(&self, seen: &[Seen], calls: u64) -> Energy {
        let energy = match seen.first() {
            Some(Ok(energy)) => energy,
            Some(Err(error)) => return unknown(error),
            None => return Energy::default(),
        };
        let baseline = self.baseline.lock().unwrap_or_else(PoisonError::into_inner);
        let kind = |energy: &perjoule_meter::Energy| match energy.kind {
            Kind::Measured => EnergyKind::Measured,
            Kind::Modelled => EnergyKind::Modelled,
        };
        let interval = |[lo, hi]: [f64; 2]| Interval { lo, hi };
        let idle = |meter: &Arc<dyn Meter>| Some(baseline.idle(&meter.info().id)?.ok()?.watts);
        let reading = |(meter, energy): (&Arc<dyn Meter>, &Seen)| {
            let energy = energy.as_ref().ok()?;
            Some(Reading {
                source: energy.source.as_str().into(),
                boundary: energy.boundary.as_str().into(),
                kind: kind(energy),
                meter: meter.info().name.clone(),
                joules: energy.joules,
                ci95: Some(interval(energy.ci95)),
                net_joules: baseline.net(energy).ok().map(|net| net.joules),
                idle_power_w: idle(meter),
                window_s: energy.seconds,
            })
        };
        let meter = &self.meters[0];
        let mut source = format!("{}: {}", energy.source, meter.info().name);
        if energy.kind == Kind::Modelled && !energy.notes.is_empty() {
            source.push_str(". ");
            source.push_str(&energy.notes.join(" "));
        }
        Energy {
            joules: Some(energy.joules),
            net_joules: baseline.net(energy).ok().map(|net| net.joules),
            joules_per_call: (calls > 0).then(|| energy.joules / calls as f64),
            energy_kind: Some(kind(energy)),
            energy_source: Some(source),
            energy_boundary: Some(energy.boundary.as_str().into()),
            energy_ci95: Some(interval(energy.ci95)),
            energy_window_s: Some(energy.seconds),
            energy_period_s: Some(energy.update_period.as_secs_f64()),
            energy_calls: Some(calls),
            avg_power_w: Some(energy.watts()),
            idle_power_w: idle(meter),
            energies: Some(self.meters.iter().zip(seen).filter_map(reading).collect()),
            ..Energy::default()
        }
    }

    /// The columns of `calls` calls that took `seconds`, where the power is modelled as constant: then energy follows from time alone,
    /// and a window of its own would only add the noise of other calls.
    pub(crate) fn of_time(&self, seconds: f64, calls: u64) -> Option<Energy> {
        let first = perjoule_meter::Energy::of_constant(&*self.meters[0], seconds)?;
        Some(self.columns(&[Ok(first)], calls))
    }

    /// Length from which on a window is sound for every meter but those whose energy follows from use ([`Gauge::seen_of_use`]); zero where
    /// there are no others.
    pub(crate) fn sound(&self) -> Duration {
        self.longest(PER_WINDOW)
    }

    /// Length of a window in which the sampling uncertainty of every sensor is `relative` at most; zero without sensors.
    pub(crate) fn longest(&self, relative: f64) -> Duration {
        let sensors = self.meters.iter().filter(|meter| meter.watts_at(0.0).is_none());
        sensors.map(|meter| meter.info().window_for(relative)).max().unwrap_or(Duration::ZERO)
    }

    /// Number of meters.
    pub(crate) fn len(&self) -> usize {
        self.meters.len()
    }

    /// Whether sensors are among the meters.
    pub(crate) fn has_sensors(&self) -> bool {
        self.meters.iter().any(|meter| meter.watts_at(0.0).is_none())
    }

    /// What was seen, with the figures of models replaced by those of a known use: `utilisation` of the processors over `seconds`.
    pub(crate) fn seen_of_use(&self, mut seen: Vec<Seen>, seconds: f64, utilisation: f64) -> Vec<Seen> {
        for (meter, slot) in self.meters.iter().zip(&mut seen) {
            if let Some(energy) = perjoule_meter::Energy::of_utilisation(&**meter, seconds, utilisation) {
                *slot = Ok(energy);
            }
        }
        seen
    }

    /// Repeats `call` (some number of calls each) until the window is long enough for the meter, and takes the power at rest after it.
    /// `limit` is what there is time for; a slow meter stretches it, within reason.
    pub(crate) fn window_over(
        &self,
        limit: Duration,
        mut call: impl FnMut() -> Result<u64>,
    ) -> Result<Energy> {
        let length = self.window(limit);
        let info = self.meters[0].info();
        if info.min_window() > length {
            let (meter, seconds, needed) =
                (info.id.clone(), length.as_secs_f64(), info.min_window().as_secs_f64());
            return Ok(unknown(MeterError::TooShort { meter, seconds, needed }));
        }
        let (start, windows) = (Instant::now(), self.open());
        let (mut calls, mut rounds) = (0, 0);
        while rounds == 0 || start.elapsed() < length || (rounds < ROUNDS && start.elapsed() < limit) {
            if interrupted() {
                return Err(Interrupted.into());
            }
            calls += call()?;
            rounds += 1;
        }
        let seen = self.finish(windows);
        self.rest();
        Ok(self.columns(&seen, calls))
    }
}
