//! Runs the conformance cases of the WebGPU backend on drivers that compute on the processor: what they cannot show is speed.

use crate::conformance::{self, Cases};
use crate::dist::target_folder;
use crate::packages::install_chromium_in_ci;
use crate::vulkan::{Adapter, mesa};
use anyhow::Result;
use std::fs;

/// What `cargo xtask webgpu` takes.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Drivers that the tests run on, in turn.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Driver::System])]
    driver: Vec<Driver>,
    /// Features that the device is opened without, where it has them, such as `subgroup,f16`.
    #[arg(long, default_value = "")]
    without: String,
    /// Runs only each so-manieth case of a row.
    #[arg(long, default_value_t = 1)]
    every: u32,
    /// Passed on to the conformance tests, such as a part of a row's name.
    #[arg(last = true)]
    filter: Vec<String>,
}

/// Vulkan drivers that compute on the processor.
#[derive(Clone, Copy, clap::ValueEnum)]
pub(crate) enum Driver {
    /// The lavapipe that the system has (22 on Debian 12).
    System,
    /// Lavapipe 26 in target/mesa, fetched at first (`cargo xtask setup --mesa`).
    #[value(name = "26")]
    Newer,
    /// SwiftShader, as Chromium brings it.
    #[value(name = "swiftshader")]
    SwiftShader,
}

impl From<Driver> for Adapter {
    fn from(driver: Driver) -> Self {
        match driver {
            Driver::System => Adapter::System,
            Driver::Newer => Adapter::Newer,
            Driver::SwiftShader => Adapter::SwiftShader,
        }
    }
}

/// What CI runs beside all cases on the system's lavapipe, which are among the tests of `test`.
pub(crate) fn samples() -> [Options; 2] {
    let sample = |driver: &[Driver], without: &str, every| Options {
        driver: driver.to_vec(),
        without: without.to_owned(),
        every,
        filter: Vec::new(),
    };
    [
        sample(&[Driver::Newer, Driver::SwiftShader], "", 7),
        sample(&[Driver::System], "subgroup,f16,timestamp,pipeline-cache", 28),
    ]
}

/// Builds the tests and runs them on the drivers.
pub(crate) fn webgpu(options: &Options) -> Result<()> {
    let adapters: Vec<Adapter> = options.driver.iter().map(|&driver| driver.into()).collect();
    if adapters.contains(&Adapter::Newer) {
        mesa()?;
    }
    if adapters.contains(&Adapter::SwiftShader) {
        install_chromium_in_ci();
    }
    for adapter in &adapters {
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
        command.env("XDG_RUNTIME_DIR", &runtime).env("PERJOULE_WEBGPU_WITHOUT", &options.without);
        let without = match options.without.as_str() {
            "" => String::new(),
            list => format!(", without {list}"),
        };
        devices.push((format!("{}{without}", adapter.name()), command));
    }
    let cases = Cases { backend: "webgpu", every: options.every, filter: &options.filter };
    let passed = conformance::run(&cases, devices)?;
    println!("{passed} tests passed on WebGPU without a GPU");
    Ok(())
}
