//! The blocked loop that every matrix product of this backend runs: tiles of packed A against panels of B, into a block of f32 results
//! in the lane's own scratch, then the epilogue.
//!
//! The loop order is that of Goto and van de Geijn (doi:10.1145/1356052.1356053): a panel of B of depth [`DEPTH`] stays in L1, the
//! block of A in L2, and the register tile runs over both.

use super::operand::{Floats, FloatsOut, Words, words};
use super::source::{Source, Stored};
use super::tile::{Rows, Span, Steps, columns};
use crate::device::{CpuCaps, lanes};
use crate::simd::{Kernel, Simd, math};
use crate::spmd::Out;
use perjoule_kernels::op::Activation;
use perjoule_kernels::{DeviceInfo, Matrix};
use std::marker::PhantomData;
use std::ops::Range;
use std::ptr;

/// Words along k of a widened panel, in L1: a multiple of every block format's length.
pub(crate) const DEPTH: usize = 256;

/// f32 results of a block, which share L2 with the block of A, where it has [`L2`] bytes.
pub(crate) const BLOCK: usize = 32 << 10;

/// Rows of a block of A, the same.
pub(crate) const BLOCK_ROWS: usize = 192;

/// Bytes of the second-level cache that [`BLOCK`] and [`BLOCK_ROWS`] fill five eighths of. Larger blocks are no faster where it is larger
/// (measured with 1 MiB, up to 768 rows); where it is smaller, so are blocks.
pub(crate) const L2: usize = 512 << 10;

/// Fewest tiles whose products take longer than the next panel takes to come from memory.
const FAR_TILES: usize = 8;

/// Tasks of a lane, where a product has enough: lanes are not equally fast.
const TASKS: usize = 4;

/// f32 of packed A at a time: larger products are done in rounds.
const PACKED: usize = 4 << 20;

/// `m` rows cut into tiles: of heights that differ by at most one, or whole ones and a rest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tiles {
    m: usize,
    count: usize,
    /// Rows of a tile, and how many of the first ones have one more; where tiles are whole, the last one has what is left.
    height: usize,
    higher: usize,
    /// Blocks of whole tiles.
    blocks: usize,
}

/// Fewest tiles of a block that exists so that each lane has its own.
const OWN_TILES: usize = 8;

impl Tiles {
    /// Tiles of `m` rows, of which a block has at most `block_rows`. Lanes have blocks of their own, where these do not get small: what
    /// a lane packs it then multiplies, so that it need not go from one core's caches to another's.
    fn new<S: Simd, A: Words>(m: usize, block_rows: usize, lanes: usize) -> Self {
        let most = A::max_rows::<S>();
        let count = m.div_ceil(most);
        let (height, higher) = match count {
            0 => (0, 0),
            _ if A::WHOLE => (most, 0),
            _ => (m / count, m % count),
        };
        let highest = height + usize::from(higher > 0);
        let blocks = count.div_ceil((block_rows.max(most) / highest.max(1)).max(1));
        let own = blocks.next_multiple_of(lanes.max(1));
        let blocks = if blocks > 1 && own * OWN_TILES <= count { own } else { blocks };
        Tiles { m, count, height, higher, blocks }
    }

    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// First row of a tile.
    pub(crate) fn start(&self, tile: usize) -> usize {
        (tile * self.height + tile.min(self.higher)).min(self.m)
    }

    /// Rows of a tile.
    pub(crate) fn rows(&self, tile: usize) -> Range<usize> {
        self.start(tile)..self.start(tile + 1)
    }

    /// Blocks of whole tiles.
    pub(crate) fn blocks(&self) -> usize {
        self.blocks
    }

    /// Tiles of a block.
    pub(crate) fn block(&self, block: usize) -> Range<usize> {
        let blocks = self.blocks().max(1);
        block * self.count / blocks..(block + 1) * self.count / blocks
    }
}

/// How a product is cut: fixed when it is prepared.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// Words of a packed row of A.
    pub(crate) words: usize,
    /// Rows of packed A in one round.
    pub(crate) round: usize,
    /// Lanes that the scratch is sized for.
    pub(crate) lanes: usize,
    /// f32 of a lane's own scratch.
    own: usize,
    /// Most rows of a block of A, and f32 of its results.
    block: [usize; 2],
}

impl Plan {
    /// For products over `rows` rows in all, on the device that `info` describes.
    pub(crate) fn new<S: Simd, A: Words>(rows: usize, k: usize, info: &DeviceInfo) -> Self {
        let l2 = info.caps::<CpuCaps>().map_or(A::L2, |caps| caps.caches.l2).clamp(A::L2 / 4, A::L2);
        let fits = |most: usize| (most as u64 * l2 as u64 / A::L2 as u64) as usize;
        let block = [fits(A::BLOCK_ROWS).max(A::max_rows::<S>()), fits(A::BLOCK)];
        let words = words::<A>(k);
        let round = (PACKED / words.max(1)).max(block[0]).min(rows);
        let own = DEPTH * columns::<S>() + block[1].max(block[0] * columns::<S>());
        Plan { words, round, lanes: lanes(info), own, block }
    }

    /// `m` rows in tiles.
    pub(crate) fn tiles<S: Simd, A: Words>(&self, m: usize) -> Tiles {
        Tiles::new::<S, A>(m, self.block[0], self.lanes)
    }

    /// The same, in as few blocks as there can be: where lanes take columns, or widen a panel for each block.
    pub(crate) fn few_blocks<S: Simd, A: Words>(&self, m: usize) -> Tiles {
        Tiles::new::<S, A>(m, self.block[0], 1)
    }

    /// How many of `blocks` blocks of `m` rows a round takes.
    pub(crate) fn at_once(&self, m: usize, blocks: usize) -> usize {
        if m <= self.round {
            return blocks;
        }
        // about as many in each, and as many for each lane
        let most = (self.round / self.block[0]).max(1);
        let even = blocks.div_ceil(blocks.div_ceil(most).max(1)).max(1);
        let own = even.next_multiple_of(self.lanes.max(1));
        if own <= most { own } else { even }
    }

    /// f32 of scratch, `packed` rows of A included.
    pub(crate) fn scratch(&self, packed: usize) -> Option<u64> {
        let a = packed.checked_mul(self.words)?.checked_next_multiple_of(16)?;
        let all = a.checked_add(self.own.checked_mul(self.lanes)?)?;
        (all as u64).checked_mul(4)
    }

    /// Range of the scratch that belongs to a lane, where `packed` rows of A come first.
    pub(crate) fn own(&self, packed: usize, lane: usize) -> Range<usize> {
        let first = (packed * self.words).next_multiple_of(16) + lane * self.own;
        first..first + self.own
    }

    /// How many of `panels` panels a task takes at a time where `others` independent blocks of at most `rows` rows exist.
    pub(crate) fn chunk<S: Simd>(&self, rows: usize, panels: usize, others: usize) -> usize {
        let [most_rows, results] = self.block;
        let fits = results / (rows.clamp(1, most_rows) * columns::<S>());
        let balanced = panels.saturating_mul(others.max(1)) / (self.lanes * TASKS);
        let most = fits.min(balanced).clamp(1, panels.max(1));
        // of the sizes that are about as large, the one after which lanes end together
        let longest = |chunk: usize| {
            let tasks = panels.div_ceil(chunk).saturating_mul(others.max(1));
            tasks.div_ceil(self.lanes.max(1)).saturating_mul(chunk)
        };
        (most.div_ceil(2)..=most).rev().min_by_key(|&chunk| longest(chunk)).unwrap_or(most)
    }
}

/// What happens to a block of results.
pub(crate) struct Finish<'a> {
    pub(crate) out: FloatsOut<'a>,
    pub(crate) strides: Matrix,
    pub(crate) scale: f32,
    pub(crate) activation: Activation,
    /// A vector of `n` elements and where it begins.
    pub(crate) bias: Option<Floats<'a>>,
    /// A matrix like C.
    pub(crate) residual: Option<(Floats<'a>, Matrix)>,
    pub(crate) scales: Scales<'a>,
}

/// Scales of A and B that factor out of the sums.
#[derive(Clone, Copy, Default)]
pub(crate) struct Scales<'a> {
    pub(crate) a: Option<&'a [f32]>,
    pub(crate) b: Option<&'a [f32]>,
    /// Whether every column has a scale of its own, or the matrix has one.
    pub(crate) columns: bool,
}

/// Where a row of the block lies in C and in the residual, and where its bias and its scales begin.
#[derive(Clone, Copy)]
pub(crate) struct RowAt {
    pub(crate) out: usize,
    pub(crate) residual: usize,
    pub(crate) bias: usize,
    pub(crate) a_scale: usize,
    pub(crate) b_scale: usize,
}

impl Finish<'_> {
    /// Finishes and stores rows of a panel: columns from `column` on, as many as `n` has. `at` says where each of them lies, and gives
    /// `None` for one that is not stored.
    ///
    /// # Safety
    /// No other lane of the team touches these elements of C before the next barrier.
    pub(crate) unsafe fn rows<S: Simd>(
        &self,
        s: S,
        at: &dyn Fn(usize) -> Option<RowAt>,
        column: usize,
        n: usize,
        sums: &[f32],
    ) {
        s.vectorise(FinishRows { finish: self, at, column, n, sums });
    }

    /// Whether nothing happens to sums but that they are stored, in rows.
    #[inline(always)]
    fn untouched(&self) -> bool {
        let Finish { strides, scale, activation, bias, residual, scales, .. } = self;
        *scale == 1.0
            && *activation == Activation::None
            && (bias.is_none() && residual.is_none())
            && (scales.a.is_none() && scales.b.is_none())
            && strides.col == 1
    }

    /// Where sums are stored as they are.
    #[inline(always)]
    pub(crate) fn plain(&self) -> Option<Out<'_, f32>> {
        match self.out {
            FloatsOut::F32(out) if self.untouched() => Some(out),
            _ => None,
        }
    }

    /// One row.
    ///
    /// # Safety
    /// As [`Finish::rows`].
    #[inline(always)]
    unsafe fn row<S: Simd>(&self, s: S, at: RowAt, column: usize, n: usize, sums: &[f32]) {
        for half in 0..2 {
            let column = column + half * S::LANES;
            if column >= n {
                return;
            }
            let count = n - column;
            let mut v = s.load(&sums[half * S::LANES..]);
            if let Some(a) = self.scales.a {
                v = s.mul(v, s.splat(a[at.a_scale]));
            }
            if let Some(b) = self.scales.b {
                let b = match self.scales.columns {
                    true => Floats::F32(b).load(s, at.b_scale + column, 1, count),
                    false => s.splat(b[at.b_scale]),
                };
                v = s.mul(v, b);
            }
            if self.scale != 1.0 {
                v = s.mul(v, s.splat(self.scale));
            }
            if let Some(bias) = &self.bias {
                v = s.add(v, bias.load(s, at.bias + column, 1, count));
            }
            if self.activation != Activation::None {
                v = math::activate(s, self.activation, v);
            }
            if let Some((residual, strides)) = &self.residual {
                v = s.add(v, residual.load(s, at.residual + column * strides.col, strides.col, count));
            }
            let stride = self.strides.col;
            // SAFETY: the contract of `Finish::rows`.
            unsafe { self.out.store(s, at.out + column * stride, stride, count, v) }
        }
    }
}

/// The arguments of [`Finish::rows`]. Private: made only under its contract.
struct FinishRows<'f> {
    finish: &'f Finish<'f>,
    at: &'f dyn Fn(usize) -> Option<RowAt>,
    column: usize,
    n: usize,
    sums: &'f [f32],
}

impl Kernel for FinishRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let FinishRows { finish, at, column, n, sums } = self;
        let nr = columns::<S>();
        let rows = sums.chunks_exact(nr).enumerate().filter_map(|(row, sums)| Some((at(row)?, sums)));
        let (width, untouched) = (nr.min(n - column), finish.untouched());
        match finish.out {
            FloatsOut::F32(out) if untouched && width == nr => {
                for (at, sums) in rows {
                    let first = at.out + column;
                    // SAFETY: the contract of `Finish::rows`.
                    unsafe { out.slice(first..first + nr) }.copy_from_slice(sums);
                }
            }
            FloatsOut::BF16(out) if untouched => {
                for (at, sums) in rows {
                    let first = at.out + column;
                    // SAFETY: as above.
                    let to = unsafe { out.slice(first..first + width) };
                    for (to, sums) in to.chunks_mut(S::LANES).zip(sums.chunks_exact(S::LANES)) {
                        s.store_some(to, s.load(sums));
                    }
                }
            }
            _ => {
                for (at, sums) in rows {
                    // SAFETY: as above.
                    unsafe { finish.row(s, at, column, n, sums) }
                }
            }
        }
    }
}

/// Rows of C that a block's results may go to.
#[derive(Clone, Copy)]
pub(crate) struct Target<'o> {
    rows: Rows,
    /// How many rows there are.
    count: usize,
    /// How many of the first panels are whole.
    panels: usize,
    out: PhantomData<Out<'o, f32>>,
}

impl<'a> Finish<'a> {
    /// Where `rows` rows of C lie from element `at` on, one row of C behind the other, for as many of `panels` panels as end within
    /// `width` columns; `None` where something happens to the results, or they are not f32.
    ///
    /// # Safety
    /// No other lane of the team touches these elements of C before the next barrier.
    pub(crate) unsafe fn target<S: Simd>(
        &self,
        at: usize,
        rows: usize,
        panels: usize,
        width: usize,
    ) -> Option<Target<'a>> {
        let out = self.plain()?;
        let (nr, stride) = (columns::<S>(), self.strides.row);
        let panels = panels.min(width / nr);
        if panels == 0 || rows == 0 {
            return None;
        }
        // no slice: between the rows lies what other lanes write
        assert!(at + (rows - 1) * stride + panels * nr <= out.len());
        Some(Target {
            rows: Rows { first: out.pointer().wrapping_add(at), stride },
            count: rows,
            panels,
            out: PhantomData,
        })
    }
}

/// Where a slice begins, and its bytes.
fn bytes_of<T>(slice: &[T]) -> (*const u8, usize) {
    (slice.as_ptr().cast(), size_of_val(slice))
}

/// What [`block`] leaves to be stored.
pub(crate) struct Results<'o> {
    /// How many panels were stored to C.
    pub(crate) stored: usize,
    /// Those of the other panels: `[panel][row][NR]`.
    pub(crate) rest: &'o [f32],
}

/// Computes the tiles `tiles` of A times the panels `panels` of B into `c`, of the lane's scratch, or into `target`, where there is one
/// and the rows of a table can write it. `widened` is room for a panel of [`DEPTH`] words.
///
/// `a` holds those tiles, packed, from the first one's on.
#[allow(clippy::too_many_arguments, reason = "the loop's six bounds and six operands")]
pub(crate) fn block<'o, S: Simd, B: Source>(
    s: S,
    b: &B,
    matrix: usize,
    panels: Range<usize>,
    k: usize,
    a: &[f32],
    all: Tiles,
    tiles: Range<usize>,
    widened: &mut [f32],
    c: &'o mut [f32],
    target: Option<Target<'_>>,
) -> Results<'o> {
    let nr = columns::<S>();
    let first = all.start(tiles.start);
    let rows = all.start(tiles.end) - first;
    let c = &mut c[..panels.len() * rows * nr];
    if k == 0 {
        c.fill(0.0);
        return Results { stored: 0, rest: c };
    }
    let (per, words) = (B::A::PER, words::<B::A>(k));
    let all_steps = k.div_ceil(per);
    assert!(a.len() >= rows * words && tiles.clone().all(|t| all.rows(t).len() <= B::A::max_rows::<S>()));
    // a panel that serves few tiles is widened in registers; a single tile keeps its sums there for all of k
    let direct = B::PACKED && (tiles.len() <= 2 || !B::WIDENS);
    let depth = match direct {
        true if tiles.len() == 1 => all_steps,
        true => B::Direct::DEPTH,
        false => DEPTH / B::Widened::stored(1, 1).max(1),
    };
    // panels that come from memory are asked for, which costs more than it gains where caches have them, or where they serve few tiles
    let bytes = panels.len() * B::Direct::stored(all_steps, nr) * size_of::<Stored<B>>();
    let far = direct && tiles.len() >= FAR_TILES && bytes > 2 * L2;
    let strides = if direct { B::Direct::STRIDES } else { B::Widened::STRIDES };
    let target = target.filter(|_| strides);
    // panels that are multiplied at once are not told apart here
    const { assert!(!(B::Direct::SPANS && B::Direct::STRIDES)) }
    assert!(target.is_none_or(|target| target.count == rows && target.panels <= panels.len()));
    let stored_panels = target.map_or(0, |target| target.panels);
    let mut done = 0;
    while done < all_steps {
        let steps = depth.min(all_steps - done);
        let ks = done * per..k.min((done + steps) * per);
        let at_once = if direct && B::Direct::SPANS { panels.len() } else { 1 };
        for (index, panel) in panels.clone().enumerate().step_by(at_once.max(1)) {
            // the last steps are summed into C
            let out = target
                .filter(|_| done + steps == all_steps && index + at_once <= stored_panels)
                .map(|target| Rows { first: target.rows.first.wrapping_add(index * nr), ..target.rows });
            let span = Span {
                all,
                tiles: tiles.clone(),
                words,
                each: B::A::WORDS,
                done,
                steps,
                a: a.as_ptr(),
                c: c[index * rows * nr..][..at_once * rows * nr].as_mut_ptr(),
                out,
                panels: at_once,
                apart: 0,
                next: (ptr::null(), 0),
            };
            // SAFETY: A has the words of all rows, C those of all panels, and the target of as many as it says; `stored` and
            // `widened` hold the rows of `steps` steps.
            unsafe {
                if direct {
                    let (stored, apart) = b.panels(nr, matrix, panel..panel + at_once, ks.clone());
                    assert!(stored.len() >= (at_once - 1) * apart + B::Direct::stored(steps, nr));
                    let next = match far && panel + 2 * at_once <= panels.end {
                        true => {
                            bytes_of(b.panels(nr, matrix, panel + at_once..panel + 2 * at_once, ks.clone()).0)
                        }
                        false => span.next,
                    };
                    B::Direct::span(s, &Span { apart, next, ..span }, stored.as_ptr());
                } else {
                    b.widen(s, matrix, panel, ks.clone(), widened);
                    assert!(widened.len() >= B::Widened::stored(steps, nr));
                    B::Widened::span(s, &span, widened.as_ptr());
                }
            }
        }
        done += steps;
    }
    Results { stored: stored_panels, rest: &c[stored_panels * rows * nr..] }
}
