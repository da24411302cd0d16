//! The binary `perjoule`: what a unit of energy buys.
//!
//! | module | holds |
//! |---|---|
//! | `cli` | the command line, one file a command |
//! | `measure` | what `perjoule_engine` measures, on native devices: ceilings, kernels, tokens, and energy windows |
//! | `live` | power, use, clocks and temperatures now, and how a terminal shows them |
//! | `compare` | records and classes side by side, and regressions between two files |
//! | `history` | records over time, found through an index |
//! | `inputs` | files of results, of perjoule and of other tools |
//! | `report` | tables and formats made from records |
//! | `signals` | what the process does on Ctrl-C, a closed pipe and a full file |

mod cli;
mod compare;
mod history;
mod inputs;
mod live;
mod measure;
mod report;
mod signals;

use perjoule_engine::ops;

fn main() -> std::process::ExitCode {
    #[cfg(target_os = "linux")]
    if std::env::var_os("XDG_RUNTIME_DIR").is_none() && std::env::var_os("NODEVICE_SELECT").is_none() {
        // Mesa's layer for choosing among GPUs looks for a desktop, and complains on stderr where there is none
        // SAFETY: nothing else runs yet: no other thread reads the environment.
        unsafe { std::env::set_var("NODEVICE_SELECT", "1") };
    }
    cli::main()
}
