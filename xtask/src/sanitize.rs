//! Looks for accesses of memory that are not allowed: AddressSanitizer over the CPU's tests, Miri over its packing, fuzzing of parsers.

use crate::arm::watch;
use crate::cargo_command;
use crate::dist::target_folder;
use crate::emulate::{Test, built, output};
use crate::packages::on_path;
use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

/// Those with unsafe code, those that read files which nobody vouches for, and the cases that force every row.
const CRATES: [&str; 5] =
    ["perjoule-kernels", "perjoule-suite", "perjoule-cpu", "perjoule-model", "perjoule-conformance"];
/// Tests of models, which take the rows that a processor would choose.
const MODELS: [&str; 4] = ["golden", "gguf", "damage", "perjoule_model"];
/// Faults in perjoule-cpu, each of which must end its process.
const PLANTED: &str = "planted::";
/// What reports of the sanitizer say, and those of the standard library about unsafe calls.
const REPORTS: [&str; 2] = ["AddressSanitizer", "unsafe precondition"];
/// Fuzz targets with the crates that they lie in and what they begin with. Those with most to explore come first.
const FUZZED: [(&str, &str, &[&str]); 8] = [
    ("gguf_model", "bench-harness/model", &["fuzz/corpus/gguf_model", "fuzz/corpus/gguf"]),
    ("gguf_vocab", "bench-harness/model", &["fuzz/corpus/gguf_model"]),
    ("gguf", "bench-harness/model", &["fuzz/corpus/gguf", "fuzz/corpus/gguf_model"]),
    ("header", "bench-harness/model", &["fuzz/corpus/header"]),
    ("config", "bench-harness/model", &["fuzz/corpus/config"]),
    ("index", "bench-harness/model", &["fuzz/corpus/index"]),
    ("formats", "bench-harness/formats", &["fuzz/corpus/formats", "tests/samples"]),
    ("reader", "bench-harness/record", &["fuzz/corpus/reader"]),
];

/// What `cargo xtask sanitize` takes.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Instruction sets, in turn: `all` is what the processor has, others are levels of `PERJOULE_CPU_FEATURES`. With the first, every
    /// test runs, and conformance forces every row; with the others the tests of models, in which rows are chosen.
    #[arg(long, value_delimiter = ',', default_values = ["all", "avx2", "portable"])]
    features: Vec<String>,
    /// Runs only each so-manieth conformance case of a row.
    #[arg(long, default_value_t = 1)]
    every: u32,
    /// Instead runs the tests of packing in portable code under Miri, which takes a nightly compiler.
    #[arg(long, conflicts_with = "fuzz")]
    miri: bool,
    /// Instead fuzzes the parsers of files, each for so many seconds. Needs cargo-fuzz, no nightly compiler.
    #[arg(long, value_name = "SECONDS")]
    fuzz: Option<u32>,
    /// Passed on to the tests, such as a part of a test's name; with --fuzz, the targets.
    #[arg(last = true)]
    filter: Vec<String>,
}

/// Does what the options say, and fails where anything was found.
pub(crate) fn sanitize(options: &Options) -> Result<()> {
    match options.fuzz {
        Some(seconds) => fuzz(seconds, &options.filter),
        None if options.miri => miri(&options.filter),
        None => address(options),
    }
}

/// Builds the tests with AddressSanitizer and debug assertions, sees that planted faults are found, and runs the tests.
fn address(options: &Options) -> Result<()> {
    let host = host()?;
    let folder = target_folder()?.join("sanitize");
    let folder = folder.to_str().context("the target folder's path is not Unicode")?;
    // with an explicit target, build scripts and procedural macros are left as they are; backends of GPUs are not built
    let mut args = vec!["--target", &host, "--target-dir", folder, "--lib", "--tests"];
    args.extend(["--no-default-features", "--features", "perjoule-model/cpu"]);
    args.extend(CRATES.iter().flat_map(|name| ["-p", name]));
    // stable compilers come with the sanitizer, but have no stable flag for it
    // checks make much code of the kernels, which would take many minutes to optimise further
    let flags = "-Zsanitizer=address -Cdebug-assertions=on -Copt-level=1 -Clto=off --cfg sanitized";
    let tests = built(&args, &[("RUSTC_BOOTSTRAP", "1"), ("RUSTFLAGS", flags)])?;
    planted(tests.iter().find(|test| test.name == "perjoule_cpu").context("perjoule-cpu has tests")?)?;
    let (mut faults, mut lines, mut all) = (Vec::new(), Vec::new(), 0);
    for (turn, level) in options.features.iter().enumerate() {
        for test in tests.iter().filter(|test| turn == 0 || MODELS.contains(&test.name.as_str())) {
            let name = format!("{} ({level})", test.name);
            eprintln!("xtask: AddressSanitizer: {name}");
            let mut command = watched(&test.executable, level);
            command.args(["--color", "never", "--quiet"]).args(&options.filter);
            if test.name == "conformance" {
                // those of a device that runs the references
                command.args(["--skip", "lazy::"]).env("PERJOULE_EVERY", options.every.to_string());
            }
            let started = Instant::now();
            let (success, counts) = watch(&mut command)?;
            let fault = match counts {
                None => "  did not end",
                Some(_) if !success => "  failed",
                Some(_) => "",
            };
            let [passed, failed, ignored] = counts.unwrap_or_default();
            let seconds = started.elapsed().as_secs();
            lines.push(format!("{name:28} {passed:>7} {failed:>7} {ignored:>8} {seconds:>6}{fault}"));
            all += passed;
            if !fault.is_empty() {
                faults.push(format!("{name}{fault}"));
            }
        }
    }
    println!("\n{:28} {:>7} {:>7} {:>8} {:>6}\n{}", "", "passed", "failed", "ignored", "s", lines.join("\n"));
    ensure!(faults.is_empty(), "under AddressSanitizer: {}", faults.join(", "));
    ensure!(all > 0, "no test has such a name");
    println!("{all} tests passed under AddressSanitizer");
    Ok(())
}

/// The target that the compiler builds for, whose AddressSanitizer must be there.
fn host() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = output(Command::new(&rustc).arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc names no host")?;
    let libraries = output(Command::new(&rustc).args(["--print", "target-libdir"]))?;
    let mut files = std::fs::read_dir(Path::new(libraries.trim()))?.filter_map(|entry| entry.ok());
    let there = files.any(|entry| entry.file_name().to_string_lossy().contains("_rt.asan."));
    ensure!(
        there,
        "this compiler comes without AddressSanitizer (librustc-*_rt.asan.a): take rustup's, on Linux for x86-64 or Arm"
    );
    Ok(host.to_owned())
}

/// A command that runs `executable` with rows up to a level.
fn watched(executable: &Path, level: &str) -> Command {
    let mut command = Command::new(executable);
    // memory that cannot be had is an error that programs get, as it is without the sanitizer
    command.env("ASAN_OPTIONS", "allocator_may_return_null=1");
    command
        .env("PERJOULE_REQUIRE", "cpu")
        .env("PERJOULE_CPU_FEATURES", if level == "all" { "" } else { level });
    command
}

/// Fails unless every planted fault is reported.
fn planted(test: &Test) -> Result<()> {
    let listed = output(Command::new(&test.executable).args(["--list", "--ignored", PLANTED]))?;
    let names: Vec<&str> = listed.lines().filter_map(|line| line.strip_suffix(": test")).collect();
    ensure!(!names.is_empty(), "no fault is planted in {}", test.name);
    for name in &names {
        let mut command = watched(&test.executable, "all");
        let output = command.args(["--ignored", "--exact", "--nocapture", name]).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        let reported = REPORTS.iter().any(|report| said.contains(report));
        ensure!(!output.status.success() && reported, "{name} was not reported:\n{said}");
    }
    eprintln!("xtask: all {} planted faults were reported", names.len());
    Ok(())
}

/// Runs the tests of packing under Miri: those in portable code, as it knows no instruction set beyond the baseline.
fn miri(filter: &[String]) -> Result<()> {
    let found = Command::new("cargo").args(["+nightly", "miri", "--version"]).output();
    ensure!(
        found.is_ok_and(|out| out.status.success()),
        "there is no nightly compiler with Miri: rustup toolchain install nightly --component miri,rust-src"
    );
    let mut command = Command::new("cargo");
    command.args(["+nightly", "miri", "test", "-p", "perjoule-cpu", "--lib", "--test", "packing", "--"]);
    match filter {
        [] => command.args(["pack", "interleave"]),
        filter => command.args(filter),
    };
    // sizes of caches and memory are read from files of the system; the compiler is the nightly one, not that which built this
    command.env("MIRIFLAGS", "-Zmiri-disable-isolation").env_remove("RUSTUP_TOOLCHAIN").env_remove("RUSTC");
    ensure!(command.status()?.success(), "the tests failed under Miri");
    Ok(())
}

/// Fuzzes the targets that `only` names, or all. What they find new goes to the target folder, and not into the corpora kept here.
fn fuzz(seconds: u32, only: &[String]) -> Result<()> {
    ensure!(on_path("cargo-fuzz"), "cargo-fuzz is missing: cargo install cargo-fuzz");
    let folder = target_folder()?.join("fuzz");
    let asked = |target: &str| only.is_empty() || only.iter().any(|name| name == target);
    let chosen: Vec<_> = FUZZED.iter().filter(|(target, ..)| asked(target)).collect();
    ensure!(!chosen.is_empty(), "no fuzz target is called {}", only.join(" or "));
    for (target, place, seeds) in &chosen {
        let (place, new) = (Path::new(place), folder.join("corpus").join(target));
        std::fs::create_dir_all(&new)?;
        let mut command = cargo_command();
        command.current_dir(place).args(["fuzz", "run", "--target-dir"]).arg(&folder).arg(target).arg(new);
        command.args(*seeds).arg("--");
        // a small file must not make a reader take much memory
        command.args(["-timeout=10", "-rss_limit_mb=2048", "-malloc_limit_mb=128", "-print_final_stats=1"]);
        command.arg(format!("-max_total_time={seconds}")).arg(format!("-dict=fuzz/words/{target}.dict"));
        eprintln!("xtask: fuzzing {target} in {}", place.display());
        // stable compilers have no stable flags for what libFuzzer needs
        let status = command.env("RUSTC_BOOTSTRAP", "1").status()?;
        let found = place.join("fuzz/artifacts").join(target);
        ensure!(status.success(), "{target} found something, or could not be built: see {}", found.display());
    }
    println!("{} parsers fuzzed, nothing found", chosen.len());
    Ok(())
}
