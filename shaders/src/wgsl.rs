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
    /// From a sum of products to an element of C.
    MATMUL_EPILOGUE = "wgsl/matmul/epilogue.wgsl";
    /// Products on processors: a row of sums.
    DIRECT_ROW = "wgsl/matmul/direct/row.wgsl";
    /// Products on processors: rows of A by subgroups.
    DIRECT_BROADCAST = "wgsl/matmul/direct/broadcast.wgsl";
    /// Products on processors: rows of A that every lane reads.
    DIRECT_UNIFORM = "wgsl/matmul/direct/uniform.wgsl";
}

sources! {
    /// Files with kernels.
    SOURCES:
    /// Addition.
    ADD_ROWS = "wgsl/add/rows.wgsl";
    /// Copies of bytes.
    COPY_BYTES = "wgsl/copy/bytes.wgsl";
    /// Matrix products of everything.
    MATMUL_ANY = "wgsl/matmul/any.wgsl";
    /// Matrix products of floats by tiles in workgroup memory.
    MATMUL_TILED = "wgsl/matmul/tiled.wgsl";
    /// Matrix products of f16 by matrices in registers.
    MATMUL_COOPERATIVE = "wgsl/matmul/cooperative.wgsl";
    /// Sums of parts of k.
    MATMUL_REDUCE = "wgsl/matmul/reduce.wgsl";
    /// Products on processors: operands in panels.
    DIRECT_PACK = "wgsl/matmul/direct/pack.wgsl";
    /// Products on processors: panels multiplied.
    DIRECT_MULTIPLY = "wgsl/matmul/direct/multiply.wgsl";
}
