//! What is installed and built before anything is measured.

use super::Options;
use crate::cargo_command;
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The Python environment with the peers, made and filled on first use.
pub(super) fn environment(options: &Options) -> Result<PathBuf> {
    if let Some(venv) = &options.venv {
        ensure!(venv.join("bin/python").is_file(), "{} is no Python environment", venv.display());
        return Ok(std::path::absolute(venv)?);
    }
    let venv = std::path::absolute("target/peers/venv")?;
    if !venv.join("bin/python").is_file() {
        run(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
    }
    let mut packages = vec!["numpy"];
    let all: [(_, &[&str]); 6] = [
        ("torch", &["torch"]),
        ("mkl", &["mkl"]),
        ("openblas", &["scipy-openblas32"]),
        // the last wheel of it that computes with OpenMP, whose threads can be counted; newer ones bring a runtime of SYCL
        ("onednn", &["onednn-cpu-gomp"]),
        ("ggml", &["llama-cpp-python"]),
        ("llama", &["llama-cpp-python", "gguf"]),
    ];
    for (peer, of_peer) in all {
        if options.peers.iter().any(|name| name == peer) {
            packages.extend(of_peer);
        }
    }
    // pip is quick where all are there; torch is a download of gigabytes, and llama.cpp is compiled
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
    run(Command::new(venv.join("bin/python")).args(pip).args(packages))?;
    Ok(venv)
}

/// Builds a worker, in a workspace of its own, whose folder is given.
pub(super) fn build(folder: &str, name: &str) -> Result<PathBuf> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder).join("Cargo.toml");
    let target = std::env::current_exe()?.ancestors().nth(2).context("the target folder")?.join(folder);
    run(cargo_command()
        .args(["build", "--quiet", "--release", "--manifest-path"])
        .arg(manifest)
        .arg("--target-dir")
        .arg(&target))?;
    Ok(target.join("release").join(name))
}

/// The files of `models.py`, written on first use.
pub(super) fn models(venv: &Path) -> Result<PathBuf> {
    let folder = std::path::absolute("target/peers/models")?;
    run(Command::new(venv.join("bin/python")).arg(python("models.py")).arg(&folder))?;
    Ok(folder)
}

/// A script of ours.
pub(super) fn python(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("peers").join(name)
}

fn run(command: &mut Command) -> Result<()> {
    eprintln!("xtask: {command:?}");
    // stdout is for results
    let status = command
        .stdout(std::io::stderr())
        .status()
        .with_context(|| format!("{command:?} could not be started"))?;
    ensure!(status.success(), "{command:?} failed ({status})");
    Ok(())
}
