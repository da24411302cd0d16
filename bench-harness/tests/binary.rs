//! The binary starts. Its end-to-end tests live in `tests/`; this one makes `cargo test` build what they run.

use std::process::Command;

#[test]
fn it_says_its_version() {
    let output = Command::new(env!("CARGO_BIN_EXE_perjoule")).arg("--version").output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.trim(), concat!("perjoule ", env!("CARGO_PKG_VERSION")));
}
