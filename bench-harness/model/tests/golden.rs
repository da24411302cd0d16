//! Models against what another framework computed from the same checkpoints in f64.

use std::path::{Path, PathBuf};

use perjoule::DType;
use perjoule_model::weights::Checkpoint;
use perjoule_model::{LoadOptions, Model, SessionOptions, Source};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/checkpoints")
}

struct Expected {
    ids: Vec<u32>,
    batch: usize,
    len: usize,
    vocab: usize,
    logits: Vec<f32>,
    greedy: Vec<u32>,
}

fn expected(dir: &Path) -> Expected {
    let file = Checkpoint::open_file(&dir.join("expected.safetensors")).unwrap();
    let shape = file.tensor("logits").unwrap().shape.clone();
    let ids = |name: &str| file.read_i32(name).unwrap().into_iter().map(|id| id as u32).collect::<Vec<_>>();
    Expected {
        ids: ids("input_ids"),
        batch: shape[0],
        len: shape[1],
        vocab: shape[2],
        logits: file.read_f32("logits").unwrap(),
        greedy: ids("greedy_ids"),
    }
}

/// Norm of the difference over the norm of the reference.
fn rel_err(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let sum = |f: &dyn Fn(f64, f64) -> f64| -> f64 {
        got.iter().zip(want).map(|(&g, &w)| f(f64::from(g), f64::from(w))).sum()
    };
    (sum(&|g, w| (g - w) * (g - w)) / sum(&|_, w| w * w)).sqrt()
}

/// The CPU, and what else is here: an adapter of WebGPU, a GPU.
fn devices() -> Vec<perjoule::Device> {
    let labels = ["cpu", "webgpu:0", "cuda:0"];
    let (found, absent) = perjoule::devices();
    let required = std::env::var("PERJOULE_REQUIRE").unwrap_or_default();
    for absent in absent {
        assert!(
            !required.split(',').any(|name| name == absent.backend),
            "{}: {}",
            absent.backend,
            absent.reason
        );
    }
    let here = found.into_iter().filter(|info| labels.contains(&info.label.as_str()));
    here.map(|info| perjoule::open(&info.label).unwrap()).collect()
}

fn source(dir: &Path, dtype: DType) -> Source {
    Source::checkpoint(dir).unwrap_or_else(|e| panic!("{}: {e} ({dtype})", dir.display()))
}

/// Prefill of both rows at once, in odd chunks; token by token; and greedy continuation, all against the reference.
fn check(name: &str, dtype: DType, bound: f64, greedy: bool) {
    for device in devices() {
        check_on(&device, name, dtype, bound, greedy);
    }
}

fn check_on(device: &perjoule::Device, name: &str, dtype: DType, bound: f64, greedy: bool) {
    let dir = folder().join(name);
    let want = expected(&dir);
    let source = source(&dir, dtype);
    let name = &format!("{name} on {}", device.info().label);
    let model = Model::load(device, &source, &LoadOptions::new(dtype)).unwrap();
    let capacity = 40;
    let options = |parallel, chunk| SessionOptions { parallel, capacity, chunk };

    let mut whole = model.session(options(want.batch, 512)).unwrap();
    let error = rel_err(&whole.prefill_all(&want.ids).unwrap(), &want.logits);
    assert!(error <= bound, "{name} {dtype}: prefill is off by {error:e}");

    let mut chunked = model.session(options(want.batch, 2 * 7)).unwrap();
    let error = rel_err(&chunked.prefill_all(&want.ids).unwrap(), &want.logits);
    assert!(error <= bound, "{name} {dtype}: prefill in chunks is off by {error:e}");

    // batched decode: one token of each row a step
    let mut stepped = model.session(options(want.batch, 512)).unwrap();
    let mut logits = vec![0.0; want.logits.len()];
    for t in 0..want.len {
        let ids: Vec<u32> = (0..want.batch).map(|b| want.ids[b * want.len + t]).collect();
        stepped.decode(&ids).unwrap();
        for (b, row) in stepped.logits().unwrap().chunks_exact(want.vocab).enumerate() {
            let at = (b * want.len + t) * want.vocab;
            logits[at..at + want.vocab].copy_from_slice(row);
        }
    }
    let error = rel_err(&logits, &want.logits);
    assert!(error <= bound, "{name} {dtype}: batched decode is off by {error:e}");

    // one row alone, token by token
    let mut alone = model.session(options(1, 512)).unwrap();
    let mut logits = Vec::new();
    for &id in &want.ids[..want.len] {
        alone.decode(&[id]).unwrap();
        logits.extend(alone.logits().unwrap());
    }
    let error = rel_err(&logits, &want.logits[..want.len * want.vocab]);
    assert!(error <= bound, "{name} {dtype}: decode is off by {error:e}");

    if greedy {
        let prompt = 8;
        let mut session = model.session(options(1, 512)).unwrap();
        session.prefill(&want.greedy[..prompt]).unwrap();
        let mut ids = session.greedy().unwrap();
        let more = want.greedy.len() - prompt - 1;
        let steps = session
            .decode_greedy(more, &mut |chosen| {
                ids.extend(chosen);
                true
            })
            .unwrap();
        assert_eq!(steps, more);
        assert_eq!(ids, want.greedy[prompt..], "{name} {dtype}: greedy ids");
    }
}

macro_rules! checkpoints {
    ($($test:ident $name:literal;)*) => {
        $(mod $test {
            #[test]
            fn f32() {
                super::check($name, super::DType::F32, 1e-5, true);
            }
            #[test]
            fn bf16() {
                super::check($name, super::DType::BF16, 3e-2, false);
            }
            #[test]
            fn f16() {
                super::check($name, super::DType::F16, 3e-2, false);
            }
        })*

        #[test]
        fn every_checkpoint_is_tested() {
            let tested = [$($name),*];
            for entry in std::fs::read_dir(folder()).unwrap() {
                let name = entry.unwrap().file_name().into_string().unwrap();
                assert!(tested.contains(&name.as_str()), "no test of {name}");
            }
        }
    };
}

checkpoints! {
    llama "llama";
    qwen3 "qwen3";
    gpt_oss "gpt-oss";
    gpt_oss_mxfp4 "gpt_oss_mxfp4";
    llama3_rope "llama3_rope";
    mistral "mistral";
    qwen2 "qwen2";
    qwen3_moe "qwen3_moe";
    mixtral "mixtral";
    qwen3_moe_fused "qwen3_moe_fused";
    mixtral_fused "mixtral_fused";
    llama_gelu "llama_gelu";
    gemma3_text "gemma3_text";
    sharded "sharded";
}

#[test]
fn a_quantised_model_stays_close() {
    let dir = folder().join("llama");
    let want = expected(&dir);
    for (dtype, bound) in [(DType::Q8_0, 3e-2), (DType::Q4_0, 0.4)] {
        let source = source(&dir, dtype);
        for device in devices() {
            let model = Model::load(&device, &source, &LoadOptions::new(dtype)).unwrap();
            let options = SessionOptions { parallel: want.batch, capacity: want.len, chunk: 512 };
            let mut session = model.session(options).unwrap();
            let error = rel_err(&session.prefill_all(&want.ids).unwrap(), &want.logits);
            assert!(error <= bound, "{dtype} on {} is off by {error:e}", device.info().label);
        }
    }
}
