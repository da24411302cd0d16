//! What is measured, and what is asked of it.

use serde_json::{Value, json};

/// Bytes that weights and caches of few rows rotate through, so that none is in a cache.
const ROTATE: u64 = 1 << 30;

/// Tokens of each sequence in rows of batches.
const BATCH_STEPS: usize = 16;

/// What a row must reach.
#[derive(Clone, Copy)]
pub(super) enum Target {
    /// Nothing: the row is there to be compared with another one.
    None,
    /// The ratio to the fastest peer.
    Ratio(f64),
    /// The ratio to the fastest peer on processors with AMX; without it, there is nothing to reach.
    Amx(f64),
    /// The low end of that ratio's interval.
    Low(f64),
    /// Share of the read bandwidth that was measured in the same run, and no peer whose interval is all faster than ours.
    OfRead(f64),
    /// No fewer tokens a second than any row of the group before it gave.
    Grows,
}

/// A case.
pub(super) struct Case {
    pub(super) name: String,
    /// As the workers take it.
    pub(super) sizes: Value,
    /// Bytes that must be read, where memory bounds it.
    pub(super) bytes: Option<f64>,
    pub(super) target: Target,
    /// Whether a call lasts so long that none is spent on waking up.
    pub(super) long: bool,
    /// Whether no peer is asked.
    pub(super) alone: bool,
    /// Share of the largest output by which others may differ: bf16 rounds to 1/256, i8 and f32 far finer.
    pub(super) agree: f64,
}

impl Case {
    /// What a call of so many seconds amounts to.
    pub(super) fn speed(&self, seconds: f64) -> String {
        match self.sizes["tokens"].as_f64() {
            Some(tokens) => format!("{:.1} tok/s", tokens / seconds),
            None => format!("{:.1} us", seconds * 1e6),
        }
    }
}

/// Cases that the same processes measure.
#[derive(Default)]
pub(super) struct Group {
    pub(super) name: &'static str,
    pub(super) peers: &'static [&'static str],
    /// What `PERJOULE_CPU_FEATURES` restricts ours to.
    pub(super) features: Option<&'static str>,
    /// Whether ours run on the first adapter of WebGPU.
    pub(super) webgpu: bool,
    /// The file of the model that they run.
    pub(super) model: Option<&'static str>,
    /// What the ratios to the fastest peer, of rows with targets, are to reach in their geometric mean: [`Target::Ratio`] or [`Target::Amx`].
    pub(super) mean: Option<Target>,
    pub(super) cases: Vec<Case>,
}

/// Of f32.
const LIBRARIES: &[&str] = &["torch", "mkl", "openblas", "onednn", "tract"];
/// Of single rows.
const ROWS: &[&str] = &["torch", "mkl", "openblas", "onednn", "tract", "ggml"];
/// Of fewer bits.
const OF_FEW_BITS: &[&str] = &["torch", "mkl", "onednn"];

pub(super) fn groups() -> Vec<Group> {
    let group = |name, peers, cases| Group { name, peers, cases, ..Group::default() };
    let mut groups = Vec::new();
    for (name, dtype, peers, mean) in [
        ("matmul f32", "f32", LIBRARIES, Target::Ratio(1.03)),
        ("matmul bf16", "bf16", OF_FEW_BITS, Target::Amx(1.4)),
        ("matmul i8", "i8", OF_FEW_BITS, Target::Amx(1.7)),
    ] {
        groups.push(Group { mean: Some(mean), ..group(name, peers, products(dtype)) });
    }
    groups.push(group("small products", LIBRARIES, small()));
    groups.push(group("gemv", ROWS, gemv()));
    groups.push(group("attention", &["torch"], attention()));
    // gemm packs nothing beforehand
    let squares = [256, 512, 1024, 2048].map(|s| square("f32", s, false, "f32 avx2", Target::Ratio(1.1)));
    groups.push(Group { features: Some("avx2"), ..group("avx2", &["gemm"], squares.into()) });
    groups.push(Group { webgpu: true, ..group("webgpu", &["burn"], webgpu()) });
    for (model, prefill, decode) in
        [("bf16", 10.0, 1.35), ("q8_0", 3.0, 1.1), ("q4_0", 3.0, 1.1), ("q4_k_m", 3.0, 1.1)]
    {
        let cases =
            [("prefill", "pp", 512, Target::Amx(prefill)), ("decode", "tg", 128, Target::Ratio(decode))];
        let case = |(op, short, tokens, target)| Case {
            long: true,
            // eight bits of activations, in blocks that each side chooses
            agree: 0.2,
            ..case(
                format!("llama 1.1b {model} {short}{tokens}"),
                json!({ "op": op, "tokens": tokens }),
                target,
            )
        };
        let mut cases: Vec<Case> = cases.map(case).into();
        cases.extend(batches(model));
        groups.push(Group { model: Some(model), ..group("models", &["llama"], cases) });
    }
    groups
}

fn case(name: String, sizes: Value, target: Target) -> Case {
    Case { name, sizes, bytes: None, target, long: false, alone: false, agree: 0.02 }
}

/// `packed`: B was made ready once by those who can.
fn square(dtype: &str, size: usize, packed: bool, name: &str, target: Target) -> Case {
    let sizes = json!({
        "op": "matmul", "form": "square", "dtype": dtype, "m": size, "n": size, "k": size, "packed": packed,
    });
    case(format!("matmul {name} {size}^3, {}", if packed { "packed" } else { "as it is" }), sizes, target)
}

fn linear(dtype: &str, m: usize, n: usize, rotate: u64) -> Value {
    json!({
        "op": "matmul", "form": "linear", "dtype": dtype, "m": m, "n": n, "k": 4096, "packed": true, "rotate": rotate,
    })
}

/// Tokens of 1 to 64 sequences at once, ours alone.
fn batches(model: &str) -> impl Iterator<Item = Case> {
    (0..7).map(|power| 1 << power).map(move |parallel| Case {
        long: true,
        alone: true,
        ..case(
            format!("llama 1.1b {model} batch {parallel}"),
            json!({ "op": "decode", "tokens": BATCH_STEPS * parallel, "parallel": parallel }),
            Target::Grows,
        )
    })
}

fn products(dtype: &str) -> Vec<Case> {
    let target = |m| match dtype {
        "f32" if m == 16 => Target::Ratio(1.6),
        "f32" => Target::Low(0.97),
        "bf16" if m == 16 => Target::Ratio(1.0),
        "bf16" => Target::Amx(1.4),
        _ => Target::Amx(1.6),
    };
    let sizes = [256, 512, 1024, 2048, 4096].into_iter();
    let mut list: Vec<Case> = sizes
        .flat_map(|size| {
            [(true, target(size)), (false, Target::None)]
                .map(|(packed, t)| square(dtype, size, packed, dtype, t))
        })
        .collect();
    for m in [16, 64, 512, 2048].into_iter().filter(|&m| m != 64 || dtype == "i8") {
        for n in [4096, 14336] {
            let sizes = linear(dtype, m, n, if m <= 64 { ROTATE } else { 0 });
            list.push(case(format!("matmul {dtype} {m} x {n} x 4096, packed"), sizes, target(m)));
        }
    }
    list
}

fn small() -> Vec<Case> {
    let mut list = Vec::new();
    for size in [64, 128] {
        for dtype in ["f32", "bf16"] {
            list.extend([true, false].map(|packed| square(dtype, size, packed, dtype, Target::Ratio(1.0))));
        }
    }
    list
}

fn gemv() -> Vec<Case> {
    let mut list = Vec::new();
    for (dtype, bits) in [("f32", 32.0), ("bf16", 16.0), ("q8_0", 8.5), ("q4_0", 4.5), ("q4_k", 4.5)] {
        for n in [4096, 14336] {
            let sizes = linear(dtype, 1, n, ROTATE);
            let bytes = Some(n as f64 * 4096.0 * bits / 8.0);
            list.push(Case {
                bytes,
                ..case(format!("gemv {dtype} {n} x 4096"), sizes, Target::OfRead(0.93))
            });
        }
    }
    list
}

fn webgpu() -> Vec<Case> {
    let mut list: Vec<Case> =
        [512, 1024, 2048].map(|s| square("f32", s, false, "webgpu f32", Target::Ratio(1.2))).into();
    let sizes = json!({ "op": "attention", "dtype": "f32", "b": 1, "q": 512, "kv": 512, "heads": 8, "kv_heads": 8, "d": 64, "causal": false });
    list.push(case("attention webgpu f32 8 x 512 x 64".into(), sizes, Target::Ratio(1.5)));
    list
}

fn attention() -> Vec<Case> {
    let mut list = Vec::new();
    for (dtype, bytes, prefill) in [("bf16", 2.0, 2.0), ("f32", 4.0, 1.3)] {
        for tokens in [512, 2048, 4096] {
            let sizes = json!({ "op": "attention", "dtype": dtype, "b": 1, "q": tokens, "kv": tokens, "heads": 32, "kv_heads": 8, "d": 128 });
            list.push(case(format!("attention {dtype} prefill {tokens}"), sizes, Target::Ratio(prefill)));
        }
        for b in [1, 8] {
            let sizes = json!({ "op": "attention", "dtype": dtype, "b": b, "q": 1, "kv": 4096, "heads": 32, "kv_heads": 8, "d": 128, "rotate": ROTATE });
            list.push(Case {
                bytes: Some(f64::from(b) * 2.0 * 8.0 * 4096.0 * 128.0 * bytes),
                ..case(format!("attention {dtype} decode {b} x 4096"), sizes, Target::Ratio(2.7))
            });
        }
    }
    list
}
