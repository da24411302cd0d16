//! Vectors of f32, written once and compiled per instruction set.
//!
//! Code that wants vectors is a [`Kernel`]: `run` is generic over a [`Simd`] token and marked `#[inline(always)]`, as is every generic
//! function that it calls with the token. [`Simd::vectorise`] calls it from a function that carries the instruction set's
//! `#[target_feature]`, so that all of it, inlined there, is compiled with those instructions; the rest of the crate is compiled for
//! the baseline. A token is proof that the processor has the instructions, which is why its arithmetic is safe.
//!
//! ```text
//! struct Scale<'a> { data: &'a mut [f32], by: f32 }
//! impl Kernel for Scale<'_> {
//!     type Output = ();
//!     #[inline(always)]
//!     fn run<S: Simd>(self, s: S) {
//!         let by = s.splat(self.by);
//!         for chunk in self.data.chunks_mut(S::LANES) {
//!             let x = s.load_or(chunk, 0.0);
//!             s.store_some(chunk, s.mul(x, by));
//!         }
//!     }
//! }
//! // in a row's body, which is generic over `S` and holds a token `s: S`:
//! s.vectorise(Scale { data, by });
//! ```
//!
//! Do not use closures in such code: they are compiled on their own, without the instruction set, unless inlined by luck.
//!
//! Rows are monomorphised per instruction set: their `reject` asks `refusal::<Avx2>(info)`, their `prepare` takes `token::<Avx2>()`.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod element;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod leave;
pub(crate) mod math;
mod missing;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::{Avx512, Avx512Bf16, Avx512Vnni};
pub(crate) use element::{E4m3, Element};
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(crate) use leave::may_use_tiles;
#[cfg(not(target_arch = "x86_64"))]
pub(crate) use missing::{Avx2, Avx512, Avx512Bf16, Avx512Vnni};
#[cfg(not(target_arch = "aarch64"))]
pub(crate) use missing::{Neon, NeonBf16, NeonDot, NeonI8mm};
#[cfg(target_arch = "aarch64")]
pub(crate) use neon::{Neon, NeonBf16, NeonDot, NeonI8mm};
pub(crate) use portable::Portable;

use crate::device::CpuCaps;
use crate::features::Features;
use half::{bf16, f16};
use perjoule_kernels::{DeviceInfo, Error, Numerics, Reason, Result};

/// The most lanes of any instruction set.
pub(crate) const MAX_LANES: usize = 16;

/// Vector code, generic over the instruction set.
pub(crate) trait Kernel {
    /// What it returns.
    type Output;
    /// The code. Mark it `#[inline(always)]`.
    fn run<S: Simd>(self, s: S) -> Self::Output;
}

/// An instruction set, as a token that exists only where the processor has it.
///
/// Arithmetic is lane by lane, rounded to nearest even, with denormals.
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    /// Lanes of a vector.
    const LANES: usize;
    /// Registers that a micro-kernel may count on.
    const REGISTERS: usize;
    /// Its name as rows end in it and as [`refusal`] prints it.
    const NAME: &'static str;
    /// Whether [`Simd::dot_codes`] has instructions for bytes, where [`Simd::dot_quads`] has none.
    const DOT_CODES: bool = false;
    /// Whether [`Simd::dot_quads`] is an instruction, or has one at its heart.
    const DOT_QUADS: bool = false;
    /// Unit roundoff of the sums in [`Simd::dot_pairs`].
    const PAIRS_UNIT: f64 = Numerics::F32.unit;
    /// A vector of [`Simd::LANES`] f32. Some methods take its lanes for *words*: 32 bits that hold two bf16, four bytes, or an i32.
    type V: Copy;

    /// The token, where the processor has the instructions.
    fn detect() -> Option<Self>;
    /// Whether a device may use it.
    fn allowed(features: Features) -> bool;
    /// Runs `kernel` compiled for this instruction set.
    fn vectorise<K: Kernel>(self, kernel: K) -> K::Output;

    /// `x` in every lane.
    fn splat(self, x: f32) -> Self::V;
    /// a + b
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// a - b
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    /// a b
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// a / b
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// a b + c, with one rounding where the instruction set fuses it and with two in portable code.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger, and `b` where either is NaN: `max(limit, x)` keeps a NaN in `x`.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// The smaller, and `b` where either is NaN.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// |a|
    fn abs(self, a: Self::V) -> Self::V;
    /// |magnitude| with the sign of `sign`.
    fn copysign(self, magnitude: Self::V, sign: Self::V) -> Self::V;
    /// `yes` where a < b, and `no` elsewhere (NaN included).
    fn select_lt(self, a: Self::V, b: Self::V, yes: Self::V, no: Self::V) -> Self::V;
    /// 2^n for integral n in -126..=127.
    fn pow2(self, n: Self::V) -> Self::V;
    /// a 2^n for integral n in -252..=254, rounded once: a product with two powers, of which the first is exact.
    #[inline(always)]
    fn scale_pow2(self, a: Self::V, n: Self::V) -> Self::V {
        // adding 1.5 * 2^23 pushes the fraction out
        let magic = self.splat(12_582_912.0);
        let half = self.sub(self.fma(n, self.splat(0.5), magic), magic);
        self.mul(self.mul(a, self.pow2(half)), self.pow2(self.sub(n, half)))
    }
    /// [`Simd::reduce_add`] of 16 vectors.
    #[inline(always)]
    fn reduce_adds(self, vectors: &[Self::V; 16]) -> [f32; 16] {
        let mut sums = [0.0; 16];
        for (sum, v) in sums.iter_mut().zip(vectors) {
            *sum = self.reduce_add(*v);
        }
        sums
    }
    /// Turns the square of the first [`Simd::LANES`] vectors: lane `j` of vector `i` becomes lane `i` of vector `j`.
    #[inline(always)]
    fn transpose(self, square: &mut [Self::V; MAX_LANES]) {
        let rows = square.map(|v| self.to_array(v));
        for (i, v) in square.iter_mut().take(Self::LANES).enumerate() {
            *v = self.load(&rows.map(|row| row[i]));
        }
    }
    /// Sum of the lanes: halves are added to each other, so the order is fixed.
    fn reduce_add(self, a: Self::V) -> f32;
    /// Largest lane. Which value NaN lanes lead to is not defined.
    fn reduce_max(self, a: Self::V) -> f32;

    /// The bf16 in the lower halves of words, and those in the upper halves.
    fn halves(self, words: Self::V) -> [Self::V; 2];
    /// c + the dot products of the two bf16 in each word of a and b. The order of the additions, their roundings, and whether
    /// subnormal numbers count as zero, differ between instruction sets.
    #[inline(always)]
    fn dot_pairs(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        let ([a0, a1], [b0, b1]) = (self.halves(a), self.halves(b));
        self.fma(a1, b1, self.fma(a0, b0, c))
    }
    /// Words of the elements of two vectors of bf16 at the same place, those of `x` in the lower halves: two vectors of them, in an order
    /// that [`Simd::in_order`] undoes.
    #[inline(always)]
    fn pair_up(self, x: Self::V, y: Self::V) -> [Self::V; 2] {
        let (x, y) = (self.to_array(x), self.to_array(y));
        let [x, y]: [&[u16]; 2] = [bytemuck::cast_slice(&x), bytemuck::cast_slice(&y)];
        let mut words = [[0.0f32; MAX_LANES]; 2];
        for (i, (x, y)) in x.iter().zip(y).take(2 * Self::LANES).enumerate() {
            words[i / Self::LANES][i % Self::LANES] = f32::from_bits(u32::from(*y) << 16 | u32::from(*x));
        }
        words.map(|words| self.load(&words))
    }
    /// See [`Simd::pair_up`].
    #[inline(always)]
    fn in_order(self, vectors: [Self::V; 2]) -> [Self::V; 2] {
        vectors
    }
    /// Words of `low` and `high`, both rounded to the nearest bf16; whether subnormal numbers become zero differs between instruction
    /// sets.
    #[inline(always)]
    fn pairs(self, low: Self::V, high: Self::V) -> Self::V {
        let mut halves = [[bf16::ZERO; MAX_LANES]; 2];
        self.store(&mut halves[0], low);
        self.store(&mut halves[1], high);
        let mut words = [0.0f32; MAX_LANES];
        for ((word, low), high) in words.iter_mut().zip(halves[0]).zip(halves[1]) {
            *word = f32::from_bits(u32::from(high.to_bits()) << 16 | u32::from(low.to_bits()));
        }
        self.load(&words)
    }
    /// c + the dot products of the four bytes in each word: those of a are i8, those of b u8, c and the result i32, which wrap.
    fn dot_quads(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// Dot products of codes: the sum of [`Simd::dot_quads`] over words of `a`, each the same for all lanes, and vectors `b`, from whose
    /// bytes `OFFSET` is subtracted. These are at most `MOST`; those of `a` are -127 at least, and `less` is their sum, negated.
    ///
    /// # Safety
    /// `a` has `N` words to read.
    #[inline(always)]
    unsafe fn dot_codes<const MOST: i32, const OFFSET: i32, const N: usize>(
        self,
        a: *const f32,
        b: &[Self::V; N],
        less: Self::V,
    ) -> Self::V {
        // two chains, which hide half of the latency
        let mut chains = [self.times::<OFFSET>(less), self.splat(0.0)];
        for (j, b) in b.iter().enumerate() {
            let chain = &mut chains[if N > 4 { 2 * j / N } else { 0 }];
            // SAFETY: the contract.
            *chain = self.dot_quads(self.splat(unsafe { *a.add(j) }), *b, *chain);
        }
        if N > 4 { self.add_integers(chains[0], chains[1]) } else { chains[0] }
    }
    /// Words that are i32, times `N`, which is 255 at most.
    #[inline(always)]
    fn times<const N: i32>(self, x: Self::V) -> Self::V {
        let mut product = self.splat(0.0);
        /// Adds `x` shifted by each bit that is set.
        macro_rules! bits {
            ($($bit:literal)*) => {
                $(if N >> $bit & 1 == 1 {
                    product = self.add_integers(product, self.shift_left::<$bit>(x));
                })*
            };
        }
        bits!(0 1 2 3 4 5 6 7);
        product
    }
    /// a + b of words that are i32, which wrap.
    fn add_integers(self, a: Self::V, b: Self::V) -> Self::V;

    /// The nearest f32 of words that are i32.
    fn integers(self, words: Self::V) -> Self::V;
    /// Bits that are set in both.
    fn and(self, a: Self::V, b: Self::V) -> Self::V;
    /// Bits that are set in either.
    fn or(self, a: Self::V, b: Self::V) -> Self::V;
    /// Each word shifted towards its upper bits.
    fn shift_left<const BITS: u32>(self, words: Self::V) -> Self::V;
    /// Each word shifted towards its lower bits, zeros coming in.
    fn shift_right<const BITS: u32>(self, words: Self::V) -> Self::V;
    /// The entries of `table` at each byte, which is below 16.
    fn lookup(self, table: &[u8; 16], bytes: Self::V) -> Self::V;

    /// Loads and converts, exactly.
    ///
    /// # Safety
    /// As [`Simd::load_f32`].
    unsafe fn load_u8(self, from: *const u8) -> Self::V;
    /// Loads and converts, exactly.
    ///
    /// # Safety
    /// As [`Simd::load_f32`].
    unsafe fn load_i8(self, from: *const i8) -> Self::V;
    /// Asks for the cache line at an address to be brought in, where there is an instruction for it. Any address will do.
    #[inline(always)]
    fn prefetch<T>(self, _: *const T) {}
    /// Asks for `bytes` bytes that lie `ahead` of `at`, of a stream from memory whose multiplication takes so many instructions that the
    /// processor would look too few lines ahead. How far `ahead` is for 22 lines on their way and no more: measured on Zen 2, and left
    /// out where there are more registers, which cores with longer windows have.
    #[inline(always)]
    fn prefetch_stream<T>(self, at: *const T, bytes: usize, ahead: usize) {
        if Self::REGISTERS < 32 && ahead > 0 {
            for line in (0..bytes).step_by(64) {
                self.prefetch(at.cast::<u8>().wrapping_add(ahead + line));
            }
        }
    }
    /// [`Simd::prefetch`] for the second-level cache only.
    #[inline(always)]
    fn prefetch_l2<T>(self, _: *const T) {}
    /// Loads [`Simd::LANES`] elements.
    ///
    /// # Safety
    /// They are readable; no alignment is needed.
    unsafe fn load_f32(self, from: *const f32) -> Self::V;
    /// Stores [`Simd::LANES`] elements.
    ///
    /// # Safety
    /// They are writable; no alignment is needed.
    unsafe fn store_f32(self, to: *mut f32, v: Self::V);
    /// The first `bytes` bytes, at most a vector of them, and zeros behind them.
    ///
    /// # Safety
    /// They are readable; no alignment is needed.
    #[inline(always)]
    unsafe fn load_bytes(self, from: *const u8, bytes: usize) -> Self::V {
        let mut words = [0.0f32; MAX_LANES];
        let bytes = bytes.min(4 * Self::LANES);
        // SAFETY: that many are readable, and `words` has room for them.
        unsafe { std::ptr::copy_nonoverlapping(from, words.as_mut_ptr().cast(), bytes) };
        self.load(&words)
    }
    /// Stores the first `count` lanes, at most all of them.
    ///
    /// # Safety
    /// That many are writable; no alignment is needed.
    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, count: usize, v: Self::V) {
        let lanes = self.to_array(v);
        // SAFETY: that many are writable, and `lanes` has as many.
        unsafe { std::ptr::copy_nonoverlapping(lanes.as_ptr(), to, count.min(Self::LANES)) }
    }
    /// Loads and widens, exactly.
    ///
    /// # Safety
    /// As [`Simd::load_f32`].
    unsafe fn load_bf16(self, from: *const bf16) -> Self::V;
    /// Rounds to nearest even and stores; NaN stays NaN.
    ///
    /// # Safety
    /// As [`Simd::store_f32`].
    unsafe fn store_bf16(self, to: *mut bf16, v: Self::V);
    /// Loads and widens, exactly.
    ///
    /// # Safety
    /// As [`Simd::load_f32`].
    unsafe fn load_f16(self, from: *const f16) -> Self::V;
    /// Rounds to nearest even and stores; NaN stays NaN, what is too large becomes infinite.
    ///
    /// # Safety
    /// As [`Simd::store_f32`].
    unsafe fn store_f16(self, to: *mut f16, v: Self::V);

    /// The first [`Simd::LANES`] elements of `from`.
    ///
    /// # Panics
    /// When there are fewer.
    #[inline(always)]
    fn load<T: Element>(self, from: &[T]) -> Self::V {
        assert!(from.len() >= Self::LANES);
        // SAFETY: that many are there.
        unsafe { T::load(self, from.as_ptr()) }
    }

    /// Stores to the first [`Simd::LANES`] elements of `to`.
    ///
    /// # Panics
    /// When there are fewer.
    #[inline(always)]
    fn store<T: Element>(self, to: &mut [T], v: Self::V) {
        assert!(to.len() >= Self::LANES);
        // SAFETY: that many are there.
        unsafe { T::store(self, to.as_mut_ptr(), v) }
    }

    /// The first elements of `from`, and `fill` in the lanes for which there are none.
    #[inline(always)]
    fn load_or<T: Element>(self, from: &[T], fill: f32) -> Self::V {
        if from.len() >= Self::LANES {
            return self.load(from);
        }
        let mut lanes = [fill; MAX_LANES];
        for (lane, x) in lanes.iter_mut().zip(from) {
            *lane = x.widen();
        }
        self.load(&lanes)
    }

    /// Stores as many lanes as `to` has room for.
    #[inline(always)]
    fn store_some<T: Element>(self, to: &mut [T], v: Self::V) {
        if to.len() >= Self::LANES {
            return self.store(to, v);
        }
        let mut lanes = [T::ZERO; MAX_LANES];
        self.store(&mut lanes, v);
        for (x, lane) in to.iter_mut().zip(&lanes) {
            *x = *lane;
        }
    }

    /// The lanes, in an array whose rest is 0.
    #[inline(always)]
    fn to_array(self, v: Self::V) -> [f32; MAX_LANES] {
        let mut lanes = [0.0; MAX_LANES];
        self.store(&mut lanes, v);
        lanes
    }
}

/// Runs `kernel` in a function of its own, where inner loops have all registers for themselves.
#[inline(never)]
pub(crate) fn apart<S: Simd, K: Kernel>(s: S, kernel: K) -> K::Output {
    s.vectorise(kernel)
}

/// Why rows for `S` do not run on this device; `None` when they do.
pub(crate) fn refusal<S: Simd>(info: &DeviceInfo) -> Option<Reason> {
    let allowed = info.caps::<CpuCaps>().is_some_and(|caps| S::allowed(caps.features));
    if allowed && S::detect().is_some() {
        return None;
    }
    let which = if S::detect().is_some() { "is masked" } else { "this CPU lacks" };
    Some(Reason::lacking(format!("needs {}, which {which}", S::NAME)))
}

/// The token, for a row's `prepare`.
pub(crate) fn token<S: Simd>() -> Result<S> {
    S::detect().ok_or_else(|| Error::Unsupported {
        what: "this kernel",
        why: format!("the processor lacks {}; let `select` choose a row", S::NAME),
    })
}

/// Calls `$test::<S>(token)` for every instruction set that this processor has.
#[cfg(test)]
pub(crate) fn for_each<K: Kernel<Output = ()>>(mut kernel: impl FnMut(&'static str) -> K) {
    Portable.vectorise(kernel(Portable::NAME));
    if let Some(s) = Avx2::detect() {
        s.vectorise(kernel(Avx2::NAME));
    }
    if let Some(s) = Avx512::detect() {
        s.vectorise(kernel(Avx512::NAME));
    }
    if let Some(s) = Avx512Vnni::detect() {
        s.vectorise(kernel(Avx512Vnni::NAME));
    }
    if let Some(s) = Avx512Bf16::detect() {
        s.vectorise(kernel(Avx512Bf16::NAME));
    }
    if let Some(s) = Neon::detect() {
        s.vectorise(kernel(Neon::NAME));
    }
    if let Some(s) = NeonDot::detect() {
        s.vectorise(kernel(NeonDot::NAME));
    }
    if let Some(s) = NeonI8mm::detect() {
        s.vectorise(kernel(NeonI8mm::NAME));
    }
    if let Some(s) = NeonBf16::detect() {
        s.vectorise(kernel(NeonBf16::NAME));
    }
}

#[cfg(test)]
mod tests;
