//! A and B in words of two bf16 that are neighbours along k: what the dot products of AVX-512 BF16 (and the tiles of AMX) read.
//!
//! A packed panel serves both kinds of A: rounded to bf16, where it is bf16 or the policy allows it, and in f32, where the elements of
//! B widen in registers by a shift and a mask.

use super::interleave::{Rows, interleave};
use super::operand::{Floats, PackFloats, Singles, Words};
use super::source::{Format, PlainSource, Source};
use super::tile::{Elements, Halves, MAX_ROWS, Pairs, Steps};
use crate::launch::pack::word_rows;
use crate::simd::{Kernel, MAX_LANES, Simd};
use crate::spmd::Args;
use half::bf16;
use perjoule_kernels::op::Tensor2;
use std::marker::PhantomData;
use std::ops::Range;

/// Elements that are rounded at a time, in L1.
const RUN: usize = 256;

/// Elements rounded to bf16, two in a word.
#[derive(Clone, Copy)]
pub(crate) struct Rounded;

impl Words for Rounded {
    const PER: usize = 2;
}

impl PackFloats for Rounded {
    fn pack<S: Simd>(
        s: S,
        a: &Floats<'_>,
        starts: &[Option<usize>],
        stride: usize,
        ks: Range<usize>,
        out: &mut [f32],
    ) {
        s.vectorise(PackRows::<1> { a, starts, stride, ks, out });
    }
}

/// [`PackFloats::pack`] of pairs with `WORDS` words in a step.
pub(super) struct PackRows<'p, const WORDS: usize> {
    pub(super) a: &'p Floats<'p>,
    pub(super) starts: &'p [Option<usize>],
    pub(super) stride: usize,
    pub(super) ks: Range<usize>,
    pub(super) out: &'p mut [f32],
}

impl<const WORDS: usize> Kernel for PackRows<'_, WORDS> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let PackRows { a, starts, stride, ks, out } = self;
        let rows = starts.len();
        if WORDS == 1 {
            let mut runs = [Run::ZERO; MAX_ROWS];
            for first in ks.clone().step_by(RUN) {
                let count = RUN.min(ks.end - first);
                for (run, start) in runs.iter_mut().zip(starts) {
                    // those without a start stay zero
                    if let Some(start) = start {
                        run.read(s, a, start + first * stride, stride, count);
                    }
                }
                let to = &mut out[(first - ks.start) / 2 * rows..];
                interleave(s, rows, count.div_ceil(2), to, rows, &runs);
            }
            return;
        }
        let mut run = Run::ZERO;
        for (row, start) in starts.iter().enumerate() {
            for first in ks.clone().step_by(RUN) {
                let count = RUN.min(ks.end - first);
                let words = count.div_ceil(2);
                match start {
                    Some(start) => run.read(s, a, start + first * stride, stride, count),
                    None => run = Run::ZERO,
                }
                let words = run.fill(words, words.next_multiple_of(WORDS));
                let to = &mut out[(first - ks.start) / 2 * rows + row * WORDS..];
                for (i, step) in words.chunks_exact(WORDS).enumerate() {
                    to[i * rows * WORDS..][..WORDS].copy_from_slice(step);
                }
            }
        }
    }
}

/// A run of rounded elements, as words.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Run([bf16; RUN]);

impl Run {
    const ZERO: Run = Run([bf16::ZERO; RUN]);

    /// `count` elements from `at` on, `stride` apart; the last word is filled with zero.
    #[inline(always)]
    fn read<S: Simd>(&mut self, s: S, a: &Floats<'_>, at: usize, stride: usize, count: usize) {
        match a {
            Floats::BF16(x) if stride == 1 => self.0[..count].copy_from_slice(&x[at..at + count]),
            _ => {
                for (i, to) in self.0[..count].chunks_mut(S::LANES).enumerate() {
                    s.store_some(to, a.load(s, at + i * S::LANES * stride, stride, to.len()));
                }
            }
        }
        if count % 2 == 1 {
            self.0[count] = bf16::ZERO;
        }
    }

    #[inline(always)]
    fn words(&self) -> &[f32] {
        bytemuck::cast_slice(&self.0)
    }

    /// The first `to` words, of which those from `from` on become zeros.
    #[inline(always)]
    fn fill(&mut self, from: usize, to: usize) -> &[f32] {
        self.0[2 * from..2 * to].fill(bf16::ZERO);
        &self.words()[..to]
    }
}

// SAFETY: a slice can be read.
unsafe impl<const N: usize> Rows for [Run; N] {
    type Element = f32;

    #[inline(always)]
    fn row(&self, row: usize, count: usize) -> (*const f32, usize) {
        let words = &self[row].words()[..count];
        (words.as_ptr(), words.len())
    }
    #[inline(always)]
    fn load<S: Simd>(&self, s: S, row: usize, i: usize, n: usize) -> S::V {
        s.load_or(&self[row].words()[i..i + n], 0.0)
    }
}

/// What A is beside panels of pairs, and how they are multiplied then.
pub(crate) trait Beside: PackFloats {
    /// How the panels are multiplied.
    type Direct: Steps<Stored = f32>;
    /// How widened panels are multiplied.
    type Widened: Steps<Stored = f32>;
    /// Whether widening pays.
    const WIDENS: bool;
}

impl Beside for Singles {
    type Direct = Halves;
    type Widened = Elements<f32>;
    const WIDENS: bool = true;
}

impl Beside for Rounded {
    type Direct = Pairs;
    type Widened = Pairs;
    const WIDENS: bool = false;
}

/// B packed as `pairs{NR}_bf16`.
pub(crate) struct PackedPairs<A>(PhantomData<A>);

/// See [`PackedPairs`].
#[derive(Clone, Copy)]
pub(crate) struct PairsSource<'a, A> {
    words: &'a [f32],
    n: usize,
    k: usize,
    beside: PhantomData<A>,
}

impl<A: Beside> Format for PackedPairs<A> {
    type A = A;
    type Source<'a> = PairsSource<'a, A>;

    fn source(args: &Args, index: usize, _: Tensor2, n: usize, k: usize) -> Option<PairsSource<'_, A>> {
        Some(PairsSource { words: args.read(index), n, k, beside: PhantomData })
    }
}

impl<A: Beside> Source for PairsSource<'_, A> {
    type A = A;
    type Direct = A::Direct;
    type Widened = A::Widened;
    const PACKED: bool = true;
    const WIDENS: bool = A::WIDENS;

    #[inline(always)]
    fn panel(&self, nr: usize, matrix: usize, panel: usize, ks: Range<usize>) -> &[f32] {
        let first = (matrix * self.n.div_ceil(nr) + panel) * word_rows::<2>(self.k);
        &self.words[(first + ks.start / 2) * nr..(first + ks.end.div_ceil(2)) * nr]
    }

    fn widen<S: Simd>(&self, s: S, matrix: usize, panel: usize, ks: Range<usize>, out: &mut [f32]) {
        s.vectorise(Widen { words: self.panel(2 * S::LANES, matrix, panel, ks), out });
    }
}

/// Both elements of whole vectors of words.
struct Widen<'w> {
    words: &'w [f32],
    out: &'w mut [f32],
}

impl Kernel for Widen<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let nr = 2 * S::LANES;
        for (words, out) in self.words.chunks_exact(nr).zip(self.out.chunks_mut(2 * nr)) {
            for (words, half) in words.chunks_exact(S::LANES).zip([0, S::LANES]) {
                let [low, high] = s.halves(s.load(words));
                s.store(&mut out[half..], low);
                // the last word of an odd k holds one element
                if out.len() == 2 * nr {
                    s.store(&mut out[nr + half..], high);
                }
            }
        }
    }
}

/// B as the op lays it out, in bf16 or in a block format whose elements are rounded to bf16.
pub(crate) struct PlainPairs;

/// See [`PlainPairs`].
#[derive(Clone, Copy)]
pub(crate) struct PlainPairsSource<'a>(PlainSource<'a>);

impl Format for PlainPairs {
    type A = Rounded;
    type Source<'a> = PlainPairsSource<'a>;

    fn source(args: &Args, index: usize, b: Tensor2, n: usize, k: usize) -> Option<PlainPairsSource<'_>> {
        super::source::Plain::source(args, index, b, n, k).map(PlainPairsSource)
    }
}

impl Source for PlainPairsSource<'_> {
    type A = Rounded;
    type Direct = Pairs;
    type Widened = Pairs;
    const PACKED: bool = false;
    const WIDENS: bool = true;

    fn panel(&self, _: usize, _: usize, _: usize, _: Range<usize>) -> &[f32] {
        &[]
    }

    fn widen<S: Simd>(&self, s: S, matrix: usize, panel: usize, ks: Range<usize>, out: &mut [f32]) {
        s.vectorise(Round { from: self.0, matrix, panel, ks, out });
    }
}

/// The arguments of the plain [`Source::widen`].
struct Round<'w> {
    from: PlainSource<'w>,
    matrix: usize,
    panel: usize,
    ks: Range<usize>,
    out: &'w mut [f32],
}

impl Kernel for Round<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Round { from, matrix, panel, ks, out } = self;
        let nr = 2 * S::LANES;
        let columns = from.columns(panel * nr, nr);
        let out = &mut out[..ks.len().div_ceil(2) * nr];
        if let Some(x) = from.bf16_rows() {
            // the elements of two rows, the second of which an odd k lacks, are the halves of words
            for (k, out) in ks.clone().step_by(2).zip(out.chunks_exact_mut(nr)) {
                let at = from.at(matrix, k, columns.start);
                let first = &x[at..at + columns.len()];
                let second = if k + 1 < ks.end {
                    let at = from.at(matrix, k + 1, columns.start);
                    &x[at..at + columns.len()]
                } else {
                    &[]
                };
                for half in [0, S::LANES] {
                    let low = s.load_or(part::<S>(first, half), 0.0);
                    let high = s.load_or(part::<S>(second, half), 0.0);
                    s.store(&mut out[half..], s.or(s.shift_right::<16>(low), high));
                }
            }
            return;
        }
        let (mut values, mut runs) = ([0.0; RUN], [Run::ZERO; MAX_LANES]);
        for group in [0, S::LANES] {
            for first in ks.clone().step_by(RUN) {
                let count = RUN.min(ks.end - first);
                for (i, run) in runs[..S::LANES].iter_mut().enumerate() {
                    let column = columns.start + group + i;
                    if column >= columns.end {
                        *run = Run::ZERO;
                    } else if !from.bf16_column(matrix, first, column, &mut run.0[..count]) {
                        from.read(s, matrix, first, column, &mut values[..count]);
                        run.read(s, &Floats::F32(&values), 0, 1, count);
                    } else if count % 2 == 1 {
                        run.0[count] = bf16::ZERO;
                    }
                }
                let to = &mut out[(first - ks.start) / 2 * nr + group..];
                interleave(s, S::LANES, count.div_ceil(2), to, nr, &runs);
            }
        }
    }
}

/// As many elements from `from` on as a vector has, or as there are.
#[inline(always)]
fn part<S: Simd>(x: &[bf16], from: usize) -> &[bf16] {
    &x[from.min(x.len())..x.len().min(from + S::LANES)]
}
