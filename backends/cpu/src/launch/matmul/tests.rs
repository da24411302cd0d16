//! Every row that this processor runs, forced one by one, against the f64 reference.

use super::amx::model::{ModelBf16, ModelBytes8};
use crate::device::{CpuDevice, Options};
use crate::launch::pack::{PAIRS32_BF16, QUADS32_U8};
use crate::launch::{grouped, matmul};
use crate::simd::Avx512Bf16;
use perjoule_kernels::dtype::DType;
use perjoule_kernels::op::{Activation, Epilogue, Granularity, GroupedMatMul, MatMul, Op, Tensor2, Values};
use perjoule_kernels::{Arg, Buffer, Choice, Config, Device, Kernel, Matrix, Stream, block, prepare};

/// A small generator: xorshift64*.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// -4..=4
    fn integer(&mut self) -> f32 {
        ((self.next() >> 33) % 9) as f32 - 4.0
    }

    /// -1..1
    pub(crate) fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

pub(crate) fn open(threads: usize) -> CpuDevice {
    CpuDevice::open(&Options { threads: Some(threads), features: None }).unwrap()
}

fn upload(device: &dyn Device, stream: &mut dyn Stream, bytes: &[u8]) -> Buffer {
    let buffer = device.alloc(bytes.len() as u64).unwrap();
    stream.write(&buffer, bytes).unwrap();
    buffer
}

/// Runs `op` on a row, with B packed where the row wants it, and returns the bytes of C.
pub(crate) fn run(
    device: &CpuDevice,
    kernel: &'static Kernel,
    op: &Op,
    inputs: &[Vec<u8>],
    c: &[u8],
) -> Vec<u8> {
    let mut stream = device.stream().unwrap();
    let mut buffers: Vec<Buffer> = inputs.iter().map(|i| upload(device, &mut *stream, i)).collect();
    buffers.push(upload(device, &mut *stream, c));
    let mut launch = |kernel: &'static Kernel, pack, op: &Op, buffers: &[&Buffer]| {
        let prepared = prepare(device, op, Choice::new(kernel, 0, pack), None).unwrap();
        stream.reserve(prepared.scratch()).unwrap();
        let mut args: Vec<Arg<'_>> = buffers.iter().map(|b| Arg::Buf(b)).collect();
        prepared.launch(&mut *stream, &mut args).unwrap();
    };
    let pack = kernel.packs.first().copied();
    for b in op.constants() {
        let Some(format) = pack else { break };
        let pack = b.pack(format);
        let packed = device.alloc(pack.packed_bytes().unwrap()).unwrap();
        let rows = device.kernels();
        let row = rows.iter().find(|r| r.op == "pack").unwrap();
        launch(row, None, &Op::from(pack), &[&buffers[b.operand], &packed]);
        buffers[b.operand] = packed;
    }
    launch(kernel, pack, op, &buffers.iter().collect::<Vec<_>>());
    stream.read(buffers.last().unwrap()).wait().unwrap()
}

/// Bytes of random elements for each operand that is read but no slot, with what they stand for.
fn inputs(op: &Op, random: &mut Random, integers: bool) -> Vec<(Vec<u8>, Values)> {
    let operands = op.operands();
    let read = operands.iter().filter(|o| !o.slot && o.name != "c");
    read.map(|o| {
        let len = o.elements as usize;
        let numbers: Vec<f32> = (0..len)
            .map(|_| if integers || o.dtype.is_integer() { random.integer() } else { random.unit() })
            .collect();
        let mut bytes = vec![0; o.bytes as usize];
        block::encode(o.dtype, &numbers, &mut bytes).unwrap();
        let mut values = vec![0.0; len];
        block::decode_f64(o.dtype, &bytes, &mut values).unwrap();
        (bytes, Values::new(values))
    })
    .collect()
}

/// Rows of tiles whose arithmetic is plain code: they show what the rows of AMX read and write, on processors with AVX-512 BF16.
static MODELS: [Kernel; 8] = {
    const TILE: &[Config] = &[Config::tile("32x32", &[32, 32, 1])];
    [
        matmul::tiles::<Avx512Bf16, ModelBf16>("matmul_bf16_model", TILE, &[&PAIRS32_BF16]),
        matmul::integers::tiles::<Avx512Bf16, ModelBytes8>("matmul_i8_model", TILE, &[&QUADS32_U8]),
        grouped::tiles::<Avx512Bf16, ModelBf16>("grouped_matmul_bf16_model", TILE, &[&PAIRS32_BF16]),
        matmul::gated::tiles::<Avx512Bf16, ModelBf16>("gated_matmul_bf16_model", TILE, &[&PAIRS32_BF16]),
        matmul::plain_tiles::<Avx512Bf16, ModelBf16>("matmul_bf16_model_plain", TILE),
        matmul::integers::plain_tiles::<Avx512Bf16, ModelBytes8>("matmul_i8_model_plain", TILE),
        grouped::plain_tiles::<Avx512Bf16, ModelBf16>("grouped_matmul_bf16_model_plain", TILE),
        matmul::gated::plain_tiles::<Avx512Bf16, ModelBf16>("gated_matmul_bf16_model_plain", TILE),
    ]
};

/// The rows of an op that run it on this processor.
fn rows(device: &CpuDevice, op: &Op) -> Vec<&'static Kernel> {
    let table = device.kernels();
    let all: Vec<&'static Kernel> = table.iter().copied().chain(&MODELS).collect();
    let runs = |k: &&&'static Kernel| {
        k.op == op.name()
            && (k.packs.is_empty() || !op.constants().is_empty())
            && Choice::new(k, 0, k.packs.first().copied()).refusal(op, device.info()).is_none()
    };
    all.iter().filter(runs).copied().collect()
}

/// Compares every row's result with the reference; integers must agree to the last bit where the output holds them.
fn check(device: &CpuDevice, op: &Op, inputs: &[(Vec<u8>, Values)], exact: bool) -> usize {
    op.validate().unwrap();
    let c = op.operands().pop().unwrap();
    let mut values: Vec<Values> = inputs.iter().map(|(_, v)| v.clone()).collect();
    values.push(Values::new(vec![f64::NAN; c.elements as usize]));
    op.reference(&mut values);
    let truth = values.pop().unwrap();
    let bytes: Vec<Vec<u8>> = inputs.iter().map(|(b, _)| b.clone()).collect();
    // NaN everywhere, so that what is not written shows
    let mut poison = vec![0; c.bytes as usize];
    block::encode(c.dtype, &vec![f32::NAN; c.elements as usize], &mut poison).unwrap();
    let rows = rows(device, op);
    assert!(!rows.is_empty(), "{op}");
    for row in &rows {
        let out = run(device, row, op, &bytes, &poison);
        let mut got = vec![0.0; c.elements as usize];
        block::decode_f64(c.dtype, &out, &mut got).unwrap();
        for (i, (g, t)) in got.iter().zip(&truth.value).enumerate() {
            let magnitude = truth.magnitude.get(i).copied().unwrap_or(0.0);
            let k = op.spec().reduction() as f64;
            let allowed = t.abs() * c.dtype.epsilon() * 1.01
                + Choice::new(row, 0, row.packs.first().copied()).numerics(op, device.info()).unit
                    * (4.0 + k.sqrt())
                    * magnitude;
            // half of the smallest number above 0
            let least = match c.dtype {
                DType::F8E4M3 => 2f64.powi(-10),
                DType::F16 => 2f64.powi(-25),
                _ => 1e-45,
            };
            let allowed = if exact { 0.0 } else { allowed + least };
            let same = (g.is_nan() && t.is_nan()) || g == t || (g - t).abs() <= allowed;
            assert!(same, "{}: {op} {op:?}: element {i} is {g}, expected {t} within {allowed}", row.name);
        }
    }
    rows.len()
}

fn tensor(dtype: DType, strides: Matrix) -> Tensor2 {
    Tensor2 { dtype, strides }
}

#[test]
fn every_row_is_exact_on_integers_around_the_edges_of_its_tiles() {
    let mut random = Random(7);
    for threads in [1, 2, 5] {
        let device = open(threads);
        for &m in &[0, 1, 2, 3, 5, 6, 7, 12, 13, 29] {
            for &(n, k) in &[(0, 3), (1, 1), (7, 5), (8, 4), (16, 9), (17, 256), (33, 257), (67, 70)] {
                let op = Op::from(MatMul::linear(m, n, k, DType::F32, DType::F32, DType::F32));
                let rows = check(&device, &op, &inputs(&op, &mut random, true), true);
                assert!(rows >= 3, "packed, plain and simple rows at least");
            }
        }
        let op = Op::from(MatMul::linear(9, 20, 0, DType::F32, DType::BF16, DType::F32));
        check(&device, &op, &inputs(&op, &mut random, true), true);
    }
}

#[test]
fn every_pair_of_dtypes_and_every_layout() {
    let floats = [DType::F32, DType::F16, DType::BF16, DType::F8E4M3];
    let mut random = Random(8);
    let device = open(2);
    for (i, a) in floats.into_iter().enumerate() {
        for (j, b) in floats.into_iter().enumerate() {
            for m in [1, 4, 8, 21] {
                let (n, k, c) = (37, 300, floats[(i + j + m) % 4]);
                let mut op = MatMul::linear(m, n, k, a, b, c);
                check(&device, &op.into(), &inputs(&op.into(), &mut random, false), false);
                // all transposes, unit strides nowhere, batches, shared A or B
                op.batch = 2;
                let layouts = [
                    (Matrix::row_major(m, k), Matrix::row_major(k, n), Matrix::row_major(m, n)),
                    (Matrix::col_major(m, k), Matrix::row_major(k, n), Matrix::col_major(m, n)),
                    (
                        Matrix { batch: 0, ..Matrix::col_major(m, k) },
                        Matrix::col_major(k, n),
                        Matrix { row: 2 * n + 3, col: 2, batch: m * (2 * n + 3) },
                    ),
                    (
                        Matrix { row: 3 * k, col: 3, batch: 5 },
                        Matrix { row: 2, col: 2 * k + 1, batch: 0 },
                        Matrix::row_major(m, n),
                    ),
                ];
                let (sa, sb, sc) = layouts[(i * 4 + j + m) % 4];
                op.a.strides = sa;
                op.b.strides = sb;
                op.c.strides = sc;
                op.b_constant = (i + j) % 2 == 0;
                check(&device, &op.into(), &inputs(&op.into(), &mut random, false), false);
            }
        }
    }
}

#[test]
fn epilogues() {
    let mut random = Random(9);
    let device = open(2);
    let activations = [Activation::None, Activation::Silu, Activation::Gelu, Activation::GeluTanh];
    for (i, activation) in activations.into_iter().enumerate() {
        for (m, n) in [(1, 40), (7, 16), (20, 35)] {
            let mut op = MatMul::linear(m, n, 33, DType::BF16, DType::BF16, DType::F32);
            op.batch = 1 + i % 2;
            let row_major = Matrix::row_major(m, n);
            let residual = [row_major, Matrix::col_major(m, n), Matrix { batch: 0, ..row_major }][i % 3];
            op.epilogue = Epilogue {
                scale: 0.3,
                bias: (i != 1).then_some([DType::F32, DType::BF16, DType::F16, DType::F8E4M3][i]),
                activation,
                residual: (i != 2).then_some(tensor([DType::F32, DType::BF16][i % 2], residual)),
            };
            check(&device, &op.into(), &inputs(&op.into(), &mut random, false), false);
        }
    }
}

#[test]
fn block_formats() {
    let mut random = Random(10);
    let device = open(2);
    for b in [DType::Q8_0, DType::Q4_0, DType::Q4K, DType::Q6K, DType::MxFp4] {
        for (m, n, blocks) in [(1, 5, 1), (3, 17, 3), (19, 34, 4)] {
            let k = blocks * b.block_len().max(96);
            let mut op = MatMul::linear(m, n, k, DType::F32, b, DType::F32);
            for quantised_activations in [false, true] {
                op.policy.quantised_activations = quantised_activations;
                let op = Op::from(op);
                let ran = check(&device, &op, &inputs(&op, &mut random, false), false);
                assert!(ran >= 2, "{b}");
            }
        }
    }
}

#[test]
fn tiles_of_every_height_and_depth() {
    let mut random = Random(12);
    let device = open(2);
    for (m, n, k) in
        [(1, 1, 1), (15, 33, 31), (16, 32, 64), (17, 70, 65), (32, 31, 600), (33, 64, 1030), (70, 40, 130)]
    {
        for (input, output) in [(DType::BF16, DType::F32), (DType::I8, DType::I32)] {
            let mut op = MatMul::linear(m, n, k, input, input, output);
            check(&device, &op.into(), &inputs(&op.into(), &mut random, true), true);
            (op.a.strides, op.batch) = (Matrix::col_major(m, k), 2);
            check(&device, &op.into(), &inputs(&op.into(), &mut random, true), true);
        }
    }
}

/// Where magnitudes differ within a block of activations, the bound is by the largest of them.
#[test]
fn activations_of_eight_bits_are_as_exact_as_their_blocks_allow() {
    let mut random = Random(13);
    let device = open(2);
    for b in [DType::Q8_0, DType::Q4_0, DType::Q4K, DType::Q6K, DType::MxFp4] {
        let (m, n, k) = (3, 35, 512);
        let mut op = MatMul::linear(m, n, k, DType::F32, b, DType::F32);
        op.policy.quantised_activations = true;
        let op = Op::from(op);
        let mut operands = inputs(&op, &mut random, false);
        let wide: Vec<f32> =
            (0..m * k).map(|_| random.unit() * 10f32.powi(random.integer() as i32)).collect();
        let weights = operands[1].1.value.clone();
        operands[0].0 = bytemuck::cast_slice(&wide).to_vec();
        let bytes: Vec<Vec<u8>> = operands.into_iter().map(|(bytes, _)| bytes).collect();
        for row in
            rows(&device, &op).into_iter().filter(|row| row.name.contains(b.name()) && !row.packs.is_empty())
        {
            let out = run(&device, row, &op, &bytes, &vec![0; m * n * 4]);
            for (i, got) in bytemuck::cast_slice::<u8, f32>(&out).iter().enumerate() {
                let (a, w) = (&wide[i / n * k..][..k], &weights[i % n * k..][..k]);
                let exact: f64 = a.iter().zip(w).map(|(a, w)| f64::from(*a) * w).sum();
                let blocks = a.chunks(32).zip(w.chunks(32));
                let allowed: f64 = blocks
                    .map(|(a, w)| {
                        let largest = a.iter().fold(0f32, |largest, a| largest.max(a.abs()));
                        f64::from(largest) / 254.0 * 1.01 * w.iter().map(|w| w.abs()).sum::<f64>()
                    })
                    .sum();
                assert!(
                    (f64::from(*got) - exact).abs() <= allowed,
                    "{}: {i}: {got} {exact} {allowed}",
                    row.name
                );
            }
        }
    }
}

#[test]
fn integers_and_scales_run_on_the_simple_row() {
    let mut random = Random(11);
    let device = open(2);
    let op = Op::from(MatMul::nn(7, 19, 100, DType::I8, DType::I8, DType::I32));
    check(&device, &op, &inputs(&op, &mut random, true), true);
    let scales = [None, Some(Granularity::Tensor), Some(Granularity::Vector), Some(Granularity::Group(32))];
    for a_scale in scales {
        for b_scale in scales {
            for dtype in [DType::I8, DType::F8E4M3] {
                let mut op = MatMul::linear(5, 9, 100, dtype, dtype, DType::F32);
                (op.batch, op.a_scale, op.b_scale) = (2, a_scale, b_scale);
                op.epilogue.bias = Some(DType::BF16);
                check(&device, &op.into(), &inputs(&op.into(), &mut random, false), false);
            }
        }
    }
}

/// Blocks of rows that share what is widened of B, several slabs one behind the other.
#[test]
fn slabs_of_plain_operands() {
    let mut random = Random(14);
    let types = [
        (DType::F32, DType::F32, DType::F32),
        (DType::BF16, DType::BF16, DType::F32),
        (DType::I8, DType::I8, DType::I32),
        (DType::F32, DType::F16, DType::BF16),
    ];
    for threads in [1, 3] {
        let device = open(threads);
        for (a, b, c) in types {
            for (batch, m, n, k) in [(1, 200, 150, 70), (1, 410, 100, 301), (2, 200, 97, 33)] {
                let plain = [MatMul::nn(m, n, k, a, b, c), MatMul::linear(m, n, k, a, b, c)];
                for (i, mut op) in plain.into_iter().enumerate() {
                    (op.batch, op.b_constant) = (batch, false);
                    if batch > 1 {
                        op.a.strides.batch = m * k;
                        op.c.strides.batch = m * n;
                        op.b.strides.batch = i * n * k;
                    }
                    check(&device, &op.into(), &inputs(&op.into(), &mut random, true), c != DType::BF16);
                }
            }
        }
    }
}

#[test]
fn rounds_and_blocks_of_larger_products() {
    let mut random = Random(12);
    let device = open(2);
    // several blocks of rows; several matrices
    for (batch, m, n, k) in [(1, 400, 40, 300), (3, 200, 24, 20), (40, 3, 8, 3)] {
        let mut op = MatMul::nn(m, n, k, DType::F32, DType::BF16, DType::F32);
        op.batch = batch;
        check(&device, &op.into(), &inputs(&op.into(), &mut random, true), true);
    }
    // more rows of packed A than one round holds
    let op = Op::from(MatMul::linear(220, 3, 30_000, DType::F16, DType::F16, DType::F32));
    check(&device, &op, &inputs(&op, &mut random, true), true);
}

#[test]
fn nan_and_infinity_reach_their_elements_and_no_others() {
    let device = open(2);
    for (m, n) in [(1, 20), (9, 20)] {
        let op = Op::from(MatMul::linear(m, n, 5, DType::F32, DType::F32, DType::F32));
        let mut given = inputs(&op, &mut Random(13), true);
        for (operand, at, value) in [(1, 17 * 5 + 2, f32::NAN), (0, 4, f32::INFINITY)] {
            given[operand].0[at * 4..at * 4 + 4].copy_from_slice(&value.to_le_bytes());
            given[operand].1.value[at] = f64::from(value);
        }
        check(&device, &op, &given, true);
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let mut random = Random(14);
    for m in [1, 7, 40, 250] {
        let op = Op::from(MatMul::linear(m, 90, 700, DType::F32, DType::BF16, DType::F32));
        let given: Vec<Vec<u8>> = inputs(&op, &mut random, false).into_iter().map(|(b, _)| b).collect();
        let c = vec![0; op.operands()[2].bytes as usize];
        let one = open(1);
        for row in rows(&one, &op) {
            let expected = run(&one, row, &op, &given, &c);
            for threads in [1, 2, 5] {
                let device = open(threads);
                assert_eq!(
                    run(&device, row, &op, &given, &c),
                    expected,
                    "{} with {threads} threads",
                    row.name
                );
            }
        }
    }
}

fn grouped(experts: usize, rows: usize, n: usize, k: usize, divisor: usize, b: DType) -> GroupedMatMul {
    let a_rows = rows.div_ceil(divisor);
    GroupedMatMul {
        experts,
        rows,
        n,
        k,
        a: tensor(DType::F32, Matrix::row_major(a_rows, k)),
        a_rows,
        a_divisor: divisor,
        b: tensor(b, Matrix::col_major(k, n)),
        b_constant: true,
        c: tensor(DType::F32, Matrix::row_major(rows, n)),
        c_rows: rows,
        bias: Some(DType::F32),
        activation: Activation::Silu,
        policy: Default::default(),
    }
}

fn slots(given: &mut Vec<(Vec<u8>, Values)>, slots: [&[i32]; 2]) {
    for (i, slot) in slots.into_iter().enumerate() {
        let values = Values::new(slot.iter().map(|&x| f64::from(x)).collect());
        given.insert(2 + i, (bytemuck::cast_slice(slot).to_vec(), values));
    }
}

#[test]
fn experts_with_many_few_and_no_rows() {
    let mut random = Random(15);
    let device = open(2);
    for b in [DType::F32, DType::BF16, DType::F16, DType::Q8_0, DType::MxFp4] {
        for (rows, counts) in
            [(24, [0, 20, 1, 3]), (8, [2, 2, 2, 2]), (6, [0, 0, 0, 6]), (500, [450, 0, 7, 40])]
        {
            let op = grouped(4, rows, 35, 64, 2, b);
            let mut offsets = vec![0];
            for count in counts {
                offsets.push(offsets[offsets.len() - 1] + count);
            }
            let mut order: Vec<i32> = (0..rows as i32).collect();
            for i in (1..rows).rev() {
                order.swap(i, random.next() as usize % (i + 1));
            }
            let mut given = inputs(&op.into(), &mut random, false);
            slots(&mut given, [&offsets, &order]);
            let ran = check(&device, &op.into(), &given, false);
            assert!(ran >= 2, "{b}");
        }
    }
}

#[test]
fn nonsense_in_slots_stays_inside_the_operands() {
    let device = open(3);
    let mut random = Random(16);
    let (rows, experts) = (40, 3);
    let op = Op::from(grouped(experts, rows, 35, 17, 1, DType::F32));
    for round in 0..200 {
        let wild = |random: &mut Random| match random.next() % 4 {
            0 => random.next() as i32,
            1 => [i32::MIN, -1, i32::MAX][random.next() as usize % 3],
            _ => (random.next() % (rows as u64 + 3)) as i32,
        };
        let offsets: Vec<i32> = (0..=experts).map(|_| wild(&mut random)).collect();
        let order: Vec<i32> = (0..rows).map(|_| wild(&mut random)).collect();
        let mut given = inputs(&op, &mut random, true);
        slots(&mut given, [&offsets, &order]);
        let bytes: Vec<Vec<u8>> = given.into_iter().map(|(b, _)| b).collect();
        let c = vec![0; rows * 35 * 4];
        // repeated rows are written in the order of the positions, so even nonsense has one result
        let results = rows_of(&device, &op, &bytes, &c);
        for other in &results[1..] {
            let number = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            for (x, y) in other.chunks(4).zip(results[0].chunks(4)) {
                let (x, y) = (number(x), number(y));
                assert!((x - y).abs() <= 1e-4 * (1.0 + y.abs()), "round {round}: {x} and {y}");
            }
        }
    }
}

fn rows_of(device: &CpuDevice, op: &Op, inputs: &[Vec<u8>], c: &[u8]) -> Vec<Vec<u8>> {
    rows(device, op).into_iter().map(|row| run(device, row, op, inputs, c)).collect()
}

#[test]
fn rows_say_why_they_refuse() {
    let features = crate::features::Features::default();
    let device = CpuDevice::open(&Options { threads: Some(1), features: Some(features) }).unwrap();
    let op = Op::from(MatMul::linear(4, 4, 4, DType::F32, DType::F32, DType::F32));
    let verdicts = perjoule_kernels::explain(&device, &op).unwrap();
    let reason = |name: &str| {
        let verdict = verdicts.iter().find(|v| v.choice.kernel.name == name).unwrap();
        verdict.outcome.as_ref().err().map(|r| r.to_string())
    };
    assert!(reason("matmul_f32_6x16_cpu_avx2_packed").unwrap().starts_with("needs avx2, which"));
    assert_eq!(reason("matmul_bf16_6x8_cpu_portable_packed").unwrap(), "reads b in bf16");
    assert_eq!(reason("matmul_any_1x1_cpu_portable"), None);
    let chosen = perjoule_kernels::select(
        &open(2),
        &MatMul::linear(512, 512, 512, DType::F32, DType::BF16, DType::F32).into(),
        &[],
    )
    .unwrap();
    assert!(chosen.kernel.name.starts_with("matmul_bf16_") && chosen.pack.is_some(), "{chosen:?}");
}

/// Strides that no second row or matrix uses may be anything, and are no reason to overflow.
#[test]
fn strides_that_nothing_uses() {
    let device = open(2);
    let mut random = Random(21);
    for dtype in [DType::F32, DType::BF16] {
        for m in [1, 9, 40] {
            let mut op = MatMul::nn(m, 50, 1, dtype, dtype, DType::F32);
            op.b.strides = Matrix { row: usize::MAX, col: 1, batch: usize::MAX - 7 };
            for constant in [false, true] {
                op.b_constant = constant;
                check(&device, &op.into(), &inputs(&op.into(), &mut random, true), true);
            }
        }
    }
}

/// Rows that pack nothing: all sizes of their tiles, words of k that are short, rows that are apart, results that are not stored as they are.
#[test]
fn tiles_that_pack_nothing() {
    let mut random = Random(15);
    for threads in [1, 3] {
        let device = open(threads);
        for dtype in [DType::F32, DType::BF16] {
            for (m, ks) in [(1, [0, 1, 8]), (4, [2, 9, 64]), (8, [3, 7, 21]), (15, [4, 11, 130])] {
                for (n, k) in
                    [1, 15, 16, 31, 32, 33, 48, 50, 64, 65, 97, 128].into_iter().zip(ks.into_iter().cycle())
                {
                    let mut op = MatMul::nn(m, n, k, dtype, dtype, DType::F32);
                    check(&device, &op.into(), &inputs(&op.into(), &mut random, true), true);
                    op.batch = 3;
                    op.a.strides = Matrix { row: k + 3, col: 1, batch: m * (k + 3) };
                    op.b.strides = Matrix { row: n + 5, col: 1, batch: 0 };
                    op.c.strides = Matrix { row: n + 1, col: 1, batch: m * (n + 1) };
                    check(&device, &op.into(), &inputs(&op.into(), &mut random, true), true);
                    op.c = tensor(DType::BF16, Matrix::col_major(m, n));
                    op.epilogue.residual = Some(tensor(DType::F32, Matrix::row_major(m, n)));
                    op.epilogue.scale = 0.5;
                    check(&device, &op.into(), &inputs(&op.into(), &mut random, false), false);
                }
            }
        }
    }
}
