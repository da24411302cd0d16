//! A record as a line of JSON, for any output.

use std::io::{self, Write};

use crate::Record;

/// The record as one line of JSON, with its newline.
///
/// # Errors
/// None arises from the fields of a [`Record`]; the error is of the serializer.
pub fn to_line(record: &Record) -> Result<String, serde_json::Error> {
    // Text inside JSON strings has its line breaks escaped: the only newline is the one that ends the line.
    let mut line = serde_json::to_string(record)?;
    line.push('\n');
    Ok(line)
}

/// Writes records to standard output, a socket or a buffer: one line each, flushed one by one.
///
/// For files use [`Store`](crate::Store), which also serves several processes and torn lines.
#[derive(Debug)]
pub struct Writer<W: Write> {
    output: W,
}

impl<W: Write> Writer<W> {
    /// Writes to `output`.
    pub fn new(output: W) -> Self {
        Self { output }
    }

    /// Writes one record and flushes it.
    ///
    /// # Errors
    /// That of the output; `BrokenPipe` when a reader such as `head` has had enough.
    pub fn write(&mut self, record: &Record) -> io::Result<()> {
        self.output.write_all(to_line(record)?.as_bytes())?;
        self.output.flush()
    }

    /// Gives the output back.
    pub fn into_inner(self) -> W {
        self.output
    }
}
