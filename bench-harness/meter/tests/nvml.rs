//! NVIDIA meters against a stand-in library that is built here (see `fake/nvml.rs`).
#![cfg(all(target_os = "linux", feature = "nvml"))]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use perjoule_meter::{Boundary, DeviceState, Kind, Nvml, Source, Window};

fn build_fake(dir: &Path) -> PathBuf {
    let library = dir.join("libfake_nvml.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake/nvml.rs");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let built = Command::new(rustc)
        .args(["--edition=2024", "--crate-type=cdylib", "--crate-name=fake_nvml", "-o"])
        .args([&library, &source])
        .status()
        .expect("rustc runs");
    assert!(built.success());
    library
}

#[test]
fn each_gpu_is_read_in_the_best_way_it_has() {
    let dir = tempfile::tempdir().expect("tempdir");
    let found = Nvml::discover(Some(&build_fake(dir.path())));
    assert_eq!(found.meters.len(), 4, "{found:?}");
    let expected =
        [("GPU-counter", 200.0, "nvml:GPU-counter"), ("GPU-instant", 120.0, "nvml-power:GPU-instant")];
    for (uuid, watts, id) in expected {
        let meter = found.device(uuid).expect("found by UUID");
        let info = meter.info();
        assert_eq!((info.id.as_str(), info.name.as_str()), (id, "Fake GPU"));
        assert_eq!((info.source, info.boundary, info.kind), (Source::Nvml, Boundary::Board, Kind::Measured));
        let window = Window::start(meter.clone()).expect("start");
        thread::sleep(Duration::from_millis(400));
        let energy = window.finish().expect("energy");
        assert!((energy.watts() / watts - 1.0).abs() < 0.005, "{uuid}: {} W", energy.watts());
        assert_eq!(energy.notes.is_empty(), uuid == "GPU-counter", "integrated power is marked");
    }
    let average = found.device("average").expect("the prefix may be left out");
    assert_eq!(average.info().update_period, Duration::from_secs(1), "PowerUsage is a mean over one second");
    assert!(Window::start(average.clone()).expect("start").finish().is_err(), "too short for it");
}

#[test]
fn a_gpu_says_what_it_knows_about_itself_and_no_more() {
    let dir = tempfile::tempdir().expect("tempdir");
    let found = Nvml::discover(Some(&build_fake(dir.path())));
    let state = |uuid| found.device(uuid).expect("found by UUID").state().expect("a state");
    let known = state("GPU-counter");
    assert_eq!(
        (known.utilisation, known.temperature_c, known.power_limit_w),
        (Some(0.75), Some(64.0), Some(700.0))
    );
    assert_eq!((known.clock_mhz, known.memory_clock_mhz), (Some(1980.0), Some(2619.0)));
    assert_eq!((known.memory_used, known.memory_total), (Some(20 << 30), Some(80 << 30)));
    assert_eq!(known.throttle_reasons.as_deref(), Some(&["power limit"][..]), "idleness is no throttling");
    assert_eq!(known.fan, None, "the library does not have that function");
    assert_eq!(state("GPU-average"), DeviceState::default(), "nothing is made up");
}

#[test]
fn the_counter_agrees_with_its_power_sensor() {
    let dir = tempfile::tempdir().expect("tempdir");
    let library = build_fake(dir.path());
    let counter = Nvml::open_with(Some(&library), "GPU-counter").expect("counter");
    let power = counter.by_power().expect("power");
    let windows = [
        Window::start(std::sync::Arc::new(counter)).expect("start"),
        Window::start(std::sync::Arc::new(power)).expect("start"),
    ];
    thread::sleep(Duration::from_millis(400));
    let [counted, integrated] = windows.map(|window| window.finish().expect("energy"));
    assert!((counted.watts() / integrated.watts() - 1.0).abs() < 0.005, "{counted:?} {integrated:?}");
    assert!(Nvml::open_with(Some(&library), "GPU-unknown").is_err());
}

#[test]
fn a_counter_that_disagrees_with_its_power_sensor_is_noted_and_less_certain() {
    let dir = tempfile::tempdir().expect("tempdir");
    let library = build_fake(dir.path());
    let energy = |uuid| {
        let meter = Nvml::open_with(Some(&library), uuid).expect("opens");
        let window = Window::start(std::sync::Arc::new(meter)).expect("start");
        thread::sleep(Duration::from_millis(1200));
        window.finish().expect("energy")
    };
    let apart = energy("GPU-disagrees");
    assert!((apart.watts() / 187.0 - 1.0).abs() < 0.005, "the counter is still the figure: {apart:?}");
    let [note] = &apart.notes[..] else { panic!("{apart:?}") };
    assert!(note.contains("nvml:GPU-disagrees") && note.contains("75 % apart"), "{note}");
    let integral = 327.0 * apart.seconds;
    assert!(apart.ci95[0] < apart.joules && apart.ci95[1] > integral, "the interval covers both: {apart:?}");
    assert!(apart.u() > (integral - apart.joules) / 3f64.sqrt(), "{apart:?}");

    let alike = energy("GPU-counter");
    assert!(alike.notes.is_empty() && alike.ci95[1] < 1.2 * alike.joules, "{alike:?}");
}

#[test]
fn an_absent_library_is_a_plain_reason() {
    let found = Nvml::discover(Some(Path::new("/nonexistent/libnvidia-ml.so.1")));
    assert!(found.meters.is_empty());
    assert!(found.unavailable[0].reason.contains("is not installed"), "{found:?}");
    assert!(
        found.unavailable[0].fix.as_deref().is_some_and(|fix| fix.contains("libnvidia-ml1")),
        "{found:?}"
    );
}
