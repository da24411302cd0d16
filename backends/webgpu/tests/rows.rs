//! What the sizes and fills of the conformance suite leave out: vocabularies, tables larger than a binding, squares out of range. On the
//! first adapter that is there; without one every test says so and passes.

use perjoule_kernels::op::{Add, Argmax, Embed, LayerNorm, Residual, RmsNorm, Sample, Softmax, Values};
use perjoule_kernels::{Arg, Choice, DType, Device, Op, Rows, block, prepare};
use perjoule_suite::{Buffers, Case, Fill, Outcome, run, subjects};
use perjoule_webgpu::{WebGpuCaps, WebGpuDevice};

fn open() -> Option<WebGpuDevice> {
    WebGpuDevice::open(0).inspect_err(|error| eprintln!("ignored: {error}")).ok()
}

/// The rows that run the op.
fn choices(device: &WebGpuDevice, op: &Op) -> Vec<Choice> {
    let runs = |c: &Choice| c.kernel.op == op.name() && c.refusal(op, device.info()).is_none();
    subjects(device).into_iter().filter(runs).collect()
}

/// Rows that keep vectors of so many elements in registers: one, and where there are subgroups one more.
fn in_registers(device: &WebGpuDevice, len: usize) -> usize {
    let caps = device.info().caps::<WebGpuCaps>().unwrap();
    let subgroups = caps.has(wgpu::Features::SUBGROUP) && caps.subgroup.0 >= 4;
    if len.is_multiple_of(4) { 1 + usize::from(subgroups) } else { 0 }
}

/// Runs a case on every row that takes it, as the conformance suite does, and gives how many these are.
fn conforms(device: &WebGpuDevice, op: impl Into<Op>, fill: Fill, seed: u64) -> usize {
    let case = Case { id: "large".into(), op: op.into(), fill, seed };
    let choices = choices(device, &case.op);
    for &choice in &choices {
        match run(device, choice, &case, &[&Buffers { replay: false }]) {
            Outcome::Passed { .. } => {}
            Outcome::Failed(failure) => panic!("{failure}"),
            Outcome::Skipped { reason } => panic!("{}: {reason}", choice.kernel.name),
        }
    }
    choices.len()
}

#[test]
fn vocabularies_are_chosen_from() {
    let Some(device) = open() else { return };
    for (i, (rows, len)) in [(1, 128_256), (3, 32_000), (1, 50_257)].into_iter().enumerate() {
        let x = Rows::dense(rows, len);
        let fast = usize::from(len % 4 == 0);
        for dtype in [DType::F32, DType::BF16] {
            assert_eq!(conforms(&device, Argmax { x, dtype }, Fill::Random, i as u64), 1 + fast);
            for (j, (top_k, top_p)) in
                [(None, None), (Some(40), Some(0.9)), (None, Some(0.5)), (Some(1000), None)]
                    .into_iter()
                    .enumerate()
            {
                let op = Sample { x, dtype, temperature: [1.0, 0.2][j % 2], top_k, top_p };
                let fill = if j == 3 { Fill::Special } else { Fill::Random };
                assert_eq!(conforms(&device, op, fill, j as u64), 1 + fast);
            }
        }
    }
    let x = Rows::dense(2, 16_384);
    let softmax = Softmax { x, dtype: DType::F32, out: x, out_dtype: DType::F16, scale: 0.5 };
    assert_eq!(conforms(&device, softmax, Fill::Random, 1), 1 + in_registers(&device, 16_384));
}

#[test]
fn tables_larger_than_a_binding_are_read_in_windows() {
    // an adapter whose bindings hold 64 KiB
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
    let adapter = pollster::block_on(instance.request_adapter(&wgpu::RequestAdapterOptions::default()));
    let Ok(adapter) = adapter.inspect_err(|error| eprintln!("ignored: {error}")) else { return };
    let limits = wgpu::Limits { max_storage_buffer_binding_size: 1 << 16, ..adapter.limits() };
    let desc = wgpu::DeviceDescriptor { required_limits: limits, ..Default::default() };
    let (device, queue) = pollster::block_on(adapter.request_device(&desc)).unwrap();
    let device = WebGpuDevice::of_device(device, queue);
    let tables =
        [(DType::F32, 64), (DType::BF16, 100), (DType::Q4_0, 96), (DType::Q6K, 256), (DType::F16, 33)];
    for (i, (table, dim)) in tables.into_iter().enumerate() {
        let rows = 200_000 / table.bytes(dim).unwrap() as usize;
        for fill in [Fill::Random, Fill::Special] {
            let op = Embed { scale: 2.0, ..Embed::dense(60, rows, dim, table, DType::F32) };
            assert_eq!(conforms(&device, op, fill, i as u64), if dim % 4 == 0 { 2 } else { 1 });
        }
    }
    let op = Op::from(Embed::dense(1, 2, 20_000, DType::F32, DType::F32));
    assert!(choices(&device, &op).is_empty(), "a row that no binding holds");
}

#[test]
fn small_workgroups_are_refused() {
    let noop = |required_limits| {
        let desc = wgpu::DeviceDescriptor { required_limits, ..Default::default() };
        let (device, queue) = wgpu::Device::noop(&desc);
        WebGpuDevice::of_device(device, queue)
    };
    // as old OpenGL has it
    let small = noop(wgpu::Limits {
        max_compute_invocations_per_workgroup: 128,
        max_compute_workgroup_size_x: 128,
        ..Default::default()
    });
    assert!(choices(&small, &Op::from(Add::dense(1, 64, DType::F32))).is_empty());
}

#[test]
fn squares_out_of_range_are_scaled() {
    let Some(device) = open() else { return };
    for len in [64, 67, 1000] {
        for scale in [1e25f32, 1e-25, 1.0] {
            let x = Rows::dense(3, len);
            let residual = (len == 1000).then_some(Residual { rows: x, sum: x });
            let rms = RmsNorm { eps: 0.0, residual, ..RmsNorm::dense(3, len, DType::F32) };
            let layer = LayerNorm { eps: 0.0, residual, ..LayerNorm::dense(3, len, DType::F32) };
            for op in [Op::from(rms), Op::from(layer)] {
                let choices = choices(&device, &op);
                assert_eq!(choices.len(), 1 + in_registers(&device, len));
                for choice in choices {
                    compare(&device, &op, choice, scale);
                }
            }
        }
    }
}

/// Launches a norm on numbers of that size, one of its vectors excepted, and compares with the reference.
fn compare(device: &WebGpuDevice, op: &Op, choice: Choice, scale: f32) {
    let operands = op.operands();
    let mut values: Vec<Values> = Vec::new();
    let mut buffers = Vec::new();
    let mut stream = device.stream().unwrap();
    for (o, operand) in operands.iter().enumerate() {
        let count = operand.elements as usize;
        let of = |i: usize| {
            let own = if operand.name == "x" && i < count / 3 * 2 { scale } else { 1.0 };
            own * (((i * 37 + o * 11) % 101) as f32 / 50.0 - 0.99)
        };
        let numbers: Vec<f32> = (0..count).map(of).collect();
        let mut bytes = vec![0; operand.bytes as usize];
        block::encode(operand.dtype, &numbers, &mut bytes).unwrap();
        let buffer = device.alloc(operand.bytes).unwrap();
        stream.write(&buffer, &bytes).unwrap();
        buffers.push(buffer);
        values.push(Values::new(numbers.iter().map(|&x| f64::from(x)).collect()));
    }
    let prepared = prepare(device, op, choice, None).unwrap();
    stream.reserve(prepared.scratch()).unwrap();
    let mut args: Vec<Arg<'_>> = buffers.iter().map(Arg::Buf).collect();
    prepared.launch(&mut *stream, &mut args).unwrap();
    op.reference(&mut values);
    let read = stream.read(&buffers[buffers.len() - 1]).wait().unwrap();
    for (i, (bytes, want)) in read.chunks_exact(4).zip(&values[values.len() - 1].value).enumerate() {
        let got = f64::from(f32::from_le_bytes(bytes.try_into().unwrap()));
        assert!(
            (got - want).abs() < 1e-4,
            "{} on {op} at {scale:e}: [{i}] is {got}, not {want}",
            choice.kernel.name
        );
    }
}
