//! Prints the joules of a busy loop, and what keeps other meters from being used.
//!
//! `cargo run --release --example busy_loop -- [TDP_W [CORES_HERE CORES_OF_PACKAGE]]`

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use perjoule_meter::{Idle, Meter, Options, PowerModel, Window, discover};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut model = PowerModel::new("CPU of this machine", 100.0);
    if let Some(tdp) = arguments.first() {
        model.tdp_w = tdp.parse()?;
    }
    if let [_, here, whole] = &arguments[..] {
        model.share = (here.parse()?, whole.parse()?);
    }

    let found = discover(&Options { models: vec![model], ..Options::default() });
    for missing in &found.unavailable {
        println!("no {} for {}: {}", missing.origin, missing.what, missing.reason);
        if let Some(fix) = &missing.fix {
            println!("  fix: {fix}");
        }
    }
    for meter in &found.meters {
        report(meter)?;
    }
    Ok(())
}

fn report(meter: &Arc<dyn Meter>) -> Result<(), Box<dyn std::error::Error>> {
    let info = meter.info();
    println!("{} ({}, {}, {})", info.name, info.source, info.boundary, info.kind);
    let window = info.window_for(0.01).max(Duration::from_secs(1));

    let idle = Idle::measure(meter, window)?;
    let busy = Window::start(meter.clone())?;
    let start = Instant::now();
    let mut passes = 0u64;
    while start.elapsed() < window {
        black_box((0..1_000_000u64).fold(0, |sum, i| black_box(sum ^ i)));
        passes += 1;
    }
    let gross = busy.finish()?;
    let net = gross.net(&idle)?;
    println!("  {:.2} s, {passes} passes, {:.1} W idle", gross.seconds, idle.watts);
    for (name, energy) in [("gross", &gross), ("net", &net)] {
        println!("  {name}: {:.3} J, 95 % {:.3} to {:.3} J", energy.joules, energy.ci95[0], energy.ci95[1]);
    }
    for note in &gross.notes {
        println!("  {note}");
    }
    Ok(())
}
