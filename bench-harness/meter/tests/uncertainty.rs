//! Energies that are known beforehand: counters that wrap, power traces, what intervals cover, what overlaps, and
//! baselines that drift.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use perjoule_meter::{
    Band, Baseline, Boundary, Energy, Idle, Meter, MeterError, MeterInfo, Modelled, PowerModel, Result,
    Sample, Source, Subject, Trace, Unwrapped, Window, repeat,
};

/// Splitmix64: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In 0..1.
    fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn within(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.uniform()
    }

    /// Standard normal (Box and Muller).
    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }
}

fn info(period_ms: u64, accuracy: f64) -> MeterInfo {
    let mut info = MeterInfo::new("test:m", Source::Other("test"), Boundary::Board, Subject::Gpu);
    info.update_period = Duration::from_millis(period_ms);
    info.accuracy = Band::within(accuracy);
    info
}

// Counters that wrap.

/// Microjoules of 32 bits at 250 W, read at `times`; the trace of it, or the first error of a reading.
fn wrapping(times: impl Iterator<Item = f64>) -> Result<Trace> {
    let mut info = info(1, 0.05);
    info.wraps_at = Some(4_294.967_296);
    let (mut trace, mut counter) = (Trace::new(info), Unwrapped::new(1 << 32, 1e-6));
    let start = Instant::now();
    for t in times {
        let at = start + Duration::from_secs_f64(t);
        let raw = (250e6 * t) as u64 % (1 << 32);
        trace.push(at, Sample::Joules(counter.advance(raw, at, "m")?));
    }
    Ok(trace)
}

#[test]
fn a_counter_that_wraps_hundreds_of_times_is_followed() {
    // An hour at 250 W is 209 wraps.
    let hour = wrapping((0..=3600).map(f64::from)).and_then(|trace| trace.energy()).expect("energy");
    assert!((hour.joules - 900_000.0).abs() < 1e-3, "{}", hour.joules);
}

#[test]
fn a_counter_that_may_have_wrapped_twice_between_two_reads_is_an_error() {
    // 60 s without a reading: three wraps, of which the counter shows none.
    let times = (0..30).chain(90..120).map(f64::from);
    let missed = wrapping(times).and_then(|trace| trace.energy());
    assert!(
        matches!(missed, Err(MeterError::Missed { seconds, .. }) if (seconds - 61.0).abs() < 1e-9),
        "{missed:?}"
    );
}

#[cfg(unix)]
#[test]
fn a_rapl_zone_that_is_read_too_rarely_is_an_error() {
    let tree = tempfile::tempdir().expect("tempdir");
    let zone = tree.path().join("intel-rapl:0");
    std::fs::create_dir(&zone).expect("mkdir");
    // 100 J, which 1 kW fills in 0.1 s.
    for (file, text) in [("name", "package-0"), ("energy_uj", "5"), ("max_energy_range_uj", "100000000")] {
        std::fs::write(zone.join(file), text).expect("write");
    }
    let found = perjoule_meter::Rapl::discover(tree.path());
    let meter = &found.meters[0];
    assert_eq!(meter.info().poll_every, Some(Duration::from_millis(25)));
    let mut trace = Trace::new(meter.info().clone());
    trace.record(&**meter).expect("reads");
    thread::sleep(Duration::from_millis(150));
    std::fs::write(zone.join("energy_uj"), "9").expect("write");
    trace.record(&**meter).expect("reads");
    assert!(matches!(trace.energy(), Err(MeterError::Missed { .. })));
}

/// 100 W; the reading at 0.1 s and until 0.2 s fails as `error` says.
#[derive(Debug)]
struct Failing {
    info: MeterInfo,
    start: Instant,
    error: fn() -> MeterError,
}

impl Meter for Failing {
    fn info(&self) -> &MeterInfo {
        &self.info
    }

    fn read(&self) -> Result<Sample> {
        match self.start.elapsed().as_secs_f64() {
            t if (0.1..0.6).contains(&t) => Err((self.error)()),
            t => Ok(Sample::Joules(100.0 * t)),
        }
    }
}

#[test]
fn a_reset_within_the_window_spoils_it_and_a_busy_driver_does_not() {
    let run = |error| {
        let mut info = info(10, 0.05);
        info.poll_every = Some(Duration::from_millis(50));
        let window = Window::start(Arc::new(Failing { info, start: Instant::now(), error })).expect("start");
        thread::sleep(Duration::from_millis(900));
        window.finish()
    };
    let reset = run(|| MeterError::Reset { meter: "m".into(), joules: -5.0, seconds: 1.0 });
    assert!(matches!(reset, Err(MeterError::Reset { .. })), "{reset:?}");
    let busy = run(|| MeterError::Library { origin: Source::Other("test"), reason: "busy".into() });
    let busy = busy.expect("a counter goes on");
    assert!((busy.watts() - 100.0).abs() < 0.5 && busy.notes[0].contains("failed"), "{busy:?}");
}

// Traces of power.

/// A load of steps and ramps: power at the corners, linear in between; two corners at one time are a step.
struct Load(Vec<(f64, f64)>);

impl Load {
    fn random(random: &mut Random, seconds: f64) -> Load {
        let mut corners = vec![(0.0, random.within(50.0, 700.0))];
        let mut t = 0.0;
        while t < seconds {
            let (_, last) = corners[corners.len() - 1];
            let next = random.within(50.0, 700.0);
            t += random.within(1.0, 9.0);
            if random.uniform() < 0.5 {
                corners.push((t, last));
            }
            corners.push((t, next));
        }
        Load(corners)
    }

    fn at(&self, t: f64) -> f64 {
        let after = self.0.partition_point(|corner| corner.0 <= t).min(self.0.len() - 1).max(1);
        let ((t0, p0), (t1, p1)) = (self.0[after - 1], self.0[after]);
        if t1 > t0 { p0 + (p1 - p0) * ((t - t0) / (t1 - t0)).clamp(0.0, 1.0) } else { p1 }
    }

    /// Exact energy from 0 to `t`.
    fn joules(&self, t: f64) -> f64 {
        let mut sum = 0.0;
        for pair in self.0.windows(2) {
            let ((t0, p0), (t1, _)) = (pair[0], pair[1]);
            if t0 >= t {
                break;
            }
            let end = t1.min(t);
            // The value just before the end: a step there belongs to the next piece.
            let p_end = if t1 > t0 { p0 + (pair[1].1 - p0) * (end - t0) / (t1 - t0) } else { p0 };
            sum += (end - t0) * (p0 + p_end) / 2.0;
        }
        sum
    }
}

/// The trace of a sensor with the given gain error and noise, polled every 75 to 125 ms.
fn sampled(random: &mut Random, load: &Load, seconds: f64, gain: f64, noise: f64) -> Trace {
    let mut info = info(100, 0.05);
    info.poll_every = Some(Duration::from_millis(100));
    let (mut trace, start, mut t) = (Trace::new(info), Instant::now(), 0.0);
    while t < seconds {
        let watts = load.at(t) * gain * (1.0 + noise * random.normal());
        trace.push(start + Duration::from_secs_f64(t), Sample::Watts(watts));
        t += random.within(0.075, 0.125);
    }
    trace
}

#[test]
fn steps_ramps_noise_and_jitter_are_integrated_to_half_a_percent() {
    for seed in 0..200 {
        let random = &mut Random(seed);
        // Some 24 steps and ramps of hundreds of watts in two minutes.
        let load = Load::random(random, 120.0);
        let energy = sampled(random, &load, 120.0, 1.0, 0.03).energy().expect("energy");
        let truth = load.joules(energy.seconds);
        let error = (energy.joules - truth).abs() / truth;
        assert!(error <= 0.005, "seed {seed}: {error}");
        assert!(energy.notes.is_empty(), "{:?}", energy.notes);
    }
}

// What intervals cover.

/// Share of the trials whose interval, made `scale` times as wide, holds the truth.
fn covered(trials: &[(Energy, f64)], scale: f64) -> f64 {
    let holds = |(energy, truth): &&(Energy, f64)| {
        let [low, high] = energy.ci95.map(|end| energy.joules + scale * (end - energy.joules));
        (low..=high).contains(truth)
    };
    trials.iter().filter(holds).count() as f64 / trials.len() as f64
}

/// A counter that steps every 100 ms, with a gain error of 5 % at 95 %, over windows of 0.3 to 30 s.
fn counted(random: &mut Random) -> (Energy, f64) {
    let (watts, gain) = (random.within(50.0, 700.0), 1.0 + 0.05 / 1.96 * random.normal());
    let (phase, seconds) = (random.within(0.0, 0.1), 10f64.powf(random.within(-0.5, 1.5)));
    let stepped = |t: f64| gain * watts * 0.1 * ((t + phase) / 0.1).floor();
    let (mut trace, start) = (Trace::new(info(100, 0.05)), Instant::now());
    for t in [0.0, seconds] {
        trace.push(start + Duration::from_secs_f64(t), Sample::Joules(7.0 + stepped(t)));
    }
    let energy = trace.energy().expect("energy");
    let truth = watts * energy.seconds;
    (energy, truth)
}

#[test]
fn intervals_of_counters_cover_the_truth() {
    let random = &mut Random(1);
    let trials: Vec<(Energy, f64)> = (0..4000).map(|_| counted(random)).collect();
    let share = covered(&trials, 1.0);
    assert!(share >= 0.93, "{share}");
    assert!(covered(&trials, 0.6) < 0.90, "the intervals are not wider than they must be");
}

/// A counter that shows whole hundredths of a watt-hour (36 J) every 100 ms, polled, at windows of 3 to 30 s.
fn counted_coarsely(random: &mut Random) -> (Energy, f64) {
    let (watts, gain) = (random.within(50.0, 700.0), 1.0 + 0.005 / 1.96 * random.normal());
    let (phase, begun) = (random.within(0.0, 0.1), random.within(0.0, 36.0));
    let seconds = 10f64.powf(random.within(0.5, 1.5));
    let shown = |t: f64| {
        let joules = begun + gain * watts * 0.1 * ((t + phase) / 0.1).floor();
        3600.0 * 0.01 * (1234.0 + (joules / 36.0).floor())
    };
    let (mut trace, start, mut t) = (Trace::new(info(100, 0.005)), Instant::now(), 0.0);
    while t < seconds {
        trace.push(start + Duration::from_secs_f64(t), Sample::Joules(shown(t)));
        t += random.within(0.0375, 0.0625);
    }
    let energy = trace.energy().expect("energy");
    let truth = watts * energy.seconds;
    (energy, truth)
}

#[test]
fn intervals_of_coarse_counters_cover_the_truth() {
    let random = &mut Random(4);
    let trials: Vec<(Energy, f64)> = (0..2000).map(|_| counted_coarsely(random)).collect();
    let share = covered(&trials, 1.0);
    assert!(share >= 0.93, "{share}");
    assert!(covered(&trials, 0.5) < 0.90, "the intervals are not wider than they must be");
}

#[test]
fn a_fine_counter_that_is_read_rarely_is_not_taken_for_a_coarse_one() {
    let random = &mut Random(5);
    let (mut trace, start) = (Trace::new(info(1, 0.05)), Instant::now());
    for i in 0..7 {
        let t = 10.0 * f64::from(i) + random.within(0.0, 0.01);
        trace.push(start + Duration::from_secs_f64(t), Sample::Joules(100.0 * t));
    }
    let energy = trace.energy().expect("energy");
    assert!(energy.uncertainty.sampling < 1e-3 * energy.joules, "{energy:?}");
}

#[test]
fn intervals_of_integrated_power_cover_the_truth() {
    let random = &mut Random(2);
    let trials: Vec<(Energy, f64)> = (0..2000)
        .map(|_| {
            let seconds = random.within(2.0, 20.0);
            let (load, gain) = (Load::random(random, seconds), 1.0 + 0.05 / 1.96 * random.normal());
            let energy = sampled(random, &load, seconds, gain, 0.05).energy().expect("energy");
            let truth = load.joules(energy.seconds);
            (energy, truth)
        })
        .collect();
    let share = covered(&trials, 1.0);
    assert!(share >= 0.93, "{share}");
}

#[test]
fn intervals_above_a_drifting_baseline_cover_the_truth() {
    let random = &mut Random(3);
    let trials: Vec<(Energy, f64)> = (0..4000)
        .map(|_| {
            let gain = 1.0 + 0.05 / 1.96 * random.normal();
            // Idle power wanders between the two pauses; the work adds a steady load on top of what is there.
            let (before, after) = (random.within(55.0, 65.0), random.within(55.0, 65.0));
            let (during, work) =
                (random.within(before.min(after), before.max(after)), random.within(20.0, 600.0));
            let mut count = |watts: f64, seconds: f64| {
                let phase = random.within(0.0, 0.1);
                let (mut trace, start) = (Trace::new(info(100, 0.05)), Instant::now());
                for t in [0.0, seconds] {
                    let joules = gain * watts * 0.1 * ((t + phase) / 0.1).floor();
                    trace.push(start + Duration::from_secs_f64(t), Sample::Joules(joules));
                }
                trace.energy().expect("energy")
            };
            let idle = |energy: &Energy| Idle::new(energy);
            let idle =
                Idle::between(&idle(&count(before, 5.0)), &idle(&count(after, 5.0))).expect("one meter");
            let gross = count(during + work, 10.0);
            (gross.net(&idle).expect("one meter"), work * gross.seconds)
        })
        .collect();
    let share = covered(&trials, 1.0);
    assert!(share >= 0.93, "{share}");
}

#[test]
fn power_that_was_not_seen_widens_the_interval() {
    let run = |pause: u64| {
        let mut info = info(100, 0.05);
        info.poll_every = Some(Duration::from_millis(100));
        let (mut trace, start) = (Trace::new(info), Instant::now());
        for i in 0..100u64 {
            let late = if i < 50 { 0 } else { pause };
            trace.push(
                start + Duration::from_millis(100 * i + late),
                Sample::Watts(if i % 2 == 0 { 100.0 } else { 300.0 }),
            );
        }
        trace.energy().expect("energy")
    };
    let (seen, unseen) = (run(0), run(5000));
    // 200 W between the extremes, for 5.1 s: 200 x 5.1 / sqrt 12 J.
    let expected = 200.0 * 5.1 / 12f64.sqrt();
    assert!(unseen.uncertainty.sampling > expected && seen.uncertainty.sampling < expected / 2.0);
    assert!(unseen.notes[0].contains("not sampled"), "{unseen:?}");
}

// What overlaps.

/// Parts of a machine with two GPUs. A meter of unknown scope may count all of them.
const PARTS: [&str; 12] = [
    "cores", "uncore", "package", "dram", "chip0", "board0", "chip1", "board1", "module", "rest", "charger",
    "nvidia",
];

/// A meter as its source makes it, with its device and the parts that it counts.
type Counts = (Source, Boundary, Subject, Option<&'static str>, &'static [&'static str]);

#[test]
fn meters_overlap_exactly_where_they_count_the_same_part() {
    use Boundary::*;
    use Subject::{Cpu, Gpu, Memory, Other, System};
    let all = &PARTS[..];
    let inside = &PARTS[..10];
    let package = &["cores", "uncore", "package"][..];
    let card = &["chip0", "board0"][..];
    let meters: Vec<Counts> = vec![
        (Source::RaplPowercap, Platform, System, None, inside),
        (Source::RaplPowercap, Package, Cpu, None, package),
        (Source::RaplPowercap, Core, Cpu, None, &["cores"]),
        (Source::RaplPowercap, Uncore, Cpu, None, &["uncore"]),
        (Source::RaplPowercap, Dram, Memory, None, &["dram"]),
        (Source::RaplPerf, Package, Cpu, None, package),
        (Source::RaplPerf, Dram, Memory, None, &["dram"]),
        (Source::Nvml, Board, Gpu, Some("GPU-1"), &["nvidia"]),
        (Source::Hwmon, Board, Gpu, Some("0000:03:00.0"), card),
        (Source::Hwmon, Chip, Gpu, Some("0000:03:00.0"), &["chip0"]),
        (Source::Hwmon, Chip, Gpu, Some("0000:43:00.0"), &["chip1"]),
        (Source::Hwmon, Module, System, Some("ACPI000D:00"), inside),
        (Source::Hwmon, Package, Cpu, None, package),
        (Source::Hwmon, Core, Cpu, None, &["cores"]),
        (Source::Hwmon, Uncore, Cpu, None, &["uncore"]),
        (Source::Hwmon, Platform, System, None, inside),
        (Source::Ina3221, Module, System, None, inside),
        (Source::Ina3221, Rail, Other, None, inside),
        (Source::Battery, Battery, System, None, inside),
        (Source::Macmon, Platform, System, None, inside),
        (Source::Macmon, Package, Cpu, None, package),
        (Source::Macmon, Dram, Memory, None, &["dram"]),
        (Source::External, Wall, System, None, all),
        (Source::External, Battery, System, None, inside),
        (Source::External, Rail, Other, None, inside),
        (Source::ModelledNeuron, Chip, Gpu, Some("neuron0"), &["board1"]),
        (Source::ModelledTdp, Package, Cpu, None, package),
    ];
    let sources: Vec<Source> = meters.iter().map(|meter| meter.0).collect();
    assert!(sources.contains(&Source::Macmon) && sources.contains(&Source::ModelledNeuron));
    for (a, b) in meters.iter().flat_map(|a| meters.iter().map(move |b| (a, b))) {
        let build = |&(source, boundary, subject, device, _): &Counts| {
            let mut info = MeterInfo::new("m", source, boundary, subject);
            info.device = device.map(str::to_owned);
            info
        };
        // Whole machines hold the cards that they do not list.
        let counts = |of: &[&str], part: &&str| of.contains(part) || of.len() >= 10 && *part == "nvidia";
        let shared = PARTS.iter().any(|part| counts(a.4, part) && counts(b.4, part));
        let (left, right) = (build(a), build(b));
        assert_eq!(left.overlaps(&right), shared, "{a:?} and {b:?}");
        assert_eq!(right.overlaps(&left), shared, "either way round: {a:?} and {b:?}");
    }
}

#[test]
fn boundaries_have_names_that_are_found_again() {
    for name in [
        "core", "uncore", "package", "dram", "chip", "board", "module", "platform", "rail", "battery", "wall",
    ] {
        let boundary = Boundary::from_name(name).expect(name);
        assert_eq!(boundary.as_str(), name);
        assert!(boundary.contains(boundary) && Boundary::Wall.contains(boundary));
    }
    assert_eq!(Boundary::from_name("Wall"), None);
}

// Baselines.

/// A counter whose power is set from outside, W.
#[derive(Debug)]
struct Settable {
    info: MeterInfo,
    watts: AtomicU64,
    state: std::sync::Mutex<(Instant, f64)>,
}

impl Settable {
    fn new(id: &str, watts: u64, period_ms: u64) -> Arc<Settable> {
        let mut info = info(period_ms, 0.05);
        info.id = id.into();
        let state = std::sync::Mutex::new((Instant::now(), 0.0));
        Arc::new(Settable { info, watts: AtomicU64::new(watts), state })
    }

    fn set(&self, watts: u64) {
        self.read().expect("reads");
        self.watts.store(watts, Ordering::Relaxed);
    }
}

impl Meter for Settable {
    fn info(&self) -> &MeterInfo {
        &self.info
    }

    fn read(&self) -> Result<Sample> {
        let mut state = self.state.lock().expect("no panic");
        let now = Instant::now();
        state.1 += (now - state.0).as_secs_f64() * self.watts.load(Ordering::Relaxed) as f64;
        state.0 = now;
        Ok(Sample::Joules(state.1))
    }
}

#[test]
fn one_pause_serves_all_meters_and_the_one_after_serves_the_next_work() {
    let (fast, slow) = (Settable::new("fast", 40, 1), Settable::new("slow", 60, 50));
    let model: Arc<dyn Meter> = Arc::new(Modelled::new(PowerModel::new("cpu", 100.0)).expect("valid"));
    let meters: Vec<Arc<dyn Meter>> = vec![fast.clone(), slow.clone(), model.clone()];
    let mut baseline = Baseline::before(&meters, Duration::from_millis(20));
    assert_eq!(baseline.window(), Duration::from_millis(200), "stretched to the slow meter");
    let idle = |baseline: &Baseline, id: &str| baseline.idle(id).expect("known").expect("taken");
    assert!((idle(&baseline, "fast").watts - 40.0).abs() < 0.1);
    assert_eq!(idle(&baseline, "modelled-tdp:cpu").watts, 30.0);
    assert!(baseline.idle("other").is_none());

    let work = |watts| {
        let window = Window::start(fast.clone()).expect("start");
        fast.set(watts);
        thread::sleep(Duration::from_millis(100));
        window.finish().expect("energy")
    };
    let first = work(240);
    fast.set(44);
    baseline.after();
    let between = idle(&baseline, "fast");
    assert!((between.watts - 42.0).abs() < 0.1 && between.u >= 1.95, "half the drift of 4 W: {between:?}");
    let net = baseline.net(&first).expect("net");
    assert!((net.watts() - 198.0).abs() < 2.0, "{net:?}");
    assert!(net.uncertainty.idle >= 1.95 * net.seconds, "{net:?}");

    // The pause after the first work is the one before the second.
    let second = work(244);
    fast.set(48);
    baseline.after();
    assert!((idle(&baseline, "fast").watts - 46.0).abs() < 0.1);
    assert!((baseline.net(&second).expect("net").watts() - 198.0).abs() < 2.0);

    let foreign = Energy { meter: "other".into(), ..second };
    assert!(baseline.net(&foreign).expect_err("unknown").to_string().contains("other"));
    let known = Baseline::before(&[model], Duration::from_secs(3600));
    assert_eq!(known.window(), Duration::ZERO, "a model needs no pause");
}

/// A counter whose readings are 0.2 s old: 240 W for the first 0.3 s, 40 W from then on.
#[derive(Debug)]
struct Late(MeterInfo, Instant);

impl Meter for Late {
    fn info(&self) -> &MeterInfo {
        &self.0
    }

    fn read(&self) -> Result<Sample> {
        let t = (self.1.elapsed().as_secs_f64() - 0.2).max(0.0);
        Ok(Sample::Joules(240.0 * t.min(0.3) + 40.0 * (t - 0.3).max(0.0)))
    }
}

#[test]
fn a_pause_right_after_work_does_not_see_the_work() {
    let start = Instant::now();
    let meter: Arc<dyn Meter> = Arc::new(Late(info(200, 0.05), start));
    thread::sleep(Duration::from_millis(300));
    let baseline = Baseline::before(&[meter], Duration::from_millis(20));
    let idle = baseline.idle("test:m").expect("known").expect("taken");
    assert!((idle.watts - 40.0).abs() < 1.0, "{idle:?}");
}

#[test]
fn work_is_repeated_until_the_window_is_long_enough() {
    let meter: Arc<dyn Meter> = Settable::new("m", 50, 10);
    let (runs, energy) = repeat(&meter, 0.05, || thread::sleep(Duration::from_millis(5))).expect("energy");
    assert!(energy.seconds >= 0.010 / (6f64.sqrt() * 0.05) && runs >= 2, "{runs} runs in {energy:?}");
    assert!((energy.watts() - 50.0).abs() < 0.5);
    let per = energy.per(runs as f64).expect("positive");
    assert!(per.joules >= 0.005 * 50.0 * 0.9, "{per:?}");
}

// Sums of windows, and energy of a utilisation that is known afterwards.

/// The energy of one window of a counter that is read as it is.
fn window_of(joules: f64, seconds: f64) -> Energy {
    let mut trace = Trace::new(info(100, 0.05));
    let start = Instant::now();
    trace.push(start, Sample::Joules(0.0));
    trace.push(start + Duration::from_secs_f64(seconds), Sample::Joules(joules));
    trace.energy().expect("long enough")
}

#[test]
fn windows_add_their_ends_and_their_sensor_in_full() {
    let parts: Vec<Energy> = (0..16).map(|_| window_of(10.0, 1.0)).collect();
    let sum = Energy::sum(&parts).expect("one meter");
    assert!((sum.joules - 160.0).abs() < 1e-9 && (sum.seconds - 16.0).abs() < 1e-9);
    // each run begins after the same rest, which the reading at its start still holds
    assert!((sum.uncertainty.sampling - 16.0 * parts[0].uncertainty.sampling).abs() < 1e-12, "common to all");
    assert!((sum.uncertainty.sensor - 16.0 * parts[0].uncertainty.sensor).abs() < 1e-12, "common to all");
    let arm = 8f64.hypot(1.96 * sum.uncertainty.sampling);
    assert!((sum.ci95[0] - (160.0 - arm)).abs() < 1e-9 && (sum.ci95[1] - (160.0 + arm)).abs() < 1e-9);
    // one window is its own sum
    let one = Energy::sum(&parts[..1]).expect("one window");
    assert!((one.ci95[0] - parts[0].ci95[0]).abs() < 1e-9 && one.joules == parts[0].joules);
}

#[test]
fn windows_add_the_noise_of_power_in_squares() {
    let random = &mut Random(9);
    let steady = Load(vec![(0.0, 100.0), (10.0, 100.0)]);
    let parts: Vec<Energy> =
        (0..16).map(|_| sampled(random, &steady, 10.0, 1.0, 0.1).energy().expect("energy")).collect();
    let ends: f64 = parts.iter().map(|part| part.uncertainty.ends).sum();
    let rest = parts.iter().map(|part| part.uncertainty.sampling.powi(2) - part.uncertainty.ends.powi(2));
    let expected = ends.hypot(rest.sum::<f64>().sqrt());
    let sum = Energy::sum(&parts).expect("one meter").uncertainty;
    assert!((sum.sampling - expected).abs() < 1e-9 && (sum.ends - ends).abs() < 1e-9, "{sum:?}");
    assert!(sum.sampling < parts.iter().map(|part| part.uncertainty.sampling).sum());
}

#[test]
fn meters_of_one_boundary_add_up_over_the_same_time() {
    let of = |id: &str, joules| Energy { meter: id.into(), ..window_of(joules, 2.0) };
    let parts = [of("a", 10.0), of("b", 30.0), of("c", 60.0)];
    let all = Energy::of_meters(&parts).expect("boards");
    assert!(
        (all.joules - 100.0).abs() < 1e-9 && (all.seconds - 2.0).abs() < 1e-9 && all.meter == "a + b + c"
    );
    let squares = parts.iter().map(|part| part.uncertainty.sampling.powi(2)).sum::<f64>();
    assert!((all.uncertainty.sampling - squares.sqrt()).abs() < 1e-9);
    // 5 % each, all off alike
    let arm = 5f64.hypot(1.96 * squares.sqrt());
    assert!((all.ci95[1] - all.joules - arm).abs() < 1e-9, "{all:?}");
    let wall = Energy { boundary: Boundary::Wall, ..of("d", 200.0) };
    assert_eq!(Energy::of_meters(&[parts[0].clone(), wall]), None, "never across boundaries");
    assert_eq!(Energy::of_meters(&[]), None);
}

#[test]
fn only_windows_of_one_meter_are_added() {
    let mut other = window_of(10.0, 1.0);
    other.meter = "test:other".into();
    assert_eq!(Energy::sum(&[window_of(10.0, 1.0), other]), None);
    assert_eq!(Energy::sum(&[]), None);
}

#[test]
fn a_model_knows_the_energy_of_a_utilisation_and_a_sensor_does_not() {
    // 100 W, 30 % of it at rest, half to 1.3 times that
    let model = Modelled::new(PowerModel::new("CPU", 100.0)).expect("valid");
    let quarter = Energy::of_utilisation(&model, 2.0, 0.25).expect("in range");
    let expected = 2.0 * (30.0 + 0.25 * 70.0);
    assert!((quarter.joules - expected).abs() < 1e-9);
    assert!(
        (quarter.ci95[0] - 0.5 * expected).abs() < 1e-9 && (quarter.ci95[1] - 1.3 * expected).abs() < 1e-9
    );
    assert!(quarter.notes.iter().any(|note| note.contains("25.0 %")), "{:?}", quarter.notes);
    let full = Energy::of_utilisation(&model, 2.0, 1.0).expect("in range");
    assert_eq!(Some(full.joules), Energy::of_constant(&model, 2.0).map(|energy| energy.joules));
    for (seconds, utilisation) in
        [(0.0, 0.5), (-1.0, 0.5), (f64::NAN, 0.5), (1.0, 1.5), (1.0, -0.1), (1.0, f64::NAN)]
    {
        assert_eq!(Energy::of_utilisation(&model, seconds, utilisation), None, "{seconds} s, {utilisation}");
    }

    #[derive(Debug)]
    struct Sensor(MeterInfo);
    impl Meter for Sensor {
        fn info(&self) -> &MeterInfo {
            &self.0
        }
        fn read(&self) -> Result<Sample> {
            Ok(Sample::Watts(1.0))
        }
    }
    assert_eq!(Energy::of_utilisation(&Sensor(info(1, 0.05)), 1.0, 0.5), None);
}
