//! Published files against the values that they state, and files that are damaged, mixed up or hostile.

use std::path::Path;

use perjoule_formats::{Format, ImportError, Imported, MAX_WARNINGS, import};
use perjoule_record::{Clock, EnergyKind, Environment, Kind, Phase, Provenance, Record, to_line};

fn sample(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/samples").join(name)).unwrap()
}

fn read(text: impl AsRef<[u8]>) -> Imported {
    import(text.as_ref(), "results/file.txt", None).unwrap()
}

/// Records and warnings of a text in a format.
fn read_as(text: impl AsRef<[u8]>, format: Format) -> (Vec<Record>, Vec<String>) {
    let imported = import(text.as_ref(), "file", Some(format)).unwrap();
    (imported.records, imported.warnings.iter().map(ToString::to_string).collect())
}

fn clean(name: &str, format: Format) -> Vec<Record> {
    let imported = import(&sample(name), &format!("some/folder/{name}"), None).unwrap();
    assert_eq!(imported.format, format, "{name}");
    assert!(imported.warnings.is_empty(), "{name}: {:?}", imported.warnings);
    for record in &imported.records {
        assert_eq!(record.provenance, Provenance::Imported);
        assert_eq!(record.source.source_name.as_deref(), Some(name));
        assert_eq!(record.environment.perjoule_version, None, "not made by perjoule");
    }
    imported.records
}

#[test]
fn llama_bench_json() {
    let records = clean("llama-bench.json", Format::LlamaBenchJson);
    let [prefill, decode] = records.as_slice() else { panic!("{records:?}") };
    let w = &prefill.workload;
    assert_eq!((w.n_prompt, w.n_gen, w.n_depth), (Some(512), Some(0), Some(0)));
    assert_eq!((w.n_batch, w.n_parallel, w.n_threads), (Some(2048), Some(1), Some(8)));
    assert_eq!((w.model_size, w.model_n_params), (Some(4_677_120_000), Some(7_615_616_512)));
    assert_eq!(w.model.as_deref(), Some("Qwen2.5-7B-Instruct-Q4_K_M.gguf"));
    assert_eq!(w.model_type.as_deref(), Some("qwen2 7B Q4_K - Medium"));
    assert_eq!((w.token_phase(), decode.workload.token_phase()), (Some(Phase::Prefill), Some(Phase::Decode)));
    let config = w.config.as_deref().unwrap();
    assert!(config.starts_with("n_ubatch=512,type_k=f16,type_v=f16,n_gpu_layers=-1,"), "{config}");
    assert_eq!(prefill.device.backend.as_deref(), Some("CUDA"));
    assert_eq!(prefill.device.device_name.as_deref(), Some("NVIDIA GeForce RTX 4080"));
    assert_eq!(prefill.environment.cpu_model.as_deref(), Some("AMD Ryzen 7 7800X3D 8-Core Processor"));
    assert_eq!(prefill.test_time.as_deref(), Some("2025-04-24T11:58:50Z"));
    assert_eq!(prefill.source.source_tool.as_deref(), Some("llama-bench"));
    assert_eq!(prefill.source.source_version.as_deref(), Some("8cf427ff (5163)"));
    let t = &prefill.timing;
    assert_eq!((t.avg_ts, t.stddev_ts), (Some(7100.002165), Some(140.34152)));
    assert_eq!((t.avg_ns, t.stddev_ns), (Some(72_135_640.0), Some(1_453_752.0)));
    let samples = vec![74601900.0, 71632900.0, 71745200.0, 71952700.0, 70745500.0];
    assert_eq!((t.samples_ns.as_ref(), t.median_ns), (Some(&samples), Some(71745200.0)));
    assert_eq!((t.clock, prefill.kind, prefill.valid), (Some(Clock::Host), Kind::Tokens, true));
    // The published mean follows from the published samples.
    let mean = samples.iter().map(|ns| 512e9 / ns).sum::<f64>() / 5.0;
    assert!((mean / t.avg_ts.unwrap() - 1.0).abs() < 1e-7);
    assert_eq!(prefill.energy, Default::default(), "llama-bench measures no energy");
}

#[test]
fn llama_bench_of_2023() {
    let records = clean("llama-bench-2023.json", Format::LlamaBenchJson);
    assert_eq!(records[0].device.backend.as_deref(), Some("CUDA"), "from a flag");
    assert_eq!(records[0].workload.n_depth, None, "not known then");
    assert_eq!(records[0].timing.avg_ts, Some(2410.974041));

    // Published with a value too many: every column after it would be another's.
    let shifted = import(&sample("llama-bench-2023-shifted.csv"), "x.csv", None).unwrap();
    assert!(shifted.records.is_empty());
    let warnings: Vec<String> = shifted.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(warnings[0], "line 2: 27 values for 26 columns; this line is left out");
    assert_eq!(warnings.len(), 2);
}

#[test]
fn llama_bench_csv_jsonl_sql_agree() {
    let csv = clean("llama-bench.csv", Format::LlamaBenchCsv);
    let jsonl = clean("llama-bench.jsonl", Format::LlamaBenchJsonl);
    let sql = clean("llama-bench.sql", Format::LlamaBenchSql);
    for (records, rates) in
        [(&csv, [81.102409, 23.23024]), (&jsonl, [81.427806, 23.288635]), (&sql, [80.927655, 22.694063])]
    {
        assert_eq!(records.iter().map(|r| r.timing.avg_ts).collect::<Vec<_>>(), rates.map(Some));
        for record in records {
            assert_eq!(record.workload.model_n_params, Some(2_533_539_840));
            assert_eq!(record.device.backend.as_deref(), Some("BLAS"));
            // No GPU: the CPU is the device, with the comma in its name.
            assert_eq!(record.device.device_name.as_deref(), Some("OpenBLAS, CPU"));
        }
    }
    assert_eq!(sql[1].timing.avg_ns, Some(5_640_474_378.0));
    assert_eq!(sql[1].workload, csv[1].workload);
    assert_eq!(jsonl[1].timing.samples_ns.as_ref().unwrap().len(), 5);
}

#[test]
fn llama_bench_tables() {
    let records = clean("llama-bench-depth.md", Format::LlamaBenchMarkdown);
    let tests: Vec<_> = records.iter().map(|r| r.workload.token_test().unwrap()).collect();
    assert_eq!(tests, ["pp512", "tg128", "pp512 @ d512", "tg128 @ d512"]);
    assert_eq!((records[2].timing.avg_ts, records[2].timing.stddev_ts), (Some(6425.91), Some(18.88)));
    // 4.36 GiB is rounded, so it is no number of bytes.
    assert_eq!((records[0].workload.model_size, records[0].workload.model_n_params), (None, None));
    assert_eq!(records[0].workload.config.as_deref(), Some("n_gpu_layers=-1,size=4.36 GiB,params=7.62 B"));

    let records = clean("llama-bench-2024.md", Format::LlamaBenchMarkdown);
    assert_eq!(records[3].workload.token_test().as_deref(), Some("tg1024"), "spelled `tg 1024`");
    assert_eq!(records[3].source.source_version.as_deref(), Some("858f6b73 (2797)"));
    assert_eq!(records[3].timing.avg_ts, Some(34.49));
}

#[test]
fn ml_energy() {
    let records = clean("ml-energy-lm-arena-chat.json", Format::MlEnergy);
    let first = &records[0];
    assert_eq!(
        (first.kind, first.workload.phase, first.workload.token_phase()),
        (Kind::Tokens, Some(Phase::Mixed), Some(Phase::Mixed))
    );
    assert_eq!((first.workload.n_prompt, first.workload.n_gen, first.workload.n_batch), (None, None, None));
    assert_eq!(first.workload.n_parallel, Some(8), "max_num_seqs");
    assert_eq!(first.timing.avg_output_ts, Some(1086.7107231801174));
    assert_eq!(first.timing.avg_ts, None, "a serving rate is no decode rate");
    let energy = &first.energy;
    assert_eq!(energy.joules_per_output_token, Some(0.6993091867226764));
    assert_eq!(energy.joules_per_call, Some(430.1127103864672));
    assert_eq!(energy.avg_power_w, Some(759.9467920298994));
    assert_eq!((energy.joules, energy.energy_ci95, energy.idle_power_w), (None, None, None));
    assert_eq!(energy.energy_kind, Some(EnergyKind::Measured));
    assert_eq!(
        (energy.energy_source.as_deref(), energy.energy_boundary.as_deref()),
        (Some("zeus"), Some("gpu"))
    );
    assert_eq!(first.workload.dtype.as_deref(), Some("bf16"));
    // Power over throughput is the published energy of a token, within the steady state's noise.
    assert!((759.9467920298994_f64 / 1086.7107231801174 / 0.6993091867226764 - 1.0).abs() < 1e-6);
    let config = first.workload.config.as_deref().unwrap();
    assert!(
        config.starts_with(
            "task=lm-arena-chat,avg_batch_size=7.935087719298245,avg_output_len=615.0537109375,"
        )
    );
    assert_eq!(records[2].device.device_count, Some(8));

    let images = clean("ml-energy-text-to-image.json", Format::MlEnergy);
    assert_eq!((images[1].kind, images[1].workload.n_parallel), (Kind::Samples, Some(8)));
    assert_eq!(images[0].timing.throughput, Some(1.551376561967435));
    assert_eq!(images[0].timing.throughput_unit.as_deref(), Some("images/s"));
    assert_eq!(images[0].energy.joules_per_call, Some(341.98237500339746));
    assert_eq!(images[0].workload.phase, None);
    let videos = clean("ml-energy-text-to-video.json", Format::MlEnergy);
    assert_eq!(videos[0].energy.joules_per_call, Some(61491.41150003672));
    assert_eq!(videos[0].timing.throughput_unit.as_deref(), Some("videos/s"));
}

#[test]
fn mlperf_summaries() {
    let offline = &clean("mlperf-offline.txt", Format::MlperfSummary)[0];
    assert_eq!(
        (offline.kind, offline.valid, offline.workload.phase),
        (Kind::Tokens, true, Some(Phase::Mixed))
    );
    assert_eq!((offline.timing.avg_output_ts, offline.timing.throughput), (Some(23514.8), Some(80.15)));
    assert_eq!(
        (offline.timing.median_ns, offline.timing.avg_ts),
        (None, None),
        "queries wait for each other"
    );
    let config = offline.workload.config.as_deref();
    assert_eq!(config, Some("scenario=Offline,mode=PerformanceOnly,sut=PySUT,samples_per_query=52800"));
    assert_eq!(offline.energy, Default::default());

    let server = &clean("mlperf-server.txt", Format::MlperfSummary)[0];
    assert_eq!((server.timing.avg_output_ts, server.timing.throughput), (Some(21028.23), Some(71.74)));

    let single = &clean("mlperf-singlestream.txt", Format::MlperfSummary)[0];
    assert_eq!(
        (single.kind, single.timing.median_ns, single.timing.avg_ns),
        (Kind::Samples, Some(276236.0), Some(279337.0))
    );
    assert_eq!(single.timing.throughput, Some(3527.08));
    assert_eq!(single.timing.throughput_unit.as_deref(), Some("queries/s"));

    let invalid = &clean("mlperf-invalid.txt", Format::MlperfSummary)[0];
    assert!(!invalid.valid);
    assert_eq!(invalid.invalid_reasons, ["MLPerf: min duration not satisfied"]);

    // Cut before the verdict: not taken for a good result.
    let text = sample("mlperf-offline.txt");
    let cut = text.windows(9).position(|w| w == b"Result is").unwrap();
    let (records, warnings) = read_as(&text[..cut], Format::MlperfSummary);
    assert!(!records[0].valid && warnings[0].contains("taken as invalid"), "{warnings:?}");
    let errors = String::from_utf8(text)
        .unwrap()
        .replace("No errors encountered during test.", "2 errors encountered. See detailed log.");
    let (records, _) = read_as(errors, Format::MlperfSummary);
    assert_eq!(records[0].invalid_reasons, ["MLPerf: 2 errors encountered. See detailed log."]);
    // Two summaries in one file.
    let both = [sample("mlperf-offline.txt"), sample("mlperf-invalid.txt")].concat();
    assert_eq!(read(both).records.iter().map(|r| r.valid).collect::<Vec<_>>(), [true, false]);
}

#[test]
fn mlperf_tables() {
    let imported = read(sample("mlperf.csv"));
    assert_eq!(imported.format, Format::MlperfCsv);
    let [llama, resnet, diffusion] = imported.records.as_slice() else { panic!() };
    assert_eq!((resnet.timing.throughput, resnet.kind), (Some(757446.0), Kind::Samples));
    assert_eq!(resnet.timing.throughput_unit.as_deref(), Some("samples/s"));
    assert_eq!(resnet.device.device_name.as_deref(), Some("NVIDIA H200-SXM-141GB"));
    assert_eq!(resnet.device.device_count, Some(8));
    assert_eq!(resnet.source.source_version.as_deref(), Some("v4.1"));
    assert_eq!(diffusion.timing.throughput, Some(17.3717));
    // The file calls tokens queries.
    assert_eq!((llama.timing.throughput, llama.timing.avg_output_ts), (None, None));
    assert_eq!(imported.warnings.len(), 1);
    assert!(
        imported.warnings[0]
            .to_string()
            .starts_with("line 2: 29715.3 Queries/s of llama2-70b-99 may be tokens")
    );

    // Power is a second row for the same place, as the submission checker writes it.
    let header = "Platform,MlperfModel,Scenario,Result,Location,errors,has_power,Units\n";
    let text = format!(
        "{header}H200,llama2-70b-99,Offline,25262.1,a/b,0,True,Tokens/s\nH200,llama2-70b-99,Offline,6153.25,a/b,0,True,Watts\n\
         Edge,resnet,SingleStream,0.35,c/d,0,True,Latency (ms)\nEdge,resnet,SingleStream,12.5,c/d,0,True,millijoules\n\
         Edge,resnet,Offline,7,e,3,False,Samples/s\n"
    );
    let (records, warnings) = read_as(&text, Format::MlperfCsv);
    assert!(warnings.is_empty(), "{warnings:?}");
    assert_eq!(records.len(), 3);
    assert_eq!(
        (records[0].timing.avg_output_ts, records[0].energy.avg_power_w),
        (Some(25262.1), Some(6153.25))
    );
    assert_eq!(records[0].energy.energy_boundary.as_deref(), Some("wall"));
    assert_eq!(records[0].energy.joules_per_output_token, None, "not stated, so not made up");
    assert_eq!(records[1].energy.joules_per_call, Some(0.0125));
    assert_eq!(records[1].timing.median_ns, None, "a percentile is no median");
    assert_eq!(records[2].invalid_reasons, ["MLPerf: 3 errors in the log"]);
}

#[test]
fn own_lines_stay_as_they_are() {
    let mut record = Record::new(Kind::Kernel, &Environment::of_build());
    record.energy.energy_kind = Some(EnergyKind::Modelled);
    let line = to_line(&record).unwrap();
    let imported = read(format!("\u{feff}{line}{{\"schema_version\":1,\"ki\n{line}"));
    assert_eq!((imported.format, imported.records.len()), (Format::Perjoule, 2));
    assert_eq!(imported.records[1], record);
    assert_eq!(imported.warnings[0].line, Some(2));
    assert!(imported.warnings[0].message.starts_with("cut off"));
}

#[test]
fn what_cannot_be_told_is_one_clear_error() {
    let error = |bytes: &[u8], format| import(bytes, "a/b/c.log", format).unwrap_err();
    assert!(matches!(error(b"", None), ImportError::Empty { .. }));
    assert!(matches!(error(b" \r\n", None), ImportError::Empty { .. }));
    let unknown = error(b"hello\nworld", None).to_string();
    assert!(
        unknown.starts_with("cannot tell the format of c.log: name it, one of perjoule, llama-bench-json")
    );
    assert!(error(b"\xff\xfe[\0", None).to_string().contains("PowerShell"));
    assert!(matches!(error(b"| test | t/s |\n\xff", None), ImportError::NotText { at: 15, .. }));
    assert!(matches!(error(b"{}", Some(Format::Bencher)), ImportError::ExportOnly { .. }));
    for format in Format::IMPORTED {
        if matches!(format, Format::Perjoule | Format::LlamaBenchJsonl) {
            continue;
        }
        let wrong = error(b"hello", Some(*format)).to_string();
        assert!(
            wrong.starts_with(&format!("c.log is not {format}: ")) || *format == Format::MlEnergy,
            "{wrong}"
        );
    }
}

const GOOD: &str =
    r#"{"n_prompt":0,"n_gen":128,"avg_ns":1000000000,"stddev_ns":0,"avg_ts":128.0,"stddev_ts":0.0}"#;

/// `GOOD` with one field replaced or added.
fn with(field: &str, value: &str) -> String {
    let mut parts: Vec<String> = GOOD
        .trim_matches(['{', '}'])
        .split(',')
        .filter(|part| !part.contains(&format!("\"{field}\"")))
        .map(Into::into)
        .collect();
    parts.push(format!("\"{field}\":{value}"));
    format!("{{{}}}", parts.join(","))
}

#[test]
fn wrong_values_never_count_as_good() {
    assert_eq!(read_as(GOOD, Format::LlamaBenchJsonl).0.len(), 1);
    // The size of the test decides what the number means: without it there is no result.
    for (field, value) in [
        ("n_prompt", "-1"),
        ("n_gen", "\"128\""),
        ("n_gen", "99999999999999999999999"),
        ("n_gen", "0"),
        ("n_gen", "null"),
        ("n_prompt", "1.5"),
        ("n_depth", "[]"),
        ("n_gen", "NaN"),
        ("avg_ts", "1e999"),
        ("avg_ts", "NaN"),
        ("n_gen", "1,\"n_gen\":2"),
        ("n_prompt", "18446744073709551615"),
    ] {
        let (records, warnings) = read_as(with(field, value), Format::LlamaBenchJsonl);
        assert!(records.is_empty() && warnings.len() == 1, "{field}={value}: {records:?}");
    }
    // An impossible figure marks the result.
    for (field, value) in [
        ("avg_ts", "-3"),
        ("avg_ts", "0"),
        ("avg_ts", "\"fast\""),
        ("avg_ns", "-1"),
        ("samples_ns", "[1,0]"),
        ("samples_ns", "[1,null]"),
        ("samples_ns", "{}"),
    ] {
        let (records, warnings) = read_as(with(field, value), Format::LlamaBenchJsonl);
        assert!(records.len() == 1 && !records[0].valid && !warnings.is_empty(), "{field}={value}");
        assert!(records[0].timing.avg_ts.is_none_or(|rate| rate > 0.0));
    }
    // Any other stays unknown.
    for (field, value) in [
        ("n_batch", "\"512\""),
        ("model_type", "7"),
        ("test_time", "\"yesterday\""),
        ("stddev_ts", "-1"),
        ("model_size", "-5"),
    ] {
        let (records, warnings) = read_as(with(field, value), Format::LlamaBenchJsonl);
        assert!(
            records.len() == 1 && records[0].valid && warnings.len() == 1,
            "{field}={value}: {warnings:?}"
        );
    }
    let (records, _) = read_as(with("avg_ts", "1e308"), Format::LlamaBenchJsonl);
    assert_eq!(records[0].timing.avg_ts, Some(1e308));
    let (records, warnings) = read_as(r#"{"n_prompt":1,"n_gen":0}"#, Format::LlamaBenchJsonl);
    assert!(records.is_empty() && warnings[0].contains("neither a time nor a rate"));
    // With layers on neither, the device is not known.
    let (records, _) =
        read_as(with("n_gpu_layers", "0,\"gpu_info\":\"A\",\"cpu_info\":\"B\""), Format::LlamaBenchJsonl);
    assert_eq!(records[0].device.device_name, None);
}

#[test]
fn json_that_breaks_off() {
    let whole = format!("log: [1]\n[\n  {GOOD},\n  {GOOD}\n]\n");
    for text in [whole.clone(), whole.replace('\n', "\r\n"), format!("\u{feff}{whole}")] {
        let imported = read(text);
        assert_eq!((imported.format, imported.records.len()), (Format::LlamaBenchJson, 2));
        assert_eq!(imported.warnings.len(), 1, "the log: {:?}", imported.warnings);
    }
    let whole = format!("[\n  {GOOD},\n  {GOOD}\n]\n");
    let start = whole.find("avg_ts").unwrap() + 8;
    for cut in start..whole.len() - 2 {
        let (records, warnings) = read_as(&whole[..cut], Format::LlamaBenchJson);
        let expected =
            usize::from(cut > whole.find("},").unwrap()) + usize::from(cut > whole.rfind('}').unwrap());
        assert_eq!(records.len(), expected, "cut at {cut}");
        assert!(warnings.len() == 1 && warnings[0].contains("cut off"), "cut at {cut}: {warnings:?}");
    }
    let (records, warnings) = read_as(format!("[{GOOD},\n7,\n{{\"n_gen\":}}]"), Format::LlamaBenchJson);
    assert_eq!(records.len(), 1);
    assert!(warnings[0].starts_with("line 2: ") && warnings[1].starts_with("line 3: "), "{warnings:?}");
    let nested = format!("[{}]", "[".repeat(100_000));
    assert!(read_as(nested, Format::LlamaBenchJson).0.is_empty());
    let deep = with("x", &("[".repeat(10_000) + &"]".repeat(10_000)));
    assert!(read_as(deep, Format::LlamaBenchJsonl).0.is_empty());

    // As `jq '.[]'` prints it.
    let jq = format!("{{\n{}\n}}\n{{\n  \"n_gen\": 1", GOOD.trim_matches(['{', '}']));
    let imported = read(&jq);
    assert_eq!((imported.format, imported.records.len()), (Format::LlamaBenchJsonl, 1));
    assert!(imported.warnings[0].to_string().starts_with("line 5: cut off"), "{:?}", imported.warnings);

    let task = String::from_utf8(sample("ml-energy-text-to-image.json")).unwrap();
    for cut in (task.find('[').unwrap()..task.len() - 3).step_by(7) {
        let (records, warnings) = read_as(&task[..cut], Format::MlEnergy);
        assert!(
            records.len() <= 2 && warnings.iter().any(|w| w.contains("cut off")),
            "cut at {cut}: {warnings:?}"
        );
    }
    let wrong = task.replace("341.98237500339746", "-341.0").replace("\"B200\"", "7");
    let (records, warnings) = read_as(wrong, Format::MlEnergy);
    assert_eq!(records.iter().map(|r| r.valid).collect::<Vec<_>>(), [false, true]);
    assert_eq!(warnings.len(), 3);
}

#[test]
fn csv_in_the_wild() {
    let text = "ggml_cuda_init: found 1 device, with commas\n\"n_gen\",n_prompt,avg_ts,model_type\n\
                \"128\",\"0\",\"5.5\",\"a \"\"b\"\", c\"\nllama_kv_cache: a line of the log\n0,512,nan,x\n16,0,7,\"two\nlines\"\n32,0,8,end\n";
    for text in [text.to_owned(), text.replace('\n', "\r\n")] {
        let imported = read(&text);
        assert_eq!(imported.format, Format::LlamaBenchCsv);
        let (records, warnings) = (imported.records, imported.warnings);
        assert_eq!(records.len(), 4);
        assert_eq!(records[0].workload.model_type.as_deref(), Some("a \"b\", c"));
        assert_eq!(records.iter().map(|r| r.valid).collect::<Vec<_>>(), [true, false, true, true]);
        let lines: Vec<_> = warnings.iter().map(|w| w.line).collect();
        assert_eq!(lines, [Some(1), Some(4), Some(5)], "{warnings:?}");
    }
    let twice = import(b"n_prompt,n_gen,avg_ts,n_gen\n1,2,3,4", "x", None).unwrap_err();
    assert!(twice.to_string().contains("`n_gen` appears twice"));
}

#[test]
fn sql_in_the_wild() {
    let (records, warnings) = read_as(
        "CREATE TABLE x (n_gen INTEGER);\n\
         INSERT INTO test (n_prompt, \"n_gen\", avg_ts, model_filename) VALUES ('0', 128, 5.5, 'it''s; a (\"name\"), '' -- no');\n\
         insert into test (n_prompt, n_gen, avg_ts, model_filename) values (0, 1, 2e1, NULL), (0, 2, 3, 'b');\n\
         INSERT INTO test (n_prompt, n_gen, avg_ts, model_filename) VALUES ('0', '128', '5.5', 'it's broken');\n\
         INSERT INTO test (n_prompt, n_gen, avg_ts) VALUES (0, 1);\n\
         INSERT INTO test (n_gen, n_gen, n_prompt, avg_ts) VALUES (1, 2, 0, 1);\n\
         DROP TABLE test; -- passed over\n\
         INSERT INTO test (n_prompt, n_gen, avg_ts) VALUES (0, 3, 4);\n\
         INSERT INTO test (n_prompt, n_gen, avg_ts) VALUES (0, 3, 'unt",
        Format::LlamaBenchSql,
    );
    assert_eq!(records.iter().map(|r| r.workload.n_gen.unwrap()).collect::<Vec<_>>(), [128, 1, 2, 3]);
    assert_eq!(records[0].workload.model.as_deref(), Some("it's; a (\"name\"), ' -- no"));
    assert_eq!((records[1].workload.model.as_deref(), records[1].timing.avg_ts), (None, Some(20.0)));
    let starts =
        ["line 4: unexpected", "line 5: 2 values for 3", "line 6: the column `n_gen`", "line 9: cut off"];
    assert_eq!(warnings.len(), starts.len(), "{warnings:?}");
    assert!(warnings.iter().zip(starts).all(|(warning, start)| warning.starts_with(start)), "{warnings:?}");
}

#[test]
fn markdown_in_the_wild() {
    let imported = read(
        "I get this (b5163):\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n\
         t/s | test | fa | model \\| name\n-: | :-- | - | -\n 5.25 ± 0.5 | tg 32 | 1 | x &lt;y&gt; \\| z\n7 | pp8+tg4 @ d16 | 0 | m\n\
         fast ± 1 | tg1 | 0 | m\n7 | warp9 | 0 | m\n7 | tg9\n\nbuild: 111 (1)\n\
         | test | t/s | test |\n|---|---|---|\n| tg1 | 2 | tg1 |\n\n| test | t/s |\n|---|---|\n| tg5 | 6 |\n\nbuild: 222 (2)\n",
    );
    let records = &imported.records;
    assert_eq!(records.iter().map(|r| r.valid).collect::<Vec<_>>(), [true, true, false, true]);
    assert_eq!((records[0].timing.avg_ts, records[0].timing.stddev_ts), (Some(5.25), Some(0.5)));
    assert_eq!(records[1].workload.token_test().as_deref(), Some("pp8+tg4 @ d16"));
    assert_eq!((records[1].timing.avg_ts, records[1].timing.stddev_ts), (Some(7.0), None));
    let builds: Vec<_> = records.iter().map(|r| r.source.source_version.as_deref().unwrap()).collect();
    assert_eq!(builds, ["111 (1)", "111 (1)", "111 (1)", "222 (2)"]);
    let lines: Vec<_> = imported.warnings.iter().map(|w| w.line.unwrap()).collect();
    assert_eq!(lines, [11, 12, 13, 16], "{:?}", imported.warnings);
}

#[test]
fn warnings_are_bounded() {
    let text = "{}\n".repeat(MAX_WARNINGS + 500);
    let (records, warnings) = read_as(text, Format::LlamaBenchJsonl);
    assert_eq!((records.len(), warnings.len()), (0, MAX_WARNINGS + 1));
    assert_eq!(warnings[MAX_WARNINGS], "500 more warnings");
}
