//! The index of files of records: an SQLite file that is brought up to date by the files' sizes and times.
//!
//! A file that grew is read from where it ended, any other change reads it again. An update is one transaction, so a process that is
//! killed leaves the index as it was, and two processes wait for each other. An index that is missing, damaged or of another version
//! is made again; where none can be kept, it is made in memory.

use anyhow::{Context, Result};
use etcetera::BaseStrategy;
use perjoule_record::{Problem, Reader, Record};
use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior, params};
use sha2::{Digest, Sha256};
use std::collections::{HashMap, HashSet};
use std::fs::{File, Metadata};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use super::facts::{Figures, Series};
use crate::inputs;
use crate::measure::{Interrupted, interrupted};
use crate::report::one_line;

/// Name of the index within a folder of results.
pub(crate) const NAME: &str = ".perjoule-index.sqlite";
/// Raised with every change of the tables, of [`Series`], [`Figures`] or the identity behind them.
const VERSION: i64 = 5;
/// How long another process that writes is waited for.
const PATIENCE: Duration = Duration::from_secs(60);
/// How much of a file is looked at to tell whether it holds records.
const HEAD: u64 = 1 << 20;
/// Problems of a file that are kept.
const PROBLEMS: u64 = 1000;
/// Records between two looks at Ctrl-C.
const PACE: u64 = 256;

const TABLES: &str = "
CREATE TABLE file (id INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE, size INTEGER, mtime INTEGER, own INTEGER, done INTEGER,
    lines INTEGER, hash BLOB);
CREATE TABLE problem (file INTEGER, line INTEGER, message TEXT);
CREATE TABLE series (id INTEGER PRIMARY KEY, identity TEXT NOT NULL UNIQUE, kind TEXT, provenance TEXT, what TEXT, op TEXT,
    kernel TEXT, shape TEXT, dtype TEXT, model TEXT, test TEXT, device TEXT, machine TEXT, unit TEXT);
CREATE TABLE run (id INTEGER PRIMARY KEY, name TEXT NOT NULL, version TEXT NOT NULL, build TEXT NOT NULL, machine TEXT NOT NULL,
    UNIQUE (name, version, build));
CREATE TABLE record (file INTEGER, place INTEGER, series INTEGER, run INTEGER, time TEXT, invalid TEXT,
    tokens REAL, tokens_low REAL, tokens_high REAL, time_ns REAL, time_low REAL, time_high REAL,
    joules REAL, joules_low REAL, joules_high REAL, gflops REAL, gflops_low REAL, gflops_high REAL,
    gbps REAL, gbps_low REAL, gbps_high REAL, energy_kind TEXT, energy_boundary TEXT);
CREATE INDEX record_by_file ON record (file, place);
CREATE INDEX record_by_series ON record (series, time);
CREATE INDEX problem_by_file ON problem (file, line);
";

/// An open index. It says of the files that it was last updated for.
#[derive(Debug)]
pub(crate) struct Index {
    pub(super) db: Connection,
    /// The folder that paths are relative to; without one they are absolute.
    folder: Option<PathBuf>,
}

/// What is looked into: files, and the folder if it is all of a single one.
#[derive(Debug)]
pub(crate) struct Sources {
    files: Vec<PathBuf>,
    folder: Option<PathBuf>,
}

impl Sources {
    /// The files of paths and folders.
    ///
    /// # Errors
    /// What is not there or cannot be read; a folder without files of records.
    pub(crate) fn find(paths: &[PathBuf]) -> Result<Sources> {
        if let [folder] = paths
            && folder.is_dir()
        {
            let named = || format!("cannot read {}", folder.display());
            let folder = folder.canonicalize().with_context(named)?;
            return Ok(Sources { files: inputs::files(&folder)?, folder: Some(folder) });
        }
        let mut files = Vec::new();
        for path in paths {
            if path == Path::new("-") {
                files.push(path.clone());
                continue;
            }
            for file in inputs::files(path)? {
                // a pipe has no other name; what is not there is said where it is read
                let file = if file.is_file() { file.canonicalize().unwrap_or(file) } else { file };
                if !files.contains(&file) {
                    files.push(file);
                }
            }
        }
        Ok(Sources { files, folder: None })
    }

    /// Where the index may be kept, the best place first; after them memory is left.
    fn places(&self) -> Vec<Place> {
        let regular = |path: &PathBuf| path.is_file();
        if !self.files.iter().all(regular) {
            return Vec::new(); // what stdin or a pipe brings comes once
        }
        let own =
            self.folder.iter().map(|folder| Place { file: folder.join(NAME), folder: Some(folder.clone()) });
        let cache = etcetera::choose_base_strategy().ok().map(|base| base.cache_dir().join("perjoule"));
        own.chain(cache.map(|cache| Place { file: cache.join("index.sqlite"), folder: None })).collect()
    }

    /// Asks an index that is up to date. `rebuild` makes it anew first.
    ///
    /// # Errors
    /// Files that cannot be read, Ctrl-C, and errors of `ask` that are not the index's.
    pub(crate) fn ask<T>(&self, rebuild: bool, ask: impl Fn(&Index) -> Result<T>) -> Result<T> {
        let attempt = |index: Result<Index>| {
            let mut index = index?;
            index.update(&self.files)?;
            ask(&index)
        };
        for place in self.places() {
            if rebuild {
                place.remove();
            }
            for damaged_before in [false, true] {
                let error = match attempt(Index::open(&place)) {
                    Ok(answer) => return Ok(answer),
                    Err(error) => error,
                };
                let Some(why) = error.chain().find_map(|cause| cause.downcast_ref::<rusqlite::Error>())
                else {
                    return Err(error);
                };
                let elsewhere = [
                    ErrorCode::ReadOnly,
                    ErrorCode::CannotOpen,
                    ErrorCode::DatabaseBusy,
                    ErrorCode::DatabaseLocked,
                    ErrorCode::DiskFull,
                    ErrorCode::PermissionDenied,
                ];
                if damaged_before || why.sqlite_error_code().is_some_and(|code| elsewhere.contains(&code)) {
                    break;
                }
                place.remove();
            }
        }
        attempt(Index::in_memory())
    }
}

/// A file for an index.
struct Place {
    file: PathBuf,
    folder: Option<PathBuf>,
}

impl Place {
    /// Removes the index. What cannot be removed is found unusable again, and passed over.
    fn remove(&self) {
        for end in ["", "-journal", "-wal", "-shm"] {
            let mut name = self.file.clone().into_os_string();
            name.push(end);
            let _ = std::fs::remove_file(PathBuf::from(name));
        }
    }
}

/// What the index knows of a file.
struct Known {
    id: i64,
    size: u64,
    mtime: i64,
    /// Whether it holds perjoule's lines, which are only ever appended.
    own: bool,
    /// Bytes up to the end of the last complete line, and how many lines they are.
    done: u64,
    lines: u64,
    /// SHA-256 of these bytes: a file that grew was appended to if they are what they were.
    hash: Vec<u8>,
}

/// Time of the last change, in nanoseconds since 1970; 0 where there is none.
fn mtime(meta: &Metadata) -> i64 {
    let since = meta.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    since.map_or(0, |since| i64::try_from(since.as_nanos()).unwrap_or(0))
}

/// Takes a part of a file into a hash; of a file that ends before, what there is.
fn hash_part(hash: &mut Sha256, file: &mut File, from: u64, to: u64) -> io::Result<()> {
    file.seek(SeekFrom::Start(from))?;
    let mut part = BufReader::with_capacity(1 << 20, file.take(to.saturating_sub(from)));
    loop {
        let bytes = part.fill_buf()?;
        if bytes.is_empty() {
            return Ok(());
        }
        hash.update(bytes);
        let n = bytes.len();
        part.consume(n);
    }
}

/// SQLite's integers are signed. Sizes of files are far below the limit.
fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn unsigned(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}

impl Index {
    fn open(place: &Place) -> Result<Index> {
        if let (None, Some(parent)) = (&place.folder, place.file.parent()) {
            let _ = std::fs::create_dir_all(parent); // opening says what is wrong with it
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX
            | OpenFlags::SQLITE_OPEN_NOFOLLOW;
        Index::prepare(Connection::open_with_flags(&place.file, flags)?, place.folder.clone())
    }

    fn in_memory() -> Result<Index> {
        Index::prepare(Connection::open_in_memory()?, None)
    }

    fn prepare(mut db: Connection, folder: Option<PathBuf>) -> Result<Index> {
        db.busy_timeout(PATIENCE)?;
        // without waiting for the disk: the death of the process harms nothing, and after a loss of power the index is made again
        db.execute_batch(
            "PRAGMA synchronous = OFF; PRAGMA temp_store = MEMORY; PRAGMA trusted_schema = OFF;",
        )?;
        db.set_prepared_statement_cache_capacity(32);
        let version = |db: &Connection| db.query_row("PRAGMA user_version", [], |row| row.get::<_, i64>(0));
        if version(&db)? != VERSION {
            let tx = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
            if version(&tx)? != VERSION {
                let names: Vec<String> = tx
                    .prepare(
                        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'",
                    )?
                    .query_map([], |row| row.get(0))?
                    .collect::<Result<_, _>>()?;
                for name in names {
                    tx.execute_batch(&format!("DROP TABLE \"{}\"", name.replace('"', "\"\"")))?;
                }
                tx.execute_batch(TABLES)?;
                tx.pragma_update(None, "user_version", VERSION)?;
            }
            tx.commit()?;
        }
        db.execute_batch("CREATE TEMP TABLE chosen (file INTEGER PRIMARY KEY)")?;
        Ok(Index { db, folder })
    }

    /// The name by which the index knows a file: a folder can be moved with its index.
    fn name(&self, path: &Path) -> String {
        let short = self.folder.as_ref().and_then(|folder| path.strip_prefix(folder).ok());
        // names that are not text are told apart by their bytes
        let path = short.unwrap_or(path);
        path.to_str().map_or_else(|| format!("{path:?}"), str::to_owned)
    }

    /// Brings the index up to date with `files`; what is asked afterwards is said of them alone.
    fn update(&mut self, files: &[PathBuf]) -> Result<()> {
        let names: Vec<(String, &PathBuf)> = files.iter().map(|path| (self.name(path), path)).collect();
        let known = known(&self.db)?;
        let current = |(name, path): &(String, &PathBuf)| {
            let Ok(meta) = path.metadata() else { return false };
            known.get(name).is_some_and(|k| (k.size, k.mtime) == (meta.len(), mtime(&meta)) && meta.is_file())
        };
        if !names.iter().all(current) || gone(&self.folder, &known, &names).next().is_some() {
            let folder = self.folder.clone();
            let tx = self.db.transaction_with_behavior(TransactionBehavior::Immediate)?;
            // another process may have brought it up to date meanwhile
            let known = self::known(&tx)?;
            for name in gone(&folder, &known, &names) {
                forget(&tx, known[name].id)?;
            }
            let mut writer = Writer { tx: &tx, series: HashMap::new(), runs: HashMap::new(), written: 0 };
            for (name, path) in &names {
                writer.refresh(name, path, known.get(name))?;
            }
            tx.commit()?;
        }
        let known = self::known(&self.db)?;
        self.db.execute("DELETE FROM chosen", [])?;
        let mut choose = self.db.prepare("INSERT OR IGNORE INTO chosen VALUES (?)")?;
        for (name, _) in &names {
            if let Some(file) = known.get(name) {
                choose.execute([file.id])?;
            }
        }
        Ok(())
    }

    /// What could not be read, by file.
    pub(crate) fn problems(&self) -> Result<Vec<(String, Vec<String>)>> {
        let mut list: Vec<(String, Vec<String>)> = Vec::new();
        let mut statement = self.db.prepare(
            "SELECT path, line, message FROM problem JOIN file ON file.id = problem.file
             WHERE file.id IN (SELECT file FROM chosen) ORDER BY path, line",
        )?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let (path, line, message): (String, i64, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
            let text = if line > 0 { format!("line {line}: {message}") } else { message };
            match list.last_mut().filter(|(last, _)| *last == path) {
                Some((_, texts)) => texts.push(text),
                None => list.push((path, vec![text])),
            }
        }
        Ok(list)
    }
}

fn known(db: &Connection) -> Result<HashMap<String, Known>> {
    let mut statement = db.prepare("SELECT path, id, size, mtime, own, done, lines, hash FROM file")?;
    let rows = statement.query_map([], |row| {
        let number = |at| row.get::<_, i64>(at);
        let known = Known {
            id: number(1)?,
            size: unsigned(number(2)?),
            mtime: number(3)?,
            own: row.get(4)?,
            done: unsigned(number(5)?),
            lines: unsigned(number(6)?),
            hash: row.get(7)?,
        };
        Ok((row.get(0)?, known))
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Files that the index holds and that are no more.
fn gone<'k>(
    folder: &Option<PathBuf>,
    known: &'k HashMap<String, Known>,
    names: &[(String, &PathBuf)],
) -> impl Iterator<Item = &'k String> {
    let named: HashSet<String> = names.iter().map(|(name, _)| name.clone()).collect();
    let elsewhere = folder.is_none();
    // an index outside the folder also serves other calls
    known.keys().filter(move |name| !(named.contains(*name) || elsewhere && Path::new(name).exists()))
}

fn forget(tx: &Transaction<'_>, file: i64) -> Result<()> {
    tx.prepare_cached("DELETE FROM record WHERE file = ?")?.execute([file])?;
    tx.prepare_cached("DELETE FROM problem WHERE file = ?")?.execute([file])?;
    tx.prepare_cached("DELETE FROM file WHERE id = ?")?.execute([file])?;
    Ok(())
}

/// Fills the index within a transaction.
struct Writer<'t> {
    tx: &'t Transaction<'t>,
    /// Ids by identity and by name.
    series: HashMap<String, i64>,
    runs: HashMap<[String; 3], i64>,
    written: u64,
}

impl Writer<'_> {
    fn refresh(&mut self, name: &str, path: &Path, known: Option<&Known>) -> Result<()> {
        let named = || format!("cannot read {}", path.display());
        let meta = if path == Path::new("-") { None } else { Some(path.metadata().with_context(named)?) };
        let Some(meta) = meta.filter(Metadata::is_file) else { return self.whole(name, path, 0, 0) };
        let (size, mtime) = (meta.len(), mtime(&meta));
        if known.is_some_and(|known| (known.size, known.mtime) == (size, mtime)) {
            return Ok(());
        }
        let mut file = File::open(path).with_context(named)?;
        if let Some(known) = known {
            let mut hash = Sha256::new();
            let grown = known.own && size > known.size;
            if grown {
                hash_part(&mut hash, &mut file, 0, known.done).with_context(named)?;
            }
            if grown && hash.clone().finalize().as_slice() == known.hash {
                // a last line that had no end is read again
                self.tx
                    .prepare_cached("DELETE FROM record WHERE file = ? AND place >= ?")?
                    .execute([known.id, signed(known.done)])?;
                self.tx
                    .prepare_cached("DELETE FROM problem WHERE file = ? AND line > ?")?
                    .execute([known.id, signed(known.lines)])?;
                let read = (known.done, known.lines, hash);
                return self.lines((known.id, name, path), file, (size, mtime), read);
            }
            forget(self.tx, known.id)?;
        }
        let mut head = Vec::new();
        file.by_ref().take(HEAD).read_to_end(&mut head).with_context(named)?;
        if head.is_empty() || inputs::is_own(&head) {
            let id = self.file(name)?;
            return self.lines((id, name, path), file, (size, mtime), (0, 0, Sha256::new()));
        }
        self.whole(name, path, size, mtime)
    }

    fn file(&self, name: &str) -> Result<i64> {
        let mut insert = self.tx.prepare_cached(
            "INSERT INTO file (path, size, mtime, own, done, lines, hash) VALUES (?, 0, 0, 0, 0, 0, x'')",
        )?;
        insert.execute([name])?;
        Ok(self.tx.last_insert_rowid())
    }

    fn state(&self, id: i64, state: &Known) -> Result<()> {
        let mut update = self.tx.prepare_cached(
            "UPDATE file SET size = ?, mtime = ?, own = ?, done = ?, lines = ?, hash = ? WHERE id = ?",
        )?;
        let (size, done, lines) = (signed(state.size), signed(state.done), signed(state.lines));
        update.execute(params![size, state.mtime, state.own, done, lines, state.hash, id])?;
        Ok(())
    }

    /// Reads perjoule's own lines from `(offset, lines before, hash of what is before)` to the size that the file had when it was looked at.
    fn lines(
        &mut self,
        (id, name, path): (i64, &str, &Path),
        mut file: File,
        (size, mtime): (u64, i64),
        (from, before, mut hash): (u64, u64, Sha256),
    ) -> Result<()> {
        let named = || format!("cannot read {}", path.display());
        file.seek(SeekFrom::Start(from)).with_context(named)?;
        let part = BufReader::with_capacity(1 << 20, file.by_ref().take(size.saturating_sub(from)));
        let mut reader = Reader::new(part);
        let (mut last, mut problems) = ((0, 0), 0);
        loop {
            let start = (reader.offset(), reader.line());
            let Some(entry) = reader.next() else { break };
            last = start;
            match entry {
                Ok(record) => self.record(id, from + start.0, name, &record)?,
                Err(warning) => {
                    if let Problem::Io(error) = warning.problem {
                        return Err(error).with_context(named);
                    }
                    problems += 1;
                    if problems <= PROBLEMS {
                        self.problem(id, before + warning.line, &warning.problem.to_string())?;
                    }
                }
            }
        }
        let end = (reader.offset(), reader.line());
        drop(reader);
        let ended = end.0 == 0 || {
            let mut byte = [0];
            file.seek(SeekFrom::Start(from + end.0 - 1)).with_context(named)?;
            file.read_exact(&mut byte).with_context(named)?;
            byte == *b"\n"
        };
        let (offset, lines) = if ended { end } else { last };
        let done = from + offset;
        hash_part(&mut hash, &mut file, from, done).with_context(named)?;
        let (lines, hash) = (before + lines, hash.finalize().to_vec());
        self.state(id, &Known { id, size, mtime, own: true, done, lines, hash })
    }

    /// Reads a file of another tool, or what comes once.
    fn whole(&mut self, name: &str, path: &Path, size: u64, mtime: i64) -> Result<()> {
        let input = inputs::read(path)?;
        let id = self.file(name)?;
        for (place, record) in input.records.iter().enumerate() {
            self.record(id, place as u64, name, record)?;
        }
        for warning in input.warnings.iter().take(PROBLEMS as usize) {
            self.problem(id, 0, warning)?;
        }
        self.state(id, &Known { id, size, mtime, own: false, done: 0, lines: 0, hash: Vec::new() })
    }

    fn problem(&self, file: i64, line: u64, message: &str) -> Result<()> {
        let mut insert = self.tx.prepare_cached("INSERT INTO problem VALUES (?, ?, ?)")?;
        insert.execute(params![file, signed(line), one_line(message)])?;
        Ok(())
    }

    fn record(&mut self, file: i64, place: u64, name: &str, record: &Record) -> Result<()> {
        self.written += 1;
        if self.written.is_multiple_of(PACE) && interrupted() {
            return Err(Interrupted.into());
        }
        let series = self.series_of(record)?;
        let run = self.run_of(record, name)?;
        let figures = Figures::of(record);
        let invalid = (!record.valid).then(|| match record.invalid_reasons.as_slice() {
            [] => "no reason given".to_owned(),
            reasons => one_line(&reasons.join("; ")),
        });
        let wrong = (record.verification.verified == Some(false)).then(|| "its output was wrong".to_owned());
        let m = figures.metrics.map(|q| (q.map(|q| q.value), q.and_then(|q| q.interval)));
        let (low, high) = (|at: usize| m[at].1.map(|i| i[0]), |at: usize| m[at].1.map(|i| i[1]));
        let mut insert = self.tx.prepare_cached(
            "INSERT INTO record VALUES (?, ?, ?, ?, ?, ?,  ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?,  ?, ?)",
        )?;
        insert.execute(params![
            file,
            signed(place),
            series,
            run,
            record.test_time,
            invalid.or(wrong),
            m[0].0,
            low(0),
            high(0),
            m[1].0,
            low(1),
            high(1),
            m[2].0,
            low(2),
            high(2),
            m[3].0,
            low(3),
            high(3),
            m[4].0,
            low(4),
            high(4),
            figures.energy_kind,
            figures.energy_boundary,
        ])?;
        Ok(())
    }

    fn series_of(&mut self, record: &Record) -> Result<i64> {
        let (identity, s) = Series::of(record);
        if let Some(id) = self.series.get(&identity) {
            return Ok(*id);
        }
        let mut insert = self.tx.prepare_cached(
            "INSERT INTO series (identity, kind, provenance, what, op, kernel, shape, dtype, model, test, device, machine, unit)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
             ON CONFLICT (identity) DO UPDATE SET identity = excluded.identity RETURNING id",
        )?;
        let fields = params![
            identity,
            s.kind,
            s.provenance,
            s.what,
            s.op,
            s.kernel,
            s.shape,
            s.dtype,
            s.model,
            s.test,
            s.device,
            s.machine,
            s.unit
        ];
        let id = insert.query_row(fields, |row| row.get(0))?;
        self.series.insert(identity, id);
        Ok(id)
    }

    /// The run of a record; what names none came with its file. Unknown texts are empty.
    fn run_of(&mut self, record: &Record, file: &str) -> Result<i64> {
        let e = &record.environment;
        let text = |field: &Option<String>| field.as_deref().map(one_line).unwrap_or_default();
        let name = e.run_id.as_deref().map_or_else(|| one_line(file), one_line);
        // a tool's version may be its commit alone: whose it is, the tool's name says
        let (version, build) = match &record.source.source_tool {
            Some(tool) => (one_line(tool), text(&record.source.source_version)),
            None => (text(&e.perjoule_version), text(&e.build_commit)),
        };
        let key = [name, version, build];
        if let Some(id) = self.runs.get(&key) {
            return Ok(*id);
        }
        let machine = text(&record.device.device_name.clone().or(e.cpu_model.clone()));
        let mut insert = self.tx.prepare_cached(
            "INSERT INTO run (name, version, build, machine) VALUES (?, ?, ?, ?)
             ON CONFLICT (name, version, build) DO UPDATE SET name = excluded.name RETURNING id",
        )?;
        let id = insert.query_row(params![key[0], key[1], key[2], machine], |row| row.get(0))?;
        self.runs.insert(key, id);
        Ok(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the index holds of a record changes only with the version, or indexes of an older perjoule would be believed.
    #[test]
    fn the_version_stands_for_what_is_kept() {
        let mut record = crate::compare::row::tests::record("llama-3.1-8b", 1);
        record.workload.kernel = Some("k".into());
        let (identity, series) = Series::of(&record);
        let kept = format!("{TABLES}{identity}{series:?}{:?}", Figures::of(&record));
        let hash: String = Sha256::digest(kept).iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        assert_eq!((VERSION, hash.as_str()), (5, "5c49f5b8"), "raise VERSION, and put the new pair here");
    }

    #[test]
    fn an_edit_of_equal_length_far_before_the_end_is_seen_though_lines_follow() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        let line = |model: &str, second: usize| {
            let mut record = crate::compare::row::tests::record(model, 1);
            record.test_time = Some(format!("2026-01-01T00:00:{second:02}Z"));
            record.timing.samples_ns = Some(vec![1e9 / 3.0; 100]);
            perjoule_record::to_line(&record).unwrap()
        };
        let text: String = (0..60).map(|i| line("one", i)).collect();
        assert!(text.len() > 128 << 10);
        let models = || {
            let sources = Sources::find(&[folder.path().to_owned()]).unwrap();
            let selection = super::super::query::Selection::default();
            let series = sources.ask(false, |index| index.series(&selection)).unwrap();
            format!("{series:?}").matches("two").count()
        };
        std::fs::write(&path, &text).unwrap();
        assert_eq!(models(), 0);
        let edited = text.replacen("one", "two", 1) + &line("one", 60);
        std::fs::write(&path, edited).unwrap();
        assert!(models() > 0, "the first line is another one");
    }

    /// The index beside the truth: reading everything again. Files are appended to, torn, cut and replaced at random.
    #[test]
    fn an_update_says_what_reading_again_says() {
        let folder = tempfile::tempdir().unwrap();
        let mut state = 1u64;
        let mut random = |n: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % n
        };
        let line = |i: u64| {
            let mut record = crate::compare::row::tests::record("m", 1 + i % 3);
            record.test_time = Some(format!("2026-01-01T00:{:02}:{:02}Z", i / 60 % 60, i % 60));
            record.timing.samples_ns = None;
            perjoule_record::to_line(&record).unwrap()
        };
        std::fs::write(folder.path().join("0.jsonl"), "").unwrap();
        for round in 0..400 {
            let path = folder.path().join(format!("{}.jsonl", random(3)));
            let mut bytes = std::fs::read(&path).unwrap_or_default();
            match random(10) {
                0 => bytes.truncate(random(bytes.len() as u64 + 1) as usize),
                1 => bytes.extend(b"no record\n"),
                2 => bytes.clear(),
                3 => {
                    let text = line(round);
                    bytes.extend(&text.as_bytes()[..random(text.len() as u64) as usize]);
                }
                4 => bytes.extend(line(round).trim_end().as_bytes()),
                5 => bytes.push(b'\n'),
                // an edit anywhere that keeps the length, and a line more
                8 | 9 => {
                    let seconds = random(10);
                    let digit = |byte: &u8| byte.is_ascii_digit();
                    let at = bytes
                        .iter()
                        .position(digit)
                        .map_or(0, |first| first.max(random(bytes.len() as u64) as usize));
                    if let Some(byte) = bytes.iter_mut().skip(at).find(|byte| byte.is_ascii_digit()) {
                        *byte = b'0' + seconds as u8;
                    }
                    bytes.extend(line(round).into_bytes());
                }
                _ => bytes.extend((0..random(4)).flat_map(|i| line(round * 4 + i).into_bytes())),
            }
            std::fs::write(&path, bytes).unwrap();
            let sources = Sources::find(&[folder.path().to_owned()]).unwrap();
            let selection = super::super::query::Selection::default();
            let ask = |index: &Index| Ok((index.series(&selection)?, index.problems()?));
            let updated = sources.ask(false, ask).unwrap();
            let mut again = Index::in_memory().unwrap();
            again.folder = sources.folder.clone();
            again.update(&sources.files).unwrap();
            assert_eq!(updated, ask(&again).unwrap(), "round {round}");
        }
    }
}
