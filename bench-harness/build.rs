//! Bakes the commit and the compiler into the binary, for `Environment::build_commit` and `Environment::rustc`.
//!
//! Neither is required: outside a git checkout, or without git, the commit is absent and the record says null.

use std::path::{Path, PathBuf};
use std::process::Command;

/// All that the binary is made of, from the workspace's root: an edit of any makes it another than the commit's.
const SOURCES: [&str; 6] = ["Cargo.toml", "Cargo.lock", "kernels", "shaders", "backends", "bench-harness"];

fn main() {
    if std::env::var_os("CARGO_FEATURE_WEB").is_some() {
        embed_page();
    }
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

/// Writes the files of the page, as Rust: those of target/web, where `cargo xtask web` puts them; none where there are none.
fn embed_page() {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default());
    // target/[TRIPLE/]PROFILE/build/NAME/out
    let folders: Vec<PathBuf> = out.ancestors().skip(3).take(3).map(|folder| folder.join("web")).collect();
    let built = folders.iter().find(|folder| folder.join("perjoule_web_bg.wasm").is_file());
    let mut files: Vec<PathBuf> = match built.map(std::fs::read_dir) {
        Some(Ok(entries)) => {
            entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()).collect()
        }
        _ => Vec::new(),
    };
    files.sort();
    let mut text = String::from("&[\n");
    for file in &files {
        println!("cargo::rerun-if-changed={}", file.display());
        if let Some(name) = file.file_name().and_then(|name| name.to_str()) {
            text.push_str(&format!(
                "({name:?}, include_bytes!({:?}).as_slice()),\n",
                file.display().to_string()
            ));
        }
    }
    text.push(']');
    if let Err(error) = std::fs::write(out.join("page.rs"), text) {
        println!("cargo::error=page.rs could not be written: {error}");
    }
    if files.is_empty() {
        println!(
            "cargo::warning=there is no page in target/web: `perjoule web` will say so; `cargo xtask web` builds it"
        );
        // a folder that does not exist reruns the script every time, and so it sees the page once it is there
        if let Some(folder) = folders.get(1) {
            println!("cargo::rerun-if-changed={}", folder.display());
        }
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
