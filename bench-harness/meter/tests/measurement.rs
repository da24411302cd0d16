//! Joules as a measurement of criterion: units, long enough samples, and refusal of short ones.

use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::measurement::Measurement;
use criterion::{Criterion, Throughput};
use perjoule_meter::{
    Boundary, JouleMeasurement, Kind, Meter, MeterInfo, Modelled, PowerModel, Result, Sample, Source, Subject,
};

/// A counter of 100 W that steps every 10 ms.
#[derive(Debug)]
struct Steps(MeterInfo, Instant);

impl Steps {
    fn meter() -> Arc<dyn Meter> {
        let mut info = MeterInfo::new("test:steps", Source::Other("test"), Boundary::Package, Subject::Cpu);
        info.update_period = Duration::from_millis(10);
        Arc::new(Steps(info, Instant::now()))
    }
}

impl Meter for Steps {
    fn info(&self) -> &MeterInfo {
        &self.0
    }

    fn read(&self) -> Result<Sample> {
        Ok(Sample::Joules((self.1.elapsed().as_millis() / 10) as f64))
    }
}

#[test]
fn values_are_joules_and_modelled_ones_say_so() {
    let measured = JouleMeasurement::new(Steps::meter());
    let model = Modelled::new(PowerModel::new("cpu", 100.0)).expect("valid");
    assert_eq!(model.info().kind, Kind::Modelled);
    let modelled = JouleMeasurement::new(Arc::new(model));
    for (joules, plain) in [(2e-8, "nJ"), (2e-5, "uJ"), (2e-2, "mJ"), (2.0, " J"), (2e4, "kJ")] {
        let text = measured.formatter().format_value(joules);
        assert!(text.contains("20") || text.contains('2'), "{text}");
        assert!(text.ends_with(plain), "{text}");
        let text = modelled.formatter().format_value(joules);
        assert!(text.ends_with("modelled") && text.contains(plain.trim()), "{text}");
    }
    let throughput = measured.formatter().format_throughput(&Throughput::Elements(500), 2.0);
    assert!(throughput.contains("250") && throughput.ends_with("elem/J"), "{throughput}");
    let throughput = modelled.formatter().format_throughput(&Throughput::Bytes(500), 2.0);
    assert!(throughput.ends_with("B/J modelled"), "{throughput}");
    assert_eq!(modelled.formatter().scale_for_machines(&mut [1.0]), "J modelled");
}

#[test]
fn samples_are_long_enough_for_the_meter_and_add_up() {
    let joules = JouleMeasurement::new(Steps::meter());
    // 10 ms / (sqrt 6 x 2 %).
    assert!((joules.sample_length().as_secs_f64() - 0.204).abs() < 0.001, "{:?}", joules.sample_length());
    let sample = |length| {
        let open = joules.start();
        std::thread::sleep(length);
        joules.end(open)
    };
    let (a, b) = (sample(Duration::from_millis(200)), sample(Duration::from_millis(100)));
    let sum = joules.to_f64(&joules.add(&joules.add(&joules.zero(), &a), &b));
    assert!((29.0..60.0).contains(&sum), "{sum} J for 0.3 s at 100 W");
}

/// Under `cargo test` criterion runs everything once, in samples that are far too short: that must not fail.
#[test]
fn a_bench_runs_once_under_test() {
    let joules = JouleMeasurement::new(Steps::meter());
    let mut criterion = Criterion::default().with_measurement(joules.clone()).without_plots();
    let mut runs = 0;
    let short = joules.end(joules.start());
    assert_eq!(joules.to_f64(&short), 0.0, "not used by criterion");
    let mut group = joules.group(&mut criterion, "once");
    group.warm_up_time(Duration::from_millis(10));
    group.bench_function("count", |b| {
        b.iter(|| {
            runs += 1;
            std::thread::sleep(Duration::from_millis(1));
        });
    });
    group.finish();
    assert!(runs >= 1);
}
