//! Which shapes are measured: data. What this build has no kernel for is reported as missing.

use perjoule::DType;

/// One op, on types and shapes that grow.
pub(crate) struct Entry {
    /// As `--op` takes it.
    pub(crate) op: &'static str,
    /// What it stands for, in words.
    pub(crate) what: &'static str,
    pub(crate) dtypes: &'static [DType],
    /// As `--shape` takes them, the smallest first: what one takes tells whether there is time for the next.
    pub(crate) shapes: &'static [&'static str],
    /// As many of them are measured in a short run.
    pub(crate) short: usize,
}

use DType::{BF16, F16, F32};

/// The kernels of a run, in order.
pub(crate) const SET: &[Entry] = &[
    Entry {
        op: "matmul",
        what: "Matrix product",
        dtypes: &[F32, F16],
        shapes: &["m=512,n=512,k=512", "m=1024,n=1024,k=1024", "m=2048,n=2048,k=2048"],
        short: 1,
    },
    Entry {
        op: "matmul",
        what: "Product with one row (decode)",
        dtypes: &[F32, F16, BF16],
        shapes: &["m=1,n=1536,k=576", "m=1,n=4096,k=4096"],
        short: 1,
    },
    Entry {
        op: "attention",
        what: "Attention, prefill",
        dtypes: &[F32, F16],
        shapes: &["b=1,q=128,kv=128,h=9,hkv=3,d=64", "b=1,q=512,kv=512,h=32,hkv=8,d=64"],
        short: 1,
    },
    Entry {
        op: "attention",
        what: "Attention, decode",
        dtypes: &[F32, F16],
        shapes: &["b=1,q=1,kv=512,h=9,hkv=3,d=64", "b=1,q=1,kv=4096,h=32,hkv=8,d=64"],
        short: 1,
    },
    Entry {
        op: "rms_norm",
        what: "RMS norm",
        dtypes: &[F32, F16],
        shapes: &["rows=512,len=576", "rows=4096,len=4096"],
        short: 1,
    },
    Entry {
        op: "softmax",
        what: "Softmax",
        dtypes: &[F32, F16],
        shapes: &["rows=512,len=2048", "rows=4096,len=4096"],
        short: 1,
    },
    Entry {
        op: "gated",
        what: "Gated activation",
        dtypes: &[F32],
        shapes: &["rows=512,len=1536", "rows=4096,len=4096"],
        short: 1,
    },
    Entry {
        op: "add",
        what: "Addition",
        dtypes: &[F32, F16],
        shapes: &["rows=512,len=2048", "rows=4096,len=4096"],
        short: 1,
    },
];
