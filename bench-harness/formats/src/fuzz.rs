//! Entry points for fuzzing, shared by the fuzz targets and the test that replays the corpus. Not a public interface.

use perjoule_record::{Provenance, to_line};

use crate::{Finding, Findings, FindingsFormat, Format, Outcome, export, export_findings, import};

/// Reads `input` as every format and as the one that is found. What is read can be written, has a source, and holds no
/// impossible number that counts as valid; every export of it is well formed.
///
/// # Panics
/// When that does not hold: that is what the fuzzer looks for.
pub fn formats(input: &[u8]) {
    for format in Format::IMPORTED.iter().copied().map(Some).chain([None]) {
        let Ok(imported) = import(input, "fuzz", format) else { continue };
        for record in &imported.records {
            to_line(record).expect("a record that was read can be written");
            if imported.format == Format::Perjoule {
                continue;
            }
            assert!(record.provenance == Provenance::Imported && record.source.source_tool.is_some());
            let (timing, energy) = (&record.timing, &record.energy);
            let figures = [
                timing.avg_ts,
                timing.avg_output_ts,
                timing.avg_ns,
                timing.median_ns,
                timing.throughput,
                energy.joules_per_output_token,
                energy.joules_per_call,
                energy.avg_power_w,
            ];
            for figure in figures.into_iter().flatten() {
                assert!(!record.valid || figure > 0.0 && figure.is_finite(), "{figure} counts as good");
            }
        }
        for format in Format::EXPORTED.iter().copied() {
            let exported = export(&imported.records, format).expect("it is one of those that can be written");
            match format {
                Format::LlamaBenchJson
                | Format::Hyperfine
                | Format::Bencher
                | Format::ActionSmaller
                | Format::ActionBigger => {
                    serde_json::from_str::<serde_json::Value>(&exported.text).expect("JSON");
                }
                Format::LlamaBenchJsonl | Format::LlamaBenchCsv | Format::LlamaBenchSql => {
                    let written = imported.records.len() - exported.left_out.len();
                    if written == 0 {
                        continue;
                    }
                    let back = import(exported.text.as_bytes(), "back", Some(format))
                        .expect("own output is readable");
                    // Own lines may be without any time; what other tools wrote has one.
                    let all = imported.format != Format::Perjoule;
                    assert!(if all { back.records.len() == written } else { back.records.len() <= written });
                }
                Format::OpenMetrics => assert!(exported.text.ends_with("# EOF\n")),
                _ => {}
            }
        }
    }
    findings(&String::from_utf8_lossy(input));
}

/// Writes a finding of that name and message in every format, each of which must stay one entry.
fn findings(text: &str) {
    let finding = Finding {
        name: text.into(),
        group: text.into(),
        outcome: Outcome::Regression,
        verdict: text.into(),
        message: text.into(),
        seconds: Some(text.len() as f64),
    };
    let findings =
        Findings { title: text.into(), summary: text.into(), notes: vec![text.into()], list: vec![finding] };
    assert_eq!(export_findings(&findings, FindingsFormat::GithubAnnotations).lines().count(), 3);
    assert!(export_findings(&findings, FindingsFormat::Junit).contains("<failure"));
}
