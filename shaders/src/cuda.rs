//! Sources in CUDA C++, compiled by NVRTC at first use. Headers are given to the compiler by the part of their path behind `cuda/`.

use crate::Source;

/// Each file once: a static of its name, and the list of all.
macro_rules! sources {
    ($(#[$list_doc:meta])* $list:ident: $($(#[$doc:meta])* $name:ident = $path:literal;)*) => {
        $($(#[$doc])* pub static $name: Source = Source::new($path, include_str!(concat!("../", $path)));)*

        $(#[$list_doc])*
        pub static $list: &[&Source] = &[$(&$name),*];
    };
}

sources! {
    /// What kernels include.
    HEADERS:
    /// Reductions of warps and blocks.
    BLOCK = "cuda/common/block.cuh";
    /// Elements of every type.
    ELEMENT = "cuda/common/element.cuh";
    /// Behind the sums of products.
    EPILOGUE = "cuda/common/epilogue.cuh";
    /// Transaction barriers, tensor copies, clusters.
    HOPPER = "cuda/common/hopper.cuh";
    /// Where vectors and caches lie.
    LAYOUT = "cuda/common/layout.cuh";
    /// Slots of any content, cut to what they may be.
    SLOTS = "cuda/common/slots.cuh";
    /// Products of a warpgroup.
    WGMMA = "cuda/common/wgmma.cuh";
}

sources! {
    /// Files that are compiled.
    SOURCES:
    /// Arithmetic driven to its limit.
    CEILING_ARITHMETIC = "cuda/ceiling/arithmetic.cu";
    /// Memory driven to its limit.
    CEILING_MEMORY = "cuda/ceiling/memory.cu";
    /// Matrix products for Hopper.
    MATMUL_HOPPER = "cuda/matmul/hopper.cu";
}
