//! Quantising: to block formats, and to i8 and e4m3 with scales beside the codes.

use super::elementwise::Value;
use super::norm::shape;
use super::rows::{self, run_align};
use super::{Builder, Dims, Place, other_op};
use crate::pipeline::Checks;
use crate::shader::{Binding, Variant};
use bytemuck::{Pod, Zeroable};
use perjoule_kernels::op::{Granularity, Op, Quantise};
use perjoule_kernels::{Candidate, DType, Launch, Reason, Request, Result};
use perjoule_shaders::{Source, wgsl};

/// `Params` of `quantise/scales.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ScalesParams {
    elements: u32,
    len: u32,
    group: u32,
    each: u32,
    limit: f32,
    unused: [u32; 3],
}

/// `Params` of `quantise/largest.wgsl` and `quantise/tensor.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct TensorParams {
    elements: u32,
    parts: u32,
    limit: f32,
    unused: u32,
}

/// `Params` of the kernels of block formats.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct BlocksParams {
    blocks: u32,
    unused: [u32; 3],
}

pub(crate) fn prepare_any(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let Op::Quantise(op) = request.op else { return Err(other_op(request.op)) };
    match op.scale {
        None => coding(request, op),
        Some(Granularity::Tensor) => tensor(request, op, Value::One),
        Some(granularity) => groups(request, op, granularity),
    }
}

/// What shares a scale where that is not the tensor: elements, and how many such groups there are. `None` where the last one of a vector is
/// shorter.
fn whole_groups(op: &Quantise) -> Option<(usize, usize)> {
    match op.scale {
        Some(Granularity::Vector) => Some((op.x.len, op.x.outer * op.x.inner)),
        Some(Granularity::Group(group)) if op.x.len.is_multiple_of(group) => {
            Some((group, elements(op) / group))
        }
        _ => None,
    }
}

/// Blocks of whole words.
fn set_of(dtype: DType) -> Option<(usize, usize)> {
    match dtype {
        DType::Q8_0 => Some((2, 17)),
        DType::Q4_0 => Some((2, 9)),
        DType::MxFp4 => Some((4, 17)),
        _ => None,
    }
}

/// Why a tensor is not for runs of four.
pub(crate) fn refuse_runs(candidate: &Candidate<'_>) -> Option<Reason> {
    let Op::Quantise(op) = candidate.op else { return Some(Reason::new("it is another op")) };
    if let Some(reason) = rows::refuse(candidate) {
        return Some(reason);
    }
    match op.scale {
        None => match set_of(op.to) {
            None => Some(Reason::new("blocks of 256 elements are made byte by byte")),
            Some((blocks, _)) if !elements(op).is_multiple_of(blocks * op.to.block_len()) => {
                Some(Reason::new("the blocks are no whole words"))
            }
            Some(_) => None,
        },
        Some(Granularity::Tensor) => {
            let whole = elements(op).is_multiple_of(4) && elements(op) > 0;
            (!whole).then(|| Reason::new("the tensor is no whole runs of 4 elements"))
        }
        Some(_) => match whole_groups(op) {
            None => Some(Reason::new("the last group of a vector is shorter")),
            Some((group, _)) if !group.is_multiple_of(4) => {
                Some(Reason::new("what shares a scale is no multiple of 4 elements"))
            }
            Some((group, _)) if shape(group / 4).is_none() => {
                Some(Reason::new("a group is longer than the registers of a workgroup"))
            }
            Some(_) => None,
        },
    }
}

/// Bytes to whose multiple an operand has to begin.
pub(crate) fn align_runs(candidate: &Candidate<'_>, operand: usize) -> u32 {
    match candidate.op.operands().get(operand) {
        Some(operand) if operand.dtype.is_block() => 4,
        Some(operand) if operand.name != "scales" => run_align(operand.dtype),
        _ => 1,
    }
}

/// Rows of runs.
pub(crate) fn prepare_runs(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let Op::Quantise(op) = request.op else { return Err(other_op(request.op)) };
    match op.scale {
        None => words(request, op),
        Some(Granularity::Tensor) => tensor(request, op, Value::Four),
        Some(_) => registers(request, op),
    }
}

/// `Params` of `quantise/registers.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct RegistersParams {
    group: u32,
    count: u32,
    limit: f32,
    unused: u32,
}

fn registers(request: &Request<'_>, op: &Quantise) -> Result<Box<dyn Launch>> {
    let other = || other_op(request.op);
    let (group, count) = whole_groups(op).ok_or_else(other)?;
    let (width, items) = shape(group / 4).ok_or_else(other)?;
    let mut builder = Builder::new(request, "quantise")?;
    let variant = Variant::of(vec![
        Binding::run("x", op.from),
        Binding::set("scales", DType::F32),
        Binding::run_mut("out", op.to),
    ])
    .uint("WIDTH", width)
    .uint("ITEMS", items);
    let limit = op.to.max_value() as f32;
    let params = RegistersParams { group: group as u32, count: count as u32, limit, unused: 0 };
    let headers: &[&Source] = &[
        &wgsl::ELEMENT,
        &wgsl::LAYOUT,
        &wgsl::FOUR,
        &wgsl::REDUCE,
        &wgsl::EXACT,
        &wgsl::QUANTISE_SCALED,
        &wgsl::QUANTISE_FOUR,
    ];
    let dims = Dims::line(count as u64, 256 / width as u64)?;
    let places = [0, 1, 2].map(Place::Operand).to_vec();
    let program = (&wgsl::QUANTISE_REGISTERS, headers, "groups");
    builder.step(program, (&variant, Checks::None), dims, &params, places)?;
    Ok(builder.finish())
}

fn words(request: &Request<'_>, op: &Quantise) -> Result<Box<dyn Launch>> {
    let (blocks, words) = set_of(op.to).ok_or_else(|| other_op(request.op))?;
    let mut builder = Builder::new(request, "quantise")?;
    let sets = elements(op) / (blocks * op.to.block_len());
    let params = BlocksParams { blocks: sets as u32, unused: [0; 3] };
    let variant = Variant::of(vec![Binding::run("x", op.from), Binding::words_mut("out", "u32")])
        .uint("FORMAT", format_of(op.to))
        .uint("BLOCKS", blocks)
        .uint("WORDS", words);
    let headers: &[&Source] =
        &[&wgsl::ELEMENT, &wgsl::LAYOUT, &wgsl::FOUR, &wgsl::EXACT, &wgsl::QUANTISE_CODES];
    let dims = Dims::line(sets as u64, 64)?;
    let places = [0, 1].map(Place::Operand).to_vec();
    let program = (&wgsl::QUANTISE_WORDS, headers, "quantise");
    builder.step(program, (&variant, Checks::None), dims, &params, places)?;
    Ok(builder.finish())
}

/// `FORMAT` of the kernels of blocks of 32 elements.
fn format_of(dtype: DType) -> usize {
    match dtype {
        DType::Q8_0 => 0,
        DType::Q4_0 => 1,
        _ => 2,
    }
}

fn elements(op: &Quantise) -> usize {
    op.x.outer * op.x.inner * op.x.len
}

/// A scale for each vector, or for each group of one.
fn groups(request: &Request<'_>, op: &Quantise, granularity: Granularity) -> Result<Box<dyn Launch>> {
    let mut builder = Builder::new(request, "quantise")?;
    let group = match granularity {
        Granularity::Group(group) => group,
        _ => op.x.len,
    };
    let each = op.x.len.div_ceil(group.max(1));
    // of short groups a workgroup takes several
    let width = if group.min(op.x.len) <= 1024 { 32 } else { 256 };
    let variant = Variant::of(vec![
        Binding::get("x", op.from),
        Binding::set("scales", DType::F32),
        Binding::set("out", op.to),
    ])
    .uint("WIDTH", width);
    let params = ScalesParams {
        elements: elements(op) as u32,
        len: op.x.len as u32,
        group: u32::try_from(group).unwrap_or(u32::MAX),
        each: each.max(1) as u32,
        limit: op.to.max_value() as f32,
        unused: [0; 3],
    };
    let headers: &[&Source] =
        &[&wgsl::ELEMENT, &wgsl::LAYOUT, &wgsl::REDUCE, &wgsl::EXACT, &wgsl::QUANTISE_SCALED];
    let dims = Dims::line((op.x.outer * op.x.inner * each) as u64, 256 / width as u64)?;
    let places = [0, 1, 2].map(Place::Operand).to_vec();
    let program = (&wgsl::QUANTISE_SCALES, headers, "groups");
    builder.step(program, (&variant, Checks::None), dims, &params, places)?;
    Ok(builder.finish())
}

/// Most workgroups that share a tensor.
const MOST_PARTS: usize = 1024;

/// The two steps of a scale of the whole tensor.
fn tensor(request: &Request<'_>, op: &Quantise, value: Value) -> Result<Box<dyn Launch>> {
    let mut builder = Builder::new(request, "quantise")?;
    let parts = elements(op).div_ceil(4 * 256 * value.run()).clamp(1, MOST_PARTS);
    let params = TensorParams {
        elements: elements(op) as u32,
        parts: parts as u32,
        limit: op.to.max_value() as f32,
        unused: 0,
    };
    let dims = Dims::grid(parts, 1, 1)?;
    let bytes = 4 * parts as u64;
    let maxima = builder.scratch(bytes);
    let headers: &[&Source] = &[&wgsl::ELEMENT, &wgsl::LAYOUT, &wgsl::REDUCE, value.header()];
    let variant =
        Variant::of(vec![value.read("x", op.from), Binding::words_mut("maxima", "f32")]).uint("WIDTH", 256);
    let places = vec![Place::Operand(0), Place::Scratch(maxima, bytes)];
    let program = (&wgsl::QUANTISE_LARGEST, headers, "find_largest");
    builder.step(program, (&variant, Checks::None), dims, &params, places)?;
    let all = if value == Value::One { &wgsl::QUANTISE_ONE } else { &wgsl::QUANTISE_FOUR };
    let headers: &[&Source] = &[
        &wgsl::ELEMENT,
        &wgsl::LAYOUT,
        &wgsl::REDUCE,
        value.header(),
        &wgsl::EXACT,
        &wgsl::QUANTISE_SCALED,
        all,
    ];
    let variant = Variant::of(vec![
        value.read("x", op.from),
        Binding::words("maxima", "f32"),
        Binding::set("scales", DType::F32),
        value.write("out", op.to),
    ])
    .uint("WIDTH", 256);
    let places = vec![Place::Operand(0), Place::Scratch(maxima, bytes), Place::Operand(1), Place::Operand(2)];
    let program = (&wgsl::QUANTISE_TENSOR, headers, "scale_all");
    builder.step(program, (&variant, Checks::None), dims, &params, places)?;
    Ok(builder.finish())
}

fn coding(request: &Request<'_>, op: &Quantise) -> Result<Box<dyn Launch>> {
    let mut builder = Builder::new(request, "quantise")?;
    let blocks = elements(op) / op.to.block_len();
    let params = BlocksParams { blocks: blocks as u32, unused: [0; 3] };
    // the kernels that keep a group in an array call that `x`
    let (source, each, name): (_, u64, _) = match op.to {
        DType::Q4K => (&wgsl::QUANTISE_Q4_K, 8, "x_in"),
        DType::Q6K => (&wgsl::QUANTISE_Q6_K, 4, "x_in"),
        _ => (&wgsl::QUANTISE_SMALL, 256, "x"),
    };
    let mut variant = Variant::of(vec![Binding::get(name, op.from), Binding::set("out", op.to)]);
    if name == "x" {
        variant = variant.uint("FORMAT", format_of(op.to));
    }
    let headers: &[&Source] = &[&wgsl::ELEMENT, &wgsl::LAYOUT, &wgsl::EXACT, &wgsl::QUANTISE_CODES];
    let headers = if name == "x" { headers } else { &headers[..3] };
    let dims = Dims::line(blocks as u64, each)?;
    let places = [0, 1].map(Place::Operand).to_vec();
    builder.step((source, headers, "quantise"), (&variant, Checks::None), dims, &params, places)?;
    Ok(builder.finish())
}
