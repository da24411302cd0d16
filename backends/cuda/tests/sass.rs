//! The machine code of every kernel, without a GPU.
//!
//! A driver that does nothing stands in for NVIDIA's (`fake/cuda.rs`): every row is prepared on it for every conformance case, and what it
//! asks the compiler for is noted. So no variant can be forgotten that a case reaches. Each is then compiled by NVRTC and looked at by
//! nvdisasm: nothing may be spilled, no stack used, no warning of the assembler be there (`C75xx`: serialised wgmma, ignored setmaxnreg),
//! registers, shared memory and instructions be as in `sass/ratchet.toml`, and instructions be there that `sass/expected.toml` asks for.
//!
//! What has another hash (of source, headers and options) than in the ratchet is compiled, and with `PERJOULE_SASS=8` each eighth variant of a
//! source for a target besides. `PERJOULE_BLESS=1` writes the ratchet anew. `cargo xtask sass` sets these and fetches what it needs (as
//! `cargo xtask setup --nvrtc` does); without it the test says that it is ignored, or fails where `PERJOULE_REQUIRE` names `nvrtc`.

#[cfg(target_os = "linux")]
#[path = "sass/mod.rs"]
mod sass;

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    sass::main()
}

#[cfg(not(target_os = "linux"))]
fn main() {}
