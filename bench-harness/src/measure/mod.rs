//! The measuring engine (`perjoule_engine`) on native devices, until somebody interrupts, and what only a native program measures: energy,
//! conditions, commands.

pub(crate) mod ceilings;
pub(crate) mod command;
pub(crate) mod conditions;
pub(crate) mod cpu_power;
pub(crate) mod disturbance;
pub(crate) mod energy;
pub(crate) mod kernel;
pub(crate) mod process;
pub(crate) mod tokens;
#[cfg(test)]
mod trials;
pub(crate) mod tune;

use anyhow::Result;
use perjoule_engine::sampling::{self, Clock, Host};
use perjoule_kernels::device::at_once;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub(crate) use perjoule_engine::Interrupted;
pub(crate) use perjoule_engine::sampling::{Effort, RESOLUTION, Samples, drift, spread};

/// Set by Ctrl-C: the measurement in progress ends without a result, finished ones stay.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Asks all measurements to end.
pub(crate) fn interrupt() {
    INTERRUPTED.store(true, Ordering::SeqCst);
}

/// Whether they were asked to.
pub(crate) fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// What is timed, natively: calls are over when they return.
pub(crate) trait Subject {
    /// Makes `count` calls, one after the other, and returns when the device has finished them.
    fn call(&mut self, count: u64) -> Result<()>;

    /// What the last [`Subject::call`] took by the device's own clock, where it has one: the host's cost of waiting is then not in it.
    fn device_time(&self) -> Option<Duration> {
        None
    }

    /// Prepares the next sample, outside of the timing: flushes caches, rewinds a session.
    fn before_sample(&mut self) -> Result<()> {
        Ok(())
    }

    /// Warm-up is over: samples follow.
    fn begin(&mut self) {}

    /// Whether a sample must be one call, because each needs its preparation.
    fn one_call_a_sample(&self) -> bool {
        false
    }
}

/// What is measured by the engine is so here, too: it waits where it would be awaited.
impl<S: sampling::Subject> Subject for S {
    fn call(&mut self, count: u64) -> Result<()> {
        at_once(sampling::Subject::call(self, count))
    }

    fn device_time(&self) -> Option<Duration> {
        sampling::Subject::device_time(self)
    }

    fn before_sample(&mut self) -> Result<()> {
        at_once(sampling::Subject::before_sample(self))
    }

    fn begin(&mut self) {
        sampling::Subject::begin(self);
    }

    fn one_call_a_sample(&self) -> bool {
        sampling::Subject::one_call_a_sample(self)
    }
}

/// A native subject, for the engine; samples end when somebody interrupts.
struct Native<'s>(&'s mut dyn Subject);

impl sampling::Subject for Native<'_> {
    async fn call(&mut self, count: u64) -> Result<()> {
        self.0.call(count)
    }

    fn device_time(&self) -> Option<Duration> {
        self.0.device_time()
    }

    async fn before_sample(&mut self) -> Result<()> {
        if interrupted() {
            return Err(Interrupted.into());
        }
        self.0.before_sample()
    }

    fn begin(&mut self) {
        self.0.begin();
    }

    fn one_call_a_sample(&self) -> bool {
        self.0.one_call_a_sample()
    }
}

/// See [`sampling::measure`].
pub(crate) fn measure(subject: &mut dyn Subject, effort: Effort) -> Result<Samples> {
    measure_by(&Host::new(), subject, effort)
}

fn measure_by(clock: &dyn Clock, subject: &mut dyn Subject, effort: Effort) -> Result<Samples> {
    at_once(sampling::measure(clock, &mut Native(subject), effort))
}

/// See [`sampling::in_turn`].
pub(crate) fn in_turn(
    one: &mut dyn Subject,
    other: &mut dyn Subject,
    effort: Effort,
) -> Result<(Samples, Samples)> {
    in_turn_by(&Host::new(), one, other, effort)
}

fn in_turn_by(
    clock: &dyn Clock,
    one: &mut dyn Subject,
    other: &mut dyn Subject,
    effort: Effort,
) -> Result<(Samples, Samples)> {
    at_once(sampling::in_turn(clock, &mut Native(one), &mut Native(other), effort))
}

/// Last-level cache of the machine, in bytes.
pub(crate) fn last_level_cache(device: &perjoule::Device) -> u64 {
    device.info().cache_bytes.unwrap_or_else(|| {
        let caches = perjoule_cpu::features::Caches::detect();
        caches.l3.max(caches.l2) as u64
    })
}

/// What two readings of the host's clock cost, in nanoseconds.
pub(crate) fn clock_cost_ns() -> f64 {
    sampling::cost_ns(&Host::new())
}

#[cfg(test)]
mod tests {
    use super::*;
    use perjoule_record::stats;
    use std::time::Instant;

    /// Busy-waits, and keeps what each sample took by its own clock: whatever else the machine does, both clocks see it.
    struct Spin {
        ns: u64,
        calls: u64,
        took: Vec<f64>,
    }

    impl Spin {
        fn new(ns: u64) -> Self {
            Spin { ns, calls: 0, took: Vec::new() }
        }
    }

    impl Subject for Spin {
        fn call(&mut self, count: u64) -> Result<()> {
            let begin = Instant::now();
            for _ in 0..count {
                let start = Instant::now();
                while start.elapsed() < Duration::from_nanos(self.ns) {}
            }
            self.took.push(begin.elapsed().as_nanos() as f64 / count as f64);
            self.calls += count;
            Ok(())
        }

        fn begin(&mut self) {
            self.took.clear();
        }
    }

    #[test]
    fn a_known_time_is_found_and_every_call_counted() {
        let mut spin = Spin::new(200_000);
        let effort = Effort { time: Duration::from_millis(300), repetitions: None, bounded: true };
        let found = measure(&mut spin, effort).unwrap();
        let (median, own) = (stats::median(&found.ns).unwrap(), stats::median(&spin.took).unwrap());
        assert!(median >= 199_000.0 && (median / own - 1.0).abs() < 0.02, "{median} beside {own}");
        let counted = found.warmup_calls + found.calls_per_sample * found.ns.len() as u64;
        assert_eq!(counted, spin.calls);
        assert_eq!(found.ns.len(), spin.took.len());
    }

    #[test]
    fn subjects_in_turn_are_sampled_equally_often_and_in_both_orders() {
        struct Noted<'a>(char, u64, &'a std::cell::RefCell<String>);
        impl Subject for Noted<'_> {
            fn call(&mut self, _: u64) -> Result<()> {
                let start = Instant::now();
                while start.elapsed() < Duration::from_nanos(self.1) {}
                Ok(())
            }
            fn begin(&mut self) {
                self.2.borrow_mut().clear();
            }
            fn before_sample(&mut self) -> Result<()> {
                self.2.borrow_mut().push(self.0);
                Ok(())
            }
        }
        let order = std::cell::RefCell::new(String::new());
        let (mut a, mut b) = (Noted('a', 300_000, &order), Noted('b', 600_000, &order));
        let effort = Effort { time: Duration::from_millis(200), repetitions: Some(6), bounded: false };
        let (one, other) = in_turn(&mut a, &mut b, effort).unwrap();
        assert_eq!((one.ns.len(), other.ns.len()), (6, 6));
        assert_eq!(*order.borrow(), "abbaabbaabba");
    }

    #[test]
    fn a_bound_ends_repetitions_early() {
        let mut spin = Spin::new(10_000_000);
        let effort = Effort { time: Duration::from_millis(100), repetitions: Some(1000), bounded: true };
        assert!(measure(&mut spin, effort).unwrap().ns.len() < 50);
    }

    #[test]
    fn short_calls_are_batched_so_that_the_clock_resolves_them() {
        let effort = Effort { time: Duration::from_millis(100), repetitions: Some(7), bounded: false };
        let found = |_| measure(&mut Spin::new(100), effort).unwrap();
        // a call that other work interrupts looks long: the best of some tries counts
        let found = (0..10).map(found).max_by_key(|found| found.calls_per_sample).unwrap();
        assert_eq!(found.ns.len(), 7);
        assert!(found.calls_per_sample > 50, "{}", found.calls_per_sample);
        assert!(found.overhead_ns < 2.0);
    }
}
