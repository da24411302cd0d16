//! The suite passes what is right and catches what is wrong, each fault by name.

use perjoule::cpu::{CpuDevice, Options};
use perjoule_kernels::{
    Buffer, Candidate, Choice, Comm, Device, DeviceInfo, Error, Kernel, Reason, Request,
    Result as KernelResult, Stream, Table,
};
use perjoule_suite::{Buffers, Failure, Filter, Outcome, Place, Scope, cases, check, run};
use perjoule_tests::OPS;
use perjoule_tests::oracle::{FAULTS, Fault, gated_in_panels, row};
use std::sync::Arc;

fn device() -> CpuDevice {
    CpuDevice::open(&Options { threads: Some(2), ..Options::default() }).unwrap()
}

/// A CPU that joins no group.
struct Apart(CpuDevice);

impl Device for Apart {
    fn info(&self) -> &DeviceInfo {
        self.0.info()
    }
    fn table(&self) -> &Table {
        self.0.table()
    }
    fn alloc(&self, bytes: u64) -> KernelResult<Buffer> {
        self.0.alloc(bytes)
    }
    fn stream(&self) -> KernelResult<Box<dyn Stream>> {
        self.0.stream()
    }
    fn join(&self, _: &[u8], _: u32, _: u32) -> KernelResult<Arc<dyn Comm>> {
        Err(Error::Unsupported { what: "a hermit", why: "as it is".into() })
    }
}

/// A row of `add` that only refuses.
fn refusing(name: &'static str, reject: fn(&Candidate<'_>) -> Option<Reason>) -> &'static Kernel {
    let prepare =
        |_: &Request<'_>| Err(Error::Unsupported { what: "this row", why: "it only refuses".into() });
    Box::leak(Box::new(Kernel::new(name, "add", |_| 1.0, prepare).with_reject(reject)))
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
    let choice = Choice::new(kernel, 0, None);
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
                // the command knows no rows from outside
                assert!(!text.contains("--kernel") && text.contains("seed"), "{text}");
                assert!(text.contains(&failure.case), "{text}");
            }
        }
    }
    assert!(escaped.is_empty(), "{}", escaped.join("\n"));
}

/// A gated product that reads both weights in panels of 8 columns gets them so, and is judged by the plain ones.
#[test]
fn a_row_with_two_packed_weights_is_launched() {
    let device = device();
    let kernel = gated_in_panels(&device);
    device.register(kernel).unwrap();
    let choice = Choice::new(kernel, 0, kernel.packs.first().copied());
    let list = cases(&device, &choice, Scope::Sample).unwrap();
    assert!(list.len() >= 18, "{} cases", list.len());
    for case in &list {
        match run(&device, choice, case, &[BUFFERS]) {
            Outcome::Passed { .. } => {}
            other => panic!("{}: {other:?}", case.id),
        }
    }
}

/// Rows that are never launched are no success: a row that refuses every case for a reason of its own, and a row whose every case is
/// skipped since there is no group.
#[test]
fn a_row_of_which_nothing_was_launched_is_no_success() {
    let device = Apart(device());
    let take =
        |list: &[&str]| Filter { kernels: list.iter().map(|s| s.to_string()).collect(), ..Filter::default() };
    let shy = refusing("add_oracle_shy", |_| Some(Reason::new("would rather not")));
    let masked = refusing("add_oracle_masked", |_| Some(Reason::lacking("needs sve")));
    device.register(shy).unwrap();
    device.register(masked).unwrap();
    let summary = |names: &[&str]| {
        let names: Vec<&str> = names.iter().copied().chain(["argmax"]).collect();
        check(&device, &take(&names), Scope::Sample, None, &mut |_, _, _| true)
    };
    assert!(summary(&[]).is_ok());
    assert!(summary(&["add_oracle_masked"]).is_ok());
    for (name, why) in [("add_oracle_shy", "would rather not"), ("collective", "skipped: a hermit")] {
        let summary = summary(&[name]);
        assert!(!summary.is_ok(), "{name}");
        let idle: Vec<String> = summary.rows.iter().filter_map(|row| row.idle()).collect();
        assert!(idle.len() == 1 && idle[0].contains(why), "{idle:?}");
    }
    // left out for time or by a filter is another matter
    let stopped = check(&device, &take(&["collective"]), Scope::Sample, None, &mut |_, _, _| false);
    assert!(stopped.rows.iter().all(|row| row.idle().is_none()));
    // and on the CPU itself they run
    let device = device.0;
    let summary = check(&device, &take(&["collective"]), Scope::Sample, None, &mut |_, _, _| true);
    assert!(summary.is_ok() && summary.passed() >= 40, "{}", summary.passed());
}

#[test]
fn cases_are_the_same_each_time() {
    let device = device();
    for op in ["matmul", "attention", "cast"] {
        let kernel = row(op, Fault::None);
        let choice = Choice::new(kernel, 0, None);
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
        let choice = Choice::new(kernel, 0, None);
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
