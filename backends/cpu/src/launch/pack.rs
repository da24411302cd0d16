//! Packing a constant B into panels of `NR` columns, `[k][NR]` each, zero beyond `n`: the layout that the micro-kernels of every shape
//! read, one column of lanes after the other. Elements keep their type; rounding is not a packing's business.

use crate::launch::body::{Body, other_op};
use crate::launch::matmul::quantised_pack::{block_bytes, put};
use crate::simd::Simd;
use crate::spmd::Args;
use crate::team::Lane;
use bytemuck::Pod;
use perjoule_kernels::op::{Op, Pack};
use perjoule_kernels::{Candidate, DType, Launch, PackFormat, Reason, Request, Result};

const fn panels<const NR: usize>(name: &'static str, dtype: DType) -> PackFormat {
    let panel_bytes = match dtype.block_bytes() {
        2 => bytes::<NR, 2>,
        _ => bytes::<NR, 4>,
    };
    PackFormat { name, dtype, panel: NR, panel_bytes }
}

fn bytes<const NR: usize, const SIZE: usize>(k: usize) -> Option<u64> {
    (k as u64).checked_mul((NR * SIZE) as u64)
}

/// For tiles of 8 columns.
pub(crate) static PANEL8_F32: PackFormat = panels::<8>("panel8_f32", DType::F32);
/// For tiles of 8 columns.
pub(crate) static PANEL8_BF16: PackFormat = panels::<8>("panel8_bf16", DType::BF16);
/// For tiles of 8 columns.
pub(crate) static PANEL8_F16: PackFormat = panels::<8>("panel8_f16", DType::F16);
/// For tiles of 16 columns.
pub(crate) static PANEL16_F32: PackFormat = panels::<16>("panel16_f32", DType::F32);
/// For tiles of 16 columns.
pub(crate) static PANEL16_BF16: PackFormat = panels::<16>("panel16_bf16", DType::BF16);
/// For tiles of 16 columns.
pub(crate) static PANEL16_F16: PackFormat = panels::<16>("panel16_f16", DType::F16);
/// For tiles of 32 columns.
pub(crate) static PANEL32_F32: PackFormat = panels::<32>("panel32_f32", DType::F32);
/// For tiles of 32 columns.
pub(crate) static PANEL32_F16: PackFormat = panels::<32>("panel32_f16", DType::F16);

/// Words of two bf16 that are neighbours along k, in panels of 8 columns: `[word][8]`.
pub(crate) static PAIRS8_BF16: PackFormat =
    PackFormat { name: "pairs8_bf16", dtype: DType::BF16, panel: 8, panel_bytes: words::<8, 2> };
/// The same in panels of 32 columns.
pub(crate) static PAIRS32_BF16: PackFormat =
    PackFormat { name: "pairs32_bf16", dtype: DType::BF16, panel: 32, panel_bytes: words::<32, 2> };
/// Words of four i8 plus 128, as u8, that are neighbours along k, in panels of 8 columns.
pub(crate) static QUADS8_U8: PackFormat =
    PackFormat { name: "quads8_u8", dtype: DType::I8, panel: 8, panel_bytes: words::<8, 4> };
/// The same in panels of 16 columns.
pub(crate) static QUADS16_U8: PackFormat =
    PackFormat { name: "quads16_u8", dtype: DType::I8, panel: 16, panel_bytes: words::<16, 4> };
/// The same in panels of 32 columns.
pub(crate) static QUADS32_U8: PackFormat =
    PackFormat { name: "quads32_u8", dtype: DType::I8, panel: 32, panel_bytes: words::<32, 4> };

/// A format of blocks in panels, with the block format whose numbers it keeps.
macro_rules! blocks {
    ($($panel:ident $name:literal $dtype:ident $nr:literal;)*) => {
        $(
            /// Blocks of
            #[doc = stringify!($dtype)]
            /// in panels: [`crate::launch::matmul::quantised`] says how they lie.
            pub(crate) static $panel: PackFormat = PackFormat {
                name: $name,
                dtype: DType::I8,
                panel: $nr,
                panel_bytes: |k| {
                    let blocks = (k / DType::$dtype.block_len()) as u64;
                    blocks.checked_mul(block_bytes(DType::$dtype, $nr)? as u64)
                },
            };
        )*
        static BLOCKS: &[(&PackFormat, DType)] = &[$((&$panel, DType::$dtype)),*];
    };
}

blocks! {
    BLOCKS8_Q8_0 "blocks8_q8_0" Q8_0 8;
    BLOCKS8_Q4_0 "blocks8_q4_0" Q4_0 8;
    BLOCKS8_Q4_K "blocks8_q4_k" Q4K 8;
    BLOCKS8_Q6_K "blocks8_q6_k" Q6K 8;
    BLOCKS8_MXFP4 "blocks8_mxfp4" MxFp4 8;
    BLOCKS16_Q8_0 "blocks16_q8_0" Q8_0 16;
    BLOCKS16_Q4_0 "blocks16_q4_0" Q4_0 16;
    BLOCKS16_Q4_K "blocks16_q4_k" Q4K 16;
    BLOCKS16_Q6_K "blocks16_q6_k" Q6K 16;
    BLOCKS16_MXFP4 "blocks16_mxfp4" MxFp4 16;
    BLOCKS32_Q8_0 "blocks32_q8_0" Q8_0 32;
    BLOCKS32_Q4_0 "blocks32_q4_0" Q4_0 32;
    BLOCKS32_Q4_K "blocks32_q4_k" Q4K 32;
    BLOCKS32_Q6_K "blocks32_q6_k" Q6K 32;
    BLOCKS32_MXFP4 "blocks32_mxfp4" MxFp4 32;
}

/// Rows of words of `PER` elements of a panel, rounded up to whole tiles of AMX.
pub(crate) fn word_rows<const PER: usize>(k: usize) -> usize {
    k.div_ceil(16 * PER) * 16
}

fn words<const NR: usize, const PER: usize>(k: usize) -> Option<u64> {
    (k.div_ceil(16 * PER) as u64).checked_mul((16 * 4 * NR) as u64)
}

static FORMATS: [&PackFormat; 13] = [
    &PANEL8_F32,
    &PANEL8_BF16,
    &PANEL8_F16,
    &PANEL16_F32,
    &PANEL16_BF16,
    &PANEL16_F16,
    &PANEL32_F32,
    &PAIRS8_BF16,
    &PAIRS32_BF16,
    &QUADS8_U8,
    &QUADS16_U8,
    &QUADS32_U8,
    &PANEL32_F16,
];

/// Steps of k of a panel that are written before the next column is read: they stay in L1.
const DEPTH: usize = 64;

/// The body of the pack row.
struct Panels(Pack);

impl Body for Panels {
    #[inline(always)]
    fn run<S: Simd>(&self, _: S, lane: &Lane<'_>, args: &Args) {
        if BLOCKS.iter().any(|(format, _)| *format == self.0.format) {
            return pack_blocks(&self.0, lane, args);
        }
        match self.0.format.dtype.block_bytes() {
            1 => pack_words::<u8, 4>(&self.0, lane, args, |byte| byte ^ 0x80),
            2 if self.0.format == &PAIRS8_BF16 || self.0.format == &PAIRS32_BF16 => {
                pack_words::<u16, 2>(&self.0, lane, args, |bits| bits)
            }
            2 => pack::<u16>(&self.0, lane, args),
            _ => pack::<u32>(&self.0, lane, args),
        }
    }
}

fn pack<T: Pod>(op: &Pack, lane: &Lane<'_>, args: &Args) {
    let (from, to) = (args.read::<T>(0), args.out::<T>(1));
    let (nr, strides) = (op.format.panel, op.b.strides);
    let panels = op.n.div_ceil(nr);
    if op.k == 0 || panels == 0 {
        return;
    }
    for item in lane.split(op.matrices * panels, 1) {
        let (matrix, panel) = (item / panels, item % panels);
        // SAFETY: every panel has its own range, and every item is one lane's.
        let out = unsafe { to.slice(item * op.k * nr..(item + 1) * op.k * nr) };
        let columns = panel * nr..(panel * nr + nr).min(op.n);
        for (index, part) in out.chunks_mut(DEPTH * nr).enumerate() {
            let k0 = index * DEPTH;
            if strides.col == 1 {
                for (step, row) in part.chunks_exact_mut(nr).enumerate() {
                    let at = strides.at(matrix, k0 + step, columns.start);
                    let (used, rest) = row.split_at_mut(columns.len());
                    used.copy_from_slice(&from[at..at + columns.len()]);
                    rest.fill(T::zeroed());
                }
                continue;
            }
            for column in 0..nr {
                for (step, row) in part.chunks_exact_mut(nr).enumerate() {
                    let inside = column < columns.len();
                    let at = strides.at(matrix, k0 + step, columns.start + if inside { column } else { 0 });
                    row[column] = if inside { from[at] } else { T::zeroed() };
                }
            }
        }
    }
}

/// Words of `PER` elements; `to_bits` gives what is stored of an element. What is beyond `k` and `n` is 0.
fn pack_words<T: Pod, const PER: usize>(op: &Pack, lane: &Lane<'_>, args: &Args, to_bits: impl Fn(T) -> T) {
    let (from, to) = (args.read::<T>(0), args.out::<T>(1));
    let (nr, strides) = (op.format.panel, op.b.strides);
    let (panels, len) = (op.n.div_ceil(nr), word_rows::<PER>(op.k) * PER * nr);
    if op.k == 0 || panels == 0 {
        return;
    }
    for item in lane.split(op.matrices * panels, 1) {
        let (matrix, panel) = (item / panels, item % panels);
        // SAFETY: every panel has its own range, and every item is one lane's.
        let out = unsafe { to.slice(item * len..(item + 1) * len) };
        let columns = (op.n - panel * nr).min(nr);
        // a few rows of words at a time, so that what is written stays in L1
        for (index, part) in out.chunks_mut(DEPTH * PER * nr).enumerate() {
            let k0 = index * DEPTH * PER;
            let steps = (DEPTH * PER).min(op.k.saturating_sub(k0));
            if columns < nr || steps < DEPTH * PER {
                part.fill(T::zeroed());
            }
            if steps == 0 {
                continue;
            }
            for column in 0..columns {
                let first = strides.at(matrix, k0, panel * nr + column);
                for step in 0..steps {
                    part[(step / PER * nr + column) * PER + step % PER] =
                        to_bits(from[first + step * strides.row]);
                }
            }
        }
    }
}

/// Blocks of all columns of a panel behind each other; zeros beyond `n`.
fn pack_blocks(op: &Pack, lane: &Lane<'_>, args: &Args) {
    let (from, to) = (args.read::<u8>(0), args.out::<u8>(1));
    let (nr, dtype) = (op.format.panel, op.b.dtype);
    let (len, size) = (dtype.block_len(), dtype.block_bytes());
    let (panels, blocks) = (op.n.div_ceil(nr), op.k / len);
    let Some(bytes) = block_bytes(dtype, nr) else { return };
    for item in lane.split(op.matrices * panels, 1) {
        let (matrix, panel) = (item / panels, item % panels);
        // SAFETY: every panel has its own range, and every item is one lane's.
        let out = unsafe { to.slice(item * blocks * bytes..(item + 1) * blocks * bytes) };
        let columns = (op.n - panel * nr).min(nr);
        if columns < nr {
            out.fill(0);
        }
        for (block, out) in out.chunks_exact_mut(bytes).enumerate() {
            for column in 0..columns {
                let at = op.b.strides.at(matrix, block * len, panel * nr + column) / len * size;
                put(dtype, &from[at..at + size], nr, column, out);
            }
        }
    }
}

pub(crate) fn reject(Candidate { op, .. }: &Candidate<'_>) -> Option<Reason> {
    let Op::Pack(op) = op else { return Some(Reason::new("runs pack")) };
    let blocks = BLOCKS.iter().find(|(format, _)| *format == op.format).map(|(_, dtype)| *dtype);
    let plain = || FORMATS.contains(&op.format).then_some(op.format.dtype);
    let Some(dtype) = blocks.or_else(plain) else {
        return Some(Reason::new(format!("does not know the format {}", op.format.name)));
    };
    (op.b.dtype != dtype)
        .then(|| Reason::new(format!("packs {} from {dtype} only: a packing does not round", op.format.name)))
}

pub(crate) fn cost(Candidate { op, .. }: &Candidate<'_>) -> f32 {
    2e-6 + op.bytes() as f32 / 2e9
}

pub(crate) fn prepare(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let Op::Pack(op) = request.op else { return Err(other_op(request.op)) };
    crate::launch::body::on::<crate::simd::Portable>(request, Panels(*op))
}
