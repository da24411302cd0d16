//! The ops: their references against PyTorch and against algebra, their descriptors against nonsense.

mod algebra;
mod common;
mod descriptors;
mod golden;
mod magnitudes;
mod samples;
