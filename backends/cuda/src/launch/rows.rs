//! Layouts as kernels take them, and grids over them.

use super::Dims;
use crate::device::CudaCaps;
use bytemuck::{Pod, Zeroable};
use perjoule_kernels::{Candidate, DType, DeviceInfo, Error, KvLayout, Reason, Result, Rows};

/// `Rows` of `common/layout.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub(super) struct RowsParam {
    outer: u64,
    inner: u64,
    len: u64,
    outer_stride: u64,
    inner_stride: u64,
}

impl From<Rows> for RowsParam {
    fn from(rows: Rows) -> Self {
        RowsParam {
            outer: rows.outer as u64,
            inner: rows.inner as u64,
            len: rows.len as u64,
            outer_stride: rows.outer_stride as u64,
            inner_stride: rows.inner_stride as u64,
        }
    }
}

/// `KvLayout` of `common/layout.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub(super) struct KvParam {
    kv_heads: u64,
    capacity: u64,
    head_dim: u64,
    batch_stride: u64,
    head_stride: u64,
    token_stride: u64,
    block: u64,
    blocks: u64,
}

impl From<KvLayout> for KvParam {
    fn from(kv: KvLayout) -> Self {
        KvParam {
            kv_heads: kv.kv_heads as u64,
            capacity: kv.capacity as u64,
            head_dim: kv.head_dim as u64,
            batch_stride: kv.batch_stride as u64,
            head_stride: kv.head_stride as u64,
            token_stride: kv.token_stride as u64,
            block: kv.paging.map_or(0, |p| p.block as u64),
            blocks: kv.paging.map_or(0, |p| p.blocks as u64),
        }
    }
}

/// Id of a type in kernels that decide at run time: `Dtype` of `common/element.cuh`.
pub(super) fn id(dtype: DType) -> u32 {
    dtype as u32
}

/// Name of a plain type in CUDA C++; `None` for block formats.
pub(super) fn type_name(dtype: DType) -> Option<&'static str> {
    match dtype {
        DType::F32 => Some("float"),
        DType::F16 => Some("f16"),
        DType::BF16 => Some("bf16"),
        DType::F8E4M3 => Some("e4m3"),
        DType::I8 => Some("i8"),
        DType::I32 => Some("i32"),
        DType::U32 => Some("u32"),
        DType::Q8_0 | DType::Q4_0 | DType::Q4K | DType::Q6K | DType::MxFp4 => None,
    }
}

/// The definition that compiles a kernel for a plain type.
pub(super) fn define(name: &'static str, dtype: DType) -> (&'static str, String) {
    (name, type_name(dtype).unwrap_or("void").to_string())
}

/// Elements of which the widest of some types takes 16 bytes: those that are written, since a warp's stores are to be contiguous.
pub(super) fn run_of(dtypes: &[DType]) -> usize {
    16 / dtypes.iter().map(|d| d.block_bytes()).max().unwrap_or(1)
}

/// Why a kernel that moves `run` elements at a time cannot take these vectors; `None` where their lengths and strides allow it. Where
/// they begin is for [`Kernel::with_align`](perjoule_kernels::Kernel::with_align).
pub(super) fn whole_runs(rows: Rows, dtype: DType, run: usize) -> Option<Reason> {
    if rows.count().is_none_or(|count| count > u32::MAX as usize) {
        return Some(Reason::new("there are more vectors than a number of 32 bits counts"));
    }
    if !rows.len.is_multiple_of(run) {
        return Some(Reason::new("the length of vectors is no multiple of what a thread takes"));
    }
    let access = (run * dtype.block_bytes()).min(16);
    let aligned =
        |count: usize, stride: usize| count <= 1 || (stride * dtype.block_bytes()).is_multiple_of(access);
    let all = aligned(rows.outer, rows.outer_stride) && aligned(rows.inner, rows.inner_stride);
    (!all).then(|| Reason::new("vectors do not begin at multiples of 16 bytes"))
}

/// A number of blocks that a grid can have.
pub(super) fn blocks(count: usize) -> Result<u32> {
    u32::try_from(count).ok().filter(|&count| count <= i32::MAX as u32).ok_or_else(|| Error::Unsupported {
        what: "an op of this size",
        why: format!("it takes {count} blocks of threads, more than a grid has"),
    })
}

/// A grid of one dimension of blocks of two.
pub(super) fn grid(count: usize, block: [u32; 2]) -> Result<Dims> {
    Ok(Dims { block: [block[0], block[1], 1], ..Dims::line(blocks(count)?, 1) })
}

/// The grid of `common/tile.cuh`: each thread takes `items` runs of a vector. Gives `parts` as well.
pub(super) fn tiles(vectors: usize, runs: usize, items: usize, threads: usize) -> Result<(Dims, u32)> {
    let along = runs.div_ceil(items).next_power_of_two().clamp(1, threads);
    let beside = (threads / along).min(vectors.next_power_of_two()).max(1);
    let parts = runs.div_ceil(along * items).max(1);
    let groups = vectors.div_ceil(beside);
    let count = if runs == 0 { 0 } else { parts.saturating_mul(groups) };
    Ok((grid(count, [along as u32, beside as u32])?, blocks(parts)?))
}

/// What the rows know of the device.
pub(super) fn caps(info: &DeviceInfo) -> Option<&CudaCaps> {
    info.caps::<CudaCaps>()
}

/// Multiprocessors of the device.
pub(crate) fn multiprocessors(info: &DeviceInfo) -> usize {
    caps(info).map_or(1, |caps| caps.multiprocessors.max(1) as usize)
}

/// Seconds of `launches` kernels that move the op's bytes at a share of the memory's rate.
pub(crate) fn stream_cost(candidate: &Candidate<'_>, launches: f32, share: f32) -> f32 {
    let rate = caps(candidate.info).map_or(1e12, |caps| caps.memory_rate.max(1) as f32);
    launches * 2e-6 + candidate.op.bytes() as f32 / (rate * share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_every_run_once() {
        for (vectors, runs) in [(1, 1), (3, 7), (1000, 1), (2, 5000), (17, 256), (0, 4), (4, 0)] {
            for items in [1, 2, 4] {
                let (dims, parts) = tiles(vectors, runs, items, 256).unwrap();
                let [along, beside, _] = dims.block;
                assert!(along * beside <= 256 && along.is_power_of_two());
                let covered = dims.grid[0] as usize / parts as usize * beside as usize;
                assert!(runs == 0 || covered >= vectors && covered < vectors + beside as usize);
                assert!(parts as usize * along as usize * items >= runs);
            }
        }
    }
}
