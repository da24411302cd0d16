//! `perjoule generate`: text or ids, streamed, with what they cost.

use anyhow::{Context, Result, ensure};
use perjoule_model::tokenizer::{TextStream, Tokenizer, check_ids};
use perjoule_model::{Session, SessionOptions, Source};
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};
use serde_json::json;
use std::io::Write;
use std::time::Instant;

use super::args::GenerateArgs;
use super::{Ended, environment, open, parse_ids, progress, run_tokens, threads_of};
use crate::measure::energy::Gauge;
use crate::measure::{Interrupted, interrupted};
use crate::report::{kind_word, units::si};

/// Prompt tokens processed at once.
const BATCH: usize = 512;

pub(crate) fn run(args: &GenerateArgs) -> Result<Ended> {
    ensure!(args.n > 0, "-n 0: at least one token must be asked for");
    ensure!(
        args.temperature.is_finite() && args.temperature >= 0.0,
        "--temperature {}: expected 0 or more",
        args.temperature
    );
    ensure!(args.top_k != Some(0), "--top-k 0: at least one candidate is needed");
    ensure!(args.top_p.is_none_or(|p| p > 0.0 && p <= 1.0), "--top-p: expected a share above 0 and up to 1");
    ensure!(args.threads != Some(0), "--threads 0: at least one thread is needed");
    let source = Source::open(&args.model, args.seed)?;
    let geometry = source.geometry();
    let vocab = geometry.vocab;
    let tokenizer = match &args.prompt {
        Some(_) => Some(source.tokenizer()?),
        None => None,
    };
    let prompt = match (&args.prompt, &args.ids, &tokenizer) {
        (Some(text), _, Some(tokenizer)) => tokenizer.encode(text)?,
        (_, Some(ids), _) => parse_ids(ids)?,
        _ => Vec::new(),
    };
    ensure!(!prompt.is_empty(), "the prompt is empty: give at least one token");
    check_ids(&prompt, vocab)?;
    let capacity = prompt.len().saturating_add(args.n);
    ensure!(
        capacity <= geometry.max_positions,
        "prompt of {} and -n {} make {capacity} tokens, and {} has {} positions: use fewer",
        prompt.len(),
        args.n,
        source.name(),
        geometry.max_positions
    );
    let eos: Vec<u32> = if args.ignore_eos { Vec::new() } else { geometry.eos_ids.clone() };
    let device = open(&args.device, args.threads)?;
    let dtype = run_tokens::dtype_of(&source, args.dtype);
    let model = run_tokens::load(
        &device,
        &source,
        dtype,
        args.kv_dtype,
        args.activations,
        vec![1, prompt.len().min(BATCH)],
        progress::bytes(args.quiet),
    )?;
    let mut session = model.session(SessionOptions { parallel: 1, capacity, chunk: BATCH })?;
    let gauge =
        Gauge::new(args.meters.discover(&environment(), threads_of(device.info()))?.of(device.info()));

    let windows = gauge.as_ref().map(Gauge::open);
    let start = Instant::now();
    session.prefill_while(&prompt, &mut |_| !interrupted())?;
    if interrupted() {
        return Err(Interrupted.into());
    }
    let mut printer =
        Printer { stream: tokenizer.as_ref().map(Tokenizer::stream), quiet: args.json, first: true };
    let mut random = Xoshiro256PlusPlus::seed_from_u64(args.seed);
    let mut ids = Vec::new();
    // the first token is the prompt's; what follows is decode
    let mut next = choose(&mut session, args, &mut random)?;
    let prefill_s = start.elapsed().as_secs_f64();
    loop {
        ids.push(next);
        printer.push(next)?;
        if ids.len() >= args.n || eos.contains(&next) || interrupted() {
            break;
        }
        if args.temperature == 0.0 {
            session.decode_greedy(1, &mut |chosen| {
                next = chosen.first().copied().unwrap_or(next);
                true
            })?;
        } else {
            session.decode(&[next])?;
            next = choose(&mut session, args, &mut random)?;
        }
    }
    let decode_s = start.elapsed().as_secs_f64() - prefill_s;
    let seen = gauge.as_ref().zip(windows).map(|(gauge, windows)| gauge.finish(windows));
    let energy = gauge.as_ref().zip(seen).map(|(gauge, seen)| gauge.columns(seen, 1));
    printer.finish()?;

    let joules = energy.as_ref().and_then(|e| e.joules);
    let steps = ids.len() - 1;
    let rate = (steps > 0 && decode_s > 0.0).then(|| steps as f64 / decode_s);
    let per_token = joules.map(|joules| joules / ids.len() as f64);
    if args.json {
        let text = tokenizer.as_ref().map(|t| t.decode(&ids)).transpose()?;
        let energy = energy.as_ref();
        let result = json!({
            "model": source.name(),
            "dtype": model.dtype().name(),
            "kv_dtype": model.kv_dtype().name(),
            "prompt_ids": prompt,
            "ids": ids,
            "text": text,
            "prefill_s": prefill_s,
            "decode_s": decode_s,
            "decode_ts": rate,
            // of prompt and generation together
            "joules": joules,
            "joules_per_output_token": per_token,
            "energy_ci95": energy.and_then(|e| e.energy_ci95).map(|ci| [ci.lo, ci.hi]),
            "energy_kind": energy.and_then(|e| e.energy_kind),
            "energy_source": energy.and_then(|e| e.energy_source.clone()),
            "energy_boundary": energy.and_then(|e| e.energy_boundary.clone()),
        });
        writeln!(std::io::stdout(), "{result}")?;
    }
    if !args.quiet {
        let prompt_rate = prompt.len() as f64 / prefill_s.max(1e-9);
        let cost = match (per_token, &energy) {
            (Some(per), Some(energy)) => {
                format!("{} J ({}) a generated token, the prompt included", si(per), kind_word(energy))
            }
            _ => "energy unknown".into(),
        };
        eprintln!(
            "prompt {} tokens at {} tokens/s, {} generated at {} tokens/s, {cost}",
            prompt.len(),
            si(prompt_rate),
            ids.len(),
            rate.map_or("-".into(), si)
        );
    }
    Ok(if interrupted() { Ended::Interrupted } else { Ended::Done })
}

/// The next token after the last logits.
fn choose(session: &mut Session<'_>, args: &GenerateArgs, random: &mut Xoshiro256PlusPlus) -> Result<u32> {
    let chosen = if args.temperature == 0.0 {
        session.greedy()?
    } else {
        let uniform = (random.next_u64() >> 40) as f32 / (1u32 << 24) as f32;
        session.sample(args.temperature, args.top_k, args.top_p, &[uniform])?
    };
    chosen.first().copied().context("the model chose no token")
}

/// Prints tokens as they come: text, or ids with commas between them.
struct Printer<'t> {
    stream: Option<TextStream<'t>>,
    quiet: bool,
    first: bool,
}

impl Printer<'_> {
    fn push(&mut self, id: u32) -> Result<()> {
        if self.quiet {
            return Ok(());
        }
        let mut out = std::io::stdout().lock();
        match &mut self.stream {
            Some(stream) => write!(out, "{}", stream.push(id)?)?,
            None => write!(out, "{}{id}", if self.first { "" } else { "," })?,
        }
        self.first = false;
        out.flush()?;
        Ok(())
    }

    fn finish(self) -> Result<()> {
        if self.quiet {
            return Ok(());
        }
        let rest = self.stream.map(TextStream::finish).transpose()?.unwrap_or_default();
        writeln!(std::io::stdout(), "{rest}")?;
        Ok(())
    }
}
