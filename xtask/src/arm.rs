//! Runs the tests of the CPU's NEON rows on another processor: cross-built for Arm, under qemu's emulation of a process.
//!
//! qemu computes what a processor does, the rounding of bf16 dot products included; how fast, it does not tell.

use crate::emulate::{Test, built};
use crate::packages::{self, on_path};
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
/// qemu's model of a processor that has every extension.
const EVERY: &str = "max";
/// That and models for what it cannot show: that rows keep to the extensions of their names. The first has DotProd only, the second none.
const MODELS: [&str; 3] = [EVERY, "neoverse-n1", "cortex-a72"];

/// What `cargo xtask arm` takes.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// qemu's models of the processor, in turn: max has every extension, neoverse-n1 DotProd only, cortex-a72 none.
    #[arg(long, value_delimiter = ',', default_values = MODELS)]
    cpu: Vec<String>,
    /// Passed on to every test executable, such as a part of a test's name; without it, a sample: the unit tests of vectors, features
    /// and ceilings, and a sixth of the conformance cases of every NEON row (`-- _cpu_neon` runs all of them).
    #[arg(last = true)]
    filter: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Options { cpu: MODELS.map(str::to_string).to_vec(), filter: Vec::new() }
    }
}

/// The sample of an executable.
fn sample(name: &str) -> &'static [&'static str] {
    match name {
        "perjoule_cpu" => &["simd::", "features::", "ceiling::"],
        // those on an odd number of lanes, a sixth of the cases of each row
        "conformance" => &["_cpu_neon", "--skip", "cpu::"],
        _ => &[],
    }
}

/// Builds the tests, runs them on every model, and fails unless all passed. Of the sample each executable must have run something, and
/// where the processor has every extension nothing may be left out: so each NEON row was launched.
pub(crate) fn arm(options: &Options) -> Result<()> {
    ensure!(cfg!(target_os = "linux"), "needs Linux: qemu emulates processes there only");
    if packages::may_install() {
        install();
    }
    complete()?;
    // one call, so that features are resolved once for both
    let args = ["-p", "perjoule-cpu", "-p", "perjoule-conformance", "--lib", "--test", "conformance"];
    let linker = "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER";
    let tests = built(&[args.as_slice(), &["--target", TARGET]].concat(), &[(linker, LINKER)])?;
    let mut outcomes = Vec::new();
    for cpu in &options.cpu {
        for test in &tests {
            outcomes.push(match options.filter.as_slice() {
                [] => Outcome { sampled: true, ..run(test, cpu, sample(&test.name))? },
                filter => run(test, cpu, filter)?,
            });
        }
    }
    report(&outcomes)
}

/// Installs what is missing; whether that succeeded shows when it is looked for.
fn install() {
    if lacking().is_some() {
        packages::install(&PACKAGES);
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

/// What is not there of that which the packages hold.
fn lacking() -> Option<&'static str> {
    let program = [LINKER, QEMU].into_iter().find(|name| !on_path(name));
    program.or_else(|| (!Path::new(LIBRARIES).is_dir()).then_some(LIBRARIES))
}

/// An error that says what to install, where something is missing.
fn complete() -> Result<()> {
    if let Some(missing) = lacking() {
        bail!("{missing} is missing: apt-get install {}", PACKAGES.join(" "));
    }
    ensure!(has_target(), "Rust's library for {TARGET} is missing: rustup target add {TARGET}");
    Ok(())
}

/// What one run of an executable came to.
struct Outcome {
    cpu: String,
    name: String,
    seconds: u64,
    /// Passed, failed and ignored, as the executable counts them; `None` where it did not come to that.
    counts: Option<[usize; 3]>,
    success: bool,
    /// Whether it was to run its sample, not what a filter says.
    sampled: bool,
}

impl Outcome {
    /// What is wrong with it.
    fn fault(&self) -> Option<&'static str> {
        match self.counts {
            None => Some("did not end"),
            Some(_) if !self.success => Some("failed"),
            Some([0, ..]) if self.sampled => Some("ran nothing"),
            // cases are ignored where the processor lacks an extension
            Some([.., ignored]) if self.sampled && self.cpu == EVERY && ignored > 0 => Some("left rows out"),
            Some(_) => None,
        }
    }
}

/// Runs an executable, showing what it writes.
fn run(test: &Test, cpu: &str, arguments: &[impl AsRef<str>]) -> Result<Outcome> {
    let arguments: Vec<&str> = arguments.iter().map(AsRef::as_ref).collect();
    let name = format!("{} {}", test.name, arguments.join(" "));
    eprintln!("xtask: {QEMU} -cpu {cpu}: {name}");
    let started = Instant::now();
    let mut command = Command::new(QEMU);
    command.args(["-cpu", cpu, "-L", LIBRARIES]).arg(&test.executable);
    command.args(["--color", "never", "--quiet"]).args(arguments);
    command.env("PERJOULE_REQUIRE", "cpu");
    let (success, counts) = watch(&mut command).with_context(|| format!("{QEMU} could not be started"))?;
    let (cpu, seconds) = (cpu.to_string(), started.elapsed().as_secs());
    Ok(Outcome { cpu, name, seconds, counts, success, sampled: false })
}

/// Runs tests, showing what they write. Gives whether they succeeded, and how many passed, failed and were ignored.
pub(crate) fn watch(command: &mut Command) -> Result<(bool, Option<[usize; 3]>)> {
    let mut child = command.stdout(Stdio::piped()).spawn()?;
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
    let (status, counts) = (child.wait()?, counts(&String::from_utf8_lossy(&log)));
    if counts.is_none() {
        eprintln!("xtask: it did not end by itself: {status}");
    }
    Ok((status.success(), counts))
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
fn report(outcomes: &[Outcome]) -> Result<()> {
    let width = |text: fn(&Outcome) -> &str| outcomes.iter().map(|o| text(o).len()).max().unwrap_or(0);
    let (cpu_width, width) = (width(|o| &o.cpu), width(|o| &o.name));
    println!(
        "\n{:cpu_width$} {:width$} {:>7} {:>7} {:>8} {:>6}",
        "cpu", "", "passed", "failed", "ignored", "s"
    );
    for outcome in outcomes {
        let Outcome { cpu, name, seconds, counts, .. } = outcome;
        let [passed, failed, ignored] =
            counts.map_or(["-"; 3].map(String::from), |counts| counts.map(|count| count.to_string()));
        let fault = outcome.fault().map_or(String::new(), |fault| format!("  {fault}"));
        println!("{cpu:cpu_width$} {name:width$} {passed:>7} {failed:>7} {ignored:>8} {seconds:>6}{fault}");
    }
    let faults: Vec<String> =
        outcomes.iter().filter_map(|o| Some(format!("{} on {} {}", o.name, o.cpu, o.fault()?))).collect();
    ensure!(faults.is_empty(), "under {QEMU}: {}", faults.join(", "));
    let all: usize = outcomes.iter().filter_map(|o| o.counts).map(|[passed, ..]| passed).sum();
    ensure!(all > 0, "no test has such a name");
    println!("{all} tests passed under {QEMU}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(counts: Option<[usize; 3]>, success: bool) -> Outcome {
        Outcome { cpu: EVERY.into(), name: "t".into(), seconds: 1, counts, success, sampled: false }
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
        assert!(report(&[outcome(Some([3, 0, 0]), true)]).is_ok());
        assert!(report(&[outcome(Some([3, 1, 0]), false)]).is_err());
        assert!(report(&[outcome(Some([3, 0, 0]), true), outcome(None, false)]).is_err());
        assert!(report(&[outcome(Some([0, 0, 5]), true)]).is_err());
        assert!(report(&[]).is_err());
    }

    #[test]
    fn a_sample_leaves_nothing_out() {
        let sampled =
            |cpu: &str, counts| Outcome { cpu: cpu.into(), sampled: true, ..outcome(Some(counts), true) };
        assert!(report(&[sampled(EVERY, [3, 0, 0])]).is_ok());
        assert!(report(&[sampled(EVERY, [3, 0, 1])]).is_err());
        assert!(report(&[sampled("cortex-a72", [3, 0, 1])]).is_ok());
        let idle = sampled("cortex-a72", [0, 0, 1]);
        assert!(report(&[sampled(EVERY, [3, 0, 0]), idle]).is_err());
        // a filter may leave an executable without tests, and names what it likes
        assert!(report(&[outcome(Some([3, 0, 1]), true), outcome(Some([0, 0, 0]), true)]).is_ok());
    }
}
