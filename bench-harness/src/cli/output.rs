//! Where a run's results go: records to a file, and stdout in the format that was asked for.

use anyhow::{Context, Result, bail, ensure};
use perjoule_formats::{Exported, Format as Foreign, export};
use perjoule_record::{Environment, Record, Store, to_line};
use serde::Deserialize;
use serde::de::{MapAccess, Visitor};
use std::fmt;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use super::args::Format;
use super::atomic;
use super::progress::Bars;
use crate::live::text::unicode;
use crate::report::chart::Chart;
use crate::report::{self, Style, Table};

/// Folder of the records of runs that name no file.
pub(super) const RESULTS: &str = "results";
/// Columns that text under tables is wrapped to.
pub(super) const WIDTH: usize = 92;

/// Why records are left out of a format, each reason with how often.
pub(super) type Reasons = Vec<(String, u64)>;

/// Takes records and tables.
pub(crate) struct Output {
    format: Format,
    quiet: bool,
    charts: bool,
    bars: Bars,
    stdout: anstream::AutoStream<std::io::Stdout>,
    store: Option<Store>,
    /// The file is ours alone, so that it may go when nothing was written to it.
    own_file: bool,
    /// Where this run's figures go as OpenMetrics text, when it ends.
    openmetrics: Option<PathBuf>,
    /// Records for what is written at the end.
    kept: Vec<Record>,
    /// Reasons for which records are not in stdout's format, each with how often.
    left_out: Reasons,
    records: u64,
    invalid: u64,
    finished: bool,
}

impl Output {
    /// Opens what is written to, so that a file that cannot be is refused before anything is measured.
    pub(crate) fn open(
        format: Option<Format>,
        file: Option<&Path>,
        quiet: bool,
        environment: &Environment,
    ) -> Result<Self> {
        let to_stdout = file == Some(Path::new("-"));
        let format = match (format, to_stdout) {
            (None | Some(Format::Jsonl), true) => Format::Jsonl,
            (Some(_), true) => bail!("-o - puts JSON lines on stdout: leave --format out, or give -o a file"),
            (format, false) => format.unwrap_or(Format::Table),
        };
        let own_file = file.is_none();
        let path = match file {
            Some(_) if to_stdout => None,
            Some(path) => {
                refuse_format_name(path)?;
                Some(path.to_owned())
            }
            None => {
                let run = environment.run_id.as_deref().unwrap_or("run");
                Some(PathBuf::from(RESULTS).join(format!("{run}.jsonl")))
            }
        };
        let place = if own_file { "records go to ./results where no -o names a file" } else { "-o" };
        let store = path.map(Store::open).transpose().context(place)?;
        let stdout = anstream::AutoStream::auto(std::io::stdout());
        let bars = Bars::new(quiet);
        Ok(Output {
            format,
            quiet,
            charts: false,
            bars,
            stdout,
            store,
            own_file,
            openmetrics: None,
            kept: Vec::new(),
            left_out: Vec::new(),
            records: 0,
            invalid: 0,
            finished: false,
        })
    }

    /// Keeps this run's figures for `path`, as OpenMetrics text.
    pub(crate) fn keep_openmetrics(&mut self, path: &Path) {
        self.openmetrics = Some(path.to_owned());
    }

    /// Keeps a record for what is written at the end. Samples are in none of it.
    fn keep(&mut self, record: &Record) {
        let mut record = record.clone();
        record.timing.samples_ns = None;
        self.kept.push(record);
    }

    /// Takes the text of an export, and counts what is not in it.
    fn exported(&mut self, records: &[Record], format: Foreign) -> Result<String> {
        let Exported { text, left_out } = export(records, format)?;
        for omission in left_out {
            count_reason(&mut self.left_out, omission.reason);
        }
        Ok(text)
    }

    /// Draws charts below tables: in a terminal, or wherever tables are when they are `asked` for.
    ///
    /// # Errors
    /// When they are asked for and stdout carries no tables.
    pub(crate) fn show_charts(&mut self, asked: bool) -> Result<()> {
        let tables = matches!(self.format, Format::Table | Format::Md);
        ensure!(tables || !asked, "--charts stand below tables: use --format table or md");
        self.charts = tables && (asked || (std::io::stdout().is_terminal() && !self.quiet));
        Ok(())
    }

    /// The bars of progress.
    pub(crate) fn bars(&self) -> &Bars {
        &self.bars
    }

    /// The bars of progress, to change what is below them.
    pub(crate) fn bars_mut(&mut self) -> &mut Bars {
        &mut self.bars
    }

    /// Stores a record, and prints it where stdout carries records.
    pub(crate) fn record(&mut self, record: &Record) -> Result<()> {
        if let Some(store) = &mut self.store {
            store.append(record)?;
        }
        self.invalid += u64::from(!record.valid);
        match self.format {
            Format::Table | Format::Md => {}
            Format::LlamaBench | Format::Openmetrics => {} // at the end
            Format::LlamaBenchJsonl => {
                let text = self.exported(std::slice::from_ref(record), Foreign::LlamaBenchJsonl)?;
                self.print(&text)?;
            }
            Format::Jsonl => self.print(&to_line(record)?)?,
            Format::Json => {
                let open = if self.records == 0 { "[\n" } else { ",\n" };
                self.print(&format!("{open}{}", to_line(record)?.trim_end()))?;
            }
            Format::Csv => {
                let (header, row) = csv_lines(record)?;
                let header = if self.records == 0 { header } else { Vec::new() };
                self.print(&String::from_utf8_lossy(&[header, row].concat()))?;
            }
        }
        let at_the_end = matches!(self.format, Format::LlamaBench | Format::Openmetrics);
        if at_the_end || self.openmetrics.is_some() {
            self.keep(record);
        }
        self.records += 1;
        // tables have them below
        if !self.quiet && !matches!(self.format, Format::Table | Format::Md) {
            let warnings = report::warnings(std::slice::from_ref(record));
            self.bars.suspend(|| warnings.iter().for_each(|warning| eprintln!("warning: {warning}")));
        }
        Ok(())
    }

    /// Prints a heading, where stdout carries tables.
    pub(crate) fn heading(&mut self, title: &str, detail: &str) -> Result<()> {
        let gap = if detail.is_empty() { "" } else { "  " };
        match self.format {
            Format::Table => self.print(&format!("\n\u{1b}[1m{title}\u{1b}[0m{gap}{detail}\n")),
            Format::Md => self.print(&format!("\n## {title}\n\n{detail}\n\n")),
            _ => Ok(()),
        }
    }

    fn print(&mut self, text: &str) -> Result<()> {
        let stdout = &mut self.stdout;
        let written = self.bars.suspend(|| stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()));
        written.context("cannot write to stdout")
    }

    /// Prints a table, where stdout carries tables.
    pub(crate) fn table(&mut self, table: &Table) -> Result<()> {
        let style = match self.format {
            Format::Table if std::io::stdout().is_terminal() => Style::Colour,
            Format::Table => Style::Plain,
            Format::Md => Style::Markdown,
            _ => return Ok(()),
        };
        self.print(&table.render(style))
    }

    /// Prints a line of text, where stdout carries tables.
    pub(crate) fn line(&mut self, text: &str) -> Result<()> {
        match self.format {
            Format::Table => {
                let lines = wrap(text, WIDTH);
                let line =
                    |(i, line): (usize, &String)| format!("{}{line}\n", if i == 0 { " " } else { "   " });
                self.print(&lines.iter().enumerate().map(line).collect::<String>())
            }
            Format::Md => self.print(&format!("\n{text}\n")),
            _ => Ok(()),
        }
    }

    /// Prints charts, where they are shown.
    pub(crate) fn charts(&mut self, charts: &[Chart]) -> Result<()> {
        let shown = if self.charts { charts } else { &[] };
        for chart in shown {
            let lines = chart.lines(WIDTH, unicode()).join("\n");
            let lines = report::printable(&lines);
            match self.format {
                Format::Md => self.print(&format!("\n```text\n{lines}\n```\n"))?,
                _ => self.print(&format!("\n {lines}\n"))?,
            }
        }
        Ok(())
    }

    /// Records stored so far that must not be used.
    pub(crate) fn invalid(&self) -> u64 {
        self.invalid
    }

    /// Completes what stdout carries and says where the records are.
    pub(crate) fn finish(&mut self, interrupted: bool) -> Result<()> {
        if std::mem::replace(&mut self.finished, true) {
            return Ok(());
        }
        self.bars.unwatch();
        let kept = std::mem::take(&mut self.kept);
        match self.format {
            Format::Json => self.print(if self.records == 0 { "[]\n" } else { "\n]\n" })?,
            Format::LlamaBench if self.records > 0 => {
                let table = self.exported(&kept, Foreign::LlamaBenchMarkdown)?;
                self.print(&table)?;
            }
            Format::Openmetrics => {
                let text = self.exported(&kept, Foreign::OpenMetrics)?;
                self.print(&text)?;
            }
            _ => {}
        }
        for (reason, n) in self.left_out.iter().filter(|_| !self.quiet) {
            let s = if *n == 1 { "" } else { "s" };
            eprintln!("note: {n} record{s} not in this format: {reason}");
        }
        // an older file stays where nothing was measured
        if let (Some(path), false) = (&self.openmetrics, kept.is_empty()) {
            atomic::write(path, export(&kept, Foreign::OpenMetrics)?.text.as_bytes())
                .context("--openmetrics")?;
        }
        let file = self.store.as_ref().map(|store| store.path().to_owned());
        let (n, s) = (self.records, if self.records == 1 { "" } else { "s" });
        let place = file.as_ref().map_or("on stdout".into(), |path| format!("in {}", path.display()));
        if interrupted {
            eprintln!("interrupted: {n} finished record{s} kept {place}");
        } else if let (Some(path), false, 1..) = (&file, self.quiet, n) {
            match self.format {
                Format::Table | Format::Md => self.line(&format!("{n} record{s} in {}", path.display()))?,
                _ => eprintln!("{n} record{s} in {}", path.display()),
            }
        }
        if let (true, 0, Some(path)) = (self.own_file, self.records, file) {
            self.store = None;
            // an empty file of our own: nothing is lost if it stays
            let _ = std::fs::remove_file(path);
        }
        Ok(())
    }
}

/// Counts a reason once more.
pub(super) fn count_reason(list: &mut Reasons, reason: String) {
    match list.iter_mut().find(|(known, _)| *known == reason) {
        Some((_, n)) => *n += 1,
        None => list.push((reason, 1)),
    }
}

/// The words of `text` in lines of at most `width` characters, longer words apart.
pub(super) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// llama-bench's `-o` takes a format: whoever types that here means `--format`.
pub(super) fn refuse_format_name(path: &Path) -> Result<()> {
    let name = path.to_string_lossy();
    if ["table", "md", "json", "jsonl", "csv", "sql"].contains(&&*name) && !path.exists() {
        let format = if name == "sql" { "jsonl" } else { &name };
        bail!(
            "-o takes a file: for that format use --format {format} (or -o ./{name} for a file of that name)"
        );
    }
    Ok(())
}

/// Column names and values of a record, each as a line of CSV. Lists are JSON within a cell, unknown values are empty.
pub(super) fn csv_lines(record: &Record) -> Result<(Vec<u8>, Vec<u8>)> {
    let Columns(fields) = serde_json::from_str(&to_line(record)?)?;
    let cell = |value: &serde_json::Value| match value {
        serde_json::Value::Null => String::new(),
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let line = |cells: Vec<String>| -> Result<Vec<u8>> {
        let mut writer = csv::Writer::from_writer(Vec::new());
        writer.write_record(&cells)?;
        writer.into_inner().map_err(|error| anyhow::anyhow!("{}", error.error()))
    };
    let header = fields.iter().map(|(name, _)| name.clone()).collect();
    Ok((line(header)?, line(fields.iter().map(|(_, value)| cell(value)).collect())?))
}

/// The fields of a JSON object in the order in which they stand.
struct Columns(Vec<(String, serde_json::Value)>);

impl<'de> Deserialize<'de> for Columns {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Columns;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a record")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Columns, M::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Columns(fields))
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use perjoule_record::Kind;

    #[test]
    fn csv_has_a_column_for_every_field() {
        let mut record = Record::new(Kind::Kernel, &Environment::default());
        record.workload.shape = Some("m=1,n=2".into());
        record.timing.samples_ns = Some(vec![1.5, 2.0]);
        let (header, row) = csv_lines(&record).unwrap();
        let text = [header, row].concat();
        let mut reader = csv::Reader::from_reader(text.as_slice());
        let names = reader.headers().unwrap().clone();
        let row = reader.records().next().unwrap().unwrap();
        let field = |name: &str| row.get(names.iter().position(|n| n == name).unwrap()).unwrap();
        let first: Vec<&str> = names.iter().take(3).collect();
        assert_eq!(first, ["schema_version", "kind", "provenance"], "as the schema has them");
        assert_eq!((field("shape"), field("samples_ns"), field("joules")), ("m=1,n=2", "[1.5,2.0]", ""));
    }

    #[test]
    fn lines_wrap_between_words() {
        assert_eq!(wrap("one two three four", 9), ["one two", "three", "four"]);
        assert_eq!(wrap("unbreakable", 3), ["unbreakable"]);
    }

    #[test]
    fn format_names_are_no_files() {
        let message = refuse_format_name(Path::new("json")).unwrap_err().to_string();
        assert!(message.contains("--format json"), "{message}");
        assert!(refuse_format_name(Path::new("out/json")).is_ok());
    }
}
