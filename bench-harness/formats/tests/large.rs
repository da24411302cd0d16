//! Large files are streamed or refused, without a second copy of them in memory. A binary of its own, because it watches the
//! memory of the whole process.

use perjoule_formats::{Format, ImportError, MAX_INPUT_BYTES, MAX_RECORDS, import};
use perjoule_record::{Environment, Kind, Record, to_line};

/// The most memory that this process has had, in bytes.
#[cfg(target_os = "linux")]
fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
}

#[test]
#[cfg(target_os = "linux")]
fn memory_and_records_are_bounded() {
    const MIB: usize = 1 << 20;
    // Others are refused by their length alone.
    let mut text = "{\"avg_ts\":1}\n".repeat(100 * MIB / 13);
    let before = peak();
    for format in Format::IMPORTED.iter().filter(|format| **format != Format::Perjoule) {
        let refused = import(text.as_bytes(), "large", Some(*format));
        assert!(matches!(refused, Err(ImportError::TooLarge { .. })), "{format}");
    }
    let refused = import(text.as_bytes(), "large", None).unwrap_err().to_string();
    assert!(refused.contains("64 MiB is the limit for llama-bench-jsonl"), "{refused}");
    assert!(peak() - before < 8 * MIB, "{} MiB to refuse", (peak() - before) >> 20);

    // One array as large as may be, of elements that are no results: none is kept.
    text.clear();
    let element = format!("[{}1]", "1,".repeat(1000));
    text.push_str("[1");
    while text.len() < MAX_INPUT_BYTES - element.len() - 2 {
        text.push(',');
        text.push_str(&element);
    }
    text.push(']');
    let before = peak();
    let imported = import(text.as_bytes(), "large", Some(Format::LlamaBenchJson)).unwrap();
    assert!(imported.records.is_empty());
    assert!(peak() - before < 8 * MIB, "{} MiB for an array", (peak() - before) >> 20);

    // One result as large as may be.
    text.clear();
    text.push_str("[{\"n_prompt\":1,\"n_gen\":0,\"samples_ns\":[1");
    text.push_str(&",1".repeat(MAX_INPUT_BYTES / 2 - 100));
    text.push_str("]}]");
    let before = peak();
    let imported = import(text.as_bytes(), "large", Some(Format::LlamaBenchJson)).unwrap();
    assert!(imported.records.is_empty() && imported.warnings[0].message.contains("4 MiB"));
    assert!(peak() - before < 8 * MIB, "{} MiB for a result", (peak() - before) >> 20);
    // The same as a table's row.
    let commas = format!("| test | t/s |\n{}", "|".repeat(MAX_INPUT_BYTES - 100));
    let before = peak();
    for format in
        [Format::LlamaBenchMarkdown, Format::LlamaBenchCsv, Format::LlamaBenchSql, Format::MlperfSummary]
    {
        assert!(matches!(
            import(commas.as_bytes(), "large", Some(format)),
            Err(ImportError::NotFormat { .. })
        ));
    }
    assert!(peak() - before < 8 * MIB, "{} MiB for a line", (peak() - before) >> 20);
    drop(commas);

    // Own lines are read one by one: what remains are the records.
    let mut record = Record::new(Kind::Kernel, &Environment::of_build());
    record.timing.samples_ns = Some((0..4096).map(|i| 6_278_179_171.125 + f64::from(i)).collect());
    let line = to_line(&record).unwrap();
    text.clear();
    while text.len() < 100 * MIB {
        text.push_str(&line);
    }
    let before = peak();
    let imported = import(text.as_bytes(), "large", None).unwrap();
    assert_eq!(imported.records.len(), text.len() / line.len());
    assert!(peak() - before < 2 * text.len(), "{} MiB for 100", (peak() - before) >> 20);

    text.clear();
    text.push_str("| test | t/s |\n");
    text.push_str(&"|tg1|1|\n".repeat(MAX_RECORDS + 1));
    assert!(matches!(import(text.as_bytes(), "large", None), Err(ImportError::TooMany { .. })));
}
