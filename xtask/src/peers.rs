//! Ours against other people's kernels: same shapes, same numbers, same threads, in turn.
//!
//! Each library has a process of its own (`xtask/peers/`) that times calls on command; while one works the others are stopped, so that
//! no pool of threads spins beside another. Samples are taken in turn, and what is printed are ratios of times within a turn, the
//! peer's over ours: above 1 ours is faster.

mod cases;
mod logits;
mod setup;
mod worker;

use crate::vulkan::{Adapter, mesa};
use crate::webgpu::Driver;
use anyhow::{Context, Result, ensure};
use cases::{Case, Group, Target, groups};
use perjoule_record::stats;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};
use worker::Worker;

/// What `cargo xtask peers` takes.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Print a JSON object a row.
    #[arg(long)]
    json: bool,
    /// Only cases whose name contains this, such as `f32`, `gemv` or `attention`.
    #[arg(long, value_name = "WHAT")]
    only: Option<String>,
    /// Only these peers; `burn` is one, too, of WebGPU (its build takes half an hour).
    #[arg(
        long,
        value_name = "NAME,..",
        value_delimiter = ',',
        default_value = "torch,mkl,openblas,onednn,gemm,tract,ggml,llama"
    )]
    peers: Vec<String>,
    /// The Vulkan driver of cases on WebGPU (--peers burn), instead of the first one of the system.
    #[arg(long, value_enum)]
    driver: Option<Driver>,
    /// Threads of each.
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Seconds of sampling for each case.
    #[arg(long, value_name = "S", default_value_t = 3.0)]
    budget: f64,
    /// A Python environment that has them, instead of the one in target/peers, into which they are installed.
    #[arg(long, value_name = "DIR")]
    venv: Option<PathBuf>,
}

/// Fewest and most turns.
const TURNS: (usize, usize) = (5, 200);
/// A sample lasts at least so long.
const SAMPLE: f64 = 2e-3;

/// Who measures, and where their files are.
struct Field {
    worker: PathBuf,
    venv: PathBuf,
    models: Option<PathBuf>,
    /// burn's worker, where it is asked for.
    burn: Option<PathBuf>,
    driver: Option<Adapter>,
    threads: usize,
    /// Whether the processor multiplies tiles.
    amx: bool,
}

/// Whether targets that were set for AMX apply.
fn has_amx() -> bool {
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    ["amx_tile", "amx_bf16", "amx_int8"].iter().all(|flag| flags.split_whitespace().any(|word| word == *flag))
}

impl Field {
    fn start(&self, who: &str, group: &Group) -> Result<Worker> {
        self.start_as(who, group, None)
    }

    /// `how` our model is loaded.
    fn start_as(&self, who: &str, group: &Group, how: Option<&str>) -> Result<Worker> {
        let mut command = match who {
            "torch" | "ggml" | "llama" => {
                let mut command = Command::new(self.venv.join("bin/python"));
                command.arg(setup::python("peers.py"));
                command
            }
            _ => {
                let worker =
                    if who == "burn" { self.burn.as_ref().context("burn was built")? } else { &self.worker };
                match self.driver.filter(|_| group.webgpu) {
                    Some(driver) => driver.command(worker)?,
                    None => Command::new(worker),
                }
            }
        };
        if group.webgpu {
            command.env("PERJOULE_PEERS_DEVICE", "webgpu:0");
            if self.driver.is_some() {
                command.env("PERJOULE_PEERS_SOFTWARE", "1");
            }
        }
        command.args([who, &self.threads.to_string()]).env("VIRTUAL_ENV", &self.venv);
        if let (Some(model), Some(models)) = (group.model, &self.models) {
            command.arg(models.join(model).with_extension("gguf")).args(how);
        }
        if let Some(features) = group.features.filter(|_| who == "ours") {
            command.env("PERJOULE_CPU_FEATURES", features);
        }
        Worker::start(who, command)
    }
}

pub(crate) fn peers(options: &Options) -> Result<()> {
    ensure!(options.budget > 0.0, "--budget {}: expected a positive number of seconds", options.budget);
    let known = ["torch", "mkl", "openblas", "onednn", "gemm", "tract", "ggml", "llama", "burn"];
    if let Some(name) = options.peers.iter().find(|name| !known.contains(&name.as_str())) {
        anyhow::bail!("no peer {name:?}; there are {}", known.join(", "));
    }
    let threads = match options.threads {
        Some(threads) => threads,
        None => std::thread::available_parallelism()?.get(),
    };
    let only = options.only.as_deref().unwrap_or("");
    let mut groups = groups();
    groups.iter_mut().for_each(|group| group.cases.retain(|case| case.name.contains(only)));
    let asked = |group: &Group| group.peers.iter().any(|peer| options.peers.iter().any(|name| name == peer));
    groups.retain(|group| !group.cases.is_empty() && asked(group));
    let of_logits = logits::NAME.contains(only) && options.peers.iter().any(|name| name == "llama");
    ensure!(!groups.is_empty() || of_logits, "no case is called {only:?}");
    let driver = options.driver.map(Adapter::from);
    if driver == Some(Adapter::Newer) {
        mesa()?;
    }
    let venv = setup::environment(options)?;
    let worker = setup::build("peers", "perjoule-peers")?;
    let burn = match options.peers.iter().any(|name| name == "burn") {
        true => Some(setup::build("peers/burn", "perjoule-peers-burn")?),
        false => None,
    };
    let models = match of_logits || groups.iter().any(|group| group.model.is_some()) {
        true => Some(setup::models(&venv)?),
        false => None,
    };
    let field = Field { worker, venv, models, burn, driver, threads, amx: has_amx() };
    if !options.json {
        println!("{threads} threads; time of the peer over ours [95 %]\n");
        println!("{:40} {:>12}  {:>7}  {:42} target", "case", "ours", "of read", "peers");
    }
    for group in &groups {
        let mut ours = field.start("ours", group)?;
        let mut peers = Vec::new();
        for name in group.peers.iter().filter(|peer| options.peers.iter().any(|name| name == *peer)) {
            peers.push(field.start(name, group)?);
        }
        let reads = group.cases.iter().any(|case| case.bytes.is_some());
        let mut read = if reads { Some(field.start("read", group)?) } else { None };
        let (mut ratios, mut fastest) = (Vec::new(), 0.0f64);
        for case in &group.cases {
            let mut row = measure(case, &mut ours, &mut peers, read.as_mut(), options.budget)?;
            if let (Target::Grows, Some(seconds), Some(tokens)) =
                (case.target, row.seconds, case.sizes["tokens"].as_f64())
            {
                row.grows = Some(tokens / row.shortest >= fastest);
                fastest = fastest.max(tokens / seconds);
            }
            if !matches!(case.target, Target::None) {
                ratios.extend(row.best().map(|best| best.ratio));
            }
            match options.json {
                true => println!("{}", row.json(case, field.amx)),
                false => println!("{}", row.text(case, field.amx)),
            }
        }
        if let Some(target) = group.mean.filter(|_| ratios.len() > 1) {
            let mean = (ratios.iter().map(|ratio| ratio.ln()).sum::<f64>() / ratios.len() as f64).exp();
            let (name, verdict) = (group.name, of_ratio(target, Some(mean), field.amx));
            match options.json {
                true => println!("{}", json!({ "geometric_mean": name, "ratio": mean, "target": verdict })),
                false => println!("{name}: geometric mean {mean:.3}, fastest peer; target {verdict}\n"),
            }
        }
    }
    if of_logits {
        logits::rows(&field, options.json)?;
    }
    Ok(())
}

/// What is said of a ratio, and of what was asked for.
fn of_ratio(target: Target, ratio: Option<f64>, amx: bool) -> String {
    match target {
        Target::Amx(least) if !amx => format!("{least} for AMX: does not apply here"),
        Target::Amx(least) | Target::Ratio(least) => verdict(&least.to_string(), ratio.map(|r| r >= least)),
        _ => "none".into(),
    }
}

fn verdict(asked: &str, reached: Option<bool>) -> String {
    let word = match reached {
        Some(true) => "met",
        Some(false) => "missed",
        None => "nobody to compare with",
    };
    format!("{asked}: {word}")
}

/// A peer's time over ours.
struct Ratio {
    peer: String,
    ratio: f64,
    interval: (f64, f64),
    /// Whether its first outputs are ours.
    agrees: bool,
}

/// A worker at a case.
struct Runner<'w> {
    worker: &'w mut Worker,
    calls: u64,
    sample: Vec<f64>,
    times: Vec<f64>,
}

struct Row {
    seconds: Option<f64>,
    /// The low end of the interval of `seconds`.
    shortest: f64,
    /// Whether that is no slower than rows of smaller batches.
    grows: Option<bool>,
    /// Bytes a second of the case's weights or cache, as a share of what reading memory gives in the same turns.
    of_read: Option<f64>,
    ratios: Vec<Ratio>,
    /// Who does not run it, and why.
    refused: Vec<(String, String)>,
}

fn measure(
    case: &Case,
    ours: &mut Worker,
    peers: &mut [Worker],
    read: Option<&mut Worker>,
    budget: f64,
) -> Result<Row> {
    let mut row = Row {
        seconds: None,
        shortest: 0.0,
        grows: None,
        of_read: None,
        ratios: Vec::new(),
        refused: Vec::new(),
    };
    let peers = if case.alone { &mut [] } else { peers };
    let mut setup = case.sizes.clone();
    setup["do"] = "setup".into();
    let mut runners = Vec::new();
    for worker in std::iter::once(ours).chain(peers).chain(read.filter(|_| case.bytes.is_some())) {
        let answer = worker.ask(&setup)?;
        if let Some(why) = answer["refused"].as_str() {
            row.refused.push((worker.name.clone(), why.into()));
            continue;
        }
        let sample = answer["sample"].as_array().into_iter().flatten().filter_map(Value::as_f64).collect();
        let warm = worker.time(1, false)?.min(if case.long { f64::MAX } else { worker.time(1, false)? });
        let calls = (SAMPLE / warm.max(1e-9)).ceil().clamp(1.0, 1e5) as u64;
        runners.push(Runner { worker, calls, sample, times: Vec::new() });
    }
    if runners.first().is_none_or(|runner| runner.worker.name != "ours") {
        return Ok(row);
    }
    let start = Instant::now();
    for turn in 0..TURNS.1 {
        let count = runners.len();
        for at in 0..count {
            // who comes behind whom changes
            let Runner { worker, calls, times, .. } = &mut runners[(at + turn) % count];
            times.push(worker.time(*calls, !case.long)?);
        }
        if turn + 1 >= TURNS.0 && start.elapsed() > Duration::from_secs_f64(budget) {
            break;
        }
    }
    let (ours, peers) = runners.split_first().context("ours is first")?;
    let seconds = stats::median(&ours.times).context("no sample")?;
    row.seconds = Some(seconds);
    row.shortest = stats::bootstrap_median_ci95(&ours.times, 1).map_or(seconds, |interval| interval.lo);
    for Runner { worker, times, sample, .. } in peers {
        let ratios: Vec<f64> = times.iter().zip(&ours.times).map(|(peer, ours)| peer / ours).collect();
        if let (Some(bytes), "read") = (case.bytes, worker.name.as_str()) {
            let read = sample.first().context("read says how much it reads")? * f64::from(1 << 20);
            row.of_read = stats::median(&ratios).map(|ratio| ratio * bytes / read);
            continue;
        }
        let interval = stats::bootstrap_median_ci95(&ratios, 1).context("no interval")?;
        let largest = ours.sample.iter().fold(0.0f64, |most, v| most.max(v.abs()));
        let agrees = sample.len() == ours.sample.len()
            && ours.sample.iter().zip(sample).all(|(a, b)| (a - b).abs() <= case.agree * largest);
        let ratio = stats::median(&ratios).context("no ratio")?;
        row.ratios.push(Ratio {
            peer: worker.name.clone(),
            ratio,
            interval: (interval.lo, interval.hi),
            agrees,
        });
    }
    Ok(row)
}

impl Row {
    /// Against the fastest peer that computes the same.
    fn best(&self) -> Option<&Ratio> {
        self.ratios.iter().filter(|r| r.agrees).min_by(|a, b| a.ratio.total_cmp(&b.ratio))
    }

    /// What is asked for, and whether it is reached.
    fn verdict(&self, case: &Case, amx: bool) -> String {
        let best = self.best();
        match case.target {
            Target::OfRead(share) => {
                let behind = best.is_some_and(|r| r.interval.1 < 1.0);
                let asked = format!("{:.0} % of read", 100.0 * share);
                let asked = if self.ratios.is_empty() { asked } else { asked + ", behind nobody" };
                verdict(&asked, self.of_read.map(|got| got >= share && !behind))
            }
            Target::Low(least) => verdict(&format!("low {least}"), best.map(|r| r.interval.0 >= least)),
            Target::Grows => verdict("no slower than smaller batches", self.grows),
            target => of_ratio(target, best.map(|r| r.ratio), amx),
        }
    }

    fn text(&self, case: &Case, amx: bool) -> String {
        let Some(seconds) = self.seconds else {
            let why = self.refused.first().map_or("", |(_, why)| why.as_str());
            return format!("{:40} does not apply: {}", case.name, why.lines().next().unwrap_or_default());
        };
        let peers: Vec<String> = self
            .ratios
            .iter()
            .map(|r| {
                let wrong = if r.agrees { "" } else { " (other result!)" };
                format!("{} {:.2} [{:.2}, {:.2}]{wrong}", r.peer, r.ratio, r.interval.0, r.interval.1)
            })
            .collect();
        let of_read = self.of_read.map_or("-".into(), |share| format!("{:.0} %", 100.0 * share));
        let (peers, verdict) = (peers.join("  "), self.verdict(case, amx));
        let ours = case.speed(seconds);
        format!("{:40} {ours:>12}  {of_read:>7}  {peers:42} {verdict}", case.name)
    }

    fn json(&self, case: &Case, amx: bool) -> Value {
        let ratios = self.ratios.iter().map(|r| {
            json!({ "peer": r.peer, "ratio": r.ratio, "ci95": [r.interval.0, r.interval.1], "same_result": r.agrees })
        });
        let refused = self.refused.iter().map(|(peer, why)| json!({ "peer": peer, "why": why }));
        json!({
            "case": case.name,
            "sizes": case.sizes,
            "seconds": self.seconds,
            "of_read_bandwidth": self.of_read,
            "peers": ratios.collect::<Vec<_>>(),
            "refused": refused.collect::<Vec<_>>(),
            "target": self.verdict(case, amx),
        })
    }
}
