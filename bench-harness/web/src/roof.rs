//! The device's ceilings, measured in the page.

use crate::clock::Browser;
use crate::events::stopped;
use anyhow::Result;
use perjoule::DType;
use perjoule_engine::Interrupted;
use perjoule_engine::roofs::{Ceiling, Roofs};
use perjoule_engine::sampling::{Clock as _, Effort, Subject, measure};
use perjoule_kernels::device::settled;
use perjoule_record::Provenance;
use perjoule_webgpu::WebGpuDevice;
use perjoule_webgpu::ceiling::{Arithmetic, Probes};
use std::time::Duration;

/// A sample is the fastest of so many calls.
const BEST_OF: usize = 5;
/// A call of arithmetic takes about so long.
const CALL: Duration = Duration::from_millis(5);
/// Rounds of arithmetic that a call is first tried with, and at most.
const ROUNDS: (u32, u32) = (8, 1 << 16);

/// What is driven to its limit.
#[derive(Clone, Copy)]
enum Which {
    Arithmetic(Arithmetic),
    Read,
    Copy,
}

/// A probe as a subject.
struct Probing<'p> {
    probes: &'p Probes,
    which: Which,
    amount: u64,
}

impl Subject for Probing<'_> {
    async fn call(&mut self, count: u64) -> Result<()> {
        let mut last = None;
        for _ in 0..count {
            let (amount, done) = match self.which {
                Which::Arithmetic(arithmetic) => self.probes.compute(arithmetic)?,
                Which::Read => self.probes.read()?,
                Which::Copy => self.probes.copy()?,
            };
            self.amount = amount;
            last = Some(done);
        }
        // the queue is in order
        match last {
            Some(done) => Ok(settled(done).await?),
            None => Ok(()),
        }
    }

    async fn before_sample(&mut self) -> Result<()> {
        if stopped() { Err(Interrupted.into()) } else { Ok(()) }
    }
}

/// Measures the ceilings for about `time`, with `bytes` of memory twice.
pub(crate) async fn roofs(
    device: &WebGpuDevice,
    clock: &Browser,
    bytes: u64,
    time: Duration,
    mut each: impl FnMut(&str),
) -> Result<Roofs> {
    let mut probes = Probes::new(device, bytes)?;
    let arithmetic: Vec<Arithmetic> = probes.arithmetic().collect();
    let all = arithmetic.into_iter().map(Which::Arithmetic).chain([Which::Read, Which::Copy]);
    let all: Vec<Which> = all.collect();
    let effort = Effort { time: time / all.len() as u32, repetitions: None, bounded: true };
    let mut roofs = Roofs::default();
    for which in all {
        let (op, dtype) = match which {
            Which::Arithmetic(arithmetic) => (arithmetic.name(), Some(arithmetic.dtype())),
            Which::Read => ("read", None),
            Which::Copy => ("copy", None),
        };
        each(&dtype.map_or(op.to_string(), |dtype| format!("{op} {dtype}")));
        if dtype.is_some() {
            probes.set_rounds(ROUNDS.0)?;
            let mut probing = Probing { probes: &probes, which, amount: 0 };
            // the first call compiles
            probing.call(1).await?;
            let start = clock.now();
            probing.call(4).await?;
            let took = ((clock.now() - start) / 4).max(Duration::from_micros(1));
            let rounds = f64::from(ROUNDS.0) * CALL.as_secs_f64() / took.as_secs_f64();
            probes.set_rounds((rounds as u32).clamp(ROUNDS.0, ROUNDS.1))?;
        }
        let mut probing = Probing { probes: &probes, which, amount: 0 };
        let samples = measure(clock, &mut probing, effort).await?.best_of(BEST_OF);
        let amount = probing.amount;
        let how = match dtype {
            Some(dtype) => format!("registers, WGSL {dtype}, best of {BEST_OF}"),
            None => format!("{} MiB, best of {BEST_OF}", probes.bytes() >> 20),
        };
        let provenance = Provenance::Measured;
        let ceiling = Ceiling { op, dtype, measured_on: dtype, how, amount, provenance, samples };
        if let Some(best) = ceiling.best() {
            roofs.raise((op, dtype), best);
        }
        roofs.list.push(ceiling);
    }
    // what computes on a type by itself replaces what widens it
    for dtype in [DType::F16, DType::BF16] {
        let own = |ceiling: &&Ceiling| ceiling.dtype == Some(dtype);
        let f32 = roofs.list.iter().find(|ceiling| ceiling.dtype == Some(DType::F32));
        let Some(f32) = f32.filter(|_| !roofs.list.iter().any(|c| own(&c))).cloned() else { continue };
        let how = format!("that of f32, to which kernels widen {dtype}");
        roofs.list.push(Ceiling { dtype: Some(dtype), how, provenance: Provenance::Modelled, ..f32 });
    }
    Ok(roofs)
}
