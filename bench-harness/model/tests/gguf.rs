//! GGUF files as models: golden checkpoints converted as llama.cpp does it, against the logits that another framework computed from them;
//! and files of block formats against the same numbers in f32.

mod support;

use perjoule::DType;
use perjoule_kernels::block;
use perjoule_model::Geometry;
use perjoule_model::gguf::Gguf;
use perjoule_model::weights::Checkpoint;
use perjoule_model::{LoadOptions, Model, SessionOptions, Source};
use support::{Writer, convert, golden, keys, try_kind_of};

/// Norm of the difference over the norm of the reference.
fn rel_err(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let sum = |f: &dyn Fn(f64, f64) -> f64| -> f64 {
        got.iter().zip(want).map(|(&g, &w)| f(f64::from(g), f64::from(w))).sum()
    };
    (sum(&|g, w| (g - w) * (g - w)) / sum(&|_, w| w * w)).sqrt()
}

/// A file that is a model, in a folder that lasts as long as the source is read.
fn source(writer: &Writer) -> (tempfile::TempDir, Source) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.gguf");
    std::fs::write(&path, writer.bytes()).unwrap();
    let source = Source::open(path.to_str().unwrap(), 0).unwrap_or_else(|e| panic!("{e}"));
    (dir, source)
}

/// Logits of two rows of ids, by one prefill and, as a check of the steps for one token, by decode.
fn logits(source: &Source, options: &LoadOptions<'_>, ids: &[u32]) -> (Vec<f32>, Vec<f32>) {
    let model = Model::load(&perjoule::open("cpu").unwrap(), source, options).unwrap();
    let len = ids.len() / 2;
    let options = SessionOptions { parallel: 2, capacity: len, chunk: 512 };
    let whole = model.session(options).unwrap().prefill_all(ids).unwrap();
    let mut session = model.session(options).unwrap();
    let vocab = model.geometry().vocab;
    let mut stepped = vec![0.0; whole.len()];
    for t in 0..len {
        session.decode(&[ids[t], ids[len + t]]).unwrap();
        for (row, logits) in session.logits().unwrap().chunks_exact(vocab).enumerate() {
            stepped[(row * len + t) * vocab..][..vocab].copy_from_slice(logits);
        }
    }
    (whole, stepped)
}

fn check(name: &str, file_type: u32, dtype: DType, bound: f64) {
    check_as(name, file_type, dtype, &LoadOptions::stored(), bound);
}

fn check_as(name: &str, file_type: u32, dtype: DType, options: &LoadOptions<'_>, bound: f64) {
    let expected = Checkpoint::open_file(&golden(name).join("expected.safetensors")).unwrap();
    let ids: Vec<u32> = expected.read_i32("input_ids").unwrap().into_iter().map(|id| id as u32).collect();
    let want = expected.read_f32("logits").unwrap();
    let writer = convert(name, file_type, |_| dtype);
    let (_dir, source) = source(&writer);
    let (whole, stepped) = logits(&source, options, &ids);
    for (how, got) in [("prefill", whole), ("decode", stepped)] {
        let error = rel_err(&got, &want);
        assert!(error <= bound, "{name} {dtype}: {how} is off by {error:e}");
    }
}

/// Those that a file can describe: no exact GELU, no windows of mistral, no layer without experts beside others.
const CONVERTIBLE: [&str; 10] = [
    "llama",
    "llama3_rope",
    "sharded",
    "qwen2",
    "qwen3",
    "qwen3_moe_fused",
    "mixtral",
    "mixtral_fused",
    "gemma3_text",
    "gpt-oss",
];

#[test]
fn converted_checkpoints_give_the_golden_logits() {
    for name in CONVERTIBLE {
        check(name, 0, DType::F32, 1e-5);
        check(name, 32, DType::BF16, 3e-2);
        check(name, 1, DType::F16, 3e-2);
    }
}

#[test]
fn repacked_mxfp4_experts_give_the_golden_logits() {
    check_as("gpt_oss_mxfp4", 38, DType::F32, &LoadOptions::new(DType::F32), 1e-5);
    // with a KV cache in f16, as beside other blocks
    check("gpt_oss_mxfp4", 38, DType::F32, 2e-3);
    check("gpt_oss_mxfp4", 38, DType::BF16, 3e-2);
}

#[test]
fn geometries_are_those_of_the_folders() {
    for name in CONVERTIBLE {
        let (_dir, source) = source(&convert(name, 0, |_| DType::F32));
        let folder = Source::checkpoint(&golden(name)).unwrap();
        assert_eq!(source.geometry().n_params(), folder.geometry().n_params(), "{name}");
        assert_eq!(source.geometry().layers, folder.geometry().layers, "{name}");
        assert_eq!(source.quantisation(None), "all F32");
        assert_eq!(source.name(), "tiny");
    }
}

/// A model wide enough for blocks of 256, with numbers that are the same everywhere.
fn wide(dtype: impl Fn(&str) -> DType) -> Writer {
    let config = br#"{"model_type": "llama", "vocab_size": 300, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 128}"#;
    let geometry = Geometry::from_json(config).unwrap();
    let mut writer = keys(&geometry, 15);
    let mut state = 1u64;
    let mut random = |n: usize, centre: f32, spread: f32| -> Vec<f32> {
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        (0..n).map(|_| centre + spread * next()).collect()
    };
    let mut put = |name: &str, shape: &[usize]| {
        let count = shape.iter().product();
        let values = if shape.len() == 1 { random(count, 1.0, 0.1) } else { random(count, 0.0, 0.15) };
        let of = if shape.len() == 1 { DType::F32 } else { dtype(name) };
        writer.tensor(name, shape, of, &values);
    };
    put("token_embd.weight", &[300, 256]);
    for layer in 0..2 {
        for (name, shape) in [
            ("attn_norm", &[256][..]),
            ("attn_q", &[256, 256]),
            ("attn_k", &[128, 256]),
            ("attn_v", &[128, 256]),
            ("attn_output", &[256, 256]),
            ("ffn_norm", &[256]),
            ("ffn_gate", &[512, 256]),
            ("ffn_up", &[512, 256]),
            ("ffn_down", &[256, 512]),
        ] {
            put(&format!("blk.{layer}.{name}.weight"), shape);
        }
    }
    put("output_norm.weight", &[256]);
    put("output.weight", &[300, 256]);
    writer
}

/// The same file with every block undone into f32.
fn undone(writer: &Writer) -> Writer {
    let mut plain = Writer { keys: writer.keys.clone(), tensors: Vec::new() };
    for t in &writer.tensors {
        let dtype = DType::ALL.into_iter().find(|d| try_kind_of(*d) == Some(t.kind)).unwrap();
        let mut values = vec![0.0; t.shape.iter().product()];
        block::decode(dtype, &t.bytes, &mut values).unwrap();
        plain.tensor(&t.name, &t.shape, DType::F32, &values);
    }
    plain
}

/// A mix as Q4_K_M has it: some of the values and downs in more bits, and with them products that cannot be one.
fn mixed(name: &str) -> DType {
    match name {
        "output.weight" | "blk.0.attn_v.weight" | "blk.1.ffn_down.weight" => DType::Q6K,
        "blk.1.attn_k.weight" | "blk.0.ffn_up.weight" => DType::Q8_0,
        "token_embd.weight" => DType::Q4_0,
        _ => DType::Q4K,
    }
}

#[test]
fn block_formats_give_what_their_numbers_give_in_f32() {
    let ids: Vec<u32> = (0..24).map(|i| i * 37 % 300).collect();
    let whole = [DType::Q8_0, DType::Q4_0, DType::Q4K, DType::Q6K, DType::MxFp4];
    let files = whole.into_iter().map(|d| (d.to_string(), wide(move |_| d)));
    for (name, file) in files.chain([("mixed".to_owned(), wide(mixed))]) {
        let (_dir, source_of_f32) = source(&undone(&file));
        let (want, _) = logits(&source_of_f32, &LoadOptions::new(DType::F32), &ids);
        let (_dir, source) = source(&file);
        let (whole, stepped) = logits(&source, &LoadOptions::stored(), &ids);
        let (converted, _) = logits(&source, &LoadOptions::new(DType::F32), &ids);
        assert!(rel_err(&whole, &want) <= 2e-2, "{name}: prefill is off by {}", rel_err(&whole, &want));
        assert!(rel_err(&stepped, &want) <= 2e-2, "{name}: decode is off by {}", rel_err(&stepped, &want));
        // undone while it is loaded
        assert!(
            rel_err(&converted, &want) <= 1e-5,
            "{name}: as f32 it is off by {}",
            rel_err(&converted, &want)
        );
    }
}

#[test]
fn mixes_are_named_and_counted_by_what_they_hold() {
    let (_dir, source) = source(&wide(mixed));
    assert_eq!((source.quantisation(None).as_str(), source.main_dtype(None)), ("Q4_K - Medium", DType::Q4K));
    assert_eq!(source.quantisation(Some(DType::Q8_0)), "q8_0");
    let stored: u64 =
        Gguf::open(&_dir.path().join("tiny.gguf")).unwrap().checkpoint.tensors().map(|(_, t)| t.bytes).sum();
    let need = source.memory_needed(None, DType::F16, 0, 1);
    assert_eq!((need.weights, need.kv_cache), (stored, 0));
    let model = Model::load(&perjoule::open("cpu").unwrap(), &source, &LoadOptions::stored()).unwrap();
    assert_eq!(
        (model.head_dtype(), model.embed_dtype(), model.kv_dtype()),
        (DType::Q6K, DType::Q4_0, DType::F16)
    );
}

#[test]
fn products_of_different_types_stay_apart_with_their_biases() {
    // of one of q, k and v, and of one of gate and up
    let rounded = ["attn_k.weight", "ffn_up.weight", "ffn_up_exps.weight"];
    for name in ["qwen2", "mixtral", "gpt-oss", "gemma3_text"] {
        let expected = Checkpoint::open_file(&golden(name).join("expected.safetensors")).unwrap();
        let ids: Vec<u32> = expected.read_i32("input_ids").unwrap().into_iter().map(|id| id as u32).collect();
        let want = expected.read_f32("logits").unwrap();
        let mix = |tensor: &str| if rounded.contains(&tensor) { DType::F16 } else { DType::F32 };
        let (_dir, source) = source(&convert(name, 0, mix));
        assert_eq!(source.main_dtype(None), DType::F32, "{name}");
        let (whole, stepped) = logits(&source, &LoadOptions::stored(), &ids);
        for got in [whole, stepped] {
            let error = rel_err(&got, &want);
            assert!(error <= 3e-3 && error > 1e-5, "{name} is off by {error:e}");
        }
    }
}
