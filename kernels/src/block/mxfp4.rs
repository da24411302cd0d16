//! mxfp4: 32 elements in the 4-bit float E2M1 with one power-of-two scale (E8M0), as the OCP Microscaling
//! Formats (MX) specification v1.0 defines them.
//!
//! Block of 17 bytes, in ggml's order: the scale byte `e`, then 16 bytes of codes. Byte `i` holds element `i`
//! in its low nibble and element `i + 16` in its high nibble. An element is `2^(e - 127)` times one of 0,
//! 0.5, 1, 1.5, 2, 3, 4, 6, with the sign in the code's top bit; with `e = 255` it is NaN.
//!
//! Checkpoints on Hugging Face (gpt-oss) keep scales and codes in two tensors, `_scales` with a byte a block
//! and `_blocks` with 16, where byte `i` holds element `2 i` in its low nibble and element `2 i + 1` in its
//! high nibble: see [`from_hf`].

use super::{quantise_blocks, read_blocks};
use crate::dtype::DType;
use crate::error::{Error, Result};

/// Elements in a block.
pub const LEN: usize = DType::MxFp4.block_len();
/// Bytes in a block.
pub const BYTES: usize = DType::MxFp4.block_bytes();

/// Bytes of codes in a block.
pub const CODE_BYTES: usize = LEN / 2;

/// Twice the value of each code: E2M1 in units of the halved scale, which makes all of them integers.
pub const DOUBLED: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// Half of the scale that `e` stands for, `2^(e - 128)`; NaN for 255. Exact: it is subnormal for 0 and 1.
pub fn half_scale(e: u8) -> f32 {
    match e {
        255 => f32::NAN,
        0 | 1 => f32::from_bits(0x0020_0000 << e),
        _ => f32::from_bits(u32::from(e - 1) << 23),
    }
}

/// Quantises one block: the scale is `2^(floor(log2(largest magnitude)) - 2)`, codes round to nearest, ties
/// to the smaller magnitude, and magnitudes beyond 6 times the scale become 6 times the scale. Zero has a
/// positive sign. Values must be finite.
///
/// ggml and its Python package `gguf` do the same, with two departures that this function does not follow:
/// they take the logarithm in `f32`, which rounds magnitudes just below a power of two up to it, and their
/// scale byte wraps around for magnitudes below `2^-125`, where this one stays at its smallest, 0.
pub fn quantise_block(values: &[f32; LEN], out: &mut [u8; BYTES]) {
    let largest = values.iter().fold(0f32, |m, v| m.max(v.abs()));
    // The exponent field is floor(log2) + 127 for normal numbers, and 0 for subnormal ones, which need the
    // smallest scale anyway.
    let e = ((largest.to_bits() >> 23) as u8).saturating_sub(2);
    out[0] = e;
    let half = half_scale(e);
    // Midpoints between neighbouring magnitudes, in halves of the scale. Their products are exact, as the
    // scale is a power of two.
    let midpoints = [0.5, 1.5, 2.5, 3.5, 5.0, 7.0, 10.0].map(|m: f32| m * half);
    let code = |value: f32| {
        let magnitude = midpoints.iter().filter(|&&m| value.abs() > m).count() as u8;
        if magnitude > 0 && value < 0.0 { magnitude | 8 } else { magnitude }
    };
    let (low, high) = values.split_at(LEN / 2);
    for (byte, (&low, &high)) in out[1..].iter_mut().zip(low.iter().zip(high)) {
        *byte = code(low) | (code(high) << 4);
    }
}

/// Dequantises one block. Values beyond the largest `f32` (scale bytes 253 and 254) become infinite.
pub fn dequantise_block(block: &[u8; BYTES], out: &mut [f32; LEN]) {
    let half = half_scale(block[0]);
    let value = |code: u8| half * f32::from(DOUBLED[usize::from(code)]);
    let (low, high) = out.split_at_mut(LEN / 2);
    for (&byte, (low, high)) in block[1..].iter().zip(low.iter_mut().zip(high)) {
        *low = value(byte & 0xf);
        *high = value(byte >> 4);
    }
}

/// Quantises whole blocks: `values.len()` is a multiple of [`LEN`], `out` holds [`BYTES`] a block.
///
/// # Errors
/// [`Error::Malformed`] when the lengths do not belong together, and when a value is
/// not finite or overflows the scale of its block.
pub fn quantise(values: &[f32], out: &mut [u8]) -> Result<()> {
    quantise_blocks(DType::MxFp4, values, out, &[], quantise_block)
}

/// Dequantises whole blocks: `out` receives [`LEN`] elements for every [`BYTES`] of `bytes`.
///
/// # Errors
/// [`Error::Malformed`] when the lengths do not belong together.
pub fn dequantise(bytes: &[u8], out: &mut [f32]) -> Result<()> {
    read_blocks(DType::MxFp4, bytes, out, dequantise_block)
}

/// Interleaves the `_blocks` and `_scales` tensors of a Hugging Face checkpoint into blocks, element order
/// unchanged.
///
/// `blocks` has [`CODE_BYTES`] bytes for each byte of `scales`, in the same order; the result has [`BYTES`]
/// for each. No value changes.
///
/// # Errors
/// [`Error::Malformed`] when the lengths do not belong together.
pub fn from_hf(blocks: &[u8], scales: &[u8]) -> Result<Vec<u8>> {
    let mut out = Vec::with_capacity(scales.len().saturating_mul(BYTES));
    let (codes, rest) = blocks.as_chunks::<CODE_BYTES>();
    if codes.len() != scales.len() || !rest.is_empty() {
        return Err(Error::Malformed {
            what: "mxfp4",
            why: format!(
                "{} bytes of blocks and {} scales do not belong together: each scale has {CODE_BYTES} bytes of codes",
                blocks.len(),
                scales.len()
            ),
        });
    }
    for (codes, &scale) in codes.iter().zip(scales) {
        out.push(scale);
        let element = |i: usize| (codes[i / 2] >> (4 * (i % 2))) & 0xf;
        out.extend((0..CODE_BYTES).map(|i| element(i) | (element(i + CODE_BYTES) << 4)));
    }
    Ok(out)
}
