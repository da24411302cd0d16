//! Rows of matrix products: of each op the fast ones first, and last one that runs everything the op allows.

use crate::launch::matmul::{any, cooperative, direct, refuse, tiled};
use perjoule_kernels::{Candidate, Config, Kernel, Numerics};

/// WGSL leaves subnormal numbers to the implementation.
const F32: fn(&Candidate<'_>) -> Numerics = |_| Numerics::F32.flushing_subnormals();

/// A row that runs everything.
const fn any(name: &'static str, op: &'static str) -> Kernel {
    Kernel::new(name, op, any::cost, any::prepare)
        .with_configs(any::CONFIGS)
        .with_reject(refuse)
        .with_numerics(F32)
}

/// Tiles in workgroup memory.
const fn tiles(name: &'static str, op: &'static str, configs: &'static [Config]) -> Kernel {
    Kernel::new(name, op, tiled::cost, tiled::prepare)
        .with_configs(configs)
        .with_reject(tiled::refuse)
        .with_align(tiled::align)
        .with_numerics(F32)
}

/// Panels on processors, with subgroups and without.
const fn direct_subgroup(name: &'static str, op: &'static str) -> Kernel {
    Kernel::new(name, op, direct::cost_subgroup, direct::prepare_subgroup)
        .with_configs(direct::SUBGROUP)
        .with_align(tiled::align)
        .with_reject(direct::refuse_subgroup)
        .with_numerics(F32)
}

const fn direct_any(name: &'static str, op: &'static str) -> Kernel {
    Kernel::new(name, op, direct::cost, direct::prepare)
        .with_configs(direct::UNIFORM)
        .with_align(tiled::align)
        .with_reject(direct::refuse)
        .with_numerics(F32)
}

/// The dtype in a name is that of B: A and C are any that the row says.
#[rustfmt::skip]
pub(super) static ROWS: &[Kernel] = &[
    Kernel::new("matmul_f16_64x64_webgpu_cooperative", "matmul", cooperative::cost, cooperative::prepare)
        .with_configs(cooperative::CONFIGS)
        .with_reject(cooperative::refuse)
        .with_align(tiled::align)
        .with_numerics(cooperative::numerics),
    tiles("matmul_any_64x64_webgpu_any_tiled", "matmul", tiled::CONFIGS),
    direct_subgroup("matmul_any_32x64_webgpu_subgroup_direct", "matmul"),
    direct_any("matmul_any_32x32_webgpu_any_direct", "matmul"),
    any("matmul_any_64x64_webgpu_any", "matmul"),
    tiles("gated_matmul_any_64x64_webgpu_any_tiled", "gated_matmul", tiled::GATED),
    direct_subgroup("gated_matmul_any_32x64_webgpu_subgroup_direct", "gated_matmul"),
    direct_any("gated_matmul_any_32x32_webgpu_any_direct", "gated_matmul"),
    any("gated_matmul_any_64x64_webgpu_any", "gated_matmul"),
    any("grouped_matmul_any_64x64_webgpu_any", "grouped_matmul"),
];
