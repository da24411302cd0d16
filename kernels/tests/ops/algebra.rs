//! Laws that the references obey whatever the numbers are.

use crate::common::{Dice, assert_close, result, run, slots};
use perjoule_kernels::block;
use perjoule_kernels::layout::Paging;
use perjoule_kernels::op::*;
use perjoule_kernels::{DType, KvLayout, Matrix, PackFormat, Rows};
use proptest::prelude::*;

const F32: DType = DType::F32;

fn sum(a: &[f64], b: &[f64], factor: f64) -> Vec<f64> {
    a.iter().zip(b).map(|(x, y)| x + factor * y).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn matmul_is_linear(m in 0usize..5, n in 0usize..5, k in 0usize..7, seed: u64) {
        let mut dice = Dice(seed);
        let (a, other, b) = (dice.reals(m * k), dice.reals(m * k), dice.reals(k * n));
        let factor = dice.real();
        let op = MatMul::nn(m, n, k, F32, F32, F32);
        let whole = result(op, &[&sum(&a, &other, factor), &b]);
        let parts = sum(&result(op, &[&a, &b]), &result(op, &[&other, &b]), factor);
        assert_close("linearity", &whole, &parts, 1e-12);
    }

    #[test]
    fn transposing_a_product_swaps_its_factors(m in 1usize..5, n in 1usize..5, k in 1usize..5, seed: u64) {
        let mut dice = Dice(seed);
        let (a, b) = (dice.reals(m * k), dice.reals(k * n));
        let plain = MatMul::nn(m, n, k, F32, F32, F32);
        let mut swapped = MatMul::nn(n, m, k, F32, F32, F32);
        swapped.a.strides = plain.b.strides.transposed();
        swapped.b.strides = plain.a.strides.transposed();
        swapped.c.strides = plain.c.strides.transposed();
        if m > 1 && n > 1 && k > 1 {
            prop_assert_eq!((plain.layout(), swapped.layout()), ("NN", "TT"));
        }
        assert_close("transposition", &result(plain, &[&a, &b]), &result(swapped, &[&b, &a]), 1e-13);
    }

    #[test]
    fn a_batch_of_products_is_each_of_them(batch in 1usize..4, shared: bool, seed: u64) {
        let (m, n, k) = (3, 4, 5);
        let mut dice = Dice(seed);
        let mut op = MatMul::linear(m, n, k, F32, F32, F32);
        let (a, b) = (dice.reals(batch * m * k), dice.reals(if shared { 1 } else { batch } * n * k));
        let mut each = Vec::new();
        for i in 0..batch {
            let from = if shared { 0 } else { i * n * k };
            each.extend(result(op, &[&a[i * m * k..(i + 1) * m * k], &b[from..from + n * k]]));
        }
        op.batch = batch;
        if shared {
            op.b.strides.batch = 0;
        }
        assert_close("batch", &result(op, &[&a, &b]), &each, 0.0);
    }

    #[test]
    fn grouped_products_are_a_product_for_each_row(tokens in 0usize..5, top_k in 1usize..3, seed: u64) {
        let (experts, n, k) = (4, 3, 5);
        let mut dice = Dice(seed);
        let rows = tokens * top_k;
        let logits = dice.reals(tokens * experts);
        let route = Route { tokens, experts, top_k, dtype: F32, order: RouteOrder::TopKThenSoftmax };
        let routed = run(route, &[&logits]);
        let (a, b) = (dice.reals(tokens * k), dice.reals(experts * n * k));
        let tensor = |strides| Tensor2 { dtype: F32, strides };
        let op = GroupedMatMul {
            experts, rows, n, k,
            a: tensor(Matrix::row_major(tokens, k)),
            a_rows: tokens,
            a_divisor: top_k,
            b: tensor(Matrix::col_major(k, n)),
            b_constant: true,
            c: tensor(Matrix::row_major(rows, n)),
            c_rows: rows,
            bias: None,
            activation: Activation::Silu,
            policy: Policy::default(),
        };
        let c = result(op, &[&a, &b, &routed[3].value, &routed[4].value, &vec![f64::NAN; rows * n]]);
        let mut product = MatMul::linear(1, n, k, F32, F32, F32);
        product.epilogue.activation = Activation::Silu;
        for row in 0..rows {
            let (token, expert) = (row / top_k, routed[2].index(row) as usize);
            let want = result(product, &[&a[token * k..(token + 1) * k], &b[expert * n * k..(expert + 1) * n * k]]);
            assert_close("row", &c[row * n..(row + 1) * n], &want, 0.0);
        }
        // and a combination of them is the mixture
        let combined = result(Combine::dense(tokens, top_k, n, F32), &[&c, &routed[1].value]);
        for token in 0..tokens {
            for col in 0..n {
                let weights = &routed[1].value[token * top_k..(token + 1) * top_k];
                let values: Vec<f64> = (0..top_k).map(|j| c[(token * top_k + j) * n + col]).collect();
                prop_assert!((combined[token * n + col] - dot(weights, &values)).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn routing_partitions_the_pairs(tokens in 0usize..9, experts in 1usize..7, ties: bool, seed: u64) {
        let mut dice = Dice(seed);
        let top_k = 1 + dice.below(experts);
        let mut logits = dice.reals(tokens * experts);
        if ties {
            logits.iter_mut().for_each(|x| *x = x.round());
        }
        for order in [
            RouteOrder::TopKThenSoftmax,
            RouteOrder::SoftmaxThenTopK { renormalise: true },
            RouteOrder::SoftmaxThenTopK { renormalise: false },
        ] {
            let args = run(Route { tokens, experts, top_k, dtype: F32, order }, &[&logits]);
            let [_, weights, chosen, offsets, positions] = &args[..] else { panic!("five operands") };
            prop_assert_eq!(offsets.index(0), 0);
            prop_assert_eq!(offsets.index(experts), (tokens * top_k) as i64);
            let mut seen = vec![false; tokens * top_k];
            for expert in 0..experts {
                let range = offsets.index(expert) as usize..offsets.index(expert + 1) as usize;
                prop_assert!(positions.value[range.clone()].is_sorted());
                for position in range {
                    let pair = positions.index(position) as usize;
                    prop_assert!(!std::mem::replace(&mut seen[pair], true));
                    prop_assert_eq!(chosen.index(pair), expert as i64);
                }
            }
            prop_assert!(seen.iter().all(|&s| s));
            for token in 0..tokens {
                let row = &logits[token * experts..(token + 1) * experts];
                let mine = &chosen.value[token * top_k..(token + 1) * top_k];
                for pair in mine.windows(2) {
                    let (a, b) = (pair[0] as usize, pair[1] as usize);
                    prop_assert!(row[a] > row[b] || (row[a] == row[b] && a < b));
                }
                for (expert, logit) in row.iter().enumerate().filter(|(e, _)| !mine.contains(&(*e as f64))) {
                    let last = mine[top_k - 1] as usize;
                    prop_assert!(*logit < row[last] || (*logit == row[last] && expert > last));
                }
                let total: f64 = weights.value[token * top_k..(token + 1) * top_k].iter().sum();
                match order {
                    RouteOrder::SoftmaxThenTopK { renormalise: false } if top_k < experts => prop_assert!(total < 1.0),
                    _ => prop_assert!((total - 1.0).abs() < 1e-12),
                }
            }
        }
    }

    #[test]
    fn attention_over_equal_values_gives_that_value(q in 1usize..5, extra in 0usize..5, window in 0usize..4, seed: u64) {
        let mut dice = Dice(seed);
        let (heads, d, kv_len) = (4, 3, q + extra);
        let kv = KvLayout::contiguous(2, kv_len, d);
        let mut op = Attention::causal(1, q, heads, kv, F32);
        op.causal = dice.flip();
        op.window = (window > 0).then_some(window);
        op.soft_cap = dice.flip().then_some(2.0);
        let value = dice.reals(d);
        let v: Vec<f64> = value.iter().copied().cycle().take(2 * kv_len * d).collect();
        let out = result(op, &[&dice.reals(q * heads * d), &dice.reals(2 * kv_len * d), &v, &[kv_len as f64]]);
        for row in out.chunks(d) {
            assert_close("row", row, &value, 1e-12);
        }
    }

    #[test]
    fn attention_without_causality_does_not_see_the_order_of_keys(kv_len in 1usize..7, seed: u64) {
        let mut dice = Dice(seed);
        let d = 3;
        let mut op = Attention::causal(1, 2, 2, KvLayout::contiguous(1, kv_len, d), F32);
        op.causal = false;
        op.sinks = true;
        let (q, k, v, sinks) = (dice.reals(4 * d), dice.reals(kv_len * d), dice.reals(kv_len * d), dice.reals(2));
        let order = dice.permutation(kv_len);
        let permuted = |x: &[f64]| order.iter().flat_map(|&j| x[j * d..(j + 1) * d].to_vec()).collect::<Vec<_>>();
        let plain = result(op, &[&q, &k, &v, &[kv_len as f64], &sinks]);
        let other = result(op, &[&q, &permuted(&k), &permuted(&v), &[kv_len as f64], &sinks]);
        assert_close("order of keys", &plain, &other, 1e-12);
        // a sink at minus infinity is none
        let without = result(op, &[&q, &k, &v, &[kv_len as f64], &[f64::NEG_INFINITY; 2]]);
        op.sinks = false;
        assert_close("sink", &without, &result(op, &[&q, &k, &v, &[kv_len as f64]]), 1e-13);
    }

    #[test]
    fn pairs_are_what_the_queries_see(q in 0usize..9, kv_len in 0usize..9, window in 0usize..6, causal: bool) {
        let mut op = Attention::causal(3, q, 1, KvLayout::contiguous(1, 9, 1), F32);
        op.causal = causal;
        op.window = (window > 0).then_some(window);
        let seen: usize = (0..q).map(|i| op.visible(i, q, kv_len).len()).sum();
        prop_assert_eq!(op.pairs(kv_len), 3 * seen as u64);
    }

    #[test]
    fn appending_step_by_step_is_attending_over_everything(steps in 1usize..4, n in 1usize..4, paged: bool, seed: u64) {
        let mut dice = Dice(seed);
        let (batch, heads, kv_heads, d) = (2, 4, 2, 3);
        let total = steps * n;
        let contiguous = KvLayout::contiguous(kv_heads, total, d);
        let block = 2;
        let per_sequence = total.div_ceil(block);
        let blocks = batch * per_sequence + 1;
        let kv = match paged {
            true => KvLayout::paged(kv_heads, total, d, Paging { block, blocks }),
            false => contiguous,
        };
        let table = slots(dice.permutation(blocks).into_iter().take(batch * per_sequence));
        let tokens = |dice: &mut Dice, heads: usize| dice.reals(batch * total * heads * d);
        let (q, k, v) = (tokens(&mut dice, heads), tokens(&mut dice, kv_heads), tokens(&mut dice, kv_heads));
        // one pass over dense token-major keys
        let mut whole = Attention::causal(batch, total, heads, KvLayout::token_major(kv_heads, total, d), F32);
        whole.window = dice.flip().then_some(2);
        let want = result(whole, &[&q, &k, &v, &[total as f64; 2]]);
        // the same in steps, through a cache full of NaN
        let size = kv.extent(batch).unwrap();
        let (mut k_cache, mut v_cache) = (vec![f64::NAN; size], vec![f64::NAN; size]);
        let mut lengths = vec![0.0; batch];
        for step in 0..steps {
            let part = |x: &[f64], heads: usize| -> Vec<f64> {
                let row = heads * d;
                (0..batch).flat_map(|b| {
                    let from = (b * total + step * n) * row;
                    x[from..from + n * row].to_vec()
                }).collect()
            };
            let advanced = run(Advance::uniform(batch, n), &[&lengths]);
            lengths = advanced[0].value.clone();
            for (row, position) in advanced[1].value.iter().enumerate() {
                prop_assert_eq!(*position as usize, step * n + row % n);
            }
            let append = KvAppend::dense(batch, n, kv, F32);
            let (new_k, new_v) = (part(&k, kv_heads), part(&v, kv_heads));
            let mut inputs: Vec<&[f64]> = vec![&new_k, &new_v, &lengths];
            if paged {
                inputs.push(&table);
            }
            inputs.extend([k_cache.as_slice(), v_cache.as_slice()]);
            let mut args = run(append, &inputs);
            v_cache = args.pop().unwrap().value;
            k_cache = args.pop().unwrap().value;
            let attention = Attention { window: whole.window, ..Attention::causal(batch, n, heads, kv, F32) };
            let queries = part(&q, heads);
            let mut inputs: Vec<&[f64]> = vec![&queries, &k_cache, &v_cache, &lengths];
            if paged {
                inputs.push(&table);
            }
            assert_close("step", &result(attention, &inputs), &part(&want, heads), 1e-12);
        }
    }

    #[test]
    fn ragged_sequences_are_each_of_them_alone(counts in prop::collection::vec(0usize..4, 1..4), seed: u64) {
        let mut dice = Dice(seed);
        let (heads, kv_heads, d, capacity) = (2, 1, 4, 8);
        let batch = counts.len();
        let mut offsets = vec![0];
        counts.iter().for_each(|n| offsets.push(offsets[offsets.len() - 1] + n));
        let tokens = offsets[batch];
        let lengths: Vec<usize> = counts.iter().map(|n| n + dice.below(capacity - n + 1)).collect();
        let kv = KvLayout::contiguous(kv_heads, capacity, d);
        let (q, k, v) =
            (dice.reals(tokens * heads * d), dice.reals(tokens * kv_heads * d), dice.reals(tokens * kv_heads * d));
        let size = kv.extent(batch).unwrap();
        let (k_cache, v_cache) = (dice.reals(size), dice.reals(size));
        // both may have room for more rows than there are
        let q_len = 4;
        let append = KvAppend {
            ragged: true,
            src_k: Rows::grid(tokens, kv_heads, d),
            src_v: Rows::grid(tokens, kv_heads, d),
            ..KvAppend::dense(batch, q_len, kv, F32)
        };
        let (l, o) = (slots(lengths.clone()), slots(offsets.clone()));
        let appended = run(append, &[&k, &v, &l, &o, &k_cache, &v_cache]);
        let (new_k, new_v) = (&appended[4].value, &appended[5].value);
        let mut attention = Attention::causal(batch, q_len, heads, kv, F32);
        attention.ragged = true;
        attention.q = Rows::grid(tokens, heads, d);
        attention.out = attention.q;
        let out = result(attention, &[&q, new_k, new_v, &l, &o]);
        let before: Vec<f64> = lengths.iter().zip(&counts).map(|(l, n)| (l - n) as f64).collect();
        let advance = Advance { batch, q_len, ragged: true, tokens };
        let advanced = run(advance, &[&o, &before]);
        assert_close("lengths", &advanced[1].value, &l, 0.0);
        let each = kv.extent(1).unwrap();
        for b in 0..batch {
            let n = counts[b];
            let rows = |x: &[f64], heads: usize| x[offsets[b] * heads * d..offsets[b + 1] * heads * d].to_vec();
            let cache = |x: &[f64]| x[b * each..(b + 1) * each].to_vec();
            let length = [l[b]];
            let alone = run(
                KvAppend::dense(1, n, kv, F32),
                &[&rows(&k, kv_heads), &rows(&v, kv_heads), &length, &cache(&k_cache), &cache(&v_cache)],
            );
            assert_close("keys", &cache(new_k), &alone[3].value, 0.0);
            assert_close("values", &cache(new_v), &alone[4].value, 0.0);
            let want = result(
                Attention::causal(1, n, heads, kv, F32),
                &[&rows(&q, heads), &alone[3].value, &alone[4].value, &length],
            );
            assert_close("rows", &rows(&out, heads), &want, 0.0);
            let positions = run(Advance::uniform(1, n), &[&[before[b]]]);
            assert_close("positions", &advanced[2].value[offsets[b]..offsets[b + 1]], &positions[1].value, 0.0);
        }
    }

    #[test]
    fn rotation_keeps_lengths_and_sees_only_distances(p in -9i32..9, q in -9i32..9, shift in 0i32..100, half: bool, seed: u64) {
        let mut dice = Dice(seed);
        let d = 8;
        let mut op = Rope::dense(1, 1, d, F32, 10_000.0);
        op.style = if half { RopeStyle::HalfSplit } else { RopeStyle::Interleaved };
        let (x, y) = (dice.reals(d), dice.reals(d));
        let at = |x: &[f64], position: i32| result(op, &[&[f64::from(position)], x]);
        let (rx, ry) = (at(&x, p), at(&y, q));
        for i in 0..d / 2 {
            let (a, b) = op.pair(i);
            prop_assert!((rx[a].hypot(rx[b]) - x[a].hypot(x[b])).abs() < 1e-12);
        }
        prop_assert!((dot(&rx, &ry) - dot(&at(&x, p + shift), &at(&y, q + shift))).abs() < 1e-11);
        assert_close("back", &at(&rx, -p), &x, 1e-12);
        // elements beyond rotary_dim stay
        op.rotary_dim = 4;
        let partial = result(op, &[&[f64::from(p)], &x]);
        prop_assert_eq!(&partial[4..], &x[4..]);
    }

    #[test]
    fn softmax_is_a_distribution_that_a_shift_does_not_move(rows in 0usize..4, len in 1usize..9, shift in -50.0..50.0f64, seed: u64) {
        let mut dice = Dice(seed);
        let x = dice.reals(rows * len);
        let op = Softmax { scale: 1.5, ..Softmax::dense(rows, len, F32) };
        let p = result(op, &[&x]);
        for row in p.chunks(len) {
            prop_assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-12);
            prop_assert!(row.iter().all(|p| *p > 0.0));
        }
        let shifted: Vec<f64> = x.iter().map(|x| x + shift).collect();
        assert_close("shift", &result(op, &[&shifted]), &p, 1e-12);
    }

    #[test]
    fn norms_do_not_see_scale(len in 2usize..9, factor in 0.01..100.0f64, shift in -5.0..5.0f64, seed: u64) {
        let mut dice = Dice(seed);
        let (x, weight) = (dice.reals(len), dice.reals(len));
        let rms = RmsNorm { eps: 0.0, ..RmsNorm::dense(1, len, F32) };
        let scaled: Vec<f64> = x.iter().map(|x| x * factor).collect();
        let out = result(rms, &[&x, &weight]);
        assert_close("rms", &result(rms, &[&scaled, &weight]), &out, 1e-12);
        let ones = vec![1.0; len];
        let unit = result(rms, &[&x, &ones]);
        prop_assert!((dot(&unit, &unit) / len as f64 - 1.0).abs() < 1e-12);
        // an offset of 1 stands for a weight that is 1 larger
        let offset = RmsNorm { weight_offset: 1.0, ..rms };
        assert_close("offset", &result(offset, &[&x, &weight]), &sum(&out, &unit, 1.0), 1e-12);
        let layer = LayerNorm { eps: 0.0, bias: false, ..LayerNorm::dense(1, len, F32) };
        let moved: Vec<f64> = x.iter().map(|x| x * factor + shift).collect();
        assert_close("layer", &result(layer, &[&moved, &weight]), &result(layer, &[&x, &weight]), 1e-9);
        let unit = result(layer, &[&x, &ones]);
        prop_assert!(unit.iter().sum::<f64>().abs() < 1e-9 && (dot(&unit, &unit) / len as f64 - 1.0).abs() < 1e-9);
    }

    #[test]
    fn a_fused_residual_is_an_addition_before(rows in 0usize..4, len in 1usize..6, seed: u64) {
        let mut dice = Dice(seed);
        let (x, r, weight) = (dice.reals(rows * len), dice.reals(rows * len), dice.reals(len));
        let added = result(Add::dense(rows, len, F32), &[&x, &r]);
        let dense = Rows::dense(rows, len);
        let fused = RmsNorm { residual: Some(Residual { rows: dense, sum: dense }), ..RmsNorm::dense(rows, len, F32) };
        let args = run(fused, &[&x, &r, &weight]);
        assert_close("sum", &args[3].value, &added, 0.0);
        assert_close("out", &args[4].value, &result(RmsNorm::dense(rows, len, F32), &[&added, &weight]), 0.0);
    }

    #[test]
    fn fused_norm_rope_append_is_its_parts_in_turn(
        n in 1usize..4,
        style: bool,
        q_normed: bool,
        k_normed: bool,
        seed: u64,
    ) {
        let mut dice = Dice(seed);
        let (heads, kv_heads, d, capacity) = (4, 2, 6, 8);
        let kv = KvLayout::contiguous(kv_heads, capacity, d);
        let rope = |heads: usize| Rope {
            style: if style { RopeStyle::HalfSplit } else { RopeStyle::Interleaved },
            rotary_dim: 4,
            ..Rope::dense(n, heads, d, F32, 1000.0)
        };
        let append = KvAppend::dense(1, n, kv, F32);
        let fused = QkNormRopeAppend {
            q_norm: q_normed.then(HeadNorm::default),
            k_norm: k_normed.then(HeadNorm::default),
            q_rope: rope(heads),
            k_rope: rope(kv_heads),
            ..QkNormRopeAppend::dense(heads, append, 1000.0)
        };
        let (q, k, v) = (dice.reals(n * heads * d), dice.reals(n * kv_heads * d), dice.reals(n * kv_heads * d));
        let (q_weight, k_weight) = (dice.reals(d), dice.reals(d));
        let cache = dice.reals(kv.extent(1).unwrap());
        let length = [(n + 3) as f64];
        let positions = slots(3..n + 3);
        let mut inputs: Vec<&[f64]> = vec![&q, &k, &v];
        inputs.extend(q_normed.then_some(q_weight.as_slice()));
        inputs.extend(k_normed.then_some(k_weight.as_slice()));
        inputs.extend([positions.as_slice(), &length, &cache, &cache]);
        let all = run(fused, &inputs);
        let [k_cache, v_cache, out] = all.last_chunk().unwrap();
        let rotated = |normed: bool, heads: usize, x: &[f64], weight: &[f64]| {
            let rows = Rows::grid(n, heads, d);
            let norm = RmsNorm { x: rows, out: rows, ..RmsNorm::dense(1, d, F32) };
            let x = if normed { result(norm, &[x, weight]) } else { x.to_vec() };
            result(rope(heads), &[&positions, &x])
        };
        assert_close("queries", &out.value, &rotated(q_normed, heads, &q, &q_weight), 1e-14);
        let appended = run(append, &[&rotated(k_normed, kv_heads, &k, &k_weight), &v, &length, &cache, &cache]);
        assert_close("keys", &k_cache.value, &appended[3].value, 1e-14);
        assert_close("values", &v_cache.value, &appended[4].value, 0.0);
    }

    #[test]
    fn fused_gated_products_are_their_parts_in_turn(m in 0usize..4, n in 1usize..4, k in 0usize..5, bias: bool, seed: u64) {
        let mut dice = Dice(seed);
        for kind in [GatedKind::SwiGlu, GatedKind::GeGlu, GatedKind::GeGluTanh, GatedKind::GptOss { alpha: 1.7, limit: 1.0 }] {
            let mut product = MatMul::linear(m, n, k, F32, F32, F32);
            product.epilogue.bias = bias.then_some(F32);
            let gated = Gated::dense(m, n, F32, kind);
            let (a, wg, wu) = (dice.reals(m * k), dice.reals(n * k), dice.reals(n * k));
            let (bg, bu) = (dice.reals(n), dice.reals(n));
            let with = |list: [&[f64]; 2], bias_values: &[f64]| match bias {
                true => result(product, &[list[0], list[1], bias_values]),
                false => result(product, &list),
            };
            let (gate, up) = (with([&a, &wg], &bg), with([&a, &wu], &bu));
            let mut inputs: Vec<&[f64]> = vec![&a, &wg, &wu];
            if bias {
                inputs.extend([bg.as_slice(), bu.as_slice()]);
            }
            let fused = result(GatedMatMul { gate: product, up: product, gated }, &inputs);
            assert_close("gated", &fused, &result(gated, &[&gate, &up]), 1e-13);
        }
    }

    #[test]
    fn sampling_takes_each_candidate_as_often_as_it_is_likely(len in 1usize..9, seed: u64) {
        let mut dice = Dice(seed);
        let x = dice.reals(len);
        let op = Sample {
            x: Rows::dense(1, len),
            dtype: F32,
            temperature: 0.7,
            top_k: dice.flip().then_some(1 + dice.below(len)),
            top_p: dice.flip().then_some(0.8),
        };
        let candidates = op.candidates(&x);
        prop_assert!((candidates.iter().map(|c| c.1).sum::<f64>() - 1.0).abs() < 1e-12);
        let draws = 1000;
        let mut counts = vec![0.0; len];
        for i in 0..draws {
            let uniform = (f64::from(i) + 0.5) / f64::from(draws);
            counts[result(op, &[&x, &[uniform]])[0] as usize] += 1.0 / f64::from(draws);
        }
        for (index, probability) in candidates {
            prop_assert!((counts[index] - probability).abs() <= 1.0 / f64::from(draws) + 1e-9);
        }
        let greedy = Sample { top_k: Some(1), ..op };
        let best = result(Argmax { x: op.x, dtype: F32 }, &[&x]);
        prop_assert_eq!(result(greedy, &[&x, &[0.999]]), best);
    }

    #[test]
    fn quantising_to_eight_bits_is_off_by_half_a_step(rows in 1usize..4, len in 1usize..9, which in 0usize..3, seed: u64) {
        let mut dice = Dice(seed);
        let x: Vec<f64> = dice.reals(rows * len).into_iter().map(|x| f64::from(x as f32)).collect();
        let granularity = [Granularity::Tensor, Granularity::Vector, Granularity::Group(3)][which];
        let groups = len.div_ceil(3);
        let of = |row: usize, col: usize| [0, row, row * groups + col / 3][which];
        let op = Quantise { x: Rows::dense(rows, len), from: F32, to: DType::I8, scale: Some(granularity) };
        let args = run(op, &[&x]);
        let (scales, codes) = (&args[1].value, &args[2].value);
        let mut largest = vec![0f64; scales.len()];
        for (at, code) in codes.iter().enumerate() {
            let group = of(at / len, at % len);
            prop_assert!((x[at] - code * scales[group]).abs() <= scales[group] * 0.500001);
            largest[group] = largest[group].max(code.abs());
        }
        prop_assert!(largest.iter().all(|&code| code == 127.0));
    }
}

#[test]
fn block_formats_quantise_as_their_definition_does() {
    let mut dice = Dice(5);
    for dtype in [DType::Q8_0, DType::Q4_0, DType::Q4K, DType::Q6K, DType::MxFp4] {
        let len = 2 * dtype.block_len();
        let x: Vec<f64> = dice.reals(3 * len).into_iter().map(|x| f64::from(x as f32)).collect();
        let op = Quantise { x: Rows::dense(3, len), from: F32, to: dtype, scale: None };
        let mut bytes = vec![0; dtype.bytes(3 * len).unwrap() as usize];
        block::encode_f64(dtype, &x, &mut bytes).unwrap();
        let mut want = vec![0.0; 3 * len];
        block::decode_f64(dtype, &bytes, &mut want).unwrap();
        let quantised = result(op, &[&x]);
        assert_close("quantise", &quantised, &want, 0.0);
        // what it dequantises to and looks up is the same
        assert_close("cast", &result(Cast::dense(3, len, dtype, F32), &[&want]), &want, 0.0);
        assert_close(
            "embed",
            &result(Embed::dense(1, 3, len, dtype, F32), &[&[2.0], &want]),
            &want[2 * len..],
            0.0,
        );
        if dtype == DType::Q8_0 {
            let kv = KvLayout::contiguous(3, 1, len);
            let append = KvAppend { kv_dtype: dtype, ..KvAppend::dense(1, 1, kv, F32) };
            let cache = vec![0.0; 3 * len];
            assert_close("append", &result(append, &[&x, &x, &[1.0], &cache, &cache]), &want, 0.0);
        }
    }
}

#[test]
fn scales_of_zeros_and_not_a_number_are_zero() {
    let op = Quantise { x: Rows::dense(2, 2), from: F32, to: DType::I8, scale: Some(Granularity::Vector) };
    let args = run(op, &[&[0.0, 0.0, f64::NAN, -4.0]]);
    assert_eq!(args[1].value, [0.0, f64::from(4f32 / 127.0)]);
    assert_eq!(args[2].value, [0.0, 0.0, 0.0, -127.0]);
    let to_f8 = Quantise { to: DType::F8E4M3, ..op };
    let out = result(to_f8, &[&[0.0, 0.0, f64::NAN, -4.0]]);
    assert_close("f8e4m3", &out, &[0.0, 0.0, f64::NAN, -448.0], 1e-6);
}

#[test]
fn casts_to_integers_round_to_even_and_saturate() {
    let x = [2.5, -3.5, 300.0, -1e20, f64::NAN, f64::INFINITY];
    let cast = |to| result(Cast::dense(1, 6, F32, to), &[&x]);
    assert_eq!(cast(DType::I8), [2.0, -4.0, 127.0, -128.0, 0.0, 127.0]);
    assert_eq!(cast(DType::U32), [2.0, 0.0, 300.0, 0.0, 0.0, 4294967295.0]);
    assert_eq!(cast(DType::I32), [2.0, -4.0, 300.0, -2147483648.0, 0.0, 2147483647.0]);
}

#[test]
fn ties_pick_the_lowest_index_and_nan_is_largest() {
    let nan = f64::NAN;
    let x = [1.0, 3.0, 3.0, 0.0, nan, nan, f64::NEG_INFINITY, f64::NEG_INFINITY, f64::NEG_INFINITY];
    let op = Argmax { x: Rows::dense(3, 3), dtype: F32 };
    assert_eq!(result(op, &[&x]), [1.0, 1.0, 0.0]);
    let sample = Sample { x: op.x, dtype: F32, temperature: 1.0, top_k: None, top_p: None };
    // not finite: taken at once; a tie of two and a third far below
    assert_eq!(result(sample, &[&x, &[0.46, 0.9, 0.9]]), [1.0, 1.0, 0.0]);
    assert_eq!(result(sample, &[&x, &[0.5, 0.0, 0.0]])[0], 2.0);
}

#[test]
fn ids_outside_the_vocabulary_give_nan() {
    let out = result(Embed::dense(3, 2, 2, F32, F32), &[&[1.0, 2.0, -1.0], &[1.0, 2.0, 3.0, 4.0]]);
    assert_close("rows", &out, &[3.0, 4.0, f64::NAN, f64::NAN, f64::NAN, f64::NAN], 0.0);
}

#[test]
fn appending_skips_what_lies_outside_the_cache() {
    // two tokens for each of three sequences: at -1 and 0, at 3 and 4 of 4, and into a block that does not exist
    let kv = KvLayout::paged(1, 4, 1, Paging { block: 2, blocks: 4 });
    let append = KvAppend::dense(3, 2, kv, F32);
    let k = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
    let (lengths, table) = ([1.0, 5.0, 2.0], [0.0, 1.0, 2.0, 3.0, 9.0, 9.0]);
    let cache = [0.0; 8];
    let args = run(append, &[&k, &k, &lengths, &table, &cache, &cache]);
    assert_eq!(args[4].value, [2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 3.0]);
    assert_eq!(args[4].value, args[5].value);
    // the token behind the capacity of one sequence does not reach the next
    let append = KvAppend::dense(2, 3, KvLayout::contiguous(1, 2, 1), F32);
    let cache = [0.0; 4];
    assert_eq!(result(append, &[&k, &k, &[3.0, 0.0], &cache, &cache]), [1.0, 2.0, 0.0, 0.0]);
}

#[test]
fn positions_of_padding_are_zero() {
    let op = Advance { batch: 2, q_len: 3, ragged: true, tokens: 5 };
    let args = run(op, &[&[0.0, 1.0, 3.0], &[7.0, 0.0]]);
    assert_eq!(args[1].value, [8.0, 2.0]);
    assert_eq!(args[2].value, [7.0, 0.0, 1.0, 0.0, 0.0]);
}

#[test]
fn gaps_of_outputs_stay_and_strides_of_zero_broadcast() {
    let wide = Rows::dense(2, 2).with_outer_stride(3);
    let op = Add { a: Rows::dense(2, 2), b: Rows::dense(2, 2).with_outer_stride(0), dtype: F32, out: wide };
    let out = result(op, &[&[1.0, 2.0, 3.0, 4.0], &[10.0, 20.0]]);
    assert_close("out", &out, &[11.0, 22.0, f64::NAN, 13.0, 24.0], 0.0);
}

#[test]
fn collectives_of_equal_ranks() {
    let x = [1.0, -2.0];
    let run = |kind, world, x: &[f64]| result(Collective { kind, dtype: F32, count: 2, world }, &[x]);
    for kind in [
        CollectiveKind::AllReduce,
        CollectiveKind::AllGather,
        CollectiveKind::ReduceScatter,
        CollectiveKind::Broadcast { root: 0 },
    ] {
        assert_eq!(run(kind, 1, &x), x);
    }
    assert_eq!(run(CollectiveKind::AllReduce, 3, &x), [3.0, -6.0]);
    assert_eq!(run(CollectiveKind::AllGather, 2, &x), [1.0, -2.0, 1.0, -2.0]);
    assert_eq!(run(CollectiveKind::ReduceScatter, 2, &[1.0, 2.0, 3.0, 4.0]), [2.0, 4.0]);
    assert_eq!(run(CollectiveKind::Broadcast { root: 2 }, 3, &x), x);
}

#[test]
fn packing_sizes_follow_from_the_format() {
    fn panel_bytes(k: usize) -> Option<u64> {
        (k as u64).checked_mul(16)
    }
    static FORMAT: PackFormat = PackFormat { name: "panels of four", dtype: F32, panel: 4, panel_bytes };
    let linear = MatMul::linear(1, 6, 3, F32, F32, F32);
    let pack = Pack { format: &FORMAT, matrices: 2, n: 6, k: 3, b: linear.b };
    assert_eq!(pack.operands()[1].bytes, 2 * 2 * 48);
    assert_eq!(run(pack, &[&[0.5; 36]])[0].value, [0.5; 36]);
    assert!(Op::from(Pack { n: usize::MAX, ..pack }).validate().is_err());
}
