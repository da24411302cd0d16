//! What the workspace's tests share: guard pages for the CPU's operands, rows that are right or wrong on purpose, a device that defers all
//! work, an emulated CUDA, and known failures.

/// Every op by name.
pub const OPS: [&str; 22] = [
    "matmul",
    "attention",
    "grouped_matmul",
    "gated_matmul",
    "rms_norm",
    "layer_norm",
    "rope",
    "gated",
    "softmax",
    "embed",
    "add",
    "route",
    "combine",
    "kv_append",
    "advance",
    "argmax",
    "sample",
    "cast",
    "quantise",
    "qk_norm_rope_append",
    "collective",
    "pack",
];

pub mod emulator;
pub mod expectations;
#[cfg(unix)]
pub mod guard;
pub mod lazy;
pub mod left;
pub mod oracle;
