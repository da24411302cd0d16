//! Rows of attention. Tiles are rows of a block (queries and heads of a group), keys of a tile, and elements of a head.

use crate::launch::attention::decode;
use crate::launch::attention::generic;
use crate::launch::attention::mma::row;
use crate::launch::attention::prefill;
use perjoule_kernels::Kernel;

pub(super) static ROWS: &[Kernel] = &[
    decode::row::<true>("attention_bf16_16x128_cuda_sm90_decode"),
    decode::row::<false>("attention_f16_16x128_cuda_sm90_decode"),
    prefill::row::<true>("attention_bf16_128x128_cuda_sm90"),
    prefill::row::<false>("attention_f16_128x128_cuda_sm90"),
    row::<true, true>("attention_bf16_mma_cuda_sm90_cluster"),
    row::<false, true>("attention_f16_mma_cuda_sm90_cluster"),
    row::<true, false>("attention_bf16_mma_cuda_sm80_split"),
    row::<false, false>("attention_f16_mma_cuda_sm80_split"),
    generic::ROW,
];
