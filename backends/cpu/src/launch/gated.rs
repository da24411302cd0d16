//! Gated activations: lanes share the runs of all vectors.

use super::body::{Body, on, other_op};
use super::run::{Run, Source, Target, pieces, write};
use crate::simd::{Simd, math};
use crate::spmd::Args;
use crate::team::Lane;
use perjoule_kernels::Request;
use perjoule_kernels::op::{Gated, GatedKind, Op};
use perjoule_kernels::{Launch, Result};

pub(crate) fn prepare<S: Simd>(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    match request.op {
        Op::Gated(op) => on::<S>(request, *op),
        op => Err(other_op(op)),
    }
}

/// The gated activation of one vector.
#[inline(always)]
pub(crate) fn gated<S: Simd>(s: S, kind: GatedKind, gate: S::V, up: S::V) -> S::V {
    match kind {
        GatedKind::SwiGlu => s.mul(math::silu(s, gate), up),
        GatedKind::GeGlu => s.mul(math::gelu(s, gate), up),
        GatedKind::GeGluTanh => s.mul(math::gelu_tanh(s, gate), up),
        GatedKind::GptOss { alpha, limit } => {
            // in this order NaN stays NaN
            let g = s.min(s.splat(limit), gate);
            let u = s.max(s.splat(-limit), s.min(s.splat(limit), up));
            let activated = s.mul(g, math::sigmoid(s, s.mul(g, s.splat(alpha))));
            s.mul(activated, s.add(u, s.splat(1.0)))
        }
    }
}

impl Body for Gated {
    #[inline(always)]
    fn run<S: Simd>(&self, s: S, lane: &Lane<'_>, args: &Args) {
        let [gate, up] = [0, 1].map(|i| Source { bytes: args.read(i), dtype: self.dtype });
        let out = Target { bytes: args.out(2), dtype: self.out_dtype };
        let (mut g, mut u) = (Run::ZERO, Run::ZERO);
        for p in pieces(lane, self.out) {
            g.read(s, gate, self.gate.start(p.outer, p.inner) + p.first, p.n, 0.0);
            u.read(s, up, self.up.start(p.outer, p.inner) + p.first, p.n, 0.0);
            for i in (0..p.n).step_by(S::LANES) {
                g.set(s, i, gated(s, self.kind, g.get(s, i), u.get(s, i)));
            }
            // SAFETY: pieces do not overlap, since the vectors of `out` do not.
            unsafe { write(s, &g.0[..p.n], out, self.out.start(p.outer, p.inner) + p.first) };
        }
    }
}
