//! Joules as a [`criterion`] measurement, so that any Rust project can bench its energy.
//!
//! Criterion measures many short samples; a sensor of energy needs windows of two of its update periods at least,
//! and some 40 for 1 %. So a group made by [`JouleMeasurement::group`] has ten samples of equal length, each as long as
//! [`MeterInfo::window_for`](crate::MeterInfo::window_for) asks for, and criterion repeats the iteration to fill them.
//! A sample that is too short all the same stops the bench with the reason instead of giving a number: that is the
//! case with `--quick`, with `iter_batched` in small batches, and with sampling that is set to linear afterwards.
//!
//! Criterion calls every measurement `time` in its report; the unit tells. Modelled energy has `modelled` in it.
//!
//! ```no_run
//! use std::hint::black_box;
//! use criterion::Criterion;
//! use perjoule_meter::{JouleMeasurement, Options, PowerModel, discover};
//!
//! let found = discover(&Options { models: vec![PowerModel::new("CPU", 65.0)], ..Options::default() });
//! let joules = JouleMeasurement::new(found.cpu().expect("the model is always usable").clone());
//! let mut criterion = Criterion::default().with_measurement(joules.clone());
//! let mut group = joules.group(&mut criterion, "sums");
//! group.bench_function("10^6", |b| b.iter(|| (0..black_box(1_000_000u64)).sum::<u64>()));
//! group.finish();
//! ```

use std::sync::Arc;
use std::time::Duration;

use ::criterion::measurement::{Measurement, ValueFormatter};
use ::criterion::{BenchmarkGroup, Criterion, SamplingMode, Throughput};

use crate::error::MeterError;
use crate::meter::Meter;
use crate::quantity::Kind;
use crate::window::Window;

/// Relative sampling uncertainty of one sample that a group aims at. Criterion takes the mean of ten.
const UNCERTAINTY: f64 = 0.02;

/// Criterion's own minimum, so that slow sensors do not take longer than they must.
const SAMPLES: usize = 10;

/// Shortest sample, so that criterion's own overhead does not show with a fast sensor.
const SHORTEST: Duration = Duration::from_millis(50);

/// Joules of a [`Meter`], as criterion measures them.
#[derive(Clone, Debug)]
pub struct JouleMeasurement {
    meter: Arc<dyn Meter>,
    formatter: JouleFormatter,
    /// Whether criterion only runs everything once, as under `cargo test`. What it measures is not used then.
    test: bool,
}

/// Gross energy of one sample, or why there is none.
#[derive(Clone, Debug)]
pub struct SampleJoules(Result<f64, String>);

impl JouleMeasurement {
    /// Measures with `meter`.
    pub fn new(meter: Arc<dyn Meter>) -> JouleMeasurement {
        let arguments: Vec<String> = std::env::args().collect();
        let given = |flag: &str| arguments.iter().any(|argument| argument == flag);
        // As criterion decides it.
        let test = given("--test") || !given("--bench");
        let formatter = JouleFormatter { modelled: meter.info().kind == Kind::Modelled };
        JouleMeasurement { meter, formatter, test }
    }

    /// How long each sample must be.
    pub fn sample_length(&self) -> Duration {
        let info = self.meter.info();
        // A sensor of power needs three readings for an integral.
        info.window_for(UNCERTAINTY).max(4 * info.update_period).max(SHORTEST)
    }

    /// A group whose samples are long enough for the meter. Says on standard error how long a bench takes when that
    /// is more than a minute.
    pub fn group<'a>(
        &self,
        criterion: &'a mut Criterion<JouleMeasurement>,
        name: &str,
    ) -> BenchmarkGroup<'a, JouleMeasurement> {
        // A warm-up that is off by a quarter must not make samples too short.
        let total = self.sample_length().mul_f64(1.25) * SAMPLES as u32;
        if total > Duration::from_secs(60) && !self.test {
            let info = self.meter.info();
            eprintln!(
                "{name}: {} has something new every {:?}, so each bench takes {:.0} s",
                info.name,
                info.update_period,
                total.as_secs_f64()
            );
        }
        let mut group = criterion.benchmark_group(name);
        group.sampling_mode(SamplingMode::Flat).sample_size(SAMPLES).measurement_time(total);
        group
    }
}

impl Measurement for JouleMeasurement {
    type Intermediate = Result<Window, MeterError>;
    type Value = SampleJoules;

    fn start(&self) -> Self::Intermediate {
        Window::start(self.meter.clone())
    }

    fn end(&self, window: Self::Intermediate) -> SampleJoules {
        // Windows of the warm-up are short and their values are never asked for: see to_f64.
        SampleJoules(window.and_then(Window::finish).map(|energy| energy.joules).map_err(|e| e.to_string()))
    }

    fn add(&self, a: &SampleJoules, b: &SampleJoules) -> SampleJoules {
        SampleJoules(a.0.clone().and_then(|a| Ok(a + b.0.clone()?)))
    }

    fn zero(&self) -> SampleJoules {
        SampleJoules(Ok(0.0))
    }

    /// # Panics
    /// When the sample has no energy, with the reason: criterion knows no errors, and a number would be wrong.
    fn to_f64(&self, value: &SampleJoules) -> f64 {
        match &value.0 {
            Ok(joules) => *joules,
            Err(_) if self.test => 0.0,
            Err(reason) => panic!(
                "no energy for this sample: {reason}. Make the group with JouleMeasurement::group, without --quick, \
                 and use iter or iter_custom rather than batches"
            ),
        }
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        &self.formatter
    }
}

/// Joules with a prefix, and `modelled` where they are.
#[derive(Clone, Copy, Debug)]
struct JouleFormatter {
    modelled: bool,
}

impl JouleFormatter {
    fn unit(&self, measured: &'static str, modelled: &'static str) -> &'static str {
        if self.modelled { modelled } else { measured }
    }
}

impl ValueFormatter for JouleFormatter {
    fn scale_values(&self, typical: f64, values: &mut [f64]) -> &'static str {
        let (factor, unit) = match typical.abs() {
            j if j < 1e-6 => (1e9, self.unit("nJ", "nJ modelled")),
            j if j < 1e-3 => (1e6, self.unit("uJ", "uJ modelled")),
            j if j < 1.0 => (1e3, self.unit("mJ", "mJ modelled")),
            j if j < 1e3 => (1.0, self.unit("J", "J modelled")),
            _ => (1e-3, self.unit("kJ", "kJ modelled")),
        };
        values.iter_mut().for_each(|value| *value *= factor);
        unit
    }

    /// How much is done with one joule.
    fn scale_throughputs(&self, _: f64, throughput: &Throughput, values: &mut [f64]) -> &'static str {
        let (count, unit) = match *throughput {
            Throughput::Bytes(n) | Throughput::BytesDecimal(n) => (n, self.unit("B/J", "B/J modelled")),
            Throughput::Bits(n) => (n, self.unit("bit/J", "bit/J modelled")),
            Throughput::Elements(n) | Throughput::ElementsAndBytes { elements: n, .. } => {
                (n, self.unit("elem/J", "elem/J modelled"))
            }
        };
        values.iter_mut().for_each(|joules| *joules = count as f64 / *joules);
        unit
    }

    fn scale_for_machines(&self, _: &mut [f64]) -> &'static str {
        self.unit("J", "J modelled")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MeterInfo, Sample, Source, Subject};

    /// A meter whose period is far longer than an iteration.
    #[derive(Debug)]
    struct Slow(MeterInfo);

    impl Meter for Slow {
        fn info(&self) -> &MeterInfo {
            &self.0
        }

        fn read(&self) -> crate::Result<Sample> {
            Ok(Sample::Joules(1.0))
        }
    }

    fn slow() -> JouleMeasurement {
        let mut info =
            MeterInfo::new("test:slow", Source::Other("test"), crate::Boundary::Wall, Subject::System);
        info.update_period = Duration::from_secs(1);
        JouleMeasurement { test: false, ..JouleMeasurement::new(Arc::new(Slow(info))) }
    }

    #[test]
    #[should_panic(expected = "is too short for test:slow: repeat the work for at least 2.000000 s")]
    fn a_sample_shorter_than_the_meters_period_is_refused() {
        let joules = slow();
        let sample = joules.end(joules.start());
        joules.to_f64(&sample);
    }

    #[test]
    fn one_bad_batch_spoils_the_sum() {
        let joules = slow();
        let sum = joules.add(&SampleJoules(Ok(1.0)), &joules.end(joules.start()));
        assert!(sum.0.is_err_and(|reason| reason.contains("too short")));
        assert_eq!(joules.sample_length(), Duration::from_secs_f64(1.0 / (6f64.sqrt() * 0.02)));
    }
}
