//! One result: a record of tokens, or a prediction for a class of hardware.

use perjoule_catalogue::{
    Assumptions, Catalogue, Class, Costs, Estimate, Known, Prediction, WhyNot, Workload, predict,
};
use perjoule_record::{Phase, Provenance, Record, stats};

use super::costs::Money;
use super::workload::Load;
use crate::report::{above_roof, kind_word, one_line};

const MILLION: f64 = 1e6;
const JOULES_PER_KWH: f64 = 3.6e6;

/// A number with its interval, where one is known: 95 % of a measurement, 90 % of a prediction.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Quantity {
    pub(crate) value: f64,
    pub(crate) interval: Option<[f64; 2]>,
}

impl Quantity {
    /// `None` for what is not a positive number.
    pub(crate) fn new(value: f64, interval: Option<[f64; 2]>) -> Option<Quantity> {
        let usable = |x: f64| x.is_finite() && x >= 0.0;
        let interval = interval.filter(|[lo, hi]| usable(*lo) && usable(*hi));
        (usable(value) && value > 0.0).then_some(Quantity { value, interval })
    }

    pub(super) fn times(self, factor: f64) -> Option<Quantity> {
        Quantity::new(self.value * factor, self.interval.map(|ends| ends.map(|end| end * factor)))
    }

    /// One over it.
    pub(crate) fn inverse(self) -> Option<Quantity> {
        // an interval that reaches down to nothing has no upper end here
        let interval = self.interval.map(|[lo, hi]| [1.0 / hi, 1.0 / lo]);
        Quantity::new(1.0 / self.value, interval)
    }

    /// Times a figure that may be in conflict: then the interval spans all of its values.
    fn by(self, figure: &Known<f64>) -> Option<Quantity> {
        match figure {
            Known::Value(value) => self.times(*value),
            Known::Conflict { values } => {
                let lo = values.iter().copied().fold(f64::INFINITY, f64::min);
                let hi = values.iter().copied().fold(0.0, f64::max);
                let [own_lo, own_hi] = self.interval.unwrap_or([self.value; 2]);
                Quantity::new(self.value * (lo * hi).sqrt(), Some([own_lo * lo, own_hi * hi]))
            }
            Known::Unknown | Known::Unsupported => None,
        }
    }
}

impl From<Estimate> for Quantity {
    fn from(estimate: Estimate) -> Self {
        Quantity { value: estimate.value, interval: Some([estimate.low, estimate.high]) }
    }
}

/// Energy of a token or a call, and how it is known.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct EnergyOf {
    pub(crate) joules: Quantity,
    /// `measured`, `modelled`, `imported` or `unknown`.
    pub(crate) kind: &'static str,
    /// What the joules contain.
    pub(crate) boundary: String,
    pub(crate) source: String,
}

/// One result of a comparison.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Row {
    pub(crate) name: String,
    /// The file that it comes from.
    pub(crate) file: Option<String>,
    /// Id of the class, where it is known.
    pub(crate) class: Option<String>,
    pub(crate) devices: u32,
    /// `measured`, `imported` or `modelled`.
    pub(crate) provenance: &'static str,
    pub(crate) load: Load,
    pub(crate) tokens_per_s: Option<Quantity>,
    pub(crate) share_of_roof: Option<Quantity>,
    /// What the roof is made of.
    pub(crate) roof: String,
    pub(crate) energy: Option<EnergyOf>,
    /// Joules of a token at the wall, where they are modelled beside those of the boards.
    pub(crate) wall: Option<Quantity>,
    /// USD of a million tokens at the price per hour.
    pub(crate) usd_hire: Option<Quantity>,
    /// USD of their electricity.
    pub(crate) usd_energy: Option<Quantity>,
    /// gCO2e of their electricity.
    pub(crate) gco2e: Option<Quantity>,
    /// What the electricity in both contains.
    pub(crate) energy_cost_boundary: String,
    pub(crate) usd_h_device: Option<f64>,
    pub(crate) price_note: String,
    /// What a prediction was calibrated from, or the test of a record.
    pub(crate) basis: String,
    pub(crate) notes: Vec<String>,
}

impl Row {
    pub(super) fn empty(name: String, provenance: &'static str, load: Load) -> Row {
        Row {
            name,
            file: None,
            class: None,
            devices: 1,
            provenance,
            load,
            tokens_per_s: None,
            share_of_roof: None,
            roof: String::new(),
            energy: None,
            wall: None,
            usd_hire: None,
            usd_energy: None,
            gco2e: None,
            energy_cost_boundary: String::new(),
            usd_h_device: None,
            price_note: String::new(),
            basis: String::new(),
            notes: Vec::new(),
        }
    }

    /// Names by which `--price` may call it.
    pub(crate) fn names(&self) -> Vec<&str> {
        self.class.iter().map(String::as_str).chain([self.name.as_str()]).collect()
    }

    /// A valid record of tokens.
    pub(crate) fn of_record(record: &Record, file: &str, catalogue: &Catalogue, money: &Money) -> Row {
        let load = Load::of(record);
        let provenance = record.provenance.as_str();
        let mut row = Row::empty(one_line(&device_name(record)), provenance, load);
        row.file = Some(file.to_owned());
        row.class = record.device.device_class.clone();
        // a price is that of one device
        row.devices = record.device.device_count.and_then(|n| u32::try_from(n).ok()).unwrap_or(1).max(1);
        let (w, t) = (&record.workload, &record.timing);
        row.basis = w.token_test().unwrap_or_default();
        row.roof = "ceilings measured in the same run".into();
        if above_roof(record).is_some() {
            row.notes.push(
                "more than the roof: what it reads stayed in a cache, or the machine was faster meanwhile than at any probe".into(),
            );
        }
        for list in [&record.disturbances, &record.throttle_reasons].into_iter().flatten() {
            row.notes.extend(
                (!list.is_empty()).then(|| format!("measured under {}: it may be faster", list.join(", "))),
            );
        }

        row.tokens_per_s = tokens_per_s(record);
        row.share_of_roof = record.roof.roof_fraction.and_then(|share| {
            let ends = t.ci95_ns.zip(t.median_ns).map(|(ci, ns)| [share * ns / ci.hi, share * ns / ci.lo]);
            Quantity::new(share, ends)
        });
        row.energy = energy_per_token(record);
        let class = row.class.as_deref().and_then(|id| catalogue.get(id));
        let assumptions = money.assumptions(&row.names(), class);
        let energy = row.energy.as_ref().map(|energy| energy.joules);
        row.energy_cost_boundary = row.energy.as_ref().map(|e| e.boundary.clone()).unwrap_or_default();
        row.costs(energy, &assumptions);
        row
    }

    pub(super) fn costs(&mut self, joules: Option<Quantity>, assumptions: &Assumptions) {
        let seconds = self.tokens_per_s.and_then(|rate| rate.inverse());
        let hours = seconds.and_then(|s| s.times(MILLION * f64::from(self.devices) / 3600.0));
        self.usd_hire = hours.and_then(|hours| hours.by(&assumptions.usd_h_device));
        let kwh = joules.and_then(|joules| joules.times(MILLION / JOULES_PER_KWH));
        let facility = kwh.and_then(|kwh| kwh.by(&assumptions.pue));
        self.usd_energy = facility.and_then(|kwh| kwh.by(&assumptions.usd_kwh));
        self.gco2e = facility.and_then(|kwh| kwh.by(&assumptions.gco2e_kwh));
        self.usd_h_device = assumptions.usd_h_device.upper();
        self.price_note = assumptions.price_note.clone();
    }

    /// What a class will do, on `devices` of it or the fewest that hold the model. Where there is no prediction, the notes say why.
    pub(crate) fn predicted(class: &Class, devices: Option<u32>, load: &Load, money: &Money) -> Row {
        let mut row = Row::empty(class.id.clone(), "modelled", load.clone());
        row.class = Some(class.id.clone());
        let work = match load.modelled() {
            Ok(work) => work,
            Err(error) => {
                row.notes.push(format!("no prediction: {error}"));
                return row;
            }
        };
        let (count, prediction) = predict_on(class, devices, &work);
        row.devices = count;
        let prediction = match prediction {
            Ok(prediction) => prediction,
            Err(why) => {
                row.notes.push(format!("no prediction: {why}"));
                return row;
            }
        };
        row.tokens_per_s = Some(prediction.tokens_per_s.into());
        row.share_of_roof = Some(prediction.tokens_per_s.times(1.0 / prediction.roof).into());
        row.roof = format!("published {} of the class", prediction.limit);
        row.basis = prediction.calibration.clone();
        row.notes = prediction.notes.clone();
        row.energy = prediction.board.map(|power| EnergyOf {
            joules: power.joules_per_token.into(),
            kind: "modelled",
            boundary: "board".into(),
            source: "the catalogue's model of power, calibrated from published rows".into(),
        });
        row.wall = prediction.wall.map(|power| power.joules_per_token.into());
        let assumptions = money.assumptions(&row.names(), Some(class));
        row.usd_h_device = assumptions.usd_h_device.upper();
        row.price_note = assumptions.price_note.clone();
        let costs = Costs::new(&prediction, class, count, assumptions);
        row.usd_hire = costs.usd_hire.map(Quantity::from);
        row.usd_energy = costs.usd_energy.map(Quantity::from);
        row.gco2e = costs.gco2e.map(Quantity::from);
        row.energy_cost_boundary = if row.gco2e.is_some() { "wall".into() } else { String::new() };
        row
    }
}

/// The prediction for `devices` of a class or, where none are given, for the fewest that hold the model; and for how many it is.
pub(crate) fn predict_on(
    class: &Class,
    devices: Option<u32>,
    work: &Workload,
) -> (u32, Result<Prediction, WhyNot>) {
    let mut count = devices.unwrap_or(1);
    loop {
        match predict(class, count, work) {
            Err(WhyNot::DoesNotFit { min_devices: Some(least), .. })
                if devices.is_none() && least > count =>
            {
                count = least;
            }
            other => return (count, other),
        }
    }
}

/// Tokens a second of all sequences, with their interval: generated ones in serving, else as the record counts them. It is the one
/// rate that reports and comparisons show.
pub(crate) fn tokens_per_s(record: &Record) -> Option<Quantity> {
    let w = &record.workload;
    if w.token_phase() != Some(Phase::Mixed) {
        return rate(record);
    }
    // `avg_ts` counts prompt and generated tokens alike: without their numbers it tells no rate of generated ones
    let lengths = w.n_prompt.zip(w.n_gen).map(|(p, n)| (p as f64, n as f64)).filter(|(p, n)| p + n > 0.0);
    let generated = lengths.and_then(|(p, n)| rate(record)?.times(n / (p + n)));
    generated.or_else(|| Quantity::new(record.timing.avg_output_ts?, None))
}

/// Joules of a generated token, of a prompt alone those of its tokens.
pub(crate) fn energy_per_token(record: &Record) -> Option<EnergyOf> {
    let e = &record.energy;
    let joules = match record.workload.token_phase() {
        Some(Phase::Prefill) => e.joules_per_total_token,
        Some(Phase::Decode | Phase::Mixed) => e.joules_per_output_token,
        _ => e.joules_per_output_token.or(e.joules_per_total_token),
    };
    energy(record, joules?)
}

/// A figure made of the record's joules, and how they are known.
pub(crate) fn energy(record: &Record, joules: f64) -> Option<EnergyOf> {
    let e = &record.energy;
    let ends = e.energy_ci95.zip(e.joules).map(|(ci, all)| [ci.lo * joules / all, ci.hi * joules / all]);
    let kind = kind_word(e);
    let imported = record.provenance == Provenance::Imported;
    Some(EnergyOf {
        joules: Quantity::new(joules, ends)?,
        // a figure of another tool's meter is as imported as its rate
        kind: if imported && kind == "unknown" { "imported" } else { kind },
        boundary: one_line(e.energy_boundary.as_deref().unwrap_or("unknown")),
        source: e.energy_source.clone().unwrap_or_else(|| "unknown".into()),
    })
}

/// The device in words: its own name and the threads that worked.
pub(crate) fn device_name(record: &Record) -> String {
    let d = &record.device;
    let name = d.device_name.as_ref().or(record.environment.cpu_model.as_ref()).or(d.device.as_ref());
    let mut text = name.cloned().unwrap_or_else(|| "unknown device".into());
    if let Some(threads) = record.workload.n_threads {
        text.push_str(&format!(", {threads} threads"));
    }
    text
}

/// Tokens a second as the record has them: the mean of the samples' rates, else from the median. The interval reaches as far as that of the
/// median time, by factors: that of the mean rate itself would reach below 0 where there are few samples.
fn rate(record: &Record) -> Option<Quantity> {
    let (w, t) = (&record.workload, &record.timing);
    let sequence = w.n_prompt.unwrap_or(0) as f64 + w.n_gen.unwrap_or(0) as f64;
    let of_time = |ns: f64| Some(sequence * w.n_parallel? as f64 * 1e9 / ns);
    let factors = t.ci95_ns.zip(t.median_ns).map(|(ci, ns)| [ns / ci.hi, ns / ci.lo]);
    if let Some(mean) = t.avg_ts {
        // Student's, where a record has no interval of its time: relative to the mean, and by factors like the other
        let student = || {
            let n = t.samples_ns.as_ref().map_or(0, Vec::len);
            let deviation = t.stddev_ts.filter(|_| n >= 2 && mean > 0.0)?;
            let reach = 1.0 + stats::student_97_5((n - 1) as f64) * deviation / (n as f64).sqrt() / mean;
            Some([1.0 / reach, reach])
        };
        return Quantity::new(mean, factors.or_else(student).map(|ends| ends.map(|end| mean * end)));
    }
    let ns = t.median_ns.or_else(|| stats::median(t.samples_ns.as_deref()?))?;
    let ends = t.ci95_ns.and_then(|ci| Some([of_time(ci.hi)?, of_time(ci.lo)?]));
    Quantity::new(of_time(ns)?, ends)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::workload::Phase;
    use super::*;
    use perjoule_record::{EnergyKind, Environment, Interval, Kind};

    pub(crate) fn money() -> Money {
        Money::new("ohio", Some(1.2), None, &[]).unwrap()
    }

    /// 100 tokens/s, 2 J/token within the package.
    pub(crate) fn record(model: &str, n_parallel: u64) -> Record {
        let mut record = Record::new(Kind::Tokens, &Environment::default());
        record.device.device_name = Some("Test CPU".into());
        let w = &mut record.workload;
        (w.model, w.dtype, w.n_threads) = (Some(model.into()), Some("bf16".into()), Some(2));
        (w.n_prompt, w.n_gen, w.n_depth, w.n_parallel) = (Some(0), Some(10), Some(0), Some(n_parallel));
        record.timing.set_samples(vec![1e8 * n_parallel as f64; 5], 1);
        record.timing.derive_token_rates(10 * n_parallel);
        record.energy.joules = Some(20.0);
        record.energy.joules_per_output_token = Some(2.0);
        record.energy.energy_ci95 = Some(Interval { lo: 10.0, hi: 40.0 });
        record.energy.energy_kind = Some(EnergyKind::Modelled);
        record.energy.energy_boundary = Some("package".into());
        record
    }

    #[test]
    fn a_record_keeps_its_numbers_and_its_words() {
        let catalogue = Catalogue::builtin();
        let money = Money::new("ohio", Some(1.2), Some(0.1), &["test cpu, 2 threads=3.6".into()]).unwrap();
        let row = Row::of_record(&record("llama-3.1-8b", 1), "a.jsonl", &catalogue, &money);
        assert_eq!((row.provenance, row.name.as_str()), ("measured", "Test CPU, 2 threads"));
        assert!((row.tokens_per_s.unwrap().value - 100.0).abs() < 1e-9);
        let energy = row.energy.unwrap();
        assert_eq!((energy.kind, energy.boundary.as_str()), ("modelled", "package"));
        assert_eq!(energy.joules, Quantity { value: 2.0, interval: Some([1.0, 4.0]) });
        // 1e6 tokens take 1e4 s, which is 10/3.6 h; 2 MJ are 1/1.8 kWh
        let near = |q: Option<Quantity>, value: f64| (q.unwrap().value / value - 1.0).abs() < 1e-9;
        assert!(near(row.usd_hire, 10.0));
        assert!(near(row.usd_energy, 1.2 * 0.1 / 1.8));
        assert!(near(row.gco2e, 1.2 * 323.0 / 1.8));
    }

    #[test]
    fn the_interval_of_a_rate_is_above_nothing_however_few_the_runs() {
        let mut few = record("llama-3.1-8b", 1);
        few.timing.set_samples(vec![0.4e9, 0.7e9], 1);
        few.timing.derive_token_rates(10);
        let Quantity { value, interval } = tokens_per_s(&few).unwrap();
        let [lo, hi] = interval.unwrap();
        assert!(0.0 < lo && lo < value && value < hi, "{value} in {lo}..{hi}");
        few.timing.set_samples(vec![0.4e9], 1);
        few.timing.derive_token_rates(10);
        assert_eq!(tokens_per_s(&few), Some(Quantity { value: 25.0, interval: None }));
        // of other tools, which tell no times but how far the rates were apart
        let mut foreign = record("llama-3.1-8b", 1);
        foreign.timing.avg_ts = Some(20.0);
        foreign.timing.stddev_ts = Some(8.0);
        foreign.timing.samples_ns = Some(vec![1e9, 1e9]);
        (foreign.timing.median_ns, foreign.timing.ci95_ns) = (None, None);
        let [lo, hi] = tokens_per_s(&foreign).unwrap().interval.unwrap();
        assert!(0.0 < lo && lo < 20.0 && hi > 60.0, "two runs tell little: {lo}..{hi}");
    }

    #[test]
    fn serving_counts_generated_tokens() {
        let mut both = record("llama-3.1-8b", 1);
        both.workload.n_prompt = Some(30);
        both.timing.derive_token_rates(40);
        let row = Row::of_record(&both, "a", &Catalogue::builtin(), &money());
        assert_eq!(row.load.phase, Some(Phase::Serving));
        assert!((row.tokens_per_s.unwrap().value - 100.0).abs() < 1e-9, "10 of 40 tokens are generated");
    }

    #[test]
    fn served_tokens_of_unknown_lengths_keep_the_rate_that_was_published() {
        let mut served = record("Qwen/Qwen3-14B", 8);
        (served.workload.n_prompt, served.workload.n_gen) = (None, None);
        served.workload.phase = Some(perjoule_record::Phase::Mixed);
        (served.timing, served.energy) = Default::default();
        served.energy.joules_per_output_token = Some(0.5);
        assert_eq!(tokens_per_s(&served), None);
        served.timing.avg_output_ts = Some(1086.7);
        let row = Row::of_record(&served, "a", &Catalogue::builtin(), &money());
        assert_eq!(row.load.phase, Some(Phase::Serving));
        assert_eq!(row.tokens_per_s, Some(Quantity { value: 1086.7, interval: None }));
        assert_eq!(row.energy.map(|energy| energy.joules.value), Some(0.5));
        served.timing.avg_ts = Some(5000.0);
        assert_eq!(
            tokens_per_s(&served).map(|rate| rate.value),
            Some(1086.7),
            "prompts are in the other rate"
        );
    }

    #[test]
    fn numbers_that_are_none_give_no_cell() {
        let mut bad = record("llama-3.1-8b", 1);
        (bad.timing.avg_ts, bad.energy.joules_per_output_token) = (Some(f64::NAN), Some(f64::INFINITY));
        let row = Row::of_record(&bad, "a", &Catalogue::builtin(), &money());
        assert_eq!((row.tokens_per_s, row.energy, row.usd_hire, row.gco2e), (None, None, None, None));
        let mut huge = record("llama-3.1-8b", 1);
        huge.timing.avg_ts = Some(1e308);
        let row = Row::of_record(&huge, "a", &Catalogue::builtin(), &money());
        assert_eq!(row.tokens_per_s.unwrap().value, 1e308);
    }

    #[test]
    fn a_class_is_given_the_fewest_devices_that_hold_the_model() {
        let catalogue = Catalogue::builtin();
        let class = catalogue.get("nvidia-h100-sxm").unwrap();
        let load = |model: &str| Load { model: Some(model.into()), ..Load::of(&record("x", 1)) };
        let row = Row::predicted(class, None, &load("llama-3.1-8b"), &money());
        assert_eq!((row.devices, row.provenance), (1, "modelled"));
        assert!(row.tokens_per_s.unwrap().interval.is_some() && row.usd_hire.is_some());
        assert_eq!(row.energy.unwrap().boundary, "board");
        assert_eq!(row.energy_cost_boundary, "wall");
        assert_eq!(Row::predicted(class, None, &load("llama-3.1-70b"), &money()).devices, 2);
        let tight = Row::predicted(class, Some(1), &load("llama-3.1-70b"), &money());
        assert!(tight.tokens_per_s.is_none() && tight.notes[0].contains("2 devices hold it"), "{tight:?}");
        let inferentia =
            Row::predicted(catalogue.get("aws-inferentia2").unwrap(), None, &load("llama-3.1-8b"), &money());
        assert!(inferentia.energy.is_none(), "no TDP, no energy");
        assert!(inferentia.notes.iter().any(|note| note.contains("no power or energy")));
    }
}
