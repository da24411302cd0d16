//! The fuzzer's corpus on a stable compiler: every file through the fuzz target, and the lines that must be found in it.

use std::path::Path;

use perjoule_record::{Reader, fuzz};

/// Records and warnings that each named file holds. Files that a fuzzer adds need no entry.
const EXPECTED: &[(&str, usize, &[u64])] = &[
    ("kinds.jsonl", 3, &[]),
    ("torn-tail.jsonl", 1, &[2]),
    ("torn-middle.jsonl", 1, &[1]),
    ("no-final-newline.jsonl", 2, &[]),
    ("bom-crlf-blank.jsonl", 2, &[]),
    ("numbers.jsonl", 2, &[3, 4, 5, 6, 7]),
    ("newer.jsonl", 1, &[2, 3]),
    ("text.jsonl", 2, &[2]),
    ("not-utf8.jsonl", 2, &[2, 3]),
    ("not-records.jsonl", 0, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
    ("wrong-types.jsonl", 0, &[1, 2, 3, 4, 5, 6, 7, 8]),
    ("duplicates.jsonl", 0, &[1, 2]),
    ("deep.jsonl", 1, &[1, 2]),
    ("empty", 0, &[]),
];

fn corpus() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/reader")
}

#[test]
fn every_file_passes_the_fuzz_target() {
    let mut files = 0;
    for entry in std::fs::read_dir(corpus()).unwrap() {
        fuzz::reader(&std::fs::read(entry.unwrap().path()).unwrap());
        files += 1;
    }
    assert!(files >= EXPECTED.len(), "only {files} files in the corpus");
}

#[test]
fn named_files_hold_what_they_should() {
    for (name, records, lines) in EXPECTED {
        let (found, warnings) =
            Reader::new(std::fs::read(corpus().join(name)).unwrap().as_slice()).read_all();
        let warned: Vec<u64> = warnings.iter().map(|warning| warning.line).collect();
        assert_eq!((found.len(), warned.as_slice()), (*records, *lines), "{name}: {warnings:#?}");
    }
}

/// Every cut of every line, and every byte replaced by some others: damage never reaches beyond its line.
#[test]
fn damaged_bytes_pass_the_fuzz_target() {
    let text = std::fs::read(corpus().join("kinds.jsonl")).unwrap();
    for at in 0..text.len() {
        fuzz::reader(&text[at..]);
        fuzz::reader(&text[..at]);
        for byte in [0, b'"', b'9', b'{', b'\n', 0xff] {
            let mut damaged = text.clone();
            damaged[at] = byte;
            fuzz::reader(&damaged);
            let (records, warnings) = Reader::new(damaged.as_slice()).read_all();
            assert!(!records.is_empty() && records.len() + warnings.len() <= 4, "byte {at} set to {byte}");
        }
    }
}
