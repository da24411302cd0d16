//! `perjoule import`: other tools' results as records, for `compare` and `report`.

use anyhow::{Context, Result, ensure};
use perjoule_formats::{Format, import};
use perjoule_record::{Store, to_line};
use std::io::{Read, Write};
use std::path::Path;

use super::Ended;
use super::args::ImportArgs;

/// Beyond this a file is not read: no result of a benchmark is that large.
const MOST: u64 = 256 << 20;

pub(crate) fn run(args: &ImportArgs) -> Result<Ended> {
    let format = match args.from.as_deref() {
        Some(name) => {
            let known = Format::IMPORTED.iter().map(|format| format.name()).collect::<Vec<_>>().join(", ");
            let found = name.parse::<Format>().ok().filter(|format| Format::IMPORTED.contains(format));
            Some(found.with_context(|| format!("--from {name:?}: expected one of {known}"))?)
        }
        None => None,
    };
    // everything is read before anything is stored
    let mut records = Vec::new();
    for path in &args.files {
        let bytes = bytes(path)?;
        let imported = import(&bytes, &path.to_string_lossy(), format)?;
        for warning in &imported.warnings {
            eprintln!("warning: {}: {warning}", path.display());
        }
        ensure!(
            !imported.records.is_empty(),
            "{} was read as {} and holds no result that can be kept",
            path.display(),
            imported.format.name()
        );
        if !args.quiet {
            let n = imported.records.len();
            eprintln!("{}: {n} records from {}", path.display(), imported.format.name());
        }
        records.extend(imported.records);
    }
    match args.output.as_deref().filter(|path| *path != Path::new("-")) {
        Some(path) => {
            let mut store = Store::open(path.to_owned()).context("-o")?;
            records.iter().try_for_each(|record| store.append(record))?;
        }
        None => {
            let mut out = std::io::stdout().lock();
            for record in &records {
                out.write_all(to_line(record)?.as_bytes())?;
            }
            out.flush()?;
        }
    }
    Ok(Ended::Done)
}

fn bytes(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = match path == Path::new("-") {
        true => std::io::stdin().lock().take(MOST + 1).read_to_end(&mut bytes),
        false => std::fs::File::open(path).and_then(|file| file.take(MOST + 1).read_to_end(&mut bytes)),
    };
    read.with_context(|| format!("cannot read {}", path.display()))?;
    ensure!(bytes.len() as u64 <= MOST, "{} is larger than {} MiB", path.display(), MOST >> 20);
    Ok(bytes)
}
