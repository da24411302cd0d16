//! What ran, and on which device.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::count;

/// The device that did the work.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DeviceFields {
    /// Device id as the command line takes it, such as `cpu` or `cuda:0`.
    pub device: Option<String>,
    /// Backend: `cpu`, `webgpu` or `cuda`; another tool's name for its own in imported records.
    pub backend: Option<String>,
    /// The device's own name, such as `NVIDIA H100 80GB HBM3`.
    pub device_name: Option<String>,
    /// Hardware class in the catalogue, when one was recognised.
    pub device_class: Option<String>,
    /// Devices that shared the work; power and energy are their sum. Null: one, or unknown.
    #[serde(default, deserialize_with = "count")]
    pub device_count: Option<u64>,
    /// Memory of the device in bytes.
    #[serde(default, deserialize_with = "count")]
    pub device_memory_bytes: Option<u64>,
    /// Whether a CPU emulates the device, as software adapters of WebGPU do.
    pub device_software: Option<bool>,
    /// Version of the driver.
    pub driver: Option<String>,
}

/// What the device was asked to do.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Workload {
    /// The op, such as `matmul` or `attention`; for a ceiling what is driven to its limit.
    pub op: Option<String>,
    /// Name of the kernel that ran, as `perjoule kernels` lists it. An opaque string.
    pub kernel: Option<String>,
    /// Type of inputs and output, such as `bf16`; the weights' type for a model.
    pub dtype: Option<String>,
    /// Type of a model's KV cache, such as `q8_0`.
    pub kv_dtype: Option<String>,
    /// Coarsest type that a model's activations may have been rounded to in products with weights: `f32` where products are exact.
    pub activations: Option<String>,
    /// Shape as the command line takes it, such as `m=1,n=4096,k=4096`.
    pub shape: Option<String>,
    /// The kernel's configuration (tiles and the like), as text; for imported records the other tool's settings that
    /// have no field of their own.
    pub config: Option<String>,
    /// Whether times that `perjoule tune` measured chose the kernel, and not predictions; for a model, whether there were such times.
    pub tuned: Option<bool>,
    /// Where the operands lay when a call began.
    pub cache_state: Option<CacheState>,
    /// Seed of the random data.
    #[serde(default, deserialize_with = "count")]
    pub seed: Option<u64>,
    /// The model's name, or the name of its folder.
    pub model: Option<String>,
    /// Model family, size and weight type, such as `llama 1B bf16`; llama-bench's column of the same name.
    pub model_type: Option<String>,
    /// Parameters of the model.
    #[serde(default, deserialize_with = "count")]
    pub model_n_params: Option<u64>,
    /// Bytes of the weights as held on the device.
    #[serde(default, deserialize_with = "count")]
    pub model_size: Option<u64>,
    /// Prompt tokens of one sequence that are processed in the measured part.
    #[serde(default, deserialize_with = "count")]
    pub n_prompt: Option<u64>,
    /// Tokens of one sequence that are generated in the measured part.
    #[serde(default, deserialize_with = "count")]
    pub n_gen: Option<u64>,
    /// Tokens already in the KV cache when the measured part begins.
    #[serde(default, deserialize_with = "count")]
    pub n_depth: Option<u64>,
    /// Prefill, decode or both, where `n_prompt` and `n_gen` cannot tell because lengths vary or are not published.
    pub phase: Option<Phase>,
    /// Largest number of prompt tokens processed at once (prompt chunk).
    #[serde(default, deserialize_with = "count")]
    pub n_batch: Option<u64>,
    /// Sequences processed side by side.
    #[serde(default, deserialize_with = "count")]
    pub n_parallel: Option<u64>,
    /// Threads of the CPU that work on a launch.
    #[serde(default, deserialize_with = "count")]
    pub n_threads: Option<u64>,
    /// How long an idle worker thread spins before it parks, in microseconds. Spinning costs energy.
    pub spin_budget_us: Option<f64>,
}

impl Workload {
    /// The phase: as stated, else as `n_prompt` and `n_gen` tell it. `None` if nothing tells it.
    pub fn token_phase(&self) -> Option<Phase> {
        self.phase.or(match (self.n_prompt, self.n_gen) {
            (None, _) | (_, None) | (Some(0), Some(0)) => None,
            (_, Some(0)) => Some(Phase::Prefill),
            (Some(0), _) => Some(Phase::Decode),
            _ => Some(Phase::Mixed),
        })
    }

    /// The KV cache's type where it is not the usual one beside such weights, which is theirs where that is a plain float, else f16. So lines that
    /// do not say it, as all before 1.3, are of the usual one.
    pub fn other_kv_dtype(&self) -> Option<&str> {
        let float = self.dtype.as_deref().filter(|dtype| ["f32", "bf16", "f8e4m3"].contains(dtype));
        let usual = float.unwrap_or("f16");
        self.kv_dtype.as_deref().filter(|kv| *kv != usual)
    }

    /// [`Workload::dtype`], with the KV cache's where that is not the usual one: `bf16 (kv q8_0)`.
    pub fn dtypes(&self) -> Option<String> {
        let cache = self.other_kv_dtype().map(|kv| format!("(kv {kv})"));
        let words: Vec<String> = self.dtype.clone().into_iter().chain(cache).collect();
        (!words.is_empty()).then(|| words.join(" "))
    }

    /// The test as llama-bench prints it: `pp512` is a prompt of 512, `tg128` 128 generated tokens, `pp512+tg128` both,
    /// with ` @ d1024` when 1024 tokens are in the KV cache before. `None` if neither prompt nor generation is known.
    pub fn token_test(&self) -> Option<String> {
        let part = |prefix, n: Option<u64>| n.filter(|&n| n > 0).map(|n| format!("{prefix}{n}"));
        let parts: Vec<String> =
            [part("pp", self.n_prompt), part("tg", self.n_gen)].into_iter().flatten().collect();
        let depth = part(" @ d", self.n_depth).unwrap_or_default();
        (!parts.is_empty()).then(|| parts.join("+") + &depth)
    }
}

/// What a model does with tokens in the measured part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Phase {
    /// Prompts only.
    Prefill,
    /// Generation only.
    Decode,
    /// Both, one after the other or, as in serving, side by side. Not comparable with either.
    Mixed,
    /// A phase that this version does not know.
    #[serde(other)]
    Other,
}

/// Where the operands of a call lay when it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum CacheState {
    /// Weights rotate through more than the last-level cache, as they do in a model.
    Rotate,
    /// The same buffers call after call.
    Hot,
    /// Caches are flushed before each call.
    Cold,
    /// A state that this version does not know.
    #[serde(other)]
    Other,
}

impl CacheState {
    /// In a word, as records have it; what this version does not know is `other`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rotate => "rotate",
            Self::Hot => "hot",
            Self::Cold => "cold",
            Self::Other => "other",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Phase, Workload};

    #[test]
    fn a_stated_phase_goes_before_the_lengths() {
        for (n_prompt, n_gen, phase, expected) in [
            (Some(512), Some(0), None, Some(Phase::Prefill)),
            (Some(0), Some(128), None, Some(Phase::Decode)),
            (Some(512), Some(128), None, Some(Phase::Mixed)),
            (Some(0), Some(0), None, None),
            (None, Some(128), None, None),
            (None, None, Some(Phase::Mixed), Some(Phase::Mixed)),
            (Some(0), Some(128), Some(Phase::Mixed), Some(Phase::Mixed)),
        ] {
            let workload = Workload { n_prompt, n_gen, phase, ..Workload::default() };
            assert_eq!(workload.token_phase(), expected);
        }
    }

    #[test]
    fn a_cache_is_named_where_it_is_not_the_usual_one() {
        for (dtype, kv_dtype, expected) in [
            (Some("bf16"), Some("bf16"), Some("bf16")),
            (Some("bf16"), None, Some("bf16")),
            (Some("bf16"), Some("f16"), Some("bf16 (kv f16)")),
            (Some("q4_k"), Some("f16"), Some("q4_k")),
            (Some("q8_0"), Some("q8_0"), Some("q8_0 (kv q8_0)")),
            (None, Some("q8_0"), Some("(kv q8_0)")),
            (None, Some("f16"), None),
        ] {
            let [dtype, kv_dtype] = [dtype, kv_dtype].map(|name: Option<&str>| name.map(String::from));
            let workload = Workload { dtype, kv_dtype, ..Workload::default() };
            assert_eq!(workload.dtypes().as_deref(), expected);
        }
    }

    #[test]
    fn tests_are_named_as_llama_bench_names_them() {
        for (n_prompt, n_gen, n_depth, expected) in [
            (Some(512), Some(0), None, Some("pp512")),
            (Some(0), Some(128), Some(0), Some("tg128")),
            (Some(512), Some(128), Some(1024), Some("pp512+tg128 @ d1024")),
            (None, None, Some(7), None),
        ] {
            let workload = Workload { n_prompt, n_gen, n_depth, ..Workload::default() };
            assert_eq!(workload.token_test().as_deref(), expected);
        }
    }
}
