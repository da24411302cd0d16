//! Addition, gated activations, conversions, rows of tables, sums of experts' results, and copies: a thread takes a few runs.

use super::rows::{RowsParam, define, grid, id, run_of, tiles, whole_runs};
use super::steps::{Pointer, Steps, prepared};
use super::{Dims, module, other_op};
use bytemuck::{NoUninit, Pod, Zeroable};
use perjoule_kernels::layout::collapse;
use perjoule_kernels::op::{Add, Cast, Collective, Combine, Embed, Gated, GatedKind, Op};
use perjoule_kernels::{Candidate, DType, Launch, Reason, Request, Result, Rows};
use perjoule_shaders::{Source, cuda};

const THREADS: usize = 256;

/// `AddParams`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct AddParams {
    views: [RowsParam; 3],
    parts: u32,
    dtype: u32,
}

/// `GatedParams`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct GatedParams {
    views: [RowsParam; 3],
    parts: u32,
    kind: u32,
    dtype: u32,
    out_dtype: u32,
    alpha: f32,
    limit: f32,
}

/// `CastParams`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct CastParams {
    views: [RowsParam; 2],
    parts: u32,
    from: u32,
    to: u32,
    unused: u32,
}

/// `EmbedParams`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct EmbedParams {
    out: RowsParam,
    vocab: u64,
    scale: f32,
    parts: u32,
    table_dtype: u32,
    out_dtype: u32,
}

/// `CombineParams`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct CombineParams {
    views: [RowsParam; 2],
    parts: u32,
    top_k: u32,
    dtype: u32,
    out_dtype: u32,
    has_residual: u32,
    unused: u32,
}

/// How a kernel goes through vectors: elements a run, runs a thread, and what it is compiled for.
struct Plan {
    run: usize,
    items: usize,
    function: &'static str,
    defines: Vec<(&'static str, String)>,
}

impl Plan {
    /// Whole vectors of these types, the last of which is written, 16 bytes at a time.
    fn fast(function: &'static str, items: usize, types: &[(&'static str, DType)]) -> Self {
        let run = types.last().map_or(1, |&(_, dtype)| run_of(&[dtype]));
        let mut defines: Vec<_> = types.iter().map(|&(name, dtype)| define(name, dtype)).collect();
        defines.push(("RUN", run.to_string()));
        Plan { run, items, function, defines }
    }

    /// Any vectors, element by element.
    fn any(function: &'static str, items: usize) -> Self {
        Plan { run: 1, items, function, defines: Vec::new() }
    }

    /// The body: a kernel over the vectors of `out`, whose parameters follow from its number of parts.
    fn body<P: NoUninit + Send + Sync>(
        self,
        request: &Request<'_>,
        source: &'static Source,
        out: Rows,
        params: impl FnOnce(u32) -> P,
        pointers: Vec<Pointer>,
    ) -> Result<Box<dyn Launch>> {
        let (dims, parts) = tiles(out.outer * out.inner, out.len / self.run, self.items, THREADS)?;
        let function = module(request, source, &self.defines)?.function(self.function)?;
        prepared(request, Steps::one(function, dims, params(parts), pointers))
    }
}

fn operands(count: usize) -> Vec<Pointer> {
    (0..count).map(Pointer::Operand).collect()
}

/// Why the fast kernels do not take this op.
pub(crate) fn refuse_fast(candidate: &Candidate<'_>) -> Option<Reason> {
    let all = |run: usize, views: &[(Rows, DType)]| {
        views.iter().find_map(|&(rows, dtype)| whole_runs(rows, dtype, run))
    };
    match candidate.op {
        Op::Add(op) => {
            let [a, b, out] = collapse([op.a, op.b, op.out]);
            all(run_of(&[op.dtype]), &[(a, op.dtype), (b, op.dtype), (out, op.dtype)])
        }
        Op::Gated(op) => {
            let [gate, up, out] = collapse([op.gate, op.up, op.out]);
            let run = run_of(&[op.out_dtype]);
            all(run, &[(gate, op.dtype), (up, op.dtype), (out, op.out_dtype)])
        }
        Op::Cast(op) => {
            let narrow = |d: DType| d.is_float() || d == DType::I8;
            if !narrow(op.from) || !narrow(op.to) {
                return Some(Reason::new(
                    "f32 does not hold every 32-bit integer, and blocks are no plain elements",
                ));
            }
            let [x, out] = collapse([op.x, op.out]);
            all(run_of(&[op.to]), &[(x, op.from), (out, op.to)])
        }
        Op::Embed(op) => {
            if op.table.is_block() {
                return Some(Reason::new("the table has a block format"));
            }
            let table = Rows::dense(op.vocab, op.dim);
            all(run_of(&[op.out_dtype]), &[(table, op.table), (op.out, op.out_dtype)])
        }
        Op::Combine(op) => all(run_of(&[op.out_dtype]), &[(op.x, op.dtype), (op.out, op.out_dtype)]),
        op => Some(Reason::new(format!("{} is another op", op.name()))),
    }
}

/// Bytes to whose multiple the fast kernels need an operand.
pub(crate) fn align_fast(candidate: &Candidate<'_>, operand: usize) -> u32 {
    let scalars = match candidate.op {
        Op::Embed(_) => operand == 0,
        Op::Combine(_) => operand == 1,
        _ => false,
    };
    if scalars { 1 } else { 16 }
}

/// Rows of whole runs of 16 bytes.
pub(crate) fn prepare_fast(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    match request.op {
        Op::Add(op) => add(request, op, Plan::fast("add_rows", 2, &[("X", op.dtype)])),
        Op::Gated(op) => {
            gated(request, op, Plan::fast("gated_rows", 2, &[("X", op.dtype), ("OUT", op.out_dtype)]))
        }
        Op::Cast(op) => cast(request, op, Plan::fast("cast_rows", 2, &[("X", op.from), ("OUT", op.to)])),
        Op::Embed(op) => {
            embed(request, op, Plan::fast("embed_rows", 2, &[("X", op.table), ("OUT", op.out_dtype)]))
        }
        Op::Combine(op) => {
            combine(request, op, Plan::fast("combine_rows", 1, &[("X", op.dtype), ("OUT", op.out_dtype)]))
        }
        op => Err(other_op(op)),
    }
}

/// Rows that run everything.
pub(crate) fn prepare_any(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    match request.op {
        Op::Add(op) => add(request, op, Plan::any("add_any", 4)),
        Op::Gated(op) => gated(request, op, Plan::any("gated_any", 2)),
        Op::Cast(op) => cast(request, op, Plan::any("cast_any", 4)),
        Op::Embed(op) => embed(request, op, Plan::any("embed_any", 2)),
        Op::Combine(op) => combine(request, op, Plan::any("combine_any", 1)),
        op => Err(other_op(op)),
    }
}

fn add(request: &Request<'_>, op: &Add, plan: Plan) -> Result<Box<dyn Launch>> {
    let views = collapse([op.a, op.b, op.out]);
    let params = |parts| AddParams { views: views.map(Into::into), parts, dtype: id(op.dtype) };
    plan.body(request, &cuda::ADD_ROWS, views[2], params, operands(3))
}

fn gated(request: &Request<'_>, op: &Gated, plan: Plan) -> Result<Box<dyn Launch>> {
    let views = collapse([op.gate, op.up, op.out]);
    let (kind, alpha, limit) = match op.kind {
        GatedKind::SwiGlu => (0, 0.0, 0.0),
        GatedKind::GeGlu => (1, 0.0, 0.0),
        GatedKind::GeGluTanh => (2, 0.0, 0.0),
        GatedKind::GptOss { alpha, limit } => (3, alpha, limit),
    };
    let params = |parts| GatedParams {
        views: views.map(Into::into),
        parts,
        kind,
        dtype: id(op.dtype),
        out_dtype: id(op.out_dtype),
        alpha,
        limit,
    };
    plan.body(request, &cuda::GATED_ROWS, views[2], params, operands(3))
}

fn cast(request: &Request<'_>, op: &Cast, plan: Plan) -> Result<Box<dyn Launch>> {
    let views = collapse([op.x, op.out]);
    let params = |parts| CastParams {
        views: views.map(Into::into),
        parts,
        from: id(op.from),
        to: id(op.to),
        unused: 0,
    };
    plan.body(request, &cuda::CAST_ROWS, views[1], params, operands(2))
}

fn embed(request: &Request<'_>, op: &Embed, plan: Plan) -> Result<Box<dyn Launch>> {
    let params = |parts| EmbedParams {
        out: op.out.into(),
        vocab: op.vocab as u64,
        scale: op.scale,
        parts,
        table_dtype: id(op.table),
        out_dtype: id(op.out_dtype),
    };
    plan.body(request, &cuda::EMBED_ROWS, op.out, params, operands(3))
}

fn combine(request: &Request<'_>, op: &Combine, plan: Plan) -> Result<Box<dyn Launch>> {
    let params = |parts| CombineParams {
        views: [op.x.into(), op.out.into()],
        parts,
        top_k: op.top_k as u32,
        dtype: id(op.dtype),
        out_dtype: id(op.out_dtype),
        has_residual: op.residual.into(),
        unused: 0,
    };
    let residual = Pointer::some(op.residual.then_some(2));
    let out = Pointer::Operand(2 + usize::from(op.residual));
    let pointers = vec![Pointer::Operand(0), Pointer::Operand(1), residual, out];
    plan.body(request, &cuda::COMBINE_ROWS, op.out, params, pointers)
}

/// Blocks of a copy: as many as keep a large GPU busy, each of which goes through the bytes in strides.
const COPYING: usize = 2048;

/// Collectives of a group of one.
pub(crate) fn prepare_alone(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let Op::Collective(Collective { dtype, count, .. }) = request.op else {
        return Err(other_op(request.op));
    };
    let bytes = count * dtype.block_bytes();
    let dims: Dims = grid(bytes.div_ceil(16 * THREADS).min(COPYING), [THREADS as u32, 1])?;
    let function = module(request, &cuda::COPY_BYTES, &[])?.function("copy_bytes")?;
    prepared(request, Steps::one(function, dims, bytes as u64, operands(2)))
}

/// Why a collective is not for a group of one.
pub(crate) fn refuse_groups(candidate: &Candidate<'_>) -> Option<Reason> {
    match candidate.op {
        Op::Collective(op) if op.world > 1 => Some(Reason::new("it copies: for a group of one")),
        _ => None,
    }
}
