//! The conformance suite: written once, run on every row of every device, by the tests and by `perjoule check`.
//!
//! | module | holds |
//! |---|---|
//! | [`case`] | [`Case`]: an op, how its operands are filled, a seed |
//! | [`cases()`] | the cases of a row, made from its own tile |
//! | [`inputs()`] | the bytes of a case's operands |
//! | [`place`] | where operands live: device buffers between guard bands, or what an implementor of [`Place`] offers |
//! | [`run()`] | one case: launch, judge, repeat, record and replay |
//! | [`judge`] | tolerance and comparison of elements |
//! | [`mod@verify`] | the same judgement for one launch of any op from its bytes, sampled where the op is large |
//! | [`mod@check`] | many cases within a budget of time, and their summary |
//!
//! Nothing here knows a backend. A row's table entry decides which cases it gets; a device is a `&dyn Device`.

#![forbid(unsafe_code)]

pub mod case;
mod cases;
#[cfg(not(target_arch = "wasm32"))]
pub mod check;
mod inputs;
pub mod judge;
pub mod place;
mod random;
#[cfg(not(target_arch = "wasm32"))]
pub mod run;
pub mod verify;

pub use case::{Case, Fill, Scope};
pub use cases::cases;
#[cfg(not(target_arch = "wasm32"))]
pub use check::{Filter, RowSummary, Summary, check, subjects};
pub use inputs::inputs;
pub use judge::Tolerance;
pub use place::{Buffers, Place, Trouble};
#[cfg(not(target_arch = "wasm32"))]
pub use run::{Failure, Outcome, run};
pub use verify::{Verification, freivalds, verify, verify_matmul_sampled};
