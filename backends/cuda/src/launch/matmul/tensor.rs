//! Dense products of one type: for the tensor cores of sm_80 and later (`shaders/cuda/matmul/tensor.cu`), and of f32 by fused
//! multiply-adds on every GPU (`shaders/cuda/matmul/fma.cu`). Both take the same parameters.

use super::super::{Body, Call, Dims, launch, module, param};
use super::{LAUNCH, Places, activation, granularity, other_op, speed};
use crate::compile::Function;
use crate::device::CudaCaps;
use bytemuck::{Pod, Zeroable};
use perjoule_kernels::op::{Granularity, MatMul, Op, Tensor2};
use perjoule_kernels::{Candidate, Config, DType, Kernel, Launch, Numerics, Reason, Request, Result};
use perjoule_shaders::cuda::{MATMUL_FMA, MATMUL_TENSOR};

static CONFIGS: &[Config] = &[Config::tile("128x128", &[128, 128, 32])];

/// Element types of the rows, in the order of the kernel's.
const TYPES: [DType; 5] = [DType::BF16, DType::F16, DType::F32, DType::I8, DType::F32];
pub(crate) const BF16: usize = 0;
pub(crate) const F16: usize = 1;
/// f32, rounded to tf32 by leave of the policy.
pub(crate) const TF32: usize = 2;
pub(crate) const I8: usize = 3;
/// f32 as it is, without tensor cores.
pub(crate) const F32: usize = 4;

const TILE: usize = 128;
/// Four stages of two tiles of 128 lines of 64 bytes.
const SHARED: u32 = 4 * 2 * 128 * 64;
/// Most blocks along y.
const MOST: usize = 65535;

/// A row for operands of that type.
pub(crate) const fn row<const TYPE: usize>(name: &'static str) -> Kernel {
    Kernel::new(name, "matmul", cost::<TYPE>, prepare::<TYPE>)
        .with_configs(CONFIGS)
        .with_reject(reject::<TYPE>)
        .with_numerics(numerics::<TYPE>)
        .with_align(align)
}

/// How an operand lies: whether k is contiguous, elements from a line to the next and from a matrix to the next.
#[derive(Clone, Copy)]
struct Lines {
    along_k: bool,
    line: usize,
    batch: usize,
}

impl Lines {
    /// Of `vectors` (rows of A, columns of B) `vector` elements apart, whose elements are `step` apart; `None` where lines are not
    /// whole vectors of 16 bytes, or not transposed by ldmatrix.
    fn of<const TYPE: usize>(
        t: &Tensor2,
        [vector, step]: [usize; 2],
        vectors: usize,
        k: usize,
    ) -> Option<Self> {
        let size = t.dtype.block_bytes();
        let whole = |elements: usize| (elements * size).is_multiple_of(16);
        let fits = |line: usize, len: usize| whole(line) && whole(len) && whole(t.strides.batch);
        if step == 1 && fits(vector, k) {
            return Some(Lines { along_k: true, line: vector, batch: t.strides.batch });
        }
        (vector == 1 && (size == 2 || TYPE == F32) && fits(step, vectors)).then_some(Lines {
            along_k: false,
            line: step,
            batch: t.strides.batch,
        })
    }

    fn both<const TYPE: usize>(op: &MatMul) -> Option<(Self, Self)> {
        let (a, b) = (op.a.strides, op.b.strides);
        let a = Lines::of::<TYPE>(&op.a, [a.row, a.col], op.m, op.k)?;
        let b = Lines::of::<TYPE>(&op.b, [b.col, b.row], op.n, op.k)?;
        Some((a, b))
    }
}

fn reject<const TYPE: usize>(candidate: &Candidate<'_>) -> Option<Reason> {
    let Op::MatMul(op) = candidate.op else { return Some(Reason::new("runs matmul")) };
    let lacks = |caps: &CudaCaps| TYPE != F32 && (caps.sm < 80 || caps.shared < SHARED);
    if candidate.info.caps::<CudaCaps>().is_none_or(lacks) {
        return Some(Reason::lacking("needs compute capability 8.0"));
    }
    let dtype = TYPES[TYPE];
    if (op.a.dtype, op.b.dtype) != (dtype, dtype) {
        return Some(Reason::new(format!("multiplies {dtype} by {dtype}")));
    }
    if TYPE == TF32 && !op.policy.tf32 {
        return Some(Reason::new("rounds f32 to tf32, which the policy does not allow"));
    }
    let group = |scale| matches!(scale, Some(Granularity::Group(_)));
    if group(op.a_scale) || group(op.b_scale) {
        return Some(Reason::new("scales whole rows and columns"));
    }
    let sizes = [op.m, op.n, op.k, op.batch];
    if sizes.contains(&0) || sizes.iter().any(|&size| size > i32::MAX as usize / 2) {
        return Some(Reason::new("needs sizes from 1 to 2^30"));
    }
    if op.m.div_ceil(TILE) as u64 * op.n.div_ceil(TILE) as u64 > i32::MAX as u64 {
        return Some(Reason::new("has no grid for so many tiles"));
    }
    Lines::both::<TYPE>(op)
        .is_none()
        .then(|| Reason::new("needs operands contiguous along a dimension, in multiples of 16 bytes"))
}

fn numerics<const TYPE: usize>(_: &Candidate<'_>) -> Numerics {
    match TYPE {
        // 10 bits behind the point, to nearest
        TF32 => Numerics::F32.with_unit(1.0 / 2048.0),
        F32 => Numerics::F32,
        // tensor cores cut what they add to the bits of the largest
        _ => Numerics::F32.with_slack(4.0),
    }
}

fn align(_: &Candidate<'_>, operand: usize) -> u32 {
    if operand < 2 { 16 } else { 1 }
}

fn cost<const TYPE: usize>(candidate: &Candidate<'_>) -> f32 {
    let Op::MatMul(op) = candidate.op else { return f32::INFINITY };
    let speed = speed(candidate);
    let tiles = (op.batch * op.m.div_ceil(TILE) * op.n.div_ceil(TILE)) as f32;
    // two blocks on a multiprocessor, which multiplies so many pairs in a cycle
    let rate = [600.0, 600.0, 300.0, 1200.0, 90.0][TYPE];
    let waves = (tiles / speed.multiprocessors).max(1.0);
    let arithmetic = waves * (TILE * TILE) as f32 * op.k as f32 / (rate * speed.clock);
    // a slice waits for memory where there are few
    let slices = op.k as f32 * TYPES[TYPE].block_bytes() as f32 / 64.0;
    LAUNCH + 2e-6 + arithmetic.max(slices * 3e-7).max(candidate.op.bytes() as f32 / speed.memory)
}

/// Laid out as the kernel's.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    a_line: i64,
    a_batch: i64,
    b_line: i64,
    b_batch: i64,
    c_row: i64,
    c_col: i64,
    c_batch: i64,
    residual_row: i64,
    residual_col: i64,
    residual_batch: i64,
    m: u32,
    n: u32,
    k: u32,
    batch: u32,
    c_dtype: u32,
    bias_dtype: u32,
    residual_dtype: u32,
    a_scale: u32,
    b_scale: u32,
    has_bias: u32,
    has_residual: u32,
    activation: u32,
    scale: f32,
    pad: u32,
}

struct Tensor {
    function: Function,
    params: Params,
    places: Places,
    dims: Dims,
}

fn prepare<const TYPE: usize>(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let Op::MatMul(op) = request.op else { return Err(other_op(request.op)) };
    let Some((a, b)) = Lines::both::<TYPE>(op) else { return Err(other_op(request.op)) };
    let define = |along_k: bool| usize::from(along_k).to_string();
    let sides = [("A_ALONG_K", define(a.along_k)), ("B_ALONG_K", define(b.along_k))];
    let (function, shared) = if TYPE == F32 {
        (module(request, &MATMUL_FMA, &sides)?.function("fma_tiles")?, 0)
    } else {
        let defines = [("TYPE", TYPE.to_string()), sides[0].clone(), sides[1].clone()];
        let function = module(request, &MATMUL_TENSOR, &defines)?.function("tensor")?;
        function.allow_shared(SHARED)?;
        (function, SHARED)
    };
    let residual = op.epilogue.residual;
    let params = Params {
        a_line: a.line as i64,
        a_batch: a.batch as i64,
        b_line: b.line as i64,
        b_batch: b.batch as i64,
        c_row: op.c.strides.row as i64,
        c_col: op.c.strides.col as i64,
        c_batch: op.c.strides.batch as i64,
        residual_row: residual.map_or(0, |r| r.strides.row as i64),
        residual_col: residual.map_or(0, |r| r.strides.col as i64),
        residual_batch: residual.map_or(0, |r| r.strides.batch as i64),
        m: op.m as u32,
        n: op.n as u32,
        k: op.k as u32,
        batch: op.batch as u32,
        c_dtype: op.c.dtype as u32,
        bias_dtype: op.epilogue.bias.unwrap_or(DType::F32) as u32,
        residual_dtype: residual.map_or(DType::F32, |r| r.dtype) as u32,
        a_scale: granularity(op.a_scale).0,
        b_scale: granularity(op.b_scale).0,
        has_bias: op.epilogue.bias.is_some().into(),
        has_residual: residual.is_some().into(),
        activation: activation(op.epilogue.activation),
        scale: op.epilogue.scale,
        pad: 0,
    };
    let tiles = (op.m.div_ceil(TILE) * op.n.div_ceil(TILE)) as u32;
    let dims = Dims { grid: [tiles, op.batch.min(MOST) as u32, 1], shared, ..Dims::line(0, 256) };
    launch(Tensor { function, params, places: Places::of(request.op), dims })
}

impl Body for Tensor {
    fn run(&self, call: &mut Call<'_>) -> Result<()> {
        let places = &self.places;
        let at = |place: Option<usize>| place.map_or(0, |index| call.operand(index));
        let (a, b, c) = (call.operand(0), call.operand(1), call.operand(places.c));
        let (a_scale, b_scale) = (at(places.a_scale), at(places.b_scale));
        let (bias, residual) = (at(places.bias), at(places.residual));
        call.start(
            &self.function,
            self.dims,
            &[
                param(&self.params),
                param(&a),
                param(&b),
                param(&a_scale),
                param(&b_scale),
                param(&bias),
                param(&residual),
                param(&c),
            ],
        )
    }
}
