//! Ops that are compositions: what a part hands to the next stays in cache, as f32.

use super::body::{Body, on, other_op};
use super::gated::gated;
use super::kv::{Slots, places};
use super::norm::{Inverse, squares};
use super::rope::Rotation;
use super::run::{LEN, Run, Source, Target, read, runs, write};
use crate::device::lanes;
use crate::simd::{MAX_LANES, Simd};
use crate::spmd::{Args, Out};
use crate::team::Lane;
use perjoule_kernels::Request;
use perjoule_kernels::op::{GatedMatMul, HeadNorm, MatMul, Op, QkNormRopeAppend};
use perjoule_kernels::{DType, Launch, Result, Rows};

pub(crate) fn prepare<S: Simd>(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let lanes = lanes(request.info);
    match request.op {
        Op::QkNormRopeAppend(op) => on::<S>(request, Heads::new(**op, lanes)),
        Op::GatedMatMul(op) => on::<S>(request, Products { op: **op, lanes }),
        op => Err(other_op(op)),
    }
}

/// Angles by token into scratch; after a barrier queries by vector, keys and values by head, as [`super::kv`] says.
struct Heads {
    op: QkNormRopeAppend,
    q_rope: Rotation,
    k_rope: Rotation,
    /// Whether queries and keys share their angles.
    alike: bool,
    lanes: usize,
}

/// How the vectors of queries or keys are prepared.
struct Vectors<'a> {
    x: Source<'a>,
    rows: Rows,
    norm: Option<(HeadNorm, Source<'a>)>,
    rope: &'a Rotation,
    /// Cosines and sines of each token.
    angles: &'a [f32],
}

impl Vectors<'_> {
    /// Normalises and rotates one vector into `to`, which is longer by up to a SIMD vector.
    #[inline(always)]
    fn prepare<S: Simd>(&self, s: S, token: usize, head: usize, weights: &mut Run, to: &mut [f32]) {
        let len = self.rows.len;
        read(s, self.x, self.rows.start(token, head), &mut to[..len]);
        if let Some((norm, weight)) = self.norm {
            let whole = &mut to[..len.next_multiple_of(S::LANES)];
            whole[len..].fill(0.0);
            let mut total = 0.0;
            for (first, n) in runs(whole.len()) {
                total += squares(s, &whole[first..], n, 0.0);
            }
            let inverse = Inverse::of(total / len as f64 + f64::from(norm.eps));
            inverse.bring_near(whole);
            let rest = s.splat(inverse.rest);
            let offset = s.splat(norm.weight_offset);
            for (first, n) in runs(len) {
                weights.read(s, weight, first, n, 0.0);
                for i in (0..n).step_by(S::LANES) {
                    let x = s.mul(s.load(&whole[first + i..]), rest);
                    s.store(&mut whole[first + i..], s.mul(x, s.add(weights.get(s, i), offset)));
                }
            }
        }
        let pairs = self.rope.pairs();
        let (cos, sin) = self.angles[2 * pairs * token..][..2 * pairs].split_at(pairs);
        self.rope.rotate_vector(s, cos, sin, &mut to[..len]);
    }
}

impl Heads {
    fn new(op: QkNormRopeAppend, lanes: usize) -> Self {
        let (q_rope, k_rope) = (Rotation::new(op.q_rope), Rotation::new(op.k_rope));
        Heads { op, q_rope, k_rope, alike: op.q_rope.turns_like(&op.k_rope), lanes }
    }

    /// Floats of the angles of queries, and of those of keys that are not the same.
    fn angles(&self) -> [usize; 2] {
        let floats = |rope: &Rotation| self.op.q.outer.saturating_mul(2 * rope.pairs());
        [floats(&self.q_rope), if self.alike { 0 } else { floats(&self.k_rope) }]
    }

    /// Floats of a lane's vector.
    fn vector(&self) -> usize {
        self.op.q.len.max(self.op.append.src_k.len).saturating_add(MAX_LANES)
    }
}

impl Body for Heads {
    fn scratch(&self) -> u64 {
        let [q, k] = self.angles();
        let vectors = self.vector().saturating_mul(self.lanes);
        (q.saturating_add(k).saturating_add(vectors) as u64).saturating_mul(4)
    }

    #[inline(always)]
    fn run<S: Simd>(&self, s: S, lane: &Lane<'_>, args: &Args) {
        let op = &self.op;
        let append = &op.append;
        let positions = args.read::<i32>(op.positions());
        let scratch: Out<'_, f32> = args.scratch();
        let [own, other] = self.angles();
        let tables = [(&self.q_rope, 0), (&self.k_rope, own)];
        let tables = &tables[..if self.alike { 1 } else { 2 }];
        for token in lane.split(op.q.outer, 1) {
            for (rope, first) in tables {
                let pairs = rope.pairs();
                let at = first + 2 * pairs * token;
                // SAFETY: lanes have different tokens, whose angles do not overlap.
                let (cos, sin) = unsafe { scratch.slice(at..at + 2 * pairs) }.split_at_mut(pairs);
                rope.angles(positions[token], 0, cos, sin);
            }
        }
        lane.barrier();
        // SAFETY: after the barrier nobody writes the angles.
        let angles = unsafe { scratch.shared(0..own + other) };
        let at = own + other + lane.index() * self.vector();
        // SAFETY: each lane has a piece of its own behind the angles.
        let vector = unsafe { scratch.slice(at..at + self.vector()) };
        let mut weights = Run::ZERO;
        let source = |i: usize, dtype: DType| Source { bytes: args.read(i), dtype };
        let slots = Slots::new(append, args, op.positions() + 1);

        let queries = Vectors {
            x: source(0, op.q_dtype),
            rows: op.q,
            norm: op.q_norm.map(|norm| (norm, source(3, norm.weight))),
            rope: &self.q_rope,
            angles,
        };
        let out = Target { bytes: args.out(slots.next + 2), dtype: op.q_rope.dtype };
        for task in lane.split(op.q.outer * op.q.inner, 1) {
            let (token, head) = (task / op.q.inner, task % op.q.inner);
            queries.prepare(s, token, head, &mut weights, vector);
            // SAFETY: lanes have different vectors, which do not overlap.
            unsafe { write(s, &vector[..op.q.len], out, op.q_rope.x.start(token, head)) };
        }

        let keys = Vectors {
            x: source(1, append.src_dtype),
            rows: append.src_k,
            norm: op.k_norm.map(|norm| (norm, source(op.positions() - 1, norm.weight))),
            rope: &self.k_rope,
            angles: if self.alike { angles } else { &angles[own..] },
        };
        let (values, rows) = (source(2, append.src_dtype), append.src_v);
        for task in lane.split(2 * rows.inner, 1) {
            let (head, which) = (task / 2, task % 2);
            let cache = Target { bytes: args.out(slots.next + which), dtype: append.kv_dtype };
            for (token, to) in places(append, &slots, rows.outer) {
                match which {
                    0 => keys.prepare(s, token, head, &mut weights, vector),
                    _ => read(s, values, rows.start(token, head), &mut vector[..rows.len]),
                }
                // SAFETY: only this lane writes this head of this cache.
                unsafe { write(s, &vector[..rows.len], cache, to + head * append.kv.head_stride) };
            }
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
