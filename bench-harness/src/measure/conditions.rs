//! The state of what works beside a measurement: clocks and temperatures, read now and then, how often it was throttled, and the power that
//! the meter of its energy shows meanwhile. Of a GPU it is what its meter tells, and never the processor's; of the processor what the
//! system tells.
//!
//! Where nothing can be measured, as in most virtual machines, nothing runs beside the measurement.

use perjoule_kernels::{DeviceClass, DeviceInfo};
use perjoule_meter::Meter;
use perjoule_record::{Conditions, Record, Trace};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::disturbance;
use crate::live::cpu::Sensors;
use crate::live::power::Probe;

/// Time between two readings: seldom enough to be nothing beside the work.
const EVERY: Duration = Duration::from_millis(200);

/// What was seen at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Point {
    /// Seconds since watching began.
    t: f64,
    watts: Option<f64>,
    clock: Option<f64>,
    temperature: Option<f64>,
}

/// Watches from its creation on.
pub(crate) struct Watch {
    load: disturbance::Watch,
    sensors: Sensors,
    throttled: Option<f64>,
    meter: Option<String>,
    reader: Option<(Sender<()>, JoinHandle<Seen>)>,
}

/// All that was seen.
#[derive(Debug, Default)]
struct Seen {
    points: Vec<Point>,
    /// Why the meter's device ran slower than it could, in the order of their first appearance; `None` where it does not tell.
    throttled: Option<Vec<&'static str>>,
}

impl Watch {
    /// Begins to watch work of the processor; `meter` is the sensor whose power belongs to the record, if there is one.
    pub(crate) fn start(meter: Option<Arc<dyn Meter>>) -> Self {
        Self::of(Sensors::find(Path::new("/sys")), meter, EVERY)
    }

    /// Begins to watch work of a device: the clock of a processor that waits for a GPU says nothing.
    pub(crate) fn beside(device: &DeviceInfo, meter: Option<Arc<dyn Meter>>) -> Self {
        match device.class {
            DeviceClass::Cpu => Self::start(meter),
            _ => Self::of(Sensors::default(), meter, EVERY),
        }
    }

    fn of(sensors: Sensors, meter: Option<Arc<dyn Meter>>, every: Duration) -> Self {
        let throttled = sensors.throttled();
        let named = meter.as_ref().map(|meter| {
            let info = meter.info();
            format!("{}: {}, boundary {}", info.source, info.name, info.boundary)
        });
        let reader = match sensors.is_blind() && meter.is_none() {
            true => None,
            false => spawn(sensors.clone(), meter, every),
        };
        Watch { load: disturbance::Watch::start(), sensors, throttled, meter: named, reader }
    }

    /// Fills `record` with what was seen since then, and says so where its samples changed their level.
    pub(crate) fn finish(self, record: &mut Record) {
        self.finish_all(&mut [record]);
    }

    /// The same for several that were measured in turn.
    pub(crate) fn finish_all(self, records: &mut [&mut Record]) {
        let disturbances = self.load.finish();
        let events = self.throttled.zip(self.sensors.throttled()).map(|(before, now)| now - before);
        let mut throttled = events.map(|events| match events > 0.0 {
            true => vec![format!("too hot: the processor was throttled {events:.0} times")],
            false => Vec::new(),
        });
        let mut seen_conditions = Conditions::default();
        if let Some((stop, thread)) = self.reader {
            drop(stop);
            let seen = thread.join().unwrap_or_default();
            seen_conditions = conditions(&seen.points);
            if let Some(reasons) = seen.throttled {
                let reasons = reasons.iter().map(|reason| reason.to_string());
                throttled.get_or_insert_default().extend(reasons);
            }
            if let Some(trace) = seen_conditions.trace.as_mut().filter(|trace| trace.watts.is_some()) {
                trace.meter = self.meter;
            }
        }
        for record in records {
            record.disturbances = disturbances.clone();
            let samples = record.timing.samples_ns.as_deref().unwrap_or_default();
            let own: Vec<String> = super::drift(samples).into_iter().chain(super::spread(samples)).collect();
            if !own.is_empty() {
                record.disturbances.get_or_insert_default().extend(own);
            }
            record.throttle_reasons = throttled.clone();
            record.conditions = seen_conditions.clone();
        }
    }
}

fn spawn(
    sensors: Sensors,
    meter: Option<Arc<dyn Meter>>,
    every: Duration,
) -> Option<(Sender<()>, JoinHandle<Seen>)> {
    let (stop, stopped) = mpsc::channel::<()>();
    let read = move || {
        let start = Instant::now();
        let mut probe = meter.clone().map(Probe::new);
        let mut seen = Seen::default();
        let mut look = || {
            probe.as_mut().and_then(|probe| {
                probe.poll();
                probe.take()
            })
        };
        // a counter tells from its second reading on
        look();
        loop {
            let ended = stopped.recv_timeout(every) != Err(RecvTimeoutError::Timeout);
            let (t, watts) = (start.elapsed().as_secs_f64(), look());
            let point = match meter.as_ref().and_then(|meter| meter.state()) {
                Some(state) => {
                    if let Some(reasons) = state.throttle_reasons {
                        let known = seen.throttled.get_or_insert_default();
                        let new: Vec<_> =
                            reasons.into_iter().filter(|reason| !known.contains(reason)).collect();
                        known.extend(new);
                    }
                    Point { t, watts, clock: state.clock_mhz, temperature: state.temperature_c }
                }
                None => {
                    let clock = sensors.clocks().map(|clocks| clocks.mean);
                    Point { t, watts, clock, temperature: sensors.temperature() }
                }
            };
            seen.points.push(point);
            if ended {
                return seen;
            }
        }
    };
    // without the thread a measurement is as good; it only tells less
    let thread = std::thread::Builder::new().name("conditions".into()).spawn(read).ok()?;
    Some((stop, thread))
}

fn conditions(points: &[Point]) -> Conditions {
    let clocks = || points.iter().filter_map(|point| point.clock);
    Conditions {
        clock_mhz_min: clocks().reduce(f64::min),
        clock_mhz_mean: mean(clocks()),
        clock_mhz_max: clocks().reduce(f64::max),
        temperature_c_max: points.iter().filter_map(|point| point.temperature).reduce(f64::max),
        trace: trace(points),
    }
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0.0), |(sum, count), x| (sum + x, count + 1.0));
    (count > 0.0).then(|| sum / count)
}

/// The points as a record keeps them: neighbours are averaged until few enough are left. `None` when nothing was measured.
fn trace(points: &[Point]) -> Option<Trace> {
    let groups: Vec<&[Point]> = points.chunks(points.len().div_ceil(Trace::MOST).max(1)).collect();
    let series = |value: fn(&Point) -> Option<f64>| {
        let list: Vec<Option<f64>> =
            groups.iter().map(|group| mean(group.iter().filter_map(value)).map(rounded)).collect();
        list.iter().any(Option::is_some).then_some(list)
    };
    let trace = Trace {
        t_s: groups.iter().filter_map(|group| mean(group.iter().map(|point| point.t))).map(rounded).collect(),
        meter: None,
        watts: series(|point| point.watts),
        clock_mhz: series(|point| point.clock),
        temperature_c: series(|point| point.temperature),
    };
    (trace.watts.is_some() || trace.clock_mhz.is_some() || trace.temperature_c.is_some()).then_some(trace)
}

/// To a thousandth: digits beyond that are noise, and records keep many of them.
fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;
    use perjoule_meter::{Boundary, DeviceState, MeterInfo, Sample, Source, Subject};
    use perjoule_record::{Environment, Kind};
    use std::sync::atomic::{AtomicU64, Ordering};

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    #[test]
    fn clocks_temperatures_and_throttling_are_read_from_sysfs() {
        let sys = tempfile::tempdir().unwrap();
        let root = sys.path();
        for (cpu, khz) in [(0, "2000000\n"), (1, "3000000\n")] {
            write(root, &format!("devices/system/cpu/cpu{cpu}/cpufreq/scaling_cur_freq"), khz);
            write(root, &format!("devices/system/cpu/cpu{cpu}/thermal_throttle/core_throttle_count"), "4\n");
        }
        write(root, "devices/system/cpu/cpufreq/boost", "1\n");
        write(root, "class/hwmon/hwmon0/name", "coretemp\n");
        write(root, "class/hwmon/hwmon0/temp1_input", "61000\n");
        write(root, "class/hwmon/hwmon0/temp2_input", "67500\n");
        write(root, "class/hwmon/hwmon1/name", "nvme\n");
        write(root, "class/hwmon/hwmon1/temp1_input", "99000\n");
        let watch = Watch::of(Sensors::find(root), None, EVERY);
        write(root, "devices/system/cpu/cpu1/thermal_throttle/core_throttle_count", "7\n");
        let mut record = Record::new(Kind::Kernel, &Environment::default());
        watch.finish(&mut record);
        let seen = record.conditions;
        assert_eq!((seen.clock_mhz_min, seen.clock_mhz_mean), (Some(2500.0), Some(2500.0)));
        assert_eq!((seen.clock_mhz_max, seen.temperature_c_max), (Some(2500.0), Some(67.5)));
        let reasons = record.throttle_reasons.unwrap();
        assert!(reasons.len() == 1 && reasons[0].contains("3 times"), "{reasons:?}");
    }

    #[test]
    fn what_is_not_there_is_unknown() {
        let sys = tempfile::tempdir().unwrap();
        let watch = Watch::of(Sensors::find(sys.path()), None, EVERY);
        assert!(watch.reader.is_none(), "nothing runs beside the measurement");
        let mut record = Record::new(Kind::Kernel, &Environment::default());
        watch.finish(&mut record);
        assert_eq!((record.throttle_reasons, record.conditions), (None, Conditions::default()));
    }

    /// A sensor whose power doubles after some readings, and which counts them.
    #[derive(Debug)]
    struct Step {
        info: MeterInfo,
        reads: AtomicU64,
        low: u64,
    }

    impl Meter for Step {
        fn info(&self) -> &MeterInfo {
            &self.info
        }
        fn read(&self) -> perjoule_meter::Result<Sample> {
            let before = self.reads.fetch_add(1, Ordering::SeqCst);
            Ok(Sample::Watts(if before < self.low { 100.0 } else { 200.0 }))
        }
    }

    #[test]
    fn a_step_of_power_is_seen_and_the_meter_left_alone_in_between() {
        let info = MeterInfo::new("step", Source::Other("test"), Boundary::Board, Subject::Gpu);
        let meter = Arc::new(Step { info, reads: AtomicU64::new(0), low: 3 });
        let watch = Watch::of(Sensors::default(), Some(meter.clone()), Duration::from_millis(20));
        while meter.reads.load(Ordering::SeqCst) < 7 {
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut record = Record::new(Kind::Kernel, &Environment::default());
        watch.finish(&mut record);
        let reads = meter.reads.load(Ordering::SeqCst);
        let trace = record.conditions.trace.unwrap();
        assert_eq!(trace.meter.as_deref(), Some("test: step, boundary board"));
        let watts: Vec<f64> = trace.watts.unwrap().into_iter().flatten().collect();
        assert_eq!(watts[..3], [100.0, 100.0, 150.0], "the step lies within the third");
        assert!(watts[3..].iter().all(|watts| *watts == 200.0), "{watts:?}");
        assert!(reads as usize <= trace.t_s.len() + 1, "one reading a point at most: {reads}");
        assert!(
            trace.clock_mhz.is_none() && trace.temperature_c.is_none(),
            "what is not measured is not there"
        );
        assert!(trace.t_s.is_sorted());
    }

    /// A sensor of a device that tells its state: hot from the second reading on, at its power limit in the first.
    #[derive(Debug)]
    struct Device(MeterInfo, AtomicU64);

    impl Meter for Device {
        fn info(&self) -> &MeterInfo {
            &self.0
        }
        fn read(&self) -> perjoule_meter::Result<Sample> {
            Ok(Sample::Watts(300.0))
        }
        fn state(&self) -> Option<DeviceState> {
            let before = self.1.fetch_add(1, Ordering::SeqCst);
            let mut state = DeviceState::default();
            state.clock_mhz = Some(if before == 0 { 1980.0 } else { 1200.0 });
            state.temperature_c = Some(if before == 0 { 60.0 } else { 88.0 });
            state.throttle_reasons = Some(vec![if before == 0 { "power limit" } else { "too hot" }]);
            Some(state)
        }
    }

    #[test]
    fn a_device_that_tells_its_state_is_watched_instead_of_the_processor() {
        let info = MeterInfo::new("gpu", Source::Other("test"), Boundary::Board, Subject::Gpu);
        let meter = Arc::new(Device(info, AtomicU64::new(0)));
        let watch = Watch::of(Sensors::default(), Some(meter.clone()), Duration::from_millis(5));
        while meter.1.load(Ordering::SeqCst) < 4 {
            std::thread::sleep(Duration::from_millis(2));
        }
        let mut record = Record::new(Kind::Kernel, &Environment::default());
        watch.finish(&mut record);
        let seen = record.conditions;
        assert_eq!((seen.clock_mhz_min, seen.clock_mhz_max), (Some(1200.0), Some(1980.0)));
        assert_eq!(seen.temperature_c_max, Some(88.0));
        assert_eq!(record.throttle_reasons.unwrap(), ["power limit", "too hot"]);
    }

    #[test]
    fn of_a_gpu_without_a_meter_nothing_is_known_and_the_processor_is_not_asked() {
        let gpu = DeviceInfo::new("cuda:0", "cuda", "a GPU", DeviceClass::DiscreteGpu, Arc::new(()));
        let watch = Watch::beside(&gpu, None);
        assert!(watch.reader.is_none() && watch.sensors.is_blind());
        let mut records = [(); 2].map(|()| Record::new(Kind::Kernel, &Environment::default()));
        records[1].timing.samples_ns = Some((0..40).map(|i| if i % 4 == 0 { 30.0 } else { 10.0 }).collect());
        let [one, other] = &mut records;
        watch.finish_all(&mut [one, other]);
        assert_eq!((&records[0].throttle_reasons, &records[0].conditions), (&None, &Conditions::default()));
        let said = |record: &Record| record.disturbances.iter().flatten().any(|d| d.contains("a tenth"));
        assert_eq!(records.each_ref().map(said), [false, true], "samples are told of their own record alone");
    }

    #[test]
    fn a_slow_meter_is_read_as_seldom_as_it_speaks() {
        let mut info = MeterInfo::new("slow", Source::Other("test"), Boundary::Wall, Subject::System);
        info.update_period = Duration::from_secs(3600);
        let meter = Arc::new(Step { info, reads: AtomicU64::new(0), low: 1 });
        let watch = Watch::of(Sensors::default(), Some(meter.clone()), Duration::from_millis(5));
        std::thread::sleep(Duration::from_millis(60));
        watch.finish(&mut Record::new(Kind::Kernel, &Environment::default()));
        assert_eq!(meter.reads.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn long_traces_are_thinned_and_keep_their_shape() {
        let points: Vec<Point> = (0..10_001)
            .map(|i| Point {
                t: f64::from(i),
                watts: Some(if i < 5000 { 10.0 } else { 30.0 }),
                ..Point::default()
            })
            .collect();
        let thin = trace(&points).unwrap();
        let watts = thin.watts.unwrap();
        assert!(
            thin.t_s.len() <= Trace::MOST
                && thin.t_s.len() > Trace::MOST / 2
                && watts.len() == thin.t_s.len()
        );
        assert_eq!((watts[0], watts[watts.len() - 1]), (Some(10.0), Some(30.0)));
        let step = watts.iter().position(|watts| *watts > Some(10.0)).unwrap();
        assert!((thin.t_s[step] - 5000.0).abs() < 50.0, "{}", thin.t_s[step]);
        assert_eq!(trace(&[]), None);
        assert_eq!(trace(&points.iter().map(|p| Point { watts: None, ..*p }).collect::<Vec<_>>()), None);
    }
}
