//! Sources against fixture trees and stand-ins for their senders.
#![cfg(unix)]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use perjoule_meter::{
    Battery, Boundary, Discovery, Energy, External, ExternalSource, Hwmon, Ina3221, Kind, Meter, MeterError,
    Neuron, NeuronMaximum, Options, PerfRoots, Result, Source, Subject, Window, discover,
};

fn put(dir: &Path, files: &[(&str, &str)]) {
    fs::create_dir_all(dir).expect("mkdir");
    for (name, text) in files {
        fs::write(dir.join(name), format!("{text}\n")).expect("write");
    }
}

fn boundaries(found: &Discovery) -> Vec<Boundary> {
    found.meters.iter().map(|meter| meter.info().boundary).collect()
}

/// Energy over a window in which `then` runs.
fn energy(meter: &Arc<dyn Meter>, length: Duration, then: impl FnOnce()) -> Result<Energy> {
    let window = Window::start(meter.clone()).expect("start");
    thread::sleep(length);
    then();
    window.finish()
}

const SHORT: Duration = Duration::from_millis(350);

/// Its counter goes on by 2^-16 J a step, beside the power that hwmon has.
#[test]
fn a_gpu_of_amd_that_counts_its_energy_is_measured_by_that() {
    let tree = tempfile::tempdir().expect("tempdir");
    let (drm, hwmon) = (tree.path().join("drm"), tree.path().join("hwmon"));
    let device = tree.path().join("devices/0000:43:00.0");
    fs::create_dir_all(&device).expect("mkdir");
    let set = |joules: u64| {
        let mut table = vec![0u8; 288];
        table[..4].copy_from_slice(&[32, 1, 1, 4]);
        table[24..32].copy_from_slice(&((1000 + joules) << 16).to_le_bytes());
        fs::write(device.join("gpu_metrics"), table).expect("write");
    };
    set(0);
    for name in ["card0", "card0-DP-1", "renderD128"] {
        fs::create_dir_all(drm.join(name)).expect("mkdir");
        symlink(&device, drm.join(name).join("device")).expect("symlink");
    }
    put(&hwmon.join("hwmon0"), &[("name", "amdgpu"), ("power1_average", "90000000")]);
    symlink(&device, hwmon.join("hwmon0/device")).expect("symlink");
    let options = Options {
        drm_root: drm,
        hwmon_root: hwmon,
        nvml: false,
        powercap_root: tree.path().join("none"),
        ..Options::default()
    };
    let found = discover(&options);
    let meter = found.device("0000:43:00.0").expect("by its address");
    assert_eq!((meter.info().source, meter.info().boundary), (Source::AmdGpuMetrics, Boundary::Chip));
    let of_card = |m: &&Arc<dyn Meter>| m.info().device.as_deref() == Some("0000:43:00.0");
    assert_eq!(found.meters.iter().filter(of_card).count(), 2, "the counter, and hwmon's power");
    let seen = energy(meter, SHORT, || set(300)).expect("energy");
    assert_eq!(seen.joules, 300.0);
}

#[test]
fn gpu_drivers_are_told_apart_by_channel_and_pci_address() {
    let tree = tempfile::tempdir().expect("tempdir");
    let hwmon = tree.path().join("hwmon");
    let add = |n: u32, address: &str, files: &[(&str, &str)]| {
        let device = tree.path().join("devices").join(address);
        fs::create_dir_all(&device).expect("mkdir");
        let dir = hwmon.join(format!("hwmon{n}"));
        put(&dir, files);
        symlink(device, dir.join("device")).expect("symlink");
    };
    add(0, "0000:03:00.0", &[("name", "i915"), ("energy1_input", "5000000")]);
    add(1, "0000:03:00.0", &[("name", "i915_gt0"), ("energy1_input", "4000000")]);
    // Newer amdgpu has an instantaneous reading only; Van Gogh a second limit that watches the same power.
    add(2, "0000:43:00.0", &[("name", "amdgpu"), ("power1_input", "90000000"), ("power1_label", "PPT")]);
    add(
        3,
        "0000:04:00.0",
        &[
            ("name", "amdgpu"),
            ("power1_average", "12000000"),
            ("power1_label", "slowPPT"),
            ("power2_average", "13000000"),
            ("power2_label", "fastPPT"),
        ],
    );
    // No labels, as in the first releases of xe; a third channel is of no known scope.
    let energies = [("energy1_input", "70"), ("energy2_input", "50"), ("energy3_input", "1")];
    add(4, "0000:83:00.0", &[&[("name", "xe")], &energies[..]].concat());

    let found = Hwmon::discover(&hwmon);
    assert!(found.unavailable.is_empty(), "{found:?}");
    let seen: Vec<(&str, &str, Boundary)> = found
        .meters
        .iter()
        .map(|meter| {
            let info = meter.info();
            let driver = info.name.split(' ').next().expect("a name");
            (driver, info.device.as_deref().expect("an address"), info.boundary)
        })
        .collect();
    assert_eq!(
        seen,
        [
            ("i915", "0000:03:00.0", Boundary::Board),
            ("amdgpu", "0000:43:00.0", Boundary::Chip),
            ("amdgpu", "0000:04:00.0", Boundary::Chip),
            ("xe", "0000:83:00.0", Boundary::Board),
            ("xe", "0000:83:00.0", Boundary::Chip),
        ]
    );
    assert!(found.meters.iter().all(|meter| meter.info().subject == Subject::Gpu));
    let board = found.device("0000:83:00.0").expect("by address").info();
    assert_eq!(board.boundary, Boundary::Board, "the card comes before its chip");
    // 4295 J at 1 kW, a quarter of that as spacing.
    assert_eq!(board.poll_every, Some(Duration::from_secs_f64(4_294.967_296 / 4_000.0)));
    assert_eq!(board.wraps_at, Some(4_294.967_296));
}

/// Grace's meters as older kernels show them: the attributes on the ACPI device, the class entry empty.
fn grace(tree: &Path, n: u32, label: &str, watts: f64) {
    let device = tree.join(format!("devices/ACPI000D:{n:02}"));
    let average = format!("{:.0}", watts * 1e6);
    put(
        &device,
        &[
            ("name", "power_meter"),
            ("power1_average", &average),
            ("power1_oem_info", label),
            ("power1_average_interval", "50"),
            ("power1_accuracy", "100.0%"),
            ("power1_is_battery", "0"),
        ],
    );
    let dir = tree.join(format!("hwmon/hwmon{n}"));
    fs::create_dir_all(&dir).expect("mkdir");
    symlink(device, dir.join("device")).expect("symlink");
}

#[test]
fn the_acpi_meters_of_two_grace_sockets_are_summed_by_kind_and_kept_apart() {
    let tree = tempfile::tempdir().expect("tempdir");
    for socket in 0..2 {
        let at = |n: u32| 4 * socket + n;
        let name = |kind: &str| format!("{kind} Power Socket {socket}");
        grace(tree.path(), at(0), &name("Module"), 500.0);
        grace(tree.path(), at(1), &name("Grace"), 150.0 + f64::from(socket));
        grace(tree.path(), at(2), &name("CPU"), 80.0);
        grace(tree.path(), at(3), &name("SysIO"), 20.0);
    }
    let found = Hwmon::discover(&tree.path().join("hwmon"));
    use Boundary::{Core, Module, Package, Uncore};
    assert_eq!(boundaries(&found), [Module, Module, Package, Core, Uncore], "{found:?}");
    let cpu = found.cpu().expect("the sockets together are the CPU");
    assert_eq!(cpu.info().name, "CPU sockets (ACPI), sum of 2");
    assert_eq!(cpu.info().update_period, Duration::from_millis(50));
    assert_eq!(cpu.info().accuracy.low, 0.9, "a firmware that claims 100 % is not believed");
    let sum = energy(cpu, SHORT, || ()).expect("energy");
    assert!((sum.watts() - 301.0).abs() < 1e-6, "{sum:?}");

    let infos: Vec<_> = found.meters.iter().map(|meter| meter.info()).collect();
    assert!(infos[0].overlaps(infos[2]) && infos[2].overlaps(infos[3]) && infos[2].overlaps(infos[4]));
    assert!(!infos[3].overlaps(infos[4]), "cores and fabric are apart");
}

#[test]
fn a_socket_whose_meter_fails_takes_the_sum_with_it() {
    let tree = tempfile::tempdir().expect("tempdir");
    grace(tree.path(), 0, "Grace Power Socket 0", 150.0);
    grace(tree.path(), 1, "Grace Power Socket 1", 150.0);
    fs::write(tree.path().join("devices/ACPI000D:01/power1_average"), "").expect("write");
    let found = Hwmon::discover(&tree.path().join("hwmon"));
    assert!(found.meters.is_empty() && found.cpu().is_none(), "half of the CPU is not the CPU: {found:?}");
    assert_eq!(found.unavailable[0].what, "CPU sockets (ACPI)");
}

#[test]
fn an_acpi_meter_without_a_label_is_the_platform_and_batteries_are_not_meters() {
    let tree = tempfile::tempdir().expect("tempdir");
    let files = [("name", "power_meter"), ("power1_average", "210000000"), ("power1_accuracy", "80.0%")];
    put(&tree.path().join("hwmon0"), &files);
    put(
        &tree.path().join("hwmon1"),
        &[("name", "power_meter"), ("power1_average", "9000000"), ("power1_is_battery", "1")],
    );
    for (n, driver) in
        ["BAT0", "ucsi_source_psy_USBC000:001", "ADP1", "amd_energy", "ina3221"].iter().enumerate()
    {
        let dir = tree.path().join(format!("hwmon{}", n + 2));
        put(&dir, &[("name", driver), ("power1_input", "1"), ("energy1_input", "1")]);
    }
    let found = Hwmon::discover(tree.path());
    assert_eq!(boundaries(&found), [Boundary::Platform], "{found:?}");
    let info = found.meters[0].info();
    assert!((info.accuracy.high - 1.2).abs() < 1e-12, "worse than assumed is believed");
    assert!(info.notes.iter().any(|note| note.contains("firmware's choice")), "{info:?}");
}

/// A chip as mainline Linux shows it: label, millivolts, milliamperes.
fn ina3221(root: &Path, n: u32, rails: [(&str, i64, i64); 3]) {
    let dir = root.join(format!("hwmon{n}"));
    put(&dir, &[("name", "ina3221"), ("update_interval", "20")]);
    for (i, (label, mv, ma)) in rails.iter().enumerate() {
        let (mv, ma, i) = (mv.to_string(), ma.to_string(), i + 1);
        put(
            &dir,
            &[
                (&format!("in{i}_label"), label),
                (&format!("in{i}_input"), &mv),
                (&format!("curr{i}_input"), &ma),
                (&format!("in{i}_enable"), if *label == "NC" { "0" } else { "1" }),
            ],
        );
    }
}

#[test]
fn a_jetson_with_a_supply_rail_counts_that_rail_once() {
    let root = tempfile::tempdir().expect("tempdir");
    ina3221(root.path(), 0, [("VDD_IN", 5000, 2000), ("VDD_CPU_GPU_CV", 5000, 800), ("VDD_SOC", 5000, -3)]);
    let found = Ina3221::discover(root.path(), &root.path().join("none"));
    use Boundary::{Module, Rail};
    assert_eq!(boundaries(&found), [Module, Rail, Rail, Rail], "{found:?}");
    let watts: Vec<f64> =
        found.meters.iter().map(|meter| energy(meter, SHORT, || ()).expect("energy").watts()).collect();
    for (watts, expected) in watts.iter().zip([10.0, 10.0, 4.0, 0.0]) {
        assert!((watts - expected).abs() < 1e-9, "{watts} W, expected {expected} W");
    }
    let module = found.meters[0].info();
    assert_eq!((module.subject, module.source), (Subject::System, Source::Ina3221));
    assert!(found.meters[1..].iter().all(|rail| module.overlaps(rail.info())));
    let hwmon = Hwmon::discover(root.path());
    assert!(hwmon.meters.is_empty(), "the rails are not meters of hwmon as well: {hwmon:?}");
}

#[test]
fn an_agx_orin_is_the_sum_of_its_inputs_without_the_memory_they_feed() {
    let root = tempfile::tempdir().expect("tempdir");
    ina3221(
        root.path(),
        0,
        [("VDD_GPU_SOC", 20_000, 500), ("VDD_CPU_CV", 20_000, 250), ("VIN_SYS_5V0", 5000, 1000)],
    );
    ina3221(root.path(), 1, [("NC", 0, 0), ("VDDQ_VDD2_1V8AO", 5000, 400), ("NC", 0, 0)]);
    let found = Ina3221::discover(root.path(), &root.path().join("none"));
    assert_eq!(found.meters.len(), 5, "{found:?}");
    let sum = energy(&found.meters[0], SHORT, || ()).expect("energy");
    assert!((sum.watts() - 20.0).abs() < 1e-9, "{sum:?}");
    assert!(sum.ci95[1] >= 1.2 * sum.joules - 1e-9 && sum.notes[0].contains("sum"), "{sum:?}");
}

#[test]
fn rails_that_nest_in_unknown_ways_are_not_summed() {
    let root = tempfile::tempdir().expect("tempdir");
    ina3221(root.path(), 0, [("GPU", 19_000, 100), ("CPU", 19_000, 100), ("SOC", 19_000, 100)]);
    ina3221(root.path(), 1, [("CV", 19_000, 0), ("VDDRQ", 19_000, 50), ("SYS5V", 19_000, 90)]);
    let found = Ina3221::discover(root.path(), &root.path().join("none"));
    assert!(boundaries(&found).iter().all(|boundary| *boundary == Boundary::Rail), "{found:?}");
    assert!(found.unavailable[0].reason.contains("SYS5V"), "{found:?}");
    assert!(found.unavailable[0].fix.is_some());

    // JetPack 4: milliwatts, by iio.
    let iio = root.path().join("ina3221x");
    put(
        &iio.join("6-0040/iio:device0"),
        &[
            ("rail_name_0", "POM_5V_IN"),
            ("in_power0_input", "3100"),
            ("rail_name_1", "POM_5V_GPU"),
            ("in_power1_input", "400"),
            ("rail_name_2", "POM_5V_CPU"),
            ("in_power2_input", "900"),
        ],
    );
    let found = Ina3221::discover(&root.path().join("none"), &iio);
    assert_eq!(found.meters.len(), 4, "{found:?}");
    let module = energy(&found.meters[0], SHORT, || ()).expect("energy");
    assert!((module.watts() - 3.1).abs() < 1e-9 && module.boundary == Boundary::Module);

    let none = Ina3221::discover(&root.path().join("none"), &root.path().join("none"));
    assert!(
        none.meters.is_empty() && none.unavailable[0].fix.as_deref().is_some_and(|f| f.contains("modprobe"))
    );
}

#[test]
fn a_battery_is_a_meter_only_while_it_discharges() {
    let root = tempfile::tempdir().expect("tempdir");
    let at = |name: &str| root.path().join(name);
    put(&at("AC"), &[("type", "Mains"), ("online", "0")]);
    put(&at("BAT0"), &[("type", "Battery"), ("status", "Discharging"), ("power_now", "14500000")]);
    // Rests while the first one is used; this one gives a current, negative as on some drivers.
    put(
        &at("BAT1"),
        &[
            ("type", "Battery"),
            ("status", "Not charging"),
            ("voltage_now", "12000000"),
            ("current_now", "-500000"),
        ],
    );
    put(
        &at("hidpp_battery_0"),
        &[("type", "Battery"), ("scope", "Device"), ("status", "Discharging"), ("power_now", "1")],
    );
    let found = Battery::discover(root.path());
    let [meter] = &found.meters[..] else { panic!("{found:?}") };
    let info = meter.info();
    assert_eq!(
        (info.boundary, info.subject, info.name.as_str()),
        (Boundary::Battery, Subject::System, "batteries, sum of 2")
    );
    assert!(matches!(meter.read(), Ok(perjoule_meter::Sample::Watts(w)) if (w - 14.5).abs() < 1e-9));
    put(&at("BAT1"), &[("status", "Discharging")]);
    assert!(matches!(meter.read(), Ok(perjoule_meter::Sample::Watts(w)) if (w - 20.5).abs() < 1e-9));

    // Plugged in and out again within a window: the poll sees it.
    let spoilt = energy(meter, Duration::from_millis(200), || put(&at("AC"), &[("online", "1")]));
    assert!(matches!(spoilt, Err(MeterError::Lost { .. })), "{spoilt:?}");
    let window = Window::start(meter.clone());
    assert!(matches!(window, Err(MeterError::Lost { .. })), "{window:?}");
    let plugged = Battery::discover(root.path());
    assert!(plugged.meters.is_empty() && plugged.unavailable[0].fix.as_deref() == Some("unplug the charger"));

    put(&at("AC"), &[("online", "0")]);
    let window = Window::start(meter.clone()).expect("start");
    put(&at("BAT0"), &[("status", "Charging")]);
    thread::sleep(Duration::from_millis(2500));
    put(&at("BAT0"), &[("status", "Discharging")]);
    let spoilt = window.finish();
    assert!(
        matches!(&spoilt, Err(MeterError::Lost { reason, .. }) if reason.contains("Charging")),
        "{spoilt:?}"
    );
    assert!(Battery::discover(&at("none")).unavailable[0].reason.contains("no battery"));
}

#[test]
fn neuron_devices_are_modelled_from_a_stated_maximum() {
    let root = tempfile::tempdir().expect("tempdir");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let power = root.path().join("neuron0/stats/power");
    let write = |text: String| put(&power, &[("utilization", &text)]);
    write(format!("POWER_STATUS_VALID,{now},0.86,25.00,18.50"));
    let unknown = Neuron::discover(root.path(), None);
    assert!(
        unknown.meters.is_empty()
            && unknown.unavailable[0].fix.as_deref().is_some_and(|f| f.contains("maximum"))
    );

    let found = Neuron::discover(root.path(), Some(NeuronMaximum::new(500.0)));
    let [meter] = &found.meters[..] else { panic!("{found:?}") };
    let info = meter.info();
    assert_eq!((info.kind, info.source.as_str()), (Kind::Modelled, "modelled-neuron"));
    assert_eq!((info.device.as_deref(), info.update_period), (Some("neuron0"), Duration::from_secs(60)));
    assert!(info.notes[0].starts_with("Modelled, not measured"), "{info:?}");
    assert!(matches!(meter.read(), Ok(perjoule_meter::Sample::Watts(w)) if (w - 92.5).abs() < 1e-9));

    for (text, expected) in [
        (format!("POWER_STATUS_NO_DATA,{now},0,0,0"), "NO_DATA"),
        (format!("POWER_STATUS_VALID,{},0,0,1", now - 600), "old"),
        ("POWER_STATUS_VALID,1".into(), "expected"),
        (format!("POWER_STATUS_VALID,{now},0,0,101"), "expected"),
    ] {
        write(text.clone());
        let refused = meter.read().expect_err(&text).to_string();
        assert!(refused.contains(expected), "{text}: {refused}");
    }
    let bad = Neuron::discover(root.path(), Some(NeuronMaximum::new(f64::NAN)));
    assert!(bad.meters.is_empty() && bad.unavailable[0].reason.contains("watts"), "{bad:?}");
}

#[cfg(feature = "neuron")]
#[test]
fn neuron_records_of_json_are_followed_until_they_end() {
    let (mut sender, reader) = UnixStream::pair().expect("pair");
    let record = |percent: &str| format!("{{\"system_data\":{{\"devices\":[{{\"power\":{percent}}}]}}}}\n");
    sender.write_all(record("40.0").as_bytes()).expect("send");
    let maximum = NeuronMaximum::new(250.0);
    let meter =
        Neuron::from_json("trn", reader, "/system_data/devices/0/power", Duration::from_millis(300), maximum)
            .expect("a first record");
    let meter: Arc<dyn Meter> = Arc::new(meter);
    let window = Window::start(meter.clone()).expect("start");
    for text in [record("40"), "not json\n".into(), record("\"x\""), record("40")] {
        thread::sleep(Duration::from_millis(150));
        sender.write_all(text.as_bytes()).expect("send");
    }
    thread::sleep(Duration::from_millis(150));
    let energy = window.finish().expect("energy");
    assert!((energy.watts() - 100.0).abs() < 1e-9 && energy.kind == Kind::Modelled, "{energy:?}");
    assert!(energy.notes.iter().any(|note| note.starts_with("2 lines")), "{energy:?}");
    drop(sender);
    thread::sleep(Duration::from_millis(50));
    assert!(matches!(meter.read(), Err(MeterError::Lost { .. })));

    let none = Neuron::from_json("trn", &b"{}\n"[..], "/power", Duration::from_millis(50), maximum);
    assert!(matches!(&none, Err(MeterError::Absent { reason, .. }) if reason.contains("/power")), "{none:?}");
}

const HEADER: &str =
    "# protocol: perjoule-meter 1\n# name: wall\n# boundary: wall\n# accuracy: 1 %\n# period: 0.3 s\n";

/// A meter fed through one end of a socket pair.
fn fed(header: &str, first: &str) -> (UnixStream, Arc<dyn Meter>) {
    let (mut sender, reader) = UnixStream::pair().expect("pair");
    sender.write_all(header.as_bytes()).expect("send");
    sender.write_all(first.as_bytes()).expect("send");
    let meter = External::from_reader("test", reader, Duration::from_secs(5)).expect("a first reading");
    (sender, Arc::new(meter))
}

/// Sends a line every 150 ms.
fn send(sender: &mut impl Write, lines: &[&str]) {
    for line in lines {
        thread::sleep(Duration::from_millis(150));
        sender.write_all(format!("{line}\n").as_bytes()).expect("send");
    }
}

#[test]
fn an_external_meter_of_power_is_integrated() {
    let (mut sender, meter) = fed(HEADER, "W 60\n");
    let info = meter.info();
    assert_eq!((info.source, info.boundary, info.name.as_str()), (Source::External, Boundary::Wall, "wall"));
    assert!((info.accuracy.high - 1.01).abs() < 1e-12 && info.update_period == Duration::from_millis(300));
    let window = Window::start(meter.clone()).expect("start");
    send(&mut sender, &["W 60", "W 60 17.0", "W 60 17.15", "# a remark", "W 60 17.45"]);
    let energy = window.finish().expect("energy");
    assert!((energy.watts() - 60.0).abs() < 1e-9, "{energy:?}");
    assert!(energy.notes.iter().all(|note| !note.contains("lines")), "{energy:?}");
    // The sensor's 1 % and nothing else, for a load this steady.
    assert!((energy.ci95[1] / energy.joules - 1.01).abs() < 1e-9, "{energy:?}");
}

#[test]
fn garbage_is_noted_silence_and_a_vanished_sender_are_errors() {
    let (mut sender, meter) = fed(HEADER, "W 60\n");
    let window = Window::start(meter.clone()).expect("start");
    send(&mut sender, &["W 60", "W sixty", "\u{1}\u{2}", "W 60", "J 12", "W 60"]);
    let energy = window.finish().expect("energy");
    assert!(energy.notes.iter().any(|note| note.starts_with("3 lines of the meter")), "{energy:?}");

    // Silent for longer than three periods in the middle of a window.
    let window = Window::start(meter.clone()).expect("start");
    thread::sleep(Duration::from_millis(1500));
    send(&mut sender, &["W 60", "W 60"]);
    let silent = window.finish();
    assert!(
        matches!(&silent, Err(MeterError::Lost { reason, .. }) if reason.contains("no line came")),
        "{silent:?}"
    );

    let window = Window::start(meter.clone()).expect("start");
    drop(sender);
    thread::sleep(Duration::from_millis(100));
    let gone = window.finish();
    assert!(matches!(&gone, Err(MeterError::Lost { reason, .. }) if reason.contains("closed")), "{gone:?}");
}

#[test]
fn an_external_counter_survives_silence_and_not_a_restart() {
    let (mut sender, meter) = fed(HEADER, "J 1000\n");
    let window = Window::start(meter.clone()).expect("start");
    thread::sleep(Duration::from_millis(1500));
    send(&mut sender, &["J 1012.5"]);
    thread::sleep(Duration::from_millis(50));
    let energy = window.finish().expect("energy");
    assert!((energy.joules - 12.5).abs() < 1e-9, "{energy:?}");
    assert!(energy.notes.iter().any(|note| note.contains("failed")), "the silence is noted: {energy:?}");

    let window = Window::start(meter.clone()).expect("start");
    send(&mut sender, &["J 1013", "J 2", "J 3", "J 4"]);
    thread::sleep(Duration::from_millis(50));
    let restarted = window.finish();
    assert!(matches!(restarted, Err(MeterError::Impossible { .. })), "{restarted:?}");
}

#[test]
fn streams_without_a_header_or_a_sender_are_refused_with_the_reason() {
    let open =
        |text: &'static str| External::from_reader("test", text.as_bytes(), Duration::from_millis(200));
    let refused = open("W 60\n").expect_err("no boundary").to_string();
    assert!(refused.contains("boundary"), "{refused}");
    let refused = open("# boundary: wall\n# accuracy: good\nW 60\n").expect_err("bad accuracy").to_string();
    assert!(refused.contains("# accuracy: good"), "{refused}");
    assert!(matches!(open(""), Err(MeterError::Absent { .. })));
    let (_sender, silent) = UnixStream::pair().expect("pair");
    let late =
        External::from_reader("test", silent, Duration::from_millis(50)).expect_err("silent").to_string();
    assert!(late.contains("no reading came within"), "{late}");
    let missing = External::open(&ExternalSource::Path("/nonexistent/meter".into()), Duration::from_secs(5));
    assert!(
        matches!(&missing, Err(MeterError::Absent { reason, .. }) if reason.contains("cannot be opened") || reason.contains("failed")),
        "{missing:?}"
    );
}

#[test]
fn a_fifo_and_a_unix_socket_are_read() {
    let dir = tempfile::tempdir().expect("tempdir");
    let fifo = dir.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().expect("mkfifo").success());
    let writer = {
        let fifo = fifo.clone();
        thread::spawn(move || {
            let mut file = fs::OpenOptions::new().write(true).open(fifo).expect("opens");
            file.write_all(HEADER.as_bytes()).expect("send");
            send(&mut file, &["W 31"; 12]);
        })
    };
    let options = Options { external: vec![ExternalSource::Path(fifo)], ..nothing(dir.path()) };
    let found = discover(&options);
    let [meter] = &found.meters[..] else { panic!("{found:?}") };
    let read = energy(meter, Duration::from_millis(900), || ()).expect("energy");
    assert!((read.watts() - 31.0).abs() < 1e-9, "{read:?}");
    writer.join().expect("no panic");

    let path = dir.path().join("socket");
    let listener = UnixListener::bind(&path).expect("bind");
    let server = thread::spawn(move || {
        let (mut peer, _) = listener.accept().expect("accept");
        peer.write_all(HEADER.as_bytes()).expect("send");
        send(&mut peer, &["J 5", "J 6"]);
        // Until the meter is gone.
        let _ = peer.read(&mut [0]);
    });
    let meter = External::open(&ExternalSource::Path(path), Duration::from_secs(5)).expect("a first reading");
    assert!(matches!(meter.read(), Ok(perjoule_meter::Sample::Joules(j)) if j >= 5.0));
    drop(meter);
    drop(server);
}

/// The example of PROTOCOL.md, run as it stands there.
#[test]
fn the_python_example_of_the_protocol_feeds_a_meter() {
    let text =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("PROTOCOL.md")).expect("PROTOCOL.md");
    let program =
        text.split("```python\n").nth(1).and_then(|rest| rest.split("```").next()).expect("an example");
    let child = Command::new("python3").args(["-c", program]).stdout(std::process::Stdio::piped()).spawn();
    let Ok(mut child) = child else {
        eprintln!("python3 is not installed: the example was not run");
        return;
    };
    let out = child.stdout.take().expect("piped");
    let meter = External::from_reader("python", out, Duration::from_secs(20)).expect("a first reading");
    assert_eq!(meter.info().boundary, Boundary::Wall);
    assert!(matches!(meter.read(), Ok(perjoule_meter::Sample::Watts(w)) if w > 0.0));
    child.kill().expect("kill");
    child.wait().expect("wait");
}

/// Options that find nothing.
fn nothing(root: &Path) -> Options {
    let none = root.join("none");
    Options {
        powercap_root: none.clone(),
        perf: PerfRoots { pmu: none.clone(), ..PerfRoots::default() },
        drm_root: none.clone(),
        hwmon_root: none.clone(),
        ina3221_iio_root: none.clone(),
        power_supply_root: none.clone(),
        neuron_root: none,
        nvml: false,
        ..Options::default()
    }
}
