//! How well predictions hold, as assertions. `cargo run --release -p perjoule-catalogue --example validate` prints the table.

use perjoule_catalogue::validate::{self, Check, Score};
use perjoule_catalogue::{Catalogue, Model, Row};

fn scores(checks: &[Check]) -> (Score, Score) {
    let rate = Score::of(checks.iter().map(|check| &check.tokens_per_s));
    let joules = Score::of(checks.iter().filter_map(|check| check.joules_per_token.as_ref()));
    (rate.unwrap(), joules.unwrap())
}

/// Bands of 90 % that are honest and not absurdly wide. The upper limit of coverage keeps a band from growing until nothing can fail.
fn hold(name: &str, score: Score, width: f64, off: f64) {
    assert!((0.85..=0.98).contains(&score.coverage), "{name}: {score}");
    assert!(score.width < width, "{name}: {score}");
    assert!(score.off < off, "{name}: {score}");
}

#[test]
fn bands_hold_for_classes_that_are_left_out() {
    let checks = validate::leave_one_class_out(&Catalogue::builtin(), &Row::published());
    println!("{}", validate::table(&checks));
    let (rate, joules) = scores(&checks);
    assert!(rate.rows >= 95 && joules.rows >= 36);
    hold("throughput", rate, 2.1, 1.35);
    // power of boards is published for two classes: without the one, the other is all there is to learn from
    hold("energy", joules, 2.8, 1.35);
}

#[test]
fn bands_hold_for_rows_that_calibration_never_sees() {
    let (checks, left_out) = validate::against(Model::builtin(), &Catalogue::builtin(), &Row::held_out());
    println!("{}", validate::table(&checks));
    let (rate, joules) = scores(&checks);
    assert!(
        left_out.iter().all(|(_, why)| why.starts_with("does not fit")) && left_out.len() <= 12,
        "{left_out:?}"
    );
    hold("throughput", rate, 2.0, 1.25);
    hold("energy", joules, 1.75, 1.3);
}

#[test]
fn a_constant_share_of_the_roof_is_the_worse_model() {
    // what the terms of the model must earn: the median error against a share of the roof for each phase, classes left out
    let catalogue = Catalogue::builtin();
    let rows: Vec<Row> = Row::published().into_iter().filter(|row| row.excluded.is_empty()).collect();
    let share: Vec<(usize, f64)> = rows
        .iter()
        .enumerate()
        .map(|(i, row)| {
            let (class, load) = row.workload(&catalogue).unwrap();
            (
                i,
                (row.tokens_per_s / perjoule_catalogue::predict(class, row.devices, &load).unwrap().roof)
                    .ln(),
            )
        })
        .collect();
    let mut constant: Vec<f64> = share
        .iter()
        .map(|(i, own)| {
            let others = share
                .iter()
                .filter(|(j, _)| rows[*j].class != rows[*i].class && rows[*j].phase == rows[*i].phase);
            let (sum, n) = others.fold((0.0, 0.0), |(sum, n), (_, s)| (sum + s, n + 1.0));
            (own - sum / n).abs()
        })
        .collect();
    constant.sort_by(f64::total_cmp);
    let checks = validate::leave_one_class_out(&catalogue, &rows);
    let (rate, _) = scores(&checks);
    let constant = constant[constant.len() / 2].exp();
    println!("median error: constant share x{constant:.2}, model x{:.2}", rate.off);
    assert!(rate.off < constant * 0.95);
}

#[test]
fn calibration_is_deterministic() {
    let catalogue = Catalogue::builtin();
    assert_eq!(&Model::calibrate(&catalogue, &Row::published()), Model::builtin());
}
