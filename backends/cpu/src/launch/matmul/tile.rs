//! The micro-kernel: a register tile of C, `M` rows by two vectors, over a packed A and a panel of B.
//!
//! A is packed as `[k][M]` f32, B as `[k][NR]` of any element type with `NR = 2 * LANES`; elements of B widen in registers. One body
//! serves every instruction set and height: heights below [`max_rows`] are the edge tiles, and 1 is the matrix-vector product. A tile
//! of few rows has too few accumulators to hide the latency of FMA, so it keeps several sets of them, which take turns along k.

use crate::simd::{Element, Kernel, Simd};

/// Columns of a panel.
pub(crate) const fn columns<S: Simd>() -> usize {
    2 * S::LANES
}

/// Rows of the largest tile: two accumulators a row, leaving registers for two vectors of B and the broadcast of A.
pub(crate) const fn max_rows<S: Simd>() -> usize {
    let rows = (S::REGISTERS - 4) / 2;
    if rows < MAX_ROWS { rows } else { MAX_ROWS }
}

/// The largest tile of any instruction set.
pub(crate) const MAX_ROWS: usize = 14;

/// Steps of k that are unrolled.
const STEPS: usize = 4;

/// `c = a b`, or `c += a b` where `add`; `c` is `rows x NR`, dense.
///
/// # Safety
/// `rows` is in `1..=max_rows::<S>()`; `a` has `rows * k` elements to read, `b` has `k * NR`, `c` has `rows * NR` to write, to which
/// nothing else refers.
pub(crate) unsafe fn product<S: Simd, T: Element>(
    s: S,
    rows: usize,
    k: usize,
    a: *const f32,
    b: *const T,
    c: *mut f32,
    add: bool,
) {
    s.vectorise(Product { rows, k, a, b, c, add });
}

/// The arguments of [`product`]. A kernel of its own, so that the tiles of all heights are compiled once for an instruction set and an
/// element type, whatever rows use them. Private: made only under the contract of [`product`].
struct Product<T> {
    rows: usize,
    k: usize,
    a: *const f32,
    b: *const T,
    c: *mut f32,
    add: bool,
}

impl<T: Element> Kernel for Product<T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Product { rows, k, a, b, c, add } = self;
        /// Calls the tile of that height, where this instruction set has one.
        macro_rules! tiles {
            ($($height:literal: $sets:literal),*) => {
                match rows {
                    // SAFETY: the contract of `product`, with `M == rows`.
                    $($height if max_rows::<S>() >= $height => unsafe {
                        tile::<S, T, $height, $sets>(s, k, a, b, c, add)
                    },)*
                    _ => {}
                }
            };
        }
        tiles!(1: 4, 2: 2, 3: 2, 4: 1, 5: 1, 6: 1, 7: 1, 8: 1, 9: 1, 10: 1, 11: 1, 12: 1, 13: 1, 14: 1);
    }
}

/// One tile with `SETS` sets of accumulators; `SETS` divides [`STEPS`].
///
/// # Safety
/// As [`product`], with `rows == M`.
#[inline(always)]
unsafe fn tile<S: Simd, T: Element, const M: usize, const SETS: usize>(
    s: S,
    k: usize,
    a: *const f32,
    b: *const T,
    c: *mut f32,
    add: bool,
) {
    let nr = columns::<S>();
    let mut acc = [[[s.splat(0.0); 2]; M]; SETS];
    let (mut a, mut b) = (a, b);
    // SAFETY: the loops read `k` steps of `M` elements of A and of `NR` elements of B, and touch `M` rows of C, as the contract allows;
    // the pointers end at most one past the last step.
    unsafe {
        for _ in 0..k / STEPS {
            for step in 0..STEPS {
                let b0 = T::load(s, b.add(step * nr));
                let b1 = T::load(s, b.add(step * nr + S::LANES));
                let set = &mut acc[step % SETS];
                for (row, sums) in set.iter_mut().enumerate() {
                    let x = s.splat(*a.add(step * M + row));
                    sums[0] = s.fma(x, b0, sums[0]);
                    sums[1] = s.fma(x, b1, sums[1]);
                }
            }
            a = a.add(STEPS * M);
            b = b.add(STEPS * nr);
        }
        for _ in 0..k % STEPS {
            let b0 = T::load(s, b);
            let b1 = T::load(s, b.add(S::LANES));
            for (row, sums) in acc[0].iter_mut().enumerate() {
                let x = s.splat(*a.add(row));
                sums[0] = s.fma(x, b0, sums[0]);
                sums[1] = s.fma(x, b1, sums[1]);
            }
            a = a.add(M);
            b = b.add(nr);
        }
        for row in 0..M {
            for half in 0..2 {
                let mut sum = acc[0][row][half];
                for set in acc.iter().skip(1) {
                    sum = s.add(sum, set[row][half]);
                }
                let to = c.add(row * nr + half * S::LANES);
                if add {
                    sum = s.add(s.load_f32(to), sum);
                }
                s.store_f32(to, sum);
            }
        }
    }
}
