//! Where the driver, NVRTC and vendors' libraries are looked for.
//!
//! In this order: the folders of `PERJOULE_CUDA_PATH` (separated as in `PATH`), the system's own search, `CUDA_PATH` and `CUDA_HOME`,
//! `/usr/local/cuda`, and the packages `nvidia/*/lib` of Python installations: of the active virtual environment and of each `python3`
//! on the `PATH`.

use libloading::Library;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Environment variable: folders in which libraries are looked for first.
pub const VARIABLE: &str = "PERJOULE_CUDA_PATH";

/// Why there is no driver.
pub(crate) fn no_driver() -> String {
    let name = if cfg!(windows) { "nvcuda.dll" } else { "libcuda.so.1" };
    format!("{name} was not found; on a machine with an NVIDIA GPU install NVIDIA's driver")
}

/// A shared library with the names it may have, newest first.
pub(crate) struct Wanted {
    /// What it is, for messages.
    pub(crate) what: &'static str,
    /// File names.
    pub(crate) names: &'static [&'static str],
    /// Libraries that it opens by itself and would not find outside the system's folders: opened first, from the same folder.
    pub(crate) first: &'static [&'static str],
    /// What to install where it is missing.
    pub(crate) install: &'static str,
}

/// NVIDIA's run-time compiler.
pub(crate) const NVRTC: Wanted = Wanted {
    what: "NVRTC, NVIDIA's run-time compiler",
    names: if cfg!(windows) {
        &["nvrtc64_130_0.dll", "nvrtc64_120_0.dll"]
    } else {
        &["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"]
    },
    first: if cfg!(windows) {
        &[]
    } else {
        &[
            "libnvrtc-builtins.so.13.0",
            "libnvrtc-builtins.so.13.1",
            "libnvrtc-builtins.so.13.2",
            "libnvrtc-builtins.so",
        ]
    },
    install: "the CUDA toolkit, or `pip install nvidia-cuda-nvrtc`",
};

/// Opens the library, once a process: it is never closed, since its functions are kept.
///
/// # Errors
/// Where it was looked for, and what to install.
pub(crate) fn open(wanted: &'static Wanted) -> Result<&'static Library, String> {
    static OPEN: Mutex<Option<HashMap<&'static str, &'static Library>>> = Mutex::new(None);
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    let open = open.get_or_insert_default();
    if let Some(library) = open.get(wanted.what) {
        return Ok(library);
    }
    let mut tried = Vec::new();
    for folder in folders() {
        for name in wanted.names {
            match load(folder.as_deref(), name, wanted.first) {
                Ok(library) => {
                    let library: &'static Library = Box::leak(Box::new(library));
                    open.insert(wanted.what, library);
                    return Ok(library);
                }
                Err(Some(error)) => tried.push(error),
                Err(None) => {}
            }
        }
    }
    let places: Vec<String> = folders().into_iter().flatten().map(|f| f.display().to_string()).collect();
    let tried = if tried.is_empty() { String::new() } else { format!(" ({})", tried.join("; ")) };
    Err(format!(
        "{} ({}) was not found in the system's library path nor in {}{tried}; install {}, or name its folder in {VARIABLE}",
        wanted.what,
        wanted.names.join(", "),
        places.join(", "),
        wanted.install,
    ))
}

/// One file. An error is told where the file is there and cannot be loaded.
fn load(folder: Option<&Path>, name: &str, first: &[&str]) -> Result<Library, Option<String>> {
    let path = match folder {
        Some(folder) => folder.join(name),
        None => PathBuf::from(name),
    };
    if folder.is_some() && !path.exists() {
        return Err(None);
    }
    if let Some(folder) = folder {
        for name in first.iter().map(|name| folder.join(name)).filter(|path| path.exists()) {
            // SAFETY: a library of the same package, which initialises itself; it is never closed.
            if let Ok(library) = unsafe { Library::new(&name) } {
                std::mem::forget(library);
            }
        }
    }
    // SAFETY: a library of the vendor, which initialises itself.
    let library = unsafe { Library::new(&path) };
    library.map_err(|error| folder.map(|_| format!("{}: {error}", path.display())))
}

/// Folders in order; `None` is the system's own search.
fn folders() -> Vec<Option<PathBuf>> {
    let mut list: Vec<Option<PathBuf>> = Vec::new();
    let mut push = |folder: PathBuf| {
        if folder.is_dir() && !list.contains(&Some(folder.clone())) {
            list.push(Some(folder));
        }
    };
    if let Some(paths) = std::env::var_os(VARIABLE) {
        for path in std::env::split_paths(&paths) {
            for sub in ["", "lib64", "lib", "bin"] {
                push(path.join(sub));
            }
        }
    }
    let own = list.len();
    let mut push = |folder: PathBuf| {
        if folder.is_dir() && !list.contains(&Some(folder.clone())) {
            list.push(Some(folder));
        }
    };
    let roots = ["CUDA_PATH", "CUDA_HOME"].into_iter().filter_map(std::env::var_os).map(PathBuf::from);
    for root in roots.chain(["/usr/local/cuda".into(), "/opt/cuda".into()]) {
        for sub in ["lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib", "bin"] {
            push(root.join(sub));
        }
    }
    for packages in python_packages() {
        // nvidia/cu13/lib holds all of CUDA 13; earlier ones have a folder for each library
        for entry in std::fs::read_dir(packages.join("nvidia")).into_iter().flatten().flatten() {
            push(entry.path().join("lib"));
            push(entry.path().join("bin"));
        }
    }
    list.insert(own, None);
    list
}

/// `site-packages` of the active virtual environment and of every `python3` on the `PATH`.
fn python_packages() -> Vec<PathBuf> {
    let mut prefixes: Vec<PathBuf> =
        ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(std::env::var_os).map(PathBuf::from).collect();
    let path = std::env::var_os("PATH").unwrap_or_default();
    for bin in std::env::split_paths(&path) {
        for name in ["python3", "python"] {
            let python = bin.join(name);
            if !python.exists() {
                continue;
            }
            // a virtual environment's python is a link out of it: both the link's prefix and its target's count
            prefixes.extend(bin.parent().map(Path::to_path_buf));
            if let Ok(real) = python.canonicalize() {
                prefixes.extend(real.parent().and_then(Path::parent).map(Path::to_path_buf));
            }
        }
    }
    let mut packages = Vec::new();
    for prefix in prefixes {
        for lib in ["lib", "lib64"] {
            for entry in std::fs::read_dir(prefix.join(lib)).into_iter().flatten().flatten() {
                if entry.file_name().to_string_lossy().starts_with("python3") {
                    packages.push(entry.path().join("site-packages"));
                    packages.push(entry.path().join("dist-packages"));
                }
            }
        }
        packages.push(prefix.join("Lib").join("site-packages")); // Windows
    }
    packages.retain(|folder| folder.join("nvidia").is_dir());
    packages.dedup();
    packages
}
