//! Fetches what tests can use and nobody has to have: NVIDIA's run-time compiler and disassembler, a newer Mesa.

use crate::packages::{install, may_install};
use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::process::Command;

/// From the Python Package Index, where NVIDIA publishes them.
const PACKAGES: [&str; 2] = ["nvidia-cuda-nvrtc==13.0.88", "nvidia-cuda-nvdisasm==13.2.51"];
/// What must be there in the end.
const FILES: [&str; 2] = ["nvidia/cu13/lib/libnvrtc.so.13", "nvidia/cu13/bin/nvdisasm"];

/// What `cargo xtask setup` takes.
#[derive(clap::Args)]
#[group(required = true, multiple = true)]
pub(crate) struct Options {
    /// NVRTC and nvdisasm (about 100 MB), into target/nvrtc: every CUDA kernel is then compiled and looked at by the tests, without a GPU.
    #[arg(long)]
    nvrtc: bool,
    /// Lavapipe 26, Mesa's Vulkan on the processor (61 MB), into target/mesa: `cargo xtask webgpu` runs on it. Needs Debian on x86-64.
    #[arg(long)]
    mesa: bool,
}

/// Whether all of NVIDIA's is there.
pub(crate) fn is_done() -> Result<bool> {
    Ok(is_complete(&crate::dist::target_folder()?.join("nvrtc")))
}

/// Fetches what is missing of what was asked for.
pub(crate) fn setup(options: &Options) -> Result<()> {
    if options.nvrtc {
        nvrtc()?;
    }
    if options.mesa {
        println!("{} is complete", crate::vulkan::mesa()?.display());
    }
    Ok(())
}

/// Fetches NVIDIA's compiler and disassembler, unless they are there.
pub(crate) fn nvrtc() -> Result<()> {
    let folder = crate::dist::target_folder()?.join("nvrtc");
    if is_complete(&folder) {
        println!("{} is complete", folder.display());
        return Ok(());
    }
    ensure!(cfg!(target_os = "linux"), "needs Linux: the packages for it are the ones that are named here");
    let mut pip = Command::new("python3");
    let has_pip = Command::new("python3").args(["-m", "pip", "--version"]).output();
    if may_install() && !has_pip.is_ok_and(|out| out.status.success()) {
        // whether that succeeded shows when it is started
        install(&["python3-pip"]);
    }
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--upgrade"]);
    pip.args(["--only-binary", ":all:", "--target"]).arg(&folder).args(PACKAGES);
    let status = pip.status().context("python3 could not be started")?;
    ensure!(status.success(), "pip failed ({status}); is it there? apt-get install python3-pip");
    ensure!(is_complete(&folder), "pip installed other files than expected into {}", folder.display());
    println!("{} is complete", folder.display());
    Ok(())
}

fn is_complete(folder: &Path) -> bool {
    FILES.iter().all(|file| folder.join(file).is_file())
}
