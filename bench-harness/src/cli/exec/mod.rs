//! `perjoule exec`: time, joules, memory and CPU time of any command, repeated and compared.

mod line;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use perjoule_record::{Kind, Record, Store, to_line};
use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::meters::MeterArgs;
use super::output::{WIDTH, csv_lines, refuse_format_name, wrap};
use super::{Ended, environment, progress};
use crate::measure::command::{Bench, Plan, Task};
use crate::measure::energy::Gauge;
use crate::measure::interrupted;
use crate::measure::process::{Processes, Sink, ending};
use crate::report::{self, Style, printable};
use line::{Shell, Source};

/// Seconds of measuring by default, for each command.
const BUDGET: f64 = 10.0;
/// Most runs of one command.
const RUNS: usize = 100_000;

pub(crate) const EXAMPLES: &str = "Examples:
  perjoule exec -- sleep 1
  perjoule exec -r 20 -w 3 -- ./llama-cli -m model.gguf -n 32 -p hello
  perjoule exec -c 'gzip -1 -k -c big' -c 'zstd -1 -c big' -n gzip -n zstd
  perjoule exec --prepare 'sync' -c 'grep -r TODO src'
  perjoule exec --format json -- true | jq '.[0].joules_per_call'
  perjoule exec -o results/mine.jsonl -- ./train.sh
  perjoule exec --meter /dev/ttyUSB0 -- ./train.sh    joules at the wall, too

Several commands are run alternately and compared with the first. Memory is the largest resident set of any one
process; CPU time is that of all processes that were waited for. Joules count everything inside a meter's boundary.";

#[derive(Debug, Args)]
pub(crate) struct ExecArgs {
    /// Program and its arguments, run without a shell
    #[arg(trailing_var_arg = true, value_name = "CMD")]
    words: Vec<OsString>,
    /// Command that a shell reads; may be repeated, and is run in turn with the others
    #[arg(short = 'c', long, value_name = "TEXT", help_heading = "What")]
    command: Vec<String>,
    /// Name of a command, in their order
    #[arg(short = 'n', long, value_name = "NAME", help_heading = "What")]
    name: Vec<String>,
    /// Shell that reads -c, --prepare, --setup and --cleanup; none splits them into words [default: sh]
    #[arg(short = 'S', long, value_name = "SHELL|none", help_heading = "What", conflicts_with = "no_shell")]
    shell: Option<String>,
    /// The same as --shell none
    #[arg(short = 'N', help_heading = "What")]
    no_shell: bool,
    /// What runs before each run, outside of its time: one for all commands, or one for each
    #[arg(short = 'p', long, value_name = "TEXT", help_heading = "What")]
    prepare: Vec<String>,
    /// What runs once before everything
    #[arg(short = 's', long, value_name = "TEXT", help_heading = "What")]
    setup: Option<String>,
    /// What runs once after everything, whatever happened
    #[arg(long, value_name = "TEXT", help_heading = "What")]
    cleanup: Option<String>,
    /// File that the commands read [default: nothing]
    #[arg(long, value_name = "FILE", help_heading = "What")]
    input: Option<PathBuf>,
    /// Where their output goes: null, inherit (with ours), or a file that each run writes anew
    #[arg(long, value_name = "null|inherit|FILE", default_value = "null", help_heading = "What")]
    output: String,
    /// Accept exit codes other than 0
    #[arg(short = 'i', long, help_heading = "What")]
    ignore_failure: bool,
    /// Runs of each command, instead of as many as a 1 % interval needs
    #[arg(short = 'r', long, value_name = "N", help_heading = "How")]
    runs: Option<usize>,
    /// Fewest runs [default: 5, fewer of a command that takes longer than the budget]
    #[arg(short = 'm', long, value_name = "N", conflicts_with = "runs", help_heading = "How")]
    min_runs: Option<usize>,
    /// Runs before the first that counts [default: until two agree, 5 at most]
    #[arg(short = 'w', long, value_name = "N", help_heading = "How")]
    warmup: Option<u64>,
    /// Seconds of measuring in all, pauses for the power at rest included; commands too short for a meter are repeated for their energy on
    /// top; ends -r early when given [default: 10 for each command]
    #[arg(long, value_name = "SECONDS", value_parser = super::args::budget, allow_negative_numbers = true, help_heading = "How")]
    budget: Option<f64>,
    #[command(flatten)]
    meters: MeterArgs,
    /// What stdout carries [default: table]
    #[arg(long, value_enum, help_heading = "Output")]
    format: Option<Format>,
    /// Append records (JSON lines) to this file; - for stdout
    #[arg(short = 'o', long = "records", value_name = "FILE|-", help_heading = "Output")]
    records: Option<PathBuf>,
    /// No progress, no notes
    #[arg(long, help_heading = "Output")]
    quiet: bool,
}

/// What stdout carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Tables for people
    Table,
    /// Tables in Markdown
    Md,
    /// One JSON array of records
    Json,
    /// A JSON record a line
    Jsonl,
    /// Records as comma-separated values
    Csv,
    /// As `hyperfine --export-json` writes it, energy among the parameters
    Hyperfine,
}

pub(crate) fn run(args: &ExecArgs) -> Result<Ended> {
    let shell = Shell::of(args.shell.as_deref(), args.no_shell)?;
    let tasks = tasks(args, &shell)?;
    let plan = plan(args)?;
    let format = format(args)?;
    let sink = match args.output.as_str() {
        "null" => Sink::Null,
        "inherit" => Sink::Inherit,
        file => Sink::File(file.into()),
    };
    let data = !matches!(format, Format::Table | Format::Md);
    ensure!(
        sink != Sink::Inherit || !data,
        "--output inherit would put what the commands write among the data on stdout: give it a file"
    );
    let store = match args.records.as_deref().filter(|path| *path != Path::new("-")) {
        Some(path) => {
            refuse_format_name(path)?;
            Some(Store::open(path.to_owned()).context("-o")?)
        }
        None => None,
    };
    let environment = environment();
    let processors = environment.cpu_count.unwrap_or(1);
    let meters = args.meters.discover(&environment, usize::try_from(processors).unwrap_or(usize::MAX))?;
    let resting = Instant::now();
    let gauge = Gauge::new(meters.of_machine());
    let rested = resting.elapsed();
    // one pause lies behind, and one follows the runs
    let pauses = gauge.as_ref().map_or(Duration::ZERO, |gauge| 2 * gauge.pause());
    let budget = plan.budget;
    let plan = Plan { budget: budget.saturating_sub(pauses).max(budget / 2), ..plan };
    let processes = Processes::new(args.input.clone(), sink)?;
    let bar = progress::bar(0, args.quiet);
    let show = |text: &str| bar.set_message(printable(&text.replace('\n', " ")));
    let bench = Bench {
        tasks: &tasks,
        plan,
        processes: &processes,
        gauge: gauge.as_ref(),
        processors,
        progress: &show,
    };
    let setup = once("--setup", args.setup.as_deref(), &shell, &processes);
    let start = Instant::now();
    let measured = setup.and_then(|()| bench.measure(&Record::new(Kind::Command, &environment)));
    bar.finish_and_clear();
    let took = rested + start.elapsed();
    // it was promised whatever happens, an interruption too
    let cleaned = line::after(args.cleanup.as_deref(), &shell);
    let records = measured?;
    deliver(&records, format, store, args)?;
    if !args.quiet {
        notes(&tasks, &records, &shell, args);
        if args.budget.is_some() && took > budget.mul_f64(1.5) && !interrupted() {
            let (budget, took) = (budget.as_secs_f64(), took.as_secs_f64());
            let why = "the least that is needed of runs, energy and power at rest comes on top";
            eprintln!("note: --budget {budget} s, took {took:.0} s: {why}");
        }
    }
    if interrupted() {
        let n = records.iter().filter_map(|r| r.timing.samples_ns.as_ref()).map(Vec::len).sum::<usize>();
        eprintln!("interrupted: {n} finished run{} kept", if n == 1 { "" } else { "s" });
        return Ok(Ended::Interrupted);
    }
    cleaned?;
    Ok(Ended::Done)
}

fn plan(args: &ExecArgs) -> Result<Plan> {
    let n = args.command.len() + usize::from(!args.words.is_empty());
    let budget = args.budget.unwrap_or(BUDGET * n as f64);
    for (option, value) in [("-r", args.runs), ("--min-runs", args.min_runs)] {
        ensure!(value != Some(0), "{option} 0: at least one run is needed");
        if let Some(n) = value.filter(|n| *n > RUNS) {
            bail!("{option} {n}: a record keeps every run, and {RUNS} at most");
        }
    }
    Ok(Plan {
        runs: args.runs,
        min_runs: args.min_runs,
        warmup: args.warmup,
        budget: Duration::from_secs_f64(budget),
        bounded: args.budget.is_some(),
        ignore_failure: args.ignore_failure,
    })
}

fn tasks(args: &ExecArgs, shell: &Shell) -> Result<Vec<Task>> {
    let mut sources: Vec<Source> = Vec::new();
    if !args.words.is_empty() {
        sources.push(Source::words(&args.words)?);
    }
    for text in &args.command {
        sources.push(shell.read("-c", text)?);
    }
    ensure!(
        !sources.is_empty(),
        "no command: give one after --, such as `perjoule exec -- sleep 1`, or -c 'TEXT'"
    );
    let (n, names, prepares) = (sources.len(), args.name.len(), args.prepare.len());
    ensure!(names <= n, "{names} names for {n} commands: give --name once for each");
    ensure!(
        prepares <= 1 || prepares == n,
        "{prepares} --prepare for {n} commands: give one for all, or one for each"
    );
    let mut tasks = Vec::new();
    for (i, source) in sources.into_iter().enumerate() {
        let prepare = args.prepare.get(if prepares == 1 { 0 } else { i });
        let prepare = prepare.map(|text| shell.read("--prepare", text)).transpose()?;
        tasks.push(Task {
            words: source.words,
            shown: source.shown,
            name: args.name.get(i).cloned(),
            prepare: prepare.map(|source| source.words),
        });
    }
    Ok(tasks)
}

fn format(args: &ExecArgs) -> Result<Format> {
    match (args.format, args.records.as_deref() == Some(Path::new("-"))) {
        (None | Some(Format::Jsonl), true) => Ok(Format::Jsonl),
        (Some(_), true) => bail!("-o - puts JSON lines on stdout: leave --format out, or give -o a file"),
        (format, false) => Ok(format.unwrap_or(Format::Table)),
    }
}

/// Runs a command that must succeed.
fn once(option: &str, text: Option<&str>, shell: &Shell, processes: &Processes) -> Result<()> {
    let Some(text) = text else { return Ok(()) };
    let status = processes.run(&shell.read(option, text)?.words).context(option.to_owned())?.status;
    ensure!(status.success(), "{option} {}: --output inherit shows what it says", ending(status));
    Ok(())
}

/// Stores the records and prints them.
fn deliver(records: &[Record], format: Format, store: Option<Store>, args: &ExecArgs) -> Result<()> {
    if let Some(mut store) = store {
        records.iter().try_for_each(|record| store.append(record))?;
        let (n, s) = (records.len(), if records.len() == 1 { "" } else { "s" });
        if !args.quiet && n > 0 {
            eprintln!("{n} record{s} in {}", store.path().display());
        }
    }
    let mut out = anstream::stdout();
    let text = match format {
        Format::Table | Format::Md => tables(records, format),
        Format::Json => {
            let lines =
                records.iter().map(|r| Ok(to_line(r)?.trim_end().to_owned())).collect::<Result<Vec<_>>>()?;
            if lines.is_empty() { "[]\n".into() } else { format!("[\n{}\n]\n", lines.join(",\n")) }
        }
        Format::Jsonl => records.iter().map(to_line).collect::<Result<String, _>>()?,
        Format::Csv => {
            let mut bytes = Vec::new();
            for (i, record) in records.iter().enumerate() {
                let (header, row) = csv_lines(record)?;
                bytes.extend(if i == 0 { header } else { Vec::new() });
                bytes.extend(row);
            }
            String::from_utf8(bytes)?
        }
        Format::Hyperfine => perjoule_formats::export(records, perjoule_formats::Format::Hyperfine)?.text,
    };
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}

fn tables(records: &[Record], format: Format) -> String {
    if records.is_empty() {
        return String::new();
    }
    let style = match format {
        Format::Md => Style::Markdown,
        _ if std::io::stdout().is_terminal() => Style::Colour,
        _ => Style::Plain,
    };
    let mut text = report::command::commands(records).render(style);
    let mut block = |table: Option<report::Table>| {
        if let Some(table) = table {
            text.push('\n');
            text.push_str(&table.render(style));
        }
    };
    block(report::command::versus(records));
    block(report::meters::meters(records));
    text.push('\n');
    for note in report::command::notes(records) {
        match style {
            Style::Markdown => text.push_str(&format!("* {}\n", report::markdown(&note))),
            _ => {
                for (i, line) in wrap(&printable(&note), WIDTH).iter().enumerate() {
                    text.push_str(if i == 0 { " " } else { "   " });
                    text.push_str(line);
                    text.push('\n');
                }
            }
        }
    }
    text
}

/// What a user of these figures should know beside them, on stderr.
fn notes(tasks: &[Task], records: &[Record], shell: &Shell, args: &ExecArgs) {
    for (record, task) in records.iter().zip(tasks) {
        let failed = record.process.failed_runs.unwrap_or(0);
        let runs = record.timing.samples_ns.as_ref().map_or(0, Vec::len);
        if failed > 0 {
            eprintln!(
                "note: {}: {failed} of {runs} runs did not exit with 0",
                report::one_line(task.label())
            );
        }
        if args.runs.is_some_and(|wanted| runs < wanted) && !interrupted() {
            eprintln!("note: {}: --budget ended it after {runs} runs", report::one_line(task.label()));
        }
    }
    if interrupted() || args.command.is_empty() {
        return;
    }
    let shortest = records.iter().filter_map(|r| r.timing.median_ns).fold(f64::INFINITY, f64::min);
    if let Some(ns) = shell.cost_ns(shortest) {
        eprintln!(
            "note: the shell alone takes {} of each run: -N starts commands without one",
            report::units::duration_ns(ns)
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        exec: ExecArgs,
    }

    fn parse(line: &[&str]) -> ExecArgs {
        Cli::try_parse_from(["exec"].iter().chain(line)).unwrap().exec
    }

    fn all(args: &ExecArgs) -> Result<Vec<Task>> {
        tasks(args, &Shell::of(args.shell.as_deref(), args.no_shell)?)
    }

    #[test]
    fn options_of_the_command_are_its_own() {
        for line in [&["-r", "3", "--", "ls", "-l", "-r"][..], &["-r", "3", "ls", "-l", "-r"]] {
            let args = parse(line);
            assert_eq!(args.runs, Some(3));
            assert_eq!(args.words, ["ls", "-l", "-r"].map(OsString::from));
        }
    }

    #[test]
    fn commands_names_and_preparations_go_together() {
        let list = all(&parse(&["-c", "a | b", "-n", "one", "-p", "sync", "--", "ls", "a b"])).unwrap();
        assert_eq!(list.len(), 2);
        assert_eq!((list[0].label(), list[0].shown.as_str(), list[1].label()), ("one", "ls 'a b'", "a | b"));
        assert!(list.iter().all(|task| task.prepare.is_some()));
        let error = |line: &[&str]| all(&parse(line)).unwrap_err().to_string();
        assert!(error(&[]).contains("perjoule exec -- sleep 1"));
        assert!(error(&["-c", "a", "-n", "x", "-n", "y"]).contains("2 names for 1"));
        assert!(error(&["-c", "a", "-c", "b", "-c", "c", "-p", "x", "-p", "y"]).contains("one for each"));
        assert!(error(&["-N", "-c", "it's"]).contains("quote"));
    }

    #[test]
    fn limits_are_checked() {
        for (line, part) in [
            (&["-r", "0", "x"][..], "-r 0"),
            (&["-m", "0", "x"], "--min-runs 0"),
            (&["-r", "999999999", "x"], "at most"),
        ] {
            assert!(plan(&parse(line)).unwrap_err().to_string().contains(part), "{line:?}");
        }
        assert_eq!(plan(&parse(&["-c", "a", "-c", "b"])).unwrap().budget, Duration::from_secs(20));
    }
}
