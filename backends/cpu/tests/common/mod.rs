//! Runs every row of an op on random operands and judges it by the op's f64 reference.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use perjoule_cpu::{CpuDevice, Options};
use perjoule_kernels::op::Values;
use perjoule_kernels::{
    Access, Arg, Buffer, Choice, DType, Device, Kernel, Numerics, Op, Operand, block, prepare,
};

/// SplitMix64 (doi:10.1145/2714064.2660195).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in -1..1.
    pub(crate) fn signed(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

/// Contents of operands that are not random: by name.
pub(crate) type Given<'a> = &'a [(&'a str, Vec<f64>)];

/// Bytes behind every operand, which nobody may touch.
const GUARD: usize = 64;

pub(crate) fn devices() -> Vec<CpuDevice> {
    let open = |threads| CpuDevice::open(&Options { threads: Some(threads), ..Options::default() }).unwrap();
    [1, 2, 5].map(open).into()
}

pub(crate) fn encode(dtype: DType, values: &[f64]) -> Vec<u8> {
    let mut bytes = vec![0; dtype.bytes(values.len()).unwrap() as usize];
    block::encode_f64(dtype, values, &mut bytes).unwrap();
    bytes
}

pub(crate) fn decode(dtype: DType, bytes: &[u8]) -> Vec<f64> {
    let mut values = vec![0.0; bytes.len() / dtype.block_bytes() * dtype.block_len()];
    block::decode_f64(dtype, bytes, &mut values).unwrap();
    values
}

fn fill(operand: &Operand, random: &mut Random, given: Given<'_>) -> Vec<u8> {
    let count = operand.elements as usize;
    if let Some((_, values)) = given.iter().find(|(name, _)| *name == operand.name) {
        assert_eq!(values.len(), count, "{}", operand.name);
        return encode(operand.dtype, values);
    }
    assert!(!operand.slot || operand.access == Access::Write, "slot {} must be given", operand.name);
    match (operand.access, operand.dtype) {
        (Access::Write, d) if d.is_float() => encode(d, &vec![f64::NAN; count]),
        (Access::Write, _) => vec![0xaa; operand.bytes as usize],
        (_, DType::I32 | DType::U32 | DType::I8) => {
            let limit = if operand.dtype == DType::I8 { 127.0 } else { 2e9 };
            let values: Vec<f64> = (0..count).map(|_| (f64::from(random.signed()) * limit).round()).collect();
            encode(operand.dtype, &values)
        }
        (_, d) => encode(d, &(0..count).map(|_| f64::from(random.signed())).collect::<Vec<_>>()),
    }
}

/// Bytes of every operand after one launch of `kernel`.
pub(crate) fn launch(
    device: &CpuDevice,
    kernel: &'static Kernel,
    op: &Op,
    inputs: &[Vec<u8>],
) -> Vec<Vec<u8>> {
    let prepared = prepare(device, op, Choice::new(kernel, 0, None), None).unwrap();
    let mut stream = device.stream().unwrap();
    stream.reserve(prepared.scratch()).unwrap();
    let buffers: Vec<Buffer> = inputs
        .iter()
        .map(|bytes| {
            let buffer = device.alloc((bytes.len() + GUARD) as u64).unwrap();
            let mut all = bytes.clone();
            all.resize(bytes.len() + GUARD, 0x5a);
            stream.write(&buffer, &all).unwrap();
            buffer
        })
        .collect();
    prepared.launch(&mut *stream, &mut buffers.iter().map(Arg::Buf).collect::<Vec<_>>()).unwrap();
    buffers
        .iter()
        .map(|buffer| {
            let mut bytes = stream.read(buffer).wait().unwrap();
            let guard = bytes.split_off(bytes.len() - GUARD);
            assert!(guard.iter().all(|&b| b == 0x5a), "{}: wrote behind an operand", kernel.name);
            bytes
        })
        .collect()
}

/// Rows of the op that run on the device; at least two where the processor has AVX2 (`several`).
pub(crate) fn rows(device: &CpuDevice, op: &Op) -> Vec<&'static Kernel> {
    let all = device.kernels();
    let of_op: Vec<_> = all.iter().copied().filter(|k| k.op == op.name() && k.packs.is_empty()).collect();
    let refusal = |k: &&'static Kernel| Choice::new(k, 0, None).refusal(op, device.info());
    let runs: Vec<_> = of_op.iter().copied().filter(|k| refusal(k).is_none()).collect();
    assert!(!runs.is_empty(), "no row for {op}");
    runs
}

fn tolerance(numerics: Numerics, op: &Op, dtype: DType, want: f64, magnitude: f64) -> f64 {
    // half a unit of denormals
    let smallest = match dtype {
        DType::F8E4M3 => 2f64.powi(-10),
        DType::F16 => 2f64.powi(-25),
        DType::BF16 => 2f64.powi(-134),
        DType::F32 => 2f64.powi(-149),
        _ => 0.0,
    };
    let reduction = (op.spec().reduction() as f64).sqrt();
    (dtype.epsilon() * want.abs()).max(smallest)
        + numerics.slack * numerics.unit * (4.0 + reduction) * magnitude
}

/// Runs every row on every device and compares what was written with the reference.
pub(crate) fn check(devices: &[CpuDevice], op: impl Into<Op>, given: Given<'_>) {
    check_within(devices, op, given, 1.0);
}

/// The same with a multiple of the errors that the row's numerics allow.
pub(crate) fn check_within(devices: &[CpuDevice], op: impl Into<Op>, given: Given<'_>, slack: f64) {
    let op: Op = op.into();
    op.validate().unwrap();
    let operands = op.operands();
    let mut random = Random(0x1234 + operands.iter().map(|o| o.elements).sum::<u64>());
    let inputs: Vec<Vec<u8>> = operands.iter().map(|o| fill(o, &mut random, given)).collect();
    let mut truth: Vec<Values> =
        operands.iter().zip(&inputs).map(|(o, bytes)| Values::new(decode(o.dtype, bytes))).collect();
    op.reference(&mut truth);
    for device in devices {
        for kernel in rows(device, &op) {
            let outputs = launch(device, kernel, &op, &inputs);
            let numerics = Choice::new(kernel, 0, None).numerics(&op, device.info());
            for ((operand, bytes), truth) in operands.iter().zip(&outputs).zip(&truth) {
                if !operand.access.writes() {
                    continue;
                }
                for (at, got) in decode(operand.dtype, bytes).into_iter().enumerate() {
                    let magnitude = truth.magnitude.get(at).copied().unwrap_or(0.0);
                    let mut want = truth.value[at];
                    if operand.dtype.is_float() && want.abs() > operand.dtype.max_value() {
                        // saturates or becomes infinite
                        want = decode(operand.dtype, &encode(operand.dtype, &[want]))[0];
                    }
                    let allowed = slack * tolerance(numerics, &op, operand.dtype, want, magnitude);
                    let same =
                        (got.is_nan() && want.is_nan()) || got == want || (got - want).abs() <= allowed;
                    assert!(
                        same,
                        "{} with {} threads, {op}: {}[{at}] is {got:e}, expected {want:e} within {allowed:e}",
                        kernel.name,
                        device.threads(),
                        operand.name
                    );
                }
            }
            let again = launch(device, kernel, &op, &inputs);
            assert!(outputs == again, "{} is not repeatable", kernel.name);
        }
    }
}
