//! Sources in WGSL. A module is a prelude that the backend writes, headers, and one source: WGSL has no includes.

use crate::{Source, sources};

sources! {
    /// What kernels stand behind.
    HEADERS:
    /// Elements of every type.
    ELEMENT = "wgsl/common/element.wgsl";
    /// Where vectors and caches lie.
    LAYOUT = "wgsl/common/layout.wgsl";
    /// Functions of f32.
    MATH = "wgsl/common/math.wgsl";
    /// Slots as untrusted numbers.
    SLOTS = "wgsl/common/slots.wgsl";
    /// Angles of rotations.
    TURNS = "wgsl/common/turns.wgsl";
    /// Division that rounds as it should, and quantisation by it.
    DIVISION = "wgsl/common/division.wgsl";
    /// Norms of heads.
    QK_ROOT = "wgsl/qk_norm_rope_append/root.wgsl";
    /// What the kernels of attention share.
    ATTENTION_SLOTS = "wgsl/attention/slots.wgsl";
    /// What fast kernels of attention share.
    ATTENTION_SOFTMAX = "wgsl/attention/softmax.wgsl";
    /// Sums within subgroups.
    ATTENTION_SHUFFLES = "wgsl/attention/shuffles.wgsl";
    /// What stands for them elsewhere.
    ATTENTION_ALONE = "wgsl/attention/alone.wgsl";
}

sources! {
    /// Files with kernels.
    SOURCES:
    /// Addition.
    ADD_ROWS = "wgsl/add/rows.wgsl";
    /// Lengths and positions of a step.
    ADVANCE_SLOTS = "wgsl/advance/slots.wgsl";
    /// Attention of every form.
    ATTENTION_ROWS = "wgsl/attention/rows.wgsl";
    /// Attention on CPUs.
    ATTENTION_LANES = "wgsl/attention/lanes.wgsl";
    /// Attention of many queries.
    ATTENTION_TILES = "wgsl/attention/tiles.wgsl";
    /// Attention of few queries: parts of the keys, and what becomes of them.
    ATTENTION_SPLITS = "wgsl/attention/splits.wgsl";
    /// The second half of it.
    ATTENTION_COMBINE = "wgsl/attention/combine.wgsl";
    /// Appending to KV caches.
    KV_APPEND_ROWS = "wgsl/kv_append/rows.wgsl";
    /// The same by four elements.
    KV_APPEND_QUADS = "wgsl/kv_append/quads.wgsl";
    /// Rotary positions.
    ROPE_PAIRS = "wgsl/rope/pairs.wgsl";
    /// The same by four elements.
    ROPE_QUADS = "wgsl/rope/quads.wgsl";
    /// Norm, rotation and append of heads.
    QK_HEADS = "wgsl/qk_norm_rope_append/heads.wgsl";
    /// The same by four elements.
    QK_QUADS = "wgsl/qk_norm_rope_append/quads.wgsl";
    /// Copies of bytes.
    COPY_BYTES = "wgsl/copy/bytes.wgsl";
}
