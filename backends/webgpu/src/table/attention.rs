//! Rows of attention, and of the ops around KV caches: of each op the fast ones first, and last one that runs everything the op allows.

use crate::launch::attention::{generic, lanes, splits, tiles};
use crate::launch::rows::{refuse, refuse_bytes, stream_cost};
use crate::launch::{kv, qk, rope};
use perjoule_kernels::op::Op;
use perjoule_kernels::{Candidate, Config, Kernel, Numerics};

const EXACT: fn(&Candidate<'_>) -> Numerics = |_| Numerics::EXACT;

/// WGSL leaves subnormal numbers to the implementation.
const F32: fn(&Candidate<'_>) -> Numerics = |_| Numerics::F32.flushing_subnormals();

/// Cost of a kernel that takes elements one by one.
fn any(candidate: &Candidate<'_>) -> f32 {
    stream_cost(candidate, 1.2, 0.3)
}

/// Cost of one that takes four at a time.
fn fast(candidate: &Candidate<'_>) -> f32 {
    stream_cost(candidate, 1.0, 0.8)
}

/// Elements are moved; blocks have scales, which may be subnormal.
fn appended(candidate: &Candidate<'_>) -> Numerics {
    match candidate.op {
        Op::KvAppend(op) if op.kv_dtype.is_block() => Numerics::EXACT.flushing_subnormals(),
        _ => Numerics::EXACT,
    }
}

/// Of rows that take four elements at a time: heads of the length that models have.
static QUADS: &[Config] = &[Config::tile("quads", &[64])];

#[rustfmt::skip]
pub(super) static ROWS: &[Kernel] = &[
    lanes::ROW,
    splits::row::<true>("attention_any_8x128_webgpu_subgroup_splits"),
    splits::row::<false>("attention_any_8x128_webgpu_any_splits"),
    tiles::ROW,
    generic::ROW,
    Kernel::new("kv_append_any_4_webgpu_any_quads", "kv_append", fast, kv::prepare_append_quads)
        .with_configs(QUADS)
        .with_reject(kv::refuse_append_quads)
        .with_align(kv::align_append)
        .with_numerics(EXACT),
    Kernel::new("kv_append_any_1_webgpu_any", "kv_append", any, kv::prepare_append).with_reject(refuse).with_numerics(appended),
    Kernel::new("advance_i32_1_webgpu_any", "advance", any, kv::prepare_advance).with_reject(refuse).with_numerics(EXACT),
    Kernel::new("rope_any_4_webgpu_any_quads", "rope", fast, rope::prepare_quads)
        .with_configs(QUADS)
        .with_reject(rope::refuse_quads)
        .with_align(rope::align_quads)
        .with_numerics(F32),
    Kernel::new("rope_any_1_webgpu_any", "rope", any, rope::prepare_any).with_reject(refuse).with_numerics(F32),
    Kernel::new("qk_norm_rope_append_any_4_webgpu_any_quads", "qk_norm_rope_append", fast, qk::prepare_quads)
        .with_configs(QUADS)
        .with_reject(qk::refuse_quads)
        .with_align(qk::align_quads)
        .with_numerics(F32),
    Kernel::new("qk_norm_rope_append_any_1_webgpu_any", "qk_norm_rope_append", any, qk::prepare_any).with_reject(refuse_bytes).with_numerics(F32),
];
