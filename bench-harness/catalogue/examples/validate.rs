//! Prints how well predictions hold: every published row against a model without its class, and rows that calibration never sees.

use perjoule_catalogue::{Catalogue, Model, Row, validate};

fn main() {
    let catalogue = Catalogue::builtin();
    let rows = Row::published();
    println!("Leave one class out, {} published rows\n", rows.len());
    let checks = validate::leave_one_class_out(&catalogue, &rows);
    println!("{}", validate::table(&checks));
    for (i, row) in rows.iter().enumerate() {
        for reason in [&row.excluded, &row.excluded_power].into_iter().filter(|reason| !reason.is_empty()) {
            println!("row {}, {} {}: {reason}", i + 2, row.class, row.model);
        }
    }
    for check in checks.iter().filter(|check| !check.tokens_per_s.inside()) {
        let row = &rows[check.row];
        let v = check.tokens_per_s;
        println!(
            "outside: {} x{} {} {:?} measured {:.1}, predicted {:.1} ({:.1} to {:.1}) tokens/s",
            row.class,
            row.devices,
            row.model,
            row.phase,
            v.measured,
            v.predicted.value,
            v.predicted.low,
            v.predicted.high
        );
    }

    let held_out = Row::held_out();
    println!("\nHeld out, {} rows that calibration never sees\n", held_out.len());
    let (checks, left_out) = validate::against(Model::builtin(), &catalogue, &held_out);
    println!("{}", validate::table(&checks));
    for (i, why) in left_out {
        println!(
            "row {}, {} x{} {}: {why}",
            i + 2,
            held_out[i].class,
            held_out[i].devices,
            held_out[i].model
        );
    }
}
