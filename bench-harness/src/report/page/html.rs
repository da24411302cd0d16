//! The page itself: template, style and scripts put together.
//!
//! Nothing in a record is trusted. Text goes through the template's escaping; data is JSON in which `<`, `>` and `&` are written as
//! escapes, so that no name can end a script or open a comment; and a policy in the page forbids the network and every script but the
//! four whose hashes it names, which need no `eval` (charts run on an interpreter).

use anyhow::{Context, Result};
use base64::Engine;
use minijinja::{AutoEscape, Environment, Value};
use perjoule_record::Provenance;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::Input;
use super::charts::{self, Chart};
use super::commands::{self, COMMANDS};
use super::data::{self, Dataset, clip};
use super::samples::{self, SAMPLES};
use super::series;
use super::words::{Words, words};

const TEMPLATE: &str = include_str!("../../../assets/report.html");
const STYLE: &str = include_str!("../../../assets/report.css");
const SCRIPT: &str = include_str!("../../../assets/report.js");

/// Name, bundle and licence.
const BUNDLES: [(&str, &str, &str); 3] = [
    (
        "vega 6.4.0",
        include_str!("../../../assets/vega/vega.min.js"),
        include_str!("../../../assets/vega/LICENSE-vega"),
    ),
    (
        "vega-lite 6.4.3",
        include_str!("../../../assets/vega/vega-lite.min.js"),
        include_str!("../../../assets/vega/LICENSE-vega-lite"),
    ),
    (
        "vega-embed 7.3.0",
        include_str!("../../../assets/vega/vega-embed.min.js"),
        include_str!("../../../assets/vega/LICENSE-vega-embed"),
    ),
];

/// Rows that stand in the page as text, for readers without scripts; the script shows all.
const STATIC_ROWS: usize = 40;
/// Damaged lines that are named.
const WARNINGS: usize = 20;

/// A table as the template writes it.
#[derive(Debug, Serialize)]
struct Table {
    caption: String,
    headings: Vec<Heading>,
    rows: Vec<Row>,
    total: usize,
}

#[derive(Debug, Serialize)]
struct Heading {
    title: String,
    number: bool,
}

#[derive(Debug, Serialize)]
struct Row {
    invalid: bool,
    cells: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Figure {
    /// Whether marks are points, whose filling says how they were obtained.
    key: bool,
    id: String,
    title: String,
    caption: String,
    label: String,
    table: Table,
}

#[derive(Debug, Serialize)]
struct Section {
    id: &'static str,
    title: &'static str,
    table: Table,
}

#[derive(Debug, Serialize)]
struct Page<'a> {
    title: String,
    version: &'static str,
    words: Words,
    figures: Vec<Figure>,
    sections: Vec<Section>,
    imported: bool,
    warnings: Vec<String>,
    more_warnings: usize,
    remarks: &'a [String],
    policy: String,
    style: Value,
    data: Value,
    scripts: Vec<Value>,
}

/// JSON that is safe inside a script element, whatever its strings hold.
pub(crate) fn embedded(value: &serde_json::Value) -> String {
    let mut text = String::new();
    for c in value.to_string().chars() {
        match c {
            // only strings hold these, and there an escape means the same
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => text.push_str(&format!("\\u{:04x}", c as u32)),
            c => text.push(c),
        }
    }
    text
}

fn table(
    data: &Dataset,
    keys: &[&str],
    rows: impl Iterator<Item = usize>,
    total: usize,
    caption: &str,
) -> Table {
    let bands = keys.iter().any(|key| key.contains('|'));
    let caption = match data.intervals().filter(|_| bands) {
        Some(held) => format!("{caption}; {held}"),
        None => caption.to_owned(),
    };
    let headings = keys.iter().map(|key| {
        let (title, number) = data.heading(key.split('|').next().unwrap_or(key));
        // what it holds differs from row to row: the caption says it
        let title = if key.contains('|') { "interval" } else { title };
        Heading { title: title.to_owned(), number }
    });
    let row = |row: usize| Row {
        invalid: data.text("notes", row).starts_with("INVALID"),
        cells: keys.iter().map(|key| data.shown(key, row)).collect(),
    };
    Table { caption, headings: headings.collect(), rows: rows.take(STATIC_ROWS).map(row).collect(), total }
}

const KERNELS: [&str; 15] = [
    "device",
    "op",
    "dtype",
    "shape",
    "kernel",
    "cache",
    "ns",
    "ns_lo|ns_hi",
    "gflops",
    "gbps",
    "roof",
    "error",
    "verified",
    "from",
    "notes",
];
const KERNEL_ENERGY: [&str; 4] = ["joules", "joules_lo|joules_hi", "per_tflop", "energy"];
const TOKENS: [&str; 17] = [
    "device",
    "model",
    "dtype",
    "test",
    "parallel",
    "ts",
    "ts_sd",
    "ts_lo|ts_hi",
    "n",
    "roof",
    "joules",
    "joules_lo|joules_hi",
    "energy",
    "net",
    "per_joule",
    "from",
    "notes",
];
const CEILINGS: [&str; 8] =
    ["device", "what", "gflops", "gflops_lo|gflops_hi", "gbps", "gbps_lo|gbps_hi", "from", "how"];

/// The page as text.
pub(crate) fn render(input: &Input<'_>) -> Result<String> {
    let records = input.records;
    let kernels = data::kernels(records);
    let tokens = data::tokens(records);
    let ceilings = data::ceilings(records);
    let windows = series::windows(records);
    let traces = series::traces(records);
    let commands = commands::commands(records);
    let samples = samples::samples(records);
    let charts = charts::all(records, &kernels, &tokens, &windows, &traces);
    let set = |name: &str| match name {
        "kernels" => &kernels,
        "tokens" => &tokens,
        "commands" => &commands,
        "samples" => &samples,
        "windows" => &windows.data,
        "traces" => &traces,
        _ => &ceilings,
    };
    let mut kernel_columns = KERNELS.to_vec();
    kernel_columns.splice(13..13, KERNEL_ENERGY);
    let mut ceiling_columns = CEILINGS.to_vec();
    ceiling_columns.push("notes");
    let sections = [
        ("tokens", "Tokens", TOKENS.to_vec()),
        ("samples", "Samples", SAMPLES.to_vec()),
        ("kernels", "Kernels", kernel_columns),
        ("commands", "Commands", COMMANDS.to_vec()),
        ("ceilings", "Ceilings", ceiling_columns),
    ];
    let mut sections: Vec<_> = sections.into_iter().filter(|(id, _, _)| set(id).len() > 0).collect();
    if !data::several_devices(records) {
        sections.iter_mut().for_each(|(_, _, keys)| keys.retain(|key| *key != "device"));
    }
    let figure = |chart: &Chart| Figure {
        key: chart.dataset != "traces",
        id: chart.id.clone(),
        title: chart.title.clone(),
        caption: chart.caption.clone(),
        label: chart.label.clone(),
        table: table(
            set(chart.dataset),
            chart.columns,
            chart.rows.iter().copied(),
            chart.rows.len(),
            &format!("Data of the chart: {}", chart.title),
        ),
    };
    let views: serde_json::Map<String, serde_json::Value> = sections
        .iter()
        .map(|(id, _, keys)| (format!("table-{id}"), serde_json::json!({"data": id, "columns": keys})))
        .chain(charts.iter().map(|chart| {
            let view =
                serde_json::json!({"data": chart.dataset, "columns": chart.columns, "rows": chart.rows});
            (format!("table-{}", chart.id), view)
        }))
        .collect();
    let specs: serde_json::Map<String, serde_json::Value> = charts
        .iter()
        .map(|chart| {
            let all = chart.rows.len() == set(chart.dataset).len();
            let rows = if all { serde_json::Value::Null } else { serde_json::json!(chart.rows) };
            (chart.id.clone(), serde_json::json!({"data": chart.dataset, "rows": rows, "spec": chart.spec}))
        })
        .collect();
    let mut sets = serde_json::Map::new();
    for name in ["kernels", "tokens", "samples", "commands", "ceilings", "windows", "traces"] {
        if set(name).len() > 0 {
            sets.insert(name.into(), set(name).to_json());
        }
    }
    let everything = serde_json::json!({
        "config": charts::config(), "sets": sets, "views": views, "charts": specs,
    });
    let scripts: Vec<String> = BUNDLES
        .iter()
        .map(|(name, code, licence)| format!("\n/*! {name}\n{}\n*/\n{code}", licence.replace("*/", "* /")))
        .chain([format!("\n{SCRIPT}")])
        .collect();
    let page = Page {
        title: clip(input.title),
        version: env!("CARGO_PKG_VERSION"),
        words: words(records, input.warnings.len()),
        figures: charts.iter().map(figure).collect(),
        sections: sections
            .iter()
            .map(|(id, title, keys)| Section {
                id,
                title,
                table: table(set(id), keys, 0..set(id).len(), set(id).len(), title),
            })
            .collect(),
        imported: records.iter().any(|r| r.provenance == Provenance::Imported),
        warnings: input.warnings.iter().take(WARNINGS).map(|text| clip(text)).collect(),
        more_warnings: input.warnings.len().saturating_sub(WARNINGS),
        remarks: input.remarks,
        policy: policy(&scripts),
        style: Value::from_safe_string(STYLE.to_owned()),
        data: Value::from_safe_string(embedded(&everything)),
        scripts: scripts.into_iter().map(Value::from_safe_string).collect(),
    };
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    environment.add_template("report", TEMPLATE)?;
    environment
        .get_template("report")?
        .render(minijinja::value::Serde(&page))
        .context("the page could not be put together")
}

/// What the page may do: run these scripts, use its own styles, and nothing else.
fn policy(scripts: &[String]) -> String {
    let hash = |script: &String| {
        let digest = Sha256::digest(script.as_bytes());
        format!("'sha256-{}'", base64::engine::general_purpose::STANDARD.encode(digest))
    };
    let hashes: Vec<String> = scripts.iter().map(hash).collect();
    format!(
        "default-src 'none'; script-src {}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'",
        hashes.join(" ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use perjoule_record::{EnergyKind, Kind, Reading, Record};

    const NASTY: &str = "</SCRIPT><script>alert(1)</script><!-- \u{2028} ' \" & <img src=x onerror=alert(1)>";

    fn records() -> Vec<Record> {
        let environment = perjoule_record::Environment { command: Some(NASTY.into()), ..Default::default() };
        let mut list = Vec::new();
        for (i, rate) in [1e-300, 1.0, f64::NAN, 1e308, 50.0].into_iter().enumerate() {
            let mut record = Record::new(Kind::Kernel, &environment);
            record.device.device_name = Some(NASTY.into());
            record.workload.op = Some(NASTY.into());
            record.workload.kernel = Some(if i == 1 { "k".repeat(100_000) } else { NASTY.into() });
            record.workload.shape = Some(NASTY.into());
            record.timing.set_samples(vec![rate, rate * 1.1], 1);
            (record.timing.flops, record.timing.bytes) = (Some(1000), Some(10));
            record.timing.derive_rates();
            record.verification.verified = Some(true);
            record.roof.roof_gflops = Some(1e308);
            list.push(record);
        }
        let mut record = Record::new(Kind::Tokens, &environment);
        record.provenance = Provenance::Imported;
        record.workload.model = Some(NASTY.into());
        (record.workload.n_prompt, record.workload.n_gen) = (Some(u64::MAX), Some(1));
        record.timing.avg_ts = Some(12.0);
        record.energy.energy_source = Some(NASTY.into());
        record.energy.energy_kind = Some(EnergyKind::Modelled);
        record.energy.joules_per_output_token = Some(f64::INFINITY);
        let reading = |meter: &str| Reading {
            source: NASTY.into(),
            boundary: NASTY.into(),
            kind: EnergyKind::Measured,
            meter: meter.into(),
            joules: 1.0,
            ci95: None,
            net_joules: None,
            net_ci95: None,
            idle_power_w: None,
            window_s: 1.0,
            notes: Some(vec!["The counter stepped back.".into(), NASTY.into()]),
        };
        record.energy.energies = Some(vec![reading(NASTY), reading("Outlet <3>")]);
        record.invalidate(NASTY);
        list.push(record);
        list
    }

    fn page(records: &[Record]) -> String {
        let text = [NASTY.to_owned()];
        render(&Input { title: NASTY, records, warnings: &text, remarks: &text }).unwrap()
    }

    #[test]
    fn nothing_in_a_record_becomes_markup() {
        let page = page(&records());
        assert_eq!(page.matches("<script").count(), 5, "data and four scripts");
        assert_eq!(page.to_lowercase().matches("</script").count(), 5);
        // the bundles, whose hashes the policy names, begin with the first script of no type
        let own = page.split("<script>").next().unwrap();
        assert!(!own.contains("<img") && !own.contains("<!--"));
        assert!(!own.contains("NaN,") && !own.contains(":Infinity"));
        assert!(!page.contains(&"k".repeat(1000)), "a long name is cut");
        let data =
            page.split("type=\"application/json\">").nth(1).unwrap().split("</script>").next().unwrap();
        assert!(!data.contains('<') && !data.contains('\u{2028}'));
        let data: serde_json::Value = serde_json::from_str(data).unwrap();
        let texts = data["sets"]["kernels"]["columns"][4]["texts"].as_array().unwrap();
        assert_eq!(texts[0].as_str().unwrap(), clip(NASTY), "and reads back as it was");
    }

    #[test]
    fn what_meters_say_of_their_figures_stands_where_energy_is_explained() {
        let page = page(&records());
        let section = page.split("How energy was obtained").nth(1).unwrap().split("</div>").next().unwrap();
        assert!(section.contains("Outlet &lt;3&gt;: The counter stepped back."), "{section}");
    }

    #[test]
    fn the_same_records_make_the_same_page_without_the_network() {
        let records = records();
        let first = page(&records);
        assert_eq!(first, page(&records));
        assert!(first.len() < 3 << 20, "{} bytes", first.len());
        assert!(first.contains("default-src &#x27;none&#x27;") || first.contains("default-src 'none'"));
        let head = first.split("</head>").next().unwrap();
        for part in ["<link", "src=\"", "href=\"http", "@import", "url(http"] {
            assert!(!head.contains(part), "{part}");
        }
    }

    #[test]
    fn no_records_of_a_kind_leave_no_section() {
        let page = page(&[]);
        assert!(!page.contains("id=\"table-kernels\"") && !page.contains("<figure"));
    }
}
