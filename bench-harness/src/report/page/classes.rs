//! What other hardware would do with the models in the records, by the catalogue: predicted, so modelled, each with its band.

use anyhow::{Result, bail};
use perjoule_catalogue::{Catalogue, Dtype, Model, ModelShape, Phase, Stack, Workload};
use perjoule_record::{EnergyKind, Environment, Interval, Kind, Provenance, Record};

use super::data::phase;

/// Records of predictions for each class and each distinct workload of a model in `records`, and why some are missing.
pub(crate) fn predicted(records: &[Record], classes: &[String]) -> Result<(Vec<Record>, Vec<String>)> {
    let catalogue = Catalogue::builtin();
    let classes = classes.iter().map(|class| Ok(catalogue.find(class)?)).collect::<Result<Vec<_>>>()?;
    let mut list = Vec::new();
    let mut missing: Vec<String> = Vec::new();
    let mut workloads: Vec<&Record> = Vec::new();
    for record in records.iter().filter(|r| r.kind == Kind::Tokens && r.provenance == Provenance::Measured) {
        let key = |r: &Record| {
            let w = &r.workload;
            (w.model.clone(), w.dtype.clone(), w.n_prompt, w.n_gen, w.n_depth, w.n_parallel)
        };
        if !workloads.iter().any(|other| key(other) == key(record)) {
            workloads.push(record);
        }
    }
    if workloads.is_empty() && !classes.is_empty() {
        bail!("--class predicts the models of token results, and these records have none");
    }
    for class in classes {
        for record in &workloads {
            let load = match load(record) {
                Ok(load) => load,
                Err(why) => {
                    if !missing.contains(&why) {
                        missing.push(why);
                    }
                    continue;
                }
            };
            match Model::builtin().predict(class, 1, &load) {
                Ok(prediction) => list.push(as_record(record, &class.id, &class.name, &prediction)),
                Err(why) => {
                    let model = record.workload.model.as_deref().unwrap_or("a model");
                    let why = format!("no prediction of {model} on {}: {why}", class.id);
                    if !missing.contains(&why) {
                        missing.push(why);
                    }
                }
            }
        }
    }
    Ok((list, missing))
}

fn shape(model: &str) -> Option<ModelShape> {
    if let Some(shape) = ModelShape::builtin().get(model) {
        return Some(*shape);
    }
    let geometry = perjoule_model::zoo::geometry(model).ok()?;
    let windows: Vec<usize> = geometry.layers.iter().filter_map(|layer| layer.attention.window()).collect();
    Some(ModelShape {
        params: geometry.n_params() as f64 / 1e9,
        active_params: geometry.n_active_params() as f64 / 1e9,
        layers: geometry.layers.len() as u32,
        hidden: geometry.hidden as u32,
        kv_heads: geometry.kv_heads as u32,
        head_dim: geometry.head_dim as u32,
        vocab: geometry.vocab as u32,
        tied: geometry.tied_head,
        window: windows.first().map(|&window| window as u32),
        windowed: windows.len() as u32,
    })
}

fn load(record: &Record) -> Result<Workload, String> {
    let w = &record.workload;
    let name = w.model.as_deref().unwrap_or("");
    let model = shape(name).ok_or_else(|| format!("no prediction of {name}: its shape is not known"))?;
    let dtype = match w.dtype.as_deref() {
        Some("f32") => Dtype::F32,
        Some("bf16") => Dtype::Bf16,
        Some("f16") => Dtype::F16,
        Some("f8e4m3") => Dtype::Fp8,
        Some("q4_0") => Dtype::Q4_0,
        Some("q4_k") => Dtype::Q4KM,
        Some("mxfp4") => Dtype::Mxfp4,
        other => {
            return Err(format!(
                "no prediction of {name}: the catalogue has no format {}",
                other.unwrap_or("")
            ));
        }
    };
    let phase = match phase(record) {
        "prefill" => Phase::Prefill,
        "decode" => Phase::Decode,
        _ => return Err(format!("no prediction of {name}: prefill and decode in one result")),
    };
    let size = |n: Option<u64>| u32::try_from(n.unwrap_or(0)).unwrap_or(u32::MAX);
    Ok(Workload {
        model,
        dtype,
        kv_dtype: if dtype == Dtype::F32 { Dtype::F32 } else { Dtype::Bf16 },
        phase,
        stack: Stack::Serving,
        n_parallel: w.n_parallel.unwrap_or(1) as f64,
        n_prompt: if phase == Phase::Decode { size(w.n_depth).max(1) } else { size(w.n_prompt) },
        n_gen: size(w.n_gen),
    })
}

/// The prediction as a record, so that tables and charts treat it as any other modelled figure.
fn as_record(of: &Record, id: &str, name: &str, prediction: &perjoule_catalogue::Prediction) -> Record {
    let mut record = Record::new(Kind::Tokens, &Environment::default());
    record.test_time = None;
    record.provenance = Provenance::Modelled;
    record.device.device_class = Some(id.to_owned());
    record.device.device_name = Some(name.to_owned());
    record.workload = of.workload.clone();
    (record.workload.seed, record.workload.n_threads) = (None, None);
    let w = &record.workload;
    let tokens = w.n_prompt.unwrap_or(0).saturating_add(w.n_gen.unwrap_or(0)) as f64;
    let tokens = tokens * w.n_parallel.unwrap_or(1) as f64;
    let rate = prediction.tokens_per_s;
    record.timing.avg_ts = Some(rate.value);
    record.timing.median_ns = Some(tokens * 1e9 / rate.value);
    record.timing.ci95_ns = Some(Interval { lo: tokens * 1e9 / rate.high, hi: tokens * 1e9 / rate.low });
    record.roof.roof_fraction = Some(prediction.share_of_roof);
    if let Some(power) = &prediction.board {
        let j = power.joules_per_token;
        let e = &mut record.energy;
        e.energy_kind = Some(EnergyKind::Modelled);
        e.energy_source = Some(format!("catalogue of hardware, 90 % band. {}", prediction.calibration));
        e.energy_boundary = Some("board".into());
        e.joules = Some(j.value * tokens);
        e.energy_ci95 = Some(Interval { lo: j.low * tokens, hi: j.high * tokens });
        e.avg_power_w = Some(power.watts.value);
        e.joules_per_total_token = Some(j.value);
        if w.n_gen.unwrap_or(0) > 0 {
            e.joules_per_output_token = Some(j.value);
        }
    }
    record
}
