//! A lane's working memory of an attention unit, and what is done with one block of keys: scores, the running softmax, values.
//! [`super::attention`] says how units and blocks come about.

use super::run::{Source, read};
use crate::simd::{Element, Simd, math};
use half::{bf16, f16};
use perjoule_kernels::DType;
use std::ops::Range;

/// Keys of a block: a multiple of every register tile.
pub(crate) const KEYS: usize = 96;

/// Sizes of the working memory, in floats.
#[derive(Clone, Copy)]
pub(crate) struct Block {
    /// Length of a head, and the same in whole panels of two vectors.
    depth: usize,
    padded: usize,
    /// Rows in whole panels, and with room for a register tile.
    lanes: usize,
    rows: usize,
}

/// Keys and values of a block.
pub(crate) struct Keys<'a> {
    pub(crate) k: Source<'a>,
    pub(crate) v: Source<'a>,
    /// First element of each key's and value's vector.
    pub(crate) at: &'a [usize],
    /// Whether a row does not see all of them.
    pub(crate) masked: bool,
    pub(crate) soft_cap: Option<f32>,
}

/// Maximum, sum and values of a unit's rows over some of the keys.
pub(crate) struct Part<'a> {
    max: &'a [f32],
    sum: &'a [f32],
    values: &'a [f32],
    padded: usize,
}

impl<'a> Part<'a> {
    /// Largest score of a row; -inf when it saw none.
    #[inline(always)]
    pub(crate) fn max(&self, row: usize) -> f32 {
        self.max[row]
    }

    /// Sum of `exp(score - max)`.
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
    block: Block,
    /// Rows in use.
    count: usize,
    max: &'a mut [f32],
    sum: &'a mut [f32],
    values: &'a mut [f32],
    /// Scaled queries: panels of rows (`[panel][depth][row]`) for register tiles, else row by row.
    q: &'a mut [f32],
    /// `[key][row]` for register tiles, else `[row][key]`.
    scores: &'a mut [f32],
    k: &'a mut [f32],
    /// Panels along the head (`[panel][key][element]`) for register tiles, else key by key.
    v: &'a mut [f32],
    /// First and last key of the block that each row sees.
    seen: &'a mut [u32],
}

impl Block {
    /// For up to `rows` rows of `depth` elements, vectors of `vector` lanes and register tiles of `tile` rows.
    pub(crate) fn new(rows: usize, depth: usize, vector: usize, tile: usize) -> Self {
        let panel = 2 * vector;
        let lanes = rows.next_multiple_of(panel);
        Block {
            depth,
            padded: depth.next_multiple_of(panel),
            lanes,
            rows: (lanes + tile).next_multiple_of(panel),
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

/// A register tile: `c[i][j] (+)= sum_p a[i][p] b[p][j]` for `MR` rows and two vectors of columns. Row `i` of A starts at `i * rows`,
/// its elements are `cols` apart; B is a panel; rows of C are `ldc` apart.
///
/// # Safety
/// All of these elements exist, and C is written by nobody else.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "a micro-kernel: the operands with their strides")]
unsafe fn tile<S: Simd, const MR: usize>(
    s: S,
    depth: usize,
    a: *const f32,
    (rows, cols): (usize, usize),
    b: *const f32,
    c: *mut f32,
    ldc: usize,
    add: bool,
) {
    // SAFETY: addresses are within the operands by the contract.
    unsafe {
        let mut sums = [[s.splat(0.0); 2]; MR];
        if add {
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = [s.load_f32(c.add(i * ldc)), s.load_f32(c.add(i * ldc + S::LANES))];
            }
        }
        for p in 0..depth {
            let b = b.add(p * 2 * S::LANES);
            let (left, right) = (s.load_f32(b), s.load_f32(b.add(S::LANES)));
            for (i, sum) in sums.iter_mut().enumerate() {
                let x = s.splat(*a.add(i * rows + p * cols));
                *sum = [s.fma(x, left, sum[0]), s.fma(x, right, sum[1])];
            }
        }
        for (i, sum) in sums.iter().enumerate() {
            s.store_f32(c.add(i * ldc), sum[0]);
            s.store_f32(c.add(i * ldc + S::LANES), sum[1]);
        }
    }
}

/// Scores of `R` rows and `N` keys: dot products over `vectors` vectors. Row `r` of q starts at `r * ldq`, that of the scores at
/// `r * KEYS`.
///
/// # Safety
/// All of these elements exist, and the scores are written by nobody else.
#[inline(always)]
unsafe fn dots<S: Simd, T: Element, const R: usize, const N: usize>(
    s: S,
    vectors: usize,
    q: *const f32,
    ldq: usize,
    keys: [*const T; N],
    scores: *mut f32,
) {
    // SAFETY: addresses are within the operands by the contract.
    unsafe {
        let mut sums = [[s.splat(0.0); N]; R];
        for i in (0..vectors).map(|i| i * S::LANES) {
            let mut x = [s.splat(0.0); N];
            for (x, key) in x.iter_mut().zip(&keys) {
                *x = T::load(s, key.add(i));
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let q = s.load_f32(q.add(r * ldq + i));
                for (sum, x) in sums.iter_mut().zip(&x) {
                    *sum = s.fma(q, *x, *sum);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            for (j, sum) in sums.iter().enumerate() {
                *scores.add(r * KEYS + j) = s.reduce_add(*sum);
            }
        }
    }
}

/// Adds `weights[r][j] v[j]` over the values `at` to `R` rows, `C` vectors of each. Row `r` of the weights starts at `r * KEYS`, that
/// of the result at `r * ldc`.
///
/// # Safety
/// All of these elements exist, and the result is written by nobody else.
#[inline(always)]
unsafe fn weigh<S: Simd, T: Element, const R: usize, const C: usize>(
    s: S,
    at: &[usize],
    v: *const T,
    weights: *const f32,
    c: *mut f32,
    ldc: usize,
) {
    // SAFETY: addresses are within the operands by the contract.
    unsafe {
        let mut sums = [[s.splat(0.0); C]; R];
        for (r, sums) in sums.iter_mut().enumerate() {
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = s.load_f32(c.add(r * ldc + i * S::LANES));
            }
        }
        for (j, &at) in at.iter().enumerate() {
            let mut x = [s.splat(0.0); C];
            for (i, x) in x.iter_mut().enumerate() {
                *x = T::load(s, v.add(at + i * S::LANES));
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let weight = s.splat(*weights.add(r * KEYS + j));
                for (sum, x) in sums.iter_mut().zip(&x) {
                    *sum = s.fma(weight, *x, *sum);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            for (i, sum) in sums.iter().enumerate() {
                s.store_f32(c.add(r * ldc + i * S::LANES), *sum);
            }
        }
    }
}

#[inline(always)]
fn capped<S: Simd>(s: S, x: S::V, cap: Option<f32>) -> S::V {
    match cap {
        Some(cap) => s.mul(s.splat(cap), math::tanh(s, s.div(x, s.splat(cap)))),
        None => x,
    }
}

/// The maximum to subtract: 0 where there is no finite score yet, so that `exp(-inf)` gives 0 and not NaN.
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

    /// Takes the queries over, times `scale`, and starts with no keys.
    #[inline(always)]
    pub(crate) fn start<S: Simd>(&mut self, _: S, scale: f32) {
        let (padded, panel) = (self.block.padded, 2 * S::LANES);
        self.q.fill(0.0);
        for row in 0..self.count {
            let query = &self.values[row * padded..][..self.block.depth];
            if self.tiled::<S>() {
                let to = &mut self.q[row / panel * panel * padded + row % panel..];
                for (to, x) in to.iter_mut().step_by(panel).zip(query) {
                    *to = x * scale;
                }
            } else {
                for (to, x) in self.q[row * padded..].iter_mut().zip(query) {
                    *to = x * scale;
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
    fn seen(&self, row: usize) -> Range<usize> {
        self.seen[2 * row] as usize..self.seen[2 * row + 1] as usize
    }

    /// Adds a block of keys and values.
    #[inline(always)]
    pub(crate) fn add<S: Simd, const MR: usize>(&mut self, s: S, keys: &Keys<'_>) {
        if self.tiled::<S>() {
            self.tiled_scores::<S, MR>(s, keys);
            self.tiled_softmax(s, keys);
            self.tiled_values::<S, MR>(s, keys);
            return;
        }
        let straight = self.block.depth.is_multiple_of(S::LANES);
        match keys.k.dtype {
            DType::F32 if straight => self.few::<S, f32>(s, keys),
            DType::BF16 if straight => self.few::<S, bf16>(s, keys),
            DType::F16 if straight => self.few::<S, f16>(s, keys),
            _ => self.few_staged(s, keys),
        }
    }

    #[inline(always)]
    fn tiled_scores<S: Simd, const MR: usize>(&mut self, s: S, keys: &Keys<'_>) {
        let Block { depth, padded, rows, .. } = self.block;
        let (n, panel) = (keys.at.len(), 2 * S::LANES);
        for (j, &at) in keys.at.iter().enumerate() {
            read(s, keys.k, at, &mut self.k[j * padded..][..depth]);
        }
        // what a register tile reads behind the last key
        self.k[n * padded..n.next_multiple_of(MR) * padded].fill(0.0);
        let (k, q, scores) = (self.k.as_ptr(), self.q.as_ptr(), self.scores.as_mut_ptr());
        for first in (0..self.count).step_by(panel) {
            for key in (0..n).step_by(MR) {
                // SAFETY: `k` has KEYS rows, a multiple of MR; q and scores have room for whole panels of rows.
                unsafe {
                    let (k, q) = (k.add(key * padded), q.add(first * padded));
                    let c = scores.add(key * rows + first);
                    tile::<S, MR>(s, depth, k, (padded, 1), q, c, rows, false);
                }
            }
        }
    }

    /// Scores become weights; lanes are rows.
    #[inline(always)]
    fn tiled_softmax<S: Simd>(&mut self, s: S, keys: &Keys<'_>) {
        let (rows, n, padded) = (self.block.rows, keys.at.len(), self.block.padded);
        for first in (0..self.count).step_by(S::LANES) {
            if keys.soft_cap.is_some() {
                for j in 0..n {
                    let at = &mut self.scores[j * rows + first..];
                    let x = s.load(at);
                    s.store(at, capped(s, x, keys.soft_cap));
                }
            }
            if keys.masked {
                for row in first..self.count.min(first + S::LANES) {
                    let seen = self.seen(row);
                    for j in (0..seen.start).chain(seen.end..n) {
                        self.scores[j * rows + row] = f32::NEG_INFINITY;
                    }
                }
            }
            let old = s.load(&self.max[first..]);
            let mut top = old;
            for j in 0..n {
                top = s.max(top, s.load(&self.scores[j * rows + first..]));
            }
            let less = subtrahend(s, top);
            let shrink = math::exp(s, s.sub(old, less));
            let mut sum = s.mul(s.load(&self.sum[first..]), shrink);
            for j in 0..n {
                let at = &mut self.scores[j * rows + first..];
                let p = math::exp(s, s.sub(s.load(at), less));
                s.store(at, p);
                sum = s.add(sum, p);
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

    #[inline(always)]
    fn tiled_values<S: Simd, const MR: usize>(&mut self, s: S, keys: &Keys<'_>) {
        let Block { depth, padded, rows, .. } = self.block;
        let (n, panel) = (keys.at.len(), 2 * S::LANES);
        let mut nothing = s.splat(0.0);
        for (j, &at) in keys.at.iter().enumerate() {
            // the keys have been used: their first row is free
            let row = &mut self.k[..padded];
            read(s, keys.v, at, &mut row[..depth]);
            row[depth..].fill(0.0);
            for (to, from) in self.v.chunks_exact_mut(KEYS * panel).zip(row.chunks_exact(panel)) {
                let (left, right) = (s.load(from), s.load(&from[S::LANES..]));
                nothing = s.fma(left, s.splat(0.0), s.fma(right, s.splat(0.0), nothing));
                s.store(&mut to[j * panel..], left);
                s.store(&mut to[j * panel + S::LANES..], right);
            }
        }
        // 0 times what is not finite is NaN: where a row does not see such a value, it must not meet it
        let apart = keys.masked && s.reduce_add(nothing) != 0.0;
        let (scores, v, values) = (self.scores.as_ptr(), self.v.as_ptr(), self.values.as_mut_ptr());
        for first in (0..padded).step_by(panel) {
            let v = v.wrapping_add(first * KEYS);
            if apart {
                for row in 0..self.count {
                    let seen = self.seen(row);
                    if seen.is_empty() {
                        continue;
                    }
                    // SAFETY: one row of what the loop below goes through, and only the keys it sees.
                    unsafe {
                        let a = scores.add(seen.start * rows + row);
                        let (b, c) = (v.add(seen.start * panel), values.add(row * padded + first));
                        tile::<S, 1>(s, seen.len(), a, (1, rows), b, c, padded, true);
                    }
                }
                continue;
            }
            for row in (0..self.count).step_by(MR) {
                // SAFETY: scores and values have room for whole tiles of rows; `v` has panels of KEYS values.
                unsafe {
                    let c = values.add(row * padded + first);
                    tile::<S, MR>(s, n, scores.add(row), (1, rows), v, c, padded, true);
                }
            }
        }
    }

    /// Keys and values converted to f32 first.
    #[inline(always)]
    fn few_staged<S: Simd>(&mut self, s: S, keys: &Keys<'_>) {
        let Block { depth, padded, .. } = self.block;
        let mut at = [0; KEYS];
        for (j, &from) in keys.at.iter().enumerate() {
            at[j] = j * padded;
            for (to, source) in [(&mut *self.k, keys.k), (&mut *self.v, keys.v)] {
                let to = &mut to[j * padded..(j + 1) * padded];
                read(s, source, from, &mut to[..depth]);
                to[depth..].fill(0.0);
            }
        }
        let at = &at[..keys.at.len()];
        let (k, v) = (self.k.as_ptr(), self.v.as_ptr());
        // SAFETY: `at` are rows of k and v, which have `padded` elements; neither is written.
        unsafe { self.few_at(s, keys, at, k, v, padded / S::LANES) };
    }

    /// Keys and values as they are stored.
    #[inline(always)]
    fn few<S: Simd, T: Element>(&mut self, s: S, keys: &Keys<'_>) {
        let k: &[T] = bytemuck::cast_slice(keys.k.bytes);
        let v: &[T] = bytemuck::cast_slice(keys.v.bytes);
        let end = keys.at.iter().fold(0, |end, &at| end.max(at)) + self.block.depth;
        assert!(end <= k.len() && end <= v.len(), "a vector outside the cache");
        // SAFETY: vectors of `depth` elements at `at` lie within both, as just checked.
        unsafe { self.few_at(s, keys, keys.at, k.as_ptr(), v.as_ptr(), self.block.depth / S::LANES) };
    }

    /// # Safety
    /// At each of `at`, `vectors` vectors can be read from k and v.
    #[inline(always)]
    unsafe fn few_at<S: Simd, T: Element>(
        &mut self,
        s: S,
        keys: &Keys<'_>,
        at: &[usize],
        k: *const T,
        v: *const T,
        vectors: usize,
    ) {
        // SAFETY: by the contract; rows are below `count`.
        unsafe {
            let mut row = 0;
            while row < self.count {
                match self.count - row {
                    1 => self.scores_of::<S, T, 1, 6>(s, row, at, k, vectors),
                    2 | 3 => self.scores_of::<S, T, 2, 4>(s, row, at, k, vectors),
                    _ => self.scores_of::<S, T, 4, 2>(s, row, at, k, vectors),
                }
                row += [1, 1, 2, 2, 4][(self.count - row).min(4)];
            }
            for row in 0..self.count {
                self.softmax_of(s, row, at.len(), keys.soft_cap);
            }
            let mut row = 0;
            while row < self.count {
                if keys.masked {
                    // see `tiled_values` for why a row goes through no more than it sees
                    let seen = self.seen(row);
                    self.values_of::<S, T, 1, 4>(s, row, &at[seen.clone()], seen.start, v, vectors);
                    row += 1;
                    continue;
                }
                match self.count - row {
                    1 => self.values_of::<S, T, 1, 8>(s, row, at, 0, v, vectors),
                    2 | 3 => self.values_of::<S, T, 2, 4>(s, row, at, 0, v, vectors),
                    _ => self.values_of::<S, T, 4, 2>(s, row, at, 0, v, vectors),
                }
                row += [1, 1, 2, 2, 4][(self.count - row).min(4)];
            }
        }
    }

    /// # Safety
    /// As [`Work::few_at`]; rows `row..row + R` exist.
    #[inline(always)]
    unsafe fn scores_of<S: Simd, T: Element, const R: usize, const N: usize>(
        &mut self,
        s: S,
        row: usize,
        at: &[usize],
        k: *const T,
        vectors: usize,
    ) {
        let padded = self.block.padded;
        let (q, scores) = (self.q[row * padded..].as_ptr(), self.scores[row * KEYS..].as_mut_ptr());
        let mut j = 0;
        // SAFETY: by the contract; at most `at.len()` scores of each row are written.
        unsafe {
            while j + N <= at.len() {
                let mut keys = [k; N];
                for (key, &at) in keys.iter_mut().zip(&at[j..]) {
                    *key = k.add(at);
                }
                dots::<S, T, R, N>(s, vectors, q, padded, keys, scores.add(j));
                j += N;
            }
            while j < at.len() {
                dots::<S, T, R, 1>(s, vectors, q, padded, [k.add(at[j])], scores.add(j));
                j += 1;
            }
        }
    }

    /// Scores of a row become weights.
    #[inline(always)]
    fn softmax_of<S: Simd>(&mut self, s: S, row: usize, n: usize, cap: Option<f32>) {
        let seen = self.seen(row);
        let scores = &mut self.scores[row * KEYS..][..n.next_multiple_of(S::LANES)];
        if cap.is_some() {
            for x in scores.chunks_exact_mut(S::LANES) {
                let y = capped(s, s.load(x), cap);
                s.store(x, y);
            }
        }
        scores[..seen.start].fill(f32::NEG_INFINITY);
        scores[seen.end..].fill(f32::NEG_INFINITY);
        let old = self.max[row];
        let mut top = s.splat(old);
        for x in scores.chunks_exact(S::LANES) {
            top = s.max(top, s.load(x));
        }
        let top = s.reduce_max(top);
        let less = if top == f32::NEG_INFINITY { 0.0 } else { top };
        let shrink = (old - less).exp();
        let mut sum = s.splat(0.0);
        for x in scores.chunks_exact_mut(S::LANES) {
            let p = math::exp(s, s.sub(s.load(x), s.splat(less)));
            s.store(x, p);
            sum = s.add(sum, p);
        }
        self.sum[row] = self.sum[row] * shrink + s.reduce_add(sum);
        self.max[row] = top;
        if shrink != 1.0 {
            let padded = self.block.padded;
            for x in self.values[row * padded..(row + 1) * padded].chunks_exact_mut(S::LANES) {
                let scaled = s.mul(s.load(x), s.splat(shrink));
                s.store(x, scaled);
            }
        }
    }

    /// # Safety
    /// As [`Work::few_at`]; rows `row..row + R` exist. The first of `at` is key `first` of the block.
    #[inline(always)]
    unsafe fn values_of<S: Simd, T: Element, const R: usize, const C: usize>(
        &mut self,
        s: S,
        row: usize,
        at: &[usize],
        first: usize,
        v: *const T,
        vectors: usize,
    ) {
        let padded = self.block.padded;
        let weights = self.scores[row * KEYS + first..].as_ptr();
        let values = self.values[row * padded..].as_mut_ptr();
        let mut i = 0;
        // SAFETY: by the contract.
        unsafe {
            while i + C <= vectors {
                let (v, c) = (v.add(i * S::LANES), values.add(i * S::LANES));
                weigh::<S, T, R, C>(s, at, v, weights, c, padded);
                i += C;
            }
            while i < vectors {
                let (v, c) = (v.add(i * S::LANES), values.add(i * S::LANES));
                weigh::<S, T, R, 1>(s, at, v, weights, c, padded);
                i += 1;
            }
        }
    }
}
