//! Matrix products for Hopper's tensor cores.

use crate::launch::hopper::{CONFIGS, GATED_CONFIGS, align, cost, grouped, numerics, prepare, reject};
use perjoule_kernels::Kernel;

const fn row<const ELEMENT: usize>(name: &'static str, op: &'static str) -> Kernel {
    Kernel::new(name, op, cost, prepare)
        .with_configs(CONFIGS)
        .with_reject(reject::<ELEMENT>)
        .with_numerics(numerics)
        .with_align(align)
}

const fn experts<const ELEMENT: usize>(name: &'static str) -> Kernel {
    Kernel::new(name, "grouped_matmul", grouped::cost, grouped::prepare)
        .with_configs(grouped::CONFIGS)
        .with_reject(grouped::reject::<ELEMENT>)
        .with_numerics(grouped::numerics)
        .with_align(grouped::align)
}

/// The dtype in a row's name is that of A and B.
#[rustfmt::skip]
pub(super) static ROWS: &[Kernel] = &[
    row::<0>("matmul_bf16_128x128_cuda_sm90", "matmul"),
    row::<1>("matmul_f16_128x128_cuda_sm90", "matmul"),
    row::<2>("matmul_tf32_128x128_cuda_sm90", "matmul"),
    row::<3>("matmul_f8e4m3_128x128_cuda_sm90", "matmul"),
    row::<4>("matmul_i8_128x128_cuda_sm90", "matmul"),
    row::<0>("gated_matmul_bf16_128x128_cuda_sm90", "gated_matmul").with_configs(GATED_CONFIGS),
    row::<1>("gated_matmul_f16_128x128_cuda_sm90", "gated_matmul").with_configs(GATED_CONFIGS),
    experts::<0>("grouped_matmul_bf16_128x128_cuda_sm90"),
    experts::<1>("grouped_matmul_f16_128x128_cuda_sm90"),
    experts::<3>("grouped_matmul_f8e4m3_128x128_cuda_sm90"),
    experts::<4>("grouped_matmul_i8_128x128_cuda_sm90"),
];
