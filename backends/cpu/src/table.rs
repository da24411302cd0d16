//! Every row of the CPU, as literal lists: what can run, on what, at what predicted cost. One file for each kind of op.

mod attention;
mod matmul;
mod ops;
#[cfg(unix)]
mod vendor;

use perjoule_kernels::Kernel;

/// The rows in order: those of vendors' libraries first, of each op the simple portable row last.
pub fn rows() -> impl Iterator<Item = &'static Kernel> {
    #[cfg(unix)]
    let vendors = vendor::ROWS;
    #[cfg(not(unix))]
    let vendors: &'static [Kernel] = &[];
    let ops: [&'static [Kernel]; 4] = [vendors, matmul::ROWS, attention::ROWS, ops::ROWS];
    ops.into_iter().flatten()
}
