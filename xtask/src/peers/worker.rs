//! A process that times calls.

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

/// Between one worker's samples and the next one's: what the one left running, such as the kernel's work for it, has ended.
const PAUSE: Duration = Duration::from_millis(5);

/// A process that times calls on command, stopped in between.
pub(super) struct Worker {
    pub(super) name: String,
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Worker {
    pub(super) fn start(name: &str, mut command: Command) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("{name} could not be started"))?;
        let to = child.stdin.take().context("stdin is a pipe")?;
        let from = BufReader::new(child.stdout.take().context("stdout is a pipe")?);
        Ok(Worker { name: name.into(), child, to, from })
    }

    /// Wakes it.
    fn go(&self) -> Result<()> {
        sleep(PAUSE);
        Ok(kill_process(Pid::from_child(&self.child), Signal::CONT)?)
    }

    /// Stops it, and returns when every thread stands still: one that spins would take a core from the next worker.
    fn stop(&self) -> Result<()> {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::STOP)?;
        let stopped = waitpid(Some(pid), WaitOptions::UNTRACED)?;
        ensure!(stopped.is_some_and(|(_, status)| status.stopped()), "{} ended", self.name);
        Ok(())
    }

    /// Wakes it, asks, and stops it again.
    pub(super) fn ask(&mut self, command: &Value) -> Result<Value> {
        self.go()?;
        let mut line = String::new();
        writeln!(self.to, "{command}")?;
        self.from.read_line(&mut line)?;
        ensure!(!line.is_empty(), "{} ended; what it said is above", self.name);
        self.stop()?;
        serde_json::from_str(&line).with_context(|| format!("{} answered {line:?}", self.name))
    }

    /// Seconds of each of so many calls, after some that nobody times where they are short: it has slept.
    pub(super) fn time(&mut self, calls: u64, short: bool) -> Result<f64> {
        self.go()?;
        let rounds = if short { vec![calls.div_ceil(8), calls] } else { vec![calls] };
        for calls in &rounds {
            writeln!(self.to, "{}", json!({ "do": "time", "calls": calls }))?;
        }
        let mut seconds = None;
        for _ in &rounds {
            let mut line = String::new();
            self.from.read_line(&mut line)?;
            ensure!(!line.is_empty(), "{} ended; what it said is above", self.name);
            seconds = serde_json::from_str::<Value>(&line)?["seconds"].as_f64();
        }
        self.stop()?;
        seconds.with_context(|| format!("{} gave no time", self.name))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // a stopped process would wait for ever; one that has ended already is no trouble
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
