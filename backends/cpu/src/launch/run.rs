//! Runs of consecutive elements of any type as f32 in a small array, which stays in the first-level cache: what element-wise bodies
//! are made of. The types are looked at once a run.

use crate::simd::{E4m3, Element, Kernel, Simd};
use crate::spmd::Out;
use crate::team::Lane;
use half::{bf16, f16};
use perjoule_kernels::{DType, Rows, block};

/// Most elements of a run: a multiple of every vector and of every block.
pub(crate) const LEN: usize = 256;

/// The elements of a run. What lies behind the last one up to a whole vector is filled, so that loops need no tails.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(crate) struct Run(pub(crate) [f32; LEN]);

impl Run {
    /// All 0.
    pub(crate) const ZERO: Run = Run([0.0; LEN]);

    /// Reads `n` elements from element `at` on, and fills the last vector with `fill`.
    #[inline(always)]
    pub(crate) fn read<S: Simd>(&mut self, s: S, from: Source<'_>, at: usize, n: usize, fill: f32) {
        read(s, from, at, &mut self.0[..n]);
        self.0[n..n.next_multiple_of(S::LANES)].fill(fill);
    }

    /// The vector that starts at element `i`.
    #[inline(always)]
    pub(crate) fn get<S: Simd>(&self, s: S, i: usize) -> S::V {
        s.load(&self.0[i..])
    }

    /// Replaces the vector that starts at element `i`.
    #[inline(always)]
    pub(crate) fn set<S: Simd>(&mut self, s: S, i: usize, v: S::V) {
        s.store(&mut self.0[i..], v);
    }
}

/// An operand that is read, with its element type.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    /// Its bytes.
    pub(crate) bytes: &'a [u8],
    /// Its element type.
    pub(crate) dtype: DType,
}

/// An operand that is written, with its element type.
#[derive(Clone, Copy)]
pub(crate) struct Target<'a> {
    /// Its bytes.
    pub(crate) bytes: Out<'a, u8>,
    /// Its element type.
    pub(crate) dtype: DType,
}

#[inline(always)]
fn widen<S: Simd, T: Element>(s: S, bytes: &[u8], at: usize, to: &mut [f32]) {
    let size = size_of::<T>();
    let from: &[T] = bytemuck::cast_slice(&bytes[at * size..(at + to.len()) * size]);
    for (from, to) in from.chunks(S::LANES).zip(to.chunks_mut(S::LANES)) {
        s.store_some(to, s.load_or(from, 0.0));
    }
}

/// As [`block::q8_0`] decodes: codes times the scale of their block.
#[inline(always)]
fn widen_q8_0<S: Simd>(s: S, bytes: &[u8], at: usize, to: &mut [f32]) {
    const LEN: usize = block::q8_0::LEN;
    const BYTES: usize = block::q8_0::BYTES;
    // ops have checked that vectors are whole blocks
    let blocks = bytes[at / LEN * BYTES..(at + to.len()) / LEN * BYTES].as_chunks::<BYTES>().0;
    for (block, to) in blocks.iter().zip(to.as_chunks_mut::<LEN>().0) {
        let scale = s.splat(f16::from_le_bytes([block[0], block[1]]).to_f32());
        let codes: &[i8] = bytemuck::cast_slice(&block[2..]);
        for (codes, to) in codes.chunks_exact(S::LANES).zip(to.chunks_exact_mut(S::LANES)) {
            // SAFETY: a whole vector of codes.
            let codes = unsafe { s.load_i8(codes.as_ptr()) };
            s.store(to, s.mul(codes, scale));
        }
    }
}

struct Read<'a> {
    from: Source<'a>,
    at: usize,
    to: &'a mut [f32],
}

impl Kernel for Read<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Read { from, at, to } = self;
        match from.dtype {
            DType::F32 => widen::<S, f32>(s, from.bytes, at, to),
            DType::BF16 => widen::<S, bf16>(s, from.bytes, at, to),
            DType::F16 => widen::<S, f16>(s, from.bytes, at, to),
            DType::F8E4M3 => widen::<S, E4m3>(s, from.bytes, at, to),
            DType::Q8_0 => widen_q8_0(s, from.bytes, at, to),
            dtype => decode(dtype, from.bytes, at, to),
        }
    }
}

/// Reads `to.len()` elements from element `at` on; of block formats, whole blocks. One function for each instruction set, that is
/// called: inlined everywhere, the conversions would multiply the code.
#[inline(always)]
pub(crate) fn read<S: Simd>(s: S, from: Source<'_>, at: usize, to: &mut [f32]) {
    s.vectorise(Read { from, at, to });
}

fn decode(dtype: DType, bytes: &[u8], at: usize, to: &mut [f32]) {
    let (len, size) = (dtype.block_len(), dtype.block_bytes());
    let bytes = &bytes[at / len * size..(at + to.len()) / len * size];
    // ops have checked that vectors are whole blocks
    let done = block::decode(dtype, bytes, to);
    debug_assert!(done.is_ok());
}

/// # Safety
/// As [`write`].
#[inline(always)]
unsafe fn narrow<S: Simd, T: Element>(s: S, from: &[f32], out: Out<'_, u8>, at: usize) {
    let size = size_of::<T>();
    // SAFETY: the caller's contract.
    let to = unsafe { out.slice(at * size..(at + from.len()) * size) };
    let to: &mut [T] = bytemuck::cast_slice_mut(to);
    for (from, to) in from.chunks(S::LANES).zip(to.chunks_mut(S::LANES)) {
        s.store_some(to, s.load_or(from, 0.0));
    }
}

struct Write<'a> {
    from: &'a [f32],
    to: Target<'a>,
    at: usize,
}

impl Kernel for Write<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Write { from, to, at } = self;
        // SAFETY: the contract of `write`, which alone makes one.
        unsafe {
            match to.dtype {
                DType::F32 => narrow::<S, f32>(s, from, to.bytes, at),
                DType::BF16 => narrow::<S, bf16>(s, from, to.bytes, at),
                DType::F16 => narrow::<S, f16>(s, from, to.bytes, at),
                DType::F8E4M3 => narrow::<S, E4m3>(s, from, to.bytes, at),
                DType::Q8_0 => q8_0(from, to.bytes, at),
                dtype => encode(dtype, from, to.bytes, at),
            }
        }
    }
}

/// Rounds `from` to the element type and stores it from element `at` on. Into block formats go whole blocks; there what is not
/// finite becomes 0.
///
/// # Safety
/// Until the next barrier no other lane touches these elements, and no slice of them is alive.
#[inline(always)]
pub(crate) unsafe fn write<S: Simd>(s: S, from: &[f32], to: Target<'_>, at: usize) {
    s.vectorise(Write { from, to, at });
}

/// # Safety
/// As [`write`].
unsafe fn encode(dtype: DType, from: &[f32], out: Out<'_, u8>, at: usize) {
    let (len, size) = (dtype.block_len(), dtype.block_bytes());
    // SAFETY: the caller's contract.
    let to = unsafe { out.slice(at / len * size..(at + from.len()) / len * size) };
    if !dtype.is_block() {
        let done = block::encode(dtype, from, to);
        debug_assert!(done.is_ok());
        return;
    }
    // block by block: `block::encode` explains what it refuses, which would allocate
    match dtype {
        DType::Q4_0 => blocks(from, to, block::q4_0::quantise_block),
        DType::Q4K => blocks(from, to, block::q4_k::quantise_block),
        DType::Q6K => blocks(from, to, block::q6_k::quantise_block),
        _ => blocks(from, to, block::mxfp4::quantise_block),
    }
}

/// As [`block::q8_0::quantise_block`], of which `f32::round` is a call for each element.
///
/// # Safety
/// As [`write`].
#[inline(always)]
unsafe fn q8_0(from: &[f32], out: Out<'_, u8>, at: usize) {
    const LEN: usize = block::q8_0::LEN;
    const BYTES: usize = block::q8_0::BYTES;
    // SAFETY: the caller's contract.
    let to = unsafe { out.slice(at / LEN * BYTES..(at + from.len()) / LEN * BYTES) };
    for (values, bytes) in from.as_chunks::<LEN>().0.iter().zip(to.as_chunks_mut::<BYTES>().0) {
        let mut finite = [0.0f32; LEN];
        let mut largest = 0u32;
        for (y, &x) in finite.iter_mut().zip(values) {
            *y = if x.abs() < f32::INFINITY { x } else { 0.0 };
            // magnitudes sort as their bits do
            largest = largest.max(y.abs().to_bits());
        }
        let scale = f32::from_bits(largest) / 127.0;
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        bytes[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
        for (code, y) in bytes[2..].iter_mut().zip(&finite) {
            let y = (y * inverse).clamp(-200.0, 200.0);
            // halves away from 0; `as` saturates and makes 0 of NaN
            let whole = y as i32;
            let rest = y - whole as f32;
            let rounded = whole + i32::from(rest >= 0.5) - i32::from(rest <= -0.5);
            *code = rounded.clamp(-128, 127) as u8;
        }
    }
}

fn blocks<const L: usize, const B: usize>(
    from: &[f32],
    to: &mut [u8],
    quantise: impl Fn(&[f32; L], &mut [u8; B]),
) {
    for (values, bytes) in from.as_chunks::<L>().0.iter().zip(to.as_chunks_mut::<B>().0) {
        quantise(&values.map(|v| if v.is_finite() { v } else { 0.0 }), bytes);
    }
}

/// A run of one vector of [`Rows`].
#[derive(Clone, Copy)]
pub(crate) struct Piece {
    /// Outer index of the vector.
    pub(crate) outer: usize,
    /// Inner index of the vector.
    pub(crate) inner: usize,
    /// Its first element within the vector.
    pub(crate) first: usize,
    /// Number of elements, 1 to [`LEN`].
    pub(crate) n: usize,
}

/// This lane's share of the runs of all vectors.
pub(crate) fn pieces(lane: &Lane<'_>, rows: Rows) -> impl Iterator<Item = Piece> {
    let each = rows.len.div_ceil(LEN);
    let share = lane.split(rows.outer * rows.inner * each, 1);
    share.map(move |piece| {
        let (vector, first) = (piece / each, piece % each * LEN);
        let n = LEN.min(rows.len - first);
        Piece { outer: vector / rows.inner, inner: vector % rows.inner, first, n }
    })
}

/// The runs of one vector of `len` elements: first element and number.
pub(crate) fn runs(len: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..len).step_by(LEN).map(move |first| (first, LEN.min(len - first)))
}
