//! What the fuzz targets do, on stable: every file of their corpora, and thousands of mutations of them, must be read or refused without a
//! panic. Run with `PROPTEST_CASES=100000` for longer.

use std::path::Path;

use perjoule_model::config::Geometry;
use perjoule_model::gguf;
use perjoule_model::weights::{header_len, parse_header, parse_index};
use proptest::prelude::*;

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
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
