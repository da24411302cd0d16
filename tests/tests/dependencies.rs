//! Dependencies point one way: kernels, shaders <- backends/* <- backends <- model <- bench-harness, tests. The suite needs kernels
//! only; formats needs record only; record, meter and catalogue stand alone.

use serde_json::Value;
use std::process::Command;

/// Every crate of the workspace with those of its own crates that it may depend on.
const ALLOWED: [(&str, &[&str]); 19] = [
    ("perjoule-kernels", &[]),
    ("perjoule-shaders", &[]),
    ("perjoule-record", &[]),
    ("perjoule-meter", &[]),
    ("perjoule-catalogue", &[]),
    ("perjoule-formats", &["perjoule-record"]),
    ("perjoule-suite", &["perjoule-kernels"]),
    ("perjoule-build", &[]),
    ("perjoule-cpu", &["perjoule-build", "perjoule-kernels"]),
    ("perjoule-webgpu", &["perjoule-build", "perjoule-kernels", "perjoule-shaders"]),
    ("perjoule-cuda", &["perjoule-build", "perjoule-kernels", "perjoule-shaders"]),
    ("perjoule", &["perjoule-kernels", "perjoule-cpu", "perjoule-webgpu", "perjoule-cuda"]),
    ("perjoule-model", &["perjoule-kernels", "perjoule"]),
    (
        "perjoule-engine",
        &["perjoule-kernels", "perjoule", "perjoule-model", "perjoule-suite", "perjoule-record"],
    ),
    (
        "perjoule-bench",
        &[
            "perjoule-kernels",
            "perjoule-cpu",
            "perjoule-webgpu",
            "perjoule-cuda",
            "perjoule",
            "perjoule-model",
            "perjoule-engine",
            "perjoule-suite",
            "perjoule-record",
            "perjoule-formats",
            "perjoule-meter",
            "perjoule-catalogue",
        ],
    ),
    (
        "perjoule-web",
        &[
            "perjoule-kernels",
            "perjoule-webgpu",
            "perjoule",
            "perjoule-model",
            "perjoule-engine",
            "perjoule-record",
            "perjoule-catalogue",
        ],
    ),
    (
        "perjoule-tests",
        &[
            "perjoule-kernels",
            "perjoule",
            "perjoule-suite",
            "perjoule-model",
            "perjoule-record",
            "perjoule-meter",
        ],
    ),
    // nothing but a test, whose dependencies are not looked at
    ("perjoule-conformance", &[]),
    ("xtask", &["perjoule-record"]),
];

#[test]
fn dependencies_point_one_way() {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let arguments = ["metadata", "--no-deps", "--format-version", "1", "--manifest-path", manifest];
    let output = Command::new(cargo).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let list = |value: &Value| value.as_array().unwrap().clone();
    let name = |value: &Value| value["name"].as_str().unwrap().to_string();
    let packages = list(&metadata["packages"]);
    let ours: Vec<String> = packages.iter().map(name).collect();
    let mut wrong = Vec::new();
    for package in &packages {
        let Some((of, allowed)) = ALLOWED.iter().find(|(of, _)| name(package) == *of) else {
            wrong.push(format!("{} has no place in the order of crates", name(package)));
            continue;
        };
        let built = |dependency: &&Value| dependency["kind"] != "dev";
        for dependency in list(&package["dependencies"]).iter().filter(built).map(name) {
            if ours.contains(&dependency) && !allowed.contains(&dependency.as_str()) {
                wrong.push(format!("{of} must not depend on {dependency}"));
            }
        }
    }
    assert!(packages.len() >= 10, "the whole workspace is looked at");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
