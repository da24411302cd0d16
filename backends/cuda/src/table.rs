//! Every row of the GPU, as literal lists: what can run, on what, at what predicted cost. One file for each kind of op.

mod attention;
mod hopper;
mod matmul;
mod ops;
mod vendor;

use perjoule_kernels::Kernel;

/// The rows in order: those of vendors' libraries first, of each op the generic row last.
pub fn rows() -> impl Iterator<Item = &'static Kernel> {
    let lists: [&'static [Kernel]; 5] =
        [vendor::ROWS, hopper::ROWS, matmul::ROWS, attention::ROWS, ops::ROWS];
    lists.into_iter().flatten()
}
