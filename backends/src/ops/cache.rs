//! The cache that attention reads.

use super::{as_heads, expect_dtype, run, shape_error};
use crate::device::Device;
use crate::tensor::Tensor;
use perjoule_kernels::op::{Advance, KvAppend};
use perjoule_kernels::{DType, Error, KvLayout, Paging, Result};

const NAME: &str = "kv_cache";
const APPEND: &str = "kv_append";

/// Keys and values of the tokens so far, for up to `capacity` tokens a sequence. Lengths live on the device beside a count on the host.
///
/// A step is [`advance`](KvCache::advance) (or [`advance_ragged`](KvCache::advance_ragged)), which gives the new tokens positions, then
/// [`super::rope`] of queries and keys, [`append`](KvCache::append), and [`super::attention_cached`].
///
/// Caches are contiguous, with `capacity` tokens set aside for every sequence ([`KvCache::new`]), or paged, with blocks of tokens shared
/// by all sequences ([`KvCache::paged`]). Element types: floats and q8_0, to which keys and values are rounded when they are appended.
///
/// ```
/// use perjoule::{DType, Tensor, ops};
/// use perjoule::ops::{KvCache, Paging};
///
/// # fn main() -> perjoule::Result<()> {
/// let cpu = perjoule::open("cpu")?;
/// let (heads, kv_heads, head_dim) = (4, 2, 32);
/// // two sequences of up to 1024 tokens, which share 20 blocks of 16 tokens
/// let paging = Paging { block: 16, blocks: 20 };
/// let mut cache = KvCache::paged(&cpu, 2, kv_heads, 1024, head_dim, DType::Q8_0, paging)?;
///
/// // a prompt of 5 tokens for one sequence, of 2 for the other
/// cache.advance_ragged(&[5, 2])?;
/// let tokens = |n: usize, heads: usize| Tensor::from_slice(&cpu, &vec![0.5f32; n * heads * head_dim], [n, heads, head_dim]);
/// let (q, k, v) = (tokens(7, heads)?, tokens(7, kv_heads)?, tokens(7, kv_heads)?);
/// ops::rope(&q, cache.positions(), 10_000.0)?;
/// ops::rope(&k, cache.positions(), 10_000.0)?;
/// cache.append(&k, &v)?;
/// let out = ops::attention_cached(&q, &cache).run()?;
/// assert_eq!(out.shape(), [7, heads, head_dim]);
///
/// // the last token of the first sequence is taken back
/// cache.truncate(0, 4)?;
/// assert_eq!(cache.lengths(), [4, 2]);
/// # Ok(())
/// # }
/// ```
pub struct KvCache {
    k: Tensor,
    v: Tensor,
    kv_len: Tensor,
    layout: KvLayout,
    lengths: Vec<usize>,
    pages: Option<Pages>,
    step: Step,
}

/// The last advance.
struct Step {
    positions: Tensor,
    /// New tokens of each sequence.
    counts: Vec<usize>,
    /// Where each sequence's tokens begin, when they are not equally many.
    offsets: Option<Tensor>,
    /// Whether tokens have positions, but no keys and values yet.
    pending: bool,
}

/// Which blocks hold the tokens of each sequence.
struct Pages {
    table: Tensor,
    /// What the table holds: `per_sequence` blocks for each sequence, -1 where there is none.
    entries: Vec<i32>,
    per_sequence: usize,
    paging: Paging,
    /// Blocks that no sequence has; none when the caller supplies the table.
    free: Option<Vec<i32>>,
}

fn invalid(field: &'static str, got: impl Into<String>, expected: impl Into<String>) -> Error {
    Error::Invalid { op: NAME, field, got: got.into(), expected: expected.into() }
}

fn bytes_of(values: impl IntoIterator<Item = i32>) -> Vec<u8> {
    values.into_iter().flat_map(i32::to_le_bytes).collect()
}

impl KvCache {
    /// An empty contiguous cache: memory for `capacity` tokens of each sequence.
    pub fn new(
        device: &Device,
        batch: usize,
        kv_heads: usize,
        capacity: usize,
        head_dim: usize,
        dtype: DType,
    ) -> Result<Self> {
        let layout = KvLayout::contiguous(kv_heads, capacity, head_dim);
        Self::empty(device, batch, layout, dtype, [batch, kv_heads, capacity, head_dim])
    }

    /// An empty paged cache: memory for `paging.blocks` blocks of `paging.block` tokens, which sequences of up to `capacity` tokens are
    /// given as they grow and give back as they shrink.
    pub fn paged(
        device: &Device,
        batch: usize,
        kv_heads: usize,
        capacity: usize,
        head_dim: usize,
        dtype: DType,
        paging: Paging,
    ) -> Result<Self> {
        if paging.block == 0 || i32::try_from(paging.blocks).is_err() {
            let expected = "blocks of at least 1 token, fewer than 2^31 of them";
            return Err(invalid("paging", format!("{paging:?}"), expected));
        }
        let layout = KvLayout::paged(kv_heads, capacity, head_dim, paging);
        let per_sequence = layout.blocks_per_sequence();
        let table = Tensor::zeros(device, DType::I32, [batch, per_sequence])?;
        let shape = [paging.blocks, kv_heads, paging.block, head_dim];
        let mut cache = Self::empty(device, batch, layout, dtype, shape)?;
        let entries = vec![-1; batch * per_sequence];
        // the last one is given away first
        let free = Some((0..paging.blocks as i32).rev().collect());
        let mut pages = Pages { table, entries: Vec::new(), per_sequence, paging, free };
        pages.set(entries)?;
        cache.pages = Some(pages);
        Ok(cache)
    }

    fn empty(
        device: &Device,
        batch: usize,
        layout: KvLayout,
        dtype: DType,
        shape: [usize; 4],
    ) -> Result<Self> {
        let KvLayout { kv_heads, capacity, head_dim, .. } = layout;
        if kv_heads == 0 || head_dim == 0 || capacity >= i32::MAX as usize {
            let got = format!("{kv_heads} kv_heads of {head_dim} elements, a capacity of {capacity} tokens");
            return Err(invalid("shape", got, "heads of at least 1 element, a capacity below 2^31 - 1"));
        }
        if !dtype.is_float() && dtype != DType::Q8_0 {
            return Err(invalid("dtype", dtype.to_string(), "f32, f16, bf16, f8e4m3 or q8_0"));
        }
        Ok(KvCache {
            k: Tensor::zeros(device, dtype, shape)?,
            v: Tensor::zeros(device, dtype, shape)?,
            kv_len: Tensor::zeros(device, DType::I32, [batch])?,
            layout,
            lengths: vec![0; batch],
            pages: None,
            step: Step::none(device, batch)?,
        })
    }

    /// Tokens so far: of the longest sequence, where they differ.
    pub fn len(&self) -> usize {
        self.lengths.iter().copied().max().unwrap_or(0)
    }

    /// Whether no sequence holds a token.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens of each sequence so far.
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// Sequences.
    pub fn batch(&self) -> usize {
        self.lengths.len()
    }

    /// Element type of keys and values.
    pub fn dtype(&self) -> DType {
        self.k.dtype()
    }

    /// How keys and values lie, for ops of your own.
    pub fn layout(&self) -> KvLayout {
        self.layout
    }

    /// The keys: `[batch, kv_heads, capacity, head_dim]`, or `[blocks, kv_heads, block, head_dim]` when paged.
    pub fn keys(&self) -> &Tensor {
        &self.k
    }

    /// The values, shaped like the keys.
    pub fn values(&self) -> &Tensor {
        &self.v
    }

    /// Positions of the tokens of the last advance, i32, one a token, sequence after sequence: what [`super::rope`] takes.
    pub fn positions(&self) -> &Tensor {
        &self.step.positions
    }

    /// The blocks of each sequence in order, `[batch, blocks of capacity]`, -1 where there is none yet; empty for a contiguous cache.
    pub fn block_table(&self) -> &[i32] {
        self.pages.as_ref().map_or(&[], |pages| &pages.entries)
    }

    /// Blocks that no sequence has; `None` when contiguous, or when the table is the caller's.
    pub fn free_blocks(&self) -> Option<usize> {
        Some(self.pages.as_ref()?.free.as_ref()?.len())
    }

    /// Makes room for `tokens` more tokens in each sequence and gives them positions. Then rotate, then [`KvCache::append`], without
    /// which neither attention nor the next advance is possible. Refused, without effect, where a sequence or the blocks have no room.
    pub fn advance(&mut self, tokens: usize) -> Result<()> {
        self.start(vec![tokens; self.batch()], false)
    }

    /// The same with a number of new tokens for each sequence, 0 among them. Queries, keys and values of this step are then
    /// `[tokens, heads, head_dim]`: those of the first sequence, then those of the second, and so on.
    pub fn advance_ragged(&mut self, tokens: &[usize]) -> Result<()> {
        if tokens.len() != self.batch() {
            let expected = format!("{} numbers, one a sequence", self.batch());
            return Err(invalid("tokens", format!("{tokens:?}"), expected));
        }
        self.start(tokens.to_vec(), true)
    }

    fn start(&mut self, counts: Vec<usize>, ragged: bool) -> Result<()> {
        if self.step.pending {
            return Err(invalid("tokens", format!("{counts:?}"), "KvCache::append after the last advance"));
        }
        let capacity = self.layout.capacity;
        for (s, (&held, &more)) in self.lengths.iter().zip(&counts).enumerate() {
            if more > capacity - held {
                let got = format!("{more} after {held} in sequence {s}");
                return Err(invalid("tokens", got, format!("no more than the capacity of {capacity}")));
            }
        }
        let device = self.k.device();
        // each is at most the capacity, but their sum may be anything
        let tokens = counts.iter().try_fold(0usize, |all, &n| all.checked_add(n));
        let tokens = tokens.ok_or(Error::Overflow { op: NAME, what: "the number of tokens" })?;
        let longest = counts.iter().copied().max().unwrap_or(0);
        let op = Advance { batch: self.batch(), q_len: longest, ragged, tokens };
        perjoule_kernels::Op::from(op).validate()?; // i32 can count them
        let positions = Tensor::unwritten(device, DType::I32, [tokens])?;
        let offsets = match ragged {
            false => None,
            true => {
                let mut at = 0;
                let ends = counts.iter().map(|n| {
                    at += *n as i32;
                    at
                });
                let offsets: Vec<i32> = std::iter::once(0).chain(ends).collect();
                Some(Tensor::from_slice(device, &offsets, [offsets.len()])?)
            }
        };
        let lengths: Vec<usize> = self.lengths.iter().zip(&counts).map(|(a, b)| a + b).collect();
        if let Some(pages) = &mut self.pages {
            pages.grow(&self.lengths, &lengths)?;
        }
        let mut args: Vec<&Tensor> = offsets.iter().collect();
        args.extend([&self.kv_len, &positions]);
        run(op, &args)?;
        self.lengths = lengths;
        self.step = Step { positions, counts, offsets, pending: tokens > 0 };
        Ok(())
    }

    /// Stores keys and values of the tokens of the last advance: `[batch, tokens, kv_heads, head_dim]` each, or
    /// `[tokens, kv_heads, head_dim]` behind [`KvCache::advance_ragged`]. Both of one float type.
    pub fn append(&mut self, k: &Tensor, v: &Tensor) -> Result<()> {
        let op = self.append_op(APPEND, k, v)?;
        let mut args = vec![k, v];
        args.extend(self.slots(op.ragged));
        args.extend([&self.k, &self.v]);
        run(op, &args)?;
        self.step.pending = false;
        Ok(())
    }

    /// Takes back an advance behind which nothing was appended; without effect otherwise.
    pub fn cancel_advance(&mut self) -> Result<()> {
        if !self.step.pending {
            return Ok(());
        }
        let lengths = self.lengths.iter().zip(&self.step.counts).map(|(a, b)| a - b).collect();
        self.set_lengths(lengths)
    }

    /// Forgets all but the first `tokens` tokens of a sequence; blocks that it no longer needs are free again.
    pub fn truncate(&mut self, sequence: usize, tokens: usize) -> Result<()> {
        let held = self.of(sequence)?;
        if tokens > held {
            return Err(invalid("tokens", tokens.to_string(), format!("at most the {held} that it holds")));
        }
        let mut lengths = self.lengths.clone();
        lengths[sequence] = tokens;
        self.set_lengths(lengths)
    }

    /// Says that the first `tokens` tokens of a sequence are in the cache already: in blocks that a table of the caller's names, which
    /// another sequence has filled.
    pub fn adopt(&mut self, sequence: usize, tokens: usize) -> Result<()> {
        self.of(sequence)?;
        let named = match &self.pages {
            Some(pages) if pages.free.is_none() => pages.named(sequence).min(self.layout.capacity),
            _ => {
                return Err(invalid(
                    "cache",
                    "its own keeper",
                    "a block table set by KvCache::set_block_table",
                ));
            }
        };
        if tokens > named {
            let expected = format!("at most the {named} tokens of the blocks that the table names");
            return Err(invalid("tokens", tokens.to_string(), expected));
        }
        let mut lengths = self.lengths.clone();
        lengths[sequence] = tokens;
        self.set_lengths(lengths)
    }

    /// Forgets everything, an advance without an append included. Memory stays allocated, a block table of the caller's stays set.
    pub fn reset(&mut self) -> Result<()> {
        self.set_lengths(vec![0; self.batch()])
    }

    /// Replaces the block table of a paged cache, which the caller keeps from now on: row-major `[batch, blocks of capacity]`, each a
    /// block of the cache, or -1 where the sequence has none. It must name blocks for the tokens that the sequences hold. Sequences may
    /// share blocks that they only read: an advance into a block that is named twice is refused.
    pub fn set_block_table(&mut self, table: &[i32]) -> Result<()> {
        const FIELD: &str = "block_table";
        let Some(pages) = &mut self.pages else {
            return Err(invalid(FIELD, "given", "a cache made by KvCache::paged"));
        };
        if self.step.pending {
            return Err(invalid(FIELD, "given", "KvCache::append after the last advance"));
        }
        if table.len() != pages.entries.len() {
            let (rows, columns) = (self.lengths.len(), pages.per_sequence);
            let got = format!("{} entries", table.len());
            return Err(invalid(FIELD, got, format!("[{rows}, {columns}], one row a sequence")));
        }
        let blocks = pages.paging.blocks;
        if let Some(at) = table.iter().position(|&b| b < -1 || i64::from(b) >= blocks as i64) {
            let got = format!("{} at {at}", table[at]);
            return Err(invalid(FIELD, got, format!("blocks below {blocks}, or -1 for none")));
        }
        let old = std::mem::replace(&mut pages.entries, table.to_vec());
        let missing = (0..self.lengths.len()).find(|&s| pages.named(s) < self.lengths[s]);
        pages.entries = old;
        if let Some(s) = missing {
            let got = format!("too short for sequence {s}");
            return Err(invalid(FIELD, got, format!("blocks for its {} tokens", self.lengths[s])));
        }
        pages.set(table.to_vec())?;
        pages.free = None;
        Ok(())
    }

    /// Tokens of a sequence; refused while an append is due.
    fn of(&self, sequence: usize) -> Result<usize> {
        if self.step.pending {
            let expected = "KvCache::append or KvCache::cancel_advance after the last advance";
            return Err(invalid("sequence", sequence.to_string(), expected));
        }
        let held = self.lengths.get(sequence).copied();
        held.ok_or_else(|| invalid("sequence", sequence.to_string(), format!("below {}", self.batch())))
    }

    fn set_lengths(&mut self, lengths: Vec<usize>) -> Result<()> {
        let device = self.k.device();
        let step = Step::none(device, self.lengths.len())?;
        let bytes = bytes_of(lengths.iter().map(|&n| n as i32));
        device.default_stream()?.write(self.kv_len.buffer(), &bytes)?;
        (self.lengths, self.step) = (lengths, step);
        match &mut self.pages {
            Some(pages) => pages.shrink(&self.lengths),
            None => Ok(()),
        }
    }

    /// The descriptor that stores `k` and `v` of the last advance.
    pub(super) fn append_op(&self, op: &'static str, k: &Tensor, v: &Tensor) -> Result<KvAppend> {
        let Step { counts, offsets, positions, pending } = &self.step;
        let (tokens, q_len) = (positions.elements(), counts.iter().copied().max().unwrap_or(0));
        if !pending && tokens > 0 {
            return Err(shape_error(op, "k", k, "KvCache::advance first: these tokens are in the cache"));
        }
        let heads = [self.layout.kv_heads, self.layout.head_dim];
        let want = match offsets {
            Some(_) => [&[tokens], &heads[..]].concat(),
            None => [&[self.batch(), q_len], &heads[..]].concat(),
        };
        for (field, tensor) in [("k", k), ("v", v)] {
            if tensor.shape() != want {
                return Err(shape_error(op, field, tensor, format!("the shape {want:?}, as advanced")));
            }
        }
        expect_dtype(op, "v", v, k.dtype())?;
        Ok(KvAppend {
            batch: self.batch(),
            q_len,
            ragged: offsets.is_some(),
            src_k: as_heads(op, "k", k)?,
            src_v: as_heads(op, "v", v)?,
            src_dtype: k.dtype(),
            kv: self.layout,
            kv_dtype: self.k.dtype(),
        })
    }

    /// Notes that what [`KvCache::append_op`] describes has run.
    pub(super) fn appended(&mut self) {
        self.step.pending = false;
    }

    /// The slots between sources and caches, in order.
    pub(super) fn slots(&self, ragged: bool) -> Vec<&Tensor> {
        let mut slots = vec![&self.kv_len];
        slots.extend(self.step.offsets.as_ref().filter(|_| ragged));
        slots.extend(self.pages.as_ref().map(|pages| &pages.table));
        slots
    }

    /// Most queries of a sequence, and whether they are ragged, where `q` holds queries of the newest tokens.
    pub(super) fn queries(&self, op: &'static str, q: &Tensor) -> Result<(usize, bool)> {
        if self.step.pending {
            let expected = "keys and values appended for the tokens advanced";
            return Err(shape_error(op, "q", q, expected));
        }
        match *q.shape() {
            [batch, q_len, _, _] => {
                if batch != self.batch() {
                    let expected = format!("batch {}, as the cache has", self.batch());
                    return Err(shape_error(op, "q", q, expected));
                }
                let shortest = self.lengths.iter().copied().min().unwrap_or(usize::MAX);
                if q_len > shortest {
                    let expected =
                        format!("at most the {shortest} tokens that each sequence has in the cache");
                    return Err(shape_error(op, "q", q, expected));
                }
                Ok((q_len, false))
            }
            [tokens, _, _] if self.step.offsets.is_some() => {
                let have = self.step.positions.elements();
                if tokens != have {
                    let expected = format!("the {have} tokens of the last KvCache::advance_ragged");
                    return Err(shape_error(op, "q", q, expected));
                }
                Ok((self.step.counts.iter().copied().max().unwrap_or(0), true))
            }
            _ => {
                let expected = "[batch, q_len, heads, head_dim], or [tokens, heads, head_dim] behind KvCache::advance_ragged";
                Err(shape_error(op, "q", q, expected))
            }
        }
    }
}

impl Step {
    fn none(device: &Device, batch: usize) -> Result<Self> {
        let positions = Tensor::zeros(device, DType::I32, [0])?;
        Ok(Step { positions, counts: vec![0; batch], offsets: None, pending: false })
    }
}

impl Pages {
    fn set(&mut self, entries: Vec<i32>) -> Result<()> {
        let device = self.table.device();
        device.default_stream()?.write(self.table.buffer(), &bytes_of(entries.iter().copied()))?;
        self.entries = entries;
        Ok(())
    }

    fn row(&self, sequence: usize) -> &[i32] {
        &self.entries[sequence * self.per_sequence..][..self.per_sequence]
    }

    /// Tokens of the leading blocks that a sequence has.
    fn named(&self, sequence: usize) -> usize {
        let blocks = self.row(sequence).iter().take_while(|&&b| b >= 0).count();
        blocks.saturating_mul(self.paging.block)
    }

    /// Makes sure of blocks for sequences that grow from `old` to `new` tokens.
    fn grow(&mut self, old: &[usize], new: &[usize]) -> Result<()> {
        let block = self.paging.block;
        let Some(free) = &self.free else { return self.check(old, new) };
        let mut wanted = Vec::new();
        for (s, tokens) in new.iter().enumerate() {
            let have = self.named(s) / block;
            wanted.extend((have..tokens.div_ceil(block)).map(|b| s * self.per_sequence + b));
        }
        if wanted.len() > free.len() {
            let got = format!("{} more blocks of {block} tokens", wanted.len());
            return Err(invalid("tokens", got, format!("no more than the {} that are free", free.len())));
        }
        if wanted.is_empty() {
            return Ok(());
        }
        let left = free.len() - wanted.len();
        let mut entries = self.entries.clone();
        for (at, &b) in wanted.into_iter().zip(free[left..].iter().rev()) {
            entries[at] = b;
        }
        self.set(entries)?;
        if let Some(free) = &mut self.free {
            free.truncate(left);
        }
        Ok(())
    }

    /// Whether a table of the caller's has blocks for all tokens, and each that will be written once.
    fn check(&self, old: &[usize], new: &[usize]) -> Result<()> {
        let block = self.paging.block;
        let mut uses = vec![0u32; self.paging.blocks];
        for (s, tokens) in new.iter().enumerate() {
            if self.named(s) < *tokens {
                let got = format!("too short for sequence {s}");
                return Err(invalid("block_table", got, format!("blocks for its {tokens} tokens")));
            }
            self.row(s)[..tokens.div_ceil(block)].iter().for_each(|&b| uses[b as usize] += 1);
        }
        for (s, (old, new)) in old.iter().zip(new).enumerate().filter(|(_, (old, new))| new > old) {
            let written = &self.row(s)[old / block..new.div_ceil(block)];
            if let Some(b) = written.iter().find(|&&b| uses[b as usize] > 1) {
                let got = format!("block {b} twice, once where sequence {s} writes");
                return Err(invalid("block_table", got, "a block of its own for new tokens"));
            }
        }
        Ok(())
    }

    /// Takes back the blocks behind the tokens that are left.
    fn shrink(&mut self, lengths: &[usize]) -> Result<()> {
        let Some(mut free) = self.free.take() else { return Ok(()) };
        let mut entries = self.entries.clone();
        for (s, tokens) in lengths.iter().enumerate() {
            let first = s * self.per_sequence + tokens.div_ceil(self.paging.block);
            for entry in entries[first..(s + 1) * self.per_sequence].iter_mut().rev().filter(|e| **e >= 0) {
                free.push(std::mem::replace(entry, -1));
            }
        }
        let result = if entries == self.entries { Ok(()) } else { self.set(entries) };
        // where the write failed the table still names the blocks: they are given back when the sequence next shrinks
        self.free = Some(match &result {
            Ok(()) => free,
            Err(_) => free.into_iter().filter(|b| !self.entries.contains(b)).collect(),
        });
        result
    }
}

impl std::fmt::Debug for KvCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let KvLayout { kv_heads, capacity, head_dim, .. } = self.layout;
        write!(f, "KvCache({} {:?} of {capacity} tokens", self.dtype(), self.lengths)?;
        if let Some(pages) = &self.pages {
            write!(f, " in {} blocks of {}", pages.paging.blocks, pages.paging.block)?;
        }
        write!(f, ", {kv_heads} heads of {head_dim} on {})", self.k.device().info().label)
    }
}
