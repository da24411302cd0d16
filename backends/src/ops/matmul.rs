//! Matrix products.

use super::weight::Weight;
use super::{as_matrix, expect_count, expect_dense, expect_dtype, run_packed, shape_error, tensor2};
use crate::tensor::Tensor;
use perjoule_kernels::op::{Activation, Epilogue, Granularity, MatMul, Policy, Tensor2};
use perjoule_kernels::{DType, Matrix, Result};

const NAME: &str = "matmul";

/// `a b`: `[m, k] x [k, n]`, or batched `[batch, m, k] x [batch, k, n]`; a `b` of two dimensions serves every batch. Transposed
/// views ([`Tensor::transpose`]) are read as they are. The result has the dtype of `a` (i32 for i8).
pub fn matmul(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    matmul_with(a, b).run()
}

/// The same with an epilogue or scales: set what is needed, then [`MatMulCall::run`].
///
/// ```
/// use perjoule::{DType, Tensor, ops};
/// use perjoule::ops::Granularity;
///
/// # fn main() -> perjoule::Result<()> {
/// let cpu = perjoule::open("cpu")?;
/// let x = Tensor::from_slice(&cpu, &[0.5f32; 4 * 64], [4, 64])?;
/// let w = Tensor::from_slice(&cpu, &[0.25f32; 32 * 64], [32, 64])?;
/// // both sides in 8 bits, with a scale for each row of x and of w
/// let x = ops::quantise_scaled(&x, DType::I8, Granularity::Vector)?;
/// let w = ops::quantise_scaled(&w, DType::I8, Granularity::Vector)?;
/// let y = ops::matmul_with(&x.values, &w.values.transpose(0, 1)?)
///     .a_scale(&x.scales, x.granularity)
///     .b_scale(&w.scales, w.granularity)
///     .run()?;
/// assert!((y.to_vec::<f32>()?[0] - 8.0).abs() < 1e-4);
/// # Ok(())
/// # }
/// ```
pub fn matmul_with<'a>(a: &'a Tensor, b: &'a Tensor) -> MatMulCall<'a> {
    MatMulCall::new(a, Right::Tensor(b))
}

/// `x w^T` with a packed weight `[n, k]`: `[.., k]` gives `[.., n]`.
pub fn linear<'a>(x: &'a Tensor, weight: &'a Weight) -> MatMulCall<'a> {
    MatMulCall::new(x, Right::Weight(weight))
}

#[derive(Debug, Clone, Copy)]
enum Right<'a> {
    Tensor(&'a Tensor),
    Weight(&'a Weight),
}

/// A matrix product about to run: `residual + activation(scale * a b + bias)`.
#[derive(Debug, Clone, Copy)]
#[must_use = "nothing happens before `run`"]
pub struct MatMulCall<'a> {
    a: &'a Tensor,
    b: Right<'a>,
    a_scale: Option<(&'a Tensor, Granularity)>,
    b_scale: Option<(&'a Tensor, Granularity)>,
    scale: f32,
    bias: Option<&'a Tensor>,
    activation: Activation,
    residual: Option<&'a Tensor>,
    out: Option<DType>,
    policy: Policy,
}

/// What a product makes of its left side: batch, rows, columns, strides.
type Left = (usize, usize, usize, Matrix);

impl<'a> MatMulCall<'a> {
    fn new(a: &'a Tensor, b: Right<'a>) -> Self {
        MatMulCall {
            a,
            b,
            a_scale: None,
            b_scale: None,
            scale: 1.0,
            bias: None,
            activation: Activation::None,
            residual: None,
            out: None,
            policy: Policy::default(),
        }
    }

    /// f32 scales of `a`, of i8 or another plain type: one for the matrix, for each row, or for each group of a row along k.
    pub fn a_scale(mut self, scales: &'a Tensor, granularity: Granularity) -> Self {
        self.a_scale = Some((scales, granularity));
        self
    }

    /// f32 scales of `b`: one for the matrix, for each column (row of the weight), or for each group of one along k.
    pub fn b_scale(mut self, scales: &'a Tensor, granularity: Granularity) -> Self {
        self.b_scale = Some((scales, granularity));
        self
    }

    /// Factor of the product.
    pub fn scale(mut self, scale: f32) -> Self {
        self.scale = scale;
        self
    }

    /// A vector of `n` elements, added to every row.
    pub fn bias(mut self, bias: &'a Tensor) -> Self {
        self.bias = Some(bias);
        self
    }

    /// Applied after scale and bias.
    pub fn activation(mut self, activation: Activation) -> Self {
        self.activation = activation;
        self
    }

    /// A tensor of the result's shape, added last.
    pub fn residual(mut self, residual: &'a Tensor) -> Self {
        self.residual = Some(residual);
        self
    }

    /// Element type of the result: unless set, that of `a`; for i8, i32, or f32 with scales or an epilogue.
    pub fn out_dtype(mut self, dtype: DType) -> Self {
        self.out = Some(dtype);
        self
    }

    /// Leave to compute less exactly.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// Computes it into a new tensor.
    pub fn run(self) -> Result<Tensor> {
        let ((batch, m, k, a), n, b, b_tensor) = self.sides()?;
        let epilogue = Epilogue { scale: self.scale, activation: self.activation, ..Epilogue::default() };
        let plain = epilogue == Epilogue::default()
            && self.bias.is_none()
            && self.residual.is_none()
            && self.a_scale.is_none()
            && self.b_scale.is_none();
        let dtype = self.out.unwrap_or(match self.a.dtype() {
            DType::I8 if plain => DType::I32,
            DType::I8 => DType::F32,
            float => float,
        });
        let mut shape = self.a.shape().to_vec();
        shape.pop();
        shape.push(n);
        let out = Tensor::unwritten(self.a.device(), dtype, shape)?;
        let mut op = MatMul::nn(m, n, k, self.a.dtype(), b.dtype, dtype);
        (op.batch, op.a.strides, op.b) = (batch, a, b);
        (op.epilogue, op.policy) = (epilogue, self.policy);
        let mut args = vec![self.a, b_tensor];
        for (field, scale, vectors) in [("a_scale", self.a_scale, m), ("b_scale", self.b_scale, n)] {
            let Some((scales, granularity)) = scale else { continue };
            let each = match granularity {
                Granularity::Tensor => 1,
                Granularity::Vector => vectors,
                Granularity::Group(group) => vectors.saturating_mul(k.div_ceil(group.max(1))),
            };
            expect_dtype(NAME, field, scales, DType::F32)?;
            expect_count(NAME, field, scales, each.saturating_mul(batch))?;
            args.push(scales);
        }
        (op.a_scale, op.b_scale) = (self.a_scale.map(|s| s.1), self.b_scale.map(|s| s.1));
        if let Some(bias) = self.bias {
            expect_dense(NAME, "bias", bias, &[n])?;
            op.epilogue.bias = Some(bias.dtype());
            args.push(bias);
        }
        if let Some(residual) = self.residual {
            if residual.shape() != out.shape() {
                return Err(shape_error(NAME, "residual", residual, format!("the shape {:?}", out.shape())));
            }
            op.epilogue.residual = Some(match batch {
                1 => Tensor2 { dtype: residual.dtype(), strides: as_matrix(NAME, "residual", residual)?.2 },
                _ => tensor2(residual),
            });
            args.push(residual);
        }
        args.push(&out);
        let pack = match self.b {
            Right::Weight(w) => {
                op.b_constant = true;
                w.pack_format()
            }
            Right::Tensor(_) => None,
        };
        run_packed(&op.into(), pack, &args)?;
        Ok(out)
    }

    /// The left side, columns of the right side, and the right side with its memory.
    fn sides(&self) -> Result<(Left, usize, Tensor2, &'a Tensor)> {
        match self.b {
            Right::Tensor(b) => {
                let (batch, m, k) = dims("a", self.a)?;
                let (b_batch, b_k, n) = dims("b", b)?;
                if b_k != k || (b.shape().len() == 3 && b_batch != batch) {
                    return Err(shape_error(NAME, "b", b, format!("[{k}, n] or [{batch}, {k}, n]")));
                }
                Ok(((batch, m, k, tensor2(self.a).strides), n, tensor2(b), b))
            }
            Right::Weight(w) => {
                let [n, k] = *w.shape() else {
                    let expected = "[n, k]; ops::grouped_linear takes those of experts";
                    return Err(shape_error(NAME, "weight", w.tensor(), expected));
                };
                if self.a.shape().last() != Some(&k) {
                    return Err(shape_error(NAME, "a", self.a, format!("a last dimension of {k}")));
                }
                let left = self.rows()?;
                Ok((left, n, w.operand(k, n), w.tensor()))
            }
        }
    }

    /// `[.., k]` as one matrix where rows lie one after the other, those of the residual too; else as a batch.
    fn rows(&self) -> Result<Left> {
        let one = as_matrix(NAME, "a", self.a);
        let residual = self.residual.map(|r| as_matrix(NAME, "residual", r)).transpose();
        match (one, residual) {
            (Ok((m, k, strides)), Ok(_)) => Ok((1, m, k, strides)),
            (Err(error), _) | (_, Err(error)) => match dims("a", self.a) {
                Ok((batch, m, k)) => Ok((batch, m, k, tensor2(self.a).strides)),
                Err(_) => Err(error),
            },
        }
    }
}

/// (batch, rows, columns) of a tensor of two or three dimensions.
fn dims(field: &'static str, tensor: &Tensor) -> Result<(usize, usize, usize)> {
    match *tensor.shape() {
        [rows, cols] => Ok((1, rows, cols)),
        [batch, rows, cols] => Ok((batch, rows, cols)),
        _ => Err(shape_error(NAME, field, tensor, "two or three dimensions")),
    }
}
