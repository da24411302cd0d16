//! Whether a file that llama.cpp quantised gives the logits that its numbers give.

use super::cases::Group;
use super::{Field, verdict};
use anyhow::{Result, ensure};
use serde_json::{Value, json};

/// As `--only` narrows it.
pub(super) const NAME: &str = "llama 1.1b q4_k_m logits";
/// Norm of the difference over the norm of what the weights give in f32.
const MOST: f64 = 2e-2;
/// Of the prompt.
const TOKENS: usize = 64;

/// Logits behind a prompt: ours with the weights in their blocks, and llama.cpp's, each beside ours with the weights undone into f32.
pub(super) fn rows(field: &Field, json: bool) -> Result<()> {
    let group = Group { model: Some("q4_k_m"), ..Group::default() };
    let of = |who: &str, how: Option<&str>| -> Result<Vec<f64>> {
        let answer = field
            .start_as(who, &group, how)?
            .ask(&json!({ "do": "setup", "op": "logits", "tokens": TOKENS }))?;
        ensure!(answer["refused"].is_null(), "{who}: {}", answer["refused"]);
        Ok(answer["sample"].as_array().into_iter().flatten().filter_map(Value::as_f64).collect())
    };
    let (want, theirs) = (of("ours", Some("f32"))?, of("llama", None)?);
    let (exact, rounded) = (of("ours", Some("exact"))?, of("ours", None)?);
    let say = |what: &str, got: &[f64], want: &[f64], asked: bool| -> Result<()> {
        ensure!(got.len() == want.len() && !want.is_empty(), "{} logits beside {}", got.len(), want.len());
        let error = distance(got, want);
        let target = if asked { verdict(&format!("{MOST}"), Some(error <= MOST)) } else { "none".into() };
        match json {
            true => println!("{}", json!({ "case": NAME, "what": what, "rel_err": error, "target": target })),
            false => println!("{NAME}, {what}: rel_err {error:.2e}; target {target}"),
        }
        Ok(())
    };
    say("exact activations, against the weights in f32", &exact, &want, true)?;
    say("8-bit activations, against the weights in f32", &rounded, &want, true)?;
    say("8-bit activations, against llama.cpp", &rounded, &theirs, false)?;
    say("llama.cpp, against the weights in f32", &theirs, &want, false)
}

/// Norm of the difference over the norm of `want`.
fn distance(got: &[f64], want: &[f64]) -> f64 {
    let squares: f64 = got.iter().zip(want).map(|(got, want)| (got - want).powi(2)).sum();
    (squares / want.iter().map(|v| v * v).sum::<f64>()).sqrt()
}
