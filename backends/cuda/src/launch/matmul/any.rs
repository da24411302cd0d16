//! The generic rows: every valid product on every GPU. `shaders/cuda/matmul/any.cu`.

use super::super::{Body, Call, Dims, launch, module, param};
use super::{LAUNCH, Places, activation, gate, granularity, other_op, speed};
use crate::compile::Function;
use bytemuck::{Pod, Zeroable};
use perjoule_kernels::op::{GatedMatMul, Granularity, GroupedMatMul, MatMul, Op};
use perjoule_kernels::{Candidate, Config, DType, Launch, Matrix, Request, Result};
use perjoule_shaders::cuda::MATMUL_ANY;

/// The only configuration.
pub(crate) static CONFIGS: &[Config] = &[Config::tile("64x64", &[64, 64, 16])];

const TILE: usize = 64;
/// Most blocks along y and z.
const MOST: usize = 65535;

/// Laid out as the kernel's.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Strides {
    row: i64,
    col: i64,
    batch: i64,
}

impl From<Matrix> for Strides {
    fn from(m: Matrix) -> Self {
        Strides { row: m.row as i64, col: m.col as i64, batch: m.batch as i64 }
    }
}

/// Laid out as the kernel's.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    a: Strides,
    b: Strides,
    up: Strides,
    c: Strides,
    residual: Strides,
    batch: i64,
    m: i64,
    n: i64,
    k: i64,
    a_group: i64,
    b_group: i64,
    experts: i64,
    rows: i64,
    a_rows: i64,
    a_divisor: i64,
    a_dtype: u32,
    b_dtype: u32,
    c_dtype: u32,
    bias_dtype: u32,
    residual_dtype: u32,
    a_scale: u32,
    b_scale: u32,
    activation: u32,
    gate: u32,
    scale: f32,
    alpha: f32,
    limit: f32,
    integers: u32,
    has_bias: u32,
    has_up_bias: u32,
    has_residual: u32,
    up_bias_dtype: u32,
    unused: u32,
}

struct Any {
    function: Function,
    params: Params,
    places: Places,
    grid: [u32; 3],
    /// Whether operands 2 and 3 are the slots of a grouped product.
    kind: Kind,
}

#[derive(Clone, Copy)]
enum Kind {
    Plain,
    Gated,
    Grouped,
}

fn grouped_scale(scale: Option<Granularity>) -> bool {
    matches!(scale, Some(Granularity::Group(_)))
}

fn of_matmul(op: &MatMul) -> Params {
    let ((a_scale, a_group), (b_scale, b_group)) = (granularity(op.a_scale), granularity(op.b_scale));
    let integers = op.a.dtype == DType::I8 && !grouped_scale(op.a_scale) && !grouped_scale(op.b_scale);
    let residual = op.epilogue.residual;
    Params {
        a: op.a.strides.into(),
        b: op.b.strides.into(),
        c: op.c.strides.into(),
        residual: residual.map_or(Strides::zeroed(), |r| r.strides.into()),
        batch: op.batch as i64,
        m: op.m as i64,
        n: op.n as i64,
        k: op.k as i64,
        a_group,
        b_group,
        a_dtype: op.a.dtype as u32,
        b_dtype: op.b.dtype as u32,
        c_dtype: op.c.dtype as u32,
        bias_dtype: op.epilogue.bias.unwrap_or(DType::F32) as u32,
        residual_dtype: residual.map_or(DType::F32, |r| r.dtype) as u32,
        a_scale,
        b_scale,
        activation: activation(op.epilogue.activation),
        scale: op.epilogue.scale,
        integers: integers.into(),
        has_bias: op.epilogue.bias.is_some().into(),
        has_residual: residual.is_some().into(),
        ..Params::zeroed()
    }
}

fn of_gated(op: &GatedMatMul) -> Params {
    let (gate, alpha, limit) = gate(op.gated.kind);
    Params {
        up: op.up.b.strides.into(),
        c: Strides { row: op.gated.out.outer_stride as i64, col: 1, batch: 0 },
        c_dtype: op.gated.out_dtype as u32,
        gate,
        alpha,
        limit,
        has_up_bias: op.up.epilogue.bias.is_some().into(),
        up_bias_dtype: op.up.epilogue.bias.unwrap_or(DType::F32) as u32,
        ..of_matmul(&op.gate)
    }
}

fn of_grouped(op: &GroupedMatMul) -> Params {
    Params {
        a: op.a.strides.into(),
        b: op.b.strides.into(),
        c: op.c.strides.into(),
        m: op.c_rows as i64,
        n: op.n as i64,
        k: op.k as i64,
        experts: op.experts as i64,
        rows: op.rows as i64,
        a_rows: op.a_rows as i64,
        a_divisor: op.a_divisor as i64,
        a_dtype: op.a.dtype as u32,
        b_dtype: op.b.dtype as u32,
        c_dtype: op.c.dtype as u32,
        bias_dtype: op.bias.unwrap_or(DType::F32) as u32,
        activation: activation(op.activation),
        scale: 1.0,
        integers: (op.a.dtype == DType::I8).into(),
        has_bias: op.bias.is_some().into(),
        ..Params::zeroed()
    }
}

/// Seconds: elements are converted one by one on the way into shared memory.
pub(crate) fn cost(candidate: &Candidate<'_>) -> f32 {
    let speed = speed(candidate);
    let tiles = match candidate.op {
        Op::MatMul(m) => m.batch as f32 * (m.m.div_ceil(TILE) * m.n.div_ceil(TILE)) as f32 * m.k as f32,
        Op::GatedMatMul(g) => {
            2.0 * (g.gate.m.div_ceil(TILE) * g.gate.n.div_ceil(TILE)) as f32 * g.gate.k as f32
        }
        Op::GroupedMatMul(g) => {
            let groups = g.experts.min(g.rows).max(g.rows.div_ceil(TILE));
            (groups * g.n.div_ceil(TILE)) as f32 * g.k as f32
        }
        _ => return f32::INFINITY,
    };
    // cycles of a multiprocessor for a tile of 64 x 64 and one step of k, with three blocks on each; a slice waits for memory
    let waves = (tiles / speed.multiprocessors).max(1.0) * 80.0 / speed.clock;
    let one = match candidate.op {
        Op::MatMul(m) => m.k,
        Op::GatedMatMul(g) => 2 * g.gate.k,
        Op::GroupedMatMul(g) => g.k,
        _ => 0,
    };
    LAUNCH + waves.max(one as f32 / 16.0 * 1.2e-6)
}

pub(crate) fn prepare(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let tiles = |m: usize, n: usize| (m.div_ceil(TILE) as u64).saturating_mul(n.div_ceil(TILE) as u64);
    let (kind, name, params, grid) = match request.op {
        Op::MatMul(op) => {
            let grid = [capped(tiles(op.m, op.n))?, op.batch.min(MOST) as u32, 1];
            (Kind::Plain, "matmul_any", of_matmul(op), grid)
        }
        Op::GatedMatMul(op) => {
            (Kind::Gated, "gated_any", of_gated(op), [capped(tiles(op.gate.m, op.gate.n))?, 1, 1])
        }
        Op::GroupedMatMul(op) => {
            // blocks along z share the rows of an expert that has many
            let z = op.rows.div_ceil(TILE).min(32) as u32;
            let y = if op.rows == 0 { 0 } else { op.experts.min(MOST) as u32 };
            (Kind::Grouped, "grouped_any", of_grouped(op), [capped(op.n.div_ceil(TILE) as u64)?, y, z])
        }
        op => return Err(other_op(op)),
    };
    let function = module(request, &MATMUL_ANY, &[])?.function(name)?;
    launch(Any { function, params, places: Places::of(request.op), grid, kind })
}

fn capped(blocks: u64) -> Result<u32> {
    let most = i32::MAX as u64;
    if blocks <= most {
        return Ok(blocks as u32);
    }
    Err(perjoule_kernels::Error::Unsupported {
        what: "a product of that size",
        why: format!("{blocks} tiles of {TILE} x {TILE} are more than a grid of {most} blocks"),
    })
}

impl Body for Any {
    fn run(&self, call: &mut Call<'_>) -> Result<()> {
        let places = &self.places;
        let at = |place: Option<usize>| place.map_or(0, |index| call.operand(index));
        let (a, b, c) = (call.operand(0), call.operand(1), call.operand(places.c));
        let (a_scale, b_scale) = (at(places.a_scale), at(places.b_scale));
        let (up, bias, up_bias) = (at(places.up), at(places.bias), at(places.up_bias));
        let residual = at(places.residual);
        let dims = Dims { grid: self.grid, ..Dims::line(0, 256) };
        let p = param(&self.params);
        match self.kind {
            Kind::Plain => call.start(
                &self.function,
                dims,
                &[
                    p,
                    param(&a),
                    param(&b),
                    param(&a_scale),
                    param(&b_scale),
                    param(&bias),
                    param(&residual),
                    param(&c),
                ],
            ),
            Kind::Gated => call.start(
                &self.function,
                dims,
                &[p, param(&a), param(&b), param(&up), param(&bias), param(&up_bias), param(&c)],
            ),
            Kind::Grouped => {
                let (offsets, order) = (call.operand(2), call.operand(3));
                call.start(
                    &self.function,
                    dims,
                    &[p, param(&a), param(&b), param(&offsets), param(&order), param(&bias), param(&c)],
                )
            }
        }
    }
}
