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
use super::tile::{MOST_ROWS, Steps};
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
#[cfg(target_arch = "x86_64")]
const ROWS: usize = 16;
/// Columns of a panel.
#[cfg(any(target_arch = "x86_64", test))]
const COLUMNS: usize = 32;

/// What tiles multiply.
pub(crate) trait Kind: Copy + Send + Sync + 'static {
    /// Elements of a word.
    const PER: usize;
    /// How A is packed.
    type A: Words;

    /// Whether a device may use it.
    fn allowed(features: Features) -> bool;
    /// Multiplies `steps` steps of `rows` rows: see [`Steps::product`].
    ///
    /// # Safety
    /// That of [`Steps::product`], and the processor has AMX, which the process may use.
    unsafe fn tiles(rows: usize, steps: usize, a: *const f32, b: *const f32, c: *mut f32, add: bool);
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

    fn stored(steps: usize, nr: usize) -> usize {
        steps * WORDS * nr
    }
    unsafe fn product<S: Simd>(
        _: S,
        rows: usize,
        steps: usize,
        a: *const f32,
        b: *const f32,
        c: *mut f32,
        add: bool,
    ) {
        // SAFETY: the contract; rows of the table that use tiles refuse devices without AMX.
        unsafe { K::tiles(rows, steps, a, b, c, add) }
    }
}

/// A of bf16 in rows of 64 bytes.
#[derive(Clone, Copy)]
pub(crate) struct RowsOfPairs;

impl Words for RowsOfPairs {
    const PER: usize = 2 * WORDS;
    const WORDS: usize = WORDS;

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
        let rows = self.k.div_ceil(WORDS * K::PER) * WORDS;
        let first = (matrix * self.n.div_ceil(nr) + panel) * rows;
        let end = ks.end.div_ceil(WORDS * K::PER) * WORDS;
        &self.words[(first + ks.start / K::PER) * nr..(first + end) * nr]
    }

    fn widen<S: Simd>(&self, _: S, _: usize, _: usize, _: Range<usize>, _: &mut [f32]) {}
}

/// Shapes of the eight tiles, as `ldtilecfg` reads them.
#[cfg(target_arch = "x86_64")]
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

#[cfg(target_arch = "x86_64")]
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

/// The loop over the steps with that instruction; `tilerelease` ends it.
#[cfg(target_arch = "x86_64")]
macro_rules! multiply {
    ($dot:literal, $rows:expr, $steps:expr, $a:expr, $b:expr, $c:expr, $add:expr) => {{
        let shapes = Shapes::new($rows);
        // bytes of a step of A; of two rows of B or C
        let (a_step, row) = ($rows * 4 * WORDS, 4 * COLUMNS);
        if $rows > ROWS {
            std::arch::asm!(
                "ldtilecfg [{shapes}]",
                "test {add:e}, {add:e}",
                "jnz 2f",
                "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                "jmp 3f",
                "2:",
                "tileloadd tmm0, [{c} + {row}*1]", "tileloadd tmm1, [{c} + {row}*1 + 64]",
                "tileloadd tmm2, [{lower} + {row}*1]", "tileloadd tmm3, [{lower} + {row}*1 + 64]",
                "3:",
                "tileloadd tmm6, [{b} + {row}*1]",
                "tileloaddt1 tmm4, [{a} + {line}*1]",
                concat!($dot, " tmm0, tmm4, tmm6"),
                "tileloadd tmm7, [{b} + {row}*1 + 64]",
                concat!($dot, " tmm1, tmm4, tmm7"),
                "tileloaddt1 tmm5, [{a} + {line}*1 + 1024]",
                concat!($dot, " tmm2, tmm5, tmm6"),
                concat!($dot, " tmm3, tmm5, tmm7"),
                "add {a}, {a_step}",
                "add {b}, 2048",
                "dec {steps}",
                "jnz 3b",
                "tilestored [{c} + {row}*1], tmm0", "tilestored [{c} + {row}*1 + 64], tmm1",
                "tilestored [{lower} + {row}*1], tmm2", "tilestored [{lower} + {row}*1 + 64], tmm3",
                "tilerelease",
                shapes = in(reg) &shapes, add = in(reg) u32::from($add), c = in(reg) $c,
                lower = in(reg) $c.add(ROWS * COLUMNS), a = inout(reg) $a => _, b = inout(reg) $b => _,
                steps = inout(reg) $steps => _, row = in(reg) row, line = in(reg) 4 * WORDS, a_step = in(reg) a_step,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack)
            );
        } else {
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
                shapes = in(reg) &shapes, add = in(reg) u32::from($add), c = in(reg) $c,
                a = inout(reg) $a => _, b = inout(reg) $b => _, steps = inout(reg) $steps => _,
                row = in(reg) row, line = in(reg) 4 * WORDS, a_step = in(reg) a_step,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack)
            );
        }
    }};
}

#[cfg(target_arch = "x86_64")]
impl Kind for Bf16 {
    const PER: usize = 2;
    type A = RowsOfPairs;

    fn allowed(features: Features) -> bool {
        features.amx_bf16
    }

    unsafe fn tiles(rows: usize, steps: usize, a: *const f32, b: *const f32, c: *mut f32, add: bool) {
        debug_assert!(rows <= MOST_ROWS && steps > 0);
        // SAFETY: the tiles of a step lie within A and B, those of the accumulators within C, by the contract of `Steps::product`.
        unsafe { multiply!("tdpbf16ps", rows, steps, a, b, c, add) }
    }
}

#[cfg(target_arch = "x86_64")]
impl Kind for Bytes8 {
    const PER: usize = 4;
    type A = Bytes<WORDS>;

    fn allowed(features: Features) -> bool {
        features.amx_int8
    }

    unsafe fn tiles(rows: usize, steps: usize, a: *const f32, b: *const f32, c: *mut f32, add: bool) {
        debug_assert!(rows <= MOST_ROWS && steps > 0);
        // SAFETY: as for bf16.
        unsafe { multiply!("tdpbsud", rows, steps, a, b, c, add) }
    }
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

    impl Kind for ModelBf16 {
        const PER: usize = 2;
        type A = RowsOfPairs;

        fn allowed(_: Features) -> bool {
            true
        }
        unsafe fn tiles(rows: usize, steps: usize, a: *const f32, b: *const f32, c: *mut f32, add: bool) {
            let dot = |x: u32, y: u32, sum: u32| {
                let half = |x: u32, at: u32| bf16::from_bits((x >> at) as u16).to_f32();
                let sum = f32::from_bits(sum) + half(x, 0) * half(y, 0);
                (sum + half(x, 16) * half(y, 16)).to_bits()
            };
            // SAFETY: the same contract.
            unsafe { self::tiles([rows, steps], a, b, c, add, dot) }
        }
    }

    impl Kind for ModelBytes8 {
        const PER: usize = 4;
        type A = Bytes<WORDS>;

        fn allowed(_: Features) -> bool {
            true
        }
        unsafe fn tiles(rows: usize, steps: usize, a: *const f32, b: *const f32, c: *mut f32, add: bool) {
            let dot = |x: u32, y: u32, sum: u32| {
                let products = x.to_le_bytes().into_iter().zip(y.to_le_bytes());
                let products = products.map(|(x, y)| i32::from(x as i8) * i32::from(y));
                (sum as i32).wrapping_add(products.sum()) as u32
            };
            // SAFETY: the same contract.
            unsafe { self::tiles([rows, steps], a, b, c, add, dot) }
        }
    }
}
