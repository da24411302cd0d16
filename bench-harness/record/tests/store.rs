//! The store under concurrent writers, sudden death and disks that refuse. Writers are processes of their own: this test
//! binary, started again with `PERJOULE_TEST_STORE` set.
#![cfg(unix)]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use perjoule_record::{Environment, Kind, Problem, Record, Store, StoreError, read_file, to_line};

const FILE: &str = "PERJOULE_TEST_STORE";
const WRITER: &str = "PERJOULE_TEST_WRITER";
const COUNT: &str = "PERJOULE_TEST_COUNT";

fn record(writer: u64, number: u64) -> Record {
    let mut record = Record::new(Kind::Kernel, &Environment::default());
    record.workload.n_threads = Some(writer);
    record.workload.seed = Some(number);
    // Several pages, so that a line is not written atomically by luck.
    record.timing.samples_ns = Some(vec![number as f64; 2000]);
    record
}

/// Not a test of its own: the body of the processes that the tests below start. Prints each record's number once it
/// is stored, or the error.
#[test]
fn child() {
    let Some(file) = std::env::var_os(FILE) else { return };
    let number = |name| std::env::var(name).unwrap().parse::<u64>().unwrap();
    let mut store = Store::open(file).unwrap();
    for i in 0..number(COUNT) {
        match store.append(&record(number(WRITER), i)) {
            Ok(()) => println!("stored {i}"),
            Err(error) => {
                println!("error {error}");
                break;
            }
        }
        std::io::stdout().flush().unwrap();
    }
}

fn child_command(file: &Path, writer: u64, count: u64) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child", "--nocapture"]);
    command.env(FILE, file).env(WRITER, writer.to_string()).env(COUNT, count.to_string());
    command.stdout(Stdio::piped());
    command
}

fn finish(child: Child) -> String {
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn two_processes_lose_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("new folder/results.jsonl");
    let children = [1, 2].map(|writer| child_command(&file, writer, 500).spawn().unwrap());
    for child in children {
        assert!(!finish(child).contains("error"));
    }
    let (records, warnings) = read_file(&file).unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
    for writer in [1, 2] {
        let of_writer = records.iter().filter(|record| record.workload.n_threads == Some(writer));
        let numbers: Vec<u64> = of_writer.map(|record| record.workload.seed.unwrap()).collect();
        assert_eq!(numbers, (0..500).collect::<Vec<_>>(), "writer {writer}");
    }
}

#[test]
fn appending_waits_for_the_lock() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("results.jsonl");
    let other = std::fs::File::create(&file).unwrap();
    other.lock().unwrap();
    let child = child_command(&file, 1, 1).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert_eq!(other.metadata().unwrap().len(), 0, "written while another process held the lock");
    other.unlock().unwrap();
    finish(child);
    assert_eq!(read_file(&file).unwrap().0.len(), 1);
}

#[test]
fn a_killed_writer_loses_at_most_the_record_in_flight() {
    let folder = tempfile::tempdir().unwrap();
    for round in 0..8 {
        let file = folder.path().join(format!("{round}.jsonl"));
        let mut child = child_command(&file, 1, u64::MAX).spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut stored = 0;
        let mut line = String::new();
        while stored < 3 * round + 1 {
            line.clear();
            assert_ne!(output.read_line(&mut line).unwrap(), 0, "the writer ended early");
            stored += u64::from(line.starts_with("stored"));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        stored +=
            output.lines().map_while(Result::ok).filter(|line| line.starts_with("stored")).count() as u64;

        let mut store = Store::open(&file).unwrap();
        store.append(&record(2, 0)).unwrap();
        let (records, warnings) = read_file(&file).unwrap();
        assert!(warnings.len() <= 1, "{warnings:?}");
        let (last, of_child) = records.split_last().unwrap();
        assert_eq!(last.workload.n_threads, Some(2));
        let numbers: Vec<u64> = of_child.iter().map(|record| record.workload.seed.unwrap()).collect();
        assert_eq!(numbers, (0..numbers.len() as u64).collect::<Vec<_>>());
        // The one in between was stored, but its writer died before it could say so.
        assert!(
            (stored..=stored + 1).contains(&(numbers.len() as u64)),
            "{stored} said, {} kept",
            numbers.len()
        );
    }
}

#[test]
fn a_torn_tail_is_ended_first() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("results.jsonl");
    let whole = to_line(&record(1, 0)).unwrap();
    for (tail, lost) in [(&whole[..whole.len() / 2], 1), (whole.trim_end(), 0), ("", 0), ("\n", 0)] {
        std::fs::write(&file, format!("{whole}{tail}")).unwrap();
        Store::open(&file).unwrap().append(&record(1, 1)).unwrap();
        let (records, warnings) = read_file(&file).unwrap();
        assert_eq!(warnings.len(), lost);
        assert!(warnings.iter().all(|warning| warning.line == 2 && matches!(warning.problem, Problem::Torn)));
        assert_eq!((records[0].workload.seed, records.last().unwrap().workload.seed), (Some(0), Some(1)));
    }
}

/// With SIGXFSZ ignored, as a binary should, the limit is an error; what was stored before stays and no torn line is
/// left.
#[test]
fn a_file_size_limit_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("results.jsonl");
    let mut command = child_command(&file, 1, 100);
    let program = command.get_program().to_owned();
    let mut limited = Command::new("sh");
    // 64 blocks of 512 bytes in a POSIX sh, of 1024 in bash: both hold a few of the 100 records.
    limited.args(["-c", r#"trap "" XFSZ; ulimit -f 64; exec "$@""#, "sh"]).arg(program);
    limited.args(command.get_args()).envs(command.get_envs().map(|(k, v)| (k, v.unwrap())));
    command = limited;
    let output = finish(command.stdout(Stdio::piped()).spawn().unwrap());
    let stored = output.lines().filter(|line| line.starts_with("stored")).count();
    let error = output.lines().find(|line| line.starts_with("error")).expect("the limit is reached");
    assert!(error.contains(file.to_str().unwrap()) && error.contains("ulimit -f"), "{error}");
    let (records, warnings) = read_file(&file).unwrap();
    assert!(stored > 0);
    assert_eq!((records.len(), warnings.len()), (stored, 0));
    Store::open(&file).unwrap().append(&record(2, 0)).unwrap();
    assert_eq!(read_file(&file).unwrap().0.len(), stored + 1);
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_an_error() {
    let error = Store::open("/dev/full").unwrap().append(&record(1, 0)).unwrap_err();
    assert!(matches!(error, StoreError::Append { .. }));
    let text = error.to_string();
    assert!(text.contains("/dev/full") && text.contains("free some space"), "{text}");
}

#[test]
fn what_cannot_be_opened_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let blocker = folder.path().join("a file");
    std::fs::write(&blocker, "").unwrap();
    for path in [folder.path().to_owned(), blocker.join("results.jsonl")] {
        let error = Store::open(&path).unwrap_err();
        assert!(matches!(error, StoreError::Open { .. }));
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    }
    let missing = folder.path().join("missing.jsonl");
    assert!(matches!(read_file(&missing), Err(StoreError::Open { .. })));
    assert!(matches!(read_file(folder.path()), Err(StoreError::Open { .. } | StoreError::Read { .. })));
}

#[test]
fn an_overlong_record_is_refused_before_writing() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("results.jsonl");
    let mut store = Store::open(&file).unwrap();
    store.append(&record(1, 0)).unwrap();
    let before = std::fs::read(&file).unwrap();
    let mut long = record(1, 1);
    long.timing.samples_ns = Some(vec![0.123456789012345; 2_000_000]);
    assert!(matches!(store.append(&long), Err(StoreError::TooLong { .. })));
    assert_eq!(std::fs::read(&file).unwrap(), before);
}
