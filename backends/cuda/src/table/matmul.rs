//! Matrix products for every GPU, and for the tensor cores of sm_80 and later.

use crate::launch::matmul::skinny::{BF16, F8E4M3, F16, I8, MXFP4, Q4_0, Q4_K, Q6_K, Q8_0, packed, plain};
use crate::launch::matmul::{any, panels, tensor};
use crate::launch::pack::{self, PANELS16_MXFP4, PANELS16_Q4_0, PANELS16_Q4_K, PANELS16_Q6_K, PANELS16_Q8_0};
use perjoule_kernels::{Kernel, Numerics};

/// The dtype in a name is that of B: A and C are any that the row says.
#[rustfmt::skip]
pub(super) static ROWS: &[Kernel] = &[
    plain::<BF16>("matmul_bf16_32x16_cuda_sm80_skinny", "matmul"),
    plain::<F16>("matmul_f16_32x16_cuda_sm80_skinny", "matmul"),
    plain::<F8E4M3>("matmul_f8e4m3_32x16_cuda_sm80_skinny", "matmul"),
    plain::<I8>("matmul_i8_32x16_cuda_sm80_skinny", "matmul"),
    packed::<Q8_0>("matmul_q8_0_32x16_cuda_sm80_packed", "matmul", &[&PANELS16_Q8_0]),
    packed::<Q4_0>("matmul_q4_0_32x16_cuda_sm80_packed", "matmul", &[&PANELS16_Q4_0]),
    packed::<Q4_K>("matmul_q4_k_32x16_cuda_sm80_packed", "matmul", &[&PANELS16_Q4_K]),
    packed::<Q6_K>("matmul_q6_k_32x16_cuda_sm80_packed", "matmul", &[&PANELS16_Q6_K]),
    packed::<MXFP4>("matmul_mxfp4_32x16_cuda_sm80_packed", "matmul", &[&PANELS16_MXFP4]),
    panels::row::<Q8_0>("matmul_q8_0_128x128_cuda_sm80_packed", "matmul", &[&PANELS16_Q8_0]),
    panels::row::<Q4_0>("matmul_q4_0_128x128_cuda_sm80_packed", "matmul", &[&PANELS16_Q4_0]),
    panels::row::<Q4_K>("matmul_q4_k_128x128_cuda_sm80_packed", "matmul", &[&PANELS16_Q4_K]),
    panels::row::<Q6_K>("matmul_q6_k_128x128_cuda_sm80_packed", "matmul", &[&PANELS16_Q6_K]),
    panels::row::<MXFP4>("matmul_mxfp4_128x128_cuda_sm80_packed", "matmul", &[&PANELS16_MXFP4]),
    tensor::row::<{ tensor::BF16 }>("matmul_bf16_128x128_cuda_sm80"),
    tensor::row::<{ tensor::F16 }>("matmul_f16_128x128_cuda_sm80"),
    tensor::row::<{ tensor::TF32 }>("matmul_tf32_128x128_cuda_sm80"),
    tensor::row::<{ tensor::I8 }>("matmul_i8_128x128_cuda_sm80"),
    tensor::row::<{ tensor::F32 }>("matmul_f32_128x128_cuda_any"),
    Kernel::new("matmul_any_64x64_cuda_any", "matmul", any::cost, any::prepare).with_configs(any::CONFIGS),
    plain::<BF16>("gated_matmul_bf16_32x16_cuda_sm80_skinny", "gated_matmul"),
    plain::<F16>("gated_matmul_f16_32x16_cuda_sm80_skinny", "gated_matmul"),
    plain::<F8E4M3>("gated_matmul_f8e4m3_32x16_cuda_sm80_skinny", "gated_matmul"),
    packed::<Q8_0>("gated_matmul_q8_0_32x16_cuda_sm80_packed", "gated_matmul", &[&PANELS16_Q8_0]),
    packed::<Q4_0>("gated_matmul_q4_0_32x16_cuda_sm80_packed", "gated_matmul", &[&PANELS16_Q4_0]),
    packed::<Q4_K>("gated_matmul_q4_k_32x16_cuda_sm80_packed", "gated_matmul", &[&PANELS16_Q4_K]),
    packed::<Q6_K>("gated_matmul_q6_k_32x16_cuda_sm80_packed", "gated_matmul", &[&PANELS16_Q6_K]),
    packed::<MXFP4>("gated_matmul_mxfp4_32x16_cuda_sm80_packed", "gated_matmul", &[&PANELS16_MXFP4]),
    panels::row::<Q8_0>("gated_matmul_q8_0_128x128_cuda_sm80_packed", "gated_matmul", &[&PANELS16_Q8_0]),
    panels::row::<Q4_0>("gated_matmul_q4_0_128x128_cuda_sm80_packed", "gated_matmul", &[&PANELS16_Q4_0]),
    panels::row::<Q4_K>("gated_matmul_q4_k_128x128_cuda_sm80_packed", "gated_matmul", &[&PANELS16_Q4_K]),
    panels::row::<Q6_K>("gated_matmul_q6_k_128x128_cuda_sm80_packed", "gated_matmul", &[&PANELS16_Q6_K]),
    panels::row::<MXFP4>("gated_matmul_mxfp4_128x128_cuda_sm80_packed", "gated_matmul", &[&PANELS16_MXFP4]),
    Kernel::new("gated_matmul_any_64x64_cuda_any", "gated_matmul", any::cost, any::prepare).with_configs(any::CONFIGS),
    plain::<BF16>("grouped_matmul_bf16_32x16_cuda_sm80_skinny", "grouped_matmul"),
    plain::<F16>("grouped_matmul_f16_32x16_cuda_sm80_skinny", "grouped_matmul"),
    plain::<F8E4M3>("grouped_matmul_f8e4m3_32x16_cuda_sm80_skinny", "grouped_matmul"),
    packed::<Q8_0>("grouped_matmul_q8_0_32x16_cuda_sm80_packed", "grouped_matmul", &[&PANELS16_Q8_0]),
    packed::<Q4_0>("grouped_matmul_q4_0_32x16_cuda_sm80_packed", "grouped_matmul", &[&PANELS16_Q4_0]),
    packed::<Q4_K>("grouped_matmul_q4_k_32x16_cuda_sm80_packed", "grouped_matmul", &[&PANELS16_Q4_K]),
    packed::<Q6_K>("grouped_matmul_q6_k_32x16_cuda_sm80_packed", "grouped_matmul", &[&PANELS16_Q6_K]),
    packed::<MXFP4>("grouped_matmul_mxfp4_32x16_cuda_sm80_packed", "grouped_matmul", &[&PANELS16_MXFP4]),
    panels::row::<Q8_0>("grouped_matmul_q8_0_128x128_cuda_sm80_packed", "grouped_matmul", &[&PANELS16_Q8_0]),
    panels::row::<Q4_0>("grouped_matmul_q4_0_128x128_cuda_sm80_packed", "grouped_matmul", &[&PANELS16_Q4_0]),
    panels::row::<Q4_K>("grouped_matmul_q4_k_128x128_cuda_sm80_packed", "grouped_matmul", &[&PANELS16_Q4_K]),
    panels::row::<Q6_K>("grouped_matmul_q6_k_128x128_cuda_sm80_packed", "grouped_matmul", &[&PANELS16_Q6_K]),
    panels::row::<MXFP4>("grouped_matmul_mxfp4_128x128_cuda_sm80_packed", "grouped_matmul", &[&PANELS16_MXFP4]),
    Kernel::new("grouped_matmul_any_64x64_cuda_any", "grouped_matmul", any::cost, any::prepare).with_configs(any::CONFIGS),
    Kernel::new("pack_panels16_16_cuda_any", "pack", pack::cost, pack::prepare)
        .with_reject(pack::reject)
        .with_numerics(|_| Numerics::EXACT),
];
