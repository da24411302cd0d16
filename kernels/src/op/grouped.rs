//! Matrix products of the experts of a mixture, over rows sorted by expert.

use super::check::{bytes_of, ensure, ensure_countable, ensure_float, ensure_output, product, total};
use super::key::Key;
use super::matmul::check_inputs;
use super::slots::Segments;
use super::{Activation, Constant, Operand, Policy, Spec, Tensor2, Values};
use crate::buffer::Access;
use crate::dtype::DType;
use crate::error::{Error, Result};

const NAME: &str = "grouped_matmul";

/// `C[order[r]] = activation(A[order[r] / a_divisor] B[e] + bias[e])` for each sorted position `r` of each expert `e` (arXiv:2211.15841).
///
/// Operands: `a` (`a_rows x k`), `b` (`experts` matrices `k x n`), `offsets` (slot `[experts + 1]`: expert `e` has the positions
/// `offsets[e]..offsets[e + 1]`), `order` (slot `[rows]`), `bias` (`[experts, n]`, when present), and last `c` (`c_rows x n`).
/// [`Route`](super::Route) writes `offsets` and `order`.
///
/// The first product of an expert reads each token `top_k` times (`a_divisor = top_k`, `c_rows = rows`); the second reads the rows
/// that the first wrote (`a_divisor = 1`). Idle experts are fine. Rows of C that no position names keep what they hold; positions
/// whose row lies outside A or C are skipped. Dtypes as for [`MatMul`](super::MatMul) without scales.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct GroupedMatMul {
    /// Matrices of B.
    pub experts: usize,
    /// Capacity of sorted positions: tokens times experts of each token.
    pub rows: usize,
    /// Columns of B and C.
    pub n: usize,
    /// Columns of A, rows of B.
    pub k: usize,
    /// The left operand; its batch stride is not used.
    pub a: Tensor2,
    /// Rows of A.
    pub a_rows: usize,
    /// Consecutive values of `order` that read the same row of A, at least 1.
    pub a_divisor: usize,
    /// The experts' matrices, `strides.batch` apart.
    pub b: Tensor2,
    /// Whether B stays the same from launch to launch (weights): rows may then ask for it packed.
    pub b_constant: bool,
    /// The result; its batch stride is not used.
    pub c: Tensor2,
    /// Rows of C.
    pub c_rows: usize,
    /// Element type of a vector of `n` elements for each expert, added to its rows.
    pub bias: Option<DType>,
    /// Applied after the bias.
    pub activation: Activation,
    /// Leave to be less exact.
    pub policy: Policy,
}

impl GroupedMatMul {
    /// B, where it is constant.
    pub fn constant(&self) -> Option<Constant> {
        let constant = Constant { operand: 1, matrices: self.experts, n: self.n, k: self.k, plain: self.b };
        self.b_constant.then_some(constant)
    }

    /// Rows of A and C behind a value of `order`; `None` when it lies outside.
    pub fn rows_of(&self, order: i64) -> Option<(usize, usize)> {
        let row = usize::try_from(order).ok()?;
        let a_row = row / self.a_divisor.max(1);
        (row < self.c_rows && a_row < self.a_rows).then_some((a_row, row))
    }

    /// One element of C before it is rounded, and the sum of the absolute values of its terms, for expert `expert` and row `a_row`
    /// of A; `args` in the order of the operands.
    pub fn element(&self, args: &[Values], expert: usize, a_row: usize, col: usize) -> (f64, f64) {
        let (mut value, mut magnitude) = (0.0, 0.0);
        for k in 0..self.k {
            let term = args[0].value[self.a.strides.at(0, a_row, k)]
                * args[1].value[self.b.strides.at(expert, k, col)];
            value += term;
            magnitude += term.abs();
        }
        if self.bias.is_some() {
            let bias = args[4].value[expert * self.n + col];
            value += bias;
            magnitude += bias.abs();
        }
        (self.activation.apply(value), magnitude)
    }
}

impl Spec for GroupedMatMul {
    fn name(&self) -> &'static str {
        NAME
    }

    fn validate(&self) -> Result<()> {
        check_inputs(NAME, self.a.dtype, self.b, self.k)?;
        let plain = self.bias.is_none() && self.activation == Activation::None;
        let c = self.c.dtype;
        let out = c.is_float() || (c == DType::I32 && self.a.dtype == DType::I8 && plain);
        ensure(
            out,
            NAME,
            "dtype of c",
            c,
            "f32, f16, bf16 or f8e4m3; i32 for i8 x i8 without bias and activation",
        )?;
        if let Some(bias) = self.bias {
            ensure_float(NAME, "dtype of bias", bias)?;
        }
        ensure(self.a_divisor > 0, NAME, "a_divisor", 0, "at least 1")?;
        ensure_output(NAME, self.c.strides, 1, self.c_rows, self.n)?;
        ensure_countable(NAME, "experts", Some(self.experts))?;
        ensure_countable(NAME, "rows", Some(self.rows))?;
        ensure_countable(NAME, "c_rows", Some(self.c_rows))?;
        if product(&[2, self.rows, self.n, self.k]) == u64::MAX {
            return Err(Error::Overflow { op: NAME, what: "rows * n * k" });
        }
        Ok(())
    }

    fn operands(&self) -> Vec<Operand> {
        use Access::{Read, ReadWrite};
        let mut list = vec![
            Operand::data("a", self.a.dtype, self.a.strides.extent(1, self.a_rows, self.k), Read),
            Operand::data("b", self.b.dtype, self.b.strides.extent(self.experts, self.k, self.n), Read),
            Operand::slot("offsets", self.experts.checked_add(1), Read),
            Operand::slot("order", Some(self.rows), Read),
        ];
        if let Some(dtype) = self.bias {
            list.push(Operand::data("bias", dtype, self.experts.checked_mul(self.n), Read));
        }
        list.push(Operand::data("c", self.c.dtype, self.c.strides.extent(1, self.c_rows, self.n), ReadWrite));
        list
    }

    fn dtypes(&self) -> Vec<DType> {
        vec![self.a.dtype, self.b.dtype, self.c.dtype]
    }

    fn shape(&self) -> Vec<(&'static str, usize)> {
        vec![("e", self.experts), ("rows", self.rows), ("n", self.n), ("k", self.k)]
    }

    fn tuning_key(&self) -> String {
        Key::new(self)
            .matrix("a", &self.a.strides, 1, self.a_rows, self.k)
            .matrix("b", &self.b.strides, self.experts, self.k, self.n)
            .flag("constant", self.b_constant)
            .matrix("c", &self.c.strides, 1, self.c_rows, self.n)
            .varying("a_rows", self.a_rows)
            .varying("c_rows", self.c_rows)
            .size("a_divisor", self.a_divisor)
            .activation(self.activation)
            .policy(&self.policy)
            .finish()
    }

    fn flops(&self) -> u64 {
        product(&[2, self.rows, self.n, self.k])
    }

    fn bytes(&self) -> u64 {
        // no more experts are read than there are positions
        let experts = self.experts.min(self.rows);
        total(&[
            bytes_of(self.a.dtype, product(&[self.rows.div_ceil(self.a_divisor.max(1)), self.k])),
            bytes_of(self.b.dtype, product(&[experts, self.k, self.n])),
            self.bias.map_or(0, |d| bytes_of(d, product(&[experts, self.n]))),
            bytes_of(self.c.dtype, product(&[self.rows, self.n])),
            bytes_of(DType::I32, total(&[self.experts as u64, 1, self.rows as u64])),
        ])
    }

    fn reduction(&self) -> usize {
        self.k
    }

    fn reference(&self, args: &mut [Values]) {
        let Some((c, inputs)) = args.split_last_mut() else { return };
        for (expert, positions) in Segments::new(&inputs[2].slots(), self.rows) {
            for r in positions {
                let Some((a_row, row)) = self.rows_of(inputs[3].index(r)) else { continue };
                for col in 0..self.n {
                    let (value, magnitude) = self.element(inputs, expert, a_row, col);
                    c.set(self.c.strides.at(0, row, col), value, magnitude);
                }
            }
        }
    }
}
