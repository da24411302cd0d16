//! Few rows of A with weights that stream from memory: `shaders/wgsl/matmul/gemv/`.

use super::form::{EpilogueParam, Form, count};
use super::window::{Window, most_bound, windows};
use super::{STEP, refuse_lines, too_large};
use crate::launch::limits::{full, refuse_workgroup, subgroup};
use crate::launch::rows::caps;
use crate::launch::{Builder, Dims, Place, other_op};
use crate::pipeline::Checks;
use crate::shader::{Binding, Variant};
use bytemuck::{Pod, Zeroable};
use perjoule_kernels::{Candidate, Config, DType, Launch, Matrix, Numerics, Op, Reason, Request, Result};
use perjoule_shaders::{Source, wgsl};

/// How products of block formats are computed, and where sums meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Way {
    /// By additions within subgroups; else in workgroup memory.
    pub(crate) subgroup: bool,
    /// Activations are quantised to 8 bits first, and multiplied four at a time.
    pub(crate) quantised: bool,
}

const NARROW: Config = Config { name: "64x4", tile: &[8, 4, 256], params: &[64, 4] };
const WIDE: Config = Config { name: "256x2", tile: &[8, 2, 512], params: &[256, 2] };

/// Invocations of a workgroup, and the columns of B that it has: many invocations for matrices of few columns.
pub(crate) static CONFIGS: &[Config] = &[NARROW, WIDE];

/// The same where columns are many.
pub(crate) static ONE: &[Config] = &[NARROW];

/// Rounding activations to 8 bits within blocks of 32: half of a 127th of the largest of them.
pub(crate) const QUANTISED: Numerics = Numerics::F32.with_unit(1.0 / 254.0).flushing_subnormals();

/// Most rows of A: more are for kernels that read B once for a large tile of rows.
const MOST_ROWS: usize = 64;
/// Most positions of a grouped product.
const MOST_POSITIONS: usize = 512;
/// Most rows of A that a workgroup has.
const MOST_TOKENS: usize = 8;
/// Most sums that meet in workgroup memory.
const MOST_SUMS: usize = 2048;

/// How weights of a type are read.
pub(super) struct Format {
    /// Elements of a unit.
    pub(super) unit: usize,
    /// The WGSL type of words.
    pub(super) word: &'static str,
    /// Bytes by which rows of weights are addressed.
    pub(super) address: usize,
    pub(super) headers: &'static [&'static Source],
    /// Parts of a unit with scales of their own, and `FORMAT` of `blocks.wgsl`.
    pub(super) parts: usize,
    pub(super) block: usize,
}

impl Format {
    /// That of weights in `b`; `None` for types that no weight has.
    pub(super) fn of(b: DType) -> Option<Self> {
        let wide = |unit, headers| {
            let parts = if b == DType::Q4K { 2 } else { 1 };
            Format { unit, word: "vec4<u32>", address: 16, headers, parts, block: 0 }
        };
        let bytes = |unit, headers, block| {
            let parts = if b == DType::Q6K { 4 } else { 1 };
            Format { unit, word: "u32", address: 1, headers, parts, block }
        };
        const PLAIN: &[&Source] = &[&wgsl::GEMV_PLAIN];
        const I8: &[&Source] = &[&wgsl::GEMV_I8];
        const BLOCKS: &[&Source] = &[&wgsl::GEMV_BYTES, &wgsl::GEMV_BLOCKS];
        const Q4_K: &[&Source] = &[&wgsl::GEMV_Q4_K];
        const Q6_K: &[&Source] = &[&wgsl::GEMV_BYTES, &wgsl::GEMV_Q6_K];
        Some(match b {
            DType::F32 => wide(4, PLAIN),
            DType::F16 | DType::BF16 => wide(8, PLAIN),
            DType::F8E4M3 => wide(16, PLAIN),
            DType::I8 => wide(16, I8),
            DType::Q4K => wide(32, Q4_K),
            DType::Q6K => bytes(16, Q6_K, 0),
            DType::Q8_0 => bytes(8, BLOCKS, 0),
            DType::Q4_0 => bytes(8, BLOCKS, 1),
            DType::MxFp4 => bytes(8, BLOCKS, 2),
            DType::I32 | DType::U32 => return None,
        })
    }

    /// The same variant with what the file of the weights' type needs.
    pub(super) fn variant(&self, variant: Variant, b: DType) -> Variant {
        let mut variant = variant
            .alias("Word", self.word)
            .uint("QUADS", self.unit / 4)
            .uint("PARTS", self.parts)
            .uint("FORMAT", self.block)
            .flag("MINIMA", b == DType::Q4K)
            .uint("BLOCK_BYTES", b.block_bytes())
            // addresses count what words begin with: words of 16 bytes, or bytes of words of 4
            .uint("WORD_BYTES", if self.address == 16 { 1 } else { 4 });
        // codes of mxfp4 are twice their numbers
        let unit = if b == DType::MxFp4 { "0.5" } else { "1.0" };
        variant.consts.push(("CODE_UNIT", unit.to_string()));
        variant
    }

    /// A stride of B in what kernels count in.
    pub(super) fn address_of(&self, b: DType, stride: usize) -> u32 {
        (b.bytes(stride).unwrap_or(0) / self.address as u64) as u32
    }

    /// Where B of a window begins in its first word, in bytes, where kernels count those.
    pub(super) fn first(&self, form: &Form, window: &Window) -> u32 {
        form.b_starts_at(window) % if self.address == 1 { 4 } else { 1 }
    }
}

/// The WGSL type of what a kernel reads A in, and its elements.
fn activations(a: DType) -> Option<(&'static str, usize)> {
    match a {
        DType::F32 => Some(("vec4<f32>", 4)),
        DType::F16 | DType::BF16 => Some(("vec2<u32>", 4)),
        DType::I8 => Some(("vec4<u32>", 16)),
        _ => None,
    }
}

/// `Params` of `matmul/gemv/body.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    epilogue: EpilogueParam,
    a_batch: u32,
    a_row: u32,
    b_batch: u32,
    b_col: u32,
    up_col: u32,
    units: u32,
    m: u32,
    n: u32,
    matrices: u32,
    experts: u32,
    first: u32,
    positions: u32,
    a_rows: u32,
    a_divisor: u32,
    b_first: u32,
    unused: u32,
}

/// How a product is split.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Tile {
    lanes: usize,
    /// Columns of B of a workgroup.
    cols: usize,
    /// Rows of A of a workgroup.
    tokens: usize,
}

impl Tile {
    fn of(form: &Form, config: &Config, way: Way) -> Self {
        let &[lanes, cols] = config.params else { return Tile { lanes: 64, cols: 4, tokens: 1 } };
        // units of 32 elements take the registers of several
        let cols = if form.b.dtype == DType::Q4K { cols / 2 } else { cols };
        let sides = 1 + usize::from(form.up.is_some());
        let kept = if way.subgroup { lanes / 4 } else { lanes };
        let most = (MOST_SUMS / (sides * cols * kept)).min(32 / (sides * cols)).max(1);
        let tokens = form.rows().max(1).next_power_of_two().min(MOST_TOKENS).min(most);
        Tile { lanes, cols, tokens }
    }

    /// Bytes of a workgroup's memory: sums of invocations or subgroups, and a few numbers.
    fn workgroup_bytes(&self, form: &Form, way: Way) -> usize {
        let sides = 1 + usize::from(form.up.is_some());
        let kept = if way.subgroup { self.lanes / 4 } else { self.lanes };
        4 * sides * self.cols * self.tokens * kept + 64
    }
}

/// Why it is not for a row that goes this way; `None` where it is.
pub(crate) fn refuse(candidate: &Candidate<'_>, way: Way) -> Option<Reason> {
    let reason = |text: &'static str| Some(Reason::new(text));
    // smaller ones would take more workgroup memory
    let has = caps(candidate.info).is_some_and(|caps| subgroup(caps).0 >= 4);
    if way.subgroup && !has {
        return Some(Reason::lacking("subgroup"));
    }
    let Some(form) = Form::of(candidate.op) else { return reason("the op is no product") };
    let (Some(format), Some((_, quad))) = (Format::of(form.b.dtype), activations(form.a.dtype)) else {
        return reason("reads a in f32, f16 or bf16, or i8 beside i8");
    };
    if way.quantised && !form.b.dtype.is_block() {
        return reason("reads b in block formats");
    }
    if way.quantised && !form.policy.quantised_activations {
        return reason("quantises activations, which the policy does not allow (quantised_activations)");
    }
    match form.grouped {
        None if form.m > MOST_ROWS => return reason("takes few rows of A"),
        Some(g) if g.positions > MOST_POSITIONS || form.rows() > MOST_TOKENS => {
            return reason("takes few rows of each expert");
        }
        _ => {}
    }
    let tile = Tile::of(&form, candidate.config, way);
    refuse_layout(&form, &format, quad, way.quantised)
        .or_else(|| super::refuse(candidate))
        .or_else(|| refuse_workgroup(candidate, tile.lanes, tile.workgroup_bytes(&form, way)))
        .or_else(|| {
            refuse_lines(candidate, &form, |window| start(&form, &format, tile, window).map(|(_, dims)| dims))
        })
        .or_else(|| way.quantised.then(|| refuse_quantised(&form, candidate)).flatten())
}

/// Why A, of which `quad` elements are read at a time where it is not quantised, or B is not laid out for such kernels.
pub(super) fn refuse_layout(form: &Form, format: &Format, quad: usize, quantised: bool) -> Option<Reason> {
    let reason = |text: &'static str| Some(Reason::new(text));
    if form.scales_along_k() {
        return reason("scales vary along k");
    }
    if form.a.strides.col != 1 || form.b.strides.row != 1 || form.up.is_some_and(|up| up.row != 1) {
        return reason("reads A and B with k contiguous");
    }
    // bindings of nothing are smaller than the words that a kernel expects
    if form.grouped.is_some_and(|g| g.positions > 0 && (g.a_rows == 0 || form.matrices == 0)) {
        return reason("there are positions, and nothing that they could name");
    }
    if form.k == 0 || !form.k.is_multiple_of(format.unit) {
        return reason("k is no multiple of what an invocation takes");
    }
    let (many, batched) = (form.n > 1, form.matrices > 1);
    let address =
        |stride: usize| form.b.dtype.bytes(stride).unwrap_or(1).is_multiple_of(format.address as u64);
    let columns = !many || address(form.b.strides.col) && form.up.is_none_or(|up| address(up.col));
    if !columns || batched && !address(form.b.strides.batch) {
        return reason("columns of B do not begin at multiples of 16 bytes");
    }
    let several = form.grouped.map_or(form.m, |g| g.a_rows) > 1;
    let a = form.a.strides;
    if !quantised && (several && !a.row.is_multiple_of(quad) || batched && !a.batch.is_multiple_of(quad)) {
        return reason("rows of A do not begin at multiples of what an invocation takes");
    }
    None
}

/// Why there is no room for quantised activations.
pub(super) fn refuse_quantised(form: &Form, candidate: &Candidate<'_>) -> Option<Reason> {
    let caps = caps(candidate.info)?;
    let most = most_bound(caps);
    let split = windows(form, most)?.iter().any(|window| {
        window.rows.len() < form.m || (form.grouped.is_none() && window.matrices.len() < form.matrices)
    });
    let room = Quantised::of(form).codes_bytes() <= most;
    (split || !room).then(|| Reason::new("A or C is larger than a binding")).or_else(|| {
        super::refuse_count(candidate, caps.limits.max_storage_buffers_per_shader_stage as usize - 1)
    })
}

/// Activations in blocks of 32 signed bytes, in scratch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Quantised {
    matrices: usize,
    rows: usize,
    k: usize,
    /// Where A and its codes lie, in elements.
    from: Matrix,
    pub(super) to: Matrix,
}

impl Quantised {
    pub(super) fn of(form: &Form) -> Self {
        let from = form.a.strides;
        // what matrices share is quantised once
        let matrices = if from.batch == 0 { form.matrices.min(1) } else { form.matrices };
        let rows = form.grouped.map_or(form.m, |g| g.a_rows);
        let batch = if from.batch == 0 { 0 } else { rows * form.k };
        Quantised { matrices, rows, k: form.k, from, to: Matrix { row: form.k, col: 1, batch } }
    }

    fn blocks(&self) -> usize {
        self.matrices * self.rows * (self.k / 32)
    }

    fn codes_bytes(&self) -> u64 {
        32 * self.blocks() as u64
    }

    /// Adds the kernel that makes them. Gives where codes and scales lie.
    pub(super) fn prepare(&self, builder: &mut Builder<'_>, a: DType) -> Result<[Place; 2]> {
        let scales_bytes = 4 * self.blocks() as u64;
        let codes = Place::Scratch(builder.scratch(self.codes_bytes()), self.codes_bytes());
        let scales = Place::Scratch(builder.scratch(scales_bytes), scales_bytes);
        let variant = Variant::of(vec![
            Binding::get("a", a),
            Binding::words_mut("codes", "u32"),
            Binding::words_mut("block_scales", "f32"),
        ]);
        let params = QuantiseParams {
            a_batch: self.from.batch as u32,
            a_row: self.from.row as u32,
            rows: self.rows.max(1) as u32,
            blocks: (self.k / 32) as u32,
            all: self.blocks() as u32,
            unused: [0; 3],
        };
        let places = vec![Place::Operand(0), codes.clone(), scales.clone()];
        let headers: &[&Source] = &[&wgsl::ELEMENT, &wgsl::LAYOUT];
        let source = (&wgsl::GEMV_QUANTISE, headers, "quantise");
        let dims = Dims::line(self.blocks() as u64, 64)?;
        builder.step(source, (&variant, Checks::None), dims, &params, places)?;
        Ok([codes, scales])
    }
}

/// `Params` of `matmul/gemv/quantise.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct QuantiseParams {
    a_batch: u32,
    a_row: u32,
    rows: u32,
    blocks: u32,
    all: u32,
    unused: [u32; 3],
}

/// A and B are read 16 bytes at a time.
pub(crate) fn align(candidate: &Candidate<'_>, operand: usize) -> u32 {
    let inputs = match candidate.op {
        Op::GatedMatMul(_) => 3,
        _ => 2,
    };
    if operand < inputs { 16 } else { 1 }
}

/// Seconds: B is read once for each tile of rows.
pub(crate) fn cost(candidate: &Candidate<'_>, way: Way) -> f32 {
    let Some(form) = Form::of(candidate.op) else { return f32::INFINITY };
    let Some(format) = Format::of(form.b.dtype) else { return f32::INFINITY };
    let tile = Tile::of(&form, candidate.config, way);
    let sides = 1.0 + f32::from(u8::from(form.up.is_some()));
    let matrix = form.b.dtype.bytes(form.k).unwrap_or(0) as f32 * form.n as f32 * sides;
    let matrices = match form.grouped {
        None => form.matrices * form.m.div_ceil(tile.tokens),
        Some(g) => g.positions.div_ceil(tile.tokens).max(g.positions.min(form.matrices)),
    };
    // lanes without work in the last round, and lanes that are too few to keep memory busy
    let units = (form.k / format.unit).max(1);
    let idle = (units.div_ceil(tile.lanes) * tile.lanes) as f32 / units as f32;
    let lanes = (form.n.div_ceil(tile.cols) * tile.lanes) as f32;
    let stream =
        matrix * matrices as f32 / 240e9 * idle.min(4.0).sqrt() * (1.0 + full(candidate) / lanes.max(1.0));
    // products of many rows take the time of their arithmetic, which is a quarter of it four at a time
    let rows = form.rows() as f32 * form.matrices as f32;
    let rate = if way.quantised || form.integers() { 4e12 } else { 1e12 };
    let arithmetic = 2.0 * rows * form.n as f32 * form.k as f32 * sides / rate;
    let launches = if way.quantised { 1.5 } else { 1.0 };
    STEP * launches + stream.max(arithmetic) * if way.subgroup { 1.0 } else { 1.05 }
}

pub(crate) fn prepare(request: &Request<'_>, way: Way) -> Result<Box<dyn Launch>> {
    prepare_within(request, way, caps(request.info).map_or(0, most_bound))
}

/// The same with operands of no more than `most` bytes bound at a time.
pub(super) fn prepare_within(request: &Request<'_>, way: Way, most: u64) -> Result<Box<dyn Launch>> {
    let form = Form::of(request.op).ok_or_else(|| other_op(request.op))?;
    let format = Format::of(form.b.dtype).ok_or_else(|| other_op(request.op))?;
    let tile = Tile::of(&form, request.config, way);
    let variant = variant(&form, &format, tile, way).ok_or_else(|| other_op(request.op))?;
    let headers = headers(&form, &format, way);
    let source = if way.subgroup { &wgsl::GEMV_SUBGROUP } else { &wgsl::GEMV_WORKGROUP };
    let mut builder = Builder::new(request, "matmul_gemv_webgpu")?;
    let quantised = way.quantised.then(|| Quantised::of(&form));
    let codes = quantised.map(|q| q.prepare(&mut builder, form.a.dtype)).transpose()?;
    for window in windows(&form, most).ok_or_else(too_large)? {
        let (mut params, dims) = start(&form, &format, tile, &window)?;
        let mut places = form.places(&window);
        if let (Some(q), Some([codes, scales])) = (quantised, &codes) {
            // in words of four
            (params.a_batch, params.a_row) = ((q.to.batch / 4) as u32, (q.to.row / 4) as u32);
            places[0] = codes.clone();
            places.insert(1, scales.clone());
        }
        builder.step((source, &headers, "matmul"), (&variant, Checks::None), dims, &params, places)?;
    }
    Ok(builder.finish())
}

/// What the source of a kernel stands behind.
fn headers(form: &Form, format: &Format, way: Way) -> Vec<&'static Source> {
    let mut headers: Vec<&'static Source> = super::HEADERS.to_vec();
    headers.push(if form.up.is_some() { &wgsl::GEMV_PAIR } else { &wgsl::GEMV_ONE });
    if !way.quantised && form.a.dtype != DType::I8 {
        let a = if form.a.dtype == DType::F32 { &wgsl::GEMV_A32 } else { &wgsl::GEMV_A16 };
        headers.extend([&wgsl::GEMV_QUADS, a]);
    }
    if form.b.dtype.is_block() {
        headers
            .extend([&wgsl::GEMV_CODES, if way.quantised { &wgsl::GEMV_DOTS } else { &wgsl::GEMV_WIDENED }]);
    }
    headers.extend(format.headers);
    headers.push(&wgsl::GEMV_BODY);
    headers
}

fn variant(form: &Form, format: &Format, tile: Tile, way: Way) -> Option<Variant> {
    let (a_words, _) = activations(form.a.dtype)?;
    let a_words = if way.quantised { "u32" } else { a_words };
    let mut inputs = form.inputs();
    inputs[0] = Binding::words("a", a_words);
    inputs[1] = Binding::words("b", format.word);
    inputs[2] = Binding::words("up", format.word).when(form.up.is_some());
    if way.quantised {
        inputs.insert(1, Binding::get("block_scales", DType::F32));
    }
    let variant = form
        .variant(inputs)
        .uint("LANES", tile.lanes)
        .uint("ROWS", tile.cols)
        .uint("TOKENS", tile.tokens)
        .uint("SIDES", 1 + usize::from(form.up.is_some()))
        .flag("A_BF16", form.a.dtype == DType::BF16)
        .flag("B_BF16", form.b.dtype == DType::BF16);
    Some(format.variant(variant, form.b.dtype))
}

fn start(form: &Form, format: &Format, tile: Tile, window: &Window) -> Result<(Params, Dims)> {
    let quad = activations(form.a.dtype).map_or(4, |(_, quad)| quad);
    let address = |stride: usize| format.address_of(form.b.dtype, stride);
    let params = Params {
        epilogue: form.epilogue(),
        a_batch: (form.a.strides.batch / quad) as u32,
        a_row: (form.a.strides.row / quad) as u32,
        b_batch: address(form.b.strides.batch),
        b_col: address(form.b.strides.col),
        up_col: form.up.map_or(0, |up| address(up.col)),
        units: (form.k / format.unit) as u32,
        m: count(&window.rows),
        n: count(&window.cols),
        matrices: count(&window.matrices),
        experts: form.matrices as u32,
        first: window.matrices.start as u32,
        positions: form.grouped.map_or(0, |g| g.positions as u32),
        a_rows: form.grouped.map_or(0, |g| g.a_rows as u32),
        a_divisor: form.grouped.map_or(1, |g| g.a_divisor.min(u32::MAX as usize) as u32),
        b_first: format.first(form, window),
        unused: 0,
    };
    let down = match form.grouped {
        None => window.rows.len().div_ceil(tile.tokens) * window.matrices.len(),
        Some(g) => g.positions,
    };
    let groups = (down as u64).saturating_mul(window.cols.len().div_ceil(tile.cols) as u64);
    let lanes = tile.lanes as u64;
    Ok((params, Dims::line(groups.saturating_mul(lanes), lanes)?))
}
