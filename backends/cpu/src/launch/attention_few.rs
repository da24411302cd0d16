//! A block of keys for few rows (decode): keys and values are read where they lie, lanes along the head.

use super::attention_block::{self, Block, KEYS, Keys, Work};
use super::run::read;
use crate::simd::{self, Element, Kernel, Simd, math};
use std::marker::PhantomData;

/// Values that are gone through vector by vector before the next ones are, so that sums rest in registers meanwhile; and how many keys or
/// values before its use one is asked for. All of a block would be read in steps that the processor does not foresee, and what is asked
/// for must stay in the first-level cache.
#[inline(always)]
fn group<S: Simd, C: Cache>() -> usize {
    let most = if S::REGISTERS >= 32 { 32 } else { 16 };
    if C::bytes(1) > 2 { most / 2 } else { most }
}

/// How the vectors of a head lie in the cache.
pub(super) trait Cache: Copy {
    /// Whether keys are multiplied as words of two bf16, as the queries then are.
    const WORDS: bool;
    /// Bytes of `n` elements, which are whole blocks.
    fn bytes(n: usize) -> usize;
    /// Vector `i` of those that start at `from`.
    ///
    /// # Safety
    /// Its elements are readable.
    unsafe fn load<S: Simd>(s: S, from: *const u8, i: usize) -> S::V;
}

/// Plain elements; `WORDS` of which are multiplied as such by queries.
#[derive(Clone, Copy)]
pub(super) struct Plain<T, const WORDS: bool>(PhantomData<T>);

impl<T: Element, const WORDS: bool> Cache for Plain<T, WORDS> {
    const WORDS: bool = WORDS;

    #[inline(always)]
    fn bytes(n: usize) -> usize {
        n * size_of::<T>()
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, from: *const u8, i: usize) -> S::V {
        // SAFETY: the same contract.
        unsafe { T::load(s, from.cast::<T>().add(i * S::LANES)) }
    }
}

/// Vectors a [`group`] ahead of those in use, which are asked for line by line, in the order in which they lie: what is on its way is
/// then never more than a core can wait for, and the processor sees that it is read straight on. Where none is left the last one is
/// asked for again, which costs less than to look whether one is.
#[derive(Clone, Copy)]
struct Ahead<'a> {
    from: *const u8,
    /// Bytes of a vector.
    len: usize,
    /// Vectors of this block, and those of the next one that come then.
    at: &'a [usize],
    next: &'a [usize],
    last: Lines,
}

/// The lines of a vector that have not been asked for.
#[derive(Clone, Copy)]
struct Lines {
    first: *const u8,
    last: *const u8,
}

impl Lines {
    /// Asks for those of the next `bytes` bytes.
    #[inline(always)]
    fn bring<S: Simd>(&mut self, s: S, bytes: usize) {
        for line in (0..bytes).step_by(64) {
            s.prefetch(self.first.wrapping_add(line));
        }
        self.first = self.first.wrapping_add(bytes).min(self.last);
    }
}

impl<'a> Ahead<'a> {
    #[inline(always)]
    fn new(from: *const u8, len: usize, [at, next]: [&'a [usize]; 2]) -> Self {
        Ahead { from, len, at, next, last: Lines { first: from, last: from } }
    }

    /// The next vector.
    #[inline(always)]
    fn vector<C: Cache>(&mut self) -> Lines {
        if self.at.is_empty() {
            self.at = std::mem::take(&mut self.next);
        }
        if let Some((at, rest)) = self.at.split_first() {
            let first = self.from.wrapping_add(C::bytes(*at));
            self.last = Lines { first, last: first.wrapping_add(self.len - 1) };
            self.at = rest;
        }
        self.last
    }
}

/// Dot products of `R` rows and all keys, `N` at a time. Vector `i` of row `r` of q starts at `i * ldq + r * LANES`, the scores of the row
/// at `r * KEYS`.
struct Scores<'a, C, const R: usize, const N: usize> {
    q: *const f32,
    ldq: usize,
    k: *const u8,
    at: &'a [usize],
    /// Vectors of a key, of words where those are multiplied.
    vectors: usize,
    scores: *mut f32,
    ahead: Ahead<'a>,
    cache: PhantomData<C>,
}

impl<C: Cache, const R: usize, const N: usize> Kernel for Scores<'_, C, R, N> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        for (i, group) in self.at.chunks(N).enumerate() {
            // SAFETY: `scores_of`, which alone makes one, has seen to it that rows, keys and scores exist.
            unsafe { self.few(s, group, self.scores.add(i * N)) };
        }
    }
}

impl<C: Cache, const R: usize, const N: usize> Scores<'_, C, R, N> {
    /// Those of the keys `at`, up to `N` of them.
    ///
    /// # Safety
    /// That of [`Work::scores_of`].
    #[inline(always)]
    unsafe fn few<S: Simd>(&mut self, s: S, at: &[usize], scores: *mut f32) {
        let step = if C::WORDS { 2 * S::LANES } else { S::LANES };
        // SAFETY: by the contract.
        unsafe {
            // behind the last key it is read again; there is room for its scores, which nobody looks at
            const { assert!(KEYS.is_multiple_of(N)) };
            let mut keys = [self.k; N];
            for (j, key) in keys.iter_mut().enumerate() {
                *key = self.k.add(C::bytes(at[j.min(at.len() - 1)]));
            }
            let mut sums = [[s.splat(0.0); N]; R];
            let mut i = 0;
            for n in 1..=N {
                let mut lines = self.ahead.vector::<C>();
                let end = self.vectors * n / N;
                if i == end {
                    // a key has fewer vectors than there are keys
                    lines.bring(s, self.ahead.len);
                }
                while i < end {
                    lines.bring(s, (N * C::bytes(step)).min(self.ahead.len));
                    self.dot(s, i, &keys, &mut sums);
                    i += 1;
                }
            }
            let mut all = [s.splat(0.0); 16];
            for (to, sum) in all.iter_mut().zip(sums.as_flattened()) {
                *to = *sum;
            }
            let all = s.reduce_adds(&all);
            for (r, sums) in all[..R * N].as_chunks::<N>().0.iter().enumerate() {
                for (j, sum) in sums.iter().enumerate() {
                    *scores.add(r * KEYS + j) = *sum;
                }
            }
        }
    }

    /// Adds the products of vector `i`.
    ///
    /// # Safety
    /// It exists.
    #[inline(always)]
    unsafe fn dot<S: Simd>(&self, s: S, i: usize, keys: &[*const u8; N], sums: &mut [[S::V; N]; R]) {
        // SAFETY: by the contract.
        unsafe {
            let mut x = [s.splat(0.0); N];
            for (x, key) in x.iter_mut().zip(keys) {
                *x = match C::WORDS {
                    true => s.load_f32(key.cast::<f32>().add(i * S::LANES)),
                    false => C::load(s, *key, i),
                };
            }
            let q = self.q.add(i * self.ldq);
            for (r, sums) in sums.iter_mut().enumerate() {
                let q = s.load_f32(q.add(r * S::LANES));
                for (sum, x) in sums.iter_mut().zip(&x) {
                    *sum = if C::WORDS { s.dot_pairs(q, *x, *sum) } else { s.fma(q, *x, *sum) };
                }
            }
        }
    }
}

/// Adds weighted values to the results of `R` rows, `N` vectors of a group of values at a time. Row `r` of the weights starts at
/// `r * KEYS`, that of the results at `r * ldc`.
struct Values<'a, C, const R: usize, const N: usize> {
    weights: *const f32,
    v: *const u8,
    at: &'a [usize],
    /// Vectors of a value.
    vectors: usize,
    values: *mut f32,
    ldc: usize,
    ahead: Ahead<'a>,
    cache: PhantomData<C>,
}

impl<C: Cache, const R: usize, const N: usize> Kernel for Values<'_, C, R, N> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let pieces = if self.vectors < N { self.vectors.max(1) } else { self.vectors / N };
        for (index, at) in self.at.chunks(group::<S, C>()).enumerate() {
            // as many values are asked for as are added, evenly
            let segment = at.len().div_ceil(at.len().div_ceil(pieces));
            let mut asks = at.len();
            // SAFETY: `values_of`, which alone makes one, has seen to it that weights, values and results exist.
            unsafe {
                let weights = self.weights.add(index * group::<S, C>());
                let mut i = 0;
                while i + N <= self.vectors {
                    self.weigh::<S, N>(s, at, i, weights, segment, &mut asks);
                    i += N;
                }
                while i < self.vectors {
                    self.weigh::<S, 1>(s, at, i, weights, segment, &mut asks);
                    i += 1;
                }
            }
        }
    }
}

impl<C: Cache, const R: usize, const N: usize> Values<'_, C, R, N> {
    /// `M` vectors from vector `first` on. For each `segment` values one is asked for, up to `asks` of them.
    ///
    /// # Safety
    /// That of [`Work::values_of`]; there are so many vectors, and a weight of each row for each of `at`.
    #[inline(always)]
    unsafe fn weigh<S: Simd, const M: usize>(
        &mut self,
        s: S,
        at: &[usize],
        first: usize,
        mut weights: *const f32,
        segment: usize,
        asks: &mut usize,
    ) {
        // SAFETY: by the contract.
        unsafe {
            let c = self.values.add(first * S::LANES);
            let mut sums = [[s.splat(0.0); M]; R];
            for (r, sums) in sums.iter_mut().enumerate() {
                for (i, sum) in sums.iter_mut().enumerate() {
                    *sum = s.load_f32(c.add(r * self.ldc + i * S::LANES));
                }
            }
            for at in at.chunks(segment) {
                let mut lines = self.ahead.last;
                if *asks > 0 {
                    *asks -= 1;
                    lines = self.ahead.vector::<C>();
                }
                for at in at {
                    lines.bring(s, C::bytes(M * S::LANES));
                    self.add(s, first, *at, weights, &mut sums);
                    weights = weights.add(1);
                }
            }
            for (r, sums) in sums.iter().enumerate() {
                for (i, sum) in sums.iter().enumerate() {
                    s.store_f32(c.add(r * self.ldc + i * S::LANES), *sum);
                }
            }
        }
    }

    /// Adds `M` vectors of the value `at` from vector `first` on.
    ///
    /// # Safety
    /// They exist, and so do the weights.
    #[inline(always)]
    unsafe fn add<S: Simd, const M: usize>(
        &self,
        s: S,
        first: usize,
        at: usize,
        weights: *const f32,
        sums: &mut [[S::V; M]; R],
    ) {
        // SAFETY: by the contract.
        unsafe {
            let v = self.v.add(C::bytes(at));
            let mut x = [s.splat(0.0); M];
            for (i, x) in x.iter_mut().enumerate() {
                *x = C::load(s, v, first + i);
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let weight = s.splat(*weights.add(r * KEYS));
                for (sum, x) in sums.iter_mut().zip(&x) {
                    *sum = s.fma(weight, *x, *sum);
                }
            }
        }
    }
}

impl Work<'_> {
    /// Keys and values converted to f32 first.
    #[inline(always)]
    pub(super) fn few_staged<S: Simd>(&mut self, s: S, keys: &Keys<'_>) {
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
        let (k, v) = (self.k.as_ptr().cast(), self.v.as_ptr().cast());
        // SAFETY: `at` are rows of k and v, which have `padded` elements; neither is written.
        unsafe { self.few_at::<S, Plain<f32, false>>(s, keys, at, [k, v], padded, [&[]; 2]) };
    }

    /// Keys and values as they are stored.
    #[inline(always)]
    pub(super) fn few<S: Simd, C: Cache>(&mut self, s: S, keys: &Keys<'_>) {
        let depth = self.block.depth;
        let end = C::bytes(keys.at.iter().fold(0, |end, &at| end.max(at)) + depth);
        let [k, v] = [keys.k, keys.v].map(|from| {
            assert!(end <= from.bytes.len(), "a vector outside the cache");
            from.bytes.as_ptr()
        });
        let ahead = [
            &keys.at[keys.at.len().min(group::<S, C>())..],
            &keys.next[..keys.next.len().min(group::<S, C>())],
        ];
        // SAFETY: vectors of `depth` elements at `at` lie within both, as just checked.
        unsafe { self.few_at::<S, C>(s, keys, keys.at, [k, v], depth, ahead) };
    }

    /// # Safety
    /// At each of `at`, `depth` elements can be read from k and v: whole vectors, of words where keys are multiplied as such.
    #[inline(always)]
    unsafe fn few_at<S: Simd, C: Cache>(
        &mut self,
        s: S,
        keys: &Keys<'_>,
        at: &[usize],
        [k, v]: [*const u8; 2],
        depth: usize,
        ahead: [&[usize]; 2],
    ) {
        let vectors = depth / S::LANES;
        let len = C::bytes(depth);
        let [mut ahead_k, mut ahead_v] = [Ahead::new(k, len, ahead), Ahead::new(v, len, ahead)];
        // SAFETY: by the contract; rows are below `count`.
        unsafe {
            let mut row = 0;
            while row < self.count {
                let (cache, ahead) = ((k, vectors), ahead_k);
                // as many sums as registers allow
                match (self.count - row, S::REGISTERS >= 32) {
                    (1, true) => self.scores_of::<S, C, 1, 16>(s, row, at, cache, ahead),
                    (2 | 3, true) => self.scores_of::<S, C, 2, 8>(s, row, at, cache, ahead),
                    (_, true) => self.scores_of::<S, C, 4, 4>(s, row, at, cache, ahead),
                    (1, false) => self.scores_of::<S, C, 1, 8>(s, row, at, cache, ahead),
                    (2 | 3, false) => self.scores_of::<S, C, 2, 4>(s, row, at, cache, ahead),
                    (_, false) => self.scores_of::<S, C, 4, 3>(s, row, at, cache, ahead),
                }
                // what is asked for is asked for once
                ahead_k = Ahead::new(k, len, [&[]; 2]);
                row += [1, 1, 2, 2, 4][(self.count - row).min(4)];
            }
            for row in 0..self.count {
                self.softmax_of(s, row, at.len(), keys.scores);
            }
            let mut row = 0;
            while row < self.count {
                let (cache, ahead) = ((v, vectors), ahead_v);
                if keys.masked {
                    // see `tiled_values` for why a row goes through no more than it sees
                    let seen = self.seen(row);
                    self.values_of::<S, C, 1, 4>(s, row, &at[seen.clone()], seen.start, cache, ahead);
                    ahead_v = Ahead::new(v, len, [&[]; 2]);
                    row += 1;
                    continue;
                }
                match (self.count - row, S::REGISTERS >= 32) {
                    (1, _) => self.values_of::<S, C, 1, 8>(s, row, at, 0, cache, ahead),
                    (2 | 3, _) => self.values_of::<S, C, 2, 4>(s, row, at, 0, cache, ahead),
                    (_, true) => self.values_of::<S, C, 4, 4>(s, row, at, 0, cache, ahead),
                    (_, false) => self.values_of::<S, C, 4, 2>(s, row, at, 0, cache, ahead),
                }
                ahead_v = Ahead::new(v, len, [&[]; 2]);
                row += [1, 1, 2, 2, 4][(self.count - row).min(4)];
            }
        }
    }

    /// Scores of rows and all keys.
    ///
    /// # Safety
    /// As [`Work::few_at`]; rows `row..row + R` exist.
    #[inline(always)]
    unsafe fn scores_of<S: Simd, C: Cache, const R: usize, const N: usize>(
        &mut self,
        s: S,
        row: usize,
        at: &[usize],
        (k, vectors): (*const u8, usize),
        ahead: Ahead<'_>,
    ) {
        simd::apart(
            s,
            Scores::<C, R, N> {
                q: self.q[row * S::LANES..].as_ptr(),
                ldq: self.count * S::LANES,
                k,
                at,
                vectors: if C::WORDS { vectors / 2 } else { vectors },
                scores: self.scores[row * KEYS..].as_mut_ptr(),
                ahead,
                cache: PhantomData,
            },
        );
    }

    /// Products of a row become weights.
    #[inline(always)]
    fn softmax_of<S: Simd>(&mut self, s: S, row: usize, n: usize, exponents: attention_block::Scores) {
        let seen = self.seen(row);
        let scores = &mut self.scores[row * KEYS..][..n.next_multiple_of(S::LANES)];
        for x in scores.chunks_exact_mut(S::LANES) {
            let y = exponents.of(s, s.load(x));
            s.store(x, y);
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
        let shrink = (old - less).exp2();
        let mut sum = s.splat(0.0);
        for x in scores.chunks_exact_mut(S::LANES) {
            let p = math::exp2_falling(s, s.sub(s.load(x), s.splat(less)));
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
    unsafe fn values_of<S: Simd, C: Cache, const R: usize, const N: usize>(
        &mut self,
        s: S,
        row: usize,
        at: &[usize],
        first: usize,
        (v, vectors): (*const u8, usize),
        ahead: Ahead<'_>,
    ) {
        let padded = self.block.padded;
        simd::apart(
            s,
            Values::<C, R, N> {
                weights: self.scores[row * KEYS + first..].as_ptr(),
                v,
                at,
                vectors,
                values: self.values[row * padded..].as_mut_ptr(),
                ldc: padded,
                ahead,
                cache: PhantomData,
            },
        );
    }
}
