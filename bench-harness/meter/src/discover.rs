//! All meters of this machine, and for every meter that cannot be used the reason and the fix.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::amdgpu::{AmdGpu, DRM_ROOT};
use crate::battery::{Battery, POWER_SUPPLY_ROOT};
use crate::error::MeterError;
use crate::external::{External, ExternalSource};
use crate::hwmon::{HWMON_ROOT, Hwmon};
use crate::ina3221::{INA3221_IIO_ROOT, Ina3221};
use crate::meter::{Meter, MeterInfo};
use crate::neuron::{NEURON_ROOT, Neuron, NeuronMaximum};
use crate::perf::{PerfRoots, RaplPerf};
use crate::quantity::{Boundary, Kind, Source};
use crate::rapl::{POWERCAP_ROOT, Rapl};
use crate::{Modelled, PowerModel, Subject};

/// Where to look.
#[derive(Clone, Debug)]
pub struct Options {
    /// Root of the powercap class, [`POWERCAP_ROOT`].
    pub powercap_root: PathBuf,
    /// Where perf events of RAPL are described. They serve the domains that powercap does not.
    pub perf: PerfRoots,
    /// Root of the class of graphics cards, [`DRM_ROOT`].
    pub drm_root: PathBuf,
    /// Root of the hwmon class, [`HWMON_ROOT`].
    pub hwmon_root: PathBuf,
    /// Root of the INA3221 chips of older Jetson software, [`INA3221_IIO_ROOT`].
    pub ina3221_iio_root: PathBuf,
    /// Root of the power supply class, [`POWER_SUPPLY_ROOT`].
    pub power_supply_root: PathBuf,
    /// Root of AWS Neuron devices, [`NEURON_ROOT`].
    pub neuron_root: PathBuf,
    /// The power of one Neuron device at 100 %, which AWS does not publish. Without it they have no meter.
    pub neuron: Option<NeuronMaximum>,
    /// Meters outside the machine.
    pub external: Vec<ExternalSource>,
    /// How long to wait for the first line of each of those.
    pub external_patience: Duration,
    /// Whether to load NVIDIA's management library. Has no effect without the `nvml` feature.
    pub nvml: bool,
    /// Path of that library where it is not in the system's search path.
    pub nvml_library: Option<PathBuf>,
    /// Power models to offer beside the sensors, for devices without one.
    pub models: Vec<PowerModel>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            powercap_root: POWERCAP_ROOT.into(),
            perf: PerfRoots::default(),
            drm_root: DRM_ROOT.into(),
            hwmon_root: HWMON_ROOT.into(),
            ina3221_iio_root: INA3221_IIO_ROOT.into(),
            power_supply_root: POWER_SUPPLY_ROOT.into(),
            neuron_root: NEURON_ROOT.into(),
            neuron: None,
            external: Vec::new(),
            external_patience: Duration::from_secs(10),
            nvml: true,
            nvml_library: None,
            models: Vec::new(),
        }
    }
}

/// What [`discover`] found.
#[derive(Clone, Debug, Default)]
pub struct Discovery {
    /// Usable meters: measured ones first, then models.
    pub meters: Vec<Arc<dyn Meter>>,
    /// Meters that exist or might exist and cannot be used.
    pub unavailable: Vec<Unavailable>,
}

/// A meter that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unavailable {
    /// Its kind.
    pub origin: Source,
    /// What it would have measured.
    pub what: String,
    /// Why it cannot be used.
    pub reason: String,
    /// What makes it usable, where something does.
    pub fix: Option<String>,
}

impl Unavailable {
    pub(crate) fn from_error(origin: Source, what: String, error: &MeterError) -> Unavailable {
        let reason = match error {
            MeterError::PermissionDenied { path, .. } => format!("no permission to read {}", path.display()),
            MeterError::Absent { reason, .. } | MeterError::Library { reason, .. } => reason.clone(),
            other => other.to_string(),
        };
        Unavailable { origin, what, reason, fix: error.fix().map(str::to_owned) }
    }
}

impl Discovery {
    /// The best meter of the CPU: its packages if they can be measured, else a model, else `None`. A sensor that
    /// sees one of several sockets is not the CPU's meter.
    pub fn cpu(&self) -> Option<&Arc<dyn Meter>> {
        let of_cpu = |info: &MeterInfo| {
            info.subject == Subject::Cpu && matches!(info.boundary, Boundary::Package | Boundary::Chip)
        };
        let siblings = |info: &MeterInfo| {
            let same = |other: &MeterInfo| of_cpu(other) && other.source == info.source;
            self.meters.iter().filter(|meter| same(meter.info())).count()
        };
        self.meters.iter().find(|meter| {
            let info = meter.info();
            of_cpu(info) && (info.kind == Kind::Modelled || siblings(info) == 1)
        })
    }

    /// The best meter of the accelerator that its driver names `device`: an NVML UUID (matched with or without
    /// its `GPU-` prefix) or a PCI address. Indices are not accepted: NVML and CUDA count differently.
    pub fn device(&self, device: &str) -> Option<&Arc<dyn Meter>> {
        let plain = |name: &str| name.trim_start_matches("GPU-").to_ascii_lowercase();
        self.meters
            .iter()
            .find(|meter| meter.info().device.as_deref().is_some_and(|d| plain(d) == plain(device)))
    }

    fn extend(&mut self, other: Discovery) {
        self.meters.extend(other.meters);
        self.unavailable.extend(other.unavailable);
    }
}

/// Finds the meters of this machine. Nothing is printed; an absent sensor is an entry in
/// [`Discovery::unavailable`].
pub fn discover(options: &Options) -> Discovery {
    let mut found = Rapl::discover(&options.powercap_root);
    let taken: Vec<Boundary> = found.meters.iter().map(|meter| meter.info().boundary).collect();
    found.extend(RaplPerf::discover(&options.perf, &taken));
    #[cfg(target_os = "macos")]
    {
        #[cfg(feature = "macmon")]
        found.extend(crate::Apple::discover());
        #[cfg(not(feature = "macmon"))]
        found.unavailable.push(Unavailable {
            origin: Source::Macmon,
            what: "Apple silicon".into(),
            reason: "this build has no support for it".into(),
            fix: Some("build with the cargo feature `macmon`".into()),
        });
    }
    if options.nvml {
        #[cfg(feature = "nvml")]
        found.extend(crate::Nvml::discover(options.nvml_library.as_deref()));
        #[cfg(not(feature = "nvml"))]
        found.unavailable.push(Unavailable {
            origin: Source::Nvml,
            what: "NVIDIA GPUs".into(),
            reason: "this build has no NVML support".into(),
            fix: Some("build with the cargo feature `nvml`".into()),
        });
    }
    // before hwmon: a counter is a better meter of a card than samples of its power
    found.extend(AmdGpu::discover(&options.drm_root));
    found.extend(Hwmon::discover(&options.hwmon_root));
    found.extend(Ina3221::discover(&options.hwmon_root, &options.ina3221_iio_root));
    found.extend(Battery::discover(&options.power_supply_root));
    for source in &options.external {
        match External::open(source, options.external_patience) {
            Ok(meter) => found.meters.push(Arc::new(meter)),
            Err(error) => {
                found.unavailable.push(Unavailable::from_error(Source::External, source.to_string(), &error))
            }
        }
    }
    found.extend(Neuron::discover(&options.neuron_root, options.neuron));
    for model in &options.models {
        match Modelled::new(model.clone()) {
            Ok(meter) => found.meters.push(Arc::new(meter)),
            Err(error) => found.unavailable.push(Unavailable::from_error(
                Source::ModelledTdp,
                model.name.clone(),
                &error,
            )),
        }
    }
    found
}
