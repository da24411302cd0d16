//! `perjoule compare --self`: how small a difference can be told apart on this machine.
//!
//! A kernel is measured against itself in rounds. Within a round samples are taken in turn, as `run --versus` does; between rounds it is
//! prepared anew, as between the runs of two files.

use anyhow::{Context, Result, bail, ensure};
use perjoule::DType;
use perjoule_record::{Kind, Record, stats};
use serde_json::json;
use std::io::Write;
use std::time::Duration;

use super::args_compare::{CompareArgs, CompareFormat};
use super::{Ended, environment, open, progress, threads_of};
use crate::compare::regression::percent;
use crate::measure::ceilings::Ceilings;
use crate::measure::{Effort, kernel};
use crate::report::{Align, Style, Table};

/// Rounds: fifteen pairs of them.
const ROUNDS: usize = 6;
/// Seconds of measuring by default.
const BUDGET: f64 = 18.0;
/// A threshold is so many times the largest difference seen: few rounds have not seen the largest.
const MARGIN: f64 = 1.5;
/// The least threshold that is suggested.
const LEAST: f64 = 0.01;
/// What thresholds are rounded up to.
const STEP: f64 = 0.005;

/// What the rounds say.
#[derive(Debug, Clone, PartialEq)]
struct Noise {
    /// Ratio and its interval, of samples in turn, a round each.
    in_turn: Vec<[f64; 3]>,
    /// Medians of all samples of the rounds in nanoseconds.
    medians: Vec<f64>,
    /// The smallest relative difference that samples in turn tell apart: the furthest end of an interval.
    told_apart_in_turn: f64,
    /// The largest relative difference between two rounds.
    between_rounds: f64,
    /// For `--fail-on`.
    fail_on: f64,
}

impl Noise {
    /// From samples in turn, a pair of lists a round. `None` with too few samples.
    fn of(rounds: &[(Vec<f64>, Vec<f64>)]) -> Option<Noise> {
        let mut in_turn = Vec::new();
        let mut medians = Vec::new();
        for (a, b) in rounds {
            let compared = stats::compare_pairs(a, b, 0.0, 1)?;
            in_turn.push([compared.ratio, compared.ci95.lo, compared.ci95.hi]);
            let all: Vec<f64> = a.iter().chain(b).copied().collect();
            medians.push(stats::median(&all)?);
        }
        let far = |[_, lo, hi]: &[f64; 3]| (hi - 1.0).abs().max((1.0 - lo).abs());
        let told_apart_in_turn = in_turn.iter().map(far).fold(0.0, f64::max);
        let least = medians.iter().copied().fold(f64::INFINITY, f64::min);
        let most = medians.iter().copied().fold(0.0, f64::max);
        let between_rounds = most / least - 1.0;
        let wanted = MARGIN * between_rounds.max(told_apart_in_turn);
        // a hair below, so that a multiple of the step stays what it is
        let fail_on = ((wanted / STEP - 1e-9).ceil() * STEP).max(LEAST);
        (fail_on.is_finite()).then_some(Noise {
            in_turn,
            medians,
            told_apart_in_turn,
            between_rounds,
            fail_on,
        })
    }
}

pub(crate) fn run(args: &CompareArgs) -> Result<Ended> {
    let budget = args.budget.unwrap_or(BUDGET);
    ensure!(
        args.repetitions.is_none_or(|r| (2..=10_000).contains(&r)),
        "-r: two pairs of samples at least, and 10000 at most"
    );
    ensure!(args.threads != Some(0), "--threads 0: at least one thread is needed");
    let format = args.format;
    if !matches!(format, CompareFormat::Table | CompareFormat::Md | CompareFormat::Json) {
        bail!("--self prints a table, md or json");
    }
    let dtype = args.dtype.as_deref().unwrap_or("f32").parse::<DType>().context("--dtype")?;
    let entry = crate::ops::find(args.op.as_deref().unwrap_or("matmul"))?;
    let sizes = entry.sizes(args.shape.as_deref().unwrap_or(""))?;
    let device = open("cpu", args.threads)?;
    let op = entry.build(&sizes, dtype, &**device.backend())?;
    super::run::fits(&op)?;
    let choice = device.select(perjoule_engine::launches::fresh(&device, &op), &[])?;
    let environment = environment();
    let each = Duration::from_secs_f64(budget / ROUNDS as f64);
    let task = kernel::Task {
        device: &device,
        op,
        dtype,
        shape: sizes.to_string(),
        choice,
        cache: None,
        effort: Effort {
            time: each,
            repetitions: args.repetitions,
            bounded: args.budget.is_some() || args.repetitions.is_none(),
        },
        seed: 1,
        threads: threads_of(device.info()),
    };
    let bar = progress::bar(ROUNDS as u64, false);
    let mut rounds = Vec::new();
    let mut what = String::new();
    let mut disturbed = 0;
    for _ in 0..ROUNDS {
        bar.set_message(format!("{} against itself", task.choice.kernel.name));
        let record = Record::new(Kind::Kernel, &environment);
        let (a, b) = kernel::run_versus(&task, &task, &mut Ceilings::default(), None, record)?;
        if let Some(reason) = b.invalid_reasons.first() {
            bar.finish_and_clear();
            bail!("{}: {reason}", task.choice.kernel.name);
        }
        disturbed += usize::from(b.disturbances.as_ref().is_some_and(|list| !list.is_empty()));
        what = format!(
            "{} {dtype} {}, {}, {} threads",
            task.op.name(),
            task.shape,
            task.choice.kernel.name,
            task.threads
        );
        rounds.push((a.timing.samples_ns.unwrap_or_default(), b.timing.samples_ns.unwrap_or_default()));
        bar.inc(1);
    }
    bar.finish_and_clear();
    let Some(noise) = Noise::of(&rounds) else {
        bail!("too few samples in {budget} s: give --budget more, or a smaller --shape");
    };
    let mut out = anstream::stdout();
    if format == CompareFormat::Json {
        let value = json!({
            "schema": "perjoule.noise/1",
            "what": what,
            "rounds": noise.in_turn.iter().zip(&noise.medians).zip(&rounds).map(|((ratio, median), (a, _))| json!({
                "pairs": a.len(),
                "ratio": ratio[0],
                "ratio_ci95": [ratio[1], ratio[2]],
                "median_ns": median,
            })).collect::<Vec<_>>(),
            "told_apart_in_turn": noise.told_apart_in_turn,
            "between_rounds": noise.between_rounds,
            "disturbed_rounds": disturbed,
            "fail_on": noise.fail_on,
        });
        writeln!(out, "{}", serde_json::to_string_pretty(&value)?)?;
        return Ok(Ended::Done);
    }
    let style = if format == CompareFormat::Md { Style::Markdown } else { Style::Plain };
    writeln!(out, "{what}, against itself\n")?;
    write!(out, "{}", table(&noise, &rounds).render(style))?;
    writeln!(out)?;
    writeln!(
        out,
        " samples in turn (run --versus) tell differences from {} on apart",
        percent(noise.told_apart_in_turn)
    )?;
    writeln!(
        out,
        " from round to round the median moves by up to {}: so do two files",
        percent(noise.between_rounds)
    )?;
    if disturbed > 0 {
        writeln!(
            out,
            " other load was seen in {disturbed} of {ROUNDS} rounds: a quiet machine tells smaller differences apart"
        )?;
    }
    writeln!(out, " suggested: --fail-on {}", percent(noise.fail_on).replace(' ', ""))?;
    Ok(Ended::Done)
}

fn table(noise: &Noise, rounds: &[(Vec<f64>, Vec<f64>)]) -> Table {
    let mut table = Table::new([
        ("round", Align::Right),
        ("pairs", Align::Right),
        ("ratio in turn", Align::Right),
        ("95 % interval", Align::Right),
        ("median", Align::Right),
    ]);
    for (i, ([ratio, lo, hi], median)) in noise.in_turn.iter().zip(&noise.medians).enumerate() {
        table.row([
            (i + 1).to_string(),
            rounds[i].0.len().to_string(),
            format!("{ratio:.4}"),
            format!("{lo:.4}..{hi:.4}"),
            crate::report::units::duration_ns(*median),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(centre: f64) -> (Vec<f64>, Vec<f64>) {
        let at = |i: usize| centre * (1.0 + 0.004 * ((i * 7919 % 101) as f64 / 100.0 - 0.5));
        ((0..40).map(at).collect(), (40..80).map(at).collect())
    }

    #[test]
    fn a_threshold_is_above_what_was_seen() {
        let quiet = Noise::of(&[round(1000.0), round(1000.5)]).unwrap();
        assert!(quiet.told_apart_in_turn < 0.004 && quiet.fail_on == LEAST, "{quiet:?}");
        let moving = Noise::of(&[round(1000.0), round(1040.0), round(1010.0)]).unwrap();
        assert!((moving.between_rounds - 0.04).abs() < 1e-3);
        assert!(
            (moving.fail_on - 0.06).abs() < 0.006 && moving.fail_on > moving.between_rounds,
            "{moving:?}"
        );
        assert_eq!(Noise::of(&[(vec![1.0], vec![1.0])]), None);
    }
}
