//! Runs the conformance cases of the WebGPU backend on drivers that compute on the processor: what they cannot show is speed.

use crate::conformance::{self, Cases};
use crate::dist::target_folder;
use crate::vulkan::{Adapter, mesa};
use anyhow::Result;
use std::fs;

/// What `cargo xtask webgpu` takes.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The driver that the tests run on.
    #[arg(long, value_enum, default_value_t = Driver::System)]
    mesa: Driver,
    /// Runs only each so-manieth case of a row.
    #[arg(long, default_value_t = 1)]
    every: u32,
    /// Passed on to the conformance tests, such as a part of a row's name.
    #[arg(last = true)]
    filter: Vec<String>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Driver {
    /// The lavapipe that the system has (22 on Debian 12).
    #[value(alias = "22")]
    System,
    /// Lavapipe 26 in target/mesa, fetched at first (`cargo xtask setup --mesa`).
    #[value(name = "26")]
    Newer,
    /// SwiftShader, as Chromium brings it.
    #[value(name = "swiftshader")]
    SwiftShader,
    /// Those three in turn.
    All,
}

/// Builds the tests and runs them on the drivers.
pub(crate) fn webgpu(options: &Options) -> Result<()> {
    let adapters: &[Adapter] = match options.mesa {
        Driver::System => &[Adapter::System],
        Driver::Newer => &[Adapter::Newer],
        Driver::SwiftShader => &[Adapter::SwiftShader],
        Driver::All => &Adapter::ALL,
    };
    if adapters.contains(&Adapter::Newer) {
        mesa()?;
    }
    for adapter in adapters {
        // what is missing is known before minutes of building
        adapter.manifest()?;
    }
    // without one, libraries of window systems warn
    let runtime = target_folder()?.join("webgpu");
    fs::create_dir_all(&runtime)?;
    let test = conformance::build()?;
    let mut devices = Vec::new();
    for adapter in adapters {
        let mut command = adapter.command(&test)?;
        command.env("XDG_RUNTIME_DIR", &runtime);
        devices.push((adapter.name().to_string(), command));
    }
    let cases = Cases { backend: "webgpu", every: options.every, filter: &options.filter };
    let passed = conformance::run(&cases, devices)?;
    println!("{passed} tests passed on WebGPU without a GPU");
    Ok(())
}
