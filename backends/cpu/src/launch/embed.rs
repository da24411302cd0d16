//! Rows of a table by index: lanes share the runs of all rows.

use super::body::{Body, on, other_op};
use super::run::{Run, Source, Target, pieces, write};
use crate::simd::Simd;
use crate::spmd::Args;
use crate::team::Lane;
use perjoule_kernels::Request;
use perjoule_kernels::op::{Embed, Op};
use perjoule_kernels::{Launch, Result};

pub(crate) fn prepare<S: Simd>(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    match request.op {
        Op::Embed(op) => on::<S>(request, *op),
        op => Err(other_op(op)),
    }
}

impl Body for Embed {
    #[inline(always)]
    fn run<S: Simd>(&self, s: S, lane: &Lane<'_>, args: &Args) {
        let ids = args.read::<i32>(0);
        let table = Source { bytes: args.read(1), dtype: self.table };
        let out = Target { bytes: args.out(2), dtype: self.out_dtype };
        let scale = s.splat(self.scale);
        let mut run = Run::ZERO;
        for p in pieces(lane, self.out) {
            match usize::try_from(ids[p.outer]).ok().filter(|&id| id < self.vocab) {
                Some(id) => {
                    run.read(s, table, id * self.dim + p.first, p.n, 0.0);
                    for i in (0..p.n).step_by(S::LANES) {
                        run.set(s, i, s.mul(run.get(s, i), scale));
                    }
                }
                None => run.0.fill(f32::NAN),
            }
            // SAFETY: pieces do not overlap, since the vectors of `out` do not.
            unsafe { write(s, &run.0[..p.n], out, self.out.start(p.outer, p.inner) + p.first) };
        }
    }
}
