//! Where weights come from: a folder, a GGUF file, or a seed.
//!
//! All answer the same question, "rows `a..b` of this matrix", so that weights can be packed piece by piece, in parallel, without a
//! second copy of the model in memory.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use perjoule_kernels::{DType, block};
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};
use rayon::prelude::*;

use crate::config::Geometry;
use crate::error::{Error, Result};
use crate::gguf::Gguf;
use crate::load::default_kv_dtype;
use crate::memory::{MemoryNeed, need};
#[cfg(not(target_arch = "wasm32"))]
use crate::tokenizer::Tokenizer;
use crate::weights::{Checkpoint, FileDType, Plan, Role, Stored, WeightShape, plan};
use crate::zoo;

/// A model's geometry and its weights, not yet loaded.
#[derive(Debug)]
pub struct Source {
    name: String,
    geometry: Geometry,
    weights: Weights,
}

#[derive(Debug)]
enum Weights {
    Folder { checkpoint: Checkpoint, plan: Plan },
    Gguf { file: Gguf, plan: Plan },
    Random { seed: u64 },
}

impl Source {
    /// What [`Source::checkpoint`] takes, or the name of a geometry of the [`zoo`] with weights drawn from `seed`.
    ///
    /// # Errors
    /// [`Error::UnknownModel`] for a name that is neither, and everything that is wrong with a folder or file.
    pub fn open(name_or_path: &str, seed: u64) -> Result<Source> {
        let path = Path::new(name_or_path);
        let named_as_file = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
        if path.exists() || named_as_file {
            return Source::checkpoint(path);
        }
        Ok(Source::random(name_or_path, zoo::geometry(name_or_path)?, seed))
    }

    /// A folder in the Hugging Face layout, or a GGUF file.
    ///
    /// # Errors
    /// Everything that is wrong with its configuration or its weights.
    pub fn checkpoint(path: &Path) -> Result<Source> {
        if path.is_dir() { Source::folder(path) } else { Source::gguf(path) }
    }

    fn gguf(path: &Path) -> Result<Source> {
        let file = Gguf::open(path)?;
        let geometry = file.geometry()?;
        let plan = file.plan(&geometry)?;
        let name =
            path.file_stem().map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into_owned());
        Ok(Source { name, geometry, weights: Weights::Gguf { file, plan } })
    }

    fn folder(dir: &Path) -> Result<Source> {
        let geometry = Geometry::from_dir(dir)?;
        let checkpoint = Checkpoint::open(dir)?;
        let plan = plan(&geometry, &checkpoint)?;
        let name =
            dir.file_name().map_or_else(|| dir.display().to_string(), |n| n.to_string_lossy().into_owned());
        Ok(Source { name, geometry, weights: Weights::Folder { checkpoint, plan } })
    }

    /// A geometry with weights drawn from `seed`: the same on every machine, whatever the number of threads.
    pub fn random(name: &str, geometry: Geometry, seed: u64) -> Source {
        Source { name: name.to_owned(), geometry, weights: Weights::Random { seed } }
    }

    /// The geometry.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The name of the folder, of the file without its ending, or of the geometry.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the weights are drawn from a seed.
    pub fn is_random(&self) -> bool {
        matches!(self.weights, Weights::Random { .. })
    }

    /// Whether this is one file whose matrices have types of their own, which loading keeps unless another is asked for.
    pub fn is_gguf(&self) -> bool {
        matches!(self.weights, Weights::Gguf { .. })
    }

    /// The architecture as the file names it, or the family's `model_type`.
    pub fn architecture(&self) -> &str {
        let named = match &self.weights {
            Weights::Gguf { file, .. } => file.architecture(),
            _ => None,
        };
        named.unwrap_or(self.geometry.family.model_type())
    }

    /// What becomes of the matrices: the dtype asked for, or what they are stored as, in llama.cpp's words for a GGUF file
    /// (`Q4_K - Medium`).
    pub fn quantisation(&self, asked: Option<DType>) -> String {
        let named = match &self.weights {
            Weights::Gguf { file, .. } if asked.is_none() => file.file_type().map(str::to_owned),
            _ => None,
        };
        named.unwrap_or_else(|| self.main_dtype(asked).name().to_owned())
    }

    /// The tokenizer that belongs to the model.
    ///
    /// # Errors
    /// [`Error::NoTokenizer`] for a folder without `tokenizer.json` or a geometry of the zoo, [`Error::File`] for one that cannot be used.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        match &self.weights {
            Weights::Gguf { file, .. } => file.tokenizer(self.geometry.vocab),
            Weights::Folder { checkpoint, .. } => Tokenizer::open(checkpoint.path(), self.geometry.vocab),
            Weights::Random { .. } => Tokenizer::open(Path::new(&self.name), self.geometry.vocab),
        }
    }

    /// Element type in which loading keeps a weight: matrices as `asked`, or as they are stored where nothing is asked for; vectors in f32.
    /// Experts that are stored as MXFP4 stay so in any case.
    pub fn dtype_of(&self, weight: &WeightShape, asked: Option<DType>) -> DType {
        let stored = self.stored_dtype(weight);
        weight.role.stored_as(asked.unwrap_or(stored), stored == DType::MxFp4)
    }

    fn stored_dtype(&self, weight: &WeightShape) -> DType {
        let Some((checkpoint, plan)) = self.files() else {
            let mxfp4 = weight.role.is_expert() && self.geometry.mxfp4_experts;
            return if mxfp4 { DType::MxFp4 } else { DType::BF16 };
        };
        match plan.find(weight.role, weight.layer).map(|found| &found.stored) {
            Some(Stored::Mxfp4 { .. }) => DType::MxFp4,
            stored => {
                let info = stored.and_then(|s| s.names().next()).and_then(|name| checkpoint.find(name));
                info.and_then(|info| info.dtype.dtype()).unwrap_or(DType::F32)
            }
        }
    }

    /// The element type that most elements of matrices have once they are loaded.
    pub fn main_dtype(&self, asked: Option<DType>) -> DType {
        let mut elements: BTreeMap<DType, u64> = BTreeMap::new();
        for weight in self.geometry.weights().iter().filter(|w| w.role.is_matrix()) {
            // that of experts is kept whatever is asked for, and does not answer
            let dtype = asked.unwrap_or_else(|| self.dtype_of(weight, None));
            *elements.entry(dtype).or_default() += weight.elements();
        }
        elements.into_iter().max_by_key(|(_, count)| *count).map_or(DType::F32, |(dtype, _)| dtype)
    }

    /// Element type of the KV cache beside matrices that are loaded as `asked`: `kv_dtype`, or [`default_kv_dtype`] of theirs.
    ///
    /// # Errors
    /// [`Error::KvDtype`] for a type that no cache has, or whose blocks do not divide the model's heads.
    pub fn kv_dtype(&self, asked: Option<DType>, kv_dtype: Option<DType>) -> Result<DType> {
        let Some(dtype) = kv_dtype else { return Ok(default_kv_dtype(self.main_dtype(asked))) };
        let head_dim = self.geometry.head_dim;
        let blocks = dtype == DType::Q8_0 && head_dim.is_multiple_of(dtype.block_len());
        if dtype.is_float() || blocks { Ok(dtype) } else { Err(Error::KvDtype { dtype, head_dim }) }
    }

    /// Bytes that the model takes, with a KV cache in `kv_dtype` of `batch` sequences of `tokens` each: see [`crate::memory::memory_needed`].
    pub fn memory_needed(
        &self,
        asked: Option<DType>,
        kv_dtype: DType,
        tokens: usize,
        batch: usize,
    ) -> MemoryNeed {
        need(&self.geometry, |weight| self.dtype_of(weight, asked), kv_dtype, tokens, batch)
    }

    fn files(&self) -> Option<(&Checkpoint, &Plan)> {
        match &self.weights {
            Weights::Folder { checkpoint, plan } => Some((checkpoint, plan)),
            Weights::Gguf { file, plan } => Some((&file.checkpoint, plan)),
            Weights::Random { .. } => None,
        }
    }

    /// Rows `rows` of matrix `matrix` (an expert; 0 otherwise) of a weight, as `dtype`, into `out`: `rows.len() * k` elements. A vector
    /// is a matrix of one row.
    ///
    /// # Errors
    /// Whatever reading the file runs into; [`Error::File`] with the tensor that holds NaN, infinity, or
    /// numbers that the dtype cannot hold.
    pub(crate) fn read_rows(
        &self,
        weight: &WeightShape,
        matrix: usize,
        rows: Range<usize>,
        dtype: DType,
        out: &mut [u8],
    ) -> Result<()> {
        let (_, n, k) = sizes(weight);
        let (checkpoint, plan) = match &self.weights {
            Weights::Random { seed } => return random_rows(*seed, weight, matrix, rows, k, dtype, out),
            Weights::Folder { checkpoint, plan } => (checkpoint, plan),
            Weights::Gguf { file, plan } => (&file.checkpoint, plan),
        };
        let Some(found) = plan.find(weight.role, weight.layer) else {
            return Err(Error::file(checkpoint.path(), format!("{:?} was not planned", weight.role)));
        };
        let reader = Reader { checkpoint, k, dtype };
        match &found.stored {
            Stored::Plain(name) => reader.plain(name, matrix * n + rows.start, out),
            Stored::Paired { name, head_dim, rotary_dim } => {
                let order = PairOrder { head_dim: *head_dim, rotary_dim: *rotary_dim };
                if weight.role.is_matrix() {
                    reader.paired_rows(name, order, rows.start, out)
                } else {
                    reader.paired_elements(name, order, out)
                }
            }
            Stored::Half { name, second } => {
                reader.plain(name, (2 * matrix + usize::from(*second)) * n + rows.start, out)
            }
            Stored::PerExpert(names) => reader.plain(&names[matrix], rows.start, out),
            Stored::Transposed(name) => reader.transposed(name, matrix, n, rows, out),
            Stored::Mxfp4 { blocks, scales } => reader.mxfp4(blocks, scales, matrix * n + rows.start, out),
        }
    }
}

/// (matrices, rows, columns) of a weight: experts, n and k of projections; a vector is one row.
pub(crate) fn sizes(weight: &WeightShape) -> (usize, usize, usize) {
    match *weight.shape.as_slice() {
        [matrices, n, k] => (matrices, n, k),
        // biases of experts are one row each
        [matrices, k] if weight.role.is_expert() => (matrices, 1, k),
        [n, k] => (1, n, k),
        [k] => (1, 1, k),
        _ => (0, 0, 0),
    }
}

/// Bytes that one thread reads at a time.
const READ: usize = 1 << 20;

/// Reads rows of `k` elements from a checkpoint, as `dtype`. Numbers that are not finite are errors that name the tensor: they would turn
/// every later result into NaN.
struct Reader<'a> {
    checkpoint: &'a Checkpoint,
    k: usize,
    dtype: DType,
}

impl Reader<'_> {
    /// Rows from `first` on of a tensor whose last size is `k`.
    fn plain(&self, name: &str, first: usize, out: &mut [u8]) -> Result<()> {
        let stored = self.stored(name)?;
        let row = self.k / stored.block_len() * stored.block_bytes();
        self.in_parallel(first, out, |rows, out| {
            if stored == self.dtype {
                self.checkpoint.read_range(name, bytes(&rows, row), out)?;
                return self.check(name, stored, out);
            }
            let mut raw = vec![0; rows.len() * row];
            self.checkpoint.read_range(name, bytes(&rows, row), &mut raw)?;
            self.convert(name, stored, &raw, out)
        })
    }

    /// Rows from `first` on of a matrix whose file has them in another order within each head.
    fn paired_rows(&self, name: &str, order: PairOrder, first: usize, out: &mut [u8]) -> Result<()> {
        let stored = self.stored(name)?;
        let row = self.k / stored.block_len() * stored.block_bytes();
        self.in_parallel(first, out, |rows, out| {
            // of whole heads
            let from = rows.start / order.head_dim * order.head_dim;
            let to = rows.end.next_multiple_of(order.head_dim);
            let mut heads = vec![0; (to - from) * row];
            self.checkpoint.read_range(name, bytes(&(from..to), row), &mut heads)?;
            let mut raw = Vec::with_capacity(rows.len() * row);
            for at in rows.map(|r| (order.in_file(r) - from) * row) {
                raw.extend_from_slice(&heads[at..at + row]);
            }
            self.convert(name, stored, &raw, out)
        })
    }

    /// A whole vector whose file has the elements in another order within each head.
    fn paired_elements(&self, name: &str, order: PairOrder, out: &mut [u8]) -> Result<()> {
        let stored = self.stored(name)?;
        if stored.is_block() {
            return Err(self.problem(name, &format!("has dtype {stored}: a bias must be F32, F16 or BF16")));
        }
        let size = stored.block_bytes();
        let whole = self.checkpoint.read(name)?;
        let mut raw = Vec::with_capacity(whole.len());
        for at in (0..self.k).map(|i| order.in_file(i) * size) {
            raw.extend_from_slice(&whole[at..at + size]);
        }
        self.convert(name, stored, &raw, out)
    }

    /// Rows of a floating-point tensor `[.., k, n]`, which holds them as columns.
    fn transposed(
        &self,
        name: &str,
        matrix: usize,
        n: usize,
        rows: Range<usize>,
        out: &mut [u8],
    ) -> Result<()> {
        let stored = self.stored(name)?;
        let size = stored.block_bytes();
        let mut raw = vec![0; rows.len() * self.k * size];
        let mut line = vec![0; rows.len() * size];
        for column in 0..self.k {
            let at = (matrix * self.k + column) * n;
            self.checkpoint.read_range(name, bytes(&(at + rows.start..at + rows.end), size), &mut line)?;
            for (row, element) in line.chunks_exact(size).enumerate() {
                let to = (row * self.k + column) * size;
                raw[to..to + size].copy_from_slice(element);
            }
        }
        self.convert(name, stored, &raw, out)
    }

    /// Rows from `first` on of MXFP4 blocks and their scales.
    fn mxfp4(&self, blocks: &str, scales: &str, first: usize, out: &mut [u8]) -> Result<()> {
        let per_row = self.k / block::mxfp4::LEN;
        self.in_parallel(first, out, |rows, out| {
            let mut scale_bytes = vec![0; rows.len() * per_row];
            let mut code_bytes = vec![0; scale_bytes.len() * block::mxfp4::CODE_BYTES];
            let codes = bytes(&rows, per_row * block::mxfp4::CODE_BYTES);
            self.checkpoint.read_range(blocks, codes, &mut code_bytes)?;
            self.checkpoint.read_range(scales, bytes(&rows, per_row), &mut scale_bytes)?;
            let packed =
                block::mxfp4::from_hf(&code_bytes, &scale_bytes).map_err(|e| self.refused(blocks, &e))?;
            self.convert(scales, DType::MxFp4, &packed, out)
        })
    }

    /// Calls `read` with pieces of `out` and the rows that belong there, from many threads.
    fn in_parallel(
        &self,
        first: usize,
        out: &mut [u8],
        read: impl Fn(Range<usize>, &mut [u8]) -> Result<()> + Sync,
    ) -> Result<()> {
        let row_bytes = self.k / self.dtype.block_len() * self.dtype.block_bytes();
        if row_bytes == 0 {
            return Ok(());
        }
        let rows_each = (READ / row_bytes).max(1);
        out.par_chunks_mut(rows_each * row_bytes).enumerate().try_for_each(|(i, out)| {
            let first = first + i * rows_each;
            read(first..first + out.len() / row_bytes, out)
        })
    }

    fn stored(&self, name: &str) -> Result<DType> {
        match self.checkpoint.tensor(name)?.dtype {
            FileDType::F32 => Ok(DType::F32),
            FileDType::F16 => Ok(DType::F16),
            FileDType::BF16 => Ok(DType::BF16),
            FileDType::Block(dtype) => Ok(dtype),
            other => Err(self.problem(name, &format!("has dtype {other}"))),
        }
    }

    /// Whole rows as they are stored, checked, and converted through f32 where the dtypes differ.
    fn convert(&self, name: &str, from: DType, raw: &[u8], out: &mut [u8]) -> Result<()> {
        self.check(name, from, raw)?;
        if from == self.dtype {
            out.copy_from_slice(raw);
            return Ok(());
        }
        let mut values = vec![0.0f32; raw.len() / from.block_bytes() * from.block_len()];
        block::decode(from, raw, &mut values).map_err(|e| self.refused(name, &e))?;
        block::encode(self.dtype, &values, out).map_err(|e| self.refused(name, &e))?;
        if !is_finite(self.dtype, out) {
            let largest = values.iter().fold(0.0f32, |most, v| most.max(v.abs()));
            let why = format!("reaches {largest:e}, which {} cannot hold: choose bf16 or f32", self.dtype);
            return Err(self.problem(name, &why));
        }
        Ok(())
    }

    fn check(&self, name: &str, dtype: DType, bytes: &[u8]) -> Result<()> {
        match is_finite(dtype, bytes) {
            true => Ok(()),
            false => Err(self.problem(name, "holds NaN or infinity: the checkpoint is damaged")),
        }
    }

    fn problem(&self, name: &str, what: &str) -> Error {
        Error::file(self.checkpoint.path(), format!("tensor {name:?} {what}"))
    }

    fn refused(&self, name: &str, error: &perjoule_kernels::Error) -> Error {
        self.problem(name, &format!("cannot be read as {}: {error}", self.dtype))
    }
}

/// Where a row of a head lies in a file in which neighbours turn together: see [`Stored::Paired`].
#[derive(Clone, Copy)]
struct PairOrder {
    head_dim: usize,
    rotary_dim: usize,
}

impl PairOrder {
    fn in_file(self, row: usize) -> usize {
        let (i, half) = (row % self.head_dim, self.rotary_dim / 2);
        row - i
            + match i {
                first if first < half => 2 * first,
                second if second < 2 * half => 2 * (second - half) + 1,
                still => still,
            }
    }
}

/// The bytes of `rows` of `size` bytes each.
fn bytes(rows: &Range<usize>, size: usize) -> Range<u64> {
    rows.start as u64 * size as u64..rows.end as u64 * size as u64
}

/// Whether all numbers are finite: of blocks, the scales.
fn is_finite(dtype: DType, bytes: &[u8]) -> bool {
    let below = |b: &[u8], mask: u16| u16::from_le_bytes([b[0], b[1]]) & mask != mask;
    let scales = |at: &[usize]| {
        bytes.chunks_exact(dtype.block_bytes()).all(|block| at.iter().all(|&at| below(&block[at..], 0x7c00)))
    };
    match dtype {
        DType::F32 => bytes.chunks_exact(4).all(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]).is_finite()),
        DType::BF16 => bytes.chunks_exact(2).all(|b| below(b, 0x7f80)),
        DType::F16 => scales(&[0]),
        // no infinity, and NaN is all ones
        DType::F8E4M3 => bytes.iter().all(|b| b & 0x7f != 0x7f),
        DType::Q8_0 | DType::Q4_0 => scales(&[0]),
        DType::Q4K => scales(&[0, 2]),
        DType::Q6K => scales(&[208]),
        // scale 255 is NaN, and values under the two before it exceed f32
        DType::MxFp4 => bytes.chunks_exact(block::mxfp4::BYTES).all(|b| b[0] < 253),
        DType::I8 | DType::I32 | DType::U32 => true,
    }
}

/// Rows drawn from a seed. Each row has a generator of its own, so that any piece can be made by any thread.
///
/// Matrices are uniform with a standard deviation of `1 / sqrt(k)`, which keeps activations of the order of 1 through any number of
/// layers; norm weights lie around 1, or around 0 where the model adds 1 to them; all else is small.
fn random_rows(
    seed: u64,
    weight: &WeightShape,
    matrix: usize,
    rows: Range<usize>,
    k: usize,
    dtype: DType,
    out: &mut [u8],
) -> Result<()> {
    let spread = match weight.role {
        Role::Embed => 1.0,
        role if role.is_matrix() => 3f32.sqrt() / (k as f32).sqrt(),
        _ => 0.1,
    };
    let centre = if weight.role.is_norm() { 1.0 } else { 0.0 };
    let layer = weight.layer.map_or(0, |l| l as u64 + 1);
    let stream = mix(mix(mix(seed ^ mix(weight.role as u64)) ^ layer) ^ matrix as u64);
    let row_bytes = out.len() / rows.len().max(1);
    if row_bytes == 0 {
        return Ok(());
    }
    let fill = |(row, bytes): (usize, &mut [u8])| -> Result<()> {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(mix(stream ^ (rows.start + row) as u64));
        if dtype == DType::MxFp4 {
            random_mxfp4(&mut random, spread, bytes);
            return Ok(());
        }
        let mut values = vec![0.0f32; k];
        for four in values.chunks_mut(4) {
            let bits = random.next_u64();
            for (i, value) in four.iter_mut().enumerate() {
                let uniform = ((bits >> (16 * i)) as u16 as i16) as f32 / 32768.0;
                *value = centre + spread * uniform;
            }
        }
        let refused =
            |e: perjoule_kernels::Error| Error::Config(vec![format!("random weights as {dtype}: {e}")]);
        block::encode(dtype, &values, bytes).map_err(refused)
    };
    out.par_chunks_exact_mut(row_bytes).enumerate().try_for_each(fill)
}

/// Random codes under one scale: quantising random numbers would give much the same, more slowly.
fn random_mxfp4(random: &mut Xoshiro256PlusPlus, spread: f32, bytes: &mut [u8]) {
    // codes reach 6, so that the scale is the power of two at or below spread / 6
    let scale = (127.0 + (spread / 6.0).log2().floor()).clamp(0.0, 254.0) as u8;
    for block in bytes.chunks_exact_mut(block::mxfp4::BYTES) {
        random.fill_bytes(block);
        block[0] = scale;
    }
}

/// The finaliser of SplitMix64: neighbouring inputs give unrelated outputs.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
