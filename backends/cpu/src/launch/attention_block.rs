//! A lane's working memory of an attention unit, and what is done with one block of keys: scores, the running softmax, values.
//! [`super::attention`] says how units and blocks come about.

use super::attention_few::Plain;
use super::matmul::amx::{self, Kind};
use super::run::{self, Source, read};
use crate::simd::{Element, MAX_LANES, Simd, math};
use half::{bf16, f16};
use perjoule_kernels::DType;
use perjoule_kernels::op::Attention;
use std::f32::consts::LOG2_E;
use std::ops::Range;

/// Keys of a block: a multiple of every register tile, and of what tiles of AMX multiply at a time.
pub(crate) const KEYS: usize = 96;

/// What multiplies where there are rows enough.
pub(crate) trait Products: Send + Sync + 'static {
    /// Whether words of two bf16 are multiplied: of queries and keys, and of weights and values where those may be rounded.
    const WORDS: bool;
    /// Whether tiles of AMX multiply them, by [`Products::blocks`].
    const TILES: bool;

    /// See [`Kind::blocks`].
    ///
    /// # Safety
    /// That of [`Kind::blocks`].
    unsafe fn blocks(_: &mut amx::Blocks) {}
}

/// Multiply-adds of vectors.
pub(crate) struct Singles;

/// Dot products of words of vectors.
pub(crate) struct Pairs;

impl Products for Singles {
    const WORDS: bool = false;
    const TILES: bool = false;
}

impl Products for Pairs {
    const WORDS: bool = true;
    const TILES: bool = false;
}

impl<K: Kind> Products for K {
    const WORDS: bool = true;
    const TILES: bool = true;

    unsafe fn blocks(blocks: &mut amx::Blocks) {
        // SAFETY: the same contract.
        unsafe { K::blocks(blocks) }
    }
}

/// Rows and columns that tiles of AMX multiply at a time.
const TILE: usize = 32;

/// Words of the weights of some rows, as tiles read them.
#[repr(align(64))]
struct Weights([f32; TILE * KEYS / 2]);

/// Sizes of the working memory, in floats.
#[derive(Clone, Copy)]
pub(crate) struct Block {
    /// Length of a head, and the same in whole panels of two vectors.
    pub(super) depth: usize,
    pub(super) padded: usize,
    /// Rows in whole panels, and with room for a register tile.
    lanes: usize,
    rows: usize,
    /// Whether weights may be rounded to bf16.
    rounds: bool,
}

/// Keys and values of a block.
pub(crate) struct Keys<'a> {
    pub(crate) k: Source<'a>,
    pub(crate) v: Source<'a>,
    /// First element of each key's and value's vector.
    pub(crate) at: &'a [usize],
    /// The same of the block that comes next.
    pub(crate) next: &'a [usize],
    /// Whether a row does not see all of them.
    pub(crate) masked: bool,
    pub(crate) scores: Scores,
}

/// What makes exponents of scores: powers of 2, which cost less than those of e.
#[derive(Clone, Copy)]
pub(crate) struct Scores {
    /// What products are multiplied by.
    scale: f32,
    /// Cap of what that gives, and that of its exponents.
    cap: Option<[f32; 2]>,
}

impl Scores {
    pub(crate) fn new(op: &Attention) -> Self {
        match op.soft_cap {
            // none where f32 does not hold its exponent: only scores beyond 2^80 would notice it, of which any two that differ at all
            // have weights of 1 and 0 beside one another, capped or not
            Some(cap) if cap <= f32::MAX / LOG2_E => {
                Scores { scale: op.scale, cap: Some([cap, cap * LOG2_E]) }
            }
            _ => Scores { scale: op.scale * LOG2_E, cap: None },
        }
    }

    /// Exponents of products.
    #[inline(always)]
    pub(super) fn of<S: Simd>(&self, s: S, products: S::V) -> S::V {
        self.capped(s, s.mul(products, s.splat(self.scale)))
    }

    /// The same of those that have been scaled.
    #[inline(always)]
    fn capped<S: Simd>(&self, s: S, x: S::V) -> S::V {
        match self.cap {
            Some([cap, top]) => s.mul(s.splat(top), math::tanh(s, s.div(x, s.splat(cap)))),
            None => x,
        }
    }
}

/// Asks for the vectors of a head at `at` to be brought into the caches.
#[inline(always)]
fn bring<S: Simd>(s: S, from: Source<'_>, at: &[usize], depth: usize) {
    let (len, size) = (from.dtype.block_len(), from.dtype.block_bytes());
    for at in at {
        for line in (0..depth / len * size).step_by(64) {
            s.prefetch(from.bytes.as_ptr().wrapping_add(at / len * size + line));
        }
    }
}

/// Maximum, sum and values of a unit's rows over some of the keys.
pub(crate) struct Part<'a> {
    max: &'a [f32],
    sum: &'a [f32],
    values: &'a [f32],
    padded: usize,
}

impl<'a> Part<'a> {
    /// Largest exponent of a row; -inf when it saw none.
    #[inline(always)]
    pub(crate) fn max(&self, row: usize) -> f32 {
        self.max[row]
    }

    /// Sum of 2^(exponent - max).
    #[inline(always)]
    pub(crate) fn sum(&self, row: usize) -> f32 {
        self.sum[row]
    }

    /// Values, weighted like the sum; whole vectors.
    #[inline(always)]
    pub(crate) fn values(&self, row: usize) -> &'a [f32] {
        &self.values[row * self.padded..(row + 1) * self.padded]
    }
}

/// The working memory of one unit.
pub(crate) struct Work<'a> {
    pub(super) block: Block,
    /// Rows in use.
    pub(super) count: usize,
    pub(super) max: &'a mut [f32],
    pub(super) sum: &'a mut [f32],
    pub(super) values: &'a mut [f32],
    /// Queries, or their words: panels of rows (`[panel][depth][row]`) for register tiles, else `[vector][row]`.
    pub(super) q: &'a mut [f32],
    /// `[key][row]` for register tiles, else `[row][key]`. Weights may be words of two keys.
    pub(super) scores: &'a mut [f32],
    pub(super) k: &'a mut [f32],
    /// Panels along the head (`[panel][key][element]`, or words of two keys) for register tiles, else key by key.
    pub(super) v: &'a mut [f32],
    /// First and last key of the block that each row sees.
    seen: &'a mut [u32],
}

impl Block {
    /// For up to `rows` rows of `depth` elements, vectors of `vector` lanes and register tiles of `tile` rows.
    pub(crate) fn new(rows: usize, depth: usize, vector: usize, tile: usize, rounds: bool) -> Self {
        let panel = 2 * vector;
        let lanes = rows.next_multiple_of(panel);
        Block {
            depth,
            padded: depth.next_multiple_of(panel),
            lanes,
            rows: (lanes + tile).next_multiple_of(panel),
            rounds,
        }
    }

    /// Floats of a [`Part`].
    pub(crate) fn part_len(&self) -> usize {
        self.rows.saturating_mul(self.padded + 2)
    }

    /// Floats of the whole.
    pub(crate) fn len(&self) -> usize {
        let q = self.lanes.saturating_mul(self.padded);
        let scores = self.rows.saturating_mul(KEYS);
        let staged = self.padded.saturating_mul(2 * KEYS);
        [q, scores, staged, 2 * self.rows].iter().fold(self.part_len(), |all, &x| all.saturating_add(x))
    }

    /// The part at the start of a working memory.
    #[inline(always)]
    pub(crate) fn part<'a>(&self, memory: &'a [f32]) -> Part<'a> {
        let (max, rest) = memory.split_at(self.rows);
        let (sum, rest) = rest.split_at(self.rows);
        Part { max, sum, values: &rest[..self.rows * self.padded], padded: self.padded }
    }

    /// The memory of a unit with `count` rows.
    #[inline(always)]
    pub(crate) fn work<'a>(&self, memory: &'a mut [f32], count: usize) -> Work<'a> {
        let (max, rest) = memory.split_at_mut(self.rows);
        let (sum, rest) = rest.split_at_mut(self.rows);
        let (values, rest) = rest.split_at_mut(self.rows * self.padded);
        let (q, rest) = rest.split_at_mut(self.lanes * self.padded);
        let (scores, rest) = rest.split_at_mut(self.rows * KEYS);
        let (k, rest) = rest.split_at_mut(self.padded * KEYS);
        let (v, seen) = rest.split_at_mut(self.padded * KEYS);
        let seen = bytemuck::cast_slice_mut(&mut seen[..2 * self.rows]);
        Work { block: *self, count, max, sum, values, q, scores, k, v, seen }
    }
}

/// c + a b, or c + the dot products of the words of a and b.
#[inline(always)]
fn product<S: Simd, const WORDS: bool>(s: S, a: S::V, b: S::V, c: S::V) -> S::V {
    if WORDS { s.dot_pairs(a, b, c) } else { s.fma(a, b, c) }
}

/// A register tile of `MR` rows and two vectors of columns over `depth` elements or words of A and B: `c = scale a b` where there is a
/// scale, else `c += a b`. Row `i` of A starts at `i * rows`, its elements are `cols` apart; B is a panel; rows of C are `ldc` apart.
///
/// # Safety
/// All of these elements exist, and C is written by nobody else.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "a micro-kernel: the operands with their strides")]
unsafe fn tile<S: Simd, const MR: usize, const WORDS: bool>(
    s: S,
    depth: usize,
    a: *const f32,
    (rows, cols): (usize, usize),
    b: *const f32,
    c: *mut f32,
    ldc: usize,
    scale: Option<f32>,
) {
    // SAFETY: addresses are within the operands by the contract.
    unsafe {
        let mut sums = [[s.splat(0.0); 2]; MR];
        if scale.is_none() {
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = [s.load_f32(c.add(i * ldc)), s.load_f32(c.add(i * ldc + S::LANES))];
            }
        }
        for p in 0..depth {
            let b = b.add(p * 2 * S::LANES);
            let (left, right) = (s.load_f32(b), s.load_f32(b.add(S::LANES)));
            for (i, sum) in sums.iter_mut().enumerate() {
                let x = s.splat(*a.add(i * rows + p * cols));
                *sum = [product::<S, WORDS>(s, x, left, sum[0]), product::<S, WORDS>(s, x, right, sum[1])];
            }
        }
        if let Some(scale) = scale {
            for sum in &mut sums {
                *sum = [s.mul(sum[0], s.splat(scale)), s.mul(sum[1], s.splat(scale))];
            }
        }
        for (i, sum) in sums.iter().enumerate() {
            s.store_f32(c.add(i * ldc), sum[0]);
            s.store_f32(c.add(i * ldc + S::LANES), sum[1]);
        }
    }
}

/// Reads a vector as words, the last of which may be half; what is not bf16 is rounded.
#[inline(always)]
fn read_words<S: Simd>(s: S, from: Source<'_>, at: usize, depth: usize, to: &mut [f32]) {
    let to: &mut [bf16] = bytemuck::cast_slice_mut(to);
    if from.dtype == DType::BF16 {
        let elements: &[bf16] = bytemuck::cast_slice(from.bytes);
        to[..depth].copy_from_slice(&elements[at..at + depth]);
    } else {
        let mut run = run::Run::ZERO;
        for (first, n) in run::runs(depth) {
            run.read(s, from, at + first, n, 0.0);
            narrow(s, &run.0[..n], &mut to[first..]);
        }
    }
    to[depth..].fill(bf16::ZERO);
}

/// Rounds `from` into the first elements of `to`.
#[inline(always)]
fn narrow<S: Simd>(s: S, from: &[f32], to: &mut [bf16]) {
    for (to, from) in to[..from.len()].chunks_mut(S::LANES).zip(from.chunks(S::LANES)) {
        s.store_some(to, s.load_or(from, 0.0));
    }
}

/// The maximum to subtract: 0 where there is no finite score yet, so that 2^-inf gives 0 and not NaN.
#[inline(always)]
fn subtrahend<S: Simd>(s: S, max: S::V) -> S::V {
    s.select_lt(s.splat(f32::NEG_INFINITY), max, max, s.splat(0.0))
}

impl Work<'_> {
    /// Where the query of a row is to be put.
    #[inline(always)]
    pub(crate) fn query(&mut self, row: usize) -> &mut [f32] {
        &mut self.values[row * self.block.padded..][..self.block.depth]
    }

    /// Whether there are rows enough for register tiles, whose lanes are rows.
    #[inline(always)]
    fn tiled<S: Simd>(&self) -> bool {
        self.count > S::LANES
    }

    /// Whether few rows are multiplied by the words of keys where they lie.
    #[inline(always)]
    fn straight_words<S: Simd>(&self, kv: DType) -> bool {
        kv == DType::BF16 && self.block.depth.is_multiple_of(2 * S::LANES)
    }

    /// Takes the queries over, and starts with no keys. `WORDS`: whether scores are sums over words of two bf16.
    #[inline(always)]
    pub(crate) fn start<S: Simd, const WORDS: bool>(&mut self, s: S, kv: DType) {
        let Block { depth, padded, .. } = self.block;
        let panel = 2 * S::LANES;
        let tiled = self.tiled::<S>();
        let words = WORDS && (tiled || self.straight_words::<S>(kv));
        self.q.fill(0.0);
        for row in 0..self.count {
            let query = &mut self.values[row * padded..(row + 1) * padded];
            query[depth..].fill(0.0);
            let mut len = depth;
            if words {
                // in place: a vector is read before the words of its elements are written
                len = depth.div_ceil(2);
                let mut rounded = [bf16::ZERO; run::LEN];
                for (first, n) in run::runs(padded) {
                    narrow(s, &query[first..first + n], &mut rounded);
                    query[first / 2..(first + n) / 2].copy_from_slice(bytemuck::cast_slice(&rounded[..n]));
                }
            }
            if tiled {
                let to = &mut self.q[row / panel * panel * padded + row % panel..];
                for (to, x) in to.iter_mut().step_by(panel).zip(&query[..len]) {
                    *to = *x;
                }
            } else {
                let to = self.q.chunks_exact_mut(S::LANES).skip(row).step_by(self.count);
                for (to, x) in to.zip(query[..padded].chunks_exact(S::LANES)) {
                    to.copy_from_slice(x);
                }
            }
        }
        self.values.fill(0.0);
        self.max.fill(f32::NEG_INFINITY);
        self.sum.fill(0.0);
    }

    /// Says which keys of the next block a row sees.
    #[inline(always)]
    pub(crate) fn see(&mut self, row: usize, keys: Range<usize>) {
        self.seen[2 * row] = keys.start as u32;
        self.seen[2 * row + 1] = keys.end.max(keys.start) as u32;
    }

    #[inline(always)]
    pub(super) fn seen(&self, row: usize) -> Range<usize> {
        self.seen[2 * row] as usize..self.seen[2 * row + 1] as usize
    }

    /// The keys that any of `rows` rows, from `first` on, sees, as one range: whole words of two, which weights may be.
    #[inline(always)]
    fn wanted(&self, keys: &Keys<'_>, first: usize, rows: usize) -> Range<usize> {
        let n = keys.at.len();
        if !keys.masked {
            return 0..n;
        }
        let mut wanted = n..0;
        for seen in (first..self.count.min(first + rows)).map(|row| self.seen(row)) {
            if !seen.is_empty() {
                wanted = wanted.start.min(seen.start)..wanted.end.max(seen.end);
            }
        }
        if wanted.is_empty() { 0..0 } else { wanted.start / 2 * 2..n.min(wanted.end.next_multiple_of(2)) }
    }

    /// Adds a block of keys and values.
    #[inline(always)]
    pub(crate) fn add<S: Simd, const MR: usize, P: Products>(&mut self, s: S, keys: &Keys<'_>) {
        if self.tiled::<S>() {
            if P::WORDS {
                self.tiled_scores::<S, MR, P, true>(s, keys);
            } else {
                self.tiled_scores::<S, MR, P, false>(s, keys);
            }
            if P::WORDS && self.block.rounds {
                self.tiled_softmax::<S, true>(s, keys);
                self.tiled_values::<S, MR, P, true>(s, keys);
            } else {
                self.tiled_softmax::<S, false>(s, keys);
                self.tiled_values::<S, MR, Singles, false>(s, keys);
            }
            return;
        }
        let straight = self.block.depth.is_multiple_of(S::LANES);
        match keys.k.dtype {
            DType::BF16 if P::WORDS && self.straight_words::<S>(DType::BF16) => {
                self.few::<S, Plain<bf16, true>>(s, keys)
            }
            DType::F32 if straight => self.few::<S, Plain<f32, false>>(s, keys),
            DType::BF16 if straight => self.few::<S, Plain<bf16, false>>(s, keys),
            DType::F16 if straight => self.few::<S, Plain<f16, false>>(s, keys),
            _ => self.few_staged(s, keys),
        }
    }

    #[inline(always)]
    fn tiled_scores<S: Simd, const MR: usize, P: Products, const WORDS: bool>(
        &mut self,
        s: S,
        keys: &Keys<'_>,
    ) {
        let Block { depth, padded, rows, .. } = self.block;
        let (n, panel) = (keys.at.len(), 2 * S::LANES);
        let (steps, stride) = if WORDS { (depth.div_ceil(2), padded / 2) } else { (depth, padded) };
        for (j, &at) in keys.at.iter().enumerate() {
            let to = &mut self.k[j * stride..(j + 1) * stride];
            if WORDS {
                read_words(s, keys.k, at, depth, to);
            } else {
                read(s, keys.k, at, &mut to[..depth]);
            }
        }
        // what a register tile reads behind the last key
        let whole = if P::TILES { TILE } else { MR };
        self.k[n * stride..n.next_multiple_of(whole) * stride].fill(0.0);
        if P::TILES {
            bring(s, keys.v, keys.at, depth);
            self.multiply_scores::<P>(n, steps.div_ceil(amx::WORDS));
            for scores in self.scores.chunks_exact_mut(rows).take(n) {
                for x in scores[..self.count.next_multiple_of(S::LANES)].chunks_exact_mut(S::LANES) {
                    let scaled = s.mul(s.load(x), s.splat(keys.scores.scale));
                    s.store(x, scaled);
                }
            }
            return;
        }
        let (k, q, scores) = (self.k.as_ptr(), self.q.as_ptr(), self.scores.as_mut_ptr());
        for first in (0..self.count).step_by(panel) {
            let wanted = self.wanted(keys, first, panel);
            for key in (0..n).step_by(MR) {
                if first == 0 {
                    // values are wanted next
                    bring(s, keys.v, &keys.at[key..n.min(key + MR)], depth);
                }
                if key >= wanted.end || key + MR <= wanted.start {
                    continue;
                }
                // SAFETY: `k` has KEYS rows, a multiple of MR; q and scores have room for whole panels of rows.
                unsafe {
                    let (k, q) = (k.add(key * stride), q.add(first * padded));
                    let c = scores.add(key * rows + first);
                    tile::<S, MR, WORDS>(s, steps, k, (stride, 1), q, c, rows, Some(keys.scores.scale));
                }
            }
        }
    }

    /// Products of the keys of the block and all queries, by tiles.
    #[inline(always)]
    fn multiply_scores<P: Products>(&mut self, keys: usize, steps: usize) {
        let Block { padded, rows, .. } = self.block;
        let (k, q, scores) = (self.k.as_ptr(), self.q.as_ptr(), self.scores.as_mut_ptr());
        let float = size_of::<f32>();
        for first in (0..self.count).step_by(TILE) {
            let mut blocks = amx::Blocks {
                a_row: float * padded / 2,
                a_step: float * amx::WORDS,
                a_next: float * TILE * padded / 2,
                c_row: float * rows,
                c_next: float * TILE * rows,
                steps,
                count: keys.div_ceil(TILE),
                ..amx::Blocks::new(k, q.wrapping_add(first * padded), scores.wrapping_add(first))
            };
            // SAFETY: rows of the table that use tiles refuse devices without AMX. `k` has rows of `padded` elements for KEYS keys,
            // `q` panels of as many words at least, scores whole panels of rows for KEYS keys.
            unsafe { P::blocks(&mut blocks) }
        }
    }

    /// Adds the products of words of weights and of values, by tiles: `steps` words of each row.
    #[inline(always)]
    fn multiply_values<S: Simd, P: Products>(&mut self, s: S, steps: usize) {
        let Block { padded, rows, .. } = self.block;
        let (panel, whole) = (2 * S::LANES, steps.next_multiple_of(amx::WORDS));
        for v in self.v.chunks_exact_mut(KEYS * panel) {
            v[steps * panel..whole * panel].fill(0.0);
        }
        let float = size_of::<f32>();
        for first in (0..self.count).step_by(TILE) {
            // tiles have a row's words side by side
            let mut weights = Weights([0.0; TILE * KEYS / 2]);
            for (index, half) in (0..whole).step_by(amx::WORDS).flat_map(|i| [(i, 0), (i, S::LANES)]) {
                let mut square = [s.splat(0.0); MAX_LANES];
                for (step, words) in (index..steps).zip(&mut square[..S::LANES]) {
                    *words = s.load(&self.scores[step * rows + first + half..]);
                }
                s.transpose(&mut square);
                for (i, words) in square[..S::LANES].iter().enumerate() {
                    s.store(&mut weights.0[index * TILE + (half + i) * amx::WORDS..], *words);
                }
            }
            let (v, values) = (self.v.as_ptr(), self.values.as_mut_ptr());
            let mut blocks = amx::Blocks {
                a_row: float * amx::WORDS,
                a_step: float * TILE * amx::WORDS,
                b_next: float * KEYS * panel,
                c_row: float * padded,
                c_next: float * panel,
                steps: whole / amx::WORDS,
                count: padded / panel,
                add: 1,
                ..amx::Blocks::new(weights.0.as_ptr(), v, values.wrapping_add(first * padded))
            };
            // SAFETY: as for scores; `v` has panels of KEYS values, and values have whole panels of rows.
            unsafe { P::blocks(&mut blocks) }
        }
    }

    /// Scores become weights, or `WORDS` of the weights of two keys; lanes are rows.
    #[inline(always)]
    fn tiled_softmax<S: Simd, const WORDS: bool>(&mut self, s: S, keys: &Keys<'_>) {
        let (rows, n, padded) = (self.block.rows, keys.at.len(), self.block.padded);
        for first in (0..self.count).step_by(S::LANES) {
            let wanted = self.wanted(keys, first, S::LANES);
            if keys.scores.cap.is_some() {
                for j in wanted.clone() {
                    let at = &mut self.scores[j * rows + first..];
                    let x = s.load(at);
                    s.store(at, keys.scores.capped(s, x));
                }
            }
            if keys.masked {
                for row in first..self.count.min(first + S::LANES) {
                    let seen = self.seen(row);
                    for j in (wanted.start..seen.start.min(wanted.end))
                        .chain(seen.end.max(wanted.start)..wanted.end)
                    {
                        self.scores[j * rows + row] = f32::NEG_INFINITY;
                    }
                }
            }
            let old = s.load(&self.max[first..]);
            let mut top = old;
            for j in wanted.clone() {
                top = s.max(top, s.load(&self.scores[j * rows + first..]));
            }
            let less = subtrahend(s, top);
            let shrink = math::exp2_falling(s, s.sub(old, less));
            let mut sum = s.mul(s.load(&self.sum[first..]), shrink);
            let per = if WORDS { 2 } else { 1 };
            for j in wanted.clone().step_by(per) {
                let mut p = math::exp2_falling(s, s.sub(s.load(&self.scores[j * rows + first..]), less));
                sum = s.add(sum, p);
                let mut to = j;
                if WORDS {
                    let mut next = s.splat(0.0);
                    if j + 1 < wanted.end {
                        next = math::exp2_falling(
                            s,
                            s.sub(s.load(&self.scores[(j + 1) * rows + first..]), less),
                        );
                        sum = s.add(sum, next);
                    }
                    p = s.pairs(p, next);
                    to = j / 2;
                }
                s.store(&mut self.scores[to * rows + first..], p);
            }
            // rows of a register tile may want other keys than these do
            for step in (0..wanted.start / per).chain(wanted.end.div_ceil(per)..n.div_ceil(per)) {
                s.store(&mut self.scores[step * rows + first..], s.splat(0.0));
            }
            s.store(&mut self.sum[first..], sum);
            s.store(&mut self.max[first..], top);
            let shrink = s.to_array(shrink);
            for (row, factor) in (first..self.count.min(first + S::LANES)).zip(shrink) {
                if factor != 1.0 {
                    let factor = s.splat(factor);
                    for x in self.values[row * padded..(row + 1) * padded].chunks_exact_mut(S::LANES) {
                        let scaled = s.mul(s.load(x), factor);
                        s.store(x, scaled);
                    }
                }
            }
        }
    }

    /// Packs values into panels, or words of those of two keys; returns what is 0 where all are finite.
    #[inline(always)]
    fn pack_values<S: Simd, T: Element, const WORDS: bool>(&mut self, s: S, keys: &Keys<'_>) -> S::V {
        let (depth, panel) = (self.block.depth, 2 * S::LANES);
        let elements: &[T] = bytemuck::cast_slice(keys.v.bytes);
        let mut nothing = s.splat(0.0);
        for (step, at) in keys.at.chunks(if WORDS { 2 } else { 1 }).enumerate() {
            let low = &elements[at[0]..at[0] + depth];
            let high = at.get(1).map(|&at| &elements[at..at + depth]);
            for (i, to) in self.v.chunks_exact_mut(KEYS * panel).enumerate() {
                for half in [0, S::LANES] {
                    let first = i * panel + half;
                    let mut x = s.load(&low[first..]);
                    nothing = s.fma(x, s.splat(0.0), nothing);
                    if WORDS {
                        let mut next = s.splat(0.0);
                        if let Some(high) = high {
                            next = s.load(&high[first..]);
                            nothing = s.fma(next, s.splat(0.0), nothing);
                        }
                        x = s.pairs(x, next);
                    }
                    s.store(&mut to[step * panel + half..], x);
                }
            }
        }
        nothing
    }

    /// The same of any type and length, through f32.
    #[inline(always)]
    fn pack_staged<S: Simd, const WORDS: bool>(&mut self, s: S, keys: &Keys<'_>) -> S::V {
        let Block { depth, padded, .. } = self.block;
        let (per, panel) = (if WORDS { 2 } else { 1 }, 2 * S::LANES);
        let mut nothing = s.splat(0.0);
        for (step, at) in keys.at.chunks(per).enumerate() {
            // the keys have been used: their first rows are free
            let (low, high) = self.k.split_at_mut(padded);
            let high = &mut high[..padded];
            for (row, at) in [&mut *low, &mut *high].into_iter().zip(at) {
                read(s, keys.v, *at, &mut row[..depth]);
                row[depth..].fill(0.0);
            }
            if at.len() < per {
                high.fill(0.0);
            }
            let panels = self.v.chunks_exact_mut(KEYS * panel);
            for ((to, low), high) in panels.zip(low.chunks_exact(panel)).zip(high.chunks_exact(panel)) {
                for half in [0, S::LANES] {
                    let mut x = s.load(&low[half..]);
                    nothing = s.fma(x, s.splat(0.0), nothing);
                    if WORDS {
                        let next = s.load(&high[half..]);
                        nothing = s.fma(next, s.splat(0.0), nothing);
                        x = s.pairs(x, next);
                    }
                    s.store(&mut to[step * panel + half..], x);
                }
            }
        }
        nothing
    }

    /// Adds the weighted values; `WORDS`: weights and values are words of two keys.
    #[inline(always)]
    fn tiled_values<S: Simd, const MR: usize, P: Products, const WORDS: bool>(
        &mut self,
        s: S,
        keys: &Keys<'_>,
    ) {
        let Block { depth, padded, rows, .. } = self.block;
        let (n, panel) = (keys.at.len(), 2 * S::LANES);
        let (per, steps) = if WORDS { (2, n.div_ceil(2)) } else { (1, n) };
        let nothing = match keys.v.dtype {
            DType::F32 if depth == padded => self.pack_values::<S, f32, WORDS>(s, keys),
            DType::BF16 if depth == padded => self.pack_values::<S, bf16, WORDS>(s, keys),
            DType::F16 if depth == padded => self.pack_values::<S, f16, WORDS>(s, keys),
            _ => self.pack_staged::<S, WORDS>(s, keys),
        };
        // 0 times what is not finite is NaN: where a row does not see such a value, it must not meet it
        let apart = keys.masked && s.reduce_add(nothing) != 0.0;
        if P::TILES && !apart {
            bring(s, keys.k, keys.next, depth);
            self.multiply_values::<S, P>(s, steps);
            return;
        }
        let (scores, v, values) = (self.scores.as_ptr(), self.v.as_ptr(), self.values.as_mut_ptr());
        for first in (0..padded).step_by(panel) {
            let v = v.wrapping_add(first * KEYS);
            if apart {
                for row in 0..self.count {
                    // SAFETY: one row of what the loop below goes through, and only the keys it sees.
                    unsafe {
                        let c = values.add(row * padded + first);
                        add_seen::<S, WORDS>(s, self.seen(row), scores.add(row), rows, v, c);
                    }
                }
                continue;
            }
            for (i, row) in (0..self.count).step_by(MR).enumerate() {
                // and then the keys of the next block
                if let Some(at) = keys.next.chunks(MR).nth(i)
                    && first == 0
                {
                    bring(s, keys.k, at, depth);
                }
                let wanted = self.wanted(keys, row, MR);
                let (start, end) = (wanted.start / per, wanted.end.div_ceil(per));
                // SAFETY: scores and values have room for whole tiles of rows; `v` has panels of KEYS values.
                unsafe {
                    let (scores, v) = (scores.add(start * rows + row), v.add(start * panel));
                    let c = values.add(row * padded + first);
                    tile::<S, MR, WORDS>(s, end - start, scores, (1, rows), v, c, padded, None);
                }
            }
        }
    }
}

/// Adds the values of the keys that a row sees to two vectors, one by one. Its weights, or the words of those of two keys, are `stride`
/// apart.
///
/// # Safety
/// The weights and values of these keys exist, and C is written by nobody else.
#[inline(always)]
unsafe fn add_seen<S: Simd, const WORDS: bool>(
    s: S,
    keys: Range<usize>,
    weights: *const f32,
    stride: usize,
    v: *const f32,
    c: *mut f32,
) {
    // SAFETY: addresses are within the operands by the contract.
    unsafe {
        for half in [0, S::LANES] {
            let mut sum = s.load_f32(c.add(half));
            for key in keys.clone() {
                let step = if WORDS { key / 2 } else { key };
                let mut weight = s.splat(*weights.add(step * stride));
                let mut x = s.load_f32(v.add(step * 2 * S::LANES + half));
                if WORDS {
                    weight = s.halves(weight)[key % 2];
                    x = s.halves(x)[key % 2];
                }
                sum = s.fma(weight, x, sum);
            }
            s.store_f32(c.add(half), sum);
        }
    }
}
