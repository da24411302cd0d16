//! `perjoule check --model`: a model's logits and greedy ids against a reference file.
//!
//! The file holds `input_ids` (i32 `[rows, tokens]`), `logits` (f32 `[rows, tokens, vocab]`) and `greedy_ids` (i32): the first 8 ids of
//! row 0 and those that follow greedily, end-of-sequence tokens ignored. Prefill, token by token, and all rows side by side must agree
//! with it, each by itself.

use anyhow::{Context, Result, bail, ensure};
use perjoule::DType;
use perjoule_model::weights::Checkpoint;
use perjoule_model::{Model, SessionOptions, Source};
use serde_json::json;
use std::io::Write;

use super::args::CheckArgs;
use super::{Ended, open, progress, run_tokens};
use crate::measure::{Interrupted, interrupted};
use crate::report::{Align, Style, Table};

/// Ids of row 0 that greedy generation starts from.
const PROMPT: usize = 8;

struct Expected {
    rows: usize,
    tokens: usize,
    vocab: usize,
    ids: Vec<u32>,
    logits: Vec<f32>,
    greedy: Vec<u32>,
}

/// How far logits are from the reference.
#[derive(Debug, Clone, Copy, Default)]
struct Distance {
    max_abs_err: f64,
    difference: f64,
    norm: f64,
}

impl Distance {
    fn of(got: &[f32], want: &[f32]) -> Self {
        let mut distance = Distance::default();
        for (got, want) in got.iter().zip(want) {
            let (got, want) = (f64::from(*got), f64::from(*want));
            let apart = (got - want).abs();
            // a NaN is as far as can be; f64::max would ignore it
            let apart = if apart.is_nan() { f64::INFINITY } else { apart };
            distance.max_abs_err = distance.max_abs_err.max(apart);
            distance.difference += apart * apart;
            distance.norm += want * want;
        }
        distance
    }

    /// Norm of the difference over the norm of the reference.
    fn relative(&self) -> f64 {
        if self.norm > 0.0 { (self.difference / self.norm).sqrt() } else { self.difference.sqrt() }
    }
}

pub(crate) fn run(args: &CheckArgs) -> Result<Ended> {
    let Some(model) = &args.model else { bail!("--model needs a folder or a GGUF file") };
    ensure!(
        model.exists(),
        "{} is no folder with config.json and weights, and no GGUF file",
        model.display()
    );
    let beside = if model.is_dir() { Some(model.as_path()) } else { model.parent() };
    let beside = beside.unwrap_or(std::path::Path::new("")).join("expected.safetensors");
    let path = args.expected.clone().unwrap_or(beside);
    let source = Source::checkpoint(model)?;
    // exact, unless the file itself is not
    let dtype = args.dtype.or((!source.is_gguf()).then_some(DType::F32));
    let expected = read(&path, source.geometry().vocab)
        .with_context(|| format!("{}: give a reference with --expected", path.display()))?;
    let device = open(&args.device, args.threads)?;
    let rows = vec![1, expected.rows, expected.rows * expected.tokens];
    let bar = progress::bytes(args.quiet);
    let model = run_tokens::load(&device, &source, dtype, args.kv_dtype, args.activations, rows, bar)?;

    let prefill = Distance::of(&whole(&model, &expected)?, &expected.logits);
    let single = Distance::of(&token_by_token(&model, &expected)?, &expected.logits);
    let batched = Distance::of(&side_by_side(&model, &expected)?, &expected.logits);
    let greedy = greedy(&model, &expected)?;
    let greedy_equal = greedy == expected.greedy;
    let dtypes = [model.dtype(), model.kv_dtype()];
    let allowed = dtypes.map(tolerance).into_iter().fold(0.0, f64::max);
    let all = [("prefill", prefill), ("token by token", single), ("batched decode", batched)];
    let rel_err = all.iter().map(|(_, d)| d.relative()).fold(0.0, f64::max);
    let max_abs_err = all.iter().map(|(_, d)| d.max_abs_err).fold(0.0, f64::max);
    // what is rounded may tip a choice that was close; only exact arithmetic has to choose alike
    let passed = rel_err <= allowed && (greedy_equal || dtypes != [DType::F32; 2]);

    let mut out = anstream::stdout();
    if args.json {
        let finite = |x: f64| if x.is_finite() { json!(x) } else { json!(null) };
        let (max_abs_err, rel_err) = (finite(max_abs_err), finite(rel_err));
        let result = json!({
            "max_abs_err": max_abs_err, "rel_err": rel_err, "greedy_equal": greedy_equal, "passed": passed,
        });
        writeln!(out, "{result}")?;
    } else {
        let mut table = Table::new([
            ("", Align::Left),
            ("relative error", Align::Right),
            ("largest error", Align::Right),
            ("", Align::Left),
        ]);
        for (name, d) in all {
            let verdict = if d.relative() <= allowed { "ok" } else { "TOO FAR" };
            table.row([
                name.into(),
                format!("{:.1e}", d.relative()),
                format!("{:.1e}", d.max_abs_err),
                verdict.into(),
            ]);
        }
        write!(out, "{}", table.render(Style::Plain))?;
        let same = if greedy_equal { "equal" } else { "DIFFERENT" };
        let verdict = if passed { "passed" } else { "FAILED" };
        writeln!(
            out,
            "\n{} greedy ids {same}; allowed relative error {allowed:.0e} for {}, KV cache in {}",
            expected.greedy.len(),
            model.quantisation(),
            model.kv_dtype()
        )?;
        writeln!(out, "{verdict}: {} on {}", source.name(), args.device)?;
    }
    Ok(if passed { Ended::Done } else { Ended::Failed })
}

/// Relative error of the logits that a dtype of the weights or of the KV cache may cause.
fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => 1e-5,
        DType::F16 | DType::BF16 => 3e-2,
        DType::Q8_0 => 5e-2,
        // weights of 4 to 8 bits with a few bits of mantissa: the model is small, nothing averages out
        _ => 0.5,
    }
}

fn read(path: &std::path::Path, vocab: usize) -> Result<Expected> {
    let file = Checkpoint::open_file(path)?;
    let shape: Vec<u64> = file.tensor("logits")?.shape.iter().map(|&n| n as u64).collect();
    let [rows, tokens, columns] = shape[..] else { bail!("logits are not [rows, tokens, vocab]") };
    ensure!(columns == vocab as u64, "logits of {columns} ids, and the model has {vocab}");
    ensure!(rows > 0 && tokens > 0, "logits are empty");
    let ids = |name: &str| -> Result<Vec<u32>> {
        let list = file.read_i32(name)?;
        list.into_iter()
            .map(|id| u32::try_from(id).ok().with_context(|| format!("{name} has a negative id, {id}")))
            .collect()
    };
    let (input, greedy, logits) = (ids("input_ids")?, ids("greedy_ids")?, file.read_f32("logits")?);
    ensure!(input.len() as u64 == rows * tokens, "input_ids do not match the logits");
    ensure!(logits.len() as u64 == rows * tokens * columns, "logits do not match their shape");
    ensure!(greedy.len() > PROMPT, "greedy_ids has {} ids, expected more than {PROMPT}", greedy.len());
    Ok(Expected { rows: rows as usize, tokens: tokens as usize, vocab, ids: input, logits, greedy })
}

fn go_on() -> Result<()> {
    if interrupted() { Err(Interrupted.into()) } else { Ok(()) }
}

/// All rows in one prefill.
fn whole(model: &Model, e: &Expected) -> Result<Vec<f32>> {
    go_on()?;
    let options = SessionOptions { parallel: e.rows, capacity: e.tokens, chunk: e.tokens };
    Ok(model.session(options)?.prefill_all(&e.ids)?)
}

/// Each row by itself, one token at a time.
fn token_by_token(model: &Model, e: &Expected) -> Result<Vec<f32>> {
    let mut logits = Vec::with_capacity(e.logits.len());
    for row in e.ids.chunks(e.tokens) {
        let options = SessionOptions { parallel: 1, capacity: e.tokens, chunk: 1 };
        let mut session = model.session(options)?;
        for id in row {
            go_on()?;
            session.decode(&[*id])?;
            logits.extend(session.logits()?);
        }
    }
    Ok(logits)
}

/// All rows side by side, one token at a time.
fn side_by_side(model: &Model, e: &Expected) -> Result<Vec<f32>> {
    let options = SessionOptions { parallel: e.rows, capacity: e.tokens, chunk: 1 };
    let mut session = model.session(options)?;
    let mut logits = vec![0.0; e.logits.len()];
    for token in 0..e.tokens {
        go_on()?;
        let ids: Vec<u32> = (0..e.rows).map(|row| e.ids[row * e.tokens + token]).collect();
        session.decode(&ids)?;
        for (row, from) in session.logits()?.chunks(e.vocab).enumerate() {
            let at = (row * e.tokens + token) * e.vocab;
            logits[at..at + e.vocab].copy_from_slice(from);
        }
    }
    Ok(logits)
}

/// The first ids of row 0, and what follows them greedily.
fn greedy(model: &Model, e: &Expected) -> Result<Vec<u32>> {
    go_on()?;
    let mut ids = e.greedy[..PROMPT].to_vec();
    let options = SessionOptions { parallel: 1, capacity: e.greedy.len(), chunk: PROMPT };
    let mut session = model.session(options)?;
    session.prefill(&ids)?;
    ids.extend(session.greedy()?);
    let rest = e.greedy.len() - ids.len();
    session.decode_greedy(rest, &mut |next| {
        ids.extend_from_slice(next);
        true
    })?;
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_relative_to_the_reference_and_see_nan() {
        let d = Distance::of(&[3.0, 4.5], &[3.0, 4.0]);
        assert_eq!((d.max_abs_err, d.relative()), (0.5, 0.1));
        assert!(Distance::of(&[f32::NAN], &[1.0]).relative().is_infinite());
        assert_eq!(Distance::of(&[0.0], &[0.0]).relative(), 0.0);
    }
}
