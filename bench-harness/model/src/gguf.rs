//! GGUF: models in one file, with their configuration and vocabulary as keys and values beside the tensors.
//!
//! [`Gguf::open`] reads what precedes the data; numbers are read by position through its [`Checkpoint`], as those of a folder are. The
//! format is ggml's (`docs/gguf.md` there), versions 2 and 3.

mod geometry;
mod names;
mod parse;
mod rope;
#[cfg(not(target_arch = "wasm32"))]
mod vocab;

use std::collections::BTreeMap;
use std::io::BufReader;
use std::path::Path;

pub use parse::{Header, MAGIC, parse};

use crate::config::Geometry;
use crate::error::{Error, Result};
use crate::weights::{Checkpoint, Plan, open_regular};

/// A value of a key.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Of 8, 16, 32 or 64 bits.
    Unsigned(u64),
    /// Of 8, 16, 32 or 64 bits.
    Signed(i64),
    /// Of 32 or 64 bits.
    Float(f64),
    /// True or false.
    Bool(bool),
    /// UTF-8.
    Text(String),
    /// Values of one type.
    Array(Vec<Value>),
}

impl Value {
    /// A whole number of at least 0, of either signedness.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Value::Unsigned(value) => Some(value),
            Value::Signed(value) => u64::try_from(value).ok(),
            _ => None,
        }
    }

    /// A number.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Value::Unsigned(value) => Some(value as f64),
            Value::Signed(value) => Some(value as f64),
            Value::Float(value) => Some(value),
            _ => None,
        }
    }

    /// True or false.
    pub fn as_bool(&self) -> Option<bool> {
        match *self {
            Value::Bool(value) => Some(value),
            _ => None,
        }
    }

    /// A text.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::Text(value) => Some(value),
            _ => None,
        }
    }

    /// The elements of an array.
    pub fn as_array(&self) -> Option<&[Value]> {
        match self {
            Value::Array(values) => Some(values),
            _ => None,
        }
    }
}

/// An opened GGUF file.
#[derive(Debug)]
pub struct Gguf {
    /// All keys with their values.
    pub metadata: BTreeMap<String, Value>,
    /// All tensors.
    pub checkpoint: Checkpoint,
}

impl Gguf {
    /// Opens a file and checks what precedes its data.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read, [`Error::File`] when it breaks the format or is one of several parts.
    pub fn open(path: &Path) -> Result<Gguf> {
        let file = open_regular(path)?;
        let len = file.metadata().map_err(|e| Error::io(path, e))?.len();
        let buffer = len.min(1 << 20) as usize;
        let header = parse(BufReader::with_capacity(buffer, &file), len).map_err(|e| Error::file(path, e))?;
        let parts = header.metadata.get("split.count").and_then(Value::as_u64).unwrap_or(1);
        if parts > 1 {
            return Err(Error::file(
                path,
                format!(
                    "is one of {parts} parts: join them with `llama-gguf-split --merge` and give the result"
                ),
            ));
        }
        let checkpoint = Checkpoint::of_file(path, file, header.data, header.tensors);
        Ok(Gguf { metadata: header.metadata, checkpoint })
    }

    /// The geometry that the keys describe.
    ///
    /// # Errors
    /// [`Error::File`] with the architecture that is not supported, or every key that is missing or does not fit.
    pub fn geometry(&self) -> Result<Geometry> {
        geometry::geometry(self)
    }

    /// Where each weight of `geometry` lies.
    ///
    /// # Errors
    /// [`Error::Weights`] with every tensor that is missing or does not fit.
    pub fn plan(&self, geometry: &Geometry) -> Result<Plan> {
        names::plan(geometry, self)
    }

    /// The quantisation as llama.cpp names it, such as `Q4_K - Medium`; `None` where the file does not say, or a number without a name here.
    pub fn file_type(&self) -> Option<&'static str> {
        let number = self.metadata.get("general.file_type")?.as_u64()?;
        Some(match number {
            0 => "all F32",
            1 => "F16",
            2 => "Q4_0",
            7 => "Q8_0",
            14 => "Q4_K - Small",
            15 => "Q4_K - Medium",
            18 => "Q6_K",
            32 => "BF16",
            38 => "MXFP4 MoE",
            _ => return None,
        })
    }

    /// The architecture's name, such as `llama`.
    pub fn architecture(&self) -> Option<&str> {
        self.metadata.get("general.architecture")?.as_str()
    }
}
