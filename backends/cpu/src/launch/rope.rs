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
pub(crate) struct Angles {
    cos: Run,
    sin: Run,
}

impl Angles {
    /// Nothing yet.
    pub(crate) const NONE: Angles = Angles { cos: Run::ZERO, sin: Run::ZERO };
}

/// Pairs that are rotated at a time.
const PAIRS: usize = LEN / 2;

impl Rotation {
    /// Computes the frequencies.
    pub(crate) fn new(op: Rope) -> Self {
        Rotation { op, frequencies: op.inverse_frequencies() }
    }

    /// First pair and number of each run of pairs.
    #[inline(always)]
    pub(crate) fn runs(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let pairs = self.frequencies.len();
        (0..pairs).step_by(PAIRS).map(move |first| (first, PAIRS.min(pairs - first)))
    }

    /// Angles of `n` pairs from `first` on, at `position`.
    pub(crate) fn angles(&self, position: i32, first: usize, n: usize, angles: &mut Angles) {
        let factor = self.op.attention_factor();
        for (i, frequency) in self.frequencies[first..first + n].iter().enumerate() {
            let (sin, cos) = (f64::from(position) * frequency).sin_cos();
            angles.cos.0[i] = (factor * cos) as f32;
            angles.sin.0[i] = (factor * sin) as f32;
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

    /// Rotates `n` pairs from `first` on of a whole vector in memory.
    #[inline(always)]
    pub(crate) fn rotate_vector<S: Simd>(
        &self,
        s: S,
        first: usize,
        n: usize,
        angles: &Angles,
        vector: &mut [f32],
    ) {
        let (mut x, mut y) = (Run::ZERO, Run::ZERO);
        for i in 0..n {
            let (a, b) = self.op.pair(first + i);
            (x.0[i], y.0[i]) = (vector[a], vector[b]);
        }
        self.rotate(s, n, angles, &mut x, &mut y);
        for i in 0..n {
            let (a, b) = self.op.pair(first + i);
            (vector[a], vector[b]) = (x.0[i], y.0[i]);
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
        let (mut angles, mut x, mut y, mut both) = (Angles::NONE, Run::ZERO, Run::ZERO, Run::ZERO);
        for token in lane.split(rows.outer, 1) {
            for (first, n) in self.runs() {
                self.angles(positions[token], first, n, &mut angles);
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
