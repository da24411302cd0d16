//! The binary on machines without NVIDIA's driver, or with a part of what it needs: that is told in a line, and nothing panics.
#![cfg(target_os = "linux")]

mod place;

use place::Place;
use std::path::Path;
use std::process::{Command, Output};

/// Builds a library by the name under which the driver is looked for first.
fn driver(place: &Place, source: &Path) {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let built = Command::new(rustc)
        .args([
            "--edition=2024",
            "--crate-type=cdylib",
            "--crate-name=fake_cuda",
            "-Clink-arg=-Wl,-soname,libcuda.so",
        ])
        .arg("-o")
        .arg(place.path("libcuda.so"))
        .arg(source)
        .status()
        .unwrap();
    assert!(built.success());
}

/// A driver that says yes to everything, and has four GPUs or none.
fn yes() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../backends/cuda/tests/fake/cuda.rs"))
}

/// Runs a command beside the libraries in the place's folder, where no Python brings others.
fn run(place: &Place, line: &str, env: &[(&str, &str)]) -> Output {
    let mut command = place.command(line);
    command.env("LD_LIBRARY_PATH", place.path("")).env("PATH", "").envs(env.iter().copied());
    for name in ["PERJOULE_CUDA_PATH", "CUDA_PATH", "CUDA_HOME", "VIRTUAL_ENV", "CONDA_PREFIX"] {
        command.env_remove(name);
    }
    command.output().unwrap()
}

/// Its stderr, where it was refused in one line.
fn refusal(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    assert_eq!(stderr.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{stderr}");
    stderr
}

/// Whether the table of `devices` has a row for one.
fn lists_a_gpu(text: &str) -> bool {
    text.lines().any(|line| line.trim_start().starts_with("cuda:0 "))
}

#[test]
fn without_a_driver_the_processor_is_there_and_the_gpu_is_not() {
    let place = Place::new();
    let listed = run(&place, "devices", &[]);
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(listed.status.success() && text.contains(" cpu "), "{text}");
    if lists_a_gpu(&text) {
        return; // there is one
    }
    assert!(text.contains("cuda: "), "{text}");
    let stderr = refusal(&run(&place, "run --device cuda:0", &[]));
    assert!(stderr.contains("no device \"cuda:0\"") && stderr.contains("driver"), "{stderr}");
}

#[test]
fn a_driver_without_gpus_says_so() {
    let place = Place::new();
    driver(&place, yes());
    let none = [("FAKE_CUDA", "none")];
    let listed = run(&place, "devices", &none);
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(listed.status.success() && text.contains("cuda: ") && !lists_a_gpu(&text), "{text}");
    let stderr = refusal(&run(&place, "check --device cuda:0", &none));
    assert!(stderr.contains("cuInit"), "{stderr}");
    let stderr = refusal(&run(&place, "run --device cuda:7", &[]));
    assert!(stderr.contains("cuda:0 to cuda:3"), "{stderr}");
}

#[test]
fn a_driver_that_lacks_a_function_is_too_old() {
    let place = Place::new();
    let source = place.path("old.rs");
    std::fs::write(&source, "#[unsafe(no_mangle)]\npub extern \"C\" fn cuInit() -> i32 { 0 }\n").unwrap();
    driver(&place, &source);
    let stderr = refusal(&run(&place, "run --device cuda:0", &[]));
    assert!(stderr.contains("too old"), "{stderr}");
}

#[test]
fn without_the_compiler_it_is_said_where_it_was_looked_for() {
    if Path::new("/usr/local/cuda").exists() || Path::new("/opt/cuda").exists() {
        return; // it may be there
    }
    let place = Place::new();
    driver(&place, yes());
    let stderr = refusal(&run(&place, "run --device cuda:0 --op add --budget 1", &[]));
    assert!(stderr.contains("NVRTC") && stderr.contains("PERJOULE_CUDA_PATH"), "{stderr}");
}
