//! Four lanes in an array: the 128-bit vectors of every baseline, as well as the compiler finds them.

use super::{Kernel, Simd};
use crate::features::Features;
use half::{bf16, f16};

/// No instruction set beyond the baseline.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

const LANES: usize = 4;

/// Four f32, aligned so that the compiler may use a whole vector.
#[derive(Clone, Copy)]
#[repr(align(16))]
pub(crate) struct V4([f32; LANES]);

/// `$body` for every lane, with `$i` its index.
macro_rules! lanes {
    ($i:ident => $body:expr) => {{
        let mut out = [0.0f32; LANES];
        let mut $i = 0;
        while $i < LANES {
            out[$i] = $body;
            $i += 1;
        }
        V4(out)
    }};
}

impl Simd for Portable {
    const LANES: usize = LANES;
    const REGISTERS: usize = 16;
    const NAME: &'static str = "portable";
    type V = V4;

    fn detect() -> Option<Self> {
        Some(Portable)
    }
    fn allowed(_: Features) -> bool {
        true
    }
    #[inline]
    fn vectorise<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> V4 {
        V4([x; LANES])
    }
    #[inline(always)]
    fn add(self, a: V4, b: V4) -> V4 {
        lanes!(i => a.0[i] + b.0[i])
    }
    #[inline(always)]
    fn sub(self, a: V4, b: V4) -> V4 {
        lanes!(i => a.0[i] - b.0[i])
    }
    #[inline(always)]
    fn mul(self, a: V4, b: V4) -> V4 {
        lanes!(i => a.0[i] * b.0[i])
    }
    #[inline(always)]
    fn div(self, a: V4, b: V4) -> V4 {
        lanes!(i => a.0[i] / b.0[i])
    }
    #[inline(always)]
    fn fma(self, a: V4, b: V4, c: V4) -> V4 {
        lanes!(i => a.0[i] * b.0[i] + c.0[i])
    }
    #[inline(always)]
    fn max(self, a: V4, b: V4) -> V4 {
        lanes!(i => if a.0[i] > b.0[i] { a.0[i] } else { b.0[i] })
    }
    #[inline(always)]
    fn min(self, a: V4, b: V4) -> V4 {
        lanes!(i => if a.0[i] < b.0[i] { a.0[i] } else { b.0[i] })
    }
    #[inline(always)]
    fn abs(self, a: V4) -> V4 {
        lanes!(i => a.0[i].abs())
    }
    #[inline(always)]
    fn copysign(self, magnitude: V4, sign: V4) -> V4 {
        lanes!(i => magnitude.0[i].copysign(sign.0[i]))
    }
    #[inline(always)]
    fn select_lt(self, a: V4, b: V4, yes: V4, no: V4) -> V4 {
        lanes!(i => if a.0[i] < b.0[i] { yes.0[i] } else { no.0[i] })
    }
    #[inline(always)]
    fn pow2(self, n: V4) -> V4 {
        // adding 1.5 * 2^23 leaves n in the low bits of the significand
        lanes!(i => f32::from_bits((n.0[i] + (12_582_912.0 + 127.0)).to_bits() << 23))
    }
    #[inline(always)]
    fn reduce_add(self, a: V4) -> f32 {
        (a.0[0] + a.0[2]) + (a.0[1] + a.0[3])
    }
    #[inline(always)]
    fn reduce_max(self, a: V4) -> f32 {
        let mut max = a.0[0];
        for &x in &a.0[1..] {
            max = if max > x { max } else { x };
        }
        max
    }

    #[inline(always)]
    unsafe fn load_f32(self, from: *const f32) -> V4 {
        // SAFETY: four elements are readable by the contract.
        V4(unsafe { from.cast::<[f32; LANES]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store_f32(self, to: *mut f32, v: V4) {
        // SAFETY: four elements are writable by the contract.
        unsafe { to.cast::<[f32; LANES]>().write_unaligned(v.0) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, from: *const bf16) -> V4 {
        // SAFETY: four elements are readable by the contract.
        let bits = unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
        lanes!(i => f32::from_bits(u32::from(bits[i]) << 16))
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut bf16, v: V4) {
        let mut out = [bf16::ZERO; LANES];
        for (to, x) in out.iter_mut().zip(v.0) {
            *to = bf16::from_f32(x);
        }
        // SAFETY: four elements are writable by the contract.
        unsafe { to.cast::<[bf16; LANES]>().write_unaligned(out) }
    }
    #[inline(always)]
    unsafe fn load_f16(self, from: *const f16) -> V4 {
        // SAFETY: four elements are readable by the contract.
        let h = unsafe { from.cast::<[f16; LANES]>().read_unaligned() };
        lanes!(i => h[i].to_f32())
    }
    #[inline(always)]
    unsafe fn store_f16(self, to: *mut f16, v: V4) {
        let mut out = [f16::ZERO; LANES];
        for (to, x) in out.iter_mut().zip(v.0) {
            *to = f16::from_f32(x);
        }
        // SAFETY: four elements are writable by the contract.
        unsafe { to.cast::<[f16; LANES]>().write_unaligned(out) }
    }

    #[inline(always)]
    fn halves(self, words: V4) -> [V4; 2] {
        let low = lanes!(i => f32::from_bits(words.0[i].to_bits() << 16));
        [low, lanes!(i => f32::from_bits(words.0[i].to_bits() & 0xffff_0000))]
    }
    #[inline(always)]
    fn dot_quads(self, a: V4, b: V4, c: V4) -> V4 {
        let dot = |i: usize| {
            let (a, b) = (a.0[i].to_bits().to_le_bytes(), b.0[i].to_bits().to_le_bytes());
            let products = a.iter().zip(b).map(|(&a, b)| i32::from(a as i8) * i32::from(b));
            f32::from_bits(c.0[i].to_bits().wrapping_add(products.sum::<i32>() as u32))
        };
        lanes!(i => dot(i))
    }
    #[inline(always)]
    fn add_integers(self, a: V4, b: V4) -> V4 {
        lanes!(i => f32::from_bits(a.0[i].to_bits().wrapping_add(b.0[i].to_bits())))
    }
    #[inline(always)]
    fn and(self, a: V4, b: V4) -> V4 {
        lanes!(i => f32::from_bits(a.0[i].to_bits() & b.0[i].to_bits()))
    }
    #[inline(always)]
    fn or(self, a: V4, b: V4) -> V4 {
        lanes!(i => f32::from_bits(a.0[i].to_bits() | b.0[i].to_bits()))
    }
    #[inline(always)]
    fn shift_left<const BITS: u32>(self, words: V4) -> V4 {
        lanes!(i => f32::from_bits(words.0[i].to_bits() << BITS))
    }
    #[inline(always)]
    fn shift_right<const BITS: u32>(self, words: V4) -> V4 {
        lanes!(i => f32::from_bits(words.0[i].to_bits() >> BITS))
    }
    #[inline(always)]
    fn lookup(self, table: &[u8; 16], bytes: V4) -> V4 {
        let look = |word: f32| word.to_bits().to_le_bytes().map(|byte| table[usize::from(byte & 15)]);
        lanes!(i => f32::from_bits(u32::from_le_bytes(look(bytes.0[i]))))
    }
    #[inline(always)]
    fn integers(self, words: V4) -> V4 {
        lanes!(i => words.0[i].to_bits() as i32 as f32)
    }
    #[inline(always)]
    unsafe fn load_u8(self, from: *const u8) -> V4 {
        // SAFETY: four elements are readable by the contract.
        let bytes = unsafe { from.cast::<[u8; LANES]>().read_unaligned() };
        lanes!(i => f32::from(bytes[i]))
    }
    #[inline(always)]
    unsafe fn load_i8(self, from: *const i8) -> V4 {
        // SAFETY: four elements are readable by the contract.
        let bytes = unsafe { from.cast::<[i8; LANES]>().read_unaligned() };
        lanes!(i => f32::from(bytes[i]))
    }
}
