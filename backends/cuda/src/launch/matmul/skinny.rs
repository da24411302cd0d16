//! Few rows with weights that stream from memory: `shaders/cuda/matmul/skinny.cu`. [`plan`] says how work is split.

use super::super::{Body, Call, Dims, launch, module, param};
use super::{LAUNCH, Places, activation, gate, granularity, other_op, speed};
use crate::compile::Function;
use crate::device::CudaCaps;
use crate::launch::pack::{PANEL, step};
use bytemuck::{Pod, Zeroable};
use perjoule_kernels::op::{Epilogue, Granularity, MatMul, Op, Policy, Tensor2};
use perjoule_kernels::{
    Candidate, Config, DType, Kernel, Launch, Matrix, Numerics, PackFormat, Reason, Request, Result,
};
use perjoule_shaders::cuda::MATMUL_SKINNY;

static PLAIN: &[Config] = &[Config::tile("32x16", &[32, 16, 128])];
static PACKED: &[Config] = &[Config::tile("32x16", &[32, 16, 256])];

/// Types of weights.
pub(super) const WEIGHTS: [DType; 9] = [
    DType::BF16,
    DType::F16,
    DType::F8E4M3,
    DType::I8,
    DType::Q8_0,
    DType::Q4_0,
    DType::Q4K,
    DType::Q6K,
    DType::MxFp4,
];
pub(crate) const BF16: usize = 0;
pub(crate) const F16: usize = 1;
pub(crate) const F8E4M3: usize = 2;
pub(crate) const I8: usize = 3;
pub(crate) const Q8_0: usize = 4;
pub(crate) const Q4_0: usize = 5;
pub(crate) const Q4_K: usize = 6;
pub(crate) const Q6_K: usize = 7;
pub(crate) const MXFP4: usize = 8;

/// Most rows of A beside plain weights: many more are for kernels that read B once for a large tile of rows.
const MOST_ROWS: usize = 1024;

/// No less than the static shared memory of a block.
const STATIC: u32 = 1024;

/// Warps of a block.
const WARPS: usize = 8;

/// A row for weights of that type as they lie, k contiguous.
pub(crate) const fn plain<const WEIGHT: usize>(name: &'static str, op: &'static str) -> Kernel {
    Kernel::new(name, op, cost::<WEIGHT>, prepare::<WEIGHT>)
        .with_configs(PLAIN)
        .with_reject(reject::<WEIGHT>)
        .with_numerics(numerics::<WEIGHT>)
        .with_align(align)
}

/// A row for weights of that block format, packed.
pub(crate) const fn packed<const WEIGHT: usize>(
    name: &'static str,
    op: &'static str,
    packs: &'static [&'static PackFormat],
) -> Kernel {
    Kernel::new(name, op, cost::<WEIGHT>, prepare::<WEIGHT>)
        .with_configs(PACKED)
        .with_packs(packs)
        .with_reject(reject::<WEIGHT>)
        .with_numerics(numerics::<WEIGHT>)
        .with_align(align)
}

/// How the tensor cores multiply, and into how many parts A is split for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Math {
    /// `M_BF16`, `M_F16`, `M_TF32`, `M_S8` of the kernel.
    pub(super) kind: usize,
    pub(super) pieces: usize,
    /// Whether elements of A are rounded to bf16, by leave of the policy.
    pub(super) rounds: bool,
}

impl Math {
    /// Exact to f32, unless the policy allows rounding.
    pub(super) fn of(a: DType, b: DType, policy: Policy) -> Option<Self> {
        let exact = |kind, pieces| Some(Math { kind, pieces, rounds: false });
        match (a, b) {
            (DType::I8, DType::I8) => exact(3, 1),
            (DType::I8, _) | (_, DType::I8) => None,
            (DType::F16 | DType::F8E4M3, DType::F16) => exact(1, 1),
            (DType::BF16, DType::F16) => exact(2, 1),
            (_, DType::F16) => exact(2, 2),
            (DType::BF16 | DType::F8E4M3, _) => exact(0, 1),
            (DType::F16, b) if b != DType::BF16 => exact(1, 1),
            _ if policy.quantised_activations => Some(Math { kind: 0, pieces: 1, rounds: true }),
            _ => exact(0, 3),
        }
    }

    /// Bytes of an element of A in shared memory.
    fn element(&self) -> usize {
        [2, 2, 4, 1][self.kind]
    }
}

/// What the three ops have in common.
#[derive(Clone, Copy)]
pub(super) struct Form {
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) a: Tensor2,
    pub(super) b: Tensor2,
    pub(super) up: Option<Matrix>,
    pub(super) c: Matrix,
    pub(super) c_dtype: DType,
    pub(super) constant: bool,
    pub(super) a_scale: Option<Granularity>,
    pub(super) b_scale: Option<Granularity>,
    pub(super) policy: Policy,
    /// Experts and capacity of positions of a grouped product.
    pub(super) grouped: Option<(usize, usize)>,
}

impl Form {
    pub(super) fn of(op: &Op) -> Option<Self> {
        let of_matmul = |m: &MatMul| Form {
            m: m.m,
            n: m.n,
            k: m.k,
            a: m.a,
            b: m.b,
            up: None,
            c: m.c.strides,
            c_dtype: m.c.dtype,
            constant: m.b_constant,
            a_scale: m.a_scale,
            b_scale: m.b_scale,
            policy: m.policy,
            grouped: None,
        };
        match op {
            Op::MatMul(m) if m.batch == 1 => Some(of_matmul(m)),
            Op::GatedMatMul(g) => Some(Form {
                up: Some(g.up.b.strides),
                c: Matrix { row: g.gated.out.outer_stride, col: 1, batch: 0 },
                c_dtype: g.gated.out_dtype,
                ..of_matmul(&g.gate)
            }),
            Op::GroupedMatMul(g) => Some(Form {
                m: g.c_rows,
                n: g.n,
                k: g.k,
                a: g.a,
                b: g.b,
                up: None,
                c: g.c.strides,
                c_dtype: g.c.dtype,
                constant: g.b_constant,
                a_scale: None,
                b_scale: None,
                policy: g.policy,
                grouped: Some((g.experts, g.rows)),
            }),
            _ => None,
        }
    }

    pub(super) fn mats(&self) -> usize {
        1 + usize::from(self.up.is_some())
    }

    fn group_scales(&self) -> bool {
        let group = |scale| matches!(scale, Some(Granularity::Group(_)));
        group(self.a_scale) || group(self.b_scale)
    }

    /// Rows of A that multiply one matrix of B, as far as is known.
    pub(super) fn rows(&self) -> usize {
        match self.grouped {
            None => self.m,
            Some((experts, rows)) => rows.div_ceil(experts.max(1)),
        }
    }

    /// Whether rows of A are whole vectors of 16 bytes, where A lies at a multiple of `align` bytes.
    fn vectors(&self, align: u32) -> bool {
        let each = 16 / self.a.dtype.block_bytes();
        let one = self.m <= 1 && self.grouped.is_none();
        self.a.strides.col == 1
            && (one || self.a.strides.row.is_multiple_of(each))
            && self.k.is_multiple_of(each)
            && align >= 16
    }

    /// Bytes of B that are read once.
    pub(super) fn bytes(&self, pack: Option<&PackFormat>) -> f32 {
        let one = match pack {
            Some(pack) => pack.bytes(self.n, self.k).unwrap_or(0) as f32,
            None => self.n as f32 * self.k as f32 * self.b.dtype.block_bytes() as f32,
        };
        one * self.mats() as f32 * self.grouped.map_or(1, |(experts, rows)| experts.min(rows)) as f32
    }
}

/// How a product is split.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Plan {
    /// Tiles of eight columns of the instructions, for rows of A or pieces of them.
    tiles: usize,
    /// Whether pieces lie side by side.
    spread: bool,
    /// Rows of A that a block takes at a time.
    rows: usize,
    /// Warps of a block that share k.
    k_warps: usize,
    /// Blocks of a cluster, which share k.
    parts: usize,
    /// Clusters along x.
    groups: usize,
    /// Rows of A that a block keeps.
    tokens: usize,
    /// Bytes from one to the next in shared memory.
    pitch: usize,
    shared: usize,
}

/// The constants of a variant of the kernel.
struct Variant {
    /// Elements of k that a warp loads at once.
    unit: usize,
    /// Panels of 16 columns that a block multiplies together.
    panels: usize,
    k_warps: usize,
    /// Bytes of sums and of units on the way.
    fixed: usize,
    /// Whether two blocks share the registers of a multiprocessor.
    two: bool,
}

impl Variant {
    fn of(form: &Form, tiles: usize, deep: usize) -> Self {
        let (b, gated) = (form.b.dtype, form.up.is_some());
        let pair = (tiles == 4 || tiles == 8 && !b.is_block()) && !gated;
        let mats = if gated || pair { 2 } else { 1 };
        let (unit, bytes) = if b.is_block() {
            let (len, bytes) = step(b);
            let steps = if matches!(b, DType::Q4_0 | DType::MxFp4) && mats == 1 && tiles < 8 { 2 } else { 1 };
            (len * steps, bytes * steps)
        } else {
            (128 / b.block_bytes(), PANEL * 128)
        };
        let stage = WARPS * mats * bytes;
        let ring = if tiles <= 4 { 56 << 10 } else { 96 << 10 };
        let k_warps = match tiles {
            1 | 2 => WARPS,
            4 => 2,
            _ => 1,
        };
        let round = (4 / (tiles * mats)).max(1);
        let meeting = if gated { 2 } else { 1 };
        // sums of eight rows of 16 columns, in rows of 20 floats
        let sums = round * WARPS * meeting * tiles * 8 * 20 * 4;
        Variant {
            unit,
            panels: WARPS / k_warps * if pair { 2 } else { 1 },
            k_warps,
            fixed: sums + stage * (ring / stage).clamp(2, 8),
            two: tiles <= 2 && !form.group_scales() && !(b.is_block() && (gated || deep == 3)),
        }
    }
}

/// The tiles of A that fit, the parts of k by which they do and by which all multiprocessors have work.
fn plan(form: &Form, math: Math, caps: &CudaCaps) -> Option<Plan> {
    let rows = form.rows().max(1);
    let spread = |tiles| plan_of(form, math, caps, tiles, true).filter(|_| math.pieces > 1);
    if rows * math.pieces <= 16
        && let Some(plan) = spread((rows * math.pieces).div_ceil(8))
    {
        return Some(plan);
    }
    let few = form.grouped.is_some()
        || form.group_scales()
        || math.pieces == 3
        || form.up.is_some() && form.b.dtype.is_block();
    let most = if few { 2 } else { 8 };
    let wanted = [1, 2, 4, 8].into_iter().find(|t| t * 8 >= rows).unwrap_or(8).min(most);
    let mut fitting = [8, 4, 2, 1].into_iter().filter(|tiles| *tiles <= wanted);
    let whole = fitting.find_map(|tiles| plan_of(form, math, caps, tiles, false));
    // fewer rows at a time than an instruction has columns
    whole.or_else(|| spread(2)).or_else(|| spread(1))
}

fn plan_of(form: &Form, math: Math, caps: &CudaCaps, tiles: usize, spread: bool) -> Option<Plan> {
    let Variant { unit, panels, k_warps, fixed, two } =
        Variant::of(form, tiles, if spread { 1 } else { math.pieces });
    let units = form.k.div_ceil(unit);
    let rows = if spread { tiles * 8 / math.pieces } else { tiles * 8 };
    let tokens = match form.grouped {
        None => form.m.min(rows),
        Some(_) => rows,
    };
    let across = form.n.div_ceil(PANEL).div_ceil(panels);
    // (dynamic shared memory, bytes of a row of A)
    let shared = |parts: usize| {
        let range = units.div_ceil(parts) * unit;
        let pitch = (range * math.element()).next_multiple_of(128) + 64;
        let minima = if form.b.dtype == DType::Q4K { range / 32 * tiles * 8 * 4 } else { 0 };
        (fixed + minima + math.pieces * tokens * pitch, pitch)
    };
    let most = caps.shared.saturating_sub(STATIC) as usize;
    // a kilobyte of each block is the system's
    let half = (caps.shared_of_multiprocessor as usize / 2).saturating_sub(1024 + STATIC as usize).min(most);
    let multiprocessors = caps.multiprocessors as usize;
    let matrices = form.grouped.map_or(1, |(experts, rows)| experts.min(rows).max(1));
    let clusters = caps.sm >= 90;
    // parts of k: as few as let A fit, give three quarters of the multiprocessors work, and keep the copying of A short
    let search = |limit: usize| {
        let mut parts = 1;
        while clusters && parts < 8 {
            let staged = tokens * units.div_ceil(parts) * unit * form.a.dtype.block_bytes();
            let idle = across * parts * matrices * 4 < multiprocessors * 3;
            let wants = shared(parts).0 > limit || idle || staged > 64 << 10;
            if !wants || parts * 2 * k_warps > units.max(k_warps) {
                break;
            }
            parts *= 2;
        }
        parts
    };
    let mut parts = search(if two { half } else { most });
    if shared(parts).0 > half {
        parts = search(most);
        while clusters && parts < 8 && shared(parts).0 > most {
            parts *= 2;
        }
    }
    let (bytes, pitch) = shared(parts);
    if bytes > most {
        return None;
    }
    let resident = if two && bytes <= half { 2 } else { 1 };
    // blocks of an expert that has no rows end at once, so that the others may take all
    let groups = (multiprocessors * resident / parts).max(1).div_ceil(matrices);
    Some(Plan {
        tiles,
        spread,
        rows,
        k_warps,
        parts,
        groups: groups.min(across),
        tokens,
        pitch,
        shared: bytes,
    })
}

fn reject<const WEIGHT: usize>(candidate: &Candidate<'_>) -> Option<Reason> {
    let weight = WEIGHTS[WEIGHT];
    let Some(form) = Form::of(candidate.op) else {
        return Some(Reason::new("multiplies one pair of matrices"));
    };
    if super::has_unlike_biases(candidate.op) {
        return Some(Reason::new("adds biases of one type"));
    }
    let Some(caps) = candidate.info.caps::<CudaCaps>().filter(|caps| caps.sm >= 80) else {
        return Some(Reason::lacking("needs compute capability 8.0"));
    };
    if form.b.dtype != weight {
        return Some(Reason::new(format!("multiplies weights in {weight}")));
    }
    let Some(math) = Math::of(form.a.dtype, weight, form.policy) else {
        return Some(Reason::new(format!("does not multiply {} by {weight}", form.a.dtype)));
    };
    let sizes = [form.m, form.n, form.k];
    if sizes.contains(&0) || sizes.iter().any(|&size| size > i32::MAX as usize / 2) {
        return Some(Reason::new("needs sizes from 1 to 2^30"));
    }
    if !weight.is_block() {
        let size = weight.block_bytes();
        let whole = |elements: usize| (elements * size).is_multiple_of(16);
        let strides = |b: Matrix| b.row == 1 && whole(b.col) && whole(b.batch);
        if !(strides(form.b.strides) && form.up.is_none_or(strides) && whole(form.k)) {
            return Some(Reason::new("needs columns of B that are contiguous, in multiples of 16 bytes"));
        }
        if form.rows() > MOST_ROWS {
            return Some(Reason::new(format!("takes at most {MOST_ROWS} rows of A")));
        }
    }
    for scale in [form.a_scale, form.b_scale].into_iter().flatten() {
        if let Granularity::Group(group) = scale
            && (weight.is_block() || !group.is_multiple_of(128))
        {
            return Some(Reason::new("scales groups of multiples of 128 of k, beside plain weights"));
        }
    }
    if form.grouped.is_some_and(|(experts, rows)| experts.min(rows) > 65535) || form.m > 65535 {
        return Some(Reason::new("has no grid for so many rows"));
    }
    plan(&form, math, caps).is_none().then(|| Reason::new("keeps A in shared memory, where it does not fit"))
}

fn numerics<const WEIGHT: usize>(candidate: &Candidate<'_>) -> Numerics {
    let math = Form::of(candidate.op).and_then(|f| Math::of(f.a.dtype, WEIGHTS[WEIGHT], f.policy));
    match math {
        Some(math) if math.rounds => Numerics::F32.with_unit(DType::BF16.epsilon()),
        // tensor cores cut what they add to the bits of the largest
        _ => Numerics::F32.with_slack(2.0),
    }
}

fn align(candidate: &Candidate<'_>, operand: usize) -> u32 {
    let Some(form) = Form::of(candidate.op) else { return 1 };
    let known = candidate.alignment.of(0);
    match operand {
        0 if form.vectors(known) => 16,
        1 => 16,
        2 if form.up.is_some() => 16,
        _ => 1,
    }
}

fn cost<const WEIGHT: usize>(candidate: &Candidate<'_>) -> f32 {
    let speed = speed(candidate);
    let (Some(form), Some(caps)) = (Form::of(candidate.op), candidate.info.caps::<CudaCaps>()) else {
        return f32::INFINITY;
    };
    let Some(math) = Math::of(form.a.dtype, WEIGHTS[WEIGHT], form.policy) else { return f32::INFINITY };
    let Some(plan) = plan(&form, math, caps) else { return f32::INFINITY };
    let rows = form.rows().max(1);
    let passes = rows.div_ceil(plan.rows) as f32;
    let matrices = form.grouped.map_or(1, |(experts, rows)| experts.min(rows).max(1)) as f32;
    let pieces = if plan.spread { 1 } else { math.pieces };
    let padded = passes * (plan.tiles * 8) as f32 * matrices;
    // multiply-adds of mma.sync in a cycle of a multiprocessor: about 600 of 16 bits
    let instructions = padded * form.n as f32 * form.k as f32 * (pieces * form.mats()) as f32;
    let rate = if math.kind == 2 { 300.0 } else { 600.0 };
    let arithmetic = instructions / (rate * speed.multiprocessors * speed.clock);
    // all passes but the first come from the second-level cache, half of them at best
    let memory = form.bytes(candidate.pack) * (1.0 + 0.5 * (passes - 1.0)) / (0.85 * speed.memory);
    // barriers of clusters, a block alone on its multiprocessor, and A on its way to shared memory: measured on an H200 with 8, 16 and 64 rows
    let alone = if rows <= 4 { 1.0 } else { [1.12, 2.4, 3.0, 3.6][plan.tiles.ilog2() as usize] };
    LAUNCH + 1e-6 + memory.max(arithmetic) * alone
}

/// Laid out as the kernel's.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    a_row: i64,
    a_col: i64,
    b_stride: i64,
    up_stride: i64,
    b_batch: i64,
    c_row: i64,
    c_col: i64,
    residual_row: i64,
    residual_col: i64,
    a_group: i64,
    b_group: i64,
    m: u32,
    n: u32,
    k: u32,
    tokens: u32,
    pitch: u32,
    a_dtype: u32,
    c_dtype: u32,
    bias_dtype: u32,
    residual_dtype: u32,
    a_scale: u32,
    b_scale: u32,
    has_bias: u32,
    has_up_bias: u32,
    has_residual: u32,
    activation: u32,
    gate: u32,
    scale: f32,
    alpha: f32,
    limit: f32,
    a_vectors: u32,
    b_constant: u32,
    experts: u32,
    rows: u32,
    a_rows: u32,
    a_divisor: u32,
    pad: u32,
}

struct Skinny {
    function: Function,
    params: Params,
    places: Places,
    dims: Dims,
    grouped: bool,
}

fn prepare<const WEIGHT: usize>(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let weight = WEIGHTS[WEIGHT];
    let (Some(form), Some(caps)) = (Form::of(request.op), request.info.caps::<CudaCaps>()) else {
        return Err(other_op(request.op));
    };
    let math = Math::of(form.a.dtype, weight, form.policy);
    let found = math.and_then(|math| Some((math, plan(&form, math, caps)?)));
    let Some((math, plan)) = found else { return Err(other_op(request.op)) };
    let define = |value: usize| value.to_string();
    let defines = [
        ("WEIGHT", define(WEIGHT.saturating_sub(1))),
        ("MATH", define(math.kind)),
        ("PIECES", define(math.pieces)),
        ("SPREAD", define(plan.spread.into())),
        ("TILES", define(plan.tiles)),
        ("KWARPS", define(plan.k_warps)),
        ("GATED", define(form.mats() - 1)),
        ("GROUPED", define(form.grouped.is_some().into())),
        ("GROUP_SCALES", define(form.group_scales().into())),
    ];
    let function = module(request, &MATMUL_SKINNY, &defines)?.function("skinny")?;
    // all plans of a variant share the function, and the last word on it: as much as any of them takes
    function.allow_shared(caps.shared.saturating_sub(STATIC))?;
    let params = params(request, &form, &plan);
    let y = match form.grouped {
        None => form.m.div_ceil(plan.rows),
        Some((experts, rows)) => experts.min(rows),
    };
    let dims = Dims {
        grid: [(plan.groups * plan.parts) as u32, y as u32, 1],
        block: [WARPS as u32 * 32, 1, 1],
        shared: plan.shared as u32,
        cluster: plan.parts as u32,
        early: caps.sm >= 90,
    };
    let places = Places::of(request.op);
    launch(Skinny { function, params, places, dims, grouped: form.grouped.is_some() })
}

/// Bytes from a column of B to the next, or from a packed panel; and of a whole matrix.
fn strides(form: &Form, b: Matrix, pack: Option<&'static PackFormat>) -> (i64, i64) {
    match pack {
        Some(pack) => {
            let panel = (pack.panel_bytes)(form.k).unwrap_or(0) as i64;
            (panel, panel * form.n.div_ceil(PANEL) as i64)
        }
        None => {
            let size = form.b.dtype.block_bytes();
            ((b.col * size) as i64, (b.batch * size) as i64)
        }
    }
}

fn params(request: &Request<'_>, form: &Form, plan: &Plan) -> Params {
    let (b_stride, b_batch) = strides(form, form.b.strides, request.pack);
    let up_stride = form.up.map_or(0, |up| strides(form, up, request.pack).0);
    let ((a_scale, a_group), (b_scale, b_group)) = (granularity(form.a_scale), granularity(form.b_scale));
    let plain = Epilogue::default();
    let (epilogue, up_bias, gated, grouped) = match request.op {
        Op::MatMul(op) => (op.epilogue, None, None, None),
        Op::GatedMatMul(op) => (op.gate.epilogue, op.up.epilogue.bias, Some(op.gated.kind), None),
        Op::GroupedMatMul(op) => {
            (Epilogue { bias: op.bias, activation: op.activation, ..plain }, None, None, Some(op))
        }
        _ => (plain, None, None, None),
    };
    let (gate, alpha, limit) = gated.map_or((0, 0.0, 0.0), gate);
    let residual = epilogue.residual;
    Params {
        a_row: form.a.strides.row as i64,
        a_col: form.a.strides.col as i64,
        b_stride,
        up_stride,
        b_batch,
        c_row: form.c.row as i64,
        c_col: form.c.col as i64,
        residual_row: residual.map_or(0, |r| r.strides.row as i64),
        residual_col: residual.map_or(0, |r| r.strides.col as i64),
        a_group,
        b_group,
        m: form.m as u32,
        n: form.n as u32,
        k: form.k as u32,
        tokens: plan.tokens as u32,
        pitch: plan.pitch as u32,
        a_dtype: form.a.dtype as u32,
        c_dtype: form.c_dtype as u32,
        bias_dtype: epilogue.bias.or(up_bias).unwrap_or(DType::F32) as u32,
        residual_dtype: residual.map_or(DType::F32, |r| r.dtype) as u32,
        a_scale,
        b_scale,
        has_bias: epilogue.bias.is_some().into(),
        has_up_bias: up_bias.is_some().into(),
        has_residual: residual.is_some().into(),
        activation: activation(epilogue.activation),
        gate,
        scale: epilogue.scale,
        alpha,
        limit,
        a_vectors: form.vectors(request.alignment.of(0)).into(),
        b_constant: (form.constant || request.pack.is_some()).into(),
        experts: grouped.map_or(0, |g| g.experts as u32),
        rows: grouped.map_or(0, |g| g.rows as u32),
        a_rows: grouped.map_or(0, |g| g.a_rows as u32),
        a_divisor: grouped.map_or(1, |g| g.a_divisor.min(i32::MAX as usize) as u32),
        pad: 0,
    }
}

impl Body for Skinny {
    fn reads_early(&self) -> [Option<usize>; 2] {
        match self.params.b_constant != 0 && !self.grouped {
            true => [Some(1), self.places.up],
            false => [None, None],
        }
    }

    fn run(&self, call: &mut Call<'_>) -> Result<()> {
        let places = &self.places;
        let at = |place: Option<usize>| place.map_or(0, |index| call.operand(index));
        let (a, b, c) = (call.operand(0), call.operand(1), call.operand(places.c));
        let (a_scale, b_scale) = (at(places.a_scale), at(places.b_scale));
        let (up, bias, up_bias, residual) =
            (at(places.up), at(places.bias), at(places.up_bias), at(places.residual));
        let (offsets, order) = if self.grouped { (call.operand(2), call.operand(3)) } else { (0, 0) };
        call.start(
            &self.function,
            self.dims,
            &[
                param(&self.params),
                param(&a),
                param(&b),
                param(&up),
                param(&a_scale),
                param(&b_scale),
                param(&bias),
                param(&up_bias),
                param(&residual),
                param(&offsets),
                param(&order),
                param(&c),
            ],
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use perjoule_kernels::op::MatMul;

    fn caps(sm: u32, shared: u32, of_multiprocessor: u32) -> CudaCaps {
        CudaCaps {
            sm,
            multiprocessors: 132,
            shared,
            shared_of_multiprocessor: of_multiprocessor,
            threads: 2048,
            l2: 50 << 20,
            clock_khz: 1_980_000,
            memory_rate: 4_800_000_000_000,
        }
    }

    fn planned(caps: &CudaCaps, m: usize, n: usize, k: usize, a: DType, b: DType) -> Option<Plan> {
        let op = Op::MatMul(MatMul::linear(m, n, k, a, b, DType::F32));
        let form = Form::of(&op)?;
        plan(&form, Math::of(a, b, form.policy)?, caps)
    }

    #[test]
    fn layers_of_llama_fit_on_hopper() {
        let caps = caps(90, 232_448, 233_472);
        let layers =
            [(4096, 4096), (1024, 4096), (14336, 4096), (4096, 14336), (128_256, 4096), (8192, 28672)];
        for (n, k) in layers {
            for m in [1, 2, 5, 8, 16, 33, 64] {
                for b in WEIGHTS.into_iter().filter(|b| *b != DType::I8) {
                    for a in [DType::F32, DType::BF16] {
                        let plan = planned(&caps, m, n, k, a, b);
                        let plan = plan.unwrap_or_else(|| panic!("{m} x {n} x {k}, {a} by {b}"));
                        assert!(plan.shared + STATIC as usize <= 232_448, "{plan:?}");
                        assert!((1..=132 * 2).contains(&(plan.groups * plan.parts)), "{plan:?}");
                        assert!(plan.rows >= 1 && plan.tokens <= m.min(plan.rows), "{plan:?}");
                        assert_eq!(plan.pitch % 128, 64, "{plan:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn pieces_of_few_rows_lie_side_by_side() {
        let caps = caps(90, 232_448, 233_472);
        let of = |m, a, b| planned(&caps, m, 4096, 4096, a, b).unwrap();
        for (m, rows, tiles) in [(1, 2, 1), (2, 2, 1), (3, 5, 2), (5, 5, 2)] {
            let plan = of(m, DType::F32, DType::BF16);
            assert_eq!((plan.spread, plan.rows, plan.tiles), (true, rows, tiles), "{m}");
        }
        assert!(!of(6, DType::F32, DType::BF16).spread);
        assert!(of(8, DType::F32, DType::F16).spread, "two pieces of eight rows");
        assert!(!of(1, DType::BF16, DType::BF16).spread);
    }

    #[test]
    fn without_clusters_k_is_not_shared() {
        let caps = caps(80, 166_912, 167_936);
        for m in [1, 8, 64] {
            if let Some(plan) = planned(&caps, m, 4096, 4096, DType::BF16, DType::BF16) {
                assert_eq!(plan.parts, 1);
                assert!(plan.shared + STATIC as usize <= 166_912);
            }
        }
        assert!(planned(&caps, 1, 4096, 4096, DType::BF16, DType::Q4K).is_some());
        // a row of A that no shared memory holds
        assert_eq!(planned(&caps, 8, 4096, 1 << 20, DType::F32, DType::BF16), None);
    }
}
