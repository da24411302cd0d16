//! Warm-up until steady, samples until the interval of the median is narrow or the time is spent.
//!
//! A [`Subject`] is what is timed. A `Sampler` has warmed one up, knows how many calls make a sample that the clock can resolve, and
//! takes one sample at a time, so that two subjects can also be sampled in turn. [`measure`] samples one to the end.

use anyhow::Result;
use perjoule_record::stats;
use std::time::Duration;

/// Half width of the 95 % interval, relative to the median, below which more samples are not worth their time. The whole interval is
/// then below 1 %.
const NARROW: f64 = 0.005;
/// A sample lasts at least that many costs of reading the clock.
pub const RESOLUTION: f64 = 2_000.0;
/// A sample lasts at least that many steps of a coarse clock.
const STEPS: u32 = 100;
/// Fewest samples that an interval is made of.
pub const FEWEST: usize = 5;
/// Fewest samples, and time from the first to the last, after which a narrow interval is believed: machines have slow and fast moments
/// that last longer than a few short samples.
pub const BELIEVED: (usize, Duration) = (20, Duration::from_millis(300));
/// Fewest pairs of samples after which two subjects are told apart.
pub const FEWEST_PAIRS: usize = 20;
/// Ratio of slow to fast samples from which on it is said.
const SPREAD: f64 = 1.25;
/// Change of the level of samples from which on it is said.
const DRIFT: f64 = 0.03;
/// Samples kept in one record at most; those of short calls are so long that they fill the time, up to half a second.
pub const MOST: usize = 2_000;
/// Short calls are not put together to samples longer than this: an interruption is heeded between samples.
const LONGEST: Duration = Duration::from_millis(500);

/// What times are read from: the host's clock, or in tests one that runs as a simulation says.
pub trait Clock {
    /// Time since an origin of the clock's own; never less than before.
    fn now(&self) -> Duration;

    /// The step that the clock goes in, where that is much longer than reading it takes: browsers round their clocks, those of devices
    /// included.
    fn step(&self) -> Duration {
        Duration::ZERO
    }
}

/// The host's monotonic clock.
#[cfg(not(target_arch = "wasm32"))]
pub struct Host(std::time::Instant);

#[cfg(not(target_arch = "wasm32"))]
impl Host {
    /// From now on.
    #[expect(clippy::new_without_default, reason = "another moment each time")]
    pub fn new() -> Self {
        Host(std::time::Instant::now())
    }
}

#[cfg(not(target_arch = "wasm32"))]
impl Clock for Host {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }
}

/// What is timed.
pub trait Subject {
    /// Makes `count` calls, one after the other, and is ready when the device has finished them.
    fn call(&mut self, count: u64) -> impl Future<Output = Result<()>>;

    /// What the last [`Subject::call`] took by the device's own clock, where it has one: the host's cost of waiting is then not in it.
    fn device_time(&self) -> Option<Duration> {
        None
    }

    /// Prepares the next sample, outside of the timing: flushes caches, rewinds a session.
    fn before_sample(&mut self) -> impl Future<Output = Result<()>> {
        async { Ok(()) }
    }

    /// Warm-up is over: samples follow.
    fn begin(&mut self) {}

    /// Whether a sample must be one call, because each needs its preparation.
    fn one_call_a_sample(&self) -> bool {
        false
    }
}

/// How long to measure.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// Time for warm-up and samples together.
    pub time: Duration,
    /// A fixed number of samples instead of as many as the interval needs.
    pub repetitions: Option<usize>,
    /// `time` ends a fixed number of samples early; it always ends the others.
    pub bounded: bool,
}

/// Samples and how they came about.
#[derive(Debug, Clone)]
pub struct Samples {
    /// Nanoseconds per call, in the order taken, the clock's own cost subtracted.
    pub ns: Vec<f64>,
    /// Calls in a sample.
    pub calls_per_sample: u64,
    /// Calls before the first sample.
    pub warmup_calls: u64,
    /// Nanoseconds of the clock's cost subtracted from each call.
    pub overhead_ns: f64,
}

impl Samples {
    /// The fastest of each `count` in a row: what a device can do when nothing disturbs it.
    pub fn best_of(mut self, count: usize) -> Self {
        let fastest = |group: &[f64]| group.iter().copied().fold(f64::INFINITY, f64::min);
        self.ns = self.ns.chunks(count.max(1)).map(fastest).collect();
        self
    }
}

/// A subject that is warm, and the size of its samples.
struct Sampler<'s, S> {
    subject: &'s mut S,
    clock: &'s dyn Clock,
    calls: u64,
    warmup_calls: u64,
    clock_ns: f64,
}

impl<'s, S: Subject> Sampler<'s, S> {
    /// Runs `subject` until its time is steady: until the medians of two successive windows of three samples agree within 2 %, or
    /// `time` is spent. Samples then last at least `least`, and as long as the clock needs to resolve them.
    async fn warm(subject: &'s mut S, clock: &'s dyn Clock, time: Duration, least: Duration) -> Result<Self> {
        let clock_ns = cost_ns(clock);
        let mut sampler = Sampler { subject, clock, calls: 1, warmup_calls: 0, clock_ns };
        let start = clock.now();
        // the first call pays for page faults and caches; the second tells how many calls a sample needs
        sampler.warmup_calls = 1;
        let long = |ns: f64| ns * 1e-9 > time.as_secs_f64() / 3.0;
        let mut first = sampler.sample().await?;
        if long(first) && !clock.step().is_zero() {
            // beside a coarse clock, one long call may be a moment's, and single short ones tell nothing
            first = sampler.sample().await?;
            sampler.warmup_calls = 2;
        }
        if long(first) {
            return Ok(sampler); // calls this long are their own warm-up
        }
        let mut second = sampler.sample().await?;
        sampler.warmup_calls += 1;
        if !sampler.subject.one_call_a_sample() {
            let step = clock.step().as_nanos() as f64;
            // a coarse clock tells nothing of one call: more of them, until it does
            while second * (sampler.calls as f64) < 10.0 * step && clock.now() - start < time {
                sampler.calls = (4 * sampler.calls).min(1 << 20);
                second = sampler.sample().await?;
                sampler.warmup_calls += sampler.calls;
            }
            let least = (RESOLUTION * clock_ns).max(f64::from(STEPS) * step).max(least.as_nanos() as f64);
            let calls = (least / second.max(1.0)).ceil();
            sampler.calls = (calls as u64).clamp(1, 1 << 20);
            // what a sample costs besides its calls was taken for theirs: a coarse clock needs the length, not the number
            while step > 0.0 && sampler.calls < 1 << 20 && clock.now() - start < time {
                second = sampler.sample().await?;
                sampler.warmup_calls += sampler.calls;
                let lasted = second * sampler.calls as f64;
                if lasted >= 0.9 * least {
                    break;
                }
                let calls = (sampler.calls as f64 * least / lasted.max(1.0)).ceil();
                sampler.calls = (calls as u64).clamp(sampler.calls + 1, 1 << 20);
            }
        }
        let mut window = Vec::new();
        let mut last: Option<f64> = None;
        while clock.now() - start < time {
            window.push(sampler.sample().await?);
            sampler.warmup_calls += sampler.calls;
            if window.len() == 3 {
                let median = stats::median(&window);
                window.clear();
                match (last, median) {
                    (Some(last), Some(now)) if (now / last - 1.0).abs() < 0.02 => break,
                    _ => last = median,
                }
            }
        }
        Ok(sampler)
    }

    /// What was sampled, `ns` nanoseconds per call.
    fn finish(self, ns: Vec<f64>) -> Samples {
        Samples {
            ns,
            calls_per_sample: self.calls,
            warmup_calls: self.warmup_calls,
            overhead_ns: match self.subject.device_time() {
                Some(_) => 0.0,
                None => self.clock_ns / self.calls as f64,
            },
        }
    }

    /// One sample, in nanoseconds per call.
    async fn sample(&mut self) -> Result<f64> {
        self.subject.before_sample().await?;
        let start = self.clock.now();
        self.subject.call(self.calls).await?;
        let host = (self.clock.now() - start).as_nanos() as f64 - self.clock_ns;
        let ns = match self.subject.device_time() {
            Some(time) => time.as_nanos() as f64,
            None => host.max(0.0),
        };
        Ok(ns / self.calls as f64)
    }
}

/// Warms `subject` up and samples it until the bootstrap 95 % interval of the median is narrower than 1 % or the effort is spent.
///
/// # Errors
/// Those of the subject.
pub async fn measure<S: Subject>(clock: &dyn Clock, subject: &mut S, effort: Effort) -> Result<Samples> {
    let start = clock.now();
    let warm_time =
        if effort.repetitions.is_some() { effort.time.min(Duration::from_secs(1)) } else { effort.time };
    let least = (effort.time / MOST as u32).min(LONGEST);
    let mut sampler = Sampler::warm(subject, clock, warm_time.mul_f64(0.25), least).await?;
    sampler.subject.begin();
    let mut ns = Vec::new();
    // sorting costs more than short samples do: look at the interval seldom
    let mut look = FEWEST;
    let sampling = clock.now();
    loop {
        ns.push(sampler.sample().await?);
        // three samples, unless one alone is too long for that
        let enough = ns.len() >= 3 || clock.now() - start >= effort.time.mul_f64(1.5);
        let spent = enough && clock.now() - start >= effort.time;
        if let Some(wanted) = effort.repetitions {
            if ns.len() >= wanted.max(1) || (effort.bounded && spent) {
                break;
            }
            continue;
        }
        if spent || ns.len() >= MOST {
            break;
        }
        if ns.len() >= look {
            look = look + look / 2;
            let long = ns.len() >= BELIEVED.0 && clock.now() - sampling >= BELIEVED.1;
            if long && is_narrow(&ns) {
                break;
            }
        }
    }
    Ok(sampler.finish(ns))
}

/// Samples of two subjects, taken in turn, so that what slows the machine for a while slows both: as many of each.
///
/// Which comes first changes from pair to pair: a subject that leaves caches or clocks to the next does so to either as often. Sampling
/// ends when the interval of the ratio within pairs is narrower than 1 % or the effort is spent.
///
/// # Errors
/// Those of the subjects.
pub async fn in_turn<S: Subject>(
    clock: &dyn Clock,
    one: &mut S,
    other: &mut S,
    effort: Effort,
) -> Result<(Samples, Samples)> {
    let start = clock.now();
    let warm_time = effort.time.mul_f64(0.15);
    let least = (effort.time / (2 * MOST as u32)).min(LONGEST);
    let mut samplers = [
        Sampler::warm(one, clock, warm_time, least).await?,
        Sampler::warm(other, clock, warm_time, least).await?,
    ];
    samplers.iter_mut().for_each(|sampler| sampler.subject.begin());
    let mut ns = [Vec::new(), Vec::new()];
    let mut look = FEWEST_PAIRS;
    let sampling = clock.now();
    loop {
        let first = ns[0].len() % 2;
        for which in [first, 1 - first] {
            ns[which].push(samplers[which].sample().await?);
        }
        let pairs = ns[0].len();
        let spent = pairs >= FEWEST && clock.now() - start >= effort.time;
        if let Some(wanted) = effort.repetitions {
            if pairs >= wanted.max(1) || (effort.bounded && spent) {
                break;
            }
            continue;
        }
        if spent || pairs >= MOST {
            break;
        }
        if pairs >= look {
            look = look + look / 2;
            let long = clock.now() - sampling >= BELIEVED.1;
            if long && is_narrow(&ns[0].iter().zip(&ns[1]).map(|(a, b)| b / a).collect::<Vec<_>>()) {
                break;
            }
        }
    }
    let [one, other] = samplers;
    let [a, b] = ns;
    Ok((one.finish(a), other.finish(b)))
}

/// Says so when samples are spread far apart: several levels, or a machine that others use.
pub fn spread(ns: &[f64]) -> Option<String> {
    let (fast, slow) = (stats::quantile(ns, 0.1)?, stats::quantile(ns, 0.9)?);
    let times = slow / fast;
    (ns.len() >= FEWEST && times > SPREAD).then(|| {
        format!("a tenth of the samples took more than {times:.1} times what the fastest tenth took")
    })
}

/// Says so when samples ended at another level than they began at: the device's clocks or its neighbours changed meanwhile.
pub fn drift(ns: &[f64]) -> Option<String> {
    let third = ns.len() / 3;
    if third < FEWEST {
        return None;
    }
    let (first, last) = (&ns[..third], &ns[ns.len() - third..]);
    let change = stats::median(last)? / stats::median(first)? - 1.0;
    let certain = stats::mann_whitney(first, last)?.p_value < 1e-3;
    let way = if change > 0.0 { "slower" } else { "faster" };
    (certain && change.abs() > DRIFT).then(|| {
        format!("the last third of the samples was {:.0} % {way} than the first", 100.0 * change.abs())
    })
}

/// Whether the 95 % interval of the median is narrow: that between order statistics, whose ranks follow from the binomial distribution of
/// as many independent samples as these are worth. It needs little more than a sort, so that it may stand within a window of energy.
pub fn is_narrow(ns: &[f64]) -> bool {
    let worth = (stats::effective_size(ns) / ns.len() as f64).sqrt();
    let mut sorted = ns.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let n = sorted.len() as f64;
    let reach = 0.98 * n.sqrt() / worth;
    let below = (n / 2.0 - reach).floor().max(1.0) as usize - 1;
    let above = ((n / 2.0 + 1.0 + reach).ceil() as usize).min(sorted.len()) - 1;
    sorted[above] - sorted[below] < 2.0 * NARROW * sorted[sorted.len() / 2]
}

/// What two readings of a clock cost, in nanoseconds: the median of many.
pub fn cost_ns(clock: &dyn Clock) -> f64 {
    let cost = || {
        let start = clock.now();
        (clock.now() - start).as_nanos() as f64
    };
    let costs: Vec<f64> = (0..101).map(|_| cost()).collect();
    stats::median(&costs).unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use perjoule_kernels::device::at_once;
    use std::cell::Cell;

    #[test]
    fn an_interval_is_narrow_when_the_middle_samples_agree() {
        assert!(is_narrow(&[100.0; 5]));
        assert!(
            !is_narrow(&[100.0, 100.0, 100.0, 100.0, 102.0]),
            "five samples have no interval narrower than their range"
        );
        let mut many: Vec<f64> = (0..100).map(|i| 100.0 + 0.001 * f64::from(i)).collect();
        many[0] = 1e9;
        assert!(is_narrow(&many), "outliers do not matter");
        assert!(!is_narrow(&(0..100).map(|i| 100.0 + f64::from(i)).collect::<Vec<_>>()));
    }

    #[test]
    fn a_level_that_changes_is_said_and_noise_is_not() {
        let noise = |i: usize| 1.0 + 0.01 * ((i * 7919 % 101) as f64 / 101.0 - 0.5);
        let steady: Vec<f64> = (0..90).map(|i| 1000.0 * noise(i)).collect();
        assert_eq!(drift(&steady), None);
        let drifting: Vec<f64> = (0..90).map(|i| 1000.0 * noise(i) * (1.0 + i as f64 / 900.0)).collect();
        assert!(drift(&drifting).unwrap().contains("slower"), "{:?}", drift(&drifting));
        let back: Vec<f64> = drifting.iter().rev().copied().collect();
        assert!(drift(&back).unwrap().contains("faster"));
        assert_eq!(drift(&drifting[..9]), None, "too few to tell");
    }

    /// A clock that is rounded down to whole steps, as those of browsers are.
    struct Coarse<'m> {
        ns: &'m Cell<f64>,
        step: Duration,
    }

    impl Clock for Coarse<'_> {
        fn now(&self) -> Duration {
            let step = self.step.as_nanos() as f64;
            Duration::from_nanos(((self.ns.get() / step).floor() * step) as u64)
        }

        fn step(&self) -> Duration {
            self.step
        }
    }

    struct Work<'m> {
        ns: &'m Cell<f64>,
        each: f64,
    }

    impl Subject for Work<'_> {
        async fn call(&mut self, count: u64) -> Result<()> {
            self.ns.set(self.ns.get() + self.each * count as f64 + 70_123.0);
            Ok(())
        }
    }

    #[test]
    fn samples_stay_short_however_much_time_there_is() {
        let ns = Cell::new(0.0);
        let effort = Effort { time: Duration::from_secs(1_000_000), repetitions: Some(3), bounded: true };
        let clock = Coarse { ns: &ns, step: Duration::from_nanos(1) };
        let samples = at_once(measure(&clock, &mut Work { ns: &ns, each: 3_000.0 }, effort)).unwrap();
        let sample = Duration::from_nanos((samples.ns[0] * samples.calls_per_sample as f64) as u64);
        assert!(sample < 2 * LONGEST, "{sample:?}");
    }

    #[test]
    fn a_coarse_clock_gets_samples_that_it_resolves() {
        for step in [Duration::from_micros(5), Duration::from_micros(100), Duration::from_millis(1)] {
            let ns = Cell::new(0.0);
            let effort = Effort { time: Duration::from_secs(2), repetitions: None, bounded: true };
            let clock = Coarse { ns: &ns, step };
            let samples = at_once(measure(&clock, &mut Work { ns: &ns, each: 3_000.0 }, effort)).unwrap();
            let sample = samples.ns[0] * samples.calls_per_sample as f64;
            assert!(sample >= 80.0 * step.as_nanos() as f64, "{step:?}: samples of {sample} ns");
            let median = stats::median(&samples.ns).unwrap();
            let with_cost = 3_000.0 + 70_123.0 / samples.calls_per_sample as f64;
            assert!((median / with_cost - 1.0).abs() < 0.02, "{step:?}: {median} ns for {with_cost} ns");
        }
    }
}
