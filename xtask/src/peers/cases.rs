//! What is measured, and what is asked of it.

use serde_json::{Value, json};

/// Bytes that weights and caches of few rows rotate through, so that none is in a cache.
const ROTATE: u64 = 1 << 30;

/// What a row must reach.
#[derive(Clone, Copy)]
pub(super) enum Target {
    None,
    /// The ratio to the fastest peer.
    Ratio(f64),
    /// The low end of that ratio's interval.
    Low(f64),
    /// Share of the read bandwidth that was measured in the same run.
    OfRead(f64),
}

/// A case.
pub(super) struct Case {
    pub(super) name: String,
    /// As the workers take it.
    pub(super) sizes: Value,
    /// Bytes that must be read, where memory bounds it.
    pub(super) bytes: Option<f64>,
    pub(super) target: Target,
}

fn matmul_target(dtype: &str) -> Target {
    match dtype {
        "f32" => Target::Low(0.97),
        "bf16" => Target::Ratio(1.4),
        _ => Target::Ratio(1.6),
    }
}

pub(super) fn cases() -> Vec<Case> {
    let mut list = Vec::new();
    for dtype in ["f32", "bf16", "i8"] {
        for s in [64, 128, 256, 512, 1024, 2048, 4096] {
            list.push(Case {
                name: format!("matmul {dtype} {s}^3"),
                sizes: json!({ "op": "matmul", "form": "square", "dtype": dtype, "m": s, "n": s, "k": s }),
                bytes: None,
                target: matmul_target(dtype),
            });
        }
        for m in [16, 512, 2048] {
            for n in [4096, 14336] {
                let rotate = if m <= 16 { ROTATE } else { 0 };
                list.push(Case {
                    name: format!("matmul {dtype} {m} x {n} x 4096, packed"),
                    sizes: linear(dtype, m, n, rotate),
                    bytes: None,
                    target: matmul_target(dtype),
                });
            }
        }
    }
    for (dtype, bits) in [("f32", 32.0), ("bf16", 16.0), ("q8_0", 8.5), ("q4_0", 4.5), ("q4_k", 4.5)] {
        for n in [4096, 14336] {
            list.push(Case {
                name: format!("gemv {dtype} {n} x 4096"),
                sizes: linear(dtype, 1, n, ROTATE),
                bytes: Some(n as f64 * 4096.0 * bits / 8.0),
                target: Target::OfRead(0.93),
            });
        }
    }
    for (dtype, bytes, prefill) in [("bf16", 2.0, 2.0), ("f32", 4.0, 1.3)] {
        for tokens in [512, 2048, 4096] {
            list.push(Case {
                name: format!("attention {dtype} prefill {tokens}"),
                sizes: json!({ "op": "attention", "dtype": dtype, "b": 1, "q": tokens, "kv": tokens }),
                bytes: None,
                target: Target::Ratio(prefill),
            });
        }
        for b in [1, 8] {
            list.push(Case {
                name: format!("attention {dtype} decode {b} x 4096"),
                sizes: json!({ "op": "attention", "dtype": dtype, "b": b, "q": 1, "kv": 4096, "rotate": ROTATE }),
                bytes: Some(f64::from(b) * 2.0 * 8.0 * 4096.0 * 128.0 * bytes),
                target: if dtype == "bf16" { Target::Ratio(2.7) } else { Target::None },
            });
        }
    }
    list
}

fn linear(dtype: &str, m: usize, n: usize, rotate: u64) -> Value {
    json!({ "op": "matmul", "form": "linear", "dtype": dtype, "m": m, "n": n, "k": 4096, "rotate": rotate })
}
