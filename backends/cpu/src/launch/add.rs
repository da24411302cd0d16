//! `out = a + b`: lanes share the runs of all vectors.

use super::body::{Body, on, other_op};
use super::run::{Run, Source, Target, pieces, write};
use crate::simd::Simd;
use crate::spmd::Args;
use crate::team::Lane;
use perjoule_kernels::Request;
use perjoule_kernels::op::{Add, Op};
use perjoule_kernels::{Launch, Result};

pub(crate) fn prepare<S: Simd>(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    match request.op {
        Op::Add(op) => on::<S>(request, *op),
        op => Err(other_op(op)),
    }
}

impl Body for Add {
    #[inline(always)]
    fn run<S: Simd>(&self, s: S, lane: &Lane<'_>, args: &Args) {
        let dtype = self.dtype;
        let [a, b] = [0, 1].map(|i| Source { bytes: args.read(i), dtype });
        let out = Target { bytes: args.out(2), dtype };
        let (mut x, mut y) = (Run::ZERO, Run::ZERO);
        for p in pieces(lane, self.out) {
            x.read(s, a, self.a.start(p.outer, p.inner) + p.first, p.n, 0.0);
            y.read(s, b, self.b.start(p.outer, p.inner) + p.first, p.n, 0.0);
            for i in (0..p.n).step_by(S::LANES) {
                x.set(s, i, s.add(x.get(s, i), y.get(s, i)));
            }
            // SAFETY: pieces do not overlap, since the vectors of `out` do not.
            unsafe { write(s, &x.0[..p.n], out, self.out.start(p.outer, p.inner) + p.first) };
        }
    }
}
