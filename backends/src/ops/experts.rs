//! Mixtures of experts.

use super::weight::Weight;
use super::{as_matrix, expect_count, expect_dense, expect_dtype, run, run_packed, shape_error, tensor2};
use crate::tensor::Tensor;
use perjoule_kernels::op::{Activation, Combine, GroupedMatMul, Policy, Route, RouteOrder, Tensor2};
use perjoule_kernels::{DType, Matrix, Result, Rows};

const GROUPED: &str = "grouped_matmul";

/// Which experts each token visits: what [`route`] gives. Other routers can fill the tensors themselves.
#[derive(Debug, Clone)]
pub struct Routing {
    /// f32 `[tokens, top_k]`: weights of the chosen experts, largest logit first.
    pub weights: Tensor,
    /// i32 `[tokens, top_k]`: the chosen experts.
    pub experts: Tensor,
    /// i32 `[experts + 1]`: expert `e` has the positions `offsets[e]..offsets[e + 1]` of `order`.
    pub offsets: Tensor,
    /// i32 `[tokens * top_k]`: pairs `token * top_k + j`, sorted by expert.
    pub order: Tensor,
}

/// Chooses `top_k` experts for each token by its logits (a float type, dense `[tokens, experts]`), ties by lowest expert.
///
/// A whole feed-forward layer of experts:
///
/// ```
/// use perjoule::{DType, Tensor, ops};
/// use perjoule::ops::{GatedKind, RouteOrder, Weight};
///
/// # fn main() -> perjoule::Result<()> {
/// let cpu = perjoule::open("cpu")?;
/// let (tokens, experts, top_k, hidden, ffn) = (3, 4, 2, 32, 64);
/// let x = Tensor::from_slice(&cpu, &vec![0.5f32; tokens * hidden], [tokens, hidden])?;
/// let logits = Tensor::from_slice(&cpu, &[1.0f32, 2.0, 0.0, -1.0].repeat(tokens), [tokens, experts])?;
/// let weights = |n: usize, k: usize| {
///     let w = Tensor::from_slice(&cpu, &vec![0.01f32; experts * n * k], [experts, n, k])?;
///     Weight::pack(&w, DType::F32, &[top_k, 512 * top_k])
/// };
/// let (gate_up, down) = (weights(2 * ffn, hidden)?, weights(hidden, ffn)?);
///
/// let order = RouteOrder::SoftmaxThenTopK { renormalise: true };
/// let routing = ops::route(&logits, top_k, order)?;
/// let h = ops::grouped_linear(&x, &gate_up, &routing).run()?; // [tokens, top_k, 2 ffn]
/// let h = ops::gated(&h.slice(2, ..ffn)?, &h.slice(2, ffn..)?, GatedKind::SwiGlu)?;
/// let h = ops::grouped_linear(&h, &down, &routing).run()?; // [tokens, top_k, hidden]
/// let y = ops::combine(&h, &routing.weights, Some(&x))?;
/// assert_eq!(y.shape(), [tokens, hidden]);
/// # Ok(())
/// # }
/// ```
pub fn route(logits: &Tensor, top_k: usize, order: RouteOrder) -> Result<Routing> {
    let [tokens, experts] = *logits.shape() else {
        return Err(shape_error("route", "logits", logits, "[tokens, experts]"));
    };
    expect_dense("route", "logits", logits, &[tokens, experts])?;
    let op = Route { tokens, experts, top_k, dtype: logits.dtype(), order };
    perjoule_kernels::Op::from(op).validate()?;
    let tensor = |dtype, shape: &[usize]| Tensor::unwritten(logits.device(), dtype, shape);
    let routing = Routing {
        weights: tensor(DType::F32, &[tokens, top_k])?,
        experts: tensor(DType::I32, &[tokens, top_k])?,
        offsets: tensor(DType::I32, &[experts + 1])?,
        order: tensor(DType::I32, &[tokens * top_k])?,
    };
    let Routing { weights, experts, offsets, order } = &routing;
    run(op, &[logits, weights, experts, offsets, order])?;
    Ok(routing)
}

/// The products of the experts: `b` is `[experts, k, n]`, in any strides. `x` is either `[tokens, k]`, and each token's row is
/// multiplied by all its experts, or `[tokens, top_k, k]`, with a row for each pair of token and expert, as the first product of a
/// layer leaves them. The result is `[tokens, top_k, n]`.
pub fn grouped_matmul<'a>(x: &'a Tensor, b: &'a Tensor, routing: &'a Routing) -> GroupedMatMulCall<'a> {
    GroupedMatMulCall::new(x, Right::Tensor(b), routing)
}

/// The same with the packed weights `[experts, n, k]`; [`route`] shows it in a layer.
pub fn grouped_linear<'a>(x: &'a Tensor, weight: &'a Weight, routing: &'a Routing) -> GroupedMatMulCall<'a> {
    GroupedMatMulCall::new(x, Right::Weight(weight), routing)
}

#[derive(Debug, Clone, Copy)]
enum Right<'a> {
    Tensor(&'a Tensor),
    Weight(&'a Weight),
}

/// Products of experts about to run: `activation(x b[expert] + bias[expert])`.
#[derive(Debug, Clone, Copy)]
#[must_use = "nothing happens before `run`"]
pub struct GroupedMatMulCall<'a> {
    x: &'a Tensor,
    b: Right<'a>,
    routing: &'a Routing,
    bias: Option<&'a Tensor>,
    activation: Activation,
    out: Option<DType>,
    policy: Policy,
}

impl<'a> GroupedMatMulCall<'a> {
    fn new(x: &'a Tensor, b: Right<'a>, routing: &'a Routing) -> Self {
        let (activation, policy) = (Activation::None, Policy::default());
        GroupedMatMulCall { x, b, routing, bias: None, activation, out: None, policy }
    }

    /// A dense `[experts, n]` tensor of a float type: each expert's vector is added to its rows.
    pub fn bias(mut self, bias: &'a Tensor) -> Self {
        self.bias = Some(bias);
        self
    }

    /// Applied after the bias.
    pub fn activation(mut self, activation: Activation) -> Self {
        self.activation = activation;
        self
    }

    /// Element type of the result: unless set, that of `x`; for i8, i32, or f32 with bias or activation.
    pub fn out_dtype(mut self, dtype: DType) -> Self {
        self.out = Some(dtype);
        self
    }

    /// Leave to compute less exactly.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// Computes them into a new tensor. Rows that `routing.order` does not name are 0.
    pub fn run(self) -> Result<Tensor> {
        let Routing { experts: chosen, offsets, order, .. } = self.routing;
        let [tokens, top_k] = *chosen.shape() else {
            return Err(shape_error(GROUPED, "routing.experts", chosen, "[tokens, top_k]"));
        };
        let (experts, k, n, b, b_tensor, pack) = match self.b {
            Right::Tensor(t) => match *t.shape() {
                [experts, k, n] => (experts, k, n, tensor2(t), t, None),
                _ => return Err(shape_error(GROUPED, "b", t, "[experts, k, n]")),
            },
            Right::Weight(w) => match *w.shape() {
                [experts, n, k] => (experts, k, n, w.operand(k, n), w.tensor(), w.pack_format()),
                _ => {
                    let expected = "[experts, n, k]; ops::linear takes a single weight";
                    return Err(shape_error(GROUPED, "weight", w.tensor(), expected));
                }
            },
        };
        let rows = tokens.saturating_mul(top_k);
        for (field, slot, count) in [("offsets", offsets, experts.saturating_add(1)), ("order", order, rows)]
        {
            expect_dtype(GROUPED, field, slot, DType::I32)?;
            expect_count(GROUPED, field, slot, count)?;
        }
        let a_divisor = match self.x.shape() {
            [t, last] if (*t, *last) == (tokens, k) => top_k,
            [t, j, last] if (*t, *j, *last) == (tokens, top_k, k) => 1,
            _ => {
                let expected =
                    format!("[{tokens}, {k}], or [{tokens}, {top_k}, {k}] with a row for each expert");
                return Err(shape_error(GROUPED, "x", self.x, expected));
            }
        };
        let (a_rows, _, a) = as_matrix(GROUPED, "x", self.x)?;
        let plain = self.bias.is_none() && self.activation == Activation::None;
        let dtype = self.out.unwrap_or(match self.x.dtype() {
            DType::I8 if plain => DType::I32,
            DType::I8 => DType::F32,
            float => float,
        });
        if let Some(bias) = self.bias {
            expect_dense(GROUPED, "bias", bias, &[experts, n])?;
        }
        // rows that the routing does not name keep what they hold
        let out = Tensor::zeros(self.x.device(), dtype, [tokens, top_k, n])?;
        let op = GroupedMatMul {
            experts,
            rows,
            n,
            k,
            a: Tensor2 { dtype: self.x.dtype(), strides: a },
            a_rows,
            a_divisor,
            b,
            b_constant: matches!(self.b, Right::Weight(_)),
            c: Tensor2 { dtype, strides: Matrix::row_major(rows, n) },
            c_rows: rows,
            bias: self.bias.map(Tensor::dtype),
            activation: self.activation,
            policy: self.policy,
        };
        let mut args = vec![self.x, b_tensor, offsets, order];
        args.extend(self.bias);
        args.push(&out);
        run_packed(&op.into(), pack, &args)?;
        Ok(out)
    }
}

/// `sum_j weights[t, j] x[t, j] (+ residual[t])`: the results of each token's experts (`[tokens, top_k, len]`, a float type), weighted
/// (dense f32 `[tokens, top_k]`, as in [`Routing::weights`]). The result and the dense `residual` are `[tokens, len]`, in the dtype of
/// `x`.
pub fn combine(x: &Tensor, weights: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
    let [tokens, top_k, len] = *x.shape() else {
        return Err(shape_error("combine", "x", x, "[tokens, top_k, len]"));
    };
    expect_dtype("combine", "weights", weights, DType::F32)?;
    expect_dense("combine", "weights", weights, &[tokens, top_k])?;
    if let Some(residual) = residual {
        expect_dtype("combine", "residual", residual, x.dtype())?;
        expect_dense("combine", "residual", residual, &[tokens, len])?;
    }
    let (rows, _, strides) = as_matrix("combine", "x", x)?;
    if len > 1 && strides.col != 1 {
        return Err(super::view_error("combine", "x", x, "a contiguous last dimension"));
    }
    let out = Tensor::unwritten(x.device(), x.dtype(), [tokens, len])?;
    let op = Combine {
        x: Rows::dense(rows, len).with_outer_stride(strides.row),
        residual: residual.is_some(),
        ..Combine::dense(tokens, top_k, len, x.dtype())
    };
    let mut args = vec![x, weights];
    args.extend(residual);
    args.push(&out);
    run(op, &args)?;
    Ok(out)
}
