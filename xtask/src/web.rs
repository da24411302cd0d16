//! The page of `perjoule web`: built into target/web, and tried in a browser.

use crate::cargo_command;
use crate::dist::target_folder;
use crate::packages::{install_chromium_in_ci, on_path};
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const TARGET: &str = "wasm32-unknown-unknown";
/// The profile of the workspace that is made for download.
const PROFILE: &str = "browser";
/// Files that the page is made of, beside the module: where they lie, and what they are called there.
const FILES: [(&str, &str); 12] = [
    ("bench-harness/web/page/index.html", "index.html"),
    ("bench-harness/web/page/page.css", "page.css"),
    ("bench-harness/web/page/page.js", "page.js"),
    ("bench-harness/web/page/engine.js", "engine.js"),
    ("bench-harness/web/page/worker.js", "worker.js"),
    ("bench-harness/assets/report.css", "report.css"),
    ("bench-harness/assets/vega/vega.min.js", "vega.min.js"),
    ("bench-harness/assets/vega/vega-lite.min.js", "vega-lite.min.js"),
    ("bench-harness/assets/vega/vega-embed.min.js", "vega-embed.min.js"),
    ("bench-harness/assets/vega/LICENSE-vega", "LICENSE-vega.txt"),
    ("bench-harness/assets/vega/LICENSE-vega-lite", "LICENSE-vega-lite.txt"),
    ("bench-harness/assets/vega/LICENSE-vega-embed", "LICENSE-vega-embed.txt"),
];

/// What `cargo xtask web` takes.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Tries the page in a headless Chromium, on its software adapter: kernels right, records read by perjoule, no WebGPU, two tabs.
    #[arg(long)]
    test: bool,
    /// With --test: pictures of the page at two widths go to this folder.
    #[arg(long, value_name = "FOLDER", requires = "test")]
    pictures: Option<PathBuf>,
}

impl Options {
    /// Tries the page.
    pub(crate) fn test() -> Self {
        Options { test: true, pictures: None }
    }
}

/// Builds the page, and tries it where that is asked for.
pub(crate) fn web(options: &Options) -> Result<()> {
    if options.test {
        // what is missing is known before minutes of building
        install_chromium_in_ci();
        browser()?;
        ensure!(on_path("node") && on_path("npm"), "node and npm are missing: apt-get install nodejs npm");
    }
    let page = build()?;
    if options.test { test(&page, options.pictures.as_deref()) } else { Ok(()) }
}

fn build() -> Result<PathBuf> {
    wasm_target()?;
    let bindgen = bindgen()?;
    let commit = output(Command::new("git").args(["rev-parse", "--short=12", "HEAD"])).ok();
    let rustc = output(Command::new("rustc").arg("--version")).ok();
    let mut cargo = cargo_command();
    cargo.args(["build", "--profile", PROFILE, "--target", TARGET, "--package", "perjoule-web"]);
    cargo.envs(commit.map(|commit| ("PERJOULE_BUILD_COMMIT", commit)));
    cargo.envs(rustc.map(|rustc| ("PERJOULE_RUSTC", rustc)));
    run(&mut cargo)?;
    let target = target_folder()?;
    let page = target.join("web");
    fs::create_dir_all(&page)?;
    let module = target.join(TARGET).join(PROFILE).join("perjoule_web.wasm");
    let mut command = Command::new(bindgen);
    command.args([
        "--target",
        "web",
        "--no-typescript",
        "--remove-name-section",
        "--out-name",
        "perjoule_web",
        "--out-dir",
    ]);
    run(command.arg(&page).arg(&module))?;
    for (from, to) in FILES {
        fs::copy(from, page.join(to)).with_context(|| format!("{from} could not be copied"))?;
    }
    let size = fs::metadata(page.join("perjoule_web_bg.wasm"))?.len();
    println!("{}: the page, with a module of {} KiB", page.display(), size >> 10);
    Ok(page)
}

/// Rust's library for wasm, which rustup fetches.
fn wasm_target() -> Result<()> {
    let sysroot = output(Command::new("rustc").args(["--print", "sysroot"]))?;
    if Path::new(&sysroot).join("lib/rustlib").join(TARGET).is_dir() {
        return Ok(());
    }
    ensure!(on_path("rustup"), "Rust's library for {TARGET} is missing, and there is no rustup to add it");
    run(Command::new("rustup").args(["target", "add", TARGET]))
}

/// The program that binds the module to JavaScript. Its version is that of the library, which Cargo.lock names: one on the PATH, or one of
/// our own in target/wasm-bindgen, which is built from crates.io at first.
fn bindgen() -> Result<PathBuf> {
    let lock = fs::read_to_string("Cargo.lock").context("Cargo.lock")?;
    let version = locked_version(&lock, "wasm-bindgen").context("Cargo.lock names no wasm-bindgen")?;
    let root = target_folder()?.join("wasm-bindgen").join(version);
    let own = root.join("bin").join(format!("wasm-bindgen{}", std::env::consts::EXE_SUFFIX));
    for program in [PathBuf::from("wasm-bindgen"), own.clone()] {
        let said = output(Command::new(&program).arg("--version")).unwrap_or_default();
        if said.split_whitespace().nth(1) == Some(version) {
            return Ok(program);
        }
    }
    let exact = format!("={version}");
    let mut cargo = cargo_command();
    cargo.args(["install", "wasm-bindgen-cli", "--version", &exact, "--root"]).arg(&root);
    run(cargo.arg("--target-dir").arg(root.join("build")))?;
    fs::remove_dir_all(root.join("build"))?;
    Ok(own)
}

/// The version of a package in the text of a lock file.
fn locked_version<'l>(lock: &'l str, name: &str) -> Option<&'l str> {
    let mut lines = lock.lines();
    lines.find(|line| line.strip_prefix("name = ").is_some_and(|n| n.trim_matches('"') == name))?;
    Some(lines.next()?.strip_prefix("version = ")?.trim_matches('"'))
}

fn browser() -> Result<PathBuf> {
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let found = std::env::var_os("PATH").and_then(|path| {
        let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
        names.iter().flat_map(|name| folders.iter().map(move |f| f.join(name))).find(|file| file.is_file())
    });
    found.with_context(|| {
        format!("no browser is on the PATH ({}): apt-get install chromium", names.join(", "))
    })
}

/// Serves the page by `perjoule web` to a browser that a script drives, and reads what it downloads.
fn test(page: &Path, pictures: Option<&Path>) -> Result<()> {
    let mut cargo = cargo_command();
    // as for the workspace's tests, which have built its dependencies with the same features; the test named here comes with the binary
    cargo.args(["test", "--release", "--workspace", "--features", "perjoule-bench/web"]);
    cargo.args(["--no-run", "--test", "binary"]);
    run(&mut cargo)?;
    let target = target_folder()?;
    let perjoule = target.join("release").join(format!("perjoule{}", std::env::consts::EXE_SUFFIX));
    let folder = target.join("web-test");
    fs::create_dir_all(&folder)?;
    for file in ["package.json", "package-lock.json", "web.mjs"] {
        fs::copy(Path::new("tests/web").join(file), folder.join(file))?;
    }
    if !folder.join("node_modules/playwright-core").is_dir() {
        let mut npm = Command::new("npm");
        npm.args(["ci", "--no-fund", "--no-audit", "--ignore-scripts"]).current_dir(&folder);
        run(&mut npm).context("playwright-core and ajv could not be fetched from npm")?;
    }
    let mut node = Command::new("node");
    node.arg("web.mjs").current_dir(&folder);
    node.env("BROWSER", browser()?).env("PERJOULE", perjoule).env("PAGE", page);
    if let Some(pictures) = pictures {
        fs::create_dir_all(pictures)?;
        node.env("PICTURES", std::path::absolute(pictures)?);
    }
    run(&mut node)
}

fn run(command: &mut Command) -> Result<()> {
    eprintln!("xtask: {command:?}");
    let program = command.get_program().to_owned();
    let status = command.status().with_context(|| format!("{program:?} could not be started"))?;
    if !status.success() {
        bail!("{program:?} failed ({status})");
    }
    Ok(())
}

/// Trimmed stdout of a command that succeeded.
fn output(command: &mut Command) -> Result<String> {
    let output = command.output()?;
    ensure!(output.status.success(), "{:?} failed ({})", command.get_program(), output.status);
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_version_is_found_in_a_lock_file() {
        let lock = "[[package]]\nname = \"wasm\"\nversion = \"1\"\n\n[[package]]\nname = \"wasm-bindgen\"\nversion = \"0.2.9\"\n";
        assert_eq!(super::locked_version(lock, "wasm-bindgen"), Some("0.2.9"));
        assert_eq!(super::locked_version(lock, "wasm-bind"), None);
    }
}
