//! Products on adapters that are processors (`shaders/wgsl/matmul/direct/`): both operands are laid out in panels of f32 in scratch, which
//! then stream through the caches. Types, strides and edges matter to the first kernels only.

use super::STEP;
use super::form::Form;
use super::tiled::{GROUPS, Sums, reduce};
use super::window::{Window, most_bound, windows};
use crate::launch::limits::{refuse_workgroup, subgroup};
use crate::launch::rows::caps;
use crate::launch::{Builder, Dims, Place, other_op};
use crate::pipeline::Checks;
use crate::shader::{Binding, Touch, Variant};
use bytemuck::{Pod, Zeroable};
use perjoule_kernels::{Candidate, Config, DType, Launch, Reason, Request, Result};
use perjoule_shaders::{Source, wgsl};
use std::ops::Range;

/// With subgroups: rows, columns, and of k what a loop goes over at once.
pub(crate) static SUBGROUP: &[Config] =
    &[Config::tile("32x64", &[32, 64, 4]), Config::tile("16x64", &[16, 64, 4])];
/// Without.
pub(crate) static UNIFORM: &[Config] =
    &[Config::tile("32x32", &[32, 32, 4]), Config::tile("16x64", &[16, 64, 4])];

/// Most bytes of panels of one operand.
const MOST: u64 = 64 << 20;

/// `Params` of `matmul/direct/pack.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Pack {
    batch: u32,
    vector: u32,
    step: u32,
    up_vector: u32,
    up_step: u32,
    count: u32,
    k: u32,
    quads: u32,
    panel: u32,
    matrix: u32,
    unused: [u32; 2],
}

/// `Params` of `matmul/direct/multiply.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    m: u32,
    n: u32,
    quads: u32,
    a_panels: u32,
    b_panels: u32,
    out_batch: u32,
    out_row: u32,
    out_first: u32,
    cols: u32,
    second_col: u32,
    second: u32,
    unused: u32,
}

/// How a product is split.
#[derive(Clone, Copy)]
struct Tile {
    /// Rows of a panel of A.
    rows: usize,
    /// Columns of C that a panel of B stands for, and those that it has: twice as many of a pair.
    cols: usize,
    width: usize,
    quads: usize,
}

impl Tile {
    fn of(form: &Form, config: &Config) -> Self {
        let width = if form.up.is_some() { 64 } else { config.tile[1] };
        let sides = 1 + usize::from(form.up.is_some());
        Tile { rows: config.tile[0], cols: width / sides, width, quads: form.k.div_ceil(4) }
    }

    /// Bytes of a panel of A, and of one of B.
    fn bytes(&self) -> [u64; 2] {
        [self.rows, self.width].map(|vectors| (vectors * self.quads * 16) as u64)
    }
}

fn reject(candidate: &Candidate<'_>) -> Option<Reason> {
    let Some(form) = Form::of(candidate.op) else { return Some(Reason::new("the op is no product")) };
    if let Some(reason) = super::refuse(candidate) {
        return Some(reason);
    }
    if form.grouped.is_some() || form.scales_along_k() || form.a.dtype == DType::I8 {
        return Some(Reason::new("multiplies floats, without scales along k"));
    }
    let most = caps(candidate.info).map_or(0, most_bound);
    if windows(&form, most).is_none_or(|windows| windows.len() > 1) {
        return Some(Reason::new("takes operands that a kernel binds whole"));
    }
    let tile = Tile::of(&form, candidate.config);
    if tile.bytes().iter().any(|&bytes| bytes > MOST) || tile.quads.div_ceil(8) > GROUPS {
        return Some(Reason::new("has no room for panels of such a depth"));
    }
    // those that lay out panels
    refuse_workgroup(candidate, 256, 0)
}

/// Why the row that needs subgroups does not run it.
pub(crate) fn refuse_subgroup(candidate: &Candidate<'_>) -> Option<Reason> {
    let has = caps(candidate.info).is_some_and(|caps| subgroup(caps).0 >= 8);
    (!has).then(|| Reason::lacking("subgroups of 8 or more")).or_else(|| reject(candidate))
}

/// The same for the other one.
pub(crate) fn refuse(candidate: &Candidate<'_>) -> Option<Reason> {
    reject(candidate)
}

fn seconds(candidate: &Candidate<'_>, rate: f32) -> f32 {
    let Some(form) = Form::of(candidate.op) else { return f32::INFINITY };
    let tile = Tile::of(&form, candidate.config);
    let (rows, cols) = (form.m.div_ceil(tile.rows), form.n.div_ceil(tile.cols));
    let work = (form.matrices * rows * cols) as f32 * (tile.rows * tile.width) as f32 * form.k as f32;
    let panels = (form.matrices * (rows * tile.rows + cols * tile.width)) as f32 * form.k as f32;
    // an invocation is a lane of a processor, whose rate others' costs overstate; of a GPU few are busy
    let slow = if super::is_software(candidate) { 1.0 } else { 40.0 };
    STEP + (2.0 * work / rate + panels * 0.01e-9) * slow
}

/// Seconds.
pub(crate) fn cost_subgroup(candidate: &Candidate<'_>) -> f32 {
    seconds(candidate, if candidate.config.tile[0] == 32 { 2.4e12 } else { 2e12 })
}

/// Seconds.
pub(crate) fn cost(candidate: &Candidate<'_>) -> f32 {
    seconds(candidate, if candidate.config.tile[0] == 32 { 1.6e12 } else { 1.2e12 })
}

pub(crate) fn prepare_subgroup(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    prepare_within(request, &wgsl::DIRECT_BROADCAST, MOST)
}

pub(crate) fn prepare(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    prepare_within(request, &wgsl::DIRECT_UNIFORM, MOST)
}

/// What of a product is multiplied at once: matrices, panels of A, and panels of B.
#[derive(Clone, Copy)]
struct Split {
    matrices: usize,
    rows: usize,
    cols: usize,
}

impl Split {
    /// So that panels of an operand take no more than `most` bytes, unless one of them does, and a grid has them.
    fn of(form: &Form, tile: &Tile, most: u64) -> Self {
        let fit = |bytes: u64| ((most / bytes.max(1)) as usize).clamp(1, GROUPS);
        let [left, right] = tile.bytes().map(fit);
        let cols = form.n.div_ceil(tile.cols).min(right);
        // sums that are not C themselves
        let sums = fit((tile.rows * cols * tile.width * 4) as u64);
        let left = if is_plain(form) { left } else { left.min(sums) };
        let rows = form.m.div_ceil(tile.rows).min(left);
        let whole = rows * tile.rows >= form.m && cols * tile.cols >= form.n;
        let matrices = if whole { (left / rows.max(1)).min(right / cols.max(1)).max(1) } else { 1 };
        Split { matrices: matrices.min(form.matrices), rows, cols }
    }
}

fn pieces(total: usize, count: usize) -> impl Iterator<Item = Range<usize>> {
    let count = count.max(1);
    (0..total.div_ceil(count)).map(move |i| i * count..((i + 1) * count).min(total))
}

/// The same with no more than `most` bytes of panels of an operand at a time.
fn prepare_within(request: &Request<'_>, eight: &'static Source, most: u64) -> Result<Box<dyn Launch>> {
    let form = Form::of(request.op).ok_or_else(|| other_op(request.op))?;
    let tile = Tile::of(&form, request.config);
    let split = Split::of(&form, &tile, most);
    let mut builder = Builder::new(request, "matmul_direct_webgpu")?;
    // one that all matrices share is laid out once
    let distinct = |stride: usize, matrices: usize| if stride == 0 { 1 } else { matrices };
    let [left, right] = tile.bytes();
    let left = left * (distinct(form.a.strides.batch, split.matrices) * split.rows) as u64;
    let right = right * (distinct(form.b.strides.batch, split.matrices) * split.cols) as u64;
    let scratch = [left, right].map(|bytes| Place::Scratch(builder.scratch(bytes.max(16)), bytes.max(16)));
    let places = form.places(&Window::whole(&form));
    let sides = 1 + usize::from(form.up.is_some());
    let inputs = 1 + sides;
    let operands = &places[inputs..];
    let plain = is_plain(&form);
    let sums = if plain { 0 } else { split.matrices * split.rows * tile.rows * split.cols * tile.width * 4 };
    let sums = Place::Scratch(builder.scratch(sums as u64), sums.max(4) as u64);
    // a buffer is read only or written to in a dispatch: panels beside sums count as written
    let panels: fn(&'static str) -> Binding = match plain {
        true => |name| Binding::words(name, "vec4<f32>"),
        false => |name| Binding::words_mut(name, "vec4<f32>"),
    };
    let headers: [&'static Source; 3] = [&wgsl::ELEMENT, &wgsl::DIRECT_ROW, eight];
    let panel_rows = form.m.div_ceil(tile.rows);
    let panel_cols = form.n.div_ceil(tile.cols);
    let float = |dtype| matches!(dtype, DType::F32 | DType::F16 | DType::BF16);
    let [a_quads, b_quads] = super::tiled::quads(&form, |operand| request.alignment.of(operand) >= 16);
    let quads = [a_quads && float(form.a.dtype), b_quads && float(form.b.dtype)];
    let b_lines = float(form.b.dtype) && lines(&form, |operand| request.alignment.of(operand) >= 16);
    let mut had = (None, None);
    for matrices in pieces(form.matrices, split.matrices) {
        for rows in pieces(panel_rows, split.rows) {
            let batch = form.a.strides.batch;
            let key = (if batch == 0 { 0 } else { matrices.start }, rows.start);
            if had.0 != Some(key) && tile.quads > 0 {
                let variant = Variant::of(vec![
                    read("a", form.a.dtype, quads[0]),
                    Binding::get("b", DType::F32).when(false),
                    Binding::get("up", DType::F32).when(false),
                    Binding::words_mut("panels", "vec4<f32>"),
                ])
                .flag("A_QUADS", quads[0])
                .flag("B_QUADS", false)
                .flag("B_LINES", false)
                .uint("ROWS", tile.rows)
                .uint("WORDS", tile.width / 4);
                let params = Pack {
                    vector: form.a.strides.row as u32,
                    step: form.a.strides.col as u32,
                    count: form.m as u32,
                    panel: rows.start as u32,
                    ..pack(&form, &tile, batch, matrices.start)
                };
                let dims = Dims::grid(
                    tile.quads.div_ceil(256 / tile.rows),
                    rows.len(),
                    distinct(batch, matrices.len()),
                )?;
                let source = (&wgsl::DIRECT_PACK, PACK_HEADERS, "rows");
                let places = vec![places[0].clone(), scratch[0].clone()];
                builder.step(source, (&variant, Checks::None), dims, &params, places)?;
            }
            had.0 = Some(key);
            for cols in pieces(panel_cols, split.cols) {
                let batch = form.b.strides.batch;
                let key = (if batch == 0 { 0 } else { matrices.start }, cols.start);
                if had.1 != Some(key) && tile.quads > 0 {
                    let variant = Variant::of(vec![
                        Binding::get("a", DType::F32).when(false),
                        read("b", form.b.dtype, quads[1] || b_lines),
                        read("up", form.b.dtype, quads[1] || b_lines).when(form.up.is_some()),
                        Binding::words_mut("panels", "vec4<f32>"),
                    ])
                    .flag("A_QUADS", false)
                    .flag("B_QUADS", quads[1])
                    .flag("B_LINES", b_lines)
                    .uint("ROWS", tile.rows)
                    .uint("WORDS", tile.width / 4);
                    let params = Pack {
                        vector: form.b.strides.col as u32,
                        step: form.b.strides.row as u32,
                        up_vector: form.up.map_or(0, |up| up.col as u32),
                        up_step: form.up.map_or(0, |up| up.row as u32),
                        count: form.n as u32,
                        panel: cols.start as u32,
                        ..pack(&form, &tile, batch, matrices.start)
                    };
                    let along_k = form.b.strides.row == 1;
                    let lines = if along_k { tile.quads } else { tile.quads * 4 };
                    let lines = lines.div_ceil(256 / (tile.width / 4));
                    let dims = Dims::grid(lines, cols.len(), distinct(batch, matrices.len()))?;
                    let source =
                        (&wgsl::DIRECT_PACK, PACK_HEADERS, if along_k { "transposed" } else { "columns" });
                    let mut places = places[1..inputs].to_vec();
                    places.push(scratch[1].clone());
                    builder.step(source, (&variant, Checks::None), dims, &params, places)?;
                }
                had.1 = Some(key);
                let variant =
                    Variant::of(vec![panels("left"), panels("right"), Binding::set("out", DType::F32)])
                        .uint("ROWS", tile.rows)
                        .uint("VECTORS", tile.width / 32)
                        .uint("TILE_VECTORS", tile.rows * tile.width / 32);
                let first = [rows.start * tile.rows, cols.start * tile.cols, matrices.start];
                let m = form.m.min(rows.end * tile.rows) - first[0];
                let n = form.n.min(cols.end * tile.cols) - first[1];
                let c = form.c.strides;
                let pitch = n.next_multiple_of(4);
                let (out, out_first, out_row, out_batch) = match plain {
                    true => (operands[0].clone(), c.at(first[2], first[0], first[1]), c.row, c.batch),
                    false => (sums.clone(), 0, pitch, sides * m * pitch),
                };
                let params = Params {
                    m: m as u32,
                    n: pitch as u32,
                    quads: tile.quads as u32,
                    a_panels: if form.a.strides.batch == 0 { 0 } else { rows.len() as u32 },
                    b_panels: if batch == 0 { 0 } else { cols.len() as u32 },
                    out_batch: out_batch as u32,
                    out_row: out_row as u32,
                    out_first: out_first as u32,
                    cols: tile.cols as u32,
                    second_col: if sides == 2 { 0 } else { 32 },
                    second: if sides == 2 { (m * pitch) as u32 } else { 32 },
                    unused: 0,
                };
                let dims = Dims::grid(rows.len(), cols.len(), matrices.len())?;
                let source = (&wgsl::DIRECT_MULTIPLY, headers.as_slice(), "multiply");
                let places = [scratch.as_slice(), &[out]].concat();
                builder.step(source, (&variant, Checks::None), dims, &params, places)?;
                if !plain {
                    let extent = [m, n, matrices.len()];
                    let sums = Sums { place: sums.clone(), extent, first, parts: 1, pitch };
                    reduce(&mut builder, &form, sums, operands)?;
                }
            }
        }
    }
    Ok(builder.finish())
}

/// Whether sums are C as they are, in fours.
fn is_plain(form: &Form) -> bool {
    form.is_plain() && form.n.is_multiple_of(4)
}

/// Whether rows of B, and of the up projection, are contiguous and begin at multiples of four elements.
fn lines(form: &Form, aligned: impl Fn(usize) -> bool) -> bool {
    let b = form.b.strides;
    let up = form.up.is_none_or(|up| up.col == 1 && up.row.is_multiple_of(4) && aligned(2));
    // a binding holds one word at least
    form.n >= 4 && form.k > 0 && up && super::tiled::in_quads(&form.b, b.row, b.col, aligned(1))
}

/// An operand that is read by element, and in fours where its lines allow it.
fn read(name: &'static str, dtype: DType, in_quads: bool) -> Binding {
    let touch = if in_quads { Touch::Quads } else { Touch::Get };
    Binding { touch, ..Binding::get(name, dtype) }
}

const PACK_HEADERS: &[&Source] = &[&wgsl::ELEMENT];

/// What both operands' parameters have in common.
fn pack(form: &Form, tile: &Tile, batch: usize, matrix: usize) -> Pack {
    Pack {
        batch: batch as u32,
        k: form.k as u32,
        quads: tile.quads as u32,
        matrix: if batch == 0 { 0 } else { matrix as u32 },
        ..Pack::zeroed()
    }
}
