//! `perjoule report`: a page, a still figure, tables or CSV from records.

use anyhow::{Context, Result, bail};
use perjoule_record::{Kind, Reader, Record};
use std::io::{ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};

use super::Ended;
use super::args::{ReportArgs, ReportFormat};
use super::output::csv_lines;
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
            write(&path, &bytes)?;
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
        if path == Path::new("-") {
            let (list, skipped) = Reader::new(std::io::stdin().lock()).read_all();
            records.extend(list);
            warnings.extend(skipped.iter().map(|warning| format!("stdin: {warning}")));
            continue;
        }
        for file in folder(path)? {
            let (list, skipped) = perjoule_record::read_file(&file)?;
            records.extend(list);
            warnings.extend(skipped.iter().map(|warning| format!("{}: {warning}", file.display())));
        }
    }
    Ok((records, warnings))
}

/// The file itself, or a folder's files of records by name.
fn folder(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let named = || format!("cannot read {}", path.display());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).with_context(named)? {
        let file = entry.with_context(named)?.path();
        if file.extension().is_some_and(|name| name == "jsonl") && file.is_file() {
            files.push(file);
        }
    }
    files.sort();
    if files.is_empty() {
        bail!("no *.jsonl in {}", path.display());
    }
    Ok(files)
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
        [] => "Tokens and joules".into(),
        names => format!("Tokens and joules of {}", names.join(", ")),
    }
}

fn markdown(title: &str, records: &[Record]) -> String {
    let of = |kind: Kind| records.iter().filter(|r| r.kind == kind).cloned().collect::<Vec<_>>();
    let (ceilings, kernels, tokens) = (of(Kind::Ceiling), of(Kind::Kernel), of(Kind::Tokens));
    let mut text = format!("# {}\n", page::clip(title));
    let mut section = |heading: &str, records: &[Record], table: fn(&[Record]) -> report::Table| {
        if records.is_empty() {
            return;
        }
        text += &format!("\n## {heading}\n\n{}", table(records).render(Style::Markdown));
        let invalid: Vec<String> =
            records.iter().flat_map(report::warnings).map(|line| page::clip(&line)).collect();
        let sources = report::energy_notes(records).into_iter();
        let notes = sources.map(|note| note.replace("; Devices above says what that is", ""));
        let notes: Vec<String> = notes.chain(report::disturbance_note(records)).chain(invalid).collect();
        if !notes.is_empty() {
            text += &format!("\n* {}\n", notes.join("\n* "));
        }
    };
    section("Ceilings", &ceilings, report::ceilings);
    section("Kernels", &kernels, report::kernels);
    section("Tokens", &tokens, report::tokens);
    // a name that looks like markup stays text
    text.replace('&', "&amp;").replace('<', "&lt;")
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

/// Writes the whole file or nothing: a reader never sees a half of it, and an older one stays until the new one is complete.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let named = |error: std::io::Error| {
        let advice = match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "; free some space or choose another file",
            ErrorKind::FileTooLarge => "; raise the file-size limit (ulimit -f) or choose another file",
            ErrorKind::NotFound => "; the folder must exist",
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem | ErrorKind::IsADirectory => {
                "; choose a file that you may write to"
            }
            _ => "",
        };
        // the path once: errors of temporary files name theirs
        let why = std::io::Error::from(error.kind());
        let why = error.raw_os_error().map_or(why, std::io::Error::from_raw_os_error);
        anyhow::anyhow!("cannot write {}: {why}{advice}", path.display())
    };
    // a link stays a link; a device or a pipe is written as it is
    let target = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    match std::fs::metadata(&target) {
        Ok(what) if what.is_dir() => return Err(named(ErrorKind::IsADirectory.into())),
        Ok(what) if !what.is_file() => {
            let mut file = std::fs::OpenOptions::new().write(true).open(&target).map_err(named)?;
            return file.write_all(bytes).and_then(|()| file.flush()).map_err(named);
        }
        _ => {}
    }
    let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    builder.prefix(".perjoule-report-");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // as the user's umask has it, and not for the owner alone
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    let mut file = builder.tempfile_in(folder).map_err(named)?;
    file.write_all(bytes).and_then(|()| file.as_file().sync_all()).map_err(named)?;
    file.persist(&target).map_err(|error| named(error.error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_errors_name_it_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.html");
        write(&path, b"one").unwrap();
        write(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing temporary stays");
        let error = write(&folder.path().join("no/where.html"), b"x").unwrap_err().to_string();
        assert_eq!(error.matches("where.html").count(), 1, "{error}");
        assert!(error.contains("folder must exist"), "{error}");
        assert!(write(folder.path(), b"x").unwrap_err().to_string().contains("may write to"));
        #[cfg(target_os = "linux")]
        {
            let error = write(Path::new("/dev/full"), b"x").unwrap_err().to_string();
            assert!(
                error.starts_with("cannot write /dev/full") && error.contains("free some space"),
                "{error}"
            );
        }
    }
}
