//! Dependencies point one way: kernels, shaders <- backends/* <- backends <- model <- bench-harness, tests. The suite needs kernels
//! only; record and meter stand alone.

use cargo_metadata::{DependencyKind, MetadataCommand};

/// Every crate of the workspace with those of its own crates that it may depend on.
const ALLOWED: [(&str, &[&str]); 14] = [
    ("perjoule-kernels", &[]),
    ("perjoule-shaders", &[]),
    ("perjoule-record", &[]),
    ("perjoule-meter", &[]),
    ("perjoule-suite", &["perjoule-kernels"]),
    ("perjoule-cpu", &["perjoule-kernels"]),
    ("perjoule-webgpu", &["perjoule-kernels", "perjoule-shaders"]),
    ("perjoule-cuda", &["perjoule-kernels", "perjoule-shaders"]),
    ("perjoule", &["perjoule-kernels", "perjoule-cpu", "perjoule-webgpu", "perjoule-cuda"]),
    ("perjoule-model", &["perjoule-kernels", "perjoule"]),
    (
        "perjoule-bench",
        &[
            "perjoule-kernels",
            "perjoule-cpu",
            "perjoule-webgpu",
            "perjoule-cuda",
            "perjoule",
            "perjoule-model",
            "perjoule-suite",
            "perjoule-record",
            "perjoule-meter",
        ],
    ),
    (
        "perjoule-web",
        &["perjoule-kernels", "perjoule-webgpu", "perjoule", "perjoule-model", "perjoule-record"],
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
    ("xtask", &[]),
];

#[test]
fn dependencies_point_one_way() {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
    let metadata = MetadataCommand::new().manifest_path(manifest).no_deps().exec().unwrap();
    let packages = &metadata.packages;
    let mut wrong = Vec::new();
    for package in packages {
        let Some((_, allowed)) = ALLOWED.iter().find(|(name, _)| package.name == *name) else {
            wrong.push(format!("{} has no place in the order of crates", package.name));
            continue;
        };
        for dependency in package.dependencies.iter().filter(|d| d.kind != DependencyKind::Development) {
            let ours = packages.iter().any(|p| p.name == dependency.name);
            if ours && !allowed.contains(&dependency.name.as_str()) {
                wrong.push(format!("{} must not depend on {}", package.name, dependency.name));
            }
        }
    }
    assert!(packages.len() >= 10, "the whole workspace is looked at");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
