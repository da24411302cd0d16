//! Every instruction set of this processor against f64 and against the scalar definitions.

use super::*;

/// Applies `f` of `math` to `data` in place.
struct Map<'a> {
    function: &'static str,
    data: &'a mut [f32],
}

impl Kernel for Map<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for chunk in self.data.chunks_mut(S::LANES) {
            let x = s.load_or(chunk, 0.0);
            let y = match self.function {
                "exp" => math::exp(s, x),
                "tanh" => math::tanh(s, x),
                "erf" => math::erf(s, x),
                "silu" => math::silu(s, x),
                "sigmoid" => math::sigmoid(s, x),
                "gelu" => math::gelu(s, x),
                _ => math::gelu_tanh(s, x),
            };
            s.store_some(chunk, y);
        }
    }
}

fn with_each(input: &[f32], function: &'static str, check: impl Fn(&str, &[f32])) {
    let run = |name, mut data: Vec<f32>, isa: fn(Map<'_>)| {
        isa(Map { function, data: &mut data });
        check(name, &data);
    };
    run("portable", input.to_vec(), |m| Portable.vectorise(m));
    if Avx2::detect().is_some() {
        run("avx2", input.to_vec(), |m| Avx2::detect().unwrap().vectorise(m));
    }
    if Avx512::detect().is_some() {
        run("avx512", input.to_vec(), |m| Avx512::detect().unwrap().vectorise(m));
    }
}

fn sweep(from: f32, to: f32) -> Vec<f32> {
    let count = 100_003;
    (0..=count).map(|i| from + (to - from) * i as f32 / count as f32).collect()
}

/// Distance between neighbouring f32 at `x`.
fn ulp(x: f64) -> f64 {
    let x = (x as f32).abs();
    f64::from(f32::from_bits(x.to_bits() + 1)) - f64::from(x)
}

#[test]
fn exp_is_within_two_units_denormals_included() {
    let input = sweep(-104.5, 88.7);
    with_each(&input, "exp", |isa, out| {
        for (x, y) in input.iter().zip(out) {
            let truth = f64::from(*x).exp();
            let error = (f64::from(*y) - truth).abs() / ulp(truth);
            assert!(error <= 2.0, "{isa}: exp({x}) = {y}, {error} units off");
        }
    });
    let edges = [f32::NEG_INFINITY, -1e30, 0.0, -0.0, 1e-40, 88.722_83, 89.0, 1e30, f32::INFINITY, f32::NAN];
    with_each(&edges, "exp", |isa, out| {
        assert_eq!(&out[..5], &[0.0, 0.0, 1.0, 1.0, 1.0], "{isa}");
        assert!(
            out[5].is_finite() && out[6..9].iter().all(|y| *y == f32::INFINITY) && out[9].is_nan(),
            "{isa} {out:?}"
        );
    });
}

#[test]
fn activations_follow_their_definitions() {
    let mut input = sweep(-12.0, 12.0);
    input.extend((0..300).flat_map(|i| [1.09f32.powi(-i), -(1.09f32.powi(-i))]));
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    type Case = (&'static str, fn(f64) -> f64, f64, f64);
    // absolute tolerance as a multiple of |x| and of the result
    let cases: [Case; 5] = [
        ("tanh", f64::tanh, 0.0, 4e-7),
        ("erf", |x| 2.0 * Activation::Gelu.apply(x * 2f64.sqrt()) / (x * 2f64.sqrt()) - 1.0, 0.0, 4e-7),
        ("silu", |x| Activation::Silu.apply(x), 0.0, 5e-7),
        ("gelu", |x| Activation::Gelu.apply(x), 1.5e-7, 4e-7),
        ("gelu_tanh", |x| Activation::GeluTanh.apply(x), 3e-7, 4e-7),
    ];
    for (function, truth, of_x, of_result) in cases {
        with_each(&input, function, |isa, out| {
            for (x, y) in input.iter().zip(out) {
                let t = truth(f64::from(*x));
                // the f64 formula for erf cancels to 2^-52, which the last term allows for
                let allowed = of_x * f64::from(x.abs()) + of_result * t.abs() + 4e-16;
                assert!((f64::from(*y) - t).abs() <= allowed, "{isa}: {function}({x}) = {y}, expected {t}");
            }
        });
        with_each(&[f32::NAN, f32::INFINITY], function, |isa, out| {
            assert!(out[0].is_nan(), "{isa} {function}");
            assert!(out[1] >= 1.0, "{isa} {function}: {}", out[1]);
        });
    }
    with_each(&input, "sigmoid", |isa, out| {
        for (x, y) in input.iter().zip(out) {
            let t = sigmoid(f64::from(*x));
            assert!((f64::from(*y) - t).abs() <= 4e-7 * t, "{isa}: sigmoid({x}) = {y}");
        }
    });
}

/// Stores f32 as `T` and widens it again.
struct Through<'a, T> {
    input: &'a [f32],
    output: &'a mut [T],
    back: &'a mut [f32],
}

impl<T: Element> Kernel for Through<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let vectors = self.input.chunks(S::LANES).zip(self.output.chunks_mut(S::LANES));
        for ((from, to), back) in vectors.zip(self.back.chunks_mut(S::LANES)) {
            s.store_some(to, s.load_or(from, 0.0));
            s.store_some(back, s.load_or(to, 0.0));
        }
    }
}

fn conversions<T: Element>(s: impl Simd) {
    // every exponent, halfway cases of both 16-bit types, both signs, NaN with low bits only
    let mut input: Vec<f32> = Vec::new();
    for exponent in 0..256u32 {
        for low in
            [0, 1, 0x7fff, 0x8000, 0x8001, 0x1_8000, 0xfff, 0x1000, 0x1001, 0x3000, 0x7f_ffff, 0x40_0000]
        {
            let bits = (exponent << 23) | low;
            input.extend([f32::from_bits(bits), f32::from_bits(bits | 0x8000_0000)]);
        }
    }
    let mut output = vec![T::ZERO; input.len()];
    let mut back = vec![0.0; input.len()];
    s.vectorise(Through { input: &input, output: &mut output, back: &mut back });
    for ((x, y), b) in input.iter().zip(&output).zip(&back) {
        let expected = T::narrow(*x).widen();
        let same = y.widen().to_bits() == expected.to_bits() && b.to_bits() == expected.to_bits();
        assert!(
            same || (x.is_nan() && y.widen().is_nan() && b.is_nan()),
            "{} of {x:e}: {b:e}, expected {expected:e}",
            T::DTYPE
        );
    }
}

#[test]
fn conversions_equal_the_scalar_ones() {
    fn all(s: impl Simd) {
        conversions::<f32>(s);
        conversions::<bf16>(s);
        conversions::<f16>(s);
        conversions::<E4m3>(s);
    }
    all(Portable);
    Avx2::detect().into_iter().for_each(all);
    Avx512::detect().into_iter().for_each(all);
}

/// What is left of the arithmetic.
struct Arithmetic;

impl Kernel for Arithmetic {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let x: Vec<f32> = (0..S::LANES).map(|i| i as f32 - 3.0).collect();
        let v = s.load(&x);
        assert_eq!(s.reduce_add(v), x.iter().sum::<f32>());
        assert_eq!(s.reduce_max(s.sub(s.splat(0.0), v)), 3.0);
        let nan = s.splat(f32::NAN);
        assert!(
            s.reduce_add(s.max(s.splat(1.0), nan)).is_nan()
                && s.reduce_add(s.min(s.splat(1.0), nan)).is_nan()
        );
        assert_eq!(s.reduce_max(s.max(nan, s.splat(1.0))), 1.0);
        let sign = s.to_array(s.copysign(s.splat(2.0), v));
        let less = s.to_array(s.select_lt(v, s.splat(0.0), s.splat(5.0), nan));
        for i in 0..S::LANES {
            assert_eq!(sign[i], 2f32.copysign(x[i]));
            assert!(if x[i] < 0.0 { less[i] == 5.0 } else { less[i].is_nan() });
        }
        assert_eq!(s.to_array(s.pow2(s.splat(-126.0)))[0], f32::MIN_POSITIVE);
        assert_eq!(s.to_array(s.pow2(s.splat(127.0)))[S::LANES - 1], 2f32.powi(127));
        assert_eq!(s.to_array(s.abs(s.splat(-9.0)))[0], 9.0);
        assert_eq!(s.to_array(s.div(s.mul(v, v), s.splat(3.0)))[0], 3.0);
    }
}

/// Rounding into words, and sums of 16 vectors at once.
struct WordsAndSums;

impl Kernel for WordsAndSums {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // halfway cases, both signs, what rounds to infinity, and what is not finite; subnormal numbers may become zero
        let numbers = [1.003_906_3, -1.011_718_8, 3.0e38, f32::MAX, f32::INFINITY, f32::NAN, 0.1, -0.0];
        let low: Vec<f32> = (0..S::LANES).map(|i| numbers[i % 8]).collect();
        let high: Vec<f32> = (0..S::LANES).map(|i| numbers[(3 * i + 1) % 8]).collect();
        let words = s.to_array(s.pairs(s.load(&low), s.load(&high)));
        for i in 0..S::LANES {
            let word = words[i].to_bits();
            for (bits, x) in [(word as u16, low[i]), ((word >> 16) as u16, high[i])] {
                let (got, right) = (bf16::from_bits(bits), bf16::from_f32(x));
                assert!(got == right || (got.is_nan() && x.is_nan()), "{}: {x} {got}", S::NAME);
            }
        }
        let mut vectors = [s.splat(0.0); 16];
        for (i, v) in vectors.iter_mut().enumerate() {
            let x: Vec<f32> = (0..S::LANES).map(|j| (i * i * S::LANES + j * j) as f32).collect();
            *v = s.load(&x);
        }
        for (v, sum) in vectors.iter().zip(s.reduce_adds(&vectors)) {
            assert_eq!(s.reduce_add(*v), sum, "{}", S::NAME);
        }
    }
}

#[test]
fn words_are_rounded_and_vectors_summed() {
    for_each(|_| WordsAndSums);
    Avx512Bf16::detect().into_iter().for_each(|s| s.vectorise(WordsAndSums));
}

#[test]
fn arithmetic_is_lane_by_lane() {
    for_each(|_| Arithmetic);
}

use perjoule_kernels::op::Activation;

#[test]
fn f8_is_converted_as_it_is_defined() {
    use perjoule_kernels::float8::{e4m3_to_f32, f32_to_e4m3};
    for code in 0..=255u8 {
        let (got, right) = (E4m3(code).widen(), e4m3_to_f32(code));
        assert!(got.to_bits() == right.to_bits() || (got.is_nan() && right.is_nan()), "{code}: {got}");
    }
    // every exponent and sign with all roundings of the fraction
    for bits in (0..=u32::MAX >> 8).map(|high| high << 8).chain((0..=u32::MAX).step_by(4093)) {
        let x = f32::from_bits(bits);
        assert_eq!(E4m3::narrow(x).0, f32_to_e4m3(x), "{x} {bits:#x}");
    }
}
