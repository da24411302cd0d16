//! The rows of one product, gathered from the weights that it is made of.

use std::ops::Range;

use perjoule::DType;

use crate::error::Result;
use crate::source::{Source, sizes};
use crate::weights::WeightShape;

/// A matrix made of the rows of several weights, for each expert.
pub(super) struct Stacked<'a> {
    pub(super) parts: Vec<WeightShape>,
    pub(super) source: &'a Source,
    /// Gate and up come as alternating rows, and are taken apart.
    pub(super) interleaved: bool,
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) matrices: usize,
    pub(super) dtype: DType,
}

impl Stacked<'_> {
    pub(super) fn row_bytes(&self) -> usize {
        self.k / self.dtype.block_len() * self.dtype.block_bytes()
    }

    /// Rows `rows` of matrix `matrix`.
    fn read(&self, matrix: usize, rows: Range<usize>, out: &mut [u8]) -> Result<()> {
        let row_bytes = self.row_bytes();
        let mut first = 0;
        for part in &self.parts {
            let (_, n, _) = sizes(part);
            let (from, to) = (rows.start.max(first), rows.end.min(first + n));
            if from < to {
                let out = &mut out[(from - rows.start) * row_bytes..(to - rows.start) * row_bytes];
                let range = from - first..to - first;
                if self.interleaved {
                    self.read_interleaved(part, matrix, n, range, out)?;
                } else {
                    self.source.read_rows(part, matrix, range, self.dtype, out)?;
                }
            }
            first += n;
        }
        Ok(())
    }

    /// Row `r` of the first half is row `2 r` of the file, row `r` of the second half row `2 r + 1`.
    fn read_interleaved(
        &self,
        part: &WeightShape,
        matrix: usize,
        n: usize,
        rows: Range<usize>,
        out: &mut [u8],
    ) -> Result<()> {
        let (half, row_bytes) = (n / 2, self.row_bytes());
        for (odd, base) in [(0, 0), (1, half)] {
            let (from, to) = (rows.start.max(base), rows.end.min(base + half));
            if from >= to {
                continue;
            }
            let (low, high) = (2 * (from - base) + odd, 2 * (to - 1 - base) + odd + 1);
            let mut both = vec![0; (high - low) * row_bytes];
            self.source.read_rows(part, matrix, low..high, self.dtype, &mut both)?;
            for (i, row) in both.chunks_exact(row_bytes).step_by(2).enumerate() {
                let at = (from + i - rows.start) * row_bytes;
                out[at..at + row_bytes].copy_from_slice(row);
            }
        }
        Ok(())
    }

    /// The rows of one matrix in pieces, read as they are asked for.
    pub(super) fn pieces(
        &self,
        matrix: usize,
        per_piece: usize,
    ) -> impl Iterator<Item = (Range<usize>, Result<Vec<u8>>)> {
        (0..self.n).step_by(per_piece).map(move |first| {
            let range = first..(first + per_piece).min(self.n);
            let mut bytes = vec![0u8; range.len() * self.row_bytes()];
            let read = self.read(matrix, range.clone(), &mut bytes);
            (range, read.map(|()| bytes))
        })
    }
}
