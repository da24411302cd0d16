//! q6_k: 256 elements of 6 bits in 16 groups of 16, each group with an 8-bit scale.
//!
//! Block of 210 bytes:
//!
//! | bytes | content |
//! |---|---|
//! | 0..128 | lower 4 bits of the codes |
//! | 128..192 | upper 2 bits of the codes |
//! | 192..208 | 16 scales `i8` |
//! | 208..210 | f16 `d`, the scale of the groups' scales |
//!
//! An element of a group is `(d * scale) * (q - 32)`. Each half of 128 elements is four runs of 32: element
//! `i` of runs 0 and 2 has its lower bits in byte `i` (run 0 in the low nibble, run 2 in the high one), of
//! runs 1 and 3 in byte `i + 32`; byte `i` of the upper bits holds those of element `i` of run 0 in bits 0
//! and 1, of run 1 in bits 2 and 3, and so on.

use super::fit::fit_symmetric;
use super::{f16_at, put_f16, quantise_blocks, read_blocks};
use crate::dtype::DType;
use crate::error::Result;

/// Elements in a block.
pub const LEN: usize = DType::Q6K.block_len();
/// Bytes in a block.
pub const BYTES: usize = DType::Q6K.block_bytes();

/// Elements in a group.
pub const GROUP: usize = 16;
/// Groups in a block.
pub const GROUPS: usize = LEN / GROUP;

const HIGH_AT: usize = 128;
const SCALES_AT: usize = 192;
const D_AT: usize = 208;
const RUN: usize = 32;
/// Blocks with smaller scales are stored as zeros: their reciprocals would overflow.
const SMALLEST_SCALE: f32 = 1e-15;

/// Quantises one block as llama.cpp's reference quantiser does.
///
/// Each group is fitted by least squares weighted with the squares of the elements; then the groups' scales
/// are quantised to 8 bits, and the codes are recomputed against what was stored. Values must be finite.
pub fn quantise_block(values: &[f32; LEN], out: &mut [u8; BYTES]) {
    out.fill(0);
    let groups = values.as_chunks::<GROUP>().0;
    let mut codes = [[0u8; GROUP]; GROUPS];
    let mut group_scales = [0f32; GROUPS];
    for (g, group) in groups.iter().enumerate() {
        group_scales[g] = fit_symmetric(group, &mut codes[g]);
    }
    let extreme = group_scales.iter().fold(0f32, |m, &s| if s.abs() > m.abs() { s } else { m });
    if extreme.abs() < SMALLEST_SCALE {
        return;
    }
    let inverse = -128.0 / extreme;
    let d = put_f16(out, D_AT, 1.0 / inverse);
    for (g, group) in groups.iter().enumerate() {
        let scale = (inverse * group_scales[g]).round_ties_even() as i8;
        out[SCALES_AT + g] = scale as u8;
        let step = d * f32::from(scale);
        if step == 0.0 {
            continue;
        }
        codes[g] = group.map(|v| ((v / step).round_ties_even().clamp(-32.0, 31.0) + 32.0) as u8);
    }
    let codes = codes.as_flattened();
    for half in 0..2 {
        for i in 0..RUN {
            let [a, b, c, d] = std::array::from_fn(|run| codes[half * 128 + run * RUN + i]);
            out[half * 64 + i] = (a & 0xf) | ((c & 0xf) << 4);
            out[half * 64 + RUN + i] = (b & 0xf) | ((d & 0xf) << 4);
            out[HIGH_AT + half * RUN + i] = (a >> 4) | ((b >> 4) << 2) | ((c >> 4) << 4) | ((d >> 4) << 6);
        }
    }
}

/// Dequantises one block.
pub fn dequantise_block(block: &[u8; BYTES], out: &mut [f32; LEN]) {
    let d = f16_at(block, D_AT);
    for (run, out) in out.as_chunks_mut::<RUN>().0.iter_mut().enumerate() {
        let (half, run) = (run / 4, run % 4);
        let low = &block[half * 64 + (run % 2) * RUN..][..RUN];
        let high = &block[HIGH_AT + half * RUN..][..RUN];
        let scales = &block[SCALES_AT + half * 8 + run * 2..][..2];
        for i in 0..RUN {
            let code = ((low[i] >> (4 * (run / 2))) & 0xf) | (((high[i] >> (2 * run)) & 3) << 4);
            let step = d * f32::from(scales[i / GROUP] as i8);
            out[i] = step * (f32::from(code) - 32.0);
        }
    }
}

/// Quantises whole blocks: `values.len()` is a multiple of [`LEN`], `out` holds [`BYTES`] a block.
///
/// # Errors
/// [`Error::Malformed`](crate::Error::Malformed) when the lengths do not belong together, and when a value is
/// not finite or overflows the scale of its block.
pub fn quantise(values: &[f32], out: &mut [u8]) -> Result<()> {
    quantise_blocks(DType::Q6K, values, out, &[D_AT], quantise_block)
}

/// Dequantises whole blocks: `out` receives [`LEN`] elements for every [`BYTES`] of `bytes`.
///
/// # Errors
/// [`Error::Malformed`](crate::Error::Malformed) when the lengths do not belong together.
pub fn dequantise(bytes: &[u8], out: &mut [f32]) -> Result<()> {
    read_blocks(DType::Q6K, bytes, out, dequantise_block)
}
