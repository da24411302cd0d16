//! Element types: the storage formats of tensors.
//!
//! Plain types store one element in a whole number of bytes. Block formats store a fixed run of consecutive
//! elements together with their scales; their scales are part of the type, so one operand holds the whole
//! tensor. All types are stored little-endian. [`crate::block`] converts every type to and from `f32`.

use std::fmt;
use std::str::FromStr;

/// The storage type of a tensor's elements.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum DType {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// bfloat16: the upper half of a binary32.
    BF16,
    /// OCP 8-bit float E4M3: no infinities, largest finite value 448 (see [`crate::float8`]).
    F8E4M3,
    /// Signed 8-bit integer.
    I8,
    /// Signed 32-bit integer.
    I32,
    /// Unsigned 32-bit integer.
    U32,
    /// 32 elements of 8 bits with an f16 scale (see [`crate::block::q8_0`]).
    Q8_0,
    /// 32 elements of 4 bits with an f16 scale (see [`crate::block::q4_0`]).
    Q4_0,
    /// 256 elements of 4 bits in 8 groups, each with a 6-bit scale and a 6-bit minimum (see
    /// [`crate::block::q4_k`]).
    Q4K,
    /// 256 elements of 6 bits in 16 groups, each with an 8-bit scale (see [`crate::block::q6_k`]).
    Q6K,
    /// 32 elements of 4-bit floats (E2M1) with a shared power-of-two scale, as OCP MX defines (see
    /// [`crate::block::mxfp4`]).
    MxFp4,
}

impl DType {
    /// Every type, in declaration order.
    pub const ALL: [DType; 12] = [
        DType::F32,
        DType::F16,
        DType::BF16,
        DType::F8E4M3,
        DType::I8,
        DType::I32,
        DType::U32,
        DType::Q8_0,
        DType::Q4_0,
        DType::Q4K,
        DType::Q6K,
        DType::MxFp4,
    ];

    /// The name used in kernel names, records and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::F8E4M3 => "f8e4m3",
            DType::I8 => "i8",
            DType::I32 => "i32",
            DType::U32 => "u32",
            DType::Q8_0 => "q8_0",
            DType::Q4_0 => "q4_0",
            DType::Q4K => "q4_k",
            DType::Q6K => "q6_k",
            DType::MxFp4 => "mxfp4",
        }
    }

    /// Elements stored together: 1 for plain types.
    pub const fn block_len(self) -> usize {
        match self {
            DType::F32 | DType::F16 | DType::BF16 | DType::F8E4M3 | DType::I8 | DType::I32 | DType::U32 => 1,
            DType::Q8_0 | DType::Q4_0 | DType::MxFp4 => 32,
            DType::Q4K | DType::Q6K => 256,
        }
    }

    /// Bytes of one block of [`block_len`](Self::block_len) elements, scales included: the element size of
    /// plain types.
    pub const fn block_bytes(self) -> usize {
        match self {
            DType::F32 | DType::I32 | DType::U32 => 4,
            DType::F16 | DType::BF16 => 2,
            DType::F8E4M3 | DType::I8 => 1,
            DType::Q8_0 => 34,
            DType::Q4_0 => 18,
            DType::Q4K => 144,
            DType::Q6K => 210,
            DType::MxFp4 => 17,
        }
    }

    /// Bytes that `elements` elements take.
    ///
    /// `None` when the count is not a multiple of [`block_len`](Self::block_len) or when the product exceeds
    /// `u64`.
    pub const fn bytes(self, elements: usize) -> Option<u64> {
        if !elements.is_multiple_of(self.block_len()) {
            return None;
        }
        ((elements / self.block_len()) as u64).checked_mul(self.block_bytes() as u64)
    }

    /// Whether this is a plain floating-point type.
    pub const fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::F16 | DType::BF16 | DType::F8E4M3)
    }

    /// Whether this is a plain integer type.
    pub const fn is_integer(self) -> bool {
        matches!(self, DType::I8 | DType::I32 | DType::U32)
    }

    /// Whether elements are stored in blocks with scales of their own.
    pub const fn is_block(self) -> bool {
        self.block_len() > 1
    }

    /// Unit roundoff: the largest relative error of rounding a real number to the nearest value of this type,
    /// in its normal range.
    ///
    /// 0 for integers, whose values are exact, and for block formats: kernels read them as exact inputs, and
    /// their quantisation error depends on a block's scale, not on the element.
    pub const fn epsilon(self) -> f64 {
        // 2^-p, where p counts the significand bits with the implicit one.
        match self {
            DType::F32 => 1.0 / (1u32 << 24) as f64,
            DType::F16 => 1.0 / (1u32 << 11) as f64,
            DType::BF16 => 1.0 / (1u32 << 8) as f64,
            DType::F8E4M3 => 1.0 / (1u32 << 4) as f64,
            DType::I8
            | DType::I32
            | DType::U32
            | DType::Q8_0
            | DType::Q4_0
            | DType::Q4K
            | DType::Q6K
            | DType::MxFp4 => 0.0,
        }
    }

    /// Largest finite value of an element.
    ///
    /// For a block format, the largest magnitude that any combination of scale and code stands for.
    pub const fn max_value(self) -> f64 {
        const F16_MAX: f64 = 65504.0;
        match self {
            DType::F32 => f32::MAX as f64,
            DType::F16 => F16_MAX,
            DType::BF16 => f32::from_bits(0x7f7f_0000) as f64,
            DType::F8E4M3 => 448.0,
            DType::I8 => i8::MAX as f64,
            DType::I32 => i32::MAX as f64,
            DType::U32 => u32::MAX as f64,
            DType::Q8_0 => F16_MAX * 128.0,
            DType::Q4_0 => F16_MAX * 8.0,
            // Scale and minimum may have opposite signs: 63 * 15 + 63 steps.
            DType::Q4K => F16_MAX * 63.0 * 16.0,
            DType::Q6K => F16_MAX * 128.0 * 32.0,
            // 6 * 2^127.
            DType::MxFp4 => 6.0 * f64::from_bits((1023 + 127) << 52),
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A name that no [`DType`] has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown dtype {name:?}: use one of {}", DType::ALL.map(DType::name).join(", "))]
pub struct UnknownDType {
    /// The name as given.
    pub name: String,
}

impl FromStr for DType {
    type Err = UnknownDType;

    /// Reads a [`DType::name`].
    fn from_str(name: &str) -> Result<Self, UnknownDType> {
        DType::ALL
            .into_iter()
            .find(|dtype| dtype.name() == name)
            .ok_or_else(|| UnknownDType { name: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back_and_unknown_names_list_the_known() {
        for dtype in DType::ALL {
            assert_eq!(dtype.to_string().parse(), Ok(dtype));
        }
        let message = "fp32".parse::<DType>().unwrap_err().to_string();
        assert!(message.contains("\"fp32\""), "{message}");
        for dtype in DType::ALL {
            assert!(message.contains(dtype.name()), "{message}");
        }
    }

    #[test]
    fn byte_counts_refuse_partial_blocks_and_overflow() {
        assert_eq!(DType::F32.bytes(3), Some(12));
        assert_eq!(DType::F8E4M3.bytes(3), Some(3));
        assert_eq!(DType::Q4_0.bytes(64), Some(36));
        assert_eq!(DType::Q4_0.bytes(0), Some(0));
        assert_eq!(DType::Q4_0.bytes(33), None);
        assert_eq!(DType::Q6K.bytes(512), Some(420));
        assert_eq!(DType::Q6K.bytes(32), None);
        #[cfg(target_pointer_width = "64")]
        {
            assert_eq!(DType::F32.bytes(usize::MAX), None);
            // 34 bytes hold 32 elements, so whole blocks can exceed u64 by themselves.
            assert_eq!(DType::Q8_0.bytes(usize::MAX - 31), None);
        }
    }

    #[test]
    fn epsilon_bounds_the_rounding_of_one_plus_a_little() {
        // 1 + u is the midpoint between 1 and its successor, which is 1 + 2u.
        assert_eq!(2.0 * DType::F32.epsilon(), f64::from(f32::EPSILON));
        assert_eq!(2.0 * DType::F16.epsilon(), f64::from(half::f16::EPSILON.to_f32()));
        assert_eq!(2.0 * DType::BF16.epsilon(), f64::from(half::bf16::EPSILON.to_f32()));
    }
}
