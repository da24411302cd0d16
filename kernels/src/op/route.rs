//! Mixtures of experts: choosing the experts of each token, and combining what they give.

use super::check::{
    bytes_of, ensure, ensure_countable, ensure_disjoint, ensure_extent, ensure_float, ensure_like, product,
    rows_bytes, total,
};
use super::key::Key;
use super::sample::descending;
use super::softmax::weights;
use super::{Operand, Spec, Values};
use crate::buffer::Access;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::layout::Rows;

const ROUTE: &str = "route";
const COMBINE: &str = "combine";

/// When the softmax is taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum RouteOrder {
    /// Over all experts (Mixtral, Qwen3-MoE).
    SoftmaxThenTopK {
        /// Whether the chosen weights are divided by their sum (`norm_topk_prob`).
        renormalise: bool,
    },
    /// Over the chosen experts (gpt-oss).
    TopKThenSoftmax,
}

/// Chooses `top_k` experts for each token by its logits, and sorts the pairs of token and expert by expert.
///
/// Operands: `logits` (dense `[tokens, experts]`), then, all written, `weights` (f32 `[tokens, top_k]`, largest logit first), and the
/// slots `experts` (`[tokens, top_k]`), `offsets` (`[experts + 1]`) and `order` (`[tokens * top_k]`): expert `e` has the positions
/// `offsets[e]..offsets[e + 1]` of `order`, whose values are `token * top_k + j`, ascending within an expert.
/// [`GroupedMatMul`](super::GroupedMatMul) reads the last two.
///
/// Experts are chosen by logit, not by rounded probability; ties pick the lowest expert, and NaN counts as larger than every
/// number. Logits: a float type.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Route {
    /// Tokens.
    pub tokens: usize,
    /// Experts to choose among.
    pub experts: usize,
    /// Experts of each token.
    pub top_k: usize,
    /// Element type of the logits.
    pub dtype: DType,
    /// When the softmax is taken.
    pub order: RouteOrder,
}

impl Spec for Route {
    fn name(&self) -> &'static str {
        ROUTE
    }

    fn validate(&self) -> Result<()> {
        ensure_float(ROUTE, "dtype of logits", self.dtype)?;
        let top_k = 1..=self.experts;
        ensure(top_k.contains(&self.top_k), ROUTE, "top_k", self.top_k, "at least 1, at most the experts")?;
        ensure_countable(ROUTE, "experts", Some(self.experts))?;
        ensure_countable(ROUTE, "tokens * top_k", self.tokens.checked_mul(self.top_k))?;
        match self.tokens.checked_mul(self.experts) {
            Some(_) => Ok(()),
            None => Err(Error::Overflow { op: ROUTE, what: "tokens * experts" }),
        }
    }

    fn operands(&self) -> Vec<Operand> {
        let pairs = self.tokens.checked_mul(self.top_k);
        vec![
            Operand::data("logits", self.dtype, self.tokens.checked_mul(self.experts), Access::Read),
            Operand::data("weights", DType::F32, pairs, Access::Write),
            Operand::slot("experts", pairs, Access::Write),
            Operand::slot("offsets", self.experts.checked_add(1), Access::Write),
            Operand::slot("order", pairs, Access::Write),
        ]
    }

    fn dtypes(&self) -> Vec<DType> {
        vec![self.dtype]
    }

    fn shape(&self) -> Vec<(&'static str, usize)> {
        vec![("tokens", self.tokens), ("e", self.experts), ("top_k", self.top_k)]
    }

    fn tuning_key(&self) -> String {
        Key::new(self).variant("order", &self.order).finish()
    }

    fn flops(&self) -> u64 {
        match self.order {
            RouteOrder::SoftmaxThenTopK { .. } => product(&[5, self.tokens, self.experts]),
            RouteOrder::TopKThenSoftmax => product(&[5, self.tokens, self.top_k]),
        }
    }

    fn bytes(&self) -> u64 {
        total(&[
            bytes_of(self.dtype, product(&[self.tokens, self.experts])),
            product(&[12, self.tokens, self.top_k]),
            product(&[4, self.experts.saturating_add(1)]),
        ])
    }

    fn reduction(&self) -> usize {
        self.experts
    }

    fn reference(&self, args: &mut [Values]) {
        let [logits, out_weights, out_experts, offsets, order] = args else { return };
        let mut of_expert: Vec<Vec<usize>> = vec![Vec::new(); self.experts];
        for token in 0..self.tokens {
            let row = &logits.value[token * self.experts..(token + 1) * self.experts];
            let chosen = &descending(row)[..self.top_k];
            let picked = |values: &[(f64, f64)]| chosen.iter().map(|&e| values[e]).collect::<Vec<_>>();
            let chosen_logits: Vec<f64> = chosen.iter().map(|&e| row[e]).collect();
            let pairs = match self.order {
                RouteOrder::SoftmaxThenTopK { renormalise: false } => picked(&weights(row)),
                // dividing by the sum of the chosen is a softmax over them
                RouteOrder::SoftmaxThenTopK { renormalise: true } | RouteOrder::TopKThenSoftmax => {
                    weights(&chosen_logits)
                }
            };
            for (j, (&expert, (weight, magnitude))) in chosen.iter().zip(pairs).enumerate() {
                let at = token * self.top_k + j;
                out_weights.set(at, weight, magnitude);
                out_experts.set(at, expert as f64, 0.0);
                of_expert[expert].push(at);
            }
        }
        let mut position = 0;
        for (expert, pairs) in of_expert.iter().enumerate() {
            offsets.set(expert, position as f64, 0.0);
            for &pair in pairs {
                order.set(position, pair as f64, 0.0);
                position += 1;
            }
        }
        offsets.set(self.experts, position as f64, 0.0);
    }
}

/// `out[t] = sum_j weights[t, j] x[t * top_k + j] (+ residual[t])`: the experts' results, weighted.
///
/// Operands: `x`, `weights` (f32 `[tokens, top_k]`), `residual` (laid out like `out`, when present), `out`. Dtypes: floats.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Combine {
    /// Tokens.
    pub tokens: usize,
    /// Rows of x behind each token.
    pub top_k: usize,
    /// Outer = `tokens * top_k`.
    pub x: Rows,
    /// Element type of x.
    pub dtype: DType,
    /// Outer = tokens.
    pub out: Rows,
    /// Element type of residual and out.
    pub out_dtype: DType,
    /// Whether a residual is added.
    pub residual: bool,
}

impl Combine {
    /// Dense rows of `len` elements of one type, without a residual.
    pub fn dense(tokens: usize, top_k: usize, len: usize, dtype: DType) -> Self {
        let x = Rows::dense(tokens.saturating_mul(top_k), len);
        Combine { tokens, top_k, x, dtype, out: Rows::dense(tokens, len), out_dtype: dtype, residual: false }
    }
}

impl Spec for Combine {
    fn name(&self) -> &'static str {
        COMBINE
    }

    fn validate(&self) -> Result<()> {
        ensure_float(COMBINE, "dtype of x", self.dtype)?;
        ensure_float(COMBINE, "dtype of out", self.out_dtype)?;
        ensure(self.top_k > 0, COMBINE, "top_k", 0, "at least 1")?;
        let pairs = self.tokens.checked_mul(self.top_k);
        ensure(pairs == Some(self.x.outer), COMBINE, "rows of x", self.x.outer, "tokens * top_k")?;
        ensure_extent(COMBINE, "x", self.x)?;
        ensure_like(COMBINE, "shape of out", self.out, Rows { outer: self.tokens, ..self.x })?;
        ensure_disjoint(COMBINE, "strides of out", self.out)
    }

    fn operands(&self) -> Vec<Operand> {
        let pairs = self.tokens.checked_mul(self.top_k);
        let mut list = vec![
            Operand::data("x", self.dtype, self.x.extent(), Access::Read),
            Operand::data("weights", DType::F32, pairs, Access::Read),
        ];
        if self.residual {
            list.push(Operand::data("residual", self.out_dtype, self.out.extent(), Access::Read));
        }
        list.push(Operand::data("out", self.out_dtype, self.out.extent(), Access::Write));
        list
    }

    fn dtypes(&self) -> Vec<DType> {
        vec![self.dtype, self.out_dtype]
    }

    fn shape(&self) -> Vec<(&'static str, usize)> {
        vec![("tokens", self.tokens), ("top_k", self.top_k), ("len", self.x.len)]
    }

    fn tuning_key(&self) -> String {
        Key::new(self).rows("x", &self.x).rows("out", &self.out).finish()
    }

    fn flops(&self) -> u64 {
        let each = self.top_k.saturating_mul(2).saturating_sub(1) + usize::from(self.residual);
        product(&[each, self.tokens, self.x.inner, self.x.len])
    }

    fn bytes(&self) -> u64 {
        let written = rows_bytes(self.out_dtype, self.out);
        total(&[
            rows_bytes(self.dtype, self.x),
            product(&[4, self.tokens, self.top_k]),
            written,
            if self.residual { written } else { 0 },
        ])
    }

    fn reduction(&self) -> usize {
        self.top_k
    }

    fn reference(&self, args: &mut [Values]) {
        let Some((out, inputs)) = args.split_last_mut() else { return };
        let (x, weights) = (&inputs[0], &inputs[1]);
        let residual = inputs.get(2);
        for token in 0..self.tokens {
            for i in 0..self.out.inner {
                for d in 0..self.out.len {
                    let at = self.out.start(token, i) + d;
                    let start = residual.map_or(0.0, |r| r.value[at]);
                    let (mut value, mut magnitude) = (start, start.abs());
                    for j in 0..self.top_k {
                        let row = token * self.top_k + j;
                        let term = weights.value[row] * x.value[self.x.start(row, i) + d];
                        value += term;
                        magnitude += term.abs();
                    }
                    out.set(at, value, magnitude);
                }
            }
        }
    }
}
