//! Changing element types, and copying. Lanes share the runs of all vectors; groups that share a scale stay with one lane, but for
//! a whole tensor, whose maximum the lanes find together.

use super::body::{Body, on, other_op};
use super::run::{LEN, Run, Source, Target, pieces, write};
use crate::device::lanes;
use crate::simd::{E4m3, Element, Kernel as Vectors, Simd};
use crate::spmd::{Args, Out, Spmd, launch};
use crate::team::Lane;
use perjoule_kernels::Request;
use perjoule_kernels::op::{Cast, Granularity, Op, Quantise};
use perjoule_kernels::{Config, DType, Kernel, Launch, Numerics, Reason, Result, block};
use std::ops::Range;

pub(crate) fn prepare<S: Simd>(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    match request.op {
        Op::Cast(op) => on::<S>(request, *op),
        Op::Quantise(op) => {
            let lanes = lanes(request.info);
            on::<S>(request, Quantising { op: *op, lanes })
        }
        op => Err(other_op(op)),
    }
}

impl Body for Cast {
    #[inline(always)]
    fn run<S: Simd>(&self, s: S, lane: &Lane<'_>, args: &Args) {
        let from = Source { bytes: args.read(0), dtype: self.from };
        let out = Target { bytes: args.out(1), dtype: self.to };
        // f32 does not hold every 32-bit integer
        let wide = matches!(self.from, DType::I32 | DType::U32);
        let mut run = Run::ZERO;
        for p in pieces(lane, self.out) {
            let at = self.x.start(p.outer, p.inner) + p.first;
            let to = self.out.start(p.outer, p.inner) + p.first;
            // SAFETY: pieces do not overlap, since the vectors of `out` do not.
            unsafe {
                if wide {
                    integers(from, at, p.n, out, to);
                    continue;
                }
                run.read(s, from, at, p.n, 0.0);
                write(s, &run.0[..p.n], out, to);
            }
        }
    }
}

/// # Safety
/// As [`write`].
unsafe fn integers(from: Source<'_>, at: usize, n: usize, to: Target<'_>, start: usize) {
    let mut values = [0.0f64; LEN];
    let (size, width) = (from.dtype.block_bytes(), to.dtype.block_bytes());
    let bytes = &from.bytes[at * size..(at + n) * size];
    // SAFETY: the caller's contract.
    let out = unsafe { to.bytes.slice(start * width..(start + n) * width) };
    let done = block::decode_f64(from.dtype, bytes, &mut values[..n])
        .and_then(|()| block::encode_f64(to.dtype, &values[..n], out));
    // both are plain types, and the lengths agree
    debug_assert!(done.is_ok());
}

/// Quantisation with room for the maximum that each lane finds.
struct Quantising {
    op: Quantise,
    lanes: usize,
}

/// Largest magnitude of the elements `range`; NaN does not count.
#[inline(always)]
fn largest<S: Simd>(s: S, x: Source<'_>, range: Range<usize>) -> f32 {
    let mut run = Run::ZERO;
    let mut top = s.splat(0.0);
    for first in range.clone().step_by(LEN) {
        let n = LEN.min(range.end - first);
        run.read(s, x, first, n, 0.0);
        for i in (0..n).step_by(S::LANES) {
            top = s.max(s.abs(run.get(s, i)), top);
        }
    }
    s.reduce_max(top)
}

/// Divides by the scale and rounds to i8 or f8e4m3.
struct Scale<'a> {
    from: &'a [f32],
    scale: f32,
    integers: bool,
    to: &'a mut [u8],
}

impl Vectors for Scale<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Scale { from, scale, integers, to } = self;
        // elements of a group whose maximum is 0 are 0 or NaN
        let zero = scale == 0.0;
        if !integers {
            for (to, &x) in to.iter_mut().zip(from) {
                *to = E4m3::narrow(if zero && !x.is_nan() { 0.0 } else { x / scale }).0;
            }
            return;
        }
        for (to, &x) in to.iter_mut().zip(from) {
            let y = if zero { 0.0 } else { x / scale };
            let y = if y.is_nan() { 0.0 } else { y.clamp(-128.0, 127.0) };
            // adding 1.5 * 2^23 rounds to nearest even and leaves the integer in the low bits; a saturating `as` would stay scalar
            *to = (y + 12_582_912.0).to_bits() as u8;
        }
    }
}

/// Divides the elements `range` by `scale` and stores them as i8 or f8e4m3.
///
/// # Safety
/// Only this lane writes these elements.
#[inline(always)]
unsafe fn scaled<S: Simd>(s: S, x: Source<'_>, range: Range<usize>, scale: f32, out: Target<'_>) {
    let mut run = Run::ZERO;
    for first in range.clone().step_by(LEN) {
        let n = LEN.min(range.end - first);
        run.read(s, x, first, n, 0.0);
        // SAFETY: by the contract.
        let to = unsafe { out.bytes.slice(first..first + n) };
        s.vectorise(Scale { from: &run.0[..n], scale, integers: out.dtype == DType::I8, to });
    }
}

impl Body for Quantising {
    fn scratch(&self) -> u64 {
        if self.op.scale == Some(Granularity::Tensor) { 4 * self.lanes as u64 } else { 0 }
    }

    #[inline(always)]
    fn run<S: Simd>(&self, s: S, lane: &Lane<'_>, args: &Args) {
        let op = &self.op;
        let x = Source { bytes: args.read(0), dtype: op.from };
        let elements = op.x.outer * op.x.inner * op.x.len;
        let limit = op.to.max_value() as f32;
        let Some(granularity) = op.scale else {
            let out = Target { bytes: args.out(1), dtype: op.to };
            let mut run = Run::ZERO;
            let share = lane.split(elements, LEN);
            for first in share.clone().step_by(LEN) {
                let n = LEN.min(share.end - first);
                run.read(s, x, first, n, 0.0);
                // SAFETY: lanes have different blocks.
                unsafe { write(s, &run.0[..n], out, first) };
            }
            return;
        };
        let scales = args.out::<f32>(1);
        let out = Target { bytes: args.out(2), dtype: op.to };
        let (group, each) = match granularity {
            Granularity::Tensor => {
                let maxima: Out<'_, f32> = args.scratch();
                let share = lane.split(elements, LEN);
                // SAFETY: each lane has an element of its own; after the barrier nobody writes them; lane 0 alone stores the scale.
                unsafe {
                    maxima.slice(lane.index()..lane.index() + 1)[0] = largest(s, x, share.clone());
                    lane.barrier();
                    let all = maxima.shared(0..lane.count());
                    let scale = all.iter().fold(0.0f32, |most, &x| most.max(x)) / limit;
                    if lane.index() == 0 {
                        scales.slice(0..1)[0] = scale;
                    }
                    scaled(s, x, share, scale, out);
                }
                return;
            }
            Granularity::Vector => (op.x.len, 1),
            Granularity::Group(group) => (group, op.x.len.div_ceil(group.max(1))),
        };
        for task in lane.split(op.x.outer * op.x.inner * each, 1) {
            let (vector, part) = (task / each, task % each);
            let start = vector * op.x.len;
            let from = start + part * group;
            let range = from..from.saturating_add(group).min(start + op.x.len);
            let scale = largest(s, x, range.clone()) / limit;
            // SAFETY: lanes have different groups.
            unsafe {
                scales.slice(task..task + 1)[0] = scale;
                scaled(s, x, range, scale, out);
            }
        }
    }
}

static BYTES: &[Config] = &[Config::tile("bytes", &[1])];

/// The table's entry of collectives of a group of one, which are copies.
pub(crate) const COLLECTIVE: Kernel = Kernel::new(
    "collective_any_cpu_alone",
    "collective",
    |candidate| 1e-6 + candidate.op.bytes() as f32 / 1e10,
    |request| Ok(launch(request, Copying)),
)
.with_configs(BYTES)
.with_numerics(|_| Numerics::EXACT)
.with_reject(|candidate| match candidate.op {
    Op::Collective(op) if op.world > 1 => Some(Reason::new("the CPU is a group of one")),
    _ => None,
});

struct Copying;

impl Spmd for Copying {
    fn run(&self, lane: &Lane<'_>, args: &Args) {
        let from = args.read::<u8>(0);
        let share = lane.split(from.len(), 4096);
        // SAFETY: lanes have different bytes.
        unsafe { args.out::<u8>(1).slice(share.clone()) }.copy_from_slice(&from[share]);
    }
}
