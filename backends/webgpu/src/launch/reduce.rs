//! Sums and maxima over neighbouring invocations of a workgroup of 256, as kernels of rows need them: by shuffles within subgroups
//! (`shaders/wgsl/common/reduce_shuffles.wgsl`), or through workgroup memory alone (`shaders/wgsl/common/reduce.wgsl`).

use super::limits::subgroup;
use super::rows::caps;
use crate::shader::Variant;
use perjoule_kernels::{Candidate, DeviceInfo, Reason};
use perjoule_shaders::{Source, wgsl};

/// Invocations that every subgroup of the device has; 0 without subgroups.
fn fewest(info: &DeviceInfo) -> usize {
    caps(info).map_or(0, |caps| subgroup(caps).0 as usize)
}

/// Why there are no shuffles for a row that asks for them.
pub(super) fn refuse<const SHUFFLES: bool>(candidate: &Candidate<'_>) -> Option<Reason> {
    // smaller ones leave more to workgroup memory than shuffles save
    (SHUFFLES && fewest(candidate.info) < 4).then(|| Reason::lacking("subgroup"))
}

/// The header that defines them.
pub(super) const fn header<const SHUFFLES: bool>() -> &'static Source {
    if SHUFFLES { &wgsl::REDUCE_SHUFFLES } else { &wgsl::REDUCE }
}

/// The variant with what the header needs: how many invocations meet.
pub(super) fn variant<const SHUFFLES: bool>(variant: Variant, width: usize, info: &DeviceInfo) -> Variant {
    let variant = variant.uint("WIDTH", width);
    if SHUFFLES { variant.uint("SUBGROUP", fewest(info)) } else { variant }
}
