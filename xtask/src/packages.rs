//! Packages of the system that tests need: what is missing is installed with apt-get where that is allowed.

use std::path::Path;
use std::process::Command;

/// Where Vulkan's loader finds drivers that were installed as packages.
const DRIVERS: [&str; 3] = ["/usr/share/vulkan/icd.d", "/usr/local/share/vulkan/icd.d", "/etc/vulkan/icd.d"];

pub(crate) fn on_path(name: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(name).is_file()))
}

/// Whether packages may be installed that only some tasks need: with `CI=true`, as root.
pub(crate) fn may_install() -> bool {
    std::env::var_os("CI").is_some_and(|value| value == "true") && is_root()
}

fn is_root() -> bool {
    #[cfg(unix)]
    return rustix::process::geteuid().is_root();
    #[cfg(not(unix))]
    false
}

/// Installs packages; whether it succeeded. Lists of packages that are not there, as in images of containers, are fetched.
pub(crate) fn install(packages: &[&str]) -> bool {
    if !on_path("apt-get") {
        return false;
    }
    let apt = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(["-o", "Acquire::Retries=3"]).args(args).env("DEBIAN_FRONTEND", "noninteractive");
        command.status().is_ok_and(|status| status.success())
    };
    apt(&["update"]);
    apt(&[["install", "--yes", "--no-install-recommends"].as_slice(), packages].concat())
}

/// Installs Chromium where CI may: the test of the report's page in a browser says that it is ignored without one. Off unless `CI=true`,
/// Chromium is missing, and this is root; a failure to install is no failure of the tests.
pub(crate) fn install_chromium_in_ci() {
    let missing = !["chromium", "chromium-browser", "google-chrome"].iter().any(|name| on_path(name));
    if may_install() && missing && !install(&["chromium"]) {
        eprintln!("xtask: Chromium could not be installed; the test of the page in a browser is ignored");
    }
}

/// Installs what the tests of GPU backends need on machines without a GPU, as root where there is apt-get. Where that is not possible it
/// says what to install: those tests then fail or are reported as ignored.
pub(crate) fn install_for_tests() {
    let missing = missing_for_tests();
    if missing.is_empty() || is_root() && install(&missing) {
        return;
    }
    let names = missing.join(" ");
    eprintln!("xtask: tests of CUDA and WebGPU lack packages (on Debian: apt-get install {names})");
}

/// g++ compiles the kernels of the emulated GPU; lavapipe, Mesa's Vulkan on the processor, is a WebGPU device everywhere.
fn missing_for_tests() -> Vec<&'static str> {
    let mut missing = Vec::new();
    if cfg!(all(target_os = "linux", target_arch = "x86_64")) && !on_path("g++") {
        missing.push("g++");
    }
    if cfg!(target_os = "linux") {
        if lavapipe().is_none() {
            missing.push("mesa-vulkan-drivers");
        }
        if !has_loader() {
            missing.push("libvulkan1");
        }
    }
    missing
}

/// The manifest of the system's lavapipe, whose name differs between versions of Mesa.
pub(crate) fn lavapipe() -> Option<std::path::PathBuf> {
    let files =
        DRIVERS.into_iter().filter_map(|folder| Path::new(folder).read_dir().ok()).flatten().flatten();
    files.map(|file| file.path()).find(|path| is_lavapipe(path))
}

pub(crate) fn is_lavapipe(manifest: &Path) -> bool {
    let name = manifest.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with("lvp_icd") && name.ends_with(".json")
}

/// Whether the system has Vulkan's loader: directly below a folder of libraries, or in that of an architecture.
pub(crate) fn has_loader() -> bool {
    let folders = ["/usr/lib", "/usr/lib64", "/usr/local/lib"].map(Path::new);
    folders.into_iter().any(|folder| {
        let inner = folder.read_dir().into_iter().flatten().flatten().map(|entry| entry.path());
        inner.chain([folder.to_path_buf()]).any(|folder| folder.join("libvulkan.so.1").exists())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lavapipe_is_told_by_its_manifest() {
        let is = |name| is_lavapipe(&Path::new(DRIVERS[0]).join(name));
        assert!(is("lvp_icd.json") && is("lvp_icd.x86_64.json"));
        assert!(!is("intel_icd.json") && !is("lvp_icd.json.dpkg-old"));
    }
}
