//! The roof that kernels of a device are held against.

use perjoule_record::{Kind, Provenance, Record};
use std::collections::BTreeMap;

use super::charts::RANGE;
use super::data::{self, clip};
use crate::report::units::si;

/// An upper limit of arithmetic, for one dtype and those that are taken to equal it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Peak {
    pub(crate) gflops: f64,
    /// Dtypes that were measured, and those that are taken to equal them.
    pub(crate) measured: Vec<String>,
    pub(crate) modelled: Vec<String>,
}

impl Peak {
    /// Names and rate; what is modelled stands on a line of its own.
    pub(crate) fn label(&self) -> String {
        let list = |list: &[String]| list.join(", ");
        let rate = si(self.gflops);
        match (self.measured.is_empty(), self.modelled.is_empty()) {
            (false, true) => format!("{} {rate} GFLOP/s", list(&self.measured)),
            (false, false) => {
                format!("{} {rate} GFLOP/s\nmodelled alike: {}", list(&self.measured), list(&self.modelled))
            }
            (true, _) => format!("{} {rate} GFLOP/s\nmodelled", list(&self.modelled)),
        }
    }
}

/// The ceilings of a device: the best that any probe of these records saw.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Roofs {
    pub(crate) peaks: Vec<Peak>,
    /// Bandwidth of memory, 1e9 bytes a second.
    pub(crate) gbps: Option<f64>,
}

impl Roofs {
    pub(crate) fn of(records: &[Record], device: &str) -> Self {
        let usable = |value: Option<f64>| value.filter(|x| RANGE.contains(x));
        // rates by dtype as ceilings, then what kernels were held against
        let mut ceilings: BTreeMap<&str, (f64, bool)> = BTreeMap::new();
        let mut held: BTreeMap<&str, f64> = BTreeMap::new();
        let mut gbps: Option<f64> = None;
        let raise = |best: &mut Option<f64>, value: Option<f64>| {
            *best = best.map_or(value, |best| Some(value.map_or(best, |value| best.max(value))));
        };
        for record in records.iter().filter(|r| r.valid && data::device(r) == device) {
            let dtype = record.workload.dtype.as_deref().unwrap_or("");
            match record.kind {
                Kind::Ceiling if record.workload.op.as_deref() == Some("multiply_add") => {
                    if let Some(rate) = usable(record.timing.gflops) {
                        let modelled = record.provenance == Provenance::Modelled;
                        let entry = ceilings.entry(dtype).or_insert((rate, modelled));
                        *entry = (entry.0.max(rate), entry.1 && modelled);
                    }
                }
                Kind::Ceiling if record.workload.op.as_deref() == Some("read") => {
                    raise(&mut gbps, usable(record.timing.gbps));
                }
                Kind::Kernel => {
                    raise(&mut gbps, usable(record.roof.roof_gbps));
                    if let Some(rate) = usable(record.roof.roof_gflops) {
                        let entry = held.entry(dtype).or_insert(rate);
                        *entry = entry.max(rate);
                    }
                }
                _ => {}
            }
        }
        let mut peaks: Vec<Peak> = Vec::new();
        // measured ones first: a modelled one equal to it joins it
        for pass in [false, true] {
            for (&dtype, &(rate, modelled)) in ceilings.iter().filter(|(_, (_, modelled))| *modelled == pass)
            {
                let same = |peak: &&mut Peak| (peak.gflops / rate - 1.0).abs() < 0.01;
                let peak = match peaks.iter_mut().find(same) {
                    Some(peak) => peak,
                    None => {
                        peaks.push(Peak { gflops: rate, measured: Vec::new(), modelled: Vec::new() });
                        let last = peaks.len() - 1;
                        &mut peaks[last]
                    }
                };
                if modelled { &mut peak.modelled } else { &mut peak.measured }.push(clip(dtype));
            }
        }
        for (dtype, rate) in held {
            let shown = clip(dtype);
            let names = |peak: &Peak| peak.measured.contains(&shown) || peak.modelled.contains(&shown);
            let near = |peak: &Peak| (peak.gflops / rate - 1.0).abs() < 0.01;
            if let Some(i) = peaks.iter().position(names) {
                peaks[i].gflops = peaks[i].gflops.max(rate);
            } else if let Some(i) = peaks.iter().position(near) {
                peaks[i].measured.push(shown);
            } else {
                peaks.push(Peak { gflops: rate, measured: vec![shown], modelled: Vec::new() });
            }
        }
        Roofs { peaks, gbps }
    }
}
