//! q8_0: 32 elements of 8 bits with one scale.
//!
//! Block of 34 bytes: f16 scale `d`, then 32 codes `i8`. Element `i` is `d * q[i]`.

use super::{f16_at, put_f16, quantise_blocks, read_blocks, reciprocal};
use crate::dtype::DType;
use crate::error::Result;

/// Elements in a block.
pub const LEN: usize = DType::Q8_0.block_len();
/// Bytes in a block.
pub const BYTES: usize = DType::Q8_0.block_bytes();

/// Quantises one block: the largest magnitude maps to code 127, codes round half away from zero.
///
/// The codes are computed with the scale before it is rounded to f16. Values must be finite.
pub fn quantise_block(values: &[f32; LEN], out: &mut [u8; BYTES]) {
    let scale = values.iter().fold(0f32, |m, v| m.max(v.abs())) / 127.0;
    put_f16(out, 0, scale);
    let inverse = reciprocal(scale);
    for (code, value) in out[2..].iter_mut().zip(values) {
        *code = (value * inverse).round() as i8 as u8;
    }
}

/// Dequantises one block.
pub fn dequantise_block(block: &[u8; BYTES], out: &mut [f32; LEN]) {
    let scale = f16_at(block, 0);
    for (out, &code) in out.iter_mut().zip(&block[2..]) {
        *out = f32::from(code as i8) * scale;
    }
}

/// Quantises whole blocks: `values.len()` is a multiple of [`LEN`], `out` holds [`BYTES`] a block.
///
/// # Errors
/// [`Error::Malformed`](crate::Error::Malformed) when the lengths do not belong together, and when a value is
/// not finite or overflows the scale of its block.
pub fn quantise(values: &[f32], out: &mut [u8]) -> Result<()> {
    quantise_blocks(DType::Q8_0, values, out, &[0], quantise_block)
}

/// Dequantises whole blocks: `out` receives [`LEN`] elements for every [`BYTES`] of `bytes`.
///
/// # Errors
/// [`Error::Malformed`](crate::Error::Malformed) when the lengths do not belong together.
pub fn dequantise(bytes: &[u8], out: &mut [f32]) -> Result<()> {
    read_blocks(DType::Q8_0, bytes, out, dequantise_block)
}
