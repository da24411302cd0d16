//! Cases of the matrix products.

use super::{BLOCKS, FLOATS, Maker, edges, side, turn};
use crate::case::Fill;
use perjoule_kernels::op::{
    Activation, Epilogue, Gated, GatedKind, GatedMatMul, Granularity, GroupedMatMul, MatMul, Pack, Policy,
    Tensor2,
};
use perjoule_kernels::{DType, Matrix, Op, PackFormat};

/// Element types, policy and scales that a row accepts.
#[derive(Clone, Copy)]
struct Base {
    a: DType,
    b: DType,
    c: DType,
    policy: Policy,
    scale: Option<Granularity>,
}

/// Every combination of types that the op is defined for.
fn types() -> Vec<(DType, DType, DType)> {
    let mut list = Vec::new();
    for a in FLOATS {
        for b in FLOATS.into_iter().chain(BLOCKS) {
            list.extend(FLOATS.map(|c| (a, b, c)));
        }
    }
    list.extend(
        [DType::I32, DType::F32, DType::F16, DType::BF16, DType::F8E4M3].map(|c| (DType::I8, DType::I8, c)),
    );
    list
}

const POLICIES: [Policy; 4] = [
    Policy { tf32: false, f16_accumulate: false, quantised_activations: false },
    Policy { tf32: true, f16_accumulate: false, quantised_activations: false },
    Policy { tf32: false, f16_accumulate: true, quantised_activations: false },
    Policy { tf32: false, f16_accumulate: false, quantised_activations: true },
];

/// Depth that a type of B allows: at least `k`, whole blocks.
fn depth(b: DType, k: usize) -> usize {
    k.next_multiple_of(b.block_len())
}

/// The combinations that `make` can build an accepted op for.
fn bases(maker: &mut Maker<'_>, make: impl Fn(Base) -> Vec<Op>) -> Vec<Base> {
    let mut list = Vec::new();
    for (a, b, c) in types() {
        'found: for policy in POLICIES {
            for scale in [None, Some(Granularity::Vector), Some(Granularity::Tensor)] {
                let base = Base { a, b, c, policy, scale };
                if make(base).iter().any(|op| maker.accepts(op)) {
                    list.push(base);
                    break 'found;
                }
            }
        }
    }
    list
}

/// Ways to lay out the operands.
const LAYOUTS: [&str; 10] =
    ["nt", "nn", "nt-pad", "nnc", "tn", "batch", "tt", "shared-b", "gaps", "shared-a"];

fn product(base: Base, [m, n, k]: [usize; 3], layout: &str) -> MatMul {
    let k = depth(base.b, k);
    let block = base.b.block_len();
    let mut op = match layout {
        "nn" | "nnc" | "tn" | "shared-a" => MatMul::nn(m, n, k, base.a, base.b, base.c),
        _ => MatMul::linear(m, n, k, base.a, base.b, base.c),
    };
    op.policy = base.policy;
    op.a_scale = base.scale;
    op.b_scale = base.scale.filter(|_| !base.b.is_block());
    match layout {
        // a constant B, stored k x n
        "nnc" => op.b_constant = true,
        "tn" | "tt" => op.a.strides = Matrix::col_major(m, k),
        "nt-pad" => {
            op.a.strides.row = k + 3;
            op.b.strides.col = k + block.max(5).next_multiple_of(block);
            op.c.strides.row = n + 7;
        }
        "gaps" => {
            op.a.strides = Matrix { row: 2 * k + 1, col: 2, batch: 0 };
            op.c.strides = Matrix { row: 2, col: 2 * m + 1, batch: 0 };
            if block == 1 {
                op.b.strides = Matrix { row: 3, col: 3 * k + 1, batch: 0 };
            }
        }
        "batch" => {
            op.batch = 3;
            op.c.strides.batch = m * n + 5;
        }
        "shared-b" => {
            op.batch = 2;
            op.b.strides.batch = 0;
        }
        "shared-a" => {
            op.batch = 2;
            op.a.strides.batch = 0;
            op.b_constant = true;
        }
        _ => {}
    }
    op
}

/// The edges of each dimension alone, then pairs of them in a Latin square, then random shapes: `[m, n, k]`.
fn shapes(maker: &mut Maker<'_>, tile: [usize; 3]) -> Vec<[usize; 3]> {
    let limit = maker.count(2_000_000, 40_000_000);
    let small = |[m, n, k]: [usize; 3]| m.max(1) * n.max(1) * k.max(1) <= limit;
    let all = tile.map(edges);
    let typical = tile.map(|t| (t + 1).min(67));
    let mut list = vec![tile];
    for d in 0..3 {
        for &edge in &all[d] {
            let mut shape = typical;
            shape[d] = edge;
            if !small(shape) {
                shape = [5, 5, 5];
                shape[d] = edge;
            }
            list.push(shape);
        }
    }
    for (i, &m) in all[0].iter().enumerate() {
        for (j, &n) in all[1].iter().enumerate() {
            // every third of the square covers each edge with several of the others
            if maker.is_full() || (i + 2 * j) % 3 == 0 {
                list.push([m, n, all[2][(i + j) % all[2].len()]]);
            }
        }
    }
    for _ in 0..maker.count(6, 40) {
        list.push(tile.map(|t| 1 + maker.random.below((2 * t + 20).min(300))));
    }
    list.retain(|shape| small(*shape));
    list
}

/// The shape for rows that move lines in pieces of 16 bytes.
fn whole([m, n, k]: [usize; 3]) -> [usize; 3] {
    [m, n.next_multiple_of(16), k.next_multiple_of(16)]
}

fn tile3(tile: &[usize]) -> [usize; 3] {
    [side(tile, 0, 4), side(tile, 1, 16), side(tile, 2, 32)]
}

pub(super) fn matmul(maker: &mut Maker<'_>, tile: &[usize]) {
    let tile = tile3(tile);
    let probe = tile.map(|t| t.min(64));
    let make = |base: Base| ["nt", "nn", "nnc"].map(|l| Op::MatMul(product(base, probe, l))).to_vec();
    let bases = bases(maker, make);
    if bases.is_empty() {
        return;
    }
    let shapes = shapes(maker, tile);
    // every shape once, and at least three shapes for each combination of types
    for i in 0..shapes.len().max(3 * bases.len()) {
        let (shape, base) = (shapes[i % shapes.len()], bases[i % bases.len()]);
        // the first layout in turn that the row runs
        let mut push = |shape: [usize; 3]| {
            (0..LAYOUTS.len()).any(|l| {
                let layout = LAYOUTS[(i + i / LAYOUTS.len() + l) % LAYOUTS.len()];
                maker.push(layout, product(base, shape, layout), turn(i))
            })
        };
        let _ = push(shape) || push(whole(shape));
    }
    let picked = |i: usize| bases[i * 7 % bases.len()];
    let shape = tile.map(|t| (t + 1).min(70));
    let accepted = bases.iter().any(|&base| maker.accepts(&Op::MatMul(product(base, shape, "nt"))));
    let shape = if accepted { shape } else { whole(shape) };
    for (i, layout) in LAYOUTS.into_iter().enumerate() {
        for (j, fill) in [Fill::Integers, Fill::Random].into_iter().enumerate() {
            maker.push(layout, product(picked(i + 3 * j), shape, layout), fill);
        }
    }
    epilogues(maker, &bases, shape);
    for (i, base) in bases.iter().enumerate().take(maker.count(6, usize::MAX)) {
        if !base.policy.quantised_activations {
            maker.push("nt", product(*base, shape, "nt"), Fill::Special);
            maker.push("nn", product(*base, [2, shape[1], 3 + i % 5], "nn"), Fill::Special);
        }
    }
    // into types that have room for it
    let large = |base: &&Base| {
        let wide = |dtype| matches!(dtype, DType::F32 | DType::BF16);
        wide(base.a) && wide(base.c) && !base.policy.f16_accumulate
    };
    for (i, base) in bases.iter().filter(large).enumerate().take(maker.count(6, usize::MAX)) {
        maker.push("nt", product(*base, shape, "nt"), Fill::Large);
        maker.push("batch", product(*base, [3 + i, 5, shape[2]], "batch"), Fill::Large);
    }
    // layers of Llama 3.2 1B: [m, n, k]
    let real =
        [[1, 512, 2048], [5, 2048, 512], [1, 2048, 2048], [33, 512, 2048], [1, 8192, 2048], [3, 2048, 8192]];
    for shape in real.into_iter().take(maker.count(2, real.len())) {
        if !["nt", "nnc", "nn"].iter().any(|l| maker.push("llama", product(bases[0], shape, l), Fill::Random))
        {
            break;
        }
    }
}

fn epilogues(maker: &mut Maker<'_>, bases: &[Base], shape: [usize; 3]) {
    let rounding = |i: usize| bases[i % bases.len()];
    let residual = |dtype, [m, n, _]: [usize; 3], pad: usize| Tensor2 {
        dtype,
        strides: Matrix { row: n + pad, col: 1, batch: m * (n + pad) },
    };
    let plain = Epilogue::default();
    for (i, &base) in bases.iter().enumerate().take(maker.count(4, 40)) {
        let c = base.c;
        let list = [
            ("scale", Epilogue { scale: -0.5, ..plain }),
            ("bias", Epilogue { bias: Some(c), ..plain }),
            ("bias-f32", Epilogue { bias: Some(DType::F32), ..plain }),
            ("silu", Epilogue { activation: Activation::Silu, ..plain }),
            ("gelu", Epilogue { activation: Activation::Gelu, ..plain }),
            ("gelu-tanh", Epilogue { activation: Activation::GeluTanh, ..plain }),
            ("residual", Epilogue { residual: Some(residual(c, shape, 0)), ..plain }),
            ("residual-f32", Epilogue { residual: Some(residual(DType::F32, shape, 3)), ..plain }),
            (
                "all",
                Epilogue {
                    scale: 0.25,
                    bias: Some(DType::F32),
                    activation: Activation::Silu,
                    residual: Some(residual(c, shape, 1)),
                },
            ),
        ];
        for (j, (label, epilogue)) in list.into_iter().enumerate() {
            for layout in ["nt", "nnc", "nn"] {
                let op = MatMul { epilogue, ..product(base, shape, layout) };
                if maker.push(label, op, turn(i + j)) {
                    // k = 0 leaves the bias and the residual
                    let op = MatMul { epilogue, ..product(base, [shape[0], shape[1], 0], layout) };
                    maker.push(label, op, Fill::Integers);
                    break;
                }
            }
        }
        let op = MatMul {
            epilogue: Epilogue { bias: Some(DType::F32), ..plain },
            ..product(base, shape, "batch")
        };
        maker.push("batch-bias", op, Fill::Integers);
    }
    let granularities = [
        Granularity::Tensor,
        Granularity::Vector,
        Granularity::Group(32),
        Granularity::Group(128),
        Granularity::Group(5),
    ];
    for (i, granularity) in granularities.into_iter().enumerate() {
        for (j, (a, b)) in [(true, true), (true, false), (false, true)].into_iter().enumerate() {
            for (at, layout) in [(0, "nt"), (1, "batch")] {
                let mut op = product(rounding(i + j + at), shape, layout);
                op.a_scale = a.then_some(granularity);
                op.b_scale = (b && !op.b.dtype.is_block()).then_some(granularity);
                let label = format!("{layout}-scales{i}{j}");
                maker.push(&label, op, if j == 0 { Fill::Integers } else { Fill::Random });
            }
        }
    }
}

pub(super) fn grouped(maker: &mut Maker<'_>, tile: &[usize]) {
    let tile = tile3(tile);
    let make =
        |base: Base, experts: usize, tokens: usize, top_k: usize, [_, n, k]: [usize; 3], variant: usize| {
            let k = depth(base.b, k);
            let rows = tokens * top_k;
            // the first product of an expert reads a token top_k times, the second what the first wrote
            let (a_rows, a_divisor) = if variant.is_multiple_of(2) { (tokens, top_k) } else { (rows, 1) };
            let pad = if variant % 3 == 2 { 5 } else { 0 };
            let strides = if variant % 5 == 4 && !base.b.is_block() {
                Matrix::row_major(k, n)
            } else {
                Matrix::col_major(k, n)
            };
            GroupedMatMul {
                experts,
                rows,
                n,
                k,
                a: Tensor2 { dtype: base.a, strides: Matrix { row: k + pad, col: 1, batch: 0 } },
                a_rows,
                a_divisor,
                b: Tensor2 { dtype: base.b, strides },
                b_constant: true,
                c: Tensor2 { dtype: base.c, strides: Matrix { row: n + pad, col: 1, batch: 0 } },
                c_rows: rows,
                bias: (variant % 4 == 3).then_some(DType::F32),
                activation: if variant % 7 == 6 { Activation::Silu } else { Activation::None },
                policy: base.policy,
            }
        };
    let probe = tile.map(|t| t.min(64));
    let bases = bases(maker, |base| match base.scale {
        None => vec![make(base, 2, 3, 2, probe, 0).into()],
        Some(_) => Vec::new(),
    });
    if bases.is_empty() {
        return;
    }
    let shapes = shapes(maker, tile);
    let limit = maker.count(1_500_000, 20_000_000);
    for i in 0..shapes.len().max(3 * bases.len()) {
        let shape = shapes[i % shapes.len()];
        let (experts, top_k) = [(4, 2), (8, 2), (1, 1), (3, 3), (16, 4)][i % 5];
        let tokens = shape[0].div_ceil(top_k);
        if tokens * top_k * shape[1] * shape[2] > limit || experts * shape[1] * shape[2] > 4_000_000 {
            continue;
        }
        let op = make(bases[i % bases.len()], experts, tokens, top_k, shape, i);
        if !maker.push(&format!("v{}", i % 35), op, turn(i)) {
            maker.push("plain", make(bases[i % bases.len()], experts, tokens, top_k, shape, 0), turn(i));
        }
    }
    for (i, base) in bases.iter().enumerate().take(maker.count(4, 30)) {
        // many idle experts, none at all, one that has everything
        maker.push("idle", make(*base, 32, 1, 2, probe, i), Fill::Random);
        maker.push("empty", make(*base, 4, 0, 2, probe, i), Fill::Random);
        maker.push("one", make(*base, 1, 9, 1, probe, i), Fill::Integers);
        if !base.policy.quantised_activations {
            maker.push("idle", make(*base, 6, 3, 2, probe, i), Fill::Special);
        }
    }
}

pub(super) fn gated_matmul(maker: &mut Maker<'_>, tile: &[usize]) {
    let tile = tile3(tile);
    let kinds = [
        GatedKind::SwiGlu,
        GatedKind::GeGluTanh,
        GatedKind::GptOss { alpha: 1.702, limit: 7.0 },
        GatedKind::GeGlu,
    ];
    let make = |base: Base, shape: [usize; 3], variant: usize| {
        let layout = if variant % 4 == 3 && !base.b.is_block() { "nnc" } else { "nt" };
        let mut gate = product(base, shape, layout);
        gate.epilogue.bias = (variant % 5 == 2).then_some(base.c);
        gate.b_constant = variant % 3 != 1;
        // every function meets every layout
        let gated = Gated::dense(gate.m, gate.n, base.c, kinds[(variant + variant / 4) % 4]);
        let mut up = gate;
        // of another type, or alone
        match variant % 10 {
            7 => up.epilogue.bias = Some(if base.c == DType::F32 { DType::BF16 } else { DType::F32 }),
            9 => up.epilogue.bias = Some(DType::BF16),
            _ => {}
        }
        if variant % 4 == 2 {
            up.b.strides.col += base.b.block_len();
        }
        let out = perjoule_kernels::Rows {
            outer_stride: gate.n + if variant % 2 == 1 { 3 } else { 0 },
            ..gated.out
        };
        Op::GatedMatMul(Box::new(GatedMatMul { gate, up, gated: Gated { out, ..gated } }))
    };
    let probe = tile.map(|t| t.min(64));
    let bases = bases(maker, |base| match base.scale {
        None => (0..3).map(|v| make(base, probe, v)).collect(),
        Some(_) => Vec::new(),
    });
    if bases.is_empty() {
        return;
    }
    let shapes = shapes(maker, tile);
    for i in 0..shapes.len().max(2 * bases.len()) {
        for v in 0..6 {
            let op = make(bases[i % bases.len()], shapes[i % shapes.len()], i + v);
            if maker.push(&format!("v{}", (i + v) % 240), op, turn(i)) {
                break;
            }
        }
    }
    for (i, base) in bases.iter().enumerate().take(3) {
        maker.push("special", make(*base, [3, 9, 33], i), Fill::Special);
    }
}

/// Packings are judged by the products that read them. Checked here: they stay within their operands, and give the same bytes again.
pub(super) fn pack(maker: &mut Maker<'_>, formats: &[&'static PackFormat]) {
    for &format in formats {
        for (i, b) in FLOATS.into_iter().chain(BLOCKS).chain([DType::I8]).enumerate() {
            for (j, n) in edges(format.panel).into_iter().enumerate() {
                let k = depth(b, [0, 1, 31, 64, 67][(i + j) % 5]);
                for strides in [Matrix::col_major(k, n), Matrix::row_major(k, n)] {
                    let matrices = 1 + (i + j) % 2;
                    let op = Pack { format, matrices, n, k, b: Tensor2 { dtype: b, strides } };
                    maker.push(&format!("{}-row{}", format.name, strides.row), op, Fill::Random);
                }
            }
        }
    }
}
