//! Every op but `matmul`, which has a bench of its own: attention and products by FLOP/s, the ops that stream their operands by bytes/s,
//! both by criterion's throughput (one element is one operation). Ceilings of the machine come first. It fails where an op of the table
//! has no bench.
//!
//! `cargo bench -p perjoule-cpu --bench ops -- attention` runs a part.

use criterion::measurement::WallTime;
use criterion::{
    BenchmarkGroup, BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main,
};
use perjoule_cpu::{CpuDevice, ceiling};
use perjoule_kernels::op::{
    Add, Advance, Argmax, Attention, Cast, Collective, CollectiveKind, Combine, Embed, Gated, GatedKind,
    GatedMatMul, GroupedMatMul, HeadNorm, KvAppend, LayerNorm, MatMul, Op, Pack, QkNormRopeAppend, Quantise,
    RmsNorm, Rope, Route, RouteOrder, Sample, Softmax, Tensor2,
};
use perjoule_kernels::{
    Access, Arg, Buffer, DType, Device, Error, KvLayout, Matrix, Operand, Result, Rows, block, prepare,
    select,
};
use std::collections::BTreeSet;
use std::hint::black_box;
use std::time::Duration;

/// Numbers from -1 to 1, and in slots `slot`; rows of a grouped product are shared evenly and come in order.
fn contents(op: &Op, operand: &Operand, slot: i32) -> Result<Vec<u8>> {
    if operand.slot {
        let value = |i: u64| match (op, operand.name) {
            (Op::GroupedMatMul(g), "offsets") => (i as usize * g.rows / g.experts) as i32,
            (Op::GroupedMatMul(_), _) => i as i32,
            _ => slot,
        };
        return Ok((0..operand.elements).flat_map(|i| value(i).to_le_bytes()).collect());
    }
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    // of a packed operand all bytes, with what fills up its panels
    let elements = operand.bytes as usize / operand.dtype.block_bytes() * operand.dtype.block_len();
    let numbers: Vec<f32> = (0..elements).map(|_| next()).collect();
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
            stream.write(&buffer, &contents(&op, operand, slot)?)?;
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
    // matmul has a bench of its own
    let mut timed = BTreeSet::from(["matmul", "attention"]);
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
        for op in streaming(dtype) {
            let by = Throughput::Bytes(op.bytes());
            timed.insert(op.name());
            time(criterion, &device, dtype.to_string(), op, 100, by)?;
        }
        for op in products(dtype) {
            let by = Throughput::Elements(op.flops());
            timed.insert(op.name());
            time(criterion, &device, dtype.to_string(), op, 0, by)?;
        }
        let product = Op::from(MatMul::linear(512, 4096, 4096, dtype, dtype, dtype));
        if let Some(format) = select(&device, &product, &[])?.pack {
            let b = Tensor2 { dtype, strides: Matrix::col_major(4096, 4096) };
            let op = Op::from(Pack { format, matrices: 1, n: 4096, k: 4096, b });
            let by = Throughput::Bytes(op.bytes());
            timed.insert(op.name());
            time(criterion, &device, format.name.into(), op, 0, by)?;
        }
    }
    let op = Op::from(Advance::uniform(64, 1));
    timed.insert(op.name());
    let by = Throughput::Bytes(op.bytes());
    time(criterion, &device, "i32".into(), op, 0, by)?;
    let missed: Vec<&str> =
        device.kernels().iter().map(|row| row.op).filter(|op| !timed.contains(op)).collect();
    if missed.is_empty() {
        return Ok(());
    }
    Err(Error::Unsupported { what: "a bench of every op", why: format!("none times {missed:?}; add it") })
}

/// Ops that go through their operands once or a few times.
fn streaming(dtype: DType) -> Vec<Op> {
    let kv = KvLayout::contiguous(8, 1024, 128);
    let append = KvAppend::dense(1, 512, kv, dtype);
    let heads = QkNormRopeAppend::dense(32, append, 1_000_000.0);
    let norm = Some(HeadNorm::default());
    let logits = Rows::dense(1, 128_256);
    let from = if dtype == DType::F32 { DType::BF16 } else { DType::F32 };
    vec![
        RmsNorm::dense(512, 4096, dtype).into(),
        LayerNorm::dense(512, 4096, dtype).into(),
        Rope::dense(512, 32, 128, dtype, 500_000.0).into(),
        Gated::dense(512, 8192, dtype, GatedKind::SwiGlu).into(),
        Softmax::dense(512, 4096, dtype).into(),
        Embed::dense(512, 32_000, 4096, dtype, dtype).into(),
        Add::dense(512, 4096, dtype).into(),
        Combine::dense(512, 8, 2048, dtype).into(),
        append.into(),
        QkNormRopeAppend { q_norm: norm, k_norm: norm, ..heads }.into(),
        heads.into(),
        Route {
            tokens: 512,
            experts: 128,
            top_k: 8,
            dtype,
            order: RouteOrder::SoftmaxThenTopK { renormalise: true },
        }
        .into(),
        Argmax { x: logits, dtype }.into(),
        Sample { x: logits, dtype, temperature: 0.8, top_k: Some(50), top_p: Some(0.95) }.into(),
        Cast::dense(512, 4096, from, dtype).into(),
        Quantise { x: Rows::dense(512, 4096), from: dtype, to: DType::Q8_0, scale: None }.into(),
        Collective { kind: CollectiveKind::AllReduce, dtype, count: 1 << 20, world: 1 }.into(),
    ]
}

/// Products beside `matmul`.
fn products(dtype: DType) -> [Op; 2] {
    let (rows, n, k) = (512, 1024, 1024);
    let part = MatMul::linear(512, 4096, 2048, dtype, dtype, dtype);
    let dense = |strides| Tensor2 { dtype, strides };
    [
        GatedMatMul { gate: part, up: part, gated: Gated::dense(512, 4096, dtype, GatedKind::SwiGlu) }.into(),
        GroupedMatMul {
            experts: 8,
            rows,
            n,
            k,
            a: dense(Matrix::row_major(rows, k)),
            a_rows: rows,
            a_divisor: 1,
            b: dense(Matrix::col_major(k, n)),
            b_constant: true,
            c: dense(Matrix::row_major(rows, n)),
            c_rows: rows,
            bias: None,
            activation: Default::default(),
            policy: Default::default(),
        }
        .into(),
    ]
}

fn benches(criterion: &mut Criterion) {
    if let Err(error) = all(criterion) {
        eprintln!("{error}");
        std::process::exit(1);
    }
}

criterion_group!(group, benches);
criterion_main!(group);
