//! Softmax.

use super::norm::{MOST_RUNS, shape};
use super::rows::{RowsParam, define, grid, id, multiprocessors, run_of, whole_runs};
use super::steps::{Pointer, Steps, prepared};
use super::{module, other_op};
use bytemuck::{Pod, Zeroable};
use perjoule_kernels::op::{Op, Softmax};
use perjoule_kernels::{Candidate, Launch, Reason, Request, Result};
use perjoule_shaders::cuda;

/// `SoftmaxParams`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct SoftmaxParams {
    x: RowsParam,
    out: RowsParam,
    scale: f32,
    dtype: u32,
    out_dtype: u32,
    unused: u32,
}

fn params(op: &Softmax) -> SoftmaxParams {
    let Softmax { x, dtype, out, out_dtype, scale } = *op;
    SoftmaxParams {
        x: x.into(),
        out: out.into(),
        scale,
        dtype: id(dtype),
        out_dtype: id(out_dtype),
        unused: 0,
    }
}

/// Why a vector does not fit into the registers of a block.
pub(crate) fn refuse_registers(candidate: &Candidate<'_>) -> Option<Reason> {
    let Op::Softmax(op) = candidate.op else { return Some(Reason::new("it is no softmax")) };
    let run = run_of(&[op.out_dtype]);
    if op.x.len > run * MOST_RUNS {
        return Some(Reason::new("a vector is longer than the registers of a block"));
    }
    whole_runs(op.x, op.dtype, run).or_else(|| whole_runs(op.out, op.out_dtype, run))
}

pub(crate) fn prepare_registers(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let Op::Softmax(op) = request.op else { return Err(other_op(request.op)) };
    let (run, vectors) = (run_of(&[op.out_dtype]), op.x.outer * op.x.inner);
    let shape = shape(vectors, op.x.len / run, multiprocessors(request.info));
    let defines = [
        define("X", op.dtype),
        define("OUT", op.out_dtype),
        ("RUN", run.to_string()),
        ("ITEMS", shape.items.to_string()),
        ("THREADS", shape.threads.to_string()),
    ];
    let function = module(request, &cuda::SOFTMAX_REGISTERS, &defines)?.function("softmax_registers")?;
    let dims = grid(vectors.div_ceil(shape.block[1] as usize), shape.block)?;
    prepared(request, Steps::one(function, dims, params(op), vec![Pointer::Operand(0), Pointer::Operand(1)]))
}

pub(crate) fn prepare_any(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let Op::Softmax(op) = request.op else { return Err(other_op(request.op)) };
    let function = module(request, &cuda::SOFTMAX_ROWS, &[])?.function("softmax_rows")?;
    let dims = grid((op.x.outer * op.x.inner).min(i32::MAX as usize), [512, 1])?;
    prepared(request, Steps::one(function, dims, params(op), vec![Pointer::Operand(0), Pointer::Operand(1)]))
}
