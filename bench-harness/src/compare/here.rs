//! A measured machine as a class of hardware: its ceilings in place of published figures, and what it made of them in place of published
//! results, so that it stands beside others for work that it has not run.

use perjoule_catalogue::{Class, Figure, Known, Trust, WhyNot, predict};
use perjoule_record::Record;

use super::costs::Money;
use super::row::{EnergyOf, Quantity, Row};
use super::workload::{Load, Phase};
use crate::report::one_line;

/// A band reaches at least that far on either side, as a factor: ceilings and power of one run were another's.
const LEAST_BAND: f64 = 1.25;

/// A machine whose runs are known.
#[derive(Debug, Clone)]
pub(crate) struct Here {
    name: String,
    class: Class,
    /// What is known of each token record.
    own: Vec<Own>,
    /// Power of each token record.
    watts: Vec<Watts>,
}

#[derive(Debug, Clone)]
struct Own {
    load: Load,
    /// Measured over predicted tokens/s.
    ratio: f64,
    /// Which test it was and why it tells little, where it was one run or disturbed.
    doubt: Option<String>,
}

#[derive(Debug, Clone)]
struct Watts {
    phase: Option<Phase>,
    of: Quantity,
    boundary: String,
    measured: bool,
}

impl Here {
    /// From valid, measured records of tokens of one machine that were held against ceilings; `None` where none was.
    pub(crate) fn of(records: &[Record], name: &str) -> Option<Here> {
        let most = |of: fn(&Record) -> Option<f64>| records.iter().filter_map(of).reduce(f64::max);
        let gflops = most(|record| record.roof.roof_gflops)?;
        let gbps = most(|record| record.roof.roof_gbps)?;
        let figure = |value: f64| Figure::from(Known::Value(value));
        let mut class = Class::unknown("here", name);
        let tflops = figure(gflops / 1e3);
        // formats that the kernels widen have the rate of f32
        class.peak.f32 = tflops.clone();
        class.peak.bf16 = tflops.clone();
        class.peak.fp8 = tflops.clone();
        class.peak.int8 = tflops;
        class.mem_gbs = figure(gbps);
        class.mem_gb = figure(records.iter().find_map(|r| r.device.device_memory_bytes)? as f64 / 1e9);
        class.trust = Trust::A;
        let own = |record: &Record| {
            let load = Load::of(record);
            let predicted = predict(&class, 1, &load.modelled().ok()?).ok()?.tokens_per_s.value;
            let measured = record.timing.avg_ts.filter(|rate| *rate > 0.0)?;
            Some(Own { load, ratio: measured / predicted, doubt: doubt(record) })
        };
        let own = records.iter().filter_map(own).collect();
        Some(Here { name: name.into(), own, watts: records.iter().filter_map(watts).collect(), class })
    }

    /// What it will do: predicted as a class is, and corrected by what it did at other work of the same phase. Where it cannot, the notes
    /// say why.
    pub(crate) fn row(&self, load: &Load, money: &Money) -> Row {
        let mut row = Row::empty(format!("{} (this machine)", self.name), "modelled", load.clone());
        let prediction = match load.modelled().map(|work| predict(&self.class, 1, &work)) {
            Ok(Ok(prediction)) => prediction,
            Ok(Err(WhyNot::DoesNotFit { .. })) => {
                let have = self.class.mem_gb.known.upper().unwrap_or(0.0);
                row.notes.push(format!("{load}: does not fit into this machine's {have:.1} GB"));
                return row;
            }
            Ok(Err(why)) => {
                row.notes.push(format!("no prediction: {why}"));
                return row;
            }
            Err(why) => {
                row.notes.push(format!("no prediction: {why}"));
                return row;
            }
        };
        let own = || self.own.iter().filter(|own| own.load.phase == load.phase);
        let doubts: Vec<&str> = own().filter_map(|own| own.doubt.as_deref()).collect();
        let own: Vec<f64> = own().map(|own| own.ratio).collect();
        let rate = prediction.tokens_per_s;
        row.tokens_per_s = match own.as_slice() {
            [] => Some(rate.into()),
            own => {
                let centre = (own.iter().map(|ratio| ratio.ln()).sum::<f64>() / own.len() as f64).exp();
                let far = own.iter().map(|ratio| (ratio / centre).max(centre / ratio)).fold(1.0, f64::max);
                // as far as its own results lie apart, and a part of what other machines do
                let band = LEAST_BAND.max(far).max(rate.width().sqrt());
                let value = rate.value * centre;
                // no machine passes its own roof
                Quantity::new(value, Some([value / band, (value * band).min(prediction.roof.max(value))]))
            }
        };
        row.share_of_roof = row.tokens_per_s.and_then(|rate| rate.times(1.0 / prediction.roof));
        row.roof = "ceilings measured on this machine".into();
        row.basis = match own.len() {
            0 => prediction.calibration,
            n => format!("the machine's ceilings, and its own {n} results of the phase"),
        };
        // its power is that of its runs, not of a TDP
        row.notes = prediction.notes.into_iter().filter(|note| !note.contains("TDP")).collect();
        if !doubts.is_empty() {
            row.notes.push(format!("predicted from {}: the band does not allow for that", doubts.join("; ")));
        }
        let watts = self.power(load);
        let joules = watts.as_ref().zip(row.tokens_per_s).and_then(|(watts, rate)| {
            let ([low, high], [slow, fast]) = (watts.of.interval?, rate.interval?);
            Quantity::new(watts.of.value / rate.value, Some([low / fast, high / slow]))
        });
        if let Some((watts, joules)) = watts.zip(joules) {
            let how = if watts.measured { "measured" } else { "modelled" };
            row.energy_cost_boundary = watts.boundary.clone();
            row.energy = Some(EnergyOf {
                joules,
                kind: "modelled",
                boundary: watts.boundary.clone(),
                source: format!("the {how} power of its other runs"),
            });
        }
        let assumptions = money.assumptions(&row.names(), None);
        row.costs(joules, &assumptions);
        row
    }

    /// Power at a workload: that of its phase, as far as its records lie apart and at least [`LEAST_BAND`]; of one boundary and kind, else
    /// `None`.
    fn power(&self, load: &Load) -> Option<Watts> {
        let of_phase = || self.watts.iter().filter(|watts| watts.phase == load.phase);
        let first = of_phase().next()?;
        if of_phase().any(|w| (&w.boundary, w.measured) != (&first.boundary, first.measured)) {
            return None;
        }
        let n = of_phase().count() as f64;
        let centre = (of_phase().map(|w| w.of.value.ln()).sum::<f64>() / n).exp();
        let least = |x: f64, w: &Watts| x.min(w.of.interval.map_or(w.of.value, |[low, _]| low));
        let most = |x: f64, w: &Watts| x.max(w.of.interval.map_or(w.of.value, |[_, high]| high));
        let low = of_phase().fold(centre / LEAST_BAND, least);
        let high = of_phase().fold(centre * LEAST_BAND, most);
        Some(Watts { of: Quantity::new(centre, Some([low, high]))?, ..first.clone() })
    }
}

/// Why a record of tokens tells little of other work: it was one run, or disturbed.
fn doubt(record: &Record) -> Option<String> {
    let runs = record.timing.samples_ns.as_ref().map(Vec::len);
    let disturbed = record.disturbances.as_ref().filter(|list| !list.is_empty());
    if runs != Some(1) && disturbed.is_none() {
        return None;
    }
    let mut text = record.workload.token_test().unwrap_or_else(|| "a result".into());
    text.push_str(&match runs {
        Some(1) => " of 1 run".into(),
        Some(n) => format!(" of {n} runs"),
        None => String::new(),
    });
    if let Some(list) = disturbed {
        text.push_str(&format!(", disturbed ({})", one_line(&list.join(" and "))));
    }
    Some(text)
}

fn watts(record: &Record) -> Option<Watts> {
    let e = &record.energy;
    let (watts, seconds) = (e.avg_power_w?, e.energy_window_s.filter(|s| *s > 0.0)?);
    let interval = e.energy_ci95.map(|ci| [ci.lo / seconds, ci.hi / seconds]);
    Some(Watts {
        phase: Load::of(record).phase,
        of: Quantity::new(watts, interval)?,
        boundary: e.energy_boundary.clone()?,
        measured: e.energy_kind == Some(perjoule_record::EnergyKind::Measured),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use perjoule_record::{EnergyKind, Environment, Interval, Kind};

    /// A run of llama-3.1-8b in bf16 at `rate` tokens/s and `watts`, measured.
    fn record(prompt: u64, generated: u64, rate: f64, watts: f64) -> Record {
        let mut record = Record::new(Kind::Tokens, &Environment::default());
        let w = &mut record.workload;
        w.model = Some("llama-3.1-8b".into());
        w.dtype = Some("bf16".into());
        (w.n_prompt, w.n_gen, w.n_depth) = (Some(prompt), Some(generated), Some(0));
        w.n_parallel = Some(1);
        record.device.device_memory_bytes = Some(32 << 30);
        (record.roof.roof_gflops, record.roof.roof_gbps) = (Some(2000.0), Some(200.0));
        record.timing.avg_ts = Some(rate);
        let e = &mut record.energy;
        (e.avg_power_w, e.energy_window_s, e.joules) = (Some(watts), Some(1.0), Some(watts));
        e.energy_ci95 = Some(Interval { lo: 0.98 * watts, hi: 1.02 * watts });
        e.energy_boundary = Some("package".into());
        e.energy_kind = Some(EnergyKind::Measured);
        record
    }

    fn load(prompt: u64, generated: u64) -> Load {
        Load::of(&record(prompt, generated, 1.0, 1.0))
    }

    #[test]
    fn a_phase_has_its_own_power_whatever_the_order_of_records() {
        let money = Money::new("virginia", None, None, &[]).unwrap();
        let mut records = vec![record(128, 0, 90.0, 200.0), record(0, 32, 11.0, 50.0)];
        let joules = |records: &[Record]| {
            let row = Here::of(records, "Test CPU").unwrap().row(&load(0, 64), &money);
            assert_eq!((row.provenance, row.energy.as_ref().unwrap().kind), ("modelled", "modelled"));
            let rate = row.tokens_per_s.unwrap();
            let [low, high] = rate.interval.unwrap();
            assert!(low < 11.0 && 11.0 < high, "what it did at much the same: {rate:?}");
            row.energy.unwrap().joules.value * rate.value
        };
        let watts = joules(&records);
        assert!((watts / 50.0 - 1.0).abs() < 1e-9, "{watts}");
        records.reverse();
        assert!((joules(&records) / 50.0 - 1.0).abs() < 1e-9);
    }

    #[test]
    fn a_prediction_from_little_says_so() {
        let money = Money::new("virginia", None, None, &[]).unwrap();
        let notes = |records: &[Record]| {
            let row = Here::of(records, "Test CPU").unwrap().row(&load(0, 64), &money);
            row.notes.into_iter().filter(|note| note.starts_with("predicted from")).collect::<Vec<_>>()
        };
        let mut own = record(0, 32, 11.0, 50.0);
        own.timing.samples_ns = Some(vec![2.9e9; 5]);
        assert!(notes(std::slice::from_ref(&own)).is_empty());
        own.timing.samples_ns = Some(vec![2.9e9]);
        own.disturbances = Some(vec!["other load 0.9 cores".into()]);
        let list = notes(&[own.clone(), record(128, 0, 90.0, 200.0)]);
        assert_eq!(list.len(), 1, "{list:?}");
        assert!(list[0].contains("tg32 of 1 run, disturbed (other load 0.9 cores): "), "{list:?}");
        own.workload.n_prompt = Some(128);
        own.workload.n_gen = Some(0);
        assert!(notes(&[record(0, 32, 11.0, 50.0), own]).is_empty(), "another phase");
    }

    #[test]
    fn what_does_not_fit_or_was_never_held_against_a_roof_has_no_number() {
        let money = Money::new("virginia", None, None, &[]).unwrap();
        let here = Here::of(&[record(0, 32, 11.0, 50.0)], "Test CPU").unwrap();
        let mut large = load(0, 32);
        large.model = Some("llama-3.1-70b".into());
        let row = here.row(&large, &money);
        assert!(row.tokens_per_s.is_none() && row.notes[0].contains("does not fit"), "{:?}", row.notes);
        let mut bare = record(0, 32, 11.0, 50.0);
        bare.roof = Default::default();
        assert!(Here::of(&[bare], "Test CPU").is_none());
    }
}
