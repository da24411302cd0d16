//! The KV cache: layouts, raggedness, element types, and attention over it by the f64 reference.

mod common;

use common::{bytes, judge, open, random, random_as, refused};
use perjoule::kernels::op::{Attention, HeadNorm, KvAppend, QkNormRopeAppend, Rope};
use perjoule::kernels::{KvLayout, Rows};
use perjoule::ops::{self, KvCache, Paging, QkNormRope, RopeOptions};
use perjoule::{DType, Device, Tensor};

const F32: DType = DType::F32;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const DIM: usize = 32;
const PAGING: Paging = Paging { block: 4, blocks: 16 };

fn paged(d: &Device, batch: usize, dtype: DType) -> KvCache {
    KvCache::paged(d, batch, KV_HEADS, 20, DIM, dtype, PAGING).unwrap()
}

fn i32s(values: impl IntoIterator<Item = usize>) -> Vec<u8> {
    values.into_iter().flat_map(|v| (v as i32).to_le_bytes()).collect()
}

fn offsets(counts: &[usize]) -> Vec<usize> {
    (0..=counts.len()).map(|n| counts[..n].iter().sum()).collect()
}

fn table(cache: &KvCache) -> Vec<u8> {
    cache.block_table().iter().flat_map(|b| b.to_le_bytes()).collect()
}

/// One ragged step, judged: what is stored, and attention with and without everything that can be asked of it.
fn step(d: &Device, cache: &mut KvCache, seed: u32, counts: &[usize]) -> [Tensor; 4] {
    let tokens: usize = counts.iter().sum();
    let batch = counts.len();
    let [q, k, v] = [(0, HEADS), (1, KV_HEADS), (2, KV_HEADS)]
        .map(|(part, heads)| random(d, 3 * seed + part, &[tokens, heads, DIM]));
    let before = cache.lengths().to_vec();
    cache.advance_ragged(counts).unwrap();
    let positions = cache.positions().to_vec::<i32>().unwrap();
    let want: Vec<i32> = before.iter().zip(counts).flat_map(|(&b, &n)| b as i32..(b + n) as i32).collect();
    assert_eq!(positions, want);
    let caches = bytes(&[cache.keys(), cache.values()]);
    cache.append(&k, &v).unwrap();
    let longest = counts.iter().copied().max().unwrap();
    let paging = !cache.block_table().is_empty();
    let layout = match paging {
        true => KvLayout::paged(KV_HEADS, 20, DIM, PAGING),
        false => KvLayout::contiguous(KV_HEADS, 20, DIM),
    };
    let mut slots = vec![i32s(cache.lengths().iter().copied()), i32s(offsets(counts))];
    slots.extend(paging.then(|| table(cache)));
    let rows = Rows::grid(tokens, KV_HEADS, DIM);
    let append = KvAppend {
        ragged: true,
        src_k: rows,
        src_v: rows,
        kv_dtype: cache.dtype(),
        ..KvAppend::dense(batch, longest, layout, F32)
    };
    let args = [bytes(&[&k, &v]), slots.clone(), caches].concat();
    judge(d, append, &args, &[cache.keys(), cache.values()]);

    let sinks = random(d, 77, &[HEADS]);
    let plain = ops::attention_cached(&q, cache).run().unwrap();
    let all =
        ops::attention_cached(&q, cache).window(3).soft_cap(2.0).sinks(&sinks).scale(0.5).run().unwrap();
    let rows = Rows::grid(tokens, HEADS, DIM);
    let op = Attention {
        ragged: true,
        q: rows,
        out: rows,
        kv_dtype: cache.dtype(),
        ..Attention::causal(batch, longest, HEADS, layout, F32)
    };
    let mut args = [bytes(&[&q, cache.keys(), cache.values()]), slots, vec![vec![]]].concat();
    judge(d, op, &args, &[&plain]);
    args.insert(args.len() - 1, sinks.to_bytes().unwrap());
    let op = Attention { window: Some(3), soft_cap: Some(2.0), sinks: true, scale: 0.5, ..op };
    judge(d, op, &args, &[&all]);
    [q, k, v, plain]
}

#[test]
fn ragged_steps_of_every_layout_and_dtype() {
    let d = open();
    for dtype in [F32, DType::F16, DType::BF16, DType::F8E4M3, DType::Q8_0] {
        let contiguous = KvCache::new(&d, 3, KV_HEADS, 20, DIM, dtype).unwrap();
        let mut outs = Vec::new();
        for mut cache in [contiguous, paged(&d, 3, dtype)] {
            let mut all = Vec::new();
            for (seed, counts) in [[5, 0, 3], [1, 1, 1], [0, 7, 2]].iter().enumerate() {
                all.push(step(&d, &mut cache, seed as u32, counts)[3].to_bytes().unwrap());
            }
            assert_eq!(cache.lengths(), [6, 8, 6]);
            outs.push(all);
        }
        assert_eq!(outs[0], outs[1], "{dtype}: pages make no difference");
    }
}

#[test]
fn ragged_sequences_are_as_if_alone() {
    let d = open();
    let mut cache = paged(&d, 2, F32);
    let [_, k0, v0, _] = step(&d, &mut cache, 1, &[4, 6]);
    let [q, k1, v1, out] = step(&d, &mut cache, 2, &[3, 2]);
    // the second sequence: tokens 4.. of the first step, 3.. of the second
    let join = |a: &Tensor, b: &Tensor| {
        let mut all = a.slice(0, 4..).unwrap().to_vec::<f32>().unwrap();
        all.extend(b.slice(0, 3..).unwrap().to_vec::<f32>().unwrap());
        Tensor::from_slice(&d, &all, [1, 8, KV_HEADS, DIM]).unwrap()
    };
    let own = q.slice(0, 3..).unwrap().reshape([1, 2, HEADS, DIM]).unwrap();
    let alone = ops::attention(&own, &join(&k0, &k1), &join(&v0, &v1)).causal(true).run().unwrap();
    let (alone, out) = (alone.to_vec::<f32>().unwrap(), out.slice(0, 3..).unwrap().to_vec::<f32>().unwrap());
    assert!(alone.iter().zip(&out).all(|(a, b)| (a - b).abs() < 1e-5));
}

#[test]
fn uniform_steps_of_pages_are_those_of_a_contiguous_cache() {
    let d = open();
    let mut caches = [KvCache::new(&d, 2, KV_HEADS, 20, DIM, F32).unwrap(), paged(&d, 2, F32)];
    for (seed, n) in [(1, 7), (2, 1), (3, 1), (4, 6)] {
        let [q, k, v] = [(0, HEADS), (1, KV_HEADS), (2, KV_HEADS)]
            .map(|(part, heads)| random(&d, 3 * seed + part, &[2, n, heads, DIM]));
        let outs = caches.each_mut().map(|cache| {
            cache.advance(n).unwrap();
            cache.append(&k, &v).unwrap();
            ops::attention_cached(&q, cache).window(5).run().unwrap().to_vec::<f32>().unwrap()
        });
        assert_eq!(outs[0], outs[1]);
    }
    assert_eq!(caches[1].len(), 15);
    assert_eq!(caches[1].free_blocks(), Some(16 - 2 * 4));
}

#[test]
fn norm_rotation_and_append_in_one_pass() {
    let d = open();
    let (q_weight, k_weight) = (random(&d, 1, &[DIM]), random(&d, 2, &[DIM]));
    let rope = RopeOptions::new(1e6).rotary_dim(16);
    let (q_weight, k_weight) = (&q_weight, &k_weight);
    let how = QkNormRope {
        q_weight: Some(q_weight),
        k_weight: Some(k_weight),
        weight_offset: 1.0,
        eps: 1e-6,
        rope,
    };
    let mut cache = paged(&d, 2, DType::BF16);
    step(&d, &mut cache, 5, &[3, 1]);
    let counts = [2, 4];
    cache.advance_ragged(&counts).unwrap();
    // slices of one fused product
    let fused = random(&d, 3, &[6, HEADS + 2 * KV_HEADS, DIM]);
    let (q, k, v) = (
        fused.slice(1, ..HEADS).unwrap(),
        fused.slice(1, HEADS..HEADS + KV_HEADS).unwrap(),
        fused.slice(1, HEADS + KV_HEADS..).unwrap(),
    );
    let positions = cache.positions().clone();
    let caches = bytes(&[cache.keys(), cache.values()]);
    let out = ops::qk_norm_rope_append(&q, &k, &v, &how, &mut cache).unwrap();
    let norm = Some(HeadNorm { weight_offset: 1.0, ..HeadNorm::default() });
    let turn = |heads| Rope { rotary_dim: 16, ..Rope::dense(6, heads, DIM, F32, 1e6) };
    let rows = Rows::grid(6, KV_HEADS, DIM);
    let layout = KvLayout::paged(KV_HEADS, 20, DIM, PAGING);
    let append = KvAppend {
        ragged: true,
        src_k: rows,
        src_v: rows,
        kv_dtype: DType::BF16,
        ..KvAppend::dense(2, 4, layout, F32)
    };
    let op = QkNormRopeAppend {
        q_norm: norm,
        k_norm: norm,
        q_rope: turn(HEADS),
        k_rope: turn(KV_HEADS),
        ..QkNormRopeAppend::dense(HEADS, append, 1e6)
    };
    let slots = vec![i32s([5, 5]), i32s(offsets(&counts)), table(&cache)];
    let args = [bytes(&[&q, &k, &v, q_weight, k_weight, &positions]), slots, caches, vec![vec![]]].concat();
    judge(&d, op, &args, &[cache.keys(), cache.values(), &out]);
    // nothing is due any more
    assert!(ops::attention_cached(&out, &cache).run().is_ok());
    refused(ops::qk_norm_rope_append(&q, &k, &v, &how, &mut cache), &["advance"]);
    cache.advance_ragged(&counts).unwrap();
    refused(ops::qk_norm_rope_append(&k, &v, &q, &how, &mut cache), &["v is", "shape"]);
    refused(ops::qk_norm_rope_append(&q.slice(0, 1..).unwrap(), &k, &v, &how, &mut cache), &["q is"]);
    let short = QkNormRope { k_weight: Some(&random(&d, 2, &[8])), ..how };
    refused(ops::qk_norm_rope_append(&q, &k, &v, &short, &mut cache), &["k_weight"]);
}

#[test]
fn rotation_and_append_in_one_pass_are_those_in_turn() {
    let d = open();
    let rope = RopeOptions::new(1e4);
    let how = QkNormRope { q_weight: None, k_weight: None, weight_offset: 0.0, eps: 1e-6, rope };
    let [parts, fused] = [false, true].map(|fused| {
        let [q, k, v] = [(1, HEADS), (2, KV_HEADS), (3, KV_HEADS)]
            .map(|(seed, heads)| random(&d, seed, &[2, 5, heads, DIM]));
        let mut cache = KvCache::new(&d, 2, KV_HEADS, 20, DIM, F32).unwrap();
        cache.advance(5).unwrap();
        let queries = if fused {
            ops::qk_norm_rope_append(&q, &k, &v, &how, &mut cache).unwrap()
        } else {
            ops::rope(&q, cache.positions(), rope).unwrap();
            ops::rope(&k, cache.positions(), rope).unwrap();
            cache.append(&k, &v).unwrap();
            q
        };
        [&queries, cache.keys(), cache.values()].map(|t| t.to_vec::<f32>().unwrap())
    });
    for (a, b) in parts.iter().flatten().zip(fused.iter().flatten()) {
        assert!((a - b).abs() < 1e-5, "{a} {b}");
    }
}

#[test]
fn blocks_are_given_taken_back_and_given_again() {
    let d = open();
    let mut cache = KvCache::paged(&d, 2, KV_HEADS, 100, DIM, F32, Paging { block: 4, blocks: 5 }).unwrap();
    assert_eq!(cache.free_blocks(), Some(5));
    let fill = |cache: &mut KvCache, counts: &[usize]| {
        cache.advance_ragged(counts)?;
        let kv = random(&d, 1, &[counts.iter().sum(), KV_HEADS, DIM]);
        cache.append(&kv, &kv)
    };
    fill(&mut cache, &[9, 4]).unwrap();
    assert_eq!(cache.free_blocks(), Some(1));
    refused(fill(&mut cache, &[1, 9]), &["blocks", "1 that are free"]);
    assert_eq!((cache.lengths(), cache.free_blocks()), (&[9, 4][..], Some(1)), "refused without effect");
    cache.advance_ragged(&[3, 1]).unwrap();
    assert_eq!((cache.lengths(), cache.free_blocks()), (&[12, 5][..], Some(0)));
    refused(cache.truncate(0, 1), &["append"]);
    cache.cancel_advance().unwrap();
    assert_eq!((cache.lengths(), cache.free_blocks()), (&[9, 4][..], Some(1)));
    cache.truncate(0, 4).unwrap();
    assert_eq!((cache.lengths(), cache.free_blocks()), (&[4, 4][..], Some(3)));
    refused(cache.truncate(0, 5), &["at most the 4"]);
    refused(cache.truncate(2, 0), &["below 2"]);
    fill(&mut cache, &[0, 12]).unwrap();
    assert_eq!(cache.free_blocks(), Some(0));
    cache.reset().unwrap();
    assert_eq!((cache.is_empty(), cache.free_blocks()), (true, Some(5)));
    assert!(cache.block_table().iter().all(|&b| b == -1));
    // what was truncated is forgotten: the next tokens take its place
    let mut other = paged(&d, 2, F32);
    step(&d, &mut other, 1, &[6, 3]);
    other.truncate(0, 2).unwrap();
    step(&d, &mut other, 2, &[2, 2]);
    let mut simple = KvCache::new(&d, 1, KV_HEADS, 8, DIM, F32).unwrap();
    let kv = random(&d, 3, &[1, 4, KV_HEADS, DIM]);
    simple.advance(4).unwrap();
    simple.append(&kv, &kv).unwrap();
    simple.truncate(0, 1).unwrap();
    simple.advance(4).unwrap();
    assert_eq!(simple.positions().to_vec::<i32>().unwrap(), [1, 2, 3, 4]);
    simple.reset().unwrap();
    simple.advance(8).unwrap();
    assert_eq!(simple.positions().to_vec::<i32>().unwrap()[0], 0);
}

#[test]
fn a_table_of_the_callers_shares_a_prefix() {
    let d = open();
    let mut cache = KvCache::paged(&d, 2, KV_HEADS, 12, DIM, F32, PAGING).unwrap();
    refused(cache.adopt(1, 0), &["set_block_table"]);
    refused(cache.set_block_table(&[0, 1, 2, 3, 4]), &["[2, 3]"]);
    refused(cache.set_block_table(&[0, 1, 2, 3, 4, 16]), &["16 at 5", "below 16"]);
    refused(cache.set_block_table(&[0, 1, 2, 3, 4, -2]), &["-2 at 5"]);
    // the first block is shared
    cache.set_block_table(&[9, 1, -1, 9, 3, -1]).unwrap();
    assert_eq!(cache.free_blocks(), None);
    refused(cache.advance(2), &["block 9 twice"]);
    cache.set_block_table(&[9, 1, -1, 2, 3, -1]).unwrap();
    cache.advance_ragged(&[4, 0]).unwrap();
    let kv = random(&d, 1, &[4, KV_HEADS, DIM]);
    refused(cache.set_block_table(&[9, 1, -1, 9, 3, -1]), &["append"]);
    cache.append(&kv, &kv).unwrap();
    refused(cache.set_block_table(&[-1, 1, -1, 9, 3, -1]), &["sequence 0", "4 tokens"]);
    cache.set_block_table(&[9, 1, -1, 9, 3, -1]).unwrap();
    refused(cache.adopt(1, 9), &["at most the 8"]);
    cache.adopt(1, 4).unwrap();
    refused(cache.advance(5), &["sequence 0", "9 tokens"]);
    cache.advance(1).unwrap();
    let new = random(&d, 2, &[1, 1, KV_HEADS, DIM]);
    let both =
        Tensor::from_slice(&d, &new.to_vec::<f32>().unwrap().repeat(2), [2, 1, KV_HEADS, DIM]).unwrap();
    cache.append(&both, &both).unwrap();
    let q = Tensor::from_slice(&d, &common::numbers(3, HEADS * DIM).repeat(2), [2, 1, HEADS, DIM]).unwrap();
    let out = ops::attention_cached(&q, &cache).run().unwrap().to_vec::<f32>().unwrap();
    assert_eq!(out[..HEADS * DIM], out[HEADS * DIM..], "the same prefix and token give the same");
}

#[test]
fn wrong_use_of_a_cache_is_one_clear_error() {
    let d = open();
    refused(KvCache::new(&d, 1, 1, 8, 16, DType::I8), &["i8", "q8_0"]);
    refused(KvCache::new(&d, 1, 1, 8, 16, DType::Q8_0), &["blocks"]);
    refused(KvCache::new(&d, 1, 0, 8, 16, F32), &["kv_heads"]);
    refused(KvCache::new(&d, 1, 1, usize::MAX, 16, F32), &["capacity"]);
    let none = Paging { block: 0, blocks: 1 };
    refused(KvCache::paged(&d, 1, 1, 8, 16, F32, none), &["at least 1 token"]);
    let mut cache = paged(&d, 2, F32);
    refused(cache.advance_ragged(&[1]), &["2 numbers"]);
    refused(cache.advance_ragged(&[1, usize::MAX]), &["capacity of 20"]);
    refused(cache.advance(21), &["capacity of 20"]);
    refused(
        cache.append(&random(&d, 1, &[2, 1, KV_HEADS, DIM]), &random(&d, 1, &[2, 1, KV_HEADS, DIM])),
        &["shape"],
    );
    cache.advance_ragged(&[2, 1]).unwrap();
    let k = random(&d, 1, &[3, KV_HEADS, DIM]);
    let half = random_as(&d, 1, &[3, KV_HEADS, DIM], DType::F16);
    refused(cache.append(&k, &half), &["v is", "f32"]);
    refused(cache.append(&k.slice(0, ..2).unwrap(), &k), &["k is", "[3, 2, 32]"]);
    let elsewhere = random(&open(), 1, &[3, KV_HEADS, DIM]);
    refused(cache.append(&k, &elsewhere), &["another device"]);
    let crossed = random(&d, 1, &[3, DIM, KV_HEADS]).transpose(1, 2).unwrap();
    refused(cache.append(&crossed, &k), &["contiguous"]);
    let q = random(&d, 2, &[3, HEADS, DIM]);
    refused(ops::attention_cached(&q, &cache).run(), &["appended"]);
    cache.append(&k, &k).unwrap();
    refused(cache.append(&k, &k), &["advance first"]);
    refused(ops::attention_cached(&q.slice(0, 1..).unwrap(), &cache).run(), &["the 3 tokens"]);
    refused(ops::attention_cached(&random(&d, 2, &[2, 2, HEADS, DIM]), &cache).run(), &["at most the 1"]);
    refused(ops::attention_cached(&random(&d, 2, &[3, 1, HEADS, DIM]), &cache).run(), &["batch 2"]);
    refused(ops::attention_cached(&random(&d, 2, &[HEADS, DIM]), &cache).run(), &["advance_ragged"]);
    refused(ops::attention_cached(&random(&d, 2, &[3, 3, DIM]), &cache).run(), &["heads"]);
    refused(ops::attention_cached(&q, &cache).window(0).run(), &["window"]);
    refused(ops::attention_cached(&q, &cache).soft_cap(-1.0).run(), &["soft_cap"]);
    assert!(ops::attention_cached(&random(&d, 2, &[2, 1, HEADS, DIM]), &cache).run().is_ok());
    cache.truncate(0, 1).unwrap();
    refused(ops::attention_cached(&q, &cache).run(), &["advance_ragged"]);
    let mut simple = KvCache::new(&d, 1, KV_HEADS, 8, DIM, F32).unwrap();
    refused(simple.set_block_table(&[]), &["paged"]);
    refused(simple.adopt(0, 0), &["set_block_table"]);
    assert!(format!("{cache:?} {simple:?}").contains("16 blocks of 4"), "{cache:?}");
}
