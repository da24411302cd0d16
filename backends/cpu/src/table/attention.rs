//! Rows of attention. Tiles are rows of a unit, keys of a block, and the keys of a register tile.

use crate::launch::attention::{pairs, row, tiles};
use crate::launch::attention_simple;
use crate::launch::matmul::amx;
use crate::simd::{Avx2, Avx512, Avx512Bf16, Neon, Portable};
use perjoule_kernels::Kernel;

/// Widest vectors first; the definition itself comes last.
pub(super) static ROWS: &[Kernel] = &[
    tiles::<Avx512Bf16, 12, amx::Bf16>("attention_bf16_192x96x32_cpu_amx"),
    pairs::<Avx512Bf16, 12>("attention_bf16_192x96x12_cpu_avx512bf16"),
    row::<Avx512, 12>("attention_any_192x96x12_cpu_avx512"),
    row::<Avx2, 6>("attention_any_192x96x6_cpu_avx2"),
    row::<Neon, 12>("attention_any_192x96x12_cpu_neon"),
    row::<Portable, 2>("attention_any_192x96x2_cpu_portable"),
    attention_simple::ROW,
];
