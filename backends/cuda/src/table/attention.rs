//! Rows of attention. Tiles are rows of a block (queries and heads of a group), keys of a tile, and elements of a head.

use crate::launch::attention::{decode, generic, mma, prefill};
use perjoule_kernels::Kernel;

pub(super) static ROWS: &[Kernel] = &[
    decode::row::<true>("attention_bf16_16x128_cuda_sm90_decode"),
    decode::row::<false>("attention_f16_16x128_cuda_sm90_decode"),
    prefill::row::<true>("attention_bf16_128x128_cuda_sm90"),
    prefill::row::<false>("attention_f16_128x128_cuda_sm90"),
    mma::row::<true>("attention_bf16_16x16_cuda_sm80"),
    mma::row::<false>("attention_f16_16x16_cuda_sm80"),
    generic::ROW,
];
