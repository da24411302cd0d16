//! Stand-ins for instruction sets of another architecture: their tokens cannot exist, so their rows refuse everywhere.

use super::{Kernel, Portable, Simd};
use crate::features::Features;
use half::{bf16, f16};
use std::convert::Infallible;

macro_rules! missing {
    ($token:ident, $name:literal, $lanes:literal, $registers:literal) => {
        /// Not on this architecture.
        #[derive(Clone, Copy)]
        pub(crate) struct $token(Infallible);

        missing!(@impl $token, $name, $lanes, $registers,
            binary add sub mul div max min copysign add_integers and or; unary abs pow2 integers; reduce reduce_add reduce_max;
            memory load_f32 store_f32 f32, load_bf16 store_bf16 bf16, load_f16 store_f16 f16);
    };
    (@impl $token:ident, $name:literal, $lanes:literal, $registers:literal,
        binary $($binary:ident)*; unary $($unary:ident)*; reduce $($reduce:ident)*;
        memory $($load:ident $store:ident $element:ty),*) => {
        impl Simd for $token {
            const LANES: usize = $lanes;
            const REGISTERS: usize = $registers;
            const NAME: &'static str = $name;
            type V = <Portable as Simd>::V;

            fn detect() -> Option<Self> {
                None
            }
            fn allowed(_: Features) -> bool {
                false
            }
            fn vectorise<K: Kernel>(self, _: K) -> K::Output {
                match self.0 {}
            }
            fn splat(self, _: f32) -> Self::V {
                match self.0 {}
            }
            fn fma(self, _: Self::V, _: Self::V, _: Self::V) -> Self::V {
                match self.0 {}
            }
            fn shift_left<const BITS: u32>(self, _: Self::V) -> Self::V {
                match self.0 {}
            }
            fn shift_right<const BITS: u32>(self, _: Self::V) -> Self::V {
                match self.0 {}
            }
            fn lookup(self, _: &[u8; 16], _: Self::V) -> Self::V {
                match self.0 {}
            }
            unsafe fn load_u8(self, _: *const u8) -> Self::V {
                match self.0 {}
            }
            unsafe fn load_i8(self, _: *const i8) -> Self::V {
                match self.0 {}
            }
            fn halves(self, _: Self::V) -> [Self::V; 2] {
                match self.0 {}
            }
            fn dot_quads(self, _: Self::V, _: Self::V, _: Self::V) -> Self::V {
                match self.0 {}
            }
            fn select_lt(self, _: Self::V, _: Self::V, _: Self::V, _: Self::V) -> Self::V {
                match self.0 {}
            }
            $(fn $binary(self, _: Self::V, _: Self::V) -> Self::V {
                match self.0 {}
            })*
            $(fn $unary(self, _: Self::V) -> Self::V {
                match self.0 {}
            })*
            $(fn $reduce(self, _: Self::V) -> f32 {
                match self.0 {}
            })*
            $(unsafe fn $load(self, _: *const $element) -> Self::V {
                match self.0 {}
            }
            unsafe fn $store(self, _: *mut $element, _: Self::V) {
                match self.0 {}
            })*
        }
    };
}

#[cfg(not(target_arch = "x86_64"))]
mod x86 {
    use super::*;
    missing!(Avx2, "avx2", 8, 16);
    missing!(Avx512, "avx512", 16, 32);
    missing!(Avx512Vnni, "avx512vnni", 16, 32);
    missing!(Avx512Bf16, "avx512bf16", 16, 32);
}
#[cfg(not(target_arch = "x86_64"))]
pub(crate) use x86::*;

#[cfg(not(target_arch = "aarch64"))]
mod arm {
    use super::*;
    missing!(Neon, "neon", 4, 32);
    missing!(NeonDot, "neondot", 4, 32);
    missing!(NeonI8mm, "neoni8mm", 4, 32);
    missing!(NeonBf16, "neonbf16", 4, 32);
}
#[cfg(not(target_arch = "aarch64"))]
pub(crate) use arm::*;
