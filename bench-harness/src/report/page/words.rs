//! What a page says in words: what was measured, on what, when, the best figures, how each number came to be, and what to doubt.

use perjoule_record::{EnergyKind, Kind, Provenance, Record};
use serde::Serialize;
use std::collections::BTreeSet;

use super::data::{clip, device, energy_kind, joules_per_token, phase, provenance};
use crate::compare::row::tokens_per_s;
use crate::report::units::{bytes, joules, percent, si};
use crate::report::{above_roof, meter_notes};

/// A best figure.
#[derive(Debug, Serialize)]
pub(crate) struct Best {
    what: &'static str,
    value: String,
    unit: &'static str,
    /// `measured`, `modelled` or `imported`.
    how: &'static str,
    of: String,
}

/// A machine and build that records come from, and what was run there.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    facts: Vec<(&'static str, String)>,
    commands: Vec<String>,
}

/// Where imported records come from.
#[derive(Debug, PartialEq, Serialize)]
pub(crate) struct Origin {
    text: String,
    /// Empty unless it is a link that a reader may follow.
    url: String,
}

/// Everything in words.
#[derive(Debug, Serialize)]
pub(crate) struct Words {
    pub(crate) summary: Vec<(&'static str, String)>,
    pub(crate) best: Vec<Best>,
    /// How energy was obtained; the first word says whether it is modelled.
    pub(crate) energy: Vec<String>,
    /// What the meters say of their figures, and which could tell nothing.
    pub(crate) meters: Vec<String>,
    pub(crate) modelled: bool,
    pub(crate) doubts: Vec<String>,
    pub(crate) sources: Vec<Origin>,
    pub(crate) machines: Vec<Machine>,
    pub(crate) more_machines: usize,
    pub(crate) methods: Vec<&'static str>,
}

/// Machines and commands that are listed.
const LISTED: usize = 12;
const COMMANDS: usize = 40;

fn plural(n: usize, one: &str) -> String {
    match n {
        1 => format!("1 {one}"),
        n => format!("{n} {one}s"),
    }
}

fn distinct<'a>(values: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut seen = Vec::new();
    let mut set = BTreeSet::new();
    for value in values {
        if set.insert(value) {
            seen.push(clip(value));
        }
    }
    seen
}

/// `a, b and c`, at most so many of them.
fn listed(names: &[String], most: usize) -> String {
    let shown = &names[..names.len().min(most)];
    let rest = names.len() - shown.len();
    match (shown, rest) {
        ([], _) => String::new(),
        ([one], 0) => one.clone(),
        ([first @ .., last], 0) => format!("{} and {last}", first.join(", ")),
        (shown, rest) => format!("{} and {rest} more", shown.join(", ")),
    }
}

/// All words for these records; `skipped` lines could not be read.
pub(crate) fn words(records: &[Record], skipped: usize) -> Words {
    let energy = energy(records);
    Words {
        summary: summary(records),
        best: best(records),
        modelled: records.iter().any(|r| r.energy.energy_kind == Some(EnergyKind::Modelled)),
        energy,
        meters: meters(records),
        doubts: doubts(records, skipped),
        methods: methods(records),
        sources: sources(records),
        more_machines: runs(records).len().saturating_sub(LISTED),
        machines: machines(records),
    }
}

/// What stands below a still figure, where the page is not at hand: how many records of which provenance, on what, when, how energy was
/// obtained, what to doubt, and what made it.
pub(crate) fn foot(records: &[Record], skipped: usize) -> Vec<String> {
    let count = |word: &str| records.iter().filter(|r| provenance(r) == word).count();
    let words = ["measured", "imported", "modelled", "unknown"].map(|word| (count(word), word));
    let parts: Vec<String> =
        words.iter().filter(|(n, _)| *n > 0).map(|(n, word)| format!("{n} {word}")).collect();
    let mut lines = vec![format!("{}: {}.", plural(records.len(), "record"), listed(&parts, 4))];
    let mut about = summary(records).into_iter().filter(|(name, _)| *name != "What");
    lines.extend(about.by_ref().map(|(name, text)| format!("{name}: {text}")));
    lines.extend(energy(records).into_iter().take(3).map(|line| format!("Energy: {line}")));
    let doubts = doubts(records, skipped).into_iter().filter(|line| !line.starts_with("Nothing"));
    lines.extend(doubts.map(|line| format!("Doubt: {line}")));
    let versions = distinct(taken(records).filter_map(|r| r.environment.perjoule_version.as_deref()));
    let commits = distinct(taken(records).filter_map(|r| r.environment.build_commit.as_deref()));
    let mut made = format!("Drawn by perjoule {}", env!("CARGO_PKG_VERSION"));
    if !versions.is_empty() {
        made += &format!("; records made by version {}", listed(&versions, 3));
    }
    if !commits.is_empty() {
        made += &format!(", commit {}", listed(&commits, 3));
    }
    lines.push(made + ".");
    lines
}

/// Records that were taken on a machine, predictions left out.
fn taken(records: &[Record]) -> impl Iterator<Item = &Record> + Clone {
    records.iter().filter(|r| r.provenance != Provenance::Modelled || r.kind == Kind::Ceiling)
}

fn summary(records: &[Record]) -> Vec<(&'static str, String)> {
    let of = |kind: Kind| taken(records).filter(move |r| r.kind == kind);
    let mut parts = Vec::new();
    let kernels = of(Kind::Kernel).count();
    if kernels > 0 {
        let ops = distinct(of(Kind::Kernel).filter_map(|r| r.workload.op.as_deref()));
        parts.push(format!("{} of {}", plural(kernels, "kernel result"), listed(&ops, 6)));
    }
    let tokens = of(Kind::Tokens).count();
    if tokens > 0 {
        let models = distinct(of(Kind::Tokens).filter_map(|r| r.workload.model.as_deref()));
        parts.push(format!("{} of {}", plural(tokens, "token result"), listed(&models, 6)));
    }
    let samples = of(Kind::Samples).count();
    if samples > 0 {
        let models = distinct(of(Kind::Samples).filter_map(|r| r.workload.model.as_deref()));
        let of = if models.is_empty() { String::new() } else { format!(" of {}", listed(&models, 6)) };
        parts.push(format!("{}{of}", plural(samples, "sample result")));
    }
    let commands = of(Kind::Command).count();
    if commands > 0 {
        let labels: Vec<String> = of(Kind::Command).map(crate::report::command::label).collect();
        let labels = distinct(labels.iter().map(String::as_str));
        parts.push(format!("{} of {}", plural(commands, "command result"), listed(&labels, 6)));
    }
    let ceilings = of(Kind::Ceiling).count();
    if ceilings > 0 {
        parts.push(plural(ceilings, "ceiling"));
    }
    let others = records.iter().filter(|r| r.kind == Kind::Other).count();
    if others > 0 {
        parts.push(format!(
            "{} of a kind that this version does not know, not shown",
            plural(others, "record")
        ));
    }
    let dtypes = distinct(taken(records).filter_map(|r| r.workload.dtype.as_deref()));
    let mut what = format!("{}.", listed(&parts, 9));
    if !dtypes.is_empty() {
        what += &format!(" Element types: {}.", listed(&dtypes, 12));
    }
    let devices: Vec<String> = taken(records).map(device).collect();
    let devices = distinct(devices.iter().map(String::as_str));
    let mut on = format!("{}.", listed(&devices, 6));
    let systems: Vec<String> = taken(records).filter_map(system).collect();
    let systems = distinct(systems.iter().map(String::as_str));
    if !systems.is_empty() {
        on += &format!(" {}.", listed(&systems, 3));
    }
    let times: Vec<&str> = taken(records).filter_map(|r| r.test_time.as_deref()).collect();
    let when = match (times.iter().min(), times.iter().max()) {
        (Some(first), Some(last)) if minute(first) == minute(last) => format!("{}.", minute(first)),
        (Some(first), Some(last)) => format!("{} to {}.", minute(first), minute(last)),
        _ => "Time not recorded.".into(),
    };
    let predictions = records.len() - taken(records).count();
    let mut lines = vec![("What", what), ("On", on), ("When", when)];
    if predictions > 0 {
        let classes =
            records.iter().filter(|r| r.provenance == Provenance::Modelled && r.kind != Kind::Ceiling);
        let classes: Vec<String> = classes.map(device).collect();
        let classes = distinct(classes.iter().map(String::as_str));
        let figures = plural(predictions, "figure");
        lines.push((
            "Modelled",
            format!("{figures} for {}, not measured, each with a band.", listed(&classes, 6)),
        ));
    }
    lines
}

/// `2026-11-26 06:12 UTC` of an RFC 3339 time; the text itself where it is none.
fn minute(time: &str) -> String {
    match (time.get(..10), time.get(11..16), time.ends_with('Z')) {
        (Some(day), Some(minute), true) => format!("{} {} UTC", clip(day), clip(minute)),
        _ => clip(time),
    }
}

fn system(record: &Record) -> Option<String> {
    let e = &record.environment;
    let mut parts = Vec::new();
    parts.extend(e.cpu_model.clone());
    parts.extend(e.cpu_count.map(|n| plural(usize::try_from(n).unwrap_or(usize::MAX), "processor")));
    parts.extend(e.memory_bytes.map(bytes));
    parts.extend(e.os_version.clone());
    parts.extend(e.arch.clone());
    parts.extend(e.virtualized.filter(|&yes| yes).map(|_| "virtual machine".to_owned()));
    (!parts.is_empty()).then(|| parts.join(", "))
}

fn best(records: &[Record]) -> Vec<Best> {
    // predictions never are the best of what was taken
    let good = || taken(records).filter(|r| r.valid && r.verification.verified != Some(false));
    let tokens = |part: &'static str| good().filter(move |r| r.kind == Kind::Tokens && phase(r) == part);
    let of_tokens = |r: &Record| {
        let (w, test) = (&r.workload, r.workload.token_test().unwrap_or_default());
        let times = w.n_parallel.filter(|&n| n > 1).map(|n| format!(" x{n}")).unwrap_or_default();
        let name = |field: &Option<String>| clip(field.as_deref().unwrap_or(""));
        format!("{} {} {test}{times} on {}", name(&w.model), name(&w.dtypes()), clip(&device(r)))
    };
    let finite = |x: &f64| x.is_finite() && *x > 0.0;
    let mut list = Vec::new();
    for (part, speed, cost) in
        [("decode", "Fastest decode", "Cheapest decode"), ("prefill", "Fastest prefill", "Cheapest prefill")]
    {
        let rates = tokens(part).filter_map(|r| Some((tokens_per_s(r)?.value, r)));
        if let Some((rate, r)) = rates.max_by(|a, b| a.0.total_cmp(&b.0)) {
            list.push(Best {
                what: speed,
                value: si(rate),
                unit: "tokens/s",
                how: provenance(r),
                of: of_tokens(r),
            });
        }
        // a measured joule goes before a modelled one, however cheap that is
        let costs = || tokens(part).filter_map(|r| Some((joules_per_token(r).filter(finite)?, r)));
        let least = |kind: &str| {
            costs()
                .filter(|(_, r)| (energy_kind(r) == "measured") == (kind == "measured"))
                .min_by(|a, b| a.0.total_cmp(&b.0))
        };
        if let Some((cost_j, r)) = least("measured").or_else(|| least("modelled")) {
            list.push(Best {
                what: cost,
                value: si(cost_j),
                unit: "J/token",
                how: energy_kind(r),
                of: of_tokens(r),
            });
        }
    }
    let kernels = good().filter(|r| r.kind == Kind::Kernel);
    let rates = kernels.filter_map(|r| Some((r.timing.gflops.filter(finite)?, r)));
    if let Some((rate, r)) = rates.max_by(|a, b| a.0.total_cmp(&b.0)) {
        let share = r.roof.roof_fraction.map(|share| format!(", {} of the roof", percent(share)));
        let name = |field: &Option<String>| clip(field.as_deref().unwrap_or(""));
        let of = format!("{} {} on {}", name(&r.workload.kernel), name(&r.workload.shape), clip(&device(r)));
        list.push(Best {
            what: "Fastest kernel",
            value: si(rate),
            unit: "GFLOP/s",
            how: provenance(r),
            of: of + &share.unwrap_or_default(),
        });
    }
    list
}

/// A sentence or a few, on one line.
fn cut(text: &str) -> String {
    text.chars().take(600).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn energy(records: &[Record]) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for record in records {
        let e = &record.energy;
        let word = match energy_kind(record) {
            "modelled" => "Modelled, not measured",
            "measured" => "Measured",
            "" => continue,
            _ => "Obtained in an unknown way",
        };
        let source = e.energy_source.as_deref().unwrap_or("no source named");
        let boundary = e.energy_boundary.as_deref().unwrap_or("unknown");
        // the assumptions of a model go to some length, and are what its joules rest on
        let line =
            format!("{word} on {}: {} Boundary: {}.", clip(&device(record)), cut(source), clip(boundary));
        if !lines.contains(&line) {
            lines.push(line);
        }
        if lines.len() == LISTED {
            break;
        }
    }
    if lines.is_empty() {
        lines.push("No record holds energy.".into());
    }
    lines
}

fn meters(records: &[Record]) -> Vec<String> {
    let notes = records.iter().flat_map(|record| {
        let device = clip(&device(record));
        meter_notes(record).into_iter().map(move |note| format!("{device}: {}", cut(&note)))
    });
    let mut seen = BTreeSet::new();
    let mut lines: Vec<String> = notes.filter(|line| seen.insert(line.clone())).collect();
    let more = lines.len().saturating_sub(LISTED);
    lines.truncate(LISTED);
    lines.extend((more > 0).then(|| format!("And {more} more, beside the results in the records.")));
    lines
}

fn doubts(records: &[Record], skipped: usize) -> Vec<String> {
    let all = records.len();
    let count = |test: &dyn Fn(&Record) -> bool| records.iter().filter(|r| test(r)).count();
    let some = |list: &Option<Vec<String>>| list.as_ref().is_some_and(|list| !list.is_empty());
    let mut lines = Vec::new();
    let mut say = |n: usize, text: String| {
        if n > 0 {
            lines.push(text);
        }
    };
    let n = count(&|r| !r.valid);
    say(
        n,
        format!(
            "{n} of {all} results are invalid; the tables mark them with their reasons, charts leave them out."
        ),
    );
    let n = count(&|r| r.kind == Kind::Kernel && r.verification.verified != Some(true));
    say(n, format!("{} without a verified output.", plural(n, "kernel result")));
    let n = count(&|r| some(&r.disturbances));
    let worst = records.iter().filter_map(|r| r.disturbances.as_ref()).max_by_key(|list| list.len());
    let worst = worst.map(|list| clip(&list.join(" and "))).unwrap_or_default();
    say(
        n,
        format!(
            "{n} of {all} results were disturbed (for one, {worst}): measured again on a quiet machine they would be better."
        ),
    );
    let n = count(&|r| some(&r.throttle_reasons));
    say(n, format!("{n} of {all} results were taken while the device lowered its clocks."));
    let n = count(&|r| above_roof(r).is_some());
    say(
        n,
        format!(
            "{} above 100 % of the roof, which is suspicious: operands stayed in a cache, or the machine was faster meanwhile than at any probe.",
            plural(n, "result")
        ),
    );
    say(skipped, format!("{} could not be read and are left out.", plural(skipped, "line")));
    if lines.is_empty() {
        lines.push("Nothing that the records know of.".into());
    }
    lines
}

/// Tools and files that results were imported from, each with the number of its records.
fn sources(records: &[Record]) -> Vec<Origin> {
    let mut list: Vec<(String, String, usize)> = Vec::new();
    for record in records.iter().filter(|r| r.provenance == Provenance::Imported) {
        let s = &record.source;
        let tool = s.source_tool.as_deref().unwrap_or("a tool without a name");
        let version = s.source_version.as_deref().map(|v| format!(" {v}")).unwrap_or_default();
        let file = s.source_name.as_deref().map(|n| format!(", file {n}")).unwrap_or_default();
        let text = clip(&format!("{tool}{version}{file}"));
        // nothing but the web: a link could run a script otherwise
        let web = |url: &&str| ["http://", "https://"].iter().any(|scheme| url.starts_with(scheme));
        let url = clip(s.source_url.as_deref().filter(web).unwrap_or(""));
        match list.iter().position(|(t, u, _)| *t == text && *u == url) {
            Some(i) => list[i].2 += 1,
            None if list.len() < LISTED => list.push((text, url, 1)),
            None => {}
        }
    }
    let origin = |(text, url, n)| Origin { text: format!("{} of {text}", plural(n, "record")), url };
    list.into_iter().map(origin).collect()
}

/// Machines and builds, with the records of each.
fn runs(records: &[Record]) -> Vec<Vec<&Record>> {
    let mut list: Vec<(String, Vec<&Record>)> = Vec::new();
    let mut index = std::collections::HashMap::new();
    for record in taken(records) {
        let e = &record.environment;
        let key =
            format!("{:?}", (system(record), &e.perjoule_version, &e.build_commit, &e.rustc, &e.governor));
        let at = *index.entry(key.clone()).or_insert_with(|| {
            list.push((key, Vec::new()));
            list.len() - 1
        });
        list[at].1.push(record);
    }
    list.into_iter().map(|(_, records)| records).collect()
}

fn machines(records: &[Record]) -> Vec<Machine> {
    let of = |records: Vec<&Record>| {
        let e = &records[0].environment;
        let mut facts = Vec::new();
        let mut fact = |name: &'static str, value: Option<String>| {
            facts.extend(value.filter(|text| !text.is_empty()).map(|text| (name, clip(&text))));
        };
        fact("Processor", e.cpu_model.clone());
        fact("Processors", e.cpu_count.map(|n| n.to_string()));
        fact("Processor limit", e.cpu_limit.map(si));
        fact("Features used", e.cpu_features.as_ref().map(|list| list.join(" ")));
        fact("Memory", e.memory_bytes.map(bytes));
        fact("Memory limit", e.memory_limit_bytes.map(bytes));
        fact("System", e.os_version.clone().or(e.os.clone()));
        fact("Kernel of the system", e.kernel_version.clone());
        fact("Architecture", e.arch.clone());
        fact("Virtual machine", e.virtualized.map(|yes| if yes { "yes" } else { "no" }.to_owned()));
        fact("Frequency governor", e.governor.clone());
        let drivers = distinct(records.iter().filter_map(|r| r.device.driver.as_deref()));
        fact("Driver", Some(listed(&drivers, 4)));
        fact("perjoule", e.perjoule_version.clone());
        fact("Commit", e.build_commit.clone());
        fact("Compiler", e.rustc.clone());
        let seeds: Vec<String> =
            records.iter().filter_map(|r| r.workload.seed).map(|s| s.to_string()).collect();
        fact("Seed", Some(listed(&distinct(seeds.iter().map(String::as_str)), 4)));
        let threads: Vec<String> =
            records.iter().filter_map(|r| r.workload.n_threads).map(|n| n.to_string()).collect();
        fact("Threads", Some(listed(&distinct(threads.iter().map(String::as_str)), 4)));
        let hottest = records.iter().filter_map(|r| r.conditions.temperature_c_max).reduce(f64::max);
        fact("Hottest seen", hottest.map(|c| format!("{c:.0} °C")));
        let clocks = records.iter().filter_map(|r| r.conditions.clock_mhz_mean);
        let (low, high) = clocks.fold((f64::INFINITY, 0.0f64), |(a, b), x| (a.min(x), b.max(x)));
        fact("Mean clocks", (high > 0.0).then(|| format!("{low:.0} to {high:.0} MHz")));
        let idle = records.iter().filter_map(|r| r.energy.idle_power_w).reduce(f64::min);
        fact("Power at rest", idle.map(|w| format!("{} W", si(w))));
        let windows = records.iter().filter_map(|r| r.energy.joules).reduce(f64::max);
        fact("Largest energy window", windows.map(joules));
        let commands = records.iter().filter_map(|r| r.environment.command.as_deref());
        let mut commands: Vec<String> = {
            let mut seen = BTreeSet::new();
            // a command line is there to be repeated: cut far later than a name
            let line =
                |text: &str| text.chars().take(2000).map(|c| if c.is_control() { ' ' } else { c }).collect();
            commands.filter(|text| seen.insert(*text)).map(line).collect()
        };
        let more = commands.len().saturating_sub(COMMANDS);
        commands.truncate(COMMANDS);
        if more > 0 {
            commands.push(format!("# and {more} more"));
        }
        Machine { facts, commands }
    };
    runs(records).into_iter().take(LISTED).map(of).collect()
}

fn methods(records: &[Record]) -> Vec<&'static str> {
    let has = |kind: Kind| records.iter().any(|r| r.kind == kind);
    let mut list = Vec::new();
    if has(Kind::Kernel) {
        list.push(
            "Kernels: a kernel is timed only after its output was checked against an f64 reference in the same run; error is the \
             largest of an element, relative to the sum of its terms' magnitudes. Time is the median of the samples, its 95 % \
             interval by bootstrap. GFLOP/s and GB/s count what the op needs at least: every operand moved once.",
        );
        list.push(
            "Share of the roof: the time that the ceilings of the same run allow, over the time taken. Cache state: rotate moves \
             operands through more than the last-level cache, as a model does; hot uses the same ones call after call.",
        );
    }
    if has(Kind::Tokens) {
        list.push(
            "Tokens: named as llama-bench names them. pp512 reads a prompt of 512 tokens, tg128 generates 128, x4 is four sequences side \
             by side, d1024 stands for tokens in the KV cache before. tokens/s is the mean over repetitions, of all sequences together, with \
             the 95 % interval of the median time; where prompts and generation are in one test it counts generated tokens. A prediction for a class has \
             a 90 % band instead.",
        );
    }
    if has(Kind::Samples) {
        list.push(
            "Samples: images, queries or whatever else another tool counts, at its own rate and unit. J/sample is the energy of one where \
             that tool states it.",
        );
    }
    if has(Kind::Command) {
        list.push(
            "Commands: a run is timed from its start to its end; several commands are run alternately. CPU time is that of all processes that \
             were waited for, memory the largest resident set of any one of them. Joules are those of the runs' own windows, of a window \
             of several runs, or modelled from the CPU time.",
        );
    }
    if has(Kind::Ceiling) {
        list.push(
            "Ceilings: multiply-adds on registers, and streaming through several times the last-level cache; a sample is the best of \
             five. A modelled ceiling follows from another one, as its row says.",
        );
    }
    if records.iter().any(|r| r.energy.energy_kind.is_some()) {
        list.push(
            "Energy: joules of a window that repeats the work. Measured joules carry the interval of the meter; modelled ones the band of \
             the model. Net of idle subtracts the power at rest.",
        );
    }
    list.push(
        "From: measured is measured by perjoule, imported is another tool's result and half filled in charts, modelled is computed from a \
         model and stands hollow and dashed.",
    );
    list
}
