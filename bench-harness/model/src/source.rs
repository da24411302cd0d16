//! Where weights come from: a checkpoint, or a seed.
//!
//! Both answer the same question, "rows `a..b` of this matrix", so that weights can be packed piece by piece, in parallel, without a
//! second copy of the model in memory.

use std::ops::Range;
use std::path::Path;

use perjoule_kernels::{DType, block};
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};
use rayon::prelude::*;

use crate::config::Geometry;
use crate::error::{Error, Result};
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
    Checkpoint { checkpoint: Checkpoint, plan: Plan },
    Random { seed: u64 },
}

impl Source {
    /// A folder in the Hugging Face layout, or the name of a geometry of the [`zoo`] with weights drawn from `seed`.
    ///
    /// # Errors
    /// [`Error::UnknownModel`] for a name that is neither, and everything that is wrong with a folder.
    pub fn open(name_or_dir: &str, seed: u64) -> Result<Source> {
        let path = Path::new(name_or_dir);
        if path.is_dir() {
            return Source::checkpoint(path);
        }
        Ok(Source::random(name_or_dir, zoo::geometry(name_or_dir)?, seed))
    }

    /// A folder in the Hugging Face layout.
    ///
    /// # Errors
    /// Everything that is wrong with its configuration or its weights.
    pub fn checkpoint(dir: &Path) -> Result<Source> {
        let geometry = Geometry::from_dir(dir)?;
        let checkpoint = Checkpoint::open(dir)?;
        let plan = plan(&geometry, &checkpoint)?;
        let name =
            dir.file_name().map_or_else(|| dir.display().to_string(), |n| n.to_string_lossy().into_owned());
        Ok(Source { name, geometry, weights: Weights::Checkpoint { checkpoint, plan } })
    }

    /// A geometry with weights drawn from `seed`: the same on every machine, whatever the number of threads.
    pub fn random(name: &str, geometry: Geometry, seed: u64) -> Source {
        Source { name: name.to_owned(), geometry, weights: Weights::Random { seed } }
    }

    /// The geometry.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The folder's name, or that of the geometry.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the weights are drawn from a seed.
    pub fn is_random(&self) -> bool {
        matches!(self.weights, Weights::Random { .. })
    }

    /// Whether the experts are stored as MXFP4, which loading keeps.
    pub fn has_mxfp4_experts(&self) -> bool {
        match &self.weights {
            Weights::Checkpoint { plan, .. } => {
                plan.weights().iter().any(|w| matches!(w.stored, Stored::Mxfp4 { .. }))
            }
            Weights::Random { .. } => self.geometry.mxfp4_experts,
        }
    }

    /// Rows `rows` of matrix `matrix` (an expert; 0 otherwise) of a weight, as `dtype`, into `out`: `rows.len() * k` elements. A vector
    /// is a matrix of one row.
    ///
    /// # Errors
    /// Whatever reading the file runs into; [`Error::File`] for numbers that the dtype cannot hold.
    pub(crate) fn read_rows(
        &self,
        weight: &WeightShape,
        matrix: usize,
        rows: Range<usize>,
        dtype: DType,
        out: &mut [u8],
    ) -> Result<()> {
        let (_, n, k) = sizes(weight);
        match &self.weights {
            Weights::Random { seed } => random_rows(*seed, weight, matrix, rows, k, dtype, out),
            Weights::Checkpoint { checkpoint, plan } => {
                let Some(found) = plan.find(weight.role, weight.layer) else {
                    return Err(Error::file(checkpoint.path(), format!("{:?} was not planned", weight.role)));
                };
                let first = (matrix * n + rows.start) as u64;
                match &found.stored {
                    Stored::Plain(name) => read_parallel(checkpoint, name, first, rows.len(), k, dtype, out),
                    Stored::PerExpert(names) => read_parallel(
                        checkpoint,
                        &names[matrix],
                        rows.start as u64,
                        rows.len(),
                        k,
                        dtype,
                        out,
                    ),
                    Stored::Transposed(name) => {
                        read_transposed(checkpoint, name, matrix, n, rows, k, dtype, out)
                    }
                    Stored::Mxfp4 { blocks, scales } => {
                        read_mxfp4(checkpoint, blocks, scales, first, rows.len(), k, dtype, out)
                    }
                }
            }
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

fn plain(checkpoint: &Checkpoint, name: &str) -> Result<DType> {
    match checkpoint.tensor(name)?.dtype {
        FileDType::F32 => Ok(DType::F32),
        FileDType::F16 => Ok(DType::F16),
        FileDType::BF16 => Ok(DType::BF16),
        other => Err(Error::file(checkpoint.path(), format!("tensor {name:?} has dtype {other}"))),
    }
}

/// Bytes that one thread reads at a time.
const READ: usize = 1 << 20;

/// [`read_plain`] by many threads, each with positioned reads of its own.
fn read_parallel(
    checkpoint: &Checkpoint,
    name: &str,
    first: u64,
    rows: usize,
    k: usize,
    dtype: DType,
    out: &mut [u8],
) -> Result<()> {
    let row_bytes = out.len() / rows.max(1);
    if row_bytes == 0 {
        return Ok(());
    }
    let rows_each = (READ / row_bytes).max(1);
    out.par_chunks_mut(rows_each * row_bytes).enumerate().try_for_each(|(i, out)| {
        read_plain(checkpoint, name, first + (i * rows_each) as u64, out.len() / row_bytes, k, dtype, out)
    })
}

fn read_plain(
    checkpoint: &Checkpoint,
    name: &str,
    first: u64,
    rows: usize,
    k: usize,
    dtype: DType,
    out: &mut [u8],
) -> Result<()> {
    let stored = plain(checkpoint, name)?;
    let row = k as u64 * stored.block_bytes() as u64;
    let range = first * row..(first + rows as u64) * row;
    if stored == dtype {
        return checkpoint.read_range(name, range, out);
    }
    let mut raw = vec![0; rows * row as usize];
    checkpoint.read_range(name, range, &mut raw)?;
    convert(checkpoint, name, stored, &raw, dtype, out)
}

/// Converts whole rows, through f32.
fn convert(
    checkpoint: &Checkpoint,
    name: &str,
    from: DType,
    raw: &[u8],
    to: DType,
    out: &mut [u8],
) -> Result<()> {
    let mut values = vec![0.0f32; raw.len() / from.block_bytes() * from.block_len()];
    let refused =
        |e: perjoule_kernels::Error| Error::file(checkpoint.path(), format!("tensor {name:?}: {e}"));
    block::decode(from, raw, &mut values).map_err(refused)?;
    block::encode(to, &values, out).map_err(refused)
}

#[allow(clippy::too_many_arguments, reason = "one call site; the names of a place in a file")]
fn read_transposed(
    checkpoint: &Checkpoint,
    name: &str,
    matrix: usize,
    n: usize,
    rows: Range<usize>,
    k: usize,
    dtype: DType,
    out: &mut [u8],
) -> Result<()> {
    let stored = plain(checkpoint, name)?;
    let size = stored.block_bytes();
    let mut raw = vec![0; rows.len() * k * size];
    let mut line = vec![0; rows.len() * size];
    for column in 0..k {
        let at = ((matrix * k + column) * n + rows.start) as u64 * size as u64;
        checkpoint.read_range(name, at..at + line.len() as u64, &mut line)?;
        for (row, element) in line.chunks_exact(size).enumerate() {
            let to = (row * k + column) * size;
            raw[to..to + size].copy_from_slice(element);
        }
    }
    if stored == dtype {
        out.copy_from_slice(&raw);
        return Ok(());
    }
    convert(checkpoint, name, stored, &raw, dtype, out)
}

#[allow(clippy::too_many_arguments, reason = "one call site; the names of a place in a file")]
fn read_mxfp4(
    checkpoint: &Checkpoint,
    blocks: &str,
    scales: &str,
    first: u64,
    rows: usize,
    k: usize,
    dtype: DType,
    out: &mut [u8],
) -> Result<()> {
    let per_row = (k / block::mxfp4::LEN) as u64;
    let range = first * per_row..(first + rows as u64) * per_row;
    let count = rows * per_row as usize;
    let codes = block::mxfp4::CODE_BYTES as u64;
    let mut code_bytes = vec![0; count * block::mxfp4::CODE_BYTES];
    let mut scale_bytes = vec![0; count];
    checkpoint.read_range(blocks, range.start * codes..range.end * codes, &mut code_bytes)?;
    checkpoint.read_range(scales, range, &mut scale_bytes)?;
    let refused =
        |e: perjoule_kernels::Error| Error::file(checkpoint.path(), format!("tensor {blocks:?}: {e}"));
    let packed = block::mxfp4::from_hf(&code_bytes, &scale_bytes).map_err(refused)?;
    if dtype == DType::MxFp4 {
        out.copy_from_slice(&packed);
        return Ok(());
    }
    convert(checkpoint, blocks, DType::MxFp4, &packed, dtype, out)
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
