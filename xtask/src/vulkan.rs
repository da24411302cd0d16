//! Vulkan without a GPU: drivers that compute on the processor, and how a program is run on each of them.
//!
//! Drivers differ in what they offer and refuse, so the same test says more on several. The newest Mesa does not run with the C library
//! of an older system: it is unpacked, with all that it needs, into a folder of its own, whose dynamic linker then runs the program.

use crate::dist::{output, target_folder};
use crate::packages::{has_loader, is_lavapipe, lavapipe, on_path};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What is unpacked, together with what it depends on.
const PACKAGES: [&str; 2] = ["mesa-vulkan-drivers", "libvulkan1"];
/// The release of Debian that it comes from; its backports have a newer Mesa.
const RELEASE: &str = "trixie";
/// Keys of all releases of Debian.
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Of the unpacked folder.
const LINKER: &str = "usr/lib64/ld-linux-x86-64.so.2";
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
const MANIFESTS: &str = "usr/share/vulkan/icd.d";
/// Written last, beside what it names: where it is, all is.
const MANIFEST: &str = "lvp_icd.json";
/// Where the package of Chromium puts SwiftShader.
const SWIFTSHADER: &str = "/usr/lib/chromium/vk_swiftshader_icd.json";

/// A Vulkan driver that needs no GPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Adapter {
    /// The lavapipe that the system has.
    System,
    /// A newer one, of [`mesa`].
    Newer,
    /// Google's, which browsers use.
    SwiftShader,
}

impl Adapter {
    /// For what is printed.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Adapter::System => "lavapipe of the system",
            Adapter::Newer => "lavapipe in target/mesa",
            Adapter::SwiftShader => "SwiftShader",
        }
    }

    /// The file by which Vulkan's loader finds it.
    ///
    /// # Errors
    /// Where the driver or the loader is not there; they say how to get it.
    pub(crate) fn manifest(self) -> Result<PathBuf> {
        let (manifest, how) = match self {
            Adapter::System => (lavapipe(), "apt-get install mesa-vulkan-drivers"),
            Adapter::Newer => (Some(folder()?.join(MANIFEST)), "cargo xtask setup --mesa"),
            Adapter::SwiftShader => (Some(PathBuf::from(SWIFTSHADER)), "apt-get install chromium, on Debian"),
        };
        let has_its_own = self == Adapter::Newer;
        ensure!(has_its_own || has_loader(), "Vulkan's loader is missing: apt-get install libvulkan1");
        let found = manifest.filter(|file| file.is_file());
        found.with_context(|| format!("{} is missing: {how}", self.name()))
    }

    /// A command that runs a program with this as its only Vulkan driver. [`Adapter::Newer`] runs programs for x86-64, which see the
    /// dynamic linker as their own executable: they cannot start themselves again.
    ///
    /// # Errors
    /// Those of [`Adapter::manifest`].
    pub(crate) fn command(self, program: &Path) -> Result<Command> {
        let manifest = self.manifest()?;
        let mut command = Command::new(program);
        if self == Adapter::Newer {
            let folder = folder()?;
            command = Command::new(folder.join(LINKER));
            command.arg("--library-path").arg(folder.join(LIBRARIES)).arg(program);
        }
        // the second is what loaders before 1.3.207 read
        command.env("VK_DRIVER_FILES", &manifest).env("VK_ICD_FILENAMES", &manifest);
        // layers of the system, such as Mesa's choice of a device, are built for its own C library and Mesa
        command.env("VK_LOADER_LAYERS_DISABLE", "~implicit~");
        Ok(command)
    }
}

/// Where the newer Mesa lies.
fn folder() -> Result<PathBuf> {
    Ok(target_folder()?.join("mesa"))
}

/// Unpacks Debian's newest Mesa where it is not there yet, and says where. Nothing is installed, and root is not needed.
///
/// # Errors
/// On systems without Debian's packages, and where they cannot be fetched.
pub(crate) fn mesa() -> Result<PathBuf> {
    let folder = folder()?;
    if folder.join(MANIFEST).is_file() {
        return Ok(folder);
    }
    ensure!(cfg!(all(target_os = "linux", target_arch = "x86_64")), "needs x86-64 Linux");
    for tool in ["apt-get", "dpkg"] {
        ensure!(on_path(tool), "needs Debian's packages, and {tool} is not there");
    }
    let system = fs::read_to_string("/etc/os-release").context("/etc/os-release says what system this is")?;
    let is_debian = field(&system, "ID") == Some("debian");
    ensure!(is_debian, "needs Debian: {RELEASE} is fetched from where this system has its packages");
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    let packages = fetched(&folder.join("apt"), &mirror(&system)?)?;
    for package in &packages {
        output(Command::new("dpkg").arg("-x").arg(package).arg(&folder))?;
    }
    fs::remove_dir_all(folder.join("apt"))?;
    write_manifest(&folder)?;
    Ok(folder)
}

/// Out of /etc/os-release: `VERSION_CODENAME=bookworm`, some in quotes.
fn field<'a>(system: &'a str, name: &str) -> Option<&'a str> {
    let value = system.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
    Some(value.trim_matches('"'))
}

/// Where the system has the packages of its own release from, which is where other releases are, too.
fn mirror(system: &str) -> Result<String> {
    let format = "$(RELEASE) $(COMPONENT) $(REPO_URI)";
    let mut command = Command::new("apt-get");
    let targets = output(command.args(["indextargets", "Created-By: Packages", "--format", format]))?;
    let release = field(system, "VERSION_CODENAME").unwrap_or("sid");
    let mirror = mirror_of(&targets, release);
    mirror
        .with_context(|| format!("no source of {release}'s packages in /etc/apt, where {RELEASE}'s would be"))
}

fn mirror_of(targets: &str, release: &str) -> Option<String> {
    let sources = targets.lines().filter_map(|line| line.strip_prefix(&format!("{release} main ")));
    sources.map(str::to_string).next()
}

/// Downloads the packages for a system without any, so that all they depend on is among them. apt keeps its state, lists and downloads
/// in a folder; how the system fetches, by which proxies and as whom, is left as it is.
fn fetched(folder: &Path, mirror: &str) -> Result<Vec<PathBuf>> {
    for inner in ["lists/partial", "archives/partial"] {
        fs::create_dir_all(folder.join(inner))?;
    }
    fs::write(folder.join("status"), "")?;
    let keys = if Path::new(KEYS).is_file() { format!(" signed-by={KEYS}") } else { String::new() };
    let source =
        |release: &str| format!("deb [arch=amd64 lang=none target=Packages{keys}] {mirror} {release} main\n");
    let backports = format!("{RELEASE}-backports");
    fs::write(folder.join("sources.list"), source(RELEASE) + &source(&backports))?;
    let config = folder.join("apt.conf");
    // hooks after updates tend the system's caches
    let text = format!(
        "#clear APT::Update;
APT::Architecture \"amd64\";
APT::Sandbox::User \"root\";
APT::Install-Recommends \"false\";
Acquire::Retries \"3\";
Dir::State \"{folder}\";
Dir::State::status \"{folder}/status\";
Dir::Cache \"{folder}\";
Dir::Etc::sourcelist \"{folder}/sources.list\";
Dir::Etc::sourceparts \"/dev/null\";
Dir::Etc::preferences \"/dev/null\";
Dir::Etc::preferencesparts \"/dev/null\";
",
        folder = folder.display()
    );
    fs::write(&config, text)?;
    let apt = |args: &[&str]| output(Command::new("apt-get").arg("-c").arg(&config).args(args));
    // without it a release that could not be fetched is a warning
    apt(&["-o", "APT::Update::Error-Mode=any", "update"])
        .with_context(|| format!("the packages of {RELEASE} could not be listed"))?;
    let install = ["--yes", "--download-only", "--target-release", &backports, "install"];
    apt(&[install.as_slice(), &PACKAGES].concat()).context("the packages could not be downloaded")?;
    let files = folder.join("archives").read_dir()?.flatten().map(|file| file.path());
    Ok(files.filter(|path| path.extension().is_some_and(|extension| extension == "deb")).collect())
}

/// Writes a manifest like the package's that finds the library beside it, wherever the folder is.
fn write_manifest(folder: &Path) -> Result<()> {
    let mut manifests = folder.join(MANIFESTS).read_dir()?.flatten().map(|file| file.path());
    let packaged = manifests.find(|path| is_lavapipe(path)).context("the packages hold no lavapipe")?;
    let mut content: serde_json::Value = serde_json::from_slice(&fs::read(packaged)?)?;
    let library = format!("./{LIBRARIES}/libvulkan_lvp.so");
    for file in [LINKER, &library] {
        ensure!(folder.join(file).exists(), "the packages hold no {file}");
    }
    content["ICD"]["library_path"] = library.into();
    fs::write(folder.join(MANIFEST), content.to_string())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_that_of_the_systems_own_release() {
        let targets = "bookworm-security main http://a/security/\nbookworm contrib http://b/debian/\n\
                       bookworm main http://c/debian/\nbookworm-updates main http://d/debian/\n";
        assert_eq!(mirror_of(targets, "bookworm").as_deref(), Some("http://c/debian/"));
        assert_eq!(mirror_of(targets, "trixie"), None);
    }

    #[test]
    fn fields_of_the_system_are_read_with_and_without_quotes() {
        let system = "NAME=\"Debian GNU/Linux\"\nVERSION_ID=\"12\"\nID=debian\nVERSION_CODENAME=bookworm\n";
        assert_eq!(field(system, "ID"), Some("debian"));
        assert_eq!(field(system, "NAME"), Some("Debian GNU/Linux"));
        assert_eq!(field(system, "CODENAME"), None);
    }
}
