//! Attention of few queries on Hopper: `shaders/cuda/attention/decode_sm90.cu`, keys split over blocks.

use super::map::{Map, Mapped};
use super::{
    Params, align, caps, caps_of, is_empty, longest, op_of, pointers, refuse_tensor_cores, refused,
    rounded_weights, type_definitions,
};
use crate::device::CudaCaps;
use crate::launch::steps::Pointer;
use crate::launch::{Dims, launch, module};
use crate::stream::COUNTERS;
use perjoule_kernels::op::{Attention, Op};
use perjoule_kernels::{Candidate, Config, Kernel, Launch, Reason, Request, Result};
use perjoule_shaders::cuda;

/// Tiles: rows of a block, keys (half as many for heads of 256 elements), elements of a head.
static CONFIGS: &[Config] = &[Config::tile("16x128", &[ROWS, 128, 128])];

/// Rows of a block.
const ROWS: usize = 16;

/// Shared memory of a ring, in bytes; and what a block needs besides: barriers, queries of long heads, and to begin at a multiple of 1,024
/// bytes.
const RING: usize = 192 << 10;
const BESIDES: usize = 24 * 8 + ROWS * 256 * 2 + 1024;

/// Shared memory that the kernel declares by itself, at most.
const DECLARED: usize = 10 << 10;

/// Most blocks that share a tile of rows.
const SPLITS: usize = 64;

/// A row for f16 or bf16.
pub(crate) const fn row<const BF16: bool>(name: &'static str) -> Kernel {
    Kernel::new(name, "attention", cost, prepare)
        .with_configs(CONFIGS)
        .with_reject(reject::<BF16>)
        .with_numerics(rounded_weights)
        .with_align(align)
}

/// What becomes of a block for a head.
#[derive(Clone, Copy)]
struct Shape {
    /// Warps with 16 keys of a tile each.
    warps: usize,
    stages: usize,
}

impl Shape {
    fn new(head_dim: usize) -> Self {
        let warps = if head_dim <= 128 { 8 } else { 4 };
        let stages = (RING / (2 * 16 * warps * head_dim * 2)).min(6);
        Shape { warps, stages }
    }

    fn keys(&self) -> usize {
        16 * self.warps
    }

    fn shared(&self, head_dim: usize) -> usize {
        self.stages * 2 * self.keys() * head_dim * 2 + BESIDES
    }

    /// Tokens of a box: a tile's, or those of a block of the cache where it has fewer; `None` where neither is a multiple of the other.
    fn tokens(&self, op: &Attention) -> Option<usize> {
        let keys = self.keys();
        match op.kv.paging.map(|p| p.block) {
            None => Some(keys),
            Some(block) if block.is_multiple_of(keys) => Some(keys),
            // the pattern of the swizzle has 8 lines
            Some(block) => (keys.is_multiple_of(block) && block.is_multiple_of(8)).then_some(block),
        }
    }
}

fn reject<const BF16: bool>(candidate: &Candidate<'_>) -> Option<Reason> {
    let Op::Attention(op) = candidate.op else { return Some(Reason::new("runs attention")) };
    let caps = match caps_of(candidate.info) {
        Some(caps) if caps.sm == 90 => caps,
        _ => return Some(Reason::lacking("needs compute capability 9.0")),
    };
    let refusal = refuse_tensor_cores::<BF16>(op);
    if refusal.is_some() {
        return refusal;
    }
    let shape = Shape::new(op.q.len);
    if shape.shared(op.q.len) + DECLARED > caps.shared as usize {
        return Some(Reason::new("needs more shared memory than a block has"));
    }
    let Some(tokens) = shape.tokens(op) else {
        return Some(Reason::new("needs blocks of 8, 16, 32 or 64 tokens, or of multiples of its tile"));
    };
    if !is_empty(op) && !Map::cache(op, tokens).fits() {
        return Some(Reason::new(
            "needs strides that the copy engine can walk, and a cache that is not empty",
        ));
    }
    None
}

/// How an op is cut up.
struct Cut {
    /// Tiles of rows of a unit, and of all.
    tiles: usize,
    all: usize,
    splits: usize,
    /// Predicted seconds.
    seconds: f32,
}

impl Cut {
    fn new(op: &Attention, shape: Shape, caps: &CudaCaps) -> Self {
        let group = op.q.inner / op.kv.kv_heads;
        let tiles = (longest(op) * group).div_ceil(ROWS).max(1);
        let all = tiles * op.kv.kv_heads * op.batch;
        let blocks = caps.multiprocessors as usize;
        let bytes = (4 * op.kv.capacity * op.q.len) as f32;
        let rate = caps.memory_rate as f32;
        let most = match all {
            1..=COUNTERS => op.kv.capacity.div_ceil(shape.keys()).clamp(1, SPLITS),
            _ => 1,
        };
        // what a block alone takes of the memory's rate, and what all take together: as measured on an H200
        let seconds = |splits: usize| {
            let turns = (all * splits).div_ceil(blocks) as f32;
            let alone = bytes / splits as f32 / (1.6 * rate / blocks as f32);
            let together = bytes * all as f32 / turns / (0.86 * rate);
            let parts = if splits > 1 { 1e-6 + 0.15e-6 * splits as f32 } else { 0.0 };
            turns * (alone.max(together) + parts) + 4.5e-6
        };
        let (splits, seconds) = (1..=most)
            .map(|splits| (splits, seconds(splits)))
            .min_by(|a, b| a.1.total_cmp(&b.1))
            .unwrap_or((1, 0.0));
        Cut { tiles, all, splits, seconds }
    }
}

fn cost(candidate: &Candidate<'_>) -> f32 {
    let Op::Attention(op) = candidate.op else { return f32::INFINITY };
    let Some(caps) = caps_of(candidate.info) else { return f32::INFINITY };
    Cut::new(op, Shape::new(op.q.len), &caps).seconds
}

fn prepare(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let op = op_of(request)?;
    let shape = Shape::new(op.q.len);
    let tokens = shape.tokens(op).ok_or_else(|| refused(request))?;
    let number = |x: usize| x.to_string();
    let mut definitions = vec![
        ("HEAD_DIM", number(op.q.len)),
        ("WARPS", number(shape.warps)),
        ("STAGES", number(shape.stages)),
        ("BOX", number(tokens)),
    ];
    definitions.extend(type_definitions(op));
    let module = module(request, &cuda::ATTENTION_DECODE_SM90, &definitions)?;
    let function = module.function("attention_decode")?;
    let shared = shape.shared(op.q.len) as u32;
    function.allow_shared(shared)?;
    let cut = Cut::new(op, shape, &caps(request)?);
    let group = op.q.inner / op.kv.kv_heads;
    let blocks = if is_empty(op) { 0 } else { cut.all * cut.splits };
    let scratch = match cut.splits {
        1 => 0,
        _ => (blocks * ROWS) as u64 * (op.q.len as u64 + 4) * 4,
    };
    let params = Params::new(op).tiled(group, cut.tiles, cut.splits, blocks);
    let dims = Dims { shared, ..Dims::line(blocks as u32, 32 * (shape.warps as u32 + 1)) };
    let mut pointers = pointers(op);
    pointers.extend(match cut.splits {
        1 => [Pointer::Nothing, Pointer::Nothing],
        _ => [Pointer::Scratch(0), Pointer::Counters],
    });
    let cache = Map::cache(op, tokens);
    let maps = vec![(cache, Pointer::Operand(1)), (cache, Pointer::Operand(2))];
    launch(Mapped { params, function, maps, pointers, dims, first: None, then: None, scratch })
}
