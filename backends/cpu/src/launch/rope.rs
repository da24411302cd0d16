//! Rotary positions: a lane takes whole tokens; cosines and sines are computed once a token, in f64, for all its heads.

use super::body::{Body, on, other_op};
use super::run::{LEN, Run, Source, Target, read, write};
use crate::simd::Simd;
use crate::spmd::Args;
use crate::team::Lane;
use perjoule_kernels::Request;
use perjoule_kernels::op::{Op, Rope, RopeStyle};
use perjoule_kernels::{Launch, Result};

pub(crate) fn prepare<S: Simd>(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    match request.op {
        Op::Rope(op) => on::<S>(request, Rotation::new(*op)),
        op => Err(other_op(op)),
    }
}

/// A rotation with its frequencies.
pub(crate) struct Rotation {
    op: Rope,
    frequencies: Vec<f64>,
}

/// Cosines and sines of some pairs.
struct Angles {
    cos: Run,
    sin: Run,
}

/// Pairs that are rotated at a time.
const PAIRS: usize = LEN / 2;

impl Rotation {
    /// Computes the frequencies.
    pub(crate) fn new(op: Rope) -> Self {
        Rotation { op, frequencies: op.inverse_frequencies() }
    }

    /// Pairs of a vector.
    pub(crate) fn pairs(&self) -> usize {
        self.frequencies.len()
    }

    /// First pair and number of each run of pairs.
    #[inline(always)]
    fn runs(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let pairs = self.pairs();
        (0..pairs).step_by(PAIRS).map(move |first| (first, PAIRS.min(pairs - first)))
    }

    /// Cosines and sines at `position` of as many pairs as there is room for, from pair `first` on.
    pub(crate) fn angles(&self, position: i32, first: usize, cos: &mut [f32], sin: &mut [f32]) {
        let factor = self.op.attention_factor();
        for ((cos, sin), frequency) in cos.iter_mut().zip(sin).zip(&self.frequencies[first..]) {
            let (s, c) = (f64::from(position) * frequency).sin_cos();
            (*cos, *sin) = ((factor * c) as f32, (factor * s) as f32);
        }
    }

    /// Rotates `n` pairs, at most [`PAIRS`]: `x` and `y` hold their first and second elements.
    #[inline(always)]
    fn rotate<S: Simd>(&self, s: S, n: usize, angles: &Angles, x: &mut Run, y: &mut Run) {
        for i in (0..n).step_by(S::LANES) {
            let (cos, sin) = (angles.cos.get(s, i), angles.sin.get(s, i));
            let (a, b) = (x.get(s, i), y.get(s, i));
            x.set(s, i, s.sub(s.mul(a, cos), s.mul(b, sin)));
            y.set(s, i, s.add(s.mul(a, sin), s.mul(b, cos)));
        }
    }

    /// Rotates a whole vector in memory by the angles of all its pairs.
    #[inline(always)]
    pub(crate) fn rotate_vector<S: Simd>(&self, s: S, cos: &[f32], sin: &[f32], vector: &mut [f32]) {
        match self.op.style {
            RopeStyle::HalfSplit => {
                let (x, y) = vector.split_at_mut(self.pairs());
                let pieces = x.chunks_mut(S::LANES).zip(y.chunks_mut(S::LANES));
                for ((x, y), (cos, sin)) in pieces.zip(cos.chunks(S::LANES).zip(sin.chunks(S::LANES))) {
                    let (cos, sin) = (s.load_or(cos, 0.0), s.load_or(sin, 0.0));
                    let (a, b) = (s.load_or(x, 0.0), s.load_or(y, 0.0));
                    s.store_some(x, s.sub(s.mul(a, cos), s.mul(b, sin)));
                    // behind the last pair of a vector may be more elements, which have no angles
                    s.store_some(&mut y[..x.len()], s.add(s.mul(a, sin), s.mul(b, cos)));
                }
            }
            RopeStyle::Interleaved => {
                for (pair, (cos, sin)) in vector.as_chunks_mut::<2>().0.iter_mut().zip(cos.iter().zip(sin)) {
                    let [a, b] = *pair;
                    *pair = [a * cos - b * sin, a * sin + b * cos];
                }
            }
        }
    }
}

impl Body for Rotation {
    #[inline(always)]
    fn run<S: Simd>(&self, s: S, lane: &Lane<'_>, args: &Args) {
        let positions = args.read::<i32>(0);
        let (rows, dtype) = (self.op.x, self.op.dtype);
        let bytes = args.out::<u8>(1);
        let half = self.op.rotary_dim / 2;
        let mut angles = Angles { cos: Run::ZERO, sin: Run::ZERO };
        let (mut x, mut y, mut both) = (Run::ZERO, Run::ZERO, Run::ZERO);
        for token in lane.split(rows.outer, 1) {
            for (first, n) in self.runs() {
                self.angles(positions[token], first, &mut angles.cos.0[..n], &mut angles.sin.0[..n]);
                for head in 0..rows.inner {
                    let start = rows.start(token, head);
                    let size = dtype.block_bytes();
                    let range = start * size..(start + 2 * half) * size;
                    // SAFETY: lanes have different tokens, whose vectors do not overlap; what is read is in the runs before
                    // anything is written.
                    let whole = Source { bytes: unsafe { bytes.shared(range.clone()) }, dtype };
                    let target = Target { bytes, dtype };
                    match self.op.style {
                        RopeStyle::HalfSplit => {
                            read(s, whole, first, &mut x.0[..n]);
                            read(s, whole, half + first, &mut y.0[..n]);
                            self.rotate(s, n, &angles, &mut x, &mut y);
                            // SAFETY: as above.
                            unsafe {
                                write(s, &x.0[..n], target, start + first);
                                write(s, &y.0[..n], target, start + half + first);
                            }
                        }
                        RopeStyle::Interleaved => {
                            read(s, whole, 2 * first, &mut both.0[..2 * n]);
                            for i in 0..n {
                                (x.0[i], y.0[i]) = (both.0[2 * i], both.0[2 * i + 1]);
                            }
                            self.rotate(s, n, &angles, &mut x, &mut y);
                            for i in 0..n {
                                (both.0[2 * i], both.0[2 * i + 1]) = (x.0[i], y.0[i]);
                            }
                            // SAFETY: as above.
                            unsafe { write(s, &both.0[..2 * n], target, start + 2 * first) };
                        }
                    }
                }
            }
        }
    }
}
