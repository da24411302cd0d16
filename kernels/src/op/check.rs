//! Checks and counts that the ops share.

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::layout::{Matrix, Rows};
use std::fmt;

/// `Err(Error::Invalid)` unless `ok`.
pub(crate) fn ensure(
    ok: bool,
    op: &'static str,
    field: &'static str,
    got: impl fmt::Display,
    expected: &str,
) -> Result<()> {
    if ok {
        return Ok(());
    }
    Err(Error::Invalid { op, field, got: got.to_string(), expected: expected.to_string() })
}

/// Refuses everything but plain floats.
pub(super) fn ensure_float(op: &'static str, field: &'static str, dtype: DType) -> Result<()> {
    ensure(dtype.is_float(), op, field, dtype, "f32, f16, bf16 or f8e4m3")
}

/// Refuses rows that are not as many and as long as others.
pub(super) fn ensure_like(op: &'static str, field: &'static str, rows: Rows, like: Rows) -> Result<()> {
    let same = (rows.outer, rows.inner, rows.len) == (like.outer, like.inner, like.len);
    let expected = format!("{} x {} vectors of {}", like.outer, like.inner, like.len);
    ensure(same, op, field, format!("{} x {} vectors of {}", rows.outer, rows.inner, rows.len), &expected)
}

/// Refuses rows to be written that overflow or share elements.
pub(super) fn ensure_disjoint(op: &'static str, field: &'static str, rows: Rows) -> Result<()> {
    ensure_extent(op, field, rows)?;
    ensure(rows.is_disjoint(), op, field, format!("{rows:?}"), "vectors that do not overlap")
}

/// Refuses a matrix to be written that overflows or in which elements coincide.
pub(super) fn ensure_output(
    op: &'static str,
    strides: Matrix,
    batch: usize,
    rows: usize,
    cols: usize,
) -> Result<()> {
    if strides.extent(batch, rows, cols).is_none() {
        return Err(Error::Overflow { op, what: "the extent of c" });
    }
    let expected = "strides under which no two elements coincide";
    let disjoint = strides.is_disjoint(batch, rows, cols);
    ensure(disjoint, op, "strides of c", format!("{strides:?}"), expected)
}

/// Refuses rows whose strides and count of elements overflow.
pub(super) fn ensure_extent(op: &'static str, what: &'static str, rows: Rows) -> Result<()> {
    match (rows.extent(), rows.elements()) {
        (Some(_), Some(_)) => Ok(()),
        _ => Err(Error::Overflow { op, what }),
    }
}

/// Refuses sizes that a slot, an i32, cannot count.
pub(super) fn ensure_countable(op: &'static str, field: &'static str, count: Option<usize>) -> Result<()> {
    let ok = count.is_some_and(|c| c < i32::MAX as usize);
    let got = count.map_or_else(|| "more than 2^64".to_string(), |c| c.to_string());
    ensure(ok, op, field, got, "below 2^31 - 1: slots are i32")
}

/// Refuses rows of a block format that do not consist of whole blocks.
pub(super) fn ensure_whole_blocks(
    op: &'static str,
    field: &'static str,
    dtype: DType,
    rows: Rows,
) -> Result<()> {
    let len = dtype.block_len();
    let strides = [(2, rows.len), (rows.outer, rows.outer_stride), (rows.inner, rows.inner_stride)];
    let whole = strides.iter().all(|&(count, size)| count <= 1 || size.is_multiple_of(len));
    ensure(
        whole,
        op,
        field,
        format!("{rows:?}"),
        &format!("length and strides that are multiples of the {dtype} block of {len}"),
    )
}

/// Refuses numbers of query rows that do not follow from batch, `q_len` and raggedness.
pub(super) fn ensure_tokens(
    op: &'static str,
    field: &'static str,
    rows: usize,
    batch: usize,
    q_len: usize,
    ragged: bool,
) -> Result<()> {
    let tokens = batch.checked_mul(q_len);
    let ok = if ragged { tokens.is_none_or(|t| rows <= t) } else { tokens == Some(rows) };
    ensure(ok, op, field, rows, if ragged { "at most batch * q_len" } else { "batch * q_len" })?;
    ensure_countable(op, field, Some(rows))
}

/// Product that saturates: costs of ops whose sizes have been validated.
pub(crate) fn product(sizes: &[usize]) -> u64 {
    if sizes.contains(&0) {
        return 0;
    }
    sizes.iter().fold(1u64, |all, &size| all.saturating_mul(size as u64))
}

/// Bytes of `elements` elements, saturating; for costs.
pub(crate) fn bytes_of(dtype: DType, elements: u64) -> u64 {
    (elements / dtype.block_len() as u64).saturating_mul(dtype.block_bytes() as u64)
}

/// Bytes of the vectors of `rows`, saturating, gaps left out; what is broadcast counts once.
pub(super) fn rows_bytes(dtype: DType, rows: Rows) -> u64 {
    let outer = if rows.outer_stride == 0 { rows.outer.min(1) } else { rows.outer };
    bytes_of(dtype, product(&[outer, rows.inner, rows.len]))
}

/// Matrices behind a batch: one when they are shared.
pub(super) fn distinct(strides: Matrix, batch: usize) -> usize {
    if strides.batch == 0 { batch.min(1) } else { batch }
}

/// Sum that saturates.
pub(super) fn total(parts: &[u64]) -> u64 {
    parts.iter().fold(0, |all, &part| all.saturating_add(part))
}

/// `values` as the block format `dtype` stores them; NaN where it cannot (NaN, infinities, scales that overflow).
pub(super) fn through_blocks(dtype: DType, values: &[f64]) -> Vec<f64> {
    let mut out = vec![f64::NAN; values.len()];
    let len = dtype.block_len();
    let mut bytes = vec![0; dtype.block_bytes()];
    for (from, to) in values.chunks(len).zip(out.chunks_mut(len)) {
        if crate::block::encode_f64(dtype, from, &mut bytes).is_ok() {
            // lengths agree, so that this cannot fail; if it did the block would stay NaN
            let _ = crate::block::decode_f64(dtype, &bytes, to);
        }
    }
    out
}

/// Magnitude that allows for a factor which f32 arithmetic flushes to zero: the smallest normal number, 2^-126, over the least
/// multiple of a magnitude that [`Numerics`](crate::Numerics) allows, some 2^-22.
pub(super) const FLUSHED: f64 = 1.0 / (1u128 << 104) as f64;
