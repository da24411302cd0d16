//! A process that times calls.

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

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

    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }

    /// Wakes it, asks, and stops it again.
    pub(super) fn ask(&mut self, command: &Value) -> Result<Value> {
        self.signal(Signal::CONT)?;
        let mut line = String::new();
        writeln!(self.to, "{command}")?;
        self.from.read_line(&mut line)?;
        ensure!(!line.is_empty(), "{} ended; what it said is above", self.name);
        self.signal(Signal::STOP)?;
        serde_json::from_str(&line).with_context(|| format!("{} answered {line:?}", self.name))
    }

    /// Seconds of each of so many calls, after some that nobody times where they are short: it has slept.
    pub(super) fn time(&mut self, calls: u64, short: bool) -> Result<f64> {
        self.signal(Signal::CONT)?;
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
        self.signal(Signal::STOP)?;
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
