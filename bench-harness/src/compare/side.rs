//! Groups of comparable results, as tables, JSON and CSV.

use anyhow::{Result, anyhow};
use serde_json::{Value, json};

use super::costs::Money;
use super::row::{Quantity, Row};
use super::workload::{Load, Loose};
use crate::report::units::si;
use crate::report::{Align, Table};

/// Results that are comparable with each other.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Group {
    /// What all of them are for; where something may differ, what the first is for.
    pub(crate) load: Load,
    pub(crate) rows: Vec<Row>,
}

impl Group {
    /// What differs between its results.
    pub(crate) fn varying(&self) -> Vec<Loose> {
        let mut list: Vec<Loose> =
            self.rows.iter().flat_map(|row| row.load.differences(&self.load)).collect();
        list.sort_unstable();
        list.dedup();
        list
    }

    /// The boundaries of its energies.
    fn boundaries(&self) -> Vec<&str> {
        let mut list: Vec<&str> =
            self.rows.iter().filter_map(|row| row.energy.as_ref()).map(|e| e.boundary.as_str()).collect();
        list.sort_unstable();
        list.dedup();
        list
    }

    /// Says so when energies are not of one boundary.
    pub(crate) fn boundary_note(&self) -> Option<String> {
        let list = self.boundaries();
        (list.len() > 1).then(|| {
            format!(
                "boundaries of energy differ ({}): these J/token are not equals; a wider boundary contains more",
                list.join(", ")
            )
        })
    }

    pub(crate) fn table(&self) -> Table {
        let mut table = Table::new([
            ("device\nspeed, energy", Align::Left),
            ("tokens/s\n(interval)", Align::Right),
            ("of roof\n(interval)", Align::Right),
            ("J/token\n(interval)", Align::Right),
            ("boundary\nof energy", Align::Left),
            ("tokens/J\n(interval)", Align::Right),
            ("USD hire\nper Mtoken", Align::Right),
            ("gCO2e per Mtoken\n(interval) of", Align::Right),
        ]);
        let varying = !self.varying().is_empty();
        for row in &self.rows {
            let energy = row.energy.as_ref();
            let mut name = titled(row);
            name.push_str(&format!(
                "\n  {}, energy {}",
                row.provenance,
                energy.map_or("unknown", |e| e.kind)
            ));
            if varying {
                name.push_str(&format!("\n  {}", row.load));
            }
            if let Some(file) = &row.file {
                name.push_str(&format!("\n  {file}"));
            }
            let joules = energy.map(|energy| energy.joules);
            let share = row.share_of_roof.map(|q| Quantity {
                value: 100.0 * q.value,
                interval: q.interval.map(|ends| ends.map(|end| 100.0 * end)),
            });
            let hire = match (row.usd_hire, row.usd_energy) {
                (None, Some(energy)) => format!("-\nenergy {}", si(energy.value)),
                (hire, _) => cell(hire, si),
            };
            let carbon = match row.gco2e {
                Some(_) => format!("{} {}", cell(row.gco2e, si), row.energy_cost_boundary),
                None => "-".into(),
            };
            table.row([
                name,
                cell(row.tokens_per_s, si),
                cell(share, |x| format!("{x:.0} %")),
                cell(joules, si),
                energy.map_or("-".into(), |energy| energy.boundary.clone()),
                cell(joules.and_then(Quantity::inverse), si),
                hire,
                carbon,
            ]);
        }
        table
    }

    fn json(&self) -> Value {
        json!({
            "workload": load_json(&self.load),
            "varying": self.varying().iter().map(Loose::to_string).collect::<Vec<_>>(),
            "boundaries": self.boundaries(),
            "boundary_note": self.boundary_note(),
            "rows": self.rows.iter().map(row_json).collect::<Vec<_>>(),
        })
    }
}

/// A row's name, of a class with the number of devices.
fn titled(row: &Row) -> String {
    if row.file.is_none() && row.class.is_some() {
        format!("{} x{}", row.name, row.devices)
    } else {
        row.name.clone()
    }
}

/// A value and its interval, the latter on a line of its own: a dash where there is none.
fn cell(quantity: Option<Quantity>, format: impl Fn(f64) -> String) -> String {
    match quantity {
        None => "-".into(),
        Some(Quantity { value, interval: None }) => format!("{}\n(-)", format(value)),
        Some(Quantity { value, interval: Some([lo, hi]) }) => {
            format!("{}\n({}..{})", format(value), format(lo), format(hi))
        }
    }
}

/// What stands below all tables: what intervals, roofs and energies are, and what must be known of single rows.
pub(crate) fn notes(groups: &[Group], money: &Money) -> Vec<String> {
    let rows = || groups.iter().flat_map(|group| &group.rows);
    let mut list = Vec::new();
    let predicted = rows().any(|row| row.provenance == "modelled");
    let measured = rows().any(|row| row.provenance != "modelled");
    list.push(format!(
        "intervals: {}",
        [
            measured.then_some("95 % of a measurement"),
            predicted
                .then_some("90 % of a prediction, which knows the hardware and not how good the software is")
        ]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join("; ")
    ));
    list.push(format!(
        "of roof: {}",
        [
            measured.then_some("of measured rows, the ceilings measured in the same run"),
            predicted.then_some("of modelled rows, published peaks and bandwidths")
        ]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join("; ")
    ));
    if predicted {
        list.push(
            "xN is the number of devices: as given, or the fewest that hold weights and a KV cache of 16 bits (f32 of f32 weights); \
             energy of modelled rows is that of the boards, their gCO2e that of the machine at the wall"
                .into(),
        );
    }
    list.push(money.line());
    // one line for what several rows have in common
    let mut of_rows: Vec<(String, Vec<String>)> = Vec::new();
    for row in rows() {
        for note in &row.notes {
            // overheads differ by a few per cent from row to row; JSON and CSV have them
            let note = match note.split_once(" % of the time is overhead") {
                Some((_, rest)) => format!("more than half of the time is overhead{rest}"),
                None => note.clone(),
            };
            let who = titled(row);
            match of_rows.iter_mut().find(|(text, _)| *text == note) {
                Some((_, names)) if names.contains(&who) => {}
                Some((_, names)) => names.push(who),
                None => of_rows.push((note, vec![who])),
            }
        }
    }
    list.extend(of_rows.into_iter().map(|(note, names)| format!("{}: {note}", names.join(", "))));
    list
}

/// All groups as one JSON object; README.md describes it.
pub(crate) fn json(groups: &[Group], money: &Money, remarks: &[String]) -> Value {
    json!({
        "schema": "perjoule.compare/1",
        "assumptions": money.json(),
        "groups": groups.iter().map(Group::json).collect::<Vec<_>>(),
        "notes": remarks,
    })
}

fn load_json(load: &Load) -> Value {
    json!({
        "model": load.model,
        "dtype": load.dtype,
        "kv_dtype": load.kv_dtype,
        "phase": load.phase.map(|phase| phase.to_string()),
        "n_parallel": load.n_parallel,
        "n_prompt": load.n_prompt,
        "n_gen": load.n_gen,
        "n_depth": load.n_depth,
    })
}

fn row_json(row: &Row) -> Value {
    let quantity = |q: Option<Quantity>| q.map(|q| json!({ "value": q.value, "interval": q.interval }));
    let energy = row.energy.as_ref();
    json!({
        "name": row.name,
        "file": row.file,
        "class": row.class,
        "devices": row.devices,
        "provenance": row.provenance,
        "interval_coverage": if row.provenance == "modelled" { 0.9 } else { 0.95 },
        "workload": load_json(&row.load),
        "tokens_per_s": quantity(row.tokens_per_s),
        "share_of_roof": quantity(row.share_of_roof),
        "roof": row.roof,
        "energy_provenance": energy.map(|e| e.kind),
        "energy_boundary": energy.map(|e| e.boundary.as_str()),
        "energy_source": energy.map(|e| e.source.as_str()),
        "joules_per_token": quantity(energy.map(|e| e.joules)),
        "tokens_per_joule": quantity(energy.and_then(|e| e.joules.inverse())),
        "joules_per_token_wall": quantity(row.wall),
        "usd_h_device": row.usd_h_device,
        "price_note": row.price_note,
        "usd_hire_per_mtoken": quantity(row.usd_hire),
        "usd_energy_per_mtoken": quantity(row.usd_energy),
        "gco2e_per_mtoken": quantity(row.gco2e),
        "energy_cost_boundary": Some(&row.energy_cost_boundary).filter(|text| !text.is_empty()),
        "basis": row.basis,
        "notes": row.notes,
    })
}

/// The rows of all groups as CSV: the fields of the JSON, nested ones joined by `_`, intervals as `_low` and `_high`.
pub(crate) fn csv(groups: &[Group]) -> Result<Vec<u8>> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    for (i, row) in groups.iter().flat_map(|group| &group.rows).enumerate() {
        let mut cells = Vec::new();
        let Value::Object(fields) = row_json(row) else { continue };
        for (name, value) in &fields {
            flatten(name, value, &mut cells);
        }
        if i == 0 {
            writer.write_record(cells.iter().map(|(name, _)| name))?;
        }
        writer.write_record(cells.iter().map(|(_, value)| value))?;
    }
    writer.into_inner().map_err(|error| anyhow!("{}", error.error()))
}

/// Fields that are a value with an interval.
const QUANTITIES: [&str; 8] = [
    "tokens_per_s",
    "share_of_roof",
    "joules_per_token",
    "tokens_per_joule",
    "joules_per_token_wall",
    "usd_hire_per_mtoken",
    "usd_energy_per_mtoken",
    "gco2e_per_mtoken",
];

fn flatten(name: &str, value: &Value, cells: &mut Vec<(String, String)>) {
    let text = |value: &Value| match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(list) => list
            .iter()
            .map(|v| v.as_str().map_or(v.to_string(), str::to_owned))
            .collect::<Vec<_>>()
            .join("; "),
        other => other.to_string(),
    };
    // indexing what is not there gives null
    if QUANTITIES.contains(&name) {
        cells.push((name.into(), text(&value["value"])));
        cells.push((format!("{name}_low"), text(&value["interval"][0])));
        cells.push((format!("{name}_high"), text(&value["interval"][1])));
        return;
    }
    match value {
        Value::Object(fields) => {
            fields.iter().for_each(|(key, value)| cells.push((format!("{name}_{key}"), text(value))));
        }
        other => cells.push((name.into(), text(other))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::row::tests::{money, record};
    use crate::report::Style;
    use perjoule_catalogue::Catalogue;

    fn group() -> Group {
        let catalogue = Catalogue::builtin();
        let mut odd = record("llama-3.1-8b", 1);
        odd.device.device_name = Some("<b>evil|name</b>\u{1b}[31m".into());
        let measured = Row::of_record(&odd, "a.jsonl", &catalogue, &money());
        let class = catalogue.get("nvidia-h100-sxm").unwrap();
        let predicted = Row::predicted(class, Some(2), &measured.load, &money());
        Group { load: measured.load.clone(), rows: vec![measured, predicted] }
    }

    #[test]
    fn every_row_says_how_speed_and_energy_are_known() {
        let text = group().table().render(Style::Plain);
        assert!(text.contains("measured, energy modelled") && text.contains("modelled, energy modelled"));
        assert!(text.contains("nvidia-h100-sxm x2") && text.contains("package") && text.contains("board"));
        assert!(text.contains("(1.00..4.00)"), "{text}");
        assert!(group().boundary_note().unwrap().contains("board, package"));
        let markdown = group().table().render(Style::Markdown);
        assert!(markdown.contains("&lt;b&gt;evil\\|name&lt;/b&gt;") && !markdown.contains('\u{1b}'));
    }

    #[test]
    fn json_and_csv_hold_the_same() {
        let all = json(&[group()], &money(), &[]);
        let row = &all["groups"][0]["rows"][0];
        assert_eq!((&row["provenance"], &row["energy_provenance"]), (&"measured".into(), &"modelled".into()));
        assert_eq!(row["joules_per_token"], json!({ "value": 2.0, "interval": [1.0, 4.0] }));
        assert_eq!(all["groups"][0]["boundaries"], json!(["board", "package"]));
        let text = csv(&[group()]).unwrap();
        let mut reader = csv::Reader::from_reader(text.as_slice());
        let names = reader.headers().unwrap().clone();
        let rows: Vec<csv::StringRecord> = reader.records().map(Result::unwrap).collect();
        assert_eq!(rows.len(), 2);
        let at = |name: &str| names.iter().position(|n| n == name).unwrap();
        assert_eq!(&rows[0][at("joules_per_token_high")], "4.0");
        assert_eq!(&rows[0][at("joules_per_token_wall_low")], "");
        assert_eq!(&rows[0][at("workload_model")], "llama-3.1-8b");
    }

    #[test]
    fn notes_in_common_are_one_line() {
        let mut two = group();
        two.rows[0].notes = vec!["same".into()];
        two.rows[1].notes = vec!["same".into(), "70 % of the time is overhead of x".into()];
        let notes = notes(&[two], &money());
        assert!(notes.iter().any(|note| note.ends_with(", nvidia-h100-sxm x2: same")), "{notes:?}");
        assert!(notes.iter().any(|note| note.contains("more than half of the time is overhead of x")));
    }
}
