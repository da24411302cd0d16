//! What is run: a model's shape, number formats, phase and batch; and what one token of it costs at the roof.

use crate::class::{Class, named};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::OnceLock;

/// Format of weights or of the KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 32-bit float.
    F32,
    /// bfloat16.
    Bf16,
    /// 16-bit float.
    F16,
    /// 8-bit float.
    Fp8,
    /// 8-bit integer.
    Int8,
    /// 4-bit integer with scales of groups.
    Int4,
    /// llama.cpp's Q4_0.
    #[serde(rename = "q4_0")]
    Q4_0,
    /// llama.cpp's Q4_K_M.
    #[serde(rename = "q4_k_m")]
    Q4KM,
    /// OCP MXFP4 for the experts, bf16 for the rest, as gpt-oss ships.
    Mxfp4,
    /// NVIDIA's NVFP4.
    Nvfp4,
}

impl Dtype {
    /// Bits per weight with scales, and for mixed formats as published checkpoints come out.
    pub fn bits(self) -> f64 {
        match self {
            Dtype::F32 => 32.0,
            Dtype::Bf16 | Dtype::F16 => 16.0,
            Dtype::Fp8 | Dtype::Int8 => 8.0,
            Dtype::Int4 | Dtype::Nvfp4 => 4.5,
            Dtype::Q4_0 => 4.55,
            Dtype::Mxfp4 => 4.6,
            Dtype::Q4KM => 4.85,
        }
    }
}

/// The part of inference that is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Prompts alone; tokens are prompt tokens.
    Prefill,
    /// Generation alone after `n_prompt` tokens; tokens are generated tokens.
    Decode,
    /// Serving: every sequence is prefilled and generated; tokens are generated tokens, and the prefill is in their time and energy.
    Mixed,
}

/// How far the software is tuned to the workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stack {
    /// A serving engine or library as it comes: it pays host time for every sequence in every step.
    #[default]
    Serving,
    /// Tuned for one benchmark, as MLPerf submissions are.
    Tuned,
}

/// The shape of a decoder.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub struct ModelShape {
    /// Parameters in 10^9.
    pub params: f64,
    /// Parameters that one token passes through, in 10^9: `params` unless experts are routed to.
    #[serde(rename = "active")]
    pub active_params: f64,
    /// Layers.
    pub layers: u32,
    /// Width of the residual stream.
    pub hidden: u32,
    /// Heads of keys and values.
    pub kv_heads: u32,
    /// Width of a head.
    pub head_dim: u32,
    /// Tokens of the vocabulary.
    pub vocab: u32,
    /// Whether the output shares the table of the input. Where it does not, the input's table is looked up and never streamed.
    #[serde(default)]
    pub tied: bool,
    /// Length of sliding attention.
    #[serde(default)]
    pub window: Option<u32>,
    /// How many of the layers have it.
    #[serde(default)]
    pub windowed: u32,
}

#[derive(Deserialize)]
struct Shapes {
    #[serde(rename = "schema")]
    _schema: String,
    model: Vec<Named>,
}

#[derive(Deserialize)]
struct Named {
    id: String,
    #[serde(rename = "name")]
    _name: String,
    #[serde(flatten)]
    shape: ModelShape,
}

impl ModelShape {
    /// The shapes that published rows name, by id.
    pub fn builtin() -> &'static BTreeMap<String, ModelShape> {
        static SHAPES: OnceLock<BTreeMap<String, ModelShape>> = OnceLock::new();
        SHAPES.get_or_init(|| match toml::from_str::<Shapes>(include_str!("../data/models.toml")) {
            Ok(shapes) => shapes.model.into_iter().map(|model| (model.id, model.shape)).collect(),
            // a test parses the embedded file
            Err(error) => unreachable!("data/models.toml: {error}"),
        })
    }

    /// Bytes of keys and values that one sequence of a length keeps.
    pub fn kv_bytes(&self, tokens: f64, dtype: Dtype) -> f64 {
        2.0 * f64::from(self.kv_heads) * f64::from(self.head_dim) * dtype.bits() / 8.0 * self.attended(tokens)
    }

    /// Positions that one new token attends to, summed over layers.
    fn attended(&self, tokens: f64) -> f64 {
        let windowed = f64::from(self.windowed.min(self.layers));
        let near = self.window.map_or(tokens, |window| tokens.min(f64::from(window)));
        (f64::from(self.layers) - windowed) * tokens + windowed * near
    }

    /// Parameters of the table that is looked up and not streamed.
    fn looked_up(&self) -> f64 {
        if self.tied { 0.0 } else { f64::from(self.vocab) * f64::from(self.hidden) }
    }

    fn check(&self) -> Result<(), String> {
        let (params, active) = (self.params, self.active_params);
        if !(params.is_finite() && active > 0.0 && active <= params) {
            return Err("0 < active_params <= params does not hold".into());
        }
        if self.layers == 0 || self.hidden == 0 || self.kv_heads == 0 || self.head_dim == 0 {
            return Err("layers, hidden, kv_heads and head_dim must be positive".into());
        }
        if self.active_params * 1e9 <= self.looked_up() {
            return Err("the table of the vocabulary is larger than active_params".into());
        }
        Ok(())
    }
}

/// What is run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Workload {
    /// The model.
    pub model: ModelShape,
    /// Format of the weights.
    pub dtype: Dtype,
    /// Format of keys and values.
    pub kv_dtype: Dtype,
    /// What is run.
    pub phase: Phase,
    /// How the software is tuned.
    pub stack: Stack,
    /// Sequences that run together, on average: a fraction is fine.
    pub n_parallel: f64,
    /// Prompt tokens per sequence. In [`Phase::Decode`] they are there when the clock starts.
    pub n_prompt: u32,
    /// Generated tokens per sequence; not read in [`Phase::Prefill`].
    pub n_gen: u32,
}

/// Why there is no prediction.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum WhyNot {
    /// Weights and KV cache are larger than memory.
    #[error(
        "does not fit: {needed_gb:.1} GB of weights and KV cache, {available_gb:.1} GB usable{}",
        min_devices.map(|n| format!("; {n} devices hold it")).unwrap_or_default()
    )]
    DoesNotFit {
        /// Weights and KV cache in 10^9 bytes.
        needed_gb: f64,
        /// What the devices have for them in 10^9 bytes.
        available_gb: f64,
        /// The smallest number of devices that hold it.
        min_devices: Option<u32>,
    },
    /// A figure of the class is not known.
    #[error("{class}: {figure} is {state}; add it in a TOML file of your own")]
    Unknown {
        /// Id of the class.
        class: String,
        /// The figure.
        figure: String,
        /// Unknown or unsupported.
        state: String,
    },
    /// The workload makes no sense.
    #[error("{0}")]
    Invalid(String),
}

/// Share of memory that weights and KV cache may take; the rest is activations, the allocator and the runtime.
pub(crate) const USABLE: f64 = 0.95;

/// Sequences that a benchmark of throughput runs at most, where it does not say how many.
const MAX_PARALLEL: f64 = 1024.0;

impl Workload {
    /// Bytes of weights, whole.
    pub fn weight_bytes(&self) -> f64 {
        self.model.params * 1e9 * self.dtype.bits() / 8.0
    }

    fn longest(&self) -> f64 {
        let generated = if self.phase == Phase::Prefill { 0 } else { self.n_gen };
        f64::from(self.n_prompt) + f64::from(generated)
    }

    /// Mean length of the context while tokens are generated.
    pub fn context(&self) -> f64 {
        f64::from(self.n_prompt) + f64::from(self.n_gen) / 2.0
    }

    /// Bytes that must be resident. Sequences in flight are at different positions, so the mean context counts for generation.
    fn resident(&self) -> f64 {
        let tokens = if self.phase == Phase::Prefill { self.longest() } else { self.context() };
        self.weight_bytes() + self.n_parallel * self.model.kv_bytes(tokens, self.kv_dtype)
    }

    /// As many sequences as memory holds at full length, 1024 at most: what a benchmark of throughput would run. 1 where memory is unknown.
    pub fn largest_batch(&self, class: &Class, devices: u32) -> f64 {
        let Some(memory) = class.mem_gb.known.upper() else { return 1.0 };
        // one tenth is left, as serving engines do by default
        let room = memory * 1e9 * f64::from(devices) * 0.9 - self.weight_bytes();
        (room / self.model.kv_bytes(self.longest(), self.kv_dtype)).clamp(1.0, MAX_PARALLEL).floor()
    }

    fn check(&self, devices: u32) -> Result<(), String> {
        self.model.check()?;
        if devices == 0 {
            return Err("a prediction needs one device or more".into());
        }
        if !(self.n_parallel >= 1.0 && self.n_parallel.is_finite()) {
            return Err(format!("n_parallel is {}; it must be 1 or more", self.n_parallel));
        }
        match self.phase {
            Phase::Prefill if self.n_prompt == 0 => Err("a prefill needs n_prompt".into()),
            Phase::Decode | Phase::Mixed if self.n_gen == 0 => Err("generation needs n_gen".into()),
            Phase::Mixed if self.n_prompt == 0 => {
                Err("a mixed phase needs n_prompt; without one it is a decode".into())
            }
            _ => Ok(()),
        }
    }
}

/// Which roof is the lower one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Bytes of weights and KV cache over bandwidth.
    Bandwidth,
    /// FLOP over the peak of the format.
    Compute,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Limit::Bandwidth => "memory bandwidth",
            Limit::Compute => "compute",
        })
    }
}

/// Seconds per token, and what scales with steps: the terms of which a time is the weighted sum.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Terms {
    /// Seconds of memory traffic per token at full bandwidth.
    pub memory: f64,
    /// Seconds of generation's FLOP per token at peak.
    pub compute: f64,
    /// Seconds of prefill's FLOP per token at peak.
    pub prefill: f64,
    /// Layers times the square root of the devices, per token.
    pub layers: f64,
    /// 1 where the host works for every sequence in every step.
    pub sequences: f64,
    /// The figure that the peak comes from.
    pub peak: &'static str,
}

impl Terms {
    pub(crate) fn new(class: &Class, devices: u32, load: &Workload) -> Result<Terms, WhyNot> {
        load.check(devices).map_err(WhyNot::Invalid)?;
        let missing = |figure: &str, state: &dyn fmt::Display| WhyNot::Unknown {
            class: class.id.clone(),
            figure: figure.into(),
            state: state.to_string(),
        };
        if let Some(memory) = class.mem_gb.known.upper() {
            let each = memory * 1e9 * USABLE;
            let needed = load.resident();
            if needed > each * f64::from(devices) {
                let count = libm::ceil(needed / each);
                return Err(WhyNot::DoesNotFit {
                    needed_gb: needed / 1e9,
                    available_gb: each * f64::from(devices) / 1e9,
                    min_devices: (count <= f64::from(u32::MAX)).then_some(count as u32),
                });
            }
        }
        let bandwidth =
            class.mem_gbs.known.upper().ok_or_else(|| missing("mem_gbs", &class.mem_gbs.known))?;
        let (peak, peak_name) = compute_peak(class, load.dtype)
            .ok_or_else(|| missing("the peak of bf16 or f32", &class.peak.bf16.known))?;
        let n = f64::from(devices);
        let bandwidth = bandwidth * 1e9 * n;
        let peak = peak * 1e12 * n;

        let model = &load.model;
        let batch = load.n_parallel;
        let (n_prompt, n_gen) = (f64::from(load.n_prompt), f64::from(load.n_gen));
        let bytes_per_param = load.dtype.bits() / 8.0;
        let streamed = model.params * 1e9 - model.looked_up();
        let active = model.active_params * 1e9 - model.looked_up();
        // with routed experts, as many distinct ones as independent choices of the batch touch
        let touched =
            |tokens: f64| streamed * (1.0 - libm::pow(1.0 - active / streamed, tokens)) * bytes_per_param;
        let attention = 4.0 * f64::from(model.hidden);
        // causal: half of the prompt on average
        let prefill_flops = n_prompt * (2.0 * active + attention * model.attended(n_prompt / 2.0));
        let layers = f64::from(model.layers) * libm::sqrt(n);
        let terms = match load.phase {
            Phase::Prefill => Terms {
                memory: touched(n_prompt * batch) / (batch * n_prompt) / bandwidth,
                compute: 0.0,
                prefill: prefill_flops / n_prompt / peak,
                layers: layers / (batch * n_prompt),
                sequences: 0.0,
                peak: peak_name,
            },
            Phase::Decode | Phase::Mixed => {
                let context = load.context();
                Terms {
                    memory: (touched(batch) / batch + model.kv_bytes(context, load.kv_dtype)) / bandwidth,
                    compute: (2.0 * active + attention * model.attended(context)) / peak,
                    // prompts are chunked into the steps of generation, which stream the weights anyway
                    prefill: if load.phase == Phase::Mixed { prefill_flops / n_gen / peak } else { 0.0 },
                    layers: layers / batch,
                    sequences: f64::from(u8::from(load.stack == Stack::Serving)),
                    peak: peak_name,
                }
            }
        };
        Ok(terms)
    }

    /// Seconds per token at the roof, with everything overlapped.
    pub(crate) fn roof(&self) -> (f64, Limit) {
        let compute = self.compute + self.prefill;
        if self.memory >= compute { (self.memory, Limit::Bandwidth) } else { (compute, Limit::Compute) }
    }
}

/// TFLOP/s that a class computes with at weights of a format. Weights of 4 bits are widened where the part has no such format; a part
/// without tensor formats in its sources computes in f32.
fn compute_peak(class: &Class, dtype: Dtype) -> Option<(f64, &'static str)> {
    let peak = &class.peak;
    let wide = || named(&peak.bf16, "bf16").or_else(|| named(&peak.f32, "f32"));
    match dtype {
        Dtype::F32 => named(&peak.f32, "f32"),
        Dtype::Bf16 | Dtype::F16 | Dtype::Int4 | Dtype::Q4_0 | Dtype::Q4KM => wide(),
        Dtype::Fp8 => named(&peak.fp8, "fp8").or_else(wide),
        Dtype::Int8 => named(&peak.int8, "int8").or_else(wide),
        Dtype::Mxfp4 | Dtype::Nvfp4 => named(&peak.fp4, "fp4").or_else(wide),
    }
}
