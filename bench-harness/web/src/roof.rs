//! The device's ceilings, measured in the page.

use crate::clock::Browser;
use anyhow::Result;
use perjoule::DType;
use perjoule_engine::roofs::{Ceiling, Roofs};
use perjoule_engine::sampling::{Clock as _, Effort, Subject, measure};
use perjoule_kernels::device::settled;
use perjoule_record::{Clock, Provenance};
use perjoule_webgpu::WebGpuDevice;
use perjoule_webgpu::ceiling::{Probe, Probes};
use std::time::Duration;

/// A sample is the fastest of so many calls.
const BEST_OF: usize = 5;
/// A call of arithmetic takes about so long.
const CALL: Duration = Duration::from_millis(5);
/// Rounds of arithmetic that a call is first tried with, and at most.
const ROUNDS: (u32, u32) = (8, 1 << 16);

/// A probe as a subject.
struct Probing<'p> {
    probes: &'p mut Probes,
    probe: Probe,
    rounds: u32,
    amount: u64,
    took: Option<Duration>,
}

impl Subject for Probing<'_> {
    async fn call(&mut self, count: u64) -> Result<()> {
        let start = self.probes.stream().record()?;
        self.amount = self.probes.submit(self.probe, self.rounds, count)?;
        let end = self.probes.stream().record()?;
        settled(self.probes.finish()).await?;
        self.took = settled(end.since(&*start)).await?;
        Ok(())
    }

    fn device_time(&self) -> Option<Duration> {
        self.took
    }
}

/// A ceiling, and the clock that timed it.
pub(crate) struct Timed {
    pub(crate) ceiling: Ceiling,
    pub(crate) clock: Clock,
}

/// Measures the ceilings for about `time`, with `bytes` of memory twice.
pub(crate) async fn roofs(
    device: &WebGpuDevice,
    clock: &Browser,
    bytes: u64,
    time: Duration,
    mut each: impl FnMut(&str),
) -> Result<(Roofs, Vec<Timed>)> {
    let mut probes = Probes::new(device, bytes)?;
    let list = probes.list();
    let time = time / list.len() as u32;
    let mut all: Vec<Timed> = Vec::new();
    for probe in list {
        let (op, dtype) = match probe {
            Probe::MultiplyAdd(dtype) => ("multiply_add", Some(dtype)),
            Probe::Read => ("read", None),
            Probe::Copy => ("copy", None),
        };
        each(&dtype.map_or(op.to_string(), |dtype| format!("{op} {dtype}")));
        let bytes = probes.bytes();
        let mut probing = Probing { probes: &mut probes, probe, rounds: ROUNDS.0, amount: 0, took: None };
        if dtype.is_some() {
            // the first call compiles
            probing.call(1).await?;
            let start = clock.now();
            probing.call(4).await?;
            let took = (probing.took.unwrap_or(clock.now() - start) / 4).max(Duration::from_micros(1));
            let rounds = f64::from(ROUNDS.0) * CALL.as_secs_f64() / took.as_secs_f64();
            probing.rounds = (rounds as u32).clamp(ROUNDS.0, ROUNDS.1);
        }
        let effort = Effort { time, repetitions: None, bounded: true };
        let samples = measure(clock, &mut probing, effort).await?.best_of(BEST_OF);
        let timed_by = if probing.took.is_some() { Clock::Device } else { Clock::Host };
        let amount = probing.amount;
        let how = match dtype {
            Some(_) => format!("registers, WGSL, best of {BEST_OF}"),
            None => format!("{} MiB, best of {BEST_OF}", bytes >> 20),
        };
        let provenance = Provenance::Measured;
        let ceiling = Ceiling { op, dtype, measured_on: dtype, how, amount, provenance, samples };
        let widened: &[DType] = match dtype {
            Some(DType::F32) if all.is_empty() => &[DType::BF16],
            _ => &[],
        };
        let widened = widened.iter().map(|&dtype| Timed {
            ceiling: Ceiling {
                dtype: Some(dtype),
                how: format!("that of f32, to which kernels widen {dtype}"),
                provenance: Provenance::Modelled,
                ..ceiling.clone()
            },
            clock: timed_by,
        });
        let widened: Vec<_> = widened.collect();
        all.push(Timed { ceiling, clock: timed_by });
        all.extend(widened);
    }
    if !all.iter().any(|timed| timed.ceiling.dtype == Some(DType::F16)) {
        let f32 = &all[0];
        let ceiling = Ceiling {
            dtype: Some(DType::F16),
            how: "that of f32, to which kernels widen f16: this device has no arithmetic on it".into(),
            provenance: Provenance::Modelled,
            ..f32.ceiling.clone()
        };
        let clock = f32.clock;
        all.push(Timed { ceiling, clock });
    }
    let mut roofs = Roofs::default();
    for timed in &all {
        let ceiling = &timed.ceiling;
        if let Some(best) = ceiling.best() {
            roofs.raise((ceiling.op, ceiling.measured_on), best);
        }
        roofs.list.push(ceiling.clone());
    }
    Ok((roofs, all))
}
