//! Matrix products for Hopper's tensor cores.

use crate::launch::hopper::{CONFIGS, align, cost, numerics, prepare, reject};
use perjoule_kernels::Kernel;

const fn row<const ELEMENT: usize>(name: &'static str, op: &'static str) -> Kernel {
    Kernel::new(name, op, cost, prepare)
        .with_configs(CONFIGS)
        .with_reject(reject::<ELEMENT>)
        .with_numerics(numerics)
        .with_align(align)
}

/// The dtype in a row's name is that of A and B.
#[rustfmt::skip]
pub(super) static ROWS: &[Kernel] = &[
    row::<0>("matmul_bf16_128x256_cuda_sm90", "matmul"),
    row::<1>("matmul_f16_128x256_cuda_sm90", "matmul"),
    row::<2>("matmul_tf32_128x256_cuda_sm90", "matmul"),
    row::<3>("matmul_f8e4m3_128x256_cuda_sm90", "matmul"),
    row::<4>("matmul_i8_128x256_cuda_sm90", "matmul"),
    row::<0>("gated_matmul_bf16_128x256_cuda_sm90", "gated_matmul"),
    row::<1>("gated_matmul_f16_128x256_cuda_sm90", "gated_matmul"),
];
