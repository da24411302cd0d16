//! Arguments of `perjoule classes` and `perjoule compare`.

use clap::{Args, ValueEnum};
use std::path::PathBuf;

use crate::compare::workload::{Loose, Phase};

#[derive(Debug, Args)]
pub(crate) struct ClassesArgs {
    /// Only classes whose id or name holds every word of this
    #[arg(value_name = "NAME-FRAGMENT")]
    pub(crate) fragment: Option<String>,
    /// All that is known of one class, with sources
    #[arg(long, value_name = "ID", conflicts_with = "fragment")]
    pub(crate) class: Option<String>,
    /// Classes of your own, in the format of the catalogue's hardware.toml
    #[arg(long, value_name = "FILE.toml")]
    pub(crate) catalogue: Vec<PathBuf>,
    /// Print a JSON array
    #[arg(long)]
    pub(crate) json: bool,
}

/// What stdout of `perjoule compare` carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CompareFormat {
    /// Tables for people
    Table,
    /// Tables in Markdown, for pull requests
    Md,
    /// One JSON object
    Json,
    /// Comma-separated values (side by side only)
    Csv,
    /// JUnit XML (regressions only)
    Junit,
    /// Annotations of GitHub Actions (regressions only)
    Github,
}

#[derive(Debug, Args)]
pub(crate) struct CompareArgs {
    /// Files of records, measured or imported
    #[arg(value_name = "FILES")]
    pub(crate) files: Vec<PathBuf>,
    /// Classes of hardware to predict for, with a number of devices [default: the fewest that hold the model]
    #[arg(long, value_name = "ID[xN],..", value_delimiter = ',', help_heading = "Side by side")]
    pub(crate) class: Vec<String>,
    /// Only this model
    #[arg(long, value_name = "NAME,..", value_delimiter = ',', help_heading = "Side by side")]
    pub(crate) model: Vec<String>,
    /// Type of the weights (with --self: element type) [default: bf16 where only classes are compared]
    #[arg(long, value_name = "TYPE")]
    pub(crate) dtype: Option<String>,
    /// Part of inference [default: prefill with -p alone, serving with -p and -n, else decode]
    #[arg(long, value_enum, help_heading = "Side by side")]
    pub(crate) phase: Option<Phase>,
    /// Sequences side by side
    #[arg(long, value_name = "N,..", value_delimiter = ',', help_heading = "Side by side")]
    pub(crate) parallel: Vec<u64>,
    /// Prompt tokens of a sequence
    #[arg(short = 'p', long, value_name = "N", help_heading = "Side by side")]
    pub(crate) n_prompt: Option<u64>,
    /// Generated tokens of a sequence
    #[arg(short = 'n', long, value_name = "N", help_heading = "Side by side")]
    pub(crate) n_gen: Option<u64>,
    /// Tokens in the KV cache beforehand
    #[arg(short = 'd', long, value_name = "N", help_heading = "Side by side")]
    pub(crate) n_depth: Option<u64>,
    /// USD per device and hour, of every row or of one class or device by name
    #[arg(long, value_name = "[NAME=]USD,..", value_delimiter = ',', help_heading = "Side by side")]
    pub(crate) price: Vec<String>,
    /// Where the electricity comes from: carbon and price of a kWh
    #[arg(long, value_name = "ID", default_value = "virginia", help_heading = "Side by side")]
    pub(crate) region: String,
    /// Facility power over the power of its machines [default: 1.15, the fleet of AWS]
    #[arg(long, value_name = "X", help_heading = "Side by side")]
    pub(crate) pue: Option<f64>,
    /// USD per kWh, instead of the region's
    #[arg(long, value_name = "X", help_heading = "Side by side")]
    pub(crate) usd_kwh: Option<f64>,
    /// Classes of your own, in the format of the catalogue's hardware.toml
    #[arg(long, value_name = "FILE.toml", help_heading = "Side by side")]
    pub(crate) catalogue: Vec<PathBuf>,
    /// Compare although these differ
    #[arg(long, value_enum, value_name = "WHAT,..", value_delimiter = ',')]
    pub(crate) loose: Vec<Loose>,
    /// What stdout carries
    #[arg(long, value_enum, default_value = "table")]
    pub(crate) format: CompareFormat,
    /// Hold the second file against the first: is anything slower?
    #[arg(long, help_heading = "Regressions", conflicts_with = "self_")]
    pub(crate) regression: bool,
    /// The same, with the relative difference from which on a slower result, or one of more measured energy, fails [default: 3%]
    #[arg(long, value_name = "3%", help_heading = "Regressions", conflicts_with = "self_")]
    pub(crate) fail_on: Option<String>,
    /// Fail also when the second file lacks measurements of the first
    #[arg(long, help_heading = "Regressions")]
    pub(crate) fail_on_missing: bool,
    /// Match records of different kernels that do the same
    #[arg(long, help_heading = "Regressions")]
    pub(crate) any_kernel: bool,
    /// Measure a kernel against itself: how small a difference can be told apart on this machine?
    #[arg(long = "self", help_heading = "Noise of this machine", conflicts_with_all = ["files", "class", "model"])]
    pub(crate) self_: bool,
    /// The op [default: matmul]
    #[arg(long, help_heading = "Noise of this machine", requires = "self_")]
    pub(crate) op: Option<String>,
    /// Its sizes
    #[arg(long, value_name = "NAME=N,..", help_heading = "Noise of this machine", requires = "self_")]
    pub(crate) shape: Option<String>,
    /// Pairs of samples in a round, instead of as many as a 1 % interval needs
    #[arg(short = 'r', long, value_name = "N", help_heading = "Noise of this machine", requires = "self_")]
    pub(crate) repetitions: Option<usize>,
    /// Seconds of measuring in all [default: 18]
    #[arg(
        long,
        value_name = "SECONDS",
        value_parser = super::args::budget,
        allow_negative_numbers = true,
        help_heading = "Noise of this machine",
        requires = "self_"
    )]
    pub(crate) budget: Option<f64>,
    /// CPU threads
    #[arg(long, value_name = "N", help_heading = "Noise of this machine", requires = "self_")]
    pub(crate) threads: Option<usize>,
}

pub(super) const COMPARE_EXAMPLES: &str = "Two results are comparable when model, dtype, KV cache, phase, batch (sequences) and context (prompt, generated \
tokens, tokens before) are equal; --loose lets named ones differ. Energy is only comparable within one boundary, which stands beside it. Two files \
without records of tokens are held against each other as with --regression, and nothing fails.

Examples:
  perjoule compare                                          this machine's newest records beside seven accelerators
  perjoule compare mine.jsonl theirs.jsonl --class h100-sxm,mi300xx2
  perjoule compare --class h200-sxm --model llama-3.1-70b --dtype fp8 -p 512 -n 256 --parallel 1,64
  perjoule compare kernels-old.jsonl kernels-new.jsonl      what became faster or slower
  perjoule compare old.jsonl new.jsonl --fail-on 3% --format md
  perjoule compare --self --op matmul --shape m=1,n=4096,k=4096

Exit code: 1 when something is slower, or takes more measured energy, by more than --fail-on, with an interval that says so; when something \
valid in OLD is invalid in NEW; when nothing could be judged; with --fail-on-missing, when NEW lacks what OLD has.";
