//! Attention of many queries on Hopper: `shaders/cuda/attention/prefill_sm90.cu`, in FlashAttention-3's design.

use super::map::{Map, Mapped};
use super::{
    Params, align, caps, caps_of, is_empty, longest, op_of, pointers, refuse_tensor_cores, rounded_weights,
    type_definitions,
};
use crate::device::CudaCaps;
use crate::launch::steps::Pointer;
use crate::launch::{Dims, launch, module};
use perjoule_kernels::op::{Attention, Op, Spec};
use perjoule_kernels::{Candidate, Config, DType, Kernel, Launch, Reason, Request, Result};
use perjoule_shaders::cuda;

/// Tiles: rows of a block, keys, and elements of a head for which the tile is meant.
static CONFIGS: &[Config] = &[
    Config::tile("128x128", &[ROWS, 128, 128]),
    Config::tile("128x192", &[ROWS, 192, 64]),
    Config::tile("128x64", &[ROWS, 64, 256]),
];

/// Rows of a block: two warpgroups of 64; a third one copies.
const ROWS: usize = 128;
const THREADS: u32 = 3 * 128;
const STAGES: usize = 2;

/// Most blocks that share the keys of a tile of rows.
const SPLITS: usize = 32;

/// A row for f16 or bf16.
pub(crate) const fn row<const BF16: bool>(name: &'static str) -> Kernel {
    Kernel::new(name, "attention", cost, prepare)
        .with_configs(CONFIGS)
        .with_reject(reject::<BF16>)
        .with_numerics(rounded_weights)
        .with_align(align)
}

/// Dynamic shared memory: rings of queries, keys and values, barriers, and room to begin at a multiple of 1,024 bytes.
fn shared(head_dim: usize, keys: usize, q_stages: usize) -> usize {
    (q_stages * ROWS + 2 * STAGES * keys) * head_dim * 2 + 24 * 8 + 1024
}

/// Tiles of queries that are there at once: two where a block has room for them.
fn q_stages(head_dim: usize, keys: usize, caps: &CudaCaps) -> usize {
    if shared(head_dim, keys, 2) <= caps.shared as usize { 2 } else { 1 }
}

/// Heads whose rows make a tile together: those of a group where they fill whole boxes.
fn pack(op: &Attention) -> usize {
    let group = op.q.inner / op.kv.kv_heads;
    if 64usize.is_multiple_of(group) { group } else { 1 }
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
    let keys = candidate.config.tile[1];
    if keys > 128 && op.q.len > 64 || keys > 64 && op.q.len > 128 {
        return Some(Reason::new("has no registers for heads of that many elements"));
    }
    if shared(op.q.len, keys, 1) > caps.shared as usize {
        return Some(Reason::new("needs more shared memory than a block has"));
    }
    if op.kv.paging.is_some_and(|p| !p.block.is_multiple_of(keys)) {
        return Some(Reason::new(format!("needs blocks of multiples of {keys} tokens")));
    }
    let maps = [Map::queries(op, pack(op)), Map::cache(op, keys)];
    if !is_empty(op) && !maps.iter().all(Map::fits) {
        return Some(Reason::new(
            "needs strides that the copy engine can walk, and a cache that is not empty",
        ));
    }
    None
}

/// How an op is cut up.
struct Cut {
    tiles: usize,
    units: usize,
    splits: usize,
}

impl Cut {
    fn new(op: &Attention, keys: usize, caps: &CudaCaps) -> Self {
        let pack = pack(op);
        let tiles = (longest(op) * pack).div_ceil(ROWS).max(1);
        let units = op.batch * (op.q.inner / pack);
        let room = caps.multiprocessors as usize / (tiles * units).max(1);
        let splits = room.min(op.kv.capacity / (2 * keys)).clamp(1, SPLITS);
        Cut { tiles, units, splits }
    }

    fn items(&self) -> usize {
        self.tiles * self.units * self.splits
    }
}

fn cost(candidate: &Candidate<'_>) -> f32 {
    let Op::Attention(op) = candidate.op else { return f32::INFINITY };
    let Some(caps) = caps_of(candidate.info) else { return f32::INFINITY };
    let keys = candidate.config.tile[1];
    let cut = Cut::new(op, keys, &caps);
    let blocks = caps.multiprocessors as usize;
    let rows = cut.tiles * cut.units * ROWS;
    let padding = rows as f32 / (longest(op) * op.q.inner * op.batch).max(1) as f32;
    let rate = caps.multiprocessors as f32 * caps.clock_khz as f32 * 1e3 * 2100.0;
    let waves = cut.items() as f32 / blocks as f32;
    // long tiles are paired with short ones
    let share = if waves < 2.0 { waves / waves.ceil() } else { 1.0 };
    let meant = if candidate.config.tile[2] == op.q.len { 1.0 } else { 1.1 };
    let busy = padding * op.flops() as f32 / rate;
    let read = op.bytes() as f32 / (0.8 * caps.memory_rate as f32);
    meant * busy.max(read) / share + if cut.splits > 1 { 8e-6 } else { 5e-6 }
}

fn prepare(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let op = op_of(request)?;
    let keys = request.config.tile[1];
    let number = |x: usize| x.to_string();
    let caps = caps(request)?;
    let q_stages = q_stages(op.q.len, keys, &caps);
    let mut definitions = vec![
        ("HEAD_DIM", number(op.q.len)),
        ("BLOCK_N", number(keys)),
        ("CONSUMERS", number(ROWS / 64)),
        ("STAGES", number(STAGES)),
        ("Q_STAGES", number(q_stages)),
    ];
    definitions.extend(type_definitions(op));
    let module = module(request, &cuda::ATTENTION_PREFILL_SM90, &definitions)?;
    let function = module.function("attention_prefill")?;
    let shared = shared(op.q.len, keys, q_stages) as u32;
    function.allow_shared(shared)?;
    let cut = Cut::new(op, keys, &caps);
    // rounded queries, then parts
    let rounded = match op.q_dtype {
        DType::F32 => 2 * op.q.outer as u64 * op.q.inner as u64 * op.q.len as u64,
        _ => 0,
    };
    let (first, queries) = match rounded {
        0 => (None, Pointer::Operand(0)),
        bytes => {
            let blocks = bytes.div_ceil(2 * 4 * 256);
            (Some((module.function("attention_round")?, Dims::line(blocks as u32, 256))), Pointer::Scratch(0))
        }
    };
    let (then, parts) = match cut.splits {
        1 => (None, 0),
        _ => {
            let tiles = cut.tiles * cut.units;
            let floats = (tiles * cut.splits * ROWS) as u64 * (op.q.len as u64 + 4);
            let dims = Dims::line((tiles * ROWS / 4) as u32, 128);
            (Some((module.function("attention_combine")?, dims)), floats * 4)
        }
    };
    let params = Params::new(op).tiled(pack(op), cut.tiles, cut.splits, cut.items());
    let grid = if is_empty(op) { 0 } else { cut.items().min(caps.multiprocessors as usize) };
    let dims = Dims { shared, ..Dims::line(grid as u32, THREADS) };
    let mut pointers = pointers(op);
    pointers.push(if parts > 0 { Pointer::Scratch(rounded) } else { Pointer::Nothing });
    let cache = Map::cache(op, keys);
    let maps = vec![
        (Map::queries(op, pack(op)), queries),
        (cache, Pointer::Operand(1)),
        (cache, Pointer::Operand(2)),
    ];
    launch(Mapped { params, function, maps, pointers, dims, first, then, scratch: rounded + parts })
}
