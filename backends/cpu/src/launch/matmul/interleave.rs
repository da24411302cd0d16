//! Rows as they are packed: a word of each, step by step.

use crate::simd::{Element, MAX_LANES, Simd};
use std::ptr;

/// Rows of words. A trait and no closure: a closure would not be compiled for the caller's instruction set.
///
/// # Safety
/// What [`Rows::row`] says can be read.
pub(crate) unsafe trait Rows {
    /// What a word is read from.
    type Element: Element;

    /// Where the words of row `row` begin, and how many of its first `count` words lie there side by side.
    fn row(&self, row: usize, count: usize) -> (*const Self::Element, usize);
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
    if count == 0 {
        return; // rows of no words need not exist
    }
    if rows == 1 && step == 1 {
        for first in (0..count).step_by(S::LANES) {
            let n = S::LANES.min(count - first);
            s.store_some(&mut to[first..first + n], from.load(s, 0, first, n));
        }
        return;
    }
    assert!(rows <= step && to.len() >= (count - 1) * step + rows);
    // the last group, which may be short, comes first: where no words but those of these rows are written, what lies behind it is the
    // next word's, which is written later
    for group in (0..rows).step_by(S::LANES).rev() {
        let height = S::LANES.min(rows - group);
        let whole = if height == S::LANES {
            count
        } else if step == rows {
            // the last vector must end with the last word
            count.saturating_sub((S::LANES - height).div_ceil(step))
        } else {
            0
        };
        // SAFETY: a whole group lies within its word, and the words of all rows within `to`; a short one ends within the words that come
        // next, which are there.
        let done = unsafe { squares(s, group, height, whole, &mut to[group..], step, from) };
        for first in (done..count).step_by(S::LANES) {
            let n = S::LANES.min(count - first);
            let mut square = [s.splat(0.0); MAX_LANES];
            for (r, v) in square[..height].iter_mut().enumerate() {
                *v = from.load(s, group + r, first, n);
            }
            s.transpose(&mut square);
            for (i, v) in square[..n].iter().enumerate() {
                s.store_some(&mut to[(first + i) * step + group..][..height], *v);
            }
        }
    }
}

/// Writes whole squares of words, up to `count` of each of `height` rows from `group` on, in vectors of which the first `height` lanes
/// are theirs; returns how many.
///
/// # Safety
/// `to` has a vector at each of `count` words, `step` apart, but for the lanes of a last one that lie behind its end.
#[inline(always)]
unsafe fn squares<S: Simd, R: Rows>(
    s: S,
    group: usize,
    height: usize,
    count: usize,
    to: &mut [f32],
    step: usize,
    from: &R,
) -> usize {
    let mut starts = [ptr::null(); MAX_LANES];
    let mut count = count;
    for (r, start) in starts[..S::LANES].iter_mut().enumerate() {
        // a short group repeats its last row: a square of a fixed size stays in registers
        let (first, whole) = from.row(group + r.min(height - 1), count);
        *start = first;
        count = count.min(whole);
    }
    let count = count / S::LANES * S::LANES;
    debug_assert!(count == 0 || (count - 1) * step + S::LANES <= to.len());
    let mut to = to.as_mut_ptr();
    for first in (0..count).step_by(S::LANES) {
        let mut square = [s.splat(0.0); MAX_LANES];
        // SAFETY: so many words of each row can be read, and by the contract so many vectors written.
        unsafe {
            for (start, v) in starts[..S::LANES].iter().zip(&mut square) {
                *v = R::Element::load(s, start.add(first));
            }
            s.transpose(&mut square);
            for v in &square[..S::LANES] {
                s.store_f32(to, *v);
                to = to.wrapping_add(step);
            }
        }
    }
    count
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

    /// Rows that can be read where they lie, up to a word of each.
    struct Numbers(Vec<Vec<f32>>, usize);

    // SAFETY: a slice can be read.
    unsafe impl Rows for Numbers {
        type Element = f32;

        fn row(&self, row: usize, count: usize) -> (*const f32, usize) {
            (self.0[row].as_ptr(), count.min(self.0[row].len()).min(self.1))
        }
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
                for count in [0, 1, 2, 3, 4, 5, 15, 16, 17, 33, 40] {
                    let lie = (0..rows).map(|row| (0..count).map(|i| number(row, i)).collect()).collect();
                    let mut numbers = Numbers(lie, 0);
                    for (step, whole) in
                        [(rows, 0), (rows, 40), (rows, 17), (rows + 3, 40), (40, 40), (40, 9)]
                    {
                        numbers.1 = whole;
                        let mut to = vec![-1.0; if count == 0 { 0 } else { (count - 1) * step + rows }];
                        interleave(s, rows, count, &mut to, step, &numbers);
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
