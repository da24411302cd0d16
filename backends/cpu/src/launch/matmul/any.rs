//! The simple row: every valid product, element by element, with f32 sums (exact integer sums for i8).
//!
//! Lanes share the columns, so that no two of them write the same element whatever the slots of a grouped product hold.

use crate::device::lanes;
use crate::launch::body::{Body, on, other_op};
use crate::simd::{self, Portable, Simd};
use crate::spmd::{Args, Out};
use crate::team::Lane;
use perjoule_kernels::Request;
use perjoule_kernels::op::slots::Segments;
use perjoule_kernels::op::{Activation, Granularity, GroupedMatMul, MatMul, Op, Tensor2};
use perjoule_kernels::{Candidate, Config, DType, DeviceInfo, Error, Launch, Result, block};
use std::ops::Range;

/// The only configuration.
pub(crate) static CONFIGS: &[Config] = &[Config::tile("1x1", &[1, 1, 1])];

pub(crate) fn cost(Candidate { op, info, .. }: &Candidate<'_>) -> f32 {
    let outputs = match op {
        Op::MatMul(m) => m.batch as f32 * m.m as f32 * m.n as f32,
        Op::GroupedMatMul(g) => g.rows as f32 * g.n as f32,
        _ => return f32::INFINITY,
    };
    // elements are read, finished and stored one by one: as a rule whatever else accepts the product is faster
    4e-6 + (op.flops() as f32 * 1.5e-9 + outputs * 3e-8) / lanes(info) as f32
}

/// The cost of the simple row of gated products.
pub(crate) fn cost_gated(Candidate { op, info, .. }: &Candidate<'_>) -> f32 {
    4e-6 + op.flops() as f32 * 1.5e-9 / lanes(info) as f32
}

pub(crate) fn prepare(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let Op::MatMul(op) = request.op else { return Err(other_op(request.op)) };
    let scratch = columns(op.k, request.info)?;
    on::<Portable>(request, Any { op: *op, scratch })
}

pub(crate) fn prepare_grouped(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let Op::GroupedMatMul(op) = request.op else { return Err(other_op(request.op)) };
    let scratch = columns(op.k, request.info)?;
    on::<Portable>(request, AnyGrouped { op: *op, scratch })
}

/// Bytes for a column of B for each lane.
fn columns(k: usize, info: &DeviceInfo) -> Result<u64> {
    let bytes = (k as u64).checked_mul(4 * lanes(info) as u64);
    bytes.ok_or(Error::Overflow { op: "matmul", what: "the scratch" })
}

/// Element `at` of a plain type.
fn element(dtype: DType, bytes: &[u8], at: usize) -> f32 {
    let mut x = [f32::NAN];
    let size = dtype.block_bytes();
    // the length is that of one element, so that it cannot fail
    let _ = block::decode(dtype, &bytes[at * size..(at + 1) * size], &mut x);
    x[0]
}

/// Column `col` of B as f32.
fn read_column(b: &Tensor2, bytes: &[u8], matrix: usize, col: usize, out: &mut [f32]) {
    if out.is_empty() {
        return; // nothing is behind the strides
    }
    let (len, size) = (b.dtype.block_len(), b.dtype.block_bytes());
    if b.dtype.is_block() {
        let first = b.strides.at(matrix, 0, col) / len * size;
        // whole blocks, which validation makes sure of
        let _ = block::decode(b.dtype, &bytes[first..first + out.len() / len * size], out);
        return;
    }
    for (k, x) in out.iter_mut().enumerate() {
        *x = element(b.dtype, bytes, b.strides.at(matrix, k, col));
    }
}

/// Column `col` of an i8 B whose elements are neighbours.
fn whole<'b>(b: &Tensor2, bytes: &'b [u8], matrix: usize, col: usize, k: usize) -> Option<&'b [i8]> {
    let near = b.dtype == DType::I8 && b.strides.row == 1 && k > 0;
    near.then(|| bytemuck::cast_slice(&bytes[b.strides.at(matrix, 0, col)..][..k]))
}

/// Stores a number as element `at` of C.
///
/// # Safety
/// No other lane touches that element.
unsafe fn store(dtype: DType, c: Out<'_, u8>, at: usize, value: f32) {
    let size = dtype.block_bytes();
    // SAFETY: the same contract.
    let to = unsafe { c.slice(at * size..(at + 1) * size) };
    let _ = block::encode(dtype, &[value], to); // the length is that of one element
}

/// Exact sums of products of neighbouring i8.
struct DotIntegers<'d> {
    a: &'d [i8],
    b: &'d [i8],
}

impl simd::Kernel for DotIntegers<'_> {
    type Output = i64;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> i64 {
        let mut sum = 0;
        // 2^16 products of at most 2^14 fit in an i32; the loop over them becomes multiplications of pairs of i16
        for (a, b) in self.a.chunks(1 << 16).zip(self.b.chunks(1 << 16)) {
            let part: i32 = a.iter().zip(b).map(|(&x, &y)| i32::from(x) * i32::from(y)).sum();
            sum += i64::from(part);
        }
        sum
    }
}

/// A sum of products of i8 fits in i64, and wraps to i32 as the result does. `b` holds the column once more where it lies in one piece.
#[inline(always)]
fn dot_integers<S: Simd>(
    s: S,
    a: &Tensor2,
    bytes: &[u8],
    start: usize,
    b: &[f32],
    whole: Option<&[i8]>,
) -> i64 {
    if let (Some(b), 1) = (whole, a.strides.col) {
        let a = bytemuck::cast_slice(&bytes[start..start + b.len()]);
        return s.vectorise(DotIntegers { a, b });
    }
    let mut sum = 0;
    for (k, y) in b.iter().enumerate() {
        sum += element(a.dtype, bytes, start + k * a.strides.col) as i64 * *y as i64;
    }
    sum
}

fn dot(a: &Tensor2, bytes: &[u8], start: usize, b: &[f32]) -> f32 {
    let mut sum = 0.0;
    for (k, y) in b.iter().enumerate() {
        sum += element(a.dtype, bytes, start + k * a.strides.col) * y;
    }
    sum
}

/// The activations' definitions are in f64.
fn activate(activation: Activation, x: f32) -> f32 {
    match activation {
        Activation::None => x,
        other => other.apply(f64::from(x)) as f32,
    }
}

struct Any {
    op: MatMul,
    scratch: u64,
}

impl Any {
    /// The product's part of one element: a sum over k with the scales in it.
    #[inline(always)]
    fn sum<S: Simd>(
        &self,
        s: S,
        a: &[u8],
        (b, whole): (&[f32], Option<&[i8]>),
        scales: [Option<&[f32]>; 2],
        at: [usize; 3],
    ) -> f32 {
        let (op, [batch, row, col]) = (&self.op, at);
        // a scale that is the same for the whole sum, or the scale at a step of k
        let scale =
            |which: Option<Granularity>, scales: Option<&[f32]>, vectors, vector, k| match (which, scales) {
                (Some(g), Some(s)) => s[op.scale_index(g, vectors, batch, vector, k)],
                _ => 1.0,
            };
        let [a_scale, b_scale] = scales;
        let start = op.a.strides.at(batch, row, 0);
        if op.k == 0 {
            return 0.0;
        }
        let grouped = |g| matches!(g, Some(Granularity::Group(_)));
        if !grouped(op.a_scale) && !grouped(op.b_scale) {
            let sum = match op.a.dtype {
                DType::I8 => dot_integers(s, &op.a, a, start, b, whole) as f32,
                _ => dot(&op.a, a, start, b),
            };
            return sum * scale(op.a_scale, a_scale, op.m, row, 0) * scale(op.b_scale, b_scale, op.n, col, 0);
        }
        let mut sum = 0.0;
        for (k, y) in b.iter().enumerate() {
            let x = element(op.a.dtype, a, start + k * op.a.strides.col);
            let scale = scale(op.a_scale, a_scale, op.m, row, k) * scale(op.b_scale, b_scale, op.n, col, k);
            sum += x * y * scale;
        }
        sum
    }
}

impl Body for Any {
    fn scratch(&self) -> u64 {
        self.scratch
    }

    #[inline(always)]
    fn run<S: Simd>(&self, s: S, lane: &Lane<'_>, args: &Args) {
        let op = &self.op;
        let (a, b) = (args.read::<u8>(0), args.read::<u8>(1));
        let mut next = 1;
        let mut operand = |present: bool| {
            next += usize::from(present);
            present.then_some(next)
        };
        let a_scale = operand(op.a_scale.is_some()).map(|i| args.read::<f32>(i));
        let b_scale = operand(op.b_scale.is_some()).map(|i| args.read::<f32>(i));
        let bias = op.epilogue.bias.and_then(|d| Some((d, args.read::<u8>(operand(true)?))));
        let residual = op.epilogue.residual.and_then(|r| Some((r, args.read::<u8>(operand(true)?))));
        let c = args.out::<u8>(next + 1);
        // SAFETY: every lane has its own range.
        let column = unsafe { args.scratch::<f32>().slice(lane.index() * op.k..(lane.index() + 1) * op.k) };
        for index in lane.split(op.batch * op.n, 1) {
            let (batch, col) = (index / op.n, index % op.n);
            if op.m == 0 {
                return;
            }
            let whole = whole(&op.b, b, batch, col, op.k).filter(|_| op.a.strides.col == 1);
            let grouped = |scale| matches!(scale, Some(Granularity::Group(_)));
            if whole.is_none() || grouped(op.a_scale) || grouped(op.b_scale) {
                read_column(&op.b, b, batch, col, column);
            }
            for row in 0..op.m {
                let at = op.c.strides.at(batch, row, col);
                if op.c.dtype == DType::I32 {
                    let start = op.a.strides.at(batch, row, 0);
                    let sum = dot_integers(s, &op.a, a, start, column, whole) as i32;
                    // SAFETY: a column of C is this lane's.
                    unsafe { c.slice(at * 4..at * 4 + 4) }.copy_from_slice(&sum.to_le_bytes());
                    continue;
                }
                let mut v = self.sum(s, a, (column, whole), [a_scale, b_scale], [batch, row, col])
                    * op.epilogue.scale;
                if let Some((dtype, bias)) = bias {
                    v += element(dtype, bias, col);
                }
                v = activate(op.epilogue.activation, v);
                if let Some((r, residual)) = residual {
                    v += element(r.dtype, residual, r.strides.at(batch, row, col));
                }
                // SAFETY: a column of C is this lane's.
                unsafe { store(op.c.dtype, c, at, v) }
            }
        }
    }
}

struct AnyGrouped {
    op: GroupedMatMul,
    scratch: u64,
}

impl Body for AnyGrouped {
    fn scratch(&self) -> u64 {
        self.scratch
    }

    fn run<S: Simd>(&self, _: S, lane: &Lane<'_>, args: &Args) {
        let op = &self.op;
        let (a, b) = (args.read::<u8>(0), args.read::<u8>(1));
        let (offsets, order) = (args.read::<i32>(2), args.read::<i32>(3));
        let bias = op.bias.map(|d| (d, args.read::<u8>(4)));
        let c = args.out::<u8>(4 + usize::from(bias.is_some()));
        // SAFETY: every lane has its own range.
        let column = unsafe { args.scratch::<f32>().slice(lane.index() * op.k..(lane.index() + 1) * op.k) };
        for col in lane.split(op.n, 1) {
            for (expert, positions) in Segments::new(offsets, op.rows) {
                read_column(&op.b, b, expert, col, column);
                let column = (&*column, whole(&op.b, b, expert, col, op.k));
                self.positions((a, c, bias), order, expert, positions, col, column);
            }
        }
    }
}

/// A, C and the bias.
type Around<'a> = (&'a [u8], Out<'a, u8>, Option<(DType, &'a [u8])>);

impl AnyGrouped {
    fn positions(
        &self,
        (a, c, bias): Around<'_>,
        order: &[i32],
        expert: usize,
        positions: Range<usize>,
        col: usize,
        (column, whole): (&[f32], Option<&[i8]>),
    ) {
        let op = &self.op;
        for &slot in &order[positions] {
            let Some((a_row, row)) = op.rows_of(i64::from(slot)) else { continue };
            let (start, at) = (op.a.strides.at(0, a_row, 0), op.c.strides.at(0, row, col));
            if op.c.dtype == DType::I32 {
                let sum = dot_integers(Portable, &op.a, a, start, column, whole) as i32;
                // SAFETY: a column of C is this lane's.
                unsafe { c.slice(at * 4..at * 4 + 4) }.copy_from_slice(&sum.to_le_bytes());
                continue;
            }
            let mut v = match op.a.dtype {
                DType::I8 => dot_integers(Portable, &op.a, a, start, column, whole) as f32,
                _ => dot(&op.a, a, start, column),
            };
            if let Some((dtype, bias)) = bias {
                v += element(dtype, bias, expert * op.n + col);
            }
            // SAFETY: a column of C is this lane's.
            unsafe { store(op.c.dtype, c, at, activate(op.activation, v)) }
        }
    }
}
