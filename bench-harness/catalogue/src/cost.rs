//! Money and carbon: from joules per token to dollars and grams of CO2 equivalent per million tokens, by region and operator.

use crate::class::Class;
use crate::known::{Figure, Known};
use crate::predict::{Estimate, Prediction};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::OnceLock;

const GRID: &str = include_str!("../data/grid.toml");
const JOULES_PER_KWH: f64 = 3.6e6;
const MILLION: f64 = 1e6;

/// Who runs the building.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Operator {
    /// Short name.
    pub id: String,
    /// Full name.
    pub name: String,
    /// Facility power over the power of its machines: the mean of the operator's fleet.
    pub pue: Figure,
    /// Keys of the table of sources.
    pub src: Vec<String>,
}

/// Where the electricity comes from.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Region {
    /// Short name.
    pub id: String,
    /// Full name.
    pub name: String,
    /// Carbon intensity in gCO2e/kWh, location-based.
    pub gco2e_kwh: Figure,
    /// Industrial price in USD/kWh.
    pub usd_kwh: Figure,
    /// Keys of the table of sources.
    pub src: Vec<String>,
}

/// Regions and operators with their sources.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grid {
    #[serde(rename = "schema")]
    _schema: String,
    /// Text of the sources by key.
    pub sources: BTreeMap<String, String>,
    /// Operators.
    #[serde(rename = "operator")]
    pub operators: Vec<Operator>,
    /// Regions.
    #[serde(rename = "region")]
    pub regions: Vec<Region>,
}

impl Grid {
    /// The table that comes with the crate.
    pub fn builtin() -> &'static Grid {
        static GRID_: OnceLock<Grid> = OnceLock::new();
        GRID_.get_or_init(|| match toml::from_str(GRID) {
            Ok(grid) => grid,
            // a test parses the embedded file
            Err(error) => unreachable!("data/grid.toml: {error}"),
        })
    }

    /// A region by id.
    pub fn region(&self, id: &str) -> Option<&Region> {
        self.regions.iter().find(|region| region.id == id)
    }

    /// An operator by id.
    pub fn operator(&self, id: &str) -> Option<&Operator> {
        self.operators.iter().find(|operator| operator.id == id)
    }
}

/// What the cost is reckoned with. A figure that is not known makes what depends on it unknown.
#[derive(Debug, Clone, PartialEq)]
pub struct Assumptions {
    /// Name of the region.
    pub region: String,
    /// gCO2e/kWh.
    pub gco2e_kwh: Known<f64>,
    /// USD/kWh.
    pub usd_kwh: Known<f64>,
    /// Name of the operator.
    pub operator: String,
    /// Power usage effectiveness.
    pub pue: Known<f64>,
    /// USD per device and hour.
    pub usd_h_device: Known<f64>,
    /// What the price is.
    pub price_note: String,
}

impl Assumptions {
    /// A region, an operator, and the price of a class.
    pub fn new(region: &Region, operator: &Operator, class: &Class) -> Assumptions {
        Assumptions {
            region: region.name.clone(),
            gco2e_kwh: region.gco2e_kwh.known.clone(),
            usd_kwh: region.usd_kwh.known.clone(),
            operator: operator.name.clone(),
            pue: operator.pue.known.clone(),
            usd_h_device: class.usd_h_device.known.clone(),
            price_note: class.price_note.clone(),
        }
    }
}

/// Cost of a million tokens, at full use of the devices: idle hours are not in it. Each is None where a figure is not known.
#[derive(Debug, Clone, PartialEq)]
pub struct Costs {
    /// USD of hire, energy included in the price.
    pub usd_hire: Option<Estimate>,
    /// kWh at the machine's wall.
    pub kwh_wall: Option<Estimate>,
    /// kWh at the facility's meter: wall times PUE.
    pub kwh_facility: Option<Estimate>,
    /// USD of that energy.
    pub usd_energy: Option<Estimate>,
    /// gCO2e of that energy; the making of the hardware is not in it.
    pub gco2e: Option<Estimate>,
    /// kWh of provisioned capacity: all-in kW of the class times the time, whatever is drawn.
    pub kwh_provisioned: Option<Estimate>,
    /// What they were reckoned with.
    pub assumptions: Assumptions,
}

impl Costs {
    /// Costs of what was predicted for a number of devices.
    ///
    /// A conflict between prices gives the whole range: its band reaches from the lowest price to the highest.
    pub fn new(prediction: &Prediction, class: &Class, devices: u32, assumptions: Assumptions) -> Costs {
        let seconds = prediction.tokens_per_s.inverse().times(MILLION);
        let device_hours = seconds.times(f64::from(devices) / 3600.0);
        let by = |estimate: Option<Estimate>, figure: &Known<f64>| estimate.and_then(|e| times(e, figure));
        let kwh_wall = prediction.wall.map(|power| power.joules_per_token.times(MILLION / JOULES_PER_KWH));
        let kwh_facility = by(kwh_wall, &assumptions.pue);
        Costs {
            usd_hire: by(Some(device_hours), &assumptions.usd_h_device),
            kwh_wall,
            kwh_facility,
            usd_energy: by(kwh_facility, &assumptions.usd_kwh),
            gco2e: by(kwh_facility, &assumptions.gco2e_kwh),
            kwh_provisioned: by(Some(device_hours), &class.allin_kw.known),
            assumptions,
        }
    }
}

fn times(estimate: Estimate, figure: &Known<f64>) -> Option<Estimate> {
    match figure {
        Known::Value(value) => Some(estimate.times(*value)),
        Known::Conflict { values } => {
            let low = values.iter().copied().fold(f64::INFINITY, f64::min);
            let high = values.iter().copied().fold(0.0, f64::max);
            Some(Estimate {
                value: estimate.value * libm::sqrt(low * high),
                low: estimate.low * low,
                high: estimate.high * high,
            })
        }
        Known::Unknown | Known::Unsupported => None,
    }
}
