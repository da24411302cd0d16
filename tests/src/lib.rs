//! What the workspace's tests share: guard pages for the CPU's operands, rows that are right or wrong on purpose, and known failures.

pub mod expectations;
#[cfg(unix)]
pub mod guard;
pub mod left;
pub mod oracle;
