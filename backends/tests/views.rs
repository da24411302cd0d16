//! Views that calls read where they lie, copies of those that they do not, and reading without blocking.

mod common;

use common::{bytes, judge, open, random, random_as, refused};
use perjoule::kernels::KvLayout;
use perjoule::kernels::op::Attention;
use perjoule::ops::{self, KvCache, Weight};
use perjoule::{DType, Device, Tensor};
use std::pin::pin;
use std::task::{Context, Poll, Waker};

const F32: DType = DType::F32;

/// Attention over views against the reference over their elements.
#[track_caller]
fn attend(d: &Device, q: &Tensor, k: &Tensor, v: &Tensor, causal: bool) {
    let out = ops::attention(q, k, v).causal(causal).run().unwrap();
    assert_eq!((out.shape(), out.is_dense()), (q.shape(), true));
    let [batch, q_len, heads, dim] = *q.shape() else { panic!("{q:?}") };
    let (length, kv_heads) = (k.shape()[1], k.shape()[2]);
    let layout = KvLayout::token_major(kv_heads, length, dim);
    let op = Attention { causal, ..Attention::causal(batch, q_len, heads, layout, F32) };
    let lengths = (length as i32).to_le_bytes().repeat(batch);
    judge(d, op, &[bytes(&[q, k, v]), vec![lengths, vec![]]].concat(), &[&out]);
}

#[test]
fn attention_reads_queries_in_any_arrangement() {
    let d = open();
    let (heads, kv_heads, dim) = (4, 2, 16);
    for length in [9, 700] {
        for causal in [true, false] {
            let k = random(&d, 1, &[3, length, kv_heads, dim]);
            let v = random(&d, 2, &[3, length, kv_heads, dim]);
            // one query of each sequence, out of longer ones: only the batch stride counts
            let long = random(&d, 3, &[3, 7, heads, dim]);
            attend(&d, &long.slice(1, 4..5).unwrap(), &k, &v, causal);
            attend(&d, &long.slice(1, 6..).unwrap(), &k, &v, causal);
            // whole sequences
            attend(&d, &long, &k, &v, causal);
            // a single sequence, of a batch
            let one = |t: &Tensor| t.slice(0, 1..2).unwrap();
            attend(&d, &one(&long).slice(1, 2..6).unwrap(), &one(&k), &one(&v), causal);
            // heads of a fused product, in one sequence and in several
            let fused = random(&d, 4, &[3, 5, heads + 2 * kv_heads, dim]);
            let part = |from: usize, n: usize| fused.slice(2, from..from + n).unwrap();
            attend(&d, &part(0, heads), &k, &v, causal);
            attend(&d, &one(&part(0, heads)), &one(&k), &one(&v), causal);
            attend(&d, &part(0, heads).slice(1, 3..4).unwrap(), &k, &v, causal);
            // keys and values of the same product
            attend(&d, &part(0, heads), &part(heads, kv_heads), &part(heads + kv_heads, kv_heads), causal);
            // heads outside tokens
            let outside = random(&d, 5, &[1, heads, 6, dim]).transpose(1, 2).unwrap();
            attend(&d, &outside, &one(&k), &one(&v), causal);
            let keys = random(&d, 6, &[1, kv_heads, length, dim]).transpose(1, 2).unwrap();
            attend(&d, &outside, &keys, &keys, causal);
            // a single head, whose stride means nothing
            attend(
                &d,
                &long.slice(2, 3..).unwrap(),
                &k.slice(2, 1..).unwrap(),
                &v.slice(2, 1..).unwrap(),
                causal,
            );
            // one sequence's keys for all, by a stride of 0
            let shared = one(&k);
            let strides = [0, shared.strides()[1], shared.strides()[2], 1];
            let shared =
                Tensor::from_buffer(&d, shared.buffer().clone(), F32, [3, length, kv_heads, dim], strides);
            let shared = shared.unwrap();
            attend(&d, &long, &shared, &shared, causal);
        }
    }
    let (k, long) = (random(&d, 1, &[3, 9, 2, 16]), random(&d, 3, &[3, 7, 4, 16]));
    let cut = long.slice(1, ..3).unwrap();
    refused(ops::attention(&cut, &k, &k).run(), &["q is", "Tensor::contiguous"]);
    attend(&d, &cut.contiguous().unwrap(), &k, &k, true);
    // strides of single indices do not matter
    let v = random(&d, 2, &[1, 9, 2, 16]);
    attend(&d, &long.slice(0, ..1).unwrap(), &k.slice(0, 2..).unwrap(), &v, true);
}

#[test]
fn every_dtype_is_copied_unchanged() {
    let d = open();
    for dtype in DType::ALL {
        let width = 2 * dtype.block_len();
        let shape = [3, 4, 5, width];
        let whole: Vec<u8> = match dtype.is_block() {
            true => random_as(&d, 1, &shape, dtype).to_bytes().unwrap(),
            false => {
                let count: usize = shape.iter().product();
                let values: Vec<u8> =
                    (0..count * dtype.block_bytes()).map(|i| (i * 37 % 113) as u8).collect();
                values
            }
        };
        let t = Tensor::from_bytes(&d, dtype, &whole, shape).unwrap();
        let mut views = vec![
            t.clone(),
            t.slice(2, 1..3).unwrap(),
            t.slice(0, 1..2).unwrap(),
            t.transpose(0, 1).unwrap(),
            t.transpose(0, 2).unwrap().slice(1, 1..).unwrap(),
            t.slice(1, ..2).unwrap().slice(2, 3..).unwrap(),
            t.slice(3, ..width / 2).unwrap().transpose(1, 2).unwrap(),
        ];
        if !dtype.is_block() {
            views.push(t.transpose(0, 3).unwrap());
            views.push(t.transpose(1, 3).unwrap().slice(0, 1..).unwrap());
        }
        for view in views {
            let want = view.to_bytes().unwrap();
            let copy = view.copy().unwrap();
            assert_eq!((copy.shape(), copy.is_dense()), (view.shape(), true));
            assert_eq!(copy.to_bytes().unwrap(), want, "{view:?} {:?}", view.strides());
            let contiguous = view.contiguous().unwrap();
            assert_eq!(contiguous.to_bytes().unwrap(), want);
            assert_eq!(contiguous.buffer().address() == view.buffer().address(), view.is_dense());
            assert_ne!(copy.buffer().address(), view.buffer().address());
        }
        assert_eq!(t.to_bytes().unwrap(), whole, "{dtype}: the source stays");
    }
    let blocks = random_as(&d, 1, &[2, 64], DType::Q8_0);
    refused(blocks.slice(1, 16..48), &["multiples of the q8_0 block"]);
    refused(blocks.reshape([8, 16]), &["whole q8_0 blocks"]);
    refused(blocks.transpose(0, 1).unwrap().copy(), &["whole q8_0 blocks"]);
    refused(blocks.transpose(0, 1).unwrap().to_bytes(), &["blocks"]);
}

#[test]
fn numbers_that_rounding_would_change_survive_a_copy() {
    let d = open();
    let ints = [i32::MAX, i32::MIN, 16_777_217, -1];
    let t = Tensor::from_slice(&d, &ints, [2, 2]).unwrap().transpose(0, 1).unwrap();
    assert_eq!(t.contiguous().unwrap().to_vec::<i32>().unwrap(), [ints[0], ints[2], ints[1], ints[3]]);
    let floats = [f32::from_bits(1), -0.0, f32::INFINITY, f32::MAX];
    let t = Tensor::from_slice(&d, &floats, [2, 2]).unwrap().transpose(0, 1).unwrap();
    let got: Vec<u32> = t.copy().unwrap().to_vec::<f32>().unwrap().iter().map(|x| x.to_bits()).collect();
    assert_eq!(got, [floats[0], floats[2], floats[1], floats[3]].map(f32::to_bits));
}

#[test]
fn reshaping_follows_strides() {
    let d = open();
    let t = random(&d, 1, &[6, 20]);
    // columns of a fused row become heads
    let part = t.slice(1, 4..16).unwrap();
    let heads = part.reshape([2, 3, 1, 4, 3]).unwrap();
    assert_eq!(heads.strides()[..2], [60, 20]);
    assert_eq!(heads.to_vec::<f32>().unwrap(), part.to_vec::<f32>().unwrap());
    let back = heads.reshape([6, 12]).unwrap();
    assert_eq!(back.strides(), part.strides());
    refused(part.reshape([72]), &["Tensor::contiguous"]);
    refused(part.reshape([12, 6]), &["Tensor::contiguous"]);
    refused(part.reshape([5]), &["72 elements"]);
    let flipped = t.transpose(0, 1).unwrap();
    assert_eq!(
        flipped.reshape([4, 5, 3, 2]).unwrap().to_vec::<f32>().unwrap(),
        flipped.to_vec::<f32>().unwrap()
    );
    refused(flipped.reshape([6, 20]), &["Tensor::contiguous"]);
    assert_eq!(part.contiguous().unwrap().reshape([72]).unwrap().shape(), [72]);
    assert_eq!(t.slice(0, 2..2).unwrap().reshape([0, 7]).unwrap().shape(), [0, 7]);
    assert_eq!(t.slice(0, ..).unwrap().slice(1, 3..=4).unwrap().shape(), [6, 2]);
    refused(t.slice(0, 4..9), &["4..9", "0..6"]);
    #[expect(clippy::reversed_empty_ranges, reason = "what is refused")]
    let reversed = t.slice(0, 4..2);
    refused(reversed, &["4..2"]);
}

#[test]
fn reading_can_be_awaited() {
    let d = open();
    let t = random(&d, 1, &[3, 4]).transpose(0, 1).unwrap();
    let want = t.to_vec::<f32>().unwrap();
    let pending = t.to_vec_async::<f32>();
    let future = pin!(pending);
    let Poll::Ready(got) = future.poll(&mut Context::from_waker(Waker::noop())) else {
        panic!("the CPU is done")
    };
    assert_eq!(got.unwrap(), want);
    // submitted when called, not when polled
    let x = random(&d, 2, &[4]);
    let before = x.to_bytes().unwrap();
    let pending = x.to_bytes_async();
    x.write(&[0.0f32; 4]).unwrap();
    let future = pin!(pending);
    let Poll::Ready(got) = future.poll(&mut Context::from_waker(Waker::noop())) else {
        panic!("the CPU is done")
    };
    assert_eq!(got.unwrap(), before);
    assert_eq!(x.to_vec::<f32>().unwrap(), [0.0; 4]);
    let future = pin!(x.to_vec_async::<i32>());
    let Poll::Ready(got) = future.poll(&mut Context::from_waker(Waker::noop())) else {
        panic!("the CPU is done")
    };
    refused(got, &["cast"]);
    refused(x.write(&[1i32; 4]), &["cast"]);
    refused(x.write(&[1f32; 3]), &["4 elements"]);
    refused(t.write(&[1f32; 12]), &["dense"]);
    let there = x.to_device(&open()).unwrap();
    assert_eq!(there.to_vec::<f32>().unwrap(), [0.0; 4]);
    refused(ops::add(&x, &there), &["another device"]);
}

#[test]
fn everything_moves_between_threads() {
    fn check<T: Send + Sync + std::fmt::Debug>() {}
    check::<Tensor>();
    check::<Device>();
    check::<Weight>();
    check::<KvCache>();
    check::<ops::Routing>();
    check::<ops::Quantised>();
    check::<ops::MatMulCall<'_>>();
    check::<ops::GroupedMatMulCall<'_>>();
    check::<ops::AttentionCall<'_>>();
    fn send<T: Send>(_: T) {}
    let d = open();
    send(random(&d, 1, &[2]).to_vec_async::<f32>());
}
