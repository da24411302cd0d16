//! Cases of attention and of the ops around the KV cache.

use super::{FLOATS, Maker, edges, side};
use crate::case::Fill;
use perjoule_kernels::op::{Advance, Attention, HeadNorm, KvAppend, Op, Policy, QkNormRopeAppend, RopeStyle};
use perjoule_kernels::{DType, KvLayout, Paging, Rows};

/// Shape of a case.
#[derive(Clone, Copy)]
struct Shape {
    batch: usize,
    q_len: usize,
    heads: usize,
    kv_heads: usize,
    capacity: usize,
    head_dim: usize,
}

/// Ways to lay out the cache.
const CACHES: [&str; 6] = ["dense", "tokens", "padded", "paged16", "paged1", "paged7"];

fn cache(s: Shape, dtype: DType, layout: &str) -> KvLayout {
    let unit = dtype.block_len();
    let paged = |block: usize| {
        let blocks = s.batch * s.capacity.div_ceil(block) + 2;
        KvLayout::paged(s.kv_heads, s.capacity, s.head_dim, Paging { block, blocks })
    };
    match layout {
        "tokens" => KvLayout::token_major(s.kv_heads, s.capacity, s.head_dim),
        "padded" => {
            let token_stride = s.head_dim + unit.max(8).next_multiple_of(unit);
            let head_stride = s.capacity * token_stride + 2 * unit;
            KvLayout {
                token_stride,
                head_stride,
                batch_stride: s.kv_heads * head_stride + 4 * unit,
                ..KvLayout::contiguous(s.kv_heads, s.capacity, s.head_dim)
            }
        }
        "paged16" => paged(16),
        "paged7" => paged(7),
        "paged1" => paged(1),
        _ => KvLayout::contiguous(s.kv_heads, s.capacity, s.head_dim),
    }
}

#[derive(Clone, Copy)]
struct Types {
    q: DType,
    kv: DType,
    out: DType,
    policy: Policy,
}

fn build(s: Shape, t: Types, layout: &str) -> Attention {
    Attention {
        q_dtype: t.q,
        kv_dtype: t.kv,
        out_dtype: t.out,
        policy: t.policy,
        ..Attention::causal(s.batch, s.q_len, s.heads, cache(s, t.kv, layout), t.q)
    }
}

/// An option of attention by index, with its name.
fn option(op: Attention, index: usize, tile_kv: usize) -> (&'static str, Attention) {
    match index % 12 {
        0 => ("causal", op),
        1 => ("full", Attention { causal: false, ..op }),
        2 => ("window", Attention { window: Some(tile_kv + 1), ..op }),
        3 => ("window1", Attention { window: Some(1), ..op }),
        4 => ("window-full", Attention { causal: false, window: Some(3), ..op }),
        5 => ("cap", Attention { soft_cap: Some(5.0), ..op }),
        6 => ("sinks", Attention { sinks: true, ..op }),
        7 => ("ragged", Attention { ragged: true, ..op }),
        8 => {
            // queries and results as slices of wider buffers
            let q = Rows { outer_stride: op.q.outer_stride + 2 * op.q.len, ..op.q };
            let out = Rows { outer_stride: op.out.outer_stride + op.out.len, ..op.out };
            ("strided", Attention { q, out, ..op })
        }
        9 => ("window-sinks", Attention { window: Some(tile_kv), sinks: true, ..op }),
        10 => ("ragged-full", Attention { ragged: true, causal: false, ..op }),
        _ => {
            let all = Attention { ragged: true, sinks: true, soft_cap: Some(30.0), ..op };
            ("all", Attention { window: Some(tile_kv.max(2) - 1), scale: -0.3, ..all })
        }
    }
}

/// Query and key/value heads: each head its own, groups, one for all.
const HEADS: [(usize, usize); 6] = [(2, 2), (4, 2), (6, 2), (4, 1), (8, 1), (1, 1)];

fn types(maker: &mut Maker<'_>, dim: usize) -> Vec<Types> {
    let mut list = Vec::new();
    let relaxed = Policy { quantised_activations: true, ..Policy::default() };
    for q in FLOATS {
        for kv in FLOATS.into_iter().chain([DType::Q8_0]) {
            for out in FLOATS {
                let head_dim = dim.next_multiple_of(kv.block_len());
                let policies =
                    [Policy::default(), Policy { f16_accumulate: true, ..Policy::default() }, relaxed];
                for policy in policies {
                    let types = Types { q, kv, out, policy };
                    let shape = Shape { batch: 1, q_len: 2, heads: 2, kv_heads: 2, capacity: 8, head_dim };
                    let decode = Shape { q_len: 1, ..shape };
                    let probes =
                        [shape, decode, Shape { head_dim: 64, ..shape }, Shape { head_dim: 128, ..decode }];
                    let layouts = ["dense", "paged16"];
                    let mut ops =
                        probes.iter().flat_map(|s| layouts.map(|l| Op::Attention(build(*s, types, l))));
                    if ops.any(|op| maker.accepts(&op)) {
                        list.push(types);
                        break;
                    }
                }
            }
        }
    }
    list
}

pub(super) fn attention(maker: &mut Maker<'_>, tile: &[usize]) {
    let (tile_q, tile_kv, tile_d) = (side(tile, 0, 4), side(tile, 1, 16), side(tile, 2, 64));
    let types = types(maker, tile_d);
    if types.is_empty() {
        return;
    }
    // head_dims of real models that the row runs, the tile's own first
    let mut dims = vec![tile_d, 64, 128, 80, 96, 32, 256, 40, 7];
    let shape = Shape { batch: 1, q_len: 1, heads: 2, kv_heads: 2, capacity: 8, head_dim: 0 };
    dims.retain(|&head_dim| {
        let runs = |t: &Types| maker.accepts(&build(Shape { head_dim, ..shape }, *t, "dense").into());
        types.iter().any(runs)
    });
    dims.dedup();
    if dims.is_empty() {
        dims.push(tile_d);
    }
    let (q_edges, kv_edges) = (edges(tile_q.min(128)), edges(tile_kv.min(256)));
    let mut shapes = Vec::new();
    for (i, &q_len) in q_edges.iter().enumerate() {
        for (j, &capacity) in kv_edges.iter().enumerate() {
            shapes.push((q_len, capacity, i + j));
        }
    }
    // prefill, decode, more queries than keys
    shapes.extend([
        (tile_q + 2, tile_q + 2, 0),
        (1, 2 * tile_kv + 1, 1),
        (tile_q + 5, 3, 2),
        (3, tile_kv + 9, 3),
    ]);
    for i in 0..maker.count(6, 60) {
        let q_len = 1 + maker.random.below((2 * tile_q + 4).min(70));
        shapes.push((q_len, q_len + maker.random.below(2 * tile_kv.min(128) + 20), i));
    }
    let limit = maker.count(3_000_000, 60_000_000);
    for i in 0..shapes.len().max(3 * types.len()) {
        let (q_len, capacity, turn) = shapes[i % shapes.len()];
        let (heads, kv_heads) = HEADS[(i + turn) % HEADS.len()];
        let types = types[i % types.len()];
        let head_dim =
            dims[if i % 3 == 2 { i % dims.len() } else { 0 }].next_multiple_of(types.kv.block_len());
        let batch = [1, 2, 3][i % 3];
        let shape = Shape { batch, q_len, heads, kv_heads, capacity, head_dim };
        if batch * q_len * heads * capacity * head_dim > limit {
            continue;
        }
        let fill = if i % 4 == 3 { Fill::Wide } else { Fill::Random };
        // the first option and layout in turn that the row runs
        'found: for o in 0..12 {
            for l in 0..CACHES.len() {
                let layout = CACHES[(i + i / 6 + l) % CACHES.len()];
                let (name, op) = option(build(shape, types, layout), i + i / 12 + o, tile_kv);
                if maker.push(&format!("{layout}-{name}"), op, fill) {
                    break 'found;
                }
            }
        }
    }
    // every option with every layout of the cache once
    for o in 0..12 {
        for (l, layout) in CACHES.into_iter().enumerate() {
            if !maker.is_full() && (o + l) % 2 == 1 {
                continue;
            }
            let types = types[(o + l) % types.len()];
            let head_dim = dims[0].next_multiple_of(types.kv.block_len());
            let (heads, kv_heads) = HEADS[(o + l) % HEADS.len()];
            let shape =
                Shape { batch: 3, q_len: 3, heads, kv_heads, capacity: tile_kv.min(64) + 2, head_dim };
            let (name, op) = option(build(shape, types, layout), o, tile_kv.min(64));
            maker.push(&format!("{layout}-{name}"), op, Fill::Random);
            let decode = Shape { q_len: 1, ..shape };
            let (name, op) = option(build(decode, types, layout), o, 3);
            maker.push(&format!("{layout}-{name}"), op, if l == 0 { Fill::Special } else { Fill::Random });
        }
    }
    for (i, types) in types.iter().enumerate().take(maker.count(3, 100)) {
        let head_dim = dims[i % dims.len()].next_multiple_of(types.kv.block_len());
        let shape = Shape { batch: 2, q_len: 5, heads: 4, kv_heads: 2, capacity: 19, head_dim };
        maker.push("special", build(shape, *types, CACHES[i % 6]), Fill::Special);
    }
    // Llama 3.2 1B: one token of a long context, and a piece of a prompt
    for (q_len, capacity) in [(1, 1030), (20, 150), (64, 600), (1, 5000)].into_iter().take(maker.count(2, 4))
    {
        let shape = Shape { batch: 1, q_len, heads: 32, kv_heads: 8, capacity, head_dim: 64 };
        maker.push("llama", build(shape, types[0], "dense"), Fill::Random);
    }
}

pub(super) fn kv_append(maker: &mut Maker<'_>, tile: &[usize]) {
    let head_dim = side(tile, 0, 64);
    let mut i = 0;
    for src in FLOATS {
        for kv in FLOATS.into_iter().chain([DType::Q8_0]) {
            for layout in CACHES {
                i += 1;
                let dims = [head_dim, head_dim + 1, 64, 1, 2 * head_dim + 3];
                let head_dim = dims[i % dims.len()].next_multiple_of(kv.block_len());
                let shape = Shape {
                    batch: [1, 3, 0, 2][i % 4],
                    q_len: [1, 4, 1, 9, 0][i % 5],
                    heads: 1,
                    kv_heads: [1, 2, 3][i % 3],
                    capacity: [1, 17, 40][i % 3],
                    head_dim,
                };
                let cache = cache(shape, kv, layout);
                let mut op =
                    KvAppend { kv_dtype: kv, ..KvAppend::dense(shape.batch, shape.q_len, cache, src) };
                op.ragged = i % 3 == 1;
                if i % 4 == 1 {
                    // keys and values in one fused buffer
                    op.src_k.outer_stride += 3 * head_dim;
                    op.src_v.outer_stride += 5 * head_dim;
                }
                let ragged = if op.ragged { "-ragged" } else { "" };
                let fill = [Fill::Random, Fill::Integers, Fill::Wide][i % 3];
                maker.push(&format!("{layout}{ragged}"), op, fill);
                let same = KvAppend { ragged: false, ..KvAppend::dense(2, 3, cache, src) };
                if shape.batch == 2 && kv == src {
                    maker.push(layout, same, Fill::Special);
                }
            }
        }
    }
}

pub(super) fn advance(maker: &mut Maker<'_>) {
    for batch in [0, 1, 2, 7, 64, 300] {
        for q_len in [0, 1, 5] {
            maker.push("plain", Advance::uniform(batch, q_len), Fill::Random);
            for short in [0, 1, 3] {
                let tokens = (batch * q_len).saturating_sub(short);
                let op = Advance { batch, q_len, ragged: true, tokens };
                maker.push(&format!("ragged{short}"), op, Fill::Random);
            }
        }
    }
}

pub(super) fn qk_norm_rope_append(maker: &mut Maker<'_>, tile: &[usize]) {
    let tile_d = side(tile, 0, 64);
    let mut i = 0;
    for src in FLOATS {
        for kv in FLOATS.into_iter().chain([DType::Q8_0]) {
            for layout in CACHES {
                i += 1;
                let head_dim = [tile_d, 64, 128, 2 * tile_d + 6, tile_d + 1][i % 5];
                let shape = Shape {
                    batch: [1, 2, 3][i % 3],
                    q_len: [1, 4, 1, 7][i % 4],
                    heads: [4, 2, 8][i % 3],
                    kv_heads: [2, 1][i % 2],
                    capacity: [24, 40][i % 2],
                    head_dim: head_dim.next_multiple_of(kv.block_len()),
                };
                let (cache, head_dim) = (cache(shape, kv, layout), shape.head_dim);
                let append =
                    KvAppend { kv_dtype: kv, ..KvAppend::dense(shape.batch, shape.q_len, cache, src) };
                let mut op = QkNormRopeAppend::dense(shape.heads, append, 10_000.0);
                // each norm with and without the other
                let weight = if i % 7 == 0 { src } else { DType::F32 };
                let norm = HeadNorm { weight, weight_offset: [0.0, 1.0][i % 2], ..HeadNorm::default() };
                let (q_normed, k_normed) = [(true, true), (false, false), (true, false), (false, true)]
                    [if i % 3 == 0 { 0 } else { i / 2 % 4 }];
                (op.q_norm, op.k_norm) = (q_normed.then_some(norm), k_normed.then_some(norm));
                for rope in [&mut op.q_rope, &mut op.k_rope] {
                    if i % 2 == 1 {
                        rope.style = RopeStyle::Interleaved;
                    }
                    // a head of odd length is not rotated as a whole
                    rope.rotary_dim = if i % 11 == 0 { head_dim / 4 } else { head_dim / 2 } * 2;
                }
                if i % 5 == 0 {
                    // angles that queries and keys do not share
                    op.k_rope.theta = 500_000.0;
                }
                if i % 3 == 0 {
                    // queries, keys and values are slices of one buffer
                    let width = (shape.heads + 2 * shape.kv_heads) * head_dim;
                    op.q.outer_stride = width;
                    op.append.src_k.outer_stride = width;
                    op.append.src_v.outer_stride = width;
                }
                op.append.ragged = i % 4 == 1;
                let names = [("q", q_normed), ("k", k_normed), ("ragged", op.append.ragged)];
                let names = names.iter().filter(|(_, holds)| *holds).map(|(name, _)| format!("-{name}"));
                maker.push(&format!("{layout}{}", names.collect::<String>()), op, Fill::Random);
            }
        }
    }
}
