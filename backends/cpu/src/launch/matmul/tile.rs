//! The micro-kernel: a register tile of C, `M` rows by two vectors, over a packed A and a panel of B.
//!
//! A is packed as `[step][M]`, B as `[step][NR]` with `NR = 2 * LANES`. What a step is, [`Steps`] says: one element of k as f32, where
//! elements of B widen in registers, or a word of two bf16 or four bytes. One body serves every instruction set and height: heights
//! below [`max_rows`] are the edge tiles, and 1 is the matrix-vector product. A tile of few rows has too few accumulators to hide the
//! latency of FMA, so it keeps several sets of them, which take turns along k.

use super::driver::Tiles;
use crate::simd::{Element, Kernel, Simd};
use std::marker::PhantomData;
use std::ops::Range;
use std::ptr;

/// Columns of a panel.
pub(crate) const fn columns<S: Simd>() -> usize {
    2 * S::LANES
}

/// Rows of the largest tile: two accumulators a row, leaving registers for two vectors of B and the broadcast of A.
pub(crate) const fn max_rows<S: Simd>() -> usize {
    let rows = (S::REGISTERS - 4) / 2;
    if rows < MAX_ROWS { rows } else { MAX_ROWS }
}

/// The largest tile in registers of any instruction set.
pub(crate) const MAX_ROWS: usize = 14;
/// The largest tile of any kind.
pub(crate) const MOST_ROWS: usize = 32;

/// Steps that are unrolled.
const STEPS: usize = 4;

/// How B lies in a panel, and how it is multiplied, step by step along k.
pub(crate) trait Steps: Copy {
    /// What B consists of.
    type Stored: Copy;
    /// Steps of a panel that several tiles are multiplied by before its next steps are read.
    const DEPTH: usize;
    /// Whether several panels are multiplied at once, which [`super::source::Source::panels`] gives.
    const SPANS: bool = false;
    /// Whether sums can go to [`Span::out`].
    const STRIDES: bool = true;

    /// What `steps` steps of a panel of `nr` columns consist of; a panel begins at whole blocks.
    fn stored(steps: usize, nr: usize) -> usize;
    /// Multiplies tiles and panels, each by each.
    ///
    /// # Safety
    /// What [`Span`] says of A and C holds; `b` has what [`Steps::stored`] says for every panel, `span.apart` from the one before.
    unsafe fn span<S: Simd>(s: S, span: &Span, b: *const Self::Stored) {
        let nr = columns::<S>();
        let products = span.panels * span.tiles.len();
        let (next, lines) = (span.next.0, span.next.1.div_ceil(64));
        let pairs = (0..span.panels).flat_map(|p| span.tiles.clone().map(move |t| (p, t)));
        for (index, (panel, tile)) in pairs.enumerate() {
            let part = span.tile(tile, nr);
            if lines > 0 {
                // a part with each product
                for line in lines * index / products..lines * (index + 1) / products {
                    s.prefetch_l2(next.wrapping_add(64 * line));
                }
            }
            // SAFETY: the same contract.
            unsafe {
                let c = part.c.add(panel * span.rows() * nr);
                let from = if span.done > 0 { c.cast_const() } else { ptr::null() };
                let sums = match span.out {
                    None => Sums { from, to: c, stride: nr },
                    Some(out) => {
                        let to = out.first.add(part.first * out.stride + panel * nr);
                        Sums { from, to, stride: out.stride }
                    }
                };
                Self::product(s, part.rows, span.steps, part.a, b.add(panel * span.apart), sums)
            }
        }
    }
    /// `sums.to = sums.from + a b`.
    ///
    /// # Safety
    /// `rows` is 1 at least, and at most what [`super::operand::Words::max_rows`] says; `a` has the words of `rows` rows and `steps` steps
    /// to read, `b` what [`Steps::stored`] says, `sums` what [`Sums`] says.
    unsafe fn product<S: Simd>(
        s: S,
        rows: usize,
        steps: usize,
        a: *const f32,
        b: *const Self::Stored,
        sums: Sums,
    );
}

/// Where the sums of a tile come from and go to.
#[derive(Clone, Copy)]
pub(crate) struct Sums {
    /// `[row][NR]`, to which products are added; null for nothing.
    pub(crate) from: *const f32,
    /// Rows of `NR` to write, to which nothing else refers, but that it may be `from`.
    pub(crate) to: *mut f32,
    /// How far a row of `to` is from the next one.
    pub(crate) stride: usize,
}

/// Rows of C that whole panels are stored to.
#[derive(Clone, Copy)]
pub(crate) struct Rows {
    /// The first column of the first panel in the first row.
    pub(crate) first: *mut f32,
    /// How far a row is from the next one.
    pub(crate) stride: usize,
}

/// Tiles of packed A and panels of B, of which some steps are multiplied: what several products have in common.
#[derive(Clone)]
pub(crate) struct Span {
    pub(crate) all: Tiles,
    pub(crate) tiles: Range<usize>,
    /// Words of a row of A.
    pub(crate) words: usize,
    /// Words of a step of A.
    pub(crate) each: usize,
    /// Steps before these: where there are any, C is added to.
    pub(crate) done: usize,
    pub(crate) steps: usize,
    /// The packed words of `tiles`, tile after tile.
    pub(crate) a: *const f32,
    /// `[panel][row][NR]`, to which nothing else refers.
    pub(crate) c: *mut f32,
    /// Where sums go instead of `c`, which they still come from.
    pub(crate) out: Option<Rows>,
    pub(crate) panels: usize,
    /// How far a panel is from the next one.
    pub(crate) apart: usize,
    /// What is multiplied after these panels, and how many bytes: the second-level cache gets it meanwhile.
    pub(crate) next: (*const u8, usize),
}

/// A tile of a [`Span`], and its results in the first panel.
pub(crate) struct Part {
    /// Rows before it.
    pub(crate) first: usize,
    pub(crate) rows: usize,
    pub(crate) a: *const f32,
    pub(crate) c: *mut f32,
}

impl Span {
    /// Rows of all tiles.
    pub(crate) fn rows(&self) -> usize {
        self.all.start(self.tiles.end) - self.all.start(self.tiles.start)
    }

    /// One of the tiles.
    pub(crate) fn tile(&self, tile: usize, nr: usize) -> Part {
        let at = self.all.rows(tile);
        let (first, rows) = (at.start - self.all.start(self.tiles.start), at.len());
        Part {
            first,
            rows,
            a: self.a.wrapping_add(first * self.words + self.done * self.each * rows),
            c: self.c.wrapping_add(first * nr),
        }
    }
}

/// [`Steps`] whose products are register tiles of a fixed number of rows.
pub(crate) trait Tiled: Copy {
    /// See [`Steps`].
    type Stored: Copy;
    /// See [`Steps`].
    const DEPTH: usize;

    /// See [`Steps`].
    fn stored(steps: usize, nr: usize) -> usize;
    /// One tile with `SETS` sets of accumulators, where that pays.
    ///
    /// # Safety
    /// As [`Steps::product`], with `rows == M`.
    unsafe fn tile<S: Simd, const M: usize, const SETS: usize>(
        s: S,
        steps: usize,
        a: *const f32,
        b: *const Self::Stored,
        sums: Sums,
    );
}

/// Steps of one word of A.
pub(crate) trait WordSteps: Copy {
    /// What B consists of.
    type Stored: Copy;
    /// Steps that a row of `NR` stored elements holds; divides [`STEPS`].
    const PER_ROW: usize;
    /// How far ahead of what is multiplied few rows ask for more, where that pays.
    const AHEAD: usize = 0;

    /// The two vectors of the `step`th step from `b` on.
    ///
    /// # Safety
    /// The row of that step is readable.
    unsafe fn load<S: Simd>(s: S, b: *const Self::Stored, step: usize) -> [S::V; 2];
    /// sum + a b
    #[inline(always)]
    fn multiply<S: Simd>(s: S, a: S::V, b: S::V, sum: S::V) -> S::V {
        s.fma(a, b, sum)
    }
    /// a + b of two sums.
    #[inline(always)]
    fn add<S: Simd>(s: S, a: S::V, b: S::V) -> S::V {
        s.add(a, b)
    }
}

impl<W: WordSteps> Tiled for W {
    type Stored = W::Stored;
    const DEPTH: usize = super::driver::DEPTH;

    fn stored(steps: usize, nr: usize) -> usize {
        steps.div_ceil(W::PER_ROW) * nr
    }
    #[inline(always)]
    unsafe fn tile<S: Simd, const M: usize, const SETS: usize>(
        s: S,
        steps: usize,
        a: *const f32,
        b: *const W::Stored,
        sums: Sums,
    ) {
        // SAFETY: the same contract.
        unsafe { tile::<S, W, M, SETS>(s, steps, a, b, sums) }
    }
}

/// A step is one element of k, and B is of type `T`.
#[derive(Clone, Copy)]
pub(crate) struct Elements<T>(PhantomData<T>);

impl<T: Element> WordSteps for Elements<T> {
    type Stored = T;
    const PER_ROW: usize = 1;
    const AHEAD: usize = if size_of::<T>() < size_of::<f32>() { 768 } else { 0 };

    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, b: *const T, step: usize) -> [S::V; 2] {
        // SAFETY: the same contract.
        unsafe {
            let b = b.add(step * columns::<S>());
            [T::load(s, b), T::load(s, b.add(S::LANES))]
        }
    }
}

/// A step is one element of k, and B is words of two bf16.
#[derive(Clone, Copy)]
pub(crate) struct Halves;

impl WordSteps for Halves {
    type Stored = f32;
    const PER_ROW: usize = 2;
    const AHEAD: usize = 768;

    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, b: *const f32, step: usize) -> [S::V; 2] {
        // SAFETY: the same contract.
        let words = unsafe { Elements::<f32>::load(s, b, step / 2) };
        [s.halves(words[0])[step % 2], s.halves(words[1])[step % 2]]
    }
}

/// A step is a word of two bf16 in A and in B.
#[derive(Clone, Copy)]
pub(crate) struct Pairs;

impl WordSteps for Pairs {
    type Stored = f32;
    const PER_ROW: usize = 1;

    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, b: *const f32, step: usize) -> [S::V; 2] {
        // SAFETY: the same contract.
        unsafe { Elements::<f32>::load(s, b, step) }
    }
    #[inline(always)]
    fn multiply<S: Simd>(s: S, a: S::V, b: S::V, sum: S::V) -> S::V {
        s.dot_pairs(a, b, sum)
    }
}

/// A step is a word of four i8 in A and four u8 in B; sums are i32.
#[derive(Clone, Copy)]
pub(crate) struct Quads;

impl WordSteps for Quads {
    type Stored = f32;
    const PER_ROW: usize = 1;

    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, b: *const f32, step: usize) -> [S::V; 2] {
        // SAFETY: the same contract.
        unsafe { Elements::<f32>::load(s, b, step) }
    }
    #[inline(always)]
    fn multiply<S: Simd>(s: S, a: S::V, b: S::V, sum: S::V) -> S::V {
        s.dot_quads(a, b, sum)
    }
    #[inline(always)]
    fn add<S: Simd>(s: S, a: S::V, b: S::V) -> S::V {
        s.add_integers(a, b)
    }
}

impl<T: Tiled> Steps for T {
    type Stored = T::Stored;
    const DEPTH: usize = T::DEPTH;

    fn stored(steps: usize, nr: usize) -> usize {
        T::stored(steps, nr)
    }
    unsafe fn product<S: Simd>(
        s: S,
        rows: usize,
        steps: usize,
        a: *const f32,
        b: *const T::Stored,
        sums: Sums,
    ) {
        s.vectorise(Product::<T> { rows, steps, a, b, sums });
    }
}

/// The arguments of [`Steps::product`]. A kernel of its own, so that the tiles of all heights are compiled once for an instruction set
/// and an element type, whatever rows use them. Private: made only under the contract of [`Steps::product`].
struct Product<B: Tiled> {
    rows: usize,
    steps: usize,
    a: *const f32,
    b: *const B::Stored,
    sums: Sums,
}

impl<B: Tiled> Kernel for Product<B> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Product { rows, steps, a, b, sums } = self;
        if sums.stride != columns::<S>() {
            // rows of C are seldom in a cache: they come in while the products are summed
            for row in 0..rows {
                s.prefetch(sums.to.wrapping_add(row * sums.stride));
                s.prefetch(sums.to.wrapping_add(row * sums.stride + columns::<S>() - 1));
            }
        }
        /// Calls the tile of that height, where this instruction set has one.
        macro_rules! tiles {
            ($($height:literal: $sets:literal),*) => {
                match rows {
                    // SAFETY: the contract of `Steps::product`, with `M == rows`.
                    $($height if max_rows::<S>() >= $height => unsafe {
                        B::tile::<S, $height, $sets>(s, steps, a, b, sums)
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
/// As [`Steps::product`], with `rows == M`.
#[inline(always)]
unsafe fn tile<S: Simd, B: WordSteps, const M: usize, const SETS: usize>(
    s: S,
    steps: usize,
    a: *const f32,
    b: *const B::Stored,
    sums: Sums,
) {
    let nr = columns::<S>();
    let mut acc = [[[s.splat(0.0); 2]; M]; SETS];
    let (mut a, mut b) = (a, b);
    // SAFETY: the loops read `steps` steps of `M` elements of A and their rows of B, and touch `M` rows of sums, as the contract allows;
    // the pointers end at most one past the last step.
    unsafe {
        for _ in 0..steps / STEPS {
            if SETS > 1 {
                s.prefetch_stream(b, STEPS / B::PER_ROW * nr * size_of::<B::Stored>(), B::AHEAD);
            }
            for step in 0..STEPS {
                let [b0, b1] = B::load(s, b, step);
                let set = &mut acc[step % SETS];
                for (row, acc) in set.iter_mut().enumerate() {
                    let x = s.splat(*a.add(step * M + row));
                    acc[0] = B::multiply(s, x, b0, acc[0]);
                    acc[1] = B::multiply(s, x, b1, acc[1]);
                }
            }
            a = a.add(STEPS * M);
            b = b.add(STEPS / B::PER_ROW * nr);
        }
        for step in 0..steps % STEPS {
            let [b0, b1] = B::load(s, b, step);
            for (row, acc) in acc[0].iter_mut().enumerate() {
                let x = s.splat(*a.add(step * M + row));
                acc[0] = B::multiply(s, x, b0, acc[0]);
                acc[1] = B::multiply(s, x, b1, acc[1]);
            }
        }
        for row in 0..M {
            for half in 0..2 {
                let mut sum = acc[0][row][half];
                for set in acc.iter().skip(1) {
                    sum = B::add(s, sum, set[row][half]);
                }
                if !sums.from.is_null() {
                    sum = B::add(s, s.load_f32(sums.from.add(row * nr + half * S::LANES)), sum);
                }
                s.store_f32(sums.to.add(row * sums.stride + half * S::LANES), sum);
            }
        }
    }
}
