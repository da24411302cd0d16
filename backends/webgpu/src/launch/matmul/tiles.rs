//! Tiles of 64 x 64 of C by workgroups of 256: `shaders/wgsl/matmul/tiles.wgsl`.

use super::form::{EpilogueParam, Form, count};
use super::window::Window;
use crate::launch::Dims;
use bytemuck::{Pod, Zeroable};
use perjoule_kernels::Result;

/// Rows and columns of a tile.
pub(crate) const TILE: usize = 64;

/// `Params` of `matmul/tiles.wgsl`. Strides are in what the kernel counts in.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(crate) struct TileParams {
    pub(super) epilogue: EpilogueParam,
    pub(crate) a_batch: u32,
    pub(crate) a_row: u32,
    pub(crate) a_col: u32,
    pub(super) k: u32,
    pub(crate) b_batch: u32,
    pub(crate) b_row: u32,
    pub(crate) b_col: u32,
    pub(super) m: u32,
    pub(crate) up_row: u32,
    pub(crate) up_col: u32,
    pub(super) n: u32,
    pub(super) matrices: u32,
    pub(super) positions: u32,
    pub(super) a_rows: u32,
    pub(super) a_divisor: u32,
    pub(super) first: u32,
    pub(super) parts: u32,
    pub(crate) b_first: u32,
    pub(super) unused: [u32; 2],
}

impl TileParams {
    /// All but the strides.
    pub(crate) fn of(form: &Form, window: &Window) -> Self {
        TileParams {
            epilogue: form.epilogue(),
            k: form.k as u32,
            m: count(&window.rows),
            n: count(&window.cols),
            matrices: count(&window.matrices),
            positions: form.grouped.map_or(0, |g| g.positions as u32),
            a_rows: form.grouped.map_or(0, |g| g.a_rows as u32),
            a_divisor: form.grouped.map_or(1, |g| g.a_divisor.min(u32::MAX as usize) as u32),
            first: window.matrices.start as u32,
            parts: parts(form) as u32,
            ..Self::zeroed()
        }
    }
}

/// Workgroups that share the rows of an expert, which may have any number of them.
fn parts(form: &Form) -> usize {
    form.grouped.map_or(1, |g| g.positions.div_ceil(TILE).min(32))
}

/// The grid of a window.
pub(crate) fn dims(form: &Form, window: &Window) -> Result<Dims> {
    let down = if form.grouped.is_some() { parts(form) } else { window.rows.len().div_ceil(TILE) };
    let tiles = (window.matrices.len() as u64)
        .saturating_mul(down as u64)
        .saturating_mul(window.cols.len().div_ceil(TILE) as u64);
    Dims::line(tiles.saturating_mul(256), 256)
}

/// Multiplications of whole tiles.
pub(crate) fn work(form: &Form) -> f32 {
    let groups = match form.grouped {
        None => form.matrices * form.m.div_ceil(TILE),
        Some(g) => form.matrices.min(g.positions).max(g.positions.div_ceil(TILE)),
    };
    let sides = 1 + usize::from(form.up.is_some());
    (groups * form.n.div_ceil(TILE) * sides) as f32 * (TILE * TILE) as f32 * form.k as f32
}
