//! Puts weights on a device, one product or vector at a time.

use std::collections::HashMap;
use std::sync::Arc;

use perjoule::{Arg, Buffer, Choice, DType, Device, Event, Op, Stream};
use perjoule_kernels::op::{Constant, GroupedMatMul, MatMul, Policy, Tensor2};
use perjoule_kernels::{Alignment, Matrix, PackFormat, Query};

use super::stacked::Stacked;
use super::{Layer, Linear, LoadOptions, gated_matmul, grouped};
use crate::config::{Ffn, Geometry};
use crate::error::{Error, Result};
use crate::source::{Source, sizes};
use crate::weights::{Role, WeightShape};

/// A matrix of a product, and its bias if the model has one.
type Part = (Role, Option<Role>);

/// Bytes of a matrix that are read or drawn at a time.
const PIECE: usize = 32 << 20;

pub(super) struct Loader<'a> {
    device: &'a Device,
    source: &'a Source,
    stream: Box<dyn Stream>,
    weights: HashMap<(Option<usize>, Role), WeightShape>,
    dtype: Option<DType>,
    activations: DType,
    policy: Policy,
    rows: Vec<usize>,
    progress: Option<&'a (dyn Fn(u64, u64) -> bool + Sync)>,
    done: u64,
    total: u64,
    /// Bytes of what was loaded so far.
    pub(super) bytes: u64,
}

impl<'a> Loader<'a> {
    pub(super) fn new(
        device: &'a Device,
        source: &'a Source,
        options: &LoadOptions<'a>,
        activations: DType,
    ) -> Result<Self> {
        let geometry = source.geometry();
        let weights = geometry.weights();
        // a tied head is read twice: it is packed, and the embedding is not
        let twice = |weight: &&WeightShape| geometry.tied_head && weight.role == Role::Embed;
        let again: u64 = weights.iter().filter(twice).map(WeightShape::elements).sum();
        Ok(Loader {
            device,
            source,
            stream: device.stream()?,
            dtype: options.dtype,
            activations,
            policy: options.policy,
            rows: if options.rows.is_empty() { vec![1] } else { options.rows.clone() },
            progress: options.progress,
            done: 0,
            total: weights.iter().map(WeightShape::elements).sum::<u64>() + again,
            bytes: 0,
            weights: weights.into_iter().map(|w| ((w.layer, w.role), w)).collect(),
        })
    }

    /// Ends loading. Sessions let their streams wait for the event; where the host can wait, it waits here, so that faults are those of
    /// loading.
    pub(super) fn finish(mut self) -> Result<Arc<dyn Event>> {
        let loaded = self.stream.record()?;
        #[cfg(not(target_arch = "wasm32"))]
        self.stream.sync().wait()?;
        Ok(loaded)
    }

    fn geometry(&self) -> &Geometry {
        self.source.geometry()
    }

    fn find(&self, layer: Option<usize>, role: Role) -> Option<WeightShape> {
        self.weights.get(&(layer, role)).cloned()
    }

    fn need(&self, layer: Option<usize>, role: Role) -> Result<WeightShape> {
        self.find(layer, role).ok_or_else(|| Error::Config(vec![format!("the geometry has no {role:?}")]))
    }

    fn advance(&mut self, elements: u64) -> Result<()> {
        self.done += elements;
        match self.progress {
            Some(progress) if !progress(self.done, self.total) => Err(Error::Stopped),
            _ => Ok(()),
        }
    }

    pub(super) fn layer(&mut self, index: usize) -> Result<Layer> {
        let at = Some(index);
        let experts = self.geometry().layers[index].ffn == Ffn::Experts;
        let fused = self.geometry().moe.is_some_and(|m| m.interleaved_gate_up);
        let (gate_up, down): (&[Part], Part) = match (experts, fused) {
            (false, _) => (
                &[(Role::Gate, Some(Role::GateBias)), (Role::Up, Some(Role::UpBias))],
                (Role::Down, Some(Role::DownBias)),
            ),
            (true, false) => (
                &[(Role::ExpertGate, Some(Role::ExpertGateBias)), (Role::ExpertUp, Some(Role::ExpertUpBias))],
                (Role::ExpertDown, Some(Role::ExpertDownBias)),
            ),
            (true, true) => (
                &[(Role::ExpertGateUp, Some(Role::ExpertGateUpBias))],
                (Role::ExpertDown, Some(Role::ExpertDownBias)),
            ),
        };
        let qkv = [(Role::Q, Some(Role::QBias)), (Role::K, Some(Role::KBias)), (Role::V, Some(Role::VBias))];
        Ok(Layer {
            attention_norm: self.vector(at, Role::AttnNorm)?,
            qkv: self.linears(at, &qkv)?,
            q_norm: self.optional_vector(at, Role::QNorm)?,
            k_norm: self.optional_vector(at, Role::KNorm)?,
            sinks: self.optional_vector(at, Role::Sinks)?,
            o: self.linear(at, &[(Role::O, Some(Role::OBias))])?,
            post_attention_norm: self.optional_vector(at, Role::PostAttnNorm)?,
            ffn_norm: self.vector(at, Role::FfnNorm)?,
            router: match experts {
                true => Some(self.linear(at, &[(Role::Router, Some(Role::RouterBias))])?),
                false => None,
            },
            gate_up: if experts { self.linears(at, gate_up)? } else { self.gate_up(at, gate_up)? },
            down: self.linear(at, &[down])?,
            post_ffn_norm: self.optional_vector(at, Role::PostFfnNorm)?,
        })
    }

    fn optional_vector(&mut self, layer: Option<usize>, role: Role) -> Result<Option<Buffer>> {
        match self.find(layer, role) {
            Some(_) => self.vector(layer, role).map(Some),
            None => Ok(None),
        }
    }

    pub(super) fn vector(&mut self, layer: Option<usize>, role: Role) -> Result<Buffer> {
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
        self.advance(weight.elements())?;
        Ok(values)
    }

    fn upload(&mut self, values: &[f32]) -> Result<Buffer> {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let buffer = self.device.alloc(bytes.len() as u64)?;
        self.stream.write(&buffer, &bytes)?;
        self.bytes += bytes.len() as u64;
        Ok(buffer)
    }

    /// A matrix that is looked up row by row, and so is not packed.
    pub(super) fn table(&mut self, layer: Option<usize>, role: Role) -> Result<(Buffer, DType)> {
        let stacked = self.stacked(layer, &[(role, None)])?;
        Ok((self.plain(&stacked)?, stacked.dtype))
    }

    fn stacked(&self, layer: Option<usize>, parts: &[Part]) -> Result<Stacked<'a>> {
        let parts = parts.iter().map(|(role, _)| self.need(layer, *role)).collect::<Result<Vec<_>>>()?;
        let dtype = self.source.dtype_of(&parts[0], self.dtype);
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

    /// Products of the same rows, one for each run of parts that have the same element type.
    fn linears(&mut self, layer: Option<usize>, parts: &[Part]) -> Result<Vec<Linear>> {
        let dtypes = parts
            .iter()
            .map(|(role, _)| Ok(self.source.dtype_of(&self.need(layer, *role)?, self.dtype)))
            .collect::<Result<Vec<DType>>>()?;
        let mut linears = Vec::new();
        let mut rest = parts;
        for run in dtypes.chunk_by(|a, b| a == b) {
            let (stacked, behind) = rest.split_at(run.len());
            linears.push(self.linear(layer, stacked)?);
            rest = behind;
        }
        Ok(linears)
    }

    /// Gate and up, packed for the op that multiplies both where they have the same element type.
    fn gate_up(&mut self, layer: Option<usize>, parts: &[Part]) -> Result<Vec<Linear>> {
        let each = parts.iter().map(|part| self.stacked(layer, &[*part])).collect::<Result<Vec<_>>>()?;
        let biased = parts.iter().filter(|(_, bias)| bias.is_some_and(|b| self.find(layer, b).is_some()));
        if each.iter().any(|stacked| stacked.dtype != each[0].dtype)
            || ![0, parts.len()].contains(&biased.count())
        {
            return self.linears(layer, parts);
        }
        let kind = self.geometry().activation;
        let choice = self.choose(|rows| {
            let part = self.product(&each[0], rows, self.policy);
            gated_matmul(part, kind).into()
        })?;
        parts.iter().zip(&each).map(|(part, stacked)| self.load(layer, &[*part], stacked, &choice)).collect()
    }

    /// One product of parts that have the same element type.
    pub(super) fn linear(&mut self, layer: Option<usize>, parts: &[Part]) -> Result<Linear> {
        let stacked = self.stacked(layer, parts)?;
        let policy = self.policy_for(parts[0].0);
        let choice = self.choose(|rows| match parts[0].0.is_expert() {
            true => {
                let Stacked { n, k, matrices, dtype, .. } = stacked;
                let op = grouped(rows, n, k, matrices, self.activations, dtype);
                GroupedMatMul { policy, ..op }.into()
            }
            false => self.product(&stacked, rows, policy).into(),
        })?;
        self.load(layer, parts, &stacked, &choice)
    }

    fn product(&self, &Stacked { n, k, dtype, .. }: &Stacked<'_>, rows: usize, policy: Policy) -> MatMul {
        let op = MatMul::linear(rows, n, k, self.activations, dtype, self.activations);
        MatMul { policy, ..op }
    }

    /// Reads and packs a product's weights as was chosen.
    fn load(
        &mut self,
        layer: Option<usize>,
        parts: &[Part],
        stacked: &Stacked<'_>,
        choice: &Choice,
    ) -> Result<Linear> {
        let &Stacked { n, k, matrices, dtype, .. } = stacked;
        let policy = self.policy_for(parts[0].0);
        let weight = match choice.pack {
            Some(format) => self.packed(stacked, format)?,
            None => self.plain(stacked)?,
        };
        let bias = self.bias(layer, parts)?;
        Ok(Linear { n, k, experts: matrices, dtype, policy, pack: choice.pack, weight, bias })
    }

    /// Routers decide: their products are exact.
    fn policy_for(&self, role: Role) -> Policy {
        if role == Role::Router { Policy::default() } else { self.policy }
    }

    /// The row, and with it the packed layout, that is cheapest over the numbers of rows that matter.
    fn choose(&self, op: impl Fn(usize) -> Op) -> Result<Choice> {
        let ops: Vec<Op> = self.rows.iter().map(|&rows| op(rows)).collect();
        // activations and weights are placed by the planner and allocated whole
        let alignment = Alignment::uniform(self.device.info().arena.align);
        Ok(self.device.select(Query { op: &ops[0], alignment }, &ops[1..])?)
    }

    /// The biases there are, one behind the other: of each expert where there are some.
    fn bias(&mut self, layer: Option<usize>, parts: &[Part]) -> Result<Option<Buffer>> {
        let found: Vec<WeightShape> =
            parts.iter().filter_map(|(_, bias)| self.find(layer, (*bias)?)).collect();
        let Some(first) = found.first() else { return Ok(None) };
        let experts = sizes(first).0;
        let mut each = Vec::new();
        for weight in &found {
            let mut values = self.values(weight)?;
            if weight.role == Role::ExpertGateUpBias {
                let width = sizes(weight).2;
                for expert in values.chunks_exact_mut(width) {
                    let (gate, up): (Vec<f32>, Vec<f32>) =
                        expert.chunks_exact(2).map(|pair| (pair[0], pair[1])).unzip();
                    expert[..width / 2].copy_from_slice(&gate);
                    expert[width / 2..].copy_from_slice(&up);
                }
            }
            each.push((values, sizes(weight).2));
        }
        let mut all = Vec::new();
        for expert in 0..experts {
            for (values, width) in &each {
                all.extend_from_slice(&values[expert * width..(expert + 1) * width]);
            }
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
                self.advance((range.len() * stacked.k) as u64)?;
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
                let piece = Constant { operand: 1, matrices: 1, n: range.len(), k, plain };
                let at = matrix as u64 * one + (range.start / format.panel) as u64 * panel_bytes;
                let size = format.bytes(range.len(), k).ok_or_else(overflow)?;
                let target = buffer.view(at, size)?;
                let from = if self.device.info().synchronous {
                    Arg::Host(&bytes)
                } else {
                    let staging = match staging.take().filter(|s| s.bytes() >= bytes.len() as u64) {
                        Some(large_enough) => staging.insert(large_enough),
                        None => staging.insert(self.device.alloc(bytes.len() as u64)?),
                    };
                    self.stream.write(staging, &bytes)?;
                    Arg::Buf(staging)
                };
                self.device.pack_constant_into(&mut *self.stream, &piece, format, from, &target)?;
                self.advance((range.len() * k) as u64)?;
            }
        }
        self.bytes += total;
        Ok(buffer)
    }
}
