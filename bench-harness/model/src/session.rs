//! Sequences in progress: the KV cache, prefill in chunks, decode.

use std::collections::HashMap;

use perjoule::{Arg, Buffer, DType, Stream};
#[cfg(not(target_arch = "wasm32"))]
use perjoule_kernels::device::at_once;
use perjoule_kernels::device::settled;
use perjoule_kernels::op::{Argmax, Sample};
use perjoule_kernels::{KvLayout, Rows};

use crate::error::{Error, Result};
use crate::ids::check_ids;
use crate::load::Model;
use crate::memory::{self, MemoryNeed};
use crate::step::{Output, State, Step, StepShape};

/// Planned steps kept; a session meets few shapes, and each holds activations.
const STEPS: usize = 8;

/// What a session has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionOptions {
    /// Sequences that run side by side.
    pub parallel: usize,
    /// Tokens of each sequence, prompt included.
    pub capacity: usize,
    /// Most tokens of a prompt that are computed at once, over all sequences (llama-bench's `n_batch`).
    pub chunk: usize,
}

/// Times of the host that are kept: the last so many steps.
const TIMES: usize = 1024;

/// What recorded decode steps cost the host of a device that computes on its own.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HostCost {
    /// Seconds for which it was busy with starting a step: the median of the last ones.
    pub seconds: f64,
    /// Launches of a step.
    pub launches: usize,
}

/// One or more sequences of equal length, with their KV cache.
pub struct Session<'m> {
    model: &'m Model,
    options: SessionOptions,
    stream: Box<dyn Stream>,
    state: State,
    steps: HashMap<StepShape, Step>,
    uniform: Buffer,
    len: usize,
    /// Whether the ids on the device were chosen from the last logits.
    chosen: bool,
    /// Seconds that the host took to start recorded decode steps, the newest in place of the oldest.
    host: Vec<f64>,
    /// Decode steps that were started in all.
    started: usize,
}

impl Model {
    /// A session with empty sequences.
    ///
    /// # Errors
    /// [`Error::TooLong`] for a capacity beyond the model's positions, [`Error::Memory`] before anything is allocated when the cache does
    /// not fit, [`Error::Sequences`] without any sequence.
    pub fn session(&self, options: SessionOptions) -> Result<Session<'_>> {
        let SessionOptions { parallel, capacity, chunk } = options;
        if parallel == 0 || capacity == 0 || chunk == 0 {
            return Err(Error::Sequences { ids: 0, parallel });
        }
        let geometry = self.geometry();
        if capacity > geometry.max_positions {
            return Err(Error::TooLong {
                tokens: capacity,
                limit: "max_position_embeddings of the model",
                have: geometry.max_positions,
            });
        }
        let dtype = self.kv_dtype();
        let cache = memory::memory_needed(geometry, self.dtype(), dtype, capacity, parallel).kv_cache;
        if let Some(available) = memory::available_memory().filter(|_| self.device().info().synchronous) {
            MemoryNeed { weights: 0, kv_cache: cache }.check(available)?;
        }
        let layout = KvLayout::contiguous(geometry.kv_heads, capacity, geometry.head_dim);
        let overflow = Error::Memory { weights: 0, kv_cache: u64::MAX, available: 0 };
        let bytes = layout.extent(parallel).and_then(|e| dtype.bytes(e)).ok_or(overflow)?;
        let device = self.device();
        let longest = parallel.saturating_mul(chunk.min(capacity)).max(parallel) as u64 * 4;
        let caches = geometry
            .layers
            .iter()
            .map(|_| Ok((device.alloc(bytes)?, device.alloc(bytes)?)))
            .collect::<Result<Vec<_>>>()?;
        let state = State {
            ids: device.alloc(longest)?,
            kv_len: device.alloc(parallel as u64 * 4)?,
            positions: device.alloc(longest)?,
            caches,
            layout,
            logits: device.alloc(parallel as u64 * geometry.vocab as u64 * 4)?,
        };
        let mut stream = device.stream()?;
        stream.wait_for(&*self.loaded)?;
        Ok(Session {
            model: self,
            options,
            stream,
            state,
            steps: HashMap::new(),
            uniform: device.alloc(parallel as u64 * 4)?,
            len: 0,
            chosen: false,
            host: Vec::new(),
            started: 0,
        })
    }
}

impl Session<'_> {
    /// Tokens of each sequence so far.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no token was processed yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What the session has room for.
    pub fn options(&self) -> SessionOptions {
        self.options
    }

    /// Appends prompts of equal length, `[parallel, len]`, sequence after sequence. The logits of the last tokens stay on the device:
    /// see [`Session::logits`], [`Session::greedy`].
    ///
    /// # Errors
    /// [`Error::Sequences`], [`Error::TokenId`], [`Error::TooLong`], [`Error::Device`]. What was refused changes nothing. Faults of a device
    /// that is not [synchronous](perjoule::DeviceInfo::synchronous) may come later, with the logits.
    pub fn prefill(&mut self, ids: &[u32]) -> Result<()> {
        self.prefill_while(ids, &mut |_| true).map(drop)
    }

    /// As [`Session::prefill`], chunk by chunk: before each but the first `go_on` gets the tokens of each sequence that are processed, and
    /// stops by returning false. Gives their number. What was processed stays; only a whole prompt has logits to choose from.
    ///
    /// # Errors
    /// As [`Session::prefill`].
    pub fn prefill_while(&mut self, ids: &[u32], go_on: &mut dyn FnMut(usize) -> bool) -> Result<usize> {
        let (tokens, start) = (self.check(ids)?, self.len);
        let mut first = 0;
        while first < tokens && (first == 0 || go_on(first)) {
            first += self.chunk(ids, tokens, first, start, false)?.q_len;
        }
        Ok(self.len - start)
    }

    /// The same, with the logits of every token: `[parallel, len, vocab]`.
    ///
    /// # Errors
    /// As [`Session::prefill`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn prefill_all(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        at_once(self.prefill_all_async(ids))
    }

    /// [`Session::prefill_all`], awaited.
    ///
    /// # Errors
    /// As [`Session::prefill`].
    pub async fn prefill_all_async(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        let tokens = self.check(ids)?;
        let parallel = self.options.parallel;
        let vocab = self.model.geometry().vocab;
        let mut logits = vec![0.0; parallel * tokens * vocab];
        let start = self.len;
        let mut first = 0;
        while first < tokens {
            let shape = self.chunk(ids, tokens, first, start, true)?;
            let q_len = shape.q_len;
            let computed = self.steps.get(&shape).and_then(|s| s.all_logits.clone());
            if let Some(buffer) = computed {
                let part = self.read_f32(&buffer).await?;
                for s in 0..parallel {
                    let to = (s * tokens + first) * vocab;
                    logits[to..to + q_len * vocab]
                        .copy_from_slice(&part[s * q_len * vocab..(s + 1) * q_len * vocab]);
                }
            }
            first += q_len;
        }
        // where the next id is chosen from
        let last = (1..=parallel).map(|s| &logits[(s * tokens - 1) * vocab..s * tokens * vocab]);
        let bytes: Vec<u8> = last.flatten().flat_map(|l| l.to_le_bytes()).collect();
        self.stream.write(&self.state.logits, &bytes)?;
        Ok(logits)
    }

    /// One step with given ids, `[parallel]`.
    ///
    /// # Errors
    /// As [`Session::prefill`].
    pub fn decode(&mut self, ids: &[u32]) -> Result<()> {
        if ids.len() != self.options.parallel {
            return Err(Error::Sequences { ids: ids.len(), parallel: self.options.parallel });
        }
        self.prefill(ids)
    }

    /// Continues greedily for `n` steps from the ids that [`Session::greedy`] or [`Session::sample`] chose (the most likely ones where neither
    /// was called), which are the first step's input. `on_token` gets the ids that each step chose, `[parallel]`, and stops by returning false. Gives the number of steps.
    ///
    /// One recorded step is replayed; between steps the host reads four bytes a sequence.
    ///
    /// # Errors
    /// [`Error::TooLong`] before the first step, [`Error::Sequences`] for a session without a token, [`Error::Device`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn decode_greedy(&mut self, n: usize, on_token: &mut dyn FnMut(&[u32]) -> bool) -> Result<usize> {
        at_once(self.decode_greedy_async(n, on_token))
    }

    /// [`Session::decode_greedy`], awaited.
    ///
    /// # Errors
    /// [`Error::TooLong`] before the first step, [`Error::Sequences`] for a session without a token, [`Error::Device`].
    pub async fn decode_greedy_async(
        &mut self,
        n: usize,
        on_token: &mut dyn FnMut(&[u32]) -> bool,
    ) -> Result<usize> {
        self.room(n)?;
        if self.len == 0 {
            return Err(Error::Sequences { ids: 0, parallel: self.options.parallel });
        }
        if !self.chosen {
            self.greedy_async().await?;
        }
        let shape = StepShape { batch: self.options.parallel, q_len: 1, output: Output::Greedy };
        for step in 0..n {
            // faults of the step may come only with what it has chosen
            let ids = match self.step(shape).await {
                Ok(ids) => ids,
                Err(error) => {
                    // it may have advanced the lengths before it failed
                    self.set_len(self.len)?;
                    return Err(error);
                }
            };
            self.len += 1;
            if !on_token(&ids) {
                return Ok(step + 1);
            }
        }
        Ok(n)
    }

    /// Logits of the last tokens, `[parallel, vocab]`.
    ///
    /// # Errors
    /// [`Error::Device`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn logits(&mut self) -> Result<Vec<f32>> {
        at_once(self.logits_async())
    }

    /// [`Session::logits`], awaited.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub async fn logits_async(&mut self) -> Result<Vec<f32>> {
        let logits = self.state.logits.clone();
        self.read_f32(&logits).await
    }

    /// The most likely next ids, `[parallel]`: ties pick the lowest. They become the input of [`Session::decode_greedy`].
    ///
    /// # Errors
    /// [`Error::Device`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn greedy(&mut self) -> Result<Vec<u32>> {
        at_once(self.greedy_async())
    }

    /// [`Session::greedy`], awaited.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub async fn greedy_async(&mut self) -> Result<Vec<u32>> {
        let rows = Rows::dense(self.options.parallel, self.model.geometry().vocab);
        let plan = self.model.device().prepare(Argmax { x: rows, dtype: DType::F32 })?;
        self.stream.reserve(plan.scratch())?;
        let State { logits, ids, .. } = &self.state;
        plan.launch(&mut *self.stream, &mut [Arg::Buf(logits), Arg::Buf(ids)])?;
        self.chosen = true;
        self.ids().await
    }

    /// Makes `ids`, `[parallel]`, the input of [`Session::decode_greedy`], whoever chose them.
    ///
    /// # Errors
    /// [`Error::Sequences`], [`Error::TokenId`], [`Error::Device`].
    pub fn choose(&mut self, ids: &[u32]) -> Result<()> {
        if ids.len() != self.options.parallel {
            return Err(Error::Sequences { ids: ids.len(), parallel: self.options.parallel });
        }
        check_ids(ids, self.model.geometry().vocab)?;
        let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        self.stream.write(&self.state.ids, &bytes)?;
        self.chosen = true;
        Ok(())
    }

    /// Ids drawn from the last logits by `uniform`, one number in `[0, 1)` a sequence. They become the input of
    /// [`Session::decode_greedy`].
    ///
    /// # Errors
    /// [`Error::Sequences`] for another number of random numbers, [`Error::Device`] for parameters that make no sense.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn sample(
        &mut self,
        temperature: f32,
        top_k: Option<usize>,
        top_p: Option<f32>,
        uniform: &[f32],
    ) -> Result<Vec<u32>> {
        at_once(self.sample_async(temperature, top_k, top_p, uniform))
    }

    /// [`Session::sample`], awaited.
    ///
    /// # Errors
    /// [`Error::Sequences`] for another number of random numbers, [`Error::Device`] for parameters that make no sense.
    pub async fn sample_async(
        &mut self,
        temperature: f32,
        top_k: Option<usize>,
        top_p: Option<f32>,
        uniform: &[f32],
    ) -> Result<Vec<u32>> {
        if uniform.len() != self.options.parallel {
            return Err(Error::Sequences { ids: uniform.len(), parallel: self.options.parallel });
        }
        let rows = Rows::dense(self.options.parallel, self.model.geometry().vocab);
        let plan =
            self.model.device().prepare(Sample { x: rows, dtype: DType::F32, temperature, top_k, top_p })?;
        self.stream.reserve(plan.scratch())?;
        let bytes: Vec<u8> = uniform.iter().flat_map(|u| u.to_le_bytes()).collect();
        self.stream.write(&self.uniform, &bytes)?;
        let State { logits, ids, .. } = &self.state;
        plan.launch(&mut *self.stream, &mut [Arg::Buf(logits), Arg::Buf(&self.uniform), Arg::Buf(ids)])?;
        self.chosen = true;
        self.ids().await
    }

    /// Forgets all tokens behind the first `len`, so that a measurement can be repeated at one depth.
    ///
    /// # Errors
    /// [`Error::TooLong`] when there are fewer.
    pub fn rewind(&mut self, len: usize) -> Result<()> {
        if len > self.len {
            return Err(Error::TooLong { tokens: len, limit: "the session's length", have: self.len });
        }
        self.chosen = false;
        self.set_len(len)
    }

    fn set_len(&mut self, len: usize) -> Result<()> {
        let lengths: Vec<u8> = (0..self.options.parallel).flat_map(|_| (len as i32).to_le_bytes()).collect();
        self.stream.write(&self.state.kv_len, &lengths)?;
        self.len = len;
        Ok(())
    }

    fn room(&self, more: usize) -> Result<()> {
        let tokens = self.len.saturating_add(more);
        if tokens > self.options.capacity {
            return Err(Error::TooLong { tokens, limit: "the session's cache", have: self.options.capacity });
        }
        Ok(())
    }

    /// Tokens of each sequence.
    fn check(&self, ids: &[u32]) -> Result<usize> {
        let parallel = self.options.parallel;
        if ids.is_empty() || !ids.len().is_multiple_of(parallel) {
            return Err(Error::Sequences { ids: ids.len(), parallel });
        }
        check_ids(ids, self.model.geometry().vocab)?;
        let tokens = ids.len() / parallel;
        self.room(tokens)?;
        Ok(tokens)
    }

    /// Runs one chunk of a prompt that has `tokens` of each sequence, from its token `first` on, in a session that had `start` tokens before
    /// the prompt. Gives the chunk's shape.
    fn chunk(
        &mut self,
        ids: &[u32],
        tokens: usize,
        first: usize,
        start: usize,
        all: bool,
    ) -> Result<StepShape> {
        let parallel = self.options.parallel;
        let longest = (self.options.chunk / parallel).max(1);
        let q_len = longest.min(tokens - first);
        let output = match (all, first + q_len == tokens) {
            (true, _) => Output::All,
            (false, true) => Output::Last,
            (false, false) => Output::Nothing,
        };
        let shape = StepShape { batch: parallel, q_len, output };
        let chunk: Vec<u8> = (0..parallel)
            .flat_map(|s| &ids[s * tokens + first..s * tokens + first + q_len])
            .flat_map(|id| id.to_le_bytes())
            .collect();
        self.chosen = false;
        self.stream.write(&self.state.ids, &chunk)?;
        if let Err(error) = self.run(shape) {
            // a step that failed half way leaves the sequences as they were
            self.set_len(start)?;
            return Err(error);
        }
        self.len += q_len;
        Ok(shape)
    }

    fn run(&mut self, shape: StepShape) -> Result<()> {
        if !self.steps.contains_key(&shape) {
            if self.steps.len() >= STEPS {
                self.steps.clear();
            }
            let step = Step::new(self.model, &self.state, shape)?;
            self.stream.reserve(step.scratch())?;
            self.steps.insert(shape, step);
        }
        match self.steps.get_mut(&shape) {
            Some(step) => step.run(&mut *self.stream),
            None => Ok(()),
        }
    }

    /// Runs a step and gives the ids that it chose.
    async fn step(&mut self, shape: StepShape) -> Result<Vec<u32>> {
        let recorded = self.steps.get(&shape).is_some_and(Step::is_recorded);
        let begin = web_time::Instant::now();
        self.run(shape)?;
        if recorded {
            let seconds = begin.elapsed().as_secs_f64();
            match self.host.get_mut(self.started % TIMES) {
                Some(oldest) => *oldest = seconds,
                None => self.host.push(seconds),
            }
            self.started += 1;
        }
        self.ids().await
    }

    /// What the decode steps cost the host so far; nothing before one was replayed, and on devices whose work is the host's own.
    pub fn host_cost(&self) -> Option<HostCost> {
        let shape = StepShape { batch: self.options.parallel, q_len: 1, output: Output::Greedy };
        let launches = self.steps.get(&shape)?.launches();
        let mut sorted = self.host.clone();
        sorted.sort_by(f64::total_cmp);
        let seconds = *sorted.get(sorted.len() / 2)?;
        (!self.model.device().info().synchronous).then_some(HostCost { seconds, launches })
    }

    async fn ids(&mut self) -> Result<Vec<u32>> {
        let view = self.state.ids.view(0, self.options.parallel as u64 * 4)?;
        let bytes = settled(self.stream.read(&view)).await?;
        Ok(bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    }

    async fn read_f32(&mut self, buffer: &Buffer) -> Result<Vec<f32>> {
        let bytes = settled(self.stream.read(buffer)).await?;
        Ok(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    }
}
