//! What a result is for: model, dtype, phase, batch and context. Results that agree in all of them are comparable ([`Load`]); those that
//! are of the same kernel, device and machine too are the same measurement ([`Identity`]).

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use perjoule_catalogue::{Dtype, ModelShape, Stack, Workload};
use perjoule_model::zoo;
use perjoule_record::{CacheState, Kind, Provenance, Record};
use serde::de::IntoDeserializer;
use serde::de::value::{Error, StrDeserializer};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;

use crate::report::one_line;

/// A part of inference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Hash)]
pub(crate) enum Phase {
    /// Prompts alone: tokens are prompt tokens
    Prefill,
    /// Generation alone: tokens are generated tokens
    Decode,
    /// Prompts and generation: tokens are generated tokens, the prefill is in their time and energy
    Serving,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Phase::Prefill => "prefill",
            Phase::Decode => "decode",
            Phase::Serving => "serving",
        })
    }
}

/// What may differ between results that are compared all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Loose {
    /// The model
    Model,
    /// Type of the weights
    Dtype,
    /// Type of the KV cache
    KvDtype,
    /// Prefill, decode or serving
    Phase,
    /// Sequences side by side
    Batch,
    /// Prompt, generated tokens, and tokens before
    Context,
    /// CPU, features and threads (regressions)
    Machine,
}

impl fmt::Display for Loose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Loose::Model => "model",
            Loose::Dtype => "dtype",
            Loose::KvDtype => "kv-dtype",
            Loose::Phase => "phase",
            Loose::Batch => "batch",
            Loose::Context => "context",
            Loose::Machine => "machine",
        })
    }
}

/// What a result is for. `None` is unknown; two unknowns are equal to each other and to nothing else.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Hash)]
pub(crate) struct Load {
    /// Model, as [`canonical_model`] writes it.
    pub(crate) model: Option<String>,
    /// Type of the weights, as [`canonical_dtype`] writes it.
    pub(crate) dtype: Option<String>,
    /// Type of the KV cache where it is not the usual one beside such weights; what does not say it is of the usual one.
    pub(crate) kv_dtype: Option<String>,
    /// Part of inference.
    pub(crate) phase: Option<Phase>,
    /// Sequences side by side.
    pub(crate) n_parallel: Option<u64>,
    /// Prompt tokens of a sequence in the measured part.
    pub(crate) n_prompt: Option<u64>,
    /// Generated tokens of a sequence in the measured part.
    pub(crate) n_gen: Option<u64>,
    /// Tokens of a sequence before it.
    pub(crate) n_depth: Option<u64>,
}

impl Load {
    /// What a record of tokens is for.
    pub(crate) fn of(record: &Record) -> Load {
        let w = &record.workload;
        let phase = match w.token_phase() {
            Some(perjoule_record::Phase::Prefill) => Some(Phase::Prefill),
            Some(perjoule_record::Phase::Decode) => Some(Phase::Decode),
            Some(perjoule_record::Phase::Mixed) => Some(Phase::Serving),
            _ => None,
        };
        Load {
            // other tools name the architecture, its size and its type in one, and no checkpoint
            model: w.model.as_deref().or(w.model_type.as_deref()).map(canonical_model),
            dtype: w.dtype.as_deref().map(canonical_dtype),
            kv_dtype: w.other_kv_dtype().map(canonical_dtype),
            phase,
            n_parallel: w.n_parallel,
            // what a phase has none of is 0, however it is written
            n_prompt: if phase == Some(Phase::Decode) { Some(0) } else { w.n_prompt },
            n_gen: if phase == Some(Phase::Prefill) { Some(0) } else { w.n_gen },
            n_depth: w.n_depth,
        }
    }

    /// Prompt, generated tokens and depth, in words.
    fn context(&self) -> String {
        if (self.n_prompt, self.n_gen, self.n_depth) == (None, None, None) {
            return "tokens of unknown numbers".into();
        }
        let n = |n: Option<u64>| n.map_or("an unknown number".into(), |n| n.to_string());
        let mut text = match self.phase {
            Some(Phase::Prefill) => format!("{} prompt tokens", n(self.n_prompt)),
            Some(Phase::Decode) => format!("{} generated tokens", n(self.n_gen)),
            _ => format!("{} prompt and {} generated tokens", n(self.n_prompt), n(self.n_gen)),
        };
        if self.n_depth != Some(0) {
            text.push_str(&format!(" after {}", n(self.n_depth)));
        }
        text
    }

    fn field(&self, what: Loose) -> String {
        let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "unknown".into());
        match what {
            Loose::Model => text(&self.model),
            Loose::Dtype => text(&self.dtype),
            Loose::KvDtype => self.kv_dtype.clone().unwrap_or_else(|| "the usual".into()),
            Loose::Phase => self.phase.map_or("unknown".into(), |phase| phase.to_string()),
            Loose::Batch => self.n_parallel.map_or("unknown".into(), |n| n.to_string()),
            Loose::Context => self.context(),
            Loose::Machine => String::new(),
        }
    }

    /// In which fields two loads differ.
    pub(crate) fn differences(&self, other: &Load) -> Vec<Loose> {
        let context = |load: &Load| (load.n_prompt, load.n_gen, load.n_depth);
        let list = [
            (Loose::Model, self.model != other.model),
            (Loose::Dtype, self.dtype != other.dtype),
            (Loose::KvDtype, self.kv_dtype != other.kv_dtype),
            (Loose::Phase, self.phase != other.phase),
            (Loose::Batch, self.n_parallel != other.n_parallel),
            (Loose::Context, context(self) != context(other)),
        ];
        list.into_iter().filter(|(_, differ)| *differ).map(|(what, _)| what).collect()
    }

    /// Why two loads are not comparable, and how to compare them all the same. Empty when they are.
    pub(crate) fn refusal(&self, other: &Load, loose: &[Loose]) -> Option<String> {
        let mut differ = self.differences(other);
        differ.retain(|what| !loose.contains(what));
        if differ.is_empty() {
            return None;
        }
        let each: Vec<String> = differ
            .iter()
            .map(|what| format!("{what} ({} and {})", self.field(*what), other.field(*what)))
            .collect();
        let names: Vec<String> = loose.iter().chain(&differ).map(Loose::to_string).collect();
        Some(format!("{}; --loose {} compares them all the same", each.join(", "), names.join(",")))
    }

    /// The load with the fields that may differ left open: what comparable results share.
    pub(crate) fn masked(&self, loose: &[Loose]) -> Load {
        let mut load = self.clone();
        for what in loose {
            match what {
                Loose::Model => load.model = None,
                Loose::Dtype => load.dtype = None,
                Loose::KvDtype => load.kv_dtype = None,
                Loose::Phase => load.phase = None,
                Loose::Batch => load.n_parallel = None,
                Loose::Context => (load.n_prompt, load.n_gen, load.n_depth) = (None, None, None),
                Loose::Machine => {}
            }
        }
        load
    }

    /// The load as the catalogue's model takes it.
    ///
    /// # Errors
    /// What is unknown or has no counterpart there.
    pub(crate) fn modelled(&self) -> Result<Workload> {
        let (Some(model), Some(dtype), Some(phase)) = (&self.model, &self.dtype, self.phase) else {
            bail!("model, dtype and phase must be known");
        };
        let Some(known) = catalogue_dtype(dtype) else {
            bail!("weights of {dtype} are not modelled; the catalogue has {}", DTYPES.join(", "))
        };
        let usual = if known == Dtype::F32 { Dtype::F32 } else { Dtype::Bf16 };
        let kv_dtype = match &self.kv_dtype {
            None => usual,
            Some(kv) => catalogue_dtype(kv).with_context(|| format!("a KV cache in {kv} is not modelled"))?,
        };
        let count = |n: Option<u64>, what: &str| match n.map(u32::try_from) {
            Some(Ok(n)) => Ok(n),
            _ => bail!("the number of {what} must be known, and below 2^32"),
        };
        let depth = count(self.n_depth, "tokens before")?;
        ensure!(
            phase == Phase::Decode || depth == 0,
            "{phase} after {depth} tokens is not modelled: only decode is"
        );
        let (phase, n_prompt, n_gen) = match phase {
            Phase::Prefill => (perjoule_catalogue::Phase::Prefill, count(self.n_prompt, "prompt tokens")?, 0),
            Phase::Decode => {
                (perjoule_catalogue::Phase::Decode, depth, count(self.n_gen, "generated tokens")?)
            }
            Phase::Serving => {
                let n_prompt = count(self.n_prompt, "prompt tokens")?;
                (perjoule_catalogue::Phase::Mixed, n_prompt, count(self.n_gen, "generated tokens")?)
            }
        };
        Ok(Workload {
            model: shape(model)?,
            dtype: known,
            kv_dtype,
            phase,
            stack: Stack::Serving,
            n_parallel: f64::from(count(self.n_parallel, "sequences")?),
            n_prompt,
            n_gen,
        })
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unknown = |text: &Option<String>| text.clone().unwrap_or_else(|| "unknown".into());
        let phase = self.phase.map_or("unknown phase".into(), |phase| phase.to_string());
        let batch = match self.n_parallel {
            Some(1) => "1 sequence".into(),
            Some(n) => format!("{n} sequences"),
            None => "an unknown number of sequences".into(),
        };
        let (model, dtype) = (unknown(&self.model), unknown(&self.dtype));
        let cache = self.kv_dtype.as_ref().map(|kv| format!(" (kv {kv})")).unwrap_or_default();
        write!(f, "{model} {dtype}{cache}, {phase}: {}, {batch}", self.context())
    }
}

/// What makes two records the same measurement, so that one may be faster than the other. How a kernel of perjoule is configured may
/// differ: that is what changes. The settings of another tool may not.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Hash)]
pub(crate) struct Identity<'a> {
    kind: &'static str,
    provenance: &'static str,
    load: Load,
    machine: Option<Machine<'a>>,
    kernel: Option<&'a str>,
    /// Device, op, shape, cache state, settings of another tool, that tool, unit of what it counts, command and its name.
    texts: [Option<&'a str>; 9],
    /// Prompt chunk, devices.
    sizes: [Option<u64>; 2],
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Hash)]
struct Machine<'a> {
    cpu_model: Option<&'a str>,
    cpu_features: BTreeSet<&'a str>,
    device_name: Option<&'a str>,
    threads: Option<u64>,
    /// Of commands, which have all of them.
    processors: Option<u64>,
}

impl<'a> Identity<'a> {
    /// What a record is a measurement of.
    pub(crate) fn of(record: &'a Record) -> Self {
        let (w, e, d) = (&record.workload, &record.environment, &record.device);
        let imported = record.provenance == Provenance::Imported;
        let settings = w.config.as_deref().filter(|_| imported);
        Identity {
            kind: record.kind.as_str(),
            provenance: record.provenance.as_str(),
            load: Load::of(record),
            machine: Some(Machine {
                cpu_model: e.cpu_model.as_deref(),
                cpu_features: e.cpu_features.iter().flatten().map(String::as_str).collect(),
                device_name: d.device_name.as_deref(),
                threads: w.n_threads,
                processors: e.cpu_count.filter(|_| record.kind == Kind::Command),
            }),
            kernel: w.kernel.as_deref(),
            texts: [
                d.device.as_deref().or(d.backend.as_deref()),
                w.op.as_deref(),
                w.shape.as_deref(),
                w.cache_state.map(CacheState::as_str),
                settings,
                record.source.source_tool.as_deref(),
                record.timing.throughput_unit.as_deref(),
                record.process.exec_name.as_deref(),
                record.process.exec_command.as_deref(),
            ],
            sizes: [w.n_batch, d.device_count],
        }
    }

    /// The same for kernels of any name.
    pub(crate) fn any_kernel(self) -> Self {
        Identity { kernel: None, ..self }
    }

    /// The same on any machine, with any number of threads.
    pub(crate) fn any_machine(self) -> Self {
        Identity { machine: None, ..self }
    }
}

/// Which workloads are wanted: empty and `None` leave a field open.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Wanted {
    pub(crate) models: Vec<String>,
    pub(crate) dtype: Option<String>,
    pub(crate) phase: Option<Phase>,
    pub(crate) parallel: Vec<u64>,
    pub(crate) n_prompt: Option<u64>,
    pub(crate) n_gen: Option<u64>,
    pub(crate) n_depth: Option<u64>,
}

/// Models and batches of the comparison that names none.
const MODELS: [&str; 2] = ["llama-3.1-8b", "llama-3.1-70b"];
const PARALLEL: [u64; 2] = [1, 64];
/// Tokens of a prompt, or before a decode.
const PROMPT: u64 = 512;
/// Tokens generated in a decode and in serving.
const DECODED: u64 = 128;
const SERVED: u64 = 256;

impl Wanted {
    /// Fills the phase where sizes tell it, and refuses sizes that it has none of.
    pub(crate) fn settle(mut self) -> Result<Wanted> {
        self.models = self.models.iter().map(|model| canonical_model(model)).collect();
        self.dtype = self.dtype.as_deref().map(canonical_dtype);
        let given = |n: Option<u64>| n.is_some_and(|n| n > 0);
        self.phase = self.phase.or(match (given(self.n_prompt), given(self.n_gen)) {
            (true, true) => Some(Phase::Serving),
            (true, false) => Some(Phase::Prefill),
            (false, true) => Some(Phase::Decode),
            (false, false) => None,
        });
        match self.phase {
            Some(Phase::Decode) if given(self.n_prompt) => {
                bail!("a decode has no prompt in its time: -d {} puts it before", self.n_prompt.unwrap_or(0))
            }
            Some(Phase::Prefill) if given(self.n_gen) => bail!("a prefill generates nothing: leave -n out"),
            _ => {}
        }
        ensure!(!self.parallel.contains(&0), "--parallel 0: at least one sequence is needed");
        Ok(self)
    }

    /// Every load that is wanted, with defaults where a field is open.
    pub(crate) fn loads(&self) -> Vec<Load> {
        let phase = self.phase.unwrap_or(Phase::Decode);
        let (n_prompt, n_gen, n_depth) = match phase {
            Phase::Prefill => (self.n_prompt.unwrap_or(PROMPT), 0, 0),
            Phase::Decode => (0, self.n_gen.unwrap_or(DECODED), PROMPT),
            Phase::Serving => (self.n_prompt.unwrap_or(PROMPT), self.n_gen.unwrap_or(SERVED), 0),
        };
        let models = match self.models.as_slice() {
            [] => MODELS.map(String::from).to_vec(),
            list => list.to_vec(),
        };
        let parallel = if self.parallel.is_empty() { &PARALLEL[..] } else { &self.parallel };
        let load = |model: &String, n_parallel: u64| Load {
            model: Some(model.clone()),
            dtype: Some(self.dtype.clone().unwrap_or_else(|| "bf16".into())),
            kv_dtype: None,
            phase: Some(phase),
            n_parallel: Some(n_parallel),
            n_prompt: Some(n_prompt),
            n_gen: Some(n_gen),
            n_depth: Some(self.n_depth.unwrap_or(n_depth)),
        };
        models.iter().flat_map(|model| parallel.iter().map(move |n| load(model, *n))).collect()
    }

    /// The load that comes nearest to `load` among those that are wanted: its open fields are those of `load`.
    pub(crate) fn nearest(&self, load: &Load) -> Load {
        let of = |n: Option<u64>, own: Option<u64>| n.or(own);
        let one_of = |list: &[String], own: &Option<String>| match own {
            Some(own) if list.contains(own) => Some(own.clone()),
            own => list.first().cloned().or(own.clone()),
        };
        let n_parallel = match load.n_parallel {
            Some(n) if self.parallel.contains(&n) => Some(n),
            own => self.parallel.first().copied().or(own),
        };
        Load {
            model: one_of(&self.models, &load.model),
            dtype: self.dtype.clone().or(load.dtype.clone()),
            kv_dtype: load.kv_dtype.clone(),
            phase: self.phase.or(load.phase),
            n_parallel,
            n_prompt: of(self.n_prompt, load.n_prompt),
            n_gen: of(self.n_gen, load.n_gen),
            n_depth: of(self.n_depth, load.n_depth),
        }
    }
}

/// A model's name in one spelling: the last part of a path, lower case, without the words that do not change its shape.
pub(crate) fn canonical_model(name: &str) -> String {
    let last = name.trim_end_matches('/').rsplit('/').next().unwrap_or(name);
    let mut name = one_line(&last.to_lowercase()).replace(['_', ' '], "-");
    name = name.strip_prefix("meta-").map_or(name.clone(), str::to_owned);
    for suffix in ["-instruct", "-chat", "-base", "-hf", "-it"] {
        name = name.strip_suffix(suffix).map_or(name.clone(), str::to_owned);
    }
    name
}

/// A type's name in the catalogue's spelling.
pub(crate) fn canonical_dtype(name: &str) -> String {
    let name = one_line(&name.to_lowercase());
    match name.as_str() {
        "fp16" | "float16" => "f16".into(),
        "fp32" | "float32" => "f32".into(),
        "bfloat16" => "bf16".into(),
        "f8e4m3" => "fp8".into(),
        "i8" => "int8".into(),
        _ => name,
    }
}

const DTYPES: [&str; 10] = ["f32", "bf16", "f16", "fp8", "int8", "int4", "q4_0", "q4_k_m", "mxfp4", "nvfp4"];

fn catalogue_dtype(name: &str) -> Option<Dtype> {
    let name: StrDeserializer<'_, Error> = name.into_deserializer();
    Dtype::deserialize(name).ok()
}

/// The shape of a model: the catalogue's, or that of a named geometry.
pub(crate) fn shape(model: &str) -> Result<ModelShape> {
    if let Some(shape) = ModelShape::builtin().get(model) {
        return Ok(*shape);
    }
    let Ok(geometry) = zoo::geometry(model) else {
        let mut known: Vec<&str> = ModelShape::builtin().keys().map(String::as_str).collect();
        known.extend(zoo::names());
        known.sort_unstable();
        known.dedup();
        bail!("the shape of {model} is not known; known are {}", known.join(", "));
    };
    let windows: Vec<usize> = geometry.layers.iter().filter_map(|layer| layer.attention.window()).collect();
    let small = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    Ok(ModelShape {
        params: geometry.n_params() as f64 / 1e9,
        active_params: geometry.n_active_params() as f64 / 1e9,
        layers: small(geometry.layers.len()),
        hidden: small(geometry.hidden),
        kv_heads: small(geometry.kv_heads),
        head_dim: small(geometry.head_dim),
        vocab: small(geometry.vocab),
        tied: geometry.tied_head,
        window: windows.first().map(|n| small(*n)),
        windowed: small(windows.len()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use perjoule::DType;
    use perjoule_model::default_kv_dtype;

    fn decode(model: &str, n_parallel: u64) -> Load {
        let wanted = Wanted { models: vec![model.into()], parallel: vec![n_parallel], ..Wanted::default() };
        wanted.settle().unwrap().loads().remove(0)
    }

    #[test]
    fn what_differs_is_named_and_loose_lets_it_pass() {
        let (a, b) = (decode("llama-3.1-8b", 1), decode("llama-3.1-70b", 64));
        let text = a.refusal(&b, &[]).unwrap();
        assert_eq!(
            text,
            "model (llama-3.1-8b and llama-3.1-70b), batch (1 and 64); --loose model,batch compares them all the same"
        );
        assert!(a.refusal(&b, &[Loose::Model]).unwrap().contains("--loose model,batch"));
        assert_eq!(a.refusal(&b, &[Loose::Model, Loose::Batch]), None);
        assert_eq!(a.masked(&[Loose::Model, Loose::Batch]), b.masked(&[Loose::Model, Loose::Batch]));
        let cached = Load { kv_dtype: Some("q8_0".into()), ..a.clone() };
        assert_eq!(
            a.refusal(&cached, &[]).unwrap(),
            "kv-dtype (the usual and q8_0); --loose kv-dtype compares them all the same"
        );
        assert_eq!(a.masked(&[Loose::KvDtype]), cached.masked(&[Loose::KvDtype]));
        assert!(cached.to_string().starts_with("llama-3.1-8b bf16 (kv q8_0), decode"), "{cached}");
        let deeper = Load { n_depth: Some(4096), ..a.clone() };
        assert!(a.refusal(&deeper, &[]).unwrap().contains("context (128 generated tokens after 512 and"));
    }

    #[test]
    fn sizes_tell_the_phase() {
        let phase = |n_prompt, n_gen| {
            Wanted { n_prompt, n_gen, ..Wanted::default() }.settle().map(|wanted| wanted.phase)
        };
        assert_eq!(phase(Some(512), Some(128)).unwrap(), Some(Phase::Serving));
        assert_eq!(phase(Some(512), None).unwrap(), Some(Phase::Prefill));
        assert_eq!(phase(None, Some(1)).unwrap(), Some(Phase::Decode));
        assert_eq!(phase(None, None).unwrap(), None);
        let decode = Wanted { phase: Some(Phase::Decode), n_prompt: Some(9), ..Wanted::default() };
        assert!(decode.settle().unwrap_err().to_string().contains("-d 9"));
    }

    #[test]
    fn a_stated_phase_needs_no_lengths() {
        let mut record = Record::new(Kind::Tokens, &perjoule_record::Environment::default());
        assert_eq!(Load::of(&record).phase, None);
        record.workload.phase = Some(perjoule_record::Phase::Mixed);
        let load = Load::of(&record);
        assert_eq!((load.phase, load.n_prompt, load.n_gen), (Some(Phase::Serving), None, None));
        assert!(load.modelled().is_err(), "unknown lengths are no lengths");
    }

    #[test]
    fn names_of_one_model_agree() {
        for name in ["meta-llama/Llama-3.1-8B-Instruct", "Meta-Llama-3.1-8B", "llama-3.1-8b"] {
            assert_eq!(canonical_model(name), "llama-3.1-8b");
        }
        assert_ne!(canonical_model("llama-3.1-8b"), canonical_model("llama-3-8b"));
        assert_eq!(canonical_dtype("FP16"), "f16");
        assert!(DTYPES.iter().all(|name| catalogue_dtype(name).is_some()));
    }

    /// Which cache is the usual one is said in two places: records know no models.
    #[test]
    fn the_usual_cache_is_what_models_choose() {
        for dtype in DType::ALL.into_iter().filter(|dtype| !dtype.is_integer()) {
            let mut record = Record::new(Kind::Tokens, &perjoule_record::Environment::default());
            record.workload.dtype = Some(dtype.name().into());
            record.workload.kv_dtype = Some(default_kv_dtype(dtype).name().into());
            assert_eq!(Load::of(&record).kv_dtype, None, "{dtype}");
        }
    }

    /// The two sources of shapes describe the same models.
    #[test]
    fn shapes_of_the_zoo_are_those_of_the_catalogue() {
        for name in zoo::names().filter(|name| ModelShape::builtin().contains_key(*name)) {
            let known = ModelShape::builtin()[name];
            let geometry = zoo::geometry(name).unwrap();
            assert!((geometry.n_params() as f64 / 1e9 / known.params - 1.0).abs() < 0.01, "{name}");
            assert_eq!(geometry.layers.len(), known.layers as usize, "{name}");
            assert_eq!(
                (geometry.tied_head, geometry.kv_heads),
                (known.tied, known.kv_heads as usize),
                "{name}"
            );
        }
        assert!((shape("llama-3.2-1b").unwrap().params - 1.2358).abs() < 1e-3);
        assert!(shape("nope").unwrap_err().to_string().contains("llama-3.2-1b"));
    }

    #[test]
    fn what_the_catalogue_cannot_model_is_said() {
        let load = decode("llama-3.1-8b", 1);
        assert_eq!(load.modelled().unwrap().n_prompt, 512);
        let odd = Load { dtype: Some("q8_0".into()), ..load.clone() };
        assert!(odd.modelled().unwrap_err().to_string().contains("q4_k_m"));
        let cached = |kv: &str| Load { kv_dtype: Some(kv.into()), ..load.clone() }.modelled();
        assert!(cached("q8_0").unwrap_err().to_string().contains("KV cache in q8_0"));
        assert_eq!(cached("f32").unwrap().kv_dtype, Dtype::F32);
        let after = Load { phase: Some(Phase::Prefill), n_prompt: Some(8), ..load };
        assert!(after.modelled().unwrap_err().to_string().contains("only decode"));
    }
}
