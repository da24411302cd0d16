//! Element-wise addition.

use super::check::{ensure_disjoint, ensure_extent, ensure_float, ensure_like, product, rows_bytes, total};
use super::key::Key;
use super::{Operand, Spec, Values};
use crate::buffer::Access;
use crate::dtype::DType;
use crate::error::Result;
use crate::layout::Rows;

const NAME: &str = "add";

/// `out = a + b`.
///
/// Operands: `a`, `b`, `out`, all of one float type. An `outer_stride` of 0 broadcasts an input.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Add {
    /// One summand.
    pub a: Rows,
    /// The other.
    pub b: Rows,
    /// Element type of all three.
    pub dtype: DType,
    /// Where the result lies.
    pub out: Rows,
}

impl Add {
    /// `rows` dense vectors of `len` elements.
    pub fn dense(rows: usize, len: usize, dtype: DType) -> Self {
        let rows = Rows::dense(rows, len);
        Add { a: rows, b: rows, dtype, out: rows }
    }
}

impl Spec for Add {
    fn name(&self) -> &'static str {
        NAME
    }

    fn validate(&self) -> Result<()> {
        ensure_float(NAME, "dtype", self.dtype)?;
        ensure_extent(NAME, "a", self.a)?;
        ensure_extent(NAME, "b", self.b)?;
        ensure_like(NAME, "shape of b", self.b, self.a)?;
        ensure_like(NAME, "shape of out", self.out, self.a)?;
        ensure_disjoint(NAME, "strides of out", self.out)
    }

    fn operands(&self) -> Vec<Operand> {
        vec![
            Operand::data("a", self.dtype, self.a.extent(), Access::Read),
            Operand::data("b", self.dtype, self.b.extent(), Access::Read),
            Operand::data("out", self.dtype, self.out.extent(), Access::Write),
        ]
    }

    fn dtypes(&self) -> Vec<DType> {
        vec![self.dtype]
    }

    fn shape(&self) -> Vec<(&'static str, usize)> {
        vec![("rows", self.a.count().unwrap_or(usize::MAX)), ("len", self.a.len)]
    }

    fn tuning_key(&self) -> String {
        Key::new(self).rows("a", &self.a).rows("b", &self.b).rows("out", &self.out).finish()
    }

    fn flops(&self) -> u64 {
        product(&[self.a.outer, self.a.inner, self.a.len])
    }

    fn bytes(&self) -> u64 {
        let all = [self.a, self.b, self.out];
        total(&all.map(|rows| rows_bytes(self.dtype, rows)))
    }

    fn reference(&self, args: &mut [Values]) {
        let [a, b, out] = args else { return };
        for o in 0..self.a.outer {
            for i in 0..self.a.inner {
                for d in 0..self.a.len {
                    let x = a.value[self.a.start(o, i) + d];
                    let y = b.value[self.b.start(o, i) + d];
                    out.set(self.out.start(o, i) + d, x + y, x.abs() + y.abs());
                }
            }
        }
    }
}
