//! A whole transformer layer (norm, attention with rotary embedding, gated feed-forward) from single calls.
//!
//! `cargo run --release -p perjoule --example layer`

use perjoule::kernels::op::GatedKind;
use perjoule::ops::{self, KvCache, Weight};
use perjoule::{DType, Device, Result, Tensor};

const HIDDEN: usize = 256;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 64;
const FFN: usize = 512;

struct Layer {
    attention_norm: Tensor,
    q: Weight,
    k: Weight,
    v: Weight,
    o: Weight,
    ffn_norm: Tensor,
    gate: Weight,
    up: Weight,
    down: Weight,
}

impl Layer {
    fn random(device: &Device) -> Result<Self> {
        let weight = |seed, n, k| Weight::pack(&random(device, seed, [n, k])?, DType::F32, &[1, 64]);
        let ones = Tensor::from_slice(device, &[1.0f32; HIDDEN], [HIDDEN])?;
        Ok(Layer {
            attention_norm: ones.clone(),
            q: weight(1, HEADS * HEAD_DIM, HIDDEN)?,
            k: weight(2, KV_HEADS * HEAD_DIM, HIDDEN)?,
            v: weight(3, KV_HEADS * HEAD_DIM, HIDDEN)?,
            o: weight(4, HIDDEN, HEADS * HEAD_DIM)?,
            ffn_norm: ones,
            gate: weight(5, FFN, HIDDEN)?,
            up: weight(6, FFN, HIDDEN)?,
            down: weight(7, HIDDEN, FFN)?,
        })
    }

    /// `x`: `[tokens, hidden]`, the newest tokens of one sequence.
    fn forward(&self, x: &Tensor, cache: &mut KvCache) -> Result<Tensor> {
        let tokens = x.shape()[0];
        let normed = ops::rms_norm(x, &self.attention_norm, 1e-5)?;
        let q = ops::linear(&normed, &self.q).run()?.reshape([1, tokens, HEADS, HEAD_DIM])?;
        let k = ops::linear(&normed, &self.k).run()?.reshape([1, tokens, KV_HEADS, HEAD_DIM])?;
        let v = ops::linear(&normed, &self.v).run()?.reshape([1, tokens, KV_HEADS, HEAD_DIM])?;
        cache.advance(tokens)?;
        ops::rope(&q, cache.positions(), 10_000.0)?;
        ops::rope(&k, cache.positions(), 10_000.0)?;
        cache.append(&k, &v)?;
        let attended = ops::attention_cached(&q, cache).run()?.reshape([tokens, HEADS * HEAD_DIM])?;
        let x = ops::linear(&attended, &self.o).residual(x).run()?;
        let normed = ops::rms_norm(&x, &self.ffn_norm, 1e-5)?;
        let gate = ops::linear(&normed, &self.gate).run()?;
        let up = ops::linear(&normed, &self.up).run()?;
        let activated = ops::gated(&gate, &up, GatedKind::SwiGlu)?;
        ops::linear(&activated, &self.down).residual(&x).run()
    }
}

fn random(device: &Device, seed: u32, shape: [usize; 2]) -> Result<Tensor> {
    let mut state = seed.wrapping_mul(2654435761);
    let spread = (3.0 / shape[1] as f32).sqrt();
    let values: Vec<f32> = (0..shape[0] * shape[1])
        .map(|_| {
            state = state.wrapping_mul(1664525).wrapping_add(1013904223);
            ((state >> 8) as f32 / (1 << 23) as f32 - 1.0) * spread
        })
        .collect();
    Tensor::from_slice(device, &values, shape)
}

fn main() -> Result<()> {
    let cpu = perjoule::open("cpu")?;
    let layer = Layer::random(&cpu)?;
    let tokens = random(&cpu, 99, [33, HIDDEN])?;

    // all at once
    let mut cache = KvCache::new(&cpu, 1, KV_HEADS, 64, HEAD_DIM, DType::F32)?;
    let whole = layer.forward(&tokens, &mut cache)?.to_vec::<f32>()?;

    // a prompt of 32, then the last token alone
    let mut cache = KvCache::new(&cpu, 1, KV_HEADS, 64, HEAD_DIM, DType::F32)?;
    layer.forward(&tokens.slice(0, 0..32)?, &mut cache)?;
    let last = layer.forward(&tokens.slice(0, 32..33)?, &mut cache)?.to_vec::<f32>()?;

    let difference = last.iter().zip(&whole[32 * HIDDEN..]).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
    println!("{} tokens in the cache; decode and prefill differ by at most {difference:e}", cache.len());
    assert!(difference < 1e-4);
    Ok(())
}
