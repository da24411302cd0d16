//! Attention over a KV cache without the score matrix (arXiv:2205.14135), for one instruction set.
//!
//! A *unit* is a block of queries of one sequence together with all query heads that share one key/value head: its *rows*. It goes
//! through the keys that any of its rows sees in blocks of [`KEYS`], with a running maximum and sum for each row, so that each key
//! and value is loaded once for the whole group of heads. Blocks that no row sees are never touched.
//!
//! * Many rows (prefill): both products are register tiles over operands converted to f32; queries are transposed once, so that
//!   a vector's lanes are rows, and the softmax needs no sums across lanes.
//! * Few rows (decode): keys and values are read straight from the cache in their own type, lanes along the head. What counts is how fast
//!   memory is read, so both are gone through in the order in which they lie, and what comes is asked for line by line.
//!
//! Rows of [`pairs`] multiply words of two bf16 by one instruction. A word is two neighbours along the head in queries and keys, as they
//! lie in memory; in weights and values it is two keys. Where tiles multiply, values and the next block's keys are asked for while the
//! product before them runs, since a block is too short for the processor to foresee the next one.
//!
//! Where there are fewer units than lanes, the keys of each are *split*: partial results go to scratch, and after a barrier each unit
//! is put together in a fixed order. The number of splits depends on the shapes and the number of lanes, never on who was faster.

use super::attention_block::{Block, KEYS, Keys, Pairs, Products, Scores, Singles};
use super::body::{Body, on, other_op, speed};
use super::matmul::amx::{self, Kind};
use super::matmul::{refuse_rounding, rounding};
use super::run::{Run, Source, Target, read, write};
use crate::device::lanes;
use crate::simd::{self, Simd};
use crate::spmd::{Args, Out};
use crate::team::Lane;
use perjoule_kernels::op::{Attention, Op, slots};
use perjoule_kernels::{Candidate, Config, DType, Kernel, Launch, Numerics, Reason, Request, Result};
use std::f32::consts::LOG2_E;
use std::marker::PhantomData;
use std::ops::Range;

/// Rows that a unit aims at: its queries, results and scores stay in a second-level cache of 512 KiB beside a block of keys and values,
/// whose copies they share. A multiple of the register tiles of all instruction sets.
const ROWS: usize = 192;

/// Most splits of a unit.
const SPLITS: usize = 64;

/// Fewest keys of a split.
const SPLIT: usize = 4 * KEYS;

static CONFIGS: &[Config] = &[Config { name: "192x96", tile: &[ROWS, KEYS, 16], params: &[] }];

/// An attention row for `S`, whose register tiles have `MR` keys (or rows).
pub(crate) const fn row<S: Simd, const MR: usize>(name: &'static str) -> Kernel {
    Kernel::new(name, "attention", cost::<S>, prepare::<S, MR, Singles>)
        .with_configs(CONFIGS)
        .with_reject(reject::<S>)
}

/// The same with dot products of pairs of bf16: scores from queries and keys that are bf16, or may be rounded to it; and values, where
/// the policy allows weights to be rounded.
pub(crate) const fn pairs<S: Simd, const MR: usize>(name: &'static str) -> Kernel {
    Kernel::new(name, "attention", cost_pairs::<S>, prepare::<S, MR, Pairs>)
        .with_configs(CONFIGS)
        .with_reject(reject_pairs::<S>)
        .with_numerics(numerics_pairs::<S>)
}

/// The same with tiles of AMX.
pub(crate) const fn tiles<S: Simd, const MR: usize, K: Kind>(name: &'static str) -> Kernel {
    Kernel::new(name, "attention", cost_tiles::<S>, prepare::<S, MR, K>)
        .with_configs(CONFIGS)
        .with_reject(reject_tiles::<S, K>)
        .with_numerics(numerics_pairs::<S>)
}

fn reject_tiles<S: Simd, K: Kind>(candidate: &Candidate<'_>) -> Option<Reason> {
    reject_pairs::<S>(candidate).or_else(|| amx::refusal::<K>(candidate.info))
}

fn reject<S: Simd>(candidate: &Candidate<'_>) -> Option<Reason> {
    simd::refusal::<S>(candidate.info)
}

fn reject_pairs<S: Simd>(Candidate { op, info, .. }: &Candidate<'_>) -> Option<Reason> {
    let Op::Attention(op) = op else { return Some(Reason::new("runs attention")) };
    refuse_rounding(op.q_dtype, op.kv_dtype, op.policy).or_else(|| simd::refusal::<S>(info))
}

fn numerics_pairs<S: Simd>(Candidate { op, .. }: &Candidate<'_>) -> Numerics {
    match op {
        // weights are rounded, which is a half of 2^-8 of each
        Op::Attention(op) if op.policy.quantised_activations => rounding::<S>(DType::F32, op.kv_dtype),
        _ => rounding::<S>(DType::BF16, DType::BF16),
    }
}

fn cost<S: Simd>(Candidate { op, .. }: &Candidate<'_>) -> f32 {
    2e-6 + op.bytes() as f32 / 20e9 + op.flops() as f32 / (3e9 * speed::<S>())
}

fn cost_pairs<S: Simd>(Candidate { op, .. }: &Candidate<'_>) -> f32 {
    let rounds = matches!(op, Op::Attention(op) if op.policy.quantised_activations);
    // one of two products takes half the time, or both do
    let share = if rounds { 0.5 } else { 0.75 };
    2e-6 + op.bytes() as f32 / 20e9 + share * op.flops() as f32 / (3e9 * speed::<S>())
}

fn cost_tiles<S: Simd>(Candidate { op, .. }: &Candidate<'_>) -> f32 {
    let rounds = matches!(op, Op::Attention(op) if op.policy.quantised_activations);
    // of the softmax, beside which the products of tiles are short
    let share = if rounds { 0.3 } else { 0.6 };
    2e-6 + op.bytes() as f32 / 20e9 + share * op.flops() as f32 / (3e9 * speed::<S>())
}

fn prepare<S: Simd, const MR: usize, P: Products>(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let Op::Attention(op) = request.op else { return Err(other_op(request.op)) };
    let lanes = lanes(request.info);
    on::<S>(request, Flash::<MR, P>::new(*op, lanes, S::LANES))
}

/// What is settled when a row is prepared.
struct Flash<const MR: usize, P> {
    op: Attention,
    /// Query heads of a key/value head.
    group: usize,
    /// Queries of a unit, and units of a sequence and key/value head.
    queries: usize,
    blocks: usize,
    /// Parts into which the keys of each unit are split.
    splits: usize,
    /// Sizes of a lane's working memory.
    block: Block,
    lanes: usize,
    /// Operands behind `kv_len`.
    offsets: Option<usize>,
    table: Option<usize>,
    sinks: Option<usize>,
    out: usize,
    products: PhantomData<fn() -> P>,
}

/// The slots and operands of a launch.
struct Launched<'a> {
    q: Source<'a>,
    k: Source<'a>,
    v: Source<'a>,
    kv_len: &'a [i32],
    table: &'a [i32],
    sinks: Option<&'a [f32]>,
    out: Target<'a>,
    /// Present where sequences have different numbers of queries.
    cuts: Option<Cuts<'a>>,
}

/// How ragged sequences are cut into blocks of queries: looked up once a launch, since each offset counts only as far as those before
/// it allow.
#[derive(Clone, Copy)]
struct Cuts<'a> {
    /// Blocks of all sequences before each one, and of all.
    blocks: &'a [u32],
    /// First row and number of rows of each sequence.
    rows: &'a [[u32; 2]],
}

impl Cuts<'_> {
    /// Numbers of a table.
    fn len(batch: usize) -> usize {
        batch.saturating_mul(3).saturating_add(1).saturating_add(15) / 16 * 16
    }
}

/// A unit as the slots make it.
#[derive(Clone, Copy)]
struct Unit {
    sequence: usize,
    kv_head: usize,
    /// First query row of the sequence, and their number.
    first: usize,
    n: usize,
    /// First query of the unit within the sequence, and their number.
    query: usize,
    count: usize,
    /// Keys of the sequence.
    length: usize,
}

/// What 2 is raised to where e is raised to `x`, as the parts of a unit have it; finite where `x` is.
fn exponent(x: f32) -> f32 {
    let exponent = x * LOG2_E;
    if x.is_finite() { exponent.clamp(f32::MIN, f32::MAX) } else { exponent }
}

impl<const MR: usize, P: Products> Flash<MR, P> {
    fn new(op: Attention, lanes: usize, vector: usize) -> Self {
        let group = op.q.inner / op.kv.kv_heads;
        // no sequence has more rows than there are, whatever a ragged op allows
        let most = op.q_len.min(op.q.outer);
        let queries = (ROWS / group).clamp(1, most.max(1));
        let blocks = most.div_ceil(queries);
        let units = (op.batch * op.kv.kv_heads).saturating_mul(blocks);
        let splits = match units {
            0 => 1,
            _ => (4 * lanes / units).min(op.kv.capacity.div_ceil(SPLIT)).clamp(1, SPLITS),
        };
        let mut operand = 3;
        let mut next = |present: bool| {
            operand += usize::from(present);
            present.then_some(operand)
        };
        let (offsets, table, sinks) = (next(op.ragged), next(op.kv.paging.is_some()), next(op.sinks));
        let out = operand + 1;
        let block = Block::new(queries * group, op.q.len, vector, MR, op.policy.quantised_activations);
        let products = PhantomData;
        Flash { op, group, queries, blocks, splits, block, lanes, offsets, table, sinks, out, products }
    }

    fn units(&self) -> usize {
        self.op.batch * self.op.kv.kv_heads * self.blocks
    }

    /// Writes the table of [`Cuts`].
    fn cut<'t>(&self, offsets: &[i32], table: &'t mut [u32]) -> Cuts<'t> {
        let (blocks, rows) = table.split_at_mut(self.op.batch + 1);
        let rows = &mut rows.as_chunks_mut::<2>().0[..self.op.batch];
        let all = slots::QueryRows::new(self.op.q_len, self.op.q.outer, Some(offsets));
        let mut before = 0u32;
        for ((block, row), range) in blocks.iter_mut().zip(rows.iter_mut()).zip(all) {
            *block = before;
            // offsets are i32, and rows lie below them
            *row = [range.start as u32, range.len() as u32];
            before += range.len().div_ceil(self.queries) as u32;
        }
        blocks[self.op.batch] = before;
        Cuts { blocks, rows }
    }

    /// Units of a launch.
    fn launched(&self, l: &Launched<'_>) -> usize {
        match l.cuts {
            Some(cuts) => cuts.blocks[self.op.batch] as usize * self.op.kv.kv_heads,
            None => self.units(),
        }
    }

    /// The unit with this number, if its sequence has so many queries. The last blocks of queries, which see the most keys, come
    /// first.
    fn unit(&self, number: usize, l: &Launched<'_>) -> Option<Unit> {
        let heads = self.op.kv.kv_heads;
        let (block, sequence, kv_head, rows) = match l.cuts {
            Some(cuts) => {
                let index = cuts.blocks[self.op.batch] - 1 - (number / heads) as u32;
                // the last sequence that begins with this block or before it: those without blocks come earlier
                let sequence = cuts.blocks.partition_point(|&first| first <= index) - 1;
                let [first, count] = cuts.rows[sequence].map(|x| x as usize);
                ((index - cuts.blocks[sequence]) as usize, sequence, number % heads, first..first + count)
            }
            None => {
                let pairs = self.op.batch * heads;
                let (block, pair) = (self.blocks - 1 - number / pairs, number % pairs);
                let rows = slots::query_rows(pair / heads, self.op.q_len, self.op.q.outer, None);
                (block, pair / heads, pair % heads, rows)
            }
        };
        let query = block * self.queries;
        (query < rows.len()).then(|| Unit {
            sequence,
            kv_head,
            first: rows.start,
            n: rows.len(),
            query,
            count: self.queries.min(rows.len() - query),
            // a paged cache may have no blocks at all
            length: if l.k.bytes.is_empty() {
                0
            } else {
                slots::length(l.kv_len[sequence], self.op.kv.capacity)
            },
        })
    }

    /// Keys that row `row` of the unit sees.
    fn visible(&self, unit: &Unit, row: usize) -> Range<usize> {
        self.op.visible(unit.query + row / self.group, unit.n, unit.length)
    }

    /// Element ranges of a row's vector in queries and in the result.
    fn place(&self, unit: &Unit, row: usize) -> (usize, usize) {
        let token = unit.first + unit.query + row / self.group;
        let head = unit.kv_head * self.group + row % self.group;
        (self.op.q.start(token, head), self.op.out.start(token, head))
    }

    /// Keys of split `split` that any row of the unit sees.
    fn keys(&self, unit: &Unit, split: usize) -> Range<usize> {
        // ranges of later queries neither start nor end earlier
        let start = self.visible(unit, 0).start;
        let end = self.visible(unit, (unit.count - 1) * self.group).end.max(start);
        let blocks = (end - start).div_ceil(KEYS);
        let bound = |i: usize| (start + blocks * i / self.splits * KEYS).min(end);
        bound(split)..bound(split + 1)
    }

    /// Where the vectors of the first of `keys` start, as many as a block has; returns their number.
    #[inline(always)]
    fn keys_at(&self, l: &Launched<'_>, unit: &Unit, keys: Range<usize>, at: &mut [usize; KEYS]) -> usize {
        let n = KEYS.min(keys.len());
        let head = unit.kv_head * self.op.kv.head_stride;
        for (key, at) in keys.zip(at.iter_mut()) {
            // a table that names no block is the caller's error: any vector will do, as long as it exists
            *at = slots::vector(&self.op.kv, unit.sequence, key, l.table).unwrap_or(0) + head;
        }
        n
    }

    /// Floats of a partial result.
    fn part_len(&self) -> usize {
        if self.splits == 1 { 0 } else { self.block.part_len() }
    }

    /// Computes one split of a unit into the lane's working memory.
    #[inline(always)]
    fn attend<S: Simd>(&self, s: S, l: &Launched<'_>, unit: &Unit, split: usize, memory: &mut [f32]) {
        let rows = unit.count * self.group;
        let mut work = self.block.work(memory, rows);
        for row in 0..rows {
            let (from, _) = self.place(unit, row);
            read(s, l.q, from, work.query(row));
        }
        if P::WORDS {
            work.start::<S, true>(s, self.op.kv_dtype);
        } else {
            work.start::<S, false>(s, self.op.kv_dtype);
        }
        let keys = self.keys(unit, split);
        let scores = Scores::new(&self.op);
        // of this block and of the next one
        let mut places = [[0usize; KEYS]; 2];
        self.keys_at(l, unit, keys.clone(), &mut places[0]);
        for (i, first) in keys.clone().step_by(KEYS).enumerate() {
            let n = KEYS.min(keys.end - first);
            let [even, odd] = &mut places;
            let (at, next) = if i % 2 == 0 { (even, odd) } else { (odd, even) };
            let behind = self.keys_at(l, unit, first + n..keys.end, next);
            let mut masked = false;
            for row in 0..rows {
                let seen = self.visible(unit, row);
                let range =
                    seen.start.clamp(first, first + n) - first..seen.end.clamp(first, first + n) - first;
                masked |= range.len() != n;
                work.see(row, range);
            }
            let (at, next) = (&at[..n], &next[..behind]);
            let block = Keys { k: l.k, v: l.v, at, next, masked, scores };
            work.add::<S, MR, P>(s, &block);
        }
    }

    /// Puts the parts of a unit together and stores the result.
    #[inline(always)]
    fn finish<S: Simd>(&self, s: S, l: &Launched<'_>, unit: &Unit, parts: &[f32]) {
        let len = self.block.part_len();
        let (mut weights, mut run) = ([0.0f32; SPLITS], Run::ZERO);
        for row in 0..unit.count * self.group {
            let sink = l.sinks.map(|sinks| exponent(sinks[unit.kv_head * self.group + row % self.group]));
            let mut top = sink.unwrap_or(f32::NEG_INFINITY);
            for part in parts.chunks_exact(len) {
                // f32::max ignores NaN, which returns through the weight
                top = top.max(self.block.part(part).max(row));
            }
            let mut sum = sink.map_or(0.0, |sink| (sink - top).exp2());
            for (part, weight) in parts.chunks_exact(len).zip(&mut weights) {
                let part = self.block.part(part);
                // of a part without a finite score nothing counts
                *weight = if part.max(row) == f32::NEG_INFINITY { 0.0 } else { (part.max(row) - top).exp2() };
                sum += *weight * part.sum(row);
            }
            let empty = self.visible(unit, row).is_empty();
            let inverse = 1.0 / sum;
            let (_, to) = self.place(unit, row);
            for (first, n) in super::run::runs(self.op.q.len) {
                run.0[..n.next_multiple_of(S::LANES)].fill(0.0);
                for (part, weight) in parts.chunks_exact(len).zip(&weights) {
                    let weight = s.splat(*weight);
                    let values = self.block.part(part).values(row);
                    for i in (0..n).step_by(S::LANES) {
                        run.set(s, i, s.fma(s.load(&values[first + i..]), weight, run.get(s, i)));
                    }
                }
                for i in (0..n).step_by(S::LANES) {
                    run.set(s, i, s.mul(run.get(s, i), s.splat(inverse)));
                }
                if empty {
                    run.0[..n].fill(0.0);
                }
                // SAFETY: rows of units are different vectors of `out`, which do not overlap, and each unit has one lane.
                unsafe { write(s, &run.0[..n], l.out, to + first) };
            }
        }
    }
}

impl<const MR: usize, P: Products> Body for Flash<MR, P> {
    fn scratch(&self) -> u64 {
        let parts = self.part_len().saturating_mul(self.units().saturating_mul(self.splits));
        let table = self.offsets.map_or(0, |_| Cuts::len(self.op.batch));
        let own = self.block.len().saturating_add(table);
        let floats = parts.saturating_add(own.saturating_mul(self.lanes));
        (floats as u64).saturating_mul(4)
    }

    #[inline(always)]
    fn run<S: Simd>(&self, s: S, lane: &Lane<'_>, args: &Args) {
        let source = |i: usize, dtype: DType| Source { bytes: args.read(i), dtype };
        let scratch: Out<'_, f32> = args.scratch();
        let cuts = self.offsets.map(|i| {
            let len = Cuts::len(self.op.batch);
            let first = self.lanes * self.block.len() + lane.index() * len;
            // SAFETY: each lane has a table of its own behind the pieces of all lanes, which it slices once.
            let table = unsafe { scratch.slice(first..first + len) };
            self.cut(args.read(i), bytemuck::cast_slice_mut(table))
        });
        let l = Launched {
            q: source(0, self.op.q_dtype),
            k: source(1, self.op.kv_dtype),
            v: source(2, self.op.kv_dtype),
            kv_len: args.read(3),
            table: self.table.map_or(&[], |i| args.read(i)),
            sinks: self.sinks.map(|i| args.read(i)),
            out: Target { bytes: args.out(self.out), dtype: self.op.out_dtype },
            cuts,
        };
        let units = self.launched(&l);
        let own = lane.index() * self.block.len();
        // SAFETY: each lane has a piece of its own at the start of the scratch, which it slices once.
        let memory = unsafe { scratch.slice(own..own + self.block.len()) };
        if self.splits == 1 {
            while let Some(task) = lane.claim(units) {
                if let Some(unit) = self.unit(task, &l) {
                    self.attend(s, &l, &unit, 0, memory);
                    self.finish(s, &l, &unit, &memory[..self.block.part_len()]);
                }
            }
            return;
        }
        let parts = self.lanes * (self.block.len() + self.offsets.map_or(0, |_| Cuts::len(self.op.batch)));
        let part = |index: usize| parts + index * self.part_len();
        while let Some(task) = lane.claim(units * self.splits) {
            let (number, split) = (task / self.splits, task % self.splits);
            if let Some(unit) = self.unit(number, &l) {
                self.attend(s, &l, &unit, split, memory);
                // SAFETY: each task has a piece of its own, and one lane.
                let to = unsafe { scratch.slice(part(task)..part(task + 1)) };
                to.copy_from_slice(&memory[..to.len()]);
            }
        }
        lane.barrier();
        while let Some(number) = lane.claim(units) {
            if let Some(unit) = self.unit(number, &l) {
                let range = part(number * self.splits)..part((number + 1) * self.splits);
                // SAFETY: after the barrier nobody writes the parts.
                let parts = unsafe { scratch.shared(range) };
                self.finish(s, &l, &unit, parts);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::matmul::tests::{Random, open, run};
    use crate::simd::{Avx2, Portable};
    use half::bf16;
    use perjoule_kernels::op::Policy;
    use perjoule_kernels::{Choice, Device, KvLayout};

    /// Rows of words with plain arithmetic, which the table has for processors with AVX-512 BF16 alone.
    static WORDS: [Kernel; 2] = [pairs::<Portable, 2>("words_portable"), pairs::<Avx2, 6>("words_avx2")];
    static PLAIN: Kernel = row::<Portable, 2>("plain");

    #[test]
    fn words_of_two_give_what_single_elements_do() {
        let device = open(2);
        let mut random = Random(7);
        for (q_len, length) in [(1, 300), (9, 295), (70, 300), (70, 71), (130, 300)] {
            for (window, soft_cap) in [(None, None), (Some(1), None), (Some(50), Some(2.0)), (Some(97), None)]
            {
                let op = Attention::causal(1, q_len, 4, KvLayout::contiguous(2, 300, 64), DType::BF16);
                let mut op = Attention { window, soft_cap, out_dtype: DType::F32, ..op };
                let mut vectors = |elements: usize| -> Vec<u8> {
                    (0..elements).flat_map(|_| bf16::from_f32(2.0 * random.unit()).to_le_bytes()).collect()
                };
                let (q, kv) = (q_len * 4 * 64, 300 * 2 * 64);
                let inputs = [vectors(q), vectors(kv), vectors(kv), i32::to_le_bytes(length).to_vec()];
                for rounds in [false, true] {
                    op.policy = Policy { quantised_activations: rounds, ..op.policy };
                    let of = |kernel| -> Vec<f32> {
                        bytemuck::pod_collect_to_vec(&run(
                            &device,
                            kernel,
                            &op.into(),
                            &inputs,
                            &vec![0; 4 * q],
                        ))
                    };
                    let expected = of(&PLAIN);
                    let largest = expected.iter().fold(0.0f32, |max, x| max.max(x.abs()));
                    // weights are rounded to 2^-9 of each
                    let allowed = largest * if rounds { 4e-3 } else { 1e-5 };
                    for kernel in &WORDS {
                        if let Some(why) = Choice::new(kernel, 0, None).refusal(&op.into(), device.info()) {
                            assert_eq!(kernel.name, "words_avx2", "{why:?}");
                            continue;
                        }
                        for (i, (got, wanted)) in of(kernel).iter().zip(&expected).enumerate() {
                            let name = kernel.name;
                            assert!(
                                (got - wanted).abs() <= allowed,
                                "{name} {op:?} {i}: {got}, not {wanted}"
                            );
                        }
                    }
                }
            }
        }
    }
}
