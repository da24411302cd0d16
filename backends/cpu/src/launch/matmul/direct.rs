//! Products that pack nothing: a register tile reads A and B where they lie, so that small products spend no time on panels.
//!
//! A tile is [`ROWS`] rows by [`vectors`] vectors of columns: few rows, since each broadcasts its own elements, and many columns, so
//! that every broadcast serves several products. Rows of A must be contiguous along k, those of B along n; B's may be so far apart that
//! caches hold few of them, which is where packing pays. The sums of a tile stay in registers for all of k.
//!
//! Lanes claim tasks, each some tiles of one panel of columns. There is no barrier.

use super::driver::Finish;
use super::{OVERHEAD, TASK, finish, rate, refuse_scales, rounding, row_at};
use crate::device::{CpuCaps, lanes};
use crate::launch::body::{Body, on, other_op};
use crate::simd::{self, Kernel, Simd};
use crate::spmd::Args;
use crate::team::Lane;
use bytemuck::Pod;
use half::bf16;
use perjoule_kernels::op::{MatMul, Op};
use perjoule_kernels::{Candidate, Config, DType, Launch, Numerics, Reason, Request, Result};
use std::marker::PhantomData;

/// Rows of the largest tile.
const ROWS: usize = 6;

/// Most vectors of a tile.
const MOST_VECTORS: usize = 4;

/// Steps of a panel that the second level of the caches holds, where rows do not compete for places in it.
const DEPTH: usize = 1024;

/// Tasks of a lane, where a product has enough: lanes are not equally fast.
const TASKS: usize = 4;

/// Operations on f32 that take two lanes less time than one: a microsecond.
const DIVIDED: u64 = 100_000;

/// Vectors of columns of the largest tile: with [`ROWS`] rows they leave registers for as many of B and for what is broadcast.
const fn vectors<S: Simd>() -> usize {
    S::REGISTERS / 8
}

/// Columns of a panel.
const fn columns<S: Simd>() -> usize {
    vectors::<S>() * S::LANES
}

/// How elements are multiplied: a step along k is a word of 32 bits of A, and of each column of B.
pub(crate) trait Words: Copy + Send + Sync + 'static {
    /// Of A and B.
    type Element: Pod + Send + Sync;
    /// Its name in descriptors.
    const DTYPE: DType;
    /// Elements of a word; divides the vectors of a panel.
    const PER: usize = 4 / size_of::<Self::Element>();

    /// Makes words of rows of B, in place: of each [`Words::PER`] vectors, that are the same columns of as many rows, vectors of words of
    /// these columns, in an order that [`Words::restore`] undoes.
    fn gather<S: Simd>(s: S, rows: &mut [S::V]);
    /// sum + a b
    fn multiply<S: Simd>(s: S, a: S::V, b: S::V, sum: S::V) -> S::V;
    /// Brings sums into the order of their columns.
    fn restore<S: Simd>(s: S, sums: &mut [S::V]);
}

/// Elements of f32.
#[derive(Clone, Copy)]
pub(crate) struct Singles;

impl Words for Singles {
    type Element = f32;
    const DTYPE: DType = DType::F32;

    #[inline(always)]
    fn gather<S: Simd>(_: S, _: &mut [S::V]) {}
    #[inline(always)]
    fn multiply<S: Simd>(s: S, a: S::V, b: S::V, sum: S::V) -> S::V {
        s.fma(a, b, sum)
    }
    #[inline(always)]
    fn restore<S: Simd>(_: S, _: &mut [S::V]) {}
}

/// Pairs of bf16.
#[derive(Clone, Copy)]
pub(crate) struct Pairs;

impl Words for Pairs {
    type Element = bf16;
    const DTYPE: DType = DType::BF16;

    #[inline(always)]
    fn gather<S: Simd>(s: S, rows: &mut [S::V]) {
        for pair in rows.as_chunks_mut::<2>().0 {
            *pair = s.pair_up(pair[0], pair[1]);
        }
    }
    #[inline(always)]
    fn multiply<S: Simd>(s: S, a: S::V, b: S::V, sum: S::V) -> S::V {
        s.dot_pairs(a, b, sum)
    }
    #[inline(always)]
    fn restore<S: Simd>(s: S, sums: &mut [S::V]) {
        for pair in sums.as_chunks_mut::<2>().0 {
            *pair = s.in_order(*pair);
        }
    }
}

/// A row that multiplies `W` on `S`.
pub(crate) const fn row<S: Simd, W: Words>(
    name: &'static str,
    configs: &'static [Config],
) -> perjoule_kernels::Kernel {
    perjoule_kernels::Kernel::new(name, "matmul", cost::<S, W>, prepare::<S, W>)
        .with_configs(configs)
        .with_numerics(numerics::<S, W>)
        .with_reject(reject::<S, W>)
}

fn numerics<S: Simd, W: Words>(_: &Candidate<'_>) -> Numerics {
    if W::PER == 1 { Numerics::F32 } else { rounding::<S>(W::DTYPE, W::DTYPE) }
}

fn reject<S: Simd, W: Words>(Candidate { op, info, .. }: &Candidate<'_>) -> Option<Reason> {
    let Op::MatMul(op) = op else { return Some(Reason::new("runs matmul")) };
    let layout = || {
        let contiguous = (op.a.strides.col == 1 || op.k <= 1) && (op.b.strides.col == 1 || op.n <= 1);
        (!contiguous).then(|| Reason::new("reads rows of a that are contiguous along k, and of b along n"))
    };
    let dtypes = (op.a.dtype != W::DTYPE || op.b.dtype != W::DTYPE)
        .then(|| Reason::new(format!("reads a and b in {}", W::DTYPE)));
    dtypes.or_else(|| refuse_scales(op)).or_else(layout).or_else(|| simd::refusal::<S>(info))
}

fn cost<S: Simd, W: Words>(Candidate { op, info, .. }: &Candidate<'_>) -> f32 {
    let Op::MatMul(m) = op else { return f32::INFINITY };
    let lanes = lanes(info) as f32;
    let step = S::LANES * W::PER;
    let (rows, steps) = (m.batch as f32 * m.m as f32, m.k.div_ceil(W::PER));
    // the rows of a deep panel have left the second level of the caches when the next tile reads them; those a power of two apart share
    // its sets, and leave it earlier (a stride that no second row uses may be anything)
    let apart = m.b.strides.row.wrapping_mul(W::DTYPE.block_bytes());
    let apart = (1usize << apart.trailing_zeros().min(31)).max(64);
    let places = info.caps::<CpuCaps>().map_or(DEPTH, |caps| caps.caches.l2 / apart);
    let again = if (steps > DEPTH || m.k > places) && m.m > 4 * ROWS { 1.5 } else { 1.0 };
    let products = again * rows * m.n.next_multiple_of(step) as f32 * steps as f32 / rate::<S>();
    let tiles = m.batch as f32 * (m.m.div_ceil(ROWS) * m.n.div_ceil(columns::<S>())) as f32;
    let busy = tiles.clamp(1.0, lanes);
    let work = (products + tiles * TASK).max(op.bytes() as f32 / super::BANDWIDTH) / busy;
    // one barrier less than the blocked rows; and see `dots` for constants
    let seconds = OVERHEAD - 5e-7 + work;
    if m.b_constant { seconds * 1.1 } else { seconds }
}

fn prepare<S: Simd, W: Words>(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let Op::MatMul(op) = request.op else { return Err(other_op(request.op)) };
    let (heights, panels) = (op.m.div_ceil(ROWS), op.n.div_ceil(columns::<S>()));
    let tiles = op.batch.saturating_mul(heights).saturating_mul(panels);
    let chunk = (tiles / (lanes(request.info) * TASKS)).clamp(1, heights.max(1));
    on::<S>(request, Direct::<W> { op: *op, heights, panels, chunk, words: PhantomData })
}

/// The body of the rows.
struct Direct<W> {
    op: MatMul,
    /// Tiles of a panel, about equally high.
    heights: usize,
    /// Panels of a matrix.
    panels: usize,
    /// Tiles of a task.
    chunk: usize,
    words: PhantomData<W>,
}

/// Results of a tile that are not stored as they are, as [`Finish::rows`] takes them.
#[repr(align(64))]
struct Sums([f32; ROWS * MOST_VECTORS * simd::MAX_LANES]);

impl<W: Words> Body for Direct<W> {
    fn short(&self) -> bool {
        super::short(&self.op)
    }

    fn divides(&self) -> bool {
        let op = Op::from(self.op);
        op.flops() / W::PER as u64 >= DIVIDED
    }

    #[inline(always)]
    fn run<S: Simd>(&self, s: S, lane: &Lane<'_>, args: &Args) {
        let Direct { op, heights, panels, chunk, .. } = self;
        if op.batch == 0 || op.m == 0 || op.n == 0 {
            return;
        }
        let Some(finish) = finish(op, args) else { return };
        let (a, b) = (args.read::<W::Element>(0), args.read::<W::Element>(1));
        let mut sums = Sums([0.0; _]);
        let chunks = heights.div_ceil(*chunk);
        while let Some(task) = lane.claim_near(op.batch * panels * chunks) {
            let (index, first) = (task / chunks, task % chunks * chunk);
            let (batch, column) = (index / panels, index % panels * columns::<S>());
            for tile in first..(first + chunk).min(*heights) {
                let rows = tile * op.m / heights..(tile + 1) * op.m / heights;
                // SAFETY: a tile is one lane's, and elements of C do not coincide.
                unsafe { self.tile(s, &finish, (a, b), batch, rows, column, &mut sums.0) }
            }
        }
    }
}

impl<W: Words> Direct<W> {
    /// Computes and stores the results of these rows in the panel from `column` on.
    ///
    /// # Safety
    /// No other lane of the team touches these elements of C before the next barrier.
    #[inline(always)]
    #[allow(clippy::too_many_arguments, reason = "a tile's place, what it is made of, and where it goes")]
    unsafe fn tile<S: Simd>(
        &self,
        s: S,
        finish: &Finish<'_>,
        (a, b): (&[W::Element], &[W::Element]),
        batch: usize,
        rows: std::ops::Range<usize>,
        column: usize,
        sums: &mut [f32],
    ) {
        let op = &self.op;
        let (height, width) = (rows.len(), columns::<S>().min(op.n - column));
        let (a_strides, b_strides) = (op.a.strides, op.b.strides);
        // nothing is behind the strides where k is 0
        let (mut a_part, mut b_part) = (a, b);
        if op.k > 0 {
            let at = a_strides.at(batch, rows.start, 0);
            a_part = &a[at..at + (height - 1) * a_strides.row + op.k];
            let at = b_strides.at(batch, 0, column);
            b_part = &b[at..at + (op.k - 1) * b_strides.row + width];
        }
        let nr = 2 * S::LANES;
        let plain = finish.plain();
        let (c, c_row, c_pair) = match plain {
            Some(out) => {
                let stride = finish.strides.row;
                let at = finish.strides.at(batch, rows.start, column);
                assert!(at + (height - 1) * stride + width <= out.len());
                (out.pointer().wrapping_add(at), stride, nr)
            }
            None => (sums.as_mut_ptr(), nr, height * nr),
        };
        // with gathered words the registers of an edge suffice for two vectors
        let part = if W::PER > 1 && width < columns::<S>() { nr } else { columns::<S>() };
        for first in (0..width).step_by(part) {
            s.vectorise(Tile::<W> {
                height,
                width: part.min(width - first),
                k: op.k,
                a: a_part.as_ptr(),
                a_row: a_strides.row,
                b: b_part.as_ptr().wrapping_add(first),
                b_row: b_strides.row,
                c: c.wrapping_add(first / nr * c_pair),
                c_row,
                c_pair,
            });
        }
        if plain.is_none() {
            for (first, sums) in (column..column + width).step_by(nr).zip(sums.chunks(height * nr)) {
                let at = |row: usize| Some(row_at(op, finish, batch, rows.start + row));
                // SAFETY: the caller's contract.
                unsafe { finish.rows(s, &at, first, op.n, sums) }
            }
        }
    }
}

/// One tile, as a kernel of its own. Private: made only where `height` rows of A with `k` elements and `k` rows of B with `width` elements
/// are readable, of which there is one at least unless `k` is 0, and as many results in C writable, to which nothing else refers.
struct Tile<W: Words> {
    height: usize,
    width: usize,
    k: usize,
    a: *const W::Element,
    a_row: usize,
    b: *const W::Element,
    b_row: usize,
    c: *mut f32,
    /// How far a row of results is from the next, and how far the results of two vectors of a row are from the next two.
    c_row: usize,
    c_pair: usize,
}

impl<W: Words> Kernel for Tile<W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let used = self.width.div_ceil(S::LANES * W::PER) * W::PER;
        let whole = self.width == columns::<S>();
        /// Calls the product of that size, where this instruction set has one.
        macro_rules! products {
            ($($height:literal)*) => {
                match (self.height, used) {
                    $(
                        // SAFETY: the contract of `Tile`, with `M == height` and `V` vectors that hold `width` columns.
                        ($height, 4) if whole && vectors::<S>() == 4 => unsafe { self.product::<S, $height, 4, false>(s) },
                        // SAFETY: as above.
                        ($height, 2) if whole && vectors::<S>() == 2 => unsafe { self.product::<S, $height, 2, false>(s) },
                        // SAFETY: as above.
                        ($height, 4) if vectors::<S>() == 4 && W::PER == 1 => unsafe { self.product::<S, $height, 4, true>(s) },
                        // SAFETY: as above.
                        ($height, 3) if vectors::<S>() == 4 && W::PER == 1 => unsafe { self.product::<S, $height, 3, true>(s) },
                        // SAFETY: as above.
                        ($height, 2) => unsafe { self.product::<S, $height, 2, true>(s) },
                        // SAFETY: as above.
                        ($height, 1) if W::PER == 1 => unsafe { self.product::<S, $height, 1, true>(s) },
                    )*
                    _ => {}
                }
            };
        }
        products!(1 2 3 4 5 6);
    }
}

impl<W: Words> Tile<W> {
    /// `M` rows by `V` vectors, a step at a time: more would not stay in registers. The last vectors of an `EDGE` lack columns.
    ///
    /// # Safety
    /// Of the fields holds what stands there; `M` is the height, and `width` columns need `V` vectors, all of them but at an `EDGE`.
    #[inline(always)]
    #[allow(clippy::needless_range_loop, reason = "the vectors of three arrays")]
    unsafe fn product<S: Simd, const M: usize, const V: usize, const EDGE: bool>(&self, s: S) {
        let mut acc = [[s.splat(0.0); V]; M];
        let (mut a, mut b) = (self.a, self.b);
        // SAFETY: all loads are of elements that the contract says are readable, the pointers end at most one row past the last, and
        // stores are of the results.
        unsafe {
            for _ in 0..self.k / W::PER {
                let words =
                    self.words::<S, V, EDGE>(s, std::array::from_fn(|row| b.wrapping_add(row * self.b_row)));
                for (row, sums) in acc.iter_mut().enumerate() {
                    let x = s.splat(a.add(row * self.a_row).cast::<f32>().read_unaligned());
                    for vector in 0..V {
                        sums[vector] = W::multiply(s, x, words[vector], sums[vector]);
                    }
                }
                a = a.wrapping_add(W::PER);
                b = b.wrapping_add(W::PER * self.b_row);
            }
            let left = self.k % W::PER;
            if left > 0 {
                // what the last word lacks is zero
                let words = self.words::<S, V, EDGE>(
                    s,
                    std::array::from_fn(|row| match row < left {
                        true => b.wrapping_add(row * self.b_row),
                        false => ZEROS.0.as_ptr().cast(),
                    }),
                );
                for (row, sums) in acc.iter_mut().enumerate() {
                    let mut word = 0.0f32;
                    for i in 0..left {
                        let element = a.add(row * self.a_row + i).read();
                        std::ptr::from_mut(&mut word).cast::<W::Element>().add(i).write(element);
                    }
                    let x = s.splat(word);
                    for vector in 0..V {
                        sums[vector] = W::multiply(s, x, words[vector], sums[vector]);
                    }
                }
            }
            for (row, sums) in acc.iter_mut().enumerate() {
                W::restore(s, sums);
                for (vector, sum) in sums.iter().enumerate() {
                    let place = row * self.c_row + vector / 2 * self.c_pair + vector % 2 * S::LANES;
                    let (to, count) =
                        (self.c.wrapping_add(place), self.width.saturating_sub(vector * S::LANES));
                    match EDGE && count < S::LANES {
                        true => s.store_first(to, count, *sum),
                        false => s.store_f32(to, *sum),
                    }
                }
            }
        }
    }

    /// The words of a step, whose rows of B begin there.
    ///
    /// # Safety
    /// `width` elements of each of [`Words::PER`] rows are readable; `V` and `EDGE` are as [`Tile::product`] has them.
    #[inline(always)]
    #[allow(clippy::needless_range_loop, reason = "an index within a group of rows")]
    unsafe fn words<S: Simd, const V: usize, const EDGE: bool>(
        &self,
        s: S,
        rows: [*const W::Element; MOST_VECTORS],
    ) -> [S::V; V] {
        let mut words = [s.splat(0.0); V];
        for index in 0..V {
            let first = index / W::PER * S::LANES * W::PER;
            let from = rows[index % W::PER].wrapping_add(first);
            // SAFETY: within the row, as the contract says.
            words[index] = unsafe {
                match EDGE && index / W::PER == V / W::PER - 1 {
                    true => s.load_bytes(from.cast(), (self.width - first) * size_of::<W::Element>()),
                    false => s.load_f32(from.cast()),
                }
            };
        }
        W::gather(s, &mut words);
        words
    }
}

/// A row of B where k is no whole number of words: as long as a panel of elements of 16 bits.
#[repr(align(64))]
struct Zeros([u8; 2 * MOST_VECTORS * simd::MAX_LANES]);

static ZEROS: Zeros = Zeros([0; _]);
