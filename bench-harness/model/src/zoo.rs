//! Geometries of well-known models by name, for measuring without their weights.
//!
//! The files in `zoo/` hold the published `config.json` values that matter to the computation and go through the same parser as a folder.

use crate::config::Geometry;
use crate::error::{Error, Result};

macro_rules! configs {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("zoo/", $name, ".json")))),*]
    };
}

/// Name and `config.json`, small to large within a family.
const CONFIGS: &[(&str, &str)] = configs![
    "smollm2-135m",
    "llama-3.2-1b",
    "llama-3.2-3b",
    "llama-3.1-8b",
    "llama-3.1-70b",
    "llama-3.1-405b",
    "mistral-7b",
    "qwen3-0.6b",
    "qwen3-8b",
    "qwen3-30b-a3b",
    "gpt-oss-20b",
    "gpt-oss-120b",
];

/// Names of all geometries.
pub fn names() -> impl Iterator<Item = &'static str> {
    CONFIGS.iter().map(|(name, _)| *name)
}

/// The geometry called `name`.
///
/// # Errors
/// [`Error::UnknownModel`] with the names there are.
pub fn geometry(name: &str) -> Result<Geometry> {
    match CONFIGS.iter().find(|(known, _)| *known == name) {
        Some((_, config)) => Geometry::from_json(config.as_bytes()),
        None => {
            Err(Error::UnknownModel { name: name.to_owned(), known: names().collect::<Vec<_>>().join(", ") })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parameter counts as published with the weights (tied heads counted once).
    const PUBLISHED: [(&str, u64); 12] = [
        ("smollm2-135m", 134_515_008),
        ("llama-3.2-1b", 1_235_814_400),
        ("llama-3.2-3b", 3_212_749_824),
        ("llama-3.1-8b", 8_030_261_248),
        ("llama-3.1-70b", 70_553_706_496),
        ("llama-3.1-405b", 405_853_388_800),
        ("mistral-7b", 7_241_732_096),
        ("qwen3-0.6b", 596_049_920),
        ("qwen3-8b", 8_190_735_360),
        ("qwen3-30b-a3b", 30_532_122_624),
        ("gpt-oss-20b", 20_914_757_184),
        ("gpt-oss-120b", 116_829_156_672),
    ];

    #[test]
    fn parameter_counts_are_the_published_ones() {
        let counts: Vec<_> = names().map(|name| (name, geometry(name).unwrap().n_params())).collect();
        assert_eq!(counts, PUBLISHED);
    }

    #[test]
    fn experts_count_by_what_a_token_visits() {
        // Model cards: 3.3B and 3.6B active.
        let active = |name| geometry(name).unwrap().n_active_params() as f64 / 1e9;
        assert!((3.3..3.4).contains(&active("qwen3-30b-a3b")), "{}", active("qwen3-30b-a3b"));
        let embedding = 201_088.0 * 2880.0 / 1e9;
        assert!((3.6..3.65).contains(&(active("gpt-oss-20b") - embedding)), "{}", active("gpt-oss-20b"));
        let dense = geometry("qwen3-8b").unwrap();
        assert_eq!(dense.n_active_params(), dense.n_params());
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let message = geometry("llama-9").unwrap_err().to_string();
        assert!(message.contains("\"llama-9\"") && names().all(|name| message.contains(name)), "{message}");
    }
}
