//! Bakes a hash of what the kernels are built from into the crate.

fn main() -> std::io::Result<()> {
    perjoule_build::bake_hash("PERJOULE_WEBGPU_BUILD", &["src", "../../shaders/wgsl"])
}
