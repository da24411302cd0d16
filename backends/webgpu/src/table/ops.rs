//! Rows of the ops that go through their operands once or a few times: of each op the fast ones first, and last one that runs
//! everything the op allows.

use crate::launch::rows::{refuse, stream_cost};
use crate::launch::{argmax, elementwise, norm, quantise, route, sample, softmax};
use perjoule_kernels::op::Op;
use perjoule_kernels::{Candidate, Config, DType, Kernel, Numerics};

/// WGSL leaves subnormal numbers to the implementation.
const F32: fn(&Candidate<'_>) -> Numerics = |_| Numerics::F32.flushing_subnormals();
/// Of rows whose arithmetic is that of integers.
const EXACT: fn(&Candidate<'_>) -> Numerics = |_| Numerics::EXACT;

/// The same of rows that compute with the numbers as well, however exactly.
const NEARLY_EXACT: fn(&Candidate<'_>) -> Numerics = |_| Numerics::EXACT.flushing_subnormals();

/// Conversions move bits, but for the products of scales and codes: mxfp4 alone has subnormal ones.
fn casting(candidate: &Candidate<'_>) -> Numerics {
    match candidate.op {
        Op::Cast(op) if op.from == DType::MxFp4 => Numerics::EXACT.flushing_subnormals(),
        _ => Numerics::EXACT,
    }
}

/// Runs of four elements.
static RUNS: &[Config] = &[Config::tile("runs", &[64])];
/// Element by element.
static ELEMENTS: &[Config] = &[Config::tile("elements", &[32])];

/// Cost of a kernel that keeps memory busy.
fn fast(candidate: &Candidate<'_>) -> f32 {
    stream_cost(candidate, 1.0, 0.8)
}

/// Cost of a kernel that takes elements one by one.
fn any(candidate: &Candidate<'_>) -> f32 {
    stream_cost(candidate, 1.2, 0.3)
}

/// Cost of a sampling that goes through the logits for each digit.
fn sampling(candidate: &Candidate<'_>) -> f32 {
    let steps = match candidate.op {
        Op::Sample(op) => 3 + sample::digits(op),
        _ => 1,
    };
    steps as f32 * stream_cost(candidate, 1.0, 0.5)
}

const fn runs(name: &'static str, op: &'static str) -> Kernel {
    Kernel::new(name, op, fast, elementwise::prepare_runs)
        .with_configs(RUNS)
        .with_reject(elementwise::refuse_runs)
        .with_align(elementwise::align_runs)
        .with_numerics(F32)
}

const fn elements(name: &'static str, op: &'static str) -> Kernel {
    Kernel::new(name, op, any, elementwise::prepare_any)
        .with_configs(ELEMENTS)
        .with_reject(refuse)
        .with_numerics(F32)
}

/// Vectors in registers, whose sums meet by shuffles within subgroups or through workgroup memory.
const fn norm_rows<const SHUFFLES: bool>(name: &'static str, op: &'static str) -> Kernel {
    Kernel::new(name, op, norm::cost_registers::<SHUFFLES>, norm::prepare_registers::<SHUFFLES>)
        .with_configs(RUNS)
        .with_reject(norm::refuse_registers::<SHUFFLES>)
        .with_align(norm::align_runs)
        .with_numerics(F32)
}

const fn softmax_rows<const SHUFFLES: bool>(name: &'static str) -> Kernel {
    Kernel::new(name, "softmax", softmax::cost_registers::<SHUFFLES>, softmax::prepare_registers::<SHUFFLES>)
        .with_configs(RUNS)
        .with_reject(softmax::refuse_registers::<SHUFFLES>)
        .with_align(norm::align_runs)
        .with_numerics(F32)
}

#[rustfmt::skip]
pub(super) static ROWS: &[Kernel] = &[
    norm_rows::<true>("rms_norm_any_64_webgpu_subgroup_registers", "rms_norm"),
    norm_rows::<false>("rms_norm_any_64_webgpu_any_registers", "rms_norm"),
    Kernel::new("rms_norm_any_32_webgpu_any", "rms_norm", any, norm::prepare_any)
        .with_configs(ELEMENTS).with_reject(refuse).with_numerics(F32),
    norm_rows::<true>("layer_norm_any_64_webgpu_subgroup_registers", "layer_norm"),
    norm_rows::<false>("layer_norm_any_64_webgpu_any_registers", "layer_norm"),
    Kernel::new("layer_norm_any_32_webgpu_any", "layer_norm", any, norm::prepare_any)
        .with_configs(ELEMENTS).with_reject(refuse).with_numerics(F32),
    softmax_rows::<true>("softmax_any_64_webgpu_subgroup_registers"),
    softmax_rows::<false>("softmax_any_64_webgpu_any_registers"),
    Kernel::new("softmax_any_32_webgpu_any", "softmax", any, softmax::prepare_any)
        .with_configs(ELEMENTS).with_reject(refuse).with_numerics(F32),

    runs("gated_any_64_webgpu_any_runs", "gated"),
    elements("gated_any_32_webgpu_any", "gated"),
    runs("embed_any_64_webgpu_any_runs", "embed"),
    elements("embed_any_32_webgpu_any", "embed"),
    runs("add_any_64_webgpu_any_runs", "add"),
    elements("add_any_32_webgpu_any", "add"),
    runs("combine_any_64_webgpu_any_runs", "combine"),
    elements("combine_any_32_webgpu_any", "combine"),
    runs("cast_any_64_webgpu_any_runs", "cast").with_numerics(casting),
    elements("cast_any_32_webgpu_any", "cast").with_numerics(casting),

    Kernel::new("argmax_any_64_webgpu_any_runs", "argmax", fast, argmax::prepare_runs)
        .with_configs(RUNS).with_reject(argmax::refuse_runs).with_align(argmax::align_runs).with_numerics(EXACT),
    Kernel::new("argmax_any_32_webgpu_any", "argmax", any, argmax::prepare_any)
        .with_configs(ELEMENTS).with_reject(refuse).with_numerics(EXACT),
    Kernel::new("sample_any_64_webgpu_any_parts", "sample", sampling, sample::prepare_parts)
        .with_configs(RUNS).with_reject(sample::refuse_parts).with_align(argmax::align_runs).with_numerics(EXACT),
    Kernel::new("sample_any_32_webgpu_any", "sample", |c| sampling(c) * 20.0, sample::prepare_any)
        .with_configs(ELEMENTS).with_reject(refuse).with_numerics(EXACT),
    Kernel::new("route_any_64_webgpu_any_ranks", "route", fast, route::prepare_ranks)
        .with_configs(RUNS).with_reject(route::refuse_ranks).with_numerics(F32),
    Kernel::new("route_any_1_webgpu_any", "route", any, route::prepare_any).with_reject(refuse).with_numerics(F32),
    Kernel::new("quantise_any_64_webgpu_any_runs", "quantise", fast, quantise::prepare_runs)
        .with_configs(RUNS).with_reject(quantise::refuse_runs).with_align(quantise::align_runs).with_numerics(NEARLY_EXACT),
    Kernel::new("quantise_any_32_webgpu_any", "quantise", any, quantise::prepare_any)
        .with_configs(ELEMENTS).with_reject(refuse).with_numerics(NEARLY_EXACT),
    Kernel::new("collective_any_webgpu_alone", "collective", fast, elementwise::prepare_alone)
        .with_reject(elementwise::refuse_groups).with_numerics(EXACT),
];
