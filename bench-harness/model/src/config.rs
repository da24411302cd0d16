//! Model geometry: everything about a decoder transformer apart from its numbers.
//!
//! [`Geometry`] is family-neutral: the forward pass reads it and never asks which family it came from. Meaning follows transformers'
//! modelling code where a field is ambiguous. [`Geometry::from_json`] and [`Geometry::from_dir`] fill it from `config.json` in both
//! dialects (`rope_parameters`, and the older `rope_theta` with `rope_scaling`) and validate it.

mod parse;
mod rope;
mod validate;

pub(crate) use validate::MAX_LAYERS;

use std::fmt;
use std::path::Path;

use perjoule_kernels::dtype::DType;
pub use perjoule_kernels::op::{GatedKind, RopeScaling, RouteOrder};

use crate::error::{Error, Result};

/// Model families, by the `model_type` that config.json states.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// `llama`.
    Llama,
    /// `mistral`.
    Mistral,
    /// `qwen2`.
    Qwen2,
    /// `qwen3`.
    Qwen3,
    /// `qwen3_moe`.
    Qwen3Moe,
    /// `gemma3_text`, and the text part of `gemma3`.
    Gemma3,
    /// `mixtral`.
    Mixtral,
    /// `gpt_oss`.
    GptOss,
}

impl Family {
    /// Every family, in declaration order.
    pub const ALL: [Family; 8] = [
        Family::Llama,
        Family::Mistral,
        Family::Qwen2,
        Family::Qwen3,
        Family::Qwen3Moe,
        Family::Gemma3,
        Family::Mixtral,
        Family::GptOss,
    ];

    /// The `model_type` of config.json (`gemma3_text` for [`Family::Gemma3`]).
    pub const fn model_type(self) -> &'static str {
        match self {
            Family::Llama => "llama",
            Family::Mistral => "mistral",
            Family::Qwen2 => "qwen2",
            Family::Qwen3 => "qwen3",
            Family::Qwen3Moe => "qwen3_moe",
            Family::Gemma3 => "gemma3_text",
            Family::Mixtral => "mixtral",
            Family::GptOss => "gpt_oss",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.model_type())
    }
}

/// A decoder transformer without its weights.
///
/// A layer computes, with `norm` an RMS norm over `hidden`:
///
/// ```text
/// a = o(attention(rope(qk_norm(q(norm(x)))), ..))         x += post_norm(a)
/// m = down(activation(gate(norm(x)), up(norm(x))))        x += post_norm(m)
/// ```
///
/// where `qk_norm`, `post_norm` and the biases are there only if the fields below say so.
#[derive(Clone, Debug, PartialEq)]
pub struct Geometry {
    /// Which family the configuration belongs to. Names of weights depend on it; the computation does not.
    pub family: Family,
    /// Rows of the embedding: token ids are `0..vocab`.
    pub vocab: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head. `heads * head_dim` may differ from `hidden`.
    pub head_dim: usize,
    /// Width of the dense feed-forward. 0 when every layer is a mixture of experts.
    pub ffn: usize,
    /// What differs from layer to layer, in order.
    pub layers: Vec<Layer>,
    /// The rotary embeddings that [`Layer::rope`] indexes: one, or two where local and global layers differ.
    pub ropes: Vec<Rope>,
    /// Mixture of experts, if any layer has one.
    pub moe: Option<Moe>,
    /// Epsilon of every RMS norm, added to the mean square.
    pub norm_eps: f64,
    /// Added to the weight of every RMS norm before scaling with it: 1 for gemma, else 0.
    pub norm_weight_offset: f32,
    /// RMS norm of each query and key head over `head_dim`, before the rotary embedding.
    pub qk_norm: bool,
    /// RMS norms on the outputs of attention and of the feed-forward, before they join the residual stream.
    pub post_norms: bool,
    /// Biases on the query, key and value projections.
    pub qkv_bias: bool,
    /// Bias on the attention's output projection.
    pub o_bias: bool,
    /// Biases on the dense feed-forward's projections.
    pub mlp_bias: bool,
    /// A learned logit per query head that takes part in the softmax and contributes no value.
    pub sinks: bool,
    /// Factor on query-key products.
    pub attention_scale: f64,
    /// Attention logits become `cap * tanh(logit / cap)` before masking.
    pub attention_softcap: Option<f64>,
    /// Output logits become `cap * tanh(logit / cap)`.
    pub logit_softcap: Option<f64>,
    /// How gate and up are combined.
    pub activation: GatedKind,
    /// Factor on embeddings as they enter the first layer, before rounding: see [`Geometry::embedding_scale_in`].
    pub embedding_scale: f64,
    /// The output head is the embedding matrix.
    pub tied_head: bool,
    /// Positions the model was made for: the longest context that makes sense.
    pub max_positions: usize,
    /// Ids that end a generation.
    pub eos_ids: Vec<u32>,
    /// Id that starts a sequence, if the model has one.
    pub bos_id: Option<u32>,
    /// The dtype that config.json states for the weights; the files themselves decide.
    pub dtype: Option<DType>,
    /// Experts are stored as MXFP4 blocks and scales (`quantization_config` of gpt-oss).
    pub mxfp4_experts: bool,
}

/// What differs from layer to layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Which keys a query sees.
    pub attention: AttentionSpan,
    /// Index into [`Geometry::ropes`].
    pub rope: usize,
    /// The kind of its feed-forward.
    pub ffn: Ffn,
}

/// Which keys a query sees, besides causality.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttentionSpan {
    /// All of them.
    Full,
    /// The last `window`, its own position included.
    Sliding {
        /// Keys seen.
        window: usize,
    },
}

impl AttentionSpan {
    /// The window, if there is one.
    pub const fn window(self) -> Option<usize> {
        match self {
            AttentionSpan::Full => None,
            AttentionSpan::Sliding { window } => Some(window),
        }
    }
}

/// The kind of a layer's feed-forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ffn {
    /// One feed-forward of width [`Geometry::ffn`].
    Dense,
    /// Routed experts: [`Geometry::moe`].
    Experts,
}

/// A mixture of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moe {
    /// Experts of a layer.
    pub experts: usize,
    /// Experts that a token visits.
    pub top_k: usize,
    /// Width of one expert.
    pub ffn: usize,
    /// How router logits become weights of experts.
    pub routing: RouteOrder,
    /// Bias on the router's logits.
    pub router_bias: bool,
    /// Biases on the experts' projections.
    pub expert_bias: bool,
    /// Gate and up are one matrix whose even rows are the gate's and odd rows the up's.
    pub interleaved_gate_up: bool,
}

/// Rotary embedding of one kind of layer: pairs `(i, i + rotary_dim / 2)` of a head turn by `position * frequency[i]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// Base: unscaled frequencies are `theta ^ (-2 i / rotary_dim)`.
    pub theta: f64,
    /// Leading elements of a head that turn; the rest pass through.
    pub rotary_dim: usize,
    /// Adjustment for contexts beyond the training length.
    pub scaling: RopeScaling,
}

impl Geometry {
    /// Reads the text of a `config.json` and validates it.
    ///
    /// # Errors
    /// [`Error::Config`] with every problem found.
    pub fn from_json(text: &[u8]) -> Result<Geometry> {
        let geometry = parse::geometry(text).map_err(Error::Config)?;
        geometry.validate()?;
        Ok(geometry)
    }

    /// Reads `config.json` in `dir`.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read, [`Error::File`] when it cannot be used.
    pub fn from_dir(dir: &Path) -> Result<Geometry> {
        const MAX_BYTES: u64 = 16 << 20;
        let path = dir.join("config.json");
        let text = crate::weights::read_file(&path, MAX_BYTES)?;
        Geometry::from_json(&text).map_err(|e| Error::file(&path, e.to_string()))
    }

    /// Refuses what no model can be: zero or absurd sizes, heads that do not divide, numbers that are not finite.
    ///
    /// # Errors
    /// [`Error::Config`] with every problem found.
    pub fn validate(&self) -> Result<()> {
        match validate::problems(self) {
            problems if problems.is_empty() => Ok(()),
            problems => Err(Error::Config(problems)),
        }
    }

    /// Parameters, a tied head counted once.
    pub fn n_params(&self) -> u64 {
        self.weights().iter().map(|w| w.elements()).fold(0, u64::saturating_add)
    }

    /// Parameters that take part in one token's computation: of the experts, only the `top_k` chosen.
    pub fn n_active_params(&self) -> u64 {
        let active = |w: &crate::weights::WeightShape| match (self.moe, w.role.is_expert()) {
            (Some(moe), true) if moe.experts > 0 => w.elements() / moe.experts as u64 * moe.top_k as u64,
            _ => w.elements(),
        };
        self.weights().iter().map(active).fold(0, u64::saturating_add)
    }

    /// [`embedding_scale`](Self::embedding_scale) as models of `dtype` apply it: rounded to that dtype first.
    pub fn embedding_scale_in(&self, dtype: DType) -> f32 {
        match dtype {
            DType::BF16 => half::bf16::from_f64(self.embedding_scale).to_f32(),
            DType::F16 => half::f16::from_f64(self.embedding_scale).to_f32(),
            _ => self.embedding_scale as f32,
        }
    }

    /// Elements that one token adds to the KV cache, keys and values of all layers together.
    pub fn kv_elements_per_token(&self) -> u64 {
        2 * self.layers.len() as u64 * self.kv_heads as u64 * self.head_dim as u64
    }
}
