//! The figures of a record that exports share, and the name that stands for what was measured.

use std::collections::{HashMap, HashSet};

use perjoule_record::{EnergyKind, Kind, Phase, Provenance, Record};

use crate::escape::one_line;

/// Which direction is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Better {
    Smaller,
    Bigger,
    /// Depends on what else changed: power.
    Neither,
}

/// One figure. Values and bounds are finite, values positive.
#[derive(Clone, Debug)]
pub(super) struct Metric {
    /// Such as `joules-per-output-token`; begins with `modelled-` where a model gave it.
    pub(super) name: String,
    /// Such as `J/token`; ends with ` (modelled)` where a model gave it.
    pub(super) unit: String,
    pub(super) value: f64,
    /// Bounds: a 95 % interval, for mean rates one standard deviation to either side.
    pub(super) bounds: Option<[f64; 2]>,
    pub(super) better: Better,
    /// What OpenMetrics calls it, which wants base units: its name without the unit, the unit, and the divisor.
    pub(super) base: (&'static str, &'static str, f64),
}

/// Whether a model of the device, not a meter, gave the energy. A kind that is not stated is neither.
pub(super) fn energy_word(record: &Record) -> Option<&'static str> {
    match record.energy.energy_kind {
        _ if record.provenance == Provenance::Modelled => Some("modelled"),
        Some(EnergyKind::Measured) => None,
        Some(EnergyKind::Modelled) => Some("modelled"),
        _ => Some("unverified"),
    }
}

/// The figures that a valid record has; none for an invalid one.
pub(super) fn metrics(record: &Record) -> Vec<Metric> {
    let mut metrics = Vec::new();
    if !record.valid {
        return metrics;
    }
    let modelled = (record.provenance == Provenance::Modelled).then_some("modelled");
    let mut add = |name: &str,
                   unit: &str,
                   word: Option<&str>,
                   value: Option<f64>,
                   bounds: Option<[f64; 2]>,
                   better,
                   base| {
        let Some(value) = value.filter(|x| x.is_finite() && *x > 0.0) else { return };
        let bounds =
            bounds.filter(|[lo, hi]| lo.is_finite() && hi.is_finite() && *lo <= value && value <= *hi);
        let (name, unit) = match word {
            Some(word) => (format!("{word}-{name}"), format!("{unit} ({word})")),
            None => (name.into(), unit.into()),
        };
        metrics.push(Metric { name, unit, value, bounds, better, base });
    };
    let (timing, energy) = (&record.timing, &record.energy);
    let time = ("call_duration", "seconds", 1e9);
    let median = timing.median_ns.filter(|x| x.is_finite() && *x > 0.0);
    let interval = timing.ci95_ns.map(|ci| [ci.lo, ci.hi]);
    add("latency", "ns", modelled, median, interval, Better::Smaller, time);
    if median.is_none() {
        let mean = ("mean_call_duration", "seconds", 1e9);
        add("mean-latency", "ns", modelled, timing.avg_ns, None, Better::Smaller, mean);
    }
    let spread = timing.avg_ts.zip(timing.stddev_ts).map(|(mean, sd)| [mean - sd, mean + sd]);
    let rate = ("rate", "tokens_per_second", 1.0);
    add("tokens-per-second", "tokens/s", modelled, timing.avg_ts, spread, Better::Bigger, rate);
    let rate = ("serving_rate", "output_tokens_per_second", 1.0);
    let output = timing.avg_output_ts;
    add("output-tokens-per-second", "output tokens/s", modelled, output, None, Better::Bigger, rate);
    if let Some(unit) = &timing.throughput_unit {
        let rate = ("throughput", "samples_per_second", 1.0);
        add("throughput", &one_line(unit), modelled, timing.throughput, None, Better::Bigger, rate);
    }
    // 1e9 operations are a billion operations: the base unit is one.
    let flops = ("arithmetic", "operations_per_second", 1e-9);
    add("gflops", "GFLOP/s", modelled, timing.gflops, None, Better::Bigger, flops);
    let bytes = ("traffic", "bytes_per_second", 1e-9);
    add("gigabytes-per-second", "GB/s", modelled, timing.gbps, None, Better::Bigger, bytes);

    let word = energy_word(record);
    // The band is that of the window's joules; figures made of them scale alike.
    let band = |figure: Option<f64>| {
        let scale = figure? / energy.joules.filter(|joules| *joules > 0.0)?;
        energy.energy_ci95.map(|ci| [ci.lo * scale, ci.hi * scale])
    };
    for (name, unit, value, base) in [
        ("joules-per-output-token", "J/token", energy.joules_per_output_token, "energy_per_output_token"),
        ("joules-per-total-token", "J/token", energy.joules_per_total_token, "energy_per_total_token"),
        ("joules-per-call", "J", energy.joules_per_call, "energy_per_call"),
    ] {
        add(name, unit, word, value, band(value), Better::Smaller, (base, "joules", 1.0));
    }
    add(
        "average-power",
        "W",
        word,
        energy.avg_power_w,
        None,
        Better::Neither,
        ("average_power", "watts", 1.0),
    );
    metrics
}

/// What was measured, the same in every run: model or op, test, type, device. One line.
pub(super) fn label(record: &Record) -> String {
    let w = &record.workload;
    let mut words: Vec<String> = Vec::new();
    let mut add = |word: Option<String>| words.extend(word.filter(|word| !word.trim().is_empty()));
    match record.kind {
        Kind::Kernel | Kind::Ceiling => {
            add((record.kind == Kind::Ceiling).then(|| "ceiling".into()));
            add(w.op.clone());
            add(w.shape.clone());
        }
        Kind::Command => {
            add(record.process.exec_name.clone().or_else(|| record.process.exec_command.clone()))
        }
        _ => {
            add(w.model.clone().or_else(|| w.model_type.clone()));
            let phase = |phase| match phase {
                Phase::Prefill => "prefill",
                Phase::Decode => "decode",
                Phase::Mixed => "mixed",
                _ => "tokens",
            };
            add(w.token_test().or_else(|| w.phase.map(|it| phase(it).into())));
            // What sets results of one model apart in MLPerf and ML.ENERGY.
            let settings = w.config.iter().flat_map(|config| config.split(','));
            let mut named = settings.filter_map(|setting| setting.split_once('='));
            add(named
                .find(|(key, _)| key.eq_ignore_ascii_case("scenario") || *key == "task")
                .map(|(_, value)| value.into()));
            add(w.n_parallel.filter(|&n| n > 1).map(|n| format!("x{n}")));
        }
    }
    add(w.dtypes());
    add(w.kernel.as_ref().map(|kernel| format!("by {kernel}")));
    add(record
        .device
        .device
        .clone()
        .or_else(|| record.device.device_name.clone())
        .map(|device| format!("on {device}")));
    add(record.device.device_count.filter(|&n| n > 1).map(|n| format!("({n} devices)")));
    if w.model.is_none() && w.model_type.is_none() && w.op.is_none() && record.kind != Kind::Command {
        // A summary of LoadGen names neither model nor device: its file must do.
        let source = [&record.source.source_tool, &record.source.source_name];
        words.splice(0..0, source.into_iter().flatten().cloned());
    }
    if words.is_empty() { "unnamed".into() } else { one_line(&words.join(" ")) }
}

/// Gives the second and later use of a name a number.
#[derive(Default)]
pub(super) struct Names {
    used: HashSet<String>,
    counts: HashMap<String, u64>,
}

impl Names {
    pub(super) fn unique(&mut self, name: String) -> String {
        let count = self.counts.entry(name.clone()).or_insert(0);
        loop {
            *count += 1;
            let candidate = if *count == 1 { name.clone() } else { format!("{name} #{count}") };
            // `a #2` may itself be a name.
            if self.used.insert(candidate.clone()) {
                return candidate;
            }
        }
    }
}
