//! Where each weight of a geometry lies in a GGUF file.

use super::Gguf;
use crate::config::{Family, Geometry};
use crate::error::Result;
use crate::weights::{Checkpoint, Plan, Role, Stored, WeightShape, plan_by};

/// Finds every weight of `geometry` and checks types and shapes.
///
/// # Errors
/// [`Error::Weights`](crate::Error::Weights) with every tensor that is missing, has another shape or no type of numbers.
pub(super) fn plan(geometry: &Geometry, file: &Gguf) -> Result<Plan> {
    plan_by(geometry, &file.checkpoint, "the file's keys", |weight| {
        stored(geometry, &file.checkpoint, weight)
    })
}

fn stored(geometry: &Geometry, checkpoint: &Checkpoint, weight: &WeightShape) -> Stored {
    let prefix = weight.layer.map_or_else(String::new, |layer| format!("blk.{layer}."));
    let experts = |projection: &str| {
        let name = |part: &str| format!("{prefix}ffn_{part}_exps.weight");
        let (together, both) = (name(projection), name("gate_up"));
        let one_each = |e: usize| format!("{prefix}ffn_{projection}.{e}.weight");
        let count = weight.shape.first().copied().unwrap_or(0);
        match weight.role {
            _ if checkpoint.find(&together).is_some() => Stored::Plain(together),
            Role::ExpertGate | Role::ExpertUp if checkpoint.find(&both).is_some() => {
                Stored::Half { name: both, second: weight.role == Role::ExpertUp }
            }
            // older files of mixtral
            _ if checkpoint.find(&one_each(0)).is_some() => {
                Stored::PerExpert((0..count).map(one_each).collect())
            }
            _ => Stored::Plain(together),
        }
    };
    let name = match weight.role {
        Role::Embed => "token_embd.weight",
        Role::AttnNorm => "attn_norm.weight",
        Role::Q => "attn_q.weight",
        Role::K => "attn_k.weight",
        Role::V => "attn_v.weight",
        Role::O => "attn_output.weight",
        Role::QBias => "attn_q.bias",
        Role::KBias => "attn_k.bias",
        Role::VBias => "attn_v.bias",
        Role::OBias => "attn_output.bias",
        Role::QNorm => "attn_q_norm.weight",
        Role::KNorm => "attn_k_norm.weight",
        Role::Sinks => "attn_sinks.weight",
        Role::PostAttnNorm => "post_attention_norm.weight",
        Role::FfnNorm if geometry.family == Family::GptOss => "post_attention_norm.weight",
        Role::FfnNorm => "ffn_norm.weight",
        Role::Gate => "ffn_gate.weight",
        Role::Up => "ffn_up.weight",
        Role::Down => "ffn_down.weight",
        Role::GateBias => "ffn_gate.bias",
        Role::UpBias => "ffn_up.bias",
        Role::DownBias => "ffn_down.bias",
        Role::Router => "ffn_gate_inp.weight",
        Role::RouterBias => "ffn_gate_inp.bias",
        Role::ExpertGate => return experts("gate"),
        Role::ExpertUp => return experts("up"),
        Role::ExpertDown => return experts("down"),
        Role::ExpertGateUp => "ffn_gate_up_exps.weight",
        Role::ExpertGateBias => "ffn_gate_exps.bias",
        Role::ExpertUpBias => "ffn_up_exps.bias",
        Role::ExpertGateUpBias => "ffn_gate_up_exps.bias",
        Role::ExpertDownBias => "ffn_down_exps.bias",
        Role::PostFfnNorm => "post_ffw_norm.weight",
        Role::FinalNorm => "output_norm.weight",
        Role::Head => "output.weight",
    };
    let name = format!("{prefix}{name}");
    // the architecture llama turns neighbouring elements, and its converter orders queries and keys for that
    let paired = matches!(geometry.family, Family::Llama | Family::Mixtral);
    let turned = matches!(weight.role, Role::Q | Role::K | Role::QBias | Role::KBias);
    match geometry.ropes.first() {
        Some(rope) if paired && turned => {
            Stored::Paired { name, head_dim: geometry.head_dim, rotary_dim: rope.rotary_dim }
        }
        _ => Stored::Plain(name),
    }
}
