//! What is committed of the kernels' machine code, and what is asked of it.

use super::code::Code;
use super::variants::Asked;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

/// What a variant came to when it was blessed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    /// Of source, headers and options.
    pub(super) hash: String,
    registers: u32,
    /// Bytes of shared memory that are not dynamic.
    shared: u32,
    /// Telling instructions, by name.
    instructions: String,
}

impl Entry {
    pub(super) fn of(hash: String, code: &Code) -> Self {
        let instructions = code.instructions.iter().copied().collect::<Vec<_>>().join(" ");
        Entry { hash, registers: code.registers, shared: code.shared, instructions }
    }

    /// Where `new` needs more than this, or lacks what this had.
    pub(super) fn exceeded(&self, new: &Entry) -> Vec<String> {
        let mut list = Vec::new();
        if new.registers > self.registers {
            list.push(format!("{} registers, the ratchet has {}", new.registers, self.registers));
        }
        if new.shared > self.shared {
            list.push(format!("{} bytes of shared memory, the ratchet has {}", new.shared, self.shared));
        }
        let lost =
            self.instructions.split(' ').filter(|i| !new.instructions.split(' ').any(|other| other == *i));
        let lost: Vec<&str> = lost.filter(|instruction| !instruction.is_empty()).collect();
        if !lost.is_empty() {
            list.push(format!("no {} any more", lost.join(", ")));
        }
        list
    }
}

/// `ratchet.toml`.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Ratchet {
    /// The compiler that it is of: another one needs other registers.
    pub(super) nvrtc: String,
    /// What is committed, by name.
    pub(super) variants: BTreeMap<String, Entry>,
}

impl Ratchet {
    pub(super) fn load(path: &Path) -> Result<Self, String> {
        match std::fs::read_to_string(path) {
            Ok(text) => toml::from_str(&once_each(&text)).map_err(|e| format!("{}: {e}", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Ratchet::default()),
            Err(error) => Err(format!("{}: {error}", path.display())),
        }
    }

    /// One line each, so that changes are read as what they are.
    pub(super) fn save(&self, path: &Path) -> Result<(), String> {
        let mut text = format!(
            "# Written by cargo xtask sass --bless: see sass.rs.\nnvrtc = \"{}\"\n\n[variants]\n",
            self.nvrtc
        );
        for (name, Entry { hash, registers, shared, instructions }) in &self.variants {
            let _ = writeln!(
                text,
                "'{name}' = {{ hash = \"{hash}\", registers = {registers}, shared = {shared}, instructions = \"{instructions}\" }}"
            );
        }
        let part = path.with_extension("part");
        let written = std::fs::write(&part, text).and_then(|()| std::fs::rename(&part, path));
        written.map_err(|e| format!("{}: {e}", path.display()))
    }
}

/// The text without all but the last line of a variant: git keeps the lines of both sides when it merges (`.gitattributes`).
fn once_each(text: &str) -> String {
    let key = |line: &str| line.split_once("' = ").map(|(key, _)| key.to_string());
    let lines: Vec<&str> = text.lines().collect();
    let last: BTreeMap<String, usize> =
        lines.iter().enumerate().filter_map(|(at, line)| Some((key(line)?, at))).collect();
    let kept = lines.iter().enumerate().filter(|(at, line)| key(line).is_none_or(|key| last[&key] == *at));
    kept.flat_map(|(_, line)| [*line, "\n"]).collect()
}

/// What variants of a source must have.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    /// Path of the source below `shaders/cuda/`.
    source: String,
    /// Beginning of the target; empty for all.
    #[serde(default)]
    target: String,
    /// Definitions that the variant has, such as `M=128`; empty for all.
    #[serde(default)]
    defines: Vec<String>,
    /// Instructions that must all be there.
    #[serde(default)]
    all: Vec<String>,
    /// Instructions of which one must be there.
    #[serde(default)]
    any: Vec<String>,
    /// Instructions that must not be there.
    #[serde(default)]
    none: Vec<String>,
    /// Most registers; 0 for any number.
    #[serde(default)]
    registers: u32,
    /// Bytes that may be spilled, or be a stack: for portable rows alone, with the reason.
    #[serde(default)]
    spills: u32,
    /// That reason.
    #[serde(default)]
    why: String,
}

/// `expected.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Expected {
    #[serde(default)]
    rule: Vec<Rule>,
}

impl Rule {
    fn is_of(&self, asked: &Asked) -> bool {
        let has = |define: &String| {
            asked.variant.defines.iter().any(|(name, value)| *define == format!("{name}={value}"))
        };
        asked.variant.path.trim_start_matches("cuda/") == self.source
            && asked.target.starts_with(&self.target)
            && self.defines.iter().all(has)
    }
}

impl Expected {
    pub(super) fn load(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        toml::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))
    }

    /// Rules that are of no variant.
    pub(super) fn unused(&self, asked: &[Asked]) -> Vec<String> {
        let unused = self.rule.iter().filter(|rule| !asked.iter().any(|asked| rule.is_of(asked)));
        unused.map(|rule| format!("{} {} {:?}", rule.source, rule.target, rule.defines)).collect()
    }

    /// Bytes that a variant may spill.
    pub(super) fn spills(&self, asked: &Asked) -> u32 {
        let reasoned = self.rule.iter().filter(|rule| rule.is_of(asked) && !rule.why.trim().is_empty());
        reasoned.map(|rule| rule.spills).max().unwrap_or(0)
    }

    /// What a variant lacks, or has too much of.
    pub(super) fn missing(&self, asked: &Asked, code: &Code) -> Vec<String> {
        let mut list = Vec::new();
        let has = |name: &String| code.instructions.contains(name.as_str());
        for rule in self.rule.iter().filter(|rule| rule.is_of(asked)) {
            list.extend(rule.all.iter().filter(|name| !has(name)).map(|name| format!("has no {name}")));
            list.extend(rule.none.iter().filter(|name| has(name)).map(|name| format!("has {name}")));
            if !rule.any.is_empty() && !rule.any.iter().any(has) {
                list.push(format!("has none of {}", rule.any.join(", ")));
            }
            if rule.registers > 0 && code.registers > rule.registers {
                list.push(format!("{} registers, {} are allowed", code.registers, rule.registers));
            }
        }
        list
    }
}
