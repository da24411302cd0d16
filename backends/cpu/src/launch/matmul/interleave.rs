//! Rows as they are packed: a word of each, step by step.

use crate::simd::{MAX_LANES, Simd};

/// Rows of words. A trait and no closure: a closure would not be compiled for the caller's instruction set.
pub(crate) trait Rows {
    /// The words `i..i + n` of row `row`, at most a vector of them, and anything in the other lanes. Mark it `#[inline(always)]`.
    fn load<S: Simd>(&self, s: S, row: usize, i: usize, n: usize) -> S::V;
}

/// Writes `count` words of each of `rows` rows: word `i` of row `r` goes to `to[i * step + r]`.
#[inline(always)]
pub(crate) fn interleave<S: Simd>(
    s: S,
    rows: usize,
    count: usize,
    to: &mut [f32],
    step: usize,
    from: &impl Rows,
) {
    if rows == 1 && step == 1 {
        for first in (0..count).step_by(S::LANES) {
            let n = S::LANES.min(count - first);
            s.store_some(&mut to[first..first + n], from.load(s, 0, first, n));
        }
        return;
    }
    assert!(rows <= step && (count == 0 || to.len() >= (count - 1) * step + rows));
    let end = count * step;
    for first in (0..count).step_by(S::LANES) {
        let n = S::LANES.min(count - first);
        // the last group, which may be short, comes first
        for group in (0..rows).step_by(S::LANES).rev() {
            let height = S::LANES.min(rows - group);
            let mut square = [s.splat(0.0); MAX_LANES];
            // a short group repeats its last row: a square of a fixed size stays in registers
            for (r, v) in square[..S::LANES].iter_mut().enumerate() {
                *v = from.load(s, group + r.min(height - 1), first, n);
            }
            s.transpose(&mut square);
            let to = &mut to[first * step + group..];
            // what lies behind a short group is the next word's, which is written later
            let spills = step == rows && (first + S::LANES - 1) * step + group + S::LANES <= end;
            if n == S::LANES && (height == S::LANES || spills) {
                for (i, v) in square[..S::LANES].iter().enumerate() {
                    debug_assert!(i * step + S::LANES <= to.len());
                    // SAFETY: a whole group lies within its word, and the words of all rows within `to`; a short one ends within the
                    // next word, which is one of them.
                    unsafe { s.store_f32(to.as_mut_ptr().add(i * step), *v) }
                }
                continue;
            }
            for (i, v) in square[..n].iter().enumerate() {
                s.store_some(&mut to[i * step..i * step + height], *v);
            }
        }
    }
}

/// Words as they lie in memory, zeros behind the last byte.
#[inline(always)]
pub(crate) fn load_words<S: Simd>(s: S, bytes: &[u8]) -> S::V {
    if bytes.len() >= 4 * S::LANES {
        // SAFETY: that many bytes are there, and no alignment is needed.
        return unsafe { s.load_f32(bytes.as_ptr().cast()) };
    }
    let mut words = [0.0f32; MAX_LANES];
    bytemuck::cast_slice_mut(&mut words)[..bytes.len()].copy_from_slice(bytes);
    s.load(&words)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Kernel, for_each};

    struct Interleave;

    struct Numbers;

    impl Rows for Numbers {
        #[inline(always)]
        fn load<S: Simd>(&self, s: S, row: usize, i: usize, n: usize) -> S::V {
            let words: Vec<f32> = (i..i + n).map(|i| number(row, i)).collect();
            s.load_or(&words, -2.0)
        }
    }

    fn number(row: usize, i: usize) -> f32 {
        (1000 * row + i + 1) as f32
    }

    impl Kernel for Interleave {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            for rows in 1..=32 {
                for count in [1, 2, 3, 4, 5, 15, 16, 17, 33, 40] {
                    for step in [rows, rows + 3, 40] {
                        let mut to = vec![-1.0; (count - 1) * step + rows];
                        interleave(s, rows, count, &mut to, step, &Numbers);
                        for (at, got) in to.iter().enumerate() {
                            let (i, r) = (at / step, at % step);
                            let wanted = if r < rows { number(r, i) } else { -1.0 };
                            assert_eq!(*got, wanted, "{} {rows} x {count}, {step}: {i} {r}", S::NAME);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn words_of_rows_take_turns() {
        for_each(|_| Interleave);
    }
}
