//! `perjoule run`: ceilings, kernels and tokens of each device, as tables and records.

use anyhow::{Context, Result, bail, ensure};
use perjoule::{Choice, DType, Device, Op};
use perjoule_model::Source;
use perjoule_record::{CacheState, Environment, Kind, Provenance, Record};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use super::args::{Format, Part, RunArgs};
use super::output::Output;
use super::{Ended, atomic, devices, environment, open, run_tokens, threads_of};
use crate::live::sample::{Roots, Sampler};
use crate::measure::ceilings::{Ceilings, ceilings};
use crate::measure::energy::{Gauge, Meters};
use crate::measure::{Effort, Interrupted, interrupted, kernel};
use crate::ops::{self, Entry};
use crate::report;
use perjoule_engine::launches::fresh;

/// Seconds of measuring by default: with loading a model of a billion parameters, about 90 s on two cores.
const BUDGET: f64 = 60.0;
/// Seconds that ceilings take at most on a device.
const CEILINGS: f64 = 4.0;
/// Seconds that one kernel takes at most by default.
const KERNEL: f64 = 3.0;
/// Most samples of one record.
const REPETITIONS: usize = 100_000;
/// Share of its time that a result keeps for its samples, however long sensors need beside them.
pub(super) const LEAST: f64 = 1.0 / 3.0;
/// Share of the budget that kernels may take when tokens follow.
const KERNELS_SHARE: f64 = 0.45;

/// What the default run measures: a large product, the products of prefill and decode, and attention of both.
pub(super) const DEFAULTS: &[(&str, &str)] = &[
    ("matmul", "m=2048,n=2048,k=2048"),
    ("matmul", "m=512,n=8192,k=2048"),
    ("matmul", "m=1,n=8192,k=2048"),
    ("attention", "b=1,q=512,kv=512,h=32,hkv=8,d=64"),
    ("attention", "b=1,q=1,kv=4096,h=32,hkv=8,d=64"),
];

/// One kernel to measure, before a device is asked for its rows.
struct Wanted {
    entry: &'static Entry,
    sizes: ops::Sizes,
    dtype: DType,
}

/// One kernel to measure, on a device.
struct Job<'w> {
    op: Op,
    choice: Choice,
    /// What it is measured in turn with.
    versus: Option<Choice>,
    wanted: &'w Wanted,
}

/// A device and what is measured on it.
pub(super) struct Target {
    pub(super) device: Device,
    pub(super) gauge: Option<Gauge>,
    pub(super) ceilings: Ceilings,
    pub(super) threads: usize,
}

pub(crate) fn run(args: &RunArgs) -> Result<Ended> {
    let budget = args.budget.unwrap_or(BUDGET);
    ensure!(args.repetitions != Some(0), "-r 0: at least one repetition is needed");
    if let Some(r) = args.repetitions.filter(|r| *r > REPETITIONS) {
        bail!("-r {r}: a record keeps every sample, and {REPETITIONS} at most");
    }
    let sizes = || args.n_prompt.iter().chain(&args.n_gen);
    ensure!(sizes().count() == 0 || sizes().any(|n| *n > 0), "-p and -n are 0: there is nothing to measure");
    ensure!(args.batch != Some(0), "--batch 0: at least one prompt token must be processed at once");
    ensure!(!args.parallel.contains(&0), "--parallel 0: at least one sequence is needed");
    ensure!(args.threads != Some(0), "--threads 0: at least one thread is needed");
    ensure!(
        !args.live || std::io::stderr().is_terminal(),
        "--live draws on stderr, which is no terminal: leave it out; `perjoule top --jsonl` writes the same to a file"
    );
    let parts = parts(args);
    refuse_unused(args, &parts)?;
    if let Some(threads) = args.threads.filter(|_| !args.quiet) {
        warn_of_shared_processors(threads);
    }
    let wanted = if parts.contains(&Part::Kernels) { wanted(args)? } else { Vec::new() };
    let seed = args.seed.unwrap_or(1);
    let sources = match parts.contains(&Part::Tokens) {
        // read now: a model that is not there should not cost a minute of measuring first
        true => vec![Source::open(args.model.as_deref().unwrap_or(run_tokens::MODEL), seed)?],
        false => Vec::new(),
    };
    for source in &sources {
        run_tokens::fits(args, source)?;
    }
    let labels: Vec<String> = match args.device.as_slice() {
        // an adapter that the processor stands for measures the processor a second time, and worse: by name alone
        [] => {
            perjoule::devices().0.into_iter().filter(|info| !info.software).map(|info| info.label).collect()
        }
        list => list.to_vec(),
    };
    ensure!(!labels.is_empty(), "no device was found; `perjoule devices` says why");
    if let Some(twice) = labels.iter().enumerate().find(|(i, label)| labels[..*i].contains(label)) {
        bail!("--device names {} twice", twice.1);
    }
    let opened = labels.iter().map(|label| open(label, args.threads)).collect::<Result<Vec<_>>>()?;
    // choose the rows now: a name that is in no table is an error of the command line
    let mut tasks = Vec::new();
    for device in &opened {
        let mut list = Vec::new();
        for wanted in &wanted {
            let op = wanted.entry.build(&wanted.sizes, wanted.dtype, &**device.backend())?;
            fits(&op)?;
            let versus = match &args.versus {
                Some(name) => Some(named(device, &op, name)?),
                None => None,
            };
            for choice in choices(device, &op, args.kernel.as_deref())? {
                list.push(Job { op: op.clone(), choice, versus, wanted });
            }
        }
        tasks.push(list);
    }

    if let Some(path) = &args.openmetrics {
        atomic::check(path).context("--openmetrics")?;
    }
    let environment = environment();
    let mut output = Output::open(args.format, args.output.as_deref(), args.quiet, &environment)?;
    if let Some(path) = &args.openmetrics {
        output.keep_openmetrics(path);
    }
    output.show_charts(args.charts)?;
    let session = Run { args, parts: &parts, budget, seed, environment: &environment };
    let start = Instant::now();
    let result = session.all(&opened, &tasks, &sources, &mut output);
    let took = start.elapsed().as_secs_f64();
    if result.is_ok() && args.budget.is_some() && took > 1.5 * budget {
        // one call, one check or one repetition may be longer than what there was for all of them
        let why = "checking results, loading, and the least that each needs of samples, energy and power at rest come on top";
        output.line(&format!("--budget {budget} s, took {took:.0} s: {why}"))?;
    }
    let stopped = interrupted() || result.as_ref().is_err_and(|error| error.is::<Interrupted>());
    // what is finished is kept and said to be, whatever ended the run
    let finished = output.finish(stopped);
    if stopped {
        return Ok(Ended::Interrupted);
    }
    result?;
    finished?;
    Ok(if output.invalid() > 0 { Ended::Failed } else { Ended::Done })
}

/// Threads that take turns on a processor measure the scheduler, too. That may be what is wanted, so it is no error.
fn warn_of_shared_processors(threads: usize) {
    if let Some(have) =
        std::thread::available_parallelism().ok().map(usize::from).filter(|&have| threads > have)
    {
        let s = if have == 1 { "" } else { "s" };
        eprintln!(
            "warning: --threads {threads}: this process may use {have} processor{s}, so threads wait for each other"
        );
    }
}

fn parts(args: &RunArgs) -> Vec<Part> {
    let kernels =
        args.op.is_some() || !args.shape.is_empty() || args.kernel.is_some() || args.versus.is_some();
    match args.only.as_slice() {
        [] if kernels => vec![Part::Kernels],
        [] => vec![Part::Ceilings, Part::Kernels, Part::Tokens],
        list => list.to_vec(),
    }
}

/// Refuses what only a part that does not run would look at: a measurement of something else than what was asked for is no answer.
fn refuse_unused(args: &RunArgs, parts: &[Part]) -> Result<()> {
    let of_kernels = [
        ("--op", args.op.is_some()),
        ("--shape", !args.shape.is_empty()),
        ("--kernel", args.kernel.is_some()),
        ("--versus", args.versus.is_some()),
        ("--cache", args.cache.is_some()),
    ];
    let of_tokens = [
        ("--model", args.model.is_some()),
        ("-p", !args.n_prompt.is_empty()),
        ("-n", !args.n_gen.is_empty()),
        ("-d", !args.n_depth.is_empty()),
        ("--parallel", !args.parallel.is_empty()),
        ("--kv-dtype", args.kv_dtype.is_some()),
        ("--batch", args.batch.is_some()),
        ("--format llama-bench", args.format == Some(Format::LlamaBench)),
        ("--format llama-bench-jsonl", args.format == Some(Format::LlamaBenchJsonl)),
    ];
    for (part, name, flags) in
        [(Part::Kernels, "kernels", of_kernels.as_slice()), (Part::Tokens, "tokens", of_tokens.as_slice())]
    {
        if let (false, Some((flag, _))) = (parts.contains(&part), flags.iter().find(|(_, given)| *given)) {
            bail!(
                "{flag} is for {name}, which this run does not measure: leave it out, or add --only {name}"
            );
        }
    }
    Ok(())
}

fn wanted(args: &RunArgs) -> Result<Vec<Wanted>> {
    let dtypes = match args.dtype.as_slice() {
        [] => &[DType::F32, DType::BF16][..],
        list => list,
    };
    let of = |op: &'static Entry| -> Vec<(&str, &str)> {
        match args.shape.as_slice() {
            [] => vec![(op.name, "")],
            shapes => shapes.iter().map(|shape| (op.name, shape.as_str())).collect(),
        }
    };
    // a row by its name alone: the op is what it runs
    let row = args.kernel.as_deref().filter(|name| *name != "all").or(args.versus.as_deref());
    let selected: Vec<(&str, &str)> = match (&args.op, row) {
        (Some(op), _) => of(ops::find(op)?),
        (None, Some(name)) => {
            let device = open(args.device.first().map_or("cpu", String::as_str), None)?;
            let rows = device.kernels();
            let Some(row) = rows.iter().find(|row| row.name == name) else {
                bail!("no kernel {name:?} on this device; `perjoule kernels` lists them");
            };
            of(ops::find(row.op)?)
        }
        (None, None) if !args.shape.is_empty() => of(ops::find("matmul")?),
        (None, None) => DEFAULTS.to_vec(),
    };
    let mut list = Vec::new();
    for (op, shape) in selected {
        let entry = ops::find(op)?;
        let sizes = entry.sizes(shape)?;
        sizes.refuse_empty()?;
        list.extend(dtypes.iter().map(|&dtype| Wanted { entry, sizes: sizes.clone(), dtype }));
    }
    Ok(list)
}

/// The rows to measure: the chosen one, one by name, or all that run the op.
fn choices(device: &Device, op: &Op, kernel: Option<&str>) -> Result<Vec<Choice>> {
    match kernel {
        None => Ok(vec![device.select(fresh(device, op), &[])?]),
        Some("all") => {
            let verdicts = device.explain(fresh(device, op))?;
            let usable: Vec<Choice> =
                verdicts.into_iter().filter(|v| v.outcome.is_ok()).map(|v| v.choice).collect();
            match usable.is_empty() {
                true => Ok(vec![device.select(fresh(device, op), &[])?]), // the error with every row's reason
                false => Ok(usable),
            }
        }
        Some(name) => Ok(vec![named(device, op, name)?]),
    }
}

fn named(device: &Device, op: &Op, name: &str) -> Result<Choice> {
    let rows = device.kernels();
    let Some(row) = rows.iter().find(|row| row.name == name) else {
        bail!("no kernel {name:?} on {}; `perjoule kernels` lists them", device.info().label);
    };
    ensure!(row.op == op.name(), "{name} runs {}, not {}", row.op, op.name());
    Ok(device.select_named(fresh(device, op), name)?)
}

/// Refuses an op whose operands cannot be held twice, on the host for the check and on the device, before anything is measured.
pub(super) fn fits(op: &Op) -> Result<()> {
    let need = op.operands().iter().fold(0u64, |sum, o| sum.saturating_add(o.bytes)).saturating_mul(2);
    if let Some(have) = perjoule_model::memory::available_memory().filter(|&have| need > have) {
        let (need, have) = (report::units::bytes(need), report::units::bytes(have));
        bail!("{op} needs {need} of memory and {have} are available: use a smaller shape");
    }
    Ok(())
}

/// Seconds for the samples of so many results that have `seconds` together: where there are sensors, each also has a window of energy, as
/// long as the samples, and a pause for the power at rest.
fn sampling(seconds: f64, gauge: Option<&Gauge>, results: f64) -> f64 {
    let Some(gauge) = gauge.filter(|gauge| gauge.has_sensors()) else { return seconds };
    let pauses = results * gauge.pause().as_secs_f64();
    ((seconds - pauses) / (1.0 + results)).max(seconds * LEAST)
}

/// What all parts of a run share.
pub(super) struct Run<'a> {
    pub(super) args: &'a RunArgs,
    parts: &'a [Part],
    budget: f64,
    pub(super) seed: u64,
    environment: &'a Environment,
}

impl Run<'_> {
    fn has(&self, part: Part) -> bool {
        self.parts.contains(&part)
    }

    fn all(
        &self,
        opened: &[Device],
        tasks: &[Vec<Job<'_>>],
        sources: &[Source],
        output: &mut Output,
    ) -> Result<()> {
        // once for all devices: what an external meter sends comes only once
        let threads = opened.iter().map(|device| threads_of(device.info())).max().unwrap_or(1);
        let meters = self.args.meters.discover(self.environment, threads)?;
        self.introduce(opened, &meters, output)?;
        if self.args.live {
            let cpu = self.environment.cpu_model.as_deref().unwrap_or("unknown processor");
            output.bars_mut().watch(Sampler::new(&meters.live(), cpu, Roots::default()))?;
        }
        let each = self.budget / opened.len() as f64;
        let ceilings_time = (each * 0.1).min(CEILINGS);
        for (device, tasks) in opened.iter().zip(tasks) {
            let threads = threads_of(device.info());
            let bar = output.bars().bar(0);
            bar.set_message("idle power and ceilings");
            let resting = Instant::now();
            let gauge = Gauge::new(meters.of(device.info()));
            let each = (each - resting.elapsed().as_secs_f64()).max(each * LEAST);
            // kernels are held against them, so they are measured even if they are not shown
            let time = Duration::from_secs_f64(ceilings_time);
            let ceilings = ceilings(device, time)?;
            bar.finish_and_clear();
            let mut target = Target { device: device.clone(), gauge, ceilings, threads };
            if self.has(Part::Ceilings) {
                self.ceilings(&target, &target.ceilings, "", output)?;
            }
            let again = self.has(Part::Ceilings) && self.parts.len() > 1;
            let rest = each - ceilings_time * if again { 1.5 } else { 1.0 };
            let kernels_time = if self.has(Part::Tokens) { rest * KERNELS_SHARE } else { rest };
            if self.has(Part::Kernels) {
                self.kernels(&mut target, tasks, kernels_time, output)?;
            }
            let tokens_time = if self.has(Part::Kernels) { rest - kernels_time } else { rest };
            for source in sources {
                run_tokens::run(self, &mut target, source, Duration::from_secs_f64(tokens_time), output)?;
            }
            if again {
                let later = self::ceilings(device, time / 2)?;
                self.ceilings(&target, &later, ", at the end", output)?;
            }
        }
        Ok(())
    }

    /// Time for one result, and the repetitions that were asked for.
    pub(super) fn effort(&self, time: Duration) -> Effort {
        Effort { time, repetitions: self.args.repetitions, bounded: self.args.budget.is_some() }
    }

    /// A record of this run on a device, to be filled.
    pub(super) fn record(&self, kind: Kind, device: &Device) -> Record {
        let mut record = Record::new(kind, self.environment);
        let info = device.info();
        record.device.device = Some(info.label.clone());
        record.device.backend = Some(info.backend.into());
        record.device.device_name = Some(info.name.clone());
        record.device.device_memory_bytes = info.memory_bytes;
        record.device.device_software = Some(info.software);
        record.device.driver = info.driver.clone();
        if info.backend == "cpu" {
            record.workload.spin_budget_us = Some(perjoule_cpu::team::SPIN.as_secs_f64() * 1e6);
        }
        record
    }

    fn introduce(&self, opened: &[Device], meters: &Meters, output: &mut Output) -> Result<()> {
        let e = self.environment;
        let machine = if e.virtualized == Some(true) { ", virtual machine" } else { "" };
        let text = |field: &Option<String>| field.clone().unwrap_or_else(|| "unknown".into());
        let (version, os) = (text(&e.perjoule_version), text(&e.os_version));
        output.heading(&format!("perjoule {version}"), &format!("{os}, {}{machine}", text(&e.arch)))?;
        let infos: Vec<_> = opened.iter().map(|device| device.info().clone()).collect();
        output.heading("Devices", "")?;
        output.table(&devices::table(&infos))?;
        for device in opened {
            if let Some(line) = devices::placement(device.info()) {
                output.line(&format!("{} {line}", device.info().label))?;
            }
            for line in devices::energy_lines(device.info(), meters) {
                output.line(&format!("{} energy {line}", device.info().label))?;
            }
        }
        Ok(())
    }

    /// Records ceilings; those measured `when` something else was before are shown as drift.
    fn ceilings(&self, target: &Target, measured: &Ceilings, when: &str, output: &mut Output) -> Result<()> {
        let mut records = Vec::new();
        for ceiling in &measured.roofs.list {
            // what follows from another ceiling drifts as that one does
            if !when.is_empty() && ceiling.provenance == Provenance::Modelled {
                continue;
            }
            let mut record = ceiling.record(self.record(Kind::Ceiling, &target.device), self.seed);
            record.workload.n_threads = Some(target.threads as u64);
            record.disturbances = measured.disturbances.clone();
            if let Some(config) = &mut record.workload.config {
                config.push_str(when);
            }
            output.record(&record)?;
            records.push(record);
        }
        let detail = format!("what {} can do at most{when}", target.device.info().label);
        output.heading("Ceilings", &detail)?;
        output.table(&report::ceilings(&records))?;
        self.notes(&records, output)
    }

    /// The lines below a table: where its joules come from, and who disturbed.
    pub(super) fn notes(&self, records: &[Record], output: &mut Output) -> Result<()> {
        report::energy_notes(records).iter().try_for_each(|note| output.line(note))?;
        if records.iter().any(|record| record.kind != Kind::Ceiling) {
            report::roof_note(records).iter().try_for_each(|note| output.line(note))?;
            report::error_note(records).into_iter().try_for_each(|note| output.line(note))?;
            let tokens = records.iter().all(|record| record.kind == Kind::Tokens);
            output.line(match tokens {
                true => "± sd: standard deviation of the rate from run to run",
                false => "±: half of the 95 % interval of the median",
            })?;
            report::unobserved_note(records).iter().try_for_each(|note| output.line(note))?;
            report::host_notes(records).iter().try_for_each(|note| output.line(note))?;
        }
        report::disturbance_note(records).iter().try_for_each(|note| output.line(note))?;
        report::warning_notes(records).iter().try_for_each(|note| output.line(note))?;
        let samples = |record: &Record| record.timing.samples_ns.as_ref().map_or(0, Vec::len);
        let asked = self.args.repetitions.filter(|_| records.iter().any(|r| r.kind != Kind::Ceiling));
        match asked.filter(|&asked| records.iter().any(|record| samples(record) < asked)) {
            Some(asked) => output.line(&format!("--budget ended some results before {asked} repetitions")),
            None => Ok(()),
        }
    }

    fn kernels(
        &self,
        target: &mut Target,
        jobs: &[Job<'_>],
        seconds: f64,
        output: &mut Output,
    ) -> Result<()> {
        let args = self.args;
        let results = if args.versus.is_some() { 2.0 } else { 1.0 };
        let mut time = sampling(seconds / jobs.len().max(1) as f64, target.gauge.as_ref(), results);
        if args.budget.is_none() {
            time = time.min(KERNEL);
        }
        let bar = output.bars().bar(jobs.len() as u64);
        let (mut records, mut dtypes) = (Vec::new(), Vec::new());
        let mut result = Ok(());
        for job in jobs {
            bar.set_message(format!("{}", job.op));
            let task = |choice: Choice| kernel::Task {
                device: &target.device,
                op: job.op.clone(),
                dtype: job.wanted.dtype,
                shape: job.wanted.sizes.to_string(),
                choice,
                cache: args.cache.map(CacheState::from),
                effort: self.effort(Duration::from_secs_f64(time)),
                seed: self.seed,
                threads: target.threads,
            };
            let mut record = self.record(Kind::Kernel, &target.device);
            if args.kernel.is_none() && job.versus.is_none() {
                let tuning = target.device.backend().tuning();
                let tuned = tuning.is_some_and(|tuning| tuning.seconds(&job.op, &job.choice).is_some());
                record.workload.tuned = Some(tuned);
            }
            let (ceilings, gauge) = (&mut target.ceilings, target.gauge.as_ref());
            let measured = match job.versus {
                None => kernel::run(&task(job.choice), ceilings, gauge, record).map(|record| vec![record]),
                Some(versus) => kernel::run_versus(&task(versus), &task(job.choice), ceilings, gauge, record)
                    .map(|(baseline, record)| vec![baseline, record]),
            };
            result = measured.and_then(|list| {
                list.iter().try_for_each(|record| output.record(record))?;
                dtypes.extend(list.iter().map(|_| job.wanted.dtype));
                records.extend(list);
                Ok(())
            });
            bar.inc(1);
            if result.is_err() {
                break;
            }
        }
        bar.finish_and_clear();
        target.ceilings.hold_again(records.iter_mut().zip(dtypes));
        if !records.is_empty() {
            let (n, s) = (target.threads, if target.threads == 1 { "" } else { "s" });
            output.heading("Kernels", &format!("{n} thread{s}, outputs verified before they were timed"))?;
            output.table(&report::kernels(&records))?;
            report::meters::meters(&records).iter().try_for_each(|table| output.table(table))?;
            self.notes(&records, output)?;
            output.charts(&report::chart::kernels(&records))?;
            if args.versus.is_some() {
                output.heading("Versus", "sampled in turn; a ratio of times below 1 is faster")?;
                output.table(&report::versus(&records))?;
            }
        }
        result
    }
}
