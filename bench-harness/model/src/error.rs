//! What can go wrong between a model folder and its first token: each variant names the file, the tensor or the field, and what to do.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use perjoule_kernels::DType;

/// Result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// An input that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Whoever watched the progress of loading ended it.
    #[error("loading was stopped")]
    Stopped,
    /// The operating system refused to open or read a file, or the file ended early.
    #[error("cannot read {}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file or folder whose content breaks its format.
    #[error("{}: {reason}", .path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// A configuration that names no geometry this crate knows, with every problem found.
    #[error("the model configuration cannot be used:{}", Lines(.0))]
    Config(Vec<String>),
    /// A name that is neither a folder, nor a GGUF file, nor a geometry of the zoo.
    #[error("unknown model {name:?}: give a folder with config.json, a GGUF file, or one of {known}")]
    UnknownModel {
        /// The name as given.
        name: String,
        /// The names of the zoo.
        known: String,
    },
    /// A tensor that the weights lack.
    #[error("{} holds no tensor {name:?}", .path.display())]
    MissingTensor {
        /// The tensor.
        name: String,
        /// The file or folder that was searched.
        path: PathBuf,
    },
    /// Weights that do not fit the geometry, with the tensors that are missing or have another shape.
    #[error("the weights in {} do not fit {described_in}:{}", .path.display(), Lines(.problems))]
    Weights {
        /// The folder or file of the weights.
        path: PathBuf,
        /// What describes the geometry.
        described_in: &'static str,
        /// One line a tensor.
        problems: Vec<String>,
    },
    /// A request beyond a tensor's end, or a buffer of another size than the range.
    #[error("tensor {name:?} holds {len} bytes: cannot read bytes {start}..{end} into a buffer of {buffer}")]
    Range {
        /// The tensor.
        name: String,
        /// Bytes it holds.
        len: u64,
        /// First byte asked for.
        start: u64,
        /// One past the last byte asked for.
        end: u64,
        /// Bytes of the buffer.
        buffer: usize,
    },
    /// A KV cache of a type that attention does not read, or does not read in heads of this size. Nothing was allocated.
    #[error(
        "the KV cache cannot be {dtype} where heads have {head_dim} elements: choose f32, f16, bf16, f8e4m3, or q8_0 where that is a \
         multiple of 32"
    )]
    KvDtype {
        /// The type as asked for.
        dtype: DType,
        /// Elements of a head of the model.
        head_dim: usize,
    },
    /// More memory than there is. Nothing was allocated.
    #[error(
        "the model needs {} ({} of weights, {} of KV cache), and {} are available: choose a smaller model, a \
         smaller dtype of weights or cache, fewer sequences or a shorter context",
        Bytes(.weights.saturating_add(*.kv_cache)), Bytes(*.weights), Bytes(*.kv_cache), Bytes(*.available)
    )]
    Memory {
        /// Bytes of the weights.
        weights: u64,
        /// Bytes of the KV cache.
        kv_cache: u64,
        /// Bytes that can be had.
        available: u64,
    },
    /// The folder has no `tokenizer.json`.
    #[error("{} does not exist: give token ids with --ids instead of a text", .path.display())]
    NoTokenizer {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The tokenizer cannot be loaded, or refuses the text or the ids.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// A prompt, or a prompt and what is to follow it, longer than the session's cache or the model's positions.
    #[error("{tokens} tokens do not fit: {limit} allows {have}; use a shorter prompt or fewer tokens")]
    TooLong {
        /// Tokens of a sequence, those already there included.
        tokens: usize,
        /// What sets the limit.
        limit: &'static str,
        /// Tokens that fit.
        have: usize,
    },
    /// Ids that are no whole number of sequences, or none at all.
    #[error("{ids} token ids do not make {parallel} sequences of equal length of at least one token")]
    Sequences {
        /// Ids given.
        ids: usize,
        /// Sequences of the session.
        parallel: usize,
    },
    /// What the device or one of its kernels refused.
    #[error(transparent)]
    Device(#[from] perjoule::Error),
    /// A token id that the model has no embedding for.
    #[error("token id {id} is outside the vocabulary of {vocab}")]
    TokenId {
        /// The id.
        id: u32,
        /// Ids the model knows: `0..vocab`.
        vocab: usize,
    },
}

impl Error {
    pub(crate) fn io(path: &Path, source: io::Error) -> Error {
        Error::Io { path: path.to_owned(), source }
    }

    pub(crate) fn file(path: &Path, reason: impl Into<String>) -> Error {
        Error::File { path: path.to_owned(), reason: reason.into() }
    }
}

/// One problem inline, several as a list of at most 20 lines.
struct Lines<'a>(&'a [String]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 20;
        if let [only] = self.0 {
            return write!(f, " {only}");
        }
        for line in self.0.iter().take(SHOWN) {
            write!(f, "\n  {line}")?;
        }
        match self.0.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, "\n  and {more} more"),
        }
    }
}

/// A byte count as people read it.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const GIB: f64 = (1u64 << 30) as f64;
        let gib = self.0 as f64 / GIB;
        if gib >= 0.1 { write!(f, "{gib:.1} GiB") } else { write!(f, "{:.1} MiB", gib * 1024.0) }
    }
}
