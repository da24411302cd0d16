//! What the machine does now: power, use, clocks and temperatures, read as they are and drawn.
//!
//! `sample` reads all sources into a plain [`sample::Reading`], `history` keeps them, `view` draws them; `cpu`, `gpu` and `power` are the sources.

pub(crate) mod cpu;
pub(crate) mod power;
