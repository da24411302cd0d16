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
    /// Which tile a workgroup has.
    MATMUL_TILES = "wgsl/matmul/tiles.wgsl";
    /// Few rows of A: what a workgroup does, whatever the types.
    GEMV_BODY = "wgsl/matmul/gemv/body.wgsl";
    /// Words of one weight.
    GEMV_ONE = "wgsl/matmul/gemv/one.wgsl";
    /// Words of a gate's weight and of an up projection's.
    GEMV_PAIR = "wgsl/matmul/gemv/pair.wgsl";
    /// Units of weights in f32.
    GEMV_QUADS = "wgsl/matmul/gemv/quads.wgsl";
    /// Activations in f32.
    GEMV_A32 = "wgsl/matmul/gemv/a32.wgsl";
    /// Activations of 16 bits.
    GEMV_A16 = "wgsl/matmul/gemv/a16.wgsl";
    /// Weights of a float type.
    GEMV_PLAIN = "wgsl/matmul/gemv/plain.wgsl";
    /// Words at any byte.
    GEMV_BYTES = "wgsl/matmul/gemv/bytes.wgsl";
    /// Units of weights in block formats.
    GEMV_CODES = "wgsl/matmul/gemv/codes.wgsl";
    /// Weights in block formats, widened to f32.
    GEMV_WIDENED = "wgsl/matmul/gemv/widened.wgsl";
    /// Weights in block formats beside activations of 8 bits.
    GEMV_DOTS = "wgsl/matmul/gemv/dots.wgsl";
    /// Weights in blocks of 32.
    GEMV_BLOCKS = "wgsl/matmul/gemv/blocks.wgsl";
    /// Weights in q4_k.
    GEMV_Q4_K = "wgsl/matmul/gemv/q4_k.wgsl";
    /// Weights in q6_k.
    GEMV_Q6_K = "wgsl/matmul/gemv/q6_k.wgsl";
    /// Weights of i8 in the form of those in block formats.
    GEMV_I8_CODES = "wgsl/matmul/gemv/i8_codes.wgsl";
    /// Weights and activations of i8.
    GEMV_I8 = "wgsl/matmul/gemv/i8.wgsl";
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
    /// Matrix products of signed bytes.
    MATMUL_DOT4 = "wgsl/matmul/dot4.wgsl";
    /// Few rows of A, sums in workgroup memory.
    GEMV_WORKGROUP = "wgsl/matmul/gemv/workgroup.wgsl";
    /// Activations as blocks of 8 bits.
    GEMV_QUANTISE = "wgsl/matmul/gemv/quantise.wgsl";
    /// Few rows of A, sums by subgroups.
    GEMV_SUBGROUP = "wgsl/matmul/gemv/subgroup.wgsl";
}
