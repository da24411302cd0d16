//! The header of a GGUF file: metadata and the tensors' names, shapes, types and places, checked in full before any number is read.
//!
//! Little-endian throughout: magic, version, number of tensors, number of keys, the keys with their values, the tensors, padding, data. What is
//! refused: counts and lengths beyond the limits below or beyond the file, names and keys that come twice, types unknown here, tensors that
//! overlap, leave holes, are not aligned or end beyond the file. Memory stays proportional to what was read.

use std::collections::BTreeMap;
use std::io::Read;

use perjoule_kernels::dtype::DType;

use super::Value;
use crate::weights::{FileDType, HeaderTensor};

/// First bytes of every file.
pub const MAGIC: [u8; 4] = *b"GGUF";
/// Alignment of tensors where `general.alignment` does not say.
const ALIGNMENT: u64 = 32;
/// Most keys.
const MAX_KEYS: u64 = 1 << 16;
/// Most tensors.
const MAX_TENSORS: u64 = 1 << 20;
/// Longest name of a key or tensor, in bytes: what the format allows keys.
const MAX_NAME: u64 = (1 << 16) - 1;
/// Longest text, in bytes: chat templates are the long ones.
const MAX_TEXT: u64 = 16 << 20;
/// Most elements of all arrays together: a vocabulary has four or so for each token.
const MAX_ELEMENTS: u64 = 1 << 23;
/// Bytes of all metadata and tensor infos together.
const MAX_HEADER: u64 = 256 << 20;
/// Most dimensions of a tensor.
const MAX_RANK: u32 = 4;
/// Arrays in arrays.
const MAX_DEPTH: u32 = 4;

/// What precedes a file's data.
#[derive(Clone, Debug, PartialEq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// All keys with their values.
    pub metadata: BTreeMap<String, Value>,
    /// All tensors by name, shapes outermost first, offsets from [`data`](Header::data).
    pub tensors: BTreeMap<String, HeaderTensor>,
    /// First byte of the data in the file.
    pub data: u64,
}

/// Reads the header of a file of `file_len` bytes from its beginning.
///
/// # Errors
/// A sentence that names the key or tensor, and what is wrong.
pub fn parse(reader: impl Read, file_len: u64) -> Result<Header, String> {
    let mut input = Input { reader, at: 0, file_len, elements: 0 };
    if file_len < 24 {
        return Err(format!("has {file_len} bytes: it is truncated, or not a GGUF file"));
    }
    if input.array::<4>()? != MAGIC {
        return Err("does not begin with \"GGUF\": give a GGUF file, or a folder with config.json".into());
    }
    let version = input.u32()?;
    match version {
        2 | 3 => {}
        1 => return Err("is of GGUF version 1, and 2 or 3 are needed: convert the model anew".into()),
        swapped if (1..16).contains(&swapped.swap_bytes()) => {
            return Err("is big-endian: convert the model for a little-endian machine".into());
        }
        other => return Err(format!("is of GGUF version {other}: 2 and 3 are known here")),
    }
    let n_tensors = input.count("tensors", MAX_TENSORS)?;
    let n_keys = input.count("keys", MAX_KEYS)?;
    let mut metadata = BTreeMap::new();
    for i in 0..n_keys {
        let key = input.name().map_err(|e| format!("key {i} of {n_keys}: {e}"))?;
        let value = input.value().map_err(|e| format!("key {key:?}: {e}"))?;
        if metadata.contains_key(&key) {
            return Err(format!("key {key:?} comes twice: the file is damaged"));
        }
        metadata.insert(key, value);
    }
    let alignment = alignment(&metadata)?;
    let mut tensors = BTreeMap::new();
    for i in 0..n_tensors {
        let name = input.name().map_err(|e| format!("tensor {i} of {n_tensors}: {e}"))?;
        let tensor = input.tensor(alignment).map_err(|e| format!("tensor {name:?}: {e}"))?;
        if tensors.contains_key(&name) {
            return Err(format!("tensor {name:?} comes twice: the file is damaged"));
        }
        tensors.insert(name, tensor);
    }
    let data = input.at.next_multiple_of(alignment);
    check_places(&tensors, alignment, file_len.saturating_sub(data))?;
    Ok(Header { version, metadata, tensors, data })
}

fn alignment(metadata: &BTreeMap<String, Value>) -> Result<u64, String> {
    let Some(value) = metadata.get("general.alignment") else { return Ok(ALIGNMENT) };
    match value.as_u64() {
        Some(alignment) if alignment.is_power_of_two() && alignment <= 1 << 20 => Ok(alignment),
        _ => Err("key \"general.alignment\" is no power of two up to 2^20: the file is damaged".into()),
    }
}

/// Tensors follow one another, each at the next multiple of the alignment.
fn check_places(
    tensors: &BTreeMap<String, HeaderTensor>,
    alignment: u64,
    data_len: u64,
) -> Result<(), String> {
    let mut by_place: Vec<(&String, &HeaderTensor)> = tensors.iter().collect();
    by_place.sort_by_key(|(_, t)| (t.begin, t.end));
    let mut covered: u64 = 0;
    for (name, t) in by_place {
        let next = covered.checked_next_multiple_of(alignment);
        if next != Some(t.begin) {
            let what =
                if t.begin < covered { "overlaps the one before it" } else { "leaves a hole before it" };
            return Err(format!(
                "tensor {name:?} {what}: it begins at {}, not {covered} (aligned to {alignment})",
                t.begin
            ));
        }
        if t.end > data_len {
            return Err(format!(
                "tensor {name:?} ends at byte {} of the data, and the file holds {data_len}: it is truncated; download it again",
                t.end
            ));
        }
        covered = t.end;
    }
    Ok(())
}

/// The kernels' type or the plain type of a number of `ggml_type`.
fn file_dtype(number: u32) -> Result<FileDType, String> {
    let unsupported = match number {
        0 => return Ok(FileDType::F32),
        1 => return Ok(FileDType::F16),
        2 => return Ok(FileDType::Block(DType::Q4_0)),
        8 => return Ok(FileDType::Block(DType::Q8_0)),
        12 => return Ok(FileDType::Block(DType::Q4K)),
        14 => return Ok(FileDType::Block(DType::Q6K)),
        24 => return Ok(FileDType::I8),
        25 => return Ok(FileDType::I16),
        26 => return Ok(FileDType::I32),
        27 => return Ok(FileDType::I64),
        28 => return Ok(FileDType::F64),
        30 => return Ok(FileDType::BF16),
        39 => return Ok(FileDType::Block(DType::MxFp4)),
        3 => "Q4_1",
        6 => "Q5_0",
        7 => "Q5_1",
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        13 => "Q5_K",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        40 => "NVFP4",
        41 => "Q1_0",
        _ => return Err(format!("its type {number} is not known: {SUPPORTED}")),
    };
    Err(format!("its type {unsupported} is not supported: {SUPPORTED}"))
}

const SUPPORTED: &str = "F32, F16, BF16, Q8_0, Q4_0, Q4_K, Q6_K and MXFP4 are; choose a file of another quantisation, such as Q4_K_M or Q8_0";

/// A file that is read from its beginning. It knows how much is left, so that no length is believed that cannot be true.
struct Input<R> {
    reader: R,
    at: u64,
    file_len: u64,
    /// Array elements so far.
    elements: u64,
}

impl<R: Read> Input<R> {
    fn fill(&mut self, out: &mut [u8]) -> Result<(), String> {
        self.claim(out.len() as u64)?;
        self.reader.read_exact(out).map_err(|e| format!("cannot be read: {e}"))
    }

    /// Refuses to read beyond the end of the file, or of what a header may be.
    fn claim(&mut self, bytes: u64) -> Result<(), String> {
        let end = self.at.saturating_add(bytes);
        if end > self.file_len {
            let beyond = end - self.file_len;
            return Err(format!(
                "the file of {} bytes ends {beyond} too early: it is truncated; download it again",
                self.file_len
            ));
        }
        if end > MAX_HEADER {
            return Err(format!("the header is larger than the {MAX_HEADER} bytes allowed"));
        }
        self.at = end;
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, String> {
        self.array().map(u64::from_le_bytes)
    }

    fn count(&mut self, what: &str, most: u64) -> Result<u64, String> {
        match self.u64()? {
            count if count > most => Err(format!(
                "claims {count} {what}, and at most {most} are allowed: the file is damaged, or not a GGUF file"
            )),
            count => Ok(count),
        }
    }

    fn text(&mut self, most: u64) -> Result<String, String> {
        let len = self.u64()?;
        if len > most {
            return Err(format!(
                "a text claims {len} bytes, and at most {most} are allowed: the file is damaged"
            ));
        }
        self.claim(len)?;
        let mut bytes = vec![0; usize::try_from(len).map_err(|e| e.to_string())?];
        self.reader.read_exact(&mut bytes).map_err(|e| format!("cannot be read: {e}"))?;
        String::from_utf8(bytes).map_err(|_| "a text is not UTF-8: the file is damaged".to_owned())
    }

    fn name(&mut self) -> Result<String, String> {
        let name = self.text(MAX_NAME)?;
        if name.is_empty() { Err("its name is empty: the file is damaged".into()) } else { Ok(name) }
    }

    fn value(&mut self) -> Result<Value, String> {
        let kind = self.u32()?;
        self.value_of(kind, 0)
    }

    fn value_of(&mut self, kind: u32, depth: u32) -> Result<Value, String> {
        Ok(match kind {
            0 => Value::Unsigned(u64::from(u8::from_le_bytes(self.array()?))),
            1 => Value::Signed(i64::from(i8::from_le_bytes(self.array()?))),
            2 => Value::Unsigned(u64::from(u16::from_le_bytes(self.array()?))),
            3 => Value::Signed(i64::from(i16::from_le_bytes(self.array()?))),
            4 => Value::Unsigned(u64::from(self.u32()?)),
            5 => Value::Signed(i64::from(i32::from_le_bytes(self.array()?))),
            6 => Value::Float(f64::from(f32::from_le_bytes(self.array()?))),
            7 => match self.array::<1>()? {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                [other] => return Err(format!("a truth value is {other}, not 0 or 1: the file is damaged")),
            },
            8 => Value::Text(self.text(MAX_TEXT)?),
            9 if depth == MAX_DEPTH => {
                return Err(format!("arrays lie deeper than {MAX_DEPTH} in each other"));
            }
            9 => {
                let kind = self.u32()?;
                let len = self.u64()?;
                self.elements = self.elements.saturating_add(len);
                if self.elements > MAX_ELEMENTS {
                    return Err(format!(
                        "an array claims {len} elements, and all arrays together may have {MAX_ELEMENTS}: the file is damaged"
                    ));
                }
                // grows with what is there: the file may be shorter than the array claims
                let mut values = Vec::new();
                for _ in 0..len {
                    values.push(self.value_of(kind, depth + 1)?);
                }
                Value::Array(values)
            }
            10 => Value::Unsigned(self.u64()?),
            11 => Value::Signed(i64::from_le_bytes(self.array()?)),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            other => return Err(format!("its value has type {other}: types 0 to 12 are known")),
        })
    }

    /// Rank, sizes (innermost first), type and offset.
    fn tensor(&mut self, alignment: u64) -> Result<HeaderTensor, String> {
        let rank = self.u32()?;
        if rank > MAX_RANK {
            return Err(format!("it has {rank} dimensions, and at most {MAX_RANK} are allowed"));
        }
        let mut shape = Vec::new();
        for _ in 0..rank {
            let size = Some(self.u64()?).filter(|size| (1..=1 << 48).contains(size));
            let size = size.and_then(|size| usize::try_from(size).ok());
            shape.push(size.ok_or("it has a size of 0, or of more than 2^48: the file is damaged")?);
        }
        shape.reverse();
        let number = self.u32()?;
        let begin = self.u64()?;
        let dtype = file_dtype(number)?;
        // blocks do not reach from one row into the next
        let whole = match dtype {
            FileDType::Block(dtype) => shape.last().is_some_and(|k| k.is_multiple_of(dtype.block_len())),
            _ => true,
        };
        let elements = shape.iter().try_fold(1u64, |n, &size| n.checked_mul(size as u64));
        let Some(bytes) = elements.filter(|_| whole).and_then(|n| dtype.bytes(n)) else {
            return Err(format!("its shape {shape:?} does not fill whole blocks of {dtype}, or overflows"));
        };
        if !begin.is_multiple_of(alignment) {
            return Err(format!(
                "it begins at {begin}, which is not aligned to {alignment}: the file is damaged"
            ));
        }
        let end = begin.checked_add(bytes).ok_or("it ends beyond any file: the file is damaged")?;
        Ok(HeaderTensor { dtype, shape, begin, end })
    }
}
