//! Our models, on a GGUF file: prompts and tokens one by one, as llama-bench measures them, several sequences at once, and logits.

use crate::{Ready, size};
use anyhow::{Result, bail};
use perjoule::Device;
use perjoule::kernels::DType;
use perjoule::kernels::op::Policy;
use perjoule_model::{LoadOptions, Model, Session, SessionOptions, Source};
use serde_json::Value;

/// Loads `file`: with its weights as they are stored and activations rounded beside block formats, as llama.cpp's are; `exact` leaves
/// activations as they are, `f32` undoes the blocks, too.
pub(crate) fn load(device: &Device, file: &str, how: Option<&str>) -> Result<Model> {
    let rounding = Policy { quantised_activations: true, ..Policy::default() };
    let options = match how {
        None => LoadOptions { policy: rounding, ..LoadOptions::stored() },
        Some("exact") => LoadOptions::stored(),
        Some("f32") => LoadOptions::new(DType::F32),
        Some(how) => bail!("no way {how:?} to load a model"),
    };
    Ok(Model::load(device, &Source::checkpoint(file.as_ref())?, &options)?)
}

/// A prompt of so many tokens, or so many steps one behind the other, from an empty cache.
pub(crate) struct Tokens<'m> {
    session: Session<'m>,
    ids: Vec<u32>,
    /// Ids of a call, those of all sequences.
    step: usize,
    /// Whether all logits are wanted.
    logits: bool,
}

impl<'m> Tokens<'m> {
    pub(crate) fn new(model: &'m Model, case: &Value) -> Result<Self> {
        let (tokens, parallel) = (size(case, "tokens")?, size(case, "parallel").unwrap_or(1));
        let step = match case["op"].as_str() {
            Some("prefill") => tokens,
            Some("logits") => size(case, "step")?,
            Some("decode") => parallel,
            _ => bail!("a model runs prefill, decode and logits"),
        };
        let options = SessionOptions { parallel, capacity: tokens / parallel, chunk: step };
        Ok(Tokens {
            session: model.session(options)?,
            ids: ids(tokens),
            step,
            logits: case["op"] == "logits",
        })
    }
}

/// Ids that both sides feed: any will do, since time does not depend on them.
fn ids(tokens: usize) -> Vec<u32> {
    (0..tokens as u32).map(|at| 3 + at * 7919 % 31_000).collect()
}

impl Ready for Tokens<'_> {
    fn call(&mut self) -> Result<()> {
        self.session.rewind(0)?;
        for ids in self.ids.chunks(self.step) {
            self.session.prefill(ids)?;
        }
        Ok(())
    }

    fn sample(&mut self) -> Result<Vec<f32>> {
        let logits = self.session.logits()?;
        Ok(if self.logits { logits } else { crate::ends(&logits) })
    }
}
