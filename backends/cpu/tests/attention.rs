//! Every attention row against the op's reference.

mod common;

use common::{Random, check, check_within, decode, devices, encode, launch, rows};
use perjoule_kernels::op::*;
use perjoule_kernels::{Access, DType, KvLayout, Matrix, Paging, Rows};

fn lengths(values: &[usize]) -> (&'static str, Vec<f64>) {
    ("kv_len", values.iter().map(|&v| v as f64).collect())
}

#[test]
fn shapes_around_tiles() {
    let devices = devices();
    for (q_len, capacity, length) in [
        (1, 1, 1),
        (1, 200, 97),
        (3, 96, 96),
        (5, 100, 100),
        (33, 300, 290),
        (70, 200, 71),
        (130, 130, 130),
        (2, 10, 1),
    ] {
        for (heads, kv_heads, d) in [(1, 1, 8), (4, 2, 16), (6, 1, 40), (8, 2, 64), (3, 3, 5), (17, 1, 33)] {
            let mut op =
                Attention::causal(2, q_len, heads, KvLayout::contiguous(kv_heads, capacity, d), DType::F32);
            check(&devices, op, &[lengths(&[length, length.div_ceil(2)])]);
            op.causal = false;
            check(&devices, op, &[lengths(&[length, 0])]);
        }
    }
}

#[test]
fn all_types() {
    let devices = devices();
    let floats = [DType::F32, DType::BF16, DType::F16, DType::F8E4M3];
    for (q_len, length) in [(1, 150), (20, 150)] {
        for kv in floats.into_iter().chain([DType::Q8_0]) {
            for (q, out) in floats.into_iter().zip(floats.into_iter().rev()) {
                let op = Attention::causal(1, q_len, 4, KvLayout::contiguous(2, 160, 64), q);
                let mut op = Attention { kv_dtype: kv, out_dtype: out, ..op };
                check(&devices, op, &[lengths(&[length])]);
                op.policy.quantised_activations = true;
                check(&devices, op, &[lengths(&[length])]);
            }
        }
    }
}

#[test]
fn windows_caps_sinks_and_strides() {
    let devices = devices();
    for (q_len, length) in [(1, 333), (4, 333), (50, 333), (120, 200)] {
        for (window, causal) in
            [(Some(1), true), (Some(64), true), (Some(97), false), (Some(1000), true), (None, true)]
        {
            for (soft_cap, sinks) in [(None, true), (Some(0.7), false), (Some(30.0), true)] {
                let kv = KvLayout::token_major(2, 340, 24);
                let mut op = Attention::causal(1, q_len, 6, kv, DType::F32);
                op.q = Rows { outer_stride: 6 * 24 + 9, ..op.q };
                op.out = Rows { inner_stride: 30, outer_stride: 200, ..op.out };
                op = Attention { window, causal, soft_cap, sinks, scale: 0.9, ..op };
                check(&devices, op, &[lengths(&[length])]);
            }
        }
    }
}

/// Caps and sinks that f32 holds, but not as exponents of 2.
#[test]
fn the_largest_caps_and_sinks() {
    let devices = devices();
    for q_len in [1, 40] {
        let op = Attention::causal(1, q_len, 4, KvLayout::contiguous(2, 60, 16), DType::F32);
        for cap in [2.3e38, 2.4e38, f32::MAX] {
            check(&devices, Attention { soft_cap: Some(cap), ..op }, &[lengths(&[60])]);
        }
        for sink in [2.3e38, 3e38, -3e38, f64::from(f32::MAX), f64::NEG_INFINITY, f64::INFINITY, f64::NAN] {
            let sinks = ("sinks", vec![sink; 4]);
            check(&devices, Attention { sinks: true, ..op }, &[lengths(&[60]), sinks.clone()]);
            // no score beside it
            let given = [
                lengths(&[60]),
                sinks,
                ("k", vec![f64::NEG_INFINITY; 60 * 2 * 16]),
                ("q", vec![1.0; q_len * 64]),
            ];
            check(&devices, Attention { sinks: true, ..op }, &given);
        }
    }
}

#[test]
fn ragged_and_paged() {
    let devices = devices();
    for (offsets, tokens) in [([0, 1, 1, 30, 37], 40), ([0, 40, 41, 42, 42], 42)] {
        for kv_dtype in [DType::F32, DType::BF16] {
            let kv = KvLayout::paged(2, 500, 32, Paging { block: 16, blocks: 40 });
            let rows = Rows::grid(tokens, 4, 32);
            let op = Attention::causal(4, 40, 4, kv, DType::F32);
            let op = Attention { ragged: true, q: rows, out: rows, kv_dtype, ..op };
            let mut random = Random(7);
            let table: Vec<f64> = (0..4 * 32).map(|_| (random.next() % 40) as f64).collect();
            let given = [
                lengths(&[480, 100, 77, 7]),
                ("q_offsets", offsets.iter().map(|&o| f64::from(o)).collect()),
                ("block_table", table),
            ];
            check(&devices, op, &given);
        }
    }
}

/// Weights that may be rounded to bf16 and are multiplied in pairs of keys: an odd number of them, windows that begin at any, heads
/// that are no whole vectors of words.
#[test]
fn rounded_weights() {
    let devices = devices();
    for (q_len, length, window) in
        [(1, 301, None), (20, 97, None), (40, 193, Some(7)), (70, 200, Some(50)), (33, 300, Some(1))]
    {
        for (heads, kv_heads, d) in [(4, 2, 64), (3, 1, 31), (2, 2, 96)] {
            let kv = KvLayout::token_major(kv_heads, 310, d);
            let mut op = Attention { window, ..Attention::causal(1, q_len, heads, kv, DType::BF16) };
            op.out_dtype = DType::F32;
            check(&devices, op, &[lengths(&[length])]);
            op.policy.quantised_activations = true;
            check(&devices, Attention { scale: -0.2, soft_cap: Some(3.0), ..op }, &[lengths(&[length])]);
            check(&devices, Attention { q_dtype: DType::F32, ..op }, &[lengths(&[length])]);
        }
    }
}

/// Long caches, so that keys are split among lanes, with and without sinks.
#[test]
fn splits() {
    let devices = devices();
    for (heads, kv_heads, sinks) in [(4, 1, false), (1, 1, true), (8, 2, true)] {
        for length in [1, 383, 385, 2000, 4000] {
            let op = Attention::causal(1, 2, heads, KvLayout::contiguous(kv_heads, 4000, 16), DType::BF16);
            let op = Attention { sinks, q_dtype: DType::F32, out_dtype: DType::F32, ..op };
            check(&devices, op, &[lengths(&[length])]);
        }
    }
}

/// What a row does not see must not reach it, even if it is NaN; what it sees must.
#[test]
fn nan_reaches_only_the_rows_that_see_it() {
    let devices = devices();
    let exact = Policy::default();
    let relaxed = Policy { quantised_activations: true, ..exact };
    for (q_len, bad) in [(30, 100), (30, 180), (30, 185), (3, 199), (3, 198), (3, 120)] {
        for (dtype, policy) in [(DType::F32, exact), (DType::BF16, exact), (DType::BF16, relaxed)] {
            let op = Attention::causal(1, q_len, 2, KvLayout::contiguous(1, 200, 32), dtype);
            let op: Op = Attention { policy, ..op }.into();
            for operand in [1, 2] {
                let mut random = Random(3);
                let mut inputs: Vec<Vec<f64>> = [q_len * 64, 6400, 6400]
                    .map(|n| (0..n).map(|_| f64::from(random.signed())).collect())
                    .into();
                inputs[operand][bad * 32 + 3] = f64::NAN;
                let mut bytes: Vec<Vec<u8>> = inputs.iter().map(|v| encode(dtype, v)).collect();
                bytes.push(encode(DType::I32, &[200.0]));
                bytes.push(encode(dtype, &vec![0.0; q_len * 64]));
                for device in &devices {
                    for kernel in rows(device, &op) {
                        let out = decode(dtype, &launch(device, kernel, &op, &bytes)[4]);
                        for (i, row) in out.chunks(64).enumerate() {
                            let sees = 200 - q_len + i >= bad;
                            assert_eq!(row.iter().any(|x| x.is_nan()), sees, "{} row {i}", kernel.name);
                        }
                    }
                }
            }
        }
    }
}

/// Slots with nonsense in them: nothing outside the operands is touched, nothing panics, and what comes out is what the op's
/// documentation says of such slots.
#[test]
fn slots_are_not_trusted() {
    let devices = devices();
    let kv = KvLayout::paged(2, 100, 16, Paging { block: 16, blocks: 3 });
    let (f, mut random) = (DType::F32, Random(11));
    let mut wild = |n: usize| -> Vec<f64> {
        let choose = |r: u64| match r % 4 {
            0 => (r >> 32) as i32,
            1 => i32::MIN,
            2 => i32::MAX,
            _ => (r >> 40) as i32 % 64,
        };
        (0..n).map(|_| f64::from(choose(random.next()))).collect()
    };
    let routed = GroupedMatMul {
        experts: 5,
        rows: 30,
        n: 20,
        k: 12,
        a: Tensor2 { dtype: f, strides: Matrix::row_major(10, 12) },
        a_rows: 10,
        a_divisor: 3,
        b: Tensor2 { dtype: f, strides: Matrix::col_major(12, 20) },
        b_constant: false,
        c: Tensor2 { dtype: f, strides: Matrix::row_major(30, 20) },
        c_rows: 30,
        bias: Some(f),
        activation: Activation::None,
        policy: Policy::default(),
    };
    for q_len in [1, 24, usize::MAX] {
        // as many rows as a ragged op may have
        let tokens = 2 * q_len.min(24);
        let (rows, keys) = (Rows::grid(tokens, 4, 16), Rows::grid(tokens, 2, 16));
        let attention = Attention::causal(2, 1, 4, kv, f);
        let append = KvAppend::dense(2, 1, kv, f);
        let append = KvAppend { q_len, ragged: true, src_k: keys, src_v: keys, ..append };
        let ops: [Op; 6] = [
            Attention { q_len, ragged: true, q: rows, out: rows, ..attention }.into(),
            append.into(),
            Advance { batch: 2, q_len, ragged: true, tokens }.into(),
            QkNormRopeAppend::dense(4, append, 1e4).into(),
            routed.into(),
            Embed::dense(tokens, 9, 16, f, f).into(),
        ];
        for op in &ops {
            for _ in 0..20 {
                let slots = op.operands().into_iter().filter(|o| o.slot && o.access != Access::Write);
                let mut given: Vec<(&str, Vec<f64>)> =
                    slots.map(|o| (o.name, wild(o.elements as usize))).collect();
                // angles of far positions are another matter
                given.iter_mut().filter(|(name, _)| *name == "positions").for_each(|(_, p)| p.fill(5.0));
                // many keys are the same one, whose roundings do not cancel out
                check_within(&devices, op.clone(), &given, 4.0);
            }
        }
    }
}

/// More rows than there are tokens may be allowed; each sequence has as many as its offsets say.
#[test]
fn ragged_rows_without_a_limit() {
    let devices = devices();
    let rows = Rows::grid(7, 4, 16);
    let op = Attention::causal(3, 1, 4, KvLayout::contiguous(2, 40, 16), DType::F32);
    let op = Attention { q_len: usize::MAX, ragged: true, q: rows, out: rows, ..op };
    let offsets = || ("q_offsets", vec![0.0, 2.0, 2.0, 7.0]);
    check(&devices, op, &[lengths(&[9, 3, 40]), offsets()]);
    let op = Advance { batch: 3, q_len: usize::MAX, ragged: true, tokens: 7 };
    check(&devices, op, &[lengths(&[9, 3, 40]), offsets()]);
    let mut out = launch_advance(&devices[1], op);
    assert_eq!(decode(DType::I32, &out.remove(1)), [11.0, 3.0, 45.0]);
    assert_eq!(decode(DType::I32, &out.remove(1)), [9.0, 10.0, 40.0, 41.0, 42.0, 43.0, 44.0]);
}

fn launch_advance(device: &perjoule_cpu::CpuDevice, op: Advance) -> Vec<Vec<u8>> {
    let op = Op::from(op);
    let slots = [vec![0.0, 2.0, 2.0, 7.0], vec![9.0, 3.0, 40.0], vec![-1.0; 7]];
    let inputs: Vec<Vec<u8>> = slots.iter().map(|s| encode(DType::I32, s)).collect();
    launch(device, rows(device, &op)[0], &op, &inputs)
}
