//! Configurations in every dialect, as published and as transformers writes them, and what is refused.

use perjoule_kernels::dtype::DType;
use perjoule_model::config::{
    AttentionSpan, Family, Ffn, GatedKind, Geometry, Rope, RopeScaling, RouteOrder,
};
use perjoule_model::zoo;
use serde_json::{Value, json};

fn parse(config: &Value) -> Geometry {
    Geometry::from_json(config.to_string().as_bytes()).unwrap()
}

fn refused(config: &Value) -> String {
    Geometry::from_json(config.to_string().as_bytes()).unwrap_err().to_string()
}

fn llama() -> Value {
    json!({
        "model_type": "llama", "vocab_size": 256, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "rms_norm_eps": 1e-5
    })
}

fn with(mut config: Value, changes: Value) -> Value {
    let (Value::Object(config_map), Value::Object(changes)) = (&mut config, changes) else {
        panic!("objects")
    };
    config_map.extend(changes);
    config
}

#[test]
fn both_rope_dialects_mean_the_same() {
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                        "original_max_position_embeddings": 64});
    let older = parse(&with(llama(), json!({"rope_theta": 500000, "rope_scaling": llama3})));
    let newer =
        parse(&with(llama(), json!({"rope_parameters": with(llama3, json!({"rope_theta": 500000.0}))})));
    assert_eq!(older, newer);
    let scaling =
        RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max: 64 };
    assert_eq!(older.ropes, [Rope { theta: 5e5, rotary_dim: 16, scaling }]);
    // The first name of the type, the default base, and a null that means nothing is stated.
    let linear = parse(&with(
        llama(),
        json!({"rope_scaling": {"type": "linear", "factor": 4}, "rope_parameters": null}),
    ));
    assert_eq!(
        linear.ropes,
        [Rope { theta: 1e4, rotary_dim: 16, scaling: RopeScaling::Linear { factor: 4.0 } }]
    );
    let plain = parse(&with(llama(), json!({"rope_scaling": null, "partial_rotary_factor": 0.5})));
    assert_eq!(plain.ropes, [Rope { theta: 1e4, rotary_dim: 8, scaling: RopeScaling::None }]);
}

#[test]
fn yarn_derives_its_attention_factor() {
    let factor = |parameters: Value| {
        let base = json!({"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 16});
        match parse(&with(llama(), json!({"rope_parameters": with(base, parameters)}))).ropes[0].scaling {
            RopeScaling::Yarn { attention_factor, .. } => attention_factor,
            other => panic!("{other:?}"),
        }
    };
    // 0.1 ln 32 + 1, as gpt-oss has it.
    assert!((factor(json!({})) - 1.346_573_6).abs() < 1e-6);
    assert_eq!(factor(json!({"mscale": 1.0, "mscale_all_dim": 1.0})), 1.0);
    assert_eq!(factor(json!({"attention_factor": 1.25, "mscale": 3.0})), 1.25);
    let derived = parse(&with(
        llama(),
        json!({"rope_parameters": {"rope_type": "yarn", "original_max_position_embeddings": 128}}),
    ));
    let expected = RopeScaling::Yarn {
        factor: 4.0,
        beta_fast: 32.0,
        beta_slow: 1.0,
        original_max: 128,
        truncate: true,
        attention_factor: 1.138_629_4,
    };
    assert_eq!(derived.ropes[0].scaling, expected);
}

#[test]
fn gemma3_fills_in_what_published_configs_leave_out() {
    // The text part of gemma-3-4b-it as first published: the rest are defaults.
    let g = parse(&json!({
        "model_type": "gemma3", "eos_token_id": [1, 106],
        "text_config": {
            "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024
        },
        "torch_dtype": "bfloat16", "vision_config": {"hidden_size": 1152}
    }));
    // As transformers counts them.
    assert_eq!(g.n_params(), 3_880_263_168);
    assert_eq!((g.heads, g.kv_heads, g.head_dim, g.vocab), (8, 4, 256, 262_208));
    assert_eq!((g.eos_ids.as_slice(), g.dtype), ([1, 106].as_slice(), Some(DType::BF16)));
    assert_eq!(g.attention_scale, 1.0 / 16.0);
    assert_eq!(g.norm_weight_offset, 1.0);
    assert!(g.post_norms && g.qk_norm && g.tied_head && !g.qkv_bias);
    assert_eq!(g.activation, GatedKind::GeGluTanh);
    // sqrt(2560) = 50.596; the model multiplies by its bf16 rounding.
    assert_eq!(g.embedding_scale_in(DType::BF16), 50.5);
    assert_eq!(g.embedding_scale_in(DType::F32), 2560f32.sqrt());
    let full: Vec<usize> = (0..34).filter(|&i| g.layers[i].attention == AttentionSpan::Full).collect();
    assert_eq!(full, [5, 11, 17, 23, 29]);
    assert_eq!(g.layers[0].attention, AttentionSpan::Sliding { window: 1024 });
    assert_eq!((g.layers[0].rope, g.layers[5].rope), (1, 0));
    let (global, local) = (g.ropes[0], g.ropes[1]);
    assert_eq!((global.theta, global.scaling), (1e6, RopeScaling::Linear { factor: 8.0 }));
    assert_eq!((local.theta, local.scaling), (1e4, RopeScaling::None));
}

#[test]
fn windows_follow_each_familys_rule() {
    let spans =
        |config: &Value| parse(config).layers.iter().map(|l| l.attention.window()).collect::<Vec<_>>();
    let as_family = |name: &str, changes: Value| with(with(llama(), json!({"model_type": name})), changes);
    assert_eq!(spans(&as_family("mistral", json!({"sliding_window": 8}))), [Some(8), Some(8)]);
    assert_eq!(spans(&as_family("mistral", json!({"sliding_window": null}))), [None, None]);
    assert_eq!(spans(&as_family("mistral", json!({}))), [Some(4096), Some(4096)]);
    assert_eq!(spans(&as_family("qwen2", json!({"sliding_window": 8}))), [None, None]);
    let on = json!({"sliding_window": 8, "use_sliding_window": true, "max_window_layers": 1});
    assert_eq!(spans(&as_family("qwen2", on)), [None, Some(8)]);
    let types = json!({"sliding_window": 8, "use_sliding_window": true, "layer_types": ["sliding_attention", "full_attention"]});
    assert_eq!(spans(&as_family("qwen3", types)), [Some(8), None]);
    let off = json!({"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]});
    assert!(refused(&as_family("qwen3", off)).contains("no sliding_window is in force"));
    assert!(
        refused(&as_family("qwen3", json!({"layer_types": ["full_attention"]}))).contains("names 1 layers")
    );
}

#[test]
fn experts_follow_each_familys_rule() {
    let g = zoo::geometry("qwen3-30b-a3b").unwrap();
    let moe = g.moe.unwrap();
    assert_eq!((moe.experts, moe.top_k, moe.ffn), (128, 8, 768));
    assert_eq!(moe.routing, RouteOrder::SoftmaxThenTopK { renormalise: true });
    assert_eq!(g.ffn, 0);
    let mut config = with(
        llama(),
        json!({
            "model_type": "qwen3_moe", "num_hidden_layers": 4, "num_local_experts": 8, "num_experts_per_tok": 2,
            "moe_intermediate_size": 32, "decoder_sparse_step": 2, "mlp_only_layers": [3]
        }),
    );
    let g = parse(&config);
    assert_eq!(
        g.layers.iter().map(|l| l.ffn).collect::<Vec<_>>(),
        [Ffn::Dense, Ffn::Experts, Ffn::Dense, Ffn::Dense]
    );
    assert_eq!((g.ffn, g.moe.unwrap().routing), (96, RouteOrder::SoftmaxThenTopK { renormalise: false }));
    config["num_experts_per_tok"] = json!(9);
    assert!(refused(&config).contains("num_experts_per_tok is 9"));

    let g = zoo::geometry("gpt-oss-120b").unwrap();
    let moe = g.moe.unwrap();
    assert_eq!((moe.experts, moe.top_k, moe.ffn, moe.routing), (128, 4, 2880, RouteOrder::TopKThenSoftmax));
    assert!(
        moe.router_bias && moe.expert_bias && moe.interleaved_gate_up && g.sinks && g.qkv_bias && g.o_bias
    );
    assert!(g.mxfp4_experts);
    assert_eq!(g.activation, GatedKind::GptOss { alpha: 1.702, limit: 7.0 });
    assert_eq!(g.layers[0].attention, AttentionSpan::Sliding { window: 128 });
    assert_eq!(g.layers[35].attention, AttentionSpan::Full);
}

#[test]
fn every_problem_is_named_at_once() {
    let message = refused(&json!({"model_type": "llama", "vocab_size": "many", "num_attention_heads": 4}));
    for says in [
        "vocab_size is \"many\"",
        "hidden_size is missing",
        "num_hidden_layers is missing",
        "intermediate_size is missing",
    ] {
        assert!(message.contains(says), "{message}");
    }
    let message = refused(&json!({"model_type": "mamba"}));
    assert!(
        message.contains("\"mamba\"") && Family::ALL.iter().all(|f| message.contains(f.model_type())),
        "{message}"
    );
    assert!(refused(&json!({})).contains("model_type is missing"));
    assert!(refused(&json!([])).contains("not a JSON object"));
}

#[test]
fn impossible_sizes_are_refused() {
    for (change, says) in [
        (json!({"hidden_size": 0, "head_dim": 16}), "hidden_size is 0"),
        (json!({"vocab_size": -1}), "vocab_size is -1"),
        (json!({"vocab_size": 1u64 << 40}), "vocab_size is 1099511627776"),
        (json!({"vocab_size": 1e300}), "vocab_size is 1e+300"),
        (json!({"num_hidden_layers": 0}), "num_hidden_layers is 0"),
        (json!({"num_hidden_layers": u64::MAX}), "num_hidden_layers is 18446744073709551615"),
        (json!({"num_key_value_heads": 3}), "not a multiple of num_key_value_heads 3"),
        (json!({"num_key_value_heads": 0}), "num_key_value_heads is 0"),
        (json!({"num_attention_heads": 0}), "num_attention_heads"),
        (json!({"head_dim": 15}), "rotary_dim is 15"),
        (json!({"rms_norm_eps": 0.0}), "rms_norm_eps is 0"),
        (json!({"rope_theta": -1.0}), "theta is -1"),
        (json!({"rope_scaling": {"type": "linear", "factor": 0.0}}), "rope: factor is 0"),
        (json!({"rope_scaling": {"type": "linear"}}), "factor is missing"),
        (json!({"rope_scaling": {"rope_type": "longrope"}}), "\"longrope\" is not supported"),
        (json!({"rope_scaling": {"rope_type": "ntk"}}), "known are default, linear, dynamic, llama3, yarn"),
        (
            json!({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "beta_fast": 1, "beta_slow": 9}}),
            "beta_fast",
        ),
        (json!({"hidden_act": "relu"}), "\"relu\" is not supported"),
        (json!({"quantization_config": {"quant_method": "gptq"}}), "\"gptq\" is not supported"),
        (
            json!({"num_hidden_layers": 4096, "hidden_size": 1 << 24, "intermediate_size": 1 << 24, "head_dim": 2}),
            "parameters",
        ),
    ] {
        let message = refused(&with(llama(), change.clone()));
        assert!(message.contains(says), "{change}: {message}");
    }
}
