//! What other hardware would do with the models in the records, by the catalogue: predicted, so modelled, each with its band.

use anyhow::{Result, bail};
use perjoule_catalogue::{Catalogue, Class, Prediction};
use perjoule_record::{EnergyKind, Environment, Interval, Kind, Phase, Provenance, Record};

use crate::compare::row::predict_on;
use crate::compare::workload::Load;
use crate::report::one_line;

/// Records of predictions for each class and each distinct workload of a model in `records`, and why some are missing.
pub(crate) fn predicted(records: &[Record], classes: &[String]) -> Result<(Vec<Record>, Vec<String>)> {
    let catalogue = Catalogue::builtin();
    let classes = classes.iter().map(|class| Ok(catalogue.find(class)?)).collect::<Result<Vec<_>>>()?;
    let mut list = Vec::new();
    let mut missing: Vec<String> = Vec::new();
    let mut workloads: Vec<(Load, &Record)> = Vec::new();
    for record in records.iter().filter(|r| r.kind == Kind::Tokens && r.provenance == Provenance::Measured) {
        let load = Load::of(record);
        if !workloads.iter().any(|(other, _)| *other == load) {
            workloads.push((load, record));
        }
    }
    if workloads.is_empty() && !classes.is_empty() {
        bail!("--class predicts the models of token results, and these records have none");
    }
    for class in classes {
        for (load, record) in &workloads {
            let model = one_line(record.workload.model.as_deref().unwrap_or("a model"));
            let why = match load.modelled() {
                Ok(work) => match predict_on(class, None, &work) {
                    (devices, Ok(prediction)) => {
                        list.push(as_record(record, class, devices, &prediction));
                        continue;
                    }
                    (_, Err(why)) => format!("no prediction of {model} on {}: {why}", class.id),
                },
                Err(why) => format!("no prediction of {model}: {why}"),
            };
            if !missing.contains(&why) {
                missing.push(why);
            }
        }
    }
    Ok((list, missing))
}

/// The prediction as a record, so that tables and charts treat it as any other modelled figure.
fn as_record(of: &Record, class: &Class, devices: u32, prediction: &Prediction) -> Record {
    let mut record = Record::new(Kind::Tokens, &Environment::default());
    record.test_time = None;
    record.provenance = Provenance::Modelled;
    record.device.device_class = Some(class.id.clone());
    record.device.device_name = Some(class.name.clone());
    record.device.device_count = Some(devices.into());
    record.workload = of.workload.clone();
    (record.workload.seed, record.workload.n_threads) = (None, None);
    let w = &record.workload;
    let of_all = |n: u64| n as f64 * w.n_parallel.unwrap_or(1) as f64;
    let all = of_all(w.n_prompt.unwrap_or(0).saturating_add(w.n_gen.unwrap_or(0)));
    // what a prediction counts: generated tokens in serving, where a record's rate counts those of prompts too
    let tokens = if w.token_phase() == Some(Phase::Mixed) { of_all(w.n_gen.unwrap_or(0)) } else { all };
    let rate = prediction.tokens_per_s;
    record.timing.avg_ts = Some(rate.value * all / tokens);
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
        e.joules_per_total_token = Some(j.value * tokens / all);
        if w.n_gen.unwrap_or(0) > 0 {
            e.joules_per_output_token = Some(j.value);
        }
    }
    record
}
