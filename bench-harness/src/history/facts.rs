//! What the index keeps of a record: what it is a measurement of, and the figures that are followed.

use clap::ValueEnum;
use perjoule_record::{Kind, Record, stats};

use crate::compare::regression::what;
use crate::compare::row::{EnergyOf, Quantity, device_name, energy, energy_per_token, tokens_per_s};
use crate::compare::workload::{Identity, canonical_dtype, canonical_model};
use crate::report::one_line;

/// A figure that is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Metric {
    /// Tokens per second, of all sequences; samples per second where those are counted
    Tokens,
    /// Time of a call
    Time,
    /// Joules of a token or a call
    Joules,
    /// 1e9 operations per second
    Gflops,
    /// 1e9 bytes per second
    Gbps,
}

impl Metric {
    /// All of them, in the order of the columns of the index.
    pub(crate) const ALL: [Metric; 5] =
        [Metric::Tokens, Metric::Time, Metric::Joules, Metric::Gflops, Metric::Gbps];

    /// The name of its column.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Metric::Tokens => "tokens",
            Metric::Time => "time",
            Metric::Joules => "joules",
            Metric::Gflops => "gflops",
            Metric::Gbps => "gbps",
        }
    }

    /// What is followed of a kind where nothing else is asked for; the first that a series has.
    pub(crate) fn usual(kind: &str) -> &'static [Metric] {
        match kind {
            "tokens" | "samples" => &[Metric::Tokens, Metric::Time],
            "ceiling" => &[Metric::Gflops, Metric::Gbps, Metric::Time],
            _ => &[Metric::Time],
        }
    }

    /// Whether more of it is better.
    pub(crate) fn is_rate(self) -> bool {
        matches!(self, Metric::Tokens | Metric::Gflops | Metric::Gbps)
    }

    fn of(self, record: &Record) -> Option<Quantity> {
        let t = &record.timing;
        let samples = || stats::median(t.samples_ns.as_deref()?);
        let ns = t.median_ns.or_else(samples);
        // a rate's interval is that of the time, turned over
        let rate = |rate: Option<f64>| {
            let ends = t.ci95_ns.zip(ns).map(|(ci, ns)| [ns / ci.hi, ns / ci.lo]);
            rate.and_then(|rate| Quantity::new(rate, ends.map(|ends| ends.map(|end| end * rate))))
        };
        match self {
            Metric::Tokens if record.kind == Kind::Tokens => {
                tokens_per_s(record).or_else(|| Quantity::new(t.avg_output_ts?, None))
            }
            Metric::Tokens => Quantity::new(t.throughput?, None),
            Metric::Time => Quantity::new(ns.or(t.avg_ns)?, t.ci95_ns.map(|ci| [ci.lo, ci.hi])),
            Metric::Joules => joules(record).map(|energy| energy.joules),
            Metric::Gflops => rate(t.gflops),
            Metric::Gbps => rate(t.gbps),
        }
    }
}

fn joules(record: &Record) -> Option<EnergyOf> {
    let e = &record.energy;
    match record.kind {
        Kind::Tokens => energy_per_token(record).or_else(|| energy(record, e.joules_per_output_token?)),
        _ => energy(record, e.joules_per_call?),
    }
}

/// What records of one series share.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Series {
    pub(crate) kind: String,
    /// `measured`, `imported` or `modelled`.
    pub(crate) provenance: String,
    /// What was measured, in words, without the machine.
    pub(crate) what: String,
    pub(crate) op: String,
    pub(crate) kernel: String,
    pub(crate) shape: String,
    /// As [`canonical_dtype`] writes it.
    pub(crate) dtype: String,
    /// As [`canonical_model`] writes it.
    pub(crate) model: String,
    /// As llama-bench writes it, such as `pp512`.
    pub(crate) test: String,
    pub(crate) device: String,
    pub(crate) machine: String,
    /// Unit of [`Metric::Tokens`].
    pub(crate) unit: String,
}

impl Series {
    /// The series of a record, and the text by which the index knows it.
    pub(crate) fn of(record: &Record) -> (String, Self) {
        let (w, d) = (&record.workload, &record.device);
        let text = |field: &Option<String>| one_line(field.as_deref().unwrap_or_default());
        let identity = serde_json::to_string(&Identity::of(record)).unwrap_or_default();
        let model = w.model.as_ref().or(w.model_type.as_ref());
        let series = Series {
            kind: record.kind.as_str().into(),
            provenance: record.provenance.as_str().into(),
            what: what(record),
            op: text(&w.op),
            kernel: text(&w.kernel),
            shape: text(&w.shape),
            dtype: w.dtype.as_deref().map(canonical_dtype).unwrap_or_default(),
            model: model.map(|name| canonical_model(name)).unwrap_or_default(),
            test: w.token_test().unwrap_or_default(),
            device: text(&d.device.clone().or(d.backend.clone())),
            machine: one_line(&device_name(record)),
            unit: match record.kind {
                Kind::Tokens => "tokens/s".into(),
                _ => record.timing.throughput_unit.as_deref().map(one_line).unwrap_or_default(),
            },
        };
        (identity, series)
    }

    /// What joules are counted by.
    pub(crate) fn joules_per(&self) -> &'static str {
        if self.kind == "tokens" { "token" } else { "call" }
    }
}

/// The figures of one record.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Figures {
    /// In the order of [`Metric::ALL`].
    pub(crate) metrics: [Option<Quantity>; 5],
    /// How the joules are known: `measured`, `modelled`, `imported`; without joules `unknown`.
    pub(crate) energy_kind: String,
    pub(crate) energy_boundary: Option<String>,
}

impl Figures {
    pub(crate) fn of(record: &Record) -> Self {
        let energy = joules(record);
        Figures {
            metrics: Metric::ALL.map(|metric| metric.of(record)),
            energy_kind: energy.as_ref().map_or("unknown", |energy| energy.kind).into(),
            energy_boundary: energy.map(|energy| energy.boundary),
        }
    }

    pub(crate) fn get(&self, metric: Metric) -> Option<Quantity> {
        let at = Metric::ALL.iter().position(|one| *one == metric)?;
        self.metrics[at]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::row::tests::record;

    #[test]
    fn a_record_of_tokens_has_its_figures() {
        let figures = Figures::of(&record("llama-3.1-8b", 1));
        let value = |metric| figures.get(metric).map(|q| q.value);
        assert!((value(Metric::Tokens).unwrap() - 100.0).abs() < 1e-9);
        assert_eq!((value(Metric::Time), value(Metric::Joules)), (Some(1e8), Some(2.0)));
        assert_eq!((value(Metric::Gflops), figures.energy_kind.as_str()), (None, "modelled"));
        assert_eq!(figures.get(Metric::Joules).unwrap().interval, Some([1.0, 4.0]));
        let mut without = record("llama-3.1-8b", 1);
        without.energy = Default::default();
        let figures = Figures::of(&without);
        assert_eq!((figures.get(Metric::Joules), figures.energy_kind.as_str()), (None, "unknown"));
    }

    #[test]
    fn rates_have_the_interval_of_the_time() {
        let mut kernel = record("x", 1);
        kernel.kind = Kind::Kernel;
        kernel.timing.median_ns = Some(100.0);
        kernel.timing.ci95_ns = Some([80.0, 125.0].into());
        kernel.timing.gflops = Some(10.0);
        let rate = Figures::of(&kernel).get(Metric::Gflops).unwrap();
        assert_eq!((rate.value, rate.interval), (10.0, Some([8.0, 12.5])));
    }

    #[test]
    fn how_a_number_is_known_and_where_it_was_measured_are_part_of_a_series() {
        let one = record("llama-3.1-8b", 1);
        let same = |other: &Record| Series::of(&one).0 == Series::of(other).0;
        let mut other = record("meta-llama/Llama-3.1-8B-Instruct", 1);
        other.environment.build_commit = Some("abc".into());
        assert!(same(&other), "another commit, and another spelling of the model");
        other.provenance = perjoule_record::Provenance::Imported;
        assert!(!same(&other));
        let mut elsewhere = record("llama-3.1-8b", 1);
        elsewhere.environment.cpu_model = Some("Other CPU".into());
        assert!(!same(&elsewhere) && !same(&record("llama-3.1-8b", 2)));
    }
}
