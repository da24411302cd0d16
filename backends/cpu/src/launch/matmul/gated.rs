//! `kind(x Wg + bg, x Wu + bu)`: the blocked loop over the panels of both weights. A task computes the same columns of both products
//! into the lane's scratch and applies the activation to them there, so that neither product is stored.

use super::amx::{self, Kind, PackedTiles, PlainTiles};
use super::driver::{BLOCK_ROWS, DEPTH, Plan, Tiles, block};
use super::operand::{Floats, FloatsOut, PackFloats, Singles, Words};
use super::pairs::{PackedPairs, PlainPairs, Rounded};
use super::quantised::{Blocks, PackedBlocks};
use super::source::{Format, Packed, Plain, Source};
use super::tile::columns;
use super::{
    Packing, QUANTISED, ROUNDING, TILES, blocked, blocked_in, in_place, quantised_in, refuse_a, refuse_b,
    refuse_quantising, refuse_rounding, rounding, widening,
};
use crate::device::lanes;
use crate::launch::body::{Body, on, other_op};
use crate::launch::gated::gated;
use crate::simd::{self, Element, Kernel, Simd};
use crate::spmd::Args;
use crate::team::Lane;
use half::bf16;
use perjoule_kernels::op::{GatedKind, GatedMatMul, MatMul, Op};
use perjoule_kernels::{Candidate, Config, Error, Launch, Numerics, PackFormat, Reason, Request, Result};
use std::marker::PhantomData;

/// A row that reads both B packed in panels of `T`.
pub(crate) const fn packed<S: Simd, T: Element>(
    name: &'static str,
    configs: &'static [Config],
    packs: &'static [&'static PackFormat],
) -> perjoule_kernels::Kernel {
    perjoule_kernels::Kernel::new(name, "gated_matmul", cost::<S>, prepare::<S, Packed<T>>)
        .with_configs(configs)
        .with_packs(packs)
        .with_reject(reject::<S, T>)
}

/// A row that reads both B packed in pairs of bf16, beside an A in f32.
pub(crate) const fn halves<S: Simd>(
    name: &'static str,
    configs: &'static [Config],
    packs: &'static [&'static PackFormat],
) -> perjoule_kernels::Kernel {
    perjoule_kernels::Kernel::new(name, "gated_matmul", cost::<S>, prepare::<S, PackedPairs<Singles>>)
        .with_configs(configs)
        .with_packs(packs)
        .with_reject(reject::<S, bf16>)
}

/// A row that reads both B as the op lays them out.
pub(crate) const fn plain<S: Simd>(
    name: &'static str,
    configs: &'static [Config],
) -> perjoule_kernels::Kernel {
    perjoule_kernels::Kernel::new(name, "gated_matmul", cost_plain::<S>, prepare::<S, Plain>)
        .with_configs(configs)
        .with_reject(reject_plain::<S>)
}

/// A row that multiplies tiles of AMX.
pub(crate) const fn tiles<S: Simd, K: Kind<A: PackFloats>>(
    name: &'static str,
    configs: &'static [Config],
    packs: &'static [&'static PackFormat],
) -> perjoule_kernels::Kernel {
    perjoule_kernels::Kernel::new(name, "gated_matmul", cost_tiles::<S>, prepare::<S, PackedTiles<K>>)
        .with_configs(configs)
        .with_packs(packs)
        .with_numerics(numerics_pairs::<S>)
        .with_reject(reject_tiles::<S, K>)
}

/// A row that multiplies tiles of AMX and reads both B as the op lays them out.
pub(crate) const fn plain_tiles<S: Simd, K: Kind<A: PackFloats>>(
    name: &'static str,
    configs: &'static [Config],
) -> perjoule_kernels::Kernel {
    let prepare = prepare::<S, PlainTiles<K, PlainPairs>>;
    perjoule_kernels::Kernel::new(name, "gated_matmul", cost_plain_tiles::<S>, prepare)
        .with_configs(configs)
        .with_numerics(numerics_pairs::<S>)
        .with_reject(reject_plain_tiles::<S, K>)
}

fn reject_plain_tiles<S: Simd, K: Kind>(candidate: &Candidate<'_>) -> Option<Reason> {
    reject_plain_pairs::<S>(candidate).or_else(|| amx::refusal::<K>(candidate.info))
}

fn cost_plain_tiles<S: Simd>(candidate: &Candidate<'_>) -> f32 {
    let Op::GatedMatMul(g) = candidate.op else { return f32::INFINITY };
    cost_tiles::<S>(candidate) + rounding_plain::<S>(g, candidate)
}

fn reject_tiles<S: Simd, K: Kind>(candidate: &Candidate<'_>) -> Option<Reason> {
    reject_pairs::<S>(candidate).or_else(|| amx::refusal::<K>(candidate.info))
}

fn cost_tiles<S: Simd>(Candidate { op, info, .. }: &Candidate<'_>) -> f32 {
    let Op::GatedMatMul(g) = op else { return f32::INFINITY };
    let n = 2 * g.gate.n.next_multiple_of(columns::<S>());
    blocked_in::<S>(op, [1, g.gate.m.next_multiple_of(16), n, g.gate.k], TILES, false, lanes(info))
}

/// A row that reads B packed in blocks of `Q`, and quantises A to 8 bits.
pub(crate) const fn quantised<S: Simd, Q: Blocks>(
    name: &'static str,
    configs: &'static [Config],
    packs: &'static [&'static PackFormat],
) -> perjoule_kernels::Kernel {
    perjoule_kernels::Kernel::new(name, "gated_matmul", cost_quantised::<S, Q>, prepare::<S, PackedBlocks<Q>>)
        .with_configs(configs)
        .with_packs(packs)
        .with_numerics(|_| QUANTISED)
        .with_reject(reject_quantised::<S, Q>)
}

/// A row that multiplies pairs of bf16 and reads B packed in them.
pub(crate) const fn pairs<S: Simd>(
    name: &'static str,
    configs: &'static [Config],
    packs: &'static [&'static PackFormat],
) -> perjoule_kernels::Kernel {
    perjoule_kernels::Kernel::new(name, "gated_matmul", cost_pairs::<S>, prepare::<S, PackedPairs<Rounded>>)
        .with_configs(configs)
        .with_packs(packs)
        .with_numerics(numerics_pairs::<S>)
        .with_reject(reject_pairs::<S>)
}

/// A row that multiplies pairs of bf16 and reads B as the op lays it out.
pub(crate) const fn plain_pairs<S: Simd>(
    name: &'static str,
    configs: &'static [Config],
) -> perjoule_kernels::Kernel {
    perjoule_kernels::Kernel::new(name, "gated_matmul", cost_plain_pairs::<S>, prepare::<S, PlainPairs>)
        .with_configs(configs)
        .with_numerics(numerics_pairs::<S>)
        .with_reject(reject_plain_pairs::<S>)
}

fn reject<S: Simd, T: Element>(candidate: &Candidate<'_>) -> Option<Reason> {
    let Op::GatedMatMul(gated) = candidate.op else { return Some(Reason::new("runs gated_matmul")) };
    refuse_b::<T>(gated.gate.b.dtype).or_else(|| reject_plain::<S>(candidate))
}

fn reject_plain<S: Simd>(Candidate { op, info, .. }: &Candidate<'_>) -> Option<Reason> {
    let Op::GatedMatMul(op) = op else { return Some(Reason::new("runs gated_matmul")) };
    refuse_a(op.gate.a.dtype).or_else(|| simd::refusal::<S>(info))
}

fn reject_quantised<S: Simd, Q: Blocks>(candidate: &Candidate<'_>) -> Option<Reason> {
    let Op::GatedMatMul(gated) = candidate.op else { return Some(Reason::new("runs gated_matmul")) };
    let refuses = |op: &MatMul| refuse_quantising::<Q>(op.b.dtype, op.policy);
    reject_plain::<S>(candidate).or_else(|| refuses(&gated.gate)).or_else(|| refuses(&gated.up))
}

fn cost_quantised<S: Simd, Q: Blocks>(Candidate { op, info, .. }: &Candidate<'_>) -> f32 {
    let Op::GatedMatMul(g) = op else { return f32::INFINITY };
    let n = 2 * g.gate.n.next_multiple_of(columns::<S>());
    quantised_in::<S, Q>(op, [1, g.gate.m, n, g.gate.k], lanes(info))
}

fn reject_pairs<S: Simd>(candidate: &Candidate<'_>) -> Option<Reason> {
    let Op::GatedMatMul(gated) = candidate.op else { return Some(Reason::new("runs gated_matmul")) };
    refuse_b::<bf16>(gated.gate.b.dtype).or_else(|| reject_plain_pairs::<S>(candidate))
}

fn reject_plain_pairs<S: Simd>(candidate: &Candidate<'_>) -> Option<Reason> {
    let Op::GatedMatMul(gated) = candidate.op else { return Some(Reason::new("runs gated_matmul")) };
    let rounds = |op: &MatMul| refuse_rounding(op.a.dtype, op.b.dtype, op.policy);
    reject_plain::<S>(candidate).or_else(|| rounds(&gated.gate)).or_else(|| rounds(&gated.up))
}

fn numerics_pairs<S: Simd>(candidate: &Candidate<'_>) -> Numerics {
    let Op::GatedMatMul(gated) = candidate.op else { return Numerics::F32 };
    let rounds = |op: &MatMul| rounding::<S>(op.a.dtype, op.b.dtype);
    let (gate, up) = (rounds(&gated.gate), rounds(&gated.up));
    if gate.unit > up.unit { gate } else { up }
}

fn cost_pairs<S: Simd>(Candidate { op, info, .. }: &Candidate<'_>) -> f32 {
    let Op::GatedMatMul(g) = op else { return f32::INFINITY };
    let n = 2 * g.gate.n.next_multiple_of(columns::<S>());
    blocked_in::<S>(op, [1, g.gate.m, n, g.gate.k], Rounded::PER, false, lanes(info))
}

fn cost_plain_pairs<S: Simd>(candidate: &Candidate<'_>) -> f32 {
    let Op::GatedMatMul(g) = candidate.op else { return f32::INFINITY };
    cost_pairs::<S>(candidate) + rounding_plain::<S>(g, candidate)
}

/// Seconds to bring two plain B into panels of bf16, for each block of rows.
fn rounding_plain<S: Simd>(g: &GatedMatMul, candidate: &Candidate<'_>) -> f32 {
    let padded = g.gate.n.next_multiple_of(columns::<S>()) as f32;
    let elements = g.gate.m.div_ceil(BLOCK_ROWS) as f32 * padded * g.gate.k as f32;
    let each = widening(&g.gate.b) + widening(&g.up.b) + 2.0 * ROUNDING;
    elements * each / lanes(candidate.info) as f32
}

fn cost<S: Simd>(Candidate { op, info, .. }: &Candidate<'_>) -> f32 {
    let Op::GatedMatMul(g) = op else { return f32::INFINITY };
    // as if the columns of one lay behind those of the other
    let n = 2 * g.gate.n.next_multiple_of(columns::<S>());
    blocked::<S>(op, [1, g.gate.m, n, g.gate.k], in_place::<Singles>(&g.gate), lanes(info))
}

fn cost_plain<S: Simd>(candidate: &Candidate<'_>) -> f32 {
    let Op::GatedMatMul(g) = candidate.op else { return f32::INFINITY };
    let padded = g.gate.n.next_multiple_of(columns::<S>()) as f32;
    let elements = g.gate.m.div_ceil(BLOCK_ROWS) as f32 * padded * g.gate.k as f32;
    cost::<S>(candidate) + elements * (widening(&g.gate.b) + widening(&g.up.b)) / lanes(candidate.info) as f32
}

fn prepare<S: Simd, F: Format<A: PackFloats>>(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let Op::GatedMatMul(op) = request.op else { return Err(other_op(request.op)) };
    let plan = Plan::new::<S, F::A>(op.gate.m, op.gate.k, request.info);
    let packed = if in_place::<F::A>(&op.gate) { 0 } else { plan.round };
    let scratch = plan.scratch(packed).ok_or(Error::Overflow { op: "gated_matmul", what: "the scratch" })?;
    on::<S>(request, Products::<F> { op: **op, plan, packed, scratch, format: PhantomData })
}

/// The body of the blocked rows.
struct Products<F> {
    op: GatedMatMul,
    plan: Plan,
    /// Rows of A that are packed at a time; 0 where a single row is read in place.
    packed: usize,
    scratch: u64,
    format: PhantomData<fn() -> F>,
}

/// What happens to both sums.
struct Finish<'a> {
    out: FloatsOut<'a>,
    kind: GatedKind,
    n: usize,
    gate_bias: Option<Floats<'a>>,
    up_bias: Option<Floats<'a>>,
}

impl Finish<'_> {
    /// Activates and stores one row of a panel: columns from `column` on, as many as there are, to element `at` and those behind it.
    ///
    /// # Safety
    /// No other lane of the team touches these elements before the next barrier.
    unsafe fn row<S: Simd>(&self, s: S, at: usize, column: usize, gates: &[f32], ups: &[f32]) {
        s.vectorise(FinishRow { finish: self, at, column, gates, ups });
    }
}

impl<F: Format<A: PackFloats>> Products<F> {
    /// `None` for dtypes that `reject` rules out.
    fn finish<'a>(&self, args: &'a Args) -> Option<Finish<'a>> {
        let mut next = 2;
        let mut bias = |dtype| {
            let Some(dtype) = dtype else { return Some(None) };
            next += 1;
            Some(Some(Floats::of(args, next, dtype)?))
        };
        let (gate_bias, up_bias) = (bias(self.op.gate.epilogue.bias)?, bias(self.op.up.epilogue.bias)?);
        let out = FloatsOut::of(args, next + 1, self.op.gated.out_dtype)?;
        Some(Finish { out, kind: self.op.gated.kind, n: self.op.gate.n, gate_bias, up_bias })
    }

    /// The row blocks of `tiles`, a few panels of columns at a time.
    #[inline(always)]
    fn round<S: Simd, B: Source<A = F::A>>(
        &self,
        s: S,
        lane: &Lane<'_>,
        args: &Args,
        (a, gate, up, finish): (&Floats<'_>, &B, &B, &Finish<'_>),
        all: Tiles,
        blocks: std::ops::Range<usize>,
    ) {
        let (op, plan, nr) = (&self.op.gate, &self.plan, columns::<S>());
        let scratch = args.scratch::<f32>();
        let tiles = all.block(blocks.start).start..all.block(blocks.end - 1).end;
        let first_row = all.start(tiles.start);
        let rows = all.start(tiles.end) - first_row;
        if self.packed > 0 {
            let packing = Packing { op, a, all, batch: 0..1, tiles, scratch };
            lane.share(packing.items()).for_each(|item| packing.item::<S, F::A>(s, item));
            lane.barrier();
        }
        // SAFETY: the lane's own part.
        let own = unsafe { scratch.slice(plan.own(self.packed, lane.index())) };
        let (widened, sums) = own.split_at_mut(DEPTH * nr);
        // two panels of the highest block fit: the results of both products share the room
        let panels = op.n.div_ceil(nr);
        let per_task = (plan.chunk::<S>(rows, panels, 2 * blocks.len()) / 2).max(1);
        let (gates, ups) = sums.split_at_mut(sums.len() / 2);
        let chunks = panels.div_ceil(per_task);
        while let Some(task) = lane.claim_near(blocks.len() * chunks) {
            // neighbouring tasks share the rows of A, which this lane has packed
            let (chunk, tiles) = (task % chunks, all.block(blocks.start + task / chunks));
            let chunk = chunk * per_task..((chunk + 1) * per_task).min(panels);
            let row0 = all.start(tiles.start);
            let height = all.start(tiles.end) - row0;
            let packed = match (self.packed, a) {
                (0, Floats::F32(a)) => &a[..op.k],
                _ => {
                    let at = (row0 - first_row) * plan.words;
                    // SAFETY: packed before the barrier, and not written before the next.
                    unsafe { scratch.shared(at..at + height * plan.words) }
                }
            };
            let gates =
                block(s, gate, 0, chunk.clone(), op.k, packed, all, tiles.clone(), widened, gates, None).rest;
            let ups = block(s, up, 0, chunk.clone(), op.k, packed, all, tiles, widened, ups, None).rest;
            let both = gates.chunks_exact(height * nr).zip(ups.chunks_exact(height * nr));
            for (panel, (gates, ups)) in chunk.zip(both) {
                let both = gates.chunks_exact(nr).zip(ups.chunks_exact(nr));
                for (row, (gates, ups)) in (row0..).zip(both) {
                    let at = self.op.gated.out.start(row, 0);
                    // SAFETY: a row of a panel belongs to one task, and vectors of the result do not overlap.
                    unsafe { finish.row(s, at, panel * nr, gates, ups) }
                }
            }
        }
    }
}

/// Whether a source lies in panels.
fn in_panels<B: Source>(_: &B) -> bool {
    B::PACKED
}

impl<F: Format<A: PackFloats>> Body for Products<F> {
    fn scratch(&self) -> u64 {
        self.scratch
    }

    #[inline(always)]
    fn run<S: Simd>(&self, s: S, lane: &Lane<'_>, args: &Args) {
        let (op, up) = (&self.op.gate, &self.op.up);
        if op.m == 0 || op.n == 0 {
            return;
        }
        let sources = (F::source(args, 1, op.b, op.n, op.k), F::source(args, 2, up.b, op.n, op.k));
        let (Some(a), (Some(gate), Some(up)), Some(finish)) =
            (Floats::of(args, 0, op.a.dtype), sources, self.finish(args))
        else {
            return;
        };
        let all = match in_panels(&gate) {
            true => self.plan.tiles::<S, F::A>(op.m),
            false => self.plan.few_blocks::<S, F::A>(op.m),
        };
        let blocks = all.blocks();
        let at_once = self.plan.at_once(op.m, blocks);
        for first in (0..blocks).step_by(at_once) {
            let last = (first + at_once).min(blocks);
            self.round(s, lane, args, (&a, &gate, &up, &finish), all, first..last);
            if last < blocks {
                lane.barrier(); // the next round overwrites the packed A
            }
        }
    }
}

/// The arguments of [`Finish::row`]. Private: made only under its contract.
struct FinishRow<'f> {
    finish: &'f Finish<'f>,
    at: usize,
    column: usize,
    gates: &'f [f32],
    ups: &'f [f32],
}

impl Kernel for FinishRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let FinishRow { finish, at, column, gates, ups } = self;
        for half in 0..2 {
            let column = column + half * S::LANES;
            if column >= finish.n {
                return;
            }
            let count = finish.n - column;
            let (mut g, mut u) = (s.load(&gates[half * S::LANES..]), s.load(&ups[half * S::LANES..]));
            if let Some(bias) = &finish.gate_bias {
                g = s.add(g, bias.load(s, column, 1, count));
            }
            if let Some(bias) = &finish.up_bias {
                u = s.add(u, bias.load(s, column, 1, count));
            }
            let y = gated(s, finish.kind, g, u);
            // SAFETY: the contract of `Finish::row`.
            unsafe { finish.out.store(s, at + column, 1, count, y) }
        }
    }
}
