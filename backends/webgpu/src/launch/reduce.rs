//! Sums and maxima over neighbouring invocations of a workgroup of 256, as kernels of rows need them: by shuffles within subgroups
//! (`shaders/wgsl/common/reduce_shuffles.wgsl`), or through workgroup memory alone (`shaders/wgsl/common/reduce.wgsl`).

use super::limits::subgroup;
use super::norm::shape;
use super::rows::{caps, stream_cost};
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

/// Seconds of a kernel that keeps a vector of `len` elements in registers. With shuffles it waits less, but what many narrow subgroups leave
/// is added one by one.
pub(super) fn cost<const SHUFFLES: bool>(candidate: &Candidate<'_>, len: usize) -> f32 {
    let width = shape(len / 4).map_or(0, |(width, _)| width);
    let launches = match SHUFFLES {
        true if width <= 16 * fewest(candidate.info) => 0.95,
        true => 1.05,
        false => 1.0,
    };
    stream_cost(candidate, launches, 0.8)
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
