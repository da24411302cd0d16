//! Energy of NVIDIA GPUs through the driver's management library (NVML), which is loaded at run time.
//!
//! GPUs from Volta on count millijoules (`nvmlDeviceGetTotalEnergyConsumption`). Where the counter is missing,
//! power is sampled and integrated: the instantaneous field if the driver has it, else `PowerUsage`, which on
//! Ampere and later (GA100 apart) is a mean over one second. GPUs are named by UUID, since NVML's order is not
//! CUDA's. A GPU with both the counter and the instantaneous field is read both ways: counters that were far off the
//! integral of the power have been reported (187 J against 327 J, ml-energy/zeus#181), and a window then says so.
//!
//! Accuracy: NVIDIA's API reference gives 5 % of the current draw. Yang et al. (arXiv 2312.02741) confirm a
//! gain error of that size against an external meter, an update period of about 100 ms, and that the sensors of
//! A100 and H100 see a quarter of the time only: windows should be long and repeated.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::enum_wrappers::device::{Clock, TemperatureSensor};
use nvml_wrapper::enums::device::SampleValue;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::structs::device::FieldId;

use crate::discover::{Discovery, Unavailable};
use crate::error::{MeterError, Result};
use crate::meter::{DeviceState, Meter, MeterInfo, Sample, Subject};
use crate::quantity::{Band, Boundary, Source};

/// `NVML_FI_DEV_POWER_INSTANT` of nvml.h: power now, mW.
const POWER_INSTANT: FieldId = FieldId(186);

/// How a GPU's energy is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Via {
    Counter,
    PowerInstant,
    PowerUsage,
}

/// The energy meter of one NVIDIA GPU.
#[derive(Debug)]
pub struct Nvml {
    info: MeterInfo,
    nvml: Arc<nvml_wrapper::Nvml>,
    uuid: String,
    via: Via,
    /// The instantaneous power of a GPU that is read by its counter.
    check: Option<Box<Nvml>>,
}

impl Nvml {
    /// One meter for each GPU. Without the driver's library the result says so in `unavailable`. `library` is
    /// its path where it is not in the system's search path.
    pub fn discover(library: Option<&Path>) -> Discovery {
        let mut found = Discovery::default();
        let nvml = match load(library) {
            Ok(nvml) => nvml,
            Err(error) => {
                let mut missing = Unavailable::from_error(Source::Nvml, "NVIDIA GPUs".into(), &error);
                if matches!(error, MeterError::Absent { .. }) {
                    let fix = "install and load NVIDIA's driver, on Debian and Ubuntu the packages nvidia-driver and \
                               libnvidia-ml1 (in a container: `--gpus all`)";
                    missing.fix = Some(fix.into());
                }
                found.unavailable.push(missing);
                return found;
            }
        };
        let count = match nvml.device_count() {
            Ok(count) => count,
            Err(error) => {
                let error = library_error(&error);
                found.unavailable.push(Unavailable::from_error(Source::Nvml, "NVIDIA GPUs".into(), &error));
                return found;
            }
        };
        if count == 0 {
            found.unavailable.push(Unavailable {
                origin: Source::Nvml,
                what: "NVIDIA GPUs".into(),
                reason: "the driver reports no GPU".into(),
                fix: None,
            });
        }
        for index in 0..count {
            let uuid = nvml.device_by_index(index).and_then(|device| device.uuid());
            match uuid.map_err(|e| library_error(&e)).and_then(|uuid| Nvml::with_library(nvml.clone(), &uuid))
            {
                Ok(meter) => found.meters.push(Arc::new(meter)),
                Err(error) => {
                    let what = format!("NVIDIA GPU {index}");
                    found.unavailable.push(Unavailable::from_error(Source::Nvml, what, &error));
                }
            }
        }
        found
    }

    /// The meter of the GPU with this UUID (`GPU-...`, as NVML and `nvidia-smi -L` print it).
    ///
    /// # Errors
    /// [`MeterError::Absent`] without the driver's library, [`MeterError::Library`] for an unknown UUID or a GPU
    /// that reports neither energy nor power.
    pub fn open(uuid: &str) -> Result<Nvml> {
        Nvml::open_with(None, uuid)
    }

    /// As [`Nvml::open`], with the library at a path of its own.
    ///
    /// # Errors
    /// As [`Nvml::open`].
    pub fn open_with(library: Option<&Path>, uuid: &str) -> Result<Nvml> {
        Nvml::with_library(load(library)?, uuid)
    }

    /// The same GPU read through its power sensor instead of its counter, for a cross-check of the two.
    ///
    /// # Errors
    /// [`MeterError::Library`] when the GPU does not report power.
    pub fn by_power(&self) -> Result<Nvml> {
        let powers = [Via::PowerInstant, Via::PowerUsage];
        Nvml::first_of(self.nvml.clone(), &self.uuid, &powers)
    }

    fn with_library(nvml: Arc<nvml_wrapper::Nvml>, uuid: &str) -> Result<Nvml> {
        Nvml::first_of(nvml, uuid, &[Via::Counter, Via::PowerInstant, Via::PowerUsage])
    }

    /// The first of `ways` that this GPU supports.
    fn first_of(nvml: Arc<nvml_wrapper::Nvml>, uuid: &str, ways: &[Via]) -> Result<Nvml> {
        let mut refusal = None;
        for &via in ways {
            match read(&nvml, uuid, via) {
                Ok(_) => {
                    let name = nvml.device_by_uuid(uuid).and_then(|device| device.name());
                    let info = describe(uuid, name.unwrap_or_else(|_| uuid.to_owned()), via);
                    // The mean over a second would disagree at every change of load.
                    let check = (via == Via::Counter)
                        .then(|| Nvml::first_of(nvml.clone(), uuid, &[Via::PowerInstant]).ok())
                        .flatten()
                        .map(Box::new);
                    return Ok(Nvml { info, nvml, uuid: uuid.to_owned(), via, check });
                }
                Err(error) => refusal = Some(error),
            }
        }
        let reason = "no way of reading its energy was asked for".into();
        Err(refusal.unwrap_or(MeterError::Library { origin: Source::Nvml, reason }))
    }
}

impl Meter for Nvml {
    fn info(&self) -> &MeterInfo {
        &self.info
    }

    fn read(&self) -> Result<Sample> {
        read(&self.nvml, &self.uuid, self.via)
    }

    fn cross_check(&self) -> Option<&dyn Meter> {
        self.check.as_deref().map(|check| check as &dyn Meter)
    }

    fn state(&self) -> Option<DeviceState> {
        let device = self.nvml.device_by_uuid(self.uuid.as_str()).ok()?;
        let memory = device.memory_info().ok();
        let clock = |clock| device.clock_info(clock).ok().map(f64::from);
        let fans = device.num_fans().unwrap_or(0);
        let fan = (0..fans).filter_map(|fan| device.fan_speed(fan).ok()).max();
        Some(DeviceState {
            utilisation: device.utilization_rates().ok().map(|rates| f64::from(rates.gpu) / 100.0),
            memory_used: memory.as_ref().map(|memory| memory.used),
            memory_total: memory.as_ref().map(|memory| memory.total),
            clock_mhz: clock(Clock::SM),
            memory_clock_mhz: clock(Clock::Memory),
            temperature_c: device.temperature(TemperatureSensor::Gpu).ok().map(f64::from),
            power_limit_w: device.enforced_power_limit().ok().map(|milli| f64::from(milli) * 1e-3),
            fan: fan.map(|percent| f64::from(percent) / 100.0),
            throttle_reasons: device.current_throttle_reasons().ok().map(throttled),
        })
    }
}

/// Why clocks are lowered, in words; that a GPU is at rest is no reason.
fn throttled(reasons: ThrottleReasons) -> Vec<&'static str> {
    let words = [
        (ThrottleReasons::SW_POWER_CAP, "power limit"),
        (ThrottleReasons::HW_SLOWDOWN, "hardware slowdown"),
        (ThrottleReasons::SW_THERMAL_SLOWDOWN, "too hot (driver)"),
        (ThrottleReasons::HW_THERMAL_SLOWDOWN, "too hot (hardware)"),
        (ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN, "power brake of the machine"),
        (ThrottleReasons::SYNC_BOOST, "slower GPU of its group"),
        (ThrottleReasons::APPLICATIONS_CLOCKS_SETTING, "clocks set by the user"),
        (ThrottleReasons::DISPLAY_CLOCK_SETTING, "clocks set for the display"),
    ];
    words.into_iter().filter(|(reason, _)| reasons.contains(*reason)).map(|(_, word)| word).collect()
}

fn describe(uuid: &str, name: String, via: Via) -> MeterInfo {
    let id = if via == Via::Counter { format!("nvml:{uuid}") } else { format!("nvml-power:{uuid}") };
    let mut info = MeterInfo::new(id, Source::Nvml, Boundary::Board, Subject::Gpu);
    info.name = name;
    info.device = Some(uuid.to_owned());
    info.accuracy = Band::within(0.05);
    info.update_period = Duration::from_millis(if via == Via::PowerUsage { 1000 } else { 100 });
    if via != Via::Counter {
        info.poll_every = Some(Duration::from_millis(100));
        info.notes.push("Integrated from sampled power.".into());
    }
    info
}

fn read(nvml: &nvml_wrapper::Nvml, uuid: &str, via: Via) -> Result<Sample> {
    let device = nvml.device_by_uuid(uuid).map_err(|e| library_error(&e))?;
    let milli = match via {
        Via::Counter => {
            let count = device.total_energy_consumption().map_err(|e| library_error(&e))?;
            return Ok(Sample::Joules(count as f64 * 1e-3));
        }
        Via::PowerUsage => device.power_usage().map(f64::from),
        Via::PowerInstant => device.field_values_for(&[POWER_INSTANT]).and_then(|fields| {
            let field = fields.into_iter().next().ok_or(NvmlError::NotSupported)??;
            Ok(match field.value? {
                SampleValue::F64(value) => value,
                SampleValue::U32(value) => f64::from(value),
                SampleValue::U64(value) => value as f64,
                SampleValue::I64(value) => value as f64,
            })
        }),
    };
    Ok(Sample::Watts(milli.map_err(|e| library_error(&e))? * 1e-3))
}

fn load(library: Option<&Path>) -> Result<Arc<nvml_wrapper::Nvml>> {
    let mut builder = nvml_wrapper::Nvml::builder();
    if let Some(path) = library {
        builder.lib_path(path.as_os_str());
    }
    builder.init().map(Arc::new).map_err(|e| library_error(&e))
}

fn library_error(error: &NvmlError) -> MeterError {
    let origin = Source::Nvml;
    match error {
        NvmlError::LibloadingError(_) | NvmlError::LibraryNotFound => MeterError::Absent {
            origin,
            reason: "libnvidia-ml.so.1 (nvml.dll), part of NVIDIA's driver, is not installed".into(),
        },
        NvmlError::DriverNotLoaded => {
            MeterError::Absent { origin, reason: "NVIDIA's kernel driver is not loaded".into() }
        }
        NvmlError::NotFound => MeterError::Absent { origin, reason: "there is no GPU of that name".into() },
        other => MeterError::Library { origin, reason: other.to_string() },
    }
}
