//! Joules of two ways to add numbers, by the CPU's meter or, without one, by a model that says so in its unit.
//!
//! `cargo bench -p perjoule-meter --features criterion --bench joules`

use std::hint::black_box;

use criterion::{Criterion, Throughput};
use perjoule_meter::{JouleMeasurement, Options, PowerModel, discover};

const N: u64 = 100_000;

fn main() {
    let model = PowerModel::new("CPU of this machine, TDP assumed", 65.0);
    let found = discover(&Options { models: vec![model], ..Options::default() });
    let joules = JouleMeasurement::new(found.cpu().expect("the model is always usable").clone());
    let mut criterion = Criterion::default().with_measurement(joules.clone()).configure_from_args();

    let numbers: Vec<u64> = (0..N).collect();
    let mut group = joules.group(&mut criterion, "sum");
    group.throughput(Throughput::Elements(N));
    group.bench_function("vectorised", |b| b.iter(|| black_box(&numbers[..]).iter().sum::<u64>()));
    group.bench_function("one at a time", |b| {
        b.iter(|| black_box(&numbers[..]).iter().fold(0u64, |sum, n| black_box(sum + n)))
    });
    group.finish();
    criterion.final_summary();
}
