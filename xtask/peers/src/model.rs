//! Our models, on a GGUF file: prompts and tokens one by one, as llama-bench measures them.

use crate::{Ready, size};
use anyhow::{Result, bail};
use perjoule::Device;
use perjoule::kernels::op::Policy;
use perjoule_model::{LoadOptions, Model, Session, SessionOptions, Source};
use serde_json::Value;

/// Loads `file` with its weights as they are stored; activations are rounded beside block formats, as llama.cpp's are.
pub(crate) fn load(device: &Device, file: &str) -> Result<Model> {
    let policy = Policy { quantised_activations: true, ..Policy::default() };
    let options = LoadOptions { policy, ..LoadOptions::stored() };
    Ok(Model::load(device, &Source::checkpoint(file.as_ref())?, &options)?)
}

/// A prompt of so many tokens, or so many tokens one behind the other, from an empty cache.
pub(crate) struct Tokens<'m> {
    session: Session<'m>,
    ids: Vec<u32>,
    /// Tokens of a step.
    step: usize,
}

impl<'m> Tokens<'m> {
    pub(crate) fn new(model: &'m Model, case: &Value) -> Result<Self> {
        let tokens = size(case, "tokens")?;
        let step = match case["op"].as_str() {
            Some("prefill") => tokens,
            Some("decode") => 1,
            _ => bail!("a model runs prefill and decode"),
        };
        let session = model.session(SessionOptions { parallel: 1, capacity: tokens, chunk: step })?;
        Ok(Tokens { session, ids: ids(tokens), step })
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
        Ok(crate::ends(&self.session.logits()?))
    }
}
