//! Mixtures of experts: lanes choose experts for different tokens, then lane 0 sorts the pairs; combining is element-wise.

use super::body::{Body, on, other_op};
use super::run::{Run, Source, Target, pieces, read, write};
use super::sample::descending;
use crate::device::lanes;
use crate::simd::Simd;
use crate::spmd::{Args, Out};
use crate::team::Lane;
use perjoule_kernels::Request;
use perjoule_kernels::op::{Combine, Op, Route, RouteOrder};
use perjoule_kernels::{Launch, Result};
use std::cmp::Ordering;

pub(crate) fn prepare<S: Simd>(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    match request.op {
        Op::Route(op) => {
            let lanes = lanes(request.info);
            on::<S>(request, Routing { op: *op, lanes })
        }
        Op::Combine(op) => on::<S>(request, *op),
        op => Err(other_op(op)),
    }
}

/// Routing with room for each lane's logits.
struct Routing {
    op: Route,
    lanes: usize,
}

/// The experts with the largest logits in order, as many as `chosen` has room for.
fn choose(logits: &[f32], chosen: &mut [i32]) {
    let before = |a: usize, b: i32| descending(logits[a], logits[b as usize]) == Ordering::Less;
    let mut count = 0;
    for (expert, &logit) in logits.iter().enumerate() {
        if count == chosen.len() {
            let Some(&last) = chosen.last() else { return };
            // as a rule it is one of the many that are not chosen; a NaN is looked at below
            if logit <= logits[last as usize] || !before(expert, last) {
                continue;
            }
        } else {
            count += 1;
        }
        // behind those that are as large, whose indices are lower
        let mut at = count - 1;
        while at > 0 && before(expert, chosen[at - 1]) {
            chosen[at] = chosen[at - 1];
            at -= 1;
        }
        chosen[at] = expert as i32;
    }
}

/// Weights of the chosen experts of one token.
fn weigh(order: RouteOrder, logits: &[f32], experts: &[i32], weights: &mut [f32]) {
    // the first chosen has the largest logit; a NaN there makes all weights NaN, as it does one by one elsewhere
    let exp = |e: i32, top: f32| f64::from(logits[e as usize] - top).exp();
    let top = logits.iter().fold(f32::NEG_INFINITY, |top, &x| top.max(x));
    let sum: f64 = match order {
        RouteOrder::SoftmaxThenTopK { renormalise: false } => {
            logits.iter().map(|&x| f64::from(x - top).exp()).sum()
        }
        RouteOrder::SoftmaxThenTopK { renormalise: true } | RouteOrder::TopKThenSoftmax => {
            experts.iter().map(|&e| exp(e, top)).sum()
        }
    };
    for (weight, &e) in weights.iter_mut().zip(experts) {
        *weight = (exp(e, top) / sum) as f32;
    }
}

impl Body for Routing {
    fn scratch(&self) -> u64 {
        (self.op.experts as u64).saturating_mul(4).saturating_mul(self.lanes as u64)
    }

    #[inline(always)]
    fn run<S: Simd>(&self, s: S, lane: &Lane<'_>, args: &Args) {
        let Route { tokens, experts, top_k, dtype, order } = self.op;
        let source = Source { bytes: args.read(0), dtype };
        let (weights, chosen) = (args.out::<f32>(1), args.out::<i32>(2));
        let scratch: Out<'_, f32> = args.scratch();
        // SAFETY: each lane has a piece of its own.
        let logits = unsafe { scratch.slice(lane.index() * experts..(lane.index() + 1) * experts) };
        for token in lane.split(tokens, 1) {
            read(s, source, token * experts, logits);
            let range = token * top_k..(token + 1) * top_k;
            // SAFETY: lanes have different tokens.
            let (weights, chosen) = unsafe { (weights.slice(range.clone()), chosen.slice(range)) };
            choose(logits, chosen);
            weigh(order, logits, chosen, weights);
        }
        lane.barrier();
        if lane.index() == 0 {
            // SAFETY: the experts were written before the barrier; only lane 0 gets here.
            let (chosen, offsets, sorted) = unsafe {
                let pairs = tokens * top_k;
                (chosen.shared(0..pairs), args.out(3).slice(0..experts + 1), args.out(4).slice(0..pairs))
            };
            sort(chosen, offsets, sorted);
        }
    }
}

/// Sorts the indices of `chosen` by expert, in order within an expert; `offsets` say where each expert's begin.
fn sort(chosen: &[i32], offsets: &mut [i32], sorted: &mut [i32]) {
    offsets.fill(0);
    for &expert in chosen {
        offsets[expert as usize + 1] += 1;
    }
    for e in 1..offsets.len() {
        offsets[e] += offsets[e - 1];
    }
    // offsets[e] runs from the expert's beginning to its end, which is the beginning of the next
    for (pair, &expert) in chosen.iter().enumerate() {
        let at = &mut offsets[expert as usize];
        sorted[*at as usize] = pair as i32;
        *at += 1;
    }
    for e in (1..offsets.len()).rev() {
        offsets[e] = offsets[e - 1];
    }
    offsets[0] = 0;
}

impl Body for Combine {
    #[inline(always)]
    fn run<S: Simd>(&self, s: S, lane: &Lane<'_>, args: &Args) {
        let x = Source { bytes: args.read(0), dtype: self.dtype };
        let weights = args.read::<f32>(1);
        let residual = self.residual.then(|| Source { bytes: args.read(2), dtype: self.out_dtype });
        let out = Target { bytes: args.out(2 + usize::from(self.residual)), dtype: self.out_dtype };
        let (mut sum, mut run) = (Run::ZERO, Run::ZERO);
        for p in pieces(lane, self.out) {
            let to = self.out.start(p.outer, p.inner) + p.first;
            match residual {
                Some(residual) => sum.read(s, residual, to, p.n, 0.0),
                None => sum.0.fill(0.0),
            }
            let rows = p.outer * self.top_k..(p.outer + 1) * self.top_k;
            for (row, &weight) in rows.clone().zip(&weights[rows]) {
                run.read(s, x, self.x.start(row, p.inner) + p.first, p.n, 0.0);
                let weight = s.splat(weight);
                for i in (0..p.n).step_by(S::LANES) {
                    sum.set(s, i, s.fma(weight, run.get(s, i), sum.get(s, i)));
                }
            }
            // SAFETY: pieces do not overlap, since the vectors of `out` do not.
            unsafe { write(s, &sum.0[..p.n], out, to) };
        }
    }
}
