//! Element types that vectors are loaded from and stored to.

use super::Simd;
use bytemuck::{Pod, Zeroable};
use half::{bf16, f16};
use perjoule_kernels::DType;
use perjoule_kernels::float8::E4M3_MAX;

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

/// An f8e4m3 element. It is converted as `perjoule_kernels::float8` does it, but without branches, so that loops become vectors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub(crate) struct E4m3(pub(crate) u8);

// SAFETY: a transparent byte; all zeros is the value 0.
unsafe impl Zeroable for E4m3 {}
// SAFETY: a transparent byte: any bits are valid, and there is no padding.
unsafe impl Pod for E4m3 {}

#[allow(clippy::needless_range_loop, reason = "two arrays in step, which become vectors")]
impl Element for E4m3 {
    const DTYPE: DType = DType::F8E4M3;
    const ZERO: Self = E4m3(0);

    #[inline(always)]
    fn widen(self) -> f32 {
        let magnitude = u32::from(self.0 & 0x7f);
        let normal = (magnitude << 20) + ((127 - 7) << 23);
        let subnormal = (magnitude as f32 * (1.0 / 512.0)).to_bits();
        let bits = if magnitude < 8 { subnormal } else { normal };
        let bits = if magnitude == 0x7f { f32::NAN.to_bits() } else { bits };
        f32::from_bits(bits | (u32::from(self.0 & 0x80) << 24))
    }
    #[inline(always)]
    fn narrow(x: f32) -> Self {
        let bits = x.to_bits();
        let magnitude = bits & 0x7fff_ffff;
        // a unit in the last place of 2^14 is the smallest subnormal
        let subnormal = (f32::from_bits(magnitude) + 16384.0).to_bits() & 0xff;
        // a carry runs on into the exponent, as it should
        let rounded = (magnitude.wrapping_add(0x7_ffff + ((magnitude >> 20) & 1))) >> 20;
        let normal = rounded.wrapping_sub((127 - 7) << 3);
        let code = if magnitude < (1.0f32 / 64.0).to_bits() { subnormal } else { normal };
        let code = if magnitude >= E4M3_MAX.to_bits() { 0x7e } else { code };
        let code = if magnitude > f32::INFINITY.to_bits() { 0x7f } else { code };
        E4m3((code | ((bits >> 24) & 0x80)) as u8)
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, from: *const Self) -> S::V {
        let mut codes = [E4m3::ZERO; super::MAX_LANES];
        // SAFETY: the first `LANES` elements are readable by the contract, and the array is no shorter.
        unsafe { std::ptr::copy_nonoverlapping(from, codes.as_mut_ptr(), S::LANES) };
        let mut lanes = [0.0; super::MAX_LANES];
        for i in 0..S::LANES {
            lanes[i] = codes[i].widen();
        }
        s.load(&lanes)
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, to: *mut Self, v: S::V) {
        let lanes = s.to_array(v);
        let mut codes = [E4m3::ZERO; super::MAX_LANES];
        for i in 0..S::LANES {
            codes[i] = E4m3::narrow(lanes[i]);
        }
        // SAFETY: the first `LANES` elements are writable by the contract, and the array is no shorter.
        unsafe { std::ptr::copy_nonoverlapping(codes.as_ptr(), to, S::LANES) };
    }
}
