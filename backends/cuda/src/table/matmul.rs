//! Matrix products for every GPU, and for the tensor cores of sm_80 and later.

use perjoule_kernels::Kernel;

pub(super) static ROWS: &[Kernel] = &[];
