//! Bytes to numbers and back, for every [`DType`]: the one definition of what stored elements mean.
//!
//! Storage is little-endian. Plain types round to nearest, ties to even:
//!
//! - `f16` and `bf16` overflow to infinity and keep NaN; `f8e4m3` saturates (see [`crate::float8`]);
//! - integers saturate, and NaN becomes 0.
//!
//! Block formats have a module each, with functions for one block and for runs of whole blocks. q8_0, q4_0,
//! q4_k and q6_k have the byte layout and the quantisation rules of llama.cpp (ggml); mxfp4 holds the OCP MX
//! format in ggml's byte order.
//!
//! A quantiser refuses what its format cannot hold: NaN, infinities, and values whose scale overflows.

mod fit;
pub mod mxfp4;
pub mod q4_0;
pub mod q4_k;
pub mod q6_k;
pub mod q8_0;

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::float8::{e4m3_to_f32, f32_to_e4m3};
use half::{bf16, f16};

/// Reads `out.len()` elements of type `dtype`.
///
/// `i32` and `u32` beyond 2^24 round to the nearest `f32`; everything else is exact, except that products of
/// scale and code round to `f32` in block formats, and overflow to infinity where they exceed it.
///
/// # Errors
/// [`Error::Malformed`] unless `bytes` is exactly as long as `out.len()` elements are, in whole blocks.
pub fn decode(dtype: DType, bytes: &[u8], out: &mut [f32]) -> Result<()> {
    match dtype {
        DType::F32 => read(dtype, bytes, out, f32::from_le_bytes),
        DType::F16 => read(dtype, bytes, out, |b| f16::from_le_bytes(b).to_f32()),
        DType::BF16 => read(dtype, bytes, out, |b| bf16::from_le_bytes(b).to_f32()),
        DType::F8E4M3 => read(dtype, bytes, out, |[b]| e4m3_to_f32(b)),
        DType::I8 => read(dtype, bytes, out, |b| f32::from(i8::from_le_bytes(b))),
        DType::I32 => read(dtype, bytes, out, |b| i32::from_le_bytes(b) as f32),
        DType::U32 => read(dtype, bytes, out, |b| u32::from_le_bytes(b) as f32),
        DType::Q8_0 => q8_0::dequantise(bytes, out),
        DType::Q4_0 => q4_0::dequantise(bytes, out),
        DType::Q4K => q4_k::dequantise(bytes, out),
        DType::Q6K => q6_k::dequantise(bytes, out),
        DType::MxFp4 => mxfp4::dequantise(bytes, out),
    }
}

/// Like [`decode`], into `f64`: `i32` and `u32` are exact, too. Block formats give the values that [`decode`]
/// gives.
///
/// # Errors
/// As [`decode`].
pub fn decode_f64(dtype: DType, bytes: &[u8], out: &mut [f64]) -> Result<()> {
    match dtype {
        DType::F32 => read(dtype, bytes, out, |b| f64::from(f32::from_le_bytes(b))),
        DType::F16 => read(dtype, bytes, out, |b| f64::from(f16::from_le_bytes(b).to_f32())),
        DType::BF16 => read(dtype, bytes, out, |b| f64::from(bf16::from_le_bytes(b).to_f32())),
        DType::F8E4M3 => read(dtype, bytes, out, |[b]| f64::from(e4m3_to_f32(b))),
        DType::I8 => read(dtype, bytes, out, |b| f64::from(i8::from_le_bytes(b))),
        DType::I32 => read(dtype, bytes, out, |b| f64::from(i32::from_le_bytes(b))),
        DType::U32 => read(dtype, bytes, out, |b| f64::from(u32::from_le_bytes(b))),
        DType::Q8_0 => read_blocks(dtype, bytes, out, widened(q8_0::dequantise_block)),
        DType::Q4_0 => read_blocks(dtype, bytes, out, widened(q4_0::dequantise_block)),
        DType::Q4K => read_blocks(dtype, bytes, out, widened(q4_k::dequantise_block)),
        DType::Q6K => read_blocks(dtype, bytes, out, widened(q6_k::dequantise_block)),
        DType::MxFp4 => read_blocks(dtype, bytes, out, widened(mxfp4::dequantise_block)),
    }
}

/// Stores `values` as type `dtype`, rounding as the [module](self) says.
///
/// # Errors
/// [`Error::Malformed`] unless `out` is exactly as long as `values.len()` elements are, in whole blocks; and,
/// for block formats only, when a block holds a value that is not finite or one that overflows the block's
/// scale.
pub fn encode(dtype: DType, values: &[f32], out: &mut [u8]) -> Result<()> {
    match dtype {
        DType::F32 => write(dtype, values, out, f32::to_le_bytes),
        DType::F16 => write(dtype, values, out, |v| f16::from_f32(v).to_le_bytes()),
        DType::BF16 => write(dtype, values, out, |v| bf16::from_f32(v).to_le_bytes()),
        DType::F8E4M3 => write(dtype, values, out, |v| [f32_to_e4m3(v)]),
        // `as` saturates and maps NaN to 0.
        DType::I8 => write(dtype, values, out, |v| (v.round_ties_even() as i8).to_le_bytes()),
        DType::I32 => write(dtype, values, out, |v| (v.round_ties_even() as i32).to_le_bytes()),
        DType::U32 => write(dtype, values, out, |v| (v.round_ties_even() as u32).to_le_bytes()),
        DType::Q8_0 => q8_0::quantise(values, out),
        DType::Q4_0 => q4_0::quantise(values, out),
        DType::Q4K => q4_k::quantise(values, out),
        DType::Q6K => q6_k::quantise(values, out),
        DType::MxFp4 => mxfp4::quantise(values, out),
    }
}

/// Like [`encode`], from `f64`, with a single rounding to every plain type. Block formats quantise the values
/// rounded to `f32`.
///
/// # Errors
/// As [`encode`].
pub fn encode_f64(dtype: DType, values: &[f64], out: &mut [u8]) -> Result<()> {
    match dtype {
        DType::F32 => write(dtype, values, out, |v| (v as f32).to_le_bytes()),
        DType::F16 => write(dtype, values, out, |v| f16::from_f32(round_to_odd(v)).to_le_bytes()),
        DType::BF16 => write(dtype, values, out, |v| bf16::from_f32(round_to_odd(v)).to_le_bytes()),
        DType::F8E4M3 => write(dtype, values, out, |v| [f32_to_e4m3(round_to_odd(v))]),
        DType::I8 => write(dtype, values, out, |v| (v.round_ties_even() as i8).to_le_bytes()),
        DType::I32 => write(dtype, values, out, |v| (v.round_ties_even() as i32).to_le_bytes()),
        DType::U32 => write(dtype, values, out, |v| (v.round_ties_even() as u32).to_le_bytes()),
        DType::Q8_0 | DType::Q4_0 | DType::Q4K | DType::Q6K | DType::MxFp4 => {
            let narrowed: Vec<f32> = values.iter().map(|&v| v as f32).collect();
            encode(dtype, &narrowed, out)
        }
    }
}

/// Rounds to `f32` towards zero, with the last bit set when anything was cut off.
///
/// Rounding the result to a type at least two bits narrower equals rounding `value` directly (Boldo and
/// Melquiond, "When double rounding is odd"): the sticky bit keeps a value that is near a midpoint on its own
/// side of it.
fn round_to_odd(value: f64) -> f32 {
    let nearest = value as f32;
    if f64::from(nearest) == value || nearest.is_nan() {
        return nearest;
    }
    let truncated =
        if f64::from(nearest).abs() > value.abs() { nearest.to_bits() - 1 } else { nearest.to_bits() };
    f32::from_bits(truncated | 1)
}

/// A block decoder that yields `f64`.
fn widened<const L: usize, const B: usize>(
    block: impl Fn(&[u8; B], &mut [f32; L]),
) -> impl Fn(&[u8; B], &mut [f64; L]) {
    move |bytes, out| {
        let mut values = [0f32; L];
        block(bytes, &mut values);
        *out = values.map(f64::from);
    }
}

/// Refuses lengths that do not belong together, and partial blocks.
fn check_lengths(dtype: DType, elements: usize, bytes: usize) -> Result<()> {
    match dtype.bytes(elements) {
        Some(need) if need == bytes as u64 => Ok(()),
        Some(need) => Err(Error::Malformed {
            what: dtype.name(),
            why: format!("{elements} elements take {need} bytes, but {bytes} were given"),
        }),
        None => Err(Error::Malformed {
            what: dtype.name(),
            why: format!("{elements} elements are not whole blocks of {}; pad the rows", dtype.block_len()),
        }),
    }
}

/// Checks the lengths, then reads block by block.
fn read_blocks<T, const L: usize, const B: usize>(
    dtype: DType,
    bytes: &[u8],
    out: &mut [T],
    block: impl Fn(&[u8; B], &mut [T; L]),
) -> Result<()> {
    check_lengths(dtype, out.len(), bytes.len())?;
    for (bytes, out) in bytes.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
        block(bytes, out);
    }
    Ok(())
}

/// Checks the lengths, then reads element by element.
fn read<T, const B: usize>(
    dtype: DType,
    bytes: &[u8],
    out: &mut [T],
    element: impl Fn([u8; B]) -> T,
) -> Result<()> {
    read_blocks(dtype, bytes, out, |bytes, out: &mut [T; 1]| out[0] = element(*bytes))
}

/// Checks the lengths, then writes element by element.
fn write<T: Copy, const B: usize>(
    dtype: DType,
    values: &[T],
    out: &mut [u8],
    element: impl Fn(T) -> [u8; B],
) -> Result<()> {
    check_lengths(dtype, values.len(), out.len())?;
    for (&value, out) in values.iter().zip(out.as_chunks_mut().0) {
        *out = element(value);
    }
    Ok(())
}

/// Checks the lengths, then quantises block by block and refuses what the format cannot hold.
///
/// `scales_at` are the offsets of the f16 scales in a block.
fn quantise_blocks<const L: usize, const B: usize>(
    dtype: DType,
    values: &[f32],
    out: &mut [u8],
    scales_at: &[usize],
    block: impl Fn(&[f32; L], &mut [u8; B]),
) -> Result<()> {
    check_lengths(dtype, values.len(), out.len())?;
    for (index, (values, out)) in values.as_chunks().0.iter().zip(out.as_chunks_mut().0).enumerate() {
        if let Some(at) = values.iter().position(|v| !v.is_finite()) {
            return Err(Error::Malformed {
                what: dtype.name(),
                why: format!(
                    "element {} is {}; only finite values can be quantised",
                    index * L + at,
                    values[at]
                ),
            });
        }
        let largest = values.iter().fold(0f32, |m, v| m.max(v.abs()));
        block(values, out);
        if f64::from(largest) > dtype.max_value() || scales_at.iter().any(|&at| !f16_at(out, at).is_finite())
        {
            return Err(Error::Malformed {
                what: dtype.name(),
                why: format!(
                    "elements {}..{} reach {largest:e}, which overflows the f16 scale of their block; scale the tensor down",
                    index * L,
                    (index + 1) * L
                ),
            });
        }
    }
    Ok(())
}

/// The f16 at byte `at` of a block.
fn f16_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Stores `value`, rounded to f16, at byte `at` of a block and returns what was stored.
fn put_f16(block: &mut [u8], at: usize, value: f32) -> f32 {
    let stored = f16::from_f32(value);
    block[at..at + 2].copy_from_slice(&stored.to_le_bytes());
    stored.to_f32()
}

/// `1 / scale`, and 0 where the scale is 0.
fn reciprocal(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}
