//! Changing the element type: conversion, dequantisation, quantisation.

use super::check::{
    ensure, ensure_disjoint, ensure_extent, ensure_float, ensure_like, ensure_whole_blocks, product,
    rows_bytes, through_blocks, total,
};
use super::key::Key;
use super::{Granularity, Operand, Spec, Values};
use crate::buffer::Access;
use crate::dtype::DType;
use crate::error::Result;
use crate::layout::Rows;

const CAST: &str = "cast";
const QUANTISE: &str = "quantise";

/// Converts elements: any plain type to any other, or a block format to a float type.
///
/// Operands: `x`, `out`. Rounds to nearest, ties to even; f8e4m3 saturates; integers saturate, and NaN becomes 0
/// (see [`crate::block`]). Vectors of a block format are whole blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Cast {
    /// The vectors.
    pub x: Rows,
    /// Their element type.
    pub from: DType,
    /// Where the result lies.
    pub out: Rows,
    /// Its element type.
    pub to: DType,
}

impl Cast {
    /// `rows` dense vectors of `len` elements.
    pub fn dense(rows: usize, len: usize, from: DType, to: DType) -> Self {
        let rows = Rows::dense(rows, len);
        Cast { x: rows, from, out: rows, to }
    }
}

/// `value` as the integer type `dtype` holds it.
fn to_integer(dtype: DType, value: f64) -> f64 {
    let rounded = value.round_ties_even();
    match dtype {
        DType::I8 => f64::from(rounded as i8),
        DType::I32 => f64::from(rounded as i32),
        DType::U32 => f64::from(rounded as u32),
        _ => value,
    }
}

impl Spec for Cast {
    fn name(&self) -> &'static str {
        CAST
    }

    fn validate(&self) -> Result<()> {
        let ok = !self.to.is_block() && (!self.from.is_block() || self.to.is_float());
        ensure(
            ok,
            CAST,
            "dtypes",
            format!("{} to {}", self.from, self.to),
            "plain to plain, or a block format to a float type; quantise makes block formats",
        )?;
        ensure_extent(CAST, "x", self.x)?;
        ensure_whole_blocks(CAST, "vectors of x", self.from, self.x)?;
        ensure_like(CAST, "shape of out", self.out, self.x)?;
        ensure_disjoint(CAST, "strides of out", self.out)
    }

    fn operands(&self) -> Vec<Operand> {
        vec![
            Operand::data("x", self.from, self.x.extent(), Access::Read),
            Operand::data("out", self.to, self.out.extent(), Access::Write),
        ]
    }

    fn dtypes(&self) -> Vec<DType> {
        vec![self.from, self.to]
    }

    fn shape(&self) -> Vec<(&'static str, usize)> {
        vec![("rows", self.x.count().unwrap_or(usize::MAX)), ("len", self.x.len)]
    }

    fn tuning_key(&self) -> String {
        Key::new(self).rows("x", &self.x).rows("out", &self.out).finish()
    }

    fn flops(&self) -> u64 {
        0
    }

    fn bytes(&self) -> u64 {
        rows_bytes(self.from, self.x).saturating_add(rows_bytes(self.to, self.out))
    }

    fn reference(&self, args: &mut [Values]) {
        let [x, out] = args else { return };
        for o in 0..self.x.outer {
            for i in 0..self.x.inner {
                for d in 0..self.x.len {
                    let value = to_integer(self.to, x.value[self.x.start(o, i) + d]);
                    out.set(self.out.start(o, i) + d, value, value.abs());
                }
            }
        }
    }
}

/// Quantises dense vectors to a block format, or to i8 or f8e4m3 with f32 scales beside them.
///
/// Operands: `x`, `scales` (f32, written; not for block formats), `out` (dense, shaped like `x`).
///
/// Block formats quantise as [`crate::block::encode`] does and carry their scales; what a block holds whose source is not finite
/// is not specified. For the others `scale` says over what one scale holds: the tensor (`[1]`), each vector (`[rows]`) or each
/// group of a vector (`[rows, len / group]`, rounded up). All in f32: `scale = max|x| / limit`, where `limit` is 127 or 448, and
/// `out = round(x / scale)`, to nearest, ties to even, saturating. NaN does not count for the maximum; it becomes 0 in i8 and stays
/// NaN in f8e4m3. Where all are 0, scale and result are 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Quantise {
    /// The vectors, dense.
    pub x: Rows,
    /// Their element type, a float.
    pub from: DType,
    /// Element type of the result.
    pub to: DType,
    /// Over what one scale holds: none for block formats, some for i8 and f8e4m3.
    pub scale: Option<Granularity>,
}

impl Quantise {
    /// Elements that share a scale, and scales of a vector; the whole tensor counts as one vector.
    fn groups(&self) -> Option<(usize, usize)> {
        match self.scale? {
            Granularity::Tensor => Some((self.x.elements()?, 1)),
            Granularity::Vector => Some((self.x.len, 1)),
            Granularity::Group(group) => Some((group, self.x.len.div_ceil(group.max(1)))),
        }
    }

    fn scale_count(&self) -> Option<usize> {
        match self.scale? {
            Granularity::Tensor => Some(1),
            _ => self.x.count()?.checked_mul(self.groups()?.1),
        }
    }

    /// Largest value that a scaled element takes.
    fn limit(&self) -> f32 {
        self.to.max_value() as f32
    }
}

impl Spec for Quantise {
    fn name(&self) -> &'static str {
        QUANTISE
    }

    fn validate(&self) -> Result<()> {
        ensure_float(QUANTISE, "dtype of x", self.from)?;
        let scaled = matches!(self.to, DType::I8 | DType::F8E4M3);
        ensure(
            scaled || self.to.is_block(),
            QUANTISE,
            "dtype of out",
            self.to,
            "a block format, i8 or f8e4m3",
        )?;
        let scale = format!("{:?}", self.scale);
        if scaled {
            let given = self.scale.is_some_and(|g| g != Granularity::Group(0));
            ensure(given, QUANTISE, "scale", scale, "a granularity whose groups are not empty")?;
        } else {
            ensure(self.scale.is_none(), QUANTISE, "scale", scale, "none: block formats carry their scales")?;
        }
        ensure_extent(QUANTISE, "x", self.x)?;
        ensure(self.x.is_dense(), QUANTISE, "strides of x", format!("{:?}", self.x), "dense vectors")?;
        ensure_whole_blocks(QUANTISE, "vectors of x", self.to, self.x)
    }

    fn operands(&self) -> Vec<Operand> {
        let mut list = vec![Operand::data("x", self.from, self.x.extent(), Access::Read)];
        if self.scale.is_some() {
            list.push(Operand::data("scales", DType::F32, self.scale_count(), Access::Write));
        }
        list.push(Operand::data("out", self.to, self.x.extent(), Access::Write));
        list
    }

    fn dtypes(&self) -> Vec<DType> {
        vec![self.from, self.to]
    }

    fn shape(&self) -> Vec<(&'static str, usize)> {
        vec![("rows", self.x.count().unwrap_or(usize::MAX)), ("len", self.x.len)]
    }

    fn tuning_key(&self) -> String {
        Key::new(self).rows("x", &self.x).granularity("scale", self.scale).finish()
    }

    fn flops(&self) -> u64 {
        product(&[2, self.x.outer, self.x.inner, self.x.len])
    }

    fn bytes(&self) -> u64 {
        let scales = if self.scale.is_some() { self.scale_count().unwrap_or(usize::MAX) } else { 0 };
        total(&[rows_bytes(self.from, self.x), rows_bytes(self.to, self.x), product(&[4, scales])])
    }

    fn reference(&self, args: &mut [Values]) {
        let (x, mut scales, out) = match args {
            [x, out] => (x, None, out),
            [x, scales, out] => (x, Some(scales), out),
            _ => return,
        };
        let Some(elements) = self.x.elements() else { return };
        let Some((group, per_vector)) = self.groups() else {
            for (at, value) in through_blocks(self.to, &x.value[..elements]).into_iter().enumerate() {
                out.set(at, value, value.abs());
            }
            return;
        };
        let vector = if self.scale == Some(Granularity::Tensor) { elements } else { self.x.len };
        for (v, start) in (0..elements).step_by(vector.max(1)).enumerate() {
            for g in 0..per_vector {
                let from = start + g * group;
                let to = (from + group).min(start + vector);
                let values: Vec<f32> = x.value[from..to].iter().map(|&x| x as f32).collect();
                let largest = values.iter().fold(0f32, |most, x| most.max(x.abs()));
                let scale = largest / self.limit();
                if let Some(scales) = scales.as_deref_mut() {
                    scales.set(v * per_vector + g, f64::from(scale), f64::from(scale));
                }
                for (at, x) in (from..to).zip(values) {
                    let scaled = if scale == 0.0 && !x.is_nan() { 0.0 } else { f64::from(x / scale) };
                    let code = to_integer(self.to, scaled);
                    out.set(at, code, code.abs());
                }
            }
        }
        if elements == 0
            && self.scale == Some(Granularity::Tensor)
            && let Some(scales) = scales
        {
            scales.set(0, 0.0, 0.0);
        }
    }
}
