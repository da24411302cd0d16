//! Rotary embeddings of `config.json`, in the three forms that exist:
//!
//! - `rope_parameters`: one object for all layers;
//! - `rope_parameters`: one object for each layer type (`full_attention`, `sliding_attention`);
//! - the older `rope_theta`, `rope_scaling` (whose type may be called `type`) and gemma's `rope_local_base_freq`.
//!
//! As in transformers, a `rope_scaling` that is there replaces a flat `rope_parameters`.

use std::cell::RefCell;

use serde_json::{Map, Value};

use super::parse::Fields;
use super::{Family, Rope, RopeScaling};

const LAYER_TYPES: [&str; 2] = ["full_attention", "sliding_attention"];

/// The rotary embeddings: one, or that of full layers followed by that of sliding ones.
pub(super) fn ropes(family: Family, f: &Fields, head_dim: usize, max_positions: usize) -> Vec<Rope> {
    let empty = Map::new();
    let older = f.object("rope_scaling").filter(|o| !o.is_empty());
    let newer = f.object("rope_parameters");
    let top_theta = f.number("rope_theta");
    let context = Context { f, head_dim, max_positions };
    let nested = newer.filter(|o| LAYER_TYPES.iter().any(|t| o.contains_key(*t)));
    if family == Family::Gemma3 || nested.is_some() {
        if nested.is_none() && newer.is_some_and(|o| !o.is_empty()) {
            f.problem("rope_parameters of gemma3 must hold full_attention and sliding_attention".into());
        }
        let of = |layer_type: &str| nested.and_then(|o| o.get(layer_type)).and_then(Value::as_object);
        let (theta, local_theta) = match family {
            Family::Gemma3 => (top_theta.unwrap_or(1e6), f.number("rope_local_base_freq").unwrap_or(1e4)),
            _ => (top_theta.unwrap_or(default_theta(family)), top_theta.unwrap_or(default_theta(family))),
        };
        let full = older.or(of("full_attention")).unwrap_or(&empty);
        // The older scaling amends the full layers' parameters, so their base frequency stays in force.
        let theta =
            of("full_attention").and_then(|o| o.get("rope_theta")).and_then(Value::as_f64).unwrap_or(theta);
        let sliding = of("sliding_attention").unwrap_or(&empty);
        return vec![context.rope(full, theta), context.rope(sliding, local_theta)];
    }
    let default = default_gpt_oss();
    let parameters = match older.or(newer) {
        Some(parameters) => parameters,
        None if family == Family::GptOss => &default,
        None => &empty,
    };
    vec![context.rope(parameters, top_theta.unwrap_or(default_theta(family)))]
}

fn default_theta(family: Family) -> f64 {
    match family {
        Family::GptOss => 150_000.0,
        Family::Mixtral => 1e6,
        _ => 1e4,
    }
}

/// What gpt-oss uses when nothing is stated.
fn default_gpt_oss() -> Map<String, Value> {
    let yarn = serde_json::json!({
        "rope_type": "yarn",
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": false,
        "original_max_position_embeddings": 4096,
    });
    match yarn {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

struct Context<'a> {
    f: &'a Fields<'a>,
    head_dim: usize,
    max_positions: usize,
}

impl Context<'_> {
    fn rope(&self, parameters: &Map<String, Value>, theta: f64) -> Rope {
        let problems = RefCell::new(Vec::new());
        let p = Fields::new(parameters, &problems);
        let partial = p.number("partial_rotary_factor").or_else(|| self.f.number("partial_rotary_factor"));
        let rope = Rope {
            theta: p.number("rope_theta").unwrap_or(theta),
            rotary_dim: (self.head_dim as f64 * partial.unwrap_or(1.0)) as usize,
            scaling: self.scaling(&p),
        };
        for problem in problems.into_inner() {
            self.f.problem(format!("rotary embedding: {problem}"));
        }
        rope
    }

    fn scaling(&self, p: &Fields) -> RopeScaling {
        let need = |name: &str| {
            if p.value(name).is_none() {
                p.problem(format!("{name} is missing"));
            }
            p.number(name).unwrap_or(1.0)
        };
        let original_max = self
            .f
            .size("original_max_position_embeddings")
            .or_else(|| p.size("original_max_position_embeddings"))
            .unwrap_or(self.max_positions);
        match p.text("rope_type").or_else(|| p.text("type")).unwrap_or("default") {
            "default" => RopeScaling::None,
            // NTK by length: the base grows from `max_position_embeddings` on, and no session goes beyond
            "dynamic" => RopeScaling::None,
            "linear" => RopeScaling::Linear { factor: need("factor") },
            "llama3" => RopeScaling::Llama3 {
                factor: need("factor"),
                low_freq_factor: need("low_freq_factor"),
                high_freq_factor: need("high_freq_factor"),
                original_max,
            },
            "yarn" => {
                let ratio = self.max_positions as f64 / original_max as f64;
                let factor = p.number("factor").unwrap_or(ratio);
                // 0 stands for the default, as it does in transformers.
                let or_default =
                    |name: &str, default: f64| p.number(name).filter(|v| *v != 0.0).unwrap_or(default);
                RopeScaling::Yarn {
                    factor,
                    beta_fast: or_default("beta_fast", 32.0),
                    beta_slow: or_default("beta_slow", 1.0),
                    original_max,
                    truncate: p.flag("truncate").unwrap_or(true),
                    attention_factor: p.number("attention_factor").unwrap_or_else(|| {
                        let mscale = p.number("mscale").filter(|v| *v != 0.0);
                        let all_dim = p.number("mscale_all_dim").filter(|v| *v != 0.0);
                        match (mscale, all_dim) {
                            (Some(mscale), Some(all_dim)) => {
                                yarn_mscale(factor, mscale) / yarn_mscale(factor, all_dim)
                            }
                            _ => yarn_mscale(factor, 1.0),
                        }
                    }) as f32,
                }
            }
            "longrope" => {
                p.problem(
                    "type \"longrope\" is not supported: it belongs to phi3 and minicpm, whose families are not known here".into(),
                );
                RopeScaling::None
            }
            other => {
                p.problem(format!(
                    "type {other:?} is not supported: known are default, linear, dynamic, llama3, yarn"
                ));
                RopeScaling::None
            }
        }
    }
}

/// Temperature of YaRN's attention for a stretch of `factor` (section 3.4 of the paper).
fn yarn_mscale(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
}
