//! One page from records: words, charts and tables in a file that needs no network.
//!
//! The page is the same, byte for byte, for the same records: it says when they were made, not when it was.

mod charts;
pub(crate) mod classes;
mod commands;
pub(super) mod data;
mod html;
pub(super) mod roofs;
mod samples;
mod series;
pub(super) mod words;

use perjoule_record::Record;

pub(crate) use data::{clip, device, phase, provenance};
pub(crate) use html::render;

/// What a page is made of.
#[derive(Debug)]
pub(crate) struct Input<'a> {
    pub(crate) title: &'a str,
    pub(crate) records: &'a [Record],
    /// Lines that could not be read, and why.
    pub(crate) warnings: &'a [String],
    /// What else a reader should know.
    pub(crate) remarks: &'a [String],
}
