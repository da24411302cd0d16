//! Layouts as kernels take them, and what every row is refused.

use crate::device::WebGpuCaps;
use bytemuck::{Pod, Zeroable};
use perjoule_kernels::{Candidate, DeviceInfo, KvLayout, Reason, Rows};

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

/// Why no kernel takes the op: operands that no binding holds, or more of them than a kernel binds.
pub(crate) fn refuse(candidate: &Candidate<'_>) -> Option<Reason> {
    refuse_bytes(candidate).or_else(|| refuse_operands(candidate, candidate.op.operands().len()))
}

/// The same for rows whose kernels bind a part of the operands each.
pub(crate) fn refuse_bytes(candidate: &Candidate<'_>) -> Option<Reason> {
    let Some(caps) = caps(candidate.info) else { return Some(Reason::new("the device is none of WebGPU")) };
    let most = caps.limits.max_storage_buffer_binding_size;
    let operands = candidate.op.operands();
    if let Some(large) = operands.iter().find(|operand| operand.bytes + 256 > most) {
        return Some(Reason::new(format!(
            "{} has {} bytes, and a kernel of this device binds {most}",
            large.name, large.bytes
        )));
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
