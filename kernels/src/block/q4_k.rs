//! q4_k: 256 elements of 4 bits in 8 groups of 32, each group with a 6-bit scale and a 6-bit minimum.
//!
//! Block of 144 bytes:
//!
//! | bytes | content |
//! |---|---|
//! | 0..2 | f16 `d`, the scale of the groups' scales |
//! | 2..4 | f16 `dmin`, the scale of the groups' minima |
//! | 4..16 | 8 scales and 8 minima of 6 bits (see [`scales`]) |
//! | 16..144 | codes: 32 bytes for two groups, the even group in the low nibbles, the odd one in the high nibbles |
//!
//! Element `i` of a group is `(d * scale) * q[i] - dmin * minimum`.

use super::fit::{fit_affine, scale_to_codes};
use super::{f16_at, put_f16, quantise_blocks, read_blocks};
use crate::dtype::DType;
use crate::error::Result;

/// Elements in a block.
pub const LEN: usize = DType::Q4K.block_len();
/// Bytes in a block.
pub const BYTES: usize = DType::Q4K.block_bytes();

/// Elements in a group.
pub const GROUP: usize = 32;
/// Groups in a block.
pub const GROUPS: usize = LEN / GROUP;

const PACKED_AT: usize = 4;
const CODES_AT: usize = 16;

/// The 6-bit scale and minimum of each group of a block.
///
/// Groups 0 to 3 have theirs in the low 6 bits of bytes 0..4 (scales) and 4..8 (minima); groups 4 to 7 have
/// their low 4 bits in bytes 8..12 (scale low, minimum high) and their upper 2 bits in the bits that the
/// first eight bytes leave free.
pub fn scales(block: &[u8; BYTES]) -> [(u8, u8); GROUPS] {
    let packed = &block[PACKED_AT..CODES_AT];
    std::array::from_fn(|group| match group.checked_sub(4) {
        None => (packed[group] & 63, packed[group + 4] & 63),
        Some(g) => (
            (packed[g + 8] & 0xf) | ((packed[g] >> 6) << 4),
            (packed[g + 8] >> 4) | ((packed[g + 4] >> 6) << 4),
        ),
    })
}

fn put_scales(block: &mut [u8; BYTES], scales: &[u8; GROUPS], minima: &[u8; GROUPS]) {
    let packed = &mut block[PACKED_AT..CODES_AT];
    for g in 0..4 {
        packed[g] = scales[g] | ((scales[g + 4] >> 4) << 6);
        packed[g + 4] = minima[g] | ((minima[g + 4] >> 4) << 6);
        packed[g + 8] = (scales[g + 4] & 0xf) | ((minima[g + 4] & 0xf) << 4);
    }
}

/// Quantises one block as llama.cpp's reference quantiser does.
///
/// Each group is fitted by weighted least squares, where larger elements weigh more; then the groups' scales
/// and minima are quantised to 6 bits, and the codes are recomputed against what was stored. Values must be
/// finite.
pub fn quantise_block(values: &[f32; LEN], out: &mut [u8; BYTES]) {
    let groups = values.as_chunks::<GROUP>().0;
    let mut codes = [[0u8; GROUP]; GROUPS];
    let mut group_scales = [0f32; GROUPS];
    let mut group_minima = [0f32; GROUPS];
    for (g, group) in groups.iter().enumerate() {
        let rms = (group.iter().map(|v| v * v).sum::<f32>() / GROUP as f32).sqrt();
        let weights = group.map(|v| rms + v.abs());
        (group_scales[g], group_minima[g]) = fit_affine(group, &weights, &mut codes[g]);
    }
    let (scale, scale_codes) = scale_to_codes(&group_scales, 63);
    let (minimum, minimum_codes) = scale_to_codes(&group_minima, 63);
    let d = put_f16(out, 0, scale);
    let dmin = put_f16(out, 2, minimum);
    put_scales(out, &scale_codes, &minimum_codes);
    for (g, group) in groups.iter().enumerate() {
        let step = d * f32::from(scale_codes[g]);
        if step == 0.0 {
            continue;
        }
        let offset = dmin * f32::from(minimum_codes[g]);
        codes[g] = group.map(|v| ((v + offset) / step).round_ties_even().clamp(0.0, 15.0) as u8);
    }
    for (bytes, [even, odd]) in
        out[CODES_AT..].as_chunks_mut::<GROUP>().0.iter_mut().zip(codes.as_chunks::<2>().0)
    {
        *bytes = std::array::from_fn(|i| even[i] | (odd[i] << 4));
    }
}

/// Dequantises one block.
pub fn dequantise_block(block: &[u8; BYTES], out: &mut [f32; LEN]) {
    let (d, dmin) = (f16_at(block, 0), f16_at(block, 2));
    let steps = scales(block).map(|(scale, minimum)| (d * f32::from(scale), dmin * f32::from(minimum)));
    for (g, group) in out.as_chunks_mut::<GROUP>().0.iter_mut().enumerate() {
        let (step, offset) = steps[g];
        let bytes = &block[CODES_AT + g / 2 * GROUP..][..GROUP];
        for (out, byte) in group.iter_mut().zip(bytes) {
            *out = step * f32::from((byte >> (4 * (g % 2))) & 0xf) - offset;
        }
    }
}

/// Quantises whole blocks: `values.len()` is a multiple of [`LEN`], `out` holds [`BYTES`] a block.
///
/// # Errors
/// [`Error::Malformed`](crate::Error::Malformed) when the lengths do not belong together, and when a value is
/// not finite or overflows the scale of its block.
pub fn quantise(values: &[f32], out: &mut [u8]) -> Result<()> {
    quantise_blocks(DType::Q4K, values, out, &[0, 2], quantise_block)
}

/// Dequantises whole blocks: `out` receives [`LEN`] elements for every [`BYTES`] of `bytes`.
///
/// # Errors
/// [`Error::Malformed`](crate::Error::Malformed) when the lengths do not belong together.
pub fn dequantise(bytes: &[u8], out: &mut [f32]) -> Result<()> {
    read_blocks(DType::Q4K, bytes, out, dequantise_block)
}
