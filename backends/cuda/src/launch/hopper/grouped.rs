//! Products of experts: `shaders/cuda/grouped_matmul/hopper.cu`.

use super::map::Lines;
use super::round::{self, Round, rounds};
use super::{ELEMENTS, Params, THREADS};
use crate::compile::Function;
use crate::device::CudaCaps;
use crate::launch::{Body, Call, Dims, launch, map_param, module, param};
use bytemuck::{Pod, Zeroable};
use perjoule_kernels::op::{GroupedMatMul, Op};
use perjoule_kernels::{Candidate, Config, DType, Error, Launch, Numerics, Reason, Request, Result};
use perjoule_shaders::cuda::GROUPED_MATMUL_HOPPER;

/// The tile.
pub(crate) static CONFIGS: &[Config] = &[Config::tile("128x128", &[TILE_M, TILE_N, 64])];

const TILE_M: usize = 128;
const TILE_N: usize = 128;
const STAGES: usize = 6;

/// Experts whose segments find room in shared memory.
const MOST_EXPERTS: usize = 2048;
/// Sizes are counted in i32, with room for a tile beyond the last one.
const MOST: usize = i32::MAX as usize - 1024;

/// Laid out as the kernel's.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct Groups {
    a_row: u64,
    c_row: u64,
    experts: i32,
    rows: i32,
    a_rows: i32,
    c_rows: i32,
    a_divisor: i32,
    k: i32,
}

/// Dynamic shared memory: stages with their barriers, a box of each consumer, and the table of segments.
fn shared(experts: usize) -> u32 {
    (STAGES * ((TILE_M + TILE_N) * 128 + 16) + 2 * 64 * 128 + 8 * (experts + 1)) as u32
}

/// B as the copy engine walks it.
fn b_lines(op: &GroupedMatMul, along_n: bool) -> Lines {
    let s = op.b.strides;
    let (len, lines, stride) = if along_n { (op.n, op.k, s.row) } else { (op.k, op.n, s.col) };
    Lines {
        dtype: op.b.dtype,
        tf32: false,
        len,
        lines,
        stride,
        batch: op.experts,
        batch_stride: s.batch,
        box_lines: if along_n { 64 } else { TILE_N },
    }
}

/// Whether B is contiguous along n rather than along k.
fn along_n(op: &GroupedMatMul) -> bool {
    op.b.strides.row != 1 && op.k > 1
}

fn refuse(op: &GroupedMatMul, element: DType) -> Option<Reason> {
    let (a, b, c) = (op.a, op.b, op.c);
    let rounds = rounds(a.dtype, b.dtype, op.policy);
    if b.dtype != element || (a.dtype != element && !rounds) {
        return Some(Reason::new(format!(
            "multiplies {element}, to which it rounds f32 as bf16 where the policy allows it"
        )));
    }
    let out = match element {
        DType::I8 => matches!(c.dtype, DType::I32 | DType::F32 | DType::F16 | DType::BF16),
        _ => matches!(c.dtype, DType::F32 | DType::F16 | DType::BF16),
    };
    if !out {
        return Some(Reason::new("writes f32, f16, bf16, and i32 of i8"));
    }
    let sizes = [op.rows, op.a_rows, op.c_rows, op.a_divisor, op.n, op.k];
    if sizes.iter().any(|&size| size > MOST) || op.n == 0 || op.k == 0 {
        return Some(Reason::new("takes sizes of 1 to 2^31 - 1025"));
    }
    if !(1..=MOST_EXPERTS).contains(&op.experts) {
        return Some(Reason::new("takes 1 to 2048 experts"));
    }
    let whole = |stride: usize, dtype: DType| {
        stride.checked_mul(dtype.block_bytes()).is_some_and(|bytes| bytes.is_multiple_of(16))
    };
    if (a.strides.col != 1 && op.k > 1) || (c.strides.col != 1 && op.n > 1) {
        return Some(Reason::new("reads and writes contiguous rows"));
    }
    if along_n(op) && (element.block_bytes() != 2 || (b.strides.col != 1 && op.n > 1)) {
        return Some(Reason::new("reads B contiguous along k, or of 16 bits along n"));
    }
    let lies = (op.a_rows <= 1 || rounds || whole(a.strides.row, element))
        && (op.c_rows <= 1 || whole(c.strides.row, c.dtype))
        && whole(op.n, c.dtype)
        && b_lines(op, along_n(op)).fits();
    (!lies).then(|| Reason::new("needs strides, and rows of C, that are multiples of 16 bytes"))
}

/// Why a row of that element type does not run an op.
pub(crate) fn reject<const ELEMENT: usize>(candidate: &Candidate<'_>) -> Option<Reason> {
    match candidate.info.caps::<CudaCaps>() {
        Some(caps) if caps.sm == 90 => {}
        _ => return Some(Reason::lacking("needs compute capability 9.0")),
    }
    match candidate.op {
        Op::GroupedMatMul(op) => refuse(op, ELEMENTS[ELEMENT]),
        _ => Some(Reason::new("runs products of experts")),
    }
}

/// Seconds by the tiles of the experts that have positions, or by the bytes.
pub(crate) fn cost(candidate: &Candidate<'_>) -> f32 {
    let (Op::GroupedMatMul(op), Some(caps)) = (candidate.op, candidate.info.caps::<CudaCaps>()) else {
        return f32::MAX;
    };
    // half a tile of each expert is empty
    let along_m = op.rows as f32 / TILE_M as f32 + 0.5 * op.experts.min(op.rows) as f32;
    let tiles = along_m.max(1.0) * op.n.div_ceil(TILE_N) as f32;
    let waves = (tiles / caps.multiprocessors.max(1) as f32).max(1.0);
    let rate = 4096.0 / op.b.dtype.block_bytes() as f32 * 0.7;
    let cycles = (TILE_M * TILE_N * op.k) as f32 / rate + 1000.0;
    let clock = caps.clock_khz.max(1) as f32 * 1e3;
    let moved = candidate.op.bytes() as f32 / (0.7 * caps.memory_rate.max(1) as f32);
    let round = if op.a.dtype == op.b.dtype { 0.0 } else { 3e-6 };
    6e-6 + round + (waves * cycles / clock).max(moved)
}

/// Roundings by element type.
pub(crate) fn numerics(candidate: &Candidate<'_>) -> Numerics {
    let Op::GroupedMatMul(op) = candidate.op else { return Numerics::F32 };
    super::numerics_of(op.a.dtype != op.b.dtype, op.b.dtype, op.c.dtype)
}

/// Rows are copied in pieces of 16 bytes.
pub(crate) fn align(candidate: &Candidate<'_>, operand: usize) -> u32 {
    let last = candidate.op.operands().len() - 1;
    let rounded = match candidate.op {
        Op::GroupedMatMul(op) => operand == 0 && op.a.dtype != op.b.dtype,
        _ => false,
    };
    if (operand < 2 && !rounded) || operand == last { 16 } else { 1 }
}

/// Prepares products of experts.
pub(crate) fn prepare(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let unsupported = |why: String| Error::Unsupported { what: "this kernel", why };
    let Op::GroupedMatMul(op) = *request.op else { return Err(unsupported(request.op.to_string())) };
    let caps = request.info.caps::<CudaCaps>().ok_or_else(|| unsupported("no CUDA device".into()))?;
    let function = module(request, &GROUPED_MATMUL_HOPPER, &defines(&op))?.function("grouped_matmul")?;
    // a limit of the function, which ops with fewer experts use as well
    function.allow_shared(shared(MOST_EXPERTS))?;
    let slice = 128 / op.b.dtype.block_bytes();
    let round = match op.a.dtype == op.b.dtype {
        true => None,
        false => Some(Round::new(request, op.a, 1, op.a_rows, op.k)?),
    };
    let tiles_n = op.n.div_ceil(TILE_N);
    let params = Params {
        scale: 1.0,
        // rows of C are looked up: none lies beyond
        m: i32::MAX,
        n: op.n as i32,
        batch: op.experts as i32,
        k_slices: op.k.div_ceil(slice) as i32,
        tiles_n: tiles_n as i32,
        ..Params::zeroed()
    };
    let groups = Groups {
        a_row: if round.is_some() { round::row(op.k) } else { op.a.strides.row } as u64,
        c_row: op.c.strides.row as u64,
        experts: op.experts as i32,
        rows: op.rows as i32,
        a_rows: op.a_rows as i32,
        c_rows: op.c_rows as i32,
        a_divisor: op.a_divisor as i32,
        k: op.k as i32,
    };
    // at most a tile that is not full for each expert
    let most = (op.rows.div_ceil(TILE_M) + op.experts.min(op.rows)).saturating_mul(tiles_n);
    let mut dims = Dims::line(most.min(caps.multiprocessors as usize) as u32, THREADS);
    dims.shared = shared(op.experts);
    dims.early = true;
    launch(Experts { op, function, params, groups, dims, round })
}

fn defines(op: &GroupedMatMul) -> Vec<(&'static str, String)> {
    let id = |dtype: DType| (dtype as u32).to_string();
    vec![
        ("ELEMENT", id(op.b.dtype)),
        ("OUT", id(op.c.dtype)),
        ("TILE_M", TILE_M.to_string()),
        ("TILE_N", TILE_N.to_string()),
        ("STAGES", STAGES.to_string()),
        ("STORE_BUFFERS", "1".into()),
        ("CLUSTER", "1".into()),
        ("PINGPONG", "1".into()),
        ("B_MN", u32::from(along_n(op)).to_string()),
        ("BIAS", op.bias.map_or("-1".into(), id)),
        ("ACTIVATION", (op.activation as u32).to_string()),
    ]
}

struct Experts {
    op: GroupedMatMul,
    function: Function,
    params: Params,
    groups: Groups,
    dims: Dims,
    round: Option<Round>,
}

impl Body for Experts {
    fn scratch(&self) -> u64 {
        self.round.as_ref().map_or(0, Round::bytes)
    }

    fn run(&self, call: &mut Call<'_>) -> Result<()> {
        let op = &self.op;
        let b = b_lines(op, along_n(op)).encode(call.operand(1))?;
        let a = match &self.round {
            None => call.operand(0),
            Some(round) => {
                round.run(call, call.operand(0), call.scratch())?;
                call.scratch()
            }
        };
        let (offsets, order) = (call.operand(2), call.operand(3));
        let (bias, c) = match op.bias {
            Some(_) => (call.operand(4), call.operand(5)),
            None => (0, call.operand(4)),
        };
        let params = [
            param(&self.params),
            param(&self.groups),
            map_param(&b),
            param(&a),
            param(&offsets),
            param(&order),
            param(&bias),
            param(&c),
        ];
        call.start(&self.function, self.dims, &params)
    }
}
