//! Runs the conformance cases of the CUDA backend on an emulated GPU: tests/emulator says what it computes, and what it cannot show.

use crate::conformance::{self, Cases};
use crate::packages::{install, may_install, on_path};
use anyhow::{Result, ensure};
use std::process::Command;

/// Compute capabilities: one without the instructions that rows may ask for, one with mma.sync and cp.async, one with Hopper's.
const CAPABILITIES: [u32; 3] = [75, 80, 90];
/// Of the cases of every row, this part.
const EVERY: u32 = 24;

/// What `cargo xtask cuda` takes.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Compute capabilities of the emulated GPU, times ten, in turn.
    #[arg(long, value_delimiter = ',', default_values_t = CAPABILITIES)]
    sm: Vec<u32>,
    /// Runs only each so-manieth case of a row.
    #[arg(long, default_value_t = EVERY)]
    every: u32,
    /// Passed on to the conformance tests, such as a part of a row's name.
    #[arg(last = true)]
    filter: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Options { sm: CAPABILITIES.to_vec(), every: EVERY, filter: Vec::new() }
    }
}

/// Builds the tests, runs them on every capability, and fails unless all passed and, without a filter, each ran something.
pub(crate) fn cuda(options: &Options) -> Result<()> {
    ensure!(
        cfg!(all(target_os = "linux", target_arch = "x86_64")),
        "needs x86-64 Linux: the emulator's fibers are written for it"
    );
    if !on_path("g++") && may_install() {
        // whether that succeeded shows when it is looked for
        install(&["g++"]);
    }
    ensure!(on_path("g++"), "g++ is missing, which compiles the kernels: apt-get install g++");
    let test = conformance::build()?;
    let devices = options.sm.iter().map(|sm| {
        let mut command = Command::new(&test);
        command.env("PERJOULE_EMULATE", sm.to_string());
        (format!("an emulated GPU of compute capability {}.{}", sm / 10, sm % 10), command)
    });
    let cases = Cases { backend: "cuda", every: options.every, filter: &options.filter };
    let passed = conformance::run(&cases, devices.collect())?;
    println!("{passed} tests passed on the emulated GPU");
    Ok(())
}
