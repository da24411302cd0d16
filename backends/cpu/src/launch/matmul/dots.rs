//! Products with few rows or few columns, as dot products along k: the rows of A and the columns of B whose elements lie side by side
//! are read in place, so that nothing of the large operand is packed or transposed.
//!
//! The *few* are the rows of A or the columns of B, at most [`FEW`]; they are made contiguous f32 once for each matrix, where they
//! are not already. The *many* are the other side, whose elements along k must be neighbours: a task takes [`MANY`] of them. Where
//! there are too few tasks for the lanes, k is split, and after a barrier the parts are added in order: the number of parts depends on
//! the shape and the number of lanes, never on who was faster.

use super::driver::Finish;
use super::operand::{Floats, typed};
use super::tile::columns;
use super::{OVERHEAD, TASK, finish, rate, refuse_a, refuse_scales, row_at};
use crate::device::lanes;
use crate::launch::body::{Body, on, other_op};
use crate::launch::run::{self, read};
use crate::simd::{self, Element, Kernel, Simd};
use crate::spmd::Args;
use crate::team::Lane;
use perjoule_kernels::op::{MatMul, Op, Tensor2};
use perjoule_kernels::{Candidate, Config, DType, Error, Launch, Reason, Request, Result};
use std::ops::Range;

/// Most vectors of the few.
const FEW: usize = 64;

/// Vectors of the many that a task takes: whole panels of every instruction set.
const MANY: usize = 32;

/// Steps of k before the next vectors are read: a tile of the many then stays in L1. A multiple of every block format's length.
const DEPTH: usize = 2048;

/// Steps of k of all of the few that are made contiguous at a time.
const PACK: usize = 256;

/// f32 results of a task.
const SUMS: usize = FEW * MANY;

/// Most vectors of the many of a register tile, of which some types are widened beforehand.
const HEIGHT: usize = 4;

/// A row that computes dot products on `S`.
pub(crate) const fn row<S: Simd>(name: &'static str, configs: &'static [Config]) -> perjoule_kernels::Kernel {
    perjoule_kernels::Kernel::new(name, "matmul", cost::<S>, prepare::<S>)
        .with_configs(configs)
        .with_reject(reject::<S>)
}

/// Which side has few vectors.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Few {
    Rows,
    Columns,
}

/// The side with few vectors, where the other one's elements are neighbours along k.
fn few(op: &MatMul) -> Option<Few> {
    let rows = op.m <= FEW && (op.b.strides.row == 1 || op.k <= 1);
    let columns = op.n <= FEW && (op.a.strides.col == 1 || op.k <= 1) && !op.b.dtype.is_block();
    match (rows, columns) {
        (true, true) if op.n < op.m => Some(Few::Columns),
        (true, _) => Some(Few::Rows),
        (false, true) => Some(Few::Columns),
        (false, false) => None,
    }
}

/// Whether elements are widened into scratch before they are multiplied, not in registers.
fn widened(dtype: DType) -> bool {
    dtype.is_block() || dtype == DType::F8E4M3
}

fn reject<S: Simd>(Candidate { op, info, .. }: &Candidate<'_>) -> Option<Reason> {
    let Op::MatMul(op) = op else { return Some(Reason::new("runs matmul")) };
    let shape = || {
        few(op).is_none().then(|| {
            Reason::new(format!(
                "takes at most {FEW} rows beside columns of b, or {FEW} columns beside rows of a, that are contiguous along k"
            ))
        })
    };
    refuse_a(op.a.dtype).or_else(|| refuse_scales(op)).or_else(shape).or_else(|| simd::refusal::<S>(info))
}

fn cost<S: Simd>(Candidate { op, info, .. }: &Candidate<'_>) -> f32 {
    let Op::MatMul(m) = op else { return f32::INFINITY };
    let Some(side) = few(m) else { return f32::INFINITY };
    let lanes = lanes(info) as f32;
    let outputs = m.batch as f32 * m.m as f32 * m.n as f32;
    let products = outputs * m.k.next_multiple_of(S::LANES) as f32 / (0.9 * rate::<S>());
    let (few, step, many, (total, count)) = match side {
        Few::Rows => (m.a, m.a.strides.col, m.b, (m.n, m.m)),
        Few::Columns => (m.b, m.b.strides.row, m.a, (m.m, m.n)),
    };
    let vectors = m.batch as f32 * total as f32;
    // the last vector of k may be short, and is then loaded element by element
    let short = if m.k.is_multiple_of(S::LANES) { 0.0 } else { vectors * count.div_ceil(4) as f32 * 2e-8 };
    let widening = if widened(many.dtype) { vectors * m.k as f32 * 2e-10 } else { 0.0 };
    let matrices = if few.strides.batch == 0 { 1 } else { m.batch };
    let packing = match (few.dtype, step) {
        (DType::F32, 1) => 0.0,
        (_, 1) => 2e-10,
        _ => 1.2e-9,
    };
    let packing = matrices as f32 * count as f32 * m.k as f32 * packing;
    let work =
        products + widening + short + outputs * 2e-9 + m.batch as f32 * total.div_ceil(MANY) as f32 * TASK;
    // one barrier less than the blocked rows; the few of a single matrix are packed by every lane
    let packing = if matrices == 1 { packing } else { packing / lanes };
    let seconds = OVERHEAD - 2e-7 + work.max(op.bytes() as f32 / super::BANDWIDTH) / lanes + packing;
    // of two that are about as fast the one that reads a packed B is better, since more rows can share that copy
    if m.b_constant && !widened(m.b.dtype) { seconds * 1.1 } else { seconds }
}

fn prepare<S: Simd>(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let Op::MatMul(op) = request.op else { return Err(other_op(request.op)) };
    on::<S>(request, Dots::new::<S>(*op, lanes(request.info))?)
}

/// How a product is cut: fixed when it is prepared.
struct Dots {
    op: MatMul,
    side: Few,
    /// Tasks of a matrix.
    blocks: usize,
    /// Parts of k, and steps of k of each.
    splits: usize,
    split: usize,
    /// f32 of a lane for the few (0 where they are read in place), and for widened vectors of the many.
    packed: usize,
    wide: usize,
    lanes: usize,
    scratch: u64,
}

impl Dots {
    fn new<S: Simd>(op: MatMul, lanes: usize) -> Result<Self> {
        let overflow = Error::Overflow { op: "matmul", what: "the scratch" };
        let side = few(&op).unwrap_or(Few::Rows);
        let (f, stride, count, many, total) = match side {
            Few::Rows => (op.a.dtype, op.a.strides.col, op.m, op.b.dtype, op.n),
            Few::Columns => (op.b.dtype, op.b.strides.row, op.n, op.a.dtype, op.m),
        };
        let blocks = total.div_ceil(MANY);
        let units = op.batch.saturating_mul(blocks);
        // parts of less than two chunks are not worth a barrier
        let most = op.k / (2 * DEPTH);
        let wanted = if units == 0 || units >= 2 * lanes { 1 } else { (2 * lanes).div_ceil(units) };
        let split = op.k.div_ceil(wanted.min(most).max(1)).next_multiple_of(DEPTH);
        let splits = op.k.div_ceil(split.max(1)).max(1);
        let depth = op.k.min(split);
        let in_place = f == DType::F32 && (stride == 1 || op.k <= 1);
        let packed = if in_place { Some(0) } else { depth.checked_mul(count) };
        let packed = packed.and_then(|p| p.checked_next_multiple_of(16)).ok_or(overflow.clone())?;
        let wide = if widened(many) { HEIGHT * depth.min(DEPTH) } else { 0 };
        let own = packed.checked_add(wide + SUMS).and_then(|own| own.checked_mul(lanes));
        let parts = if splits == 1 { Some(0) } else { units.checked_mul(splits * SUMS) };
        let floats = own.and_then(|own| own.checked_add(parts?));
        let scratch = floats.and_then(|floats| (floats as u64).checked_mul(4)).ok_or(overflow)?;
        Ok(Dots { op, side, blocks, splits, split, packed, wide, lanes, scratch })
    }

    /// Rows and columns of a block.
    fn place(&self, block: usize) -> (Range<usize>, Range<usize>) {
        let of = |total: usize| block * MANY..(block * MANY + MANY).min(total);
        match self.side {
            Few::Rows => (0..self.op.m, of(self.op.n)),
            Few::Columns => (of(self.op.m), 0..self.op.n),
        }
    }

    /// Finishes and stores the results of a block, which lie as `[panel][row][NR]`.
    ///
    /// # Safety
    /// No other lane of the team touches these elements of C before the next barrier.
    unsafe fn store<S: Simd>(&self, s: S, finish: &Finish<'_>, batch: usize, block: usize, sums: &[f32]) {
        let (rows, cols) = self.place(block);
        let nr = columns::<S>();
        for (first, sums) in cols.step_by(nr).zip(sums.chunks(rows.len() * nr)) {
            let at = |row: usize| Some(row_at(&self.op, finish, batch, rows.start + row));
            // SAFETY: the caller's contract.
            unsafe { finish.rows(s, &at, first, self.op.n, sums) }
        }
    }
}

impl Body for Dots {
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
        let Some(finish) = finish(op, args) else { return };
        let which = match self.side {
            Few::Rows => [(0, op.a, op.a.strides.row, op.a.strides.col), (1, op.b, op.b.strides.col, 1)],
            Few::Columns => [(1, op.b, op.b.strides.col, op.b.strides.row), (0, op.a, op.a.strides.row, 1)],
        };
        let [(few_index, few, few_next, few_step), (many_index, many, many_next, _)] = which;
        let Some(few_data) = Floats::of(args, few_index, few.dtype) else { return };
        let many_data = match widened(many.dtype) {
            true => None,
            false => Floats::of(args, many_index, many.dtype),
        };
        let source = run::Source { bytes: args.read(many_index), dtype: many.dtype };
        let scratch = args.scratch::<f32>();
        let own = self.packed + self.wide + SUMS;
        // SAFETY: the lane's own part, sliced once.
        let own = unsafe { scratch.slice(lane.index() * own..(lane.index() + 1) * own) };
        let (packed, own) = own.split_at_mut(self.packed);
        let (wide, sums) = own.split_at_mut(self.wide);
        let parts = self.lanes * (self.packed + self.wide + SUMS);
        let units = op.batch * self.blocks * self.splits;
        // small matrices are claimed several at a time
        let at_once = (units / (8 * self.lanes)).clamp(1, 64);
        let mut prepared = None;
        while let Some(task) = lane.claim_near(units.div_ceil(at_once)) {
            for unit in task * at_once..((task + 1) * at_once).min(units) {
                let (index, split) = (unit / self.splits, unit % self.splits);
                let (batch, block) = (index / self.blocks, index % self.blocks);
                let ks = (split * self.split).min(op.k)..((split + 1) * self.split).min(op.k);
                let (rows, cols) = self.place(block);
                let (count, first) = match self.side {
                    Few::Rows => (rows.len(), cols.start),
                    Few::Columns => (cols.len(), rows.start),
                };
                let matrix = |t: &Tensor2| if t.strides.batch == 0 { 0 } else { batch };
                if self.packed > 0 && prepared != Some((matrix(&few), split)) {
                    prepared = Some((matrix(&few), split));
                    // a few steps of all vectors at a time: where they are apart, neighbouring vectors share cache lines
                    for k0 in ks.clone().step_by(PACK) {
                        let part = k0..ks.end.min(k0 + PACK);
                        for (i, to) in packed.chunks_mut(ks.len()).take(count).enumerate() {
                            let start = few.strides.at(batch, 0, 0) + i * few_next;
                            let to = &mut to[k0 - ks.start..part.end - ks.start];
                            few_data.pack(s, &[Some(start)], few_step, part.clone(), to);
                        }
                    }
                }
                // nothing is behind the strides where k is 0
                let start = |t: &Tensor2| if op.k == 0 { 0 } else { t.strides.at(batch, 0, 0) + ks.start };
                let (few, few_stride) = match (self.packed, few_data) {
                    (0, Floats::F32(x)) if op.k > 0 => (&x[start(&few)..], few_next),
                    _ => (&*packed, ks.len()),
                };
                let layout = Layout {
                    few_stride,
                    few: count,
                    many: if self.side == Few::Rows { cols.len() } else { rows.len() },
                    k: ks.len(),
                    rows: rows.len(),
                    side: self.side,
                };
                sums[..layout.len::<S>()].fill(0.0);
                let at = if op.k == 0 { 0 } else { start(&many) + first * many_next };
                match many_data {
                    Some(many) => typed!(many, many => {
                        s.vectorise(Block { layout, few, many: &many[at..], many_stride: many_next, sums: &mut *sums });
                    }),
                    None => wide_block(s, layout, few, (source, at, many_next), wide, sums),
                }
                if self.splits == 1 {
                    // SAFETY: a block is one lane's, and elements of C do not coincide.
                    unsafe { self.store(s, &finish, batch, block, sums) }
                } else {
                    // SAFETY: each unit has a part of its own, and one lane.
                    let part = unsafe { scratch.slice(parts + unit * SUMS..parts + (unit + 1) * SUMS) };
                    part.copy_from_slice(sums);
                }
            }
        }
        if self.splits == 1 {
            return;
        }
        lane.barrier();
        while let Some(index) = lane.claim_near(op.batch * self.blocks) {
            let first = parts + index * self.splits * SUMS;
            // SAFETY: after the barrier nobody writes the parts.
            let all = unsafe { scratch.shared(first..first + self.splits * SUMS) };
            sums.fill(0.0);
            for part in all.chunks_exact(SUMS) {
                sums.iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
            }
            // SAFETY: a block is one lane's, and elements of C do not coincide.
            unsafe { self.store(s, &finish, index / self.blocks, index % self.blocks, sums) }
        }
    }
}

/// Sizes of a block, and where its results lie.
#[derive(Clone, Copy)]
struct Layout {
    few_stride: usize,
    few: usize,
    many: usize,
    k: usize,
    rows: usize,
    side: Few,
}

impl Layout {
    /// Results, columns beyond the last included.
    fn len<S: Simd>(&self) -> usize {
        let cols = if self.side == Few::Rows { self.many } else { self.few };
        self.rows * cols.next_multiple_of(columns::<S>())
    }

    /// Index of a result.
    #[inline(always)]
    fn at<S: Simd>(&self, few: usize, many: usize) -> usize {
        let nr = columns::<S>();
        let (row, col) = if self.side == Few::Rows { (few, many) } else { (many, few) };
        (col / nr * self.rows + row) * nr + col % nr
    }
}

/// A block whose many are widened into `wide` first, a register tile's worth of vectors at a time.
#[inline(always)]
fn wide_block<S: Simd>(
    s: S,
    layout: Layout,
    few: &[f32],
    (source, at, stride): (run::Source<'_>, usize, usize),
    wide: &mut [f32],
    sums: &mut [f32],
) {
    for k0 in (0..layout.k).step_by(DEPTH) {
        let k = DEPTH.min(layout.k - k0);
        for first in (0..layout.many).step_by(HEIGHT) {
            let many = HEIGHT.min(layout.many - first);
            for (i, to) in wide.chunks_exact_mut(k).take(many).enumerate() {
                read(s, source, at + (first + i) * stride + k0, to);
            }
            let part = Part { layout: Layout { k, ..layout }, first, many };
            s.vectorise(Tiles { part, few: &few[k0..], many: &*wide, many_stride: k, sums });
        }
    }
}

/// Adds the dot products of a block to `sums`.
struct Block<'b, T> {
    layout: Layout,
    few: &'b [f32],
    many: &'b [T],
    many_stride: usize,
    sums: &'b mut [f32],
}

impl<T: Element> Kernel for Block<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Block { layout, few, many, many_stride, sums } = self;
        let mut k0 = 0;
        while k0 < layout.k {
            let k = DEPTH.min(layout.k - k0);
            let part = Part { layout: Layout { k, ..layout }, first: 0, many: layout.many };
            tiles(s, part, &few[k0..], &many[k0..], many_stride, sums);
            k0 += k;
        }
    }
}

/// Some of the many of a block, over a chunk of k.
#[derive(Clone, Copy)]
struct Part {
    layout: Layout,
    first: usize,
    many: usize,
}

/// Adds the dot products of a part to `sums`; `many` begins at the part's first vector.
struct Tiles<'b, T> {
    part: Part,
    few: &'b [f32],
    many: &'b [T],
    many_stride: usize,
    sums: &'b mut [f32],
}

impl<T: Element> Kernel for Tiles<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        tiles(s, self.part, self.few, self.many, self.many_stride, self.sums);
    }
}

#[inline(always)]
fn tiles<S: Simd, T: Element>(
    s: S,
    part: Part,
    few: &[f32],
    many: &[T],
    many_stride: usize,
    sums: &mut [f32],
) {
    let Part { layout, first, many: count } = part;
    /// One tile, with its accumulators in registers.
    macro_rules! tile {
        ($r:literal, $c:literal, $sets:literal, $i:expr, $j:expr) => {{
            let (few, many) = (&few[$j * layout.few_stride..], &many[$i * many_stride..]);
            let sum = tile::<S, T, $r, $c, $sets>(s, layout.k, many, many_stride, few, layout.few_stride);
            for (r, sum) in sum.iter().enumerate() {
                for (c, sum) in sum.iter().enumerate() {
                    sums[layout.at::<S>($j + c, first + $i + r)] += *sum;
                }
            }
        }};
    }
    // a tile's accumulators and operands fill the registers
    let height = if S::REGISTERS >= 32 { 4 } else { 3 };
    let mut i = 0;
    while i < count {
        let high = count - i >= height;
        let mut j = 0;
        while j < layout.few {
            let wide = match layout.few - j {
                1 => 1,
                2 | 3 => 2,
                _ => 4,
            };
            match (high, wide) {
                (true, 4) if S::REGISTERS >= 32 => tile!(4, 4, 1, i, j),
                (true, 2) if S::REGISTERS >= 32 => tile!(4, 2, 1, i, j),
                (true, 1) if S::REGISTERS >= 32 => tile!(4, 1, 2, i, j),
                (true, 4) => tile!(3, 4, 1, i, j),
                (true, 2) => tile!(3, 2, 1, i, j),
                (true, _) => tile!(3, 1, 2, i, j),
                (false, 4) => tile!(1, 4, 2, i, j),
                (false, 2) => tile!(1, 2, 4, i, j),
                (false, _) => tile!(1, 1, 4, i, j),
            }
            j += wide;
        }
        i += if high { height } else { 1 };
    }
}

/// Dot products of `R` vectors of the many and `C` of the few over `k` steps, with `SETS` sets of accumulators that take turns.
#[inline(always)]
fn tile<S: Simd, T: Element, const R: usize, const C: usize, const SETS: usize>(
    s: S,
    k: usize,
    many: &[T],
    many_stride: usize,
    few: &[f32],
    few_stride: usize,
) -> [[f32; C]; R] {
    let mut acc = [[[s.splat(0.0); C]; R]; SETS];
    assert!(many.len() >= (R - 1) * many_stride + k && few.len() >= (C - 1) * few_stride + k);
    let step = S::LANES * SETS;
    let whole = k / step * step;
    let mut at = 0;
    while at < whole {
        for (set, acc) in acc.iter_mut().enumerate() {
            let at = at + set * S::LANES;
            // SAFETY: `at + LANES <= k`, and `k` elements of each vector were checked to exist.
            unsafe {
                let mut y = [s.splat(0.0); C];
                for (c, y) in y.iter_mut().enumerate() {
                    *y = s.load_f32(few.as_ptr().add(c * few_stride + at));
                }
                for (r, acc) in acc.iter_mut().enumerate() {
                    let x = T::load(s, many.as_ptr().add(r * many_stride + at));
                    for (c, acc) in acc.iter_mut().enumerate() {
                        *acc = s.fma(x, y[c], *acc);
                    }
                }
            }
        }
        at += step;
    }
    while at < k {
        let end = k.min(at + S::LANES);
        let mut y = [s.splat(0.0); C];
        for (c, y) in y.iter_mut().enumerate() {
            *y = s.load_or(&few[c * few_stride + at..c * few_stride + end], 0.0);
        }
        for (r, acc) in acc[0].iter_mut().enumerate() {
            let x = s.load_or(&many[r * many_stride + at..r * many_stride + end], 0.0);
            for (c, acc) in acc.iter_mut().enumerate() {
                *acc = s.fma(x, y[c], *acc);
            }
        }
        at = end;
    }
    let mut sums = [[0.0; C]; R];
    for (r, sums) in sums.iter_mut().enumerate() {
        for (c, sum) in sums.iter_mut().enumerate() {
            let mut all = acc[0][r][c];
            for set in acc.iter().skip(1) {
                all = s.add(all, set[r][c]);
            }
            *sum = s.reduce_add(all);
        }
    }
    sums
}
