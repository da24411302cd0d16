//! Attention: what its rows share.
//!
//! | file | holds |
//! |---|---|
//! | [`generic`] | the row for everything, by online softmax |
//! | [`decode`], [`prefill`], [`map`] | rows for few and for many queries on Hopper, by tensor copies |
//! | [`mma`] | rows for f16 and bf16 on the tensor cores of every GPU since Ampere, keys split over blocks |

pub(crate) mod decode;
pub(crate) mod generic;
mod map;
pub(crate) mod mma;
pub(crate) mod prefill;

use super::steps::Pointer;
use crate::device::CudaCaps;
use bytemuck::{Pod, Zeroable};
use perjoule_kernels::op::{Attention, Op};
use perjoule_kernels::{Candidate, DType, DeviceInfo, Error, Numerics, Reason, Request, Result};

/// The kernels' `Attention`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
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
    pack: i32,
    tiles: i32,
    splits: i32,
    items: i32,
}

impl Params {
    /// Those of an op, of which [`refuse_sizes`] has nothing to say.
    fn new(op: &Attention) -> Self {
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
            pack: 1,
            tiles: 1,
            splits: 1,
            items: 1,
        }
    }

    /// The same for kernels whose rows are pairs of a query and one of `pack` heads, in tiles, their keys split into parts.
    fn tiled(self, pack: usize, tiles: usize, splits: usize, items: usize) -> Self {
        Params { pack: pack as i32, tiles: tiles as i32, splits: splits as i32, items: items as i32, ..self }
    }
}

/// Most query rows of a sequence: none has more than there are, whatever a ragged op allows.
fn longest(op: &Attention) -> usize {
    op.q_len.min(op.q.outer)
}

/// Whether there is nothing to compute.
fn is_empty(op: &Attention) -> bool {
    op.batch == 0 || longest(op) == 0 || op.q.inner == 0
}

/// Kernels count in 32 bits, and number their blocks so.
fn refuse_sizes(op: &Attention) -> Option<Reason> {
    let most = i32::MAX as usize / 4;
    let rows = op.q.outer.checked_mul(op.q.inner);
    let units = op.batch.checked_mul(op.q.inner);
    let sizes = [rows, units, Some(op.kv.capacity), Some(op.q.len)];
    let fits = sizes.iter().all(|size| size.is_some_and(|size| size <= most));
    (!fits).then(|| Reason::new("counts query vectors, keys and heads in 32 bits"))
}

/// The op of a request.
fn op_of<'a>(request: &Request<'a>) -> Result<&'a Attention> {
    match request.op {
        Op::Attention(op) => Ok(op),
        other => {
            Err(Error::Unsupported { what: "this op", why: format!("{} is not attention", other.name()) })
        }
    }
}

/// What rows know of the GPU; `None` where it is none of this backend.
fn caps_of(info: &DeviceInfo) -> Option<CudaCaps> {
    info.caps::<CudaCaps>().copied()
}

/// The same where a row was accepted, so that it is one.
fn caps(request: &Request<'_>) -> Result<CudaCaps> {
    caps_of(request.info).ok_or_else(|| refused(request))
}

/// What nobody sees: rows refuse before they are prepared.
fn refused(request: &Request<'_>) -> Error {
    Error::Unsupported { what: "this attention", why: format!("{} was not asked first", request.op.name()) }
}

/// The operands that every kernel of attention takes, in its order: q, k, v, kv_len, q_offsets, block_table, sinks, out.
fn pointers(op: &Attention) -> Vec<Pointer> {
    let mut operand = 3;
    let mut next = |present: bool| {
        operand += usize::from(present);
        Pointer::some(present.then_some(operand))
    };
    let mut list: Vec<Pointer> = (0..4).map(Pointer::Operand).collect();
    list.extend([next(op.ragged), next(op.kv.paging.is_some()), next(op.sinks)]);
    list.push(Pointer::Operand(out_of(op)));
    list
}

/// Where `out` stands.
fn out_of(op: &Attention) -> usize {
    let optional = [op.ragged, op.kv.paging.is_some(), op.sinks];
    4 + optional.iter().filter(|present| **present).count()
}

/// What tensor cores do not do: other types than one of 16 bits, to which queries may have to be rounded, other lengths of heads, vectors that lie anywhere.
fn refuse_tensor_cores<const BF16: bool>(op: &Attention) -> Option<Reason> {
    let dtype = if BF16 { DType::BF16 } else { DType::F16 };
    let others = [op.q_dtype, op.out_dtype];
    if op.kv_dtype != dtype || others.iter().any(|&other| other != dtype && other != DType::F32) {
        return Some(Reason::new(format!(
            "runs caches of {dtype} with queries and results of {dtype} or f32"
        )));
    }
    if op.q_dtype == DType::F32 && !op.policy.quantised_activations {
        return Some(Reason::new("rounds queries, which the policy does not allow (quantised_activations)"));
    }
    if ![64, 128, 256].contains(&op.q.len) {
        return Some(Reason::new("runs heads of 64, 128 and 256 elements"));
    }
    refuse_sizes(op).or_else(|| misaligned(op))
}

/// Definitions of kernels for one 16-bit type: its name as a type and in instructions, and whether scores are more than scaled by a
/// positive number.
fn type_definitions(op: &Attention) -> [(&'static str, String); 5] {
    let name_of = |dtype| match dtype {
        DType::F16 => "f16",
        DType::BF16 => "bf16",
        _ => "float",
    };
    let name = name_of(op.kv_dtype);
    let plain = op.soft_cap.is_none() && op.scale > 0.0;
    [
        ("SCORES", u8::from(!plain).to_string()),
        ("TYPE", name.to_string()),
        ("Q_TYPE", name_of(op.q_dtype).to_string()),
        ("OUT_TYPE", name_of(op.out_dtype).to_string()),
        ("TYPE_NAME", format!("\"{name}\"")),
    ]
}

/// Rows that round weights to the type of the values: half a unit in its last place, of each.
fn rounded_weights(Candidate { op, .. }: &Candidate<'_>) -> Numerics {
    let unit = match op {
        Op::Attention(op) if op.kv_dtype == DType::F16 => 1.0 / 4096.0,
        _ => 1.0 / 512.0,
    };
    Numerics::F32.with_unit(unit).flushing_subnormals()
}

/// Vectors are moved 16 bytes at a time.
fn align(Candidate { op, .. }: &Candidate<'_>, operand: usize) -> u32 {
    match op {
        Op::Attention(op) if operand < 3 || operand == out_of(op) => 16,
        _ => 1,
    }
}

/// Whether strides of 16-bit elements keep vectors at multiples of 16 bytes.
fn misaligned(op: &Attention) -> Option<Reason> {
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
