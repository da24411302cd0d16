//! Elementary functions on vectors.
//!
//! Polynomials interpolate at Chebyshev nodes; their errors stay below the rounding errors of the f32 evaluation.

use super::Simd;
use perjoule_kernels::op::Activation;
use std::f32::consts::LN_2;

/// `c[0] + c[1] x + c[2] x^2 + ..`
#[inline(always)]
pub(crate) fn polynomial<S: Simd, const N: usize>(s: S, x: S::V, c: [f32; N]) -> S::V {
    let mut sum = s.splat(c[N - 1]);
    let mut i = N - 1;
    while i > 0 {
        i -= 1;
        sum = s.fma(sum, x, s.splat(c[i]));
    }
    sum
}

/// e^x to about one unit in the last place, denormal results included; 0 for -inf, inf for what overflows, NaN for NaN.
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::V) -> S::V {
    // beyond these the result is 0 or infinite anyway, and 2^n stays within two factors; in this order NaN stays NaN
    let x = s.min(s.splat(90.0), s.max(s.splat(-105.0), x));
    // n = round(x / ln 2): adding 1.5 * 2^23 pushes the fraction out
    let magic = s.splat(12_582_912.0);
    let n = s.sub(s.fma(x, s.splat(std::f32::consts::LOG2_E), magic), magic);
    // r = x - n ln 2, with ln 2 in two parts of which the first has trailing zeros, so that n times it is exact
    let r = s.fma(n, s.splat(-0.693_115_23), x);
    let r = s.fma(n, s.splat(-3.194_618_5e-5), r);
    let q = polynomial(s, r, [0.5, 0.166_665_77, 0.041_666_555, 0.008_363_173, 0.001_392_617_6]);
    let p = s.add(s.fma(s.mul(r, r), q, r), s.splat(1.0));
    // denormal and infinite results come out of one rounding
    s.scale_pow2(p, n)
}

/// 2^x for x up to 0, with a relative error of 3e-7; 0 below -126.5, for -inf too, and NaN for NaN. What weights of a softmax take: their
/// exponents have been rounded as far, and what is lost beside a weight of 1 counts for nothing.
#[inline(always)]
pub(crate) fn exp2_falling<S: Simd>(s: S, x: S::V) -> S::V {
    let x = s.max(s.splat(-127.0), x);
    // the sum's low bits are the exponent of 2^round(x), biased, which is 0 with that of 0 for -127
    let magic = s.splat(12_582_912.0 + 127.0);
    let sum = s.add(x, magic);
    let r = s.sub(x, s.sub(sum, magic));
    let p = polynomial(s, r, [1.0, LN_2, 0.240_223_5, 0.055_503_81, 0.009_666_368, 0.001_338_130_2]);
    s.mul(p, s.shift_left::<23>(sum))
}

/// 1 / (1 + e^-x)
#[inline(always)]
pub(crate) fn sigmoid<S: Simd>(s: S, x: S::V) -> S::V {
    let one = s.splat(1.0);
    s.div(one, s.add(one, exp(s, s.sub(s.splat(0.0), x))))
}

/// x / (1 + e^-x)
#[inline(always)]
pub(crate) fn silu<S: Simd>(s: S, x: S::V) -> S::V {
    s.div(x, s.add(s.splat(1.0), exp(s, s.sub(s.splat(0.0), x))))
}

/// tanh x to a few units in the last place.
#[inline(always)]
pub(crate) fn tanh<S: Simd>(s: S, x: S::V) -> S::V {
    let a = s.abs(x);
    let z = s.mul(x, x);
    let q = polynomial(s, z, [-0.333_333_3, 0.133_327_7, -0.053_850_91, 0.020_997_18, -0.006_096_714]);
    let small = s.fma(s.mul(x, z), q, x);
    let e = s.add(exp(s, s.add(a, a)), s.splat(1.0));
    let large = s.copysign(s.sub(s.splat(1.0), s.div(s.splat(2.0), e)), x);
    // NaN compares false, and `large` carries it
    s.select_lt(a, s.splat(0.625), small, large)
}

/// erf x with an absolute error of about 1e-7, and a relative one like it below 1: the rounding of f32. In exact arithmetic the two
/// polynomials, `erf(x) / x - 1` in `x^2` below 1 and `ln erfc(x)` above, would leave 7e-9.
#[inline(always)]
pub(crate) fn erf<S: Simd>(s: S, x: S::V) -> S::V {
    let a = s.abs(x);
    let q = polynomial(
        s,
        s.mul(x, x),
        [
            0.128_379_17,
            -0.376_126_27,
            0.112_835_95,
            -0.026_854_212,
            0.005_189_087_4,
            -0.000_801_686_4,
            7.875_875e-5,
        ],
    );
    let small = s.fma(x, q, x);
    // ln erfc(a); from 4 on erf is 1 in f32
    let l = polynomial(
        s,
        s.min(s.splat(4.0), a),
        [
            0.000_320_138_05,
            -1.130_233_4,
            -0.631_826_05,
            -0.110_080_08,
            0.026_421_136,
            -0.004_759_596,
            0.000_596_805_6,
            -4.605_804e-5,
            1.637_151_4e-6,
        ],
    );
    let large = s.copysign(s.sub(s.splat(1.0), exp(s, l)), x);
    s.select_lt(a, s.splat(1.0), small, large)
}

/// x Phi(x) by the error function.
#[inline(always)]
pub(crate) fn gelu<S: Simd>(s: S, x: S::V) -> S::V {
    let e = erf(s, s.mul(x, s.splat(std::f32::consts::FRAC_1_SQRT_2)));
    let half = s.mul(x, s.splat(0.5));
    s.mul(half, s.add(s.splat(1.0), e))
}

/// The tanh approximation of GELU (arXiv:1606.08415, section 2).
#[inline(always)]
pub(crate) fn gelu_tanh<S: Simd>(s: S, x: S::V) -> S::V {
    let cube = s.mul(s.mul(x, x), s.mul(x, s.splat(0.044715)));
    let t = tanh(s, s.mul(s.add(x, cube), s.splat(0.797_884_6)));
    s.mul(s.mul(x, s.splat(0.5)), s.add(s.splat(1.0), t))
}

/// One of the activations of an epilogue.
#[inline(always)]
pub(crate) fn activate<S: Simd>(s: S, activation: Activation, x: S::V) -> S::V {
    match activation {
        Activation::None => x,
        Activation::Silu => silu(s, x),
        Activation::Gelu => gelu(s, x),
        Activation::GeluTanh => gelu_tanh(s, x),
    }
}
