//! Activations in f32 as dense rows of bf16 in scratch, where the policy allows it: `shaders/cuda/matmul/round.cu`.

use crate::compile::Function;
use crate::launch::{Call, Dims, module, param};
use bytemuck::{Pod, Zeroable};
use perjoule_kernels::op::{Policy, Tensor2};
use perjoule_kernels::{DType, Request, Result};
use perjoule_shaders::cuda::MATMUL_ROUND;

/// Elements of a piece, which a thread rounds.
const PIECE: usize = 8;
const THREADS: usize = 256;

/// Whether A is rounded to the bf16 of B.
pub(super) fn rounds(a: DType, b: DType, policy: Policy) -> bool {
    a == DType::F32 && b == DType::BF16 && policy.quantised_activations
}

/// Elements from one rounded row to the next.
pub(super) fn row(k: usize) -> usize {
    k.next_multiple_of(PIECE)
}

/// Laid out as the kernel's.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct Params {
    from_row: u64,
    from_matrix: u64,
    rows: u64,
    matrices: u64,
    len: u64,
    pieces: u64,
}

/// The prepared rounding of one operand.
pub(super) struct Round {
    function: Function,
    params: Params,
    dims: Dims,
}

impl Round {
    /// Of `matrices` matrices of `rows` rows of `k` contiguous elements.
    pub(super) fn new(
        request: &Request<'_>,
        a: Tensor2,
        matrices: usize,
        rows: usize,
        k: usize,
    ) -> Result<Self> {
        let function = module(request, &MATMUL_ROUND, &[])?.function("round_rows")?;
        let pieces = row(k) / PIECE;
        let params = Params {
            from_row: a.strides.row as u64,
            from_matrix: a.strides.batch as u64,
            rows: rows as u64,
            matrices: matrices as u64,
            len: k as u64,
            pieces: pieces as u64,
        };
        let blocks = (matrices * rows * pieces).div_ceil(THREADS).min(1 << 20);
        let mut dims = Dims::line(blocks as u32, THREADS as u32);
        dims.early = true;
        Ok(Round { function, params, dims })
    }

    /// Bytes that it writes.
    pub(super) fn bytes(&self) -> u64 {
        self.params.matrices * self.params.rows * self.params.pieces * 16
    }

    pub(super) fn run(&self, call: &mut Call<'_>, from: u64, to: u64) -> Result<()> {
        call.start(&self.function, self.dims, &[param(&self.params), param(&from), param(&to)])
    }
}
