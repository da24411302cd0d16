//! Matrix products of experts: the blocked driver of [`super::matmul`] over the rows that each expert is given.
//!
//! Slots hold whatever their writer put there. Offsets are cut to the positions that exist and to an ascending order, rows outside A or C
//! are skipped, and lanes share the columns of C, never its rows: so even repeated rows are written by one lane only, the last
//! position last.

use crate::device::lanes;
use crate::launch::body::{Body, on, other_op};
use crate::launch::matmul::amx::{self, Kind, PackedTiles, PlainTiles};
use crate::launch::matmul::driver::{BLOCK_ROWS, DEPTH, Finish, Plan, RowAt, Scales, block};
use crate::launch::matmul::operand::{Floats, FloatsOut, PackFloats, Singles, Words};
use crate::launch::matmul::pairs::{PackedPairs, PlainPairs, Rounded};
use crate::launch::matmul::quantised::{Blocks, PackedBlocks};
use crate::launch::matmul::source::{Format, Packed, Plain, Source};
use crate::launch::matmul::tile::{MOST_ROWS, columns};
use crate::launch::matmul::{
    QUANTISED, ROUNDING, TILES, blocked, blocked_in, quantised_in, refuse_a, refuse_b, refuse_quantising,
    refuse_rounding, rounding, widening,
};
use crate::simd::{self, Element, Simd};
use crate::spmd::Args;
use crate::team::Lane;
use half::bf16;
use perjoule_kernels::op::slots::Segments;
use perjoule_kernels::op::{GroupedMatMul, Op};
use perjoule_kernels::{
    Candidate, Config, Error, Kernel, Launch, Numerics, PackFormat, Reason, Request, Result,
};
use std::marker::PhantomData;
use std::ops::Range;

/// A row that reads B packed in panels of `T`.
pub(crate) const fn packed<S: Simd, T: Element>(
    name: &'static str,
    configs: &'static [Config],
    packs: &'static [&'static PackFormat],
) -> Kernel {
    Kernel::new(name, "grouped_matmul", cost::<S>, prepare::<S, Packed<T>>)
        .with_configs(configs)
        .with_packs(packs)
        .with_reject(reject::<S, T>)
}

/// A row that reads B packed in pairs of bf16, beside an A in f32.
pub(crate) const fn halves<S: Simd>(
    name: &'static str,
    configs: &'static [Config],
    packs: &'static [&'static PackFormat],
) -> Kernel {
    Kernel::new(name, "grouped_matmul", cost::<S>, prepare::<S, PackedPairs<Singles>>)
        .with_configs(configs)
        .with_packs(packs)
        .with_reject(reject::<S, bf16>)
}

/// A row that reads B as the op lays it out.
pub(crate) const fn plain<S: Simd>(name: &'static str, configs: &'static [Config]) -> Kernel {
    Kernel::new(name, "grouped_matmul", cost_plain::<S>, prepare::<S, Plain>)
        .with_configs(configs)
        .with_reject(reject_plain::<S>)
}

/// A row that multiplies tiles of AMX.
pub(crate) const fn tiles<S: Simd, K: Kind<A: PackFloats>>(
    name: &'static str,
    configs: &'static [Config],
    packs: &'static [&'static PackFormat],
) -> Kernel {
    Kernel::new(name, "grouped_matmul", cost_tiles::<S>, prepare::<S, PackedTiles<K>>)
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
    Kernel::new(name, "grouped_matmul", cost_plain_tiles::<S>, prepare::<S, PlainTiles<K, PlainPairs>>)
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

fn cost_tiles<S: Simd>(Candidate { op, info, .. }: &Candidate<'_>) -> f32 {
    let Op::GroupedMatMul(g) = op else { return f32::INFINITY };
    let each = g.rows.div_ceil(experts(g).max(1)).next_multiple_of(16);
    blocked_in::<S>(op, [experts(g), each, g.n, g.k], TILES, false, lanes(info))
}

fn cost_plain_tiles<S: Simd>(candidate: &Candidate<'_>) -> f32 {
    let Op::GroupedMatMul(g) = candidate.op else { return f32::INFINITY };
    cost_tiles::<S>(candidate) + rounding_plain::<S>(g, candidate)
}

/// A row that reads B packed in blocks of `Q`, and quantises A to 8 bits.
pub(crate) const fn quantised<S: Simd, Q: Blocks>(
    name: &'static str,
    configs: &'static [Config],
    packs: &'static [&'static PackFormat],
) -> Kernel {
    Kernel::new(name, "grouped_matmul", cost_quantised::<S, Q>, prepare::<S, PackedBlocks<Q>>)
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
) -> Kernel {
    Kernel::new(name, "grouped_matmul", cost_pairs::<S>, prepare::<S, PackedPairs<Rounded>>)
        .with_configs(configs)
        .with_packs(packs)
        .with_numerics(numerics_pairs::<S>)
        .with_reject(reject_pairs::<S>)
}

/// A row that multiplies pairs of bf16 and reads B as the op lays it out.
pub(crate) const fn plain_pairs<S: Simd>(name: &'static str, configs: &'static [Config]) -> Kernel {
    Kernel::new(name, "grouped_matmul", cost_plain_pairs::<S>, prepare::<S, PlainPairs>)
        .with_configs(configs)
        .with_numerics(numerics_pairs::<S>)
        .with_reject(reject_plain_pairs::<S>)
}

fn reject<S: Simd, T: Element>(candidate: &Candidate<'_>) -> Option<Reason> {
    let Op::GroupedMatMul(grouped) = candidate.op else { return Some(Reason::new("runs grouped_matmul")) };
    refuse_b::<T>(grouped.b.dtype).or_else(|| reject_plain::<S>(candidate))
}

fn reject_plain<S: Simd>(Candidate { op, info, .. }: &Candidate<'_>) -> Option<Reason> {
    let Op::GroupedMatMul(op) = op else { return Some(Reason::new("runs grouped_matmul")) };
    refuse_a(op.a.dtype).or_else(|| simd::refusal::<S>(info))
}

fn reject_quantised<S: Simd, Q: Blocks>(candidate: &Candidate<'_>) -> Option<Reason> {
    let Op::GroupedMatMul(op) = candidate.op else { return Some(Reason::new("runs grouped_matmul")) };
    refuse_quantising::<Q>(op.b.dtype, op.policy).or_else(|| reject_plain::<S>(candidate))
}

fn cost_quantised<S: Simd, Q: Blocks>(Candidate { op, info, .. }: &Candidate<'_>) -> f32 {
    let Op::GroupedMatMul(g) = op else { return f32::INFINITY };
    let each = g.rows.div_ceil(experts(g).max(1));
    quantised_in::<S, Q>(op, [experts(g), each, g.n, g.k], lanes(info))
}

fn reject_pairs<S: Simd>(candidate: &Candidate<'_>) -> Option<Reason> {
    let Op::GroupedMatMul(op) = candidate.op else { return Some(Reason::new("runs grouped_matmul")) };
    refuse_b::<bf16>(op.b.dtype).or_else(|| reject_plain_pairs::<S>(candidate))
}

fn reject_plain_pairs<S: Simd>(candidate: &Candidate<'_>) -> Option<Reason> {
    let Op::GroupedMatMul(op) = candidate.op else { return Some(Reason::new("runs grouped_matmul")) };
    refuse_a(op.a.dtype)
        .or_else(|| refuse_rounding(op.a.dtype, op.b.dtype, op.policy))
        .or_else(|| simd::refusal::<S>(candidate.info))
}

fn numerics_pairs<S: Simd>(candidate: &Candidate<'_>) -> Numerics {
    match candidate.op {
        Op::GroupedMatMul(op) => rounding::<S>(op.a.dtype, op.b.dtype),
        _ => Numerics::F32,
    }
}

/// Experts that have rows, at most, each of them several times where its rows are many blocks.
fn experts(g: &GroupedMatMul) -> usize {
    g.experts.min(g.rows).max(g.rows.div_ceil(BLOCK_ROWS))
}

fn cost<S: Simd>(Candidate { op, info, .. }: &Candidate<'_>) -> f32 {
    let Op::GroupedMatMul(g) = op else { return f32::INFINITY };
    let each = g.rows.div_ceil(experts(g).max(1));
    blocked::<S>(op, [experts(g), each, g.n, g.k], false, lanes(info))
}

fn cost_pairs<S: Simd>(Candidate { op, info, .. }: &Candidate<'_>) -> f32 {
    let Op::GroupedMatMul(g) = op else { return f32::INFINITY };
    let each = g.rows.div_ceil(experts(g).max(1));
    blocked_in::<S>(op, [experts(g), each, g.n, g.k], Rounded::PER, false, lanes(info))
}

fn cost_plain_pairs<S: Simd>(candidate: &Candidate<'_>) -> f32 {
    let Op::GroupedMatMul(g) = candidate.op else { return f32::INFINITY };
    cost_pairs::<S>(candidate) + rounding_plain::<S>(g, candidate)
}

/// Seconds to bring plain matrices into panels of bf16.
fn rounding_plain<S: Simd>(g: &GroupedMatMul, candidate: &Candidate<'_>) -> f32 {
    let elements = experts(g) as f32 * g.n.next_multiple_of(columns::<S>()) as f32 * g.k as f32;
    elements * (widening(&g.b) + ROUNDING) / lanes(candidate.info) as f32
}

fn cost_plain<S: Simd>(candidate: &Candidate<'_>) -> f32 {
    let Op::GroupedMatMul(g) = candidate.op else { return f32::INFINITY };
    let elements = experts(g) as f32 * g.n.next_multiple_of(columns::<S>()) as f32 * g.k as f32;
    cost::<S>(candidate) + elements * widening(&g.b) / lanes(candidate.info) as f32
}

fn prepare<S: Simd, F: Format<A: PackFloats>>(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let Op::GroupedMatMul(op) = request.op else { return Err(other_op(request.op)) };
    let plan = Plan::new::<S, F::A>(op.rows, op.k, request.info);
    let scratch = plan.scratch(plan.round);
    let scratch = scratch.ok_or(Error::Overflow { op: "grouped_matmul", what: "the scratch" })?;
    on::<S>(request, Grouped::<F> { op: *op, plan, scratch, format: PhantomData })
}

/// The body of the blocked rows.
struct Grouped<F> {
    op: GroupedMatMul,
    plan: Plan,
    scratch: u64,
    format: PhantomData<fn() -> F>,
}

impl<F: Format<A: PackFloats>> Body for Grouped<F> {
    fn scratch(&self) -> u64 {
        self.scratch
    }

    #[inline(always)]
    fn run<S: Simd>(&self, s: S, lane: &Lane<'_>, args: &Args) {
        let op = &self.op;
        if op.n == 0 || op.rows == 0 {
            return;
        }
        let Some(a) = Floats::of(args, 0, op.a.dtype) else { return };
        let Some(b) = F::source(args, 1, op.b, op.n, op.k) else { return };
        let Some(finish) = self.finish(args) else { return };
        let used = Segments::new(args.read::<i32>(2), op.rows).last().map_or(0, |(_, r)| r.end);
        for first in (0..used).step_by(self.plan.round.max(1)) {
            let window = first..used.min(first + self.plan.round);
            self.pack(s, lane, args, &a, window.clone());
            lane.barrier();
            self.multiply(s, lane, args, &b, &finish, window.clone());
            if window.end < used {
                lane.barrier(); // the next round overwrites the packed A
            }
        }
    }
}

/// `range` within `window`.
fn within(range: Range<usize>, window: &Range<usize>) -> Range<usize> {
    let start = range.start.clamp(window.start, window.end);
    start..range.end.clamp(start, window.end)
}

impl<F: Format<A: PackFloats>> Grouped<F> {
    /// What happens to the sums; `None` for dtypes that `reject` rules out.
    fn finish<'a>(&self, args: &'a Args) -> Option<Finish<'a>> {
        let op = &self.op;
        let bias = match op.bias {
            Some(dtype) => Some(Floats::of(args, 4, dtype)?),
            None => None,
        };
        let out = FloatsOut::of(args, 4 + usize::from(bias.is_some()), op.c.dtype)?;
        let (strides, activation) = (op.c.strides, op.activation);
        Some(Finish { out, strides, scale: 1.0, activation, bias, residual: None, scales: Scales::default() })
    }

    /// Packs the rows of A behind the positions of `window`, tile by tile.
    fn pack<S: Simd>(&self, s: S, lane: &Lane<'_>, args: &Args, a: &Floats<'_>, window: Range<usize>) {
        let op = &self.op;
        let (offsets, order) = (args.read::<i32>(2), args.read::<i32>(3));
        let scratch = args.scratch::<f32>();
        let mut item = 0;
        for (_, positions) in Segments::new(offsets, op.rows) {
            let positions = within(positions, &window);
            let tiles = self.plan.few_blocks::<S, F::A>(positions.len());
            for tile in 0..tiles.count() {
                item += 1;
                if item % lane.count() != lane.index() {
                    continue;
                }
                let rows = tiles.rows(tile);
                let mut starts = [None; MOST_ROWS];
                let slots = &order[positions.start + rows.start..positions.start + rows.end];
                for (start, slot) in starts.iter_mut().zip(slots) {
                    if let Some((a_row, _)) = op.rows_of(i64::from(*slot)) {
                        *start = Some(op.a.strides.at(0, a_row, 0));
                    }
                }
                let at = (positions.start + rows.start - window.start) * self.plan.words;
                // SAFETY: positions of segments are disjoint, and every tile is one lane's.
                let part = unsafe { scratch.slice(at..at + rows.len() * self.plan.words) };
                F::A::pack(s, a, &starts[..rows.len()], op.a.strides.col, 0..op.k, part);
            }
        }
    }

    /// Multiplies the packed rows by their experts' matrices, a few panels of columns at a time.
    fn multiply<S: Simd, B: Source<A = F::A>>(
        &self,
        s: S,
        lane: &Lane<'_>,
        args: &Args,
        b: &B,
        finish: &Finish<'_>,
        window: Range<usize>,
    ) {
        let (op, plan, nr) = (&self.op, &self.plan, columns::<S>());
        let (offsets, order) = (args.read::<i32>(2), args.read::<i32>(3));
        let scratch = args.scratch::<f32>();
        // SAFETY: the lane's own part.
        let own = unsafe { scratch.slice(plan.own(plan.round, lane.index())) };
        let panels = op.n.div_ceil(nr);
        let per_task = plan.chunk::<S>(window.len(), panels, 1);
        while let Some(task) = lane.claim_near(panels.div_ceil(per_task)) {
            let chunk = task * per_task..((task + 1) * per_task).min(panels);
            for (expert, positions) in Segments::new(offsets, op.rows) {
                let positions = within(positions, &window);
                let all = self.plan.few_blocks::<S, F::A>(positions.len());
                for index in 0..all.blocks() {
                    let tiles = all.block(index);
                    let first = positions.start + all.start(tiles.start);
                    let height = all.start(tiles.end) - all.start(tiles.start);
                    let at = (first - window.start) * plan.words;
                    // SAFETY: packed before the barrier, and not written before the next.
                    let a = unsafe { scratch.shared(at..at + height * plan.words) };
                    let (widened, sums) = own.split_at_mut(DEPTH * nr);
                    let sums =
                        block(s, b, expert, chunk.clone(), op.k, a, all, tiles, widened, sums, None).rest;
                    for (panel, sums) in chunk.clone().zip(sums.chunks_exact(height * nr)) {
                        let at = |row: usize| {
                            let (_, row) = op.rows_of(i64::from(order[first + row]))?;
                            let out = op.c.strides.at(0, row, 0);
                            Some(RowAt { out, residual: 0, bias: expert * op.n, a_scale: 0, b_scale: 0 })
                        };
                        // SAFETY: columns of C are one task's, and elements of C do not coincide.
                        unsafe { finish.rows(s, &at, panel * nr, op.n, sums) }
                    }
                }
            }
        }
    }
}
