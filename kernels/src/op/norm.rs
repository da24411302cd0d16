//! Root-mean-square and layer normalisation, with a fused residual addition (arXiv:1910.07467, arXiv:1607.06450).

use super::check::{
    bytes_of, ensure, ensure_disjoint, ensure_extent, ensure_float, ensure_like, product, rows_bytes, total,
};
use super::key::Key;
use super::{Op, Operand, Spec, Values};
use crate::buffer::Access;
use crate::dtype::DType;
use crate::error::Result;
use crate::layout::Rows;

/// A residual stream that a norm adds to its input first.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Residual {
    /// Where the residual lies; shape and element type of the input.
    pub rows: Rows,
    /// Where `x + residual` is stored, in the element type of the input.
    pub sum: Rows,
}

/// `out = x / sqrt(mean(x^2) + eps) * (weight_offset + weight)` over each vector.
///
/// Operands: `x`, `residual` (when present), `weight` (`[len]`), then `sum` (with a residual) and `out`.
///
/// With a residual, `x + residual` is stored as `sum` and takes the place of `x`. What is normalised is the sum *before* it is
/// rounded to the element type. Dtypes: floats. Vectors of no elements are refused.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct RmsNorm {
    /// The vectors.
    pub x: Rows,
    /// Their element type.
    pub x_dtype: DType,
    /// Element type of the weight.
    pub weight: DType,
    /// Added to the weight: 1 for Gemma, else 0.
    pub weight_offset: f32,
    /// Added to the mean square; not negative.
    pub eps: f32,
    /// Added to the input first.
    pub residual: Option<Residual>,
    /// Where the result lies.
    pub out: Rows,
    /// Its element type.
    pub out_dtype: DType,
}

/// `out = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias` over each vector, with the population variance.
///
/// Operands: `x`, `residual` (when present), `weight` (`[len]`), `bias` (`[len]`, when present), then `sum` (with a residual) and
/// `out`. Residual and dtypes as for [`RmsNorm`]; the bias has the element type of the weight.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct LayerNorm {
    /// The vectors.
    pub x: Rows,
    /// Their element type.
    pub x_dtype: DType,
    /// Element type of weight and bias.
    pub weight: DType,
    /// Whether there is a bias.
    pub bias: bool,
    /// Added to the variance; not negative.
    pub eps: f32,
    /// Added to the input first.
    pub residual: Option<Residual>,
    /// Where the result lies.
    pub out: Rows,
    /// Its element type.
    pub out_dtype: DType,
}

impl RmsNorm {
    /// `rows` dense vectors of `len` elements, all of one type but the f32 weight; `eps` is 1e-6.
    pub fn dense(rows: usize, len: usize, dtype: DType) -> Self {
        let rows = Rows::dense(rows, len);
        RmsNorm {
            x: rows,
            x_dtype: dtype,
            weight: DType::F32,
            weight_offset: 0.0,
            eps: 1e-6,
            residual: None,
            out: rows,
            out_dtype: dtype,
        }
    }

    fn common(&self) -> Common {
        let Self { x, x_dtype, weight, eps, residual, out, out_dtype, .. } = *self;
        Common { name: "rms_norm", x, x_dtype, weight, bias: false, eps, residual, out, out_dtype }
    }
}

impl LayerNorm {
    /// `rows` dense vectors of `len` elements, all of one type but the f32 weight and bias; `eps` is 1e-5.
    pub fn dense(rows: usize, len: usize, dtype: DType) -> Self {
        let rows = Rows::dense(rows, len);
        LayerNorm {
            x: rows,
            x_dtype: dtype,
            weight: DType::F32,
            bias: true,
            eps: 1e-5,
            residual: None,
            out: rows,
            out_dtype: dtype,
        }
    }

    fn common(&self) -> Common {
        let Self { x, x_dtype, weight, bias, eps, residual, out, out_dtype } = *self;
        Common { name: "layer_norm", x, x_dtype, weight, bias, eps, residual, out, out_dtype }
    }
}

/// What the two norms share.
struct Common {
    name: &'static str,
    x: Rows,
    x_dtype: DType,
    weight: DType,
    bias: bool,
    eps: f32,
    residual: Option<Residual>,
    out: Rows,
    out_dtype: DType,
}

/// One vector as a norm sees it.
struct Vector<'a> {
    /// Its elements, the residual added.
    x: &'a [f64],
    /// Sum of the absolute values of the terms of each.
    size: &'a [f64],
    weight: &'a [f64],
    /// Empty when there is none.
    bias: &'a [f64],
}

impl Common {
    fn validate(&self) -> Result<()> {
        let name = self.name;
        ensure_float(name, "dtype of x", self.x_dtype)?;
        ensure_float(name, "dtype of weight", self.weight)?;
        ensure_float(name, "dtype of out", self.out_dtype)?;
        ensure(self.x.len > 0, name, "len of x", 0, "at least 1")?;
        ensure(
            self.eps.is_finite() && self.eps >= 0.0,
            name,
            "eps",
            self.eps,
            "a finite number, not negative",
        )?;
        ensure_extent(name, "x", self.x)?;
        ensure_like(name, "shape of out", self.out, self.x)?;
        ensure_disjoint(name, "strides of out", self.out)?;
        if let Some(residual) = self.residual {
            ensure_like(name, "shape of residual", residual.rows, self.x)?;
            ensure_extent(name, "residual", residual.rows)?;
            ensure_like(name, "shape of sum", residual.sum, self.x)?;
            ensure_disjoint(name, "strides of sum", residual.sum)?;
        }
        Ok(())
    }

    fn operands(&self) -> Vec<Operand> {
        use Access::{Read, Write};
        let mut list = vec![Operand::data("x", self.x_dtype, self.x.extent(), Read)];
        if let Some(residual) = self.residual {
            list.push(Operand::data("residual", self.x_dtype, residual.rows.extent(), Read));
        }
        list.push(Operand::data("weight", self.weight, Some(self.x.len), Read));
        if self.bias {
            list.push(Operand::data("bias", self.weight, Some(self.x.len), Read));
        }
        if let Some(residual) = self.residual {
            list.push(Operand::data("sum", self.x_dtype, residual.sum.extent(), Write));
        }
        list.push(Operand::data("out", self.out_dtype, self.out.extent(), Write));
        list
    }

    fn key(&self, spec: &dyn Spec) -> Key {
        let key = Key::new(spec).rows("x", &self.x).rows("out", &self.out);
        match &self.residual {
            Some(r) => key.rows("residual", &r.rows).rows("sum", &r.sum),
            None => key,
        }
    }

    fn shape(&self) -> Vec<(&'static str, usize)> {
        vec![("rows", self.x.count().unwrap_or(usize::MAX)), ("len", self.x.len)]
    }

    fn flops(&self, each: usize) -> u64 {
        let each = each + usize::from(self.residual.is_some());
        product(&[each, self.x.outer, self.x.inner, self.x.len])
    }

    fn bytes(&self) -> u64 {
        let residual = self
            .residual
            .map_or(0, |r| rows_bytes(self.x_dtype, r.rows).saturating_add(rows_bytes(self.x_dtype, r.sum)));
        let vectors = 1 + usize::from(self.bias);
        total(&[
            rows_bytes(self.x_dtype, self.x),
            rows_bytes(self.out_dtype, self.out),
            residual,
            bytes_of(self.weight, product(&[vectors, self.x.len])),
        ])
    }

    /// Adds the residual and applies `normalise` to each vector; it gives value and magnitude of every element.
    fn reference(&self, args: &mut [Values], normalise: impl Fn(Vector<'_>) -> Vec<(f64, f64)>) {
        let Some((out, args)) = args.split_last_mut() else { return };
        let weight = 1 + usize::from(self.residual.is_some());
        let len = self.x.len;
        for o in 0..self.x.outer {
            for i in 0..self.x.inner {
                let from = self.x.start(o, i);
                let mut x = args[0].value[from..from + len].to_vec();
                let mut size: Vec<f64> = x.iter().map(|v| v.abs()).collect();
                if let Some(residual) = self.residual {
                    let from = residual.rows.start(o, i);
                    let to = residual.sum.start(o, i);
                    for d in 0..len {
                        let r = args[1].value[from + d];
                        x[d] += r;
                        size[d] += r.abs();
                    }
                    if let Some(sum) = args.last_mut() {
                        (0..len).for_each(|d| sum.set(to + d, x[d], size[d]));
                    }
                }
                let bias: &[f64] = if self.bias { &args[weight + 1].value[..len] } else { &[] };
                let vector = Vector { x: &x, size: &size, weight: &args[weight].value[..len], bias };
                let to = self.out.start(o, i);
                for (d, (value, magnitude)) in normalise(vector).into_iter().enumerate() {
                    out.set(to + d, value, magnitude);
                }
            }
        }
    }
}

impl Spec for RmsNorm {
    fn name(&self) -> &'static str {
        self.common().name
    }

    fn validate(&self) -> Result<()> {
        self.common().validate()?;
        ensure(
            self.weight_offset.is_finite(),
            self.name(),
            "weight_offset",
            self.weight_offset,
            "a finite number",
        )
    }

    fn operands(&self) -> Vec<Operand> {
        self.common().operands()
    }

    fn dtypes(&self) -> Vec<DType> {
        vec![self.x_dtype, self.weight, self.out_dtype]
    }

    fn shape(&self) -> Vec<(&'static str, usize)> {
        self.common().shape()
    }

    fn tuning_key(&self) -> String {
        self.common().key(self).flag("offset", self.weight_offset != 0.0).finish()
    }

    fn flops(&self) -> u64 {
        self.common().flops(4)
    }

    fn bytes(&self) -> u64 {
        self.common().bytes()
    }

    fn reduction(&self) -> usize {
        self.x.len
    }

    fn reference(&self, args: &mut [Values]) {
        let offset = f64::from(self.weight_offset);
        self.common().reference(args, |v| {
            let squares: f64 = v.x.iter().map(|x| x * x).sum();
            let inverse = 1.0 / (squares / v.x.len() as f64 + f64::from(self.eps)).sqrt();
            // errors of the elements reach the mean square weighted by the elements
            let weighted: f64 = v.x.iter().zip(v.size).map(|(x, s)| x.abs() * s).sum();
            let condition = if squares > 0.0 { weighted / squares } else { 1.0 };
            let element = |d: usize| {
                let weight = offset + v.weight[d];
                let value = v.x[d] * inverse * weight;
                let terms = v.size[d] * inverse * (offset.abs() + v.weight[d].abs());
                (value, terms + value.abs() * condition)
            };
            (0..v.x.len()).map(element).collect()
        });
    }
}

impl Spec for LayerNorm {
    fn name(&self) -> &'static str {
        self.common().name
    }

    fn validate(&self) -> Result<()> {
        self.common().validate()
    }

    fn operands(&self) -> Vec<Operand> {
        self.common().operands()
    }

    fn dtypes(&self) -> Vec<DType> {
        vec![self.x_dtype, self.weight, self.out_dtype]
    }

    fn shape(&self) -> Vec<(&'static str, usize)> {
        self.common().shape()
    }

    fn tuning_key(&self) -> String {
        self.common().key(self).finish()
    }

    fn flops(&self) -> u64 {
        self.common().flops(7 + usize::from(self.bias))
    }

    fn bytes(&self) -> u64 {
        self.common().bytes()
    }

    fn reduction(&self) -> usize {
        self.x.len
    }

    fn reference(&self, args: &mut [Values]) {
        self.common().reference(args, |v| {
            let n = v.x.len() as f64;
            let mean = v.x.iter().sum::<f64>() / n;
            let mean_size = v.size.iter().sum::<f64>() / n;
            let centred: Vec<f64> = v.x.iter().map(|x| x - mean).collect();
            let squares: f64 = centred.iter().map(|c| c * c).sum();
            let spread = squares + n * f64::from(self.eps);
            let inverse = 1.0 / (spread / n).sqrt();
            // errors of the centred elements reach the variance weighted by these
            let weighted: f64 = centred.iter().zip(v.size).map(|(c, s)| c.abs() * (s + mean_size)).sum();
            let condition = if spread > 0.0 { weighted / spread } else { 1.0 };
            let element = |d: usize| {
                let value = centred[d] * inverse * v.weight[d];
                let terms = (v.size[d] + mean_size) * inverse * v.weight[d].abs();
                let bias = v.bias.get(d).copied().unwrap_or(0.0);
                (value + bias, terms + value.abs() * condition + bias.abs())
            };
            (0..v.x.len()).map(element).collect()
        });
    }
}

/// What the two norms share, for kernels that do both.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Norm {
    /// Whether the mean is subtracted.
    pub layer: bool,
    /// Where the vectors lie.
    pub x: Rows,
    /// Their element type.
    pub x_dtype: DType,
    /// Element type of the weight.
    pub weight: DType,
    /// What is added to the weight.
    pub weight_offset: f32,
    /// Whether there is a bias.
    pub bias: bool,
    /// What is added to the mean square.
    pub eps: f32,
    /// What is added to the vectors first.
    pub residual: Option<Residual>,
    /// Where the results lie.
    pub out: Rows,
    /// Their element type.
    pub out_dtype: DType,
}

impl Norm {
    /// The norm that the op is; `None` for other ops.
    pub fn of(op: &Op) -> Option<Norm> {
        match *op {
            Op::RmsNorm(op) => Some(Norm {
                layer: false,
                x: op.x,
                x_dtype: op.x_dtype,
                weight: op.weight,
                weight_offset: op.weight_offset,
                bias: false,
                eps: op.eps,
                residual: op.residual,
                out: op.out,
                out_dtype: op.out_dtype,
            }),
            Op::LayerNorm(op) => Some(Norm {
                layer: true,
                x: op.x,
                x_dtype: op.x_dtype,
                weight: op.weight,
                weight_offset: 0.0,
                bias: op.bias,
                eps: op.eps,
                residual: op.residual,
                out: op.out,
                out_dtype: op.out_dtype,
            }),
            _ => None,
        }
    }
}
