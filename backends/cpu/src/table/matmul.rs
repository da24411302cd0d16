//! Rows of matmul, grouped_matmul, gated_matmul and pack.

use crate::launch::matmul::quantised::{MxFp4, Q4_0, Q4K, Q6K, Q8_0};
use crate::launch::matmul::{amx, any, dots, gated, integers};
use crate::launch::pack::{
    BLOCKS16_MXFP4, BLOCKS16_Q4_0, BLOCKS16_Q4_K, BLOCKS16_Q6_K, BLOCKS16_Q8_0, BLOCKS32_MXFP4,
    BLOCKS32_Q4_0, BLOCKS32_Q4_K, BLOCKS32_Q6_K, BLOCKS32_Q8_0, PAIRS32_BF16, PANEL8_BF16, PANEL8_F16,
    PANEL8_F32, PANEL16_BF16, PANEL16_F16, PANEL16_F32, PANEL32_F16, PANEL32_F32, QUADS16_U8, QUADS32_U8,
};
use crate::launch::{fused, grouped, matmul, pack};
use crate::simd::{Avx2, Avx512, Avx512Bf16, Avx512Vnni, Portable};
use half::{bf16, f16};
use perjoule_kernels::{Config, Kernel, Numerics};

/// Register tile of 128-bit vectors with 16 registers.
static TILE_6X8: &[Config] = &[Config::tile("6x8", &[6, 8, 1])];
/// Register tile of 256-bit vectors with 16 registers.
static TILE_6X16: &[Config] = &[Config::tile("6x16", &[6, 16, 1])];
/// Register tile of 512-bit vectors with 32 registers.
static TILE_14X32: &[Config] = &[Config::tile("14x32", &[14, 32, 1])];
/// Two by two tiles of AMX.
static TILE_32X32: &[Config] = &[Config::tile("32x32", &[32, 32, 1])];
/// Register tile of dot products: vectors of the few, and of the many in a task.
static DOTS_4X32: &[Config] = &[Config::tile("4x32", &[4, 32, 32])];
/// A panel, the unit of packing.
static PANELS: &[Config] = &[Config::tile("panel", &[16])];

/// Fast rows first; the simple portable ones come last. The dtype in a packed row's name is that of B: A and C are any plain float.
#[rustfmt::skip]
pub(super) static ROWS: &[Kernel] = &[
    matmul::tiles::<Avx512Bf16, amx::Bf16>("matmul_bf16_32x32_cpu_amx_packed", TILE_32X32, &[&PAIRS32_BF16]),
    integers::tiles::<Avx512Bf16, amx::Bytes8>("matmul_i8_32x32_cpu_amx_packed", TILE_32X32, &[&QUADS32_U8]),
    matmul::quantised::<Avx512Vnni, Q8_0>("matmul_q8_0_14x32_cpu_avx512vnni_packed", TILE_14X32, &[&BLOCKS32_Q8_0]),
    matmul::quantised::<Avx512Vnni, Q4_0>("matmul_q4_0_14x32_cpu_avx512vnni_packed", TILE_14X32, &[&BLOCKS32_Q4_0]),
    matmul::quantised::<Avx512Vnni, Q4K>("matmul_q4_k_14x32_cpu_avx512vnni_packed", TILE_14X32, &[&BLOCKS32_Q4_K]),
    matmul::quantised::<Avx512Vnni, Q6K>("matmul_q6_k_14x32_cpu_avx512vnni_packed", TILE_14X32, &[&BLOCKS32_Q6_K]),
    matmul::quantised::<Avx512Vnni, MxFp4>("matmul_mxfp4_14x32_cpu_avx512vnni_packed", TILE_14X32, &[&BLOCKS32_MXFP4]),
    matmul::quantised::<Avx2, Q8_0>("matmul_q8_0_6x16_cpu_avx2_packed", TILE_6X16, &[&BLOCKS16_Q8_0]),
    matmul::quantised::<Avx2, Q4_0>("matmul_q4_0_6x16_cpu_avx2_packed", TILE_6X16, &[&BLOCKS16_Q4_0]),
    matmul::quantised::<Avx2, Q4K>("matmul_q4_k_6x16_cpu_avx2_packed", TILE_6X16, &[&BLOCKS16_Q4_K]),
    matmul::quantised::<Avx2, Q6K>("matmul_q6_k_6x16_cpu_avx2_packed", TILE_6X16, &[&BLOCKS16_Q6_K]),
    matmul::quantised::<Avx2, MxFp4>("matmul_mxfp4_6x16_cpu_avx2_packed", TILE_6X16, &[&BLOCKS16_MXFP4]),
    matmul::pairs::<Avx512Bf16>("matmul_bf16_14x32_cpu_avx512bf16_packed", TILE_14X32, &[&PAIRS32_BF16]),
    matmul::plain_pairs::<Avx512Bf16>("matmul_bf16_14x32_cpu_avx512bf16", TILE_14X32),
    matmul::packed::<Avx512, f32>("matmul_f32_14x32_cpu_avx512_packed", TILE_14X32, &[&PANEL32_F32]),
    matmul::halves::<Avx512>("matmul_bf16_14x32_cpu_avx512_packed", TILE_14X32, &[&PAIRS32_BF16]),
    matmul::packed::<Avx512, f16>("matmul_f16_14x32_cpu_avx512_packed", TILE_14X32, &[&PANEL32_F16]),
    matmul::plain::<Avx512>("matmul_mixed_14x32_cpu_avx512", TILE_14X32),
    dots::row::<Avx512>("matmul_dots_4x32_cpu_avx512", DOTS_4X32),
    matmul::packed::<Avx2, f32>("matmul_f32_6x16_cpu_avx2_packed", TILE_6X16, &[&PANEL16_F32]),
    matmul::packed::<Avx2, bf16>("matmul_bf16_6x16_cpu_avx2_packed", TILE_6X16, &[&PANEL16_BF16]),
    matmul::packed::<Avx2, f16>("matmul_f16_6x16_cpu_avx2_packed", TILE_6X16, &[&PANEL16_F16]),
    matmul::plain::<Avx2>("matmul_mixed_6x16_cpu_avx2", TILE_6X16),
    dots::row::<Avx2>("matmul_dots_4x32_cpu_avx2", DOTS_4X32),
    matmul::packed::<Portable, f32>("matmul_f32_6x8_cpu_portable_packed", TILE_6X8, &[&PANEL8_F32]),
    matmul::packed::<Portable, bf16>("matmul_bf16_6x8_cpu_portable_packed", TILE_6X8, &[&PANEL8_BF16]),
    matmul::packed::<Portable, f16>("matmul_f16_6x8_cpu_portable_packed", TILE_6X8, &[&PANEL8_F16]),
    matmul::plain::<Portable>("matmul_mixed_6x8_cpu_portable", TILE_6X8),
    dots::row::<Portable>("matmul_dots_4x32_cpu_portable", DOTS_4X32),
    integers::packed::<Avx512Vnni>("matmul_i8_14x32_cpu_avx512vnni_packed", TILE_14X32, &[&QUADS32_U8]),
    integers::plain::<Avx512Vnni>("matmul_i8_14x32_cpu_avx512vnni", TILE_14X32),
    integers::packed::<Avx512>("matmul_i8_14x32_cpu_avx512_packed", TILE_14X32, &[&QUADS32_U8]),
    integers::plain::<Avx512>("matmul_i8_14x32_cpu_avx512", TILE_14X32),
    integers::packed::<Avx2>("matmul_i8_6x16_cpu_avx2_packed", TILE_6X16, &[&QUADS16_U8]),
    integers::plain::<Avx2>("matmul_i8_6x16_cpu_avx2", TILE_6X16),
    integers::plain::<Portable>("matmul_i8_6x8_cpu_portable", TILE_6X8),
    Kernel::new("matmul_any_1x1_cpu_portable", "matmul", any::cost, any::prepare).with_configs(any::CONFIGS),
    grouped::tiles::<Avx512Bf16, amx::Bf16>("grouped_matmul_bf16_32x32_cpu_amx_packed", TILE_32X32, &[&PAIRS32_BF16]),
    grouped::quantised::<Avx512Vnni, Q8_0>("grouped_matmul_q8_0_14x32_cpu_avx512vnni_packed", TILE_14X32, &[&BLOCKS32_Q8_0]),
    grouped::quantised::<Avx512Vnni, Q4_0>("grouped_matmul_q4_0_14x32_cpu_avx512vnni_packed", TILE_14X32, &[&BLOCKS32_Q4_0]),
    grouped::quantised::<Avx512Vnni, Q4K>("grouped_matmul_q4_k_14x32_cpu_avx512vnni_packed", TILE_14X32, &[&BLOCKS32_Q4_K]),
    grouped::quantised::<Avx512Vnni, Q6K>("grouped_matmul_q6_k_14x32_cpu_avx512vnni_packed", TILE_14X32, &[&BLOCKS32_Q6_K]),
    grouped::quantised::<Avx512Vnni, MxFp4>("grouped_matmul_mxfp4_14x32_cpu_avx512vnni_packed", TILE_14X32, &[&BLOCKS32_MXFP4]),
    grouped::quantised::<Avx2, Q8_0>("grouped_matmul_q8_0_6x16_cpu_avx2_packed", TILE_6X16, &[&BLOCKS16_Q8_0]),
    grouped::quantised::<Avx2, Q4_0>("grouped_matmul_q4_0_6x16_cpu_avx2_packed", TILE_6X16, &[&BLOCKS16_Q4_0]),
    grouped::quantised::<Avx2, Q4K>("grouped_matmul_q4_k_6x16_cpu_avx2_packed", TILE_6X16, &[&BLOCKS16_Q4_K]),
    grouped::quantised::<Avx2, Q6K>("grouped_matmul_q6_k_6x16_cpu_avx2_packed", TILE_6X16, &[&BLOCKS16_Q6_K]),
    grouped::quantised::<Avx2, MxFp4>("grouped_matmul_mxfp4_6x16_cpu_avx2_packed", TILE_6X16, &[&BLOCKS16_MXFP4]),
    grouped::pairs::<Avx512Bf16>("grouped_matmul_bf16_14x32_cpu_avx512bf16_packed", TILE_14X32, &[&PAIRS32_BF16]),
    grouped::plain_pairs::<Avx512Bf16>("grouped_matmul_bf16_14x32_cpu_avx512bf16", TILE_14X32),
    grouped::packed::<Avx512, f32>("grouped_matmul_f32_14x32_cpu_avx512_packed", TILE_14X32, &[&PANEL32_F32]),
    grouped::halves::<Avx512>("grouped_matmul_bf16_14x32_cpu_avx512_packed", TILE_14X32, &[&PAIRS32_BF16]),
    grouped::packed::<Avx512, f16>("grouped_matmul_f16_14x32_cpu_avx512_packed", TILE_14X32, &[&PANEL32_F16]),
    grouped::plain::<Avx512>("grouped_matmul_mixed_14x32_cpu_avx512", TILE_14X32),
    grouped::packed::<Avx2, f32>("grouped_matmul_f32_6x16_cpu_avx2_packed", TILE_6X16, &[&PANEL16_F32]),
    grouped::packed::<Avx2, bf16>("grouped_matmul_bf16_6x16_cpu_avx2_packed", TILE_6X16, &[&PANEL16_BF16]),
    grouped::packed::<Avx2, f16>("grouped_matmul_f16_6x16_cpu_avx2_packed", TILE_6X16, &[&PANEL16_F16]),
    grouped::plain::<Avx2>("grouped_matmul_mixed_6x16_cpu_avx2", TILE_6X16),
    grouped::packed::<Portable, f32>("grouped_matmul_f32_6x8_cpu_portable_packed", TILE_6X8, &[&PANEL8_F32]),
    grouped::packed::<Portable, bf16>("grouped_matmul_bf16_6x8_cpu_portable_packed", TILE_6X8, &[&PANEL8_BF16]),
    grouped::packed::<Portable, f16>("grouped_matmul_f16_6x8_cpu_portable_packed", TILE_6X8, &[&PANEL8_F16]),
    grouped::plain::<Portable>("grouped_matmul_mixed_6x8_cpu_portable", TILE_6X8),
    Kernel::new("grouped_matmul_any_1x1_cpu_portable", "grouped_matmul", any::cost, any::prepare_grouped).with_configs(any::CONFIGS),
    gated::tiles::<Avx512Bf16, amx::Bf16>("gated_matmul_bf16_32x32_cpu_amx_packed", TILE_32X32, &[&PAIRS32_BF16]),
    gated::quantised::<Avx512Vnni, Q8_0>("gated_matmul_q8_0_14x32_cpu_avx512vnni_packed", TILE_14X32, &[&BLOCKS32_Q8_0]),
    gated::quantised::<Avx512Vnni, Q4_0>("gated_matmul_q4_0_14x32_cpu_avx512vnni_packed", TILE_14X32, &[&BLOCKS32_Q4_0]),
    gated::quantised::<Avx512Vnni, Q4K>("gated_matmul_q4_k_14x32_cpu_avx512vnni_packed", TILE_14X32, &[&BLOCKS32_Q4_K]),
    gated::quantised::<Avx512Vnni, Q6K>("gated_matmul_q6_k_14x32_cpu_avx512vnni_packed", TILE_14X32, &[&BLOCKS32_Q6_K]),
    gated::quantised::<Avx512Vnni, MxFp4>("gated_matmul_mxfp4_14x32_cpu_avx512vnni_packed", TILE_14X32, &[&BLOCKS32_MXFP4]),
    gated::quantised::<Avx2, Q8_0>("gated_matmul_q8_0_6x16_cpu_avx2_packed", TILE_6X16, &[&BLOCKS16_Q8_0]),
    gated::quantised::<Avx2, Q4_0>("gated_matmul_q4_0_6x16_cpu_avx2_packed", TILE_6X16, &[&BLOCKS16_Q4_0]),
    gated::quantised::<Avx2, Q4K>("gated_matmul_q4_k_6x16_cpu_avx2_packed", TILE_6X16, &[&BLOCKS16_Q4_K]),
    gated::quantised::<Avx2, Q6K>("gated_matmul_q6_k_6x16_cpu_avx2_packed", TILE_6X16, &[&BLOCKS16_Q6_K]),
    gated::quantised::<Avx2, MxFp4>("gated_matmul_mxfp4_6x16_cpu_avx2_packed", TILE_6X16, &[&BLOCKS16_MXFP4]),
    gated::pairs::<Avx512Bf16>("gated_matmul_bf16_14x32_cpu_avx512bf16_packed", TILE_14X32, &[&PAIRS32_BF16]),
    gated::plain_pairs::<Avx512Bf16>("gated_matmul_bf16_14x32_cpu_avx512bf16", TILE_14X32),
    gated::packed::<Avx512, f32>("gated_matmul_f32_14x32_cpu_avx512_packed", TILE_14X32, &[&PANEL32_F32]),
    gated::halves::<Avx512>("gated_matmul_bf16_14x32_cpu_avx512_packed", TILE_14X32, &[&PAIRS32_BF16]),
    gated::packed::<Avx512, f16>("gated_matmul_f16_14x32_cpu_avx512_packed", TILE_14X32, &[&PANEL32_F16]),
    gated::plain::<Avx512>("gated_matmul_mixed_14x32_cpu_avx512", TILE_14X32),
    gated::packed::<Avx2, f32>("gated_matmul_f32_6x16_cpu_avx2_packed", TILE_6X16, &[&PANEL16_F32]),
    gated::packed::<Avx2, bf16>("gated_matmul_bf16_6x16_cpu_avx2_packed", TILE_6X16, &[&PANEL16_BF16]),
    gated::packed::<Avx2, f16>("gated_matmul_f16_6x16_cpu_avx2_packed", TILE_6X16, &[&PANEL16_F16]),
    gated::plain::<Avx2>("gated_matmul_mixed_6x16_cpu_avx2", TILE_6X16),
    gated::packed::<Portable, f32>("gated_matmul_f32_6x8_cpu_portable_packed", TILE_6X8, &[&PANEL8_F32]),
    gated::packed::<Portable, bf16>("gated_matmul_bf16_6x8_cpu_portable_packed", TILE_6X8, &[&PANEL8_BF16]),
    gated::packed::<Portable, f16>("gated_matmul_f16_6x8_cpu_portable_packed", TILE_6X8, &[&PANEL8_F16]),
    gated::plain::<Portable>("gated_matmul_mixed_6x8_cpu_portable", TILE_6X8),
    Kernel::new("gated_matmul_any_1x1_cpu_portable", "gated_matmul", any::cost_gated, fused::prepare::<Portable>).with_configs(any::CONFIGS),
    Kernel::new("pack_panels_cpu_portable", "pack", pack::cost, pack::prepare)
        .with_configs(PANELS)
        .with_numerics(|_| Numerics::EXACT)
        .with_reject(pack::reject),
];
