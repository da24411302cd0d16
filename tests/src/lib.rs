//! What the workspace's tests share: guard pages for the CPU's operands, rows that are right or wrong on purpose, a device that defers all
//! work, and known failures.

pub mod expectations;
#[cfg(unix)]
pub mod guard;
pub mod lazy;
pub mod left;
pub mod oracle;
