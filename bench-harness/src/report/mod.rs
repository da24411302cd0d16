//! Tables made from records: what a terminal and a Markdown page show.
//!
//! Every table says how its numbers were obtained, and modelled ones carry the word.

pub(crate) mod chart;
pub(crate) mod command;
pub(crate) mod figure;
pub(crate) mod meters;
pub(crate) mod page;
pub(crate) mod samples;
mod table;
pub(crate) mod units;

pub(crate) use table::{Align, Style, Table, markdown, one_line, printable};

use crate::compare::row::tokens_per_s;
use perjoule_record::{Energy, EnergyKind, Kind, NoReading, Provenance, Reading, Record};
use units::{count, duration_ns, percent, si};

fn text(field: &Option<String>) -> &str {
    field.as_deref().unwrap_or("-")
}

fn or_dash(cell: Option<String>) -> String {
    cell.unwrap_or_else(|| "-".into())
}

/// Half of the 95 % interval as a share of the median.
fn spread(record: &Record) -> Option<String> {
    let (ci, median) = record.timing.ci95_ns.zip(record.timing.median_ns)?;
    (median > 0.0).then(|| percent((ci.hi - ci.lo) / 2.0 / median))
}

/// The word that stands beside a figure of energy.
pub(crate) fn kind_word(energy: &Energy) -> &'static str {
    energy.energy_kind.map_or("unknown", EnergyKind::as_str)
}

/// The word for a whole column: that of all rows, or nothing when they differ (then each cell says it).
fn common_kind(records: &[Record]) -> Option<&'static str> {
    let mut kinds = records.iter().filter(|r| r.energy.energy_kind.is_some()).map(|r| kind_word(&r.energy));
    let first = kinds.next()?;
    kinds.all(|kind| kind == first).then_some(first)
}

fn energy_cell(value: Option<String>, energy: &Energy, common: Option<&str>) -> String {
    match (value, common) {
        (Some(value), Some(_)) => value,
        (Some(value), None) => format!("{value} ({})", kind_word(energy)),
        (None, _) => "-".into(),
    }
}

/// A rate, with the word for how it is known where that is not from a measurement of perjoule.
fn rate_cell(rate: String, record: &Record) -> String {
    match page::provenance(record) {
        "measured" => rate,
        word => format!("{rate} ({word})"),
    }
}

/// The device's id; of other tools and predictions, which have none, its name.
fn device_of(record: &Record) -> String {
    record.device.device.clone().unwrap_or_else(|| page::device(record))
}

/// The device that a row begins with, where the rows are of several.
fn device_prefix(records: &[Record], record: &Record, end: &str) -> String {
    let own = device_of(record);
    if records.iter().any(|r| device_of(r) != device_of(&records[0])) { own + end } else { String::new() }
}

/// What a ceiling is of, in words.
pub(crate) fn ceiling(record: &Record) -> Option<String> {
    Some(match (record.workload.op.as_deref()?, &record.workload.dtype) {
        ("multiply_add", Some(dtype)) => format!("{dtype} multiply-add"),
        (_, Some(dtype)) => format!("{dtype} dot product"),
        (op, None) => format!("memory {op}"),
    })
}

/// Ceilings: rate, spread, how it was obtained.
pub(crate) fn ceilings(records: &[Record]) -> Table {
    let mut table = Table::new([
        ("ceiling", Align::Left),
        ("rate", Align::Right),
        ("±", Align::Right),
        ("best", Align::Right),
        ("how", Align::Left),
    ]);
    for record in records {
        let what = ceiling(record).unwrap_or_else(|| "-".into());
        let rate = match record.timing.flops {
            Some(_) => record.timing.gflops.map(|rate| format!("{} GFLOP/s", si(rate))),
            None => record.timing.gbps.map(|rate| format!("{} GB/s", si(rate))),
        };
        let how = match record.provenance {
            Provenance::Modelled => format!("modelled: {}", text(&record.workload.config)),
            _ => format!("measured: {}", text(&record.workload.config)),
        };
        let measured = record.provenance == Provenance::Measured;
        let spread = if measured { spread(record) } else { None };
        let fastest = record.timing.samples_ns.iter().flatten().copied().reduce(f64::min);
        let amount = record.timing.flops.or(record.timing.bytes);
        let best =
            fastest.zip(amount).filter(|(ns, _)| measured && *ns > 0.0).map(|(ns, n)| si(n as f64 / ns));
        let device = device_prefix(records, record, " ");
        table.row([format!("{device}{what}"), or_dash(rate), or_dash(spread), or_dash(best), how]);
    }
    table
}

/// Kernels: what ran, how fast, how near to the roof, how exact, at what cost.
pub(crate) fn kernels(records: &[Record]) -> Table {
    let kind = common_kind(records);
    let joules = format!("J/call\n{}", kind.unwrap_or(""));
    let per_tflop = format!("J/TFLOP\n{}", kind.unwrap_or(""));
    let mut table = Table::new([
        ("op, dtype, cache state\nshape, kernel", Align::Left),
        ("time", Align::Right),
        ("±", Align::Right),
        ("GFLOP/s", Align::Right),
        ("GB/s", Align::Right),
        ("of roof", Align::Right),
        ("error", Align::Right),
        (joules.as_str(), Align::Right),
        (per_tflop.as_str(), Align::Right),
    ]);
    for record in records {
        let (w, t) = (&record.workload, &record.timing);
        let device = device_prefix(records, record, ": ");
        let cache = w.cache_state.and_then(|state| serde_json::to_value(state).ok());
        let cache = cache.as_ref().and_then(|v| v.as_str()).map(|c| format!(", {c}")).unwrap_or_default();
        let what = format!(
            "{device}{} {}{cache}\n  {}\n  {}",
            text(&w.op),
            text(&w.dtype),
            // one sequence, one matrix: the ordinary case needs no word
            text(&w.shape).trim_start_matches("b=1,").trim_end_matches(",b=1"),
            text(&w.kernel)
        );
        let error = match record.verification.verified {
            Some(true) => record
                .verification
                .max_rel_err
                .map(|e| if e == 0.0 { "0".into() } else { format!("{e:.0e}") }),
            Some(false) => Some("WRONG".into()),
            None => Some("unchecked".into()),
        };
        let per_call = record.energy.joules_per_call.map(units::joules);
        table.row([
            what,
            or_dash(t.median_ns.map(duration_ns)),
            or_dash(spread(record)),
            or_dash(t.gflops.map(si)),
            or_dash(t.gbps.map(si)),
            or_dash(record.roof.roof_fraction.map(|share| format!("{:.0} %", 100.0 * share))),
            or_dash(error),
            energy_cell(per_call, &record.energy, kind),
            energy_cell(record.joules_per_tflop().map(si), &record.energy, kind),
        ]);
    }
    table
}

/// Kernels beside the ones that they were measured in turn with.
pub(crate) fn versus(records: &[Record]) -> Table {
    let mut table = Table::new([
        ("op, dtype, shape\nkernel versus baseline", Align::Left),
        ("ratio", Align::Right),
        ("95 % interval", Align::Right),
        ("pairs", Align::Right),
        ("p", Align::Right),
        ("verdict", Align::Left),
    ]);
    for record in records.iter().filter(|record| record.versus.versus.is_some()) {
        let (w, v) = (&record.workload, &record.versus);
        let (op, dtype, shape) = (text(&w.op), text(&w.dtype), text(&w.shape));
        let what = format!("{op} {dtype} {shape}\n  {}\n  {}", text(&w.kernel), text(&v.versus));
        let p = |p: f64| if p < 0.001 { "< 0.001".into() } else { format!("{p:.3}") };
        table.row([
            what,
            or_dash(v.versus_ratio.map(|ratio| format!("{ratio:.3}"))),
            or_dash(v.versus_ci95.map(|ci| format!("{:.3}..{:.3}", ci.lo, ci.hi))),
            or_dash(record.timing.samples_ns.as_ref().map(|samples| samples.len().to_string())),
            or_dash(v.versus_p_value.map(p)),
            or_dash(v.versus_verdict.map(|verdict| verdict.to_string())),
        ]);
    }
    table
}

/// Prefill and decode: tokens per second and joules per token.
pub(crate) fn tokens(records: &[Record]) -> Table {
    let kind = common_kind(records);
    let joules = format!("J/token\n{}", kind.unwrap_or(""));
    let differ = |of: fn(&Record) -> &Option<String>| records.iter().any(|r| of(r) != of(&records[0]));
    let named = records.iter().all(|r| r.workload.model_type.is_some());
    let models = differ(|r| &r.workload.model_type) || (!named && differ(|r| &r.workload.model));
    let mut table = Table::new([
        ("test", Align::Left),
        ("tokens/s", Align::Right),
        ("interval\ntokens/s", Align::Right),
        ("± sd", Align::Right),
        ("runs", Align::Right),
        ("of roof", Align::Right),
        (joules.as_str(), Align::Right),
        ("interval\nJ/token", Align::Right),
        ("net of idle\nJ/token", Align::Right),
        ("tokens/J", Align::Right),
    ]);
    for record in records {
        let (w, t, e) = (&record.workload, &record.timing, &record.energy);
        let mut test = w.token_test().unwrap_or_else(|| page::phase(record).into());
        if let Some(sequences) = w.n_parallel.filter(|&n| n > 1) {
            test.push_str(&format!(" x{sequences}"));
        }
        if let Some(kv) = w.other_kv_dtype() {
            test.push_str(&format!(" (kv {kv})"));
        }
        if models {
            test = format!("{} {test}", text(if named { &w.model_type } else { &w.model }));
        }
        test.insert_str(0, &device_prefix(records, record, ": "));
        let per_token = e.joules_per_output_token.or(e.joules_per_total_token);
        let net = e.net_joules_per_output_token.or(e.net_joules_per_total_token);
        let interval = e.energy_ci95.zip(per_token).zip(e.joules).filter(|(_, joules)| *joules > 0.0);
        let interval = interval.map(|((ci, per), joules)| {
            let ci = ci.scaled(per / joules);
            format!("{}..{}", si(ci.lo), si(ci.hi))
        });
        let rate = tokens_per_s(record);
        let of_rate = rate.and_then(|rate| rate.interval).map(|[lo, hi]| format!("{}..{}", si(lo), si(hi)));
        table.row([
            test,
            or_dash(rate.map(|rate| rate_cell(si(rate.value), record))),
            or_dash(of_rate),
            or_dash(t.stddev_ts.zip(t.avg_ts).map(|(sd, mean)| percent(sd / mean))),
            or_dash(t.samples_ns.as_ref().map(|s| s.len().to_string())),
            or_dash(record.roof.roof_fraction.map(|share| format!("{:.0} %", 100.0 * share))),
            energy_cell(per_token.map(si), e, kind),
            or_dash(interval),
            or_dash(net.map(si)),
            or_dash(per_token.filter(|j| *j > 0.0).map(|j| si(1.0 / j))),
        ]);
    }
    table
}

/// What intervals hold, by what they are of.
pub(crate) fn coverage(measured: bool, modelled_joules: bool, predicted: bool) -> Option<String> {
    let parts = [
        (measured, "95 % of what was measured"),
        (modelled_joules, "the band of the model for modelled joules"),
        (predicted, "90 % of what is predicted for a class"),
    ];
    let parts: Vec<&str> = parts.into_iter().filter(|(is, _)| *is).map(|(_, words)| words).collect();
    (!parts.is_empty()).then(|| format!("intervals: {}", parts.join(", ")))
}

/// What the intervals of these results hold; nothing where they have none.
pub(crate) fn interval_note(records: &[Record]) -> Option<String> {
    let shown = |r: &&Record| r.timing.ci95_ns.is_some() || r.energy.energy_ci95.is_some();
    let predicted = |r: &Record| r.provenance == Provenance::Modelled;
    let modelled = |r: &Record| r.energy.energy_kind == Some(EnergyKind::Modelled);
    let any = |is: &dyn Fn(&Record) -> bool| {
        records.iter().filter(|r| r.kind != Kind::Ceiling).filter(shown).any(is)
    };
    coverage(any(&|r| !predicted(r)), any(&|r| !predicted(r) && modelled(r)), any(&predicted))
}

/// How the energy of these records was obtained, a line for each source; empty when none is known.
pub(crate) fn energy_notes(records: &[Record]) -> Vec<String> {
    let mut notes = Vec::new();
    for record in records {
        let e = &record.energy;
        let unknown =
            e.energy_unknown.as_ref().map(|reason| format!("energy unknown: {}", printable(reason)));
        notes.extend(unknown.filter(|note| !notes.contains(note)));
        if let Some(source) = &e.energy_source {
            let (boundary, source) = (text(&e.energy_boundary), source.split(':').next().unwrap_or_default());
            let note = format!(
                "energy: {}, source {source}, boundary {boundary}; Devices above says what that is",
                kind_word(e)
            );
            if !notes.contains(&note) {
                notes.push(note);
            }
        }
        for note in meter_notes(record) {
            // a meter that tells nothing says so once, however long each window was
            let told = |other: &String| match (note.split_once(": "), other.split_once(": ")) {
                (Some((who, _)), Some((other, _))) if who.starts_with(SILENT) => who == other,
                _ => note == *other,
            };
            if !notes.iter().any(told) {
                notes.push(note);
            }
        }
    }
    notes
}

/// How a line about a meter that tells nothing begins.
const SILENT: &str = "no joules of ";

/// What to know of the measured figures of a record, meter by meter, and which meters could tell nothing. The words of a model stand in its
/// source.
pub(crate) fn meter_notes(record: &Record) -> Vec<String> {
    let measured = |seen: &&Reading| seen.kind == EnergyKind::Measured;
    let of = |seen: &Reading| {
        let line = |note: &String| format!("{}: {}", printable(&seen.meter), printable(note));
        seen.notes.iter().flatten().map(line).collect::<Vec<_>>()
    };
    let readings = record.energy.energies.iter().flatten().filter(measured).flat_map(of);
    readings.chain(silent_meters(record)).collect()
}

/// The meters that could tell nothing, each with its reason, but for the reason that the record's own energy is unknown for.
pub(crate) fn silent_meters(record: &Record) -> Vec<String> {
    let e = &record.energy;
    let other = |silent: &&NoReading| e.energy_unknown.as_ref() != Some(&silent.reason);
    let line = |NoReading { source, boundary, meter, reason }: &NoReading| {
        let what = format!("{}, {}, {}", printable(meter), printable(source), printable(boundary));
        format!("{SILENT}{what}: {}", printable(reason))
    };
    e.energies_unknown.iter().flatten().filter(other).map(line).collect()
}

/// What else used the machine while these records were measured: the worst of each kind, and how many results it concerns.
pub(crate) fn disturbance_note(records: &[Record]) -> Option<String> {
    let disturbed: Vec<&Vec<String>> =
        records.iter().filter_map(|r| r.disturbances.as_ref()).filter(|list| !list.is_empty()).collect();
    let last = disturbed.iter().max_by_key(|list| list.len())?;
    let (n, all) = (disturbed.len(), records.len());
    Some(format!(
        "disturbed: {n} of {all} results (for one, {}): measured again on a quiet machine they would be better",
        last.join(" and ")
    ))
}

/// How many of these records were too short, or on a machine that does not tell, for other load to be seen.
pub(crate) fn unobserved_note(records: &[Record]) -> Option<String> {
    let n = records.iter().filter(|record| record.disturbances.is_none()).count();
    (n > 0).then(|| format!("other load was not observable for {n} of {} results", records.len()))
}

/// What "of roof" is a share of.
pub(crate) fn roof_note(records: &[Record]) -> Option<String> {
    let range = |rates: Vec<f64>, unit: &str| {
        let low = rates.iter().copied().reduce(f64::min)?;
        let high = rates.iter().copied().reduce(f64::max)?;
        let (low, high) = (si(low), si(high));
        Some(if low == high { format!("{low} {unit}") } else { format!("{low} to {high} {unit}") })
    };
    let arithmetic = range(records.iter().filter_map(|r| r.roof.roof_gflops).collect(), "GFLOP/s");
    let memory = range(records.iter().filter_map(|r| r.roof.roof_gbps).collect(), "GB/s");
    let parts: Vec<String> = arithmetic.into_iter().chain(memory).collect();
    let cached = records.iter().any(|r| r.roof.roof_gflops.is_some() && r.roof.roof_gbps.is_none());
    let caches = if cached { "; operands that stay in the caches are not held against memory" } else { "" };
    (!parts.is_empty()).then(|| {
        format!(
            "roof: {}, the best of all probes in this run so far; a record keeps the best up to its own measurement{caches}",
            parts.join(" and ")
        )
    })
}

/// What the column of errors holds; nothing where no record of a kernel has one.
pub(crate) fn error_note(records: &[Record]) -> Option<&'static str> {
    records.iter().any(|r| r.kind == Kind::Kernel && r.verification.max_rel_err.is_some()).then_some(
        "error: largest of an element against the f64 reference, relative to the sum of its terms' magnitudes; held against \
         the kernel's bound before it was timed",
    )
}

/// What the host had to do for decode steps that a device runs on its own, test by test.
pub(crate) fn host_notes(records: &[Record]) -> Vec<String> {
    let note = |record: &Record| {
        let (ns, launches) = (record.timing.host_ns_per_step?, record.timing.launches_per_step?);
        let each = ns / 1e3 / launches.max(1) as f64;
        let test = record.workload.token_test()?;
        let micros = si(ns / 1e3);
        Some(format!(
            "{test}: the host starts a step in {micros} µs, {each:.2} µs for each of {launches} launches"
        ))
    };
    records.iter().filter_map(note).collect()
}

/// What the numbers of these records must not be read without, a line each.
pub(crate) fn warning_notes(records: &[Record]) -> Vec<String> {
    warnings(records).iter().map(|warning| format!("warning: {warning}")).collect()
}

/// Whether a share of the roof is printed as more than 100 %: then it must be said what that means.
pub(crate) fn exceeds_roof(share: f64) -> bool {
    (1000.0 * share).round() > 1000.0
}

/// The share of the roof, where it is more than 100 %.
pub(crate) fn above_roof(record: &Record) -> Option<f64> {
    record.roof.roof_fraction.filter(|share| exceeds_roof(*share))
}

/// What makes the numbers of records doubtful: a line for each reason why one is invalid, and one for all shares above the roof.
pub(crate) fn warnings(records: &[Record]) -> Vec<String> {
    let what = |record: &Record| {
        let w = &record.workload;
        let test = w.token_test();
        let process = &record.process;
        let command = process.exec_name.as_deref().or(process.exec_command.as_deref());
        let name =
            w.kernel.as_deref().or(w.model.as_deref()).or(w.op.as_deref()).or(command).unwrap_or("result");
        format!("{name} {}", w.shape.as_deref().or(test.as_deref()).unwrap_or_default())
    };
    let invalid = |record| {
        let line = move |reason: &String| format!("{}: INVALID: {reason}", what(record));
        record.invalid_reasons.iter().map(line)
    };
    let mut list: Vec<String> = records.iter().flat_map(invalid).collect();
    let above = || records.iter().filter_map(|record| Some((record, above_roof(record)?)));
    if let Some((record, share)) = above().max_by(|a, b| a.1.total_cmp(&b.1)) {
        let more = match above().count() - 1 {
            0 => String::new(),
            n => format!(", and {n} more above 100 %"),
        };
        list.push(format!(
            "{}: {} of the roof{more}: operands that stayed in a cache, or a machine that was faster meanwhile than at any probe",
            what(record),
            percent(share)
        ));
    }
    list
}

/// A model's line above its table. Of its weights, `twice` bytes are the embedding's second copy: records do not tell.
pub(crate) fn model_line(record: &Record, twice: u64) -> String {
    let w = &record.workload;
    let mut parts = vec![text(&w.model).to_owned(), text(&w.dtypes()).to_owned()];
    parts.extend(w.model_n_params.map(|n| format!("{} parameters", count(n))));
    let copy = match twice {
        0 => String::new(),
        bytes => format!(" (with {} for a second copy of the tied embedding)", units::bytes(bytes)),
    };
    parts.extend(w.model_size.map(|bytes| format!("{} of weights{copy}", units::bytes(bytes))));
    parts.extend(w.n_threads.map(|n| format!("{n} threads")));
    parts.extend(w.n_batch.map(|n| format!("prompt chunks of {n}")));
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use perjoule_record::{Environment, Interval, Kind};

    fn token_record(kind: EnergyKind) -> Record {
        let mut record = Record::new(Kind::Tokens, &Environment::default());
        record.workload.n_gen = Some(32);
        record.workload.n_prompt = Some(0);
        record.timing.samples_ns = Some(vec![4e9, 4e9]);
        record.timing.derive_token_rates(32);
        record.energy.joules = Some(64.0);
        record.energy.joules_per_output_token = Some(1.0);
        record.energy.energy_ci95 = Some(Interval { lo: 32.0, hi: 128.0 });
        record.energy.energy_kind = Some(kind);
        record
    }

    #[test]
    fn a_kernels_energy_is_that_of_a_call_and_of_a_tflop() {
        let mut record = Record::new(Kind::Kernel, &Environment::default());
        record.timing.flops = Some(4_000_000_000);
        assert_eq!(record.joules_per_tflop(), None, "joules are unknown");
        record.energy.joules_per_call = Some(0.006);
        record.energy.energy_kind = Some(EnergyKind::Modelled);
        assert_eq!(record.joules_per_tflop(), Some(1.5));
        let text = kernels(&[record.clone()]).render(Style::Plain);
        assert!(text.contains("J/TFLOP") && text.contains("1.50"), "{text}");
        record.timing.flops = Some(0);
        assert_eq!(record.joules_per_tflop(), None);
    }

    #[test]
    fn modelled_energy_carries_the_word_and_its_interval() {
        let table = tokens(&[token_record(EnergyKind::Modelled)]).render(Style::Plain);
        assert!(table.contains("modelled") && table.contains("tg32"), "{table}");
        assert!(table.contains("0.500..2.00") && table.contains("8.00"), "{table}");
        let mixed = tokens(&[token_record(EnergyKind::Modelled), token_record(EnergyKind::Measured)]);
        let mixed = mixed.render(Style::Markdown);
        assert!(mixed.contains("1.00 (modelled)") && mixed.contains("1.00 (measured)"), "{mixed}");
    }

    #[test]
    fn a_tied_embeddings_second_copy_is_named() {
        let mut record = token_record(EnergyKind::Modelled);
        record.workload.model_size = Some(3 << 30);
        assert!(model_line(&record, 0).ends_with("3.00 GiB of weights"));
        assert!(model_line(&record, 1 << 29).contains("of weights (with 512 MiB for a second copy"));
    }

    #[test]
    fn doubtful_numbers_are_named() {
        let mut record = token_record(EnergyKind::Modelled);
        record.roof.roof_fraction = Some(1.0);
        assert!(warnings(std::slice::from_ref(&record)).is_empty());
        record.roof.roof_fraction = Some(1.2);
        record.invalidate("wrong result: c[0]");
        let list = warnings(std::slice::from_ref(&record));
        assert_eq!(list.len(), 2, "{list:?}");
        assert!(list[0].contains("INVALID") && list[1].contains("120.0 % of the roof: "));
        let mut other = token_record(EnergyKind::Modelled);
        other.roof.roof_fraction = Some(1.02);
        let list = warnings(&[other, record]);
        assert_eq!(list.len(), 2, "one line for all shares: {list:?}");
        assert!(list[1].contains("120.0 % of the roof, and 1 more"), "{list:?}");
    }
}
