//! Addition, gated activations, conversions, rows of tables, sums of experts' results, and copies: an invocation takes a value, which is an
//! element, or a run of four where operands lie so that these can be moved at once.

use super::rows::{RowsParam, caps, run_align, whole_runs};
use super::{Builder, Dims, Place, other_op};
use crate::copy;
use crate::pipeline::Checks;
use crate::shader::{Binding, Variant};
use bytemuck::{NoUninit, Pod, Zeroable};
use perjoule_kernels::layout::collapse;
use perjoule_kernels::op::{Add, Cast, Collective, Combine, Embed, Gated, GatedKind, Op};
use perjoule_kernels::{Candidate, DType, Launch, Reason, Request, Result, Rows};
use perjoule_shaders::{Source, wgsl};

const THREADS: u64 = 256;

/// `Params` of `add/rows.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct AddParams {
    views: [RowsParam; 3],
}

/// `Params` of `gated/rows.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct GatedParams {
    views: [RowsParam; 3],
    alpha: f32,
    limit: f32,
    unused: [u32; 2],
}

/// `Params` of `cast/rows.wgsl` and `cast/integers.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct CastParams {
    views: [RowsParam; 2],
}

/// `Params` of `embed/rows.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct EmbedParams {
    out: RowsParam,
    vocab: u32,
    first: u32,
    rows: u32,
    scale: f32,
    is_first: u32,
    unused: [u32; 3],
}

/// `Params` of `combine/rows.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct CombineParams {
    views: [RowsParam; 2],
    top_k: u32,
    unused: [u32; 3],
}

/// What an invocation takes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Value {
    /// An element.
    One,
    /// A run of four elements.
    Four,
}

impl Value {
    /// Elements.
    pub(super) fn run(self) -> usize {
        if self == Value::One { 1 } else { 4 }
    }

    /// The header that defines it.
    pub(super) fn header(self) -> &'static Source {
        if self == Value::One { &wgsl::ONE } else { &wgsl::FOUR }
    }

    /// An operand that is read.
    pub(super) fn read(self, name: &'static str, dtype: DType) -> Binding {
        if self == Value::One { Binding::get(name, dtype) } else { Binding::run(name, dtype) }
    }

    /// An operand that is written.
    pub(super) fn write(self, name: &'static str, dtype: DType) -> Binding {
        if self == Value::One { Binding::set(name, dtype) } else { Binding::run_mut(name, dtype) }
    }
}

/// Why the kernels of runs do not take this op.
pub(crate) fn refuse_runs(candidate: &Candidate<'_>) -> Option<Reason> {
    super::rows::refuse(candidate).or_else(|| match candidate.op {
        Op::Add(op) => collapse([op.a, op.b, op.out]).into_iter().find_map(whole_runs),
        Op::Gated(op) => collapse([op.gate, op.up, op.out]).into_iter().find_map(whole_runs),
        Op::Cast(op) => {
            let is_wide = |d: DType| matches!(d, DType::I32 | DType::U32);
            if is_wide(op.from) || is_wide(op.to) {
                return Some(Reason::new("f32 does not hold every 32-bit integer"));
            }
            collapse([op.x, op.out]).into_iter().find_map(whole_runs)
        }
        // no binding of runs is as small as that
        Op::Embed(op) if op.vocab == 0 => Some(Reason::new("the table is empty")),
        Op::Embed(op) => whole_runs(op.out),
        Op::Combine(op) => [op.x, op.out].into_iter().find_map(whole_runs),
        op => Some(Reason::new(format!("{} is another op", op.name()))),
    })
}

/// Bytes to whose multiple the kernels of runs need an operand.
pub(crate) fn align_runs(candidate: &Candidate<'_>, operand: usize) -> u32 {
    match (candidate.op, operand) {
        (Op::Embed(_), 0) | (Op::Combine(_), 1) => 1,
        (op, operand) => op.operands().get(operand).map_or(1, |operand| run_align(operand.dtype)),
    }
}

/// Rows of runs.
pub(crate) fn prepare_runs(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    prepare(request, Value::Four)
}

/// Rows that run everything.
pub(crate) fn prepare_any(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    prepare(request, Value::One)
}

fn prepare(request: &Request<'_>, value: Value) -> Result<Box<dyn Launch>> {
    match request.op {
        Op::Add(op) => add(request, op, value),
        Op::Gated(op) => gated(request, op, value),
        Op::Cast(op) => cast(request, op, value),
        Op::Embed(op) => embed(request, op, value),
        Op::Combine(op) => combine(request, op, value),
        op => Err(other_op(op)),
    }
}

/// One kernel over the values of `out`.
fn one<P: NoUninit>(
    request: &Request<'_>,
    kernel: &'static str,
    program: (&'static Source, &[&'static Source], &'static str),
    (variant, params): (Variant, P),
    (out, value): (Rows, Value),
    operands: usize,
) -> Result<Box<dyn Launch>> {
    let mut builder = Builder::new(request, kernel)?;
    let places = (0..operands).map(Place::Operand).collect();
    builder.step(program, (&variant, Checks::None), dims(out, value)?, &params, places)?;
    Ok(builder.finish())
}

fn dims(out: Rows, value: Value) -> Result<Dims> {
    Dims::line((out.outer * out.inner) as u64 * (out.len / value.run()) as u64, THREADS)
}

fn add(request: &Request<'_>, op: &Add, value: Value) -> Result<Box<dyn Launch>> {
    let views = collapse([op.a, op.b, op.out]);
    let variant =
        Variant::of(vec![value.read("a", op.dtype), value.read("b", op.dtype), value.write("out", op.dtype)]);
    let params = AddParams { views: views.map(RowsParam::from) };
    let headers: &[&Source] = &[&wgsl::ELEMENT, &wgsl::LAYOUT, value.header(), &wgsl::PLACE];
    one(request, "add", (&wgsl::ADD_ROWS, headers, "add"), (variant, params), (views[2], value), 3)
}

fn gated(request: &Request<'_>, op: &Gated, value: Value) -> Result<Box<dyn Launch>> {
    let views = collapse([op.gate, op.up, op.out]);
    let (kind, alpha, limit) = match op.kind {
        GatedKind::SwiGlu => (0, 0.0, 0.0),
        GatedKind::GeGlu => (1, 0.0, 0.0),
        GatedKind::GeGluTanh => (2, 0.0, 0.0),
        GatedKind::GptOss { alpha, limit } => (3, alpha, limit),
    };
    let variant = Variant::of(vec![
        value.read("gate", op.dtype),
        value.read("up", op.dtype),
        value.write("out", op.out_dtype),
    ])
    .uint("KIND", kind);
    let params = GatedParams { views: views.map(RowsParam::from), alpha, limit, unused: [0; 2] };
    let all = if value == Value::One { &wgsl::GATED_ONE } else { &wgsl::GATED_FOUR };
    let headers: &[&Source] = &[
        &wgsl::ELEMENT,
        &wgsl::LAYOUT,
        value.header(),
        &wgsl::PLACE,
        &wgsl::MATH,
        &wgsl::GATED_FUNCTION,
        all,
    ];
    one(request, "gated", (&wgsl::GATED_ROWS, headers, "gated"), (variant, params), (views[2], value), 3)
}

fn cast(request: &Request<'_>, op: &Cast, value: Value) -> Result<Box<dyn Launch>> {
    let views = collapse([op.x, op.out]);
    let params = CastParams { views: views.map(RowsParam::from) };
    let mut variant = Variant::of(vec![value.read("x", op.from), value.write("out", op.to)]);
    let is_integer = matches!(op.from, DType::I32 | DType::U32);
    if is_integer {
        let to = match op.to {
            DType::F32 => 1,
            DType::I8 => 2,
            DType::I32 => 3,
            DType::U32 => 4,
            _ => 0,
        };
        variant = variant.flag("SIGNED", op.from == DType::I32).uint("TO", to);
    }
    let headers: &[&Source] = &[&wgsl::ELEMENT, &wgsl::LAYOUT, value.header(), &wgsl::PLACE];
    let source = if is_integer { &wgsl::CAST_INTEGERS } else { &wgsl::CAST_ROWS };
    one(request, "cast", (source, headers, "convert"), (variant, params), (views[1], value), 2)
}

/// Most bytes of a window: its elements are to be counted by 32 bits, whatever their type.
const WINDOW: u64 = 1 << 30;

fn embed(request: &Request<'_>, op: &Embed, value: Value) -> Result<Box<dyn Launch>> {
    let mut builder = Builder::new(request, "embed")?;
    let variant = Variant::of(vec![
        Binding::get("ids", DType::I32),
        value.read("table", op.table),
        value.write("out", op.out_dtype),
    ]);
    let most = caps(request.info).map_or(0, |caps| caps.limits.max_storage_buffer_binding_size);
    let most = (most.saturating_sub(256)).min(WINDOW);
    let row = op.table.bytes(op.dim).unwrap_or(0);
    let window = most.checked_div(row).unwrap_or(u64::MAX).clamp(1, op.vocab.max(1) as u64);
    let headers: &[&Source] = &[&wgsl::ELEMENT, &wgsl::LAYOUT, value.header(), &wgsl::PLACE];
    for first in (0..op.vocab.max(1)).step_by(window as usize) {
        let rows = (op.vocab - first).min(window as usize);
        let params = EmbedParams {
            out: op.out.into(),
            vocab: op.vocab as u32,
            first: first as u32,
            rows: rows as u32,
            scale: op.scale,
            is_first: (first == 0).into(),
            unused: [0; 3],
        };
        let places =
            vec![Place::Operand(0), Place::Part(1, first as u64 * row, rows as u64 * row), Place::Operand(2)];
        let program = (&wgsl::EMBED_ROWS, headers, "embed");
        builder.step(program, (&variant, Checks::None), dims(op.out, value)?, &params, places)?;
    }
    Ok(builder.finish())
}

fn combine(request: &Request<'_>, op: &Combine, value: Value) -> Result<Box<dyn Launch>> {
    let variant = Variant::of(vec![
        value.read("x", op.dtype),
        Binding::get("weights", DType::F32),
        value.read("residual", op.out_dtype).when(op.residual),
        value.write("out", op.out_dtype),
    ]);
    let params =
        CombineParams { views: [op.x.into(), op.out.into()], top_k: op.top_k as u32, unused: [0; 3] };
    let headers: &[&Source] = &[&wgsl::ELEMENT, &wgsl::LAYOUT, value.header(), &wgsl::PLACE];
    let operands = 3 + usize::from(op.residual);
    let program = (&wgsl::COMBINE_ROWS, headers, "combine");
    one(request, "combine", program, (variant, params), (op.out, value), operands)
}

/// Collectives of a group of one.
pub(crate) fn prepare_alone(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let Op::Collective(Collective { dtype, count, .. }) = request.op else {
        return Err(other_op(request.op));
    };
    let mut builder = Builder::new(request, "collective")?;
    copy::steps(&mut builder, (count * dtype.block_bytes()) as u64)?;
    Ok(builder.finish())
}

/// Why a collective is not for a group of one.
pub(crate) fn refuse_groups(candidate: &Candidate<'_>) -> Option<Reason> {
    match candidate.op {
        Op::Collective(op) if op.world > 1 => Some(Reason::new("it copies: for a group of one")),
        _ => None,
    }
}
