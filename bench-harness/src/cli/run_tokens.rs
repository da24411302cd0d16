//! The tokens part of `perjoule run`: loads a model once, then measures prefill and decode in each size asked for.

use anyhow::{Result, ensure};
use indicatif::ProgressBar;
use perjoule::DType;
use perjoule_model::memory::available_memory;
use perjoule_model::{LoadOptions, Model, Source};
use perjoule_record::Kind;
use std::time::Duration;

use super::args::{Activations, RunArgs};
use super::output::Output;
use super::run::{LEAST, Run, Target};
use crate::measure::energy::Gauge;
use crate::measure::interrupted;
use crate::measure::tokens::{Bench, Test, pace, size_within};
use crate::report;

/// The model of a run that names none.
pub(super) const MODEL: &str = "llama-3.2-1b";
/// Prompt tokens processed at once, as in llama.cpp.
const BATCH: usize = 512;
/// Sizes to choose from, largest first: llama-bench's pp512 and tg128 and what is left of them on slow machines.
const PROMPTS: [usize; 6] = [512, 256, 128, 64, 32, 16];
const GENERATED: [usize; 6] = [128, 64, 32, 16, 8, 4];
/// Repetitions that a chosen size leaves time for: one warms up.
const REPETITIONS: usize = 4;

/// Element type of the weights: as asked for, else that which the folder states, else bf16. `None` for a GGUF file of which nothing is
/// asked: each matrix stays as it is stored.
pub(super) fn dtype_of(source: &Source, asked: Option<DType>) -> Option<DType> {
    if source.is_gguf() {
        return asked;
    }
    asked.or(source.geometry().dtype.filter(|_| !source.is_random())).or(Some(DType::BF16))
}

/// Loads a model, and shows how far it is on `bar`.
pub(super) fn load(
    device: &perjoule::Device,
    source: &Source,
    dtype: Option<DType>,
    kv_dtype: Option<DType>,
    activations: Activations,
    rows: Vec<usize>,
    bar: ProgressBar,
) -> Result<Model> {
    let verb = if source.is_random() { "drawing random weights of" } else { "loading" };
    bar.set_message(format!("{verb} {} {}", source.name(), source.quantisation(dtype)));
    // of elements, which stand for the bytes that most of them take
    let most = dtype.or(source.geometry().dtype).unwrap_or(DType::BF16);
    let bytes = |elements: u64| elements / most.block_len() as u64 * most.block_bytes() as u64;
    let report = |done: u64, total: u64| {
        bar.set_length(bytes(total));
        bar.set_position(bytes(done));
        !interrupted()
    };
    let options =
        LoadOptions { dtype, kv_dtype, rows, policy: activations.policy(), progress: Some(&report) };
    let model = Model::load(device, source, &options);
    bar.finish_and_clear();
    Ok(model?)
}

/// Refuses a KV cache that cannot be, and sizes that are beyond the model's positions or the memory, before anything is measured or loaded.
pub(super) fn fits(args: &RunArgs, source: &Source) -> Result<()> {
    let geometry = source.geometry();
    let limit = geometry.max_positions;
    let depth = args.n_depth.iter().max().copied().unwrap_or(0);
    let n = args.n_prompt.iter().chain(&args.n_gen).max().copied().unwrap_or(0);
    let tokens = depth.saturating_add(n);
    ensure!(
        tokens <= limit,
        "{tokens} tokens (depth {depth} and {n}) do not fit: {} has {limit} positions; use fewer",
        source.name()
    );
    let parallel = args.parallel.iter().max().copied().unwrap_or(1);
    let available = available_memory();
    let dtypes = args.dtype.iter().copied().map(Some);
    for asked in dtypes.chain(args.dtype.is_empty().then_some(None)) {
        let dtype = dtype_of(source, asked);
        let kv_dtype = source.kv_dtype(dtype, args.kv_dtype)?;
        if let Some(available) = available {
            source.memory_needed(dtype, kv_dtype, tokens, parallel).check(available)?;
        }
    }
    Ok(())
}

pub(super) fn run(
    run: &Run<'_>,
    target: &mut Target,
    source: &Source,
    time: Duration,
    output: &mut Output,
) -> Result<()> {
    let args = run.args;
    let dtypes: Vec<Option<DType>> = match args.dtype.as_slice() {
        [] => vec![dtype_of(source, None)],
        list => list.iter().copied().map(Some).collect(),
    };
    let parallel: &[usize] = if args.parallel.is_empty() { &[1] } else { &args.parallel };
    let depths: &[usize] = if args.n_depth.is_empty() { &[0] } else { &args.n_depth };
    let batch = args.batch.unwrap_or(BATCH);
    let limit = source.geometry().max_positions;
    let time = time / dtypes.len() as u32;
    // the power at rest is taken after each test
    let pause = target.gauge.as_ref().map_or(Duration::ZERO, Gauge::pause);
    let for_samples = |time: Duration| time.saturating_sub(pause).max(time.mul_f64(LEAST));
    for dtype in dtypes {
        let mut rows: Vec<usize> = parallel.to_vec();
        rows.push(batch);
        let bar = output.bars().bytes();
        let model = load(&target.device, source, dtype, args.kv_dtype, args.activations, rows, bar)?;
        let mut records = Vec::new();
        let mut result = Ok(());
        let count = parallel.len() as u32 * depths.len() as u32;
        'all: for &n_parallel in parallel {
            let (prompts, generated) = sizes(run, &model, n_parallel, for_samples(time / count / 2), limit)?;
            for &n_depth in depths {
                let prefill = prompts.iter().map(|&n| (n, 0));
                let decode = generated.iter().map(|&n| (0, n));
                let tests: Vec<(usize, usize)> = prefill.chain(decode).filter(|t| *t != (0, 0)).collect();
                let bar = output.bars().bar(tests.len() as u64);
                for (n_prompt, n_gen) in &tests {
                    let (n_prompt, n_gen) = (*n_prompt, *n_gen);
                    let test = Test { n_prompt, n_gen, n_depth, n_parallel, n_batch: batch };
                    bar.set_message(if n_gen > 0 { format!("tg{n_gen}") } else { format!("pp{n_prompt}") });
                    let effort = run.effort(for_samples(time / count / tests.len() as u32));
                    let bench = Bench {
                        model: &model,
                        gauge: target.gauge.as_ref(),
                        threads: target.threads,
                        seed: run.seed,
                    };
                    let mut record = run.record(Kind::Tokens, &target.device);
                    record.workload.tuned = Some(target.device.backend().tuning().is_some());
                    result = bench.run(test, effort, &mut target.ceilings, record).and_then(|record| {
                        output.record(&record)?;
                        records.push(record);
                        Ok(())
                    });
                    bar.inc(1);
                    if result.is_err() {
                        bar.finish_and_clear();
                        break 'all;
                    }
                }
                bar.finish_and_clear();
            }
        }
        target.ceilings.hold_again(records.iter_mut().map(|record| (record, model.multiplied())));
        if let Some(first) = records.first() {
            let weights = if source.is_random() { " (random weights)" } else { "" };
            let line = report::model_line(first, model.tied_head_bytes());
            output.heading("Tokens", &format!("{line}{weights}"))?;
            output.table(&report::tokens(&records))?;
            report::meters::meters(&records).iter().try_for_each(|table| output.table(table))?;
            run.notes(&records, output)?;
            report::interval_note(&records).iter().try_for_each(|note| output.line(note))?;
            output.charts(&report::chart::tokens(&records))?;
        }
        result?;
    }
    Ok(())
}

/// Prompt lengths and tokens to generate: as asked for, or the usual ones that fit the time of a test.
fn sizes(
    run: &Run<'_>,
    model: &Model,
    parallel: usize,
    time: Duration,
    limit: usize,
) -> Result<(Vec<usize>, Vec<usize>)> {
    let args = run.args;
    if !args.n_prompt.is_empty() || !args.n_gen.is_empty() {
        return Ok((args.n_prompt.clone(), args.n_gen.clone()));
    }
    let (prefill, decode) = pace(model, parallel, run.seed)?;
    let prompt = size_within(time, prefill, &PROMPTS, REPETITIONS).min(limit);
    let generated = size_within(time, decode, &GENERATED, REPETITIONS).min(limit.saturating_sub(1));
    Ok((vec![prompt], vec![generated]))
}
