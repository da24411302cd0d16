//! Models against what another framework computed from the same checkpoints in f64.

use std::path::{Path, PathBuf};

use perjoule::DType;
use perjoule_kernels::KvLayout;
use perjoule_kernels::op::{KvAppend, Spec};
use perjoule_model::weights::Checkpoint;
use perjoule_model::{Error, LoadOptions, Model, SessionOptions, Source};

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
        check_on(&device, name, &LoadOptions::new(dtype), bound, greedy);
    }
}

/// Exact weights beside a rounded cache, which has to be seen in the logits, within `bound`.
fn check_cache(name: &str, kv_dtype: DType, bound: f64, greedy: bool) {
    let options = LoadOptions { kv_dtype: Some(kv_dtype), ..LoadOptions::new(DType::F32) };
    for device in devices() {
        let error = check_on(&device, name, &options, bound, greedy);
        assert!(error > 1e-5, "{name}: a cache in {kv_dtype} rounds nothing: {error:e}");
    }
}

/// How far a cache in q8_0 may move the logits; none where heads are no whole blocks.
fn q8_0_bound(name: &str) -> Option<f64> {
    let head_dim = source(&folder().join(name), DType::F32).geometry().head_dim;
    // of gpt-oss a few of 48 tokens are off by up to 0.4, as if a close decision of a router tipped (not traced); the median one by 8e-3
    let bound = if name == "gpt-oss" { 0.2 } else { 3e-2 };
    head_dim.is_multiple_of(32).then_some(bound)
}

/// Loading says that there is no such cache.
fn check_refused(name: &str, kv_dtype: DType) {
    let options = LoadOptions { kv_dtype: Some(kv_dtype), ..LoadOptions::new(DType::F32) };
    let device = perjoule::open("cpu").unwrap();
    let loaded = Model::load(&device, &source(&folder().join(name), DType::F32), &options);
    assert!(matches!(loaded, Err(Error::KvDtype { .. })), "{name}: a cache in {kv_dtype} was taken");
}

/// Gives the largest error.
fn check_on(device: &perjoule::Device, name: &str, load: &LoadOptions<'_>, bound: f64, greedy: bool) -> f64 {
    let dir = folder().join(name);
    let want = expected(&dir);
    let dtype = load.dtype.unwrap();
    let source = source(&dir, dtype);
    let model = Model::load(device, &source, load).unwrap();
    let name = &format!("{name} on {}, cache in {}", device.info().label, model.kv_dtype());
    let mut largest: f64 = 0.0;
    let mut within = |got: &[f32], want: &[f32], what: &str| {
        let error = rel_err(got, want);
        assert!(error <= bound, "{name} {dtype}: {what} is off by {error:e}");
        largest = largest.max(error);
    };
    let capacity = 40;
    let options = |parallel, chunk| SessionOptions { parallel, capacity, chunk };

    let mut whole = model.session(options(want.batch, 512)).unwrap();
    within(&whole.prefill_all(&want.ids).unwrap(), &want.logits, "prefill");

    let mut chunked = model.session(options(want.batch, 2 * 7)).unwrap();
    within(&chunked.prefill_all(&want.ids).unwrap(), &want.logits, "prefill in chunks");

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
    within(&logits, &want.logits, "batched decode");

    // one row alone, token by token
    let mut alone = model.session(options(1, 512)).unwrap();
    let mut logits = Vec::new();
    for &id in &want.ids[..want.len] {
        alone.decode(&[id]).unwrap();
        logits.extend(alone.logits().unwrap());
    }
    within(&logits, &want.logits[..want.len * want.vocab], "decode");

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
    largest
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
            #[test]
            fn f16_cache() {
                super::check_cache($name, super::DType::F16, 2e-3, true);
            }
            #[test]
            fn bf16_cache() {
                super::check_cache($name, super::DType::BF16, 2e-2, false);
            }
            #[test]
            fn q8_0_cache() {
                match super::q8_0_bound($name) {
                    Some(bound) => super::check_cache($name, super::DType::Q8_0, bound, false),
                    None => super::check_refused($name, super::DType::Q8_0),
                }
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

/// Loading refuses what the ops would refuse, before it reads or allocates anything.
#[test]
fn caches_that_cannot_be_are_refused_at_once() {
    let device = perjoule::open("cpu").unwrap();
    for (name, head_dim) in [("llama", 16), ("qwen3", 32)] {
        let source = source(&folder().join(name), DType::F32);
        for kv_dtype in DType::ALL {
            let layout = KvLayout::contiguous(2, 8, head_dim);
            let op = KvAppend { kv_dtype, ..KvAppend::dense(1, 1, layout, DType::F32) };
            let progress = |_, _| panic!("something was loaded");
            let options = LoadOptions {
                kv_dtype: Some(kv_dtype),
                progress: op.validate().is_err().then_some(&progress),
                ..LoadOptions::new(DType::F32)
            };
            match (Model::load(&device, &source, &options), op.validate()) {
                (Ok(model), Ok(())) => assert_eq!(model.kv_dtype(), kv_dtype),
                (Err(error @ Error::KvDtype { .. }), Err(_)) => {
                    let text = error.to_string();
                    assert!(
                        text.contains(&format!("cannot be {kv_dtype} where heads have {head_dim}")),
                        "{text}"
                    );
                }
                (loaded, op) => panic!("{name} {kv_dtype}: {:?} and {op:?}", loaded.err()),
            }
        }
    }
}

#[test]
fn the_memory_estimate_is_that_of_the_cache() {
    let source = source(&folder().join("qwen3"), DType::F32);
    let g = source.geometry();
    // keys and values of each layer
    let elements = 2 * g.layers.len() * g.kv_heads * g.head_dim * 40 * 3;
    for (kv_dtype, bits) in [(DType::F32, 32.0), (DType::F16, 16.0), (DType::BF16, 16.0), (DType::Q8_0, 8.5)]
    {
        let need = source.memory_needed(Some(DType::F32), kv_dtype, 40, 3);
        assert_eq!(need.kv_cache as f64, elements as f64 * bits / 8.0, "{kv_dtype}");
    }
    let chosen = |dtype| source.kv_dtype(Some(dtype), None).unwrap();
    assert_eq!([DType::BF16, DType::Q4K, DType::Q8_0].map(chosen), [DType::BF16, DType::F16, DType::F16]);
}
