//! GGUF: models in one file, with their configuration and vocabulary as keys and values beside the tensors.
//!
//! [`Gguf::open`] reads what precedes the data; numbers are read by position through its [`Checkpoint`], as those of a folder are. The
//! format is ggml's (`docs/gguf.md` there), versions 2 and 3.

mod parse;

use std::collections::BTreeMap;
use std::io::BufReader;
use std::path::Path;

pub use parse::{Header, MAGIC, parse};

use crate::error::{Error, Result};
use crate::weights::{Checkpoint, open_regular};

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
        let header =
            parse(BufReader::with_capacity(1 << 20, &file), len).map_err(|e| Error::file(path, e))?;
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
}
