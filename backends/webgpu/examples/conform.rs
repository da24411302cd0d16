//! Runs the conformance suite on the first adapter, row by row: `conform [part of a row's name] [part of a case's id]`.

use perjoule_kernels::Device;
use perjoule_suite::{Buffers, Outcome, Place, Scope, cases, run, subjects};
use perjoule_webgpu::WebGpuDevice;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let part = |i: usize| args.get(i).cloned().unwrap_or_default();
    let every: usize = std::env::var("PERJOULE_EVERY").ok().and_then(|v| v.parse().ok()).unwrap_or(1);
    let scope = if std::env::var_os("PERJOULE_FULL").is_some() { Scope::Full } else { Scope::Sample };
    let device = WebGpuDevice::open(0).unwrap();
    println!("{} ({})", device.info().name, device.info().driver.clone().unwrap_or_default());
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for choice in subjects(&device) {
        let config = choice.kernel.configs[choice.config].name;
        if !choice.kernel.name.contains(&part(0)) {
            continue;
        }
        let start = std::time::Instant::now();
        let before = (passed, failed, skipped);
        let pack = choice.pack.map_or("", |p| p.name);
        match cases(&device, &choice, scope) {
            Err(reason) => println!("{} {config} {pack}: NO CASE: {reason}", choice.kernel.name),
            Ok(list) => {
                for case in
                    list.into_iter().step_by(every).filter(|case| case.id.to_string().contains(&part(1)))
                {
                    let place: &dyn Place = &Buffers { replay: false };
                    match run(&device, choice, &case, &[place]) {
                        Outcome::Passed { .. } => passed += 1,
                        Outcome::Failed(failure) => {
                            failed += 1;
                            if failed < 40 {
                                println!("FAILED {} {config} {}: {failure}", choice.kernel.name, case.id);
                            }
                        }
                        Outcome::Skipped { reason } => {
                            skipped += 1;
                            if std::env::var_os("SKIPS").is_some() {
                                println!("skipped {} {}: {reason}", choice.kernel.name, case.id);
                            }
                        }
                    }
                }
            }
        }
        println!(
            "{} {config} {pack}: {} passed, {} failed, {} skipped in {:.1} s",
            choice.kernel.name,
            passed - before.0,
            failed - before.1,
            skipped - before.2,
            start.elapsed().as_secs_f64()
        );
    }
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    std::process::exit(i32::from(failed > 0));
}
