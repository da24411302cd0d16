//! Decoder transformers: what a model folder or file says, and where its numbers lie.
//!
//! - [`config`] reads a Hugging Face `config.json` into one family-neutral [`Geometry`];
//! - [`zoo`] holds the public configurations of well-known models, for runs without weights;
//! - [`weights`] opens `*.safetensors` files, checks them in full and reads them by position;
//! - [`memory`] says whether a model fits before anything is allocated;
//! - [`gguf`] does all of that for GGUF files, which hold configuration, weights and vocabulary in one;
//! - [`tokenizer`] turns text into ids and back.
//!
//! and what runs them on perjoule's kernels:
//!
//! - [`Source`] is a folder, a GGUF file, or a geometry with weights drawn from a seed;
//! - [`Model::load`] reads, packs and keeps the weights on a device;
//! - [`Session`] holds the KV cache of one or more sequences: prefill in chunks, decode one token at a time as one recorded step.
//!
//! In browsers (wasm32) nothing can block: what reads a result is awaited there, there are no files, and no tokenizers.

#![forbid(unsafe_code)]

pub mod config;
pub mod error;
pub mod gguf;
mod ids;
mod load;
pub mod memory;
mod session;
mod source;
mod step;
#[cfg(not(target_arch = "wasm32"))]
pub mod tokenizer;
pub mod weights;
pub mod zoo;

pub use config::Geometry;
pub use error::{Error, Result};
pub use ids::check_ids;
pub use load::{LoadOptions, Model, default_kv_dtype};
pub use session::{HostCost, Session, SessionOptions};
pub use source::Source;
