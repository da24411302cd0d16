//! Rows of matrix products: of each op the fast ones first, and last one that runs everything the op allows.

use crate::launch::matmul::{any, gemv, refuse};
use perjoule_kernels::{Candidate, Kernel, Numerics};

/// WGSL leaves subnormal numbers to the implementation.
const F32: fn(&Candidate<'_>) -> Numerics = |_| Numerics::F32.flushing_subnormals();

/// A row that runs everything.
const fn any(name: &'static str, op: &'static str) -> Kernel {
    Kernel::new(name, op, any::cost, any::prepare)
        .with_configs(any::CONFIGS)
        .with_reject(refuse)
        .with_numerics(F32)
}

/// A row for few rows of A, k contiguous in A and B.
const fn gemv(name: &'static str, op: &'static str, subgroup: bool) -> Kernel {
    let kernel = match subgroup {
        true => Kernel::new(name, op, gemv::cost_subgroup, gemv::prepare_subgroup)
            .with_reject(gemv::refuse_subgroup),
        false => Kernel::new(name, op, gemv::cost, gemv::prepare).with_reject(gemv::refuse),
    };
    kernel.with_configs(gemv::CONFIGS).with_numerics(F32).with_align(gemv::align)
}

/// The dtype in a name is that of B: A and C are any that the row says.
#[rustfmt::skip]
pub(super) static ROWS: &[Kernel] = &[
    gemv("matmul_any_8x4_webgpu_subgroup_gemv", "matmul", true),
    gemv("matmul_any_8x4_webgpu_any_gemv", "matmul", false),
    any("matmul_any_64x64_webgpu_any", "matmul"),
    gemv("gated_matmul_any_8x4_webgpu_subgroup_gemv", "gated_matmul", true),
    gemv("gated_matmul_any_8x4_webgpu_any_gemv", "gated_matmul", false),
    any("gated_matmul_any_64x64_webgpu_any", "gated_matmul"),
    gemv("grouped_matmul_any_8x4_webgpu_subgroup_gemv", "grouped_matmul", true),
    gemv("grouped_matmul_any_8x4_webgpu_any_gemv", "grouped_matmul", false),
    any("grouped_matmul_any_64x64_webgpu_any", "grouped_matmul"),
];
