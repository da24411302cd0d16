//! For the build scripts of backends: a hash of what their kernels are built from. Measured times of other sources, another compiler or
//! another target say nothing, so a tuning table names it.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::Command;

/// What changes the code that the compiler makes of the same sources.
const SETTINGS: [&str; 6] = [
    "TARGET",
    "OPT_LEVEL",
    "DEBUG_ASSERTIONS",
    "CARGO_CFG_TARGET_FEATURE",
    "CARGO_CFG_PANIC",
    "CARGO_ENCODED_RUSTFLAGS",
];

/// Gives the crate that is being built the environment variable `name`: a hash of all files below `folders`, of the compiler and of its
/// settings. Folders are relative to the crate's.
///
/// # Errors
/// Where a file cannot be read, or the compiler does not say what it is.
pub fn bake_hash(name: &str, folders: &[&str]) -> std::io::Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    let mut files = Vec::new();
    for folder in folders {
        println!("cargo::rerun-if-changed={folder}");
        collect(Path::new(folder), &mut files)?;
    }
    files.sort();
    let mut hash = Hash::default();
    for file in files {
        hash.add(file.to_string_lossy().as_bytes());
        hash.add(&std::fs::read(&file)?);
    }
    for setting in SETTINGS {
        hash.add(std::env::var(setting).unwrap_or_default().as_bytes());
    }
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    hash.add(&Command::new(rustc).arg("-vV").output()?.stdout);
    println!("cargo::rustc-env={name}={:016x}", hash.0);
    Ok(())
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

/// FNV-1a of 64 bits: it tells builds apart, and nobody is kept from making two that agree.
struct Hash(u64);

impl Default for Hash {
    fn default() -> Self {
        Hash(0xcbf2_9ce4_8422_2325)
    }
}

impl Hash {
    /// Adds a part and where it ends.
    fn add(&mut self, part: &[u8]) {
        for byte in part.iter().chain(&(part.len() as u64).to_le_bytes()) {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
}
