//! llama-bench's Markdown tables, alone or in the midst of an issue's text. Columns are found by their titles.

use serde_json::{Map, Value};

use super::row::Row;
use super::{ImportError, Sink, llama_bench, shown};
use crate::escape::markdown_cell_back;
use crate::format::is_table_header;

/// Titles of columns that differ from the field's name, of this year's and of older versions.
const TITLES: [(&str, &str); 19] = [
    ("model", "model_type"),
    ("backend", "backends"),
    ("ngl", "n_gpu_layers"),
    ("threads", "n_threads"),
    ("ncmoe", "n_cpu_moe"),
    ("sm", "split_mode"),
    ("mg", "main_gpu"),
    ("nkvo", "no_kv_offload"),
    ("fa", "flash_attn"),
    ("dev", "devices"),
    ("ts", "tensor_split"),
    ("ot", "tensor_buft_overrides"),
    ("mmap", "use_mmap"),
    ("dio", "use_direct_io"),
    ("lm", "load_mode"),
    ("embd", "embeddings"),
    ("nopo", "no_op_offload"),
    ("noh", "no_host"),
    ("fitt", "fit_target"),
];

/// Reads every table with the columns `test` and `t/s`.
pub(super) fn read(text: &str, sink: &mut Sink<'_>) -> Result<(), ImportError> {
    let mut columns: Option<Vec<String>> = None;
    let mut tables = 0;
    // The build is named under the tables that it made.
    let mut unnamed = 0;
    for (line, number) in text.lines().zip(1..) {
        let line = line.trim();
        if is_table_header(line) {
            tables += 1;
            let titles: Vec<String> = cells(line).iter().map(|title| field(title).into()).collect();
            let twice = titles.iter().enumerate().find(|(i, title)| titles[..*i].contains(title));
            if let Some((_, title)) = twice {
                sink.warn(
                    number,
                    format!("the column `{}` appears twice; this table is left out", shown(title)),
                );
            }
            columns = twice.is_none().then_some(titles);
        } else if let Some(build) = line.strip_prefix("build: ") {
            for record in &mut sink.records[unnamed..] {
                record.source.source_version = Some(markdown_cell_back(build.trim()));
            }
            unnamed = sink.records.len();
        } else if !line.contains('|') {
            columns = None;
        } else if let Some(columns) = &columns {
            let cells = cells(line);
            if cells.iter().all(|cell| cell.chars().all(|c| "-: ".contains(c))) {
                continue;
            }
            match row(columns, &cells, number) {
                Ok(row) => llama_bench::push(&row, sink)?,
                Err(message) => sink.warn(number, format!("{message}; this line is left out")),
            }
        }
    }
    if tables == 0 {
        return Err(sink.not_format("it holds no table with the columns `test` and `t/s`"));
    }
    Ok(())
}

/// The field that a column's title stands for.
fn field(title: &str) -> &str {
    TITLES.iter().find(|(short, _)| *short == title).map_or(title, |(_, field)| field)
}

/// The cells between the pipes that are not escaped.
fn cells(line: &str) -> Vec<String> {
    let line = line.strip_prefix('|').unwrap_or(line);
    let mut cells = vec![String::new()];
    let mut escaped = false;
    for c in line.chars() {
        if c == '|' && !escaped {
            cells.push(String::new());
        } else if let Some(cell) = cells.last_mut() {
            cell.push(c);
        }
        escaped = c == '\\' && !escaped;
    }
    if cells.last().is_some_and(|cell| cell.trim().is_empty()) {
        cells.pop();
    }
    cells.iter().map(|cell| markdown_cell_back(cell.trim())).collect()
}

fn row(columns: &[String], cells: &[String], line: u64) -> Result<Row, String> {
    if cells.len() != columns.len() {
        return Err(format!("{} cells for {} columns", cells.len(), columns.len()));
    }
    let mut row = Row { line, cells: Map::new(), textual: true };
    for (column, cell) in columns.iter().zip(cells) {
        let mut put = |key: &str, value: &str| row.cells.insert(key.into(), Value::String(value.into()));
        match column.as_str() {
            "test" => {
                let [n_prompt, n_gen, n_depth] = test(cell)?;
                put("n_prompt", &n_prompt.to_string());
                put("n_gen", &n_gen.to_string());
                // No depth is printed for a depth of 0, and versions before 2025 knew none.
                put("n_depth", &n_depth.to_string());
            }
            "t/s" => {
                let (mean, deviation) = cell.split_once('±').unwrap_or((cell, ""));
                put("avg_ts", mean.trim());
                put("stddev_ts", deviation.trim());
            }
            key => {
                put(key, cell);
            }
        }
    }
    Ok(row)
}

/// `pp512`, `tg 128`, `pp512+tg128 @ d1024` as prompt, generated tokens and depth.
fn test(cell: &str) -> Result<[u64; 3], String> {
    let compact: String = cell.chars().filter(|c| !c.is_whitespace()).collect();
    let mut sizes = [None; 3];
    for part in compact.split(['+', '@']) {
        let known = [("pp", 0), ("tg", 1), ("d", 2)];
        let found = known
            .iter()
            .find_map(|(prefix, at)| Some((part.strip_prefix(prefix)?.parse::<u64>().ok()?, *at)));
        match found {
            Some((size, at)) if sizes[at].is_none() => sizes[at] = Some(size),
            _ => return Err(format!("{:?} is no test", shown(cell))),
        }
    }
    Ok(sizes.map(Option::unwrap_or_default))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_of_all_years() {
        assert_eq!(test("pp512"), Ok([512, 0, 0]));
        assert_eq!(test("tg 128"), Ok([0, 128, 0]));
        assert_eq!(test("pp512+tg128 @ d1024"), Ok([512, 128, 1024]));
        for bad in ["", "512", "pp", "pp-1", "pp512+pp512", "pp99999999999999999999", "pg512", "pp512@"] {
            assert!(test(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn escaped_pipes_stay_in_their_cell() {
        assert_eq!(cells(r"| a \| b | c |"), ["a | b", "c"]);
        assert_eq!(cells(r"a | | c"), ["a", "", "c"]);
        assert_eq!(cells(r"| a \\| b |"), [r"a \", "b"]);
    }
}
