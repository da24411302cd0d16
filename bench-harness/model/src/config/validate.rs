//! Limits of a [`Geometry`]: generous beside any published model, and small enough that no product below overflows.

use perjoule_kernels::dtype::DType;
use perjoule_kernels::op::{self, Op};

use super::{Ffn, GatedKind, Geometry};

/// Width of anything: hidden, feed-forward, vocabulary.
pub(super) const MAX_WIDTH: usize = 1 << 24;
/// Layers of a model.
pub(crate) const MAX_LAYERS: usize = 4096;
/// Query heads, key-value heads, experts.
const MAX_COUNT: usize = 1 << 16;
/// Width of a head.
const MAX_HEAD_DIM: usize = 1 << 13;
/// Positions of a context, which slots count in i32.
const MAX_POSITIONS: usize = 1 << 30;
/// Parameters of a model: their bytes in any dtype fit `i64`.
const MAX_PARAMS: u64 = 1 << 56;
/// Elements of an MXFP4 block.
const MXFP4_BLOCK: usize = 32;

/// Every reason why `g` cannot be a model.
pub(super) fn problems(g: &Geometry) -> Vec<String> {
    let mut problems = Vec::new();
    let mut require = |holds: bool, problem: String| {
        if !holds {
            problems.push(problem);
        }
    };
    let all_experts = g.layers.iter().all(|l| l.ffn == Ffn::Experts);
    let sizes = [
        ("vocab_size", g.vocab, 1, MAX_WIDTH),
        ("hidden_size", g.hidden, 1, MAX_WIDTH),
        ("num_hidden_layers", g.layers.len(), 1, MAX_LAYERS),
        ("num_attention_heads", g.heads, 1, MAX_COUNT),
        ("num_key_value_heads", g.kv_heads, 1, MAX_COUNT),
        ("head_dim", g.head_dim, 1, MAX_HEAD_DIM),
        ("intermediate_size", g.ffn, usize::from(!all_experts), MAX_WIDTH),
        ("max_position_embeddings", g.max_positions, 1, MAX_POSITIONS),
    ];
    for (name, value, least, most) in sizes {
        require(
            (least..=most).contains(&value),
            format!("{name} is {value}: it must be in {least}..={most}"),
        );
    }
    require(
        g.kv_heads > 0 && g.heads.is_multiple_of(g.kv_heads),
        format!("num_attention_heads {} is not a multiple of num_key_value_heads {}", g.heads, g.kv_heads),
    );
    // as the kernels take them
    let finite_positive = |x: f64| (x as f32).is_finite() && x as f32 > 0.0;
    let numbers = [
        ("rms_norm_eps", g.norm_eps),
        ("the attention scale", g.attention_scale),
        ("the embedding scale", g.embedding_scale),
        ("attn_logit_softcapping", g.attention_softcap.unwrap_or(1.0)),
        ("final_logit_softcapping", g.logit_softcap.unwrap_or(1.0)),
    ];
    for (name, value) in numbers {
        require(finite_positive(value), format!("{name} is {value}: it must be finite and above 0"));
    }
    require(g.norm_weight_offset.is_finite(), "the norm weight offset is not finite".into());
    if let GatedKind::GptOss { alpha, limit } = g.activation {
        for (name, value) in [("swiglu_alpha", alpha), ("swiglu_limit", limit)] {
            require(
                finite_positive(f64::from(value)),
                format!("{name} is {value}: it must be finite and above 0"),
            );
        }
    }
    for rope in &g.ropes {
        let op = op::Rope {
            rotary_dim: rope.rotary_dim,
            scaling: rope.scaling,
            ..op::Rope::dense(1, 1, g.head_dim, DType::F32, rope.theta)
        };
        if let Err(problem) = Op::from(op).validate() {
            require(false, problem.to_string());
        }
        require(rope.rotary_dim > 0, "rope: no element of a head rotates".into());
    }
    for (i, layer) in g.layers.iter().enumerate() {
        require(
            layer.rope < g.ropes.len(),
            format!("layer {i} names rotary embedding {} of {}", layer.rope, g.ropes.len()),
        );
        require(layer.attention.window() != Some(0), format!("layer {i} has a sliding window of 0"));
        require(
            layer.ffn == Ffn::Dense || g.moe.is_some(),
            format!("layer {i} has experts, but no experts are described"),
        );
    }
    if let Some(moe) = g.moe {
        require(
            (1..=MAX_COUNT).contains(&moe.experts),
            format!("the number of experts is {}: it must be in 1..={MAX_COUNT}", moe.experts),
        );
        require(
            (1..=MAX_WIDTH).contains(&moe.ffn),
            format!("the width of an expert is {}: it must be in 1..={MAX_WIDTH}", moe.ffn),
        );
        require(
            (1..=moe.experts).contains(&moe.top_k),
            format!(
                "num_experts_per_tok is {}: it must be in 1..={}, the number of experts",
                moe.top_k, moe.experts
            ),
        );
        require(
            !g.mxfp4_experts || (moe.ffn.is_multiple_of(MXFP4_BLOCK) && g.hidden.is_multiple_of(MXFP4_BLOCK)),
            format!("mxfp4 needs widths in multiples of {MXFP4_BLOCK}, not {} and {}", g.hidden, moe.ffn),
        );
    }
    require(
        !g.mxfp4_experts || g.moe.is_some(),
        "mxfp4 is known for experts only, and there are none".into(),
    );
    if problems.is_empty() && g.n_params() > MAX_PARAMS {
        problems.push(format!(
            "{} parameters are more than any memory holds: the sizes cannot be right",
            g.n_params()
        ));
    }
    problems
}
