//! The CUDA driver and compiler of `tests/emulator/`, built by g++: perjoule-cuda runs on them as it does on NVIDIA's, without a GPU.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Environment variable: makes the conformance run on the emulated driver; its value is the compute capability times ten, such as 90.
pub const VARIABLE: &str = "PERJOULE_EMULATE";

/// The two libraries in a folder.
#[derive(Debug, Clone)]
pub struct Emulator {
    folder: PathBuf,
}

impl Emulator {
    /// Builds the libraries into the target folder, unless they are there.
    ///
    /// # Errors
    /// What is missing, or what the compiler says.
    pub fn build() -> Result<Self, String> {
        if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
            return Err("CUDA is emulated on x86-64 Linux only".into());
        }
        let io = |e: io::Error| format!("the CUDA emulator cannot be built: {e}");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("emulator");
        let executable = std::env::current_exe().map_err(io)?;
        // target/<profile>/deps/<test>
        let target = executable.ancestors().nth(3).unwrap_or(Path::new("target")).join("emulator");
        let folder = target.join(format!("{:016x}", digest(&source).map_err(io)?));
        let done = Ok(Emulator { folder: folder.clone() });
        if folder.exists() {
            return done;
        }
        // under a name of its own: other tests may build it, too
        let part = target.join(format!("part-{}", std::process::id()));
        fs::create_dir_all(&part).map_err(io)?;
        let include = format!("-DPERJOULE_EMULATOR=\"{}\"", source.display());
        compile(&source, &part, "libcuda.so.1", &["cuda.cpp", "machine.cpp"], &["-O2".into()])?;
        compile(&source, &part, "libnvrtc.so.13", &["nvrtc.cpp"], &["-O1".into(), include])?;
        #[cfg(unix)]
        for name in ["libcuda.so.1", "libnvrtc.so.13"] {
            // the plain names are looked for first, and might be found elsewhere
            let plain = name.split_inclusive(".so").next().unwrap_or(name);
            std::os::unix::fs::symlink(name, part.join(plain)).map_err(io)?;
        }
        match fs::rename(&part, &folder) {
            Err(_) if folder.exists() => fs::remove_dir_all(&part).map_err(io)?,
            other => other.map_err(io)?,
        }
        done
    }

    /// Lets a command find the libraries. `sm` is the compute capability times ten. Compiled kernels are kept beside the libraries.
    pub fn apply(&self, command: &mut Command, sm: u32) {
        let mut path = OsString::from(&self.folder);
        if let Some(given) = std::env::var_os("LD_LIBRARY_PATH").filter(|given| !given.is_empty()) {
            path.push(":");
            path.push(given);
        }
        command.env("LD_LIBRARY_PATH", path).env("PERJOULE_CUDA_PATH", &self.folder);
        command.env("PERJOULE_CUDA_CACHE", self.folder.join("cache"));
        command.env("PERJOULE_EMULATED_SM", sm.to_string());
    }
}

/// Of all sources, and where they lie: the compiler of kernels reads its headers there.
fn digest(source: &Path) -> io::Result<u64> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(source)?.map(|entry| entry.map(|e| e.path())).collect::<io::Result<_>>()?;
    files.sort();
    let mut hasher = DefaultHasher::new();
    for file in files {
        file.hash(&mut hasher);
        fs::read(&file)?.hash(&mut hasher);
    }
    Ok(hasher.finish())
}

fn compile(source: &Path, to: &Path, name: &str, files: &[&str], options: &[String]) -> Result<(), String> {
    let mut command = Command::new("g++");
    command.args(["-std=c++17", "-fPIC", "-shared", "-pthread", "-Wall", "-Wextra"]).args(options);
    command.arg(format!("-Wl,-soname,{name}")).arg("-o").arg(to.join(name));
    command.args(files.iter().map(|file| source.join(file))).arg(OsStr::new("-ldl"));
    let output = command.output().map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => {
            "g++ is missing, which the CUDA emulator is built with: apt-get install g++".into()
        }
        _ => format!("g++ could not be started: {e}"),
    })?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{name} does not build:\n{}", String::from_utf8_lossy(&output.stderr))),
    }
}
