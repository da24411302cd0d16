//! Runs the conformance cases of one backend on devices that are made for it: what `cuda` and `webgpu` have in common.

use crate::arm::watch;
use crate::emulate::built;
use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What names of devices begin with, backend by backend.
const DEVICES: [(&str, &[&str]); 4] =
    [("cpu", &["cpu::", "cpu-3::"]), ("lazy", &["lazy::"]), ("cuda", &["cuda:"]), ("webgpu", &["webgpu:"])];

/// Which cases run.
pub(crate) struct Cases<'a> {
    /// Of the backend of this name.
    pub(crate) backend: &'static str,
    /// Of each row only each so-manieth.
    pub(crate) every: u32,
    /// Passed on to the tests; without it, all rows.
    pub(crate) filter: &'a [String],
}

/// Builds the tests. Gives the path of their executable.
pub(crate) fn build() -> Result<PathBuf> {
    // of the whole workspace, whose tests have built the same
    let tests = built(&["--workspace", "--test", "conformance"], &[])?;
    Ok(tests.into_iter().next().context("the conformance tests were built")?.executable)
}

/// Runs the tests on each device: its name, and a command that runs their executable on it. Fails unless all passed and, without a
/// filter, each ran something. Gives how many passed.
pub(crate) fn run(cases: &Cases, devices: Vec<(String, Command)>) -> Result<usize> {
    let mut faults = Vec::new();
    let mut all = 0;
    for (name, mut command) in devices {
        eprintln!("xtask: conformance on {name}");
        command.args(arguments(cases)).env("PERJOULE_REQUIRE", cases.backend);
        command.env("PERJOULE_EVERY", cases.every.to_string());
        let (success, counts) = watch(&mut command).with_context(|| {
            format!("{} could not be started", Path::new(command.get_program()).display())
        })?;
        all += counts.map_or(0, |[passed, ..]| passed);
        match counts {
            None => faults.push(format!("{name}: it did not end")),
            Some(_) if !success => faults.push(format!("{name}: it failed")),
            Some([0, ..]) if cases.filter.is_empty() => faults.push(format!("{name}: it ran nothing")),
            Some(_) => {}
        }
    }
    if !faults.is_empty() {
        bail!("conformance on {}", faults.join(", "));
    }
    ensure!(all > 0, "there is no device of {}, or no test with such a name", cases.backend);
    Ok(all)
}

/// Only devices of that backend are opened. Its absence is a test, too, whose name begins like those of its devices.
fn arguments(cases: &Cases) -> Vec<String> {
    let mut arguments = ["--color", "never", "--quiet"].map(str::to_string).to_vec();
    for name in DEVICES.iter().filter(|(backend, _)| *backend != cases.backend).flat_map(|(_, names)| *names)
    {
        arguments.extend(["--skip".to_string(), name.to_string()]);
    }
    match cases.filter.is_empty() {
        true => arguments.push(format!("{}:", cases.backend)),
        false => arguments.extend_from_slice(cases.filter),
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_backends_are_left_out() {
        for (backend, own) in DEVICES {
            let arguments = arguments(&Cases { backend, every: 1, filter: &[] });
            let skips = arguments.windows(2).filter(|pair| pair[0] == "--skip");
            let skipped: Vec<&String> = skips.map(|pair| &pair[1]).collect();
            // as the tests match them: anywhere in a device's name
            let is_skipped = |device: &str| skipped.iter().any(|skip| device.contains(skip.as_str()));
            assert!(own.iter().all(|name| !is_skipped(&format!("{name}0::row"))), "{arguments:?}");
            let others = DEVICES.iter().filter(|(other, _)| *other != backend).flat_map(|(_, names)| *names);
            assert!(others.into_iter().all(|name| is_skipped(&format!("{name}0::row"))), "{arguments:?}");
        }
    }
}
