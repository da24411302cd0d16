//! `C = epilogue(A B)`: the blocked rows. [`any`] holds the simple row that runs everything else.
//!
//! All lanes pack A into tiles of words in the shared scratch; after a barrier they claim tasks, each a block of rows times a few panels of
//! B: first those whose rows they have packed, which need not come from another core's caches. Which lane computes a task does not change
//! its result: results depend on the shape and the row alone, not on the threads.
//!
//! | file | holds |
//! |---|---|
//! | [`tile`] | the micro-kernel |
//! | [`driver`] | the blocked loop around it, and the epilogue |
//! | [`direct`] | rows that pack nothing, for small products |
//! | [`dots`] | rows without panels, for few rows or columns |
//! | [`quantised`] | block formats beside activations of 8 bits; [`quantised_pack`] packs them |
//! | [`amx`] | tiles of AMX |
//! | [`integers`] | products of i8 |
//! | [`gated`] | two products with a gated activation between them |
//! | [`operand`] | A, how it is packed, and what surrounds C, by element type |
//! | [`source`] | B, packed or plain |
//! | [`pairs`] | B and A in words of two bf16 |
//! | [`any`] | the simple portable row |

pub(crate) mod amx;
pub(crate) mod any;
pub(crate) mod direct;
pub(crate) mod dots;
pub(crate) mod driver;
pub(crate) mod gated;
pub(crate) mod integers;
mod interleave;
pub(crate) mod operand;
pub(crate) mod pairs;
pub(crate) mod quantised;
pub(crate) mod quantised_pack;
mod slab;
pub(crate) mod source;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod tile;

use crate::device::lanes;
use crate::launch::body::{Body, on, other_op};
use crate::simd::{self, Element, Simd};
use crate::spmd::{Args, Out};
use crate::team::Lane;
use amx::{Kind, PackedTiles, PlainTiles};
use driver::{BLOCK_ROWS, DEPTH, Finish, Plan, Results, RowAt, Scales, Tiles, block};
use half::bf16;
use operand::{Floats, FloatsOut, PackFloats, Singles, Words, words};
use pairs::{PackedPairs, PlainPairs, Rounded};
use perjoule_kernels::op::{Granularity, MatMul, Op, Policy};
use perjoule_kernels::{
    Candidate, Config, DType, Error, Kernel, Launch, Numerics, PackFormat, Reason, Request, Result,
};
use quantised::{Blocks, PackedBlocks};
use slab::Slabs;
use source::{Format, Packed, Plain, Source};
use std::marker::PhantomData;
use std::ops::Range;
use tile::{MOST_ROWS, columns, max_rows};

/// Elements along k of a tile of A that one lane packs at a time: whole words.
pub(crate) const PACK_DEPTH: usize = 512;

/// A row that reads B packed in panels of `T`.
pub(crate) const fn packed<S: Simd, T: Element>(
    name: &'static str,
    configs: &'static [Config],
    packs: &'static [&'static PackFormat],
) -> Kernel {
    Kernel::new(name, "matmul", cost::<S>, prepare::<S, Packed<T>>)
        .with_configs(configs)
        .with_packs(packs)
        .with_reject(reject::<S, T>)
}

/// A row that reads B as the op lays it out.
pub(crate) const fn plain<S: Simd>(name: &'static str, configs: &'static [Config]) -> Kernel {
    Kernel::new(name, "matmul", cost_plain::<S>, prepare::<S, Plain>)
        .with_configs(configs)
        .with_reject(reject_plain::<S>)
}

/// A row that reads B packed in pairs of bf16, beside an A in f32.
pub(crate) const fn halves<S: Simd>(
    name: &'static str,
    configs: &'static [Config],
    packs: &'static [&'static PackFormat],
) -> Kernel {
    Kernel::new(name, "matmul", cost::<S>, prepare::<S, PackedPairs<Singles>>)
        .with_configs(configs)
        .with_packs(packs)
        .with_reject(reject::<S, bf16>)
}

/// A row that multiplies pairs of bf16 and reads B packed in them.
pub(crate) const fn pairs<S: Simd>(
    name: &'static str,
    configs: &'static [Config],
    packs: &'static [&'static PackFormat],
) -> Kernel {
    Kernel::new(name, "matmul", cost_pairs::<S>, prepare::<S, PackedPairs<Rounded>>)
        .with_configs(configs)
        .with_packs(packs)
        .with_numerics(numerics_pairs::<S>)
        .with_reject(reject_pairs::<S>)
}

/// A row that multiplies pairs of bf16 and reads B as the op lays it out.
pub(crate) const fn plain_pairs<S: Simd>(name: &'static str, configs: &'static [Config]) -> Kernel {
    Kernel::new(name, "matmul", cost_plain_pairs::<S>, prepare::<S, PlainPairs>)
        .with_configs(configs)
        .with_numerics(numerics_pairs::<S>)
        .with_reject(reject_plain_pairs::<S>)
}

/// A row that multiplies tiles of AMX.
pub(crate) const fn tiles<S: Simd, K: Kind<A: PackFloats>>(
    name: &'static str,
    configs: &'static [Config],
    packs: &'static [&'static PackFormat],
) -> Kernel {
    Kernel::new(name, "matmul", cost_tiles::<S>, prepare::<S, PackedTiles<K>>)
        .with_configs(configs)
        .with_packs(packs)
        .with_numerics(numerics_pairs::<S>)
        .with_reject(reject_tiles::<S, K>)
}

/// A row that multiplies tiles of AMX and reads B as the op lays it out.
pub(crate) const fn plain_tiles<S: Simd, K: Kind<A: PackFloats>>(
    name: &'static str,
    configs: &'static [Config],
) -> Kernel {
    Kernel::new(name, "matmul", cost_plain_tiles::<S>, prepare::<S, PlainTiles<K, PlainPairs>>)
        .with_configs(configs)
        .with_numerics(numerics_pairs::<S>)
        .with_reject(reject_plain_tiles::<S, K>)
}

fn reject_plain_tiles<S: Simd, K: Kind>(candidate: &Candidate<'_>) -> Option<Reason> {
    reject_plain_pairs::<S>(candidate).or_else(|| amx::refusal::<K>(candidate.info))
}

fn reject_tiles<S: Simd, K: Kind>(candidate: &Candidate<'_>) -> Option<Reason> {
    reject_pairs::<S>(candidate).or_else(|| amx::refusal::<K>(candidate.info))
}

/// How many multiplications tiles do while a vector's lane does one.
pub(crate) const TILES: usize = 16;

fn cost_tiles<S: Simd>(Candidate { op, info, .. }: &Candidate<'_>) -> f32 {
    let Op::MatMul(m) = op else { return f32::INFINITY };
    blocked_in::<S>(op, [m.batch, m.m.next_multiple_of(16), m.n, m.k], TILES, false, lanes(info))
}

fn cost_plain_tiles<S: Simd>(candidate: &Candidate<'_>) -> f32 {
    let Op::MatMul(m) = candidate.op else { return f32::INFINITY };
    cost_tiles::<S>(candidate) + rounding_plain::<S>(m, candidate)
}

/// A row that reads B packed in blocks of `Q`, and quantises A to 8 bits.
pub(crate) const fn quantised<S: Simd, Q: Blocks>(
    name: &'static str,
    configs: &'static [Config],
    packs: &'static [&'static PackFormat],
) -> Kernel {
    Kernel::new(name, "matmul", cost_quantised::<S, Q>, prepare::<S, PackedBlocks<Q>>)
        .with_configs(configs)
        .with_packs(packs)
        .with_numerics(|_| QUANTISED)
        .with_reject(reject_quantised::<S, Q>)
}

/// Rounding activations to 8 bits within blocks of 32: half of a 127th of the largest of them, which is no bound by the terms where
/// the others are much smaller.
pub(crate) const QUANTISED: Numerics = Numerics::F32.with_unit(1.0 / 254.0);

fn reject_quantised<S: Simd, Q: Blocks>(Candidate { op, info, .. }: &Candidate<'_>) -> Option<Reason> {
    let Op::MatMul(op) = op else { return Some(Reason::new("runs matmul")) };
    refuse_quantising::<Q>(op.b.dtype, op.policy).or_else(|| refuse(op)).or_else(|| simd::refusal::<S>(info))
}

/// Why activations are not quantised beside such a B.
pub(crate) fn refuse_quantising<Q: Blocks>(b: DType, policy: Policy) -> Option<Reason> {
    (b != Q::DTYPE).then(|| Reason::new(format!("reads b in {}", Q::DTYPE))).or_else(|| {
        (!policy.quantised_activations).then(|| {
            Reason::new("quantises activations, which the policy does not allow (quantised_activations)")
        })
    })
}

/// Vector instructions that a step of `Q` takes beside those of each row, as steps of words.
pub(crate) fn unpacking<Q: Blocks>() -> f32 {
    match Q::DTYPE {
        DType::Q8_0 => 4.0,
        DType::Q6K => 20.0,
        _ => 9.0,
    }
}

fn cost_quantised<S: Simd, Q: Blocks>(Candidate { op, info, .. }: &Candidate<'_>) -> f32 {
    let Op::MatMul(m) = op else { return f32::INFINITY };
    quantised_in::<S, Q>(op, [m.batch, m.m, m.n, m.k], lanes(info))
}

/// Seconds of products with blocks of `Q`: eight dot products and three instructions more a step, and unpacking for every tile.
pub(crate) fn quantised_in<S: Simd, Q: Blocks>(op: &Op, [batch, m, n, k]: [usize; 4], lanes: usize) -> f32 {
    let tiles = m.div_ceil(max_rows::<S>()).max(1);
    // sums of bytes that soon leave 16 bits are as slow as those of f32, and rounded besides
    let dots = match (S::DOT_QUADS, S::DOT_CODES, Q::WIDE || Q::SPLIT) {
        (true, ..) => 11.0,
        (_, true, false) => 27.0,
        (_, true, true) => 34.0,
        _ => 48.0,
    };
    let each = dots + unpacking::<Q>() * tiles as f32 / m.max(1) as f32;
    // in steps of words of an element
    let words = (k / quantised::STEP) as f32 * each;
    blocked_in::<S>(op, [batch, m, n, words as usize], 1, false, lanes)
}

fn reject_pairs<S: Simd>(Candidate { op, info, .. }: &Candidate<'_>) -> Option<Reason> {
    let Op::MatMul(op) = op else { return Some(Reason::new("runs matmul")) };
    refuse_b::<bf16>(op.b.dtype)
        .or_else(|| refuse(op))
        .or_else(|| refuse_rounding(op.a.dtype, op.b.dtype, op.policy))
        .or_else(|| simd::refusal::<S>(info))
}

fn reject_plain_pairs<S: Simd>(Candidate { op, info, .. }: &Candidate<'_>) -> Option<Reason> {
    let Op::MatMul(op) = op else { return Some(Reason::new("runs matmul")) };
    refuse(op)
        .or_else(|| refuse_rounding(op.a.dtype, op.b.dtype, op.policy))
        .or_else(|| simd::refusal::<S>(info))
}

/// Why such operands are not rounded to bf16.
pub(crate) fn refuse_rounding(a: DType, b: DType, policy: Policy) -> Option<Reason> {
    if b != DType::BF16 && !b.is_block() {
        return Some(Reason::new("multiplies bf16, to which it rounds block formats only"));
    }
    let exact = a == DType::BF16 && b == DType::BF16;
    (!exact && !policy.quantised_activations)
        .then(|| Reason::new("rounds to bf16, which the policy does not allow (quantised_activations)"))
}

/// How pairs round on `S`: instructions may take subnormal numbers for zero.
pub(crate) fn rounding<S: Simd>(a: DType, b: DType) -> Numerics {
    let exact = a == DType::BF16 && b == DType::BF16;
    // 2^-9 is the unit roundoff of bf16: of A, and of B where it is in blocks
    let units = if b == DType::BF16 { 1.0 } else { 2.0 };
    let unit = if exact { S::PAIRS_UNIT } else { units / 512.0 };
    Numerics::F32.with_unit(unit).flushing_subnormals()
}

fn numerics_pairs<S: Simd>(Candidate { op, .. }: &Candidate<'_>) -> Numerics {
    match op {
        Op::MatMul(op) => rounding::<S>(op.a.dtype, op.b.dtype),
        _ => Numerics::F32,
    }
}

fn reject<S: Simd, T: Element>(Candidate { op, info, .. }: &Candidate<'_>) -> Option<Reason> {
    let Op::MatMul(op) = op else { return Some(Reason::new("runs matmul")) };
    refuse_b::<T>(op.b.dtype).or_else(|| refuse(op)).or_else(|| simd::refusal::<S>(info))
}

fn reject_plain<S: Simd>(Candidate { op, info, .. }: &Candidate<'_>) -> Option<Reason> {
    let Op::MatMul(op) = op else { return Some(Reason::new("runs matmul")) };
    refuse(op).or_else(|| simd::refusal::<S>(info))
}

fn refuse(op: &MatMul) -> Option<Reason> {
    refuse_a(op.a.dtype).or_else(|| refuse_scales(op))
}

/// Why no row that scales whole sums runs such a product.
fn refuse_scales(op: &MatMul) -> Option<Reason> {
    let grouped = |scale: Option<Granularity>| matches!(scale, Some(Granularity::Group(_)));
    (grouped(op.a_scale) || grouped(op.b_scale)).then(|| Reason::new("takes no scales of groups along k"))
}

/// Why no blocked row multiplies such an A.
pub(crate) fn refuse_a(dtype: DType) -> Option<Reason> {
    (dtype == DType::I8).then(|| Reason::new("multiplies floats, not i8"))
}

/// Why a row whose B is packed from `T` does not read such a B.
pub(crate) fn refuse_b<T: Element>(dtype: DType) -> Option<Reason> {
    (dtype != T::DTYPE).then(|| Reason::new(format!("reads b in {}", T::DTYPE)))
}

/// Multiply-adds a second that a lane of the team reaches on `S`.
fn rate<S: Simd>() -> f32 {
    // two FMAs a cycle; separate instructions, in portable code
    let a_cycle = if S::NAME == "portable" { 1.0 } else { 2.0 };
    a_cycle * S::LANES as f32 * 2e9
}

/// Bytes a second that a lane of the team reads.
const BANDWIDTH: f32 = 1e10;

/// Seconds to begin and end a launch with two barriers.
const OVERHEAD: f32 = 3e-6;

/// Seconds to claim a task and to go through its loops.
const TASK: f32 = 6e-8;

/// Seconds to round an element of B to bf16 in a panel.
pub(crate) const ROUNDING: f32 = 1e-10;

/// Seconds for an element of B that is widened into a panel: contiguous along n, along k, in blocks.
pub(crate) fn widening(b: &perjoule_kernels::op::Tensor2) -> f32 {
    match () {
        () if b.dtype.is_block() => 7e-10,
        () if b.strides.col == 1 => 2e-10,
        () if b.strides.row == 1 => 4e-10,
        () => 1.2e-9,
    }
}

/// Seconds of `batch` products of `m` rows in the blocked loop. It computes whole panels, and packs the rows of A.
pub(crate) fn blocked<S: Simd>(op: &Op, sizes: [usize; 4], in_place: bool, lanes: usize) -> f32 {
    blocked_in::<S>(op, sizes, 1, in_place, lanes)
}

/// The same with `per` elements along k in a word.
pub(crate) fn blocked_in<S: Simd>(
    op: &Op,
    [batch, m, n, k]: [usize; 4],
    per: usize,
    in_place: bool,
    lanes: usize,
) -> f32 {
    let nr = columns::<S>();
    let panels = n.div_ceil(nr);
    let blocks = batch as f32 * m.div_ceil(BLOCK_ROWS) as f32;
    let rows = batch as f32 * m as f32;
    let computed = rows * (panels * nr) as f32 * k.div_ceil(per) as f32 / rate::<S>();
    let packing = if in_place { 0.0 } else { rows * k as f32 * 5e-10 };
    // a panel has one lane
    let busy = (blocks * panels as f32).clamp(1.0, lanes as f32);
    let finishing = rows * panels as f32 * 1e-8 + blocks * TASK;
    OVERHEAD
        + (computed + finishing).max(op.bytes() as f32 / BANDWIDTH * (busy / lanes as f32)) / busy
        + packing / lanes as f32
}

/// Whether a single row of A is read where it lies, being packed as it is.
fn in_place<A: Words>(op: &MatMul) -> bool {
    A::IN_PLACE && op.m == 1 && op.a.dtype == DType::F32 && op.a.strides.col == 1
}

pub(crate) fn cost<S: Simd>(Candidate { op, info, .. }: &Candidate<'_>) -> f32 {
    let Op::MatMul(m) = op else { return f32::INFINITY };
    blocked::<S>(op, [m.batch, m.m, m.n, m.k], in_place::<Singles>(m), lanes(info))
}

fn cost_pairs<S: Simd>(Candidate { op, info, .. }: &Candidate<'_>) -> f32 {
    let Op::MatMul(m) = op else { return f32::INFINITY };
    blocked_in::<S>(op, [m.batch, m.m, m.n, m.k], Rounded::PER, false, lanes(info))
}

fn cost_plain_pairs<S: Simd>(candidate: &Candidate<'_>) -> f32 {
    let Op::MatMul(m) = candidate.op else { return f32::INFINITY };
    cost_pairs::<S>(candidate) + rounding_plain::<S>(m, candidate)
}

/// Seconds to bring a plain B into panels of bf16, once for all blocks.
fn rounding_plain<S: Simd>(m: &MatMul, candidate: &Candidate<'_>) -> f32 {
    let panels = m.n.div_ceil(columns::<S>());
    let blocks = m.batch as f32 * m.m.div_ceil(BLOCK_ROWS) as f32;
    let elements = m.batch as f32 * m.n as f32 * m.k as f32;
    let busy = (blocks * panels as f32).clamp(1.0, lanes(candidate.info) as f32);
    elements * (widening(&m.b) + ROUNDING) / busy
}

fn cost_plain<S: Simd>(candidate: &Candidate<'_>) -> f32 {
    let Op::MatMul(m) = candidate.op else { return f32::INFINITY };
    let panels = m.n.div_ceil(columns::<S>());
    let blocks = m.batch as f32 * m.m.div_ceil(BLOCK_ROWS) as f32;
    // short vectors move less at a time
    let elements = m.batch as f32 * m.n as f32 * m.k as f32 * (1.0 + 4.0 / S::LANES as f32);
    // the last vector of a row of B may be short, and is then loaded element by element
    let short =
        if m.b.strides.col == 1 && !m.n.is_multiple_of(S::LANES) { blocks * m.k as f32 * 8e-9 } else { 0.0 };
    let busy = (blocks * panels as f32).clamp(1.0, lanes(candidate.info) as f32);
    cost::<S>(candidate) + (elements * widening(&m.b) + short) / busy
}

fn prepare<S: Simd, F: Format<A: PackFloats>>(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let Op::MatMul(op) = request.op else { return Err(other_op(request.op)) };
    let overflow = Error::Overflow { op: "matmul", what: "the scratch" };
    let rows = op.batch.checked_mul(op.m).ok_or(overflow.clone())?;
    let plan = Plan::new::<S, F::A>(rows, op.k, request.info);
    let packed = if in_place::<F::A>(op) { 0 } else { plan.round };
    let slabs = Slabs::new::<S, F::Source<'static>>(&plan, op.m, op.n, op.k);
    let scratch = plan.scratch(packed).and_then(|bytes| bytes.checked_add(4 * slabs.len() as u64));
    let scratch = scratch.ok_or(overflow)?;
    on::<S>(request, Product::<F> { op: *op, plan, packed, slabs, scratch, format: PhantomData })
}

/// What happens to the sums of a product; `None` for dtypes that `reject` rules out.
fn finish<'a>(op: &MatMul, args: &'a Args) -> Option<Finish<'a>> {
    let mut next = 1;
    let mut operand = |present: bool| {
        next += usize::from(present);
        present.then_some(next)
    };
    let a_scale = operand(op.a_scale.is_some()).map(|i| args.read::<f32>(i));
    let b_scale = operand(op.b_scale.is_some()).map(|i| args.read::<f32>(i));
    let bias = match op.epilogue.bias {
        Some(dtype) => Some(Floats::of(args, operand(true)?, dtype)?),
        None => None,
    };
    let residual = match op.epilogue.residual {
        Some(r) => Some((Floats::of(args, operand(true)?, r.dtype)?, r.strides)),
        None => None,
    };
    let (scale, activation) = (op.epilogue.scale, op.epilogue.activation);
    let out = FloatsOut::of(args, next + 1, op.c.dtype)?;
    let scales = Scales { a: a_scale, b: b_scale, columns: op.b_scale == Some(Granularity::Vector) };
    Some(Finish { out, strides: op.c.strides, scale, activation, bias, residual, scales })
}

/// Where a row of C lies, and what surrounds it.
fn row_at(op: &MatMul, finish: &Finish<'_>, batch: usize, row: usize) -> RowAt {
    let at = |granularity: Option<Granularity>, vectors: usize, vector: usize| {
        granularity.map_or(0, |g| op.scale_index(g, vectors, batch, vector, 0))
    };
    RowAt {
        out: op.c.strides.at(batch, row, 0),
        residual: finish.residual.as_ref().map_or(0, |(_, m)| m.at(batch, row, 0)),
        bias: 0,
        a_scale: at(op.a_scale, op.m, row),
        b_scale: at(op.b_scale, op.n, 0),
    }
}

/// Packs the rows of the tiles `tiles` of each matrix in `batch` into the beginning of the scratch, one tile after the other, in items
/// that lanes share.
struct Packing<'p, 'a> {
    op: &'p MatMul,
    a: &'p Floats<'a>,
    all: Tiles,
    batch: Range<usize>,
    tiles: Range<usize>,
    scratch: Out<'p, f32>,
}

impl Packing<'_, '_> {
    /// How many items there are.
    fn items(&self) -> usize {
        self.batch.len() * self.tiles.len() * self.op.k.div_ceil(PACK_DEPTH)
    }

    /// Packs one of them, which must be one lane's.
    #[inline(always)]
    fn item<S: Simd, A: PackFloats>(&self, s: S, item: usize) {
        let Packing { op, a, all, batch, tiles, scratch } = self;
        let slices = op.k.div_ceil(PACK_DEPTH);
        let first_row = all.start(tiles.start);
        let rows = all.start(tiles.end) - first_row;
        let (index, k0) = (item / slices, item % slices * PACK_DEPTH);
        let (matrix, tile) = (index / tiles.len(), all.rows(tiles.start + index % tiles.len()));
        let ks = k0..(k0 + PACK_DEPTH).min(op.k);
        let at = (matrix * rows + tile.start - first_row) * words::<A>(op.k);
        let place = words::<A>(ks.start)..words::<A>(ks.end);
        // SAFETY: words of a tile are one range, and every item is one lane's.
        let part = unsafe { scratch.slice(at + place.start * tile.len()..at + place.end * tile.len()) };
        let mut starts = [None; MOST_ROWS];
        for (start, row) in starts.iter_mut().zip(tile.clone()) {
            *start = Some(op.a.strides.at(batch.start + matrix, row, 0));
        }
        A::pack(s, a, &starts[..tile.len()], op.a.strides.col, ks, part);
    }
}

/// Whether a product is over in microseconds, and its operands in the caches of one core.
pub(crate) fn short(op: &MatMul) -> bool {
    let op = Op::from(*op);
    op.flops() <= 2 * 64 * 64 * 64 && op.bytes() <= 64 << 10
}

/// The body of the blocked rows.
struct Product<F> {
    op: MatMul,
    plan: Plan,
    /// Rows of A that are packed at a time; 0 where a single row of f32 is read in place, being packed as it is.
    packed: usize,
    slabs: Slabs,
    scratch: u64,
    format: PhantomData<fn() -> F>,
}

impl<F: Format<A: PackFloats>> Body for Product<F> {
    fn scratch(&self) -> u64 {
        self.scratch
    }

    fn short(&self) -> bool {
        short(&self.op)
    }

    #[inline(always)]
    fn run<S: Simd>(&self, s: S, lane: &Lane<'_>, args: &Args) {
        let op = &self.op;
        if op.batch == 0 || op.m == 0 || op.n == 0 {
            return;
        }
        let a = Floats::of(args, 0, op.a.dtype);
        let (Some(a), Some(b), Some(finish)) = (a, F::source(args, 1, op.b, op.n, op.k), finish(op, args))
        else {
            return;
        };
        let tiles = self.plan.tiles::<S, F::A>(op.m);
        let blocks = tiles.blocks();
        // a round is as many whole matrices as fit, or else a part of one
        let matrices = (self.plan.round / op.m).clamp(1, op.batch);
        let at_once = self.plan.at_once(op.m, blocks);
        for first in (0..op.batch).step_by(matrices) {
            let batch = first..(first + matrices).min(op.batch);
            for block0 in (0..blocks).step_by(at_once) {
                let round = Round { a: &a, b: &b, finish: &finish, tiles, batch: batch.clone() };
                let last = (block0 + at_once).min(blocks);
                self.round(s, lane, args, round, block0..last);
                if batch.end < op.batch || last < blocks {
                    lane.barrier(); // the next round overwrites the packed A
                }
            }
        }
    }
}

/// What the rounds of a launch share.
struct Round<'r, 'a, B> {
    a: &'r Floats<'a>,
    b: &'r B,
    finish: &'r Finish<'a>,
    tiles: Tiles,
    batch: Range<usize>,
}

impl<F: Format<A: PackFloats>> Product<F> {
    /// The blocks `blocks` of each matrix of the round's batch.
    fn round<S: Simd, B: Source<A = F::A>>(
        &self,
        s: S,
        lane: &Lane<'_>,
        args: &Args,
        round: Round<'_, '_, B>,
        blocks: Range<usize>,
    ) {
        let (op, plan, all) = (&self.op, &self.plan, round.tiles);
        let tiles = all.block(blocks.start).start..all.block(blocks.end - 1).end;
        let scratch = args.scratch::<f32>();
        let packing = Packing { op, a: round.a, all, batch: round.batch.clone(), tiles, scratch };
        let items = if self.packed > 0 { packing.items() } else { 0 };
        let panels = op.n.div_ceil(columns::<S>());
        if self.slabs.len() == 0 {
            if self.packed > 0 {
                lane.share(items).for_each(|item| packing.item::<S, F::A>(s, item));
                lane.barrier();
            }
            self.panels(s, lane, args, &round, round.b, round.batch.clone(), blocks, 0..panels);
            return;
        }
        // one B for all matrices, or each its own
        let same = op.b.strides.batch == 0;
        let matrices = if same { 1 } else { round.batch.len() };
        let at = self.slabs.start(plan, self.packed);
        for index in 0..matrices {
            let first = round.batch.start + index;
            let batch = if same { round.batch.clone() } else { first..first + 1 };
            let matrix = if same { 0 } else { first };
            for panels in self.slabs.cut(panels) {
                if index > 0 || panels.start > 0 {
                    lane.barrier(); // the last slab has been read
                }
                let items = if index > 0 || panels.start > 0 { 0 } else { items };
                let beside = (items, |item: usize| packing.item::<S, F::A>(s, item));
                let slab =
                    self.slabs.widen(s, lane, round.b, matrix, panels.clone(), op.k, scratch, at, beside);
                self.panels(s, lane, args, &round, &slab, batch.clone(), blocks.clone(), panels);
            }
        }
    }

    /// The panels `panels` of these blocks, a few at a time.
    #[inline(always)]
    #[allow(clippy::too_many_arguments, reason = "the operands and the bounds of a part of a round")]
    fn panels<S: Simd, B: Source<A = F::A>, C: Source<A = F::A>>(
        &self,
        s: S,
        lane: &Lane<'_>,
        args: &Args,
        round: &Round<'_, '_, B>,
        b: &C,
        batch: Range<usize>,
        blocks: Range<usize>,
        panels: Range<usize>,
    ) {
        let (op, plan, all) = (&self.op, &self.plan, round.tiles);
        let first_row = all.start(all.block(blocks.start).start);
        let rows = all.start(all.block(blocks.end - 1).end) - first_row;
        let scratch = args.scratch::<f32>();
        // SAFETY: the lane's own part.
        let own = unsafe { scratch.slice(plan.own(self.packed, lane.index())) };
        let independent = batch.len() * blocks.len();
        let per_task = plan.chunk::<S>(rows, panels.len(), independent);
        let chunks = panels.len().div_ceil(per_task);
        while let Some(task) = lane.claim_near(independent * chunks) {
            // neighbouring tasks share the rows of A, which this lane has packed
            let (index, chunk) = (task / chunks, task % chunks);
            let (matrix, tiles) = (index / blocks.len(), all.block(blocks.start + index % blocks.len()));
            let chunk = panels.start + chunk * per_task;
            let chunk = chunk..(chunk + per_task).min(panels.end);
            let batch = batch.start + matrix;
            let row0 = all.start(tiles.start);
            let height = all.start(tiles.end) - row0;
            let packed = match (self.packed, round.a) {
                (0, Floats::F32(a)) => {
                    let at = if op.k == 0 { 0 } else { op.a.strides.at(batch, 0, 0) };
                    &a[at..at + op.k]
                }
                _ => {
                    let at = ((batch - round.batch.start) * rows + row0 - first_row) * plan.words;
                    // SAFETY: packed before the barrier, and not written before the next.
                    unsafe { scratch.shared(at..at + height * plan.words) }
                }
            };
            let b_matrix = if op.b.strides.batch == 0 { 0 } else { batch };
            let (widened, sums) = own.split_at_mut(DEPTH * columns::<S>());
            let nr = columns::<S>();
            let (at, width) = (op.c.strides.at(batch, row0, chunk.start * nr), op.n - chunk.start * nr);
            // SAFETY: a panel of a block belongs to one task, and elements of C do not coincide.
            let target = unsafe { round.finish.target::<S>(at, height, chunk.len(), width) };
            let Results { stored, rest } =
                block(s, b, b_matrix, chunk.clone(), op.k, packed, all, tiles, widened, sums, target);
            for (panel, sums) in chunk.skip(stored).zip(rest.chunks_exact(height * nr)) {
                let at = |row: usize| Some(row_at(op, round.finish, batch, row0 + row));
                // SAFETY: as above.
                unsafe { round.finish.rows(s, &at, panel * nr, op.n, sums) }
            }
        }
    }
}
