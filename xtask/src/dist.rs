//! Packs what tries a GPU machine that has no Rust: the binary, the conformance runner, golden checkpoints and `gpu-check.sh`; and runs
//! the same in place.

use crate::cargo_command;
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The script that tries a device.
const SCRIPT: &str = "xtask/gpu/gpu-check.sh";
const CHECKPOINTS: &str = "tests/checkpoints";
/// Newest symbols of the C library that may be asked for: those of Ubuntu 22.04.
const GLIBC: [u32; 2] = [2, 35];
/// Libraries that every such system has.
const LIBRARIES: [&str; 7] = [
    "libc.so.6",
    "libm.so.6",
    "libgcc_s.so.1",
    "libdl.so.2",
    "libpthread.so.0",
    "librt.so.1",
    "ld-linux-x86-64.so.2",
];
/// Most bytes of the packed file.
const MOST: u64 = 40 << 20;

/// What `cargo xtask gpu` takes.
#[derive(clap::Args)]
pub(crate) struct GpuOptions {
    /// Passed on to gpu-check.sh, such as --budget 480 --parts conformance,kernels (--help lists them all).
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// The two executables, built as the tests build them.
struct Built {
    perjoule: PathBuf,
    conformance: PathBuf,
}

/// Builds, and runs the script on this machine.
pub(crate) fn gpu(options: &GpuOptions) -> Result<()> {
    let built = build()?;
    let out = target_folder()?.join("gpu-check");
    let mut command = Command::new("bash");
    command.arg(SCRIPT).arg("--perjoule").arg(&built.perjoule).arg("--conformance").arg(&built.conformance);
    command.args(["--checkpoints", CHECKPOINTS]).arg("--out").arg(out).args(&options.arguments);
    let status = command.status().context("bash could not be started")?;
    ensure!(status.success(), "{SCRIPT} found something ({status})");
    Ok(())
}

/// Builds, packs, and tries what was packed. Prints the file's path.
pub(crate) fn dist() -> Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    let name = format!("perjoule-{version}-x86_64-linux-gnu");
    let built = build()?;
    let folder = target_folder()?.join("dist");
    let root = folder.join(&name);
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    fs::create_dir_all(&root)?;
    for (from, to) in [(&built.perjoule, "perjoule"), (&built.conformance, "conformance")] {
        let to = root.join(to);
        output(Command::new("strip").arg("-o").arg(&to).arg(from)).context("apt-get install binutils")?;
        portable(&to)?;
    }
    for file in [SCRIPT, "LICENSE-APACHE", "LICENSE-MIT", "CHANGELOG.md"] {
        let name = Path::new(file).file_name().context("a file has a name")?;
        fs::copy(file, root.join(name))?;
    }
    copy(Path::new(CHECKPOINTS), &root.join("checkpoints"))?;
    let file = folder.join(format!("{name}.tar.gz"));
    let mut tar = Command::new("tar");
    // the same content gives the same file
    tar.args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--mtime=@0", "-C"]).arg(&folder);
    output(tar.args(["--use-compress-program=gzip -9n", "-cf"]).arg(&file).arg(&name))?;
    let bytes = fs::metadata(&file)?.len();
    ensure!(bytes <= MOST, "{} has {bytes} bytes, {MOST} are allowed", file.display());
    tried(&file, &name)?;
    println!("{}: {:.1} MiB", file.display(), bytes as f64 / f64::from(1 << 20));
    Ok(())
}

/// Both executables, in one build: with the features of the whole workspace, as `cargo xtask test` has them.
fn build() -> Result<Built> {
    ensure!(cfg!(all(target_os = "linux", target_arch = "x86_64")), "needs Linux on x86-64");
    let mut command = cargo_command();
    command.args(["build", "--release", "--workspace", "--bin", "perjoule", "--test", "conformance"]);
    let messages = output(command.arg("--message-format=json").stderr(Stdio::inherit()))?;
    let executable = |name: &str| {
        let mut found = messages.lines().filter_map(|line| {
            let message: serde_json::Value = serde_json::from_str(line).ok()?;
            let is = message["target"]["name"] == name;
            is.then(|| message["executable"].as_str().map(PathBuf::from)).flatten()
        });
        found.next_back().with_context(|| format!("cargo built no {name}"))
    };
    Ok(Built { perjoule: executable("perjoule")?, conformance: executable("conformance")? })
}

/// Where cargo builds.
pub(crate) fn target_folder() -> Result<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    Ok(std::path::absolute(target)?)
}

/// Refuses an executable that Ubuntu 22.04 could not start.
fn portable(file: &Path) -> Result<()> {
    let text = output(Command::new("objdump").arg("-p").arg(file))?;
    for library in text.lines().filter_map(|line| line.trim().strip_prefix("NEEDED")) {
        let library = library.trim();
        ensure!(
            LIBRARIES.contains(&library),
            "{} needs {library}, which not every system has",
            file.display()
        );
    }
    let newest = newest_glibc(&text);
    if newest.is_some_and(|version| version > GLIBC) {
        let [major, minor] = newest.unwrap_or_default();
        bail!(
            "{} needs glibc {major}.{minor}: pack it on a system with {}.{} or older",
            file.display(),
            GLIBC[0],
            GLIBC[1]
        );
    }
    Ok(())
}

/// Out of `objdump -p`: `0x069691b4 0x00 05 GLIBC_2.34`.
fn newest_glibc(text: &str) -> Option<[u32; 2]> {
    let versions = text.split_whitespace().filter_map(|word| word.strip_prefix("GLIBC_"));
    let parsed = versions.filter_map(|version| {
        let mut numbers = version.split('.').map(|n| n.parse().ok());
        Some([numbers.next()??, numbers.next().unwrap_or(Some(0))?])
    });
    parsed.max()
}

/// Unpacks it elsewhere and starts what it holds, from another folder.
fn tried(file: &Path, name: &str) -> Result<()> {
    let folder = file.with_file_name("tried");
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    output(Command::new("tar").arg("-C").arg(&folder).arg("-xf").arg(file))?;
    let root = folder.join(name);
    output(Command::new(root.join("perjoule")).arg("--version").current_dir("/"))?;
    let list = output(Command::new(root.join("conformance")).args(["--list", "cpu::"]).current_dir("/"))?;
    ensure!(list.contains("cpu::"), "the packed conformance runner lists no case of the CPU");
    let mut check = Command::new("bash");
    check.arg(root.join("gpu-check.sh")).arg("--out").arg(folder.join("out")).current_dir("/");
    // one small kernel and the models: that everything is found
    output(check.args([
        "--device",
        "cpu",
        "--budget",
        "120",
        "--parts",
        "conformance,models",
        "--filter",
        "advance_",
    ]))?;
    fs::remove_dir_all(&folder)?;
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => copy(&entry.path(), &to)?,
            false => fs::copy(entry.path(), to).map(|_| ())?,
        }
    }
    Ok(())
}

/// What a program writes; an error where it fails, with the end of what it wrote.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let shown = format!("{command:?}");
    let out =
        command.stdin(Stdio::null()).output().with_context(|| format!("{shown} could not be started"))?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    if !out.status.success() {
        let errors = String::from_utf8_lossy(&out.stderr);
        let end: Vec<&str> = text.lines().chain(errors.lines()).collect();
        bail!("{shown} failed ({}):\n{}", out.status, end[end.len().saturating_sub(20)..].join("\n"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_is_a_number_not_a_word() {
        let text = "  required from libc.so.6:\n 0x1 0x00 05 GLIBC_2.4\n 0x2 0x00 04 GLIBC_2.34\n 0x3 0x00 03 GLIBC_2.2.5\n";
        assert_eq!(newest_glibc(text), Some([2, 34]));
        assert_eq!(newest_glibc("0x00 05 GLIBC_PRIVATE"), None);
        assert!([2, 36] > GLIBC && [2, 4] < GLIBC && [3, 0] > GLIBC);
    }
}
