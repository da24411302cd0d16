//! Bakes the commit and the compiler into the binary, for `Environment::build_commit` and `Environment::rustc`.
//!
//! Neither is required: outside a git checkout, or without git, the commit is absent and the record says null.

use std::path::{Path, PathBuf};
use std::process::Command;

/// All that the binary is made of, from the workspace's root: an edit of any makes it another than the commit's.
const SOURCES: [&str; 6] = ["Cargo.toml", "Cargo.lock", "kernels", "shaders", "backends", "bench-harness"];

fn main() {
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    if let Some(version) = output(Command::new(rustc).arg("--version")) {
        println!("cargo::rustc-env=PERJOULE_RUSTC={version}");
    }
    // A vendored copy lies inside somebody else's repository, whose commit would say nothing about this code.
    if git(&["rev-parse", "--show-prefix"]).as_deref() != Some("bench-harness/") {
        println!("cargo::rerun-if-changed=build.rs");
        return;
    }
    watch_head();
    for source in SOURCES {
        println!("cargo::rerun-if-changed=../{source}");
    }
    if let Some(mut commit) = git(&["rev-parse", "--short=12", "HEAD"]) {
        let mut status = vec!["-C", "..", "status", "--porcelain", "--untracked-files=no", "--"];
        status.extend(SOURCES);
        if git(&status).is_some_and(|changes| !changes.is_empty()) {
            commit.push_str("-dirty");
        }
        println!("cargo::rustc-env=PERJOULE_BUILD_COMMIT={commit}");
    }
}

/// Reruns this script when HEAD moves. Cargo reruns forever on a path that does not exist, so only existing ones are named.
fn watch_head() {
    let mut watched = vec!["HEAD".to_owned(), "packed-refs".to_owned()];
    watched.extend(git(&["symbolic-ref", "--quiet", "HEAD"]));
    for path in watched.iter().filter_map(|name| git(&["rev-parse", "--git-path", name])).map(PathBuf::from) {
        if path.exists() {
            println!("cargo::rerun-if-changed={}", path.display());
        }
    }
}

fn git(arguments: &[&str]) -> Option<String> {
    output(Command::new("git").current_dir(Path::new(env!("CARGO_MANIFEST_DIR"))).args(arguments))
}

/// Trimmed stdout of a command that succeeded.
fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}
