//! CPU packages and their thermal design power: what energy is modelled from where no sensor can be read.

use serde::Deserialize;
use std::sync::OnceLock;

const PROCESSORS: &str = include_str!("../data/processors.toml");

/// Band of an entry that names its part exactly and states none: memory-bound work stays below the TDP, boost goes beyond.
const BAND: [f64; 2] = [0.5, 1.3];

/// A CPU package as sold.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Processor {
    /// Part of the name by which a CPU calls itself.
    #[serde(rename = "match")]
    pub pattern: String,
    /// For people; says what is assumed where the part is not known.
    pub name: String,
    /// Physical cores.
    pub cores: u32,
    /// Hardware threads.
    pub threads: u32,
    /// Thermal design power as the vendor publishes it, W.
    pub tdp_w: f64,
    /// 95 % band of power modelled from it, as factors.
    #[serde(default = "band")]
    pub band: [f64; 2],
    /// Key of the file's table of sources.
    pub source: String,
}

fn band() -> [f64; 2] {
    BAND
}

/// What stands in for a CPU that no entry names.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct AnyProcessor {
    /// Power of a hardware thread, W.
    pub watts_per_core: f64,
    /// 95 % band, as factors.
    pub band: [f64; 2],
    /// Key of the file's table of sources.
    pub source: String,
}

/// The processors that are known.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Processors {
    /// For all others.
    pub fallback: AnyProcessor,
    /// In the order of the file.
    #[serde(rename = "processor")]
    pub list: Vec<Processor>,
    /// What the keys of sources stand for.
    pub sources: std::collections::BTreeMap<String, String>,
}

impl Processors {
    /// The built-in list.
    pub fn builtin() -> &'static Processors {
        static LIST: OnceLock<Processors> = OnceLock::new();
        LIST.get_or_init(|| match toml::from_str(PROCESSORS) {
            Ok(list) => list,
            // a test reads the file, which is part of the program
            Err(error) => unreachable!("processors.toml: {error}"),
        })
    }

    /// The entry of a CPU by its own name: the longest that is a part of it.
    pub fn find(&self, cpu: &str) -> Option<&Processor> {
        self.list.iter().filter(|p| cpu.contains(&p.pattern)).max_by_key(|p| p.pattern.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_is_sound_and_has_a_known_source() {
        let list = Processors::builtin();
        assert!(list.sources.contains_key(&list.fallback.source));
        for p in &list.list {
            assert!(list.sources.contains_key(&p.source), "{p:?}");
            assert!(p.cores > 0 && p.threads >= p.cores && p.tdp_w > 0.0, "{p:?}");
            assert!(p.band[0] > 0.0 && p.band[0] <= 1.0 && p.band[1] >= 1.0, "{p:?}");
            assert_eq!(list.find(&p.pattern), Some(p), "an entry that another hides");
        }
    }

    #[test]
    fn the_longest_name_wins() {
        let find = |cpu| Processors::builtin().find(cpu).map(|p| p.tdp_w);
        assert_eq!(find("AMD EPYC 7763 64-Core Processor"), Some(280.0));
        assert_eq!(find("AMD EPYC"), Some(225.0));
        assert_eq!(find("Loongson-3A6000"), None);
    }
}
