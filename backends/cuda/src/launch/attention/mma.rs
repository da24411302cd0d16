//! Attention by `mma.sync`: packed rows of a group of heads, and keys split over blocks where units are few. `shaders/cuda/attention/mma.cu`
//! says how.

use super::{
    Params, align, caps_of, is_empty, longest, misaligned, op_of, pointers, refuse_sizes, rounded_weights,
    type_names,
};
use crate::device::CudaCaps;
use crate::launch::steps::{Pointer, Step, Steps};
use crate::launch::{Dims, launch, module};
use perjoule_kernels::op::{Attention, Op, Spec};
use perjoule_kernels::{Candidate, Config, DType, Kernel, Launch, Reason, Request, Result};
use perjoule_shaders::cuda;

/// Tiles are rows of a block, and keys of a group's tile. Parameters are those of [`Shape`].
static CONFIGS: &[Config] = &[
    Config { name: "16", tile: &[16, 16, 64], params: &[1, 1, 8, 16, 3] },
    Config { name: "32", tile: &[32, 16, 64], params: &[2, 1, 4, 16, 3] },
    Config { name: "64", tile: &[64, 16, 64], params: &[2, 2, 4, 16, 4] },
    Config { name: "128", tile: &[128, 32, 64], params: &[1, 8, 1, 32, 3] },
];

/// Most blocks that share a unit: by a cluster (beyond 8 the GPU must allow it), and by scratch.
const CLUSTER: usize = 16;
const SPLITS: usize = 64;

/// What a configuration makes of a block.
#[derive(Clone, Copy)]
struct Shape {
    /// Fragments of 16 rows of a warp, warps along the rows, groups of warps along the keys.
    fragments: usize,
    along: usize,
    groups: usize,
    /// Keys of a tile, and tiles of a ring.
    keys: usize,
    stages: usize,
}

impl Shape {
    fn new(config: &Config) -> Self {
        let at = |i: usize| config.params.get(i).copied().unwrap_or(1);
        Shape { fragments: at(0), along: at(1), groups: at(2), keys: at(3), stages: at(4) }
    }

    fn rows(&self) -> usize {
        16 * self.fragments * self.along
    }

    fn threads(&self) -> usize {
        32 * self.along * self.groups
    }

    /// Bytes of shared memory: rings, or the groups' results in their place; then what blocks of a cluster receive.
    fn shared(&self, head_dim: usize, cluster: bool) -> usize {
        let ring = self.groups * self.stages * 2 * self.keys * head_dim * 2;
        let results = self.groups * self.rows() * (head_dim + 6) * 4;
        let received = if cluster { self.rows() * (head_dim + 2) * 4 } else { 0 };
        ring.max(results) + received
    }
}

/// A row for f16 or bf16 whose blocks share keys as clusters, or by scratch.
pub(crate) const fn row<const BF16: bool, const CLUSTERS: bool>(name: &'static str) -> Kernel {
    Kernel::new(name, "attention", cost::<CLUSTERS>, prepare::<CLUSTERS>)
        .with_configs(CONFIGS)
        .with_reject(reject::<BF16, CLUSTERS>)
        .with_numerics(rounded_weights)
        .with_align(align)
}

fn reject<const BF16: bool, const CLUSTERS: bool>(candidate: &Candidate<'_>) -> Option<Reason> {
    let Op::Attention(op) = candidate.op else { return Some(Reason::new("runs attention")) };
    let shape = Shape::new(candidate.config);
    let caps = caps_of(candidate.info)?;
    let least = if CLUSTERS { 90 } else { 80 };
    if caps.sm < least {
        return Some(Reason::new(format!("needs compute capability {}.{}", least / 10, least % 10)));
    }
    let dtype = if BF16 { DType::BF16 } else { DType::F16 };
    if [op.q_dtype, op.kv_dtype, op.out_dtype] != [dtype; 3] {
        return Some(Reason::new(format!("runs {dtype} throughout")));
    }
    if ![64, 128, 256].contains(&op.q.len) {
        return Some(Reason::new("runs heads of 64, 128 and 256 elements"));
    }
    if op.q.len == 256 && shape.fragments > 1 {
        return Some(Reason::new("has registers for heads of at most 128 elements"));
    }
    if shape.shared(op.q.len, CLUSTERS) > caps.shared as usize {
        return Some(Reason::new("needs more shared memory than a block has"));
    }
    refuse_sizes(op).or_else(|| misaligned(op))
}

/// Units of an op, and the blocks that share each.
fn units(op: &Attention, shape: Shape) -> (usize, usize) {
    let rows = longest(op) * (op.q.inner / op.kv.kv_heads);
    let tiles = rows.div_ceil(shape.rows()).max(1);
    (tiles, tiles * op.kv.kv_heads * op.batch)
}

fn splits<const CLUSTERS: bool>(op: &Attention, shape: Shape, blocks: usize) -> usize {
    let (_, units) = units(op, shape);
    let wanted = blocks / units.max(1);
    // a group has a tile at least
    let useful = op.kv.capacity / (shape.groups * shape.keys);
    let most = if CLUSTERS { CLUSTER.min(shape.rows()) } else { SPLITS };
    let splits = wanted.min(useful).clamp(1, most);
    if CLUSTERS { 1 << splits.ilog2() } else { splits }
}

fn cost<const CLUSTERS: bool>(candidate: &Candidate<'_>) -> f32 {
    let Op::Attention(op) = candidate.op else { return f32::INFINITY };
    let Some(caps) = caps_of(candidate.info) else { return f32::INFINITY };
    let shape = Shape::new(candidate.config);
    let resident = resident(&caps, shape.shared(op.q.len, CLUSTERS));
    let room = caps.multiprocessors as usize * resident;
    let splits = splits::<CLUSTERS>(op, shape, room);
    let (tiles, units) = units(op, shape);
    let rows = longest(op) * (op.q.inner / op.kv.kv_heads);
    // rows of padding are multiplied like others
    let padding = (tiles * shape.rows()) as f32 / rows.max(1) as f32;
    let rate = caps.multiprocessors as f32 * caps.clock_khz as f32 * 1e3 * 1400.0;
    let waves = (units * splits) as f32 / room as f32;
    let share = waves / waves.ceil();
    let bytes = op.bytes() as f32 * tiles.max(1) as f32 / (if tiles > 1 { 4.0 } else { 1.0 });
    let busy =
        (bytes / (0.85 * caps.memory_rate as f32)).max(padding * candidate.op.flops() as f32 / rate) / share;
    busy + if splits == 1 {
        3e-6
    } else if CLUSTERS {
        4e-6
    } else {
        6e-6
    }
}

/// Blocks with so much shared memory that a multiprocessor holds.
fn resident(caps: &CudaCaps, shared: usize) -> usize {
    (caps.shared_of_multiprocessor as usize / (shared + 1024)).clamp(1, 2)
}

fn prepare<const CLUSTERS: bool>(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let op = op_of(request)?;
    let shape = Shape::new(request.config);
    let (name, suffix) = type_names(op.q_dtype).unwrap_or(("bf16", "\"bf16\""));
    let plain = op.soft_cap.is_none() && op.scale > 0.0;
    let shared = shape.shared(op.q.len, CLUSTERS);
    let caps = caps_of(request.info);
    let resident = caps.map_or(1, |caps| resident(&caps, shared));
    let number = |x: usize| x.to_string();
    let module = module(
        request,
        &cuda::ATTENTION_MMA,
        &[
            ("HEAD_DIM", number(op.q.len)),
            ("MT", number(shape.fragments)),
            ("WM", number(shape.along)),
            ("WN", number(shape.groups)),
            ("KEYS", number(shape.keys)),
            ("STAGES", number(shape.stages)),
            ("CLUSTER", number(usize::from(CLUSTERS))),
            ("RESIDENT", number(1)),
            ("SCORES", number(usize::from(!plain))),
            ("EARLY", number(0)),
            ("AHEAD", number(8)),
            ("TYPE", name.to_string()),
            ("TYPE_NAME", suffix.to_string()),
        ],
    )?;
    let function = module.function("attention_mma")?;
    function.allow_shared(shared as u32)?;
    let room = caps.map_or(1, |caps| caps.multiprocessors as usize) * resident;
    let (tiles, units) = units(op, shape);
    let splits = splits::<CLUSTERS>(op, shape, room);
    if CLUSTERS && splits > 8 {
        function.allow_large_clusters()?;
    }
    let combine = match !CLUSTERS && splits > 1 {
        true => Some(module.function("attention_combine")?),
        false => None,
    };
    let scratch = match combine {
        Some(_) => units as u64 * splits as u64 * shape.rows() as u64 * (op.q.len as u64 + 4) * 4,
        None => 0,
    };
    let units = if is_empty(op) { 0 } else { units };
    let group = op.q.inner / op.kv.kv_heads;
    let params = Params::new(op).tiled(group, tiles, splits, units * splits);
    let mut dims = Dims::line((units * splits) as u32, shape.threads() as u32);
    dims.shared = shared as u32;
    dims.cluster = if CLUSTERS { splits as u32 } else { 1 };
    let mut pointers = pointers(op);
    pointers.push(if scratch > 0 { Pointer::Scratch(0) } else { Pointer::Nothing });
    let mut list = vec![Step { function, dims, params, pointers: pointers.clone() }];
    if let Some(function) = combine {
        let dims = Dims::line((units * shape.rows() / 4) as u32, 128);
        list.push(Step { function, dims, params, pointers });
    }
    launch(Steps { scratch, list })
}
