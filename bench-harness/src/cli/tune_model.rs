//! Which ops a model asks kernels for: rows that refuse everything and take notes.

use anyhow::Result;
use perjoule::{DType, Kernel, Op};
use perjoule_kernels::{Alignment, Candidate, Error, Launch, Reason, Request};
use perjoule_model::{LoadOptions, Model, SessionOptions, Source};
use std::sync::{Mutex, PoisonError};

use super::args::Activations;
use super::open_untuned;
use crate::ops::OPS;

/// Tokens of a prompt and generated ones, as in llama-bench.
const TOKENS: (usize, usize) = (512, 128);

/// What was asked for so far: kernels are functions, which share nothing else.
static NOTES: Mutex<Vec<(Op, Alignment)>> = Mutex::new(Vec::new());

fn note(candidate: &Candidate<'_>) -> Option<Reason> {
    NOTES.lock().unwrap_or_else(PoisonError::into_inner).push((candidate.op.clone(), candidate.alignment));
    Some(Reason::new("takes notes only"))
}

fn prepare(_: &Request<'_>) -> perjoule_kernels::Result<Box<dyn Launch>> {
    Err(Error::Unsupported { what: "this row", why: "it takes notes only".into() })
}

/// The ops that loading the model, a prompt and a few generated tokens look up, each bucket once, with the alignments they vouch for. Of
/// layers that are alike one is looked at; weights are random.
pub(super) fn ops(
    label: &str,
    threads: Option<usize>,
    name: &str,
    dtype: Option<DType>,
    kv_dtype: Option<DType>,
) -> Result<Vec<(Op, Alignment)>> {
    let source = Source::open(name, 1)?;
    // random weights stand for those of a file: of mixed types, the one that most have
    let dtype = super::run_tokens::dtype_of(&source, dtype).or(source.geometry().dtype);
    let mut geometry = source.geometry().clone();
    let mut kinds = Vec::new();
    geometry.layers.retain(|layer| {
        let new = !kinds.contains(layer);
        kinds.extend(new.then_some(*layer));
        new
    });
    let (prompt, generated) = TOKENS;
    let prompt = prompt.min(geometry.max_positions);
    let source = Source::random(source.name(), geometry, 1);

    let device = open_untuned(label, threads)?;
    for entry in OPS {
        let name: &'static str = format!("notes_of_{}", entry.name).leak();
        let row = Kernel::new(name, entry.name, |_| f32::INFINITY, prepare).with_reject(note);
        device.register(Box::leak(Box::new(row)))?;
    }
    NOTES.lock().unwrap_or_else(PoisonError::into_inner).clear();
    let policy = Activations::Rounded.policy();
    let options = LoadOptions { dtype, kv_dtype, rows: vec![1, prompt], policy, progress: None };
    let model = Model::load(&device, &source, &options)?;
    let session = |capacity| model.session(SessionOptions { parallel: 1, capacity, chunk: prompt });
    session(prompt)?.prefill(&vec![0; prompt])?;
    let capacity = (generated + 1).min(model.geometry().max_positions);
    let mut decode = session(capacity)?;
    decode.prefill(&[0])?;
    decode.decode_greedy(2, &mut |_| true)?;

    let notes = std::mem::take(&mut *NOTES.lock().unwrap_or_else(PoisonError::into_inner));
    let mut seen = Vec::new();
    Ok(notes
        .into_iter()
        .filter(|(op, _)| {
            let key = op.tuning_key();
            let new = !seen.contains(&key);
            seen.extend(new.then_some(key));
            new
        })
        .collect())
}
