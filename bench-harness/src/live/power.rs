//! Power over time from any meter: counters by their differences, sensors of power by their means.

use perjoule_meter::{Meter, MeterError, Sample};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Shortest time between two readings of a sensor of power.
const FASTEST: Duration = Duration::from_millis(50);

/// Reads one meter now and then, and remembers what followed from it.
#[derive(Debug)]
pub(crate) struct Probe {
    meter: Arc<dyn Meter>,
    /// When it was last asked, whatever it said, and when it last answered.
    asked: Option<Instant>,
    answered: Option<Instant>,
    /// The reading that the next one is compared with. Of a counter it is the one with which its value last changed: a step that is not
    /// there yet has begun all the same, and its time belongs to it.
    last: Option<(Instant, Sample)>,
    /// Whether a counter's value was seen to change to that of `last`, and whether it stood still since: without the first, a step that ends
    /// now may have begun before it was looked at.
    at_step: bool,
    stood: bool,
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
        Probe {
            meter,
            asked: None,
            answered: None,
            last: None,
            at_step: false,
            stood: false,
            since: zero,
            total: zero,
            error: None,
        }
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
        self.answered
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
            Err(error) => self.fail(&error),
        }
    }

    /// A reading that failed. A counter goes on meanwhile, and its next reading has what this one lacks, unless it may have started over.
    fn fail(&mut self, error: &MeterError) {
        self.error = Some(error.to_string());
        let goes_on = matches!(self.last, Some((_, Sample::Joules(_))));
        if !goes_on || error.spoils_window() {
            self.last = None;
        }
    }

    /// Counts from this reading on.
    fn begin(&mut self, at: Instant, sample: Sample) {
        (self.last, self.at_step, self.stood) = (Some((at, sample)), false, false);
    }

    fn see(&mut self, at: Instant, sample: Sample) {
        let (Sample::Joules(value) | Sample::Watts(value)) = sample;
        if !value.is_finite() || value < 0.0 {
            (self.error, self.last) = (Some("the meter gave a value that cannot be".into()), None);
            return;
        }
        self.error = None;
        let unread =
            self.answered.replace(at).map_or(Duration::ZERO, |then| at.saturating_duration_since(then));
        let Some((then, before)) = self.last else {
            self.begin(at, sample);
            return;
        };
        let seconds = at.saturating_duration_since(then).as_secs_f64();
        let joules = match (before, sample) {
            (Sample::Joules(old), Sample::Joules(new)) if new == old => {
                self.stood = true;
                let what = "the counter stood still: its steps are too coarse for such short intervals, or it is not connected";
                self.error = Some(what.into());
                return;
            }
            (Sample::Joules(old), Sample::Joules(new)) if new > old => new - old,
            (Sample::Watts(old), Sample::Watts(new)) => (old + new) / 2.0 * seconds,
            _ => {
                self.begin(at, sample);
                self.error = Some("the counter was reset".into());
                return;
            }
        };
        self.last = Some((at, sample));
        let whole = self.at_step || !self.stood;
        (self.at_step, self.stood) = (true, false);
        if !whole {
            return;
        }
        if matches!(sample, Sample::Joules(_)) && self.meter.info().may_wrap_within(unread) {
            self.error = Some("the counter was not read for so long that it may have wrapped unseen".into());
            return;
        }
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
        probe.see(at(5), Sample::Joules(1700.0));
        assert_eq!(probe.take(), Some(100.0), "both seconds count once the counter has moved");
        probe.see(at(6), Sample::Joules(3.0));
        assert!(probe.take().is_none() && probe.error().unwrap().contains("reset"));
        probe.see(at(7), Sample::Joules(103.0));
        assert_eq!((probe.take(), probe.joules()), (Some(100.0), Some(800.0)), "it counts on from there");
    }

    /// 100 W in steps of `step` joules that are read every half second, shown every second.
    fn coarse(step: f64) -> Vec<f64> {
        let (mut probe, start) = probe();
        let shown = (0..=240).filter_map(|i| {
            let t = 0.13 + 0.5 * f64::from(i);
            probe.see(start + Duration::from_secs_f64(t), Sample::Joules(step * (100.0 * t / step).floor()));
            if i % 2 == 0 { probe.take() } else { None }
        });
        shown.collect()
    }

    #[test]
    fn a_steady_power_is_shown_whatever_the_steps_of_the_counter() {
        // steps of a second, of 0.1 Wh and of 0.25 Wh; each reading is late by half a second at most
        for (step, late) in [(100.0, 0.5), (360.0, 0.5), (900.0, 0.5)] {
            let shown = coarse(step);
            assert!(shown.len() > 10, "{step} J: {shown:?}");
            let seconds = step / 100.0;
            for watts in &shown {
                let error = (watts / 100.0 - 1.0).abs();
                assert!(error <= late / (seconds - late).max(late) + 1e-9, "{step} J: {shown:?}");
            }
            let mean = shown.iter().sum::<f64>() / shown.len() as f64;
            assert!((mean / 100.0 - 1.0).abs() < 0.05, "{step} J: {mean} W of {shown:?}");
        }
    }

    #[test]
    fn a_counter_counts_through_a_silence_and_not_through_a_reset() {
        let (mut probe, start) = probe();
        let at = |s| start + Duration::from_secs(s);
        probe.see(at(0), Sample::Joules(0.0));
        probe.see(at(1), Sample::Joules(50.0));
        let busy = MeterError::Library { origin: Source::Other("test"), reason: "busy".into() };
        probe.fail(&busy);
        assert!(probe.error().unwrap().contains("busy"));
        probe.see(at(11), Sample::Joules(550.0));
        assert_eq!((probe.joules(), probe.take()), (Some(550.0), Some(50.0)));
        probe.fail(&MeterError::Reset { meter: "m".into(), joules: -1.0, seconds: 1.0 });
        probe.see(at(13), Sample::Joules(900.0));
        assert_eq!((probe.joules(), probe.take()), (Some(550.0), None), "what it was before is not known");
        // power: what flowed meanwhile is not known
        let (mut probe, _) = self::probe();
        probe.see(at(0), Sample::Watts(10.0));
        probe.see(at(1), Sample::Watts(10.0));
        probe.fail(&busy);
        probe.see(at(9), Sample::Watts(10.0));
        assert_eq!(probe.joules(), Some(10.0));
    }

    #[test]
    fn a_counter_that_may_have_wrapped_unseen_starts_anew() {
        let mut info = MeterInfo::new("test", Source::Other("test"), Boundary::Package, Subject::Cpu);
        info.wraps_at = Some(10_000.0);
        let (mut probe, start) = (Probe::new(Arc::new(Never(info))), Instant::now());
        for (t, joules) in [(0, 0.0), (1, 100.0), (100, 300.0), (101, 400.0)] {
            probe.see(start + Duration::from_secs(t), Sample::Joules(joules));
        }
        assert_eq!((probe.joules(), probe.take()), (Some(200.0), Some(100.0)));
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
