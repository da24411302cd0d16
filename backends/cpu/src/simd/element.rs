//! Element types that vectors are loaded from and stored to.

use super::Simd;
use bytemuck::{Pod, Zeroable};
use half::{bf16, f16};
use perjoule_kernels::DType;
use perjoule_kernels::float8::{e4m3_to_f32, f32_to_e4m3};

/// A plain floating-point type.
pub(crate) trait Element: Pod + Send + Sync {
    /// Its name in descriptors.
    const DTYPE: DType;
    /// 0.
    const ZERO: Self;

    /// Its value.
    fn widen(self) -> f32;
    /// The nearest value of this type, ties to even; NaN stays NaN.
    fn narrow(x: f32) -> Self;
    /// Loads and widens [`Simd::LANES`] elements.
    ///
    /// # Safety
    /// They are readable; no alignment beyond the type's is needed.
    unsafe fn load<S: Simd>(s: S, from: *const Self) -> S::V;
    /// Rounds and stores [`Simd::LANES`] elements.
    ///
    /// # Safety
    /// They are writable; no alignment beyond the type's is needed.
    unsafe fn store<S: Simd>(s: S, to: *mut Self, v: S::V);
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;
    const ZERO: Self = 0.0;

    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
    #[inline(always)]
    fn narrow(x: f32) -> Self {
        x
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, from: *const Self) -> S::V {
        // SAFETY: the same contract.
        unsafe { s.load_f32(from) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, to: *mut Self, v: S::V) {
        // SAFETY: the same contract.
        unsafe { s.store_f32(to, v) }
    }
}

impl Element for bf16 {
    const DTYPE: DType = DType::BF16;
    const ZERO: Self = bf16::ZERO;

    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }
    #[inline(always)]
    fn narrow(x: f32) -> Self {
        bf16::from_f32(x)
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, from: *const Self) -> S::V {
        // SAFETY: the same contract.
        unsafe { s.load_bf16(from) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, to: *mut Self, v: S::V) {
        // SAFETY: the same contract.
        unsafe { s.store_bf16(to, v) }
    }
}

impl Element for f16 {
    const DTYPE: DType = DType::F16;
    const ZERO: Self = f16::ZERO;

    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }
    #[inline(always)]
    fn narrow(x: f32) -> Self {
        f16::from_f32(x)
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, from: *const Self) -> S::V {
        // SAFETY: the same contract.
        unsafe { s.load_f16(from) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, to: *mut Self, v: S::V) {
        // SAFETY: the same contract.
        unsafe { s.store_f16(to, v) }
    }
}

/// An f8e4m3 element, converted one by one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub(crate) struct E4m3(pub(crate) u8);

// SAFETY: a transparent byte; all zeros is the value 0.
unsafe impl Zeroable for E4m3 {}
// SAFETY: a transparent byte: any bits are valid, and there is no padding.
unsafe impl Pod for E4m3 {}

impl Element for E4m3 {
    const DTYPE: DType = DType::F8E4M3;
    const ZERO: Self = E4m3(0);

    #[inline(always)]
    fn widen(self) -> f32 {
        e4m3_to_f32(self.0)
    }
    #[inline(always)]
    fn narrow(x: f32) -> Self {
        E4m3(f32_to_e4m3(x))
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, from: *const Self) -> S::V {
        let mut lanes = [0.0; super::MAX_LANES];
        for (i, lane) in lanes.iter_mut().take(S::LANES).enumerate() {
            // SAFETY: the first `LANES` elements are readable by the contract.
            *lane = unsafe { *from.add(i) }.widen();
        }
        s.load(&lanes)
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, to: *mut Self, v: S::V) {
        for (i, lane) in s.to_array(v).into_iter().take(S::LANES).enumerate() {
            // SAFETY: the first `LANES` elements are writable by the contract.
            unsafe { *to.add(i) = E4m3::narrow(lane) }
        }
    }
}
