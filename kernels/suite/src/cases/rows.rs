//! Cases of the ops that work on rows of vectors.

use super::{BLOCKS, FLOATS, Maker, edges, side, turn};
use crate::case::Fill;
use perjoule_kernels::op::{
    Add, Argmax, Cast, Collective, CollectiveKind, Combine, Embed, Gated, GatedKind, Granularity, LayerNorm,
    Quantise, Residual, RmsNorm, Rope, RopeScaling, RopeStyle, Route, RouteOrder, Sample, Softmax,
};
use perjoule_kernels::{DType, Rows};

/// Sizes of `[rows, len]`: every edge of the vector length with several counts of rows, lengths of real models, random ones.
fn sizes(maker: &mut Maker<'_>, tile: &[usize]) -> Vec<(usize, usize)> {
    let mut list = Vec::new();
    for (i, len) in edges(side(tile, tile.len().saturating_sub(1), 16).min(4096)).into_iter().enumerate() {
        list.extend([(1, len), (3 + i, len)]);
    }
    list.extend([(0, 8), (2, 2048), (33, 5), (130, 1), (1, 4096)]);
    for _ in 0..maker.count(6, 40) {
        list.push((1 + maker.random.below(9), 1 + maker.random.below(700)));
    }
    if maker.is_full() {
        list.extend([(512, 2048), (3, 128_256), (1, 14_336)]);
    }
    list
}

/// Ways to lay out `rows` vectors of `len`.
fn laid(layout: usize, rows: usize, len: usize) -> (&'static str, Rows) {
    match layout % 4 {
        0 => ("dense", Rows::dense(rows, len)),
        1 => ("padded", Rows::dense(rows, len).with_outer_stride(len + 3)),
        2 => {
            let grid =
                Rows { outer: rows, inner: 2, len, outer_stride: 2 * (len + 1) + 5, inner_stride: len + 1 };
            ("grid", grid)
        }
        // inner vectors outside: [inner, outer, len]
        _ => {
            ("swapped", Rows { outer: rows, inner: 3, len, outer_stride: len, inner_stride: rows * len + 2 })
        }
    }
}

/// Whether other operands follow the layout of x, or are dense.
fn beside(follow: bool, x: Rows) -> Rows {
    if follow { x } else { Rows::grid(x.outer, x.inner, x.len) }
}

fn pairs() -> impl Iterator<Item = (DType, DType)> {
    FLOATS.into_iter().flat_map(|a| FLOATS.map(|b| (a, b)))
}

/// Calls `make` for each size with types in turn until it has added a case, and with every pair of types at least thrice.
fn over(
    maker: &mut Maker<'_>,
    tile: &[usize],
    mut make: impl FnMut(&mut Maker<'_>, usize, Rows, &str, (DType, DType)) -> bool,
) {
    let sizes = sizes(maker, tile);
    let pairs: Vec<_> = pairs().collect();
    for (i, &(rows, len)) in sizes.iter().enumerate() {
        for layout in [i, i + 1] {
            let (label, x) = laid(layout, rows, len);
            for p in 0..pairs.len() {
                if make(maker, i, x, label, pairs[(i * 5 + p) % pairs.len()]) {
                    break;
                }
            }
        }
    }
    for (p, &pair) in pairs.iter().enumerate() {
        for i in 0..3 {
            let (rows, len) = sizes[(p * 3 + i * 5 + 4) % sizes.len()];
            let (label, x) = laid(p + i, rows.min(20), len.max(1));
            make(maker, p + i, x, label, pair);
        }
    }
}

/// The fill of case `i`: special ones among the others.
fn mixed(i: usize) -> Fill {
    [Fill::Random, Fill::Wide, Fill::Integers, Fill::Special][i % 4]
}

fn residual(i: usize, x: Rows) -> Option<Residual> {
    let rows = Rows { outer_stride: x.outer_stride + 2, ..x };
    match i % 3 {
        0 => None,
        1 => Some(Residual { rows: x, sum: x }),
        _ => {
            let wide = if rows.is_disjoint() { rows } else { x };
            Some(Residual { rows: beside(false, x), sum: wide })
        }
    }
}

pub(super) fn rms_norm(maker: &mut Maker<'_>, tile: &[usize]) {
    over(maker, tile, |maker, i, x, label, (x_dtype, out_dtype)| {
        let op = RmsNorm {
            x,
            x_dtype,
            weight: if i % 2 == 0 { DType::F32 } else { x_dtype },
            weight_offset: if i % 5 == 4 { 1.0 } else { 0.0 },
            eps: [1e-6, 1e-5, 0.0][i % 3],
            residual: residual(i / 2, x),
            out: beside(i % 2 == 0, x),
            out_dtype,
        };
        let label = format!("{label}-r{}w{}", i / 2 % 3, i % 2);
        // with eps = 0 a vector of zeros is 0 / 0, which integers give
        let fill = if op.eps == 0.0 { Fill::Random } else { mixed(i) };
        maker.push(&label, op, fill)
            || maker.push(&label, RmsNorm { residual: None, weight: DType::F32, ..op }, fill)
    });
}

pub(super) fn layer_norm(maker: &mut Maker<'_>, tile: &[usize]) {
    over(maker, tile, |maker, i, x, label, (x_dtype, out_dtype)| {
        let op = LayerNorm {
            x,
            x_dtype,
            weight: if i % 2 == 0 { DType::F32 } else { x_dtype },
            bias: i % 3 != 0,
            eps: [1e-5, 1e-6][i % 2],
            residual: residual(i / 2, x),
            out: beside(i % 2 == 0, x),
            out_dtype,
        };
        let label = format!("{label}-r{}w{}", i / 2 % 3, i % 2);
        let fill = mixed(i);
        maker.push(&label, op, fill)
            || maker.push(&label, LayerNorm { residual: None, weight: DType::F32, ..op }, fill)
    });
}

pub(super) fn softmax(maker: &mut Maker<'_>, tile: &[usize]) {
    over(maker, tile, |maker, i, x, label, (dtype, out_dtype)| {
        let scale = [1.0, 0.125, -2.0][i % 3];
        maker.push(label, Softmax { x, dtype, out: beside(i % 2 == 0, x), out_dtype, scale }, mixed(i))
    });
}

pub(super) fn gated(maker: &mut Maker<'_>, tile: &[usize]) {
    let kinds = [
        GatedKind::SwiGlu,
        GatedKind::GeGluTanh,
        GatedKind::GptOss { alpha: 1.702, limit: 7.0 },
        GatedKind::GeGlu,
    ];
    over(maker, tile, |maker, i, x, label, (dtype, out_dtype)| {
        let mut added = false;
        for (k, kind) in kinds.into_iter().enumerate() {
            // infinite gates meet zeros differently in equally good formulas
            let fill = [Fill::Random, Fill::Wide, Fill::Integers][(i + k) % 3];
            let up = beside(k != 1, x);
            let op = Gated { gate: x, up, dtype, out: beside(i % 2 == 0, x), out_dtype, kind };
            added |= maker.push(&format!("{label}-{k}"), op, fill);
        }
        added
    });
}

pub(super) fn add(maker: &mut Maker<'_>, tile: &[usize]) {
    over(maker, tile, |maker, i, x, label, (dtype, _)| {
        // one vector added to all
        let b = if i % 3 == 2 { Rows { outer_stride: 0, ..x } } else { beside(i % 3 == 0, x) };
        maker.push(
            &format!("{label}-{}", i % 3),
            Add { a: x, b, dtype, out: beside(i % 2 == 0, x) },
            mixed(i),
        )
    });
}

pub(super) fn argmax(maker: &mut Maker<'_>, tile: &[usize]) {
    over(maker, tile, |maker, i, x, label, (dtype, _)| maker.push(label, Argmax { x, dtype }, mixed(i)));
}

pub(super) fn sample(maker: &mut Maker<'_>, tile: &[usize]) {
    over(maker, tile, |maker, i, x, label, (dtype, _)| {
        let len = x.len.max(1);
        let top_k = [None, Some(1), Some(5), Some(len), Some(len + 3)][i % 5];
        let top_p = [None, Some(0.9), Some(0.3), Some(1.0)][i % 4];
        let temperature = [1.0, 0.7, 2.5][i % 3];
        let fill = if i % 7 == 6 { Fill::Special } else { Fill::Random };
        let label = format!("{label}-k{}p{}", i % 5, i % 4);
        maker.push(&label, Sample { x, dtype, temperature, top_k, top_p }, fill)
    });
}

pub(super) fn rope(maker: &mut Maker<'_>, tile: &[usize]) {
    let scalings = [
        ("none", RopeScaling::None),
        ("linear", RopeScaling::Linear { factor: 4.0 }),
        (
            "llama3",
            RopeScaling::Llama3 {
                factor: 32.0,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_max: 8192,
            },
        ),
        (
            "yarn",
            RopeScaling::Yarn {
                factor: 32.0,
                beta_fast: 32.0,
                beta_slow: 1.0,
                original_max: 4096,
                truncate: false,
                attention_factor: RopeScaling::yarn_attention_factor(32.0),
            },
        ),
    ];
    let tile = side(tile, tile.len().saturating_sub(1), 64).min(1024);
    let mut dims: Vec<usize> = edges(tile).into_iter().map(|d| d.next_multiple_of(2)).collect();
    dims.extend([64, 128, 80, 2]);
    let mut i = 0;
    for dtype in FLOATS {
        for (name, scaling) in scalings {
            for style in [RopeStyle::HalfSplit, RopeStyle::Interleaved] {
                for (d, &dim) in dims.iter().enumerate() {
                    if !maker.is_full() && (d + i) % 3 == 1 {
                        continue;
                    }
                    i += 1;
                    let (tokens, heads) = [(1, 4), (3, 2), (7, 1), (0, 2), (2, 8)][i % 5];
                    // a part of each head, and heads in a wider buffer
                    let len = dim + if i % 3 == 0 { 6 } else { 0 };
                    let mut x = Rows::grid(tokens, heads, len.max(1));
                    if i % 4 == 1 {
                        x.outer_stride += 2 * len + 1;
                    }
                    let theta = [10_000.0, 500_000.0][i % 2];
                    let op = Rope { x, dtype, rotary_dim: dim.min(len), style, theta, scaling };
                    let fill = if name == "none" && d % 4 == 3 { Fill::Special } else { Fill::Random };
                    maker.push(&format!("{name}-{style:?}").to_lowercase(), op, fill);
                }
            }
        }
    }
}

pub(super) fn embed(maker: &mut Maker<'_>, tile: &[usize]) {
    let dims = edges(side(tile, tile.len().saturating_sub(1), 64).min(4096));
    for (i, table) in FLOATS.into_iter().chain(BLOCKS).enumerate() {
        for (j, out_dtype) in FLOATS.into_iter().enumerate() {
            for (d, &dim) in dims.iter().enumerate() {
                let dim = dim.next_multiple_of(table.block_len());
                let turn_of = i + j + d;
                let (tokens, vocab) = [(1, 5), (7, 100), (0, 3), (33, 64), (2, 1), (4, 0)][turn_of % 6];
                let mut op = Embed::dense(tokens, vocab, dim, table, out_dtype);
                op.scale = [1.0, 45.25][turn_of % 2];
                if turn_of % 3 == 0 {
                    op.out = op.out.with_outer_stride(dim + 5);
                }
                let fill = [Fill::Random, Fill::Special, Fill::Wide][turn_of % 3];
                maker.push(if turn_of % 3 == 0 { "padded" } else { "dense" }, op, fill);
            }
        }
    }
}

pub(super) fn route(maker: &mut Maker<'_>, tile: &[usize]) {
    let orders = [
        ("renorm", RouteOrder::SoftmaxThenTopK { renormalise: true }),
        ("softmax", RouteOrder::SoftmaxThenTopK { renormalise: false }),
        ("topk", RouteOrder::TopKThenSoftmax),
    ];
    let mut counts = edges(side(tile, tile.len().saturating_sub(1), 8).min(256));
    counts.extend([8, 32, 64, 128]);
    for dtype in FLOATS {
        for (o, (name, order)) in orders.into_iter().enumerate() {
            for (e, &experts) in counts.iter().enumerate() {
                for (t, tokens) in [1, 5, 0, 70].into_iter().enumerate() {
                    let top_k = [1, 2, 4, 8, experts][(e + t + o) % 5].min(experts);
                    let fill = if (e + t) % 6 == 5 { Fill::Special } else { Fill::Random };
                    maker.push(name, Route { tokens, experts, top_k, dtype, order }, fill);
                }
            }
        }
    }
}

pub(super) fn combine(maker: &mut Maker<'_>, tile: &[usize]) {
    over(maker, tile, |maker, i, x, label, (dtype, out_dtype)| {
        let top_k = [1, 2, 4, 8][i % 4];
        let tokens = x.outer.div_ceil(top_k);
        let (_, x) = laid(if label == "padded" { 1 } else { 0 }, tokens * top_k, x.len);
        let (_, out) = laid(i % 2, tokens, x.len);
        let op = Combine { tokens, top_k, x, dtype, out, out_dtype, residual: i % 3 == 1 };
        maker.push(&format!("{label}-{}", i % 6), op, turn(i))
    });
}

pub(super) fn cast(maker: &mut Maker<'_>, tile: &[usize]) {
    let len = side(tile, tile.len().saturating_sub(1), 16).min(4096);
    for from in DType::ALL {
        for to in DType::ALL {
            // every code of the small types
            let all = if from.block_bytes() >= 4 { 20_000 } else { 1 << (8 * from.block_bytes()) };
            let all = if from.is_block() { from.block_len() * 3 } else { all };
            maker.push("all", Cast::dense(1, all, from, to), Fill::Codes);
            for (i, edge) in edges(len).into_iter().enumerate() {
                let edge = edge.next_multiple_of(from.block_len());
                let mut op = Cast::dense([1, 3, 7][i % 3], edge, from, to);
                if i % 2 == 1 {
                    op.x = op.x.with_outer_stride(edge + 2 * from.block_len());
                    op.out = op.out.with_outer_stride(edge + 3);
                }
                let fill = if from.is_integer() || from.is_block() { turn(i) } else { mixed(i) };
                maker.push("edge", op, fill);
            }
        }
    }
}

pub(super) fn quantise(maker: &mut Maker<'_>, tile: &[usize]) {
    let len = side(tile, tile.len().saturating_sub(1), 32).min(4096);
    for from in FLOATS {
        for (t, to) in BLOCKS.into_iter().chain([DType::I8, DType::F8E4M3]).enumerate() {
            for (i, edge) in edges(len).into_iter().enumerate() {
                let x = Rows::dense([1, 3, 0, 5][(i + t) % 4], edge.next_multiple_of(to.block_len()));
                let fill = [Fill::Random, Fill::Wide, Fill::Integers][i % 3];
                if to.is_block() {
                    // what overflows the f16 scale of a block is not specified
                    let fill = if fill == Fill::Wide { Fill::Random } else { fill };
                    maker.push("block", Quantise { x, from, to, scale: None }, fill);
                    continue;
                }
                let granularities =
                    [Granularity::Tensor, Granularity::Vector, Granularity::Group(32), Granularity::Group(7)];
                for (g, granularity) in granularities.into_iter().enumerate() {
                    // the scale of a vector without elements is not specified
                    if x.len == 0 && granularity != Granularity::Tensor {
                        continue;
                    }
                    let op = Quantise { x, from, to, scale: Some(granularity) };
                    maker.push(&format!("scale{g}"), op, fill);
                }
            }
        }
    }
}

pub(super) fn collective(maker: &mut Maker<'_>) {
    let kinds = [
        ("all-reduce", CollectiveKind::AllReduce),
        ("all-gather", CollectiveKind::AllGather),
        ("reduce-scatter", CollectiveKind::ReduceScatter),
        ("broadcast", CollectiveKind::Broadcast { root: 0 }),
    ];
    for dtype in FLOATS.into_iter().chain([DType::I32]) {
        for (name, kind) in kinds {
            for count in [0, 1, 100, 4099] {
                maker.push(name, Collective { kind, dtype, count, world: 1 }, Fill::Random);
            }
        }
    }
}
