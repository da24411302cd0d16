//! Choosing tokens: a lane takes whole vectors. NaN counts as larger than every number, and ties pick the lowest index.

use super::body::{Body, on, other_op};
use super::run::{LEN, Run, Source, read, runs};
use crate::device::lanes;
use crate::simd::Simd;
use crate::spmd::{Args, Out};
use crate::team::Lane;
use perjoule_kernels::Request;
use perjoule_kernels::op::{Argmax, Op, Sample};
use perjoule_kernels::{Launch, Result};
use std::cmp::Ordering;

pub(crate) fn prepare<S: Simd>(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    match request.op {
        Op::Argmax(op) => on::<S>(request, *op),
        Op::Sample(op) => {
            let lanes = lanes(request.info);
            on::<S>(request, Sampling { op: *op, lanes })
        }
        op => Err(other_op(op)),
    }
}

/// Largest value first; NaN before every number.
pub(crate) fn descending(a: f32, b: f32) -> Ordering {
    match (a.is_nan(), b.is_nan()) {
        (false, false) => b.partial_cmp(&a).unwrap_or(Ordering::Equal),
        (a, b) => b.cmp(&a),
    }
}

/// The largest of whole vectors, or NaN where there is one.
#[inline(always)]
fn largest<S: Simd>(s: S, values: &[f32]) -> f32 {
    let mut top = s.splat(f32::NEG_INFINITY);
    let mut nothing = s.splat(0.0);
    for x in values.chunks_exact(S::LANES) {
        let x = s.load(x);
        top = s.max(x, top);
        // NaN for NaN and inf, which do not compare as less
        nothing = s.add(nothing, s.select_lt(x, s.splat(f32::INFINITY), s.splat(0.0), s.sub(x, x)));
    }
    if s.reduce_add(nothing).is_nan() {
        // NaN or inf: rare, and told apart one by one
        let nan = values.iter().copied().find(|x| x.is_nan());
        return nan.unwrap_or(f32::INFINITY);
    }
    s.reduce_max(top)
}

impl Body for Argmax {
    #[inline(always)]
    fn run<S: Simd>(&self, s: S, lane: &Lane<'_>, args: &Args) {
        let x = Source { bytes: args.read(0), dtype: self.dtype };
        let ids = args.out::<i32>(1);
        let mut run = Run::ZERO;
        for vector in lane.split(self.x.outer * self.x.inner, 1) {
            let from = self.x.start_of(vector);
            let (mut best, mut found) = (f32::NEG_INFINITY, 0);
            for (first, n) in runs(self.x.len) {
                run.read(s, x, from + first, n, f32::NEG_INFINITY);
                let top = largest(s, &run.0[..n.next_multiple_of(S::LANES)]);
                if descending(top, best) == Ordering::Less {
                    let at = run.0[..n].iter().position(|&v| descending(v, top) == Ordering::Equal);
                    (best, found) = (top, first + at.unwrap_or(0));
                    if best.is_nan() {
                        break;
                    }
                }
            }
            // SAFETY: lanes have different vectors.
            unsafe { ids.slice(vector..vector + 1)[0] = found as i32 };
        }
    }
}

/// Sampling with room for each lane's candidates.
struct Sampling {
    op: Sample,
    lanes: usize,
}

impl Sampling {
    /// Floats (and indices) of a lane: values, order, and weights of two floats each.
    fn floats(&self) -> usize {
        self.op.x.len.next_multiple_of(16) * 4
    }
}

/// The index that `uniform` picks, as [`Sample`] defines it; `order` and `weights` are room for as many as there are values.
fn pick(op: &Sample, values: &[f32], order: &mut [u32], weights: &mut [f64], uniform: f32) -> u32 {
    for (i, index) in order.iter_mut().enumerate() {
        *index = i as u32;
    }
    let before = |a: &u32, b: &u32| descending(values[*a as usize], values[*b as usize]).then(a.cmp(b));
    let kept = op.top_k.unwrap_or(usize::MAX).min(order.len());
    if kept < order.len() {
        order.select_nth_unstable_by(kept, before);
    }
    let order = &mut order[..kept];
    order.sort_unstable_by(before);
    let top = f64::from(values[order[0] as usize]);
    if !top.is_finite() {
        return order[0];
    }
    let mut sum = 0.0;
    for (weight, &index) in weights.iter_mut().zip(&*order) {
        *weight = ((f64::from(values[index as usize]) - top) / f64::from(op.temperature)).exp();
        sum += *weight;
    }
    let enough = op.top_p.map_or(f64::INFINITY, f64::from) * sum;
    let (mut mass, mut kept) = (0.0, 0);
    while kept < order.len() && (kept == 0 || mass < enough) {
        mass += weights[kept];
        kept += 1;
    }
    let mut share = 0.0;
    for (&index, weight) in order[..kept].iter().zip(&*weights) {
        share += weight / mass;
        if share > f64::from(uniform) {
            return index;
        }
    }
    // rounding may leave the total below a uniform close to 1
    order[kept - 1]
}

impl Body for Sampling {
    fn scratch(&self) -> u64 {
        (self.floats() as u64).saturating_mul(4).saturating_mul(self.lanes as u64)
    }

    #[inline(always)]
    fn run<S: Simd>(&self, s: S, lane: &Lane<'_>, args: &Args) {
        let op = &self.op;
        let x = Source { bytes: args.read(0), dtype: op.dtype };
        let uniform = args.read::<f32>(1);
        let ids = args.out::<i32>(2);
        let scratch: Out<'_, f32> = args.scratch();
        // SAFETY: each lane has a piece of its own.
        let memory =
            unsafe { scratch.slice(lane.index() * self.floats()..(lane.index() + 1) * self.floats()) };
        let (values, rest) = memory.split_at_mut(self.floats() / 4);
        let (order, weights) = rest.split_at_mut(self.floats() / 4);
        let values = &mut values[..op.x.len];
        let order = &mut bytemuck::cast_slice_mut(order)[..op.x.len];
        let weights = &mut bytemuck::cast_slice_mut(weights)[..op.x.len];
        for vector in lane.split(op.x.outer * op.x.inner, 1) {
            for values in values.chunks_mut(LEN).enumerate() {
                read(s, x, op.x.start_of(vector) + values.0 * LEN, values.1);
            }
            let id = pick(op, values, order, weights, uniform[vector]);
            // SAFETY: lanes have different vectors.
            unsafe { ids.slice(vector..vector + 1)[0] = id as i32 };
        }
    }
}
