//! What is asked for, what comes of it, and how it is judged.

mod code;
mod ratchet;
mod variants;

use code::{Code, Tools};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use perjoule_cuda::compile::{Compiler, options};
use ratchet::{Entry, Expected, Ratchet};
use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use variants::{Asked, asked};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sass");

/// Where `cargo xtask setup --nvrtc` puts it.
fn fetched() -> Option<PathBuf> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent()?;
    Some(target.join("nvrtc/nvidia/cu13")).filter(|folder| folder.is_dir())
}

pub(crate) fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let folder = fetched();
    if let (Some(folder), None) = (&folder, std::env::var_os(perjoule_cuda::library::VARIABLE)) {
        // SAFETY: no other thread runs yet.
        unsafe { std::env::set_var(perjoule_cuda::library::VARIABLE, folder) };
    }
    let required = std::env::var("PERJOULE_REQUIRE").unwrap_or_default();
    let required = required.split(',').any(|name| name.trim() == "nvrtc");
    let tools = match (Compiler::load(), Tools::find(folder.as_deref())) {
        (Ok(compiler), Ok(tools)) => (compiler, tools),
        (Err(why), _) | (_, Err(why)) => {
            let why = format!("{why}; `cargo xtask setup --nvrtc` fetches it");
            let trial = Trial::ignorable_test("nvrtc", move || match required {
                true => Err(Failed::from(why)),
                false => Ok(Completion::ignored_with(why)),
            });
            return libtest_mimic::run(&arguments, vec![trial]).exit_code();
        }
    };
    match trials(tools) {
        Ok((trials, results)) => {
            let conclusion = libtest_mimic::run(&arguments, trials);
            let bless = std::env::var_os("PERJOULE_BLESS").is_some() && !arguments.list;
            match bless.then(|| results.write(arguments.filter.is_none() && !conclusion.has_failed())) {
                Some(Err(why)) => {
                    eprintln!("{why}");
                    ExitCode::FAILURE
                }
                _ => conclusion.exit_code(),
            }
        }
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

/// What was found of each variant, for a new ratchet.
struct Results {
    old: Ratchet,
    /// The compiler.
    nvrtc: String,
    new: Mutex<BTreeMap<String, Entry>>,
}

impl Results {
    fn note(&self, name: &str, entry: Entry, bless: bool) -> Result<(), String> {
        let changed = self.old.variants.get(name) != Some(&entry);
        self.new.lock().unwrap_or_else(PoisonError::into_inner).insert(name.into(), entry);
        // at once: all of them take long, and an end by Ctrl-C keeps what is finished
        if bless && changed { self.write(false) } else { Ok(()) }
    }

    /// Writes the ratchet: what was not looked at stays, unless `all` were.
    fn write(&self, all: bool) -> Result<(), String> {
        let new = self.new.lock().unwrap_or_else(PoisonError::into_inner);
        let mut variants = if all { BTreeMap::new() } else { self.old.variants.clone() };
        variants.extend(new.iter().map(|(name, entry)| (name.clone(), entry.clone())));
        Ratchet { nvrtc: self.nvrtc.clone(), variants }.save(&Path::new(FOLDER).join("ratchet.toml"))
    }
}

fn trials((compiler, tools): (Compiler, Tools)) -> Result<(Vec<Trial>, Arc<Results>), String> {
    let old = Ratchet::load(&Path::new(FOLDER).join("ratchet.toml"))?;
    let expected = Arc::new(Expected::load(&Path::new(FOLDER).join("expected.toml"))?);
    let (asked, refused) = asked()?;
    let every = every()?;
    let bless = std::env::var_os("PERJOULE_BLESS").is_some();
    let mut trials = Vec::new();
    for (name, why) in refused {
        trials.push(Trial::test(format!("prepare::{name}"), move || Err(Failed::from(why))));
    }
    let stale: Vec<String> =
        old.variants.keys().filter(|name| !asked.iter().any(|a| a.name() == **name)).cloned().collect();
    trials.push(Trial::test("ratchet::holds_nothing_else", move || match stale.is_empty() || bless {
        true => Ok(()),
        false => Err(Failed::from(format!(
            "nothing asks for these: PERJOULE_BLESS=1 drops them\n{}",
            stale.join("\n")
        ))),
    }));
    let unused = expected.unused(&asked);
    trials.push(Trial::test("expected::is_all_of_something", move || match unused.is_empty() {
        true => Ok(()),
        false => {
            Err(Failed::from(format!("expected.toml names what nothing asks for: {}", unused.join(", "))))
        }
    }));
    trials.push(Trial::test("code::is_read_right", code::check));
    let (major, minor) = compiler.version();
    let nvrtc = format!("{major}.{minor}");
    // another compiler needs other registers, and makes other code of the same source
    let same = old.nvrtc == nvrtc;
    let results = Arc::new(Results { old, nvrtc, new: Mutex::default() });
    let mut variants: BTreeMap<(String, &str), u32> = BTreeMap::new();
    for asked in asked {
        // the first of each source and target is always among them
        let count = variants.entry((asked.target.clone(), asked.variant.path)).or_default();
        let sampled = every.is_some_and(|every| count.is_multiple_of(every.get()));
        *count += 1;
        let (expected, results, tools) = (expected.clone(), results.clone(), tools.clone());
        let name = asked.name();
        trials.push(Trial::ignorable_test(name.clone(), move || {
            let (hash, known) = (asked.hash(), results.old.variants.get(&name));
            match known {
                Some(entry) if entry.hash == hash && !sampled && (same || !bless) => {
                    results.note(&name, entry.clone(), bless)?;
                    return Ok(Completion::ignored_with("as in the ratchet"));
                }
                _ => {}
            }
            let code = compiled(compiler, &tools, &asked)?;
            let mut faults = code.faults(expected.spills(&asked));
            faults.extend(expected.missing(&asked, &code));
            let entry = Entry::of(hash, &code);
            if let (Some(known), false) = (known, bless) {
                if same {
                    faults.extend(known.exceeded(&entry));
                }
                if known.hash != entry.hash {
                    faults.push(
                        "its source has another hash than in the ratchet: PERJOULE_BLESS=1 writes it".into(),
                    );
                }
            }
            if known.is_none() && !bless {
                faults.push("it is not in the ratchet: PERJOULE_BLESS=1 adds it".into());
            }
            if !faults.is_empty() {
                return Err(Failed::from(faults.join("\n")));
            }
            results.note(&name, entry, bless)?;
            Ok(Completion::Completed)
        }));
    }
    Ok((trials, results))
}

/// Of the variants of a source for a target each so-manieth is compiled whatever the ratchet says; none if that is not asked for.
fn every() -> Result<Option<NonZeroU32>, String> {
    let Ok(value) = std::env::var("PERJOULE_SASS") else { return Ok(None) };
    value.parse().map(Some).map_err(|e| format!("PERJOULE_SASS={value}: {e}; 1 compiles all variants"))
}

fn compiled(compiler: Compiler, tools: &Tools, asked: &Asked) -> Result<Code, Failed> {
    let mut options = options(&asked.variant.defines, &asked.target);
    options.extend(["--ptxas-options=-v", "--ptxas-options=--warn-on-spills"].map(String::from));
    let (cubin, log) = compiler.compile(asked.source, &options).map_err(|e| Failed::from(e.to_string()))?;
    Ok(Code::of(&log, &tools.disassemble(&cubin)?))
}
