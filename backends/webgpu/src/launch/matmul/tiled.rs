//! Products of floats on GPUs: tiles in workgroup memory (`shaders/wgsl/matmul/tiled.wgsl`), where they are few by parts of k, whose sums are
//! added by a kernel of their own (`shaders/wgsl/matmul/reduce.wgsl`). Tiles of experts know their rows by `shaders/wgsl/matmul/experts.wgsl`.

use super::form::{EpilogueParam, Form, count};
use super::window::{Window, most_bound, windows};
use super::{HEADERS, STEP, too_large};
use crate::launch::limits::{full, refuse_workgroup};
use crate::launch::rows::caps;
use crate::launch::{Builder, Dims, Place, other_op};
use crate::pipeline::Checks;
use crate::shader::{Binding, Touch};
use bytemuck::{Pod, Zeroable};
use perjoule_kernels::op::{Op, Tensor2};
use perjoule_kernels::{Candidate, Config, DType, Launch, Reason, Request, Result};
use perjoule_shaders::wgsl;

const fn config(name: &'static str, tile: &'static [usize], params: &'static [usize]) -> Config {
    Config { name, tile, params }
}

/// Tiles, with the rows and columns of an invocation, and parts of k. Two slices of both operands take no more than 16 KiB.
pub(crate) static CONFIGS: &[Config] = &[
    config("64x64", &[64, 64, 16], &[4, 4, 1]),
    config("128x128", &[128, 128, 8], &[8, 8, 1]),
    config("128x64", &[128, 64, 8], &[8, 4, 1]),
    config("64x32", &[64, 32, 16], &[4, 4, 1]),
    config("32x32", &[32, 32, 16], &[4, 2, 1]),
    config("64x64-4", &[64, 64, 16], &[4, 4, 4]),
    config("32x32-8", &[32, 32, 16], &[4, 2, 8]),
];
/// The same for pairs, which have two operands B.
pub(crate) static GATED: &[Config] = &[
    config("64x64", &[64, 64, 8], &[4, 4, 1]),
    config("32x32", &[32, 32, 16], &[4, 2, 1]),
    config("32x32-4", &[32, 32, 16], &[4, 2, 4]),
];
/// The same for experts, whose rows take memory, too, and may be few.
pub(crate) static GROUPED: &[Config] = &[
    config("64x64", &[64, 64, 8], &[4, 4, 1]),
    config("128x64", &[128, 64, 8], &[8, 4, 1]),
    config("32x64", &[32, 64, 16], &[4, 4, 1]),
];

/// Most bytes of sums of parts.
const MOST: u64 = 64 << 20;
/// Workgroups of a dimension.
pub(super) const GROUPS: usize = 65_535;

/// `Params` of `matmul/tiled.wgsl`.
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
    parts: u32,
    depth: u32,
    quads: u32,
    positions: u32,
    a_rows: u32,
    a_divisor: u32,
    experts: u32,
    first: u32,
}

/// `Params` of `matmul/reduce.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Reduce {
    epilogue: EpilogueParam,
    m: u32,
    n: u32,
    matrices: u32,
    parts: u32,
    pitch: u32,
    row: u32,
    col: u32,
    matrix: u32,
}

/// Sums of a part of a product, in scratch.
pub(super) struct Sums {
    /// Where they are.
    pub(super) place: Place,
    /// Rows, columns and matrices.
    pub(super) extent: [usize; 3],
    /// Where in C the first of each belongs.
    pub(super) first: [usize; 3],
    /// Parts of k.
    pub(super) parts: usize,
    /// Elements from one row of sums to the next.
    pub(super) pitch: usize,
}

/// Adds the kernel that makes C of sums. `epilogue`: what the epilogue binds.
pub(super) fn reduce(builder: &mut Builder<'_>, form: &Form, sums: Sums, epilogue: &[Place]) -> Result<()> {
    let variant = form.variant(vec![Binding::get("partial", DType::F32)]).uint("SIDES", sides(form));
    let [m, n, matrices] = sums.extent;
    let [row, col, matrix] = sums.first.map(|first| first as u32);
    let params = Reduce {
        epilogue: form.epilogue(),
        m: m as u32,
        n: n as u32,
        matrices: matrices as u32,
        parts: sums.parts as u32,
        pitch: sums.pitch as u32,
        row,
        col,
        matrix,
    };
    let dims = Dims::line((matrices * m * n) as u64, 256)?;
    let places = [&[sums.place], epilogue].concat();
    let source = (&wgsl::MATMUL_REDUCE, HEADERS, "reduce");
    builder.step(source, (&variant, Checks::None), dims, &params, places)
}

/// A configuration for a product.
#[derive(Clone, Copy)]
struct Tile {
    m: usize,
    n: usize,
    k: usize,
    rows: usize,
    cols: usize,
    parts: usize,
}

impl Tile {
    fn of(config: &Config) -> Self {
        let (tile, params) = (config.tile, config.params);
        Tile { m: tile[0], n: tile[1], k: tile[2], rows: params[0], cols: params[1], parts: params[2] }
    }

    fn threads(&self) -> usize {
        (self.m / self.rows) * (self.n / self.cols)
    }

    /// Bytes of two slices of both operands, whose quads along k are `pad` places further apart than they have vectors, and of an expert's
    /// rows.
    fn bytes(&self, form: &Form, pad: usize) -> usize {
        let rows = if form.grouped.is_some() { 8 * self.m + 32 } else { 0 };
        16 * 2 * self.k / 4 * (self.m + self.n * sides(form) + 2 * pad) + rows
    }

    /// Places between quads along k that keep neighbours, who store a few quads of a few vectors each, out of each other's banks: where the
    /// device has the memory.
    fn pad(&self, form: &Form, most: usize) -> usize {
        let pad = 8 / (self.k / 4);
        if self.bytes(form, pad) <= most { pad } else { 0 }
    }

    /// Workgroups along C's rows, of which those of experts find their tiles themselves.
    fn down(&self, form: &Form) -> usize {
        form.grouped.map_or(form.m.div_ceil(self.m), |g| g.positions.div_ceil(self.m) + form.matrices)
    }

    /// Matrices and parts, each of which has workgroups of its own.
    fn deep(&self, form: &Form) -> usize {
        if form.grouped.is_some() { 1 } else { form.matrices.saturating_mul(self.parts) }
    }

    /// Tiles that are computed, about: an expert's rows end half a tile before its last one does.
    fn tiles(&self, form: &Form) -> f32 {
        let Some(g) = form.grouped else { return (self.deep(form) * self.down(form)) as f32 };
        let experts = form.matrices.min(g.positions) as f32;
        (g.positions as f32 / self.m as f32 + 0.5 * experts).max(experts)
    }

    /// Elements of k of a part: whole slices.
    fn depth(&self, k: usize) -> usize {
        k.div_ceil(self.parts).next_multiple_of(self.k).max(self.k)
    }
}

/// Matrices B: two of a pair.
fn sides(form: &Form) -> usize {
    1 + usize::from(form.up.is_some())
}

/// Sums of a product by parts.
fn partial(form: &Form, tile: Tile) -> u64 {
    [tile.parts, form.matrices, sides(form), form.m, form.n].iter().fold(4, |all, &n| all * n as u64)
}

pub(crate) fn refuse(candidate: &Candidate<'_>) -> Option<Reason> {
    let Some(form) = Form::of(candidate.op) else { return Some(Reason::new("the op is no product")) };
    let float = |dtype| matches!(dtype, DType::F32 | DType::F16 | DType::BF16);
    if form.scales_along_k() {
        return Some(Reason::new("has no scales along k"));
    }
    // elements of B are widened as they come, whatever they are
    let weights = float(form.b.dtype) || form.b.dtype == DType::F8E4M3 || form.b.dtype.is_block();
    if ![form.a.dtype, form.c.dtype].into_iter().all(float) || !weights {
        return Some(Reason::new("multiplies f32, f16 and bf16 by those, f8e4m3 and block formats"));
    }
    if let Some(reason) = super::refuse(candidate) {
        return Some(reason);
    }
    let Some(caps) = caps(candidate.info) else { return Some(Reason::new("the device is none of WebGPU")) };
    let whole = windows(&form, most_bound(caps)).is_some_and(|windows| windows.len() == 1);
    if !whole && form.grouped.is_none() {
        return Some(Reason::new("takes operands that a kernel binds whole"));
    }
    let tile = Tile::of(candidate.config);
    let grid = [tile.down(&form), form.n.div_ceil(tile.n), tile.deep(&form)];
    if grid.iter().any(|&groups| groups > GROUPS) {
        return Some(Reason::new("has no grid for so many tiles"));
    }
    if tile.parts > 1 && partial(&form, tile) > MOST {
        return Some(Reason::new("has no room for so many sums of parts"));
    }
    // what adds parts has 256 invocations
    let threads = if tile.parts > 1 { tile.threads().max(256) } else { tile.threads() };
    refuse_workgroup(candidate, threads, tile.bytes(&form, 0))
}

/// Whether lines of an operand along k are read in fours: vectors `vector` elements apart, elements `step`.
pub(super) fn in_quads(t: &Tensor2, vector: usize, step: usize, aligned: bool) -> bool {
    aligned && step == 1 && vector.is_multiple_of(4) && t.strides.batch.is_multiple_of(4)
}

/// Which operands are read in fours: A, and B with the up projection.
pub(super) fn quads(form: &Form, aligned: impl Fn(usize) -> bool) -> [bool; 2] {
    // a binding holds one word at least
    if form.k < 4 {
        return [false, false];
    }
    let (a, b) = (form.a.strides, form.b.strides);
    let pair = form.up.is_none_or(|up| up.row == 1 && up.col.is_multiple_of(4) && aligned(up_place()));
    let pair = pair && !form.b.dtype.is_block();
    [in_quads(&form.a, a.row, a.col, aligned(0)), pair && in_quads(&form.b, b.col, b.row, aligned(1))]
}

/// The index of the up projection among the operands.
const fn up_place() -> usize {
    2
}

/// No more than what is known: there is code for operands anywhere.
pub(crate) fn align(candidate: &Candidate<'_>, operand: usize) -> u32 {
    let inputs = if matches!(candidate.op, Op::GatedMatMul(_)) { 3 } else { 2 };
    if operand < inputs && candidate.alignment.of(operand) >= 16 { 16 } else { 1 }
}

/// Seconds, on a GPU of some teraflops; on a processor workgroup memory is no faster than any other.
pub(crate) fn cost(candidate: &Candidate<'_>) -> f32 {
    let Some(form) = Form::of(candidate.op) else { return f32::INFINITY };
    let tile = Tile::of(candidate.config);
    let groups = tile.tiles(&form) * form.n.div_ceil(tile.n) as f32;
    let depth = if tile.parts > 1 { tile.depth(form.k) } else { form.k };
    // what an invocation has in registers saves it reads of workgroup memory
    let reuse = (tile.rows * tile.cols) as f32 / (tile.rows + tile.cols) as f32;
    let rate = if super::is_software(candidate) { 0.4e12 } else { 1.5e12 * reuse.sqrt() };
    // an element of a block is some twenty operations for as many multiplications as a tile has rows
    let rate = if form.b.dtype.is_block() { rate / (1.0 + 20.0 / tile.m as f32) } else { rate };
    // workgroups of few invocations, and few workgroups, leave a GPU idle
    let busy =
        if super::is_software(candidate) { 1.0 } else { groups * tile.threads() as f32 / full(candidate) };
    let work = 2.0 * groups * (tile.m * tile.n * sides(&form)) as f32 * depth as f32;
    let sums = if tile.parts > 1 { STEP + 2.0 * partial(&form, tile) as f32 / 200e9 } else { 0.0 };
    let compute = work / (rate * busy.clamp(0.02, 1.0));
    STEP + compute.max(candidate.op.bytes() as f32 / 200e9) + sums
}

pub(crate) fn prepare(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    prepare_within(request, caps(request.info).map_or(0, most_bound))
}

/// The same with operands of no more than `most` bytes bound at a time.
pub(super) fn prepare_within(request: &Request<'_>, most: u64) -> Result<Box<dyn Launch>> {
    let form = Form::of(request.op).ok_or_else(|| other_op(request.op))?;
    let tile = Tile::of(request.config);
    let mut builder = Builder::new(request, "matmul_tiled_webgpu")?;
    let (a, b) = (form.a.strides, form.b.strides);
    let [a_quads, b_quads] = quads(&form, |operand| request.alignment.of(operand) >= 16);
    let mut inputs = form.inputs();
    for (input, in_quads) in [(0, a_quads), (1, b_quads), (2, b_quads && form.up.is_some())] {
        if in_quads {
            inputs[input].touch = Touch::Quads;
        }
    }
    let (kinds, bound) = (inputs.len(), inputs.iter().filter(|input| input.is_bound()).count());
    let memory = caps(request.info).map_or(0, |caps| caps.limits.max_compute_workgroup_storage_size);
    let split = tile.parts > 1;
    inputs.push(Binding::set("partial", DType::F32).when(split));
    let mut variant = form
        .variant(inputs)
        .flag("A_QUADS", a_quads)
        .flag("B_QUADS", b_quads)
        .flag("A_ALONG_K", a.col == 1)
        .flag("B_ALONG_K", b.row == 1)
        .flag("SPLIT", split)
        .uint("SIDES", sides(&form))
        .uint("TILE_M", tile.m)
        .uint("TILE_N", tile.n)
        .uint("QUADS", tile.k / 4)
        .uint("PAD", tile.pad(&form, memory as usize))
        .uint("ROWS", tile.rows)
        .uint("COLS", tile.cols)
        .uint("WORKGROUP", tile.threads());
    let sums = if split { partial(&form, tile).max(16) } else { 0 };
    let scratch = Place::Scratch(builder.scratch(sums), sums);
    if split {
        // the epilogue is the second kernel's
        variant.bindings[kinds + 1..].iter_mut().for_each(|binding| *binding = binding.when(false));
    }
    let rows = if form.grouped.is_some() { &wgsl::MATMUL_EXPERTS } else { &wgsl::MATMUL_MATRICES };
    let headers = [HEADERS, &[rows]].concat();
    let source = (&wgsl::MATMUL_TILED, headers.as_slice(), "tiled");
    // one, but for experts
    for window in windows(&form, most).ok_or_else(too_large)? {
        let mut places = form.places(&window);
        if split {
            places.truncate(bound);
            places.push(scratch.clone());
        }
        let params = params(&form, tile, &window);
        let dims = Dims::grid(tile.down(&form), window.cols.len().div_ceil(tile.n), tile.deep(&form))?;
        builder.step(source, (&variant, Checks::None), dims, &params, places)?;
    }
    if split {
        let extent = [form.m, form.n, form.matrices];
        let sums = Sums { place: scratch, extent, first: [0; 3], parts: tile.parts, pitch: form.n };
        let epilogue = &form.places(&Window::whole(&form))[bound..];
        reduce(&mut builder, &form, sums, epilogue)?;
    }
    Ok(builder.finish())
}

fn params(form: &Form, tile: Tile, window: &Window) -> Params {
    let (a, b) = (form.a.strides, form.b.strides);
    Params {
        epilogue: form.epilogue(),
        a_batch: a.batch as u32,
        a_row: a.row as u32,
        a_col: a.col as u32,
        k: form.k as u32,
        b_batch: b.batch as u32,
        b_row: b.row as u32,
        b_col: b.col as u32,
        m: form.m as u32,
        up_row: form.up.map_or(0, |up| up.row as u32),
        up_col: form.up.map_or(0, |up| up.col as u32),
        n: count(&window.cols),
        matrices: count(&window.matrices),
        parts: tile.parts as u32,
        depth: tile.depth(form.k) as u32,
        quads: (tile.k / 4) as u32,
        positions: form.grouped.map_or(0, |g| g.positions as u32),
        a_rows: form.grouped.map_or(0, |g| g.a_rows as u32),
        a_divisor: form.grouped.map_or(1, |g| g.a_divisor.min(u32::MAX as usize) as u32),
        experts: form.matrices as u32,
        first: window.matrices.start as u32,
    }
}
