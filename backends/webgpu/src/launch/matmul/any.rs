//! The generic rows: every valid product on every adapter. `shaders/wgsl/matmul/any.wgsl`.

use super::form::{EpilogueParam, Form, count};
use super::window::{Window, most_bound, windows};
use super::{HEADERS, STEP, too_large};
use crate::launch::rows::caps;
use crate::launch::{Builder, Dims, other_op};
use crate::pipeline::Checks;
use bytemuck::{Pod, Zeroable};
use perjoule_kernels::{Candidate, Config, Launch, Request, Result};
use perjoule_shaders::wgsl;

/// The only configuration.
pub(crate) static CONFIGS: &[Config] = &[Config::tile("64x64", &[64, 64, 16])];

const TILE: usize = 64;

/// `Params` of `matmul/any.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    epilogue: EpilogueParam,
    a_batch: u32,
    a_row: u32,
    a_col: u32,
    k: u32,
    b_batch: u32,
    b_row: u32,
    b_col: u32,
    m: u32,
    up_row: u32,
    up_col: u32,
    n: u32,
    matrices: u32,
    positions: u32,
    a_rows: u32,
    a_divisor: u32,
    first: u32,
    parts: u32,
    unused: [u32; 3],
}

/// Seconds: elements are converted one by one on the way into workgroup memory.
pub(crate) fn cost(candidate: &Candidate<'_>) -> f32 {
    let Some(form) = Form::of(candidate.op) else { return f32::INFINITY };
    let groups = match form.grouped {
        None => form.matrices * form.m.div_ceil(TILE),
        Some(g) => form.matrices.min(g.positions).max(g.positions.div_ceil(TILE)),
    };
    let sides = 1 + usize::from(form.up.is_some());
    let work = (groups * form.n.div_ceil(TILE) * sides) as f32 * (TILE * TILE) as f32 * form.k as f32;
    STEP + (2.0 * work / 0.3e12).max(form.k as f32 * 0.1e-6)
}

pub(crate) fn prepare(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let most = caps(request.info).map_or(0, most_bound);
    prepare_within(request, most)
}

/// The same with operands of no more than `most` bytes bound at a time.
pub(super) fn prepare_within(request: &Request<'_>, most: u64) -> Result<Box<dyn Launch>> {
    let form = Form::of(request.op).ok_or_else(|| other_op(request.op))?;
    let mut builder = Builder::new(request, "matmul_any_webgpu")?;
    // the tile of the up projection takes memory only where there is one
    let variant = form.variant(form.inputs()).uint("UP_TILE", if form.up.is_some() { 1040 } else { 1 });
    for window in windows(&form, most).ok_or_else(too_large)? {
        let (params, dims) = start(&form, &window)?;
        let source = (&wgsl::MATMUL_ANY, HEADERS, "matmul");
        builder.step(source, (&variant, Checks::None), dims, &params, form.places(&window))?;
    }
    Ok(builder.finish())
}

fn start(form: &Form, window: &Window) -> Result<(Params, Dims)> {
    let (a, b) = (form.a.strides, form.b.strides);
    let (matrices, rows, cols) = (window.matrices.len(), window.rows.len(), window.cols.len());
    // workgroups that share the rows of an expert, which may have any number of them
    let parts = form.grouped.map_or(1, |g| g.positions.div_ceil(TILE).min(32));
    let params = Params {
        epilogue: form.epilogue(),
        a_batch: a.batch as u32,
        a_row: a.row as u32,
        a_col: a.col as u32,
        k: form.k as u32,
        b_batch: b.batch as u32,
        b_row: b.row as u32,
        b_col: b.col as u32,
        m: count(&window.rows),
        up_row: form.up.map_or(0, |up| up.row as u32),
        up_col: form.up.map_or(0, |up| up.col as u32),
        n: count(&window.cols),
        matrices: count(&window.matrices),
        positions: form.grouped.map_or(0, |g| g.positions as u32),
        a_rows: form.grouped.map_or(0, |g| g.a_rows as u32),
        a_divisor: form.grouped.map_or(1, |g| g.a_divisor.min(u32::MAX as usize) as u32),
        first: window.matrices.start as u32,
        parts: parts as u32,
        unused: [0; 3],
    };
    let down = if form.grouped.is_some() { parts } else { rows.div_ceil(TILE) };
    let tiles = (matrices as u64).saturating_mul(down as u64).saturating_mul(cols.div_ceil(TILE) as u64);
    Ok((params, Dims::line(tiles.saturating_mul(256), 256)?))
}
