//! Norms.

use super::{as_rows_alike, expect_dense, expect_dtype, like, run, shape_error};
use crate::tensor::Tensor;
use perjoule_kernels::op::{LayerNorm, Residual, RmsNorm};
use perjoule_kernels::{DType, Result, Rows};

const RMS: &str = "rms_norm";
const LAYER: &str = "layer_norm";

/// `x / sqrt(mean(x^2) + eps) * weight` along the last dimension; `weight` is a dense vector of any float type.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    rms_norm_with(x, weight, eps).run()
}

/// Adds `residual` (shape and dtype of `x`) to `x` first: returns the sum, and the sum normalised.
pub fn rms_norm_residual(
    x: &Tensor,
    residual: &Tensor,
    weight: &Tensor,
    eps: f32,
) -> Result<(Tensor, Tensor)> {
    rms_norm_with(x, weight, eps).run_residual(residual)
}

/// The same with an offset of the weight or another dtype of the result: set what is needed, then run.
pub fn rms_norm_with<'a>(x: &'a Tensor, weight: &'a Tensor, eps: f32) -> RmsNormCall<'a> {
    RmsNormCall { x, weight, eps, weight_offset: 0.0, out: None }
}

/// A root-mean-square norm about to run: `x / sqrt(mean(x^2) + eps) * (offset + weight)`.
#[derive(Debug, Clone, Copy)]
#[must_use = "nothing happens before `run` or `run_residual`"]
pub struct RmsNormCall<'a> {
    x: &'a Tensor,
    weight: &'a Tensor,
    eps: f32,
    weight_offset: f32,
    out: Option<DType>,
}

impl RmsNormCall<'_> {
    /// Added to the weight: 1 for Gemma.
    pub fn weight_offset(mut self, offset: f32) -> Self {
        self.weight_offset = offset;
        self
    }

    /// Element type of the normalised result; that of `x` unless set.
    pub fn out_dtype(mut self, dtype: DType) -> Self {
        self.out = Some(dtype);
        self
    }

    fn op(&self, x: Rows, residual: Option<Residual>) -> RmsNorm {
        RmsNorm {
            x,
            x_dtype: self.x.dtype(),
            weight: self.weight.dtype(),
            weight_offset: self.weight_offset,
            eps: self.eps,
            residual,
            out: Rows::grid(x.outer, x.inner, x.len),
            out_dtype: self.out.unwrap_or(self.x.dtype()),
        }
    }

    /// Normalises `x`.
    pub fn run(self) -> Result<Tensor> {
        let [rows] = as_rows_alike(RMS, [("x", self.x)])?;
        expect_dense(RMS, "weight", self.weight, &[rows.len])?;
        let op = self.op(rows, None);
        let (out, _) = like(self.x, op.out_dtype, rows)?;
        run(op, &[self.x, self.weight, &out])?;
        Ok(out)
    }

    /// Adds `residual` (shape and dtype of `x`) to `x` first: returns the sum, and the sum normalised.
    pub fn run_residual(self, residual: &Tensor) -> Result<(Tensor, Tensor)> {
        let (sum, rows, added) = sum(RMS, self.x, residual)?;
        expect_dense(RMS, "weight", self.weight, &[rows.len])?;
        let op = self.op(rows, Some(added));
        let (out, _) = like(self.x, op.out_dtype, rows)?;
        run(op, &[self.x, residual, self.weight, &sum, &out])?;
        Ok((sum, out))
    }
}

/// A tensor for `x + residual`, the rows of `x`, and the descriptor of the addition.
fn sum(op: &'static str, x: &Tensor, residual: &Tensor) -> Result<(Tensor, Rows, Residual)> {
    if residual.shape() != x.shape() {
        return Err(shape_error(op, "residual", residual, format!("the shape of x, {:?}", x.shape())));
    }
    expect_dtype(op, "residual", residual, x.dtype())?;
    let [rows, added] = as_rows_alike(op, [("x", x), ("residual", residual)])?;
    let (sum, sum_rows) = like(x, x.dtype(), rows)?;
    Ok((sum, rows, Residual { rows: added, sum: sum_rows }))
}

/// `(x - mean) / sqrt(var + eps) * weight + bias` along the last dimension; `weight` and `bias` are dense vectors of one float type.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, eps: f32) -> Result<Tensor> {
    let [rows] = as_rows_alike(LAYER, [("x", x)])?;
    let (out, _) = like(x, x.dtype(), rows)?;
    normalise(rows, None, x, weight, bias, eps, &out)?;
    Ok(out)
}

/// Adds `residual` (shape and dtype of `x`) to `x` first: returns the sum, and the sum normalised.
pub fn layer_norm_residual(
    x: &Tensor,
    residual: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    eps: f32,
) -> Result<(Tensor, Tensor)> {
    let (sum, rows, added) = sum(LAYER, x, residual)?;
    let (out, _) = like(x, x.dtype(), rows)?;
    normalise(rows, Some((residual, &sum, added)), x, weight, bias, eps, &out)?;
    Ok((sum, out))
}

fn normalise(
    rows: Rows,
    added: Option<(&Tensor, &Tensor, Residual)>,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    eps: f32,
    out: &Tensor,
) -> Result<()> {
    expect_dense(LAYER, "weight", weight, &[rows.len])?;
    if let Some(bias) = bias {
        expect_dense(LAYER, "bias", bias, &[rows.len])?;
        expect_dtype(LAYER, "bias", bias, weight.dtype())?;
    }
    let op = LayerNorm {
        x: rows,
        x_dtype: x.dtype(),
        weight: weight.dtype(),
        bias: bias.is_some(),
        eps,
        residual: added.map(|(_, _, residual)| residual),
        out: Rows::grid(rows.outer, rows.inner, rows.len),
        out_dtype: out.dtype(),
    };
    let mut args = vec![x];
    args.extend(added.map(|(residual, _, _)| residual));
    args.push(weight);
    args.extend(bias);
    args.extend(added.map(|(_, sum, _)| sum));
    args.push(out);
    run(op, &args)
}
