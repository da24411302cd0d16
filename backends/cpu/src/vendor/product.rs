//! A matrix product by a vendor's library: what it takes, and the call.

use super::library::{Calls, FIX_OFFSET, NO_TRANS, ROW_MAJOR, TRANS, Vendor};
use crate::device::{CpuCaps, lanes};
use crate::launch::body::other_op;
use crate::spmd::{Args, Spmd, launch};
use crate::team::Lane;
use half::bf16;
use half::slice::HalfFloatSliceExt;
use perjoule_kernels::op::{Activation, Epilogue, MatMul, Op};
use perjoule_kernels::{Candidate, Config, DType, Error, Launch, Matrix, Numerics, Reason, Request, Result};
use std::ffi::{c_char, c_int};

/// The only configuration.
pub(crate) static CONFIGS: &[Config] = &[Config::tile("library", &[1, 1, 1])];

/// Sums in f32 in an order that is the library's affair, and depends on where operands lie. bf16 dot products of AVX-512 round twice
/// and take subnormal numbers for zero.
pub(crate) fn numerics(candidate: &Candidate<'_>) -> Numerics {
    match candidate.op {
        Op::MatMul(op) if op.a.dtype == DType::I8 => Numerics::EXACT,
        Op::MatMul(op) if op.a.dtype == DType::BF16 => {
            Numerics::F32.with_slack(2.0).unrepeatable().flushing_subnormals()
        }
        _ => Numerics::F32.unrepeatable(),
    }
}

pub(crate) fn cost(candidate: &Candidate<'_>) -> f32 {
    5e-6 + candidate.op.flops() as f32 / (1e11 * lanes(candidate.info) as f32)
}

/// Transposition and leading dimension of a `rows x cols` matrix, if it lies as BLAS wants it.
fn lies(matrix: &Matrix, rows: usize, cols: usize) -> Option<(bool, c_int)> {
    let (transposed, stride, least) = match *matrix {
        Matrix { col: 1, row, .. } if rows <= 1 || row >= cols => (false, row, cols),
        Matrix { row: 1, col, .. } if cols <= 1 || col >= rows => (true, col, rows),
        _ => return None,
    };
    // where there is but one row its stride means nothing
    let stride = stride.max(least).max(1);
    Some((transposed, c_int::try_from(stride).ok()?))
}

fn refusal(vendor: Vendor, dtype: DType, candidate: &Candidate<'_>) -> Option<Reason> {
    let Op::MatMul(op) = candidate.op else { return Some(Reason::new("runs matmul")) };
    let Epilogue { bias, activation, residual, .. } = op.epilogue;
    let plain = bias.is_none() && activation == Activation::None && residual.is_none();
    let out: &[DType] = match dtype {
        DType::I8 => &[DType::I32],
        DType::BF16 => &[DType::BF16, DType::F32],
        _ => &[DType::F32],
    };
    let small = [op.m, op.n, op.k].iter().all(|&size| c_int::try_from(size).is_ok());
    match () {
        () if op.a.dtype != dtype || op.b.dtype != dtype => {
            Some(Reason::new(format!("multiplies {dtype} by {dtype}")))
        }
        () if !out.contains(&op.c.dtype) => Some(Reason::new(format!("writes {}", out[0]))),
        () if op.a_scale.is_some() || op.b_scale.is_some() => Some(Reason::new("takes no scales")),
        () if !plain => Some(Reason::new("adds and applies nothing behind the product")),
        () if dtype == DType::I8 && op.epilogue.scale != 1.0 => Some(Reason::new("scales no integers")),
        () if op.k == 0 || !small => Some(Reason::new("takes sizes of 1 to 2^31 - 1")),
        () if lies(&op.a.strides, op.m, op.k).is_none() || lies(&op.b.strides, op.k, op.n).is_none() => {
            Some(Reason::new("reads operands with contiguous rows or columns"))
        }
        () if lies(&op.c.strides, op.m, op.n).is_none_or(|(transposed, _)| transposed) => {
            Some(Reason::new("writes contiguous rows"))
        }
        () if dtype == DType::I8 && !candidate.info.caps::<CpuCaps>().is_some_and(|c| c.features.avx512) => {
            // with 16-bit sums of pairs, which saturate
            Some(Reason::lacking("needs avx512 for exact sums of i8"))
        }
        () => missing(vendor, dtype).map(Reason::lacking),
    }
}

/// Why the library cannot be called.
fn missing(vendor: Vendor, dtype: DType) -> Option<String> {
    let calls = match vendor.calls() {
        Ok(calls) => calls,
        Err(why) => return Some(why.into()),
    };
    let has = match (vendor, dtype) {
        (Vendor::OneDnn, DType::F32) => calls.dnnl_sgemm.is_some(),
        (_, DType::F32) => calls.sgemm.is_some(),
        (_, DType::BF16) => calls.bf16.is_some(),
        _ => calls.i8.is_some(),
    };
    (!has).then(|| format!("the library has no product of {dtype}"))
}

/// Why a row of `VENDOR` for elements of `DTYPE` (its place in the list below) does not run an op.
pub(crate) fn reject<const VENDOR: usize, const DTYPE: usize>(candidate: &Candidate<'_>) -> Option<Reason> {
    refusal(VENDORS[VENDOR], DTYPES[DTYPE], candidate)
}

const VENDORS: [Vendor; 3] = [Vendor::Mkl, Vendor::OpenBlas, Vendor::OneDnn];
const DTYPES: [DType; 3] = [DType::F32, DType::BF16, DType::I8];

pub(crate) fn prepare<const VENDOR: usize>(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let Op::MatMul(op) = request.op else { return Err(other_op(request.op)) };
    let lost = |why: &str| Error::Unsupported { what: "this library", why: why.into() };
    let calls = VENDORS[VENDOR].calls().map_err(lost)?;
    let overflow = Error::Overflow { op: "matmul", what: "the scratch" };
    let scratch = match (op.a.dtype, op.c.dtype) {
        // A as unsigned bytes
        (DType::I8, _) => op.m.checked_mul(op.k),
        // C before it is rounded
        (_, DType::BF16) => op.m.checked_mul(op.n).and_then(|elements| elements.checked_mul(4)),
        _ => Some(0),
    };
    let scratch = scratch.ok_or(overflow)? as u64;
    Ok(launch(request, Product { op: *op, calls, lanes: lanes(request.info), scratch }))
}

struct Product {
    op: MatMul,
    calls: &'static Calls,
    lanes: usize,
    scratch: u64,
}

impl Spmd for Product {
    fn scratch(&self) -> u64 {
        self.scratch
    }

    fn alone(&self) -> bool {
        true
    }

    fn run(&self, _: &Lane<'_>, args: &Args) {
        if self.op.m > 0 && self.op.n > 0 {
            self.calls.with_threads(self.lanes, || {
                (0..self.op.batch).for_each(|batch| self.one(batch, args));
            });
        }
    }
}

/// What of a matrix lies from its first element to its last.
fn span(matrix: &Matrix, batch: usize, rows: usize, cols: usize) -> std::ops::Range<usize> {
    matrix.at(batch, 0, 0)..matrix.at(batch, rows - 1, cols - 1) + 1
}

impl Product {
    fn one(&self, batch: usize, args: &Args) {
        let MatMul { m, n, k, a, b, c, .. } = self.op;
        let (Some((ta, lda)), Some((tb, ldb)), Some((_, ldc))) =
            (lies(&a.strides, m, k), lies(&b.strides, k, n), lies(&c.strides, m, n))
        else {
            return; // `reject` has ruled it out
        };
        let (in_a, in_b) = (span(&a.strides, batch, m, k), span(&b.strides, batch, k, n));
        let in_c = span(&c.strides, batch, m, n);
        let scale = self.op.epilogue.scale;
        let trans = |transposed| if transposed { TRANS } else { NO_TRANS };
        let (ta_, tb_) = (trans(ta), trans(tb));
        // `reject` has seen that they fit
        let (m_, n_, k_) = (m as c_int, n as c_int, k as c_int);
        match a.dtype {
            DType::F32 => {
                let (a, b) = (&args.read::<f32>(0)[in_a], &args.read::<f32>(1)[in_b]);
                // SAFETY: nobody else is in the region, and the slice is the only one of C.
                let c = unsafe { args.out::<f32>(2).slice(in_c) };
                let (pa, pb, pc) = (a.as_ptr(), b.as_ptr(), c.as_mut_ptr());
                // SAFETY: with these leading dimensions the call touches what lies within the slices.
                unsafe {
                    if let Some(call) = self.calls.sgemm {
                        call(ROW_MAJOR, ta_, tb_, m_, n_, k_, scale, pa, lda, pb, ldb, 0.0, pc, ldc);
                    } else if let Some(call) = self.calls.dnnl_sgemm {
                        let letter = |t: bool| (if t { b'T' } else { b'N' }) as c_char;
                        let (m, n, k) = (i64::from(m_), i64::from(n_), i64::from(k_));
                        let (lda, ldb, ldc) = (lda.into(), ldb.into(), ldc.into());
                        let status =
                            call(letter(ta), letter(tb), m, n, k, scale, pa, lda, pb, ldb, 0.0, pc, ldc);
                        assert_eq!(status, 0, "dnnl_sgemm failed");
                    }
                }
            }
            DType::BF16 => {
                let (a, b) = (&args.read::<u16>(0)[in_a], &args.read::<u16>(1)[in_b]);
                let (pa, pb) = (a.as_ptr(), b.as_ptr());
                let Some(call) = self.calls.bf16 else { return };
                if c.dtype == DType::F32 {
                    // SAFETY: as above.
                    let c = unsafe { args.out::<f32>(2).slice(in_c) };
                    let pc = c.as_mut_ptr();
                    // SAFETY: as above.
                    unsafe { call(ROW_MAJOR, ta_, tb_, m_, n_, k_, scale, pa, lda, pb, ldb, 0.0, pc, ldc) };
                    return;
                }
                // SAFETY: nobody else is in the region.
                let sums = unsafe { args.scratch::<f32>().slice(0..m * n) };
                let ps = sums.as_mut_ptr();
                // SAFETY: as above; the sums are dense.
                unsafe { call(ROW_MAJOR, ta_, tb_, m_, n_, k_, scale, pa, lda, pb, ldb, 0.0, ps, n_) };
                let out = args.out::<bf16>(2);
                for (row, sums) in sums.chunks_exact(n).enumerate() {
                    let first = c.strides.at(batch, row, 0);
                    // SAFETY: nobody else is in the region, and rows of C are apart.
                    unsafe { out.slice(first..first + n) }.convert_from_f32_slice(sums);
                }
            }
            _ => {
                let (a, b) = (&args.read::<i8>(0)[in_a], &args.read::<i8>(1)[in_b]);
                let Some(call) = self.calls.i8 else { return };
                // A is to be unsigned: 128 more, of which the offset takes 128 away
                // SAFETY: nobody else is in the region.
                let unsigned = unsafe { args.scratch::<u8>().slice(0..m * k) };
                let (rows, cols) = if ta { (k, m) } else { (m, k) };
                for (row, to) in unsigned.chunks_exact_mut(cols).take(rows).enumerate() {
                    let from = &a[row * lda as usize..][..cols];
                    to.iter_mut().zip(from).for_each(|(to, from)| *to = (*from as u8) ^ 0x80);
                }
                // SAFETY: as above.
                let c = unsafe { args.out::<i32>(2).slice(in_c) };
                let (pa, pb, pc) = (unsigned.as_ptr(), b.as_ptr(), c.as_mut_ptr());
                let (lda, offset) = (cols as c_int, 0i32);
                // SAFETY: as above; A lies densely in the scratch.
                unsafe {
                    call(
                        ROW_MAJOR, ta_, tb_, FIX_OFFSET, m_, n_, k_, 1.0, pa, lda, -128, pb, ldb, 0, 0.0, pc,
                        ldc, &offset,
                    );
                }
            }
        }
    }
}
