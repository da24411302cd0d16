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
use perjoule_kernels::{Launch, Result, Rows};

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

/// Copies one head of all new tokens into one cache.
#[inline(always)]
pub(crate) fn append<S: Simd>(
    s: S,
    op: &KvAppend,
    slots: &Slots<'_>,
    head: usize,
    (from, rows): (Source<'_>, Rows),
    cache: Target<'_>,
) {
    let mut run = Run::ZERO;
    let all = QueryRows::new(op.q_len, rows.outer, slots.offsets);
    for (b, tokens) in all.take(op.batch).enumerate() {
        let length = i64::from(slots.kv_len[b]);
        for (i, token) in tokens.clone().enumerate() {
            let position = length - tokens.len() as i64 + i as i64;
            let position = usize::try_from(position).ok().filter(|&p| p < op.kv.capacity);
            let Some(to) = position.and_then(|p| slots::vector(&op.kv, b, p, slots.table)) else { continue };
            for (first, n) in runs(rows.len) {
                run.read(s, from, rows.start(token, head) + first, n, 0.0);
                // SAFETY: only this lane writes this head of this cache.
                unsafe { write(s, &run.0[..n], cache, to + head * op.kv.head_stride + first) };
            }
        }
    }
}

impl Body for KvAppend {
    #[inline(always)]
    fn run<S: Simd>(&self, s: S, lane: &Lane<'_>, args: &Args) {
        let slots = Slots::new(self, args, 2);
        for task in lane.split(2 * self.kv.kv_heads, 1) {
            let (head, which) = (task / 2, task % 2);
            let rows = [self.src_k, self.src_v][which];
            let from = Source { bytes: args.read(which), dtype: self.src_dtype };
            let cache = Target { bytes: args.out(slots.next + which), dtype: self.kv_dtype };
            append(s, self, &slots, head, (from, rows), cache);
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
