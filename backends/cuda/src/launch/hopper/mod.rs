//! Matrix products for Hopper's tensor cores: `shaders/cuda/matmul/hopper.cu`.
//!
//! | file | holds |
//! |---|---|
//! | [`problem`] | what of the ops the kernel can run |
//! | [`round`] | activations rounded to bf16 |
//! | [`grouped`] | products of experts |
//! | [`map`] | tensor maps |
//! | `model` | its layouts and its order of tiles, modelled and tested |

pub(crate) mod grouped;
mod map;
#[cfg(test)]
mod model;
mod problem;
mod round;

use super::{Body, Call, Dims, map_param, module, param};
use crate::compile::Function;
use crate::device::CudaCaps;
use bytemuck::{Pod, Zeroable};
use perjoule_kernels::op::{Granularity, Op};
use perjoule_kernels::{Candidate, Config, DType, Error, Launch, Numerics, Reason, Request, Result};
use perjoule_shaders::cuda::MATMUL_HOPPER;
use problem::Problem;
use round::Round;

/// A tile `[m, n, k of 16-bit elements]`, and [`Tile`]'s further fields.
const fn config(name: &'static str, tile: &'static [usize], params: &'static [usize]) -> Config {
    Config { name, tile, params }
}

const SQUARE: Config = config("128x128", &[128, 128, 64], &[6, 2, 1, 0]);
const SQUARE_REST: Config = config("128x128_rest", &[128, 128, 64], &[6, 2, 1, 1]);
/// Of few rows: a block whose cluster had no other rows for its neighbour works alone, and tiles are no higher than they must be.
const FEW: Config = config("64x128", &[64, 128, 64], &[8, 1, 1, 0]);
const FEW_REST: Config = config("64x128_rest", &[64, 128, 64], &[8, 1, 1, 1]);

pub(crate) static CONFIGS: &[Config] = &[
    SQUARE,
    SQUARE_REST,
    config("128x128_split2", &[128, 128, 64], &[6, 1, 2, 0]),
    FEW,
    FEW_REST,
    config("64x64", &[64, 64, 64], &[12, 1, 1, 0]),
    config("64x64_rest", &[64, 64, 64], &[12, 1, 1, 1]),
];

/// Those of gated products.
pub(crate) static GATED_CONFIGS: &[Config] = &[SQUARE, SQUARE_REST, FEW, FEW_REST];

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
    /// Blocks beside each other along m that share B.
    cluster: usize,
    /// Blocks that share the k of a tile, instead of an operand.
    split: usize,
    /// Whether the last tiles of a grid that does not come out even are shared out along k.
    rest: bool,
}

/// How the tiles of a product are shared out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Schedule {
    /// Clusters' tiles along m and n.
    tiles_m: usize,
    tiles_n: usize,
    tiles: usize,
    /// Tiles that are computed whole, and clusters that share the k of each of the others.
    whole: usize,
    shares: usize,
    /// Clusters of the grid.
    clusters: usize,
}

/// Most clusters that share a tile of the rest.
const MOST_SHARES: usize = 16;

impl Tile {
    fn of(config: &Config) -> Option<Self> {
        let (&[m, n, _], &[stages, cluster, split, rest]) = (config.tile, config.params) else {
            return None;
        };
        Some(Tile { m, n, stages, cluster, split, rest: rest != 0 })
    }

    /// Dynamic shared memory: stages, two boxes of 64 lines for each consumer, and two barriers a stage.
    fn shared(&self) -> u32 {
        (self.stages * ((self.m + self.n) * 128 + 16) + 2 * 2 * BOX as usize) as u32
    }

    /// Rows of A that are copied at a time: no more than there are, where a block has A for itself. What is not there would be written
    /// to shared memory as zeros, row by row, which takes longer than to copy it. Rows behind them, which are not stored, may be anything.
    fn box_rows(&self, problem: &Problem) -> usize {
        if self.cluster > 1 || problem.a_mn { self.m } else { self.m.min(problem.m.next_multiple_of(8)) }
    }

    /// Columns of C that a block computes.
    fn columns(&self, problem: &Problem) -> usize {
        if problem.gate.is_some() { self.n / 2 } else { self.n }
    }

    fn schedule(&self, problem: &Problem, caps: &CudaCaps) -> Schedule {
        let tiles_m = problem.m.div_ceil(self.m * self.cluster);
        let tiles_n = problem.n.div_ceil(self.columns(problem));
        let tiles = tiles_m * tiles_n * problem.batch;
        let at_once = (caps.multiprocessors as usize / (self.cluster * self.split)).max(1);
        let mut schedule =
            Schedule { tiles_m, tiles_n, tiles, whole: tiles, shares: 1, clusters: tiles.min(at_once) };
        if self.split > 1 {
            // clusters that exchange their sums do so once
            schedule.clusters = tiles;
        }
        let left = tiles % at_once;
        if self.rest && left > 0 {
            // at least two slices each
            let shares = (at_once / left).min(MOST_SHARES).min(slices(problem) / 2);
            if shares > 1 {
                let units = tiles - left + left * shares;
                schedule = Schedule { whole: tiles - left, shares, clusters: units.min(at_once), ..schedule };
            }
        }
        schedule
    }
}

/// Slices of k by which a tile begins behind the one before it, where no other tile reads the same rows of B: spread by the golden
/// ratio, so that tiles that follow each other read other columns. What an H200 measured of few rows is with it; whether it helps has
/// not been shown (one comparison, of `128x128_split2`, says no).
fn rotate(problem: &Problem, schedule: &Schedule) -> i32 {
    if schedule.tiles_m > 1 { 0 } else { (slices(problem) * 5 / 13) as i32 | 1 }
}

/// Slices along k.
fn slices(problem: &Problem) -> usize {
    problem.k.div_ceil(128 / problem.element.block_bytes())
}

/// Bytes of a box of 64 lines.
const BOX: u32 = 64 * 128;

/// Parts of the scratch begin at multiples of it.
const SCRATCH_ALIGN: u64 = 1024;

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
    whole: i32,
    shares: i32,
    rotate: i32,
    stage_bytes: u32,
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
    (problem.element != element).then(|| Reason::new(format!("multiplies {element}")))
}

/// Seconds by the multiplications of the tiles that the busiest multiprocessor gets, or by the bytes.
pub(crate) fn cost(candidate: &Candidate<'_>) -> f32 {
    let (Ok(problem), Some(tile), Some(caps)) =
        (problem(candidate), Tile::of(candidate.config), candidate.info.caps::<CudaCaps>())
    else {
        return f32::MAX;
    };
    let schedule = tile.schedule(&problem, caps);
    let at_once = (caps.multiprocessors as usize / (tile.cluster * tile.split)).max(1);
    let left = schedule.tiles - schedule.whole;
    let waves = schedule.whole.div_ceil(at_once) as f32 + (left > 0) as u8 as f32 / schedule.shares as f32;
    // multiplications of a multiprocessor in a cycle
    let rate = 4096.0 / problem.element.block_bytes() as f32;
    let efficiency = if tile.split > 1 { 0.75 } else { 0.85 };
    // what no multiplication hides: the ends of a tile
    let ends = 500.0;
    let cycles = (tile.m * tile.n * problem.k / tile.split) as f32 / (rate * efficiency) + ends;
    let clock = caps.clock_khz.max(1) as f32 * 1e3;
    // bytes that a multiprocessor takes in, at 110 GB/s on an H200; rows that are not there, but written as zeros, take twice as long
    let absent = (tile.m * tile.cluster).saturating_sub(problem.m).min(tile.m);
    let slice = (tile.box_rows(&problem) + if tile.cluster > 1 { absent } else { 0 } + tile.n) * 128;
    let taken = waves * (slice * slices(&problem) / tile.split) as f32 / 110e9;
    // shares of a tile are exchanged when nothing else is computed
    let exchanges = 3.4e-6 * waves * (tile.split - 1) as f32;
    let memory = 0.8 * caps.memory_rate.max(1) as f32;
    let moved = candidate.op.bytes() as f32 / memory;
    // another kernel takes its time to start, and so do its bytes
    let rest = if left > 0 { 6e-6 } else { 0.0 };
    let round =
        problem.rounds.map_or(0.0, |_| 3e-6 + (problem.batch * problem.m * problem.k * 6) as f32 / memory);
    4e-6 + rest + round + exchanges + (waves * cycles / clock).max(moved).max(taken)
}

/// Roundings by element type.
pub(crate) fn numerics(candidate: &Candidate<'_>) -> Numerics {
    let Ok(problem) = problem(candidate) else { return Numerics::F32 };
    numerics_of(problem.rounds.is_some(), problem.element, problem.out)
}

fn numerics_of(rounds: bool, element: DType, out: DType) -> Numerics {
    match (element, out) {
        _ if rounds => Numerics::F32.with_unit(2f64.powi(-9)),
        // both factors lose 13 bits
        (DType::F32, _) => Numerics::F32.with_unit(2f64.powi(-11)),
        // the tensor cores add products of 8 bits with 13 bits behind the point of the largest
        (DType::F8E4M3, _) => Numerics::F32.with_unit(2f64.powi(-13)),
        (DType::I8, DType::I32) => Numerics::EXACT,
        _ => Numerics::F32,
    }
}

/// Tensor maps begin at multiples of 16 bytes; vectors of the epilogue, and what is rounded first, anywhere.
pub(crate) fn align(candidate: &Candidate<'_>, operand: usize) -> u32 {
    let first = match candidate.op {
        Op::GatedMatMul(_) => 3,
        _ => 2,
    };
    let last = candidate.op.operands().len() - 1;
    let rounded = operand == 0 && problem(candidate).is_ok_and(|problem| problem.rounds.is_some());
    if (operand < first && !rounded) || operand == last { 16 } else { 1 }
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
    let schedule = tile.schedule(&problem, caps);
    let params = Params {
        residual_row: problem.residual.map_or(0, |r| r.strides.row as u64),
        residual_batch: problem.residual.map_or(0, |r| r.strides.batch as u64),
        scale: problem.scale,
        alpha: problem.gate.map_or(0.0, |g| g.alpha),
        limit: problem.gate.map_or(0.0, |g| g.limit),
        m: problem.m as i32,
        n: problem.n as i32,
        batch: problem.batch as i32,
        k_slices: slices(&problem) as i32,
        tiles_m: schedule.tiles_m as i32,
        tiles_n: schedule.tiles_n as i32,
        group: 8,
        a_batch: i32::from(problem.a.batch != 0),
        b_batch: i32::from(problem.b.batch != 0),
        whole: schedule.whole as i32,
        shares: schedule.shares as i32,
        rotate: rotate(&problem, &schedule),
        stage_bytes: ((tile.box_rows(&problem) + tile.n) * 128) as u32,
    };
    let blocks = tile.cluster * tile.split;
    let mut dims = Dims::line((schedule.clusters * blocks) as u32, THREADS);
    dims.shared = tile.shared();
    dims.cluster = blocks as u32;
    dims.early = true;
    let left = schedule.tiles - schedule.whole;
    let rest = match left {
        0 => None,
        _ => {
            let boxes = tile.m / 64 * (tile.columns(&problem) * problem.out.block_bytes() / 128);
            let mut dims = Dims::line((left * tile.cluster * boxes) as u32, 128);
            dims.shared = BOX;
            dims.early = true;
            Some((module.function("matmul_rest")?, dims))
        }
    };
    let round = match problem.rounds {
        None => None,
        Some(a) => {
            let (rows, matrices) = problem.rounded_rows();
            Some(Round::new(request, a, matrices, rows, problem.k)?)
        }
    };
    let partials = (left * schedule.shares * tile.cluster * tile.m * tile.n * 4) as u64;
    let rounded = round.as_ref().map_or(0, |round| round.bytes().next_multiple_of(SCRATCH_ALIGN));
    super::launch(Product {
        problem,
        tile,
        function,
        params,
        dims,
        rest,
        round,
        partials_at: rounded,
        scratch: rounded + partials,
    })
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
    vec![
        ("ELEMENT", id(problem.element)),
        ("OUT", id(problem.out)),
        ("TILE_M", tile.m.to_string()),
        ("TILE_N", tile.n.to_string()),
        ("STAGES", tile.stages.to_string()),
        ("CLUSTER", tile.cluster.to_string()),
        ("PINGPONG", flag(tile.split == 1)),
        ("SPLIT", tile.split.to_string()),
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
    /// The kernel that adds the shares of the rest.
    rest: Option<(Function, Dims)>,
    round: Option<Round>,
    /// Where in the scratch, behind what was rounded, the shares of the rest lie.
    partials_at: u64,
    scratch: u64,
}

impl Body for Product {
    fn scratch(&self) -> u64 {
        self.scratch
    }

    fn run(&self, call: &mut Call<'_>) -> Result<()> {
        let (p, tile) = (&self.problem, &self.tile);
        let at = p.operands();
        let (mut a, mut b) = (call.operand(at.a), call.operand(at.b));
        if let Some(round) = &self.round {
            // the op's A, which is B where the product is turned round
            let side = if p.swapped { &mut b } else { &mut a };
            let from = std::mem::replace(side, call.scratch());
            round.run(call, from, call.scratch())?;
        }
        let half = |side: usize| side / tile.cluster;
        // a gated product copies its two B in halves
        let b_side = if p.gate.is_some() { tile.n / 2 } else { half(tile.n) };
        let a = p.a_lines(tile.box_rows(p)).encode(a)?;
        let b = p.b_lines(false, b_side).encode(b)?;
        let b_up = match at.b_up {
            Some(operand) => p.b_lines(true, b_side).encode(call.operand(operand))?,
            None => b,
        };
        let c = p.c_lines().encode(call.operand(at.c))?;
        let address = |operand: Option<usize>| operand.map_or(0, |index| call.operand(index));
        let extras = [at.a_scale, at.b_scale, at.bias, at.up_bias, at.residual].map(address);
        let [a_scale, b_scale, bias, up_bias, residual] = extras.each_ref().map(param);
        let partials = call.scratch() + self.partials_at;
        let (values, c, partials) = (param(&self.params), map_param(&c), param(&partials));
        let maps = [map_param(&a), map_param(&b), map_param(&b_up)];
        let [a, b, b_up] = maps;
        let params = [values, a, b, b_up, c, a_scale, b_scale, bias, up_bias, residual, partials];
        call.start(&self.function, self.dims, &params)?;
        if let Some((rest, dims)) = &self.rest {
            let params = [values, c, a_scale, b_scale, bias, up_bias, residual, partials];
            call.start(rest, *dims, &params)?;
        }
        Ok(())
    }
}
