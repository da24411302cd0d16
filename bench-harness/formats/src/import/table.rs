//! Comma-separated results: llama-bench's and those of MLPerf's submission checker.

use serde_json::{Map, Value};

use super::json::Lines;
use super::row::Row;
use super::{ImportError, Sink, llama_bench, mlperf};
use crate::Format;
use crate::format::is_csv_header;

/// Reads the rows under the header, wherever a log puts it.
pub(super) fn read(text: &str, sink: &mut Sink<'_>) -> Result<(), ImportError> {
    let mut offset = 0;
    let header = text.split_inclusive('\n').find_map(|line| {
        let at = offset;
        offset += line.len();
        is_csv_header(line, sink.format).then_some(at)
    });
    let Some(start) = header else { return Err(sink.not_format("no line names its columns")) };
    if !text[..start].trim().is_empty() {
        sink.warn(1, "lines before the results are passed over");
    }
    let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(&text.as_bytes()[start..]);
    let columns = match reader.headers() {
        Ok(columns) => columns.iter().map(|column| column.trim().to_owned()).collect::<Vec<_>>(),
        Err(error) => return Err(sink.not_format(error.to_string())),
    };
    if let Some(twice) = columns.iter().enumerate().find(|(i, column)| columns[..*i].contains(column)) {
        return Err(sink.not_format(format!("its column `{}` appears twice", twice.1)));
    }
    let mut summary = mlperf::Table::default();
    let mut lines = Lines::new(text);
    for fields in reader.records() {
        let (fields, line) = match fields {
            Ok(fields) => {
                // The reader's own count is off by one behind CRLF: it leaves the LF to the next record.
                let at = start + fields.position().map_or(0, |position| position.byte() as usize);
                let breaks = text.as_bytes()[at..].iter().take_while(|byte| matches!(byte, b'\r' | b'\n'));
                let line = lines.at(at + breaks.count());
                (fields, line)
            }
            Err(error) => {
                sink.warn(None, format!("not read on: {error}"));
                break;
            }
        };
        if fields.len() != columns.len() {
            // A log line, or values that do not belong to the columns above them.
            let message =
                format!("{} values for {} columns; this line is left out", fields.len(), columns.len());
            sink.warn(line, message);
            continue;
        }
        let cells: Map<String, Value> = columns.iter().cloned().zip(fields.iter().map(Value::from)).collect();
        let row = Row { line, cells, textual: true };
        match sink.format {
            Format::MlperfCsv => summary.push(&row, sink)?,
            _ => llama_bench::push(&row, sink)?,
        }
    }
    Ok(())
}
