//! Ops that are compositions: what a part hands to the next stays in scratch as f32.

use super::body::{Body, on, other_op};
use super::gated::gated;
use super::kv::{Slots, append};
use super::norm::squares;
use super::rope::{Angles, Rotation};
use super::run::{LEN, Run, Source, Target, read, runs, write};
use crate::device::lanes;
use crate::simd::Simd;
use crate::spmd::{Args, Out};
use crate::team::Lane;
use perjoule_kernels::Request;
use perjoule_kernels::op::{GatedMatMul, MatMul, Op, QkNormRopeAppend, RmsNorm};
use perjoule_kernels::{DType, Launch, Result, Rows};

pub(crate) fn prepare<S: Simd>(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let lanes = lanes(request.info);
    match request.op {
        Op::QkNormRopeAppend(op) => on::<S>(
            request,
            QkNorm { op: **op, q_rope: Rotation::new(op.q_rope), k_rope: Rotation::new(op.k_rope), lanes },
        ),
        Op::GatedMatMul(op) => on::<S>(request, Products { op: **op, lanes }),
        op => Err(other_op(op)),
    }
}

/// Queries by token, keys by token into scratch; after a barrier keys and values go to the caches by head.
struct QkNorm {
    op: QkNormRopeAppend,
    q_rope: Rotation,
    k_rope: Rotation,
    lanes: usize,
}

/// Normalises and rotates one vector into `to`.
#[inline(always)]
fn prepare_head<S: Simd>(
    s: S,
    norm: &RmsNorm,
    rope: &Rotation,
    (x, at): (Source<'_>, usize),
    weight: Source<'_>,
    position: i32,
    to: &mut [f32],
) {
    read(s, x, at, to);
    let (mut run, mut w, mut angles) = (Run::ZERO, Run::ZERO, Angles::NONE);
    let mut total = 0.0;
    for (first, n) in runs(to.len()) {
        run.0[..n].copy_from_slice(&to[first..first + n]);
        run.0[n..].fill(0.0);
        total += squares(s, &run.0, 0.0);
    }
    let inverse = (1.0 / (total / to.len() as f64 + f64::from(norm.eps)).sqrt()) as f32;
    for (first, n) in runs(to.len()) {
        w.read(s, weight, first, n, 0.0);
        for (x, w) in to[first..first + n].iter_mut().zip(&w.0) {
            *x = *x * inverse * (w + norm.weight_offset);
        }
    }
    for (first, n) in rope.runs() {
        rope.angles(position, first, n, &mut angles);
        rope.rotate_vector(s, first, n, &angles, to);
    }
}

impl QkNorm {
    fn keys(&self) -> Rows {
        let x = self.op.k_norm.x;
        Rows::grid(x.outer, x.inner, x.len)
    }

    fn key_floats(&self) -> usize {
        self.keys().elements().unwrap_or(usize::MAX)
    }
}

impl Body for QkNorm {
    fn scratch(&self) -> u64 {
        let heads = self.op.q_norm.x.len.saturating_mul(self.lanes);
        (self.key_floats().saturating_add(heads) as u64).saturating_mul(4)
    }

    #[inline(always)]
    fn run<S: Simd>(&self, s: S, lane: &Lane<'_>, args: &Args) {
        let QkNormRopeAppend { q_norm, k_norm, append: appending, .. } = &self.op;
        let source = |i: usize, dtype: DType| Source { bytes: args.read(i), dtype };
        let (q, k) = (source(0, q_norm.x_dtype), source(1, k_norm.x_dtype));
        let (q_weight, k_weight) = (source(3, q_norm.weight), source(4, k_norm.weight));
        let positions = args.read::<i32>(5);
        let slots = Slots::new(appending, args, 6);
        let out = Target { bytes: args.out(slots.next + 2), dtype: q_norm.out_dtype };
        let scratch: Out<'_, f32> = args.scratch();
        let (keys, len) = (self.keys(), q_norm.x.len);
        let own = self.key_floats() + lane.index() * len;
        // SAFETY: each lane has a piece of its own behind the keys.
        let head = unsafe { scratch.slice(own..own + len) };
        for token in lane.split(q_norm.x.outer, 1) {
            for h in 0..q_norm.x.inner {
                let x = (q, q_norm.x.start(token, h));
                prepare_head(s, q_norm, &self.q_rope, x, q_weight, positions[token], head);
                // SAFETY: lanes have different tokens, whose vectors do not overlap.
                unsafe { write(s, head, out, q_norm.out.start(token, h)) };
            }
            for h in 0..keys.inner {
                let to = keys.start(token, h);
                // SAFETY: as above, of the keys in scratch.
                let to = unsafe { scratch.slice(to..to + keys.len) };
                let x = (k, k_norm.x.start(token, h));
                prepare_head(s, k_norm, &self.k_rope, x, k_weight, positions[token], to);
            }
        }
        lane.barrier();
        // SAFETY: after the barrier nobody writes the keys.
        let prepared: &[u8] = bytemuck::cast_slice(unsafe { scratch.shared(0..self.key_floats()) });
        let prepared = Source { bytes: prepared, dtype: DType::F32 };
        let values = source(2, appending.src_dtype);
        for task in lane.split(2 * keys.inner, 1) {
            let which = task % 2;
            let from = [(prepared, keys), (values, appending.src_v)][which];
            let cache = Target { bytes: args.out(slots.next + which), dtype: appending.kv_dtype };
            append(s, appending, &slots, task / 2, from, cache);
        }
    }
}

/// Both products column by column; the row to compare others with.
struct Products {
    op: GatedMatMul,
    lanes: usize,
}

/// Reads `n` elements `stride` apart, from element `at` on.
#[inline(always)]
fn gather<S: Simd>(s: S, from: Source<'_>, at: usize, stride: usize, to: &mut [f32]) {
    if stride == 1 {
        read(s, from, at, to);
        return;
    }
    for (i, to) in to.iter_mut().enumerate() {
        read(s, from, at + i * stride, std::slice::from_mut(to));
    }
}

/// One element of a product: `row` holds a whole row of A.
#[inline(always)]
fn element<S: Simd>(
    s: S,
    op: &MatMul,
    row: &[f32],
    b: Source<'_>,
    bias: Option<Source<'_>>,
    col: usize,
) -> f32 {
    let mut run = Run::ZERO;
    let mut total = 0.0f64;
    for (first, n) in runs(op.k) {
        let at = op.b.strides.at(0, first, col);
        gather(s, b, at, op.b.strides.row, &mut run.0[..n]);
        run.0[n..n.next_multiple_of(S::LANES)].fill(0.0);
        let mut sum = s.splat(0.0);
        for i in (0..n).step_by(S::LANES) {
            sum = s.fma(s.load_or(&row[first + i..], 0.0), run.get(s, i), sum);
        }
        total += f64::from(s.reduce_add(sum));
    }
    let mut added = [0.0];
    if let Some(bias) = bias {
        read(s, bias, col, &mut added);
    }
    total as f32 + added[0]
}

impl Body for Products {
    fn scratch(&self) -> u64 {
        (self.op.gate.k as u64).saturating_mul(4).saturating_mul(self.lanes as u64)
    }

    #[inline(always)]
    fn run<S: Simd>(&self, s: S, lane: &Lane<'_>, args: &Args) {
        let GatedMatMul { gate, up, gated: activation } = &self.op;
        let source = |i: usize, dtype: DType| Source { bytes: args.read(i), dtype };
        let (a, gate_b, up_b) = (source(0, gate.a.dtype), source(1, gate.b.dtype), source(2, up.b.dtype));
        let mut operand = 3;
        let mut bias = |dtype: Option<DType>| {
            operand += usize::from(dtype.is_some());
            dtype.map(|dtype| source(operand - 1, dtype))
        };
        let (gate_bias, up_bias) = (bias(gate.epilogue.bias), bias(up.epilogue.bias));
        let out = Target { bytes: args.out(operand), dtype: activation.out_dtype };
        let (k, scratch) = (gate.k, args.scratch::<f32>());
        // SAFETY: each lane has a piece of its own.
        let row = unsafe { scratch.slice(lane.index() * k..(lane.index() + 1) * k) };
        let mut run = Run::ZERO;
        for m in 0..gate.m {
            let strides = gate.a.strides;
            if k > 0 {
                gather(s, a, strides.at(0, m, 0), strides.col, row);
            }
            let share = lane.split(gate.n, 16);
            for first in share.clone().step_by(LEN) {
                let n = LEN.min(share.end - first);
                for i in 0..n {
                    let g = element(s, gate, row, gate_b, gate_bias, first + i);
                    let u = element(s, up, row, up_b, up_bias, first + i);
                    let y = gated(s, activation.kind, s.splat(g), s.splat(u));
                    run.0[i] = s.to_array(y)[0];
                }
                // SAFETY: lanes have different columns.
                unsafe { write(s, &run.0[..n], out, activation.out.start(m, 0) + first) };
            }
        }
    }
}
