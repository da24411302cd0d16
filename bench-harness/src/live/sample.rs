//! Reads all sources into a plain [`Reading`].

use perjoule_meter::{Boundary, DeviceState, Kind, Meter, MeterInfo, Subject};
use serde::Serialize;
use std::fs::read_to_string;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use super::cpu::{self, Clocks, Sensors, Ticks};
use super::gpu::{Card, Neuron};
use super::power::Probe;
use crate::report::one_line;

/// What the machine does at one moment.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Reading {
    /// RFC 3339 in UTC.
    pub(crate) time: Option<String>,
    /// Since the first reading.
    pub(crate) seconds: f64,
    /// The processor first.
    pub(crate) devices: Vec<DeviceReading>,
}

/// What a part of the machine is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Part {
    /// The processor packages.
    #[default]
    Cpu,
    /// Main memory.
    Memory,
    /// An accelerator.
    Gpu,
    /// The whole machine.
    Machine,
    /// Something else that has a meter.
    Other,
}

/// What one part of the machine does. A field that cannot be read is `None`, null in JSON.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct DeviceReading {
    /// Short and unique, such as `cpu` or `gpu0`.
    pub(crate) id: String,
    /// What it is.
    pub(crate) part: Part,
    /// For people.
    pub(crate) name: String,
    /// Every meter that watches it, the best first. Figures of different boundaries contain one another and are never added.
    pub(crate) power: Vec<Power>,
    /// Share of the time in which it worked, 0..=1.
    pub(crate) utilisation: Option<f64>,
    /// The same of each processor; empty for what has none.
    pub(crate) cores: Vec<f64>,
    /// Clocks.
    pub(crate) clock_mhz: Option<Clocks>,
    /// Clock of its memory.
    pub(crate) memory_clock_mhz: Option<f64>,
    /// Highest temperature.
    pub(crate) temperature_c: Option<f64>,
    /// Bytes in use.
    pub(crate) memory_used: Option<u64>,
    /// Bytes in all.
    pub(crate) memory_total: Option<u64>,
    /// How often it was throttled since the first reading.
    pub(crate) throttled: Option<f64>,
    /// Why its clocks are lowered now; empty when nothing lowers them.
    pub(crate) throttle_reasons: Option<Vec<String>>,
    /// Power that it is held below.
    pub(crate) power_limit_w: Option<f64>,
    /// Power as a share of a maximum that its vendor does not publish.
    pub(crate) power_share: Option<f64>,
    /// Speed of its fastest fan as a share of the highest.
    pub(crate) fan: Option<f64>,
}

/// What one meter shows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Power {
    /// The meter's name for people.
    pub(crate) meter: String,
    /// Where it comes from.
    pub(crate) source: &'static str,
    /// What it contains.
    pub(crate) boundary: &'static str,
    /// `measured` or `modelled`.
    pub(crate) kind: &'static str,
    /// Mean power since the reading before; the last one known when the meter had nothing new. Null: unknown.
    pub(crate) watts: Option<f64>,
    /// Energy since the first reading.
    pub(crate) joules: Option<f64>,
    /// Time since `watts` was new.
    pub(crate) age_s: Option<f64>,
    /// Why `watts` is unknown.
    pub(crate) unknown: Option<String>,
}

impl DeviceReading {
    /// The power that stands for the device: that of its best meter.
    pub(crate) fn watts(&self) -> Option<f64> {
        self.power.first()?.watts
    }

    fn fill(&mut self, state: DeviceState) {
        self.utilisation = state.utilisation;
        self.memory_used = state.memory_used;
        self.memory_total = state.memory_total;
        self.clock_mhz = state.clock_mhz.map(|mhz| Clocks { min: mhz, mean: mhz, max: mhz });
        self.memory_clock_mhz = state.memory_clock_mhz;
        self.temperature_c = state.temperature_c;
        self.power_limit_w = state.power_limit_w;
        self.fan = state.fan;
        self.throttle_reasons =
            state.throttle_reasons.map(|list| list.into_iter().map(str::to_owned).collect());
    }
}

/// Where to read, so that tests can have trees of their own.
#[derive(Debug, Clone)]
pub(crate) struct Roots {
    /// Normally `/sys`.
    pub(crate) sys: PathBuf,
    /// Normally `/proc`.
    pub(crate) proc: PathBuf,
}

impl Default for Roots {
    fn default() -> Self {
        Roots { sys: "/sys".into(), proc: "/proc".into() }
    }
}

/// A meter, and the last power that it gave.
#[derive(Debug)]
struct Watched {
    probe: Probe,
    last: Option<(f64, Instant)>,
}

/// A device before its state is read.
#[derive(Debug)]
enum Accelerator {
    /// Known by its meters alone: the first of these may tell its state.
    Metered(String),
    Card(Card),
    Neuron(Neuron),
}

impl Accelerator {
    fn device(&self) -> &str {
        match self {
            Accelerator::Metered(device) => device,
            Accelerator::Card(card) => &card.pci,
            Accelerator::Neuron(neuron) => &neuron.name,
        }
    }
}

/// Reads the machine again and again.
#[derive(Debug)]
pub(crate) struct Sampler {
    roots: Roots,
    cpu_name: String,
    start: Instant,
    sensors: Sensors,
    throttled: Option<f64>,
    ticks: Ticks,
    meters: Vec<Watched>,
    accelerators: Vec<Accelerator>,
}

impl Sampler {
    /// A sampler of these meters and of all that the trees below `roots` show.
    pub(crate) fn new(meters: &[Arc<dyn Meter>], cpu_name: &str, roots: Roots) -> Self {
        let sensors = Sensors::find(&roots.sys);
        let mut accelerators: Vec<Accelerator> =
            Card::find(&roots.sys).into_iter().map(Accelerator::Card).collect();
        accelerators.extend(Neuron::find(&roots.sys).into_iter().map(Accelerator::Neuron));
        let mut metered = Vec::new();
        for info in meters.iter().map(|meter| meter.info()).filter(|info| info.subject == Subject::Gpu) {
            let device = info.device.as_ref().unwrap_or(&info.id);
            let known = |list: &[Accelerator]| list.iter().any(|other| other.device() == device);
            if !known(&accelerators) && !known(&metered) {
                metered.push(Accelerator::Metered(device.clone()));
            }
        }
        metered.append(&mut accelerators);
        let watched = |meter: &Arc<dyn Meter>| Watched { probe: Probe::new(meter.clone()), last: None };
        let mut sampler = Sampler {
            cpu_name: one_line(cpu_name),
            start: Instant::now(),
            throttled: sensors.throttled(),
            ticks: Ticks::parse(&read_to_string(roots.proc.join("stat")).unwrap_or_default()),
            sensors,
            meters: relevant(meters).map(watched).collect(),
            accelerators: metered,
            roots,
        };
        sampler.meters.iter_mut().for_each(|meter| meter.probe.poll());
        sampler
    }

    /// Reads the meters that want to be read between two readings.
    pub(crate) fn poll(&mut self) {
        self.meters.iter_mut().for_each(|meter| meter.probe.poll_within());
    }

    /// When a meter wants that next.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.meters.iter().filter_map(|meter| meter.probe.due()).min()
    }

    /// What of the processor cannot be read here, for people.
    pub(crate) fn missing(&self) -> Vec<String> {
        let tree = self.roots.sys.display();
        let line =
            |what: &str| format!("{what} of the processor: not below {tree}, as in most virtual machines");
        self.sensors.missing().into_iter().map(line).collect()
    }

    /// The machine now.
    pub(crate) fn reading(&mut self) -> Reading {
        self.meters.iter_mut().for_each(|meter| meter.probe.poll());
        let now = Instant::now();
        for meter in &mut self.meters {
            match (meter.probe.take(), meter.probe.error()) {
                (Some(watts), _) => meter.last = Some((watts, meter.probe.read_at().unwrap_or(now))),
                (None, Some(_)) => meter.last = None,
                (None, None) => {}
            }
        }
        let mut devices = vec![self.cpu(now), self.memory(now)];
        devices.extend(self.accelerators.iter().enumerate().map(|(i, gpu)| self.accelerator(i, gpu, now)));
        for (part, subject, id, name) in [
            (Part::Machine, Subject::System, "machine", "all that one meter sees"),
            (Part::Other, Subject::Other, "other", "rails of unknown scope"),
        ] {
            let power = self.power(|info| info.subject == subject, now);
            if !power.is_empty() {
                devices.push(DeviceReading {
                    id: id.into(),
                    part,
                    name: name.into(),
                    power,
                    ..Default::default()
                });
            }
        }
        let epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok();
        let time = epoch.map(|since| perjoule_record::rfc3339(since.as_secs()));
        Reading { time, seconds: now.duration_since(self.start).as_secs_f64(), devices }
    }

    /// What the meters that `of` picks show, widest boundary within the part first.
    fn power(&self, of: impl Fn(&MeterInfo) -> bool, now: Instant) -> Vec<Power> {
        let mut list: Vec<(u8, Power)> = Vec::new();
        for watched in &self.meters {
            let info = watched.probe.meter().info();
            if !of(info) {
                continue;
            }
            let unknown = match (&watched.last, watched.probe.error()) {
                (None, Some(error)) => Some(one_line(error)),
                (None, None) => Some("not yet: it needs more time".into()),
                _ => None,
            };
            let power = Power {
                meter: one_line(&info.name),
                source: info.source.as_str(),
                boundary: info.boundary.as_str(),
                kind: info.kind.as_str(),
                watts: watched.last.map(|(watts, _)| watts),
                joules: watched.probe.joules(),
                age_s: watched.last.map(|(_, at)| now.saturating_duration_since(at).as_secs_f64()),
                unknown,
            };
            list.push((rank(info.boundary), power));
        }
        list.sort_by_key(|(rank, _)| *rank);
        list.into_iter().map(|(_, power)| power).collect()
    }

    fn cpu(&mut self, now: Instant) -> DeviceReading {
        let ticks = Ticks::parse(&read_to_string(self.roots.proc.join("stat")).unwrap_or_default());
        let (utilisation, cores) = ticks.since(&self.ticks);
        self.ticks = ticks;
        DeviceReading {
            id: "cpu".into(),
            part: Part::Cpu,
            name: self.cpu_name.clone(),
            power: self.power(|info| info.subject == Subject::Cpu, now),
            utilisation,
            cores,
            clock_mhz: self.sensors.clocks(),
            temperature_c: self.sensors.temperature(),
            throttled: self
                .throttled
                .zip(self.sensors.throttled())
                .map(|(before, now)| (now - before).max(0.0)),
            ..DeviceReading::default()
        }
    }

    fn memory(&self, now: Instant) -> DeviceReading {
        let memory = cpu::memory(&read_to_string(self.roots.proc.join("meminfo")).unwrap_or_default());
        DeviceReading {
            id: "memory".into(),
            part: Part::Memory,
            name: "main memory".into(),
            power: self.power(|info| info.subject == Subject::Memory, now),
            memory_used: memory.map(|(used, _)| used),
            memory_total: memory.map(|(_, total)| total),
            ..DeviceReading::default()
        }
    }

    fn accelerator(&self, index: usize, gpu: &Accelerator, now: Instant) -> DeviceReading {
        let device = gpu.device();
        let is_it = |info: &MeterInfo| {
            info.subject == Subject::Gpu && info.device.as_ref().unwrap_or(&info.id) == device
        };
        let mut reading = DeviceReading {
            id: format!("gpu{index}"),
            part: Part::Gpu,
            power: self.power(is_it, now),
            ..DeviceReading::default()
        };
        match gpu {
            Accelerator::Metered(device) => {
                let meters =
                    || self.meters.iter().map(|w| w.probe.meter()).filter(|meter| is_it(meter.info()));
                let name = meters().next().map_or(device.as_str(), |meter| meter.info().name.as_str());
                reading.name = one_line(name);
                reading.fill(meters().find_map(|meter| meter.state()).unwrap_or_default());
            }
            Accelerator::Card(card) => {
                reading.name = one_line(&card.name);
                reading.fill(card.state());
            }
            Accelerator::Neuron(neuron) => {
                reading.name = format!("AWS Neuron {}", neuron.name);
                reading.fill(neuron.state());
                reading.power_share = neuron.power_share();
            }
        }
        reading
    }
}

/// Order of boundaries within one part: the whole of it first.
fn rank(boundary: Boundary) -> u8 {
    match boundary {
        Boundary::Wall => 0,
        Boundary::Battery => 1,
        Boundary::Platform => 2,
        Boundary::Module => 3,
        Boundary::Board | Boundary::Package | Boundary::Dram => 4,
        Boundary::Chip => 5,
        _ => 6,
    }
}

/// The meters without models of what is measured.
fn relevant(meters: &[Arc<dyn Meter>]) -> impl Iterator<Item = &Arc<dyn Meter>> {
    let whole =
        |info: &MeterInfo| matches!(info.boundary, Boundary::Package | Boundary::Chip | Boundary::Board);
    let measured = move |info: &MeterInfo| {
        let same = |other: &MeterInfo| other.subject == info.subject && other.device == info.device;
        let mut others = meters.iter().map(|meter| meter.info());
        others.any(|other| other.kind == Kind::Measured && same(other) && whole(other))
    };
    meters.iter().filter(move |meter| meter.info().kind == Kind::Measured || !measured(meter.info()))
}
