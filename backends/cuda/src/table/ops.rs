//! Rows of the ops that go through their operands once or a few times: of each op the fast ones first, and last one that runs
//! everything the op allows.

use crate::launch::rows::{multiprocessors, stream_cost};
use crate::launch::{argmax, elementwise, kv, norm, quantise, rope, route, sample, softmax};
use perjoule_kernels::op::Op;
use perjoule_kernels::{Candidate, Config, Kernel, Numerics};

const EXACT: fn(&Candidate<'_>) -> Numerics = |_| Numerics::EXACT;

/// Accesses of 16 bytes.
static RUNS: &[Config] = &[Config::tile("runs", &[256])];
/// Element by element.
static ELEMENTS: &[Config] = &[Config::tile("elements", &[32])];

/// Cost of a kernel that keeps memory busy.
fn fast(candidate: &Candidate<'_>) -> f32 {
    stream_cost(candidate, 1.0, 0.9)
}

/// Cost of a kernel that takes elements one by one.
fn any(candidate: &Candidate<'_>) -> f32 {
    stream_cost(candidate, 1.2, 0.3)
}

/// Cost of a sampling, by its launches: each goes through the logits.
fn sampling(candidate: &Candidate<'_>) -> f32 {
    let launches = match candidate.op {
        Op::Sample(op) => sample::launches(op, multiprocessors(candidate.info)),
        _ => 1,
    };
    launches as f32 * stream_cost(candidate, 1.0, 0.5)
}

const fn rows(name: &'static str, op: &'static str, exact: bool, fast_row: bool) -> Kernel {
    let kernel = match fast_row {
        true => Kernel::new(name, op, fast, elementwise::prepare_fast)
            .with_configs(RUNS)
            .with_reject(elementwise::refuse_fast)
            .with_align(elementwise::align_fast),
        false => Kernel::new(name, op, any, elementwise::prepare_any).with_configs(ELEMENTS),
    };
    if exact { kernel.with_numerics(EXACT) } else { kernel }
}

const fn norms(name: &'static str, op: &'static str) -> Kernel {
    Kernel::new(name, op, fast, norm::prepare_registers)
        .with_configs(RUNS)
        .with_reject(norm::refuse_registers)
        .with_align(|_, _| 16)
}

#[rustfmt::skip]
pub(super) static ROWS: &[Kernel] = &[
    norms("rms_norm_any_256_cuda_any_registers", "rms_norm"),
    Kernel::new("rms_norm_any_32_cuda_any", "rms_norm", any, norm::prepare_any).with_configs(ELEMENTS),
    norms("layer_norm_any_256_cuda_any_registers", "layer_norm"),
    Kernel::new("layer_norm_any_32_cuda_any", "layer_norm", any, norm::prepare_any).with_configs(ELEMENTS),

    Kernel::new("softmax_any_256_cuda_any_registers", "softmax", fast, softmax::prepare_registers)
        .with_configs(RUNS)
        .with_reject(softmax::refuse_registers)
        .with_align(|_, _| 16),
    Kernel::new("softmax_any_32_cuda_any", "softmax", any, softmax::prepare_any).with_configs(ELEMENTS),

    Kernel::new("rope_any_64_cuda_any_runs", "rope", fast, rope::prepare_fast)
        .with_configs(&[Config::tile("runs", &[64])])
        .with_reject(rope::refuse_fast)
        .with_align(rope::align_fast),
    Kernel::new("rope_any_32_cuda_any", "rope", any, rope::prepare_any).with_configs(ELEMENTS),

    rows("gated_any_256_cuda_any_runs", "gated", false, true),
    rows("gated_any_32_cuda_any", "gated", false, false),
    rows("embed_any_256_cuda_any_runs", "embed", false, true),
    rows("embed_any_32_cuda_any", "embed", false, false),
    rows("add_any_256_cuda_any_runs", "add", false, true),
    rows("add_any_32_cuda_any", "add", false, false),
    rows("combine_any_256_cuda_any_runs", "combine", false, true),
    rows("combine_any_32_cuda_any", "combine", false, false),
    rows("cast_any_256_cuda_any_runs", "cast", true, true),
    rows("cast_any_32_cuda_any", "cast", true, false),

    Kernel::new("argmax_any_256_cuda_any_runs", "argmax", fast, argmax::prepare_fast)
        .with_configs(RUNS)
        .with_numerics(EXACT)
        .with_reject(argmax::refuse_fast)
        .with_align(argmax::align_fast),
    Kernel::new("argmax_any_32_cuda_any", "argmax", any, argmax::prepare_any)
        .with_configs(ELEMENTS)
        .with_numerics(EXACT),
    Kernel::new("sample_any_256_cuda_any_runs", "sample", sampling, sample::prepare_fast)
        .with_configs(RUNS)
        .with_numerics(EXACT)
        .with_reject(argmax::refuse_fast)
        .with_align(argmax::align_fast),
    Kernel::new("sample_any_32_cuda_any", "sample", |c| 2.0 * sampling(c), sample::prepare_any)
        .with_configs(ELEMENTS)
        .with_numerics(EXACT),

    Kernel::new("qk_norm_rope_append_any_64_cuda_any_registers", "qk_norm_rope_append", fast, kv::prepare_registers)
        .with_configs(&[Config::tile("registers", &[64])])
        .with_reject(kv::refuse_registers)
        .with_align(kv::align_registers),
    Kernel::new("qk_norm_rope_append_any_32_cuda_any", "qk_norm_rope_append", any, kv::prepare_heads)
        .with_configs(ELEMENTS),
    Kernel::new("kv_append_any_64_cuda_any_runs", "kv_append", fast, kv::prepare_append_runs)
        .with_configs(&[Config::tile("runs", &[64])])
        .with_numerics(EXACT)
        .with_reject(kv::refuse_append_runs)
        .with_align(kv::align_append),
    Kernel::new("kv_append_any_32_cuda_any", "kv_append", any, kv::prepare_append)
        .with_configs(ELEMENTS)
        .with_numerics(EXACT),
    Kernel::new("advance_i32_1_cuda_any", "advance", any, kv::prepare_advance).with_numerics(EXACT),

    Kernel::new("route_any_1_cuda_any", "route", |c| stream_cost(c, 2.0, 0.3), route::prepare),
    Kernel::new("quantise_any_256_cuda_any_runs", "quantise", fast, quantise::prepare_runs)
        .with_configs(RUNS)
        .with_numerics(EXACT)
        .with_reject(quantise::refuse_runs)
        .with_align(quantise::align_runs),
    Kernel::new("quantise_any_32_cuda_any", "quantise", any, quantise::prepare)
        .with_configs(ELEMENTS)
        .with_numerics(EXACT),
    Kernel::new("collective_any_cuda_alone", "collective", fast, elementwise::prepare_alone)
        .with_numerics(EXACT)
        .with_reject(elementwise::refuse_groups),
];
