//! Ours against other people's kernels: same shapes, same numbers, same threads, in turn.
//!
//! Each library has a process of its own (`xtask/peers/`) that times calls on command; while one works the others are stopped, so that
//! no pool of threads spins beside another. Samples are taken in turn, and what is printed are ratios of times within a turn, the
//! peer's over ours: above 1 ours is faster.

mod cases;

use crate::cargo_command;
use anyhow::{Context, Result, bail, ensure};
use cases::{Case, cases};
use perjoule_record::stats;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// What `cargo xtask peers` takes.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Print a JSON object a row.
    #[arg(long)]
    json: bool,
    /// Only cases whose name contains this, such as `f32`, `gemv` or `attention`.
    #[arg(long, value_name = "WHAT")]
    only: Option<String>,
    /// Only these peers.
    #[arg(long, value_name = "NAME,..", value_delimiter = ',', default_value = "torch,mkl,openblas,gemm")]
    peers: Vec<String>,
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
const TURNS: (usize, usize) = (7, 200);
/// A sample lasts at least so long.
const SAMPLE: f64 = 2e-3;
/// First outputs agree within this share of the largest: bf16 rounds to 1/256, and i8 and f32 far finer.
const AGREE: f64 = 0.02;

pub(crate) fn peers(options: &Options) -> Result<()> {
    ensure!(options.budget > 0.0, "--budget {}: expected a positive number of seconds", options.budget);
    let threads = match options.threads {
        Some(threads) => threads,
        None => std::thread::available_parallelism()?.get(),
    };
    let only = options.only.as_deref().unwrap_or("");
    let list: Vec<Case> = cases().into_iter().filter(|case| case.name.contains(only)).collect();
    ensure!(!list.is_empty(), "no case is called {only:?}");
    let venv = environment(options)?;
    let worker = build()?;
    let mut ours = Worker::rust(&worker, "ours", threads)?;
    let mut peers = Vec::new();
    for name in &options.peers {
        peers.push(match name.as_str() {
            "gemm" => Worker::rust(&worker, "gemm", threads)?,
            "torch" | "mkl" | "openblas" => Worker::python(&venv, name, threads)?,
            _ => bail!("no peer {name:?}; there are torch, mkl, openblas and gemm"),
        });
    }
    let bandwidth = ours.ask(&json!({ "do": "bandwidth" }))?["bytes_per_second"].as_f64();
    let bandwidth = bandwidth.context("the worker measured no bandwidth")?;
    if !options.json {
        println!("{threads} threads, reads {:.1} GB/s; time of the peer over ours [95 %]\n", bandwidth / 1e9);
        println!("{:34} {:>9}  {:>7}  {:42} target", "case", "ours", "of read", "peers");
    }
    let mut f32_ratios = Vec::new();
    for case in &list {
        let row = measure(case, &mut ours, &mut peers, options.budget, bandwidth)?;
        f32_ratios.extend(row.best().filter(|_| case.name.starts_with("matmul f32")).map(|r| r.ratio));
        match options.json {
            true => println!("{}", row.json(case)),
            false => println!("{}", row.text(case)),
        }
    }
    if f32_ratios.len() > 1 && !options.json {
        let geomean = (f32_ratios.iter().map(|r| r.ln()).sum::<f64>() / f32_ratios.len() as f64).exp();
        let verdict = if geomean >= 1.03 { "met" } else { "missed" };
        println!(
            "\nmatmul f32: geometric mean {geomean:.3} against the fastest peer; target 1.03: {verdict}"
        );
    }
    if !options.json {
        println!("not measured: AMX rows (ours has none yet), llama.cpp (pp512, tg128), tract");
    }
    Ok(())
}

/// A peer's time over ours.
struct Ratio {
    peer: String,
    ratio: f64,
    interval: (f64, f64),
    /// Whether its first outputs are ours.
    agrees: bool,
}

struct Row {
    seconds: Option<f64>,
    /// Bytes read of the case's weights or cache, as a share of what memory gives.
    of_read: Option<f64>,
    ratios: Vec<Ratio>,
    /// Who does not run it, and why.
    refused: Vec<(String, String)>,
}

fn measure(case: &Case, ours: &mut Worker, peers: &mut [Worker], budget: f64, bandwidth: f64) -> Result<Row> {
    let mut row = Row { seconds: None, of_read: None, ratios: Vec::new(), refused: Vec::new() };
    let mut setup = case.sizes.clone();
    setup["do"] = "setup".into();
    let mut runners: Vec<(&mut Worker, Vec<f64>)> = Vec::new();
    let mut workers: Vec<&mut Worker> = std::iter::once(ours).chain(peers.iter_mut()).collect();
    for worker in workers.drain(..) {
        let answer = worker.ask(&setup)?;
        if let Some(why) = answer["refused"].as_str() {
            row.refused.push((worker.name.clone(), why.into()));
            continue;
        }
        worker.sample = answer["sample"].as_array().into_iter().flatten().filter_map(Value::as_f64).collect();
        let warm = worker.time(1)?.min(worker.time(1)?);
        worker.calls = (SAMPLE / warm.max(1e-9)).ceil().clamp(1.0, 1e5) as u64;
        runners.push((worker, Vec::new()));
    }
    if runners.first().is_none_or(|(worker, _)| worker.name != "ours") {
        return Ok(row);
    }
    let start = Instant::now();
    for turn in 0..TURNS.1 {
        let count = runners.len();
        for at in 0..count {
            // who comes behind whom changes
            let (worker, times) = &mut runners[(at + turn) % count];
            times.push(worker.time(worker.calls)?);
        }
        if turn + 1 >= TURNS.0 && start.elapsed() > Duration::from_secs_f64(budget) {
            break;
        }
    }
    let (ours, peers) = runners.split_first().context("ours is first")?;
    let seconds = stats::median(&ours.1).context("no sample")?;
    row.seconds = Some(seconds);
    row.of_read = case.bytes.map(|bytes| bytes / seconds / bandwidth);
    for (worker, times) in peers {
        let ratios: Vec<f64> = times.iter().zip(&ours.1).map(|(peer, ours)| peer / ours).collect();
        let interval = stats::bootstrap_median_ci95(&ratios, 1).context("no interval")?;
        let largest = ours.0.sample.iter().fold(0.0f64, |most, v| most.max(v.abs()));
        // attention's operands lie differently in each library
        let comparable = case.sizes["op"] == "matmul";
        let pairs = ours.0.sample.iter().zip(&worker.sample);
        let agrees = !comparable || pairs.clone().all(|(a, b)| (a - b).abs() <= AGREE * largest);
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
    fn verdict(&self, case: &Case) -> String {
        let (reached, asked) = match case.target {
            cases::Target::None => return "-".into(),
            cases::Target::OfRead(share) => {
                (self.of_read.map(|got| got >= share), format!("{:.0} % of read", 100.0 * share))
            }
            cases::Target::Ratio(least) => (self.best().map(|r| r.ratio >= least), format!("{least}")),
            cases::Target::Low(least) => (self.best().map(|r| r.interval.0 >= least), format!("low {least}")),
        };
        let word = match reached {
            Some(true) => "met",
            Some(false) => "missed",
            None => "nobody to compare with",
        };
        format!("{asked}: {word}")
    }

    fn text(&self, case: &Case) -> String {
        let Some(seconds) = self.seconds else {
            let why = self.refused.first().map_or("", |(_, why)| why.as_str());
            return format!("{:34} does not apply: {}", case.name, why.lines().next().unwrap_or_default());
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
        let (peers, verdict) = (peers.join("  "), self.verdict(case));
        format!("{:34} {:>7.1}us  {of_read:>7}  {peers:42} {verdict}", case.name, seconds * 1e6)
    }

    fn json(&self, case: &Case) -> Value {
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
            "target": self.verdict(case),
        })
    }
}

/// A process that times calls on command, stopped in between.
struct Worker {
    name: String,
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    calls: u64,
    sample: Vec<f64>,
}

impl Worker {
    fn rust(path: &Path, name: &str, threads: usize) -> Result<Self> {
        Self::start(name, Command::new(path).args([name, &threads.to_string()]))
    }

    fn python(venv: &Path, name: &str, threads: usize) -> Result<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/peers.py");
        let mut command = Command::new(venv.join("bin/python"));
        command.arg(script).args([name, &threads.to_string()]).env("VIRTUAL_ENV", venv);
        Self::start(name, &mut command)
    }

    fn start(name: &str, command: &mut Command) -> Result<Self> {
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("{name} could not be started"))?;
        let to = child.stdin.take().context("stdin is a pipe")?;
        let from = BufReader::new(child.stdout.take().context("stdout is a pipe")?);
        Ok(Worker { name: name.into(), child, to, from, calls: 1, sample: Vec::new() })
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }

    /// Wakes it, asks, and stops it again.
    fn ask(&mut self, command: &Value) -> Result<Value> {
        self.signal(Signal::CONT)?;
        let mut line = String::new();
        writeln!(self.to, "{command}")?;
        self.from.read_line(&mut line)?;
        ensure!(!line.is_empty(), "{} ended; what it said is above", self.name);
        self.signal(Signal::STOP)?;
        serde_json::from_str(&line).with_context(|| format!("{} answered {line:?}", self.name))
    }

    /// Seconds of a call, after one that nobody times: it has slept.
    fn time(&mut self, calls: u64) -> Result<f64> {
        self.signal(Signal::CONT)?;
        for calls in [calls.div_ceil(8), calls] {
            writeln!(self.to, "{}", json!({ "do": "time", "calls": calls }))?;
        }
        let mut seconds = None;
        for _ in 0..2 {
            let mut line = String::new();
            self.from.read_line(&mut line)?;
            ensure!(!line.is_empty(), "{} ended; what it said is above", self.name);
            seconds = serde_json::from_str::<Value>(&line)?["seconds"].as_f64();
        }
        self.signal(Signal::STOP)?;
        seconds.with_context(|| format!("{} gave no time", self.name))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // a stopped process would wait for ever; one that has ended already is no trouble
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The Python environment with the peers, made and filled on first use.
fn environment(options: &Options) -> Result<PathBuf> {
    if let Some(venv) = &options.venv {
        ensure!(venv.join("bin/python").is_file(), "{} is no Python environment", venv.display());
        return Ok(std::path::absolute(venv)?);
    }
    let venv = std::path::absolute("target/peers/venv")?;
    if !venv.join("bin/python").is_file() {
        run(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
    }
    let mut packages = vec!["numpy"];
    for (peer, package) in [("torch", "torch"), ("mkl", "mkl"), ("openblas", "scipy-openblas32")] {
        if options.peers.iter().any(|name| name == peer) {
            packages.push(package);
        }
    }
    // pip is quick where all are there; torch is a download of gigabytes
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
    run(Command::new(venv.join("bin/python")).args(pip).args(packages))?;
    Ok(venv)
}

/// Builds the worker, in a workspace of its own.
fn build() -> Result<PathBuf> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/Cargo.toml");
    let target = std::env::current_exe()?.ancestors().nth(2).context("the target folder")?.join("peers");
    run(cargo_command()
        .args(["build", "--quiet", "--release", "--manifest-path"])
        .arg(manifest)
        .arg("--target-dir")
        .arg(&target))?;
    Ok(target.join("release/perjoule-peers"))
}

fn run(command: &mut Command) -> Result<()> {
    eprintln!("xtask: {command:?}");
    // stdout is for results
    let status = command
        .stdout(std::io::stderr())
        .status()
        .with_context(|| format!("{command:?} could not be started"))?;
    ensure!(status.success(), "{command:?} failed ({status})");
    Ok(())
}
