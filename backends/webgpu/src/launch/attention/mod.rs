//! Attention: what its rows share.
//!
//! | file | holds |
//! |---|---|
//! | [`generic`] | the row for everything, by online softmax |
//! | [`tiles`], [`splits`] | rows for many and for few queries, through workgroup memory |
//! | [`lanes`] | the row for adapters that compute on the CPU |

pub(crate) mod generic;
pub(crate) mod lanes;
pub(crate) mod splits;
pub(crate) mod tiles;

use super::kv::slot_places;
use super::rows::{KvParam, RowsParam, caps, refuse};
use super::{Place, other_op};
use crate::launch::limits::full;
use crate::shader::Binding;
use bytemuck::{Pod, Zeroable};
use perjoule_kernels::op::{Attention, Op};
use perjoule_kernels::{Alignment, Candidate, DType, Reason, Request, Result};
use perjoule_shaders::{Source, wgsl};

/// What stands before the sources of all rows but the generic one.
const HEADERS: &[&Source] = &[
    &wgsl::ELEMENT,
    &wgsl::LAYOUT,
    &wgsl::MATH,
    &wgsl::SLOTS,
    &wgsl::ATTENTION_SLOTS,
    &wgsl::ATTENTION_SOFTMAX,
];

/// Elements of the longest heads that rows other than the generic one run.
const LONGEST_HEAD: usize = 256;

/// The kernels' `Attention`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct AttentionParam {
    q: RowsParam,
    out: RowsParam,
    kv: KvParam,
    q_len: u32,
    tokens: u32,
    heads: u32,
    group: u32,
    causal: u32,
    window: u32,
    scale: f32,
    soft_cap: f32,
}

impl From<&Attention> for AttentionParam {
    fn from(op: &Attention) -> Self {
        AttentionParam {
            q: op.q.into(),
            out: op.out.into(),
            kv: op.kv.into(),
            q_len: longest(op) as u32,
            tokens: op.q.outer as u32,
            heads: op.q.inner as u32,
            group: (op.q.inner / op.kv.kv_heads) as u32,
            causal: op.causal.into(),
            // windows behind every position hide nothing
            window: op.window.filter(|&w| w <= i32::MAX as usize).map_or(0, |w| w as u32),
            scale: op.scale,
            soft_cap: op.soft_cap.unwrap_or(0.0),
        }
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

/// Kernels count in 32 bits, and add lengths to numbers of rows.
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
        other => Err(other_op(other)),
    }
}

/// The slots and sinks as kernels of attention bind them: kv_len, q_offsets, block_table, sinks.
fn slot_bindings(op: &Attention) -> Vec<Binding> {
    let mut list = super::kv::slot_bindings(op.ragged, op.kv.paging.is_some());
    list.push(Binding::get("sinks", DType::F32).when(op.sinks));
    list
}

/// The operands in the order of the kernels, which is that of the op: q, k, v, the slots, sinks, out.
fn places(op: &Attention) -> Vec<Place> {
    let mut list: Vec<Place> = (0..3).map(Place::Operand).collect();
    let slots = slot_places(op.ragged, op.kv.paging.is_some(), 3);
    let mut next = 3 + slots.len();
    list.extend(slots);
    if op.sinks {
        list.push(Place::Operand(next));
        next += 1;
    }
    list.push(Place::Operand(next));
    list
}

/// Where `out` stands among the operands.
fn out_of(op: &Attention) -> usize {
    4 + [op.ragged, op.kv.paging.is_some(), op.sinks].iter().filter(|present| **present).count()
}

/// Whether vectors begin at multiples of four elements within the operands of queries, of keys and values, and of results.
fn fours(op: &Attention) -> [bool; 3] {
    let all = |strides: &[usize]| op.q.len.is_multiple_of(4) && strides.iter().all(|s| s.is_multiple_of(4));
    let kv = op.kv;
    [
        all(&[op.q.outer_stride, op.q.inner_stride]),
        all(&[kv.batch_stride, kv.head_stride, kv.token_stride]),
        all(&[op.out.outer_stride, op.out.inner_stride]),
    ]
}

/// Bytes to whose multiple an operand lies that is accessed four elements at a time, 16 bytes being asked for where fewer would do.
const WHOLE: u32 = 16;

/// Which operands (queries, keys, values, results) can be accessed four elements at a time, by what the caller knows of where they lie.
fn whole(op: &Attention, alignment: Alignment) -> [bool; 4] {
    let known = |operand: usize| alignment.of(operand) >= WHOLE;
    // what is empty has no place for four elements
    let kv = !op.kv_dtype.is_block() && op.kv.extent(op.batch).is_some_and(|extent| extent > 0);
    [known(0), known(1) && kv, known(2) && kv, known(out_of(op))].map(|whole| whole && !is_empty(op))
}

/// Bytes to whose multiple kernels need an operand that use what [`whole`] says.
fn align(candidate: &Candidate<'_>, operand: usize) -> u32 {
    let Op::Attention(op) = candidate.op else { return 1 };
    let [q, k, v, out] = whole(op, candidate.alignment);
    let there = match operand {
        0 => q,
        1 => k,
        2 => v,
        _ => out && operand == out_of(op),
    };
    if there { WHOLE } else { 1 }
}

/// The operands as kernels bind them that access four elements at a time where they can: q, k, v, slots, sinks, out.
fn quad_bindings(op: &Attention, alignment: Alignment) -> Vec<Binding> {
    let [q, k, v, out] = whole(op, alignment);
    let mut list = vec![
        Binding::quads("q", op.q_dtype, q),
        Binding::quads("k", op.kv_dtype, k),
        Binding::quads("v", op.kv_dtype, v),
    ];
    list.extend(slot_bindings(op));
    list.push(Binding::quads_mut("out", op.out_dtype, out));
    list
}

/// How much slower kernels made for GPUs are on adapters that compute on the CPU: a middling GPU is what predictions are about.
fn slowness(candidate: &Candidate<'_>) -> f32 {
    if caps(candidate.info).is_some_and(|caps| caps.software) { 1000.0 } else { 1.0 }
}

/// The share of a device's rate that so many invocations reach: few leave a GPU idle.
fn busy(candidate: &Candidate<'_>, invocations: f32) -> f32 {
    let full = full(candidate);
    if caps(candidate.info).is_some_and(|caps| caps.software) {
        1.0
    } else {
        (invocations / full).clamp(0.02, 1.0)
    }
}

/// What kernels do not run that access four elements at a time.
fn refuse_fours(candidate: &Candidate<'_>, op: &Attention) -> Option<Reason> {
    if op.q.len > LONGEST_HEAD || fours(op).contains(&false) {
        return Some(Reason::new("runs heads of up to 256 elements that begin at multiples of four"));
    }
    refuse_sizes(op).or_else(|| refuse(candidate))
}
