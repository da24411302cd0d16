//! A writer of GGUF files for tests, and the conversion of golden checkpoints as llama.cpp's converter does it.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use perjoule::DType;
use perjoule_kernels::block;
use perjoule_model::config::{AttentionSpan, Family, Geometry, RopeScaling, RouteOrder};
use perjoule_model::weights::{Checkpoint, FileDType};

pub(crate) fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/checkpoints").join(name)
}

/// Sizes and numbers.
type Shaped = (Vec<usize>, Vec<f32>);

/// A value of a key, with its type in the file.
#[derive(Clone)]
pub(crate) enum V {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    Floats(Vec<f32>),
    Ints(Vec<i32>),
    Bools(Vec<bool>),
}

pub(crate) fn text(s: &str) -> V {
    V::Text(s.to_owned())
}

pub(crate) struct T {
    pub(crate) name: String,
    /// Outermost first.
    pub(crate) shape: Vec<usize>,
    /// Number of `ggml_type`.
    pub(crate) kind: u32,
    pub(crate) bytes: Vec<u8>,
}

/// Keys and tensors, in the order in which they are written.
#[derive(Default)]
pub(crate) struct Writer {
    pub(crate) keys: Vec<(String, V)>,
    pub(crate) tensors: Vec<T>,
}

/// The number of a type, if GGUF files have it.
pub(crate) fn try_kind_of(dtype: DType) -> Option<u32> {
    Some(match dtype {
        DType::F32 => 0,
        DType::F16 => 1,
        DType::Q4_0 => 2,
        DType::Q8_0 => 8,
        DType::Q4K => 12,
        DType::Q6K => 14,
        DType::BF16 => 30,
        DType::MxFp4 => 39,
        _ => return None,
    })
}

fn put(out: &mut Vec<u8>, s: &str) {
    out.extend((s.len() as u64).to_le_bytes());
    out.extend(s.as_bytes());
}

fn array(out: &mut Vec<u8>, kind: u32, len: usize) {
    out.extend(9u32.to_le_bytes());
    out.extend(kind.to_le_bytes());
    out.extend((len as u64).to_le_bytes());
}

impl Writer {
    pub(crate) fn key(&mut self, name: &str, value: V) {
        self.keys.retain(|(key, _)| key != name);
        self.keys.push((name.to_owned(), value));
    }

    pub(crate) fn tensor(&mut self, name: &str, shape: &[usize], dtype: DType, values: &[f32]) {
        let mut bytes = vec![0; dtype.bytes(values.len()).unwrap() as usize];
        block::encode(dtype, values, &mut bytes).unwrap();
        self.tensors.push(T {
            name: name.into(),
            shape: shape.to_vec(),
            kind: try_kind_of(dtype).unwrap(),
            bytes,
        });
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.keys.len() as u64).to_le_bytes());
        for (key, value) in &self.keys {
            put(&mut out, key);
            let mut tagged = |tag: u32, bytes: &[u8]| {
                out.extend(tag.to_le_bytes());
                out.extend(bytes);
            };
            match value {
                V::U32(v) => tagged(4, &v.to_le_bytes()),
                V::F32(v) => tagged(6, &v.to_le_bytes()),
                V::Bool(v) => tagged(7, &[u8::from(*v)]),
                V::Text(v) => {
                    tagged(8, &[]);
                    put(&mut out, v);
                }
                V::Texts(v) => {
                    array(&mut out, 8, v.len());
                    v.iter().for_each(|s| put(&mut out, s));
                }
                V::Floats(v) => {
                    array(&mut out, 6, v.len());
                    v.iter().for_each(|x| out.extend(x.to_le_bytes()));
                }
                V::Ints(v) => {
                    array(&mut out, 5, v.len());
                    v.iter().for_each(|x| out.extend(x.to_le_bytes()));
                }
                V::Bools(v) => {
                    array(&mut out, 7, v.len());
                    v.iter().for_each(|x| out.push(u8::from(*x)));
                }
            }
        }
        let mut at = 0u64;
        for t in &self.tensors {
            put(&mut out, &t.name);
            out.extend((t.shape.len() as u32).to_le_bytes());
            t.shape.iter().rev().for_each(|&size| out.extend((size as u64).to_le_bytes()));
            out.extend(t.kind.to_le_bytes());
            out.extend(at.to_le_bytes());
            at = (at + t.bytes.len() as u64).next_multiple_of(32);
        }
        for t in &self.tensors {
            out.resize(out.len().next_multiple_of(32), 0);
            out.extend(&t.bytes);
        }
        out.resize(out.len().next_multiple_of(32), 0);
        out
    }
}

fn architecture(family: Family) -> &'static str {
    match family {
        Family::Llama | Family::Mistral | Family::Mixtral => "llama",
        Family::Qwen2 => "qwen2",
        Family::Qwen3 => "qwen3",
        Family::Qwen3Moe => "qwen3moe",
        Family::Gemma3 => "gemma3",
        Family::GptOss => "gpt-oss",
    }
}

/// The keys of a golden checkpoint.
pub(crate) fn keys(g: &Geometry, file_type: u32) -> Writer {
    let mut w = Writer::default();
    let arch = architecture(g.family);
    w.key("general.architecture", text(arch));
    w.key("general.file_type", V::U32(file_type));
    let mut key = |name: &str, value: V| w.key(&format!("{arch}.{name}"), value);
    let size = |n: usize| V::U32(n as u32);
    key("block_count", size(g.layers.len()));
    key("context_length", size(g.max_positions));
    key("embedding_length", size(g.hidden));
    key("feed_forward_length", size(g.moe.map_or(g.ffn, |m| m.ffn)));
    key("attention.head_count", size(g.heads));
    key("attention.head_count_kv", size(g.kv_heads));
    key("attention.key_length", size(g.head_dim));
    key("attention.value_length", size(g.head_dim));
    key("attention.layer_norm_rms_epsilon", V::F32(g.norm_eps as f32));
    key("rope.freq_base", V::F32(g.ropes[0].theta as f32));
    key("rope.dimension_count", size(g.ropes[0].rotary_dim));
    match g.ropes[0].scaling {
        RopeScaling::Linear { factor } => {
            key("rope.scaling.type", text("linear"));
            key("rope.scaling.factor", V::F32(factor as f32));
        }
        RopeScaling::Yarn { factor, beta_fast, beta_slow, original_max, .. } => {
            key("rope.scaling.type", text("yarn"));
            key("rope.scaling.factor", V::F32(factor as f32));
            key("rope.scaling.original_context_length", size(original_max));
            key("rope.scaling.yarn_beta_fast", V::F32(beta_fast as f32));
            key("rope.scaling.yarn_beta_slow", V::F32(beta_slow as f32));
        }
        RopeScaling::None | RopeScaling::Llama3 { .. } => {}
    }
    if let Some(window) = g.layers.iter().find_map(|l| l.attention.window()) {
        key("attention.sliding_window", size(window));
        let slides = g.layers.iter().map(|l| l.attention != AttentionSpan::Full).collect();
        key("attention.sliding_window_pattern", V::Bools(slides));
    }
    if g.family == Family::Gemma3 {
        // as the checkpoint has it, which no published file does
        key("attention.scale", V::F32(g.attention_scale as f32));
    }
    if let Some(moe) = g.moe {
        if let RouteOrder::SoftmaxThenTopK { renormalise } = moe.routing {
            key("expert_weights_norm", V::Bool(renormalise));
        }
        key("expert_count", size(moe.experts));
        key("expert_used_count", size(moe.top_k));
        key("expert_feed_forward_length", size(moe.ffn));
    }
    w
}

/// A golden checkpoint as a GGUF file whose matrices have the type that `dtype` says for their GGUF name. Experts in MXFP4 are repacked,
/// byte by byte.
pub(crate) fn convert(name: &str, file_type: u32, dtype: impl Fn(&str) -> DType) -> Writer {
    let g = Geometry::from_dir(&golden(name)).unwrap();
    let checkpoint = Checkpoint::open(&golden(name)).unwrap();
    let mut w = keys(&g, file_type);
    if let RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max } =
        g.ropes[0].scaling
    {
        let dim = g.ropes[0].rotary_dim;
        let divisors: Vec<f32> = (0..dim / 2)
            .map(|i| {
                let wavelength =
                    2.0 * std::f64::consts::PI * g.ropes[0].theta.powf(2.0 * i as f64 / dim as f64);
                let original = original_max as f64;
                if wavelength < original / high_freq_factor {
                    1.0
                } else if wavelength > original / low_freq_factor {
                    factor as f32
                } else {
                    let s = (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    (1.0 / ((1.0 - s) / factor + s)) as f32
                }
            })
            .collect();
        w.tensor("rope_freqs.weight", &[divisors.len()], DType::F32, &divisors);
    }
    // [name of the part, expert] of experts that come one by one
    let mut parts: BTreeMap<String, BTreeMap<usize, Shaped>> = BTreeMap::new();
    let mut mxfp4: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for (hf, info) in checkpoint.tensors() {
        let (prefix, rest) = match hf.strip_prefix("model.layers.") {
            Some(rest) => {
                let (layer, rest) = rest.split_once('.').unwrap();
                (format!("blk.{layer}."), rest)
            }
            None => (String::new(), hf),
        };
        if info.dtype == FileDType::U8 {
            mxfp4.insert(hf.to_owned(), checkpoint.read(hf).unwrap());
            if let Some(stem) = hf.strip_suffix("_scales") {
                repack(&mut w, &prefix, stem, &info.shape, &mxfp4);
            }
            continue;
        }
        let mut values = checkpoint.read_f32(hf).unwrap();
        let mut shape = info.shape.clone();
        if let Some(expert) =
            rest.split("experts.").nth(1).filter(|e| e.starts_with(|c: char| c.is_ascii_digit()))
        {
            let (number, part) = expert.split_once('.').unwrap();
            let part = match part {
                "w1.weight" | "gate_proj.weight" => "gate",
                "w3.weight" | "up_proj.weight" => "up",
                _ => "down",
            };
            let all = parts.entry(format!("{prefix}ffn_{part}_exps.weight")).or_default();
            all.insert(number.parse().unwrap(), (shape, values));
            continue;
        }
        let gguf = gguf_name(g.family, rest);
        if g.family == Family::Gemma3 && rest.ends_with("norm.weight") {
            values.iter_mut().for_each(|v| *v += 1.0);
        }
        if matches!(g.family, Family::Llama | Family::Mistral | Family::Mixtral) {
            let heads = match gguf.as_str() {
                "attn_q.weight" | "attn_q.bias" => Some(g.heads),
                "attn_k.weight" | "attn_k.bias" => Some(g.kv_heads),
                _ => None,
            };
            if let Some(heads) = heads {
                values = permuted(&values, heads, g.head_dim);
            }
        }
        let mut put = |name: &str, shape: &[usize], values: &[f32]| {
            let dtype = if shape.len() == 1 || gguf.contains("gate_inp") || gguf.ends_with("bias") {
                DType::F32
            } else {
                dtype(name)
            };
            w.tensor(&format!("{prefix}{name}"), shape, dtype, values);
        };
        if g.family == Family::GptOss && gguf.starts_with("experts.") {
            // [e, k, n] to [e, n, k], and gates and ups apart
            if let [e, k, n] = shape[..] {
                let old = values.clone();
                for (i, v) in values.iter_mut().enumerate() {
                    let (expert, row, column) = (i / (k * n), i / k % n, i % k);
                    *v = old[(expert * k + column) * n + row];
                }
                shape = vec![e, n, k];
            }
            let ending = if shape.len() == 3 { "weight" } else { "bias" };
            if gguf.contains("down") {
                put(&format!("ffn_down_exps.{ending}"), &shape, &values);
                continue;
            }
            let row = if shape.len() == 3 { shape[2] } else { 1 };
            for (part, odd) in [("gate", 0), ("up", 1)] {
                let half: Vec<f32> = values.chunks(row).skip(odd).step_by(2).flatten().copied().collect();
                let mut shape = shape.clone();
                shape[1] /= 2;
                put(&format!("ffn_{part}_exps.{ending}"), &shape, &half);
            }
            continue;
        }
        if gguf == "experts.gate_up_proj" {
            put("ffn_gate_up_exps.weight", &shape, &values);
        } else if gguf == "experts.down_proj" {
            put("ffn_down_exps.weight", &shape, &values);
        } else {
            put(&gguf, &shape, &values);
        }
    }
    for (name, experts) in parts {
        let mut shape = vec![experts.len()];
        shape.extend(&experts[&0].0);
        let values: Vec<f32> = experts.into_values().flat_map(|(_, values)| values).collect();
        let of = dtype(name.split_once('.').unwrap().1.split_once('.').unwrap().1);
        w.tensor(&name, &shape, of, &values);
    }
    w
}

/// Rows of each head so that neighbours turn together, as `LlamaModel.permute` of the converter does.
fn permuted(values: &[f32], heads: usize, head_dim: usize) -> Vec<f32> {
    let row = values.len() / (heads * head_dim);
    let mut out = Vec::with_capacity(values.len());
    for head in values.chunks(head_dim * row) {
        for i in 0..head_dim / 2 {
            out.extend(&head[i * row..(i + 1) * row]);
            let second = i + head_dim / 2;
            out.extend(&head[second * row..(second + 1) * row]);
        }
    }
    out
}

/// Blocks and scales of Hugging Face as ggml's blocks, with the nibbles in its order.
fn repack(w: &mut Writer, prefix: &str, stem: &str, scales_shape: &[usize], raw: &BTreeMap<String, Vec<u8>>) {
    let (codes, scales) = (&raw[&format!("{stem}_blocks")], &raw[&format!("{stem}_scales")]);
    let mut blocks = Vec::new();
    for (codes, scale) in codes.chunks(16).zip(scales) {
        let element = |i: usize| codes[i / 2] >> (4 * (i % 2)) & 15;
        blocks.push(*scale);
        blocks.extend((0..16).map(|i| element(i) | element(i + 16) << 4));
    }
    let &[e, n, per_row] = scales_shape else { panic!("{scales_shape:?}") };
    let row = per_row * 17;
    let mut put = |part: &str, n: usize, bytes: Vec<u8>| {
        let name = format!("{prefix}ffn_{part}_exps.weight");
        w.tensors.push(T { name, shape: vec![e, n, per_row * 32], kind: 39, bytes });
    };
    if stem.ends_with("down_proj") {
        return put("down", n, blocks);
    }
    for (part, odd) in [("gate", 0), ("up", 1)] {
        put(part, n / 2, blocks.chunks(row).skip(odd).step_by(2).flatten().copied().collect());
    }
}

fn gguf_name(family: Family, rest: &str) -> String {
    let gpt_oss = family == Family::GptOss;
    let (stem, ending) = match rest.rsplit_once('.') {
        Some((stem, ending @ ("weight" | "bias"))) => (stem, ending),
        _ => (rest, ""),
    };
    let renamed = match stem {
        "model.embed_tokens" => "token_embd",
        "model.norm" => "output_norm",
        "lm_head" => "output",
        "input_layernorm" => "attn_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "self_attn.sinks" => return "attn_sinks.weight".into(),
        "post_attention_layernorm" if gpt_oss || family == Family::Gemma3 => "post_attention_norm",
        "post_attention_layernorm" | "pre_feedforward_layernorm" => "ffn_norm",
        "post_feedforward_layernorm" => "post_ffw_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        "mlp.router" | "mlp.gate" | "block_sparse_moe.gate" => "ffn_gate_inp",
        // without an ending: fused experts
        other => return other.trim_start_matches("mlp.").to_owned(),
    };
    format!("{renamed}.{ending}")
}
