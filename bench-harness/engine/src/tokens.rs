//! Prefill and decode of a whole model: repetitions, the work in them, and their columns of a record.
//!
//! Prefill processes `n_prompt` tokens of each sequence, in chunks of `n_batch`; decode generates `n_gen` tokens of each sequence after
//! `n_depth` tokens are in the KV cache. A repetition rewinds the session, so that every sample starts from the same depth.

use crate::Interrupted;
use crate::sampling::{Samples, Subject};
use anyhow::Result;
use perjoule::DType;
use perjoule_model::{Model, Session, SessionOptions};
use perjoule_record::{CacheState, Clock, Kind, Record};

/// Sizes of one test, in llama-bench's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Test {
    /// Prompt tokens of each sequence; 0 for a pure decode.
    pub n_prompt: usize,
    /// Generated tokens of each sequence; 0 for a pure prefill.
    pub n_gen: usize,
    /// Tokens in the KV cache before.
    pub n_depth: usize,
    /// Sequences.
    pub n_parallel: usize,
    /// Prompt tokens computed at once.
    pub n_batch: usize,
}

impl Test {
    /// What a session of it needs.
    pub fn options(&self) -> SessionOptions {
        SessionOptions {
            parallel: self.n_parallel,
            // an empty prompt still needs one token to decode from
            capacity: (self.n_depth + self.n_prompt + self.n_gen).max(1) + usize::from(self.n_gen > 0),
            chunk: self.n_batch.max(1),
        }
    }

    /// Its name, as llama-bench has it: `pp512`, `tg128 @ d64`.
    pub fn name(&self) -> String {
        let workload = perjoule_record::Workload {
            n_prompt: Some(self.n_prompt as u64),
            n_gen: Some(self.n_gen as u64),
            n_depth: Some(self.n_depth as u64),
            ..Default::default()
        };
        workload.token_test().unwrap_or_default()
    }

    /// Tokens that one repetition processes, all sequences together.
    pub fn tokens(&self) -> u64 {
        (self.n_parallel * (self.n_prompt + self.n_gen)) as u64
    }
}

/// Random ids of a prompt: `parallel x len`, the same for the same seed.
pub fn ids(vocab: usize, count: usize, seed: u64) -> Vec<u32> {
    use rand_xoshiro::rand_core::{Rng, SeedableRng};
    let mut random = rand_xoshiro::Xoshiro256PlusPlus::seed_from_u64(seed);
    (0..count).map(|_| (random.next_u64() % vocab.max(1) as u64) as u32).collect()
}

/// Asked between chunks of a prompt and generated tokens, with the number of tokens of each sequence that the repetition has processed:
/// whether to go on.
pub type GoOn = fn(usize) -> bool;

/// One repetition of a test on a session.
pub struct Repetition<'m> {
    model: &'m Model,
    session: Session<'m>,
    test: Test,
    prompt: Vec<u32>,
    start: usize,
    /// The ids that decode starts from, the same in each repetition; none behind a prompt, which chooses them.
    first: Vec<u32>,
    go_on: GoOn,
}

impl<'m> Repetition<'m> {
    /// A session with as many tokens as the test starts from.
    ///
    /// # Errors
    /// [`Interrupted`], and whatever the session refuses.
    pub async fn new(model: &'m Model, test: Test, seed: u64, go_on: GoOn) -> Result<Self> {
        let vocab = model.geometry().vocab;
        let session = model.session(test.options())?;
        // decode continues from a token: where nothing is to be in the cache, that of a one-token prompt
        let start = if test.n_gen > 0 && test.n_prompt == 0 { test.n_depth.max(1) } else { test.n_depth };
        let prompt = ids(vocab, test.n_parallel * test.n_prompt, seed ^ 1);
        let mut repetition = Repetition { model, session, test, prompt, start, first: Vec::new(), go_on };
        if start > 0 {
            repetition.prefill(&ids(vocab, test.n_parallel * start, seed))?;
        }
        if test.n_gen > 0 && test.n_prompt == 0 {
            repetition.first = repetition.session.greedy_async().await?;
        }
        repetition.rewind()?;
        Ok(repetition)
    }

    /// A prompt, until somebody interrupts.
    fn prefill(&mut self, prompt: &[u32]) -> Result<()> {
        let go_on = self.go_on;
        self.session.prefill_while(prompt, &mut |done| go_on(done))?;
        if go_on(prompt.len() / self.test.n_parallel.max(1)) { Ok(()) } else { Err(Interrupted.into()) }
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

    async fn once(&mut self) -> Result<()> {
        if !self.prompt.is_empty() {
            let prompt = std::mem::take(&mut self.prompt);
            let done = self.prefill(&prompt);
            self.prompt = prompt;
            done?;
            // reading an id back waits for the device
            self.session.greedy_async().await?;
        }
        if self.test.n_gen > 0 {
            let go_on = self.go_on;
            let mut done = self.test.n_prompt;
            let mut on_token = |_: &[u32]| {
                done += 1;
                go_on(done)
            };
            let steps = self.session.decode_greedy_async(self.test.n_gen, &mut on_token).await?;
            if steps < self.test.n_gen || !go_on(done) {
                return Err(Interrupted.into());
            }
        }
        Ok(())
    }

    /// The columns of a record that say what is measured, and the work in it.
    pub fn describe(&self, seed: u64, in_cache: bool, record: &mut Record) {
        let (model, test) = (self.model, &self.test);
        let geometry = model.geometry();
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
        workload.kv_dtype = Some(model.kv_dtype().name().into());
        workload.activations = Some(model.multiplied().name().into());
        workload.n_prompt = Some(test.n_prompt as u64);
        workload.n_gen = Some(test.n_gen as u64);
        workload.n_depth = Some(test.n_depth as u64);
        workload.n_batch = Some(test.n_batch as u64);
        workload.n_parallel = Some(test.n_parallel as u64);
        workload.seed = Some(seed);
        // the weights of other layers lie between two uses of one, unless all of them stay
        workload.cache_state = Some(if in_cache { CacheState::Hot } else { CacheState::Rotate });
        record.timing.flops = Some(self.flops());
        record.timing.bytes = Some(self.bytes());
    }

    /// Puts samples into the record.
    pub fn time(&self, samples: Samples, seed: u64, record: &mut Record) {
        let timing = &mut record.timing;
        timing.clock = Some(Clock::Host);
        timing.calls_per_sample = Some(samples.calls_per_sample);
        timing.warmup_calls = Some(samples.warmup_calls);
        timing.overhead_ns = Some(samples.overhead_ns);
        timing.set_samples(samples.ns, seed);
        timing.derive_token_rates(self.test.tokens());
        if let Some(host) = self.session.host_cost().filter(|_| self.test.n_gen > 0) {
            timing.host_ns_per_step = Some(host.seconds * 1e9);
            timing.launches_per_step = Some(host.launches as u64);
        }
    }

    /// Floating-point operations of a repetition: two for each active parameter of the layers and token, two for each of the output
    /// projection's and choice of a token (the last of a prompt chooses, the others do not), and attention's.
    pub fn flops(&self) -> u64 {
        let geometry = self.model.geometry();
        let table = geometry.hidden as f64 * geometry.vocab as f64;
        let tables = if geometry.tied_head { table } else { 2.0 * table };
        let layers = (geometry.n_active_params() as f64 - tables).max(0.0);
        let tokens = (self.test.n_prompt + self.test.n_gen) as f64;
        let choices = self.test.n_gen as f64 + f64::from(u8::from(self.test.n_prompt > 0));
        let pairs: f64 = self
            .spans()
            .map(|window| seen(self.test.n_depth, self.test.n_prompt + self.test.n_gen, window))
            .sum();
        let attention = 4.0 * (geometry.heads * geometry.head_dim) as f64 * pairs;
        ((2.0 * layers * tokens + 2.0 * table * choices + attention) * self.test.n_parallel as f64) as u64
    }

    /// Bytes that a repetition moves at least: the packed weights of the layers once a chunk and a step, those of the output projection
    /// once a choice, a row of the embedding a token, the keys and values that are read, and those that are written.
    pub fn bytes(&self) -> u64 {
        let geometry = self.model.geometry();
        let width = |dtype: DType| dtype.block_bytes() as f64 / dtype.block_len() as f64;
        let chunk = (self.test.n_batch / self.test.n_parallel.max(1)).max(1);
        let passes = (self.test.n_prompt.div_ceil(chunk) + self.test.n_gen) as f64;
        let choices = self.test.n_gen as f64 + f64::from(u8::from(self.test.n_prompt > 0));
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
        let tokens = (self.test.n_prompt + self.test.n_gen) as f64 * self.test.n_parallel as f64;
        let rows = tokens * geometry.hidden as f64 * width(self.model.embed_dtype());
        // keys and values of a chunk are read once, however many of its tokens see them
        let first = |pass: usize| self.test.n_depth + self.test.n_prompt + pass;
        let ends = (1..=self.test.n_prompt.div_ceil(chunk))
            .map(|pass| self.test.n_depth + self.test.n_prompt.min(pass * chunk));
        let ends: Vec<usize> = ends.chain((1..=self.test.n_gen).map(first)).collect();
        let token = 2.0 * (geometry.kv_heads * geometry.head_dim) as f64 * width(self.model.kv_dtype());
        let read = |window: Option<usize>| -> f64 {
            ends.iter().map(|&end| window.map_or(end, |window| end.min(window)) as f64).sum()
        };
        let cache = token * self.spans().map(read).sum::<f64>() * self.test.n_parallel as f64;
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

impl Subject for Repetition<'_> {
    async fn call(&mut self, count: u64) -> Result<()> {
        for _ in 0..count {
            self.once().await?;
        }
        Ok(())
    }

    async fn before_sample(&mut self) -> Result<()> {
        self.rewind()
    }

    fn one_call_a_sample(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(test.name(), "pp512 @ d64");
        assert_eq!((test.tokens(), test.options().capacity), (512, 576));
    }
}
