//! Tasks of the ML.ENERGY leaderboard, version 3: `public/data/tasks/*.json` of github.com/ml-energy/leaderboard, as of
//! February 2026. Its About page: GPU energy in the steady state, read by Zeus; sums over the GPUs of a configuration.

use std::fmt;

use perjoule_record::{EnergyKind, Kind, Phase, Record};
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use super::json::{Elements, Lines, broken, row};
use super::row::Row;
use super::{ImportError, Sink};

/// Settings and figures that have no field of their own.
const SETTINGS: [&str; 21] = [
    "avg_batch_size",
    "avg_output_len",
    "tensor_parallel",
    "expert_parallel",
    "data_parallel",
    "ulysses_degree",
    "ring_degree",
    "total_params_billions",
    "activated_params_billions",
    "median_itl_ms",
    "p90_itl_ms",
    "p95_itl_ms",
    "p99_itl_ms",
    "batch_latency_s",
    "inference_steps",
    "image_height",
    "image_width",
    "video_height",
    "video_width",
    "num_frames",
    "fps",
];

/// Reads the configurations of a task.
pub(super) fn read(text: &str, sink: &mut Sink<'_>) -> Result<(), ImportError> {
    let first = sink.records.len();
    let mut lines = Lines::new(text);
    let mut found = Task { failure: None, task: None, listed: false };
    let each = |element: &str, offset: usize| {
        let line = lines.at(offset);
        match row(element, line) {
            Ok(row) => push(&row, sink),
            Err(message) => {
                sink.warn(line, message);
                Ok(())
            }
        }
    };
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let outcome = deserializer
        .deserialize_map(Fields { text, each, found: &mut found })
        .and_then(|()| deserializer.end());
    if let Some(failure) = found.failure {
        return Err(failure);
    }
    if !found.listed && sink.records.len() == first && sink.warnings.is_empty() {
        return Err(sink.not_format("it has no list of configurations"));
    }
    if let Err(error) = outcome {
        sink.warn(error.line() as u64, broken(&error, text));
    }
    if let Some(task) = found.task {
        for record in &mut sink.records[first..] {
            let config = record.workload.config.take();
            record.workload.config =
                Some(std::iter::once(format!("task={task}")).chain(config).collect::<Vec<_>>().join(","));
        }
    }
    Ok(())
}

struct Task {
    failure: Option<ImportError>,
    task: Option<String>,
    listed: bool,
}

struct Fields<'t, 'f, F> {
    text: &'t str,
    each: F,
    found: &'f mut Task,
}

impl<'de, F: FnMut(&'de str, usize) -> Result<(), ImportError>> Visitor<'de> for Fields<'de, '_, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a task of the ML.ENERGY leaderboard")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut entries: A) -> Result<(), A::Error> {
        while let Some(key) = entries.next_key::<String>()? {
            match key.as_str() {
                "configurations" => {
                    self.found.listed = true;
                    let failure =
                        entries.next_value_seed(Elements { text: self.text, each: &mut self.each })?;
                    self.found.failure = self.found.failure.take().or(failure);
                }
                "task" => self.found.task = entries.next_value::<Value>()?.as_str().map(Into::into),
                _ => {
                    entries.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}

fn push(row: &Row, sink: &mut Sink<'_>) -> Result<(), ImportError> {
    let mut record = sink.record(Kind::Samples, "ML.ENERGY leaderboard");
    let mut problems = Vec::new();
    fill(&mut record, row, &mut problems);
    for problem in problems {
        sink.warn(row.line, problem);
    }
    let (timing, energy) = (&record.timing, &record.energy);
    let known =
        [timing.avg_output_ts, timing.throughput, energy.joules_per_output_token, energy.joules_per_call];
    if record.valid && known.iter().all(Option::is_none) {
        sink.warn(row.line, "it holds neither a rate nor an energy; this configuration is left out");
        return Ok(());
    }
    sink.push(record)
}

fn fill(record: &mut Record, row: &Row, problems: &mut Vec<String>) {
    let mut soft = Vec::new();
    let mut impossible = Vec::new();
    macro_rules! keep {
        ($list:ident, $field:expr) => {
            $field.unwrap_or_else(|message| {
                $list.push(message);
                None
            })
        };
    }
    record.device.device_name = keep!(soft, row.text("gpu_model")).map(Into::into);
    record.device.device_count = keep!(soft, row.count("num_gpus"));
    let workload = &mut record.workload;
    workload.model = keep!(soft, row.text("model_id")).map(Into::into);
    workload.dtype = keep!(soft, row.text("weight_precision")).map(|precision| {
        match precision {
            "bfloat16" => "bf16",
            "float16" => "f16",
            "float32" => "f32",
            other => other,
        }
        .into()
    });
    workload.config = row.settings(&SETTINGS);

    let (timing, energy) = (&mut record.timing, &mut record.energy);
    energy.avg_power_w = keep!(impossible, row.positive("avg_power_watts"));
    let output = keep!(impossible, row.positive("output_throughput_tokens_per_sec"));
    energy.joules_per_output_token = keep!(impossible, row.positive("energy_per_token_joules"));
    if output.is_some() || energy.joules_per_output_token.is_some() || row.get("max_num_seqs").is_some() {
        // A server processes prompts and generates side by side, and its energy is that of both.
        record.kind = Kind::Tokens;
        workload.phase = Some(Phase::Mixed);
        timing.avg_output_ts = output;
        workload.n_parallel = keep!(soft, row.count("max_num_seqs"));
        energy.joules_per_call = keep!(impossible, row.positive("energy_per_request_joules"));
    } else {
        workload.n_parallel = keep!(soft, row.count("batch_size"));
        for (rate, joules, unit) in [
            ("throughput_images_per_sec", "energy_per_image_joules", "images/s"),
            ("throughput_videos_per_sec", "energy_per_video_joules", "videos/s"),
        ] {
            if row.get(rate).is_some() || row.get(joules).is_some() {
                timing.throughput = keep!(impossible, row.positive(rate));
                timing.throughput_unit = Some(unit.into());
                energy.joules_per_call = keep!(impossible, row.positive(joules));
            }
        }
    }
    let joules = [energy.joules_per_output_token, energy.joules_per_call, energy.avg_power_w];
    if joules.iter().any(Option::is_some) {
        energy.energy_kind = Some(EnergyKind::Measured);
        energy.energy_source = Some("zeus".into());
        energy.energy_boundary = Some("gpu".into());
    }
    problems.extend(soft.into_iter().map(|message| format!("{message}; it stays unknown")));
    for message in impossible {
        problems.push(format!("{message}; the result is marked invalid"));
        record.invalidate(message);
    }
}
