//! Attention by its definition, one query and head at a time: the row to compare others with. Scores are computed twice, so that
//! none are stored.

use super::body::other_op;
use super::run::{Source, Target, read, write};
use crate::device::lanes;
use crate::simd::Portable;
use crate::spmd::{Args, Out, Spmd, launch};
use crate::team::Lane;
use perjoule_kernels::Request;
use perjoule_kernels::op::{Attention, Op, slots};
use perjoule_kernels::{Candidate, Config, Kernel, Launch, Result};

static CONFIGS: &[Config] = &[Config::tile("1x1", &[1, 1, 1])];

/// Its entry in the table.
pub(crate) const ROW: Kernel =
    Kernel::new("attention_any_1x1_cpu_simple", "attention", cost, prepare).with_configs(CONFIGS);

fn cost(Candidate { op, .. }: &Candidate<'_>) -> f32 {
    1e-5 + op.bytes() as f32 / 1e9 + op.flops() as f32 / 1e9
}

fn prepare(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let Op::Attention(op) = request.op else { return Err(other_op(request.op)) };
    let lanes = lanes(request.info);
    Ok(launch(request, Simple { op: *op, lanes }))
}

struct Simple {
    op: Attention,
    lanes: usize,
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

impl Spmd for Simple {
    fn scratch(&self) -> u64 {
        (self.op.q.len as u64).saturating_mul(12).saturating_mul(self.lanes as u64)
    }

    fn run(&self, lane: &Lane<'_>, args: &Args) {
        let op = &self.op;
        let source = |i: usize, dtype| Source { bytes: args.read(i), dtype };
        let (q, k, v) = (source(0, op.q_dtype), source(1, op.kv_dtype), source(2, op.kv_dtype));
        let kv_len = args.read::<i32>(3);
        let mut operand = 4;
        let mut next = |present: bool| {
            operand += usize::from(present);
            present.then(|| operand - 1)
        };
        let offsets = next(op.ragged).map(|i| args.read::<i32>(i));
        let table = next(op.kv.paging.is_some()).map_or(&[][..], |i| args.read::<i32>(i));
        let sinks = next(op.sinks).map(|i| args.read::<f32>(i));
        let out = Target { bytes: args.out(operand), dtype: op.out_dtype };
        let d = op.q.len;
        let scratch: Out<'_, f32> = args.scratch();
        // SAFETY: each lane has a piece of its own.
        let memory = unsafe { scratch.slice(lane.index() * 3 * d..(lane.index() + 1) * 3 * d) };
        let (query, rest) = memory.split_at_mut(d);
        let (vector, sum) = rest.split_at_mut(d);
        let group = op.q.inner / op.kv.kv_heads;
        let s = Portable;
        let all = slots::QueryRows::new(op.q_len, op.q.outer, offsets);
        for (b, (&length, rows)) in kv_len.iter().take(op.batch).zip(all).enumerate() {
            let length = if k.bytes.is_empty() { 0 } else { slots::length(length, op.kv.capacity) };
            for task in lane.split(rows.len() * op.q.inner, 1) {
                let (i, h) = (task / op.q.inner, task % op.q.inner);
                read(s, q, op.q.start(rows.start + i, h), query);
                let seen = op.visible(i, rows.len(), length);
                let head = h / group * op.kv.head_stride;
                let at = |j: usize| slots::vector(&op.kv, b, j, table).unwrap_or(0) + head;
                let score = |key: &[f32]| {
                    let x = dot(query, key) * op.scale;
                    op.soft_cap.map_or(x, |cap| cap * (x / cap).tanh())
                };
                let sink = sinks.map(|sinks| sinks[h]);
                let mut top = sink.unwrap_or(f32::NEG_INFINITY);
                for j in seen.clone() {
                    read(s, k, at(j), vector);
                    // f32::max ignores NaN, which returns through the weight
                    top = top.max(score(vector));
                }
                let mut total = sink.map_or(0.0, |sink| (sink - top).exp());
                sum.fill(0.0);
                for j in seen.clone() {
                    read(s, k, at(j), vector);
                    let weight = (score(vector) - top).exp();
                    total += weight;
                    read(s, v, at(j), vector);
                    sum.iter_mut().zip(&*vector).for_each(|(sum, x)| *sum += weight * x);
                }
                match seen.is_empty() {
                    true => sum.fill(0.0),
                    false => sum.iter_mut().for_each(|x| *x /= total),
                }
                // SAFETY: tasks are different vectors of `out`, which do not overlap, and each has one lane.
                unsafe { write(s, sum, out, op.out.start(rows.start + i, h)) };
            }
        }
    }
}
