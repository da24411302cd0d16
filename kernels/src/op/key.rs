//! Keys of tuning tables: what ops must have in common for a measurement of one to say something of the other.

use super::{Activation, Epilogue, Granularity, MatMul, Policy, Spec, Tensor2};
use crate::layout::{KvLayout, Matrix, Rows};
use std::fmt::{Display, Write};

/// Sizes that vary from call to call; all others belong to the model.
const VARYING: [&str; 9] = ["m", "tokens", "rows", "b", "q", "kv", "batch", "count", "matrices"];

/// A size's bucket: 0, or the next power of two.
pub(super) fn bucket(size: usize) -> usize {
    if size == 0 { 0 } else { size.checked_next_power_of_two().unwrap_or(usize::MAX) }
}

/// A key in the making: words with spaces between them.
pub(super) struct Key(String);

impl Key {
    /// Name, operands with their element types (optional ones are there or not), sizes.
    pub(super) fn new(spec: &dyn Spec) -> Self {
        let mut key = Key(spec.name().to_string());
        for operand in spec.operands() {
            key = key.word(format_args!("{}:{}", operand.name, operand.dtype));
        }
        for (name, size) in spec.shape() {
            key = if VARYING.contains(&name) { key.varying(name, size) } else { key.size(name, size) };
        }
        key
    }

    pub(super) fn word(mut self, word: impl Display) -> Self {
        // writing into a string cannot fail
        let _ = write!(self.0, " {word}");
        self
    }

    /// `word`, where it holds.
    pub(super) fn flag(self, word: &str, holds: bool) -> Self {
        if holds { self.word(word) } else { self }
    }

    /// A size that counts to the last unit.
    pub(super) fn size(self, name: &str, size: usize) -> Self {
        self.word(format_args!("{name}={size}"))
    }

    /// A size that varies from call to call.
    pub(super) fn varying(self, name: &str, size: usize) -> Self {
        self.size(name, bucket(size))
    }

    /// The word of an enum's variant as it is printed, without spaces.
    pub(super) fn variant(self, name: &str, value: &dyn std::fmt::Debug) -> Self {
        let text = format!("{value:?}").replace(char::is_whitespace, "");
        self.word(format_args!("{name}={text}"))
    }

    /// How vectors lie: whether they repeat, whether there are gaps.
    pub(super) fn rows(self, name: &str, rows: &Rows) -> Self {
        let Rows { outer, inner, len, outer_stride, inner_stride } = *rows;
        let repeats = outer > 1 && outer_stride == 0 || inner > 1 && inner_stride == 0;
        let dense = (inner <= 1 || inner_stride == len)
            && (outer <= 1 || Some(outer_stride) == inner.checked_mul(len));
        let class = match (repeats, dense || len == 0) {
            (true, _) => "repeated",
            (false, true) => "dense",
            (false, false) => "strided",
        };
        // gaps between heads are not those between tokens
        let heads = if inner > 1 && inner_stride != len && !repeats { "+heads" } else { "" };
        self.word(format_args!("{name}={class}{heads}"))
    }

    /// How a matrix lies: `n` with contiguous rows, `t` with contiguous columns, `s` with neither; `+` with gaps, `1` where a batch
    /// shares it.
    pub(super) fn matrix(self, name: &str, m: &Matrix, batch: usize, rows: usize, cols: usize) -> Self {
        let (order, long, across) = match m {
            Matrix { col: 1, .. } => ('n', m.row, (rows, cols)),
            Matrix { row: 1, .. } => ('t', m.col, (cols, rows)),
            _ => ('s', m.row, (rows, cols)),
        };
        let gaps = across.0 > 1 && long != across.1
            || batch > 1 && m.batch != 0 && Some(m.batch) != rows.checked_mul(cols);
        let shared = if batch > 1 && m.batch == 0 { "1" } else { "" };
        let gaps = if gaps { "+" } else { "" };
        self.word(format_args!("{name}={order}{gaps}{shared}"))
    }

    pub(super) fn cache(self, kv: &KvLayout) -> Self {
        let tokens = kv.paging.map_or(kv.capacity, |p| p.block);
        let (order, dense) = match kv.head_stride >= kv.token_stride && kv.kv_heads > 1 || tokens <= 1 {
            true => ("heads", kv.token_stride == kv.head_dim),
            false => ("tokens", kv.head_stride == kv.head_dim || kv.kv_heads <= 1),
        };
        let key = self.word(format_args!("cache={order}{}", if dense { "" } else { "+" }));
        match kv.paging {
            Some(paging) => key.size("page", paging.block).varying("pages", paging.blocks),
            None => key,
        }
    }

    pub(super) fn policy(self, policy: &Policy) -> Self {
        let Policy { tf32, f16_accumulate, quantised_activations } = *policy;
        self.flag("tf32", tf32)
            .flag("f16_accumulate", f16_accumulate)
            .flag("quantised_activations", quantised_activations)
    }

    pub(super) fn activation(self, activation: Activation) -> Self {
        match activation {
            Activation::None => self,
            _ => self.variant("activation", &activation),
        }
    }

    /// Everything of a product but its operands' types and its sizes.
    pub(super) fn product(self, op: &MatMul) -> Self {
        let Epilogue { scale, bias: _, activation, residual } = op.epilogue;
        let of = |key: Key, name: &str, t: &Tensor2, rows, cols| {
            key.matrix(name, &t.strides, op.batch, rows, cols)
        };
        let key = of(self, "a", &op.a, op.m, op.k);
        let key = of(key, "b", &op.b, op.k, op.n).flag("constant", op.b_constant);
        let key = of(key, "c", &op.c, op.m, op.n);
        let key = match &residual {
            Some(r) => of(key, "residual", r, op.m, op.n),
            None => key,
        };
        key.granularity("a_scale", op.a_scale)
            .granularity("b_scale", op.b_scale)
            .flag("scaled", scale != 1.0)
            .activation(activation)
            .policy(&op.policy)
    }

    pub(super) fn granularity(self, name: &str, granularity: Option<Granularity>) -> Self {
        match granularity {
            Some(g) => self.variant(name, &g),
            None => self,
        }
    }

    pub(super) fn finish(self) -> String {
        self.0
    }
}
