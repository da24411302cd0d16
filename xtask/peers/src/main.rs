//! Times products, attention and models on command: a JSON object a line on stdin, an answer a line on stdout. `peers.py` is the same for
//! libraries that Python reaches.
//!
//! `perjoule-peers WHO THREADS [FILE]`: `ours`, `mkl`, `openblas` or `gemm` for kernels, `ours` with a GGUF file for models, `read` for
//! reading memory.
//!
//! | command | answer |
//! |---|---|
//! | `{"do": "setup", ..case}` | `{"ok": true, "sample": [..]}` (the first and the last outputs), or `{"refused": why}` |
//! | `{"do": "time", "calls": n}` | `{"seconds": of one call}` |

mod blas;
mod gemm;
mod model;
mod ours;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::io::{BufRead, Write};
use std::time::Instant;

/// Something that is ready to be called.
trait Ready {
    fn call(&mut self) -> Result<()>;
    fn sample(&mut self) -> Result<Vec<f32>>;
}

/// Makes a case ready.
type Setup<'a> = dyn FnMut(&Value) -> Result<Box<dyn Ready + 'a>> + 'a;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let (who, threads) = (args.next().context("who")?, args.next().context("threads")?.parse()?);
    let file = args.next();
    match (who.as_str(), file) {
        ("ours", None) => {
            let device = perjoule::open_with_threads("cpu", Some(threads))?;
            serve(&mut |case| Ok(Box::new(ours::Ours::new(&device, case)?)))
        }
        ("ours", Some(file)) => {
            let device = perjoule::open_with_threads("cpu", Some(threads))?;
            let model = model::load(&device, &file)?;
            serve(&mut |case| Ok(Box::new(model::Tokens::new(&model, case)?)))
        }
        ("read", _) => serve(&mut |_| Ok(Box::new(ours::Read::new(threads)?))),
        ("gemm", _) => serve(&mut |case| Ok(Box::new(gemm::Gemm::new(threads, case)?))),
        _ => {
            let library = blas::Library::load(&who, threads)?;
            serve(&mut |case| Ok(Box::new(blas::Product::new(&library, case)?)))
        }
    }
}

fn serve<'a>(setup: &mut Setup<'a>) -> Result<()> {
    let mut ready: Option<Box<dyn Ready + 'a>> = None;
    for line in std::io::stdin().lock().lines() {
        let command: Value = serde_json::from_str(&line?)?;
        let answer = match command["do"].as_str() {
            Some("setup") => {
                drop(ready.take()); // its memory goes before the next one's is taken
                let made = setup(&command);
                match made.and_then(|mut made| Ok((made.call()?, made.sample()?, made))) {
                    Ok(((), sample, made)) => {
                        ready = Some(made);
                        json!({ "ok": true, "sample": sample })
                    }
                    Err(error) => json!({ "refused": format!("{error:#}") }),
                }
            }
            Some("time") => {
                let (calls, ready) =
                    (command["calls"].as_u64().unwrap_or(1), ready.as_mut().context("no setup")?);
                let start = Instant::now();
                (0..calls).try_for_each(|_| ready.call())?;
                json!({ "seconds": start.elapsed().as_secs_f64() / calls as f64 })
            }
            _ => bail!("unknown command {command}"),
        };
        println!("{answer}");
        std::io::stdout().flush()?;
    }
    Ok(())
}

/// Numbers from -0.5 to 0.5 that every worker draws alike: splitmix64 of the index (Steele, Lea and Flood, 2014).
fn random(seed: u64, count: usize) -> Vec<f32> {
    let draw = |index: u64| {
        let mut x = (index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(seed << 40);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..count as u64).map(draw).collect()
}

fn size(case: &Value, name: &str) -> Result<usize> {
    case[name].as_u64().map(|n| n as usize).with_context(|| format!("the case has no {name}"))
}

/// How many copies of `bytes` the calls of a case rotate through.
fn copies(case: &Value, bytes: usize) -> usize {
    (case["rotate"].as_u64().unwrap_or(0) as usize).div_ceil(bytes.max(1)).max(1)
}

/// The first and the last eight of `values`.
fn ends<T: Copy>(values: &[T]) -> Vec<T> {
    let count = values.len().min(8);
    values[..count].iter().chain(&values[values.len() - count..]).copied().collect()
}
