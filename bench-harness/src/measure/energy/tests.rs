//! Which meter a record's own fields are of, with meters whose power is known.

use perjoule_meter::{Band, Boundary, Meter, MeterInfo, Sample, Source, Subject};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Gauge, Meters};
use perjoule_kernels::{DeviceClass, DeviceInfo};
use perjoule_meter::Discovery;

/// A counter that rises by so many watts, or stands still.
#[derive(Debug)]
struct Counter {
    info: MeterInfo,
    watts: f64,
    start: Instant,
}

impl Meter for Counter {
    fn info(&self) -> &MeterInfo {
        &self.info
    }

    fn read(&self) -> perjoule_meter::Result<Sample> {
        Ok(Sample::Joules(self.watts * self.start.elapsed().as_secs_f64()))
    }
}

fn meter(boundary: Boundary, watts: f64, period: Duration) -> Arc<dyn Meter> {
    let subject = match boundary {
        Boundary::Wall => Subject::System,
        Boundary::Dram => Subject::Memory,
        _ => Subject::Cpu,
    };
    let name = format!("{boundary} of {watts} W");
    let mut info = MeterInfo::new(name, Source::Other("test"), boundary, subject);
    (info.update_period, info.accuracy) = (period, Band::within(0.01));
    Arc::new(Counter { info, watts, start: Instant::now() })
}

const FAST: Duration = Duration::from_millis(10);
const SLOW: Duration = Duration::from_secs(60);

/// The energy of two calls that take a tenth of a second each, at least.
fn measured(meters: Vec<Arc<dyn Meter>>) -> perjoule_record::Energy {
    let gauge = Gauge::new(meters).unwrap();
    let call = || {
        std::thread::sleep(Duration::from_millis(100));
        Ok(1)
    };
    gauge.window_over(Duration::from_millis(200), call).unwrap()
}

#[test]
fn a_meter_too_slow_for_the_window_gives_way_to_one_that_holds_all_it_sees() {
    let energy = measured(vec![
        meter(Boundary::Package, 20.0, SLOW),
        meter(Boundary::Core, 10.0, FAST),
        meter(Boundary::Dram, 5.0, FAST),
        meter(Boundary::Wall, 50.0, FAST),
    ]);
    assert_eq!(energy.energy_boundary.as_deref(), Some("wall"), "cores and memory are parts of the work");
    assert!((energy.avg_power_w.unwrap() / 50.0 - 1.0).abs() < 0.01, "{energy:?}");
    let list = energy.energies.unwrap();
    assert_eq!(list.iter().map(|seen| seen.boundary.as_str()).collect::<Vec<_>>(), ["wall", "core", "dram"]);
    let silent = energy.energies_unknown.unwrap();
    assert_eq!((silent.len(), silent[0].meter.as_str()), (1, "package of 20 W"));
    assert!(silent[0].reason.contains("too short"), "{}", silent[0].reason);
    // net joules have the interval of their reading
    let ci = energy.net_joules_ci95.unwrap();
    assert_eq!((energy.net_joules, Some(ci)), (list[0].net_joules, list[0].net_ci95));
    assert!(ci.lo < energy.net_joules.unwrap() && energy.net_joules.unwrap() < ci.hi);
}

#[test]
fn parts_of_the_work_do_not_stand_for_all_of_it() {
    let energy = measured(vec![meter(Boundary::Package, 20.0, SLOW), meter(Boundary::Core, 10.0, FAST)]);
    assert_eq!((energy.joules, energy.net_joules_ci95, energy.energy_boundary), (None, None, None));
    assert!(energy.energy_unknown.unwrap().contains("too short"));
    assert_eq!(energy.energies.unwrap()[0].boundary, "core");
}

#[test]
fn a_counter_that_stands_still_is_not_the_energy_of_anything() {
    let energy = measured(vec![meter(Boundary::Package, 0.0, FAST), meter(Boundary::Platform, 50.0, FAST)]);
    assert_eq!(energy.energy_boundary.as_deref(), Some("platform"));
    assert!(energy.energies_unknown.unwrap()[0].reason.contains("stood still"));
}

#[test]
fn where_no_meter_is_quick_enough_nothing_is_repeated() {
    let gauge = Gauge::new(vec![meter(Boundary::Package, 20.0, SLOW)]).unwrap();
    let energy = gauge.window_over(Duration::from_secs(1), || panic!("there is no use in it")).unwrap();
    assert!(energy.energy_unknown.unwrap().contains("too short"));
    assert_eq!(energy.energies_unknown.unwrap().len(), 1);
}

#[test]
fn a_longer_window_is_worth_it_only_for_better_meters() {
    let meters =
        vec![meter(Boundary::Package, 20.0, Duration::from_millis(200)), meter(Boundary::Wall, 50.0, FAST)];
    let gauge = Gauge::new(meters).unwrap();
    let windows = gauge.open();
    std::thread::sleep(Duration::from_millis(60));
    let seen = gauge.finish(windows);
    assert!(seen[0].is_err() && seen[1].is_ok(), "{seen:?}");
    assert!(gauge.is_worth_a_window(&seen, Duration::from_secs(1)), "the package is told in a second");
    let slow =
        Gauge::new(vec![meter(Boundary::Package, 20.0, SLOW), meter(Boundary::Wall, 50.0, FAST)]).unwrap();
    assert!(
        !slow.is_worth_a_window(&seen, Duration::from_secs(1)),
        "not in any window that there is time for"
    );
}

#[test]
fn a_gpu_is_measured_by_the_board_that_bears_its_name() {
    let board = |uuid: &str| -> Arc<dyn Meter> {
        let mut info = MeterInfo::new(format!("nvml:{uuid}"), Source::Nvml, Boundary::Board, Subject::Gpu);
        info.device = Some(uuid.into());
        Arc::new(Counter { info, watts: 100.0, start: Instant::now() })
    };
    let (one, other) =
        ("GPU-00000000-1111-2222-3333-444444444444", "GPU-aaaaaaaa-1111-2222-3333-444444444444");
    let meters = vec![
        meter(Boundary::Package, 20.0, FAST),
        board(one),
        board(other),
        meter(Boundary::Wall, 500.0, FAST),
    ];
    let found = Discovery { meters, ..Discovery::default() };
    let meters = Meters { found, model: None };
    let ids = |uuid: Option<&str>| -> Vec<String> {
        let mut gpu = DeviceInfo::new("cuda:0", "cuda", "a GPU", DeviceClass::DiscreteGpu, Arc::new(()));
        gpu.uuid = uuid.map(str::to_string);
        gpu.pci = Some("0000:65:00.0".into());
        meters.of(&gpu).iter().map(|meter| meter.info().id.clone()).collect()
    };
    let wall = "wall of 500 W";
    assert_eq!(ids(Some(other)), [format!("nvml:{other}"), wall.into()]);
    // the driver and the library write it differently
    assert_eq!(ids(Some(&other[4..].to_uppercase())), [format!("nvml:{other}"), wall.into()]);
    assert_eq!(ids(None), [wall], "another board's joules are not this one's, whatever its index");
}
