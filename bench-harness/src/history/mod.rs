//! Records over time, found through an index of the files that hold them.
//!
//! | module | holds |
//! |---|---|
//! | `facts` | what the index keeps of a record |
//! | `index` | the index: an SQLite file made of the files of records, and brought up to date by their size and time |
//! | `query` | which series and runs are wanted, and what the index says of them |
//! | `trend` | how a series went: changes with a verdict, a line of blocks |
//!
//! The index is never the truth: deleting it loses nothing. What makes records one series is decided by
//! [`Identity`](crate::compare::workload::Identity) alone.

pub(crate) mod facts;
pub(crate) mod index;
pub(crate) mod query;
pub(crate) mod trend;
