//! JSON results: one array of objects, or an object a line. Elements are parsed one by one, and those before the place
//! where a file breaks off count.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::row::Row;
use super::{ImportError, MAX_RESULT_BYTES, Sink, llama_bench};

/// An object in which no key appears twice: which of the two would hold?
struct Object(Map<String, Value>);

impl<'de> serde::Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = Object;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Object, A::Error> {
                let mut map = Map::new();
                while let Some(key) = entries.next_key::<String>()? {
                    if map.contains_key(&key) {
                        return Err(A::Error::custom(format_args!("`{key}` appears twice")));
                    }
                    map.insert(key, entries.next_value()?);
                }
                Ok(Object(map))
            }
        }
        deserializer.deserialize_map(Keys)
    }
}

/// The row that the text of one object holds, or what is wrong with it.
pub(super) fn row(text: &str, line: u64) -> Result<Row, String> {
    if text.len() > MAX_RESULT_BYTES {
        return Err(format!("longer than {} MiB: not a result", MAX_RESULT_BYTES >> 20));
    }
    match serde_json::from_str::<Object>(text) {
        Ok(Object(cells)) => Ok(Row { line, cells, textual: false }),
        Err(error) if error.is_eof() => Err("cut off; this result is lost".into()),
        Err(error) => Err(format!("not a result: {error}")),
    }
}

/// Counts lines up to ever later offsets of one text.
pub(super) struct Lines<'a> {
    text: &'a str,
    offset: usize,
    line: u64,
}

impl<'a> Lines<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, offset: 0, line: 1 }
    }

    /// The line of the byte at `offset`, which must not lie before that of the last call.
    pub(super) fn at(&mut self, offset: usize) -> u64 {
        let passed = &self.text.as_bytes()[self.offset..offset];
        self.line += passed.iter().filter(|&&byte| byte == b'\n').count() as u64;
        self.offset = offset;
        self.line
    }
}

/// Visits the elements of an array as text with its offset in `text`; stops where `each` fails.
pub(super) struct Elements<'t, F> {
    pub(super) text: &'t str,
    pub(super) each: F,
}

impl<'de, F: FnMut(&'de str, usize) -> Result<(), ImportError>> DeserializeSeed<'de> for Elements<'de, F> {
    type Value = Option<ImportError>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de, F: FnMut(&'de str, usize) -> Result<(), ImportError>> Visitor<'de> for Elements<'de, F> {
    type Value = Option<ImportError>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut elements: A) -> Result<Self::Value, A::Error> {
        let mut failure = None;
        while let Some(element) = elements.next_element::<&'de RawValue>()? {
            if failure.is_none() {
                // The element is a part of the text: its address is its offset.
                let offset = element.get().as_ptr().addr() - self.text.as_ptr().addr();
                failure = (self.each)(element.get(), offset).err();
            }
        }
        Ok(failure)
    }
}

/// Skips the lines of a log before the first that begins with `opening`.
fn start(text: &str, opening: char) -> Option<usize> {
    let mut offset = 0;
    text.split_inclusive('\n').find_map(|line| {
        let at = offset;
        offset += line.len();
        line.trim_start().starts_with(opening).then_some(at)
    })
}

/// Reads `llama-bench -o json`.
pub(super) fn array(text: &str, sink: &mut Sink<'_>) -> Result<(), ImportError> {
    let Some(skipped) = start(text, '[') else { return Err(sink.not_format("no array begins in it")) };
    if !text[..skipped].trim().is_empty() {
        sink.warn(1, "lines before the results are passed over");
    }
    let mut lines = Lines::new(text);
    let body = &text[skipped..];
    let mut deserializer = serde_json::Deserializer::from_str(body);
    let each = |element: &str, offset: usize| {
        let line = lines.at(skipped + offset);
        push(row(element, line), line, sink)
    };
    let outcome = Elements { text: body, each }.deserialize(&mut deserializer);
    let outcome = outcome.and_then(|failure| match failure {
        Some(failure) => Ok(Some(failure)),
        None => deserializer.end().map(|()| None),
    });
    match outcome {
        Ok(None) => Ok(()),
        Ok(Some(failure)) => Err(failure),
        Err(error) => {
            let before = Lines::new(text).at(skipped);
            sink.warn(before + error.line().max(1) as u64 - 1, broken(&error, body));
            Ok(())
        }
    }
}

/// What is said of the place where the JSON of `text` breaks off.
pub(super) fn broken(error: &serde_json::Error, text: &str) -> String {
    // A number cut behind its point is no end of the file to the parser.
    let text = text.trim_end();
    let last = text.rsplit('\n').next().unwrap_or_default();
    let at_end = error.line() > text.matches('\n').count() && error.column() >= last.len();
    if error.is_eof() || at_end {
        "cut off here: whoever wrote it was stopped; the results before it are read".into()
    } else {
        format!("not JSON: {error}; nothing after this is read")
    }
}

/// Reads `llama-bench -o jsonl`, and objects over several lines, as `jq` prints them.
pub(super) fn lines(text: &str, sink: &mut Sink<'_>) -> Result<(), ImportError> {
    if text.trim_start().lines().next().is_some_and(|first| first.trim_end() == "{") {
        return objects(text, sink);
    }
    for (line, number) in text.lines().zip(1..) {
        let line = line.trim();
        if !line.is_empty() {
            push(row(line, number), number, sink)?;
        }
    }
    Ok(())
}

fn objects(text: &str, sink: &mut Sink<'_>) -> Result<(), ImportError> {
    let mut lines = Lines::new(text);
    for element in serde_json::Deserializer::from_str(text).into_iter::<&RawValue>() {
        match element {
            Ok(element) => {
                let line = lines.at(element.get().as_ptr().addr() - text.as_ptr().addr());
                push(row(element.get(), line), line, sink)?;
            }
            Err(error) => sink.warn(error.line() as u64, broken(&error, text)),
        }
    }
    Ok(())
}

/// Adds a row's result, or the warning in its place.
fn push(row: Result<Row, String>, line: u64, sink: &mut Sink<'_>) -> Result<(), ImportError> {
    match row {
        Ok(row) => llama_bench::push(&row, sink),
        Err(message) => {
            sink.warn(line, message);
            Ok(())
        }
    }
}
