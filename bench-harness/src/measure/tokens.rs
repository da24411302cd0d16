//! Prefill and decode of a whole model: tokens per second and joules per token.
//!
//! Prefill processes `n_prompt` tokens of each sequence, in chunks of `n_batch`; decode generates `n_gen` tokens of each sequence after
//! `n_depth` tokens are in the KV cache. A repetition rewinds the session, so that every sample starts from the same depth.

use anyhow::{Context, Result};
use perjoule::DType;
use perjoule_model::{Model, Session, SessionOptions};
use perjoule_record::{CacheState, Clock, Energy, Kind, Record};
use std::time::{Duration, Instant};

use super::ceilings::Ceilings;
use super::conditions::Watch;
use super::energy::{Gauge, Windows};
use super::{Effort, Interrupted, Subject, interrupted, measure};

/// Sizes of one test, in llama-bench's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Test {
    /// Prompt tokens of each sequence; 0 for a pure decode.
    pub(crate) n_prompt: usize,
    /// Generated tokens of each sequence; 0 for a pure prefill.
    pub(crate) n_gen: usize,
    /// Tokens in the KV cache before.
    pub(crate) n_depth: usize,
    /// Sequences.
    pub(crate) n_parallel: usize,
    /// Prompt tokens computed at once.
    pub(crate) n_batch: usize,
}

impl Test {
    fn options(&self) -> SessionOptions {
        SessionOptions {
            parallel: self.n_parallel,
            // an empty prompt still needs one token to decode from
            capacity: (self.n_depth + self.n_prompt + self.n_gen).max(1) + usize::from(self.n_gen > 0),
            chunk: self.n_batch.max(1),
        }
    }

    /// Tokens that one repetition processes, all sequences together.
    pub(crate) fn tokens(&self) -> u64 {
        (self.n_parallel * (self.n_prompt + self.n_gen)) as u64
    }
}

/// Random ids of a prompt: `parallel x len`, the same for the same seed.
fn ids(vocab: usize, count: usize, seed: u64) -> Vec<u32> {
    use rand_xoshiro::rand_core::{Rng, SeedableRng};
    let mut random = rand_xoshiro::Xoshiro256PlusPlus::seed_from_u64(seed);
    (0..count).map(|_| (random.next_u64() % vocab.max(1) as u64) as u32).collect()
}

/// A prompt, until somebody interrupts.
fn prefill(session: &mut Session<'_>, prompt: &[u32]) -> Result<()> {
    session.prefill_while(prompt, &mut |_| !interrupted())?;
    if interrupted() { Err(Interrupted.into()) } else { Ok(()) }
}

/// One repetition of a test on a session.
struct Repetition<'m> {
    session: Session<'m>,
    test: Test,
    prompt: Vec<u32>,
    start: usize,
    /// The ids that decode starts from, the same in each repetition; none behind a prompt, which chooses them.
    first: Vec<u32>,
}

impl<'m> Repetition<'m> {
    fn new(model: &'m Model, test: Test, seed: u64) -> Result<Self> {
        let vocab = model.geometry().vocab;
        let mut session = model.session(test.options())?;
        // decode continues from a token: where nothing is to be in the cache, that of a one-token prompt
        let start = if test.n_gen > 0 && test.n_prompt == 0 { test.n_depth.max(1) } else { test.n_depth };
        if start > 0 {
            prefill(&mut session, &ids(vocab, test.n_parallel * start, seed))?;
        }
        let prompt = ids(vocab, test.n_parallel * test.n_prompt, seed ^ 1);
        let first = match test.n_gen > 0 && test.n_prompt == 0 {
            true => session.greedy()?,
            false => Vec::new(),
        };
        let mut repetition = Repetition { session, test, prompt, start, first };
        repetition.rewind()?;
        Ok(repetition)
    }

    fn rewind(&mut self) -> Result<()> {
        if self.session.len() > self.start {
            self.session.rewind(self.start)?;
        }
        if !self.first.is_empty() {
            self.session.choose(&self.first)?;
        }
        Ok(())
    }

    fn once(&mut self) -> Result<()> {
        if !self.prompt.is_empty() {
            prefill(&mut self.session, &self.prompt)?;
            // reading an id back waits for the device
            self.session.greedy()?;
        }
        if self.test.n_gen > 0 {
            let done = self.session.decode_greedy(self.test.n_gen, &mut |_| !interrupted())?;
            if done < self.test.n_gen || interrupted() {
                return Err(Interrupted.into());
            }
        }
        Ok(())
    }
}

impl Subject for Repetition<'_> {
    fn call(&mut self, count: u64) -> Result<()> {
        for _ in 0..count {
            self.once()?;
        }
        Ok(())
    }

    fn before_sample(&mut self) -> Result<()> {
        self.rewind()
    }

    fn one_call_a_sample(&self) -> bool {
        true
    }
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
        let geometry = model.geometry();
        let fits = || format!("{} of {}", record_name(&test), model.name());
        let mut repetition = Repetition::new(model, test, self.seed).with_context(fits)?;

        record.kind = Kind::Tokens;
        let workload = &mut record.workload;
        workload.model = Some(model.name().into());
        let millions = geometry.n_params() as f64 / 1e6;
        let size =
            if millions >= 1000.0 { format!("{:.1}B", millions / 1000.0) } else { format!("{millions:.0}M") };
        workload.model_type = Some(format!("{} {size} {}", model.architecture(), model.quantisation()));
        workload.model_n_params = Some(geometry.n_params());
        workload.model_size = Some(model.weight_bytes());
        workload.dtype = Some(model.dtype().name().into());
        let multiplied = model.multiplied();
        workload.activations = Some(multiplied.name().into());
        workload.n_prompt = Some(test.n_prompt as u64);
        workload.n_gen = Some(test.n_gen as u64);
        workload.n_depth = Some(test.n_depth as u64);
        workload.n_batch = Some(test.n_batch as u64);
        workload.n_parallel = Some(test.n_parallel as u64);
        workload.n_threads = Some(self.threads as u64);
        workload.seed = Some(self.seed);
        // the weights of other layers lie between two uses of one, unless all of them stay
        let in_cache = model.weight_bytes() <= super::last_level_cache(model.device());
        workload.cache_state = Some(if in_cache { CacheState::Hot } else { CacheState::Rotate });

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
                    repetition.before_sample()?;
                    repetition.once().map(|()| 1)
                })?;
            }
            calls = energy.energy_calls.unwrap_or(0);
        }
        record.energy = energy;
        ceilings.refresh(model.device())?;
        let timing = &mut record.timing;
        timing.clock = Some(Clock::Host);
        timing.calls_per_sample = Some(samples.calls_per_sample);
        timing.warmup_calls = Some(samples.warmup_calls);
        timing.overhead_ns = Some(samples.overhead_ns);
        timing.flops = Some(self.flops(&test));
        timing.bytes = Some(self.bytes(&test));
        timing.set_samples(samples.ns, self.seed);
        timing.derive_token_rates(test.tokens());
        watch.finish(&mut record);
        ceilings.hold(&mut record, multiplied, in_cache);

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

    /// Floating-point operations of a repetition: two for each active parameter of the layers and token, two for each of the output
    /// projection's and choice of a token (the last of a prompt chooses, the others do not), and attention's.
    fn flops(&self, test: &Test) -> u64 {
        let geometry = self.model.geometry();
        let table = geometry.hidden as f64 * geometry.vocab as f64;
        let tables = if geometry.tied_head { table } else { 2.0 * table };
        let layers = (geometry.n_active_params() as f64 - tables).max(0.0);
        let tokens = (test.n_prompt + test.n_gen) as f64;
        let choices = test.n_gen as f64 + f64::from(u8::from(test.n_prompt > 0));
        let pairs: f64 =
            self.spans().map(|window| seen(test.n_depth, test.n_prompt + test.n_gen, window)).sum();
        let attention = 4.0 * (geometry.heads * geometry.head_dim) as f64 * pairs;
        ((2.0 * layers * tokens + 2.0 * table * choices + attention) * test.n_parallel as f64) as u64
    }

    /// Bytes that a repetition moves at least: the packed weights of the layers once a chunk and a step, those of the output projection
    /// once a choice, a row of the embedding a token, the keys and values that are read, and those that are written.
    fn bytes(&self, test: &Test) -> u64 {
        let geometry = self.model.geometry();
        let width = |dtype: DType| dtype.block_bytes() as f64 / dtype.block_len() as f64;
        let chunk = (test.n_batch / test.n_parallel.max(1)).max(1);
        let passes = (test.n_prompt.div_ceil(chunk) + test.n_gen) as f64;
        let choices = test.n_gen as f64 + f64::from(u8::from(test.n_prompt > 0));
        let elements = geometry.hidden as f64 * geometry.vocab as f64;
        let table = elements * width(self.model.head_dtype());
        let embedding = elements * width(self.model.embed_dtype());
        // the embedding and the head each lie in memory, tied or not
        let layers = (self.model.weight_bytes() as f64 - table - embedding).max(0.0);
        // a batch visits other experts with each token: count what one token visits, the least
        let tables =
            if geometry.tied_head { 1.0 } else { 2.0 } * (geometry.hidden as f64 * geometry.vocab as f64);
        let of_layers = |params: u64| (params as f64 - tables).max(1.0);
        let active = of_layers(geometry.n_active_params()) / of_layers(geometry.n_params());
        let tokens = (test.n_prompt + test.n_gen) as f64 * test.n_parallel as f64;
        let rows = tokens * geometry.hidden as f64 * width(self.model.embed_dtype());
        // keys and values of a chunk are read once, however many of its tokens see them
        let first = |pass: usize| test.n_depth + test.n_prompt + pass;
        let ends =
            (1..=test.n_prompt.div_ceil(chunk)).map(|pass| test.n_depth + test.n_prompt.min(pass * chunk));
        let ends: Vec<usize> = ends.chain((1..=test.n_gen).map(first)).collect();
        let token = 2.0 * (geometry.kv_heads * geometry.head_dim) as f64 * width(self.model.cache());
        let read = |window: Option<usize>| -> f64 {
            ends.iter().map(|&end| window.map_or(end, |window| end.min(window)) as f64).sum()
        };
        let cache = token * self.spans().map(read).sum::<f64>() * test.n_parallel as f64;
        let written = token * geometry.layers.len() as f64 * tokens;
        (layers * active * passes + table * choices + rows + cache + written) as u64
    }

    /// The sliding window of each layer, if it has one.
    fn spans(&self) -> impl Iterator<Item = Option<usize>> {
        self.model.geometry().layers.iter().map(|layer| layer.attention.window())
    }
}

/// Pairs of query and key of `tokens` new tokens after `depth`, causal, within a window that counts the token itself.
fn seen(depth: usize, tokens: usize, window: Option<usize>) -> f64 {
    (depth + 1..=depth + tokens).map(|position| window.map_or(position, |w| position.min(w)) as f64).sum()
}

fn record_name(test: &Test) -> String {
    let workload = perjoule_record::Workload {
        n_prompt: Some(test.n_prompt as u64),
        n_gen: Some(test.n_gen as u64),
        n_depth: Some(test.n_depth as u64),
        ..Default::default()
    };
    workload.token_test().unwrap_or_default()
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

    #[test]
    fn causal_pairs_are_counted() {
        assert_eq!(seen(0, 4, None), 10.0);
        assert_eq!(seen(10, 1, None), 11.0);
        assert_eq!(seen(0, 5, Some(2)), 1.0 + 4.0 * 2.0);
        assert_eq!(seen(7, 0, None), 0.0);
    }

    #[test]
    fn names_are_llama_benchs() {
        let test = Test { n_prompt: 512, n_gen: 0, n_depth: 64, n_parallel: 1, n_batch: 512 };
        assert_eq!(record_name(&test), "pp512 @ d64");
        assert_eq!((test.tokens(), test.options().capacity), (512, 576));
    }
}
