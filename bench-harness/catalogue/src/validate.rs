//! How well predictions hold on rows that the model was not shown.

use crate::class::Catalogue;
use crate::predict::{Estimate, Model};
use crate::published::{Boundary, Row};
use std::fmt;

/// One row beside its prediction.
#[derive(Debug, Clone, PartialEq)]
pub struct Check {
    /// Id of the class.
    pub class: String,
    /// Index of the row in the rows that were checked.
    pub row: usize,
    /// Throughput.
    pub tokens_per_s: Verdict,
    /// Energy per token within the row's boundary, where the row has it.
    pub joules_per_token: Option<Verdict>,
}

/// A measurement and its band.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Verdict {
    /// What was published.
    pub measured: f64,
    /// What was predicted.
    pub predicted: Estimate,
}

impl Verdict {
    /// Whether the band holds it.
    pub fn inside(&self) -> bool {
        self.predicted.contains(self.measured)
    }

    /// Factor between the two, at least 1.
    pub fn off(&self) -> f64 {
        let ratio = self.measured / self.predicted.value;
        ratio.max(1.0 / ratio)
    }
}

/// Rows against a model that has not seen them. Rows that are excluded or that have no prediction are returned with the reason.
pub fn against(model: &Model, catalogue: &Catalogue, rows: &[Row]) -> (Vec<Check>, Vec<(usize, String)>) {
    let (mut checks, mut left_out) = (Vec::new(), Vec::new());
    for (i, row) in rows.iter().enumerate() {
        match check(model, catalogue, row, i) {
            Ok(check) => checks.push(check),
            Err(why) => left_out.push((i, why)),
        }
    }
    (checks, left_out)
}

fn check(model: &Model, catalogue: &Catalogue, row: &Row, index: usize) -> Result<Check, String> {
    if !row.excluded.is_empty() {
        return Err(row.excluded.clone());
    }
    let (class, load) = row.workload(catalogue)?;
    let prediction = model.predict(class, row.devices, &load).map_err(|why| why.to_string())?;
    let power = match row.boundary {
        Some(Boundary::Board) => prediction.board,
        Some(Boundary::Wall | Boundary::WallPeak) => prediction.wall,
        None => None,
    };
    let measured = row.watts.filter(|_| row.excluded_power.is_empty()).map(|watts| watts / row.tokens_per_s);
    Ok(Check {
        class: row.class.clone(),
        row: index,
        tokens_per_s: Verdict { measured: row.tokens_per_s, predicted: prediction.tokens_per_s },
        joules_per_token: measured
            .zip(power)
            .map(|(measured, power)| Verdict { measured, predicted: power.joules_per_token }),
    })
}

/// Every row against a model calibrated without its class.
pub fn leave_one_class_out(catalogue: &Catalogue, rows: &[Row]) -> Vec<Check> {
    let mut classes: Vec<&str> = rows.iter().map(|row| row.class.as_str()).collect();
    classes.sort_unstable();
    classes.dedup();
    let mut checks = Vec::new();
    for class in classes {
        let rest: Vec<Row> = rows.iter().filter(|row| row.class != class).cloned().collect();
        let model = Model::calibrate(catalogue, &rest);
        let here = rows.iter().enumerate().filter(|(_, row)| row.class == class);
        checks.extend(here.filter_map(|(i, row)| check(&model, catalogue, row, i).ok()));
    }
    checks
}

/// Summary of verdicts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Score {
    /// How many.
    pub rows: usize,
    /// Share inside the band.
    pub coverage: f64,
    /// Median factor from the value to the further end of the band.
    pub width: f64,
    /// Median factor between measured and predicted.
    pub off: f64,
}

impl Score {
    /// Of some verdicts; none where there are none.
    pub fn of<'a>(verdicts: impl Iterator<Item = &'a Verdict>) -> Option<Score> {
        let verdicts: Vec<&Verdict> = verdicts.collect();
        let rows = verdicts.len();
        let median = |of: fn(&Verdict) -> f64| {
            let mut values: Vec<f64> = verdicts.iter().map(|v| of(v)).collect();
            values.sort_by(f64::total_cmp);
            (values[(rows - 1) / 2] + values[rows / 2]) / 2.0
        };
        (rows > 0).then(|| Score {
            rows,
            coverage: verdicts.iter().filter(|v| v.inside()).count() as f64 / rows as f64,
            width: median(|v| v.predicted.width()),
            off: median(Verdict::off),
        })
    }
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inside = (self.coverage * self.rows as f64).round();
        write!(f, "{inside:>3}/{:<3} x{:<5.2} x{:<5.2}", self.rows, self.width, self.off)
    }
}

/// A table of checks, a line a class and one for all: rows inside the band, median half width, median error, for throughput and energy.
pub fn table(checks: &[Check]) -> String {
    let mut classes: Vec<&str> = checks.iter().map(|check| check.class.as_str()).collect();
    classes.sort_unstable();
    classes.dedup();
    let line = |name: &str, of: &dyn Fn(&Check) -> bool| {
        let rate = Score::of(checks.iter().filter(|c| of(c)).map(|c| &c.tokens_per_s));
        let joules = Score::of(checks.iter().filter(|c| of(c)).filter_map(|c| c.joules_per_token.as_ref()));
        let show = |score: Option<Score>| score.map_or_else(|| "-".to_string(), |score| score.to_string());
        format!("{name:<28} {:<22} {}\n", show(rate), show(joules))
    };
    let mut text = format!("{:<28} {:<22} {}\n", "", "tokens/s", "J/token");
    text += &format!("{:<28} {:<22} {}\n", "class", "inside  band   error", "inside  band   error");
    for class in classes {
        text += &line(class, &|check| check.class == class);
    }
    text + &line("all", &|_| true)
}
