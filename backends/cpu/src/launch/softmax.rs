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

/// The element of a vector whose product with the scale is the highest.
#[cold]
fn extreme<S: Simd>(s: S, op: &Softmax, x: Source<'_>, from: usize) -> f32 {
    let rises = op.scale > 0.0;
    let mut run = Run::ZERO;
    let mut lead = if rises { f32::NEG_INFINITY } else { f32::INFINITY };
    for (first, n) in runs(op.x.len) {
        run.read(s, x, from + first, n, 0.0);
        for &x in &run.0[..n] {
            lead = if rises { lead.max(x) } else { lead.min(x) };
        }
    }
    lead
}

/// Replaces elements by their exponents, relative to that of `lead`.
#[cold]
fn far_exponents(elements: &mut [f32], scale: f32, lead: f32) {
    elements.iter_mut().for_each(|x| *x = (*x - lead) * scale);
}

impl Body for Softmax {
    #[inline(always)]
    fn run<S: Simd>(&self, s: S, lane: &Lane<'_>, args: &Args) {
        let x = Source { bytes: args.read(0), dtype: self.dtype };
        let out = Target { bytes: args.out(1), dtype: self.out_dtype };
        let mut run = Run::ZERO;
        for vector in lane.split(self.x.outer * self.x.inner, 1) {
            let (from, to) = (self.x.start_of(vector), self.out.start_of(vector));
            let mut scale = s.splat(self.scale);
            let mut top = s.splat(f32::NEG_INFINITY);
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
            let highest = s.reduce_max(top);
            let mut top = s.splat(highest);
            // where f32 does not hold the highest product, the element that it is of is subtracted before and not after the scale, which
            // is no fraction then: what overflows is a difference that gives 0
            let mut lead = None;
            if highest.is_infinite() {
                lead = Some(extreme(s, self, x, from));
                (scale, top) = (s.splat(1.0), s.splat(0.0));
            }
            let mut sum = 0.0f64;
            for (first, n) in runs(self.x.len) {
                run.read(s, x, from + first, n, 0.0);
                if let Some(lead) = lead {
                    far_exponents(&mut run.0[..n], self.scale, lead);
                }
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
                if let Some(lead) = lead {
                    far_exponents(&mut run.0[..n], self.scale, lead);
                }
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
