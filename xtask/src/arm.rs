//! Runs the tests of the CPU's NEON rows on another processor: cross-built for Arm, under qemu's emulation of a process.
//!
//! qemu computes what a processor does, the rounding of bf16 dot products included; how fast, it does not tell.

use crate::emulate::{Test, built};
use crate::on_path;
use anyhow::{Context, Result, bail, ensure};
use std::io::{Read, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

const TARGET: &str = "aarch64-unknown-linux-gnu";
const LINKER: &str = "aarch64-linux-gnu-gcc";
const QEMU: &str = "qemu-aarch64";
/// Where Debian and Ubuntu put the libraries that the tests are linked with.
const LIBRARIES: &str = "/usr/aarch64-linux-gnu";
const PACKAGES: [&str; 3] = ["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross", "qemu-user"];

/// What `cargo xtask arm` takes.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// qemu's model of the processor, such as neoverse-n1, which has DotProd only, or cortex-a72, which has no extension.
    #[arg(long, default_value = "max")]
    cpu: String,
    /// Passed on to every test executable, such as a part of a test's name; without it, the unit tests of vectors, features and
    /// ceilings, and a sixth of the conformance cases of the NEON rows (`-- _cpu_neon` runs all of them).
    #[arg(last = true)]
    filter: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Options { cpu: "max".into(), filter: Vec::new() }
    }
}

/// What runs without a filter.
fn selection(name: &str) -> &'static [&'static [&'static str]] {
    match name {
        "perjoule_cpu" => &[&["simd::"], &["features::"], &["ceiling::"]],
        // those on an odd number of lanes, a sixth of the cases
        "conformance" => &[&["_cpu_neon", "--skip", "cpu::"]],
        _ => &[],
    }
}

/// Builds the tests, runs them, and fails unless each executable passed at least one test and failed none.
pub(crate) fn arm(options: &Options) -> Result<()> {
    ensure!(cfg!(target_os = "linux"), "needs Linux: qemu emulates processes there only");
    if crate::may_install() {
        install();
    }
    complete()?;
    // one call, so that features are resolved once for both
    let args = ["-p", "perjoule-cpu", "-p", "perjoule-tests", "--lib", "--test", "conformance"];
    let linker = "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER";
    let tests = built(&[args.as_slice(), &["--target", TARGET]].concat(), &[(linker, LINKER)])?;
    let mut outcomes = Vec::new();
    for test in &tests {
        let runs: Vec<Vec<&str>> = match options.filter.as_slice() {
            [] => selection(&test.name).iter().map(|run| run.to_vec()).collect(),
            filter => vec![filter.iter().map(String::as_str).collect()],
        };
        for arguments in runs {
            outcomes.push(run(test, &options.cpu, &arguments)?);
        }
    }
    report(&outcomes, &options.cpu)
}

/// Installs what is missing; whether that succeeded shows when it is looked for.
fn install() {
    if !(on_path(LINKER) && on_path(QEMU)) && on_path("apt-get") {
        let _ = Command::new("apt-get").arg("update").status();
        let mut install = Command::new("apt-get");
        install.args(["install", "--yes", "--no-install-recommends"]).args(PACKAGES);
        let _ = install.status();
    }
    if !has_target() && on_path("rustup") {
        let _ = Command::new("rustup").args(["target", "add", TARGET]).status();
    }
}

fn has_target() -> bool {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let folder = Command::new(rustc).args(["--print", "target-libdir", "--target", TARGET]).output();
    folder.is_ok_and(|out| Path::new(String::from_utf8_lossy(&out.stdout).trim()).is_dir())
}

/// An error that says what to install, where something is missing.
fn complete() -> Result<()> {
    let missing = [LINKER, QEMU].into_iter().find(|name| !on_path(name));
    if let Some(missing) = missing {
        bail!("{missing} is missing: apt-get install {}", PACKAGES.join(" "));
    }
    ensure!(Path::new(LIBRARIES).is_dir(), "{LIBRARIES} is missing: apt-get install {}", PACKAGES.join(" "));
    ensure!(has_target(), "Rust's library for {TARGET} is missing: rustup target add {TARGET}");
    Ok(())
}

/// What one run of an executable came to.
struct Outcome {
    name: String,
    seconds: u64,
    /// Passed, failed and ignored, as the executable counts them; `None` where it did not come to that.
    counts: Option<[usize; 3]>,
    success: bool,
}

/// Runs an executable, showing what it writes.
fn run(test: &Test, cpu: &str, arguments: &[&str]) -> Result<Outcome> {
    let name = format!("{} {}", test.name, arguments.join(" "));
    eprintln!("xtask: {QEMU} -cpu {cpu}: {name}");
    let started = Instant::now();
    let mut command = Command::new(QEMU);
    command.args(["-cpu", cpu, "-L", LIBRARIES]).arg(&test.executable);
    command.args(["--color", "never", "--quiet"]).args(arguments);
    command.env("PERJOULE_REQUIRE", "cpu").stdout(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("{QEMU} could not be started"))?;
    let mut pipe = child.stdout.take().context("a pipe was asked for")?;
    let (mut log, mut bytes) = (Vec::new(), [0; 4096]);
    loop {
        let count = pipe.read(&mut bytes)?;
        if count == 0 {
            break;
        }
        std::io::stdout().write_all(&bytes[..count])?;
        std::io::stdout().flush()?;
        log.extend_from_slice(&bytes[..count]);
    }
    let success = child.wait()?.success();
    let counts = counts(&String::from_utf8_lossy(&log));
    Ok(Outcome { name, seconds: started.elapsed().as_secs(), counts, success })
}

/// Out of `test result: ok. 4 passed; 0 failed; 0 ignored; ...`.
fn counts(log: &str) -> Option<[usize; 3]> {
    let line = log.lines().rev().find_map(|line| line.strip_prefix("test result: "))?;
    let count = |what: &str| {
        let words: Vec<&str> = line.split([' ', ';']).filter(|word| !word.is_empty()).collect();
        words.windows(2).find(|pair| pair[1] == what).and_then(|pair| pair[0].parse().ok())
    };
    Some([count("passed")?, count("failed")?, count("ignored")?])
}

/// Prints what ran; an error unless all of it passed, and something did.
fn report(outcomes: &[Outcome], cpu: &str) -> Result<()> {
    let width = outcomes.iter().map(|outcome| outcome.name.len()).max().unwrap_or(0).max(24);
    println!(
        "\n{:<width$} {:>7} {:>7} {:>8} {:>6}",
        format!("under {QEMU} -cpu {cpu}"),
        "passed",
        "failed",
        "ignored",
        "s"
    );
    let mut all = 0;
    for Outcome { name, seconds, counts, .. } in outcomes {
        match counts {
            Some([passed, failed, ignored]) => {
                all += passed;
                println!("{name:<width$} {passed:>7} {failed:>7} {ignored:>8} {seconds:>6}");
            }
            None => println!("{name:<width$} did not end"),
        }
    }
    let bad: Vec<&str> =
        outcomes.iter().filter(|o| !o.success || o.counts.is_none()).map(|o| o.name.as_str()).collect();
    ensure!(bad.is_empty(), "under {QEMU} -cpu {cpu}: failed: {}", bad.join(", "));
    ensure!(all > 0, "no test has such a name");
    println!("{all} tests passed under {QEMU} -cpu {cpu}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(counts: Option<[usize; 3]>, success: bool) -> Outcome {
        Outcome { name: "t".into(), seconds: 1, counts, success }
    }

    #[test]
    fn counts_are_read_from_both_harnesses() {
        let rust = "\nrunning 2 tests\n..\ntest result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 9 filtered out; finished in 0.1s\n";
        assert_eq!(counts(rust), Some([2, 0, 1]));
        let mimic = "test result: FAILED. 7 passed; 3 failed; 0 ignored; 0 measured; 5 filtered out; finished in 1.00s\n";
        assert_eq!(counts(mimic), Some([7, 3, 0]));
        assert_eq!(counts("qemu: uncaught target signal 4 (Illegal instruction)\n"), None);
    }

    #[test]
    fn only_what_ran_to_its_end_and_passed_is_a_success() {
        assert!(report(&[outcome(Some([3, 0, 0]), true)], "max").is_ok());
        assert!(report(&[outcome(Some([3, 1, 0]), false)], "max").is_err());
        assert!(report(&[outcome(Some([3, 0, 0]), true), outcome(None, false)], "max").is_err());
        assert!(report(&[outcome(Some([0, 0, 5]), true)], "max").is_err());
        assert!(report(&[], "max").is_err());
    }
}
