//! Prefill and decode of a whole model: tokens per second and joules per token.
//!
//! Prefill processes `n_prompt` tokens of each sequence, in chunks of `n_batch`; decode generates `n_gen` tokens of each sequence after
//! `n_depth` tokens are in the KV cache. A repetition rewinds the session, so that every sample starts from the same depth.

use anyhow::{Context, Result};
use perjoule_engine::tokens::{Repetition, ids};
use perjoule_kernels::device::at_once;
use perjoule_model::{Model, SessionOptions};
use perjoule_record::{Energy, Record};
use std::time::{Duration, Instant};

use super::ceilings::Ceilings;
use super::conditions::Watch;
use super::energy::{Gauge, Windows};
use super::{Effort, Interrupted, Subject, interrupted, measure};

pub(crate) use perjoule_engine::tokens::Test;

/// A prompt, until somebody interrupts.
fn prefill(session: &mut perjoule_model::Session<'_>, prompt: &[u32]) -> Result<()> {
    session.prefill_while(prompt, &mut |_| !interrupted())?;
    if interrupted() { Err(Interrupted.into()) } else { Ok(()) }
}

/// Seconds that prefill takes a token and decode takes a step, from a short try: what sizes are chosen by.
pub(crate) fn pace(model: &Model, parallel: usize, seed: u64) -> Result<(f64, f64)> {
    const PROMPT: usize = 32;
    let options = SessionOptions { parallel, capacity: PROMPT + 4, chunk: PROMPT };
    let mut session = model.session(options)?;
    let prompt = ids(model.geometry().vocab, parallel * PROMPT, seed);
    prefill(&mut session, &prompt)?;
    session.greedy()?;
    session.rewind(0)?;
    let start = Instant::now();
    prefill(&mut session, &prompt)?;
    session.greedy()?;
    let prefill = start.elapsed().as_secs_f64() / PROMPT as f64;
    session.decode_greedy(1, &mut |_| true)?;
    let start = Instant::now();
    session.decode_greedy(2, &mut |_| true)?;
    Ok((prefill, start.elapsed().as_secs_f64() / 2.0))
}

/// The largest of llama-bench's usual sizes of which `repetitions` fit into `time` at `seconds` a token.
pub(crate) fn size_within(time: Duration, seconds: f64, usual: &[usize], repetitions: usize) -> usize {
    let fits = |n: &&usize| **n as f64 * seconds * repetitions as f64 <= time.as_secs_f64();
    usual.iter().find(fits).or(usual.last()).copied().unwrap_or(1)
}

/// What every test of one loaded model shares.
pub(crate) struct Bench<'a> {
    pub(crate) model: &'a Model,
    pub(crate) gauge: Option<&'a Gauge>,
    pub(crate) threads: usize,
    pub(crate) seed: u64,
}

impl Bench<'_> {
    /// Measures one test and fills `record`.
    pub(crate) fn run(
        &self,
        test: Test,
        effort: Effort,
        ceilings: &mut Ceilings,
        mut record: Record,
    ) -> Result<Record> {
        let model = self.model;
        let fits = || format!("{} of {}", test.name(), model.name());
        let made = Repetition::new(model, test, self.seed, |_| !interrupted());
        let mut repetition = at_once(made).with_context(fits)?;
        // the weights of other layers lie between two uses of one, unless all of them stay
        let in_cache = model.weight_bytes() <= super::last_level_cache(model.device());
        repetition.describe(self.seed, in_cache, &mut record);
        record.workload.n_threads = Some(self.threads as u64);

        let watch = Watch::beside(model.device().info(), self.gauge.and_then(Gauge::sensor));
        let mut windowed = Windowed { inner: &mut repetition, gauge: self.gauge, windows: None, calls: 0 };
        let samples = measure(&mut windowed, effort)?;
        let (windows, mut calls) = (windowed.windows.take(), windowed.calls);
        let mut energy = Energy::default();
        if let Some(gauge) = self.gauge {
            let seen = windows.map(|windows| gauge.finish(windows)).unwrap_or_default();
            gauge.rest();
            // of constant power only the sampled time counts, not the rewinding between
            let of_time = gauge.of_time(samples.ns.iter().sum::<f64>() * 1e-9, samples.ns.len() as u64);
            let longer = of_time.is_none() && gauge.is_worth_a_window(&seen, effort.time);
            energy = of_time.unwrap_or_else(|| gauge.columns(seen, calls));
            if longer {
                // too short for the meter: repeated until it is not
                energy = gauge.window_over(effort.time, || {
                    Subject::before_sample(&mut repetition)?;
                    Subject::call(&mut repetition, 1).map(|()| 1)
                })?;
            }
            calls = energy.energy_calls.unwrap_or(0);
        }
        record.energy = energy;
        ceilings.refresh(model.device())?;
        repetition.time(samples, self.seed, &mut record);
        watch.finish(&mut record);
        ceilings.hold(&mut record, model.multiplied(), in_cache);

        let energy = &mut record.energy;
        let per = |joules: Option<f64>, tokens: usize| {
            let tokens = (tokens * test.n_parallel) as f64 * calls as f64;
            joules.filter(|_| tokens > 0.0).map(|joules| joules / tokens)
        };
        let all = test.n_prompt + test.n_gen;
        energy.joules_per_output_token = per(energy.joules, test.n_gen);
        energy.joules_per_total_token = per(energy.joules, all);
        energy.net_joules_per_output_token = per(energy.net_joules, test.n_gen);
        energy.net_joules_per_total_token = per(energy.net_joules, all);
        Ok(record)
    }
}

/// Opens a window of energy when the samples begin, and counts the calls within.
struct Windowed<'s> {
    inner: &'s mut dyn Subject,
    gauge: Option<&'s Gauge>,
    windows: Option<Windows>,
    calls: u64,
}

impl Subject for Windowed<'_> {
    fn call(&mut self, count: u64) -> Result<()> {
        self.calls += count;
        self.inner.call(count)
    }

    fn before_sample(&mut self) -> Result<()> {
        self.inner.before_sample()
    }

    fn begin(&mut self) {
        self.calls = 0;
        self.windows = self.gauge.map(Gauge::open);
    }

    fn one_call_a_sample(&self) -> bool {
        self.inner.one_call_a_sample()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_fit_the_time() {
        let usual = [512, 256, 128, 64];
        let seconds = Duration::from_secs;
        assert_eq!(size_within(seconds(100), 0.01, &usual, 4), 512);
        assert_eq!(size_within(seconds(10), 0.01, &usual, 4), 128);
        assert_eq!(size_within(seconds(0), 0.01, &usual, 4), 64);
    }
}
