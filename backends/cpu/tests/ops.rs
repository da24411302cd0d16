//! Every row of the ops other than products and attention against the op's reference.

mod common;

use common::{Random, check, devices, encode, launch, rows};
use perjoule_kernels::op::*;
use perjoule_kernels::{DType, KvLayout, Paging, Rows};

const FLOATS: [DType; 4] = [DType::F32, DType::BF16, DType::F16, DType::F8E4M3];
/// Around vectors and runs.
const LENGTHS: [usize; 10] = [1, 3, 7, 8, 15, 17, 64, 255, 257, 600];

/// Rows with gaps, in two shapes.
fn strided(outer: usize, inner: usize, len: usize) -> [Rows; 2] {
    let gaps = Rows { outer, inner, len, inner_stride: len + 3, outer_stride: inner * (len + 3) + 5 };
    // heads outside tokens
    let swapped = Rows { outer, inner, len, outer_stride: len + 1, inner_stride: outer * (len + 1) + 2 };
    [gaps, swapped]
}

#[test]
fn norms() {
    let devices = devices();
    for len in LENGTHS {
        for (x_dtype, out_dtype) in FLOATS.into_iter().zip([DType::F32, DType::F32, DType::BF16, DType::F16])
        {
            for [x, out] in [[Rows::dense(3, len); 2], strided(2, 3, len)] {
                let plain = RmsNorm { x, out, x_dtype, out_dtype, ..RmsNorm::dense(1, len, x_dtype) };
                let layer = LayerNorm { x, out, x_dtype, out_dtype, ..LayerNorm::dense(1, len, x_dtype) };
                let residual = Some(Residual { rows: out, sum: out });
                check(&devices, plain, &[]);
                check(
                    &devices,
                    RmsNorm { residual, weight: x_dtype, weight_offset: 1.0, eps: 0.1, ..plain },
                    &[],
                );
                check(&devices, layer, &[]);
                check(&devices, LayerNorm { residual, bias: false, weight: x_dtype, ..layer }, &[]);
            }
        }
    }
    check(&devices, RmsNorm::dense(0, 8, DType::F32), &[]);
    check(&devices, LayerNorm::dense(0, 8, DType::F32), &[]);
    // a large mean, whose square an f32 variance would drown in
    let x: Vec<f64> = (0..500).map(|i| 1000.0 + f64::from(i % 7)).collect();
    check(&devices, LayerNorm::dense(1, 500, DType::F32), &[("x", x)]);
    // squares beyond the range of f32
    for unit in [1e25, 1e-25, 1e38, 1e-37, 1e-40, 3e-45] {
        let x: Vec<f64> = (0..500).map(|i| unit * f64::from(i % 7 - 3)).collect();
        let (rms, layer) = (RmsNorm::dense(1, 500, DType::F32), LayerNorm::dense(1, 500, DType::F32));
        check(&devices, RmsNorm { eps: 0.0, ..rms }, &[("x", x.clone())]);
        check(&devices, LayerNorm { eps: 0.0, ..layer }, &[("x", x)]);
        // the least of them as the only one, and so far from the others that f32 does not hold its distance from the mean
        let x: Vec<f64> = (0..500).map(|i| if i == 77 { -3.0 * unit } else { 3.0 * unit }).collect();
        check(&devices, RmsNorm { eps: 0.0, ..rms }, &[("x", x.clone())]);
        check(&devices, LayerNorm { eps: 0.0, ..layer }, &[("x", x)]);
    }
    // nothing to divide by
    check(&devices, RmsNorm { eps: 0.0, ..RmsNorm::dense(1, 9, DType::F32) }, &[("x", vec![0.0; 9])]);
    check(&devices, LayerNorm { eps: 0.0, ..LayerNorm::dense(1, 9, DType::F32) }, &[("x", vec![2.0; 9])]);
}

#[test]
fn rotary_positions() {
    let devices = devices();
    let scalings = [
        RopeScaling::None,
        RopeScaling::Linear { factor: 4.0 },
        RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max: 64 },
        RopeScaling::Yarn {
            factor: 16.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            original_max: 128,
            truncate: true,
            attention_factor: 1.3,
        },
    ];
    for (dtype, scaling) in FLOATS.into_iter().zip(scalings) {
        for (len, rotary_dim) in [(8, 8), (10, 6), (64, 64), (128, 32), (600, 600), (5, 0)] {
            for x in strided(4, 3, len) {
                for style in [RopeStyle::HalfSplit, RopeStyle::Interleaved] {
                    let op =
                        Rope { x, rotary_dim, style, scaling, ..Rope::dense(4, 3, len, dtype, 10_000.0) };
                    check(&devices, op, &[("positions", vec![0.0, 5.0, 3.0, 1000.0])]);
                }
            }
        }
    }
}

#[test]
fn element_wise() {
    let devices = devices();
    let kinds = [
        GatedKind::SwiGlu,
        GatedKind::GeGluTanh,
        GatedKind::GptOss { alpha: 1.702, limit: 0.6 },
        GatedKind::GeGlu,
    ];
    for len in LENGTHS {
        for (dtype, out_dtype) in FLOATS.into_iter().zip(FLOATS.into_iter().rev()) {
            let [a, out] = strided(3, 2, len);
            for (kind, up) in kinds.into_iter().zip([a, Rows::grid(3, 2, len), out, a]) {
                check(&devices, Gated { gate: a, up, dtype, out, out_dtype, kind }, &[]);
            }
            check(&devices, Add { a, b: Rows { outer_stride: 0, ..a }, dtype, out }, &[]);
            check(&devices, Add::dense(2, len, dtype), &[]);
            let x = Rows { outer: 6, ..strided(6, 2, len)[0] };
            let residual = dtype != DType::F16;
            check(&devices, Combine { tokens: 3, top_k: 2, x, dtype, out, out_dtype, residual }, &[]);
        }
    }
    // far out, where exponentials overflow
    let far = vec![-1e30, -200.0, -90.0, 0.0, 90.0, 200.0, 1e30, f64::NAN];
    for kind in kinds {
        check(&devices, Gated::dense(1, 8, DType::F32, kind), &[("gate", far.clone())]);
    }
}

#[test]
fn softmax() {
    let devices = devices();
    for len in LENGTHS {
        for (dtype, out_dtype) in FLOATS.into_iter().zip(FLOATS.into_iter().rev()) {
            let [x, out] = strided(3, 2, len);
            check(&devices, Softmax { x, dtype, out, out_dtype, scale: 7.5 }, &[]);
        }
    }
    for at in [0, 5, 8, 18] {
        for odd in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let mut x: Vec<f64> = (0..38).map(|i| f64::from(i) * 0.1).collect();
            x[at] = odd;
            check(&devices, Softmax::dense(2, 19, DType::F32), &[("x", x)]);
        }
    }
    check(&devices, Softmax::dense(1, 9, DType::F32), &[("x", vec![f64::NEG_INFINITY; 9])]);
    // products with the scale beyond the range of f32, on either side, and beside masked elements
    for scale in [2.0, -2.0, 1e38, -1e38] {
        for [low, high] in [[-3e38, 3e38], [-3e38, -2e38], [2e38, 3e38], [f64::NEG_INFINITY, 3e38]] {
            if low.is_infinite() && scale < 0.0 {
                continue;
            }
            let x: Vec<f64> = (0..300).map(|i| if i % 3 == 0 { low } else { high }).collect();
            check(&devices, Softmax { scale, ..Softmax::dense(1, 300, DType::F32) }, &[("x", x)]);
        }
    }
}

#[test]
fn embedding() {
    let devices = devices();
    let ids = vec![4.0, 0.0, -1.0, 2.0, 5.0];
    for table in DType::ALL.into_iter().filter(|d| d.is_float() || d.is_block()) {
        for dim in [256, 512, 768].into_iter().chain(LENGTHS.into_iter().filter(|_| table.is_float())) {
            let op = Embed { scale: 1.5, ..Embed::dense(5, 5, dim, table, DType::F32) };
            let op = Embed { out: op.out.with_outer_stride(dim + 4), ..op };
            check(&devices, op, &[("ids", ids.clone())]);
            check(&devices, Embed { out_dtype: DType::BF16, ..op }, &[("ids", ids.clone())]);
        }
    }
}

#[test]
fn appending_and_advancing() {
    let devices = devices();
    for kv_dtype in FLOATS.into_iter().chain([DType::Q8_0]) {
        for (src_dtype, kv) in FLOATS.into_iter().zip([
            KvLayout::contiguous(2, 9, 32),
            KvLayout::token_major(3, 9, 64),
            KvLayout::paged(2, 9, 32, Paging { block: 4, blocks: 7 }),
            KvLayout::paged(1, 9, 320, Paging { block: 2, blocks: 15 }),
        ]) {
            let op = KvAppend { kv_dtype, src_dtype, ..KvAppend::dense(3, 4, kv, kv_dtype) };
            // a block that does not exist is skipped; the rest are used once
            let table: Vec<f64> = match kv.paging {
                Some(p) => (0..3 * kv.blocks_per_sequence())
                    .map(|i| if i < p.blocks { i as f64 } else { -1.0 })
                    .collect(),
                None => Vec::new(),
            };
            // before the beginning, in the middle, past the end
            let mut given = vec![("kv_len", vec![2.0, 7.0, 11.0]), ("block_table", table)];
            check(&devices, op, &given);
            given.push(("q_offsets", vec![0.0, 0.0, 3.0, 7.0]));
            let ragged = |rows: Rows| Rows { outer: 8, ..rows };
            let op = KvAppend { ragged: true, src_k: ragged(op.src_k), src_v: ragged(op.src_v), ..op };
            check(&devices, op, &given);
        }
    }
    check(&devices, Advance::uniform(3, 2), &[("kv_len", vec![0.0, 5.0, 9.0])]);
    let ragged = Advance { batch: 3, q_len: 4, ragged: true, tokens: 9 };
    check(&devices, ragged, &[("kv_len", vec![0.0, 5.0, 9.0]), ("q_offsets", vec![0.0, 4.0, 4.0, 6.0])]);
}

#[test]
fn routing() {
    let devices = devices();
    let orders = [
        RouteOrder::SoftmaxThenTopK { renormalise: false },
        RouteOrder::SoftmaxThenTopK { renormalise: true },
        RouteOrder::TopKThenSoftmax,
    ];
    for order in orders {
        for (tokens, experts, top_k, dtype) in [
            (1, 1, 1, DType::F32),
            (7, 8, 2, DType::BF16),
            (40, 130, 8, DType::F16),
            (9, 5, 5, DType::F8E4M3),
            (0, 4, 2, DType::F32),
        ] {
            check(&devices, Route { tokens, experts, top_k, dtype, order }, &[]);
        }
        let op = Route { tokens: 2, experts: 6, top_k: 3, dtype: DType::F32, order };
        let ties = vec![1.0, 2.0, 2.0, 1.0, 2.0, 2.0, 0.0, -0.0, 0.0, -1.0, f64::NEG_INFINITY, 0.0];
        check(&devices, op, &[("logits", ties)]);
        let nan = vec![1.0, f64::NAN, 2.0, f64::NAN, 3.0, 0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0];
        check(&devices, op, &[("logits", nan)]);
    }
}

#[test]
fn choosing_tokens() {
    let devices = devices();
    for len in LENGTHS {
        for dtype in FLOATS {
            check(&devices, Argmax { x: strided(4, 2, len)[0], dtype }, &[]);
        }
        // the odd one at every place, in whole vectors and behind them
        for at in [0, len / 2, len - 1] {
            for odd in [f64::NAN, f64::INFINITY, 7.0] {
                let mut x = vec![-1.0; len];
                x[at] = odd;
                check(&devices, Argmax { x: Rows::dense(1, len), dtype: DType::F32 }, &[("x", x.clone())]);
                // a tie or a second NaN behind it changes nothing
                x[len - 1] = odd;
                check(&devices, Argmax { x: Rows::dense(1, len), dtype: DType::F32 }, &[("x", x)]);
            }
        }
    }
    let x = vec![f64::NEG_INFINITY; 9];
    check(&devices, Argmax { x: Rows::dense(1, 9), dtype: DType::F32 }, &[("x", x)]);
    for (top_k, top_p) in
        [(None, None), (Some(5), None), (None, Some(0.4)), (Some(50), Some(0.9)), (Some(1), Some(1.0))]
    {
        for len in [1, 40, 300] {
            let op = Sample { x: Rows::dense(9, len), dtype: DType::F32, temperature: 0.6, top_k, top_p };
            let uniform: Vec<f64> = (0..9).map(|i| f64::from(i) / 9.0 + 0.001).collect();
            check(&devices, op, &[("uniform", uniform)]);
        }
    }
}

#[test]
fn conversions() {
    let devices = devices();
    let plain = [DType::F32, DType::F16, DType::BF16, DType::F8E4M3, DType::I8, DType::I32, DType::U32];
    let odd = [-1e12, -3e9, -200.5, -2.5, -1.5, 0.5, 1.5, 255.5, 3e9, 1e12, f64::NAN, 16_777_217.0];
    for from in plain {
        for to in plain {
            let [x, out] = strided(3, 2, 37);
            check(&devices, Cast { x, from, out, to }, &[]);
            check(&devices, Cast::dense(1, 300, from, to), &[]);
            check(&devices, Cast::dense(1, odd.len(), from, to), &[("x", odd.to_vec())]);
        }
    }
    for from in DType::ALL.into_iter().filter(|d| d.is_block()) {
        for to in FLOATS {
            check(&devices, Cast::dense(3, 768, from, to), &[]);
        }
        for source in FLOATS {
            check(&devices, Quantise { x: Rows::dense(3, 768), from: source, to: from, scale: None }, &[]);
        }
    }
    for to in [DType::I8, DType::F8E4M3] {
        for granularity in
            [Granularity::Tensor, Granularity::Vector, Granularity::Group(16), Granularity::Group(300)]
        {
            for from in FLOATS {
                for (rows, len) in [(3, 1), (2, 70), (5, 257), (0, 4)] {
                    let x = Rows::dense(rows, len);
                    check(&devices, Quantise { x, from, to, scale: Some(granularity) }, &[]);
                }
            }
            let x = Rows::dense(2, 4);
            let values = vec![0.0, 0.0, 0.0, 0.0, 3.0, f64::NAN, -4.0, 0.0];
            check(&devices, Quantise { x, from: DType::F32, to, scale: Some(granularity) }, &[("x", values)]);
        }
    }
}

#[test]
fn compositions() {
    let devices = devices();
    for (dtype, kv_dtype) in [(DType::F32, DType::F32), (DType::BF16, DType::F16), (DType::F16, DType::Q8_0)]
    {
        let append = KvAppend {
            kv_dtype,
            src_dtype: dtype,
            ..KvAppend::dense(2, 3, KvLayout::contiguous(2, 12, 64), kv_dtype)
        };
        let norm = Some(HeadNorm::default());
        let op = QkNormRopeAppend::dense(4, append, 10_000.0);
        let op = QkNormRopeAppend { q_norm: norm, k_norm: norm, ..op };
        let positions = vec![4.0, 5.0, 6.0, 8.0, 9.0, 10.0];
        if kv_dtype.is_float() {
            let slots = [("positions", positions), ("kv_len", vec![7.0, 11.0])];
            check(&devices, op, &slots);
            if dtype == DType::F32 {
                // heads whose inverse f32 does not hold
                let vectors =
                    |heads: usize| (0..6 * heads * 64).map(|i| 1e-41 * f64::from(i as u8)).collect();
                let norm = Some(HeadNorm { eps: 0.0, ..HeadNorm::default() });
                let given = [&slots[..], &[("q", vectors(4)), ("k", vectors(2))]].concat();
                check(&devices, QkNormRopeAppend { q_norm: norm, k_norm: norm, ..op }, &given);
            }
        }
    }
    for (a, b, bias) in [
        (DType::F32, DType::F32, None),
        (DType::BF16, DType::Q4_0, Some(DType::F32)),
        (DType::F32, DType::Q6K, None),
        (DType::F16, DType::F8E4M3, Some(DType::BF16)),
    ] {
        let mut product = MatMul::linear(3, 37, 512, a, b, DType::F32);
        product.epilogue.bias = bias;
        let gated = Gated::dense(3, 37, DType::F32, GatedKind::SwiGlu);
        check(&devices, GatedMatMul { gate: product, up: product, gated }, &[]);
    }
    let product = MatMul::nn(2, 5, 0, DType::F32, DType::F32, DType::F32);
    let gated = Gated::dense(2, 5, DType::F32, GatedKind::GeGluTanh);
    check(&devices, GatedMatMul { gate: product, up: product, gated }, &[]);
    let copy = Collective { kind: CollectiveKind::AllReduce, dtype: DType::BF16, count: 10_000, world: 1 };
    check(&devices, copy, &[]);
}

/// Slots with nonsense in them: nothing outside the operands is touched, and nothing panics.
#[test]
fn slots_are_not_trusted() {
    let devices = devices();
    let kv = KvLayout::paged(2, 20, 16, Paging { block: 4, blocks: 3 });
    let append = KvAppend::dense(2, 3, kv, DType::F32);
    let ops: [Op; 4] = [
        KvAppend { ragged: true, ..append }.into(),
        Advance { batch: 3, q_len: 4, ragged: true, tokens: 9 }.into(),
        Embed::dense(7, 3, 10, DType::F32, DType::F32).into(),
        Rope::dense(5, 2, 16, DType::F32, 10_000.0).into(),
    ];
    let mut random = Random(5);
    for op in ops {
        for _ in 0..20 {
            let mut wild = |n: usize| -> Vec<u8> {
                let values = (0..n).map(|_| random.next()).map(|r| match r % 4 {
                    0 => (r >> 32) as i32,
                    1 => i32::MIN,
                    2 => i32::MAX,
                    _ => (r >> 40) as i32 % 16,
                });
                values.flat_map(i32::to_le_bytes).collect()
            };
            let fill = |o: &perjoule_kernels::Operand| match o.slot {
                true => wild(o.elements as usize),
                false => encode(o.dtype, &vec![0.5; o.elements as usize]),
            };
            let inputs: Vec<Vec<u8>> = op.operands().iter().map(fill).collect();
            for device in &devices {
                for kernel in rows(device, &op) {
                    launch(device, kernel, &op, &inputs);
                }
            }
        }
    }
}
