//! Block formats beside activations that are quantised to 8 bits, as the policy may allow: dot products of bytes within each block of
//! 32 elements, exact in i32, then scaled and added up in f32.
//!
//! Weights are packed so that a vector holds the same elements of neighbouring columns: a panel is a sequence of blocks along k, and in
//! each block come the scales of all columns, then for either half of the columns words of four codes that are neighbours along k.
//! Codes of 4 bits lie two in a byte, word `j` of a block in the low nibbles and word `j + 4` in the high ones. The file's numbers are
//! kept, bit by bit: only their places change.
//!
//! The instruction multiplies signed by unsigned bytes, so codes are stored without sign; what that adds to a dot product is a multiple
//! of the sum of the activations, which is known when they have been quantised.

use super::operand::{Floats, PackFloats, Words};
use super::source::{Format, Source};
use super::tile::{Sums, Tiled, columns};
use crate::simd::{Kernel, Simd};
use crate::spmd::Args;
use perjoule_kernels::DType;
use perjoule_kernels::block::mxfp4::DOUBLED;
use perjoule_kernels::op::Tensor2;
use std::marker::PhantomData;
use std::ops::Range;

/// Elements of a step: those of the shortest block.
pub(crate) const STEP: usize = 32;

/// Words of codes in a step.
const CODES: usize = STEP / 4;

/// Activations in blocks of 32: eight words of codes, their scale, and what the offsets and minima of weights are multiplied by: the
/// negated sums of the first sixteen codes, of the last sixteen, of all, and the last one times the scale.
#[derive(Clone, Copy)]
pub(crate) struct Quants;

const SCALE: usize = CODES;
const SUMS: usize = CODES + 1;
const SUM: usize = SUMS + 2;
const SCALED_SUM: usize = SUMS + 3;

impl Words for Quants {
    const PER: usize = STEP;
    const WORDS: usize = SCALED_SUM + 1;
}

impl PackFloats for Quants {
    fn pack<S: Simd>(
        s: S,
        a: &Floats<'_>,
        starts: &[Option<usize>],
        stride: usize,
        ks: Range<usize>,
        out: &mut [f32],
    ) {
        s.vectorise(PackRows { a, starts, stride, ks, out });
    }
}

/// The arguments of [`Quants::pack`].
struct PackRows<'p> {
    a: &'p Floats<'p>,
    starts: &'p [Option<usize>],
    stride: usize,
    ks: Range<usize>,
    out: &'p mut [f32],
}

impl Kernel for PackRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let PackRows { a, starts, stride, ks, out } = self;
        for (index, first) in ks.clone().step_by(STEP).enumerate() {
            let out = &mut out[index * starts.len() * Quants::WORDS..];
            for (start, to) in starts.iter().zip(out.as_chunks_mut::<{ Quants::WORDS }>().0) {
                let mut values = [0.0; STEP];
                if let Some(start) = start {
                    let count = STEP.min(ks.end - first);
                    for (i, to) in values[..count].chunks_mut(S::LANES).enumerate() {
                        let at = start + (first + i * S::LANES) * stride;
                        let v = a.load(s, at, stride, to.len());
                        s.store_some(to, v);
                    }
                }
                quantise(&values, to);
            }
        }
    }
}

/// The largest magnitude becomes 127; numbers that are not finite make the scale, and so every result, NaN.
#[inline(always)]
fn quantise(values: &[f32; STEP], to: &mut [f32; Quants::WORDS]) {
    let largest = values.iter().fold(0u32, |largest, x| largest.max(x.abs().to_bits()));
    let largest = f32::from_bits(largest);
    let scale = if largest.is_finite() { largest / 127.0 } else { f32::NAN };
    // a subnormal scale has no reciprocal
    let inverse = if scale >= f32::MIN_POSITIVE { 1.0 / scale } else { 0.0 };
    let mut codes = [0i8; STEP];
    for (code, x) in codes.iter_mut().zip(values) {
        // rounds to nearest even: the sum has no bits below 1
        const MAGIC: f32 = 12_582_912.0;
        *code = ((x * inverse + MAGIC) - MAGIC) as i32 as i8;
    }
    let less = |part: &[i8]| -part.iter().map(|&c| i32::from(c)).sum::<i32>();
    for (to, code) in to.iter_mut().zip(codes.as_chunks::<4>().0) {
        *to = f32::from_bits(u32::from_le_bytes(code.map(|c| c as u8)));
    }
    to[SCALE] = scale;
    let (first, last) = (less(&codes[..STEP / 2]), less(&codes[STEP / 2..]));
    for (to, less) in to[SUMS..=SUM].iter_mut().zip([first, last, first + last]) {
        *to = f32::from_bits(less as u32);
    }
    to[SCALED_SUM] = scale * (first + last) as f32;
}

/// How a block format is packed and read.
pub(crate) trait Blocks: Copy + Send + Sync + 'static {
    /// The format.
    const DTYPE: DType;
    /// Steps of a block.
    const STEPS: usize;
    /// Whether codes need all bits of a byte.
    const WIDE: bool = false;
    /// Whether either half of a step has a scale of its own.
    const SPLIT: bool = false;
    /// How far ahead of what is multiplied few rows ask for more.
    const AHEAD: usize = 1088;
    /// Whether columns have minima.
    const MINIMA: bool = false;

    /// Bytes of a block of `nr` columns.
    fn bytes(nr: usize) -> usize;
    /// [`Simd::dot_codes`] of these codes.
    ///
    /// # Safety
    /// Its.
    unsafe fn dot<S: Simd, const N: usize>(s: S, a: *const f32, codes: &[S::V; N], less: S::V) -> S::V;
    /// A step of the block at `b`, for half of its columns.
    ///
    /// # Safety
    /// The block is readable.
    unsafe fn load<S: Simd>(s: S, b: *const u8, step: usize, half: usize) -> Group<S::V>;
}

/// A step of one vector of columns.
#[derive(Clone, Copy)]
pub(crate) struct Group<V> {
    /// Words of codes.
    codes: [V; CODES],
    /// Scales: of the first half of the step and of the second.
    scales: [V; 2],
    /// What is subtracted from each element.
    minima: V,
}

/// Four vectors of bytes with two codes each.
///
/// # Safety
/// They are readable.
#[inline(always)]
unsafe fn nibbles<S: Simd>(s: S, from: *const u8) -> [S::V; CODES] {
    let low = s.splat(f32::from_bits(0x0f0f_0f0f));
    let mut codes = [low; CODES];
    for j in 0..CODES / 2 {
        // SAFETY: the contract.
        let v = unsafe { s.load_f32(from.cast::<f32>().add(j * S::LANES)) };
        codes[j] = s.and(v, low);
        codes[j + CODES / 2] = s.and(s.shift_right::<4>(v), low);
    }
    codes
}

/// See the module.
#[derive(Clone, Copy)]
pub(crate) struct Q8_0;

impl Blocks for Q8_0 {
    const DTYPE: DType = DType::Q8_0;
    const WIDE: bool = true;
    const AHEAD: usize = 640;
    const STEPS: usize = 1;

    fn bytes(nr: usize) -> usize {
        nr * (2 + STEP)
    }
    #[inline(always)]
    unsafe fn dot<S: Simd, const N: usize>(s: S, a: *const f32, codes: &[S::V; N], less: S::V) -> S::V {
        // SAFETY: the contract.
        unsafe { s.dot_codes::<255, 128, N>(a, codes, less) }
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, b: *const u8, _: usize, half: usize) -> Group<S::V> {
        let nr = columns::<S>();
        // SAFETY: within the block, which is readable by the contract.
        unsafe {
            let scale = s.load_f16(b.cast::<half::f16>().add(half * S::LANES));
            let from = b.add(2 * nr + half * S::LANES * STEP).cast::<f32>();
            let mut codes = [scale; CODES];
            for (j, codes) in codes.iter_mut().enumerate() {
                *codes = s.load_f32(from.add(j * S::LANES));
            }
            Group { codes, scales: [scale; 2], minima: scale }
        }
    }
}

/// See the module.
#[derive(Clone, Copy)]
pub(crate) struct Q4_0;

impl Blocks for Q4_0 {
    const DTYPE: DType = DType::Q4_0;
    const STEPS: usize = 1;

    fn bytes(nr: usize) -> usize {
        nr * (2 + STEP / 2)
    }
    #[inline(always)]
    unsafe fn dot<S: Simd, const N: usize>(s: S, a: *const f32, codes: &[S::V; N], less: S::V) -> S::V {
        // SAFETY: the contract.
        unsafe { s.dot_codes::<15, 8, N>(a, codes, less) }
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, b: *const u8, _: usize, half: usize) -> Group<S::V> {
        let nr = columns::<S>();
        // SAFETY: within the block, which is readable by the contract.
        unsafe {
            let scale = s.load_f16(b.cast::<half::f16>().add(half * S::LANES));
            let codes = nibbles(s, b.add(2 * nr + half * S::LANES * STEP / 2));
            Group { codes, scales: [scale; 2], minima: scale }
        }
    }
}

/// See the module.
#[derive(Clone, Copy)]
pub(crate) struct MxFp4;

/// What makes twice the value of a code of mxfp4 positive.
const CODE_OFFSET: i32 = 12;

/// Twice the value of each code, and [`CODE_OFFSET`].
const CODE_VALUES: [u8; 16] = {
    let mut table = [0; 16];
    let mut i = 0;
    while i < 16 {
        table[i] = (DOUBLED[i] as i32 + CODE_OFFSET) as u8;
        i += 1;
    }
    table
};

impl Blocks for MxFp4 {
    const DTYPE: DType = DType::MxFp4;
    const STEPS: usize = 1;

    fn bytes(nr: usize) -> usize {
        nr * (1 + STEP / 2)
    }
    #[inline(always)]
    unsafe fn dot<S: Simd, const N: usize>(s: S, a: *const f32, codes: &[S::V; N], less: S::V) -> S::V {
        // SAFETY: the contract.
        unsafe { s.dot_codes::<{ 2 * CODE_OFFSET }, CODE_OFFSET, N>(a, codes, less) }
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, b: *const u8, _: usize, half: usize) -> Group<S::V> {
        let nr = columns::<S>();
        // SAFETY: within the block, which is readable by the contract.
        unsafe {
            let e = s.load_u8(b.add(half * S::LANES));
            // half of 2^(e - 127), which is subnormal for 0 and 1; 255 stands for NaN
            let scale = s.pow2(s.max(s.sub(e, s.splat(128.0)), s.splat(-126.0)));
            let scale = s.select_lt(e, s.splat(2.0), s.splat(f32::from_bits(0x0040_0000)), scale);
            let scale = s.select_lt(e, s.splat(1.0), s.splat(f32::from_bits(0x0020_0000)), scale);
            let scale = s.select_lt(e, s.splat(255.0), scale, s.splat(f32::NAN));
            let mut codes = nibbles(s, b.add(nr + half * S::LANES * STEP / 2));
            for codes in &mut codes {
                *codes = s.lookup(&CODE_VALUES, *codes);
            }
            Group { codes, scales: [scale; 2], minima: scale }
        }
    }
}

/// See the module.
#[derive(Clone, Copy)]
pub(crate) struct Q4K;

/// Columns' bytes of a step of q4_k: a scale, a minimum, and codes.
const Q4K_STEP: usize = 2 + STEP / 2;

impl Blocks for Q4K {
    const DTYPE: DType = DType::Q4K;
    const STEPS: usize = 8;
    const MINIMA: bool = true;

    fn bytes(nr: usize) -> usize {
        nr * (4 + Self::STEPS * Q4K_STEP)
    }
    #[inline(always)]
    unsafe fn dot<S: Simd, const N: usize>(s: S, a: *const f32, codes: &[S::V; N], less: S::V) -> S::V {
        // SAFETY: the contract.
        unsafe { s.dot_codes::<15, 0, N>(a, codes, less) }
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, b: *const u8, step: usize, half: usize) -> Group<S::V> {
        let (nr, column) = (columns::<S>(), half * S::LANES);
        // SAFETY: within the block, which is readable by the contract.
        unsafe {
            let d = s.load_f16(b.cast::<half::f16>().add(column));
            let dmin = s.load_f16(b.cast::<half::f16>().add(nr + column));
            let b = b.add(nr * (4 + step * Q4K_STEP));
            let scale = s.mul(d, s.load_u8(b.add(column)));
            let minima = s.mul(dmin, s.load_u8(b.add(nr + column)));
            let codes = nibbles(s, b.add(2 * nr + column * STEP / 2));
            Group { codes, scales: [scale; 2], minima }
        }
    }
}

/// See the module; the upper two bits of the codes lie in words of their own, those of code words `j`, `j + 1`, `j + 2` and `j + 3` in
/// rising bits of word `j / 4`.
#[derive(Clone, Copy)]
pub(crate) struct Q6K;

/// Columns' bytes of a step of q6_k: two scales, lower and upper bits of codes.
const Q6K_STEP: usize = 2 + STEP / 2 + STEP / 4;

impl Blocks for Q6K {
    const DTYPE: DType = DType::Q6K;
    const STEPS: usize = 8;
    const SPLIT: bool = true;

    fn bytes(nr: usize) -> usize {
        nr * (2 + Self::STEPS * Q6K_STEP)
    }
    #[inline(always)]
    unsafe fn dot<S: Simd, const N: usize>(s: S, a: *const f32, codes: &[S::V; N], less: S::V) -> S::V {
        // SAFETY: the contract.
        unsafe { s.dot_codes::<63, 32, N>(a, codes, less) }
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, b: *const u8, step: usize, half: usize) -> Group<S::V> {
        let (nr, column) = (columns::<S>(), half * S::LANES);
        // SAFETY: within the block, which is readable by the contract.
        unsafe {
            let d = s.load_f16(b.cast::<half::f16>().add(column));
            let b = b.add(nr * (2 + step * Q6K_STEP));
            let first = b.cast::<i8>().add(column);
            let scales = [s.mul(d, s.load_i8(first)), s.mul(d, s.load_i8(first.add(nr)))];
            let mut codes = nibbles(s, b.add(2 * nr + column * STEP / 2));
            let upper = b.add(nr * (2 + STEP / 2) + column * STEP / 4).cast::<f32>();
            let two = s.splat(f32::from_bits(0x3030_3030));
            for word in 0..2 {
                let v = s.load_f32(upper.add(word * S::LANES));
                let fields = [s.shift_left::<4>(v), s.shift_left::<2>(v), v, s.shift_right::<2>(v)];
                for (j, field) in fields.into_iter().enumerate() {
                    codes[4 * word + j] = s.or(codes[4 * word + j], s.and(field, two));
                }
            }
            Group { codes, scales, minima: d }
        }
    }
}

/// Steps over blocks of `Q`.
#[derive(Clone, Copy)]
pub(crate) struct BlockSteps<Q>(PhantomData<Q>);

impl<Q: Blocks> Tiled for BlockSteps<Q> {
    type Stored = u8;
    // 32 columns of 1024 elements of 4 bits are 18 KiB
    const DEPTH: usize = 32;

    fn stored(steps: usize, nr: usize) -> usize {
        steps.div_ceil(Q::STEPS) * Q::bytes(nr)
    }

    #[inline(always)]
    unsafe fn tile<S: Simd, const M: usize, const SETS: usize>(
        s: S,
        steps: usize,
        a: *const f32,
        b: *const u8,
        sums: Sums,
    ) {
        let nr = columns::<S>();
        let mut acc = [[s.splat(0.0); M]; 2];
        // SAFETY: `steps` steps of `M` rows of A and of the panel's blocks are readable, and `M` rows of sums writable, by the contract.
        unsafe {
            // few rows leave registers for the sums of both halves, and blocks are then read in the order of memory
            let passes = if M <= 4 { 1 } else { 2 };
            for pass in 0..passes {
                for step in 0..steps {
                    let a = a.add(step * M * Quants::WORDS);
                    let b = b.add(step / Q::STEPS * Q::bytes(nr));
                    if passes == 1 {
                        let each = Q::bytes(nr) / Q::STEPS;
                        s.prefetch_stream(b.wrapping_add(step % Q::STEPS * each), each, Q::AHEAD);
                        for (half, acc) in acc.iter_mut().enumerate() {
                            multiply::<S, Q, M>(s, a, Q::load(s, b, step % Q::STEPS, half), acc);
                        }
                    } else {
                        multiply::<S, Q, M>(s, a, Q::load(s, b, step % Q::STEPS, pass), &mut acc[pass]);
                    }
                }
            }
            for (half, acc) in acc.iter().enumerate() {
                for (row, sum) in acc.iter().enumerate() {
                    let mut sum = *sum;
                    if !sums.from.is_null() {
                        sum = s.add(s.load_f32(sums.from.add(row * nr + half * S::LANES)), sum);
                    }
                    s.store_f32(sums.to.add(row * sums.stride + half * S::LANES), sum);
                }
            }
        }
    }
}

/// Adds the products of a step to the sums of `M` rows.
///
/// # Safety
/// `a` has a step of `M` rows to read.
#[inline(always)]
unsafe fn multiply<S: Simd, Q: Blocks, const M: usize>(
    s: S,
    a: *const f32,
    group: Group<S::V>,
    sums: &mut [S::V; M],
) {
    for (row, sum) in sums.iter_mut().enumerate() {
        // SAFETY: the contract.
        unsafe {
            let a = a.add(row * Quants::WORDS);
            let scale = s.splat(*a.add(SCALE));
            if Q::SPLIT {
                let mut both = group.scales[0];
                for half in 0..2 {
                    let (codes, less) =
                        (group.codes.as_chunks::<{ CODES / 2 }>().0[half], s.splat(*a.add(SUMS + half)));
                    let dot = s.integers(Q::dot(s, a.add(half * CODES / 2), &codes, less));
                    both = if half == 0 { s.mul(dot, both) } else { s.fma(dot, group.scales[1], both) };
                }
                *sum = s.fma(both, scale, *sum);
            } else {
                let dot = s.integers(Q::dot(s, a, &group.codes, s.splat(*a.add(SUM))));
                *sum = s.fma(s.mul(dot, group.scales[0]), scale, *sum);
            }
            if Q::MINIMA {
                *sum = s.fma(group.minima, s.splat(*a.add(SCALED_SUM)), *sum);
            }
        }
    }
}

/// B packed as [`crate::launch::pack`] packs blocks.
pub(crate) struct PackedBlocks<Q>(PhantomData<Q>);

/// See [`PackedBlocks`].
#[derive(Clone, Copy)]
pub(crate) struct BlocksSource<'a, Q> {
    bytes: &'a [u8],
    n: usize,
    k: usize,
    blocks: PhantomData<Q>,
}

impl<Q: Blocks> Format for PackedBlocks<Q> {
    type A = Quants;
    type Source<'a> = BlocksSource<'a, Q>;

    fn source(args: &Args, index: usize, _: Tensor2, n: usize, k: usize) -> Option<BlocksSource<'_, Q>> {
        Some(BlocksSource { bytes: args.read(index), n, k, blocks: PhantomData })
    }
}

impl<Q: Blocks> Source for BlocksSource<'_, Q> {
    type A = Quants;
    type Direct = BlockSteps<Q>;
    type Widened = super::tile::Quads;
    const PACKED: bool = true;
    const WIDENS: bool = false;

    #[inline(always)]
    fn panel(&self, nr: usize, matrix: usize, panel: usize, ks: Range<usize>) -> &[u8] {
        let len = Q::DTYPE.block_len();
        let first = (matrix * self.n.div_ceil(nr) + panel) * (self.k / len);
        &self.bytes[(first + ks.start / len) * Q::bytes(nr)..(first + ks.end.div_ceil(len)) * Q::bytes(nr)]
    }

    fn widen<S: Simd>(&self, _: S, _: usize, _: usize, _: Range<usize>, _: &mut [f32]) {}
}
