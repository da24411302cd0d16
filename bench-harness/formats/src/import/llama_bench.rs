//! llama-bench's fields as a record. Their names are those of `test::get_fields` in `tools/llama-bench/llama-bench.cpp` of
//! ggml-org/llama.cpp (read at commit 0104b151 of 2026, and older ones back to 2023).

use perjoule_record::{Clock, EnergyKind, Kind, Record, stats};
use serde_json::Value;

use super::row::{Field, Row};
use super::{ImportError, Sink};

/// Settings that have no field of their own, kept as text in `config`.
pub(crate) const SETTINGS: [&str; 28] = [
    "n_ubatch",
    "type_k",
    "type_v",
    "n_gpu_layers",
    "n_cpu_moe",
    "split_mode",
    "main_gpu",
    "no_kv_offload",
    "flash_attn",
    "devices",
    "tensor_split",
    "tensor_buft_overrides",
    "use_mmap",
    "use_direct_io",
    "load_mode",
    "embeddings",
    "no_op_offload",
    "no_host",
    "repack",
    "fit_target",
    "fit_min_ctx",
    "cpu_mask",
    "cpu_strict",
    "poll",
    "f16_kv",
    "mul_mat_q",
    "size",
    "params",
];

/// Until 2024 a flag for each backend stood in place of `backends`; the first that is set names it.
const FLAGS: [(&str, &str); 9] = [
    ("cuda", "CUDA"),
    ("opencl", "OpenCL"),
    ("vulkan", "Vulkan"),
    ("kompute", "Kompute"),
    ("metal", "Metal"),
    ("sycl", "SYCL"),
    ("rpc", "RPC"),
    ("gpu_blas", "GPU BLAS"),
    ("blas", "BLAS"),
];

/// Adds the row's record to the sink, or a warning where it is none.
pub(super) fn push(row: &Row, sink: &mut Sink<'_>) -> Result<(), ImportError> {
    let mut record = sink.record(Kind::Tokens, "llama-bench");
    let mut problems = Vec::new();
    if let Err(message) = fill(&mut record, row, &mut problems) {
        sink.warn(row.line, format!("{message}; this result is left out"));
        return Ok(());
    }
    for problem in problems {
        sink.warn(row.line, problem);
    }
    if let Some(samples) = &record.timing.samples_ns
        && let Some(left) = sink.resamplable.checked_sub(samples.len())
    {
        sink.resamplable = left;
        record.timing.ci95_ns = stats::bootstrap_median_ci95_in_order(samples, 0);
    }
    sink.push(record)
}

/// Fills the record. An error says why the row means nothing; `problems` are fields that stay null.
fn fill(record: &mut Record, row: &Row, problems: &mut Vec<String>) -> Result<(), String> {
    // Without these the phase would be mistaken: a test of both for one of prefill.
    let essential = |key: &str| row.count(key)?.ok_or_else(|| format!("`{key}` is missing"));
    let (n_prompt, n_gen) = (essential("n_prompt")?, essential("n_gen")?);
    let tokens = n_prompt.checked_add(n_gen).filter(|&tokens| tokens > 0);
    let tokens =
        tokens.ok_or_else(|| format!("{n_prompt} prompt and {n_gen} generated tokens are no test"))?;
    let workload = &mut record.workload;
    (workload.n_prompt, workload.n_gen, workload.n_depth) =
        (Some(n_prompt), Some(n_gen), row.count("n_depth")?);

    let mut soft = Soft { problems };
    // llama-bench runs one sequence; its n_batch is the chunk of a prompt. Only perjoule's own export says otherwise.
    workload.n_parallel = Some(soft.keep(row.count("n_parallel")).unwrap_or(1));
    // None of these is 0: that is how perjoule's own export says unknown where llama-bench has no word for it.
    let some = |count: Option<u64>| count.filter(|&count| count > 0);
    workload.n_batch = some(soft.keep(row.count("n_batch")));
    workload.n_threads = some(soft.keep(row.count("n_threads")));
    let file = soft.keep(row.text("model_filename"));
    workload.model = file.and_then(|path| path.rsplit(['/', '\\']).next()).map(Into::into);
    workload.model_type = soft.keep(row.text("model_type")).map(Into::into);
    workload.model_size = some(soft.keep(row.count("model_size")));
    workload.model_n_params = some(soft.keep(row.count("model_n_params")));
    workload.dtype = soft.keep(row.text("dtype")).map(Into::into);
    // One word here for what are two settings there: where they differ it is unknown.
    let [k, v] = ["type_k", "type_v"].map(|key| soft.keep(row.text(key)));
    workload.kv_dtype = k.filter(|_| k == v).map(Into::into);
    workload.config = row.settings(&SETTINGS);

    let backend = soft.keep(row.text("backends")).or_else(|| soft.keep(row.text("backend")));
    record.device.backend = backend.map(Into::into).or_else(|| flagged(row));
    let cpu = soft.keep(row.text("cpu_info"));
    let gpu = soft.keep(row.text("gpu_info"));
    record.environment.cpu_model = cpu.map(Into::into);
    // Without layers on the GPU both may have worked: neither is *the* device.
    let shared = gpu.is_some() && row.spelled("n_gpu_layers").as_deref() == Some("0");
    record.device.device_name = gpu.or(cpu).filter(|_| !shared).map(Into::into);

    record.test_time = soft.keep(row.text("test_time")).and_then(|time| {
        let known = is_time(time);
        soft.note(!known, || format!("`test_time` is {time:?}, no time in RFC 3339"));
        known.then(|| time.into())
    });
    // what it says without a repository
    let commit = soft.keep(row.text("build_commit")).filter(|commit| *commit != "unknown");
    let number = row.spelled("build_number").filter(|number| number != "0");
    record.source.source_version = match (commit, number) {
        (Some(commit), Some(number)) => Some(format!("{commit} ({number})")),
        (commit, number) => commit.map(Into::into).or(number),
    };
    times(record, row, tokens, &mut soft)?;
    energy(record, row, &mut soft);
    Ok(())
}

fn times(record: &mut Record, row: &Row, tokens: u64, soft: &mut Soft<'_>) -> Result<(), String> {
    let mut impossible = Vec::new();
    let mut read = |field: Field<f64>| {
        field.unwrap_or_else(|message| {
            impossible.push(message);
            None
        })
    };
    let timing = &mut record.timing;
    timing.avg_ts = read(row.positive("avg_ts"));
    timing.avg_ns = read(row.positive("avg_ns"));
    let mut samples = Vec::new();
    match row.get("samples_ns") {
        Some(Value::Array(values)) => {
            for value in values {
                let time = value.as_f64().filter(|x| *x > 0.0 && x.is_finite());
                if time.is_none() {
                    impossible
                        .push(format!("`samples_ns` holds {}: impossible", super::shown(&value.to_string())));
                }
                samples.push(time.unwrap_or(f64::NAN));
            }
        }
        Some(other) => {
            impossible.push(format!("`samples_ns` is {}, no list", super::shown(&other.to_string())))
        }
        None => {}
    }
    // The mean of one sample has no deviation, which llama-bench writes as 0.
    let deviation = |field: Field<f64>| {
        field.and_then(|x| match x {
            Some(x) if x < 0.0 => Err(format!("a standard deviation of {x} is impossible")),
            x => Ok(x),
        })
    };
    timing.stddev_ts = soft.keep(deviation(row.number("stddev_ts")));
    timing.stddev_ns = soft.keep(deviation(row.number("stddev_ns")));
    if !samples.is_empty() {
        timing.median_ns = stats::median(&samples);
        timing.samples_ns = Some(samples);
        timing.calls_per_sample = Some(1);
        if timing.avg_ts.is_none() {
            timing.derive_token_rates(tokens);
        }
    }
    // Synchronised work under the monotonic clock of the host.
    timing.clock = Some(Clock::Host);
    if impossible.is_empty()
        && timing.avg_ts.is_none()
        && timing.avg_ns.is_none()
        && timing.samples_ns.is_none()
    {
        return Err("it holds neither a time nor a rate".into());
    }
    const SHOWN: usize = 3;
    impossible.truncate(SHOWN);
    for message in impossible {
        soft.note(true, || format!("{message}; the result is marked invalid"));
        record.invalidate(message);
    }
    if row.get("valid") == Some(&Value::Bool(false)) {
        record.invalidate("marked invalid in the file");
    }
    Ok(())
}

/// The energy fields that perjoule adds to llama-bench's; the tool itself has none.
fn energy(record: &mut Record, row: &Row, soft: &mut Soft<'_>) {
    let energy = &mut record.energy;
    energy.joules_per_output_token = soft.keep(row.positive("joules_per_output_token"));
    energy.joules_per_total_token = soft.keep(row.positive("joules_per_total_token"));
    energy.avg_power_w = soft.keep(row.positive("avg_power_w"));
    energy.energy_source = soft.keep(row.text("energy_source")).map(Into::into);
    energy.energy_boundary = soft.keep(row.text("energy_boundary")).map(Into::into);
    energy.energy_kind = soft.keep(row.text("energy_kind")).map(|kind| match kind {
        "measured" => EnergyKind::Measured,
        "modelled" => EnergyKind::Modelled,
        _ => EnergyKind::Other,
    });
}

fn flagged(row: &Row) -> Option<String> {
    let set = |key| match row.get(key) {
        Some(Value::Bool(set)) => Some(*set),
        Some(Value::String(text)) if row.textual => Some(text.trim() == "1"),
        _ => None,
    };
    let mut known = FLAGS.iter().filter_map(|(key, name)| Some((set(key)?, name))).peekable();
    known.peek()?;
    Some(known.find(|(set, _)| *set).map_or("CPU", |(_, name)| name).into())
}

/// Whether `text` is `2025-04-24T11:58:50Z`, the form that llama-bench writes.
fn is_time(text: &str) -> bool {
    let form = b"0000-00-00T00:00:00Z";
    let fits = |(byte, form): (u8, &u8)| if *form == b'0' { byte.is_ascii_digit() } else { byte == *form };
    text.len() == form.len() && text.bytes().zip(form).all(fits)
}

/// Turns fields that cannot be what they should into null and a note.
struct Soft<'a> {
    problems: &'a mut Vec<String>,
}

impl Soft<'_> {
    fn keep<T>(&mut self, field: Field<T>) -> Option<T> {
        field.unwrap_or_else(|message| {
            self.problems.push(format!("{message}; it stays unknown"));
            None
        })
    }

    fn note(&mut self, happened: bool, message: impl FnOnce() -> String) {
        if happened {
            self.problems.push(message());
        }
    }
}
