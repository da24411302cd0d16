//! `perjoule report`: a page, a still figure, tables or CSV from records.

use anyhow::{Result, bail};
use perjoule_record::{Kind, Record};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use super::args::{ReportArgs, ReportFormat};
use super::output::csv_lines;
use super::{Ended, atomic};
use crate::inputs;
use crate::report::{self, Style, figure, page};

/// Pixels of a PNG for each of the SVG's: sharp on most screens, and in print.
const SCALE: f32 = 2.0;

pub(super) fn run(args: &ReportArgs) -> Result<Ended> {
    let format = format(args)?;
    if args.scale.is_some() && format != ReportFormat::Png {
        bail!("--scale is for --format png: what else is written has no pixels");
    }
    let to_stdout = args.output.as_deref() == Some(Path::new("-"));
    if to_stdout && format == ReportFormat::Png && std::io::stdout().is_terminal() {
        bail!("a PNG is no text for a terminal: give -o a file, or pipe it on");
    }
    let (mut records, warnings) = read(&args.files)?;
    for warning in &warnings {
        eprintln!("warning: {warning}");
    }
    if records.is_empty() {
        let skipped = if warnings.is_empty() { "" } else { " that can be read" };
        bail!("no records{skipped} in {}", shown(&args.files));
    }
    let (predicted, remarks) = page::classes::predicted(&records, &args.class)?;
    for remark in remarks.iter().filter(|_| !args.quiet) {
        eprintln!("note: {remark}");
    }
    let title = args.title.clone().unwrap_or_else(|| title(&records));
    let found = records.len();
    records.extend(predicted);
    let input = page::Input { title: &title, records: &records, warnings: &warnings, remarks: &remarks };
    let bytes = match format {
        ReportFormat::Html => page::render(&input)?.into_bytes(),
        ReportFormat::Svg => figure::svg(&input)?.into_bytes(),
        ReportFormat::Png => figure::png(&input, args.scale.unwrap_or(SCALE))?,
        ReportFormat::Md => markdown(&title, &records).into_bytes(),
        ReportFormat::Csv => csv(&records)?.into_bytes(),
    };
    let default = match format {
        ReportFormat::Html => Some("report.html"),
        ReportFormat::Svg => Some("report.svg"),
        ReportFormat::Png => Some("report.png"),
        ReportFormat::Md | ReportFormat::Csv => None,
    };
    match args.output.clone().or(default.map(PathBuf::from)).filter(|path| path != Path::new("-")) {
        None => std::io::stdout().write_all(&bytes)?,
        Some(path) => {
            atomic::write(&path, &bytes)?;
            if !args.quiet {
                let s = if found == 1 { "" } else { "s" };
                let size = report::units::bytes(bytes.len() as u64);
                eprintln!("{found} record{s} in {}, {size}", path.display());
            }
        }
    }
    Ok(Ended::Done)
}

/// As asked for, else by the name of the file.
fn format(args: &ReportArgs) -> Result<ReportFormat> {
    if let Some(format) = args.format {
        return Ok(format);
    }
    let name = args.output.as_deref().and_then(Path::extension).and_then(|name| name.to_str());
    match name.unwrap_or("html").to_ascii_lowercase().as_str() {
        "html" | "htm" => Ok(ReportFormat::Html),
        "svg" => Ok(ReportFormat::Svg),
        "png" => Ok(ReportFormat::Png),
        "md" => Ok(ReportFormat::Md),
        "csv" => Ok(ReportFormat::Csv),
        other => bail!(
            "-o: no report is written as .{other}: use .html, .svg, .png, .md or .csv, or name --format"
        ),
    }
}

fn shown(files: &[PathBuf]) -> String {
    let names: Vec<String> = files.iter().take(5).map(|path| path.display().to_string()).collect();
    let more = files.len() - names.len();
    names.join(", ") + &if more > 0 { format!(" and {more} more") } else { String::new() }
}

/// All records of all files, and a line for each that could not be read.
fn read(files: &[PathBuf]) -> Result<(Vec<Record>, Vec<String>)> {
    let (mut records, mut warnings) = (Vec::new(), Vec::new());
    for path in files {
        for file in inputs::files(path)? {
            let input = inputs::read(&file)?;
            warnings.extend(input.warnings.iter().map(|warning| format!("{}: {warning}", input.name)));
            records.extend(input.records);
        }
    }
    Ok((records, warnings))
}

fn title(records: &[Record]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for record in records {
        let d = &record.device;
        let name = d.device_class.as_deref().or(d.device_name.as_deref()).or(d.device.as_deref());
        names.extend(name.filter(|name| !names.contains(name)));
        if names.len() > 3 {
            return "Tokens and joules of several devices".into();
        }
    }
    match names.as_slice() {
        [] if records.iter().all(|record| record.kind == Kind::Command) => {
            "Time and joules of commands".into()
        }
        [] => "Tokens and joules".into(),
        names => format!("Tokens and joules of {}", names.join(", ")),
    }
}

fn markdown(title: &str, records: &[Record]) -> String {
    let of = |kind: Kind| records.iter().filter(|r| r.kind == kind).cloned().collect::<Vec<_>>();
    let (ceilings, kernels, tokens) = (of(Kind::Ceiling), of(Kind::Kernel), of(Kind::Tokens));
    // a name that looks like markup stays text; cells are escaped where they are rendered
    let mut text = format!("# {}\n", report::markdown(&page::clip(title)));
    let mut section = |heading: &str, records: &[Record], table: fn(&[Record]) -> report::Table| {
        if records.is_empty() {
            return;
        }
        text += &format!("\n## {heading}\n\n");
        let mut models: Vec<String> = Vec::new();
        for record in records.iter().filter(|record| record.kind == Kind::Tokens) {
            let line = report::markdown(&page::clip(&report::model_line(record, 0)));
            if !models.contains(&line) {
                models.push(line);
            }
        }
        if !models.is_empty() {
            text += &format!("{}\n\n", models.join("  \n"));
        }
        text += &table(records).render(Style::Markdown);
        if let Some(meters) = report::meters::meters(records) {
            text += &format!("\n{}", meters.render(Style::Markdown));
        }
        let doubts: Vec<String> = report::warnings(records).iter().map(|line| page::clip(line)).collect();
        let sources = report::energy_notes(records).into_iter();
        let notes = sources.map(|note| note.replace("; Devices above says what that is", ""));
        let notes = notes.chain(report::disturbance_note(records)).chain(doubts);
        let notes = report::error_note(records).map(str::to_owned).into_iter().chain(notes);
        let notes = report::interval_note(records).into_iter().chain(notes);
        let notes: Vec<String> = notes.map(|note| report::markdown(&note)).collect();
        if !notes.is_empty() {
            text += &format!("\n* {}\n", notes.join("\n* "));
        }
    };
    section("Ceilings", &ceilings, report::ceilings);
    section("Kernels", &kernels, report::kernels);
    section("Tokens", &tokens, report::tokens);
    section("Samples", &of(Kind::Samples), report::samples::samples);
    section("Commands", &of(Kind::Command), report::command::commands);
    text
}

fn csv(records: &[Record]) -> Result<String> {
    let mut text = Vec::new();
    for (i, record) in records.iter().enumerate() {
        let (header, row) = csv_lines(record)?;
        if i == 0 {
            text.extend(header);
        }
        text.extend(row);
    }
    Ok(String::from_utf8(text)?)
}
