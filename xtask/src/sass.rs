//! Compiles the CUDA backend's kernels to machine code and holds what it takes against the ratchet: `backends/cuda/tests/sass.rs` says how.

use crate::setup;
use anyhow::{Result, ensure};

/// Of the variants of a kernel for a target, this part; with the others' hashes that takes a few minutes on two cores.
const EVERY: u32 = 8;

/// What `cargo xtask sass` takes.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Compiles each so-manieth variant of a kernel for a target, and whatever differs from the ratchet.
    #[arg(long, default_value_t = EVERY)]
    every: u32,
    /// Writes the ratchet anew: what was compiled, and no more what no row asks for. Spills are refused all the same.
    #[arg(long)]
    bless: bool,
    /// Passed on to the test, such as a part of a kernel's name.
    #[arg(last = true)]
    filter: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Options { every: EVERY, bless: false, filter: Vec::new() }
    }
}

/// Fetches the compiler where it is missing, and runs the test; fails where it cannot be had.
pub(crate) fn sass(options: &Options) -> Result<()> {
    ensure!(options.every > 0, "--every counts from 1, which is every variant");
    setup::nvrtc()?;
    let every = options.every.to_string();
    let mut env = vec![("PERJOULE_REQUIRE", "nvrtc"), ("PERJOULE_SASS", &every)];
    if options.bless {
        env.push(("PERJOULE_BLESS", "1"));
    }
    // of the whole workspace, whose tests have built the same
    let mut args =
        vec!["test", "--release", "--workspace", "--test", "sass", "--", "--color", "never", "--quiet"];
    args.extend(options.filter.iter().map(String::as_str));
    crate::cargo(&args, &env)
}
