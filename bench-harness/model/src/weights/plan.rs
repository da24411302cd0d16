//! Where each weight of a geometry lies in a checkpoint: names and layouts of every family, all checked before the first is read.

use std::collections::HashMap;

use super::{Checkpoint, FileDType, Role, WeightShape};
use crate::config::{Family, Geometry};
use crate::error::{Error, Result};

/// Elements of an MXFP4 block.
const MXFP4_BLOCK: usize = 32;

/// Misfits after which no more are looked for.
const MAX_PROBLEMS: usize = 1000;

/// How a checkpoint stores one weight of shape `s`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stored {
    /// One tensor of shape `s`, of floats or, in GGUF files, blocks.
    Plain(String),
    /// The same, with the rows of each head (the elements of a bias) ordered so that neighbours turn together: row `2 i` is row `i` of the
    /// weight, row `2 i + 1` is row `i + rotary_dim / 2`.
    Paired {
        /// The tensor.
        name: String,
        /// Rows of a head.
        head_dim: usize,
        /// Rows of a head that turn; the rest lie behind them, as they are.
        rotary_dim: usize,
    },
    /// One floating-point tensor `[s[0], s[2], s[1]]`: the transpose of each expert's matrix.
    Transposed(String),
    /// One half of a floating-point tensor `[s[0], 2 * s[1], s[2]]`: of each expert's matrix, the first `s[1]` rows or those behind them.
    Half {
        /// The tensor.
        name: String,
        /// The rows behind the first `s[1]`.
        second: bool,
    },
    /// A floating-point tensor `[s[1], s[2]]` for each of the `s[0]` experts, in order.
    PerExpert(Vec<String>),
    /// MXFP4 (OCP MX v1.0): each row of `s[2]` elements in blocks of 32.
    Mxfp4 {
        /// U8 `[s[0], s[1], s[2] / 32, 16]`: element `2 i` of a block in the low nibble of byte `i`, element `2 i + 1` in the high one.
        blocks: String,
        /// U8 `[s[0], s[1], s[2] / 32]`: the power of two of each block, biased by 127.
        scales: String,
    },
}

impl Stored {
    /// The tensors that hold the weight; that of [`Stored::Half`] holds another one too.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let (list, pair): (&[String], [Option<&String>; 2]) = match self {
            Stored::Plain(name)
            | Stored::Paired { name, .. }
            | Stored::Transposed(name)
            | Stored::Half { name, .. } => (&[], [Some(name), None]),
            Stored::PerExpert(names) => (names, [None, None]),
            Stored::Mxfp4 { blocks, scales } => (&[], [Some(blocks), Some(scales)]),
        };
        list.iter().chain(pair.into_iter().flatten()).map(String::as_str)
    }
}

/// One weight and where it lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weight {
    /// Role, layer and shape.
    pub shape: WeightShape,
    /// Tensors and layout.
    pub stored: Stored,
}

/// Every weight of a geometry, found in a checkpoint.
#[derive(Clone, Debug)]
pub struct Plan {
    weights: Vec<Weight>,
    index: HashMap<(Role, Option<usize>), usize>,
}

impl Plan {
    /// All weights, in the order of [`Geometry::weights`].
    pub fn weights(&self) -> &[Weight] {
        &self.weights
    }

    /// The weight of a role in a layer (`None` for embedding, final norm and head), if the geometry has it.
    pub fn find(&self, role: Role, layer: Option<usize>) -> Option<&Weight> {
        self.index.get(&(role, layer)).map(|&i| &self.weights[i])
    }
}

/// Finds every weight of `geometry` in `checkpoint` and checks dtypes and shapes. Tensors that no weight needs are ignored.
///
/// # Errors
/// [`Error::Weights`] with every tensor (up to a thousand or so) that is missing, has another shape, or is not F32, F16 or BF16 (U8 for MXFP4).
pub fn plan(geometry: &Geometry, checkpoint: &Checkpoint) -> Result<Plan> {
    // The text model's prefix and its head: as published, below the wrappers of multimodal models (old and new), and without a head.
    let layouts = [
        ("model.", "lm_head.weight"),
        ("language_model.model.", "language_model.lm_head.weight"),
        ("model.language_model.", "lm_head.weight"),
        ("", "lm_head.weight"),
    ];
    let has_embedding =
        |(prefix, _): &(&str, &str)| checkpoint.find(&format!("{prefix}embed_tokens.weight")).is_some();
    let (prefix, head) = layouts.into_iter().find(has_embedding).unwrap_or(layouts[0]);
    plan_by(geometry, checkpoint, "config.json", |shape| stored(geometry, checkpoint, prefix, head, shape))
}

/// The same, where `stored` says under which names a weight lies. `described_in` is what the geometry was read from.
pub(crate) fn plan_by(
    geometry: &Geometry,
    checkpoint: &Checkpoint,
    described_in: &'static str,
    stored: impl Fn(&WeightShape) -> Stored,
) -> Result<Plan> {
    let mut problems = Vec::new();
    let mut weights = Vec::new();
    for shape in geometry.weights() {
        let stored = stored(&shape);
        check(checkpoint, &shape, &stored, &mut problems);
        weights.push(Weight { shape, stored });
        // a small file can speak of more experts than there is memory for their names
        if problems.len() >= MAX_PROBLEMS {
            break;
        }
    }
    if !problems.is_empty() {
        return Err(Error::Weights { path: checkpoint.path().to_owned(), described_in, problems });
    }
    let index = weights.iter().enumerate().map(|(i, w)| ((w.shape.role, w.shape.layer), i)).collect();
    Ok(Plan { weights, index })
}

fn stored(
    geometry: &Geometry,
    checkpoint: &Checkpoint,
    prefix: &str,
    head: &str,
    weight: &WeightShape,
) -> Stored {
    let layer = weight.layer.map_or_else(|| prefix.to_owned(), |layer| format!("{prefix}layers.{layer}."));
    // mixtral's own name for the feed-forward gave way to that of the other families
    let renamed = || checkpoint.find(&format!("{layer}mlp.gate.weight")).is_some();
    let mixtral = geometry.family == Family::Mixtral;
    let block = if mixtral && !renamed() { "block_sparse_moe" } else { "mlp" };
    // a tensor for each expert and projection, or one for the gates and ups of all experts and one for their downs
    let experts = |projection: &str, of_mixtral: &str| {
        let name = |part: &str| format!("{layer}{block}.experts.{part}");
        if checkpoint.find(&name("gate_up_proj")).is_some() {
            return match weight.role {
                Role::ExpertDown => Stored::Plain(name("down_proj")),
                role => Stored::Half { name: name("gate_up_proj"), second: role == Role::ExpertUp },
            };
        }
        let part = if mixtral { of_mixtral } else { projection };
        let experts = weight.shape.first().copied().unwrap_or(0);
        Stored::PerExpert((0..experts).map(|e| name(&format!("{e}.{part}.weight"))).collect())
    };
    let fused = |part: &str| {
        let name = format!("{layer}mlp.experts.{part}");
        let (blocks, scales) = (format!("{name}_blocks"), format!("{name}_scales"));
        // The files decide: a config that speaks of mxfp4 may stay behind when weights were converted.
        if checkpoint.find(&blocks).is_some() || (geometry.mxfp4_experts && checkpoint.find(&name).is_none())
        {
            Stored::Mxfp4 { blocks, scales }
        } else {
            Stored::Transposed(name)
        }
    };
    let name = match weight.role {
        Role::AttnNorm => "input_layernorm.weight",
        Role::Q => "self_attn.q_proj.weight",
        Role::K => "self_attn.k_proj.weight",
        Role::V => "self_attn.v_proj.weight",
        Role::O => "self_attn.o_proj.weight",
        Role::QBias => "self_attn.q_proj.bias",
        Role::KBias => "self_attn.k_proj.bias",
        Role::VBias => "self_attn.v_proj.bias",
        Role::OBias => "self_attn.o_proj.bias",
        Role::QNorm => "self_attn.q_norm.weight",
        Role::KNorm => "self_attn.k_norm.weight",
        Role::Sinks => "self_attn.sinks",
        Role::PostAttnNorm => "post_attention_layernorm.weight",
        // With norms on both sides of the feed-forward, the plain name belongs to attention's output.
        Role::FfnNorm if geometry.post_norms => "pre_feedforward_layernorm.weight",
        Role::FfnNorm => "post_attention_layernorm.weight",
        Role::PostFfnNorm => "post_feedforward_layernorm.weight",
        Role::Gate => "mlp.gate_proj.weight",
        Role::Up => "mlp.up_proj.weight",
        Role::Down => "mlp.down_proj.weight",
        Role::GateBias => "mlp.gate_proj.bias",
        Role::UpBias => "mlp.up_proj.bias",
        Role::DownBias => "mlp.down_proj.bias",
        Role::Router if geometry.family == Family::GptOss => "mlp.router.weight",
        Role::Router => return Stored::Plain(format!("{layer}{block}.gate.weight")),
        Role::RouterBias => "mlp.router.bias",
        Role::ExpertGate => return experts("gate_proj", "w1"),
        Role::ExpertUp => return experts("up_proj", "w3"),
        Role::ExpertDown if geometry.family != Family::GptOss => return experts("down_proj", "w2"),
        Role::ExpertGateUp => return fused("gate_up_proj"),
        Role::ExpertDown => return fused("down_proj"),
        Role::ExpertGateUpBias => "mlp.experts.gate_up_proj_bias",
        // gpt-oss, the one family with such biases, has them in one tensor
        Role::ExpertGateBias => "mlp.experts.gate_proj_bias",
        Role::ExpertUpBias => "mlp.experts.up_proj_bias",
        Role::ExpertDownBias => "mlp.experts.down_proj_bias",
        Role::Embed => "embed_tokens.weight",
        Role::FinalNorm => "norm.weight",
        Role::Head => return Stored::Plain(head.to_owned()),
    };
    Stored::Plain(format!("{layer}{name}"))
}

fn check(checkpoint: &Checkpoint, weight: &WeightShape, stored: &Stored, problems: &mut Vec<String>) {
    let mut check_one = |name: &str, shape: &[usize], bytes: bool| {
        let Some(info) = checkpoint.find(name) else {
            problems.push(format!("{name} is missing"));
            return;
        };
        if info.shape != shape {
            problems.push(format!("{name} has shape {:?}, not {shape:?}", info.shape));
        }
        let fits = match info.dtype {
            FileDType::U8 => bytes,
            FileDType::F32 | FileDType::F16 | FileDType::BF16 | FileDType::Block(_) => !bytes,
            _ => false,
        };
        if !fits {
            let needed = if bytes { "U8" } else { "F32, F16 or BF16" };
            problems.push(format!("{name} has dtype {}, not {needed}", info.dtype));
        }
    };
    match (stored, weight.shape.as_slice()) {
        (Stored::Plain(name) | Stored::Paired { name, .. }, shape) => check_one(name, shape, false),
        (Stored::Transposed(name), &[e, n, k]) => check_one(name, &[e, k, n], false),
        (Stored::Half { name, .. }, &[e, n, k]) => check_one(name, &[e, 2 * n, k], false),
        (Stored::PerExpert(names), &[_, n, k]) => {
            names.iter().for_each(|name| check_one(name, &[n, k], false))
        }
        (Stored::Mxfp4 { blocks, scales }, &[e, n, k]) => {
            check_one(blocks, &[e, n, k / MXFP4_BLOCK, MXFP4_BLOCK / 2], true);
            check_one(scales, &[e, n, k / MXFP4_BLOCK], true);
        }
        (_, shape) => {
            problems.push(format!("{:?} of shape {shape:?} is not one matrix an expert", weight.role))
        }
    }
}
