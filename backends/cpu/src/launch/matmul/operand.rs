//! Operands of the blocked driver: A as it is packed, B as a source of panels, and what is read and written around the result.

use crate::simd::{E4m3, Element, Kernel, Simd};
use crate::spmd::{Args, Out};
use half::{bf16, f16};
use perjoule_kernels::op::Tensor2;
use perjoule_kernels::{DType, block};
use std::ops::Range;

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
        let (rows, count) = (self.starts.len(), self.ks.len());
        typed!(self.x, x => {
            for (row, start) in self.starts.iter().enumerate() {
                if count == 0 {
                    return;
                }
                let to = &mut self.out[row..];
                match start {
                    Some(start) => {
                        spread(s, x, start + self.ks.start * self.stride, self.stride, count, to, rows);
                    }
                    None => {
                        for k in 0..count {
                            to[k * rows] = 0.0;
                        }
                    }
                }
            }
        })
    }
}

/// Widens `count` elements of `x` from `at` on, `stride` apart, to `to[0]`, `to[step]`, ..
#[inline(always)]
fn spread<S: Simd, T: Element>(
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

/// B as panels of `NR` columns, `[k][NR]`, whose columns beyond `n` are zero.
pub(crate) trait Source: Copy {
    /// Element type of panels that lie in memory.
    type Stored: Element;
    /// Whether panels lie in memory, so that [`Source::panel`] may be called.
    const PACKED: bool;

    /// `ks` steps of a panel as they lie in memory.
    fn panel(&self, nr: usize, matrix: usize, panel: usize, ks: Range<usize>) -> &[Self::Stored];
    /// The same as f32, written to `out`.
    fn widen<S: Simd>(&self, s: S, matrix: usize, panel: usize, ks: Range<usize>, out: &mut [f32]);
}

/// What a row reads as B.
pub(crate) trait Format: Send + Sync + 'static {
    /// What it is during a launch.
    type Source<'a>: Source;
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
    type Source<'a> = PackedSource<'a, T>;
    fn source(args: &Args, index: usize, _: Tensor2, n: usize, k: usize) -> Option<PackedSource<'_, T>> {
        Some(PackedSource { data: args.read(index), n, k })
    }
}

impl<T: Element> Source for PackedSource<'_, T> {
    type Stored = T;
    const PACKED: bool = true;

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

/// Elements of the longest block.
const MAX_BLOCK: usize = 256;

impl Source for PlainSource<'_> {
    type Stored = f32;
    const PACKED: bool = false;

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
                    let (low, high) = row.split_at_mut(S::LANES);
                    let x = &x[at..at + columns.len()];
                    let (x0, x1) = x.split_at(x.len().min(S::LANES));
                    s.store(low, s.load_or(x0, 0.0));
                    s.store(high, s.load_or(x1, 0.0));
                }
            }),
            PlainData::Floats(floats) => {
                pad(out, nr, columns.len());
                typed!(floats, x => {
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

/// Zeros in the columns from `used` on.
#[inline(always)]
fn pad(out: &mut [f32], nr: usize, used: usize) {
    if used < nr {
        for row in out.chunks_exact_mut(nr) {
            row[used..].fill(0.0);
        }
    }
}
