//! Root-mean-square and layer normalisation, with the residual added on the way: a lane takes whole vectors, and goes through each
//! twice (three times for the variance around the mean). Sums of a run are f32, sums of runs f64.

use super::body::{Body, on, other_op};
use super::run::{Run, Source, Target, runs, write};
use crate::simd::Simd;
use crate::spmd::Args;
use crate::team::Lane;
use perjoule_kernels::Request;
use perjoule_kernels::op::{LayerNorm, Op, RmsNorm};
use perjoule_kernels::{Launch, Result};

pub(crate) fn prepare<S: Simd>(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    match request.op {
        Op::RmsNorm(op) => on::<S>(request, *op),
        Op::LayerNorm(op) => on::<S>(request, *op),
        op => Err(other_op(op)),
    }
}

/// The sum of the squares of the first `n` elements minus `mean`; those behind them, up to a whole vector, are `mean` as f32.
#[inline(always)]
pub(crate) fn squares<S: Simd>(s: S, run: &[f32], n: usize, mean: f64) -> f64 {
    let means = s.splat(mean as f32);
    let (run, only) = (&run[..n.next_multiple_of(S::LANES)], &run[..n]);
    let mut sums = [s.splat(0.0); 4];
    for (i, x) in run.chunks_exact(S::LANES).enumerate() {
        let x = s.sub(s.load(x), means);
        sums[i % 4] = s.fma(x, x, sums[i % 4]);
    }
    let total = s.reduce_add(s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3])));
    if (1e-30..=f32::MAX).contains(&total) { f64::from(total) } else { far_squares(only, mean) }
}

/// The same where squares leave the range of f32, or are all 0.
#[cold]
fn far_squares(run: &[f32], mean: f64) -> f64 {
    run.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum()
}

/// What elements are multiplied by to get 1 for the mean of their squares, which is `square` now.
#[derive(Clone, Copy)]
pub(crate) struct Inverse {
    /// A power of 2, by which elements and their mean are multiplied first. It is 1 but for vectors so short that f32 does not hold
    /// their inverse, and for those so long that it may not hold an element minus the mean.
    near: f32,
    /// What is left.
    pub(crate) rest: f32,
}

impl Inverse {
    #[inline(always)]
    pub(crate) fn of(square: f64) -> Self {
        let whole = 1.0 / square.sqrt();
        // bounds that leave room: 2^100, and 2^-100 for an element that outweighs 2^56 others
        if (7.9e-31..=1.2e30).contains(&whole) {
            Inverse { near: 1.0, rest: whole as f32 }
        } else {
            Self::far(whole)
        }
    }

    #[cold]
    fn far(whole: f64) -> Self {
        // vectors of zeros, of what is not finite, and of NaN give what arithmetic makes of them
        let near = match whole {
            _ if whole == 0.0 || !whole.is_finite() => 1.0,
            _ if whole < 1.0 => 2f32.powi(-30),
            _ => 2f32.powi(100),
        };
        Inverse { near, rest: (whole / f64::from(near)) as f32 }
    }

    /// Multiplies elements by the first factor.
    #[inline(always)]
    pub(crate) fn bring_near(&self, elements: &mut [f32]) {
        if self.near != 1.0 {
            multiply(elements, self.near);
        }
    }

    /// The mean of what [`Inverse::bring_near`] gives.
    #[inline(always)]
    fn mean(&self, mean: f64) -> f32 {
        (mean * f64::from(self.near)) as f32
    }
}

#[cold]
fn multiply(elements: &mut [f32], factor: f32) {
    elements.iter_mut().for_each(|x| *x *= factor);
}

/// The input of a norm: one operand, or the sum of two.
struct Input<'a> {
    x: (Source<'a>, usize),
    residual: Option<(Source<'a>, usize)>,
    other: Run,
}

impl Input<'_> {
    #[inline(always)]
    fn read<S: Simd>(&mut self, s: S, run: &mut Run, first: usize, n: usize, fill: f32) {
        run.read(s, self.x.0, self.x.1 + first, n, fill);
        if let Some((residual, at)) = self.residual {
            self.other.read(s, residual, at + first, n, 0.0);
            for i in (0..n).step_by(S::LANES) {
                run.set(s, i, s.add(run.get(s, i), self.other.get(s, i)));
            }
        }
    }
}

impl Body for RmsNorm {
    #[inline(always)]
    fn run<S: Simd>(&self, s: S, lane: &Lane<'_>, args: &Args) {
        let fused = usize::from(self.residual.is_some());
        let x = Source { bytes: args.read(0), dtype: self.x_dtype };
        let residual = self.residual.map(|r| (Source { bytes: args.read(1), dtype: self.x_dtype }, r.rows));
        let weight = Source { bytes: args.read(1 + fused), dtype: self.weight };
        let sum = self.residual.map(|r| (Target { bytes: args.out(3), dtype: self.x_dtype }, r.sum));
        let out = Target { bytes: args.out(2 + 2 * fused), dtype: self.out_dtype };
        let len = self.x.len;
        let offset = s.splat(self.weight_offset);
        let (mut run, mut w) = (Run::ZERO, Run::ZERO);
        for vector in lane.split(self.x.outer * self.x.inner, 1) {
            let mut input = Input {
                x: (x, self.x.start_of(vector)),
                residual: residual.map(|(source, rows)| (source, rows.start_of(vector))),
                other: Run::ZERO,
            };
            let mut total = 0.0;
            for (first, n) in runs(len) {
                input.read(s, &mut run, first, n, 0.0);
                total += squares(s, &run.0, n, 0.0);
                if let Some((sum, rows)) = sum {
                    // SAFETY: lanes have different vectors, and the vectors of `sum` do not overlap.
                    unsafe { write(s, &run.0[..n], sum, rows.start_of(vector) + first) };
                }
            }
            let inverse = Inverse::of(total / len as f64 + f64::from(self.eps));
            let (rest, to) = (s.splat(inverse.rest), self.out.start_of(vector));
            for (first, n) in runs(len) {
                input.read(s, &mut run, first, n, 0.0);
                inverse.bring_near(&mut run.0[..n]);
                w.read(s, weight, first, n, 0.0);
                for i in (0..n).step_by(S::LANES) {
                    let x = s.mul(run.get(s, i), rest);
                    run.set(s, i, s.mul(x, s.add(w.get(s, i), offset)));
                }
                // SAFETY: lanes have different vectors, and the vectors of `out` do not overlap.
                unsafe { write(s, &run.0[..n], out, to + first) };
            }
        }
    }
}

impl Body for LayerNorm {
    #[inline(always)]
    fn run<S: Simd>(&self, s: S, lane: &Lane<'_>, args: &Args) {
        let fused = usize::from(self.residual.is_some());
        let biased = usize::from(self.bias);
        let x = Source { bytes: args.read(0), dtype: self.x_dtype };
        let residual = self.residual.map(|r| (Source { bytes: args.read(1), dtype: self.x_dtype }, r.rows));
        let weight = Source { bytes: args.read(1 + fused), dtype: self.weight };
        let bias = self.bias.then(|| Source { bytes: args.read(2 + fused), dtype: self.weight });
        let last = 2 + 2 * fused + biased;
        let sum = self.residual.map(|r| (Target { bytes: args.out(last - 1), dtype: self.x_dtype }, r.sum));
        let out = Target { bytes: args.out(last), dtype: self.out_dtype };
        let len = self.x.len;
        let (mut run, mut w, mut b) = (Run::ZERO, Run::ZERO, Run::ZERO);
        for vector in lane.split(self.x.outer * self.x.inner, 1) {
            let mut input = Input {
                x: (x, self.x.start_of(vector)),
                residual: residual.map(|(source, rows)| (source, rows.start_of(vector))),
                other: Run::ZERO,
            };
            let mut total = 0.0;
            for (first, n) in runs(len) {
                input.read(s, &mut run, first, n, 0.0);
                // element by element: the mean is subtracted from what it is a sum of
                total += run.0[..n].iter().map(|&x| f64::from(x)).sum::<f64>();
                if let Some((sum, rows)) = sum {
                    // SAFETY: lanes have different vectors, and the vectors of `sum` do not overlap.
                    unsafe { write(s, &run.0[..n], sum, rows.start_of(vector) + first) };
                }
            }
            let mean = total / len as f64;
            let mut spread = 0.0;
            for (first, n) in runs(len) {
                input.read(s, &mut run, first, n, 0.0);
                run.0[n..n.next_multiple_of(S::LANES)].fill(mean as f32);
                spread += squares(s, &run.0, n, mean);
            }
            let inverse = Inverse::of(spread / len as f64 + f64::from(self.eps));
            let (mean, rest) = (s.splat(inverse.mean(mean)), s.splat(inverse.rest));
            let to = self.out.start_of(vector);
            for (first, n) in runs(len) {
                input.read(s, &mut run, first, n, 0.0);
                inverse.bring_near(&mut run.0[..n]);
                w.read(s, weight, first, n, 0.0);
                if let Some(bias) = bias {
                    b.read(s, bias, first, n, 0.0);
                }
                for i in (0..n).step_by(S::LANES) {
                    let x = s.mul(s.sub(run.get(s, i), mean), rest);
                    run.set(s, i, s.add(s.mul(x, w.get(s, i)), b.get(s, i)));
                }
                // SAFETY: lanes have different vectors, and the vectors of `out` do not overlap.
                unsafe { write(s, &run.0[..n], out, to + first) };
            }
        }
    }
}
