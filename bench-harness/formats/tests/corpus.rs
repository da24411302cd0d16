//! The fuzzer's corpus and the samples on a stable compiler, whole, cut and damaged.

use std::path::{Path, PathBuf};

use perjoule_formats::fuzz;
use proptest::prelude::*;

fn files(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let files: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() >= 10);
    files
}

#[test]
fn every_file_passes_the_fuzz_target() {
    for path in files("fuzz/corpus/formats").iter().chain(&files("tests/samples")) {
        fuzz::formats(&std::fs::read(path).unwrap());
    }
}

#[test]
fn damaged_files_pass_the_fuzz_target() {
    for path in files("tests/samples") {
        let text = std::fs::read(path).unwrap();
        for at in (0..text.len()).step_by(61) {
            fuzz::formats(&text[..at]);
            for byte in [0, b'"', b'9', b'-', b'|', b'\'', b'\n', 0xff] {
                let mut damaged = text.clone();
                damaged[at] = byte;
                fuzz::formats(&damaged);
            }
        }
    }
}

proptest! {
    #[test]
    fn anything_passes_the_fuzz_target(input in proptest::collection::vec(any::<u8>(), 0..300)) {
        fuzz::formats(&input);
    }

    /// Pieces of the formats in any order.
    #[test]
    fn pieces_pass_the_fuzz_target(pieces in proptest::collection::vec(prop_oneof![
        Just("| test | t/s |\n"), Just("| tg1 | 2 ± 3 |\n"), Just("|---|\n"), Just("build: a (1)\n"), Just("[\n"), Just("]\n"),
        Just("INSERT INTO t (n_prompt, n_gen, avg_ts) VALUES ("), Just("0, 1, 2);\n"), Just("'a''"), Just("{\"n_prompt\":1,"),
        Just("\"n_gen\":1,"), Just("\"avg_ts\":1e308}"), Just("{\"configurations\":["), Just("\"max_num_seqs\":8,"), Just("{\"energy_per_token_joules\":1}"),
        Just("n_prompt,n_gen,avg_ts\n"), Just("0,5,1e-320\n"), Just("MLPerf Results Summary\n"), Just("Tokens per second: 5\n"),
        Just("Result is : VALID\n"), Just("  Min queries satisfied : NO\n"), Just("Platform,Scenario,Result,Units\n"), Just("a,b,1,Watts\n"),
        Just("a,b,2,Tokens/s\n"), Just(","), Just("\""), Just("\\"), Just("|"), Just("±"), Just("\r\n"), Just("\u{feff}"),
    ], 0..30)) {
        fuzz::formats(pieces.concat().as_bytes());
    }
}
