//! Rows of vendors' libraries: to compare with, never chosen unless by name.

use crate::vendor::{CONFIGS, Vendor, cost, numerics, prepare, reject};
use perjoule_kernels::Kernel;

const MKL: usize = Vendor::Mkl as usize;
const OPENBLAS: usize = Vendor::OpenBlas as usize;
const ONEDNN: usize = Vendor::OneDnn as usize;
const F32: usize = 0;
const BF16: usize = 1;
const I8: usize = 2;

const fn row<const VENDOR: usize, const DTYPE: usize>(name: &'static str) -> Kernel {
    Kernel::new(name, "matmul", cost, prepare::<VENDOR>)
        .with_configs(CONFIGS)
        .with_numerics(numerics)
        .with_reject(reject::<VENDOR, DTYPE>)
        .of_vendor()
}

pub(super) static ROWS: &[Kernel] = &[
    row::<MKL, F32>("matmul_f32_library_cpu_mkl"),
    row::<MKL, BF16>("matmul_bf16_library_cpu_mkl"),
    row::<MKL, I8>("matmul_i8_library_cpu_mkl"),
    row::<OPENBLAS, F32>("matmul_f32_library_cpu_openblas"),
    row::<ONEDNN, F32>("matmul_f32_library_cpu_onednn"),
];
