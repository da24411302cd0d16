//! Matrix products.
//!
//! | file | |
//! |---|---|
//! | [`form`] | what the three ops have in common: operands, epilogue |
//! | [`window`] | products of operands that no binding holds |
//! | [`any`] | rows that run everything the ops allow |
//! | [`tiles`] | tiles of C, whatever is multiplied |
//! | [`tiled`] | products of floats on GPUs, by tiles in workgroup memory |
//! | [`cooperative`] | products of f16 by matrices in registers |
//! | [`direct`] | products on processors, without workgroup memory |
//! | [`dot4`] | products of signed bytes in tiles |
//! | [`gemv`] | few rows of A with weights that stream from memory |

pub(crate) mod any;
pub(crate) mod cooperative;
pub(crate) mod direct;
pub(crate) mod dot4;
pub(crate) mod form;
pub(crate) mod gemv;
#[cfg(test)]
mod tests;
pub(crate) mod tiled;
pub(crate) mod tiles;
pub(crate) mod window;

use super::Dims;
use super::rows::caps;
use form::Form;
use perjoule_kernels::{Candidate, Error, Reason, Result};
use perjoule_shaders::{Source, wgsl};

/// What sources of products stand behind.
pub(crate) const HEADERS: &[&Source] = &[&wgsl::ELEMENT, &wgsl::LAYOUT, &wgsl::MATH, &wgsl::MATMUL_EPILOGUE];

/// Seconds of a kernel that does nothing.
pub(crate) const STEP: f32 = 5e-6;

/// Why no kernel takes the product: operands of which no part of 16 rows or columns fits a binding, or more of them than a kernel
/// binds. Larger ones are split into windows.
pub(crate) fn refuse(candidate: &Candidate<'_>) -> Option<Reason> {
    let Some(caps) = caps(candidate.info) else { return Some(Reason::new("the device is none of WebGPU")) };
    refuse_beyond(candidate, window::most_bound(caps))
        .or_else(|| refuse_count(candidate, caps.limits.max_storage_buffers_per_shader_stage as usize))
}

/// Why parts of operands of `most` bytes are not enough.
fn refuse_beyond(candidate: &Candidate<'_>, most: u64) -> Option<Reason> {
    let Some(form) = Form::of(candidate.op) else { return Some(Reason::new("the op is no product")) };
    let none = window::windows(&form, most).is_none();
    none.then(|| Reason::new(format!("a kernel of this device binds {most} bytes of an operand")))
}

fn refuse_count(candidate: &Candidate<'_>, most: usize) -> Option<Reason> {
    let operands = candidate.op.operands().len();
    (operands > most)
        .then(|| Reason::new(format!("{operands} operands are more than the {most} that a kernel binds")))
}

/// Why no grid has as many workgroups as a window of the product takes by `dims`.
fn refuse_lines(
    candidate: &Candidate<'_>,
    form: &Form,
    dims: impl Fn(&window::Window) -> Result<Dims>,
) -> Option<Reason> {
    let most = caps(candidate.info).map_or(0, window::most_bound);
    let fits = window::windows(form, most)?.iter().all(|window| dims(window).is_ok());
    (!fits).then(|| Reason::new("takes more invocations than a number of 32 bits counts"))
}

fn too_large() -> Error {
    Error::Unsupported { what: "an op of this size", why: "no part of its operands fits a binding".into() }
}

/// Whether the device is a processor.
fn is_software(candidate: &Candidate<'_>) -> bool {
    caps(candidate.info).is_some_and(|caps| caps.software)
}
