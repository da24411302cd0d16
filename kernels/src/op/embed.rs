//! Embedding: rows of a table, by index.

use super::check::{
    bytes_of, ensure, ensure_countable, ensure_disjoint, ensure_float, ensure_like, product, rows_bytes,
    total,
};
use super::key::Key;
use super::{Operand, Spec, Values};
use crate::buffer::Access;
use crate::dtype::DType;
use crate::error::Result;
use crate::layout::Rows;

const NAME: &str = "embed";

/// `out[t] = scale * table[ids[t]]`.
///
/// Operands: `ids` (slot `[tokens]`), `table` (dense `[vocab, dim]`), `out`. The table has a float type or a block format (with
/// `dim` a multiple of the block). An id outside `0..vocab` gives a row of NaN.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Embed {
    /// Rows that are looked up.
    pub tokens: usize,
    /// Rows of the table.
    pub vocab: usize,
    /// Elements of a row.
    pub dim: usize,
    /// Element type of the table.
    pub table: DType,
    /// Factor of the result: `sqrt(dim)` for Gemma, else 1.
    pub scale: f32,
    /// Where the result lies: `tokens` rows of `dim` elements (`inner` is 1).
    pub out: Rows,
    /// Its element type.
    pub out_dtype: DType,
}

impl Embed {
    /// A dense result, not scaled.
    pub fn dense(tokens: usize, vocab: usize, dim: usize, table: DType, out_dtype: DType) -> Self {
        Embed { tokens, vocab, dim, table, scale: 1.0, out: Rows::dense(tokens, dim), out_dtype }
    }
}

impl Spec for Embed {
    fn name(&self) -> &'static str {
        NAME
    }

    fn validate(&self) -> Result<()> {
        let table = self.table.is_float() || self.table.is_block();
        ensure(table, NAME, "dtype of table", self.table, "a float type or a block format")?;
        ensure_float(NAME, "dtype of out", self.out_dtype)?;
        ensure(self.scale.is_finite(), NAME, "scale", self.scale, "a finite number")?;
        let len = self.table.block_len();
        let whole = self.dim.is_multiple_of(len);
        ensure(whole, NAME, "dim", self.dim, &format!("a multiple of the {} block of {len}", self.table))?;
        ensure_like(NAME, "shape of out", self.out, Rows::dense(self.tokens, self.dim))?;
        ensure_disjoint(NAME, "strides of out", self.out)?;
        ensure_countable(NAME, "tokens", Some(self.tokens))?;
        ensure_countable(NAME, "vocab", Some(self.vocab))
    }

    fn operands(&self) -> Vec<Operand> {
        vec![
            Operand::slot("ids", Some(self.tokens), Access::Read),
            Operand::data("table", self.table, self.vocab.checked_mul(self.dim), Access::Read),
            Operand::data("out", self.out_dtype, self.out.extent(), Access::Write),
        ]
    }

    fn dtypes(&self) -> Vec<DType> {
        vec![self.table, self.out_dtype]
    }

    fn shape(&self) -> Vec<(&'static str, usize)> {
        vec![("tokens", self.tokens), ("vocab", self.vocab), ("dim", self.dim)]
    }

    fn tuning_key(&self) -> String {
        Key::new(self).rows("out", &self.out).flag("scaled", self.scale != 1.0).finish()
    }

    fn flops(&self) -> u64 {
        if self.scale == 1.0 { 0 } else { product(&[self.tokens, self.dim]) }
    }

    fn bytes(&self) -> u64 {
        total(&[
            product(&[4, self.tokens]),
            bytes_of(self.table, product(&[self.tokens, self.dim])),
            rows_bytes(self.out_dtype, self.out),
        ])
    }

    fn reference(&self, args: &mut [Values]) {
        let [ids, table, out] = args else { return };
        for token in 0..self.tokens {
            let id = usize::try_from(ids.index(token)).ok().filter(|&id| id < self.vocab);
            for d in 0..self.dim {
                let value = id.map_or(f64::NAN, |id| table.value[id * self.dim + d] * f64::from(self.scale));
                out.set(self.out.start(token, 0) + d, value, value.abs());
            }
        }
    }
}
