//! Descriptors of every op, sensible or absurd, and arguments for those that are small.

use crate::common::{Dice, slots};
use perjoule_kernels::layout::Paging;
use perjoule_kernels::op::*;
use perjoule_kernels::{Access, DType, KvLayout, Matrix, PackFormat, Rows};

/// Number of variants of [`Op`]: see [`Source::op`].
pub(crate) const KINDS: usize = 22;

const FLOATS: [DType; 4] = [DType::F32, DType::F16, DType::BF16, DType::F8E4M3];
const BLOCKS: [DType; 5] = [DType::Q8_0, DType::Q4_0, DType::Q4K, DType::Q6K, DType::MxFp4];
const ABSURD: [usize; 12] = [
    0,
    1,
    32,
    256,
    i32::MAX as usize,
    1 << 31,
    1 << 32,
    1 << 40,
    1 << 62,
    isize::MAX as usize,
    usize::MAX - 31,
    usize::MAX,
];

fn panel_bytes(k: usize) -> Option<u64> {
    (k as u64).checked_mul(12)
}

static FORMAT: PackFormat = PackFormat { name: "panels of three", dtype: DType::F32, panel: 3, panel_bytes };

/// Draws descriptors. Small ones are mostly valid; absurd ones have now and then a field that makes no sense.
pub(crate) struct Source {
    pub(crate) dice: Dice,
    pub(crate) absurd: bool,
}

impl Source {
    fn twist(&mut self, sensible: usize) -> usize {
        if self.absurd && self.dice.below(10) == 0 { self.dice.pick(&ABSURD) } else { sensible }
    }

    fn size(&mut self) -> usize {
        let small = self.dice.below(5);
        self.twist(small)
    }

    fn positive(&mut self) -> usize {
        let small = 1 + self.dice.below(4);
        self.twist(small)
    }

    fn float(&mut self) -> DType {
        if self.absurd && self.dice.below(12) == 0 {
            self.dice.pick(&DType::ALL)
        } else {
            self.dice.pick(&FLOATS)
        }
    }

    fn real(&mut self) -> f32 {
        let odd = [f32::NAN, f32::INFINITY, -1.0, 0.0, f32::MAX];
        if self.absurd && self.dice.below(12) == 0 {
            self.dice.pick(&odd)
        } else {
            0.5 + self.dice.below(4) as f32
        }
    }

    /// Rows with a gap here and there.
    fn rows(&mut self, outer: usize, inner: usize, len: usize) -> Rows {
        let mut rows = Rows::grid(self.twist(outer), self.twist(inner), self.twist(len));
        if self.dice.flip() {
            rows.inner_stride = len.saturating_add(self.dice.below(3));
            rows.outer_stride = inner.saturating_mul(rows.inner_stride).saturating_add(self.dice.below(3));
        }
        (rows.inner_stride, rows.outer_stride) =
            (self.twist(rows.inner_stride), self.twist(rows.outer_stride));
        rows
    }

    fn matrix(&mut self, rows: usize, cols: usize) -> Matrix {
        let mut m = match self.dice.flip() {
            true => Matrix::row_major(rows, cols),
            false => Matrix::col_major(rows, cols),
        };
        m = Matrix { row: self.twist(m.row), col: self.twist(m.col), batch: self.twist(m.batch) };
        m
    }

    fn tensor(&mut self, rows: usize, cols: usize) -> Tensor2 {
        Tensor2 { dtype: self.float(), strides: self.matrix(rows, cols) }
    }

    fn option<T>(&mut self, some: impl FnOnce(&mut Self) -> T) -> Option<T> {
        self.dice.flip().then(|| some(self))
    }

    fn granularity(&mut self) -> Option<Granularity> {
        let group = self.positive();
        self.option(|s| s.dice.pick(&[Granularity::Tensor, Granularity::Vector, Granularity::Group(group)]))
    }

    fn activation(&mut self) -> Activation {
        self.dice.pick(&[Activation::None, Activation::Silu, Activation::Gelu, Activation::GeluTanh])
    }

    fn kv(&mut self, batch: usize) -> KvLayout {
        let (heads, capacity, d) = (self.positive(), self.size(), self.positive());
        let mut kv = match self.dice.below(3) {
            0 => KvLayout::contiguous(heads, capacity, d),
            1 => KvLayout::token_major(heads, capacity, d),
            _ => {
                let block = self.positive();
                let blocks = capacity.div_ceil(block.max(1)).saturating_mul(batch);
                KvLayout::paged(heads, capacity, d, Paging { block, blocks: self.twist(blocks) })
            }
        };
        kv.batch_stride = self.twist(kv.batch_stride);
        kv.head_stride = self.twist(kv.head_stride);
        kv.token_stride = self.twist(kv.token_stride);
        kv
    }

    fn matmul(&mut self) -> MatMul {
        let (m, n, k) = (self.size(), self.size(), self.size());
        let block = self.dice.pick(&BLOCKS);
        let blocks = self.dice.below(4) == 0;
        let k = if blocks { block.block_len() * self.dice.below(2) } else { k };
        let integers = !blocks && self.dice.below(4) == 0;
        let mut op = MatMul::linear(m, n, k, self.float(), self.float(), self.float());
        op.batch = self.size();
        op.a.strides = self.matrix(m, k);
        op.c.strides = self.matrix(m, n);
        op.b_constant = self.dice.flip();
        if blocks {
            op.b.dtype = block;
        } else {
            op.b.strides = self.matrix(k, n);
            (op.a_scale, op.b_scale) = (self.granularity(), self.granularity());
        }
        if integers {
            (op.a.dtype, op.b.dtype) = (DType::I8, DType::I8);
        }
        op.epilogue = Epilogue {
            scale: self.real(),
            bias: self.option(Self::float),
            activation: self.activation(),
            residual: self.option(|s| s.tensor(m, n)),
        };
        if integers && self.dice.flip() {
            (op.a_scale, op.b_scale, op.epilogue) = (None, None, Epilogue::default());
            op.c.dtype = DType::I32;
        }
        op
    }

    fn rms_norm(&mut self, outer: usize, inner: usize, len: usize) -> RmsNorm {
        let residual = Residual { rows: self.rows(outer, inner, len), sum: self.rows(outer, inner, len) };
        RmsNorm {
            x: self.rows(outer, inner, len),
            x_dtype: self.float(),
            weight: self.float(),
            weight_offset: self.real(),
            eps: self.real(),
            residual: self.option(|_| residual),
            out: self.rows(outer, inner, len),
            out_dtype: self.float(),
        }
    }

    fn rope(&mut self, outer: usize, inner: usize, len: usize) -> Rope {
        let original_max = self.positive();
        let factor = f64::from(self.real());
        let scaling = match self.dice.below(4) {
            0 => RopeScaling::None,
            1 => RopeScaling::Linear { factor },
            2 => {
                RopeScaling::Llama3 { factor, low_freq_factor: 0.25, high_freq_factor: factor, original_max }
            }
            _ => RopeScaling::Yarn {
                factor,
                beta_fast: 32.0,
                beta_slow: f64::from(self.real()),
                original_max,
                truncate: self.dice.flip(),
                attention_factor: self.real(),
            },
        };
        let rotary_dim = len & !1;
        Rope {
            x: self.rows(outer, inner, len),
            dtype: self.float(),
            rotary_dim: self.twist(rotary_dim),
            style: self.dice.pick(&[RopeStyle::HalfSplit, RopeStyle::Interleaved]),
            theta: 1.5 + f64::from(self.real()),
            scaling,
        }
    }

    fn gated(&mut self, outer: usize, inner: usize, len: usize) -> Gated {
        let (alpha, limit) = (self.real(), self.real());
        Gated {
            gate: self.rows(outer, inner, len),
            up: self.rows(outer, inner, len),
            dtype: self.float(),
            out: self.rows(outer, inner, len),
            out_dtype: self.float(),
            kind: self.dice.pick(&[
                GatedKind::SwiGlu,
                GatedKind::GeGlu,
                GatedKind::GeGluTanh,
                GatedKind::GptOss { alpha, limit },
            ]),
        }
    }

    fn append(&mut self) -> KvAppend {
        let (batch, q_len) = (self.size(), self.size());
        let kv = self.kv(batch);
        let tokens = batch.saturating_mul(q_len);
        KvAppend {
            batch,
            q_len,
            ragged: self.dice.flip(),
            src_k: self.rows(tokens, kv.kv_heads, kv.head_dim),
            src_v: self.rows(tokens, kv.kv_heads, kv.head_dim),
            src_dtype: self.float(),
            kv,
            kv_dtype: self.float(),
        }
    }

    /// One op of the given kind.
    pub(crate) fn op(&mut self, kind: usize) -> Op {
        let (outer, inner, len) = (self.size(), self.size(), self.positive());
        match kind {
            0 => self.matmul().into(),
            1 => {
                let append = self.append();
                let heads = append.kv.kv_heads.saturating_mul(self.positive());
                let (tokens, d) = (append.src_k.outer, append.kv.head_dim);
                Attention {
                    batch: append.batch,
                    q_len: append.q_len,
                    ragged: append.ragged,
                    q: self.rows(tokens, heads, d),
                    q_dtype: self.float(),
                    out: self.rows(tokens, heads, d),
                    out_dtype: self.float(),
                    kv: append.kv,
                    kv_dtype: append.kv_dtype,
                    causal: self.dice.flip(),
                    window: self.option(Self::positive),
                    scale: self.real(),
                    soft_cap: self.option(Self::real),
                    sinks: self.dice.flip(),
                    policy: Policy::default(),
                }
                .into()
            }
            2 => {
                let (experts, rows, n, k) = (self.size(), self.size(), self.size(), self.size());
                let a_divisor = self.positive();
                let a_rows = rows.div_ceil(a_divisor.max(1));
                GroupedMatMul {
                    experts,
                    rows,
                    n,
                    k,
                    a: self.tensor(a_rows, k),
                    a_rows,
                    a_divisor,
                    b: self.tensor(k, n),
                    b_constant: self.dice.flip(),
                    c: self.tensor(rows, n),
                    c_rows: rows,
                    bias: self.option(Self::float),
                    activation: self.activation(),
                    policy: Policy::default(),
                }
                .into()
            }
            3 => self.rms_norm(outer, inner, len).into(),
            4 => {
                let RmsNorm { x, x_dtype, weight, eps, residual, out, out_dtype, .. } =
                    self.rms_norm(outer, inner, len);
                let bias = self.dice.flip();
                LayerNorm { x, x_dtype, weight, bias, eps, residual, out, out_dtype }.into()
            }
            5 => self.rope(outer, inner, len).into(),
            6 => self.gated(outer, inner, len).into(),
            7 => Softmax {
                x: self.rows(outer, inner, len),
                dtype: self.float(),
                out: self.rows(outer, inner, len),
                out_dtype: self.float(),
                scale: self.real(),
            }
            .into(),
            8 => {
                let table = if self.dice.flip() { self.float() } else { self.dice.pick(&BLOCKS) };
                let dim = len.saturating_mul(table.block_len());
                Embed {
                    tokens: outer,
                    vocab: self.size(),
                    dim,
                    table,
                    scale: self.real(),
                    out: self.rows(outer, 1, dim),
                    out_dtype: self.float(),
                }
                .into()
            }
            9 => Add {
                a: self.rows(outer, inner, len),
                b: self.rows(outer, inner, len),
                dtype: self.float(),
                out: self.rows(outer, inner, len),
            }
            .into(),
            10 => {
                let top_k = 1 + self.dice.below(len.clamp(1, 9));
                let renormalise = self.dice.flip();
                let orders = [RouteOrder::SoftmaxThenTopK { renormalise }, RouteOrder::TopKThenSoftmax];
                Route {
                    tokens: outer,
                    experts: len,
                    top_k: self.twist(top_k),
                    dtype: self.float(),
                    order: self.dice.pick(&orders),
                }
                .into()
            }
            11 => {
                let top_k = self.positive();
                Combine {
                    tokens: outer,
                    top_k,
                    x: self.rows(outer.saturating_mul(top_k), inner, len),
                    dtype: self.float(),
                    out: self.rows(outer, inner, len),
                    out_dtype: self.float(),
                    residual: self.dice.flip(),
                }
                .into()
            }
            12 => self.append().into(),
            13 => {
                let (batch, q_len) = (self.size(), self.size());
                let tokens = batch.saturating_mul(q_len);
                Advance { batch, q_len, ragged: self.dice.flip(), tokens: self.twist(tokens) }.into()
            }
            14 => Argmax { x: self.rows(outer, inner, len), dtype: self.float() }.into(),
            15 => Sample {
                x: self.rows(outer, inner, len),
                dtype: self.float(),
                temperature: self.real(),
                top_k: self.option(Self::positive),
                top_p: self.option(|s| s.real() / 4.0),
            }
            .into(),
            16 => {
                let (from, to) = (self.dice.pick(&DType::ALL), self.dice.pick(&DType::ALL));
                let len = len.saturating_mul(from.block_len());
                let x = Rows::grid(self.twist(outer), self.twist(inner), len);
                Cast { x, from, out: self.rows(outer, inner, len), to }.into()
            }
            17 => {
                let to = self.dice.pick(&[DType::I8, DType::F8E4M3, DType::Q8_0, DType::Q4K, DType::MxFp4]);
                let len = len.saturating_mul(to.block_len());
                let x = Rows::grid(self.twist(outer), self.twist(inner), len);
                let scale = if to.is_block() { None } else { self.granularity() };
                Quantise { x, from: self.float(), to, scale }.into()
            }
            18 => {
                let b = self.tensor(inner, len);
                Pack { format: &FORMAT, matrices: outer, n: len, k: inner, b }.into()
            }
            19 => {
                let root = self.twist(0);
                let kinds = [
                    CollectiveKind::AllReduce,
                    CollectiveKind::AllGather,
                    CollectiveKind::ReduceScatter,
                    CollectiveKind::Broadcast { root },
                ];
                let kind = self.dice.pick(&kinds);
                Collective { kind, dtype: self.float(), count: outer, world: self.positive() }.into()
            }
            20 => {
                let append = self.append();
                let Rows { outer, inner, len, .. } = append.src_k;
                let heads = inner.saturating_mul(self.positive());
                let norm =
                    |s: &mut Self| HeadNorm { weight: s.float(), weight_offset: s.real(), eps: s.real() };
                QkNormRopeAppend {
                    q: self.rows(outer, heads, len),
                    q_dtype: self.float(),
                    q_norm: self.option(norm),
                    k_norm: self.option(norm),
                    q_rope: self.rope(outer, heads, len),
                    k_rope: self.rope(outer, inner, len),
                    append,
                }
                .into()
            }
            _ => {
                let mut gate = self.matmul();
                (gate.batch, gate.a_scale, gate.b_scale) = (self.twist(1), None, None);
                gate.epilogue = Epilogue { bias: gate.epilogue.bias, ..Epilogue::default() };
                let gated = self.gated(gate.m, 1, gate.n);
                GatedMatMul { gate, up: gate, gated }.into()
            }
        }
    }
}

/// Arguments for a small valid op: numbers in `-2..2` that its element types hold well enough, and slots that its documentation allows.
pub(crate) fn arguments(op: &Op, dice: &mut Dice) -> Vec<Values> {
    let operands = op.operands();
    let count = |name: &str| operands.iter().find(|o| o.name == name).map(|o| o.elements as usize);
    let batch = count("kv_len").unwrap_or(0);
    let (q_len, tokens, kv, vocab, ragged) = match op {
        Op::Attention(a) => (a.q_len, a.q.outer, Some(a.kv), 1, a.ragged),
        Op::KvAppend(a) => (a.q_len, a.src_k.outer, Some(a.kv), 1, a.ragged),
        Op::QkNormRopeAppend(f) => {
            (f.append.q_len, f.append.src_k.outer, Some(f.append.kv), 1, f.append.ragged)
        }
        Op::Advance(a) => (a.q_len, a.tokens, None, 1, a.ragged),
        Op::Embed(e) => (0, 0, None, e.vocab, false),
        _ => (0, 0, None, 1, false),
    };
    // some rows of a ragged batch may belong to no sequence
    let mut offsets = vec![0];
    for b in 0..batch {
        let most = if ragged { q_len.min(tokens - offsets[b]) } else { q_len };
        offsets.push(offsets[b] + if ragged { dice.below(most + 1) } else { most });
    }
    operands
        .iter()
        .map(|o| {
            let n = o.elements as usize;
            let value = match (o.name, o.slot) {
                _ if o.access == Access::Write => vec![f64::NAN; n],
                ("kv_len", true) => {
                    let room = kv.map_or(9, |kv| {
                        kv.paging.map_or(kv.capacity, |p| if p.blocks > 0 { kv.capacity } else { 0 })
                    });
                    slots((0..n).map(|_| dice.below(room + 1)))
                }
                ("q_offsets", true) => slots(offsets.clone()),
                ("block_table", true) => {
                    let blocks = kv.and_then(|kv| kv.paging).map_or(1, |p| p.blocks.max(1));
                    slots((0..n).map(|_| dice.below(blocks)))
                }
                ("offsets", true) => {
                    let rows = count("order").unwrap_or(0);
                    let mut list: Vec<usize> = (0..n).map(|_| dice.below(rows + 1)).collect();
                    list.sort_unstable();
                    slots(list)
                }
                ("order", true) => (0..n).map(|_| dice.below(n + 2) as f64 - 1.0).collect(),
                ("ids", true) => (0..n).map(|_| dice.below(vocab + 2) as f64 - 1.0).collect(),
                (_, true) => (0..n).map(|_| dice.below(40) as f64 - 10.0).collect(),
                ("uniform", false) => (0..n).map(|_| (dice.real() + 2.0) / 4.0).collect(),
                _ if o.dtype.is_integer() => (0..n).map(|_| dice.real().round()).collect(),
                _ => (0..n).map(|_| f64::from(dice.real() as f32)).collect(),
            };
            Values::new(value)
        })
        .collect()
}
