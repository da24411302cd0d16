//! `perjoule report` from outside: what it writes, what it refuses, and what a browser makes of it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Instant;

/// The binary that `PERJOULE_BINARY` names, or the one beside this test.
fn binary() -> PathBuf {
    if let Some(named) = std::env::var_os("PERJOULE_BINARY") {
        return named.into();
    }
    let test = std::env::current_exe().unwrap();
    let folder = test.ancestors().nth(2).unwrap();
    folder.join(format!("perjoule{}", std::env::consts::EXE_SUFFIX))
}

fn example() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/example/records.jsonl")
}

fn report(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(binary()).arg("report").args(arguments).current_dir(folder).output().unwrap()
}

fn good(folder: &Path, arguments: &[&str]) -> String {
    let output = report(folder, arguments);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {stderr}");
    stderr
}

fn refused(folder: &Path, arguments: &[&str], part: &str) {
    let output = report(folder, arguments);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
    let errors: Vec<&str> = stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    assert!(errors.len() == 1 && errors[0].contains(part), "{arguments:?}: {part:?} is not in {stderr}");
}

#[test]
fn every_format_is_written_and_the_same_twice() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let records = example();
    let records = records.to_str().unwrap();
    let read = |name: &str| std::fs::read_to_string(at.join(name)).unwrap();
    good(at, &[records, "-o", "a.html"]);
    good(at, &[records, "-o", "b.html"]);
    assert_eq!(read("a.html"), read("b.html"));
    assert!(read("a.html").len() < 3 << 20);
    good(at, &[records]);
    assert_eq!(read("report.html"), read("a.html"), "the default name");
    good(at, &[records, "-o", "r.md", "--title", "A <b> & |"]);
    assert!(read("r.md").starts_with("# A &lt;b> &amp; |\n") && read("r.md").contains("modelled"));
    good(at, &[records, "-o", "r.csv"]);
    let lines = std::fs::read_to_string(records).unwrap().lines().count();
    assert!(read("r.csv").starts_with("schema_version,kind,") && read("r.csv").lines().count() == lines + 1);
    let table = report(at, &[records, "--format", "md"]);
    assert!(String::from_utf8(table.stdout).unwrap().contains("## Kernels"));
}

#[test]
fn damaged_lines_are_named_and_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(example()).unwrap();
    let first = text.lines().next().unwrap();
    std::fs::write(folder.path().join("d.jsonl"), format!("{first}\n{{\"a\": 1}}\n{}", &first[..50]))
        .unwrap();
    let stderr = good(folder.path(), &["d.jsonl"]);
    assert!(
        stderr.contains("d.jsonl: line 2: not a record") && stderr.contains("line 3: cut off"),
        "{stderr}"
    );
    let page = std::fs::read_to_string(folder.path().join("report.html")).unwrap();
    assert!(page.contains("2 lines could not be read") && page.contains("line 3: cut off"));
    std::fs::write(folder.path().join("n.jsonl"), "nothing\n").unwrap();
    refused(folder.path(), &["n.jsonl"], "no records that can be read in n.jsonl");
    refused(folder.path(), &["missing.jsonl"], "missing.jsonl");
    refused(folder.path(), &["d.jsonl", "-o", "x.pdf"], "--format");
    refused(folder.path(), &["d.jsonl", "-o", "no/x.html"], "cannot write no/x.html");
    refused(folder.path(), &["d.jsonl", "--class", "abacus"], "abacus");
    #[cfg(target_os = "linux")]
    refused(folder.path(), &["d.jsonl", "-o", "/dev/full"], "free some space");
}

#[test]
fn classes_are_predictions_and_say_so() {
    let folder = tempfile::tempdir().unwrap();
    let records = example();
    good(folder.path(), &[records.to_str().unwrap(), "--class", "nvidia-h100-sxm", "-o", "c.html"]);
    let page = std::fs::read_to_string(folder.path().join("c.html")).unwrap();
    assert!(page.contains("nvidia-h100-sxm") && page.contains("not measured, each with a band"));
}

/// Ten thousand records made of the example's, each a little different.
fn many(path: &Path) {
    let text = std::fs::read_to_string(example()).unwrap();
    let records: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut lines = String::new();
    for i in 0..10_000usize {
        let mut record = records[i % records.len()].clone();
        let factor = 1.0 + (i as f64 * 0.618).fract();
        for field in ["median_ns", "gflops", "gbps", "avg_ts"] {
            if let Some(value) = record[field].as_f64() {
                record[field] = (value * factor).into();
            }
        }
        record["shape"] = format!("m={},n={},k=64", i % 97, i % 89).into();
        lines += &format!("{record}\n");
    }
    std::fs::write(path, lines).unwrap();
}

#[test]
fn ten_thousand_records_fit() {
    let folder = tempfile::tempdir().unwrap();
    many(&folder.path().join("many.jsonl"));
    let start = Instant::now();
    good(folder.path(), &["many.jsonl"]);
    let size = std::fs::metadata(folder.path().join("report.html")).unwrap().len();
    println!("10,000 records: {size} bytes in {:.2} s", start.elapsed().as_secs_f64());
    assert!(size < 3 << 20, "{size} bytes");
}

/// Where Chromium is: `PERJOULE_CHROMIUM`, or a usual name on the path.
fn chromium() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("PERJOULE_CHROMIUM") {
        return Some(named.into());
    }
    let path = std::env::var_os("PATH")?;
    let names = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
    std::env::split_paths(&path)
        .find_map(|folder| names.iter().map(|name| folder.join(name)).find(|p| p.is_file()))
}

/// The page after its scripts ran, and what the console had to say.
fn browse(chromium: &Path, page: &Path, profile: &Path) -> (String, Vec<String>) {
    let output = Command::new(chromium)
        .args([
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-logging=stderr",
            "--window-size=1280,900",
        ])
        .args(["--virtual-time-budget=20000", "--dump-dom"])
        .arg(format!("--user-data-dir={}", profile.display()))
        .arg(format!("file://{}", page.display()))
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let console = stderr.lines().filter(|line| line.contains("CONSOLE")).map(str::to_owned).collect();
    (String::from_utf8_lossy(&output.stdout).into_owned(), console)
}

#[test]
fn a_browser_draws_every_chart_without_complaint() {
    let Some(chromium) = chromium() else {
        println!("ignored: no Chromium on the path; PERJOULE_CHROMIUM may name one");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let records = example();
    good(at, &[records.to_str().unwrap(), "-o", "plain.html"]);
    many(&at.join("many.jsonl"));
    good(at, &["many.jsonl", "-o", "many.html"]);
    // names that try to leave their place, and numbers that no axis holds
    let nasty = "</SCRIPT><script>document.title='owned'</script><!-- \u{2028}'\"`${1}{{2}}";
    let mut lines = String::new();
    for line in std::fs::read_to_string(&records).unwrap().lines() {
        let mut record: serde_json::Value = serde_json::from_str(line).unwrap();
        for field in ["op", "kernel", "shape", "model", "device_name", "dtype", "command", "energy_source"] {
            if record[field].is_string() {
                record[field] = nasty.into();
            }
        }
        lines += &format!("{record}\n");
        record["gflops"] = 1e308.into();
        record["avg_ts"] = 1e308.into();
        record["kernel"] = "k".repeat(100_000).into();
        lines += &format!("{record}\n");
    }
    std::fs::write(at.join("nasty.jsonl"), lines).unwrap();
    good(at, &["nasty.jsonl", "-o", "nasty.html", "--title", nasty]);
    for name in ["plain.html", "nasty.html", "many.html"] {
        // on a loaded machine the browser's own budget may end before the charts do: that is no fault of the page
        let mut tries = (0..3).map(|_| browse(&chromium, &at.join(name), &at.join("profile")));
        let finished = |(page, console): &(String, Vec<String>)| {
            page.contains("data-charts=\"drawn\"") || !console.is_empty()
        };
        let (page, console) = tries.find(finished).unwrap_or_else(|| panic!("{name}: charts are missing"));
        assert!(console.is_empty(), "{name}: {console:?}");
        assert!(!page.contains("chart failed") && !page.contains("<title>owned"), "{name}");
        let drawn = page.matches("<canvas").count() + page.matches("<svg").count();
        assert!(drawn >= page.matches("class=\"chart").count() && drawn > 3, "{name}: {drawn}");
    }
}
