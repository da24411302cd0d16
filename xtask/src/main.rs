//! What a developer or CI types: `cargo xtask test`, `cargo xtask ci`.

mod arm;
mod conformance;
mod cuda;
mod dist;
mod emulate;
mod packages;
#[cfg(unix)]
mod peers;
mod sanitize;
mod sass;
mod setup;
mod vulkan;
mod web;
mod webgpu;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use packages::{install_chromium_in_ci, install_for_tests};
use std::path::Path;
use std::process::Command;

/// Tasks around the workspace.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Runs all tests and examples: unit, conformance on every device, golden checkpoints, command line, docs.
    Test {
        /// Passed on to the tests, such as a part of a test's name.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        filter: Vec<String>,
    },
    /// What CI checks beside the tests: formatting, clippy and documentation, warnings denied.
    Lint,
    /// Everything CI runs: test, lint, arm, cuda, sass, and samples of webgpu and web.
    Ci,
    /// Runs the CPU backend's tests on an emulated processor with AVX-512, which takes minutes to an hour; no part of `test` or `ci`.
    ///
    /// Boots a Linux guest under Bochs (apt-get install bochs) on Debian or Ubuntu, x86-64. What else it needs it downloads once with
    /// apt-get and unpacks, as it keeps all its files, under target/emulate/. Without a filter it runs the unit and integration tests of
    /// perjoule-cpu less a few long ones, and a sixth of the conformance cases of the AVX-512 rows; `-- avx512` runs all of those cases.
    Emulate(emulate::Options),
    /// Measures our kernels against those of PyTorch, oneMKL, OpenBLAS, oneDNN, gemm, tract, ggml and llama.cpp, in turn; no part of
    /// `test` or `ci`.
    ///
    /// Installs them into target/peers/venv (PyTorch is a download of gigabytes; --venv names an environment that has it) and builds a
    /// worker in a workspace of its own. Models are run at batches of 1 to 64, too, and the logits of a file that llama.cpp quantised are
    /// compared with those of its numbers in f32.
    #[cfg(unix)]
    Peers(peers::Options),
    /// Runs a sample of the tests of the CPU backend's NEON rows, cross-built for Arm, under qemu.
    ///
    /// It launches every such row, with and without the extensions of the instruction set. Needs Linux with a cross linker, qemu and
    /// Rust's library for Arm, and fails without them, saying how to install them; as root with `CI=true` it installs them.
    Arm(arm::Options),
    /// Runs the tests of the CPU backend, its conformance cases and those of models under AddressSanitizer; no part of `test` or `ci`.
    ///
    /// Operands of conformance cases lie between pages that cannot be touched, sanitizer or not, which also stops assembly. What the
    /// sanitizer adds is all other memory: scratch and packed panels, each behind its own end, tiles on the stack and behind their scope,
    /// vectors of the host's code, memory that was freed; debug assertions add overflows and the standard library's checks of unsafe
    /// calls. It sees neither assembly nor one lane in another's part of the scratch. Planted faults must be reported first.
    Sanitize(sanitize::Options),
    /// Runs a sample of the conformance cases of the CUDA backend's rows on an emulated GPU (tests/emulator), without CUDA.
    ///
    /// Kernels are compiled by g++ and run as they are, with their inline PTX. Needs g++ on x86-64 Linux.
    Cuda(cuda::Options),
    /// Compiles a sample of the CUDA backend's kernels to machine code and looks at it: no spills, no more registers than before.
    ///
    /// NVRTC comes from the Python Package Index into target/nvrtc (100 MB); it needs Linux and pip, and fails without them. A kernel that
    /// differs from what the ratchet (backends/cuda/tests/sass) was made of is always compiled, and fails until --bless has written it.
    Sass(sass::Options),
    /// Runs the conformance cases of the WebGPU backend's rows on Vulkan drivers that need no GPU.
    ///
    /// Without options on the system's lavapipe, all cases, as `test` has them among others. Needs Linux.
    Webgpu(webgpu::Options),
    /// Builds the page of `perjoule web` into target/web, which the feature `web` of perjoule-bench embeds.
    ///
    /// Rust's library for wasm comes by rustup, wasm-bindgen from crates.io. --test tries the page in a headless Chromium; it needs node
    /// and npm.
    Web(web::Options),
    /// Tries the GPU of this machine with everything there is; no part of `test` or `ci`.
    ///
    /// Conformance, golden models, kernels against vendors' rows, tuning, tokens and joules, compute-sanitizer: records and a summary
    /// go to target/gpu-check, or where --out says.
    Gpu(dist::GpuOptions),
    /// Packs what `gpu` runs for a machine without Rust: `target/dist/perjoule-VERSION-x86_64-linux-gnu.tar.gz`.
    ///
    /// It holds the binary, the conformance runner, the golden checkpoints and gpu-check.sh, and runs on Ubuntu 22.04 or newer.
    Dist,
    /// Fetches tools for tests that are ignored without them.
    Setup(setup::Options),
}

fn main() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask lies in the workspace")?;
    std::env::set_current_dir(root)?;
    match Cli::parse().task {
        Task::Test { filter } => test(&filter),
        Task::Lint => lint(),
        Task::Ci => {
            test(&[])?;
            lint()?;
            arm::arm(&arm::Options::default())?;
            cuda::cuda(&cuda::Options::default())?;
            sass::sass(&sass::Options::default())?;
            webgpu::samples().iter().try_for_each(webgpu::webgpu)?;
            web::web(&web::Options::test())
        }
        Task::Emulate(options) => emulate::emulate(&options),
        #[cfg(unix)]
        Task::Peers(options) => peers::peers(&options),
        Task::Arm(options) => arm::arm(&options),
        Task::Sanitize(options) => sanitize::sanitize(&options),
        Task::Cuda(options) => cuda::cuda(&options),
        Task::Sass(options) => sass::sass(&options),
        Task::Web(options) => web::web(&options),
        Task::Webgpu(options) => webgpu::webgpu(&options),
        Task::Gpu(options) => dist::gpu(&options),
        Task::Dist => dist::dist(),
        Task::Setup(options) => setup::setup(&options),
    }
}

/// What must be there when the tests run: its absence is a failure, not a skip. What was fetched once must work from then on.
fn required() -> Result<String> {
    let mut list = vec!["cpu"];
    if setup::is_done()? {
        list.push("nvrtc");
    }
    // in CI it has just been installed
    let ci = std::env::var_os("CI").is_some_and(|value| value == "true");
    if cfg!(target_os = "linux") && (ci || packages::lavapipe().is_some()) {
        list.push("webgpu");
    }
    Ok(list.join(","))
}

fn test(filter: &[String]) -> Result<()> {
    install_for_tests();
    install_chromium_in_ci();
    // the one optimised profile, which the binary shares
    let mut args = vec!["test", "--release", "--workspace", "--no-fail-fast"];
    if !filter.is_empty() {
        args.push("--");
        args.extend(filter.iter().map(String::as_str));
    }
    // `cargo test` builds the binary for a test of its own package; the end-to-end tests run the same one
    let binary = std::env::current_exe()?.with_file_name(format!("perjoule{}", std::env::consts::EXE_SUFFIX));
    let binary = binary.to_str().context("the target folder's path is not Unicode")?;
    cargo(&args, &[("PERJOULE_REQUIRE", &required()?), ("PERJOULE_BINARY", binary)])?;
    if filter.is_empty() {
        for example in EXAMPLES {
            run_example(&std::env::current_exe()?.with_file_name("examples").join(example))?;
        }
    }
    Ok(())
}

/// Examples, which check themselves. `cargo test` has built them; `cargo run` would resolve features anew and build their dependencies twice.
const EXAMPLES: [&str; 7] = ["matmul", "attention", "layer", "experts", "replay", "own_kernel", "busy_loop"];

fn run_example(path: &Path) -> Result<()> {
    let path = path.with_extension(std::env::consts::EXE_EXTENSION);
    eprintln!("xtask: {}", path.display());
    let status =
        Command::new(&path).status().with_context(|| format!("{} could not be started", path.display()))?;
    if !status.success() {
        bail!("{} failed ({status})", path.display());
    }
    Ok(())
}

fn lint() -> Result<()> {
    cargo(&["fmt", "--all", "--check"], &[])?;
    cargo(&["clippy", "--release", "--workspace", "--all-targets", "--", "--deny", "warnings"], &[])?;
    cargo(&["doc", "--release", "--workspace", "--no-deps"], &[("RUSTDOCFLAGS", "--deny warnings")])
}

fn cargo(args: &[&str], env: &[(&str, &str)]) -> Result<()> {
    let shown = format!("cargo {}", args.join(" "));
    eprintln!("xtask: {shown}");
    let mut command = cargo_command();
    command.args(args);
    for (name, value) in env {
        if std::env::var_os(name).is_none() {
            command.env(name, value);
        }
    }
    let status = command.status().with_context(|| format!("{shown} could not be started"))?;
    if !status.success() {
        bail!("{shown} failed ({status})");
    }
    Ok(())
}

/// The cargo that runs this.
fn cargo_command() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}
