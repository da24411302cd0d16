//! Matrix products.

use super::{run_packed, shape_error};
use crate::device::Device;
use crate::tensor::Tensor;
use perjoule_kernels::op::{Activation, MatMul, Pack, Policy, Tensor2};
use perjoule_kernels::{DType, Error, Matrix, Op, PackFormat, Result};

const NAME: &str = "matmul";

/// `a b`: `[m, k] x [k, n]`, or batched `[batch, m, k] x [batch, k, n]`; a `b` of two dimensions serves every batch. Transposed
/// views ([`Tensor::transpose`]) are read as they are. The result has the dtype of `a` (i32 for i8).
pub fn matmul(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    matmul_with(a, b).run()
}

/// The same with an epilogue: set what is needed, then [`MatMulCall::run`].
pub fn matmul_with<'a>(a: &'a Tensor, b: &'a Tensor) -> MatMulCall<'a> {
    MatMulCall::new(a, Right::Tensor(b))
}

/// `x w^T` with a packed weight: `[m, k]` or `[batch, m, k]` gives `[.., m, n]`.
pub fn linear<'a>(x: &'a Tensor, weight: &'a Weight) -> MatMulCall<'a> {
    MatMulCall::new(x, Right::Weight(weight))
}

enum Right<'a> {
    Tensor(&'a Tensor),
    Weight(&'a Weight),
}

/// A matrix product about to run: `residual + activation(scale * a b + bias)`.
#[must_use = "nothing happens before `run`"]
pub struct MatMulCall<'a> {
    a: &'a Tensor,
    b: Right<'a>,
    scale: f32,
    bias: Option<&'a Tensor>,
    activation: Activation,
    residual: Option<&'a Tensor>,
    out: Option<DType>,
    policy: Policy,
}

impl<'a> MatMulCall<'a> {
    fn new(a: &'a Tensor, b: Right<'a>) -> Self {
        MatMulCall {
            a,
            b,
            scale: 1.0,
            bias: None,
            activation: Activation::None,
            residual: None,
            out: None,
            policy: Policy::default(),
        }
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

    /// Element type of the result.
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
        let (batch, m, k) = dims("a", self.a)?;
        let (n, b, b_buffer) = match self.b {
            Right::Tensor(b) => {
                let (b_batch, b_k, n) = dims("b", b)?;
                if b_k != k || (b.shape().len() == 3 && b_batch != batch) {
                    return Err(shape_error(NAME, "b", b, format!("[{k}, n] or [{batch}, {k}, n]")));
                }
                (n, tensor2(b), b)
            }
            Right::Weight(w) => {
                if w.k != k {
                    return Err(shape_error(NAME, "a", self.a, format!("a last dimension of {}", w.k)));
                }
                (w.n, Tensor2 { dtype: w.dtype, strides: w.strides() }, &w.packed)
            }
        };
        let i8_only = self.a.dtype() == DType::I8 && self.bias.is_none() && self.residual.is_none();
        let dtype = self.out.unwrap_or(match self.a.dtype() {
            DType::I8 if i8_only => DType::I32,
            DType::I8 => DType::F32,
            float => float,
        });
        let shape = match self.a.shape().len() {
            3 => vec![batch, m, n],
            _ => vec![m, n],
        };
        let out = Tensor::zeros(self.a.device(), dtype, shape)?;
        let mut op = MatMul::nn(m, n, k, self.a.dtype(), b.dtype, dtype);
        (op.batch, op.a, op.b, op.c) = (batch, tensor2(self.a), b, tensor2(&out));
        op.policy = self.policy;
        op.epilogue.scale = self.scale;
        op.epilogue.activation = self.activation;
        let mut args = vec![self.a, b_buffer];
        if let Some(bias) = self.bias {
            if bias.shape() != [n] || !bias.is_dense() {
                return Err(shape_error(NAME, "bias", bias, format!("a dense vector of {n}")));
            }
            op.epilogue.bias = Some(bias.dtype());
            args.push(bias);
        }
        if let Some(residual) = self.residual {
            if residual.shape() != out.shape() {
                return Err(shape_error(NAME, "residual", residual, format!("the shape {:?}", out.shape())));
            }
            op.epilogue.residual = Some(tensor2(residual));
            args.push(residual);
        }
        args.push(&out);
        let pack = match self.b {
            Right::Weight(w) => {
                op.b_constant = true;
                w.pack
            }
            Right::Tensor(_) => None,
        };
        run_packed(&op.into(), pack, &args)?;
        Ok(out)
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

fn tensor2(tensor: &Tensor) -> Tensor2 {
    let strides = match *tensor.strides() {
        [batch, row, col] => Matrix { row, col, batch },
        [row, col] => Matrix { row, col, batch: 0 },
        _ => Matrix { row: 0, col: 0, batch: 0 },
    };
    Tensor2 { dtype: tensor.dtype(), strides }
}

/// A weight `[n, k]` packed once into the layout that the device's rows want.
pub struct Weight {
    packed: Tensor,
    pack: Option<&'static PackFormat>,
    dtype: DType,
    n: usize,
    k: usize,
}

impl Weight {
    /// Packs a dense `[n, k]` tensor, as checkpoints store it, for products with inputs of the dtype `activations` and with the
    /// numbers of rows in `m` (the first counts most): one packed copy serves prefill and decode.
    pub fn pack(weight: &Tensor, activations: DType, m: &[usize]) -> Result<Self> {
        let [n, k] = *weight.shape() else {
            return Err(shape_error("pack", "weight", weight, "two dimensions: [n, k]"));
        };
        if !weight.is_dense() {
            return Err(shape_error("pack", "weight", weight, "a dense tensor; copy it first"));
        }
        let dtype = weight.dtype();
        let device: &Device = weight.device();
        let op = |m: usize| Op::from(MatMul::linear(m, n, k, activations, dtype, activations));
        let (first, also) = m.split_first().unwrap_or((&1, &[]));
        let also: Vec<Op> = also.iter().map(|&m| op(m)).collect();
        let choice = device.select(&op(*first), &also)?;
        let Some(format) = choice.pack else {
            return Ok(Weight { packed: weight.clone(), pack: None, dtype, n, k });
        };
        let overflow = Error::Overflow { op: "pack", what: "the packed weight" };
        let bytes = format.bytes(n, k).ok_or(overflow)?;
        let buffer = device.alloc(bytes)?;
        let elements = usize::try_from(bytes).unwrap_or(usize::MAX) / format.dtype.block_bytes()
            * format.dtype.block_len();
        let packed = Tensor::from_buffer(device, buffer, format.dtype, [elements], [1])?;
        let plain = Tensor2 { dtype, strides: Matrix::col_major(k, n) };
        run_packed(&Pack { format, matrices: 1, n, k, b: plain }.into(), None, &[weight, &packed])?;
        Ok(Weight { packed, pack: Some(format), dtype, n, k })
    }

    /// Sizes as the plain weight had them: `[n, k]`.
    pub fn shape(&self) -> [usize; 2] {
        [self.n, self.k]
    }

    /// Name of the packed layout; `None` when the row reads the weight as it was.
    pub fn format(&self) -> Option<&'static str> {
        self.pack.map(|p| p.name)
    }

    fn strides(&self) -> Matrix {
        Matrix { batch: 0, ..Matrix::col_major(self.k, self.n) }
    }
}
