//! Rows that call NVIDIA's libraries: to compare with, never chosen unless by name.

use crate::vendor::{BYTES, CONFIGS, align, cost, numerics, prepare, reject};
use perjoule_kernels::Kernel;

const fn row<const DTYPE: usize>(name: &'static str) -> Kernel {
    Kernel::new(name, "matmul", cost, prepare)
        .with_configs(CONFIGS)
        .with_numerics(numerics)
        .with_reject(reject::<DTYPE>)
        .with_align(align)
        .of_vendor()
}

/// The dtype in a row's name is that of A and B.
pub(super) static ROWS: &[Kernel] = &[
    row::<0>("matmul_f32_library_cuda_cublaslt"),
    row::<1>("matmul_bf16_library_cuda_cublaslt"),
    row::<2>("matmul_f16_library_cuda_cublaslt"),
    row::<3>("matmul_f8e4m3_library_cuda_cublaslt").with_configs(BYTES),
    row::<4>("matmul_i8_library_cuda_cublaslt").with_configs(BYTES),
];
