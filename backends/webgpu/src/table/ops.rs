//! Rows of the ops that go through their operands once or a few times: of each op the fast ones first, and last one that runs
//! everything the op allows.

use crate::launch::elementwise;
use crate::launch::rows::{refuse, stream_cost};
use perjoule_kernels::{Candidate, Kernel, Numerics};

/// WGSL leaves subnormal numbers to the implementation.
const F32: fn(&Candidate<'_>) -> Numerics = |_| Numerics::F32.flushing_subnormals();

/// Cost of a kernel that takes elements one by one.
fn any(candidate: &Candidate<'_>) -> f32 {
    stream_cost(candidate, 1.2, 0.3)
}

#[rustfmt::skip]
pub(super) static ROWS: &[Kernel] = &[
    Kernel::new("add_any_1_webgpu_any", "add", any, elementwise::prepare_any).with_reject(refuse).with_numerics(F32),
];
