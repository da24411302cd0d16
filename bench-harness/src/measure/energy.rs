//! Joules of a device's work: its meter, its idle baseline, and windows around repeated calls.

use anyhow::Result;
use perjoule_kernels::{DeviceClass, DeviceInfo};
use perjoule_meter::{
    Baseline, Discovery, ExternalSource, Kind, Meter, MeterError, MeterInfo, Modelled, NeuronMaximum,
    Options, PowerModel, Source, Subject, Unavailable, Utilisation, Window, discover,
};
use perjoule_record::{Energy, EnergyKind, Environment, Interval, NoReading, Reading};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::cpu_power::{Machine, cpu_power};
use crate::measure::{Interrupted, interrupted};

/// Relative sampling uncertainty that windows aim at, and the one that they are stretched for beyond the time of the measurement.
pub(super) const UNCERTAINTY: f64 = 0.01;
const COARSE: f64 = 0.05;
/// Longest window, and longest pause, that is stretched for a slow meter.
const LONGEST: Duration = Duration::from_secs(10);
/// Relative sampling uncertainty up to which the window of a single run is sound.
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
    /// Meters of one boundary that watch different devices, by index: what they saw is added.
    groups: Vec<Vec<usize>>,
    /// What may stand in a record's own fields, best first: a meter, or a group.
    heads: Vec<Vec<usize>>,
    baseline: Mutex<Baseline>,
}

/// The measured meters of each boundary that do not overlap, where there are several: the boards of a machine. The first of them that was
/// found goes before one that overlaps it.
fn groups(meters: &[Arc<dyn Meter>]) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for (at, meter) in meters.iter().enumerate() {
        let info = meter.info();
        if info.kind != Kind::Measured {
            continue;
        }
        match groups.iter_mut().find(|group| meters[group[0]].info().boundary == info.boundary) {
            None => groups.push(vec![at]),
            Some(group) if group.iter().any(|other| meters[*other].info().overlaps(info)) => {}
            Some(group) => group.push(at),
        }
    }
    groups.retain(|group| group.len() > 1);
    groups
}

/// The first meter, with those of its group, and behind it measured ones that hold all that it sees: they stand in for it where it is too slow.
fn heads(meters: &[Arc<dyn Meter>], groups: &[Vec<usize>]) -> Vec<Vec<usize>> {
    let Some(first) = meters.first().map(|meter| meter.info()) else { return Vec::new() };
    let holds = |info: &MeterInfo| {
        info.kind == Kind::Measured && info.boundary.contains(first.boundary) && info.overlaps(first)
    };
    let own = groups.iter().find(|group| group[0] == 0).cloned().unwrap_or_else(|| vec![0]);
    let others = (1..meters.len()).filter(|at| !own.contains(at) && holds(meters[*at].info()));
    let others: Vec<_> = others.map(|at| vec![at]).collect();
    std::iter::once(own).chain(others).collect()
}

/// What a group is called: `3 boards`.
fn name_of_group(boundary: perjoule_meter::Boundary, n: usize) -> String {
    match boundary {
        perjoule_meter::Boundary::Battery => format!("{n} batteries"),
        perjoule_meter::Boundary::Dram => format!("{n} memories"),
        other => format!("{n} {other}s"),
    }
}

/// What one meter saw, or why it could not tell.
pub(super) type Seen = std::result::Result<perjoule_meter::Energy, String>;

/// Open windows, one for each meter.
pub(crate) struct Windows(Vec<perjoule_meter::Result<Window>>);

fn kind(energy: &perjoule_meter::Energy) -> EnergyKind {
    match energy.kind {
        Kind::Measured => EnergyKind::Measured,
        Kind::Modelled => EnergyKind::Modelled,
    }
}

fn interval([lo, hi]: [f64; 2]) -> Interval {
    Interval { lo, hi }
}

impl Gauge {
    /// Takes the idle baseline; the machine should be quiet. `None` without meters.
    pub(crate) fn new(meters: Vec<Arc<dyn Meter>>) -> Option<Self> {
        // a meter that tells something once a minute would hold the run up for many: its net joules stay unknown
        let quick = |meter: &&Arc<dyn Meter>| 2 * meter.info().min_window() <= LONGEST;
        let quick: Vec<Arc<dyn Meter>> = meters.iter().filter(quick).cloned().collect();
        let baseline = Mutex::new(Baseline::before(&quick, IDLE_WINDOW));
        let groups = groups(&meters);
        let heads = heads(&meters, &groups);
        (!meters.is_empty()).then_some(Gauge { groups, heads, meters, baseline })
    }

    /// The sensor whose figures stand in a record's own fields; `None` where they are modelled.
    pub(crate) fn sensor(&self) -> Option<Arc<dyn Meter>> {
        self.meters.first().filter(|meter| meter.info().kind == Kind::Measured).cloned()
    }

    /// How long a pause for the power at rest takes; zero where all meters know it.
    pub(crate) fn pause(&self) -> Duration {
        self.baseline.lock().unwrap_or_else(PoisonError::into_inner).pause()
    }

    /// Length that a window has where the measurement leaves `limit` for it: what the slowest meter needs for a narrow interval, at least
    /// what it needs for a coarse one, but no more than [`LONGEST`] beyond the limit. A meter that tells nothing even then is not waited for.
    fn window(&self, limit: Duration) -> Duration {
        let most = limit.max(LONGEST);
        let need = |relative| {
            let infos = self.meters.iter().map(|meter| meter.info()).filter(|info| info.min_window() <= most);
            infos.map(|info| info.window_for(relative)).max().unwrap_or_default()
        };
        need(UNCERTAINTY).min(limit).max(need(COARSE).min(most)).max(SHORTEST)
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

    /// The meters of a record's own fields: the best that told something in all of these windows, else the best of all.
    pub(super) fn heads(&self, windows: &[Vec<Seen>]) -> &[usize] {
        let told = |head: &&Vec<usize>| {
            windows.iter().all(|seen| seen.is_empty() || self.together(head, seen).is_ok())
        };
        self.heads.iter().find(told).unwrap_or(&self.heads[0])
    }

    /// What several meters saw together.
    pub(super) fn together(&self, group: &[usize], seen: &[Seen]) -> Seen {
        let of = |at: &usize| match seen.get(*at) {
            Some(Err(reason)) if group.len() > 1 => {
                Err(format!("{}: {reason}", self.meters[*at].info().name))
            }
            Some(seen) => seen.clone(),
            None => Err("it was not measured".to_owned()),
        };
        let mut parts = group.iter().map(of).collect::<Result<Vec<_>, String>>()?;
        if parts.len() == 1 {
            return Ok(parts.remove(0));
        }
        let different = || "its meters cannot be added".to_owned();
        perjoule_meter::Energy::of_meters(&parts).ok_or_else(different)
    }

    /// What some meters saw together, as a reading.
    fn reading(&self, baseline: &Baseline, group: &[usize], seen: &[Seen]) -> Option<Reading> {
        let energy = self.together(group, seen).ok()?;
        let net = self.net(baseline, group, seen);
        let info = self.meters[group[0]].info();
        Some(Reading {
            source: energy.source.as_str().into(),
            boundary: energy.boundary.as_str().into(),
            kind: kind(&energy),
            meter: match group.len() {
                1 => info.name.clone(),
                n => name_of_group(info.boundary, n),
            },
            joules: energy.joules,
            ci95: Some(interval(energy.ci95)),
            net_joules: net.as_ref().map(|net| net.joules),
            net_ci95: net.map(|net| interval(net.ci95)),
            idle_power_w: self.idle(baseline, group),
            window_s: energy.seconds,
            // those of a sum stand beside its parts
            notes: (group.len() == 1 && !energy.notes.is_empty()).then_some(energy.notes),
        })
    }

    /// What some meters saw together above their power at rest.
    fn net(&self, baseline: &Baseline, group: &[usize], seen: &[Seen]) -> Option<perjoule_meter::Energy> {
        let of = |at: &usize| baseline.net(seen.get(*at)?.as_ref().ok()?).ok();
        let mut parts = group.iter().map(of).collect::<Option<Vec<_>>>()?;
        if parts.len() == 1 { parts.pop() } else { perjoule_meter::Energy::of_meters(&parts) }
    }

    /// Power at rest of some meters together.
    fn idle(&self, baseline: &Baseline, group: &[usize]) -> Option<f64> {
        let of = |at: &usize| Some(baseline.idle(&self.meters[*at].info().id)?.ok()?.watts);
        group.iter().map(of).sum()
    }

    /// The columns of `calls` calls: joules, or why the best meter could not tell. What other meters saw is there in any case.
    pub(crate) fn columns(&self, seen: Vec<Seen>, calls: u64) -> Energy {
        let windows = [seen];
        self.columns_of(self.heads(&windows), &windows[0], calls)
    }

    /// As [`Gauge::columns`], with these meters in the record's own fields.
    pub(super) fn columns_of(&self, heads: &[usize], seen: &[Seen], calls: u64) -> Energy {
        if seen.is_empty() {
            return Energy::default();
        }
        let baseline = self.baseline.lock().unwrap_or_else(PoisonError::into_inner);
        let mut readings = Vec::new();
        let first = heads[0];
        for at in std::iter::once(first).chain((0..self.meters.len()).filter(|at| *at != first)) {
            let group = self.groups.iter().find(|group| group[0] == at);
            readings.extend(group.and_then(|group| self.reading(&baseline, group, seen)));
            readings.extend(self.reading(&baseline, &[at], seen));
        }
        let beside = Energy {
            energies: (!readings.is_empty()).then_some(readings),
            energies_unknown: self.without_reading(seen),
            energy_calls: (calls > 0).then_some(calls),
            ..Energy::default()
        };
        let energy = match self.together(heads, seen) {
            Ok(energy) => energy,
            Err(reason) => return Energy { energy_unknown: Some(reason), ..beside },
        };
        let name = match heads.len() {
            1 => self.meters[first].info().name.clone(),
            n => {
                let names = heads.iter().map(|at| self.meters[*at].info().name.as_str());
                let names = names.collect::<Vec<_>>().join(", ");
                format!("{} ({names})", name_of_group(energy.boundary, n))
            }
        };
        let mut source = format!("{}: {name}", energy.source);
        if energy.kind == Kind::Modelled && !energy.notes.is_empty() {
            source.push_str(". ");
            source.push_str(&energy.notes.join(" "));
        }
        let net = self.net(&baseline, heads, seen);
        Energy {
            joules: Some(energy.joules),
            net_joules: net.as_ref().map(|net| net.joules),
            net_joules_ci95: net.map(|net| interval(net.ci95)),
            joules_per_call: (calls > 0).then(|| energy.joules / calls as f64),
            energy_kind: Some(kind(&energy)),
            energy_source: Some(source),
            energy_boundary: Some(energy.boundary.as_str().into()),
            energy_ci95: Some(interval(energy.ci95)),
            energy_window_s: Some(energy.seconds),
            energy_period_s: Some(energy.update_period.as_secs_f64()),
            energy_calls: Some(calls),
            avg_power_w: Some(energy.watts()),
            idle_power_w: self.idle(&baseline, heads),
            ..beside
        }
    }

    /// The meters that could tell nothing, and why.
    fn without_reading(&self, seen: &[Seen]) -> Option<Vec<NoReading>> {
        let failed = self.meters.iter().zip(seen).filter_map(|(meter, seen)| {
            let (info, reason) = (meter.info(), seen.as_ref().err()?);
            Some(NoReading {
                source: info.source.as_str().into(),
                boundary: info.boundary.as_str().into(),
                meter: info.name.clone(),
                reason: reason.clone(),
            })
        });
        let list: Vec<_> = failed.collect();
        (!list.is_empty()).then_some(list)
    }

    /// The columns of `calls` calls that took `seconds`, where the power is modelled as constant: then energy follows from time alone,
    /// and a window of its own would only add the noise of other calls.
    pub(crate) fn of_time(&self, seconds: f64, calls: u64) -> Option<Energy> {
        let first = perjoule_meter::Energy::of_constant(&*self.meters[0], seconds)?;
        Some(self.columns(vec![Ok(first)], calls))
    }

    /// Length from which on a window is sound for the meters of a record's own fields; zero where their energy follows from use
    /// ([`Gauge::seen_of_use`]). Others tell what they can in such a window. `limit` is the longest that there is time for: a meter that
    /// tells nothing in it gives way to the next.
    pub(crate) fn sound(&self, limit: Duration) -> Duration {
        self.of_sensors(self.heads_within(limit), |info| info.window_for(PER_WINDOW))
    }

    /// Length of a window below which the meters of a record's own fields tell nothing.
    pub(crate) fn least(&self, limit: Duration) -> Duration {
        self.least_of(self.heads_within(limit))
    }

    /// The best meters that tell something in a window of `limit`, else the best of all.
    fn heads_within(&self, limit: Duration) -> &[usize] {
        let tells = |head: &&Vec<usize>| self.least_of(head) <= limit;
        self.heads.iter().find(tells).unwrap_or(&self.heads[0])
    }

    fn least_of(&self, meters: &[usize]) -> Duration {
        // a sensor of power needs three readings
        self.of_sensors(meters, |info| {
            info.min_window().max(3 * info.poll_every.unwrap_or_default().min(info.update_period))
        })
    }

    fn of_sensors(&self, meters: &[usize], of: impl Fn(&MeterInfo) -> Duration) -> Duration {
        let meters = meters.iter().map(|at| &self.meters[*at]);
        let sensors = meters.filter(|meter| meter.watts_at(0.0).is_none());
        sensors.map(|meter| of(meter.info())).max().unwrap_or(Duration::ZERO)
    }

    /// Whether a window for which the measurement leaves `limit` ([`Gauge::window_over`]) may tell joules of a better meter than was seen.
    pub(crate) fn is_worth_a_window(&self, seen: &[Seen], limit: Duration) -> bool {
        let length = self.window(limit);
        let mut silent = self.heads.iter().take_while(|head| self.together(head, seen).is_err());
        silent.any(|head| self.least_of(head) <= length)
    }

    /// Length of a window in which the sampling uncertainty of every sensor is [`UNCERTAINTY`] at most; zero without sensors.
    pub(crate) fn narrow(&self) -> Duration {
        let sensors = self.meters.iter().filter(|meter| meter.watts_at(0.0).is_none());
        sensors.map(|meter| meter.info().window_for(UNCERTAINTY)).max().unwrap_or(Duration::ZERO)
    }

    /// What is seen where nothing was measured for `reason`.
    pub(crate) fn nothing(&self, reason: &str) -> Vec<Seen> {
        self.meters.iter().map(|_| Err(reason.to_owned())).collect()
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
        if self.meters.iter().all(|meter| meter.info().min_window() > length) {
            let seconds = length.as_secs_f64();
            let short = |info: &MeterInfo| {
                let (meter, needed) = (info.id.clone(), info.min_window().as_secs_f64());
                Err(MeterError::TooShort { meter, seconds, needed }.to_string())
            };
            return Ok(self.columns(self.meters.iter().map(|meter| short(meter.info())).collect(), 0));
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
        Ok(self.columns(seen, calls))
    }
}

#[cfg(test)]
mod tests;
