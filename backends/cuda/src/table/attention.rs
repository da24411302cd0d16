//! Rows of attention.

use perjoule_kernels::Kernel;

pub(super) static ROWS: &[Kernel] = &[];
