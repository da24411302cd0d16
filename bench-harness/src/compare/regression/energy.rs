//! Joules of a call or a token, held against each other where both sides measured them in the same way.

use perjoule_record::stats::{Comparison, Verdict, normal_two_sided};
use perjoule_record::{EnergyKind, Interval, Record};
use std::collections::BTreeMap;

use super::{Among, CEILING, ENERGY, Line, Outcome, is_valid};

/// Lines of energy, and what is said of the others.
pub(super) struct Joules<'a> {
    pub(super) lines: Vec<Line<'a>>,
    pub(super) notes: Vec<String>,
}

/// A line for each measurement whose joules can be compared.
pub(super) fn lines<'a>(measurements: &[Line<'a>], threshold: f64) -> Joules<'a> {
    let mut lines = Vec::new();
    let mut without: BTreeMap<&str, usize> = BTreeMap::new();
    for line in measurements.iter().filter(|line| line.kind != CEILING) {
        let (Some(old), Some(new)) = (line.old, line.new) else { continue };
        if !is_valid(old) || !is_valid(new) {
            continue;
        }
        match compare(old, new, threshold) {
            Ok(compared) => {
                let p_value = compared.p_value;
                let among = Among { p_value, q_value: p_value, chance: false };
                let outcome = Outcome::Compared(compared, among);
                lines.push(Line { kind: ENERGY, outcome, ..line.clone() });
            }
            Err(why) => *without.entry(why).or_default() += 1,
        }
    }
    let notes = without.into_iter().map(|(why, n)| match (lines.is_empty(), n) {
        (true, _) => format!("energy is not compared: {why}"),
        (false, 1) => format!("energy of 1 line is not compared: {why}"),
        (false, n) => format!("energy of {n} lines is not compared: {why}"),
    });
    let notes = notes.collect();
    Joules { lines, notes }
}

/// Gross joules of either side: of a generated token, of a prompt those of its tokens, else of a call; the first of them that both know.
pub(in super::super) fn joules(old: &Record, new: &Record) -> Option<(f64, f64)> {
    let generates = new.workload.n_gen.is_some_and(|n| n > 0);
    let figures = |record: &Record| {
        let e = &record.energy;
        let of_token = if generates { e.joules_per_output_token } else { e.joules_per_total_token };
        [of_token, e.joules_per_call]
            .map(|figure| figure.filter(|joules| joules.is_finite() && *joules > 0.0))
    };
    figures(old).into_iter().zip(figures(new)).find_map(|(old, new)| old.zip(new))
}

/// The 95 % interval of the joules in shares of them, where it has two positive ends.
fn interval(record: &Record) -> Option<Interval> {
    let (ci, joules) = record.energy.energy_ci95.zip(record.energy.joules)?;
    let interval = Interval { lo: ci.lo / joules, hi: ci.hi / joules };
    (interval.lo > 0.0 && interval.lo <= interval.hi && interval.hi.is_finite()).then_some(interval)
}

fn compare(old: &Record, new: &Record, threshold: f64) -> Result<Comparison, &'static str> {
    let measured = |record: &Record| record.energy.energy_kind == Some(EnergyKind::Measured);
    let modelled = |record: &Record| record.energy.energy_kind == Some(EnergyKind::Modelled);
    if !measured(old) || !measured(new) {
        return Err(if modelled(old) || modelled(new) { "it is modelled" } else { "it is unknown" });
    }
    let (of_old, of_new) = joules(old, new).ok_or("it is unknown")?;
    let meter =
        |record: &Record| (record.energy.energy_source.clone(), record.energy.energy_boundary.clone());
    if meter(old) != meter(new) || old.energy.energy_source.is_none() || old.energy.energy_boundary.is_none()
    {
        return Err("the sides have different meters or boundaries");
    }
    let (ci_old, ci_new) = interval(old).zip(interval(new)).ok_or("a side has no interval")?;
    let ratio = of_new / of_old;
    // Whatever both intervals allow: wider than 95 % for independent errors, right for errors that go together.
    let ci95 = Interval { lo: ratio * ci_new.lo / ci_old.hi, hi: ratio * ci_new.hi / ci_old.lo };
    if !(ratio.is_finite() && ratio > 0.0 && ci95.lo.is_finite() && ci95.hi.is_finite()) {
        return Err("its ratio is beyond the numbers");
    }
    let p_value = p_value(ratio, ci_old, ci_new);
    let verdict = Verdict::of(ci95, threshold).with_p_value(p_value);
    Ok(Comparison { ratio, ci95, p_value, verdict })
}

/// Two-sided, as if each interval were of a normal distribution of logarithms with independent errors: for the number of lines.
fn p_value(ratio: f64, old: Interval, new: Interval) -> f64 {
    let error = |ci: Interval| (ci.hi / ci.lo).ln() / (2.0 * 1.96);
    let error = error(old).hypot(error(new));
    let difference = ratio.ln().abs();
    if error > 0.0 {
        normal_two_sided(difference / error)
    } else if difference > 0.0 {
        0.0
    } else {
        1.0
    }
}
