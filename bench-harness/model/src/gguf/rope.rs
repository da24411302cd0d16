//! Rotary embeddings of a GGUF file.
//!
//! Linear and YaRN scaling have keys. That of Llama 3 has none: a tensor holds the factor by which each frequency is divided, from which its
//! parameters follow.

use std::f64::consts::PI;

use super::geometry::Keys;
use crate::config::{Family, Rope, RopeScaling};
use crate::weights::Checkpoint;

/// Divisors of the frequencies, f32 `[rotary_dim / 2]`.
const FACTORS: &str = "rope_freqs.weight";
/// Largest relative error of a divisor that the parameters give: they were rounded to f32.
const CLOSE: f64 = 1e-4;

/// The rotary embeddings: one, or that of full layers followed by that of sliding ones.
pub(super) fn ropes(
    family: Family,
    keys: &Keys<'_>,
    checkpoint: &Checkpoint,
    head_dim: usize,
    max_positions: usize,
) -> Vec<Rope> {
    let theta = keys.number("rope.freq_base").unwrap_or(1e4);
    let rotary_dim = keys.size("rope.dimension_count").unwrap_or(head_dim);
    let mut full = Rope { theta, rotary_dim, scaling: scaling(family, keys, max_positions) };
    if ["rope_factors_long.weight", "rope_factors_short.weight"]
        .iter()
        .any(|name| checkpoint.find(name).is_some())
    {
        keys.problem("rope_factors_long: the scaling longrope is not supported".into());
    }
    if checkpoint.find(FACTORS).is_some() {
        match (full.scaling, checkpoint.read_f32(FACTORS)) {
            (RopeScaling::None, Ok(divisors)) => match llama3(theta, rotary_dim, &divisors) {
                Some(scaling) => full.scaling = scaling,
                None => {
                    keys.problem(format!("{FACTORS} is not the scaling of Llama 3, and no other is known"))
                }
            },
            (_, Ok(_)) => {
                keys.problem(format!("{FACTORS} comes with another scaling: one of them is supported"))
            }
            (_, Err(error)) => keys.problem(error.to_string()),
        }
    }
    match family {
        // sliding layers see few positions, and keep the base they were trained with
        Family::Gemma3 => {
            let theta = keys.number("rope.freq_base_swa").unwrap_or(1e4);
            vec![full, Rope { theta, rotary_dim, scaling: RopeScaling::None }]
        }
        _ => vec![full],
    }
}

fn scaling(family: Family, keys: &Keys<'_>, max_positions: usize) -> RopeScaling {
    // an older name of the same factor, without a type
    let factor = keys.number("rope.scaling.factor").or_else(|| keys.number("rope.scale_linear"));
    let factor = factor.filter(|factor| *factor != 0.0).unwrap_or(1.0);
    match keys.text("rope.scaling.type").unwrap_or("linear") {
        "none" => RopeScaling::None,
        "linear" if factor == 1.0 => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor },
        "yarn" => {
            if keys.number("rope.scaling.yarn_log_multiplier").is_some_and(|m| m != 0.0) {
                keys.problem("rope.scaling.yarn_log_multiplier is not supported".into());
            }
            let stated = |name: &str, default: f64| keys.number(name).filter(|v| *v > 0.0).unwrap_or(default);
            let factor_of_attention = RopeScaling::yarn_attention_factor(factor);
            RopeScaling::Yarn {
                factor,
                beta_fast: stated("rope.scaling.yarn_beta_fast", 32.0),
                beta_slow: stated("rope.scaling.yarn_beta_slow", 1.0),
                original_max: keys.size("rope.scaling.original_context_length").unwrap_or(max_positions),
                // no key says it: gpt-oss was trained without rounding
                truncate: family != Family::GptOss,
                attention_factor: factor_of_attention * stated("rope.scaling.attn_factor", 1.0) as f32,
            }
        }
        other => {
            keys.problem(format!(
                "rope.scaling.type {other:?} is not supported: known are none, linear, yarn"
            ));
            RopeScaling::None
        }
    }
}

/// The parameters that give `divisors`, if they are of this kind: 1 for short wavelengths, the factor for long ones, and between them a
/// ramp that is linear in the frequency.
///
/// Only the ratios of the two bounds to the original context matter, so that is set to what Llama 3 has.
fn llama3(theta: f64, rotary_dim: usize, divisors: &[f32]) -> Option<RopeScaling> {
    const ORIGINAL_MAX: usize = 8192;
    /// `high_freq_factor / low_freq_factor`, where the divisors leave it open.
    const RATIO: f64 = 4.0;
    if divisors.len() != rotary_dim / 2 || divisors.iter().any(|d| !d.is_finite() || *d < 1.0) {
        return None;
    }
    let factor = divisors.iter().copied().fold(1.0f32, f32::max);
    if factor == 1.0 {
        return Some(RopeScaling::None);
    }
    // turns of each pair within the original context
    let turns =
        |i: usize| ORIGINAL_MAX as f64 / (2.0 * PI) * theta.powf(-(2.0 * i as f64) / rotary_dim as f64);
    let factor = f64::from(factor);
    // how far up the ramp each pair is: a divided frequency is `(1 - s) / factor + s` of the plain one
    let heights = divisors.iter().map(|d| (1.0 / f64::from(*d) - 1.0 / factor) / (1.0 - 1.0 / factor));
    let points: Vec<(f64, f64)> = heights.enumerate().map(|(i, s)| (turns(i), s)).collect();
    let ramp: Vec<(f64, f64)> =
        points.iter().copied().filter(|(_, s)| (1e-6..1.0 - 1e-6).contains(s)).collect();
    let (low, high) = match ramp.as_slice() {
        [] => {
            let (long, short): (Vec<_>, Vec<_>) = points.iter().partition(|(_, s)| *s < 0.5);
            let divided = long.iter().fold(0.0, |most, (t, _)| f64::max(most, *t));
            let kept = short.iter().fold(f64::INFINITY, |least, (t, _)| f64::min(least, *t));
            if divided >= kept {
                return None;
            }
            // any bounds between the two will do
            match kept.is_finite() {
                true => (divided + (kept - divided) / 3.0, kept - (kept - divided) / 3.0),
                false => (2.0 * divided, 2.0 * RATIO * divided),
            }
        }
        [(t, s)] => {
            let low = t / (1.0 + (RATIO - 1.0) * s);
            (low, RATIO * low)
        }
        [(t0, s0), .., (t1, s1)] => {
            let slope = (s0 - s1) / (t0 - t1);
            (t0 - s0 / slope, t0 + (1.0 - s0) / slope)
        }
    };
    let scaling = RopeScaling::Llama3 {
        factor,
        low_freq_factor: low,
        high_freq_factor: high,
        original_max: ORIGINAL_MAX,
    };
    let expected = |(t, _): &(f64, f64)| {
        let s = ((t - low) / (high - low)).clamp(0.0, 1.0);
        1.0 / ((1.0 - s) / factor + s)
    };
    let close = |(p, d): (&(f64, f64), &f32)| (expected(p) / f64::from(*d) - 1.0).abs() < CLOSE;
    let holds = low > 0.0 && high > low && points.iter().zip(divisors).all(close);
    holds.then_some(scaling)
}
