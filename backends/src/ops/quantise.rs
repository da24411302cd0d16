//! Conversion of the element type.

use super::{as_rows, like, run, view_error};
use crate::tensor::Tensor;
use perjoule_kernels::op::{Cast, Granularity, Quantise};
use perjoule_kernels::{DType, Error, Result};

/// The same numbers as another plain dtype: rounds to nearest even; f8e4m3 and integers saturate; reads block formats.
pub fn cast(x: &Tensor, dtype: DType) -> Result<Tensor> {
    let rows = as_rows("cast", "x", x)?;
    if dtype.is_block() {
        let expected = "a plain dtype; ops::quantise makes block formats".into();
        return Err(Error::Invalid { op: "cast", field: "dtype", got: dtype.to_string(), expected });
    }
    let (out, out_rows) = like(x, dtype, rows)?;
    run(Cast { x: rows, from: x.dtype(), out: out_rows, to: dtype }, &[x, &out])?;
    Ok(out)
}

/// A dense tensor of floats quantised to a block format, bit-compatible with llama.cpp's (mxfp4: OCP MX).
pub fn quantise(x: &Tensor, format: DType) -> Result<Tensor> {
    let rows = as_rows("quantise", "x", x)?;
    if !x.is_dense() {
        return Err(view_error("quantise", "x", x, "a dense tensor"));
    }
    if !format.is_block() {
        let expected = "a block format; ops::quantise_scaled makes i8 and f8e4m3, ops::cast plain dtypes";
        let got = format.to_string();
        return Err(Error::Invalid { op: "quantise", field: "format", got, expected: expected.into() });
    }
    let (out, _) = like(x, format, rows)?;
    run(Quantise { x: rows, from: x.dtype(), to: format, scale: None }, &[x, &out])?;
    Ok(out)
}

/// A tensor quantised to i8 or f8e4m3, and the scales beside it: element = value * scale.
#[derive(Debug, Clone)]
pub struct Quantised {
    /// i8 or f8e4m3, of the shape of the source.
    pub values: Tensor,
    /// f32: `[1]` for a whole tensor, `[..]` for vectors along the last dimension, `[.., groups]` for groups of these.
    pub scales: Tensor,
    /// Over what one scale holds.
    pub granularity: Granularity,
}

/// A dense tensor of floats (`[.., len]`) quantised to i8 or f8e4m3, with f32 scales that map the largest magnitude to 127 or 448.
/// [`super::MatMulCall::a_scale`] and [`super::MatMulCall::b_scale`] take them.
pub fn quantise_scaled(x: &Tensor, dtype: DType, granularity: Granularity) -> Result<Quantised> {
    let rows = as_rows("quantise", "x", x)?;
    if !x.is_dense() {
        return Err(view_error("quantise", "x", x, "a dense tensor"));
    }
    if !matches!(dtype, DType::I8 | DType::F8E4M3) {
        let expected = "i8 or f8e4m3; ops::quantise makes block formats, which carry their scales";
        let got = dtype.to_string();
        return Err(Error::Invalid { op: "quantise", field: "dtype", got, expected: expected.into() });
    }
    let lead = &x.shape()[..x.shape().len() - 1];
    let shape = match granularity {
        Granularity::Tensor => vec![1],
        Granularity::Vector => lead.to_vec(),
        Granularity::Group(group) => [lead, &[rows.len.div_ceil(group.max(1))]].concat(),
    };
    let (values, _) = like(x, dtype, rows)?;
    let scales = Tensor::unwritten(x.device(), DType::F32, shape)?;
    let op = Quantise { x: rows, from: x.dtype(), to: dtype, scale: Some(granularity) };
    run(op, &[x, &scales, &values])?;
    Ok(Quantised { values, scales, granularity })
}
