//! The suite passes what is right and catches what is wrong, each fault by name.

use perjoule::cpu::{CpuDevice, Options};
use perjoule_kernels::{Choice, Device, Kernel};
use perjoule_suite::{Buffers, Failure, Outcome, Place, Scope, cases, run};
use perjoule_tests::oracle::{FAULTS, Fault, row};

const OPS: [&str; 20] = [
    "matmul",
    "attention",
    "grouped_matmul",
    "gated_matmul",
    "rms_norm",
    "layer_norm",
    "rope",
    "gated",
    "softmax",
    "embed",
    "add",
    "route",
    "combine",
    "kv_append",
    "advance",
    "argmax",
    "sample",
    "cast",
    "quantise",
    "qk_norm_rope_append",
];

fn device() -> CpuDevice {
    CpuDevice::open(&Options { threads: Some(2), ..Options::default() }).unwrap()
}

const BUFFERS: &dyn Place = &Buffers { replay: false };

/// Runs cases until `enough` have failed.
fn failures(
    device: &dyn Device,
    kernel: &'static Kernel,
    step: usize,
    enough: usize,
) -> (usize, Vec<Failure>) {
    device.register(kernel).unwrap();
    let choice = Choice { kernel, config: 0, pack: None };
    let list = cases(device, &choice, Scope::Sample).unwrap();
    let mut found = Vec::new();
    let mut count = 0;
    for case in list.iter().step_by(step) {
        count += 1;
        match run(device, choice, case, &[BUFFERS]) {
            Outcome::Failed(failure) => found.push(failure),
            Outcome::Passed { worst } => assert!(worst <= 1.0, "{}: {worst}", case.id),
            Outcome::Skipped { reason } => panic!("{} was skipped: {reason}", case.id),
        }
        if found.len() >= enough {
            break;
        }
    }
    (count, found)
}

#[test]
fn the_reference_rounded_once_passes_every_case() {
    let device = device();
    let mut wrong = Vec::new();
    for op in OPS {
        let (count, found) = failures(&device, row(op, Fault::None), 1, usize::MAX);
        assert!(count >= 18, "{op}: {count} cases");
        let text: Vec<String> = found.iter().take(3).map(ToString::to_string).collect();
        if !found.is_empty() {
            wrong.push(format!("{op}: {} of {count} fail\n{}", found.len(), text.join("\n")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_fault_is_caught() {
    let device = device();
    let mut escaped = Vec::new();
    for (op, fault) in FAULTS {
        let kernel = row(op, fault);
        let (count, found) = failures(&device, kernel, 1, 1);
        match found.first() {
            None => escaped.push(format!("{op} with {fault:?} passes all {count} cases")),
            Some(failure) => {
                assert_eq!(failure.kernel, kernel.name);
                let text = failure.to_string();
                let says = match fault {
                    Fault::Behind => "behind",
                    Fault::InFront => "in front of",
                    Fault::Unrepeatable => "differ",
                    Fault::Panic => "on purpose",
                    Fault::Gaps => "does not write",
                    Fault::Stale => "NaN",
                    Fault::Input => "was changed",
                    _ => "expected",
                };
                assert!(text.contains(says), "{op} with {fault:?}: {text}");
                assert!(text.contains("--kernel") && text.contains("seed"), "{text}");
            }
        }
    }
    assert!(escaped.is_empty(), "{}", escaped.join("\n"));
}

#[test]
fn cases_are_the_same_each_time() {
    let device = device();
    for op in ["matmul", "attention", "cast"] {
        let kernel = row(op, Fault::None);
        let choice = Choice { kernel, config: 0, pack: None };
        let first = cases(&device, &choice, Scope::Sample).unwrap();
        let second = cases(&device, &choice, Scope::Sample).unwrap();
        assert_eq!(first, second);
        let mut ids: Vec<&str> = first.iter().map(|c| c.id.as_str()).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), first.len(), "ids of {op} are unique");
        let full = cases(&device, &choice, Scope::Full).unwrap();
        assert!(full.len() > first.len() || op == "cast", "{op}: {} and {}", full.len(), first.len());
    }
}

/// Guard pages end a process that writes too far, and the message names the row. Runs this test again as a child that does it.
#[cfg(unix)]
#[test]
fn guard_pages_trap() {
    use perjoule_tests::guard::{GuardPages, Side, report_traps};
    use std::os::unix::process::ExitStatusExt;
    const CHILD: &str = "PERJOULE_TESTS_TRAP";
    if let Ok(side) = std::env::var(CHILD) {
        report_traps();
        let device = device();
        let (fault, side) = match side.as_str() {
            "behind" => (Fault::Behind, Side::Right),
            _ => (Fault::InFront, Side::Left),
        };
        let kernel = row("matmul", fault);
        let choice = Choice { kernel, config: 0, pack: None };
        let place: &dyn Place = &GuardPages(side);
        for case in cases(&device, &choice, Scope::Sample).unwrap() {
            run(&device, choice, &case, &[place]);
        }
        return;
    }
    for side in ["behind", "in front"] {
        let program = std::env::current_exe().unwrap();
        let output = std::process::Command::new(program)
            .args(["guard_pages_trap", "--exact", "--nocapture"])
            .env(CHILD, side)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.signal().is_some(), "{side}: {:?} {text}", output.status);
        assert!(text.contains("matmul_oracle_"), "{side}: {text}");
    }
}
