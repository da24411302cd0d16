//! What the fuzz targets do, on stable: every file of their corpora, and thousands of mutations of them, must be read or refused without a
//! panic. Run with `PROPTEST_CASES=100000` for longer, and with libFuzzer by `cargo xtask sanitize --fuzz 60`.

mod support;

use std::path::{Path, PathBuf};

use perjoule::DType;
use perjoule_model::config::Geometry;
use perjoule_model::gguf;
use perjoule_model::weights::{header_len, parse_header, parse_index};
use proptest::prelude::*;
use support::{V, Writer, text};

fn folder(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target)
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let dir = folder(target);
    let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 5, "the corpus of {target} is missing");
    files.iter().map(|f| std::fs::read(f).unwrap()).collect()
}

fn config(bytes: &[u8]) {
    if let Ok(geometry) = Geometry::from_json(bytes) {
        assert!(geometry.validate().is_ok());
        assert!(geometry.n_active_params() <= geometry.n_params());
    }
}

fn header(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first_chunk::<8>() else { return };
    let Ok(len) = header_len(*first, bytes.len() as u64) else { return };
    let (json, data) = rest.split_at(len as usize);
    if let Ok(tensors) = parse_header(json, data.len() as u64) {
        // Exact coverage: every byte belongs to one tensor.
        assert_eq!(tensors.values().map(|t| t.end - t.begin).sum::<u64>(), data.len() as u64);
    }
}

fn gguf(bytes: &[u8]) {
    if let Ok(header) = gguf::parse(bytes, bytes.len() as u64) {
        assert!(header.tensors.values().all(|t| t.begin <= t.end));
        assert!(header.tensors.values().all(|t| header.data + t.end <= bytes.len() as u64));
    }
}

/// Whether it went to its end, without an error on the way.
fn gguf_model_of(path: &Path) -> perjoule_model::Result<()> {
    let file = gguf::Gguf::open(path)?;
    let geometry = file.geometry();
    let plan = geometry.as_ref().ok().map(|geometry| {
        assert!(geometry.validate().is_ok());
        file.plan(geometry)
    });
    let tokenizer = file.tokenizer(geometry.as_ref().map_or(1000, |g| g.vocab))?;
    let ids = tokenizer.encode("a b 1\u{2581}\u{e9}")?;
    tokenizer.decode(&ids)?;
    geometry?;
    plan.transpose()?;
    Ok(())
}

fn gguf_model(bytes: &[u8]) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    let _ = gguf_model_of(file.path());
}

fn index(bytes: &[u8]) {
    if let Ok(map) = parse_index(bytes) {
        assert!(map.values().all(|shard| Path::new(shard).components().count() == 1));
    }
}

/// A change to a file: where, what, and how many bytes of it.
#[derive(Clone, Debug)]
enum Mutation {
    Overwrite(usize, u8),
    Remove(usize, usize),
    Repeat(usize, usize),
    Insert(usize, &'static [u8]),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let fragments: Vec<&'static [u8]> = vec![
        b"0",
        b"-1",
        b"18446744073709551615",
        b"1e308",
        b"null",
        b"\"\"",
        b"[[[[",
        b"{",
        b"}",
        b",",
        b"\xff",
        b"../",
        b"4294967296",
    ];
    prop_oneof![
        (any::<usize>(), any::<u8>()).prop_map(|(at, byte)| Mutation::Overwrite(at, byte)),
        (any::<usize>(), 1..40usize).prop_map(|(at, n)| Mutation::Remove(at, n)),
        (any::<usize>(), 1..40usize).prop_map(|(at, n)| Mutation::Repeat(at, n)),
        (any::<usize>(), prop::sample::select(fragments)).prop_map(|(at, f)| Mutation::Insert(at, f)),
    ]
}

fn mutate(mut bytes: Vec<u8>, mutations: &[Mutation]) -> Vec<u8> {
    for m in mutations {
        let len = bytes.len();
        if len == 0 {
            break;
        }
        match *m {
            Mutation::Overwrite(at, byte) => bytes[at % len] = byte,
            Mutation::Remove(at, n) => drop(bytes.drain(at % len..len.min(at % len + n))),
            Mutation::Repeat(at, n) => {
                let piece = bytes[at % len..len.min(at % len + n)].to_vec();
                bytes.splice(at % len..at % len, piece);
            }
            Mutation::Insert(at, fragment) => {
                drop(bytes.splice(at % len..at % len, fragment.iter().copied()))
            }
        }
    }
    bytes
}

fn check(target: &'static str, read: fn(&[u8])) {
    let corpus = corpus(target);
    corpus.iter().for_each(|bytes| read(bytes));
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(4000);
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let strategy = (prop::sample::select(corpus), prop::collection::vec(mutation(), 1..6));
    let result = proptest::test_runner::TestRunner::new(config).run(&strategy, |(bytes, mutations)| {
        read(&mutate(bytes, &mutations));
        Ok(())
    });
    if let Err(e) = result {
        panic!("{target}: {e}");
    }
}

#[test]
fn config_reader_never_panics() {
    check("config", config);
}

#[test]
fn header_reader_never_panics() {
    check("header", header);
}

#[test]
fn index_reader_never_panics() {
    check("index", index);
}

#[test]
fn gguf_reader_never_panics() {
    check("gguf", gguf);
}

#[test]
fn gguf_models_never_panic() {
    check("gguf_model", gguf_model);
}

const HIDDEN: usize = 8;
const VOCAB: usize = 8;

/// A model of one layer of an architecture, as small as its shapes allow.
fn tiny(arch: &str, more: &[(&str, V)], tensors: &[(&str, &[usize])], vocabulary: &str) -> Writer {
    let mut w = Writer::default();
    w.key("general.architecture", text(arch));
    let sizes = [
        ("block_count", 1),
        ("context_length", 16),
        ("embedding_length", HIDDEN as u32),
        ("feed_forward_length", 8),
        ("attention.head_count", 2),
        ("attention.head_count_kv", 1),
        ("attention.key_length", 4),
    ];
    let sizes = sizes.map(|(name, size)| (name, V::U32(size)));
    let eps = ("attention.layer_norm_rms_epsilon", V::F32(1e-5));
    for (name, value) in sizes.iter().chain([&eps]).chain(more) {
        w.key(&format!("{arch}.{name}"), value.clone());
    }
    let texts = |list: &[&str]| V::Texts(list.iter().map(|token| (*token).into()).collect());
    w.key("tokenizer.ggml.model", text(vocabulary));
    w.key("tokenizer.ggml.bos_token_id", V::U32(0));
    if vocabulary == "gpt2" {
        w.key("tokenizer.ggml.pre", text("smollm"));
        w.key("tokenizer.ggml.tokens", texts(&["<s>", "a", "b", "1", "\u{120}", "\u{c3}", "\u{a9}", "ab"]));
        w.key("tokenizer.ggml.token_type", V::Ints(vec![3, 1, 1, 1, 1, 1, 1, 1]));
        w.key("tokenizer.ggml.merges", texts(&["a b"]));
    } else {
        w.key("tokenizer.ggml.tokens", texts(&["<s>", "<unk>", "a", "b", "1", "\u{2581}", "ab", "<0xC3>"]));
        w.key("tokenizer.ggml.token_type", V::Ints(vec![3, 2, 1, 1, 1, 1, 1, 6]));
        w.key("tokenizer.ggml.scores", V::Floats(vec![0., 0., -1., -2., -3., -4., -5., 0.]));
        w.key("tokenizer.ggml.unknown_token_id", V::U32(1));
    }
    let common: [(&str, &[usize]); 8] = [
        ("token_embd.weight", &[VOCAB, HIDDEN]),
        ("output_norm.weight", &[HIDDEN]),
        ("blk.0.attn_norm.weight", &[HIDDEN]),
        ("blk.0.attn_q.weight", &[8, HIDDEN]),
        ("blk.0.attn_k.weight", &[4, HIDDEN]),
        ("blk.0.attn_v.weight", &[4, HIDDEN]),
        ("blk.0.attn_output.weight", &[HIDDEN, 8]),
        ("blk.0.ffn_norm.weight", &[HIDDEN]),
    ];
    for (name, shape) in common.iter().chain(tensors) {
        // of gpt-oss the norm has the name that gemma has for another
        let name = if arch == "gpt-oss" && *name == "blk.0.ffn_norm.weight" {
            "blk.0.post_attention_norm.weight"
        } else {
            name
        };
        w.tensor(name, shape, DType::F16, &vec![1.0; shape.iter().product()]);
    }
    w
}

fn seeds() -> [(&'static str, Writer); 5] {
    let dense: &[(&str, &[usize])] = &[
        ("blk.0.ffn_gate.weight", &[8, 8]),
        ("blk.0.ffn_up.weight", &[8, 8]),
        ("blk.0.ffn_down.weight", &[8, 8]),
    ];
    let experts: &[(&str, &[usize])] = &[
        ("blk.0.ffn_gate_inp.weight", &[2, 8]),
        ("blk.0.ffn_gate_exps.weight", &[2, 8, 8]),
        ("blk.0.ffn_up_exps.weight", &[2, 8, 8]),
        ("blk.0.ffn_down_exps.weight", &[2, 8, 8]),
    ];
    let one_by_one: &[(&str, &[usize])] = &[
        ("blk.0.ffn_gate_inp.weight", &[2, 8]),
        ("blk.0.ffn_gate.0.weight", &[8, 8]),
        ("blk.0.ffn_gate.1.weight", &[8, 8]),
        ("blk.0.ffn_up.0.weight", &[8, 8]),
        ("blk.0.ffn_up.1.weight", &[8, 8]),
        ("blk.0.ffn_down.0.weight", &[8, 8]),
        ("blk.0.ffn_down.1.weight", &[8, 8]),
    ];
    let norms: &[(&str, &[usize])] =
        &[("blk.0.attn_q_norm.weight", &[4]), ("blk.0.attn_k_norm.weight", &[4])];
    let post: &[(&str, &[usize])] =
        &[("blk.0.post_attention_norm.weight", &[8]), ("blk.0.post_ffw_norm.weight", &[8])];
    let gpt_oss: &[(&str, &[usize])] = &[
        ("blk.0.attn_q.bias", &[8]),
        ("blk.0.attn_k.bias", &[4]),
        ("blk.0.attn_v.bias", &[4]),
        ("blk.0.attn_output.bias", &[8]),
        ("blk.0.attn_sinks.weight", &[2]),
        ("blk.0.ffn_gate_inp.bias", &[2]),
        ("blk.0.ffn_gate_exps.bias", &[2, 8]),
        ("blk.0.ffn_up_exps.bias", &[2, 8]),
        ("blk.0.ffn_down_exps.bias", &[2, 8]),
    ];
    let moe = [("expert_count", V::U32(2)), ("expert_used_count", V::U32(1))];
    let window = [("attention.sliding_window", V::U32(4)), ("attention.scale", V::F32(0.5))];
    let yarn = [
        ("rope.scaling.type", text("yarn")),
        ("rope.scaling.factor", V::F32(4.0)),
        ("rope.scaling.original_context_length", V::U32(8)),
        ("attention.sliding_window", V::U32(4)),
    ];
    [
        ("llama", tiny("llama", &[("rope.freq_base", V::F32(1e4))], dense, "gpt2")),
        ("mixtral", tiny("llama", &moe, one_by_one, "llama")),
        ("qwen3moe", tiny("qwen3moe", &moe, &[experts, norms].concat(), "gpt2")),
        ("gemma3", tiny("gemma3", &window, &[dense, norms, post].concat(), "llama")),
        ("gpt-oss", tiny("gpt-oss", &[&moe[..], &yarn].concat(), &[experts, gpt_oss].concat(), "gpt2")),
    ]
}

/// From what is no model at all a fuzzer rarely comes to one. `PERJOULE_BLESS=1` writes the seeds anew.
#[test]
fn seeds_of_models_are_models() {
    for (name, writer) in seeds() {
        let path = folder("gguf_model").join(name);
        if std::env::var_os("PERJOULE_BLESS").is_some() {
            std::fs::write(&path, writer.bytes()).unwrap();
        }
        assert_eq!(std::fs::read(&path).unwrap(), writer.bytes(), "{name}");
        gguf_model_of(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}
