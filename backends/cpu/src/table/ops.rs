//! Rows of the ops that go through their operands once or a few times: one body each, compiled for every instruction set.

use crate::launch::body::row;
use crate::launch::{add, cast, embed, fused, gated, kv, norm, rope, route, sample, softmax};
use crate::simd::{Avx2, Avx512, Neon, Portable};
use perjoule_kernels::{Candidate, Kernel, Numerics};

type Rounds = fn(&Candidate<'_>) -> Numerics;

const F32: Rounds = |_| Numerics::F32;
const EXACT: Rounds = |_| Numerics::EXACT;

/// Widest vectors first.
#[rustfmt::skip]
pub(super) static ROWS: &[Kernel] = &[
    row::<Avx512>("rms_norm_any_256_cpu_avx512", "rms_norm", F32, norm::prepare::<Avx512>),
    row::<Avx2>("rms_norm_any_256_cpu_avx2", "rms_norm", F32, norm::prepare::<Avx2>),
    row::<Neon>("rms_norm_any_256_cpu_neon", "rms_norm", F32, norm::prepare::<Neon>),
    row::<Portable>("rms_norm_any_256_cpu_portable", "rms_norm", F32, norm::prepare::<Portable>),

    row::<Avx512>("layer_norm_any_256_cpu_avx512", "layer_norm", F32, norm::prepare::<Avx512>),
    row::<Avx2>("layer_norm_any_256_cpu_avx2", "layer_norm", F32, norm::prepare::<Avx2>),
    row::<Neon>("layer_norm_any_256_cpu_neon", "layer_norm", F32, norm::prepare::<Neon>),
    row::<Portable>("layer_norm_any_256_cpu_portable", "layer_norm", F32, norm::prepare::<Portable>),

    row::<Avx512>("rope_any_128_cpu_avx512", "rope", F32, rope::prepare::<Avx512>),
    row::<Avx2>("rope_any_128_cpu_avx2", "rope", F32, rope::prepare::<Avx2>),
    row::<Neon>("rope_any_128_cpu_neon", "rope", F32, rope::prepare::<Neon>),
    row::<Portable>("rope_any_128_cpu_portable", "rope", F32, rope::prepare::<Portable>),

    row::<Avx512>("gated_any_256_cpu_avx512", "gated", F32, gated::prepare::<Avx512>),
    row::<Avx2>("gated_any_256_cpu_avx2", "gated", F32, gated::prepare::<Avx2>),
    row::<Neon>("gated_any_256_cpu_neon", "gated", F32, gated::prepare::<Neon>),
    row::<Portable>("gated_any_256_cpu_portable", "gated", F32, gated::prepare::<Portable>),

    row::<Avx512>("softmax_any_256_cpu_avx512", "softmax", F32, softmax::prepare::<Avx512>),
    row::<Avx2>("softmax_any_256_cpu_avx2", "softmax", F32, softmax::prepare::<Avx2>),
    row::<Neon>("softmax_any_256_cpu_neon", "softmax", F32, softmax::prepare::<Neon>),
    row::<Portable>("softmax_any_256_cpu_portable", "softmax", F32, softmax::prepare::<Portable>),

    row::<Avx512>("embed_any_256_cpu_avx512", "embed", F32, embed::prepare::<Avx512>),
    row::<Avx2>("embed_any_256_cpu_avx2", "embed", F32, embed::prepare::<Avx2>),
    row::<Neon>("embed_any_256_cpu_neon", "embed", F32, embed::prepare::<Neon>),
    row::<Portable>("embed_any_256_cpu_portable", "embed", F32, embed::prepare::<Portable>),

    row::<Avx512>("add_any_256_cpu_avx512", "add", F32, add::prepare::<Avx512>),
    row::<Avx2>("add_any_256_cpu_avx2", "add", F32, add::prepare::<Avx2>),
    row::<Neon>("add_any_256_cpu_neon", "add", F32, add::prepare::<Neon>),
    row::<Portable>("add_any_256_cpu_portable", "add", F32, add::prepare::<Portable>),

    row::<Avx512>("combine_any_256_cpu_avx512", "combine", F32, route::prepare::<Avx512>),
    row::<Avx2>("combine_any_256_cpu_avx2", "combine", F32, route::prepare::<Avx2>),
    row::<Neon>("combine_any_256_cpu_neon", "combine", F32, route::prepare::<Neon>),
    row::<Portable>("combine_any_256_cpu_portable", "combine", F32, route::prepare::<Portable>),

    row::<Avx512>("kv_append_any_256_cpu_avx512", "kv_append", EXACT, kv::prepare::<Avx512>),
    row::<Avx2>("kv_append_any_256_cpu_avx2", "kv_append", EXACT, kv::prepare::<Avx2>),
    row::<Neon>("kv_append_any_256_cpu_neon", "kv_append", EXACT, kv::prepare::<Neon>),
    row::<Portable>("kv_append_any_256_cpu_portable", "kv_append", EXACT, kv::prepare::<Portable>),

    row::<Avx512>("argmax_any_256_cpu_avx512", "argmax", EXACT, sample::prepare::<Avx512>),
    row::<Avx2>("argmax_any_256_cpu_avx2", "argmax", EXACT, sample::prepare::<Avx2>),
    row::<Neon>("argmax_any_256_cpu_neon", "argmax", EXACT, sample::prepare::<Neon>),
    row::<Portable>("argmax_any_256_cpu_portable", "argmax", EXACT, sample::prepare::<Portable>),

    row::<Avx512>("sample_any_64_cpu_avx512", "sample", EXACT, sample::prepare::<Avx512>),
    row::<Avx2>("sample_any_64_cpu_avx2", "sample", EXACT, sample::prepare::<Avx2>),
    row::<Neon>("sample_any_64_cpu_neon", "sample", EXACT, sample::prepare::<Neon>),
    row::<Portable>("sample_any_64_cpu_portable", "sample", EXACT, sample::prepare::<Portable>),

    row::<Avx512>("cast_any_256_cpu_avx512", "cast", EXACT, cast::prepare::<Avx512>),
    row::<Avx2>("cast_any_256_cpu_avx2", "cast", EXACT, cast::prepare::<Avx2>),
    row::<Neon>("cast_any_256_cpu_neon", "cast", EXACT, cast::prepare::<Neon>),
    row::<Portable>("cast_any_256_cpu_portable", "cast", EXACT, cast::prepare::<Portable>),

    row::<Avx512>("quantise_any_256_cpu_avx512", "quantise", EXACT, cast::prepare::<Avx512>),
    row::<Avx2>("quantise_any_256_cpu_avx2", "quantise", EXACT, cast::prepare::<Avx2>),
    row::<Neon>("quantise_any_256_cpu_neon", "quantise", EXACT, cast::prepare::<Neon>),
    row::<Portable>("quantise_any_256_cpu_portable", "quantise", EXACT, cast::prepare::<Portable>),

    row::<Avx512>("qk_norm_rope_append_any_256_cpu_avx512", "qk_norm_rope_append", F32, fused::prepare::<Avx512>),
    row::<Avx2>("qk_norm_rope_append_any_256_cpu_avx2", "qk_norm_rope_append", F32, fused::prepare::<Avx2>),
    row::<Neon>("qk_norm_rope_append_any_256_cpu_neon", "qk_norm_rope_append", F32, fused::prepare::<Neon>),
    row::<Portable>("qk_norm_rope_append_any_256_cpu_portable", "qk_norm_rope_append", F32, fused::prepare::<Portable>),

    row::<Portable>("route_any_1_cpu_portable", "route", F32, route::prepare::<Portable>),
    row::<Portable>("advance_i32_1_cpu_portable", "advance", EXACT, kv::prepare::<Portable>),
    cast::COLLECTIVE,
];
