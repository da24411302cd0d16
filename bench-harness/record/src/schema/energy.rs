//! What a measurement cost in joules, and how that is known.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Interval, count};

/// Energy over a window that repeats the measured work. Gross figures are what the meter saw; net ones have the idle
/// baseline subtracted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Energy {
    /// Gross energy of the window in joules.
    pub joules: Option<f64>,
    /// Energy of the window less `idle_power_w` times its length, in joules.
    pub net_joules: Option<f64>,
    /// 95 % interval of `net_joules`. Net figures per call or token scale alike.
    pub net_joules_ci95: Option<Interval>,
    /// Gross joules of one call.
    pub joules_per_call: Option<f64>,
    /// Gross joules per generated token.
    pub joules_per_output_token: Option<f64>,
    /// Gross joules per token, prompt and generated together.
    pub joules_per_total_token: Option<f64>,
    /// Net joules per generated token.
    pub net_joules_per_output_token: Option<f64>,
    /// Net joules per token, prompt and generated together.
    pub net_joules_per_total_token: Option<f64>,
    /// Whether a meter measured the joules or a model of the device gave them.
    pub energy_kind: Option<EnergyKind>,
    /// The meter or model, such as `rapl-powercap: package` or `modelled-tdp: AMD EPYC. ..`.
    pub energy_source: Option<String>,
    /// What the joules contain: chip, package, board, module, wall, ..
    pub energy_boundary: Option<String>,
    /// 95 % interval of `joules`, for modelled energy the band of the model. Figures per call or token scale alike.
    pub energy_ci95: Option<Interval>,
    /// Length of the window in seconds.
    pub energy_window_s: Option<f64>,
    /// Time between updates of the meter in seconds.
    pub energy_period_s: Option<f64>,
    /// Calls within the window.
    #[serde(default, deserialize_with = "count")]
    pub energy_calls: Option<u64>,
    /// Mean power over the window in watts.
    pub avg_power_w: Option<f64>,
    /// Power at rest, within the same boundary, in watts.
    pub idle_power_w: Option<f64>,
    /// Why `joules` is null although a meter watches the device, such as a window too short for it.
    pub energy_unknown: Option<String>,
    /// Every meter that watched, the one of the fields above first. Figures of different boundaries contain one another or not, and are
    /// never added: a package beside a board, a wall around both. Meters of one boundary that watch different devices are, in a reading of
    /// its own before them that says so in `meter`, such as `3 boards`.
    pub energies: Option<Vec<Reading>>,
    /// Every meter that watched and could tell nothing, such as one too slow for the window. Where the best one is among them, the fields
    /// above are those of the next whose boundary contains its own, if there is one.
    pub energies_unknown: Option<Vec<NoReading>>,
}

/// What one meter saw over the window.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Reading {
    /// Where it comes from, such as `nvml`.
    pub source: String,
    /// What it contains: chip, package, board, module, wall, ..
    pub boundary: String,
    /// Whether it was measured.
    pub kind: EnergyKind,
    /// The meter's name for people.
    pub meter: String,
    /// Gross energy in joules.
    pub joules: f64,
    /// 95 % interval of `joules`.
    pub ci95: Option<Interval>,
    /// Energy less that at rest, in joules.
    pub net_joules: Option<f64>,
    /// 95 % interval of `net_joules`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net_ci95: Option<Interval>,
    /// Power at rest in watts.
    pub idle_power_w: Option<f64>,
    /// Length of the window in seconds.
    pub window_s: f64,
    /// What to know of the figures, in whole sentences: readings that failed, an accuracy that is assumed, ..
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notes: Option<Vec<String>>,
}

/// A meter that watched the window and could not tell its energy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NoReading {
    /// Where it reads, such as `nvml`.
    pub source: String,
    /// What it would contain: chip, package, board, module, wall, ..
    pub boundary: String,
    /// The meter's name for people.
    pub meter: String,
    /// Why it could not tell.
    pub reason: String,
}

/// Whether joules were measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum EnergyKind {
    /// A meter measured them.
    Measured,
    /// They follow from a model of the device.
    Modelled,
    /// A kind that this version does not know.
    #[serde(other)]
    Other,
}

impl EnergyKind {
    /// In a word, as records have it; what this version does not know is `unknown`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Measured => "measured",
            Self::Modelled => "modelled",
            Self::Other => "unknown",
        }
    }
}
