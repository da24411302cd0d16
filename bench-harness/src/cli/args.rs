//! Arguments of every command.

use clap::{Args, Parser, Subcommand, ValueEnum};
use perjoule::DType;
use perjoule_kernels::op::Policy;
use perjoule_record::CacheState;
use std::path::PathBuf;

use super::args_compare::{COMPARE_EXAMPLES, ClassesArgs, CompareArgs};
use super::meters::MeterArgs;
use super::top::{TOP_EXAMPLES, TopArgs};

/// What a unit of energy buys: tensor kernels and models, their speed and their joules per token.
///
/// Without a command, `perjoule run` is meant, and its options may follow.
#[derive(Debug, Parser)]
#[command(name = "perjoule", version, max_term_width = 100, args_conflicts_with_subcommands = true, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) run: RunArgs,
}

const EXAMPLES: &str = "Examples:
  perjoule                                        measure this machine, about 90 s
  perjoule run --op matmul --shape m=1,n=4096,k=4096 --dtype bf16
  perjoule --only tokens --model llama-3.2-1b -p 512 -n 128
  perjoule run --format json | jq '.[].joules_per_total_token'
  perjoule kernels --op attention --shape q=1,kv=4096
  perjoule report results/*.jsonl -o report.html  a page with charts and tables
  perjoule history --model llama-3.2-1b           how fast it was, commit by commit
  perjoule check                                  are the kernels right on this machine?
  perjoule compare old.jsonl new.jsonl --fail-on 3%

Exit code: 0 done, 1 a check, verification or comparison failed, 2 any other error, 130 interrupted.";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the devices found and how their energy is measured
    Devices(DevicesArgs),
    /// List kernel rows; with a shape: which is chosen, and why the others are not
    Kernels(KernelsArgs),
    /// Measure ceilings, kernels, and the tokens of a model (the default command)
    #[command(after_help = RUN_EXAMPLES)]
    Run(Box<RunArgs>),
    /// List runs, or follow a kernel or model over commits and machines
    #[command(after_help = super::history::EXAMPLES)]
    History(Box<super::history::HistoryArgs>),
    /// Turn other tools' results (llama-bench, ML.ENERGY, MLPerf) into records
    Import(ImportArgs),
    /// Check the kernels of this machine, or a model's logits against a reference
    Check(CheckArgs),
    /// List classes of hardware: what is known of them, and from where
    Classes(ClassesArgs),
    /// Put records and classes of hardware side by side, or find regressions between two files
    #[command(after_help = COMPARE_EXAMPLES)]
    Compare(Box<CompareArgs>),
    /// Write records in the format of another tool
    #[command(after_help = super::export::EXAMPLES)]
    Export(super::export::ExportArgs),
    /// Say what is usable, what is missing and how to mend it, and what makes numbers noisy
    #[command(after_help = super::doctor::EXAMPLES)]
    Doctor(super::doctor::DoctorArgs),
    /// Measure any command: time, joules, memory, CPU time; several are compared
    #[command(after_help = super::exec::EXAMPLES)]
    Exec(Box<super::exec::ExecArgs>),
    /// Generate text or token ids with a model
    Generate(GenerateArgs),
    /// Make a page with charts and tables from records, or their tables alone
    #[command(after_help = REPORT_EXAMPLES)]
    Report(ReportArgs),
    /// Print the JSON Schema of a record
    Schema,
    /// Watch power, use, clocks and temperature of every device, live
    #[command(after_help = TOP_EXAMPLES)]
    Top(TopArgs),
    /// Measure which kernel is fastest for each shape on this machine; later commands choose by it
    #[command(after_help = super::tune::EXAMPLES)]
    Tune(super::tune::TuneArgs),
    /// Serve the bench in a browser: a page that measures this machine's GPU by WebGPU
    #[cfg(feature = "web")]
    #[command(after_help = super::web::EXAMPLES)]
    Web(super::web::WebArgs),
    /// Say how `perjoule web` is built: this program has no page to serve
    #[cfg(not(feature = "web"))]
    #[command(hide = true, disable_help_flag = true)]
    Web {
        /// Whatever follows
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        _rest: Vec<String>,
    },
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page (roff)
    Man,
}

#[derive(Debug, Args)]
pub(crate) struct DevicesArgs {
    #[command(flatten)]
    pub(crate) meters: MeterArgs,
    /// Print a JSON array
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct KernelsArgs {
    /// Device whose table is listed
    #[arg(long, value_name = "ID", default_value = "cpu")]
    pub(crate) device: String,
    /// Only rows of this op
    #[arg(long)]
    pub(crate) op: Option<String>,
    /// Sizes, such as m=1,n=4096,k=4096: shows the choice for it
    #[arg(long, requires = "op", value_name = "NAME=N,..")]
    pub(crate) shape: Option<String>,
    /// Element type of inputs and output
    #[arg(long, value_name = "TYPE", requires = "op")]
    pub(crate) dtype: Option<DType>,
    /// Print a JSON array
    #[arg(long)]
    pub(crate) json: bool,
}

/// Most seconds of a `--budget`: 30 days, far from what a duration cannot hold.
const MOST_SECONDS: f64 = 30.0 * 24.0 * 3600.0;

/// The seconds of a `--budget`.
pub(super) fn budget(text: &str) -> Result<f64, String> {
    let seconds = text.trim().parse::<f64>().ok().filter(|s| *s > 0.0 && *s <= MOST_SECONDS);
    seconds.ok_or_else(|| format!("expected a positive number of seconds, {MOST_SECONDS} (30 days) at most"))
}

/// A part of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// What the device can do at most
    Ceilings,
    /// Single ops
    Kernels,
    /// A whole model
    Tokens,
}

/// What stdout carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
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
    /// llama-bench's table, for tokens
    LlamaBench,
    /// llama-bench's JSON lines, for tokens
    LlamaBenchJsonl,
    /// OpenMetrics text, for Prometheus
    Openmetrics,
}

/// `--cache`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Cache {
    /// Operands rotate through more than the last-level cache, as the weights of a model do
    Rotate,
    /// The same operands call after call
    Hot,
    /// Caches are flushed before each call
    Cold,
}

impl From<Cache> for CacheState {
    fn from(cache: Cache) -> Self {
        match cache {
            Cache::Rotate => CacheState::Rotate,
            Cache::Hot => CacheState::Hot,
            Cache::Cold => CacheState::Cold,
        }
    }
}

#[derive(Debug, Clone, Args)]
pub(crate) struct RunArgs {
    /// Devices to measure, such as cpu [default: all that are found, but for adapters that the processor stands for]
    #[arg(long, value_name = "ID,..", value_delimiter = ',', help_heading = "What")]
    pub(crate) device: Vec<String>,
    /// Only these parts
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PART,..", help_heading = "What")]
    pub(crate) only: Vec<Part>,
    /// Measure this op (implies --only kernels)
    #[arg(long, help_heading = "What")]
    pub(crate) op: Option<String>,
    /// Sizes of the op, such as m=1,n=4096,k=4096; `perjoule kernels --op OP` names them; may be given several times
    #[arg(long, value_name = "NAME=N,..", help_heading = "What")]
    pub(crate) shape: Vec<String>,
    /// Element type: of inputs and output of kernels, of the weights of a model
    #[arg(long, value_name = "TYPE,..", value_delimiter = ',', help_heading = "What")]
    pub(crate) dtype: Vec<DType>,
    /// Whether a model's activations are rounded in products with its weights
    #[arg(long, value_enum, default_value_t = Activations::Rounded, help_heading = "What")]
    pub(crate) activations: Activations,
    /// Kernel row by name, or all that run the op
    #[arg(long, value_name = "NAME|all", help_heading = "What")]
    pub(crate) kernel: Option<String>,
    /// Measure each kernel in turn with this one, and say which is faster
    #[arg(long, value_name = "NAME", help_heading = "What")]
    pub(crate) versus: Option<String>,
    /// Folder of a model, a GGUF file, or the name of a geometry (random weights)
    #[arg(long, value_name = "NAME|PATH", help_heading = "What")]
    pub(crate) model: Option<String>,
    /// Prompt lengths; 0 for none [default with neither -p nor -n: what the budget allows]
    #[arg(short = 'p', long, value_name = "N,..", value_delimiter = ',', help_heading = "Tokens")]
    pub(crate) n_prompt: Vec<usize>,
    /// Tokens to generate; 0 for none
    #[arg(short = 'n', long, value_name = "N,..", value_delimiter = ',', help_heading = "Tokens")]
    pub(crate) n_gen: Vec<usize>,
    /// Tokens in the KV cache beforehand
    #[arg(short = 'd', long, value_name = "N,..", value_delimiter = ',', help_heading = "Tokens")]
    pub(crate) n_depth: Vec<usize>,
    /// Sequences side by side
    #[arg(long, value_name = "N,..", value_delimiter = ',', help_heading = "Tokens")]
    pub(crate) parallel: Vec<usize>,
    /// Element type of the KV cache [default: that of the weights, f16 beside block formats]
    #[arg(long, value_name = "TYPE", help_heading = "Tokens")]
    pub(crate) kv_dtype: Option<DType>,
    /// Prompt tokens processed at once
    #[arg(long, value_name = "N", help_heading = "Tokens")]
    pub(crate) batch: Option<usize>,
    /// Repetitions, instead of as many as a 1 % interval needs
    #[arg(short = 'r', long, value_name = "N", help_heading = "How")]
    pub(crate) repetitions: Option<usize>,
    /// CPU threads
    #[arg(long, value_name = "N", help_heading = "How")]
    pub(crate) threads: Option<usize>,
    /// Seconds of measuring in all, windows of energy and pauses for the power at rest included, loading and checks on top; ends -r early
    /// when given [default: 60]
    #[arg(long, value_name = "SECONDS", value_parser = budget, allow_negative_numbers = true, help_heading = "How")]
    pub(crate) budget: Option<f64>,
    /// Seed of the random data [default: 1]
    #[arg(long, value_name = "N", help_heading = "How")]
    pub(crate) seed: Option<u64>,
    /// Where operands lie when a call begins [default: rotate up to 64 rows, else hot]
    #[arg(long, value_enum, help_heading = "How")]
    pub(crate) cache: Option<Cache>,
    #[command(flatten)]
    pub(crate) meters: MeterArgs,
    /// No progress, no notes
    #[arg(long, help_heading = "Output")]
    pub(crate) quiet: bool,
    /// Show power, use, clock and temperature below the progress, twice a second
    #[arg(long, conflicts_with = "quiet", help_heading = "Output")]
    pub(crate) live: bool,
    /// Draw charts below the tables [default: in a terminal]
    #[arg(long, conflicts_with = "quiet", help_heading = "Output")]
    pub(crate) charts: bool,
    /// What stdout carries [default: table]
    #[arg(long, value_enum, help_heading = "Output")]
    pub(crate) format: Option<Format>,
    /// Append JSON lines to this file instead of results/; - for stdout
    #[arg(short = 'o', long, value_name = "FILE|-", help_heading = "Output")]
    pub(crate) output: Option<PathBuf>,
    /// Write the figures of this run as OpenMetrics text to this file when it ends, whole or not at all, for the textfile
    /// collector of Prometheus's node exporter (which reads *.prom)
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub(crate) openmetrics: Option<PathBuf>,
}

const RUN_EXAMPLES: &str = "Examples:
  perjoule run                                              everything, about 90 s
  perjoule run --op matmul --shape m=1,n=8192,k=2048 --dtype bf16 --kernel all
  perjoule run --op attention --shape q=1,kv=8192,h=32,hkv=8,d=128
  perjoule run --op rms_norm --versus rms_norm_any_256_cpu_avx2  the chosen kernel against that one
  perjoule run --only tokens --model ./Llama-3.2-1B -p 512 -n 128 -r 5
  perjoule run --only tokens --model ./Qwen3-0.6B-Q4_K_M.gguf
  perjoule run --only tokens --model qwen3-0.6b -n 32 --parallel 1,4,16
  perjoule run --only tokens --model qwen3-0.6b -n 32 -d 4096 --kv-dtype q8_0
  perjoule run --only tokens --format llama-bench           llama-bench's table, for scripts that read it
  perjoule run --openmetrics /var/lib/node_exporter/perjoule.prom
  perjoule run --format jsonl -o results/mine.jsonl";

#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// Files to read; - for stdin
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// Format of all of them [default: what their content says]
    #[arg(long, value_name = "FORMAT")]
    pub(crate) from: Option<String>,
    /// Append the records to this file [default: JSON lines on stdout]
    #[arg(short = 'o', long, value_name = "FILE|-")]
    pub(crate) output: Option<PathBuf>,
    /// Only warnings
    #[arg(long)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// Device to check
    #[arg(long, value_name = "ID", default_value = "cpu")]
    pub(crate) device: String,
    /// Only kernels of this op
    #[arg(long, conflicts_with = "model")]
    pub(crate) op: Option<String>,
    /// Only kernels whose name contains this
    #[arg(long, value_name = "NAME", conflicts_with = "model")]
    pub(crate) kernel: Option<String>,
    /// Only the case of this id
    #[arg(long, value_name = "ID", conflicts_with = "model")]
    pub(crate) case: Option<String>,
    /// Every case, however long it takes
    #[arg(long, conflicts_with = "model")]
    pub(crate) full: bool,
    /// Seconds that a sample of the cases takes at most, one of each kernel in turn [default: 540]
    #[arg(long, value_name = "SECONDS", value_parser = budget, allow_negative_numbers = true, conflicts_with_all = ["full", "model"])]
    pub(crate) budget: Option<f64>,
    /// Check a model (a folder or a GGUF file) against reference logits instead
    #[arg(long, value_name = "PATH")]
    pub(crate) model: Option<PathBuf>,
    /// The reference [default: expected.safetensors beside the weights]
    #[arg(long, value_name = "FILE", requires = "model")]
    pub(crate) expected: Option<PathBuf>,
    /// Element type of the weights [default: f32; as stored in a GGUF file]
    #[arg(long, value_name = "TYPE", requires = "model")]
    pub(crate) dtype: Option<DType>,
    /// Element type of the KV cache [default: that of the weights, f16 beside block formats]
    #[arg(long, value_name = "TYPE", requires = "model")]
    pub(crate) kv_dtype: Option<DType>,
    /// Whether activations are rounded in products with weights
    #[arg(long, requires = "model", value_enum, default_value_t = Activations::Exact)]
    pub(crate) activations: Activations,
    /// CPU threads
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// No progress
    #[arg(long)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Args)]
pub(crate) struct GenerateArgs {
    /// Folder of a model, a GGUF file, or the name of a geometry (random weights)
    #[arg(long, value_name = "NAME|PATH")]
    pub(crate) model: String,
    /// Device to run on
    #[arg(long, value_name = "ID", default_value = "cpu")]
    pub(crate) device: String,
    /// Text to continue; needs tokenizer.json beside the weights, or the vocabulary of a GGUF file
    #[arg(long, value_name = "TEXT", required_unless_present = "ids", conflicts_with = "ids")]
    pub(crate) prompt: Option<String>,
    /// Token ids to continue
    #[arg(long, value_name = "1,2,3")]
    pub(crate) ids: Option<String>,
    /// Tokens to generate
    #[arg(short = 'n', value_name = "N", default_value_t = 64)]
    pub(crate) n: usize,
    /// Element type of the weights [default: that of the checkpoint, as stored in a GGUF file, bf16 for a geometry]
    #[arg(long, value_name = "TYPE")]
    pub(crate) dtype: Option<DType>,
    /// Element type of the KV cache [default: that of the weights, f16 beside block formats]
    #[arg(long, value_name = "TYPE")]
    pub(crate) kv_dtype: Option<DType>,
    /// Whether a model's activations are rounded in products with its weights
    #[arg(long, value_enum, default_value_t = Activations::Rounded)]
    pub(crate) activations: Activations,
    /// Draw tokens at this temperature; 0 takes the most likely
    #[arg(long, default_value_t = 0.0)]
    pub(crate) temperature: f32,
    /// Draw among this many most likely tokens
    #[arg(long, value_name = "N")]
    pub(crate) top_k: Option<usize>,
    /// Draw among the most likely tokens that make up this much probability
    #[arg(long, value_name = "P")]
    pub(crate) top_p: Option<f32>,
    /// Seed of the draws, and of random weights
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    #[command(flatten)]
    pub(crate) meters: MeterArgs,
    /// Go on after an end-of-sequence token
    #[arg(long)]
    pub(crate) ignore_eos: bool,
    /// CPU threads
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,
    /// Print one JSON object at the end instead of streaming
    #[arg(long)]
    pub(crate) json: bool,
    /// No progress, no summary
    #[arg(long)]
    pub(crate) quiet: bool,
}

const REPORT_EXAMPLES: &str = "Examples:
  perjoule report results/*.jsonl                           report.html, which needs no network
  perjoule report results --title 'Before and after' -o both.html
  perjoule report run.jsonl --class h100-sxm,mi300x         beside predictions of the catalogue
  perjoule report run.jsonl -o run.svg                      a still figure; run.png in pixels
  perjoule report run.jsonl --format md                     tables on stdout
  perjoule report run.jsonl --format csv -o run.csv         a line for each record";

/// What a report is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ReportFormat {
    /// A page with charts and tables, in one file.
    Html,
    /// A still figure for a paper, as vectors.
    Svg,
    /// The same figure as pixels.
    Png,
    /// Tables in Markdown.
    Md,
    /// The records, a line each.
    Csv,
}

fn scale(text: &str) -> Result<f32, String> {
    let scale = text.parse().ok().filter(|scale| (0.5..=4.0).contains(scale));
    scale.ok_or_else(|| "expected a number from 0.5 to 4, such as 3".into())
}

#[derive(Debug, Args)]
pub(crate) struct ReportArgs {
    /// Files of records (JSON lines), folders of them (*.jsonl), or - for stdin
    #[arg(required = true, value_name = "FILES")]
    pub(crate) files: Vec<PathBuf>,
    /// Write to this file; - for stdout [default: report.html, .svg or .png; stdout for md and csv]
    #[arg(short = 'o', long, value_name = "FILE|-")]
    pub(crate) output: Option<PathBuf>,
    /// Heading [default: made of the devices]
    #[arg(long)]
    pub(crate) title: Option<String>,
    /// Add what the catalogue predicts for these classes of hardware, marked as modelled
    #[arg(long, value_name = "ID,..", value_delimiter = ',')]
    pub(crate) class: Vec<String>,
    /// What is written [default: by the name of the file, else html]
    #[arg(long, value_enum)]
    pub(crate) format: Option<ReportFormat>,
    /// Pixels of a PNG for each of the SVG's, 0.5 to 4 [default: 2]
    #[arg(long, value_name = "X", value_parser = scale)]
    pub(crate) scale: Option<f32>,
    /// No notes
    #[arg(long)]
    pub(crate) quiet: bool,
}

/// What happens to activations in products with weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Activations {
    /// They are multiplied as they are, in f32
    Exact,
    /// Beside bf16 they are rounded to bf16, beside block formats to 8 bits, as in llama.cpp, where that is faster here
    Rounded,
}

impl Activations {
    /// The leave that this gives to products.
    pub(crate) fn policy(self) -> Policy {
        Policy { quantised_activations: self == Activations::Rounded, ..Policy::default() }
    }
}
