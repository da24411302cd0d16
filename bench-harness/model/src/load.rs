//! Weights in memory: each matrix read or drawn piece by piece and packed once for the rows that will read it.

mod loader;
mod stacked;

use std::sync::Arc;

use perjoule::{Buffer, DType, Device, Event};
use perjoule_kernels::op::{Gated, GatedKind, GatedMatMul, GroupedMatMul, MatMul, Policy, Tensor2};
use perjoule_kernels::{Matrix, PackFormat};

use crate::config::Geometry;
use crate::error::{Error, Result};
use crate::memory;
use crate::source::Source;
use crate::weights::Role;
use loader::Loader;

/// How to load a model.
pub struct LoadOptions<'a> {
    /// Element type of the matrices; block formats quantise them. Experts stored as MXFP4 stay as they are, and where nothing is asked for
    /// so does every matrix.
    pub dtype: Option<DType>,
    /// Element type of the KV cache; [`default_kv_dtype`] chooses where nothing is asked for. f32, f16, bf16, f8e4m3, or q8_0, which needs
    /// heads of a multiple of 32 elements: fewer bytes are read for each token before, and keys and values are rounded.
    pub kv_dtype: Option<DType>,
    /// Numbers of rows that products will have, the most important first: a packed layout is chosen that serves them all.
    pub rows: Vec<usize>,
    /// Leave to be less exact in products with weights, which a router's are never given: they decide.
    pub policy: Policy,
    /// Called with the elements loaded so far and in all; loading ends as [`Error::Stopped`] when it gives false.
    pub progress: Option<&'a (dyn Fn(u64, u64) -> bool + Sync)>,
}

impl LoadOptions<'_> {
    /// Matrices of `dtype`, for single tokens and for prompts, in exact products.
    pub fn new(dtype: DType) -> Self {
        LoadOptions { dtype: Some(dtype), ..LoadOptions::stored() }
    }

    /// Matrices as they are stored, for single tokens and for prompts, in exact products.
    pub fn stored() -> Self {
        LoadOptions {
            dtype: None,
            kv_dtype: None,
            rows: vec![1, 512],
            policy: Policy::default(),
            progress: None,
        }
    }
}

/// A projection `x W^T + bias`, or one for each expert.
pub(crate) struct Linear {
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) experts: usize,
    pub(crate) dtype: DType,
    pub(crate) policy: Policy,
    pub(crate) pack: Option<&'static PackFormat>,
    pub(crate) weight: Buffer,
    /// f32, `[n]` or `[experts, n]`.
    pub(crate) bias: Option<Buffer>,
}

/// One layer's weights. Vectors are f32.
pub(crate) struct Layer {
    pub(crate) attention_norm: Buffer,
    /// Rows of q, then k, then v: one product of all, or several where their types differ.
    pub(crate) qkv: Vec<Linear>,
    pub(crate) q_norm: Option<Buffer>,
    pub(crate) k_norm: Option<Buffer>,
    pub(crate) sinks: Option<Buffer>,
    pub(crate) o: Linear,
    pub(crate) post_attention_norm: Option<Buffer>,
    pub(crate) ffn_norm: Buffer,
    pub(crate) router: Option<Linear>,
    /// Gate and up; of experts one product of the rows of both, or two where their types differ.
    pub(crate) gate_up: Vec<Linear>,
    pub(crate) down: Linear,
    pub(crate) post_ffn_norm: Option<Buffer>,
}

/// A model in memory, ready for sessions.
pub struct Model {
    pub(crate) device: Device,
    pub(crate) geometry: Geometry,
    pub(crate) dtype: DType,
    pub(crate) activations: DType,
    pub(crate) kv_dtype: DType,
    pub(crate) embed: Buffer,
    pub(crate) embed_dtype: DType,
    pub(crate) layers: Vec<Layer>,
    pub(crate) final_norm: Buffer,
    pub(crate) head: Linear,
    /// Behind everything that loading submitted, on a stream that has gone.
    pub(crate) loaded: Arc<dyn Event>,
    name: String,
    architecture: String,
    quantisation: String,
    weight_bytes: u64,
    tied_head_bytes: u64,
}

impl Model {
    /// Loads every weight onto `device`.
    ///
    /// # Errors
    /// Before anything is allocated [`Error::KvDtype`] for a cache that cannot be, [`Error::Memory`] when the weights cannot fit;
    /// [`Error::File`] for weights that are NaN or infinite; whatever reading runs into; [`Error::Device`] for what the device refuses.
    pub fn load(device: &Device, source: &Source, options: &LoadOptions<'_>) -> Result<Model> {
        let geometry = source.geometry();
        if let Some(dtype) = options.dtype.filter(|dtype| dtype.is_integer()) {
            return Err(Error::Config(vec![format!(
                "weights cannot be {dtype}: choose a float type or a block format"
            )]));
        }
        if geometry.logit_softcap.is_some() {
            return Err(Error::Config(vec!["capped output logits are not supported".into()]));
        }
        let activations = DType::F32;
        let dtype = source.main_dtype(options.dtype);
        let kv_dtype = source.kv_dtype(options.dtype, options.kv_dtype)?;
        let need = source.memory_needed(options.dtype, kv_dtype, 0, 0);
        if let Some(available) = memory::available_memory().filter(|_| device.info().synchronous) {
            need.check(available)?;
        }
        let mut loader = Loader::new(device, source, options, activations)?;
        let (embed, embed_dtype) = loader.table(None, Role::Embed)?;
        let layers = (0..geometry.layers.len()).map(|i| loader.layer(i)).collect::<Result<Vec<_>>>()?;
        let final_norm = loader.vector(None, Role::FinalNorm)?;
        let head_role = if geometry.tied_head { Role::Embed } else { Role::Head };
        let before_head = loader.bytes;
        let head = loader.linear(None, &[(head_role, None)])?;
        let weight_bytes = loader.bytes;
        let tied_head_bytes = if geometry.tied_head { weight_bytes - before_head } else { 0 };
        let loaded = loader.finish()?;
        Ok(Model {
            device: device.clone(),
            geometry: geometry.clone(),
            dtype,
            activations,
            kv_dtype,
            embed,
            embed_dtype,
            layers,
            final_norm,
            head,
            loaded,
            name: source.name().to_owned(),
            architecture: source.architecture().to_owned(),
            quantisation: source.quantisation(options.dtype),
            weight_bytes,
            tied_head_bytes,
        })
    }

    /// The geometry.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Name of the folder, file or geometry.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Element type of the matrices; of those of a file that mixes types, of most elements.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Element type of the embedding.
    pub fn embed_dtype(&self) -> DType {
        self.embed_dtype
    }

    /// Element type of the output projection.
    pub fn head_dtype(&self) -> DType {
        self.head.dtype
    }

    /// See [`Source::architecture`].
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// See [`Source::quantisation`].
    pub fn quantisation(&self) -> &str {
        &self.quantisation
    }

    /// Element type of activations: f32, whatever the weights are. Rounding them to 16 bits saves next to nothing where weights and cache
    /// dominate the traffic, and flips the close decisions of routers.
    pub fn activations(&self) -> DType {
        self.activations
    }

    /// Coarsest type that activations may be rounded to in a product with weights: i8 beside block formats, bf16 beside bf16, and what
    /// [`Model::activations`] says elsewhere and where its policy allows neither.
    pub fn multiplied(&self) -> DType {
        let products = self
            .layers
            .iter()
            .flat_map(|layer| layer.qkv.iter().chain(&layer.gate_up).chain([&layer.o, &layer.down]));
        let rounded = |linear: &Linear| linear.policy.quantised_activations.then_some(linear.dtype);
        let dtypes = || products.clone().chain([&self.head]).filter_map(rounded);
        match () {
            () if dtypes().any(DType::is_block) => DType::I8,
            () if dtypes().any(|dtype| dtype == DType::BF16) => DType::BF16,
            () => self.activations,
        }
    }

    /// Element type of the KV cache: see [`LoadOptions::kv_dtype`].
    pub fn kv_dtype(&self) -> DType {
        self.kv_dtype
    }

    /// The device it lives on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Bytes of all weights as they lie in memory, packed; a tied head counts twice, since it is packed and the embedding is not.
    pub fn weight_bytes(&self) -> u64 {
        self.weight_bytes
    }

    /// Of [`Model::weight_bytes`] those of a head that is tied to the embedding: its second copy. 0 where the head is a weight of its own.
    pub fn tied_head_bytes(&self) -> u64 {
        self.tied_head_bytes
    }
}

/// Element type of the KV cache beside `weights` where none is asked for: the same where that is a plain float, f16 beside block formats.
pub fn default_kv_dtype(weights: DType) -> DType {
    if weights.is_block() { DType::F16 } else { weights }
}

/// Gate and up projections like `part`, and their activation.
pub(crate) fn gated_matmul(part: MatMul, kind: GatedKind) -> GatedMatMul {
    GatedMatMul { gate: part, up: part, gated: Gated::dense(part.m, part.n, part.c.dtype, kind) }
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
