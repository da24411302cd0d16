//! Commands as processes of their own: run in turn, timed, and their energy taken.
//!
//! Several commands are run alternately (the order turns from round to round), so that what slows the machine for a while slows all of
//! them. Joules are those of each run's own window where a run is long enough for the meters; else a command is repeated within one window
//! at the end. Where power is modelled, joules follow from the CPU time that the system counted for the command.

use anyhow::{Result, bail};
use perjoule_engine::sampling::{BELIEVED, FEWEST, FEWEST_PAIRS, MOST, is_narrow};
use perjoule_record::{Clock, EnergyRuns, Interval, Kind, Record, stats};
use std::ffi::OsString;
use std::time::{Duration, Instant};

use super::conditions::Watch;
use super::energy::{Gauge, SHORTEST, Seen};
use super::kernel::DIFFERENCE;
use super::process::{Finished, Processes, ending};
use super::{Interrupted, interrupted};

/// Half width of a 95 % interval in standard deviations of a normal distribution.
const Z95: f64 = 1.96;
/// Seed of the bootstrap.
const SEED: u64 = 1;
/// Runs before the first sample, at most, when their number is not given.
const WARMUPS: u64 = 5;
/// Relative difference of two successive warm-up runs from which on they agree.
const AGREE: f64 = 0.05;
/// Share of a command's time that warm-up may take when its runs are not given, and from which on a run is its own warm-up.
const WARM: f64 = 0.1;
const LONG: f64 = 1.0 / 3.0;

/// A command to measure.
#[derive(Debug, Clone)]
pub(crate) struct Task {
    /// Program and arguments.
    pub(crate) words: Vec<OsString>,
    /// The command line as it was given.
    pub(crate) shown: String,
    /// Its name, when it was given one.
    pub(crate) name: Option<String>,
    /// What runs before each run, outside of the timing.
    pub(crate) prepare: Option<Vec<OsString>>,
}

impl Task {
    /// For people: the name, else the command line.
    pub(crate) fn label(&self) -> &str {
        self.name.as_deref().unwrap_or(&self.shown)
    }
}

/// How long to measure.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    /// A fixed number of runs of each command.
    pub(crate) runs: Option<usize>,
    /// Fewest runs when their number is not fixed.
    pub(crate) min_runs: Option<usize>,
    /// Runs before the first sample; until they agree when it is not given.
    pub(crate) warmup: Option<u64>,
    /// Time for all commands together.
    pub(crate) budget: Duration,
    /// Whether `budget` ends a fixed number of runs early.
    pub(crate) bounded: bool,
    /// Whether exit codes other than 0 are accepted.
    pub(crate) ignore_failure: bool,
}

/// A run and what the meters saw of it.
struct Run {
    finished: Finished,
    seen: Vec<Seen>,
}

/// What commands are measured with.
pub(crate) struct Bench<'a> {
    /// At least one.
    pub(crate) tasks: &'a [Task],
    pub(crate) plan: Plan,
    pub(crate) processes: &'a Processes,
    pub(crate) gauge: Option<&'a Gauge>,
    /// Logical processors of the machine.
    pub(crate) processors: u64,
    /// Told what runs next.
    pub(crate) progress: &'a dyn Fn(&str),
}

impl Bench<'_> {
    /// Measures all commands and fills a record of each; `record` is what they begin as. Runs that were finished before an interruption are
    /// in them; a command without any has none.
    ///
    /// # Errors
    /// A command that cannot be started, or that fails where that is not to be ignored.
    pub(crate) fn measure(&self, record: &Record) -> Result<Vec<Record>> {
        let mut taken: Vec<Vec<Run>> = self.tasks.iter().map(|_| Vec::new()).collect();
        let mut watches = self.watches();
        let start = Instant::now();
        let warmups = match self.warm(&mut taken) {
            Ok(warmups) => {
                // what happened during long first runs, which count, is to be seen, too
                if taken.iter().all(Vec::is_empty) {
                    watches = self.watches();
                }
                passed(self.sample(&mut taken, start))?;
                warmups
            }
            Err(error) => passed(Err(error)).map(|()| vec![0; taken.len()])?,
        };
        let mut records = Vec::new();
        for (((task, runs), watch), warmups) in self.tasks.iter().zip(&taken).zip(watches).zip(warmups) {
            let mut record = Record { kind: Kind::Command, ..record.clone() };
            describe(&mut record, task, runs, warmups);
            watch.finish(&mut record);
            records.push(record);
        }
        for (record, runs) in records[1..].iter_mut().zip(&taken[1..]) {
            versus(record, self.tasks[0].label(), &taken[0], runs);
        }
        if let Some(gauge) = self.gauge {
            self.energy(gauge, &taken, &mut records)?;
        }
        let mut taken = taken.iter();
        records.retain(|_| taken.next().is_some_and(|runs| !runs.is_empty()));
        Ok(records)
    }

    /// Seconds that each command has.
    fn share(&self) -> f64 {
        self.plan.budget.as_secs_f64() / self.tasks.len() as f64
    }

    /// Runs every command until it is warm; gives the runs that this took. Runs so long that they need no warm-up are the first samples.
    fn warm(&self, taken: &mut [Vec<Run>]) -> Result<Vec<u64>> {
        if let Some(warmup) = self.plan.warmup {
            for task in self.tasks {
                (self.progress)(&format!("warm-up: {}", task.label()));
                (0..warmup).try_for_each(|_| self.once(task).map(|_| ()))?;
            }
            return Ok(vec![warmup; taken.len()]);
        }
        let mut first = Vec::new();
        for task in self.tasks {
            (self.progress)(&format!("warm-up: {}", task.label()));
            first.push(self.once(task)?);
        }
        if first.iter().all(|run| run.finished.wall_s > LONG * self.share()) {
            first.into_iter().zip(taken).for_each(|(run, runs)| runs.push(run));
            return Ok(vec![0; self.tasks.len()]);
        }
        let mut counts = Vec::new();
        for (task, first) in self.tasks.iter().zip(first) {
            let (mut last, mut count, mut spent) = (first.finished.wall_s, 1, first.finished.wall_s);
            while count < WARMUPS && spent < WARM * self.share() {
                let now = self.once(task)?.finished.wall_s;
                count += 1;
                spent += now;
                if (now / last - 1.0).abs() < AGREE {
                    break;
                }
                last = now;
            }
            counts.push(count);
        }
        Ok(counts)
    }

    /// Runs all commands in turn. The time counts from `start`, the samples' own from now.
    fn sample(&self, taken: &mut [Vec<Run>], start: Instant) -> Result<()> {
        let plan = &self.plan;
        let sampling = Instant::now();
        let fewest = plan.min_runs.unwrap_or(FEWEST);
        let looked = if taken.len() > 1 { FEWEST_PAIRS } else { BELIEVED.0 }.max(fewest);
        let mut look = looked;
        let mut round = taken[0].len();
        loop {
            let spent = start.elapsed() >= plan.budget;
            // a command that takes longer than all the time there is need not run five times, unless that was asked for
            let few = plan.min_runs.is_none() && start.elapsed() >= plan.budget.mul_f64(1.5) && round >= 1;
            let over = spent && (round >= fewest || few);
            match plan.runs {
                Some(wanted) if round >= wanted || (plan.bounded && over) => return Ok(()),
                None if over || round >= MOST.max(fewest) => return Ok(()),
                None if round >= look => {
                    look += look / 2;
                    if sampling.elapsed() >= BELIEVED.1 && settled(taken) {
                        return Ok(());
                    }
                }
                _ => {}
            }
            let n = taken.len();
            for at in 0..n {
                let which = if round.is_multiple_of(2) { at } else { n - 1 - at };
                let (task, runs) = (&self.tasks[which], &mut taken[which]);
                (self.progress)(&format!("run {}: {}", runs.len() + 1, task.label()));
                runs.push(self.once(task)?);
            }
            round += 1;
        }
    }

    /// A watch for each command. Readings over time are of one command, or of none where several run in turn.
    fn watches(&self) -> Vec<Watch> {
        let meter = || self.gauge.filter(|_| self.tasks.len() == 1).and_then(Gauge::sensor);
        self.tasks.iter().map(|_| Watch::start(meter())).collect()
    }

    /// One run, with its preparation before it.
    fn once(&self, task: &Task) -> Result<Run> {
        self.prepare(task)?;
        let windows = self.gauge.filter(|gauge| gauge.has_sensors()).map(Gauge::open);
        let finished = self.run(task)?;
        let seen = self.gauge.zip(windows).map(|(gauge, windows)| gauge.finish(windows));
        Ok(Run { finished, seen: seen.unwrap_or_default() })
    }

    fn prepare(&self, task: &Task) -> Result<()> {
        let Some(words) = &task.prepare else { return Ok(()) };
        let status = self.processes.run(words)?.status;
        if !status.success() {
            bail!("--prepare {}", ending(status));
        }
        Ok(())
    }

    fn run(&self, task: &Task) -> Result<Finished> {
        let finished = self.processes.run(&task.words)?;
        if !finished.status.success() && !self.plan.ignore_failure {
            bail!(
                "{:?} {}: --output inherit shows what it says, -i measures it all the same",
                crate::report::one_line(task.label()),
                ending(finished.status)
            );
        }
        Ok(finished)
    }

    /// Fills the columns of energy.
    fn energy(&self, gauge: &Gauge, taken: &[Vec<Run>], records: &mut [Record]) -> Result<()> {
        let longest = self.longest(gauge);
        let (sound, least) = (gauge.sound(self.plan.budget), gauge.least(self.plan.budget));
        let mut totals = Vec::new();
        for ((task, runs), record) in self.tasks.iter().zip(taken).zip(&mut *records) {
            let median = stats::median(&walls(runs)).unwrap_or(0.0);
            // what is repeated once only may as well be one of the runs
            let enough = sound.min(longest.max(least));
            let alone = median >= enough.as_secs_f64();
            let total = if alone || !gauge.has_sensors() || interrupted() {
                let how = if gauge.has_sensors() { "own windows" } else { "CPU time" };
                record.workload.config = Some(format!("energy: the runs' {how}"));
                record.process.energy_runs = Some(EnergyRuns::Timed);
                Total::of(runs.iter().map(|run| &run.finished), summed(gauge, runs))
            } else if task.prepare.is_some() {
                let reason = format!(
                    "a run is shorter than the {:.2} s that the meters need, and --prepare would be in a window of several",
                    sound.as_secs_f64()
                );
                record.workload.config = Some(format!("energy: {reason}"));
                Total::of([].iter(), gauge.nothing(&reason))
            } else if least > longest {
                let reason = format!(
                    "the meter needs {:.2} s to tell anything, and a run takes {median:.3} s: --budget {:.0} has time to repeat it",
                    least.as_secs_f64(),
                    sound.as_secs_f64().ceil()
                );
                record.workload.config = Some(format!("energy: {reason}"));
                Total::of([].iter(), gauge.nothing(&reason))
            } else {
                (self.progress)(&format!("energy: {}", task.label()));
                match self.window(gauge, task) {
                    Ok(total) => {
                        record.workload.config = Some(format!(
                            "energy: {} runs in one window, after those that were timed; one is too short for the meters",
                            total.runs
                        ));
                        record.process.energy_runs = Some(EnergyRuns::Repeated);
                        total
                    }
                    Err(error) => passed(Err(error)).map(|()| Total::of([].iter(), Vec::new()))?,
                }
            };
            totals.push(total);
        }
        if !interrupted() {
            gauge.rest();
        }
        let counts: Vec<u64> = totals.iter().map(|total| total.runs).collect();
        let of_use = |total: Total| {
            let use_ = self.utilisation(total.cpu_s, total.wall_s);
            gauge.seen_of_use(total.seen, total.wall_s, use_)
        };
        let seen: Vec<Vec<Seen>> = totals.into_iter().map(of_use).collect();
        // the same for all commands, or their joules could not be compared
        let heads = gauge.heads(&seen);
        let mut each = Vec::new();
        for (((seen, calls), runs), record) in seen.iter().zip(counts).zip(taken).zip(&mut *records) {
            record.energy = gauge.columns_of(heads, seen, calls);
            let of_runs = self.joules_of_runs(gauge, heads, runs);
            record.process.run_joules =
                of_runs.as_ref().map(|list| list.iter().map(|(joules, _)| *joules).collect());
            each.push(of_runs);
        }
        if let Some(Some(first)) = each.first() {
            for (record, runs) in records.iter_mut().zip(&each).skip(1) {
                versus_joules(record, first, runs.as_deref().unwrap_or_default());
            }
        }
        Ok(())
    }

    /// Share of all processors that CPU time is of wall time.
    fn utilisation(&self, cpu_s: f64, wall_s: f64) -> f64 {
        let all = wall_s * self.processors.max(1) as f64;
        if all > 0.0 { (cpu_s / all).clamp(0.0, 1.0) } else { 0.0 }
    }

    /// Gross joules of each run and their standard uncertainty from sampling, if the meters of the record's own fields can tell those of
    /// every one.
    fn joules_of_runs(&self, gauge: &Gauge, heads: &[usize], runs: &[Run]) -> Option<Vec<(f64, f64)>> {
        let of = |run: &Run| {
            let finished = &run.finished;
            let seen = if run.seen.is_empty() { gauge.nothing("no window") } else { run.seen.clone() };
            let use_ = self.utilisation(finished.cpu_s(), finished.wall_s);
            let seen = gauge.together(heads, &gauge.seen_of_use(seen, finished.wall_s, use_)).ok()?;
            // a window of a few steps of the counter says little of a single run
            let sampling = seen.uncertainty.sampling;
            (sampling <= 0.1 * seen.joules).then_some((seen.joules, sampling))
        };
        runs.iter().map(of).collect::<Option<Vec<_>>>().filter(|list| !list.is_empty())
    }

    /// Longest window of repeated runs: a command's share of the time, and for a slow meter more of it, but never more than all.
    fn longest(&self, gauge: &Gauge) -> Duration {
        Duration::from_secs_f64(self.share()).max(gauge.sound(self.plan.budget)).min(self.plan.budget)
    }

    /// Repeats a command within one window, as long as the meters need and there is time for.
    fn window(&self, gauge: &Gauge, task: &Task) -> Result<Total> {
        let length = gauge.narrow().max(SHORTEST).min(self.longest(gauge));
        let (start, windows) = (Instant::now(), gauge.open());
        let mut runs = Vec::new();
        while runs.is_empty() || start.elapsed() < length {
            runs.push(self.run(task)?);
        }
        let seen = gauge.finish(windows);
        Ok(Total { wall_s: start.elapsed().as_secs_f64(), ..Total::of(runs.iter(), seen) })
    }
}

/// Time and energy of several runs together.
struct Total {
    runs: u64,
    wall_s: f64,
    cpu_s: f64,
    seen: Vec<Seen>,
}

impl Total {
    fn of<'r>(runs: impl Iterator<Item = &'r Finished>, seen: Vec<Seen>) -> Self {
        let mut total = Total { runs: 0, wall_s: 0.0, cpu_s: 0.0, seen };
        for run in runs {
            total.runs += 1;
            total.wall_s += run.wall_s;
            total.cpu_s += run.cpu_s();
        }
        total
    }
}

/// An interruption ends sampling and is no error: what is finished is kept.
fn passed(result: Result<()>) -> Result<()> {
    match result {
        Err(error) if error.is::<Interrupted>() || interrupted() => Ok(()),
        other => other,
    }
}

fn walls(runs: &[Run]) -> Vec<f64> {
    runs.iter().map(|run| run.finished.wall_s).collect()
}

/// Whether more runs would tell little more: of one command its own time, of several their ratios to the first.
fn settled(taken: &[Vec<Run>]) -> bool {
    let walls: Vec<Vec<f64>> = taken.iter().map(|runs| walls(runs)).collect();
    match walls.as_slice() {
        [one] => is_narrow(one),
        [first, rest @ ..] => rest
            .iter()
            .all(|other| is_narrow(&first.iter().zip(other).map(|(a, b)| b / a).collect::<Vec<_>>())),
        [] => true,
    }
}

/// For each meter the energy of all runs, where it could tell that of every one.
fn summed(gauge: &Gauge, runs: &[Run]) -> Vec<Seen> {
    let of = |meter: usize| {
        let nothing = || Err("no run has a window of this meter".to_owned());
        let parts = runs.iter().map(|run| run.seen.get(meter).cloned().unwrap_or_else(nothing));
        perjoule_meter::Energy::sum(&parts.collect::<Result<Vec<_>, String>>()?).map_or_else(nothing, Ok)
    };
    (0..gauge.len()).map(of).collect()
}

/// What ran, and its time and use.
fn describe(record: &mut Record, task: &Task, runs: &[Run], warmups: u64) {
    let n = runs.len().max(1) as f64;
    let finished = || runs.iter().map(|run| &run.finished);
    // what Windows gives is 32 bits without a sign
    let code = |run: &Finished| run.status.code().map(|code| u64::from(code.cast_unsigned()));
    let first = finished().next().and_then(code);
    record.timing.clock = Some(Clock::Host);
    record.timing.calls_per_sample = Some(1);
    record.timing.warmup_calls = Some(warmups);
    record.timing.set_samples(walls(runs).into_iter().map(|s| s * 1e9).collect(), SEED);
    let process = &mut record.process;
    process.exec_command = Some(task.shown.clone());
    process.exec_name = task.name.clone();
    process.exit_code = first.filter(|_| finished().all(|run| code(run) == first));
    process.failed_runs = Some(finished().filter(|run| !run.status.success()).count() as u64);
    process.cpu_user_s = Some(finished().map(|run| run.user_s).sum::<f64>() / n);
    process.cpu_system_s = Some(finished().map(|run| run.system_s).sum::<f64>() / n);
    process.peak_memory_bytes = finished().filter_map(|run| run.peak_bytes).max();
}

/// How long a command takes beside the first one.
fn versus(record: &mut Record, name: &str, first: &[Run], runs: &[Run]) {
    record.versus.versus = Some(name.to_owned());
    let pairs = first.len().min(runs.len());
    let (old, new) = (walls(&first[..pairs]), walls(&runs[..pairs]));
    if let Some(compared) = stats::compare_pairs(&old, &new, DIFFERENCE, SEED) {
        record.versus.versus_ratio = Some(compared.ratio);
        record.versus.versus_ci95 = Some(compared.ci95);
        record.versus.versus_p_value = Some(compared.p_value);
        record.versus.versus_verdict = Some(compared.verdict);
    }
}

/// What a command's runs cost beside those of the first one, run by run. The ends of windows miss the same in every run of a command, which
/// the spread of the runs does not show: the interval of the ratio is widened by it.
fn versus_joules(record: &mut Record, first: &[(f64, f64)], runs: &[(f64, f64)]) {
    let pairs = first.len().min(runs.len());
    let joules = |list: &[(f64, f64)]| list[..pairs].iter().map(|(joules, _)| *joules).collect::<Vec<_>>();
    let (old, new) = (joules(first), joules(runs));
    let Some(compared) = stats::compare_pairs(&old, &new, DIFFERENCE, SEED) else { return };
    let relative = |list: &[(f64, f64)], joules: &[f64]| {
        list[..pairs].iter().map(|(_, sampling)| sampling).sum::<f64>() / joules.iter().sum::<f64>()
    };
    let sampling = Z95 * compared.ratio * relative(first, &old).hypot(relative(runs, &new));
    let ci95 = Interval {
        lo: (compared.ratio - (compared.ratio - compared.ci95.lo).hypot(sampling)).max(0.0),
        hi: compared.ratio + (compared.ci95.hi - compared.ratio).hypot(sampling),
    };
    record.process.versus_joules_ratio = Some(compared.ratio);
    record.process.versus_joules_ci95 = Some(ci95);
    record.process.versus_joules_p_value = Some(compared.p_value);
    record.process.versus_joules_verdict = Some(stats::Verdict::of(ci95, DIFFERENCE));
}

#[cfg(test)]
mod tests {
    use super::*;
    use perjoule_record::{Environment, stats::Verdict};

    #[test]
    fn what_all_windows_miss_alike_is_in_the_ratio_of_joules() {
        let runs = |joules: f64, sampling: f64| -> Vec<(f64, f64)> {
            (0..10).map(|i| (joules + 0.01 * f64::from(i % 3), sampling * joules)).collect()
        };
        let verdict = |sampling: f64| {
            let mut record = Record::new(Kind::Command, &Environment::default());
            versus_joules(&mut record, &runs(100.0, sampling), &runs(106.0, sampling));
            let p = record.process;
            (p.versus_joules_ratio.unwrap(), p.versus_joules_ci95.unwrap(), p.versus_joules_verdict.unwrap())
        };
        let (ratio, ci, word) = verdict(0.0);
        assert!((ratio - 1.06).abs() < 1e-3 && ci.lo > 1.05 && word == Verdict::Slower);
        // 5 % of each: 1.96 x 1.06 x 0.05 x sqrt(2)
        let (ratio, ci, word) = verdict(0.05);
        assert!((ratio - ci.lo - 0.147).abs() < 2e-3 && (ci.hi - ratio - 0.147).abs() < 2e-3, "{ci:?}");
        assert_eq!(word, Verdict::Unclear);
        let mut record = Record::new(Kind::Command, &Environment::default());
        versus_joules(&mut record, &runs(1.0, 0.0), &[]);
        assert_eq!(record.process.versus_joules_ratio, None);
    }
}
