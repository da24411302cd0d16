//! One child process: started, timed until its end, and what it used.
//!
//! Its CPU time and memory are the system's own account (`wait4`), taken when it is waited for: of the process and those of its descendants
//! that were waited for in turn. A process that goes on in the background is in neither.

use anyhow::{Result, anyhow, bail};
use std::ffi::OsString;
use std::fs::File;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Instant;
use wait4::Wait4;

use super::{Interrupted, interrupted};

/// Where a command's output goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Sink {
    /// Nowhere.
    Null,
    /// Where ours goes.
    Inherit,
    /// To a file, anew in each run.
    File(PathBuf),
}

/// A run that has ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Finished {
    /// From the start to the end, in seconds.
    pub(crate) wall_s: f64,
    /// CPU time in user mode, in seconds.
    pub(crate) user_s: f64,
    /// CPU time in the kernel, in seconds.
    pub(crate) system_s: f64,
    /// Largest resident set of a single process, in bytes; `None` where the system counted no more than what it counts of us.
    pub(crate) peak_bytes: Option<u64>,
    /// How it ended.
    pub(crate) status: ExitStatus,
}

impl Finished {
    /// CPU time, in seconds.
    pub(crate) fn cpu_s(&self) -> f64 {
        self.user_s + self.system_s
    }
}

/// How a process ended, in words.
pub(crate) fn ending(status: ExitStatus) -> String {
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        return format!("was ended by signal {signal}");
    }
    match status.code() {
        Some(code) => format!("ended with exit code {code}"),
        None => "ended in an unknown way".into(),
    }
}

/// Starts processes and ends them on Ctrl-C.
pub(crate) struct Processes {
    input: Option<PathBuf>,
    output: Sink,
    guard: guard::Guard,
}

impl Processes {
    /// Processes that read `input` (nothing without one) and write to `output`.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(crate) fn new(input: Option<PathBuf>, output: Sink) -> Result<Self> {
        Ok(Processes { input, output, guard: guard::Guard::new()? })
    }

    /// Runs `words` to its end, whatever that is.
    ///
    /// # Errors
    /// When it cannot be started, and [`Interrupted`].
    pub(crate) fn run(&self, words: &[OsString]) -> Result<Finished> {
        if interrupted() {
            return Err(Interrupted.into());
        }
        let Some((program, arguments)) = words.split_first() else { bail!("an empty command") };
        let mut command = Command::new(program);
        command.args(arguments);
        command.stdin(match &self.input {
            Some(path) => File::open(path).map_err(|error| cannot("read", path, &error))?.into(),
            None => Stdio::null(),
        });
        match &self.output {
            Sink::Null => command.stdout(Stdio::null()).stderr(Stdio::null()),
            Sink::Inherit => &mut command,
            Sink::File(path) => {
                let file = File::create(path).map_err(|error| cannot("write", path, &error))?;
                let copy = file.try_clone().map_err(|error| cannot("write", path, &error))?;
                command.stdout(file).stderr(copy)
            }
        };
        let ours = our_peak();
        let start = Instant::now();
        let child = command.spawn().map_err(|error| not_started(program, &error))?;
        // its end is seen before its account is taken
        self.guard.over(&child)?;
        let wall_s = start.elapsed().as_secs_f64();
        let used = child.wait4().map_err(|error| anyhow!("cannot wait for the command: {error}"))?;
        if ended_by_ctrl_c(used.status) {
            return Err(Interrupted.into());
        }
        let wall_s = if cfg!(unix) { wall_s } else { start.elapsed().as_secs_f64() };
        Ok(Finished {
            wall_s,
            user_s: used.rusage.utime.as_secs_f64(),
            system_s: used.rusage.stime.as_secs_f64(),
            // until the command takes its place, the child is us: what we use at most is in its account
            peak_bytes: Some(used.rusage.maxrss).filter(|&peak| peak > ours),
            status: used.status,
        })
    }
}

fn cannot(what: &str, path: &std::path::Path, error: &std::io::Error) -> anyhow::Error {
    anyhow!("cannot {what} {}: {error}", path.display())
}

fn not_started(program: &OsString, error: &std::io::Error) -> anyhow::Error {
    let name = program.to_string_lossy();
    match error.kind() {
        ErrorKind::NotFound => anyhow!(
            "no command {name:?}: is it installed, and in a folder of PATH? What a shell must read (pipes, variables) goes to -c 'TEXT'"
        ),
        ErrorKind::PermissionDenied if std::path::Path::new(program).is_dir() => {
            anyhow!("{name:?} is a folder, not a command")
        }
        ErrorKind::PermissionDenied => anyhow!("{name:?} may not be run: chmod +x makes a file a command"),
        _ => anyhow!("cannot start {name:?}: {error}"),
    }
}

/// The largest resident set that we have had, in bytes; 0 where that is not told.
pub(crate) fn our_peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = peak.and_then(|text| text.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    kib.map_or(0, |kib| kib.saturating_mul(1024))
}

/// Whether Ctrl-C ended it. The signal reaches the child and us at once, and we may notice it a little later.
fn ended_by_ctrl_c(status: ExitStatus) -> bool {
    #[cfg(unix)]
    if std::os::unix::process::ExitStatusExt::signal(&status) == Some(libc::SIGINT) {
        let start = Instant::now();
        while !interrupted() && start.elapsed().as_millis() < 100 {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
    let _ = status;
    interrupted()
}

#[cfg(unix)]
mod guard {
    //! Waits for a child's end without reaping it, so that its id stays its own while another thread may send it a signal.

    use super::{Child, Result, anyhow, interrupted};
    use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
    use std::sync::mpsc::{self, RecvTimeoutError, Sender};
    use std::sync::{Arc, Mutex, PoisonError};
    use std::thread::JoinHandle;
    use std::time::Duration;

    /// Time between two looks for Ctrl-C.
    const EVERY: Duration = Duration::from_millis(100);
    /// Looks after which a child that goes on is asked to end, and made to. A terminal's Ctrl-C has reached it already.
    const ASKED: u32 = 5;
    const MADE: u32 = 25;

    pub(super) struct Guard {
        running: Arc<Mutex<Option<Pid>>>,
        thread: Option<(Sender<()>, JoinHandle<()>)>,
    }

    impl Guard {
        pub(super) fn new() -> Result<Self> {
            let running = Arc::new(Mutex::new(None));
            let (stop, stopped) = mpsc::channel::<()>();
            let watched = running.clone();
            let watch = move || {
                let mut looks = 0;
                while stopped.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
                    let running = watched.lock().unwrap_or_else(PoisonError::into_inner);
                    let Some(pid) = running.filter(|_| interrupted()) else { continue };
                    looks += 1;
                    let signal = match looks {
                        ASKED => Signal::TERM,
                        MADE => Signal::KILL,
                        _ => continue,
                    };
                    // it may have ended meanwhile; until it is reaped the id is still its own
                    let _ = kill_process(pid, signal);
                }
            };
            let thread = std::thread::Builder::new().name("ctrl-c".into()).spawn(watch)?;
            Ok(Guard { running, thread: Some((stop, thread)) })
        }

        /// Returns when `child` has ended; it is still to be reaped.
        pub(super) fn over(&self, child: &Child) -> Result<()> {
            let pid = Pid::from_child(child);
            let set = |now| *self.running.lock().unwrap_or_else(PoisonError::into_inner) = now;
            set(Some(pid));
            let ended = loop {
                match waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {
                    Err(rustix::io::Errno::INTR) => {}
                    other => break other,
                }
            };
            set(None);
            ended.map(|_| ()).map_err(|error| anyhow!("cannot wait for the command: {error}"))
        }
    }

    impl Drop for Guard {
        fn drop(&mut self) {
            if let Some((stop, thread)) = self.thread.take() {
                drop(stop);
                let _ = thread.join();
            }
        }
    }
}

#[cfg(not(unix))]
mod guard {
    //! Ctrl-C reaches every process of a console: nothing is left to do.

    use super::{Child, Result};

    pub(super) struct Guard;

    impl Guard {
        pub(super) fn new() -> Result<Self> {
            Ok(Guard)
        }

        pub(super) fn over(&self, _: &Child) -> Result<()> {
            Ok(())
        }
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    fn words(list: &[&str]) -> Vec<OsString> {
        list.iter().map(OsString::from).collect()
    }

    fn shell(text: &str) -> Finished {
        Processes::new(None, Sink::Null).unwrap().run(&words(&["sh", "-c", text])).unwrap()
    }

    #[test]
    fn ends_are_told_apart() {
        assert_eq!(ending(shell("exit 3").status), "ended with exit code 3");
        assert_eq!(ending(shell("kill -9 $$").status), "was ended by signal 9");
        assert!(shell("read line; test -z \"$line\"").status.success(), "stdin is empty");
    }

    #[test]
    fn time_is_the_clocks_and_cpu_time_the_childs() {
        let idle = shell("sleep 0.2");
        assert!(idle.wall_s >= 0.2, "{idle:?}");
        assert!(idle.cpu_s() < idle.wall_s / 2.0, "{idle:?}");
        // a grandchild that is waited for counts
        let busy = shell("sh -c 'i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done'");
        assert!(busy.user_s > 0.0, "{busy:?}");
    }

    #[test]
    fn memory_is_the_largest_of_the_tree() {
        // dd holds one block of that size, which is more than this process with its other tests
        let large = shell("dd if=/dev/zero of=/dev/null bs=1024M count=1");
        assert!(large.peak_bytes.is_some_and(|peak| (1 << 30..1100 << 20).contains(&peak)), "{large:?}");
    }

    #[test]
    fn output_and_input_are_files() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        std::fs::write(&from, "in\n").unwrap();
        let processes = Processes::new(Some(from), Sink::File(to.clone())).unwrap();
        for _ in 0..2 {
            processes.run(&words(&["sh", "-c", "cat; echo err >&2"])).unwrap();
        }
        assert_eq!(std::fs::read_to_string(to).unwrap(), "in\nerr\n", "anew in each run");
    }

    #[test]
    fn what_cannot_be_started_is_said_once() {
        let processes = Processes::new(None, Sink::Null).unwrap();
        let error = processes.run(&words(&["no-such-command-here"])).unwrap_err().to_string();
        assert!(error.contains("\"no-such-command-here\"") && error.contains("PATH"), "{error}");
        let error = processes.run(&words(&["/etc/passwd"])).unwrap_err().to_string();
        assert!(error.contains("chmod +x"), "{error}");
        let error = processes.run(&words(&["/"])).unwrap_err().to_string();
        assert!(error.contains("a folder"), "{error}");
        assert!(processes.run(&[]).is_err());
    }
}
