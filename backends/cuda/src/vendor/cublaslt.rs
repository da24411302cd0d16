//! A matrix product by cuBLASLt: what it takes, and the call.
//!
//! | row | takes |
//! |---|---|
//! | f32 | accumulated in f32; as tf32 where the policy allows it |
//! | bf16, f16 | to themselves or f32, accumulated in f32 |
//! | f8e4m3 | a weight stored n x k, scales of whole matrices; to bf16, f16 or f32 |
//! | i8 | to i32 |
//!
//! With a factor, a bias of the result's type, or a residual of it; activations of the library are other functions (its GELU is
//! computed by an approximation of tanh), so it runs none.

use super::algorithm::best;
use super::plan::{Handle, Plan, check, lies, operand};
use crate::device::CudaCaps;
use crate::launch::{Body, Call, inner, launch};
use cudarc::cublaslt::sys::{
    self as lt, cublasLtMatmulAlgo_t as Algorithm, cublasLtMatmulDescAttributes_t as Attribute,
};
use perjoule_kernels::op::{Activation, Epilogue, Granularity, MatMul, Op};
use perjoule_kernels::{Candidate, Config, DType, Error, Launch, Matrix, Numerics, Reason, Request, Result};
use std::sync::{Mutex, PoisonError};

/// The only configuration: the fastest of all algorithms that the library proposes, measured when it is prepared.
pub(crate) static CONFIGS: &[Config] = &[Config::tile("library", &[1, 1, 1])];
/// The same for bytes, of which it takes whole vectors of 16 alone.
pub(crate) static BYTES: &[Config] = &[Config::tile("library", &[16, 16, 32])];

const DTYPES: [DType; 5] = [DType::F32, DType::BF16, DType::F16, DType::F8E4M3, DType::I8];

/// Sums in an order that is the library's affair; tensor cores cut where they add.
pub(crate) fn numerics(candidate: &Candidate<'_>) -> Numerics {
    let Op::MatMul(op) = candidate.op else { return Numerics::F32 };
    let float = Numerics::F32.unrepeatable().flushing_subnormals();
    match op.a.dtype {
        DType::I8 => Numerics::EXACT,
        DType::F32 if op.policy.tf32 => float.with_unit(2f64.powi(-10)),
        DType::F8E4M3 => float.with_unit(2f64.powi(-13)),
        DType::F32 => float,
        _ => float.with_slack(2.0),
    }
}

/// By the roofs of the hardware: it is never chosen by it.
pub(crate) fn cost(candidate: &Candidate<'_>) -> f32 {
    let Some(caps) = candidate.info.caps::<CudaCaps>() else { return 1.0 };
    let flops = caps.multiprocessors as f32 * caps.clock_khz as f32 * 1e3 * 4096.0;
    5e-6 + candidate.op.flops() as f32 / flops + candidate.op.bytes() as f32 / caps.memory_rate as f32
}

/// Rows of its table are asked by their place among the dtypes.
pub(crate) fn reject<const DTYPE: usize>(candidate: &Candidate<'_>) -> Option<Reason> {
    let Op::MatMul(op) = candidate.op else { return Some(Reason::new("runs matmul")) };
    if let Some(why) = form(op, DTYPES[DTYPE]) {
        return Some(Reason::new(why));
    }
    let sm = candidate.info.caps::<CudaCaps>().map_or(0, |caps| caps.sm);
    if op.a.dtype == DType::F8E4M3 && sm < 89 {
        return Some(Reason::lacking("needs tensor cores for f8e4m3: compute capability 8.9"));
    }
    if let Err(why) = Handle::of(candidate.info) {
        return Some(Reason::lacking(why));
    }
    Plan::new(candidate.info, op, candidate.alignment).err().map(Reason::new)
}

/// Why it does not run a product of that form on any device.
fn form(op: &MatMul, dtype: DType) -> Option<String> {
    let Epilogue { bias, activation, residual, .. } = op.epilogue;
    let out: &[DType] = match dtype {
        DType::I8 => &[DType::I32],
        DType::BF16 => &[DType::BF16, DType::F32],
        DType::F16 => &[DType::F16, DType::F32],
        DType::F8E4M3 => &[DType::BF16, DType::F16, DType::F32],
        _ => &[DType::F32],
    };
    let names = out.iter().map(|d| d.to_string()).collect::<Vec<_>>().join(", ");
    let small = [op.batch, op.m, op.n, op.k].iter().all(|&size| (1..1 << 31).contains(&size));
    let whole = |scale: Option<Granularity>| {
        scale.is_none_or(|g| g == Granularity::Tensor && op.batch == 1 && dtype == DType::F8E4M3)
    };
    let (a, b) = (lies(&op.a.strides, op.m, op.k), lies(&op.b.strides, op.k, op.n));
    let same = |other: DType| other == op.c.dtype && dtype != DType::F8E4M3;
    let by_rows = |strides: Matrix| lies(&strides, op.m, op.n).is_some_and(|(by_columns, _)| !by_columns);
    match () {
        () if op.a.dtype != dtype || op.b.dtype != dtype => Some(format!("multiplies {dtype} by {dtype}")),
        () if !out.contains(&op.c.dtype) => Some(format!("writes {names}")),
        () if !small => Some("takes sizes of 1 to 2^31 - 1".into()),
        () if !whole(op.a_scale) || !whole(op.b_scale) => Some("takes scales of one f8e4m3 matrix".into()),
        () if activation != Activation::None => Some("applies no function behind the product".into()),
        () if bias.is_some_and(|bias| !same(bias)) => Some("adds a bias of the result's type".into()),
        () if residual.is_some_and(|r| !same(r.dtype)) => Some("adds a residual of the result's type".into()),
        () if a.is_none() || b.is_none() => Some("reads operands with contiguous rows or columns".into()),
        () if !by_rows(op.c.strides) || residual.is_some_and(|r| !by_rows(r.strides)) => {
            Some("writes contiguous rows".into())
        }
        () if op.a.dtype.block_bytes() == 1 && (a.is_some_and(|a| a.0) || b.is_some_and(|b| !b.0)) => {
            Some("reads bytes with k contiguous in both operands".into())
        }
        () => None,
    }
}

/// It relies on all the alignment that is known: it was told of it when it proposed its algorithms.
pub(crate) fn align(candidate: &Candidate<'_>, operand: usize) -> u32 {
    candidate.alignment.of(operand)
}

pub(crate) fn prepare(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let unsupported = |why: String| Error::Unsupported { what: "cuBLASLt", why };
    let Op::MatMul(op) = request.op else { return Err(unsupported("runs matmul".into())) };
    let mut plan = Plan::new(request.info, op, request.alignment).map_err(unsupported)?;
    let (index, workspace) = best(inner(request)?, &mut plan, op)?;
    let algorithm = plan.proposals[index].algo;
    plan.proposals.clear();
    let operands = Operands {
        bias: operand(op, "bias"),
        a_scale: operand(op, "a_scale"),
        b_scale: operand(op, "b_scale"),
        residual: operand(op, "residual"),
        c: operand(op, "c").unwrap_or_default(),
    };
    launch(Product { plan: Mutex::new(plan), algorithm, workspace, operands })
}

/// Where operands lie in the order of the op's.
#[derive(Clone, Copy)]
pub(super) struct Operands {
    bias: Option<usize>,
    a_scale: Option<usize>,
    b_scale: Option<usize>,
    residual: Option<usize>,
    c: usize,
}

struct Product {
    /// Launches write addresses into its descriptor.
    plan: Mutex<Plan>,
    algorithm: Algorithm,
    workspace: u64,
    operands: Operands,
}

/// Addresses of a launch.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Addresses {
    pub(super) a: u64,
    pub(super) b: u64,
    pub(super) a_scale: Option<u64>,
    pub(super) b_scale: Option<u64>,
    pub(super) bias: Option<u64>,
    pub(super) residual: Option<u64>,
    pub(super) c: u64,
    pub(super) workspace: u64,
}

impl Plan {
    /// Starts it on a stream of the driver's, with so many bytes of workspace. Its context is current.
    pub(super) fn start(
        &mut self,
        algorithm: &Algorithm,
        at: Addresses,
        workspace: u64,
        stream: cudarc::driver::sys::CUstream,
    ) -> Result<(), String> {
        for (attribute, address) in [
            (Attribute::CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, at.b_scale),
            (Attribute::CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, at.a_scale),
            (Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, at.bias),
        ] {
            if let Some(address) = address {
                self.operation.set(attribute, address)?;
            }
        }
        let [a, b, c, d] = &self.layouts;
        // SAFETY: objects that live; factors of the type that the operation states; addresses of operands as large as the layouts say,
        // which the launch checked; the workspace is as large as the algorithm was told.
        let answer = unsafe {
            lt::cublasLtMatmul(
                self.handle.lt,
                self.operation.0,
                self.alpha.as_ptr().cast(),
                at.b as *const _,
                a.0,
                at.a as *const _,
                b.0,
                self.beta.as_ptr().cast(),
                at.residual.unwrap_or(at.c) as *const _,
                c.0,
                at.c as *mut _,
                d.0,
                algorithm,
                at.workspace as *mut _,
                workspace as usize,
                stream.cast(),
            )
        };
        check("cublasLtMatmul", answer)
    }
}

impl Body for Product {
    fn scratch(&self) -> u64 {
        self.workspace
    }

    fn run(&self, call: &mut Call<'_>) -> Result<()> {
        let of = |operand: Option<usize>| operand.map(|index| call.operand(index));
        let at = Addresses {
            a: call.operand(0),
            b: call.operand(1),
            a_scale: of(self.operands.a_scale),
            b_scale: of(self.operands.b_scale),
            bias: of(self.operands.bias),
            residual: of(self.operands.residual),
            c: call.operand(self.operands.c),
            workspace: call.scratch(),
        };
        let mut plan = self.plan.lock().unwrap_or_else(PoisonError::into_inner);
        let started = plan.start(&self.algorithm, at, self.workspace, call.stream());
        started.map_err(|detail| Error::Fault { kernel: "cuBLASLt", detail })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use perjoule_kernels::op::Policy;

    #[test]
    fn forms_that_the_library_computes_otherwise_are_refused() {
        let nt = |a, c| MatMul::linear(32, 32, 32, a, a, c);
        let nn = |a, c| MatMul::nn(32, 32, 32, a, a, c);
        use DType::{BF16, F8E4M3, F16, F32, I8, I32};
        for (op, dtype) in [
            (nt(BF16, BF16), BF16),
            (nn(BF16, F32), BF16),
            (nn(F16, F16), F16),
            (nn(F32, F32), F32),
            (nt(F8E4M3, BF16), F8E4M3),
            (nt(I8, I32), I8),
        ] {
            assert_eq!(form(&op, dtype), None, "{op:?}");
        }
        let silu = Epilogue { activation: Activation::Silu, ..Epilogue::default() };
        let bias = Epilogue { bias: Some(F32), ..Epilogue::default() };
        let vector = Some(Granularity::Vector);
        for (op, dtype, part) in [
            (nt(BF16, F16), BF16, "writes"),
            (nt(F8E4M3, F8E4M3), F8E4M3, "writes"),
            (nt(BF16, BF16), F16, "multiplies"),
            (nn(F8E4M3, BF16), F8E4M3, "k contiguous"),
            (MatMul { epilogue: silu, ..nt(BF16, BF16) }, BF16, "function"),
            (MatMul { epilogue: bias, ..nt(BF16, BF16) }, BF16, "bias"),
            (MatMul { b_scale: vector, ..nt(F8E4M3, BF16) }, F8E4M3, "scales"),
            (MatMul::nn(4, 4, 0, F32, F32, F32), F32, "sizes"),
        ] {
            let why = form(&op, dtype).unwrap_or_default();
            assert!(why.contains(part), "{why:?}: {op:?}");
        }
        let tf32 = MatMul { policy: Policy { tf32: true, ..Policy::default() }, ..nt(F32, F32) };
        assert_eq!(form(&tf32, F32), None);
    }
}
