//! Every row of the CPU, as literal lists: what can run, on what, at what predicted cost. One file for each kind of op.

mod attention;
mod matmul;
mod ops;

use perjoule_kernels::Kernel;

/// The rows in order; of each op the simple portable row comes last.
pub fn rows() -> impl Iterator<Item = &'static Kernel> {
    let ops: [&'static [Kernel]; 3] = [matmul::ROWS, attention::ROWS, ops::ROWS];
    ops.into_iter().flatten()
}
