//! Attention by FLOP/s, and the ops that stream their operands by bytes/s, both by criterion's throughput (for attention one element
//! is one operation). Ceilings of the machine come first.
//!
//! `cargo bench -p perjoule-cpu --bench ops -- attention` runs a part.

use criterion::measurement::WallTime;
use criterion::{
    BenchmarkGroup, BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main,
};
use perjoule_cpu::{CpuDevice, ceiling};
use perjoule_kernels::op::{Attention, Gated, GatedKind, LayerNorm, Op, RmsNorm, Rope, Softmax};
use perjoule_kernels::{
    Access, Arg, Buffer, DType, Device, KvLayout, Operand, Result, block, prepare, select,
};
use std::hint::black_box;
use std::time::Duration;

/// Numbers from -1 to 1, and in slots `slot`.
fn contents(operand: &Operand, slot: i32) -> Result<Vec<u8>> {
    if operand.slot {
        return Ok((0..operand.elements).flat_map(|_| slot.to_le_bytes()).collect());
    }
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    let numbers: Vec<f32> = (0..operand.elements).map(|_| next()).collect();
    let mut bytes = vec![0; operand.bytes as usize];
    block::encode(operand.dtype, &numbers, &mut bytes)?;
    Ok(bytes)
}

/// Few samples: long launches are steady, and the whole should take minutes.
fn brief(group: &mut BenchmarkGroup<'_, WallTime>) {
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
}

/// Times launches of the row that is selected; slots hold `slot`.
fn time(
    criterion: &mut Criterion,
    device: &CpuDevice,
    id: String,
    op: Op,
    slot: i32,
    by: Throughput,
) -> Result<()> {
    let mut stream = device.stream()?;
    let choice = select(device, &op, &[])?;
    let prepared = prepare(device, &op, choice, None)?;
    stream.reserve(prepared.scratch())?;
    let mut buffers: Vec<Buffer> = Vec::new();
    for operand in prepared.operands() {
        let buffer = device.alloc(operand.bytes)?;
        if operand.access != Access::Write {
            stream.write(&buffer, &contents(operand, slot)?)?;
        }
        buffers.push(buffer);
    }
    let mut group = criterion.benchmark_group(op.name());
    brief(&mut group);
    group.throughput(by);
    group.bench_function(BenchmarkId::new(choice.kernel.name, id), |bencher| {
        bencher.iter(|| {
            let mut args: Vec<Arg<'_>> = buffers.iter().map(Arg::Buf).collect();
            black_box(prepared.launch(&mut *stream, &mut args))
        });
    });
    group.finish();
    Ok(())
}

fn ceilings(criterion: &mut Criterion, device: &CpuDevice) -> Result<()> {
    let mut group = criterion.benchmark_group("ceiling");
    brief(&mut group);
    let rounds = 1 << 20;
    for which in ceiling::Arithmetic::ALL {
        if which.instruction_set(device).is_some() {
            group.throughput(Throughput::Elements(ceiling::arithmetic(device, which, rounds)?));
            group.bench_function(which.name(), |b| {
                b.iter(|| black_box(ceiling::arithmetic(device, which, rounds)));
            });
        }
    }
    let memory = ceiling::Bandwidth::new(device, 256 << 20)?;
    group.throughput(Throughput::Bytes(memory.read(device)?));
    group.bench_function("read", |b| b.iter(|| black_box(memory.read(device))));
    group.finish();
    Ok(())
}

fn all(criterion: &mut Criterion) -> Result<()> {
    let device = CpuDevice::open(&Default::default())?;
    ceilings(criterion, &device)?;
    for dtype in [DType::F32, DType::BF16] {
        for q_len in [512, 2048] {
            let op = Attention::causal(1, q_len, 32, KvLayout::contiguous(8, q_len, 128), dtype);
            let by = Throughput::Elements(op.flops_at(q_len));
            time(criterion, &device, format!("{dtype} prefill {q_len}"), op.into(), q_len as i32, by)?;
        }
        for batch in [1, 8] {
            let op = Attention::causal(batch, 1, 32, KvLayout::contiguous(8, 4096, 128), dtype);
            let by = Throughput::Bytes(op.bytes_at(4096));
            time(criterion, &device, format!("{dtype} decode {batch} x 4096"), op.into(), 4096, by)?;
        }
        let ops: [Op; 5] = [
            RmsNorm::dense(512, 4096, dtype).into(),
            LayerNorm::dense(512, 4096, dtype).into(),
            Rope::dense(512, 32, 128, dtype, 500_000.0).into(),
            Gated::dense(512, 8192, dtype, GatedKind::SwiGlu).into(),
            Softmax::dense(512, 4096, dtype).into(),
        ];
        for op in ops {
            let by = Throughput::Bytes(op.bytes());
            time(criterion, &device, dtype.to_string(), op, 100, by)?;
        }
    }
    Ok(())
}

fn benches(criterion: &mut Criterion) {
    if let Err(error) = all(criterion) {
        eprintln!("{error}");
        std::process::exit(1);
    }
}

criterion_group!(group, benches);
criterion_main!(group);
