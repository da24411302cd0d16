//! The safetensors header and the shard index: names, dtypes, shapes and places, checked in full before any number is read.
//!
//! A file is an `u64` length, that many bytes of JSON, then the tensors' bytes. What is refused: a header above [`MAX_HEADER`] or beyond the
//! end of the file, a name that comes twice, a tensor whose bytes are not its shape times its dtype, holes, overlaps, and bytes that belong to
//! no tensor. Memory stays proportional to the header's size.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use perjoule_kernels::dtype::DType;
use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

/// Largest header in bytes.
pub const MAX_HEADER: u64 = 100_000_000;
/// Bytes of the length in front of the header.
pub(super) const LENGTH_BYTES: u64 = 8;
/// Most dimensions of a tensor.
const MAX_RANK: usize = 16;

/// Element types of safetensors files, and the block formats of GGUF files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Deserialize)]
#[allow(
    non_camel_case_types,
    missing_docs,
    reason = "the names of the safetensors specification, which say it all; the block formats follow"
)]
pub enum FileDType {
    BOOL,
    F4,
    F6_E2M3,
    F6_E3M2,
    U8,
    I8,
    F8_E5M2,
    F8_E4M3,
    F8_E8M0,
    I16,
    U16,
    F16,
    BF16,
    I32,
    U32,
    F32,
    F64,
    I64,
    U64,
    C64,
    /// Blocks of elements with their scales, which only GGUF files hold.
    #[serde(skip)]
    Block(DType),
}

impl FileDType {
    /// Bytes of `elements` elements. `None` where that is no whole number of bytes or blocks, or exceeds `u64`.
    pub fn bytes(self, elements: u64) -> Option<u64> {
        let bits = match self {
            FileDType::F4 => 4,
            FileDType::F6_E2M3 | FileDType::F6_E3M2 => 6,
            FileDType::BOOL
            | FileDType::U8
            | FileDType::I8
            | FileDType::F8_E5M2
            | FileDType::F8_E4M3
            | FileDType::F8_E8M0 => 8,
            FileDType::I16 | FileDType::U16 | FileDType::F16 | FileDType::BF16 => 16,
            FileDType::I32 | FileDType::U32 | FileDType::F32 => 32,
            FileDType::F64 | FileDType::I64 | FileDType::U64 | FileDType::C64 => 64,
            FileDType::Block(dtype) => return dtype.bytes(usize::try_from(elements).ok()?),
        };
        elements.checked_mul(bits).filter(|bits| bits.is_multiple_of(8)).map(|bits| bits / 8)
    }

    /// The kernels' type with the same elements, if there is one.
    pub const fn dtype(self) -> Option<DType> {
        match self {
            FileDType::F32 => Some(DType::F32),
            FileDType::F16 => Some(DType::F16),
            FileDType::BF16 => Some(DType::BF16),
            FileDType::F8_E4M3 => Some(DType::F8E4M3),
            FileDType::I8 => Some(DType::I8),
            FileDType::I32 => Some(DType::I32),
            FileDType::U32 => Some(DType::U32),
            FileDType::Block(dtype) => Some(dtype),
            _ => None,
        }
    }
}

impl fmt::Display for FileDType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FileDType::Block(dtype) => f.write_str(&dtype.name().to_uppercase()),
            plain => fmt::Debug::fmt(plain, f),
        }
    }
}

/// One tensor of a header. Offsets count from the end of the header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderTensor {
    /// Element type.
    pub dtype: FileDType,
    /// Sizes, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
    /// First byte.
    pub begin: u64,
    /// One past the last byte.
    pub end: u64,
}

#[derive(serde::Deserialize)]
struct Entry {
    dtype: FileDType,
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

/// An object by tensor, with names that come twice refused, and `__metadata__` left out.
struct ByTensor<T>(BTreeMap<String, T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for ByTensor<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Entries<T> {
            type Value = ByTensor<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<ByTensor<T>, A::Error> {
                let mut tensors = BTreeMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    if tensors.contains_key(&name) {
                        return Err(A::Error::custom(format!("tensor {name:?} comes twice")));
                    }
                    tensors.insert(name, map.next_value()?);
                }
                Ok(ByTensor(tensors))
            }
        }
        deserializer.deserialize_map(Entries(PhantomData))
    }
}

/// The header's length, from the first eight bytes of a file of `file_len` bytes.
///
/// # Errors
/// A sentence when the length is above [`MAX_HEADER`] or goes beyond the file.
pub fn header_len(first: [u8; 8], file_len: u64) -> Result<u64, String> {
    let len = u64::from_le_bytes(first);
    if len > MAX_HEADER {
        return Err(format!(
            "the header claims {len} bytes, and at most {MAX_HEADER} are allowed: not a safetensors file?"
        ));
    }
    if len > file_len.saturating_sub(LENGTH_BYTES) {
        return Err(format!("the header claims {len} bytes, but the file has {file_len}: it is truncated"));
    }
    Ok(len)
}

/// Reads a header's JSON. `data_len` is the number of bytes that follow it in the file.
///
/// # Errors
/// A sentence that names the tensor and what is wrong.
pub fn parse_header(json: &[u8], data_len: u64) -> Result<BTreeMap<String, HeaderTensor>, String> {
    if json.len() as u64 > MAX_HEADER {
        return Err(format!("the header has {} bytes, and at most {MAX_HEADER} are allowed", json.len()));
    }
    let ByTensor(entries) = serde_json::from_slice::<ByTensor<Entry>>(json)
        .map_err(|e| format!("the header is not valid: {e}"))?;
    let tensor = |(name, Entry { dtype, shape, data_offsets: (begin, end) })| {
        (name, HeaderTensor { dtype, shape, begin, end })
    };
    let tensors: BTreeMap<String, HeaderTensor> = entries.into_iter().map(tensor).collect();
    for (name, t) in &tensors {
        if t.shape.len() > MAX_RANK {
            return Err(format!("tensor {name:?} has {} dimensions", t.shape.len()));
        }
        let elements = t.shape.iter().try_fold(1u64, |n, &size| n.checked_mul(size as u64));
        let Some(bytes) = elements.and_then(|n| t.dtype.bytes(n)) else {
            return Err(format!(
                "tensor {name:?} of shape {:?} and dtype {} is not a number of bytes",
                t.shape, t.dtype
            ));
        };
        if t.end.checked_sub(t.begin) != Some(bytes) {
            return Err(format!(
                "tensor {name:?} of shape {:?} and dtype {} needs {bytes} bytes, but its offsets are {}..{}",
                t.shape, t.dtype, t.begin, t.end
            ));
        }
    }
    let mut by_place: Vec<(&String, &HeaderTensor)> = tensors.iter().collect();
    by_place.sort_by_key(|(_, t)| (t.begin, t.end));
    let mut covered = 0;
    for (name, t) in by_place {
        if t.begin != covered {
            let what =
                if t.begin < covered { "overlaps the one before it" } else { "leaves a hole before it" };
            return Err(format!("tensor {name:?} {what}: it begins at {}, not {covered}", t.begin));
        }
        covered = t.end;
    }
    if covered != data_len {
        let what = if covered > data_len { "it is truncated" } else { "the rest belongs to no tensor" };
        return Err(format!(
            "the tensors take {covered} bytes, but the file holds {data_len} after its header: {what}"
        ));
    }
    Ok(tensors)
}

/// Reads `model.safetensors.index.json`: tensor name to shard file name.
///
/// # Errors
/// A sentence when it is not valid, when a tensor comes twice, or when a shard is not a plain file name.
pub fn parse_index(json: &[u8]) -> Result<BTreeMap<String, String>, String> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: ByTensor<String>,
    }
    let Index { weight_map: ByTensor(weight_map) } =
        serde_json::from_slice(json).map_err(|e| format!("not a shard index: {e}"))?;
    if weight_map.is_empty() {
        return Err("the shard index names no tensors".into());
    }
    for (tensor, shard) in &weight_map {
        let plain = !shard.is_empty()
            && !matches!(shard.as_str(), "." | "..")
            && !shard.contains(['/', '\\', ':', '\0'])
            && shard.ends_with(".safetensors");
        if !plain {
            return Err(format!(
                "tensor {tensor:?} is said to lie in {shard:?}: a shard must be the name of a .safetensors file beside the index"
            ));
        }
    }
    Ok(weight_map)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str, data_len: u64) -> Result<BTreeMap<String, HeaderTensor>, String> {
        parse_header(json.as_bytes(), data_len)
    }

    #[test]
    fn tensors_cover_the_file_exactly_once() {
        let header = |b0, b1, e1| {
            format!(
                r#"{{"__metadata__":{{"format":"pt"}},"a":{{"dtype":"F32","shape":[2,1],"data_offsets":[{b0},8]}},
                   "b":{{"dtype":"BF16","shape":[3],"data_offsets":[{b1},{e1}]}},"c":{{"dtype":"U8","shape":[0],"data_offsets":[{b1},{b1}]}}}}"#
            )
        };
        let tensors = parse(&header(0, 8, 14), 14).unwrap();
        assert_eq!(tensors["b"], HeaderTensor { dtype: FileDType::BF16, shape: vec![3], begin: 8, end: 14 });
        assert_eq!(tensors.len(), 3);
        for (json, data_len, says) in [
            (header(0, 8, 14), 13, "truncated"),
            (header(0, 8, 14), 15, "belongs to no tensor"),
            (header(0, 9, 15), 15, "hole"),
            (header(0, 7, 13), 13, "overlaps"),
            (header(1, 8, 14), 14, "needs 8 bytes"),
            (header(0, 8, 15), 15, "needs 6 bytes"),
            (header(9, 8, 14), 14, "needs 8 bytes"),
        ] {
            let error = parse(&json, data_len).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn lying_headers_are_refused() {
        for (json, says) in [
            (
                r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}"#,
                "not a number of bytes",
            ),
            (r#"{"a":{"dtype":"F4","shape":[3],"data_offsets":[0,1]}}"#, "not a number of bytes"),
            (r#"{"a":{"dtype":"F31","shape":[0],"data_offsets":[0,0]}}"#, "F31"),
            (
                r#"{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#,
                "twice",
            ),
            (r#"{"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,0]}}"#, "not valid"),
            ("[]", "not valid"),
            ("", "not valid"),
        ] {
            let error = parse(json, 0).unwrap_err();
            assert!(error.contains(says), "{json}: {error}");
        }
        assert!(header_len(u64::MAX.to_le_bytes(), u64::MAX).unwrap_err().contains("at most"));
        assert!(header_len(100u64.to_le_bytes(), 107).unwrap_err().contains("truncated"));
        assert_eq!(header_len(100u64.to_le_bytes(), 108), Ok(100));
    }

    #[test]
    fn shards_lie_beside_the_index() {
        let index = |shard: &str| {
            parse_index(format!(r#"{{"metadata":{{}},"weight_map":{{"a":{shard:?}}}}}"#).as_bytes())
        };
        assert_eq!(
            index("model-00001-of-00002.safetensors").unwrap()["a"],
            "model-00001-of-00002.safetensors"
        );
        for shard in [
            "../a.safetensors",
            "/etc/a.safetensors",
            "x/a.safetensors",
            "C:a.safetensors",
            "..\\a.safetensors",
            "..",
            "",
            "a.bin",
        ] {
            assert!(index(shard).unwrap_err().contains("beside the index"), "{shard}");
        }
        assert!(parse_index(br#"{"weight_map":{}}"#).is_err());
        let twice = br#"{"weight_map":{"a":"x.safetensors","a":"y.safetensors"}}"#;
        assert!(parse_index(twice).unwrap_err().contains("\"a\" comes twice"));
    }
}
