//! Rows of matmul and grouped_matmul.

use perjoule_kernels::Kernel;

/// Fast rows first; the simple portable ones come last.
pub(super) static ROWS: &[Kernel] = &[];
