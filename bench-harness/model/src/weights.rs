//! Weights on disk: opening a checkpoint, checking it in full, and reading it by position.
//!
//! [`Checkpoint::open`] reads headers only. [`plan()`] then matches the tensors against a [`Geometry`](crate::Geometry), and
//! [`Checkpoint::read_range`] takes `&self`, so that many threads read straight into the places where weights are packed. There is no memory
//! map: a file that is truncated while in use is an error, not a signal.

mod header;
mod plan;
mod shape;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};

pub use header::{FileDType, HeaderTensor, MAX_HEADER, header_len, parse_header, parse_index};
pub(crate) use plan::plan_by;
pub use plan::{Plan, Stored, Weight, plan};
pub use shape::{Role, WeightShape};

use crate::error::{Error, Result};

/// An opened set of safetensors files, or the tensors of a GGUF file.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    shards: Vec<Shard>,
    tensors: BTreeMap<String, TensorInfo>,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    file: File,
}

/// One tensor of a [`Checkpoint`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Element type.
    pub dtype: FileDType,
    /// Sizes, outermost first; empty for a scalar. Elements lie densely in row-major order.
    pub shape: Vec<usize>,
    /// Bytes of the whole tensor.
    pub bytes: u64,
    /// First byte in its file.
    start: u64,
    /// Index of its file.
    shard: usize,
}

impl Checkpoint {
    /// Opens the weights in `dir`: `model.safetensors`, else the shards that `model.safetensors.index.json` names.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::File`] with the file that cannot be read or breaks its format, [`Error::MissingTensor`] when a shard lacks a
    /// tensor that the index places there.
    pub fn open(dir: &Path) -> Result<Checkpoint> {
        let single = dir.join("model.safetensors");
        if single.exists() {
            return Checkpoint::open_file(&single);
        }
        let index_path = dir.join("model.safetensors.index.json");
        if !index_path.exists() {
            return Err(Error::file(
                dir,
                "holds neither model.safetensors nor model.safetensors.index.json: give a folder in the Hugging Face layout with \
                 safetensors weights",
            ));
        }
        let index =
            parse_index(&read_file(&index_path, MAX_HEADER)?).map_err(|e| Error::file(&index_path, e))?;
        let mut files: BTreeMap<&str, (usize, BTreeMap<String, TensorInfo>)> = BTreeMap::new();
        let mut shards = Vec::new();
        let mut tensors = BTreeMap::new();
        for (name, shard) in &index {
            if !files.contains_key(shard.as_str()) {
                let (opened, held) = open_shard(&dir.join(shard), shards.len())?;
                files.insert(shard, (shards.len(), held));
                shards.push(opened);
            }
            let Some((number, held)) = files.get_mut(shard.as_str()) else { continue };
            let Some(info) = held.remove(name) else {
                return Err(Error::MissingTensor { name: name.clone(), path: shards[*number].path.clone() });
            };
            tensors.insert(name.clone(), info);
        }
        Ok(Checkpoint { path: dir.to_owned(), shards, tensors })
    }

    /// Opens one safetensors file.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::File`] when it cannot be read or breaks its format.
    pub fn open_file(path: &Path) -> Result<Checkpoint> {
        let (shard, tensors) = open_shard(path, 0)?;
        Ok(Checkpoint { path: path.to_owned(), shards: vec![shard], tensors })
    }

    /// The tensors of an opened file whose offsets count from byte `data`.
    pub(crate) fn of_file(
        path: &Path,
        file: File,
        data: u64,
        tensors: BTreeMap<String, HeaderTensor>,
    ) -> Checkpoint {
        Checkpoint {
            path: path.to_owned(),
            shards: vec![Shard { path: path.to_owned(), file }],
            tensors: placed(tensors, data, 0),
        }
    }

    /// The file or folder that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All tensors, by name.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = (&str, &TensorInfo)> {
        self.tensors.iter().map(|(name, info)| (name.as_str(), info))
    }

    /// The tensor called `name`, if there is one.
    pub fn find(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// The tensor called `name`.
    ///
    /// # Errors
    /// [`Error::MissingTensor`].
    pub fn tensor(&self, name: &str) -> Result<&TensorInfo> {
        self.find(name).ok_or_else(|| Error::MissingTensor { name: name.to_owned(), path: self.path.clone() })
    }

    /// Reads bytes `range` of a tensor into `out`, which must be as long as the range. Callers on many threads do not disturb each other.
    ///
    /// # Errors
    /// [`Error::MissingTensor`]; [`Error::Range`] when the range leaves the tensor or is not as long as `out`; [`Error::Io`], also for a
    /// file that was truncated after it was opened.
    pub fn read_range(&self, name: &str, range: Range<u64>, out: &mut [u8]) -> Result<()> {
        let info = self.tensor(name)?;
        let len = range.end.checked_sub(range.start);
        if range.end > info.bytes || len != Some(out.len() as u64) {
            return Err(Error::Range {
                name: name.to_owned(),
                len: info.bytes,
                start: range.start,
                end: range.end,
                buffer: out.len(),
            });
        }
        let shard = &self.shards[info.shard];
        read_exact_at(&shard.file, out, info.start + range.start).map_err(|e| Error::io(&shard.path, e))
    }

    /// Reads a whole tensor.
    ///
    /// # Errors
    /// As [`read_range`](Self::read_range).
    pub fn read(&self, name: &str) -> Result<Vec<u8>> {
        let info = self.tensor(name)?;
        let len = usize::try_from(info.bytes).map_err(|_| self.too_large(name))?;
        let mut out = Vec::new();
        out.try_reserve_exact(len).map_err(|_| self.too_large(name))?;
        out.resize(len, 0);
        self.read_range(name, 0..info.bytes, &mut out)?;
        Ok(out)
    }

    /// Reads a whole tensor of dtype F32, F16 or BF16 as `f32`, without loss.
    ///
    /// # Errors
    /// As [`read_range`](Self::read_range), and [`Error::File`] for another dtype.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        let dtype = self.tensor(name)?.dtype;
        let bytes = self.read(name)?;
        let pairs = || bytes.chunks_exact(2).map(|b| [b[0], b[1]]);
        match dtype {
            FileDType::F32 => {
                Ok(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
            }
            FileDType::F16 => Ok(pairs().map(|b| half::f16::from_le_bytes(b).to_f32()).collect()),
            FileDType::BF16 => Ok(pairs().map(|b| half::bf16::from_le_bytes(b).to_f32()).collect()),
            other => Err(Error::file(
                &self.path,
                format!("tensor {name:?} has dtype {other}: F32, F16 or BF16 is needed"),
            )),
        }
    }

    /// Reads a whole tensor of dtype I32.
    ///
    /// # Errors
    /// As [`read_range`](Self::read_range), and [`Error::File`] for another dtype.
    pub fn read_i32(&self, name: &str) -> Result<Vec<i32>> {
        match self.tensor(name)?.dtype {
            FileDType::I32 => {
                let bytes = self.read(name)?;
                Ok(bytes.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
            }
            other => {
                Err(Error::file(&self.path, format!("tensor {name:?} has dtype {other}: I32 is needed")))
            }
        }
    }

    fn too_large(&self, name: &str) -> Error {
        Error::file(&self.path, format!("tensor {name:?} is larger than the memory there is"))
    }
}

/// Opens a safetensors file and reads its header.
fn open_shard(path: &Path, shard: usize) -> Result<(Shard, BTreeMap<String, TensorInfo>)> {
    let file = open_regular(path)?;
    let io = |e| Error::io(path, e);
    let file_len = file.metadata().map_err(io)?.len();
    if file_len < header::LENGTH_BYTES {
        return Err(Error::file(
            path,
            format!("has {file_len} bytes: it is truncated, or not a safetensors file"),
        ));
    }
    let mut first = [0; 8];
    read_exact_at(&file, &mut first, 0).map_err(io)?;
    let len = header_len(first, file_len).map_err(|e| Error::file(path, e))?;
    let mut json = vec![0; usize::try_from(len).map_err(|e| Error::file(path, e.to_string()))?];
    read_exact_at(&file, &mut json, header::LENGTH_BYTES).map_err(io)?;
    let data = header::LENGTH_BYTES + len;
    let tensors = parse_header(&json, file_len - data).map_err(|e| Error::file(path, e))?;
    Ok((Shard { path: path.to_owned(), file }, placed(tensors, data, shard)))
}

/// The tensors of a header with their places in shard number `shard`, whose data begin at byte `data`.
fn placed(tensors: BTreeMap<String, HeaderTensor>, data: u64, shard: usize) -> BTreeMap<String, TensorInfo> {
    let place = |(name, t): (String, HeaderTensor)| {
        let info = TensorInfo {
            dtype: t.dtype,
            shape: t.shape,
            bytes: t.end - t.begin,
            start: data + t.begin,
            shard,
        };
        (name, info)
    };
    tensors.into_iter().map(place).collect()
}

/// Opens a file for reading, and nothing that only looks like one: opening a pipe would wait for a writer.
pub(crate) fn open_regular(path: &Path) -> Result<File> {
    let metadata = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
    if !metadata.is_file() {
        return Err(Error::file(path, "is not a regular file"));
    }
    File::open(path).map_err(|e| Error::io(path, e))
}

/// Reads a whole file of at most `max` bytes.
pub(crate) fn read_file(path: &Path, max: u64) -> Result<Vec<u8>> {
    let file = open_regular(path)?;
    let mut bytes = Vec::new();
    file.take(max + 1).read_to_end(&mut bytes).map_err(|e| Error::io(path, e))?;
    if bytes.len() as u64 > max {
        return Err(Error::file(path, format!("is larger than the {max} bytes allowed")));
    }
    Ok(bytes)
}

#[cfg(unix)]
fn read_exact_at(file: &File, out: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, out, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut out: &mut [u8], mut offset: u64) -> io::Result<()> {
    use std::os::windows::fs::FileExt;
    while !out.is_empty() {
        match file.seek_read(out, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                out = &mut out[n..];
                offset += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

#[cfg(not(any(unix, windows)))]
fn read_exact_at(_: &File, _: &mut [u8], _: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
