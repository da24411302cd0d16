//! Limits of a [`Geometry`]: generous beside any published model, and small enough that no product below overflows.

use super::{Activation, Ffn, Geometry, RopeScaling};

/// Width of anything: hidden, feed-forward, vocabulary.
pub(super) const MAX_WIDTH: usize = 1 << 24;
/// Layers of a model.
pub(super) const MAX_LAYERS: usize = 4096;
/// Query heads, key-value heads, experts.
const MAX_COUNT: usize = 1 << 16;
/// Width of a head.
const MAX_HEAD_DIM: usize = 1 << 13;
/// Positions of a context.
const MAX_POSITIONS: usize = 1 << 31;
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
    let finite_positive = |x: f64| x.is_finite() && x > 0.0;
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
    if let Activation::ClampedSwiglu { alpha, limit } = g.activation {
        require(alpha.is_finite(), format!("swiglu_alpha is {alpha}: it must be finite"));
        require(
            limit.is_finite() && limit > 0.0,
            format!("swiglu_limit is {limit}: it must be finite and above 0"),
        );
    }
    for rope in &g.ropes {
        require(
            finite_positive(rope.theta) && rope.theta != 1.0,
            format!("rope_theta is {}: it must be finite and above 1", rope.theta),
        );
        require(
            rope.rotary_dim >= 2 && rope.rotary_dim.is_multiple_of(2) && rope.rotary_dim <= g.head_dim,
            format!(
                "{} of {} elements of a head rotate: it must be an even number of at least 2",
                rope.rotary_dim, g.head_dim
            ),
        );
        if let Some(problem) = scaling_problem(&rope.scaling) {
            require(false, problem);
        }
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

fn scaling_problem(scaling: &RopeScaling) -> Option<String> {
    let bad = |name: &str, value: f64| format!("rope {name} is {value}: it must be finite and above 0");
    let positive: &[(&str, f64)] = match *scaling {
        RopeScaling::None => &[],
        RopeScaling::Linear { factor } => &[("factor", factor)],
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_positions } => {
            if high_freq_factor <= low_freq_factor {
                return Some(format!(
                    "rope high_freq_factor {high_freq_factor} must exceed low_freq_factor {low_freq_factor}"
                ));
            }
            &[
                ("factor", factor),
                ("low_freq_factor", low_freq_factor),
                ("high_freq_factor", high_freq_factor),
                ("original_max_position_embeddings", original_positions as f64),
            ]
        }
        RopeScaling::Yarn { factor, beta_fast, beta_slow, original_positions, attention_factor, .. } => {
            if beta_fast < beta_slow {
                return Some(format!("rope beta_fast {beta_fast} must not be below beta_slow {beta_slow}"));
            }
            &[
                ("factor", factor),
                ("beta_fast", beta_fast),
                ("beta_slow", beta_slow),
                ("attention_factor", attention_factor),
                ("original_max_position_embeddings", original_positions as f64),
            ]
        }
    };
    positive
        .iter()
        .find(|(_, value)| !(value.is_finite() && *value > 0.0))
        .map(|(name, value)| bad(name, *value))
}
