//! Root-mean-square and layer normalisation.

use super::elementwise::Value;
use super::rows::{self, RowsParam, run_align, whole_runs};
use super::{Builder, Dims, Place, other_op};
use crate::pipeline::Checks;
use crate::shader::Variant;
use bytemuck::{Pod, Zeroable};
use perjoule_kernels::op::{Op, Residual};
use perjoule_kernels::{Candidate, DType, Launch, Reason, Request, Result, Rows};
use perjoule_shaders::{Source, wgsl};

/// `Params` of `norm/range.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct NormParams {
    x: RowsParam,
    residual: RowsParam,
    sum: RowsParam,
    out: RowsParam,
    eps: f32,
    weight_offset: f32,
    unused: [u32; 2],
}

/// What the two norms share.
struct Norm {
    layer: bool,
    x: Rows,
    x_dtype: DType,
    weight: DType,
    weight_offset: f32,
    bias: bool,
    eps: f32,
    residual: Option<Residual>,
    out: Rows,
    out_dtype: DType,
}

impl Norm {
    fn of(op: &Op) -> Option<Norm> {
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

    fn params(&self) -> NormParams {
        NormParams {
            x: self.x.into(),
            residual: self.residual.map_or(self.x, |r| r.rows).into(),
            sum: self.residual.map_or(self.x, |r| r.sum).into(),
            out: self.out.into(),
            eps: self.eps,
            weight_offset: self.weight_offset,
            unused: [0; 2],
        }
    }

    fn variant(&self, value: Value) -> Variant {
        let fused = self.residual.is_some();
        Variant::of(vec![
            value.read("x", self.x_dtype),
            value.read("residual", self.x_dtype).when(fused),
            value.read("weight", self.weight),
            value.read("bias", self.weight).when(self.bias),
            value.write("sum", self.x_dtype).when(fused),
            value.write("out", self.out_dtype),
        ])
        .flag("LAYER", self.layer)
    }

    /// In the order of the op, which is that of the kernels.
    fn places(&self) -> Vec<Place> {
        let count = 3 + 2 * usize::from(self.residual.is_some()) + usize::from(self.bias);
        (0..count).map(Place::Operand).collect()
    }

    fn vectors(&self) -> usize {
        self.x.outer * self.x.inner
    }
}

/// Runs of four elements that an invocation holds at most: registers bound it.
const MOST_ITEMS: usize = 16;

/// Invocations that share a vector of so many runs, a power of two, and runs of each.
pub(super) fn shape(runs: usize) -> Option<(usize, usize)> {
    let width = runs.next_power_of_two().clamp(1, 256);
    let items = runs.div_ceil(width).next_power_of_two();
    (items <= MOST_ITEMS).then_some((width, items))
}

/// Why a vector does not fit into the registers of a workgroup.
pub(crate) fn refuse_registers(candidate: &Candidate<'_>) -> Option<Reason> {
    let Some(norm) = Norm::of(candidate.op) else {
        return Some(Reason::new(format!("{} is another op", candidate.op.name())));
    };
    if shape(norm.x.len / 4).is_none() {
        return Some(Reason::new("a vector is longer than the registers of a workgroup"));
    }
    let residual = norm.residual.iter().flat_map(|r| [r.rows, r.sum]);
    let mut views = residual.chain([norm.x, norm.out]);
    rows::refuse(candidate).or_else(|| views.find_map(whole_runs))
}

/// Bytes to whose multiple an operand has to begin.
pub(crate) fn align_runs(candidate: &Candidate<'_>, operand: usize) -> u32 {
    candidate.op.operands().get(operand).map_or(1, |operand| run_align(operand.dtype))
}

/// Rows of vectors in registers.
pub(crate) fn prepare_registers(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let norm = Norm::of(request.op).ok_or_else(|| other_op(request.op))?;
    let (width, items) = shape(norm.x.len / 4).ok_or_else(|| other_op(request.op))?;
    let mut builder = Builder::new(request, request.op.name())?;
    let variant = norm.variant(Value::Four).uint("WIDTH", width).uint("ITEMS", items);
    let headers: &[&Source] = &[&wgsl::ELEMENT, &wgsl::LAYOUT, &wgsl::FOUR, &wgsl::REDUCE, &wgsl::NORM_RANGE];
    let dims = Dims::line(norm.vectors() as u64, 256 / width as u64)?;
    let program = (&wgsl::NORM_REGISTERS, headers, "norm");
    builder.step(program, (&variant, Checks::None), dims, &norm.params(), norm.places())?;
    Ok(builder.finish())
}

/// Rows that run everything.
pub(crate) fn prepare_any(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let norm = Norm::of(request.op).ok_or_else(|| other_op(request.op))?;
    let mut builder = Builder::new(request, request.op.name())?;
    let variant = norm.variant(Value::One).uint("WIDTH", 256);
    let headers: &[&Source] = &[&wgsl::ELEMENT, &wgsl::LAYOUT, &wgsl::REDUCE, &wgsl::NORM_RANGE];
    let dims = Dims::line(norm.vectors() as u64, 1)?;
    let program = (&wgsl::NORM_ROWS, headers, "norm");
    builder.step(program, (&variant, Checks::None), dims, &norm.params(), norm.places())?;
    Ok(builder.finish())
}
