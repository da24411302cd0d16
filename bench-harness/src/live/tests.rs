//! Readings of trees made here, and how they are drawn at any size.

use perjoule_meter::{Boundary, DeviceState, Kind, Meter, MeterInfo, Sample, Source, Subject};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::sample::{DeviceReading, Part, Reading, Roots, Sampler};
use super::text::Look;
use super::view::{Overlay, Sort, State, draw};

/// A sensor that shows what it is told to.
#[derive(Debug)]
struct Shows(MeterInfo, Option<f64>);

impl Meter for Shows {
    fn info(&self) -> &MeterInfo {
        &self.0
    }

    fn read(&self) -> perjoule_meter::Result<Sample> {
        let lost =
            || perjoule_meter::MeterError::Lost { meter: self.0.id.clone(), reason: "unplugged".into() };
        self.1.map(Sample::Watts).ok_or_else(lost)
    }

    fn state(&self) -> Option<DeviceState> {
        let mut state = DeviceState::default();
        (state.utilisation, state.temperature_c) = (Some(0.9), Some(71.0));
        state.throttle_reasons = Some(vec!["power limit"]);
        (self.0.source == Source::Nvml).then_some(state)
    }
}

fn meter(
    name: &str,
    source: Source,
    boundary: Boundary,
    subject: Subject,
    watts: Option<f64>,
) -> Arc<dyn Meter> {
    let mut info = MeterInfo::new(name, source, boundary, subject);
    info.kind = if source == Source::ModelledTdp { Kind::Modelled } else { Kind::Measured };
    info.device = (subject == Subject::Gpu).then(|| name.to_owned());
    Arc::new(Shows(info, watts))
}

fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

fn link(root: &Path, path: &str, to: &str) {
    let path = root.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::create_dir_all(root.join(to)).unwrap();
    std::os::unix::fs::symlink(root.join(to), path).unwrap();
}

/// A machine with four processors, an AMD GPU, an Intel GPU, another driver's, and a Neuron device.
fn machine() -> (tempfile::TempDir, Roots) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    for cpu in 0..4 {
        let mhz = 2_000_000 + cpu * 500_000;
        write(root, &format!("sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_cur_freq"), &mhz.to_string());
        write(root, &format!("sys/devices/system/cpu/cpu{cpu}/thermal_throttle/core_throttle_count"), "2\n");
    }
    write(root, "sys/class/hwmon/hwmon0/name", "k10temp\n");
    write(root, "sys/class/hwmon/hwmon0/temp1_input", "61000\n");
    ticks(root, 0, 0);
    write(root, "proc/meminfo", "MemTotal:  8388608 kB\nMemFree: 1 kB\nMemAvailable:  6291456 kB\n");

    let amd = "sys/devices/pci0000:00/0000:03:00.0";
    link(root, "sys/class/drm/card0/device", amd);
    link(root, &format!("{amd}/driver"), "sys/bus/pci/drivers/amdgpu");
    write(root, &format!("{amd}/gpu_busy_percent"), "42\n");
    write(root, &format!("{amd}/mem_info_vram_used"), "1073741824\n");
    write(root, &format!("{amd}/mem_info_vram_total"), "17179869184\n");
    write(root, &format!("{amd}/pp_dpm_sclk"), "0: 500Mhz\n1: 2124Mhz *\n2: 2500Mhz\n");
    write(root, &format!("{amd}/hwmon/hwmon5/temp1_input"), "55000\n");
    write(root, &format!("{amd}/hwmon/hwmon5/power1_cap"), "300000000\n");
    write(root, &format!("{amd}/hwmon/hwmon5/fan1_input"), "1500\n");
    write(root, &format!("{amd}/hwmon/hwmon5/fan1_max"), "3000\n");
    let intel = "sys/devices/pci0000:00/0000:04:00.0";
    link(root, "sys/class/drm/card1/device", intel);
    link(root, &format!("{intel}/driver"), "sys/bus/pci/drivers/xe");
    write(root, &format!("{intel}/tile0/gt0/freq0/act_freq"), "1950\n");
    link(root, "sys/class/drm/card2/device", "sys/devices/pci0000:00/0000:05:00.0");
    link(root, "sys/devices/pci0000:00/0000:05:00.0/driver", "sys/bus/pci/drivers/ast");
    write(root, "sys/class/drm/card0-DP-1/status", "connected\n");
    write(
        root,
        "sys/devices/virtual/neuron_device/neuron0/stats/power/utilization",
        "1,1700000000,10.0,30.0,20.5\n",
    );
    let roots = Roots { sys: root.join("sys"), proc: root.join("proc") };
    (dir, roots)
}

/// `/proc/stat` with so many busy ticks of the first processor and idle ones of the others.
fn ticks(root: &Path, busy: u64, idle: u64) {
    let all = format!("cpu  {busy} 0 0 {} 0 0 0 0 0 0\n", 3 * idle);
    let first = format!("cpu0 {busy} 0 0 0 0 0 0 0 0 0\n");
    let rest: String = (1..4).map(|i| format!("cpu{i} 0 0 0 {idle} 0 0 0 0 0 0\n")).collect();
    write(root, "proc/stat", &(all + &first + &rest));
}

fn of<'r>(reading: &'r Reading, id: &str) -> &'r DeviceReading {
    reading.devices.iter().find(|device| device.id == id).unwrap()
}

/// Sums of parts of an interval may miss the last digits.
fn rounded(watts: Option<f64>) -> Option<f64> {
    watts.map(|watts| (watts * 1e6).round() / 1e6)
}

#[test]
fn everything_that_a_machine_shows_is_read() {
    let (dir, roots) = machine();
    let meters = [
        meter("model", Source::ModelledTdp, Boundary::Package, Subject::Cpu, Some(99.0)),
        meter("core", Source::RaplPowercap, Boundary::Core, Subject::Cpu, Some(40.0)),
        meter("package", Source::RaplPowercap, Boundary::Package, Subject::Cpu, Some(65.0)),
        meter("dram", Source::RaplPowercap, Boundary::Dram, Subject::Memory, Some(5.0)),
        meter("0000:03:00.0", Source::Hwmon, Boundary::Chip, Subject::Gpu, Some(120.0)),
        meter("GPU-1", Source::Nvml, Boundary::Board, Subject::Gpu, Some(300.0)),
        meter("wall", Source::External, Boundary::Wall, Subject::System, None),
    ];
    let mut sampler = Sampler::new(&meters, "Test CPU\u{1b}[31m", roots);
    ticks(dir.path(), 100, 100);
    for cpu in 0..2 {
        let path = format!("sys/devices/system/cpu/cpu{cpu}/thermal_throttle/core_throttle_count");
        write(dir.path(), &path, "5\n");
    }
    let reading = sampler.reading();
    let ids: Vec<&str> = reading.devices.iter().map(|device| device.id.as_str()).collect();
    assert_eq!(ids, ["cpu", "memory", "gpu0", "gpu1", "gpu2", "gpu3", "machine"]);

    let cpu = of(&reading, "cpu");
    assert!(!cpu.name.contains('\u{1b}'), "{:?}", cpu.name);
    let boundaries: Vec<_> = cpu.power.iter().map(|power| (power.boundary, rounded(power.watts))).collect();
    assert_eq!(boundaries, [("package", Some(65.0)), ("core", Some(40.0))], "no model beside a sensor");
    assert_eq!((cpu.utilisation, cpu.cores.as_slice()), (Some(0.25), &[1.0, 0.0, 0.0, 0.0][..]));
    let clocks = cpu.clock_mhz.unwrap();
    assert_eq!((clocks.min, clocks.mean, clocks.max), (2000.0, 2750.0, 3500.0));
    assert_eq!((cpu.temperature_c, cpu.throttled), (Some(61.0), Some(6.0)), "throttled since the start");

    let memory = of(&reading, "memory");
    assert_eq!((memory.memory_used, memory.memory_total), (Some(2 << 30), Some(8 << 30)));
    assert_eq!(rounded(memory.watts()), Some(5.0));

    let nvidia = of(&reading, "gpu0");
    assert_eq!(
        (rounded(nvidia.watts()), nvidia.utilisation, nvidia.temperature_c),
        (Some(300.0), Some(0.9), Some(71.0))
    );
    assert_eq!(nvidia.throttle_reasons.as_deref(), Some(&["power limit".to_owned()][..]));
    assert_eq!(nvidia.memory_used, None, "its library did not say");

    let amd = of(&reading, "gpu1");
    assert_eq!(
        (rounded(amd.watts()), amd.utilisation, amd.temperature_c),
        (Some(120.0), Some(0.42), Some(55.0))
    );
    assert_eq!((amd.memory_used, amd.memory_total), (Some(1 << 30), Some(16 << 30)));
    assert_eq!((amd.clock_mhz.unwrap().mean, amd.power_limit_w, amd.fan), (2124.0, Some(300.0), Some(0.5)));

    let intel = of(&reading, "gpu2");
    assert_eq!(
        (intel.clock_mhz.unwrap().mean, intel.utilisation, rounded(intel.watts())),
        (1950.0, None, None)
    );
    let neuron = of(&reading, "gpu3");
    assert_eq!(
        (neuron.power_share, rounded(neuron.watts())),
        (Some(0.205), None),
        "a share of the unknown is no power"
    );

    let wall = &of(&reading, "machine").power[0];
    assert_eq!((wall.watts, wall.joules), (None, None));
    assert!(wall.unknown.as_ref().unwrap().contains("unplugged"));
}

#[test]
fn an_empty_machine_is_unknown_and_not_zero() {
    let dir = tempfile::tempdir().unwrap();
    let roots = Roots { sys: dir.path().join("sys"), proc: dir.path().join("proc") };
    let mut sampler = Sampler::new(&[], "", roots);
    let reading = sampler.reading();
    assert_eq!(reading.devices.len(), 2);
    let json = serde_json::to_value(&reading).unwrap();
    for field in ["utilisation", "clock_mhz", "temperature_c", "memory_used", "throttled", "throttle_reasons"]
    {
        assert!(json["devices"][0][field].is_null(), "{field}: {json}");
    }
    assert_eq!(sampler.missing().len(), 3);
    let screen = screen(80, 24, &shown(&[Reading { seconds: 5.0, ..reading }]));
    assert!(
        screen.contains("power unknown: no meter")
            && screen.contains("use -")
            && screen.contains("throttled -"),
        "{screen}"
    );
    assert!(!screen.contains(" 0 "), "{screen}");
}

const PLAIN: Look = Look { colour: false, unicode: true };

fn shown(readings: &[Reading]) -> State {
    let mut state =
        State::new(PLAIN, Duration::from_secs(1), vec!["nvml for NVIDIA GPUs: not installed".into()]);
    readings.iter().for_each(|reading| state.push(reading.clone()));
    state
}

/// What stands on a screen of that size.
fn screen(width: u16, height: u16, state: &State) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, state)).unwrap();
    let buffer = terminal.backend().buffer();
    let row =
        |y: u16| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned() + "\n";
    (0..height).map(row).collect()
}

/// A busy machine for some time: the processor and `gpus` GPUs.
fn busy(gpus: usize) -> Vec<Reading> {
    let (_dir, roots) = machine();
    let mut meters =
        vec![meter("package", Source::RaplPowercap, Boundary::Package, Subject::Cpu, Some(65.0))];
    meters.extend((0..gpus).map(|i| {
        meter(&format!("GPU-{i}"), Source::Nvml, Boundary::Board, Subject::Gpu, Some(100.0 * (i + 1) as f64))
    }));
    let mut sampler = Sampler::new(&meters, "Test CPU", roots);
    let reading = sampler.reading();
    (0..90).map(|i| Reading { seconds: f64::from(i), ..reading.clone() }).collect()
}

#[test]
fn every_size_is_drawn() {
    let readings = busy(8);
    let mut state = shown(&readings);
    for overlay in [Overlay::None, Overlay::Help, Overlay::Missing] {
        state.overlay = overlay;
        for look in [PLAIN, Look { colour: true, unicode: false }] {
            let mut other = State::new(look, Duration::from_secs(1), vec!["x ".repeat(300)]);
            readings.iter().for_each(|reading| other.push(reading.clone()));
            other.overlay = overlay;
            for (width, height) in
                [(20, 5), (60, 20), (80, 24), (150, 50), (1, 1), (3, 2), (0, 0), (500, 3), (5, 200)]
            {
                for scroll in [0, 3, usize::MAX] {
                    other.scroll = scroll;
                    screen(width, height, &other);
                }
            }
        }
    }
    let empty = State::new(PLAIN, Duration::from_secs(1), vec![]);
    assert!(screen(80, 24, &empty).contains("reading.."));
}

#[test]
fn a_large_screen_has_panels_with_graphs_and_a_small_one_lines() {
    let state = shown(&busy(2));
    let large = screen(150, 50, &state);
    for part in [
        "── cpu  Test CPU",
        "65.0 W measured",
        "package, rapl-powercap",
        "2.00..3.50 GHz, mean 2.75",
        "61 °C",
        "throttled 0x",
        "clocks lowered: power limit",
        "2.00 GiB of 8.00 GiB",
        "████",
        "q quit",
        "m not readable (1)",
    ] {
        assert!(large.contains(part), "{part:?} is not in\n{large}");
    }
    let small = screen(60, 8, &shown(&busy(8)));
    assert!(small.contains("gpu0    100 W measured  use 90 %"), "{small}");
    assert!(small.contains("more: scroll down"), "{small}");
    let middle = screen(60, 20, &state);
    assert!(
        middle.lines().filter(|line| line.contains("██████")).count() >= 6,
        "graphs below their device:\n{middle}"
    );
    assert!(middle.contains("gpu1") && !middle.contains("── gpu1"), "{middle}");
    let tiny = screen(20, 5, &state);
    assert!(tiny.contains("cpu     65.0 W"), "{tiny}");
    let ascii = {
        let mut state = State::new(Look { colour: false, unicode: false }, Duration::from_secs(1), vec![]);
        busy(1).into_iter().for_each(|reading| state.push(reading));
        screen(100, 40, &state)
    };
    assert!(ascii.is_ascii(), "{ascii}");
}

#[test]
fn devices_are_sorted_and_what_is_missing_listed() {
    let mut state = shown(&busy(3));
    let order = |state: &State| -> Vec<String> {
        let screen = screen(150, 60, state);
        let heads = screen.lines().filter_map(|line| line.strip_prefix("── "));
        heads.map(|line| line.split_whitespace().next().unwrap().to_owned()).collect()
    };
    assert_eq!(order(&state)[..3], ["cpu", "memory", "gpu0"]);
    state.sort = Sort::Watts;
    assert_eq!(order(&state)[..4], ["gpu2", "gpu1", "gpu0", "cpu"]);
    state.overlay = Overlay::Missing;
    assert!(screen(80, 24, &state).contains("nvml for NVIDIA GPUs: not installed"));
    state.overlay = Overlay::Help;
    assert!(screen(80, 24, &state).contains("Ctrl-C"));
}

#[test]
fn the_strip_beside_a_run_fits_and_says_how_power_is_known() {
    let state = shown(&busy(1));
    for width in [10, 40, 92, 200] {
        for line in state.strip(width) {
            assert!(line.chars().count() <= width, "{width}: {line}");
        }
    }
    let lines = state.strip(92);
    assert_eq!(lines.len(), 2, "devices without a meter are left out: {lines:#?}");
    assert!(
        lines[0].starts_with("cpu     65.0 W measured")
            && lines[0].contains("2.75 GHz")
            && lines[0].contains("61 °C"),
        "{lines:?}"
    );
}

#[test]
fn a_reading_is_plain_json() {
    let reading = &busy(1)[0];
    let json = serde_json::to_value(reading).unwrap();
    assert_eq!(json["devices"][0]["part"], "cpu");
    assert_eq!(json["devices"][0]["power"][0]["kind"], "measured");
    assert_eq!(reading.devices[0].part, Part::Cpu);
}
