//! Products of i8, exact in i32, on the blocked loop: words of four neighbours along k, those of B with 128 added to each, since the
//! instructions multiply a signed by an unsigned byte. What that adds to a result is 128 times the sum of its row of A, which is
//! known when A has been packed.

use super::amx::{self, Kind, PackedTiles, PlainTiles};
use super::driver::{BLOCK, BLOCK_ROWS, DEPTH, Finish, L2, Plan, Tiles, block};
use super::interleave::{Rows, interleave, load_words};
use super::operand::{Words, words};
use super::slab::Slabs;
use super::source::{Format, Source};
use super::tile::{MOST_ROWS, Quads, columns, max_rows};
use super::{TILES, blocked_in, finish, refuse_scales, row_at, widening};
use crate::device::lanes;
use crate::launch::body::{Body, on, other_op};
use crate::launch::pack::word_rows;
use crate::simd::{self, MAX_LANES, Simd};
use crate::spmd::{Args, Out};
use crate::team::Lane;
use perjoule_kernels::op::{MatMul, Op, Tensor2};
use perjoule_kernels::{
    Candidate, Config, DType, Error, Kernel, Launch, PackFormat, Reason, Request, Result,
};
use std::marker::PhantomData;
use std::ops::Range;

/// Largest k of a product with float results, whose sums must not wrap as i32 results do.
const MAX_DEPTH: usize = (1 << 31) / (128 * 128) - 1;

/// A row that reads B packed in words of u8.
pub(crate) const fn packed<S: Simd>(
    name: &'static str,
    configs: &'static [Config],
    packs: &'static [&'static PackFormat],
) -> Kernel {
    Kernel::new(name, "matmul", cost::<S>, prepare::<S, PackedQuads>)
        .with_configs(configs)
        .with_packs(packs)
        .with_reject(reject::<S>)
}

/// A row that reads B as the op lays it out.
pub(crate) const fn plain<S: Simd>(name: &'static str, configs: &'static [Config]) -> Kernel {
    Kernel::new(name, "matmul", cost_plain::<S>, prepare::<S, PlainQuads>)
        .with_configs(configs)
        .with_reject(reject::<S>)
}

/// A row that multiplies tiles of AMX.
pub(crate) const fn tiles<S: Simd, K: Kind>(
    name: &'static str,
    configs: &'static [Config],
    packs: &'static [&'static PackFormat],
) -> Kernel {
    Kernel::new(name, "matmul", cost_tiles::<S>, prepare::<S, PackedTiles<K>>)
        .with_configs(configs)
        .with_packs(packs)
        .with_reject(reject_tiles::<S, K>)
}

/// A row that multiplies tiles of AMX and reads B as the op lays it out.
pub(crate) const fn plain_tiles<S: Simd, K: Kind>(name: &'static str, configs: &'static [Config]) -> Kernel {
    Kernel::new(name, "matmul", cost_plain_tiles::<S>, prepare::<S, PlainTiles<K, PlainQuads>>)
        .with_configs(configs)
        .with_reject(reject_tiles::<S, K>)
}

fn reject_tiles<S: Simd, K: Kind>(candidate: &Candidate<'_>) -> Option<Reason> {
    reject::<S>(candidate).or_else(|| amx::refusal::<K>(candidate.info))
}

fn cost_tiles<S: Simd>(Candidate { op, info, .. }: &Candidate<'_>) -> f32 {
    let Op::MatMul(m) = op else { return f32::INFINITY };
    blocked_in::<S>(op, [m.batch, m.m.next_multiple_of(16), m.n, m.k], 2 * TILES, false, lanes(info))
}

fn cost_plain_tiles<S: Simd>(candidate: &Candidate<'_>) -> f32 {
    let Op::MatMul(m) = candidate.op else { return f32::INFINITY };
    cost_tiles::<S>(candidate) + bytes_plain::<S>(m, candidate)
}

fn reject<S: Simd>(Candidate { op, info, .. }: &Candidate<'_>) -> Option<Reason> {
    let Op::MatMul(op) = op else { return Some(Reason::new("runs matmul")) };
    let refused = match () {
        () if op.a.dtype != DType::I8 => Some(Reason::new("multiplies i8")),
        () if op.c.dtype != DType::I32 && op.k > MAX_DEPTH => {
            Some(Reason::new(format!("sums in i32, which k above {MAX_DEPTH} may overflow")))
        }
        () => refuse_scales(op),
    };
    refused.or_else(|| simd::refusal::<S>(info))
}

fn cost<S: Simd>(Candidate { op, info, .. }: &Candidate<'_>) -> f32 {
    let Op::MatMul(m) = op else { return f32::INFINITY };
    // without the instruction a step takes about eight
    let steps = if S::DOT_QUADS { 1 } else { 4 };
    blocked_in::<S>(op, [m.batch, m.m, m.n, m.k * steps], Bytes::<1>::PER, false, lanes(info))
}

fn cost_plain<S: Simd>(candidate: &Candidate<'_>) -> f32 {
    let Op::MatMul(m) = candidate.op else { return f32::INFINITY };
    cost::<S>(candidate) + bytes_plain::<S>(m, candidate)
}

/// Seconds to bring a plain B into panels, once for all blocks.
fn bytes_plain<S: Simd>(m: &MatMul, candidate: &Candidate<'_>) -> f32 {
    let blocks = m.batch as f32 * m.m.div_ceil(BLOCK_ROWS) as f32;
    let busy = (blocks * m.n.div_ceil(columns::<S>()) as f32).clamp(1.0, lanes(candidate.info) as f32);
    m.batch as f32 * m.n as f32 * m.k as f32 * (widening(&m.b) + 6e-10) / busy
}

/// Bytes as they are, four in a word, `WORDS` words in a step.
#[derive(Clone, Copy)]
pub(crate) struct Bytes<const WORDS: usize>;

impl<const WORDS: usize> Words for Bytes<WORDS> {
    const PER: usize = 4 * WORDS;
    const WORDS: usize = WORDS;
    const WHOLE: bool = WORDS == amx::WORDS;
    const BLOCK_ROWS: usize = if WORDS == amx::WORDS { amx::BLOCK_ROWS } else { BLOCK_ROWS };
    const BLOCK: usize = if WORDS == amx::WORDS { amx::BLOCK } else { BLOCK };
    const L2: usize = if WORDS == amx::WORDS { amx::L2 } else { L2 };

    fn max_rows<S: Simd>() -> usize {
        if WORDS == amx::WORDS { MOST_ROWS } else { max_rows::<S>() }
    }
}

/// B packed as `quads{NR}_u8`.
struct PackedQuads;

/// See [`PackedQuads`].
#[derive(Clone, Copy)]
struct PackedQuadsSource<'a> {
    words: &'a [f32],
    n: usize,
    k: usize,
}

impl Format for PackedQuads {
    type A = Bytes<1>;
    type Source<'a> = PackedQuadsSource<'a>;

    fn source(args: &Args, index: usize, _: Tensor2, n: usize, k: usize) -> Option<PackedQuadsSource<'_>> {
        Some(PackedQuadsSource { words: args.read(index), n, k })
    }
}

impl Source for PackedQuadsSource<'_> {
    type A = Bytes<1>;
    type Direct = Quads;
    type Widened = Quads;
    const PACKED: bool = true;
    const WIDENS: bool = false;

    #[inline(always)]
    fn panel(&self, nr: usize, matrix: usize, panel: usize, ks: Range<usize>) -> &[f32] {
        let first = (matrix * self.n.div_ceil(nr) + panel) * word_rows::<4>(self.k);
        &self.words[(first + ks.start / 4) * nr..(first + ks.end.div_ceil(4)) * nr]
    }

    fn widen<S: Simd>(&self, _: S, _: usize, _: usize, _: Range<usize>, _: &mut [f32]) {}
}

/// B as the op lays it out.
struct PlainQuads;

/// See [`PlainQuads`].
#[derive(Clone, Copy)]
struct PlainQuadsSource<'a> {
    bytes: &'a [u8],
    b: Tensor2,
    n: usize,
}

impl Format for PlainQuads {
    type A = Bytes<1>;
    type Source<'a> = PlainQuadsSource<'a>;

    fn source(args: &Args, index: usize, b: Tensor2, n: usize, _: usize) -> Option<PlainQuadsSource<'_>> {
        Some(PlainQuadsSource { bytes: args.read(index), b, n })
    }
}

impl Source for PlainQuadsSource<'_> {
    type A = Bytes<1>;
    type Direct = Quads;
    type Widened = Quads;
    const PACKED: bool = false;
    const WIDENS: bool = true;

    fn panel(&self, _: usize, _: usize, _: usize, _: Range<usize>) -> &[f32] {
        &[]
    }

    fn widen<S: Simd>(&self, s: S, matrix: usize, panel: usize, ks: Range<usize>, out: &mut [f32]) {
        s.vectorise(Widen { from: *self, matrix, panel, ks, out });
    }
}

/// The arguments of the plain [`Source::widen`].
struct Widen<'w> {
    from: PlainQuadsSource<'w>,
    matrix: usize,
    panel: usize,
    ks: Range<usize>,
    out: &'w mut [f32],
}

impl simd::Kernel for Widen<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Widen { from: PlainQuadsSource { bytes, b, n }, matrix, panel, ks, out } = self;
        let nr = columns::<S>();
        let columns = panel * nr..(panel * nr + nr).min(n);
        let (strides, rows) = (b.strides, ks.len().div_ceil(4));
        let out = &mut out[..rows * nr];
        if strides.row == 1 {
            if columns.len() < nr {
                out.fill(0.0);
            }
            for group in (0..columns.len()).step_by(S::LANES) {
                let height = S::LANES.min(columns.len() - group);
                let at = strides.at(matrix, ks.start, columns.start + group);
                let from = ByteRows { bytes, at, stride: strides.col, len: ks.len() };
                interleave(s, height, rows, &mut out[group..], nr, &from);
            }
        } else {
            let out: &mut [[u8; 4]] = bytemuck::cast_slice_mut(out);
            for (i, out) in out.chunks_exact_mut(nr).enumerate() {
                let step = ks.start + 4 * i;
                let row = |j: usize| {
                    let at = strides.at(matrix, step + j, columns.start);
                    &bytes[at..at + columns.len()]
                };
                if strides.col == 1 && columns.len() == nr && step + 4 <= ks.end {
                    let [w, x, y, z] = std::array::from_fn(row);
                    for ((((out, w), x), y), z) in out.iter_mut().zip(w).zip(x).zip(y).zip(z) {
                        *out = [*w, *x, *y, *z];
                    }
                    continue;
                }
                for (index, out) in out.iter_mut().enumerate() {
                    let left = if index < columns.len() { ks.end - step } else { 0 };
                    let first = strides.at(matrix, step, columns.start + index.min(columns.len() - 1));
                    *out = word(bytes, first, strides.row, left);
                }
            }
        }
        // from i8 to u8; what is beyond k and n meets zeros of A, or is not stored
        for word in bytemuck::cast_slice_mut::<f32, u32>(out) {
            *word ^= 0x8080_8080;
        }
    }
}

/// Rows of `len` bytes, `stride` apart, zeros behind them.
struct ByteRows<'x> {
    bytes: &'x [u8],
    at: usize,
    stride: usize,
    len: usize,
}

// SAFETY: a slice can be read.
unsafe impl Rows for ByteRows<'_> {
    type Element = f32;

    #[inline(always)]
    fn row(&self, row: usize, count: usize) -> (*const f32, usize) {
        whole_words(&self.bytes[self.at + row * self.stride..][..self.len], count)
    }
    #[inline(always)]
    fn load<S: Simd>(&self, s: S, row: usize, i: usize, n: usize) -> S::V {
        let at = self.at + row * self.stride;
        load_words(s, &self.bytes[at + 4 * i..at + self.len.min(4 * (i + n))])
    }
}

/// The same where each starts anywhere.
struct ByteStarts<'x> {
    bytes: &'x [u8],
    starts: &'x [usize],
    len: usize,
}

// SAFETY: a slice can be read.
unsafe impl Rows for ByteStarts<'_> {
    type Element = f32;

    #[inline(always)]
    fn row(&self, row: usize, count: usize) -> (*const f32, usize) {
        whole_words(&self.bytes[self.starts[row]..][..self.len], count)
    }
    #[inline(always)]
    fn load<S: Simd>(&self, s: S, row: usize, i: usize, n: usize) -> S::V {
        let at = self.starts[row];
        load_words(s, &self.bytes[at + 4 * i..at + self.len.min(4 * (i + n))])
    }
}

/// The first of up to `count` words that the bytes have, and how many there are.
#[inline(always)]
fn whole_words(bytes: &[u8], count: usize) -> (*const f32, usize) {
    (bytes.as_ptr().cast(), count.min(bytes.len() / 4))
}

/// The four bytes from `at` on, `stride` apart; 0 where fewer than four are left.
#[inline(always)]
fn word(bytes: &[u8], at: usize, stride: usize, left: usize) -> [u8; 4] {
    if stride == 1
        && left >= 4
        && let Some(word) = bytes[at..].first_chunk()
    {
        return *word;
    }
    std::array::from_fn(|i| if i < left { bytes[at + i * stride] } else { 0 })
}

/// Packs the rows of a tile, `[step][row]` runs of `each` words with zeros behind the last byte, and adds up each row.
struct PackTile<'a> {
    bytes: &'a [u8],
    /// Where the rows start.
    starts: &'a [usize],
    stride: usize,
    k: usize,
    out: &'a mut [f32],
    each: usize,
    sums: &'a mut [i32],
}

impl simd::Kernel for PackTile<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let PackTile { bytes, starts, stride, k, out, each, sums } = self;
        let (height, steps) = (starts.len(), k.div_ceil(4 * each));
        if stride != 1 {
            let out: &mut [[u8; 4]] = bytemuck::cast_slice_mut(out);
            for ((row, start), sum) in starts.iter().enumerate().zip(sums) {
                *sum = 0;
                for (step, out) in out.chunks_mut(height * each).take(steps).enumerate() {
                    for (w, to) in out[row * each..][..each].iter_mut().enumerate() {
                        let first = (4 * (step * each + w)).min(k);
                        *to = word(bytes, start + first * stride, stride, k - first);
                        *sum = to.iter().fold(*sum, |sum, &byte| sum.wrapping_add(i32::from(byte as i8)));
                    }
                }
            }
            return;
        }
        if each == 1 {
            interleave(s, height, steps, out, height, &ByteStarts { bytes, starts, len: k });
        }
        // pieces short enough for sums in i16 become the widest vectors
        let part = |part: &[u8]| part.iter().map(|&byte| i16::from(byte as i8)).sum::<i16>();
        for ((row, start), sum) in starts.iter().enumerate().zip(sums) {
            let bytes = &bytes[*start..start + k];
            if each > 1 {
                for (out, bytes) in out.chunks_mut(height * each).zip(bytes.chunks(4 * each)) {
                    let out: &mut [u8] = bytemuck::cast_slice_mut(&mut out[row * each..][..each]);
                    let (whole, rest) = out.split_at_mut(bytes.len());
                    whole.copy_from_slice(bytes);
                    rest.fill(0);
                }
            }
            *sum = bytes.chunks(128).fold(0, |sum: i32, piece| sum.wrapping_add(i32::from(part(piece))));
        }
    }
}

fn prepare<S: Simd, F: Format>(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let Op::MatMul(op) = request.op else { return Err(other_op(request.op)) };
    let overflow = Error::Overflow { op: "matmul", what: "the scratch" };
    let rows = op.batch.checked_mul(op.m).ok_or(overflow.clone())?;
    let mut plan = Plan::new::<S, F::A>(rows, op.k, request.info);
    // behind the words of all rows lie their sums
    plan.words += 1;
    let slabs = Slabs::new::<S, F::Source<'static>>(&plan, op.m, op.n, op.k);
    let scratch = plan.scratch(plan.round).and_then(|bytes| bytes.checked_add(4 * slabs.len() as u64));
    let scratch = scratch.ok_or(overflow)?;
    on::<S>(request, Integers::<F> { op: *op, plan, slabs, scratch, format: PhantomData })
}

/// The body of the rows.
struct Integers<F> {
    op: MatMul,
    plan: Plan,
    slabs: Slabs,
    scratch: u64,
    format: PhantomData<fn() -> F>,
}

/// A part of the matrices and blocks of a product.
struct Part<'p, 't> {
    to: &'p To<'t>,
    all: Tiles,
    batch: Range<usize>,
    blocks: Range<usize>,
}

/// Where results go.
enum To<'a> {
    Integers(Out<'a, i32>),
    Floats(Finish<'a>),
}

impl<F: Format> Body for Integers<F> {
    fn scratch(&self) -> u64 {
        self.scratch
    }

    fn short(&self) -> bool {
        super::short(&self.op)
    }

    #[inline(always)]
    fn run<S: Simd>(&self, s: S, lane: &Lane<'_>, args: &Args) {
        let op = &self.op;
        if op.batch == 0 || op.m == 0 || op.n == 0 {
            return;
        }
        let to = match op.c.dtype {
            DType::I32 => Some(To::Integers(args.out(2))),
            _ => finish(op, args).map(To::Floats),
        };
        let (Some(b), Some(to)) = (F::source(args, 1, op.b, op.n, op.k), to) else { return };
        let tiles = self.plan.tiles::<S, F::A>(op.m);
        let blocks = tiles.blocks();
        // a round is as many whole matrices as fit, or else a part of one
        let matrices = (self.plan.round / op.m).clamp(1, op.batch);
        let at_once = self.plan.at_once(op.m, blocks);
        for first in (0..op.batch).step_by(matrices) {
            let batch = first..(first + matrices).min(op.batch);
            for block0 in (0..blocks).step_by(at_once) {
                let last = (block0 + at_once).min(blocks);
                self.round(s, lane, args, (&b, &to), tiles, batch.clone(), block0..last);
                if batch.end < op.batch || last < blocks {
                    lane.barrier(); // the next round overwrites the packed A
                }
            }
        }
    }
}

impl<F: Format> Integers<F> {
    /// Where the sums of the packed rows begin.
    fn sums(&self) -> usize {
        self.plan.round * words::<F::A>(self.op.k)
    }

    /// Packs the rows of a tile of `tiles` of a matrix of `batch`, the item `item` of them all, and adds up each of its rows.
    fn pack<S: Simd>(
        &self,
        s: S,
        args: &Args,
        all: Tiles,
        batch: &Range<usize>,
        tiles: &Range<usize>,
        item: usize,
    ) {
        let op = &self.op;
        let (a, scratch) = (args.read::<u8>(0), args.scratch::<f32>());
        let first_row = all.start(tiles.start);
        let rows = all.start(tiles.end) - first_row;
        let words = words::<F::A>(op.k);
        let (matrix, tile) = (item / tiles.len(), all.rows(tiles.start + item % tiles.len()));
        let (at, height) = (matrix * rows + tile.start - first_row, tile.len());
        // SAFETY: tiles and their sums are disjoint, and every item is one lane's.
        let (out, sums) = unsafe {
            (
                scratch.slice(at * words..(at + height) * words),
                scratch.slice(self.sums() + at..self.sums() + at + height),
            )
        };
        let mut starts = [0; MOST_ROWS];
        for (start, row) in starts.iter_mut().zip(tile) {
            *start = op.a.strides.at(batch.start + matrix, row, 0);
        }
        let sums = bytemuck::cast_slice_mut(sums);
        let (starts, stride, each) = (&starts[..height], op.a.strides.col, F::A::WORDS);
        if op.k == 0 {
            sums.fill(0);
            return;
        }
        s.vectorise(PackTile { bytes: a, starts, stride, k: op.k, out, each, sums });
    }

    /// The blocks `blocks` of each matrix in `batch`.
    #[allow(clippy::too_many_arguments, reason = "the operands and the bounds of a round")]
    fn round<S: Simd, B: Source<A = F::A>>(
        &self,
        s: S,
        lane: &Lane<'_>,
        args: &Args,
        (b, to): (&B, &To<'_>),
        all: Tiles,
        batch: Range<usize>,
        blocks: Range<usize>,
    ) {
        let (op, nr) = (&self.op, columns::<S>());
        let tiles = all.block(blocks.start).start..all.block(blocks.end - 1).end;
        let panels = op.n.div_ceil(nr);
        let part = Part { to, all, batch, blocks };
        let items = part.batch.len() * tiles.len();
        let pack = |item: usize| self.pack(s, args, all, &part.batch, &tiles, item);
        if self.slabs.len() == 0 {
            lane.share(items).for_each(pack);
            lane.barrier();
            self.panels(s, lane, args, &part, b, part.batch.clone(), 0..panels);
            return;
        }
        // one B for all matrices, or each its own
        let same = op.b.strides.batch == 0;
        let matrices = if same { 1 } else { part.batch.len() };
        let (scratch, at) = (args.scratch::<f32>(), self.slabs.start(&self.plan, self.plan.round));
        for index in 0..matrices {
            let first = part.batch.start + index;
            let batch = if same { part.batch.clone() } else { first..first + 1 };
            let matrix = if same { 0 } else { first };
            for panels in self.slabs.cut(panels) {
                if index > 0 || panels.start > 0 {
                    lane.barrier(); // the last slab has been read
                }
                let beside = (if index > 0 || panels.start > 0 { 0 } else { items }, pack);
                let slab = self.slabs.widen(s, lane, b, matrix, panels.clone(), op.k, scratch, at, beside);
                self.panels(s, lane, args, &part, &slab, batch.clone(), panels);
            }
        }
    }

    /// The panels `panels` of the matrices `of`, a few at a time.
    #[inline(always)]
    #[allow(clippy::too_many_arguments, reason = "the operands and the bounds of a part of a round")]
    fn panels<S: Simd, B: Source<A = F::A>>(
        &self,
        s: S,
        lane: &Lane<'_>,
        args: &Args,
        part: &Part<'_, '_>,
        b: &B,
        of: Range<usize>,
        panels: Range<usize>,
    ) {
        let Part { to, all, batch, blocks } = part;
        let (op, plan, nr) = (&self.op, &self.plan, columns::<S>());
        let first_row = all.start(all.block(blocks.start).start);
        let rows = all.start(all.block(blocks.end - 1).end) - first_row;
        let scratch = args.scratch::<f32>();
        // SAFETY: the lane's own part.
        let own = unsafe { scratch.slice(plan.own(plan.round, lane.index())) };
        let independent = of.len() * blocks.len();
        let per_task = plan.chunk::<S>(rows, panels.len(), independent);
        let words = words::<F::A>(op.k);
        let chunks = panels.len().div_ceil(per_task);
        while let Some(task) = lane.claim_near(independent * chunks) {
            // neighbouring tasks share the rows of A, which this lane has packed
            let (index, chunk) = (task / chunks, task % chunks);
            let (matrix, tiles) = (index / blocks.len(), all.block(blocks.start + index % blocks.len()));
            let chunk = panels.start + chunk * per_task;
            let chunk = chunk..(chunk + per_task).min(panels.end);
            let index = of.start + matrix - batch.start;
            let batch = of.start + matrix;
            let b_matrix = if op.b.strides.batch == 0 { 0 } else { batch };
            let (first, height) = (all.start(tiles.start), all.start(tiles.end) - all.start(tiles.start));
            let at = index * rows + first - first_row;
            // SAFETY: packed before the barrier, and not written before the next.
            let (a, sums) = unsafe {
                (
                    scratch.shared(at * words..(at + height) * words),
                    scratch.shared(self.sums() + at..self.sums() + at + height),
                )
            };
            let (widened, results) = own.split_at_mut(DEPTH * nr);
            let results =
                block(s, b, b_matrix, chunk.clone(), op.k, a, *all, tiles, widened, results, None).rest;
            for (panel, results) in chunk.zip(results.chunks_exact(height * nr)) {
                for ((row, sum), results) in (first..).zip(sums).zip(results.chunks_exact(nr)) {
                    let offset = (sum.to_bits() as i32).wrapping_mul(128);
                    // SAFETY: a row of a panel belongs to one task, and elements of C do not coincide.
                    unsafe { self.store(s, to, batch, row, panel * nr, offset, results) }
                }
            }
        }
    }

    /// Stores a row of a panel, less `offset`.
    ///
    /// # Safety
    /// No other lane of the team touches these elements of C before the next barrier.
    #[inline(always)]
    #[allow(clippy::too_many_arguments, reason = "a row of results, and where it goes")]
    unsafe fn store<S: Simd>(
        &self,
        s: S,
        to: &To<'_>,
        batch: usize,
        row: usize,
        column: usize,
        offset: i32,
        results: &[f32],
    ) {
        let op = &self.op;
        let exact = |x: &f32| (x.to_bits() as i32).wrapping_sub(offset);
        match to {
            To::Integers(out) => {
                let count = results.len().min(op.n - column);
                let at = op.c.strides.at(batch, row, column);
                if op.c.strides.col == 1 {
                    // SAFETY: the caller's contract.
                    let to = unsafe { out.slice(at..at + count) };
                    to.iter_mut().zip(results).for_each(|(to, result)| *to = exact(result));
                    return;
                }
                for (i, result) in results[..count].iter().enumerate() {
                    let at = at + i * op.c.strides.col;
                    // SAFETY: the caller's contract.
                    unsafe { out.slice(at..at + 1)[0] = exact(result) };
                }
            }
            To::Floats(finish) => {
                let mut sums = [0.0; 2 * MAX_LANES];
                for (sum, result) in sums.iter_mut().zip(results) {
                    *sum = exact(result) as f32;
                }
                // SAFETY: the caller's contract.
                unsafe {
                    let at = |_| Some(row_at(op, finish, batch, row));
                    finish.rows(s, &at, column, op.n, &sums[..columns::<S>()]);
                }
            }
        }
    }
}
