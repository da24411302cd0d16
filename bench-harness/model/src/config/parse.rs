//! `config.json` to [`Geometry`], family by family.
//!
//! Defaults are transformers', but only for fields that published configurations do leave out; a missing size is an error.

use std::cell::RefCell;

use perjoule_kernels::dtype::DType;
use serde_json::{Map, Value};

use super::rope;
use super::validate::MAX_LAYERS;
use super::{AttentionSpan, Family, Ffn, GatedKind, Geometry, Layer, Moe, RouteOrder};

/// A JSON object whose getters note what is missing or of the wrong type, so that one error can list it all.
pub(super) struct Fields<'a> {
    map: &'a Map<String, Value>,
    problems: &'a RefCell<Vec<String>>,
}

impl<'a> Fields<'a> {
    pub(super) fn new(map: &'a Map<String, Value>, problems: &'a RefCell<Vec<String>>) -> Self {
        Fields { map, problems }
    }

    pub(super) fn problem(&self, problem: String) {
        self.problems.borrow_mut().push(problem);
    }

    /// The value, unless it is absent or null.
    pub(super) fn value(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|v| !v.is_null())
    }

    fn typed<T>(&self, name: &str, what: &str, convert: impl Fn(&'a Value) -> Option<T>) -> Option<T> {
        let value = self.value(name)?;
        let converted = convert(value);
        if converted.is_none() {
            let mut shown = value.to_string();
            if shown.len() > 60 {
                shown = shown.chars().take(60).chain("..".chars()).collect();
            }
            self.problem(format!("{name} is {shown}: it must be {what}"));
        }
        converted
    }

    pub(super) fn size(&self, name: &str) -> Option<usize> {
        self.typed(name, "a whole number of at least 0", |v| usize::try_from(v.as_u64()?).ok())
    }

    /// A size that must be there. 0, which no validation lets pass, where it is not.
    fn required(&self, name: &str) -> usize {
        if self.value(name).is_none() {
            self.problem(format!("{name} is missing"));
        }
        self.size(name).unwrap_or(0)
    }

    pub(super) fn number(&self, name: &str) -> Option<f64> {
        self.typed(name, "a number", Value::as_f64)
    }

    pub(super) fn flag(&self, name: &str) -> Option<bool> {
        self.typed(name, "true or false", Value::as_bool)
    }

    pub(super) fn text(&self, name: &str) -> Option<&'a str> {
        self.typed(name, "a string", Value::as_str)
    }

    pub(super) fn object(&self, name: &str) -> Option<&'a Map<String, Value>> {
        self.typed(name, "an object", Value::as_object)
    }

    fn list<T>(&self, name: &str, what: &str, convert: impl Fn(&'a Value) -> Option<T>) -> Option<Vec<T>> {
        self.typed(name, what, |v| v.as_array()?.iter().map(&convert).collect())
    }

    /// A token id or a list of them.
    fn ids(&self, name: &str) -> Vec<u32> {
        let id = |v: &Value| u32::try_from(v.as_u64()?).ok();
        let ids = self.typed(name, "a token id or a list of them", |v| match v {
            Value::Array(ids) => ids.iter().map(id).collect(),
            one => id(one).map(|id| vec![id]),
        });
        ids.unwrap_or_default()
    }
}

/// Reads `text`, or says everything that keeps it from being read.
pub(super) fn geometry(text: &[u8]) -> Result<Geometry, Vec<String>> {
    let value: Value = serde_json::from_slice(text).map_err(|e| vec![format!("not JSON: {e}")])?;
    let Value::Object(root) = value else { return Err(vec!["not a JSON object".into()]) };
    let problems = RefCell::new(Vec::new());
    let geometry = family_geometry(&root, &problems);
    match (geometry, problems.into_inner()) {
        (Some(geometry), problems) if problems.is_empty() => Ok(geometry),
        (_, problems) => Err(problems),
    }
}

fn family_geometry(root: &Map<String, Value>, problems: &RefCell<Vec<String>>) -> Option<Geometry> {
    let outer = Fields::new(root, problems);
    let Some(model_type) = outer.text("model_type") else {
        outer.problem("model_type is missing".into());
        return None;
    };
    let (family, f) = match model_type {
        // The multimodal wrapper: its text part is a config of its own.
        "gemma3" => match outer.object("text_config") {
            Some(text) => (Family::Gemma3, Fields::new(text, problems)),
            None => {
                outer.problem(
                    "text_config is missing: model_type gemma3 describes its text model there".into(),
                );
                return None;
            }
        },
        name => match Family::ALL.into_iter().find(|family| family.model_type() == name) {
            Some(family) => (family, Fields::new(root, problems)),
            None => {
                let known = Family::ALL.map(Family::model_type).join(", ");
                outer.problem(format!("unknown model_type {name:?}: known are {known}, gemma3"));
                return None;
            }
        },
    };
    let gemma = family == Family::Gemma3;
    let gpt_oss = family == Family::GptOss;
    let size_or = |name: &str, default: usize| match f.value(name) {
        // Published gemma3 configurations state only what differs from the defaults.
        None if gemma => default,
        _ => f.required(name),
    };

    let hidden = size_or("hidden_size", 2304);
    let heads = size_or("num_attention_heads", 8);
    let kv_heads = match (f.value("num_key_value_heads"), family) {
        (None, Family::Llama) => heads,
        _ => size_or("num_key_value_heads", 4),
    };
    let n_layers = size_or("num_hidden_layers", 26);
    let head_dim = match (f.size("head_dim"), family) {
        (Some(head_dim), _) => head_dim,
        (None, Family::Gemma3) => 256,
        (None, Family::GptOss) => 64,
        (None, Family::Qwen3) => 128,
        (None, _) if heads > 0 && hidden.is_multiple_of(heads) => hidden / heads,
        (None, _) => {
            f.problem(format!("hidden_size {hidden} is not a multiple of num_attention_heads {heads}, and head_dim is missing"));
            0
        }
    };
    let max_positions = size_or("max_position_embeddings", 131_072);
    if n_layers > MAX_LAYERS {
        f.problem(format!("num_hidden_layers is {n_layers}: it must be in 1..={MAX_LAYERS}"));
        return None;
    }

    let moe = experts(family, &f);
    let kinds = layer_kinds(family, &f, n_layers)?;
    let ropes = rope::ropes(family, &f, head_dim, max_positions);
    let sparse = sparse_layers(family, &f, n_layers);
    let layers = kinds.iter().zip(sparse).map(|(&attention, sparse)| Layer {
        attention,
        // The second rotary embedding, where there is one, is that of sliding layers.
        rope: usize::from(ropes.len() > 1 && attention != AttentionSpan::Full),
        ffn: if sparse { Ffn::Experts } else { Ffn::Dense },
    });
    let layers: Vec<Layer> = layers.collect();
    let any_dense = layers.is_empty() || layers.iter().any(|l| l.ffn == Ffn::Dense);

    let attention_bias = match family {
        Family::Llama | Family::Qwen3 | Family::Qwen3Moe | Family::Gemma3 => {
            f.flag("attention_bias").unwrap_or(false)
        }
        Family::GptOss => f.flag("attention_bias").unwrap_or(true),
        Family::Mistral | Family::Mixtral | Family::Qwen2 => false,
    };
    if f.flag("use_bidirectional_attention") == Some(true) {
        f.problem("use_bidirectional_attention is true: only causal models are supported".into());
    }
    let attention_scale = match f.number("query_pre_attn_scalar") {
        Some(scalar) if gemma => scalar.powf(-0.5),
        None if gemma => 1.0 / 16.0,
        _ => (head_dim as f64).powf(-0.5),
    };
    let tied = f.flag("tie_word_embeddings").or_else(|| outer.flag("tie_word_embeddings"));
    let eos_ids = match f.ids("eos_token_id") {
        none if none.is_empty() => outer.ids("eos_token_id"),
        ids => ids,
    };

    Some(Geometry {
        family,
        vocab: size_or("vocab_size", 262_208),
        hidden,
        heads,
        kv_heads,
        head_dim,
        ffn: if any_dense { size_or("intermediate_size", 9216) } else { 0 },
        moe: moe.filter(|_| layers.iter().any(|l| l.ffn == Ffn::Experts)),
        layers,
        ropes,
        norm_eps: f.number("rms_norm_eps").unwrap_or(match family {
            Family::Mixtral | Family::GptOss => 1e-5,
            _ => 1e-6,
        }),
        norm_weight_offset: if gemma { 1.0 } else { 0.0 },
        qk_norm: matches!(family, Family::Qwen3 | Family::Qwen3Moe | Family::Gemma3),
        post_norms: gemma,
        qkv_bias: attention_bias || family == Family::Qwen2,
        o_bias: attention_bias,
        mlp_bias: family == Family::Llama && f.flag("mlp_bias").unwrap_or(false),
        sinks: gpt_oss,
        attention_scale,
        attention_softcap: f.number("attn_logit_softcapping").filter(|_| gemma),
        logit_softcap: f.number("final_logit_softcapping").filter(|_| gemma),
        activation: activation(family, &f),
        embedding_scale: if gemma { (hidden as f64).sqrt() } else { 1.0 },
        tied_head: tied.unwrap_or(gemma),
        max_positions,
        eos_ids,
        bos_id: f.ids("bos_token_id").first().copied(),
        dtype: dtype(&f).or_else(|| dtype(&outer)),
        mxfp4_experts: mxfp4(family, &outer),
    })
}

fn activation(family: Family, f: &Fields) -> GatedKind {
    if family == Family::GptOss {
        return GatedKind::GptOss {
            alpha: f.number("swiglu_alpha").unwrap_or(1.702) as f32,
            limit: f.number("swiglu_limit").unwrap_or(7.0) as f32,
        };
    }
    let (field, default) = match family {
        Family::Gemma3 => ("hidden_activation", "gelu_pytorch_tanh"),
        _ => ("hidden_act", "silu"),
    };
    match f.text(field).unwrap_or(default) {
        "silu" | "swish" => GatedKind::SwiGlu,
        "gelu_pytorch_tanh" | "gelu_new" => GatedKind::GeGluTanh,
        "gelu" => GatedKind::GeGlu,
        other => {
            f.problem(format!("{field} {other:?} is not supported: known are silu, gelu_pytorch_tanh, gelu"));
            GatedKind::SwiGlu
        }
    }
}

fn experts(family: Family, f: &Fields) -> Option<Moe> {
    // Both names are in use for the same families.
    let experts = || match f.value("num_experts") {
        Some(_) => f.required("num_experts"),
        None => f.required("num_local_experts"),
    };
    let moe = match family {
        Family::Qwen3Moe => Moe {
            experts: experts(),
            top_k: f.required("num_experts_per_tok"),
            ffn: f.required("moe_intermediate_size"),
            routing: RouteOrder::SoftmaxThenTopK { renormalise: f.flag("norm_topk_prob").unwrap_or(false) },
            router_bias: false,
            expert_bias: false,
            interleaved_gate_up: false,
        },
        Family::Mixtral => Moe {
            experts: experts(),
            top_k: f.required("num_experts_per_tok"),
            ffn: f.required("intermediate_size"),
            routing: RouteOrder::SoftmaxThenTopK { renormalise: true },
            router_bias: false,
            expert_bias: false,
            interleaved_gate_up: false,
        },
        Family::GptOss => Moe {
            experts: experts(),
            top_k: f.required("num_experts_per_tok"),
            ffn: f.required("intermediate_size"),
            routing: RouteOrder::TopKThenSoftmax,
            router_bias: true,
            expert_bias: true,
            interleaved_gate_up: true,
        },
        _ => return None,
    };
    Some(moe)
}

/// Which layers hold experts.
fn sparse_layers(family: Family, f: &Fields, n_layers: usize) -> Vec<bool> {
    match family {
        Family::Mixtral | Family::GptOss => vec![true; n_layers],
        Family::Qwen3Moe => {
            let step = f.size("decoder_sparse_step").unwrap_or(1);
            if step == 0 {
                f.problem("decoder_sparse_step is 0: it must be at least 1".into());
            }
            let index = |v: &Value| usize::try_from(v.as_u64()?).ok();
            let dense = f.list("mlp_only_layers", "a list of layer numbers", index).unwrap_or_default();
            let mut sparse: Vec<bool> = (1..=n_layers).map(|i| i.is_multiple_of(step.max(1))).collect();
            for layer in dense {
                if let Some(sparse) = sparse.get_mut(layer) {
                    *sparse = false;
                }
            }
            sparse
        }
        _ => vec![false; n_layers],
    }
}

/// The attention span of each layer.
fn layer_kinds(family: Family, f: &Fields, n_layers: usize) -> Option<Vec<AttentionSpan>> {
    let window = match family {
        Family::Llama => None,
        Family::Mistral if !f.map.contains_key("sliding_window") => Some(4096),
        Family::Mistral | Family::Mixtral => f.size("sliding_window"),
        Family::Qwen2 | Family::Qwen3 | Family::Qwen3Moe => {
            f.size("sliding_window").filter(|_| f.flag("use_sliding_window").unwrap_or(false))
        }
        Family::Gemma3 => f.size("sliding_window").or(Some(4096)),
        Family::GptOss => f.size("sliding_window").or(Some(128)),
    };
    let span = |window: Option<usize>| {
        window.map_or(AttentionSpan::Full, |window| AttentionSpan::Sliding { window })
    };
    // These families ignore layer_types.
    if matches!(family, Family::Llama | Family::Mistral | Family::Mixtral | Family::Qwen3Moe) {
        return Some(vec![span(window); n_layers]);
    }
    let Some(names) = f.list("layer_types", "a list of strings", Value::as_str) else {
        let sliding: Box<dyn Fn(usize) -> bool> = match family {
            Family::Gemma3 => {
                let pattern = f
                    .size("sliding_window_pattern")
                    .or_else(|| f.size("_sliding_window_pattern"))
                    .unwrap_or(6);
                if pattern == 0 {
                    f.problem("sliding_window_pattern is 0: it must be at least 1".into());
                }
                Box::new(move |i| !(i + 1).is_multiple_of(pattern.max(1)))
            }
            Family::GptOss => Box::new(|i| i.is_multiple_of(2)),
            _ => {
                let first = f.size("max_window_layers").unwrap_or(28);
                Box::new(move |i| i >= first)
            }
        };
        return Some((0..n_layers).map(|i| span(window.filter(|_| sliding(i)))).collect());
    };
    if names.len() != n_layers {
        f.problem(format!("layer_types names {} layers, num_hidden_layers {n_layers}", names.len()));
        return None;
    }
    let mut spans = Vec::with_capacity(n_layers);
    for name in names {
        spans.push(match (name, window) {
            ("full_attention", _) => AttentionSpan::Full,
            ("sliding_attention", Some(window)) => AttentionSpan::Sliding { window },
            ("sliding_attention", None) => {
                f.problem("layer_types asks for sliding_attention, but no sliding_window is in force".into());
                return None;
            }
            (other, _) => {
                f.problem(format!(
                    "layer type {other:?} is not supported: known are full_attention, sliding_attention"
                ));
                return None;
            }
        });
    }
    Some(spans)
}

/// The stated dtype of the weights, if it is one that exists here.
fn dtype(f: &Fields) -> Option<DType> {
    match f.text("dtype").or_else(|| f.text("torch_dtype"))? {
        "float32" => Some(DType::F32),
        "float16" => Some(DType::F16),
        "bfloat16" => Some(DType::BF16),
        _ => None,
    }
}

fn mxfp4(family: Family, f: &Fields) -> bool {
    let Some(quantisation) = f.object("quantization_config") else { return false };
    let q = Fields::new(quantisation, f.problems);
    match q.text("quant_method") {
        Some("mxfp4") if family == Family::GptOss => true,
        method => {
            let method = method.unwrap_or("not stated");
            f.problem(format!(
                "the quantisation method {method:?} is not supported for {family}: use weights in f32, f16 or bf16 (mxfp4 for gpt_oss)"
            ));
            false
        }
    }
}
