//! The conformance suite on every row of every device found: one test `device::kernel::config::case` each.
//!
//! Devices that are absent appear as one ignored test each; `PERJOULE_REQUIRE=webgpu,cuda` turns that into failure. Rows that need what
//! a device lacks appear as ignored with the reason. A row of which no case was launched for another reason fails, as
//! `device::kernel::config::none`. Known failures are listed in `expectations.toml`.
//!
//! `PERJOULE_EMULATE=90` runs it on an emulated CUDA device of that compute capability; `PERJOULE_EVERY=6` keeps every sixth case of a row,
//! `PERJOULE_EVERY=1` all of them, those that take long on a processor too.

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use perjoule_kernels::{Choice, Device};
use perjoule_suite::{Buffers, Case, Outcome, Place, Scope, cases, run, subjects};
use perjoule_tests::emulator::{self, Emulator};
use perjoule_tests::expectations::Expectations;
#[cfg(unix)]
use perjoule_tests::guard::{GuardPages, Side, report_traps};
use perjoule_tests::left::Left;
use std::process::{Command, ExitCode};
use std::sync::Arc;

const EXPECTATIONS: &str = include_str!("../expectations.toml");

/// Environment variable: of the cases of a row, only each so-manieth.
const EVERY: &str = "PERJOULE_EVERY";

/// Of the tiles of GPUs on a processor, only each so-manieth case, unless all are asked for: a driver takes seconds to compile such a
/// kernel for a processor, and there is one for each type of each operand.
const TILED: usize = 8;

fn main() -> ExitCode {
    if let Some(capability) = std::env::var_os(emulator::VARIABLE) {
        return emulated(&capability.to_string_lossy()).unwrap_or_else(|error| {
            eprintln!("{error}");
            ExitCode::FAILURE
        });
    }
    let asked = std::env::var(EVERY).ok().and_then(|value| value.parse().ok());
    let every = asked.map_or(1, |n: usize| n.max(1));
    let whole = asked == Some(1);
    let mut arguments = Arguments::from_args();
    if arguments.test_threads.is_none() {
        // launches on one device wait for each other; other threads compute references meanwhile
        arguments.test_threads = Some(2 * cores());
    }
    #[cfg(unix)]
    report_traps();
    let expectations = match Expectations::parse(EXPECTATIONS) {
        Ok(list) => Arc::new(list),
        Err(error) => {
            eprintln!("expectations.toml: {error}");
            return ExitCode::FAILURE;
        }
    };
    if let Err(error) = perjoule::register_backend(perjoule_tests::lazy::BACKEND) {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    let most = match std::env::var("PERJOULE_CASES").map(|text| text.parse()) {
        Ok(Ok(most)) if most > 0 => most,
        Ok(_) => {
            eprintln!("PERJOULE_CASES: expected a number above 0");
            return ExitCode::FAILURE;
        }
        Err(_) => usize::MAX,
    };
    let mut trials = Vec::new();
    let (found, absent) = perjoule::devices();
    let required = std::env::var("PERJOULE_REQUIRE").unwrap_or_default();
    for device in absent {
        let name = match device.backend {
            "webgpu" => "WebGPU",
            "cuda" => "CUDA",
            other => other,
        };
        let text = format!("no {name} device: {}", device.reason);
        let must = required.split(',').any(|r| r.trim() == device.backend);
        trials.push(missing(format!("{}::device", device.backend), text, must));
    }
    let begins = |label: &str| {
        let filter = arguments.filter.as_deref().unwrap_or_default();
        filter.strip_prefix(label).is_some_and(|rest| rest.starts_with("::"))
    };
    let only = found.iter().map(|info| info.label.clone()).find(|label| begins(label));
    for info in found {
        if only.as_ref().is_some_and(|only| *only != info.label) {
            continue;
        }
        // an odd number of lanes divides work differently: a part of the cases runs with it, too
        let ways: &[(Option<usize>, &str, usize)] = match info.backend {
            "cpu" => &[(Some(2), "cpu", 1), (Some(3), "cpu-3", 6)],
            // its rows are the references: what is checked is that the suite keeps to the order of streams
            "lazy" => &[(None, "", 10)],
            _ => &[(None, "", 1)],
        };
        for &(threads, label, step) in ways {
            let label = if label.is_empty() { info.label.as_str() } else { label };
            // every name begins with it; cases are not made to be skipped, which takes long under emulation
            let prefix = format!("{label}::");
            if !arguments.exact && arguments.skip.iter().any(|skip| prefix.contains(skip.as_str())) {
                continue;
            }
            match perjoule::open_with_threads(&info.label, threads) {
                Ok(device) => {
                    let mut devices = vec![device.backend().clone()];
                    // a software driver compiles kernels, which takes most of the time, on one thread a device
                    let more = if info.software { cores() - 1 } else { 0 };
                    let again =
                        (0..more).filter_map(|_| perjoule::open_with_threads(&info.label, threads).ok());
                    devices.extend(again.map(|device| device.backend().clone()));
                    let step = |row: &str| match info.software && !whole && row.contains("_tiled") {
                        true => step * every * TILED,
                        false => step * every,
                    };
                    device_trials(&mut trials, label, &devices, (&step, most), &expectations)
                }
                Err(error) => trials.push(missing(format!("{label}::device"), error.to_string(), true)),
            }
        }
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Processors, as many as tests make use of.
fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get()).min(4)
}

/// Runs this again, with the same arguments, where it finds the emulated CUDA.
fn emulated(capability: &str) -> Result<ExitCode, String> {
    let sm = capability.parse().map_err(|_| format!("{}: {capability} is no number", emulator::VARIABLE))?;
    let mut again = Command::new(std::env::current_exe().map_err(|e| e.to_string())?);
    Emulator::build()?.apply(&mut again, sm);
    again.args(std::env::args_os().skip(1)).env_remove(emulator::VARIABLE);
    let status = again.status().map_err(|e| e.to_string())?;
    if status.code().is_none() {
        return Err(format!("the run on the emulated device ended by {status}"));
    }
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A test that is ignored with a reason, or fails with it.
fn missing(name: String, reason: String, fails: bool) -> Trial {
    Trial::ignorable_test(name, move || match fails {
        true => Err(Failed::from(reason)),
        false => Ok(Completion::ignored_with(reason)),
    })
}

/// The cases of all rows of a device that has been opened several times: each row on one of them, in turn.
fn device_trials(
    trials: &mut Vec<Trial>,
    label: &str,
    devices: &[Arc<dyn Device>],
    (step, most): (&dyn Fn(&str) -> usize, usize),
    expectations: &Arc<Expectations>,
) {
    let mut lists: Vec<Vec<Trial>> = devices.iter().map(|_| Vec::new()).collect();
    for choice in subjects(&*devices[0]) {
        let shortest = (0..lists.len()).min_by_key(|&at| lists[at].len()).unwrap_or(0);
        let (device, trials) = (&devices[shortest], &mut lists[shortest]);
        let config = choice.kernel.configs[choice.config].name;
        let pack = choice.pack.map_or(String::new(), |p| format!("+{}", p.name));
        let row = format!("{label}::{}::{config}{pack}", choice.kernel.name);
        match cases(&**device, &choice, Scope::Sample) {
            Ok(list) => {
                let list: Vec<Case> = list.into_iter().step_by(step(choice.kernel.name)).collect();
                // of a part of them none may be launched, and the count never gets to its end
                let left = Arc::new(Left::new(&format!("{row}::none"), list.len()));
                for case in spread(list, most) {
                    trials.push(trial(&row, device, choice, case, expectations, &left));
                }
            }
            Err(reason) => {
                // a feature that this processor lacks is no fault; a row that no case reaches is one
                let (name, lacks) = (format!("{row}::none"), reason.lacks_feature());
                let reason = reason.to_string();
                if lacks {
                    trials.push(missing(name, reason, false));
                    continue;
                }
                let expectations = expectations.clone();
                trials.push(Trial::test(name.clone(), move || Ok(expectations.settle(&name, Err(reason))?)));
            }
        }
    }
    let mut lists: Vec<_> = lists.into_iter().map(Vec::into_iter).collect();
    while lists.iter().any(|list| list.len() > 0) {
        trials.extend(lists.iter_mut().filter_map(Iterator::next));
    }
}

/// At most so many of a list, from its first to its last.
fn spread<T>(list: Vec<T>, most: usize) -> Vec<T> {
    let (len, last) = (list.len(), most.saturating_sub(1).max(1));
    let taken = |index: usize| (0..most).any(|i| i * (len - 1) / last == index);
    match len > most {
        true => {
            list.into_iter().enumerate().filter(|(index, _)| taken(*index)).map(|(_, item)| item).collect()
        }
        false => list,
    }
}

fn trial(
    row: &str,
    device: &Arc<dyn Device>,
    choice: Choice,
    case: Case,
    expectations: &Arc<Expectations>,
    left: &Arc<Left>,
) -> Trial {
    let name = format!("{row}::{}", case.id);
    let (device, expectations, left) = (device.clone(), expectations.clone(), left.clone());
    let test = name.clone();
    Trial::ignorable_test(name, move || {
        let mut places: Vec<&dyn Place> = vec![&Buffers { replay: false }];
        #[cfg(unix)]
        if device.info().synchronous {
            places = vec![&GuardPages(Side::Right), &GuardPages(Side::Left)];
        }
        let outcome = run(&*device, choice, &case, &places);
        let idle = left.never_launched(!matches!(outcome, Outcome::Skipped { .. }));
        let result = match outcome {
            Outcome::Passed { .. } => Ok(()),
            Outcome::Failed(failure) => Err(failure.to_string()),
            Outcome::Skipped { reason } => {
                if idle {
                    let why = format!("no case of this row was launched: {reason}");
                    expectations.settle(left.name(), Err(why))?;
                }
                return Ok(Completion::ignored_with(reason));
            }
        };
        expectations.settle(&test, result)?;
        Ok(Completion::Completed)
    })
}
