//! q4_0: 32 elements of 4 bits with one scale.
//!
//! Block of 18 bytes: f16 scale `d`, then 16 bytes of codes. Byte `i` holds element `i` in its low nibble and
//! element `i + 16` in its high nibble. An element is `d * (q - 8)`.

use super::{f16_at, put_f16, quantise_blocks, read_blocks, reciprocal};
use crate::dtype::DType;
use crate::error::Result;

/// Elements in a block.
pub const LEN: usize = DType::Q4_0.block_len();
/// Bytes in a block.
pub const BYTES: usize = DType::Q4_0.block_bytes();

/// Quantises one block: the element of largest magnitude maps to code 0, that is to -8, so the scale's sign
/// is the opposite of its own.
///
/// The codes are computed with the scale before it is rounded to f16; they round half up. Values must be
/// finite.
pub fn quantise_block(values: &[f32; LEN], out: &mut [u8; BYTES]) {
    // The first of equals.
    let extreme = values.iter().fold(values[0], |m, &v| if v.abs() > m.abs() { v } else { m });
    let scale = extreme / -8.0;
    put_f16(out, 0, scale);
    let inverse = reciprocal(scale);
    let code = |value: f32| ((value * inverse + 8.5) as u8).min(15);
    let (low, high) = values.split_at(LEN / 2);
    for (byte, (&low, &high)) in out[2..].iter_mut().zip(low.iter().zip(high)) {
        *byte = code(low) | (code(high) << 4);
    }
}

/// Dequantises one block.
pub fn dequantise_block(block: &[u8; BYTES], out: &mut [f32; LEN]) {
    let scale = f16_at(block, 0);
    let value = |code: u8| scale * (f32::from(code) - 8.0);
    let (low, high) = out.split_at_mut(LEN / 2);
    for (&byte, (low, high)) in block[2..].iter().zip(low.iter_mut().zip(high)) {
        *low = value(byte & 0xf);
        *high = value(byte >> 4);
    }
}

/// Quantises whole blocks: `values.len()` is a multiple of [`LEN`], `out` holds [`BYTES`] a block.
///
/// # Errors
/// [`Error::Malformed`](crate::Error::Malformed) when the lengths do not belong together, and when a value is
/// not finite or overflows the scale of its block.
pub fn quantise(values: &[f32], out: &mut [u8]) -> Result<()> {
    quantise_blocks(DType::Q4_0, values, out, &[0], quantise_block)
}

/// Dequantises whole blocks: `out` receives [`LEN`] elements for every [`BYTES`] of `bytes`.
///
/// # Errors
/// [`Error::Malformed`](crate::Error::Malformed) when the lengths do not belong together.
pub fn dequantise(bytes: &[u8], out: &mut [f32]) -> Result<()> {
    read_blocks(DType::Q4_0, bytes, out, dequantise_block)
}
