//! AVX-512 (F, BW, DQ, VL): sixteen lanes; and the same with dot products of bytes (VNNI) and of bf16 (BF16).

use super::{Kernel, Simd};
use crate::features::Features;
use half::{bf16, f16};
use std::arch::x86_64::*;

/// The processor has AVX-512 F, BW, DQ and VL, what [`super::Avx2`] has, and the extensions up to that one: only [`Simd::detect`] makes
/// one.
#[derive(Clone, Copy)]
pub(crate) struct WithExtension<const LAST: u8>(());

const NONE: u8 = 0;
const VNNI: u8 = 1;
const BF16: u8 = 2;

/// Without extensions.
pub(crate) type Avx512 = WithExtension<NONE>;
/// With dot products of four bytes.
pub(crate) type Avx512Vnni = WithExtension<VNNI>;
/// With dot products of four bytes and of two bf16.
pub(crate) type Avx512Bf16 = WithExtension<BF16>;

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn vectorise<const LAST: u8, K: Kernel>(s: WithExtension<LAST>, kernel: K) -> K::Output {
    kernel.run(s)
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn vectorise_vnni<const LAST: u8, K: Kernel>(s: WithExtension<LAST>, kernel: K) -> K::Output {
    kernel.run(s)
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")]
fn vectorise_bf16<const LAST: u8, K: Kernel>(s: WithExtension<LAST>, kernel: K) -> K::Output {
    kernel.run(s)
}

/// Words whose upper halves are `v` rounded to the nearest bf16.
///
/// # Safety
/// The processor has AVX-512 F.
#[inline(always)]
unsafe fn rounded(v: __m512) -> __m512i {
    // SAFETY: by the contract.
    unsafe {
        let bits = _mm512_castps_si512(v);
        let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        let up = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
        // a NaN keeps its upper bits and becomes quiet, so that rounding cannot carry it into infinity
        let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x0040_0000));
        _mm512_mask_blend_epi32(_mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v), up, quiet)
    }
}

/// Elements of the first and the second half of a vector of 32 in turn.
const TAKE_TURNS: [u16; 32] = {
    let mut order = [0; 32];
    let mut i = 0;
    while i < 32 {
        order[i] = (i / 2 + i % 2 * 16) as u16;
        i += 1;
    }
    order
};

// SAFETY of every block below: a token exists only where the processor has the instructions; pointers are valid by the contract of
// the trait's method.
#[allow(clippy::undocumented_unsafe_blocks, reason = "one reason holds for all; it stands above")]
impl<const LAST: u8> Simd for WithExtension<LAST> {
    const LANES: usize = 16;
    const REGISTERS: usize = 32;
    const NAME: &'static str = match LAST {
        NONE => "avx512",
        VNNI => "avx512vnni",
        _ => "avx512bf16",
    };
    const DOT_QUADS: bool = LAST >= VNNI;
    type V = __m512;

    fn detect() -> Option<Self> {
        Self::allowed(Features::of_processor()).then_some(WithExtension(()))
    }
    fn allowed(features: Features) -> bool {
        match LAST {
            NONE => features.avx512,
            VNNI => features.avx512_vnni,
            _ => features.avx512_bf16,
        }
    }
    #[inline(always)]
    fn vectorise<K: Kernel>(self, kernel: K) -> K::Output {
        unsafe {
            match LAST {
                NONE => vectorise(self, kernel),
                VNNI => vectorise_vnni(self, kernel),
                _ => vectorise_bf16(self, kernel),
            }
        }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    fn abs(self, a: __m512) -> __m512 {
        unsafe { _mm512_andnot_ps(_mm512_set1_ps(-0.0), a) }
    }
    #[inline(always)]
    fn copysign(self, magnitude: __m512, sign: __m512) -> __m512 {
        unsafe {
            let mask = _mm512_set1_ps(-0.0);
            _mm512_or_ps(_mm512_andnot_ps(mask, magnitude), _mm512_and_ps(mask, sign))
        }
    }
    #[inline(always)]
    fn select_lt(self, a: __m512, b: __m512, yes: __m512, no: __m512) -> __m512 {
        unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), no, yes) }
    }
    #[inline(always)]
    fn pow2(self, n: __m512) -> __m512 {
        unsafe {
            let exponent = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(exponent))
        }
    }
    #[inline(always)]
    fn scale_pow2(self, a: __m512, n: __m512) -> __m512 {
        unsafe { _mm512_scalef_ps(a, n) }
    }
    #[inline(always)]
    fn reduce_adds(self, v: &[__m512; 16]) -> [f32; 16] {
        // each step adds halves of two vectors, so that one vector holds what is left of both
        unsafe {
            let mut quads = [_mm512_setzero_ps(); 4];
            for (i, quad) in quads.iter_mut().enumerate() {
                let [a, b, c, d] = [v[i], v[i + 4], v[i + 8], v[i + 12]];
                let ab = _mm512_add_ps(
                    _mm512_shuffle_f32x4::<0b01_00_01_00>(a, b),
                    _mm512_shuffle_f32x4::<0b11_10_11_10>(a, b),
                );
                let cd = _mm512_add_ps(
                    _mm512_shuffle_f32x4::<0b01_00_01_00>(c, d),
                    _mm512_shuffle_f32x4::<0b11_10_11_10>(c, d),
                );
                // of each of the four vectors four lanes are left, side by side
                *quad = _mm512_add_ps(
                    _mm512_shuffle_f32x4::<0b10_00_10_00>(ab, cd),
                    _mm512_shuffle_f32x4::<0b11_01_11_01>(ab, cd),
                );
            }
            let [a, b, c, d] = quads;
            let ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
            let cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
            let sums = _mm512_add_ps(
                _mm512_shuffle_ps::<0b01_00_01_00>(ab, cd),
                _mm512_shuffle_ps::<0b11_10_11_10>(ab, cd),
            );
            let mut out = [0.0; 16];
            _mm512_storeu_ps(out.as_mut_ptr(), sums);
            out
        }
    }
    #[inline(always)]
    fn transpose(self, v: &mut [__m512; 16]) {
        unsafe {
            // squares of four by four within quarters of vectors
            for quad in v.as_chunks_mut::<4>().0 {
                let [a, b, c, d] = *quad;
                let (ab0, ab1) = (_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
                let (cd0, cd1) = (_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
                *quad = [
                    _mm512_shuffle_ps::<0b01_00_01_00>(ab0, cd0),
                    _mm512_shuffle_ps::<0b11_10_11_10>(ab0, cd0),
                    _mm512_shuffle_ps::<0b01_00_01_00>(ab1, cd1),
                    _mm512_shuffle_ps::<0b11_10_11_10>(ab1, cd1),
                ];
            }
            // and then the square of quarters
            for i in 0..4 {
                let [a, b, c, d] = [v[i], v[i + 4], v[i + 8], v[i + 12]];
                let ab0 = _mm512_shuffle_f32x4::<0b01_00_01_00>(a, b);
                let ab1 = _mm512_shuffle_f32x4::<0b11_10_11_10>(a, b);
                let cd0 = _mm512_shuffle_f32x4::<0b01_00_01_00>(c, d);
                let cd1 = _mm512_shuffle_f32x4::<0b11_10_11_10>(c, d);
                v[i] = _mm512_shuffle_f32x4::<0b10_00_10_00>(ab0, cd0);
                v[i + 4] = _mm512_shuffle_f32x4::<0b11_01_11_01>(ab0, cd0);
                v[i + 8] = _mm512_shuffle_f32x4::<0b10_00_10_00>(ab1, cd1);
                v[i + 12] = _mm512_shuffle_f32x4::<0b11_01_11_01>(ab1, cd1);
            }
        }
    }
    #[inline(always)]
    fn reduce_add(self, a: __m512) -> f32 {
        unsafe {
            let h = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a));
            let h = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps::<1>(h));
            let h = _mm_add_ps(h, _mm_movehl_ps(h, h));
            _mm_cvtss_f32(_mm_add_ss(h, _mm_movehdup_ps(h)))
        }
    }
    #[inline(always)]
    fn reduce_max(self, a: __m512) -> f32 {
        unsafe {
            let h = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a));
            let h = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps::<1>(h));
            let h = _mm_max_ps(h, _mm_movehl_ps(h, h));
            _mm_cvtss_f32(_mm_max_ss(h, _mm_movehdup_ps(h)))
        }
    }

    #[inline(always)]
    fn prefetch<T>(self, at: *const T) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
    #[inline(always)]
    fn prefetch_l2<T>(self, at: *const T) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }
    #[inline(always)]
    unsafe fn load_f32(self, from: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store_f32(self, to: *mut f32, v: __m512) {
        unsafe { _mm512_storeu_ps(to, v) }
    }
    #[inline(always)]
    unsafe fn load_bytes(self, from: *const u8, bytes: usize) -> __m512 {
        unsafe {
            let mask = u64::MAX.checked_shr(64 - bytes.min(64) as u32).unwrap_or(0);
            _mm512_castsi512_ps(_mm512_maskz_loadu_epi8(mask, from.cast()))
        }
    }
    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, count: usize, v: __m512) {
        unsafe { _mm512_mask_storeu_ps(to, ((1u32 << count.min(16)) - 1) as u16, v) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, from: *const bf16) -> __m512 {
        unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut bf16, v: __m512) {
        unsafe {
            let rounded = _mm512_srli_epi32::<16>(rounded(v));
            _mm256_storeu_si256(to.cast(), _mm512_cvtepi32_epi16(rounded));
        }
    }
    #[inline(always)]
    unsafe fn load_f16(self, from: *const f16) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }
    #[inline(always)]
    unsafe fn store_f16(self, to: *mut f16, v: __m512) {
        unsafe { _mm256_storeu_si256(to.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v)) }
    }

    #[inline(always)]
    fn halves(self, words: __m512) -> [__m512; 2] {
        unsafe {
            let words = _mm512_castps_si512(words);
            let low = _mm512_slli_epi32::<16>(words);
            let high = _mm512_and_si512(words, _mm512_set1_epi32(0xffff_0000u32 as i32));
            [_mm512_castsi512_ps(low), _mm512_castsi512_ps(high)]
        }
    }
    #[inline(always)]
    fn dot_pairs(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        if LAST < BF16 {
            let ([a0, a1], [b0, b1]) = (self.halves(a), self.halves(b));
            return self.fma(a1, b1, self.fma(a0, b0, c));
        }
        unsafe {
            // the same 512 bits as vectors of pairs
            let (a, b) =
                (std::mem::transmute::<__m512, __m512bh>(a), std::mem::transmute::<__m512, __m512bh>(b));
            _mm512_dpbf16_ps(c, a, b)
        }
    }
    #[inline(always)]
    fn pair_up(self, x: __m512, y: __m512) -> [__m512; 2] {
        unsafe {
            // within quarters, so that each half of a quarter becomes one of either vector
            let (x, y) = (_mm512_castps_si512(x), _mm512_castps_si512(y));
            [_mm512_unpacklo_epi16(x, y), _mm512_unpackhi_epi16(x, y)].map(|v| _mm512_castsi512_ps(v))
        }
    }
    #[inline(always)]
    fn in_order(self, [low, high]: [__m512; 2]) -> [__m512; 2] {
        unsafe {
            let evens = _mm512_shuffle_f32x4::<0b01_00_01_00>(low, high);
            let odds = _mm512_shuffle_f32x4::<0b11_10_11_10>(low, high);
            // quarters 0, 2, 1, 3 of either
            [
                _mm512_shuffle_f32x4::<0b11_01_10_00>(evens, evens),
                _mm512_shuffle_f32x4::<0b11_01_10_00>(odds, odds),
            ]
        }
    }
    #[inline(always)]
    fn pairs(self, low: __m512, high: __m512) -> __m512 {
        unsafe {
            if LAST >= BF16 {
                // the same 512 bits as 32 elements, those of `low` first
                let halves = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
                let order = _mm512_loadu_si512(TAKE_TURNS.as_ptr().cast());
                return _mm512_castsi512_ps(_mm512_permutexvar_epi16(order, halves));
            }
            let low = _mm512_srli_epi32::<16>(rounded(low));
            let high = _mm512_and_si512(rounded(high), _mm512_set1_epi32(0xffff_0000u32 as i32));
            _mm512_castsi512_ps(_mm512_or_si512(low, high))
        }
    }
    #[inline(always)]
    fn dot_quads(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe {
            let [a, b, c] = [_mm512_castps_si512(a), _mm512_castps_si512(b), _mm512_castps_si512(c)];
            if LAST >= VNNI {
                return _mm512_castsi512_ps(_mm512_dpbusd_epi32(c, b, a));
            }
            // bytes 0 and 2 of a word, then 1 and 3, as pairs of i16, whose products cannot overflow
            let bytes = _mm512_set1_epi16(0xff);
            let (a0, a1) = (_mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(a)), _mm512_srai_epi16::<8>(a));
            let (b0, b1) = (_mm512_and_si512(b, bytes), _mm512_srli_epi16::<8>(b));
            let sums = _mm512_add_epi32(_mm512_madd_epi16(a0, b0), _mm512_madd_epi16(a1, b1));
            _mm512_castsi512_ps(_mm512_add_epi32(c, sums))
        }
    }
    #[inline(always)]
    fn add_integers(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b))) }
    }
    #[inline(always)]
    fn and(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_and_ps(a, b) }
    }
    #[inline(always)]
    fn or(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_or_ps(a, b) }
    }
    #[inline(always)]
    fn shift_left<const BITS: u32>(self, words: __m512) -> __m512 {
        unsafe {
            let by = _mm_cvtsi32_si128(BITS as i32);
            _mm512_castsi512_ps(_mm512_sll_epi32(_mm512_castps_si512(words), by))
        }
    }
    #[inline(always)]
    fn shift_right<const BITS: u32>(self, words: __m512) -> __m512 {
        unsafe {
            let by = _mm_cvtsi32_si128(BITS as i32);
            _mm512_castsi512_ps(_mm512_srl_epi32(_mm512_castps_si512(words), by))
        }
    }
    #[inline(always)]
    fn lookup(self, table: &[u8; 16], bytes: __m512) -> __m512 {
        unsafe {
            let table = _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_shuffle_epi8(table, _mm512_castps_si512(bytes)))
        }
    }
    #[inline(always)]
    fn integers(self, words: __m512) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_castps_si512(words)) }
    }
    #[inline(always)]
    unsafe fn load_u8(self, from: *const u8) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast()))) }
    }
    #[inline(always)]
    unsafe fn load_i8(self, from: *const i8) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))) }
    }
}
