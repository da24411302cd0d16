//! NEON: four lanes; and the same with dot products of bytes (DotProd, I8MM) and of bf16 (BF16).
//!
//! Dot products have no stable intrinsics, so that they are written in assembly.

use super::{Kernel, MAX_LANES, Simd};
use crate::features::Features;
use half::{bf16, f16};
use perjoule_kernels::Numerics;
use std::arch::aarch64::*;
use std::arch::asm;

/// The processor has NEON and the extensions up to that one: only [`Simd::detect`] makes one.
#[derive(Clone, Copy)]
pub(crate) struct WithExtension<const LAST: u8>(());

const NONE: u8 = 0;
const DOT: u8 = 1;
const I8MM: u8 = 2;
const BF16: u8 = 3;

/// Without extensions.
pub(crate) type Neon = WithExtension<NONE>;
/// With dot products of four bytes of one signedness.
pub(crate) type NeonDot = WithExtension<DOT>;
/// With dot products of four i8 with four u8.
pub(crate) type NeonI8mm = WithExtension<I8MM>;
/// With those, and dot products of two bf16.
pub(crate) type NeonBf16 = WithExtension<BF16>;

#[target_feature(enable = "neon")]
fn vectorise<const LAST: u8, K: Kernel>(s: WithExtension<LAST>, kernel: K) -> K::Output {
    kernel.run(s)
}

#[target_feature(enable = "neon,dotprod")]
fn vectorise_dot<const LAST: u8, K: Kernel>(s: WithExtension<LAST>, kernel: K) -> K::Output {
    kernel.run(s)
}

#[target_feature(enable = "neon,dotprod,i8mm")]
fn vectorise_i8mm<const LAST: u8, K: Kernel>(s: WithExtension<LAST>, kernel: K) -> K::Output {
    kernel.run(s)
}

#[target_feature(enable = "neon,dotprod,i8mm,bf16")]
fn vectorise_bf16<const LAST: u8, K: Kernel>(s: WithExtension<LAST>, kernel: K) -> K::Output {
    kernel.run(s)
}

/// c + the dot products of four i8 with four i8.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn sdot(mut c: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: arithmetic on registers, with an instruction that the processor has.
    unsafe {
        asm!("sdot {c:v}.4s, {a:v}.16b, {b:v}.16b", c = inout(vreg) c, a = in(vreg) a, b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags));
    }
    c
}

/// c + the dot products of four u8 with four i8.
#[inline]
#[target_feature(enable = "neon,i8mm")]
fn usdot(mut c: int32x4_t, a: uint8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: arithmetic on registers, with an instruction that the processor has.
    unsafe {
        asm!("usdot {c:v}.4s, {a:v}.16b, {b:v}.16b", c = inout(vreg) c, a = in(vreg) a, b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags));
    }
    c
}

/// c + the dot products of two bf16 with two bf16. Subnormal numbers count as zero, and each of the two sums is rounded to odd.
#[inline]
#[target_feature(enable = "neon,bf16")]
fn bfdot(mut c: float32x4_t, a: float32x4_t, b: float32x4_t) -> float32x4_t {
    // SAFETY: arithmetic on registers, with an instruction that the processor has.
    unsafe {
        asm!("bfdot {c:v}.4s, {a:v}.8h, {b:v}.8h", c = inout(vreg) c, a = in(vreg) a, b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags));
    }
    c
}

/// c + the dot products of four i8 with four u8, without an instruction for them.
#[inline]
#[target_feature(enable = "neon")]
fn widening_dot(c: int32x4_t, a: int8x16_t, b: uint8x16_t) -> int32x4_t {
    // sums of two products of an i8 with a u8 may overflow i16, products cannot
    let (a0, a1) = (vmovl_s8(vget_low_s8(a)), vmovl_high_s8(a));
    let b0 = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(b)));
    let b1 = vreinterpretq_s16_u16(vmovl_high_u8(b));
    let pairs0 = vpaddlq_s16(vmulq_s16(a0, b0));
    let pairs1 = vpaddlq_s16(vmulq_s16(a1, b1));
    vaddq_s32(c, vpaddq_s32(pairs0, pairs1))
}

#[inline(always)]
fn floats(words: uint32x4_t) -> float32x4_t {
    // SAFETY: every 64-bit Arm target of Rust's with floats has NEON in its baseline.
    unsafe { vreinterpretq_f32_u32(words) }
}

#[inline(always)]
fn words(floats: float32x4_t) -> uint32x4_t {
    // SAFETY: as above.
    unsafe { vreinterpretq_u32_f32(floats) }
}

// SAFETY of every block below: a token exists only where the processor has the instructions; pointers are valid by the contract of
// the trait's method.
#[allow(clippy::undocumented_unsafe_blocks, reason = "one reason holds for all; it stands above")]
impl<const LAST: u8> Simd for WithExtension<LAST> {
    const LANES: usize = 4;
    const REGISTERS: usize = 32;
    const NAME: &'static str = match LAST {
        NONE => "neon",
        DOT => "neondot",
        I8MM => "neoni8mm",
        _ => "neonbf16",
    };
    const DOT_QUADS: bool = LAST >= DOT;
    // rounding to odd is off by less than a unit in the last place, rounding to nearest by no more than half of one
    const PAIRS_UNIT: f64 = if LAST >= BF16 { 2.0 * Numerics::F32.unit } else { Numerics::F32.unit };
    type V = float32x4_t;

    fn detect() -> Option<Self> {
        Self::allowed(Features::of_processor()).then_some(WithExtension(()))
    }
    fn allowed(features: Features) -> bool {
        match LAST {
            NONE => features.neon,
            DOT => features.neon_dot,
            I8MM => features.neon_i8mm,
            _ => features.neon_bf16,
        }
    }
    #[inline(always)]
    fn vectorise<K: Kernel>(self, kernel: K) -> K::Output {
        unsafe {
            match LAST {
                NONE => vectorise(self, kernel),
                DOT => vectorise_dot(self, kernel),
                I8MM => vectorise_i8mm(self, kernel),
                _ => vectorise_bf16(self, kernel),
            }
        }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> float32x4_t {
        unsafe { vdupq_n_f32(x) }
    }
    #[inline(always)]
    fn add(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vaddq_f32(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vsubq_f32(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vmulq_f32(a, b) }
    }
    #[inline(always)]
    fn div(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vdivq_f32(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        unsafe { vfmaq_f32(c, a, b) }
    }
    #[inline(always)]
    fn max(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // the instruction of that name gives NaN where either is
        unsafe { vbslq_f32(vcgtq_f32(a, b), a, b) }
    }
    #[inline(always)]
    fn min(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vbslq_f32(vcltq_f32(a, b), a, b) }
    }
    #[inline(always)]
    fn abs(self, a: float32x4_t) -> float32x4_t {
        unsafe { vabsq_f32(a) }
    }
    #[inline(always)]
    fn copysign(self, magnitude: float32x4_t, sign: float32x4_t) -> float32x4_t {
        unsafe { vbslq_f32(vdupq_n_u32(1 << 31), sign, magnitude) }
    }
    #[inline(always)]
    fn select_lt(self, a: float32x4_t, b: float32x4_t, yes: float32x4_t, no: float32x4_t) -> float32x4_t {
        unsafe { vbslq_f32(vcltq_f32(a, b), yes, no) }
    }
    #[inline(always)]
    fn pow2(self, n: float32x4_t) -> float32x4_t {
        unsafe {
            let exponent = vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127));
            vreinterpretq_f32_s32(vshlq_n_s32::<23>(exponent))
        }
    }
    #[inline(always)]
    fn transpose(self, v: &mut [float32x4_t; MAX_LANES]) {
        unsafe {
            let doubles = |v: float32x4_t| vreinterpretq_f64_f32(v);
            let [a, b, c, d] = [v[0], v[1], v[2], v[3]];
            let (ab0, ab1) = (doubles(vtrn1q_f32(a, b)), doubles(vtrn2q_f32(a, b)));
            let (cd0, cd1) = (doubles(vtrn1q_f32(c, d)), doubles(vtrn2q_f32(c, d)));
            v[0] = vreinterpretq_f32_f64(vtrn1q_f64(ab0, cd0));
            v[1] = vreinterpretq_f32_f64(vtrn1q_f64(ab1, cd1));
            v[2] = vreinterpretq_f32_f64(vtrn2q_f64(ab0, cd0));
            v[3] = vreinterpretq_f32_f64(vtrn2q_f64(ab1, cd1));
        }
    }
    #[inline(always)]
    fn reduce_add(self, a: float32x4_t) -> f32 {
        unsafe {
            let h = vadd_f32(vget_low_f32(a), vget_high_f32(a));
            vpadds_f32(h)
        }
    }
    #[inline(always)]
    fn reduce_max(self, a: float32x4_t) -> f32 {
        unsafe { vmaxvq_f32(a) }
    }

    #[inline(always)]
    unsafe fn load_f32(self, from: *const f32) -> float32x4_t {
        unsafe { vld1q_f32(from) }
    }
    #[inline(always)]
    unsafe fn store_f32(self, to: *mut f32, v: float32x4_t) {
        unsafe { vst1q_f32(to, v) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, from: *const bf16) -> float32x4_t {
        unsafe { floats(vshll_n_u16::<16>(vld1_u16(from.cast()))) }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut bf16, v: float32x4_t) {
        unsafe {
            let bits = words(v);
            let odd = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
            let up = vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), odd);
            // a NaN keeps its upper bits and becomes quiet, so that rounding cannot carry it into infinity
            let quiet = vorrq_u32(bits, vdupq_n_u32(0x0040_0000));
            let rounded = vbslq_u32(vceqq_f32(v, v), up, quiet);
            vst1_u16(to.cast(), vshrn_n_u32::<16>(rounded));
        }
    }
    #[inline(always)]
    unsafe fn load_f16(self, from: *const f16) -> float32x4_t {
        unsafe { vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from.cast()))) }
    }
    #[inline(always)]
    unsafe fn store_f16(self, to: *mut f16, v: float32x4_t) {
        unsafe { vst1_u16(to.cast(), vreinterpret_u16_f16(vcvt_f16_f32(v))) }
    }

    #[inline(always)]
    fn halves(self, pairs: float32x4_t) -> [float32x4_t; 2] {
        unsafe {
            let bits = words(pairs);
            [floats(vshlq_n_u32::<16>(bits)), floats(vandq_u32(bits, vdupq_n_u32(0xffff_0000)))]
        }
    }
    #[inline(always)]
    fn dot_pairs(self, a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        if LAST < BF16 {
            let ([a0, a1], [b0, b1]) = (self.halves(a), self.halves(b));
            return self.fma(a1, b1, self.fma(a0, b0, c));
        }
        unsafe { bfdot(c, a, b) }
    }
    #[inline(always)]
    fn dot_quads(self, a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        unsafe {
            let (a, b, c) = (vreinterpretq_s8_f32(a), vreinterpretq_u8_f32(b), vreinterpretq_s32_f32(c));
            vreinterpretq_f32_s32(match LAST {
                NONE => widening_dot(c, a, b),
                // a b = a (b - 128) + 128 a: what of it depends on a alone is computed once where a is multiplied by several b
                DOT => {
                    let less = sdot(vdupq_n_s32(0), a, vdupq_n_s8(-128));
                    let signed = vreinterpretq_s8_u8(veorq_u8(b, vdupq_n_u8(0x80)));
                    sdot(vsubq_s32(c, less), a, signed)
                }
                _ => usdot(c, b, a),
            })
        }
    }
    #[inline(always)]
    fn add_integers(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { floats(vaddq_u32(words(a), words(b))) }
    }
    #[inline(always)]
    fn integers(self, integers: float32x4_t) -> float32x4_t {
        unsafe { vcvtq_f32_s32(vreinterpretq_s32_f32(integers)) }
    }
    #[inline(always)]
    fn and(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { floats(vandq_u32(words(a), words(b))) }
    }
    #[inline(always)]
    fn or(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { floats(vorrq_u32(words(a), words(b))) }
    }
    #[inline(always)]
    fn shift_left<const BITS: u32>(self, v: float32x4_t) -> float32x4_t {
        unsafe { floats(vshlq_u32(words(v), vdupq_n_s32(BITS as i32))) }
    }
    #[inline(always)]
    fn shift_right<const BITS: u32>(self, v: float32x4_t) -> float32x4_t {
        // a negative count shifts the other way
        unsafe { floats(vshlq_u32(words(v), vdupq_n_s32(-(BITS as i32)))) }
    }
    #[inline(always)]
    fn lookup(self, table: &[u8; 16], bytes: float32x4_t) -> float32x4_t {
        unsafe { vreinterpretq_f32_u8(vqtbl1q_u8(vld1q_u8(table.as_ptr()), vreinterpretq_u8_f32(bytes))) }
    }
    #[inline(always)]
    unsafe fn load_u8(self, from: *const u8) -> float32x4_t {
        unsafe {
            // four bytes, not the eight of the shortest vector
            let word = vdup_n_u32(from.cast::<u32>().read_unaligned());
            vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(vreinterpret_u8_u32(word)))))
        }
    }
    #[inline(always)]
    unsafe fn load_i8(self, from: *const i8) -> float32x4_t {
        unsafe {
            let word = vdup_n_u32(from.cast::<u32>().read_unaligned());
            vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u32(word)))))
        }
    }
}
