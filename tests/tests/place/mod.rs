//! The binary, and a folder to run it in: shared by the tests of the command line.
#![allow(dead_code, unreachable_pub)] // each test uses a part of it

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// The binary that `PERJOULE_BINARY` names, or the optimised one of this workspace, built on first use: it belongs to another package, so
/// cargo does not build it for a test.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(named) = std::env::var_os("PERJOULE_BINARY") {
            return named.into();
        }
        let test = std::env::current_exe().unwrap();
        let target = test.ancestors().nth(3).unwrap();
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let status = Command::new(cargo)
            .args(["build", "--quiet", "--release", "--package", "perjoule-bench", "--target-dir"])
            .arg(target)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status()
            .unwrap();
        assert!(status.success(), "the binary does not build");
        target.join("release").join(format!("perjoule{}", std::env::consts::EXE_SUFFIX))
    })
}

/// A folder of its own for each test, and commands that run in it.
pub struct Place(pub tempfile::TempDir);

impl Place {
    pub fn new() -> Self {
        Place(tempfile::tempdir().unwrap())
    }

    pub fn command(&self, line: &str) -> Command {
        let mut command = Command::new(binary());
        command.args(line.split_whitespace()).current_dir(self.0.path()).env("NO_COLOR", "1");
        command.env("XDG_CACHE_HOME", self.0.path().join("cache"));
        command
    }

    pub fn run(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    /// Runs a command that must succeed; gives its stdout.
    pub fn ok(&self, line: &str) -> String {
        let output = self.run(line);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{line}: {stderr}");
        assert!(!stderr.contains("panicked"), "{line}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a command that must be refused: exit code 2, nothing that looks like data, one line that holds `part`.
    pub fn refused(&self, line: &str, part: &str) {
        let output = self.run(line);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{line}: {stderr}");
        let errors: Vec<&str> = stderr.lines().filter(|l| l.starts_with("error: ")).collect();
        assert_eq!(errors.len(), 1, "{line}: {stderr}");
        assert!(errors[0].contains(part), "{line}: {part:?} is not in {stderr}");
        assert!(!stderr.contains("panicked"), "{line}: {stderr}");
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}
