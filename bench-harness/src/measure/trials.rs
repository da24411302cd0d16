//! The engine on simulated work: the truth is known, and so is how often the engine may miss it.

use anyhow::Result;
use perjoule_record::stats::{self, Verdict};
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};
use std::cell::RefCell;
use std::time::Duration;

use super::{Clock, Effort, Subject, in_turn_by, measure_by};

/// Trials of each claim.
const TRIALS: u64 = 200;

/// A machine in simulated time. What it does to all work: slow moments that come and go, clocks that wander. What it does to one call:
/// jitter, and now and then an interrupt.
struct Machine {
    ns: f64,
    random: Xoshiro256PlusPlus,
    /// Slowness of the moment, relative, with a memory of `memory` ns.
    moment: f64,
    memory: f64,
    moments: f64,
    jitter: f64,
    /// Nanoseconds that reading the clock takes.
    reading: f64,
}

impl Machine {
    fn new(seed: u64, moments: f64, memory: Duration, jitter: f64) -> RefCell<Self> {
        let random = Xoshiro256PlusPlus::seed_from_u64(seed);
        let memory = memory.as_nanos() as f64;
        RefCell::new(Machine { ns: 0.0, random, moment: 0.0, memory, moments, jitter, reading: 20.0 })
    }

    fn uniform(&mut self) -> f64 {
        ((self.random.next_u64() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    /// Box and Muller, 1958.
    fn normal(&mut self) -> f64 {
        let (u, v) = (self.uniform(), self.uniform());
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }

    /// Does work that takes `ns` where nothing disturbs.
    fn work(&mut self, ns: f64) {
        // an Ornstein-Uhlenbeck process, exact for a step of any length
        let kept = (-ns / self.memory).exp();
        self.moment = self.moment * kept + self.moments * (1.0 - kept * kept).sqrt() * self.normal();
        let interrupt = if self.uniform() < 0.02 { 0.3 * self.uniform() } else { 0.0 };
        let noise = self.moment + self.jitter * self.normal() + interrupt;
        self.ns += ns * noise.exp();
    }
}

struct Simulated<'m>(&'m RefCell<Machine>);

impl Clock for Simulated<'_> {
    fn now(&self) -> Duration {
        let mut machine = self.0.borrow_mut();
        machine.ns += machine.reading;
        Duration::from_nanos(machine.ns as u64)
    }
}

/// Work whose calls take `ns`, after `cold` calls that take twice as long.
struct Work<'m> {
    machine: &'m RefCell<Machine>,
    ns: f64,
    cold: u64,
}

impl Subject for Work<'_> {
    fn call(&mut self, count: u64) -> Result<()> {
        for _ in 0..count {
            let cold = if self.cold > 0 { 2.0 } else { 1.0 };
            self.cold = self.cold.saturating_sub(1);
            self.machine.borrow_mut().work(cold * self.ns);
        }
        Ok(())
    }
}

const EFFORT: Effort = Effort { time: Duration::from_secs(2), repetitions: None, bounded: true };

/// Machines that differ in what their noise remembers: nothing, moments of a few samples, moments longer than a measurement.
fn machines(seed: u64) -> [(&'static str, RefCell<Machine>); 4] {
    [
        ("quiet", Machine::new(seed, 0.0, Duration::from_secs(1), 0.003)),
        ("noisy", Machine::new(seed, 0.0, Duration::from_secs(1), 0.03)),
        ("with neighbours", Machine::new(seed, 0.02, Duration::from_millis(20), 0.01)),
        ("whose clocks wander", Machine::new(seed, 0.03, Duration::from_secs(2), 0.005)),
    ]
}

/// How often `count` holds among the trials on each machine, of the comparison of work of 1 ms with work of `ratio` times that.
fn trials(
    ratio: f64,
    threshold: f64,
    count: impl Fn(&stats::Comparison) -> bool,
) -> Vec<(&'static str, u64)> {
    let mut held = vec![("", 0); machines(0).len()];
    for seed in 0..TRIALS {
        for ((name, machine), held) in machines(seed).into_iter().zip(&mut held) {
            let (mut one, mut other) = (
                Work { machine: &machine, ns: 1e6, cold: 3 },
                Work { machine: &machine, ns: 1e6 * ratio, cold: 3 },
            );
            let (a, b) = in_turn_by(&Simulated(&machine), &mut one, &mut other, EFFORT).unwrap();
            let compared = stats::compare_pairs(&a.ns, &b.ns, threshold, seed).unwrap();
            *held = (name, held.1 + u64::from(count(&compared)));
        }
    }
    held
}

#[test]
fn equal_work_is_called_faster_or_slower_in_fewer_than_a_twentieth_of_the_trials() {
    let wrong = |c: &stats::Comparison| matches!(c.verdict, Verdict::Faster | Verdict::Slower);
    for (machine, count) in trials(1.0, 0.02, wrong) {
        assert!(count < TRIALS / 20, "on a machine {machine}: {count} of {TRIALS}");
    }
}

#[test]
fn a_difference_of_two_per_cent_is_found() {
    for (machine, count) in trials(1.02, 0.01, |c| c.verdict == Verdict::Slower) {
        assert!(count >= TRIALS * 95 / 100, "on a machine {machine}: found in {count} of {TRIALS}");
    }
}

#[test]
fn the_interval_of_a_ratio_holds_the_truth_as_often_as_it_says() {
    // at 95 % fewer than 182 of 200 happen once in a hundred times; sampling stops when an interval looks narrow, which costs a little
    for (machine, count) in trials(1.02, 0.02, |c| c.ci95.lo <= 1.02 && 1.02 <= c.ci95.hi) {
        assert!(count >= 182, "on a machine {machine}: {count} of {TRIALS}");
    }
}

#[test]
fn the_interval_of_a_median_holds_the_truth_as_often_as_it_says() {
    // not where clocks wander for longer than a measurement: no interval within one knows of that
    for index in 0..3 {
        let mut held = 0;
        let mut name = "";
        for seed in 0..TRIALS {
            let (machine_name, machine) = &machines(seed)[index];
            name = machine_name;
            let mut work = Work { machine, ns: 1e6, cold: 5 };
            let samples = measure_by(&Simulated(machine), &mut work, EFFORT).unwrap();
            let interval = stats::bootstrap_median_ci95_in_order(&samples.ns, seed).unwrap();
            // the median of what a call takes: that of the symmetric noise, moved by the interrupts of one call in fifty
            let truth = truth(index);
            held += u64::from(interval.lo <= truth && truth <= interval.hi);
        }
        assert!(held >= 182, "on a machine {name}: {held} of {TRIALS}");
    }
}

/// Median time of a call on one of the machines, from a long simulation.
fn truth(index: usize) -> f64 {
    use std::sync::OnceLock;
    static TRUTH: [OnceLock<f64>; 3] = [const { OnceLock::new() }; 3];
    *TRUTH[index].get_or_init(|| {
        let (_, machine) = &machines(987_654)[index];
        let mut took = Vec::new();
        for _ in 0..400_000 {
            let before = machine.borrow().ns;
            machine.borrow_mut().work(1e6);
            took.push(machine.borrow().ns - before);
        }
        stats::median(&took).unwrap()
    })
}

#[test]
fn calls_shorter_than_the_clock_resolves_are_measured_in_batches() {
    for seed in 0..20 {
        let machine = Machine::new(seed, 0.0, Duration::from_secs(1), 0.01);
        let mut work = Work { machine: &machine, ns: 30.0, cold: 0 };
        let samples = measure_by(&Simulated(&machine), &mut work, EFFORT).unwrap();
        let median = stats::median(&samples.ns).unwrap();
        // interrupts add 0.3 % to a batch on average
        assert!((median / 30.09 - 1.0).abs() < 0.005, "{median} ns, seed {seed}");
        assert!(samples.calls_per_sample > 1000, "{}", samples.calls_per_sample);
    }
}
