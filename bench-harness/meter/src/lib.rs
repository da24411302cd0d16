//! Joules, and how far to trust them.
//!
//! A [`Meter`] is a description ([`MeterInfo`]) and one reading. A [`Window`] turns readings into an [`Energy`]:
//! joules with a 95 % interval, the window's length, and the source, boundary and kind that any use of the
//! figure must show. An unknown energy is an error, never zero, and a modelled one says so everywhere.
//!
//! ```
//! use perjoule_meter::{Options, PowerModel, discover, measure};
//!
//! // The model stands in where no sensor is found, as in most virtual machines: 2 of the 64 cores of a
//! // processor with a TDP of 280 W.
//! let model = PowerModel { share: (2, 64), ..PowerModel::new("AMD EPYC 7763", 280.0) };
//! let found = discover(&Options { models: vec![model], ..Options::default() });
//! for missing in &found.unavailable {
//!     println!("{} for {}: {}", missing.origin, missing.what, missing.reason);
//! }
//!
//! let meter = found.cpu().expect("the model is always usable");
//! let (sum, energy) = measure(meter, || (0..20_000_000u64).fold(0, |sum, i| sum ^ i.wrapping_mul(sum | 1)));
//! match energy {
//!     Ok(e) => println!("{sum}: {:.3} J ({}, {}, 95 % {:.3?} J)", e.joules, e.kind, e.boundary, e.ci95),
//!     Err(reason) => println!("{sum}: energy unknown: {reason}"),
//! }
//! ```
//!
//! # Choosing a window
//! A sensor is refreshed once in [`MeterInfo::update_period`]. Shorter windows are refused with the length that is
//! needed; [`MeterInfo::window_for`] gives the length for a wanted uncertainty, and [`repeat`] runs the work until it
//! is reached.
//!
//! # Gross and net
//! [`Energy`] is gross: everything inside the boundary, whoever caused it. [`Baseline`] takes the power at rest
//! before and after, of several meters in one pause, and gives the part above it; state both.
//!
//! # Boundaries
//! A package contains its cores and a wall meter contains everything: such figures are never added.
//! [`MeterInfo::overlaps`] tells for two meters. Sockets are summed inside one meter, at one boundary.
//!
//! # Two ways to one energy
//! Where a GPU of NVIDIA has both a counter of energy and a reading of instantaneous power, a window takes both, notes
//! a disagreement of more than 5 %, and widens the interval to cover the two.
//!
//! # Writing a meter
//! Implement [`Meter::info`] and [`Meter::read`]. A counter of finite width goes through [`Unwrapped`]; power is
//! returned as it is and integrated by the window. [`Source::Other`] carries the new source's name.

#![forbid(unsafe_code)]

mod amdgpu;
#[cfg(any(test, all(target_os = "macos", feature = "macmon")))]
mod apple;
mod baseline;
mod battery;
mod discover;
mod error;
mod external;
mod feed;
mod hwmon;
mod ina3221;
#[cfg(feature = "criterion")]
mod measurement;
mod meter;
mod modelled;
mod neuron;
#[cfg(feature = "nvml")]
mod nvml;
mod perf;
mod quantity;
mod rapl;
mod sysfs;
mod window;

pub use amdgpu::{AmdGpu, DRM_ROOT};
#[cfg(any(test, all(target_os = "macos", feature = "macmon")))]
pub use apple::Apple;
pub use baseline::Baseline;
pub use battery::{Battery, POWER_SUPPLY_ROOT};
pub use discover::{Discovery, Options, Unavailable, discover};
pub use error::{MeterError, Result};
pub use external::{External, ExternalSource};
pub use hwmon::{HWMON_ROOT, Hwmon};
pub use ina3221::{INA3221_IIO_ROOT, Ina3221};
#[cfg(feature = "criterion")]
pub use measurement::{JouleMeasurement, SampleJoules};
pub use meter::{DeviceState, Meter, MeterInfo, Sample, Subject, Unwrapped};
pub use modelled::{Modelled, PowerModel, Utilisation};
pub use neuron::{NEURON_ROOT, Neuron, NeuronMaximum};
#[cfg(feature = "nvml")]
pub use nvml::Nvml;
pub use perf::{PerfRoots, RaplPerf};
pub use quantity::{Band, Boundary, Energy, Idle, Kind, PerUnit, Source, Uncertainty};
pub use rapl::{POWERCAP_ROOT, Rapl};
pub use window::{Trace, Window, measure, repeat};
