//! Rows that call NVIDIA's libraries.

use perjoule_kernels::Kernel;

pub(super) static ROWS: &[Kernel] = &[];
