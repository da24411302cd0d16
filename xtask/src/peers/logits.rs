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
const TOKENS: usize = 16;

/// Logits behind tokens that came as one prompt and one by one, since those are other kernels: ours with the weights in their blocks, and
/// llama.cpp's, each beside ours with the weights undone into f32.
pub(super) fn rows(field: &Field, json: bool) -> Result<()> {
    let group = Group { model: Some("q4_k_m"), ..Group::default() };
    let of = |who: &str, how: Option<&str>, steps: &[usize]| -> Result<Vec<Vec<f64>>> {
        let mut worker = field.start_as(who, &group, how)?;
        let of = |step: &usize| -> Result<Vec<f64>> {
            let case = json!({ "do": "setup", "op": "logits", "tokens": TOKENS, "step": step });
            let answer = worker.ask(&case)?;
            ensure!(answer["refused"].is_null(), "{who}: {}", answer["refused"]);
            Ok(answer["sample"].as_array().into_iter().flatten().filter_map(Value::as_f64).collect())
        };
        steps.iter().map(of).collect()
    };
    let want = of("ours", Some("f32"), &[TOKENS])?.remove(0);
    let steps = [TOKENS, 1];
    let theirs = of("llama", None, &steps)?;
    let (exact, rounded) = (of("ours", Some("exact"), &steps)?, of("ours", None, &steps)?);
    let say = |what: &str, got: &[f64], want: &[f64], asked: bool| -> Result<()> {
        ensure!(got.len() == want.len() && !want.is_empty(), "{} logits beside {}", got.len(), want.len());
        let error = distance(got, want);
        let target = if asked { verdict(&format!("{MOST}"), Some(error <= MOST)) } else { "none".into() };
        match json {
            true => println!("{}", json!({ "case": NAME, "what": what, "rel_err": error, "target": target })),
            false => println!("{NAME}, {what:70} rel_err {error:.2e}  {target}"),
        }
        Ok(())
    };
    for (at, came) in ["a prompt", "one by one"].into_iter().enumerate() {
        let (theirs, exact, rounded) = (&theirs[at], &exact[at], &rounded[at]);
        say(&format!("{came}: exact activations, against the weights in f32"), exact, &want, true)?;
        // without AVX-512 or NEON no kernel has use for the leave
        let leave =
            if exact == rounded { "leave for 8-bit activations, unused" } else { "8-bit activations" };
        say(&format!("{came}: {leave}, against the weights in f32"), rounded, &want, true)?;
        say(&format!("{came}: {leave}, against llama.cpp"), rounded, theirs, false)?;
        say(&format!("{came}: llama.cpp, against the weights in f32"), theirs, &want, false)?;
    }
    Ok(())
}

/// Norm of the difference over the norm of `want`.
fn distance(got: &[f64], want: &[f64]) -> f64 {
    let squares: f64 = got.iter().zip(want).map(|(got, want)| (got - want).powi(2)).sum();
    (squares / want.iter().map(|v| v * v).sum::<f64>()).sqrt()
}
