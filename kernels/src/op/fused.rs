//! Ops that do the work of several in one pass. Their fields are the descriptors of the parts, and what a part hands to the next
//! is never stored: it is not rounded, and it is no operand.

use super::check::{bytes_of, ensure, ensure_extent, ensure_float, ensure_like, product, rows_bytes, total};
use super::gated::STEEPEST;
use super::key::Key;
use super::kv::vector;
use super::{Constant, Epilogue, Gated, KvAppend, MatMul, Operand, RmsNorm, Rope, Spec, Values};
use crate::buffer::Access;
use crate::dtype::DType;
use crate::error::Result;
use crate::layout::Rows;

const QK: &str = "qk_norm_rope_append";
const GATED: &str = "gated_matmul";

/// How each head of queries or keys is normalised: an [`RmsNorm`] over its elements.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct HeadNorm {
    /// Element type of the weight, which the heads share.
    pub weight: DType,
    /// Added to the weight: 1 for Gemma, else 0.
    pub weight_offset: f32,
    /// Added to the mean square; not negative.
    pub eps: f32,
}

impl Default for HeadNorm {
    /// A weight in f32, and an `eps` of 1e-6.
    fn default() -> Self {
        HeadNorm { weight: DType::F32, weight_offset: 0.0, eps: 1e-6 }
    }
}

impl HeadNorm {
    /// The norm of `x`, densely.
    fn of(self, x: Rows, x_dtype: DType) -> RmsNorm {
        let HeadNorm { weight, weight_offset, eps } = self;
        let out = Rows::grid(x.outer, x.inner, x.len);
        RmsNorm { x, x_dtype, weight, weight_offset, eps, residual: None, out, out_dtype: DType::F32 }
    }
}

/// Between the projections and attention: normalises the heads of queries and keys where the model does, rotates both, and appends
/// keys and values to the caches.
///
/// Operands: `q`, `k`, `v`, then those present of `q_weight` and `k_weight` (of the norms), `positions` (slot), those of [`KvAppend`]
/// from `kv_len` on (`kv_len`, `q_offsets`, `block_table`, `k_cache`, `v_cache`), and last `out`, the queries for attention.
///
/// The parts agree: `q` and `q_rope.x` have the same shape, and so have `append.src_k` and `k_rope.x`. Strides and type of `k_rope` are
/// not used, since rotated keys are stored in the cache only.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct QkNormRopeAppend {
    /// Queries: outer = tokens, inner = heads, len = head_dim.
    pub q: Rows,
    /// Their element type.
    pub q_dtype: DType,
    /// Normalises each head of the queries.
    pub q_norm: Option<HeadNorm>,
    /// Normalises each head of the keys.
    pub k_norm: Option<HeadNorm>,
    /// Rotates the queries. Its `x` and `dtype` are those of `out`.
    pub q_rope: Rope,
    /// Rotates the keys.
    pub k_rope: Rope,
    /// Stores keys and values. Its `src_k` is where the keys lie that are normalised and rotated first.
    pub append: KvAppend,
}

impl QkNormRopeAppend {
    /// `heads` dense queries for each token that `append` stores, of the type of its keys, without norms; queries and keys are rotated
    /// as [`Rope::dense`] says.
    pub fn dense(heads: usize, append: KvAppend, theta: f64) -> Self {
        let (keys, dtype) = (append.src_k, append.src_dtype);
        let rope = |heads| Rope::dense(keys.outer, heads, keys.len, dtype, theta);
        let (q_rope, k_rope) = (rope(heads), rope(keys.inner));
        QkNormRopeAppend { q: q_rope.x, q_dtype: dtype, q_norm: None, k_norm: None, q_rope, k_rope, append }
    }

    /// Index of the operand `positions`. The weights before it, if any, are from 3 on.
    pub fn positions(&self) -> usize {
        3 + usize::from(self.q_norm.is_some()) + usize::from(self.k_norm.is_some())
    }

    /// The norms that are present, each as an op.
    fn norms(&self) -> impl Iterator<Item = RmsNorm> + use<> {
        let q = self.q_norm.map(|norm| norm.of(self.q, self.q_dtype));
        let k = self.k_norm.map(|norm| norm.of(self.append.src_k, self.append.src_dtype));
        q.into_iter().chain(k)
    }

    /// The vectors of `rows` normalised, if `norm` says how, and rotated: one after the other, with magnitudes.
    fn rotated(
        norm: Option<(RmsNorm, &Values)>,
        rope: &Rope,
        (x, rows): (&Values, Rows),
        positions: &Values,
    ) -> Values {
        let dense = Rows::grid(rows.outer, rows.inner, rows.len);
        let mut out = Values::new(vec![0.0; dense.extent().unwrap_or(0)]);
        out.settle();
        if let Some((norm, weight)) = norm {
            let mut args = [x.clone(), weight.clone(), out];
            norm.reference(&mut args);
            [_, _, out] = args;
        }
        let frequencies = rope.inverse_frequencies();
        for token in 0..dense.outer {
            for head in 0..dense.inner {
                let range = dense.start(token, head)..dense.start(token, head) + dense.len;
                let (value, magnitude) = (&mut out.value[range.clone()], &mut out.magnitude[range]);
                if norm.is_none() {
                    let vector = vector(x, rows, token, head);
                    for ((to, size), from) in value.iter_mut().zip(&mut *magnitude).zip(vector) {
                        (*to, *size) = from;
                    }
                }
                rope.rotate(&frequencies, positions.index(token), value, magnitude);
            }
        }
        out
    }
}

impl Spec for QkNormRopeAppend {
    fn name(&self) -> &'static str {
        QK
    }

    fn validate(&self) -> Result<()> {
        let parts: [&dyn Spec; 3] = [&self.q_rope, &self.k_rope, &self.append];
        parts.iter().try_for_each(|part| part.validate())?;
        self.norms().try_for_each(|norm| norm.validate())?;
        ensure_float(QK, "dtype of q", self.q_dtype)?;
        ensure_extent(QK, "q", self.q)?;
        ensure_like(QK, "shape of q_rope.x", self.q_rope.x, self.q)?;
        ensure_like(QK, "shape of k_rope.x", self.k_rope.x, self.append.src_k)?;
        let tokens = self.q.outer == self.append.src_k.outer;
        ensure(tokens, QK, "rows of q", self.q.outer, "as many as those of k")
    }

    fn operands(&self) -> Vec<Operand> {
        use Access::{Read, Write};
        let append = &self.append;
        let mut list = vec![
            Operand::data("q", self.q_dtype, self.q.extent(), Read),
            Operand::data("k", append.src_dtype, append.src_k.extent(), Read),
            Operand::data("v", append.src_dtype, append.src_v.extent(), Read),
        ];
        let weight = |name, norm: Option<HeadNorm>, rows: Rows| {
            norm.map(|norm| Operand::data(name, norm.weight, Some(rows.len), Read))
        };
        list.extend(weight("q_weight", self.q_norm, self.q));
        list.extend(weight("k_weight", self.k_norm, append.src_k));
        list.push(Operand::slot("positions", Some(self.q.outer), Read));
        list.extend(append.slots());
        list.extend(append.caches());
        list.push(Operand::data("out", self.q_rope.dtype, self.q_rope.x.extent(), Write));
        list
    }

    fn dtypes(&self) -> Vec<DType> {
        vec![self.q_dtype, self.q_rope.dtype, self.append.kv_dtype]
    }

    fn shape(&self) -> Vec<(&'static str, usize)> {
        let mut shape = self.append.shape();
        shape.push(("h", self.q.inner));
        shape
    }

    fn tuning_key(&self) -> String {
        // the parts' own words, each part's together; which norms there are is among the operands
        let parts: [&dyn Spec; 3] = [&self.q_rope, &self.k_rope, &self.append];
        let key = Key::new(self).rows("q", &self.q);
        parts.iter().fold(key, |key, part| key.word(part.tuning_key())).finish()
    }

    fn flops(&self) -> u64 {
        let norms = self.norms().fold(0, |all: u64, norm| all.saturating_add(norm.flops()));
        total(&[norms, self.q_rope.flops(), self.k_rope.flops()])
    }

    fn bytes(&self) -> u64 {
        let weights = self
            .norms()
            .fold(0, |all: u64, norm| all.saturating_add(bytes_of(norm.weight, product(&[norm.x.len]))));
        total(&[
            rows_bytes(self.q_dtype, self.q),
            weights,
            product(&[4, self.q.outer]),
            self.append.bytes(),
            rows_bytes(self.q_rope.dtype, self.q_rope.x),
        ])
    }

    fn reduction(&self) -> usize {
        self.norms().map(|norm| norm.x.len).max().unwrap_or(1)
    }

    fn reference(&self, args: &mut [Values]) {
        let [q, k, v, rest @ .., k_cache, v_cache, out] = args else { return };
        let (weights, slots) = rest.split_at(self.positions() - 3);
        let Some((positions, slots)) = slots.split_first() else { return };
        let append = &self.append;
        let q_norm = self.q_norm.map(|norm| norm.of(self.q, self.q_dtype)).zip(weights.first());
        let k_norm = self.k_norm.map(|norm| norm.of(append.src_k, append.src_dtype)).zip(weights.last());
        let queries = Self::rotated(q_norm, &self.q_rope, (q, self.q), positions);
        let keys = Self::rotated(k_norm, &self.k_rope, (k, append.src_k), positions);
        let rows = self.q_rope.x;
        for token in 0..rows.outer {
            for head in 0..rows.inner {
                let from = (token * rows.inner + head) * rows.len;
                let to = rows.start(token, head);
                for d in 0..rows.len {
                    out.set(to + d, queries.value[from + d], queries.magnitude[from + d]);
                }
            }
        }
        let (heads, len) = (append.src_k.inner, append.src_k.len);
        append.store(slots, k_cache, |token, head| {
            let from = (token * heads + head) * len;
            (from..from + len).map(|at| (keys.value[at], keys.magnitude[at])).collect()
        });
        append.store(slots, v_cache, |token, head| vector(v, append.src_v, token, head));
    }
}

/// The gate and up projections of a feed-forward layer with the gated activation in the epilogue: `kind(x Wg + bg, x Wu + bu)`.
///
/// Operands: `a` (shared), `gate_b`, `up_b`, then `gate_bias`, `up_bias` (when present), and last `out`, laid out as `gated.out`
/// says (`m` rows of `n` elements).
///
/// The parts agree: both products have the same shape, A, element types and `b_constant`, a batch of 1, no scales, and nothing in
/// the epilogue but a bias. `gated.gate` and `gated.up` have `m` rows of `n` elements; their strides and types are not used.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct GatedMatMul {
    /// The gate projection; its C is not stored.
    pub gate: MatMul,
    /// The up projection; its C is not stored.
    pub up: MatMul,
    /// The activation.
    pub gated: Gated,
}

impl GatedMatMul {
    /// Both B, where they are constant.
    pub fn constants(&self) -> Vec<Constant> {
        let of = |part: &MatMul, operand| part.constant().map(|b| Constant { operand, ..b });
        [of(&self.gate, 1), of(&self.up, 2)].into_iter().flatten().collect()
    }
}

impl Spec for GatedMatMul {
    fn name(&self) -> &'static str {
        GATED
    }

    fn validate(&self) -> Result<()> {
        self.gate.validate()?;
        self.up.validate()?;
        self.gated.validate()?;
        let (gate, up) = (&self.gate, &self.up);
        let like = MatMul { b: gate.b, c: gate.c, epilogue: gate.epilogue, policy: gate.policy, ..*up };
        let same = like == *gate && gate.b.dtype == up.b.dtype && gate.policy == up.policy;
        ensure(same, GATED, "up", format!("{up:?}"), "a product like gate, but for the strides of b")?;
        ensure(gate.batch == 1, GATED, "batch", gate.batch, "1")?;
        ensure(gate.c.dtype.is_float(), GATED, "dtype of c", gate.c.dtype, "a float type")?;
        for part in [gate, up] {
            let plain = part.a_scale.is_none()
                && part.b_scale.is_none()
                && part.epilogue == (Epilogue { bias: part.epilogue.bias, ..Epilogue::default() });
            ensure(
                plain,
                GATED,
                "epilogue",
                format!("{:?}", part.epilogue),
                "nothing but a bias, and no scales",
            )?;
        }
        ensure_like(GATED, "shape of gated", self.gated.gate, Rows::dense(gate.m, gate.n))
    }

    fn operands(&self) -> Vec<Operand> {
        let find = |part: &MatMul, name: &str, renamed: &'static str| {
            let found = part.operands().into_iter().find(|o| o.name == name);
            found.map(|o| Operand { name: renamed, ..o })
        };
        let list = [
            find(&self.gate, "a", "a"),
            find(&self.gate, "b", "gate_b"),
            find(&self.up, "b", "up_b"),
            find(&self.gate, "bias", "gate_bias"),
            find(&self.up, "bias", "up_bias"),
            self.gated.operands().pop(),
        ];
        list.into_iter().flatten().collect()
    }

    fn dtypes(&self) -> Vec<DType> {
        vec![self.gate.a.dtype, self.gate.b.dtype, self.gated.out_dtype]
    }

    fn shape(&self) -> Vec<(&'static str, usize)> {
        self.gate.shape()
    }

    fn tuning_key(&self) -> String {
        Key::new(self).product(&self.gate).product(&self.up).word(self.gated.tuning_key()).finish()
    }

    fn flops(&self) -> u64 {
        total(&[self.gate.flops(), self.up.flops(), self.gated.flops()])
    }

    fn bytes(&self) -> u64 {
        // A is read once, and neither product is stored
        let MatMul { m, n, k, a, .. } = self.gate;
        let bias = |part: &MatMul| part.epilogue.bias.map_or(0, |d| bytes_of(d, n as u64));
        total(&[
            bytes_of(a.dtype, product(&[m, k])),
            bytes_of(self.gate.b.dtype, product(&[2, k, n])),
            bias(&self.gate),
            bias(&self.up),
            rows_bytes(self.gated.out_dtype, self.gated.out),
        ])
    }

    fn reduction(&self) -> usize {
        self.gate.k
    }

    fn reference(&self, args: &mut [Values]) {
        let Some((out, inputs)) = args.split_last_mut() else { return };
        let gate_bias = usize::from(self.gate.epilogue.bias.is_some());
        let part = |b: usize, bias: Option<usize>| {
            let mut list = vec![inputs[0].clone(), inputs[b].clone()];
            list.extend(bias.map(|at| inputs[at].clone()));
            list
        };
        let gates = part(1, self.gate.epilogue.bias.map(|_| 3));
        let ups = part(2, self.up.epilogue.bias.map(|_| 3 + gate_bias));
        // the share of a product's terms that rounding its activations to 8 bits may move, by the bound that such rows state
        let crossed = match self.gate.policy.quantised_activations {
            true => (4.0 + (self.gate.k as f64).sqrt()) / 254.0,
            false => 0.0,
        };
        for row in 0..self.gate.m {
            for col in 0..self.gate.n {
                let (gate, gate_size) = self.gate.element(&gates, 0, row, col);
                let (up, up_size) = self.up.element(&ups, 0, row, col);
                let (activated, factor) = self.gated.kind.factors(gate, up);
                // errors of the products, through the slopes of the activation
                let carried = STEEPEST * gate_size * factor.abs() + activated.abs() * up_size;
                // and of both at once, where they are large: a product of two that are 0 but for them
                let carried = carried + STEEPEST * gate_size * up_size * crossed;
                let magnitude = self.gated.kind.magnitude(gate, up) + carried;
                out.set(self.gated.out.start(row, 0) + col, activated * factor, magnitude);
            }
        }
    }
}
