//! The generic rows: every valid product on every adapter. `shaders/wgsl/matmul/any.wgsl`.

use super::form::Form;
use super::tiles::{TileParams, dims, work};
use super::window::{Window, most_bound, windows_of_work};
use super::{HEADERS, STEP, too_large};
use crate::launch::rows::caps;
use crate::launch::{Builder, other_op};
use crate::pipeline::Checks;
use perjoule_kernels::{Candidate, Config, Launch, Request, Result};
use perjoule_shaders::wgsl;

/// The only configuration.
pub(crate) static CONFIGS: &[Config] = &[Config::tile("64x64", &[64, 64, 16])];

/// Operations in a second.
const RATE: f32 = 0.3e12;

/// Multiplications of a dispatch, 0.2 seconds of them: Windows takes a GPU for hung whose kernel runs for two, and slow ones have a tenth of
/// the rate.
const MOST_WORK: f64 = 0.2 * RATE as f64 / 2.0;

/// Seconds: elements are converted one by one on the way into workgroup memory.
pub(crate) fn cost(candidate: &Candidate<'_>) -> f32 {
    let Some(form) = Form::of(candidate.op) else { return f32::INFINITY };
    STEP + (2.0 * work(&form) / RATE).max(form.k as f32 * 0.1e-6)
}

pub(crate) fn prepare(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let most = caps(request.info).map_or(0, most_bound);
    prepare_within(request, most)
}

/// The same with operands of no more than `most` bytes bound at a time.
pub(super) fn prepare_within(request: &Request<'_>, most: u64) -> Result<Box<dyn Launch>> {
    let form = Form::of(request.op).ok_or_else(|| other_op(request.op))?;
    let mut builder = Builder::new(request, "matmul_any_webgpu")?;
    let headers = [HEADERS, &[&wgsl::MATMUL_TILES]].concat();
    // the tile of the up projection takes memory only where there is one
    let variant = form.variant(form.inputs()).uint("UP_TILE", if form.up.is_some() { 1040 } else { 1 });
    for window in windows_of_work(&form, most, MOST_WORK).ok_or_else(too_large)? {
        let params = params(&form, &window);
        let source = (&wgsl::MATMUL_ANY, headers.as_slice(), "matmul");
        let dims = dims(&form, &window)?;
        builder.step(source, (&variant, Checks::None), dims, &params, form.places(&window))?;
    }
    Ok(builder.finish())
}

fn params(form: &Form, window: &Window) -> TileParams {
    let (a, b) = (form.a.strides, form.b.strides);
    TileParams {
        a_batch: a.batch as u32,
        a_row: a.row as u32,
        a_col: a.col as u32,
        b_batch: b.batch as u32,
        b_row: b.row as u32,
        b_col: b.col as u32,
        up_row: form.up.map_or(0, |up| up.row as u32),
        up_col: form.up.map_or(0, |up| up.col as u32),
        ..TileParams::of(form, window)
    }
}
