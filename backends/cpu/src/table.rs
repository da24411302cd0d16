//! Every row of the CPU, as literal lists: what can run, on what, at what predicted cost. One file an op.

mod matmul;

use perjoule_kernels::Kernel;

/// The rows in order; of each op the simple portable row comes last.
pub fn rows() -> impl Iterator<Item = &'static Kernel> {
    let ops: [&'static [Kernel]; 1] = [matmul::ROWS];
    ops.into_iter().flatten()
}
