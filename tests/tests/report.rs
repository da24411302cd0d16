//! `perjoule report` from outside: what it writes, what it refuses, and what a browser makes of it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Instant;

/// The binary that `PERJOULE_BINARY` names, or the one beside this test.
fn binary() -> PathBuf {
    if let Some(named) = std::env::var_os("PERJOULE_BINARY") {
        return named.into();
    }
    let test = std::env::current_exe().unwrap();
    let folder = test.ancestors().nth(2).unwrap();
    folder.join(format!("perjoule{}", std::env::consts::EXE_SUFFIX))
}

fn example() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/example/records.jsonl")
}

fn report(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(binary()).arg("report").args(arguments).current_dir(folder).output().unwrap()
}

fn good(folder: &Path, arguments: &[&str]) -> String {
    let output = report(folder, arguments);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {stderr}");
    stderr
}

fn refused(folder: &Path, arguments: &[&str], part: &str) {
    let output = report(folder, arguments);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
    let errors: Vec<&str> = stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    assert!(errors.len() == 1 && errors[0].contains(part), "{arguments:?}: {part:?} is not in {stderr}");
}

/// What is shown as an example is what the records of it make.
#[test]
fn the_example_is_made_of_its_records() {
    let folder = tempfile::tempdir().unwrap();
    let records = example();
    for name in ["report.html", "report.svg"] {
        good(folder.path(), &[records.to_str().unwrap(), "-o", name]);
        let made = std::fs::read_to_string(folder.path().join(name)).unwrap();
        let shown = std::fs::read_to_string(records.with_file_name(name)).unwrap();
        assert!(
            made == shown,
            "docs/example/{name} is out of date: perjoule report docs/example/records.jsonl -o docs/example/{name}"
        );
    }
}

#[test]
fn every_format_is_written_and_the_same_twice() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let records = example();
    let records = records.to_str().unwrap();
    let read = |name: &str| std::fs::read_to_string(at.join(name)).unwrap();
    good(at, &[records, "-o", "a.html"]);
    good(at, &[records, "-o", "b.html"]);
    assert_eq!(read("a.html"), read("b.html"));
    assert!(read("a.html").len() < 3 << 20);
    good(at, &[records]);
    assert_eq!(read("report.html"), read("a.html"), "the default name");
    good(at, &[records, "-o", "r.md", "--title", "A <b> & |"]);
    assert!(read("r.md").starts_with("# A &lt;b&gt; &amp; \\|\n") && read("r.md").contains("modelled"));
    good(at, &[records, "-o", "r.csv"]);
    let lines = std::fs::read_to_string(records).unwrap().lines().count();
    assert!(read("r.csv").starts_with("schema_version,kind,") && read("r.csv").lines().count() == lines + 1);
    let table = report(at, &[records, "--format", "md"]);
    assert!(String::from_utf8(table.stdout).unwrap().contains("## Kernels"));
    let model = "## Tokens\n\nllama-3.2-1b, bf16, 1.24B parameters";
    assert!(read("r.md").contains(model), "the model's line of `perjoule run`");
}

#[test]
fn damaged_lines_are_named_and_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(example()).unwrap();
    let first = text.lines().next().unwrap();
    std::fs::write(folder.path().join("d.jsonl"), format!("{first}\n{{\"a\": 1}}\n{}", &first[..50]))
        .unwrap();
    let stderr = good(folder.path(), &["d.jsonl"]);
    assert!(
        stderr.contains("d.jsonl: line 2: not a record") && stderr.contains("line 3: cut off"),
        "{stderr}"
    );
    let page = std::fs::read_to_string(folder.path().join("report.html")).unwrap();
    assert!(page.contains("2 lines could not be read") && page.contains("line 3: cut off"));
    std::fs::write(folder.path().join("n.jsonl"), "nothing\n").unwrap();
    refused(folder.path(), &["n.jsonl"], "no records that can be read in n.jsonl");
    refused(folder.path(), &["missing.jsonl"], "missing.jsonl");
    refused(folder.path(), &["d.jsonl", "-o", "x.pdf"], "--format");
    refused(folder.path(), &["d.jsonl", "-o", "no/x.html"], "cannot write no/x.html");
    refused(folder.path(), &["d.jsonl", "--class", "abacus"], "abacus");
    #[cfg(target_os = "linux")]
    refused(folder.path(), &["d.jsonl", "-o", "/dev/full"], "free some space");
}

#[test]
fn classes_are_predictions_and_say_so() {
    let folder = tempfile::tempdir().unwrap();
    let records = example();
    good(folder.path(), &[records.to_str().unwrap(), "--class", "nvidia-h100-sxm", "-o", "c.html"]);
    let page = std::fs::read_to_string(folder.path().join("c.html")).unwrap();
    assert!(page.contains("nvidia-h100-sxm") && page.contains("not measured, each with a band"));
}

/// A record that perjoule measured, with these fields.
fn record(kind: &str, fields: serde_json::Value) -> String {
    let mut record = serde_json::json!({
        "schema_version": 1, "kind": kind, "provenance": "measured", "valid": true, "device": "cpu", "dtype": "bf16",
        "cpu_model": "Test CPU", "n_threads": 2,
    });
    for (key, value) in fields.as_object().unwrap() {
        record[key] = value.clone();
    }
    format!("{record}\n")
}

/// The page and the tables in Markdown of a file.
fn page_and_tables(folder: &Path, file: &str) -> (String, String) {
    good(folder, &[file, "-o", "p.html"]);
    good(folder, &[file, "-o", "p.md"]);
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    (read("p.html"), read("p.md"))
}

/// What other tools publish of serving, and of images and queries, is in the tables as it was published.
#[test]
fn results_of_other_tools_are_shown_as_what_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../bench-harness/formats/tests/samples");
    for (name, parts) in [
        ("ml-energy-lm-arena-chat.json", ["prefill and decode", "0.699"]),
        ("ml-energy-text-to-image.json", ["images/s", "342 J"]),
        ("mlperf-singlestream.txt", ["queries/s", "276 µs"]),
        ("mlperf.csv", ["samples/s", "unknown"]),
    ] {
        let file = samples.join(name);
        let (page, tables) = page_and_tables(folder.path(), file.to_str().unwrap());
        for part in parts {
            assert!(tables.contains(part), "{name}: {part} is not in {tables}");
        }
        assert!(page.contains(parts[0]) && !page.contains("<td>prefill</td>"), "{name}");
    }
    let serving = samples.join("ml-energy-lm-arena-chat.json");
    let (page, tables) = page_and_tables(folder.path(), serving.to_str().unwrap());
    // 1086.7 generated tokens a second
    assert!(tables.contains("1087 (imported)") && tables.contains("B200: Qwen"), "{tables}");
    assert!(page.contains("\"key\":\"ts\"") && page.contains("1086.7"), "rates are in the page");
}

#[test]
fn a_cell_is_escaped_once() {
    let folder = tempfile::tempdir().unwrap();
    let fields =
        serde_json::json!({"op": "matmul", "kernel": "k<T>&", "shape": "m=1", "samples_ns": [1.0, 1.0]});
    let mut lines = record("kernel", fields);
    let fields = serde_json::json!({
        "op": "matmul", "kernel": "x", "shape": "m=1", "energy_unknown": "no <b>meter</b> & more",
        "invalid_reasons": ["a < b"], "valid": false,
    });
    lines += &record("kernel", fields);
    std::fs::write(folder.path().join("k.jsonl"), lines).unwrap();
    let (page, tables) = page_and_tables(folder.path(), "k.jsonl");
    assert!(tables.contains("k&lt;T&gt;&amp;") && !tables.contains("&amp;lt;"), "{tables}");
    assert!(tables.contains("no &lt;b&gt;meter&lt;/b&gt; &amp; more"));
    assert!(tables.contains("a &lt; b") && !tables.contains('<'), "{tables}");
    assert!(page.contains("energy unknown: no "), "why joules are unknown is in the notes");
}

/// Two meters watched: the joules of both are shown, and those of each boundary apart.
#[test]
fn every_meter_that_watched_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    let seen = |boundary: &str, meter: &str, joules: f64| {
        serde_json::json!({
            "source": "test", "boundary": boundary, "kind": "measured", "meter": meter, "joules": joules,
            "ci95": [0.9 * joules, 1.1 * joules], "net_joules": null, "idle_power_w": 10.0, "window_s": 2.0,
        })
    };
    let energy = |mut fields: serde_json::Value| {
        fields["joules"] = 20.0.into();
        fields["energy_kind"] = "measured".into();
        fields["energy_source"] = "test: CPU".into();
        fields["energy_boundary"] = "package".into();
        fields["energy_calls"] = 10.into();
        fields["energies"] =
            serde_json::json!([seen("package", "CPU", 20.0), seen("wall", "Outlet 3", 41.0)]);
        fields
    };
    let kernel = serde_json::json!({"op": "matmul", "kernel": "k", "shape": "m=1", "joules_per_call": 2.0});
    // 20 J for 40 generated tokens: the outlet saw 1.025 J of each
    let tokens = serde_json::json!({
        "model": "m", "n_prompt": 0, "n_gen": 4, "n_depth": 0, "n_parallel": 1, "avg_ts": 20.0, "joules_per_output_token": 0.5,
    });
    let lines = record("kernel", energy(kernel)) + &record("tokens", energy(tokens));
    std::fs::write(folder.path().join("m.jsonl"), lines).unwrap();
    let (page, tables) = page_and_tables(folder.path(), "m.jsonl");
    let row =
        |part: &str| tables.lines().find(|line| line.contains("Outlet 3") && line.contains(part)).is_some();
    assert!(row("4.10 J") && (row("1.02 J") || row("1.03 J")) && row("20.5"), "{tables}");
    assert!(page.contains("also measured, wall, Outlet 3: 4.10 J/call (3.69 J..4.51 J)"));
    assert!(!page.contains("also measured, package"), "the record&#x27;s own joules stand in their column");
}

/// The page and the comparison show one rate with one interval, and say which intervals are 95 and which 90 %.
#[test]
fn intervals_are_those_of_the_comparison_and_say_what_they_hold() {
    let folder = tempfile::tempdir().unwrap();
    let fields = serde_json::json!({
        "model": "Qwen/Qwen3-0.6B", "n_prompt": 0, "n_gen": 10, "n_depth": 512, "n_parallel": 1,
        "samples_ns": [1e8, 1.25e8, 1e8], "median_ns": 1e8, "ci95_ns": [1e8, 1.25e8], "avg_ts": 93.333, "stddev_ts": 11.547,
    });
    std::fs::write(folder.path().join("t.jsonl"), record("tokens", fields)).unwrap();
    let class = ["t.jsonl", "--class", "nvidia-h100-sxm", "-o", "c.html"];
    let stderr = good(folder.path(), &class);
    assert!(!stderr.contains("no prediction"), "{stderr}");
    let page = std::fs::read_to_string(folder.path().join("c.html")).unwrap();
    assert!(page.contains("nvidia-h100-sxm") && !page.contains("95 % interval</th>"));
    assert!(
        page.contains("95 % of what was measured") && page.contains("90 % of what is predicted for a class")
    );
    // as far from the mean, by factors, as the ends of the time's interval from its median: 93.333 / 1.25
    assert!(page.contains("74.666") && page.contains("93.333"), "the interval of the mean");
    let compare = ["compare", "t.jsonl", "--format", "json"];
    let output = Command::new(binary()).args(compare).current_dir(folder.path()).output().unwrap();
    let all: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(all.to_string().contains("74.66") && all.to_string().contains("93.33"), "{all}");
}

/// Text in which nothing may become markup, in any format.
const NASTY: &str = "</SCRIPT></text><script>document.title='owned'</script><!-- ]]> \u{2028}'\"`${1}{{2}} \u{1b}[31m\u{ffff}";

/// The example's records, and each again with names that try to leave their place and numbers that no axis holds.
fn nasty(path: &Path) {
    let mut lines = String::new();
    for line in std::fs::read_to_string(example()).unwrap().lines() {
        let mut record: serde_json::Value = serde_json::from_str(line).unwrap();
        for field in ["op", "kernel", "shape", "model", "device_name", "dtype", "command", "energy_source"] {
            if record[field].is_string() {
                record[field] = NASTY.into();
            }
        }
        lines += &format!("{record}\n");
        record["gflops"] = 1e308.into();
        record["avg_ts"] = 1e308.into();
        record["kernel"] = "k".repeat(100_000).into();
        record["test_time"] = "9999-99-99T00:00:00Z".into();
        record["energy_window_s"] = 1e300.into();
        record["provenance"] = "imported".into();
        record["source_url"] = "javascript:alert(1)".into();
        record["source_tool"] = NASTY.into();
        lines += &format!("{record}\n");
    }
    std::fs::write(path, lines).unwrap();
}

/// The example's token results with readings over time, measured.
fn traced(path: &Path) {
    let mut lines = String::new();
    for (i, line) in std::fs::read_to_string(example()).unwrap().lines().enumerate() {
        let mut record: serde_json::Value = serde_json::from_str(line).unwrap();
        if record["kind"] == "tokens" {
            let t: Vec<f64> = (0..2000).map(|k| 0.05 * f64::from(k)).collect();
            let watts: Vec<Option<f64>> =
                t.iter().map(|t| (*t as u64 % 9 != 3).then(|| 90.0 + 20.0 * t.sin())).collect();
            let clock = if i % 2 == 0 { None } else { Some(vec![1800.0; t.len()]) };
            record["trace"] =
                serde_json::json!({"t_s": t, "watts": watts, "clock_mhz": clock, "temperature_c": null});
            record["energy_kind"] = "measured".into();
        }
        lines += &format!("{record}\n");
    }
    std::fs::write(path, lines).unwrap();
}

/// What an SVG holds, by a reader of XML that refuses what is not well formed.
#[derive(Default)]
struct Drawing {
    marks: usize,
    texts: String,
    size: (f64, f64),
}

fn drawing(svg: &str) -> Drawing {
    use quick_xml::events::Event;
    let mut reader = quick_xml::Reader::from_str(svg);
    reader.config_mut().check_end_names = true;
    let mut found = Drawing::default();
    let mut depth = 0;
    loop {
        let event = reader.read_event().unwrap();
        match &event {
            Event::Eof => break,
            Event::Start(element) | Event::Empty(element) => {
                let name = String::from_utf8(element.name().as_ref().to_vec()).unwrap();
                let known = ["svg", "title", "desc", "rect", "polyline", "polygon", "circle", "text"];
                assert!(known.contains(&name.as_str()), "<{name}>");
                for attribute in element.attributes() {
                    let attribute = attribute.unwrap();
                    let key = String::from_utf8(attribute.key.as_ref().to_vec()).unwrap();
                    let value = String::from_utf8(attribute.value.to_vec()).unwrap();
                    assert!(
                        !key.starts_with("on") && !key.contains("href") && !value.contains("url("),
                        "{key}"
                    );
                    assert!(!value.contains("NaN") && !value.contains("inf"), "{key}={value}");
                    found.marks += usize::from(key == "class" && value == "mark");
                    match (name.as_str(), key.as_str()) {
                        ("svg", "width") => found.size.0 = value.parse().unwrap(),
                        ("svg", "height") => found.size.1 = value.parse().unwrap(),
                        _ => {}
                    }
                }
                depth += i32::from(matches!(event, Event::Start(_)));
            }
            Event::End(_) => depth -= 1,
            Event::Text(text) => found.texts += &String::from_utf8_lossy(text),
            Event::GeneralRef(name) => {
                let name = String::from_utf8_lossy(name).into_owned();
                found.texts += match name.as_str() {
                    "lt" => "<",
                    "gt" => ">",
                    "amp" => "&",
                    "quot" => "\"",
                    "#39" => "'",
                    other => panic!("&{other};"),
                };
            }
            Event::Decl(_) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(depth, 0);
    found
}

#[test]
fn a_still_figure_has_a_mark_for_each_figure_it_shows() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let text = std::fs::read_to_string(example()).unwrap();
    let records: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    good(at, &[example().to_str().unwrap(), "-o", "a.svg"]);
    let svg = std::fs::read_to_string(at.join("a.svg")).unwrap();
    let found = drawing(&svg);
    let of = |kind: &'static str| records.iter().filter(move |r| r["kind"] == kind && r["valid"] == true);
    let points = of("kernel").filter(|r| r["flops"].as_f64() > Some(0.0) && r["bytes"].as_f64() > Some(0.0));
    let shapes: std::collections::BTreeSet<String> = of("kernel")
        .filter(|r| r["roof_fraction"].is_number())
        .map(|r| format!("{}{}{}", r["op"], r["shape"], r["dtype"]))
        .collect();
    assert!(shapes.len() <= 20, "the panel has room for all");
    // each token result stands in a row of its rate and of its joules, and in two sweeps where it was not run alone
    let test = |r: &serde_json::Value| (r["model"].to_string(), r["n_prompt"].as_u64(), r["n_gen"].as_u64());
    let swept = of("tokens").filter(|r| of("tokens").filter(|other| test(other) == test(r)).count() > 1);
    let expected = points.count() + shapes.len() + 2 * of("tokens").count() + 2 * swept.count();
    assert_eq!(found.marks, expected);
    let all = format!("{} records", records.len());
    let day = &records[0]["test_time"].as_str().unwrap()[..10];
    for words in ["measured", "modelled", "95 % intervals", "AMD EPYC", day, "perjoule 0.", &all] {
        assert!(found.texts.contains(words), "{words}");
    }
    good(at, &[example().to_str().unwrap(), "--format", "svg"]);
    assert_eq!(
        std::fs::read_to_string(at.join("report.svg")).unwrap(),
        svg,
        "the default name, the same bytes"
    );
    let piped = report(at, &[example().to_str().unwrap(), "--format", "svg", "-o", "-"]);
    assert_eq!(piped.stdout, svg.as_bytes());
}

#[test]
fn a_still_figure_of_hostile_records_is_a_figure() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    nasty(&at.join("nasty.jsonl"));
    good(at, &["nasty.jsonl", "-o", "n.svg", "--title", NASTY]);
    let svg = std::fs::read_to_string(at.join("n.svg")).unwrap();
    let found = drawing(&svg);
    assert!(found.texts.contains("</SCRIPT></text><script>") && !svg.contains("<script"));
    good(at, &["nasty.jsonl", "-o", "n.png", "--title", NASTY]);
    pixels(&at.join("n.png"));
    // nothing that can be drawn
    let line = "{\"schema_version\":1,\"kind\":\"samples\",\"provenance\":\"imported\",\"valid\":true}\n";
    std::fs::write(at.join("bare.jsonl"), line).unwrap();
    good(at, &["bare.jsonl", "-o", "bare.svg"]);
    let bare = drawing(&std::fs::read_to_string(at.join("bare.svg")).unwrap());
    assert!(bare.marks == 0 && bare.texts.contains("Nothing in these records can be drawn"));
}

/// Width, height and how many colours there are.
fn pixels(path: &Path) -> (u32, u32, usize) {
    let file = std::io::BufReader::new(std::fs::File::open(path).unwrap());
    let mut reader = png::Decoder::new(file).read_info().unwrap();
    let mut bytes = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut bytes).unwrap();
    let wide = info.color_type.samples();
    let colours: std::collections::HashSet<&[u8]> = bytes.chunks_exact(wide).collect();
    (info.width, info.height, colours.len())
}

#[test]
fn a_png_is_the_same_figure_in_pixels() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let records = example();
    let records = records.to_str().unwrap();
    good(at, &[records, "-o", "a.svg"]);
    let (w, h) = drawing(&std::fs::read_to_string(at.join("a.svg")).unwrap()).size;
    for (scale, name) in [(None, "two.png"), (Some("1"), "one.png"), (Some("0.5"), "half.png")] {
        let arguments: Vec<&str> =
            [records, "-o", name].into_iter().chain(scale.iter().flat_map(|x| ["--scale", x])).collect();
        good(at, &arguments);
        let factor: f64 = scale.map_or(2.0, |x| x.parse().unwrap());
        let (width, height, colours) = pixels(&at.join(name));
        assert_eq!(
            (f64::from(width), f64::from(height)),
            ((w * factor).ceil(), (h * factor).ceil()),
            "{name}"
        );
        assert!(colours > 100, "{name}: {colours} colours");
    }
    refused(at, &[records, "-o", "a.svg", "--scale", "2"], "--scale is for --format png");
    for scale in ["0", "-1", "nan", "inf", "1e9", "x", "5"] {
        let output = report(at, &[records, "-o", "a.png", &format!("--scale={scale}")]);
        assert_eq!(output.status.code(), Some(2), "{scale}");
    }
}

#[test]
fn readings_and_windows_over_time_have_charts_and_tables() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    traced(&at.join("t.jsonl"));
    good(at, &["t.jsonl", "-o", "t.html"]);
    let page = std::fs::read_to_string(at.join("t.html")).unwrap();
    for id in ["energy-time", "power-readings", "clock-readings"] {
        assert!(
            page.contains(&format!("data-chart=\"{id}\"")) && page.contains(&format!("table-{id}")),
            "{id}"
        );
    }
    assert!(!page.contains("temperature-readings"), "nothing was read of it");
    assert!(page.contains("modelled, not measured: hollow and dashed"));
    assert!(page.len() < 2 << 20, "long series are thinned: {} bytes", page.len());
    good(at, &[example().to_str().unwrap(), "-o", "e.html"]);
    let page = std::fs::read_to_string(at.join("e.html")).unwrap();
    assert!(page.contains("data-chart=\"energy-time\"") && !page.contains("power-readings"));
}

/// Ten thousand records made of the example's, each a little different.
fn many(path: &Path) {
    let text = std::fs::read_to_string(example()).unwrap();
    let records: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut lines = String::new();
    for i in 0..10_000usize {
        let mut record = records[i % records.len()].clone();
        let factor = 1.0 + (i as f64 * 0.618).fract();
        for field in ["median_ns", "gflops", "gbps", "avg_ts"] {
            if let Some(value) = record[field].as_f64() {
                record[field] = (value * factor).into();
            }
        }
        record["shape"] = format!("m={},n={},k=64", i % 97, i % 89).into();
        lines += &format!("{record}\n");
    }
    std::fs::write(path, lines).unwrap();
}

#[test]
fn ten_thousand_records_fit() {
    let folder = tempfile::tempdir().unwrap();
    many(&folder.path().join("many.jsonl"));
    let start = Instant::now();
    good(folder.path(), &["many.jsonl"]);
    let size = std::fs::metadata(folder.path().join("report.html")).unwrap().len();
    println!("10,000 records: {size} bytes in {:.2} s", start.elapsed().as_secs_f64());
    assert!(size < 3 << 20, "{size} bytes");
}

/// Where Chromium is: `PERJOULE_CHROMIUM`, or a usual name on the path.
fn chromium() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("PERJOULE_CHROMIUM") {
        return Some(named.into());
    }
    let path = std::env::var_os("PATH")?;
    let names = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
    std::env::split_paths(&path)
        .find_map(|folder| names.iter().map(|name| folder.join(name)).find(|p| p.is_file()))
}

/// The page after its scripts ran, and what the console had to say.
fn browse(chromium: &Path, page: &Path, profile: &Path) -> (String, Vec<String>) {
    let output = Command::new(chromium)
        .args([
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-logging=stderr",
            "--window-size=1280,900",
        ])
        .args(["--virtual-time-budget=20000", "--dump-dom"])
        .arg(format!("--user-data-dir={}", profile.display()))
        .arg(format!("file://{}", page.display()))
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let console = stderr.lines().filter(|line| line.contains("CONSOLE")).map(str::to_owned).collect();
    (String::from_utf8_lossy(&output.stdout).into_owned(), console)
}

#[test]
fn a_browser_draws_every_chart_without_complaint() {
    let Some(chromium) = chromium() else {
        println!("ignored: no Chromium on the path; PERJOULE_CHROMIUM may name one");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let records = example();
    good(at, &[records.to_str().unwrap(), "-o", "plain.html"]);
    many(&at.join("many.jsonl"));
    good(at, &["many.jsonl", "-o", "many.html"]);
    nasty(&at.join("nasty.jsonl"));
    good(at, &["nasty.jsonl", "-o", "nasty.html", "--title", NASTY]);
    traced(&at.join("traced.jsonl"));
    good(at, &["traced.jsonl", "-o", "traced.html"]);
    for name in ["plain.html", "nasty.html", "many.html", "traced.html"] {
        // on a loaded machine the browser's own budget may end before the charts do: that is no fault of the page
        let mut tries = (0..3).map(|_| browse(&chromium, &at.join(name), &at.join("profile")));
        let finished = |(page, console): &(String, Vec<String>)| {
            page.contains("data-charts=\"drawn\"") || !console.is_empty()
        };
        let (page, console) = tries.find(finished).unwrap_or_else(|| panic!("{name}: charts are missing"));
        assert!(console.is_empty(), "{name}: {console:?}");
        assert!(!page.contains("chart failed") && !page.contains("<title>owned"), "{name}");
        assert!(!page.contains("href=\"javascript"), "{name}: a link from a record that is no address");
        let drawn = page.matches("<canvas").count() + page.matches("<svg").count();
        assert!(drawn >= page.matches("class=\"chart").count() && drawn > 3, "{name}: {drawn}");
    }
}
