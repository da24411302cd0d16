//! B as the blocked driver reads it: panels that lie in memory, or that are made of a plain operand piece by piece.

use super::interleave::{Rows, interleave};
use super::operand::{Floats, Singles, Words, spread, typed};
use super::tile::{Elements, Steps};
use crate::launch::run;
use crate::simd::{Element, Kernel, Simd};
use crate::spmd::Args;
use half::bf16;
use perjoule_kernels::block;
use perjoule_kernels::op::Tensor2;
use std::ops::Range;

/// What a panel that lies in memory consists of.
pub(crate) type Stored<B> = <<B as Source>::Direct as Steps>::Stored;

/// B as panels of `NR` columns, whose columns beyond `n` are zero.
pub(crate) trait Source: Copy {
    /// How A is packed beside it. All ranges of k begin at a whole word.
    type A: Words;
    /// How panels that lie in memory are multiplied.
    type Direct: Steps;
    /// How widened panels are multiplied.
    type Widened: Steps<Stored = f32>;
    /// Whether panels lie in memory, so that [`Source::panel`] may be called.
    const PACKED: bool;
    /// Whether it pays to widen a panel for a third tile.
    const WIDENS: bool;

    /// The part `ks` of a panel as it lies in memory.
    fn panel(&self, nr: usize, matrix: usize, panel: usize, ks: Range<usize>) -> &[Stored<Self>];
    /// The part `ks` of several panels, and how far each is from the next; of one panel, but for sources whose steps have
    /// [`Steps::SPANS`].
    fn panels(
        &self,
        nr: usize,
        matrix: usize,
        panels: Range<usize>,
        ks: Range<usize>,
    ) -> (&[Stored<Self>], usize) {
        debug_assert_eq!(panels.len(), 1);
        (self.panel(nr, matrix, panels.start, ks), 0)
    }
    /// The same as [`Source::Widened`] reads it, written to `out`.
    fn widen<S: Simd>(&self, s: S, matrix: usize, panel: usize, ks: Range<usize>, out: &mut [f32]);
}

/// What a row reads as B.
pub(crate) trait Format: Send + Sync + 'static {
    /// How A is packed beside it.
    type A: Words;
    /// What it is during a launch.
    type Source<'a>: Source<A = Self::A>;
    /// Makes it from operand `index`; `None` when the operand is of another kind, which `reject` rules out.
    fn source(args: &Args, index: usize, b: Tensor2, n: usize, k: usize) -> Option<Self::Source<'_>>;
}

/// B packed as `panel{NR}_{T}`.
pub(crate) struct Packed<T>(std::marker::PhantomData<T>);

/// See [`Packed`].
#[derive(Clone, Copy)]
pub(crate) struct PackedSource<'a, T> {
    data: &'a [T],
    n: usize,
    k: usize,
}

impl<T: Element> Format for Packed<T> {
    type A = Singles;
    type Source<'a> = PackedSource<'a, T>;
    fn source(args: &Args, index: usize, _: Tensor2, n: usize, k: usize) -> Option<PackedSource<'_, T>> {
        Some(PackedSource { data: args.read(index), n, k })
    }
}

impl<T: Element> Source for PackedSource<'_, T> {
    type A = Singles;
    type Direct = Elements<T>;
    type Widened = Elements<f32>;
    const PACKED: bool = true;
    const WIDENS: bool = size_of::<T>() < size_of::<f32>();

    #[inline(always)]
    fn panel(&self, nr: usize, matrix: usize, panel: usize, ks: Range<usize>) -> &[T] {
        let first = (matrix * self.n.div_ceil(nr) + panel) * self.k;
        &self.data[(first + ks.start) * nr..(first + ks.end) * nr]
    }

    fn widen<S: Simd>(&self, s: S, matrix: usize, panel: usize, ks: Range<usize>, out: &mut [f32]) {
        s.vectorise(Widen { from: self.panel(2 * S::LANES, matrix, panel, ks), out });
    }
}

/// Widens whole vectors.
struct Widen<'w, T> {
    from: &'w [T],
    out: &'w mut [f32],
}

impl<T: Element> Kernel for Widen<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (x, y) in self.from.chunks_exact(S::LANES).zip(self.out.chunks_exact_mut(S::LANES)) {
            s.store(y, s.load(x));
        }
    }
}

/// B as the op lays it out: any float type or block format, any strides.
pub(crate) struct Plain;

/// See [`Plain`].
#[derive(Clone, Copy)]
pub(crate) struct PlainSource<'a> {
    data: PlainData<'a>,
    b: Tensor2,
    n: usize,
}

#[derive(Clone, Copy)]
enum PlainData<'a> {
    Floats(Floats<'a>),
    Blocks(&'a [u8]),
}

impl Format for Plain {
    type A = Singles;
    type Source<'a> = PlainSource<'a>;
    fn source(args: &Args, index: usize, b: Tensor2, n: usize, _: usize) -> Option<PlainSource<'_>> {
        let data = match Floats::of(args, index, b.dtype) {
            Some(floats) => PlainData::Floats(floats),
            None if b.dtype.is_block() => PlainData::Blocks(args.read(index)),
            None => return None,
        };
        Some(PlainSource { data, b, n })
    }
}

impl PlainSource<'_> {
    /// The columns that exist among `count` from `first` on.
    pub(super) fn columns(&self, first: usize, count: usize) -> Range<usize> {
        first..(first + count).min(self.n)
    }

    /// Where an element lies.
    #[inline(always)]
    pub(super) fn at(&self, matrix: usize, k: usize, column: usize) -> usize {
        self.b.strides.at(matrix, k, column)
    }

    /// All elements, where they are bf16 in contiguous rows.
    #[inline(always)]
    pub(super) fn bf16_rows(&self) -> Option<&[bf16]> {
        match self.data {
            PlainData::Floats(Floats::BF16(x)) if self.b.strides.col == 1 => Some(x),
            _ => None,
        }
    }

    /// Copies elements of a column from step `k` on, where they are contiguous bf16; else it gives false.
    #[inline(always)]
    pub(super) fn bf16_column(&self, matrix: usize, k: usize, column: usize, to: &mut [bf16]) -> bool {
        match self.data {
            PlainData::Floats(Floats::BF16(x)) if self.b.strides.row == 1 => {
                let at = self.at(matrix, k, column);
                to.copy_from_slice(&x[at..at + to.len()]);
                true
            }
            _ => false,
        }
    }

    /// Elements of a column from step `k` on as f32; of block formats, whole blocks.
    #[inline(always)]
    pub(super) fn read<S: Simd>(&self, s: S, matrix: usize, k: usize, column: usize, to: &mut [f32]) {
        let at = self.b.strides.at(matrix, k, column);
        match self.data {
            PlainData::Floats(floats) => {
                typed!(floats, x => spread(s, x, at, self.b.strides.row, to.len(), to, 1))
            }
            PlainData::Blocks(bytes) => run::read(s, run::Source { bytes, dtype: self.b.dtype }, at, to),
        }
    }
}

/// Rows of B that are asked for ahead: a panel has a line of each, of which the processor foresees none.
const ROWS_AHEAD: usize = 16;

/// Elements of the longest block.
const MAX_BLOCK: usize = 256;

impl Source for PlainSource<'_> {
    type A = Singles;
    type Direct = Elements<f32>;
    type Widened = Elements<f32>;
    const PACKED: bool = false;
    const WIDENS: bool = true;

    fn panel(&self, _: usize, _: usize, _: usize, _: Range<usize>) -> &[f32] {
        &[]
    }

    fn widen<S: Simd>(&self, s: S, matrix: usize, panel: usize, ks: Range<usize>, out: &mut [f32]) {
        s.vectorise(WidenPlain { from: *self, matrix, panel, ks, out });
    }
}

/// The arguments of the plain [`Source::widen`].
struct WidenPlain<'w> {
    from: PlainSource<'w>,
    matrix: usize,
    panel: usize,
    ks: Range<usize>,
    out: &'w mut [f32],
}

impl Kernel for WidenPlain<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let WidenPlain { from: PlainSource { data, b, n }, matrix, panel, ks, out } = self;
        let nr = 2 * S::LANES;
        let strides = b.strides;
        let columns = panel * nr..(panel * nr + nr).min(n);
        let out = &mut out[..ks.len() * nr];
        match data {
            PlainData::Floats(floats) if strides.col == 1 => typed!(floats, x => {
                for (k, row) in ks.zip(out.chunks_exact_mut(nr)) {
                    let at = strides.at(matrix, k, columns.start);
                    // behind the last row, where the stride may be anything, it is no place to read, but may be asked for
                    let ahead = x.as_ptr().wrapping_add(strides.row.wrapping_mul(ROWS_AHEAD).wrapping_add(at));
                    s.prefetch(ahead);
                    s.prefetch(ahead.wrapping_add(columns.len() - 1));
                    let (low, high) = row.split_at_mut(S::LANES);
                    let x = &x[at..at + columns.len()];
                    if columns.len() == nr {
                        s.store(low, s.load(x));
                        s.store(high, s.load(&x[S::LANES..]));
                        continue;
                    }
                    let (x0, x1) = x.split_at(x.len().min(S::LANES));
                    s.store(low, s.load_or(x0, 0.0));
                    s.store(high, s.load_or(x1, 0.0));
                }
            }),
            PlainData::Floats(floats) => {
                pad(out, nr, columns.len());
                typed!(floats, x => {
                    if strides.row == 1 {
                        for group in (0..columns.len()).step_by(S::LANES) {
                            let rows = S::LANES.min(columns.len() - group);
                            let at = strides.at(matrix, ks.start, columns.start + group);
                            let from = Columns { x, at, stride: strides.col };
                            interleave(s, rows, ks.len(), &mut out[group..], nr, &from);
                        }
                        return;
                    }
                    // a few steps of all columns at a time, so that what is written stays in L1
                    for (index, out) in out.chunks_mut(S::LANES * nr).enumerate() {
                        let count = out.len() / nr;
                        let k0 = ks.start + index * S::LANES;
                        for (i, column) in columns.clone().enumerate() {
                            let at = strides.at(matrix, k0, column);
                            spread(s, x, at, strides.row, count, &mut out[i..], nr);
                        }
                    }
                })
            }
            PlainData::Blocks(bytes) => {
                pad(out, nr, columns.len());
                let (len, size) = (b.dtype.block_len(), b.dtype.block_bytes());
                let mut values = [0.0; MAX_BLOCK];
                for (i, column) in columns.enumerate() {
                    // whole blocks: `ks` is in multiples of the longest block but for the end, which is a multiple of this one
                    let first = strides.at(matrix, ks.start, column) / len;
                    for j in 0..ks.len() / len {
                        let from = &bytes[(first + j) * size..(first + j + 1) * size];
                        if block::decode(b.dtype, from, &mut values[..len]).is_err() {
                            values.fill(f32::NAN); // the lengths agree, so that this does not happen
                        }
                        spread(s, &values, 0, 1, len, &mut out[j * len * nr + i..], nr);
                    }
                }
            }
        }
    }
}

/// Columns whose elements are contiguous, `stride` apart from each other.
struct Columns<'x, T> {
    x: &'x [T],
    at: usize,
    stride: usize,
}

// SAFETY: a slice can be read.
unsafe impl<T: Element> Rows for Columns<'_, T> {
    type Element = T;

    #[inline(always)]
    fn row(&self, row: usize, count: usize) -> (*const T, usize) {
        let x = &self.x[self.at + row * self.stride..][..count];
        (x.as_ptr(), x.len())
    }
    #[inline(always)]
    fn load<S: Simd>(&self, s: S, row: usize, i: usize, n: usize) -> S::V {
        let at = self.at + row * self.stride + i;
        s.load_or(&self.x[at..at + n], 0.0)
    }
}

/// Zeros in the columns from `used` on.
#[inline(always)]
fn pad(out: &mut [f32], nr: usize, used: usize) {
    if used < nr {
        for row in out.chunks_exact_mut(nr) {
            row[used..].fill(0.0);
        }
    }
}
