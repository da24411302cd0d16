//! Attention over a KV cache.

use super::check::{bytes_of, ensure, ensure_disjoint, ensure_float, ensure_like, ensure_tokens, product};
use super::key::Key;
use super::kv::check_cache;
use super::{Operand, Policy, Spec, Values, slots};
use crate::buffer::Access;
use crate::dtype::DType;
use crate::error::Result;
use crate::layout::{KvLayout, Rows};

const NAME: &str = "attention";

/// `softmax(scale Q K^T + mask) V` for each head, without materialising the scores (arXiv:2205.14135), over a KV cache whose
/// lengths are slots.
///
/// Operands: `q` (`tokens x heads` vectors of `head_dim`), `k`, `v` (the caches), `kv_len` (slot, `[batch]`: keys of each sequence,
/// those of this step included, at most `kv.capacity`), then those present of `q_offsets` (slot, `[batch + 1]`, when `ragged`),
/// `block_table` (slot, `[batch, blocks_per_sequence]`, when paged), `sinks` (f32 `[heads]`), and last `out` (like `q`).
///
/// * Heads: query head `h` reads key/value head `h / (heads / kv_heads)`: MHA, GQA and MQA alike.
/// * Queries: sequence `b` has the `q_len` rows from `b * q_len` on; when `ragged`, the rows `q_offsets[b]..q_offsets[b + 1]`, at
///   most `q_len` of them.
/// * Masks: query `i` of `n` stands at position `p = kv_len - n + i`. `causal` hides keys behind `p`; a `window` of `w` hides keys
///   up to `p - w` (the query's own position counts as one of `w`). A row that sees no key gives 0.
/// * `soft_cap` c turns a scaled score s into `c tanh(s / c)` (arXiv:2408.00118).
/// * Slots of other values do no harm: [`slots`] says how lengths and offsets are cut; of a block that does not exist every vector
///   is the first of the cache.
/// * `sinks` adds `exp(sink[h])` to each softmax denominator, without a value.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Attention {
    /// Sequences.
    pub batch: usize,
    /// Query rows of each sequence (the most, when ragged).
    pub q_len: usize,
    /// Whether sequences have different numbers of query rows, given by the slot `q_offsets`.
    pub ragged: bool,
    /// Query rows: outer = tokens of all sequences, inner = heads, len = head_dim.
    pub q: Rows,
    /// Element type of the queries.
    pub q_dtype: DType,
    /// Output rows, shaped like `q`.
    pub out: Rows,
    /// Element type of the output.
    pub out_dtype: DType,
    /// Layout of the K and the V cache.
    pub kv: KvLayout,
    /// Element type of the caches.
    pub kv_dtype: DType,
    /// Whether a query sees no later key.
    pub causal: bool,
    /// Sliding window, in tokens.
    pub window: Option<usize>,
    /// Factor of the scores, mostly `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// Cap of the scores.
    pub soft_cap: Option<f32>,
    /// Whether each head has a sink.
    pub sinks: bool,
    /// Leave to be less exact.
    pub policy: Policy,
}

impl Attention {
    /// Dense causal attention of `q_len` new tokens a sequence over a contiguous cache, all of one type.
    pub fn causal(batch: usize, q_len: usize, heads: usize, kv: KvLayout, dtype: DType) -> Self {
        let rows = Rows::grid(batch.saturating_mul(q_len), heads, kv.head_dim);
        Attention {
            batch,
            q_len,
            ragged: false,
            q: rows,
            q_dtype: dtype,
            out: rows,
            out_dtype: dtype,
            kv,
            kv_dtype: dtype,
            causal: true,
            window: None,
            scale: 1.0 / (kv.head_dim as f32).sqrt(),
            soft_cap: None,
            sinks: false,
            policy: Policy::default(),
        }
    }

    /// Keys that query `i` of `n` sees when the sequence holds `kv_len`: a range, empty when it sees none.
    pub fn visible(&self, i: usize, n: usize, kv_len: usize) -> std::ops::Range<usize> {
        // keys up to the query's own position
        let upto = kv_len.saturating_add(i).saturating_add(1).saturating_sub(n);
        let end = if self.causal { upto.min(kv_len) } else { kv_len };
        let start = self.window.map_or(0, |w| upto.saturating_sub(w));
        start.min(end)..end
    }

    /// Query-key pairs that are not masked, for one head, when every sequence holds `kv_len` keys and `q_len` queries; saturates.
    pub fn pairs(&self, kv_len: usize) -> u64 {
        let (n, kv) = (self.q_len as u128, kv_len as u128);
        let triangle = |x: u128| if x.is_multiple_of(2) { x / 2 * (x + 1) } else { x.div_ceil(2) * x };
        // queries that stand within the cache see, from the last one back, kv, kv - 1, ... keys
        let behind = kv.saturating_sub(n);
        let seen = if self.causal { triangle(kv) - triangle(behind) } else { n * kv };
        let hidden = self.window.map_or(0, |w| {
            let w = w as u128;
            triangle(kv.saturating_sub(w)) - triangle(behind.saturating_sub(w))
        });
        u64::try_from((seen - hidden).saturating_mul(self.batch as u128)).unwrap_or(u64::MAX)
    }

    /// FLOPs when every sequence holds `kv_len` keys.
    pub fn flops_at(&self, kv_len: usize) -> u64 {
        self.pairs(kv_len).saturating_mul(product(&[4, self.q.inner, self.q.len]))
    }

    /// Bytes moved when every sequence holds `kv_len` keys.
    pub fn bytes_at(&self, kv_len: usize) -> u64 {
        let seen = match (self.window, self.causal) {
            (Some(w), true) => kv_len.min(w.saturating_add(self.q_len)),
            _ => kv_len,
        };
        let rows = product(&[self.batch, self.q_len, self.q.inner, self.q.len]);
        bytes_of(self.kv_dtype, product(&[2, self.batch, seen, self.kv.kv_heads, self.kv.head_dim]))
            .saturating_add(bytes_of(self.q_dtype, rows))
            .saturating_add(bytes_of(self.out_dtype, rows))
    }
}

impl Spec for Attention {
    fn name(&self) -> &'static str {
        NAME
    }

    fn validate(&self) -> Result<()> {
        ensure_float(NAME, "dtype of q", self.q_dtype)?;
        ensure_float(NAME, "dtype of out", self.out_dtype)?;
        check_cache(NAME, self.kv, self.kv_dtype)?;
        let (q, out, kv) = (self.q, self.out, self.kv);
        ensure(
            q.len > 0 && q.len == kv.head_dim,
            NAME,
            "head_dim of q",
            q.len,
            "that of the cache, above 0",
        )?;
        ensure(
            kv.kv_heads > 0 && q.inner > 0 && q.inner.is_multiple_of(kv.kv_heads),
            NAME,
            "heads",
            format!("{} query and {} key/value heads", q.inner, kv.kv_heads),
            "query heads that are a multiple of the key/value heads",
        )?;
        ensure_like(NAME, "shape of out", out, q)?;
        ensure_disjoint(NAME, "strides of out", out)?;
        ensure_tokens(NAME, "rows of q", q.outer, self.batch, self.q_len, self.ragged)?;
        ensure(self.window != Some(0), NAME, "window", 0, "at least 1, or none")?;
        ensure(self.scale.is_finite(), NAME, "scale", self.scale, "a finite number")?;
        if let Some(cap) = self.soft_cap {
            ensure(cap.is_finite() && cap > 0.0, NAME, "soft_cap", cap, "a positive number, or none")?;
        }
        Ok(())
    }

    fn operands(&self) -> Vec<Operand> {
        use Access::{Read, Write};
        let cache = self.kv.extent(self.batch);
        let mut list = vec![
            Operand::data("q", self.q_dtype, self.q.extent(), Read),
            Operand::data("k", self.kv_dtype, cache, Read),
            Operand::data("v", self.kv_dtype, cache, Read),
            Operand::slot("kv_len", Some(self.batch), Read),
        ];
        if self.ragged {
            list.push(Operand::slot("q_offsets", self.batch.checked_add(1), Read));
        }
        if self.kv.paging.is_some() {
            let table = self.batch.checked_mul(self.kv.blocks_per_sequence());
            list.push(Operand::slot("block_table", table, Read));
        }
        if self.sinks {
            list.push(Operand::data("sinks", DType::F32, Some(self.q.inner), Read));
        }
        list.push(Operand::data("out", self.out_dtype, self.out.extent(), Write));
        list
    }

    fn dtypes(&self) -> Vec<DType> {
        vec![self.q_dtype, self.kv_dtype, self.out_dtype]
    }

    fn shape(&self) -> Vec<(&'static str, usize)> {
        vec![
            ("b", self.batch),
            ("q", self.q_len),
            ("kv", self.kv.capacity),
            ("h", self.q.inner),
            ("hkv", self.kv.kv_heads),
            ("d", self.q.len),
        ]
    }

    fn tuning_key(&self) -> String {
        let window = self.window;
        let key = Key::new(self).rows("q", &self.q).rows("out", &self.out).cache(&self.kv);
        let key =
            key.varying("queries", self.q.outer).flag("ragged", self.ragged).flag("causal", self.causal);
        let key = window.into_iter().fold(key, |key, w| key.varying("window", w));
        key.flag("soft_cap", self.soft_cap.is_some()).policy(&self.policy).finish()
    }

    fn flops(&self) -> u64 {
        self.flops_at(self.kv.capacity)
    }

    fn bytes(&self) -> u64 {
        self.bytes_at(self.kv.capacity)
    }

    fn reduction(&self) -> usize {
        self.kv.capacity.max(self.q.len)
    }

    fn reference(&self, args: &mut [Values]) {
        let Some((out, inputs)) = args.split_last_mut() else { return };
        let (q, k, v, kv_len) = (&inputs[0], &inputs[1], &inputs[2], &inputs[3]);
        let mut rest = inputs[4..].iter();
        let offsets = if self.ragged { rest.next().map(Values::slots) } else { None };
        let table = if self.kv.paging.is_some() { rest.next().map(Values::slots) } else { None };
        let (kv_len, table) = (kv_len.slots(), table.unwrap_or_default());
        let sinks = if self.sinks { rest.next() } else { None };
        let group = self.q.inner / self.kv.kv_heads;
        let scale = f64::from(self.scale);
        for (b, &length) in kv_len.iter().enumerate().take(self.batch) {
            let length = if k.value.is_empty() { 0 } else { slots::length(length, self.kv.capacity) };
            let rows = slots::query_rows(b, self.q_len, self.q.outer, offsets.as_deref());
            let (first, n) = (rows.start, rows.len());
            for i in 0..n {
                for h in 0..self.q.inner {
                    let from = self.q.start(first + i, h);
                    let query = &q.value[from..from + self.q.len];
                    let keys = self.visible(i, n, length);
                    let head = h / group * self.kv.head_stride;
                    let at = |j: usize| slots::vector(&self.kv, b, j, &table).unwrap_or(0) + head;
                    let mut scores = Vec::with_capacity(keys.len());
                    let mut sizes = Vec::with_capacity(keys.len());
                    for j in keys.clone() {
                        let key = &k.value[at(j)..at(j) + self.q.len];
                        let dot: f64 = query.iter().zip(key).map(|(x, y)| x * y).sum();
                        let size: f64 = query.iter().zip(key).map(|(x, y)| (x * y).abs()).sum();
                        let mut s = dot * scale;
                        if let Some(cap) = self.soft_cap {
                            s = f64::from(cap) * (s / f64::from(cap)).tanh();
                        }
                        scores.push(s);
                        sizes.push(size * scale.abs());
                    }
                    let sink = sinks.map(|s| s.value[h]);
                    // f64::max ignores NaN, which then reaches the result through exp
                    let top = scores.iter().copied().chain(sink).fold(f64::NEG_INFINITY, f64::max);
                    let weights: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
                    let denominator: f64 =
                        weights.iter().sum::<f64>() + sink.map_or(0.0, |s| (s - top).exp());
                    let start = self.out.start(first + i, h);
                    for d in 0..self.q.len {
                        let (mut sum, mut magnitude) = (0.0, 0.0);
                        for (slot, j) in keys.clone().enumerate() {
                            let p = weights[slot] / denominator;
                            let value = v.value[at(j) + d];
                            sum += p * value;
                            // an error of a score is an equal relative error of its weight
                            magnitude += (p * value).abs() * (1.0 + sizes[slot]);
                        }
                        if keys.is_empty() {
                            (sum, magnitude) = (0.0, 0.0);
                        }
                        out.set(start + d, sum, magnitude);
                    }
                }
            }
        }
    }
}
