//! Packing blocks into the panels that [`super::quantised`] reads.

use super::quantised::STEP;
use perjoule_kernels::{DType, block};

/// Bytes of a block of `nr` columns; `None` for formats that are not packed.
pub(crate) const fn block_bytes(dtype: DType, nr: usize) -> Option<usize> {
    let column = match dtype {
        DType::Q8_0 => 2 + STEP,
        DType::Q4_0 => 2 + STEP / 2,
        DType::MxFp4 => 1 + STEP / 2,
        DType::Q4K => 4 + 8 * (2 + STEP / 2),
        DType::Q6K => 2 + 8 * (2 + STEP / 2 + STEP / 4),
        _ => return None,
    };
    Some(nr * column)
}

/// Where a column's bytes go in a block.
struct Place<'p> {
    out: &'p mut [u8],
    nr: usize,
    column: usize,
}

impl Place<'_> {
    /// `bytes` of this column in a run, from `at` on, of so many bytes for each column.
    fn put(&mut self, at: usize, bytes: &[u8]) {
        let to = at + self.column * bytes.len();
        self.out[to..to + bytes.len()].copy_from_slice(bytes);
    }

    /// The `index`th of `count` words of this column, which lie from `at` on: those of either half of the columns together.
    fn word(&mut self, at: usize, index: usize, count: usize, word: [u8; 4]) {
        let lanes = self.nr / 2;
        let (half, lane) = (self.column / lanes, self.column % lanes);
        let to = at + ((half * count + index) * lanes + lane) * 4;
        self.out[to..to + 4].copy_from_slice(&word);
    }

    /// Codes of a step, the lower four bits of which go two in a byte.
    fn nibbles(&mut self, at: usize, codes: &[u8]) {
        for j in 0..4 {
            let byte = |b: usize| (codes[4 * j + b] & 15) | (codes[16 + 4 * j + b] << 4);
            self.word(at, j, 4, std::array::from_fn(byte));
        }
    }
}

/// Puts a column's `block` into `out`, a block of `nr` columns.
pub(crate) fn put(dtype: DType, block: &[u8], nr: usize, column: usize, out: &mut [u8]) {
    let mut place = Place { out, nr, column };
    match dtype {
        DType::Q8_0 => {
            place.put(0, &block[..2]);
            for (j, word) in block[2..].as_chunks::<4>().0.iter().enumerate() {
                place.word(2 * nr, j, 8, word.map(|byte| byte ^ 0x80));
            }
        }
        // their nibbles lie as they should
        DType::Q4_0 | DType::MxFp4 => {
            let scale = block.len() - STEP / 2;
            place.put(0, &block[..scale]);
            for (j, word) in block[scale..].as_chunks::<4>().0.iter().enumerate() {
                place.word(scale * nr, j, 4, *word);
            }
        }
        DType::Q4K => {
            let Some(block) = block.as_array::<{ block::q4_k::BYTES }>() else { return };
            place.put(0, &block[..2]);
            place.put(2 * nr, &block[2..4]);
            for (step, (scale, minimum)) in block::q4_k::scales(block).into_iter().enumerate() {
                let at = nr * (4 + step * (2 + STEP / 2));
                place.put(at, &[scale]);
                place.put(at + nr, &[minimum]);
                let bytes = &block[16 + step / 2 * STEP..][..STEP];
                let codes: [u8; STEP] = std::array::from_fn(|i| bytes[i] >> (step % 2 * 4) & 15);
                place.nibbles(at + 2 * nr, &codes);
            }
        }
        DType::Q6K => {
            place.put(0, &block[208..210]);
            for step in 0..8 {
                let at = nr * (2 + step * (2 + STEP / 2 + STEP / 4));
                place.put(at, &block[192 + 2 * step..][..1]);
                place.put(at + nr, &block[193 + 2 * step..][..1]);
                // a half of 128 elements is four runs of 32
                let (half, run) = (step / 4, step % 4);
                let code = |i: usize| {
                    let low = block[half * 64 + run % 2 * STEP + i] >> (run / 2 * 4) & 15;
                    let high = block[128 + half * STEP + i] >> (run * 2) & 3;
                    low | (high << 4)
                };
                let codes: [u8; STEP] = std::array::from_fn(code);
                place.nibbles(at + 2 * nr, &codes);
                for word in 0..2 {
                    let byte = |b: usize| {
                        (0..4).map(|f| (codes[(4 * word + f) * 4 + b] >> 4) << (2 * f)).sum::<u8>()
                    };
                    place.word(at + nr * (2 + STEP / 2), word, 2, std::array::from_fn(byte));
                }
            }
        }
        _ => {}
    }
}
