//! Attention by `mma.sync`, on every GPU since Ampere: `shaders/cuda/attention/mma.cu`, keys split over blocks where there are few rows.

use super::{
    Params, align, caps, caps_of, is_empty, longest, op_of, pointers, refuse_tensor_cores, refused,
    rounded_weights, type_definitions,
};
use crate::device::CudaCaps;
use crate::launch::steps::{Pointer, Step, Steps};
use crate::launch::{Dims, launch, module};
use perjoule_kernels::op::{Attention, Op, Spec};
use perjoule_kernels::{Candidate, Config, Kernel, Launch, Reason, Request, Result};
use perjoule_shaders::cuda;

/// Tiles: rows of a block, keys of a group's tile, elements of a head. Parameters: warps along the rows, groups of them along the keys, and
/// most tiles of a ring.
static CONFIGS: &[Config] = &[
    Config { name: "16", tile: &[16, 16, 64], params: &[1, 8, 3] },
    Config { name: "32", tile: &[32, 16, 64], params: &[2, 4, 3] },
    Config { name: "64", tile: &[64, 16, 64], params: &[4, 2, 4] },
    Config { name: "128", tile: &[128, 32, 64], params: &[8, 1, 3] },
];

/// Most blocks that share a tile of rows.
const SPLITS: usize = 64;

/// What a configuration makes of a block, on a GPU and for a head.
#[derive(Clone, Copy)]
struct Shape {
    rows: usize,
    keys: usize,
    along: usize,
    groups: usize,
    stages: usize,
    shared: usize,
}

impl Shape {
    /// With as many tiles in the rings as there is room for; `None` where that is none for two.
    fn new(config: &Config, head_dim: usize, caps: &CudaCaps) -> Option<Self> {
        let (&[rows, keys, _], &[along, groups, most]) = (config.tile, config.params) else { return None };
        let results = groups * rows * (head_dim + 6) * 4;
        // queries of long heads have no room in registers
        let queries = if head_dim > 128 { rows * head_dim * 2 } else { 0 };
        let shared = |stages: usize| {
            let rings = groups * stages * 2 * keys * head_dim * 2;
            (rings + queries).max(results)
        };
        let stages = (2..=most).rev().find(|&stages| shared(stages) + 1024 <= caps.shared as usize)?;
        Some(Shape { rows, keys, along, groups, stages, shared: shared(stages) })
    }

    /// Blocks that a multiprocessor holds.
    fn resident(&self, caps: &CudaCaps) -> usize {
        let threads = 32 * self.along * self.groups;
        let memory = caps.shared_of_multiprocessor as usize / (self.shared + 1024);
        // up to 255 registers a thread
        memory.min(256 / threads).max(1)
    }
}

/// A row for f16 or bf16.
pub(crate) const fn row<const BF16: bool>(name: &'static str) -> Kernel {
    Kernel::new(name, "attention", cost, prepare)
        .with_configs(CONFIGS)
        .with_reject(reject::<BF16>)
        .with_numerics(rounded_weights)
        .with_align(align)
}

fn reject<const BF16: bool>(candidate: &Candidate<'_>) -> Option<Reason> {
    let Op::Attention(op) = candidate.op else { return Some(Reason::new("runs attention")) };
    let caps = match caps_of(candidate.info) {
        Some(caps) if caps.sm >= 80 => caps,
        _ => return Some(Reason::lacking("needs compute capability 8.0")),
    };
    refuse_tensor_cores::<BF16>(op).or_else(|| match Shape::new(candidate.config, op.q.len, &caps) {
        Some(_) => None,
        None => Some(Reason::new("needs more shared memory than a block has")),
    })
}

/// How an op is cut up: tiles of rows of a unit (a sequence and a key/value head) and of all, and the blocks that share each.
struct Cut {
    tiles: usize,
    all: usize,
    splits: usize,
}

impl Cut {
    fn new(op: &Attention, shape: &Shape, caps: &CudaCaps) -> Self {
        let rows = longest(op) * (op.q.inner / op.kv.kv_heads);
        let tiles = rows.div_ceil(shape.rows).max(1);
        let all = tiles * op.kv.kv_heads * op.batch;
        let room = caps.multiprocessors as usize * shape.resident(caps);
        // a group has a tile at least
        let useful = op.kv.capacity / (shape.groups * shape.keys);
        Cut { tiles, all, splits: (room / all.max(1)).min(useful).clamp(1, SPLITS) }
    }
}

fn cost(candidate: &Candidate<'_>) -> f32 {
    let Op::Attention(op) = candidate.op else { return f32::INFINITY };
    let Some(caps) = caps_of(candidate.info) else { return f32::INFINITY };
    let Some(shape) = Shape::new(candidate.config, op.q.len, &caps) else { return f32::INFINITY };
    let cut = Cut::new(op, &shape, &caps);
    let rows = longest(op) * (op.q.inner / op.kv.kv_heads);
    // rows of padding are multiplied like others
    let padding = (cut.tiles * shape.rows) as f32 / rows.max(1) as f32;
    let rate = caps.multiprocessors as f32 * caps.clock_khz as f32 * 1e3 * 900.0;
    let waves =
        (cut.all * cut.splits) as f32 / (caps.multiprocessors as usize * shape.resident(&caps)) as f32;
    let share = if waves < 4.0 { waves / waves.ceil() } else { 1.0 };
    // tiles of a unit read the same keys, mostly from the second-level cache
    let bytes = op.bytes() as f32 * (0.75 + 0.25 * cut.tiles as f32);
    let busy = (bytes / (0.9 * caps.memory_rate as f32)).max(padding * op.flops() as f32 / rate);
    busy / share + if cut.splits > 1 { 7e-6 } else { 4e-6 }
}

fn prepare(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let op = op_of(request)?;
    let caps = caps(request)?;
    let shape = Shape::new(request.config, op.q.len, &caps).ok_or_else(|| refused(request))?;
    let number = |x: usize| x.to_string();
    let mut definitions = vec![
        ("HEAD_DIM", number(op.q.len)),
        ("WM", number(shape.along)),
        ("WN", number(shape.groups)),
        ("KEYS", number(shape.keys)),
        ("STAGES", number(shape.stages)),
    ];
    definitions.extend(type_definitions(op));
    let module = module(request, &cuda::ATTENTION_MMA, &definitions)?;
    let function = module.function("attention_mma")?;
    function.allow_shared(shape.shared as u32)?;
    let cut = Cut::new(op, &shape, &caps);
    let all = if is_empty(op) { 0 } else { cut.all };
    let group = op.q.inner / op.kv.kv_heads;
    let params = Params::new(op).tiled(group, cut.tiles, cut.splits, all * cut.splits);
    let threads = 32 * shape.along * shape.groups;
    let dims = Dims { shared: shape.shared as u32, ..Dims::line((all * cut.splits) as u32, threads as u32) };
    let mut pointers = pointers(op);
    if cut.splits == 1 {
        pointers.push(Pointer::Nothing);
        return launch(Steps::one(function, dims, params, pointers));
    }
    pointers.push(Pointer::Scratch(0));
    let scratch = (all * cut.splits * shape.rows) as u64 * (op.q.len as u64 + 4) * 4;
    let combine = module.function("attention_combine")?;
    let behind = Dims::line((all * shape.rows / 4) as u32, 128);
    let list = vec![
        Step { function, dims, params, pointers: pointers.clone() },
        Step { function: combine, dims: behind, params, pointers },
    ];
    launch(Steps { scratch, list })
}
