//! `perjoule compare`: results side by side, or regressions between two files.

use anyhow::{Result, bail, ensure};
use perjoule_catalogue::{Catalogue, Class};
use perjoule_record::{Kind, Record};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use super::args_compare::{CompareArgs, CompareFormat};
use super::output::{RESULTS, WIDTH, wrap};
use super::{Ended, classes, environment};
use crate::compare::costs::Money;
use crate::compare::export::{Target, export};
use crate::compare::here::Here;
use crate::compare::regression::{FAIL_ON, Rules, parse_threshold, regression};
use crate::compare::row::{Row, device_name};
use crate::compare::side::{self, Group};
use crate::compare::workload::{Identity, Load, Loose, Wanted};
use crate::inputs;
use crate::report::{Style, markdown, one_line, printable};

/// Classes of the comparison that names none.
const CLASSES: [&str; 7] = [
    "nvidia-h100-sxm",
    "nvidia-h200-sxm",
    "nvidia-b200-hgx",
    "nvidia-gb200-nvl72",
    "amd-mi300x",
    "aws-trainium2",
    "aws-inferentia2",
];
/// Files of results that are looked through for this machine's newest.
const NEWEST: usize = 50;

pub(crate) fn run(args: &CompareArgs) -> Result<Ended> {
    if args.regression || args.fail_on.is_some() {
        return regressions(args);
    }
    ensure!(!args.fail_on_missing, "--fail-on-missing belongs to --fail-on or --regression");
    ensure!(!args.any_kernel, "--any-kernel belongs to --fail-on or --regression");
    side_by_side(args)
}

fn style() -> Style {
    if std::io::stdout().is_terminal() { Style::Colour } else { Style::Plain }
}

/// The records of a file; what could not be read is a warning.
fn read(path: &Path) -> Result<Vec<Record>> {
    let input = inputs::read(path)?;
    input.warn();
    Ok(input.records)
}

fn regressions(args: &CompareArgs) -> Result<Ended> {
    let [old, new] = args.files.as_slice() else {
        bail!("--fail-on and --regression compare two files, the old one first: {} given", args.files.len());
    };
    args.fail_on.as_deref().map(parse_threshold).transpose()?;
    let strange = args.loose.iter().find(|what| **what != Loose::Machine);
    if let Some(what) = strange {
        bail!("--loose {what} has no meaning between two files: lines that differ in it do not match");
    }
    let side_only = !args.class.is_empty() || !args.model.is_empty() || args.phase.is_some();
    ensure!(!side_only, "--class, --model and --phase belong to results side by side, without --fail-on");
    let (of_old, of_new) = rayon::join(|| read(old), || read(new));
    held_against((old, &of_old?), (new, &of_new?), args, true)
}

/// The second file held against the first; only a gate fails.
fn held_against(
    (old, of_old): (&Path, &[Record]),
    (new, of_new): (&Path, &[Record]),
    args: &CompareArgs,
    gate: bool,
) -> Result<Ended> {
    let threshold = args.fail_on.as_deref().map_or(Ok(FAIL_ON), parse_threshold)?;
    let target = match args.format {
        CompareFormat::Table => Target::Table(style()),
        CompareFormat::Md => Target::Markdown,
        CompareFormat::Json => Target::Json,
        CompareFormat::Junit => Target::Junit,
        CompareFormat::Github => Target::Github,
        CompareFormat::Csv => {
            bail!("--format csv belongs to results side by side; use json, junit, md, github or table")
        }
    };
    let rules = Rules {
        threshold,
        any_kernel: args.any_kernel,
        any_machine: args.loose.contains(&Loose::Machine),
        fail_on_missing: args.fail_on_missing,
        gate,
    };
    let (old, new) = (old.display().to_string(), new.display().to_string());
    let report = regression((&old, of_old), (&new, of_new), &rules)?;
    let mut out = anstream::stdout();
    out.write_all(export(&report, target)?.as_bytes())?;
    out.flush()?;
    Ok(if report.failures().is_empty() { Ended::Done } else { Ended::Failed })
}

/// Records of tokens of one file that may be compared.
struct Source {
    name: String,
    records: Vec<Record>,
}

fn side_by_side(args: &CompareArgs) -> Result<Ended> {
    if matches!(args.format, CompareFormat::Junit | CompareFormat::Github) {
        bail!("--format junit and github are for regressions: give two files and --fail-on");
    }
    ensure!(!args.loose.contains(&Loose::Machine), "--loose machine belongs to --fail-on or --regression");
    let catalogue = classes::catalogue(&args.catalogue)?;
    let money = Money::new(&args.region, args.pue, args.usd_kwh, &args.price)?;
    let wanted = Wanted {
        models: args.model.clone(),
        dtype: args.dtype.clone(),
        phase: args.phase,
        parallel: args.parallel.clone(),
        n_prompt: args.n_prompt,
        n_gen: args.n_gen,
        n_depth: args.n_depth,
    }
    .settle()?;
    let usual = args.class.is_empty() && args.files.is_empty();
    if let Some(twice) = args.files.iter().enumerate().find(|(i, file)| args.files[..*i].contains(file)) {
        bail!("{} is given twice", twice.1.display());
    }
    let named: Vec<&str> = match usual {
        true => CLASSES.to_vec(),
        false => args.class.iter().map(String::as_str).collect(),
    };
    let wanted_classes = named
        .iter()
        .map(|text| class_of(&catalogue, text))
        .collect::<Result<Vec<(&Class, Option<u32>)>>>()?;
    let mut remarks = Vec::new();
    let sources = match usual {
        true => newest(Path::new(RESULTS), &mut remarks),
        false => {
            let read =
                args.files.iter().map(|path| Ok((path, self::read(path)?))).collect::<Result<Vec<_>>>()?;
            if let ([(old, of_old), (new, of_new)], false) = (read.as_slice(), asks_for_tokens(args))
                && [of_old, of_new]
                    .iter()
                    .all(|records| !records.is_empty() && !records.iter().any(is_of_tokens))
            {
                return held_against((old, of_old), (new, of_new), args, false);
            }
            let of_tokens = |(path, records): (&PathBuf, Vec<Record>)| source(path, records, &mut remarks);
            read.into_iter().map(of_tokens).collect::<Result<Vec<_>>>()?
        }
    };

    let mut groups: Vec<(Load, Group)> = Vec::new();
    let loose = args.loose.as_slice();
    let mut refused: Option<String> = None;
    let mut rows: Vec<Row> = Vec::new();
    for source in &sources {
        let newest = newest_of_each(&source.records);
        let row = |record: &&Record| Row::of_record(record, &source.name, &catalogue, &money);
        let mut of_source: Vec<Row> = newest.iter().map(row).collect();
        name_settings(&mut of_source, &newest);
        rows.extend(of_source);
    }
    let mut taken = vec![0usize; sources.len()];
    for row in rows {
        match row.load.refusal(&wanted.nearest(&row.load), loose) {
            // without files it is no error that this machine ran something else
            Some(why) => refused = refused.or(Some(why)),
            None => {
                let at = sources.iter().position(|source| row.file.as_ref() == Some(&source.name));
                at.iter().for_each(|at| taken[*at] += 1);
                add(&mut groups, row, loose);
            }
        }
    }
    if !usual {
        if let (Some(why), true) = (refused, groups.is_empty()) {
            bail!("no record is of what was asked for: they differ in {why}");
        }
        together(&groups, &sources, &taken, loose)?;
    }
    if sources.is_empty() || usual {
        for load in wanted.loads() {
            if !groups.iter().any(|(key, _)| *key == load.masked(loose)) {
                groups.push((load.masked(loose), Group { load, rows: Vec::new() }));
            }
        }
    }
    let here = usual.then(|| here(&sources)).flatten();
    for (_, group) in &mut groups {
        // for work that this machine has not run it is predicted from what it has
        let own = here.as_ref().filter(|_| group.rows.is_empty());
        group.rows.extend(own.map(|here| here.row(&group.load, &money)));
        for (class, devices) in &wanted_classes {
            group.rows.push(Row::predicted(class, *devices, &group.load, &money));
        }
    }
    let mut groups: Vec<Group> = groups.into_iter().map(|(_, group)| group).collect();
    // a model of one's own has no shape to predict with
    groups.iter_mut().for_each(|group| without_shape(group, &mut remarks));
    ensure!(groups.iter().any(|g| g.rows.iter().any(|row| row.tokens_per_s.is_some())), {
        let why = groups.iter().flat_map(|g| &g.rows).flat_map(|row| &row.notes).next().cloned();
        format!("nothing to compare: {}", why.unwrap_or_else(|| "no record has a rate".into()))
    });
    let names: Vec<String> =
        groups.iter().flat_map(|group| &group.rows).flat_map(Row::names).map(str::to_owned).collect();
    if let Some(name) = money.unused(&names).first() {
        bail!(
            "--price {name}=..: no row has that name; names are ids of classes, and devices as the table writes them"
        );
    }
    print(args.format, &groups, &money, &remarks)?;
    Ok(Ended::Done)
}

/// This machine, from its newest run.
fn here(sources: &[Source]) -> Option<Here> {
    let records = &sources.first()?.records;
    Here::of(records, &one_line(&device_name(records.first()?)))
}

/// Puts a row beside those that it is comparable with.
fn add(groups: &mut Vec<(Load, Group)>, row: Row, loose: &[Loose]) {
    let mut key = row.load.masked(loose);
    if row.load.model.is_none() && !loose.contains(&Loose::Model) {
        // models that nobody names are not known to be the same
        key.model = row.file.as_ref().map(|file| format!("unknown, of {file}"));
    }
    match groups.iter_mut().find(|(known, _)| *known == key) {
        Some((_, group)) => group.rows.push(row),
        None => groups.push((key, Group { load: row.load.clone(), rows: vec![row] })),
    }
}

/// Of records of one measurement in a file the last: a file is appended to.
fn newest_of_each(records: &[Record]) -> Vec<&Record> {
    let mut places = HashMap::new();
    let mut list: Vec<&Record> = Vec::new();
    for record in records {
        match places.entry(Identity::of(record)) {
            Entry::Occupied(place) => list[*place.get()] = record,
            Entry::Vacant(place) => {
                place.insert(list.len());
                list.push(record);
            }
        }
    }
    list
}

/// Names what tells rows of one device and workload apart: the prompt's chunks, or another tool's settings.
fn name_settings(rows: &mut [Row], records: &[&Record]) {
    let alike = |a: &Row, b: &Row| (&a.name, &a.load, a.provenance) == (&b.name, &b.load, b.provenance);
    let twins: Vec<bool> =
        (0..rows.len()).map(|i| (0..rows.len()).any(|j| i != j && alike(&rows[i], &rows[j]))).collect();
    for ((row, record), _) in rows.iter_mut().zip(records).zip(twins).filter(|(_, twin)| *twin) {
        let w = &record.workload;
        let chunk = w.n_batch.map(|n| format!("chunks of {n}"));
        let settings =
            chunk.into_iter().chain(w.config.as_deref().map(one_line)).collect::<Vec<_>>().join(", ");
        if !settings.is_empty() {
            row.name.push_str(&format!(" ({settings})"));
        }
    }
}

/// Refuses files that have nothing comparable between them.
fn together(groups: &[(Load, Group)], sources: &[Source], taken: &[usize], loose: &[Loose]) -> Result<()> {
    if let Some((source, _)) = sources.iter().zip(taken).find(|(_, taken)| **taken == 0) {
        bail!("{}: none of its {} records is of what was asked for", source.name, source.records.len());
    }
    if sources.len() < 2 {
        return Ok(());
    }
    let files = |group: &Group| {
        let mut list: Vec<&String> = group.rows.iter().filter_map(|row| row.file.as_ref()).collect();
        list.sort_unstable();
        list.dedup();
        list.len()
    };
    if groups.iter().any(|(_, group)| files(group) > 1) {
        return Ok(());
    }
    // of all pairs from different files the nearest
    let rows: Vec<&Row> = groups.iter().flat_map(|(_, group)| &group.rows).collect();
    let pairs = rows.iter().flat_map(|a| rows.iter().map(move |b| (*a, *b))).filter(|(a, b)| a.file < b.file);
    let nearest = pairs.min_by_key(|(a, b)| a.load.differences(&b.load).len());
    let why = nearest.and_then(|(a, b)| a.load.refusal(&b.load, loose)).unwrap_or_default();
    bail!("these files have no comparable results: the nearest differ in {why}")
}

/// Leaves classes out of a group whose model has no known shape, and says so once.
fn without_shape(group: &mut Group, remarks: &mut Vec<String>) {
    let measured = group.rows.iter().any(|row| row.provenance != "modelled");
    let why =
        group.load.modelled().err().filter(|_| {
            measured && group.rows.iter().any(|r| r.provenance == "modelled" && r.file.is_none())
        });
    if let Some(why) = why {
        group.rows.retain(|row| row.file.is_some());
        remarks.push(format!("{}: no class is predicted: {why}", group.load));
    }
}

/// A class and a number of devices from `ID` or `IDxN`.
fn class_of<'c>(catalogue: &'c Catalogue, text: &str) -> Result<(&'c Class, Option<u32>)> {
    let whole = match catalogue.find(text) {
        Ok(class) => return Ok((class, None)),
        Err(error) => error,
    };
    if let Some((id, count)) = text.rsplit_once(['x', '*'])
        && let (Ok(class), Ok(count)) = (catalogue.find(id), count.trim().parse::<u32>())
    {
        ensure!(count > 0, "--class {text}: at least one device is needed");
        return Ok((class, Some(count)));
    }
    bail!("--class: {whole}")
}

fn is_of_tokens(record: &Record) -> bool {
    record.kind == Kind::Tokens
}

/// Whether options were given that only records of tokens have a meaning for.
fn asks_for_tokens(args: &CompareArgs) -> bool {
    let lists =
        [args.class.is_empty(), args.model.is_empty(), args.parallel.is_empty(), args.price.is_empty()];
    let sizes = [args.n_prompt, args.n_gen, args.n_depth];
    lists.contains(&false)
        || args.dtype.is_some()
        || args.phase.is_some()
        || sizes.iter().any(Option::is_some)
        || !args.loose.is_empty()
}

/// A file's records of tokens that may be used.
fn source(path: &Path, records: Vec<Record>, remarks: &mut Vec<String>) -> Result<Source> {
    let name = path.display().to_string();
    let all = records.len();
    let tokens: Vec<Record> = records.into_iter().filter(is_of_tokens).collect();
    ensure!(
        !tokens.is_empty(),
        "{name} holds no records of tokens among its {all}: `perjoule run --only tokens` makes them; kernels and commands are compared \
         between two files that hold nothing else, or with --fail-on"
    );
    let (valid, invalid): (Vec<Record>, Vec<Record>) = tokens.into_iter().partition(|record| record.valid);
    if let Some(first) = invalid.first() {
        let why = first.invalid_reasons.first().map_or("no reason given", String::as_str);
        ensure!(!valid.is_empty(), "{name}: every record of tokens is invalid: {why}");
        remarks.push(format!("{name}: {} invalid records left out: {why}", invalid.len()));
    }
    Ok(Source { name, records: valid })
}

/// This machine's newest records of tokens: those of the newest run in the folder that has any.
fn newest(folder: &Path, remarks: &mut Vec<String>) -> Vec<Source> {
    let mut files: Vec<(std::time::SystemTime, PathBuf)> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|end| end == "jsonl"))
        .filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path)))
        .collect();
    files.sort_by(|a, b| b.cmp(a));
    let here = environment();
    for (_, path) in files.iter().take(NEWEST) {
        let Ok(inputs::Input { records, .. }) = inputs::read(path) else { continue };
        let ours = |record: &Record| {
            record.kind == Kind::Tokens
                && record.valid
                && record.environment.cpu_model == here.cpu_model
                && record.environment.cpu_count == here.cpu_count
        };
        let records: Vec<Record> = records.into_iter().filter(ours).collect();
        if !records.is_empty() {
            return vec![Source { name: path.display().to_string(), records }];
        }
    }
    remarks.push(format!(
        "{}/ holds no records of tokens of this machine: `perjoule run --only tokens` makes them",
        folder.display()
    ));
    Vec::new()
}

fn print(format: CompareFormat, groups: &[Group], money: &Money, remarks: &[String]) -> Result<()> {
    let mut notes = remarks.to_vec();
    notes.extend(side::notes(groups, money));
    let mut out = anstream::stdout();
    match format {
        CompareFormat::Json => {
            let value = side::json(groups, money, &notes);
            writeln!(out, "{}", serde_json::to_string_pretty(&value)?)?;
        }
        CompareFormat::Csv => out.write_all(&side::csv(groups)?)?,
        CompareFormat::Md => {
            for group in groups {
                let rows = group.table().render(Style::Markdown);
                writeln!(out, "## {}\n\n{rows}", markdown(&title(group)))?;
                if let Some(note) = group.boundary_note() {
                    writeln!(out, "* {}\n", markdown(&note))?;
                }
            }
            for note in &notes {
                writeln!(out, "* {}", markdown(note))?;
            }
        }
        _ => {
            let line = |out: &mut anstream::AutoStream<std::io::Stdout>, text: &str| -> Result<()> {
                for (i, line) in wrap(&printable(text), WIDTH).iter().enumerate() {
                    writeln!(out, "{}{line}", if i == 0 { " " } else { "   " })?;
                }
                Ok(())
            };
            for group in groups {
                writeln!(out, "\u{1b}[1m{}\u{1b}[0m", printable(&title(group)))?;
                write!(out, "{}", group.table().render(style()))?;
                if let Some(note) = group.boundary_note() {
                    line(&mut out, &note)?;
                }
                writeln!(out)?;
            }
            for note in &notes {
                line(&mut out, note)?;
            }
        }
    }
    out.flush()?;
    Ok(())
}

/// A group's workload, and what differs within it.
fn title(group: &Group) -> String {
    let varying: Vec<String> = group.varying().iter().map(Loose::to_string).collect();
    if varying.is_empty() {
        return group.load.to_string();
    }
    format!("{}; NOT EQUAL in {}: each row says what it is for", group.load, varying.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_may_have_a_number() {
        let catalogue = Catalogue::builtin();
        let of = |text: &str| class_of(&catalogue, text).map(|(class, n)| (class.id.clone(), n));
        assert_eq!(of("amd-mi300x").unwrap(), ("amd-mi300x".into(), None));
        assert_eq!(of("mi300xx8").unwrap(), ("amd-mi300x".into(), Some(8)));
        assert_eq!(of("nvidia-rtx4090").unwrap(), ("nvidia-rtx4090".into(), None));
        assert_eq!(of("rtx4090x2").unwrap(), ("nvidia-rtx4090".into(), Some(2)));
        assert_eq!(of("nvidia-gb200-nvl72x4").unwrap(), ("nvidia-gb200-nvl72".into(), Some(4)));
        assert!(of("h100-sxmx0").is_err());
        assert!(of("h100").unwrap_err().to_string().contains("nvidia-h100-pcie"));
        assert!(CLASSES.iter().all(|id| catalogue.get(id).is_some()));
    }
}
