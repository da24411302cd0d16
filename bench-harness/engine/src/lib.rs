//! What is measured, and how: the same code natively and in browsers.
//!
//! | module | holds |
//! |---|---|
//! | [`ops`] | every op by name, with the sizes that `--shape` takes |
//! | [`data`] | random operands |
//! | [`sampling`] | warm-up until steady, samples until the interval of the median is narrow or the time is spent |
//! | [`launches`] | a prepared kernel on its operands: verified, and timed by the device's clock or the host's |
//! | [`tokens`] | prefill and decode of a whole model: repetitions, their work, their columns of a record |
//! | [`roofs`] | ceilings as records, and results held against them |
//!
//! Whatever waits for a device is `async`. Natively it blocks where it waits ([`perjoule_kernels::device::settled`]), so that futures are ready when they
//! are polled first ([`perjoule_kernels::device::at_once`]); a browser awaits them.

#![forbid(unsafe_code)]

pub mod data;
pub mod launches;
pub mod ops;
pub mod roofs;
pub mod sampling;
pub mod tokens;

/// The measurement was interrupted.
#[derive(Debug, Clone, Copy)]
pub struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}
