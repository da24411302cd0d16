//! Many rows with packed weights of block formats: `shaders/cuda/matmul/panels.cu`.

use super::super::{Body, Call, Dims, launch, module, param};
use super::skinny::{Form, Math, WEIGHTS};
use super::{LAUNCH, Places, activation, gate, granularity, other_op, speed};
use crate::compile::Function;
use crate::device::CudaCaps;
use crate::launch::pack::{PANEL, step};
use bytemuck::{Pod, Zeroable};
use perjoule_kernels::op::{Epilogue, Granularity, Op};
use perjoule_kernels::{
    Candidate, Config, DType, Kernel, Launch, Numerics, PackFormat, Reason, Request, Result,
};
use perjoule_shaders::cuda::MATMUL_PANELS;

static CONFIGS: &[Config] = &[Config::tile("128x128", &[128, 128, 256])];

/// Rows and columns of a tile; of a gated pair half as many columns.
const TILE: usize = 128;
/// Panels of a tile.
const PANELS: usize = TILE / PANEL;
const THREADS: usize = 256;

/// A row for weights of that block format.
pub(crate) const fn row<const WEIGHT: usize>(
    name: &'static str,
    op: &'static str,
    packs: &'static [&'static PackFormat],
) -> Kernel {
    Kernel::new(name, op, cost::<WEIGHT>, prepare::<WEIGHT>)
        .with_configs(CONFIGS)
        .with_packs(packs)
        .with_reject(reject::<WEIGHT>)
        .with_numerics(numerics::<WEIGHT>)
}

/// Dynamic shared memory: stages of weights, rows of A and, of q4_k, their sums; the sums of the tile take no more.
fn shared(dtype: DType) -> usize {
    let (len, bytes) = step(dtype);
    let sums = if dtype == DType::Q4K { len / 32 * TILE * 4 } else { 0 };
    let stage = PANELS * bytes + TILE * (2 * len + 64) + sums;
    stage * if len == 256 { 2 } else { 3 }
}

/// Rows of A that are prepared, and elements of each.
fn prepared(form: &Form) -> (usize, usize) {
    let rows = form.grouped.map_or(form.m, |(_, rows)| rows);
    (rows, form.k.next_multiple_of(step(form.b.dtype).0))
}

fn reject<const WEIGHT: usize>(candidate: &Candidate<'_>) -> Option<Reason> {
    let weight = WEIGHTS[WEIGHT];
    let Some(form) = Form::of(candidate.op) else {
        return Some(Reason::new("multiplies one pair of matrices"));
    };
    if super::has_unlike_biases(candidate.op) {
        return Some(Reason::new("adds biases of one type"));
    }
    let needs = shared(weight) as u32;
    if candidate.info.caps::<CudaCaps>().is_none_or(|caps| caps.sm < 80 || caps.shared < needs) {
        return Some(Reason::lacking(format!(
            "needs compute capability 8.0 and {needs} bytes of shared memory"
        )));
    }
    if form.b.dtype != weight {
        return Some(Reason::new(format!("multiplies weights in {weight}")));
    }
    match Math::of(form.a.dtype, weight, form.policy) {
        Some(math) if math.pieces == 1 => {}
        _ => return Some(Reason::new("rounds A, which the policy does not allow")),
    }
    let sizes = [form.m, form.n, form.k];
    if sizes.contains(&0) || sizes.iter().any(|&size| size > i32::MAX as usize / 2) {
        return Some(Reason::new("needs sizes from 1 to 2^30"));
    }
    if matches!(form.a_scale, Some(Granularity::Group(_))) {
        return Some(Reason::new("scales whole rows"));
    }
    if form.grouped.is_some_and(|(experts, rows)| experts.min(rows) > 65535) {
        return Some(Reason::new("has no grid for so many experts"));
    }
    let (rows, k) = prepared(&form);
    let tiles = form.m.div_ceil(TILE) as u64 * form.n.div_ceil(TILE / 2) as u64;
    let blocks = (rows as u64 * k as u64).div_ceil(32 * THREADS as u64);
    (tiles.max(blocks) > i32::MAX as u64).then(|| Reason::new("has no grid for so many tiles"))
}

fn numerics<const WEIGHT: usize>(candidate: &Candidate<'_>) -> Numerics {
    let math = Form::of(candidate.op).and_then(|f| Math::of(f.a.dtype, WEIGHTS[WEIGHT], f.policy));
    match math {
        Some(math) if math.rounds => Numerics::F32.with_unit(DType::BF16.epsilon()),
        // tensor cores cut what they add to the bits of the largest
        _ => Numerics::F32.with_slack(2.0),
    }
}

fn cost<const WEIGHT: usize>(candidate: &Candidate<'_>) -> f32 {
    let Some(form) = Form::of(candidate.op) else { return f32::INFINITY };
    let speed = speed(candidate);
    let columns = (form.n * form.mats()).div_ceil(TILE);
    let tiles = match form.grouped {
        None => form.m.div_ceil(TILE) * columns,
        Some((experts, rows)) => (experts.min(rows).max(1) * form.rows().div_ceil(TILE)) * columns,
    };
    let waves = (tiles as f32 / speed.multiprocessors).ceil().max(1.0);
    let arithmetic = waves * (TILE * TILE) as f32 * form.k as f32 / (500.0 * speed.clock);
    2.0 * LAUNCH + 2e-6 + arithmetic.max(form.bytes(candidate.pack) / (0.7 * speed.memory))
}

/// Laid out as the kernel's.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    a_row: i64,
    a_col: i64,
    b_stride: i64,
    b_batch: i64,
    c_row: i64,
    c_col: i64,
    residual_row: i64,
    residual_col: i64,
    m: u32,
    n: u32,
    k: u32,
    rows: u32,
    a_dtype: u32,
    c_dtype: u32,
    bias_dtype: u32,
    residual_dtype: u32,
    a_scale: u32,
    b_scale: u32,
    has_bias: u32,
    has_up_bias: u32,
    has_residual: u32,
    activation: u32,
    gate: u32,
    scale: f32,
    alpha: f32,
    limit: f32,
    experts: u32,
    a_rows: u32,
    a_divisor: u32,
    pad: u32,
}

struct Panels {
    prepare: Function,
    multiply: Function,
    params: Params,
    places: Places,
    /// Blocks that prepare A.
    blocks: u32,
    dims: Dims,
    grouped: bool,
    /// Bytes of A in scratch, behind which its sums lie.
    rounded: u64,
    scratch: u64,
}

fn prepare<const WEIGHT: usize>(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let weight = WEIGHTS[WEIGHT];
    let (Some(form), Some(pack)) = (Form::of(request.op), request.pack) else {
        return Err(other_op(request.op));
    };
    let Some(math) = Math::of(form.a.dtype, weight, form.policy) else { return Err(other_op(request.op)) };
    let define = |value: usize| value.to_string();
    let defines = [
        ("WEIGHT", define(WEIGHT.saturating_sub(1))),
        ("MATH", define(math.kind)),
        ("PIECES", define(1)),
        ("TILES", define(8)),
        ("GATED", define(form.mats() - 1)),
        ("GROUPED", define(form.grouped.is_some().into())),
        ("GROUP_SCALES", define(0)),
    ];
    let module = module(request, &MATMUL_PANELS, &defines)?;
    let (first, multiply) = (module.function("panels_prepare")?, module.function("panels")?);
    let shared = shared(weight) as u32;
    multiply.allow_shared(shared)?;

    let plain = Epilogue::default();
    let (epilogue, up_bias, gated, grouped) = match request.op {
        Op::MatMul(op) => (op.epilogue, None, None, None),
        Op::GatedMatMul(op) => (op.gate.epilogue, op.up.epilogue.bias, Some(op.gated.kind), None),
        Op::GroupedMatMul(op) => {
            (Epilogue { bias: op.bias, activation: op.activation, ..plain }, None, None, Some(op))
        }
        op => return Err(other_op(op)),
    };
    let (gate, alpha, limit) = gated.map_or((0, 0.0, 0.0), gate);
    let residual = epilogue.residual;
    let panel = (pack.panel_bytes)(form.k).unwrap_or(0) as i64;
    let (rows, padded) = prepared(&form);
    let params = Params {
        a_row: form.a.strides.row as i64,
        a_col: form.a.strides.col as i64,
        b_stride: panel,
        b_batch: panel * form.n.div_ceil(PANEL) as i64,
        c_row: form.c.row as i64,
        c_col: form.c.col as i64,
        residual_row: residual.map_or(0, |r| r.strides.row as i64),
        residual_col: residual.map_or(0, |r| r.strides.col as i64),
        m: form.m as u32,
        n: form.n as u32,
        k: form.k as u32,
        rows: rows as u32,
        a_dtype: form.a.dtype as u32,
        c_dtype: form.c_dtype as u32,
        bias_dtype: epilogue.bias.or(up_bias).unwrap_or(DType::F32) as u32,
        residual_dtype: residual.map_or(DType::F32, |r| r.dtype) as u32,
        a_scale: granularity(form.a_scale).0,
        b_scale: 0,
        has_bias: epilogue.bias.is_some().into(),
        has_up_bias: up_bias.is_some().into(),
        has_residual: residual.is_some().into(),
        activation: activation(epilogue.activation),
        gate,
        scale: epilogue.scale,
        alpha,
        limit,
        experts: grouped.map_or(0, |g| g.experts as u32),
        a_rows: grouped.map_or(0, |g| g.a_rows.min(i32::MAX as usize) as u32),
        a_divisor: grouped.map_or(1, |g| g.a_divisor.min(i32::MAX as usize) as u32),
        pad: 0,
    };
    let columns = form.n.div_ceil(TILE / form.mats()) as u32;
    let grid = match form.grouped {
        None => [columns * form.m.div_ceil(TILE) as u32, 1, 1],
        // blocks along z share the rows of an expert that has many
        Some((experts, rows)) => [columns, experts.min(rows) as u32, rows.div_ceil(TILE).min(8) as u32],
    };
    let rounded = (rows as u64 * padded as u64 * 2).next_multiple_of(256);
    let sums = if weight == DType::Q4K { rows as u64 * padded as u64 / 32 * 4 } else { 0 };
    launch(Panels {
        prepare: first,
        multiply,
        params,
        places: Places::of(request.op),
        blocks: (rows as u64 * padded as u64).div_ceil(32 * THREADS as u64) as u32,
        dims: Dims { grid, shared, ..Dims::line(0, THREADS as u32) },
        grouped: form.grouped.is_some(),
        rounded,
        scratch: rounded + sums,
    })
}

impl Body for Panels {
    fn scratch(&self) -> u64 {
        self.scratch
    }

    fn run(&self, call: &mut Call<'_>) -> Result<()> {
        let places = &self.places;
        let at = |place: Option<usize>| place.map_or(0, |index| call.operand(index));
        let (a, b, c) = (call.operand(0), call.operand(1), call.operand(places.c));
        let (a_scale, up) = (at(places.a_scale), at(places.up));
        let (bias, up_bias, residual) = (at(places.bias), at(places.up_bias), at(places.residual));
        let (offsets, order) = if self.grouped { (call.operand(2), call.operand(3)) } else { (0, 0) };
        let rounded = call.scratch();
        let sums = rounded + self.rounded;
        let p = param(&self.params);
        let prepare = Dims::line(self.blocks, THREADS as u32);
        call.start(&self.prepare, prepare, &[p, param(&a), param(&order), param(&rounded), param(&sums)])?;
        call.start(
            &self.multiply,
            self.dims,
            &[
                p,
                param(&rounded),
                param(&sums),
                param(&b),
                param(&up),
                param(&a_scale),
                param(&bias),
                param(&up_bias),
                param(&residual),
                param(&offsets),
                param(&order),
                param(&c),
            ],
        )
    }
}
