//! Rust types that are elements of tensors.

use bytemuck::Pod;
use half::{bf16, f16};
use perjoule_kernels::DType;

/// A Rust type that is stored in a tensor as it is.
pub trait Element: Pod {
    /// Its element type.
    const DTYPE: DType;
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;
}
impl Element for f16 {
    const DTYPE: DType = DType::F16;
}
impl Element for bf16 {
    const DTYPE: DType = DType::BF16;
}
impl Element for i8 {
    const DTYPE: DType = DType::I8;
}
impl Element for i32 {
    const DTYPE: DType = DType::I32;
}
impl Element for u32 {
    const DTYPE: DType = DType::U32;
}
