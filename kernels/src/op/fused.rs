//! Ops that do the work of several in one pass. Their fields are the descriptors of the parts, and what a part hands to the next
//! is never stored: it is not rounded, and it is no operand.

use super::check::{bytes_of, ensure, ensure_like, product, rows_bytes, total};
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

/// Between the projections and attention: normalises the heads of queries and keys, rotates both, and appends keys and values to
/// the caches.
///
/// Operands: `q`, `k`, `v`, `q_weight`, `k_weight` (of the norms), `positions` (slot), then those of [`KvAppend`] from `kv_len` on
/// (`kv_len`, `q_offsets`, `block_table`, `k_cache`, `v_cache`), and last `out`, the queries for attention.
///
/// The parts agree: `q_norm.out` is `q_rope.x`, where and in what type the queries are stored; `k_norm.out`, `k_rope.x` and
/// `append.src_k` have the shape of `k_norm.x`, and their strides and types are not used, since keys are stored in the cache only.
/// The norms have no residual.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct QkNormRopeAppend {
    /// Normalises each head of the queries.
    pub q_norm: RmsNorm,
    /// Normalises each head of the keys.
    pub k_norm: RmsNorm,
    /// Rotates the queries.
    pub q_rope: Rope,
    /// Rotates the keys.
    pub k_rope: Rope,
    /// Stores keys and values.
    pub append: KvAppend,
}

impl QkNormRopeAppend {
    /// Normalised and rotated vectors of `x`, one after the other, as values with magnitudes.
    fn rotated(norm: RmsNorm, rope: Rope, x: &Values, weight: &Values, positions: &Values) -> Values {
        let dense = Rows::grid(norm.x.outer, norm.x.inner, norm.x.len);
        let out = Values::new(vec![0.0; dense.extent().unwrap_or(0)]);
        let mut args = [x.clone(), weight.clone(), out];
        RmsNorm { out: dense, ..norm }.reference(&mut args);
        let [_, _, mut out] = args;
        out.settle();
        let frequencies = rope.inverse_frequencies();
        for token in 0..dense.outer {
            for head in 0..dense.inner {
                let range = dense.start(token, head)..dense.start(token, head) + dense.len;
                let (value, magnitude) = (&mut out.value[range.clone()], &mut out.magnitude[range]);
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
        let parts: [&dyn Spec; 5] = [&self.q_norm, &self.k_norm, &self.q_rope, &self.k_rope, &self.append];
        parts.iter().try_for_each(|part| part.validate())?;
        let plain = self.q_norm.residual.is_none() && self.k_norm.residual.is_none();
        ensure(plain, QK, "residual of a norm", "present", "none")?;
        let same = self.q_norm.out == self.q_rope.x && self.q_norm.out_dtype == self.q_rope.dtype;
        ensure(same, QK, "x of q_rope", format!("{:?}", self.q_rope.x), "the out of q_norm")?;
        ensure_like(QK, "shape of k_rope.x", self.k_rope.x, self.k_norm.x)?;
        ensure_like(QK, "shape of append.src_k", self.append.src_k, self.k_norm.x)?;
        let tokens = self.q_norm.x.outer == self.k_norm.x.outer;
        ensure(tokens, QK, "rows of q", self.q_norm.x.outer, "as many as those of k")
    }

    fn operands(&self) -> Vec<Operand> {
        use Access::{Read, Write};
        let mut list = vec![
            Operand::data("q", self.q_norm.x_dtype, self.q_norm.x.extent(), Read),
            Operand::data("k", self.k_norm.x_dtype, self.k_norm.x.extent(), Read),
            Operand::data("v", self.append.src_dtype, self.append.src_v.extent(), Read),
            Operand::data("q_weight", self.q_norm.weight, Some(self.q_norm.x.len), Read),
            Operand::data("k_weight", self.k_norm.weight, Some(self.k_norm.x.len), Read),
            Operand::slot("positions", Some(self.q_norm.x.outer), Read),
        ];
        list.extend(self.append.slots());
        list.extend(self.append.caches());
        list.push(Operand::data("out", self.q_norm.out_dtype, self.q_norm.out.extent(), Write));
        list
    }

    fn dtypes(&self) -> Vec<DType> {
        vec![self.q_norm.x_dtype, self.q_norm.out_dtype, self.append.kv_dtype]
    }

    fn shape(&self) -> Vec<(&'static str, usize)> {
        let mut shape = self.append.shape();
        shape.push(("h", self.q_norm.x.inner));
        shape
    }

    fn tuning_key(&self) -> String {
        // the parts' own words, each part's together
        let parts: [&dyn Spec; 5] = [&self.q_norm, &self.k_norm, &self.q_rope, &self.k_rope, &self.append];
        parts.iter().fold(Key::new(self), |key, part| key.word(part.tuning_key())).finish()
    }

    fn flops(&self) -> u64 {
        let parts: [&dyn Spec; 4] = [&self.q_norm, &self.k_norm, &self.q_rope, &self.k_rope];
        total(&parts.map(|part| part.flops()))
    }

    fn bytes(&self) -> u64 {
        // the keys' norm reads what the append would read
        let keys = RmsNorm { out: Rows::dense(0, 0), ..self.k_norm };
        let append = KvAppend { src_k: Rows { len: 0, ..self.append.src_k }, ..self.append };
        total(&[self.q_norm.bytes(), keys.bytes(), append.bytes()])
    }

    fn reduction(&self) -> usize {
        self.q_norm.x.len.max(self.k_norm.x.len)
    }

    fn reference(&self, args: &mut [Values]) {
        let [q, k, v, q_weight, k_weight, positions, slots @ .., k_cache, v_cache, out] = args else {
            return;
        };
        let queries = Self::rotated(self.q_norm, self.q_rope, q, q_weight, positions);
        let keys = Self::rotated(self.k_norm, self.k_rope, k, k_weight, positions);
        let q_rows = self.q_norm.out;
        for token in 0..q_rows.outer {
            for head in 0..q_rows.inner {
                let from = (token * q_rows.inner + head) * q_rows.len;
                let to = q_rows.start(token, head);
                for d in 0..q_rows.len {
                    out.set(to + d, queries.value[from + d], queries.magnitude[from + d]);
                }
            }
        }
        let (heads, len) = (self.k_norm.x.inner, self.k_norm.x.len);
        self.append.store(slots, k_cache, |token, head| {
            let from = (token * heads + head) * len;
            (from..from + len).map(|at| (keys.value[at], keys.magnitude[at])).collect()
        });
        self.append.store(slots, v_cache, |token, head| vector(v, self.append.src_v, token, head));
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
