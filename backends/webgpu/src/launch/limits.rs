//! What kernels ask of a device beside its features: workgroups of a size, and what is known of its subgroups.

use crate::device::WebGpuCaps;
use crate::launch::rows::caps;
use perjoule_kernels::{Candidate, DeviceClass, Reason};

/// Why the device runs no workgroups of so many invocations, with so many bytes of memory.
pub(crate) fn refuse_workgroup(
    candidate: &Candidate<'_>,
    invocations: usize,
    bytes: usize,
) -> Option<Reason> {
    let Some(caps) = caps(candidate.info) else { return Some(Reason::new("the device is none of WebGPU")) };
    let limits = &caps.limits;
    let most = limits.max_compute_invocations_per_workgroup.min(limits.max_compute_workgroup_size_x) as usize;
    if invocations > most {
        return Some(Reason::new(format!(
            "takes workgroups of {invocations} invocations, and those of this device have up to {most}"
        )));
    }
    let most = limits.max_compute_workgroup_storage_size as usize;
    (bytes > most).then(|| {
        Reason::new(format!(
            "takes {bytes} bytes of workgroup memory, and a workgroup of this device has up to {most}"
        ))
    })
}

/// Invocations that keep a device busy, for predictions: a few for each of a hundred compute units of a discrete GPU that can hold a thousand, of
/// which others have a dozen.
pub(crate) fn full(candidate: &Candidate<'_>) -> f32 {
    if candidate.info.class == DeviceClass::DiscreteGpu { 65_536.0 } else { 16_384.0 }
}

/// Fewest and most invocations of a subgroup, equal where their number is fixed; 0 without subgroups. All rows ask here.
pub(crate) fn subgroup(caps: &WebGpuCaps) -> (u32, u32) {
    if caps.has(wgpu::Features::SUBGROUP) { caps.subgroup } else { (0, 0) }
}
