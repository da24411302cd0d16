//! `llama-bench -o sql`: a CREATE TABLE and INSERT statements, one a line. Values are strings in single quotes, which
//! llama-bench does not escape: a quote inside breaks its statement, and only that. perjoule's own columns follow in a row of a table of their own.

use serde_json::{Map, Value};

use super::row::Row;
use super::{ImportError, Sink, llama_bench, shown};
use crate::format::is_statement;

/// Reads the INSERT statements; everything else is passed over.
pub(super) fn read(text: &str, sink: &mut Sink<'_>) -> Result<(), ImportError> {
    let mut statements = 0;
    let mut at = 0;
    // what `perjoule_bench` adds to comes before it
    let mut last: Option<Row> = None;
    let mut lines = super::json::Lines::new(text);
    while let Some(start) = next_insert(text, at) {
        statements += 1;
        let line = lines.at(start);
        let mut cursor = Cursor { text, at: start + "INSERT INTO ".len() };
        match cursor.insert() {
            Ok(Insert { table, columns, rows }) => {
                for values in rows {
                    let row = row(&columns, values, line);
                    if table == "perjoule_bench" {
                        match (row, &mut last) {
                            (Ok(more), Some(last)) => last.cells.extend(more.cells),
                            (Ok(_), None) => sink.warn(line, "this belongs to no result"),
                            (Err(message), _) => sink.warn(line, format!("{message}; this row is left out")),
                        }
                        continue;
                    }
                    push(last.take(), sink)?;
                    match row {
                        Ok(row) => last = Some(row),
                        Err(message) => sink.warn(line, format!("{message}; this result is left out")),
                    }
                }
                at = cursor.at;
            }
            Err(message) => {
                push(last.take(), sink)?;
                sink.warn(line, format!("{message}; this statement is left out"));
                // A stray quote misleads to the end of the line at most, where the next statement begins.
                at = start + text[start..].find('\n').unwrap_or(text.len() - start);
            }
        }
    }
    push(last, sink)?;
    if statements == 0 {
        return Err(sink.not_format("it holds no INSERT statement"));
    }
    Ok(())
}

fn push(row: Option<Row>, sink: &mut Sink<'_>) -> Result<(), ImportError> {
    row.map_or(Ok(()), |row| llama_bench::push(&row, sink))
}

/// The next line at or after `at` that begins with INSERT INTO.
fn next_insert(text: &str, at: usize) -> Option<usize> {
    let mut offset = at;
    text[at..].split_inclusive('\n').find_map(|line| {
        let start = offset + (line.len() - line.trim_start().len());
        offset += line.len();
        let found =
            is_statement(line.trim_start()) && line.trim_start().as_bytes()[0].eq_ignore_ascii_case(&b'i');
        found.then_some(start)
    })
}

fn row(columns: &[String], values: Vec<Value>, line: u64) -> Result<Row, String> {
    if values.len() != columns.len() {
        return Err(format!("{} values for {} columns", values.len(), columns.len()));
    }
    let mut cells = Map::new();
    for (column, value) in columns.iter().zip(values) {
        if cells.insert(column.clone(), value).is_some() {
            return Err(format!("the column `{}` appears twice", shown(column)));
        }
    }
    Ok(Row { line, cells, textual: true })
}

/// Most items of a list: llama-bench has some forty columns.
const MAX_ITEMS: usize = 1000;

/// An INSERT statement.
struct Insert {
    table: String,
    columns: Vec<String>,
    rows: Vec<Vec<Value>>,
}

struct Cursor<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Cursor<'a> {
    /// `table (column, ..) VALUES (value, ..), ..;`
    fn insert(&mut self) -> Result<Insert, String> {
        let table = self.name()?;
        let columns = self.list(|cursor| cursor.name())?;
        if !self.word()?.eq_ignore_ascii_case("VALUES") {
            return Err("VALUES does not follow the columns".into());
        }
        let mut rows = vec![self.list(Self::value)?];
        while self.eat(',') {
            if rows.len() == MAX_ITEMS {
                return Err(format!("more than {MAX_ITEMS} rows in a statement"));
            }
            rows.push(self.list(Self::value)?);
        }
        if self.eat(';') { Ok(Insert { table, columns, rows }) } else { Err(self.unexpected()) }
    }

    fn rest(&mut self) -> &'a str {
        let rest = self.text[self.at..].trim_start();
        self.at = self.text.len() - rest.len();
        rest
    }

    fn eat(&mut self, wanted: char) -> bool {
        let found = self.rest().starts_with(wanted);
        self.at += if found { wanted.len_utf8() } else { 0 };
        found
    }

    fn unexpected(&mut self) -> String {
        match self.rest().lines().next() {
            None | Some("") => "cut off".into(),
            Some(rest) => format!("unexpected {:?} (a quote that is not doubled?)", shown(rest)),
        }
    }

    fn list<T>(&mut self, item: impl Fn(&mut Self) -> Result<T, String>) -> Result<Vec<T>, String> {
        if !self.eat('(') {
            return Err(self.unexpected());
        }
        let mut items = vec![item(self)?];
        while self.eat(',') {
            if items.len() == MAX_ITEMS {
                return Err(format!("more than {MAX_ITEMS} items in a list"));
            }
            items.push(item(self)?);
        }
        if self.eat(')') { Ok(items) } else { Err(self.unexpected()) }
    }

    /// Letters, digits and what numbers are made of.
    fn word(&mut self) -> Result<&'a str, String> {
        let rest = self.rest();
        let end = rest.find(|c: char| !(c.is_alphanumeric() || "_.+-".contains(c))).unwrap_or(rest.len());
        if end == 0 {
            return Err(self.unexpected());
        }
        self.at += end;
        Ok(&rest[..end])
    }

    /// What stands between two `quote`s; doubled ones mean one.
    fn quoted(&mut self, quote: char) -> Result<String, String> {
        let mut text = String::new();
        self.at += quote.len_utf8();
        loop {
            let rest = &self.text[self.at..];
            let Some(end) = rest.find(quote) else { return Err("cut off in the midst of a string".into()) };
            text.push_str(&rest[..end]);
            self.at += end + quote.len_utf8();
            if !self.text[self.at..].starts_with(quote) {
                return Ok(text);
            }
            text.push(quote);
            self.at += quote.len_utf8();
        }
    }

    fn name(&mut self) -> Result<String, String> {
        match self.rest().chars().next() {
            Some(quote @ ('"' | '`')) => self.quoted(quote),
            _ => self.word().map(Into::into),
        }
    }

    fn value(&mut self) -> Result<Value, String> {
        if self.rest().starts_with('\'') {
            return self.quoted('\'').map(Value::String);
        }
        let word = self.word()?;
        // a call without arguments: last_insert_rowid()
        if self.eat('(') && !self.eat(')') {
            return Err(self.unexpected());
        }
        Ok(if word.eq_ignore_ascii_case("NULL") { Value::Null } else { Value::String(word.into()) })
    }
}
