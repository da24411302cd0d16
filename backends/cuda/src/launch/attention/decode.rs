//! Attention of few queries on Hopper: `shaders/cuda/attention/decode_sm90.cu`, keys split over blocks.

use super::map::{Map, Mapped};
use super::{Params, align, caps_of, is_empty, longest, misaligned, op_of, pointers};
use super::{refuse_sizes, rounded_weights, type_names};
use crate::device::CudaCaps;
use crate::launch::steps::Pointer;
use crate::launch::{Dims, launch, module};
use crate::stream::COUNTERS;
use perjoule_kernels::op::{Attention, Op};
use perjoule_kernels::{Candidate, Config, DType, Kernel, Launch, Reason, Request, Result};
use perjoule_shaders::cuda;

/// Tiles: rows of a block, keys (half as many where heads or rows are many), elements of a head.
static CONFIGS: &[Config] = &[Config::tile("16x128", &[16, 128, 128]), Config::tile("32x64", &[32, 64, 128])];

/// Shared memory of a ring, in bytes; and what a block needs besides: barriers, and to begin at a multiple of 1,024 bytes.
const RING: usize = 192 << 10;
const BESIDES: usize = 36 * 8 + 1024;

/// Shared memory that the kernel declares by itself, at most.
const DECLARED: usize = 17 << 10;

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

/// What a configuration makes of a block.
#[derive(Clone, Copy)]
struct Shape {
    rows: usize,
    /// Warps with 16 keys of a tile each.
    warps: usize,
    stages: usize,
}

impl Shape {
    fn new(config: &Config, head_dim: usize) -> Self {
        let rows = config.tile[0];
        let warps = if rows == 16 && head_dim <= 128 { 8 } else { 4 };
        let stages = (RING / (2 * 16 * warps * head_dim * 2)).min(6);
        Shape { rows, warps, stages }
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
    let caps = caps_of(candidate.info)?;
    if caps.sm != 90 {
        return Some(Reason::new("needs Hopper: compute capability 9.0"));
    }
    let dtype = if BF16 { DType::BF16 } else { DType::F16 };
    if [op.q_dtype, op.kv_dtype, op.out_dtype] != [dtype; 3] {
        return Some(Reason::new(format!("runs {dtype} throughout")));
    }
    if ![64, 128, 256].contains(&op.q.len) {
        return Some(Reason::new("runs heads of 64, 128 and 256 elements"));
    }
    let shape = Shape::new(candidate.config, op.q.len);
    if shape.rows > 16 && op.q.len > 128 {
        return Some(Reason::new("has registers for heads of at most 128 elements"));
    }
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
    refuse_sizes(op).or_else(|| misaligned(op))
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
        let tiles = (longest(op) * group).div_ceil(shape.rows).max(1);
        let all = tiles * op.kv.kv_heads * op.batch;
        let blocks = caps.multiprocessors as usize;
        // a block alone does not get more of the memory's rate than this share of two of a multiprocessor
        let rate = 2.0 * caps.memory_rate as f32 / blocks as f32;
        let keys = (4 * op.kv.capacity * op.q.len) as f32 / rate;
        let most = match all {
            1..=COUNTERS => op.kv.capacity.div_ceil(shape.keys()).clamp(1, SPLITS),
            _ => 1,
        };
        let seconds = |splits: usize| {
            let turns = (all * splits).div_ceil(blocks) as f32;
            // the memory serves all blocks of a turn
            let shared = ((all * splits).min(blocks) as f32 / blocks as f32).max(0.5) * 2.0;
            turns * (keys * shared / splits as f32 + if splits > 1 { 3.5e-6 } else { 2.5e-6 })
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
    let shape = Shape::new(candidate.config, op.q.len);
    1e-6 + Cut::new(op, shape, &caps).seconds * if shape.rows > 16 { 1.1 } else { 1.0 }
}

fn prepare(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let op = op_of(request)?;
    let shape = Shape::new(request.config, op.q.len);
    let tokens = shape.tokens(op).unwrap_or(shape.keys());
    let (name, suffix) = type_names(op.q_dtype).unwrap_or(("bf16", "\"bf16\""));
    let plain = op.soft_cap.is_none() && op.scale > 0.0;
    let number = |x: usize| x.to_string();
    let module = module(
        request,
        &cuda::ATTENTION_DECODE_SM90,
        &[
            ("HEAD_DIM", number(op.q.len)),
            ("TILE_ROWS", number(shape.rows)),
            ("WARPS", number(shape.warps)),
            ("STAGES", number(shape.stages)),
            ("BOX", number(tokens)),
            ("SCORES", number(usize::from(!plain))),
            ("TYPE", name.to_string()),
            ("TYPE_NAME", suffix.to_string()),
        ],
    )?;
    let function = module.function("attention_decode")?;
    let shared = shape.shared(op.q.len) as u32;
    function.allow_shared(shared)?;
    let cut = match caps_of(request.info) {
        Some(caps) => Cut::new(op, shape, &caps),
        None => Cut { tiles: 1, all: 0, splits: 1, seconds: 0.0 },
    };
    let group = op.q.inner / op.kv.kv_heads;
    let blocks = if is_empty(op) { 0 } else { cut.all * cut.splits };
    let scratch = match cut.splits {
        1 => 0,
        _ => (blocks * shape.rows) as u64 * (op.q.len as u64 + 4) * 4,
    };
    let params = Params::new(op).tiled(group, cut.tiles, cut.splits, blocks);
    let dims = Dims { shared, ..Dims::line(blocks as u32, 32 * (shape.warps as u32 + 1)) };
    let mut pointers = pointers(op);
    pointers.extend(match cut.splits {
        1 => [Pointer::Nothing, Pointer::Nothing],
        _ => [Pointer::Scratch(0), Pointer::Counters],
    });
    let cache = Map::cache(op, tokens);
    let maps = vec![(cache, 1), (cache, 2)];
    launch(Mapped { params, function, maps, pointers, dims, then: None, scratch })
}
