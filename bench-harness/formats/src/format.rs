//! The formats by name, and how a file's format is told from its content.

use std::fmt;
use std::str::FromStr;

/// A file format of results. Some can only be read, some only be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Format {
    /// perjoule's own lines of JSON, one record each.
    Perjoule,
    /// `llama-bench -o json`: one array of objects.
    LlamaBenchJson,
    /// `llama-bench -o jsonl`: an object a line.
    LlamaBenchJsonl,
    /// `llama-bench -o csv`.
    LlamaBenchCsv,
    /// `llama-bench -o sql`: INSERT statements.
    LlamaBenchSql,
    /// `llama-bench -o md`, its default: a Markdown table, also in the midst of other text.
    LlamaBenchMarkdown,
    /// A task of the ML.ENERGY leaderboard, version 3: `public/data/tasks/*.json` of its repository.
    MlEnergy,
    /// `mlperf_log_summary.txt`, as LoadGen of MLPerf inference writes it.
    MlperfSummary,
    /// `summary.csv` of MLPerf inference's submission checker.
    MlperfCsv,
    /// `hyperfine --export-json`.
    Hyperfine,
    /// Bencher Metric Format: <https://bencher.dev/docs/reference/bencher-metric-format>.
    Bencher,
    /// github-action-benchmark, `customSmallerIsBetter`: times and joules.
    ActionSmaller,
    /// github-action-benchmark, `customBiggerIsBetter`: rates.
    ActionBigger,
    /// OpenMetrics text, version 1.0: the last run as gauges.
    OpenMetrics,
}

/// A name that stands for no format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a format: use one of {known}", known = names(Format::ALL))]
pub struct UnknownFormat(String);

/// The names of `formats`, as messages list them.
pub(crate) fn names(formats: &[Format]) -> String {
    formats.iter().map(|format| format.name()).collect::<Vec<_>>().join(", ")
}

impl Format {
    /// Every format.
    pub const ALL: &[Self] = &[
        Self::Perjoule,
        Self::LlamaBenchJson,
        Self::LlamaBenchJsonl,
        Self::LlamaBenchCsv,
        Self::LlamaBenchSql,
        Self::LlamaBenchMarkdown,
        Self::MlEnergy,
        Self::MlperfSummary,
        Self::MlperfCsv,
        Self::Hyperfine,
        Self::Bencher,
        Self::ActionSmaller,
        Self::ActionBigger,
        Self::OpenMetrics,
    ];

    /// The formats that [`import`](crate::import) reads.
    pub const IMPORTED: &[Self] = &[
        Self::Perjoule,
        Self::LlamaBenchJson,
        Self::LlamaBenchJsonl,
        Self::LlamaBenchCsv,
        Self::LlamaBenchSql,
        Self::LlamaBenchMarkdown,
        Self::MlEnergy,
        Self::MlperfSummary,
        Self::MlperfCsv,
    ];

    /// The formats that [`export`](crate::export) writes.
    pub const EXPORTED: &[Self] = &[
        Self::Perjoule,
        Self::LlamaBenchJson,
        Self::LlamaBenchJsonl,
        Self::LlamaBenchCsv,
        Self::LlamaBenchSql,
        Self::LlamaBenchMarkdown,
        Self::Hyperfine,
        Self::Bencher,
        Self::ActionSmaller,
        Self::ActionBigger,
        Self::OpenMetrics,
    ];

    /// The name that a command line takes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Perjoule => "perjoule",
            Self::LlamaBenchJson => "llama-bench-json",
            Self::LlamaBenchJsonl => "llama-bench-jsonl",
            Self::LlamaBenchCsv => "llama-bench-csv",
            Self::LlamaBenchSql => "llama-bench-sql",
            Self::LlamaBenchMarkdown => "llama-bench-md",
            Self::MlEnergy => "ml-energy",
            Self::MlperfSummary => "mlperf-summary",
            Self::MlperfCsv => "mlperf-csv",
            Self::Hyperfine => "hyperfine",
            Self::Bencher => "bencher",
            Self::ActionSmaller => "github-action-smaller",
            Self::ActionBigger => "github-action-bigger",
            Self::OpenMetrics => "openmetrics",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(name: &str) -> Result<Self, UnknownFormat> {
        let found = Self::ALL.iter().find(|format| format.name() == name);
        found.copied().ok_or_else(|| UnknownFormat(name.into()))
    }
}

/// The format of the text that begins with `head`, by what it holds; names of files say too little. Lines of a log before
/// the result do not matter.
pub(crate) fn detect(head: &str) -> Option<Format> {
    let lines = || head.lines().map(str::trim).filter(|line| !line.is_empty());
    if lines().any(is_statement) {
        return Some(Format::LlamaBenchSql);
    }
    if let Some(json) = lines().find(|line| line.starts_with(['{', '['])) {
        // A log may have brackets too: the decision falls by the keys.
        if head.contains("\"schema_version\"") {
            return Some(Format::Perjoule);
        } else if head.contains("\"configurations\"") {
            return Some(Format::MlEnergy);
        } else if head.contains("\"avg_ts\"") || head.contains("\"avg_ns\"") {
            let array = json.starts_with('[');
            return Some(if array { Format::LlamaBenchJson } else { Format::LlamaBenchJsonl });
        }
    }
    lines().find_map(|line| {
        if is_csv_header(line, Format::LlamaBenchCsv) {
            Some(Format::LlamaBenchCsv)
        } else if is_csv_header(line, Format::MlperfCsv) {
            Some(Format::MlperfCsv)
        } else if is_table_header(line) {
            Some(Format::LlamaBenchMarkdown)
        } else {
            (line == SUMMARY_TITLE).then_some(Format::MlperfSummary)
        }
    })
}

/// The line that heads a summary of LoadGen.
pub(crate) const SUMMARY_TITLE: &str = "MLPerf Results Summary";

/// Whether a line begins one of the statements that llama-bench writes.
pub(crate) fn is_statement(line: &str) -> bool {
    let starts = |words: &str| line.get(..words.len()).is_some_and(|head| head.eq_ignore_ascii_case(words));
    starts("INSERT INTO ") || starts("CREATE TABLE ")
}

/// Whether a line names the columns that rows of `format` mean nothing without.
pub(crate) fn is_csv_header(line: &str, format: Format) -> bool {
    let needed: &[&str] = match format {
        Format::MlperfCsv => &["Platform", "Scenario", "Result", "Units"],
        _ => &["n_prompt", "n_gen", "avg_ts"],
    };
    let columns = || line.split(',').map(|column| column.trim().trim_matches('"'));
    needed.iter().all(|needed| columns().any(|column| column == *needed))
}

/// Whether a line heads a table of llama-bench.
pub(crate) fn is_table_header(line: &str) -> bool {
    let cells = || line.split('|').map(str::trim);
    line.contains('|') && cells().any(|cell| cell == "test") && cells().any(|cell| cell == "t/s")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for format in Format::ALL {
            assert_eq!(format.to_string().parse::<Format>().as_ref(), Ok(format));
        }
        let error = "xml".parse::<Format>().unwrap_err().to_string();
        assert!(error.contains("`xml`") && error.contains("llama-bench-md"), "{error}");
        assert!(Format::IMPORTED.iter().chain(Format::EXPORTED).all(|format| Format::ALL.contains(format)));
    }

    #[test]
    fn content_tells_the_format() {
        for (head, expected) in [
            ("{\"schema_version\":1}", Some(Format::Perjoule)),
            ("garbage\n{\"schema_version\":1,", Some(Format::Perjoule)),
            ("[\n{\"avg_ns\": 1", Some(Format::LlamaBenchJson)),
            ("load_backend: loaded\n{\"avg_ts\": 1}", Some(Format::LlamaBenchJsonl)),
            ("{\"configurations\": [", Some(Format::MlEnergy)),
            ("log\nbuild,n_prompt,n_gen,avg_ts", Some(Format::LlamaBenchCsv)),
            ("\"n_prompt\",\"n_gen\",\"avg_ts\"", Some(Format::LlamaBenchCsv)),
            ("insert into test (a) values (1);", Some(Format::LlamaBenchSql)),
            ("text\n\n| t/s | test |", Some(Format::LlamaBenchMarkdown)),
            ("====\nMLPerf Results Summary\n", Some(Format::MlperfSummary)),
            ("Organization,Platform,Scenario,Result,Units\n", Some(Format::MlperfCsv)),
            ("", None),
            ("{}", None),
            ("[1, 2]", None),
            ("| test | time |", None),
            ("a,b,c\n1,2,3", None),
        ] {
            assert_eq!(detect(head), expected, "{head}");
        }
    }
}
