//! Rows of the ops that go through their operands once or a few times.

use perjoule_kernels::Kernel;

pub(super) static ROWS: &[Kernel] = &[];
