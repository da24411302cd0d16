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
                "exp2" => math::exp2_falling(s, x),
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
    if Neon::detect().is_some() {
        run("neon", input.to_vec(), |m| Neon::detect().unwrap().vectorise(m));
    }
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
fn exp2_of_what_is_below_zero_is_close_and_falls_to_zero() {
    let input = sweep(-126.4, 0.0);
    with_each(&input, "exp2", |isa, out| {
        for (x, y) in input.iter().zip(out) {
            let error = (f64::from(*y) / f64::from(*x).exp2() - 1.0).abs();
            assert!(error <= 3e-7, "{isa}: 2^{x} = {y}, relative error {error}");
        }
    });
    let edges = [0.0, -0.0, -1e-40, -1.0, -126.0, -126.6, -127.0, -1e30, f32::NEG_INFINITY, f32::NAN];
    with_each(&edges, "exp2", |isa, out| {
        assert_eq!(&out[..5], &[1.0, 1.0, 1.0, 0.5, f32::MIN_POSITIVE], "{isa}");
        assert!(out[5..9].iter().all(|y| *y == 0.0) && out[9].is_nan(), "{isa} {out:?}");
    });
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
    Neon::detect().into_iter().for_each(all);
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

/// Words, halves, bytes and integers against their scalar definitions.
struct Words {
    isa: &'static str,
    a: [u32; MAX_LANES],
    b: [u32; MAX_LANES],
    c: [u32; MAX_LANES],
}

impl Kernel for Words {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Words { isa, a, b, c } = self;
        let table: [u8; 16] = std::array::from_fn(|i| (i * 37 + 200) as u8);
        let vector = |words: [u32; MAX_LANES]| s.load(&words.map(f32::from_bits));
        let [va, vb, vc] = [vector(a), vector(b), vector(c)];
        let same = |what: &str, got: S::V, right: &dyn Fn(usize) -> u32| {
            let got = s.to_array(got).map(f32::to_bits);
            for i in 0..S::LANES {
                let of = (a[i], b[i], c[i]);
                assert_eq!(got[i], right(i), "{isa}: {what} of {of:08x?} in lane {i}");
            }
        };
        same("and", s.and(va, vb), &|i| a[i] & b[i]);
        same("or", s.or(va, vb), &|i| a[i] | b[i]);
        same("shift_left", s.shift_left::<4>(va), &|i| a[i] << 4);
        same("shift_right", s.shift_right::<4>(va), &|i| a[i] >> 4);
        same("shift_right by 0", s.shift_right::<0>(va), &|i| a[i]);
        same("add_integers", s.add_integers(va, vb), &|i| a[i].wrapping_add(b[i]));
        same("integers", s.integers(va), &|i| (a[i] as i32 as f32).to_bits());
        same("lower halves", s.halves(va)[0], &|i| a[i] << 16);
        same("upper halves", s.halves(va)[1], &|i| a[i] & 0xffff_0000);
        let low = s.splat(f32::from_bits(0x0f0f_0f0f));
        same("lookup", s.lookup(&table, s.and(va, low)), &|i| {
            u32::from_le_bytes(a[i].to_le_bytes().map(|byte| table[usize::from(byte & 15)]))
        });
        same("dot_quads", s.dot_quads(va, vb, vc), &|i| {
            let products = a[i].to_le_bytes().into_iter().zip(b[i].to_le_bytes());
            products.fold(c[i], |sum, (a, b)| sum.wrapping_add((i32::from(a as i8) * i32::from(b)) as u32))
        });
        // small integers: exact, whatever the order and the rounding
        let pair = |word: u32| [word & 0xff, word >> 8 & 0xff].map(|x| bf16::from_f32(x as f32 - 128.0));
        let pairs = |words: [u32; MAX_LANES]| {
            words.map(|word| {
                let [low, high] = pair(word);
                u32::from(low.to_bits()) | u32::from(high.to_bits()) << 16
            })
        };
        let dots = s.dot_pairs(vector(pairs(a)), vector(pairs(b)), s.splat(-3.0));
        same("dot_pairs", dots, &|i| {
            let ([a0, a1], [b0, b1]) = (pair(a[i]), pair(b[i]));
            (a0.to_f32() * b0.to_f32() + a1.to_f32() * b1.to_f32() - 3.0).to_bits()
        });
        let bytes: Vec<u8> = a.iter().flat_map(|word| word.to_le_bytes()).take(S::LANES).collect();
        // SAFETY: that many bytes are there.
        let (unsigned, signed) = unsafe { (s.load_u8(bytes.as_ptr()), s.load_i8(bytes.as_ptr().cast())) };
        same("load_u8", unsigned, &|i| f32::from(bytes[i]).to_bits());
        same("load_i8", signed, &|i| f32::from(bytes[i] as i8).to_bits());
    }
}

/// The same words in every run (Knuth's linear congruence, upper halves).
fn random_words() -> impl FnMut() -> u32 {
    let mut state = 1u64;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 32) as u32
    }
}

#[test]
fn words_are_what_their_scalar_definitions_say() {
    let mut random = random_words();
    let edges = [0, u32::MAX, 0x8080_8080, 0x7f7f_7f7f, 0x80ff_7f00, 0x8000_0000, 0x7fff_ffff, 0x0102_0304];
    for round in 0..300 {
        let mut words = || {
            std::array::from_fn(|_| {
                let word = random();
                if word.is_multiple_of(3) { edges[(word >> 8) as usize % edges.len()] } else { word }
            })
        };
        let (a, b, c) = (words(), words(), words());
        // a word of which both operands are extreme, whose sums would not fit i16
        let (a, b) = if round == 0 { ([0x8080_8080; MAX_LANES], [u32::MAX; MAX_LANES]) } else { (a, b) };
        for_each(|isa| Words { isa, a, b, c });
    }
}

/// Sums of pairs that no format holds exactly, against their unit roundoff.
struct PairSums {
    a: [u32; MAX_LANES],
    b: [u32; MAX_LANES],
    c: [u32; MAX_LANES],
}

impl Kernel for PairSums {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // a bf16 of at least 2^-down, below twice that
        let half = |down: u32, fraction: u32| (0x3f80 - (down << 7)) | (fraction & 0x7f);
        let pair = |word: u32| f32::from_bits((half(word >> 28, word >> 16) << 16) | half(0, word));
        let (pairs, others) = (self.a.map(pair), self.b.map(pair));
        let start = self.c.map(|word| f32::from_bits((half(word & 15, 0) << 16) | (word >> 9)));
        // all are positive, so that neither sum is larger than the last
        let sums = s.to_array(s.dot_pairs(s.load(&pairs), s.load(&others), s.load(&start)));
        for i in 0..S::LANES {
            let [[a0, a1], [b0, b1]] = [pairs[i], others[i]].map(|word| {
                let halves = [word.to_bits() as u16, (word.to_bits() >> 16) as u16];
                halves.map(|half| f64::from(bf16::from_bits(half)))
            });
            let right = a0 * b0 + a1 * b1 + f64::from(start[i]);
            let error = (f64::from(sums[i]) - right).abs() / right;
            assert!(error <= 2.0 * S::PAIRS_UNIT, "{}: {} is off by {error:e} of {right}", S::NAME, sums[i]);
        }
    }
}

#[test]
fn sums_of_pairs_keep_to_their_unit_roundoff() {
    let mut random = random_words();
    for _ in 0..2000 {
        let mut words = || std::array::from_fn(|_| random());
        let (a, b, c) = (words(), words(), words());
        for_each(|_| PairSums { a, b, c });
    }
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

struct Transpose;

impl Kernel for Transpose {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let rows: [[f32; MAX_LANES]; MAX_LANES] =
            std::array::from_fn(|i| std::array::from_fn(|j| (100 * i + j) as f32));
        let mut square = rows.map(|row| s.load(&row));
        s.transpose(&mut square);
        for (j, v) in square[..S::LANES].iter().enumerate() {
            for (i, lane) in s.to_array(*v)[..S::LANES].iter().enumerate() {
                assert_eq!(*lane, rows[i][j], "{} {i} {j}", S::NAME);
            }
        }
    }
}

#[test]
fn a_square_is_turned() {
    for_each(|_| Transpose);
}

struct Parts;

impl Kernel for Parts {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let bytes: [u8; 4 * MAX_LANES] = std::array::from_fn(|i| i as u8 + 1);
        let numbers: [f32; MAX_LANES] = std::array::from_fn(|i| i as f32 + 1.0);
        for count in 0..=4 * S::LANES {
            // SAFETY: that many are there.
            let words = s.to_array(unsafe { s.load_bytes(bytes.as_ptr(), count) });
            let mut want = [0; 4 * MAX_LANES];
            want[..count].copy_from_slice(&bytes[..count]);
            assert_eq!(bytemuck::cast_slice::<f32, u8>(&words), want, "{} {count}", S::NAME);
        }
        for count in 0..=S::LANES {
            let mut to = [-1.0; MAX_LANES];
            // SAFETY: as many fit.
            unsafe { s.store_first(to.as_mut_ptr(), count, s.load(&numbers)) };
            let mut want = [-1.0; MAX_LANES];
            want[..count].copy_from_slice(&numbers[..count]);
            assert_eq!(to, want, "{} {count}", S::NAME);
        }
        let row = |first: u16| -> [u16; 2 * MAX_LANES] { std::array::from_fn(|i| first + i as u16) };
        let (x, y) = (row(100), row(200));
        let [v, w] = [x, y].map(|row| s.load(bytemuck::cast_slice::<u16, f32>(&row)));
        let words = s.in_order(s.pair_up(v, w)).map(|v| s.to_array(v));
        for i in 0..2 * S::LANES {
            let word = words[i / S::LANES][i % S::LANES].to_bits();
            assert_eq!([word as u16, (word >> 16) as u16], [x[i], y[i]], "{} {i}", S::NAME);
        }
    }
}

#[test]
fn parts_of_vectors_and_pairs_of_rows() {
    for_each(|_| Parts);
}

/// [`Simd::dot_codes`] of these activations and codes, whose bytes are cut down to what each format may have.
struct Codes {
    a: [u32; 8],
    b: [[u32; MAX_LANES]; 8],
}

impl Codes {
    #[inline(always)]
    fn check<S: Simd, const MOST: i32, const OFFSET: i32>(&self, s: S) {
        let at_most = |word: u32| u32::from_le_bytes(word.to_le_bytes().map(|b| b.min(MOST as u8)));
        let a = self.a.map(|word| word.to_le_bytes().map(|b| (b as i8).max(-127)));
        let b = self.b.map(|words| words.map(at_most));
        let words = a.map(|a| f32::from_bits(u32::from_le_bytes(a.map(|a| a as u8))));
        let vectors = b.map(|words| s.load(&words.map(f32::from_bits)));
        let sum =
            |range: std::ops::Range<usize>| a[range].iter().flatten().map(|&a| i32::from(a)).sum::<i32>();
        let less = |range| s.splat(f32::from_bits(-sum(range) as u32));
        // SAFETY: there are that many words.
        let (all, half) = unsafe {
            let half = vectors.as_chunks::<4>().0[1];
            let dots = s.dot_codes::<MOST, OFFSET, 4>(words[4..].as_ptr(), &half, less(4..8));
            (s.dot_codes::<MOST, OFFSET, 8>(words.as_ptr(), &vectors, less(0..8)), dots)
        };
        for (from, got) in [(0, s.to_array(all)), (4, s.to_array(half))] {
            for lane in 0..S::LANES {
                let bytes =
                    a[from..].iter().zip(&b[from..]).flat_map(|(a, b)| a.iter().zip(b[lane].to_le_bytes()));
                let right: i32 = bytes.map(|(&a, b)| i32::from(a) * (i32::from(b) - OFFSET)).sum();
                assert_eq!(
                    got[lane].to_bits() as i32,
                    right,
                    "{}: {MOST} less {OFFSET}, lane {lane}",
                    S::NAME
                );
            }
        }
    }
}

impl Kernel for &Codes {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.check::<S, 15, 8>(s);
        self.check::<S, 15, 0>(s);
        self.check::<S, 24, 12>(s);
        self.check::<S, 63, 32>(s);
        self.check::<S, 255, 128>(s);
    }
}

#[test]
fn dot_products_of_codes_are_exact_even_of_the_largest() {
    let mut random = random_words();
    for a in [0x7f7f_7f7f, 0x8181_8181, 0x817f_817f, 0x8080_8080] {
        for b in [0u32, u32::MAX, 0xff00_ff00, 0x8080_8080, 0x7f80_7f80] {
            let codes = Codes { a: [a; 8], b: [[b; MAX_LANES]; 8] };
            for_each(|_| &codes);
        }
    }
    for _ in 0..300 {
        let codes = Codes {
            a: std::array::from_fn(|_| random()),
            b: std::array::from_fn(|_| std::array::from_fn(|_| random())),
        };
        for_each(|_| &codes);
    }
}
