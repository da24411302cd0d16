//! Matrix products for Hopper's tensor cores.

use perjoule_kernels::Kernel;

pub(super) static ROWS: &[Kernel] = &[];
