//! CUDA without a GPU, on the emulated driver and compiler of `tests/emulator/`: failures of compiler, memory and kernels, threads, and whole
//! models. What single kernels compute the conformance suite checks (`cargo xtask cuda`).
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use perjoule::{DType, Error, Tensor, ops};
use perjoule_tests::emulator::Emulator;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::OnceLock;

mod place;
use place::Place;

fn emulator() -> &'static Emulator {
    static EMULATOR: OnceLock<Emulator> = OnceLock::new();
    EMULATOR.get_or_init(|| Emulator::build().unwrap_or_else(|error| panic!("{error}")))
}

/// A command of perjoule on the emulated GPU.
fn emulated(place: &Place, line: &str) -> Command {
    let mut command = place.command(line);
    emulator().apply(&mut command, 90);
    command
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Runs an ignored test of this file in a process of its own, on the emulated GPU.
fn inside(name: &str, environment: &[(&str, &str)]) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--ignored", "--nocapture"]);
    emulator().apply(&mut command, 80);
    command.envs(environment.iter().copied());
    let output = command.output().unwrap();
    let text = text(&output);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

const ADD: &str = "check --device cuda:0 --kernel add_any_32_cuda_any";

// ---- what is missing or broken ----

#[test]
fn a_gpu_that_is_taken_is_an_error_that_says_so() {
    let place = Place::new();
    let mut command = emulated(&place, ADD);
    let output = command.env("PERJOULE_EMULATED_FAULT", "busy").output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(2) && !stderr.contains("panicked"), "{stderr}");
    assert!(
        stderr.contains("no device \"cuda:0\"") && stderr.contains("CUDA_ERROR_DEVICE_UNAVAILABLE"),
        "{stderr}"
    );
}

#[test]
fn what_does_not_compile_comes_with_the_compilers_log() {
    let place = Place::new();
    for (fault, log) in [("nvrtc", "this compiler was told to fail"), ("builtins", "libnvrtc-builtins")] {
        let mut command = emulated(&place, ADD);
        command.env("PERJOULE_EMULATED_FAULT", fault).env("PERJOULE_CUDA_CACHE", "off");
        let output = command.output().unwrap();
        let text = text(&output);
        assert!(!output.status.success() && !text.contains("panicked"), "{text}");
        assert!(text.contains(log) && text.contains("cuda/add/rows.cu"), "{text}");
    }
}

#[test]
fn a_damaged_cache_is_compiled_again() {
    let place = Place::new();
    let cache = place.path("kernels");
    let run = || {
        let output = emulated(&place, ADD).env("PERJOULE_CUDA_CACHE", &cache).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        let files: Vec<_> = std::fs::read_dir(&cache).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(
            !files.is_empty() && files.iter().all(|file| file.extension().unwrap() == "cubin"),
            "{files:?}"
        );
        files.iter().map(|file| (file.clone(), std::fs::read(file).unwrap())).collect::<Vec<_>>()
    };
    let whole = run();
    for damage in [
        |bytes: &[u8]| bytes[..bytes.len() / 2].to_vec(),
        |bytes: &[u8]| [&bytes[..bytes.len() - 1], &[!bytes[bytes.len() - 1]]].concat(),
        |_: &[u8]| Vec::new(),
    ] {
        for (file, bytes) in &whole {
            std::fs::write(file, damage(bytes)).unwrap();
        }
        let again = run();
        assert!(
            again.iter().zip(&whole).all(|(now, before)| now.1.len() == before.1.len() && now.0 == before.0),
            "each file is whole again"
        );
    }
    // a folder that cannot be written is no reason to fail
    std::fs::write(place.path("file"), "").unwrap();
    let output = emulated(&place, ADD).env("PERJOULE_CUDA_CACHE", place.path("file")).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
}

// ---- memory, faults, threads ----

#[test]
fn out_of_memory_is_an_error_after_which_the_device_works() {
    inside("inside_little_memory", &[("PERJOULE_EMULATED_MEMORY", "67108864")]);
}

#[test]
fn a_kernel_that_faults_loses_the_device_and_nothing_else() {
    inside("inside_a_faulty_kernel", &[("PERJOULE_EMULATED_FAULT", "launch=add_rows")]);
}

#[test]
fn threads_share_a_device() {
    inside("inside_many_threads", &[]);
}

fn ramp(device: &perjoule::Device, rows: usize, columns: usize) -> Tensor {
    let values: Vec<f32> = (0..rows * columns).map(|i| (i % 13) as f32 - 6.0).collect();
    Tensor::from_slice(device, &values, [rows, columns]).unwrap()
}

#[test]
#[ignore = "run by out_of_memory_is_an_error_after_which_the_device_works"]
fn inside_little_memory() {
    let device = perjoule::open("cuda:0").unwrap();
    match Tensor::zeros(&device, DType::F32, [64 << 20]) {
        Err(Error::OutOfMemory { need, available: Some(available), .. }) => {
            assert!(need == 256 << 20 && available <= 64 << 20);
        }
        other => panic!("{:?}", other.map(|_| ())),
    }
    // what is freed is there again, though its last use may still be under way
    for _ in 0..20 {
        let x = Tensor::zeros(&device, DType::F32, [4 << 20]).unwrap();
        let y = ops::add(&x, &x).unwrap();
        assert_eq!(y.slice(0, 0..2).unwrap().to_vec::<f32>().unwrap(), [0.0; 2]);
    }
    let mut many = Vec::new();
    let error = loop {
        match Tensor::zeros(&device, DType::F32, [1 << 20]) {
            Ok(tensor) => many.push(tensor),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::OutOfMemory { .. }) && many.len() >= 12, "{error}, after {}", many.len());
    drop(many);
    let a = ramp(&device, 3, 4);
    let sum = ops::add(&a, &a).unwrap().to_vec::<f32>().unwrap();
    assert_eq!(sum[..3], [-12.0, -10.0, -8.0]);
}

#[test]
#[ignore = "run by a_kernel_that_faults_loses_the_device_and_nothing_else"]
fn inside_a_faulty_kernel() {
    let device = perjoule::open("cuda:0").unwrap();
    let (a, b) = (ramp(&device, 8, 64), ramp(&device, 64, 8));
    // other kernels run
    assert_eq!(ops::matmul(&a, &b).unwrap().to_vec::<f32>().unwrap().len(), 64);
    let error = ops::add(&a, &a).and_then(|sum| sum.to_vec::<f32>()).unwrap_err();
    let Error::Fault { kernel, detail } = &error else { panic!("{error}") };
    assert!(kernel.starts_with("add_") && detail.contains("illegal memory access"), "{error}");
    // from then on everything says that the device is lost, and why
    for error in [
        ops::matmul(&a, &b).map(|_| ()).unwrap_err(),
        Tensor::zeros(&device, DType::F32, [4]).map(|_| ()).unwrap_err(),
        a.to_vec::<f32>().map(|_| ()).unwrap_err(),
    ] {
        assert!(
            matches!(error, Error::Lost { .. }) && error.to_string().contains("illegal memory"),
            "{error}"
        );
    }
    drop((a, b, device));
    // other devices work
    let cpu = perjoule::open("cpu").unwrap();
    let a = ramp(&cpu, 1, 3);
    assert_eq!(ops::add(&a, &a).unwrap().to_vec::<f32>().unwrap(), [-12.0, -10.0, -8.0]);
    let error = perjoule::open("cuda:0").map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::NoDevice { .. }), "{error}");
}

#[test]
#[ignore = "run by threads_share_a_device"]
fn inside_many_threads() {
    let device = perjoule::open("cuda:0").unwrap();
    let cpu = perjoule::open("cpu").unwrap();
    let product = |device: &perjoule::Device, n: usize| {
        let (a, b) = (ramp(device, n, 24), ramp(device, 24, n));
        let sums = ops::add(&ops::matmul(&a, &b).unwrap(), &ops::matmul(&a, &b).unwrap()).unwrap();
        sums.to_vec::<f32>().unwrap()
    };
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (device, cpu) = (&device, &cpu);
            scope.spawn(move || {
                for n in 1..12 {
                    assert_eq!(product(device, n + thread), product(cpu, n + thread));
                }
            });
        }
    });
}

// ---- whole models ----

#[test]
fn models_give_the_golden_logits() {
    let place = Place::new();
    for (model, dtype) in [("llama", ""), ("qwen3_moe", "--dtype bf16"), ("gpt_oss_mxfp4", "")] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("checkpoints").join(model);
        let line = format!("check --device cuda:0 --model {} {dtype}", folder.display());
        let output = emulated(&place, &line).output().unwrap();
        assert!(output.status.success(), "{model}: {}", text(&output));
    }
}
