//! Power over time from any meter: counters by their differences, sensors of power by their means.

use perjoule_meter::{Meter, Sample};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Shortest time between two readings of a sensor of power.
const FASTEST: Duration = Duration::from_millis(50);

/// Reads one meter now and then, and remembers what followed from it.
#[derive(Debug)]
pub(crate) struct Probe {
    meter: Arc<dyn Meter>,
    /// When it was last asked, whatever it said.
    asked: Option<Instant>,
    last: Option<(Instant, Sample)>,
    /// Joules and seconds since the last [`Probe::take`].
    since: (f64, f64),
    /// Joules since the first reading; the seconds that they were seen for.
    total: (f64, f64),
    error: Option<String>,
}

impl Probe {
    /// Nothing was read yet.
    pub(crate) fn new(meter: Arc<dyn Meter>) -> Self {
        let zero = (0.0, 0.0);
        Probe { meter, asked: None, last: None, since: zero, total: zero, error: None }
    }

    /// The meter.
    pub(crate) fn meter(&self) -> &Arc<dyn Meter> {
        &self.meter
    }

    /// When it wants to be read between the ends of an interval: a sensor of power for its integral, a counter before it wraps.
    pub(crate) fn due(&self) -> Option<Instant> {
        let info = self.meter.info();
        let every = match self.last {
            Some((_, Sample::Joules(_))) => info.poll_every?,
            _ => info.poll_every.unwrap_or(info.update_period).max(FASTEST),
        };
        self.asked?.checked_add(every)
    }

    /// Reads the meter at the end of an interval, unless it has nothing new to say yet.
    pub(crate) fn poll(&mut self) {
        let info = self.meter.info();
        let least = match self.last {
            // both ends of a difference may miss the counter's last step
            Some((_, Sample::Joules(_))) => 2 * info.update_period,
            _ => info.poll_every.unwrap_or(info.update_period),
        };
        if self.asked.is_none_or(|asked| asked.elapsed() >= least) {
            self.read();
        }
    }

    /// Reads the meter within an interval, if it wants that.
    pub(crate) fn poll_within(&mut self) {
        if self.due().is_some_and(|due| due <= Instant::now()) {
            self.read();
        }
    }

    /// Joules since the first reading; `None` before the second.
    pub(crate) fn joules(&self) -> Option<f64> {
        (self.total.1 > 0.0).then_some(self.total.0)
    }

    /// When it was last read with success.
    pub(crate) fn read_at(&self) -> Option<Instant> {
        self.last.map(|(at, _)| at)
    }

    /// Why the last reading gave nothing.
    pub(crate) fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }

    fn read(&mut self) {
        let before = Instant::now();
        self.asked = Some(before);
        match self.meter.read() {
            // a driver may be slow: the reading is of the middle of the call
            Ok(sample) => self.see(before + before.elapsed() / 2, sample),
            Err(error) => (self.error, self.last) = (Some(error.to_string()), None),
        }
    }

    fn see(&mut self, at: Instant, sample: Sample) {
        let (Sample::Joules(value) | Sample::Watts(value)) = sample;
        if !value.is_finite() || value < 0.0 {
            (self.error, self.last) = (Some("the meter gave a value that cannot be".into()), None);
            return;
        }
        self.error = None;
        let Some((then, before)) = self.last.replace((at, sample)) else { return };
        let seconds = at.saturating_duration_since(then).as_secs_f64();
        let joules = match (before, sample) {
            (Sample::Joules(old), Sample::Joules(new)) if new > old => new - old,
            (Sample::Watts(old), Sample::Watts(new)) => (old + new) / 2.0 * seconds,
            _ => {
                self.error = Some("the counter stood still: it is not connected, or was reset".into());
                return;
            }
        };
        for sum in [&mut self.since, &mut self.total] {
            *sum = (sum.0 + joules, sum.1 + seconds);
        }
    }

    /// Mean power since the last call, W; `None` when nothing new was read. A sensor of power needs one reading, a counter two.
    pub(crate) fn take(&mut self) -> Option<f64> {
        let (joules, seconds) = std::mem::take(&mut self.since);
        match self.last {
            _ if seconds > 0.0 => Some(joules / seconds),
            Some((_, Sample::Watts(watts))) if self.total.1 == 0.0 => Some(watts),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use perjoule_meter::{Boundary, MeterInfo, Source, Subject};

    #[derive(Debug)]
    struct Never(MeterInfo);

    impl Meter for Never {
        fn info(&self) -> &MeterInfo {
            &self.0
        }
        fn read(&self) -> perjoule_meter::Result<Sample> {
            unreachable!("readings are given by hand")
        }
    }

    fn probe() -> (Probe, Instant) {
        let info = MeterInfo::new("test", Source::Other("test"), Boundary::Package, Subject::Cpu);
        (Probe::new(Arc::new(Never(info))), Instant::now())
    }

    #[test]
    fn a_counter_gives_power_by_differences() {
        let (mut probe, start) = probe();
        let at = |s| start + Duration::from_secs(s);
        probe.see(at(0), Sample::Joules(1000.0));
        assert_eq!((probe.take(), probe.joules()), (None, None), "one reading of a counter says nothing");
        probe.see(at(1), Sample::Joules(1100.0));
        probe.see(at(3), Sample::Joules(1500.0));
        assert_eq!((probe.take(), probe.joules()), (Some(500.0 / 3.0), Some(500.0)));
        assert_eq!(probe.take(), None, "nothing new");
        probe.see(at(4), Sample::Joules(1500.0));
        assert_eq!((probe.take(), probe.joules()), (None, Some(500.0)), "unknown, not 0 W");
        assert!(probe.error().unwrap().contains("stood still"));
    }

    #[test]
    fn power_is_integrated_and_nonsense_is_none() {
        let (mut probe, start) = probe();
        let at = |s| start + Duration::from_secs(s);
        probe.see(at(0), Sample::Watts(100.0));
        assert_eq!((probe.take(), probe.joules()), (Some(100.0), None), "one reading is power, not energy");
        probe.see(at(1), Sample::Watts(100.0));
        probe.see(at(2), Sample::Watts(200.0));
        assert_eq!((probe.take(), probe.joules()), (Some(125.0), Some(250.0)));
        for value in [f64::NAN, f64::INFINITY, -1.0] {
            probe.see(at(3), Sample::Watts(value));
            assert!(probe.take().is_none() && probe.error().is_some(), "{value}");
        }
        probe.see(at(9), Sample::Watts(50.0));
        assert_eq!(probe.joules(), Some(250.0), "what was not seen is not made up");
    }
}
