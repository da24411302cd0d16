//! What Linux shows of GPUs whose drivers publish it as files: `amdgpu`, `i915` and `xe`; and of AWS Neuron devices.
//!
//! From the drivers' documentation: `gpu_busy_percent`, `mem_info_vram_used` and `_total`, `pp_dpm_sclk` (the line with a `*` is the clock now)
//! of amdgpu; `gt_act_freq_mhz` of i915 and `tile*/gt*/freq0/act_freq` of xe; temperatures, fan and limit from the card's hwmon folder. Files
//! that a driver does not have leave their field unknown.

use perjoule_meter::DeviceState;
use std::fs::read_to_string;
use std::path::{Path, PathBuf};

use super::cpu::{entries, is_numbered, name, number};

/// One GPU below `/sys/class/drm`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Card {
    folder: PathBuf,
    /// PCI address, which is also what meters call it.
    pub(crate) pci: String,
    /// Driver and product, for people.
    pub(crate) name: String,
    hwmon: Option<PathBuf>,
}

impl Card {
    /// The cards below `sys`, normally `/sys`, whose driver publishes something.
    pub(crate) fn find(sys: &Path) -> Vec<Self> {
        let cards =
            entries(&sys.join("class/drm")).into_iter().filter(|path| is_numbered(name(path), "card"));
        cards.filter_map(Self::at).collect()
    }

    fn at(folder: PathBuf) -> Option<Self> {
        let device = folder.join("device");
        let driver = std::fs::canonicalize(device.join("driver")).ok()?;
        let driver = name(&driver);
        if !matches!(driver, "amdgpu" | "i915" | "xe") {
            return None;
        }
        let pci = name(&std::fs::canonicalize(&device).ok()?).to_owned();
        let product = read_to_string(device.join("product_name")).unwrap_or_default();
        let name = match product.trim() {
            "" => format!("{driver} {pci}"),
            product => format!("{product} ({driver} {pci})"),
        };
        let hwmon = entries(&device.join("hwmon")).into_iter().next();
        Some(Card { folder, pci, name, hwmon })
    }

    /// Its state now.
    pub(crate) fn state(&self) -> DeviceState {
        let device = self.folder.join("device");
        let of_hwmon = |file: &str| number(&self.hwmon.as_ref()?.join(file));
        let bytes = |file: &str| number(&device.join(file)).filter(|n| *n >= 0.0).map(|n| n as u64);
        let mut state = DeviceState::default();
        state.utilisation = number(&device.join("gpu_busy_percent")).map(|percent| percent / 100.0);
        state.memory_used = bytes("mem_info_vram_used");
        state.memory_total = bytes("mem_info_vram_total");
        state.clock_mhz = self.clock(&device);
        state.memory_clock_mhz = dpm_clock(&device.join("pp_dpm_mclk"));
        let files = self.hwmon.iter().flat_map(|hwmon| entries(hwmon));
        let inputs = files.filter(|path| name(path).starts_with("temp") && name(path).ends_with("_input"));
        state.temperature_c =
            inputs.filter_map(|path| number(&path)).map(|milli| milli / 1e3).reduce(f64::max);
        state.power_limit_w = of_hwmon("power1_cap").or(of_hwmon("power1_max")).map(|micro| micro * 1e-6);
        state.fan =
            of_hwmon("fan1_input").zip(of_hwmon("fan1_max").filter(|max| *max > 0.0)).map(|(n, max)| n / max);
        state
    }

    fn clock(&self, device: &Path) -> Option<f64> {
        let tiles = entries(device).into_iter().filter(|path| is_numbered(name(path), "tile"));
        let of_xe = || {
            let gts = tiles.flat_map(|tile| entries(&tile)).filter(|path| is_numbered(name(path), "gt"));
            gts.filter_map(|gt| number(&gt.join("freq0/act_freq"))).reduce(f64::max)
        };
        dpm_clock(&device.join("pp_dpm_sclk"))
            .or_else(|| number(&self.folder.join("gt_act_freq_mhz")))
            .or_else(of_xe)
    }
}

/// The level that is marked in a list of amdgpu's clocks, MHz: `1: 1800Mhz *`.
fn dpm_clock(path: &Path) -> Option<f64> {
    let text = read_to_string(path).ok()?;
    let level = text.lines().find(|line| line.trim_end().ends_with('*'))?.split_once(':')?.1.trim();
    let digits = level.to_ascii_lowercase();
    digits.split_once("mhz")?.0.trim().parse().ok().filter(|mhz: &f64| mhz.is_finite())
}

/// One AWS Neuron device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Neuron {
    folder: PathBuf,
    /// As the driver calls it, and meters too: `neuron0`.
    pub(crate) name: String,
}

impl Neuron {
    /// Those below `sys`, normally `/sys`.
    pub(crate) fn find(sys: &Path) -> Vec<Self> {
        let all = entries(&sys.join("devices/virtual/neuron_device")).into_iter();
        let devices = all.filter(|path| is_numbered(name(path), "neuron"));
        devices.map(|folder| Neuron { name: name(&folder).to_owned(), folder }).collect()
    }

    /// Mean power of the driver's last minute as a share of the maximum, which AWS does not publish.
    pub(crate) fn power_share(&self) -> Option<f64> {
        let text = read_to_string(self.folder.join("stats/power/utilization")).ok()?;
        let percent: f64 = text.trim().rsplit(',').next()?.trim().parse().ok()?;
        (0.0..=100.0).contains(&percent).then_some(percent / 100.0)
    }

    /// Memory in use of all its cores.
    pub(crate) fn state(&self) -> DeviceState {
        let cores = entries(&self.folder).into_iter().filter(|path| is_numbered(name(path), "neuron_core"));
        let used = cores.filter_map(|core| number(&core.join("stats/memory_usage/device_mem/present")));
        let mut state = DeviceState::default();
        state.memory_used = used.reduce(|sum, n| sum + n).filter(|n| *n >= 0.0).map(|n| n as u64);
        state
    }
}
