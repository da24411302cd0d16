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
}
