//! A block of keys for few rows (decode): keys and values are read where they lie, lanes along the head.

use super::attention_block::{Block, KEYS, Keys, Work, bring, capped, product};
use super::run::{Source, read};
use crate::simd::{Element, Simd, math};

/// Scores of `R` rows and `N` keys: dot products over `vectors` vectors of elements or, where `WORDS`, of words, times `scale`. Row `r`
/// of q starts at `r * ldq`, that of the scores at `r * KEYS`. Only those of the first `count` keys are written.
///
/// # Safety
/// All of these elements exist, and the scores are written by nobody else.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "a micro-kernel: the operands with their strides")]
unsafe fn dots<S: Simd, T: Element, const R: usize, const N: usize, const WORDS: bool>(
    s: S,
    vectors: usize,
    (q, ldq): (*const f32, usize),
    keys: [*const T; N],
    scores: *mut f32,
    count: usize,
    scale: f32,
) {
    // SAFETY: addresses are within the operands by the contract.
    unsafe {
        let mut sums = [[s.splat(0.0); N]; R];
        for i in (0..vectors).map(|i| i * S::LANES) {
            let mut x = [s.splat(0.0); N];
            for (x, key) in x.iter_mut().zip(&keys) {
                *x = if WORDS { s.load_f32(key.cast::<f32>().add(i)) } else { T::load(s, key.add(i)) };
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let q = s.load_f32(q.add(r * ldq + i));
                for (sum, x) in sums.iter_mut().zip(&x) {
                    *sum = product::<S, WORDS>(s, q, *x, *sum);
                }
            }
        }
        if R * N == 16 {
            let mut all = [s.splat(0.0); 16];
            for (to, sum) in all.iter_mut().zip(sums.as_flattened()) {
                *to = *sum;
            }
            let all = s.reduce_adds(&all);
            for (r, sums) in all.chunks_exact(N).enumerate() {
                for (j, sum) in sums[..count.min(N)].iter().enumerate() {
                    *scores.add(r * KEYS + j) = sum * scale;
                }
            }
            return;
        }
        for (r, sums) in sums.iter().enumerate() {
            for (j, sum) in sums[..count.min(N)].iter().enumerate() {
                *scores.add(r * KEYS + j) = s.reduce_add(*sum) * scale;
            }
        }
    }
}

/// Vectors to bring in meanwhile: their positions, which may be none, where, and their length.
type Ahead<'a> = (&'a [usize], Source<'a>, usize);

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
    (c, ldc): (*mut f32, usize),
    (next, keys, depth): Ahead<'_>,
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
            if let Some(next) = next.get(j..j + 1) {
                bring(s, keys, next, depth);
            }
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
        let (k, v) = (self.k.as_ptr(), self.v.as_ptr());
        // SAFETY: `at` are rows of k and v, which have `padded` elements; neither is written.
        unsafe { self.few_at::<S, f32, false>(s, keys, at, k, v, padded) };
    }

    /// Keys and values as they are stored; `WORDS`: queries are words, and keys are multiplied as such.
    #[inline(always)]
    pub(super) fn few<S: Simd, T: Element, const WORDS: bool>(&mut self, s: S, keys: &Keys<'_>) {
        let k: &[T] = bytemuck::cast_slice(keys.k.bytes);
        let v: &[T] = bytemuck::cast_slice(keys.v.bytes);
        let end = keys.at.iter().fold(0, |end, &at| end.max(at)) + self.block.depth;
        assert!(end <= k.len() && end <= v.len(), "a vector outside the cache");
        // SAFETY: vectors of `depth` elements at `at` lie within both, as just checked.
        unsafe { self.few_at::<S, T, WORDS>(s, keys, keys.at, k.as_ptr(), v.as_ptr(), self.block.depth) };
    }

    /// # Safety
    /// At each of `at`, `depth` elements can be read from k and v: whole vectors, of words where `WORDS`.
    #[inline(always)]
    unsafe fn few_at<S: Simd, T: Element, const WORDS: bool>(
        &mut self,
        s: S,
        keys: &Keys<'_>,
        at: &[usize],
        k: *const T,
        v: *const T,
        depth: usize,
    ) {
        let vectors = depth / S::LANES;
        // SAFETY: by the contract; rows are below `count`.
        unsafe {
            let mut row = 0;
            while row < self.count {
                // values are wanted next: scores hide how long they take to come
                let ahead = if row == 0 { Some(keys.v) } else { None };
                let cache = (k, ahead, depth);
                // as many sums as registers allow
                match (self.count - row, S::REGISTERS >= 32) {
                    (1, true) => self.scores_of::<S, T, 1, 16, WORDS>(s, row, at, cache, keys.scale),
                    (2 | 3, true) => self.scores_of::<S, T, 2, 8, WORDS>(s, row, at, cache, keys.scale),
                    (_, true) => self.scores_of::<S, T, 4, 4, WORDS>(s, row, at, cache, keys.scale),
                    (1, false) => self.scores_of::<S, T, 1, 6, WORDS>(s, row, at, cache, keys.scale),
                    (2 | 3, false) => self.scores_of::<S, T, 2, 4, WORDS>(s, row, at, cache, keys.scale),
                    (_, false) => self.scores_of::<S, T, 4, 2, WORDS>(s, row, at, cache, keys.scale),
                }
                row += [1, 1, 2, 2, 4][(self.count - row).min(4)];
            }
            for row in 0..self.count {
                self.softmax_of(s, row, at.len(), keys.soft_cap);
            }
            let mut row = 0;
            while row < self.count {
                let ahead = (if row == 0 { keys.next } else { &[] }, keys.k, depth);
                if keys.masked {
                    // see `tiled_values` for why a row goes through no more than it sees
                    let seen = self.seen(row);
                    self.values_of::<S, T, 1, 4>(s, row, &at[seen.clone()], seen.start, (v, vectors), ahead);
                    row += 1;
                    continue;
                }
                match self.count - row {
                    1 => self.values_of::<S, T, 1, 8>(s, row, at, 0, (v, vectors), ahead),
                    2 | 3 => self.values_of::<S, T, 2, 4>(s, row, at, 0, (v, vectors), ahead),
                    _ => self.values_of::<S, T, 4, 4>(s, row, at, 0, (v, vectors), ahead),
                }
                row += [1, 1, 2, 2, 4][(self.count - row).min(4)];
            }
        }
    }

    /// Scores of rows and all keys, while what is to be read next is brought in.
    ///
    /// # Safety
    /// As [`Work::few_at`]; rows `row..row + R` exist.
    #[inline(always)]
    unsafe fn scores_of<S: Simd, T: Element, const R: usize, const N: usize, const WORDS: bool>(
        &mut self,
        s: S,
        row: usize,
        at: &[usize],
        (k, ahead, depth): (*const T, Option<Source<'_>>, usize),
        scale: f32,
    ) {
        let padded = self.block.padded;
        let vectors = if WORDS { depth / (2 * S::LANES) } else { depth / S::LANES };
        let (q, scores) = (self.q[row * padded..].as_ptr(), self.scores[row * KEYS..].as_mut_ptr());
        for (i, group) in at.chunks(N).enumerate() {
            // behind the last key it is read again, and its scores are dropped
            let mut keys = [k; N];
            for (j, key) in keys.iter_mut().enumerate() {
                let at = group[j.min(group.len() - 1)];
                // SAFETY: by the contract.
                *key = unsafe { k.add(at) };
            }
            if let Some(values) = ahead {
                bring(s, values, group, depth);
            }
            // SAFETY: by the contract; a row has KEYS scores, of which no more than `at.len()` are written.
            unsafe {
                dots::<S, T, R, N, WORDS>(
                    s,
                    vectors,
                    (q, padded),
                    keys,
                    scores.add(i * N),
                    group.len(),
                    scale,
                );
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
        (v, vectors): (*const T, usize),
        (next, keys, depth): Ahead<'_>,
    ) {
        let padded = self.block.padded;
        let weights = self.scores[row * KEYS + first..].as_ptr();
        let values = self.values[row * padded..].as_mut_ptr();
        let mut i = 0;
        // SAFETY: by the contract.
        unsafe {
            while i + C <= vectors {
                let (v, c) = (v.add(i * S::LANES), values.add(i * S::LANES));
                let ahead = (if i == 0 { next } else { &[] }, keys, depth);
                weigh::<S, T, R, C>(s, at, v, weights, (c, padded), ahead);
                i += C;
            }
            while i < vectors {
                let (v, c) = (v.add(i * S::LANES), values.add(i * S::LANES));
                weigh::<S, T, R, 1>(s, at, v, weights, (c, padded), (&[], keys, depth));
                i += 1;
            }
        }
    }
}
