//! The weights a geometry has: the one list behind parameter counts, memory needs, the plan of a checkpoint and seeded random weights.

use crate::config::{Ffn, Geometry};
use perjoule_kernels::dtype::DType;

/// What a weight is for. Matrices are `[n, k]`: `n` outputs, `k` inputs, as a projection `x * W^T` reads them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Embedding `[vocab, hidden]`; also the output head where that is tied.
    Embed,
    /// RMS norm before attention `[hidden]`.
    AttnNorm,
    /// Query projection `[heads * head_dim, hidden]`.
    Q,
    /// Key projection `[kv_heads * head_dim, hidden]`.
    K,
    /// Value projection `[kv_heads * head_dim, hidden]`.
    V,
    /// Output projection of attention `[hidden, heads * head_dim]`.
    O,
    /// Bias `[heads * head_dim]`.
    QBias,
    /// Bias `[kv_heads * head_dim]`.
    KBias,
    /// Bias `[kv_heads * head_dim]`.
    VBias,
    /// Bias `[hidden]`.
    OBias,
    /// RMS norm of query heads `[head_dim]`.
    QNorm,
    /// RMS norm of key heads `[head_dim]`.
    KNorm,
    /// Attention sinks `[heads]`.
    Sinks,
    /// RMS norm of attention's output `[hidden]`.
    PostAttnNorm,
    /// RMS norm before the feed-forward `[hidden]`.
    FfnNorm,
    /// Gate projection `[ffn, hidden]`.
    Gate,
    /// Up projection `[ffn, hidden]`.
    Up,
    /// Down projection `[hidden, ffn]`.
    Down,
    /// Bias `[ffn]`.
    GateBias,
    /// Bias `[ffn]`.
    UpBias,
    /// Bias `[hidden]`.
    DownBias,
    /// Router `[experts, hidden]`.
    Router,
    /// Bias `[experts]`.
    RouterBias,
    /// Gate projections `[experts, ffn, hidden]`.
    ExpertGate,
    /// Up projections `[experts, ffn, hidden]`.
    ExpertUp,
    /// Gate and up projections `[experts, 2 * ffn, hidden]`: even rows gate, odd rows up.
    ExpertGateUp,
    /// Down projections `[experts, hidden, ffn]`.
    ExpertDown,
    /// Bias `[experts, ffn]`.
    ExpertGateBias,
    /// Bias `[experts, ffn]`.
    ExpertUpBias,
    /// Bias `[experts, 2 * ffn]`: even entries gate, odd entries up.
    ExpertGateUpBias,
    /// Bias `[experts, hidden]`.
    ExpertDownBias,
    /// RMS norm of the feed-forward's output `[hidden]`.
    PostFfnNorm,
    /// RMS norm before the head `[hidden]`.
    FinalNorm,
    /// Output head `[vocab, hidden]`, where it is not tied.
    Head,
}

impl Role {
    /// Whether the first size counts experts, of which a token visits a few.
    pub const fn is_expert(self) -> bool {
        matches!(
            self,
            Role::ExpertGate
                | Role::ExpertUp
                | Role::ExpertGateUp
                | Role::ExpertDown
                | Role::ExpertGateBias
                | Role::ExpertUpBias
                | Role::ExpertGateUpBias
                | Role::ExpertDownBias
        )
    }

    /// Element type in which a model of `weights` keeps it, where experts may be published as MXFP4 and stay so. Vectors are f32, and so
    /// are routers beside block formats: close decisions hang on their logits, and their bytes are few.
    pub const fn stored_as(self, weights: DType, mxfp4_experts: bool) -> DType {
        match self {
            _ if !self.is_matrix() => DType::F32,
            _ if self.is_expert() && mxfp4_experts => DType::MxFp4,
            Role::Router if weights.is_block() => DType::F32,
            _ => weights,
        }
    }

    /// Whether this is a matrix, or one per expert: what quantised dtypes apply to. The rest are vectors.
    pub const fn is_matrix(self) -> bool {
        matches!(
            self,
            Role::Embed
                | Role::Q
                | Role::K
                | Role::V
                | Role::O
                | Role::Gate
                | Role::Up
                | Role::Down
                | Role::Router
                | Role::ExpertGate
                | Role::ExpertUp
                | Role::ExpertGateUp
                | Role::ExpertDown
                | Role::Head
        )
    }

    /// Whether this is the weight of an RMS norm.
    pub const fn is_norm(self) -> bool {
        matches!(
            self,
            Role::AttnNorm
                | Role::PostAttnNorm
                | Role::FfnNorm
                | Role::PostFfnNorm
                | Role::FinalNorm
                | Role::QNorm
                | Role::KNorm
        )
    }
}

/// A weight that a geometry has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightShape {
    /// What it is for.
    pub role: Role,
    /// Its layer; `None` for embedding, final norm and head.
    pub layer: Option<usize>,
    /// Sizes as [`Role`] states them.
    pub shape: Vec<usize>,
}

impl WeightShape {
    /// Number of elements; `u64::MAX` should it not fit.
    pub fn elements(&self) -> u64 {
        self.shape.iter().fold(1, |n, &size| u64::saturating_mul(n, size as u64))
    }
}

impl Geometry {
    /// All weights, in the order in which a token meets them. Sizes of a geometry that was not validated may saturate.
    pub fn weights(&self) -> Vec<WeightShape> {
        let hidden = self.hidden;
        let q = self.heads.saturating_mul(self.head_dim);
        let kv = self.kv_heads.saturating_mul(self.head_dim);
        let mut weights = Vec::new();
        let mut push = |layer: Option<usize>, role: Role, shape: &[usize], present: bool| {
            if present {
                weights.push(WeightShape { role, layer, shape: shape.to_vec() });
            }
        };
        push(None, Role::Embed, &[self.vocab, hidden], true);
        for (i, layer) in self.layers.iter().enumerate() {
            let i = Some(i);
            push(i, Role::AttnNorm, &[hidden], true);
            push(i, Role::Q, &[q, hidden], true);
            push(i, Role::K, &[kv, hidden], true);
            push(i, Role::V, &[kv, hidden], true);
            push(i, Role::QBias, &[q], self.qkv_bias);
            push(i, Role::KBias, &[kv], self.qkv_bias);
            push(i, Role::VBias, &[kv], self.qkv_bias);
            push(i, Role::QNorm, &[self.head_dim], self.qk_norm);
            push(i, Role::KNorm, &[self.head_dim], self.qk_norm);
            push(i, Role::Sinks, &[self.heads], self.sinks);
            push(i, Role::O, &[hidden, q], true);
            push(i, Role::OBias, &[hidden], self.o_bias);
            push(i, Role::PostAttnNorm, &[hidden], self.post_norms);
            push(i, Role::FfnNorm, &[hidden], true);
            match (layer.ffn, self.moe) {
                (Ffn::Experts, Some(moe)) => {
                    let (n, ffn, fused) = (moe.experts, moe.ffn, moe.interleaved_gate_up);
                    let twice = ffn.saturating_mul(2);
                    push(i, Role::Router, &[n, hidden], true);
                    push(i, Role::RouterBias, &[n], moe.router_bias);
                    push(i, Role::ExpertGate, &[n, ffn, hidden], !fused);
                    push(i, Role::ExpertUp, &[n, ffn, hidden], !fused);
                    push(i, Role::ExpertGateUp, &[n, twice, hidden], fused);
                    push(i, Role::ExpertGateBias, &[n, ffn], moe.expert_bias && !fused);
                    push(i, Role::ExpertUpBias, &[n, ffn], moe.expert_bias && !fused);
                    push(i, Role::ExpertGateUpBias, &[n, twice], moe.expert_bias && fused);
                    push(i, Role::ExpertDown, &[n, hidden, ffn], true);
                    push(i, Role::ExpertDownBias, &[n, hidden], moe.expert_bias);
                }
                _ => {
                    push(i, Role::Gate, &[self.ffn, hidden], true);
                    push(i, Role::Up, &[self.ffn, hidden], true);
                    push(i, Role::GateBias, &[self.ffn], self.mlp_bias);
                    push(i, Role::UpBias, &[self.ffn], self.mlp_bias);
                    push(i, Role::Down, &[hidden, self.ffn], true);
                    push(i, Role::DownBias, &[hidden], self.mlp_bias);
                }
            }
            push(i, Role::PostFfnNorm, &[hidden], self.post_norms);
        }
        push(None, Role::FinalNorm, &[hidden], true);
        push(None, Role::Head, &[self.vocab, hidden], !self.tied_head);
        weights
    }
}
