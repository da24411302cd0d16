//! Joules: a browser reads no meter. Where the user says what the device is, they follow from its power limit, with a band; else they are
//! unknown.

use perjoule_catalogue::{Catalogue, Class};
use perjoule_record::{Energy, EnergyKind, Interval, Record};
use serde_json::{Value, json};

/// 95 % band, as factors of the power limit: memory-bound work stays below it, boost goes beyond.
const BAND: [f64; 2] = [0.5, 1.3];
/// Power at rest, as a fraction of the limit.
const IDLE: f64 = 0.3;

/// A class with a power limit.
pub(crate) struct Modelled {
    id: String,
    name: String,
    watts: f64,
    boundary: &'static str,
}

fn watts(class: &Class) -> Option<f64> {
    class.tdp_w.known.value().copied().filter(|watts| *watts > 0.0)
}

/// Classes that energy can be modelled from.
pub(crate) fn classes() -> Vec<Value> {
    let catalogue = Catalogue::builtin();
    let known = catalogue.classes().iter().filter_map(|class| Some((class, watts(class)?)));
    known.map(|(class, watts)| json!({"id": class.id, "name": class.name, "watts": watts})).collect()
}

impl Modelled {
    /// The class of that id, if its power limit is known.
    pub(crate) fn find(id: &str) -> Option<Self> {
        let catalogue = Catalogue::builtin();
        let class = catalogue.get(id)?;
        let watts = watts(class)?;
        let boundary = if class.unit.contains("socket") { "package" } else { "board" };
        Some(Modelled { id: class.id.clone(), name: class.name.clone(), watts, boundary })
    }

    /// Fills the columns of `calls` calls that took `seconds`.
    pub(crate) fn fill(&self, record: &mut Record, seconds: f64, calls: u64) {
        if calls == 0 || seconds.is_nan() || seconds <= 0.0 {
            return;
        }
        let joules = self.watts * seconds;
        let net = (1.0 - IDLE) * joules;
        record.device.device_class = Some(self.id.clone());
        let workload = &record.workload;
        let per = |joules: f64, tokens: Option<u64>| {
            let tokens = tokens.unwrap_or(0) * workload.n_parallel.unwrap_or(1) * calls;
            (tokens > 0).then(|| joules / tokens as f64)
        };
        let generated = workload.n_gen;
        let all = generated.map(|n| n + workload.n_prompt.unwrap_or(0));
        record.energy = Energy {
            joules: Some(joules),
            net_joules: Some(net),
            joules_per_call: Some(joules / calls as f64),
            joules_per_output_token: per(joules, generated),
            joules_per_total_token: per(joules, all),
            net_joules_per_output_token: per(net, generated),
            net_joules_per_total_token: per(net, all),
            energy_kind: Some(EnergyKind::Modelled),
            energy_source: Some(format!(
                "modelled-tdp: {}. Modelled, not measured: {} W power limit of a class that somebody picked, all of it when busy and {:.0} % at \
                 rest, within {:.2}..{:.2} times that.",
                self.name,
                self.watts,
                100.0 * IDLE,
                BAND[0],
                BAND[1]
            )),
            energy_boundary: Some(self.boundary.into()),
            energy_ci95: Some(Interval { lo: BAND[0] * joules, hi: BAND[1] * joules }),
            energy_window_s: Some(seconds),
            energy_calls: Some(calls),
            avg_power_w: Some(self.watts),
            idle_power_w: Some(IDLE * self.watts),
            ..Energy::default()
        };
    }
}
