//! Matrix product with an epilogue.

use super::check::{bytes_of, distinct, ensure, ensure_output, product};
use super::key::Key;
use super::{Operand, Pack, Spec, Values};
use crate::buffer::Access;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::kernel::PackFormat;
use crate::layout::Matrix;

const NAME: &str = "matmul";

/// A matrix operand: element type and strides.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Tensor2 {
    /// Element type.
    pub dtype: DType,
    /// Strides in elements.
    pub strides: Matrix,
}

/// Over what one scale holds. Scales are f32 operands beside fp8 and int8 data (block formats carry their own).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Granularity {
    /// One scale for each matrix: `[batch]`.
    Tensor,
    /// One for each row of A or column of B: `[batch, m]` or `[batch, n]`.
    Vector,
    /// One for each row of A or column of B and each group of that many k: `[batch, m or n, k / group]`, rounded up.
    Group(usize),
}

/// A function applied to each element of a result.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub enum Activation {
    /// x
    #[default]
    None,
    /// x / (1 + exp(-x))
    Silu,
    /// x Phi(x), by the error function
    Gelu,
    /// The tanh approximation of GELU (arXiv:1606.08415, section 2)
    GeluTanh,
}

impl Activation {
    /// The function in f64.
    pub fn apply(self, x: f64) -> f64 {
        match self {
            Activation::None => x,
            Activation::Silu => x / (1.0 + (-x).exp()),
            Activation::Gelu => 0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2)),
            Activation::GeluTanh => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
                0.5 * x * (1.0 + inner.tanh())
            }
        }
    }
}

/// The error function to f64 precision: its Maclaurin series below 3, the continued fraction of erfc above (Abramowitz & Stegun
/// 7.1.6 and 7.1.14).
pub(crate) fn erf(x: f64) -> f64 {
    let a = x.abs();
    if a.is_nan() {
        return x;
    }
    let value = if a < 3.0 {
        // erf(a) = 2/sqrt(pi) exp(-a^2) sum_n 2^n a^(2n+1) / (2n+1)!!
        let (mut term, mut sum, mut n) = (a, a, 0.0);
        while term > sum * 1e-17 {
            n += 1.0;
            term *= 2.0 * a * a / (2.0 * n + 1.0);
            sum += term;
        }
        2.0 / std::f64::consts::PI.sqrt() * (-a * a).exp() * sum
    } else if a < 6.0 {
        let mut fraction = a;
        for n in (1..=60).rev() {
            fraction = a + (f64::from(n) / 2.0) / fraction;
        }
        1.0 - (-a * a).exp() / (fraction * std::f64::consts::PI.sqrt())
    } else {
        1.0
    };
    value.copysign(x)
}

/// What happens to a product before it is stored: `residual + activation(scale * A B + bias)`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Epilogue {
    /// Factor of the product.
    pub scale: f32,
    /// A vector of `n` elements of that type, added to every row.
    pub bias: Option<DType>,
    /// Applied after scale and bias.
    pub activation: Activation,
    /// An `m x n` matrix (batched like C) that is added last.
    pub residual: Option<Tensor2>,
}

impl Default for Epilogue {
    fn default() -> Self {
        Epilogue { scale: 1.0, bias: None, activation: Activation::None, residual: None }
    }
}

/// Leave to compute less exactly than with f32 accumulation of exact products. Nothing of it is granted by default.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub struct Policy {
    /// f32 inputs may be rounded to tf32 (10 bits of mantissa).
    pub tf32: bool,
    /// f16 products may be accumulated in f16.
    pub f16_accumulate: bool,
    /// Activations may be quantised to 8 bits beside quantised weights, or rounded to bf16.
    pub quantised_activations: bool,
}

/// A constant operand of a product, which a row may want packed.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Constant {
    /// Its index among the operands.
    pub operand: usize,
    /// Matrices of it: the batch, or the experts.
    pub matrices: usize,
    /// Columns of B.
    pub n: usize,
    /// Rows of B.
    pub k: usize,
    /// Element type and strides of the plain operand.
    pub plain: Tensor2,
}

impl Constant {
    /// The op that packs it as `format`.
    pub fn pack(&self, format: &'static PackFormat) -> Pack {
        Pack { format, matrices: self.matrices, n: self.n, k: self.k, b: self.plain }
    }
}

/// `C = epilogue(A B)`, batched: A is `m x k`, B is `k x n`, C is `m x n`, each with strides of its own.
///
/// Operands: `a`, `b`, then those present of `a_scale`, `b_scale` (f32), `bias` (`[n]`), `residual`, and last `c`.
///
/// Inputs: any two float types, or i8 with i8. Block formats are for B alone, with k contiguous (`strides.row == 1`) and a
/// multiple of the block. Outputs: a float type, or i32 for i8 x i8 without scales, bias, activation and residual. Products are
/// accumulated in f32 at least (i32 for i8), unless the policy says otherwise. `k = 0` gives zeros before the epilogue.
///
/// Layouts by their usual names: NN has `col == 1` in A and B, NT has `row == 1` in B (a weight stored n x k), and so on.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct MatMul {
    /// Independent products.
    pub batch: usize,
    /// Rows of A and C.
    pub m: usize,
    /// Columns of B and C.
    pub n: usize,
    /// Columns of A, rows of B.
    pub k: usize,
    /// The left operand.
    pub a: Tensor2,
    /// The right operand.
    pub b: Tensor2,
    /// The result.
    pub c: Tensor2,
    /// Whether B stays the same from launch to launch (a weight): rows may then ask for it packed.
    pub b_constant: bool,
    /// Scales of A.
    pub a_scale: Option<Granularity>,
    /// Scales of B.
    pub b_scale: Option<Granularity>,
    /// Scale, bias, activation, residual.
    pub epilogue: Epilogue,
    /// Leave to be less exact.
    pub policy: Policy,
}

/// Refuses element types that do not multiply, and block formats that do not run along k.
pub(super) fn check_inputs(op: &'static str, a: DType, b: Tensor2, k: usize) -> Result<()> {
    ensure(a == DType::I8 || a.is_float(), op, "dtype of a", a, "f32, f16, bf16, f8e4m3 or i8")?;
    let pair = match a {
        DType::I8 => b.dtype == DType::I8,
        _ => b.dtype.is_float() || b.dtype.is_block(),
    };
    ensure(pair, op, "dtype of b", b.dtype, "a float type or block format beside a float a, i8 beside i8")?;
    check_blocks(op, b, k)
}

/// Refuses a B of a block format whose blocks do not run along k.
pub(super) fn check_blocks(op: &'static str, b: Tensor2, k: usize) -> Result<()> {
    if !b.dtype.is_block() {
        return Ok(());
    }
    let (dtype, len) = (b.dtype, b.dtype.block_len());
    ensure(b.strides.row == 1 || k == 0, op, "row stride of b", b.strides.row, "1: blocks run along k")?;
    let multiple = format!("a multiple of the {dtype} block of {len}");
    ensure(k.is_multiple_of(len), op, "k", k, &multiple)?;
    let whole = b.strides.col.is_multiple_of(len) && b.strides.batch.is_multiple_of(len);
    ensure(whole, op, "strides of b", format!("{:?}", b.strides), "multiples of the block")
}

impl MatMul {
    /// Dense `C = A B` with A and C row-major and B row-major (`k x n`): layout NN.
    pub fn nn(m: usize, n: usize, k: usize, a: DType, b: DType, c: DType) -> Self {
        MatMul {
            batch: 1,
            m,
            n,
            k,
            a: Tensor2 { dtype: a, strides: Matrix::row_major(m, k) },
            b: Tensor2 { dtype: b, strides: Matrix::row_major(k, n) },
            c: Tensor2 { dtype: c, strides: Matrix::row_major(m, n) },
            b_constant: false,
            a_scale: None,
            b_scale: None,
            epilogue: Epilogue::default(),
            policy: Policy::default(),
        }
    }

    /// Dense `C = A W^T` with the weight W stored `n x k`, as checkpoints store it: layout NT, B constant.
    pub fn linear(m: usize, n: usize, k: usize, a: DType, b: DType, c: DType) -> Self {
        let mut op = Self::nn(m, n, k, a, b, c);
        op.b.strides = Matrix::col_major(k, n);
        op.b_constant = true;
        op
    }

    /// `NN`, `NT`, `TN`, `TT`, or `strided` when an input has no unit stride. Vectors count as not transposed.
    pub fn layout(&self) -> &'static str {
        let letter = |t: &Tensor2, rows: usize, cols: usize| match (t.strides.row, t.strides.col) {
            (_, 1) => Some(false),
            (1, _) => Some(true),
            _ if cols <= 1 || rows <= 1 => Some(false),
            _ => None,
        };
        match (letter(&self.a, self.m, self.k), letter(&self.b, self.k, self.n)) {
            (Some(false), Some(false)) => "NN",
            (Some(false), Some(true)) => "NT",
            (Some(true), Some(false)) => "TN",
            (Some(true), Some(true)) => "TT",
            _ => "strided",
        }
    }

    /// B, where it is constant.
    pub fn constant(&self) -> Option<Constant> {
        let matrices = distinct(self.b.strides, self.batch);
        self.b_constant.then_some(Constant { operand: 1, matrices, n: self.n, k: self.k, plain: self.b })
    }

    fn scale_count(&self, granularity: Granularity, vectors: usize) -> Option<usize> {
        match granularity {
            Granularity::Tensor => Some(self.batch),
            Granularity::Vector => self.batch.checked_mul(vectors),
            Granularity::Group(g) => self.batch.checked_mul(vectors)?.checked_mul(self.k.div_ceil(g.max(1))),
        }
    }

    /// Index into the scales of A (`vector` = row) or B (`vector` = column) for depth `k`.
    pub fn scale_index(
        &self,
        granularity: Granularity,
        vectors: usize,
        batch: usize,
        vector: usize,
        k: usize,
    ) -> usize {
        match granularity {
            Granularity::Tensor => batch,
            Granularity::Vector => batch * vectors + vector,
            Granularity::Group(g) => (batch * vectors + vector) * self.k.div_ceil(g) + k / g,
        }
    }

    /// One element of C before it is rounded, and the sum of the absolute values of its terms; `args` in the order of the
    /// operands. Verification of products too large to be computed whole samples it.
    pub fn element(&self, args: &[Values], batch: usize, row: usize, col: usize) -> (f64, f64) {
        let mut rest = args[2..].iter();
        let a_scale = self.a_scale.and_then(|g| Some((g, rest.next()?)));
        let b_scale = self.b_scale.and_then(|g| Some((g, rest.next()?)));
        let bias = self.epilogue.bias.and_then(|_| rest.next());
        let residual = self.epilogue.residual.and_then(|r| Some((r, rest.next()?)));
        let (mut sum, mut magnitude) = (0.0, 0.0);
        for k in 0..self.k {
            let mut term = args[0].value[self.a.strides.at(batch, row, k)]
                * args[1].value[self.b.strides.at(batch, k, col)];
            if let Some((g, scales)) = a_scale {
                term *= scales.value[self.scale_index(g, self.m, batch, row, k)];
            }
            if let Some((g, scales)) = b_scale {
                term *= scales.value[self.scale_index(g, self.n, batch, col, k)];
            }
            sum += term;
            magnitude += term.abs();
        }
        let scale = f64::from(self.epilogue.scale);
        let (mut value, mut magnitude) = (sum * scale, magnitude * scale.abs());
        if let Some(bias) = bias {
            value += bias.value[col];
            magnitude += bias.value[col].abs();
        }
        value = self.epilogue.activation.apply(value);
        if let Some((layout, residual)) = residual {
            let r = residual.value[layout.strides.at(batch, row, col)];
            value += r;
            magnitude += r.abs();
        }
        (value, magnitude)
    }
}

impl Spec for MatMul {
    fn name(&self) -> &'static str {
        NAME
    }

    fn validate(&self) -> Result<()> {
        let (a, c) = (self.a.dtype, self.c.dtype);
        check_inputs(NAME, a, self.b, self.k)?;
        if self.b.dtype.is_block() {
            ensure(
                self.b_scale.is_none(),
                NAME,
                "b_scale",
                self.b.dtype,
                "none: block formats carry their scales",
            )?;
        }
        let plain_epilogue =
            self.epilogue == Epilogue::default() && self.a_scale.is_none() && self.b_scale.is_none();
        let out = match c {
            DType::I32 => a == DType::I8 && plain_epilogue,
            _ => c.is_float(),
        };
        ensure(out, NAME, "dtype of c", c, "f32, f16, bf16 or f8e4m3; i32 for i8 x i8 without an epilogue")?;
        ensure(self.epilogue.scale.is_finite(), NAME, "scale", self.epilogue.scale, "a finite number")?;
        for g in [self.a_scale, self.b_scale].into_iter().flatten() {
            ensure(g != Granularity::Group(0), NAME, "scale group", 0, "at least 1")?;
        }
        if let Some(bias) = self.epilogue.bias {
            ensure(bias.is_float(), NAME, "dtype of bias", bias, "a float type")?;
        }
        if let Some(residual) = self.epilogue.residual {
            let dtype = residual.dtype;
            ensure(dtype.is_float(), NAME, "dtype of residual", dtype, "a float type")?;
        }
        ensure_output(NAME, self.c.strides, self.batch, self.m, self.n)?;
        let work = [self.batch, self.m, self.n, self.k].iter().try_fold(2usize, |all, &s| all.checked_mul(s));
        if work.is_none() && ![self.batch, self.m, self.n, self.k].contains(&0) {
            return Err(Error::Overflow { op: NAME, what: "batch * m * n * k" });
        }
        Ok(())
    }

    fn operands(&self) -> Vec<Operand> {
        use Access::{Read, Write};
        let extent = |t: &Tensor2, rows, cols| t.strides.extent(self.batch, rows, cols);
        // a block format's last column ends with a whole block, which the extent in elements already covers
        let mut list = vec![
            Operand::data("a", self.a.dtype, extent(&self.a, self.m, self.k), Read),
            Operand::data("b", self.b.dtype, extent(&self.b, self.k, self.n), Read),
        ];
        if let Some(g) = self.a_scale {
            list.push(Operand::data("a_scale", DType::F32, self.scale_count(g, self.m), Read));
        }
        if let Some(g) = self.b_scale {
            list.push(Operand::data("b_scale", DType::F32, self.scale_count(g, self.n), Read));
        }
        if let Some(dtype) = self.epilogue.bias {
            list.push(Operand::data("bias", dtype, Some(self.n), Read));
        }
        if let Some(residual) = self.epilogue.residual {
            list.push(Operand::data("residual", residual.dtype, extent(&residual, self.m, self.n), Read));
        }
        list.push(Operand::data("c", self.c.dtype, extent(&self.c, self.m, self.n), Write));
        list
    }

    fn dtypes(&self) -> Vec<DType> {
        vec![self.a.dtype, self.b.dtype, self.c.dtype]
    }

    fn shape(&self) -> Vec<(&'static str, usize)> {
        let mut shape = vec![("m", self.m), ("n", self.n), ("k", self.k)];
        if self.batch != 1 {
            shape.insert(0, ("batch", self.batch));
        }
        shape
    }

    fn tuning_key(&self) -> String {
        Key::new(self).product(self).finish()
    }

    fn flops(&self) -> u64 {
        product(&[2, self.batch, self.m, self.n, self.k])
    }

    fn bytes(&self) -> u64 {
        let matrices = |t: &Tensor2| distinct(t.strides, self.batch);
        let residual =
            self.epilogue.residual.map_or(0, |r| bytes_of(r.dtype, product(&[matrices(&r), self.m, self.n])));
        bytes_of(self.a.dtype, product(&[matrices(&self.a), self.m, self.k]))
            .saturating_add(bytes_of(self.b.dtype, product(&[matrices(&self.b), self.k, self.n])))
            .saturating_add(bytes_of(self.c.dtype, product(&[self.batch, self.m, self.n])))
            .saturating_add(self.epilogue.bias.map_or(0, |d| bytes_of(d, self.n as u64)))
            .saturating_add(residual)
    }

    fn reduction(&self) -> usize {
        self.k
    }

    fn reference(&self, args: &mut [Values]) {
        let Some((c, inputs)) = args.split_last_mut() else { return };
        for batch in 0..self.batch {
            for row in 0..self.m {
                for col in 0..self.n {
                    let (value, magnitude) = self.element(inputs, batch, row, col);
                    c.set(self.c.strides.at(batch, row, col), value, magnitude);
                }
            }
        }
    }
}
