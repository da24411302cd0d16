//! Appending to a KV cache, and advancing its slots.
//!
//! Lanes share heads, not tokens: whatever a block table says, no two lanes write the same vector.

use super::body::{Body, on, other_op};
use super::run::{Run, Source, Target, runs, write};
use crate::simd::Simd;
use crate::spmd::{Args, Spmd, launch};
use crate::team::Lane;
use perjoule_kernels::Request;
use perjoule_kernels::op::slots::{self, QueryRows};
use perjoule_kernels::op::{Advance, KvAppend, Op};
use perjoule_kernels::{Launch, Result};

pub(crate) fn prepare<S: Simd>(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    match request.op {
        Op::KvAppend(op) => on::<S>(request, *op),
        Op::Advance(op) => Ok(launch(request, Advancing(*op))),
        op => Err(other_op(op)),
    }
}

/// The slots that an append reads, from operand `first` on, and the number of the operand behind them.
pub(crate) struct Slots<'a> {
    kv_len: &'a [i32],
    offsets: Option<&'a [i32]>,
    table: &'a [i32],
    pub(crate) next: usize,
}

impl<'a> Slots<'a> {
    pub(crate) fn new(op: &KvAppend, args: &'a Args, first: usize) -> Self {
        let (offsets, table) = (first + 1, first + 1 + usize::from(op.ragged));
        Slots {
            kv_len: args.read(first),
            offsets: op.ragged.then(|| args.read(offsets)),
            table: op.kv.paging.map_or(&[], |_| args.read(table)),
            next: table + usize::from(op.kv.paging.is_some()),
        }
    }
}

/// New tokens, of `rows`, with the first element of their place in either cache, in head 0: those that have one.
#[inline(always)]
pub(crate) fn places<'a>(
    op: &'a KvAppend,
    slots: &'a Slots<'_>,
    rows: usize,
) -> impl Iterator<Item = (usize, usize)> + 'a {
    let sequences = QueryRows::new(op.q_len, rows, slots.offsets).take(op.batch).enumerate();
    sequences.flat_map(move |(b, tokens)| {
        let first = i64::from(slots.kv_len[b]) - tokens.len() as i64;
        tokens.enumerate().filter_map(move |(i, token)| {
            let position = usize::try_from(first + i as i64).ok().filter(|&p| p < op.kv.capacity)?;
            Some((token, slots::vector(&op.kv, b, position, slots.table)?))
        })
    })
}

impl Body for KvAppend {
    #[inline(always)]
    fn run<S: Simd>(&self, s: S, lane: &Lane<'_>, args: &Args) {
        let slots = Slots::new(self, args, 2);
        let mut run = Run::ZERO;
        for task in lane.split(2 * self.kv.kv_heads, 1) {
            let (head, which) = (task / 2, task % 2);
            let rows = [self.src_k, self.src_v][which];
            let from = Source { bytes: args.read(which), dtype: self.src_dtype };
            let cache = Target { bytes: args.out(slots.next + which), dtype: self.kv_dtype };
            for (token, to) in places(self, &slots, rows.outer) {
                for (first, n) in runs(rows.len) {
                    run.read(s, from, rows.start(token, head) + first, n, 0.0);
                    // SAFETY: only this lane writes this head of this cache.
                    unsafe { write(s, &run.0[..n], cache, to + head * self.kv.head_stride + first) };
                }
            }
        }
    }
}

struct Advancing(Advance);

impl Spmd for Advancing {
    fn run(&self, lane: &Lane<'_>, args: &Args) {
        if lane.index() != 0 {
            return;
        }
        let op = &self.0;
        let first = usize::from(op.ragged);
        let offsets = op.ragged.then(|| args.read::<i32>(0));
        // SAFETY: only lane 0 gets here.
        let (kv_len, positions) = unsafe {
            (args.out::<i32>(first).slice(0..op.batch), args.out::<i32>(first + 1).slice(0..op.tokens))
        };
        positions.fill(0);
        for (length, rows) in kv_len.iter_mut().zip(QueryRows::new(op.q_len, op.tokens, offsets)) {
            let before = *length;
            *length = before.saturating_add(rows.len() as i32);
            for (i, position) in positions[rows].iter_mut().enumerate() {
                *position = before.saturating_add(i as i32);
            }
        }
    }
}
