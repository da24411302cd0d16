//! What a command used that was run as a process of its own.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Interval, count, number};
use crate::stats::Verdict;

/// A command that was run and timed from its start to its end; all null in records of other kinds. A sample of `samples_ns` is one run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Process {
    /// The command line that was run, as a POSIX shell reads it. (`command` is perjoule's own.)
    pub exec_command: Option<String>,
    /// The name it was given; commands of two files match by it, else by the command line.
    pub exec_name: Option<String>,
    /// What every run exited with; null where they differ or a signal ended one.
    #[serde(default, deserialize_with = "count")]
    pub exit_code: Option<u64>,
    /// Runs that exited with something else than 0, which was to be ignored.
    #[serde(default, deserialize_with = "count")]
    pub failed_runs: Option<u64>,
    /// CPU time of a run in user mode, seconds: mean over the runs, with descendants that were waited for.
    pub cpu_user_s: Option<f64>,
    /// CPU time of a run in the kernel, seconds: as `cpu_user_s`.
    pub cpu_system_s: Option<f64>,
    /// Largest resident set of any single process of a run, in bytes, the most over the runs. Null where it is no larger than what the
    /// system counts of the starting process before the command takes its place.
    #[serde(default, deserialize_with = "count")]
    pub peak_memory_bytes: Option<u64>,
    /// Gross joules of each run by itself, in the order of `samples_ns`, as the meter of `joules` saw them. Null where a run is too short for it.
    #[serde(default, deserialize_with = "number::samples")]
    #[schemars(with = "Option<Vec<Option<f64>>>")]
    pub run_joules: Option<Vec<f64>>,
    /// Which runs `joules` are of; null where there was nothing to take them of.
    pub energy_runs: Option<EnergyRuns>,
    /// Joules of a run over those of the first command's that was run in turn with it, the median run by run.
    pub versus_joules_ratio: Option<f64>,
    /// 95 % interval of `versus_joules_ratio` by bootstrap.
    pub versus_joules_ci95: Option<Interval>,
    /// Two-sided p-value of the Wilcoxon signed-rank test of the logarithms of those ratios.
    pub versus_joules_p_value: Option<f64>,
    /// The answer, for differences from 2 % on; `faster` stands for less energy, `slower` for more.
    pub versus_joules_verdict: Option<Verdict>,
}

/// Which runs of a command its joules are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum EnergyRuns {
    /// Those that were timed, each in a window of its own or by its CPU time.
    Timed,
    /// Further ones, repeated within one window: a single one is too short for the meter.
    Repeated,
    /// Some that this version does not know of.
    #[serde(other)]
    Other,
}
