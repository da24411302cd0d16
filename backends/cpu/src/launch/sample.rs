//! Choosing tokens: a lane takes whole vectors. NaN counts as larger than every number, and ties pick the lowest index.

use super::body::{Body, on, other_op};
use super::run::{LEN, Run, Source, read, runs};
use crate::device::lanes;
use crate::simd::{Simd, math};
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

/// Elements of a group, whose largest is found first: whole vectors.
const GROUP: usize = 64;

/// Candidates that are put in order at first.
const FIRST: usize = 256;

/// How far a sum of [`math::exp`] may be off: the exponent is rounded to f32 and at most 105 in magnitude.
const MARGIN: f64 = 1e-4;

/// Sampling with room for each lane's candidates.
struct Sampling {
    op: Sample,
    lanes: usize,
}

impl Sampling {
    /// Length of a vector in whole groups.
    fn padded(&self) -> usize {
        self.op.x.len.next_multiple_of(GROUP)
    }

    /// Floats of a lane: keys of two floats each, values, and the largest of each group.
    fn floats(&self) -> usize {
        let groups = self.padded() / GROUP;
        self.padded().saturating_mul(3).saturating_add(groups.next_multiple_of(16))
    }
}

/// A number that sorts as a candidate does: the largest value first, of equal ones the lowest index. The value is not NaN.
fn key(value: f32, index: usize) -> u64 {
    // both zeros are equal
    let bits = (value + 0.0).to_bits();
    let ascending = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    (u64::from(!ascending) << 32) | index as u64
}

fn index(key: u64) -> usize {
    key as u32 as usize
}

/// The candidates of one vector of logits, none of which is NaN and of which the largest, `top`, is finite.
struct Candidates<'c> {
    op: &'c Sample,
    values: &'c [f32],
    /// Largest of each group of values.
    groups: &'c [f32],
    keys: &'c mut [u64],
    top: f32,
    uniform: f32,
}

impl Candidates<'_> {
    /// Puts the first `count` candidates in order at the front of the keys.
    fn sort(&mut self, count: usize) {
        let Candidates { values, groups, keys, .. } = self;
        let mut found = 0;
        if count <= groups.len() {
            // as many groups reach the bound as there are candidates, so that no candidate lies below it
            let (bounds, _) = keys.split_at_mut(groups.len());
            bounds.iter_mut().zip(&**groups).for_each(|(bound, &group)| *bound = key(group, 0));
            let (_, &mut bound, _) = bounds.select_nth_unstable(count - 1);
            let bound = bound | u64::from(u32::MAX);
            for (g, &group) in groups.iter().enumerate() {
                if key(group, 0) > bound {
                    continue;
                }
                let first = g * GROUP;
                for (i, &value) in values[first..values.len().min(first + GROUP)].iter().enumerate() {
                    // every element of a group is stored, and kept where it is within the bound
                    keys[found] = key(value, first + i);
                    found += usize::from(keys[found] <= bound);
                }
            }
        } else {
            found = values.len();
            for (i, (key_at, &value)) in keys.iter_mut().zip(&**values).enumerate() {
                *key_at = key(value, i);
            }
        }
        if count < found {
            keys[..found].select_nth_unstable(count);
        }
        keys[..count].sort_unstable();
    }

    fn weight(&self, key: u64) -> f64 {
        let value = f64::from(self.values[index(key)]);
        ((value - f64::from(self.top)) / f64::from(self.op.temperature)).exp()
    }

    /// What is picked among the first `sorted` candidates if the weights of all that `top_k` keeps have that sum; `None` where it lies
    /// behind them. `all` are those that `top_k` keeps.
    fn pick(&self, sum: f64, sorted: usize, all: usize) -> Option<usize> {
        let (mut mass, mut kept) = (sum, sorted);
        // all of the mass takes all candidates, whose sum is known
        let part = self.op.top_p.filter(|&top_p| top_p < 1.0);
        if let Some(top_p) = part {
            let enough = f64::from(top_p) * sum;
            (mass, kept) = (0.0, 0);
            while kept < sorted && (kept == 0 || mass < enough) {
                mass += self.weight(self.keys[kept]);
                kept += 1;
            }
            if mass < enough && kept < all {
                return None;
            }
        }
        let mut share = 0.0;
        for &key in &self.keys[..kept] {
            share += self.weight(key) / mass;
            if share > f64::from(self.uniform) {
                return Some(index(key));
            }
        }
        // rounding may leave the total below a uniform close to 1
        (kept == all || part.is_some()).then(|| index(self.keys[kept - 1]))
    }

    /// The index that `uniform` picks, as [`Sample`] defines it. Only as many candidates are put in order as it takes.
    #[inline(always)]
    fn choose<S: Simd>(&mut self, s: S, padded: &[f32]) -> usize {
        let all = self.op.top_k.unwrap_or(usize::MAX).min(self.values.len());
        if all < self.values.len() {
            self.sort(all);
            let sum = self.keys[..all].iter().map(|&key| self.weight(key)).sum();
            return self.pick(sum, all, all).unwrap_or(0);
        }
        let sum = sum(s, padded, self.top, self.op.temperature);
        let mut sorted = FIRST.min(all);
        loop {
            self.sort(sorted);
            // what is picked only grows with the sum: where both bounds agree, the sum need not be known any better
            let mut found = self.pick(sum * (1.0 - MARGIN), sorted, all);
            if sorted == all || (found.is_some() && found != self.pick(sum * (1.0 + MARGIN), sorted, all)) {
                let weight = |&value: &f32| {
                    ((f64::from(value) - f64::from(self.top)) / f64::from(self.op.temperature)).exp()
                };
                found = self.pick(self.values.iter().map(weight).sum(), sorted, all);
            }
            match found {
                Some(found) => return found,
                None if sorted == all => return 0, // does not happen: something is picked among all
                None => sorted = sorted.saturating_mul(4).min(all),
            }
        }
    }
}

/// The sum of the weights of whole groups, within [`MARGIN`]; -inf weighs nothing.
#[inline(always)]
fn sum<S: Simd>(s: S, values: &[f32], top: f32, temperature: f32) -> f64 {
    let (top, temperature) = (s.splat(top), s.splat(temperature));
    let mut total = 0.0;
    for group in values.chunks_exact(GROUP) {
        let mut sum = s.splat(0.0);
        for x in group.chunks_exact(S::LANES) {
            sum = s.add(sum, math::exp(s, s.div(s.sub(s.load(x), top), temperature)));
        }
        total += f64::from(s.reduce_add(sum));
    }
    total
}

/// The largest of each group and of all of them; NaN where there is one.
#[inline(always)]
fn largest_of<S: Simd>(s: S, values: &[f32], groups: &mut [f32]) -> f32 {
    let mut top = f32::NEG_INFINITY;
    for (values, group) in values.chunks_exact(GROUP).zip(groups) {
        *group = largest(s, values);
        if descending(*group, top) == Ordering::Less {
            top = *group;
        }
    }
    top
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
        let (keys, rest) = memory.split_at_mut(2 * self.padded());
        let (padded, groups) = rest.split_at_mut(self.padded());
        let keys = bytemuck::cast_slice_mut(keys);
        let groups = &mut groups[..padded.len() / GROUP];
        padded[op.x.len..].fill(f32::NEG_INFINITY);
        for vector in lane.split(op.x.outer * op.x.inner, 1) {
            for values in padded[..op.x.len].chunks_mut(LEN).enumerate() {
                read(s, x, op.x.start_of(vector) + values.0 * LEN, values.1);
            }
            let top = largest_of(s, padded, groups);
            let values = &padded[..op.x.len];
            let id = if top.is_finite() {
                let uniform = uniform[vector];
                Candidates { op, values, groups, keys: &mut *keys, top, uniform }.choose(s, padded)
            } else {
                values.iter().position(|&v| descending(v, top) == Ordering::Equal).unwrap_or(0)
            };
            // SAFETY: lanes have different vectors.
            unsafe { ids.slice(vector..vector + 1)[0] = id as i32 };
        }
    }
}
