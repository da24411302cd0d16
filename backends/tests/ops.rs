//! Every call against the f64 reference of its op.

mod common;

use common::{bytes, ints, judge, numbers, open, random, random_as};
use perjoule::kernels::op::{
    Combine, Gated, GatedMatMul, GroupedMatMul, LayerNorm, MatMul, Quantise, Residual, RmsNorm, Rope, Route,
    Softmax,
};
use perjoule::kernels::{Matrix, Rows};
use perjoule::ops::{
    self, Activation, GatedKind, Granularity, RopeOptions, RopeScaling, RopeStyle, RouteOrder, Weight,
};
use perjoule::{DType, Tensor};

const F32: DType = DType::F32;

#[test]
fn rope_in_every_style_and_scaling() {
    let d = open();
    let scalings = [
        RopeScaling::None,
        RopeScaling::Linear { factor: 4.0 },
        RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max: 64 },
        RopeScaling::Yarn {
            factor: 16.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            original_max: 128,
            truncate: false,
            attention_factor: RopeScaling::yarn_attention_factor(16.0),
        },
    ];
    let positions = ints(&d, &[3, 4, 5, 700, 701, 702]);
    for (i, scaling) in scalings.into_iter().enumerate() {
        for style in [RopeStyle::HalfSplit, RopeStyle::Interleaved] {
            for rotary_dim in [32, 8] {
                // 3 of 5 heads of a fused row
                let fused = random(&d, i as u32, &[2, 3, 5, 32]);
                let x = fused.slice(2, 1..4).unwrap();
                let before = bytes(&[&positions, &x]);
                let rest = fused.slice(2, 4..).unwrap().to_bytes().unwrap();
                let options = RopeOptions::new(10_000.0).style(style).scaling(scaling).rotary_dim(rotary_dim);
                ops::rope(&x, &positions, options).unwrap();
                let op = Rope { style, scaling, rotary_dim, ..Rope::dense(6, 3, 32, F32, 10_000.0) };
                judge(&d, op, &before, &[&x]);
                assert_eq!(fused.slice(2, 4..).unwrap().to_bytes().unwrap(), rest, "other heads stay");
            }
        }
    }
    let x = random(&d, 9, &[6, 2, 16]);
    let before = bytes(&[&positions, &x]);
    ops::rope(&x, &positions, 500_000.0).unwrap();
    judge(&d, Rope::dense(6, 2, 16, F32, 500_000.0), &before, &[&x]);
}

#[test]
fn norms_with_residuals_and_offsets() {
    let d = open();
    let x = random(&d, 1, &[2, 3, 40]);
    // another arrangement than that of x
    let residual = random(&d, 2, &[2, 5, 64]).slice(1, 1..4).unwrap().slice(2, 8..48).unwrap();
    let (weight, bias) = (random_as(&d, 3, &[40], DType::BF16), random_as(&d, 4, &[40], DType::BF16));
    let rows = Rows::dense(6, 40);
    let added = Some(Residual { rows, sum: rows });

    let (sum, out) = ops::layer_norm_residual(&x, &residual, &weight, Some(&bias), 1e-5).unwrap();
    let op = LayerNorm { residual: added, weight: DType::BF16, ..LayerNorm::dense(6, 40, F32) };
    let empty = Vec::new;
    let mut before = bytes(&[&x, &residual, &weight, &bias]);
    before.extend([empty(), empty()]);
    judge(&d, op, &before, &[&sum, &out]);

    let (sum, out) = ops::layer_norm_residual(&x, &residual, &weight, None, 1e-5).unwrap();
    before.remove(3);
    judge(&d, LayerNorm { bias: false, ..op }, &before, &[&sum, &out]);

    let call = ops::rms_norm_with(&x, &weight, 1e-6).weight_offset(1.0).out_dtype(DType::BF16);
    let (sum, out) = call.run_residual(&residual).unwrap();
    let op = RmsNorm {
        weight: DType::BF16,
        weight_offset: 1.0,
        out_dtype: DType::BF16,
        residual: added,
        ..RmsNorm::dense(6, 40, F32)
    };
    judge(&d, op, &before, &[&sum, &out]);
    let out = call.run().unwrap();
    assert_eq!(out.dtype(), DType::BF16);
    let mut before = bytes(&[&x, &weight]);
    before.push(empty());
    judge(&d, RmsNorm { residual: None, ..op }, &before, &[&out]);
}

#[test]
fn softmax_with_a_factor_and_gates_of_any_arrangement() {
    let d = open();
    let x = random(&d, 1, &[4, 33]);
    let out = ops::softmax_scaled(&x, -7.5).unwrap();
    judge(
        &d,
        Softmax { scale: -7.5, ..Softmax::dense(4, 33, F32) },
        &[x.to_bytes().unwrap(), vec![]],
        &[&out],
    );
    let gate = random(&d, 2, &[2, 3, 16]);
    let up = random(&d, 3, &[2, 4, 32]).slice(1, ..3).unwrap().slice(2, 16..).unwrap();
    let clamped = GatedKind::GptOss { alpha: 1.702, limit: 0.5 };
    for kind in [GatedKind::SwiGlu, GatedKind::GeGlu, GatedKind::GeGluTanh, clamped] {
        let out = ops::gated(&gate, &up, kind).unwrap();
        let mut before = bytes(&[&gate, &up]);
        before.push(vec![]);
        judge(&d, Gated::dense(6, 16, F32, kind), &before, &[&out]);
    }
}

#[test]
fn quantised_sides_with_scales() {
    let d = open();
    let (m, n, k) = (3, 5, 64);
    let (x, w) = (random(&d, 1, &[m, k]), random(&d, 2, &[n, k]));
    let exact = ops::matmul(&x, &w.transpose(0, 1).unwrap()).unwrap().to_vec::<f32>().unwrap();
    for dtype in [DType::I8, DType::F8E4M3] {
        for g in [Granularity::Tensor, Granularity::Vector, Granularity::Group(24)] {
            let a = ops::quantise_scaled(&x, dtype, g).unwrap();
            let op = Quantise { x: Rows::dense(m, k), from: F32, to: dtype, scale: Some(g) };
            judge(&d, op, &[x.to_bytes().unwrap(), vec![], vec![]], &[&a.scales, &a.values]);
            let scales = match g {
                Granularity::Tensor => vec![1],
                Granularity::Vector => vec![m],
                Granularity::Group(_) => vec![m, 3],
            };
            assert_eq!((a.scales.shape(), a.values.shape()), (&scales[..], &[m, k][..]));
            let b = ops::quantise_scaled(&w, dtype, g).unwrap();
            let wt = b.values.transpose(0, 1).unwrap();
            let call = ops::matmul_with(&a.values, &wt).a_scale(&a.scales, g).b_scale(&b.scales, g);
            let y = call.out_dtype(F32).run().unwrap();
            let mut op = MatMul::linear(m, n, k, dtype, dtype, F32);
            (op.a_scale, op.b_scale, op.b_constant) = (Some(g), Some(g), false);
            let mut before = bytes(&[&a.values, &b.values, &a.scales, &b.scales]);
            before.push(vec![]);
            judge(&d, op, &before, &[&y]);
            // 8 bits are close to what was quantised
            let got = y.to_vec::<f32>().unwrap();
            assert!(got.iter().zip(&exact).all(|(g, e)| (g - e).abs() < 0.4), "{got:?} {exact:?}");
            // a weight of 8 bits has rows of its own
            let weight = Weight::pack(&b.values, dtype, &[m]).unwrap();
            let call = ops::linear(&a.values, &weight).a_scale(&a.scales, g).b_scale(&b.scales, g);
            assert_eq!(call.out_dtype(F32).run().unwrap().to_vec::<f32>().unwrap(), got);
        }
    }
    let a = ops::quantise_scaled(&x, DType::I8, Granularity::Vector).unwrap();
    let at = a.values.transpose(0, 1).unwrap();
    let scaled = ops::matmul_with(&a.values, &at).a_scale(&a.scales, a.granularity);
    assert_eq!(scaled.run().unwrap().dtype(), F32, "scales make floats of i8");
}

#[test]
fn linear_takes_any_leading_dimensions() {
    let d = open();
    let w = random(&d, 1, &[6, 16]);
    let weight = Weight::pack(&w, F32, &[1, 8]).unwrap();
    let whole = random(&d, 2, &[2, 5, 3, 16]);
    let op = |m| MatMul::linear(m, 6, 16, F32, F32, F32);
    let check = |x: &Tensor, shape: &[usize]| {
        let y = ops::linear(x, &weight).run().unwrap();
        assert_eq!(y.shape(), shape);
        judge(&d, op(x.elements() / 16), &[x.to_bytes().unwrap(), w.to_bytes().unwrap(), vec![]], &[&y]);
    };
    check(&whole, &[2, 5, 3, 6]);
    check(&whole.slice(0, 1..).unwrap().slice(2, 1..2).unwrap(), &[1, 5, 1, 6]);
    check(&random(&d, 3, &[16]), &[6]);
    // a batch whose rows do not follow each other, with a residual
    let cut = random(&d, 4, &[2, 5, 16]).slice(1, ..3).unwrap();
    let residual = random(&d, 5, &[2, 3, 6]);
    let y = ops::linear(&cut, &weight).residual(&residual).run().unwrap();
    let mut with = op(6);
    with.epilogue.residual =
        Some(perjoule::kernels::op::Tensor2 { dtype: F32, strides: Matrix::row_major(6, 6) });
    let mut before = bytes(&[&cut, &w, &residual]);
    before.push(vec![]);
    judge(&d, with, &before, &[&y]);
    let cut = random(&d, 4, &[2, 5, 2, 16]).slice(1, ..3).unwrap();
    common::refused(ops::linear(&cut, &weight).run(), &["contiguous"]);
}

#[test]
fn gated_products() {
    let d = open();
    let x = random(&d, 1, &[2, 2, 24]);
    let gate = random_as(&d, 2, &[10, 24], DType::BF16);
    let up = random_as(&d, 3, &[10, 24], DType::BF16);
    let (gate_bias, up_bias) = (random(&d, 4, &[10]), random(&d, 5, &[10]));
    let (gate_t, up_t) = (gate.transpose(0, 1).unwrap(), up.transpose(0, 1).unwrap());
    let mut part = MatMul::linear(4, 10, 24, F32, DType::BF16, F32);
    part.b_constant = false;
    for (with_gate, with_up) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut call = ops::gated_matmul(&x, &gate_t, &up_t, GatedKind::SwiGlu);
        let mut op = GatedMatMul { gate: part, up: part, gated: Gated::dense(4, 10, F32, GatedKind::SwiGlu) };
        let mut args = vec![&x, &gate, &up];
        if with_gate {
            call = call.gate_bias(&gate_bias);
            op.gate.epilogue.bias = Some(F32);
            args.push(&gate_bias);
        }
        if with_up {
            call = call.up_bias(&up_bias);
            op.up.epilogue.bias = Some(F32);
            args.push(&up_bias);
        }
        let y = call.run().unwrap();
        assert_eq!(y.shape(), [2, 2, 10]);
        let mut before = bytes(&args);
        before.push(vec![]);
        judge(&d, op, &before, &[&y]);
    }
}

#[test]
fn a_layer_of_experts() {
    let d = open();
    let (tokens, experts, top_k, k, n) = (7, 5, 2, 64, 32);
    let logits = random(&d, 1, &[tokens, experts]);
    for order in [
        RouteOrder::TopKThenSoftmax,
        RouteOrder::SoftmaxThenTopK { renormalise: true },
        RouteOrder::SoftmaxThenTopK { renormalise: false },
    ] {
        let r = ops::route(&logits, top_k, order).unwrap();
        let op = Route { tokens, experts, top_k, dtype: F32, order };
        let mut before = bytes(&[&logits]);
        before.extend([vec![], vec![], vec![], vec![]]);
        judge(&d, op, &before, &[&r.weights, &r.experts, &r.offsets, &r.order]);
    }
    let routing = ops::route(&logits, top_k, RouteOrder::TopKThenSoftmax).unwrap();
    let rows = tokens * top_k;
    let bias = random(&d, 2, &[experts, n]);
    // a view of wider rows
    let x = random(&d, 3, &[tokens, k + 8]).slice(1, ..k).unwrap();
    let pairs = random(&d, 4, &[tokens, top_k, k]);
    for dtype in [F32, DType::BF16, DType::Q8_0, DType::MxFp4] {
        let w = random_as(&d, 5, &[experts, n, k], dtype);
        let weight = Weight::pack(&w, F32, &[rows, 512]).unwrap();
        assert_eq!(weight.format().is_some(), !dtype.is_block(), "{weight:?}");
        let plain = w.transpose(1, 2).unwrap();
        for (input, a_divisor) in [(&x, top_k), (&pairs, 1)] {
            let op = GroupedMatMul {
                experts,
                rows,
                n,
                k,
                a: perjoule::kernels::op::Tensor2 { dtype: F32, strides: Matrix::row_major(rows, k) },
                a_rows: rows / a_divisor,
                a_divisor,
                b: perjoule::kernels::op::Tensor2 { dtype, strides: Matrix::col_major(k, n) },
                b_constant: false,
                c: perjoule::kernels::op::Tensor2 { dtype: F32, strides: Matrix::row_major(rows, n) },
                c_rows: rows,
                bias: Some(F32),
                activation: Activation::Silu,
                policy: Default::default(),
            };
            let before = |args: &[&Tensor]| {
                let mut before = bytes(args);
                before.push(vec![0; rows * n * 4]);
                before
            };
            for call in
                [ops::grouped_matmul(input, &plain, &routing), ops::grouped_linear(input, &weight, &routing)]
            {
                let y = call.bias(&bias).activation(Activation::Silu).run().unwrap();
                assert_eq!(y.shape(), [tokens, top_k, n]);
                let args = [input, &w, &routing.offsets, &routing.order, &bias];
                judge(&d, op, &before(&args), &[&y]);
                let y = call.run().unwrap();
                let op = GroupedMatMul { bias: None, activation: Activation::None, ..op };
                judge(&d, op, &before(&args[..4]), &[&y]);
            }
        }
    }
    let residual = random(&d, 6, &[tokens, k]);
    let y = ops::combine(&pairs, &routing.weights, Some(&residual)).unwrap();
    let op = Combine { residual: true, ..Combine::dense(tokens, top_k, k, F32) };
    let mut before = bytes(&[&pairs, &routing.weights, &residual]);
    before.push(vec![]);
    judge(&d, op, &before, &[&y]);
    let y = ops::combine(&pairs, &routing.weights, None).unwrap();
    before.remove(2);
    judge(&d, Combine { residual: false, ..op }, &before, &[&y]);
}

#[test]
fn empty_inputs_are_computed() {
    let d = open();
    let none = |shape: &[usize]| Tensor::from_slice::<f32>(&d, &[], shape).unwrap();
    let weight = random(&d, 1, &[8]);
    assert_eq!(ops::rms_norm(&none(&[2, 0, 3, 8]), &weight, 1e-6).unwrap().shape(), [2, 0, 3, 8]);
    ops::rope(&none(&[2, 0, 3, 8]), &ints(&d, &[]), 1e4).unwrap();
    let routing = ops::route(&none(&[0, 4]), 2, RouteOrder::TopKThenSoftmax).unwrap();
    let experts = random(&d, 2, &[4, 8, 6]);
    let y = ops::grouped_matmul(&none(&[0, 8]), &experts, &routing).run().unwrap();
    assert_eq!(ops::combine(&y, &routing.weights, None).unwrap().shape(), [0, 6]);
    let w = Weight::pack(&random(&d, 3, &[4, 8]), F32, &[1]).unwrap();
    assert_eq!(ops::linear(&none(&[0, 8]), &w).run().unwrap().shape(), [0, 4]);
    assert_eq!(none(&[0, 3]).contiguous().unwrap().copy().unwrap().shape(), [0, 3]);
}

#[test]
fn embedding_with_a_factor() {
    let d = open();
    let table = Tensor::from_slice(&d, &numbers(1, 12), [3, 4]).unwrap();
    let ids = ints(&d, &[2, 0]);
    let plain = ops::embed(&table, &ids, F32).unwrap().to_vec::<f32>().unwrap();
    let scaled = ops::embed_scaled(&table, &ids, F32, 2.0).unwrap().to_vec::<f32>().unwrap();
    assert!(plain.iter().zip(&scaled).all(|(p, s)| 2.0 * p == *s));
}

#[test]
#[should_panic(expected = "rope")]
fn the_judge_sees_a_wrong_angle() {
    let d = open();
    let (x, positions) = (random(&d, 1, &[2, 1, 16]), ints(&d, &[1, 2]));
    let before = bytes(&[&positions, &x]);
    ops::rope(&x, &positions, 10_001.0).unwrap();
    judge(&d, Rope::dense(2, 1, 16, F32, 10_000.0), &before, &[&x]);
}

#[test]
fn absurd_sizes_without_elements_do_not_panic() {
    let d = open();
    const HUGE: usize = usize::MAX;
    let none = |shape: &[usize]| Tensor::from_slice::<f32>(&d, &[], shape).unwrap();
    assert!(ops::rope(&none(&[HUGE, HUGE, 0, 4]), &ints(&d, &[]), 1e4).is_err());
    assert!(ops::softmax(&none(&[HUGE, HUGE, 0])).is_err());
    let q = none(&[HUGE, 0, 2, 4]);
    assert!(ops::attention(&q, &q, &q).run().is_err());
    let weight = Weight::pack(&random(&d, 1, &[3, 4]), F32, &[HUGE]);
    assert!(weight.is_err());
    let routing = ops::route(&none(&[0, 4]), 2, RouteOrder::TopKThenSoftmax).unwrap();
    assert!(ops::grouped_matmul(&none(&[0, 3]), &none(&[HUGE, 3, 0]), &routing).run().is_err());
    assert!(ops::combine(&none(&[HUGE, HUGE, 0]), &routing.weights, None).is_err());
    let empty = none(&[HUGE, HUGE, 0]);
    assert_eq!(empty.copy().unwrap().to_vec::<f32>().unwrap(), []);
    let _ = ops::cast(&empty, DType::F16);
    let _ = ops::add(&empty, &empty);
    let _ = ops::argmax(&empty);
    let _ = ops::matmul(&empty, &empty);
    assert!(ops::KvCache::paged(&d, HUGE, 1, 4, 4, F32, ops::Paging { block: 4, blocks: 1 }).is_err());
    assert!(ops::KvCache::paged(&d, HUGE, 1, 0, 4, F32, ops::Paging { block: 4, blocks: 1 }).is_err());
}
