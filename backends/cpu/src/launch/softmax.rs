//! Softmax: a lane takes whole vectors, and goes through each three times: maximum, sum, result.

use super::body::{Body, on, other_op};
use super::run::{Run, Source, Target, runs, write};
use crate::simd::{Simd, math};
use crate::spmd::Args;
use crate::team::Lane;
use perjoule_kernels::Request;
use perjoule_kernels::op::{Op, Softmax};
use perjoule_kernels::{Launch, Result};

pub(crate) fn prepare<S: Simd>(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    match request.op {
        Op::Softmax(op) => on::<S>(request, *op),
        op => Err(other_op(op)),
    }
}

impl Body for Softmax {
    #[inline(always)]
    fn run<S: Simd>(&self, s: S, lane: &Lane<'_>, args: &Args) {
        let x = Source { bytes: args.read(0), dtype: self.dtype };
        let out = Target { bytes: args.out(1), dtype: self.out_dtype };
        let scale = s.splat(self.scale);
        let mut run = Run::ZERO;
        for vector in lane.split(self.x.outer * self.x.inner, 1) {
            let (from, to) = (self.x.start_of(vector), self.out.start_of(vector));
            let lowest = s.splat(f32::NEG_INFINITY);
            let mut top = lowest;
            for (first, n) in runs(self.x.len) {
                run.read(s, x, from + first, n, 0.0);
                for i in (0..n).step_by(S::LANES) {
                    run.set(s, i, s.mul(run.get(s, i), scale));
                }
                run.0[n..n.next_multiple_of(S::LANES)].fill(f32::NEG_INFINITY);
                for i in (0..n).step_by(S::LANES) {
                    top = s.max(top, run.get(s, i));
                }
            }
            // a NaN that the maximum lost returns through exp
            let top = s.splat(s.reduce_max(top));
            let mut sum = 0.0f64;
            for (first, n) in runs(self.x.len) {
                run.read(s, x, from + first, n, 0.0);
                let mut part = s.splat(0.0);
                for i in (0..n).step_by(S::LANES) {
                    run.set(s, i, math::exp(s, s.sub(s.mul(run.get(s, i), scale), top)));
                }
                run.0[n..n.next_multiple_of(S::LANES)].fill(0.0);
                for i in (0..n).step_by(S::LANES) {
                    part = s.add(part, run.get(s, i));
                }
                sum += f64::from(s.reduce_add(part));
            }
            let inverse = s.splat((1.0 / sum) as f32);
            for (first, n) in runs(self.x.len) {
                run.read(s, x, from + first, n, 0.0);
                for i in (0..n).step_by(S::LANES) {
                    let e = math::exp(s, s.sub(s.mul(run.get(s, i), scale), top));
                    run.set(s, i, s.mul(e, inverse));
                }
                // SAFETY: lanes have different vectors, and the vectors of `out` do not overlap.
                unsafe { write(s, &run.0[..n], out, to + first) };
            }
        }
    }
}
