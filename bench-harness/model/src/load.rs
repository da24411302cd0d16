//! Weights in memory: each matrix read or drawn piece by piece and packed once for the rows that will read it.

use std::ops::Range;

use perjoule::{Arg, Buffer, Choice, DType, Device, Op, Stream};
use perjoule_kernels::op::{GroupedMatMul, MatMul, Pack, Policy, Tensor2};
use perjoule_kernels::{Matrix, PackFormat};

use crate::config::{Ffn, Geometry};
use crate::error::{Error, Result};
use crate::memory;
use crate::source::{Source, sizes};
use crate::weights::{Role, WeightShape};

/// Bytes of a matrix that are read or drawn at a time.
const PIECE: usize = 32 << 20;

/// How to load a model.
pub struct LoadOptions<'a> {
    /// Element type of the matrices; block formats quantise them. Experts stored as MXFP4 stay as they are.
    pub dtype: DType,
    /// Numbers of rows that products will have, the most important first: a packed layout is chosen that serves them all.
    pub rows: Vec<usize>,
    /// Called with the bytes loaded so far and in all.
    pub progress: Option<&'a (dyn Fn(u64, u64) + Sync)>,
}

impl LoadOptions<'_> {
    /// Matrices of `dtype`, for single tokens and for prompts.
    pub fn new(dtype: DType) -> Self {
        LoadOptions { dtype, rows: vec![1, 512], progress: None }
    }
}

/// A projection `x W^T + bias`, or one for each expert.
pub(crate) struct Linear {
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) experts: usize,
    pub(crate) dtype: DType,
    pub(crate) pack: Option<&'static PackFormat>,
    pub(crate) weight: Buffer,
    /// f32, `[n]` or `[experts, n]`.
    pub(crate) bias: Option<Buffer>,
}

/// One layer's weights. Vectors are f32.
pub(crate) struct Layer {
    pub(crate) attention_norm: Buffer,
    /// Rows of q, then k, then v.
    pub(crate) qkv: Linear,
    pub(crate) q_norm: Option<Buffer>,
    pub(crate) k_norm: Option<Buffer>,
    pub(crate) sinks: Option<Buffer>,
    pub(crate) o: Linear,
    pub(crate) post_attention_norm: Option<Buffer>,
    pub(crate) ffn_norm: Buffer,
    pub(crate) router: Option<Linear>,
    /// Rows of gate, then up; of each expert where there are some.
    pub(crate) gate_up: Linear,
    pub(crate) down: Linear,
    pub(crate) post_ffn_norm: Option<Buffer>,
}

/// A model in memory, ready for sessions.
pub struct Model {
    pub(crate) device: Device,
    pub(crate) geometry: Geometry,
    pub(crate) dtype: DType,
    pub(crate) activations: DType,
    pub(crate) cache: DType,
    pub(crate) embed: Buffer,
    pub(crate) layers: Vec<Layer>,
    pub(crate) final_norm: Buffer,
    pub(crate) head: Linear,
    name: String,
    weight_bytes: u64,
}

impl Model {
    /// Loads every weight onto `device`.
    ///
    /// # Errors
    /// [`Error::Memory`] before anything is allocated when the weights cannot fit; [`Error::File`] for weights that are NaN or infinite;
    /// whatever reading runs into; [`Error::Device`] for what the device refuses.
    pub fn load(device: &Device, source: &Source, options: &LoadOptions<'_>) -> Result<Model> {
        let geometry = source.geometry();
        if options.dtype.is_integer() {
            return Err(Error::Config(vec![format!(
                "weights cannot be {}: choose a float type or a block format",
                options.dtype
            )]));
        }
        if geometry.logit_softcap.is_some() {
            return Err(Error::Config(vec!["capped output logits are not supported".into()]));
        }
        let activations = DType::F32;
        let cache = cache_dtype(options.dtype);
        let need = memory::memory_needed(geometry, options.dtype, cache, 0, 0);
        if let Some(available) = memory::available_memory().filter(|_| device.info().synchronous) {
            need.check(available)?;
        }
        let mut loader = Loader {
            device,
            source,
            stream: device.stream()?,
            dtype: options.dtype,
            expert_dtype: if source.has_mxfp4_experts() { DType::MxFp4 } else { options.dtype },
            activations,
            rows: if options.rows.is_empty() { vec![1] } else { options.rows.clone() },
            progress: options.progress,
            done: 0,
            total: geometry.weights().iter().map(|w| w.elements()).sum(),
            bytes: 0,
        };
        let embed = loader.table(None, Role::Embed)?;
        let layers = (0..geometry.layers.len()).map(|i| loader.layer(i)).collect::<Result<Vec<_>>>()?;
        let final_norm = loader.vector(None, Role::FinalNorm)?;
        let head_role = if geometry.tied_head { Role::Embed } else { Role::Head };
        let head = loader.linear(None, &[head_role], None)?;
        let weight_bytes = loader.bytes;
        Ok(Model {
            device: device.clone(),
            geometry: geometry.clone(),
            dtype: options.dtype,
            activations,
            cache,
            embed,
            layers,
            final_norm,
            head,
            name: source.name().to_owned(),
            weight_bytes,
        })
    }

    /// The geometry.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Folder or geometry name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Element type of the matrices.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Element type of activations: f32, whatever the weights are. Rounding them to 16 bits saves next to nothing where weights and cache
    /// dominate the traffic, and flips the close decisions of routers.
    pub fn activations(&self) -> DType {
        self.activations
    }

    /// Element type of the KV cache: that of the weights where they are plain floats, f16 beside block formats.
    pub fn cache(&self) -> DType {
        self.cache
    }

    /// The device it lives on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Bytes of all weights as they lie in memory, packed; a tied head counts twice, since it is packed and the embedding is not.
    pub fn weight_bytes(&self) -> u64 {
        self.weight_bytes
    }
}

struct Loader<'a> {
    device: &'a Device,
    source: &'a Source,
    stream: Box<dyn Stream>,
    dtype: DType,
    expert_dtype: DType,
    activations: DType,
    rows: Vec<usize>,
    progress: Option<&'a (dyn Fn(u64, u64) + Sync)>,
    done: u64,
    total: u64,
    bytes: u64,
}

/// A matrix made of the rows of several weights, for each expert.
struct Stacked<'a> {
    parts: Vec<WeightShape>,
    source: &'a Source,
    /// Gate and up come as alternating rows, and are taken apart.
    interleaved: bool,
    n: usize,
    k: usize,
    matrices: usize,
    dtype: DType,
}

impl Stacked<'_> {
    fn row_bytes(&self) -> usize {
        self.k / self.dtype.block_len() * self.dtype.block_bytes()
    }

    /// Rows `rows` of matrix `matrix`.
    fn read(&self, matrix: usize, rows: Range<usize>, out: &mut [u8]) -> Result<()> {
        let row_bytes = self.row_bytes();
        let mut first = 0;
        for part in &self.parts {
            let (_, n, _) = sizes(part);
            let (from, to) = (rows.start.max(first), rows.end.min(first + n));
            if from < to {
                let out = &mut out[(from - rows.start) * row_bytes..(to - rows.start) * row_bytes];
                let range = from - first..to - first;
                if self.interleaved {
                    self.read_interleaved(part, matrix, n, range, out)?;
                } else {
                    self.source.read_rows(part, matrix, range, self.dtype, out)?;
                }
            }
            first += n;
        }
        Ok(())
    }

    /// Row `r` of the first half is row `2 r` of the file, row `r` of the second half row `2 r + 1`.
    fn read_interleaved(
        &self,
        part: &WeightShape,
        matrix: usize,
        n: usize,
        rows: Range<usize>,
        out: &mut [u8],
    ) -> Result<()> {
        let (half, row_bytes) = (n / 2, self.row_bytes());
        for (odd, base) in [(0, 0), (1, half)] {
            let (from, to) = (rows.start.max(base), rows.end.min(base + half));
            if from >= to {
                continue;
            }
            let (low, high) = (2 * (from - base) + odd, 2 * (to - 1 - base) + odd + 1);
            let mut both = vec![0; (high - low) * row_bytes];
            self.source.read_rows(part, matrix, low..high, self.dtype, &mut both)?;
            for (i, row) in both.chunks_exact(row_bytes).step_by(2).enumerate() {
                let at = (from + i - rows.start) * row_bytes;
                out[at..at + row_bytes].copy_from_slice(row);
            }
        }
        Ok(())
    }

    /// The rows of one matrix in pieces, read as they are asked for, and checked: NaN in a weight is an error at once, not garbage later.
    fn pieces(
        &self,
        matrix: usize,
        per_piece: usize,
    ) -> impl Iterator<Item = (Range<usize>, Result<Vec<u8>>)> {
        (0..self.n).step_by(per_piece).map(move |first| {
            let range = first..(first + per_piece).min(self.n);
            let mut bytes = vec![0u8; range.len() * self.row_bytes()];
            let read = self.read(matrix, range.clone(), &mut bytes).and_then(|()| {
                match !self.source.is_random() && has_non_finite(self.dtype, &bytes) {
                    true => Err(Error::Config(vec![format!(
                        "weight {:?} of {} holds NaN or infinity: the checkpoint is damaged",
                        self.parts[0].role,
                        self.source.name()
                    )])),
                    false => Ok(bytes),
                }
            });
            (range, read)
        })
    }
}

impl<'a> Loader<'a> {
    fn geometry(&self) -> &Geometry {
        self.source.geometry()
    }

    fn find(&self, layer: Option<usize>, role: Role) -> Option<WeightShape> {
        self.geometry().weights().into_iter().find(|w| w.layer == layer && w.role == role)
    }

    fn need(&self, layer: Option<usize>, role: Role) -> Result<WeightShape> {
        self.find(layer, role).ok_or_else(|| Error::Config(vec![format!("the geometry has no {role:?}")]))
    }

    fn advance(&mut self, elements: u64) {
        self.done += elements;
        if let Some(progress) = self.progress {
            progress(self.done, self.total);
        }
    }

    fn layer(&mut self, index: usize) -> Result<Layer> {
        let at = Some(index);
        let experts = self.geometry().layers[index].ffn == Ffn::Experts;
        let fused = self.geometry().moe.is_some_and(|m| m.interleaved_gate_up);
        let (gate_up, gate_up_bias, down, down_bias): (&[Role], &[Role], _, _) = match (experts, fused) {
            (false, _) => {
                (&[Role::Gate, Role::Up], &[Role::GateBias, Role::UpBias], Role::Down, Role::DownBias)
            }
            (true, false) => {
                (&[Role::ExpertGate, Role::ExpertUp], &[], Role::ExpertDown, Role::ExpertDownBias)
            }
            (true, true) => {
                (&[Role::ExpertGateUp], &[Role::ExpertGateUpBias], Role::ExpertDown, Role::ExpertDownBias)
            }
        };
        Ok(Layer {
            attention_norm: self.vector(at, Role::AttnNorm)?,
            qkv: self.linear(
                at,
                &[Role::Q, Role::K, Role::V],
                Some(&[Role::QBias, Role::KBias, Role::VBias]),
            )?,
            q_norm: self.optional_vector(at, Role::QNorm)?,
            k_norm: self.optional_vector(at, Role::KNorm)?,
            sinks: self.optional_vector(at, Role::Sinks)?,
            o: self.linear(at, &[Role::O], Some(&[Role::OBias]))?,
            post_attention_norm: self.optional_vector(at, Role::PostAttnNorm)?,
            ffn_norm: self.vector(at, Role::FfnNorm)?,
            router: match experts {
                true => Some(self.linear(at, &[Role::Router], Some(&[Role::RouterBias]))?),
                false => None,
            },
            gate_up: self.linear(at, gate_up, Some(gate_up_bias))?,
            down: self.linear(at, &[down], Some(&[down_bias]))?,
            post_ffn_norm: self.optional_vector(at, Role::PostFfnNorm)?,
        })
    }

    fn optional_vector(&mut self, layer: Option<usize>, role: Role) -> Result<Option<Buffer>> {
        match self.find(layer, role) {
            Some(_) => self.vector(layer, role).map(Some),
            None => Ok(None),
        }
    }

    fn vector(&mut self, layer: Option<usize>, role: Role) -> Result<Buffer> {
        let weight = self.need(layer, role)?;
        let mut values = self.values(&weight)?;
        // drawn norm weights lie around 1, which these models add themselves
        if self.source.is_random() && role.is_norm() && self.geometry().norm_weight_offset != 0.0 {
            let offset = self.geometry().norm_weight_offset;
            values.iter_mut().for_each(|v| *v -= offset);
        }
        self.upload(&values)
    }

    fn values(&mut self, weight: &WeightShape) -> Result<Vec<f32>> {
        let (matrices, n, k) = sizes(weight);
        let mut values = vec![0.0f32; matrices * n * k];
        for (matrix, chunk) in values.chunks_exact_mut((n * k).max(1)).enumerate() {
            let mut bytes = vec![0u8; chunk.len() * 4];
            self.source.read_rows(weight, matrix, 0..n, DType::F32, &mut bytes)?;
            for (value, four) in chunk.iter_mut().zip(bytes.chunks_exact(4)) {
                *value = f32::from_le_bytes([four[0], four[1], four[2], four[3]]);
            }
        }
        if let Some(bad) = values.iter().find(|v| !v.is_finite()) {
            return Err(self.not_finite(weight, *bad));
        }
        self.advance(weight.elements());
        Ok(values)
    }

    fn not_finite(&self, weight: &WeightShape, value: f32) -> Error {
        let layer = weight.layer.map_or(String::new(), |l| format!(" of layer {l}"));
        Error::Config(vec![format!(
            "weight {:?}{layer} of {} holds {value}: the checkpoint is damaged",
            weight.role,
            self.source.name()
        )])
    }

    fn upload(&mut self, values: &[f32]) -> Result<Buffer> {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let buffer = self.device.alloc(bytes.len() as u64)?;
        self.stream.write(&buffer, &bytes)?;
        self.bytes += bytes.len() as u64;
        Ok(buffer)
    }

    /// A matrix that is looked up row by row, and so stays plain.
    fn table(&mut self, layer: Option<usize>, role: Role) -> Result<Buffer> {
        let stacked = self.stacked(layer, &[role], self.dtype)?;
        self.plain(&stacked)
    }

    fn stacked(&self, layer: Option<usize>, roles: &[Role], dtype: DType) -> Result<Stacked<'a>> {
        let parts = roles.iter().map(|r| self.need(layer, *r)).collect::<Result<Vec<_>>>()?;
        let n = parts.iter().map(|p| sizes(p).1).sum();
        let (matrices, _, k) = sizes(&parts[0]);
        if !k.is_multiple_of(dtype.block_len()) {
            return Err(Error::Config(vec![format!(
                "{:?} has rows of {k} elements, which {dtype} blocks of {} do not fill: choose another dtype",
                parts[0].role,
                dtype.block_len()
            )]));
        }
        let interleaved = parts.iter().any(|p| p.role == Role::ExpertGateUp);
        Ok(Stacked { parts, source: self.source, interleaved, n, k, matrices, dtype })
    }

    fn linear(&mut self, layer: Option<usize>, roles: &[Role], biases: Option<&[Role]>) -> Result<Linear> {
        let experts = roles[0].is_expert();
        let dtype = if experts { self.expert_dtype } else { self.dtype };
        let stacked = self.stacked(layer, roles, dtype)?;
        let (n, k, matrices) = (stacked.n, stacked.k, stacked.matrices);
        let choice = self.choose(&stacked, experts)?;
        let weight = match choice.pack {
            Some(format) => self.packed(&stacked, format)?,
            None => self.plain(&stacked)?,
        };
        let bias = match biases {
            Some(roles) => self.bias(layer, roles, experts)?,
            None => None,
        };
        Ok(Linear { n, k, experts: matrices, dtype, pack: choice.pack, weight, bias })
    }

    /// The row, and with it the packed layout, that is cheapest over the numbers of rows that matter.
    fn choose(&self, stacked: &Stacked<'_>, experts: bool) -> Result<Choice> {
        let &Stacked { n, k, matrices, dtype, .. } = stacked;
        let op = |rows: usize| -> Op {
            match experts {
                true => grouped(rows, n, k, matrices, self.activations, dtype).into(),
                false => MatMul::linear(rows, n, k, self.activations, dtype, self.activations).into(),
            }
        };
        let ops: Vec<Op> = self.rows.iter().map(|&r| op(r)).collect();
        Ok(self.device.select(&ops[0], &ops[1..])?)
    }

    fn bias(&mut self, layer: Option<usize>, roles: &[Role], experts: bool) -> Result<Option<Buffer>> {
        let found: Vec<WeightShape> = roles.iter().filter_map(|r| self.find(layer, *r)).collect();
        if found.is_empty() {
            return Ok(None);
        }
        let mut all = Vec::new();
        for weight in &found {
            let mut values = self.values(weight)?;
            if weight.role == Role::ExpertGateUpBias && experts {
                let width = sizes(weight).2;
                for expert in values.chunks_exact_mut(width) {
                    let (gate, up): (Vec<f32>, Vec<f32>) =
                        expert.chunks_exact(2).map(|pair| (pair[0], pair[1])).unzip();
                    expert[..width / 2].copy_from_slice(&gate);
                    expert[width / 2..].copy_from_slice(&up);
                }
            }
            all.extend(values);
        }
        self.upload(&all).map(Some)
    }

    fn plain(&mut self, stacked: &Stacked<'_>) -> Result<Buffer> {
        let row_bytes = stacked.row_bytes();
        let total = (stacked.matrices * stacked.n) as u64 * row_bytes as u64;
        let buffer = self.device.alloc(total)?;
        let per_piece = (PIECE / row_bytes.max(1)).max(1);
        for matrix in 0..stacked.matrices {
            for (range, bytes) in stacked.pieces(matrix, per_piece) {
                let bytes = bytes?;
                let at = (matrix * stacked.n + range.start) as u64 * row_bytes as u64;
                self.stream.write(&buffer.view(at, bytes.len() as u64)?, &bytes)?;
                self.advance((range.len() * stacked.k) as u64);
            }
        }
        self.bytes += total;
        Ok(buffer)
    }

    fn packed(&mut self, stacked: &Stacked<'_>, format: &'static PackFormat) -> Result<Buffer> {
        let &Stacked { n, k, matrices, dtype, .. } = stacked;
        let overflow = || Error::Config(vec![format!("a packed weight of {n} x {k} overflows")]);
        let panel_bytes = (format.panel_bytes)(k).ok_or_else(overflow)?;
        let one = format.bytes(n, k).ok_or_else(overflow)?;
        let total = one.checked_mul(matrices as u64).ok_or_else(overflow)?;
        let buffer = self.device.alloc(total)?;
        let row_bytes = stacked.row_bytes();
        let per_piece = (PIECE / row_bytes.max(1)).max(1).next_multiple_of(format.panel);
        let mut staging: Option<Buffer> = None;
        for matrix in 0..matrices {
            for (range, bytes) in stacked.pieces(matrix, per_piece) {
                let bytes = bytes?;
                let plain = Tensor2 { dtype, strides: Matrix::col_major(k, range.len()) };
                let op = Pack { format, matrices: 1, n: range.len(), k, b: plain };
                let prepared = self.device.prepare(op)?;
                let at = matrix as u64 * one + (range.start / format.panel) as u64 * panel_bytes;
                let size = format.bytes(range.len(), k).ok_or_else(overflow)?;
                let target = buffer.view(at, size)?;
                self.stream.reserve(prepared.scratch())?;
                if self.device.info().synchronous {
                    prepared.launch(&mut *self.stream, &mut [Arg::Host(&bytes), Arg::Buf(&target)])?;
                } else {
                    let have = staging.as_ref().map_or(0, Buffer::bytes);
                    if have < bytes.len() as u64 {
                        staging = Some(self.device.alloc(bytes.len() as u64)?);
                    }
                    if let Some(staging) = &staging {
                        self.stream.write(staging, &bytes)?;
                        prepared.launch(&mut *self.stream, &mut [Arg::Buf(staging), Arg::Buf(&target)])?;
                    }
                }
                self.advance((range.len() * k) as u64);
            }
        }
        self.bytes += total;
        Ok(buffer)
    }
}

/// Element type of the KV cache beside weights of `dtype`.
fn cache_dtype(dtype: DType) -> DType {
    if dtype.is_block() { DType::F16 } else { dtype }
}

/// Whether plain floats hold NaN or infinity; block formats are checked as they are decoded.
fn has_non_finite(dtype: DType, bytes: &[u8]) -> bool {
    use rayon::prelude::*;
    let exponent_all_ones = |mask: u16| {
        bytes
            .par_chunks(1 << 16)
            .any(|chunk| chunk.chunks_exact(2).any(|b| u16::from_le_bytes([b[0], b[1]]) & mask == mask))
    };
    match dtype {
        DType::F32 => bytes.par_chunks(1 << 16).any(|chunk| {
            chunk.chunks_exact(4).any(|b| !f32::from_le_bytes([b[0], b[1], b[2], b[3]]).is_finite())
        }),
        DType::BF16 => exponent_all_ones(0x7f80),
        DType::F16 => exponent_all_ones(0x7c00),
        // no infinity, and NaN is all ones
        DType::F8E4M3 => bytes.par_chunks(1 << 16).any(|chunk| chunk.iter().any(|b| b & 0x7f == 0x7f)),
        _ => false,
    }
}

/// The product of sorted rows with their experts' weights, `rows` of them, without bias or gathering: the shape that packing is chosen for.
pub(crate) fn grouped(
    rows: usize,
    n: usize,
    k: usize,
    experts: usize,
    activations: DType,
    weight: DType,
) -> GroupedMatMul {
    GroupedMatMul {
        experts,
        rows,
        n,
        k,
        a: Tensor2 { dtype: activations, strides: Matrix::row_major(rows, k) },
        a_rows: rows,
        a_divisor: 1,
        b: Tensor2 { dtype: weight, strides: Matrix::col_major(k, n) },
        b_constant: true,
        c: Tensor2 { dtype: activations, strides: Matrix::row_major(rows, n) },
        c_rows: rows,
        bias: None,
        activation: perjoule_kernels::op::Activation::None,
        policy: Policy::default(),
    }
}
