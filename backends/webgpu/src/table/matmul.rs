//! Rows of matrix products: of each op the fast ones first, and last one that runs everything the op allows.

use crate::launch::matmul::gemv::{self, Way};
use crate::launch::matmul::{any, cooperative, direct, dot4, refuse, tiled};
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

/// A row for few rows of A, k contiguous in A and B.
const fn gemv<const SUBGROUP: bool, const QUANTISED: bool>(
    name: &'static str,
    op: &'static str,
    configs: &'static [Config],
) -> Kernel {
    let row = Kernel::new(
        name,
        op,
        |candidate| gemv::cost(candidate, Way { subgroup: SUBGROUP, quantised: QUANTISED }),
        |request| gemv::prepare(request, Way { subgroup: SUBGROUP, quantised: QUANTISED }),
    )
    .with_reject(|candidate| gemv::refuse(candidate, Way { subgroup: SUBGROUP, quantised: QUANTISED }))
    .with_configs(configs)
    .with_align(gemv::align);
    match QUANTISED {
        true => row.with_numerics(|_| gemv::QUANTISED),
        false => row.with_numerics(F32),
    }
}

/// A row for signed bytes in tiles: i8 by i8, or quantised activations by block formats.
const fn dot4<const BLOCKS: bool>(name: &'static str, op: &'static str) -> Kernel {
    let row = Kernel::new(name, op, dot4::cost, dot4::prepare)
        .with_configs(dot4::CONFIGS)
        .with_reject(|candidate| dot4::refuse(candidate, BLOCKS))
        .with_align(gemv::align);
    match BLOCKS {
        true => row.with_numerics(|_| gemv::QUANTISED),
        false => row.with_numerics(F32),
    }
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
    gemv::<true, true>("matmul_blocks_8x4_webgpu_subgroup_dot4", "matmul", gemv::ONE),
    gemv::<false, true>("matmul_blocks_8x4_webgpu_any_dot4", "matmul", gemv::ONE),
    gemv::<true, false>("matmul_any_8x4_webgpu_subgroup_gemv", "matmul", gemv::CONFIGS),
    gemv::<false, false>("matmul_any_8x4_webgpu_any_gemv", "matmul", gemv::CONFIGS),
    dot4::<true>("matmul_blocks_64x64_webgpu_any_dot4", "matmul"),
    dot4::<false>("matmul_i8_64x64_webgpu_any_dot4", "matmul"),
    Kernel::new("matmul_f16_64x64_webgpu_cooperative", "matmul", cooperative::cost, cooperative::prepare)
        .with_configs(cooperative::CONFIGS)
        .with_reject(cooperative::refuse)
        .with_align(tiled::align)
        .with_numerics(cooperative::numerics),
    tiles("matmul_any_64x64_webgpu_any_tiled", "matmul", tiled::CONFIGS),
    direct_subgroup("matmul_any_32x64_webgpu_subgroup_direct", "matmul"),
    direct_any("matmul_any_32x32_webgpu_any_direct", "matmul"),
    any("matmul_any_64x64_webgpu_any", "matmul"),
    gemv::<true, true>("gated_matmul_blocks_8x4_webgpu_subgroup_dot4", "gated_matmul", gemv::ONE),
    gemv::<false, true>("gated_matmul_blocks_8x4_webgpu_any_dot4", "gated_matmul", gemv::ONE),
    gemv::<true, false>("gated_matmul_any_8x4_webgpu_subgroup_gemv", "gated_matmul", gemv::ONE),
    gemv::<false, false>("gated_matmul_any_8x4_webgpu_any_gemv", "gated_matmul", gemv::ONE),
    dot4::<true>("gated_matmul_blocks_64x64_webgpu_any_dot4", "gated_matmul"),
    dot4::<false>("gated_matmul_i8_64x64_webgpu_any_dot4", "gated_matmul"),
    tiles("gated_matmul_any_64x64_webgpu_any_tiled", "gated_matmul", tiled::GATED),
    direct_subgroup("gated_matmul_any_32x64_webgpu_subgroup_direct", "gated_matmul"),
    direct_any("gated_matmul_any_32x32_webgpu_any_direct", "gated_matmul"),
    any("gated_matmul_any_64x64_webgpu_any", "gated_matmul"),
    gemv::<true, true>("grouped_matmul_blocks_8x4_webgpu_subgroup_dot4", "grouped_matmul", gemv::ONE),
    gemv::<false, true>("grouped_matmul_blocks_8x4_webgpu_any_dot4", "grouped_matmul", gemv::ONE),
    gemv::<true, false>("grouped_matmul_any_8x4_webgpu_subgroup_gemv", "grouped_matmul", gemv::ONE),
    gemv::<false, false>("grouped_matmul_any_8x4_webgpu_any_gemv", "grouped_matmul", gemv::ONE),
    dot4::<true>("grouped_matmul_blocks_64x64_webgpu_any_dot4", "grouped_matmul"),
    dot4::<false>("grouped_matmul_i8_64x64_webgpu_any_dot4", "grouped_matmul"),
    tiles("grouped_matmul_any_64x64_webgpu_any_tiled", "grouped_matmul", tiled::GROUPED),
    any("grouped_matmul_any_64x64_webgpu_any", "grouped_matmul"),
];
