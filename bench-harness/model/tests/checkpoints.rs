//! The golden checkpoints: every tensor is found, shaped and readable, and damaged copies are refused with the name of what is wrong.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use perjoule_model::config::{Geometry, RopeScaling};
use perjoule_model::error::Error;
use perjoule_model::weights::{Checkpoint, FileDType, Role, Stored, Weight, plan};

const ALL: [&str; 14] = [
    "llama",
    "qwen3",
    "gpt-oss",
    "mistral",
    "qwen2",
    "qwen3_moe",
    "mixtral",
    "qwen3_moe_fused",
    "mixtral_fused",
    "llama_gelu",
    "gemma3_text",
    "llama3_rope",
    "gpt_oss_mxfp4",
    "sharded",
];

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

#[test]
fn plans_use_every_tensor_once() {
    for name in ALL {
        let geometry = Geometry::from_dir(&golden(name)).unwrap();
        let checkpoint = Checkpoint::open(&golden(name)).unwrap();
        let plan = plan(&geometry, &checkpoint).unwrap_or_else(|e| panic!("{name}: {e}"));
        // the second half of a tensor counts with the first
        let whole = |w: &&Weight| !matches!(w.stored, Stored::Half { second: true, .. });
        let used: Vec<&str> = plan.weights().iter().filter(whole).flat_map(|w| w.stored.names()).collect();
        let distinct: BTreeSet<&str> = used.iter().copied().collect();
        assert_eq!(used.len(), distinct.len(), "{name}");
        let held: BTreeSet<&str> = checkpoint.tensors().map(|(tensor, _)| tensor).collect();
        assert_eq!(distinct, held, "{name}");
        // Two codes a byte in `_blocks`; `_scales` are no parameters.
        let stored: u64 = checkpoint
            .tensors()
            .map(|(tensor, t)| {
                t.shape.iter().map(|&s| s as u64).product::<u64>()
                    * match tensor {
                        t if t.ends_with("_blocks") => 2,
                        t if t.ends_with("_scales") => 0,
                        _ => 1,
                    }
            })
            .sum();
        assert_eq!(geometry.n_params(), stored, "{name}");
    }
}

#[test]
fn layouts_are_those_of_the_files() {
    let stored = |name: &str, role, layer| {
        let dir = golden(name);
        let plan = plan(&Geometry::from_dir(&dir).unwrap(), &Checkpoint::open(&dir).unwrap()).unwrap();
        plan.find(role, layer).map(|w| (w.stored.clone(), w.shape.shape.clone()))
    };
    let experts = "model.layers.1.mlp.experts";
    assert_eq!(
        stored("gpt-oss", Role::ExpertGateUp, Some(1)),
        Some((Stored::Transposed(format!("{experts}.gate_up_proj")), vec![8, 256, 128]))
    );
    let mxfp4 = Stored::Mxfp4 {
        blocks: format!("{experts}.down_proj_blocks"),
        scales: format!("{experts}.down_proj_scales"),
    };
    assert_eq!(stored("gpt_oss_mxfp4", Role::ExpertDown, Some(1)), Some((mxfp4, vec![4, 64, 64])));
    let per_expert =
        (0..4).map(|e| format!("model.layers.0.block_sparse_moe.experts.{e}.w3.weight")).collect();
    assert_eq!(
        stored("mixtral", Role::ExpertUp, Some(0)),
        Some((Stored::PerExpert(per_expert), vec![4, 96, 64]))
    );
    for name in ["qwen3_moe_fused", "mixtral_fused"] {
        let half = |second| Stored::Half { name: format!("{experts}.gate_up_proj"), second };
        assert_eq!(stored(name, Role::ExpertGate, Some(1)), Some((half(false), vec![4, 48, 32])));
        assert_eq!(stored(name, Role::ExpertUp, Some(1)), Some((half(true), vec![4, 48, 32])));
        let down = Stored::Plain(format!("{experts}.down_proj"));
        assert_eq!(stored(name, Role::ExpertDown, Some(1)), Some((down, vec![4, 32, 48])));
    }
    let norm = |name: &str| Some((Stored::Plain(format!("model.layers.0.{name}.weight")), vec![64]));
    assert_eq!(stored("gemma3_text", Role::FfnNorm, Some(0)), norm("pre_feedforward_layernorm"));
    assert_eq!(stored("gemma3_text", Role::PostAttnNorm, Some(0)), norm("post_attention_layernorm"));
    assert_eq!(stored("mistral", Role::FfnNorm, Some(0)), norm("post_attention_layernorm"));
    assert_eq!(stored("qwen3", Role::Head, None), None);
    assert!(stored("llama", Role::Head, None).is_some());
}

#[test]
fn the_older_dialect_is_read_from_a_folder() {
    let g = Geometry::from_dir(&golden("llama3_rope")).unwrap();
    assert_eq!(g.ropes[0].theta, 500_000.0);
    assert!(matches!(g.ropes[0].scaling, RopeScaling::Llama3 { original_max: 32, .. }));
    let g = Geometry::from_dir(&golden("gpt_oss_mxfp4")).unwrap();
    assert!(matches!(g.ropes[0].scaling, RopeScaling::Yarn { truncate: false, original_max: 4096, .. }));
}

#[test]
fn expected_files_read_as_numbers() {
    for name in ALL {
        let vocab = Geometry::from_dir(&golden(name)).unwrap().vocab;
        let expected = Checkpoint::open_file(&golden(name).join("expected.safetensors")).unwrap();
        assert_eq!(expected.tensor("logits").unwrap().shape, [2, 24, vocab]);
        let logits = expected.read_f32("logits").unwrap();
        assert!(logits.len() == 2 * 24 * vocab && logits.iter().all(|x| x.is_finite()));
        let ids = expected.read_i32("input_ids").unwrap();
        let greedy = expected.read_i32("greedy_ids").unwrap();
        assert_eq!((ids.len(), greedy.len(), &greedy[..8]), (48, 32, &ids[..8]));
        // The first generated id follows from the logits of position 7: masks are causal.
        let row = &logits[7 * vocab..8 * vocab];
        let best = row.iter().position(|&x| x == row.iter().copied().fold(f32::MIN, f32::max));
        assert_eq!(best, Some(greedy[8] as usize), "{name}");
    }
}

#[test]
fn ranges_join_to_the_whole_from_many_threads() {
    let checkpoint = Checkpoint::open(&golden("sharded")).unwrap();
    std::thread::scope(|scope| {
        for (name, info) in checkpoint.tensors() {
            assert_eq!(info.dtype, FileDType::BF16);
            let checkpoint = &checkpoint;
            scope.spawn(move || {
                let whole = checkpoint.read(name).unwrap();
                let mut parts = vec![0; whole.len()];
                for (i, part) in parts.chunks_mut(100).enumerate() {
                    let start = 100 * i as u64;
                    checkpoint.read_range(name, start..start + part.len() as u64, part).unwrap();
                }
                assert_eq!(whole, parts);
            });
        }
    });
    let name = "model.norm.weight";
    let mut buffer = [0; 4];
    for range in [126..130, 0..3, u64::MAX - 1..u64::MAX] {
        let error = checkpoint.read_range(name, range, &mut buffer).unwrap_err();
        assert!(matches!(error, Error::Range { len: 128, .. }), "{error}");
    }
    assert!(matches!(checkpoint.read("model.norm.bias"), Err(Error::MissingTensor { .. })));
}

#[test]
fn a_file_truncated_while_open_is_an_error() {
    let dir = copy("mistral");
    let path = dir.path().join("model.safetensors");
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(20_000).unwrap();
    let error = checkpoint.read("model.norm.weight").unwrap_err();
    assert!(matches!(error, Error::Io { .. }) && error.to_string().contains("model.safetensors"), "{error}");
    let error = Checkpoint::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("truncated"), "{error}");
}

#[test]
fn shards_that_lie_or_lack_are_named() {
    let dir = copy("sharded");
    let index = dir.path().join("model.safetensors.index.json");
    let text = fs::read_to_string(&index).unwrap();
    let open = |text: &str| {
        fs::write(&index, text).unwrap();
        Checkpoint::open(dir.path()).unwrap_err().to_string()
    };
    let escaped = open(&text.replace("model-00001-of-00003", "../model-00001-of-00003"));
    assert!(escaped.contains("../model-00001") && escaped.contains("beside the index"), "{escaped}");
    let lacking = open(&text.replace("model.norm.weight", "model.norm.extra"));
    assert!(lacking.contains("model.norm.extra") && lacking.contains("-of-00003.safetensors"), "{lacking}");
    let absent = open(&text.replace("model-00003-of-00003", "model-00004-of-00003"));
    assert!(absent.contains("model-00004-of-00003.safetensors"), "{absent}");
    let empty = tempfile::tempdir().unwrap();
    assert!(Checkpoint::open(empty.path()).unwrap_err().to_string().contains("neither"));
    assert!(Geometry::from_dir(empty.path()).unwrap_err().to_string().contains("config.json"));
}

#[test]
fn every_misfit_is_listed() {
    let dir = copy("qwen2");
    let config = fs::read_to_string(dir.path().join("config.json")).unwrap();
    let other = config
        .replace("\"intermediate_size\": 96", "\"intermediate_size\": 80")
        .replace("\"qwen2\"", "\"qwen3\"");
    let error = Geometry::from_json(other.as_bytes())
        .and_then(|g| plan(&g, &Checkpoint::open(dir.path()).unwrap()).map(|_| ()))
        .unwrap_err()
        .to_string();
    for says in [
        "layers.0.mlp.gate_proj.weight has shape [96, 64], not [80, 64]",
        "layers.1.self_attn.q_norm.weight is missing",
    ] {
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn a_wrong_dtype_is_a_misfit() {
    let dir = copy("qwen2");
    let path = dir.path().join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let needle = br#""model.norm.weight":{"dtype":"F32""#;
    let at = bytes.windows(needle.len()).position(|w| w == needle).unwrap();
    bytes[at + needle.len() - 4..at + needle.len() - 1].copy_from_slice(b"I32");
    fs::File::create(&path).unwrap().write_all(&bytes).unwrap();
    let geometry = Geometry::from_dir(dir.path()).unwrap();
    let error = plan(&geometry, &Checkpoint::open(dir.path()).unwrap()).unwrap_err().to_string();
    assert!(error.contains("model.norm.weight has dtype I32"), "{error}");
}
