//! Every op by name, with the sizes that `--shape` takes and their defaults: the one table behind `--op` and `--shape`.

use anyhow::{Result, bail};
use perjoule_kernels::op::{
    Add, Advance, Argmax, Attention, Cast, Collective, CollectiveKind, Combine, Embed, Gated, GatedKind,
    GatedMatMul, GroupedMatMul, HeadNorm, KvAppend, LayerNorm, MatMul, Pack, Policy, QkNormRopeAppend,
    Quantise, RmsNorm, Rope, Route, RouteOrder, Sample, Softmax, Tensor2,
};
use perjoule_kernels::{Alignment, DType, Device, KvLayout, Matrix, Op, PackFormat, Query};
use std::fmt;

/// One op: its name, its sizes with defaults, and how it is built from them.
pub struct Entry {
    /// As `--op` takes it and [`Op::name`] gives it.
    pub name: &'static str,
    /// Sizes in order, with defaults: a layer of Llama 3.2 1B.
    pub keys: &'static [(&'static str, usize)],
    build: fn(&Sizes, DType, &dyn Device) -> Result<Op>,
}

/// Sizes by name, complete and in the order of the entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sizes(Vec<(&'static str, usize)>);

impl Sizes {
    fn get(&self, key: &str) -> usize {
        self.0.iter().find(|(name, _)| *name == key).map_or(0, |(_, size)| *size)
    }
}

impl Sizes {
    /// Refuses shapes without work: there is nothing to time.
    pub fn refuse_empty(&self) -> Result<()> {
        if let Some((name, _)) = self.0.iter().find(|(_, size)| *size == 0) {
            bail!("{name}=0: there is nothing to measure; use at least 1");
        }
        let (q, kv) = (self.get("q"), self.get("kv"));
        if q > kv && kv > 0 {
            bail!("q={q} is more than kv={kv}: the newest q tokens are among the kv ones");
        }
        Ok(())
    }
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (name, size)) in self.0.iter().enumerate() {
            write!(f, "{}{name}={size}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

const ROWS: &[(&str, usize)] = &[("rows", 512), ("len", 2048)];
const MATMUL: &[(&str, usize)] = &[("m", 512), ("n", 2048), ("k", 2048), ("b", 1)];

/// What products of a type are stored as, where nothing else is asked for: as libraries do it.
fn sums(t: DType) -> DType {
    match t {
        DType::I8 => DType::I32,
        DType::F8E4M3 => DType::BF16,
        t => t,
    }
}

/// The table.
pub const OPS: &[Entry] = &[
    Entry {
        name: "matmul",
        keys: MATMUL,
        build: |s, t, _| {
            let (m, n, k) = (s.get("m"), s.get("n"), s.get("k"));
            // block formats are for weights, beside f32 that may be rounded as in a model
            let (a, c) = if t.is_block() { (DType::F32, DType::F32) } else { (t, sums(t)) };
            let policy = Policy { quantised_activations: t.is_block(), ..Policy::default() };
            let op = MatMul { batch: s.get("b"), policy, ..MatMul::linear(m, n, k, a, t, c) };
            Ok(op.into())
        },
    },
    Entry {
        name: "attention",
        keys: &[("b", 1), ("q", 512), ("kv", 512), ("h", 32), ("hkv", 8), ("d", 64)],
        build: |s, t, _| {
            let kv = KvLayout::contiguous(s.get("hkv"), s.get("kv"), s.get("d"));
            Ok(Attention::causal(s.get("b"), s.get("q"), s.get("h"), kv, t).into())
        },
    },
    Entry {
        name: "grouped_matmul",
        keys: &[("e", 8), ("tokens", 64), ("top_k", 2), ("n", 1024), ("k", 1024)],
        build: |s, t, _| {
            let (n, k, tokens, top_k) = (s.get("n"), s.get("k"), s.get("tokens"), s.get("top_k"));
            let Some(rows) = tokens.checked_mul(top_k) else {
                bail!("tokens x top_k overflows; use smaller sizes")
            };
            let dense = |dtype, strides| Tensor2 { dtype, strides };
            Ok(GroupedMatMul {
                experts: s.get("e"),
                rows,
                n,
                k,
                a: dense(t, Matrix::row_major(tokens, k)),
                a_rows: tokens,
                a_divisor: top_k.max(1),
                b: dense(t, Matrix::col_major(k, n)),
                b_constant: true,
                c: dense(sums(t), Matrix::row_major(rows, n)),
                c_rows: rows,
                bias: None,
                activation: Default::default(),
                policy: Default::default(),
            }
            .into())
        },
    },
    Entry {
        name: "gated_matmul",
        keys: &[("m", 512), ("n", 8192), ("k", 2048)],
        build: |s, t, _| {
            let (m, n, k) = (s.get("m"), s.get("n"), s.get("k"));
            let part = MatMul::linear(m, n, k, t, t, sums(t));
            let gated = Gated::dense(m, n, sums(t), GatedKind::SwiGlu);
            Ok(GatedMatMul { gate: part, up: part, gated }.into())
        },
    },
    Entry {
        name: "rms_norm",
        keys: ROWS,
        build: |s, t, _| Ok(RmsNorm::dense(s.get("rows"), s.get("len"), t).into()),
    },
    Entry {
        name: "layer_norm",
        keys: ROWS,
        build: |s, t, _| Ok(LayerNorm::dense(s.get("rows"), s.get("len"), t).into()),
    },
    Entry {
        name: "rope",
        keys: &[("tokens", 512), ("h", 32), ("d", 64)],
        build: |s, t, _| Ok(Rope::dense(s.get("tokens"), s.get("h"), s.get("d"), t, 500_000.0).into()),
    },
    Entry {
        name: "gated",
        keys: &[("rows", 512), ("len", 8192)],
        build: |s, t, _| Ok(Gated::dense(s.get("rows"), s.get("len"), t, GatedKind::SwiGlu).into()),
    },
    Entry {
        name: "softmax",
        keys: ROWS,
        build: |s, t, _| Ok(Softmax::dense(s.get("rows"), s.get("len"), t).into()),
    },
    Entry {
        name: "embed",
        keys: &[("tokens", 512), ("vocab", 128_256), ("dim", 2048)],
        build: |s, t, _| Ok(Embed::dense(s.get("tokens"), s.get("vocab"), s.get("dim"), t, t).into()),
    },
    Entry { name: "add", keys: ROWS, build: |s, t, _| Ok(Add::dense(s.get("rows"), s.get("len"), t).into()) },
    Entry {
        name: "route",
        keys: &[("tokens", 512), ("e", 128), ("top_k", 8)],
        build: |s, t, _| {
            Ok(Route {
                tokens: s.get("tokens"),
                experts: s.get("e"),
                top_k: s.get("top_k"),
                dtype: t,
                order: RouteOrder::SoftmaxThenTopK { renormalise: true },
            }
            .into())
        },
    },
    Entry {
        name: "combine",
        keys: &[("tokens", 512), ("top_k", 8), ("len", 2048)],
        build: |s, t, _| Ok(Combine::dense(s.get("tokens"), s.get("top_k"), s.get("len"), t).into()),
    },
    Entry {
        name: "kv_append",
        keys: &[("b", 1), ("q", 512), ("kv", 1024), ("hkv", 8), ("d", 64)],
        build: |s, t, _| {
            let kv = KvLayout::contiguous(s.get("hkv"), s.get("kv"), s.get("d"));
            Ok(KvAppend::dense(s.get("b"), s.get("q"), kv, t).into())
        },
    },
    Entry {
        name: "advance",
        keys: &[("b", 64), ("q", 1)],
        build: |s, _, _| Ok(Advance::uniform(s.get("b"), s.get("q")).into()),
    },
    Entry {
        name: "qk_norm_rope_append",
        keys: &[("b", 1), ("q", 512), ("kv", 1024), ("h", 32), ("hkv", 8), ("d", 64)],
        build: |s, t, _| {
            let kv = KvLayout::contiguous(s.get("hkv"), s.get("kv"), s.get("d"));
            let append = KvAppend::dense(s.get("b"), s.get("q"), kv, t);
            let norm = Some(HeadNorm::default());
            let op = QkNormRopeAppend::dense(s.get("h"), append, 1_000_000.0);
            Ok(QkNormRopeAppend { q_norm: norm, k_norm: norm, ..op }.into())
        },
    },
    Entry {
        name: "argmax",
        keys: &[("rows", 1), ("len", 128_256)],
        build: |s, t, _| {
            Ok(Argmax { x: perjoule_kernels::Rows::dense(s.get("rows"), s.get("len")), dtype: t }.into())
        },
    },
    Entry {
        name: "sample",
        keys: &[("rows", 1), ("len", 128_256), ("top_k", 50)],
        build: |s, t, _| {
            Ok(Sample {
                x: perjoule_kernels::Rows::dense(s.get("rows"), s.get("len")),
                dtype: t,
                temperature: 0.8,
                top_k: Some(s.get("top_k")),
                top_p: Some(0.95),
            }
            .into())
        },
    },
    Entry {
        name: "cast",
        keys: ROWS,
        build: |s, t, _| {
            let from = if t == DType::F32 { DType::BF16 } else { DType::F32 };
            Ok(Cast::dense(s.get("rows"), s.get("len"), from, t).into())
        },
    },
    Entry {
        name: "quantise",
        keys: ROWS,
        build: |s, t, _| {
            let to = if t.is_block() { t } else { DType::Q8_0 };
            let from = if t.is_block() { DType::F32 } else { t };
            let x = perjoule_kernels::Rows::dense(s.get("rows"), s.get("len"));
            Ok(Quantise { x, from, to, scale: None }.into())
        },
    },
    Entry {
        name: "pack",
        keys: &[("n", 2048), ("k", 2048)],
        build: |s, t, device| {
            let (n, k) = (s.get("n"), s.get("k"));
            let product = Op::from(MatMul::linear(1, n, k, t, t, t));
            let Some(format) = pack_format(device, &product)? else {
                bail!("no kernel of this device reads a packed {t} weight, so there is nothing to pack");
            };
            let b = Tensor2 { dtype: t, strides: Matrix::col_major(k, n) };
            Ok(Pack { format, matrices: 1, n, k, b }.into())
        },
    },
    Entry {
        name: "collective",
        keys: &[("count", 1 << 20), ("world", 1)],
        build: |s, t, _| {
            let (count, world) = (s.get("count"), s.get("world"));
            Ok(Collective { kind: CollectiveKind::AllReduce, dtype: t, count, world }.into())
        },
    },
];

fn pack_format(device: &dyn Device, op: &Op) -> Result<Option<&'static PackFormat>> {
    let query = Query { op, alignment: Alignment::uniform(device.info().arena.align) };
    Ok(perjoule_kernels::select(device, query, &[])?.pack)
}

/// The entry of an op, or an error that lists them all.
pub fn find(name: &str) -> Result<&'static Entry> {
    match OPS.iter().find(|entry| entry.name == name) {
        Some(entry) => Ok(entry),
        None => {
            let names: Vec<_> = OPS.iter().map(|entry| entry.name).collect();
            let near = names.iter().min_by_key(|known| distance(known, name));
            let near = near.filter(|known| distance(known, name) <= 2);
            let hint = near.map_or(String::new(), |known| format!("did you mean {known}? "));
            bail!("unknown op {name:?}: {hint}use one of {}", names.join(", "))
        }
    }
}

/// Letters to insert, delete or replace between two names (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replaced = corner + usize::from(x != y);
            corner = row[j + 1];
            row[j + 1] = replaced.min(corner + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

impl Entry {
    /// Reads `m=1,n=4096,k=4096`; what is not given has its default.
    pub fn sizes(&self, text: &str) -> Result<Sizes> {
        let mut sizes = Sizes(self.keys.to_vec());
        let mut given = Vec::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let Some((key, value)) = part.split_once('=') else {
                bail!("shape {part:?} of {} is not name=number; it takes {}", self.name, self.usage())
            };
            let (key, value) = (key.trim(), value.trim());
            let Some(slot) = sizes.0.iter_mut().find(|(name, _)| *name == key) else {
                bail!("{} has no size {key:?}; it takes {}", self.name, self.usage())
            };
            if given.contains(&slot.0) {
                bail!("shape {text:?} gives {key} twice");
            }
            given.push(slot.0);
            let Ok(size) = value.parse() else {
                bail!("size {key} of {} is {value:?}; expected a whole number such as {}", self.name, slot.1)
            };
            slot.1 = size;
        }
        Ok(sizes)
    }

    /// Its sizes with defaults, as `--shape` takes them.
    pub fn usage(&self) -> String {
        Sizes(self.keys.to_vec()).to_string()
    }

    /// The op, validated.
    pub fn build(&self, sizes: &Sizes, dtype: DType, device: &dyn Device) -> Result<Op> {
        let op = (self.build)(sizes, dtype, device)?;
        op.validate()?;
        Ok(op)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_op_can_be_built_with_its_defaults() {
        let device = perjoule::open_with_threads("cpu", Some(1)).unwrap();
        for entry in OPS {
            if entry.name == "pack" {
                continue; // exists only where a row packs
            }
            let sizes = entry.sizes("").unwrap();
            for dtype in [DType::F32, DType::BF16] {
                let op = entry.build(&sizes, dtype, &**device.backend()).unwrap();
                assert_eq!(op.name(), entry.name);
                for (name, size) in op.shape() {
                    let key = entry.keys.iter().find(|(key, _)| *key == name);
                    assert!(
                        key.is_none_or(|(_, default)| *default == size),
                        "{}: {name} = {size}",
                        entry.name
                    );
                }
            }
        }
    }

    #[test]
    fn shapes_read_back_and_nonsense_is_refused() {
        let matmul = find("matmul").unwrap();
        let sizes = matmul.sizes("m=1, n=4096,k=128").unwrap();
        assert_eq!(sizes.to_string(), "m=1,n=4096,k=128,b=1");
        assert_eq!(matmul.sizes(&sizes.to_string()).unwrap(), sizes);
        for (text, part) in [
            ("m", "name=number"),
            ("q=3", "m=512,n=2048,k=2048,b=1"),
            ("m=-1", "whole number"),
            ("m=1,m=2", "twice"),
            ("m=99999999999999999999999", "whole number"),
        ] {
            let message = matmul.sizes(text).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
        let message = find("matmull").err().unwrap().to_string();
        assert!(message.contains("mean matmul?") && message.contains("attention"), "{message}");
        assert!(!find("convolution").err().unwrap().to_string().contains("mean"));
        assert_eq!((distance("kitten", "sitting"), distance("", "ab"), distance("add", "add")), (3, 2, 0));
        let device = perjoule::open_with_threads("cpu", Some(1)).unwrap();
        let huge = matmul.sizes("m=4294967296,n=4294967296,k=4294967296").unwrap();
        assert!(matmul.build(&huge, DType::F32, &**device.backend()).is_err());
    }
}
