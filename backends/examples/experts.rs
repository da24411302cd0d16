//! A mixture of experts as gpt-oss has it: route, both products of the chosen experts, combine; checked against plain loops.
//!
//! `cargo run --release -p perjoule --example experts`

use perjoule::ops::{self, GatedKind, RouteOrder, Weight};
use perjoule::{DType, Device, Result, Tensor};

const TOKENS: usize = 12;
const EXPERTS: usize = 8;
const TOP_K: usize = 2;
const HIDDEN: usize = 64;
const FFN: usize = 96;
const ALPHA: f32 = 1.702;
const LIMIT: f32 = 7.0;

/// Numbers on the host; weights as checkpoints store them, `[n, k]` of each expert.
struct Layer {
    router: Vec<f32>,
    gate_up: Vec<f32>,
    gate_up_bias: Vec<f32>,
    down: Vec<f32>,
    down_bias: Vec<f32>,
}

fn random(seed: u32, count: usize, scale: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2654435761);
    let mut next = || {
        state = state.wrapping_mul(1664525).wrapping_add(1013904223);
        ((state >> 8) as f32 / (1 << 23) as f32 - 1.0) * scale
    };
    (0..count).map(|_| next()).collect()
}

impl Layer {
    fn new() -> Self {
        Layer {
            router: random(1, EXPERTS * HIDDEN, 0.3),
            gate_up: random(2, EXPERTS * 2 * FFN * HIDDEN, 0.2),
            gate_up_bias: random(3, EXPERTS * 2 * FFN, 0.5),
            down: random(4, EXPERTS * HIDDEN * FFN, 0.2),
            down_bias: random(5, EXPERTS * HIDDEN, 0.5),
        }
    }

    /// The library's calls: `x + experts(x)`.
    fn forward(&self, device: &Device, x: &Tensor) -> Result<Tensor> {
        let tensor = |data: &[f32], shape: &[usize]| Tensor::from_slice(device, data, shape);
        // of experts, rows are pairs of token and expert
        let rows = [TOP_K, 512 * TOP_K];
        let router = Weight::pack(&tensor(&self.router, &[EXPERTS, HIDDEN])?, DType::F32, &[1, 512])?;
        let gate_up = tensor(&self.gate_up, &[EXPERTS, 2 * FFN, HIDDEN])?;
        let gate_up = Weight::pack(&gate_up, DType::F32, &rows)?;
        let down = Weight::pack(&tensor(&self.down, &[EXPERTS, HIDDEN, FFN])?, DType::F32, &rows)?;
        let gate_up_bias = tensor(&self.gate_up_bias, &[EXPERTS, 2 * FFN])?;
        let down_bias = tensor(&self.down_bias, &[EXPERTS, HIDDEN])?;

        let logits = ops::linear(x, &router).run()?;
        let routing = ops::route(&logits, TOP_K, RouteOrder::TopKThenSoftmax)?;
        // each token's row visits its experts; then there is a row for each visit
        let h = ops::grouped_linear(x, &gate_up, &routing).bias(&gate_up_bias).run()?;
        let kind = GatedKind::GptOss { alpha: ALPHA, limit: LIMIT };
        let h = ops::gated(&h.slice(2, ..FFN)?, &h.slice(2, FFN..)?, kind)?;
        let h = ops::grouped_linear(&h, &down, &routing).bias(&down_bias).run()?;
        ops::combine(&h, &routing.weights, Some(x))
    }

    /// The same for one token, in loops over f64.
    fn reference(&self, x: &[f32]) -> Vec<f64> {
        let product = |w: &[f32], x: &[f64], bias: Option<&[f32]>| -> Vec<f64> {
            let row = |(n, w): (usize, &[f32])| {
                let sum: f64 = w.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum();
                sum + bias.map_or(0.0, |b| f64::from(b[n]))
            };
            w.chunks(x.len()).enumerate().map(row).collect()
        };
        let x: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
        let logits = product(&self.router, &x, None);
        let mut order: Vec<usize> = (0..EXPERTS).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        let chosen = &order[..TOP_K];
        let sum: f64 = chosen.iter().map(|&e| logits[e].exp()).sum();
        let mut out = x.clone();
        for &e in chosen {
            let part = |all: &[f32], each: usize| all[e * each..(e + 1) * each].to_vec();
            let (w, bias) = (part(&self.gate_up, 2 * FFN * HIDDEN), part(&self.gate_up_bias, 2 * FFN));
            let h = product(&w, &x, Some(&bias));
            let gated: Vec<f64> = (0..FFN)
                .map(|i| {
                    let (limit, alpha) = (f64::from(LIMIT), f64::from(ALPHA));
                    let (g, u) = (h[i].min(limit), h[FFN + i].clamp(-limit, limit));
                    g / (1.0 + (-alpha * g).exp()) * (u + 1.0)
                })
                .collect();
            let y = product(&part(&self.down, HIDDEN * FFN), &gated, Some(&part(&self.down_bias, HIDDEN)));
            out.iter_mut().zip(y).for_each(|(out, y)| *out += logits[e].exp() / sum * y);
        }
        out
    }
}

fn main() -> Result<()> {
    let cpu = perjoule::open("cpu")?;
    let layer = Layer::new();
    let x = random(6, TOKENS * HIDDEN, 1.0);
    let y = layer.forward(&cpu, &Tensor::from_slice(&cpu, &x, [TOKENS, HIDDEN])?)?.to_vec::<f32>()?;
    let want: Vec<f64> = x.chunks(HIDDEN).flat_map(|token| layer.reference(token)).collect();
    let difference = y.iter().zip(&want).map(|(y, w)| (f64::from(*y) - w).abs()).fold(0.0, f64::max);
    println!(
        "{TOKENS} tokens, {TOP_K} of {EXPERTS} experts each: differs from loops by at most {difference:e}"
    );
    assert!(difference < 1e-4);
    Ok(())
}
