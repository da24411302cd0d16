//! Layouts as kernels take them, and what every row is refused.

use crate::device::{WORKGROUP, WebGpuCaps, computes};
use bytemuck::{Pod, Zeroable};
use perjoule_kernels::op::Op;
use perjoule_kernels::{Candidate, DType, DeviceInfo, KvLayout, Reason, Rows};

/// `Rows` of `common/layout.wgsl`. Rows refuse ops whose operands have more elements than 32 bits count ([`refuse`]).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub(super) struct RowsParam {
    outer: u32,
    inner: u32,
    len: u32,
    outer_stride: u32,
    inner_stride: u32,
    unused: [u32; 3],
}

impl From<Rows> for RowsParam {
    fn from(rows: Rows) -> Self {
        RowsParam {
            outer: rows.outer as u32,
            inner: rows.inner as u32,
            len: rows.len as u32,
            outer_stride: rows.outer_stride as u32,
            inner_stride: rows.inner_stride as u32,
            unused: [0; 3],
        }
    }
}

/// `KvLayout` of `common/layout.wgsl`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub(super) struct KvParam {
    kv_heads: u32,
    capacity: u32,
    head_dim: u32,
    batch_stride: u32,
    head_stride: u32,
    token_stride: u32,
    block: u32,
    blocks: u32,
}

impl From<KvLayout> for KvParam {
    fn from(kv: KvLayout) -> Self {
        KvParam {
            kv_heads: kv.kv_heads as u32,
            capacity: kv.capacity as u32,
            head_dim: kv.head_dim as u32,
            batch_stride: kv.batch_stride as u32,
            head_stride: kv.head_stride as u32,
            token_stride: kv.token_stride as u32,
            // tokens of a block behind the capacity are none of a sequence's
            block: kv.paging.map_or(0, |p| p.block.min(kv.capacity.max(1)) as u32),
            blocks: kv.paging.map_or(0, |p| p.blocks as u32),
        }
    }
}

/// What the rows know of the device.
pub(crate) fn caps(info: &DeviceInfo) -> Option<&WebGpuCaps> {
    info.caps::<WebGpuCaps>()
}

/// Most elements of an operand: kernels count them by 32 bits, and the last step of their loops goes beyond.
const MOST_ELEMENTS: u64 = u32::MAX as u64 - (1 << 22);

/// Why no kernel takes the op: workgroups that are too small, operands that no binding holds, or more of them than a kernel binds.
pub(crate) fn refuse(candidate: &Candidate<'_>) -> Option<Reason> {
    refuse_bytes(candidate).or_else(|| refuse_operands(candidate, candidate.op.operands().len()))
}

/// The same for rows whose kernels bind a part of the operands each.
pub(crate) fn refuse_bytes(candidate: &Candidate<'_>) -> Option<Reason> {
    let Some(caps) = caps(candidate.info) else { return Some(Reason::new("the device is none of WebGPU")) };
    if !computes(&caps.limits) {
        let (invocations, bytes) = WORKGROUP;
        return Some(Reason::new(format!(
            "needs workgroups of {invocations} invocations and {bytes} bytes, and those of this device are smaller"
        )));
    }
    let most = caps.limits.max_storage_buffer_binding_size;
    let operands = candidate.op.operands();
    // an embedding goes through its table in windows
    let in_windows = |name: &str| matches!(candidate.op, Op::Embed(_)) && name == "table";
    let large = operands.iter().find(|operand| operand.bytes + 256 > most && !in_windows(operand.name));
    if let Some(large) = large {
        return Some(Reason::new(format!(
            "{} has {} bytes, and a kernel of this device binds {most}",
            large.name, large.bytes
        )));
    }
    if let Op::Embed(op) = candidate.op
        && op.table.bytes(op.dim).is_none_or(|row| row + 256 > most)
    {
        return Some(Reason::new("a row of the table is larger than what a kernel of this device binds"));
    }
    if let Some(large) = operands.iter().find(|o| o.elements > MOST_ELEMENTS && !in_windows(o.name)) {
        return Some(Reason::new(format!("{} has more elements than 32 bits count", large.name)));
    }
    None
}

/// Why a kernel does not bind so many operands.
pub(crate) fn refuse_operands(candidate: &Candidate<'_>, count: usize) -> Option<Reason> {
    let Some(caps) = caps(candidate.info) else { return Some(Reason::new("the device is none of WebGPU")) };
    let most = caps.limits.max_storage_buffers_per_shader_stage as usize;
    (count > most)
        .then(|| Reason::new(format!("{count} operands are more than the {most} that a kernel binds")))
}

/// Seconds of `launches` kernels that move the op's bytes at a share of the memory's rate: of a middling GPU, only the order matters.
pub(crate) fn stream_cost(candidate: &Candidate<'_>, launches: f32, share: f32) -> f32 {
    launches * 5e-6 + candidate.op.bytes() as f32 / (300e9 * share)
}

/// Why a kernel that moves runs of 4 elements cannot take these vectors; `None` where their lengths and strides allow it. Where they begin is
/// for [`Kernel::with_align`](perjoule_kernels::Kernel::with_align).
pub(super) fn whole_runs(rows: Rows) -> Option<Reason> {
    let aligned = |count: usize, stride: usize| count <= 1 || stride.is_multiple_of(4);
    if !rows.len.is_multiple_of(4) {
        return Some(Reason::new("the length of vectors is no multiple of 4"));
    }
    let all = aligned(rows.outer, rows.outer_stride) && aligned(rows.inner, rows.inner_stride);
    (!all).then(|| Reason::new("vectors do not begin at multiples of 4 elements"))
}

/// Bytes to whose multiple an operand has to begin so that runs of 4 elements can be moved.
pub(super) fn run_align(dtype: DType) -> u32 {
    if dtype.is_block() { 1 } else { 4 * dtype.block_bytes() as u32 }
}
