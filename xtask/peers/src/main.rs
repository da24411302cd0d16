//! Times products, attention and models on command: a JSON object a line on stdin, an answer a line on stdout. `peers.py` is the same for
//! libraries that Python reaches.
//!
//! `perjoule-peers WHO THREADS [FILE [HOW]]`: `ours`, `mkl`, `openblas`, `onednn`, `gemm` or `tract` for kernels, `ours` with a GGUF file
//! for models, `read` for reading memory. `PERJOULE_PEERS_DEVICE` is the device of our kernels, `cpu` without it.
//!
//! | command | answer |
//! |---|---|
//! | `{"do": "setup", ..case}` | `{"ok": true, "sample": [..]}` (the first and the last outputs; all logits where the case is of them), or `{"refused": why}` |
//! | `{"do": "time", "calls": n}` | `{"seconds": of one call}` |

mod blas;
mod gemm;
mod model;
mod onednn;
mod ours;
mod protocol;
mod tract;

use anyhow::{Context, Result};
use protocol::{Ready, ends, random, serve, size};
use serde_json::Value;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let (who, threads) = (args.next().context("who")?, args.next().context("threads")?.parse()?);
    let file = args.next();
    match (who.as_str(), file) {
        ("ours", None) => {
            let name = std::env::var("PERJOULE_PEERS_DEVICE");
            let device = match name {
                Ok(name) => perjoule::open(&name)?,
                Err(_) => perjoule::open_with_threads("cpu", Some(threads))?,
            };
            serve(&mut |case| Ok(Box::new(ours::Ours::new(&device, case)?)))
        }
        ("ours", Some(file)) => {
            let device = perjoule::open_with_threads("cpu", Some(threads))?;
            let model = model::load(&device, &file, args.next().as_deref())?;
            serve(&mut |case| Ok(Box::new(model::Tokens::new(&model, case)?)))
        }
        ("read", _) => serve(&mut |_| Ok(Box::new(ours::Read::new(threads)?))),
        ("gemm", _) => serve(&mut |case| Ok(Box::new(gemm::Gemm::new(threads, case)?))),
        ("tract", _) => serve(&mut |case| Ok(Box::new(tract::Tract::new(threads, case)?))),
        ("onednn", _) => {
            let library = onednn::Library::load(threads)?;
            serve(&mut |case| Ok(Box::new(onednn::Multiply::new(&library, case)?)))
        }
        _ => {
            let library = blas::Library::load(&who, threads)?;
            serve(&mut |case| Ok(Box::new(blas::Product::new(&library, case)?)))
        }
    }
}

/// How many copies of `bytes` the calls of a case rotate through.
fn copies(case: &Value, bytes: usize) -> usize {
    (case["rotate"].as_u64().unwrap_or(0) as usize).div_ceil(bytes.max(1)).max(1)
}
