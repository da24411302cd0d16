//! Runs the tests of the CPU's AVX-512 rows where the processor has no AVX-512: in a Linux guest under Bochs, which interprets it.
//!
//! Bochs boots a CD image made here: isolinux, a Debian kernel, and an initial file system that holds busybox, the test executables
//! with their shared libraries, and an `/init` that runs them and powers off. What the guest writes to its serial port comes back
//! through a file. Needs Debian or Ubuntu on x86-64 with `bochs` installed; the other packages are downloaded and unpacked, not
//! installed, and root is not needed.

use crate::cargo_command;
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Packages that are unpacked beside the kernel's.
const PACKAGES: [&str; 6] =
    ["busybox-static", "isolinux", "syslinux-common", "genisoimage", "bochsbios", "vgabios"];
/// The package that depends on the current kernel; the flavour for clouds has few drivers and boots fast.
const KERNEL: &str = "linux-image-cloud-amd64";
/// What the guest's processor must offer.
const NEEDED: [&str; 4] = ["avx512f", "avx512bw", "avx512dq", "avx512vl"];

// What the guest writes around the output of each executable and at its end.
const BEGIN: &str = "@begin";
const END: &str = "@end";
const LACKS: &str = "@lacks";
const DONE: &str = "@done";

/// What `cargo xtask emulate` takes.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Bochs' model of the processor, such as corei7_skylake_x or tigerlake (`bochs --help cpu` lists them).
    #[arg(long, default_value = "corei7_skylake_x")]
    cpu: String,
    /// Minutes after which the guest is stopped and the run counts as failed.
    #[arg(long, default_value_t = 60)]
    minutes: u64,
    /// Passed on to every test executable, such as a part of a test's name; without it, a selection that keeps to the time limit.
    #[arg(last = true)]
    filter: Vec<String>,
}

/// One test executable and what the guest passes to it.
pub(crate) struct Test {
    pub(crate) name: String,
    pub(crate) executable: PathBuf,
    arguments: Vec<String>,
}

/// What came back from one executable.
#[derive(Default)]
struct Outcome {
    passed: usize,
    failed: usize,
    ignored: usize,
    /// Absent where it did not end.
    status: Option<i32>,
}

/// Builds the tests, boots the guest, and fails unless each executable passed at least one test and failed none.
pub(crate) fn emulate(options: &Options) -> Result<()> {
    ensure!(cfg!(all(target_arch = "x86_64", target_os = "linux")), "needs Linux on x86-64");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    let work = std::path::absolute(target)?.join("emulate");
    fs::create_dir_all(&work)?;
    ensure!(
        Command::new("bochs").args(["--help", "cpu"]).stdin(Stdio::null()).output().is_ok(),
        "bochs is missing: apt-get install bochs"
    );
    let root = unpacked(&work)?;
    let mut tests = built(&["-p", "perjoule-cpu", "--lib", "--tests"], &[])?;
    tests.extend(built(&["-p", "perjoule-conformance", "--test", "conformance"], &[])?);
    for test in &mut tests {
        test.arguments = match options.filter.as_slice() {
            [] => selection(&test.name).iter().map(|a| a.to_string()).collect(),
            filter => filter.to_vec(),
        };
    }
    image(&work, &root, &tests)?;
    let log = boot(&work, &root, options, &tests)?;
    report(&log, &tests, options)
}

/// What runs without a filter: an executable's tests less those that take an interpreter many minutes.
fn selection(name: &str) -> &'static [&'static str] {
    match name {
        "perjoule_cpu" => &["--skip", "team::", "--skip", "results_do_not_depend", "--skip", "every_pair"],
        "attention" => &["--skip", "shapes_around_tiles", "--skip", "windows_caps"],
        // those on an odd number of lanes, a sixth of the cases
        "conformance" => &["avx512", "--skip", "cpu::"],
        _ => &[],
    }
}

/// The folder that holds the packages' files, downloaded and unpacked the first time.
fn unpacked(work: &Path) -> Result<PathBuf> {
    let (root, downloads) = (work.join("root"), work.join("packages"));
    let complete = root.join("complete");
    if complete.exists() {
        return Ok(root);
    }
    let depends = output(Command::new("apt-cache").args(["depends", KERNEL]))?;
    let kernel = depends.lines().find_map(|l| l.trim().strip_prefix("Depends: linux-image-"));
    let kernel = kernel.with_context(|| format!("no package {KERNEL}: apt-get update, on Debian"))?;
    if downloads.exists() {
        fs::remove_dir_all(&downloads)?;
    }
    fs::create_dir_all(&downloads)?;
    let mut download = Command::new("apt-get");
    download.arg("download").args(PACKAGES).arg(format!("linux-image-{kernel}")).current_dir(&downloads);
    output(&mut download).context("apt-get update may be due")?;
    for package in fs::read_dir(&downloads)? {
        output(Command::new("dpkg").arg("-x").arg(package?.path()).arg(&root))?;
    }
    fs::remove_dir_all(&downloads)?;
    File::create(complete)?;
    Ok(root)
}

/// Builds test executables as `cargo test --release` does and says where they are.
pub(crate) fn built(args: &[&str], env: &[(&str, &str)]) -> Result<Vec<Test>> {
    let mut command = cargo_command();
    command.envs(env.iter().copied());
    command.args(["test", "--release", "--no-run", "--message-format=json"]).args(args);
    let messages = output(command.stderr(Stdio::inherit()))?;
    // of each artefact only the path is of interest; paths that JSON escapes do not occur on Linux
    let paths = messages.lines().filter_map(|l| l.split_once(r#""executable":""#)?.1.split('"').next());
    let tests = paths.map(|path| {
        let executable = PathBuf::from(path);
        let stem = executable.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let name = stem.rsplit_once('-').map_or(stem.as_str(), |(name, _)| name).to_string();
        Test { name, executable, arguments: Vec::new() }
    });
    let tests: Vec<Test> = tests.collect();
    ensure!(!tests.is_empty(), "cargo test {} built no test executable", args.join(" "));
    Ok(tests)
}

/// Writes `boot.iso`.
fn image(work: &Path, root: &Path, tests: &[Test]) -> Result<()> {
    let files = work.join("iso");
    fs::create_dir_all(&files)?;
    let boot = fs::read_dir(root.join("boot"))?.filter_map(|e| e.ok().map(|e| e.path()));
    let kernel = boot.into_iter().find(|p| p.to_string_lossy().contains("vmlinuz")).context("no kernel")?;
    fs::copy(kernel, files.join("vmlinuz"))?;
    fs::copy(root.join("usr/lib/ISOLINUX/isolinux.bin"), files.join("isolinux.bin"))?;
    fs::copy(root.join("usr/lib/syslinux/modules/bios/ldlinux.c32"), files.join("ldlinux.c32"))?;
    // XSAVEC is hidden: the kernel gives AVX up where its area has another size than it computes, as in Bochs 2.7
    let options = "console=ttyS0 quiet loglevel=1 nokaslr mitigations=off tsc=reliable lpj=4000000 \
                   clearcpuid=xsavec,xsaves";
    let menu = format!("DEFAULT l\nPROMPT 0\nLABEL l\n KERNEL vmlinuz\n INITRD initrd\n APPEND {options}\n");
    fs::write(files.join("isolinux.cfg"), menu)?;

    let mut archive = Archive::default();
    archive.file("init", init(tests).as_bytes(), true);
    archive.file("bin/busybox", &fs::read(root.join("bin/busybox"))?, true);
    for folder in ["dev", "proc", "sys", "tmp"] {
        archive.folder(folder);
    }
    // the kernel opens it for /init, before anything is mounted
    archive.entry("dev/console", 0o020_600, &[], (5, 1));
    let mut libraries = BTreeSet::new();
    for test in tests {
        let stripped = work.join("stripped");
        output(Command::new("strip").arg("--strip-debug").arg(&test.executable).arg("-o").arg(&stripped))?;
        archive.file(&format!("tests/{}", test.name), &fs::read(stripped)?, true);
        let listed = output(Command::new("ldd").arg(&test.executable))?;
        libraries.extend(listed.split_whitespace().filter(|w| w.starts_with('/')).map(str::to_string));
    }
    for library in libraries {
        archive.file(&library[1..], &fs::read(&library)?, true);
    }
    fs::write(files.join("initrd"), archive.finish())?;

    let mut iso = Command::new(root.join("usr/bin/genisoimage"));
    iso.args(["-quiet", "-b", "isolinux.bin", "-c", "boot.cat", "-no-emul-boot", "-boot-load-size", "4"]);
    output(iso.args(["-boot-info-table", "-o"]).arg(work.join("boot.iso")).arg(files))?;
    Ok(())
}

/// The guest's first process: a script for busybox.
fn init(tests: &[Test]) -> String {
    let mut script = String::from("#!/bin/busybox sh\n/bin/busybox --install -s /bin\n");
    for (kind, place) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys"), ("tmpfs", "/tmp")] {
        let _ = writeln!(script, "mount -t {kind} none {place}");
    }
    script.push_str("export PERJOULE_REQUIRE=cpu\nlacks=\n");
    for flag in NEEDED {
        let _ = writeln!(script, "grep -qw {flag} /proc/cpuinfo || {{ echo {LACKS} {flag}; lacks=1; }}");
    }
    script.push_str("if [ -z \"$lacks\" ]; then\n");
    for Test { name, arguments, .. } in tests {
        let quoted: Vec<String> =
            arguments.iter().map(|a| format!("'{}'", a.replace('\'', r"'\''"))).collect();
        let arguments = quoted.join(" ");
        let _ = writeln!(script, "echo {BEGIN} {name}");
        let _ = writeln!(script, "/tests/{name} --test-threads 1 --color never {arguments}");
        // a line of its own, whatever the executable wrote last
        let _ = writeln!(script, "status=$?; echo; echo {END} {name} $status");
    }
    // the serial port is slow: it must have sent the last line before the power goes
    let _ = writeln!(script, "fi\necho {DONE}\nsleep 1\npoweroff -f");
    script
}

/// Runs the guest to its end or the time limit, showing what it writes, which it returns.
fn boot(work: &Path, root: &Path, options: &Options, tests: &[Test]) -> Result<String> {
    let serial = work.join("serial.txt");
    let shared = root.join("usr/share");
    let machine = format!(
        "config_interface: textconfig
display_library: rfb, options=\"timeout=0\"
romimage: file={shared}/bochs/BIOS-bochs-latest
vgaromimage: file={shared}/vgabios/vgabios-stdvga.bin
cpu: model={cpu}, count=1, ips=50000000, reset_on_triple_fault=0
memory: guest=1024, host=1024
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata0-master: type=cdrom, path={work}/boot.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev={serial}
plugin_ctrl: speaker=0, sb16=0, es1370=0, voodoo=0, gameport=0, parallel=0
clock: sync=none
log: {work}/bochs.log
panic: action=fatal
error: action=report
info: action=ignore
",
        shared = shared.display(),
        cpu = options.cpu,
        work = work.display(),
        serial = serial.display(),
    );
    fs::write(work.join("bochsrc"), machine)?;
    File::create(&serial)?;
    let names: Vec<&str> = tests.iter().map(|t| t.name.as_str()).collect();
    eprintln!(
        "xtask: booting a {} with {} (minutes pass before the first line)",
        options.cpu,
        names.join(", ")
    );
    let mut bochs = Command::new("bochs");
    bochs.args(["-q", "-f"]).arg(work.join("bochsrc")).current_dir(work).stdin(Stdio::piped());
    bochs.stdout(File::create(work.join("bochs.out"))?).stderr(File::create(work.join("bochs.err"))?);
    let mut child = Running(bochs.spawn().context("bochs could not be started")?);
    // Debian's build has a debugger, which waits for "continue"; the pipe closes behind it, so that it never waits again
    child.0.stdin.take().context("a pipe was asked for")?.write_all(b"c\n")?;

    let (started, limit) = (Instant::now(), Duration::from_secs(options.minutes * 60));
    let mut lines = File::open(&serial)?;
    let mut log = String::new();
    loop {
        let ended = child.0.try_wait()?.is_some();
        let mut bytes = Vec::new();
        lines.read_to_end(&mut bytes)?;
        let text = String::from_utf8_lossy(&bytes).replace('\r', "");
        print!("{text}");
        std::io::stdout().flush()?;
        log.push_str(&text);
        if ended || log.contains("Kernel panic") {
            break;
        }
        if started.elapsed() > limit {
            eprintln!("\nxtask: stopped after {} minutes (--minutes sets the limit)", options.minutes);
            break;
        }
        std::thread::sleep(Duration::from_millis(300));
    }
    eprintln!(
        "xtask: the guest ran for {} s; its files are in {}",
        started.elapsed().as_secs(),
        work.display()
    );
    Ok(log)
}

/// A process that ends with its owner.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // it has ended already, as a rule: neither call has anything to report
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Prints what each executable did; an error unless all ran and passed.
fn report(log: &str, tests: &[Test], options: &Options) -> Result<()> {
    if let Some(line) = log.lines().find(|l| l.starts_with(LACKS)) {
        bail!("the guest's processor ({}) lacks {}", options.cpu, &line[LACKS.len()..].trim());
    }
    ensure!(log.contains(BEGIN), "the guest ran no test; see bochs.out, bochs.err and bochs.log");
    let mut bad = Vec::new();
    println!("\n{:<24} {:>7} {:>7} {:>8}", format!("under {}", options.cpu), "passed", "failed", "ignored");
    for test in tests {
        let outcome = outcome(log, &test.name);
        let end = match outcome.status {
            Some(0) if outcome.passed == 0 => "  no test ran",
            Some(0) => "",
            Some(_) => "  failed",
            None => "  did not end",
        };
        println!("{:<24} {:>7} {:>7} {:>8}{end}", test.name, outcome.passed, outcome.failed, outcome.ignored);
        // a filter may leave an executable without tests, a selection of ours may not
        let idle = outcome.status == Some(0) && outcome.passed == 0 && !options.filter.is_empty();
        if !end.is_empty() && !idle {
            bad.push(test.name.as_str());
        }
    }
    ensure!(bad.is_empty(), "under {}: {}", options.cpu, bad.join(", "));
    let passed: usize = tests.iter().map(|t| outcome(log, &t.name).passed).sum();
    ensure!(passed > 0, "no test has a name like {}", options.filter.join(" "));
    ensure!(log.contains(DONE), "the guest did not come to its end");
    println!("{passed} tests passed with AVX-512 under {}", options.cpu);
    Ok(())
}

/// Reads the counts of one executable out of what the guest wrote.
fn outcome(log: &str, name: &str) -> Outcome {
    let mut outcome = Outcome::default();
    let (begin, end) = (format!("{BEGIN} {name}"), format!("{END} {name} "));
    let own = log.lines().skip_while(|l| *l != begin).skip(1);
    for line in own.take_while(|l| !l.starts_with(BEGIN)) {
        if let Some(status) = line.strip_prefix(&end) {
            outcome.status = status.trim().parse().ok();
        }
        // "test result: ok. 4 passed; 0 failed; 0 ignored; ...", or one line a test where it did not come to that
        if let Some(counts) = line.strip_prefix("test result: ") {
            let words: Vec<&str> = counts.split([' ', ';', '.']).filter(|w| !w.is_empty()).collect();
            let count = |word| {
                let at = words.iter().position(|w| *w == word)?;
                words[at.checked_sub(1)?].parse().ok()
            };
            outcome.passed = count("passed").unwrap_or(0);
            outcome.failed = count("failed").unwrap_or(0);
            outcome.ignored = count("ignored").unwrap_or(0);
            continue;
        }
        if let Some((_, result)) = line.strip_prefix("test ").and_then(|l| l.rsplit_once(" ... ")) {
            match result.split_whitespace().next() {
                Some("ok") => outcome.passed += 1,
                Some("FAILED") => outcome.failed += 1,
                Some("ignored") => outcome.ignored += 1,
                _ => {}
            }
        }
    }
    outcome
}

/// Runs a command; what it wrote, or an error that quotes it.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let shown = format!("{} {}", command.get_program().display(), {
        let args: Vec<_> = command.get_args().map(|a| a.to_string_lossy()).collect();
        args.join(" ")
    });
    let output = command.output().with_context(|| format!("{shown} could not be started"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{shown} failed ({})\n{errors}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A cpio archive in the format "newc" (the kernel's Documentation/driver-api/early-userspace/buffer-format.rst).
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    folders: BTreeSet<String>,
    entries: u32,
}

impl Archive {
    fn entry(&mut self, name: &str, mode: u32, data: &[u8], (major, minor): (u32, u32)) {
        self.entries += 1;
        let (size, name_size) = (data.len() as u32, name.len() as u32 + 1);
        // inode, mode, user, group, links, time, size, device of the file, device it is, length of the name, checksum
        let fields = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, major, minor, name_size, 0];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08X}").bytes());
        }
        self.bytes.extend(name.bytes().chain([0]));
        self.pad();
        self.bytes.extend(data);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// A folder and those above it, once each.
    fn folder(&mut self, path: &str) {
        if !path.is_empty() && self.folders.insert(path.to_string()) {
            self.folder(path.rsplit_once('/').map_or("", |(above, _)| above));
            self.entry(path, 0o040_755, &[], (0, 0));
        }
    }

    fn file(&mut self, path: &str, data: &[u8], executable: bool) {
        self.folder(path.rsplit_once('/').map_or("", |(above, _)| above));
        self.entry(path, if executable { 0o100_755 } else { 0o100_644 }, data, (0, 0));
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[], (0, 0));
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
@begin ops

running 2 tests
test norms ... ok
test softmax ... FAILED

test result: FAILED. 1 passed; 1 failed; 3 ignored; 0 measured; 4 filtered out; finished in 0.27s

@end ops 101
@begin conformance
test cpu::add_any_256_cpu_avx512::run256::f32-dense  ... ok
test cpu::add_any_256_cpu_avx512::run256::bf16-dense ... ok
test cpu::add_any_256_cpu_avx512::run256::f16-dense  ... ";

    #[test]
    fn counts_are_those_of_the_executable() {
        let counts = |name| {
            let Outcome { passed, failed, ignored, status } = outcome(LOG, name);
            (passed, failed, ignored, status)
        };
        assert_eq!(counts("ops"), (1, 1, 3, Some(101)));
        // it stopped in the middle
        assert_eq!(counts("conformance"), (2, 0, 0, None));
        assert_eq!(counts("attention"), (0, 0, 0, None));
    }

    #[test]
    fn only_a_complete_run_without_failures_is_good() {
        let options = |filter: &[&str]| Options {
            cpu: "tigerlake".into(),
            minutes: 1,
            filter: filter.iter().map(|f| f.to_string()).collect(),
        };
        let test = |name: &str| Test { name: name.into(), executable: PathBuf::new(), arguments: vec![] };
        let (ops, attention) = (test("ops"), test("attention"));
        let good = "@begin ops\ntest result: ok. 2 passed; 0 failed; 0 ignored\n\n@end ops 0\n";
        let idle = "@begin attention\ntest result: ok. 0 passed; 0 failed; 0 ignored\n\n@end attention 0\n";
        let judge = |log: &str, tests: &[Test], filter: &[&str]| report(log, tests, &options(filter));
        assert!(judge(&format!("{good}@done\n"), &[ops], &[]).is_ok());
        let ops = test("ops");
        assert!(judge(good, std::slice::from_ref(&ops), &[]).is_err(), "the guest broke off");
        let tests = [ops, attention];
        let both = format!("{good}{idle}@done\n");
        assert!(judge(&both, &tests, &[]).is_err(), "an executable of the selection is idle");
        assert!(judge(&both, &tests, &["norms"]).is_ok(), "the filter names tests of one executable");
        assert!(
            judge(&format!("{idle}@done\n"), &tests[1..], &["nomrs"]).is_err(),
            "no test has such a name"
        );
        assert!(judge(LOG, &tests[..1], &[]).is_err(), "a test failed");
        let lacks = judge("@lacks avx512bw\n@done\n", &tests, &[]).unwrap_err().to_string();
        assert!(lacks.contains("avx512bw"), "{lacks}");
    }

    #[test]
    fn archives_hold_folders_before_files_and_end_aligned() {
        let mut archive = Archive::default();
        archive.file("a/b/c", b"12345", true);
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        // walked by the format's own lengths: a header of 110 characters, the name, the data, each padded to four
        let (mut at, mut seen) = (0, Vec::new());
        while at < bytes.len() {
            assert_eq!(&bytes[at..at + 6], b"070701");
            let field = |i: usize| {
                let from = at + 6 + 8 * i;
                usize::from_str_radix(std::str::from_utf8(&bytes[from..from + 8]).unwrap(), 16).unwrap()
            };
            let (mode, size, name_size) = (field(1), field(6), field(11));
            let name = String::from_utf8(bytes[at + 110..at + 109 + name_size].to_vec()).unwrap();
            let data = (at + 110 + name_size).next_multiple_of(4);
            if size > 0 {
                assert_eq!(&bytes[data..data + size], b"12345");
            }
            seen.push((name, mode, size));
            at = (data + size).next_multiple_of(4);
        }
        let expected =
            [("a", 0o040_755, 0), ("a/b", 0o040_755, 0), ("a/b/c", 0o100_755, 5), ("TRAILER!!!", 0, 0)];
        assert_eq!(seen, expected.map(|(n, m, s)| (n.to_string(), m, s)));
    }
}
