//! Tiles of AMX: products of 32 by 32 results, 64 bytes along k at a time.
//!
//! B is read as it is packed for the vector rows: words of two bf16 or four bytes, 32 columns side by side, so that sixteen rows of
//! words are two tiles. A is packed in rows of 64 bytes. Four accumulators take turns; the part of a panel that a block of A is
//! multiplied by ([`Steps::DEPTH`] steps, 32 KiB) stays in L1, since A is loaded with a hint that keeps it out. Rows beyond those of A
//! are left out of the tiles' configuration, so nothing is computed or stored for them.
//!
//! The tiles are configured and released within a product: no state outlives it, threads may come and go, and a switch of context
//! saves nothing. Instructions: Intel's Architecture Instruction Set Extensions Programming Reference, chapter 3.

use super::integers::Bytes;
use super::operand::{Floats, PackFloats, Words};
use super::pairs::PackRows;
use super::source::{Format, Source};
use super::tile::{MOST_ROWS, Span, Steps, Sums, columns};
use crate::device::CpuCaps;
use crate::features::Features;
use crate::simd::Simd;
use crate::spmd::Args;
use perjoule_kernels::op::Tensor2;
use perjoule_kernels::{DeviceInfo, Reason};
use std::marker::PhantomData;
use std::ops::Range;

/// Words of a row of a tile.
pub(crate) const WORDS: usize = 16;
/// Rows of a tile.
const ROWS: usize = 16;
/// Columns of a panel.
const COLUMNS: usize = 32;

/// Rows of a block of A: with [`Steps::DEPTH`] steps of them, their results and the panels to come, it fits half of L2, which is what
/// one of two hyperthreads has.
pub(crate) const BLOCK_ROWS: usize = 256;
/// f32 results of a block.
pub(crate) const BLOCK: usize = 64 << 10;
/// Bytes of L2 that every processor with tiles has.
pub(crate) const L2: usize = 2 << 20;

/// Words of A that meet one of B in a round of [`Kind::in_registers`].
pub(crate) const ROUND: u64 = 4 * 16 * 16 * WORDS as u64;

/// What tiles multiply.
pub(crate) trait Kind: Copy + Send + Sync + 'static {
    /// Elements of a word.
    const PER: usize;
    /// How A is packed.
    type A: Words;

    /// Whether a device may use it and the processor has it: anyone can make features up, and no token stands for AMX.
    fn allowed(features: Features) -> bool;
    /// Multiplies `steps` steps of `rows` rows: see [`Steps::product`].
    ///
    /// # Safety
    /// That of [`Steps::product`], and the processor has AMX, which the process may use.
    unsafe fn tiles(rows: usize, steps: usize, a: *const f32, b: *const f32, c: *mut f32, add: bool);

    /// Multiplies four tiles so many times, as fast as registers allow.
    ///
    /// # Safety
    /// The processor has AMX, which the process may use.
    unsafe fn in_registers(_rounds: u64) {}

    /// Multiplies blocks of 32 rows by 32 columns, whose rows are some way apart: what several rows of attention have in common.
    ///
    /// # Safety
    /// The processor has AMX, which the process may use. A, B and C of every block are as `blocks` says, and nothing else refers to C.
    unsafe fn blocks(blocks: &mut Blocks);

    /// Multiplies tiles of one height by panels, each by each.
    ///
    /// # Safety
    /// As [`Kind::tiles`] for each tile and panel of `run`.
    unsafe fn run(rows: usize, run: Run) {
        // SAFETY: the same contract.
        run.each(|a, b, c| unsafe { Self::tiles(rows, run.steps, a, b, c, run.add != 0) });
    }
}

/// Tiles of one height and panels: where they begin, and how many bytes each is from the next.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Run {
    a: *const f32,
    b: *const f32,
    c: *mut f32,
    steps: usize,
    tiles: usize,
    panels: usize,
    a_tile: usize,
    b_panel: usize,
    c_tile: usize,
    c_panel: usize,
    /// Bytes of a step of A.
    a_step: usize,
    /// From the last panel to what is read after it: the next steps of the first one.
    b_next: usize,
    /// 1 where C is added to, else 0.
    add: usize,
    /// Tiles that are left of a panel.
    left: usize,
}

impl Run {
    /// A tile and a panel.
    #[cfg(target_arch = "x86_64")]
    fn one(rows: usize, steps: usize, a: *const f32, b: *const f32, c: *mut f32, add: bool) -> Self {
        let (a_step, add) = (4 * WORDS * rows, usize::from(add));
        let [a_tile, b_panel, c_tile, c_panel, b_next, left] = [0; 6];
        let (tiles, panels) = (1, 1);
        Run { a, b, c, steps, tiles, panels, a_tile, b_panel, c_tile, c_panel, a_step, b_next, add, left }
    }

    /// Calls `product` with A, B and C of each tile and panel.
    fn each(&self, product: impl Fn(*const f32, *const f32, *mut f32)) {
        for panel in 0..self.panels {
            let (b, c) = (self.b.wrapping_byte_add(panel * self.b_panel), panel * self.c_panel);
            for tile in 0..self.tiles {
                let c = self.c.wrapping_byte_add(c + tile * self.c_tile);
                product(self.a.wrapping_byte_add(tile * self.a_tile), b, c);
            }
        }
    }
}

/// Blocks of 32 by 32 results: where the operands of the first one lie, and how many bytes each is from the next.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Blocks {
    pub(crate) shapes: Shapes,
    pub(crate) a: *const f32,
    pub(crate) b: *const f32,
    pub(crate) c: *mut f32,
    /// From a block to the next one.
    pub(crate) a_next: usize,
    pub(crate) b_next: usize,
    pub(crate) c_next: usize,
    /// From a row of A to the next one, and from its step to the next one; rows of B are a panel's.
    pub(crate) a_row: usize,
    pub(crate) a_step: usize,
    /// From a row of C to the next one.
    pub(crate) c_row: usize,
    pub(crate) steps: usize,
    /// How many blocks there are.
    pub(crate) count: usize,
    /// 1 where C is added to, else 0.
    pub(crate) add: usize,
}

impl Blocks {
    /// One block without steps, to be filled in.
    pub(crate) fn new(a: *const f32, b: *const f32, c: *mut f32) -> Self {
        let [a_next, b_next, c_next, a_row, a_step, c_row, steps, add] = [0; 8];
        let shapes = Shapes::new(MOST_ROWS);
        Blocks { shapes, a, b, c, a_next, b_next, c_next, a_row, a_step, c_row, steps, count: 1, add }
    }
}

/// Two bf16, added up in f32. Subnormal numbers count as zero.
#[derive(Clone, Copy)]
pub(crate) struct Bf16;

/// Four i8 of A by four u8 of B, added up in i32.
#[derive(Clone, Copy)]
pub(crate) struct Bytes8;

/// Steps of 64 bytes of a row.
#[derive(Clone, Copy)]
pub(crate) struct TileSteps<K>(PhantomData<K>);

impl<K: Kind> Steps for TileSteps<K> {
    type Stored = f32;
    const DEPTH: usize = 16;
    const SPANS: bool = true;
    const STRIDES: bool = false;

    fn stored(steps: usize, nr: usize) -> usize {
        steps * WORDS * nr
    }
    unsafe fn span<S: Simd>(_: S, span: &Span, b: *const f32) {
        let (bytes, nr) = (size_of::<f32>(), COLUMNS);
        let mut from = span.tiles.clone();
        // whole tiles, then what is left
        while let Some(first) = from.next() {
            let part = span.tile(first, nr);
            let mut tiles = 1;
            while from.start < from.end && span.all.rows(from.start).len() == part.rows {
                (tiles, from.start) = (tiles + 1, from.start + 1);
            }
            let run = Run {
                a: part.a,
                b,
                c: part.c,
                steps: span.steps,
                tiles,
                panels: span.panels,
                a_tile: bytes * part.rows * span.words,
                b_panel: bytes * span.apart,
                c_tile: bytes * part.rows * nr,
                c_panel: bytes * span.rows() * nr,
                a_step: bytes * part.rows * WORDS,
                b_next: (bytes * span.steps * WORDS * nr)
                    .wrapping_sub(bytes * (span.panels - 1) * span.apart),
                add: usize::from(span.done > 0),
                left: 0,
            };
            // SAFETY: the contract of `Steps::span`: the tiles lie one behind the other in A and in each panel of C.
            unsafe { K::run(part.rows, run) }
        }
    }
    unsafe fn product<S: Simd>(_: S, rows: usize, steps: usize, a: *const f32, b: *const f32, sums: Sums) {
        debug_assert!(sums.stride == COLUMNS);
        // SAFETY: the contract, the sums being dense; rows of the table that use tiles refuse devices without AMX.
        unsafe { K::tiles(rows, steps, a, b, sums.to, !sums.from.is_null()) }
    }
}

/// A of bf16 in rows of 64 bytes.
#[derive(Clone, Copy)]
pub(crate) struct RowsOfPairs;

impl Words for RowsOfPairs {
    const PER: usize = 2 * WORDS;
    const WORDS: usize = WORDS;
    const WHOLE: bool = true;
    const BLOCK_ROWS: usize = BLOCK_ROWS;
    const BLOCK: usize = BLOCK;
    const L2: usize = L2;

    fn max_rows<S: Simd>() -> usize {
        MOST_ROWS
    }
}

impl PackFloats for RowsOfPairs {
    fn pack<S: Simd>(
        s: S,
        a: &Floats<'_>,
        starts: &[Option<usize>],
        stride: usize,
        ks: Range<usize>,
        out: &mut [f32],
    ) {
        s.vectorise(PackRows::<WORDS> { a, starts, stride, ks, out });
    }
}

/// B packed as `pairs32_bf16` or `quads32_u8`, for tiles of `K`.
pub(crate) struct PackedTiles<K>(PhantomData<K>);

/// See [`PackedTiles`].
#[derive(Clone, Copy)]
pub(crate) struct TilesSource<'a, K> {
    words: &'a [f32],
    n: usize,
    k: usize,
    kind: PhantomData<K>,
}

impl<K: Kind> Format for PackedTiles<K> {
    type A = K::A;
    type Source<'a> = TilesSource<'a, K>;

    fn source(args: &Args, index: usize, _: Tensor2, n: usize, k: usize) -> Option<TilesSource<'_, K>> {
        Some(TilesSource { words: args.read(index), n, k, kind: PhantomData })
    }
}

/// B as the op lays it out, for tiles of `K`; `F` makes words of it.
pub(crate) struct PlainTiles<K, F>(PhantomData<(K, F)>);

/// See [`PlainTiles`].
#[derive(Clone, Copy)]
pub(crate) struct PlainTilesSource<K, B> {
    words: B,
    kind: PhantomData<K>,
}

impl<K: Kind, F: Format> Format for PlainTiles<K, F> {
    type A = K::A;
    type Source<'a> = PlainTilesSource<K, F::Source<'a>>;

    fn source(args: &Args, index: usize, b: Tensor2, n: usize, k: usize) -> Option<Self::Source<'_>> {
        F::source(args, index, b, n, k).map(|words| PlainTilesSource { words, kind: PhantomData })
    }
}

impl<K: Kind, B: Source> Source for PlainTilesSource<K, B> {
    type A = K::A;
    type Direct = TileSteps<K>;
    type Widened = TileSteps<K>;
    const PACKED: bool = false;
    const WIDENS: bool = true;

    fn panel(&self, _: usize, _: usize, _: usize, _: Range<usize>) -> &[f32] {
        &[]
    }

    fn widen<S: Simd>(&self, s: S, matrix: usize, panel: usize, ks: Range<usize>, out: &mut [f32]) {
        // the last step is filled up with zeros
        let words = ks.len().div_ceil(K::PER);
        let (words, rest) =
            out[..words.next_multiple_of(WORDS) * columns::<S>()].split_at_mut(words * columns::<S>());
        self.words.widen(s, matrix, panel, ks, words);
        rest.fill(0.0);
    }
}

/// Why no row that multiplies tiles of `K` runs on this device; `None` where one does.
pub(crate) fn refusal<K: Kind>(info: &DeviceInfo) -> Option<Reason> {
    let allowed = info.caps::<CpuCaps>().is_some_and(|caps| K::allowed(caps.features));
    let why = "needs AMX, which this CPU lacks, or the system does not allow, or is masked";
    (!allowed).then(|| Reason::lacking(why))
}

impl<K: Kind> Source for TilesSource<'_, K> {
    type A = K::A;
    type Direct = TileSteps<K>;
    type Widened = TileSteps<K>;
    const PACKED: bool = true;
    const WIDENS: bool = false;

    #[inline(always)]
    fn panel(&self, nr: usize, matrix: usize, panel: usize, ks: Range<usize>) -> &[f32] {
        self.panels(nr, matrix, panel..panel + 1, ks).0
    }

    #[inline(always)]
    fn panels(&self, nr: usize, matrix: usize, panels: Range<usize>, ks: Range<usize>) -> (&[f32], usize) {
        let rows = self.k.div_ceil(WORDS * K::PER) * WORDS;
        let first = (matrix * self.n.div_ceil(nr) + panels.start) * rows;
        let end = (panels.len() - 1) * rows + ks.end.div_ceil(WORDS * K::PER) * WORDS;
        (&self.words[(first + ks.start / K::PER) * nr..(first + end) * nr], rows * nr)
    }

    fn widen<S: Simd>(&self, _: S, _: usize, _: usize, _: Range<usize>, _: &mut [f32]) {}
}

/// Shapes of the eight tiles, as `ldtilecfg` reads them.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Shapes {
    /// Accumulators 0 to 3 (two by two), tiles 4 and 5 of A, 6 and 7 of B, for so many rows of A.
    fn new(rows: usize) -> Self {
        let (upper, lower) = (rows.min(ROWS) as u8, rows.saturating_sub(ROWS) as u8);
        let full = ROWS as u8;
        let mut shapes =
            Shapes { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        let tiles = [upper, upper, lower, lower, upper, lower, full, full];
        for (tile, rows) in tiles.into_iter().enumerate().filter(|(_, rows)| *rows > 0) {
            (shapes.rows[tile], shapes.row_bytes[tile]) = (rows, 4 * WORDS as u16);
        }
        shapes
    }
}

/// Runs of two by two tiles with that instruction. The accumulators of a tile are stored while the next one's first step is multiplied,
/// panels included. Lines that come later are prefetched, four a step: of the results of the next tile, of the next panel (of as
/// many tiles as a block has, each prefetches its part), and of the next steps of A, which lie behind these.
#[cfg(target_arch = "x86_64")]
macro_rules! run_tall {
    ($dot:literal, $rows:expr, $run:expr) => {{
        let mut run: Run = $run;
        std::arch::asm!(
            "ldtilecfg [{shapes}]",
            "xor {to:e}, {to:e}",
            "2:", // a panel
            "mov {a}, [{run} + {at_a}]",
            "mov {n}, [{run} + {at_tiles}]",
            "mov [{run} + {at_left}], {n}",
            "mov {near}, [{run} + {at_b_panel}]",
            "cmp qword ptr [{run} + {at_panels}], 1",
            "cmove {near}, [{run} + {at_b_next}]",
            "3:", // a tile
            "mov {next}, [{run} + {at_c_tile}]",
            "add {next}, {c}",
            "mov {n}, [{run} + {at_steps}]",
            "tileloadd tmm6, [{b} + {row}*1]",
            "tileloaddt1 tmm4, [{a} + {line}*1]",
            "tileloadd tmm7, [{b} + {row}*1 + 64]",
            "tileloaddt1 tmm5, [{a} + {line}*1 + 1024]",
            "test {to}, {to}",
            "jnz 5f",
            "cmp qword ptr [{run} + {at_add}], 0", // the first one, before which nothing is to be stored
            "jne 4f",
            "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
            "jmp 7f",
            "4:",
            "tileloadd tmm0, [{c} + {row}*1]", "tileloadd tmm1, [{c} + {row}*1 + 64]",
            "tileloadd tmm2, [{c} + {row}*1 + 2048]", "tileloadd tmm3, [{c} + {row}*1 + 2112]",
            "7:",
            concat!($dot, " tmm0, tmm4, tmm6"), concat!($dot, " tmm1, tmm4, tmm7"),
            concat!($dot, " tmm2, tmm5, tmm6"), concat!($dot, " tmm3, tmm5, tmm7"),
            "jmp 8f",
            "5:",
            "cmp qword ptr [{run} + {at_add}], 0",
            "jne 6f",
            "tilestored [{to} + {row}*1], tmm0", "tilezero tmm0", concat!($dot, " tmm0, tmm4, tmm6"),
            "tilestored [{to} + {row}*1 + 64], tmm1", "tilezero tmm1", concat!($dot, " tmm1, tmm4, tmm7"),
            "tilestored [{to} + {row}*1 + 2048], tmm2", "tilezero tmm2", concat!($dot, " tmm2, tmm5, tmm6"),
            "tilestored [{to} + {row}*1 + 2112], tmm3", "tilezero tmm3", concat!($dot, " tmm3, tmm5, tmm7"),
            "jmp 8f",
            "6:",
            "tilestored [{to} + {row}*1], tmm0", "tileloadd tmm0, [{c} + {row}*1]",
            concat!($dot, " tmm0, tmm4, tmm6"),
            "tilestored [{to} + {row}*1 + 64], tmm1", "tileloadd tmm1, [{c} + {row}*1 + 64]",
            concat!($dot, " tmm1, tmm4, tmm7"),
            "tilestored [{to} + {row}*1 + 2048], tmm2", "tileloadd tmm2, [{c} + {row}*1 + 2048]",
            concat!($dot, " tmm2, tmm5, tmm6"),
            "tilestored [{to} + {row}*1 + 2112], tmm3", "tileloadd tmm3, [{c} + {row}*1 + 2112]",
            concat!($dot, " tmm3, tmm5, tmm7"),
            "8:",
            "prefetcht0 [{next}]", "prefetcht0 [{next} + 64]",
            "prefetcht0 [{next} + 128]", "prefetcht0 [{next} + 192]",
            "prefetcht1 [{b} + {near}]", "prefetcht1 [{b} + {near} + 64]",
            "prefetcht1 [{b} + {near} + 128]", "prefetcht1 [{b} + {near} + 192]",
            "prefetcht1 [{a} + {far}]", "prefetcht1 [{a} + {far} + 64]",
            "prefetcht1 [{a} + {far} + 128]", "prefetcht1 [{a} + {far} + 192]",
            "add {next}, 256",
            "add {a}, [{run} + {at_a_step}]",
            "add {b}, 2048",
            "dec {n}",
            "jz 9f",
            "tileloadd tmm6, [{b} + {row}*1]",
            "tileloaddt1 tmm4, [{a} + {line}*1]",
            concat!($dot, " tmm0, tmm4, tmm6"),
            "tileloadd tmm7, [{b} + {row}*1 + 64]",
            concat!($dot, " tmm1, tmm4, tmm7"),
            "tileloaddt1 tmm5, [{a} + {line}*1 + 1024]",
            concat!($dot, " tmm2, tmm5, tmm6"),
            concat!($dot, " tmm3, tmm5, tmm7"),
            "jmp 8b",
            "9:", // the tile's sums wait in the accumulators
            "mov {to}, {c}",
            "add {c}, [{run} + {at_c_tile}]",
            "add {near}, 256",
            "mov {n}, [{run} + {at_steps}]",
            "shl {n}, 11",
            "sub {b}, {n}",
            "mov {n}, [{run} + {at_steps}]",
            "imul {n}, [{run} + {at_a_step}]",
            "sub {a}, {n}",
            "add {a}, [{run} + {at_a_tile}]",
            "dec qword ptr [{run} + {at_left}]",
            "jnz 3b",
            "add {b}, [{run} + {at_b_panel}]",
            "mov {c}, [{run} + {at_c}]",
            "add {c}, [{run} + {at_c_panel}]",
            "mov [{run} + {at_c}], {c}",
            "add {far}, 256",
            "dec qword ptr [{run} + {at_panels}]",
            "jnz 2b",
            "tilestored [{to} + {row}*1], tmm0", "tilestored [{to} + {row}*1 + 64], tmm1",
            "tilestored [{to} + {row}*1 + 2048], tmm2", "tilestored [{to} + {row}*1 + 2112], tmm3",
            "tilerelease",
            shapes = in(reg) &Shapes::new($rows), run = in(reg) &mut run,
            a = out(reg) _, b = inout(reg) run.b => _, c = inout(reg) run.c => _,
            to = out(reg) _, next = out(reg) _, n = out(reg) _, near = out(reg) _,
            far = inout(reg) run.steps * run.a_step => _,
            row = in(reg) 4 * COLUMNS, line = in(reg) 4 * WORDS,
            at_a = const std::mem::offset_of!(Run, a), at_c = const std::mem::offset_of!(Run, c),
            at_steps = const std::mem::offset_of!(Run, steps), at_tiles = const std::mem::offset_of!(Run, tiles),
            at_panels = const std::mem::offset_of!(Run, panels), at_a_tile = const std::mem::offset_of!(Run, a_tile),
            at_b_panel = const std::mem::offset_of!(Run, b_panel), at_c_tile = const std::mem::offset_of!(Run, c_tile),
            at_c_panel = const std::mem::offset_of!(Run, c_panel), at_a_step = const std::mem::offset_of!(Run, a_step),
            at_b_next = const std::mem::offset_of!(Run, b_next),
            at_add = const std::mem::offset_of!(Run, add), at_left = const std::mem::offset_of!(Run, left),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack)
        );
    }};
}

/// A tile of at most [`ROWS`] rows and a panel with that instruction.
#[cfg(target_arch = "x86_64")]
macro_rules! run_low {
    ($dot:literal, $rows:expr, $steps:expr, $a:expr, $b:expr, $c:expr, $add:expr) => {
        std::arch::asm!(
            "ldtilecfg [{shapes}]",
            "test {add:e}, {add:e}",
            "jnz 2f",
            "tilezero tmm0", "tilezero tmm1",
            "jmp 3f",
            "2:",
            "tileloadd tmm0, [{c} + {row}*1]", "tileloadd tmm1, [{c} + {row}*1 + 64]",
            "3:",
            "tileloadd tmm6, [{b} + {row}*1]",
            "tileloaddt1 tmm4, [{a} + {line}*1]",
            concat!($dot, " tmm0, tmm4, tmm6"),
            "tileloadd tmm7, [{b} + {row}*1 + 64]",
            concat!($dot, " tmm1, tmm4, tmm7"),
            "add {a}, {a_step}",
            "add {b}, 2048",
            "dec {steps}",
            "jnz 3b",
            "tilestored [{c} + {row}*1], tmm0", "tilestored [{c} + {row}*1 + 64], tmm1",
            "tilerelease",
            shapes = in(reg) &Shapes::new($rows), add = in(reg) u32::from($add), c = in(reg) $c,
            a = inout(reg) $a => _, b = inout(reg) $b => _, steps = inout(reg) $steps => _,
            row = in(reg) 4 * COLUMNS, line = in(reg) 4 * WORDS, a_step = in(reg) 4 * WORDS * $rows,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack)
        )
    };
}

/// The functions of [`Kind`] that multiply, with that instruction.
#[cfg(target_arch = "x86_64")]
macro_rules! products {
    ($dot:literal) => {
        unsafe fn tiles(rows: usize, steps: usize, a: *const f32, b: *const f32, c: *mut f32, add: bool) {
            debug_assert!(rows <= MOST_ROWS && steps > 0);
            if rows > ROWS {
                let run = Run::one(rows, steps, a, b, c, add);
                // SAFETY: the same contract.
                return unsafe { Self::run(rows, run) };
            }
            // SAFETY: the tiles of a step lie within A and B, those of the accumulators within C, by the contract of `Steps::product`.
            unsafe { run_low!($dot, rows, steps, a, b, c, add) }
        }

        unsafe fn in_registers(rounds: u64) {
            // numbers as products have them, on which the clock depends: splitmix64 of the index
            let mut numbers = [0u64; 128];
            for (i, number) in (1..).zip(&mut numbers) {
                let x = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(i);
                let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                *number = (x ^ (x >> 27)) & 0xbfff_bfff_bfff_bfff;
            }
            // SAFETY: the tiles of a step lie within `numbers`.
            unsafe {
                std::arch::asm!(
                    "ldtilecfg [{shapes}]",
                    "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                    "tileloadd tmm4, [{numbers} + {line}*1]", "tileloadd tmm5, [{numbers} + {line}*1]",
                    "tileloadd tmm6, [{numbers} + {line}*1]", "tileloadd tmm7, [{numbers} + {line}*1]",
                    "test {rounds}, {rounds}",
                    "jz 3f",
                    "2:",
                    concat!($dot, " tmm0, tmm4, tmm6"), concat!($dot, " tmm1, tmm4, tmm7"),
                    concat!($dot, " tmm2, tmm5, tmm6"), concat!($dot, " tmm3, tmm5, tmm7"),
                    "dec {rounds}",
                    "jnz 2b",
                    "3:",
                    "tilerelease",
                    shapes = in(reg) &Shapes::new(MOST_ROWS), numbers = in(reg) numbers.as_ptr(),
                    line = in(reg) 4 * WORDS, rounds = inout(reg) rounds => _,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack)
                )
            }
        }

        unsafe fn blocks(blocks: &mut Blocks) {
            debug_assert!(blocks.steps > 0 && blocks.count > 0);
            // SAFETY: the contract.
            unsafe {
                std::arch::asm!(
                    "ldtilecfg [{p}]",
                    "2:", // a block
                    "mov {a}, [{p} + {at_a}]", "mov {b}, [{p} + {at_b}]", "mov {c}, [{p} + {at_c}]",
                    "mov {n}, [{p} + {at_steps}]",
                    "mov {lower_a}, {a_row}", "shl {lower_a}, 4", "add {lower_a}, {a}",
                    "mov {lower}, {c_row}", "shl {lower}, 4", "add {lower}, {c}",
                    "cmp qword ptr [{p} + {at_add}], 0",
                    "jne 3f",
                    "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                    "jmp 4f",
                    "3:",
                    "tileloadd tmm0, [{c} + {c_row}*1]", "tileloadd tmm1, [{c} + {c_row}*1 + 64]",
                    "tileloadd tmm2, [{lower} + {c_row}*1]", "tileloadd tmm3, [{lower} + {c_row}*1 + 64]",
                    "4:", // a step
                    "tileloadd tmm6, [{b} + {row}*1]", "tileloadd tmm4, [{a} + {a_row}*1]",
                    concat!($dot, " tmm0, tmm4, tmm6"),
                    "tileloadd tmm7, [{b} + {row}*1 + 64]",
                    concat!($dot, " tmm1, tmm4, tmm7"),
                    "tileloadd tmm5, [{lower_a} + {a_row}*1]",
                    concat!($dot, " tmm2, tmm5, tmm6"), concat!($dot, " tmm3, tmm5, tmm7"),
                    "add {a}, [{p} + {at_a_step}]", "add {lower_a}, [{p} + {at_a_step}]", "add {b}, 2048",
                    "dec {n}",
                    "jnz 4b",
                    "tilestored [{c} + {c_row}*1], tmm0", "tilestored [{c} + {c_row}*1 + 64], tmm1",
                    "tilestored [{lower} + {c_row}*1], tmm2", "tilestored [{lower} + {c_row}*1 + 64], tmm3",
                    "mov {n}, [{p} + {at_a_next}]", "add [{p} + {at_a}], {n}",
                    "mov {n}, [{p} + {at_b_next}]", "add [{p} + {at_b}], {n}",
                    "mov {n}, [{p} + {at_c_next}]", "add [{p} + {at_c}], {n}",
                    "dec qword ptr [{p} + {at_count}]",
                    "jnz 2b",
                    "tilerelease",
                    p = in(reg) &raw mut *blocks, a = out(reg) _, b = out(reg) _, c = out(reg) _, n = out(reg) _,
                    lower_a = out(reg) _, lower = out(reg) _,
                    a_row = in(reg) blocks.a_row, c_row = in(reg) blocks.c_row, row = in(reg) 4 * COLUMNS,
                    at_a = const std::mem::offset_of!(Blocks, a), at_b = const std::mem::offset_of!(Blocks, b),
                    at_c = const std::mem::offset_of!(Blocks, c), at_steps = const std::mem::offset_of!(Blocks, steps),
                    at_a_next = const std::mem::offset_of!(Blocks, a_next),
                    at_b_next = const std::mem::offset_of!(Blocks, b_next),
                    at_c_next = const std::mem::offset_of!(Blocks, c_next),
                    at_a_step = const std::mem::offset_of!(Blocks, a_step),
                    at_count = const std::mem::offset_of!(Blocks, count), at_add = const std::mem::offset_of!(Blocks, add),
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack)
                )
            }
        }

        unsafe fn run(rows: usize, run: Run) {
            debug_assert!(rows <= MOST_ROWS && run.steps > 0 && run.tiles > 0 && run.panels > 0);
            if rows > ROWS {
                // SAFETY: the tiles of each step, tile and panel lie within A, B and C, by the contract of `Steps::span`. What is
                // prefetched may lie outside, where nothing happens.
                unsafe { run_tall!($dot, rows, run) }
                return;
            }
            // SAFETY: the same contract.
            run.each(|a, b, c| unsafe { Self::tiles(rows, run.steps, a, b, c, run.add != 0) });
        }
    };
}

#[cfg(target_arch = "x86_64")]
impl Kind for Bf16 {
    const PER: usize = 2;
    type A = RowsOfPairs;

    fn allowed(features: Features) -> bool {
        features.amx_bf16 && Features::of_processor().amx_bf16
    }
    products!("tdpbf16ps");
}

#[cfg(target_arch = "x86_64")]
impl Kind for Bytes8 {
    const PER: usize = 4;
    type A = Bytes<WORDS>;

    fn allowed(features: Features) -> bool {
        features.amx_int8 && Features::of_processor().amx_int8
    }
    products!("tdpbsud");
}

/// Not on this architecture, where rows refuse.
#[cfg(not(target_arch = "x86_64"))]
macro_rules! missing {
    ($($kind:ident $per:literal $a:ty;)*) => {
        $(impl Kind for $kind {
            const PER: usize = $per;
            type A = $a;

            fn allowed(_: Features) -> bool {
                false
            }

            unsafe fn tiles(_: usize, _: usize, _: *const f32, _: *const f32, _: *mut f32, _: bool) {}
            unsafe fn blocks(_: &mut Blocks) {}
        })*
    };
}

#[cfg(not(target_arch = "x86_64"))]
missing! { Bf16 2 RowsOfPairs; Bytes8 4 Bytes<WORDS>; }

/// The tiles' arithmetic in plain code: it shows that A and B lie as the instructions read them, on processors without AMX.
#[cfg(test)]
pub(crate) mod model {
    use super::*;
    use half::bf16;

    /// As [`Bf16`].
    #[derive(Clone, Copy)]
    pub(crate) struct ModelBf16;
    /// As [`Bytes8`].
    #[derive(Clone, Copy)]
    pub(crate) struct ModelBytes8;

    /// Row `m` of A is at `a + (step * rows + m) * WORDS`, word `w` of its step meets row `step * WORDS + w` of B.
    unsafe fn tiles(
        [rows, steps]: [usize; 2],
        a: *const f32,
        b: *const f32,
        c: *mut f32,
        add: bool,
        dot: impl Fn(u32, u32, u32) -> u32,
    ) {
        for (m, n) in (0..rows).flat_map(|m| (0..COLUMNS).map(move |n| (m, n))) {
            // SAFETY: the contract of `Steps::product`.
            unsafe {
                let to = c.add(m * COLUMNS + n);
                let mut sum = if add { (*to).to_bits() } else { 0 };
                for (step, w) in (0..steps).flat_map(|step| (0..WORDS).map(move |w| (step, w))) {
                    let x = *a.add((step * rows + m) * WORDS + w);
                    let y = *b.add((step * WORDS + w) * COLUMNS + n);
                    sum = dot(x.to_bits(), y.to_bits(), sum);
                }
                *to = f32::from_bits(sum);
            }
        }
    }

    /// Every block, by the arithmetic of tiles.
    unsafe fn blocks(p: &mut Blocks, per: impl Fn(u32, u32, u32) -> u32 + Copy) {
        for block in 0..p.count {
            let [a, b] =
                [(p.a, p.a_next), (p.b, p.b_next)].map(|(x, next)| x.wrapping_byte_add(block * next));
            let c = p.c.wrapping_byte_add(block * p.c_next);
            for (m, n) in (0..MOST_ROWS).flat_map(|m| (0..COLUMNS).map(move |n| (m, n))) {
                let to = c.wrapping_byte_add(m * p.c_row).wrapping_add(n);
                // SAFETY: the contract of `Kind::blocks`.
                unsafe {
                    let mut sum = if p.add != 0 { (*to).to_bits() } else { 0 };
                    for (step, w) in (0..p.steps).flat_map(|step| (0..WORDS).map(move |w| (step, w))) {
                        let x = *a.wrapping_byte_add(m * p.a_row + step * p.a_step).wrapping_add(w);
                        sum = per(x.to_bits(), (*b.add((step * WORDS + w) * COLUMNS + n)).to_bits(), sum);
                    }
                    *to = f32::from_bits(sum);
                }
            }
        }
    }

    fn dot_pairs(x: u32, y: u32, sum: u32) -> u32 {
        let half = |x: u32, at: u32| bf16::from_bits((x >> at) as u16).to_f32();
        let sum = f32::from_bits(sum) + half(x, 0) * half(y, 0);
        (sum + half(x, 16) * half(y, 16)).to_bits()
    }

    fn dot_quads(x: u32, y: u32, sum: u32) -> u32 {
        let products = x.to_le_bytes().into_iter().zip(y.to_le_bytes());
        let products = products.map(|(x, y)| i32::from(x as i8) * i32::from(y));
        (sum as i32).wrapping_add(products.sum()) as u32
    }

    impl Kind for ModelBf16 {
        const PER: usize = 2;
        type A = RowsOfPairs;

        fn allowed(_: Features) -> bool {
            true
        }
        unsafe fn tiles(rows: usize, steps: usize, a: *const f32, b: *const f32, c: *mut f32, add: bool) {
            // SAFETY: the same contract.
            unsafe { self::tiles([rows, steps], a, b, c, add, dot_pairs) }
        }
        unsafe fn blocks(p: &mut Blocks) {
            // SAFETY: the same contract.
            unsafe { self::blocks(p, dot_pairs) }
        }
    }

    impl Kind for ModelBytes8 {
        const PER: usize = 4;
        type A = Bytes<WORDS>;

        fn allowed(_: Features) -> bool {
            true
        }
        unsafe fn tiles(rows: usize, steps: usize, a: *const f32, b: *const f32, c: *mut f32, add: bool) {
            // SAFETY: the same contract.
            unsafe { self::tiles([rows, steps], a, b, c, add, dot_quads) }
        }
        unsafe fn blocks(p: &mut Blocks) {
            // SAFETY: the same contract.
            unsafe { self::blocks(p, dot_quads) }
        }
    }
}
