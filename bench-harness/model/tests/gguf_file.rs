//! The format of GGUF files: one that the official package wrote, and everything that can be wrong with one.

mod support;

use std::collections::BTreeMap;
use std::path::Path;

use perjoule::DType;
use perjoule_kernels::block;
use perjoule_model::gguf::{Gguf, Value, parse};
use perjoule_model::{LoadOptions, Model, SessionOptions, Source};
use proptest::prelude::*;
use support::{T, V, Writer, convert, text};

fn official() -> Gguf {
    Gguf::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/files/official.gguf")).unwrap()
}

#[test]
fn values_are_those_that_the_official_package_wrote() {
    let file = official();
    let get = |key: &str| file.metadata[key].clone();
    let list = |values: &[i64]| Value::Array(values.iter().map(|v| Value::Signed(*v)).collect());
    let expected: BTreeMap<&str, Value> = [
        ("a.u8", Value::Unsigned(200)),
        ("a.i8", Value::Signed(-100)),
        ("a.u16", Value::Unsigned(60_000)),
        ("a.i16", Value::Signed(-30_000)),
        ("a.u32", Value::Unsigned(4_000_000_000)),
        ("a.i32", Value::Signed(-2_000_000_000)),
        ("a.u64", Value::Unsigned((1 << 63) + 1)),
        ("a.i64", Value::Signed(-(1 << 62))),
        ("a.f32", Value::Float(f64::from(0.1f32))),
        ("a.f64", Value::Float(0.1)),
        ("a.yes", Value::Bool(true)),
        ("a.text", Value::Text("größer ▁ \n".into())),
        ("a.numbers", list(&[1, -2, 3])),
        ("a.texts", Value::Array(["", "ab", "▁c"].map(|s| Value::Text(s.into())).to_vec())),
        ("a.nested", Value::Array(vec![list(&[1, 2]), list(&[3])])),
        ("a.flags", Value::Array(vec![Value::Bool(true), Value::Bool(false)])),
        ("general.alignment", Value::Unsigned(64)),
        ("general.architecture", Value::Text("llama".into())),
    ]
    .into();
    expected.iter().for_each(|(key, value)| assert_eq!(get(key), *value, "{key}"));
    assert_eq!(file.metadata.len(), expected.len());
}

#[test]
fn tensors_hold_what_the_official_package_reads_in_them() {
    let file = official();
    let mut seen = Vec::new();
    for (name, info) in file.checkpoint.tensors().filter(|(name, _)| !name.ends_with("expected")) {
        assert_eq!((info.shape.as_slice(), info.dtype.to_string().as_str()), (&[3, 512][..], name));
        let dtype = info.dtype.dtype().unwrap();
        let mut got = vec![0.0; 3 * 512];
        block::decode(dtype, &file.checkpoint.read(name).unwrap(), &mut got).unwrap();
        let want = file.checkpoint.read_f32(&format!("{name}.expected")).unwrap();
        // sums of a scale and a minimum may round once more
        let close = |(g, w): (&f32, &f32)| (g - w).abs() <= 1e-6 * w.abs().max(1e-3);
        assert!(got.iter().zip(&want).all(close), "{name}");
        seen.push(dtype);
    }
    assert_eq!(seen.len(), 8);
}

fn tiny() -> Writer {
    let mut w = Writer::default();
    w.key("general.architecture", text("llama"));
    w.tensor("a", &[2, 32], DType::Q8_0, &[0.5; 64]);
    w.tensor("b", &[3], DType::F32, &[0.5; 3]);
    w
}

fn refused(bytes: &[u8]) -> String {
    let error = parse(bytes, bytes.len() as u64).unwrap_err();
    assert_eq!(error.lines().count(), 1, "{error}");
    error
}

/// The bytes of a file in which `from` is replaced, once, by as many others.
fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let at = bytes.windows(from.len()).position(|w| w == from).expect("it is there");
    let mut bytes = bytes.to_vec();
    bytes[at..at + to.len()].copy_from_slice(to);
    bytes
}

#[test]
fn every_truncation_is_seen_at_open() {
    let whole = tiny().bytes();
    // the last tensor has 12 bytes, and padding behind them may be missing
    for len in 0..whole.len() - 20 {
        let error = refused(&whole[..len]);
        assert!(error.contains("truncated") || error.contains("GGUF"), "{len}: {error}");
    }
    assert!(parse(&whole[..whole.len() - 20], whole.len() as u64 - 20).is_ok());
}

#[test]
fn lies_are_refused_by_name() {
    let whole = tiny().bytes();
    let with = |change: &dyn Fn(&mut Writer)| {
        let mut w = tiny();
        change(&mut w);
        w.bytes()
    };
    let one = |kind: u32, shape: &[usize], bytes: usize| {
        let tensor = T { name: "c".into(), shape: shape.to_vec(), kind, bytes: vec![0; bytes] };
        Writer { keys: Vec::new(), tensors: vec![tensor] }.bytes()
    };
    let count = |at: usize, n: u64| {
        let mut bytes = whole.clone();
        bytes[at..at + 8].copy_from_slice(&n.to_le_bytes());
        bytes
    };
    let version = |v: [u8; 4]| replaced(&whole, b"GGUF\x03\0\0\0", &[b"GGUF", &v[..]].concat());
    for (bytes, says) in [
        (replaced(&whole, b"GGUF", b"GGML"), "does not begin with \"GGUF\""),
        (version([0, 0, 0, 3]), "big-endian"),
        (version([1, 0, 0, 0]), "version 1"),
        (version([9, 0, 0, 0]), "version 9"),
        (count(8, u64::MAX), "claims 18446744073709551615 tensors"),
        (count(16, 1 << 40), "keys"),
        (count(24, 1 << 40), "key 0 of 1: a text claims"),
        (
            replaced(&whole, b"\x08\0\0\0\x05\0", b"\x0d\0\0\0\x05\0"),
            "key \"general.architecture\": its value has type 13",
        ),
        (
            replaced(&whole, b"llama", b"\xff\xfe\xff\xff\xff"),
            "key \"general.architecture\": a text is not UTF-8",
        ),
        (with(&|w| w.keys.push(w.keys[0].clone())), "key \"general.architecture\" comes twice"),
        (with(&|w| w.key("general.alignment", V::U32(24))), "general.alignment"),
        (with(&|w| w.tensor("a", &[1], DType::F32, &[0.0])), "tensor \"a\" comes twice"),
        (one(13, &[256], 176), "tensor \"c\": its type Q5_K is not supported: F32, F16"),
        (one(23, &[256], 136), "IQ4_XS is not supported"),
        (one(99, &[256], 136), "its type 99 is not known"),
        (one(8, &[2, 16], 34), "whole blocks of Q8_0"),
        (one(0, &[1, 1, 1, 1, 1], 4), "5 dimensions"),
        (one(0, &[0], 0), "size of 0"),
        (one(0, &[1 << 40, 1 << 40], 0), "overflows"),
        (one(0, &[1 << 40], 64), "truncated"),
        // a second tensor that begins in the first, behind a hole, and not aligned
        (replaced(&whole, &96u64.to_le_bytes(), &64u64.to_le_bytes()), "tensor \"b\" overlaps"),
        (replaced(&whole, &96u64.to_le_bytes(), &128u64.to_le_bytes()), "tensor \"b\" leaves a hole"),
        (replaced(&whole, &96u64.to_le_bytes(), &97u64.to_le_bytes()), "tensor \"b\": it begins at 97"),
    ] {
        let error = refused(&bytes);
        assert!(error.contains(says), "{says}: {error}");
    }
}

fn open(w: &Writer) -> Result<Source, perjoule_model::Error> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    std::fs::write(&path, w.bytes()).unwrap();
    Source::open(path.to_str().unwrap(), 0)
}

#[test]
fn models_that_are_none_are_refused_by_key() {
    let without = |name: &str| {
        let mut w = convert("llama", 0, |_| DType::F32);
        w.keys.retain(|(key, _)| key != name);
        w
    };
    let with = |name: &str, value: V| {
        let mut w = convert("llama", 0, |_| DType::F32);
        w.key(name, value);
        w
    };
    let mut vocabulary = with("a", V::U32(1));
    vocabulary.tensors.clear();
    let mut lacking = with("a", V::U32(1));
    lacking.tensors.retain(|t| t.name != "blk.1.attn_q.weight");
    let mut integers = with("a", V::U32(1));
    let t = integers.tensors.iter_mut().find(|t| t.name == "output_norm.weight").unwrap();
    t.kind = 26;
    for (w, says) in [
        (
            with("general.architecture", text("mamba")),
            "architecture \"mamba\" is not supported: known are llama, qwen2",
        ),
        (without("general.architecture"), "\"general.architecture\" is missing"),
        (without("llama.block_count"), "llama.block_count is missing"),
        (without("llama.attention.layer_norm_rms_epsilon"), "layer_norm_rms_epsilon is missing"),
        (with("llama.block_count", text("two")), "llama.block_count must be a whole number"),
        (with("llama.block_count", V::U32(u32::MAX)), "llama.block_count is 4294967295"),
        (with("llama.attention.value_length", V::U32(8)), "value_length differs"),
        (with("llama.attention.head_count_kv", V::Ints(vec![2, 4])), "differs from layer to layer"),
        (with("llama.rope.scaling.type", text("longrope")), "\"longrope\" is not supported"),
        (with("llama.rope.dimension_count", V::U32(7)), "rotary_dim"),
        (with("split.count", V::U32(3)), "one of 3 parts: join them"),
        (vocabulary, "holds a vocabulary and no weights"),
        (lacking, "blk.1.attn_q.weight is missing"),
        (integers, "output_norm.weight has dtype I32, not F32, F16 or BF16"),
    ] {
        let error = open(&w).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(says) && error.contains("x.gguf"), "{says}: {error}");
    }
    let error = Source::open("/nowhere/model.gguf", 0).unwrap_err().to_string();
    assert!(error.contains("cannot read /nowhere/model.gguf"), "{error}");
}

#[test]
fn scales_that_are_nan_are_named() {
    for (dtype, at) in [(DType::Q8_0, 0), (DType::Q4_0, 0), (DType::MxFp4, 0)] {
        let mut w = convert("llama", 0, |_| dtype);
        let t = w.tensors.iter_mut().find(|t| t.name == "blk.1.ffn_up.weight").unwrap();
        t.bytes[at..at + 2].copy_from_slice(&[0xff, 0x7f]);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.gguf");
        std::fs::write(&path, w.bytes()).unwrap();
        let source = Source::checkpoint(&path).unwrap();
        let device = perjoule::open("cpu").unwrap();
        let error = Model::load(&device, &source, &LoadOptions::stored()).err().unwrap().to_string();
        assert!(error.contains("\"blk.1.ffn_up.weight\" holds NaN or infinity"), "{dtype}: {error}");
    }
}

#[test]
fn vocabularies_become_tokenizers() {
    let ids = |w: &mut Writer, model: &str, tokens: &[&str], kinds: &[i32]| {
        w.key("tokenizer.ggml.model", text(model));
        w.key("tokenizer.ggml.tokens", V::Texts(tokens.iter().map(|s| (*s).into()).collect()));
        w.key("tokenizer.ggml.token_type", V::Ints(kinds.to_vec()));
    };
    let mut w = convert("llama", 0, |_| DType::F32);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    let tokenizer = |w: &Writer| {
        std::fs::write(&path, w.bytes()).unwrap();
        Source::checkpoint(&path).unwrap().tokenizer()
    };
    assert!(tokenizer(&w).unwrap_err().to_string().contains("no tokenizer: give token ids with --ids"));
    // bytes as their printable stand-ins
    ids(&mut w, "gpt2", &["a", "b", "ab", "Ġ", "Ã", "©", "<eos>", "1", "11"], &[1, 1, 1, 1, 1, 1, 3, 1, 1]);
    w.key("tokenizer.ggml.merges", V::Texts(vec!["a b".into(), "1 1".into()]));
    w.key("tokenizer.ggml.bos_token_id", V::U32(6));
    for (pre, text, want) in [
        ("gpt-2", "ab é11", &[2, 3, 4, 5, 8][..]),
        ("smollm", "ab é11", &[2, 3, 4, 5, 7, 7]),
        ("qwen2", "ab é11", &[2, 3, 4, 5, 7, 7]),
        // e and its accent, composed first
        ("qwen2", "e\u{301}", &[4, 5]),
        ("llama-bpe", "ab é11", &[6, 2, 3, 4, 5, 8]),
        ("tekken", "ab é11", &[6, 2, 3, 4, 5, 7, 7]),
        ("gpt-4o", "ab é11<eos>", &[2, 3, 4, 5, 8, 6]),
    ] {
        w.key("tokenizer.ggml.pre", V::Text(pre.into()));
        let tokenizer = tokenizer(&w).unwrap();
        assert_eq!(tokenizer.encode(text).unwrap(), want, "{pre}");
        if !text.contains('<') && text.len() > 4 {
            assert_eq!(tokenizer.decode(want).unwrap(), text, "{pre}");
        }
    }
    w.key("tokenizer.ggml.add_bos_token", V::Bool(true));
    assert_eq!(tokenizer(&w).unwrap().encode("a").unwrap(), [6, 0]);
    w.key("tokenizer.ggml.pre", text("klingon"));
    assert!(tokenizer(&w).unwrap_err().to_string().contains("\"klingon\" is not supported, gpt-2"));
    w.key("tokenizer.ggml.model", text("bert"));
    assert!(tokenizer(&w).unwrap_err().to_string().contains("\"bert\" is not supported"));

    // pieces joined by score: "b c" before "a b", whatever comes first in the text
    let tokens = ["<unk>", "<s>", "<0xC3>", "<0xA9>", "▁", "a", "b", "c", "ab", "bc", "▁a"];
    ids(&mut w, "llama", &tokens, &[2, 3, 6, 6, 1, 1, 1, 1, 1, 1, 1]);
    w.key("tokenizer.ggml.scores", V::Floats(vec![0., 0., 0., 0., -9., -8., -7., -6., -5., -2., -3.]));
    w.key("tokenizer.ggml.bos_token_id", V::U32(1));
    let spm = tokenizer(&w).unwrap();
    assert_eq!(spm.encode("abc ab").unwrap(), [1, 10, 9, 10, 6]);
    assert_eq!(spm.encode("é").unwrap(), [1, 4, 2, 3]);
    assert_eq!(spm.decode(&[1, 10, 9, 10, 6, 2, 3]).unwrap(), "abc abé");
    w.key("tokenizer.ggml.scores", V::Floats(vec![0.0]));
    assert!(tokenizer(&w).unwrap_err().to_string().contains("scores has 1 numbers for 11 tokens"));

    // each piece is two others in as many ways as it has letters
    let runs: Vec<String> = (1..=1024).map(|len| "a".repeat(len)).collect();
    ids(&mut w, "llama", &runs.iter().map(String::as_str).collect::<Vec<_>>(), &[1; 1024]);
    w.key("tokenizer.ggml.scores", V::Floats(vec![0.0; 1024]));
    assert!(tokenizer(&w).unwrap_err().to_string().contains("in too many ways"));
}

fn cases(default: u32) -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(default);
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases(200))]

    #[test]
    fn damaged_files_load_or_are_refused(
        name in prop::sample::select(vec!["qwen2", "llama3_rope", "gemma3_text", "gpt_oss_mxfp4"]),
        changes in prop::collection::vec((0..6000usize, any::<u8>(), any::<bool>()), 1..4),
    ) {
        let mut bytes = convert(name, 0, |_| DType::F32).bytes();
        for (at, byte, remove) in changes {
            match remove {
                true => drop(bytes.drain(at..at + 1 + usize::from(byte) % 9)),
                false => bytes[at] = byte,
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.gguf");
        std::fs::write(&path, bytes).unwrap();
        let device = perjoule::open("cpu").unwrap();
        let loaded = Source::checkpoint(&path)
            .and_then(|source| { let _ = source.tokenizer(); Model::load(&device, &source, &LoadOptions::stored()) });
        match loaded {
            Ok(model) => {
                // whatever became of it, it runs
                let capacity = model.geometry().max_positions.min(8);
                if let Ok(mut session) = model.session(SessionOptions { parallel: 1, capacity, chunk: 8 }) {
                    let ids: Vec<u32> = (0..capacity as u32).map(|i| i % model.geometry().vocab as u32).collect();
                    let _ = session.prefill(&ids);
                }
            }
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }
}
