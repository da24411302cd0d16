//! Attention with a KV cache: a prompt, then one token at a time. The last rows agree with attention over everything at once.
//!
//! `cargo run --release -p perjoule --example attention`

use perjoule::{DType, Device, Result, Tensor, ops};

const HEADS: usize = 8;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 64;

fn random(device: &Device, seed: u32, shape: [usize; 4]) -> Result<Tensor> {
    let mut state = seed;
    let values: Vec<f32> = (0..shape.iter().product())
        .map(|_| {
            state = state.wrapping_mul(1664525).wrapping_add(1013904223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect();
    Tensor::from_slice(device, &values, shape)
}

fn main() -> Result<()> {
    let cpu = perjoule::open("cpu")?;
    let (prompt, more) = (48, 16);
    let total = prompt + more;
    let q = random(&cpu, 1, [1, total, HEADS, HEAD_DIM])?;
    let k = random(&cpu, 2, [1, total, KV_HEADS, HEAD_DIM])?;
    let v = random(&cpu, 3, [1, total, KV_HEADS, HEAD_DIM])?;

    let mut cache = ops::KvCache::new(&cpu, 1, KV_HEADS, 1024, HEAD_DIM, DType::F32)?;
    let mut rows = Vec::new();
    let mut at = 0;
    for tokens in std::iter::once(prompt).chain(std::iter::repeat_n(1, more)) {
        let new = at..at + tokens;
        cache.advance(tokens)?;
        // here a model would rotate q and k by cache.positions() with ops::rope
        cache.append(&k.slice(1, new.clone())?, &v.slice(1, new.clone())?)?;
        rows.extend(ops::attention_cached(&q.slice(1, new)?, &cache).run()?.to_vec::<f32>()?);
        at += tokens;
    }

    let whole = ops::attention(&q, &k, &v).causal(true).run()?.to_vec::<f32>()?;
    let difference = rows.iter().zip(&whole).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
    println!(
        "{total} tokens, {HEADS}/{KV_HEADS} heads of {HEAD_DIM}: cached and whole differ by at most {difference:e}"
    );
    assert!(difference < 1e-5);
    Ok(())
}
