//! `perjoule classes`: the catalogue of hardware.

use anyhow::{Context, Result, bail};
use perjoule_catalogue::{Catalogue, Class, Figure, Known, Trust};
use serde_json::{Value, json};
use std::io::Write;
use std::path::PathBuf;

use super::Ended;
use super::args_compare::ClassesArgs;
use crate::report::{Align, Style, Table, printable};

pub(crate) fn run(args: &ClassesArgs) -> Result<Ended> {
    let catalogue = catalogue(&args.catalogue)?;
    let mut out = anstream::stdout();
    let found: Vec<&Class> = match (&args.class, &args.fragment) {
        (Some(id), _) => vec![catalogue.find(id)?],
        (None, Some(fragment)) => matching(&catalogue, fragment)?,
        (None, None) => catalogue.classes().iter().collect(),
    };
    if args.json {
        let list: Vec<Value> = found.iter().map(|class| describe(class, &catalogue)).collect();
        writeln!(out, "{}", serde_json::to_string_pretty(&list)?)?;
    } else if args.class.is_some() {
        write!(
            out,
            "{}",
            printable(&found.iter().map(|class| all_of(class, &catalogue)).collect::<String>())
        )?;
    } else {
        write!(out, "{}", table(&found).render(Style::Plain))?;
        writeln!(
            out,
            "\n peaks are dense, in TFLOP/s (TOP/s for int8), of one device; trust A is the vendor's own text, B a copy of it, C secondary"
        )?;
        writeln!(out, " perjoule classes --class ID shows sources and notes")?;
    }
    Ok(Ended::Done)
}

/// The built-in catalogue with the user's files; what they replace is said on stderr.
pub(super) fn catalogue(files: &[PathBuf]) -> Result<Catalogue> {
    let mut catalogue = Catalogue::builtin();
    for file in files {
        let name = file.display().to_string();
        let text =
            std::fs::read_to_string(file).with_context(|| format!("--catalogue: cannot read {name}"))?;
        let done = catalogue.extend_from_toml(&text, &name).context("--catalogue")?;
        if !done.added.is_empty() {
            eprintln!("note: {name} adds {}", done.added.join(", "));
        }
        for (id, origin) in &done.replaced {
            eprintln!("note: {name} overrides {id} ({origin})");
        }
    }
    Ok(catalogue)
}

/// The classes whose id or name holds every word.
fn matching<'c>(catalogue: &'c Catalogue, text: &str) -> Result<Vec<&'c Class>> {
    let text = text.to_lowercase();
    let words: Vec<&str> = text.split_whitespace().collect();
    let holds = |class: &&Class| {
        let hay = format!("{} {}", class.id, class.name.to_lowercase());
        words.iter().all(|word| hay.contains(word))
    };
    let found: Vec<&Class> = catalogue.classes().iter().filter(holds).collect();
    if found.is_empty() {
        match catalogue.find(&text) {
            Ok(class) => return Ok(vec![class]),
            Err(error) => bail!(error),
        }
    }
    Ok(found)
}

/// A figure in a cell: the number, or the word that stands for it. Conflicts list what the sources say.
fn cell(figure: &Figure, unit: &str) -> String {
    match &figure.known {
        Known::Value(value) => format!("{value}{unit}"),
        Known::Conflict { values } => {
            let list: Vec<String> = values.iter().map(f64::to_string).collect();
            format!("conflict\n{}{unit}", list.join(" or "))
        }
        other => other.to_string(),
    }
}

fn trust(trust: Trust) -> &'static str {
    match trust {
        Trust::A => "A",
        Trust::B => "B",
        Trust::C => "C",
    }
}

fn table(classes: &[&Class]) -> Table {
    let mut table = Table::new([
        ("id\nname", Align::Left),
        ("memory\nGB", Align::Right),
        ("bandwidth\nGB/s", Align::Right),
        ("f32", Align::Right),
        ("tf32", Align::Right),
        ("bf16", Align::Right),
        ("fp8", Align::Right),
        ("int8", Align::Right),
        ("fp4", Align::Right),
        ("TDP\nW", Align::Right),
        ("USD/h", Align::Right),
        ("trust", Align::Left),
    ]);
    for class in classes {
        let p = &class.peak;
        let figure = |figure: &Figure| cell(figure, "");
        table.row([
            format!("{}\n  {}", class.id, class.name),
            figure(&class.mem_gb),
            figure(&class.mem_gbs),
            figure(&p.f32),
            figure(&p.tf32),
            figure(&p.bf16),
            figure(&p.fp8),
            figure(&p.int8),
            figure(&p.fp4),
            figure(&class.tdp_w),
            figure(&class.usd_h_device),
            trust(class.trust).into(),
        ]);
    }
    table
}

const UNITS: [(&str, &str); 6] = [
    ("mem_gb", " GB"),
    ("mem_gbs", " GB/s"),
    ("tdp_w", " W"),
    ("link_gbs", " GB/s, both directions"),
    ("usd_h_device", " USD per device and hour"),
    ("allin_kw", " kW per device, all in"),
];

fn unit(name: &str) -> &'static str {
    let found = UNITS.iter().find(|(figure, _)| *figure == name);
    found.map_or(if name == "peak.int8" { " TOP/s dense" } else { " TFLOP/s dense" }, |(_, unit)| unit)
}

/// Everything that is known of a class, with the text of its sources.
fn all_of(class: &Class, catalogue: &Catalogue) -> String {
    let mut lines = vec![class.id.clone()];
    let mut say = |name: &str, text: &str| {
        if !text.is_empty() {
            lines.push(format!("  {name:<14} {text}"));
        }
    };
    say("name", &class.name);
    say("family", &class.family);
    say("unit", &class.unit);
    for (name, figure) in class.figures() {
        let mut text = match &figure.known {
            Known::Value(value) => format!("{value}{}", unit(name)),
            Known::Conflict { .. } => format!("{}{}", figure.known, unit(name)),
            other => other.to_string(),
        };
        if !figure.src.is_empty() {
            text.push_str(&format!("  [{}]", figure.src.join(", ")));
        }
        if let Some(own) = figure.trust {
            text.push_str(&format!("  trust {}", trust(own)));
        }
        if let Some(note) = &figure.note {
            text.push_str(&format!("  ({note})"));
        }
        say(name, &text);
    }
    say("memory is", &class.mem_unit);
    say("link", &class.link_note);
    say("node", &class.node);
    say("instance", &class.instance);
    say("price is", &class.price_note);
    say("trust", &format!("{} where a figure has none of its own", trust(class.trust)));
    say("note", &class.note);
    say("from", &class.origin);
    lines.push("Sources, of all figures without sources of their own:".into());
    let text = |key: &str| catalogue.source(key).unwrap_or("unknown").to_owned();
    lines.extend(class.src.iter().map(|key| format!("  {key}: {}", text(key))));
    let mut own: Vec<&String> = class
        .figures()
        .into_iter()
        .flat_map(|(_, f)| &f.src)
        .filter(|key| !class.src.contains(key))
        .collect();
    own.sort_unstable();
    own.dedup();
    if !own.is_empty() {
        lines.push("Sources of single figures:".into());
        lines.extend(own.into_iter().map(|key| format!("  {key}: {}", text(key))));
    }
    lines.join("\n") + "\n"
}

/// A class for JSON: a figure is an object whose `state` says what it is.
fn describe(class: &Class, catalogue: &Catalogue) -> Value {
    let figure = |f: &Figure| {
        let (state, values) = match &f.known {
            Known::Value(value) => ("value", json!([value])),
            Known::Conflict { values } => ("conflict", json!(values)),
            Known::Unknown => ("unknown", json!([])),
            Known::Unsupported => ("unsupported", json!([])),
        };
        json!({
            "state": state,
            "values": values,
            "src": if f.src.is_empty() { &class.src } else { &f.src },
            "trust": trust(f.trust.unwrap_or(class.trust)),
            "note": f.note,
        })
    };
    let figures: serde_json::Map<String, Value> =
        class.figures().into_iter().map(|(name, f)| (name.replace('.', "_"), figure(f))).collect();
    let keys = class.src.iter().chain(class.figures().into_iter().flat_map(|(_, f)| &f.src));
    let sources: serde_json::Map<String, Value> =
        keys.map(|key| (key.clone(), catalogue.source(key).into())).collect();
    json!({
        "id": class.id,
        "name": class.name,
        "family": class.family,
        "unit": class.unit,
        "figures": figures,
        "mem_unit": class.mem_unit,
        "link_note": class.link_note,
        "node": class.node,
        "instance": class.instance,
        "price_note": class.price_note,
        "trust": trust(class.trust),
        "note": class.note,
        "origin": class.origin,
        "sources": sources,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_of_figures_are_words() {
        let catalogue = Catalogue::builtin();
        let h100 = catalogue.get("nvidia-h100-sxm").unwrap();
        let gb200 = catalogue.get("nvidia-gb200-nvl72").unwrap();
        assert_eq!(cell(&h100.peak.fp4, ""), "unsupported");
        assert_eq!(cell(&gb200.peak.f32, ""), "conflict\n90 or 75");
        let text = table(&[h100, gb200]).render(Style::Plain);
        for part in ["nvidia-h100-sxm", "989.4", "3350", "unsupported", "conflict", "90 or 75", "6.88"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let all = all_of(gb200, &catalogue);
        assert!(all.contains("peak.f32       conflict: 90 or 75 TFLOP/s dense  (Lockwood 90"), "{all}");
        assert!(class_has_every_source(gb200, &all));
    }

    fn class_has_every_source(class: &Class, text: &str) -> bool {
        class.src.iter().all(|key| text.contains(&format!("  {key}: ")))
    }

    #[test]
    fn every_class_is_described_in_full() {
        let catalogue = Catalogue::builtin();
        for class in catalogue.classes() {
            let value = describe(class, &catalogue);
            assert_eq!(value["figures"].as_object().unwrap().len(), 12, "{}", class.id);
            let sources = value["sources"].as_object().unwrap();
            assert!(sources.values().all(Value::is_string), "{}: a source without text", class.id);
        }
        let one = describe(catalogue.get("nvidia-gb200-nvl72").unwrap(), &catalogue);
        assert_eq!(one["figures"]["peak_f32"]["values"], json!([90.0, 75.0]));
    }

    #[test]
    fn fragments_match_ids_and_names() {
        let catalogue = Catalogue::builtin();
        let ids =
            |text: &str| matching(&catalogue, text).unwrap().iter().map(|c| c.id.clone()).collect::<Vec<_>>();
        assert_eq!(ids("H100"), ["nvidia-h100-sxm", "nvidia-h100-pcie"]);
        assert_eq!(ids("h100 pcie"), ["nvidia-h100-pcie"]);
        assert!(matching(&catalogue, "h1000").unwrap_err().to_string().contains("nearest"));
    }
}
