//! AWS Neuron devices. They report power as a percentage of a maximum that AWS does not publish, so the user states
//! that maximum in watts and every figure is modelled, with the band that the user gives.
//!
//! Two ways in: the driver's file `neuronN/stats/power/utilization` (`STATUS,time,min,max,mean` in percent, taken
//! anew once a minute, by the driver's source), and a stream of JSON records, one a line, as `neuron-monitor`
//! writes. Where in a record the percentage stands differs between releases, so the caller names it by a JSON
//! pointer (RFC 6901).

#[cfg(feature = "neuron")]
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::discover::{Discovery, Unavailable};
use crate::error::{MeterError, Result};
use crate::feed::Feed;
use crate::meter::{Meter, MeterInfo, Sample, Subject};
use crate::quantity::{Band, Boundary, Kind, Source};
use crate::sysfs;

/// Where the driver keeps its devices.
pub const NEURON_ROOT: &str = "/sys/devices/virtual/neuron_device";

/// How often the driver takes a new mean.
const DRIVER_PERIOD: Duration = Duration::from_secs(60);

/// A reading older than this many periods is none.
const STALE_PERIODS: u32 = 3;

/// The maximum that percentages refer to, as the user states it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NeuronMaximum {
    /// Watts of one device at 100 %.
    pub watts: f64,
    /// 95 % band, as factors of the modelled power: how well the maximum is known.
    pub band: Band,
}

impl NeuronMaximum {
    /// A maximum of which little is known: between half and 1.3 times the result.
    pub fn new(watts: f64) -> NeuronMaximum {
        NeuronMaximum { watts, band: Band { low: 0.5, high: 1.3 } }
    }

    /// Refuses watts and bands that no device has.
    ///
    /// # Errors
    /// [`MeterError::Parameter`] with what is expected.
    pub fn check(&self) -> Result<()> {
        let check = |name, value: f64, ok: bool, expected| {
            if ok { Ok(()) } else { Err(MeterError::Parameter { name, value: value.to_string(), expected }) }
        };
        let Band { low, high } = self.band;
        check("watts", self.watts, (1.0..=1e5).contains(&self.watts), "watts in 1..=100000")?;
        check("band.low", low, low > 0.0 && low <= 1.0, "a factor in (0, 1]")?;
        check("band.high", high, (1.0..=100.0).contains(&high), "a factor in 1..=100")
    }
}

/// One Neuron device, or whatever the percentage of a JSON stream stands for.
#[derive(Debug)]
pub struct Neuron {
    info: MeterInfo,
    maximum: NeuronMaximum,
    percent: Percent,
}

#[derive(Debug)]
enum Percent {
    File(PathBuf),
    #[cfg_attr(not(feature = "neuron"), expect(dead_code, reason = "made by the JSON reader"))]
    Stream(Arc<Feed<f64>>),
}

impl Neuron {
    /// The devices under `root` (normally [`NEURON_ROOT`]).
    pub fn discover(root: &Path, maximum: Option<NeuronMaximum>) -> Discovery {
        let mut found = Discovery::default();
        let mut unavailable = |what: String, reason: String, fix: Option<&str>| {
            let fix = fix.map(str::to_owned);
            found.unavailable.push(Unavailable { origin: Source::ModelledNeuron, what, reason, fix });
        };
        let mut devices = Vec::new();
        for dir in sysfs::entries(root) {
            let file = dir.join("stats/power/utilization");
            if file.exists() {
                devices.push((sysfs::file_name(&dir), file));
            }
        }
        if devices.is_empty() {
            let reason = format!("{} has no device that reports power", root.display());
            let fix = "on an Inf or Trn instance: install the package aws-neuronx-dkms";
            unavailable("AWS Neuron devices".into(), reason, Some(fix));
            return found;
        }
        let Some(maximum) = maximum else {
            let reason = "power is a percentage of a maximum that AWS does not publish".into();
            let fix = "state the maximum of one device in watts (Options::neuron): the result is modelled";
            unavailable("AWS Neuron devices".into(), reason, Some(fix));
            return found;
        };
        for (name, file) in devices {
            let meter = Neuron::new(&name, DRIVER_PERIOD, maximum, Percent::File(file));
            match meter.and_then(|meter| meter.read().map(|_| meter)) {
                Ok(meter) => found.meters.push(Arc::new(meter)),
                Err(e) => found.unavailable.push(Unavailable::from_error(Source::ModelledNeuron, name, &e)),
            }
        }
        found
    }

    /// A meter of the percentage at `pointer` in each line of JSON that `reader` gives, such as the standard output
    /// of `neuron-monitor`. `period` is the one that its configuration asks for. Waits up to three periods for the
    /// first record.
    ///
    /// # Errors
    /// [`MeterError::Parameter`] for a maximum or period out of range, [`MeterError::Absent`] when no record with a
    /// percentage comes in time.
    #[cfg(feature = "neuron")]
    pub fn from_json(
        name: &str,
        reader: impl Read + Send + 'static,
        pointer: &str,
        period: Duration,
        maximum: NeuronMaximum,
    ) -> Result<Neuron> {
        /// A record of a machine with 16 devices is some 100 kB.
        const LINE_LIMIT: usize = 4 << 20;
        let expected = "in 0.01..=3600 s";
        if !(Duration::from_millis(10)..=Duration::from_secs(3600)).contains(&period) {
            return Err(MeterError::Parameter { name: "period", value: format!("{period:?}"), expected });
        }
        let feed = Arc::new(Feed::new());
        let meter = Neuron::new(name, period, maximum, Percent::Stream(feed.clone()))?;
        let shared = Arc::downgrade(&feed);
        let at = pointer.to_owned();
        let absent = |reason| MeterError::Absent { origin: Source::ModelledNeuron, reason };
        std::thread::Builder::new()
            .name("neuron-meter".into())
            .spawn(move || {
                let read = crate::feed::each_line(reader, LINE_LIMIT, |line| {
                    let Some(feed) = shared.upgrade() else { return false };
                    let percent = match line {
                        crate::feed::Line::Text("") => return true,
                        crate::feed::Line::Text(text) => serde_json::from_str::<serde_json::Value>(text).ok(),
                        crate::feed::Line::Garbage => None,
                    };
                    let percent = percent.and_then(|record| record.pointer(&at)?.as_f64());
                    match percent.filter(|percent| (0.0..=100.0).contains(percent)) {
                        Some(percent) => feed.put(std::time::Instant::now(), percent),
                        None => feed.fault(),
                    }
                    true
                });
                if let Some(feed) = shared.upgrade() {
                    feed.end(match read {
                        Ok(()) => "the stream of records ended".into(),
                        Err(e) => format!("the stream of records failed: {e}"),
                    });
                }
            })
            .map_err(|e| absent(format!("cannot start the reading thread: {e}")))?;
        let state = feed.wait(STALE_PERIODS * period);
        if state.latest.is_none() {
            let faults = state.faults;
            let ended = state.ended.clone().unwrap_or_else(|| "none came in time".into());
            let reason =
                format!("{name}: no record with a percentage at {pointer}: {ended}, {faults} without");
            return Err(absent(reason));
        }
        drop(state);
        Ok(meter)
    }

    fn new(name: &str, period: Duration, maximum: NeuronMaximum, percent: Percent) -> Result<Neuron> {
        maximum.check()?;
        let id = format!("{}:{name}", Source::ModelledNeuron);
        let mut info = MeterInfo::new(id, Source::ModelledNeuron, Boundary::Chip, Subject::Gpu);
        info.name = format!("AWS Neuron {name}");
        info.kind = Kind::Modelled;
        info.device = Some(name.to_owned());
        info.update_period = period;
        info.poll_every = Some(period / 2);
        info.accuracy = maximum.band;
        info.notes.push(format!(
            "Modelled, not measured: percent of an unpublished maximum, taken to be {} W, within {:.2}..{:.2} times that.",
            maximum.watts, maximum.band.low, maximum.band.high,
        ));
        Ok(Neuron { info, maximum, percent })
    }
}

impl Meter for Neuron {
    fn info(&self) -> &MeterInfo {
        &self.info
    }

    fn read(&self) -> Result<Sample> {
        let lost = |reason| MeterError::Lost { meter: self.info.id.clone(), reason };
        let stale = STALE_PERIODS * self.info.update_period;
        let percent = match &self.percent {
            Percent::File(path) => {
                let text = sysfs::read_file(path).map_err(|e| {
                    MeterError::io(path, e, || format!("`sudo chmod a+r {}`", path.display()))
                })?;
                let (status, taken, mean) = parse(text.trim()).ok_or_else(|| MeterError::Malformed {
                    path: path.clone(),
                    found: text.trim().chars().take(60).collect(),
                    expected: "STATUS,time,min,max,mean",
                })?;
                if status != "POWER_STATUS_VALID" {
                    return Err(lost(format!("the driver says {status}")));
                }
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                let age = now.saturating_sub(Duration::from_secs(taken));
                if age > stale {
                    return Err(lost(format!("the driver's last mean is {} s old", age.as_secs())));
                }
                mean
            }
            Percent::Stream(feed) => {
                let state = feed.lock();
                if let Some(reason) = &state.ended {
                    return Err(lost(reason.clone()));
                }
                match state.latest {
                    Some((at, percent)) if at.elapsed() <= stale => percent,
                    _ => return Err(lost(format!("no record came for {:.1} s", stale.as_secs_f64()))),
                }
            }
        };
        Ok(Sample::Watts(self.maximum.watts * percent / 100.0))
    }

    fn faults(&self) -> u64 {
        match &self.percent {
            Percent::File(_) => 0,
            Percent::Stream(feed) => feed.lock().faults,
        }
    }
}

/// Status, time in seconds since 1970, and mean percentage.
fn parse(text: &str) -> Option<(&str, u64, f64)> {
    let fields: Vec<&str> = text.split(',').map(str::trim).collect();
    let [status, time, _, _, mean] = fields[..] else { return None };
    let mean: f64 = mean.parse().ok()?;
    (0.0..=100.0).contains(&mean).then_some((status, time.parse().ok()?, mean))
}
