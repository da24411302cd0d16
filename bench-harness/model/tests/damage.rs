//! Everything that can be wrong between a folder and its last token: one error that says what, and never a panic.

use std::fs;
use std::path::{Path, PathBuf};

use perjoule::DType;
use perjoule_model::tokenizer::Tokenizer;
use perjoule_model::weights::{header_len, parse_header};
use perjoule_model::{Error, Geometry, LoadOptions, Model, Result, SessionOptions, Source};
use proptest::prelude::*;
use serde_json::{Value, json};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/checkpoints").join(name)
}

/// A writable copy of a golden checkpoint.
fn copy(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(golden(name)).unwrap() {
        let path = entry.unwrap().path();
        fs::write(dir.path().join(path.file_name().unwrap()), fs::read(&path).unwrap()).unwrap();
    }
    dir
}

/// Overwrites the bytes of a tensor from byte `at` on.
fn poke(dir: &Path, tensor: &str, at: u64, bytes: &[u8]) {
    let path = dir.join("model.safetensors");
    let mut file = fs::read(&path).unwrap();
    let len = header_len(*file.first_chunk().unwrap(), file.len() as u64).unwrap();
    let data = 8 + len as usize;
    let header = parse_header(&file[8..data], (file.len() - data) as u64).unwrap();
    let start = data + (header[tensor].begin + at) as usize;
    file[start..start + bytes.len()].copy_from_slice(bytes);
    fs::write(path, file).unwrap();
}

fn load(dir: &Path, dtype: DType) -> Result<Model> {
    Model::load(&perjoule::open("cpu").unwrap(), &Source::checkpoint(dir)?, &LoadOptions::new(dtype))
}

#[test]
fn loading_ends_when_whoever_watches_it_says_so() {
    use std::sync::atomic::{AtomicU64, Ordering};
    let source = Source::checkpoint(&golden("llama")).unwrap();
    let seen = AtomicU64::new(0);
    let progress = |done: u64, total: u64| {
        seen.fetch_max(done, Ordering::Relaxed);
        done * 4 < total
    };
    let options = LoadOptions { progress: Some(&progress), ..LoadOptions::new(DType::F32) };
    let cpu = perjoule::open("cpu").unwrap();
    assert!(matches!(Model::load(&cpu, &source, &options), Err(Error::Stopped)));
    let total = source.geometry().n_params();
    assert!(seen.into_inner() < total, "it goes on to the end");
}

#[test]
fn what_is_loaded_is_all_that_was_announced() {
    use std::sync::atomic::{AtomicU64, Ordering};
    let cpu = perjoule::open("cpu").unwrap();
    let mut tied = [0; 2];
    for name in ["llama", "qwen3", "gemma3_text", "qwen2", "qwen3_moe"] {
        let source = Source::checkpoint(&golden(name)).unwrap();
        tied[usize::from(source.geometry().tied_head)] += 1;
        let last = [AtomicU64::new(0), AtomicU64::new(0)];
        let progress = |done: u64, total: u64| {
            last[0].store(done, Ordering::Relaxed);
            last[1].store(total, Ordering::Relaxed);
            done <= total
        };
        let options = LoadOptions { progress: Some(&progress), ..LoadOptions::new(DType::F32) };
        Model::load(&cpu, &source, &options).unwrap_or_else(|error| panic!("{name}: {error}"));
        let [done, total] = last.map(AtomicU64::into_inner);
        assert_eq!(done, total, "{name}");
    }
    assert!(tied.iter().all(|&n| n > 0), "heads that are tied, and that are not");
}

/// The error that loading gives, which must be of one line.
fn refused(dir: &Path, dtype: DType) -> String {
    let message = load(dir, dtype).err().expect("an error").to_string();
    assert_eq!(message.lines().count(), 1, "{message}");
    message
}

#[test]
fn the_tensor_that_holds_nan_is_named() {
    let nan = f32::NAN.to_le_bytes();
    let infinity = f32::NEG_INFINITY.to_le_bytes();
    let layer = "model.layers.1";
    let cases: [(&str, String, u64, &[u8]); 7] = [
        ("mistral", "model.embed_tokens.weight".into(), 4 * 1000, &nan),
        ("mistral", format!("{layer}.input_layernorm.weight"), 4 * 63, &infinity),
        ("mistral", format!("{layer}.mlp.up_proj.weight"), 4 * (96 * 64 - 1), &nan),
        ("mixtral", format!("{layer}.block_sparse_moe.experts.3.w2.weight"), 0, &infinity),
        // in the half that the ups take, of the last expert
        ("mixtral_fused", format!("{layer}.mlp.experts.gate_up_proj"), 4 * (4 * 96 * 32 - 1), &nan),
        // bf16, beside experts in MXFP4 whose scale 255 is NaN
        ("gpt_oss_mxfp4", "model.norm.weight".into(), 2, &nan[2..]),
        ("gpt_oss_mxfp4", format!("{layer}.mlp.experts.down_proj_scales"), 7, &[255]),
    ];
    for (name, tensor, at, bytes) in cases {
        let dir = copy(name);
        poke(dir.path(), &tensor, at, bytes);
        for dtype in [DType::F32, DType::BF16, DType::Q8_0] {
            // whose rows are no whole blocks
            if name == "mixtral_fused" && dtype == DType::Q8_0 {
                continue;
            }
            let message = refused(dir.path(), dtype);
            assert!(message.contains(&format!("{tensor:?} holds NaN or infinity")), "{dtype}: {message}");
        }
    }
}

#[test]
fn numbers_beyond_a_dtype_are_not_taken_for_damage() {
    let dir = copy("mistral");
    poke(dir.path(), "model.layers.0.self_attn.k_proj.weight", 40, &1e6f32.to_le_bytes());
    let message = refused(dir.path(), DType::F16);
    assert!(message.contains("k_proj.weight\" reaches 1e6, which f16 cannot hold: choose bf16"), "{message}");
    assert!(load(dir.path(), DType::BF16).is_ok());
}

#[test]
fn truncated_and_lying_files_are_named() {
    let dir = copy("qwen2");
    let path = dir.path().join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    for (len, says) in [
        (0, "truncated"),
        (7, "truncated"),
        (8, "truncated"),
        (1000, "truncated"),
        (whole.len() - 1, "truncated"),
    ] {
        fs::write(&path, &whole[..len]).unwrap();
        let message = refused(dir.path(), DType::F32);
        assert!(message.contains(says) && message.contains("model.safetensors"), "{len}: {message}");
    }
    for (len, says) in [(u64::MAX, "at most"), (1 << 50, "at most"), (whole.len() as u64, "truncated")] {
        let mut lying = whole.clone();
        lying[..8].copy_from_slice(&len.to_le_bytes());
        fs::write(&path, lying).unwrap();
        let message = refused(dir.path(), DType::F32);
        assert!(message.contains(says), "{message}");
    }
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(refused(dir.path(), DType::F32).contains("not a regular file"));
}

fn config(changes: Value) -> Vec<u8> {
    let mut config = json!({
        "model_type": "qwen3_moe", "vocab_size": 256, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512,
        "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32
    });
    let (Value::Object(all), Value::Object(changes)) = (&mut config, changes) else { panic!("objects") };
    all.extend(changes);
    config.to_string().into_bytes()
}

#[test]
fn a_config_of_countless_experts_is_refused_at_once() {
    // names for all of them would take tens of gigabytes
    let dir = copy("qwen3_moe");
    let changes = json!({"num_experts": 65536, "num_hidden_layers": 4096, "moe_intermediate_size": 1});
    fs::write(dir.path().join("config.json"), config(changes)).unwrap();
    let message = load(dir.path(), DType::F32).err().unwrap().to_string();
    assert!(message.contains("do not fit config.json") && message.lines().count() < 30, "{message}");
}

#[cfg(target_os = "linux")]
#[test]
fn what_memory_cannot_hold_is_refused_before_it_is_allocated() {
    let device = perjoule::open("cpu").unwrap();
    let load = |changes: Value| {
        let geometry = Geometry::from_json(&config(changes)).unwrap();
        Model::load(&device, &Source::random("wide", geometry, 0), &LoadOptions::new(DType::F32))
    };
    let wide = load(json!({"vocab_size": 1 << 24, "hidden_size": 1 << 20}));
    assert!(matches!(wide.err().unwrap(), Error::Memory { .. }));
    let model = load(json!({"max_position_embeddings": 1 << 30})).unwrap();
    let options = SessionOptions { parallel: 1, capacity: 1 << 30, chunk: usize::MAX };
    for options in [options, SessionOptions { parallel: usize::MAX, capacity: 1, chunk: 1 }] {
        let error = model.session(options).err().unwrap();
        assert!(matches!(error, Error::Memory { weights: 0, .. }), "{error}");
    }
}

#[test]
fn sessions_refuse_what_does_not_fit_and_stay_usable() {
    let model = load(&golden("qwen2"), DType::F32).unwrap();
    let limit = model.geometry().max_positions;
    let options = SessionOptions { parallel: 2, capacity: 8, chunk: 512 };
    for (options, says) in [
        (SessionOptions { capacity: limit + 1, ..options }, "max_position_embeddings"),
        (SessionOptions { parallel: 0, ..options }, "0 sequences"),
        (SessionOptions { capacity: 0, ..options }, "token"),
        (SessionOptions { chunk: 0, ..options }, "token"),
    ] {
        let message = model.session(options).err().unwrap().to_string();
        assert!(message.contains(says), "{message}");
    }
    let mut session = model.session(options).unwrap();
    assert!(matches!(session.decode_greedy(1, &mut |_| true), Err(Error::Sequences { .. })));
    for (ids, says) in [
        (vec![], "at least one token"),
        (vec![1, 2, 3], "2 sequences"),
        (vec![1, 256], "id 256 is outside the vocabulary of 256"),
        (vec![1, u32::MAX], "outside the vocabulary"),
        (vec![1; 18], "9 tokens do not fit"),
    ] {
        let message = session.prefill(&ids).unwrap_err().to_string();
        assert!(message.contains(says), "{message}");
        assert!(session.is_empty());
    }
    session.prefill(&[1, 2, 3, 4, 5, 6]).unwrap();
    let error = session.decode_greedy(6, &mut |_| true).unwrap_err();
    assert!(matches!(error, Error::TooLong { tokens: 9, have: 8, .. }), "{error}");
    assert!(session.decode(&[1]).is_err() && session.sample(1.0, None, None, &[0.5]).is_err());
    assert!(matches!(session.rewind(4), Err(Error::TooLong { .. })));
    let refused_before = session.logits().unwrap();
    let mut fresh = model.session(options).unwrap();
    fresh.prefill(&[1, 2, 3, 4, 5, 6]).unwrap();
    assert_eq!(refused_before, fresh.logits().unwrap());
    assert_eq!(session.decode_greedy(5, &mut |_| true).unwrap(), 5);

    // stopped between chunks of one token each, and taken up again
    let mut stopped = model.session(SessionOptions { chunk: 2, ..options }).unwrap();
    let mut seen = Vec::new();
    let done = stopped.prefill_while(&[1, 2, 3, 4, 5, 6], &mut |done| {
        seen.push(done);
        done < 2
    });
    assert_eq!((done.unwrap(), stopped.len(), seen), (2, 2, vec![1, 2]));
    stopped.prefill(&[3, 6]).unwrap();
    let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-4 * a.abs().max(1.0);
    assert!(stopped.logits().unwrap().iter().zip(&refused_before).all(close), "as if it had not stopped");
}

/// A change to a file: where, and the bytes that take the place of how many.
type Change = (usize, usize, Vec<u8>);

fn changed(mut bytes: Vec<u8>, within: usize, changes: &[Change]) -> Vec<u8> {
    for (at, n, new) in changes {
        let at = at % within.min(bytes.len()).max(1);
        let end = (at + n).min(bytes.len());
        bytes.splice(at..end, new.iter().copied());
    }
    bytes
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let new = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..3),
        "[0-9]{1,3}".prop_map(String::into_bytes),
        prop::sample::select(vec!["null", "-1", "\"\"", "{}", "[]", "4294967295", "0.0", "1e39", "true"])
            .prop_map(|s| s.as_bytes().to_vec()),
    ];
    prop::collection::vec((any::<usize>(), 0..3usize, new), 1..4)
}

fn cases(default: u32) -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(default);
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases(200))]

    #[test]
    fn damaged_folders_load_or_are_refused(
        name in prop::sample::select(vec!["qwen2", "sharded", "mixtral_fused", "gpt_oss_mxfp4", "gemma3_text"]),
        file in prop::sample::select(vec!["config.json", "model.safetensors", "model.safetensors.index.json"]),
        changes in changes(),
    ) {
        let dir = copy(name);
        let path = dir.path().join(file);
        let Ok(bytes) = fs::read(&path) else { return Ok(()) };
        // of weights, the header
        let within = if file == "model.safetensors" { 4000 } else { bytes.len() };
        fs::write(&path, changed(bytes, within, &changes)).unwrap();
        match load(dir.path(), DType::F32) {
            Ok(model) => {
                // whatever became of it, it runs
                let capacity = model.geometry().max_positions.min(8);
                let mut session = model.session(SessionOptions { parallel: 1, capacity, chunk: 8 }).unwrap();
                let ids: Vec<u32> = (0..capacity as u32).map(|i| i % model.geometry().vocab as u32).collect();
                let _ = session.prefill(&ids);
            }
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }

    #[test]
    fn damaged_tokenizers_are_refused_or_work(changes in changes(), text in "\\PC{0,12}") {
        let json = changed(TOKENIZER.as_bytes().to_vec(), TOKENIZER.len(), &changes);
        if let Ok(tokenizer) = Tokenizer::from_json(&json, 7)
            && let Ok(ids) = tokenizer.encode(&text)
        {
            prop_assert!(ids.iter().all(|&id| id < 7));
            let _ = tokenizer.decode(&ids);
            let mut stream = tokenizer.stream();
            ids.iter().for_each(|&id| drop(stream.push(id)));
        }
    }
}

const TOKENIZER: &str = r#"{
    "version": "1.0", "truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
    "padding": null, "normalizer": {"type": "NFC"},
    "added_tokens": [{"id": 6, "content": "<eos>", "single_word": false, "lstrip": false, "rstrip": false,
                      "normalized": false, "special": true}],
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
    "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<eos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                       "pair": [], "special_tokens": {"<eos>": {"id": "<eos>", "ids": [6], "tokens": ["<eos>"]}}},
    "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
    "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
              "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
              "vocab": {"a": 0, "b": 1, "ab": 2, "Ġ": 3, "Ã": 4, "©": 5}, "merges": ["a b"]}
}"#;
