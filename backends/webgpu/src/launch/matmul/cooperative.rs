//! Products of f16 by matrices in the registers of subgroups, where the device multiplies such (`shaders/wgsl/matmul/cooperative.wgsl`).

use super::form::{EpilogueParam, Form};
use super::tiled::{GROUPS, in_quads};
use super::window::{Window, most_bound, windows};
use super::{HEADERS, STEP};
use crate::device::WebGpuCaps;
use crate::launch::limits::{full, subgroup};
use crate::launch::rows::{caps, refuse_operands};
use crate::launch::{Builder, Dims, Place, other_op};
use crate::pipeline::Checks;
use crate::shader::{Binding, Touch, Variant};
use bytemuck::{Pod, Zeroable};
use perjoule_kernels::{Candidate, Config, DType, DeviceInfo, Launch, Numerics, Reason, Request, Result};
use perjoule_shaders::{Source, wgsl};

/// By the rows and columns of a matrix in registers; a workgroup has four times as many.
pub(crate) static CONFIGS: &[Config] =
    &[Config::tile("64x64", &[64, 64, 32]), Config::tile("32x32", &[32, 32, 32])];

/// Subgroups of a workgroup.
const SUBGROUPS: u32 = 4;
/// Of a slice: elements along k, and from one vector to the next.
const DEPTH: u32 = 32;
const PITCH: u32 = 40;

/// `Params` of `matmul/cooperative.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    epilogue: EpilogueParam,
    a_batch: u32,
    a_row: u32,
    a_col: u32,
    k: u32,
    b_batch: u32,
    b_row: u32,
    b_col: u32,
    m: u32,
    n: u32,
    depth: u32,
    scale_batch: u32,
    unused: u32,
}

/// `Params` of `matmul/row_scales.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ScaleParams {
    a_batch: u32,
    a_row: u32,
    a_col: u32,
    k: u32,
    m: u32,
    rows: u32,
    unused: [u32; 2],
}

/// Rows and columns of a matrix in registers.
fn side(config: &Config) -> u32 {
    config.tile[0] as u32 / 4
}

/// Why the device does not run it.
fn lacks(caps: &WebGpuCaps, side: u32) -> Option<&'static str> {
    let features = wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX
        | wgpu::Features::SHADER_F16
        | wgpu::Features::SUBGROUP;
    let f16 = wgpu::CooperativeScalarType::F16;
    let fits = |p: &&wgpu::CooperativeMatrixProperties| {
        let sizes = [p.m_size, p.n_size, p.k_size] == [side; 3];
        sizes && p.ab_type == f16 && p.cr_type == wgpu::CooperativeScalarType::F32
    };
    let (subgroup, largest) = subgroup(caps);
    // four subgroups move a slice in whole quads
    let fixed = subgroup == largest
        && subgroup > 0
        && (side * 4 * DEPTH / 4).is_multiple_of(subgroup * SUBGROUPS)
        && subgroup * SUBGROUPS <= caps.limits.max_compute_invocations_per_workgroup;
    let memory = 2 * side * 4 * PITCH * 2 + (side * 4) * (side * 4) * 4;
    if !caps.has(features) {
        return Some("cooperative matrices, f16 and subgroups");
    }
    if !fixed {
        return Some("subgroups of one size");
    }
    if memory > caps.limits.max_compute_workgroup_storage_size {
        return Some("workgroup memory for slices");
    }
    caps.cooperative
        .iter()
        .find(fits)
        .is_none()
        .then_some("cooperative matrices of that size, of f16 into f32")
}

/// Environment variable: `1` lets them run on every driver of Vulkan.
const ALLOWED: &str = "PERJOULE_WEBGPU_COOPERATIVE";

/// Whether invocations may miss what others wrote to workgroup memory: kernels with such matrices are under Vulkan's memory model, whose
/// barriers order nothing but what is said to be made available and visible, and naga says neither (gfx-rs/wgpu#8805). Lavapipe passes all
/// cases; of GPUs' drivers none has been tried.
fn is_unordered(info: &DeviceInfo) -> bool {
    let driver = info.driver.as_deref().unwrap_or_default();
    let untried = driver.starts_with(wgpu::Backend::Vulkan.to_str()) && !info.software;
    untried && std::env::var_os(ALLOWED).is_none_or(|value| value != "1")
}

/// Whether A is rounded to f16.
fn rounds(form: &Form) -> bool {
    form.a.dtype != DType::F16
}

pub(crate) fn refuse(candidate: &Candidate<'_>) -> Option<Reason> {
    let Some(form) = Form::of(candidate.op) else { return Some(Reason::new("the op is no product")) };
    let Some(caps) = caps(candidate.info) else { return Some(Reason::new("the device is none of WebGPU")) };
    if let Some(what) = lacks(caps, side(candidate.config)) {
        return Some(Reason::lacking(what));
    }
    if is_unordered(candidate.info) {
        let text = "barriers that order workgroup memory beside matrices in registers (PERJOULE_WEBGPU_COOPERATIVE=1 goes without)";
        return Some(Reason::lacking(text));
    }
    if form.grouped.is_some() || form.up.is_some() || form.scales_along_k() {
        return Some(Reason::new("has no scales along k, no pairs and no experts"));
    }
    if form.b.dtype != DType::F16 || !matches!(form.a.dtype, DType::F16 | DType::F32 | DType::BF16) {
        return Some(Reason::new("multiplies floats by f16"));
    }
    if rounds(&form) && !form.policy.quantised_activations {
        return Some(Reason::new("rounds A to f16, which the policy does not allow"));
    }
    // scales of rows are one more
    let scales = candidate.op.operands().len() + usize::from(rounds(&form));
    if let Some(reason) = super::refuse(candidate).or_else(|| refuse_operands(candidate, scales)) {
        return Some(reason);
    }
    if windows(&form, most_bound(caps)).is_none_or(|windows| windows.len() > 1) {
        return Some(Reason::new("takes operands that a kernel binds whole"));
    }
    let tile = candidate.config.tile[0];
    let grid = [form.m.div_ceil(tile), form.n.div_ceil(tile), form.matrices];
    grid.iter().any(|&groups| groups > GROUPS).then(|| Reason::new("has no grid for so many tiles"))
}

pub(crate) fn numerics(candidate: &Candidate<'_>) -> Numerics {
    match Form::of(candidate.op) {
        // WGSL leaves open to which side
        Some(form) if rounds(&form) => {
            Numerics::F32.with_unit(2.0 * DType::F16.epsilon()).flushing_subnormals()
        }
        // what is added may be cut to the bits of the largest
        _ => Numerics::F32.with_slack(4.0).flushing_subnormals(),
    }
}

/// Seconds, on a GPU of some ten teraflops.
pub(crate) fn cost(candidate: &Candidate<'_>) -> f32 {
    let Some(form) = Form::of(candidate.op) else { return f32::INFINITY };
    let tile = candidate.config.tile[0];
    let groups = form.matrices * form.m.div_ceil(tile) * form.n.div_ceil(tile);
    let rate = match super::is_software(candidate) {
        true => 0.1e12,
        false => 8e12 * (tile as f32 / 64.0).sqrt(),
    };
    // subgroups of 32, as most GPUs have them
    let busy = (groups as f32 * (SUBGROUPS * 32) as f32) / full(candidate);
    let work = 2.0 * (groups * tile * tile) as f32 * form.k as f32;
    let scales = if rounds(&form) {
        let rows = if form.a.strides.batch == 0 { form.m } else { form.matrices * form.m };
        STEP + form.a.dtype.bytes(rows * form.k).unwrap_or(0) as f32 / 200e9
    } else {
        0.0
    };
    STEP + scales + (work / (rate * busy.clamp(0.02, 1.0))).max(candidate.op.bytes() as f32 / 200e9)
}

/// Adds the kernel that finds scales of the rows of A. Gives where they lie.
fn row_scales(builder: &mut Builder<'_>, form: &Form) -> Result<Place> {
    let a = form.a.strides;
    let rows = if a.batch == 0 { form.m } else { form.matrices * form.m };
    let bytes = 4 * rows.max(1) as u64;
    let scales = Place::Scratch(builder.scratch(bytes), bytes);
    let variant = Variant::of(vec![Binding::get("a", form.a.dtype), Binding::words_mut("scales", "f32")])
        .uint("WIDTH", 256);
    let params = ScaleParams {
        a_batch: a.batch as u32,
        a_row: a.row as u32,
        a_col: a.col as u32,
        k: form.k as u32,
        m: form.m.max(1) as u32,
        rows: rows as u32,
        unused: [0; 2],
    };
    let headers: &[&Source] = &[&wgsl::ELEMENT, &wgsl::LAYOUT, &wgsl::REDUCE];
    let source = (&wgsl::MATMUL_ROW_SCALES, headers, "row_scales");
    let places = vec![Place::Operand(0), scales.clone()];
    builder.step(source, (&variant, Checks::None), Dims::line(rows as u64, 1)?, &params, places)?;
    Ok(scales)
}

pub(crate) fn prepare(request: &Request<'_>) -> Result<Box<dyn Launch>> {
    let form = Form::of(request.op).ok_or_else(|| other_op(request.op))?;
    let side = side(request.config) as usize;
    let lanes = caps(request.info).map_or(32, |caps| subgroup(caps).0) as usize;
    let mut builder = Builder::new(request, "matmul_cooperative_webgpu")?;
    let (a, b) = (form.a.strides, form.b.strides);
    let aligned = |operand: usize| form.k >= 4 && request.alignment.of(operand) >= 16;
    let quads = [in_quads(&form.a, a.row, a.col, aligned(0)), in_quads(&form.b, b.col, b.row, aligned(1))];
    let mut inputs = form.inputs();
    for (input, in_quads) in inputs.iter_mut().zip(quads) {
        if in_quads {
            input.touch = Touch::Quads;
        }
    }
    let rounded = rounds(&form);
    inputs.insert(1, Binding::get("row_scales", DType::F32).when(rounded));
    let mut places = form.places(&Window::whole(&form));
    if rounded {
        places.insert(1, row_scales(&mut builder, &form)?);
    }
    let [of_a, of_b, of_c] = match side {
        8 => ["coop_mat8x8<f16, A>", "coop_mat8x8<f16, B>", "coop_mat8x8<f32, C>"],
        _ => ["coop_mat16x16<f16, A>", "coop_mat16x16<f16, B>", "coop_mat16x16<f32, C>"],
    };
    let variant = form
        .variant(inputs)
        .enable("f16")
        .enable("wgpu_cooperative_matrix")
        .alias("CoopA", of_a)
        .alias("CoopB", of_b)
        .alias("CoopC", of_c)
        .flag("ROUNDED", rounded)
        .flag("A_QUADS", quads[0])
        .flag("B_QUADS", quads[1])
        .flag("A_ALONG_K", a.col == 1)
        .flag("B_ALONG_K", b.row == 1)
        .uint("SIDE", side)
        .uint("WORKGROUP", lanes * SUBGROUPS as usize);
    let params = Params {
        epilogue: form.epilogue(),
        a_batch: a.batch as u32,
        a_row: a.row as u32,
        a_col: a.col as u32,
        k: form.k as u32,
        b_batch: b.batch as u32,
        b_row: b.row as u32,
        b_col: b.col as u32,
        m: form.m as u32,
        n: form.n as u32,
        depth: DEPTH,
        scale_batch: if a.batch == 0 { 0 } else { form.m as u32 },
        unused: 0,
    };
    let tile = 4 * side;
    let dims = Dims::grid(form.m.div_ceil(tile), form.n.div_ceil(tile), form.matrices)?;
    let source = (&wgsl::MATMUL_COOPERATIVE, HEADERS, "cooperative");
    builder.step(source, (&variant, Checks::None), dims, &params, places)?;
    Ok(builder.finish())
}
