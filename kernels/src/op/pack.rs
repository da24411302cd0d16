//! Packing a constant operand into the layout of a kernel row.

use super::check::{bytes_of, ensure, ensure_countable, product};
use super::key::Key;
use super::matmul::check_blocks;
use super::{Operand, Spec, Tensor2, Values};
use crate::buffer::Access;
use crate::dtype::DType;
use crate::error::Result;
use crate::kernel::PackFormat;

const NAME: &str = "pack";

/// Packs `matrices` matrices B, `k x n` each, into a row's [`PackFormat`].
///
/// Operands: `b` (strides as in [`MatMul`](super::MatMul)), `packed` (written; its size follows from the format, matrices one after
/// the other). What packed bytes mean only the row knows: the reference leaves `packed` as it is, and a packing is judged by the
/// products that read it.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Pack {
    /// The layout.
    pub format: &'static PackFormat,
    /// Matrices: a batch, or experts.
    pub matrices: usize,
    /// Columns of B.
    pub n: usize,
    /// Rows of B.
    pub k: usize,
    /// The plain operand: `strides.row` runs along k, `strides.col` along n.
    pub b: Tensor2,
}

impl Pack {
    /// Bytes of all packed matrices; `None` when that overflows.
    pub fn packed_bytes(&self) -> Option<u64> {
        self.format.bytes(self.n, self.k)?.checked_mul(self.matrices as u64)
    }
}

impl Spec for Pack {
    fn name(&self) -> &'static str {
        NAME
    }

    fn validate(&self) -> Result<()> {
        let b = self.b.dtype;
        let ok = b.is_float() || b.is_block() || b == DType::I8;
        ensure(ok, NAME, "dtype of b", b, "a float type, a block format or i8")?;
        ensure_countable(NAME, "matrices", Some(self.matrices))?;
        check_blocks(NAME, self.b, self.k)
    }

    fn operands(&self) -> Vec<Operand> {
        let bytes = self.packed_bytes().unwrap_or(u64::MAX);
        let dtype = self.format.dtype;
        let elements = (bytes / dtype.block_bytes() as u64).saturating_mul(dtype.block_len() as u64);
        vec![
            Operand::data(
                "b",
                self.b.dtype,
                self.b.strides.extent(self.matrices, self.k, self.n),
                Access::Read,
            ),
            Operand { name: "packed", dtype, elements, bytes, align: 64, access: Access::Write, slot: false },
        ]
    }

    fn dtypes(&self) -> Vec<DType> {
        vec![self.b.dtype, self.format.dtype]
    }

    fn shape(&self) -> Vec<(&'static str, usize)> {
        vec![("matrices", self.matrices), ("n", self.n), ("k", self.k)]
    }

    fn tuning_key(&self) -> String {
        let b = self.b.strides;
        Key::new(self).matrix("b", &b, self.matrices, self.k, self.n).word(self.format.name).finish()
    }

    fn flops(&self) -> u64 {
        0
    }

    fn bytes(&self) -> u64 {
        let plain = bytes_of(self.b.dtype, product(&[self.matrices, self.n, self.k]));
        plain.saturating_add(self.packed_bytes().unwrap_or(u64::MAX))
    }

    fn reference(&self, _args: &mut [Values]) {}
}
