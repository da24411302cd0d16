//! Every variant that a row asks for, found by preparing it on a driver that does nothing.

use perjoule_cuda::CudaDevice;
use perjoule_cuda::compile::{Variant, options, stand_in, target};
use perjoule_kernels::{Alignment, Device, Op, prepare};
use perjoule_shaders::{Source, cuda};
use perjoule_suite::{Scope, cases, subjects};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

/// A variant for a target.
pub(super) struct Asked {
    pub(super) source: &'static Source,
    pub(super) variant: Variant,
    pub(super) target: String,
}

impl Asked {
    /// `norm/rows.cu sm_90a RUN=8 T=2`.
    pub(super) fn name(&self) -> String {
        let path = self.variant.path.trim_start_matches("cuda/");
        let defines = self.variant.defines.iter().map(|(name, value)| format!(" {name}={value}"));
        format!("{path} {}{}", self.target, defines.collect::<String>())
    }

    /// Of all that decides its machine code, the compiler apart.
    pub(super) fn hash(&self) -> String {
        let mut digest = Sha256::new();
        let mut add = |text: &str| {
            digest.update((text.len() as u64).to_le_bytes());
            digest.update(text);
        };
        options(&self.variant.defines, &self.target).iter().for_each(|option| add(option));
        let mut sources = vec![self.source];
        let mut at = 0;
        while let Some(source) = sources.get(at).copied() {
            add(source.path);
            add(source.text);
            let included = |header: &&'static Source| {
                source.text.contains(&format!("#include \"{}\"", header.path.trim_start_matches("cuda/")))
            };
            for header in cuda::HEADERS.iter().copied().filter(included) {
                if !sources.iter().any(|known| std::ptr::eq(*known, header)) {
                    sources.push(header);
                }
            }
            at += 1;
        }
        digest.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Target, path and definitions.
type Key = (String, &'static str, Vec<(&'static str, String)>);

/// Compute capabilities that no row is made for yet: that each source compiles and spills nothing in one variant is enough.
const ONCE: [u32; 2] = [100, 120];

/// What was asked for so far.
static ASKED: Mutex<BTreeSet<Key>> = Mutex::new(BTreeSet::new());

fn note(variant: &Variant, target: &str) -> Vec<u8> {
    let mut asked = ASKED.lock().unwrap_or_else(PoisonError::into_inner);
    asked.insert((target.into(), variant.path, variant.defines.clone()));
    vec![0; 64]
}

/// Builds the driver, and loads it under the name by which the real one is looked for.
fn load_driver() -> Result<(), String> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let library = folder.join(format!("libfake_cuda.{}.so", std::process::id()));
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fake/cuda.rs");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let built = Command::new(rustc)
        .args([
            "--edition=2024",
            "--crate-type=cdylib",
            "--crate-name=fake_cuda",
            "-Clink-arg=-Wl,-soname,libcuda.so",
            "-o",
        ])
        .arg(&library)
        .arg(source)
        .status()
        .map_err(|e| format!("rustc could not be started: {e}"))?;
    if !built.success() {
        return Err(format!("{source} was not built"));
    }
    // SAFETY: ours; nothing runs when it is loaded. It stays loaded.
    let loaded = unsafe { libloading::Library::new(&library) }.map_err(|e| e.to_string());
    // it is mapped: its file is needed no more, and the next run has another
    let removed = std::fs::remove_file(&library);
    std::mem::forget(loaded?);
    removed.map_err(|e| e.to_string())
}

/// The targets' variants, and rows that could not be prepared for a case, with the reason.
pub(super) fn asked() -> Result<(Vec<Asked>, BTreeMap<String, String>), String> {
    load_driver()?;
    stand_in(note);
    let mut refused = BTreeMap::new();
    for ordinal in 0.. {
        let Ok(device) = CudaDevice::open(ordinal) else { break };
        for choice in subjects(&device) {
            let Ok(list) = cases(&device, &choice, Scope::Sample) else { continue };
            // what is known of alignment may decide between variants
            let unaligned = choice.with_alignment(Alignment::default());
            for case in list {
                for choice in [choice, unaligned] {
                    prepared(&device, &case.op, choice, &mut refused);
                }
            }
        }
        // what ceilings are measured with
        perjoule_cuda::ceiling::Probes::new(&device, 1 << 20).map_err(|e| e.to_string())?;
    }
    let asked = ASKED.lock().unwrap_or_else(PoisonError::into_inner);
    if asked.is_empty() {
        return Err("no row asked for a kernel: is the driver that was loaded another one?".into());
    }
    let source = |path: &str| cuda::SOURCES.iter().copied().find(|source| source.path == path);
    let list = asked.iter().map(|(target, path, defines)| {
        let source =
            source(path).ok_or_else(|| format!("{path} is not among perjoule_shaders::cuda::SOURCES"))?;
        Ok(Asked { source, variant: Variant::new(source, defines), target: target.clone() })
    });
    let mut list = list.collect::<Result<Vec<_>, String>>()?;
    let mut seen = BTreeSet::new();
    let once = ONCE.map(target);
    list.retain(|a| !once.contains(&a.target) || seen.insert((a.target.clone(), a.variant.path)));
    let unasked: Vec<&str> = cuda::SOURCES
        .iter()
        .map(|s| s.path)
        .filter(|path| !list.iter().any(|a| a.variant.path == *path))
        .collect();
    for path in unasked {
        refused.insert(path.into(), "no row asks for this source for any case".into());
    }
    debug_assert!(list.iter().any(|asked| asked.target == target(90)));
    Ok((list, refused))
}

fn prepared(
    device: &CudaDevice,
    op: &Op,
    choice: perjoule_kernels::Choice,
    refused: &mut BTreeMap<String, String>,
) {
    if choice.refusal(op, device.info()).is_some() {
        return;
    }
    if let Err(error) = prepare(device, op, choice, None) {
        refused.entry(choice.kernel.name.into()).or_insert_with(|| format!("{op}: {error}"));
    }
}
