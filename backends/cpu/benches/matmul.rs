//! Matrix products with weights packed once: FLOP/s by criterion's throughput (one element is one operation).
//!
//! `cargo bench -p perjoule-cpu --bench matmul -- f32/m=512` runs a part. Weights rotate through more than the last-level cache where
//! `m <= 16`, as in a model.

use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use perjoule_cpu::CpuDevice;
use perjoule_kernels::op::{MatMul, Op};
use perjoule_kernels::{Arg, Buffer, DType, Device, Result, Stream, block, prepare, select};
use std::hint::black_box;
use std::time::Duration;

/// Bytes that weights of a small `m` rotate through.
const ROTATE: u64 = 256 << 20;

/// A buffer of numbers from -1 to 1; products of zeros would take another time.
fn random(device: &CpuDevice, stream: &mut dyn Stream, dtype: DType, elements: usize) -> Result<Buffer> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64 ^ elements as u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    let numbers: Vec<f32> = (0..elements).map(|_| next()).collect();
    let mut bytes = vec![0; elements * dtype.block_bytes()];
    block::encode(dtype, &numbers, &mut bytes)?;
    let buffer = device.alloc(bytes.len() as u64)?;
    stream.write(&buffer, &bytes)?;
    Ok(buffer)
}

fn matmul(criterion: &mut Criterion) -> Result<()> {
    let device = CpuDevice::open(&Default::default())?;
    let mut stream = device.stream()?;
    let mut group = criterion.benchmark_group("matmul");
    // flat: the largest products take most of a second each
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    for dtype in [DType::F32, DType::BF16] {
        for (n, k) in [(2048, 2048), (4096, 4096)] {
            for m in [1, 16, 128, 512, 2048] {
                let op = MatMul::linear(m, n, k, dtype, dtype, dtype);
                let op_ = Op::from(op);
                let choice = select(&device, &op_, &[])?;
                let prepared = prepare(&device, &op_, choice, None)?;
                stream.reserve(prepared.scratch())?;
                let a = random(&device, &mut *stream, dtype, m * k)?;
                let plain = random(&device, &mut *stream, dtype, n * k)?;
                let c = device.alloc(prepared.operands()[2].bytes)?;
                let bytes = prepared.operands()[1].bytes;
                let copies = if m <= 16 { ROTATE.div_ceil(bytes) } else { 1 };
                let mut weights = Vec::new();
                for _ in 0..copies {
                    let Some(format) = choice.pack else {
                        weights.push(plain.clone());
                        continue;
                    };
                    let packed = device.alloc(bytes)?;
                    let pack = Op::from(op_.constants()[0].pack(format));
                    let prepared = prepare(&device, &pack, select(&device, &pack, &[])?, None)?;
                    prepared.launch(&mut *stream, &mut [Arg::Buf(&plain), Arg::Buf(&packed)])?;
                    weights.push(packed);
                }
                group.throughput(Throughput::Elements(op_.flops()));
                let id = BenchmarkId::new(dtype.name(), format!("m={m},n={n},k={k},{}", choice.kernel.name));
                let mut at = 0;
                group.bench_function(id, |bencher| {
                    bencher.iter(|| {
                        at = (at + 1) % weights.len();
                        let mut args = [Arg::Buf(&a), Arg::Buf(&weights[at]), Arg::Buf(&c)];
                        black_box(prepared.launch(&mut *stream, &mut args))
                    });
                });
            }
        }
    }
    group.finish();
    Ok(())
}

fn benches(criterion: &mut Criterion) {
    if let Err(error) = matmul(criterion) {
        eprintln!("{error}");
        std::process::exit(1);
    }
}

criterion_group!(all, benches);
criterion_main!(all);
