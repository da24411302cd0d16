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
}

sources! {
    /// Files with kernels.
    SOURCES:
    /// Addition.
    ADD_ROWS = "wgsl/add/rows.wgsl";
    /// Arithmetic out of registers.
    CEILING_ARITHMETIC = "wgsl/ceiling/arithmetic.wgsl";
    /// Streaming through memory.
    CEILING_MEMORY = "wgsl/ceiling/memory.wgsl";
    /// Copies of bytes.
    COPY_BYTES = "wgsl/copy/bytes.wgsl";
}
