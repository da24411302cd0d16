//! Devices that perjoule runs on, and the drivers of others.

use super::finding::{Root, Section};

/// Vendors of PCI devices and the beginnings of their classes: display controllers, and Amazon's accelerators.
pub(super) const NVIDIA: (&str, &str) = ("0x10de", "0x03");
const AMD: (&str, &str) = ("0x1002", "0x03");
pub(super) const NEURON: (&str, &str) = ("0x1d0f", "0x0880");

/// Folders in which a loader looks for libraries.
const LIBRARIES: [&str; 8] = [
    "usr/lib/x86_64-linux-gnu",
    "usr/lib/aarch64-linux-gnu",
    "usr/lib64",
    "usr/lib",
    "usr/local/cuda/compat",
    "usr/lib/wsl/lib",
    "usr/local/nvidia/lib64",
    "run/opengl-driver/lib",
];

/// Addresses of the PCI devices of a vendor whose class begins so.
pub(super) fn pci(root: &Root, (vendor, class): (&str, &str)) -> Vec<String> {
    const AT: &str = "sys/bus/pci/devices";
    let is = |address: &String| {
        root.text(&format!("{AT}/{address}/vendor")).as_deref() == Some(vendor)
            && root.text(&format!("{AT}/{address}/class")).is_some_and(|found| found.starts_with(class))
    };
    root.names(AT).into_iter().filter(is).collect()
}

/// The command that installs NVIDIA's driver here.
pub(super) fn driver_of_nvidia(root: &Root) -> &'static str {
    let release = root.text("etc/os-release").unwrap_or_default();
    let id = release.lines().find_map(|line| line.strip_prefix("ID=")).unwrap_or_default();
    match id.trim_matches('"') {
        _ if container(root).is_some() => "docker run --gpus all IMAGE",
        "ubuntu" => "sudo ubuntu-drivers install",
        "fedora" | "rhel" | "rocky" | "almalinux" => "sudo dnf install akmod-nvidia",
        "arch" => "sudo pacman -S nvidia",
        _ => "sudo apt-get install nvidia-driver",
    }
}

/// What kind of container this is.
pub(super) fn container(root: &Root) -> Option<&'static str> {
    let first = root.text("proc/1/cgroup").unwrap_or_default();
    match () {
        () if root.exists(".dockerenv") => Some("Docker"),
        () if root.exists("run/.containerenv") => Some("Podman"),
        () if first.contains("kubepods") => Some("Kubernetes"),
        () if first.contains("/docker") || first.contains("/lxc") => Some("a container"),
        () => None,
    }
}

fn library(root: &Root, name: &str) -> Option<String> {
    LIBRARIES.iter().map(|folder| format!("{folder}/{name}")).find(|path| root.exists(path))
}

pub(super) fn look(root: &Root) -> Section {
    let mut section = Section::new("devices");
    if root.is_real() {
        own(&mut section);
    }
    nvidia(root, &mut section);
    amd(root, &mut section);
    vulkan(root, &mut section);
    let neuron = pci(root, NEURON).len();
    if root.exists("sys/module/neuron") {
        section.ok("Neuron", "AWS's driver is loaded");
    } else if neuron > 0 {
        section.missing("Neuron", format!("{neuron} accelerators of AWS and no driver"));
        section.fix("sudo apt-get install aws-neuronx-dkms");
    }
    section
}

/// The devices that perjoule finds itself.
fn own(section: &mut Section) {
    let (found, absent) = perjoule::devices();
    for info in found {
        let features = info.features.join(" ");
        let detail =
            format!("{}, {}", info.name, if features.is_empty() { "no features" } else { &features });
        section.ok(&info.label, detail);
        if info.backend == "cpu"
            && cfg!(target_arch = "x86_64")
            && !info.features.iter().any(|feature| feature == "avx2")
        {
            section.warn(&info.label, "without AVX2 the portable kernels run, many times slower");
        }
    }
    for backend in absent {
        section.note(backend.backend, backend.reason);
    }
}

fn nvidia(root: &Root, section: &mut Section) {
    let gpus = pci(root, NVIDIA).len();
    let version = root.text("proc/driver/nvidia/version");
    let version =
        version.as_deref().and_then(|text| text.lines().next()).map(|line| line.replace("NVRM version:", ""));
    match (gpus, version) {
        (_, Some(version)) => {
            section.ok("NVIDIA driver", version.split_whitespace().collect::<Vec<_>>().join(" "));
            match library(root, "libcuda.so.1") {
                Some(path) => section.ok("libcuda", format!("/{path}")),
                None => {
                    section
                        .missing("libcuda", "the driver is loaded, and libcuda.so.1 is in no usual folder");
                    section.fix(match container(root) {
                        Some(_) => {
                            "docker run --gpus all -e NVIDIA_DRIVER_CAPABILITIES=compute,utility IMAGE"
                        }
                        None => "sudo apt-get install libcuda1",
                    });
                }
            }
        }
        (0, None) => section.note("NVIDIA driver", "no NVIDIA GPU on the PCI bus, and no driver"),
        (n, None) => {
            section
                .missing("NVIDIA driver", format!("{n} NVIDIA GPUs on the PCI bus, and no driver is loaded"));
            section.fix(driver_of_nvidia(root));
        }
    }
}

fn amd(root: &Root, section: &mut Section) {
    let gpus = pci(root, AMD).len();
    if root.exists("sys/module/amdgpu") {
        section.ok("amdgpu", "AMD's driver is loaded");
        if gpus > 0 && root.exists("dev/kfd") && !may(root, "dev/kfd", true) {
            section.missing("kfd", "/dev/kfd is there and this user may not open it");
            section.fix("sudo usermod -aG render,video \"$USER\"");
        }
    } else if gpus > 0 {
        section.missing("amdgpu", format!("{gpus} AMD GPUs on the PCI bus, and amdgpu is not loaded"));
        section.fix("sudo modprobe amdgpu");
    }
    let nodes: Vec<String> =
        root.names("dev/dri").into_iter().filter(|name| name.starts_with("renderD")).collect();
    let refused: Vec<String> =
        nodes.iter().filter(|name| !may(root, &format!("dev/dri/{name}"), true)).cloned().collect();
    if !refused.is_empty() {
        section.missing("render nodes", format!("this user may not open {}", refused.join(", ")));
        section.fix("sudo usermod -aG render \"$USER\"");
    }
}

/// Vulkan's drivers, which WebGPU needs.
fn vulkan(root: &Root, section: &mut Section) {
    let folders = ["usr/share/vulkan/icd.d", "etc/vulkan/icd.d", "usr/local/share/vulkan/icd.d"];
    let files: Vec<String> = folders.iter().flat_map(|folder| root.names(folder)).collect();
    let drivers: Vec<&str> = files.iter().filter_map(|name| name.strip_suffix(".json")).collect();
    let hardware = drivers.iter().any(|name| !name.starts_with("lvp") && !name.contains("swiftshader"));
    match (drivers.is_empty(), hardware) {
        (true, _) => section.note("Vulkan", "no driver is registered; only GPU backends need one"),
        (_, true) => section.ok("Vulkan", drivers.join(", ")),
        (_, false) => section.note("Vulkan", format!("only in software: {}", drivers.join(", "))),
    }
}

/// Whether this process may read a file, and write it.
pub(super) fn may(root: &Root, path: &str, write: bool) -> bool {
    #[cfg(unix)]
    {
        use rustix::fs::{Access, access};
        let wanted = if write { Access::READ_OK | Access::WRITE_OK } else { Access::READ_OK };
        access(root.path(path), wanted).is_ok()
    }
    #[cfg(not(unix))]
    {
        let _ = write;
        root.exists(path)
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Status;
    use super::super::finding::tests::{Tree, named};
    use super::*;

    #[test]
    fn a_gpu_without_its_driver_is_missing_with_the_command_of_the_distribution() {
        let tree = Tree::new(&[
            ("sys/bus/pci/devices/0000:01:00.0/vendor", "0x10de\n"),
            ("sys/bus/pci/devices/0000:01:00.0/class", "0x030000\n"),
            ("sys/bus/pci/devices/0000:01:00.1/vendor", "0x10de\n"),
            ("sys/bus/pci/devices/0000:01:00.1/class", "0x040300\n"),
            ("etc/os-release", "NAME=\"Ubuntu\"\nID=ubuntu\n"),
        ]);
        let section = look(&tree.root());
        let driver = named(&section.list, "NVIDIA driver");
        assert!(driver.detail.starts_with("1 NVIDIA"), "its audio device is no GPU: {driver:?}");
        assert_eq!(driver.fix.as_deref(), Some("sudo ubuntu-drivers install"));
        tree.put(".dockerenv", "");
        assert!(driver_of_nvidia(&tree.root()).contains("--gpus all"));
        tree.put(
            "proc/driver/nvidia/version",
            "NVRM version: NVIDIA UNIX  Kernel Module  570.1\nGCC version: 12\n",
        );
        let section = look(&tree.root());
        assert_eq!(named(&section.list, "NVIDIA driver").detail, "NVIDIA UNIX Kernel Module 570.1");
        assert_eq!(named(&section.list, "libcuda").status, Status::Missing);
        tree.put("usr/lib64/libcuda.so.1", "");
        assert_eq!(named(&look(&tree.root()).list, "libcuda").status, Status::Ok);
    }

    #[test]
    fn software_vulkan_is_told_from_a_gpus() {
        let tree = Tree::new(&[("usr/share/vulkan/icd.d/lvp_icd.x86_64.json", "{}")]);
        assert_eq!(named(&look(&tree.root()).list, "Vulkan").status, Status::Note);
        tree.put("etc/vulkan/icd.d/radeon_icd.json", "{}");
        assert_eq!(named(&look(&tree.root()).list, "Vulkan").status, Status::Ok);
    }

    #[test]
    fn an_empty_tree_has_only_notes() {
        let tree = Tree::new(&[]);
        assert!(look(&tree.root()).list.iter().all(|finding| finding.status == Status::Note));
    }
}
