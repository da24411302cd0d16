//! Products of signed bytes in tiles, i8 by i8 or quantised activations by block formats: `shaders/wgsl/matmul/dot4.wgsl`.

use super::form::Form;
use super::gemv::{Format, Quantised, refuse_layout, refuse_quantised};
use super::tiles::{TILE, TileParams, dims, work};
use super::window::{Window, most_bound, windows};
use super::{STEP, refuse_lines, too_large};
use crate::launch::limits::refuse_workgroup;
use crate::launch::rows::caps;
use crate::launch::{Builder, other_op};
use crate::pipeline::Checks;
use crate::shader::{Binding, Variant};
use perjoule_kernels::{Candidate, Config, DType, Launch, Reason, Request, Result};
use perjoule_shaders::{Source, wgsl};

/// The only configuration.
pub(crate) static CONFIGS: &[Config] = &[Config::tile("64x64", &[64, 64, 32])];

/// Elements of k of a tile in workgroup memory.
fn depth(b: DType) -> usize {
    // units of q4_k reach over 64 elements
    if b == DType::Q4K { 64 } else { 32 }
}

/// Bytes of a workgroup's memory: words and factors of both sides, minima of B, numbers of rows.
fn workgroup_bytes(form: &Form) -> usize {
    let sides = 1 + usize::from(form.up.is_some());
    let (words, blocks) = (depth(form.b.dtype) / 4, depth(form.b.dtype) / 32);
    4 * ((1 + sides) * (words * (TILE + 1) + blocks * TILE) + minima(form) + 2 * TILE)
}

/// Minima of a slice of B; memory of none is of one.
fn minima(form: &Form) -> usize {
    let sides = 1 + usize::from(form.up.is_some());
    if form.b.dtype == DType::Q4K { sides * depth(form.b.dtype) / 32 * TILE } else { 1 }
}

/// Why it is not for the row of i8, or of block formats; `None` where it is.
pub(crate) fn refuse(candidate: &Candidate<'_>, blocks: bool) -> Option<Reason> {
    let reason = |text: &'static str| Some(Reason::new(text));
    let Some(form) = Form::of(candidate.op) else { return reason("the op is no product") };
    let b = form.b.dtype;
    let Some(format) = Format::of(b).filter(|_| if blocks { b.is_block() } else { b == DType::I8 }) else {
        return Some(Reason::new(format!("does not read b in {b}")));
    };
    if b == DType::Q6K {
        return reason("does not read b in q6_k, whose units reach over 128 elements");
    }
    if blocks && !form.policy.quantised_activations {
        return reason("quantises activations, which the policy does not allow (quantised_activations)");
    }
    refuse_layout(&form, &format, 4, blocks)
        .or_else(|| super::refuse(candidate))
        .or_else(|| refuse_workgroup(candidate, 256, workgroup_bytes(&form)))
        .or_else(|| refuse_lines(candidate, &form, |window| dims(&form, window)))
        .or_else(|| blocks.then(|| refuse_quantised(&form, candidate)).flatten())
}

/// Seconds: four products at a time.
pub(crate) fn cost(candidate: &Candidate<'_>) -> f32 {
    let Some(form) = Form::of(candidate.op) else { return f32::INFINITY };
    1.5 * STEP + (2.0 * work(&form) / 4e12).max(form.k as f32 * 0.03e-6)
}

pub(crate) fn prepare(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let form = Form::of(request.op).ok_or_else(|| other_op(request.op))?;
    let format = Format::of(form.b.dtype).ok_or_else(|| other_op(request.op))?;
    let blocks = form.b.dtype.is_block();
    let variant = variant(&form, &format);
    let mut headers: Vec<&'static Source> = super::HEADERS.to_vec();
    headers.push(if form.up.is_some() { &wgsl::GEMV_PAIR } else { &wgsl::GEMV_ONE });
    headers.push(&wgsl::GEMV_CODES);
    match blocks {
        true => headers.extend(format.headers),
        false => headers.push(&wgsl::GEMV_I8_CODES),
    }
    headers.push(&wgsl::MATMUL_TILES);
    let mut builder = Builder::new(request, "matmul_dot4_webgpu")?;
    let quantised = blocks.then(|| Quantised::of(&form));
    let codes = quantised.map(|q| q.prepare(&mut builder, form.a.dtype)).transpose()?;
    let a = quantised.map_or(form.a.strides, |q| q.to);
    let most = caps(request.info).map_or(0, most_bound);
    for window in windows(&form, most).ok_or_else(too_large)? {
        // A in words of four
        let params = TileParams {
            a_batch: (a.batch / 4) as u32,
            a_row: (a.row / 4) as u32,
            ..params(&form, &format, &window)
        };
        let mut places = form.places(&window);
        if let Some([codes, scales]) = &codes {
            places[0] = codes.clone();
            places.insert(1, scales.clone());
        }
        let source = (&wgsl::MATMUL_DOT4, headers.as_slice(), "matmul");
        builder.step(source, (&variant, Checks::None), dims(&form, &window)?, &params, places)?;
    }
    Ok(builder.finish())
}

fn variant(form: &Form, format: &Format) -> Variant {
    let (b, gated) = (form.b.dtype, form.up.is_some());
    let sides = 1 + usize::from(gated);
    let mut inputs = form.inputs();
    inputs[0] = Binding::words("a", "u32");
    inputs[1] = Binding::words("b", format.word);
    inputs[2] = Binding::words("up", format.word).when(gated);
    inputs.insert(1, Binding::get("block_scales", DType::F32).when(b.is_block()));
    let variant = form
        .variant(inputs)
        .uint("DEPTH", depth(b))
        .uint("SIDES", sides)
        .uint("MINIMA_TILE", minima(form))
        .flag("SCALES", b.is_block());
    format.variant(variant, b)
}

fn params(form: &Form, format: &Format, window: &Window) -> TileParams {
    let address = |stride: usize| format.address_of(form.b.dtype, stride);
    TileParams {
        b_batch: address(form.b.strides.batch),
        b_col: address(form.b.strides.col),
        up_col: form.up.map_or(0, |up| address(up.col)),
        b_first: format.first(form, window),
        ..TileParams::of(form, window)
    }
}
