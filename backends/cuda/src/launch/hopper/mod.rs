//! Matrix products for Hopper's tensor cores: `shaders/cuda/matmul/hopper.cu`.
//!
//! | file | holds |
//! |---|---|
//! | [`problem`] | what of the ops the kernel can run |
//! | [`grouped`] | products of experts |
//! | [`map`] | tensor maps |
//! | `model` | its layouts and its order of tiles, modelled and tested |

pub(crate) mod grouped;
mod map;
#[cfg(test)]
mod model;
mod problem;

use super::{Body, Call, Dims, map_param, module, param};
use crate::compile::Function;
use crate::device::CudaCaps;
use bytemuck::{Pod, Zeroable};
use perjoule_kernels::op::{Activation, Granularity, Op};
use perjoule_kernels::{Candidate, Config, DType, Error, Launch, Numerics, Reason, Request, Result};
use perjoule_shaders::cuda::MATMUL_HOPPER;
use problem::Problem;

/// Tiles: `[m, n, k of 16-bit elements]`, and [`Tile`]'s further fields.
pub(crate) static CONFIGS: &[Config] = &[
    Config { name: "128x128_pingpong", tile: &[128, 128, 64], params: &[6, 2, 0, 1, 1] },
    Config { name: "128x256", tile: &[128, 256, 64], params: &[4, 2, 0, 0, 1] },
    Config { name: "256x128", tile: &[256, 128, 64], params: &[4, 2, 1, 0, 1] },
    Config { name: "128x128_split2", tile: &[128, 128, 64], params: &[6, 1, 0, 0, 2] },
    Config { name: "128x256_split4", tile: &[128, 256, 64], params: &[4, 1, 0, 0, 4] },
];

/// Element types of the rows.
const ELEMENTS: [DType; 5] = [DType::BF16, DType::F16, DType::F32, DType::F8E4M3, DType::I8];

/// Threads of a block: a warpgroup that copies, and two that multiply.
const THREADS: u32 = 3 * 128;

/// A configuration.
#[derive(Debug, Clone, Copy)]
struct Tile {
    m: usize,
    n: usize,
    /// Slices of 128 bytes along k that shared memory holds.
    stages: usize,
    /// Blocks that share an operand: A where `share_a`, else B.
    cluster: usize,
    share_a: bool,
    /// Whether the consumers take whole tiles in turn.
    pingpong: bool,
    /// Blocks that share the k of a tile, instead of an operand.
    split: usize,
}

impl Tile {
    fn of(config: &Config) -> Option<Self> {
        let (&[m, n, _], &[stages, cluster, share_a, pingpong, split]) = (config.tile, config.params) else {
            return None;
        };
        Some(Tile { m, n, stages, cluster, share_a: share_a != 0, pingpong: pingpong != 0, split })
    }

    /// Dynamic shared memory: stages, two boxes of 64 lines for each consumer, and two barriers a stage.
    fn shared(&self) -> u32 {
        (self.stages * ((self.m + self.n) * 128 + 16) + 2 * 2 * 64 * 128) as u32
    }

    /// Why the tile does not do for a problem.
    fn refuse(&self, problem: &Problem) -> Option<Reason> {
        let slices = problem.k.div_ceil(128 / problem.element.block_bytes());
        match self.split {
            1 => None,
            _ if problem.gate.is_some() => Some(Reason::new("shares the k of one product, not of two")),
            split if slices < split => Some(Reason::new("has more shares of k than slices")),
            _ => None,
        }
    }

    /// Clusters of a grid: as many as run at once, or one for each tile where they share its k.
    fn clusters(&self, tiles: usize, caps: &CudaCaps) -> usize {
        let most = (caps.multiprocessors as usize / self.cluster).max(1);
        if self.split > 1 { tiles } else { tiles.min(most) }
    }

    /// Rows and columns of C that a cluster computes.
    fn of_cluster(&self, problem: &Problem) -> (usize, usize) {
        let n = if problem.gate.is_some() { self.n / 2 } else { self.n };
        if self.share_a { (self.m, n * self.cluster) } else { (self.m * self.cluster, n) }
    }
}

/// Laid out as the kernel's.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct Params {
    residual_row: u64,
    residual_batch: u64,
    scale: f32,
    alpha: f32,
    limit: f32,
    m: i32,
    n: i32,
    batch: i32,
    k_slices: i32,
    tiles_m: i32,
    tiles_n: i32,
    group: i32,
    a_batch: i32,
    b_batch: i32,
}

fn problem(candidate: &Candidate<'_>) -> Result<Problem, Reason> {
    Problem::of(candidate.op)
}

/// Why a row of that element type does not run an op.
pub(crate) fn reject<const ELEMENT: usize>(candidate: &Candidate<'_>) -> Option<Reason> {
    match candidate.info.caps::<CudaCaps>() {
        Some(caps) if caps.sm == 90 => {}
        _ => return Some(Reason::lacking("needs compute capability 9.0")),
    }
    let problem = match problem(candidate) {
        Ok(problem) => problem,
        Err(reason) => return Some(reason),
    };
    let element = ELEMENTS[ELEMENT];
    if problem.element != element {
        return Some(Reason::new(format!("multiplies {element}")));
    }
    Tile::of(candidate.config)?.refuse(&problem)
}

/// Seconds by the multiplications of the tiles that the busiest multiprocessor gets, or by the bytes.
pub(crate) fn cost(candidate: &Candidate<'_>) -> f32 {
    let (Ok(problem), Some(tile), Some(caps)) =
        (problem(candidate), Tile::of(candidate.config), candidate.info.caps::<CudaCaps>())
    else {
        return f32::MAX;
    };
    let (m, n) = tile.of_cluster(&problem);
    let at_once = (caps.multiprocessors as usize / (tile.cluster * tile.split)).max(1);
    let tiles = problem.m.div_ceil(m) * problem.n.div_ceil(n) * problem.batch;
    let waves = tiles.div_ceil(at_once) as f32;
    // multiplications of a multiprocessor in a cycle
    let rate = 4096.0 / problem.element.block_bytes() as f32;
    let efficiency = if tile.pingpong || tile.m * tile.n >= 128 * 256 { 0.85 } else { 0.75 };
    // what no multiplication hides: the ends of a tile, and the exchange of shares
    let ends = if tile.pingpong { 500.0 } else { 1500.0 } + 1500.0 * (tile.split - 1) as f32;
    let cycles = (tile.m * tile.n * problem.k / tile.split) as f32 / (rate * efficiency) + ends;
    let clock = caps.clock_khz.max(1) as f32 * 1e3;
    let moved = candidate.op.bytes() as f32 / (0.8 * caps.memory_rate.max(1) as f32);
    4e-6 + (waves * cycles / clock).max(moved)
}

/// Roundings by element type.
pub(crate) fn numerics(candidate: &Candidate<'_>) -> Numerics {
    problem(candidate).map_or(Numerics::F32, |problem| numerics_of(problem.element, problem.out))
}

fn numerics_of(element: DType, out: DType) -> Numerics {
    match (element, out) {
        // both factors lose 13 bits
        (DType::F32, _) => Numerics::F32.with_unit(2f64.powi(-11)),
        // the tensor cores add products of 8 bits with 13 bits behind the point of the largest
        (DType::F8E4M3, _) => Numerics::F32.with_unit(2f64.powi(-13)),
        (DType::I8, DType::I32) => Numerics::EXACT,
        _ => Numerics::F32,
    }
}

/// Tensor maps begin at multiples of 16 bytes; vectors of the epilogue anywhere.
pub(crate) fn align(candidate: &Candidate<'_>, operand: usize) -> u32 {
    let first = match candidate.op {
        Op::GatedMatMul(_) => 3,
        _ => 2,
    };
    let last = candidate.op.operands().len() - 1;
    if operand < first || operand == last { 16 } else { 1 }
}

/// Prepares a product.
pub(crate) fn prepare(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let unsupported = |why: String| Error::Unsupported { what: "this kernel", why };
    let problem = Problem::of(request.op).map_err(|reason| unsupported(reason.to_string()))?;
    let tile = Tile::of(request.config).ok_or_else(|| unsupported(format!("{:?}", request.config)))?;
    let caps = request.info.caps::<CudaCaps>().ok_or_else(|| unsupported("no CUDA device".into()))?;
    let module = module(request, &MATMUL_HOPPER, &defines(&problem, &tile))?;
    let function = module.function("matmul")?;
    function.allow_shared(tile.shared())?;
    let (m, n) = tile.of_cluster(&problem);
    let slice = 128 / problem.element.block_bytes();
    let params = Params {
        residual_row: problem.residual.map_or(0, |r| r.strides.row as u64),
        residual_batch: problem.residual.map_or(0, |r| r.strides.batch as u64),
        scale: problem.scale,
        alpha: problem.gate.map_or(0.0, |g| g.alpha),
        limit: problem.gate.map_or(0.0, |g| g.limit),
        m: problem.m as i32,
        n: problem.n as i32,
        batch: problem.batch as i32,
        k_slices: problem.k.div_ceil(slice) as i32,
        tiles_m: problem.m.div_ceil(m) as i32,
        tiles_n: problem.n.div_ceil(n) as i32,
        group: 8,
        a_batch: i32::from(problem.a.batch != 0),
        b_batch: i32::from(problem.b.batch != 0),
    };
    let tiles = problem.m.div_ceil(m) * problem.n.div_ceil(n) * problem.batch;
    let blocks = tile.cluster * tile.split;
    let mut dims = Dims::line((tile.clusters(tiles, caps) * blocks) as u32, THREADS);
    dims.shared = tile.shared();
    dims.cluster = blocks as u32;
    dims.early = true;
    super::launch(Product { problem, tile, function, params, dims })
}

fn defines(problem: &Problem, tile: &Tile) -> Vec<(&'static str, String)> {
    let id = |dtype: DType| (dtype as u32).to_string();
    let none = || "-1".to_string();
    let flag = |flag: bool| u32::from(flag).to_string();
    let scales = |scale: Option<Granularity>| match scale {
        None => "0".to_string(),
        Some(Granularity::Tensor) => "1".to_string(),
        Some(_) => "2".to_string(),
    };
    let plain = problem.a_scale.is_none()
        && problem.b_scale.is_none()
        && problem.bias.is_none()
        && problem.residual.is_none()
        && problem.activation == Activation::None;
    // consumers that take turns hide the stores of each other's results; what an epilogue reads takes the registers of waiting results
    let defer = problem.out.block_bytes() == 2 && !tile.pingpong && tile.split == 1 && plain;
    vec![
        ("ELEMENT", id(problem.element)),
        ("OUT", id(problem.out)),
        ("TILE_M", tile.m.to_string()),
        ("TILE_N", tile.n.to_string()),
        ("STAGES", tile.stages.to_string()),
        ("CLUSTER", tile.cluster.to_string()),
        ("SHARE_A", flag(tile.share_a)),
        ("PINGPONG", flag(tile.pingpong)),
        ("SPLIT", tile.split.to_string()),
        ("DEFER", flag(defer)),
        ("A_MN", flag(problem.a_mn)),
        ("B_MN", flag(problem.b_mn)),
        ("A_SCALE", scales(problem.a_scale)),
        ("B_SCALE", scales(problem.b_scale)),
        ("BIAS", problem.bias.map_or_else(none, id)),
        ("BIAS_ALONG_M", flag(problem.bias.is_some() && problem.swapped)),
        ("RESIDUAL", problem.residual.map_or_else(none, |r| id(r.dtype))),
        ("ACTIVATION", (problem.activation as u32).to_string()),
        ("GATE", problem.gate.map_or(0, |g| g.kind + 1).to_string()),
    ]
}

struct Product {
    problem: Problem,
    tile: Tile,
    function: Function,
    params: Params,
    dims: Dims,
}

impl Body for Product {
    fn run(&self, call: &mut Call<'_>) -> Result<()> {
        let (p, tile) = (&self.problem, &self.tile);
        let at = p.operands();
        let half = |side: usize, shared: bool| if shared { side / tile.cluster } else { side };
        // a gated product copies its two B in halves
        let b_side = if p.gate.is_some() { tile.n / 2 } else { half(tile.n, !tile.share_a) };
        let a = p.a_lines(half(tile.m, tile.share_a)).encode(call.operand(at.a))?;
        let b_lines = |up| p.b_lines(up, b_side);
        let b = b_lines(false).encode(call.operand(at.b))?;
        let b_up = match at.b_up {
            Some(operand) => b_lines(true).encode(call.operand(operand))?,
            None => b,
        };
        let c = p.c_lines().encode(call.operand(at.c))?;
        let address = |operand: Option<usize>| operand.map_or(0, |index| call.operand(index));
        let extras = [at.a_scale, at.b_scale, at.bias, at.up_bias, at.residual].map(address);
        let [a_scale, b_scale, bias, up_bias, residual] = &extras;
        let params = [
            param(&self.params),
            map_param(&a),
            map_param(&b),
            map_param(&b_up),
            map_param(&c),
            param(a_scale),
            param(b_scale),
            param(bias),
            param(up_bias),
            param(residual),
        ];
        call.start(&self.function, self.dims, &params)
    }
}
