//! A matrix product with an epilogue, then the same weight packed once for many products.
//!
//! `cargo run --release -p perjoule --example matmul`

use perjoule::kernels::op::Activation;
use perjoule::{DType, Result, Tensor, ops};

fn main() -> Result<()> {
    let cpu = perjoule::open("cpu")?;
    let (m, n, k) = (4, 8, 16);
    let a: Vec<f32> = (0..m * k).map(|i| (i % 7) as f32 - 3.0).collect();
    let w: Vec<f32> = (0..n * k).map(|i| (i % 5) as f32 - 2.0).collect();
    let a = Tensor::from_slice(&cpu, &a, [m, k])?;
    let w = Tensor::from_slice(&cpu, &w, [n, k])?; // as checkpoints store weights: n x k
    let bias = Tensor::from_slice(&cpu, &vec![0.5f32; n], [n])?;

    // a transposed view is read in place
    let c = ops::matmul_with(&a, &w.transpose(0, 1)?).bias(&bias).activation(Activation::Silu).run()?;

    // packed once, for single rows and for prompts alike
    let weight = ops::Weight::pack(&w, DType::F32, &[1, 512])?;
    let packed = ops::linear(&a, &weight).bias(&bias).activation(Activation::Silu).run()?;

    let (c, packed) = (c.to_vec::<f32>()?, packed.to_vec::<f32>()?);
    let difference = c.iter().zip(&packed).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
    println!("first row: {:?}", &c[..n]);
    println!("packed as {}: differs by at most {difference:e}", weight.format().unwrap_or("plain"));
    assert!(difference < 1e-4);
    Ok(())
}
