//! Results side by side, and regressions between two files of them.
//!
//! | module | holds |
//! |---|---|
//! | `workload` | what a result is for, and which results may stand beside each other |
//! | `row` | one result: from a record, or predicted for a class of hardware |
//! | `here` | this machine as a class of hardware, from what it measured |
//! | `costs` | dollars and carbon of a million tokens |
//! | `side` | groups of comparable results, as tables, JSON and CSV |
//! | `regression` | two files matched line by line, with a verdict for each |
//! | `export` | regressions as tables, JSON, JUnit and annotations |
//!
//! README.md beside this file describes the JSON.

pub(crate) mod costs;
pub(crate) mod export;
pub(crate) mod here;
pub(crate) mod regression;
pub(crate) mod row;
pub(crate) mod side;
pub(crate) mod workload;
