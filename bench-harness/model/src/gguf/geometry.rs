//! The keys of a GGUF file to [`Geometry`], architecture by architecture.
//!
//! What the keys leave open (which layers slide, how attention is scaled) is what llama.cpp has for the architecture. Norm weights of gemma
//! hold the 1 that its own checkpoints leave out.

use std::cell::RefCell;
use std::collections::BTreeMap;

use super::{Gguf, Value, rope};
use crate::config::{AttentionSpan, Family, Ffn, GatedKind, Geometry, Layer, MAX_LAYERS, Moe, RouteOrder};
use crate::error::{Error, Result};
use crate::weights::Checkpoint;

/// Architectures that are read, by their name in `general.architecture`.
const ARCHITECTURES: [(&str, Family); 6] = [
    ("llama", Family::Llama),
    ("qwen2", Family::Qwen2),
    ("qwen3", Family::Qwen3),
    ("qwen3moe", Family::Qwen3Moe),
    ("gemma3", Family::Gemma3),
    ("gpt-oss", Family::GptOss),
];

/// Getters of one architecture's keys, which note what is missing or of the wrong type.
pub(super) struct Keys<'a> {
    metadata: &'a BTreeMap<String, Value>,
    arch: &'a str,
    problems: RefCell<Vec<String>>,
}

impl<'a> Keys<'a> {
    pub(super) fn problem(&self, problem: String) {
        self.problems.borrow_mut().push(problem);
    }

    /// A key below the architecture's name, with its full name.
    pub(super) fn value(&self, name: &str) -> Option<(String, &'a Value)> {
        let key = format!("{}.{name}", self.arch);
        self.metadata.get(&key).map(|value| (key, value))
    }

    fn typed<T>(&self, name: &str, what: &str, convert: impl Fn(&'a Value) -> Option<T>) -> Option<T> {
        let (key, value) = self.value(name)?;
        let converted = convert(value);
        if converted.is_none() {
            self.problem(format!("{key} must be {what}"));
        }
        converted
    }

    pub(super) fn size(&self, name: &str) -> Option<usize> {
        self.typed(name, "a whole number of at least 0", |v| usize::try_from(v.as_u64()?).ok())
    }

    pub(super) fn number(&self, name: &str) -> Option<f64> {
        self.typed(name, "a number", Value::as_f64)
    }

    fn flag(&self, name: &str) -> Option<bool> {
        self.typed(name, "true or false", Value::as_bool)
    }

    pub(super) fn text(&self, name: &str) -> Option<&'a str> {
        self.typed(name, "a text", Value::as_str)
    }

    /// One size for all layers, or a list of equal ones: layers that differ have no geometry here.
    fn uniform(&self, name: &str) -> Option<usize> {
        let size = |v: &Value| usize::try_from(v.as_u64()?).ok();
        match self.value(name)? {
            (key, Value::Array(values)) => {
                let first = values.first().and_then(size);
                if first.is_none() || values.iter().any(|v| size(v) != first) {
                    self.problem(format!("{key} differs from layer to layer, which is not supported"));
                }
                first
            }
            _ => self.size(name),
        }
    }

    /// 0, which no validation lets pass, where it is not there.
    fn required(&self, name: &str) -> usize {
        if self.value(name).is_none() {
            self.problem(format!("{}.{name} is missing", self.arch));
        }
        self.uniform(name).unwrap_or(0)
    }
}

/// The geometry that a file describes.
///
/// # Errors
/// [`Error::File`] with the architecture that is not known, or every key that is missing or does not fit.
pub(super) fn geometry(file: &Gguf) -> Result<Geometry> {
    let path = file.checkpoint.path();
    let arch = file.metadata.get("general.architecture").and_then(Value::as_str);
    let Some(arch) = arch else {
        return Err(Error::file(path, "key \"general.architecture\" is missing: it is no model"));
    };
    let known = || ARCHITECTURES.map(|(name, _)| name).join(", ");
    let Some(&(_, family)) = ARCHITECTURES.iter().find(|(name, _)| *name == arch) else {
        return Err(Error::file(
            path,
            format!("architecture {arch:?} is not supported: known are {}", known()),
        ));
    };
    if file.checkpoint.tensors().len() == 0 {
        return Err(Error::file(path, "holds a vocabulary and no weights: give the file of the model"));
    }
    let keys = Keys { metadata: &file.metadata, arch, problems: RefCell::default() };
    let geometry = read(family, &keys, &file.checkpoint);
    let listed = |problems: Vec<String>| Error::file(path, Error::Config(problems).to_string());
    let problems = keys.problems.into_inner();
    let Some(geometry) = geometry.filter(|_| problems.is_empty()) else { return Err(listed(problems)) };
    geometry.validate().map_err(|e| Error::file(path, e.to_string()))?;
    Ok(geometry)
}

fn read(family: Family, keys: &Keys<'_>, checkpoint: &Checkpoint) -> Option<Geometry> {
    let (gemma, gpt_oss) = (family == Family::Gemma3, family == Family::GptOss);
    let hidden = keys.required("embedding_length");
    let heads = keys.required("attention.head_count");
    let n_layers = keys.required("block_count");
    if n_layers > MAX_LAYERS {
        keys.problem(format!("{}.block_count is {n_layers}: it must be in 1..={MAX_LAYERS}", keys.arch));
        return None;
    }
    let head_dim = keys.size("attention.key_length").or_else(|| hidden.checked_div(heads)).unwrap_or(0);
    if keys.size("attention.value_length").is_some_and(|value| value != head_dim) {
        keys.problem(format!(
            "{}.attention.value_length differs from the {head_dim} of the keys, which is not supported",
            keys.arch
        ));
    }
    let max_positions = keys.required("context_length");
    let experts = keys.size("expert_count").unwrap_or(0) > 0;
    // what the architecture llama calls itself where it has experts
    let family = if experts && family == Family::Llama { Family::Mixtral } else { family };
    let moe = experts.then(|| moe(family, keys));
    if experts && !matches!(family, Family::Mixtral | Family::Qwen3Moe | Family::GptOss) {
        keys.problem(format!("{}.expert_count: experts are not known for this architecture", keys.arch));
    }
    let spans = spans(family, keys, n_layers);
    let ropes = rope::ropes(family, keys, checkpoint, head_dim, max_positions);
    let layers: Vec<Layer> = spans
        .into_iter()
        .map(|attention| Layer {
            attention,
            // the second rotary embedding, where there is one, is that of sliding layers
            rope: usize::from(ropes.len() > 1 && attention != AttentionSpan::Full),
            ffn: if experts { Ffn::Experts } else { Ffn::Dense },
        })
        .collect();
    let has = |name: &str| checkpoint.find(name).is_some();
    let embedding = checkpoint.find("token_embd.weight").map(|t| t.shape.as_slice());
    let vocab = match embedding {
        Some(&[vocab, _]) => vocab,
        _ => {
            keys.problem("tensor \"token_embd.weight\" is missing, or no matrix".into());
            0
        }
    };
    Some(Geometry {
        family,
        vocab,
        hidden,
        heads,
        kv_heads: keys.uniform("attention.head_count_kv").unwrap_or(heads),
        head_dim,
        ffn: if experts { 0 } else { keys.required("feed_forward_length") },
        attention_scale: attention_scale(family, keys, n_layers, hidden, heads, head_dim),
        layers,
        ropes,
        moe,
        norm_eps: keys.number("attention.layer_norm_rms_epsilon").unwrap_or_else(|| {
            keys.problem(format!("{}.attention.layer_norm_rms_epsilon is missing", keys.arch));
            0.0
        }),
        norm_weight_offset: 0.0,
        qk_norm: matches!(family, Family::Qwen3 | Family::Qwen3Moe | Family::Gemma3),
        post_norms: gemma,
        qkv_bias: has("blk.0.attn_q.bias"),
        o_bias: has("blk.0.attn_output.bias"),
        mlp_bias: has("blk.0.ffn_down.bias"),
        sinks: gpt_oss,
        attention_softcap: keys.number("attn_logit_softcapping").filter(|cap| *cap != 0.0),
        logit_softcap: keys.number("final_logit_softcapping").filter(|cap| *cap != 0.0),
        activation: match family {
            Family::Gemma3 => GatedKind::GeGluTanh,
            Family::GptOss => GatedKind::GptOss { alpha: 1.702, limit: 7.0 },
            _ => GatedKind::SwiGlu,
        },
        embedding_scale: if gemma { (hidden as f64).sqrt() } else { 1.0 },
        tied_head: !has("output.weight"),
        max_positions,
        eos_ids: eos_ids(keys.metadata),
        bos_id: id(keys.metadata, "tokenizer.ggml.bos_token_id"),
        dtype: None,
        mxfp4_experts: false,
    })
}

fn moe(family: Family, keys: &Keys<'_>) -> Moe {
    let gpt_oss = family == Family::GptOss;
    // the architecture llama has one width for both kinds of feed-forward
    let width = match keys.value("expert_feed_forward_length") {
        Some(_) => keys.required("expert_feed_forward_length"),
        None => keys.required("feed_forward_length"),
    };
    Moe {
        experts: keys.required("expert_count"),
        top_k: keys.required("expert_used_count"),
        ffn: width,
        routing: match family {
            Family::GptOss => RouteOrder::TopKThenSoftmax,
            _ => {
                RouteOrder::SoftmaxThenTopK { renormalise: keys.flag("expert_weights_norm").unwrap_or(true) }
            }
        },
        router_bias: gpt_oss,
        expert_bias: gpt_oss,
        interleaved_gate_up: false,
    }
}

/// Which layers slide: every one but the last of each run of 6 (gemma3) or 2 (gpt-oss), unless the file says otherwise.
fn spans(family: Family, keys: &Keys<'_>, n_layers: usize) -> Vec<AttentionSpan> {
    let run = match family {
        Family::Gemma3 => 6,
        Family::GptOss => 2,
        _ => return vec![AttentionSpan::Full; n_layers],
    };
    let Some(window) = keys.size("attention.sliding_window").filter(|window| *window > 0) else {
        return vec![AttentionSpan::Full; n_layers];
    };
    let slides: Vec<bool> = match keys.value("attention.sliding_window_pattern") {
        Some((key, Value::Array(values))) => {
            let flags: Vec<bool> = values.iter().filter_map(Value::as_bool).collect();
            if flags.len() != n_layers {
                keys.problem(format!("{key} must say true or false for each of the {n_layers} layers"));
            }
            flags
        }
        _ => {
            // 0 stands for no full layer, 1 for no sliding one, as in llama.cpp
            let run = keys.size("attention.sliding_window_pattern").unwrap_or(run);
            (0..n_layers).map(|i| run == 0 || i % run < run - 1).collect()
        }
    };
    let span = |slides| if slides { AttentionSpan::Sliding { window } } else { AttentionSpan::Full };
    slides.into_iter().map(span).collect()
}

fn attention_scale(
    family: Family,
    keys: &Keys<'_>,
    n_layers: usize,
    hidden: usize,
    heads: usize,
    head_dim: usize,
) -> f64 {
    let stated = keys.number("attention.scale").filter(|scale| *scale != 0.0);
    // gemma-3-27b, by its layers: its heads are narrower than the scale says, and no key holds it
    let width = match (family, n_layers) {
        (Family::Gemma3, 62) => hidden.checked_div(heads).unwrap_or(0),
        _ => head_dim,
    };
    stated.unwrap_or_else(|| (width as f64).powf(-0.5))
}

fn id(metadata: &BTreeMap<String, Value>, key: &str) -> Option<u32> {
    metadata.get(key)?.as_u64().and_then(|id| u32::try_from(id).ok())
}

/// Ids that end a text or a turn of a conversation.
fn eos_ids(metadata: &BTreeMap<String, Value>) -> Vec<u32> {
    let keys = ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];
    let mut ids: Vec<u32> = keys.into_iter().filter_map(|key| id(metadata, key)).collect();
    ids.dedup();
    ids
}
