//! Every kernel that runs an op, measured against the others: checked first, then sampled in turn, so that what slows the machine for a
//! while slows all.

use anyhow::Result;
use perjoule::{Choice, Device, Op};
use perjoule_engine::data;
use perjoule_engine::launches::{CHECKED, Launches, default_cache, slices};
use perjoule_kernels::device::at_once;
use perjoule_kernels::{Query, Verdict};
use perjoule_record::{CacheState, stats};
use std::time::{Duration, Instant};

use super::kernel::caches;
use super::{Interrupted, RESOLUTION, Subject, clock_cost_ns, interrupted};

/// Samples of a kernel last at least that long, and as long as the clock needs to resolve them.
const SAMPLE: Duration = Duration::from_micros(200);
/// Samples after which a kernel may drop out, and how many times slower than the best it then is.
const HOPELESS: (usize, f64) = (3, 1.5);
/// Most samples of a kernel.
const MOST: usize = 101;

/// A kernel's time.
#[derive(Debug, Clone)]
pub(crate) struct Timed {
    pub(crate) choice: Choice,
    /// Median of a launch.
    pub(crate) seconds: f64,
    pub(crate) samples: usize,
}

/// What became of the kernels that run an op.
#[derive(Debug, Clone, Default)]
pub(crate) struct Contest {
    /// What predictions alone choose.
    pub(crate) predicted: Option<Choice>,
    /// Fastest first.
    pub(crate) timed: Vec<Timed>,
    /// Kernels whose results are wrong, and how.
    pub(crate) wrong: Vec<(Choice, String)>,
    /// Kernels of which one launch alone would take longer than there is time, as they predict.
    pub(crate) left: Vec<Choice>,
}

/// A kernel in the contest.
struct Entrant {
    choice: Choice,
    launches: Launches,
    calls: u64,
    ns: Vec<f64>,
    active: bool,
}

/// Measures every row, configuration and pack format that runs `query`, of vendors too if `vendor`, for about `time`; checking results
/// comes on top. Calls of few rows rotate their operands, as in a model.
///
/// # Errors
/// [`Interrupted`], and whatever preparing and launching run into.
pub(crate) fn contest(
    device: &Device,
    query: Query<'_>,
    vendor: bool,
    time: Duration,
    seed: u64,
) -> Result<Contest> {
    let op = query.op;
    let mut contest = Contest::default();
    let candidates = candidates(device, query, vendor)?;
    contest.predicted = candidates.iter().map(|(choice, _)| *choice).find(|c| !c.kernel.vendor);
    let cache = default_cache(op);
    let before = data::operands(op, seed)?;
    let mut formats = Vec::new();
    for (choice, _) in &candidates {
        formats.extend((!formats.contains(&choice.pack)).then_some(choice.pack));
    }
    let available = device.backend().free_bytes().unwrap_or(u64::MAX);
    let mut caches = caches(device);
    caches.rotated = caches.rotated.min(available / (2 * formats.len().max(1) as u64));
    let shortest = candidates.first().map_or(0.0, |(_, predicted)| *predicted);
    let mut entrants: Vec<Entrant> = Vec::new();
    for (choice, predicted) in candidates {
        if interrupted() {
            return Err(Interrupted.into());
        }
        if f64::from(predicted) > time.as_secs_f64() / 2.0 && predicted > 8.0 * shortest {
            contest.left.push(choice);
            continue;
        }
        let same = entrants.iter().find(|e| e.choice.pack == choice.pack);
        let mut launches = match same {
            Some(entrant) => entrant.launches.beside(device, op, choice)?,
            None => at_once(Launches::new(device, op, choice, &before, cache, caches))?,
        };
        launches.restore(&before)?;
        let after = at_once(launches.outputs())?;
        // what lies in a packed weight is judged by the products that read it
        if !matches!(op, Op::Pack(_)) {
            let numerics = launches.prepared.numerics();
            let checked =
                perjoule_suite::verify(op, &slices(&before), &slices(&after), numerics, CHECKED, seed)?;
            if !checked.passed {
                contest.wrong.push((choice, checked.report.join("; ")));
                continue;
            }
        }
        entrants.push(Entrant { choice, launches, calls: 1, ns: Vec::new(), active: true });
    }
    sample(&mut entrants, cache == CacheState::Hot, time)?;
    contest.timed = entrants.into_iter().filter_map(Entrant::finish).collect();
    contest.timed.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
    Ok(contest)
}

/// What does not refuse, with its prediction: the cheapest first. Vendors' libraries are not even looked for unless they are wanted.
fn candidates(device: &Device, query: Query<'_>, vendor: bool) -> Result<Vec<(Choice, f32)>> {
    let backend = &**device.backend();
    let verdicts = match vendor {
        true => perjoule_kernels::explain(backend, query)?,
        false => perjoule_kernels::select::explain_own(backend, query)?,
    };
    let accepted = |v: Verdict| v.outcome.ok().map(|cost| (v.choice, cost.predicted));
    let mut list: Vec<_> = verdicts.into_iter().filter_map(accepted).collect();
    // of equal predictions the earlier row wins; where something was measured already, verdicts are in another order
    let rows = device.kernels();
    let place = |choice: &Choice| rows.iter().position(|row| std::ptr::eq(*row, choice.kernel));
    list.sort_by(|a, b| a.1.total_cmp(&b.1).then_with(|| place(&a.0).cmp(&place(&b.0))));
    Ok(list)
}

fn sample(entrants: &mut [Entrant], hot: bool, time: Duration) -> Result<()> {
    let clock_ns = clock_cost_ns();
    let least = (RESOLUTION * clock_ns).max(SAMPLE.as_nanos() as f64);
    for entrant in entrants.iter_mut() {
        let once = entrant.sample(hot, clock_ns)?;
        entrant.calls = ((least / once.max(1.0)).ceil() as u64).clamp(1, 1 << 20);
    }
    let start = Instant::now();
    for round in 0..MOST {
        for at in 0..entrants.len() {
            // each comes behind each other one in turn
            let at = if round % 2 == 0 { at } else { entrants.len() - 1 - at };
            let entrant = &mut entrants[at];
            if entrant.active {
                let ns = entrant.sample(hot, clock_ns)?;
                entrant.ns.push(ns);
            }
        }
        let best = entrants.iter().filter_map(|e| stats::median(&e.ns)).fold(f64::INFINITY, f64::min);
        for entrant in entrants.iter_mut().filter(|e| e.ns.len() >= HOPELESS.0) {
            entrant.active = stats::median(&entrant.ns).is_some_and(|median| median <= HOPELESS.1 * best);
        }
        let alone = entrants.iter().filter(|e| e.active).count() <= 1;
        let enough = round + 1 >= HOPELESS.0 && (start.elapsed() >= time || alone);
        if enough || start.elapsed() >= 3 * time {
            break;
        }
    }
    Ok(())
}

impl Entrant {
    /// One sample, in nanoseconds a call. The operands of a `hot` one are brought back into the caches first.
    fn sample(&mut self, hot: bool, clock_ns: f64) -> Result<f64> {
        if interrupted() {
            return Err(Interrupted.into());
        }
        if hot {
            self.launches.call(1)?;
        }
        let start = Instant::now();
        self.launches.call(self.calls)?;
        let ns = start.elapsed().as_nanos() as f64 - clock_ns;
        Ok(ns.max(0.0) / self.calls as f64)
    }

    fn finish(self) -> Option<Timed> {
        let seconds = stats::median(&self.ns)? * 1e-9;
        Some(Timed { choice: self.choice, seconds, samples: self.ns.len() })
    }
}
