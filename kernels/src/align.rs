//! What is known, before a launch, of the alignment of its operands.

use crate::op::MAX_OPERANDS;
use std::fmt;

/// Levels that are told apart, in bytes. Few, so that plans which are kept by op and alignment stay few: an element (1 stands for it),
/// a 128-bit load or a tensor map, a cache line, an offset of a WebGPU binding.
const LEVELS: [u32; 4] = [1, 16, 64, 256];

/// The alignment that the caller of a launch vouches for, operand by operand. The default vouches for none beyond that of the elements,
/// which every launch checks. It is about the first byte; how vectors and rows lie behind it follows from the op's own strides.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Alignment(u64);

const _: () = assert!(2 * MAX_OPERANDS <= u64::BITS as usize);

fn level(bytes: u64) -> u64 {
    LEVELS.iter().rposition(|&l| bytes >= u64::from(l)).unwrap_or(0) as u64
}

impl Alignment {
    /// Every operand at a multiple of `bytes` (a power of two): what fresh allocations and planned activations have, with
    /// [`Arena::align`](crate::Arena).
    pub fn uniform(bytes: u32) -> Self {
        (0..MAX_OPERANDS).fold(Self::default(), |all, operand| all.with(operand, bytes.into(), bytes))
    }

    /// The same with `operand` at that address or offset, of which no more than `most` bytes of alignment count: blocks of memory are
    /// aligned to [`Arena::align`](crate::Arena) by contract, and to more by chance.
    pub fn with(self, operand: usize, address: u64, most: u32) -> Self {
        if operand >= MAX_OPERANDS {
            return self;
        }
        let multiple_of = if address == 0 { u64::MAX } else { 1 << address.trailing_zeros() };
        let shift = 2 * operand;
        Alignment(self.0 & !(3 << shift) | level(multiple_of.min(most.into())) << shift)
    }

    /// Bytes that the first byte of `operand` is known to be a multiple of: 1 (its elements' own alignment), 16, 64 or 256.
    pub fn of(self, operand: usize) -> u32 {
        if operand >= MAX_OPERANDS { 1 } else { LEVELS[(self.0 >> (2 * operand) & 3) as usize] }
    }
}

impl fmt::Debug for Alignment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries((0..MAX_OPERANDS).map(|operand| self.of(operand))).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_fall_into_levels() {
        let all = Alignment::uniform(256);
        assert!((0..MAX_OPERANDS).all(|operand| all.of(operand) == 256));
        assert_eq!(Alignment::default().of(3), 1);
        for (address, most, want) in
            [(0, 64, 64), (0, 256, 256), (4096, 64, 64), (8, 64, 1), (48, 64, 16), (128, 256, 64), (4, 2, 1)]
        {
            let one = all.with(5, address, most);
            assert_eq!((one.of(5), one.of(4), one.of(6)), (want, 256, 256), "{address} of {most}");
        }
        assert_eq!(all.with(MAX_OPERANDS, 1, 64), all);
    }
}
