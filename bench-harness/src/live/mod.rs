//! What the machine does now: power, use, clocks and temperatures, read as they are and drawn.
//!
//! `sample` reads all sources into a plain [`sample::Reading`], `history` keeps its figures for graphs, `view` draws them with the bars and figures of `text`; `beside` shows them below a run; `cpu`, `gpu` and
//! `power` are the sources.

pub(crate) mod beside;
pub(crate) mod cpu;
mod gpu;
pub(crate) mod history;
pub(crate) mod power;
pub(crate) mod sample;
pub(crate) mod text;
pub(crate) mod view;

#[cfg(all(test, unix))]
mod tests;
