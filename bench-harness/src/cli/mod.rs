//! The command line: arguments, exit codes, and what every command shares.
//!
//! Exit codes: 0 done; 1 a check, a verification or a comparison failed; 2 any other error; 130 interrupted. Errors go to stderr as one line, data to
//! stdout.

mod args;
mod args_compare;
mod atomic;
mod check;
mod check_model;
mod classes;
mod compare;
mod compare_self;
mod devices;
mod doctor;
mod exec;
mod export;
mod generate;
mod history;
mod import;
mod kernels;
mod meters;
mod output;
mod progress;
mod report;
mod run;
mod run_tokens;
mod schema;
mod top;
mod tune;
mod tune_model;
#[cfg(feature = "web")]
mod web;

use anyhow::{Context, Result, bail};
use clap::{CommandFactory, Parser};
use perjoule::{Device, DeviceInfo};
use perjoule_cpu::device::CpuCaps;
use perjoule_record::Environment;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Once;

use crate::measure::{Interrupted, interrupted};
use args::{Cli, Command};

/// How a command ended, when it did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Everything is done.
    Done,
    /// A check, a verification or a comparison failed.
    Failed,
    /// Ctrl-C.
    Interrupted,
}

/// Runs the command line of this process.
pub(crate) fn main() -> ExitCode {
    if let Err(error) = crate::signals::install() {
        eprintln!("error: {}", one_line(&error));
        return ExitCode::from(2);
    }
    let cli = Cli::parse();
    // what is left in the buffer would be lost without a word
    let ended = dispatch(cli).and_then(|ended| Ok(io::stdout().flush().map(|()| ended)?));
    match ended.map_err(of_stdout) {
        Ok(Ended::Done) => ExitCode::SUCCESS,
        Ok(Ended::Failed) => ExitCode::from(1),
        Ok(Ended::Interrupted) => ExitCode::from(130),
        // whoever read our output has had enough: `perjoule kernels | head`
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) if error.is::<Interrupted>() || interrupted() => ExitCode::from(130),
        Err(error) => {
            let _ = writeln!(io::stderr(), "error: {}", one_line(&error));
            ExitCode::from(2)
        }
    }
}

fn dispatch(cli: Cli) -> Result<Ended> {
    match cli.command.unwrap_or(Command::Run(Box::new(cli.run))) {
        Command::Devices(args) => devices::run(&args),
        Command::Kernels(args) => kernels::run(&args),
        Command::Run(args) => run::run(&args),
        Command::Check(args) if args.model.is_some() => check_model::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Classes(args) => classes::run(&args),
        Command::Compare(args) if args.self_ => compare_self::run(&args),
        Command::Compare(args) => compare::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Exec(args) => exec::run(&args),
        Command::Generate(args) => generate::run(&args),
        Command::History(args) => history::run(&args),
        Command::Import(args) => import::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Schema => schema::run(),
        Command::Top(args) => top::run(&args),
        Command::Tune(args) => tune::run(&args),
        #[cfg(feature = "web")]
        Command::Web(args) => web::run(&args),
        #[cfg(not(feature = "web"))]
        Command::Web { .. } => bail!(
            "this program was built without `perjoule web`; in the sources, run `cargo xtask web`, and then `cargo build --release -p \
             perjoule-bench --features web`"
        ),
        Command::Completions { shell } => {
            // made in memory: clap_complete panics when it cannot write
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "perjoule", &mut script);
            io::stdout().write_all(&script)?;
            Ok(Ended::Done)
        }
        Command::Man => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Cli::command()).render(&mut page)?;
            io::stdout().write_all(&page)?;
            Ok(Ended::Done)
        }
    }
}

/// The error and its causes on one line.
fn one_line(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        // many errors already print their cause
        if !text.contains(&cause) {
            text.push_str(if text.is_empty() { "" } else { ": " });
            text.push_str(&cause);
        }
    }
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join("; ")
        .replace(":;", ":")
}

/// Names stdout in an error of writing to it: errors of files name their file, so one that the system gave and nobody named is stdout's.
fn of_stdout(error: anyhow::Error) -> anyhow::Error {
    let unnamed = error.chain().count() == 1
        && error.downcast_ref::<io::Error>().is_some_and(|io| io.raw_os_error().is_some());
    if unnamed { error.context("cannot write to stdout") } else { error }
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let io = error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>());
    io.into_iter().any(|io| io.kind() == io::ErrorKind::BrokenPipe)
}

/// Opens a device, whose choices follow what `perjoule tune` measured on it. Only the CPU takes a number of threads; others refuse one.
fn open(label: &str, threads: Option<usize>) -> Result<Device> {
    static SAID: Once = Once::new();
    let device = open_untuned(label, threads)?;
    if let Err(error) = perjoule::tuning::load(&device) {
        // predictions choose as well as they did before there was a table
        SAID.call_once(|| eprintln!("note: not tuned: {error}"));
    }
    Ok(device)
}

/// The same, with choices that follow from predictions alone.
fn open_untuned(label: &str, threads: Option<usize>) -> Result<Device> {
    let device = perjoule::open_with_threads(label, threads)?;
    if let Some(caps) = device.info().caps::<CpuCaps>() {
        // this thread is the team's first lane, and has no other use; refused, it runs wherever it is put
        let _ = caps.placement.confine();
    }
    Ok(device)
}

/// Threads of the host that work for a device: the lanes of the CPU's team, all processors where software stands for a GPU, and one that
/// submits to a GPU.
fn threads_of(info: &DeviceInfo) -> usize {
    match info.caps::<CpuCaps>() {
        Some(caps) => caps.threads,
        None if info.software => std::thread::available_parallelism().map_or(1, usize::from),
        None => 1,
    }
}

/// What is known about this machine, for records.
fn environment() -> Environment {
    let features = perjoule_cpu::features::Features::detect().map(|f| f.names()).unwrap_or_default();
    let mut environment = Environment::collect(features);
    // by build.rs
    environment.build_commit = option_env!("PERJOULE_BUILD_COMMIT").map(Into::into);
    environment.rustc = option_env!("PERJOULE_RUSTC").map(Into::into);
    environment
}

/// Token ids from `1,2,3`.
fn parse_ids(text: &str) -> Result<Vec<u32>> {
    let ids: Result<Vec<u32>, _> = text.split(',').map(|id| id.trim().parse()).collect();
    let ids = ids.with_context(|| format!("--ids {text:?}: expected whole numbers such as 1,2,3"))?;
    if ids.is_empty() {
        bail!("--ids needs at least one id");
    }
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn errors_are_one_line() {
        let error =
            anyhow::anyhow!("cpu has no kernel for matmul:\n  a: needs avx2\n  b: no").context("outer");
        assert_eq!(one_line(&error), "outer: cpu has no kernel for matmul: a: needs avx2; b: no");
    }

    #[test]
    fn an_error_that_names_nothing_is_of_stdout() {
        const FULL: i32 = 28;
        let full = || io::Error::from_raw_os_error(FULL);
        let shown = |error: anyhow::Error| one_line(&of_stdout(error));
        assert!(shown(full().into()).starts_with("cannot write to stdout: "));
        assert!(shown(anyhow::Error::from(full()).context("a.jsonl")).starts_with("a.jsonl: "));
        assert_eq!(shown(io::Error::other("a.jsonl is full").into()), "a.jsonl is full");
        assert!(is_closed_pipe(&of_stdout(io::Error::from_raw_os_error(32).into())));
    }

    #[test]
    fn ids_are_numbers() {
        assert_eq!(parse_ids("1, 2,3").unwrap(), [1, 2, 3]);
        for text in ["", "1,,2", "-1", "a", "99999999999"] {
            assert!(parse_ids(text).unwrap_err().to_string().contains("1,2,3"), "{text}");
        }
    }
}
