//! Operands of the blocked driver: A as it is packed, and what is read and written around the result. [`super::source`] has B.

use super::interleave::{Rows, interleave};
use crate::simd::{E4m3, Element, Kernel, Simd};
use crate::spmd::{Args, Out};
use half::{bf16, f16};
use perjoule_kernels::DType;
use std::ops::Range;
use std::ptr;

/// Calls `$body` with `$x` bound to the typed slice in a [`Floats`].
macro_rules! typed {
    ($floats:expr, $x:ident => $body:expr) => {
        match $floats {
            Floats::F32($x) => $body,
            Floats::F16($x) => $body,
            Floats::BF16($x) => $body,
            Floats::F8($x) => $body,
        }
    };
}

pub(crate) use typed;

/// An operand of a plain float type.
#[derive(Clone, Copy)]
pub(crate) enum Floats<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    BF16(&'a [bf16]),
    F8(&'a [E4m3]),
}

impl<'a> Floats<'a> {
    /// Operand `index` of a launch; `None` when it is of another kind.
    pub(crate) fn of(args: &'a Args, index: usize, dtype: DType) -> Option<Self> {
        match dtype {
            DType::F32 => Some(Floats::F32(args.read(index))),
            DType::F16 => Some(Floats::F16(args.read(index))),
            DType::BF16 => Some(Floats::BF16(args.read(index))),
            DType::F8E4M3 => Some(Floats::F8(args.read(index))),
            _ => None,
        }
    }

    /// `count` elements from `at` on, `stride` apart, at most a vector of them; 0 in the other lanes.
    #[inline(always)]
    pub(crate) fn load<S: Simd>(&self, s: S, at: usize, stride: usize, count: usize) -> S::V {
        typed!(self, x => {
            if stride == 1 {
                return s.load_or(&x[at..at + count.min(S::LANES)], 0.0);
            }
            let mut lanes = [0.0; crate::simd::MAX_LANES];
            for (i, lane) in lanes.iter_mut().take(count.min(S::LANES)).enumerate() {
                *lane = x[at + i * stride].widen();
            }
            s.load(&lanes)
        })
    }

    /// Widens rows of a matrix into the tile `[k][rows]` that the micro-kernel reads: row `r` starts at `starts[r]` and its elements
    /// are `stride` apart; a start of `None` gives zeros. Only the steps `ks` of k are written.
    pub(crate) fn pack<S: Simd>(
        &self,
        s: S,
        starts: &[Option<usize>],
        stride: usize,
        ks: Range<usize>,
        out: &mut [f32],
    ) {
        s.vectorise(PackRows { x: self, starts, stride, ks, out });
    }
}

/// The arguments of [`Floats::pack`].
struct PackRows<'p> {
    x: &'p Floats<'p>,
    starts: &'p [Option<usize>],
    stride: usize,
    ks: Range<usize>,
    out: &'p mut [f32],
}

impl Kernel for PackRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let PackRows { x, starts, stride, ks, out } = self;
        let (rows, count) = (starts.len(), ks.len());
        let neighbours = || {
            let first = *starts.first()?;
            let next = |(row, start): (usize, &Option<usize>)| *start == first.map(|first| first + row);
            starts.iter().enumerate().all(next).then_some(first)?
        };
        typed!(x, x => {
            if stride == 1 {
                interleave(s, rows, count, out, rows, &Contiguous { x, starts, first: ks.start });
            } else if let Some(first) = neighbours() {
                // a column of A at a time
                for (k, to) in ks.zip(out.chunks_exact_mut(rows)) {
                    let at = first + k * stride;
                    for (to, x) in to.chunks_mut(S::LANES).zip(x[at..at + rows].chunks(S::LANES)) {
                        s.store_some(to, s.load_or(x, 0.0));
                    }
                }
            } else {
                for (row, start) in starts.iter().enumerate() {
                    for (i, to) in out.iter_mut().skip(row).step_by(rows).take(count).enumerate() {
                        *to = start.map_or(0.0, |start| x[start + (ks.start + i) * stride].widen());
                    }
                }
            }
        })
    }
}

/// Rows whose elements are contiguous from element `first` on; those without a start are zero.
struct Contiguous<'x, T> {
    x: &'x [T],
    starts: &'x [Option<usize>],
    first: usize,
}

// SAFETY: a slice can be read.
unsafe impl<T: Element> Rows for Contiguous<'_, T> {
    type Element = T;

    #[inline(always)]
    fn row(&self, row: usize, count: usize) -> (*const T, usize) {
        let Some(start) = self.starts[row] else { return (ptr::null(), 0) };
        let x = &self.x[start + self.first..][..count];
        (x.as_ptr(), x.len())
    }
    #[inline(always)]
    fn load<S: Simd>(&self, s: S, row: usize, i: usize, n: usize) -> S::V {
        let Some(start) = self.starts[row] else { return s.splat(0.0) };
        let at = start + self.first + i;
        s.load_or(&self.x[at..at + n], 0.0)
    }
}

/// Widens `count` elements of `x` from `at` on, `stride` apart, to `to[0]`, `to[step]`, ..
#[inline(always)]
pub(super) fn spread<S: Simd, T: Element>(
    s: S,
    x: &[T],
    at: usize,
    stride: usize,
    count: usize,
    to: &mut [f32],
    step: usize,
) {
    if stride != 1 {
        for i in 0..count {
            to[i * step] = x[at + i * stride].widen();
        }
        return;
    }
    let x = &x[at..at + count];
    for (i, chunk) in x.chunks(S::LANES).enumerate() {
        let v = s.load_or(chunk, 0.0);
        let i = i * S::LANES;
        if step == 1 {
            s.store_some(&mut to[i..i + chunk.len()], v);
            continue;
        }
        let lanes = s.to_array(v);
        for (j, lane) in lanes.iter().take(chunk.len()).enumerate() {
            to[(i + j) * step] = *lane;
        }
    }
}

/// The result, of any plain float type.
#[derive(Clone, Copy)]
pub(crate) enum FloatsOut<'a> {
    F32(Out<'a, f32>),
    F16(Out<'a, f16>),
    BF16(Out<'a, bf16>),
    F8(Out<'a, E4m3>),
}

impl<'a> FloatsOut<'a> {
    /// Operand `index` of a launch; `None` when it is of another kind.
    pub(crate) fn of(args: &'a Args, index: usize, dtype: DType) -> Option<Self> {
        match dtype {
            DType::F32 => Some(FloatsOut::F32(args.out(index))),
            DType::F16 => Some(FloatsOut::F16(args.out(index))),
            DType::BF16 => Some(FloatsOut::BF16(args.out(index))),
            DType::F8E4M3 => Some(FloatsOut::F8(args.out(index))),
            _ => None,
        }
    }

    /// Rounds and stores the first `count` lanes (at most a vector), `stride` elements apart.
    ///
    /// # Safety
    /// No other lane of the team touches these elements before the next barrier.
    #[inline(always)]
    pub(crate) unsafe fn store<S: Simd>(&self, s: S, at: usize, stride: usize, count: usize, v: S::V) {
        /// One arm for each type.
        macro_rules! put {
            ($out:expr) => {{
                let count = count.min(S::LANES);
                if stride == 1 {
                    // SAFETY: no one else touches these elements.
                    s.store_some(unsafe { $out.slice(at..at + count) }, v);
                    return;
                }
                for (i, lane) in s.to_array(v).into_iter().take(count).enumerate() {
                    let at = at + i * stride;
                    // SAFETY: as above.
                    let to = unsafe { $out.slice(at..at + 1) };
                    to[0] = Element::narrow(lane);
                }
            }};
        }
        match self {
            FloatsOut::F32(out) => put!(out),
            FloatsOut::F16(out) => put!(out),
            FloatsOut::BF16(out) => put!(out),
            FloatsOut::F8(out) => put!(out),
        }
    }
}

/// How rows of A are packed: in steps along k, each of a word of 32 bits (or several) for one or several neighbours.
pub(crate) trait Words: Copy + Send + Sync + 'static {
    /// Elements of a step; the last one of a row is filled up with zeros.
    const PER: usize;
    /// Words of a step.
    const WORDS: usize = 1;
    /// Whether words are f32: a row of f32 is then packed as it is.
    const IN_PLACE: bool = false;

    /// Whether all tiles but the last one are as high as they can be; they are about equally high otherwise.
    const WHOLE: bool = false;
    /// Most rows of a block of A: whole tiles.
    const BLOCK_ROWS: usize = super::driver::BLOCK_ROWS;
    /// Most f32 results of a block.
    const BLOCK: usize = super::driver::BLOCK;
    /// Bytes of the second-level cache that these are for; a smaller one has smaller blocks.
    const L2: usize = super::driver::L2;

    /// Rows of the largest tile; at most [`super::tile::MOST_ROWS`].
    fn max_rows<S: Simd>() -> usize {
        super::tile::max_rows::<S>()
    }
}

/// Words that floats are packed in.
pub(crate) trait PackFloats: Words {
    /// As [`Floats::pack`], the tile being `[step][rows][word]`; `ks` begins at a whole step.
    fn pack<S: Simd>(
        s: S,
        a: &Floats<'_>,
        starts: &[Option<usize>],
        stride: usize,
        ks: Range<usize>,
        out: &mut [f32],
    );
}

/// Words of a row of `k` elements.
pub(crate) fn words<W: Words>(k: usize) -> usize {
    k.div_ceil(W::PER) * W::WORDS
}

/// Elements as f32.
#[derive(Clone, Copy)]
pub(crate) struct Singles;

impl Words for Singles {
    const PER: usize = 1;
    const IN_PLACE: bool = true;
}

impl PackFloats for Singles {
    fn pack<S: Simd>(
        s: S,
        a: &Floats<'_>,
        starts: &[Option<usize>],
        stride: usize,
        ks: Range<usize>,
        out: &mut [f32],
    ) {
        a.pack(s, starts, stride, ks, out);
    }
}
