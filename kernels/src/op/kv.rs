//! Writing into a KV cache, and advancing the slots that say how full it is.

use super::check::{
    bytes_of, ensure, ensure_countable, ensure_extent, ensure_float, ensure_like, ensure_tokens, product,
    rows_bytes, through_blocks, total,
};
use super::key::Key;
use super::slots::query_rows;
use super::{Operand, Spec, Values};
use crate::buffer::Access;
use crate::dtype::DType;
use crate::error::Result;
use crate::layout::{KvLayout, Rows};

const APPEND: &str = "kv_append";
const ADVANCE: &str = "advance";

/// What attention and appending ask of a cache, whatever its element type.
pub(super) fn check_cache(op: &'static str, kv: KvLayout, dtype: DType) -> Result<()> {
    ensure(
        dtype.is_float() || dtype == DType::Q8_0,
        op,
        "dtype of k and v",
        dtype,
        "f32, f16, bf16, f8e4m3 or q8_0",
    )?;
    if let Some(paging) = kv.paging {
        ensure(paging.block > 0, op, "tokens of a block", 0, "at least 1")?;
        ensure_countable(op, "blocks", Some(paging.blocks))?;
    }
    ensure_countable(op, "capacity", Some(kv.capacity))?;
    let len = dtype.block_len();
    let sizes = [kv.head_dim, kv.batch_stride, kv.head_stride, kv.token_stride];
    ensure(
        sizes.iter().all(|s| s.is_multiple_of(len)),
        op,
        "layout of the cache",
        format!("{kv:?}"),
        "head_dim and strides that are multiples of the block",
    )
}

/// Whether no two vectors of a cache that is written share an element.
fn is_disjoint(kv: KvLayout, batch: usize) -> bool {
    let (slow, tokens) = kv.paging.map_or((batch, kv.capacity), |p| (p.blocks, p.block));
    let mut dims = [(slow, kv.batch_stride), (kv.kv_heads, kv.head_stride), (tokens, kv.token_stride)];
    dims.sort_by_key(|d| d.1);
    let mut span = kv.head_dim;
    for (count, stride) in dims {
        if count > 1 {
            match (count - 1).checked_mul(stride).and_then(|s| s.checked_add(span)) {
                Some(end) if stride >= span => span = end,
                _ => return dims.iter().any(|d| d.0 == 0) || kv.head_dim == 0,
            }
        }
    }
    true
}

/// Writes the keys and values of this step's tokens into the caches.
///
/// Operands: `k`, `v` (`tokens x kv_heads` vectors of `head_dim`), `kv_len` (slot `[batch]`: the lengths *after* this step), then
/// those present of `q_offsets` (slot `[batch + 1]`, when `ragged`) and `block_table` (slot `[batch, blocks_per_sequence]`, when paged),
/// and `k_cache`, `v_cache`, read and written.
///
/// Token `i` of the `n` of sequence `b` goes to position `kv_len[b] - n + i`. Positions below 0 or from `capacity` on, and blocks
/// outside the cache, are skipped: padding cannot write outside. The sources are floats, the caches floats or q8_0 (quantised as
/// [`crate::block::q8_0`] does; what a block holds whose source is not finite is not specified).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct KvAppend {
    /// Sequences.
    pub batch: usize,
    /// New tokens of each sequence (the most, when ragged).
    pub q_len: usize,
    /// Whether sequences have different numbers of new tokens, given by the slot `q_offsets`.
    pub ragged: bool,
    /// Keys: outer = tokens of all sequences, inner = kv_heads, len = head_dim.
    pub src_k: Rows,
    /// Values, shaped alike.
    pub src_v: Rows,
    /// Element type of both.
    pub src_dtype: DType,
    /// Layout of either cache.
    pub kv: KvLayout,
    /// Element type of the caches.
    pub kv_dtype: DType,
}

impl KvAppend {
    /// `q_len` dense new tokens of each sequence, cache and sources of one type.
    pub fn dense(batch: usize, q_len: usize, kv: KvLayout, dtype: DType) -> Self {
        let rows = Rows::grid(batch.saturating_mul(q_len), kv.kv_heads, kv.head_dim);
        KvAppend {
            batch,
            q_len,
            ragged: false,
            src_k: rows,
            src_v: rows,
            src_dtype: dtype,
            kv,
            kv_dtype: dtype,
        }
    }

    /// The slots that follow the sources, in order.
    pub(super) fn slots(&self) -> Vec<Operand> {
        let mut list = vec![Operand::slot("kv_len", Some(self.batch), Access::Read)];
        if self.ragged {
            list.push(Operand::slot("q_offsets", self.batch.checked_add(1), Access::Read));
        }
        if self.kv.paging.is_some() {
            let table = self.batch.checked_mul(self.kv.blocks_per_sequence());
            list.push(Operand::slot("block_table", table, Access::Read));
        }
        list
    }

    /// The caches, in order.
    pub(super) fn caches(&self) -> [Operand; 2] {
        let extent = self.kv.extent(self.batch);
        ["k_cache", "v_cache"].map(|name| Operand::data(name, self.kv_dtype, extent, Access::ReadWrite))
    }

    /// Copies every vector of `src` into `cache`; `vector` gives value and magnitude of the elements of one. `slots` as
    /// [`KvAppend::slots`] lists them.
    pub(super) fn store(
        &self,
        slots: &[Values],
        cache: &mut Values,
        vector: impl Fn(usize, usize) -> Vec<(f64, f64)>,
    ) {
        let offsets = self.ragged.then(|| slots[1].slots());
        let table = slots.last().filter(|_| self.kv.paging.is_some()).map_or(Vec::new(), Values::slots);
        for b in 0..self.batch {
            let rows = query_rows(b, self.q_len, self.src_k.outer, offsets.as_deref());
            let (first, n) = (rows.start, rows.len());
            for i in 0..n {
                let position = slots[0].index(b) - n as i64 + i as i64;
                let position = usize::try_from(position).ok().filter(|&p| p < self.kv.capacity);
                let target = position.and_then(|p| super::slots::vector(&self.kv, b, p, &table));
                let Some(target) = target else { continue };
                for head in 0..self.kv.kv_heads {
                    let (mut values, mut magnitudes): (Vec<f64>, Vec<f64>) =
                        vector(first + i, head).into_iter().unzip();
                    if self.kv_dtype.is_block() {
                        values = through_blocks(self.kv_dtype, &values);
                        magnitudes = values.iter().map(|v| v.abs()).collect();
                    }
                    for (d, (value, magnitude)) in values.into_iter().zip(magnitudes).enumerate() {
                        cache.set(target + head * self.kv.head_stride + d, value, magnitude);
                    }
                }
            }
        }
    }
}

/// Values and sizes of the vector `(outer, inner)` of `rows`.
pub(super) fn vector(values: &Values, rows: Rows, outer: usize, inner: usize) -> Vec<(f64, f64)> {
    let start = rows.start(outer, inner);
    values.value[start..start + rows.len].iter().map(|&v| (v, v.abs())).collect()
}

impl Spec for KvAppend {
    fn name(&self) -> &'static str {
        APPEND
    }

    fn validate(&self) -> Result<()> {
        ensure_float(APPEND, "dtype of the new keys", self.src_dtype)?;
        check_cache(APPEND, self.kv, self.kv_dtype)?;
        let like = Rows::grid(self.src_k.outer, self.kv.kv_heads, self.kv.head_dim);
        ensure_like(APPEND, "shape of k", self.src_k, like)?;
        ensure_like(APPEND, "shape of v", self.src_v, like)?;
        ensure_extent(APPEND, "k", self.src_k)?;
        ensure_extent(APPEND, "v", self.src_v)?;
        ensure_tokens(APPEND, "rows of k", self.src_k.outer, self.batch, self.q_len, self.ragged)?;
        ensure(
            is_disjoint(self.kv, self.batch),
            APPEND,
            "layout of the cache",
            format!("{:?}", self.kv),
            "strides under which vectors do not overlap",
        )
    }

    fn operands(&self) -> Vec<Operand> {
        let mut list = vec![
            Operand::data("k", self.src_dtype, self.src_k.extent(), Access::Read),
            Operand::data("v", self.src_dtype, self.src_v.extent(), Access::Read),
        ];
        list.extend(self.slots());
        list.extend(self.caches());
        list
    }

    fn dtypes(&self) -> Vec<DType> {
        vec![self.src_dtype, self.kv_dtype]
    }

    fn shape(&self) -> Vec<(&'static str, usize)> {
        vec![
            ("b", self.batch),
            ("q", self.q_len),
            ("kv", self.kv.capacity),
            ("hkv", self.kv.kv_heads),
            ("d", self.kv.head_dim),
        ]
    }

    fn tuning_key(&self) -> String {
        let key = Key::new(self).rows("src_k", &self.src_k).rows("src_v", &self.src_v).cache(&self.kv);
        key.varying("tokens", self.src_k.outer).flag("ragged", self.ragged).finish()
    }

    fn flops(&self) -> u64 {
        0
    }

    fn bytes(&self) -> u64 {
        let written = product(&[2, self.src_k.outer, self.kv.kv_heads, self.kv.head_dim]);
        total(&[
            rows_bytes(self.src_dtype, self.src_k),
            rows_bytes(self.src_dtype, self.src_v),
            bytes_of(self.kv_dtype, written),
        ])
    }

    fn reference(&self, args: &mut [Values]) {
        let [k, v, slots @ .., k_cache, v_cache] = args else { return };
        self.store(slots, k_cache, |token, head| vector(k, self.src_k, token, head));
        self.store(slots, v_cache, |token, head| vector(v, self.src_v, token, head));
    }
}

/// Moves the slots of a step: the one op that does, at its start, so that a recorded decode step replays without host work.
///
/// Operands: `q_offsets` (slot `[batch + 1]`, when `ragged`), `kv_len` (slot `[batch]`, read and written: grows by the sequence's
/// number of query rows), `positions` (slot `[tokens]`, written: row `i` of `n` stands at `kv_len - n + i`, with the new length).
/// Rows of no sequence (padding behind `q_offsets[batch]`) get position 0. Sums saturate.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Advance {
    /// Sequences.
    pub batch: usize,
    /// Query rows of each sequence (the most, when ragged).
    pub q_len: usize,
    /// Whether sequences have different numbers of query rows, given by the slot `q_offsets`.
    pub ragged: bool,
    /// Query rows of all sequences: `batch * q_len`, or at most that when ragged.
    pub tokens: usize,
}

impl Advance {
    /// `q_len` rows for each sequence.
    pub fn uniform(batch: usize, q_len: usize) -> Self {
        Advance { batch, q_len, ragged: false, tokens: batch.saturating_mul(q_len) }
    }
}

impl Spec for Advance {
    fn name(&self) -> &'static str {
        ADVANCE
    }

    fn validate(&self) -> Result<()> {
        ensure_countable(ADVANCE, "batch", Some(self.batch))?;
        ensure_tokens(ADVANCE, "tokens", self.tokens, self.batch, self.q_len, self.ragged)
    }

    fn operands(&self) -> Vec<Operand> {
        let mut list = Vec::new();
        if self.ragged {
            list.push(Operand::slot("q_offsets", self.batch.checked_add(1), Access::Read));
        }
        list.push(Operand::slot("kv_len", Some(self.batch), Access::ReadWrite));
        list.push(Operand::slot("positions", Some(self.tokens), Access::Write));
        list
    }

    fn dtypes(&self) -> Vec<DType> {
        vec![DType::I32]
    }

    fn shape(&self) -> Vec<(&'static str, usize)> {
        vec![("b", self.batch), ("q", self.q_len)]
    }

    fn tuning_key(&self) -> String {
        Key::new(self).varying("tokens", self.tokens).flag("ragged", self.ragged).finish()
    }

    fn flops(&self) -> u64 {
        0
    }

    fn bytes(&self) -> u64 {
        let offsets = if self.ragged { self.batch.saturating_add(1) } else { 0 };
        total(&[product(&[8, self.batch]), product(&[4, self.tokens]), product(&[4, offsets])])
    }

    fn reference(&self, args: &mut [Values]) {
        let [offsets @ .., kv_len, positions] = args else { return };
        for row in 0..self.tokens {
            positions.set(row, 0.0, 0.0);
        }
        let offsets = offsets.first().map(Values::slots);
        for b in 0..self.batch {
            let rows = query_rows(b, self.q_len, self.tokens, offsets.as_deref());
            let before = kv_len.value[b];
            let after = |n: usize| (before + n as f64).min(f64::from(i32::MAX));
            kv_len.set(b, after(rows.len()), 0.0);
            for (i, row) in rows.enumerate() {
                positions.set(row, after(i), 0.0);
            }
        }
    }
}
