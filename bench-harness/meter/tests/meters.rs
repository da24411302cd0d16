//! Readers against fixture trees, and windows and integrals against energies that are known beforehand.
#![cfg(unix)]

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use perjoule_meter::{
    Band, Boundary, Discovery, Energy, ExternalSource, Hwmon, Idle, Kind, Meter, MeterError, MeterInfo,
    Modelled, Options, PerfRoots, PowerModel, Rapl, Result, Sample, Source, Subject, Trace, Unwrapped,
    Utilisation, Window, discover, measure,
};

const RANGE: u64 = 262_143_328_850;

/// Names and contents.
type Files<'a> = &'a [(&'a str, &'a str)];

fn put(dir: &Path, files: Files) {
    fs::create_dir_all(dir).expect("mkdir");
    for (name, text) in files {
        fs::write(dir.join(name), format!("{text}\n")).expect("write");
    }
}

fn zone(root: &Path, id: &str, name: &str, energy_uj: u64) {
    let (energy, range) = (energy_uj.to_string(), RANGE.to_string());
    put(&root.join(id), &[("name", name), ("energy_uj", &energy), ("max_energy_range_uj", &range)]);
}

fn set(root: &Path, id: &str, energy_uj: u64) {
    fs::write(root.join(id).join("energy_uj"), energy_uj.to_string()).expect("write");
}

fn at(found: &Discovery, boundary: Boundary) -> Arc<dyn Meter> {
    let mut meters = found.meters.iter().filter(|meter| meter.info().boundary == boundary);
    let meter = meters.next().unwrap_or_else(|| panic!("no {boundary} in {found:?}"));
    assert!(meters.next().is_none(), "one meter for each boundary");
    meter.clone()
}

fn close(energy: &Energy, joules: f64) {
    assert!((energy.joules - joules).abs() < 1e-9, "{} J, expected {joules} J", energy.joules);
}

#[test]
fn one_socket_gives_package_and_core_apart() {
    let tree = tempfile::tempdir().expect("tempdir");
    let root = tree.path();
    zone(root, "intel-rapl:0", "package-0", 1_000_000);
    zone(root, "intel-rapl:0:0", "core", 400_000);
    // The same package over another interface: must not appear again.
    zone(root, "intel-rapl-mmio:0", "package-0", 1_000_000);
    let found = Rapl::discover(root);
    assert_eq!(found.meters.len(), 2, "{found:?}");
    let (package, core) = (at(&found, Boundary::Package), at(&found, Boundary::Core));
    assert!(package.info().overlaps(core.info()) && core.info().overlaps(package.info()));
    assert_eq!(found.cpu().map(|m| m.info().id.clone()), Some(package.info().id.clone()));

    let (open, open_core) =
        (Window::start(package.clone()).expect("start"), Window::start(core.clone()).expect("start"));
    thread::sleep(Duration::from_millis(20));
    set(root, "intel-rapl:0", 1_700_000);
    set(root, "intel-rapl:0:0", 500_000);
    let energy = open.finish().expect("energy");
    close(&energy, 0.7);
    close(&open_core.finish().expect("energy"), 0.1);
    assert_eq!((energy.source, energy.kind), (Source::RaplPowercap, Kind::Measured));
    assert_eq!(energy.source.to_string(), "rapl-powercap");
    assert!(energy.seconds >= 0.02);
    // 5 % of the sensor and T P / sqrt(6) of the counter's 1 ms.
    let sampling = 0.7 / energy.seconds * 1e-3 / 6f64.sqrt();
    let half = (0.7 * 0.05f64).hypot(1.96 * sampling);
    assert!((energy.ci95[1] - 0.7 - half).abs() < 1e-9 && (0.7 - energy.ci95[0] - half).abs() < 1e-9);
    assert!((1.96 * energy.u() - half).abs() < 1e-9);
}

#[test]
fn two_sockets_are_summed_at_one_boundary_only() {
    let tree = tempfile::tempdir().expect("tempdir");
    let root = tree.path();
    for socket in 0..2u64 {
        zone(root, &format!("intel-rapl:{socket}"), &format!("package-{socket}"), 5_000_000 + socket);
        // Nested as in /sys/devices; the reader must find these, too, and once.
        let parent = root.join(format!("intel-rapl:{socket}"));
        zone(&parent, &format!("intel-rapl:{socket}:0"), "dram", 300_000);
        zone(root, &format!("intel-rapl:{socket}:1"), "core", 200_000);
        zone(&parent, &format!("intel-rapl:{socket}:1"), "core", 200_000);
    }
    let found = Rapl::discover(root);
    assert_eq!(found.meters.len(), 3, "{found:?}");
    let windows: Vec<Window> = [Boundary::Package, Boundary::Dram, Boundary::Core]
        .into_iter()
        .map(|boundary| Window::start(at(&found, boundary)).expect("start"))
        .collect();
    thread::sleep(Duration::from_millis(10));
    for socket in 0..2u64 {
        set(root, &format!("intel-rapl:{socket}"), 5_000_000 + socket + 1_000_000 * (socket + 1));
        set(root, &format!("intel-rapl:{socket}/intel-rapl:{socket}:0"), 350_000);
        set(root, &format!("intel-rapl:{socket}:1"), 230_000);
        set(root, &format!("intel-rapl:{socket}/intel-rapl:{socket}:1"), 230_000);
    }
    for (window, joules) in windows.into_iter().zip([3.0, 0.1, 0.06]) {
        close(&window.finish().expect("energy"), joules);
    }
    let (package, dram) = (at(&found, Boundary::Package), at(&found, Boundary::Dram));
    assert!(!package.info().overlaps(dram.info()), "memory is outside the package");
}

#[test]
fn mirrored_dies_count_once_and_separate_dies_add() {
    for (second, joules) in [(9_000_100, 1.0), (77_000_000, 2.0)] {
        let tree = tempfile::tempdir().expect("tempdir");
        let root = tree.path();
        zone(root, "intel-rapl:0", "package-0-die-0", 9_000_000);
        zone(root, "intel-rapl:1", "package-0-die-1", second);
        let meter = at(&Rapl::discover(root), Boundary::Package);
        let window = Window::start(meter).expect("start");
        thread::sleep(Duration::from_millis(5));
        set(root, "intel-rapl:0", 10_000_000);
        set(root, "intel-rapl:1", second + 1_000_000);
        close(&window.finish().expect("energy"), joules);
    }
}

#[test]
fn a_counter_that_wraps_once_in_the_window_is_followed() {
    let tree = tempfile::tempdir().expect("tempdir");
    let root = tree.path();
    zone(root, "intel-rapl:0", "package-0", RANGE - 250_000);
    let window = Window::start(at(&Rapl::discover(root), Boundary::Package)).expect("start");
    thread::sleep(Duration::from_millis(5));
    set(root, "intel-rapl:0", 500_000);
    close(&window.finish().expect("energy"), 0.75);
}

#[test]
fn unusable_zones_are_explained_and_never_read_as_zero() {
    let tree = tempfile::tempdir().expect("tempdir");
    let cases: [(&str, Files, &str); 5] = [
        ("garbage", &[("name", "package-0"), ("energy_uj", "12x"), ("max_energy_range_uj", "99")], "12x"),
        ("range", &[("name", "package-0"), ("energy_uj", "100"), ("max_energy_range_uj", "99")], "100"),
        ("missing", &[("name", "package-0"), ("energy_uj", "1")], "max_energy_range_uj"),
        ("dead", &[("name", "package-0"), ("energy_uj", "0"), ("max_energy_range_uj", "99")], "zero"),
        ("foreign", &[("name", "dlvr"), ("energy_uj", "5"), ("max_energy_range_uj", "99")], "dlvr"),
    ];
    for (case, files, expected) in cases {
        let root = tree.path().join(case);
        put(&root.join("intel-rapl:0"), files);
        let found = Rapl::discover(&root);
        assert!(found.meters.is_empty(), "{case}: {found:?}");
        let [reason] = &found.unavailable[..] else { panic!("{case}: {found:?}") };
        assert!(reason.reason.contains(expected), "{case}: {reason:?}");
    }
    let none = Rapl::discover(&tree.path().join("absent"));
    assert!(none.meters.is_empty() && none.unavailable[0].fix.is_some(), "{none:?}");
}

#[test]
fn a_socket_that_cannot_be_read_takes_the_sum_with_it() {
    let tree = tempfile::tempdir().expect("tempdir");
    zone(tree.path(), "intel-rapl:0", "package-0", 5_000_000);
    put(&tree.path().join("intel-rapl:1"), &[("name", "package-1"), ("max_energy_range_uj", "262143328850")]);
    let found = Rapl::discover(tree.path());
    assert!(found.meters.is_empty(), "half of the CPU is not the CPU: {found:?}");
    assert!(found.unavailable[0].reason.contains("energy_uj"));
}

#[test]
fn short_windows_and_dead_counters_are_errors() {
    let tree = tempfile::tempdir().expect("tempdir");
    zone(tree.path(), "intel-rapl:0", "package-0", 5_000_000);
    let meter = at(&Rapl::discover(tree.path()), Boundary::Package);
    let mut trace = Trace::new(meter.info().clone());
    let start = Instant::now();
    trace.push(start, Sample::Joules(0.0));
    trace.push(start + Duration::from_micros(500), Sample::Joules(0.0));
    match trace.energy() {
        Err(MeterError::TooShort { needed, .. }) => assert_eq!(needed, 0.002),
        other => panic!("{other:?}"),
    }
    let ((), energy) = measure(&meter, || thread::sleep(Duration::from_millis(5)));
    assert!(matches!(energy, Err(MeterError::Stalled { .. })), "{energy:?}");
    let needed = meter.info().window_for(0.01);
    assert!((needed.as_secs_f64() - 0.0408).abs() < 1e-3, "{needed:?}");
}

/// A 16-bit millijoule counter under a load of 500 W: it starts over every 131 ms.
#[derive(Debug)]
struct Wrapping {
    info: MeterInfo,
    start: Instant,
    reads: AtomicU64,
    unwrapped: Mutex<Unwrapped>,
}

impl Wrapping {
    fn new(poll_every: Option<Duration>) -> Arc<Wrapping> {
        let mut info = MeterInfo::new("test:wrapping", Source::Other("test"), Boundary::Board, Subject::Gpu);
        info.update_period = Duration::from_millis(1);
        info.poll_every = poll_every;
        let unwrapped = Mutex::new(Unwrapped::new(1 << 16, 1e-3));
        Arc::new(Wrapping { info, start: Instant::now(), reads: AtomicU64::new(0), unwrapped })
    }
}

impl Meter for Wrapping {
    fn info(&self) -> &MeterInfo {
        &self.info
    }

    fn read(&self) -> Result<Sample> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let now = Instant::now();
        let millijoules = (now - self.start).as_secs_f64() * 500.0 * 1e3;
        let raw = millijoules as u64 % (1 << 16);
        self.unwrapped.lock().expect("no panic").advance(raw, now, &self.info.id).map(Sample::Joules)
    }
}

#[test]
fn background_polling_survives_many_wraps() {
    let watts = |poll_every| {
        let meter = Wrapping::new(poll_every);
        let window = Window::start(meter.clone()).expect("start");
        thread::sleep(Duration::from_millis(450));
        let energy = window.finish().expect("energy");
        let reads = meter.reads.load(Ordering::Relaxed);
        thread::sleep(Duration::from_millis(30));
        assert_eq!(reads, meter.reads.load(Ordering::Relaxed), "the thread ends with its window");
        energy.watts()
    };
    let polled = watts(Some(Duration::from_millis(5)));
    assert!((polled / 500.0 - 1.0).abs() < 0.005, "{polled} W");
    let ends_only = watts(None);
    assert!(ends_only < 400.0, "without polling the wraps are lost: {ends_only} W");
}

#[test]
fn a_reset_counter_is_an_error_once() {
    let mut counter = Unwrapped::new(RANGE, 1e-6);
    let start = Instant::now();
    counter.advance(200_000_000_000, start, "m").expect("first");
    let reset = counter.advance(10, start + Duration::from_secs(1), "m");
    assert!(matches!(reset, Err(MeterError::Reset { .. })), "{reset:?}");
    let next = counter.advance(1_000_010, start + Duration::from_secs(2), "m").expect("recovers");
    assert!((next - 1.0).abs() < 1e-12);

    // A counter seen beyond its modulus is a wider one, which cannot have wrapped.
    let mut wide = Unwrapped::new(1 << 16, 1e-6);
    wide.advance(70_000, start, "m").expect("first");
    let fallen = wide.advance(5, start + Duration::from_secs(1), "m");
    assert!(matches!(fallen, Err(MeterError::Reset { .. })), "{fallen:?}");
}

fn power_info(period_ms: u64, poll_ms: u64) -> MeterInfo {
    let mut info = MeterInfo::new("test:power", Source::Other("test"), Boundary::Board, Subject::Gpu);
    info.update_period = Duration::from_millis(period_ms);
    info.poll_every = Some(Duration::from_millis(poll_ms));
    info.accuracy = Band::within(0.05);
    info
}

#[test]
fn the_integral_of_a_known_power_trace_is_within_half_a_percent() {
    // 300 W + 120 W sin(2 pi t / 7 s) + a step of 80 W from 20 s on, over 60 s, sampled every 75..125 ms.
    let power =
        |t: f64| 300.0 + 120.0 * (t * std::f64::consts::TAU / 7.0).sin() + if t < 20.0 { 0.0 } else { 80.0 };
    let w = std::f64::consts::TAU / 7.0;
    let truth = |t: f64| 300.0 * t + 120.0 / w * (1.0 - (w * t).cos()) + 80.0 * (t - 20.0);
    let mut trace = Trace::new(power_info(100, 100));
    let (start, mut t, mut phase) = (Instant::now(), 0.0f64, 0.0f64);
    while t < 60.0 {
        trace.push(start + Duration::from_secs_f64(t), Sample::Watts(power(t)));
        phase = (phase + 0.618_034).fract();
        t += 0.1 * (0.75 + 0.5 * phase);
    }
    let energy = trace.energy().expect("energy");
    let expected = truth(energy.seconds);
    let error = (energy.joules - expected).abs() / expected;
    assert!(error < 0.005, "{error}");
    assert!(
        (energy.joules - expected).abs() < 1.96 * energy.uncertainty.sampling,
        "the stated error covers it"
    );
    assert!(energy.notes.is_empty(), "{:?}", energy.notes);
}

#[test]
fn impossible_and_sparse_traces_are_refused_or_marked() {
    let start = Instant::now();
    let trace = |points: &[(u64, Sample)]| {
        let mut trace = Trace::new(power_info(100, 100));
        points.iter().for_each(|&(ms, sample)| trace.push(start + Duration::from_millis(ms), sample));
        trace.energy()
    };
    use Sample::{Joules, Watts};
    for points in [
        [(0, Watts(1.0)), (200, Watts(f64::NAN)), (400, Watts(1.0))],
        [(0, Watts(1.0)), (200, Watts(-1.0)), (400, Watts(1.0))],
        [(0, Watts(1.0)), (200, Joules(1.0)), (400, Watts(1.0))],
        [(0, Joules(5.0)), (200, Joules(4.0)), (400, Joules(9.0))],
        [(300, Watts(5.0)), (200, Watts(4.0)), (900, Watts(9.0))],
    ] {
        let result = trace(&points);
        assert!(matches!(result, Err(MeterError::Impossible { .. })), "{points:?}: {result:?}");
    }
    assert!(matches!(trace(&[]), Err(MeterError::TooShort { .. })));
    assert!(matches!(trace(&[(0, Watts(1.0)), (900, Watts(1.0))]), Err(MeterError::TooShort { .. })));
    let gap = trace(&[(0, Watts(10.0)), (100, Watts(10.0)), (5000, Watts(10.0))]).expect("energy");
    close(&gap, 50.0);
    assert!(gap.notes[0].contains("not sampled for 4.90 s"), "{:?}", gap.notes);
}

#[test]
fn hwmon_reads_counters_and_power_with_their_labels() {
    let tree = tempfile::tempdir().expect("tempdir");
    let root = tree.path();
    let pci = |address: &str| {
        let dir = root.join("devices").join(address);
        put(&dir, &[]);
        dir
    };
    let hwmon = root.join("hwmon");
    let xe = hwmon.join("hwmon0");
    put(
        &xe,
        &[
            ("name", "xe"),
            ("energy1_input", "4294000000"),
            ("energy1_label", "card"),
            ("energy2_input", "7"),
            ("energy2_label", "pkg"),
            ("power1_max", "1"),
        ],
    );
    std::os::unix::fs::symlink(pci("0000:03:00.0"), xe.join("device")).expect("symlink");
    let amd = hwmon.join("hwmon1");
    put(
        &amd,
        &[
            ("name", "amdgpu"),
            ("power1_average", "150000000"),
            ("power1_input", "1"),
            ("power1_label", "PPT"),
        ],
    );
    std::os::unix::fs::symlink(pci("0000:43:00.0"), amd.join("device")).expect("symlink");
    put(&hwmon.join("hwmon2"), &[("name", "coretemp"), ("temp1_input", "45000")]);
    put(&hwmon.join("hwmon3"), &[("name", "ina226"), ("power1_input", "abc"), ("power2_input", "2000000")]);
    put(&hwmon.join("hwmon4"), &[("name", "BAT0"), ("power1_input", "9000000")]);

    let found = Hwmon::discover(&hwmon);
    let [board, chip, gpu, rail] = &found.meters[..] else { panic!("{found:?}") };
    assert_eq!(
        [board, chip, gpu, rail].map(|meter| meter.info().boundary),
        [Boundary::Board, Boundary::Chip, Boundary::Chip, Boundary::Rail]
    );
    assert!(board.info().overlaps(chip.info()) && !board.info().overlaps(gpu.info()));
    let [broken] = &found.unavailable[..] else { panic!("{found:?}") };
    assert!(broken.reason.contains("abc"), "{broken:?}");
    assert_eq!(found.device("0000:03:00.0").map(|m| m.info().boundary), Some(Boundary::Board));

    // A 32-bit counter wraps at 2^32 uJ within the window; power is integrated.
    let windows = [board, gpu].map(|meter| Window::start(meter.clone()).expect("start"));
    thread::sleep(Duration::from_millis(350));
    fs::write(xe.join("energy1_input"), "1000000").expect("write");
    let [counted, integrated] = windows.map(|window| window.finish().expect("energy"));
    close(&counted, (4_294_967_296.0 - 4_294_000_000.0 + 1_000_000.0) * 1e-6);
    assert!((integrated.joules / (150.0 * integrated.seconds) - 1.0).abs() < 1e-9, "{integrated:?}");
    assert_eq!((integrated.kind, integrated.boundary), (Kind::Measured, Boundary::Chip));
}

#[test]
fn a_model_is_time_times_shared_power_within_its_band() {
    let model = PowerModel { share: (2, 64), ..PowerModel::new("AMD EPYC 7763", 280.0) };
    let meter = Modelled::new(model.clone()).expect("valid");
    let energy = meter.energy_over(10.0, 1.0).expect("energy");
    close(&energy, 280.0 * 2.0 / 64.0 * 10.0);
    assert_eq!(
        (energy.kind.to_string(), energy.source.to_string()),
        ("modelled".into(), "modelled-tdp".into())
    );
    assert!((energy.ci95[0] - 43.75).abs() < 1e-9 && (energy.ci95[1] - 113.75).abs() < 1e-9, "{energy:?}");
    assert!(energy.notes[0].starts_with("Modelled, not measured: 2/64 of 280 W TDP"), "{:?}", energy.notes);
    let rest = meter.energy_over(10.0, 0.0).expect("energy");
    close(&rest, 0.3 * 87.5);
    let net = energy.net(&meter.idle().expect("a model knows its idle power")).expect("same meter");
    close(&net, 0.7 * 87.5);
    assert!(net.ci95[0] < energy.ci95[0] && net.uncertainty.idle > 0.0, "net is less certain: {net:?}");

    // As a meter it works for windows of any length.
    let meter: Arc<dyn Meter> = Arc::new(meter);
    let ((), energy) = measure(&meter, || thread::sleep(Duration::from_micros(50)));
    let energy = energy.expect("energy");
    assert!((energy.watts() - 8.75).abs() < 1e-9, "{energy:?}");

    let bad: [fn(&mut PowerModel); 7] = [
        |m| m.tdp_w = f64::NAN,
        |m| m.tdp_w = 0.0,
        |m| m.share = (3, 2),
        |m| m.share = (0, 0),
        |m| m.band = Band { low: 1.2, high: 1.3 },
        |m| m.idle_fraction = 1.5,
        |m| m.utilisation = Utilisation::Fixed(1.1),
    ];
    for spoil in bad {
        let mut model = model.clone();
        spoil(&mut model);
        assert!(matches!(Modelled::new(model.clone()), Err(MeterError::Parameter { .. })), "{model:?}");
    }
}

#[test]
fn a_model_follows_the_busy_time_of_the_machine() {
    let tree = tempfile::tempdir().expect("tempdir");
    let stat = tree.path().join("stat");
    let write = |user: u64| {
        fs::write(&stat, format!("cpu  {user} 0 0 0 0 0 0 0\ncpu0 0 0 0 0\ncpu1 0 0 0 0\n")).expect("write");
    };
    write(100);
    let utilisation = Utilisation::ProcStat(stat.clone());
    let model = PowerModel { utilisation, idle_fraction: 0.2, ..PowerModel::new("cpu", 100.0) };
    let window = Window::start(Arc::new(Modelled::new(model).expect("valid"))).expect("start");
    thread::sleep(Duration::from_millis(30));
    write(104);
    let energy = window.finish().expect("energy");
    // 20 W of idle power for the window, and 80 W for 40 ms of busy time on one of two CPUs.
    let expected = 20.0 * energy.seconds + 80.0 * 0.04 / 2.0;
    assert!((energy.joules / expected - 1.0).abs() < 0.005, "{} against {expected}", energy.joules);
}

#[test]
fn net_subtracts_the_baseline_and_adds_its_uncertainty() {
    let counter = |watts: f64| {
        let mut info = MeterInfo::new("test:c", Source::Other("test"), Boundary::Board, Subject::Gpu);
        info.update_period = Duration::from_millis(100);
        info.accuracy = Band::within(0.05);
        let (mut trace, start) = (Trace::new(info), Instant::now());
        trace.push(start, Sample::Joules(7.0));
        trace.push(start + Duration::from_secs(10), Sample::Joules(7.0 + 10.0 * watts));
        trace.energy().expect("energy")
    };
    let (before, after, gross) = (Idle::new(&counter(60.0)), Idle::new(&counter(64.0)), counter(300.0));
    let idle = Idle::between(&before, &after).expect("one meter");
    assert_eq!(idle.watts, 62.0);
    let net = gross.net(&idle).expect("one meter");
    close(&net, 2380.0);
    // Sampling: 300 W x 0.1 s / sqrt 6. Sensor: 5 % of 3000 J at 95 %. Idle: the two baselines' own sampling, and
    // half their difference as drift, over 10 s.
    let sampling = 30.0 / 6f64.sqrt();
    let sensor = 150.0 / 1.96;
    let own = (60.0f64.hypot(64.0) * 0.1 / 6f64.sqrt() / 10.0) / 2.0;
    let baseline = own.hypot(2.0) * 10.0;
    let u = (sampling * sampling + sensor * sensor + baseline * baseline).sqrt();
    assert!((net.u() - u).abs() < 1e-9, "{} against {u}", net.u());
    assert!((net.ci95[1] - net.joules - 1.96 * u).abs() < 1e-9);
    let token = net.per(100.0).expect("positive");
    assert!((token.joules - 23.8).abs() < 1e-9 && (token.u - u / 100.0).abs() < 1e-9);
    assert!(net.per(0.0).is_none() && net.per(f64::NAN).is_none());

    let foreign = Idle { meter: "other".into(), ..idle };
    assert!(matches!(gross.net(&foreign), Err(MeterError::Mismatch { .. })));
}

#[test]
fn discovery_offers_sensors_before_models_and_names_what_is_missing() {
    let tree = tempfile::tempdir().expect("tempdir");
    let (rapl, hwmon) = (tree.path().join("rapl"), tree.path().join("hwmon"));
    let models = vec![PowerModel::new("cpu", 65.0), PowerModel::new("nonsense", -1.0)];
    let absent = tree.path().join("absent");
    let options = Options {
        powercap_root: rapl.clone(),
        perf: PerfRoots { pmu: absent.clone(), ..PerfRoots::default() },
        hwmon_root: hwmon,
        ina3221_iio_root: absent.clone(),
        power_supply_root: absent.clone(),
        neuron_root: absent.clone(),
        external: vec![ExternalSource::Path(absent)],
        nvml: false,
        models,
        ..Options::default()
    };
    let found = discover(&options);
    assert_eq!(found.cpu().map(|meter| meter.info().kind), Some(Kind::Modelled));
    let origins: Vec<Source> = found.unavailable.iter().map(|missing| missing.origin).collect();
    let all = [
        Source::RaplPowercap,
        Source::RaplPerf,
        Source::Hwmon,
        Source::Ina3221,
        Source::Battery,
        Source::External,
        Source::ModelledNeuron,
        Source::ModelledTdp,
    ];
    assert_eq!(origins, all);

    zone(&rapl, "intel-rapl:0", "package-0", 5_000_000);
    let found = discover(&options);
    assert_eq!(found.cpu().map(|meter| meter.info().kind), Some(Kind::Measured));
}

#[test]
fn this_machine_is_searched_without_a_panic() {
    let found = discover(&Options::default());
    for meter in &found.meters {
        assert_eq!(meter.info().kind, Kind::Measured);
        assert!(meter.info().update_period > Duration::ZERO);
    }
    // Each kind of sensor is found, or explained.
    let sources = [
        Source::RaplPowercap,
        Source::Nvml,
        Source::Hwmon,
        Source::Ina3221,
        Source::Battery,
        Source::ModelledNeuron,
    ];
    for source in sources {
        let usable = found.meters.iter().any(|meter| meter.info().source == source);
        let explained = found.unavailable.iter().any(|missing| missing.origin == source);
        assert!(usable || explained, "{source}: {found:?}");
    }
}
