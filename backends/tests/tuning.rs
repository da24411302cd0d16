//! Tuning tables as files: what was measured decides, survives, and is never trusted when it is damaged.

use perjoule::kernels::op::MatMul;
use perjoule::kernels::tune::Tuning;
use perjoule::{Choice, DType, Device, Op, tuning};
use std::path::Path;

fn device() -> Device {
    perjoule::open_with_threads("cpu", Some(1)).unwrap()
}

fn op(m: usize) -> Op {
    MatMul::linear(m, 96, 64, DType::F32, DType::F32, DType::F32).into()
}

fn is(one: &Choice, other: &Choice) -> bool {
    (one.kernel.name, one.config, one.pack) == (other.kernel.name, other.config, other.pack)
}

/// A choice that predictions do not make.
fn slow(device: &Device, op: &Op) -> Choice {
    let predicted = device.select(op, &[]).unwrap();
    let verdicts = device.explain(op).unwrap();
    let usable = |v: &&perjoule::kernels::Verdict| v.outcome.is_ok() && !v.choice.kernel.vendor;
    let slow = verdicts.iter().rfind(usable).unwrap().choice;
    assert!(!is(&slow, &predicted));
    slow
}

fn measured(op: &Op, choice: &Choice, seconds: f32) -> Tuning {
    let mut tuning = Tuning::new();
    tuning.insert(op, choice, seconds);
    tuning
}

fn is_refused(device: &Device, path: &Path, part: &str) {
    let error = tuning::load_file(device, path).unwrap_err().to_string();
    assert!(error.contains(part) && error.contains(path.to_str().unwrap()), "{error}");
}

#[test]
fn what_was_measured_decides_also_after_the_device_is_opened_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deep/er/table.tsv");
    let (first, op) = (device(), op(64));
    let slow = slow(&first, &op);
    tuning::save_file(&first, &path, measured(&op, &slow, 1e-9)).unwrap();
    assert!(is(&first.select(&op, &[]).unwrap(), &slow), "it holds at once");
    let second = device();
    assert!(!is(&second.select(&op, &[]).unwrap(), &slow), "no file is read unasked");
    tuning::load_file(&second, &path).unwrap();
    assert!(is(&second.select(&op, &[]).unwrap(), &slow));
    let prepared = second.prepare_packed(&op, slow.pack).unwrap();
    assert_eq!(prepared.choice().kernel.name, slow.kernel.name, "plans follow it, too");
}

#[test]
fn two_tuners_at_once_lose_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("table.tsv");
    let sizes = [1, 2, 4, 8, 16, 32, 64, 128];
    std::thread::scope(|scope| {
        for m in sizes {
            let path = &path;
            scope.spawn(move || {
                let device = device();
                let choice = device.select(&op(m), &[]).unwrap();
                tuning::save_file(&device, path, measured(&op(m), &choice, m as f32)).unwrap();
            });
        }
    });
    let device = device();
    tuning::load_file(&device, &path).unwrap();
    let table = device.backend().tuning().unwrap();
    assert_eq!(table.buckets().count(), sizes.len());
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().flatten().map(|e| e.file_name()).collect();
    assert_eq!(left, ["table.tsv"], "nothing temporary stays");
}

#[test]
fn a_torn_or_foreign_file_is_refused_and_only_a_table_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("table.tsv");
    let (device, op) = (device(), op(64));
    let choice = device.select(&op, &[]).unwrap();
    is_refused(&device, &path, "cannot read");
    tuning::save_file(&device, &path, measured(&op, &choice, 1.0)).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    device.set_tuning(None).unwrap();
    std::fs::write(&path, &text[..text.len() - 6]).unwrap();
    is_refused(&device, &path, "");
    std::fs::write(&path, text.replace("threads\t1", "threads\t7")).unwrap();
    is_refused(&device, &path, "its threads is \"7\"");
    assert!(device.backend().tuning().is_none(), "what was refused changes nothing");
    // stale measurements are replaced, not mixed
    tuning::save_file(&device, &path, measured(&op, &choice, 2.0)).unwrap();
    assert_eq!(device.backend().tuning().unwrap().seconds(&op, &choice), Some(2.0));
    for foreign in [b"my thesis".as_slice(), &[0xff, 0xfe]] {
        std::fs::write(&path, foreign).unwrap();
        let error = tuning::save_file(&device, &path, measured(&op, &choice, 2.0)).unwrap_err().to_string();
        assert!(error.contains("choose another file"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), foreign);
    }
}
