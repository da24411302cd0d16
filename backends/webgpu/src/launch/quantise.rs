//! Quantising: to block formats, and to i8 and e4m3 with scales beside the codes.

use super::elementwise::Value;
use super::{Builder, Dims, Place, other_op};
use crate::pipeline::Checks;
use crate::shader::{Binding, Variant};
use bytemuck::{Pod, Zeroable};
use perjoule_kernels::op::{Granularity, Op, Quantise};
use perjoule_kernels::{DType, Launch, Request, Result};
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
        let format = match op.to {
            DType::Q8_0 => 0,
            DType::Q4_0 => 1,
            _ => 2,
        };
        variant = variant.uint("FORMAT", format);
    }
    let headers: &[&Source] = &[&wgsl::ELEMENT, &wgsl::LAYOUT, &wgsl::EXACT];
    let dims = Dims::line(blocks as u64, each)?;
    let places = [0, 1].map(Place::Operand).to_vec();
    builder.step((source, headers, "quantise"), (&variant, Checks::None), dims, &params, places)?;
    Ok(builder.finish())
}
