//! Readings that arrive by themselves: the newest one, how old it is, what was lost, and the end of the stream.

use std::io::{self, BufRead, Read};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The newest reading of a stream, shared between the thread that reads it and the meter.
#[derive(Debug)]
pub(crate) struct Feed<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

#[derive(Debug)]
pub(crate) struct State<T> {
    /// The newest reading and when it was taken.
    pub(crate) latest: Option<(Instant, T)>,
    /// Why no more will come.
    pub(crate) ended: Option<String>,
    /// Readings that were lost or refused.
    pub(crate) faults: u64,
}

impl<T> Feed<T> {
    pub(crate) fn new() -> Feed<T> {
        let state = State { latest: None, ended: None, faults: 0 };
        Feed { state: Mutex::new(state), changed: Condvar::new() }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn put(&self, at: Instant, value: T) {
        self.lock().latest = Some((at, value));
        self.changed.notify_all();
    }

    pub(crate) fn fault(&self) {
        self.lock().faults += 1;
    }

    pub(crate) fn end(&self, reason: String) {
        self.lock().ended.get_or_insert(reason);
        self.changed.notify_all();
    }

    /// Waits until there is a reading or the stream ends, at most for `patience`.
    pub(crate) fn wait(&self, patience: Duration) -> MutexGuard<'_, State<T>> {
        let waiting = |state: &mut State<T>| state.latest.is_none() && state.ended.is_none();
        self.changed
            .wait_timeout_while(self.lock(), patience, waiting)
            .map_or_else(|poisoned| poisoned.into_inner().0, |(state, _)| state)
    }
}

/// One line, or the remains of one that was longer than the limit.
pub(crate) enum Line<'a> {
    Text(&'a str),
    /// Not UTF-8, or too long.
    Garbage,
}

/// Calls `each` for every line of `reader` until that returns `false` or the stream ends. A line longer than
/// `limit` bytes is dropped, so that a sender without line ends cannot fill memory.
pub(crate) fn each_line(
    reader: impl Read,
    limit: usize,
    mut each: impl FnMut(Line) -> bool,
) -> io::Result<()> {
    let mut reader = io::BufReader::new(reader);
    let mut bytes = Vec::new();
    let mut skipping = false;
    loop {
        bytes.clear();
        let length = (&mut reader).take(limit as u64).read_until(b'\n', &mut bytes)?;
        if length == 0 {
            return Ok(());
        }
        let complete = bytes.last() == Some(&b'\n');
        let whole = complete || length < limit;
        let line = match std::str::from_utf8(&bytes) {
            Ok(text) if whole && !skipping => Line::Text(text.trim()),
            _ => Line::Garbage,
        };
        // A long line is reported once, where it ends.
        skipping = !whole;
        if whole && !each(line) {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(bytes: &[u8], limit: usize) -> Vec<String> {
        let mut seen = Vec::new();
        let note = |line: Line| {
            seen.push(match line {
                Line::Text(text) => text.to_owned(),
                Line::Garbage => "!".to_owned(),
            });
            true
        };
        each_line(bytes, limit, note).expect("reads");
        seen
    }

    #[test]
    fn long_and_binary_lines_are_garbage_once_and_the_next_is_whole() {
        assert_eq!(lines(b"a\nbb \r\n\nc", 16), ["a", "bb", "", "c"]);
        assert_eq!(lines(b"0123456789012345678901234567890\nW 1\n", 8), ["!", "W 1"]);
        assert_eq!(lines(b"\xff\xfe\nok\n", 8), ["!", "ok"]);
        assert!(lines(b"", 8).is_empty());
    }
}
