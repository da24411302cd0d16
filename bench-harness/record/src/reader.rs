//! Reads records back from lines of JSON. A damaged line costs itself and nothing else: it becomes a [`Warning`] and
//! reading goes on.

use std::io::{self, BufRead, Read};

use crate::{Record, SCHEMA_VERSION};

/// Longest line that is read or stored, in bytes without the newline: a record with a million samples fits.
pub const MAX_LINE_BYTES: usize = 32 << 20;

/// Iterates over the records of `input`, one a line; blank lines and a byte order mark are passed over.
///
/// Memory stays bounded by [`MAX_LINE_BYTES`] whatever the input holds. After an error of the input itself
/// ([`Problem::Io`]) the iteration ends.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    line: u64,
    offset: u64,
    buffer: Vec<u8>,
    done: bool,
}

/// A line that held no readable record.
#[derive(Debug, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct Warning {
    /// Number of the line, from 1.
    pub line: u64,
    /// What was wrong with it.
    pub problem: Problem,
}

/// Why a line could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// The line ends early: its writer was stopped in the middle of it.
    #[error("cut off: whoever wrote it was stopped midway; this record is lost, the others are not")]
    Torn,
    /// The line is not JSON or not a record.
    #[error("not a record: {0}")]
    Malformed(serde_json::Error),
    /// The line follows a schema that is not known, and cannot be read as this one.
    #[error(
        "schema version {found} is not readable (this is version {SCHEMA_VERSION}): use a newer perjoule ({error})"
    )]
    Schema {
        /// Version that the line names.
        found: u64,
        /// What could not be read.
        error: serde_json::Error,
    },
    /// The line is longer than [`MAX_LINE_BYTES`].
    #[error("longer than {} MiB: not a record", MAX_LINE_BYTES >> 20)]
    TooLong,
    /// The input failed; nothing after it was read.
    #[error("cannot read on: {0}")]
    Io(io::Error),
}

impl<R: BufRead> Reader<R> {
    /// Reads from `input`.
    pub fn new(input: R) -> Self {
        Self { input, line: 0, offset: 0, buffer: Vec::new(), done: false }
    }

    /// Number of the line that was read last, from 1; 0 before the first.
    pub fn line(&self) -> u64 {
        self.line
    }

    /// Bytes of the input up to the end of that line, its newline included.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// All records and all warnings, both in the order of the lines.
    pub fn read_all(self) -> (Vec<Record>, Vec<Warning>) {
        let (mut records, mut warnings) = (Vec::new(), Vec::new());
        for entry in self {
            match entry {
                Ok(record) => records.push(record),
                Err(warning) => warnings.push(warning),
            }
        }
        (records, warnings)
    }

    /// Reads the next line, without its newline, into the buffer; false at the end of the input.
    fn next_line(&mut self) -> Result<bool, Problem> {
        self.buffer.clear();
        // The byte beyond the limit is the newline, or else the line is too long.
        let read = self.input.by_ref().take(MAX_LINE_BYTES as u64 + 1).read_until(b'\n', &mut self.buffer);
        match read.map_err(Problem::Io)? {
            0 => return Ok(false),
            bytes => (self.line, self.offset) = (self.line + 1, self.offset + bytes as u64),
        }
        if self.buffer.last() == Some(&b'\n') {
            self.buffer.pop();
        } else if self.buffer.len() > MAX_LINE_BYTES {
            self.buffer = Vec::new();
            self.offset += self.input.skip_until(b'\n').map_err(Problem::Io)? as u64;
            return Err(Problem::TooLong);
        }
        Ok(true)
    }

    fn next_record(&mut self) -> Result<Option<Record>, Problem> {
        while self.next_line()? {
            let line = match self.line {
                1 => self.buffer.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&self.buffer),
                _ => &self.buffer,
            };
            if line.trim_ascii().is_empty() {
                continue;
            }
            return parse(line).map(Some);
        }
        Ok(None)
    }
}

impl<R: BufRead> Iterator for Reader<R> {
    type Item = Result<Record, Warning>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let next = self.next_record();
        self.done = matches!(next, Ok(None) | Err(Problem::Io(_)));
        next.map_err(|problem| Warning { line: self.line.max(1), problem }).transpose()
    }
}

/// Reads one line. A field's absence is null, so lines of every release of a schema version read alike.
fn parse(line: &[u8]) -> Result<Record, Problem> {
    #[derive(serde::Deserialize)]
    struct Version {
        schema_version: u64,
    }
    serde_json::from_slice::<Record>(line)
        .and_then(|record| match record.schema_version {
            0 => Err(serde::de::Error::custom("schema_version starts at 1")),
            _ => Ok(record),
        })
        .map_err(|error| match serde_json::from_slice(line) {
            Ok(Version { schema_version: found }) if found > u64::from(SCHEMA_VERSION) => {
                Problem::Schema { found, error }
            }
            _ if error.is_eof() => Problem::Torn,
            _ => Problem::Malformed(error),
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Environment, Kind, to_line};

    fn record() -> Record {
        Record::new(Kind::Kernel, &Environment::default())
    }

    fn line() -> String {
        to_line(&record()).unwrap()
    }

    fn problems(input: &[u8]) -> (usize, Vec<(u64, String)>) {
        let (records, warnings) = Reader::new(input).read_all();
        (records.len(), warnings.iter().map(|w| (w.line, w.problem.to_string())).collect())
    }

    #[test]
    fn damage_costs_one_line() {
        let good = line();
        let text = format!("\u{feff}{good}\n  \r\n{{\"a\":}}\nnull\n[1]\n{}", good.replace('\n', "\r\n"));
        let (count, warnings) = problems(text.as_bytes());
        assert_eq!(count, 2);
        assert_eq!(warnings.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [4, 5, 6]);
        assert!(warnings.iter().all(|(_, text)| text.starts_with("not a record")), "{warnings:?}");

        let (count, warnings) = problems(&[good.as_bytes(), b"\xff\xfe\n", good.as_bytes()].concat());
        assert_eq!((count, warnings.len(), warnings[0].0), (2, 1, 2));
    }

    #[test]
    fn every_cut_of_the_last_line_is_called_torn() {
        let good = line();
        for cut in 1..good.len() - 1 {
            let text = format!("{good}{}", &good[..cut]);
            let (records, warnings) = Reader::new(text.as_bytes()).read_all();
            assert_eq!(records.len(), 1);
            assert!(matches!(warnings[..], [Warning { line: 2, problem: Problem::Torn }]), "cut at {cut}");
        }
        // A later writer ended the torn line before it went on.
        let (count, warnings) = problems(format!("{}\n{good}", &good[..40]).as_bytes());
        assert_eq!((count, warnings.len(), warnings[0].0), (1, 1, 1));
        assert!(warnings[0].1.starts_with("cut off"));
        let complete = format!("{good}{}", good.trim_end());
        assert_eq!(problems(complete.as_bytes()), (2, vec![]), "only the newline is missing");
    }

    #[test]
    fn long_lines_are_skipped() {
        let good = line();
        let long = |bytes| format!("{good}{}\n{good}", " ".repeat(bytes));
        assert_eq!(problems(long(MAX_LINE_BYTES).as_bytes()), (2, vec![]));
        for excess in [1, 2, MAX_LINE_BYTES * 2] {
            let (count, warnings) = problems(long(MAX_LINE_BYTES + excess).as_bytes());
            assert_eq!((count, warnings.len(), warnings[0].0), (2, 1, 2), "{excess} bytes too long");
            assert!(warnings[0].1.starts_with("longer than 32 MiB"));
        }
    }

    #[test]
    fn places_are_those_of_the_bytes() {
        let good = line();
        let long = " ".repeat(MAX_LINE_BYTES + 2);
        let text = format!("{good}\nnull\n{long}\n{good}{}", good.trim_end());
        let mut reader = Reader::new(text.as_bytes());
        let mut places = vec![(reader.line(), reader.offset())];
        while reader.next().is_some() {
            places.push((reader.line(), reader.offset()));
        }
        let n = good.len() as u64;
        let after = n + 6 + long.len() as u64 + 1;
        let end = after + 2 * n - 1;
        assert_eq!(places, [(0, 0), (1, n), (3, n + 6), (4, after), (5, after + n), (6, end)]);
        assert_eq!((end, reader.offset()), (text.len() as u64, end));
    }

    #[test]
    fn other_versions() {
        let edit = |change: &dyn Fn(&mut serde_json::Map<String, serde_json::Value>)| {
            let mut value = serde_json::to_value(record()).unwrap();
            change(value.as_object_mut().unwrap());
            value.to_string()
        };
        // A newer file that only adds: readable, its unknown words kept apart from the known ones.
        let newer = edit(&|map| {
            map.insert("schema_version".into(), 7.into());
            map.insert("moon_phase".into(), serde_json::json!({"full": true}));
            map.insert("kind".into(), "campaign".into());
            map.insert("cache_state".into(), "lukewarm".into());
        });
        let back = Reader::new(newer.as_bytes()).next().unwrap().unwrap();
        assert_eq!((back.schema_version, back.kind), (7, Kind::Other));
        assert_eq!(back.workload.cache_state, Some(crate::CacheState::Other));

        // A newer file that changed a field's type: refused, with the cure.
        let changed = edit(&|map| {
            map.insert("schema_version".into(), 7.into());
            map.insert("valid".into(), "mostly".into());
        });
        let (count, warnings) = problems(changed.as_bytes());
        assert_eq!(count, 0);
        assert!(warnings[0].1.contains("schema version 7") && warnings[0].1.contains("newer perjoule"));

        let minimal = r#"{"schema_version":1,"kind":"ceiling","provenance":"imported","valid":true}"#;
        let back = Reader::new(minimal.as_bytes()).next().unwrap().unwrap();
        let mut expected = record();
        (expected.kind, expected.provenance, expected.test_time) =
            (Kind::Ceiling, crate::Provenance::Imported, None);
        assert_eq!(back, expected);

        for bad in ["0", "-1", "1.5", "null", "\"1\""] {
            let text = minimal.replace(":1,", &format!(":{bad},"));
            assert_eq!(problems(text.as_bytes()).0, 0, "schema_version {bad}");
        }
    }

    #[test]
    fn numbers_beyond_json() {
        let mut written = record();
        written.timing.samples_ns = Some(vec![1.0, f64::NAN, f64::INFINITY]);
        written.timing.median_ns = Some(f64::NAN);
        written.timing.ci95_ns = Some([0.0, f64::INFINITY].into());
        written.energy.joules = Some(f64::NEG_INFINITY);
        written.energy.net_joules = Some(1e308);
        let text = to_line(&written).unwrap();
        assert!(text.contains(r#""samples_ns":[1.0,null,null]"#) && text.contains(r#""ci95_ns":null"#));
        let back = Reader::new(text.as_bytes()).next().unwrap().unwrap();
        assert_eq!((back.timing.median_ns, back.timing.ci95_ns, back.energy.joules), (None, None, None));
        assert_eq!(back.energy.net_joules, Some(1e308));
        let samples = back.timing.samples_ns.unwrap();
        assert!(samples[0] == 1.0 && samples[1].is_nan() && samples[2].is_nan());

        let with = |field: &str, value: &str| {
            let text = line().replace(&format!("\"{field}\":null"), &format!("\"{field}\":{value}"));
            Reader::new(text.as_bytes()).next().unwrap().map(|record| record.workload.n_prompt)
        };
        assert_eq!(with("n_prompt", "512.0").unwrap(), Some(512));
        assert_eq!(with("n_prompt", "18446744073709551615").unwrap(), Some(u64::MAX));
        for bad in ["NaN", "-1", "0.5", "1e300", "\"512\"", "18446744073709551616", "true"] {
            assert!(with("n_prompt", bad).is_err(), "{bad} is not a count");
        }
        for bad in ["1e999", "Infinity", "NaN", "\"1\""] {
            assert!(with("joules", bad).is_err(), "{bad} is not a number");
        }
        for bad in ["[1]", "[1,2,3]", "[1,null]", "7"] {
            assert!(with("ci95_ns", bad).is_err(), "{bad} is not an interval");
        }
    }

    #[test]
    fn a_failing_input_ends_with_one_warning() {
        struct Failing;
        impl Read for Failing {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("disk on fire"))
            }
        }
        let good = line();
        let input = io::BufReader::new(good.as_bytes().chain(Failing));
        let (records, warnings) = Reader::new(input).read_all();
        assert_eq!((records.len(), warnings.len()), (1, 1));
        assert!(warnings[0].to_string().contains("disk on fire"));
    }
}
