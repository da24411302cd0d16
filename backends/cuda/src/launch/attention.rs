//! Attention: what its rows share, and the generic one, which runs every form of it.

use super::{Body, Call, Dims, launch, module, param};
use crate::compile::Function;
use crate::device::CudaCaps;
use bytemuck::{Pod, Zeroable};
use perjoule_kernels::op::{Attention, Op};
use perjoule_kernels::{Candidate, Config, DType, Error, Kernel, Launch, Numerics, Reason, Request, Result};
use perjoule_shaders::cuda;

/// The kernels' `Attention`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct Params {
    q_outer: i64,
    q_inner: i64,
    out_outer: i64,
    out_inner: i64,
    kv_batch: i64,
    kv_head: i64,
    kv_token: i64,
    window: i64,
    batch: i32,
    q_len: i32,
    tokens: i32,
    heads: i32,
    group: i32,
    head_dim: i32,
    capacity: i32,
    block: i32,
    blocks: i32,
    table_width: i32,
    causal: i32,
    q_dtype: u32,
    kv_dtype: u32,
    out_dtype: u32,
    scale: f32,
    soft_cap: f32,
    splits: i32,
    items: i32,
}

impl Params {
    /// Those of an op, of which [`refuse_sizes`] has nothing to say.
    pub(super) fn new(op: &Attention) -> Self {
        // what that function has looked at
        let int = |x: usize| x as i32;
        let long = |x: usize| x as i64;
        let paging = op.kv.paging;
        Params {
            q_outer: long(op.q.outer_stride),
            q_inner: long(op.q.inner_stride),
            out_outer: long(op.out.outer_stride),
            out_inner: long(op.out.inner_stride),
            kv_batch: long(op.kv.batch_stride),
            kv_head: long(op.kv.head_stride),
            kv_token: long(op.kv.token_stride),
            // windows behind every position hide nothing
            window: op.window.filter(|&w| w <= i32::MAX as usize).map_or(0, long),
            batch: int(op.batch),
            q_len: int(longest(op)),
            tokens: int(op.q.outer),
            heads: int(op.q.inner),
            group: int(op.q.inner / op.kv.kv_heads),
            head_dim: int(op.q.len),
            capacity: int(op.kv.capacity),
            block: paging.map_or(0, |p| int(p.block.min(op.kv.capacity.max(1)))),
            blocks: paging.map_or(0, |p| int(p.blocks)),
            table_width: int(op.kv.blocks_per_sequence()),
            causal: i32::from(op.causal),
            q_dtype: op.q_dtype as u32,
            kv_dtype: op.kv_dtype as u32,
            out_dtype: op.out_dtype as u32,
            scale: op.scale,
            soft_cap: op.soft_cap.unwrap_or(0.0),
            splits: 1,
            items: 1,
        }
    }

    /// The same for so many parts of the keys, and so many work items, as the kernel counts them.
    pub(super) fn with(self, splits: usize, items: usize) -> Self {
        Params { splits: splits as i32, items: items as i32, ..self }
    }
}

/// Most query rows of a sequence: none has more than there are, whatever a ragged op allows.
pub(super) fn longest(op: &Attention) -> usize {
    op.q_len.min(op.q.outer)
}

/// Whether there is nothing to compute.
pub(super) fn is_empty(op: &Attention) -> bool {
    op.batch == 0 || longest(op) == 0 || op.q.inner == 0
}

/// Kernels count in 32 bits, and number their blocks so.
pub(super) fn refuse_sizes(op: &Attention) -> Option<Reason> {
    let most = i32::MAX as usize / 4;
    let rows = op.q.outer.checked_mul(op.q.inner);
    let units = op.batch.checked_mul(op.q.inner);
    let sizes = [rows, units, Some(op.kv.capacity), Some(op.q.len)];
    let fits = sizes.iter().all(|size| size.is_some_and(|size| size <= most));
    (!fits).then(|| Reason::new("counts query vectors, keys and heads in 32 bits"))
}

/// The op of a request.
pub(super) fn op_of<'a>(request: &Request<'a>) -> Result<&'a Attention> {
    match request.op {
        Op::Attention(op) => Ok(op),
        other => {
            Err(Error::Unsupported { what: "this op", why: format!("{} is not attention", other.name()) })
        }
    }
}

/// What rows know of the GPU.
pub(super) fn caps_of(info: &perjoule_kernels::DeviceInfo) -> Option<CudaCaps> {
    info.caps::<CudaCaps>().copied()
}

/// Where the operands of an op stand that not every op has.
#[derive(Clone, Copy)]
pub(super) struct Operands {
    offsets: Option<usize>,
    table: Option<usize>,
    sinks: Option<usize>,
    out: usize,
}

impl Operands {
    pub(super) fn new(op: &Attention) -> Self {
        let mut operand = 3;
        let mut next = |present: bool| {
            operand += usize::from(present);
            present.then_some(operand)
        };
        let (offsets, table, sinks) = (next(op.ragged), next(op.kv.paging.is_some()), next(op.sinks));
        Operands { offsets, table, sinks, out: operand + 1 }
    }

    /// Addresses of q, k, v, kv_len, q_offsets, block_table, sinks and out; 0 where there is none.
    pub(super) fn addresses(&self, call: &Call<'_>) -> [u64; 8] {
        let optional = |index: Option<usize>| index.map_or(0, |index| call.operand(index));
        [
            call.operand(0),
            call.operand(1),
            call.operand(2),
            call.operand(3),
            optional(self.offsets),
            optional(self.table),
            optional(self.sinks),
            call.operand(self.out),
        ]
    }
}

static CONFIGS: &[Config] = &[Config::tile("1x32", &[1, 32, 64])];

/// The row for everything.
pub(crate) const ROW: Kernel = Kernel::new("attention_any_1x32_cuda_any", "attention", cost, prepare)
    .with_configs(CONFIGS)
    .with_reject(reject);

fn reject(Candidate { op, .. }: &Candidate<'_>) -> Option<Reason> {
    let Op::Attention(op) = op else { return Some(Reason::new("runs attention")) };
    refuse_sizes(op)
}

fn cost(Candidate { op, .. }: &Candidate<'_>) -> f32 {
    2e-5 + op.bytes() as f32 / 100e9 + op.flops() as f32 / 1e12
}

/// Blocks for each sequence and head: about as many in all as there are rows.
fn blocks(op: &Attention) -> usize {
    let longest = longest(op);
    if op.ragged { (2 * op.q.outer).div_ceil(op.batch.max(1)).clamp(1, longest.max(1)) } else { longest }
}

struct Generic {
    params: Params,
    operands: Operands,
    function: Function,
    grid: u32,
}

fn prepare(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let op = op_of(request)?;
    let function = module(request, &cuda::ATTENTION_GENERIC, &[])?.function("attention_generic")?;
    let items = blocks(op);
    let params = Params::new(op).with(1, items);
    // four times as many vectors fit, and ragged ops have twice as many blocks at most
    let grid = if is_empty(op) { 0 } else { (items * op.batch * op.q.inner) as u32 };
    launch(Generic { params, operands: Operands::new(op), function, grid })
}

impl Body for Generic {
    fn run(&self, call: &mut Call<'_>) -> Result<()> {
        let at = self.operands.addresses(call);
        let [q, k, v, kv_len, offsets, table, sinks, out] = at.each_ref().map(param);
        let params = [param(&self.params), q, k, v, kv_len, offsets, table, sinks, out];
        call.start(&self.function, Dims::line(self.grid, 128), &params)
    }
}

/// Types that tensor cores multiply as they are, with their names in the kernels: the type, and the suffix of instructions.
pub(super) fn type_names(dtype: DType) -> Option<(&'static str, &'static str)> {
    match dtype {
        DType::F16 => Some(("f16", "\"f16\"")),
        DType::BF16 => Some(("bf16", "\"bf16\"")),
        _ => None,
    }
}

/// Rows that round weights to the type of the values: half a unit in its last place, of each.
pub(super) fn rounded_weights(Candidate { op, .. }: &Candidate<'_>) -> Numerics {
    let unit = match op {
        Op::Attention(op) if op.kv_dtype == DType::F16 => 1.0 / 4096.0,
        _ => 1.0 / 512.0,
    };
    Numerics::F32.with_unit(unit).flushing_subnormals()
}

/// Vectors are moved 16 bytes at a time.
pub(super) fn align(Candidate { op, .. }: &Candidate<'_>, operand: usize) -> u32 {
    match op {
        Op::Attention(op) if operand < 3 || operand == Operands::new(op).out => 16,
        _ => 1,
    }
}

/// Whether strides of 16-bit elements keep vectors at multiples of 16 bytes.
pub(super) fn misaligned(op: &Attention) -> Option<Reason> {
    let kv = op.kv;
    let strides = [
        op.q.outer_stride,
        op.q.inner_stride,
        op.out.outer_stride,
        op.out.inner_stride,
        kv.batch_stride,
        kv.head_stride,
        kv.token_stride,
    ];
    let fits = strides.iter().all(|stride| stride.is_multiple_of(8) && *stride < 1 << 40);
    (!fits).then(|| Reason::new("needs strides that are multiples of 16 bytes"))
}
