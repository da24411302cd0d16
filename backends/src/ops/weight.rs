//! Weights in the layout that a device's rows want.

use super::{shape_error, view_error};
use crate::tensor::Tensor;
use perjoule_kernels::op::{Activation, Constant, Granularity, GroupedMatMul, MatMul, Policy, Tensor2};
use perjoule_kernels::{Alignment, DType, Error, Matrix, Op, PackFormat, Query, Result};

/// A weight `[n, k]`, or those of a mixture's experts `[experts, n, k]`, packed once into the layout that the device's rows want.
pub struct Weight {
    packed: Tensor,
    pack: Option<&'static PackFormat>,
    dtype: DType,
    shape: Vec<usize>,
}

impl Weight {
    /// Packs a dense `[n, k]` (or `[experts, n, k]`) tensor, as checkpoints store it, for products with inputs of the dtype
    /// `activations` and with the numbers of rows in `m` (the first counts most; of experts: tokens times experts of each): one packed
    /// copy serves prefill and decode. A weight that no row wants packed shares the memory of the tensor.
    pub fn pack(weight: &Tensor, activations: DType, m: &[usize]) -> Result<Self> {
        let (experts, n, k) = match *weight.shape() {
            [n, k] => (None, n, k),
            [experts, n, k] => (Some(experts), n, k),
            _ => return Err(shape_error("pack", "weight", weight, "[n, k] or [experts, n, k]")),
        };
        if !weight.is_dense() {
            return Err(view_error("pack", "weight", weight, "a dense tensor"));
        }
        let (dtype, device) = (weight.dtype(), weight.device());
        // products of i8 are i32
        let out = if activations == DType::I8 { DType::I32 } else { activations };
        let plain = Tensor2 { dtype, strides: Matrix::col_major(k, n) };
        let op = |m: usize| match experts {
            None => {
                let mut op = MatMul::linear(m, n, k, activations, dtype, out);
                // scales of 8 bits come with the call, of any granularity: no layout may be chosen that serves some of them only
                if dtype == DType::I8 {
                    (op.c.dtype, op.b_scale) = (DType::F32, Some(Granularity::Group(1)));
                }
                Op::from(op)
            }
            Some(experts) => Op::from(GroupedMatMul {
                experts,
                rows: m,
                n,
                k,
                a: Tensor2 { dtype: activations, strides: Matrix::row_major(m, k) },
                a_rows: m,
                a_divisor: 1,
                b: plain,
                b_constant: true,
                c: Tensor2 { dtype: out, strides: Matrix::row_major(m, n) },
                c_rows: m,
                bias: None,
                activation: Activation::None,
                policy: Policy::default(),
            }),
        };
        let (first, also) = m.split_first().unwrap_or((&1, &[]));
        let also: Vec<Op> = also.iter().map(|&m| op(m)).collect();
        // what lies elsewhere than a fresh tensor gets another row for the format, or the reason why there is none
        let alignment = Alignment::uniform(device.info().arena.align);
        let choice = device.select(Query { op: &op(*first), alignment }, &also)?;
        let shape = weight.shape().to_vec();
        let Some(format) = choice.pack else {
            return Ok(Weight { packed: weight.clone(), pack: None, dtype, shape });
        };
        let overflow = || Error::Overflow { op: "pack", what: "the packed weight" };
        let constant = Constant { operand: 1, matrices: experts.unwrap_or(1), n, k, plain };
        let buffer = device.pack_constant(&constant, format, weight.buffer())?;
        let blocks = usize::try_from(buffer.bytes()).map_err(|_| overflow())? / format.dtype.block_bytes();
        let packed =
            Tensor::from_buffer(device, buffer, format.dtype, [blocks * format.dtype.block_len()], [1])?;
        Ok(Weight { packed, pack: Some(format), dtype, shape })
    }

    /// Sizes as the plain weight had them: `[n, k]` or `[experts, n, k]`.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Element type of the plain weight.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Name of the packed layout; `None` when the row reads the weight as it was.
    pub fn format(&self) -> Option<&'static str> {
        self.pack.map(|p| p.name)
    }

    /// Layout that its rows are looked up by.
    pub(super) fn pack_format(&self) -> Option<&'static PackFormat> {
        self.pack
    }

    pub(super) fn tensor(&self) -> &Tensor {
        &self.packed
    }

    /// The matrices `k x n` that it stands for; `batch` is the distance between experts, 0 for a single weight.
    pub(super) fn operand(&self, k: usize, n: usize) -> Tensor2 {
        let strides = Matrix::col_major(k, n);
        let batch = if self.shape.len() == 3 { strides.batch } else { 0 };
        Tensor2 { dtype: self.dtype, strides: Matrix { batch, ..strides } }
    }
}

impl std::fmt::Debug for Weight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let format = self.format().unwrap_or("as it was");
        let device = &self.packed.device().info().label;
        write!(f, "Weight({} {:?}, packed {format} on {device})", self.dtype, self.shape)
    }
}
