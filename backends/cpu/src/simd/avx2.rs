//! AVX2 with FMA and F16C: eight lanes.

use super::{Kernel, MAX_LANES, Simd};
use crate::features::Features;
use half::{bf16, f16};
use std::arch::x86_64::*;

/// The processor has AVX2, FMA and F16C: only [`Simd::detect`] makes one.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

#[target_feature(enable = "avx2,fma,f16c")]
fn vectorise<K: Kernel>(s: Avx2, kernel: K) -> K::Output {
    kernel.run(s)
}

// SAFETY of every block below: a token exists only where the processor has the instructions; pointers are valid by the contract of
// the trait's method.
#[allow(clippy::undocumented_unsafe_blocks, reason = "one reason holds for all; it stands above")]
impl Simd for Avx2 {
    const LANES: usize = 8;
    const REGISTERS: usize = 16;
    const DOT_CODES: bool = true;
    const NAME: &'static str = "avx2";
    type V = __m256;

    fn detect() -> Option<Self> {
        Features::of_processor().avx2.then_some(Avx2(()))
    }
    fn allowed(features: Features) -> bool {
        features.avx2
    }
    #[inline(always)]
    fn vectorise<K: Kernel>(self, kernel: K) -> K::Output {
        unsafe { vectorise(self, kernel) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_div_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_max_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_min_ps(a, b) }
    }
    #[inline(always)]
    fn abs(self, a: __m256) -> __m256 {
        unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), a) }
    }
    #[inline(always)]
    fn copysign(self, magnitude: __m256, sign: __m256) -> __m256 {
        unsafe {
            let mask = _mm256_set1_ps(-0.0);
            _mm256_or_ps(_mm256_andnot_ps(mask, magnitude), _mm256_and_ps(mask, sign))
        }
    }
    #[inline(always)]
    fn select_lt(self, a: __m256, b: __m256, yes: __m256, no: __m256) -> __m256 {
        unsafe { _mm256_blendv_ps(no, yes, _mm256_cmp_ps::<_CMP_LT_OQ>(a, b)) }
    }
    #[inline(always)]
    fn pow2(self, n: __m256) -> __m256 {
        unsafe {
            let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent))
        }
    }
    #[inline(always)]
    fn transpose(self, v: &mut [__m256; MAX_LANES]) {
        unsafe {
            // squares of four by four within halves of vectors
            for quad in v[..8].as_chunks_mut::<4>().0 {
                let [a, b, c, d] = *quad;
                let (ab0, ab1) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
                let (cd0, cd1) = (_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
                *quad = [
                    _mm256_shuffle_ps::<0b01_00_01_00>(ab0, cd0),
                    _mm256_shuffle_ps::<0b11_10_11_10>(ab0, cd0),
                    _mm256_shuffle_ps::<0b01_00_01_00>(ab1, cd1),
                    _mm256_shuffle_ps::<0b11_10_11_10>(ab1, cd1),
                ];
            }
            // and then the square of halves
            for i in 0..4 {
                let [a, b] = [v[i], v[i + 4]];
                v[i] = _mm256_permute2f128_ps::<0x20>(a, b);
                v[i + 4] = _mm256_permute2f128_ps::<0x31>(a, b);
            }
        }
    }
    #[inline(always)]
    fn reduce_adds(self, v: &[__m256; 16]) -> [f32; 16] {
        let mut sums = [0.0; 16];
        for (v, sums) in v.as_chunks::<8>().0.iter().zip(sums.as_chunks_mut::<8>().0) {
            // each step adds halves of two vectors, as `reduce_add` does of one, so that one vector holds what is left of both
            unsafe {
                let mut halves = [_mm256_setzero_ps(); 4];
                for (i, half) in halves.iter_mut().enumerate() {
                    let [a, b] = [v[i], v[i + 4]];
                    let (low, high) =
                        (_mm256_permute2f128_ps::<0x20>(a, b), _mm256_permute2f128_ps::<0x31>(a, b));
                    *half = _mm256_add_ps(low, high);
                }
                let [a, b, c, d] = halves;
                let ab = _mm256_add_ps(
                    _mm256_shuffle_ps::<0b01_00_01_00>(a, b),
                    _mm256_shuffle_ps::<0b11_10_11_10>(a, b),
                );
                let cd = _mm256_add_ps(
                    _mm256_shuffle_ps::<0b01_00_01_00>(c, d),
                    _mm256_shuffle_ps::<0b11_10_11_10>(c, d),
                );
                let all = _mm256_add_ps(
                    _mm256_shuffle_ps::<0b10_00_10_00>(ab, cd),
                    _mm256_shuffle_ps::<0b11_01_11_01>(ab, cd),
                );
                _mm256_storeu_ps(sums.as_mut_ptr(), all);
            }
        }
        sums
    }
    #[inline(always)]
    fn reduce_add(self, a: __m256) -> f32 {
        unsafe {
            let h = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let h = _mm_add_ps(h, _mm_movehl_ps(h, h));
            _mm_cvtss_f32(_mm_add_ss(h, _mm_movehdup_ps(h)))
        }
    }
    #[inline(always)]
    fn reduce_max(self, a: __m256) -> f32 {
        unsafe {
            let h = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
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
    unsafe fn load_f32(self, from: *const f32) -> __m256 {
        unsafe { _mm256_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store_f32(self, to: *mut f32, v: __m256) {
        unsafe { _mm256_storeu_ps(to, v) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, from: *const bf16) -> __m256 {
        unsafe {
            let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut bf16, v: __m256) {
        unsafe {
            let bits = _mm256_castps_si256(v);
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let up = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
            // a NaN keeps its upper bits and becomes quiet, so that rounding cannot carry it into infinity
            let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
            let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(v, v));
            let rounded = _mm256_srli_epi32::<16>(_mm256_blendv_epi8(up, quiet, nan));
            let packed = _mm256_packus_epi32(rounded, rounded);
            let packed = _mm256_permute4x64_epi64::<0b11_01_10_00>(packed);
            _mm_storeu_si128(to.cast(), _mm256_castsi256_si128(packed));
        }
    }
    #[inline(always)]
    unsafe fn load_f16(self, from: *const f16) -> __m256 {
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
    }
    #[inline(always)]
    unsafe fn store_f16(self, to: *mut f16, v: __m256) {
        unsafe { _mm_storeu_si128(to.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v)) }
    }

    #[inline(always)]
    fn halves(self, words: __m256) -> [__m256; 2] {
        unsafe {
            let words = _mm256_castps_si256(words);
            let low = _mm256_slli_epi32::<16>(words);
            let high = _mm256_and_si256(words, _mm256_set1_epi32(0xffff_0000u32 as i32));
            [_mm256_castsi256_ps(low), _mm256_castsi256_ps(high)]
        }
    }
    #[inline(always)]
    fn dot_quads(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        unsafe {
            let [a, b, c] = [_mm256_castps_si256(a), _mm256_castps_si256(b), _mm256_castps_si256(c)];
            // bytes 0 and 2 of a word, then 1 and 3, as pairs of i16, whose products cannot overflow
            let bytes = _mm256_set1_epi16(0xff);
            let (a0, a1) = (_mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(a)), _mm256_srai_epi16::<8>(a));
            let (b0, b1) = (_mm256_and_si256(b, bytes), _mm256_srli_epi16::<8>(b));
            let sums = _mm256_add_epi32(_mm256_madd_epi16(a0, b0), _mm256_madd_epi16(a1, b1));
            _mm256_castsi256_ps(_mm256_add_epi32(c, sums))
        }
    }
    #[inline(always)]
    unsafe fn dot_codes<const MOST: i32, const OFFSET: i32, const N: usize>(
        self,
        a: *const f32,
        b: &[__m256; N],
        less: __m256,
    ) -> __m256 {
        const { assert!(MOST < 128 || OFFSET == 128) }
        // codes of eight bits become i8, and give their signs away: twice 128 times 127 is an i16 still
        let signed = MOST >= 128;
        // how many sums of two products are, too
        let most = if signed { 1 } else { i16::MAX as usize / (2 * 127 * MOST as usize) };
        unsafe {
            let ones = _mm256_set1_epi16(1);
            let less = if signed { self.splat(0.0) } else { self.times::<OFFSET>(less) };
            let mut sum = _mm256_castps_si256(less);
            let mut pairs = _mm256_setzero_si256();
            for (j, b) in b.iter().enumerate() {
                let (a, mut b) = (_mm256_set1_epi32((*a.add(j)).to_bits() as i32), _mm256_castps_si256(*b));
                let products = if signed {
                    b = _mm256_xor_si256(b, _mm256_set1_epi8(-128));
                    _mm256_maddubs_epi16(_mm256_abs_epi8(b), _mm256_sign_epi8(a, b))
                } else {
                    _mm256_maddubs_epi16(b, a)
                };
                pairs = if j % most == 0 { products } else { _mm256_add_epi16(pairs, products) };
                if (j + 1) % most == 0 || j + 1 == N {
                    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
                }
            }
            _mm256_castsi256_ps(sum)
        }
    }
    #[inline(always)]
    fn add_integers(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), _mm256_castps_si256(b))) }
    }
    #[inline(always)]
    fn and(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_and_ps(a, b) }
    }
    #[inline(always)]
    fn or(self, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_or_ps(a, b) }
    }
    #[inline(always)]
    fn shift_left<const BITS: u32>(self, words: __m256) -> __m256 {
        unsafe {
            let by = _mm_cvtsi32_si128(BITS as i32);
            _mm256_castsi256_ps(_mm256_sll_epi32(_mm256_castps_si256(words), by))
        }
    }
    #[inline(always)]
    fn shift_right<const BITS: u32>(self, words: __m256) -> __m256 {
        unsafe {
            let by = _mm_cvtsi32_si128(BITS as i32);
            _mm256_castsi256_ps(_mm256_srl_epi32(_mm256_castps_si256(words), by))
        }
    }
    #[inline(always)]
    fn lookup(self, table: &[u8; 16], bytes: __m256) -> __m256 {
        unsafe {
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
            _mm256_castsi256_ps(_mm256_shuffle_epi8(table, _mm256_castps_si256(bytes)))
        }
    }
    #[inline(always)]
    fn integers(self, words: __m256) -> __m256 {
        unsafe { _mm256_cvtepi32_ps(_mm256_castps_si256(words)) }
    }
    #[inline(always)]
    unsafe fn load_u8(self, from: *const u8) -> __m256 {
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast()))) }
    }
    #[inline(always)]
    unsafe fn load_i8(self, from: *const i8) -> __m256 {
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast()))) }
    }
}
