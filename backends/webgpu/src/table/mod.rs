//! Every row of the backend, as literal lists.

mod attention;
mod matmul;
mod ops;

use perjoule_kernels::Kernel;

/// Every row, in order.
pub fn rows() -> impl Iterator<Item = &'static Kernel> {
    ops::ROWS.iter().chain(matmul::ROWS).chain(attention::ROWS)
}
